//! Which program the stock client is: the running Nix itself, so that client, daemon and store agree on every version.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Names a program to use instead, for tests.
const OVERRIDE_VARIABLE: &str = "NIX_BROKER_NIX";
/// Where Nix may be when neither the parent nor `PATH` leads to it.
const USUAL_PLACES: [&str; 3] =
    ["/run/current-system/sw/bin", "/nix/var/nix/profiles/default/bin", "/usr/bin"];

/// There is no Nix to be found.
#[derive(Debug, thiserror::Error)]
#[error("find the `nix` program: it is neither our parent, nor in PATH, nor in {}", USUAL_PLACES.join(", "))]
pub(super) struct NixNotFound;

/// Finds the program.
pub(super) fn find() -> Result<PathBuf, NixNotFound> {
    if let Some(program) = std::env::var_os(OVERRIDE_VARIABLE).filter(|program| !program.is_empty()) {
        return Ok(program.into());
    }
    let parent = rustix::process::getppid()
        .map(|parent| PathBuf::from(format!("/proc/{}/exe", parent.as_raw_nonzero())))
        .and_then(|link| Some((std::fs::read_link(&link).ok()?, link)));
    if let Some((program, link)) = &parent
        && is_nix(program)
    {
        // The link, not its text: it still leads there when an upgrade has replaced the file.
        return Ok(link.clone());
    }
    // The parent is an embedder of Nix's libraries: its own `nix` is likely to stand beside it.
    let beside = parent.as_ref().and_then(|(program, _)| program.parent().map(Path::to_owned));
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(std::env::split_paths(&path))
        .chain(USUAL_PLACES.map(PathBuf::from))
        .map(|folder| folder.join("nix"))
        .find(|program| program.is_file())
        .ok_or(NixNotFound)
}

/// Whether a program is Nix under one of its names, perhaps wrapped, perhaps replaced since.
fn is_nix(program: &Path) -> bool {
    let name = program.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let name = name.strip_suffix(" (deleted)").unwrap_or(name);
    let name = name.strip_prefix('.').and_then(|name| name.strip_suffix("-wrapped")).unwrap_or(name);
    matches!(
        name,
        "nix"
            | "nix-daemon"
            | "nix-build"
            | "nix-store"
            | "nix-env"
            | "nix-shell"
            | "nix-instantiate"
            | "nix-channel"
            | "nix-collect-garbage"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nix_is_known_under_its_names_and_its_embedders_are_not() {
        for nix in
            ["/nix/store/x-nix-2.26/bin/nix", "/usr/bin/nix-daemon", "/a/.nix-wrapped", "/a/nix (deleted)"]
        {
            assert!(is_nix(Path::new(nix)), "{nix}");
        }
        for other in ["/a/nix-eval-jobs", "/a/hydra-evaluator", "/a/bash", "/"] {
            assert!(!is_nix(Path::new(other)), "{other}");
        }
    }
}
