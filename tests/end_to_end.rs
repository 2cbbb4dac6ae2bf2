//! The main job with the real thing: an ordinary user's `nix-build` through nix-daemon, our hook, our broker, a builder
//! it launched, real SSH. Every test runs on every Nix of the matrix, and ends by checking that nothing is left.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

// Harness code: not every test file uses all of it.
#[allow(dead_code)]
#[path = "common/lab.rs"]
mod lab;

use std::process::Stdio;

use serde_json::Value;

use lab::{LOCAL_POOL, on_every_release, text};

#[test]
fn a_graph_of_hundreds_of_derivations_is_built_on_builders_that_come_and_go() {
    on_every_release(LOCAL_POOL, |lab| {
        assert!(lab.status()["builders"].as_array().unwrap().is_empty(), "no builder before the first build");
        let paths =
            lab.build("alice", &["/t/graph.nix", "--argstr", "nonce", "g", "--argstr", "depth", "11"]);
        let [graph] = &paths[..] else { panic!("{paths:?}") };
        let status = lab.status();
        let succeeded = lab.ended("succeeded");
        assert_eq!(succeeded, 221, "{status:#}");
        let history = lab.run("root", &["broker", "history", "--json", "--limit", "1000"]);
        let history: Value = serde_json::from_str(&history).unwrap();
        let builds = history["builds"].as_array().unwrap();
        assert_eq!(builds.iter().filter(|build| build["outcome"] == "succeeded").count(), 221, "{history:#}");
        assert!(lab.run("alice", &["broker", "cost"]).contains("Nothing has cost anything."));
        // Right references: the content names every cell and every seed.
        let references = lab.run("alice", &["nix-store", "--query", "--references", graph]);
        assert_eq!(references.lines().count(), 20 * 12, "{references}");
        let content = lab.run("alice", &["cat", graph]);
        assert_eq!(content.lines().count(), 20 * 11, "20 columns of 11 links");
        let deriver = lab.run("alice", &["nix-store", "--query", "--deriver", graph]);
        assert!(deriver.ends_with("-graph.drv"), "{deriver}");
        // The log of a build in the middle.
        let drvs = lab.run("alice", &["nix-store", "--query", "--requisites", &deriver]);
        let cell = drvs.lines().find(|drv| drv.ends_with("-cell-3-5.drv")).unwrap();
        assert_eq!(lab.run("alice", &["nix-store", "--read-log", cell]), "building 3 5");
        lab.assert_all_is_over();
    });
}

#[test]
fn every_kind_of_derivation_comes_home() {
    on_every_release(LOCAL_POOL, |lab| {
        for name in ["input-addressed", "fixed", "structured", "uses-dev"] {
            let paths = lab.build("alice", &["/t/kinds.nix", "-A", name, "--argstr", "nonce", "k"]);
            assert_eq!(paths.len(), 1, "{name}");
        }
        let outputs = lab.build("alice", &["/t/kinds.nix", "-A", "multi.all", "--argstr", "nonce", "k"]);
        assert_eq!(outputs.len(), 3, "{outputs:?}");
        let out = outputs.iter().find(|path| path.ends_with("-multi")).unwrap();
        let dev = outputs.iter().find(|path| path.ends_with("-multi-dev")).unwrap();
        assert_eq!(&lab.run("alice", &["nix-store", "--query", "--references", out]), dev);
        lab.assert_all_is_over();
    });
}

#[test]
fn floating_content_addressed_derivations_come_home_with_their_realisations() {
    on_every_release(LOCAL_POOL, |lab| {
        lab.configure_nix("experimental-features = nix-command flakes ca-derivations");
        let paths = lab.build("alice", &["/t/kinds.nix", "-A", "floating.all", "--argstr", "nonce", "c"]);
        assert_eq!(paths.len(), 2, "{paths:?}");
        assert_eq!(lab.ended("succeeded"), 1);
        // The realisation is known: nothing is built again.
        lab.build("alice", &["/t/kinds.nix", "-A", "floating.all", "--argstr", "nonce", "c"]);
        assert_eq!(lab.ended("succeeded"), 1, "it was built twice");
        lab.assert_all_is_over();
    });
}

