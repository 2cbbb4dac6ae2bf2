//! Standard output: the only place that writes to it, and that knows about terminals, widths and colours.
//!
//! A command makes a [`Document`], which is data; a [`Screen`] lays it out for where it goes. Whatever is piped is
//! neither coloured, nor cut, nor wrapped, and colour never says anything that the words do not.

use std::io::{self, IsTerminal, Stdout, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::text::{clean, shorten};

/// What a command has to say, before it is laid out.
#[derive(Debug, Default)]
pub(super) struct Document {
    blocks: Vec<Block>,
}

#[derive(Debug)]
enum Block {
    Line(String),
    Marked { mark: Mark, text: String, hint: Option<String> },
    Table { header: Vec<&'static str>, rows: Vec<Vec<String>> },
}

/// The first word of a line that judges something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Ok,
    Note,
    Warn,
    Fail,
}

impl Mark {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }

    fn colour(self) -> &'static str {
        match self {
            Self::Ok => "32",
            Self::Note => "36",
            Self::Warn => "33",
            Self::Fail => "31",
        }
    }
}

impl Document {
    /// A line of text, which may hold words from elsewhere.
    pub(super) fn line(&mut self, text: impl AsRef<str>) -> &mut Self {
        self.blocks.push(Block::Line(clean(text.as_ref())));
        self
    }

    pub(super) fn blank(&mut self) -> &mut Self {
        self.line("")
    }

    /// A judgement, and what to do about it.
    pub(super) fn marked(&mut self, mark: Mark, text: &str, hint: Option<&str>) -> &mut Self {
        self.blocks.push(Block::Marked { mark, text: clean(text), hint: hint.map(clean) });
        self
    }

    pub(super) fn table(&mut self, header: &[&'static str], rows: Vec<Vec<String>>) -> &mut Self {
        let rows = rows.into_iter().map(|row| row.iter().map(|cell| clean(cell)).collect()).collect();
        self.blocks.push(Block::Table { header: header.to_vec(), rows });
        self
    }

    /// The lines for a place of this width; `None` is as wide as it takes.
    fn render(&self, width: Option<u16>, colour: bool) -> Vec<String> {
        let paint = |text: &str, codes: &str| match colour {
            true => format!("\x1b[{codes}m{text}\x1b[0m"),
            false => text.to_owned(),
        };
        let mut lines = Vec::new();
        for block in &self.blocks {
            match block {
                Block::Line(text) => lines.push(text.clone()),
                Block::Marked { mark, text, hint } => {
                    let padding = " ".repeat(6 - mark.word().len());
                    let room = width.map(|width| usize::from(width).saturating_sub(6).max(20));
                    let mut wrapped = wrap(text, room).into_iter();
                    let first = wrapped.next().unwrap_or_default();
                    lines.push(format!("{}{padding}{first}", paint(mark.word(), mark.colour())));
                    lines.extend(wrapped.map(|line| format!("      {line}")));
                    if let Some(hint) = hint {
                        let hint = wrap(&format!("hint: {hint}"), room);
                        lines.extend(hint.into_iter().map(|line| format!("      {line}")));
                    }
                }
                Block::Table { header, rows } => {
                    for (index, line) in layout(header, rows, width).enumerate() {
                        lines.push(if index == 0 { paint(&line, "1") } else { line });
                    }
                }
            }
        }
        lines
    }
}

fn layout(header: &[&str], rows: &[Vec<String>], width: Option<u16>) -> impl Iterator<Item = String> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    match width {
        Some(width) => table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width),
        None => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    table.add_rows(rows.iter().map(Vec::as_slice));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.trim_fmt();
    text.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().into_iter()
}

