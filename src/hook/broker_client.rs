//! The broker's socket from the hook's side: every wait before the accept is bounded, because Nix's whole event loop
//! stands still until we have replied.

use std::io::{self, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::absence::Sign;
use super::readiness::readable;
use crate::ipc::{Frame, FrameError, Hello, HookReply, HookRequest, Message, Reply, VERSION};

/// How long to try for a connection: the broker is here or it is not.
const CONNECT_LIMIT: Duration = Duration::from_millis(100);
/// Pause between two tries when the broker's queue of connections is full.
const CONNECT_PAUSE: Duration = Duration::from_millis(5);

/// How long whoever listens may take to greet us. With socket activation that is systemd, for a broker that is about to
/// start, or to start again.
const GREETING_LIMIT: Duration = Duration::from_secs(5);

/// Why the broker cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum BrokerError {
    /// Nobody is there.
    #[error("connect to the broker at `{path}`")]
    Connect {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It does not answer in time.
    #[error("the broker at `{path}` does not answer")]
    Silent {
        /// Where.
        path: PathBuf,
    },
    /// It does not want us.
    #[error("the broker at `{path}` refuses: {why}")]
    Refused {
        /// Where.
        path: PathBuf,
        /// Its words.
        why: String,
    },
    /// The connection broke, or says nonsense.
    #[error("talk to the broker at `{path}`")]
    Broken {
        /// Where.
        path: PathBuf,
        /// How.
        source: FrameError,
    },
    /// A message that does not belong there.
    #[error("the broker at `{path}` answers out of turn")]
    OutOfTurn {
        /// Where.
        path: PathBuf,
    },
}

impl BrokerError {
    /// What it says of whether a broker is there to be asked; nothing when one is, and answers what it should not.
    pub(super) fn sign(&self) -> Option<Sign> {
        use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, TimedOut};
        let is_one_of = |error: &io::Error, kinds: &[io::ErrorKind]| kinds.contains(&error.kind());
        match self {
            Self::Silent { .. } => Some(Sign::Silent),
            // Between two frames, as one does that ends.
            Self::Broken { source: FrameError::Closed, .. } => Some(Sign::HungUp),
            Self::Broken { source: FrameError::Io(error), .. } => {
                is_one_of(error, &[ConnectionReset, BrokenPipe]).then_some(Sign::HungUp)
            }
            Self::Connect { source, .. } => {
                is_one_of(source, &[NotFound, ConnectionRefused, TimedOut]).then_some(Sign::Nobody)
            }
            Self::Broken {
                source: FrameError::UnknownKind(_) | FrameError::TooLong(_) | FrameError::BadMessage(_),
                ..
            }
            | Self::Refused { .. }
            | Self::OutOfTurn { .. } => None,
        }
    }
}

/// A connection to the broker.
#[derive(Debug)]
pub(super) struct BrokerClient {
    stream: UnixStream,
    path: PathBuf,
    greeted: bool,
}

impl BrokerClient {
    /// Connects. Says nothing yet: the greeting goes with the first request, which saves a round trip.
    pub(super) fn connect(path: &Path) -> Result<Self, BrokerError> {
        let stream = open(path).map_err(|source| BrokerError::Connect { path: path.to_owned(), source })?;
        Ok(Self { stream, path: path.to_owned(), greeted: false })
    }

    /// Sends a request and waits for its reply, so long at most once the broker has greeted us.
    pub(super) fn ask(&mut self, request: &HookRequest, limit: Duration) -> Result<HookReply, BrokerError> {
        let mut bytes = Vec::new();
        if !self.greeted {
            bytes = self.framed(&Hello::Hook { version: VERSION })?;
        }
        bytes.append(&mut self.framed(request)?);
        let timeout = self.stream.set_write_timeout(Some(limit));
        match timeout.and_then(|()| (&self.stream).write_all(&bytes)) {
            // It may have said why before it hung up, so there is something to read.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            result => result.map_err(|error| self.broken(error.into()))?,
        }
        if !self.greeted {
            match self.receive(Instant::now() + GREETING_LIMIT)? {
                Reply::Go => self.greeted = true,
                Reply::Refused { why } => return Err(BrokerError::Refused { path: self.path.clone(), why }),
            }
        }
        let deadline = Instant::now() + limit;
        loop {
            let reply = self.receive(deadline)?;
            if !matches!(reply, HookReply::Note { .. }) {
                return Ok(reply);
            }
        }
    }

    /// The error of a reply that does not belong there.
    pub(super) fn out_of_turn(&self) -> BrokerError {
        BrokerError::OutOfTurn { path: self.path.clone() }
    }

    /// Sends what needs no reply, however long it takes.
    pub(super) fn send(&self, request: &HookRequest) -> Result<(), BrokerError> {
        let bytes = self.framed(request)?;
        let unbounded = self.stream.set_write_timeout(None);
        unbounded.and_then(|()| (&self.stream).write_all(&bytes)).map_err(|error| self.broken(error.into()))
    }

    /// The connection, once there is nothing but to wait.
    pub(super) fn into_stream(self) -> UnixStream {
        self.stream
    }

    fn framed(&self, message: &impl Message) -> Result<Vec<u8>, BrokerError> {
        Frame::message(message).and_then(|frame| frame.encode()).map_err(|error| self.broken(error))
    }

    fn receive<T: Message>(&self, deadline: Instant) -> Result<T, BrokerError> {
        let mut reader = Until { stream: &self.stream, deadline };
        Frame::read(&mut reader).and_then(|frame| frame.parse()).map_err(|error| self.broken(error))
    }

    fn broken(&self, source: FrameError) -> BrokerError {
        let path = self.path.clone();
        let timed_out =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock);
        if matches!(&source, FrameError::Io(error) if timed_out(error)) {
            BrokerError::Silent { path }
        } else {
            BrokerError::Broken { path, source }
        }
    }
}

/// Connects to a socket. A blocking `connect` waits without bound while the listener's queue is full; this one does not.
pub(super) fn open(path: &Path) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let deadline = Instant::now() + CONNECT_LIMIT;
    loop {
        match connect(&socket, &address) {
            Ok(()) => break,
            Err(rustix::io::Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(CONNECT_PAUSE),
            Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error.into()),
        }
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Reads until a moment; a peer that trickles gets no extension.
struct Until<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if readable(self.stream, Some(left))? {
                return (&mut &*self.stream).read(buffer);
            }
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}
