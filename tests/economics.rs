//! What is left to this machine with the real thing: Nix's own settings decide whether it could, what was built before how
//! long it takes, and `broker why` says which rule it was.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

// Harness code: not every test file uses all of it.
#[allow(dead_code)]
#[path = "common/lab.rs"]
mod lab;

use lab::{LOCAL_POOL, Lab, on_every_release};

fn build(lab: &Lab, name: &str, nonce: &str) {
    lab.build("alice", &["/t/kinds.nix", "-A", name, "--argstr", "nonce", nonce]);
}

fn why(lab: &Lab, name: &str) -> String {
    lab.run("root", &["broker", "why", name])
}

fn no_builder_is_up(lab: &Lab) -> bool {
    lab.status()["builders"].as_array().unwrap().is_empty()
}

#[test]
fn what_is_fetched_or_tiny_is_left_to_this_machine_only_while_it_can() {
    on_every_release(LOCAL_POOL, |lab| {
        lab.configure_nix("max-jobs = 1");
        build(lab, "fixed", "1");
        assert_eq!(lab.ended("succeeded"), 0, "{}", lab.diagnosis());
        let said = why(lab, "fixed");
        assert!(
            said.contains("declined, it is fetched, not made") && said.contains("(rule `fixed-output`)"),
            "{said}"
        );

        // Nothing is known of how long this one takes, so a builder is launched for it.
        build(lab, "input-addressed", "1");
        assert_eq!(lab.ended("succeeded"), 1);
        lab.wait("the builder to end", || no_builder_is_up(lab));
        // Now something is.
        build(lab, "input-addressed", "2");
        assert_eq!(lab.ended("succeeded"), 1, "{}", lab.diagnosis());
        let said = why(lab, "input-addressed");
        assert!(said.contains("it is tiny") && said.contains("(rule `tiny`)"), "{said}");

        // The next broker knows it too.
        assert!(lab.stop_broker().success());
        lab.start_broker();
        build(lab, "input-addressed", "3");
        assert_eq!(lab.ended("succeeded"), 0, "{}", lab.diagnosis());
        assert!(why(lab, "input-addressed").contains("from 1 build of this name"));

        // A Nix that builds nothing itself is left nothing.
        lab.configure_nix("max-jobs = 0");
        build(lab, "input-addressed", "4");
        build(lab, "fixed", "4");
        assert_eq!(lab.ended("succeeded"), 1, "the other one is there: its content is known");
        let exported = lab.run("alice", &["broker", "history", "export", "--format", "csv"]);
        assert_eq!(exported.lines().filter(|line| line.contains("input-addressed")).count(), 2, "{exported}");
        lab.assert_all_is_over();
    });
}

#[test]
fn a_pool_that_wants_everything_gets_it() {
    on_every_release(&LOCAL_POOL.replace("slots = 4", "slots = 4\ndecline = []"), |lab| {
        lab.configure_nix("max-jobs = 1");
        build(lab, "fixed", "1");
        build(lab, "input-addressed", "1");
        assert_eq!(lab.ended("succeeded"), 2);
        lab.assert_all_is_over();
    });
}
