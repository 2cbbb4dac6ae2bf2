//! Outputs from a builder, checked on the way: one round trip for all of a build, or none when they are asked for ahead.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tokio::io::AsyncBufRead;

use super::beat::Beat;
use super::spool::{Spool, SpoolWriter};
use crate::model::StorePath;
use crate::protocol::nar::{self, NarDigest};
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

/// An output on its way.
#[derive(Debug)]
pub struct Arriving {
    /// What it is.
    pub info: PathInfo,
    /// Where it goes.
    pub writer: SpoolWriter,
}

impl Arriving {
    /// As those see it who read it meanwhile.
    pub fn output(&self) -> Output {
        Output { info: self.info.clone(), nar: self.writer.spool() }
    }

    /// Receives it from a stream of its archive; what an earlier stream left unfinished is not written twice.
    pub async fn receive(
        &mut self,
        source: &mut (impl AsyncBufRead + Unpin),
        beat: &Beat,
    ) -> Result<(), DownloadError> {
        self.writer.begin_again();
        let copied = nar::copy(source, &mut beat.of(&mut self.writer)).await;
        let digest = copied.map_err(|error| failed(&self.info.path)(error.into()))?;
        self.finish(digest)
    }

    async fn receive_on(&mut self, connection: &mut Connection, beat: &Beat) -> Result<(), DownloadError> {
        self.writer.begin_again();
        let received = connection.receive_nar(&mut beat.of(&mut self.writer), &mut ()).await;
        self.finish(received.map_err(failed(&self.info.path))?)
    }

    fn finish(&mut self, digest: NarDigest) -> Result<(), DownloadError> {
        if digest.sha256 != self.info.nar_hash || digest.size != self.info.nar_size {
            return Err(DownloadError::Corrupt { path: self.info.path.clone() });
        }
        drop(self.writer.finish());
        Ok(())
    }
}

/// Receives what was asked for about outputs; those that do not fit into memory will go to files without a name in this
/// directory.
pub async fn announced(
    connection: &mut Connection,
    paths: &BTreeSet<StorePath>,
    spool_dir: &Path,
) -> Result<Vec<Arriving>, DownloadError> {
    let mut arriving = Vec::with_capacity(paths.len());
    for path in paths {
        let info = connection.receive(&QueryPathInfo(path), &mut ()).await.map_err(failed(path))?;
        let info = info.ok_or_else(|| DownloadError::Missing(path.clone()))?;
        arriving.push(Arriving { info, writer: SpoolWriter::new(spool_dir) });
    }
    Ok(arriving)
}

/// Receives announced outputs, up to the first that is larger than that; it and those after it are left, and the
/// connection is then of no further use.
pub async fn receive(
    connection: &mut Connection,
    arriving: Vec<Arriving>,
    beat: &Beat,
    limit: u64,
) -> Result<Vec<Arriving>, DownloadError> {
    let mut arriving = arriving.into_iter();
    while let Some(mut next) = arriving.next() {
        if next.info.nar_size > limit {
            return Ok(std::iter::once(next).chain(arriving).collect());
        }
        next.receive_on(connection, beat).await?;
    }
    Ok(Vec::new())
}

fn failed(path: &StorePath) -> impl FnOnce(ProtocolError) -> DownloadError {
    let path = path.clone();
    move |source| DownloadError::Protocol { path, source }
}
