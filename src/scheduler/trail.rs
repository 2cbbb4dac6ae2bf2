//! Why a build is where it is: the decisions about it, in order, bounded, turned into text only when somebody asks.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::model::prediction::Rough;
use crate::model::{BuilderId, Delivery, Inherited, PoolName, Prediction};

/// The first decisions, which are always kept.
const KEPT_FIRST: usize = 6;
/// The latest decisions; what lies between is counted and dropped.
const KEPT_LAST: usize = 18;

/// One decision or fact about a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Accepted,
    /// How long it will take.
    Predicted(Prediction),
    /// It needs more than it names.
    Inherits(Inherited),
    /// No slot was free, or none has been looked for.
    Waits {
        pools: Vec<PoolName>,
        ahead: u32,
    },
    Held(String),
    /// No builder is launched for it alone.
    NotWorthALaunch {
        /// How long what waits like it takes, on average.
        mean: Duration,
        launch: Duration,
        /// In which a slot is to do several of them.
        horizon: Duration,
    },
    /// It waits for a machine that gives it more than this one, which is open.
    TooSmall {
        builder: BuilderId,
        /// Slots that it would get there now.
        room: u32,
    },
    Launching {
        builder: BuilderId,
        pool: PoolName,
    },
    BuilderFailed {
        builder: BuilderId,
        reason: String,
    },
    Started {
        builder: BuilderId,
        pool: PoolName,
        /// Builds that ran there already.
        beside: u32,
        /// Slots that it takes.
        room: u32,
        /// Whether it is there because its inputs were made there.
        is_near: bool,
    },
    /// Its inputs are on its builder.
    Delivered(Delivery),
    AttemptFailed {
        builder: BuilderId,
        reason: String,
    },
    Interrupted {
        builder: BuilderId,
        reason: String,
    },
    MustMove {
        builder: BuilderId,
    },
    ClientGone,
    ShutdownForced,
    Ended(String),
}

impl Why {
    fn text(&self) -> String {
        match self {
            Self::Accepted => "accepted".to_owned(),
            Self::Predicted(prediction) => format!("is expected to take {prediction}"),
            Self::Inherits(inherited) => inherited.to_string(),
            Self::Waits { pools, ahead } => {
                let pools = pools.iter().map(|pool| format!("`{pool}`")).collect::<Vec<_>>().join(", then ");
                format!("waits for a slot in {pools}, {ahead} ahead of it")
            }
            Self::NotWorthALaunch { mean, launch, horizon } => {
                let (mean, launch, horizon) = (Rough(*mean), Rough(*launch), Rough(*horizon));
                format!(
                    "no builder is launched for it alone: what waits like it takes {mean}, a launch {launch}, and a slot \
                     is to be busy for {horizon} (`launch-horizon`)"
                )
            }
            Self::TooSmall { builder, room } => format!(
                "waits for a machine with more room than {builder}, where it would get {room}: a build that uses all \
                 processors and takes long costs the same there, and is done sooner"
            ),
            Self::Held(reason) => format!("nothing is launched: {reason}"),
            Self::Launching { builder, pool } => format!("{builder} is launched in pool `{pool}`"),
            Self::BuilderFailed { builder, reason } => format!("{builder} did not become ready: {reason}"),
            Self::Started { builder, pool, beside, room, is_near } => {
                let company = match beside {
                    0 => "alone".to_owned(),
                    1 => "beside 1 other".to_owned(),
                    n => format!("beside {n} others"),
                };
                let room = if *room > 1 { format!(", with room for {room}") } else { String::new() };
                let near = if *is_near { ", which made some of its inputs" } else { "" };
                format!("started on {builder} of pool `{pool}`{near}, {company}{room}")
            }
            Self::Delivered(delivery) => format!("has its inputs: {delivery}"),
            Self::AttemptFailed { builder, reason } => format!("failed on {builder}: {reason}"),
            Self::Interrupted { builder, reason } => format!("moved away from {builder}: {reason}"),
            Self::MustMove { builder } => format!("{builder} is stopped by an operator: tried elsewhere"),
            Self::ClientGone => "its client went away".to_owned(),
            Self::ShutdownForced => "the broker is shutting down".to_owned(),
            Self::Ended(how) => how.clone(),
        }
    }
}

/// The decisions about one build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Trail {
    first: Vec<(Instant, Why)>,
    last: VecDeque<(Instant, Why)>,
    dropped: usize,
}

impl Trail {
    pub(super) fn push(&mut self, now: Instant, why: Why) {
        if self.first.len() < KEPT_FIRST {
            self.first.push((now, why));
            return;
        }
        if self.last.len() == KEPT_LAST {
            self.last.pop_front();
            self.dropped += 1;
        }
        self.last.push_back((now, why));
    }

    /// Whether such a decision is among those that are kept.
    pub(super) fn has(&self, such: impl Fn(&Why) -> bool) -> bool {
        self.first.iter().chain(&self.last).any(|(_, why)| such(why))
    }

    /// As text, each line with its time since the first.
    pub(super) fn lines(&self) -> Vec<String> {
        let Some((start, _)) = self.first.first() else { return Vec::new() };
        let line = |(at, why): &(Instant, Why)| {
            format!("+{:.1}s {}", at.saturating_duration_since(*start).as_secs_f64(), why.text())
        };
        let mut lines: Vec<String> = self.first.iter().map(line).collect();
        if self.dropped > 0 {
            lines.push(format!("({} lines left out)", self.dropped));
        }
        lines.extend(self.last.iter().map(line));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_trail_keeps_its_beginning_and_its_end() {
        let start = Instant::now();
        let mut trail = Trail::default();
        for n in 0..100_u64 {
            trail.push(start + Duration::from_secs(n), Why::Ended(format!("line {n}")));
        }
        let lines = trail.lines();
        assert_eq!(lines.len(), KEPT_FIRST + 1 + KEPT_LAST);
        assert_eq!(lines[0], "+0.0s line 0");
        assert_eq!(lines[KEPT_FIRST], "(76 lines left out)");
        assert_eq!(lines.last().unwrap(), "+99.0s line 99");
    }
}
