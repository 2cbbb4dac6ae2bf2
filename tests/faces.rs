//! What people and programs see of a real broker with builds and a builder: the full-screen view in a real terminal, logs,
//! metrics, and the broker's own log as JSON.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

// Harness code: not every test file uses all of it.
#[allow(dead_code)]
#[path = "common/lab.rs"]
mod lab;
#[path = "common/tmux.rs"]
mod tmux;

use std::process::Stdio;

use lab::{LOCAL_POOL, Lab, on_each_of, on_release, only, text};
use tmux::Tmux;

/// One builder of four slots that stays.
fn pool() -> String {
    LOCAL_POOL.replace("max-builders = 2", "max-builders = 1").replace("\"3s\"", "\"600s\"")
}

/// Five builds that run until somebody ends them: four of them at once.
fn five_endless_builds(lab: &Lab) -> std::process::Child {
    let words = ["nix-build", "--no-out-link", "/t/wide.nix", "--argstr", "nonce", "w", "--argstr", "n", "5"];
    let mut command = lab.command("alice", &[&words[..], &["--argstr", "sleep", "1000"]].concat());
    let build = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    lab.wait("four builds to run and one to wait", || {
        lab.builds_in("building") == 4 && lab.builds_in("queued") == 1
    });
    build
}

fn end(lab: &Lab, mut build: std::process::Child) {
    lab.signal("-INT", &["-x", "nix-build"]);
    let _ended = build.wait().unwrap();
    lab.wait("the builds to end", || lab.builds_in("building") + lab.builds_in("queued") == 0);
}

/// The view in a terminal, and after it its exit status and whether the terminal is as it was.
fn view(lab: &Lab, user: &str, width: u16, height: u16) -> Tmux {
    let host = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/host.sh");
    let watch = format!("'{host}' in {} --user {user} -- broker status --watch", lab.name());
    Tmux::start(width, height, &format!("{watch}\necho \"status $?\"; stty -a | tr ' ' '\\n' | grep icanon"))
}

#[test]
fn a_person_at_a_terminal_sees_everything_and_drains_a_builder() {
    on_release("forky", &pool(), |lab| {
        let build = five_endless_builds(lab);
        let tmux = view(lab, "root", 80, 24);
        let screen = tmux.wait_for(&["1 ready", "4/4", "wide-0", "building", "a slot of local", "LOG"]);
        for word in ["accepting builds", "POOL", "BUILDER", "b-1", "QUEUED", "NEXT", "? help", "q quit"] {
            assert!(screen.contains(word), "no `{word}` in\n{screen}");
        }
        tmux.press(&["?"]);
        tmux.wait_for(&["drain the selected builder"]);
        tmux.press(&["x"]);

        // The log of a build, in full and back.
        tmux.press(&["Down", "j"]);
        tmux.wait("a build to be selected", |screen| screen.lines().any(|line| line.starts_with("> #")));
        tmux.press(&["Enter"]);
        let log = tmux.wait_for(&["on b-1", "  building ", "q back"]);
        assert!(!log.contains("POOL"), "{log}");
        tmux.press(&["q"]);
        tmux.wait_for(&["POOL"]);

        // Stopping asks, and takes no for an answer.
        tmux.press(&["k", "s"]);
        tmux.wait_for(&["> b-1", "stop b-1 now? its 4 builds begin again elsewhere: y/n"]);
        tmux.press(&["n"]);
        tmux.wait_for(&["b-1 goes on"]);
        assert_eq!(lab.status()["builders"][0]["state"], "ready");

        // Draining happens, and is seen to happen.
        tmux.press(&["d"]);
        tmux.wait_for(&["Draining builder `b-1`.", "draining", "after 4 builds", "it is drained"]);
        assert_eq!(lab.status()["builders"][0]["state"], "draining");
        end(lab, build);
        tmux.wait_for(&["none runs", "cancelled"]);
        lab.wait("the drained builder to end", || lab.status()["builders"].as_array().unwrap().is_empty());
        // And with it what was selected.
        tmux.wait("it to be gone from the screen", |screen| {
            !screen.contains("b-1  ") && !screen.contains("> ")
        });

        // A narrow terminal, and a wide one again.
        tmux.resize(40, 16);
        tmux.wait("the narrow view", |screen| screen.contains("?  q quit") && !screen.contains("arrows"));
        tmux.resize(120, 30);
        tmux.wait_for(&["arrows select"]);

        // The broker goes and comes back.
        assert!(lab.stop_broker().success());
        tmux.wait_for(&["NO BROKER", "trying again"]);
        lab.start_broker();
        tmux.wait_for(&["the broker is back", "accepting builds"]);

        tmux.press(&["q"]);
        let screen = tmux.wait_for(&["status 0", "icanon"]);
        assert!(!screen.contains("-icanon") && !screen.contains("POOL"), "{screen}");
        lab.assert_all_is_over();
    });
}

