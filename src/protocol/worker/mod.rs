//! The worker protocol: how a Nix client and a `nix-daemon` talk, over a socket or `nix-daemon --stdio`.
//!
//! [`Connection`] is the client, [`Server`] the daemon's side. Both speak 1.32 to 1.38 without any named feature, which
//! every Nix since 2.4 and every Lix understands. Neither knows where its byte streams come from.
//!
//! ```text
//! client                                     server
//!   magic, version, 0, 0 ──────────────────▶
//!   ◀──────────── magic, version, daemon version, trust, log frames, LAST
//!   operation, arguments ──────────────────▶
//!   ◀──────────── log frames, then LAST and the reply, or ERROR
//! ```
//!
//! - [`types`] and [`options`]: what travels. [`log`]: the frames before a reply. [`framed`]: bodies of unknown length.
//! - [`operation`]: what the client asks, each with its request and reply. [`request`]: the same as the server reads it.

pub mod connection;
mod error;
pub mod framed;
pub mod log;
pub mod operation;
pub mod options;
mod outgoing;
pub mod request;
pub mod server;
pub mod types;
mod upload;
mod version;

pub use connection::Connection;
pub use error::ProtocolError;
pub use log::{LogEvent, LogSink, RemoteError};
pub use options::ClientOptions;
pub use request::Request;
pub use server::{Server, ServerHello};
pub use types::{
    BuildMode, BuildResult, Missing, PathInfo, Repair, ResultStatus, Signatures, Substitute, Trust,
};
pub use version::Version;

use tokio::io::{AsyncRead, AsyncWrite, BufReader};

/// What the client says first: `nixc`.
const CLIENT_MAGIC: u64 = 0x6e69_7863;
/// What the server answers: `dxio`.
const SERVER_MAGIC: u64 = 0x6478_696f;
/// How much is read from a stream at once.
const READ_BUFFER: usize = 64 << 10;

/// The reading half of any stream.
pub type BoxedReader = BufReader<Box<dyn AsyncRead + Send + Unpin>>;
/// The writing half of any stream.
pub type BoxedWriter = Box<dyn AsyncWrite + Send + Unpin>;

/// The numbers of the operations.
pub(crate) mod op {
    pub(crate) const IS_VALID_PATH: u64 = 1;
    pub(crate) const BUILD_PATHS: u64 = 9;
    pub(crate) const ENSURE_PATH: u64 = 10;
    pub(crate) const ADD_TEMP_ROOT: u64 = 11;
    pub(crate) const SET_OPTIONS: u64 = 19;
    pub(crate) const QUERY_PATH_INFO: u64 = 26;
    pub(crate) const QUERY_VALID_PATHS: u64 = 31;
    pub(crate) const BUILD_DERIVATION: u64 = 36;
    pub(crate) const NAR_FROM_PATH: u64 = 38;
    pub(crate) const ADD_TO_STORE_NAR: u64 = 39;
    pub(crate) const QUERY_MISSING: u64 = 40;
    pub(crate) const QUERY_DERIVATION_OUTPUT_MAP: u64 = 41;
    pub(crate) const QUERY_REALISATION: u64 = 43;
    pub(crate) const ADD_MULTIPLE_TO_STORE: u64 = 44;
    pub(crate) const ADD_BUILD_LOG: u64 = 45;
    pub(crate) const BUILD_PATHS_WITH_RESULTS: u64 = 46;
}

#[cfg(test)]
mod tests;
