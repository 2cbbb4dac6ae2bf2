//! Every fact that can reach the scheduler.

use std::time::Duration;

use crate::model::{
    BuildId, BuildRequest, BuilderFacts, BuilderId, Delivery, Failure, HourlyRate, Instance, LeaseId, Load,
    PoolName, UtcDay,
};

/// A fact that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request was accepted and became this build. Its inputs are not known yet.
    Accepted {
        /// Fresh, from the driver.
        build: BuildId,
        /// What was asked.
        request: BuildRequest,
    },
    /// Some inputs of a build were made on these builders, most of them on the first.
    InputsMadeOn {
        /// Which.
        build: BuildId,
        /// Where.
        builders: Vec<BuilderId>,
    },
    /// Nix has sent the inputs: the build may be placed.
    InputsKnown(BuildId),
    /// The client of this build went away.
    ClientGone(BuildId),
    /// A running build has entered another phase.
    Progressed {
        /// Which.
        build: BuildId,
        /// Under which lease; a stale one is ignored.
        lease: LeaseId,
        /// Where it is.
        phase: RunPhase,
    },
    /// The inputs of a running build are on its builder.
    Delivered {
        /// Which.
        build: BuildId,
        /// Under which lease; a stale one is ignored.
        lease: LeaseId,
        /// Where they came from.
        delivery: Box<Delivery>,
    },
    /// The outputs of a running build have come from its builder.
    Fetched {
        /// Which.
        build: BuildId,
        /// Under which lease; a stale one is ignored.
        lease: LeaseId,
        /// Bytes of their archives.
        bytes: u64,
    },
    /// The attempt under this lease is over. The slot is free whatever the end.
    AttemptEnded {
        /// Which.
        build: BuildId,
        /// Under which lease; a stale one is ignored.
        lease: LeaseId,
        /// How.
        end: AttemptEnd,
    },
    /// Instances that an earlier broker launched were found alive.
    Adopted(Vec<Adoption>),
    /// The provider has made the instance; its sshd is awaited.
    Launched {
        /// For which builder.
        builder: BuilderId,
        /// What was made.
        instance: Instance,
    },
    /// A builder on its way to ready has come a step further, in words for the person who waits.
    Progress {
        /// Which.
        builder: BuilderId,
        /// What is going on.
        text: String,
    },
    /// All checks passed.
    Ready {
        /// Which.
        builder: BuilderId,
        /// What it turned out to be.
        facts: BuilderFacts,
    },
    /// A ready builder has said how busy it is.
    Load {
        /// Which.
        builder: BuilderId,
        /// What it said.
        load: Load,
    },
    /// Its garbage has been collected, or cannot be; what it has left was told before.
    Collected(BuilderId),
    /// The builder cannot become ready, or no longer answers. Its attempts end by their own events.
    Lost {
        /// Which.
        builder: BuilderId,
        /// Why.
        fault: BuilderFault,
    },
    /// The provider takes this builder back: its builds are moved to another one.
    Interrupted {
        /// Which.
        builder: BuilderId,
        /// How soon, where that is known.
        within: Option<Duration>,
        /// In words.
        why: String,
    },
    /// The provider may take this builder back: no new builds there.
    Endangered {
        /// Which.
        builder: BuilderId,
        /// In words.
        why: String,
    },
    /// Something about a builder is not as its operator wants it; it works all the same.
    Warned {
        /// Which.
        builder: BuilderId,
        /// In words, with what to do.
        why: String,
    },
    /// The provider agrees that nothing of it is left.
    Gone(BuilderId),
    /// What time it is, told every minute or so: bills are split by days, and a clock that stood still with its machine
    /// is put right.
    Clock {
        /// Today, in UTC.
        day: UtcDay,
        /// What instances cost that are stopped, by pool.
        aside: Vec<(PoolName, HourlyRate)>,
    },
    /// An operator wants one builder more in this pool, for the idle window at least.
    StartRequested(PoolName),
    /// An operator wants these to take no new builds and end when they are idle.
    DrainRequested(Selection),
    /// An operator wants these ended now; their builds are tried elsewhere.
    StopRequested(Selection),
    /// The broker ends: accept nothing new, finish what runs, then end every builder.
    ShutdownRequested,
    /// The grace of the shutdown is over: end what still runs.
    ShutdownForced,
    /// A deadline of `next_deadline` has come.
    Tick,
}

/// An instance that an earlier broker launched, and the builder it becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adoption {
    /// Fresh, from [`Fleet::reserve_builder`](super::Fleet::reserve_builder).
    pub builder: BuilderId,
    /// What is there.
    pub instance: Instance,
    /// Since when it runs.
    pub age: Duration,
}

/// Which builders an operator means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// This one.
    One(BuilderId),
    /// Every one.
    All,
}

/// What a running attempt is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RunPhase {
    /// Inputs to the builder.
    Uploading,
    /// The builder builds.
    Building,
    /// Outputs from the builder.
    Downloading,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptEnd {
    /// Every output is here.
    Succeeded,
    /// It failed; the scheduler decides whether it is tried again.
    Failed(Failure),
    /// It was stopped because we asked.
    Aborted,
}

/// Why a builder is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuilderFault {
    /// What kind of thing went wrong.
    pub kind: BuilderFaultKind,
    /// A sentence fragment for people.
    pub reason: String,
}

/// The kinds of fault; they decide how long the pool waits before it launches again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BuilderFaultKind {
    /// The provider refused or failed to launch.
    LaunchFailed,
    /// Nothing that would do costs as little as what is left of a cap.
    OverBudget,
    /// It never answered, or not in time.
    BootFailed,
    /// It answered, but is not what its pool promises (features, system, host key, Nix).
    Unfit,
    /// It was ready and went away.
    ConnectionLost,
}
