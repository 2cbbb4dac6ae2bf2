//! How long the last few builds of one kind took, and what the next will take: the median of their logarithms, because a
//! build that takes ten times as long once in a while (a loaded machine, a cold cache) says little of the next, and
//! because durations differ by factors. The latest few count, so that a package that has grown is known to have.

use std::time::Duration;

use crate::model::{Basis, Prediction};

/// How far apart builds of one kind are taken to be until they say it themselves, as a variance of logarithms: a factor of
/// two either way. Counts as much as one build.
const PRIOR_VARIANCE: f32 = 0.48;
/// From the median distance to the median to the standard deviation of what is normally distributed.
const DEVIATIONS: f32 = 1.4826;
/// Durations in seconds that are told apart.
const SHORTEST: f32 = 0.001;
const LONGEST: f32 = 30.0 * 86_400.0;

/// The last builds of one kind, no more than `MOST` of them.
#[derive(Clone, Debug)]
pub(super) struct Durations<const MOST: usize> {
    /// Natural logarithms of seconds; the oldest is replaced.
    logs: Vec<f32>,
    oldest: usize,
    seen: u32,
}

impl<const MOST: usize> Default for Durations<MOST> {
    fn default() -> Self {
        Self { logs: Vec::new(), oldest: 0, seen: 0 }
    }
}

/// What follows from durations, as logarithms of seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Estimate {
    median: f32,
    variance: f32,
    samples: u32,
}

impl<const MOST: usize> Durations<MOST> {
    /// One more build.
    pub(super) fn add(&mut self, took: Duration) {
        let log = took.as_secs_f32().clamp(SHORTEST, LONGEST).ln();
        if self.logs.len() < MOST {
            self.logs.push(log);
        } else {
            self.logs[self.oldest] = log;
            self.oldest = (self.oldest + 1) % MOST;
        }
        self.seen = self.seen.saturating_add(1);
    }

    /// What the next one will take; nothing before the first.
    pub(super) fn estimate(&self) -> Option<Estimate> {
        let mut logs = self.logs.clone();
        let median = median(&mut logs)?;
        for log in &mut logs {
            *log = (*log - median).abs();
        }
        let deviation = DEVIATIONS * self::median(&mut logs)?;
        let count = self.logs.len() as f32;
        let variance = (count * deviation * deviation + PRIOR_VARIANCE) / (count + 1.0);
        Some(Estimate { median, variance, samples: self.seen })
    }
}

impl Estimate {
    /// Less sure by this variance of logarithms.
    pub(super) fn widened(self, by: f32) -> Self {
        Self { variance: self.variance + by, ..self }
    }

    pub(super) fn prediction(self, basis: Basis) -> Prediction {
        let time = |log: f32| Duration::from_secs_f32(log.exp().clamp(SHORTEST, LONGEST));
        let deviation = self.variance.sqrt();
        Prediction {
            duration: time(self.median),
            least: time(self.median - deviation),
            most: time(self.median + deviation),
            samples: self.samples,
            basis,
            tail: Duration::ZERO,
        }
    }
}

fn median(values: &mut [f32]) -> Option<f32> {
    values.sort_unstable_by(f32::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f32::midpoint(*values.get(middle.checked_sub(1)?)?, upper))
}
