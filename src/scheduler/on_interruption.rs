//! What a provider says of a machine that works: it takes it back, and what runs there is moved before it is lost; it may
//! take it back; or something else that its operator is to know.

use std::time::Duration;

use super::build::StopCause;
use super::builder::{EndReason, Life, STOP_GRACE};
use super::fleet::Fleet;
use super::trail::Why;
use crate::model::BuilderId;

impl Fleet {
    /// Moves every build: nothing of a Nix build can be taken along, so the sooner it begins anew the better, and on a
    /// machine that stays. It is no failure of the build. A notice that is told again is no news.
    pub(super) fn on_interrupted(&mut self, id: BuilderId, within: Option<Duration>, why: &str) {
        let Some(builder) = self.roster.get(id) else { return };
        let is_known = matches!(builder.life, Life::Draining { why: EndReason::Interrupted(_), .. });
        if builder.is_terminating() || is_known {
            return;
        }
        let when = within.map(|within| format!(" in {} s", within.as_secs())).unwrap_or_default();
        let reason = format!("it is taken back{when}: {why}");
        let pool = &mut self.pools[builder.pool.0];
        if builder.is_loose {
            pool.was_interrupted(self.now);
        }
        pool.last_fault = Some((format!("{id}: {reason}"), self.now));
        for build in self.builds_on(id) {
            if let Some(build) = self.builds.get_mut(&build) {
                build.shuns_loose = true;
                build.trail.push(self.now, Why::Interrupted { builder: id, reason: reason.clone() });
            }
            self.stop(build, StopCause::Interrupted);
        }
        self.drain(id, EndReason::Interrupted(reason), Some(self.now + STOP_GRACE));
    }

    /// Lets it finish what it has: often enough nothing comes of it. One that is not ready yet is of no use any more.
    pub(super) fn on_endangered(&mut self, id: BuilderId, why: String) {
        self.drain(id, EndReason::Endangered(why), None);
    }

    /// Shown with its pool. Nothing follows for builds or for launches.
    pub(super) fn on_warned(&mut self, id: BuilderId, why: &str) {
        let Some(builder) = self.roster.get(id) else { return };
        self.pools[builder.pool.0].last_fault = Some((format!("{id}: {why}"), self.now));
    }
}
