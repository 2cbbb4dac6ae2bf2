//! The architecture as a test: who may import whom, which crate is confined to which module, and the shape of a file.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Module, and the modules of ours it may import (besides itself).
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("catalog", &["model"]),
    ("scheduler", &["model"]),
    ("predict", &["model"]),
    ("protocol", &["model"]),
    ("ipc", &["model"]),
    ("config", &["model", "catalog"]),
    ("provider", &["model", "catalog"]),
    ("ssh", &["model"]),
    ("transfer", &["model", "protocol"]),
    ("endpoint", &["model", "protocol", "transfer"]),
    ("history", &["model"]),
    (
        "broker",
        &[
            "model",
            "catalog",
            "scheduler",
            "predict",
            "protocol",
            "ipc",
            "config",
            "provider",
            "ssh",
            "transfer",
            "endpoint",
            "history",
        ],
    ),
    ("simulate", &["model", "catalog", "scheduler", "predict", "provider"]),
    ("hook", &["model", "protocol", "ipc"]),
    ("cli", &["model", "catalog", "ipc", "config", "history", "predict", "broker", "simulate", "provider"]),
    ("bin", &["cli", "hook"]),
];

/// A crate, and the only modules that may name it.
const CONFINED: &[(&str, &[&str])] = &[
    ("russh", &["ssh"]),
    ("clap", &["cli"]),
    ("toml", &["config"]),
    // The provider keeps a journal of what it is about to launch; a simulation reads what Nix writes.
    ("serde", &["ipc", "config", "cli", "provider", "simulate"]),
    ("serde_json", &["ipc", "cli", "protocol", "provider", "simulate"]),
    ("backon", &["broker", "ssh", "provider"]),
    ("rusqlite", &["history"]),
    ("sd_notify", &["broker"]),
];

/// The start of crates' names, and the only directory below which such crates may be named.
const CONFINED_TO_DIRECTORY: &[(&str, &str)] = &[
    ("aws_config", "provider/ec2/api"),
    ("aws_sdk", "provider/ec2/api"),
    ("aws_smithy", "provider/ec2/api"),
];

/// Words that must not appear in a module.
const FORBIDDEN: &[(&str, &[&str])] = &[
    (
        "scheduler",
        &["Instant::now", "SystemTime", "HashMap", "HashSet", "async fn", "tokio::", "std::fs", "rand"],
    ),
    ("predict", &["Instant", "SystemTime", "async fn", "tokio::", "std::fs"]),
    ("model", &["Instant::now", "SystemTime", "async fn", "tokio::", "serde"]),
    ("catalog", &["Instant", "SystemTime", "async fn", "tokio::", "std::fs"]),
    ("simulate", &["Instant::now", "SystemTime", "HashMap", "HashSet", "async fn", "tokio::", "std::fs"]),
    ("hook", &["tokio::", "async fn"]),
];

/// Lines of a file, without its tests.
const MAX_LINES: usize = 500;

struct Source {
    path: PathBuf,
    module: String,
    /// Without `#[cfg(test)]` and what follows it.
    code: String,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut dirs = vec![root.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let relative = path.strip_prefix(&root).unwrap();
                let first = relative.iter().next().unwrap().to_str().unwrap();
                let module = first.strip_suffix(".rs").unwrap_or(first).to_owned();
                let is_test = relative.iter().any(|part| part == "tests.rs" || part == "tests");
                let code = if is_test { "" } else { text.split("#[cfg(test)]").next().unwrap() };
                found.push(Source { path: path.clone(), module, code: code.to_owned(), text });
            }
        }
    }
    assert!(found.len() > 20, "found only {} sources", found.len());
    found
}

/// Code lines only: prose may name what code must not.
fn code_lines(source: &Source) -> impl Iterator<Item = &str> {
    source.code.lines().map(str::trim).filter(|line| !line.starts_with("//"))
}

fn report(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn modules_import_only_downward() {
    let allowed: BTreeMap<_, _> = MAY_IMPORT.iter().copied().collect();
    let mut problems = Vec::new();
    for source in sources() {
        if source.module == "lib" {
            continue;
        }
        let Some(allowed) = allowed.get(source.module.as_str()) else {
            problems.push(format!("{}: module `{}` has no layer", source.path.display(), source.module));
            continue;
        };
        for line in code_lines(&source) {
            for marker in ["crate::", "nix_broker::"] {
                for (at, _) in line.match_indices(marker) {
                    if line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                        continue;
                    }
                    let imported: String = line[at + marker.len()..]
                        .chars()
                        .take_while(|c| c.is_alphanumeric() || *c == '_')
                        .collect();
                    if imported != source.module && !allowed.contains(&imported.as_str()) {
                        problems.push(format!(
                            "{} imports `{imported}`; `{}` may import only {allowed:?}",
                            source.path.display(),
                            source.module
                        ));
                    }
                }
            }
        }
    }
    report(&problems);
}

#[test]
fn confined_crates_stay_where_they_belong() {
    let mut problems = Vec::new();
    for source in sources() {
        for (name, modules) in CONFINED {
            let named = code_lines(&source).any(|line| {
                line.contains(&format!("{name}::")) && !line.contains(&format!("_{name}::"))
                    || line.starts_with(&format!("use {name};"))
            });
            if named && !modules.contains(&source.module.as_str()) {
                problems
                    .push(format!("{} names `{name}`, which belongs to {modules:?}", source.path.display()));
            }
        }
        for (name, directory) in CONFINED_TO_DIRECTORY {
            let is_there = source.path.to_string_lossy().contains(directory);
            if !is_there && code_lines(&source).any(|line| line.contains(name)) {
                problems.push(format!(
                    "{} names `{name}...`, which belongs to {directory}",
                    source.path.display()
                ));
            }
        }
        for (module, words) in FORBIDDEN {
            if source.module == *module {
                for word in *words {
                    if code_lines(&source).any(|line| line.contains(word)) {
                        problems.push(format!("{} has `{word}`", source.path.display()));
                    }
                }
            }
        }
    }
    report(&problems);
}

#[test]
fn every_file_says_what_it_owns_and_stays_short() {
    let mut problems = Vec::new();
    for source in sources() {
        if !source.text.starts_with("//!") {
            problems.push(format!("{} does not open with `//!`", source.path.display()));
        }
        let lines = source.code.lines().count();
        if lines > MAX_LINES {
            problems.push(format!("{}: {lines} lines; name its second concept", source.path.display()));
        }
    }
    report(&problems);
}
