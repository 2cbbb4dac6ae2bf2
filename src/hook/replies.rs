//! Standard error, which is Nix's ear: reply lines, and log lines in its JSON form.
//!
//! After the accept nobody may block here: a Nix that is busy elsewhere does not read, and the build's log has to go on.
//! The pipe is ours alone while we live, so a line that fits a pipe's page is written whole or not at all.

use std::io::{self, Write as _};
use std::time::Duration;

use super::readiness::writable;
use crate::protocol::log_line::{self, Level};

/// How long a last word may wait for a Nix that does not read.
const LAST_WORD: Duration = Duration::from_secs(1);
/// What a pipe that has room at all takes in one piece, without blocking.
const PIPE_PAGE: usize = 4096;

/// A reply, or a line that must arrive. Blocks while Nix does not read.
pub(super) fn write(text: &str) -> io::Result<()> {
    write_bytes(text.as_bytes())
}

/// As [`write()`], for lines of others.
pub(super) fn write_bytes(bytes: &[u8]) -> io::Result<()> {
    io::stderr().write_all(bytes)
}

/// Lines that may be left out; whether they were written.
pub(super) fn write_if_free(lines: &str) -> bool {
    lines.len() <= PIPE_PAGE && is_free(Duration::ZERO) && write(lines).is_ok()
}

/// Shows a text to the person who waits, unless Nix does not read for a whole second.
pub(super) fn say(level: Level, text: &str) {
    if is_free(LAST_WORD) {
        // A Nix that is gone hears nothing, and will be noticed elsewhere.
        let _unheard = write(&log_line::message(level, text));
    }
}

fn is_free(limit: Duration) -> bool {
    writable(rustix::stdio::stderr(), limit).unwrap_or(false)
}
