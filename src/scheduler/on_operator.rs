//! What an operator asks for, and how the broker ends.

use super::build::{Stage, StopCause};
use super::builder::{EndReason, STOP_GRACE};
use super::event::Selection;
use super::fleet::{Fleet, Mode};
use super::on_build::shutting_down;
use super::pool::PoolIx;
use super::trail::Why;
use crate::model::{BuildId, BuilderId, Demand, Outcome, PoolName};

impl Fleet {
    pub(super) fn on_start_requested(&mut self, name: &PoolName) {
        let Some(ix) = self.pools.iter().position(|pool| pool.spec.name == *name).map(PoolIx) else { return };
        // An operator who asks while the pool rests has probably repaired something: the rest is no reason to refuse.
        let has_room = self.roster.census(ix).alive() < self.pools[ix.0].spec.max_builders;
        if self.accepting() && has_room && self.held(ix).is_none() {
            let builds = self.pools[ix.0].expected_slots();
            let id = self.launch(ix, Demand { builds, on_demand_only: false });
            self.roster.change(id, |builder| builder.is_ordered = true);
        }
    }

    pub(super) fn on_drain_requested(&mut self, selection: Selection) {
        for id in self.selected(selection) {
            self.drain(id, EndReason::Drained, None);
        }
    }

    pub(super) fn on_stop_requested(&mut self, selection: Selection) {
        for id in self.selected(selection) {
            let builds = self.builds_on(id);
            for build in builds {
                if let Some(build) = self.builds.get_mut(&build) {
                    build.trail.push(self.now, Why::MustMove { builder: id });
                }
                self.stop(build, StopCause::BuilderStopped);
            }
            self.drain(id, EndReason::Stopped, Some(self.now + STOP_GRACE));
        }
    }

    pub(super) fn on_shutdown_requested(&mut self) {
        self.mode = self.mode.max(Mode::Finishing);
    }

    pub(super) fn on_shutdown_forced(&mut self) {
        if self.mode >= Mode::Forced {
            return;
        }
        self.mode = Mode::Forced;
        let ids: Vec<BuildId> = self.builds.keys().copied().collect();
        for id in ids {
            let Some(build) = self.builds.get_mut(&id) else { continue };
            build.trail.push(self.now, Why::ShutdownForced);
            match build.stage {
                Stage::Accepted | Stage::Queued { .. } => self.finish(id, Outcome::Failed(shutting_down())),
                Stage::Running(_) => self.stop(id, StopCause::Shutdown),
            }
        }
        for id in self.selected(Selection::All) {
            self.drain(id, EndReason::Shutdown, Some(self.now + STOP_GRACE));
        }
    }

    /// Ends the builders that nothing waits for; their minimums and idle windows are of no use to anybody.
    pub(super) fn end_unneeded_for_shutdown(&mut self) {
        if self.accepting() || self.awaiting_inputs > 0 {
            return;
        }
        let unneeded: Vec<BuilderId> = self
            .roster
            .iter()
            .filter(|builder| builder.leases.is_empty() && (builder.is_ready() || builder.is_starting()))
            .filter(|builder| !self.queue.waits_for(builder.pool))
            .map(|builder| builder.id)
            .collect();
        for id in unneeded {
            self.end_builder(id, EndReason::Shutdown);
        }
    }

    fn selected(&self, selection: Selection) -> Vec<BuilderId> {
        match selection {
            Selection::One(id) => self.roster.get(id).map(|builder| builder.id).into_iter().collect(),
            Selection::All => self.roster.iter().map(|builder| builder.id).collect(),
        }
    }

    pub(super) fn builds_on(&self, id: BuilderId) -> Vec<BuildId> {
        self.roster.get(id).map(|builder| builder.leases.values().copied().collect()).unwrap_or_default()
    }
}
