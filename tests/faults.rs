//! What can die, dies, at every phase: afterwards the build has finished or failed with a reason, and nothing is left.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

// Harness code: not every test file uses all of it.
#[allow(dead_code)]
#[path = "common/lab.rs"]
mod lab;

use std::process::{Child, Stdio};

use lab::{DEADLINE, LOCAL_POOL, Lab, on_every_release};

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
        lab.wait("its process", || !lab.sh("pgrep -f 'sleep 1000' || true").is_empty());
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
            &["/t/wide.nix", "--argstr", "nonce", "d", "--argstr", "n", "2", "--argstr", "sleep", "3"],
        );
        lab.wait("builds to run", || lab.builds_in("building") == 2);
        let status = lab.stop_broker();
        assert!(status.success(), "{status}\n{}", lab.diagnosis());
        let (ok, said) = wait_for(lab, child);
        assert!(ok, "{said}\n{}", lab.diagnosis());
        lab.assert_nothing_left();
    });
}
