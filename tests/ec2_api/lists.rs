//! Lists, the network, and dry runs.

use std::collections::BTreeMap;

use nix_broker::provider::ec2::api::{Action, Api, DryRunAbout, ErrorClass, Permission};
use nix_broker::provider::ec2::permissions::need;

use super::{REGION, order, simulated, strings};
use crate::fake_ec2::{EPOCH, Fault, Refusal};

#[tokio::test(start_paused = true)]
async fn the_owners_images_of_one_architecture_are_found_by_name() {
    let (fake, api) = simulated();
    fake.add_image(
        "111111111111",
        "nixos/26.05.9999.impostor-x86_64-linux",
        "x86_64",
        "2026-11-20T00:00:00.000Z",
    );
    let mut images = api.images("427812963091", "nixos/26.05*", "x86_64").await.unwrap();
    images.sort_by(|a, b| a.creation_date.cmp(&b.creation_date));
    let names: Vec<_> = images.iter().map(|image| image.name.as_str()).collect();
    assert_eq!(
        names,
        ["nixos/26.05.1234.bbbbbbbbbbbb-x86_64-linux", "nixos/26.05.1301.cccccccccccc-x86_64-linux"]
    );
    let newest = images.pop().unwrap();
    assert!(newest.is_available && newest.imds_v2);
    assert_eq!(
        (newest.arch.as_str(), newest.root_device.as_str(), newest.root_size),
        ("x86_64", "/dev/xvda", 3)
    );
    assert_eq!(api.image(&newest.id).await.unwrap(), newest);

    fake.remove_image(&newest.id);
    let gone = api.image(&newest.id).await.unwrap_err();
    assert!(gone.is_image_gone() && gone.class == ErrorClass::Config, "{gone}");
    assert!(api.images("427812963091", "debian*", "x86_64").await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn types_are_described_a_hundred_at_a_time_and_by_pattern() {
    let (fake, api) = simulated();
    fake.settings(|settings| settings.page = 33);
    let all = api.type_facts(&strings(["c*", "m*", "r*"])).await.unwrap();
    assert!(all.len() > 200, "{}", all.len());
    let names: Vec<String> = all.iter().take(150).map(|kind| kind.name.clone()).collect();
    let named = api.type_facts(&names).await.unwrap();
    assert_eq!(named.len(), 150);

    let facts = |name: &str| all.iter().find(|kind| kind.name == name).unwrap().clone();
    let (c6a, c7i, c7g) = (facts("c6a.4xlarge"), facts("c7i.4xlarge"), facts("c7g.4xlarge"));
    assert_eq!((c6a.vcpus, c6a.cores, c6a.memory_mib), (16, 8, 32768));
    assert!(!c6a.nested_virt && c7i.nested_virt && !c7i.bare_metal);
    assert!(c6a.hibernation && c6a.spot);
    assert_eq!((c7g.arch, c7g.cores), (strings(["arm64"]), 16));
    assert!(facts("c6id.4xlarge").nvme_gb > 900);
    assert_eq!(c6a.nvme_gb, 0);

    let error = api.type_facts(&strings(["c6a.large", "q9.large"])).await.unwrap_err();
    assert_eq!((error.class, error.code.as_deref()), (ErrorClass::Config, Some("InvalidInstanceType")));
    assert!(api.type_facts(&[]).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn offerings_and_spot_prices_are_per_zone() {
    let (fake, api) = simulated();
    fake.settings(|settings| settings.page = 4);
    let types = strings(["c6a.large", "c8a.large"]);
    let offers = api.offerings(&types).await.unwrap();
    let pair = |zone: &str, kind: &str| (format!("{REGION}{zone}"), kind.to_owned());
    assert_eq!(offers.len(), 5);
    assert!(offers.contains(&pair("c", "c6a.large")) && !offers.contains(&pair("c", "c8a.large")));

    let prices = api.spot_prices(&types, EPOCH).await.unwrap();
    assert_eq!(prices.len(), 5);
    let price = |zone: &str| {
        let here = |offer: &&nix_broker::provider::ec2::api::SpotOffer| {
            offer.zone.ends_with(zone) && offer.instance_type == "c6a.large"
        };
        prices.iter().find(here).unwrap().price.0.micros()
    };
    // 35 and 37 percent of 0.0765 dollars.
    assert_eq!((price("a"), price("b")), (26_775, 28_305));
    assert_eq!(
        fake.seen_of("DescribeSpotPriceHistory")[0].form.get("StartTime"),
        Some("2026-11-21T00:00:00Z")
    );
    assert!(api.offerings(&[]).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_security_group_lives_and_is_busy_while_it_is_used() {
    let (fake, api) = simulated();
    let tags = BTreeMap::from([("nix-broker:broker".to_owned(), "b-1".to_owned())]);
    let vpc = api.vpcs(&[("is-default", &strings(["true"]))]).await.unwrap().remove(0);
    assert_eq!((vpc.cidrs.as_slice(), vpc.is_default), (&["172.31.0.0/16".to_owned()][..], true));
    let group = api.create_security_group(&vpc.id, "nix-broker", "SSH from the broker", &tags).await.unwrap();
    let twice = api.create_security_group(&vpc.id, "nix-broker", "again", &tags).await.unwrap_err();
    assert_eq!(twice.code.as_deref(), Some("InvalidGroup.Duplicate"));

    api.authorize_ingress(&group, "198.51.100.7/32", "this broker").await.unwrap();
    api.authorize_ingress(&group, "198.51.100.7/32", "this broker").await.unwrap();
    api.authorize_ingress(&group, "198.51.100.8/32", "moved").await.unwrap();
    api.revoke_ingress(&group, "198.51.100.7/32").await.unwrap();
    api.revoke_ingress(&group, "198.51.100.7/32").await.unwrap();
    let seen = api.security_groups(&[("tag:nix-broker:broker", &strings(["b-1"]))]).await.unwrap().remove(0);
    assert_eq!((&seen.id, seen.name.as_str(), &seen.vpc, &seen.tags), (&group, "nix-broker", &vpc.id, &tags));
    let [rule] = seen.ingress.as_slice() else { panic!("{:?}", seen.ingress) };
    assert_eq!((rule.protocol.as_str(), rule.from_port, rule.to_port), ("tcp", 22, 22));
    assert_eq!((rule.source.as_str(), rule.description.as_str()), ("198.51.100.8/32", "moved"));

    let mut order = order(&fake, "token-1");
    order.security_groups = vec![group.clone()];
    let id = api.run_instance(&order).await.unwrap().id;
    let busy = api.delete_security_group(&group).await.unwrap_err();
    assert_eq!(busy.class, ErrorClass::Busy);
    assert!(busy.to_string().contains("still uses it"), "{busy}");
    assert!(api.terminate(std::slice::from_ref(&id)).await[&id].is_ok());
    tokio::time::sleep(std::time::Duration::from_secs(31)).await;
    api.delete_security_group(&group).await.unwrap();
    api.delete_security_group(&group).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn subnets_volumes_and_zones_are_found_made_and_removed() {
    let (fake, api) = simulated();
    let (vpc, _) = fake.default_network(REGION);
    let tags = BTreeMap::from([("nix-broker:broker".to_owned(), "b-1".to_owned())]);
    let zones = api.zones().await.unwrap();
    assert_eq!(zones.iter().filter(|zone| zone.is_available).count(), 3);
    let defaults =
        api.subnets(&[("vpc-id", &strings([&vpc])), ("default-for-az", &strings(["true"]))]).await.unwrap();
    assert_eq!(defaults.len(), 3);
    assert!(
        defaults.iter().all(|subnet| subnet.free_addresses == 4091 && subnet.public_ip && subnet.is_default)
    );

    let id = api.create_subnet(&vpc, &zones[1].name, "172.31.200.0/24", &tags).await.unwrap();
    let conflict = api.create_subnet(&vpc, &zones[1].name, "172.31.200.128/25", &tags).await.unwrap_err();
    assert_eq!(conflict.code.as_deref(), Some("InvalidSubnet.Conflict"));
    let made = api.subnets(&[("subnet-id", &strings([&id]))]).await.unwrap().remove(0);
    assert_eq!((made.zone, made.cidr.as_str(), made.tags), (zones[1].name.clone(), "172.31.200.0/24", tags));
    api.delete_subnet(&id).await.unwrap();
    api.delete_subnet(&id).await.unwrap();

    let left = fake.add_volume(REGION, "eu-central-1a", &[("nix-broker:broker", "b-1")]);
    let running = api.run_instance(&order(&fake, "token-1")).await.unwrap().id;
    let volumes = api.volumes(&[("tag:nix-broker:broker", &strings(["b-1"]))]).await.unwrap();
    assert_eq!(volumes.len(), 2);
    let used = volumes.iter().find(|volume| !volume.is_available).unwrap();
    assert_eq!(used.size, 120);
    assert_eq!(api.delete_volume(&used.id).await.unwrap_err().class, ErrorClass::Busy);
    api.delete_volume(&left).await.unwrap();
    api.delete_volume(&left).await.unwrap();
    assert!(api.terminate(std::slice::from_ref(&running)).await[&running].is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_default_vpc_is_made_whole_and_taken_apart_in_order() {
    let (fake, api) = simulated();
    assert_eq!(api.regions().await.unwrap(), ["eu-central-1", "eu-west-1", "us-east-1"]);
    assert_eq!(api.create_default_vpc().await.unwrap_err().code.as_deref(), Some("DefaultVpcAlreadyExists"));
    fake.forget_default_vpc(REGION);
    let vpc = api.create_default_vpc().await.unwrap();
    let subnets = api.subnets(&[("vpc-id", &strings([&vpc]))]).await.unwrap();
    assert_eq!(subnets.len(), 3);
    assert_eq!(api.delete_vpc(&vpc).await.unwrap_err().class, ErrorClass::Busy);
    for subnet in subnets {
        api.delete_subnet(&subnet.id).await.unwrap();
    }
    let gateways = api.internet_gateways(&vpc).await.unwrap();
    assert_eq!(gateways.len(), 1);
    assert_eq!(api.delete_vpc(&vpc).await.unwrap_err().class, ErrorClass::Busy);
    api.delete_internet_gateway(&gateways[0], &vpc).await.unwrap();
    api.delete_internet_gateway(&gateways[0], &vpc).await.unwrap();
    api.delete_vpc(&vpc).await.unwrap();
    api.delete_vpc(&vpc).await.unwrap();
    assert!(api.vpcs(&[]).await.unwrap().is_empty());
    assert!(api.security_groups(&[]).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_made_is_not_made_again() {
    let (fake, api) = simulated();
    let (vpc, _) = fake.default_network(REGION);
    let tags = BTreeMap::new();
    fake.faults(|faults| faults.plan("CreateSecurityGroup", 1, Fault::LostAfter));
    let lost = api.create_security_group(&vpc, "nix-broker", "", &tags).await.unwrap_err();
    assert!(lost.may_have_acted && lost.class == ErrorClass::Transient, "{lost}");
    assert_eq!(fake.seen().len(), 1);
    // A throttled request surely did nothing.
    fake.faults(|faults| faults.plan("CreateSubnet", 2, Fault::throttle()));
    api.create_subnet(&vpc, "eu-central-1a", "172.31.201.0/24", &tags).await.unwrap();
    assert_eq!(fake.seen_of("CreateSubnet").len(), 3);
}

fn about(fake: &crate::fake_ec2::FakeEc2) -> DryRunAbout {
    DryRunAbout { order: order(fake, "dry"), instance: None, vpc: None, volume: None }
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_of_every_action_is_allowed_or_names_what_is_missing_and_changes_nothing() {
    let (fake, api) = simulated();
    let about = about(&fake);
    // What only `broker image` does it asks about by itself.
    let used = Action::ALL.iter().filter(|action| need(**action).by_broker || need(**action).by_init);
    for action in used {
        assert_eq!(api.dry_run(*action, &about).await.unwrap(), Permission::Allowed, "{action}");
        fake.faults(|faults| faults.deny(action.name()));
        let Permission::Denied { reason } = api.dry_run(*action, &about).await.unwrap() else {
            panic!("{action} is not denied");
        };
        assert!(reason.contains(&format!("ec2:{action}")) && !reason.contains("x7Yq"), "{reason}");
        let asked = fake.seen_of(action.name());
        assert!(asked.iter().all(|seen| seen.form.get("DryRun") == Some("true")), "{action}");
    }
    assert!(fake.instances().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_that_says_nothing_is_unclear_and_one_without_an_identity_an_error() {
    let (fake, api) = simulated();
    let about = about(&fake);
    let unknown = Refusal::new(400, "InvalidInstanceID.NotFound", "The instance ID does not exist");
    fake.faults(|faults| faults.plan("StopInstances", 1, Fault::Refuse(unknown)));
    let answer = api.dry_run(Action::StopInstances, &about).await.unwrap();
    assert!(matches!(answer, Permission::Unclear { reason, .. } if reason.contains("does not exist")));

    let stranger = Api::over(fake.wire(), "xx-nowhere-1", 1);
    let error = stranger.dry_run(Action::DescribeVpcs, &about).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Identity);
    assert!(error.to_string().contains("`xx-nowhere-1` is not enabled"), "{error}");
}
