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
    insta::assert_snapshot!(Desk::new().run(&["--help"]), @r"
    exit 0
    --- stdout
    Try configurations on a graph of builds, without building or buying anything

    Usage: broker simulate [OPTIONS] <--graph <FILE>|--history [<DIR>]|--shape <NAME>>

    Options:
          --graph <FILE>              What to build: the JSON of `nix derivation show -r`, or the lines
                                      of `nix-eval-jobs` [`-`: standard input]
          --socket <PATH>             The broker's socket [default: the configuration's, or
                                      /run/nix-broker/broker.sock] [env: NIX_BROKER_SOCKET]
          --only <FILE>               Build only the derivations that this text names, as `nix build
                                      --dry-run` does; the others count as built
          --durations <FILE>          How long builds take: lines of `NAME SECONDS [THREADS]`, or an
                                      object in JSON
          --history [<DIR>]           The broker's history, from its state directory [default: the
                                      configuration's]: with `--graph` it says how long builds take;
                                      alone, the builds that were recorded are made again when they were
                                      made
          --since <TIME>              Of the history, only this long ago and later, such as `7d`
          --shape <NAME>              Build a made-up graph instead: `wide`, `deep`, `diamond`,
                                      `long-tail` or `two-systems`
          --config <FILE>             A configuration to try; several are shown side by side [default:
                                      the broker's own]
          --fcfs                      Try the pools of each configuration also first come, first served
          --fixed <MACHINES>          Compare with machines that are always there, as in `4xc6a.4xlarge`
                                      or `2xc7g.xlarge+1xc7a.8xlarge`
          --max-jobs <N>              Builds that this machine takes itself, as in nix.conf [default: 0]
          --spot-price <PERCENT>      What spot costs, in percent of the on-demand price [default: 40]
          --interruptions <PER_HOUR>  How often EC2 takes back a spot instance, per hour that it runs
                                      [default: 0]
          --foresight <HOW>           What the broker knows of durations: `none`, `learned` (history and
                                      what ends meanwhile), `rough`, `exact` [default: rough]
          --seed <N>                  Where all chance comes from: the same number gives the same run
                                      [default: 1]
          --svg <FILE>                Draw the runs into this file
          --json                      Print a JSON document
      -h, --help                      Print help

    Examples:
      nix derivation show -r .#tiger > tiger.json
      nix build --dry-run .#tiger 2> wanted.txt
      broker simulate --graph tiger.json --only wanted.txt
      broker simulate --graph tiger.json --config now.toml --config larger.toml --svg tiger.svg
      broker simulate --graph tiger.json --fcfs --fixed 4xc6a.4xlarge --fixed 1xc7a.16xlarge
      nix-eval-jobs --flake .#hydraJobs | broker simulate --graph -
      broker simulate --history --since 7d --config other.toml
      broker simulate --shape long-tail --seed 7

    The scheduler is the real one, and so are the choice of machines and the prices. Times are models:
    a machine is ready 40 to 70 seconds after its launch; builds that share a machine share its
    processors; a name that no file of durations has gets a guess (5 s for a download, around 30 s for a
    build, 60 s where it builds in parallel, 30 min for `big-parallel`). A fixed fleet is ready when the
    work begins, is used by stock Nix, and is paid for until the work is done.

    FINISHED is when the last build ended; COST until the last machine had ended, and AFTER what of it
    came when nothing was left to build; USED how much of the processor time that was paid for built
    something; IDLE the time of machines that were ready with nothing to do; WAITED how long a build
    waited for its slot on average.
    ");
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
    let header = "FINISHED COST AFTER USED LAUNCHES PEAK IDLE WAITED";
    let is_header =
        |line: &str| line.starts_with("RUN ") && line.split_whitespace().skip(1).eq(header.split(' '));
    assert!(shown.lines().any(is_header), "{shown}");
}

