//! What programs see: counters that grow while the broker runs, and with the status a page of them for Prometheus.
//!
//! `render` is pure; `http` serves what it makes. Counting costs an atomic addition, whether anybody looks or not.

mod http;
mod render;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

pub(crate) use self::http::listen;
use crate::model::PoolName;
use crate::scheduler::{Answer, BuilderFaultKind};

/// Upper bounds of the verdict's buckets, in microseconds: Nix's event loop stands still for it.
const BOUNDS: [u64; 9] = [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 100_000, 1_000_000];

/// Bytes of store paths on their way, in all.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    up: AtomicU64,
    down: AtomicU64,
    direct: AtomicU64,
    direct_done: AtomicU64,
    direct_failed: AtomicU64,
}

impl Traffic {
    /// So much is about to be sent to a builder.
    pub(crate) fn add_up(&self, bytes: u64) {
        self.up.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So much has come from a builder.
    pub(crate) fn add_down(&self, bytes: u64) {
        self.down.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A builder has sent so much to another.
    pub(crate) fn add_direct(&self, bytes: u64) {
        self.direct.fetch_add(bytes, Ordering::Relaxed);
        self.direct_done.fetch_add(1, Ordering::Relaxed);
    }

    /// A builder was to send to another, and only so much came: the rest goes from here.
    pub(crate) fn add_direct_in_part(&self, bytes: u64) {
        self.direct.fetch_add(bytes, Ordering::Relaxed);
        self.direct_failed.fetch_add(1, Ordering::Relaxed);
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) traffic: Arc<Traffic>,
    counts: Mutex<Counts>,
}

/// The counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    accepted: u64,
    declined: u64,
    postponed: u64,
    verdicts: Histogram,
    launches: BTreeMap<PoolName, u64>,
    faults: BTreeMap<BuilderFaultKind, u64>,
    up: u64,
    down: u64,
    direct: u64,
    direct_done: u64,
    direct_failed: u64,
}

/// Durations in buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Histogram {
    /// One for each of [`BOUNDS`], not added up; what is longer is in `count` alone.
    buckets: [u64; BOUNDS.len()],
    count: u64,
    micros: u64,
}

impl Histogram {
    fn add(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = BOUNDS.iter().position(|bound| micros <= *bound) {
            self.buckets[bucket] += 1;
        }
        self.count += 1;
        self.micros = self.micros.saturating_add(micros);
    }
}

impl Metrics {
    /// A hook was answered, after this long.
    pub(crate) fn answered(&self, answer: &Answer, after: Duration) {
        self.change(|counts| {
            match answer {
                Answer::Accept { .. } => counts.accepted += 1,
                Answer::Decline { .. } => counts.declined += 1,
                Answer::Postpone { .. } => counts.postponed += 1,
            }
            counts.verdicts.add(after);
        });
    }

    /// A launch begins.
    pub(crate) fn launched(&self, pool: &PoolName) {
        self.change(|counts| *counts.launches.entry(pool.clone()).or_default() += 1);
    }

    /// A builder came to nothing, or went away.
    pub(crate) fn lost(&self, fault: BuilderFaultKind) {
        self.change(|counts| *counts.faults.entry(fault).or_default() += 1);
    }

    fn change(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock());
    }

    fn counts(&self) -> Counts {
        let mut counts = self.counts.lock().clone();
        let Traffic { up, down, direct, direct_done, direct_failed } = &*self.traffic;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (counts.up, counts.down, counts.direct) = (read(up), read(down), read(direct));
        (counts.direct_done, counts.direct_failed) = (read(direct_done), read(direct_failed));
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_is_counted() {
        let metrics = Metrics::default();
        let accept = Answer::Accept { pool: PoolName::new("x86") };
        metrics.answered(&accept, Duration::from_micros(100));
        metrics.answered(&accept, Duration::from_micros(101));
        metrics.answered(&Answer::Decline { why: "no".to_owned() }, Duration::from_secs(5));
        metrics.traffic.add_up(7);
        metrics.traffic.add_down(8);
        metrics.traffic.add_direct(9);
        metrics.traffic.add_direct(10);
        metrics.traffic.add_direct_in_part(1);
        metrics.lost(BuilderFaultKind::BootFailed);
        let counts = metrics.counts();
        assert_eq!((counts.accepted, counts.declined, counts.postponed), (2, 1, 0));
        assert_eq!(counts.verdicts.buckets[..2], [1, 1]);
        assert_eq!((counts.verdicts.count, counts.verdicts.micros), (3, 5_000_201));
        assert_eq!((counts.up, counts.down, counts.faults[&BuilderFaultKind::BootFailed]), (7, 8, 1));
        assert_eq!((counts.direct, counts.direct_done, counts.direct_failed), (20, 2, 1));
    }
}
