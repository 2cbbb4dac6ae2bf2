//! What is launched: what the queue and the minimums ask for, as far as pools may grow.
//!
//! Counts what is there and what waits, and carries the plan out; the arithmetic between is [`super::scaling`]'s, and what
//! keeps a pool from launching is the pool's, the caps' ([`super::on_money`]) and the prices'.

use std::cmp::Reverse;
use std::time::Duration;

use super::action::Action;
use super::build::Build;
use super::builder::Builder;
use super::fleet::{Fleet, Mode};
use super::placement::{self, Ahead, Refused};
use super::pool::PoolIx;
use super::queue::Lane;
use super::scaling::{self, Plan, Refuses, Stock, Supply, Want};
use super::trail::Why;
use crate::model::{BuilderId, Demand};

/// Builds of a lane that are counted at most of those that are worth a large machine.
const MOST_IN_NEED: usize = 256;

impl Fleet {
    /// Launches what the queue and the minimums ask for.
    pub(super) fn scale(&mut self) {
        let minimums_count = self.mode == Mode::Accepting;
        if self.queue.is_empty() && (!minimums_count || self.minimums_are_met()) {
            return;
        }
        let supply: Vec<Supply> =
            (0..self.pools.len()).map(|ix| self.supply(PoolIx(ix), minimums_count)).collect();
        if supply.iter().all(|pool| pool.room == 0) {
            return;
        }
        for (ix, plan) in scaling::plan(self.wants(), supply).into_iter().enumerate() {
            self.carry_out(PoolIx(ix), plan);
        }
        // What has waited for a machine that cannot be launched any more takes what there is.
        self.place();
    }

    /// What waits, those first that have the least choice of machines, then those that have the least choice of pools.
    fn wants(&self) -> impl Iterator<Item = Want<'_>> {
        let mut wants: Vec<(Want<'_>, usize)> = Vec::new();
        for (place, (_, lane)) in self.queue.lanes().enumerate() {
            let (pools, is_big, mean) = (&lane.fit.pools, lane.fit.is_big, self.mean_of(lane));
            let mut plain = lane.len();
            let mut add = |steady, refuses, waiting| {
                if waiting > 0 {
                    // What refuses small machines is long.
                    let mean = if refuses == Refuses::AllThatRun { Duration::MAX } else { mean };
                    wants.push((Want { pools, waiting, is_big, mean, steady, refuses }, place));
                }
            };
            let large = self.in_need_of_large_ones(lane);
            add(false, Refuses::AllThatRun, large);
            plain -= large;
            let kind = |build: &Build| {
                let awaits_a_full_one = placement::awaits_a_full_one(&lane.fit, &self.roster, build);
                (build.shuns_loose, if awaits_a_full_one { Refuses::Free } else { Refuses::Nothing })
            };
            let picky: Vec<_> = lane.picky().filter_map(|(_, id)| self.builds.get(&id)).map(kind).collect();
            for kind in [(true, Refuses::Free), (true, Refuses::Nothing), (false, Refuses::Free)] {
                let waiting = picky.iter().filter(|other| **other == kind).count();
                add(kind.0, kind.1, waiting);
                plain -= waiting;
            }
            add(false, Refuses::Nothing, plain);
        }
        wants.sort_by_key(|(want, place)| (!want.steady, Reverse(want.refuses), *place));
        wants.into_iter().map(|(want, _)| want)
    }

    /// The builder that the build whose turn it is here refuses as too small.
    fn refused(&self, lane: &Lane) -> Option<Refused> {
        placement::refused(lane, &self.roster, &self.builds, |ix| self.ahead(ix))
    }

    /// How many that wait here are worth a larger machine than those that are open.
    fn in_need_of_large_ones(&self, lane: &Lane) -> usize {
        let Some(Refused { from, .. }) = self.refused(lane) else { return 0 };
        let waiting = lane.plain().take(MOST_IN_NEED).filter_map(|id| self.builds.get(&id));
        waiting.filter(|build| build.place.lasts >= from).count()
    }

    /// Notes for each build that waits beside an open builder why it does.
    pub(super) fn note_what_is_too_small(&mut self) {
        let refused: Vec<_> = self.queue.lanes().filter_map(|(_, lane)| self.refused(lane)).collect();
        for Refused { build, builder, .. } in refused {
            let room = self.roster.get(builder).map_or(0, Builder::room_of_next_big);
            let Some(build) = self.builds.get_mut(&build) else { continue };
            // Once of each builder: what is free there changes all the time.
            let is_told = |why: &Why| matches!(why, Why::TooSmall { builder: told, .. } if *told == builder);
            if !build.trail.has(is_told) {
                build.trail.push(self.now, Why::TooSmall { builder, room });
            }
        }
    }

