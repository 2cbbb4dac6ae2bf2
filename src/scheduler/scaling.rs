//! How many builders to launch, and for how much work each: what waits, less what is free or on its way.
//!
//! Arithmetic only; a pool that rests or is full has no room here.
//!
//! A slot counts for as much work as it does within its pool's horizon ([`super::pool::Pool::horizon`]). A build that takes
//! longer, or of whose like nothing is known, counts for a slot of its own.
//!
//! The queue is first spread over builders of the size that each pool is planned with, pool by pool in the order of the
//! configuration. What then finds no room any more makes the machines larger that are launched anyway, where a pool's
//! machines come in sizes: with `max-builders = 1` and 200 builds waiting, one machine for 200 builds.

use std::time::Duration;

use super::builder::room_of_big;
use super::pool::PoolIx;

/// Builds that a slot counts for at most: predictions may be wrong.
const MOST_IN_A_ROW: u64 = 32;

/// Slots, told apart by what may become of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stock {
    /// On machines that may be taken away (spot).
    pub(super) loose: u64,
    /// On all others.
    pub(super) steady: u64,
}

/// What one pool has and could have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Supply {
    /// Slots that are free.
    pub(super) free: Stock,
    /// Slots that will be before one could be launched.
    pub(super) soon: Stock,
    /// Slots that will be when the builders on their way are ready.
    pub(super) starting: Stock,
    /// Slots a further builder is planned to bring. Invariant: at least 1.
    pub(super) per_builder: u32,
    /// Builders that may be launched.
    pub(super) room: u32,
    /// Builders to launch whatever waits, to reach the pool's minimum.
    pub(super) short_of_minimum: u32,
    /// The time in which what waits is to be done by the slots that it is planned with.
    pub(super) horizon: Duration,
    /// Whether a launch may ask for a larger machine.
    pub(super) comes_in_sizes: bool,
    /// Whether its machines may be taken away, unless a launch asks for one that may not.
    pub(super) is_loose: bool,
}

/// Builds that wait for the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Want<'a> {
    /// Pools that fit.
    pub(super) pools: &'a [PoolIx],
    /// How many builds.
    pub(super) waiting: usize,
    /// Whether each of them uses all processors it gets ([`room_of_big`]).
    pub(super) is_big: bool,
    /// How long one of them will run on average, none counting for more than the longest horizon.
    pub(super) mean: Duration,
    /// Only slots that cannot be taken away will do: they have lost such a one.
    pub(super) steady: bool,
    /// Which slots will not do.
    pub(super) refuses: Refuses,
}

/// Slots that will not do for a build, whoever else may have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refuses {
    Nothing,
    /// Those that are free: it has failed there.
    Free,
    /// Those of all builders that are ready: it is worth a larger one, of the size that a pool is planned with.
    AllThatRun,
}

/// What to launch in one pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Builders.
    pub(super) launches: u32,
    /// Of them for builds that have lost a machine already.
    pub(super) steady: u32,
    /// Of them as large as is planned, whatever their share: a build wants one that has room for it.
    pub(super) large: u32,
    /// Slots that what waits for all of these builders together would take.
    pub(super) slots: u64,
}

impl Plan {
    /// The slots that are wanted of each of these builders, of which the first have more when it does not come out even.
    pub(super) fn shares(self) -> impl Iterator<Item = u32> {
        let launches = u64::from(self.launches);
        (0..launches).map(move |n| {
            let share = self.slots / launches + u64::from(n < self.slots % launches);
            u32::try_from(share).unwrap_or(u32::MAX)
        })
    }
}

/// One pool while the queue is spread.
struct Pool {
    supply: Supply,
    /// Slots of the builders launched here, not yet taken.
    fresh: Stock,
    plan: Plan,
}

/// What to launch in each pool. `wants` are in the order in which they are served: those with the least choice first.
pub(super) fn plan<'a>(wants: impl Iterator<Item = Want<'a>>, supply: Vec<Supply>) -> Vec<Plan> {
    let start = |supply| Pool { supply, fresh: Stock::default(), plan: Plan::default() };
    let mut pools: Vec<Pool> = supply.into_iter().map(start).collect();
    for pool in &mut pools {
        pool.launch(pool.supply.short_of_minimum, false);
    }
    for want in wants {
        let mut waiting = u64::try_from(want.waiting).unwrap_or(u64::MAX);
        // First what is there anyway, in any of the pools: a machine that runs is cheaper than one that does not.
        for ix in want.pools {
            waiting -= pools[ix.0].take(waiting, want);
        }
        for ix in want.pools {
            if waiting == 0 {
                break;
            }
            let pool = &mut pools[ix.0];
            let slots = pool.slots_for(waiting, want).saturating_mul(pool.each(want));
            let wanted = slots.div_ceil(u64::from(pool.supply.per_builder));
            pool.launch(u32::try_from(wanted).unwrap_or(u32::MAX), want.steady);
            waiting -= pool.take(waiting, want);
        }
        enlarge(&mut pools, want, waiting);
    }
    pools.into_iter().map(|pool| pool.plan).collect()
}

