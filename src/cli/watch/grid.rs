//! Lines of styled text that fit a width: what the view is drawn with, and what its tests read.
//!
//! A tone says what a word means; which colour that is, and whether there are colours at all, is the terminal's business.

use unicode_width::UnicodeWidthStr as _;

use crate::cli::text::{clean, cut};

/// What stands for the rest of a text that was cut: there is little room.
const CUT: &str = "..";

/// What a word means. Never the only thing that says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tone {
    #[default]
    Plain,
    Title,
    Faint,
    Good,
    Busy,
    Warn,
    Bad,
    /// The line that the keys are about.
    Selected,
}

/// Some words of one tone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) text: String,
    pub(super) tone: Tone,
}

/// One line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) spans: Vec<Span>,
}

impl Line {
    /// A line of one tone; the text may come from elsewhere.
    pub(super) fn new(text: impl AsRef<str>, tone: Tone) -> Self {
        Self::default().then(text, tone)
    }

    pub(super) fn then(mut self, text: impl AsRef<str>, tone: Tone) -> Self {
        self.spans.push(Span { text: clean(text.as_ref()), tone });
        self
    }

    /// All of it in this tone.
    pub(super) fn toned(mut self, tone: Tone) -> Self {
        for span in &mut self.spans {
            span.tone = tone;
        }
        self
    }

    #[cfg(test)]
    pub(super) fn text(&self) -> String {
        self.spans.iter().map(|span| span.text.as_str()).collect()
    }

    pub(super) fn width(&self) -> usize {
        self.spans.iter().map(|span| span.text.width()).sum()
    }

    /// The line, or its beginning, in this many columns.
    pub(super) fn fit(mut self, width: usize) -> Self {
        if self.width() <= width {
            return self;
        }
        let mut left = width;
        let mut spans = Vec::new();
        for span in self.spans {
            let taken = span.text.width();
            if taken > left {
                let text = cut(&span.text, left, CUT);
                spans.push(Span { text, ..span });
                break;
            }
            left -= taken;
            spans.push(span);
        }
        self.spans = spans;
        self
    }
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub(super) title: &'static str,
    /// The highest leaves first when there is no room for all; 0 stays.
    pub(super) rank: u8,
    /// Its cells may be shortened.
    pub(super) gives: bool,
}

impl Column {
    pub(super) const fn new(title: &'static str, rank: u8) -> Self {
        Self { title, rank, gives: false }
    }

    pub(super) const fn giving(title: &'static str, rank: u8) -> Self {
        Self { title, rank, gives: true }
    }
}

/// A row of a table: a cell for each column.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    pub(super) cells: Vec<(String, Tone)>,
    pub(super) selected: bool,
}

impl Row {
    pub(super) fn cell(mut self, text: impl AsRef<str>, tone: Tone) -> Self {
        self.cells.push((clean(text.as_ref()), tone));
        self
    }
}

const GAP: usize = 2;
/// In front of every row, for the mark of the selected one.
const MARGIN: usize = 2;
/// What a column that gives keeps while others leave.
const SHORTEST: usize = 24;
/// What it keeps when nobody can leave.
const BARE: usize = 6;

/// The header and the rows in this many columns.
pub(super) fn table(columns: &[Column], rows: &[Row], width: usize) -> (Line, Vec<Line>) {
    let widths = widths(columns, rows, width.saturating_sub(MARGIN));
    let header = columns.iter().map(|column| (column.title.to_owned(), Tone::Title));
    let lines = rows.iter().map(|row| {
        let line =
            join(row.cells.iter().cloned(), &widths, if row.selected { "> " } else { "  " }).fit(width);
        if row.selected { line.toned(Tone::Selected) } else { line }
    });
    (join(header, &widths, "  ").fit(width), lines.collect())
}

fn join(cells: impl Iterator<Item = (String, Tone)>, widths: &[usize], margin: &str) -> Line {
    let mut line = Line::new(margin, Tone::Plain);
    let mut due = 0;
    for ((text, tone), width) in cells.zip(widths).filter(|(_, width)| **width > 0) {
        let text = cut(&text, *width, CUT);
        line = line.then(" ".repeat(due), Tone::Plain);
        due = width - text.width() + GAP;
        line = line.then(text, tone);
    }
    line
}

