//! When AWS itself is to end an instance: for the day on which its broker is gone and it never learnt to end itself.
//!
//! Pure. Owns what a change of a launch's stage means for that, and what is to be done about it now; it is done in
//! [`keep`].
//!
//! - It is always later than the broker and the machine itself would end it: what runs is never robbed.
//! - What is wanted is written down with the stage that it follows from, before AWS is asked: a broker that dies in
//!   between leaves it to the next one, which asks for the same.
//! - It stands until the instance is gone. One that is left over ends nothing, and AWS removes it after its time.

mod keep;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::api::{ErrorClass, ScheduleOrder};
use super::records::{Record, Stage};
use crate::model::Ec2Spec;
use crate::model::ec2::RoleArn;

pub(super) use keep::Refusal;

/// After everybody else has had the time to end it: a boot, a clock that is wrong by some minutes, a retried call.
const MARGIN: Duration = Duration::from_secs(15 * 60);

/// What a pool wants of AWS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    role: RoleArn,
    /// How long an instance may run from its launch, or from its start, on.
    limit: Duration,
}

/// How far the end of one instance is arranged for. Times are seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub(super) enum Expiry {
    /// AWS may have been asked.
    Wanted {
        /// When it is to end.
        at: u64,
    },
    /// AWS has agreed.
    Set {
        /// When it is to end.
        at: u64,
    },
}

/// Something to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Errand {
    /// AWS is to end it then.
    Set {
        /// In seconds since 1970.
        at: u64,
    },
    /// The instance is gone, and so shall this be.
    Remove,
}

/// What is left of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remains {
    /// It is there, as far as is known.
    Instance,
    /// It shuts down, and cannot come back.
    Shadow,
    /// Nothing but what is written down.
    Record,
}

impl Terms {
    /// What this pool wants; nothing unless it names a role.
    pub(super) fn of(max_lifetime: Duration, spec: &Ec2Spec) -> Option<Self> {
        let role = spec.expiry_role.clone()?;
        Some(Self { role, limit: hard_limit(max_lifetime, spec) + MARGIN })
    }

    /// The request for one instance.
    pub(super) fn order(&self, record: &Record, instance: &str, at: u64) -> ScheduleOrder {
        ScheduleOrder {
            instance: instance.to_owned(),
            at,
            role: self.role.clone(),
            client_token: format!("{}-{at}", record.intent.as_str()),
        }
    }

    fn end_after(&self, now: u64) -> u64 {
        now.saturating_add(self.limit.as_secs())
    }
}

/// How long a machine of this pool runs at most: it ends itself then, whatever it does.
pub(super) fn hard_limit(max_lifetime: Duration, spec: &Ec2Spec) -> Duration {
    max_lifetime + spec.lease
}

/// What a launch's new stage means for its end; `None` where it is as it was.
pub(super) fn on_advance(before: &Stage, after: &Stage, terms: Option<&Terms>, now: u64) -> Option<Expiry> {
    let terms = terms?;
    match (before, after) {
        (Stage::Live { .. }, Stage::Live { .. }) => None,
        // Launched, found, or started again: its age counts from now.
        (_, Stage::Live { .. }) => Some(Expiry::Wanted { at: terms.end_after(now) }),
        // Nothing but its broker ends what is stopped, so this is all there is for the day on which that is gone.
        (_, Stage::Shelved { until, .. }) => {
            Some(Expiry::Wanted { at: until.saturating_add(MARGIN.as_secs()) })
        }
        (_, Stage::Asked { .. } | Stage::Abandoned | Stage::Ending { .. }) => None,
    }
}

/// What is to be done for this launch now.
pub(super) fn errand(record: &Record, remains: Remains, terms: Option<&Terms>, now: u64) -> Option<Errand> {
    match remains {
        Remains::Instance => {}
        Remains::Shadow => return None,
        Remains::Record => return record.expiry.map(|_| Errand::Remove),
    }
    let terms = terms?;
    let at = match (&record.stage, record.expiry) {
        (Stage::Asked { .. } | Stage::Abandoned, _) | (_, Some(Expiry::Set { .. })) => return None,
        (_, Some(Expiry::Wanted { at })) => at,
        // Of a broker that had no role.
        (Stage::Live { .. }, None) => terms.end_after(now),
        (Stage::Shelved { until, .. }, None) => until.saturating_add(MARGIN.as_secs()),
        (Stage::Ending { .. }, None) => return None,
    };
    // A broker may have been off until after that.
    Some(Errand::Set { at: if at <= now { terms.end_after(now) } else { at } })
}

