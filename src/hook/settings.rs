//! What the client's settings mean for us: the few that go with a build, and whether we are wanted at all.
//!
//! Only what is named here ever leaves the settings block; the rest may be secret.

use std::fs::File;
use std::io::Read as _;

use crate::ipc::Ask;
use crate::model::requirement::BUILTIN_SYSTEM;
use crate::protocol::hook::{SettingsBlock, Try};

/// `builders` when Nix did not send it: the default of every version.
const DEFAULT_BUILDERS: &str = "@/etc/nix/machines";
/// Names of the store that everything on this machine shares.
const DEFAULT_STORES: [&str; 6] =
    ["", "auto", "daemon", "local", "unix://", "unix:///nix/var/nix/daemon-socket/socket"];
/// How deep `@file` may lead to `@file`.
const MAX_FILES: u32 = 8;
/// A longer list of machines is read no further.
const MAX_MACHINES_FILE: u64 = 1 << 20;

/// The settings we act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClientSettings {
    builders: String,
    store: String,
    timeout: u64,
    max_silent_time: u64,
    cores: u64,
    keep_failed: bool,
    use_substitutes: bool,
    max_log_size: u64,
    local: LocalMachine,
}

/// What the settings say of this machine; a Nix that sends only what somebody has set leaves it open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct LocalMachine {
    max_jobs: Option<String>,
    systems: Option<Vec<String>>,
    features: Option<Vec<String>>,
}

impl ClientSettings {
    /// Reads them. `nix_remote` is the variable `NIX_REMOTE`, Nix's default for `store`; `processors` are this
    /// machine's, Nix's default for `cores`.
    pub(super) fn read(block: &SettingsBlock, nix_remote: Option<&str>, processors: u64) -> Self {
        let text = |name: &str| block.get(name).map(|value| String::from_utf8_lossy(value).trim().to_owned());
        let number = |name: &str| text(name).and_then(|value| value.parse().ok()).unwrap_or(0);
        let flag = |name: &str| text(name).is_some_and(|value| value == "true");
        let cores = number("cores");
        Self {
            builders: text("builders").unwrap_or_else(|| DEFAULT_BUILDERS.to_owned()),
            store: text("store").or_else(|| nix_remote.map(str::to_owned)).unwrap_or_default(),
            timeout: number("timeout"),
            max_silent_time: number("max-silent-time"),
            // Up to 2.28 Nix sends the number of this machine's processors when nobody set `cores`. It says nothing
            // about the builder, where a wish for fewer is rare and a machine with more is the rule.
            cores: if cores == processors { 0 } else { cores },
            keep_failed: flag("keep-failed"),
            use_substitutes: flag("builders-use-substitutes"),
            max_log_size: number("max-build-log-size"),
            local: LocalMachine {
                max_jobs: text("max-jobs"),
                systems: text("system").map(|system| {
                    words(&system).chain(words(&text("extra-platforms").unwrap_or_default())).collect()
                }),
                features: text("system-features").map(|features| words(&features).collect()),
            },
        }
    }

    /// Whether this machine surely cannot build it, so that to decline it is to fail it.
    pub(super) fn cannot_build_locally(&self, request: &Try) -> bool {
        let lacks = |list: &Option<Vec<String>>, word: &String| {
            list.as_ref().is_some_and(|list| !list.contains(word))
        };
        self.local.max_jobs.as_deref() == Some("0")
            || request.system != BUILTIN_SYSTEM && lacks(&self.local.systems, &request.system)
            || request.features.iter().any(|feature| lacks(&self.local.features, feature))
    }

    /// Whether this machine surely can build it, so that to decline it is to have it built here.
    fn can_build_locally(&self, request: &Try) -> bool {
        let has =
            |list: &Option<Vec<String>>, word: &String| list.as_ref().is_some_and(|list| list.contains(word));
        self.local.max_jobs.as_deref().is_some_and(|most| most != "0")
            && (request.system == BUILTIN_SYSTEM || has(&self.local.systems, &request.system))
            && request.features.iter().all(|feature| has(&self.local.features, feature))
    }

    /// Whether the user wants no remote builds: `builders` is set, and empty.
    pub(super) fn opted_out(&self) -> bool {
        self.builders.is_empty()
    }

    /// The store the client works on, when it is another one than everything on this machine shares. The broker cannot
    /// read inputs from there.
    pub(super) fn foreign_store(&self) -> Option<&str> {
        (!DEFAULT_STORES.contains(&&*self.store)).then_some(&*self.store)
    }

