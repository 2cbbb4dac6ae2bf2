//! A blocking client of the broker's socket.
//!
//! Knows the order of the conversation and what each way to fail means for a person; what is asked and shown is the
//! business of each command.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::ipc::view::StatusView;
use crate::ipc::{
    Frame, FrameError, Hello, LogReply, LogRequest, OperatorReply, OperatorRequest, Reply, VERSION,
};

/// Every answer comes from the broker's memory; one that takes this long does not come.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("the broker is not running: nobody listens at `{}`", socket.display())]
    NotRunning { socket: PathBuf, source: io::Error },
    #[error("may not use the broker's socket `{}`", socket.display())]
    Denied { socket: PathBuf, source: io::Error },
    #[error("cannot reach the broker at `{}`", socket.display())]
    Io { socket: PathBuf, source: io::Error },
    #[error("the broker refuses: {why}")]
    Refused { why: String },
    #[error("the broker closed the connection")]
    Closed,
    #[error("the broker does not answer (for {}s)", PATIENCE.as_secs())]
    Silent { socket: PathBuf },
    #[error("what answers at `{}` cannot be understood", socket.display())]
    Garbled { socket: PathBuf, source: FrameError },
    #[error("the broker gave the answer to another question: {0}")]
    Unexpected(&'static str),
}

impl ClientError {
    /// What to do about it.
    pub(super) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotRunning { .. } => {
                Some("start it with `systemctl start nix-broker`, or name its socket with `--socket`")
            }
            Self::Denied { .. } => Some("run this as root, or as a user who may write to the socket"),
            Self::Refused { .. } => Some(
                "this command and the running broker may be of different versions; \
                 after an upgrade, `systemctl restart nix-broker`",
            ),
            Self::Closed | Self::Silent { .. } => Some("see its log with `journalctl -u nix-broker`"),
            Self::Garbled { .. } | Self::Unexpected(_) => Some(
                "either this is not the broker's socket, or broker and command are of different versions; \
                 after an upgrade, `systemctl restart nix-broker`",
            ),
            Self::Io { .. } => None,
        }
    }
}

/// One conversation with the broker.
#[derive(Debug)]
pub(super) struct Client {
    stream: UnixStream,
    socket: PathBuf,
}