/// When AWS is asked again after such a refusal.
pub(super) fn again_after(class: ErrorClass) -> Duration {
    match class {
        // A person has to do something first.
        ErrorClass::Identity | ErrorClass::Config | ErrorClass::Quota(_) | ErrorClass::NotFound => {
            Duration::from_secs(15 * 60)
        }
        ErrorClass::Throttle
        | ErrorClass::Transient
        | ErrorClass::Busy
        | ErrorClass::Idempotency
        | ErrorClass::Capacity
        | ErrorClass::Subnet
        | ErrorClass::SpotRole
        | ErrorClass::Unknown => Duration::from_secs(60),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::super::records::{ClassRecord, IntentId, Site};
    use super::*;

    const NOW: u64 = 1_800_000_000;
    const DAY: u64 = 24 * 60 * 60;

    fn terms() -> Terms {
        let role = RoleArn::parse("arn:aws:iam::123456789012:role/r");
        let spec = Ec2Spec { expiry_role: role, ..fixtures::spec() };
        Terms::of(Duration::from_secs(8 * 60 * 60), &spec).unwrap()
    }

    /// 8 h of `max-lifetime`, 15 min of `lease`, and the margin.
    const LIMIT: u64 = (8 * 60 + 15 + 15) * 60;

    fn live() -> Stage {
        let class = ClassRecord {
            instance_type: "c6a.large".into(),
            spot: false,
            zone: "eu-central-1a".into(),
            rate: 1,
            stopped_rate: 1,
        };
        Stage::Live { instance: "i-1".into(), class }
    }

    fn shelved(until: u64) -> Stage {
        let Stage::Live { instance, class } = live() else { unreachable!() };
        Stage::Shelved { instance, class, since: NOW, until }
    }

    fn ending() -> Stage {
        Stage::Ending { instance: "i-1".into(), since: NOW }
    }

    fn record(stage: Stage, expiry: Option<Expiry>) -> Record {
        Record {
            intent: IntentId::parse(&"a".repeat(32)).unwrap(),
            pool: "zen3".into(),
            site: Site { profile: None, region: "eu-central-1".into() },
            host_key: String::new(),
            asked_at: NOW - DAY,
            stage,
            expiry,
        }
    }

    #[test]
    fn the_end_comes_after_everybody_elses_and_moves_with_what_becomes_of_the_machine() {
        let (terms, until) = (terms(), NOW + 7 * DAY);
        let after = |before: &Stage, after: &Stage| on_advance(before, after, Some(&terms), NOW);
        let running = Some(Expiry::Wanted { at: NOW + LIMIT });
        assert_eq!(after(&Stage::Abandoned, &live()), running);
        assert_eq!(after(&shelved(until), &live()), running, "started again");
        assert_eq!(after(&live(), &shelved(until)), Some(Expiry::Wanted { at: until + 15 * 60 }));
        assert_eq!(after(&live(), &live()), None);
        assert_eq!(after(&live(), &ending()), None, "it guards the end too");
        assert_eq!(on_advance(&Stage::Abandoned, &live(), None, NOW), None);
    }

    #[test]
    fn what_is_wanted_is_asked_for_until_it_stands_and_removed_when_there_is_nothing_left() {
        let terms = terms();
        let errand = |stage, expiry| errand(&record(stage, expiry), Remains::Instance, Some(&terms), NOW);
        let wanted = |at| Some(Expiry::Wanted { at });
        assert_eq!(errand(live(), wanted(NOW + 7)), Some(Errand::Set { at: NOW + 7 }));
        assert_eq!(errand(ending(), wanted(NOW + 7)), Some(Errand::Set { at: NOW + 7 }));
        assert_eq!(errand(live(), Some(Expiry::Set { at: NOW + 7 })), None);
        // Let it come: this is what it is for.
        assert_eq!(errand(live(), Some(Expiry::Set { at: NOW - 7 })), None);
        assert_eq!(errand(live(), wanted(NOW - 7)), Some(Errand::Set { at: NOW + LIMIT }));
        assert_eq!(errand(live(), None), Some(Errand::Set { at: NOW + LIMIT }), "the role is new");
        assert_eq!(errand(shelved(NOW + DAY), None), Some(Errand::Set { at: NOW + DAY + 15 * 60 }));
        assert_eq!(errand(ending(), None), None);
        assert_eq!(errand(Stage::Abandoned, None), None);
    }

    #[test]
    fn one_that_stands_is_removed_by_a_broker_without_the_role_too_and_nothing_else_is_done() {
        let errand = |expiry, remains| errand(&record(live(), expiry), remains, None, NOW);
        for expiry in [Expiry::Wanted { at: NOW + 7 }, Expiry::Set { at: NOW + 7 }] {
            assert_eq!(errand(Some(expiry), Remains::Record), Some(Errand::Remove));
            assert_eq!(errand(Some(expiry), Remains::Shadow), None);
            assert_eq!(errand(Some(expiry), Remains::Instance), None);
        }
        assert_eq!((errand(None, Remains::Record), errand(None, Remains::Instance)), (None, None));
    }

    #[test]
    fn the_same_wish_is_the_same_request() {
        let (terms, record) = (terms(), record(live(), None));
        let order = terms.order(&record, "i-1", NOW);
        assert_eq!(order, terms.order(&record, "i-1", NOW));
        assert_ne!(order.client_token, terms.order(&record, "i-1", NOW + 1).client_token);
        assert!(order.client_token.len() <= 64);
    }
}
