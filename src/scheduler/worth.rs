//! Whether a launch is worth it: for how many builds a slot counts is [`super::scaling`]'s arithmetic; here is how long they
//! are believed to take, which slots will be free before a launch could bring others, and until when that is believed.
//!
//! A prediction may be wrong, and then what waits for a slot waits for long. A slot that should be free by now counts for
//! nothing, and what has waited for the horizon and [`PATIENCE`] launches more is launched for as if nothing were known of
//! it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::build::Stage;
use super::builder::Builder;
use super::fleet::Fleet;
use super::pool::{Pool, PoolIx};
use super::queue::Lane;
use super::roster::Roster;
use super::scaling::Stock;
use super::trail::Why;
use crate::model::{BuildId, BuilderId, LeaseId};

/// So many times as long as a launch takes may a build wait beyond the horizon for slots that should have been free.
const PATIENCE: u32 = 2;

/// How much later than at that moment one looks whether something has happened.
const A_MOMENT: Duration = Duration::from_millis(10);
/// Slots that are counted at most of those that will be free soon.
const MOST_SOON: usize = 256;

/// Builds of a lane that are counted at most of those that have waited for too long.
const MOST_DOUBTED: usize = 256;

/// When running builds will probably end, by pool; those of whose like nothing is known are left out.
#[derive(Clone, Debug)]
pub(super) struct Ends(Vec<BTreeSet<End>>);

/// When one of them will.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct End {
    pub(super) at: Instant,
    pub(super) lease: LeaseId,
    pub(super) builder: BuilderId,
    /// Whether its slot may be taken away.
    pub(super) is_loose: bool,
}

impl Ends {
    pub(super) fn new(n_pools: usize) -> Self {
        Self(vec![BTreeSet::new(); n_pools])
    }

    pub(super) fn insert(&mut self, pool: PoolIx, end: End) {
        self.0[pool.0].insert(end);
    }

    pub(super) fn remove(&mut self, pool: PoolIx, end: End) {
        self.0[pool.0].remove(&end);
    }

    /// Slots that will be free in this time, on builders that take another build.
    pub(super) fn soon(&self, pool: PoolIx, now: Instant, within: Duration, roster: &Roster) -> Stock {
        let mut stock = Stock::default();
        let soon = self.after(pool, now).take_while(|end| end.at <= now + within).take(MOST_SOON);
        for end in soon.filter(|end| roster.get(end.builder).is_some_and(Builder::is_ready)) {
            *stock.of(end.is_loose) += 1;
        }
        stock
    }

    fn after(&self, pool: PoolIx, now: Instant) -> impl Iterator<Item = &End> {
        // Nothing that is due now: it ends with its own event, or has been expected in vain.
        let first = End { at: now, lease: LeaseId(u64::MAX), builder: BuilderId(u64::MAX), is_loose: true };
        self.0[pool.0].range(first..)
    }

    /// Whether nothing is left, for tests.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(BTreeSet::len).sum()
    }
}

impl Fleet {
    /// How long one of the builds that wait here is believed to take on average, none counting for more than the
    /// horizon.
    pub(super) fn mean_of(&self, lane: &Lane) -> Duration {
        let longest = self.horizon(lane);
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let doubted = self.doubted_since(lane).map_or(0, |since| lane.waiting_since(since, MOST_DOUBTED));
        let len = count(lane.len()).max(1);
        let believed = lane.work_within(longest) / len;
        believed + (longest.saturating_sub(believed) / len).saturating_mul(count(doubted).min(len))
    }

    /// Of what waits since then or longer no prediction is believed any more.
    fn doubted_since(&self, lane: &Lane) -> Option<Instant> {
        self.now.checked_sub(self.patience(lane))
    }

    fn patience(&self, lane: &Lane) -> Duration {
        self.horizon(lane).saturating_add(self.longest_launch(lane).saturating_mul(PATIENCE))
    }

    fn horizon(&self, lane: &Lane) -> Duration {
        self.longest(lane, Pool::horizon)
    }

    fn longest_launch(&self, lane: &Lane) -> Duration {
        self.longest(lane, Pool::launch_takes)
    }

    /// The longest that one of a lane's pools has of this.
    fn longest(&self, lane: &Lane, time: impl Fn(&Pool) -> Duration) -> Duration {
        lane.fit.pools.iter().map(|ix| time(&self.pools[ix.0])).max().unwrap_or_default()
    }

    /// Whether a slot counts for several of the builds that wait here.
    fn is_thrifty(&self, lane: &Lane) -> bool {
        self.mean_of(lane).saturating_mul(2) < self.horizon(lane)
    }

    /// When what waits has waited for too long, or a slot should be free that it waits for.
    pub(super) fn impatient_at(&self) -> Option<Instant> {
        let patience = self
            .queue
            .lanes()
            .filter_map(|(_, lane)| Some(lane.first_since(self.doubted_since(lane))? + self.patience(lane)));
        let waits = !self.queue.is_empty();
        let free = (0..self.pools.len()).map(PoolIx).filter(|_| waits);
        let free = free.filter_map(|ix| self.ends.after(ix, self.now).next().map(|end| end.at));
        // A moment later it is too late, and not just due.
        patience.chain(free).min().map(|at| at.max(self.now) + A_MOMENT)
    }

    /// Notes for each of these that nothing is launched for it alone.
    pub(super) fn note_thrift(&mut self, newly_queued: &[BuildId]) {
        for id in newly_queued {
            let Some(Stage::Queued { lane, .. }) = self.builds.get(id).map(|build| &build.stage) else {
                continue;
            };
            let lane = self.queue.lane(*lane);
            if self.awaits_a_start(*id) || !self.is_thrifty(lane) {
                continue;
            }
            let (mean, launch, horizon) = (self.mean_of(lane), self.longest_launch(lane), self.horizon(lane));
            if let Some(build) = self.builds.get_mut(id) {
                build.trail.push(self.now, Why::NotWorthALaunch { mean, launch, horizon });
            }
        }
    }
}
