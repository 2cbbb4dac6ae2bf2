//! What the transfers to a builder have shown of the way there, for those that come after them. No more than notes: each
//! transfer goes well without them, only not as fast.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Bytes per second of a link on which packing may help; a stream measures it for itself.
const SLOW: f64 = 30e6;
/// A transfer of less says nothing about the link.
const TELLING: u64 = 1 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(in crate::broker) struct Link {
    has_failed_striped: AtomicBool,
    packs: OnceLock<bool>,
    is_narrow: AtomicBool,
    pace: Mutex<Option<f64>>,
    round_trip: Mutex<Option<Duration>>,
}

impl Link {
    /// Whether large transfers may go over several connections: not where that has failed.
    pub(in crate::broker) fn can_stripe(&self) -> bool {
        !self.has_failed_striped.load(Ordering::Relaxed)
    }

    pub(in crate::broker) fn avoid_stripes(&self) {
        self.has_failed_striped.store(true, Ordering::Relaxed);
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
        *self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many bytes went over one channel in this time.
    pub(in crate::broker) fn note_pace(&self, size: u64, took: Duration) {
        if size >= TELLING {
            let took = took.saturating_sub(self.round_trip().unwrap_or_default() * 2);
            let pace = size as f64 / took.as_secs_f64();
            *self.pace.lock().unwrap_or_else(PoisonError::into_inner) = Some(pace);
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
        *self.round_trip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::broker) fn note_round_trip(&self, measured: Duration) {
        let mut known = self.round_trip.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some(known.map_or(measured, |known| known.min(measured)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
