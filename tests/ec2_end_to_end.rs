//! The `ec2` provider with the real thing at both ends: a real `nix build` through hook and broker to EC2's API (moto),
//! a machine that boots from the real user-data with real sshd and Nix, and an account that is empty afterwards.

#![cfg(feature = "ec2")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

#[path = "common/cloud.rs"]
mod cloud;
#[path = "common/lab.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod lab;

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
fn a_restarted_broker_takes_over_what_boots() {
    with_cloud(&only("bookworm"), IDLE, "", |lab, cloud| {
        cloud.hold();
        let build = nix_build(lab, "boots", "0");
        let instance = launched(lab, cloud);
        lab.wait("the broker to wait for it", || lab.status()["builders"][0]["state"] == "booting");
        lab.kill_broker();
        lab.start_broker();
        cloud.release();
        assert_built(lab, build, "boots");
        assert_eq!(id(&cloud.only()), instance);
        assert_eq!(cloud.calls("RunInstances"), 1);
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
}

#[test]
fn a_restarted_broker_takes_over_a_launch_whose_answer_nobody_heard() {
    with_cloud(&only("trixie"), IDLE, "", |lab, cloud| {
        cloud.stall("RunInstances");
        let build = nix_build(lab, "unheard", "0");
        let instance = launched(lab, cloud);
        assert!(record(lab).to_string().contains("SSH_HOST_ED25519_KEY"), "the request is written down");
        lab.kill_broker();
        cloud.flow();
        lab.start_broker();
        assert_built(lab, build, "unheard");
        assert_eq!(id(&cloud.only()), instance);
        assert_eq!(cloud.calls("RunInstances"), 1);
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
}

#[test]
fn a_restarted_broker_goes_on_with_what_builds() {
    with_cloud(&only("forky"), IDLE, "", |lab, cloud| {
        let build = nix_build(lab, "builds", "5");
        lab.wait("the build to run", || lab.builds_in("building") == 1);
        let instance = id(&cloud.only());
        assert!(!record(lab).to_string().contains("SSH_HOST"), "no secret stays on disk");
        lab.kill_broker();
        lab.start_broker();
        assert_built(lab, build, "builds");
        assert_eq!(id(&cloud.only()), instance);
        assert_eq!(cloud.calls("RunInstances"), 1);
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
}

#[test]
fn a_machine_ends_itself_when_its_broker_never_comes_back() {
    with_cloud(&only("bookworm"), "idle-timeout = \"10m\"", "lease = \"1m\"", |lab, cloud| {
        assert_built(lab, nix_build(lab, "orphan", "0"), "orphan");
        let instance = launched(lab, cloud);
        lab.kill_broker();
        let terminated_by_hand = cloud.calls("TerminateInstances");
        lab.wait("the machine to power off", || cloud.states() == ["terminated"]);
        assert_eq!(cloud.calls("TerminateInstances"), terminated_by_hand, "nobody else ended it");
        assert_eq!(record(lab)["stage"]["instance"], instance.as_str());
        lab.start_broker();
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
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
fn a_machine_that_cannot_be_set_up_fails_the_build_with_the_reason() {
    with_cloud(&only("forky"), IDLE, "", |lab, cloud| {
        // Without a firewall a route would do; without both, builds could read the host key.
        cloud.break_program("iptables");
        cloud.break_program("ip");
        let (ok, _, said) = end_of(lab, nix_build(lab, "broken", "0"));
        assert!(!ok, "{said}");
        let reason = "builds cannot be kept from the instance's metadata: iptables does not work here";
        assert!(said.contains(reason), "{said}\n{}", lab.diagnosis());
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
}

#[test]
fn a_machine_that_never_answers_is_ended_and_its_console_shown() {
    let pool = format!("{IDLE}\nlaunch-timeout = \"12s\"");
    with_cloud(&only("trixie"), &pool, "", |lab, cloud| {
        // EC2 says that it runs, and nothing of it boots.
        cloud.hold();
        let (ok, _, said) = end_of(lab, nix_build(lab, "silent", "0"));
        assert!(!ok, "{said}");
        for words in ["after its launch", "its console says last: ", "failed to launch 3 times in a row"] {
            assert!(said.contains(words), "no `{words}`: {said}\n{}", lab.diagnosis());
        }
        cloud.release();
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
}

#[test]
fn a_processor_that_lacks_what_the_pool_promises_takes_no_build() {
    // Amazon has both processors, and this machine is not both.
    let elsewhere = ["c7i.large sapphirerapids", "c7a.large znver4"];
    let (kind, level) =
        elsewhere.iter().map(|it| it.split_once(' ').unwrap()).find(|(_, level)| lacks(level)).unwrap();
    let feature = format!("gccarch-{level}");
    let pool = format!("{IDLE}\nmandatory-features = [\"{feature}\"]");
    with_cloud(&only("bookworm"), &pool, &format!("types = [\"{kind}\"]"), |lab, cloud| {
        lab.sh(&format!("sed -i 's/requiredSystemFeatures = \\[/& \"{feature}\"/' /t/tuned-here.nix"));
        let (ok, _, said) = end_of(lab, nix_build(lab, "elsewhere", "0"));
        assert!(!ok, "{said}");
        let reason = format!("{kind}'s processor cannot run code for `gccarch-");
        assert!(said.contains(&reason) && said.contains("/proc/cpuinfo lacks"), "{said}");
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
}

#[test]
fn a_machine_that_is_taken_away_loses_no_build() {
    with_cloud(&only("trixie"), IDLE, "", |lab, cloud| {
        let build = nix_build(lab, "moved", "4");
        lab.wait("the build to run", || lab.builds_in("building") == 1);
        let first = id(&cloud.only());
        cloud.ec2("terminate_instances", &json!({ "InstanceIds": [first] }));
        assert_built(lab, build, "moved");
        assert_eq!(cloud.instances().len(), 2, "another machine took it over");
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
fn an_end_that_was_asked_for_in_vain_is_asked_for_by_the_next_broker() {
    with_cloud(&only("bookworm"), IDLE, "", |lab, cloud| {
        cloud.lose("TerminateInstances");
        assert_built(lab, nix_build(lab, "unended", "0"), "unended");
        lab.wait("its end to be asked for", || cloud.calls("TerminateInstances") == 1);
        lab.kill_broker();
        cloud.flow();
        assert_eq!(cloud.states(), ["running"]);
        lab.start_broker();
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
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
fn what_cannot_be_launched_says_what_to_do() {
    let image = |id: &str| format!("image = \"{id}\"");
    let cases = [
        ("AWS_ACCESS_KEY_ID=", String::new(), "credentials"),
        ("AWS_ENDPOINT_URL_EC2=http://127.0.0.1:5000/moto-api/", String::new(), "AWS_ENDPOINT_URL"),
        ("AWS_ENDPOINT_URL_EC2=http://127.0.0.1:1/", String::new(), "the connection is refused"),
        ("", image("ami-00000000000064600"), "image `ami-00000000000064600` is for arm64"),
        ("", image("ami-0123456789abcdef0"), "ami-0123456789abcdef0"),
        ("", "image-name = \"nixos/30.11*\"".to_owned(), "has no image `nixos/30.11*` for x86_64"),
    ];
    with_cloud(&only("forky"), IDLE, "", |lab, cloud| {
        for (number, (variable, line, expected)) in cases.iter().enumerate() {
            lab.stop_broker();
            configure(lab, cloud, IDLE, line);
            let mut environment = cloud.environment();
            environment.extend((!variable.is_empty()).then(|| (*variable).to_owned()));
            lab.set_environment(environment);
            lab.start_broker();
            let (ok, _, said) = end_of(lab, nix_build(lab, &format!("never-{number}"), "0"));
            assert!(!ok && said.contains(expected), "{variable}{line}: {said}\n{}", lab.diagnosis());
            lab.assert_all_is_over();
        }
        assert_eq!(cloud.calls("RunInstances"), 0);
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
fn status_and_cost_say_what_a_machine_is_and_costs() {
    with_cloud(&only("trixie"), "idle-timeout = \"10m\"", "", |lab, cloud| {
        assert_built(lab, nix_build(lab, "costs", "0"), "costs");
        let instance = cloud.only();
        let status = lab.status();
        let builder = &status["builders"][0];
        assert_eq!(builder["instance"], instance["InstanceId"]);
        assert_eq!(builder["instance-type"], instance["InstanceType"]);
        assert_eq!(builder["zone"], instance["Placement"]["AvailabilityZone"]);
        assert_eq!(builder["market"], "on-demand");
        assert!(
            builder["rate"].as_f64().unwrap() > 0.0 && builder["cost"].as_f64().unwrap() > 0.0,
            "{builder}"
        );
        let told = lab.run("root", &["broker", "status"]);
        assert!(told.contains(instance["InstanceType"].as_str().unwrap()) && told.contains("/h"), "{told}");
        assert!(lab.stop_broker().success());
        lab.start_broker();
        let told = lab.run("root", &["broker", "cost", "--by", "builder"]);
        assert!(told.contains(&id(&instance)), "{told}");
        assert_account_is_empty(lab, cloud);
    });
}

#[test]
fn a_lost_broker_is_swept_up_from_any_machine() {
    with_cloud(&only("forky"), "idle-timeout = \"10m\"", "", |lab, cloud| {
        assert_built(lab, nix_build(lab, "lost", "0"), "lost");
        let instance = id(&cloud.only());
        lab.kill_broker();
        lab.sh(&format!("rm -rf {}/ec2 /etc/nix-broker", lab.state_dir()));
        let shown = broker(lab, cloud, &["sweep", "--dry-run", "--everything"]);
        assert!(shown.contains(&instance), "{shown}");
        // It was wanted a moment ago.
        broker(lab, cloud, &["sweep", "--yes"]);
        assert_eq!(cloud.states(), ["running"]);
        broker(lab, cloud, &["sweep", "--everything", "--yes"]);
        assert!(["shutting-down", "terminated"].contains(&cloud.states()[0].as_str()));
    });
}

#[test]
fn init_makes_the_network_that_a_build_then_uses_and_removes_it_again() {
    with_cloud(&only("bookworm"), IDLE, "", |lab, cloud| {
        assert!(lab.stop_broker().success());
        let before = cloud.ec2("describe_security_groups", &json!({}));
        let feature = feature_of_this_machine();
        let pool = format!("[[pool]]\nname = \"aws\"\nfeatures = [\"{feature}\"]\n{IDLE}\n");
        lab.write("/etc/nix-broker/config.toml", &format!("{pool}[pool.ec2]\nreach = \"private\"\n"));
        let shown = broker(lab, cloud, &["init", "--dry-run"]);
        assert!(shown.contains("security group"), "{shown}");
        assert_eq!(cloud.ec2("describe_security_groups", &json!({})), before, "--dry-run makes nothing");
        broker(lab, cloud, &["init", "--yes"]);
        lab.start_broker();
        let build = nix_build(lab, "network", "3");
        lab.wait("the build to run", || lab.builds_in("building") == 1);
        let instance = cloud.only();
        let groups = &instance["NetworkInterfaces"][0]["Groups"];
        assert_eq!(groups[0]["GroupName"], "nix-broker", "{instance:#}");
        assert_built(lab, build, "network");
        assert_account_is_empty(lab, cloud);
        assert!(lab.stop_broker().success());
        broker(lab, cloud, &["init", "--remove", "--yes"]);
        assert_eq!(cloud.ec2("describe_security_groups", &json!({})), before, "--remove leaves nothing");
    });
}

/// What the broker has itself be told: builders at public addresses, each at the far end of a wire, in one VPC.
#[test]
fn builders_at_public_addresses_send_to_each_other_inside_their_vpc() {
    with_cloud(&only("forky"), IDLE, "", |lab, cloud| {
        assert!(lab.stop_broker().success());
        lab.write("/t/direct.nix", include_str!("nix/direct.nix"));
        let pool = |name: &str, direct: bool| {
            format!(
                "[[pool]]\nname = \"{name}\"\nfeatures = [\"{name}\"]\nidle-timeout = \"10m\"\ndirect = {direct}\n[pool.ec2]\n"
            )
        };
        let configure = |direct: bool| {
            lab.write("/etc/nix-broker/config.toml", &[pool("a", direct), pool("b", direct)].concat());
        };
        // A network as a version made it that let nobody in but the broker.
        configure(false);
        let tell = cloud.address_service();
        let words = ["init", "--yes"];
        let environment = [cloud.environment(), vec![tell]].concat();
        let init =
            [&["env"], &environment.iter().map(String::as_str).collect::<Vec<_>>()[..], &["broker"], &words]
                .concat();
        lab.run("alice", &init);
        configure(true);
        lab.set_environment(environment.clone());
        lab.start_broker();
        let words = ["/t/direct.nix", "-A", "used", "--argstr", "nonce", "1", "--argstr", "mib", "64"];
        lab.build("alice", &words);

        let instances = cloud.instances();
        let on = |pool: &str| instances.iter().find(|it| tag(it, "nix-broker:pool") == pool).unwrap();
        let (a, b) = (on("a"), on("b"));
        assert!(a["VpcId"] == b["VpcId"] && a["PublicIpAddress"].is_string(), "{a:#} {b:#}");
        // The launch has seen to the group.
        let group = b["NetworkInterfaces"][0]["Groups"][0]["GroupId"].clone();
        let groups = cloud.ec2("describe_security_groups", &json!({ "GroupIds": [group] }));
        let rules = groups["SecurityGroups"][0]["IpPermissions"].as_array().unwrap();
        let among: Vec<_> =
            rules.iter().flat_map(|rule| rule["UserIdGroupPairs"].as_array().unwrap()).collect();
        assert_eq!((among.len(), &among[0]["GroupId"]), (1, &group), "{rules:?}");
        // It went inside, and every face says so.
        let sent = cloud.sent_to(&id(b));
        assert!(sent < 4 << 20, "{sent} bytes that the other builder could send\n{}", lab.diagnosis());
        let why = lab.run("root", &["broker", "why", "used"]);
        let line = why.lines().find(|line| line.contains("has its inputs: ")).unwrap_or(&why);
        assert!(line.contains("2 from b-"), "{why}\n{}", lab.diagnosis());
        let all: Value = serde_json::from_str(&lab.run("root", &["broker", "history", "--json"])).unwrap();
        let used = all["builds"].as_array().unwrap().iter().find(|build| build["name"] == "used").unwrap();
        let bytes = |key: &str| used[key].as_u64().unwrap();
        assert!(bytes("bytes-direct") >= 64 << 20 && bytes("bytes-up") < 4 << 20, "{used:#}");
        assert!(lab.stop_broker().success());
        assert_account_is_empty(lab, cloud);
    });
}

#[test]
fn a_pool_is_tried_on_a_machine_that_ends_with_the_trial() {
    with_cloud(&only("forky"), IDLE, "", |lab, cloud| {
        lab.sh("echo 'trusted-users = root alice' >> /etc/nix/nix.conf");
        lab.start_daemon(&[]);
        let said = broker(lab, cloud, &["try", "--yes", "aws"]);
        assert!(said.contains("ok    pool `aws` built it on "), "{said}");
        assert_eq!(cloud.states().len(), 1);
        // The broker that runs here has launched nothing, and has not taken it for its own.
        assert_eq!(lab.status()["builders"], json!([]));
        assert_account_is_empty(lab, cloud);
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

#[test]
fn a_broker_that_dies_as_it_starts_or_stops_a_machine_leaves_none() {
    with_cloud(&only("bookworm"), IDLE, "idle-action = \"stop\"", |lab, cloud| {
        assert_built(lab, nix_build(lab, "before", "0"), "before");
        lab.wait("the machine to be stopped", || cloud.states() == ["stopped"]);
        lab.wait("the builder to be gone", || lab.status()["builders"] == json!([]));

        cloud.stall("StartInstances");
        let build = nix_build(lab, "after", "0");
        lab.wait("its start to be asked for", || cloud.calls("StartInstances") == 1);
        lab.kill_broker();
        cloud.flow();
        cloud.lose("StopInstances");
        lab.start_broker();
        assert_built(lab, build, "after");
        assert_eq!(cloud.calls("RunInstances"), 1);

        lab.wait("its stop to be asked for", || cloud.calls("StopInstances") == 2);
        lab.kill_broker();
        cloud.flow();
        lab.start_broker();
        assert_account_is_empty(lab, cloud);
        lab.assert_all_is_over();
    });
}

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

/// The machines let in everybody but the broker's user. A bastion, to which that user may log in, leads to them as alice.
const BASTION: &str = r#"
uid=$(id -u nix-broker)
ip rule add pref 10 lookup local
ip rule del pref 0
for zone in 1 2 3; do ip rule add pref 5 uidrange $uid-$uid to 127.0.$zone.0/24 prohibit; done
usermod -p '*' alice
mkdir -p /b /run/sshd
ssh-keygen -q -t ed25519 -N '' -f /b/host_key
ssh-keygen -q -t ed25519 -N '' -f /b/key
chown nix-broker /b/key
echo "[127.0.9.1]:2222 $(cut -d' ' -f1,2 /b/host_key.pub)" > /b/known_hosts
cat > /b/sshd_config <<'C'
ListenAddress 127.0.9.1
Port 2222
HostKey /b/host_key
PidFile /b/pid
AuthorizedKeysFile /b/key.pub
UsePAM no
StrictModes no
C
"#;

/// A pool behind this command.
fn behind(lab: &Lab, cloud: &Cloud, pool: &str, command: &str) {
    let (feature, settings) =
        (feature_of_this_machine(), cloud.settings().replace("reach = \"private\"\n", ""));
    let pool = format!("[[pool]]\nname = \"aws\"\nfeatures = [\"{feature}\"]\n{pool}\n");
    let command = Value::from(command);
    lab.write(
        "/etc/nix-broker/config.toml",
        &format!("{pool}[pool.ec2]\n{settings}proxy-command = {command}\n"),
    );
}

/// What runs of a proxy command on the broker's machine.
fn proxies(lab: &Lab, pattern: &str) -> String {
    lab.sh(&format!("pgrep -u nix-broker -f '{pattern}' || true"))
}

#[test]
fn a_machine_behind_a_bastion_is_reached_through_a_proxy_command_and_in_no_other_way() {
    with_cloud(&RELEASES, IDLE, "", |lab, cloud| {
        lab.sh(BASTION);
        lab.serve("127.0.9.1:2222", "/usr/sbin/sshd -D -e -f /b/sshd_config", "/b/log");
        let ssh = "exec ssh -o BatchMode=yes -o UserKnownHostsFile=/b/known_hosts -i /b/key -p 2222 -W %h:%p alice@127.0.9.1";
        behind(lab, cloud, IDLE, ssh);
        assert!(lab.stop_broker().success());
        lab.start_broker();
        let build = nix_build(lab, "behind", "3");
        lab.wait("the build to run", || lab.builds_in("building") == 1);
        let instance = cloud.only();
        let knock = format!("exec 3<>/dev/tcp/{}/22", instance["PrivateIpAddress"].as_str().unwrap());
        lab.run("alice", &["bash", "-c", &knock]);
        let refused = lab.output("nix-broker", &["bash", "-c", &knock]);
        assert!(
            !refused.status.success() && text(&refused).contains("Permission denied"),
            "{}",
            text(&refused)
        );
        assert!(!proxies(lab, "alice@127.0.9.[1]").is_empty());
        assert_built(lab, build, "behind");
        assert_account_is_empty(lab, cloud);
        lab.wait("the proxy command to end", || proxies(lab, "alice@127.0.9.[1]").is_empty());
        lab.sh("kill $(cat /b/pid)");
        lab.assert_all_is_over();
    });
}

#[test]
fn a_proxy_command_that_fails_or_hangs_says_so_and_leaves_nothing() {
    let pool = format!("{IDLE}\nlaunch-timeout = \"8s\"");
    let cases = [
        (
            "echo \"bastion: no way to %h\" >&2; exit 255",
            "the `proxy-command` ended with status 255 and printed `bastion: no way to 127.0.",
        ),
        (
            "definitely-not-installed %h %p",
            "ended with status 127 and printed `/bin/sh: 1: definitely-not-installed",
        ),
        (
            ": %i; echo asks for a password >&2; sleep 12345 & wait",
            "the `proxy-command` had not ended by itself and printed `asks for a password`",
        ),
    ];
    with_cloud(&only("forky"), IDLE, "", |lab, cloud| {
        for (number, (command, expected)) in cases.into_iter().enumerate() {
            assert!(lab.stop_broker().success());
            behind(lab, cloud, &pool, command);
            lab.start_broker();
            let build = nix_build(lab, &format!("nowhere-{number}"), "0");
            lab.wait("an instance to be tried", || lab.status()["builders"][0]["state"] == "booting");
            let (ok, _, said) = end_of(lab, build);
            assert!(!ok && said.contains(expected), "{said}\n{}", lab.diagnosis());
            assert!(said.contains("try it by hand, as the user that the broker runs as"), "{said}");
            assert_account_is_empty(lab, cloud);
            lab.wait("the proxy command to end", || proxies(lab, "sleep 1234[5]").is_empty());
        }
        // A broker that ends does not wait for one that hangs, and takes it along.
        lab.assert_all_is_over();
        let build = nix_build(lab, "never", "0");
        lab.wait("the proxy command to hang", || !proxies(lab, "sleep 1234[5]").is_empty());
        assert!(lab.stop_broker().success(), "{}", lab.diagnosis());
        assert_eq!(proxies(lab, "sleep 1234[5]"), "");
        let (ok, _, said) = end_of(lab, build);
        assert!(!ok, "{said}");
        for state in cloud.states() {
            assert!(["shutting-down", "terminated"].contains(&state.as_str()), "{state}");
        }
    });
}
