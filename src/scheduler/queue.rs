//! Accepted builds without a slot, in the order of their acceptance.
//!
//! Builds that fit the same pools wait in one lane, so that a decision looks at lanes, of which there are few, and
//! never at all builds. Which build goes where is [`super::placement`]'s question.

use std::collections::BTreeMap;

use super::pool::PoolIx;
use crate::model::BuildId;

/// The order of acceptance; a build keeps its ticket when it is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(pub(super) u64);

/// One lane of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LaneIx(usize);

/// Builds that fit the same pools.
#[derive(Clone, Debug)]
pub(super) struct Lane {
    /// In the order of the configuration. Invariant: never empty.
    pub(super) pools: Vec<PoolIx>,
    plain: BTreeMap<Ticket, BuildId>,
    picky: BTreeMap<Ticket, BuildId>,
}

impl Lane {
    pub(super) fn len(&self) -> usize {
        self.plain.len() + self.picky.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.picky.is_empty()
    }

    /// The build that comes first among those that any builder of the lane's pools will do for.
    pub(super) fn first_plain(&self) -> Option<(Ticket, BuildId)> {
        self.plain.first_key_value().map(|(ticket, build)| (*ticket, *build))
    }

    /// Builds that had failed on a builder that was still ready, in order. Few of them are held back at any time: a
    /// builder on which many fail is drained.
    pub(super) fn picky(&self) -> impl Iterator<Item = (Ticket, BuildId)> {
        self.picky.iter().map(|(ticket, build)| (*ticket, *build))
    }

    /// All builds; in order of acceptance only within each kind.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Ticket, BuildId)> {
        self.plain.iter().chain(&self.picky).map(|(ticket, build)| (*ticket, *build))
    }

    /// The first builds in order of acceptance.
    fn heads(&self, most: usize) -> Vec<(Ticket, BuildId)> {
        let plain = self.plain.iter().take(most);
        let mut heads: Vec<_> =
            plain.chain(self.picky.iter().take(most)).map(|(ticket, build)| (*ticket, *build)).collect();
        heads.sort_unstable();
        heads.truncate(most);
        heads
    }

    fn meets(&self, other: &Self) -> bool {
        self.pools.iter().any(|pool| other.pools.contains(pool))
    }
}

