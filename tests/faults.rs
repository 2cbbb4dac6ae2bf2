//! What can die, dies, at every phase: afterwards the build has finished or failed with a reason, and nothing is left.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on says so by panicking")]

// Harness code: not every test file uses all of it.
#[allow(dead_code)]
#[path = "common/lab.rs"]
mod lab;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use lab::{DEADLINE, LOCAL_POOL, Lab, on_every_release, on_release};

/// A build in the background, as alice.
fn spawn_build(lab: &Lab, words: &[&str]) -> Child {
    lab.command("alice", &[&["nix-build", "--no-out-link"], words].concat())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn wait_for(lab: &Lab, mut child: Child) -> (bool, String) {
    let end = std::time::Instant::now() + DEADLINE;
    while child.try_wait().unwrap().is_none() {
        if std::time::Instant::now() > end {
            let _dead = child.kill();
            panic!("nix-build hangs\n{}", lab.diagnosis());
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let output = child.wait_with_output().unwrap();
    (output.status.success(), lab::text(&output))
}

#[test]
fn ctrl_c_stops_the_remote_build_too() {
    on_every_release(LOCAL_POOL, |lab| {
        let child = spawn_build(lab, &["/t/shapes.nix", "-A", "silent", "--argstr", "nonce", "c"]);
        lab.wait("the build to run", || lab.builds_in("building") == 1);
        lab.wait("its process", || lab.runs("busybox sleep 1000"));
        lab.sh("pkill -INT -u alice nix-build");
        let (ok, said) = wait_for(lab, child);
        assert!(!ok, "{said}");
        lab.wait("the build to be cancelled", || lab.ended("cancelled") == 1);
        lab.assert_all_is_over();
    });
}

#[test]
fn a_killed_hook_cancels_its_build_alone() {
    on_every_release(LOCAL_POOL, |lab| {
        let child = spawn_build(lab, &["/t/shapes.nix", "-A", "silent", "--argstr", "nonce", "h"]);
        lab.wait("the build to run", || lab.builds_in("building") == 1);
        lab.sh("pkill -9 -x broker-hook");
        let (ok, said) = wait_for(lab, child);
        assert!(!ok, "{said}");
        lab.wait("the build to be cancelled", || lab.ended("cancelled") == 1);
        lab.assert_all_is_over();
    });
}

#[test]
fn builds_survive_the_loss_of_their_builder() {
    // What is killed on the builder's side: its sshd, the daemon of the build, the supervisor, everything at once.
    let victims = [
        "pkill -9 -u nix-broker -f '^sshd|sshd:|sshd-session'",
        "pkill -9 -u nix-broker -f 'nix-daemon --stdio'",
        "pkill -9 -u nix-broker -f local-machine",
        "pkill -9 -u nix-broker -f 'local-machine|sshd|nix-daemon'",
    ];
    on_every_release(LOCAL_POOL, |lab| {
        for (i, kill) in victims.iter().enumerate() {
            let nonce = format!("v{i}");
            let child = spawn_build(
                lab,
                &["/t/wide.nix", "--argstr", "nonce", &nonce, "--argstr", "n", "3", "--argstr", "sleep", "2"],
            );
            lab.wait("builds to run", || lab.builds_in("building") >= 1);
            lab.sh(kill);
            let (ok, said) = wait_for(lab, child);
            assert!(ok, "after {kill}: {said}\n{}", lab.diagnosis());
        }
        lab.assert_all_is_over();
    });
}

#[test]
fn hooks_that_wait_outlive_a_restart_of_the_broker() {
    on_every_release(LOCAL_POOL, |lab| {
        let child = spawn_build(
            lab,
            &["/t/wide.nix", "--argstr", "nonce", "b", "--argstr", "n", "3", "--argstr", "sleep", "3"],
        );
        lab.wait("builds to run", || lab.builds_in("building") >= 1);
        lab.kill_broker();
        lab.wait("the dead broker's builders to end", || {
            lab.sh("pgrep -f 'local-machine|sshd|nix-daemon --stdio' -u nix-broker || true").is_empty()
        });
        lab.start_broker();
        let (ok, said) = wait_for(lab, child);
        assert!(ok, "{said}\n{}", lab.diagnosis());
        lab.assert_all_is_over();
    });
}

#[test]
fn a_drained_broker_finishes_what_runs_and_leaves_nothing() {
    on_every_release(LOCAL_POOL, |lab| {
        let child = spawn_build(
            lab,
            &["/t/wide.nix", "--argstr", "nonce", "d", "--argstr", "n", "2", "--argstr", "sleep", "8"],
        );
        lab.wait("builds to run", || lab.builds_in("building") == 2);
        let status = lab.stop_broker();
        assert!(status.success(), "{status}\n{}", lab.diagnosis());
        let (ok, said) = wait_for(lab, child);
        assert!(ok, "{said}\n{}", lab.diagnosis());
        lab.assert_nothing_left();
    });
}

/// Nix asks with a job free, though this machine could never start it.
#[test]
fn what_only_a_pool_can_build_waits_for_the_successor_of_a_broker_that_ends() {
    let tuned = LOCAL_POOL.replace("\"local\"", "\"tuned\"\nfeatures = [\"gccarch-x86-64-v2\"]");
    on_every_release(&tuned, |lab| {
        lab.configure_nix("max-jobs = 2\nsystem-features = big-parallel");
        let running = spawn_build(
            lab,
            &["/t/wide.nix", "--argstr", "nonce", "e", "--argstr", "n", "1", "--argstr", "sleep", "8"],
        );
        lab.wait("the build to run", || lab.builds_in("building") == 1);
        lab.signal("-TERM", &["-x", "-o", "-u", "nix-broker", "broker"]);
        let late = spawn_build(lab, &["/t/tuned.nix", "-A", "tuned-tool", "--argstr", "nonce", "e"]);
        lab.wait("the ending broker to be asked", || {
            let why = lab.output("root", &["broker", "why", "tuned-tool"]);
            lab::text(&why).contains("the broker is shutting down")
        });
        assert!(lab.broker_exit().success());
        let (ok, said) = wait_for(lab, running);
        assert!(ok, "{said}");
        lab.start_broker();
        let (ok, said) = wait_for(lab, late);
        assert!(ok, "{said}\n{}", lab.diagnosis());
        assert_eq!(lab.ended("succeeded"), 1);
        lab.assert_all_is_over();
    });
}

#[test]
fn a_broker_that_is_silent_for_a_moment_loses_no_build_and_one_that_stays_silent_hangs_nobody() {
    on_every_release(LOCAL_POOL, |lab| {
        let build = |lab: &Lab, nonce: &str| {
            lab.signal("-STOP", &["-f", "^broker serve"]);
            spawn_build(lab, &["/t/wide.nix", "--argstr", "nonce", nonce, "--argstr", "n", "2"])
        };
        // Nothing but the pool can build it: to decline it would be its end.
        let mut child = build(lab, "w");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains("does not answer")), "{}", lab.diagnosis());
        lab.signal("-CONT", &["-f", "^broker serve"]);
        let said: Vec<_> = lines.collect();
        let (ok, _) = wait_for(lab, child);
        assert!(ok, "{said:#?}\n{}", lab.diagnosis());
        assert_eq!(lab.ended("succeeded"), 2);
        // This machine can build it.
        lab.configure_nix("max-jobs = 1");
        let (ok, said) = wait_for(lab, build(lab, "l"));
        assert!(ok && said.contains("does not answer"), "{said}");
        lab.signal("-CONT", &["-f", "^broker serve"]);
        assert_eq!(lab.ended("succeeded"), 2, "{}", lab.diagnosis());
        lab.assert_all_is_over();
    });
}

/// What is killed, always by SIGKILL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Hook,
    /// And started again.
    Broker,
    /// Every `nix-daemon --stdio` on the builder.
    Daemon,
    /// The listener and every session.
    Sshd,
    /// Everything on it at once.
    Machine,
    /// The stock client that takes the outputs over.
    Importer,
}