#[test]
fn trees_of_every_shape_arrive_unchanged() {
    on_every_release(LOCAL_POOL, |lab| {
        let [tree] = &lab.build("alice", &["/t/shapes.nix", "-A", "tree", "--argstr", "nonce", "s"])[..]
        else {
            panic!()
        };
        let listing = lab.run(
            "alice",
            &["sh", "-c", &format!("cd {tree} && find . -printf '%y %m %p %l\n' | LC_ALL=C sort")],
        );
        let expected = [
            "d 555 . ",
            "d 555 ./a b ",
            "d 555 ./bin ",
            "d 555 ./empty ",
            "f 444 ./a b/empty file ",
            "f 444 ./ümläut ",
            "f 555 ./bin/tool ",
            &format!("l 777 ./bin/absolute {tree}/bin/tool"),
            "l 777 ./bin/dangling ../nowhere",
        ];
        assert_eq!(listing.lines().map(str::trim_end).collect::<Vec<_>>(), expected.map(str::trim_end));
        let [many] =
            &lab.build("alice", &["/t/shapes.nix", "-A", "many-files", "--argstr", "nonce", "s"])[..]
        else {
            panic!()
        };
        let count = lab.run("alice", &["sh", "-c", &format!("ls {many} | wc -l; cat {many}/file-9999")]);
        assert_eq!(count, "10000\n9999");
        let [inputs] =
            &lab.build("alice", &["/t/shapes.nix", "-A", "many-inputs", "--argstr", "nonce", "s"])[..]
        else {
            panic!()
        };
        assert_eq!(lab.run("alice", &["cat", inputs]), "2000");
        lab.assert_all_is_over();
    });
}

#[test]
fn a_build_that_prints_five_megabytes_keeps_every_line() {
    on_every_release(LOCAL_POOL, |lab| {
        let build = lab.nix_build("alice", &["/t/shapes.nix", "-A", "loud", "--argstr", "nonce", "l"]);
        assert!(build.status.success(), "{}", text(&build));
        let live = String::from_utf8_lossy(&build.stderr);
        assert!(live.contains("the very last line"), "the log was not shown live");
        let path = String::from_utf8_lossy(&build.stdout).trim().to_owned();
        let log = lab.run("alice", &["nix-store", "--read-log", &path]);
        let lines: Vec<_> = log.lines().collect();
        assert_eq!(lines.len(), 50_001);
        for (i, line) in lines[..50_000].iter().enumerate() {
            assert!(line.starts_with(&format!("{i} 0123")), "line {i} is {line}");
        }
        assert_eq!(lines[50_000], "the very last line");
        lab.assert_all_is_over();
    });
}

#[test]
fn a_failing_build_says_why_and_does_not_stop_the_others() {
    on_every_release(LOCAL_POOL, |lab| {
        let build = lab.nix_build(
            "alice",
            &["/t/shapes.nix", "--keep-going", "-A", "fails", "-A", "succeeds", "--argstr", "nonce", "f"],
        );
        let said = text(&build);
        assert!(!build.status.success(), "{said}");
        assert!(said.contains("the reason it fails"), "{said}");
        assert!(said.contains("exit code 3"), "the builder's own status is missing: {said}");
        assert_eq!(lab.ended("succeeded"), 1);
        assert_eq!(lab.ended("failed"), 1);
        // Nix up to 2.28 tells a failed derivation (100) from failed machinery (1), where no daemon is in between.
        let alone = lab.output(
            "root",
            &[
                "env",
                "NIX_REMOTE=local",
                "nix-build",
                "/t/shapes.nix",
                "-A",
                "fails",
                "--argstr",
                "nonce",
                "f",
            ],
        );
        let expected = if lab.release() == "forky" { 1 } else { 100 };
        assert_eq!(alone.status.code(), Some(expected), "{}", text(&alone));
        let drv =
            lab.run("alice", &["nix-instantiate", "/t/shapes.nix", "-A", "fails", "--argstr", "nonce", "f"]);
        let log = lab.run("alice", &["nix-store", "--read-log", drv.split('!').next().unwrap()]);
        assert!(log.contains("before the end\nthe reason it fails"), "{log}");
        lab.assert_all_is_over();
    });
}

