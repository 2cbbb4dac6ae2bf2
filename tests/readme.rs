//! Every command of the README is run by a test: here, on a machine with a real Nix and a broker, or in the test that the
//! table below names. A command that is added to the README and to no test fails this.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

// Harness code: not every test file uses all of it.
#[allow(dead_code)]
#[path = "common/lab.rs"]
mod lab;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use lab::{LOCAL_POOL, Lab, on_release, text};

/// Read when it runs: Nix compiles the tests without it.
static README: LazyLock<String> =
    LazyLock::new(|| std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap());

/// What the README names in backquotes, and in blocks that a person types, if its first word is a program to run.
fn commands() -> BTreeSet<String> {
    let mut commands = BTreeSet::new();
    let mut block: Option<&str> = None;
    for line in README.lines() {
        if let Some(language) = line.strip_prefix("```") {
            block = if block.is_some() { None } else { Some(language) };
        } else if block.is_some_and(|language| language.is_empty()) {
            // A picture is not typed, and neither is a comment.
            commands.extend(is_command(line.split("  #").next().unwrap().trim()));
        } else if block.is_none() {
            commands.extend(line.split('`').skip(1).step_by(2).filter_map(is_command));
        }
    }
    commands
}

fn is_command(text: &str) -> Option<String> {
    let program = text.split(' ').next().unwrap();
    let is_program = ["broker", "make", "nix", "nixos-rebuild", "sudo", "cargo"].contains(&program);
    // `nix` alone, or a word of prose, is a name.
    (is_program && text.contains(' ')).then(|| text.replace("\\|", "|"))
}

/// Commands that are run elsewhere: by which file, and the words there.
const ELSEWHERE: [(&str, &str, &str); 28] = [
    ("broker run [--pool POOL] -- COMMAND", "tests/run.rs", "\"--pool\", \"local\", \"--\""),
    ("broker try POOL", "tests/run.rs", "\"broker\", \"try\""),
    ("broker run -- nix build .#tests", "tests/run.rs", "[\"broker\", \"run\", \"--\"]"),
    ("broker init", "tests/ec2_cli/init.rs", "init"),
    ("broker logs [-f] hello", "tests/faces.rs", "\"broker\", \"logs\""),
    ("broker image upload", "tests/ec2_cli/image.rs", "\"image\", \"upload\""),
    (
        "broker simulate --graph FILE [--config FILE]... [--fixed 4xc6a.4xlarge]...",
        "tests/simulate/command.rs",
        "\"simulate\"",
    ),
    ("make simulate", "tests/bench/simulate.sh", "simulate"),
    ("broker simulate", "tests/simulate/command.rs", "\"simulate\""),
    ("nix derivation show -r", "tests/golden/record_graphs.sh", "derivation show"),
    ("nix derivation show -r .#tiger > tiger.json", "tests/golden/record_graphs.sh", "derivation show"),
    (
        "nix build --dry-run .#tiger 2> wanted.txt",
        "tests/simulate/command.rs",
        "only_what_a_dry_run_names_is_built",
    ),
    (
        "broker simulate --graph tiger.json --only wanted.txt --config now.toml --config other.toml --fixed 4xc6a.4xlarge",
        "tests/simulate/command.rs",
        "only_what_a_dry_run_names_is_built",
    ),
    ("broker sweep", "tests/ec2_cli/sweep.rs", "\"sweep\""),
    ("broker doctor --aws", "tests/ec2_cli/doctor.rs", "\"doctor\", \"--aws\""),
    ("broker serve", "contrib/systemd/nix-broker.service", "broker serve"),
    ("cargo build --release", "Makefile", "cargo build --locked --release --bins"),
    ("cargo deny", "tests/lab/cargo-deny.sh", "cargo deny"),
    ("make demo", "tests/lab/demo.sh", "flake"),
    ("make test", ".ci/run", "make --no-print-directory test"),
    ("make bench", "tests/bench/run.sh", "bench"),
    ("make micro", "Makefile", "cargo bench"),
    ("make clean", "Makefile", "host.sh down --all"),
    ("nix __build-remote", "src/hook/stock_client.rs", "build-remote"),
    ("nix build .#static", "nix/tests/default.nix", "\"static\""),
    ("nixos-rebuild build --flake .#tiger", "tests/nixos.rs", "nixos-rebuild build --flake .#tiger"),
    ("nixos-rebuild switch", "tests/nixos.rs", "roots_rebuild_without_the_daemon"),
    ("sudo nixos-rebuild switch", "tests/nixos.rs", "roots_rebuild_without_the_daemon"),
];

#[test]
fn no_command_is_shown_that_no_test_runs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for command in commands() {
        if let Some((_, file, words)) = ELSEWHERE.iter().find(|(known, ..)| *known == command) {
            let found = std::fs::read_to_string(root.join(file)).unwrap().contains(words);
            assert!(found, "`{command}`: {file} has no `{words}`");
        } else {
            assert!(!here(&command).is_empty(), "`{command}` is in the README, and no test runs it");
        }
    }
    for (command, ..) in ELSEWHERE {
        assert!(commands().contains(command), "`{command}` is no longer in the README");
    }
}

