//! What the broker is told of how long a build will take.

use std::time::Duration;

use super::graph::{Graph, Node};
use super::random::Random;
use crate::model::{Basis, BuildRecord, Prediction};
use crate::predict::Predictor;

/// The standard deviation of the logarithm of what was predicted, against what it was: a build that was seen before, on
/// another machine, beside other builds, in another version.
const ERROR: f64 = 0.4;

/// How much is known beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foresight {
    /// Nothing.
    None,
    /// What the history says, and what ends during the run teaches.
    Learned,
    /// Every duration, with the error that a prediction from a history has.
    Rough,
    /// Every duration, and what waits for each build.
    Exact,
}

impl Foresight {
    /// All of them, by name.
    pub const ALL: [(&'static str, Self); 4] =
        [("none", Self::None), ("learned", Self::Learned), ("rough", Self::Rough), ("exact", Self::Exact)];
}

/// Who predicts in a run.
#[derive(Debug)]
pub(super) struct Oracle {
    foresight: Foresight,
    predictor: Predictor,
    tails: Vec<Duration>,
}

impl Oracle {
    pub(super) fn new(foresight: Foresight, memory: &Predictor, graph: &Graph) -> Self {
        let tails = match foresight {
            Foresight::Exact => graph.tails(),
            Foresight::None | Foresight::Learned | Foresight::Rough => Vec::new(),
        };
        Self { foresight, predictor: memory.clone(), tails }
    }

    pub(super) fn predict(&self, ix: usize, node: &Node) -> Prediction {
        match self.foresight {
            Foresight::None => Prediction::UNKNOWN,
            Foresight::Learned => self.predictor.predict(&node.drv, &node.requirement),
            Foresight::Rough => {
                let error = (ERROR * Random::of_name(node.drv.as_store_path().base_name()).normal()).exp();
                let duration = node.work.building.mul_f64(error);
                Prediction {
                    least: duration.mul_f64((-ERROR).exp()),
                    most: duration.mul_f64(ERROR.exp()),
                    samples: 3,
                    basis: Basis::Name,
                    ..Prediction::exact(duration)
                }
            }
            Foresight::Exact => {
                let tail = self.tails.get(ix).copied().unwrap_or_default();
                Prediction { tail, ..Prediction::exact(node.work.building) }
            }
        }
    }

    pub(super) fn learn(&mut self, record: &BuildRecord) {
        if self.foresight == Foresight::Learned {
            self.predictor.learn(record);
        }
    }
}
