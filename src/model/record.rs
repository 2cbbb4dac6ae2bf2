//! What is worth remembering of a build that ended and of an instance that was paid for.

use std::time::Duration;

use super::{BuildId, BuilderId, DrvPath, Instance, Outcome, PoolName, Requirement, Usd};

/// Something for the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A build ended.
    Build(Box<BuildRecord>),
    /// An instance runs, still runs, or has ended.
    Instance(InstanceRecord),
    /// The stopped instances of a pool have cost this much more.
    PutAside {
        /// Which pool.
        pool: PoolName,
        /// How much.
        cost: Usd,
    },
}

/// A build that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildRecord {
    /// Its id in this run of the broker.
    pub build: BuildId,
    /// What was built.
    pub drv: DrvPath,
    /// What it needed.
    pub requirement: Requirement,
    /// Where it ran last.
    pub place: Option<Place>,
    /// How long it was where.
    pub phases: Phases,
    /// On the builder, in the last attempt; nothing when that was never reached.
    pub took: Option<Duration>,
    /// Bytes to the builder and from it, over all attempts.
    pub traffic: Traffic,
    /// Attempts that were started.
    pub attempts: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// Its share of what its builders cost.
    pub cost: Usd,
}

/// Where a build ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The pool.
    pub pool: PoolName,
    /// The builder.
    pub builder: BuilderId,
    /// Its instance, unless it is gone.
    pub instance: Option<Instance>,
}

/// How long a build was in each phase, over all attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// Without a slot.
    pub waiting: Duration,
    /// Inputs to the builder.
    pub uploading: Duration,
    /// On the builder.
    pub building: Duration,
    /// Outputs from the builder.
    pub downloading: Duration,
}

/// Bytes that travelled for a build.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// To the builder from here: inputs that it did not have.
    pub up: u64,
    /// To the builder from other builders: the same.
    pub direct: u64,
    /// From the builder: outputs.
    pub down: u64,
}

impl Phases {
    /// From the accept to the end.
    pub fn total(self) -> Duration {
        self.waiting + self.uploading + self.building + self.downloading
    }
}

/// An instance at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceRecord {
    /// The builder that it is.
    pub builder: BuilderId,
    /// What it is and costs.
    pub instance: Instance,
    /// Since its launch.
    pub age: Duration,
    /// What it has cost.
    pub cost: Usd,
    /// Whether it has ended.
    pub has_ended: bool,
}
