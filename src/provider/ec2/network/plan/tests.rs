//! What is planned for networks as they are met, each a table of what there is and what follows.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use super::super::found::{Source, Tenant};
use super::*;

const US: &str = "0123456789abcdef0123456789abcdef";
const OTHERS: &str = "fedcba9876543210fedcba9876543210";

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn vpc(id: &str) -> Vpc {
    Vpc { id: id.into(), cidrs: vec![Cidr::default_vpc()], is_default: true, is_ours: false }
}

fn subnet(id: &str, zone: &str, range: &str) -> Subnet {
    Subnet {
        id: id.into(),
        vpc: "vpc-1".into(),
        zone: zone.into(),
        cidr: cidr(range),
        free_addresses: 4091,
        is_default: true,
        is_public: true,
        is_ours: false,
    }
}

fn group(ingress: &[Rule]) -> Group {
    Group {
        id: "sg-1".into(),
        name: GROUP_NAME.into(),
        vpc: "vpc-1".into(),
        ingress: ingress.to_vec(),
        is_ours: true,
    }
}

fn of(broker: &str, source: &str) -> Rule {
    Rule::ssh(cidr(source), &Purpose::Broker(broker.into()))
}

/// A default VPC as AWS makes one for a new account.
fn fresh_account() -> Found {
    Found {
        vpcs: vec![vpc("vpc-1")],
        subnets: vec![subnet("subnet-a", "xa", "172.31.0.0/20"), subnet("subnet-b", "xb", "172.31.16.0/20")],
        ..Found::default()
    }
}

fn wish() -> Wish {
    Wish {
        given: Given::default(),
        zones: set(&["xa", "xb"]),
        admit: Some(Entrant::Seen(cidr("198.51.100.7/32"))),
        inside: Inside::Members,
        broker: Some(US.into()),
    }
}

fn planned(found: &Found, wish: &Wish) -> Vec<String> {
    plan(found, wish).unwrap().changes.iter().map(ToString::to_string).collect()
}

/// What EC2 would show when this was done.
fn after(found: &Found, changes: &[Change]) -> Found {
    let mut found = found.clone();
    for change in changes {
        match change {
            Change::CreateDefaultVpc => {
                found.vpcs.push(Vpc { is_ours: true, ..vpc("vpc-1") });
                found.subnets = fresh_account().subnets;
            }
            Change::CreateSubnet { vpc, zone, cidr } => found.subnets.push(Subnet {
                vpc: vpc.clone(),
                cidr: *cidr,
                is_default: false,
                is_public: false,
                is_ours: true,
                ..subnet(&format!("subnet-{zone}"), zone, "10.0.0.0/8")
            }),
            Change::CreateGroup { .. } => found.groups.push(group(&[])),
            Change::Authorize { rule, .. } => found.groups[0].ingress.push(rule.clone()),
            Change::Revoke { rule, .. } => found.groups[0].ingress.retain(|there| there != rule),
            Change::DeleteGroup { group } => found.groups.retain(|there| there.id != *group),
            Change::DeleteSubnet { subnet, .. } => found.subnets.retain(|there| there.id != *subnet),
            Change::DeleteVpc { vpc } => {
                found.vpcs.retain(|there| there.id != *vpc);
                found.subnets.retain(|there| there.vpc != *vpc);
            }
        }
    }
    found
}

#[test]
fn a_new_account_needs_a_group_and_nothing_else() {
    assert_eq!(
        planned(&fresh_account(), &wish()),
        [
            "create security group `nix-broker` in `vpc-1`",
            "authorize tcp 22 from the group itself in the new group",
            "authorize tcp 22 from 198.51.100.7/32 in the new group",
        ]
    );
    let alone = Wish { inside: Inside::Nobody, ..wish() };
    assert_eq!(planned(&fresh_account(), &alone).len(), 2);
}

