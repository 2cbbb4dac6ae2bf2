//! The operations a client asks for: for each, the bytes of the request and how its reply is read.
//!
//! Owns the two as separate steps, so that many requests can be on their way before the first reply comes back.
//! Operations with a body (uploads, archives) have their steps in [`connection`](super::connection).

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use tokio::io::AsyncBufRead;

use super::op;
use super::options::ClientOptions;
use super::types::{BuildMode, BuildResult, Missing, PathInfo, Substitute};
use super::version::Version;
use crate::model::{DrvPath, OutputName, StorePath};
use crate::protocol::derivation::BasicDerivation;
use crate::protocol::wire::{MAX_ITEMS, MAX_OUTPUTS, MAX_TEXT, WireError, WireReader, WireWriter};

/// One operation with its arguments.
pub trait Operation: Sync {
    /// Its number.
    const OP: u64;
    /// What comes back.
    type Reply: Send;

    /// Writes the whole request, its number first.
    fn encode(&self, out: &mut WireWriter) {
        out.u64(Self::OP);
        self.encode_arguments(out);
    }

    /// Writes what follows the number.
    fn encode_arguments(&self, out: &mut WireWriter);

    /// Reads what follows the frame that announces the reply.
    fn read_reply<R: AsyncBufRead + Unpin + Send>(
        &self,
        reader: &mut WireReader<R>,
        version: Version,
    ) -> impl Future<Output = Result<Self::Reply, WireError>> + Send;
}

/// Whether a path is valid.
#[derive(Clone, Copy, Debug)]
pub struct IsValidPath<'a>(pub &'a StorePath);

impl Operation for IsValidPath<'_> {
    const OP: u64 = op::IS_VALID_PATH;
    type Reply = bool;

    fn encode_arguments(&self, out: &mut WireWriter) {
        out.path(self.0);
    }

    async fn read_reply<R: AsyncBufRead + Unpin + Send>(
        &self,
        reader: &mut WireReader<R>,
        _: Version,
    ) -> Result<bool, WireError> {
        reader.bool("validity").await
    }
}

/// Keeps a path from being collected as long as the connection lives, valid or not.
#[derive(Clone, Copy, Debug)]
pub struct AddTempRoot<'a>(pub &'a StorePath);

impl Operation for AddTempRoot<'_> {
    const OP: u64 = op::ADD_TEMP_ROOT;
    type Reply = ();

    fn encode_arguments(&self, out: &mut WireWriter) {
        out.path(self.0);
    }

    async fn read_reply<R: AsyncBufRead + Unpin + Send>(
        &self,
        reader: &mut WireReader<R>,
        _: Version,
    ) -> Result<(), WireError> {
        reader.u64("reply to a temporary root").await.map(drop)
    }
}

/// Makes a path valid by substitution if it is not.
#[derive(Clone, Copy, Debug)]
pub struct EnsurePath<'a>(pub &'a StorePath);

impl Operation for EnsurePath<'_> {
    const OP: u64 = op::ENSURE_PATH;
    type Reply = ();

    fn encode_arguments(&self, out: &mut WireWriter) {
        out.path(self.0);
    }

    async fn read_reply<R: AsyncBufRead + Unpin + Send>(
        &self,
        reader: &mut WireReader<R>,
        _: Version,
    ) -> Result<(), WireError> {
        reader.u64("reply to an ensured path").await.map(drop)
    }
}

/// Sets the client's options.
#[derive(Clone, Copy, Debug)]
pub struct SetOptions<'a>(pub &'a ClientOptions);

impl Operation for SetOptions<'_> {
    const OP: u64 = op::SET_OPTIONS;
    type Reply = ();

    fn encode_arguments(&self, out: &mut WireWriter) {
        self.0.write(out);
    }

    async fn read_reply<R: AsyncBufRead + Unpin + Send>(
        &self,
        _: &mut WireReader<R>,
        _: Version,
    ) -> Result<(), WireError> {
        Ok(())
    }
}

/// What the store knows of a path, if it is valid.
#[derive(Clone, Copy, Debug)]
pub struct QueryPathInfo<'a>(pub &'a StorePath);

impl Operation for QueryPathInfo<'_> {
    const OP: u64 = op::QUERY_PATH_INFO;
    type Reply = Option<PathInfo>;

    fn encode_arguments(&self, out: &mut WireWriter) {
        out.path(self.0);
    }

    async fn read_reply<R: AsyncBufRead + Unpin + Send>(
        &self,
        reader: &mut WireReader<R>,
        _: Version,
    ) -> Result<Option<PathInfo>, WireError> {
        Ok(match reader.bool("validity").await? {
            true => Some(PathInfo::read_unkeyed(reader, self.0.clone()).await?),
            false => None,
        })
    }
}

/// Which of these paths are valid.
#[derive(Clone, Copy, Debug)]
pub struct QueryValidPaths<'a> {
    /// The paths in question.
    pub paths: &'a BTreeSet<StorePath>,
    /// Whether to fetch what is missing first.
    pub substitute: Substitute,
}

impl Operation for QueryValidPaths<'_> {
    const OP: u64 = op::QUERY_VALID_PATHS;
    type Reply = BTreeSet<StorePath>;

    fn encode_arguments(&self, out: &mut WireWriter) {
        out.paths(self.paths);
        out.bool(self.substitute == Substitute::Yes);
    }

    async fn read_reply<R: AsyncBufRead + Unpin + Send>(
        &self,
        reader: &mut WireReader<R>,
        _: Version,
    ) -> Result<BTreeSet<StorePath>, WireError> {
        reader.store_paths("valid paths").await
    }
}

