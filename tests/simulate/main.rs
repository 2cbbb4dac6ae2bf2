//! `broker simulate`: what it reads, what it decides over whole runs, and what it shows.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod command;
mod properties;
mod reading;
mod runs;

use std::path::Path;
use std::time::{Duration, Instant};

use nix_broker::config::{self, Config, Defaults};
use nix_broker::model::{DrvPath, Nature, Requirement, System};
use nix_broker::predict::Predictor;
use nix_broker::simulate::shapes::drv_of_name;
use nix_broker::simulate::{Contender, Faults, Foresight, Graph, Node, Scenario, Timeline, Work, run};

pub(crate) const X86: &str = "x86_64-linux";

pub(crate) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A configuration from its text.
pub(crate) fn config(text: &str) -> Config {
    let defaults =
        Defaults { system: System::new(X86), processors: 4, state_dir: Path::new("/var/lib/x").to_owned() };
    config::parse(text, &defaults, &|_| unreachable!("no file is named")).unwrap()
}

pub(crate) fn broker(text: &str) -> Contender {
    let config = config(text);
    Contender::Broker { pools: config.pools, caps: config.caps }
}

/// One EC2 pool with these further lines.
pub(crate) fn cloud(lines: &str) -> String {
    format!("[[pool]]\nname = \"cloud\"\nsystems = [\"x86_64-linux\"]\n{lines}\n[pool.ec2]\n")
}

pub(crate) fn drv(name: &str) -> DrvPath {
    drv_of_name(name).unwrap()
}

/// A build of so many seconds on one thread.
pub(crate) fn node(name: &str, seconds: u64, needs: &[usize]) -> Node {
    Node {
        drv: drv(name),
        requirement: Requirement::new(System::new(X86), [].into()),
        nature: Nature::default(),
        needs: needs.to_vec(),
        arrives: Duration::ZERO,
        work: Work {
            building: secs(seconds),
            threads: 1,
            uploading: Duration::ZERO,
            downloading: Duration::ZERO,
        },
    }
}

pub(crate) fn scenario(graph: &Graph) -> Scenario<'_> {
    Scenario {
        graph,
        max_jobs: 0,
        system: System::new(X86),
        foresight: Foresight::Exact,
        memory: Predictor::default(),
        seed: 1,
        spot_percent: 40,
        faults: Faults::default(),
    }
}

pub(crate) fn simulate(scenario: &Scenario<'_>, contender: &Contender) -> Timeline {
    run(scenario, contender, Instant::now())
}
