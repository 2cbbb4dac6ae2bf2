//! The long wait between the inputs and the end: relays the log and the notes.

use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::log_pipe::LogPipe;
use super::notes::Notes;
use super::readiness::readable;
use super::replies;
use crate::ipc::{Frame, FrameError, HookReply, WireFailure};

/// How far apart the ends of two connections of one dying broker may be.
const HANG_UP_LIMIT: Duration = Duration::from_millis(200);

/// How the wait ended.
#[derive(Debug)]
pub(super) enum End {
    /// The end is near; this token will open the outputs. It is not the end yet.
    Soon(String),
    /// The given moment has come. It is not the end yet.
    Overdue,
    /// The outputs are on their way to the broker; this token opens them. It is not the end yet.
    Arriving(String),
    /// The outputs are at the broker; this token opens them.
    Succeeded(String),
    /// The build failed for good.
    Failed(WireFailure),
    /// The broker is gone, or talks nonsense.
    Lost(FrameError),
}

/// Waits for the end of a build, or for this moment.
pub(super) fn wait(
    broker: &mut BufReader<UnixStream>,
    log: &mut LogPipe,
    notes: &mut Notes,
    until: Option<Instant>,
) -> End {
    loop {
        if broker.buffer().is_empty() {
            let now = Instant::now();
            let left = until.map(|until| until.saturating_duration_since(now));
            match readable(broker.get_ref(), notes.due_in(now).into_iter().chain(left).min()) {
                Ok(true) => {}
                Ok(false) => {
                    let now = Instant::now();
                    if until.is_some_and(|until| until <= now) {
                        return End::Overdue;
                    }
                    notes.show(now, replies::write_if_free);
                    continue;
                }
                Err(error) => return End::Lost(error.into()),
            }
        }
        match Frame::read(broker) {
            Ok(Frame::Log(bytes)) => {
                notes.overtaken(replies::write_if_free);
                // A Nix that no longer reads the log has ended this build, and this process with it.
                let _gone = log.write(&bytes);
            }
            Ok(frame @ Frame::Message(_)) => match frame.parse() {
                Ok(HookReply::Note { text }) => notes.add(&text, Instant::now()),
                Ok(HookReply::Soon { token }) => return End::Soon(token),
                Ok(HookReply::Arriving { token }) => return End::Arriving(token),
                Ok(HookReply::Succeeded { token }) => return End::Succeeded(token),
                Ok(HookReply::Failed(failure)) => return End::Failed(failure),
                // Nothing was asked, so a second verdict says nothing.
                Ok(HookReply::Accept { .. } | HookReply::Decline { .. } | HookReply::Postpone { .. }) => {}
                Err(error) => return End::Lost(error),
            },
            Err(error) => return End::Lost(error),
        }
    }
}

/// Whether the broker has hung up. One that dies takes all its connections with it, not all in the same instant.
pub(super) fn is_gone(broker: &mut BufReader<UnixStream>) -> bool {
    matches!(readable(broker.get_ref(), Some(HANG_UP_LIMIT)), Ok(true)) && Frame::read(broker).is_err()
}
