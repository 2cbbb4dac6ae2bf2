//! What a running builder turns out to be: the question as a shell command, and the reading of its answer.
//!
//! Knows the commands of every supported Nix, and nothing of how they get there and back.

use std::collections::BTreeSet;

use crate::model::requirement::CA_DERIVATIONS;
use crate::model::{BuilderFacts, Feature, Offer, System};

/// Prints the facts, one `name = value` to a line. `sh -c` because a login shell may be anything.
///
/// Nix up to 2.19 has `show-config` only, later ones have `config show`. Linux on x86 calls what the CPU can do `flags`, on
/// ARM `Features`.
pub const COMMAND: &str = "sh -c '\
    echo \"processors = $(nproc)\"; \
    echo \"cpu-flags = $(grep -m 1 -E \"^(flags|Features)[[:space:]]*:\" /proc/cpuinfo 2>/dev/null | cut -d: -f2-)\"; \
    echo \"version = $(nix-daemon --version)\"; \
    n=\"nix --extra-experimental-features nix-command\"; \
    { $n config show 2>/dev/null || $n show-config; } | \
    grep -E \"^(system|extra-platforms|system-features|experimental-features) = \"'";

/// A CPU has a few hundred flags, and their names are short.
const MAX_CPU_FLAGS: usize = 1000;
const MAX_CPU_FLAG: usize = 40;

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
    let flags = words("cpu-flags").filter(|flag| flag.len() <= MAX_CPU_FLAG).take(MAX_CPU_FLAGS);
    Ok(BuilderFacts {
        offer,
        processors,
        nix_version: nix_version.map(str::to_owned),
        cpu_flags: flags.map(str::to_owned).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<T: ToString>(set: &BTreeSet<T>) -> String {
        set.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    // Recorded from Debian's Nix in the lab; the order of lines differs.
    const NIX_2_8: &str = "processors = 2\nversion = nix-daemon (Nix) 2.8.0\n\
        experimental-features = ca-derivations flakes nix-command\n\
        extra-platforms = i686-linux x86_64-v1-linux x86_64-v2-linux x86_64-v3-linux\n\
        system = x86_64-linux\nsystem-features = big-parallel gccarch-znver3 kvm\n";
    const NIX_2_26: &str = "processors = 16\nversion = nix-daemon (Nix) 2.26.3\n\
        experimental-features = fetch-tree flakes nix-command\nextra-platforms = i686-linux\n\
        system = x86_64-linux\nsystem-features = benchmark big-parallel nixos-test uid-range\n";
    const NIX_2_34: &str = "processors = 2\nversion = nix-daemon (Nix) 2.34.8\n\
        experimental-features = ca-derivations dynamic-derivations fetch-tree flakes nix-command\n\
        extra-platforms = \nsystem = aarch64-linux\nsystem-features = \n";

    #[test]
    fn every_supported_nix_is_understood() {
        let facts = parse(NIX_2_8.as_bytes()).unwrap();
        assert_eq!(facts.processors, 2);
        assert_eq!(facts.nix_version.as_deref(), Some("2.8.0"));
        assert_eq!(
            words(&facts.offer.systems),
            "i686-linux x86_64-linux x86_64-v1-linux x86_64-v2-linux x86_64-v3-linux"
        );
        assert_eq!(words(&facts.offer.features), "big-parallel ca-derivations gccarch-znver3 kvm");

        let facts = parse(NIX_2_26.as_bytes()).unwrap();
        assert_eq!(facts.processors, 16);
        assert_eq!(words(&facts.offer.features), "benchmark big-parallel nixos-test uid-range");

        let facts = parse(NIX_2_34.as_bytes()).unwrap();
        assert_eq!(words(&facts.offer.systems), "aarch64-linux");
        assert_eq!(words(&facts.offer.features), "ca-derivations");
        assert_eq!(facts.nix_version.as_deref(), Some("2.34.8"));
    }

    #[test]
    fn what_else_a_login_prints_does_no_harm() {
        let noisy = format!("Welcome!\nsystem of the month: none\n\u{1b}[1m\n{NIX_2_8}bye\n");
        assert_eq!(parse(noisy.as_bytes()), parse(NIX_2_8.as_bytes()));
    }

    #[test]
    fn the_flags_of_the_cpu_are_read_within_bounds() {
        let flags = |line: &str| {
            let facts = parse(format!("{NIX_2_8}{line}").as_bytes()).unwrap();
            facts.cpu_flags.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(flags("cpu-flags =  fpu vme avx2 fpu\n"), ["avx2", "fpu", "vme"]);
        assert_eq!(flags("cpu-flags = fp asimd sve\n"), ["asimd", "fp", "sve"]);
        assert!(flags("").is_empty() && flags("cpu-flags = \n").is_empty());
        assert!(flags(&format!("cpu-flags = {}\n", "x".repeat(100))).is_empty());
        let many = (0..5000).map(|number| format!("f{number} ")).collect::<String>();
        assert_eq!(flags(&format!("cpu-flags = {many}\n")).len(), MAX_CPU_FLAGS);
    }

    #[test]
    fn a_builder_without_nix_or_without_sense_is_none() {
        assert_eq!(parse(b""), Err(ProbeError::Missing("processors")));
        assert_eq!(parse(b"processors = 4\nversion = \n"), Err(ProbeError::Missing("system")));
        assert_eq!(parse(b"processors = \nsystem = x86_64-linux\n"), Err(ProbeError::Missing("processors")));
        for odd in ["0", "-1", "many", "99999999999"] {
            let said = format!("processors = {odd}\nsystem = x86_64-linux\n");
            assert_eq!(parse(said.as_bytes()), Err(ProbeError::Processors(odd.into())));
        }
        assert!(parse(&[0xff; 1000]).is_err());
    }

    #[test]
    fn the_command_is_one_that_a_shell_without_nix_survives() {
        let output =
            std::process::Command::new("sh").args(["-c", COMMAND]).env("PATH", "/usr/bin:/bin").output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.starts_with("processors = "), "{said}{}", String::from_utf8_lossy(&output.stderr));
        // Every CPU that this is built for has some.
        let flags = said.lines().find_map(|line| line.strip_prefix("cpu-flags = ")).unwrap();
        assert!(flags.split_whitespace().count() > 5, "{said}");
    }
}