    /// Whether `builders` names machines, so that the stock hook has somewhere to build.
    pub(super) fn names_machines(&self) -> bool {
        any_machine(&self.builders, MAX_FILES)
    }

    /// The message that asks the broker.
    pub(super) fn ask(&self, request: &Try) -> Ask {
        Ask {
            drv: request.drv.clone(),
            system: request.system.clone(),
            features: request.features.clone(),
            am_willing: request.am_willing,
            only_remote: self.cannot_build_locally(request),
            can_locally: self.can_build_locally(request),
            run: rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs()),
            timeout: self.timeout,
            max_silent_time: self.max_silent_time,
            cores: self.cores,
            keep_failed: self.keep_failed,
            use_substitutes: self.use_substitutes,
            max_log_size: self.max_log_size,
            imports_meanwhile: true,
            prepares: true,
            file: None,
        }
    }
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>().into_iter()
}

/// Follows Nix's rules for `builders`: entries end at a newline or `;`, `#` begins a comment, `@` names a file.
fn any_machine(builders: &str, files: u32) -> bool {
    builders
        .lines()
        .flat_map(|line| line.split('#').next().unwrap_or_default().split(';'))
        .map(str::trim)
        .any(|entry| match entry.strip_prefix('@') {
            Some(_) if files == 0 => false,
            Some(path) => {
                let mut text = Vec::new();
                let read = File::open(path.trim())
                    .and_then(|file| file.take(MAX_MACHINES_FILE).read_to_end(&mut text));
                read.is_ok() && any_machine(&String::from_utf8_lossy(&text), files - 1)
            }
            None => !entry.is_empty(),
        })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::protocol::hook::HookInput;

    fn settings(pairs: &[(&str, &str)]) -> ClientSettings {
        let mut block = HookInput::new(&[0; 8][..]).settings().unwrap();
        for (name, value) in pairs {
            block = HookInput::new(&block.with(name, value)[..]).settings().unwrap();
        }
        ClientSettings::read(&block, None, 2)
    }

    #[test]
    fn only_an_empty_builders_setting_is_an_opt_out() {
        assert!(settings(&[("builders", " \n")]).opted_out());
        assert!(!settings(&[("builders", "@/etc/nix/machines")]).opted_out());
        assert!(!settings(&[]).opted_out());
    }

    #[test]
    fn a_store_of_its_own_is_foreign() {
        for ours in ["", "auto", "daemon", "local", "unix://"] {
            assert_eq!(settings(&[("store", ours)]).foreign_store(), None, "{ours}");
        }
        assert_eq!(settings(&[]).foreign_store(), None);
        assert_eq!(settings(&[("store", "local?root=/tmp/x")]).foreign_store(), Some("local?root=/tmp/x"));
        let block = HookInput::new(&[0; 8][..]).settings().unwrap();
        let remote = ClientSettings::read(&block, Some("ssh-ng://elsewhere"), 2);
        assert_eq!(remote.foreign_store(), Some("ssh-ng://elsewhere"));
    }

    #[test]
    fn machines_are_counted_as_nix_counts_them() {
        for (builders, expected) in [
            ("ssh://mac x86_64-darwin", true),
            ("  # nobody\n;; ", false),
            ("# x\n mac # y", true),
            ("@/nonexistent/machines", false),
            ("@/nonexistent/machines ; mac", true),
        ] {
            assert_eq!(settings(&[("builders", builders)]).names_machines(), expected, "{builders}");
        }
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let builders = format!("@{}", file.path().display());
        file.write_all(b"# none yet\n").unwrap();
        assert!(!settings(&[("builders", &builders)]).names_machines());
        file.write_all(b"mac\n").unwrap();
        assert!(settings(&[("builders", &builders)]).names_machines());
        file.write_all(builders.as_bytes()).unwrap();
        assert!(settings(&[("builders", &builders)]).names_machines());
    }

    #[test]
    fn a_file_that_names_itself_ends() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let builders = format!("@{}", file.path().display());
        file.write_all(builders.as_bytes()).unwrap();
        assert!(!settings(&[("builders", &builders)]).names_machines());
    }

    #[test]
    fn the_number_of_this_machines_processors_is_no_wish() {
        let request =
            Try { am_willing: false, system: String::new(), drv: String::new(), features: Vec::new() };
        assert_eq!(settings(&[("cores", "2")]).ask(&request).cores, 0);
        assert_eq!(settings(&[("cores", "1")]).ask(&request).cores, 1);
    }
}
