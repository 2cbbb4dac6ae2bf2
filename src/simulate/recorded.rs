//! Builds that were recorded, as a graph: they arrive when they arrived, since nobody wrote down what needed what.
//!
//! How long a build takes is what it took then, times the speed of the machine it took that on. What else ran there at
//! the time is not known, so it counts as alone.

use std::collections::BTreeSet;
use std::time::Duration;

use super::durations::{Durations, Hints};
use super::graph::{Graph, GraphError, Node, Work};
use super::machine::Power;
use crate::catalog::Catalog;
use crate::model::requirement::BIG_PARALLEL;
use crate::model::{DrvPath, Feature, Nature, Requirement, System};

/// A build that was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// What was built.
    pub drv: DrvPath,
    /// Its system.
    pub system: System,
    /// What it required.
    pub features: BTreeSet<Feature>,
    /// When Nix asked for it, since the beginning of 1970.
    pub asked: Duration,
    /// Inputs to the builder.
    pub uploading: Duration,
    /// On the builder.
    pub building: Duration,
    /// Outputs from the builder.
    pub downloading: Duration,
    /// What the builder was.
    pub instance_type: Option<String>,
}

/// The graph of these; the first of them arrives at once.
pub fn graph(builds: Vec<Recorded>) -> Result<Graph, GraphError> {
    let first = builds.iter().map(|build| build.asked).min().unwrap_or_default();
    let guesses = Durations::default();
    let node = |build: Recorded| {
        let known = build.instance_type.as_deref().and_then(|name| Catalog::get().find(name));
        let speed = known.map_or(1.0, |known| Power::of(known).speed);
        let big_parallel = build.features.contains(&Feature::new(BIG_PARALLEL));
        let hints = Hints { big_parallel, ..Hints::default() };
        let (guess, _) = guesses.work(build.drv.name(), &build.system, hints);
        Node {
            drv: build.drv,
            requirement: Requirement::new(build.system, build.features),
            nature: Nature::default(),
            needs: Vec::new(),
            arrives: build.asked.saturating_sub(first),
            work: Work {
                building: build.building.mul_f64(speed),
                threads: guess.threads,
                uploading: build.uploading,
                downloading: build.downloading,
            },
        }
    };
    Graph::new(builds.into_iter().map(node).collect())
}
