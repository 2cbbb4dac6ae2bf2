//! What a running builder turns out to be: the question as a shell command, and the reading of its answer.
//!
//! Knows the commands of every supported Nix, and nothing of how they get there and back.

use std::collections::BTreeSet;

use crate::model::requirement::CA_DERIVATIONS;
use crate::model::{BuilderFacts, Feature, Offer, System};

/// Prints the facts, one `name = value` to a line. `sh -c` because a login shell may be anything.
///
/// Nix up to 2.19 has `show-config` only, later ones have `config show`.
pub const COMMAND: &str = "sh -c '\
    echo \"processors = $(nproc)\"; \
    echo \"version = $(nix-daemon --version)\"; \
    n=\"nix --extra-experimental-features nix-command\"; \
    { $n config show 2>/dev/null || $n show-config; } | \
    grep -E \"^(system|extra-platforms|system-features|experimental-features) = \"'";

/// Why an answer is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// Something that every Nix has is missing.
    #[error("the builder does not say its `{0}`: is its Nix in the `PATH` of an SSH command?")]
    Missing(&'static str),
    /// `nproc` gave no number.
    #[error("the builder has `{0}` processors")]
    Processors(String),
}

/// Reads what [`COMMAND`] printed. Lines that are not ours (a message of the day) do no harm.
pub fn parse(stdout: &[u8]) -> Result<BuilderFacts, ProbeError> {
    let text = String::from_utf8_lossy(stdout);
    let value = |name: &'static str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('='));
        line.map(str::trim).filter(|value| !value.is_empty())
    };
    let words = |name| value(name).into_iter().flat_map(str::split_whitespace);

    let processors = value("processors").ok_or(ProbeError::Missing("processors"))?;
    let processors = match processors.parse() {
        Ok(count) if count > 0 => count,
        Ok(_) | Err(_) => return Err(ProbeError::Processors(processors.chars().take(60).collect())),
    };
    let system = value("system").ok_or(ProbeError::Missing("system"))?;
    let mut systems: BTreeSet<_> = words("extra-platforms").map(System::new).collect();
    systems.insert(System::new(system));
    let mut features: BTreeSet<_> = words("system-features").map(Feature::new).collect();
    if words("experimental-features").any(|feature| feature == CA_DERIVATIONS) {
        features.insert(Feature::new(CA_DERIVATIONS));
    }
    let offer = Offer { systems, features, mandatory: BTreeSet::new() };
    // `nix-daemon (Nix) 2.26.3`: the number is the last word, whatever the fork calls itself.
    let nix_version = value("version").and_then(|version| version.split_whitespace().next_back());
    Ok(BuilderFacts { offer, processors, nix_version: nix_version.map(str::to_owned) })
}
