//! Socket activation, by a real systemd with the units of contrib/systemd: it listens for the broker before that has
//! started and while it is started again, and does not start what a person has stopped.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

// Harness code: not every test file uses all of it.
#[allow(dead_code)]
#[path = "common/lab.rs"]
mod lab;
#[path = "common/systemd.rs"]
mod systemd;

use lab::{LOCAL_POOL, Lab, on_each_of, text};
use systemd::{Systemd, WITH_SYSTEMD};

/// As an ordinary user, on a machine that builds nothing itself: a hook that does not wait for the broker fails this.
fn build(lab: &Lab, nonce: &str) {
    let graph =
        ["/t/graph.nix", "--argstr", "nonce", nonce, "--argstr", "width", "3", "--argstr", "depth", "2"];
    assert_eq!(lab.build("alice", &graph).len(), 1);
}

/// A machine with our units, of which none is started.
fn machine(release: &'static str) -> (Lab, Systemd) {
    let lab = Lab::bare(release, LOCAL_POOL);
    lab.sh("rm -rf /run/nix-broker");
    lab.configure_nix("");
    let systemd = Systemd::start(&lab);
    systemd.install_units(&lab);
    (lab, systemd)
}

#[test]
fn hooks_wait_for_a_broker_that_is_not_up_yet_or_is_started_again() {
    on_each_of(&WITH_SYSTEMD, |release| {
        let (lab, systemd) = machine(release);
        systemd.ctl(&lab, "start nix-broker.socket");
        assert_eq!(
            lab.sh("stat -c '%a %F' /run/nix-broker/broker.sock /run/nix-broker"),
            "666 socket\n755 directory"
        );
        assert!(!lab.runs("broker serve"), "nobody has asked yet");

        build(&lab, "first");
        assert!(lab.runs("broker serve"));
        assert_eq!(lab.ended("succeeded"), 7);

        // Every hook of these builds meets another moment of a restart; systemd makes the socket anew in each.
        for round in 0..4 {
            let before = lab.sh("pgrep -x -o -u nix-broker broker");
            systemd.ctl(&lab, "restart --no-block nix-broker.service");
            build(&lab, &format!("restart-{round}"));
            lab.wait("the new broker", || {
                let now = lab.output("root", &["pgrep", "-x", "-o", "-u", "nix-broker", "broker"]);
                now.status.success() && String::from_utf8_lossy(&now.stdout).trim() != before
            });
        }

        // systemd counts starts, five in ten seconds at most; the service's are forgotten here. Its socket starts with it
        // each time, and must not have a count of its own: without it a broker that comes back would end for good.
        for _ in 0..6 {
            systemd.ctl(&lab, "reset-failed nix-broker.service");
            systemd.ctl(&lab, "restart nix-broker.service");
        }
        systemd.ctl(&lab, "reset-failed nix-broker.service");

        // Killed, it comes back, and so does its socket.
        lab.signal("-KILL", &["-x", "-o", "broker"]);
        lab.wait("the broker to answer again", || lab.try_status().is_some());
        build(&lab, "killed");

        // Another place for the socket: the old one is refused, goes with the service that refused it, and comes back new.
        lab.sh(
            "sed -i 's,^ListenStream=.*,ListenStream=/srv/other.sock,' /etc/systemd/system/nix-broker.socket",
        );
        lab.write("/etc/nix-broker/config.toml", &format!("socket = \"/srv/other.sock\"\n{LOCAL_POOL}"));
        systemd.ctl(&lab, "daemon-reload");
        let _refused = systemd.try_ctl(&lab, "restart nix-broker.service");
        lab.wait("the broker to answer elsewhere", || {
            systemd.states(&lab) == "active\nactive" && lab.try_status().is_some()
        });
        assert_eq!(lab.sh("ls /srv/other.sock"), "/srv/other.sock");

        systemd.ctl(&lab, "stop nix-broker.service");
        lab.assert_nothing_left();
        systemd.stop(&lab);
    });
}

