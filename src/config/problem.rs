//! One complaint about the file, and the list in which they are collected.

use std::fmt;
use std::ops::Range;
use std::path::Path;

/// A complaint with its place in the file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Line in the file, from 1.
    pub line: usize,
    /// Where in the document: `pool.zen3.idle-timeout`. Empty when the file is no TOML at all.
    pub key: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl Problem {
    /// `config.toml:12: pool.zen3.idle-timeout: ...`, as editors and people can jump to it.
    pub fn located(&self, file: &Path) -> String {
        format!("{}:{}: {self}", file.display(), self.line)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.key, self.message)
        }
    }
}

/// Everything that was found in one reading of a file.
#[derive(Debug)]
pub(super) struct Problems {
    /// Offset at which each line starts.
    line_starts: Vec<usize>,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Problems {
    pub(super) fn new(text: &str) -> Self {
        let after_newlines = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            line_starts: std::iter::once(0).chain(after_newlines).collect(),
            errors: Vec::new(),
            warnings: Vec::new(),
        }
    }

    pub(super) fn line(&self, span: &Range<usize>) -> usize {
        self.line_starts.partition_point(|&start| start <= span.start).max(1)
    }

    pub(super) fn error(&mut self, line: usize, key: impl Into<String>, message: impl Into<String>) {
        self.errors.push(Problem { line, key: key.into(), message: message.into() });
    }

    pub(super) fn warn(&mut self, line: usize, key: impl Into<String>, message: impl Into<String>) {
        self.warnings.push(Problem { line, key: key.into(), message: message.into() });
    }

    pub(super) fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }

    /// Errors and warnings, each in the order of the file.
    pub(super) fn into_parts(mut self) -> (Vec<Problem>, Vec<Problem>) {
        self.errors.sort();
        self.warnings.sort();
        (self.errors, self.warnings)
    }
}

/// A value of the file for a message: short, on one line, and never a private key that was pasted into the wrong place.
pub(super) fn quote(text: &str) -> String {
    const MAX_SHOWN: usize = 60;
    if text.contains("PRIVATE KEY") {
        return "a private key".to_owned();
    }
    let shown: String = text.chars().take(MAX_SHOWN).flat_map(char::escape_debug).collect();
    let dots = if text.chars().nth(MAX_SHOWN).is_some() { "..." } else { "" };
    format!("`{shown}{dots}`")
}

/// The candidate that was probably meant: at most a third of it, and at least one letter, may differ.
pub(super) fn did_you_mean<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let word = word.to_lowercase().replace('_', "-");
    candidates
        .iter()
        .map(|&candidate| (distance(&word, candidate), candidate))
        .filter(|&(distance, candidate)| distance <= (candidate.len() / 3).max(1))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn one word into the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(100).collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                if swapped { best.min(rows[i - 2][j - 2] + 1) } else { best }
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_finds_the_word_that_was_meant() {
        let known = ["name", "systems", "idle-timeout", "min-builders", "max-builders", "slots"];
        for (typed, meant) in [
            ("nmae", Some("name")),
            ("system", Some("systems")),
            ("idle_timeout", Some("idle-timeout")),
            ("IdleTimeout", Some("idle-timeout")),
            ("max-builder", Some("max-builders")),
            ("region", None),
            ("", None),
        ] {
            assert_eq!(did_you_mean(typed, &known), meant, "{typed}");
        }
    }

    #[test]
    fn a_quoted_value_is_short_one_line_and_no_private_key() {
        assert_eq!(quote("a\nb"), "`a\\nb`");
        assert_eq!(quote(&"é".repeat(100)).chars().count(), 65);
        assert_eq!(quote("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl"), "a private key");
    }
}
