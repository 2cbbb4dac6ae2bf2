//! A build's log as lines for people, from the bytes that come.
//!
//! What a build prints is not to be trusted with a terminal: of its control sequences none is kept, a carriage return
//! begins its line anew (progress bars), and a line has a greatest length.

use std::mem;

/// Bytes of a line at most; what is longer goes on in the next.
const MAX_LINE: usize = 4096;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LogLine {
    Text(String),
    /// The build says that it has come to this phase.
    Phase(String),
}

/// Takes bytes, gives lines.
#[derive(Debug, Default)]
pub(super) struct LogLines {
    partial: Vec<u8>,
}

impl LogLines {
    /// The lines that these bytes complete.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<LogLine> {
        let mut lines = Vec::new();
        for byte in bytes {
            if *byte == b'\n' || self.partial.len() == MAX_LINE {
                lines.extend(read(&mem::take(&mut self.partial)));
            }
            if *byte != b'\n' {
                self.partial.push(*byte);
            }
        }
        lines
    }

    /// The line that was not ended.
    pub(super) fn finish(&mut self) -> Option<LogLine> {
        let rest = mem::take(&mut self.partial);
        if rest.is_empty() { None } else { read(&rest) }
    }
}

/// A line as it is shown; nothing for what one program says to another.
fn read(line: &[u8]) -> Option<LogLine> {
    if let Some(said) = line.strip_prefix(b"@nix ") {
        let said: serde_json::Value = serde_json::from_slice(said).ok()?;
        let is_phase = said.get("action").and_then(|action| action.as_str()) == Some("setPhase");
        let phase = said.get("phase").and_then(|phase| phase.as_str()).filter(|_| is_phase)?;
        return Some(LogLine::Phase(plain(phase)));
    }
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let last = line.rsplit(|byte| *byte == b'\r').next().unwrap_or(line);
    Some(LogLine::Text(plain(&String::from_utf8_lossy(last))))
}

/// Text without escape sequences and other control characters; tabs become blanks.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => match chars.next() {
                Some('[') => while chars.next().is_some_and(|c| !('\x40'..='\x7e').contains(&c)) {},
                // A title or a link: up to the bell or to `ESC \`.
                Some(']') => while chars.next_if(|c| !matches!(c, '\x07' | '\x1b')).is_some() {},
                Some(_) | None => {}
            },
            '\t' => plain.push_str("    "),
            c if c.is_control() => {}
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Vec<LogLine> {
        let mut lines = LogLines::default();
        let mut read = lines.push(bytes);
        read.extend(lines.finish());
        read
    }

    fn text(text: &str) -> LogLine {
        LogLine::Text(text.to_owned())
    }

    #[test]
    fn lines_come_whole_however_the_bytes_come() {
        let log = "unpacking\n\ncc -o a\tb.c\n@nix {\"action\":\"setPhase\",\"phase\":\"buildPhase\"}\nlast";
        let want = [
            text("unpacking"),
            text(""),
            text("cc -o a    b.c"),
            LogLine::Phase("buildPhase".to_owned()),
            text("last"),
        ];
        assert_eq!(all(log.as_bytes()), want);
        let mut lines = LogLines::default();
        let mut read: Vec<_> = log.bytes().flat_map(|byte| lines.push(&[byte])).collect();
        read.extend(lines.finish());
        assert_eq!(read, want);
    }

    #[test]
    fn a_log_cannot_steer_the_terminal() {
        let hostile = b"\x1b[31mred\x1b[0m\x1b]0;title\x07 \x9b2J\x08\x1b[2J\r10%\r100%\r\n";
        let read = all(hostile);
        assert_eq!(read, [text("100%")]);
        assert_eq!(all(b"\x1b[31mred\x1b[0m \x1b]0;title\x07x\x1b]8;;u\x1b\\y"), [text("red xy")]);
        assert_eq!(all("\u{9b}2Jx".as_bytes()), [text("2Jx")]);
        assert_eq!(all(b"@nix {\"action\":\"start\"}\n@nix nonsense\n"), []);
    }

    #[test]
    fn a_line_without_an_end_is_no_memory_without_an_end() {
        let mut lines = LogLines::default();
        let read = lines.push(&vec![b'x'; 3 * MAX_LINE]);
        assert_eq!(read.len(), 2);
        assert_eq!(lines.partial.len(), MAX_LINE);
    }
}
