//! Requests as the server reads them.
//!
//! The mirror image of [`operation`](super::operation). A request whose arguments we do not know cannot be skipped, so
//! the conversation ends with it.

use std::collections::BTreeSet;

use tokio::io::AsyncBufRead;

use super::op;
use super::options::ClientOptions;
use super::types::{BuildMode, PathInfo, Repair, Signatures, Substitute};
use crate::model::{DrvPath, StorePath};
use crate::protocol::derivation::BasicDerivation;
use crate::protocol::wire::{MAX_WORD, WireError, WireReader};

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Is this path valid?
    IsValidPath(StorePath),
    /// Which of these paths are valid?
    QueryValidPaths {
        /// The paths in question.
        paths: BTreeSet<StorePath>,
        /// Whether to fetch what is missing first.
        substitute: Substitute,
    },
    /// What is known of this path?
    QueryPathInfo(StorePath),
    /// Send the archive of this path.
    NarFromPath(StorePath),
    /// Build this.
    BuildDerivation {
        /// The file it comes from; need not be there.
        drv: DrvPath,
        /// What to build.
        derivation: Box<BasicDerivation>,
        /// What for.
        mode: BuildMode,
    },
    /// Build these, which are in the store; a failure is an error.
    BuildPaths {
        /// `<drv>!*`, `<drv>!out,dev` or a path each.
        targets: Vec<String>,
        /// What for.
        mode: BuildMode,
    },
    /// Build these, which are in the store, and tell how it went with each.
    BuildPathsWithResults {
        /// `<drv>!*`, `<drv>!out,dev` or a path each.
        targets: Vec<String>,
        /// What for.
        mode: BuildMode,
    },
    /// Take several paths; they are in the body ([`Server::entries`](super::Server::entries)).
    AddMultipleToStore {
        /// Whether to replace what is there.
        repair: Repair,
        /// Whether to check signatures.
        signatures: Signatures,
    },
    /// Take one path; its archive is the body ([`Server::body`](super::Server::body)).
    AddToStoreNar {
        /// The path.
        info: Box<PathInfo>,
        /// Whether to replace what is there.
        repair: Repair,
        /// Whether to check signatures.
        signatures: Signatures,
    },
    /// Take the log of a build; it is the body ([`Server::body`](super::Server::body)).
    AddBuildLog(DrvPath),
    /// Keep this path as long as the connection lives.
    AddTempRoot(StorePath),
    /// Substitute this path if it is not valid.
    EnsurePath(StorePath),
    /// Use these options from here on.
    SetOptions(Box<ClientOptions>),
    /// What would have to be done for these targets?
    QueryMissing(Vec<String>),
    /// Where are the outputs of this derivation?
    QueryDerivationOutputMap(DrvPath),
    /// The realisation of this output?
    QueryRealisation(String),
    /// An operation we do not know; after the error that answers it the connection is over.
    Unsupported(u64),
}

impl Request {
    /// Whether a framed body follows.
    pub fn has_body(&self) -> bool {
        match self {
            Self::AddMultipleToStore { .. } | Self::AddToStoreNar { .. } | Self::AddBuildLog(_) => true,
            Self::IsValidPath(_)
            | Self::QueryValidPaths { .. }
            | Self::QueryPathInfo(_)
            | Self::NarFromPath(_)
            | Self::BuildDerivation { .. }
            | Self::BuildPaths { .. }
            | Self::BuildPathsWithResults { .. }
            | Self::AddTempRoot(_)
            | Self::EnsurePath(_)
            | Self::SetOptions(_)
            | Self::QueryMissing(_)
            | Self::QueryDerivationOutputMap(_)
            | Self::QueryRealisation(_)
            | Self::Unsupported(_) => false,
        }
    }

    /// Reads a request without its body.
    pub(crate) async fn read<R: AsyncBufRead + Unpin>(reader: &mut WireReader<R>) -> Result<Self, WireError> {
        reader.begin_message();
        Ok(match reader.u64("operation").await? {
            op::IS_VALID_PATH => Self::IsValidPath(reader.store_path("path").await?),
            op::QUERY_VALID_PATHS => Self::QueryValidPaths {
                paths: reader.store_paths("paths").await?,
                substitute: match reader.bool("substitute").await? {
                    true => Substitute::Yes,
                    false => Substitute::No,
                },
            },
            op::QUERY_PATH_INFO => Self::QueryPathInfo(reader.store_path("path").await?),
            op::NAR_FROM_PATH => Self::NarFromPath(reader.store_path("path").await?),
            op::BUILD_DERIVATION => Self::BuildDerivation {
                drv: drv_path(reader.store_path("derivation").await?)?,
                derivation: Box::new(BasicDerivation::read(reader).await?),
                mode: BuildMode::read(reader).await?,
            },
            op::BUILD_PATHS => Self::BuildPaths {
                targets: reader.strings("targets").await?,
                mode: BuildMode::read(reader).await?,
            },
            op::BUILD_PATHS_WITH_RESULTS => Self::BuildPathsWithResults {
                targets: reader.strings("targets").await?,
                mode: BuildMode::read(reader).await?,
            },
            op::ADD_MULTIPLE_TO_STORE => Self::AddMultipleToStore {
                repair: repair(reader).await?,
                signatures: signatures(reader).await?,
            },
            op::ADD_TO_STORE_NAR => Self::AddToStoreNar {
                info: Box::new(PathInfo::read(reader).await?),
                repair: repair(reader).await?,
                signatures: signatures(reader).await?,
            },
            op::ADD_BUILD_LOG => {
                let base_name = reader.string("derivation", MAX_WORD).await?;
                let path = StorePath::from_base_name(&base_name)
                    .map_err(|source| WireError::BadPath { what: "derivation", source })?;
                Self::AddBuildLog(drv_path(path)?)
            }
            op::ADD_TEMP_ROOT => Self::AddTempRoot(reader.store_path("path").await?),
            op::ENSURE_PATH => Self::EnsurePath(reader.store_path("path").await?),
            op::SET_OPTIONS => Self::SetOptions(Box::new(ClientOptions::read(reader).await?)),
            op::QUERY_MISSING => Self::QueryMissing(reader.strings("targets").await?),
            op::QUERY_DERIVATION_OUTPUT_MAP => {
                Self::QueryDerivationOutputMap(drv_path(reader.store_path("derivation").await?)?)
            }
            op::QUERY_REALISATION => Self::QueryRealisation(reader.string("output", MAX_WORD).await?),
            other => Self::Unsupported(other),
        })
    }
}

fn drv_path(path: StorePath) -> Result<DrvPath, WireError> {
    DrvPath::try_from(path).map_err(|source| WireError::BadPath { what: "derivation", source })
}

async fn repair<R: AsyncBufRead + Unpin>(reader: &mut WireReader<R>) -> Result<Repair, WireError> {
    Ok(if reader.bool("repair").await? { Repair::Yes } else { Repair::No })
}

async fn signatures<R: AsyncBufRead + Unpin>(reader: &mut WireReader<R>) -> Result<Signatures, WireError> {
    Ok(if reader.bool("don't check signatures").await? { Signatures::DontCheck } else { Signatures::Check })
}
