//! Where events come from: a thread each for pictures, keys, signals and the log that is followed, into one channel.
//!
//! The channel is bounded: who is fast waits for the screen. A thread ends when nobody takes its events any more.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use ratatui::crossterm::event;
use tokio::signal::unix::{SignalKind, signal};

use super::keys::Key;
use super::model::Event;
use crate::cli::client::{Client, ClientError, LogPiece};
use crate::cli::log_lines::LogLines;
use crate::ipc::{LogRequest, OperatorRequest};

/// Between two tries to reach the broker.
const RETRY: Duration = Duration::from_secs(1);
/// Of a log that has been written already: more than any screen holds.
const TAIL: u64 = 256 << 10;

/// What the loop takes.
#[derive(Debug)]
pub(super) enum Input {
    Event(Event),
    /// The screen has another size: what is drawn next is made for that.
    Resized,
    /// This process was stopped and goes on: the terminal may be anything.
    Resumed,
    /// A signal, or the end of standard input, by the exit status it means.
    End(u8),
}

type Sender = SyncSender<Input>;

/// The channel's other end is gone: the view has ended.
struct Unwanted;

impl From<ClientError> for Unwanted {
    fn from(_: ClientError) -> Self {
        Self
    }
}

/// Pictures, from whichever broker answers, until nobody wants any.
pub(super) fn pictures(socket: PathBuf, sender: Sender) -> io::Result<()> {
    spawn("pictures", move || {
        loop {
            let end = Client::connect(&socket).and_then(|mut client| {
                client.watch_impatiently(|view| {
                    sender.send(Input::Event(Event::Picture(Box::new(view)))).map_err(|_| ClientError::Closed)
                })
            });
            let why = match end {
                Ok(()) => "the broker closed the connection".to_owned(),
                Err(error) => error.to_string(),
            };
            if sender.send(Input::Event(Event::Lost(why))).is_err() {
                return;
            }
            thread::sleep(RETRY);
        }
    })
}

/// Keys and sizes, until the terminal is gone.
pub(super) fn keys(sender: Sender) -> io::Result<()> {
    spawn("keys", move || {
        loop {
            let input = match event::read() {
                Ok(event::Event::Key(key)) => Key::of(key).map(|key| Input::Event(Event::Key(key))),
                Ok(event::Event::Resize(..)) => Some(Input::Resized),
                Ok(_) => None,
                Err(_) => {
                    let _ended = sender.send(Input::End(0));
                    return;
                }
            };
            if input.is_some_and(|input| sender.send(input).is_err()) {
                return;
            }
        }
    })
}

/// Signals, from now on: when this returns none is lost.
pub(super) fn signals(sender: Sender) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let mut resumed = signal(SignalKind::from_raw(rustix::process::Signal::CONT.as_raw()))?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    drop(guard);
    spawn("signals", move || {
        runtime.block_on(async {
            loop {
                let input = tokio::select! {
                    Some(()) = resumed.recv() => Input::Resumed,
                    Some(()) = interrupted.recv() => Input::End(128 + 2),
                    Some(()) = terminated.recv() => Input::End(128 + 15),
                    Some(()) = hung_up.recv() => Input::End(128 + 1),
                    else => return,
                };
                if sender.send(input).is_err() {
                    return;
                }
            }
        });
    })
}

/// Sends an order; its answer is an event.
pub(super) fn order(socket: &Path, request: OperatorRequest, sender: Sender) -> io::Result<()> {
    let socket = socket.to_owned();
    spawn("order", move || {
        let answer = Client::connect(&socket).and_then(|mut client| client.order(&request));
        let (text, done) = match answer {
            Ok(Ok(text)) => (text, true),
            Ok(Err((reason, hint))) => {
                (hint.map_or(reason.clone(), |hint| format!("{reason}; {hint}")), false)
            }
            Err(error) => (error.to_string(), false),
        };
        let _unwanted = sender.send(Input::Event(Event::Answered { text, done }));
    })
}

/// The log that is followed; one at a time.
#[derive(Debug, Default)]
pub(super) struct Follower {
    current: Option<Arc<Leash>>,
}

/// By which a thread that follows is called back, wherever it waits.
#[derive(Debug, Default)]
struct Leash {
    connection: Mutex<Option<UnixStream>>,
    is_unwanted: AtomicBool,
}

impl Leash {
    fn hold(&self, connection: Option<UnixStream>) {
        *self.connection.lock() = connection;
    }

    fn call_back(&self) {
        self.is_unwanted.store(true, Ordering::SeqCst);
        if let Some(connection) = &*self.connection.lock() {
            // It may have ended by itself.
            let _ended = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Follower {
    /// Follows this build from now on.
    pub(super) fn follow(&mut self, socket: &Path, build: Option<u64>, sender: &Sender) -> io::Result<()> {
        if let Some(before) = self.current.take() {
            before.call_back();
        }
        let Some(build) = build else { return Ok(()) };
        let leash = Arc::new(Leash::default());
        self.current = Some(Arc::clone(&leash));
        let (socket, sender) = (socket.to_owned(), sender.clone());
        spawn("log", move || {
            let how = match Client::connect(&socket) {
                Ok(mut client) => {
                    leash.hold(client.handle());
                    if leash.is_unwanted.load(Ordering::SeqCst) {
                        return;
                    }
                    follow(&mut client, build, &sender)
                }
                Err(error) => Some(format!("no log: {error}")),
            };
            if let Some(how) = how {
                let _unwanted = sender.send(Input::Event(Event::LogEnded { build, how }));
            }
        })
    }
}

/// Sends lines until the build ends, and says how it did.
fn follow(client: &mut Client, build: u64, sender: &Sender) -> Option<String> {
    let request = LogRequest { build: format!("#{build}"), tail: Some(TAIL), follow: true };
    let mut reader = LogLines::default();
    let send = |lines: Vec<_>| match lines.is_empty() {
        true => Ok(()),
        false => sender.send(Input::Event(Event::Log { build, lines })).map_err(|_| Unwanted),
    };
    let end = client.log(request, |piece| match piece {
        LogPiece::Opened { .. } => Ok(()),
        LogPiece::Bytes(bytes) => send(reader.push(bytes)),
    });
    send(reader.finish().into_iter().collect()).ok()?;
    match end {
        // Nobody waits for it any more, or the broker is gone, which the pictures say.
        Err(Unwanted) => None,
        Ok(Err((reason, hint))) => Some(hint.map_or(reason.clone(), |hint| format!("{reason}; {hint}"))),
        Ok(Ok(end)) => Some(end.sentence()),
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}
