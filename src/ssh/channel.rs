//! One program on the other side: its standard streams, the tail of what it complains about, and its end.
//!
//! Owns the pump between the library's messages and our streams, and with it how much is buffered for a reader that is
//! slow. Opening channels is the session's business.
//!
//! Why a pump: the library hands all channels' data out of one loop, and waits there while one channel's buffer is
//! full. The pump empties that buffer into one bounded by bytes. A reader that stops for good still stops its
//! connection in the end (the other side cannot be told to pause one channel only), so when others share the
//! connection, the channel of such a reader is given up after [`STALL_LIMIT`].

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, watch};

/// Bytes kept for a reader before its connection has to wait.
const BUFFER_LIMIT: usize = 4 << 20;
/// How much of standard error is kept.
const STDERR_LIMIT: usize = 4 << 10;
/// See [`Neighbours::patience`].
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// RFC 4254: the only kind of extended data there is.
const STDERR: u32 = 1;

/// A program on the other side. Dropping both streams closes the channel, which is a hang-up for the program.
#[derive(Debug)]
pub struct Channel {
    /// What the program reads; shut down or dropped, it reads end of file.
    pub stdin: Stdin,
    /// What the program writes.
    pub stdout: Stdout,
    /// The rest of what there is to know about it.
    pub remote: Remote,
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this status.
    Status(u32),
    /// By this signal (`KILL`, `TERM`, ...).
    Signal(String),
    /// It could not be started.
    NotStarted,
    /// The channel was closed and nobody said.
    Unknown,
    /// The connection is gone, for this reason.
    Lost(Arc<str>),
}

impl Exit {
    /// Whether the program ended well.
    pub fn is_success(&self) -> bool {
        *self == Self::Status(0)
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => write!(f, "exit status {status}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::NotStarted => f.write_str("not started"),
            Self::Unknown => f.write_str("end unknown"),
            Self::Lost(reason) => write!(f, "connection lost: {reason}"),
        }
    }
}

/// What the channels of one connection know of each other.
#[derive(Debug)]
pub(super) struct Neighbours {
    /// How long a reader may take nothing while others wait behind it.
    pub(super) patience: Duration,
    /// Channels whose pump runs.
    pub(super) open: AtomicUsize,
    /// Channels whose reader holds the connection up.
    pub(super) stalled: AtomicUsize,
}

impl Default for Neighbours {
    fn default() -> Self {
        Self { patience: STALL_LIMIT, open: AtomicUsize::new(0), stalled: AtomicUsize::new(0) }
    }
}

/// Counts as long as it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the pump, the two streams and the remote handle share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The pump should look again: there is room, or somebody wants something.
    pump: Notify,
    ended: watch::Sender<Option<Exit>>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Bytes>,
    queued: usize,
    /// No more bytes will be queued.
    at_end: bool,
    stderr: VecDeque<u8>,
    exit: Option<Exit>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    stdin_dropped: bool,
    stdout_dropped: bool,
    close_wanted: bool,
}