/// When. Each is held until the victim is dead: by stopping (SIGSTOP) a program that is not ours, by taking all slots,
/// by a machine that is slow to start, or by a build that takes its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Launching,
    Queued,
    Uploading,
    Building,
    Downloading,
    Importing,
}

use Phase::{Building, Downloading, Importing, Launching, Queued, Uploading};

/// One slot, so that a second build waits; an sshd that starts when it is let.
const ONE_SLOT: &str = r#"
[[pool]]
name = "local"
slots = 1
max-builders = 1
idle-timeout = "1s"
launch-timeout = "60s"
[pool.local]
sshd = "/t/sshd"
"#;

const DAEMONS: [&str; 4] = ["-u", "nix-broker", "-f", "nix-daemon --stdio"];
const IMPORTER: &str = "^build-remote";

fn prepare(lab: &Lab) -> String {
    // A listener waits while the file is there; checks of the configuration do not.
    lab.write("/t/sshd", "#!/bin/sh\ncase $1 in -t) ;; *) while [ -e /t/hold ]; do sleep 0.05; done ;; esac\nexec /usr/sbin/sshd \"$@\"\n");
    lab.sh("chmod 755 /t/sshd");
    lab.sh("dd if=/dev/zero of=/tmp/big bs=1048576 count=200 2>/dev/null; nix-store --add /tmp/big")
}

