//! What one builder has goes to another without us: two builders that reach each other, each behind a wire of its own for
//! the broker, which is slow and counts. What is looked at is what went over the wires, and what is left on the builders.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

// Harness code: not every test file uses all of it.
#[allow(dead_code)]
#[path = "common/lab.rs"]
mod lab;

use std::ops::Deref;
use std::process::{Child, Stdio};

use lab::{LOCAL_POOL, Lab, on_every_release, on_release, text};

/// A builder: a machine of its own on the lab's network.
struct Far {
    machine: Lab,
    /// `a` or `b`: the feature that only it has. Others know it as `far-a`.
    letter: char,
}

impl Far {
    fn beside(lab: &Lab, letter: char) -> Self {
        let far = Self { machine: Lab::beside(lab, lab.release()), letter };
        far.serve_ssh(far.address(), lab, "PATH=/m/bin:/usr/bin:/bin");
        far.sh("mkdir /m/bin; echo \"cert-authority,restrict $(cat /m/keys)\" >> /m/keys
            printf 'system-features = a b\nbuilders =\n' >> /etc/nix/nix.conf");
        far.start_daemon(&[]);
        far
    }

    /// Where its sshd is.
    fn address(&self) -> &'static str {
        if self.letter == 'a' { "127.0.0.5" } else { "127.0.0.6" }
    }

    /// Where the broker's wire to it begins.
    fn wire(&self) -> &'static str {
        if self.letter == 'a' { "127.0.0.15" } else { "127.0.0.16" }
    }

    fn pool(&self) -> String {
        let (letter, key) = (self.letter, self.host_key());
        format!(
            "[[pool]]\nname = \"{letter}\"\nslots = 4\nidle-timeout = \"600s\"\nlaunch-timeout = \"60s\"\n\
             features = [\"{letter}\"]\n[[pool.hosts]]\naddress = \"far-{letter}\"\nport = 2200\nuser = \"root\"\n\
             host-keys = [\"{key}\"]\n"
        )
    }

    /// Puts a program that is `sh` before the real one of that name, which it knows as `$real`.
    fn shadow(&self, name: &str, script: &str) {
        self.install(&format!("/m/bin/{name}"), &format!("#!/bin/sh\nreal=/usr/bin/{name}\n{script}\n"));
    }

    /// Files and programs of transfers.
    fn left(&self) -> String {
        self.sh("ls -d /tmp/nix-broker-* 2>/dev/null || true; pgrep -a '^(ssh|cat|head|timeout)$' || true")
    }
}

impl Deref for Far {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.machine
    }
}

/// Where a builder finds the other.
#[derive(Clone, Copy)]
enum Between {
    /// On their own network.
    Network,
    /// Something that takes connections and says nothing, as behind a bad firewall.
    Silence,
}

/// Makes the builders of a lab two, each at the other end of a wire of 40 ms and 100 Mbit/s.
fn prepare(lab: &mut Lab, between: Between) -> [Far; 2] {
    let both = ['a', 'b'].map(|letter| Far::beside(lab, letter));
    lab.write("/m/wire.pl", include_str!("lab/wire.pl"));
    lab.write("/t/direct.nix", include_str!("nix/direct.nix"));
    let silence =
        "perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(LocalAddr => $ARGV[0], Listen => 9); sleep'";
    lab.serve("127.0.0.77:2200", &format!("{silence} 127.0.0.77:2200"), "/m/silence.log");
    for far in &both {
        let Far { letter, .. } = far;
        lab.sh(&format!("echo {} far-{letter} >>/etc/hosts", far.wire()));
        let (wire, address) = (format!("{}:2200", far.wire()), format!("{}:2200", far.address()));
        let relay = format!("perl /m/wire.pl {wire} {address} 20 12500 /m/counts-{letter}");
        lab.serve(&wire, &relay, &format!("/m/wire-{letter}.log"));
        for other in &both {
            let address = match between {
                Between::Network => other.address(),
                Between::Silence => "127.0.0.77",
            };
            far.sh(&format!("echo {address} far-{} >>/etc/hosts", other.letter));
        }
    }
    let pools = both.each_ref().map(Far::pool).concat();
    configure(lab, &format!("{pools}[metrics]\nlisten = \"127.0.0.1:9119\"\n"));
    both
}

/// Starts the broker anew with this configuration.
fn configure(lab: &mut Lab, config: &str) {
    assert!(lab.stop_broker().success());
    lab.write("/etc/nix-broker/config.toml", config);
    lab.start_broker();
}

/// Bytes to a builder, up to now.
fn sent_to(lab: &Lab, letter: char) -> u64 {
    lab.sh(&format!("cut -d' ' -f1 /m/counts-{letter}")).parse().unwrap()
}

