//! What the events of a build do.

use std::time::{Duration, Instant};

use super::action::{Action, Note};
use super::build::{Build, Run, Stage, StopCause};
use super::builder::Builder;
use super::event::{AttemptEnd, RunPhase};
use super::fleet::{Fleet, Mode};
use super::history::place_of;
use super::pool::PoolIx;
use super::queue::{Fit, Place};
use super::rank::{Rank, Ticket};
use super::retry::{self, Attempt, Next};
use super::trail::Why;
use crate::model::{
    BuildId, BuildRequest, BuilderId, Delivery, Failure, FailureKind, LeaseId, Outcome, Requirement,
};

/// A build counts for no more work than this, and for as much when nothing is known of its like.
const LONGEST: Duration = Duration::from_secs(3600);
/// Builders that made inputs of a build, at most, which are looked at when it is placed.
const MOST_NEAR: usize = 4;

impl Fleet {
    pub(super) fn on_accepted(&mut self, id: BuildId, request: BuildRequest) {
        if self.builds.contains_key(&id) || self.history.contains(id) {
            return;
        }
        self.last_ticket += 1;
        let rank = Rank::new(self.began, self.now, &request.prediction, Ticket(self.last_ticket));
        let expected = &request.prediction;
        let lasts = if expected.is_of_its_like() { expected.most.min(LONGEST) } else { LONGEST };
        let place = Place { client: request.client, rank, since: self.now, lasts };
        self.builds.insert(id, Build::accepted(id, request, place, self.now));
        self.awaiting_inputs += 1;
        // A verdict given just before a shutdown was asked for still binds us; one that arrives when all is being
        // stopped cannot be kept.
        if self.mode >= Mode::Forced {
            self.finish(id, Outcome::Failed(shutting_down()));
        }
    }

    pub(super) fn on_inputs_made_on(&mut self, id: BuildId, mut builders: Vec<BuilderId>) {
        builders.truncate(MOST_NEAR);
        if let Some(build) = self.builds.get_mut(&id) {
            build.near = builders;
        }
    }

    pub(super) fn on_inputs_known(&mut self, id: BuildId) {
        if !matches!(self.builds.get(&id), Some(Build { stage: Stage::Accepted, .. })) {
            return;
        }
        if self.enqueue(id, self.failure_counter) {
            self.newly_queued.push(id);
        }
    }

    pub(super) fn on_client_gone(&mut self, id: BuildId) {
        let Some(build) = self.builds.get_mut(&id) else { return };
        match build.stage {
            Stage::Accepted | Stage::Queued { .. } => self.finish(id, Outcome::Cancelled),
            Stage::Running(_) => {
                build.trail.push(self.now, Why::ClientGone);
                self.stop(id, StopCause::ClientGone);
            }
        }
    }

    pub(super) fn on_progressed(&mut self, id: BuildId, lease: LeaseId, phase: RunPhase) {
        let Some(build) = self.builds.get_mut(&id) else { return };
        let is_news = build.run_under(lease).is_some_and(|run| run.phase != phase);
        if is_news {
            build.leave(self.now);
        }
        if let Some(run) = build.run_under(lease) {
            run.phase = phase;
        }
    }

    pub(super) fn on_delivered(&mut self, id: BuildId, lease: LeaseId, delivery: Delivery) {
        let Some(build) = self.builds.get_mut(&id) else { return };
        if build.run_under(lease).is_some() {
            build.traffic.up = build.traffic.up.saturating_add(delivery.home.bytes);
            build.traffic.direct = build.traffic.direct.saturating_add(delivery.bytes_direct());
            build.trail.push(self.now, Why::Delivered(delivery));
        }
    }

    pub(super) fn on_fetched(&mut self, id: BuildId, lease: LeaseId, bytes: u64) {
        let Some(build) = self.builds.get_mut(&id) else { return };
        if build.run_under(lease).is_some() {
            build.traffic.down = build.traffic.down.saturating_add(bytes);
        }
    }

