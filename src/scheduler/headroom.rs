//! What a builder must have left beside its slots to get one more build: memory, and room on its disk.
//!
//! Owns the thresholds for memory, on what the builder said of itself, and what follows for its slots; the disk's are
//! [`super::disk`]'s. A builder that falls short gets no further build while any runs there, and one at a time while none
//! does: work goes on whatever it says, and a shortage that it does not repeat is over. Both what is placed and what is
//! launched see it as slots that are not free ([`Builder::free`]).

use std::fmt;
use std::time::{Duration, Instant};

use super::builder::{Builder, Life};
use super::disk::Disk;
use crate::model::{Hundredths, Load};

/// What a builder said counts for so long: several times the interval at which it is asked while it has builds. One that
/// is too busy to answer keeps its shortage a while, but not for ever.
const SHORTAGE_HOLDS: Duration = Duration::from_secs(60);

/// Short of memory with less available than this, in percent: builds that run grow, and one more begins to.
const SHORT_BELOW: u32 = 10;
/// No longer short with this much.
const ENOUGH_FROM: u32 = 15;
/// Short of memory when something waited for it in more than this share of the last ten seconds.
const PRESSED_ABOVE: Hundredths = Hundredths(20_00);
/// No longer short below this.
const RELIEVED_BELOW: Hundredths = Hundredths(10_00);

/// What a ready builder is short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shortage {
    /// It gets no build beside another.
    Memory,
    /// It gets none until its garbage has been collected.
    Disk,
    /// That is being done.
    Collection,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "short of memory",
            Self::Disk => "low on disk",
            Self::Collection => "collecting garbage",
        })
    }
}

impl Builder {
    /// Slots that builds may have, of a ready builder: those not in use, unless it is short of something else. Placement
    /// and launches go by the same number, so that none waits for what the other holds for free.
    pub(super) fn free(&self) -> u32 {
        let free = self.slots.saturating_sub(self.used());
        match self.life {
            Life::Ready { disk, .. } if !disk.takes_builds() => 0,
            Life::Ready { short_until: Some(_), .. } if self.leases.is_empty() => free.min(1),
            Life::Ready { short_until: Some(_), .. } => 0,
            Life::Ready { short_until: None, .. } => free,
            Life::Launching { .. }
            | Life::Booting { .. }
            | Life::Draining { .. }
            | Life::Terminating { .. } => 0,
        }
    }

    /// Why it gets no build, or only one, although slots are not in use.
    pub(super) fn shortage(&self) -> Option<Shortage> {
        match self.life {
            Life::Ready { disk: Disk::Low { .. }, .. } => Some(Shortage::Disk),
            Life::Ready { disk: Disk::Collecting { .. }, .. } => Some(Shortage::Collection),
            Life::Ready { short_until: Some(_), .. } => Some(Shortage::Memory),
            Life::Ready { short_until: None, .. }
            | Life::Launching { .. }
            | Life::Booting { .. }
            | Life::Draining { .. }
            | Life::Terminating { .. } => None,
        }
    }

    /// It has said how busy it is.
    pub(super) fn take_load(&mut self, now: Instant, load: Load) {
        if let Life::Ready { short_until, .. } = &mut self.life {
            let is_short = is_short_of_memory(&load, short_until.is_some());
            *short_until = is_short.then(|| now + SHORTAGE_HOLDS);
        }
        self.hear_of_disk(&load);
        self.load = Some((load, now));
    }

    /// What was to hold until now does no longer.
    pub(super) fn wake(&mut self, now: Instant) {
        if let Life::Ready { suspect_until, short_until, .. } = &mut self.life {
            for until in [suspect_until, short_until] {
                *until = until.filter(|until| now < *until);
            }
        }
    }
}

/// Whether a builder that says this is short of memory; one that `was` is only when it has clearly more. What it does not
/// say is no reason.
fn is_short_of_memory(load: &Load, was: bool) -> bool {
    let (least, most) = if was { (ENOUGH_FROM, RELIEVED_BELOW) } else { (SHORT_BELOW, PRESSED_ABOVE) };
    load.memory.is_some_and(|memory| memory.is_below(least))
        || load.memory_pressure.is_some_and(|pressure| pressure > most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Space;

    #[test]
    fn memory_is_short_below_a_threshold_and_enough_clearly_above_it() {
        let available = |percent| Load { memory: Space::new(100, percent), ..Load::default() };
        let pressed = |percent: u32| Load { memory_pressure: Some(Hundredths(percent)), ..Load::default() };
        assert!(is_short_of_memory(&available(9), false) && !is_short_of_memory(&available(10), false));
        assert!(is_short_of_memory(&available(14), true) && !is_short_of_memory(&available(15), true));
        assert!(is_short_of_memory(&pressed(20_01), false) && !is_short_of_memory(&pressed(20_00), false));
        assert!(is_short_of_memory(&pressed(10_01), true) && !is_short_of_memory(&pressed(10_00), true));
        assert!(!is_short_of_memory(&Load::default(), true));
    }
}