#[test]
fn three_hundred_builds_wait_in_line_for_four_slots() {
    on_every_release(&LOCAL_POOL.replace("max-builders = 2", "max-builders = 1"), |lab| {
        let paths = lab.build("alice", &["/t/wide.nix", "--argstr", "nonce", "w", "--argstr", "n", "300"]);
        assert_eq!(paths.len(), 300);
        assert_eq!(lab.ended("succeeded"), 300);
        lab.assert_all_is_over();
    });
}

#[test]
fn the_importer_of_a_build_that_is_known_to_be_short_starts_beside_it() {
    on_every_release(LOCAL_POOL, |lab| {
        let words = |nonce, sleep| {
            ["/t/wide.nix", "--argstr", "n", "1", "--argstr", "nonce", nonce, "--argstr", "sleep", sleep]
        };
        // How long such a build takes is known from here on.
        lab.build("alice", &words("known", "0"));
        let mut build =
            lab.command("alice", &[&["nix-build", "--no-out-link"], &words("short", "4")[..]].concat());
        let mut build =
            build.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        lab.wait("an importer beside the build", || {
            lab.runs("build-remote") && lab.builds_in("building") == 1
        });
        assert!(build.wait().unwrap().success(), "{}", lab.diagnosis());
        lab.assert_all_is_over();
    });
}

#[test]
fn root_without_a_daemon_is_served_as_well() {
    on_every_release(LOCAL_POOL, |lab| {
        let build = lab.output(
            "root",
            &[
                "env",
                "NIX_REMOTE=local",
                "nix-build",
                "--no-out-link",
                "/t/wide.nix",
                "--argstr",
                "nonce",
                "r",
                "--argstr",
                "n",
                "3",
            ],
        );
        assert!(build.status.success(), "{}\n{}", text(&build), lab.diagnosis());
        assert!(!text(&build).contains("warning"), "{}", text(&build));
        assert_eq!(lab.ended("succeeded"), 3);
        lab.assert_all_is_over();
    });
}

#[test]
fn an_empty_builders_setting_opts_out() {
    on_every_release(LOCAL_POOL, |lab| {
        lab.configure_nix("builders =\nmax-jobs = 1");
        lab.build("alice", &["/t/wide.nix", "--argstr", "nonce", "o", "--argstr", "n", "1"]);
        assert_eq!(lab.status()["builds"].as_array().unwrap().len(), 0);
        lab.assert_all_is_over();
    });
}

#[test]
fn without_a_broker_builds_go_on_locally_with_one_warning() {
    on_every_release(LOCAL_POOL, |lab| {
        assert!(lab.stop_broker().success());
        lab.configure_nix("max-jobs = 2");
        let build = lab.nix_build("alice", &["/t/wide.nix", "--argstr", "nonce", "n", "--argstr", "n", "5"]);
        let said = text(&build);
        assert!(build.status.success(), "{said}");
        assert_eq!(said.matches("warning: nix-broker:").count(), 1, "{said}");
        lab.assert_nothing_left();
    });
}

#[test]
fn the_store_endpoint_serves_as_a_machine_without_the_hook() {
    on_every_release(LOCAL_POOL, |lab| {
        let machine = "ssh-ng://localhost?remote-program=/usr/local/bin/broker-hook x86_64-linux - 8 1";
        lab.sh("rm /etc/xdg/nix/nix.conf");
        lab.sh(&format!("sed -i '/^# test/,$d' /etc/nix/nix.conf; printf 'max-jobs = 0\nbuilders = {machine}\n' >> /etc/nix/nix.conf"));
        let paths = lab.run(
            "root",
            &[
                "env",
                "NIX_REMOTE=local",
                "nix-build",
                "--no-out-link",
                "/t/wide.nix",
                "--argstr",
                "nonce",
                "m",
                "--argstr",
                "n",
                "3",
            ],
        );
        assert_eq!(paths.lines().count(), 3);
        assert_eq!(lab.ended("succeeded"), 3);
        lab.assert_all_is_over();
    });
}

