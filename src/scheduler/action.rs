//! Every effect the scheduler can want. An action carries all that is needed to perform it: no choices are left.

use std::time::Duration;

use crate::model::{
    BuildId, BuilderId, Demand, Ending, HourlyRate, InstanceId, LeaseId, Outcome, PoolName, Record,
};

/// An effect that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Get an instance for this builder and see it through to ready.
    Launch {
        /// Fresh.
        builder: BuilderId,
        /// In which pool.
        pool: PoolName,
        /// What for: a provider with machines of several sizes chooses by it.
        demand: Demand,
        /// An instance that costs more is one too many: what is left of the cap per hour.
        at_most: Option<HourlyRate>,
    },
    /// End this builder's instance (or the launch under way), until the provider agrees that it is gone.
    Terminate {
        /// Which.
        builder: BuilderId,
        /// Whether it may be put aside instead, for the next time.
        ending: Ending,
        /// Why, for the log.
        reason: String,
    },
    /// Delete so many bytes of what nothing refers to in this builder's store, have it say what it has left, and say when
    /// that is done.
    CollectGarbage {
        /// Which.
        builder: BuilderId,
        /// How much.
        bytes: u64,
    },
    /// Run this build on this builder.
    Start {
        /// Which.
        build: BuildId,
        /// Where.
        builder: BuilderId,
        /// The right to do so.
        lease: LeaseId,
    },
    /// Stop the attempt under this lease; it still ends with `AttemptEnded`.
    Abort {
        /// Which.
        build: BuildId,
        /// Which attempt.
        lease: LeaseId,
    },
    /// Tell the person who waits.
    Tell {
        /// For which build.
        build: BuildId,
        /// What.
        note: Note,
    },
    /// Tell the client the end; the scheduler has forgotten the build but for its history.
    Finish {
        /// Which.
        build: BuildId,
        /// How it ended.
        outcome: Outcome,
    },
    /// Worth remembering.
    Record(Record),
    /// The shutdown is complete: no build and no builder is left.
    Exit,
}

/// What a person who waits for a build wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// It waits for a slot.
    Queued {
        /// In which pool.
        pool: PoolName,
        /// Builds ahead of it.
        ahead: u32,
    },
    /// Nothing is launched for it for now.
    Held {
        /// In which pool.
        pool: PoolName,
        /// Why.
        reason: String,
    },
    /// A builder is launched for its pool.
    Launching {
        /// Which pool.
        pool: PoolName,
        /// Which builder.
        builder: BuilderId,
    },
    /// The instance exists, its boot is awaited.
    Booting {
        /// Which builder.
        builder: BuilderId,
        /// The provider's name for it.
        instance: InstanceId,
    },
    /// What a builder on its way to ready is doing.
    Progress {
        /// Which builder.
        builder: BuilderId,
        /// What is going on.
        text: String,
        /// Since the launch.
        after: Duration,
    },
    /// A builder of its pool became ready.
    BuilderReady {
        /// Which builder.
        builder: BuilderId,
        /// From launch to ready.
        after: Duration,
    },
    /// A builder failed before it was ready, or was lost.
    BuilderFailed {
        /// Which builder.
        builder: BuilderId,
        /// Why.
        reason: String,
    },
    /// It runs on this builder.
    Started {
        /// Which builder.
        builder: BuilderId,
    },
    /// Its builder is taken away, and it is queued again.
    Moved {
        /// Which builder.
        builder: BuilderId,
        /// Why.
        reason: String,
    },
    /// An attempt failed, and it is queued again.
    Retrying {
        /// Why the attempt failed.
        reason: String,
        /// Attempts so far.
        attempts: u32,
    },
}
