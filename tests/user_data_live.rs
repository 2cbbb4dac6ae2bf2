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
use nix_broker::provider::ec2::boot::cache::BootCache;
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
    booted(Lab::bare(release, ""), None)
}

fn booted(lab: Lab, cache: Option<BootCache<'_>>) -> Lab {
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
        cache,
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

/// A key of Nix's own making.
struct CacheKey {
    secret: String,
    public: String,
}

fn cache_key(lab: &Lab, name: &str) -> CacheKey {
    lab.sh(&format!("cd /t && nix-store --generate-binary-cache-key {name} {name}.secret {name}.public"));
    CacheKey {
        secret: lab.sh(&format!("cat /t/{name}.secret")),
        public: lab.sh(&format!("cat /t/{name}.public")),
    }
}

/// Builds something that no other test builds, and says what Nix said and where it is.
fn build_on(lab: &Lab, name: &str) -> (String, String) {
    let expression = format!(
        "derivation {{ name = \"{name}\"; system = builtins.currentSystem; builder = \"/t/bin/busybox\"; \
         args = [ \"sh\" \"-c\" \"echo {name} >$out; :\" ]; }}"
    );
    lab.write(&format!("/t/{name}.nix"), &expression);
    let built = lab.nix_build("root", &[&format!("/t/{name}.nix")]);
    assert!(built.status.success(), "{}", lab::text(&built));
    (
        String::from_utf8_lossy(&built.stderr).into_owned(),
        String::from_utf8_lossy(&built.stdout).trim().to_owned(),
    )
}

/// What `systemd-run` starts on an instance; here it is only written down.
fn start_uploads(lab: &Lab) {
    let started = "systemd-run --quiet --unit=nix-broker-cache --property=Restart=always --property=RestartSec=10 \
                   --property=IOSchedulingClass=idle /bin/sh /run/nix-broker/cache.sh upload";
    assert!(lab.sh("cat /run/calls").lines().any(|call| call == started), "{}", lab.sh("cat /run/calls"));
    lab.sh("NIX_BROKER_CACHE_PAUSE=0.2 setsid sh /run/nix-broker/cache.sh upload </dev/null >/run/uploads.log 2>&1 &");
}

fn queue(lab: &Lab) -> String {
    lab.sh("ls /nix/var/nix/gcroots/nix-broker-cache 2>/dev/null || true")
}

#[test]
fn what_one_machine_built_the_next_one_takes_from_the_cache() {
    for release in RELEASES {
        eprintln!("--- {release}");
        let cache = Lab::bare(release, "");
        cache.install("/t/cache.pl", include_str!("lab/cache.pl"));
        cache.serve("127.0.0.1:8099", "perl /t/cache.pl 8099 /srv/cache", "/run/cache.log");
        let key = cache_key(&cache, "cache-1");
        let (stranger, url) = (cache_key(&cache, "stranger-1"), "http://127.0.0.1:8099");
        let boot = |secret, public| {
            booted(
                Lab::beside(&cache, release),
                Some(BootCache { url, public_key: public, secret_key: secret }),
            )
        };

        let first = boot(Some(key.secret.as_str()), key.public.as_str());
        assert_eq!(first.sh("stat -c %a /run/nix-broker/cache-key"), "600");
        let (said, path) = build_on(&first, "kept");
        assert!(said.contains("building '/nix/store/"), "{said}");
        // The build has ended, and nothing has been uploaded: it does not wait, and nothing is deleted meanwhile.
        assert_eq!(queue(&first), path.strip_prefix("/nix/store/").unwrap());
        assert!(!first.output("root", &["nix-store", "--delete", &path]).status.success());
        start_uploads(&first);
        first.wait("the upload", || queue(&first).is_empty());
        let log = cache.sh("cat /run/cache.log");
        assert!(log.contains("PUT nix-cache-info") && log.contains(".narinfo 200"), "{log}");
        drop(first);

        // A fresh machine that only takes.
        let second = boot(None, key.public.as_str());
        let (said, again) = build_on(&second, "kept");
        assert_eq!(again, path);
        assert!(said.contains("from 'http://127.0.0.1:8099") && !said.contains("building '"), "{said}");
        assert_eq!(
            second.sh("ls /run/nix-broker | grep cache || true"),
            "",
            "no key, and nothing to upload with"
        );
        drop(second);

        // One that trusts somebody else builds by itself.
        let third = boot(None, stranger.public.as_str());
        let (said, _) = build_on(&third, "kept");
        assert!(said.contains("building '/nix/store/"), "{said}");
    }
}

#[test]
fn a_cache_that_is_gone_fails_and_delays_no_build() {
    for release in RELEASES {
        eprintln!("--- {release}");
        let keys = Lab::bare(release, "");
        let key = cache_key(&keys, "cache-1");
        let cache =
            BootCache { url: "http://127.0.0.1:9", public_key: &key.public, secret_key: Some(&key.secret) };
        let lab = booted(Lab::bare(release, ""), Some(cache));

        let (said, path) = build_on(&lab, "alone");

        assert!(said.contains("building '/nix/store/"), "{said}");
        assert_eq!(queue(&lab), path.strip_prefix("/nix/store/").unwrap());
        start_uploads(&lab);
        lab.wait("the uploads to be given up", || queue(&lab).is_empty());
        let said = lab.sh("cat /run/uploads.log");
        assert_eq!(said.matches("not in the cache yet").count(), 3, "{said}");
        assert_eq!(lab.sh("ls /run/nix-broker/cache-failures"), "");
        lab.run("root", &["nix-store", "--verify-path", &path]);
    }
}
