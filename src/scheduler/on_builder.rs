//! What the events and deadlines of a builder do.

use super::action::{Action, Note};
use super::builder::{EndReason, Life, TERMINATE_AGAIN_AFTER, UNHEALTHY_STREAK};
use super::event::{BuilderFault, BuilderFaultKind};
use super::fleet::Fleet;
use super::trail::Why;
use crate::model::{BuilderFacts, BuilderId, Feature, Instance, Load, requirement::CA_DERIVATIONS};

/// A termination asked for this often without an answer is a trouble of the whole pool, if it has no other builder.
const STUCK_REPEATS: u32 = 5;
/// Characters of what a builder is said to be doing.
const LONGEST_PROGRESS: usize = 200;

impl Fleet {
    pub(super) fn on_launched(&mut self, id: BuilderId, instance: Instance) {
        let now = self.now;
        let is_starting = self.roster.get(id).is_some_and(super::builder::Builder::is_starting);
        let note = Note::Booting { builder: id, instance: instance.id.clone() };
        let known = self.roster.change(id, |builder| {
            let had_one = builder.instance.is_some();
            builder.boot(now, instance);
            had_one
        });
        if known == Some(false) {
            self.record_instance(id, false);
        }
        if is_starting && known == Some(false) {
            self.tell_audience(id, &note);
        }
    }

    /// Takes the words in only as far as a line can show them: some of them come from the machine itself.
    pub(super) fn on_progress(&mut self, id: BuilderId, text: &str) {
        let text: String = text.chars().filter(|c| !c.is_control()).take(LONGEST_PROGRESS).collect();
        let Some(builder) = self.roster.get(id).filter(|builder| builder.is_starting()) else { return };
        if text.is_empty() || builder.progress.as_ref() == Some(&text) {
            return;
        }
        let after = self.now.saturating_duration_since(builder.known_since);
        self.roster.change(id, |builder| builder.progress = Some(text.clone()));
        self.tell_audience(id, &Note::Progress { builder: id, text, after });
    }

    pub(super) fn on_ready(&mut self, id: BuilderId, facts: &BuilderFacts) {
        let Some(builder) = self.roster.get(id) else { return };
        if !builder.is_starting() {
            // It was heard of: whatever an attempt said of it is past.
            self.roster.change(id, super::builder::Builder::trust);
            return;
        }
        let (ix, known_since, demand) = (builder.pool, builder.known_since, builder.demand);
        let is_adopted = builder.is_adopted;
        let pool = &mut self.pools[ix.0];
        if let Some(reason) = pool.unfitness(facts) {
            self.on_lost(id, BuilderFault { kind: BuilderFaultKind::Unfit, reason });
            return;
        }
        let now = self.now;
        let slots = pool.slots_of(facts);
        let lifetime = pool.spec.max_lifetime;
        pool.builder_became_ready(slots, demand);
        if !is_adopted {
            pool.learn_launch(now.saturating_duration_since(known_since));
        }
        let idle = self.idle_at_least(ix);
        let has_ca_derivations = facts.offer.features.contains(&Feature::new(CA_DERIVATIONS));
        self.roster.change(id, |builder| {
            builder.has_ca_derivations = has_ca_derivations;
            builder.become_ready(now, slots, idle, lifetime);
        });
        let after = now.saturating_duration_since(known_since);
        self.tell_audience(id, &Note::BuilderReady { builder: id, after });
        // Builds go to any builder of a pool, so the pool has only what all of its builders have.
        let ready = &self.roster.census(ix).ready;
        let all_have =
            ready.iter().filter_map(|id| self.roster.get(*id)).all(|builder| builder.has_ca_derivations);
        if self.pools[ix.0].learn_ca_derivations(all_have) {
            self.requeue_all();
        }
    }

    pub(super) fn on_load(&mut self, id: BuilderId, load: Load) {
        let now = self.now;
        self.roster.change(id, |builder| builder.take_load(now, load));
        self.collect_if_low(id);
    }

    pub(super) fn on_lost(&mut self, id: BuilderId, fault: BuilderFault) {
        if self.note_fault(id, &fault) {
            self.end_builder(id, EndReason::Fault(fault));
        }
    }

    pub(super) fn on_gone(&mut self, id: BuilderId) {
        let fault = BuilderFault {
            kind: BuilderFaultKind::ConnectionLost,
            reason: "its instance is gone, though nobody ended it".to_owned(),
        };
        if self.note_fault(id, &fault) {
            self.tell_audience_of_failure(id, &fault.reason);
        }
        self.close_account(id);
        self.roster.remove(id);
    }

    /// Makes the pool remember a fault of a builder that was of use or on its way to it. Answers whether it was.
    fn note_fault(&mut self, id: BuilderId, fault: &BuilderFault) -> bool {
        let Some(builder) = self.roster.get(id) else { return false };
        let (ix, launched_at) = (builder.pool, builder.launched_at);
        let is_of_our_making = builder.is_starting() && !builder.is_adopted;
        let is_news_of_launching = is_of_our_making || fault.kind == BuilderFaultKind::Unfit;
        if builder.is_terminating() {
            return false;
        }
        if fault.kind == BuilderFaultKind::OverBudget {
            // No trouble of the pool: it launches again when there is more to spend.
            let at_most = builder.at_most.unwrap_or_default();
            self.pools[ix.0].found_too_dear(self.now, at_most);
            return true;
        }
        if is_news_of_launching {
            self.count_failure(ix, launched_at, fault);
        } else {
            self.pools[ix.0].builder_was_lost(self.now, &fault.reason);
        }
        true
    }