    pub(super) fn on_attempt_ended(&mut self, id: BuildId, lease: LeaseId, end: AttemptEnd) {
        let Some(run) = self.builds.get_mut(&id).and_then(|build| build.run_under(lease)).cloned() else {
            return;
        };
        self.release(id, &run, &end);
        if run.stop.is_none() {
            self.note_losses(id, run.builder, &end);
        }
        match run.stop {
            None => match end {
                AttemptEnd::Succeeded => self.finish(id, Outcome::Succeeded),
                AttemptEnd::Failed(failure) => self.retry_or_fail(id, run.builder, failure),
                AttemptEnd::Aborted => {
                    let reason = format!("its attempt on {} was stopped, though nobody asked", run.builder);
                    self.finish(id, Outcome::Failed(Failure::new(FailureKind::Broker, reason)));
                }
            },
            Some(StopCause::ClientGone) => self.finish(id, Outcome::Cancelled),
            Some(StopCause::Shutdown) => match final_end(end) {
                Some(outcome) => self.finish(id, outcome),
                None => self.finish(id, Outcome::Failed(shutting_down())),
            },
            Some(StopCause::Interrupted) => match final_end(end) {
                Some(outcome) => self.finish(id, outcome),
                None => self.move_on(id, run.builder),
            },
            Some(StopCause::BuilderStopped) => match final_end(end) {
                Some(outcome) => self.finish(id, outcome),
                // The operator's wish is no fault of the build: the attempt does not count.
                None => {
                    let reason = format!("{} was stopped by an operator", run.builder);
                    self.try_again(id, reason);
                }
            },
        }
    }

    /// Frees the slot, and learns what the end says about the builder.
    fn release(&mut self, id: BuildId, run: &Run, end: &AttemptEnd) {
        let now = self.now;
        let idle = self.idle_at_least(run.pool);
        let released = self.roster.change(run.builder, |builder| {
            let cost = builder.release(now, run.lease, idle);
            (cost, judge(builder, now, id, run, end))
        });
        let (cost, streak) = released.unwrap_or_default();
        if let Some(build) = self.builds.get_mut(&id) {
            build.cost += cost;
            self.queue.stopped(run.lane, build.place.client);
            if let Some(end) = run.end {
                self.ends.remove(run.pool, end);
            }
        }
        self.drain_if_unhealthy(run.builder, streak);
        if let AttemptEnd::Failed(Failure { kind: FailureKind::NoSpace, .. }) = end {
            self.drain_full(run.builder);
        }
        self.end_if_drained(run.builder);
        self.collect_if_low(run.builder);
    }

    /// What was learned about its derivation from the end of an attempt that nobody stopped.
    fn note_losses(&mut self, id: BuildId, builder: BuilderId, end: &AttemptEnd) {
        let Some(build) = self.builds.get(&id) else { return };
        let drv = &build.request.drv;
        match end {
            AttemptEnd::Succeeded => self.poison.forget(drv),
            AttemptEnd::Failed(failure) if failure.kind == FailureKind::BuilderLost => {
                self.poison.note(self.now, drv, builder);
            }
            AttemptEnd::Failed(_) | AttemptEnd::Aborted => {}
        }
    }

    fn retry_or_fail(&mut self, id: BuildId, builder: BuilderId, failure: Failure) {
        let Some(build) = self.builds.get_mut(&id) else { return };
        let reason = failure.reason;
        build.trail.push(self.now, Why::AttemptFailed { builder, reason: reason.clone() });
        build.failed.push(Attempt { builder, kind: failure.kind, reason: reason.clone() });
        let was_loose = self.roster.get(builder).is_some_and(|builder| builder.is_loose);
        build.shuns_loose |= was_loose && failure.kind == FailureKind::BuilderLost;
        match retry::next(&build.failed) {
            Next::Again => self.try_again(id, format!("on {builder}: {reason}")),
            Next::GiveUp(failure) => self.finish(id, Outcome::Failed(failure)),
        }
    }

    /// Queues a build anew that lost its builder to the provider. Its place makes it one of the next in line.
    fn move_on(&mut self, id: BuildId, builder: BuilderId) {
        if self.enqueue(id, self.failure_counter) {
            let reason = "the provider takes its machine back".to_owned();
            self.actions.push(Action::Tell { build: id, note: Note::Moved { builder, reason } });
        }
    }

