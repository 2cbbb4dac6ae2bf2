//! One build: where it is in its life, what it was tried on, and why it is where it is.
//!
//! Transitions are taken by [`super::fleet`]; whether a failure is tried again is [`super::retry`]'s question.

use std::time::{Duration, Instant};

use super::event::RunPhase;
use super::pool::PoolIx;
use super::queue::{LaneIx, Place};
use super::retry::Attempt;
use super::trail::{Trail, Why};
use super::worth::End;
use crate::model::{Basis, BuildId, BuildPhase, BuildRequest, BuilderId, LeaseId, Phases, Traffic, Usd};

/// An accepted build that has not ended.
#[derive(Clone, Debug)]
pub(super) struct Build {
    pub(super) id: BuildId,
    pub(super) request: BuildRequest,
    /// Its place in whatever lane it waits.
    pub(super) place: Place,
    pub(super) accepted_at: Instant,
    pub(super) stage: Stage,
    /// Since when it is in that stage, or its phase.
    pub(super) since: Instant,
    /// How long it was where, but for where it is.
    pub(super) phases: Phases,
    /// How long the builder has built in the attempt that is the last so far.
    pub(super) took: Option<Duration>,
    /// What has travelled for it.
    pub(super) traffic: Traffic,
    /// What its attempts that have ended cost.
    pub(super) cost: Usd,
    /// Attempts that were started.
    pub(super) starts: u32,
    /// Attempts that failed, and count.
    pub(super) failed: Vec<Attempt>,
    /// It has lost a machine that could be taken away, and shall not lose another.
    pub(super) shuns_loose: bool,
    pub(super) trail: Trail,
    /// Builders that made some of its inputs, the one that made most first.
    pub(super) near: Vec<BuilderId>,
    /// The builder whose start it was told of.
    pub(super) herald: Option<BuilderId>,
}

/// Where a build is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nix has not sent the inputs.
    Accepted,
    /// Waits for a slot.
    Queued {
        /// With its like.
        lane: LaneIx,
        /// The fleet's failure counter when it began to wait.
        waits_since: u64,
    },
    /// Has a slot.
    Running(Run),
}

/// An attempt that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) builder: BuilderId,
    pub(super) pool: PoolIx,
    /// Where it waited.
    pub(super) lane: LaneIx,
    pub(super) lease: LeaseId,
    /// When it will probably end.
    pub(super) end: Option<End>,
    pub(super) phase: RunPhase,
    /// Why it was asked to stop, if it was.
    pub(super) stop: Option<StopCause>,
}

/// Why a running attempt is stopped; a later cause that is stronger replaces an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum StopCause {
    /// Its builder is taken away: moved.
    Interrupted,
    /// Its builder is ended: tried elsewhere.
    BuilderStopped,
    /// The broker ends: fails.
    Shutdown,
    /// Its client went away: nobody wants it.
    ClientGone,
}

impl Build {
    pub(super) fn accepted(id: BuildId, request: BuildRequest, place: Place, now: Instant) -> Self {
        let mut trail = Trail::default();
        trail.push(now, Why::Accepted);
        if request.prediction.basis != Basis::Nothing {
            trail.push(now, Why::Predicted(request.prediction));
        }
        let inherited = &request.requirement.inherited;
        if !inherited.is_empty() {
            trail.push(now, Why::Inherits(inherited.clone()));
        }
        Self {
            id,
            request,
            place,
            accepted_at: now,
            stage: Stage::Accepted,
            since: now,
            phases: Phases::default(),
            took: None,
            traffic: Traffic::default(),
            cost: Usd::ZERO,
            starts: 0,
            failed: Vec::new(),
            shuns_loose: false,
            trail,
            near: Vec::new(),
            herald: None,
        }
    }

    pub(super) fn enter(&mut self, now: Instant, stage: Stage) {
        self.leave(now);
        self.stage = stage;
    }

    /// Its phase ends, another begins.
    pub(super) fn leave(&mut self, now: Instant) {
        let spent = now.saturating_duration_since(self.since);
        match &self.stage {
            Stage::Running(Run { phase: RunPhase::Building, .. }) => {
                self.took = Some(self.took.unwrap_or_default() + spent);
            }
            Stage::Running(_) => {}
            Stage::Accepted | Stage::Queued { .. } => self.took = None,
        }
        let phases = &mut self.phases;
        *match &self.stage {
            Stage::Accepted | Stage::Queued { .. } => &mut phases.waiting,
            Stage::Running(run) => match run.phase {
                RunPhase::Uploading => &mut phases.uploading,
                RunPhase::Building => &mut phases.building,
                RunPhase::Downloading => &mut phases.downloading,
            },
        } += spent;
        self.since = now;
    }

    /// How long it is expected to be built yet, where something is known of its like.
    pub(super) fn remaining(&self, now: Instant) -> Option<Duration> {
        let expected = self.request.prediction;
        let (before, spent) = (self.took.unwrap_or_default(), now.saturating_duration_since(self.since));
        let built = match &self.stage {
            Stage::Accepted | Stage::Queued { .. } => Duration::ZERO,
            Stage::Running(run) => match run.phase {
                RunPhase::Uploading => before,
                RunPhase::Building => before + spent,
                RunPhase::Downloading => return Some(Duration::ZERO).filter(|_| expected.is_of_its_like()),
            },
        };
        expected.is_of_its_like().then(|| expected.duration.saturating_sub(built))
    }

    /// Whether an attempt on this builder has failed.
    pub(super) fn has_failed_on(&self, builder: BuilderId) -> bool {
        self.failed.iter().any(|attempt| attempt.builder == builder)
    }

    /// The attempt that runs under this lease, unless it has ended.
    pub(super) fn run_under(&mut self, lease: LeaseId) -> Option<&mut Run> {
        match &mut self.stage {
            Stage::Running(run) if run.lease == lease => Some(run),
            Stage::Accepted | Stage::Queued { .. } | Stage::Running(_) => None,
        }
    }
}

/// A phase of an attempt as people see it.
pub(super) fn shown(phase: RunPhase) -> BuildPhase {
    match phase {
        RunPhase::Uploading => BuildPhase::Uploading,
        RunPhase::Building => BuildPhase::Building,
        RunPhase::Downloading => BuildPhase::Downloading,
    }
}