    fn carry_out(&mut self, ix: PoolIx, plan: Plan) {
        let pool = &self.pools[ix.0];
        // What is planned here is not launched elsewhere, but its size is decided when all that comes now has come.
        if plan.launches == 0 || pool.gathers_until().is_some() {
            return;
        }
        // Those before it in the same round may have changed what is left of a cap.
        let at_once = if self.launches_one_by_one(ix) { self.room(ix).min(1) } else { plan.launches };
        let kept = pool.spec.min_builders.saturating_sub(self.roster.census(ix).staffed());
        let (usual, planned) = (pool.expected_slots(), pool.planned_slots());
        let demands = plan.shares().zip(0..).map(|(share, n)| Demand {
            // One that is kept for what may come is as large as planned.
            builds: share.max(if n < kept { usual } else { 1 }).max(if n < plan.large { planned } else { 1 }),
            on_demand_only: n < plan.steady,
        });
        let demands: Vec<_> = demands.take(at_once as usize).collect();
        let builders: Vec<BuilderId> = demands.into_iter().map(|demand| self.launch(ix, demand)).collect();
        self.tell_of_launches(ix, &builders);
    }

    fn minimums_are_met(&self) -> bool {
        let mut pools = self.pools.iter().enumerate();
        pools.all(|(ix, pool)| self.roster.census(PoolIx(ix)).staffed() >= pool.spec.min_builders)
    }

    fn supply(&self, ix: PoolIx, minimums_count: bool) -> Supply {
        let pool = &self.pools[ix.0];
        let census = self.roster.census(ix);
        let per_builder = pool.planned_slots();
        let short = pool.spec.min_builders.saturating_sub(census.staffed());
        let within = pool.launch_takes().min(pool.horizon());
        let soon = self.ends.soon(ix, self.now, within, &self.roster);
        let mut starting = Stock::default();
        if pool.is_paid_for() {
            for builder in census.starting.iter().filter_map(|id| self.roster.get(*id)) {
                *starting.of(builder.is_loose) += u64::from(pool.expected_slots_for(builder.demand));
            }
        } else {
            // Where all machines are alike they need only be counted.
            starting.steady += census.starting.len() as u64 * u64::from(per_builder);
        }
        Supply {
            free: census.free,
            soon,
            starting,
            per_builder,
            room: self.room(ix),
            short_of_minimum: if minimums_count { short } else { 0 },
            horizon: pool.horizon(),
            comes_in_sizes: pool.comes_in_sizes(),
            is_loose: pool.is_loose(self.now),
        }
    }

    /// Builders that may be launched in this pool now.
    pub(super) fn room(&self, ix: PoolIx) -> u32 {
        let pool = &self.pools[ix.0];
        if pool.rests_until().is_some() || self.held(ix).is_some() || self.awaits_a_price(ix) {
            return 0;
        }
        pool.spec.max_builders.saturating_sub(self.roster.census(ix).alive())
    }

    /// Launches one builder. The caller has made sure that its pool has room.
    pub(super) fn launch(&mut self, ix: PoolIx, demand: Demand) -> BuilderId {
        let id = self.reserve_builder();
        let pool = &self.pools[ix.0];
        let is_loose = pool.is_loose(self.now) && !demand.on_demand_only;
        // While spot is off for a pool, every launch is for a machine that stays.
        let demand =
            Demand { on_demand_only: demand.on_demand_only || pool.avoids_loose(self.now), ..demand };
        let at_most = if pool.is_paid_for() { self.left_of_hour() } else { None };
        self.actions.push(Action::Launch { builder: id, pool: pool.spec.name.clone(), demand, at_most });
        let timeout = pool.spec.launch_timeout;
        let pool = &mut self.pools[ix.0];
        pool.spares.one_is_launched(self.now, pool.launch_takes());
        let mut builder = Builder::launching(id, ix, self.now, timeout, demand, is_loose);
        builder.at_most = at_most;
        self.roster.insert(builder);
        id
    }

    /// Slots that a builder will have, as far as is known.
    pub(super) fn slots_to_come(&self, builder: &Builder) -> usize {
        self.pools[builder.pool.0].expected_slots_for(builder.demand) as usize
    }

    /// What this pool may still bring.
    pub(super) fn ahead(&self, ix: PoolIx) -> Ahead {
        let pool = &self.pools[ix.0];
        let may_grow = self.room(ix) > 0;
        let starting = || self.roster.census(ix).starting.iter().filter_map(|id| self.roster.get(*id));
        let largest = || {
            let known = starting().map(|builder| pool.expected_slots_for(builder.demand));
            known.chain(may_grow.then(|| pool.planned_slots())).max()
        };
        let largest = if pool.comes_in_sizes() { largest().unwrap_or(0) } else { 0 };
        Ahead { may_grow, largest, horizon: pool.horizon() }
    }
}
