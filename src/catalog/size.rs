//! How large a machine should be for what waits, and how well another size would do instead.

/// A lone build is often a parallel compile and seldom stays alone: smaller machines are slow to no one's gain, as an
/// hour of one core costs the same on every size.
const LEAST: u32 = 8;
/// A larger machine, idle at the end of its work, costs several dollars an hour. Who wants one lists it.
const MOST: u32 = 64;

/// Processors to look for when so many builds would run at once: three of four. Sizes double, and the next larger one for
/// what is a little more than half of it stands idle; the builds that find no slot at once begin when the first have ended.
pub fn processors_wanted(builds: u32) -> u32 {
    (builds - builds / 4).clamp(LEAST, MOST)
}

/// How far a size is from the wanted one: the lower the better. From what is wanted up to less than twice of it is as
/// good as it gets; then come half of it, twice of it, a quarter, four times, and so on. Smaller goes before larger
/// because it is the cheaper mistake.
pub fn misfit(vcpus: u32, wanted: u32) -> u32 {
    let (vcpus, wanted) = (u64::from(vcpus.max(1)), u64::from(wanted.max(1)));
    if vcpus < wanted {
        let halvings = (1..).find(|halvings| vcpus << halvings >= wanted).unwrap_or(u32::MAX / 2);
        halvings * 2 - 1
    } else {
        (vcpus / wanted).ilog2() * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_decides_within_bounds() {
        for (builds, wanted) in
            [(0, 8), (1, 8), (10, 8), (11, 9), (21, 16), (40, 30), (200, 64), (u32::MAX, 64)]
        {
            assert_eq!(processors_wanted(builds), wanted, "{builds}");
        }
    }

    #[test]
    fn sizes_are_ordered_by_how_far_off_they_are_and_small_before_large() {
        let order = |wanted: u32| {
            let mut sizes = [1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192];
            sizes.sort_by_key(|&size| (misfit(size, wanted), size));
            sizes
        };
        assert_eq!(order(8), [8, 4, 16, 2, 32, 48, 1, 64, 96, 128, 192]);
        assert_eq!(order(40), [48, 64, 32, 96, 128, 16, 192, 8, 4, 2, 1]);
        assert_eq!(order(64), [64, 96, 32, 48, 128, 192, 16, 8, 4, 2, 1]);
        assert_eq!(misfit(u32::MAX, 1), 62);
        assert_eq!(misfit(0, u32::MAX), 63);
    }
}
