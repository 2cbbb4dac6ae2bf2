//! Dialing: from a target to an authenticated connection, phase by phase.
//!
//! Owns the library's settings, the host key check and the words for what went wrong on the way. Using the connection
//! is the session's business, dialing again the caller's.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use russh::client::{self, DisconnectReason, Handle};
use russh::keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{Limits, Preferred, cipher, compression};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::key::{ClientKey, HostKey};
use super::proxy::Proxy;
use super::sessions::Load;
use super::severable::Severable;

/// A machine that does not answer a SYN in this time is not there yet; trying anew is quicker than TCP's own back-off.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Version and key exchange take a handful of round trips.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(20);
/// Authentication takes two round trips, and PAM on a busy machine.
const AUTHENTICATE_LIMIT: Duration = Duration::from_secs(20);
/// What a stream may carry per round trip, at most. Measured (`make bench`): 2 MiB are slow on a link of 40 ms, and with
/// 32 MiB OpenSSH spends its processor on its own growing buffer, whatever the link.
const WINDOW: u32 = 8 << 20;
/// Bytes that wait in this machine for their turn on a connection for what is small: enough to keep a fast link busy while
/// we are not looking, and no more, because whatever is sent next waits behind them.
const UNSENT_LIMIT: u32 = 128 << 10;
/// Sent bytes that nobody acknowledges for this long mean a dead peer. Keepalives cannot tell while a write is stuck.
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(60);

/// Whom to dial, and how both sides prove themselves.
#[derive(Clone, Debug)]
pub struct Target {
    /// Name or address.
    pub address: String,
    /// TCP port.
    pub port: u16,
    /// The user to log in as.
    pub user: String,
    /// The keys of which the host must have one. With none, no host is ever accepted.
    pub host_keys: Vec<HostKey>,
    /// The key we log in with.
    pub key: ClientKey,
    /// A command, for a shell, whose standard input and output are the connection; `None` is TCP.
    pub proxy_command: Option<String>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.address.contains(':') {
            write!(f, "[{}]:{}", self.address, self.port)
        } else {
            write!(f, "{}:{}", self.address, self.port)
        }
    }
}

/// How far a dial has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The TCP connection.
    Connect,
    /// SSH's version and key exchange, and the host key.
    Handshake,
    /// The login.
    Authenticate,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "TCP connect",
            Self::Handshake => "SSH handshake",
            Self::Authenticate => "SSH authentication",
        })
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The phase did not end in time.
    #[error("{phase} with {target} gets no answer within {} s", .after.as_secs())]
    TimedOut {
        /// Which phase.
        phase: Phase,
        /// Whom.
        target: String,
        /// How long it was given.
        after: Duration,
    },
    /// No TCP connection.
    #[error("cannot connect to {target}")]
    Unreachable {
        /// Whom.
        target: String,
        /// What the system says.
        source: io::Error,
    },
    /// It is not an SSH server, speaks nothing that we accept, or hung up.
    #[error("{phase} with {target} fails: {reason}")]
    Failed {
        /// Which phase.
        phase: Phase,
        /// Whom.
        target: String,
        /// What the library says.
        reason: String,
    },
    /// The command that was to make the connection made none that is of use.
    #[error("{error}; {words}; try it by hand, as the user that the broker runs as")]
    Proxy {
        /// How far it came.
        error: Box<Self>,
        /// How the command ended and what it printed.
        words: String,
    },
    /// It has another host key than it must have. Dialing again cannot help.
    #[error("{target} has the host key {got}, but must have {}", expected.join(" or "))]
    HostKeyMismatch {
        /// Whom.
        target: String,
        /// Fingerprints that would have been accepted.
        expected: Vec<String>,
        /// The fingerprint it showed.
        got: String,
    },
    /// It does not take our key for this user.
    #[error("{target} does not accept the key {key} for user `{user}`")]
    Refused {
        /// Whom.
        target: String,
        /// The user.
        user: String,
        /// Our key's fingerprint.
        key: String,
    },
}

