//! The network of `broker init` and the sweep against moto: made, used, left when the address changes, removed.

use std::collections::{BTreeMap, BTreeSet};

use nix_broker::provider::ec2::api::Api;
use nix_broker::provider::ec2::network::{
    Change, Entrant, Given, Inside, Network, Wish, admit, entry, look, look_to_remove, perform, plan, removal,
};
use nix_broker::provider::ec2::sweep::{self, Kind, Which};

use super::moto::url;
use super::strings;

const US: &str = "0123456789abcdef0123456789abcdef";

fn wish(zones: &[&str]) -> Wish {
    Wish {
        given: Given::default(),
        zones: zones.iter().map(|zone| (*zone).to_owned()).collect(),
        admit: Some(Entrant::Seen("198.51.100.7/32".parse().unwrap())),
        inside: Inside::Vpc,
        broker: Some(US.to_owned()),
    }
}

async fn make(api: &Api, wish: &Wish) -> Vec<Change> {
    let planned = plan(&look(api, &wish.given).await.unwrap(), wish).unwrap();
    perform(api, &planned.changes, &mut |_| Ok(())).await.unwrap();
    planned.changes
}

async fn remove(api: &Api) -> Vec<Change> {
    let planned = removal(&look_to_remove(api).await.unwrap());
    assert_eq!(planned.obstacles, [""; 0]);
    perform(api, &planned.changes, &mut |_| Ok(())).await.unwrap();
    planned.changes
}

/// Ids of everything that a network is made of.
async fn inventory(api: &Api) -> BTreeSet<String> {
    let vpcs = api.vpcs(&[]).await.unwrap().into_iter().map(|vpc| vpc.id);
    let subnets = api.subnets(&[]).await.unwrap().into_iter().map(|subnet| subnet.id);
    let groups = api.security_groups(&[]).await.unwrap().into_iter().map(|group| group.id);
    vpcs.chain(subnets).chain(groups).collect()
}

#[tokio::test]
async fn what_is_made_is_found_follows_the_address_and_goes_without_a_trace() {
    let api = Api::at_endpoint(url(), "eu-west-3");
    let before = inventory(&api).await;
    let gone = api.subnets(&[("availability-zone", &strings(["eu-west-3b"]))]).await.unwrap().remove(0);
    api.delete_subnet(&gone.id).await.unwrap();
    let wish = wish(&["eu-west-3a", "eu-west-3b"]);
    assert_eq!(make(&api, &wish).await.len(), 4);
    assert_eq!(make(&api, &wish).await, []);

    let found = look(&api, &Given::default()).await.unwrap();
    let group = found.groups.iter().find(|group| group.is_ours).unwrap().id.clone();
    admit(&api, std::slice::from_ref(&group), US, Some([203, 0, 113, 9].into()), Inside::Nobody)
        .await
        .unwrap();
    let seen = api.security_groups(&[("group-id", &[group])]).await.unwrap().remove(0);
    let sources: BTreeSet<_> = seen.ingress.iter().map(|rule| rule.source.as_str()).collect();
    assert_eq!(sources, BTreeSet::from(["172.31.0.0/16", "203.0.113.9/32"]));

    assert_eq!(remove(&api).await.len(), 2);
    let mut left = before;
    left.remove(&gone.id);
    assert_eq!(inventory(&api).await, left);
}

