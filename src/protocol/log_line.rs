//! Nix's JSON log lines, `@nix {...}`, as a hook writes them on its standard error and as the stock client does.
//!
//! Owns the form of a line; who may write one and when is left to [`crate::hook`].

use serde_json::{Value, json};

/// How a line begins.
const MARK: &str = "@nix ";
/// A longer text of ours is cut, so that a whole line goes through a pipe in one piece (`PIPE_BUF` is 4096 bytes; JSON
/// may make six bytes of one).
const MAX_TEXT: usize = 900;

/// Nix's levels, as far as we use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Always shown.
    Error = 0,
    /// Shown unless somebody asked for quiet.
    Warning = 1,
    /// Shown by default.
    Info = 3,
}

/// Nix's `actBuildWaiting`: its progress bar shows the text while it lasts and leaves no line behind; a plain log gets
/// one line.
const WAITING: u64 = 111;
/// Nix's `resProgress` and `resSetExpected`: numbers only, and very many of them.
const PROGRESS_RESULTS: [u64; 2] = [105, 106];

/// A line that shows a text.
pub fn message(level: Level, text: &str) -> String {
    line(&json!({ "action": "msg", "level": level as u8, "msg": shorten(text) }))
}

/// A line that begins to show that something is waited for. The id is unique within this hook and its children.
pub fn start_waiting(id: u64, text: &str) -> String {
    line(&json!({
        "action": "start", "id": id, "level": Level::Info as u8, "type": WAITING, "text": shorten(text),
        "parent": 0, "fields": [],
    }))
}

/// A line that ends what a `start` began.
pub fn stop(id: u64) -> String {
    line(&json!({ "action": "stop", "id": id }))
}

/// What a line of the stock client says, as far as somebody acts on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogLine {
    /// A message of level 0.
    Error(String),
    /// Numbers of a running activity, which the next such line replaces.
    Progress {
        /// Which activity.
        id: u64,
        /// Which kind of numbers.
        kind: u64,
    },
    /// The end of an activity.
    Stop {
        /// Which activity.
        id: u64,
    },
    /// The beginning of an activity.
    Start {
        /// What it shows.
        text: String,
    },
    /// Anything else that Nix understands.
    Other,
}

/// Reads a line without its end. `None` when it is no log line.
pub fn parse(line: &[u8]) -> Option<LogLine> {
    let value = value(line)?;
    let id = value.get("id").and_then(Value::as_u64);
    let number = |key: &str| value.get(key).and_then(Value::as_u64);
    Some(match (value.get("action").and_then(Value::as_str), id) {
        (Some("msg"), _) if number("level") == Some(0) => {
            let text = value.get("msg").and_then(Value::as_str).unwrap_or_default();
            LogLine::Error(without_colours(text))
        }
        (Some("result"), Some(id)) => match number("type") {
            Some(kind) if PROGRESS_RESULTS.contains(&kind) => LogLine::Progress { id, kind },
            _ => LogLine::Other,
        },
        (Some("stop"), Some(id)) => LogLine::Stop { id },
        (Some("start"), _) => {
            LogLine::Start { text: value.get("text").and_then(Value::as_str).unwrap_or_default().to_owned() }
        }
        _ => LogLine::Other,
    })
}

/// The line with its end, and with every text that begins with `from` (up to a quote or the end) called `to` instead.
pub fn rename(bytes: &[u8], from: &str, to: &str) -> Option<String> {
    let mut value = value(bytes)?;
    for key in ["text", "msg", "raw_msg"] {
        if let Some(Value::String(text)) = value.get_mut(key) {
            *text = renamed(text, from, to);
        }
    }
    if let Some(Value::Array(fields)) = value.get_mut("fields") {
        for field in fields {
            if let Value::String(text) = field {
                *text = renamed(text, from, to);
            }
        }
    }
    Some(line(&value))
}

fn renamed(text: &str, from: &str, to: &str) -> String {
    let mut parts = text.split(from);
    let mut result = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        result.push_str(to);
        let end = part.find(|c: char| c == '\'' || c == '"' || c == '\u{1b}' || c.is_whitespace());
        result.push_str(&part[end.unwrap_or(part.len())..]);
    }
    result
}

fn value(line: &[u8]) -> Option<Value> {
    serde_json::from_slice(line.strip_prefix(MARK.as_bytes())?).ok()
}

fn line(value: &Value) -> String {
    format!("{MARK}{value}\n")
}

/// One line of bounded length, without control characters.
fn shorten(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

/// The text without terminal escapes (`ESC [ ... letter`).
pub fn without_colours(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\u{1b}' {
            result.push(c);
        } else if chars.next() == Some('[') {
            chars.by_ref().find(char::is_ascii_alphabetic);
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_and_fits_a_pipe_whatever_the_text() {
        let ugly = "\u{1}\"\\\n".repeat(10_000);
        for line in [message(Level::Error, &ugly), start_waiting(u64::MAX, &ugly), stop(1)] {
            assert!(line.len() <= 4096, "{}", line.len());
            assert_eq!(line.matches('\n').count(), 1);
            assert!(line.ends_with('\n'));
            assert!(parse(line.trim_end().as_bytes()).is_some());
        }
    }

    #[test]
    fn what_somebody_acts_on_is_recognised() {
        assert_eq!(
            parse(b"@nix {\"action\":\"msg\",\"level\":0,\"msg\":\"\\u001b[31;1merror:\\u001b[0m no\"}"),
            Some(LogLine::Error("error: no".into()))
        );
        assert_eq!(parse(message(Level::Info, "x").trim_end().as_bytes()), Some(LogLine::Other));
        assert_eq!(
            parse(b"@nix {\"action\":\"result\",\"id\":7,\"type\":105,\"fields\":[1,2,0,0]}"),
            Some(LogLine::Progress { id: 7, kind: 105 })
        );
        assert_eq!(
            parse(b"@nix {\"action\":\"result\",\"id\":7,\"type\":101,\"fields\":[\"log\"]}"),
            Some(LogLine::Other)
        );
        assert_eq!(parse(stop(7).trim_end().as_bytes()), Some(LogLine::Stop { id: 7 }));
        assert_eq!(
            parse(start_waiting(7, "x").trim_end().as_bytes()),
            Some(LogLine::Start { text: "x".into() })
        );
        for other in [&b"# accept"[..], b"@nix not json", b"", b"\xff\xfe"] {
            assert_eq!(parse(other), None);
        }
    }

    #[test]
    fn the_importers_address_is_called_by_the_machines_name() {
        let line = "@nix {\"action\":\"start\",\"text\":\"copying path '/nix/store/x' from 'ssh-ng://localhost?a=b'\",\
                    \"fields\":[\"/nix/store/x\",\"ssh-ng://localhost\",\"local\",3]}";
        let renamed: Value =
            serde_json::from_str(&rename(line.as_bytes(), "ssh-ng://localhost", "tiger").unwrap()[5..])
                .unwrap();
        assert_eq!(renamed["text"], "copying path '/nix/store/x' from 'tiger'");
        assert_eq!(renamed["fields"], json!(["/nix/store/x", "tiger", "local", 3]));
    }
}