/// How wide each column is; 0 when it has left.
fn widths(columns: &[Column], rows: &[Row], width: usize) -> Vec<usize> {
    let natural: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(i, column)| {
            let cells = rows.iter().filter_map(|row| row.cells.get(i)).map(|(text, _)| text.width());
            cells.max().unwrap_or(0).max(column.title.width())
        })
        .collect();
    let mut stays = vec![true; columns.len()];
    let total = |stays: &[bool], keeps: usize| {
        let kept = columns.iter().zip(&natural).zip(stays).filter(|(_, stays)| **stays);
        let widths =
            kept.map(|((column, width), _)| if column.gives { (*width).min(keeps) } else { *width } + GAP);
        widths.sum::<usize>().saturating_sub(GAP)
    };
    while total(&stays, SHORTEST) > width {
        let Some((last, _)) = columns
            .iter()
            .enumerate()
            .filter(|(i, column)| stays[*i] && column.rank > 0)
            .max_by_key(|(_, column)| column.rank)
        else {
            break;
        };
        stays[last] = false;
    }
    // Those that give share what is left, column by column, until each has what it wants.
    let keeps = if total(&stays, SHORTEST) > width { BARE } else { SHORTEST };
    let mut widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(i, column)| match (stays[i], column.gives) {
            (false, _) => 0,
            (true, true) => natural[i].min(keeps),
            (true, false) => natural[i],
        })
        .collect();
    let mut left = width.saturating_sub(total(&stays, keeps));
    loop {
        let before = left;
        for i in 0..columns.len() {
            if stays[i] && widths[i] < natural[i] && left > 0 {
                widths[i] += 1;
                left -= 1;
            }
        }
        if left == before {
            return widths;
        }
    }
}

/// The longest of these that fits, else the last one cut.
pub(super) fn longest_fitting(variants: Vec<Line>, width: usize) -> Line {
    let shortest = variants.last().cloned().unwrap_or_default();
    variants.into_iter().find(|line| line.width() <= width).unwrap_or_else(|| shortest.fit(width))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 3] = [Column::new("BUILD", 0), Column::giving("NAME", 0), Column::new("COST", 1)];

    fn row(name: &str) -> Row {
        Row::default().cell("#8", Tone::Plain).cell(name, Tone::Plain).cell("$0.12", Tone::Faint)
    }

    fn laid_out(rows: &[Row], width: usize) -> String {
        let (header, lines) = table(&COLUMNS, rows, width);
        std::iter::once(header).chain(lines).map(|line| format!("{}|\n", line.text())).collect()
    }

    #[test]
    fn columns_leave_by_rank_and_texts_give_way() {
        let rows = [row("linux-headers-static-6.12.38"), row("bash")];
        insta::assert_snapshot!(laid_out(&rows, 60), @r"
          BUILD  NAME                          COST|
          #8     linux-headers-static-6.12.38  $0.12|
          #8     bash                          $0.12|
        ");
        insta::assert_snapshot!(laid_out(&rows, 42), @r"
          BUILD  NAME                        COST|
          #8     linux-headers-static-6.1..  $0.12|
          #8     bash                        $0.12|
        ");
        insta::assert_snapshot!(laid_out(&rows, 36), @r"
          BUILD  NAME|
          #8     linux-headers-static-6.12..|
          #8     bash|
        ");
        insta::assert_snapshot!(laid_out(&rows, 30), @r"
          BUILD  NAME|
          #8     linux-headers-stati..|
          #8     bash|
        ");
    }

    #[test]
    fn nothing_is_ever_wider_than_it_may_be() {
        let rows = [row("日本語の名前-1.0"), Row { selected: true, ..row("x") }];
        for width in 0..60 {
            let (header, lines) = table(&COLUMNS, &rows, width);
            for line in std::iter::once(header).chain(lines) {
                assert!(line.width() <= width, "{width}: {:?}", line.text());
            }
        }
    }

    #[test]
    fn a_selected_row_has_a_mark_besides_its_tone() {
        let (_, lines) = table(&COLUMNS, &[Row { selected: true, ..row("x") }], 40);
        assert!(lines[0].text().starts_with("> "));
        assert!(lines[0].spans.iter().all(|span| span.tone == Tone::Selected));
    }

    #[test]
    fn what_comes_from_elsewhere_does_not_steer_the_terminal() {
        assert_eq!(Line::new("a\x1b[2Jb\rc", Tone::Plain).text(), "a[2Jbc");
    }
}