    fn count_failure(
        &mut self,
        ix: super::pool::PoolIx,
        launched_at: std::time::Instant,
        fault: &BuilderFault,
    ) {
        self.failure_counter += 1;
        self.pools[ix.0].builder_failed(self.now, launched_at, fault, self.failure_counter);
        self.hope_was_lost = true;
    }

    /// Asks the provider to end a builder, unless that has been asked.
    pub(super) fn end_builder(&mut self, id: BuilderId, why: EndReason) {
        let Some(builder) = self.roster.get(id).filter(|builder| !builder.is_terminating()) else { return };
        let (reason, ending) = (why.to_string(), why.ending());
        if builder.is_starting() {
            self.tell_audience_of_failure(id, &reason);
        }
        let now = self.now;
        self.roster.change(id, |builder| builder.terminate(now, why));
        self.actions.push(Action::Terminate { builder: id, ending, reason });
    }

    /// Lets a builder take no further build, and ends it when it has none.
    pub(super) fn drain(&mut self, id: BuilderId, why: EndReason, deadline: Option<std::time::Instant>) {
        let Some(builder) = self.roster.get(id) else { return };
        if builder.is_starting() {
            self.end_builder(id, why);
            return;
        }
        let now = self.now;
        self.roster.change(id, |builder| builder.drain(now, why, deadline));
        self.end_if_drained(id);
    }

    pub(super) fn end_if_drained(&mut self, id: BuilderId) {
        let Some(builder) = self.roster.get(id) else { return };
        if let Life::Draining { why, .. } = &builder.life
            && builder.leases.is_empty()
        {
            let why = why.clone();
            self.end_builder(id, why);
        }
    }

    /// Builds that fail one after the other say something of their builder: it would go through the whole queue.
    pub(super) fn drain_if_unhealthy(&mut self, id: BuilderId, streak: usize) {
        let Some(builder) = self.roster.get(id).filter(|builder| builder.is_ready()) else { return };
        if streak < UNHEALTHY_STREAK {
            return;
        }
        let why = EndReason::Unhealthy(streak);
        self.pools[builder.pool.0].builder_was_lost(self.now, &format!("{id}: {why}"));
        self.drain(id, why, None);
    }

    /// Whatever would be built next on a builder without disk space fails as well: what runs there may end well, and what
    /// waits is for another one.
    pub(super) fn drain_full(&mut self, id: BuilderId) {
        let Some(builder) = self.roster.get(id).filter(|builder| builder.is_ready()) else { return };
        self.pools[builder.pool.0].last_fault = Some((format!("{id}: {}", EndReason::Full), self.now));
        self.drain(id, EndReason::Full, None);
    }

    /// Does what is due for a builder. Afterwards its next deadline lies in the future.
    pub(super) fn look_at(&mut self, id: BuilderId) {
        let now = self.now;
        let Some(builder) = self.roster.get(id) else { return };
        let spec = &self.pools[builder.pool.0].spec;
        match &builder.life {
            Life::Launching { .. } => {
                let reason = format!("no instance after {} s", spec.launch_timeout.as_secs());
                self.on_lost(id, BuilderFault { kind: BuilderFaultKind::LaunchFailed, reason });
            }
            Life::Booting { .. } => {
                let since = if builder.is_adopted { "it was found" } else { "its launch" };
                let reason = format!("not ready {} s after {since}", spec.launch_timeout.as_secs());
                self.on_lost(id, BuilderFault { kind: BuilderFaultKind::BootFailed, reason });
            }
            Life::Ready { lifetime_deadline, idle, disk, .. } => {
                if *lifetime_deadline <= now {
                    let why = EndReason::TooOld(spec.max_lifetime);
                    self.drain(id, why, None);
                } else if idle.is_some_and(|idle| idle.look_at <= now) {
                    self.look_at_idle(id);
                } else if disk.deadline().is_some_and(|at| at <= now) {
                    self.on_collected(id);
                } else {
                    self.roster.change(id, |builder| builder.wake(now));
                }
            }
            Life::Draining { why, .. } => {
                let why = why.clone();
                self.end_builder(id, why);
            }
            Life::Terminating { why, .. } => {
                let (reason, ending) = (why.to_string(), why.ending());
                let ix = builder.pool;
                let repeats = self.roster.change(id, |builder| builder.terminate_again(now)).unwrap_or(0);
                self.actions.push(Action::Terminate { builder: id, ending, reason });
                if repeats.is_multiple_of(STUCK_REPEATS) && self.roster.census(ix).staffed() == 0 {
                    let waited = TERMINATE_AGAIN_AFTER * repeats;
                    let reason = format!("{id} is not gone after {} s", waited.as_secs());
                    let fault = BuilderFault { kind: BuilderFaultKind::LaunchFailed, reason };
                    self.count_failure(ix, now, &fault);
                }
            }
        }
    }

    /// Tells the builds that wait for this builder's start.
    fn tell_audience(&mut self, id: BuilderId, note: &Note) {
        let Some(builder) = self.roster.get(id) else { return };
        for build in &builder.audience {
            let waits = self.builds.get(build).is_some_and(|build| {
                build.herald == Some(id) && matches!(build.stage, super::build::Stage::Queued { .. })
            });
            if waits {
                self.actions.push(Action::Tell { build: *build, note: note.clone() });
            }
        }
    }

    fn tell_audience_of_failure(&mut self, id: BuilderId, reason: &str) {
        self.tell_audience(id, &Note::BuilderFailed { builder: id, reason: reason.to_owned() });
        let audience = self.roster.get(id).map(|builder| builder.audience.clone()).unwrap_or_default();
        for build in audience {
            if let Some(build) = self.builds.get_mut(&build)
                && build.herald == Some(id)
            {
                build.herald = None;
                let reason = reason.to_owned();
                build.trail.push(self.now, Why::BuilderFailed { builder: id, reason });
            }
        }
    }
}