impl DialError {
    /// Whether dialing again is pointless, and perhaps dangerous.
    pub fn is_final(&self) -> bool {
        match self {
            Self::HostKeyMismatch { .. } => true,
            Self::TimedOut { .. }
            | Self::Unreachable { .. }
            | Self::Failed { .. }
            | Self::Proxy { .. }
            | Self::Refused { .. } => false,
        }
    }
}

/// Any stream that SSH can be spoken over.
pub(super) trait Carrier: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Carrier for T {}

/// An authenticated connection, as the session takes it over.
pub(super) struct Dialed {
    pub(super) handle: Handle<Client>,
    /// Cancelled: the connection is cut at once.
    pub(super) severed: CancellationToken,
    /// Why it ended, once it has.
    pub(super) ended: watch::Receiver<Option<Arc<str>>>,
}

/// Connects, checks the host key, logs in.
pub(super) async fn dial(load: Load, target: &Target, deadline: Instant) -> Result<Dialed, DialError> {
    let unreachable = |source| DialError::Unreachable { target: target.to_string(), source };
    let Some(command) = &target.proxy_command else {
        let carrier = within(Phase::Connect, target, deadline, CONNECT_LIMIT, connect(target, load))
            .await?
            .map_err(unreachable)?;
        return log_in(Box::new(carrier), target, deadline).await;
    };
    let (proxy, complaint) = Proxy::start(command).map_err(unreachable)?;
    let error = match log_in(Box::new(proxy), target, deadline).await {
        Ok(dialed) => return Ok(dialed),
        Err(error) => error,
    };
    match error {
        DialError::TimedOut { .. } | DialError::Unreachable { .. } | DialError::Failed { .. } => {
            Err(DialError::Proxy { error: Box::new(error), words: complaint.last_words().await })
        }
        // It has led to somebody, and he said so.
        DialError::Proxy { .. } | DialError::HostKeyMismatch { .. } | DialError::Refused { .. } => Err(error),
    }
}

/// Proves both sides to each other over a stream.
async fn log_in(carrier: Box<dyn Carrier>, target: &Target, deadline: Instant) -> Result<Dialed, DialError> {
    let severed = CancellationToken::new();
    // Whatever happens from here on, a dial that is given up leaves no connection behind.
    let sever_if_dropped = severed.clone().drop_guard();
    let (ended_tx, ended) = watch::channel(None);
    let client = Client { host_keys: target.host_keys.clone(), ended: ended_tx };
    let failed = |phase, error: HandlerError| match error {
        HandlerError::HostKey(got) => DialError::HostKeyMismatch {
            target: target.to_string(),
            expected: target.host_keys.iter().map(HostKey::fingerprint).collect(),
            got,
        },
        HandlerError::Library(error) => {
            DialError::Failed { phase, target: target.to_string(), reason: error.to_string() }
        }
    };

    let stream = Severable::new(carrier, severed.clone());
    let handshake = client::connect_stream(Arc::new(config(target)), stream, client);
    let mut handle = within(Phase::Handshake, target, deadline, HANDSHAKE_LIMIT, handshake)
        .await?
        .map_err(|error| failed(Phase::Handshake, error))?;

    let key = PrivateKeyWithHashAlg::new(Arc::clone(target.key.private()), None);
    let login = handle.authenticate_publickey(target.user.clone(), key);
    let login = within(Phase::Authenticate, target, deadline, AUTHENTICATE_LIMIT, login)
        .await?
        .map_err(|error| failed(Phase::Authenticate, error.into()))?;
    if !login.success() {
        return Err(DialError::Refused {
            target: target.to_string(),
            user: target.user.clone(),
            key: target.key.private().fingerprint(russh::keys::HashAlg::Sha256).to_string(),
        });
    }
    drop(sever_if_dropped.disarm());
    Ok(Dialed { handle, severed, ended })
}