#[test]
fn a_pool_is_a_store_to_look_at_and_to_copy_to() {
    on_every_release(LOCAL_POOL, |lab| {
        let store = "ssh-ng://localhost?remote-program=/usr/local/bin/broker-hook&remote-store=local";
        let verb = if lab.release() == "bookworm" { "ping" } else { "info" };
        lab.run("root", &["nix", "store", verb, "--store", store]);
        let path =
            lab.run("root", &["sh", "-c", "echo payload > /tmp/payload; nix-store --add /tmp/payload"]);
        lab.run("root", &["nix", "copy", "--no-check-sigs", "--to", store, &path]);
        let listed = lab.run("root", &["nix", "path-info", "--store", store, &path]);
        assert!(listed.contains(&path), "{listed}");
        lab.assert_all_is_over();
    });
}

#[test]
fn status_adds_up_at_every_moment_of_a_build() {
    on_every_release(LOCAL_POOL, |lab| {
        let words =
            ["nix-build", "--no-out-link", "/t/wide.nix", "--argstr", "nonce", "t", "--argstr", "n", "40"];
        let mut build = lab.command("alice", &[&words[..], &["--argstr", "sleep", "0.2"]].concat());
        let mut build =
            build.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut most_running = 0;
        lab.wait("the build to end", || {
            let status = lab.status();
            let list = |key: &str| status[key].as_array().unwrap().clone();
            let sum = |items: &[Value], key: &str| {
                items.iter().map(|item| item[key].as_u64().unwrap()).sum::<u64>()
            };
            let in_phase = |phases: &[&str]| {
                let is_in = |build: &&Value| phases.contains(&build["phase"].as_str().unwrap());
                list("builds").iter().filter(is_in).count() as u64
            };
            let running = in_phase(&["uploading", "building", "downloading"]);
            assert_eq!(sum(&list("builders"), "slots-used"), running, "{status:#}");
            assert_eq!(sum(&list("pools"), "slots-used"), running, "{status:#}");
            assert_eq!(sum(&list("pools"), "queued"), in_phase(&["queued"]), "{status:#}");
            for builder in list("builders") {
                assert!(builder["slots-used"].as_u64() <= builder["slots"].as_u64(), "{status:#}");
            }
            most_running = most_running.max(running);
            build.try_wait().unwrap().is_some()
        });
        assert!(build.wait().unwrap().success(), "{}", lab.diagnosis());
        assert!(most_running > 4, "both builders were never seen at work: {most_running}");
        assert_eq!(lab.ended("succeeded"), 40);
        lab.assert_all_is_over();
    });
}

/// A plain pool first, which would take whatever names no processor, and a tuned one.
fn plain_and_tuned() -> String {
    let plain = LOCAL_POOL.replace("\"local\"", "\"plain\"");
    let tuned = LOCAL_POOL.replace("\"local\"", "\"tuned\"\nfeatures = [\"gccarch-x86-64-v2\"]");
    plain + &tuned
}

#[test]
fn a_raw_derivation_of_a_tuned_package_set_goes_where_its_inputs_run() {
    on_every_release(&plain_and_tuned(), |lab| {
        let build = |name| lab.build("alice", &["/t/tuned.nix", "-A", name, "--argstr", "nonce", "i"]);
        let top = build("raw-top");
        assert_eq!(lab.run("alice", &["cat", &top[0]]), "tool i\nused\non top");
        build("untuned");
        assert_eq!(lab.ended("succeeded"), 5);
        let inherits = "inherits `gccarch-x86-64-v2` from its inputs (`tuned-tool.drv`)";
        for (name, is_heir) in
            [("tuned-tool", false), ("raw-user", true), ("raw-top", true), ("fetched", true)]
        {
            let why = lab.run("root", &["broker", "why", name]);
            assert!(why.contains("of pool `tuned`"), "{name}: {why}");
            assert_eq!(why.contains(inherits), is_heir, "{name}: {why}");
        }
        // It may go to either pool: wherever a builder is.
        let why = lab.run("root", &["broker", "why", "untuned"]);
        assert!(!why.contains("inherits"), "{why}");
        lab.assert_all_is_over();
    });
}

