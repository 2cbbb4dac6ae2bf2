//! A run in a few numbers.

use std::time::Duration;

use super::timeline::{Lane, Timeline};
use crate::model::Usd;

/// What a run comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// When the last build had ended.
    pub finish: Duration,
    /// What all machines cost, until the last of them had ended.
    pub cost: Usd,
    /// What of that came after the last build had ended, while machines were kept for more.
    pub cost_after: Usd,
    /// Part of the processor time that was paid for in which something was built, from 0 to 1; `None` when no processor
    /// was.
    pub used: Option<f64>,
    /// Machines that were launched, or stood there.
    pub launches: usize,
    /// Most machines at the same moment.
    pub peak: usize,
    /// Time in which machines were ready and had nothing to do, added up.
    pub idle: Duration,
    /// How long a build waited for its slot, on average.
    pub mean_wait: Duration,
    /// The longest that one waited.
    pub longest_wait: Duration,
    /// Builds that are there.
    pub built: usize,
    /// Builds that are not.
    pub unbuilt: usize,
}

impl Report {
    /// The report on this run.
    pub fn of(timeline: &Timeline) -> Self {
        let closed = timeline.closed;
        let hired: Vec<&Lane> = timeline.lanes.iter().filter(|lane| lane.builder.is_some()).collect();
        let paid: f64 =
            hired.iter().map(|lane| lane.paid(closed).as_secs_f64() * f64::from(lane.vcpus)).sum();
        let busy: f64 = hired.iter().map(|lane| lane.busy).sum();
        let total = |until| hired.iter().map(|lane| lane.cost(until)).sum::<Usd>();
        let waits = u32::try_from(timeline.waits.len()).unwrap_or(u32::MAX);
        Self {
            finish: timeline.finished,
            cost: total(closed),
            cost_after: total(closed).saturating_sub(total(timeline.finished)),
            used: (paid > 0.0).then(|| (busy / paid).clamp(0.0, 1.0)),
            launches: hired.len(),
            peak: peak(&hired, closed),
            idle: hired.iter().map(|lane| lane.idle(closed)).sum(),
            mean_wait: timeline.waits.iter().sum::<Duration>().checked_div(waits).unwrap_or_default(),
            longest_wait: timeline.waits.iter().max().copied().unwrap_or_default(),
            built: timeline.built,
            unbuilt: timeline.unbuilt,
        }
    }
}

fn peak(lanes: &[&Lane], closed: Duration) -> usize {
    // At the same moment one that ends makes room for one that begins.
    let mut changes: Vec<(Duration, isize)> = Vec::new();
    for lane in lanes {
        changes.push((lane.launched, 1));
        changes.push((lane.end(closed).max(lane.launched), -1));
    }
    changes.sort_unstable();
    let mut now = 0_isize;
    let most = changes.into_iter().map(|(_, change)| {
        now += change;
        now
    });
    usize::try_from(most.max().unwrap_or(0)).unwrap_or(0)
}
