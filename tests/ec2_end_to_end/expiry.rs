//! Machines that AWS itself ends (EventBridge Scheduler), should everything else have failed.

use super::*;

const ROLE: &str = "arn:aws:iam::123456789012:role/nix-broker-expiry";

/// Two hours of `max-lifetime`, ten minutes of `lease`, and what the broker adds to them.
const LIFE: &str = "max-lifetime = \"2h\"";
const LIMIT: Duration = Duration::from_secs((120 + 10 + 15) * 60);

/// A pool whose machines AWS itself ends when they are too old.
fn expiring(more: &str) -> String {
    format!("expiry-role = \"{ROLE}\"\nlease = \"10m\"\n{more}")
}

/// The only schedule; it ends this instance, as the role, once.
fn schedule_of(cloud: &mut Cloud, instance: &str) -> Value {
    let schedules = cloud.schedules();
    assert_eq!(schedules.len(), 1, "{schedules:#?}");
    let schedule = schedules.into_iter().next().unwrap();
    assert_eq!(schedule["Name"], format!("nix-broker-{instance}"));
    assert_eq!(schedule["ActionAfterCompletion"], "DELETE");
    assert_eq!(schedule["FlexibleTimeWindow"], json!({ "Mode": "OFF" }));
    assert_eq!(schedule["ScheduleExpressionTimezone"], "UTC");
    let target = &schedule["Target"];
    assert_eq!(target["Arn"], "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances");
    assert_eq!(target["RoleArn"], ROLE);
    let input: Value = serde_json::from_str(target["Input"].as_str().unwrap()).unwrap();
    assert_eq!(input, json!({ "InstanceIds": [instance] }));
    schedule
}

/// When a schedule does what it is there for.
fn time_of(schedule: &Value) -> SystemTime {
    let text = schedule["ScheduleExpression"].as_str().unwrap();
    let at = text.strip_prefix("at(").and_then(|rest| rest.strip_suffix(')')).unwrap();
    humantime::parse_rfc3339_weak(at).unwrap()
}

/// What an AWS that ends by itself what is too old would hold: exactly one end for the machine, as long as it is there.
#[test]
fn aws_knows_when_to_end_a_machine_by_itself_as_long_as_it_is_there() {
    with_cloud(&only("trixie"), &format!("{IDLE}\n{LIFE}"), &expiring(""), |lab, cloud| {
        let before = SystemTime::now() - Duration::from_secs(1);
        let build = nix_build(lab, "expires", "4");
        lab.wait("the build to run", || lab.builds_in("building") == 1);
        lab.wait("the schedule to stand", || record(lab)["expiry"]["state"] == "set");
        let instance = cloud.only();
        assert_eq!(tag(&instance, "nix-broker:expiry"), "schedule");
        let at = time_of(&schedule_of(cloud, &id(&instance)));
        assert!(at >= before + LIMIT && at <= SystemTime::now() + LIMIT, "{at:?} {before:?}");
        assert_built(lab, build, "expires");
        assert_account_is_empty(lab, cloud);
        assert_eq!(cloud.schedules(), [] as [Value; 0]);
        assert_eq!((cloud.calls("CreateSchedule"), cloud.calls("UpdateSchedule")), (1, 0));
        lab.assert_all_is_over();
    });
}

#[test]
fn without_a_role_aws_is_asked_for_nothing_of_the_kind() {
    with_cloud(&only("forky"), IDLE, "", |lab, cloud| {
        assert_built(lab, nix_build(lab, "endless", "0"), "endless");
        let instance = cloud.only();
        assert!(!instance["Tags"].to_string().contains("nix-broker:expiry"), "{instance:#}");
        assert_account_is_empty(lab, cloud);
        for action in ["CreateSchedule", "UpdateSchedule", "DeleteSchedule"] {
            assert_eq!(cloud.calls(action), 0, "{action}");
        }
    });
}

