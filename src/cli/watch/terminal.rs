//! The terminal as a full screen: taken, drawn on, and given back however this process ends.
//!
//! Only what has changed is written. The alternate screen keeps what was there before.

use std::fmt::Write as _;
use std::io::{self, Stdout, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::grid::{Line, Tone};
use crate::cli::output::colour_wanted;

/// Alternate screen, no cursor, no wrapping at the right edge.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J";
const LEAVE: &str = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l";

/// A terminal that is ours. Dropped, it is as it was.
#[derive(Debug)]
pub(super) struct Terminal {
    out: Stdout,
    before: Before,
    colour: bool,
    drawn: Vec<Line>,
}

impl Terminal {
    /// Takes the terminal of standard input and output.
    pub(super) fn take() -> io::Result<Self> {
        let terminal = Self {
            out: io::stdout(),
            before: Before { modes: tcgetattr(io::stdin())?, is_ours: Arc::default() },
            colour: colour_wanted(true),
            drawn: Vec::new(),
        };
        // A panic's own words would be lost on the other screen.
        let before = terminal.before.clone();
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            before.give_back();
            print(panic);
        }));
        terminal.enter()?;
        Ok(terminal)
    }

    fn enter(&self) -> io::Result<()> {
        self.before.is_ours.store(true, Ordering::SeqCst);
        let mut raw = self.before.modes.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        let mut out = self.out.lock();
        out.write_all(ENTER.as_bytes())?;
        out.flush()
    }

    /// Gives the terminal back for as long as this takes, which may change everything on it.
    pub(super) fn lend(&mut self, meanwhile: impl FnOnce()) -> io::Result<()> {
        self.before.give_back();
        meanwhile();
        self.reclaim()
    }

    /// Takes it again after somebody else had it.
    pub(super) fn reclaim(&mut self) -> io::Result<()> {
        self.forget();
        self.enter()
    }

    /// What is on the screen is not known any more.
    pub(super) fn forget(&mut self) {
        self.drawn.clear();
    }

    /// Whether it is still ours: a panic anywhere has given it back.
    pub(super) fn is_taken(&self) -> bool {
        self.before.is_ours.load(Ordering::SeqCst)
    }

    /// Columns and rows.
    pub(super) fn size(&self) -> (u16, u16) {
        match tcgetwinsize(&self.out) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
            Ok(_) | Err(_) => (80, 24),
        }
    }

    /// Shows these lines, which fit the screen.
    pub(super) fn show(&mut self, lines: Vec<Line>) -> io::Result<()> {
        let bytes = difference(&self.drawn, &lines, self.colour);
        self.drawn = lines;
        let mut out = self.out.lock();
        out.write_all(bytes.as_bytes())?;
        out.flush()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.before.give_back();
    }
}

/// How the terminal was, and whether it has to be made so again: once, or what is said after it would be drawn over.
#[derive(Clone, Debug)]
struct Before {
    modes: Termios,
    is_ours: Arc<AtomicBool>,
}

impl Before {
    /// Nobody is left to tell when this cannot be done.
    fn give_back(&self) {
        if self.is_ours.swap(false, Ordering::SeqCst) {
            let mut out = io::stdout().lock();
            let _written = out.write_all(LEAVE.as_bytes()).and_then(|()| out.flush());
            let _restored = tcsetattr(io::stdin(), OptionalActions::Now, &self.modes);
        }
    }
}

/// What turns the one picture into the other. Without one before, the whole screen is written.
fn difference(before: &[Line], after: &[Line], colour: bool) -> String {
    let mut bytes = String::new();
    if before.len() != after.len() {
        bytes.push_str("\x1b[2J");
    }
    for (row, line) in after.iter().enumerate() {
        if before.len() == after.len() && before.get(row) == Some(line) {
            continue;
        }
        // Writing to a string cannot fail.
        let _written = write!(bytes, "\x1b[{};1H", row + 1);
        for span in line.spans.iter().filter(|span| !span.text.is_empty()) {
            let code = code(span.tone, colour);
            let _written = match code {
                "" => write!(bytes, "{}", span.text),
                code => write!(bytes, "\x1b[{code}m{}\x1b[0m", span.text),
            };
        }
        bytes.push_str("\x1b[K");
    }
    bytes
}

/// Weight and inversion are no colours: they stay when colours are not wanted.
fn code(tone: Tone, colour: bool) -> &'static str {
    match (tone, colour) {
        (Tone::Plain, _) => "",
        (Tone::Title, _) => "1",
        (Tone::Selected, _) => "7",
        (Tone::Bad, true) => "1;31",
        (Tone::Bad, false) => "1",
        (Tone::Faint, true) => "2",
        (Tone::Good, true) => "32",
        (Tone::Busy, true) => "36",
        (Tone::Warn, true) => "33",
        (Tone::Faint | Tone::Good | Tone::Busy | Tone::Warn, false) => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_changed_is_written() {
        let before = [Line::new("one", Tone::Title), Line::new("two", Tone::Plain)];
        let after = [Line::new("one", Tone::Title), Line::new("2", Tone::Good)];
        assert_eq!(difference(&before, &before, true), "");
        assert_eq!(difference(&before, &after, true), "\x1b[2;1H\x1b[32m2\x1b[0m\x1b[K");
        let whole = difference(&[], &after, true);
        assert!(whole.starts_with("\x1b[2J\x1b[1;1H\x1b[1mone\x1b[0m\x1b[K"), "{whole:?}");
    }

    #[test]
    fn without_colours_the_selected_line_still_stands_out() {
        let lines =
            [Line::new("bad", Tone::Bad), Line::new("warn", Tone::Warn), Line::new("it", Tone::Selected)];
        let bytes = difference(&[], &lines, false);
        assert!(bytes.contains("\x1b[7mit") && bytes.contains("\x1b[1mbad"), "{bytes:?}");
        assert!(!bytes.contains("\x1b[33m") && !bytes.contains(";31m"), "{bytes:?}");
    }
}
