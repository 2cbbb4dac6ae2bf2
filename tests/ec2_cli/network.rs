//! What launches use of the network that `broker init` makes, and how a broker follows its own address.

use std::net::Ipv4Addr;

use nix_broker::config::{self, Defaults};
use nix_broker::model::{Ec2Spec, ProviderSpec};
use nix_broker::provider::ec2::api::Api;
use nix_broker::provider::ec2::network::{Inside, NetworkError, admit, find};

use super::{BROKER, Desk, ONE_POOL, OTHER_BROKER, REGION};
use crate::fake_ec2::Fault;

/// The one pool of this configuration.
fn spec(extra: &str) -> Ec2Spec {
    let text = format!("{ONE_POOL}{extra}");
    let config = config::parse(&text, &Defaults::here(), &|_| Err(std::io::ErrorKind::NotFound.into()));
    match config.unwrap().pools.remove(0).provider {
        ProviderSpec::Ec2(spec) => spec,
        ProviderSpec::Local(_) | ProviderSpec::Hosts(_) => panic!("not a pool on EC2"),
    }
}

fn rules(desk: &Desk) -> Vec<String> {
    desk.fake.network(REGION).into_iter().filter(|line| line.starts_with("nix-broker ")).collect()
}

fn rule(address: &str, broker: &str) -> String {
    format!("nix-broker tcp 22-22 {address}/32 (nix-broker {broker})")
}

/// 203.0.113 of this number.
fn at(host: u8) -> Option<Ipv4Addr> {
    Some([203, 0, 113, host].into())
}

/// A network as a version made it that let nobody in to builders but brokers.
fn made() -> (Desk, Api) {
    let alone = ONE_POOL.replace("[pool.ec2]", "direct = false\n[pool.ec2]");
    let desk = Desk::new(&alone).with_broker(BROKER);
    desk.run(&["init", "--yes"]).ended(0);
    let api = Api::over(desk.fake.wire(), REGION, 1);
    (desk, api)
}

#[tokio::test]
async fn a_launch_finds_what_init_made_or_says_that_there_is_nothing() {
    let desk = Desk::new(ONE_POOL);
    let api = Api::over(desk.fake.wire(), REGION, 1);
    let error = find(&api, &spec("")).await.unwrap_err();
    assert!(
        matches!(error, NetworkError::Nothing { .. }) && error.to_string().contains("`broker init`"),
        "{error}"
    );
    desk.run(&["init", "--yes"]).ended(0);
    let network = find(&api, &spec("")).await.unwrap();
    assert_eq!(network.subnets.len(), 3);
    assert_eq!(network.groups.len(), 1);
    let one = format!("subnets = [\"{}\"]\n", network.subnets[1].id);
    assert_eq!(find(&api, &spec(&one)).await.unwrap().subnets, [network.subnets[1].clone()]);
    let none = spec("subnets = [\"subnet-0123456789abcdef0\"]\n");
    let error = find(&api, &none).await.unwrap_err().to_string();
    assert!(error.contains("`subnet-0123456789abcdef0`"), "{error}");
}

#[tokio::test]
async fn two_brokers_share_a_group_and_follow_their_own_addresses() {
    let (desk, api) = made();
    let groups = find(&api, &spec("")).await.unwrap().groups;
    admit(&api, &groups, OTHER_BROKER, at(9), Inside::Nobody).await.unwrap();
    admit(&api, &groups, BROKER, at(77), Inside::Nobody).await.unwrap();
    assert_eq!(rules(&desk), [rule("203.0.113.9", OTHER_BROKER), rule("203.0.113.77", BROKER)]);
    let deeds = desk.deeds();
    admit(&api, &groups, BROKER, at(77), Inside::Nobody).await.unwrap();
    assert_eq!(desk.deeds(), deeds, "nothing to do");
    // Behind the same address there is one rule, whoever made it.
    admit(&api, &groups, OTHER_BROKER, at(77), Inside::Nobody).await.unwrap();
    assert_eq!(rules(&desk), [rule("203.0.113.77", BROKER)]);
}

#[tokio::test]
async fn a_rule_that_was_made_in_spite_of_a_lost_answer_is_no_error() {
    let (desk, api) = made();
    let groups = find(&api, &spec("")).await.unwrap().groups;
    desk.fake.faults(|faults| {
        faults.plan("AuthorizeSecurityGroupIngress", 1, Fault::LostAfter);
        faults.plan("RevokeSecurityGroupIngress", 1, Fault::LostAfter);
    });
    admit(&api, &groups, BROKER, at(77), Inside::Nobody).await.unwrap();
    assert_eq!(rules(&desk), [rule("203.0.113.77", BROKER)]);
}

#[tokio::test]
async fn a_launch_lets_builders_in_to_each_other_whether_its_address_is_known_or_not() {
    for address in [None, at(77)] {
        let (desk, api) = made();
        let groups = find(&api, &spec("")).await.unwrap().groups;
        desk.fake.faults(|faults| faults.plan("AuthorizeSecurityGroupIngress", 1, Fault::LostAfter));
        admit(&api, &groups, BROKER, address, Inside::Members).await.unwrap();
        let within = format!("nix-broker tcp 22-22 {} (nix-broker builders)", groups[0]);
        let (here, there) = (rule("198.51.100.7", BROKER), rule("203.0.113.77", BROKER));
        let expected = if address.is_some() { vec![there, within] } else { vec![here, within] };
        assert_eq!(rules(&desk), expected);
        let deeds = desk.deeds();
        admit(&api, &groups, BROKER, address, Inside::Members).await.unwrap();
        // A broker whose builders need it not leaves it to those that do.
        admit(&api, &groups, BROKER, address, Inside::Nobody).await.unwrap();
        assert_eq!(desk.deeds(), deeds, "nothing to do");
    }
}

#[tokio::test]
async fn a_persons_group_is_left_alone() {
    let (desk, api) = made();
    let deeds = desk.deeds();
    admit(&api, &[desk.fake.default_group(REGION)], BROKER, at(77), Inside::Members).await.unwrap();
    assert_eq!(desk.deeds(), deeds);
}

#[test]
fn init_goes_on_where_a_lost_answer_left_it() {
    let desk = Desk::new(ONE_POOL).with_broker(BROKER);
    desk.fake.faults(|faults| faults.plan("CreateSecurityGroup", 1, Fault::LostAfter));
    let words = desk.run(&["init", "--yes"]).ended(1);
    assert!(words.contains("CreateSecurityGroup"), "{words}");
    assert_eq!(rules(&desk), [""; 0]);
    desk.run(&["init", "--yes"]).ended(0);
    assert_eq!(rules(&desk).last(), Some(&rule("198.51.100.7", BROKER)));
    assert_eq!(desk.fake.seen_of("CreateSecurityGroup").len(), 1, "the one that was made is used");
}
