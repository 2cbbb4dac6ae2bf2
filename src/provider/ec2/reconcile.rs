//! What follows from what was written down and what EC2 says there is: the rules by which no instance is left behind.
//!
//! Pure. Takes one look at a site, answers with steps; who performs them is [`super::estate`].
//!
//! - An instance with our tag and without a record is terminated: a record is written before any instance is asked for.
//! - EC2 may not show a new instance for minutes, so one that is not shown is only given up after [`BELIEVED_FOR`].
//! - A record goes only when EC2 says that its instance is terminated, or has not shown one for long enough.

use std::collections::{BTreeMap, BTreeSet};

use super::api::{InstanceState, Observed};
use super::records::{IntentId, Record, Stage};

/// A new instance may be invisible for this many seconds; facts 1.5.
pub(super) const BELIEVED_FOR: u64 = 5 * 60;
/// Looks in a row that must have missed an instance before it counts as gone.
pub(super) const MISSES: u32 = 3;

/// The tag that names a launch.
pub(super) const INTENT_TAG: &str = "nix-broker:intent";

/// What is known of one site beside the records.
#[derive(Debug)]
pub(super) struct Look<'a> {
    /// Every instance there with this broker's tag.
    pub(super) instances: &'a [Observed],
    /// Launches, starts and stops that are under way in this process: their ends report themselves.
    pub(super) in_flight: &'a BTreeSet<IntentId>,
    /// Launches whose instance somebody in this process looks after.
    pub(super) claimed: &'a BTreeSet<IntentId>,
    /// How many looks in a row have missed a record's instance, this one included.
    pub(super) misses: &'a BTreeMap<IntentId, u32>,
    /// Seconds since 1970.
    pub(super) now: u64,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// An instance came of this launch, and nobody has heard the answer.
    Found {
        /// The launch.
        intent: IntentId,
        /// What came of it.
        instance: String,
    },
    /// This instance must not be.
    Terminate {
        /// Which.
        instance: String,
        /// Why, for the log.
        why: &'static str,
    },
    /// This launch's instance ended without being asked to.
    Ended {
        /// The launch.
        intent: IntentId,
        /// What EC2 says.
        reason: String,
    },
    /// Nothing is left of this launch.
    Forget {
        /// Which.
        intent: IntentId,
    },
}

/// What to do after this look. `records` are those of the site that was looked at.
pub(super) fn reconcile<'a>(records: impl Iterator<Item = &'a Record>, look: &Look<'_>) -> Vec<Step> {
    let records: BTreeMap<&str, &Record> = records.map(|record| (record.intent.as_str(), record)).collect();
    let mut steps = Vec::new();
    let mut shown: BTreeMap<&str, Vec<&Observed>> = BTreeMap::new();
    for instance in look.instances {
        let intent = instance.tags.get(INTENT_TAG).map_or("", String::as_str);
        if records.contains_key(intent) {
            shown.entry(intent).or_default().push(instance);
        } else if is_alive(instance) {
            let why = "it has the tag of this broker, which knows nothing of it";
            steps.push(Step::Terminate { instance: instance.id.clone(), why });
        }
    }
    for (intent, record) in records {
        let shown = shown.get(intent).map_or(&[][..], Vec::as_slice);
        of_record(record, shown, look, &mut steps);
    }
    steps
}

