//! One SSH connection: opens channels, says when and why it ended.
//!
//! Owns nothing but the connection. How many channels it should carry is decided in `sessions`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use russh::client::Handle;
use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::channel::{self, Channel, Exit, Neighbours};
use super::dial::{self, Client, DialError, Target};
use super::sessions::Load;

/// The most that a command run for its output may print.
const OUTPUT_LIMIT: u64 = 1 << 20;

/// An authenticated connection. Dropping it ends it at once, and with it its channels.
pub struct Session {
    handle: Arc<Handle<Client>>,
    severed: CancellationToken,
    ended: watch::Receiver<Option<Arc<str>>>,
    neighbours: Arc<Neighbours>,
}

/// Why there is no channel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecError {
    /// The other side does not want one more channel on this connection.
    #[error("the other side refuses a channel: {0}")]
    Refused(String),
    /// The connection is gone.
    #[error("the connection is gone: {0}")]
    Lost(Arc<str>),
    /// There was no answer in time.
    #[error("opening a channel gets no answer")]
    TimedOut,
}

/// What a command printed, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// The end of its standard error.
    pub stderr_tail: String,
    /// How it ended.
    pub exit: Exit,
}

/// Why there is no output.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not be asked.
    #[error("the command cannot be started")]
    Exec(#[from] ExecError),
    /// The connection went away in between.
    #[error("the connection is lost while the command runs: {0}")]
    Lost(Arc<str>),
    /// It printed more than anybody wants to know.
    #[error("the command prints more than {OUTPUT_LIMIT} bytes")]
    TooLong,
    /// It did not end in time.
    #[error("the command does not end in time")]
    TimedOut,
}

impl Session {
    /// Connects, checks the host key, logs in. Every phase is bounded, by itself and by the deadline.
    pub async fn dial(target: &Target, deadline: Instant) -> Result<Self, DialError> {
        Self::dial_for(Load::Small, target, deadline).await
    }

    /// As [`dial`](Self::dial), for this load.
    pub(super) async fn dial_for(load: Load, target: &Target, deadline: Instant) -> Result<Self, DialError> {
        let dial::Dialed { handle, severed, ended } = dial::dial(load, target, deadline).await?;
        Ok(Self { handle: Arc::new(handle), severed, ended, neighbours: Arc::default() })
    }

    /// Starts a command. That it runs is not waited for: one that cannot be started ends its channel.
    pub async fn exec(&self, command: &str, deadline: Instant) -> Result<Channel, ExecError> {
        self.exec_holding(command, deadline, ()).await
    }

    /// Like `exec`; `held` is dropped once the channel is gone, or at once when it never came to be.
    pub(super) async fn exec_holding(
        &self,
        command: &str,
        deadline: Instant,
        held: impl Send + 'static,
    ) -> Result<Channel, ExecError> {
        let (handle, neighbours) = (Arc::clone(&self.handle), Arc::clone(&self.neighbours));
        let (ended, command) = (self.ended.clone(), command.to_owned());
        // In a task of its own: once asked for, a channel comes to be whether or not we still wait, and would stay
        // for ever on the other side. The task's result closes it when nobody takes it.
        let open = tokio::spawn(async move {
            let channel = handle.channel_open_session().await?;
            channel.exec(true, command).await?;
            Ok(channel::start(channel, neighbours, ended, held))
        });
        match timeout_at(deadline, open).await {
            Ok(Ok(Ok(channel))) => Ok(channel),
            Ok(Ok(Err(russh::Error::ChannelOpenFailure(reason)))) => {
                Err(ExecError::Refused(format!("{reason:?}")))
            }
            Ok(Ok(Err(_)) | Err(_)) => Err(ExecError::Lost(self.closed().await)),
            Err(_) => Err(ExecError::TimedOut),
        }
    }

    /// Runs a command that reads nothing, to its end.
    pub async fn run(&self, command: &str, deadline: Instant) -> Result<Output, RunError> {
        finish(self.exec(command, deadline).await?, deadline).await
    }

    /// Asks for a sign of life and says how long it took.
    pub async fn ping(&self) -> Result<Duration, ExecError> {
        let began = Instant::now();
        let answered = self.handle.send_ping().await;
        if answered.is_err() || self.is_closed() {
            return Err(ExecError::Lost(self.closed().await));
        }
        Ok(began.elapsed())
    }

    /// Waits until the connection is gone, and says why.
    pub async fn closed(&self) -> Arc<str> {
        closed(self.ended.clone()).await
    }

    /// Ends the connection and all its channels at once.
    pub fn close(&self) {
        self.severed.cancel();
    }

    /// Whether it is gone.
    pub fn is_closed(&self) -> bool {
        self.severed.is_cancelled() || self.handle.is_closed()
    }

    /// Whether a reader that takes nothing holds everybody up.
    pub(super) fn is_stalled(&self) -> bool {
        self.neighbours.stalled.load(Ordering::Relaxed) > 0
    }

    /// Makes the session give stalled readers up sooner. Before its first channel only.
    #[cfg(test)]
    pub(super) fn set_patience(&mut self, patience: Duration) {
        self.neighbours = Arc::new(Neighbours { patience, ..Neighbours::default() });
    }

    /// A way to learn of the end that does not keep the session alive.
    pub(super) fn ended(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.ended.clone()
    }
}

/// Reads all that a command prints, and waits for its end.
pub(super) async fn finish(channel: Channel, deadline: Instant) -> Result<Output, RunError> {
    let Channel { stdin, stdout, remote } = channel;
    drop(stdin);
    let mut output = Vec::new();
    let finish = async {
        let mut stdout = stdout.take(OUTPUT_LIMIT + 1);
        // An error here is the loss of the connection, which the exit tells better.
        drop(stdout.read_to_end(&mut output).await);
        if output.len() as u64 > OUTPUT_LIMIT {
            return Err(RunError::TooLong);
        }
        match remote.exit().await {
            Exit::Lost(reason) => Err(RunError::Lost(reason)),
            exit @ (Exit::Status(_) | Exit::Signal(_) | Exit::NotStarted | Exit::Unknown) => Ok(exit),
        }
    };
    let exit = timeout_at(deadline, finish).await.map_err(|_| RunError::TimedOut)??;
    Ok(Output { stdout: output, stderr_tail: remote.stderr_tail(), exit })
}

/// Waits for the reason of an end.
pub(super) async fn closed(mut ended: watch::Receiver<Option<Arc<str>>>) -> Arc<str> {
    let reason = ended.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
    reason.unwrap_or_else(|| "the connection was closed".into())
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}
