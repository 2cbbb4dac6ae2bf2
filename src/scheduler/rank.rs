//! Which of two builds of one client comes first: the one for which predicted duration, what waits for it, and the time it
//! has waited itself add up to more.
//!
//! The longest first, because the end of a run is the end of its longest build, and a slot that is free at the end is of
//! no use. That a second of waiting counts as much as a second of building is what keeps the short ones from starving:
//! nothing is overtaken by what was accepted more than [`MOST_AHEAD`] later. Since all that wait grow older together, a
//! rank never changes.

use std::time::{Duration, Instant};

use crate::model::Prediction;

/// A build is ahead of its place in the order of acceptance by no more than this.
pub(super) const MOST_AHEAD: Duration = Duration::from_secs(30 * 60);

/// The order of acceptance; a build keeps its ticket when it is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(pub(super) u64);

/// The place of a build among those of its client; the lowest comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// When it was accepted less what it is ahead, in milliseconds since the fleet began.
    at: i64,
    ticket: Ticket,
}

impl Rank {
    /// No other comes after it.
    pub(super) const LAST: Self = Self { at: i64::MAX, ticket: Ticket(u64::MAX) };

    pub(super) fn new(
        fleet_began: Instant,
        accepted_at: Instant,
        expected: &Prediction,
        ticket: Ticket,
    ) -> Self {
        let since = accepted_at.saturating_duration_since(fleet_began);
        let ahead = expected.duration.saturating_add(expected.tail).min(MOST_AHEAD);
        Self { at: millis(since) - millis(ahead), ticket }
    }

    /// The rank of that ticket where nothing else counts, for tests.
    #[cfg(test)]
    pub(super) fn plain(ticket: u64) -> Self {
        Self { at: 0, ticket: Ticket(ticket) }
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_comes_first_but_never_before_what_has_waited_for_long() {
        let began = Instant::now();
        let rank = |after: u64, lasts: u64, tail: u64| {
            let expected = Prediction {
                tail: Duration::from_secs(tail),
                ..Prediction::exact(Duration::from_secs(lasts))
            };
            Rank::new(began, began + Duration::from_secs(after), &expected, Ticket(after))
        };
        assert!(rank(5, 60, 0) < rank(0, 10, 0), "the longer one overtakes");
        assert!(rank(0, 10, 0) < rank(55, 60, 0), "but not one that has waited for the difference");
        assert!(rank(5, 10, 100) < rank(0, 60, 0), "what others wait for is as good as long");
        let late = MOST_AHEAD.as_secs() + 1;
        assert!(rank(0, 0, 0) < rank(late, u64::MAX / 2_000, u64::MAX / 2_000), "nothing overtakes for ever");
        assert!(rank(1, 10, 0) < rank(2, 11, 0), "and the earlier one comes first where they are even");
    }
}