impl Shared {
    /// Nothing more will come: wakes everybody who waits for something.
    fn end(&self, exit: Exit) {
        let mut state = self.state.lock();
        state.at_end = true;
        let wakers = [state.reader.take(), state.writer.take()];
        drop(state);
        self.ended.send_if_modified(|ended| ended.is_none() && ended.replace(exit).is_none());
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

/// Wraps an open channel and starts its pump. `held` is dropped once the channel is gone.
pub(super) fn start(
    channel: russh::Channel<Msg>,
    neighbours: Arc<Neighbours>,
    lost: watch::Receiver<Option<Arc<str>>>,
    held: impl Send + 'static,
) -> Channel {
    let (read, write) = channel.split();
    let shared =
        Arc::new(Shared { state: Mutex::default(), pump: Notify::new(), ended: watch::Sender::new(None) });
    let stdin = Stdin { writer: Box::pin(write.make_writer()), shared: Arc::clone(&shared) };
    let stdout = Stdout { shared: Arc::clone(&shared) };
    let remote = Remote { shared: Arc::clone(&shared) };
    tokio::spawn(async move {
        let _open = Counted::new(&neighbours.open);
        let exit = pump(read, &write, &shared, &neighbours, lost).await;
        // In this order, so that whoever waited for the end finds the room it made.
        drop(held);
        shared.end(exit);
    });
    Channel { stdin, stdout, remote }
}

/// Moves messages until the channel is gone; the result is how.
async fn pump(
    mut read: ChannelReadHalf,
    write: &ChannelWriteHalf<Msg>,
    shared: &Shared,
    neighbours: &Neighbours,
    mut lost: watch::Receiver<Option<Arc<str>>>,
) -> Exit {
    let mut eof_sent = false;
    loop {
        let (stdin_dropped, close_wanted, is_full) = {
            let state = shared.state.lock();
            let close = state.close_wanted || (state.stdin_dropped && state.stdout_dropped);
            (state.stdin_dropped, close, state.queued >= BUFFER_LIMIT && !state.stdout_dropped)
        };
        if close_wanted {
            return hang_up(read, write).await;
        }
        if stdin_dropped && !eof_sent {
            eof_sent = true;
            // An error means that the connection is gone, which the read below reports.
            drop(write.eof().await);
        }
        if is_full {
            let _stalled = Counted::new(&neighbours.stalled);
            tokio::select! {
                () = shared.pump.notified() => {}
                () = tokio::time::sleep(neighbours.patience) => {
                    if neighbours.open.load(Ordering::Relaxed) > 1 {
                        let exit = Exit::Lost("its reader takes nothing while others wait behind it".into());
                        shared.end(exit.clone());
                        hang_up(read, write).await;
                        return exit;
                    }
                }
            }
            continue;
        }
        tokio::select! {
            biased;
            message = read.wait() => match message {
                Some(message) => {
                    if take(message, shared) {
                        return shared.state.lock().exit.take().unwrap_or(Exit::Unknown);
                    }
                }
                None => {
                    let exit = shared.state.lock().exit.take();
                    if let Some(exit) = exit {
                        return exit;
                    }
                    // The library drops its channels a moment before it says why.
                    let reason = lost.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
                    return Exit::Lost(reason.unwrap_or_else(|| "the connection was closed".into()));
                }
            },
            () = shared.pump.notified() => {}
        }
    }
}

/// Closes the channel. The library forgets a channel that we close first, so how its program ends is never known.
async fn hang_up(read: ChannelReadHalf, write: &ChannelWriteHalf<Msg>) -> Exit {
    // The library may be waiting for room in this very buffer, and would then never get to the close.
    drop(read);
    // An error means that the connection is gone, which is the end of the channel too.
    drop(write.close().await);
    Exit::Unknown
}

/// Puts one message where it belongs; true when it is the last one.
fn take(message: ChannelMsg, shared: &Shared) -> bool {
    let mut state = shared.state.lock();
    #[expect(clippy::wildcard_enum_match_arm, reason = "the library's enum, open by design")]
    match message {
        ChannelMsg::Data { data } => {
            if state.stdout_dropped || data.is_empty() {
                return false;
            }
            state.queued += data.len();
            state.queue.push_back(data);
        }
        ChannelMsg::ExtendedData { data, ext: STDERR } => {
            let tail = &data[data.len().saturating_sub(STDERR_LIMIT)..];
            state.stderr.extend(tail);
            let excess = state.stderr.len().saturating_sub(STDERR_LIMIT);
            state.stderr.drain(..excess);
            return false;
        }
        ChannelMsg::Eof => state.at_end = true,
        ChannelMsg::ExitStatus { exit_status } => {
            state.exit = Some(Exit::Status(exit_status));
            return false;
        }
        ChannelMsg::ExitSignal { signal_name, .. } => {
            state.exit = Some(Exit::Signal(format!("{signal_name:?}")));
            return false;
        }
        ChannelMsg::Failure => {
            state.exit = Some(Exit::NotStarted);
            state.close_wanted = true;
            return false;
        }
        ChannelMsg::Close => return true,
        _ => return false,
    }
    let reader = state.reader.take();
    drop(state);
    if let Some(reader) = reader {
        reader.wake();
    }
    false
}

/// The reading half: what the program writes to its standard output.
#[derive(Debug)]
pub struct Stdout {
    shared: Arc<Shared>,
}

impl AsyncRead for Stdout {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.state.lock();
        if state.queue.is_empty() {
            if let Some(Exit::Lost(reason)) = &*self.shared.ended.borrow() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, reason.to_string())));
            }
            if state.at_end {
                return Poll::Ready(Ok(()));
            }
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let was_full = state.queued >= BUFFER_LIMIT;
        while let Some(front) = state.queue.front_mut() {
            let n = front.len().min(buf.remaining());
            if n == 0 {
                break;
            }
            buf.put_slice(&front[..n]);
            front.advance(n);
            if front.is_empty() {
                state.queue.pop_front();
            }
            state.queued -= n;
        }
        if was_full && state.queued < BUFFER_LIMIT {
            self.shared.pump.notify_one();
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stdout {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.stdout_dropped = true;
        state.queue.clear();
        state.queued = 0;
        drop(state);
        self.shared.pump.notify_one();
    }
}

/// The writing half: what the program reads from its standard input.
pub struct Stdin {
    writer: Pin<Box<dyn AsyncWrite + Send>>,
    shared: Arc<Shared>,
}

impl Stdin {
    /// The library's writer does not notice that its channel is gone while it waits for room, so we look.
    fn check(&self, cx: &mut Context<'_>) -> io::Result<()> {
        self.shared.state.lock().writer = Some(cx.waker().clone());
        match &*self.shared.ended.borrow() {
            None => Ok(()),
            Some(exit) => Err(io::Error::new(io::ErrorKind::BrokenPipe, exit.to_string())),
        }
    }
}

impl AsyncWrite for Stdin {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.check(cx)?;
        self.writer.as_mut().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        self.writer.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.check(cx).is_err() {
            // Nobody is there to be told.
            return Poll::Ready(Ok(()));
        }
        self.writer.as_mut().poll_shutdown(cx)
    }
}

impl Drop for Stdin {
    fn drop(&mut self) {
        self.shared.state.lock().stdin_dropped = true;
        self.shared.pump.notify_one();
    }
}

impl std::fmt::Debug for Stdin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stdin").finish_non_exhaustive()
    }
}

/// A view of the program that does not keep its channel open.
#[derive(Clone, Debug)]
pub struct Remote {
    shared: Arc<Shared>,
}

impl Remote {
    /// The last 4 KiB of its standard error, as text.
    pub fn stderr_tail(&self) -> String {
        let mut state = self.shared.state.lock();
        String::from_utf8_lossy(state.stderr.make_contiguous()).into_owned()
    }

    /// Waits until the channel is gone, and says how the program ended.
    pub async fn exit(&self) -> Exit {
        let mut ended = self.shared.ended.subscribe();
        let exit = ended.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
        exit.unwrap_or(Exit::Unknown)
    }

    /// Closes the channel now, whoever holds its streams.
    pub fn close(&self) {
        self.shared.state.lock().close_wanted = true;
        self.shared.pump.notify_one();
    }
}