#[test]
fn a_group_of_an_earlier_version_lets_its_builders_in_to_each_other_from_now_on() {
    let with = |rules: &[Rule]| {
        let all = [&[of(US, "198.51.100.7/32")], rules].concat();
        Found { groups: vec![group(&all)], ..fresh_account() }
    };
    let added = ["authorize tcp 22 from the group itself in `sg-1`"];
    assert_eq!(planned(&with(&[]), &wish()), added);
    let by = |source: Source| Rule { source, ..Rule::among_members() };
    assert_eq!(planned(&with(&[by(Source::Other("sg-2".into()))]), &wish()), added);
    let dns = Rule { ports: Some((53, 53)), ..Rule::among_members() };
    assert_eq!(planned(&with(&[dns]), &wish()), added);
    // It is there, whoever made it, and stays when nobody of this configuration needs it.
    let ours = with(&[Rule::among_members()]);
    let theirs =
        with(&[Rule { protocol: "-1".into(), ports: None, description: None, ..Rule::among_members() }]);
    for inside in [Inside::Members, Inside::Nobody] {
        let wish = Wish { inside, ..wish() };
        assert_eq!(planned(&ours, &wish), [""; 0]);
        assert_eq!(planned(&theirs, &wish), [""; 0]);
        assert_eq!(plan(&ours, &wish).unwrap().warnings, [""; 0]);
        assert!(plan(&theirs, &wish).unwrap().warnings[0].contains("everything from the group itself"));
    }
    // So does a launch, wherever it is made from.
    let before = group(&[of(US, "198.51.100.7/32")]);
    let here = Some(cidr("198.51.100.7/32"));
    for address in [here, None] {
        let admission = admission(&before, US, address, Inside::Members);
        assert_eq!((admission.authorize, admission.revoke), (vec![Rule::among_members()], vec![]));
    }
    let after = group(&[of(US, "198.51.100.7/32"), Rule::among_members()]);
    assert_eq!(admission(&after, US, here, Inside::Members), Admission::default());
    assert_eq!(admission(&before, US, None, Inside::Nobody), Admission::default());
}

#[test]
fn a_region_without_a_default_vpc_gets_one() {
    let private = Wish { admit: None, inside: Inside::Vpc, ..wish() };
    assert_eq!(
        planned(&Found::default(), &private),
        [
            "create the default VPC, with a subnet in every zone",
            "create security group `nix-broker` in the new VPC",
            "authorize tcp 22 from 172.31.0.0/16 in the new group",
        ]
    );
    // A VPC that is somebody else's is not taken, however alone it is.
    let found = Found { vpcs: vec![Vpc { is_default: false, ..vpc("vpc-9") }], ..Found::default() };
    assert_eq!(planned(&found, &wish())[0], "create the default VPC, with a subnet in every zone");
}

#[test]
fn what_was_done_is_not_done_again() {
    let crowded = Found {
        groups: vec![group(&[of(US, "203.0.113.1/32"), Rule { description: None, ..of(US, "0.0.0.0/0") }])],
        ..fresh_account()
    };
    let third_zone = Wish { zones: set(&["xa", "xb", "xc"]), ..wish() };
    let both = Wish { inside: Inside::Vpc, ..wish() };
    let by_hand = Wish { admit: Some(Entrant::Told(cidr("198.51.100.0/28"))), broker: None, ..wish() };
    for found in [Found::default(), fresh_account(), crowded] {
        for wish in [wish(), third_zone.clone(), both.clone(), by_hand.clone()] {
            let first = plan(&found, &wish).unwrap();
            assert!(!first.changes.is_empty());
            let mut done = after(&found, &first.changes);
            // A new default VPC has subnets in the zones it has them in; what is missing then is a second step.
            done = after(&done, &plan(&done, &wish).unwrap().changes);
            assert_eq!(planned(&done, &wish), [""; 0], "{wish:?}");
        }
    }
}

#[test]
fn a_zone_without_a_subnet_gets_one_where_there_is_room() {
    let wish = Wish { zones: set(&["xa", "xc", "xd"]), ..wish() };
    let planned = planned(&fresh_account(), &wish);
    assert_eq!(
        planned[..2],
        ["create subnet 172.31.32.0/20 in xc of `vpc-1`", "create subnet 172.31.48.0/20 in xd of `vpc-1`",]
    );
    let full = Found {
        subnets: vec![subnet("subnet-a", "xa", "172.31.0.0/17"), subnet("subnet-b", "xb", "172.31.128.0/17")],
        ..fresh_account()
    };
    let plan = plan(&full, &wish).unwrap();
    assert_eq!(plan.obstacles.len(), 2);
    assert!(plan.obstacles[0].contains("no room for a subnet in xc"), "{:?}", plan.obstacles);
}

#[test]
fn a_network_that_a_person_laid_out_gets_no_subnets() {
    let mut found = fresh_account();
    found.vpcs[0].is_default = false;
    found.groups.push(Group { is_ours: false, name: "theirs".into(), ..group(&[of(US, "198.51.100.7/32")]) });
    let given = Given { groups: set(&["sg-1"]), ..Given::default() };
    let wish = Wish { given, zones: set(&["xa", "xc"]), ..wish() };
    let plan = plan(&found, &wish).unwrap();
    assert_eq!((plan.changes, plan.obstacles, plan.warnings), (vec![], vec![], vec![]));
    assert!(plan.uses.iter().any(|line| line.contains("no subnet in xc")), "{:?}", plan.uses);
}