/// What makes `used` of `direct.nix`, and all before it.
fn words(nonce: &str) -> [&str; 7] {
    ["/t/direct.nix", "-A", "used", "--argstr", "nonce", nonce, "--argstr"]
}

/// Builds it; says how many bytes of ours went to the builder that needs what the other made.
fn build(lab: &Lab, nonce: &str) -> u64 {
    let before = sent_to(lab, 'b');
    lab.build("alice", &[&words(nonce)[..], &["mib", "64"]].concat());
    sent_to(lab, 'b') - before
}

/// Lines of the broker's log that say this.
fn said(lab: &Lab, what: &str) -> usize {
    lab.sh("cat /var/lib/nix-broker/broker.log").lines().filter(|line| line.contains(what)).count()
}

/// A number that the broker counts.
fn counted(lab: &Lab, series: &str) -> u64 {
    let page = lab.run("root", &["busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:9119/metrics"]);
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("nix_broker_{series} ")));
    line.unwrap_or_else(|| panic!("no {series}: {page}")).parse().unwrap()
}

/// Where the inputs of what needed them came from, by what a person can ask.
fn where_from(lab: &Lab) -> Vec<String> {
    let why = lab.run("root", &["broker", "why", "used"]);
    why.lines().filter_map(|line| Some(line.split_once("has its inputs: ")?.1.to_owned())).collect()
}

fn assert_nothing_left(lab: &Lab, builders: &[&Far]) {
    for far in builders {
        lab.wait("files and programs of the transfer to be gone", || far.left().is_empty());
        let verified = far.sh("nix-store --verify --check-contents 2>&1");
        assert!(!["error", "warning", "modified"].iter().any(|word| verified.contains(word)), "{verified}");
    }
}

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
const CAME: &str = "inputs came from another builder";
const CANNOT: &str = "one builder is not to send to another";

/// Begins to build it, and returns while a builder sends the other a part of it, the rest of which it keeps for a while.
fn begin_transfer(lab: &Lab, to: &Far, nonce: &str) -> Child {
    let held = || -> u64 { to.sh("du -smc /nix/store | tail -n 1 | cut -f1").parse().unwrap() };
    let before = held();
    let words = [&["nix-build", "--no-out-link"], &words(nonce)[..], &["mib", "64"]].concat();
    let mut command = lab.command("alice", &words);
    let build = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    lab.wait("the transfer to be under way", || held() > before + 20);
    build
}

#[test]
fn what_one_builder_made_comes_to_another_without_us_and_leaves_nothing_behind() {
    on_every_release(LOCAL_POOL, |lab| {
        let [a, b] = prepare(lab, Between::Network);
        let sent = build(lab, "1");
        assert!(sent < 4 * MIB, "{sent} bytes that another builder could send\n{}", lab.diagnosis());
        assert_eq!((said(lab, CAME), said(lab, CANNOT)), (1, 0), "{}", lab.diagnosis());
        let from = where_from(lab);
        // The busybox that everything is built with is among them.
        assert!(from.len() == 1 && from[0].contains(", 2 from b-1 (6"), "{from:?}");
        assert!(counted(lab, "direct_bytes_total") >= SIZE);
        let done = |outcome| counted(lab, &format!("direct_transfers_total{{outcome=\"{outcome}\"}}"));
        assert_eq!((done("done"), done("fell-back")), (1, 0));
        assert!(counted(lab, "transfer_bytes_total{direction=\"up\"}") < 4 * MIB);
        assert_nothing_left(lab, &[&a, &b]);
        // Whoever does not want it says so.
        configure(lab, &[a.pool().replace("slots", "direct = false\nslots"), b.pool()].concat());
        let sent = build(lab, "2");
        assert!(sent > SIZE, "{sent} bytes: another builder sent what it was not to\n{}", lab.diagnosis());
    });
}

#[test]
fn builders_that_do_not_reach_each_other_get_everything_from_us() {
    on_release("forky", LOCAL_POOL, |lab| {
        let [a, b] = prepare(lab, Between::Silence);
        for nonce in ["1", "2"] {
            let sent = build(lab, nonce);
            assert!(sent > SIZE, "{sent} bytes\n{}", lab.diagnosis());
        }
        // The second time it is not even tried.
        assert_eq!((said(lab, CAME), said(lab, CANNOT)), (0, 1), "{}", lab.diagnosis());
        let done = |outcome| counted(lab, &format!("direct_transfers_total{{outcome=\"{outcome}\"}}"));
        assert_eq!((done("done"), done("fell-back"), counted(lab, "direct_bytes_total")), (0, 1, 0));
        assert_nothing_left(lab, &[&a, &b]);
        // Where the broker's word does not count, neither.
        b.sh("sed -i /cert-authority/d /m/keys; echo 127.0.0.6 far-b >/etc/hosts");
        a.sh("echo 127.0.0.6 far-b >/etc/hosts");
        configure(lab, &[a.pool(), b.pool()].concat());
        let sent = build(lab, "3");
        assert!(sent > SIZE, "{sent} bytes\n{}", lab.diagnosis());
        assert_eq!((said(lab, "Permission denied"), said(lab, CANNOT)), (1, 2), "{}", lab.diagnosis());
        assert_nothing_left(lab, &[&a, &b]);
    });
}

