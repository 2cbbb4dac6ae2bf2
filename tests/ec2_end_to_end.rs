//! The `ec2` provider with the real thing at both ends: a real `nix build` through hook and broker to EC2's API (moto),
//! a machine that boots from the real user-data with real sshd and Nix, and an account that is empty afterwards.

#![cfg(feature = "ec2")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on says so by panicking, and where it is by printing"
)]

#[path = "common/cloud.rs"]
mod cloud;
#[path = "common/lab.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod lab;

use std::process::{Child, Stdio};
use std::time::Instant;

use cloud::{Cloud, feature_of_this_machine};
use lab::{DEADLINE, Lab, every_release, one_release, text};
use serde_json::{Value, json};

/// Runs a test on machines with a cloud beside them; `pool` and `ec2` are lines of the pool's two tables.
fn with_cloud(
    releases: Vec<&'static str>,
    pool: &str,
    ec2: &str,
    test: impl Fn(&mut Lab, &mut Cloud),
) {
    for release in releases {
        eprintln!("--- {release}");
        let mut lab = Lab::bare(release, "");
        let mut cloud = Cloud::beside(&lab);
        let feature = feature_of_this_machine();
        lab.write(
            "/etc/nix-broker/config.toml",
            &format!(
                "[[pool]]\nname = \"aws\"\nfeatures = [\"{feature}\"]\n{pool}\n[pool.ec2]\n{}{ec2}\n",
                cloud.settings()
            ),
        );
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
    }
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
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let output = build.wait_with_output().unwrap();
    let path = serde_json::from_slice::<Value>(&output.stdout)
        .ok()
        .and_then(|it| it[0]["outputs"]["out"].as_str().map(str::to_owned));
    (output.status.success(), path.unwrap_or_default(), text(&output))
}

/// It succeeded and its output is here, valid, and what was built.
fn assert_built(lab: &Lab, build: Child, nonce: &str) -> String {
    let (ok, path, said) = end_of(lab, build);
    assert!(ok, "{said}\n{}", lab.diagnosis());
    assert_eq!(lab.run("alice", &["cat", &path]), format!("made of {nonce}"));
    lab.run("alice", &["nix-store", "--verify-path", &path]);
    said
}

/// Nothing on EC2 costs anything any more, and the broker knows of nothing there.
fn assert_account_is_empty(lab: &Lab, cloud: &mut Cloud) {
    lab.wait("every instance to be terminated", || {
        cloud.states().iter().all(|state| state == "terminated")
    });
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
    with_cloud(every_release(), IDLE, "", |lab, cloud| {
        assert!(cloud.instances().is_empty(), "launched before anything is to be built");
        let said = assert_built(lab, nix_build(lab, "a", "2"), "a");
        eprintln!("{said}");
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
