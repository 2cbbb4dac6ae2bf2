//! The terminal as a full screen: taken, drawn on, and given back however this process ends.
//!
//! Ratatui writes only what has changed; what a tone looks like is decided here.

use std::io::{self, Stdout, stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{self, Text};

use super::grid::{Line, Tone};
use crate::cli::output::colour_wanted;

/// A terminal that is ours. Dropped, it is as it was.
#[derive(Debug)]
pub(super) struct Terminal {
    screen: ratatui::Terminal<CrosstermBackend<Stdout>>,
    colour: bool,
    is_ours: Taken,
}

impl Terminal {
    /// Takes the terminal of standard input and output.
    pub(super) fn take() -> io::Result<Self> {
        let is_ours = Taken::default();
        // A panic's own words would be lost on the other screen.
        let taken = is_ours.clone();
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            taken.give_back();
            print(panic);
        }));
        let screen = ratatui::Terminal::new(CrosstermBackend::new(stdout()))?;
        let mut terminal = Self { screen, colour: colour_wanted(true), is_ours };
        terminal.reclaim()?;
        Ok(terminal)
    }

    /// Gives the terminal back for as long as this takes, which may change everything on it.
    pub(super) fn lend(&mut self, meanwhile: impl FnOnce()) -> io::Result<()> {
        self.is_ours.give_back();
        meanwhile();
        self.reclaim()
    }

    /// Takes it again after somebody else had it.
    pub(super) fn reclaim(&mut self) -> io::Result<()> {
        self.is_ours.take()?;
        self.forget()
    }

    /// What is on the screen is not known any more.
    pub(super) fn forget(&mut self) -> io::Result<()> {
        self.screen.clear()
    }

    /// Whether it is still ours: a panic anywhere has given it back.
    pub(super) fn is_taken(&self) -> bool {
        self.is_ours.0.load(Ordering::SeqCst)
    }

    /// Shows what is made for a screen of so many columns and rows.
    pub(super) fn show(&mut self, picture: impl FnOnce(u16, u16) -> Vec<Line>) -> io::Result<()> {
        let colour = self.colour;
        self.screen.draw(|frame| {
            let area = frame.area();
            let lines = picture(area.width, area.height);
            frame.render_widget(styled(&lines, colour), area);
        })?;
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.is_ours.give_back();
    }
}

/// Whether the terminal has to be given back: once, or what is said after it would be drawn over.
#[derive(Clone, Debug, Default)]
struct Taken(Arc<AtomicBool>);

impl Taken {
    fn take(&self) -> io::Result<()> {
        self.0.store(true, Ordering::SeqCst);
        enable_raw_mode()?;
        execute!(stdout(), EnterAlternateScreen, Hide)
    }

    /// Nobody is left to tell when this cannot be done.
    fn give_back(&self) {
        if self.0.swap(false, Ordering::SeqCst) {
            let _left = execute!(stdout(), LeaveAlternateScreen, Show);
            let _restored = disable_raw_mode();
        }
    }
}

fn styled(lines: &[Line], colour: bool) -> Text<'_> {
    let line = |line: &'_ Line| -> Vec<text::Span<'_>> {
        line.spans
            .iter()
            .map(|span| text::Span::styled(span.text.clone(), style(span.tone, colour)))
            .collect()
    };
    lines.iter().map(|each| text::Line::from(line(each))).collect()
}

/// Weight and inversion are no colours: they stay when colours are not wanted.
fn style(tone: Tone, colour: bool) -> Style {
    let plain = Style::new();
    match (tone, colour) {
        (Tone::Plain, _) => plain,
        (Tone::Title, _) => plain.add_modifier(Modifier::BOLD),
        (Tone::Selected, _) => plain.add_modifier(Modifier::REVERSED),
        (Tone::Bad, true) => plain.fg(Color::Red).add_modifier(Modifier::BOLD),
        (Tone::Bad, false) => plain.add_modifier(Modifier::BOLD),
        (Tone::Faint, true) => plain.add_modifier(Modifier::DIM),
        (Tone::Good, true) => plain.fg(Color::Green),
        (Tone::Busy, true) => plain.fg(Color::Cyan),
        (Tone::Warn, true) => plain.fg(Color::Yellow),
        (Tone::Faint | Tone::Good | Tone::Busy | Tone::Warn, false) => plain,
    }
}

#[cfg(test)]
mod tests {
    use ratatui::backend::TestBackend;
    use ratatui::buffer::Cell;

    use super::*;

    fn cells(lines: &[Line], colour: bool) -> Vec<Cell> {
        let mut screen = ratatui::Terminal::new(TestBackend::new(8, 4)).unwrap();
        screen.draw(|frame| frame.render_widget(styled(lines, colour), frame.area())).unwrap();
        let first = |row| screen.backend().buffer()[(0, row)].clone();
        (0..4).map(first).collect()
    }

    #[test]
    fn a_tone_has_a_colour_and_the_next_line_has_its_own() {
        let cells = cells(&[Line::new("one", Tone::Warn), Line::new("two", Tone::Plain)], true);
        assert_eq!((cells[0].symbol(), cells[0].fg), ("o", Color::Yellow));
        assert_eq!((cells[1].symbol(), cells[1].fg), ("t", Color::Reset));
    }

    #[test]
    fn without_colours_the_selected_line_still_stands_out() {
        let lines =
            [Line::new("bad", Tone::Bad), Line::new("warn", Tone::Warn), Line::new("it", Tone::Selected)];
        let cells = cells(&lines, false);
        assert!(cells.iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset), "{cells:?}");
        assert_eq!(cells[0].modifier, Modifier::BOLD);
        assert_eq!(cells[2].modifier, Modifier::REVERSED);
    }
}
