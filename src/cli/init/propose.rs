//! What to write into a configuration where there is none, from what was found: pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::{Architecture, microarch};
use crate::model::System;

/// What is found out beforehand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// This machine's own.
    pub(super) system: System,
    /// The region that EC2 was asked in, or why it cannot be used.
    pub(super) aws: Result<String, String>,
    /// What the machines of the flake are, by name.
    pub(super) machines: BTreeMap<String, Machine>,
}

/// A machine of a flake, as far as its builds depend on it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub(super) struct Machine {
    pub(super) system: String,
    /// `nixpkgs.hostPlatform.gcc.arch`.
    pub(super) gccarch: Option<String>,
}

/// A pool that somebody wants: `local`, `aarch64-linux`, `x86_64-linux:gccarch-znver3`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wanted {
    Local,
    Ec2 { system: String, features: Vec<String> },
}

impl std::str::FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "local" {
            return Ok(Self::Local);
        }
        let (system, features) = text.split_once(':').unwrap_or((text, ""));
        if Architecture::of(&System::new(system)).is_none() {
            return Err(
                "a pool is `local`, or a system that EC2 has, such as `x86_64-linux` or `aarch64-linux`, \
                        with features after a colon: `x86_64-linux:gccarch-znver3`"
                    .to_owned(),
            );
        }
        let features: Vec<String> =
            features.split(',').filter(|feature| !feature.is_empty()).map(str::to_owned).collect();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_+.".contains(c);
        match features.iter().find(|feature| !feature.chars().all(is_plain)) {
            Some(odd) => Err(format!("`{}` is no feature", odd.escape_debug())),
            None => Ok(Self::Ec2 { system: system.to_owned(), features }),
        }
    }
}

/// What is proposed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Proposal {
    pub(super) text: String,
    /// What a person should know about it.
    pub(super) remarks: Vec<String>,
}

/// The pools that were asked for, else those that the flake's machines need, else one for this machine's system.
pub(super) fn propose(found: &Found, asked: &[Wanted]) -> Result<Proposal, String> {
    let mut remarks = Vec::new();
    let mut wanted: BTreeSet<Wanted> = asked.iter().cloned().collect();
    if wanted.is_empty() && found.aws.is_ok() {
        wanted = needed(found, &mut remarks);
    }
    let region = match (&found.aws, wanted.iter().any(|pool| *pool != Wanted::Local)) {
        (Ok(region), _) => region.as_str(),
        (Err(_), false) => "",
        (Err(why), true) => return Err(why.clone()),
    };
    if wanted.is_empty() {
        remarks.push("without EC2 there is a pool on this machine itself, to try everything with".to_owned());
        wanted.insert(Wanted::Local);
    }
    Ok(Proposal { text: file(&wanted, region), remarks })
}

fn needed(found: &Found, remarks: &mut Vec<String>) -> BTreeSet<Wanted> {
    let mut wanted = BTreeSet::new();
    for (name, machine) in &found.machines {
        if Architecture::of(&System::new(machine.system.as_str())).is_none() {
            remarks.push(format!("`{name}` is {}, which EC2 has no machines for", machine.system));
            continue;
        }
        let features = match &machine.gccarch {
            Some(arch) if microarch::families(arch, false).is_empty() => {
                remarks.push(format!(
                    "`{name}` wants code for `{arch}`, which no machine of EC2 is known to run"
                ));
                continue;
            }
            Some(arch) => vec![format!("gccarch-{arch}")],
            None => Vec::new(),
        };
        wanted.insert(Wanted::Ec2 { system: machine.system.clone(), features });
    }
    let own = Architecture::of(&found.system);
    if let (true, Some(own)) = (wanted.is_empty(), own) {
        wanted.insert(Wanted::Ec2 { system: own.system().to_owned(), features: Vec::new() });
    }
    wanted
}

