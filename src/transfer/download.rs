//! Outputs from a builder, checked on the way: one round trip for all of a build, or none when they are asked for ahead.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::beat::Beat;
use super::spool::{Spool, SpoolWriter};
use crate::model::StorePath;
use crate::protocol::worker::operation::QueryPathInfo;
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

/// Asks for outputs, all in one flight with whatever else was sent ahead on this connection; [`receive`] takes them.
///
/// A daemon that is asked for the archive of an invalid path ends the whole connection: when the build that should make
/// these fails, the connection is of no further use.
pub fn request(connection: &mut Connection, paths: &BTreeSet<StorePath>) -> Result<(), ProtocolError> {
    paths.iter().try_for_each(|path| connection.send(&QueryPathInfo(path)))?;
    paths.iter().try_for_each(|path| connection.send_nar_from_path(path))
}

/// Receives outputs that were asked for; large ones go to files without a name in this directory.
pub async fn receive(
    connection: &mut Connection,
    paths: &BTreeSet<StorePath>,
    spool_dir: &Path,
    beat: &Beat,
) -> Result<BTreeMap<StorePath, Output>, DownloadError> {
    let mut infos = Vec::with_capacity(paths.len());
    for path in paths {
        let info = connection.receive(&QueryPathInfo(path), &mut ()).await.map_err(failed(path))?;
        infos.push(info.ok_or_else(|| DownloadError::Missing(path.clone()))?);
        beat.add(1);
    }
    let mut outputs = BTreeMap::new();
    for info in infos {
        let path = info.path.clone();
        let mut spool = beat.of(SpoolWriter::new(spool_dir));
        let digest = connection.receive_nar(&mut spool, &mut ()).await.map_err(failed(&path))?;
        if digest.sha256 != info.nar_hash || digest.size != info.nar_size {
            return Err(DownloadError::Corrupt { path });
        }
        outputs.insert(path, Output { info, nar: spool.into_inner().finish() });
    }
    Ok(outputs)
}

fn failed(path: &StorePath) -> impl FnOnce(ProtocolError) -> DownloadError {
    let path = path.clone();
    move |source| DownloadError::Protocol { path, source }
}
