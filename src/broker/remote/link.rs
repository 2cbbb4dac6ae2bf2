//! What the transfers to a builder have shown of the way there, for those that come after them. No more than notes: each
//! transfer goes well without them, only not as fast.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Bytes per second of a link on which packing may help; a stream measures it for itself.
const SLOW: f64 = 30e6;
/// What failed once may have been a busy sshd; what goes on to fail is tried ever more seldom.
const FIRST_REST: Duration = Duration::from_secs(60);
const LONGEST_REST: Duration = Duration::from_secs(3600);
/// A transfer of less says nothing about the link.
const TELLING: u64 = 1 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(in crate::broker) struct Link {
    rest: Mutex<Option<Rest>>,
    packs: OnceLock<bool>,
    is_narrow: AtomicBool,
    pace: Mutex<Option<f64>>,
    round_trip: Mutex<Option<Duration>>,
}

/// For how long large transfers use one connection, because several have failed.
#[derive(Clone, Copy, Debug)]
struct Rest {
    until: Instant,
    length: Duration,
}

impl Link {
    /// Whether large transfers may go over several connections: not soon after that has failed.
    pub(in crate::broker) fn can_stripe(&self) -> bool {
        self.rest.lock().is_none_or(|rest| rest.until <= Instant::now())
    }

    /// A transfer over several connections has failed; says for how long there will be none.
    pub(in crate::broker) fn note_failed_stripes(&self) -> Duration {
        let mut rest = self.rest.lock();
        let length = rest.map_or(FIRST_REST, |rest| (rest.length * 2).min(LONGEST_REST));
        *rest = Some(Rest { until: Instant::now() + length, length });
        length
    }

    /// One has gone well.
    pub(in crate::broker) fn note_stripes(&self) {
        *self.rest.lock() = None;
    }

    /// Whether the builder can pack what it sends and unpack what it is sent, as far as is known.
    pub(in crate::broker) fn packs(&self) -> Option<bool> {
        self.packs.get().copied()
    }

    pub(in crate::broker) fn note_packs(&self, packs: bool) {
        // It is the same machine every time.
        let _known = self.packs.set(packs);
    }

    /// Whether the link was slow when something was last sent over it as it is.
    pub(in crate::broker) fn is_slow(&self) -> bool {
        self.pace().is_some_and(|pace| pace < SLOW)
    }

    /// How fast the link was then, in bytes per second.
    pub(in crate::broker) fn pace(&self) -> Option<f64> {
        *self.pace.lock()
    }

    /// So many bytes went over one channel in this time.
    pub(in crate::broker) fn note_pace(&self, size: u64, took: Duration) {
        if size >= TELLING {
            let took = took.saturating_sub(self.round_trip().unwrap_or_default() * 2);
            let pace = size as f64 / took.as_secs_f64();
            *self.pace.lock() = Some(pace);
        }
    }

    /// Whether one channel was too narrow for it, so that the next stream need not find out.
    pub(in crate::broker) fn is_narrow(&self) -> bool {
        self.is_narrow.load(Ordering::Relaxed)
    }

    pub(in crate::broker) fn note_narrow(&self) {
        self.is_narrow.store(true, Ordering::Relaxed);
    }

    /// The shortest that was measured: the route's own, whatever else was on it.
    pub(in crate::broker) fn round_trip(&self) -> Option<Duration> {
        *self.round_trip.lock()
    }

    pub(in crate::broker) fn note_round_trip(&self, measured: Duration) {
        let mut known = self.round_trip.lock();
        *known = Some(known.map_or(measured, |known| known.min(measured)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stripes_that_failed_are_tried_again_after_a_rest_that_grows() {
        let link = Link::default();
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert!(link.can_stripe());
            let rest = link.note_failed_stripes();
            assert_eq!(rest, minutes(expected));
            tokio::time::advance(rest - Duration::from_secs(1)).await;
            assert!(!link.can_stripe());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        link.note_stripes();
        assert_eq!(link.note_failed_stripes(), minutes(1));
    }

    #[test]
    fn the_pace_is_that_of_the_bytes_and_not_of_the_way() {
        let link = Link::default();
        for millis in [50, 40, 60] {
            link.note_round_trip(Duration::from_millis(millis));
        }
        assert_eq!(link.round_trip(), Some(Duration::from_millis(40)));
        link.note_pace(3 << 20, Duration::from_millis(150));
        assert!(!link.is_slow(), "45 MB/s and two round trips");
        link.note_pace(3 << 20, Duration::from_millis(250));
        assert!(link.is_slow());
        link.note_pace(1000, Duration::from_millis(81));
        assert!(link.is_slow(), "so little says nothing");
    }
}
