//! How long a ready builder without work is kept.
//!
//! The last one with room of its pool is kept for `idle-timeout`: whoever asks next finds it there. All others are spare,
//! and go after `surplus-idle-timeout`, the dearest first. A spare one whose place is taken by a launch soon afterwards was
//! worth keeping: its pool keeps the next ones for twice as long, until that has not happened for a while.

use std::time::{Duration, Instant};

use super::builder::{Builder, EndReason};
use super::fleet::Fleet;
use super::pool::PoolIx;
use crate::model::{BuilderId, PoolSpec};

/// A launch within so many times of what it takes, after a spare builder has ended, should not have been needed.
const REGRETTED_FOR: u32 = 5;
/// `surplus-idle-timeout` is doubled so many times at most.
const MOST_DOUBLINGS: u32 = 8;

/// What became of the spare builders of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spares {
    /// When the last one ended, unless something was launched since.
    ended_at: Option<Instant>,
    /// How often the time that they are kept is doubled.
    doublings: u32,
}

impl Spares {
    /// How long they are kept.
    fn kept_for(self, spec: &PoolSpec) -> Duration {
        spec.surplus_idle_timeout.saturating_mul(1 << self.doublings).min(spec.idle_timeout)
    }

    fn one_ended(&mut self, now: Instant) {
        if self.ended_at.replace(now).is_some() {
            // Nobody has missed the one before.
            self.doublings = self.doublings.saturating_sub(1);
        }
    }

    /// A builder is launched, which takes so long.
    pub(super) fn one_is_launched(&mut self, now: Instant, takes: Duration) {
        let is_soon = |at: Instant| now.saturating_duration_since(at) <= takes.saturating_mul(REGRETTED_FOR);
        if self.ended_at.take().is_some_and(is_soon) {
            self.doublings = (self.doublings + 1).min(MOST_DOUBLINGS);
        }
    }
}

impl Fleet {
    /// How long after its last build a builder of this pool may end at the earliest.
    pub(super) fn idle_at_least(&self, ix: PoolIx) -> Duration {
        let pool = &self.pools[ix.0];
        pool.spares.kept_for(&pool.spec)
    }

    /// When this builder ends if everything stays as it is, and why; `None` while it has work or its pool needs it.
    pub(super) fn idle_end(&self, builder: &Builder) -> Option<(Instant, EndReason)> {
        let since = builder.idle_since()?;
        let pool = &self.pools[builder.pool.0];
        // One that makes room on its disk is idle, and yet waited for.
        let makes_room = builder.disk().is_some_and(|disk| disk.deadline().is_some());
        if makes_room && self.queue.waits_for(builder.pool) {
            return None;
        }
        if self.roster.census(builder.pool).staffed() <= pool.spec.min_builders {
            return None;
        }
        let (idle, spare) = (pool.spec.idle_timeout, pool.spares.kept_for(&pool.spec));
        if spare < idle && self.is_spare(builder) {
            Some((since + spare, EndReason::Spare(spare)))
        } else {
            Some((since + idle, EndReason::Idle(idle)))
        }
    }

    /// Whether what comes next finds room elsewhere in its pool.
    fn is_spare(&self, builder: &Builder) -> bool {
        // Builds whose inputs are on their way will want slots in a moment.
        if builder.is_ordered || self.awaiting_inputs > 0 {
            return false;
        }
        let open = self.roster.census(builder.pool).open.iter().filter_map(|(_, id)| self.roster.get(*id));
        // Of those that are all idle one stays: one that an operator has asked for, else the cheapest.
        let order = |builder: &Builder| (!builder.is_ordered, builder.rate(), builder.id);
        open.into_iter().any(|other| {
            other.id != builder.id && (other.idle_since().is_none() || order(other) < order(builder))
        })
    }

    /// A builder has been idle for a while: ends it, or says when to look again.
    pub(super) fn look_at_idle(&mut self, id: BuilderId) {
        let now = self.now;
        let Some(builder) = self.roster.get(id) else { return };
        let ix = builder.pool;
        match self.idle_end(builder) {
            Some((at, why)) if at <= now => {
                if matches!(why, EndReason::Spare(_)) {
                    self.pools[ix.0].spares.one_ended(now);
                }
                self.end_builder(id, why);
            }
            // Others may find work at any time, and make this one spare or needed.
            Some((at, _)) => {
                let look_after = at.saturating_duration_since(now).min(self.idle_at_least(ix));
                self.roster.change(id, |builder| builder.keep(now, look_after));
            }
            None => {
                let idle = self.pools[ix.0].spec.idle_timeout;
                self.roster.change(id, |builder| builder.keep(now, idle));
            }
        }
    }
}