/// Killed before the answer to the launch, and before the answer to the schedule: the next broker makes it, once.
#[test]
fn a_restarted_broker_tells_aws_when_to_end_what_it_takes_over() {
    for stalled in ["RunInstances", "CreateSchedule"] {
        with_cloud(&only("bookworm"), &format!("{IDLE}\n{LIFE}"), &expiring(""), |lab, cloud| {
            cloud.stall(stalled);
            let build = nix_build(lab, "taken-over", "4");
            let instance = launched(lab, cloud);
            lab.wait("the broker to wait for an answer", || cloud.calls(stalled) == 1);
            assert_eq!(cloud.schedules().len(), usize::from(stalled == "CreateSchedule"));
            lab.kill_broker();
            cloud.flow();
            lab.start_broker();
            lab.wait("the build to run", || lab.builds_in("building") == 1);
            lab.wait("the schedule to stand", || record(lab)["expiry"]["state"] == "set");
            schedule_of(cloud, &instance);
            assert_built(lab, build, "taken-over");
            assert_eq!(id(&cloud.only()), instance);
            assert_account_is_empty(lab, cloud);
            assert_eq!(cloud.schedules(), [] as [Value; 0], "{stalled}");
        });
    }
}

#[test]
fn a_stopped_machine_is_ended_by_aws_should_its_broker_never_come_back() {
    let stop = expiring("idle-action = \"stop\"\nmax-stopped = \"3h\"");
    with_cloud(&only("trixie"), &format!("{IDLE}\n{LIFE}"), &stop, |lab, cloud| {
        let margin = Duration::from_secs(15 * 60);
        assert_built(lab, nix_build(lab, "stops", "0"), "stops");
        lab.wait("the machine to be stopped", || cloud.states() == ["stopped"]);
        lab.wait("the schedule to be moved", || cloud.calls("UpdateSchedule") == 1);
        lab.wait("the schedule to stand", || record(lab)["expiry"]["state"] == "set");
        let instance = id(&cloud.only());
        let until = record(lab)["stage"]["until"].as_u64().unwrap();
        let at = time_of(&schedule_of(cloud, &instance));
        assert_eq!(at, SystemTime::UNIX_EPOCH + Duration::from_secs(until) + margin);

        // Started again, it may run as long as any other.
        let build = nix_build(lab, "runs", "4");
        lab.wait("the build to run", || lab.builds_in("building") == 1);
        lab.wait("the schedule to be moved again", || cloud.calls("UpdateSchedule") == 2);
        let at = time_of(&schedule_of(cloud, &instance));
        assert!(at < SystemTime::UNIX_EPOCH + Duration::from_secs(until), "{at:?}");
        assert_built(lab, build, "runs");
        assert!(lab.stop_broker().success());
        // What the broker put aside is the broker's when it comes back; swept up, nothing of it is left.
        broker(lab, cloud, &["sweep", "--everything", "--yes"]);
        assert_eq!(cloud.schedules(), [] as [Value; 0]);
    });
}

#[test]
fn what_aws_will_not_promise_is_said_and_keeps_nobody_from_building() {
    with_cloud(&only("forky"), "idle-timeout = \"10m\"", &expiring(""), |lab, cloud| {
        cloud.deny("CreateSchedule");
        assert_built(lab, nix_build(lab, "denied", "0"), "denied");
        let fault = |lab: &Lab| lab.status()["pools"][0]["last-fault"]["reason"].to_string();
        lab.wait("the operator to be told", || fault(lab).contains("b-1: AWS will not end it by itself"));
        let words = lab.run("alice", &["broker", "status"]);
        for expected in ["CreateSchedule of nix-broker-i-", "`scheduler:CreateSchedule`", "nix/iam-policy"] {
            assert!(words.contains(expected), "no {expected}: {words}");
        }
        assert_eq!(cloud.schedules(), [] as [Value; 0]);
        // A broker that starts again asks again.
        cloud.allow();
        let instance = id(&cloud.only());
        lab.kill_broker();
        lab.start_broker();
        lab.wait("the schedule to stand", || record(lab)["expiry"]["state"] == "set");
        schedule_of(cloud, &instance);
        cloud.deny("DeleteSchedule");
        assert!(lab.stop_broker().success(), "{}", lab.diagnosis());
        for state in cloud.states() {
            assert!(["shutting-down", "terminated"].contains(&state.as_str()), "{state}");
        }
        // What cannot be removed keeps no record either: AWS removes it after its time.
        lab.start_broker();
        assert_account_is_empty(lab, cloud);
        assert_eq!(cloud.schedules().len(), 1);
    });
}
