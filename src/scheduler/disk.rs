//! The disk of a builder's store: when it runs low, its garbage is collected as soon as nothing runs there; when that
//! does not help, the builder is drained as full.
//!
//! ```text
//! Unknown ──▶ Ample ──runs low──▶ Low ──last build ends──▶ Collecting ──enough is free──▶ Ample
//!    └──is low from the beginning──▶┘                           ├── filled by what was built here ──▶ drained
//!                                                               └── was never better ──▶ Small
//! ```
//!
//! A disk that was low before anything was built there says nothing of the builder: another machine of the same kind,
//! or the same again, would not be better. It is collected once, and then gets builds as if nothing had been said; one that
//! finds no space is tried elsewhere.

use std::time::{Duration, Instant};

use super::action::Action;
use super::builder::{Builder, Life};
use super::fleet::Fleet;
use crate::model::{BuilderId, Load, Space};

/// Low with less free than this part of the disk, in percent, and less than [`LOW_BELOW_BYTES`]: a tenth of a large disk
/// is room for many builds, and a small one need not have as much.
const LOW_BELOW: u32 = 10;
const LOW_BELOW_BYTES: u64 = 5 << 30;
/// So many times what is low is collected for, so that the next build does not make it low again.
const ROOMY: u64 = 2;
/// A collection that has not ended by then has not helped. The broker stops waiting for it before.
const COLLECTION_LIMIT: Duration = Duration::from_secs(15 * 60);

/// What is known of the disk of a ready builder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disk {
    /// It has not said.
    Unknown,
    /// It has room.
    Ample,
    /// It runs low: no builds.
    Low {
        /// Whether it had room before.
        was_ample: bool,
        /// As it was said last: what is said next may leave it out.
        space: Space,
    },
    /// Its garbage is collected: no builds.
    Collecting {
        /// Whether it had room before.
        was_ample: bool,
        /// Given up then.
        until: Instant,
    },
    /// It is low and was never better.
    Small,
}

impl Disk {
    fn hear(self, space: Space) -> Self {
        let is_roomy = space.free() >= low_below(space).saturating_mul(ROOMY);
        match self {
            Self::Unknown | Self::Ample if is_low(space) => {
                Self::Low { was_ample: self == Self::Ample, space }
            }
            Self::Unknown | Self::Ample => Self::Ample,
            Self::Low { .. } | Self::Small if is_roomy => Self::Ample,
            Self::Low { was_ample, .. } => Self::Low { was_ample, space },
            Self::Small | Self::Collecting { .. } => self,
        }
    }

    /// Whether builds may be started.
    pub(super) fn takes_builds(self) -> bool {
        match self {
            Self::Unknown | Self::Ample | Self::Small => true,
            Self::Low { .. } | Self::Collecting { .. } => false,
        }
    }

    /// When it must be looked at.
    pub(super) fn deadline(self) -> Option<Instant> {
        match self {
            Self::Collecting { until, .. } => Some(until),
            Self::Unknown | Self::Ample | Self::Low { .. } | Self::Small => None,
        }
    }
}

fn low_below(space: Space) -> u64 {
    (space.total() / 100 * u64::from(LOW_BELOW)).min(LOW_BELOW_BYTES)
}

fn is_low(space: Space) -> bool {
    space.free() < low_below(space)
}

/// What a collection should free.
fn wanted(space: Space) -> u64 {
    low_below(space).saturating_mul(ROOMY).saturating_sub(space.free()).max(1)
}

impl Builder {
    pub(super) fn disk(&self) -> Option<Disk> {
        match &self.life {
            Life::Ready { disk, .. } => Some(*disk),
            Life::Launching { .. }
            | Life::Booting { .. }
            | Life::Draining { .. }
            | Life::Terminating { .. } => None,
        }
    }

    fn set_disk(&mut self, now: Disk) {
        if let Life::Ready { disk, .. } = &mut self.life {
            *disk = now;
        }
    }

    /// What the disk has to do with what was said last.
    pub(super) fn hear_of_disk(&mut self, load: &Load) {
        if let (Some(disk), Some(space)) = (self.disk(), load.disk) {
            self.set_disk(disk.hear(space));
        }
    }

    fn space(&self) -> Option<Space> {
        self.load.as_ref().and_then(|(load, _)| load.disk)
    }

    /// Its garbage is collected from now on. Answers how much of it.
    fn begin_collection(&mut self, now: Instant) -> Option<u64> {
        let Some(Disk::Low { was_ample, space }) = self.disk().filter(|_| self.leases.is_empty()) else {
            return None;
        };
        self.set_disk(Disk::Collecting { was_ample, until: now + COLLECTION_LIMIT });
        Some(wanted(space))
    }

    /// Answers whether it is of no use any more.
    fn end_collection(&mut self) -> bool {
        let Some(Disk::Collecting { was_ample, .. }) = self.disk() else { return false };
        let has_room = self.space().is_some_and(|space| !is_low(space));
        self.set_disk(if has_room { Disk::Ample } else { Disk::Small });
        was_ample && !has_room
    }
}

impl Fleet {
    /// Has the garbage of a builder collected that is low on disk, if nothing runs there.
    pub(super) fn collect_if_low(&mut self, id: BuilderId) {
        let now = self.now;
        let bytes = self.roster.change(id, |builder| builder.begin_collection(now)).flatten();
        if let Some(bytes) = bytes {
            self.actions.push(Action::CollectGarbage { builder: id, bytes });
        }
    }

    /// A collection has ended, or taken too long: what the builder said since decides.
    pub(super) fn on_collected(&mut self, id: BuilderId) {
        if self.roster.change(id, Builder::end_collection) == Some(true) {
            self.drain_full(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn space(total: u64, free: u64) -> Space {
        Space::new(total, free).unwrap()
    }

    #[test]
    fn a_tenth_of_a_small_disk_and_five_gib_of_a_large_one_are_low() {
        for (total, low) in [(20 * GIB, 2 * GIB), (50 * GIB, 5 * GIB), (4000 * GIB, 5 * GIB)] {
            assert!(is_low(space(total, low - GIB / 2)) && !is_low(space(total, low)), "{total}");
        }
        assert!(is_low(space(u64::MAX, 0)) && !is_low(space(1, 0)));
        assert_eq!(wanted(space(100 * GIB, 4 * GIB)), 6 * GIB);
    }

    #[test]
    fn what_was_never_better_is_told_from_what_was_filled() {
        let (low, some, enough) = (space(100, 5), space(100, 15), space(100, 20));
        assert_eq!(Disk::Unknown.hear(low), Disk::Low { was_ample: false, space: low });
        let filled = |space| Disk::Low { was_ample: true, space };
        assert_eq!(Disk::Unknown.hear(some).hear(low), filled(low));
        // It has not recovered before the next build would find it low again.
        for (disk, still) in [(filled(low), filled(some)), (Disk::Small, Disk::Small)] {
            assert_eq!((disk.hear(some), disk.hear(enough)), (still, Disk::Ample));
        }
    }
}