    fn try_again(&mut self, id: BuildId, reason: String) {
        let Some(build) = self.builds.get(&id) else { return };
        let attempts = build.starts;
        if self.enqueue(id, self.failure_counter) {
            self.actions.push(Action::Tell { build: id, note: Note::Retrying { reason, attempts } });
        }
    }

    /// Asks the attempt to stop; its slot stays taken until it has.
    pub(super) fn stop(&mut self, id: BuildId, cause: StopCause) {
        let Some(Build { stage: Stage::Running(run), .. }) = self.builds.get_mut(&id) else { return };
        if run.stop.is_none() {
            self.actions.push(Action::Abort { build: id, lease: run.lease });
        }
        run.stop = run.stop.max(Some(cause));
    }

    /// Puts a build that is in no lane into the right one, or ends it when no pool fits. Answers whether it waits.
    pub(super) fn enqueue(&mut self, id: BuildId, waits_since: u64) -> bool {
        let Some(build) = self.builds.get(&id) else { return false };
        if let Some(why) = self.poison.verdict(self.now, &build.request.drv) {
            self.finish(id, Outcome::Failed(Failure::new(FailureKind::BuilderLost, why)));
            return false;
        }
        let is_big = build.request.requirement.is_big_parallel();
        let pools = self.fitting_pools(&build.request.requirement);
        if pools.is_empty() {
            let failure = Failure::new(FailureKind::Request, self.misfits(&build.request.requirement));
            self.finish(id, Outcome::Failed(failure));
            return false;
        }
        if pools.iter().any(|ix| self.pools[ix.0].unfit().is_some()) {
            self.hope_was_lost = true;
        }
        let lane = self.queue.lane_for(Fit { pools, is_big });
        let Some(build) = self.builds.get_mut(&id) else { return false };
        if build.stage == Stage::Accepted {
            self.awaiting_inputs -= 1;
        }
        build.enter(self.now, Stage::Queued { lane, waits_since });
        build.place.since = self.now;
        for ix in &self.queue.lane(lane).fit.pools {
            self.pools[ix.0].gather(self.now);
        }
        let is_ready = |attempt: &Attempt| self.roster.get(attempt.builder).is_some_and(Builder::is_ready);
        if build.shuns_loose || build.failed.iter().any(is_ready) {
            self.queue.push_picky(lane, build.place, id);
        } else {
            self.queue.push_plain(lane, build.place, id);
        }
        true
    }

    /// Finds the lanes anew for all that wait, because a pool's offer has changed.
    pub(super) fn requeue_all(&mut self) {
        for id in self.queue.drain() {
            let Some(Stage::Queued { waits_since, .. }) = self.builds.get(&id).map(|build| &build.stage)
            else {
                continue;
            };
            self.enqueue(id, *waits_since);
        }
    }

    fn fitting_pools(&self, requirement: &Requirement) -> Vec<PoolIx> {
        let pools = self.pools.iter().enumerate();
        pools
            .filter(|(_, pool)| pool.offer.satisfies(requirement).is_ok())
            .map(|(ix, _)| PoolIx(ix))
            .collect()
    }

    fn misfits(&self, requirement: &Requirement) -> String {
        let misfits: Vec<String> = self
            .pools
            .iter()
            .filter_map(|pool| {
                let misfit = pool.offer.satisfies(requirement).err()?;
                Some(format!("pool `{}` {misfit}", pool.spec.name))
            })
            .collect();
        format!("no pool can build for {requirement}: {}", misfits.join("; "))
    }

