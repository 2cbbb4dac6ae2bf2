//! What people and their settings ask for, with the real thing: limits of a build, an operator's commands, machines that
//! exist already, a builder that collects garbage, and a disk that is full.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

// Harness code: not every test file uses all of it.
#[allow(dead_code)]
#[path = "common/lab.rs"]
mod lab;

use std::process::{Child, Stdio};

use lab::{LOCAL_POOL, Lab, on_every_release, on_release, text};

fn shape<'a>(name: &'a str, nonce: &'a str) -> [&'a str; 6] {
    ["/t/shapes.nix", "-A", name, "--argstr", "nonce", nonce]
}

/// A build in the background, as alice.
fn spawn_build(lab: &Lab, words: &[&str]) -> Child {
    let mut command = lab.command("alice", &[&["nix-build", "--no-out-link"], words].concat());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn limits_of_the_client_hold_on_the_builder() {
    on_every_release(LOCAL_POOL, |lab| {
        for (i, limit) in ["timeout", "max-silent-time"].into_iter().enumerate() {
            let nonce = format!("l{i}");
            let build =
                lab.nix_build("alice", &[&shape("silent", &nonce)[..], &["--option", limit, "2"]].concat());
            let said = text(&build);
            assert!(!build.status.success(), "{limit}: {said}");
            assert!(said.contains("timed out") || said.contains("silen"), "{limit}: {said}");
            lab.wait("the remote process to end", || lab.sh("pgrep -f 'sleep 100[0]' || true").is_empty());
        }
        let loud = lab.nix_build(
            "root",
            &[&shape("loud", "l")[..], &["--option", "max-build-log-size", "1000"]].concat(),
        );
        assert!(!loud.status.success() && text(&loud).contains("1000"), "{}", text(&loud));
        let one = lab.build("root", &[&shape("cores", "c1")[..], &["--cores", "1"]].concat());
        assert_eq!(lab.run("alice", &["cat", &one[0]]), "1 c1");
        lab.assert_all_is_over();
    });
}

#[test]
fn an_operator_starts_drains_and_stops_builders() {
    on_every_release(&LOCAL_POOL.replace("idle-timeout = \"3s\"", "idle-timeout = \"600s\""), |lab| {
        let in_state = |state: &str| {
            let status = lab.status();
            status["builders"].as_array().unwrap().iter().filter(|builder| builder["state"] == state).count()
        };
        let refused = lab.output("alice", &["broker", "stop", "--all"]);
        assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
        assert!(text(&refused).contains("sudo"), "{}", text(&refused));

        lab.run("root", &["broker", "start", "local"]);
        lab.wait("the builder that was asked for", || in_state("ready") == 1);

        // Drained: the build that runs there ends well, and then the builder.
        let wide = ["/t/wide.nix", "--argstr", "nonce", "o", "--argstr", "n", "1", "--argstr", "sleep", "2"];
        let build = spawn_build(lab, &wide);
        lab.wait("the build to run", || lab.builds_in("building") == 1);
        lab.run("root", &["broker", "drain", "b-1"]);
        let output = build.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        lab.wait("the drained builder to end", || lab.status()["builders"].as_array().unwrap().is_empty());

        // Stopped: its builds are done elsewhere, and Nix does not notice.
        let build = spawn_build(lab, &[&wide[..3], &["p"], &wide[4..]].concat());
        lab.wait("the build to run", || lab.builds_in("building") == 1);
        lab.run("root", &["broker", "stop", "b-2"]);
        let output = build.wait_with_output().unwrap();
        assert!(output.status.success(), "{}\n{}", text(&output), lab.diagnosis());
        let why = lab.run("alice", &["broker", "why", "wide-0"]);
        assert!(why.contains("b-2") && why.contains("b-3"), "{why}");
        lab.run("root", &["broker", "stop", "--all"]);
        lab.assert_all_is_over();
    });
}

/// What gives a machine that exists already a store of its own, on the machine that has another.
const HOST: &str = r#"
mkdir -p /m/conf /m/root; cd /m
cat > conf/nix.conf <<'C'
sandbox = true
sandbox-fallback = false
build-users-group =
substituters =
builders =
C
"#;
const HOST_ENVIRONMENT: &str = "NIX_REMOTE=local?root=/m/root NIX_CONF_DIR=/m/conf PATH=/usr/bin:/bin";

fn hosts_pool(host_key: &str) -> String {
    format!(
        r#"
[[pool]]
name = "rack"
slots = 16
idle-timeout = "3s"
launch-timeout = "20s"
[[pool.hosts]]
address = "127.0.0.5"
port = 2200
user = "root"
host-keys = ["{host_key}"]
"#
    )
}

#[test]
fn machines_that_exist_are_used_within_the_limits_of_a_stock_sshd_and_only_with_the_right_key() {
    on_every_release(LOCAL_POOL, |lab| {
        lab.sh(HOST);
        lab.serve_ssh("127.0.0.5", lab, HOST_ENVIRONMENT);
        let right = lab.host_key();
        assert!(lab.stop_broker().success());
        lab.write("/etc/nix-broker/config.toml", &hosts_pool(&right));
        lab.start_broker();
        // Sixteen at once, on an sshd that allows ten sessions a connection.
        let paths = lab.build(
            "alice",
            &["/t/wide.nix", "--argstr", "nonce", "h", "--argstr", "n", "40", "--argstr", "sleep", "0.3"],
        );
        assert_eq!(paths.len(), 40);
        assert_eq!(lab.ended("succeeded"), 40);
        assert!(lab.stop_broker().success());

        lab.sh("ssh-keygen -q -t ed25519 -N '' -f /m/other_key");
        let wrong = lab.sh("cut -d' ' -f1,2 /m/other_key.pub");
        lab.write("/etc/nix-broker/config.toml", &hosts_pool(&wrong));
        lab.start_broker();
        let build = lab.nix_build("alice", &["/t/wide.nix", "--argstr", "nonce", "k", "--argstr", "n", "1"]);
        let said = text(&build);
        assert!(!build.status.success() && said.contains("host key"), "{said}\n{}", lab.diagnosis());
        assert!(lab.stop_broker().success());
        lab.sh("pkill -f '^/usr/sbin/sshd|^sshd' || true");
    });
}

#[test]
fn a_builder_that_collects_garbage_keeps_what_builds_need() {
    let pool = LOCAL_POOL.replace("max-builders = 2", "max-builders = 1").replace("\"3s\"", "\"600s\"");
    on_every_release(&pool, |lab| {
        // More of the same: what is new of the second shares its inputs with the first.
        let wide = |n: &str| {
            let words =
                ["/t/wide.nix", "--argstr", "nonce", "g", "--argstr", "inputs", "20", "--argstr", "n", n];
            spawn_build(lab, &[&words[..], &["--argstr", "sleep", "1"]].concat())
        };
        let mut build = wide("12");
        lab.wait("builds to run", || lab.builds_in("building") >= 1);
        let collect = "for root in /var/lib/nix-broker/local/*/root; do
            NIX_REMOTE=\"local?root=$root\" nix-store --gc; done";
        let mut collected = 0;
        lab.wait("the builds to end", || {
            lab.run("nix-broker", &["sh", "-ec", collect]);
            collected += 1;
            build.try_wait().unwrap().is_some()
        });
        let output = build.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "after {collected} collections: {}\n{}",
            text(&output),
            lab.diagnosis()
        );
        assert!(collected > 1);
        // With the daemons that held the roots, everything goes: it is noticed, and sent again.
        lab.sh("pkill -9 -u nix-broker -f 'nix-daemon --stdio'");
        lab.run("nix-broker", &["sh", "-ec", collect]);
        let output = wide("13").wait_with_output().unwrap();
        assert!(output.status.success(), "{}\n{}", text(&output), lab.diagnosis());
        lab.run("root", &["broker", "stop", "--all"]);
        lab.assert_all_is_over();
    });
}

