//! One table of the file, read key by key. Every key that is asked for is a known one; [`Section::finish`] complains
//! about all others. A value that is wrong is complained about and read as absent, so that the reading goes on.
//!
//! Knows TOML's types and our scalar forms (durations, absolute paths, amounts of money); does not know which keys there are.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeArray, DeFloat, DeInteger, DeTable, DeValue};

use super::problem::{Problems, did_you_mean, quote};
use crate::model::Usd;

/// Longer is a mistake, and a moment that far away does not fit every clock.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);

/// A table with its place in the document.
pub(super) struct Section<'t> {
    path: String,
    line: usize,
    table: &'t DeTable<'t>,
    known: Vec<&'static str>,
}

/// A text with its place in the document.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'t> {
    pub(super) text: &'t str,
    pub(super) line: usize,
}

impl<'t> Section<'t> {
    pub(super) fn new(path: impl Into<String>, line: usize, table: &'t DeTable<'t>) -> Self {
        Self { path: path.into(), line, table, known: Vec::new() }
    }

    /// The path of a key in this table.
    pub(super) fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The path of the table itself.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn set_path(&mut self, path: String) {
        self.path = path;
    }

    /// The line of this key, or of the table when the key is not there.
    pub(super) fn line(&self, key: &str, problems: &Problems) -> usize {
        self.table.get_key_value(key).map_or(self.line, |(key, _)| problems.line(&key.span()))
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Complains about a key of this table.
    pub(super) fn error(&self, key: &str, message: impl Into<String>, problems: &mut Problems) {
        problems.error(self.line(key, problems), self.key(key), message);
    }

    /// Complains about the keys that nobody asked for.
    pub(super) fn finish(self, problems: &mut Problems) {
        for key in self.table.keys() {
            let name: &str = key.get_ref();
            if self.known.contains(&name) {
                continue;
            }
            let candidates: Vec<&str> =
                self.known.iter().copied().filter(|known| !self.table.contains_key(*known)).collect();
            let message = match did_you_mean(name, &candidates) {
                Some(meant) => format!("unknown key; did you mean `{meant}`?"),
                None => format!("unknown key; known here: {}", list(&self.known)),
            };
            // The key is the file's own text, which may be anything.
            let shown = quote(name);
            problems.error(problems.line(&key.span()), self.key(shown.trim_matches('`')), message);
        }
    }

    fn value(&mut self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.known.push(key);
        self.table.get(key)
    }

    /// Reads a value of one type; `wanted` names the type in a complaint.
    fn typed<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        problems: &mut Problems,
        read: impl FnOnce(&'t DeValue<'t>) -> Option<T>,
    ) -> Option<T> {
        let value = self.value(key)?.get_ref();
        let read = read(value);
        if read.is_none() {
            self.error(key, format!("expected {wanted}, found {}", kind(value)), problems);
        }
        read
    }

    pub(super) fn text(&mut self, key: &'static str, problems: &mut Problems) -> Option<&'t str> {
        self.typed(key, "text in quotes", problems, DeValue::as_str)
    }

    /// A number within bounds.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        bounds: RangeInclusive<u32>,
        problems: &mut Problems,
    ) -> Option<u32> {
        let number = self.typed(key, "a whole number", problems, DeValue::as_integer)?;
        let parsed = i128::from_str_radix(number.as_str(), number.radix()).ok();
        let within = parsed.and_then(|parsed| u32::try_from(parsed).ok()).filter(|n| bounds.contains(n));
        if within.is_none() {
            let message = format!("{number} is not between {} and {}", bounds.start(), bounds.end());
            self.error(key, message, problems);
        }
        within
    }

    pub(super) fn truth(&mut self, key: &'static str, problems: &mut Problems) -> Option<bool> {
        self.typed(key, "true or false", problems, DeValue::as_bool)
    }

