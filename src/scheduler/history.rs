//! The builds that ended, for whoever asks why afterwards. Bounded: the oldest is forgotten first.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::build::{Build, Stage};
use super::trail::{Trail, Why};
use crate::model::{
    BuildId, BuildPhase, BuildStatus, BuilderId, DrvPath, EndedCounts, Outcome, PoolName, Usd,
};

/// Ended builds that are remembered.
const REMEMBERED: usize = 1_000;

/// The builds that ended.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    ended: BTreeMap<BuildId, Ended>,
    order: VecDeque<BuildId>,
    counts: EndedCounts,
}

#[derive(Clone, Debug)]
struct Ended {
    drv: DrvPath,
    phase: BuildPhase,
    accepted_at: Instant,
    ended_at: Instant,
    place: Option<(PoolName, BuilderId)>,
    attempts: u32,
    cost: Usd,
    trail: Trail,
}

impl History {
    /// How many have ended so far, the forgotten ones included.
    pub(super) fn counts(&self) -> EndedCounts {
        self.counts
    }

    /// The builds whose derivation's path has this text in it, the latest first.
    pub(super) fn matching(&self, subject: &str) -> impl Iterator<Item = BuildId> {
        let is_match = move |id: &&BuildId| {
            self.ended.get(id).is_some_and(|build| build.drv.to_string().contains(subject))
        };
        self.order.iter().rev().filter(is_match).copied()
    }

    /// Remembers a build that ended. `place` is where it ran last.
    pub(super) fn record(
        &mut self,
        now: Instant,
        build: Build,
        outcome: &Outcome,
        place: Option<(PoolName, BuilderId)>,
    ) {
        let (phase, line) = match outcome {
            Outcome::Succeeded => {
                self.counts.succeeded += 1;
                (BuildPhase::Succeeded, "succeeded".to_owned())
            }
            Outcome::Failed(failure) => {
                self.counts.failed += 1;
                (BuildPhase::Failed { reason: failure.reason.clone() }, format!("failed: {failure}"))
            }
            Outcome::Cancelled => {
                self.counts.cancelled += 1;
                (BuildPhase::Cancelled, "cancelled".to_owned())
            }
        };
        let mut trail = build.trail;
        trail.push(now, Why::Ended(line));
        if self.order.len() == REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ended.remove(&oldest);
        }
        self.order.push_back(build.id);
        let ended = Ended {
            drv: build.request.drv,
            phase,
            accepted_at: build.accepted_at,
            ended_at: now,
            place,
            attempts: build.starts,
            cost: build.cost,
            trail,
        };
        self.ended.insert(build.id, ended);
    }

    pub(super) fn contains(&self, build: BuildId) -> bool {
        self.ended.contains_key(&build)
    }

    /// One build as people see it.
    pub(super) fn show(&self, now: Instant, build: BuildId) -> Option<BuildStatus> {
        let ended = self.ended.get(&build)?;
        let (pool, builder) = ended.place.clone().unzip();
        Some(BuildStatus {
            id: build,
            drv: ended.drv.clone(),
            phase: ended.phase.clone(),
            in_phase: now.saturating_duration_since(ended.ended_at),
            age: now.saturating_duration_since(ended.accepted_at),
            pool,
            builder,
            attempts: ended.attempts,
            remaining: None,
            cost: ended.cost,
            why: ended.trail.lines(),
        })
    }

    /// The builds that ended last, the very last first.
    pub(super) fn latest(&self, most: usize) -> impl Iterator<Item = BuildId> {
        self.order.iter().rev().take(most).copied()
    }
}

/// Where a build runs, if it does.
pub(super) fn place_of(
    build: &Build,
    pool_name: impl Fn(super::pool::PoolIx) -> PoolName,
) -> Option<(PoolName, BuilderId)> {
    match &build.stage {
        Stage::Running(run) => Some((pool_name(run.pool), run.builder)),
        Stage::Accepted | Stage::Queued { .. } => None,
    }
}