fn kill(lab: &mut Lab, victim: Victim) {
    match victim {
        // The youngest: with a full builder there is another one.
        Victim::Hook => lab.signal("-9", &["-n", "-x", "broker-hook"]),
        Victim::Broker => lab.kill_broker(),
        Victim::Daemon => lab.signal("-9", &DAEMONS),
        Victim::Sshd => {
            lab.signal("-9", &["-u", "nix-broker", "-f", "^/usr/sbin/sshd|/t/sshd|^sshd|sshd-session"]);
        }
        Victim::Machine => {
            // The broker is not to see one process die before the other: what is killed last could lead it to those
            // that nobody has killed.
            lab.signal("-STOP", &["-f", "^broker serve"]);
            lab.signal("-9", &["-u", "nix-broker", "-f", "local-machine|sshd|nix-daemon"]);
            lab.signal("-CONT", &["-f", "^broker serve"]);
        }
        Victim::Importer => lab.signal("-9", &["-f", IMPORTER]),
    }
}

/// Starts a build, kills the victim in the phase, and sees that the build ends as it should and nothing is left.
fn kill_in_phase(lab: &mut Lab, big: &str, victim: Victim, phase: Phase) {
    let began = std::time::Instant::now();
    let case = format!("{victim:?} while {phase:?}");
    let occupant = (phase == Queued).then(|| {
        let child = spawn_build(lab, &["/t/shapes.nix", "-A", "silent", "--argstr", "nonce", &case]);
        lab.wait("the slot to be taken", || lab.runs("busybox sleep 1000"));
        child
    });
    if phase == Launching {
        lab.sh("touch /t/hold");
    }
    let (input, mib, sleep) = match phase {
        Launching | Queued => ("", "0", "0"),
        Uploading => (big, "0", "0"),
        Building => ("", "0", "2"),
        Downloading | Importing => ("", "200", "0"),
    };
    let child = spawn_build(
        lab,
        &[
            "/t/phases.nix",
            "--argstr",
            "nonce",
            &case,
            "--argstr",
            "big",
            input,
            "--argstr",
            "mib",
            mib,
            "--argstr",
            "sleep",
            sleep,
        ],
    );
    let is_held = match phase {
        Launching => {
            lab.wait("a builder that does not start", || lab.runs("/bin/sh /t/sshd"));
            lab.builds_in("queued") == 1
        }
        Queued => {
            lab.wait("the build to be queued", || lab.builds_in("queued") == 1);
            lab.builds_in("building") == 1
        }
        Uploading => {
            lab.wait("the input to arrive", || {
                !lab.sh("ls -d /var/lib/nix-broker/local/*/root/nix/store/*-big 2>/dev/null || true")
                    .is_empty()
            });
            lab.signal("-STOP", &DAEMONS);
            lab.builds_in("uploading") == 1
        }
        Building => {
            lab.wait("the build to run", || lab.runs("busybox sleep 2"));
            lab.builds_in("building") == 1
        }
        Downloading => {
            lab.wait("the outputs to be fetched", || lab.builds_in("downloading") == 1);
            lab.signal("-STOP", &DAEMONS);
            lab.builds_in("downloading") == 1
        }
        Importing => {
            lab.wait("the importer", || lab.runs(IMPORTER));
            lab.signal("-STOP", &["-f", IMPORTER]);
            lab.runs(IMPORTER)
        }
    };
    assert!(is_held, "{case}: the phase was over too soon\n{}", lab.diagnosis());
    kill(lab, victim);
    lab.sh("rm -f /t/hold");
    // Whatever was stopped and is not dead goes on.
    for stopped in [&DAEMONS[..], &["-f", IMPORTER]] {
        lab.output("root", &[&["pkill", "-CONT"], stopped].concat());
    }
    if victim == Victim::Broker {
        lab.start_broker();
    }
    if let Some(occupant) = occupant {
        lab.signal("-INT", &["-u", "alice", "-f", "^nix-build.*shapes.nix"]);
        let (ok, said) = wait_for(lab, occupant);
        assert!(!ok, "{case}: {said}");
    }
    let (ok, said) = wait_for(lab, child);
    match victim {
        // Nix knows no second try when its hook dies.
        Victim::Hook => {
            assert!(!ok && said.contains("error"), "{case}: {said}\n{}", lab.diagnosis());
        }
        Victim::Broker | Victim::Daemon | Victim::Sshd | Victim::Machine | Victim::Importer => {
            assert!(ok, "{case}: {said}\n{}", lab.diagnosis());
        }
    }
    // A large output is imported while it is downloaded.
    if victim == Victim::Hook && [Downloading, Importing].contains(&phase) {
        // As with stock Nix, whoever is killed while it writes a path leaves half of it, which is not valid; the next
        // that builds it begins by removing that, and removes the lock files of the dead as well.
        lab.build("alice", &["/t/phases.nix", "--argstr", "nonce", &case, "--argstr", "mib", mib]);
    }
    lab.assert_all_is_over();
    eprintln!("    {case}: ended as it should, after {:.1} s", began.elapsed().as_secs_f64());
}

