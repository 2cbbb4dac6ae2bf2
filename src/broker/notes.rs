//! The words for the person who waits: one short line per note.

use crate::scheduler::Note;

/// The line.
pub(crate) fn line(note: &Note) -> String {
    match note {
        Note::Queued { pool, ahead: 0 } => format!("queued in pool `{pool}`, next in line"),
        Note::Queued { pool, ahead } => format!("queued in pool `{pool}`, {ahead} builds ahead"),
        Note::Held { pool, reason } => format!("nothing is launched in pool `{pool}`: {reason}"),
        Note::Launching { pool, builder } => format!("launching builder {builder} in pool `{pool}`"),
        Note::Booting { builder, instance } => format!("builder {builder} boots as `{instance}`"),
        Note::Progress { builder, text, after } => {
            format!("builder {builder}: {text} ({} s since its launch)", after.as_secs())
        }
        Note::BuilderReady { builder, after } => {
            format!("builder {builder} ready after {:.1} s", after.as_secs_f64())
        }
        Note::BuilderFailed { builder, reason } => format!("builder {builder} failed: {reason}"),
        Note::Started { builder } => format!("runs on builder {builder}"),
        Note::Moved { builder, reason } => format!("moving away from builder {builder}: {reason}"),
        Note::Retrying { reason, attempts } => {
            format!("attempt {attempts} failed, trying again: {reason}")
        }
    }
}
