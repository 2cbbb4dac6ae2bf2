//! How long the builds of a lane will run, as far as a horizon: the sum that a launch is sized by.
//!
//! Durations are kept by powers of two, so that the sum is the same work whatever the horizon and however many they are.
//! What straddles the horizon is taken as long as it could be.

use std::time::Duration;

/// Less than a second, then powers of two up to more than an hour.
const CLASSES: usize = 14;

/// Durations, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    classes: [Class; CLASSES],
}

/// Those of one power of two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Class {
    count: u32,
    sum: Duration,
}

fn class_of(lasts: Duration) -> usize {
    let seconds = lasts.as_secs();
    let class = seconds.checked_ilog2().map_or(0, |power| power as usize + 1);
    class.min(CLASSES - 1)
}

impl Work {
    pub(super) fn add(&mut self, lasts: Duration) {
        let class = &mut self.classes[class_of(lasts)];
        class.count += 1;
        class.sum += lasts;
    }

    /// One that was added.
    pub(super) fn remove(&mut self, lasts: Duration) {
        let class = &mut self.classes[class_of(lasts)];
        class.count -= 1;
        class.sum -= lasts;
    }

    /// All of it, none counting for more than the horizon.
    pub(super) fn within(&self, horizon: Duration) -> Duration {
        let each = |class: &Class| class.sum.min(horizon.saturating_mul(class.count));
        self.classes.iter().map(each).fold(Duration::ZERO, Duration::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn nothing_counts_for_more_than_the_horizon() {
        let mut work = Work::default();
        for lasts in [0, 10, 20, 3600, 7200] {
            work.add(seconds(lasts));
        }
        assert_eq!(work.within(seconds(60)), seconds(10 + 20 + 60 + 60));
        assert_eq!(work.within(Duration::MAX), seconds(10_830));
        // 17 to 31 s are told apart no further: together they have 37 s.
        work.add(seconds(17));
        assert_eq!(work.within(seconds(18)), seconds(10 + 36 + 18 + 18));
        for lasts in [0, 10, 20, 3600, 7200, 17] {
            work.remove(seconds(lasts));
        }
        assert_eq!(work, Work::default());
    }

    #[test]
    fn whatever_the_duration_there_is_a_class() {
        let mut work = Work::default();
        work.add(Duration::MAX);
        work.add(Duration::from_millis(999));
        assert_eq!((class_of(Duration::MAX), class_of(seconds(1))), (CLASSES - 1, 1));
        assert_eq!(work.within(seconds(1)), Duration::from_millis(1_999));
    }
}