#[test]
fn the_terminal_is_given_back_after_a_signal_and_others_only_look() {
    on_release("trixie", &pool(), |lab| {
        let build = five_endless_builds(lab);
        let tmux = view(lab, "alice", 100, 24);
        tmux.wait_for(&["wide-0", "is not yours"]);
        tmux.press(&["j", "d"]);
        tmux.wait_for(&["only root and the broker's own user may do this"]);
        assert_eq!(lab.status()["builders"][0]["state"], "ready");
        tmux.press(&["l"]);
        tmux.wait_for(&["q back"]);
        lab.signal("-TERM", &["-x", "broker", "-u", "alice"]);
        let screen = tmux.wait_for(&["status 143", "icanon"]);
        assert!(!screen.contains("-icanon") && !screen.contains("q back"), "{screen}");

        let without =
            lab.output("root", &["sh", "-c", "rm -f /s; NIX_BROKER_SOCKET=/s broker status --watch"]);
        assert_eq!(without.status.code(), Some(3), "{}", text(&without));
        end(lab, build);
        lab.run("root", &["broker", "stop", "--all"]);
        lab.assert_all_is_over();
    });
}

#[test]
fn logs_are_read_and_followed_by_who_may() {
    on_release("bookworm", &pool(), |lab| {
        let build = five_endless_builds(lab);
        // A build runs a moment before its first line is here.
        let read = || lab.run("root", &["broker", "logs", "wide-0"]);
        lab.wait("the build's first line", || read().lines().any(|line| line == "building 0"));
        let log = read();
        let id = lab.status()["builds"]
            .as_array()
            .unwrap()
            .iter()
            .find(|build| build["name"] == "wide-0")
            .unwrap()["id"]
            .to_string();
        assert_eq!(lab.run("nix-broker", &["broker", "logs", &id]), log);
        let refused = lab.output("alice", &["broker", "logs", "wide-0"]);
        assert_eq!(refused.status.code(), Some(1));
        assert!(
            text(&refused).contains("not yours") && text(&refused).contains("sudo"),
            "{}",
            text(&refused)
        );
        assert!(!text(&refused).contains("building 0"), "{}", text(&refused));

        // Followed to its end.
        let follow = lab.command("root", &["broker", "logs", "-f", &format!("#{id}")]);
        let follow =
            { follow }.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        end(lab, build);
        let followed = follow.wait_with_output().unwrap();
        assert_eq!(followed.status.code(), Some(1));
        assert!(text(&followed).contains("building 0\n"), "{}", text(&followed));
        assert!(text(&followed).contains("the build was cancelled"), "{}", text(&followed));

        // And after it: whole, and with its reason.
        let fails = ["/t/shapes.nix", "-A", "fails", "--argstr", "nonce", "f"];
        assert!(!lab.nix_build("alice", &fails).status.success());
        let failed = lab.output("root", &["broker", "logs", "-f", "fails"]);
        assert_eq!(failed.status.code(), Some(1));
        assert_eq!(String::from_utf8_lossy(&failed.stdout), "before the end\nthe reason it fails\n");
        assert!(text(&failed).contains("the build failed: "), "{}", text(&failed));
        let loud = lab.build("alice", &["/t/shapes.nix", "-A", "loud", "--argstr", "nonce", "f"]);
        assert_eq!(loud.len(), 1);
        let log = lab.run("root", &["broker", "logs", "loud"]);
        assert_eq!((log.lines().count(), log.lines().last()), (50_001, Some("the very last line")));
        let unknown = lab.output("root", &["broker", "logs", "no-such-build"]);
        assert!(text(&unknown).contains("nix log"), "{}", text(&unknown));
        lab.run("root", &["broker", "stop", "--all"]);
        lab.assert_all_is_over();
    });
}