#[test]
fn what_was_stopped_is_not_started_by_the_next_who_asks() {
    on_each_of(&WITH_SYSTEMD, |release| {
        let (lab, systemd) = machine(release);
        systemd.ctl(&lab, "start nix-broker.service");
        assert!(lab.try_status().is_some());

        systemd.ctl(&lab, "stop nix-broker.service");

        assert_eq!(systemd.states(&lab), "inactive\ninactive");
        assert_eq!(lab.sh("ls /run/nix-broker"), "", "a hook must see at once that nobody is there");
        for user in ["root", "alice"] {
            assert!(!lab.output(user, &["broker", "status"]).status.success());
        }
        assert!(!lab.nix_build("alice", &["/t/graph.nix", "--argstr", "nonce", "stopped"]).status.success());
        assert_eq!(systemd.states(&lab), "inactive\ninactive");
        lab.assert_nothing_left();

        // A build that nothing else can do waits a little for whoever starts it again.
        std::thread::scope(|scope| {
            let build = "nix-build --no-out-link /t/graph.nix --argstr nonce started 2>said";
            let build = scope.spawn(|| lab.run("alice", &["sh", "-c", build]));
            lab.wait("Nix to be told to come back", || {
                let said = lab.output("alice", &["grep", "-q", "asking it again", "said"]);
                assert!(!build.is_finished(), "it did not wait");
                said.status.success()
            });
            systemd.ctl(&lab, "start nix-broker.service");
            build.join().unwrap();
        });
        systemd.ctl(&lab, "stop nix-broker.service");
        systemd.stop(&lab);
    });
}

/// systemd accepts connections for a broker that never comes: Nix must not wait for it for long, nor for ever.
#[test]
fn a_broker_that_cannot_start_is_done_without() {
    on_each_of(&WITH_SYSTEMD, |release| {
        let (lab, systemd) = machine(release);
        lab.write("/etc/nix-broker/config.toml", "[[pool]]\nname = \"nothing\"\n");
        lab.configure_nix("max-jobs = 2");
        systemd.ctl(&lab, "start nix-broker.socket");

        let built =
            lab.nix_build("alice", &["/t/graph.nix", "--argstr", "nonce", "alone", "--argstr", "width", "2"]);

        assert!(built.status.success(), "{}", text(&built));
        assert!(text(&built).contains("building without it"), "{}", text(&built));
        lab.wait("systemd to give up", || systemd.states(&lab).ends_with("failed"));
        systemd.stop(&lab);
    });
}

/// systemd made the socket, as root; who is at the other end is still what the kernel says of each connection.
#[test]
fn an_activated_broker_looks_at_who_asks() {
    on_each_of(&WITH_SYSTEMD, |release| {
        let (lab, systemd) = machine(release);
        systemd.ctl(&lab, "start nix-broker.socket");
        let as_user = |user: &str, words: &[&str]| {
            let output = lab.output(user, words);
            (output.status.success(), text(&output))
        };
        let (shown, said) = as_user("alice", &["broker", "status"]);
        assert!(shown, "{said}");
        let (started, said) = as_user("alice", &["broker", "start", "local"]);
        assert!(!started && said.contains("root"), "{said}");
        let (started, said) = as_user("root", &["broker", "start", "local"]);
        assert!(started, "{said}");
        systemd.ctl(&lab, "stop nix-broker.service");
        systemd.stop(&lab);
    });
}

/// Hooks look where the configuration says, so a broker that listened elsewhere would wait for ever.
#[test]
fn a_socket_that_is_not_the_configurations_is_refused() {
    on_each_of(&WITH_SYSTEMD, |release| {
        let lab = Lab::bare(release, LOCAL_POOL);
        let activate = |listen: &str| {
            let script = format!(
                "set -- $(id -u); systemd-socket-activate {listen} -E NIX_BROKER_LOG -E PATH -E HOME broker serve --state-dir /t/state & \
                sleep 0.1; until curl --silent --max-time 1 --unix-socket /t/one.sock http://x/ || ! kill -0 $! 2>/dev/null; do sleep 0.1; done; wait $!"
            );
            text(&lab.output("root", &["sh", "-c", &script]))
        };
        let said = activate("--listen=/t/one.sock");
        assert!(
            said.contains("the service manager listens at `/t/one.sock`") && said.contains("ListenStream"),
            "{said}"
        );
        lab.sh("rm -f /t/one.sock");
        let said = activate("--listen=/t/one.sock --listen=/t/two.sock");
        assert!(said.contains("hands over 2 sockets"), "{said}");
    });
}