#[test]
fn a_builder_that_is_lost_while_it_sends_or_sends_something_else_costs_nothing_but_time() {
    on_release("trixie", LOCAL_POOL, |lab| {
        let [a, b] = prepare(lab, Between::Network);
        // Some bytes of it are others.
        a.shadow("ssh", "{ head -c 30000000; tr ab ba; } | $real \"$@\"");
        let sent = build(lab, "1");
        assert!(sent > SIZE, "{sent} bytes\n{}", lab.diagnosis());
        assert_eq!((said(lab, CAME), said(lab, CANNOT)), (0, 1), "{}", lab.diagnosis());
        assert_nothing_left(lab, &[&a, &b]);
        // Nobody wants it any more.
        configure(lab, &[a.pool(), b.pool()].concat());
        a.shadow("ssh", "{ head -c 30000000; sleep 9; cat; } | $real \"$@\"");
        let cancelled = begin_transfer(lab, &b, "2");
        lab.signal("-INT", &["-x", "nix-build"]);
        let output = cancelled.wait_with_output().unwrap();
        assert!(!output.status.success(), "{}", text(&output));
        assert_nothing_left(lab, &[&a, &b]);
        assert_eq!((said(lab, CAME), said(lab, CANNOT)), (0, 1), "{}", lab.diagnosis());
        // Its power is cut.
        let before = sent_to(lab, 'b');
        let build = begin_transfer(lab, &b, "3");
        a.halt();
        let output = build.wait_with_output().unwrap();
        assert!(output.status.success(), "{}\n{}", text(&output), lab.diagnosis());
        let sent = sent_to(lab, 'b') - before;
        assert!(sent > SIZE, "{sent} bytes\n{}", lab.diagnosis());
        assert_nothing_left(lab, &[&b]);
    });
}

#[test]
fn what_lets_a_builder_send_to_another_lets_it_do_nothing_else() {
    on_release("forky", LOCAL_POOL, |lab| {
        let [a, b] = prepare(lab, Between::Network);
        a.shadow("ssh", "mkdir -p /m/stolen; cp key cert known /m/stolen; exec $real \"$@\"");
        let sent = build(lab, "1");
        assert!(sent < 4 * MIB, "{sent} bytes\n{}", lab.diagnosis());
        a.sh("grep -q 'PRIVATE KEY' /m/stolen/key && grep -q cert /m/stolen/cert");
        let ssh = |user: &str, options: &str, command: &str| {
            a.sh(&format!(
                "cd /m/stolen; echo stolen | timeout 200 /usr/bin/ssh -F none -p 2200 {options} -i key -o IdentitiesOnly=yes \
                 -o UserKnownHostsFile=known -o HostKeyAlias=builder -o BatchMode=yes -o ConnectTimeout=9 \
                 {user}@far-b {command} 2>&1 && echo ended 0 || echo \"ended $?\""
            ))
        };
        let with_pass = "-o CertificateFile=cert";
        // The broker's stream is over, and with it the only thing that the pass was for: whatever is asked, that is what runs.
        assert_eq!(ssh("root", with_pass, "touch /m/was-here"), "ended 9");
        assert_eq!(b.sh("ls -A /tmp; ls /m"), "bin\nhost_key\nhost_key.pub\nkeys\nlog\nsshd_config");
        let forwarded = ssh("root", &format!("{with_pass} -W 127.0.0.1:2200"), "");
        assert!(forwarded.contains("administratively prohibited"), "{forwarded}");
        let refused = [ssh("alice", with_pass, "id"), ssh("root", "", "id")];
        assert!(refused.iter().all(|said| said.contains("Permission denied")), "{refused:?}");
        // Nor on another builder, although that takes the broker's word too.
        let here = ssh(
            "root",
            &format!(
                "{with_pass} -o HostName=127.0.0.5 -o StrictHostKeyChecking=no -o UserKnownHostsFile=none"
            ),
            "id",
        );
        assert!(!here.contains("uid="), "{here}");
        // And no longer than some minutes.
        let limits = a.sh("ssh-keygen -L -f /m/stolen/cert");
        assert!(limits.contains("force-command") && limits.contains("Extensions: (none)"), "{limits}");
    });
}
