//! The command as people meet it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use assert_cmd::Command;
use nix_broker::history::{History, Store};
use nix_broker::model::{BuildId, BuildRecord, Outcome, Phases, Record, Requirement, System, Traffic, Usd};
use tempfile::TempDir;

use crate::{cloud, drv};

struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        desk.put("config.toml", &cloud("max-builders = 2"));
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn run(&self, args: &[&str]) -> String {
        self.run_with(args, "")
    }

    fn run_with(&self, args: &[&str], input: &str) -> String {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("broker"));
        command.env_clear().env("NIX_BROKER_CONFIG", "config.toml").current_dir(self.0.path());
        let output = command.arg("simulate").args(args).write_stdin(input).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        let mut shown = format!("exit {}\n", output.status.code().unwrap());
        for (name, stream) in [("stdout", stdout), ("stderr", stderr)] {
            if !stream.is_empty() {
                shown.push_str(&format!("--- {name}\n{stream}"));
            }
        }
        shown
    }

    fn json(&self, args: &[&str]) -> serde_json::Value {
        let shown = self.run(&[args, &["--json"]].concat());
        serde_json::from_str(shown.strip_prefix("exit 0\n--- stdout\n").unwrap()).unwrap()
    }
}

fn golden() -> String {
    format!("{}/tests/golden/graphs/2.34.8.json", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_help_says_what_is_what() {
    insta::assert_snapshot!(Desk::new().run(&["--help"]), @"");
}

#[test]
fn runs_are_shown_side_by_side() {
    let desk = Desk::new();
    desk.put("large.toml", &format!("{}types = [\"c7a.8xlarge\"]\n", cloud("")));
    let shown = desk.run(&[
        "--shape",
        "wide",
        "--foresight",
        "none",
        "--config",
        "config.toml",
        "--config",
        "large.toml",
        "--fcfs",
        "--fixed",
        "4xc6a.4xlarge",
    ]);
    // What each row says is the scheduler's business; that each is there, with every column, is ours.
    let rows: Vec<&str> = shown.lines().filter(|line| line.contains('%')).collect();
    let names: Vec<&str> = rows.iter().map(|row| row.split("  ").next().unwrap()).collect();
    assert_eq!(
        names,
        ["config.toml", "config.toml, first come", "large.toml", "large.toml, first come", "4xc6a.4xlarge"]
    );
    assert!(
        shown.contains("RUN                       FINISHED  COST   AFTER  USED  LAUNCHES  PEAK  IDLE"),
        "{shown}"
    );
}

#[test]
fn a_fixed_fleet_is_a_table_that_never_changes() {
    let graph = golden();
    insta::assert_snapshot!(
        Desk::new().run(&["--graph", &graph, "--fixed", "2xc7a.4xlarge+1xc7g.2xlarge", "--fixed", "1xc6a.large"]), @""
    );
}

#[test]
fn the_document_in_json_says_the_same_and_more() {
    let desk = Desk::new();
    desk.put("times.txt", "compiler 600 8\ntop 30\n");
    let graph = golden();
    let document =
        desk.json(&["--graph", &graph, "--durations", "times.txt", "--fixed", "1xc7a.4xlarge+1xc7g.large"]);
    assert_eq!(document["schema"], 1);
    assert_eq!(document["builds"], 8);
    assert_eq!(document["durations"], serde_json::json!({"given": 2, "guessed": 6}));
    assert_eq!(document["systems"], serde_json::json!({"aarch64-linux": 1, "x86_64-linux": 7}));
    let run = &document["runs"][0];
    assert_eq!((run["kind"].as_str(), run["built"].as_u64()), (Some("fixed"), Some(8)));
    assert_eq!(run["machines"].as_array().unwrap().len(), 2);
    let sum: f64 = run["machines"].as_array().unwrap().iter().map(|one| one["cost"].as_f64().unwrap()).sum();
    assert!((sum - run["cost"].as_f64().unwrap()).abs() < 1e-5);
}

#[test]
fn a_graph_may_come_through_a_pipe_and_a_picture_goes_into_a_file() {
    let desk = Desk::new();
    let graph = fs::read_to_string(golden()).unwrap();
    let shown =
        desk.run_with(&["--graph", "-", "--fixed", "1xc7a.large+1xc7g.large", "--svg", "out.svg"], &graph);
    assert!(
        shown.starts_with("exit 0\n--- stdout\n8 builds (7 for x86_64-linux, 1 for aarch64-linux)"),
        "{shown}"
    );
    let picture = fs::read_to_string(desk.path("out.svg")).unwrap();
    assert!(roxmltree::Document::parse(&picture).is_ok());
}

#[test]
fn only_what_a_dry_run_names_is_built() {
    let desk = Desk::new();
    let graph = golden();
    desk.put("wanted.txt", "these will be built:\n  /nix/store/grqia4k7li6l063z9rfyvhy5ll81wxf7-text.drv\n");
    desk.put("other.txt", "/nix/store/grqia4k7li6l063z9rfyvhy5ll81wxf7-other.drv\n");
    desk.put("nothing.txt", "");
    let run = |file: &str| desk.run(&["--graph", &graph, "--only", file, "--fixed", "1xc7a.large"]);
    assert!(run("wanted.txt").starts_with("exit 0\n--- stdout\n1 build (1 for x86_64-linux): 1s of work"));
    let shown = [run("other.txt"), run("nothing.txt"), run("absent.txt")].concat();
    insta::assert_snapshot!(shown.replace(&graph, "GRAPH"), @"");
}

#[test]
fn wrong_input_is_told_what_to_do() {
    let desk = Desk::new();
    desk.put("text.json", "hello");
    desk.put("empty.json", "{}");
    desk.put(
        "flat.json",
        r#"{"/nix/store/grqia4k7li6l063z9rfyvhy5ll81wxf7-a.drv":
        {"inputDrvs": {"/nix/store/j1k9zw8wfmfh8cp7hhfczxr6q1f6m524-s.drv": ["out"]}}}"#,
    );
    desk.put(
        "cycle.json",
        r#"{"/nix/store/grqia4k7li6l063z9rfyvhy5ll81wxf7-a.drv":
        {"inputDrvs": {"/nix/store/grqia4k7li6l063z9rfyvhy5ll81wxf7-a.drv": ["out"]}}}"#,
    );
    desk.put("store.json", r#"{"/gnu/store/grqia4k7li6l063z9rfyvhy5ll81wxf7-a.drv": {}}"#);
    desk.put("times.txt", "hello\n");
    fs::write(desk.path("binary.json"), [0xff, 0xfe]).unwrap();
    let graph = golden();
    let twice = format!("{}{}", fs::read_to_string(&graph).unwrap(), fs::read_to_string(&graph).unwrap());
    desk.put("twice.json", &twice);
    let mut shown = String::new();
    for file in ["absent", "text", "empty", "flat", "cycle", "store", "twice", "binary"] {
        shown.push_str(&desk.run(&["--graph", &format!("{file}.json"), "--fixed", "1xc7a.large"]));
    }
    shown.push_str(&desk.run(&["--graph", &graph, "--durations", "times.txt"]).replace(&graph, "GRAPH"));
    shown.push_str(&desk.run(&["--shape", "wide", "--config", "absent.toml"]));
    shown.push_str(&desk.run(&["--history", "absent"]));
    shown.push_str(&desk.run(&["--shape", "wide", "--fixed", "4xlarge"]));
    shown.push_str(&desk.run(&["--shape", "round"]));
    shown.push_str(&desk.run(&[]));
    insta::assert_snapshot!(shown, @"");
}

#[tokio::test]
async fn a_history_is_made_again_and_says_how_long_builds_take() {
    let desk = Desk::new();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let hour = Duration::from_secs(3600);
    let mut store = Store::open(&desk.0.path().canonicalize().unwrap()).unwrap();
    store.begin(now, &BTreeSet::new()).unwrap();
    let history = History::new(store);
    for (id, name, ago, outcome) in [
        (1, "hello-2.12", hour * 200, Outcome::Succeeded),
        (2, "compiler-12", hour * 3, Outcome::Succeeded),
        (3, "hello-2.13", hour * 2, Outcome::Succeeded),
        (4, "gone", hour, Outcome::Cancelled),
    ] {
        let record = BuildRecord {
            build: BuildId(id),
            drv: drv(name),
            requirement: Requirement::new(System::new("x86_64-linux"), [].into()),
            place: None,
            phases: Phases { building: Duration::from_secs(100), ..Phases::default() },
            took: Some(Duration::from_secs(100)),
            traffic: Traffic::default(),
            attempts: 1,
            outcome,
            cost: Usd::ZERO,
        };
        history.record(now - ago, Record::Build(Box::new(record)));
    }
    history.settle().await;
    let all = desk.json(&["--history", ".", "--fixed", "1xc6a.large"]);
    assert_eq!((all["builds"].as_u64(), all["runs"][0]["built"].as_u64()), (Some(3), Some(3)));
    // From the first build to the end of the last, of 100 s each.
    let finish = all["runs"][0]["finish"].as_f64().unwrap();
    assert!((finish - (198.0 * 3600.0 + 100.0)).abs() < 5.0, "{finish}");
    let late = desk.json(&["--history", ".", "--since", "7d", "--fixed", "1xc6a.large"]);
    assert_eq!(late["builds"], 2);
    let none = desk.run(&["--history", ".", "--since", "5min"]);
    assert!(none.contains("hint: no build of that time ended well on a builder"), "{none}");
    // Beside a graph it says how long builds take: `compiler` is known.
    let graph = golden();
    let both = desk.json(&["--graph", &graph, "--history", ".", "--fixed", "1xc7a.large+1xc7g.large"]);
    assert_eq!(both["durations"], serde_json::json!({"recorded": 1, "guessed": 7}));
}
