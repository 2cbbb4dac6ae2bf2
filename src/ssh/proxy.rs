//! A connection that a command makes: `proxy-command` (a bastion, a tunnel, a session manager).
//!
//! Owns the command's processes: they live as long as the stream, and die with it; and what they complain of. What is
//! said over the stream is for the layers above.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The last of what a command prints says why it ended.
const SHOWN: usize = 400;
/// A command that has closed everything is about to exit: how long it is given to do so.
const EXITS_WITHIN: Duration = Duration::from_millis(200);
/// How long whoever wants to know why waits for the last words.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

/// Standard input and output of a command, as one stream.
#[derive(Debug)]
pub(super) struct Proxy {
    stdin: ChildStdin,
    stdout: ChildStdout,
    /// Whoever attends the command hears of the end of the stream by it.
    _gone: DropGuard,
}

/// What becomes of a command.
#[derive(Clone, Debug)]
pub(super) struct Complaint {
    printed: Arc<Mutex<Vec<u8>>>,
    end: watch::Receiver<End>,
}

/// How far a command is from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It runs.
    NotYet,
    /// It exited with this, before it was ended.
    Exited(i32),
    /// A signal ended it that was not ours.
    Killed(i32),
    /// It ran until it was ended.
    Ended,
}

/// A command and everything it starts: it leads a process group of its own.
#[derive(Debug)]
struct Leader(Child);

impl Drop for Leader {
    fn drop(&mut self) {
        // Its children too, which the pipes would keep alive. Nobody has waited for it, so the number is still its own.
        if let Some(group) = self.pid() {
            let _gone_already = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Leader {
    fn pid(&self) -> Option<Pid> {
        self.0.id().and_then(|id| Pid::from_raw(id.cast_signed()))
    }

    /// How it ended, if it has, and without taking its number from it.
    fn peek(&self) -> Option<End> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let status = waitid(WaitId::Pid(self.pid()?), options).ok()??;
        status.exit_status().map(End::Exited).or_else(|| status.terminating_signal().map(End::Killed))
    }
}

impl Proxy {
    /// Starts the command in a shell.
    pub(super) fn start(command: &str) -> io::Result<(Self, Complaint)> {
        let mut child = Command::new("/bin/sh")
            .args(["-c", command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let leader = Leader(child);
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            return Err(io::Error::other("the command has no pipes"));
        };
        let gone = CancellationToken::new();
        let printed = Arc::default();
        let (tell, end) = watch::channel(End::NotYet);
        let attended = attend(leader, stderr, Arc::clone(&printed), gone.clone());
        tokio::spawn(async move { tell.send_replace(attended.await) });
        Ok((Self { stdin, stdout, _gone: gone.drop_guard() }, Complaint { printed, end }))
    }
}

/// Hears the command's complaints as long as the stream is there, then ends what is left of it.
async fn attend(
    leader: Leader,
    mut stderr: ChildStderr,
    printed: Arc<Mutex<Vec<u8>>>,
    gone: CancellationToken,
) -> End {
    let is_over = tokio::select! {
        () = hear(&mut stderr, &printed) => true,
        () = gone.cancelled() => false,
    };
    if is_over {
        gone.cancelled().await;
    }
    // What broke the stream may be its end, and what it says of that on its way.
    let exited = async {
        loop {
            match leader.peek() {
                Some(end) => return end,
                None => sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let end = timeout(EXITS_WITHIN, exited).await.unwrap_or(End::Ended);
    drop(leader);
    if !is_over {
        let _late = timeout(EXITS_WITHIN, hear(&mut stderr, &printed)).await;
    }
    end
}

async fn hear(stderr: &mut ChildStderr, printed: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        tracing::debug!(text = %String::from_utf8_lossy(&buffer[..read]).trim_end(), "a proxy command says");
        let mut printed = printed.lock();
        printed.extend_from_slice(&buffer[..read]);
        let surplus = printed.len().saturating_sub(4 * SHOWN);
        printed.drain(..surplus);
    }
}

impl Complaint {
    /// Why a stream that is gone was of no use, as far as its command says.
    pub(super) async fn last_words(mut self) -> String {
        drop(timeout(TOLD_WITHIN, self.end.wait_for(|end| *end != End::NotYet)).await);
        let end = *self.end.borrow();
        let printed = self.printed.lock();
        format!("the `proxy-command` {end} and printed {}", readable(&printed))
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotYet | Self::Ended => f.write_str("had not ended by itself"),
            Self::Exited(status) => write!(f, "ended with status {status}"),
            Self::Killed(signal) => write!(f, "was ended by signal {signal}"),
        }
    }
}

/// A program's words on one line, the last of them.
fn readable(printed: &[u8]) -> String {
    let text = String::from_utf8_lossy(printed);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line: Vec<char> = line.chars().filter(|c| !c.is_control()).collect();
    let from = line.len().saturating_sub(SHOWN);
    let dots = if from > 0 { "..." } else { "" };
    let shown: String = line[from..].iter().collect();
    if shown.is_empty() { "nothing".to_owned() } else { format!("`{dots}{shown}`") }
}

impl AsyncRead for Proxy {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdout).poll_read(cx, buf)
    }
}

impl AsyncWrite for Proxy {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stdin).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_words_are_short_one_line_and_cannot_move_the_cursor() {
        assert_eq!(readable(b" \n"), "nothing");
        assert_eq!(readable(b"no\n\tway \x1b[2J\xff\n"), "`no way [2J\u{fffd}`");
        let long = readable(&b"ab ".repeat(1000));
        assert!(long.starts_with("`...") && long.chars().count() == SHOWN + 5, "{long}");
    }
}
