//! How fast a machine is, and how the builds on it share it.
//!
//! A build's work is counted in thread-seconds on a core of the reference speed (a Zen 3 of a `c6a`, its sibling idle).
//! The kernel gives every thread the same part of the machine. Two threads on the hyperthreads of one core do a quarter
//! more than one alone; where a vCPU is a core, twice as much. No build waits for memory or disk here: a machine with
//! enough slots for its processors has enough of both, or nobody could say how much it lacks.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::catalog::InstanceType;
use crate::catalog::types::SIBLING;
use crate::model::LeaseId;

/// What a machine can do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Power {
    /// What `nproc` says.
    pub vcpus: u32,
    /// Physical ones.
    pub cores: u32,
    /// Of one core.
    pub speed: f64,
}

impl Power {
    /// Of an instance type.
    pub fn of(known: &InstanceType) -> Self {
        Self { vcpus: known.vcpus, cores: known.cores, speed: f64::from(known.processor.speed) / 100.0 }
    }

    /// Of a machine of which only the number of processors is known.
    pub fn plain(processors: u32) -> Self {
        Self { vcpus: processors.max(1), cores: processors.max(1), speed: 1.0 }
    }

    /// Thread-seconds that it does in a second when this many threads want to run.
    fn output(self, threads: f64) -> f64 {
        let (cores, vcpus) = (f64::from(self.cores), f64::from(self.vcpus));
        let busy = threads.min(vcpus);
        self.speed * (busy.min(cores) + (busy - cores).max(0.0) * SIBLING as f64 / 100.0)
    }
}

/// One build that is being built.
#[derive(Clone, Copy, Debug)]
struct Job {
    left: f64,
    threads: f64,
}

/// The builds on one machine, as of one moment.
#[derive(Clone, Debug)]
pub(super) struct Load {
    power: Power,
    jobs: BTreeMap<LeaseId, Job>,
    as_of: Duration,
    /// Changes whenever a computed end is no longer right.
    pub(super) version: u64,
    /// Processor-seconds that were busy.
    pub(super) busy: f64,
}

impl Load {
    pub(super) fn new(power: Power) -> Self {
        Self { power, jobs: BTreeMap::new(), as_of: Duration::ZERO, version: 0, busy: 0.0 }
    }

    /// Threads that want to run.
    fn threads(&self) -> f64 {
        self.jobs.values().map(|job| job.threads).sum()
    }

    /// What each thread gets done in a second.
    fn per_thread(&self) -> f64 {
        let threads = self.threads();
        if threads > 0.0 { self.power.output(threads) / threads } else { 0.0 }
    }

    /// Lets the time until now pass.
    pub(super) fn advance(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.as_of).as_secs_f64();
        self.as_of = self.as_of.max(now);
        let rate = self.per_thread();
        self.busy += self.threads().min(f64::from(self.power.vcpus)) * passed;
        for job in self.jobs.values_mut() {
            job.left -= rate * job.threads * passed;
        }
    }

    /// A build of so much work begins.
    pub(super) fn begin(&mut self, now: Duration, lease: LeaseId, building: Duration, threads: u32) {
        self.advance(now);
        let wanted = f64::from(threads.max(1));
        let job = Job {
            left: building.as_secs_f64() * wanted,
            // A build starts as many processes as the machine has processors, not as it could use.
            threads: wanted.min(f64::from(self.power.vcpus)),
        };
        self.jobs.insert(lease, job);
        self.version += 1;
    }

    /// A build is stopped, wherever it is.
    pub(super) fn end(&mut self, now: Duration, lease: LeaseId) {
        self.advance(now);
        if self.jobs.remove(&lease).is_some() {
            self.version += 1;
        }
    }

    /// When the next build is done, if nothing changes, and which.
    pub(super) fn next_end(&self) -> Option<(Duration, LeaseId)> {
        let rate = self.per_thread();
        let until = |job: &Job| job.left.max(0.0) / (rate * job.threads);
        let (lease, job) = self.jobs.iter().min_by(|(_, a), (_, b)| until(a).total_cmp(&until(b)))?;
        // Rounded up, so that it is done by then.
        let micros = (until(job) * 1e6).ceil();
        Some((self.as_of + Duration::from_micros(micros as u64), *lease))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn ends(power: Power, builds: &[(u64, u32)]) -> Vec<u64> {
        let mut load = Load::new(power);
        for (ix, (seconds, threads)) in (0..).zip(builds) {
            load.begin(Duration::ZERO, LeaseId(ix), secs(*seconds), *threads);
        }
        let mut ends = vec![0; builds.len()];
        while let Some((at, lease)) = load.next_end() {
            load.end(at, lease);
            ends[usize::try_from(lease.0).unwrap()] = (at.as_secs_f64()).round() as u64;
        }
        ends
    }

    #[test]
    fn a_build_alone_takes_its_time_whatever_else_the_machine_has() {
        assert_eq!(ends(Power::plain(8), &[(100, 1)]), [100]);
        assert_eq!(ends(Power::plain(8), &[(100, 8)]), [100]);
        // Half as many processors as it has threads.
        assert_eq!(ends(Power::plain(4), &[(100, 8)]), [200]);
        assert_eq!(ends(Power { vcpus: 8, cores: 8, speed: 2.0 }, &[(100, 1)]), [50]);
    }

    #[test]
    fn threads_share_what_is_there() {
        assert_eq!(ends(Power::plain(2), &[(100, 1), (100, 1)]), [100, 100]);
        assert_eq!(ends(Power::plain(1), &[(100, 1), (100, 1)]), [200, 200]);
        // When the short one is done the long one has the machine to itself.
        assert_eq!(ends(Power::plain(1), &[(100, 1), (50, 1)]), [150, 100]);
        assert_eq!(ends(Power::plain(4), &[(100, 4), (100, 4)]), [200, 200]);
    }

    #[test]
    fn the_second_hyperthread_adds_a_quarter() {
        let power = Power { vcpus: 2, cores: 1, speed: 1.0 };
        assert_eq!(ends(power, &[(100, 1)]), [100]);
        assert_eq!(ends(power, &[(100, 1), (100, 1)]), [160, 160]);
        assert_eq!(ends(power, &[(100, 1), (100, 1), (100, 1)]), [240, 240, 240]);
    }

    #[test]
    fn what_was_busy_is_counted() {
        let mut load = Load::new(Power::plain(4));
        load.begin(secs(10), LeaseId(1), secs(100), 2);
        load.begin(secs(20), LeaseId(2), secs(100), 16);
        load.end(secs(30), LeaseId(2));
        assert!((load.busy - (10.0 * 2.0 + 10.0 * 4.0)).abs() < 1e-6, "{}", load.busy);
    }
}