impl Client {
    /// Connects and introduces itself.
    pub(super) fn connect(socket: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(socket).map_err(|source| {
            let socket = socket.to_owned();
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
                ClientError::NotRunning { socket, source }
            } else if source.kind() == io::ErrorKind::PermissionDenied {
                ClientError::Denied { socket, source }
            } else {
                ClientError::Io { socket, source }
            }
        })?;
        let mut client = Self { stream, socket: socket.to_owned() };
        client.limit_waiting(Some(PATIENCE))?;
        client.send(&Frame::message(&Hello::Operator { version: VERSION }))?;
        match client.receive()? {
            Reply::Go => Ok(client),
            Reply::Refused { why } => Err(ClientError::Refused { why }),
        }
    }

    /// The user of the process at the other end.
    pub(super) fn peer_uid(&self) -> Option<u32> {
        rustix::net::sockopt::socket_peercred(&self.stream).ok().map(|peer| peer.uid.as_raw())
    }

    /// Asks, and takes the first answer.
    pub(super) fn ask(&mut self, request: &OperatorRequest) -> Result<OperatorReply, ClientError> {
        self.send(&Frame::message(request))?;
        self.receive()
    }

    pub(super) fn status(&mut self) -> Result<StatusView, ClientError> {
        let reply = self.ask(&OperatorRequest::Status)?;
        expect_status(reply)
    }

    /// Asks for the picture and then for every other one, until `show` or the broker ends it.
    pub(super) fn watch<E: From<ClientError>>(
        &mut self,
        mut show: impl FnMut(StatusView) -> Result<(), E>,
    ) -> Result<(), E> {
        let first = self.ask(&OperatorRequest::Watch)?;
        show(expect_status(first)?)?;
        self.limit_waiting(None)?;
        loop {
            let next = self.receive()?;
            show(expect_status(next)?)?;
        }
    }

    /// The same, of a broker that must not be silent for long: pictures come a few times a second.
    pub(super) fn watch_impatiently(
        &mut self,
        mut show: impl FnMut(StatusView) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        let mut next = self.ask(&OperatorRequest::Watch)?;
        loop {
            show(expect_status(next)?)?;
            next = self.receive()?;
        }
    }

    /// Asks for a log and hands over its pieces as they come.
    pub(super) fn log<E: From<ClientError>>(
        &mut self,
        request: LogRequest,
        mut show: impl FnMut(LogPiece<'_>) -> Result<(), E>,
    ) -> Result<Result<LogEnd, (String, Option<String>)>, E> {
        let follow = request.follow;
        self.send(&Frame::message(&OperatorRequest::Log(request)))?;
        loop {
            let frame = Frame::read(&mut self.stream).map_err(|error| self.explain(error))?;
            if let Frame::Log(bytes) = &frame {
                show(LogPiece::Bytes(bytes))?;
                continue;
            }
            match frame.parse().map_err(|error| self.explain(error))? {
                LogReply::Opened { build, drv } => show(LogPiece::Opened { build, drv: &drv })?,
                LogReply::Ended { outcome, reason } => return Ok(Ok(LogEnd { outcome, reason })),
                LogReply::Failed { reason, hint } => return Ok(Err((reason, hint))),
            }
            if follow {
                // A build may say nothing for hours.
                self.limit_waiting(None)?;
            }
        }
    }

    /// The connection itself, by which somebody else can end it.
    pub(super) fn handle(&self) -> Option<UnixStream> {
        self.stream.try_clone().ok()
    }

    /// Asks for something to be done, and gives the sentence that says what was.
    pub(super) fn order(&mut self, request: &OperatorRequest) -> Result<Done, ClientError> {
        match self.ask(request)? {
            OperatorReply::Done { text } => Ok(Ok(text)),
            OperatorReply::Failed { reason, hint } => Ok(Err((reason, hint))),
            OperatorReply::Status(_) => Err(ClientError::Unexpected("a status")),
            OperatorReply::Cost(_) => Err(ClientError::Unexpected("a bill")),
            OperatorReply::History(_) => Err(ClientError::Unexpected("a history")),
            OperatorReply::Why { .. } => Err(ClientError::Unexpected("an explanation")),
        }
    }

    fn limit_waiting(&self, patience: Option<Duration>) -> Result<(), ClientError> {
        self.stream
            .set_read_timeout(patience)
            .and_then(|()| self.stream.set_write_timeout(patience))
            .map_err(|source| ClientError::Io { socket: self.socket.clone(), source })
    }

    fn send(&mut self, frame: &Result<Frame, FrameError>) -> Result<(), ClientError> {
        let written = match frame {
            Ok(frame) => frame.write(&mut self.stream),
            Err(_) => return Err(ClientError::Unexpected("none: the question has no written form")),
        };
        match written {
            // A broker that has refused us may have closed before it read all; its answer says why.
            Err(FrameError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(|error| self.explain(error)),
        }
    }

    fn receive<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, ClientError> {
        Frame::read(&mut self.stream).and_then(|frame| frame.parse()).map_err(|error| self.explain(error))
    }

    fn explain(&self, error: FrameError) -> ClientError {
        let socket = self.socket.clone();
        match error {
            FrameError::Closed => ClientError::Closed,
            FrameError::Io(error) if is_timeout(&error) => ClientError::Silent { socket },
            FrameError::Io(error) if is_hangup(&error) => ClientError::Closed,
            FrameError::Io(source) => ClientError::Io { socket, source },
            FrameError::UnknownKind(_) | FrameError::TooLong(_) | FrameError::BadMessage(_) => {
                ClientError::Garbled { socket, source: error }
            }
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn is_hangup(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

/// What comes of a log.
#[derive(Debug)]
pub(super) enum LogPiece<'a> {
    /// This build was meant.
    Opened {
        build: u64,
        drv: &'a str,
    },
    Bytes(&'a [u8]),
}

/// How a log ended.
#[derive(Debug)]
pub(super) struct LogEnd {
    /// Of the build; nothing while it is on.
    pub(super) outcome: Option<String>,
    pub(super) reason: Option<String>,
}

impl LogEnd {
    pub(super) fn sentence(&self) -> String {
        match (&self.outcome, &self.reason) {
            (None, _) => "the build goes on".to_owned(),
            (Some(outcome), None) => format!("the build {}", verb(outcome)),
            (Some(outcome), Some(reason)) => format!("the build {}: {reason}", verb(outcome)),
        }
    }
}

fn verb(outcome: &str) -> String {
    if outcome == "cancelled" { "was cancelled".to_owned() } else { outcome.to_owned() }
}

/// The sentence that says what was done, or why it was not and what to do.
pub(super) type Done = Result<String, (String, Option<String>)>;

fn expect_status(reply: OperatorReply) -> Result<StatusView, ClientError> {
    match reply {
        OperatorReply::Status(view) => Ok(view),
        OperatorReply::Cost(_) => Err(ClientError::Unexpected("a bill")),
        OperatorReply::History(_) => Err(ClientError::Unexpected("a history")),
        OperatorReply::Why { .. } => Err(ClientError::Unexpected("an explanation")),
        OperatorReply::Done { .. } => Err(ClientError::Unexpected("a confirmation")),
        OperatorReply::Failed { reason, .. } => Err(ClientError::Refused { why: reason }),
    }
}