/// All lanes.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    lanes: Vec<Lane>,
    by_pools: BTreeMap<Vec<PoolIx>, LaneIx>,
    /// Lanes with the fewest pools first: they have the least choice.
    narrow_first: Vec<LaneIx>,
    len: usize,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The lane for builds that fit these pools. Invariant: `pools` is not empty and in order.
    pub(super) fn lane_for(&mut self, pools: Vec<PoolIx>) -> LaneIx {
        if let Some(lane) = self.by_pools.get(&pools) {
            return *lane;
        }
        let lane = LaneIx(self.lanes.len());
        self.lanes.push(Lane { pools: pools.clone(), plain: BTreeMap::new(), picky: BTreeMap::new() });
        self.by_pools.insert(pools, lane);
        self.narrow_first.push(lane);
        let lanes = &self.lanes;
        self.narrow_first.sort_by_key(|lane| (lanes[lane.0].pools.len(), *lane));
        lane
    }

    pub(super) fn lane(&self, lane: LaneIx) -> &Lane {
        &self.lanes[lane.0]
    }

    /// Lanes with builds in them; those with the fewest pools first.
    pub(super) fn lanes(&self) -> impl Iterator<Item = (LaneIx, &Lane)> {
        self.narrow_first.iter().map(|lane| (*lane, &self.lanes[lane.0])).filter(|(_, lane)| !lane.is_empty())
    }

    /// A build that any builder will do for.
    pub(super) fn push_plain(&mut self, lane: LaneIx, ticket: Ticket, build: BuildId) {
        if self.lanes[lane.0].plain.insert(ticket, build).is_none() {
            self.len += 1;
        }
    }

    /// A build that has failed on a builder that is still ready.
    pub(super) fn push_picky(&mut self, lane: LaneIx, ticket: Ticket, build: BuildId) {
        if self.lanes[lane.0].picky.insert(ticket, build).is_none() {
            self.len += 1;
        }
    }

    /// Takes a build out, if it is there: the lanes may have been made anew since it was queued.
    pub(super) fn remove(&mut self, lane: LaneIx, ticket: Ticket) {
        let Some(lane) = self.lanes.get_mut(lane.0) else { return };
        if lane.plain.remove(&ticket).or_else(|| lane.picky.remove(&ticket)).is_some() {
            self.len -= 1;
        }
    }

    /// Takes every build out, in order of acceptance.
    pub(super) fn drain(&mut self) -> Vec<BuildId> {
        let mut all: Vec<_> = self.lanes.iter().flat_map(Lane::iter).collect();
        all.sort_unstable();
        *self = Self::default();
        all.into_iter().map(|(_, build)| build).collect()
    }

    /// Whether any build waits that this pool could take.
    pub(super) fn waits_for(&self, pool: PoolIx) -> bool {
        self.lanes.iter().any(|lane| !lane.is_empty() && lane.pools.contains(&pool))
    }

    /// The first builds in order of acceptance that this pool could take.
    pub(super) fn heads(&self, pool: PoolIx, most: usize) -> Vec<BuildId> {
        let mut heads: Vec<_> = self
            .lanes
            .iter()
            .filter(|lane| lane.pools.contains(&pool))
            .flat_map(|lane| lane.heads(most))
            .collect();
        heads.sort_unstable();
        heads.truncate(most);
        heads.into_iter().map(|(_, build)| build).collect()
    }

    /// How many builds compete with those of this lane, the lane's own included.
    pub(super) fn competition(&self, lane: LaneIx) -> usize {
        let own = &self.lanes[lane.0];
        self.lanes.iter().filter(|other| other.meets(own)).map(Lane::len).sum()
    }

    /// For every build, how many that compete with it come before it.
    pub(super) fn positions(&self) -> BTreeMap<BuildId, u32> {
        let mut all: Vec<_> = self
            .lanes
            .iter()
            .enumerate()
            .flat_map(|(ix, lane)| lane.iter().map(move |(ticket, build)| (ticket, build, ix)))
            .collect();
        all.sort_unstable();
        let rivals: Vec<Vec<usize>> = self
            .lanes
            .iter()
            .map(|lane| (0..self.lanes.len()).filter(|other| lane.meets(&self.lanes[*other])).collect())
            .collect();
        let mut seen = vec![0_u32; self.lanes.len()];
        let mut positions = BTreeMap::new();
        for (_, build, ix) in all {
            positions.insert(build, rivals[ix].iter().map(|rival| seen[*rival]).sum());
            seen[ix] += 1;
        }
        positions
    }

    /// Builds by the pool that would have them first.
    pub(super) fn counts_by_first_pool(&self) -> BTreeMap<PoolIx, u32> {
        let mut counts = BTreeMap::new();
        for lane in &self.lanes {
            if let Some(first) = lane.pools.first() {
                *counts.entry(*first).or_insert(0) += u32::try_from(lane.len()).unwrap_or(u32::MAX);
            }
        }
        counts
    }

    /// Every build that waits, for tests.
    #[cfg(test)]
    pub(super) fn builds(&self) -> std::collections::BTreeSet<BuildId> {
        let all: Vec<_> = self.lanes.iter().flat_map(Lane::iter).collect();
        assert_eq!(all.len(), self.len, "the queue has miscounted");
        all.into_iter().map(|(_, build)| build).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_counts_only_builds_that_compete() {
        let mut queue = Queue::default();
        let both = queue.lane_for(vec![PoolIx(0), PoolIx(1)]);
        let first = queue.lane_for(vec![PoolIx(0)]);
        let other = queue.lane_for(vec![PoolIx(2)]);
        queue.push_plain(both, Ticket(1), BuildId(1));
        queue.push_plain(first, Ticket(2), BuildId(2));
        queue.push_plain(other, Ticket(3), BuildId(3));
        queue.push_picky(both, Ticket(4), BuildId(4));
        let positions = queue.positions();
        assert_eq!(positions.values().copied().collect::<Vec<_>>(), [0, 1, 0, 2]);
        assert_eq!(queue.competition(first), 3);
        assert_eq!(queue.heads(PoolIx(0), 2), [BuildId(1), BuildId(2)]);
        assert_eq!(queue.drain().len(), 4);
        assert!(queue.is_empty());
    }

    #[test]
    fn lanes_with_less_choice_come_first() {
        let mut queue = Queue::default();
        let wide = queue.lane_for(vec![PoolIx(0), PoolIx(1)]);
        let narrow = queue.lane_for(vec![PoolIx(1)]);
        queue.push_plain(wide, Ticket(1), BuildId(1));
        queue.push_plain(narrow, Ticket(2), BuildId(2));
        assert_eq!(queue.lanes().map(|(ix, _)| ix).collect::<Vec<_>>(), [narrow, wide]);
        assert_eq!(queue.lane_for(vec![PoolIx(1)]), narrow);
    }
}