/// Builds a derivation whose inputs are all there.
#[derive(Clone, Copy, Debug)]
pub struct BuildDerivation<'a> {
    /// What the outputs will name as their deriver; the file need not be there.
    pub drv: &'a DrvPath,
    /// What to build.
    pub derivation: &'a BasicDerivation,
    /// What for.
    pub mode: BuildMode,
}

impl Operation for BuildDerivation<'_> {
    const OP: u64 = op::BUILD_DERIVATION;
    type Reply = BuildResult;

    fn encode_arguments(&self, out: &mut WireWriter) {
        out.path(self.drv.as_store_path());
        self.derivation.write(out);
        self.mode.write(out);
    }

    async fn read_reply<R: AsyncBufRead + Unpin + Send>(
        &self,
        reader: &mut WireReader<R>,
        version: Version,
    ) -> Result<BuildResult, WireError> {
        BuildResult::read(reader, version).await
    }
}

/// Builds derivations that are in the store; a failure is an error.
#[derive(Clone, Copy, Debug)]
pub struct BuildPaths<'a> {
    /// `<drv>!*`, `<drv>!out,dev` or a path each.
    pub targets: &'a [String],
    /// What for.
    pub mode: BuildMode,
}

impl Operation for BuildPaths<'_> {
    const OP: u64 = op::BUILD_PATHS;
    type Reply = ();

    fn encode_arguments(&self, out: &mut WireWriter) {
        out.strings(self.targets);
        self.mode.write(out);
    }

    async fn read_reply<R: AsyncBufRead + Unpin + Send>(
        &self,
        reader: &mut WireReader<R>,
        _: Version,
    ) -> Result<(), WireError> {
        reader.u64("reply to built paths").await.map(drop)
    }
}

/// Builds derivations that are in the store, and tells how it went with each.
#[derive(Clone, Copy, Debug)]
pub struct BuildPathsWithResults<'a> {
    /// `<drv>!*`, `<drv>!out,dev` or a path each.
    pub targets: &'a [String],
    /// What for.
    pub mode: BuildMode,
}

impl Operation for BuildPathsWithResults<'_> {
    const OP: u64 = op::BUILD_PATHS_WITH_RESULTS;
    type Reply = Vec<(String, BuildResult)>;

    fn encode_arguments(&self, out: &mut WireWriter) {
        out.strings(self.targets);
        self.mode.write(out);
    }

    async fn read_reply<R: AsyncBufRead + Unpin + Send>(
        &self,
        reader: &mut WireReader<R>,
        version: Version,
    ) -> Result<Self::Reply, WireError> {
        let mut results = Vec::new();
        for _ in 0..reader.count("number of build results", MAX_ITEMS).await? {
            let target = reader.string("target", MAX_TEXT).await?;
            results.push((target, BuildResult::read(reader, version).await?));
        }
        Ok(results)
    }
}

/// What would have to be done for some targets.
#[derive(Clone, Copy, Debug)]
pub struct QueryMissing<'a>(pub &'a [String]);

impl Operation for QueryMissing<'_> {
    const OP: u64 = op::QUERY_MISSING;
    type Reply = Missing;

    fn encode_arguments(&self, out: &mut WireWriter) {
        out.strings(self.0);
    }

    async fn read_reply<R: AsyncBufRead + Unpin + Send>(
        &self,
        reader: &mut WireReader<R>,
        _: Version,
    ) -> Result<Missing, WireError> {
        Missing::read(reader).await
    }
}

/// Where the outputs of a derivation are, as far as that is known.
#[derive(Clone, Copy, Debug)]
pub struct QueryDerivationOutputMap<'a>(pub &'a DrvPath);

impl Operation for QueryDerivationOutputMap<'_> {
    const OP: u64 = op::QUERY_DERIVATION_OUTPUT_MAP;
    type Reply = BTreeMap<OutputName, Option<StorePath>>;

    fn encode_arguments(&self, out: &mut WireWriter) {
        out.path(self.0.as_store_path());
    }

    async fn read_reply<R: AsyncBufRead + Unpin + Send>(
        &self,
        reader: &mut WireReader<R>,
        _: Version,
    ) -> Result<Self::Reply, WireError> {
        let mut outputs = BTreeMap::new();
        for _ in 0..reader.count("number of outputs", MAX_OUTPUTS).await? {
            let name = reader.output_name("output name").await?;
            outputs.insert(name, reader.optional_path("output path").await?);
        }
        Ok(outputs)
    }
}

/// The realisation, as JSON, of an output `sha256:<hash>!<output name>`; refused by Nix 2.35 and newer.
#[derive(Clone, Copy, Debug)]
pub struct QueryRealisation<'a>(pub &'a str);

impl Operation for QueryRealisation<'_> {
    const OP: u64 = op::QUERY_REALISATION;
    type Reply = Vec<String>;

    fn encode_arguments(&self, out: &mut WireWriter) {
        out.bytes(self.0);
    }

    async fn read_reply<R: AsyncBufRead + Unpin + Send>(
        &self,
        reader: &mut WireReader<R>,
        _: Version,
    ) -> Result<Vec<String>, WireError> {
        reader.strings("realisations").await
    }
}
