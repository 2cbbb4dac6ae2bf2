//! How long builds take: what is known of their names, and a guess for the others.
//!
//! A name is looked up as it is (`hello-2.12.1`) and without its version (`hello`) among the durations that were given;
//! then the broker's own predictions from its history are asked. What is found nowhere is guessed, always alike for the
//! same name:
//!
//! | derivation | seconds | threads |
//! |---|---|---|
//! | fixed output (a download) | 5 | 1 |
//! | prefers to be built locally (a text file, a link tree) | 1 | 1 |
//! | requires `big-parallel` | around 1800 | 16 |
//! | is built in parallel (`enableParallelBuilding`) | around 60 | 4 |
//! | any other | around 30 | 1 |
//!
//! "Around" is log-normal with a sigma of 1, within 1 s and 4 h: most builds are short and a few are very long.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::graph::Work;
use super::random::Random;
use super::shapes::TRANSFER;
use crate::model::{Nature, System};
use crate::predict::{Observation, Predictor};

const LEAST: f64 = 1.0;
const MOST: f64 = 4.0 * 3600.0;
const SIGMA: f64 = 1.0;
/// A longer build in a file is a typing error.
const LONGEST: f64 = 30.0 * 24.0 * 3600.0;
/// More threads than any machine has processors.
const MOST_THREADS: u32 = 1024;

/// Where a duration comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// From a file of durations.
    Given,
    /// From builds that were recorded.
    Recorded,
    /// From nowhere.
    Guessed,
}

/// What a derivation says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Where it is best built.
    pub nature: Nature,
    /// It requires `big-parallel`.
    pub big_parallel: bool,
    /// `enableParallelBuilding`.
    pub parallel: bool,
}

/// Why a file of durations cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationsError {
    /// A line that is none.
    #[error("line {0}: expected `NAME SECONDS` or `NAME SECONDS THREADS`")]
    Line(usize),
    /// A number that is no duration.
    #[error("`{0}` takes no such number of seconds: {1}")]
    Seconds(String, String),
    /// JSON of another form.
    #[error("is not an object of names and seconds: {0}")]
    Json(String),
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Known {
    seconds: f64,
    threads: Option<u32>,
    source: Source,
}

/// The durations that are known.
#[derive(Clone, Debug, Default)]
pub struct Durations {
    given: BTreeMap<String, Known>,
    recorded: Predictor,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    Seconds(f64),
    Full { seconds: f64, threads: Option<u32> },
}

impl Durations {
    /// Takes in a file: an object of names and seconds in JSON, or lines of a name, seconds and perhaps threads, where
    /// `#` begins a comment.
    pub fn give(&mut self, text: &str) -> Result<usize, DurationsError> {
        let before = self.given.len();
        if text.trim_start().starts_with('{') {
            let entries: BTreeMap<String, Entry> =
                serde_json::from_str(text).map_err(|error| DurationsError::Json(error.to_string()))?;
            for (name, entry) in entries {
                let (seconds, threads) = match entry {
                    Entry::Seconds(seconds) => (seconds, None),
                    Entry::Full { seconds, threads } => (seconds, threads),
                };
                self.insert(name, seconds, threads)?;
            }
            return Ok(self.given.len() - before);
        }
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            let (name, seconds, threads) = match words[..] {
                [] => continue,
                [name, seconds] => (name, seconds, None),
                [name, seconds, threads] => (name, seconds, Some(threads)),
                _ => return Err(DurationsError::Line(number)),
            };
            let threads = threads.map(str::parse).transpose().map_err(|_| DurationsError::Line(number))?;
            let seconds = seconds.parse().map_err(|_| DurationsError::Line(number))?;
            self.insert(name.to_owned(), seconds, threads)?;
        }
        Ok(self.given.len() - before)
    }

    fn insert(&mut self, name: String, seconds: f64, threads: Option<u32>) -> Result<(), DurationsError> {
        if !(0.0..=LONGEST).contains(&seconds) {
            return Err(DurationsError::Seconds(name, seconds.to_string()));
        }
        self.given.insert(name, Known { seconds, threads, source: Source::Given });
        Ok(())
    }

    /// A build that was recorded took so long on the builder.
    pub fn record(&mut self, seen: Observation<'_>) {
        self.recorded.observe(seen);
    }

    /// What was recorded, for a broker that remembers it.
    pub fn recorded(&self) -> &Predictor {
        &self.recorded
    }

    /// How much work a build of this name is, and who says so.
    pub fn work(&self, name: &str, system: &System, hints: Hints) -> (Work, Source) {
        let found = [name, stem(name)].into_iter().find_map(|key| self.given.get(key).copied());
        let found = found.or_else(|| {
            let prediction = self.recorded.predict_for(name, system, hints.big_parallel);
            let seconds = prediction.duration.as_secs_f64();
            let known = Known { seconds, threads: None, source: Source::Recorded };
            prediction.is_of_its_like().then_some(known)
        });
        let guess = guess(name, hints);
        let known = found.unwrap_or(guess);
        let threads = known.threads.or(guess.threads).unwrap_or(1).clamp(1, MOST_THREADS);
        let work = Work {
            building: Duration::from_secs_f64(known.seconds),
            threads,
            uploading: TRANSFER,
            downloading: TRANSFER,
        };
        (work, known.source)
    }
}