/// Shares what found no room out among the machines that are launched for builds like these.
fn enlarge(pools: &mut [Pool], want: Want<'_>, waiting: u64) {
    let launches = |pool: &Pool| {
        let launches =
            if want.steady && pool.supply.is_loose { pool.plan.steady } else { pool.plan.launches };
        if pool.supply.comes_in_sizes { u64::from(launches) } else { 0 }
    };
    let mut over: u64 = want.pools.iter().map(|ix| launches(&pools[ix.0])).sum();
    let mut waiting = waiting;
    for ix in want.pools {
        let pool = &mut pools[ix.0];
        let share = waiting.checked_div(over).unwrap_or(0).saturating_mul(launches(pool));
        // The last one gets what does not come out even.
        let share = if launches(pool) == over && over > 0 { waiting } else { share };
        over -= launches(pool);
        waiting -= share;
        let slots = pool.slots_for(share, want).saturating_mul(pool.each(want));
        pool.plan.slots = pool.plan.slots.saturating_add(slots);
    }
}

impl Pool {
    fn launch(&mut self, wanted: u32, steady: bool) {
        let launched = wanted.min(self.supply.room);
        self.supply.room -= launched;
        self.plan.launches += launched;
        let slots = u64::from(launched) * u64::from(self.supply.per_builder);
        if steady && self.supply.is_loose {
            self.plan.steady += launched;
        }
        *self.fresh.of(self.supply.is_loose && !steady) += slots;
    }

    /// Slots that each of these builds takes here.
    fn each(&self, want: Want<'_>) -> u64 {
        if want.is_big { u64::from(room_of_big(self.supply.per_builder)) } else { 1 }
    }

    /// How long one of these builds takes, and the horizon, in milliseconds; the former is no more than the latter.
    fn parts(&self, want: Want<'_>) -> (u64, u64) {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let whole = millis(self.supply.horizon).max(1);
        (millis(want.mean).clamp(whole.div_ceil(MOST_IN_A_ROW), whole), whole)
    }

    /// Slots for so many builds.
    fn slots_for(&self, builds: u64, want: Want<'_>) -> u64 {
        let (part, whole) = self.parts(want);
        u64::try_from((u128::from(builds) * u128::from(part)).div_ceil(u128::from(whole))).unwrap_or(u64::MAX)
    }

    /// Builds that so many slots count for.
    fn served_by(&self, slots: u64, want: Want<'_>) -> u64 {
        let (part, whole) = self.parts(want);
        u64::try_from(u128::from(slots) * u128::from(whole) / u128::from(part)).unwrap_or(u64::MAX)
    }

    /// Gives slots to so many builds, or to as many as there are slots for. Answers to how many.
    fn take(&mut self, wanted: u64, want: Want<'_>) -> u64 {
        let each = self.each(want);
        let needed = self.slots_for(wanted, want);
        let mut missing = needed;
        if want.refuses < Refuses::Free {
            missing -= self.supply.free.take(missing, each, want.steady);
        }
        if want.refuses < Refuses::AllThatRun {
            missing -= self.supply.soon.take(missing, each, want.steady);
        }
        missing -= self.supply.starting.take(missing, each, want.steady);
        let from_fresh = self.fresh.take(missing, each, want.steady);
        self.plan.slots += from_fresh * each;
        if want.refuses == Refuses::AllThatRun {
            let machines = (from_fresh * each).div_ceil(u64::from(self.supply.per_builder));
            self.plan.large = self.plan.large.saturating_add(u32::try_from(machines).unwrap_or(u32::MAX));
        }
        wanted.min(self.served_by(needed - missing + from_fresh, want))
    }
}

impl Stock {
    /// The slots of one kind.
    pub(super) fn of(&mut self, is_loose: bool) -> &mut u64 {
        if is_loose { &mut self.loose } else { &mut self.steady }
    }