#[test]
fn what_an_earlier_broker_was_asked_need_not_be_remembered() {
    on_every_release(&plain_and_tuned(), |lab| {
        lab.build("alice", &["/t/tuned.nix", "-A", "raw-user", "--argstr", "nonce", "e"]);
        assert!(lab.stop_broker().success());
        lab.start_broker();
        lab.build("alice", &["/t/tuned.nix", "-A", "raw-top", "--argstr", "nonce", "e"]);
        let why = lab.run("root", &["broker", "why", "raw-top"]);
        assert!(why.contains("of pool `tuned`") && why.contains("(`tuned-tool.drv`)"), "{why}");
        lab.assert_all_is_over();
    });
}

#[test]
fn a_plain_pool_declines_what_its_builders_could_not_run() {
    on_every_release(&LOCAL_POOL.replace("\"local\"", "\"plain\""), |lab| {
        lab.configure_nix("max-jobs = 1\nsystem-features = gccarch-x86-64-v2");
        lab.build("alice", &["/t/tuned.nix", "-A", "raw-user", "--argstr", "nonce", "d"]);
        assert_eq!(lab.ended("succeeded"), 0, "both were built by Nix itself");
        let why = lab.run("root", &["broker", "why", "raw-user"]);
        let expected = "declined, pool `plain` lacks `gccarch-x86-64-v2`, \
                        which the derivation inherits from its inputs (`tuned-tool.drv`)";
        assert!(why.contains(expected), "{why}");
        lab.assert_all_is_over();
    });
}

#[test]
fn a_verdict_needs_no_file_but_what_its_hook_brings() {
    on_every_release(&LOCAL_POOL.replace("\"local\"", "\"plain\""), |lab| {
        lab.configure_nix("max-jobs = 1\nsystem-features = gccarch-x86-64-v2");
        let instantiate = ["nix-instantiate", "/t/tuned.nix", "-A", "raw-user", "--argstr", "nonce", "h"];
        let user = lab.run("root", &instantiate);
        let all = lab.run("root", &["nix-store", "--query", "--requisites", user.trim()]);
        let derivations: Vec<_> = all.lines().filter(|path| path.ends_with(".drv")).collect();
        assert_eq!(derivations.len(), 2, "{all}");
        // Nix and its hook are root, the broker is not.
        lab.sh(&format!("chmod 400 {}", derivations.join(" ")));
        lab.run("root", &["env", "NIX_REMOTE=daemon", "nix-store", "--realise", user.trim()]);
        let why = lab.run("root", &["broker", "why", "raw-user"]);
        assert!(why.contains("inherits from its inputs (`tuned-tool.drv`)"), "{why}");
        lab.assert_all_is_over();
    });
}

#[test]
fn the_store_endpoint_knows_what_is_inherited_as_well() {
    on_every_release(&plain_and_tuned(), |lab| {
        let machine = "ssh-ng://localhost?remote-program=/usr/local/bin/broker-hook x86_64-linux - 8 1 gccarch-x86-64-v2";
        lab.sh("rm /etc/xdg/nix/nix.conf");
        lab.sh(&format!("sed -i '/^# test/,$d' /etc/nix/nix.conf; printf 'max-jobs = 0\nbuilders = {machine}\n' >> /etc/nix/nix.conf"));
        let words = ["env", "NIX_REMOTE=local", "nix-build", "--no-out-link", "/t/tuned.nix"];
        lab.run("root", &[&words[..], &["-A", "raw-user", "--argstr", "nonce", "m"]].concat());
        let why = lab.run("root", &["broker", "why", "raw-user"]);
        assert!(why.contains("of pool `tuned`") && why.contains("(`tuned-tool.drv`)"), "{why}");
        lab.assert_all_is_over();
    });
}