fn of_record(record: &Record, shown: &[&Observed], look: &Look<'_>, steps: &mut Vec<Step>) {
    let intent = || record.intent.clone();
    // One launch asks for one instance; a second one is nobody's.
    let expected = record.instance().or_else(|| shown.first().map(|first| first.id.as_str()));
    for surplus in
        shown.iter().filter(|instance| Some(instance.id.as_str()) != expected && is_alive(instance))
    {
        let why = "a second instance came of one launch";
        steps.push(Step::Terminate { instance: surplus.id.clone(), why });
    }
    let instance = shown.iter().find(|instance| Some(instance.id.as_str()) == expected).copied();
    if look.in_flight.contains(&record.intent) {
        return;
    }
    let terminate = |why| match expected {
        Some(id) => Step::Terminate { instance: id.to_owned(), why },
        None => Step::Forget { intent: intent() },
    };
    let absent_for_good = absent_for_good(record, look);
    match (&record.stage, instance) {
        (_, Some(instance)) if instance.state == InstanceState::Terminated => match &record.stage {
            Stage::Live { .. } if look.claimed.contains(&record.intent) => {
                steps.push(Step::Ended { intent: intent(), reason: end_of(instance) });
            }
            Stage::Live { .. }
            | Stage::Asked { .. }
            | Stage::Abandoned
            | Stage::Shelved { .. }
            | Stage::Ending { .. } => steps.push(Step::Forget { intent: intent() }),
        },
        (Stage::Asked { .. }, Some(found)) => {
            steps.push(Step::Found { intent: intent(), instance: found.id.clone() });
        }
        (Stage::Abandoned, Some(_)) => steps.push(terminate("nobody waits for it any more")),
        (Stage::Asked { .. } | Stage::Abandoned, None) => {
            if absent_for_good {
                steps.push(Step::Forget { intent: intent() });
            }
        }
        (Stage::Live { .. }, seen) if !look.claimed.contains(&record.intent) => match seen {
            None if absent_for_good => steps.push(Step::Forget { intent: intent() }),
            None | Some(_) => steps.push(terminate("nobody looks after it")),
        },
        (Stage::Live { .. }, Some(instance)) => {
            if matches!(
                instance.state,
                InstanceState::ShuttingDown | InstanceState::Stopping | InstanceState::Stopped
            ) {
                steps.push(Step::Ended { intent: intent(), reason: end_of(instance) });
            }
        }
        (Stage::Live { .. }, None) => {
            if absent_for_good {
                let reason = "EC2 does not list it any more".to_owned();
                steps.push(Step::Ended { intent: intent(), reason });
            }
        }
        (Stage::Shelved { until, .. }, Some(instance)) => {
            let is_put_aside = matches!(instance.state, InstanceState::Stopping | InstanceState::Stopped);
            if is_alive(instance) && !is_put_aside {
                steps.push(terminate("it was put aside and runs nevertheless"));
            } else if *until <= look.now && is_alive(instance) {
                steps.push(terminate("it was stopped for longer than `max-stopped`"));
            }
        }
        (Stage::Shelved { .. }, None) => {
            if absent_for_good {
                steps.push(Step::Forget { intent: intent() });
            }
        }
        (Stage::Ending { .. }, Some(instance)) => {
            if is_alive(instance) {
                steps.push(terminate("it was to end"));
            }
        }
        (Stage::Ending { .. }, None) => steps.push(match absent_for_good {
            true => Step::Forget { intent: intent() },
            // A young one may run without being shown; asking again costs one call.
            false => terminate("it was to end"),
        }),
    }
}

/// Whether EC2 would show it by now if it were there.
fn absent_for_good(record: &Record, look: &Look<'_>) -> bool {
    let since = match record.stage {
        Stage::Ending { since, .. } => since.max(record.asked_at),
        Stage::Asked { .. } | Stage::Abandoned | Stage::Live { .. } | Stage::Shelved { .. } => {
            record.asked_at
        }
    };
    let misses = look.misses.get(&record.intent).copied().unwrap_or(0);
    misses >= MISSES && look.now >= since.saturating_add(BELIEVED_FOR)
}

/// Whether it costs something, or could again. What shuts down does not come back.
fn is_alive(instance: &Observed) -> bool {
    match instance.state {
        InstanceState::Pending
        | InstanceState::Running
        | InstanceState::Stopping
        | InstanceState::Stopped => true,
        InstanceState::ShuttingDown | InstanceState::Terminated => false,
    }
}

fn end_of(instance: &Observed) -> String {
    let state = match instance.state {
        InstanceState::Pending => "is pending",
        InstanceState::Running => "is running",
        InstanceState::ShuttingDown => "is shutting down",
        InstanceState::Terminated => "is terminated",
        InstanceState::Stopping => "is being stopped",
        InstanceState::Stopped => "is stopped",
    };
    match &instance.state_reason {
        Some(reason) => format!("EC2 says that it {state} ({reason})"),
        None => format!("EC2 says that it {state}"),
    }
}

#[cfg(test)]
mod tests;