    /// An amount of US dollars, more than nothing: a number, or a text as price lists have it.
    pub(super) fn money(&mut self, key: &'static str, problems: &mut Problems) -> Option<Usd> {
        let text = self.typed(key, "an amount of US dollars such as 0.80", problems, |value| {
            let as_number =
                || value.as_integer().filter(|number| number.radix() == 10).map(DeInteger::as_str);
            let as_decimal = || value.as_float().map(DeFloat::as_str);
            value.as_str().or_else(as_number).or_else(as_decimal)
        })?;
        let amount = Usd::parse(text).filter(|amount| *amount > Usd::ZERO);
        if amount.is_none() {
            let message = format!("{} is not an amount of US dollars above 0, such as 0.80", quote(text));
            self.error(key, message, problems);
        }
        amount
    }

    /// A duration with its unit, at least this long.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        least: Duration,
        problems: &mut Problems,
    ) -> Option<Duration> {
        if let Some(number) = self.table.get(key).and_then(|value| value.get_ref().as_integer()) {
            self.known.push(key);
            self.error(
                key,
                format!("`{number}` has no unit; write \"{number}s\" or \"{number}m\""),
                problems,
            );
            return None;
        }
        let text = self.typed(key, "a duration such as \"10m\"", problems, DeValue::as_str)?;
        let complaint = match humantime::parse_duration(text) {
            Ok(duration) if duration < least => {
                format!("{} is shorter than {}", quote(text), humantime::format_duration(least))
            }
            Ok(duration) if duration > MAX_DURATION => format!("{} is longer than a year", quote(text)),
            Ok(duration) => return Some(duration),
            Err(error) => {
                format!("{} is not a duration such as \"10m\" or \"1h 30m\": {error}", quote(text))
            }
        };
        self.error(key, complaint, problems);
        None
    }

    pub(super) fn absolute_path(&mut self, key: &'static str, problems: &mut Problems) -> Option<PathBuf> {
        let text = self.typed(key, "a path in quotes", problems, DeValue::as_str)?;
        let complaint = if text.contains("PRIVATE KEY") {
            "the text of a key where the path of its file belongs".to_owned()
        } else if text.contains(['\0', '\n']) {
            format!("{} is not a path", quote(text))
        } else if !text.starts_with('/') {
            format!("{} is a relative path; write it from `/` on", quote(text))
        } else {
            return Some(PathBuf::from(text));
        };
        self.error(key, complaint, problems);
        None
    }

    pub(super) fn texts(&mut self, key: &'static str, problems: &mut Problems) -> Option<Vec<Text<'t>>> {
        let array = self.typed(key, "a list of texts in quotes", problems, DeValue::as_array)?;
        let mut texts = Vec::new();
        for item in array.iter() {
            let line = problems.line(&item.span());
            match item.get_ref().as_str() {
                Some(text) => texts.push(Text { text, line }),
                None => {
                    let message = format!("expected text in quotes, found {}", kind(item.get_ref()));
                    problems.error(line, self.key(key), message);
                }
            }
        }
        Some(texts)
    }

    /// Whether the value is text, for keys that take text or a number.
    pub(super) fn is_text(&self, key: &str) -> bool {
        self.table.get(key).is_some_and(|value| value.get_ref().is_str())
    }

    /// A table in this table.
    pub(super) fn section(&mut self, key: &'static str, problems: &mut Problems) -> Option<Self> {
        let path = self.key(key);
        let line = self.line(key, problems);
        let wanted = format!("a table (`[{path}]`)");
        self.typed(key, &wanted, problems, DeValue::as_table).map(|table| Section::new(path, line, table))
    }

    /// A list of tables in this table.
    pub(super) fn sections(&mut self, key: &'static str, problems: &mut Problems) -> Option<Vec<Self>> {
        let wanted = format!("a list of tables, each headed `[[{}]]`", self.key(key));
        let array: &DeArray<'_> = self.typed(key, &wanted, problems, DeValue::as_array)?;
        let mut sections = Vec::new();
        for (index, item) in array.iter().enumerate() {
            let path = format!("{}[{}]", self.key(key), index + 1);
            let line = problems.line(&item.span());
            match item.get_ref().as_table() {
                Some(table) => sections.push(Section::new(path, line, table)),
                None => {
                    let message = format!("expected a table, found {}", kind(item.get_ref()));
                    problems.error(line, path, message);
                }
            }
        }
        Some(sections)
    }
}

fn list(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
