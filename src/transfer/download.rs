//! Outputs from a builder, checked on the way.

use std::collections::BTreeMap;
use std::path::Path;

use super::spool::{Spool, SpoolWriter};
use crate::model::StorePath;
use crate::protocol::worker::{BuildResult, Connection, PathInfo, ProtocolError};

/// What a build leaves for its client.
#[derive(Debug)]
pub struct Products {
    /// What the builder's daemon said of it.
    pub result: BuildResult,
    /// The outputs that were fetched.
    pub outputs: BTreeMap<StorePath, Output>,
}

/// One output.
#[derive(Clone, Debug)]
pub struct Output {
    /// What the builder's store knows of it.
    pub info: PathInfo,
    /// Its content.
    pub nar: Spool,
}

/// Why an output is not here.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The builder said it was built, and now that it is not there.
    #[error("the builder no longer has `{0}`")]
    Missing(StorePath),
    /// It did not arrive.
    #[error("fetch `{path}`")]
    Protocol {
        /// Which.
        path: StorePath,
        /// Why.
        #[source]
        source: ProtocolError,
    },
    /// It arrived, and is not what was announced.
    #[error("`{path}` has not the hash and size that the builder announced")]
    Corrupt {
        /// Which.
        path: StorePath,
    },
}

/// Fetches one output; large ones go to a file without a name in this directory.
pub async fn download(
    connection: &mut Connection,
    path: &StorePath,
    spool_dir: &Path,
) -> Result<Output, DownloadError> {
    let failed = |source| DownloadError::Protocol { path: path.clone(), source };
    let info = connection.query_path_info(path).await.map_err(failed)?;
    let info = info.ok_or_else(|| DownloadError::Missing(path.clone()))?;
    let mut spool = SpoolWriter::new(spool_dir);
    let digest = connection.nar_from_path(path, &mut spool).await.map_err(failed)?;
    if digest.sha256 != info.nar_hash || digest.size != info.nar_size {
        return Err(DownloadError::Corrupt { path: path.clone() });
    }
    Ok(Output { info, nar: spool.finish() })
}
