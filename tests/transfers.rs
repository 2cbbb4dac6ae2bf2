//! Large store paths on their way, with the real thing: a builder behind a wire that is slow, or that only counts. What is
//! looked at is what went over the wire, not how long it took.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

// Harness code: not every test file uses all of it.
#[allow(dead_code)]
#[path = "common/lab.rs"]
mod lab;

use std::path::Path;
use std::process::Stdio;

use lab::{LOCAL_POOL, Lab, on_every_release, on_release, text};

/// What makes it one that takes what it can from a cache, which is for a test to fill.
const SETUP: &str = r#"
mkdir -p /m/bin /m/cache
cat >> /etc/nix/nix.conf <<'C'
substituters = file:///m/cache
require-sigs = false
builders =
C
"#;

/// Gives a builder this machine's own `zstd`, by that name; its libraries are in every Debian root.
fn give_zstd(far: &Lab, name: &str) {
    let own = Path::new("/usr/bin/zstd");
    assert!(own.exists(), "tests/lab/packages.sh installs zstd on this machine");
    far.put(own, &format!("/m/bin/{name}"));
    far.sh(&format!("/m/bin/{name} -qc </dev/null >/dev/null"));
}

/// The broker's way to that builder: through the wire.
fn pool(host_key: &str) -> String {
    format!(
        r#"
[[pool]]
name = "far"
slots = 8
idle-timeout = "600s"
launch-timeout = "60s"
[[pool.hosts]]
address = "127.0.0.5"
port = 2201
user = "root"
host-keys = ["{host_key}"]
"#
    )
}

/// A wire: one way's delay in milliseconds, and kilobytes per second.
#[derive(Clone, Copy)]
struct Wire {
    delay: u32,
    rate: u32,
}

/// A link of 40 ms and 32 Mbit/s.
const SLOW: Wire = Wire { delay: 20, rate: 4000 };
/// One that only counts.
const FAST: Wire = Wire { delay: 0, rate: 1_000_000 };

/// Makes the only builder of a lab one at the other end of this wire.
fn prepare(lab: &mut Lab, wire: Wire) -> Lab {
    let far = Lab::beside(lab, lab.release());
    far.serve_ssh("127.0.0.5", lab, "PATH=/m/bin:/usr/bin:/bin");
    far.sh(SETUP);
    far.start_daemon(&[]);
    lab.write("/m/wire.pl", include_str!("lab/wire.pl"));
    lab.write("/t/blob.nix", include_str!("nix/blob.nix"));
    let (at, Wire { delay, rate }) = ("127.0.0.5:2201", wire);
    lab.serve(at, &format!("perl /m/wire.pl {at} 127.0.0.5:2200 {delay} {rate} /m/counts"), "/m/wire.log");
    assert!(lab.stop_broker().success());
    lab.write("/etc/nix-broker/config.toml", &pool(&far.host_key()));
    lab.start_broker();
    far
}

/// Bytes to the builder and from it, up to now.
fn counts(lab: &Lab) -> (u64, u64) {
    let counts = lab.sh("cat /m/counts");
    let (to, from) = counts.split_once(' ').unwrap();
    (to.parse().unwrap(), from.parse().unwrap())
}

/// Builds one of `blob.nix`; what went over the wire meanwhile.
fn build(lab: &Lab, name: &str, nonce: &str) -> (u64, u64) {
    let before = counts(lab);
    lab.build("alice", &["/t/blob.nix", "-A", name, "--argstr", "nonce", nonce]);
    let after = counts(lab);
    (after.0 - before.0, after.1 - before.1)
}

const MIB: u64 = 1 << 20;
/// What makes lines, so that it becomes much smaller when it is packed.
const LINES: &str = "seq 1 4000000 >/t/blob; chmod 644 /t/blob";
const LINES_LEN: u64 = 30_888_896;
const NOISE_LEN: u64 = 24 * MIB;

#[test]
fn what_is_large_is_packed_on_a_slow_link_and_only_where_both_sides_can() {
    on_every_release(LOCAL_POOL, |lab| {
        let far = prepare(lab, SLOW);
        lab.sh(LINES);
        // The builder of every release as it comes has no `zstd`.
        let (to, from) = build(lab, "copy", "plain");
        assert!(to > LINES_LEN && from > LINES_LEN, "{to} bytes to the builder, {from} from it");
        // Whether a builder has it is looked at once.
        give_zstd(&far, "zstd");
        assert!(lab.stop_broker().success());
        lab.start_broker();
        let (to, from) = build(lab, "copy", "packed");
        // A third, but for the blocks that leave before anything is measured: few, as long as one lane is enough.
        assert!(to < LINES_LEN / 2, "{to} bytes to the builder\n{}", lab.diagnosis());
        assert!(from < LINES_LEN / 2, "{from} bytes from the builder\n{}", lab.diagnosis());
        let [path] = &lab.build("alice", &["/t/blob.nix", "-A", "copy", "--argstr", "nonce", "packed"])[..]
        else {
            panic!()
        };
        assert_eq!(
            lab.run(
                "alice",
                &["sh", "-c", &format!("head -c {LINES_LEN} {path} | cmp - /t/blob && tail -n 1 {path}")]
            ),
            "packed"
        );
        lab.sh("nix-store --verify --check-contents");
    });
}

