//! The rules, one by one, and what must hold of any records and any look.

use proptest::prelude::*;

use super::super::api::{RunDisk, RunOrder};
use super::super::fixtures::observed;
use super::super::records::{ClassRecord, Site};
use super::*;
use crate::model::Market;

const NOW: u64 = 1_000_000;

fn intent(n: u8) -> IntentId {
    IntentId::parse(&format!("{n:032x}")).unwrap()
}

fn class() -> ClassRecord {
    ClassRecord {
        instance_type: "c6a.large".into(),
        spot: false,
        zone: "eu-central-1a".into(),
        rate: 1,
        stopped_rate: 1,
    }
}

fn order() -> Box<RunOrder> {
    Box::new(RunOrder {
        region: "eu-central-1".into(),
        client_token: "token".into(),
        image: "ami-1".into(),
        root_device: "/dev/xvda".into(),
        instance_type: "c6a.large".into(),
        subnet: "subnet-1".into(),
        zone: "eu-central-1a".into(),
        security_groups: Vec::new(),
        user_data: "#!".into(),
        market: Market::OnDemand,
        max_price: None,
        public_ip: true,
        private_ip: None,
        disk: RunDisk { size: 1, throughput: 125, iops: 3000 },
        instance_store: 0,
        nested_virt: false,
        hibernation: false,
        tags: BTreeMap::new(),
    })
}

fn record(n: u8, stage: Stage) -> Record {
    Record {
        intent: intent(n),
        pool: "zen3".into(),
        site: Site { profile: None, region: "eu-central-1".into() },
        host_key: "ssh-ed25519 AAAA".into(),
        asked_at: NOW - 10,
        stage,
        expiry: None,
    }
}

fn id(n: u8) -> String {
    format!("i-{n}")
}

fn live(n: u8) -> Stage {
    Stage::Live { instance: id(n), class: class() }
}

fn shelved(n: u8, until: u64) -> Stage {
    Stage::Shelved { instance: id(n), class: class(), since: NOW - 5, until }
}

fn ending(n: u8) -> Stage {
    Stage::Ending { instance: id(n), since: NOW - 5 }
}

/// An instance with this number's id and, unless it is 0, the tag of the launch of `of`.
fn shown(n: u8, of: u8, state: InstanceState) -> Observed {
    let tags = match of {
        0 => BTreeMap::new(),
        of => BTreeMap::from([(INTENT_TAG.to_owned(), intent(of).as_str().to_owned())]),
    };
    let state_reason = Some("Server.SpotInstanceTermination".into());
    Observed { state, tags, state_reason, ..observed(&id(n)) }
}

/// What one look leads to; `claimed` are the launches that somebody looks after.
fn steps(records: &[Record], instances: &[Observed], claimed: &[u8], misses: u32, now: u64) -> Vec<Step> {
    let misses = records.iter().map(|record| (record.intent.clone(), misses)).collect();
    let claimed = claimed.iter().map(|n| intent(*n)).collect();
    let look = Look { instances, in_flight: &BTreeSet::new(), claimed: &claimed, misses: &misses, now };
    reconcile(records.iter(), &look)
}

fn terminated(steps: &[Step]) -> Vec<String> {
    let mut ids = Vec::new();
    for step in steps {
        match step {
            Step::Terminate { instance, .. } => ids.push(instance.clone()),
            Step::Found { .. } | Step::Ended { .. } | Step::Forget { .. } => {}
        }
    }
    ids
}

use InstanceState::{Pending, Running, ShuttingDown, Stopped, Stopping, Terminated};

#[test]
fn an_instance_that_no_record_knows_is_ended_in_every_state_that_costs() {
    for (state, ends) in
        [(Pending, 1), (Running, 1), (Stopping, 1), (Stopped, 1), (ShuttingDown, 0), (Terminated, 0)]
    {
        assert_eq!(terminated(&steps(&[], &[shown(1, 9, state)], &[], 0, NOW)).len(), ends, "{state:?}");
        assert_eq!(terminated(&steps(&[], &[shown(1, 0, state)], &[], 0, NOW)).len(), ends, "{state:?}");
    }
}

#[test]
fn a_claimed_instance_that_runs_is_left_alone() {
    for state in [Pending, Running] {
        assert_eq!(steps(&[record(1, live(1))], &[shown(1, 1, state)], &[1], 0, NOW), []);
    }
}