#[tokio::test]
async fn builders_are_let_in_to_each_other_found_to_be_and_removed_with_their_group() {
    let api = Api::at_endpoint(url(), "eu-south-1");
    let before = inventory(&api).await;
    // As an earlier version made it.
    let alone = Wish { inside: Inside::Nobody, ..wish(&[]) };
    assert_eq!(make(&api, &alone).await.len(), 2);
    let found = look(&api, &Given::default()).await.unwrap();
    let group = found.groups.iter().find(|group| group.is_ours).unwrap().clone();
    let network = Network { vpc: group.vpc, subnets: found.subnets, groups: vec![group.id] };
    assert!(!entry(&api, &network, None).await.unwrap().members);

    let wish = Wish { inside: Inside::Members, ..alone };
    let changes: Vec<_> = make(&api, &wish).await.iter().map(ToString::to_string).collect();
    assert_eq!(changes, [format!("authorize tcp 22 from the group itself in `{}`", network.groups[0])]);
    assert!(entry(&api, &network, None).await.unwrap().members);
    assert_eq!(make(&api, &wish).await, []);
    // Another broker asks for it at the same time.
    api.authorize_members(&network.groups[0], "nix-broker builders").await.unwrap();
    let address = Some([198, 51, 100, 7].into());
    admit(&api, &network.groups, US, address, Inside::Members).await.unwrap();
    let seen = api.security_groups(&[("group-id", &network.groups)]).await.unwrap().remove(0);
    let rules: BTreeSet<_> = seen.ingress.iter().map(|rule| (&*rule.source, &*rule.description)).collect();
    let ours = format!("nix-broker {US}");
    let wanted = [(&*seen.id, "nix-broker builders"), ("198.51.100.7/32", &ours)];
    assert_eq!((rules, seen.ingress.len()), (BTreeSet::from(wanted), 2));

    assert_eq!(remove(&api).await.len(), 1);
    assert_eq!(inventory(&api).await, before);
}

#[tokio::test]
async fn a_default_vpc_is_made_whole_and_unmade_whole() {
    let api = Api::at_endpoint(url(), "eu-north-1");
    let vpc = api.vpcs(&[]).await.unwrap().remove(0).id;
    for subnet in api.subnets(&[]).await.unwrap() {
        api.delete_subnet(&subnet.id).await.unwrap();
    }
    for gateway in api.internet_gateways(&vpc).await.unwrap() {
        api.delete_internet_gateway(&gateway, &vpc).await.unwrap();
    }
    api.delete_vpc(&vpc).await.unwrap();
    assert_eq!(api.vpcs(&[]).await.unwrap(), []);

    make(&api, &wish(&["eu-north-1a"])).await;
    let found = look(&api, &Given::default()).await.unwrap();
    assert!(found.vpcs.iter().all(|vpc| vpc.is_default && vpc.is_ours), "{found:?}");
    assert_eq!(make(&api, &wish(&["eu-north-1a"])).await, []);
    remove(&api).await;
    assert_eq!(api.vpcs(&[]).await.unwrap(), []);
}

#[tokio::test]
async fn the_sweep_ends_what_carries_the_tag() {
    let api = Api::at_endpoint(url(), "ap-southeast-1");
    let mut order = super::moto::order(&api, "swept").await;
    order.tags = BTreeMap::from([
        ("ManagedBy".to_owned(), "nix-broker".to_owned()),
        ("nix-broker:expires-at".to_owned(), "2026-01-01T00:00:00Z".to_owned()),
    ]);
    let ours = api.run_instance(&order).await.unwrap();
    order.tags.clear();
    order.tags.insert("Name".to_owned(), "somebody's".to_owned());
    let theirs = api.run_instance(&order).await.unwrap();
    let strays = sweep::look(&api).await.unwrap();
    let instances: Vec<_> = strays.iter().filter(|stray| stray.kind == Kind::Instance).collect();
    assert_eq!(instances.len(), 1);
    assert_eq!(instances[0].id, ours.id);
    let now = u64::try_from(ours.launch_time).unwrap() + 10_000_000_000;
    assert!(sweep::is_chosen(instances[0], &Which::Expired, now));
    assert_eq!(sweep::end(&api, &strays).await, BTreeMap::new());
    let running = api.instances(&[("instance-state-name", &strings(["running"]))]).await.unwrap();
    assert_eq!(running.iter().map(|instance| &instance.id).collect::<Vec<_>>(), [&theirs.id]);
    assert!(api.regions().await.unwrap().contains(&"ap-southeast-1".to_owned()));
}
