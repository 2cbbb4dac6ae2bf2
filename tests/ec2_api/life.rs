//! The life of instances: what is sent, tokens, states, batches.

use std::time::Duration;

use nix_broker::model::ec2::Market;
use nix_broker::model::{HourlyRate, Usd};
use nix_broker::provider::ec2::api::{Api, ErrorClass, InstanceState, RunOrder};
use tokio::time::{Instant, sleep};

use super::{REGION, order, simulated, strings};
use crate::fake_ec2::{Fault, State};

#[tokio::test(start_paused = true)]
async fn a_launch_says_everything_that_keeps_an_instance_safe_and_short_lived() {
    let (fake, api) = simulated();
    let mut order = order(&fake, "token-1");
    order.market = Market::Spot;
    order.max_price = Some(HourlyRate(Usd::from_micros(612_345)));
    order.instance_store = 2;
    let seen = api.run_instance(&order).await.unwrap();

    assert_eq!(seen.state, InstanceState::Pending);
    assert_eq!((seen.market, seen.instance_type.as_str()), (Market::Spot, "c6a.4xlarge"));
    assert_eq!((seen.zone.as_str(), &seen.subnet), ("eu-central-1a", &order.subnet));
    assert_eq!(seen.tags, order.tags);
    assert_eq!(seen.client_token.as_deref(), Some("token-1"));
    assert_eq!(seen.launch_time, crate::fake_ec2::EPOCH);
    assert!(seen.private_ip.is_some() && seen.public_ip.is_some());

    let instance = fake.instance(&seen.id).unwrap();
    assert_eq!(instance.user_data, order.user_data);
    for (name, value) in [
        ("MinCount", "1"),
        ("MaxCount", "1"),
        ("MetadataOptions.HttpTokens", "required"),
        ("MetadataOptions.HttpPutResponseHopLimit", "1"),
        ("InstanceInitiatedShutdownBehavior", "terminate"),
        ("BlockDeviceMapping.1.DeviceName", "/dev/xvda"),
        ("BlockDeviceMapping.1.Ebs.VolumeType", "gp3"),
        ("BlockDeviceMapping.1.Ebs.VolumeSize", "120"),
        ("BlockDeviceMapping.1.Ebs.Throughput", "500"),
        ("BlockDeviceMapping.1.Ebs.Iops", "4000"),
        ("BlockDeviceMapping.1.Ebs.Encrypted", "true"),
        ("BlockDeviceMapping.1.Ebs.DeleteOnTermination", "true"),
        ("BlockDeviceMapping.2.DeviceName", "/dev/sdb"),
        ("BlockDeviceMapping.2.VirtualName", "ephemeral0"),
        ("BlockDeviceMapping.3.VirtualName", "ephemeral1"),
        ("NetworkInterface.1.DeleteOnTermination", "true"),
        ("NetworkInterface.1.AssociatePublicIpAddress", "true"),
        ("InstanceMarketOptions.SpotOptions.SpotInstanceType", "one-time"),
        ("InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior", "terminate"),
        ("InstanceMarketOptions.SpotOptions.MaxPrice", "0.612345"),
    ] {
        assert_eq!(instance.request.get(name), Some(value), "{name}");
    }
    for absent in
        ["KeyName", "IamInstanceProfile.Name", "IamInstanceProfile.Arn", "CpuOptions.NestedVirtualization"]
    {
        assert_eq!(instance.request.get(absent), None, "{absent}");
    }
    for resource in ["instance", "volume", "network-interface", "spot-instances-request"] {
        assert_eq!(instance.request.tags_for(resource), order.tags, "{resource}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_only_some_orders_want_is_sent_for_those_alone() {
    let (fake, api) = simulated();
    let mut order = order(&fake, "token-1");
    order.instance_type = "c7i.4xlarge".into();
    order.nested_virt = true;
    order.hibernation = true;
    order.public_ip = false;
    order.private_ip = Some("172.31.3.4".into());
    let seen = api.run_instance(&order).await.unwrap();
    assert_eq!((seen.private_ip.as_deref(), seen.public_ip), (Some("172.31.3.4"), None));
    let request = fake.instance(&seen.id).unwrap().request;
    assert_eq!(request.get("CpuOptions.NestedVirtualization"), Some("enabled"));
    assert_eq!(request.get("HibernationOptions.Configured"), Some("true"));
    assert_eq!(request.get("NetworkInterface.1.AssociatePublicIpAddress"), Some("false"));
    assert_eq!(request.get("InstanceMarketOptions.MarketType"), None);
    assert!(request.tags_for("spot-instances-request").is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_order_survives_the_journal_and_gives_the_same_instance_again() {
    let (fake, api) = simulated();
    let mut order = order(&fake, "token-1");
    order.market = Market::Spot;
    order.max_price = Some(HourlyRate(Usd::from_micros(700_000)));
    let first = api.run_instance(&order).await.unwrap();
    let written = serde_json::to_vec(&order).unwrap();
    let read: RunOrder = serde_json::from_slice(&written).unwrap();
    assert_eq!(read, order);
    assert_eq!(api.run_instance(&read).await.unwrap().id, first.id);
    assert_eq!(fake.instances().len(), 1);

    let mut other = order.clone();
    other.market = Market::OnDemand;
    assert_eq!(api.run_instance(&other).await.unwrap_err().class, ErrorClass::Idempotency);

    assert!(api.terminate(&[first.id]).await.values().all(Result::is_ok));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(api.run_instance(&order).await.unwrap_err().class, ErrorClass::Idempotency);
}

#[tokio::test(start_paused = true)]
async fn a_launch_whose_answer_is_lost_launches_once() {
    for fault in
        [Fault::LostAfter, Fault::internal_after(), Fault::LostBefore, Fault::internal(), Fault::Refused]
    {
        let (fake, api) = simulated();
        fake.faults(|faults| faults.plan("RunInstances", 2, fault));
        let order = order(&fake, "token-1");
        let seen = api.run_instance(&order).await.unwrap();
        let ids: Vec<_> = fake.instances().into_iter().map(|instance| instance.id).collect();
        assert_eq!(ids, [seen.id]);
        let calls = fake.seen_of("RunInstances");
        assert_eq!(calls.len(), 3);
        assert!(calls.windows(2).all(|pair| pair[0].form == pair[1].form));
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_for_another_region_is_not_sent() {
    let (fake, api) = simulated();
    let order = RunOrder { region: "us-east-1".into(), ..order(&fake, "token-1") };
    assert_eq!(api.run_instance(&order).await.unwrap_err().class, ErrorClass::Config);
    assert!(fake.seen().is_empty());
}

#[test]
fn the_host_key_in_the_user_data_is_not_shown() {
    let fake = crate::fake_ec2::FakeEc2::on_real_time(1);
    let shown = format!("{:?}", order(&fake, "token-1"));
    assert!(shown.contains("token-1") && shown.contains("c6a.4xlarge"), "{shown}");
    assert!(!shown.contains("secret"), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn an_instance_is_followed_from_pending_to_terminated() {
    let (fake, api) = simulated();
    let id = api.run_instance(&order(&fake, "token-1")).await.unwrap().id;
    let mine = strings(["b-1"]);
    let observe = || async {
        let all = api.instances(&[("tag:nix-broker:broker", &mine)]).await.unwrap();
        assert_eq!(all.iter().map(|seen| &seen.id).collect::<Vec<_>>(), [&id]);
        all[0].clone()
    };
    assert_eq!(observe().await.state, InstanceState::Pending);
    sleep(Duration::from_secs(11)).await;
    assert_eq!(observe().await.state, InstanceState::Running);

    let stopped = api.stop(std::slice::from_ref(&id), false).await;
    assert!(stopped[&id].is_ok());
    assert_eq!(observe().await.state, InstanceState::Stopping);
    let early = api.start(std::slice::from_ref(&id)).await[&id].clone().unwrap_err();
    assert_eq!(early.class, ErrorClass::Busy);
    sleep(Duration::from_secs(21)).await;
    assert_eq!(observe().await.state, InstanceState::Stopped);
    assert!(api.start(std::slice::from_ref(&id)).await[&id].is_ok());
    sleep(Duration::from_secs(11)).await;
    let running = observe().await;
    assert_eq!(running.state, InstanceState::Running);
    assert!(running.launch_time > crate::fake_ec2::EPOCH + 30);

    assert!(api.terminate(std::slice::from_ref(&id)).await[&id].is_ok());
    assert_eq!(observe().await.state, InstanceState::ShuttingDown);
    sleep(Duration::from_secs(31)).await;
    let gone = observe().await;
    assert_eq!(gone.state, InstanceState::Terminated);
    assert!(gone.state_reason.unwrap().contains("Client.UserInitiatedShutdown"));
    assert!(api.terminate(std::slice::from_ref(&id)).await[&id].is_ok(), "ending what has ended succeeds");
    assert!(fake.volumes().is_empty());

    let bill = &fake.bills()[0];
    assert!(!bill.is_open);
    assert_eq!(bill.ran.len(), 2);
    assert_eq!(bill.compute_time, Duration::from_secs(22));
    let filtered = api.instances(&[("tag:nix-broker:broker", &strings(["b-2"]))]).await.unwrap();
    assert!(filtered.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_hibernated_instance_had_to_be_ordered_so() {
    let (fake, api) = simulated();
    let plain = api.run_instance(&order(&fake, "token-1")).await.unwrap().id;
    let able = RunOrder { hibernation: true, ..order(&fake, "token-2") };
    let able = api.run_instance(&able).await.unwrap().id;
    sleep(Duration::from_secs(11)).await;
    let answers = api.stop(&[plain.clone(), able.clone()], true).await;
    assert_eq!(answers[&plain].as_ref().unwrap_err().class, ErrorClass::Config);
    assert!(answers[&able].is_ok());
    assert_eq!(fake.instance(&able).unwrap().state, State::Stopping);
}

#[tokio::test(start_paused = true)]
async fn one_unknown_id_does_not_save_the_others_from_being_terminated() {
    let (fake, api) = simulated();
    let mut ids = Vec::new();
    for token in ["a", "b", "c"] {
        ids.push(api.run_instance(&order(&fake, token)).await.unwrap().id);
    }
    ids.insert(1, "i-0123456789abcdef0".into());
    ids.push(ids[0].clone());
    let answers = api.terminate(&ids).await;
    assert_eq!(answers.len(), 4);
    let unknown = answers["i-0123456789abcdef0"].as_ref().unwrap_err();
    assert_eq!(unknown.class, ErrorClass::NotFound);
    assert_eq!(answers.values().filter(|answer| answer.is_ok()).count(), 3);
    sleep(Duration::from_secs(31)).await;
    assert!(fake.alive().is_empty());
    assert_eq!(fake.seen_of("TerminateInstances").len(), 5, "once together, then each for itself");
    assert!(api.terminate(&[]).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn many_instances_are_terminated_in_batches_and_a_common_refusal_is_not_multiplied() {
    let (fake, api) = simulated();
    let ids: Vec<String> = (0..250).map(|index| format!("i-{index:017x}")).collect();
    fake.faults(|faults| faults.plan("TerminateInstances", 1000, Fault::internal()));
    let answers = api.terminate(&ids).await;
    assert_eq!(answers.len(), 250);
    assert!(answers.values().all(|answer| answer.as_ref().unwrap_err().class == ErrorClass::Transient));
    assert_eq!(fake.seen_of("TerminateInstances").len(), 3 * 5);
}

#[tokio::test(start_paused = true)]
async fn an_id_that_is_not_known_yet_is_told_apart_from_one_that_ended() {
    let (fake, api) = simulated();
    fake.settings(|settings| {
        settings.hidden = Duration::from_secs(4);
        settings.tags_hidden = Duration::from_secs(8);
    });
    let id = api.run_instance(&order(&fake, "token-1")).await.unwrap().id;
    let mine = strings(["b-1"]);
    let young = api.terminate(std::slice::from_ref(&id)).await[&id].clone().unwrap_err();
    assert_eq!(young.class, ErrorClass::NotFound);
    assert!(!young.may_have_acted);
    assert!(api.instances(&[]).await.unwrap().is_empty());
    sleep(Duration::from_secs(5)).await;
    assert_eq!(api.instances(&[]).await.unwrap().len(), 1);
    assert!(api.instances(&[("tag:nix-broker:broker", &mine)]).await.unwrap().is_empty());
    sleep(Duration::from_secs(5)).await;
    assert_eq!(api.instances(&[("tag:nix-broker:broker", &mine)]).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn spot_is_taken_back_at_its_time_and_says_why() {
    let (fake, api) = simulated();
    let spot = RunOrder { market: Market::Spot, ..order(&fake, "token-1") };
    let id = api.run_instance(&spot).await.unwrap().id;
    fake.interrupt(&id, Duration::from_secs(120));
    sleep(Duration::from_secs(119)).await;
    assert_eq!(api.instances(&[]).await.unwrap()[0].state, InstanceState::Running);
    sleep(Duration::from_secs(100)).await;
    let gone = api.instances(&[]).await.unwrap().remove(0);
    assert_eq!(gone.state, InstanceState::Terminated);
    assert!(gone.state_reason.unwrap().starts_with("Server.SpotInstanceTermination"));
    assert_eq!(fake.bills()[0].compute_time, Duration::from_secs(120), "however late somebody looks");
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_turns_itself_off_is_terminated() {
    let (fake, api) = simulated();
    let id = api.run_instance(&order(&fake, "token-1")).await.unwrap().id;
    sleep(Duration::from_secs(15)).await;
    fake.power_off(&id);
    sleep(Duration::from_secs(31)).await;
    assert_eq!(api.instances(&[]).await.unwrap()[0].state, InstanceState::Terminated);
    assert!(fake.volumes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn tags_are_renewed_and_the_metadata_service_is_closed() {
    let (fake, api) = simulated();
    let id = api.run_instance(&order(&fake, "token-1")).await.unwrap().id;
    api.tag(std::slice::from_ref(&id), &[("nix-broker:expires", "1795222800"), ("Name", "new")])
        .await
        .unwrap();
    let tags = api.instances(&[]).await.unwrap().remove(0).tags;
    assert_eq!(tags["nix-broker:expires"], "1795222800");
    assert_eq!((tags["Name"].as_str(), tags["nix-broker:broker"].as_str()), ("new", "b-1"));
    api.close_metadata(&id).await.unwrap();
    assert!(!fake.instance(&id).unwrap().metadata_open);
    let unknown = api.tag(&strings(["i-0123456789abcdef0"]), &[("a", "b")]).await.unwrap_err();
    assert_eq!(unknown.class, ErrorClass::NotFound);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_console_is_read_and_an_empty_one_is_none() {
    let (fake, api) = simulated();
    let id = api.run_instance(&order(&fake, "token-1")).await.unwrap().id;
    assert_eq!(api.console_output(&id).await.unwrap(), None);
    fake.write_console(&id, "booting\nKernel panic\n");
    assert_eq!(api.console_output(&id).await.unwrap().as_deref(), Some("booting\nKernel panic\n"));
    fake.write_console(&id, &"x".repeat(200_000));
    fake.write_console(&id, "the end");
    let tail = api.console_output(&id).await.unwrap().unwrap();
    assert_eq!(tail.len(), 64 * 1024);
    assert!(tail.ends_with("xthe end"));
    let asked = fake.seen_of("GetConsoleOutput");
    assert!(asked.iter().all(|seen| seen.form.get("Latest") == Some("true")));

    // Where the newest cannot be had, what was kept is better than nothing.
    let refusal = crate::fake_ec2::Refusal::new(400, "UnsupportedOperation", "not a Nitro instance");
    fake.faults(|faults| faults.plan("GetConsoleOutput", 1, Fault::Refuse(refusal)));
    assert!(api.console_output(&id).await.unwrap().is_some());
    assert_eq!(fake.seen_of("GetConsoleOutput").last().unwrap().form.get("Latest"), None);
}

#[tokio::test(start_paused = true)]
async fn all_pages_of_a_long_list_are_read_even_when_one_has_to_be_asked_for_twice() {
    let (fake, api) = simulated();
    fake.settings(|settings| settings.page = 7);
    for index in 0..30 {
        api.run_instance(&order(&fake, &format!("token-{index}"))).await.unwrap();
    }
    fake.faults(|faults| faults.plan_after("DescribeInstances", 2, 1, Fault::throttle()));
    let all = api.instances(&[]).await.unwrap();
    let known: Vec<_> = fake.instances().into_iter().map(|instance| instance.id).collect();
    assert_eq!(all.into_iter().map(|seen| seen.id).collect::<Vec<_>>(), known);
    assert_eq!(fake.seen_of("DescribeInstances").len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_list_without_end_is_an_error_and_not_a_part_of_itself() {
    let (fake, api) = simulated();
    let endless = "<?xml version=\"1.0\"?><DescribeInstancesResponse \
                   xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><reservationSet/>\
                   <nextToken>again</nextToken></DescribeInstancesResponse>";
    let fault = Fault::Garbage { status: 200, body: endless.to_owned() };
    fake.faults(|faults| faults.plan("DescribeInstances", 1_000_000, fault));
    let error = api.instances(&[]).await.unwrap_err();
    assert!(error.to_string().contains("pages"), "{error}");
    assert_eq!(fake.seen().len(), 100);
}

#[tokio::test(start_paused = true)]
async fn machines_are_told_when_instances_boot_and_lose_their_power() {
    struct Recorder(std::sync::Mutex<Vec<String>>);
    impl crate::fake_ec2::Machines for Recorder {
        fn launched(&self, instance: &crate::fake_ec2::FakeInstance, user_data: &str) {
            assert_eq!(user_data, instance.user_data);
            self.0.lock().unwrap().push("launched".into());
        }
        fn started(&self, _: &crate::fake_ec2::FakeInstance) {
            self.0.lock().unwrap().push("started".into());
        }
        fn ended(&self, _: &crate::fake_ec2::FakeInstance) {
            self.0.lock().unwrap().push("ended".into());
        }
    }
    let (fake, api) = simulated();
    let recorder = std::sync::Arc::new(Recorder(std::sync::Mutex::default()));
    fake.machines(recorder.clone());
    let spot = RunOrder { market: Market::Spot, ..order(&fake, "spot") };
    let taken = api.run_instance(&spot).await.unwrap().id;
    fake.interrupt(&taken, Duration::from_secs(20));
    sleep(Duration::from_secs(30)).await;
    let id = api.run_instance(&order(&fake, "token-1")).await.unwrap().id;
    sleep(Duration::from_secs(11)).await;
    assert!(api.stop(std::slice::from_ref(&id), false).await[&id].is_ok());
    sleep(Duration::from_secs(21)).await;
    assert!(api.start(std::slice::from_ref(&id)).await[&id].is_ok());
    assert!(api.terminate(std::slice::from_ref(&id)).await[&id].is_ok());
    let told = recorder.0.lock().unwrap().clone();
    assert_eq!(told, ["launched", "ended", "launched", "ended", "started", "ended"]);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_calls_take_no_time_but_that_of_the_account() {
    let (fake, _) = simulated();
    let api = Api::over(fake.wire(), REGION, 3);
    let before = Instant::now();
    for _ in 0..1000 {
        api.instances(&[]).await.unwrap();
    }
    assert_eq!(Instant::now(), before, "simulated time stands still while nobody waits");
}