#[test]
fn what_was_deleted_on_the_builder_behind_our_back_is_sent_again() {
    let pool = LOCAL_POOL.replace("max-builders = 2", "max-builders = 1").replace("\"3s\"", "\"600s\"");
    on_every_release(&pool, |lab| {
        let graph = |depth: &str| {
            lab.build("alice", &["/t/graph.nix", "--argstr", "nonce", "d", "--argstr", "depth", depth]);
        };
        graph("2");
        let before = lab.ended("succeeded");
        // With all temp roots lost, and while the daemons that know these paths for valid live on.
        let delete = "for root in /var/lib/nix-broker/local/*/root; do rm $root/nix/var/nix/temproots/*
            NIX_REMOTE=\"local?root=$root\" nix-store --delete --ignore-liveness $(cd $root && ls -d nix/store/*-* | grep -v '[.]lock$' | sed s,^,/,); done";
        lab.run("nix-broker", &["sh", "-ec", delete]);
        // Whose inputs are files that were sent for the first, and outputs that were built there.
        graph("3");
        assert!(lab.ended("succeeded") > before);
        assert_eq!(lab.ended("failed"), 0);
        assert!(lab.sh("cat /var/lib/nix-broker/broker.log").contains("inputs were deleted on the builder"));
        lab.run("root", &["broker", "stop", "--all"]);
        lab.assert_all_is_over();
    });
}