/// Breaks at blanks; a word that is too long stays whole, so that it can be copied.
fn wrap(text: &str, room: Option<usize>) -> Vec<String> {
    let Some(room) = room else { return vec![text.to_owned()] };
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > room {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

/// Where the output goes.
#[derive(Debug)]
pub(super) struct Screen {
    out: Stdout,
    is_terminal: bool,
    colour: bool,
    drawn: bool,
}

/// How a document in JSON is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Json {
    /// For people too.
    Pretty,
    /// One line each, for a stream of them.
    Line,
}

impl Screen {
    pub(super) fn stdout() -> Self {
        let out = io::stdout();
        let is_terminal = out.is_terminal();
        Self { out, is_terminal, colour: colour_wanted(is_terminal), drawn: false }
    }

    /// Whether a person watches.
    pub(super) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    pub(super) fn print(&mut self, document: &Document) -> io::Result<()> {
        let width = self.size().map(|(width, _)| width);
        self.write(&joined(&document.render(width, self.colour)))
    }

    /// Draws over what was drawn before. No mode of the terminal is changed, so that an interrupt leaves it as it was.
    pub(super) fn redraw(&mut self, document: &Document) -> io::Result<()> {
        let (width, height) = self.size().unwrap_or((80, 24));
        let mut frame = String::new();
        if !self.drawn {
            // What is on the screen scrolls away instead of being drawn over.
            frame.push_str(&"\n".repeat(usize::from(height)));
            self.drawn = true;
        }
        frame.push_str(&frame_of(document, width, height, self.colour));
        self.write(&frame)
    }

    pub(super) fn json(&mut self, document: &impl Serialize, form: Json) -> io::Result<()> {
        let mut text = match form {
            Json::Pretty => serde_json::to_string_pretty(document)?,
            Json::Line => serde_json::to_string(document)?,
        };
        text.push('\n');
        self.write(&text)
    }

    /// Text as it is.
    pub(super) fn raw(&mut self, text: &str) -> io::Result<()> {
        self.write(text)
    }

    /// Columns and rows of the terminal.
    fn size(&self) -> Option<(u16, u16)> {
        if !self.is_terminal {
            return None;
        }
        let size = rustix::termios::tcgetwinsize(&self.out).ok()?;
        (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        let mut out = self.out.lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

/// One frame of a redraw: from the top left corner, each line cleared behind its end, nothing left below, and nothing
/// that would make the terminal scroll.
fn frame_of(document: &Document, width: u16, height: u16, colour: bool) -> String {
    let rows = usize::from(height).saturating_sub(1).max(1);
    let mut lines = document.render(Some(width), colour);
    if lines.len() > rows {
        let hidden = lines.len() - rows + 1;
        lines.truncate(rows - 1);
        lines.push(format!("... {hidden} more lines"));
    }
    let mut frame = "\x1b[H".to_owned();
    for line in &lines {
        // A painted line is one of a table or a judgement and has been laid out for the width already.
        let line = if line.contains('\x1b') { line.clone() } else { shorten(line, usize::from(width)) };
        frame.push_str(&line);
        frame.push_str("\x1b[K\n");
    }
    frame.push_str("\x1b[J");
    frame
}

fn joined(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Colours are for terminals that have them and for people who want them.
pub(super) fn colour_wanted(is_terminal: bool) -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let incapable = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    is_terminal && !unwanted && !incapable
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Document {
        let mut document = Document::default();
        document
            .line("broker 0.1.0")
            .blank()
            .table(
                &["POOL", "BUILDERS", "SLOTS"],
                vec![
                    vec!["x86".into(), "2 ready, 1 booting (38s)".into(), "7/16".into()],
                    vec!["arm64-\x1b[2Jlinux".into(), "none".into(), String::new()],
                ],
            )
            .marked(Mark::Warn, "the fleet is tired and sleeps", Some("wake it with `broker start x86`"));
        document
    }

    #[test]
    fn what_is_piped_is_neither_cut_nor_coloured() {
        insta::assert_snapshot!(joined(&document().render(None, false)), @r"
        broker 0.1.0

        POOL            BUILDERS                  SLOTS
        x86             2 ready, 1 booting (38s)  7/16
        arm64-[2Jlinux  none
        warn  the fleet is tired and sleeps
              hint: wake it with `broker start x86`
        ");
    }

    #[test]
    fn a_narrow_terminal_wraps_cells_and_judgements() {
        insta::assert_snapshot!(joined(&document().render(Some(32), false)), @r"
        broker 0.1.0

        POOL         BUILDERS    SLOTS
        x86          2 ready, 1  7/16
                     booting
                     (38s)
        arm64-[2Jli  none
        nux
        warn  the fleet is tired and
              sleeps
              hint: wake it with `broker
              start x86`
        ");
    }

    #[test]
    fn colours_only_surround_the_same_words() {
        let mut coloured = joined(&document().render(Some(80), true));
        assert_eq!(coloured.matches('\x1b').count(), 4);
        for code in ["\x1b[1m", "\x1b[33m", "\x1b[0m"] {
            coloured = coloured.replace(code, "");
        }
        assert_eq!(coloured, joined(&document().render(Some(80), false)));
    }

    #[test]
    fn a_frame_fits_the_screen_and_leaves_nothing_below() {
        for height in 1..10 {
            let frame = frame_of(&document(), 20, height, false);
            assert!(frame.matches('\n').count() < usize::from(height.max(2)), "{height}: {frame:?}");
            assert!(frame.starts_with("\x1b[H") && frame.ends_with("\x1b[K\n\x1b[J"), "{frame:?}");
            for line in frame.split('\n') {
                assert!(
                    line.replace("\x1b[H", "").replace("\x1b[K", "").replace("\x1b[J", "").chars().count()
                        <= 20,
                    "{line:?}"
                );
            }
        }
    }
}
