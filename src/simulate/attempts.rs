//! The attempts of the world: a build on a machine, from its first byte to its end.

use std::time::Duration;

use super::running::{HERE, Step};
use super::world::{Due, World};
use crate::model::{BuildId, BuilderId, Failure, FailureKind, LeaseId};
use crate::scheduler::{AttemptEnd, Event, RunPhase};

impl World<'_> {
    pub(super) fn start(&mut self, ix: usize, builder: BuilderId, lease: LeaseId) {
        self.moved = self.now;
        if let Some(asked) = self.asked.remove(&ix) {
            self.sites.timeline.waits.push(self.now.saturating_sub(asked));
        }
        let name = self.scenario.graph.nodes()[ix].drv.name();
        self.sites.begin(self.now, lease, builder, ix, name);
    }

    pub(super) fn lose_attempts(&mut self, id: BuilderId) {
        for lease in self.sites.on(id) {
            let is_over = self.sites.attempts.get(&lease).is_none_or(|attempt| attempt.step == Step::Over);
            self.stop(lease);
            if !is_over {
                self.sites.timeline.lost_attempts += 1;
                let failure = Failure::new(FailureKind::BuilderLost, "the machine is gone");
                self.at(self.now, Due::Ends(lease, AttemptEnd::Failed(failure)));
            }
        }
    }

    /// Nothing more becomes of an attempt.
    pub(super) fn stop(&mut self, lease: LeaseId) {
        let Some(attempt) = self.sites.attempts.get_mut(&lease) else { return };
        attempt.step = Step::Over;
        let builder = attempt.builder;
        if let Some(site) = self.sites.all.get_mut(&builder) {
            site.load.end(self.now, lease);
        }
        self.foresee(builder);
    }

    pub(super) fn uploaded(&mut self, lease: LeaseId) {
        let Some(attempt) = self.sites.attempts.get_mut(&lease) else { return };
        if attempt.step != Step::Uploading {
            return;
        }
        attempt.step = Step::Building;
        let (node, builder) = (attempt.node, attempt.builder);
        let work = self.scenario.graph.nodes()[node].work;
        if let Some(site) = self.sites.all.get_mut(&builder) {
            site.load.begin(self.now, lease, work.building, work.threads);
        }
        self.foresee(builder);
        self.progressed(node, builder, lease, RunPhase::Building);
    }

    pub(super) fn progressed(&mut self, node: usize, builder: BuilderId, lease: LeaseId, phase: RunPhase) {
        if builder != HERE {
            self.tell(Event::Progressed { build: BuildId(node as u64 + 1), lease, phase });
        }
    }

    /// Expects the next build on this machine to be done.
    pub(super) fn foresee(&mut self, builder: BuilderId) {
        let Some(site) = self.sites.all.get(&builder) else { return };
        if let Some((at, _)) = site.load.next_end() {
            let version = site.load.version;
            self.at(at.max(self.now), Due::Built(builder, version));
        }
    }

    pub(super) fn built(&mut self, builder: BuilderId, version: u64) {
        let Some(site) = self.sites.all.get_mut(&builder).filter(|site| site.load.version == version) else {
            return;
        };
        let Some((_, lease)) = site.load.next_end() else { return };
        site.load.end(self.now, lease);
        self.foresee(builder);
        let Some(attempt) = self.sites.attempts.get_mut(&lease) else { return };
        attempt.step = Step::Downloading;
        let node = attempt.node;
        let downloading = self.scenario.graph.nodes()[node].work.downloading;
        let downloading = if builder == HERE { Duration::ZERO } else { downloading };
        self.after(downloading, Due::Ends(lease, AttemptEnd::Succeeded));
        self.progressed(node, builder, lease, RunPhase::Downloading);
    }

    pub(super) fn ends(&mut self, lease: LeaseId, end: AttemptEnd) {
        let is_good = end == AttemptEnd::Succeeded;
        let was_stopped = self.sites.attempts.get(&lease).is_none_or(|attempt| attempt.step == Step::Over);
        if is_good && was_stopped {
            return;
        }
        let Some(attempt) = self.sites.over(self.now, lease, is_good) else { return };
        self.moved = self.now;
        if is_good {
            self.made_on.insert(attempt.node, attempt.builder);
        } else {
            // From now on it waits for another slot.
            self.asked.insert(attempt.node, self.now);
        }
        if attempt.builder == HERE {
            self.client.built(attempt.node);
            self.client.job_is_free();
            self.let_ask();
        } else {
            self.tell(Event::AttemptEnded { build: BuildId(attempt.node as u64 + 1), lease, end });
        }
    }
}