#[test]
fn a_builder_says_how_busy_it_is_while_somebody_looks() {
    on_every_release(&LOCAL_POOL.replace("\"3s\"", "\"600s\""), |lab| {
        lab.build("alice", &shape("succeeds", "t"));
        // One question, and the answer has all that a Linux says: also of one that nobody has looked at before.
        let top: serde_json::Value =
            serde_json::from_str(&lab.run("alice", &["broker", "top", "--json"])).unwrap();
        let load = &top["builders"][0]["load"];
        let number = |key: &str| load[key].as_f64().unwrap_or_else(|| panic!("no {key} in {top}"));
        assert!((0.0..=100.0).contains(&number("cpu")), "{top}");
        assert!(number("processors") >= 1.0 && number("average") >= 0.0, "{top}");
        assert!(number("memory-total") > number("memory-available"), "{top}");
        // The disk is that of the machine's own store.
        let blocks = lab.sh("df -Pk /var/lib/nix-broker/local | sed -n 2p | tr -s ' ' | cut -d ' ' -f 2");
        assert_eq!(number("disk-total"), blocks.trim().parse::<f64>().unwrap() * 1024.0, "{top}");
        let seen = lab.run("alice", &["broker", "top"]);
        assert!(seen.contains("b-1") && seen.contains("% "), "{seen}");
        lab.run("root", &["broker", "stop", "--all"]);
        lab.assert_all_is_over();
    });
}