#[test]
fn an_instance_that_nobody_looks_after_is_ended() {
    for state in [Pending, Running, Stopped] {
        assert_eq!(terminated(&steps(&[record(1, live(1))], &[shown(1, 1, state)], &[], 0, NOW)), [id(1)]);
    }
    // Even one that EC2 does not show yet.
    assert_eq!(terminated(&steps(&[record(1, live(1))], &[], &[], 1, NOW)), [id(1)]);
}

#[test]
fn an_instance_that_ends_by_itself_is_news_with_ec2s_reason() {
    for state in [ShuttingDown, Terminated, Stopping, Stopped] {
        let steps = steps(&[record(1, live(1))], &[shown(1, 1, state)], &[1], 0, NOW);
        let [Step::Ended { reason, .. }] = &steps[..] else { panic!("{state:?}: {steps:?}") };
        assert!(reason.contains("SpotInstanceTermination"), "{reason}");
    }
}

#[test]
fn a_new_id_is_believed_for_five_minutes_whatever_is_shown() {
    let record = [record(1, live(1))];
    assert_eq!(steps(&record, &[], &[1], 100, NOW), []);
    assert_eq!(steps(&record, &[], &[1], MISSES - 1, NOW + BELIEVED_FOR), []);
    let late = steps(&record, &[], &[1], MISSES, NOW - 10 + BELIEVED_FOR);
    assert!(matches!(&late[..], [Step::Ended { .. }]), "{late:?}");
}

#[test]
fn the_instance_of_an_unheard_answer_is_found() {
    let asked = [record(1, Stage::Asked { order: order(), class: class() })];
    let found = Step::Found { intent: intent(1), instance: id(7) };
    assert_eq!(steps(&asked, &[shown(7, 1, Running)], &[], 0, NOW), [found]);
    // Until then nothing is done, and after minutes without one there is none.
    assert_eq!(steps(&asked, &[], &[], 100, NOW), []);
    let nothing = Step::Forget { intent: intent(1) };
    assert_eq!(steps(&asked, &[], &[], MISSES, NOW + BELIEVED_FOR), [nothing]);
}

#[test]
fn what_comes_of_an_abandoned_launch_is_ended() {
    let abandoned = [record(1, Stage::Abandoned)];
    assert_eq!(terminated(&steps(&abandoned, &[shown(7, 1, Pending)], &[], 0, NOW)), [id(7)]);
    assert_eq!(
        steps(&abandoned, &[shown(7, 1, Terminated)], &[], 0, NOW),
        [Step::Forget { intent: intent(1) }]
    );
}

#[test]
fn a_second_instance_of_one_launch_is_ended_and_the_first_left() {
    let instances = [shown(1, 1, Running), shown(2, 1, Running)];
    assert_eq!(terminated(&steps(&[record(1, live(1))], &instances, &[1], 0, NOW)), [id(2)]);
}

#[test]
fn what_was_put_aside_stays_until_its_time() {
    for state in [Stopping, Stopped] {
        assert_eq!(steps(&[record(1, shelved(1, NOW + 1))], &[shown(1, 1, state)], &[], 0, NOW), []);
        let over = steps(&[record(1, shelved(1, NOW))], &[shown(1, 1, state)], &[], 0, NOW);
        assert_eq!(terminated(&over), [id(1)]);
    }
    let runs = steps(&[record(1, shelved(1, NOW + 1))], &[shown(1, 1, Running)], &[], 0, NOW);
    assert_eq!(terminated(&runs), [id(1)]);
}

#[test]
fn an_end_is_asked_for_until_it_is_shown() {
    for state in [Pending, Running, Stopping, Stopped] {
        assert_eq!(terminated(&steps(&[record(1, ending(1))], &[shown(1, 1, state)], &[], 0, NOW)), [id(1)]);
    }
    assert_eq!(steps(&[record(1, ending(1))], &[shown(1, 1, ShuttingDown)], &[], 0, NOW), []);
    let gone = Step::Forget { intent: intent(1) };
    assert_eq!(
        steps(&[record(1, ending(1))], &[shown(1, 1, Terminated)], &[], 0, NOW),
        std::slice::from_ref(&gone)
    );
    // Not shown: it may be too young to be, or too old.
    assert_eq!(terminated(&steps(&[record(1, ending(1))], &[], &[], MISSES, NOW)), [id(1)]);
    assert_eq!(steps(&[record(1, ending(1))], &[], &[], MISSES, NOW + BELIEVED_FOR), [gone]);
}