#[test]
fn a_program_reads_metrics_and_the_brokers_own_log() {
    let config = format!("{}\n[metrics]\nlisten = \"127.0.0.1:9119\"\n", pool());
    on_each_of(&only("trixie"), |release| {
        let mut lab = Lab::bare(release, &config);
        lab.set_environment(vec!["NIX_BROKER_LOG_FORMAT=json".to_owned()]);
        lab.start_broker();
        lab.configure_nix("");
        let lab = &mut lab;
        let scrape =
            || lab.run("alice", &["busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:9119/metrics"]);
        let value = |page: &str, series: &str| -> f64 {
            let line = page.lines().find_map(|line| line.strip_prefix(&format!("{series} ")));
            line.unwrap_or_else(|| panic!("no {series} in\n{page}")).parse().unwrap()
        };
        assert_eq!(value(&scrape(), "nix_broker_launches_total{pool=\"local\"}"), 0.0);
        let wide = ["/t/wide.nix", "--argstr", "nonce", "m", "--argstr", "n", "6"];
        assert_eq!(lab.build("alice", &wide).len(), 6);
        assert!(
            !lab.nix_build("alice", &["/t/shapes.nix", "-A", "fails", "--argstr", "nonce", "m"])
                .status
                .success()
        );
        let page = scrape();
        for (series, want) in [
            ("nix_broker_builds_total{outcome=\"succeeded\"}", 6.0),
            ("nix_broker_builds_total{outcome=\"failed\"}", 1.0),
            ("nix_broker_launches_total{pool=\"local\"}", 1.0),
            ("nix_broker_builders{pool=\"local\",state=\"ready\"}", 1.0),
            ("nix_broker_slots{pool=\"local\"}", 4.0),
            ("nix_broker_queued_builds{pool=\"local\"}", 0.0),
            ("nix_broker_verdicts_total{verdict=\"accept\"}", 7.0),
            ("nix_broker_verdict_duration_seconds_count", 7.0),
            ("nix_broker_accepting", 1.0),
        ] {
            assert_eq!(value(&page, series), want, "{series}\n{page}");
        }
        for direction in ["up", "down"] {
            let series = format!("nix_broker_transfer_bytes_total{{direction=\"{direction}\"}}");
            assert!(value(&page, &series) > 0.0, "{page}");
        }
        let elsewhere = lab.output("alice", &["busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:9119/"]);
        assert!(!elsewhere.status.success());
        lab.run("root", &["broker", "stop", "--all"]);
        lab.assert_all_is_over();
        let log = lab.sh("cat /var/lib/nix-broker/broker.log");
        let lines: Vec<serde_json::Value> = log
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")))
            .collect();
        let ready = lines.iter().find(|line| line["body"] == "ready").unwrap_or_else(|| panic!("{log}"));
        assert_eq!(ready["attributes"]["nix_broker.builder"], "b-1");
        assert_eq!(
            (&ready["severity_text"], &ready["resource"]["service.name"]),
            (&"INFO".into(), &"nix-broker".into())
        );
    });
}

#[cfg(feature = "ec2")]
#[test]
fn a_real_nix_says_which_machines_a_flake_has() {
    const FLAKE: &str = r#"{ outputs = { self }: { nixosConfigurations = {
      tiger.config.nixpkgs.hostPlatform = { system = "x86_64-linux"; gcc.arch = "znver3"; };
      ant.config.nixpkgs.hostPlatform = { system = "aarch64-linux"; gcc = { }; };
      broken.config.nixpkgs.hostPlatform = throw "no";
    }; }; }"#;
    on_each_of(&lab::RELEASES, |release| {
        let lab = Lab::bare(release, LOCAL_POOL);
        lab.start_daemon(&[]);
        lab.write("/t/machines/flake.nix", FLAKE);
        let init = ["broker", "init", "--config", "/tmp/none/config.toml", "--flake", "/t/machines"];
        let quiet = ["env", "AWS_EC2_METADATA_DISABLED=true"];
        let shown = lab.output("alice", &[&quiet[..], &init, &["--dry-run"]].concat());
        let said = text(&shown);
        assert!(shown.status.success(), "{said}");
        assert!(said.contains("ant (aarch64-linux), tiger (x86_64-linux, znver3)"), "{said}");
        assert!(said.contains("nix (Nix) 2.") && said.contains("EC2 cannot be used"), "{said}");
        // Without credentials it is this machine, and what is written serves at once.
        let written = lab.output("alice", &[&quiet[..], &init, &["--yes"]].concat());
        assert!(written.status.success(), "{}", text(&written));
        lab.run("alice", &["broker", "check", "/tmp/none/config.toml"]);
    });
}

#[test]
fn the_journal_gets_what_happens_with_its_fields() {
    on_each_of(&only("forky"), |release| {
        let mut lab = Lab::bare(release, LOCAL_POOL);
        lab.sh("mkdir -p /run/systemd/journal");
        // The place of journald, seen from this machine.
        let journal =
            std::os::unix::net::UnixDatagram::bind(lab.root().join("run/systemd/journal/socket")).unwrap();
        journal.set_read_timeout(Some(lab::DEADLINE)).unwrap();
        lab.sh("chmod 666 /run/systemd/journal/socket");
        lab.set_environment(vec!["NIX_BROKER_LOG_FORMAT=journald".to_owned()]);
        lab.start_broker();
        let mut entry = vec![0; 64 << 10];
        let entry = loop {
            let n = journal.recv(&mut entry).unwrap();
            let text = String::from_utf8_lossy(&entry[..n]).into_owned();
            if text.contains("accepting builds") {
                break text;
            }
        };
        for field in [
            "MESSAGE",
            "PRIORITY",
            "SYSLOG_IDENTIFIER",
            "nix-broker",
            "NIX_BROKER_POOLS",
            "NIX_BROKER_SOCKET",
        ] {
            assert!(entry.contains(field), "{field}: {entry:?}");
        }
        assert!(lab.stop_broker().success());
    });
}
