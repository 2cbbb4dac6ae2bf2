//! Finds the programs that a machine consists of.
//!
//! Owns where they are looked for. What they are started with is in `layout` and `machine`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::model::LocalSpec;
use crate::provider::{ProviderError, ProviderErrorKind};

/// Where distributions keep them, after the broker's own `PATH`.
const USUAL: [&str; 7] = [
    "/run/current-system/sw/bin",
    "/nix/var/nix/profiles/default/bin",
    "/usr/local/bin",
    "/usr/bin",
    "/bin",
    "/usr/sbin",
    "/sbin",
];

/// The programs of one machine.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    pub(super) sshd: PathBuf,
    pub(super) ssh_keygen: PathBuf,
    /// `PATH` of everything that runs on the machine; its Nix comes first.
    pub(super) search_path: String,
    /// `2.26` as `(2, 26)`, if it says.
    pub(super) nix_version: Option<(u32, u32)>,
}

impl Programs {
    /// Finds them, or says which is missing.
    pub(super) fn find(spec: &LocalSpec) -> Result<Self, ProviderError> {
        let own = std::env::var_os("PATH").unwrap_or_default();
        let folders: Vec<PathBuf> = std::env::split_paths(&own)
            .chain(USUAL.iter().map(PathBuf::from))
            .filter(|folder| is_plain(folder))
            .collect();

        // By its real path: sshd starts itself anew by the path it was started with.
        let sshd = choose("sshd", spec.sshd.as_deref(), &folders)?;
        let beside = sshd.parent().map(Path::to_owned);
        let ssh_keygen =
            choose("ssh-keygen", None, &[beside.into_iter().collect(), folders.clone()].concat())?;
        let nix_daemon = choose("nix-daemon", spec.nix_daemon.as_deref(), &folders)?;

        let mut search_path: Vec<PathBuf> = Vec::new();
        for folder in nix_daemon.parent().map(Path::to_owned).into_iter().chain(folders) {
            if !search_path.contains(&folder) {
                search_path.push(folder);
            }
        }
        let search_path = std::env::join_paths(search_path).map(OsString::into_string);
        let Ok(Ok(search_path)) = search_path else {
            return Err(config("the `PATH` of the broker is no text".to_owned()));
        };
        let nix_version = version(&nix_daemon);
        Ok(Self { sshd, ssh_keygen, search_path, nix_version })
    }
}

/// The one that was configured, or else the first one there is.
fn choose(name: &str, configured: Option<&Path>, folders: &[PathBuf]) -> Result<PathBuf, ProviderError> {
    if let Some(path) = configured {
        return if is_program(path) {
            Ok(path.to_owned())
        } else {
            Err(config(format!("`{}`, configured as `{name}`, is not a program", path.display())))
        };
    }
    folders.iter().map(|folder| folder.join(name)).find(|path| is_program(path)).ok_or_else(|| {
        config(format!("there is no `{name}` on this host: install it, or configure where it is"))
    })
}

/// Relative folders mean something else to everybody, and sshd's configuration has no words for odd characters.
fn is_plain(folder: &Path) -> bool {
    folder.is_absolute()
        && folder
            .to_str()
            .is_some_and(|text| !text.contains(|c: char| c.is_whitespace() || "\"'\\=".contains(c)))
}

fn is_program(path: &Path) -> bool {
    path.is_absolute() && path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

fn version(nix_daemon: &Path) -> Option<(u32, u32)> {
    let output = Command::new(nix_daemon).arg("--version").stdin(Stdio::null()).output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

/// `nix-daemon (Nix) 2.26.3`: the last word, whatever the fork calls itself.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_whitespace().next_back()?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn config(reason: String) -> ProviderError {
    ProviderError::new(ProviderErrorKind::Config, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_whatever_the_fork_is_called() {
        assert_eq!(parse_version("nix-daemon (Nix) 2.8.0\n"), Some((2, 8)));
        assert_eq!(parse_version("nix-daemon (Lix, like Nix) 2.93.0-dev"), Some((2, 93)));
        assert_eq!(parse_version("nix (Nix) 2.35pre20260101_abc"), Some((2, 35)));
        assert_eq!(parse_version(""), None);
        assert_eq!(parse_version("hello"), None);
    }

    #[test]
    fn a_configured_program_must_be_one_and_a_missing_one_is_named() {
        let error = choose("sshd", Some(Path::new("/etc/passwd")), &[]).unwrap_err();
        assert_eq!(error.kind, ProviderErrorKind::Config);
        assert!(error.to_string().contains("/etc/passwd"), "{error}");
        let error = choose("no-such-program", None, &["/usr/bin".into()]).unwrap_err();
        assert!(error.to_string().contains("no-such-program"), "{error}");
        assert_eq!(choose("sh", None, &["/none".into(), "/bin".into()]).unwrap(), Path::new("/bin/sh"));
    }
}