#[test]
fn what_the_configuration_names_is_used_and_never_changed() {
    let theirs = |ingress: &[Rule]| Group { is_ours: false, name: "theirs".into(), ..group(ingress) };
    let given = Given { subnets: set(&["subnet-b"]), groups: set(&["sg-1"]) };
    let wish = Wish { given, ..wish() };
    let closed = Found { groups: vec![theirs(&[])], ..fresh_account() };
    let blocked = plan(&closed, &wish).unwrap();
    assert_eq!(blocked.changes, []);
    assert!(blocked.obstacles[0].contains("lets in 198.51.100.7/32 to port 22"), "{:?}", blocked.obstacles);
    let everything = Rule {
        protocol: "-1".into(),
        ports: None,
        source: Source::Ipv4(cidr("0.0.0.0/0")),
        description: None,
    };
    let open = Found { groups: vec![theirs(&[everything])], ..fresh_account() };
    assert_eq!(plan(&open, &wish).unwrap().obstacles, [""; 0]);
    let elsewhere = Wish { zones: set(&["xa"]), ..wish };
    assert!(plan(&open, &elsewhere).unwrap().obstacles[0].contains("none of the pool's `subnets`"));
}

#[test]
fn names_that_do_not_fit_together_are_refused() {
    let mut found = fresh_account();
    found.vpcs.push(Vpc { is_default: false, ..vpc("vpc-2") });
    found.groups.push(Group { vpc: "vpc-2".into(), is_ours: false, ..group(&[]) });
    let ask = |subnets: &[&str], groups: &[&str]| {
        let given = Given { subnets: set(subnets), groups: set(groups) };
        plan(&found, &Wish { given, ..wish() }).unwrap_err().to_string()
    };
    assert!(ask(&["subnet-a"], &["sg-1"]).contains("`vpc-1`, `vpc-2`"));
    assert!(ask(&["subnet-z"], &[]).contains("`subnet-z`"));
    assert!(ask(&[], &["sg-z"]).contains("`sg-z`"));
}

#[test]
fn a_group_of_our_name_that_is_not_ours_is_left_alone() {
    let found = Found { groups: vec![Group { is_ours: false, ..group(&[]) }], ..fresh_account() };
    let error = plan(&found, &wish()).unwrap_err();
    assert!(matches!(&error, NetworkError::Namesake(id) if id == "sg-1"), "{error}");
}

#[test]
fn rules_that_are_no_longer_ours_go_and_other_brokers_and_a_persons_stay() {
    let ping = Rule { protocol: "icmp".into(), ports: Some((-1, -1)), ..of(US, "0.0.0.0/0") };
    let found = Found {
        groups: vec![group(&[
            of(US, "198.51.100.7/32"),
            of(US, "203.0.113.1/32"),
            of(OTHERS, "203.0.113.2/32"),
            Rule::ssh(cidr("203.0.113.3/32"), &Purpose::Init),
            Rule::ssh(cidr("203.0.113.4/32"), &Purpose::ByHand),
            Rule::ssh(cidr("172.31.0.0/16"), &Purpose::Vpc),
            Rule::ssh(cidr("10.0.0.0/16"), &Purpose::Vpc),
            Rule::among_members(),
            Rule { description: None, ..of(US, "0.0.0.0/0") },
            Rule { ports: Some((0, 65535)), ..of(OTHERS, "203.0.113.5/32") },
            ping,
        ])],
        ..fresh_account()
    };
    assert_eq!(
        planned(&found, &wish()),
        [
            "revoke tcp 22 from 203.0.113.1/32 in `sg-1`: this broker was there earlier",
            "revoke tcp 22 from 203.0.113.3/32 in `sg-1`: this machine was seen there earlier",
            "revoke tcp 22 from 203.0.113.4/32 in `sg-1`: an earlier `--address`",
            "revoke tcp 22 from 10.0.0.0/16 in `sg-1`: the VPC has that range no longer",
        ]
    );
    let warnings = plan(&found, &wish()).unwrap().warnings;
    assert_eq!(warnings.len(), 3);
    for (warning, words) in warnings.iter().zip(["tcp 22 from 0.0.0.0/0", "tcp 0-65535", "icmp"]) {
        assert!(warning.contains(words) && warning.contains("`sg-1`"), "{warning}");
    }
    // Who only needs the VPC leaves every way in from outside that a broker or a person asked for.
    let private = Wish { admit: None, inside: Inside::Vpc, ..wish() };
    assert_eq!(
        planned(&found, &private),
        ["revoke tcp 22 from 10.0.0.0/16 in `sg-1`: the VPC has that range no longer"]
    );
}