/// The stream to speak SSH over, where nothing is in between.
pub(super) async fn connect(target: &Target, load: Load) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((target.address.as_str(), target.port)).await?;
    // Without it, Nagle's algorithm holds small requests back for 40 ms.
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_tcp_user_timeout(&stream, UNACKNOWLEDGED_LIMIT.as_millis() as u32)?;
    // Nobody waits behind what is large, and a busy machine may not look again for a while.
    if load == Load::Small {
        socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_LIMIT)?;
    }
    Ok(stream)
}

async fn within<T>(
    phase: Phase,
    target: &Target,
    deadline: Instant,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Result<T, DialError> {
    let began = Instant::now();
    let until = deadline.min(began + limit);
    timeout_at(until, work).await.map_err(|_| DialError::TimedOut {
        phase,
        target: target.to_string(),
        after: until.saturating_duration_since(began),
    })
}

fn config(target: &Target) -> client::Config {
    // Only algorithms of keys that we know: a host has several keys and shows one of a kind that we ask for.
    let mut algorithms: Vec<_> = target.host_keys.iter().map(HostKey::algorithm).collect();
    algorithms.dedup();
    client::Config {
        window_size: WINDOW,
        maximum_packet_size: 65535,
        channel_buffer_size: 256,
        nodelay: true,
        keepalive_interval: Some(Duration::from_secs(15)),
        keepalive_max: 4,
        inactivity_timeout: None,
        // A rekey stops the stream for a moment; AES-GCM is safe far beyond OpenSSH's habitual 1 GiB.
        limits: Limits {
            rekey_write_limit: 64 << 30,
            rekey_read_limit: 64 << 30,
            rekey_time_limit: Duration::from_secs(6 * 3600),
        },
        preferred: Preferred {
            key: algorithms.into(),
            cipher: (&[cipher::AES_128_GCM, cipher::AES_256_GCM, cipher::CHACHA20_POLY1305][..]).into(),
            compression: (&[compression::NONE][..]).into(),
            ..Preferred::DEFAULT
        },
        ..client::Config::default()
    }
}

/// What the library tells us while a connection lives.
pub(super) struct Client {
    host_keys: Vec<HostKey>,
    ended: watch::Sender<Option<Arc<str>>>,
}

/// Why the library, or we, ended a connection.
#[derive(Debug)]
pub(super) enum HandlerError {
    /// Another host key than expected, with this fingerprint.
    HostKey(String),
    /// Anything else.
    Library(russh::Error),
}

impl From<russh::Error> for HandlerError {
    fn from(error: russh::Error) -> Self {
        Self::Library(error)
    }
}

impl client::Handler for Client {
    type Error = HandlerError;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, HandlerError> {
        match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => {
                if self.host_keys.iter().any(|known| known.matches(key)) {
                    return Ok(true);
                }
                Err(HandlerError::HostKey(HostKey::from_public(key.clone()).fingerprint()))
            }
            // We offer no certificate algorithm, so this is not what we negotiated.
            PublicKeyOrCertificate::Certificate(_) => Err(HandlerError::HostKey("of a certificate".into())),
        }
    }

    async fn disconnected(&mut self, reason: DisconnectReason<HandlerError>) -> Result<(), HandlerError> {
        let text = match &reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                format!("the other side disconnected: {}", info.message)
            }
            DisconnectReason::Error(HandlerError::Library(russh::Error::Disconnect | russh::Error::HUP)) => {
                "the connection was closed".to_owned()
            }
            DisconnectReason::Error(HandlerError::Library(russh::Error::KeepaliveTimeout)) => {
                "the other side answers no keepalive".to_owned()
            }
            DisconnectReason::Error(HandlerError::Library(russh::Error::IO(error)))
                if error.kind() == io::ErrorKind::UnexpectedEof =>
            {
                "the connection was closed".to_owned()
            }
            DisconnectReason::Error(HandlerError::Library(error)) => error.to_string(),
            DisconnectReason::Error(HandlerError::HostKey(got)) => format!("its host key became {got}"),
        };
        self.ended.send_replace(Some(text.into()));
        match reason {
            DisconnectReason::ReceivedDisconnect(_) => Ok(()),
            DisconnectReason::Error(error) => Err(error),
        }
    }
}