#[test]
fn a_packed_stream_that_is_damaged_is_sent_again_as_it_is() {
    on_every_release(LOCAL_POOL, |lab| {
        let far = prepare(lab, SLOW);
        lab.sh(LINES);
        give_zstd(&far, "real");
        for (direction, option) in [("up", "-dqc"), ("down", "-1qc")] {
            let script = format!("[ \"$1\" = {option} ] || exec real \"$@\"\nreal \"$@\" | tr 1e 2f\n");
            far.install("/m/bin/zstd", &format!("#!/bin/sh\n{script}"));
            assert!(lab.stop_broker().success());
            lab.sh(": > /var/lib/nix-broker/broker.log");
            lab.start_broker();
            let [path] =
                &lab.build("alice", &["/t/blob.nix", "-A", "copy", "--argstr", "nonce", direction])[..]
            else {
                panic!()
            };
            lab.run("alice", &["sh", "-c", &format!("head -c {LINES_LEN} {path} | cmp - /t/blob")]);
            let log = lab.sh("cat /var/lib/nix-broker/broker.log");
            assert!(log.contains("large transfers use one connection for a while"), "{direction}: {log}");
        }
        lab.sh("nix-store --verify --check-contents");
    });
}

#[test]
fn a_builder_fetches_what_it_can_by_itself_when_the_client_allows_it() {
    on_every_release(LOCAL_POOL, |lab| {
        let far = prepare(lab, FAST);
        lab.sh(&format!("head -c {NOISE_LEN} /dev/urandom >/t/blob; chmod 644 /t/blob"));
        for (nonce, allowed) in [("no", false), ("yes", true)] {
            lab.configure_nix(&format!("builders-use-substitutes = {allowed}"));
            let evaluate = ["nix-instantiate", "--eval", "--read-write-mode", "/t/blob.nix", "-A", "input"];
            let input = lab.run("alice", &[&evaluate[..], &["--argstr", "nonce", nonce]].concat());
            let input = input.trim_matches('"');
            lab.run("root", &["nix", "copy", "--to", "file:///tmp/cache?compression=none", input]);
            // The builder is another machine, with the cache at hand.
            far.unpack(&lab.root().join("tmp/cache"), "/m/cache");
            let (to, _) = build(lab, "measure", nonce);
            if allowed {
                assert!(to < 4 * MIB, "{to} bytes to a builder that could fetch them\n{}", lab.diagnosis());
            } else {
                assert!(to > NOISE_LEN, "{to} bytes: the builder fetches what it was not allowed to");
            }
        }
    });
}

#[test]
fn a_huge_upload_is_overtaken_by_small_builds_that_share_an_input_with_it() {
    on_release("forky", LOCAL_POOL, |lab| {
        let _far = prepare(lab, Wire { rate: 2000, ..SLOW });
        // More than a minute's worth.
        lab.sh(&format!("head -c {} /dev/urandom >/t/blob; chmod 644 /t/blob", 8 * NOISE_LEN));
        let words =
            ["nix-build", "--no-out-link", "/t/blob.nix", "-A", "measure", "--argstr", "nonce", "huge"];
        let mut huge = lab.command("alice", &words);
        let mut huge =
            huge.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        lab.wait("the upload to be under way", || counts(lab).0 > 8 * MIB);
        // They want the same shell, which the huge build brings.
        let graph =
            ["/t/graph.nix", "--argstr", "nonce", "o", "--argstr", "width", "3", "--argstr", "depth", "3"];
        lab.build("alice", &graph);
        let (to, _) = counts(lab);
        assert!(huge.try_wait().unwrap().is_none(), "{}", text(&huge.wait_with_output().unwrap()));
        assert!(to < 8 * NOISE_LEN, "they waited until {to} bytes had gone");
        assert_eq!(lab.builds_in("uploading"), 1, "{:#}", lab.status());
        let _gone = lab.output("root", &["pkill", "-INT", "-x", "nix-build"]);
        let _cancelled = huge.wait_with_output().unwrap();
        lab.wait("the build to be given up", || lab.builds_in("uploading") == 0);
    });
}
