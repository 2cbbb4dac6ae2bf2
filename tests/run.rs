//! `broker run -- COMMAND`: no service, no setting in nix.conf; a broker that lives as long as one command, and a Nix that
//! asks it. By a trusted user through nix-daemon, as in CI, and by root without it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

// Harness code: not every test file uses all of it.
#[allow(dead_code)]
#[path = "common/lab.rs"]
mod lab;

use std::process::Stdio;

use lab::{LOCAL_POOL, Lab, on_each_of, text};

const ALL: [&str; 3] = ["bookworm", "trixie", "forky"];

/// A machine whose Nix knows nothing of us, builds nothing itself, and has been told to build nothing elsewhere.
fn bare(release: &'static str) -> Lab {
    let lab = Lab::bare(release, LOCAL_POOL);
    lab.sh("printf 'max-jobs = 0\nbuilders =\ntrusted-users = root alice\n' >> /etc/nix/nix.conf");
    lab.start_daemon(&[]);
    lab
}

fn build<'a>(nonce: &'a str, before: &[&'a str]) -> Vec<&'a str> {
    let build =
        ["nix-build", "--no-out-link", "/t/graph.nix", "--argstr", "width", "4", "--argstr", "depth", "3"];
    [&["broker", "run", "--"], before, &build, &["--argstr", "nonce", nonce]].concat()
}

fn assert_nothing_is_left(lab: &Lab) {
    assert_no_broker_is_left(lab);
    lab.assert_nothing_left();
}

fn assert_no_broker_is_left(lab: &Lab) {
    assert_eq!(lab.sh("ls -d /tmp/nix-broker-* 2>/dev/null || true"), "");
    assert!(!lab.runs("^broker|/broker "), "{}", lab.sh("ps ax"));
}

#[test]
fn one_command_is_built_on_builders_that_end_with_it() {
    on_each_of(&ALL, |release| {
        let lab = bare(release);
        for user in ["alice", "root"] {
            let built = lab.output(user, &build(user, &[]));
            assert!(built.status.success(), "{user}: {}", text(&built));
            let path = String::from_utf8_lossy(&built.stdout).trim().to_owned();
            assert!(path.ends_with("-graph"), "{path}");
            assert_nothing_is_left(&lab);
        }
    });
}

#[test]
fn the_commands_own_status_is_passed_on() {
    on_each_of(&["forky"], |release| {
        let lab = bare(release);
        let status =
            |script: &str| lab.output("alice", &["broker", "run", "--", "sh", "-c", script]).status.code();
        assert_eq!(status("exit 37"), Some(37));
        assert_eq!(status("kill -TERM $$"), Some(128 + 15));
        // The command sees its broker, and what Nix was told before.
        assert_eq!(status("broker status >/dev/null && echo \"$NIX_CONFIG\" | grep -q build-hook"), Some(0));
        let missing = lab.output("alice", &["broker", "run", "--", "/no/such/program"]);
        assert_eq!(missing.status.code(), Some(1), "{}", text(&missing));
        assert!(text(&missing).contains("/no/such/program"), "{}", text(&missing));
        let config = lab.output("alice", &["broker", "run", "--config", "/no/config", "--", "true"]);
        assert_eq!(config.status.code(), Some(1), "{}", text(&config));
        assert!(text(&config).contains("there is no configuration at `/no/config`"), "{}", text(&config));
        assert_no_broker_is_left(&lab);
    });
}

#[test]
fn a_failed_build_fails_and_leaves_nothing() {
    on_each_of(&["trixie"], |release| {
        let lab = bare(release);
        let failed = ["nix-build", "--no-out-link", "/t/shapes.nix", "-A", "fails", "--argstr", "nonce", "f"];
        let failed = lab.output("alice", &[&["broker", "run", "--"], &failed[..]].concat());
        assert!(!failed.status.success());
        assert!(text(&failed).contains("the reason it fails"), "{}", text(&failed));
        assert_nothing_is_left(&lab);
    });
}

#[test]
fn a_killed_run_takes_its_broker_and_its_builders_with_it() {
    on_each_of(&["forky"], |release| {
        let lab = bare(release);
        let endless =
            ["nix-build", "--no-out-link", "/t/shapes.nix", "-A", "silent", "--argstr", "nonce", "k"];
        let mut run = lab
            .command("alice", &[&["broker", "run", "--"], &endless[..]].concat())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        lab.wait("the build to run", || lab.runs("^.*busybox.*sleep 1000"));
        lab.signal("-KILL", &["-x", "-o", "broker"]);
        lab.wait("the broker to end", || !lab.runs("broker serve"));
        let _status = run.wait().unwrap();
        lab.wait("the command to fail", || !lab.runs("^nix-build"));
        lab.sh("rm -rf /tmp/nix-broker-*");
        assert_nothing_is_left(&lab);
    });
}

/// One pool that works, and one that cannot: nobody listens there.
const TWO_POOLS: &str = r#"
[[pool]]
name = "nowhere"
launch-timeout = "5s"
[[pool.hosts]]
address = "127.0.0.9"
port = 9
user = "nobody"
host-keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB0hOcuNFhEWtCTRGVDXUBVIvN8z0VvdjGWrGCcsJSNj"]
[[pool]]
name = "local"
launch-timeout = "60s"
[pool.local]
sandbox-paths = ["/bin/sh=/bin/busybox"]
"#;

#[test]
fn a_pool_is_tried_with_a_small_build() {
    on_each_of(&ALL, |release| {
        let lab = bare(release);
        lab.write("/t/two.toml", TWO_POOLS);
        for user in ["alice", "root"] {
            let tried = lab.output(user, &["broker", "try", "--config", "/t/two.toml", "local"]);
            assert!(tried.status.success(), "{user}: {}", text(&tried));
            let said = String::from_utf8_lossy(&tried.stdout);
            assert!(said.starts_with("ok    pool `local` built it on "), "{said}");
            assert!(
                said.contains(" processors") && said.contains(", Linux "),
                "the machine's own words: {said}"
            );
            assert_nothing_is_left(&lab);
        }
    });
}

#[test]
fn a_pool_that_does_not_work_is_a_failed_trial() {
    on_each_of(&["forky"], |release| {
        let lab = bare(release);
        lab.write("/t/two.toml", TWO_POOLS);
        let tries = |more: &[&str]| {
            lab.output("alice", &[&["broker", "try", "--config", "/t/two.toml"], more].concat())
        };
        for (more, words) in [
            (&["nowhere"][..], "pool `nowhere` did not build it"),
            (&[], "which of the pools `nowhere`, `local`?"),
            (&["elsewhere"], "there is no pool `elsewhere`; the configuration has `nowhere`, `local`"),
        ] {
            let tried = tries(more);
            assert_eq!(tried.status.code(), Some(1), "{}", text(&tried));
            assert!(text(&tried).contains(words), "{}", text(&tried));
        }
        // A command can be given some of the pools as well.
        let run = ["broker", "run", "--config", "/t/two.toml", "--pool", "local", "--"];
        let seen = lab.run("alice", &[&run[..], &["broker", "status"]].concat());
        assert!(seen.contains("local") && !seen.contains("nowhere"), "{seen}");
        assert_nothing_is_left(&lab);
    });
}

#[cfg(feature = "ec2")]
#[test]
fn the_first_configuration_is_tried_when_that_is_wanted() {
    on_each_of(&["trixie", "forky"], |release| {
        let lab = bare(release);
        let init = ["broker", "init", "--config", "/tmp/first/config.toml", "--yes", "--try"];
        let quiet = ["env", "AWS_EC2_METADATA_DISABLED=true"];
        let said = lab.run("alice", &[&quiet[..], &init].concat());
        assert!(said.contains("Wrote `/tmp/first/config.toml`"), "{said}");
        assert!(said.contains("ok    pool `local` built it on "), "{said}");
        assert_nothing_is_left(&lab);
    });
}

/// What `nix run .#demo` runs.
#[test]
fn the_demo_builds_and_leaves_nothing_but_what_it_built() {
    on_each_of(&["trixie"], |release| {
        let lab = bare(release);
        lab.install(
            "/t/demo.sh",
            &std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/demo.sh")).unwrap(),
        );
        lab.write("/t/demo/flake.nix", include_str!("demo/flake.nix"));
        let demo = lab.output("alice", &["/t/demo.sh", "/t/demo/flake.nix", "/bin/busybox"]);
        let said = text(&demo);
        assert!(demo.status.success(), "{said}");
        assert!(said.contains("-image\n") && said.contains("121 succeeded"), "{said}");
        assert_eq!(lab.sh("ls -d /tmp/tmp.* 2>/dev/null || true"), "");
        assert_nothing_is_left(&lab);
    });
}
