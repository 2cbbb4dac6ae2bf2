//! The store endpoint: a worker-protocol server for clients on this machine.
//!
//! Owns what a client is answered; the bytes are [`crate::protocol::worker::Server`]'s. What can be valid here, and how
//! a build comes about, is behind [`Store`], which has two forms:
//!
//! - [`Imported`]: the outputs of one finished build, for the importer that `broker-hook` runs. It must seem that every
//!   input is valid (nothing shall be sent) and that the build has just been done.
//! - the broker itself, as a machine in the setting `builders` (`broker::endpoint_client`).

mod imported;
mod serve;

use std::collections::BTreeSet;
use std::future::Future;

pub use imported::Imported;
pub use serve::serve;

use crate::model::{DrvPath, StorePath};
use crate::protocol::derivation::BasicDerivation;
use crate::protocol::worker::{BuildResult, ClientOptions, PathInfo, RemoteError};
use crate::transfer::Spool;
use crate::transfer::nar_source::NarSource;

/// What stands behind an endpoint.
pub trait Store: Send {
    /// A build under way; dropped, it is cancelled.
    type Build: Building;

    /// Those of these paths that are valid.
    fn valid_paths(
        &mut self,
        paths: BTreeSet<StorePath>,
    ) -> impl Future<Output = Result<BTreeSet<StorePath>, RemoteError>> + Send;

    /// What is known of a path, if it is valid.
    fn path_info(
        &mut self,
        path: &StorePath,
    ) -> impl Future<Output = Result<Option<PathInfo>, RemoteError>> + Send;

    /// The content of a path, if it is valid.
    fn archive(
        &mut self,
        path: &StorePath,
    ) -> impl Future<Output = Result<Option<Archive>, RemoteError>> + Send;

    /// Starts a build.
    fn build(
        &mut self,
        drv: DrvPath,
        derivation: BasicDerivation,
        options: &ClientOptions,
    ) -> impl Future<Output = Result<Self::Build, RemoteError>> + Send;

    /// The build ended well: its outputs are asked for next.
    fn built(&mut self, build: Self::Build);
}

/// A build under way.
pub trait Building: Send {
    /// What comes next. Cancel-safe.
    fn next(&mut self) -> impl Future<Output = Progress> + Send;
}

/// What comes of a build.
#[derive(Clone, Debug)]
pub enum Progress {
    /// It printed this line.
    Line(Vec<u8>),
    /// It is over.
    Ended(Box<BuildResult>),
}

/// Where the bytes of a path come from.
#[derive(Debug)]
pub enum Archive {
    /// From where an output waits.
    Spool(Spool),
    /// From this machine's store.
    Local(NarSource),
}
