//! What can go wrong between two sides of the worker protocol.

use std::io;

use super::log::RemoteError;
use super::version::Version;
use crate::protocol::nar::CopyError;
use crate::protocol::wire::WireError;

/// Why an operation, or the whole conversation, failed.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The peer carried the request out and failed. The only failure after which a connection may still be clean.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The peer's bytes could not be read or understood.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Ours could not be sent.
    #[error("write to the peer")]
    Write(#[source] io::Error),
    /// The first bytes are something else: a greeting of a login shell, for example.
    #[error("the peer does not speak Nix's worker protocol (it began with {0:#018x})")]
    WrongMagic(u64),
    /// The peer is too old, or from a future with another major version.
    #[error("the peer speaks worker protocol {major}.{minor}, not 1.{least} or newer", major = .0 >> 8, minor = .0 & 0xff, least = Version::MIN.minor())]
    UnsupportedVersion(u64),
    /// An earlier operation did not end: nobody knows what the next byte of the stream means.
    #[error("the connection is not usable: an earlier operation on it did not end")]
    Unclean,
    /// A reply was to be read that is not the next one to come.
    #[error("replies are read out of order")]
    OutOfOrder,
    /// Between request and reply the peer sent a frame that has no place there.
    #[error("the peer sent a frame of unexpected kind {0:#x}")]
    UnexpectedFrame(u64),
    /// The peer says it is done with an upload of which it has not seen everything.
    #[error("the peer replied before the upload was complete")]
    EarlyReply,
    /// The archive the peer sent cannot be taken.
    #[error("receive an archive")]
    Nar(#[from] CopyError),
    /// What should be sent to the peer could not be had.
    #[error("read what is to be sent")]
    Source(#[source] io::Error),
    /// An archive that should be sent is shorter than announced.
    #[error("the archive of `{path}` ends after {got} bytes of {announced}")]
    ShortArchive {
        /// Of which path.
        path: String,
        /// What there was.
        got: u64,
        /// What its path info says.
        announced: u64,
    },
    /// Not as many archives as announced.
    #[error("{got} paths were to be sent, not the {announced} announced")]
    WrongCount {
        /// How many there were.
        got: u64,
        /// How many were announced.
        announced: u64,
    },
}
