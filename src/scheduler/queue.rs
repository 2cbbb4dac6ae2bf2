//! Accepted builds without a slot.
//!
//! Builds that fit the same pools and take as much room wait in one lane, so that a decision looks at lanes, of which there
//! are few, and never at all builds. Within a lane the client comes first that has the fewest builds running from there:
//! a run of Nix with one build does not wait for one with a thousand. Which of a client's builds comes first is
//! [`super::rank`]'s question, and which build goes where [`super::placement`]'s.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::pool::PoolIx;
use super::rank::Rank;
use super::work::Work;
use crate::model::{BuildId, ClientId};

/// One lane of the queue. Stays the same lane as long as the fleet exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LaneIx(usize);

/// What decides in which lane a build waits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fit {
    /// Pools that will do, in the order of the configuration. Invariant: never empty.
    pub(super) pools: Vec<PoolIx>,
    /// Whether it gets room on a machine (`big-parallel`).
    pub(super) is_big: bool,
}

/// A build's place in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) client: ClientId,
    pub(super) rank: Rank,
    /// Since when it waits.
    pub(super) since: Instant,
    /// How long it will run, at most in all likelihood; long when nothing is known of its like.
    pub(super) lasts: Duration,
}

/// A build that could be next: whose client has the fewest running, then whose rank is lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    /// Builds of its client that run from this lane.
    running: u32,
    rank: Rank,
}

/// Builds that fit the same.
#[derive(Clone, Debug)]
pub(super) struct Lane {
    pub(super) fit: Fit,
    plain: BTreeMap<ClientId, BTreeMap<Rank, BuildId>>,
    /// The first of each client in `plain`.
    turns: BTreeSet<(Turn, ClientId)>,
    picky: BTreeMap<Rank, (BuildId, ClientId)>,
    /// Builds that run from here, by client; none is left out.
    running: BTreeMap<ClientId, u32>,
    /// Since when its builds wait.
    waits: BTreeSet<(Instant, Rank)>,
    /// How long they will run.
    work: Work,
    len: usize,
}

