//! What happened: one lane per machine, with the builds that ran there.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::{BuilderId, HourlyRate, Usd};

/// The least that EC2 bills.
const SHORTEST_BILL: Duration = Duration::from_secs(60);

/// A whole run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline {
    /// In the order of their launches; the client's own machine is the first, if it built anything.
    pub lanes: Vec<Lane>,
    /// When the last build had ended.
    pub finished: Duration,
    /// When the last machine had ended, or nothing was going to change any more.
    pub closed: Duration,
    /// From when Nix first asked about a build until it ran.
    pub waits: Vec<Duration>,
    /// Builds that are there.
    pub built: usize,
    /// Builds that are not, and neither is what needs them.
    pub unbuilt: usize,
    /// Why, and how many for that reason.
    pub failures: BTreeMap<String, usize>,
    /// Attempts that were lost with their machine.
    pub lost_attempts: usize,
}

/// One machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Lane {
    /// `None` for the client's own machine.
    pub builder: Option<BuilderId>,
    /// The pool, or what else it is.
    pub pool: String,
    /// What was bought (`c7a.4xlarge, spot`); empty where nobody sends a bill.
    pub label: String,
    /// Since when it was wanted.
    pub launched: Duration,
    /// Since when it is billed; `None` when it never ran.
    pub running: Option<Duration>,
    /// Since when it took builds.
    pub ready: Option<Duration>,
    /// Until when it is billed; `None` when it still runs.
    pub ended: Option<Duration>,
    /// Builds at once.
    pub slots: u32,
    /// Processors.
    pub vcpus: u32,
    /// What it costs.
    pub rate: HourlyRate,
    /// Processor-seconds that were busy.
    pub busy: f64,
    /// What ran there.
    pub bars: Vec<Bar>,
}

/// One attempt of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bar {
    /// The derivation's name.
    pub name: String,
    /// Which slot, from 0.
    pub slot: u32,
    /// When it began.
    pub from: Duration,
    /// When it ended; `None` while it runs.
    pub to: Option<Duration>,
    /// Whether its outputs are there.
    pub is_good: bool,
}

impl Lane {
    /// Until when it is billed, in a run that was closed at this moment.
    pub fn end(&self, closed: Duration) -> Duration {
        self.ended.unwrap_or(closed).min(closed.max(self.launched))
    }

    /// How long it was billed.
    pub fn paid(&self, closed: Duration) -> Duration {
        self.running.map_or(Duration::ZERO, |since| self.end(closed).saturating_sub(since))
    }

    /// What it cost.
    pub fn cost(&self, closed: Duration) -> Usd {
        let Some(_since) = self.running else { return Usd::ZERO };
        if self.rate == HourlyRate::default() {
            return Usd::ZERO;
        }
        self.rate.over(self.paid(closed).max(SHORTEST_BILL))
    }

    /// How long it was ready and had no build.
    pub fn idle(&self, closed: Duration) -> Duration {
        let Some(ready) = self.ready else { return Duration::ZERO };
        let end = self.end(closed);
        let mut spans: Vec<(Duration, Duration)> =
            self.bars.iter().map(|bar| (bar.from, bar.to.unwrap_or(end))).collect();
        spans.sort_unstable();
        let mut idle = Duration::ZERO;
        let mut covered = ready;
        for (from, to) in spans {
            idle += from.saturating_sub(covered);
            covered = covered.max(to);
        }
        idle + end.saturating_sub(covered)
    }
}