fn guess(name: &str, hints: Hints) -> Known {
    let Hints { nature, big_parallel, parallel } = hints;
    let (seconds, threads, is_spread) = match (nature.is_fixed_output, nature.prefers_local) {
        (true, _) => (5.0, 1, false),
        (false, true) => (1.0, 1, false),
        (false, false) if big_parallel => (1800.0, 16, true),
        (false, false) if parallel => (60.0, 4, true),
        (false, false) => (30.0, 1, true),
    };
    let spread = if is_spread { (SIGMA * Random::of_name(stem(name)).normal()).exp() } else { 1.0 };
    Known { seconds: (seconds * spread).clamp(LEAST, MOST), threads: Some(threads), source: Source::Guessed }
}

/// A name without its version, as Nix divides them: the version begins behind the first dash before anything but a
/// letter.
pub fn stem(name: &str) -> &str {
    let is_version = |rest: &str| rest.starts_with(|c: char| !c.is_ascii_alphabetic());
    let dash = name.match_indices('-').find(|(at, _)| is_version(&name[at + 1..]) && name.len() > at + 1);
    dash.map_or(name, |(at, _)| &name[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(durations: &Durations, name: &str) -> (f64, u32, Source) {
        let (work, source) = durations.work(name, &System::new("x86_64-linux"), Hints::default());
        (work.building.as_secs_f64(), work.threads, source)
    }

    #[test]
    fn a_version_begins_behind_a_dash_that_no_letter_follows() {
        for (name, expected) in [
            ("hello-2.12.1", "hello"),
            ("python3.11-requests-2.31.0", "python3.11-requests"),
            ("linux-headers", "linux-headers"),
            ("x-", "x-"),
            ("a-b-1-c-2", "a-b"),
            ("", ""),
        ] {
            assert_eq!(stem(name), expected, "{name}");
        }
    }

    #[test]
    fn what_is_given_goes_before_what_was_recorded_and_that_before_a_guess() {
        let mut durations = Durations::default();
        let took = Duration::from_secs(10);
        durations.record(Observation { name: "hello-2.0", system: "x86_64-linux", is_big: false, took });
        let (known, threads, source) = seconds(&durations, "hello-2.0");
        assert_eq!((known.round(), threads, source), (10.0, 1, Source::Recorded));
        assert_eq!(seconds(&durations, "hello-3").2, Source::Recorded);
        assert_eq!(seconds(&durations, "gcc-13").2, Source::Guessed);
        durations.give("# of my machine\nhello 99\ngcc-13 2400 16\n").unwrap();
        assert_eq!(seconds(&durations, "hello-2.0"), (99.0, 1, Source::Given));
        assert_eq!(seconds(&durations, "gcc-13"), (2400.0, 16, Source::Given));
        durations.give(r#"{"hello": 7.5, "gcc": {"seconds": 1, "threads": 2}}"#).unwrap();
        assert_eq!(seconds(&durations, "hello-2.0"), (7.5, 1, Source::Given));
        assert_eq!(seconds(&durations, "gcc-14"), (1.0, 2, Source::Given));
    }

    #[test]
    fn a_guess_depends_on_the_name_alone_and_is_within_bounds() {
        let durations = Durations::default();
        assert_eq!(seconds(&durations, "hello-1"), seconds(&durations, "hello-2"));
        let many: Vec<f64> = (0..1000).map(|n| seconds(&durations, &format!("p{n}")).0).collect();
        assert!(many.iter().all(|seconds| (LEAST..=MOST).contains(seconds)));
        let shorter = many.iter().filter(|seconds| **seconds < 30.0).count();
        assert!((450..550).contains(&shorter), "{shorter}");
        let of = |hints| durations.work("x", &System::new("x86_64-linux"), hints).0;
        let fetched = Nature { is_fixed_output: true, prefers_local: true };
        assert_eq!(of(Hints { nature: fetched, ..Hints::default() }).building.as_secs(), 5);
        assert_eq!(of(Hints { big_parallel: true, ..Hints::default() }).threads, 16);
    }

    #[test]
    fn a_wrong_file_is_told_where_it_is_wrong() {
        let complaint = |text: &str| Durations::default().give(text).unwrap_err().to_string();
        assert_eq!(complaint("a 1\nb\n"), "line 2: expected `NAME SECONDS` or `NAME SECONDS THREADS`");
        assert_eq!(complaint("a 1 2 3"), "line 1: expected `NAME SECONDS` or `NAME SECONDS THREADS`");
        assert_eq!(complaint("a -1"), "`a` takes no such number of seconds: -1");
        assert_eq!(complaint("a inf"), "`a` takes no such number of seconds: inf");
        assert!(complaint("{\"a\": \"b\"}").starts_with("is not an object of names and seconds: "));
    }
}