#[test]
fn a_fixed_fleet_is_a_table_that_never_changes() {
    let graph = golden();
    insta::assert_snapshot!(
        Desk::new().run(&["--graph", &graph, "--fixed", "2xc7a.4xlarge+1xc7g.2xlarge", "--fixed", "1xc6a.large"]), @r"
        exit 0
        --- stdout
        8 builds (7 for x86_64-linux, 1 for aarch64-linux): 36m 22s of work, the longest chain 33m 51s.
        Durations: 8 guessed.
        Prices: us-east-1, 2026-07-20.

        RUN                          FINISHED            COST   AFTER  USED  LAUNCHES  PEAK  IDLE     WAITED
        2xc7a.4xlarge+1xc7g.2xlarge  29m 31s             $1.00  $0.00  36%   3         3     56m 56s  0s
        1xc6a.large                  6h 26m (2 unbuilt)  $0.73  $0.00  100%  1         1     0s       25s

        note  `2xc7a.4xlarge+1xc7g.2xlarge` costs $49.00 a day when nobody ends it
        note  `1xc6a.large` costs $2.71 a day when nobody ends it
        warn  `1xc6a.large`: 1 build failed: no machine fits
        "
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
    insta::assert_snapshot!(shown.replace(&graph, "GRAPH"), @r"
    exit 1
    --- stderr
    error: `GRAPH`: there is nothing to build
    hint: `--only` names none of the graph's derivations; both have to be of the same evaluation
    exit 1
    --- stderr
    error: `nothing.txt` names no derivation
    hint: make it with `nix build --dry-run INSTALLABLE 2> FILE`
    exit 1
    --- stderr
    error: cannot read `absent.txt`: No such file or directory (os error 2)
    ");
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
    insta::assert_snapshot!(shown, @r"
    exit 1
    --- stderr
    error: cannot read `absent.json`: No such file or directory (os error 2)
    exit 1
    --- stderr
    error: `text.json` is not what `nix derivation show -r` or `nix-eval-jobs` writes: expected value at line 1 column 1
    hint: make it with `nix derivation show -r INSTALLABLE > FILE` (`nix show-derivation -r` before Nix 2.14)
    exit 1
    --- stderr
    error: `empty.json` has no derivation in it
    hint: make it with `nix derivation show -r INSTALLABLE > FILE` (`nix show-derivation -r` before Nix 2.14)
    exit 1
    --- stderr
    error: `flat.json` lacks what others need: `/nix/store/j1k9zw8wfmfh8cp7hhfczxr6q1f6m524-s.drv`
    hint: was it made without `-r`?
    exit 1
    --- stderr
    error: `cycle.json`: these derivations need each other, so none of them can be built: `a`
    exit 1
    --- stderr
    error: `store.json` `/gnu/store/grqia4k7li6l063z9rfyvhy5ll81wxf7-a.drv` is not the path of a derivation in /nix/store
    hint: only graphs of the store `/nix/store` can be simulated
    exit 1
    --- stderr
    error: `twice.json` has `/nix/store/0j1fy0mrkljap32gyz67s77yql4ijgrv-top-1.0.drv` twice
    hint: are two graphs of the same derivations in one file?
    exit 1
    --- stderr
    error: cannot read `binary.json`: it is not text
    exit 1
    --- stderr
    error: `times.txt`: line 1: expected `NAME SECONDS` or `NAME SECONDS THREADS`
    exit 1
    --- stderr
    error: there is no configuration at `absent.toml`
    hint: name another file on the command line, or with NIX_BROKER_CONFIG
    exit 1
    --- stderr
    error: cannot use the history at `absent/history.sqlite`
      caused by: unable to open database file: absent/history.sqlite
      caused by: Error code 14: unable to open database file
    hint: the state directory is the broker's own: run this as the user that it runs as, or as root
    exit 2
    --- stderr
    error: invalid value '4xlarge' for '--fixed <MACHINES>': `large` is no instance type with a known price; write `4xc6a.4xlarge`

    For more information, try '--help'.
    exit 2
    --- stderr
    error: invalid value 'round' for '--shape <NAME>': the shapes are `wide`, `deep`, `diamond`, `long-tail`, `two-systems`

    For more information, try '--help'.
    exit 2
    --- stderr
    error: the following required arguments were not provided:
      <--graph <FILE>|--history [<DIR>]|--shape <NAME>>

    Usage: broker simulate <--graph <FILE>|--history [<DIR>]|--shape <NAME>>

    For more information, try '--help'.
    ");
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