    /// Takes so many times so many slots, or as often as there are; whoever does not care leaves the steady ones for those
    /// who do.
    fn take(&mut self, wanted: u64, each: u64, steady: bool) -> u64 {
        let loose = if steady { 0 } else { wanted.min(self.loose / each) };
        let firm = (wanted - loose).min(self.steady / each);
        self.loose -= loose * each;
        self.steady -= firm * each;
        loose + firm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const A: PoolIx = PoolIx(0);
    const B: PoolIx = PoolIx(1);

    const ONE: Want<'_> =
        Want { pools: &[A], waiting: 1, is_big: false, mean: HOUR, steady: false, refuses: Refuses::Nothing };

    fn supply(slots: u64, room: u32) -> Supply {
        Supply {
            free: Stock { loose: 0, steady: slots },
            soon: Stock::default(),
            starting: Stock::default(),
            per_builder: 4,
            room,
            short_of_minimum: 0,
            horizon: Duration::from_secs(60),
            comes_in_sizes: false,
            is_loose: false,
        }
    }

    fn sized(room: u32) -> Supply {
        Supply { comes_in_sizes: true, ..supply(0, room) }
    }

    fn plans(wants: &[(&[PoolIx], usize)], supply: &[Supply]) -> Vec<Plan> {
        let wants = wants.iter().map(|&(pools, waiting)| Want {
            pools,
            waiting,
            is_big: false,
            mean: HOUR,
            steady: false,
            refuses: Refuses::Nothing,
        });
        plan(wants, supply.to_vec())
    }

    fn decide(wants: &[(&[PoolIx], usize)], supply: &[Supply]) -> Vec<u32> {
        plans(wants, supply).iter().map(|plan| plan.launches).collect()
    }

    fn shares(wants: &[(&[PoolIx], usize)], supply: &[Supply]) -> Vec<Vec<u32>> {
        plans(wants, supply).into_iter().map(|plan| plan.shares().collect()).collect()
    }

    #[test]
    fn what_is_free_or_on_its_way_is_used_before_anything_is_launched() {
        assert_eq!(decide(&[(&[A], 4)], &[supply(4, 9)]), [0]);
        assert_eq!(decide(&[(&[A], 5)], &[supply(4, 9)]), [1]);
        assert_eq!(decide(&[(&[A], 13)], &[supply(4, 9)]), [3]);
        assert_eq!(decide(&[(&[A, B], 4)], &[supply(0, 9), supply(4, 9)]), [0, 0]);
    }

    #[test]
    fn the_second_pool_grows_when_the_first_has_no_room() {
        assert_eq!(decide(&[(&[A, B], 12)], &[supply(0, 1), supply(0, 9)]), [1, 2]);
        assert_eq!(decide(&[(&[A, B], 12)], &[supply(0, 0), supply(0, 1)]), [0, 1]);
    }

    #[test]
    fn builds_with_less_choice_get_the_slots_of_their_only_pool() {
        let lanes: &[(&[PoolIx], usize)] = &[(&[A], 4), (&[A, B], 4)];
        assert_eq!(decide(lanes, &[supply(4, 9), supply(4, 9)]), [0, 0]);
    }

    #[test]
    fn the_minimum_is_launched_without_work_and_serves_it() {
        let short = Supply { short_of_minimum: 2, ..supply(0, 9) };
        assert_eq!(decide(&[], &[short]), [2]);
        assert_eq!(decide(&[(&[A], 8)], &[short]), [2]);
        assert_eq!(decide(&[(&[A], 9)], &[short]), [3]);
    }

    #[test]
    fn each_launch_is_told_its_share_of_the_queue() {
        assert_eq!(shares(&[(&[A], 9)], &[supply(4, 9)]), [[3, 2]]);
        assert_eq!(shares(&[(&[A], 200)], &[supply(0, 1)]), [[4]]);
    }

    #[test]
    fn what_finds_no_room_makes_the_machines_larger_where_there_are_larger_ones() {
        assert_eq!(shares(&[(&[A], 200)], &[sized(1)]), [[200]]);
        assert_eq!(shares(&[(&[A], 200)], &[sized(3)]), [[67, 67, 66]]);
        assert_eq!(shares(&[(&[A], 10)], &[sized(9)]), [[4, 3, 3]]);
        // A second pool takes its part first, as far as it has room.
        assert_eq!(shares(&[(&[A, B], 30)], &[sized(1), supply(0, 2)]), [vec![22], vec![4, 4]]);
        assert_eq!(shares(&[(&[A, B], 31)], &[sized(1), sized(2)]), [vec![10], vec![11, 10]]);
        assert_eq!(shares(&[(&[A, B], 30)], &[sized(0), supply(0, 0)]), [Vec::<u32>::new(), vec![]]);
    }

    #[test]
    fn a_build_that_lost_a_machine_is_planned_for_on_one_that_stays() {
        let spot = Supply { is_loose: true, free: Stock { loose: 8, steady: 0 }, ..sized(3) };
        let want = |waiting, steady| Want { waiting, steady, ..ONE };
        let decided = plan([want(2, true), want(9, false)].into_iter(), vec![spot]);
        assert_eq!(decided, [Plan { launches: 1, steady: 1, slots: 3, ..Plan::default() }]);
        let steady = Supply { free: Stock { loose: 8, steady: 2 }, ..spot };
        let decided = plan([want(2, true), want(9, false)].into_iter(), vec![steady]);
        assert_eq!(decided, [Plan { launches: 1, steady: 0, slots: 1, ..Plan::default() }]);
    }

    #[test]
    fn a_build_that_uses_all_processors_gets_most_of_a_small_machine() {
        let big = |waiting| Want { waiting, is_big: true, ..ONE };
        let launches = |want, supply| plan([want].into_iter(), vec![supply])[0];
        // Three of four slots each: the first of them is free.
        assert_eq!(launches(big(3), supply(4, 9)), Plan { launches: 2, slots: 6, ..Plan::default() });
        assert_eq!(launches(big(1), sized(9)).shares().collect::<Vec<_>>(), [3]);
        assert_eq!(launches(big(10), sized(1)).shares().collect::<Vec<_>>(), [30]);
        let narrow = Supply { per_builder: 1, ..supply(0, 9) };
        assert_eq!(launches(big(3), narrow).launches, 3);
    }

    #[test]
    fn a_slot_does_what_ends_within_the_horizon() {
        let launches = |waiting, millis, supply| {
            let mean = Duration::from_millis(millis);
            plan([Want { waiting, mean, ..ONE }].into_iter(), vec![supply])[0]
        };
        // Four slots for a minute: four times three builds of twenty seconds.
        assert_eq!(launches(12, 20_000, supply(4, 9)).launches, 0);
        assert_eq!(launches(13, 20_000, supply(4, 9)).launches, 1);
        // What nothing runs for yet is launched for all the same, and no larger than it has to be.
        assert_eq!(launches(12, 20_000, supply(0, 9)), Plan { launches: 1, slots: 4, ..Plan::default() });
        assert_eq!(launches(1, 1, supply(0, 9)).launches, 1);
        assert_eq!(launches(200, 20_000, sized(1)).shares().collect::<Vec<_>>(), [67]);
        // However short, they are not all left to one slot.
        assert_eq!(launches(1_000, 1, supply(4, 9)).launches, 7);
        assert_eq!(launches(8, 61_000, supply(4, 9)).launches, 1);
    }

    #[test]
    fn work_is_summed_up_and_not_rounded_up_build_by_build() {
        let slots = |waiting, millis, supply| {
            let mean = Duration::from_millis(millis);
            plan([Want { waiting, mean, ..ONE }].into_iter(), vec![supply])[0].slots
        };
        // Two thirds of the horizon: 200 builds are work for 134 slots.
        assert_eq!(slots(200, 40_000, sized(1)), 134);
        assert_eq!(slots(200, 40_000, sized(9)), 134);
        assert_eq!(slots(200, 60_000, sized(1)), 200);
        assert_eq!(slots(200, 3_600_000, sized(1)), 200);
    }

    #[test]
    fn what_refuses_the_slots_that_are_free_is_launched_for() {
        let launches =
            |supply| plan([Want { refuses: Refuses::Free, ..ONE }].into_iter(), vec![supply])[0].launches;
        assert_eq!(launches(supply(4, 1)), 1);
        let coming = Supply { soon: Stock { loose: 0, steady: 1 }, ..supply(4, 1) };
        assert_eq!(launches(coming), 0);
    }

    #[test]
    fn what_is_worth_a_large_machine_is_launched_for_beside_all_that_runs() {
        let soon = Stock { loose: 0, steady: 4 };
        let large = |waiting, refuses| Want { waiting, is_big: true, refuses, ..ONE };
        let plan = |wants: &[Want<'static>], supply| plan(wants.iter().copied(), vec![supply])[0];
        let runs = Supply { soon, ..Supply { comes_in_sizes: true, ..supply(4, 2) } };
        assert_eq!(plan(&[large(2, Refuses::Nothing)], runs).launches, 0);
        let wanted = Plan { launches: 1, large: 1, slots: 3, ..Plan::default() };
        assert_eq!(plan(&[large(1, Refuses::AllThatRun)], runs), wanted);
        // One that starts will do, and so will one that is launched for another.
        assert_eq!(plan(&[large(1, Refuses::AllThatRun)], Supply { starting: soon, ..runs }).launches, 0);
        let both = [Want { refuses: Refuses::Free, ..ONE }, large(1, Refuses::AllThatRun)];
        let nothing_soon = Supply { soon: Stock::default(), ..runs };
        assert_eq!(plan(&both, nothing_soon), Plan { launches: 1, large: 1, slots: 4, ..Plan::default() });
    }

    #[test]
    fn a_huge_queue_does_not_overflow() {
        assert_eq!(decide(&[(&[A], usize::MAX)], &[supply(0, u32::MAX)]), [u32::MAX]);
        assert_eq!(shares(&[(&[A], usize::MAX), (&[A], usize::MAX)], &[sized(1)]), [[u32::MAX]]);
    }
}