#[test]
fn every_test_is_run_by_make_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let makefile = std::fs::read_to_string(root.join("Makefile")).unwrap();
    let named: Vec<&str> = makefile.split_whitespace().skip_while(|word| *word != "--test").collect();
    let mut problems = Vec::new();
    for entry in std::fs::read_dir(root.join("tests")).unwrap() {
        let path = entry.unwrap().path();
        let is_test = path.extension().is_some_and(|end| end == "rs") || path.join("main.rs").exists();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if is_test && !named.windows(2).any(|words| words == ["--test", &name]) {
            problems.push(format!("the Makefile runs no `--test {name}`"));
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

/// The ways to run a command of the README on the machine of the test below; none if it is not run there.
fn here(command: &str) -> Vec<String> {
    let endpoint =
        |options: &str| format!("'ssh-ng://localhost?remote-program=/usr/local/bin/broker-hook{options}'");
    let nix = "nix --extra-experimental-features nix-command";
    match command {
        "broker status [--watch] [--json]" => {
            vec!["broker status".to_owned(), "broker status --json".to_owned()]
        }
        "broker cost [--by build|pool|day|builder]" => {
            ["build", "pool", "day", "builder"].map(|by| format!("broker cost --by {by}")).into()
        }
        "broker history [export --format jsonl|csv]" => ["jsonl", "csv"]
            .map(|format| format!("broker history export --format {format}"))
            .into_iter()
            .chain(["broker history".to_owned()])
            .collect(),
        "broker why" | "broker why hello" => vec!["broker why graph".to_owned()],
        "broker why gcc" => vec!["broker why fit-for-nothing".to_owned()],
        "broker start POOL" => vec!["broker start local".to_owned()],
        "broker drain BUILDER" => vec!["broker drain $(BUILDER)".to_owned()],
        "broker stop BUILDER" => vec!["broker start local".to_owned(), "broker stop $(BUILDER)".to_owned()],
        "broker top" => vec!["broker top".to_owned(), "broker top --json".to_owned()],
        "broker status"
        | "broker builders"
        | "broker builds"
        | "broker check"
        | "broker doctor"
        | "broker cost"
        | "broker history"
        | "broker history export" => vec![command.to_owned()],
        "nix store info --store 'ssh-ng://localhost?remote-program=/path/to/broker-hook&remote-store=POOL'" =>
        {
            vec![format!("{nix} store info --store {}", endpoint("&remote-store=local"))]
        }
        "nix copy --to" => {
            vec![format!("{nix} copy --no-check-sigs --to {} $(PATH)", endpoint("&remote-store=local"))]
        }
        "nix build" => vec![format!(
            "{nix} build --no-link --file /t/graph.nix --argstr nonce readme --argstr width 2 --argstr depth 2"
        )],
        "nix log" => vec![format!("{nix} log $(PATH)")],
        _ => vec![],
    }
}

#[test]
fn the_configurations_of_the_readme_are_valid() {
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINfx/2mJZz3kXc0W8d8n7oA6pGJ2u0r9kYh5lXcZ1bQe";
    let blocks: Vec<_> =
        README.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 2);
    for block in blocks {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), block.replace("ssh-ed25519 AAAA...", key)).unwrap();
        let checked =
            Command::new(env!("CARGO_BIN_EXE_broker")).arg("check").arg(file.path()).output().unwrap();
        assert!(checked.status.success(), "{block}: {}", text(&checked));
    }
}

#[test]
fn the_commands_of_the_readme_do_what_they_say() {
    on_release(
        "forky",
        &LOCAL_POOL.replace("\"3s\"", "\"10m\"").replace("max-builders = 2", "max-builders = 9"),
        |lab| {
            let built = lab.build("alice", &["/t/graph.nix", "--argstr", "nonce", "first"]).remove(0);
            for command in
                ["broker start POOL", "broker why gcc"].map(str::to_owned).into_iter().chain(commands())
            {
                for line in here(&command) {
                    run(lab, &line.replace("$(PATH)", &built));
                }
            }
        },
    );
}

fn run(lab: &Lab, line: &str) {
    let line = if line.contains("$(BUILDER)") {
        let ready = |lab: &Lab| {
            let status = lab.status();
            let builders = status["builders"].as_array().unwrap();
            let ready = builders.iter().find(|builder| builder["state"] == "ready")?;
            Some(ready["id"].as_str().unwrap().to_owned())
        };
        lab.wait("a builder", || ready(lab).is_some());
        line.replace("$(BUILDER)", &ready(lab).unwrap())
    } else {
        line.to_owned()
    };
    let output = lab.output("root", &["sh", "-c", &line]);
    // What is asked about a build that never was is answered, and not with success.
    assert!(
        output.status.success() || line.contains("fit-for-nothing"),
        "`{line}`: {}\n{}",
        text(&output),
        lab.diagnosis()
    );
}