    /// Fails the builds that have waited long enough for pools that give no builder.
    pub(super) fn give_up_hopeless(&mut self) {
        if !std::mem::take(&mut self.hope_was_lost) {
            return;
        }
        let dead_end =
            |ix: &PoolIx| self.roster.census(*ix).staffed() == 0 && self.pools[ix.0].may_be_given_up();
        let mut hopeless = Vec::new();
        for (_, lane) in self.queue.lanes() {
            if !lane.fit.pools.iter().all(dead_end) {
                continue;
            }
            let mut complaint = None;
            for (_, id) in lane.iter() {
                let Some(Build { stage: Stage::Queued { waits_since, .. }, .. }) = self.builds.get(&id)
                else {
                    continue;
                };
                if lane.fit.pools.iter().all(|ix| self.pools[ix.0].is_given_up(*waits_since)) {
                    let complaint = complaint.get_or_insert_with(|| {
                        lane.fit
                            .pools
                            .iter()
                            .map(|ix| self.pools[ix.0].complaint())
                            .collect::<Vec<_>>()
                            .join("; ")
                    });
                    hopeless.push((id, complaint.clone()));
                }
            }
        }
        for (id, complaint) in hopeless {
            let reason = format!("no builder could be had: {complaint}");
            self.finish(id, Outcome::Failed(Failure::new(FailureKind::Provider, reason)));
        }
    }

    /// Says once to each of these that still waits where it waits.
    pub(super) fn tell_queued(&mut self, newly_queued: &[BuildId]) {
        for id in newly_queued {
            let Some(build) = self.builds.get_mut(id) else { continue };
            let Stage::Queued { lane, .. } = build.stage else { continue };
            let ahead = u32::try_from(self.queue.competition(lane).saturating_sub(1)).unwrap_or(u32::MAX);
            let name = |ix: &PoolIx| self.pools[ix.0].spec.name.clone();
            let pools: Vec<_> = self.queue.lane(lane).fit.pools.iter().map(name).collect();
            let Some(pool) = pools.first().cloned() else { continue };
            build.trail.push(self.now, Why::Waits { pools, ahead });
            self.actions.push(Action::Tell { build: *id, note: Note::Queued { pool, ahead } });
        }
    }

    /// Ends a build. The only place that does, so that it happens once.
    pub(super) fn finish(&mut self, id: BuildId, outcome: Outcome) {
        let Some(mut build) = self.builds.remove(&id) else { return };
        build.leave(self.now);
        match build.stage {
            Stage::Accepted => self.awaiting_inputs -= 1,
            Stage::Queued { lane, .. } => self.queue.remove(lane, build.place),
            Stage::Running(_) => {}
        }
        let place = place_of(&build, |ix| self.pools[ix.0].spec.name.clone());
        self.record_build(&build, place.as_ref(), &outcome);
        self.history.record(self.now, build, &outcome, place);
        self.actions.push(Action::Finish { build: id, outcome });
    }
}

/// What the end of an attempt says of its builder. Answers how many builds in a row have failed there.
fn judge(builder: &mut Builder, now: Instant, id: BuildId, run: &Run, end: &AttemptEnd) -> usize {
    match end {
        AttemptEnd::Succeeded => builder.record_good_attempt(),
        AttemptEnd::Aborted => {}
        AttemptEnd::Failed(failure) => match failure.kind {
            FailureKind::Derivation | FailureKind::TimedOut | FailureKind::LogLimitExceeded => {
                builder.record_good_attempt();
            }
            FailureKind::BuilderLost => return builder.suspect(now, id),
            FailureKind::Transient | FailureKind::Transfer if run.stop.is_none() => {
                return builder.record_bad_attempt(id);
            }
            FailureKind::Transient
            | FailureKind::NoSpace
            | FailureKind::Transfer
            | FailureKind::Provider
            | FailureKind::Request
            | FailureKind::Broker => {}
        },
    }
    0
}

/// The end of a stopped attempt, if it came to one of its own before it was stopped.
fn final_end(end: AttemptEnd) -> Option<Outcome> {
    match end {
        AttemptEnd::Succeeded => Some(Outcome::Succeeded),
        AttemptEnd::Failed(failure) if !failure.kind.is_retryable() => Some(Outcome::Failed(failure)),
        AttemptEnd::Failed(_) | AttemptEnd::Aborted => None,
    }
}

/// The end of a build that the shutdown overtakes.
pub(super) fn shutting_down() -> Failure {
    Failure::new(FailureKind::Broker, "the broker is shutting down")
}