impl Lane {
    fn new(fit: Fit) -> Self {
        Self {
            fit,
            plain: BTreeMap::new(),
            turns: BTreeSet::new(),
            picky: BTreeMap::new(),
            running: BTreeMap::new(),
            waits: BTreeSet::new(),
            work: Work::default(),
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How long its builds will run, all together, none counting for more than the horizon.
    pub(super) fn work_within(&self, horizon: Duration) -> Duration {
        self.work.within(horizon)
    }

    /// How many have waited since this moment or longer; no more than `most` are counted.
    pub(super) fn waiting_since(&self, moment: Instant, most: usize) -> usize {
        self.waits.range(..=(moment, Rank::LAST)).take(most).count()
    }

    /// Since when the first one waits that came after this moment.
    pub(super) fn first_since(&self, moment: Option<Instant>) -> Option<Instant> {
        let first = match moment {
            Some(moment) => self.waits.range((moment, Rank::LAST)..).next(),
            None => self.waits.first(),
        };
        first.map(|(since, _)| *since)
    }

    fn count_in(&mut self, place: Place) {
        self.len += 1;
        self.work.add(place.lasts);
        self.waits.insert((place.since, place.rank));
    }

    fn count_out(&mut self, place: Place) {
        self.len -= 1;
        self.work.remove(place.lasts);
        self.waits.remove(&(place.since, place.rank));
    }

    /// The build whose turn it is among those that any builder of the lane's pools will do for.
    pub(super) fn first_plain(&self) -> Option<(Turn, BuildId)> {
        let (turn, client) = self.turns.first()?;
        let (_, build) = self.plain.get(client)?.first_key_value()?;
        Some((*turn, *build))
    }

    /// Builds that would rather not run on some builder, by rank. Few of them are held back at any time: a builder on
    /// which many fail is drained.
    pub(super) fn picky(&self) -> impl Iterator<Item = (Turn, BuildId)> {
        self.picky
            .iter()
            .map(|(rank, (build, client))| (Turn { running: self.running_of(*client), rank: *rank }, *build))
    }

    /// Builds that any builder of the lane's pools will do for: client by client, by rank.
    pub(super) fn plain(&self) -> impl Iterator<Item = BuildId> {
        self.plain.values().flat_map(|builds| builds.values().copied())
    }

    /// All builds.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Rank, BuildId)> {
        let plain = self.plain.values().flatten().map(|(rank, build)| (*rank, *build));
        plain.chain(self.picky.iter().map(|(rank, (build, _))| (*rank, *build)))
    }

    /// The first builds by rank.
    fn heads(&self, most: usize) -> Vec<(Rank, BuildId)> {
        let plain = self.plain.values().flat_map(|builds| builds.iter().take(most));
        let plain = plain.map(|(rank, build)| (*rank, *build));
        let picky = self.picky.iter().take(most).map(|(rank, (build, _))| (*rank, *build));
        first(plain.chain(picky).collect(), most)
    }

    fn running_of(&self, client: ClientId) -> u32 {
        self.running.get(&client).copied().unwrap_or(0)
    }

    /// The turn of a client's first build.
    fn turn_of(&self, client: ClientId) -> Option<(Turn, ClientId)> {
        let (rank, _) = self.plain.get(&client)?.first_key_value()?;
        Some((Turn { running: self.running_of(client), rank: *rank }, client))
    }

    /// Changes what a client has here, and when it is its turn.
    fn change<T>(&mut self, client: ClientId, change: impl FnOnce(&mut Self) -> T) -> T {
        if let Some(turn) = self.turn_of(client) {
            self.turns.remove(&turn);
        }
        let answer = change(self);
        match self.turn_of(client) {
            Some(turn) => {
                self.turns.insert(turn);
            }
            None => {
                self.plain.remove(&client);
            }
        }
        answer
    }

    fn meets(&self, other: &Self) -> bool {
        self.fit.pools.iter().any(|pool| other.fit.pools.contains(pool))
    }
}

fn first(mut builds: Vec<(Rank, BuildId)>, most: usize) -> Vec<(Rank, BuildId)> {
    builds.sort_unstable();
    builds.truncate(most);
    builds
}

/// All lanes.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    lanes: Vec<Lane>,
    by_fit: BTreeMap<Fit, LaneIx>,
    /// Lanes with the fewest pools first: they have the least choice.
    narrow_first: Vec<LaneIx>,
    len: usize,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The lane for builds that fit so.
    pub(super) fn lane_for(&mut self, fit: Fit) -> LaneIx {
        if let Some(lane) = self.by_fit.get(&fit) {
            return *lane;
        }
        let lane = LaneIx(self.lanes.len());
        self.lanes.push(Lane::new(fit.clone()));
        self.by_fit.insert(fit, lane);
        self.narrow_first.push(lane);
        let lanes = &self.lanes;
        self.narrow_first.sort_by_key(|lane| (lanes[lane.0].fit.pools.len(), *lane));
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
    pub(super) fn push_plain(&mut self, lane: LaneIx, place: Place, build: BuildId) {
        let lane = &mut self.lanes[lane.0];
        let client = place.client;
        let is_new = lane
            .change(client, |lane| lane.plain.entry(client).or_default().insert(place.rank, build).is_none());
        if is_new {
            self.len += 1;
            lane.count_in(place);
        }
    }

    /// A build that has failed on a builder that is still ready.
    pub(super) fn push_picky(&mut self, lane: LaneIx, place: Place, build: BuildId) {
        let lane = &mut self.lanes[lane.0];
        let is_new = lane.picky.insert(place.rank, (build, place.client)).is_none();
        if is_new {
            self.len += 1;
            lane.count_in(place);
        }
    }

    /// Takes a build out, if it is there.
    pub(super) fn remove(&mut self, lane: LaneIx, place: Place) {
        let lane = &mut self.lanes[lane.0];
        let was_plain = lane.change(place.client, |lane| {
            lane.plain.get_mut(&place.client).is_some_and(|builds| builds.remove(&place.rank).is_some())
        });
        if was_plain || lane.picky.remove(&place.rank).is_some() {
            self.len -= 1;
            lane.count_out(place);
        }
    }

    /// A build of this client runs that waited here.
    pub(super) fn started(&mut self, lane: LaneIx, client: ClientId) {
        self.lanes[lane.0].change(client, |lane| *lane.running.entry(client).or_insert(0) += 1);
    }

    /// It runs no more.
    pub(super) fn stopped(&mut self, lane: LaneIx, client: ClientId) {
        self.lanes[lane.0].change(client, |lane| {
            if let Some(running) = lane.running.get_mut(&client) {
                *running = running.saturating_sub(1);
                if *running == 0 {
                    lane.running.remove(&client);
                }
            }
        });
    }

    /// Takes every build out, in order.
    pub(super) fn drain(&mut self) -> Vec<BuildId> {
        let all: Vec<_> = self.lanes.iter().flat_map(Lane::iter).collect();
        for lane in &mut self.lanes {
            lane.plain.clear();
            lane.turns.clear();
            lane.picky.clear();
            lane.waits.clear();
            lane.work = Work::default();
            lane.len = 0;
        }
        self.len = 0;
        first(all, usize::MAX).into_iter().map(|(_, build)| build).collect()
    }

    /// Whether any build waits that this pool could take.
    pub(super) fn waits_for(&self, pool: PoolIx) -> bool {
        self.lanes.iter().any(|lane| !lane.is_empty() && lane.fit.pools.contains(&pool))
    }

    /// The first builds by rank that this pool could take.
    pub(super) fn heads(&self, pool: PoolIx, most: usize) -> Vec<BuildId> {
        let lanes = self.lanes.iter().filter(|lane| lane.fit.pools.contains(&pool));
        let heads = first(lanes.flat_map(|lane| lane.heads(most)).collect(), most);
        heads.into_iter().map(|(_, build)| build).collect()
    }

    /// How many builds compete with those of this lane, the lane's own included.
    pub(super) fn competition(&self, lane: LaneIx) -> usize {
        let own = &self.lanes[lane.0];
        self.lanes.iter().filter(|other| other.meets(own)).map(Lane::len).sum()
    }

    /// For every build, how many that compete with it have a lower rank.
    pub(super) fn positions(&self) -> BTreeMap<BuildId, u32> {
        let mut all: Vec<_> = self
            .lanes
            .iter()
            .enumerate()
            .flat_map(|(ix, lane)| lane.iter().map(move |(rank, build)| (rank, build, ix)))
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
            if let Some(first) = lane.fit.pools.first() {
                *counts.entry(*first).or_insert(0) += u32::try_from(lane.len()).unwrap_or(u32::MAX);
            }
        }
        counts
    }