#[test]
fn what_is_under_way_is_left_to_those_who_do_it() {
    let records =
        [record(1, shelved(1, NOW + 9)), record(2, Stage::Asked { order: order(), class: class() })];
    let instances = [shown(1, 1, Running), shown(2, 2, Running)];
    let in_flight = BTreeSet::from([intent(1), intent(2)]);
    let look = Look {
        instances: &instances,
        in_flight: &in_flight,
        claimed: &BTreeSet::new(),
        misses: &BTreeMap::new(),
        now: NOW,
    };
    assert_eq!(reconcile(records.iter(), &look), []);
}

fn any_state() -> impl Strategy<Value = InstanceState> {
    prop::sample::select(InstanceState::ALL.to_vec())
}

fn any_stage(n: u8) -> impl Strategy<Value = Stage> {
    prop_oneof![
        Just(Stage::Abandoned),
        Just(live(n)),
        Just(ending(n)),
        (NOW - 5..NOW + 5).prop_map(move |until| shelved(n, until)),
        Just(Stage::Asked { order: order(), class: class() }),
    ]
}

proptest! {
    /// Whatever was written and whatever is shown: each instance that costs is looked after, put aside, or acted on.
    #[test]
    fn nothing_that_costs_is_overlooked(
        stages in prop::collection::vec(any_stage(1), 0..4),
        states in prop::collection::vec((any_state(), 0_u8..6), 0..6),
        claimed in prop::collection::btree_set(0_u8..5, 0..5),
        misses in 0_u32..6,
        later in 0_u64..1_000,
    ) {
        let records: Vec<_> = stages
            .into_iter()
            .zip(1_u8..)
            .map(|(stage, n)| {
                let stage = match stage {
                    Stage::Live { .. } => live(n),
                    Stage::Ending { .. } => ending(n),
                    Stage::Shelved { until, .. } => shelved(n, until),
                    stage @ (Stage::Asked { .. } | Stage::Abandoned) => stage,
                };
                record(n, stage)
            })
            .collect();
        let instances: Vec<_> =
            states.iter().zip(1_u8..).map(|(&(state, of), n)| shown(n, of, state)).collect();
        let claimed: Vec<u8> = claimed.into_iter().collect();
        let now = NOW + later;
        let steps = steps(&records, &instances, &claimed, misses, now);
        for instance in instances.iter().filter(|instance| is_alive(instance)) {
            let record = records.iter().find(|record| {
                instance.tags.get(INTENT_TAG).is_some_and(|tag| tag == record.intent.as_str())
            });
            let is_known = record.is_some_and(|record| match &record.stage {
                Stage::Live { instance: id, .. } => {
                    *id == instance.id && claimed.iter().any(|n| intent(*n) == record.intent)
                }
                Stage::Shelved { instance: id, until, .. } => {
                    *id == instance.id && *until > now && !matches!(instance.state, Pending | Running)
                }
                Stage::Asked { .. } | Stage::Abandoned | Stage::Ending { .. } => false,
            });
            let is_acted_on = steps.iter().any(|step| match step {
                Step::Terminate { instance: id, .. } | Step::Found { instance: id, .. } => *id == instance.id,
                Step::Ended { .. } | Step::Forget { .. } => false,
            });
            prop_assert!(is_known || is_acted_on, "{instance:?} {steps:?}");
            let is_in_use = is_known && matches!(instance.state, Pending | Running);
            prop_assert!(!(is_in_use && is_acted_on), "{instance:?} {steps:?}");
        }
        // A record goes only when nothing that costs has its tag.
        for step in &steps {
            if let Step::Forget { intent } = step {
                let of_it = |instance: &&Observed| {
                    instance.tags.get(INTENT_TAG).is_some_and(|tag| tag == intent.as_str())
                };
                let left = instances.iter().filter(of_it).filter(|instance| is_alive(instance));
                let left: Vec<_> = left.map(|instance| instance.id.clone()).collect();
                prop_assert!(
                    left.iter().all(|id| terminated(&steps).contains(id)),
                    "{intent:?} is forgotten with {left:?}"
                );
            }
        }
    }
}