#[test]
fn a_broker_that_moves_takes_its_own_rule_along_and_no_other() {
    let home = cidr("203.0.113.1/32");
    let away = cidr("198.51.100.7/32");
    let admission =
        |group: &Group, broker: &str, address: Cidr| admission(group, broker, Some(address), Inside::Nobody);
    let two = group(&[of(US, "203.0.113.1/32"), of(OTHERS, "203.0.113.2/32")]);
    assert_eq!(admission(&two, US, home), Admission::default());
    let moved = admission(&two, US, away);
    assert_eq!(moved.authorize, [of(US, "198.51.100.7/32")]);
    assert_eq!(moved.revoke, [of(US, "203.0.113.1/32")]);
    // Behind the same address as another broker: EC2 takes no second rule for it.
    let together = admission(&two, US, cidr("203.0.113.2/32"));
    assert_eq!((together.authorize, together.revoke), (vec![], vec![of(US, "203.0.113.1/32")]));
    // What a person let in stays, and is enough where it is enough.
    let wide = group(&[Rule::ssh(cidr("203.0.113.0/28"), &Purpose::ByHand)]);
    assert_eq!(admission(&wide, US, home), Admission::default());
    assert_eq!(admission(&wide, US, away).revoke, []);
    // What `broker init` let in before there was a broker is the broker's to replace.
    let early = group(&[Rule::ssh(home, &Purpose::Init)]);
    assert_eq!(admission(&early, US, home), Admission::default());
    assert_eq!(admission(&early, US, away).revoke.len(), 1);
}

#[test]
fn removal_takes_what_is_ours_and_leaves_what_is_used() {
    let mut found = after(&Found::default(), &plan(&Found::default(), &wish()).unwrap().changes);
    found.vpcs.push(Vpc { is_default: false, ..vpc("vpc-theirs") });
    found.subnets.push(Subnet { vpc: "vpc-theirs".into(), ..subnet("subnet-t", "xa", "172.31.0.0/20") });
    found.groups.push(Group { id: "sg-theirs".into(), is_ours: false, ..group(&[]) });
    let lines =
        |found: &Found| -> Vec<String> { removal(found).changes.iter().map(ToString::to_string).collect() };
    assert_eq!(
        lines(&found),
        ["delete security group `sg-1`", "delete VPC `vpc-1`, with its subnets and internet gateway"]
    );
    let gone = after(&found, &removal(&found).changes);
    assert_eq!(removal(&gone), Plan::default());

    let tenant = Tenant {
        id: "i-1".into(),
        vpc: Some("vpc-1".into()),
        subnet: Some("subnet-a".into()),
        groups: set(&["sg-other"]),
    };
    found.instances.push(tenant.clone());
    assert_eq!(lines(&found), ["delete security group `sg-1`"]);
    assert!(removal(&found).obstacles[0].contains("VPC `vpc-1` stays: it has `i-1`"));
    found.instances.push(Tenant { groups: set(&["sg-1"]), ..tenant });
    assert_eq!(lines(&found), [""; 0]);
}

#[test]
fn a_subnet_of_ours_in_a_vpc_that_is_not_goes_alone() {
    let wish = Wish { zones: set(&["xa", "xb", "xc"]), ..wish() };
    let mut found = after(&fresh_account(), &plan(&fresh_account(), &wish).unwrap().changes);
    let removed: Vec<_> = removal(&found).changes;
    assert_eq!(
        removed,
        [
            Change::DeleteGroup { group: "sg-1".into() },
            Change::DeleteSubnet { subnet: "subnet-xc".into(), zone: "xc".into() },
        ]
    );
    assert_eq!(after(&found, &removed), fresh_account());
    found.instances.push(Tenant {
        id: "i-1".into(),
        vpc: Some("vpc-1".into()),
        subnet: Some("subnet-xc".into()),
        groups: set(&["sg-other"]),
    });
    let plan = removal(&found);
    assert_eq!(plan.changes.len(), 1);
    assert!(plan.obstacles[0].contains("subnet `subnet-xc` stays"), "{:?}", plan.obstacles);
}

#[test]
fn launches_use_what_init_made_and_say_so_when_there_is_nothing() {
    let given = Given::default();
    let error = fresh_account().network(&given, "eu-north-9").unwrap_err().to_string();
    assert!(error.contains("`broker init`") && error.contains("eu-north-9"), "{error}");
    let ready = after(&fresh_account(), &plan(&fresh_account(), &wish()).unwrap().changes);
    let network = ready.network(&given, "x").unwrap();
    assert_eq!((network.vpc.as_str(), network.groups), ("vpc-1", vec!["sg-1".to_owned()]));
    assert_eq!(network.subnets.len(), 2);
    let narrow = Given { subnets: set(&["subnet-b"]), ..Given::default() };
    let network = ready.network(&narrow, "x").unwrap();
    assert_eq!(network.subnets.iter().map(|subnet| subnet.id.as_str()).collect::<Vec<_>>(), ["subnet-b"]);
    assert!(Found::default().network(&given, "x").unwrap_err().to_string().contains("`broker init`"));
}