    /// Every build that waits, for tests.
    #[cfg(test)]
    pub(super) fn builds(&self) -> BTreeSet<BuildId> {
        for lane in &self.lanes {
            let turns: BTreeSet<_> = lane.plain.keys().filter_map(|client| lane.turn_of(*client)).collect();
            assert_eq!(turns, lane.turns, "a client's turn is stale");
            assert_eq!(lane.plain.len(), turns.len(), "a client without builds is kept");
            assert_eq!(lane.iter().count(), lane.len, "a lane has miscounted");
            assert_eq!(lane.waits.len(), lane.len, "a lane does not know since when its builds wait");
            assert!(lane.len > 0 || lane.work == Work::default(), "an empty lane has work");
        }
        let all: Vec<_> = self.lanes.iter().flat_map(Lane::iter).collect();
        assert_eq!(all.len(), self.len, "the queue has miscounted");
        all.into_iter().map(|(_, build)| build).collect()
    }

    /// How many builds run, as far as the queue knows, for tests.
    #[cfg(test)]
    pub(super) fn running(&self) -> usize {
        self.lanes.iter().flat_map(|lane| lane.running.values()).map(|running| *running as usize).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(pools: &[usize]) -> Fit {
        Fit { pools: pools.iter().map(|ix| PoolIx(*ix)).collect(), is_big: false }
    }

    fn place(client: u64, ticket: u64) -> Place {
        let (since, lasts) = (*BEGAN, Duration::from_secs(ticket));
        Place { client: ClientId(client), rank: Rank::plain(ticket), since, lasts }
    }

    static BEGAN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);

