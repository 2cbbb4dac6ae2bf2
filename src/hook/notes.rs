//! The broker's notes ("launching a builder", "waits for a slot") as the person in front of Nix sees them.
//!
//! A note becomes an activity of Nix's kind "waiting for a build": the progress bar and nix-output-monitor show it while
//! it is true and leave nothing behind, a plain log gets one line for it. A `msg` would stay on the screen for good, five
//! hundred times for five hundred builds. A note that is overtaken within a moment was not worth reading and is never
//! shown; neither is one that the build's own output has overtaken.

use std::time::{Duration, Instant};

use crate::protocol::log_line;

/// How long a note must stay true to be shown.
const SETTLE: Duration = Duration::from_millis(300);
/// Between two notes that are shown.
const INTERVAL: Duration = Duration::from_millis(700);

/// The notes of one build.
#[derive(Debug)]
pub(super) struct Notes {
    subject: String,
    pending: Option<Pending>,
    shown: Option<u64>,
    next_id: u64,
    next_slot: Option<Instant>,
}

#[derive(Debug)]
struct Pending {
    text: String,
    due: Instant,
}

impl Notes {
    /// No notes yet, about what is called so. The process id keeps our ids apart from those of the stock client, whose
    /// activities are shown in our name.
    pub(super) fn new(subject: &str) -> Self {
        let next_id = u64::from(std::process::id()) << 32 | 1 << 31;
        Self { subject: subject.to_owned(), pending: None, shown: None, next_id, next_slot: None }
    }

    /// Something new is true.
    pub(super) fn add(&mut self, text: &str, now: Instant) {
        let due = (now + SETTLE).max(self.next_slot.unwrap_or(now));
        // Nix adds dots of its own.
        let text = format!("{}: {}", self.subject, text.trim_end_matches('.'));
        self.pending = Some(Pending { text, due });
    }

    /// How long until [`Self::show`] has something to do.
    pub(super) fn due_in(&self, now: Instant) -> Option<Duration> {
        self.pending.as_ref().map(|pending| pending.due.saturating_duration_since(now))
    }

    /// Shows what is due. `write` may refuse; then it is tried again later.
    pub(super) fn show(&mut self, now: Instant, write: impl FnOnce(&str) -> bool) {
        let Some(pending) = self.pending.take_if(|pending| pending.due <= now) else { return };
        let before = self.shown.map(log_line::stop).unwrap_or_default();
        let line = log_line::start_waiting(self.next_id, &pending.text);
        self.next_slot = Some(now + INTERVAL);
        if write(&(before + &line)) {
            self.shown = Some(self.next_id);
            self.next_id += 1;
        } else {
            self.pending = Some(Pending { due: now + INTERVAL, ..pending });
        }
    }

    /// Shows what is pending, due or not: nobody will be there to do it later.
    pub(super) fn show_now(&mut self, write: impl FnOnce(&str) -> bool) {
        if let Some(due) = self.pending.as_ref().map(|pending| pending.due) {
            self.show(due, write);
        }
    }

    /// The build's own output has begun, or goes on: from here on that is what there is to see.
    pub(super) fn overtaken(&mut self, write: impl FnOnce(&str) -> bool) {
        self.pending = None;
        if let Some(id) = self.shown.take()
            && !write(&log_line::stop(id))
        {
            self.shown = Some(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shows at a moment, and returns what was written.
    fn shown(notes: &mut Notes, now: Instant) -> String {
        let mut written = String::new();
        notes.show(now, |line| {
            written.push_str(line);
            true
        });
        written
    }

    #[test]
    fn a_note_that_lasts_is_shown_and_ends_the_one_before() {
        let start = Instant::now();
        let mut notes = Notes::new("hello");
        notes.add("launching a builder...", start);
        assert_eq!(shown(&mut notes, start), "");
        assert_eq!(notes.due_in(start), Some(SETTLE));
        let first = shown(&mut notes, start + SETTLE);
        assert!(first.contains("\"hello: launching a builder\""), "{first}");
        notes.add("uploading", start + SETTLE);
        assert_eq!(shown(&mut notes, start + SETTLE * 2), "", "too soon after the first");
        let second = shown(&mut notes, start + SETTLE + INTERVAL);
        assert_eq!(second.matches("\"stop\"").count(), 1);
        assert!(second.contains("uploading"));
        assert!(second.len() <= 4096);
    }

    #[test]
    fn a_note_that_is_overtaken_is_never_shown() {
        let start = Instant::now();
        let mut notes = Notes::new("hello");
        notes.add("one", start);
        notes.add("two", start + SETTLE / 2);
        let line = shown(&mut notes, start + SETTLE * 2);
        assert!(line.contains("two") && !line.contains("one"));
        notes.add("three", start + SETTLE * 2);
        let mut ended = String::new();
        notes.overtaken(|line| {
            ended.push_str(line);
            true
        });
        assert!(ended.contains("\"stop\""));
        assert_eq!(notes.due_in(start), None);
    }

    #[test]
    fn a_pipe_that_is_full_delays_a_note() {
        let start = Instant::now();
        let mut notes = Notes::new("hello");
        notes.add("one", start);
        notes.show(start + SETTLE, |_| false);
        assert!(notes.due_in(start + SETTLE).is_some());
        assert!(shown(&mut notes, start + SETTLE + INTERVAL).contains("one"));
    }
}