/// The file. Nothing in it is more than letters, digits and signs that need no escaping.
fn file(wanted: &BTreeSet<Wanted>, region: &str) -> String {
    let mut text =
        "# Made by `broker init`; `broker check` explains it, and the README has every key.\n".to_owned();
    if wanted.iter().any(|pool| *pool != Wanted::Local) {
        text.push_str("\n[cost]                    # US dollars, of all pools on EC2 together\nmax-per-hour = 5\nmax-per-day = 20\n");
    }
    let mut names = BTreeSet::new();
    for pool in wanted {
        let (base, body) = match pool {
            Wanted::Local => ("local".to_owned(), "slots = \"auto\"\n\n[pool.local]\n".to_owned()),
            Wanted::Ec2 { system, features } => {
                let arch = features.iter().find_map(|feature| feature.strip_prefix("gccarch-"));
                let base = arch.unwrap_or(system.trim_end_matches("-linux")).replace('_', "-");
                let list: Vec<_> = features.iter().map(|feature| format!("\"{feature}\"")).collect();
                let features = match list.is_empty() {
                    true => String::new(),
                    false => format!("features = [{}]\n", list.join(", ")),
                };
                let body = format!(
                    "systems = [\"{system}\"]\n{features}max-builders = 8          # at most; what waits decides how many\nidle-timeout = \"10m\"\n\n[pool.ec2]\nregion = \"{region}\"\nmarket = \"spot\"           # on demand when there is none\n"
                );
                (base, body)
            }
        };
        let mut name = base.clone();
        let mut n = 1;
        while !names.insert(name.clone()) {
            n += 1;
            name = format!("{base}-{n}");
        }
        text.push_str(&format!("\n[[pool]]\nname = \"{name}\"\n{body}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Defaults};

    fn found(aws: Result<&str, &str>, machines: &[(&str, &str, Option<&str>)]) -> Found {
        let machine = |(name, system, arch): &(&str, &str, Option<&str>)| {
            let machine = Machine { system: (*system).to_owned(), gccarch: arch.map(str::to_owned) };
            ((*name).to_owned(), machine)
        };
        Found {
            system: System::new("x86_64-linux"),
            aws: aws.map(str::to_owned).map_err(str::to_owned),
            machines: machines.iter().map(machine).collect(),
        }
    }

    /// A proposal that the configuration's own reader takes without a word.
    fn proposal(found: &Found, asked: &[&str]) -> Proposal {
        let asked: Vec<Wanted> = asked.iter().map(|text| text.parse().unwrap()).collect();
        let proposal = propose(found, &asked).unwrap();
        let defaults = Defaults { system: found.system.clone(), processors: 4, state_dir: "/s".into() };
        let config = config::parse(&proposal.text, &defaults, &|_| Err(std::io::ErrorKind::NotFound.into()));
        let config = config.unwrap_or_else(|problems| panic!("{problems:?}\n{}", proposal.text));
        assert_eq!(config.warnings, []);
        proposal
    }

    #[test]
    fn a_flakes_machines_get_the_pools_they_need() {
        let machines = [
            ("tiger", "x86_64-linux", Some("znver3")),
            ("lion", "x86_64-linux", Some("znver3")),
            ("ant", "aarch64-linux", None),
            ("old", "x86_64-linux", Some("i486")),
            ("mac", "x86_64-darwin", None),
        ];
        let proposal = proposal(&found(Ok("eu-central-1"), &machines), &[]);
        insta::assert_snapshot!(format!("{}---\n{}", proposal.text, proposal.remarks.join("\n")));
    }

    #[test]
    fn without_a_flake_it_is_this_machines_system_and_without_aws_this_machine() {
        let on_ec2 = proposal(&found(Ok("eu-west-1"), &[]), &[]);
        assert!(on_ec2.text.contains("systems = [\"x86_64-linux\"]") && on_ec2.text.contains("max-per-day"));
        let here = proposal(&found(Err("no credentials"), &[]), &[]);
        assert!(here.text.contains("[pool.local]") && !here.text.contains("[cost]"), "{}", here.text);
        assert_eq!(here.remarks.len(), 1);
    }

    #[test]
    fn what_was_asked_for_is_proposed_and_nothing_else() {
        let with = found(Ok("eu-west-1"), &[("tiger", "x86_64-linux", Some("znver3"))]);
        let asked = [
            "x86_64-linux:gccarch-znver4",
            "x86_64-linux",
            "x86_64-linux:gccarch-znver4,big-parallel",
            "local",
        ];
        let proposal = proposal(&with, &asked);
        for name in ["\"znver4\"", "\"znver4-2\"", "\"x86-64\"", "\"local\""] {
            assert!(proposal.text.contains(&format!("name = {name}")), "{name}\n{}", proposal.text);
        }
        let without = found(Err("there are no credentials"), &[]);
        assert_eq!(
            propose(&without, &["aarch64-linux".parse().unwrap()]),
            Err("there are no credentials".to_owned())
        );
        for odd in ["", "x86_64-darwin", "locl", "x86_64-linux:a\"b", "x86_64-linux:a\nb"] {
            assert!(odd.parse::<Wanted>().is_err(), "{odd:?}");
        }
    }
}
