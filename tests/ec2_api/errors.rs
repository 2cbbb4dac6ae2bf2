//! Refusals, faults and silence: each class of error, what is sent again, and what a person reads.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use nix_broker::model::ec2::Market;
use nix_broker::model::{HourlyRate, Usd};
use nix_broker::provider::ec2::api::{Api, ApiError, ErrorClass, RunOrder};
use nix_broker::provider::ec2::quota::{Quota, QuotaFamily};
use tokio::time::Instant;

use super::{REGION, order, simulated};
use crate::fake_ec2::{FakeEc2, Fault, Refusal};

/// What a launch that has to fail says, and how often it was asked for.
async fn refused(fake: &FakeEc2, api: &Api, order: &RunOrder) -> (ApiError, usize) {
    let before = fake.seen().len();
    let error = api.run_instance(order).await.unwrap_err();
    (error, fake.seen().len() - before)
}

#[tokio::test(start_paused = true)]
async fn a_lack_of_capacity_is_asked_for_once_though_it_is_an_internal_error_by_its_status() {
    let (fake, api) = simulated();
    fake.faults(|faults| faults.shortage("c6a.*", "*a", Some(Market::OnDemand), None));
    let order = order(&fake, "token-1");
    let (error, calls) = refused(&fake, &api, &order).await;
    assert_eq!((error.class, error.status, calls), (ErrorClass::Capacity, Some(500), 1));
    assert!(!error.may_have_acted);
    let shown = error.to_string();
    assert!(
        shown.starts_with("RunInstances of c6a.4xlarge (on-demand) in eu-central-1a fails: Insuff"),
        "{shown}"
    );

    let spot = RunOrder { market: Market::Spot, client_token: "token-2".into(), ..order };
    api.run_instance(&spot).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_other_reason_not_to_launch_has_its_class() {
    let (fake, api) = simulated();
    let base = order(&fake, "token-1");
    let with = |change: &dyn Fn(&mut RunOrder)| {
        let mut order = base.clone();
        change(&mut order);
        order
    };
    let (_, subnets) = fake.default_network(REGION);
    let arm =
        fake.add_image("427812963091", "nixos/26.05.1-aarch64-linux", "arm64", "2026-11-15T00:00:00.000Z");
    for (order, class, words) in [
        (with(&|order| order.image = "ami-0".into()), ErrorClass::Config, "InvalidAMIID.NotFound"),
        (with(&|order| order.image.clone_from(&arm)), ErrorClass::Config, "does not match the architecture"),
        (with(&|order| order.subnet = "subnet-0".into()), ErrorClass::Config, "InvalidSubnetID.NotFound"),
        (
            with(&|order| order.security_groups = vec!["sg-0".into()]),
            ErrorClass::Config,
            "InvalidGroup.NotFound",
        ),
        (with(&|order| order.user_data = "x".repeat(20_000)), ErrorClass::Config, "16 KB"),
        (
            with(&|order| {
                order.instance_type = "c8a.large".into();
                order.subnet.clone_from(&subnets[2].1);
            }),
            ErrorClass::Capacity,
            "not supported in your requested Availability Zone",
        ),
        (
            with(&|order| {
                order.market = Market::Spot;
                order.max_price = Some(HourlyRate(Usd::from_micros(1000)));
            }),
            ErrorClass::Capacity,
            "SpotMaxPriceTooLow",
        ),
    ] {
        let (error, calls) = refused(&fake, &api, &order).await;
        assert_eq!((error.class, calls), (class, 1), "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(!error.may_have_acted, "{error}");
    }
    fake.faults(|faults| faults.no_spot_role = true);
    let (error, _) = refused(&fake, &api, &with(&|order| order.market = Market::Spot)).await;
    assert_eq!(error.class, ErrorClass::SpotRole);
    assert!(error.to_string().contains("create-service-linked-role"), "{error}");
    assert!(fake.instances().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_full_subnet_is_a_matter_of_the_subnet() {
    let (fake, api) = simulated();
    let (vpc, _) = fake.default_network(REGION);
    let tags = std::collections::BTreeMap::new();
    let small = api.create_subnet(&vpc, "eu-central-1a", "172.31.250.0/28", &tags).await.unwrap();
    let order = |token: String| RunOrder { subnet: small.clone(), ..order(&fake, &token) };
    for index in 0..11 {
        api.run_instance(&order(format!("token-{index}"))).await.unwrap();
    }
    let error = api.run_instance(&order("one-more".into())).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Subnet);
    assert!(error.to_string().contains("no free address"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_quota_is_named_with_its_code_and_where_to_raise_it() {
    let (fake, api) = simulated();
    fake.faults(|faults| {
        faults.quota(Market::OnDemand, 16);
        faults.quota(Market::Spot, 0);
    });
    api.run_instance(&order(&fake, "token-1")).await.unwrap();
    let (error, calls) = refused(&fake, &api, &order(&fake, "token-2")).await;
    assert_eq!((error.class, calls), (ErrorClass::Quota(Quota::OnDemand(QuotaFamily::Standard)), 1));
    let shown = error.to_string();
    let place =
        "https://eu-central-1.console.aws.amazon.com/servicequotas/home/services/ec2/quotas/L-1216C47A";
    assert!(shown.contains(place) && shown.contains("on-demand standard"), "{shown}");

    let spot = RunOrder { market: Market::Spot, ..order(&fake, "token-3") };
    let (error, _) = refused(&fake, &api, &spot).await;
    assert_eq!(error.class, ErrorClass::Quota(Quota::Spot(QuotaFamily::Standard)));
    assert!(error.to_string().contains("L-34B43A08"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_missing_permission_is_named_and_its_secret_message_is_not_shown() {
    let (fake, api) = simulated();
    fake.faults(|faults| faults.deny("RunInstances"));
    let (error, calls) = refused(&fake, &api, &order(&fake, "token-1")).await;
    assert_eq!((error.class, calls), (ErrorClass::Identity, 1));
    let shown = error.to_string();
    assert!(shown.contains("`ec2:RunInstances`") && shown.contains("broker doctor --aws"), "{shown}");
    assert!(!shown.contains("x7Yq") && shown.len() < 900, "{shown}");
}

#[tokio::test(start_paused = true)]
async fn identities_that_ended_or_are_unknown_say_what_to_do() {
    let (fake, api) = simulated();
    for (code, words) in [
        ("ExpiredToken", "aws sso login"),
        ("RequestExpired", "the clock of this machine"),
        ("SignatureDoesNotMatch", "secret key"),
        ("AuthFailure", "`eu-central-1` is not enabled"),
        ("OptInRequired", "not signed up"),
    ] {
        fake.faults(|faults| faults.plan("*", 1, Fault::Refuse(Refusal::new(401, code, "no"))));
        let error = api.instances(&[]).await.unwrap_err();
        assert_eq!((error.class, error.code.as_deref()), (ErrorClass::Identity, Some(code)));
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(error.request_id.as_deref(), Some("99999999-8888-7777-6666-555555555555"));
    }
    assert_eq!(fake.seen().len(), 5, "none is asked for again");
}

#[tokio::test(start_paused = true)]
async fn throttling_is_waited_out_with_pauses_that_differ() {
    let (fake, api) = simulated();
    fake.faults(|faults| faults.plan("DescribeInstances", 3, Fault::throttle()));
    let start = Instant::now();
    api.instances(&[]).await.unwrap();
    assert!(start.elapsed() > Duration::from_secs(3) && start.elapsed() < Duration::from_secs(20));
    let moments: Vec<Duration> = fake.seen().iter().map(|seen| seen.at).collect();
    let pauses: BTreeSet<Duration> = moments.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!((moments.len(), pauses.len()), (4, 3), "{moments:?}");
}

#[tokio::test(start_paused = true)]
async fn everybody_waits_when_an_action_is_throttled_and_other_actions_do_not() {
    let (fake, api) = simulated();
    fake.faults(|faults| faults.plan("DescribeInstances", 1, Fault::throttle()));
    let first = tokio::spawn({
        let api = api.clone();
        async move { api.instances(&[]).await }
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    let start = Instant::now();
    api.vpcs(&[]).await.unwrap();
    assert!(start.elapsed() < Duration::from_millis(10));
    api.instances(&[]).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(900));
    first.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn many_callers_of_a_small_bucket_all_get_their_turn() {
    let (fake, api) = simulated();
    fake.faults(|faults| faults.throttle("DescribeInstances", 3.0, 4.0));
    let calls = (0..12).map(|_| {
        let api = api.clone();
        tokio::spawn(async move { api.instances(&[]).await })
    });
    let calls: Vec<_> = calls.collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn trouble_that_lasts_is_told_after_five_attempts_and_may_have_done_it() {
    for (fault, acted) in [
        (Fault::internal(), true),
        (Fault::LostBefore, true),
        (Fault::html(503), true),
        (Fault::Refused, false),
        (Fault::throttle(), false),
    ] {
        let (fake, api) = simulated();
        fake.faults(|faults| faults.plan("*", 1000, fault.clone()));
        let (error, calls) = refused(&fake, &api, &order(&fake, "token-1")).await;
        assert_eq!(calls, 5, "{error}");
        assert!(matches!(error.class, ErrorClass::Transient | ErrorClass::Throttle), "{error}");
        assert_eq!(error.may_have_acted, acted, "{fault:?}: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_attempt_may_have_done_no_later_refusal_takes_back() {
    let expired = Fault::Refuse(Refusal::new(400, "ExpiredToken", "expired"));
    for (first, later, class, acted) in [
        (Fault::LostAfter, Fault::throttle(), ErrorClass::Throttle, true),
        (Fault::LostAfter, expired.clone(), ErrorClass::Identity, true),
        (Fault::LostAfter, Fault::Refused, ErrorClass::Transient, true),
        (Fault::throttle(), expired, ErrorClass::Identity, false),
        (Fault::throttle(), Fault::Refused, ErrorClass::Transient, false),
    ] {
        let (fake, api) = simulated();
        fake.faults(|faults| {
            faults.plan("RunInstances", 1, first);
            faults.plan("RunInstances", 1000, later);
        });
        let (error, _) = refused(&fake, &api, &order(&fake, "token-1")).await;
        assert_eq!((error.class, error.may_have_acted), (class, acted), "{error}");
        assert_eq!(fake.instances().len(), usize::from(acted), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_bounded_and_a_late_launch_is_the_same_launch() {
    let (fake, api) = simulated();
    fake.faults(|faults| faults.plan("RunInstances", 1, Fault::Slow(Duration::from_secs(3600))));
    let start = Instant::now();
    let seen = api.run_instance(&order(&fake, "token-1")).await.unwrap();
    assert!(start.elapsed() > Duration::from_secs(30) && start.elapsed() < Duration::from_secs(40));
    assert_eq!(fake.instances().iter().map(|instance| &instance.id).collect::<Vec<_>>(), [&seen.id]);

    fake.faults(|faults| faults.plan("RunInstances", 1000, Fault::Slow(Duration::from_secs(3600))));
    let start = Instant::now();
    let error = api.run_instance(&order(&fake, "token-2")).await.unwrap_err();
    assert!(start.elapsed() <= Duration::from_secs(100), "{:?}", start.elapsed());
    assert_eq!(error.class, ErrorClass::Transient);
    assert!(error.may_have_acted && error.to_string().contains("no answer in time"), "{error}");
    assert_eq!(fake.instances().len(), 2, "it has: the caller has to look");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_not_ec2_is_told_so() {
    let (fake, api) = simulated();
    let not_xml = Fault::Garbage { status: 200, body: "{\"hello\": \"world\"}".into() };
    let nothing = Fault::Garbage { status: 200, body: String::new() };
    let other = "<?xml version=\"1.0\"?><ListBucketResult/>".to_owned();
    let other = Fault::Garbage { status: 200, body: other };
    for (fault, words) in [
        (Fault::html(200), "an HTML page"),
        (Fault::html(404), "an HTML page"),
        (Fault::html(500), "an HTML page"),
        (not_xml, "not EC2's XML"),
        (nothing, "an empty answer"),
        (other, "not EC2's XML"),
    ] {
        fake.faults(|faults| faults.plan("*", 1, fault));
        let (error, calls) = refused(&fake, &api, &order(&fake, "token-1")).await;
        assert_eq!((error.class, calls), (ErrorClass::Unknown, 1), "{error}");
        let shown = error.to_string();
        assert!(shown.contains(words) && shown.contains("does not speak EC2"), "{shown}");
        assert!(shown.contains("AWS_ENDPOINT_URL_EC2"), "{shown}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_code_that_nobody_knows_is_unknown_and_shown_as_it_is() {
    let (fake, api) = simulated();
    let words = "line one\nline <two>".to_owned() + &" and on".repeat(400);
    fake.faults(|faults| faults.plan("*", 1, Fault::Refuse(Refusal::new(500, "SomethingNew", words))));
    let (error, calls) = refused(&fake, &api, &order(&fake, "token-1")).await;
    assert_eq!((error.class, calls), (ErrorClass::Unknown, 1));
    assert!(error.may_have_acted);
    let shown = error.to_string();
    assert!(shown.contains("SomethingNew: line one line <two> and on"), "{shown}");
    assert!(shown.contains("... (request 9999") && !shown.contains('\n') && shown.len() < 1000, "{shown}");
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_waits_the_same_times() {
    let mut runs = Vec::new();
    for seed in [1, 1, 99] {
        let fake = FakeEc2::on_tokio_time();
        let api = Api::over(fake.wire(), REGION, seed);
        fake.faults(|faults| faults.plan("*", 4, Fault::internal()));
        api.instances(&[]).await.unwrap();
        runs.push(fake.seen().iter().map(|seen| seen.at).collect::<Vec<_>>());
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}

#[tokio::test(start_paused = true)]
async fn nothing_of_whoever_asks_is_in_what_is_logged() {
    let (fake, api) = simulated();
    assert_eq!(format!("{api:?}"), "Api { region: \"eu-central-1\", profile: None, .. }");
    assert_eq!(api.region(), REGION);
    let wire: Arc<dyn nix_broker::provider::ec2::api::Wire> = fake.wire();
    assert_eq!(format!("{wire:?}"), "FakeEc2");
}
