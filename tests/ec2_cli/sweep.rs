//! `broker sweep`.

use super::{BROKER, Desk, ONE_POOL, OTHER_BROKER, REGION, in_minutes};
use crate::fake_ec2::{Fault, State};

fn tags<'a>(broker: &'a str, expires: &'a str) -> [(&'a str, &'a str); 3] {
    [("nix-broker:broker", broker), ("nix-broker:pool", "zen3"), ("nix-broker:expires-at", expires)]
}

/// No configuration, no state, no broker: nothing but credentials.
fn elsewhere() -> Desk {
    let desk = Desk::new(ONE_POOL).with("AWS_REGION", REGION);
    std::fs::remove_file(desk.dir.path().join("config.toml")).unwrap();
    desk
}

fn state(desk: &Desk, id: &str) -> State {
    desk.fake.instance(id).unwrap().state
}

fn is_ending(desk: &Desk, id: &str) -> bool {
    matches!(state(desk, id), State::ShuttingDown | State::Terminated)
}

#[test]
fn an_empty_account_says_so() {
    insta::assert_snapshot!(elsewhere().run(&["sweep"]).text(), @r#"
    exit 0
    --- stdout
    Nothing there carries a broker's tag.
    "#);
}

#[test]
fn what_no_broker_renewed_ends_and_nothing_else() {
    let desk = elsewhere();
    let (past, future) = (in_minutes(-5), in_minutes(55));
    let dead = desk.launch(REGION, &[], &tags(BROKER, &past));
    let living = desk.launch(REGION, &[], &tags(OTHER_BROKER, &future));
    let words = desk.run(&["sweep", "--dry-run"]).ended(0);
    assert!(words.contains(&dead) && words.contains(&living) && words.contains("zen3"), "{words}");
    assert!(words.contains("1 thing has expired and is to end"), "{words}");
    assert!(!is_ending(&desk, &dead));
    let words = desk.run(&["sweep"]).ended(1);
    assert!(words.contains("--yes"), "{words}");
    assert!(!is_ending(&desk, &dead));
    let words = desk.run(&["sweep", "--yes"]).ended(0);
    assert!(words.contains(&format!("`{dead}` in eu-central-1 ends")), "{words}");
    assert!(is_ending(&desk, &dead));
    assert!(!is_ending(&desk, &living));
    let words = desk.run(&["sweep", "--yes"]).ended(0);
    assert!(words.contains("Nothing of it has expired"), "{words}");
}

#[test]
fn one_broker_or_everything_can_be_ended_whenever_it_expires() {
    let desk = elsewhere();
    let future = in_minutes(55);
    let ours = desk.launch(REGION, &[], &tags(BROKER, &future));
    let theirs = desk.launch(REGION, &[], &tags(OTHER_BROKER, &future));
    desk.run(&["sweep", "--broker", BROKER, "--yes"]).ended(0);
    assert!(is_ending(&desk, &ours) && !is_ending(&desk, &theirs));
    desk.run(&["sweep", "--everything", "--yes"]).ended(0);
    assert!(is_ending(&desk, &theirs));
}

#[test]
fn what_carries_no_brokers_tag_is_never_touched() {
    let desk = elsewhere();
    let volume = desk.fake.add_volume(REGION, "eu-central-1a", &[("Name", "somebody's")]);
    let words = desk.run(&["sweep", "--everything", "--yes"]).ended(0);
    assert!(words.contains("Nothing there carries a broker's tag"), "{words}");
    assert!(!words.contains(&volume));
    assert_eq!(desk.deeds(), [""; 0]);
}

#[test]
fn volumes_and_the_group_of_init_go_with_everything() {
    let desk = Desk::new(ONE_POOL).with("AWS_REGION", REGION);
    desk.run(&["init", "--yes"]).ended(0);
    let group = desk.fake.network(REGION).into_iter().rfind(|line| line.starts_with("sg-")).unwrap();
    let future = in_minutes(55);
    let instance = desk.launch(REGION, std::slice::from_ref(&group), &tags(BROKER, &future));
    let expired = in_minutes(-1);
    let expired = [("ManagedBy", "nix-broker"), ("nix-broker:expires-at", expired.as_str())];
    let volume = desk.fake.add_volume(REGION, "eu-central-1a", &expired);
    let words = desk.run(&["sweep", "--yes"]).ended(0);
    assert!(words.contains(&format!("`{volume}` in eu-central-1 ends")), "{words}");
    assert!(!is_ending(&desk, &instance));
    let words = desk.run(&["sweep", "--everything", "--yes"]).ended(0);
    assert!(words.contains(&format!("`{group}` in eu-central-1 ends")), "{words}");
    // A group goes only after everything in it.
    assert_eq!(state(&desk, &instance), State::Terminated);
    assert!(!desk.fake.network(REGION).contains(&group));
}

#[test]
fn every_region_is_looked_at_when_that_is_asked_for() {
    let desk = elsewhere().with("AWS_REGION", "");
    let past = in_minutes(-5);
    let one = desk.launch("eu-west-1", &[], &tags(BROKER, &past));
    let two = desk.launch("us-east-1", &[], &tags(BROKER, &past));
    let words = desk.run(&["sweep"]).ended(1);
    assert!(words.contains("no region is set") && words.contains("--region"), "{words}");
    let words = desk.run(&["sweep", "--region", "eu-west-1", "--dry-run"]).ended(0);
    assert!(words.contains(&one) && !words.contains(&two), "{words}");
    desk.run(&["sweep", "--all-regions", "--yes"]).ended(0);
    assert!(is_ending(&desk, &one) && is_ending(&desk, &two));
}

#[test]
fn a_region_that_cannot_be_seen_keeps_no_other_from_being_swept_and_is_a_failure() {
    let desk = elsewhere();
    let past = in_minutes(-5);
    let dead = desk.launch("us-east-1", &[], &tags(BROKER, &past));
    let words = desk.run(&["sweep", "--region", "xx-nowhere-1", "--region", "us-east-1", "--yes"]).ended(1);
    assert!(words.contains("cannot see what is in xx-nowhere-1"), "{words}");
    assert!(is_ending(&desk, &dead));
}

#[test]
fn lost_answers_and_slow_states_do_not_stop_it() {
    let desk = elsewhere();
    let past = in_minutes(-5);
    let dead = desk.launch(REGION, &[], &tags(BROKER, &past));
    desk.fake.faults(|faults| {
        faults.plan("TerminateInstances", 1, Fault::LostBefore);
        faults.plan("DescribeInstances", 1, Fault::throttle());
    });
    desk.run(&["sweep", "--yes"]).ended(0);
    assert!(is_ending(&desk, &dead));
}

#[test]
fn what_may_not_be_ended_is_named_with_the_missing_permission() {
    let desk = elsewhere();
    let past = in_minutes(-5);
    let dead = desk.launch(REGION, &[], &tags(BROKER, &past));
    desk.fake.faults(|faults| faults.deny("TerminateInstances"));
    let words = desk.run(&["sweep", "--yes"]).ended(1);
    assert!(words.contains(&format!("`{dead}` in eu-central-1 is left")), "{words}");
    assert!(words.contains("`ec2:TerminateInstances`"), "{words}");
    assert!(!is_ending(&desk, &dead));
}

#[test]
fn the_table_says_whose_it_is() {
    let desk = elsewhere();
    let past = in_minutes(-65);
    desk.launch(REGION, &[], &tags(BROKER, &past));
    let words = desk.run(&["sweep", "--dry-run"]).ended(0);
    let header = words.lines().next().unwrap();
    let names = ["REGION", "ID", "TYPE", "STATE", "POOL", "BROKER", "AGE", "EXPIRES", "SWEEP"];
    assert_eq!(header.split_whitespace().collect::<Vec<_>>(), names);
    let row = words.lines().nth(1).unwrap();
    for part in ["eu-central-1", "c6a.4xlarge", "zen3", BROKER, "1h 5m ago", "ends"] {
        assert!(row.contains(part), "{part}: {row}");
    }
}