#[test]
fn a_builder_that_is_short_of_memory_gets_no_build_beside_another() {
    let pool = LOCAL_POOL.replace("max-builders = 2", "max-builders = 1").replace("\"3s\"", "\"600s\"");
    on_release("trixie", &pool, |lab| {
        let builder = |key: &str| lab.status()["builders"][0][key].clone();
        let mut first = spawn_build(lab, &shape("silent", "m"));
        lab.wait("the first build to run", || !lab.sh("pgrep -f 'sleep 100[0]' || true").is_empty());
        // To everybody on this machine; no sandbox begins while the kernel's own words are covered.
        lab.sh("printf 'MemTotal: 1000 kB\\nMemAvailable: 50 kB\\n' > /meminfo
            busybox mount -o bind /meminfo /proc/meminfo");
        lab.wait("the shortage to be known", || builder("shortage") == "short of memory");
        let second = spawn_build(lab, &shape("succeeds", "m"));
        lab.wait("the second to wait", || lab.builds_in("queued") == 1);
        let why = lab.run("alice", &["broker", "why", "succeeds"]);
        assert!(
            why.contains("b-1 gets no build beside the one that runs there: it is short of memory"),
            "{why}"
        );
        assert_eq!(builder("slots-used"), 1);
        // It goes on beside the first, as soon as there is memory again.
        lab.sh("busybox umount /proc/meminfo");
        let output = second.wait_with_output().unwrap();
        assert!(output.status.success(), "{}\n{}", text(&output), lab.diagnosis());
        assert_eq!((lab.builds_in("building"), lab.ended("succeeded")), (1, 1));
        first.kill().unwrap();
        first.wait().unwrap();
        lab.wait("the first to be given up", || lab.ended("cancelled") == 1);
        lab.run("root", &["broker", "stop", "--all"]);
        lab.assert_all_is_over();
    });
}

#[test]
fn a_builder_that_runs_low_on_disk_is_collected_when_nothing_runs_there() {
    let pool = LOCAL_POOL.replace("max-builders = 2", "max-builders = 1").replace("\"3s\"", "\"600s\"");
    // Takes a minute, and the same on every release.
    on_release("bookworm", &pool, |lab| {
        assert!(lab.stop_broker().success());
        lab.sh("cd /var/lib/nix-broker; mkdir -p local; busybox mount -t tmpfs -o size=210m tmpfs local;
            chown nix-broker local");
        lab.start_broker();
        let builder = |key: &str| lab.status()["builders"][0][key].clone();
        let free = || builder("load")["disk-free"].as_u64();
        let graph = |depth: &str| {
            lab.build("alice", &["/t/graph.nix", "--argstr", "nonce", "w", "--argstr", "depth", depth]);
        };
        graph("2");
        // A disk is judged by what it was before.
        lab.wait("the builder to say what it has", || free().is_some_and(|free| free > 100 << 20));
        for nonce in ["a", "b", "c"] {
            lab.build("alice", &shape("large", nonce));
        }
        // Twice what is low is free again: a fifth.
        let has_room_again = |collections: usize| {
            let begun = || lab.sh("grep -c action=CollectGarbage /var/lib/nix-broker/broker.log || true");
            lab.wait("a collection", || begun().trim().parse::<usize>().unwrap() >= collections);
            lab.wait("room", || builder("shortage").is_null() && free().is_some_and(|free| free >= 42 << 20));
        };
        has_room_again(1);
        // The same builder goes on, and what it may have lost is sent again.
        graph("3");
        lab.build("alice", &shape("large", "d"));
        assert_eq!((builder("id"), lab.ended("failed")), ("b-1".into(), 0), "{}", lab.diagnosis());

        // Where nothing is left to collect, it is drained as full.
        has_room_again(2);
        lab.sh("cd /var/lib/nix-broker/local; touch filling
            setsid sh -c 'while [ -e filling ]; do
                free=$(df -Pk . | sed -n 2p | tr -s \" \" | cut -d \" \" -f 4)
                [ $free -le 12000 ] || head -c $(((free - 12000) * 1024)) /dev/zero >> filler
                sleep 0.1
            done' </dev/null >/dev/null 2>&1 &");
        let fault =
            || lab.status()["pools"][0]["last-fault"]["reason"].as_str().unwrap_or_default().to_owned();
        lab.wait("the full builder to end", || fault().contains("its disk is full"));
        lab.wait("it to be gone", || lab.status()["builders"].as_array().unwrap().is_empty());
        lab.sh("rm /var/lib/nix-broker/local/filling");
        let log = || lab.sh("cat /var/lib/nix-broker/broker.log");
        // The next one is no better off, and builds what it can all the same.
        lab.build("alice", &shape("succeeds", "x"));
        lab.wait("the next one to be judged", || log().contains("event=Collected(b-2)"));
        lab.build("alice", &shape("succeeds", "y"));
        assert_eq!(builder("id"), "b-2", "{}", lab.diagnosis());
        lab.run("root", &["broker", "stop", "--all"]);
        lab.wait("the builders to end", || lab.status()["builders"].as_array().unwrap().is_empty());
        lab.sh("rm /var/lib/nix-broker/local/filler");
        lab.assert_all_is_over();
        assert!(lab.stop_broker().success());
        lab.sh("busybox umount /var/lib/nix-broker/local");
    });
}

#[test]
fn a_full_disk_of_the_broker_fails_the_build_with_a_reason() {
    on_every_release(LOCAL_POOL, |lab| {
        assert!(lab.stop_broker().success());
        lab.sh("busybox mount -t tmpfs -o size=4m,mode=1777 tmpfs /var/lib/nix-broker/spool");
        lab.start_broker();
        let build = lab.nix_build("alice", &shape("large", "f"));
        let said = text(&build);
        assert!(!build.status.success(), "{said}");
        assert!(said.contains("No space left"), "{said}\n{}", lab.diagnosis());
        // Small outputs go on.
        lab.build("alice", &shape("succeeds", "f"));
        // As with stock Nix, a transfer that breaks off leaves half a path, which is not valid; the next that builds it
        // begins by removing that.
        assert!(lab.stop_broker().success());
        lab.sh("busybox umount /var/lib/nix-broker/spool");
        lab.start_broker();
        lab.build("alice", &shape("large", "f"));
        lab.assert_all_is_over();
    });
}

#[test]
fn an_ordinary_user_brings_builds_through_the_daemon_only() {
    on_every_release(LOCAL_POOL, |lab| {
        // What Nix says to a hook: no settings, then one request.
        let number = |n: u64| n.to_le_bytes().to_vec();
        let string = |text: &str| {
            let mut bytes = number(text.len() as u64);
            bytes.extend(text.bytes());
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            bytes
        };
        let drv = lab.run("alice", &[&["nix-instantiate"], &shape("succeeds", "u")[..]].concat());
        let asked = [
            number(0),
            string("try"),
            number(1),
            string("x86_64-linux"),
            string(drv.lines().last().unwrap().split('!').next().unwrap()),
            number(0),
        ];
        let octal: String = asked.concat().iter().map(|byte| format!("\\{byte:03o}")).collect();
        let hook = format!("printf '{octal}' | broker-hook 3 4>/dev/null");
        let said = text(&lab.output("alice", &["sh", "-c", &hook]));
        assert!(said.contains("# decline") && said.contains("run by root"), "{said}");
        let said = text(&lab.output("root", &["sh", "-c", &hook]));
        assert!(said.contains("# accept"), "{said}");
        let store = lab.output("alice", &["broker-hook", "--stdio"]);
        assert!(!store.status.success() && text(&store).contains("only root"), "{}", text(&store));
        lab.assert_all_is_over();
    });
}
