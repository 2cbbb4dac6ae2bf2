//! How many builders to launch: what waits, less what is free or on its way, pool by pool.
//!
//! Arithmetic only; a pool that rests or is full has no room here.

use super::pool::PoolIx;

/// What one pool has and could have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Supply {
    /// Slots that are free, or will be when the builders on their way are ready.
    pub(super) slots: u64,
    /// Slots a further builder would bring. Invariant: at least 1.
    pub(super) per_builder: u32,
    /// Builders that may be launched.
    pub(super) room: u32,
    /// Builders to launch whatever waits, to reach the pool's minimum.
    pub(super) short_of_minimum: u32,
}

/// Builders to launch per pool. `lanes` are how many builds wait for which pools, those with the least choice first.
pub(super) fn launches<'a>(
    lanes: impl Iterator<Item = (&'a [PoolIx], usize)>,
    mut supply: Vec<Supply>,
) -> Vec<u32> {
    let mut launches = vec![0; supply.len()];
    for (ix, pool) in supply.iter_mut().enumerate() {
        launch(pool, &mut launches[ix], pool.short_of_minimum);
    }
    for (pools, waiting) in lanes {
        let mut waiting = u64::try_from(waiting).unwrap_or(u64::MAX);
        // First what is there anyway, in any of the pools: a machine that runs is cheaper than one that does not.
        for pool in pools {
            waiting -= take(&mut supply[pool.0], waiting);
        }
        for pool in pools {
            if waiting == 0 {
                break;
            }
            let pool_supply = &mut supply[pool.0];
            let wanted = waiting.div_ceil(u64::from(pool_supply.per_builder));
            launch(pool_supply, &mut launches[pool.0], u32::try_from(wanted).unwrap_or(u32::MAX));
            waiting -= take(pool_supply, waiting);
        }
    }
    launches
}

fn launch(pool: &mut Supply, launches: &mut u32, wanted: u32) {
    let launched = wanted.min(pool.room);
    pool.room -= launched;
    pool.slots += u64::from(launched) * u64::from(pool.per_builder);
    *launches += launched;
}

fn take(pool: &mut Supply, wanted: u64) -> u64 {
    let taken = wanted.min(pool.slots);
    pool.slots -= taken;
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PoolIx = PoolIx(0);
    const B: PoolIx = PoolIx(1);

    fn supply(slots: u64, room: u32) -> Supply {
        Supply { slots, per_builder: 4, room, short_of_minimum: 0 }
    }

    fn decide(lanes: &[(&[PoolIx], usize)], supply: &[Supply]) -> Vec<u32> {
        launches(lanes.iter().copied(), supply.to_vec())
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
    fn a_huge_queue_does_not_overflow() {
        assert_eq!(decide(&[(&[A], usize::MAX)], &[supply(0, u32::MAX)]), [u32::MAX]);
    }
}