    #[test]
    fn a_position_counts_only_builds_that_compete() {
        let mut queue = Queue::default();
        let both = queue.lane_for(fit(&[0, 1]));
        let first = queue.lane_for(fit(&[0]));
        let other = queue.lane_for(fit(&[2]));
        queue.push_plain(both, place(0, 1), BuildId(1));
        queue.push_plain(first, place(0, 2), BuildId(2));
        queue.push_plain(other, place(0, 3), BuildId(3));
        queue.push_picky(both, place(0, 4), BuildId(4));
        let positions = queue.positions();
        assert_eq!(positions.values().copied().collect::<Vec<_>>(), [0, 1, 0, 2]);
        assert_eq!(queue.competition(first), 3);
        assert_eq!(queue.heads(PoolIx(0), 2), [BuildId(1), BuildId(2)]);
        assert_eq!(queue.builds().len(), 4);
        assert_eq!(queue.lane(both).work_within(Duration::from_secs(3)), Duration::from_secs(4));
        assert_eq!(queue.drain().len(), 4);
        assert!(queue.is_empty() && queue.builds().is_empty());
    }

    #[test]
    fn lanes_with_less_choice_come_first() {
        let mut queue = Queue::default();
        let wide = queue.lane_for(fit(&[0, 1]));
        let narrow = queue.lane_for(fit(&[1]));
        queue.push_plain(wide, place(0, 1), BuildId(1));
        queue.push_plain(narrow, place(0, 2), BuildId(2));
        assert_eq!(queue.lanes().map(|(ix, _)| ix).collect::<Vec<_>>(), [narrow, wide]);
        assert_eq!(queue.lane_for(fit(&[1])), narrow);
        let big = queue.lane_for(Fit { is_big: true, ..fit(&[1]) });
        assert!(big != narrow && big != wide);
    }

    #[test]
    fn the_client_with_the_fewest_running_builds_is_next() {
        let mut queue = Queue::default();
        let lane = queue.lane_for(fit(&[0]));
        for ticket in 1..=4 {
            queue.push_plain(lane, place(7, ticket), BuildId(ticket));
        }
        queue.push_plain(lane, place(8, 5), BuildId(5));
        let mut order = Vec::new();
        while let Some((turn, build)) = queue.lane(lane).first_plain() {
            let client = ClientId(if build == BuildId(5) { 8 } else { 7 });
            queue.remove(lane, Place { client, ..place(0, build.0) });
            assert_eq!(turn.rank, Rank::plain(build.0));
            queue.started(lane, client);
            order.push(build.0);
            queue.builds();
        }
        assert_eq!(order, [1, 5, 2, 3, 4]);
        // With all of them at an end, the order is that of the ranks again.
        for client in [7, 7, 7, 7, 8, 8] {
            queue.stopped(lane, ClientId(client));
        }
        queue.push_plain(lane, place(8, 7), BuildId(7));
        queue.push_plain(lane, place(7, 6), BuildId(6));
        assert_eq!(queue.lane(lane).first_plain().map(|(_, build)| build), Some(BuildId(6)));
        assert_eq!(queue.running(), 0);
    }
}
