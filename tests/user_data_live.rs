//! User-data on machines with a real Nix, a real sshd and real build users: what a builder on EC2 is, but for systemd and
//! the firewall, which are not run on these machines (their calls are checked in `user_data`).

#![cfg(feature = "ec2")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on says so by panicking, and where it is by printing"
)]

#[path = "common/lab.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod lab;

use std::collections::BTreeSet;
use std::time::Duration;

use lab::Lab;
use nix_broker::model::{BuilderFacts, Feature};
use nix_broker::provider::ec2::boot::user_data::{BootSpec, render};
use nix_broker::provider::ec2::boot::{beat, ready};
use nix_broker::provider::probe;
use nix_broker::ssh::HostKeyPair;

const RELEASES: [&str; 3] = ["bookworm", "trixie", "forky"];

/// Programs that a lab host lacks or must not run; sshd counts as started per connection, and Nix has no daemon.
const STUBS: &str = "for name in systemctl systemd-run iptables ip6tables; do
    printf '#!/bin/sh\\necho \"${0##*/} $*\" >>/run/calls\\ncase $* in is-active*|*-C*) exit 1 ;; esac\\n' >/usr/local/bin/$name
    chmod +x /usr/local/bin/$name
done";

/// Logs in the way the broker does: with its own key alone, to the host key of the launch alone.
const SSH: &str = "ssh -F none -o BatchMode=yes -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes \
    -o UserKnownHostsFile=/t/known_hosts -o HostKeyAlgorithms=ssh-ed25519 -i /t/client_key root@127.0.0.1";

fn features() -> BTreeSet<Feature> {
    ["big-parallel", "gccarch-skylake", "gccarch-znver3"].into_iter().map(Feature::new).collect()
}

/// A booted builder, whose sshd runs.
fn builder(release: &'static str) -> Lab {
    eprintln!("--- {release}");
    let lab = Lab::bare(release, "");
    let host = HostKeyPair::generate().unwrap();
    let client = HostKeyPair::generate().unwrap();
    let features = features();
    let spec = BootSpec {
        host_key_private: &host.private_openssh_pem,
        host_key_public: &host.public_openssh,
        client_key: &client.public_openssh,
        system_features: &features,
        lease: Duration::from_secs(900),
        idle: Duration::from_secs(1200),
        hard_limit: Duration::from_secs(28_800),
        build_users: 12,
        nix_settings: &[],
    };
    lab.write("/etc/ec2-metadata/user-data", &render(&spec).unwrap());
    lab.write("/t/client_key", &client.private_openssh_pem);
    lab.write("/t/known_hosts", &format!("127.0.0.1 {}\n", host.public_openssh));
    lab.sh(STUBS);
    lab.sh("chmod 600 /t/client_key; mkdir -p /run/sshd /nix/store; rm -f /etc/ssh/ssh_host_*");
    // As NixOS does it before sshd starts; sshd refuses a configuration without any host key.
    lab.sh("ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key");
    lab.sh("bash /etc/ec2-metadata/user-data >/run/user-data.log 2>&1");
    lab.sh("setsid /usr/sbin/sshd -D </dev/null >/run/sshd.log 2>&1 &");
    lab.wait("a login", || lab.output("root", &["sh", "-c", &format!("{SSH} true")]).status.success());
    lab
}

/// What a command prints over SSH, as the broker hears it.
fn over_ssh(lab: &Lab, command: &str) -> Vec<u8> {
    lab.write("/t/command", command);
    lab.output("root", &["sh", "-c", &format!("{SSH} \"$(cat /t/command)\"")]).stdout
}

fn facts(lab: &Lab) -> BuilderFacts {
    probe::parse(&over_ssh(lab, probe::COMMAND)).unwrap()
}

#[test]
fn every_nix_takes_the_features_and_the_key_opens_it() {
    for release in RELEASES {
        let lab = builder(release);
        let progress = ready::parse(&over_ssh(&lab, &ready::command())).unwrap();
        assert!(matches!(progress.state, ready::State::Ready { .. }), "{progress:?}");
        let facts = facts(&lab);
        assert_eq!(facts.offer.features, features(), "outright, and nothing besides");
        assert!(facts.cpu_flags.len() > 5, "{:?}", facts.cpu_flags);
        let complaints = lab.sh("nix --extra-experimental-features nix-command show-config 2>&1 >/dev/null");
        assert!(!complaints.contains("unknown setting"), "{complaints}");
        let users = lab.sh("getent group nixbld | cut -d: -f4 | tr , '\\n' | wc -l");
        assert_eq!(users, "12", "10 in the image, and the missing ones");
        let sshd = lab.sh("/usr/sbin/sshd -T").to_lowercase();
        assert!(sshd.contains("maxsessions 1000") && sshd.contains("maxstartups 1000:30:1000"), "{sshd}");
        assert!(sshd.contains("passwordauthentication no"), "{sshd}");
    }
}

#[test]
fn the_heartbeat_renews_the_lease_and_a_real_build_keeps_the_machine() {
    for release in RELEASES {
        let lab = builder(release);
        let order = beat::BeatOrder { spot: false, in_use: false };
        let beat = beat::parse(&over_ssh(&lab, &beat::command(order))).unwrap();
        assert!(beat.disk_free.unwrap() > 0 && beat.load.is_some(), "{beat:?}");
        let lease: u64 = lab.sh("cat /run/nix-broker/lease_at").parse().unwrap();
        assert_eq!(lease, beat.uptime.as_secs());

        lab.sh("sh /run/nix-broker/dead-man.sh");
        assert_eq!(lab.sh("ls /run/nix-broker/busy_at 2>/dev/null || true"), "", "nothing builds");
        // Needs a feature that only user-data has given it.
        let expression = "derivation { name = \"long\"; system = builtins.currentSystem; builder = \"/t/bin/busybox\"; \
            args = [ \"sh\" \"-c\" \"/t/bin/busybox sleep 1000\" ]; requiredSystemFeatures = [ \"gccarch-znver3\" ]; }";
        lab.write("/t/long.nix", expression);
        lab.sh("setsid nix-build --no-out-link /t/long.nix </dev/null >/run/build.log 2>&1 &");
        lab.wait("the build to be seen", || {
            !lab.sh("sh /run/nix-broker/dead-man.sh; cat /run/nix-broker/busy_at 2>/dev/null || true")
                .is_empty()
        });
        // Leases of a second without the broker pass at once; the build keeps the machine.
        lab.sh("cd /run/nix-broker; echo 1 >armed_at; rm lease_at
            printf 'lease=1\\nlease-busy=99999999\\nidle=99999999\\nhard=99999999\\n' >limits
            sh dead-man.sh; [ ! -e off ]");
        lab.sh("pkill -f '[b]usybox sleep 1000'");
        lab.wait("the machine to end once nothing builds", || {
            !lab.sh("sh /run/nix-broker/dead-man.sh 2>/dev/null; cat /run/nix-broker/off 2>/dev/null || true")
                .is_empty()
        });
        let calls = lab.sh("cat /run/calls");
        assert!(calls.lines().any(|call| call == "systemctl poweroff"), "{calls}");
    }
}