/// A column of the matrix on one host.
fn matrix(release: &'static str, victim: Victim, phases: &[Phase]) {
    on_release(release, ONE_SLOT, |lab| {
        let big = prepare(lab);
        for &phase in phases {
            kill_in_phase(lab, &big, victim, phase);
        }
    });
}

#[test]
fn a_hook_is_killed_in_every_phase() {
    matrix("forky", Victim::Hook, &[Importing, Launching, Queued, Uploading, Building, Downloading]);
}

#[test]
fn the_broker_is_killed_in_every_phase() {
    matrix("trixie", Victim::Broker, &[Launching, Queued, Uploading, Building, Downloading, Importing]);
}

#[test]
fn the_remote_daemon_is_killed_in_every_phase() {
    // While a builder is launching there is none.
    matrix("trixie", Victim::Daemon, &[Queued, Uploading, Building, Downloading, Importing]);
}

#[test]
fn sshd_is_killed_in_every_phase() {
    matrix("forky", Victim::Sshd, &[Launching, Queued, Uploading, Building, Downloading, Importing]);
}

#[test]
fn the_machine_is_killed_in_every_phase() {
    matrix("bookworm", Victim::Machine, &[Launching, Queued, Uploading, Building, Downloading, Importing]);
}

#[test]
fn the_importer_is_killed() {
    matrix("forky", Victim::Importer, &[Importing]);
}
