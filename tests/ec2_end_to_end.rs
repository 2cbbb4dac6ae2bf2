//! The `ec2` provider with the real thing at both ends: a real `nix build` through hook and broker to EC2's API (moto),
//! a machine that boots from the real user-data with real sshd and Nix, and an account that is empty afterwards.

#![cfg(feature = "ec2")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

#[path = "common/cloud.rs"]
mod cloud;
#[path = "common/lab.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod lab;

#[path = "ec2_end_to_end/commands.rs"]
mod commands;
#[path = "ec2_end_to_end/expiry.rs"]
mod expiry;
#[path = "ec2_end_to_end/failures.rs"]
mod failures;
#[path = "ec2_end_to_end/proxy.rs"]
mod proxy;
#[path = "ec2_end_to_end/restarts.rs"]
mod restarts;

use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime};

use cloud::{Cloud, feature_of_this_machine, lacks};
use lab::{DEADLINE, Lab, RELEASES, on_each_of, only, text};
use serde_json::{Value, json};

/// Runs a test on machines with a cloud beside them; `pool` and `ec2` are lines of the pool's two tables.
fn with_cloud(releases: &[&'static str], pool: &str, ec2: &str, test: impl Fn(&mut Lab, &mut Cloud)) {
    on_each_of(releases, |release| {
        let mut lab = Lab::bare(release, "");
        let mut cloud = Cloud::beside(&lab);
        let feature = feature_of_this_machine();
        configure(&lab, &cloud, pool, ec2);
        lab.write(
            "/t/tuned-here.nix",
            &format!(
                "{{ nonce, sleep ? \"0\" }}: (import /t/lib.nix).run \"on-ec2-${{nonce}}\" \
                 \"echo builds ${{nonce}}; bb sleep ${{sleep}}; echo made of ${{nonce}} > $out\" \
                 {{ requiredSystemFeatures = [ \"{feature}\" ]; }}"
            ),
        );
        lab.set_environment(cloud.environment());
        lab.start_broker();
        lab.configure_nix("");
        test(&mut lab, &mut cloud);
    });
}

fn configure(lab: &Lab, cloud: &Cloud, pool: &str, ec2: &str) {
    let (feature, settings) = (feature_of_this_machine(), cloud.settings());
    let pool = format!("[[pool]]\nname = \"aws\"\nfeatures = [\"{feature}\"]\n{pool}\n");
    lab.write("/etc/nix-broker/config.toml", &format!("{pool}[pool.ec2]\n{settings}{ec2}\n"));
}

/// A short window, so that a test sees its end.
const IDLE: &str = "idle-timeout = \"3s\"";

/// `nix build` as an ordinary user, in the background.
fn nix_build(lab: &Lab, nonce: &str, sleep: &str) -> Child {
    let words = ["nix", "build", "--no-link", "--json", "--print-build-logs", "-f", "/t/tuned-here.nix"];
    lab.command("alice", &[&words[..], &["--argstr", "nonce", nonce, "--argstr", "sleep", sleep]].concat())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Its end: whether it succeeded, its output path, and what it said.
fn end_of(lab: &Lab, mut build: Child) -> (bool, String, String) {
    let end = Instant::now() + DEADLINE;
    while build.try_wait().unwrap().is_none() {
        if Instant::now() > end {
            let _dead = build.kill();
            panic!("nix build hangs\n{}", lab.diagnosis());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = build.wait_with_output().unwrap();
    let path = serde_json::from_slice::<Value>(&output.stdout)
        .ok()
        .and_then(|it| it[0]["outputs"]["out"].as_str().map(str::to_owned));
    (output.status.success(), path.unwrap_or_default(), text(&output))
}

/// It succeeded and its output is here, valid, and what was built.
fn assert_built(lab: &Lab, build: Child, nonce: &str) {
    let (ok, path, said) = end_of(lab, build);
    assert!(ok, "{said}\n{}", lab.diagnosis());
    assert_eq!(lab.run("alice", &["cat", &path]), format!("made of {nonce}"));
    lab.run("alice", &["nix-store", "--verify-path", &path]);
}

/// Nothing on EC2 costs anything any more, and the broker knows of nothing there.
fn assert_account_is_empty(lab: &Lab, cloud: &mut Cloud) {
    lab.wait("every instance to be terminated", || cloud.states().iter().all(|state| state == "terminated"));
    let volumes = cloud.ec2("describe_volumes", &json!({}));
    assert_eq!(volumes["Volumes"], json!([]), "volumes are left");
    lab.wait("the records to go", || intents(lab).is_empty());
}

fn intents(lab: &Lab) -> String {
    lab.sh(&format!("ls -A {}/ec2/intents", lab.state_dir()))
}

fn tag<'a>(instance: &'a Value, key: &str) -> &'a str {
    let tags = instance["Tags"].as_array().unwrap();
    let tag = tags.iter().find(|tag| tag["Key"] == key);
    tag.unwrap_or_else(|| panic!("no tag {key}: {tags:?}"))["Value"].as_str().unwrap()
}

#[test]
fn a_build_launches_a_machine_and_leaves_nothing() {
    with_cloud(&RELEASES, IDLE, "", |lab, cloud| {
        assert!(cloud.instances().is_empty(), "launched before anything is to be built");
        assert_built(lab, nix_build(lab, "a", "2"), "a");
        let instance = cloud.only();
        assert_eq!(tag(&instance, "ManagedBy"), "nix-broker");
        assert_eq!(tag(&instance, "nix-broker:pool"), "aws");
        assert_eq!(tag(&instance, "nix-broker:broker").len(), 32);
        assert_eq!(tag(&instance, "nix-broker:intent").len(), 32);
        assert!(!tag(&instance, "nix-broker:expires-at").is_empty());
        assert_eq!(instance["ImageId"], "ami-00000000000086600", "the newest for this architecture");
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
}

/// From the keys of the pool to the second machine, which finds what the first one built.
#[test]
fn what_a_machine_built_outlives_it_in_the_cache() {
    with_cloud(&only("forky"), "idle-timeout = \"15s\"", "", |lab, cloud| {
        lab.install("/t/cache.pl", include_str!("lab/cache.pl"));
        lab.serve("127.0.0.1:8099", "perl /t/cache.pl 8099 /srv/cache", "/run/cache.log");
        lab.sh("cd /var/lib/nix-broker && nix-store --generate-binary-cache-key kept-1 cache-key cache-key.pub && chown nix-broker cache-key");
        let key = lab.sh("cat /var/lib/nix-broker/cache-key.pub");
        let keys = format!(
            "cache = \"http://127.0.0.1:8099\"\ncache-public-key = \"{key}\"\n\
             cache-secret-key-file = \"/var/lib/nix-broker/cache-key\""
        );
        configure(lab, cloud, "idle-timeout = \"15s\"", &keys);
        lab.configure_nix("builders-use-substitutes = true");
        lab.stop_broker();
        lab.start_broker();

        let (ok, path, said) = end_of(lab, nix_build(lab, "kept", "0"));
        assert!(ok && said.contains("builds kept"), "{said}\n{}", lab.diagnosis());
        lab.wait("the upload", || lab.sh("cat /run/cache.log").contains(".narinfo 200"));
        assert_account_is_empty(lab, cloud);
        lab.run("root", &["nix-store", "--delete", &path]);

        let (ok, again, said) = end_of(lab, nix_build(lab, "kept", "0"));
        assert!(ok && !said.contains("builds kept"), "it was built again\n{said}\n{}", lab.diagnosis());
        assert_eq!((again, cloud.instances().len()), (path, 2));
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
}

/// The one instance that runs, once it is launched.
fn launched(lab: &Lab, cloud: &mut Cloud) -> String {
    lab.wait("an instance to run", || cloud.states() == ["running"]);
    id(&cloud.only())
}

fn id(instance: &Value) -> String {
    instance["InstanceId"].as_str().unwrap().to_owned()
}

/// What a command prints that goes to EC2 itself.
fn broker(lab: &Lab, cloud: &Cloud, command: &[&str]) -> String {
    let environment = cloud.environment();
    let mut words = vec!["env"];
    words.extend(environment.iter().map(String::as_str));
    lab.run("alice", &[&words[..], &["broker"], command].concat())
}

/// What is written down of the only launch.
fn record(lab: &Lab) -> Value {
    serde_json::from_str(&lab.sh(&format!("cat {}/ec2/intents/*", lab.state_dir()))).unwrap()
}

#[test]
fn a_stopped_machine_is_started_again_with_its_store() {
    let stop = "idle-action = \"stop\"\nmax-stopped = \"1m\"";
    with_cloud(&only("trixie"), IDLE, stop, |lab, cloud| {
        assert_built(lab, nix_build(lab, "first", "0"), "first");
        let path = lab.sh("ls -d /nix/store/*-on-ec2-first");
        lab.wait("the machine to be stopped", || cloud.states() == ["stopped"]);
        lab.wait("the builder to be gone", || lab.status()["builders"] == json!([]));
        assert_eq!(record(lab)["stage"]["stage"], "shelved");

        let build = nix_build(lab, "second", "3");
        lab.wait("the second build to run", || lab.builds_in("building") == 1);
        let instance = id(&cloud.only());
        cloud.on_machine(&instance, &format!("nix-store --check-validity {path}"));
        assert_built(lab, build, "second");
        assert_eq!(cloud.calls("RunInstances"), 1);
        assert_eq!(cloud.calls("StartInstances"), 1);
        lab.wait("the machine to be stopped again", || cloud.states() == ["stopped"]);

        lab.kill_broker();
        lab.start_broker();
        assert_built(lab, nix_build(lab, "third", "0"), "third");
        assert_eq!(cloud.calls("RunInstances"), 1, "another broker knows of it as well");
        assert_eq!(cloud.calls("StartInstances"), 2);
        lab.wait("the machine to be stopped for the last time", || cloud.states() == ["stopped"]);
        // Nobody needs it within `max-stopped`.
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
}

#[test]
fn a_drained_broker_leaves_nothing_on_ec2() {
    for ec2 in ["", "idle-action = \"stop\""] {
        with_cloud(&only("forky"), "idle-timeout = \"10m\"", ec2, |lab, cloud| {
            let build = nix_build(lab, "drained", "3");
            lab.wait("the build to run", || lab.builds_in("building") == 1);
            let status = lab.stop_broker();
            assert!(status.success(), "{status}\n{}", lab.diagnosis());
            for state in cloud.states() {
                assert!(["shutting-down", "terminated"].contains(&state.as_str()), "{state}");
            }
            assert_built(lab, build, "drained");
            lab.assert_nothing_left();
        });
    }
}

#[test]
fn whoever_waits_is_told_what_the_machine_does() {
    with_cloud(&only("trixie"), IDLE, "", |lab, cloud| {
        cloud.hold();
        let script = "exec nix-build --no-out-link --log-format internal-json --argstr nonce told /t/tuned-here.nix \
            >/tmp/told 2>&1";
        let mut build = lab.command("alice", &["sh", "-c", script]).stdin(Stdio::null()).spawn().unwrap();
        launched(lab, cloud);
        // The notes before this one may be overtaken before they are shown.
        lab.wait("alice to hear that nobody answers", || {
            lab.sh("cat /tmp/told").contains("not answering yet: ")
        });
        cloud.release();
        assert!(build.wait().unwrap().success(), "{}", lab.sh("cat /tmp/told"));
        assert_account_is_empty(lab, cloud);
    });
}

#[test]
fn machines_of_other_brokers_are_left_alone_and_unknown_ones_of_ours_are_not() {
    with_cloud(&only("bookworm"), IDLE, "", |lab, cloud| {
        assert_built(lab, nix_build(lab, "ours", "0"), "ours");
        let ours = tag(&cloud.only(), "nix-broker:broker").to_owned();
        let run = |cloud: &mut Cloud, broker: &str| {
            let tags = [("ManagedBy", "nix-broker"), ("nix-broker:broker", broker)];
            let tags = tags.map(|(key, value)| json!({ "Key": key, "Value": value }));
            let order = json!({
                "ImageId": "ami-00000000000086600", "InstanceType": "c7a.large", "MinCount": 1, "MaxCount": 1,
                "SubnetId": cloud.subnet(), "UserData": "#!/bin/sh",
                "TagSpecifications": [{ "ResourceType": "instance", "Tags": tags }],
            });
            id(&cloud.ec2("run_instances", &order)["Instances"][0])
        };
        let other = run(cloud, &"0".repeat(32));
        let stray = run(cloud, &ours);
        lab.wait("the unknown one to end", || cloud.state_of(&stray) == "terminated");
        assert_eq!(cloud.state_of(&other), "running");
        assert!(lab.stop_broker().success());
        assert_eq!(cloud.state_of(&other), "running");
    });
}

#[test]
fn many_builds_get_machines_for_many() {
    let pool = format!("{IDLE}\nmax-builders = 3\nslots = 2");
    with_cloud(&only("forky"), &pool, "", |lab, cloud| {
        let feature = feature_of_this_machine();
        lab.write(
            "/t/many.nix",
            &format!(
                "builtins.genList (i: (import /t/lib.nix).run \"many-${{toString i}}\" \
                 \"bb sleep 3; echo ${{toString i}} > $out\" {{ requiredSystemFeatures = [ \"{feature}\" ]; }}) 12"
            ),
        );
        assert_eq!(lab.build("alice", &["/t/many.nix"]).len(), 12);
        let zones: Vec<_> = cloud.instances().iter().map(|it| it["Placement"].clone()).collect();
        assert_eq!(zones.len(), 3, "{zones:?}");
        assert_eq!(lab.ended("succeeded"), 12);
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
}

#[test]
fn a_build_on_spot_is_moved_on_demand_before_ec2_takes_the_machine() {
    with_cloud(&only("forky"), IDLE, "market = \"spot\"", |lab, cloud| {
        let build = nix_build(lab, "spot", "15");
        lab.wait("the build to run", || lab.builds_in("building") == 1);
        assert_eq!(cloud.only()["InstanceLifecycle"], "spot");
        cloud.interrupt();
        assert_built(lab, build, "spot");
        let instances = cloud.instances();
        assert_eq!(instances.len(), 2, "{instances:#?}");
        assert_eq!(instances[1]["InstanceLifecycle"], Value::Null, "on-demand");
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
}
