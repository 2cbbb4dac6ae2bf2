//! What travels in requests and replies, with its wire form at every version.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncBufRead;

use super::version::Version;
use crate::model::{OutputName, StorePath};
use crate::protocol::hash::Sha256Hash;
use crate::protocol::wire::{MAX_OUTPUTS, MAX_TEXT, MAX_WORD, WireError, WireReader, WireWriter};

const MAX_SIGNATURES: u64 = 1 << 10;
/// A realisation is a JSON object with a path, an id and some signatures.
const MAX_REALISATION: u64 = 1 << 20;

/// Whether the server does for this client what needs trust, such as building input-addressed derivations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The server does not say.
    Unknown,
    /// It does.
    Trusted,
    /// It does not.
    NotTrusted,
}

impl Trust {
    pub(crate) async fn read<R: AsyncBufRead + Unpin>(reader: &mut WireReader<R>) -> Result<Self, WireError> {
        match reader.u64("trust").await? {
            0 => Ok(Self::Unknown),
            1 => Ok(Self::Trusted),
            2 => Ok(Self::NotTrusted),
            other => Err(WireError::invalid("trust", other.to_string())),
        }
    }

    pub(crate) fn write(self, out: &mut WireWriter) {
        out.u64(match self {
            Self::Unknown => 0,
            Self::Trusted => 1,
            Self::NotTrusted => 2,
        });
    }
}

/// Whether the server may fetch missing paths from its substituters first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Substitute {
    /// It answers from what it has.
    No,
    /// It fetches what it can, and then answers.
    Yes,
}

/// Whether the server checks signatures of what it is given; only trusted clients can say no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signatures {
    /// A path needs a trusted signature, unless its content is its address.
    Check,
    /// None is needed.
    DontCheck,
}

/// Whether a path that is already there is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// It stays.
    No,
    /// It is replaced.
    Yes,
}

/// What a build is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildMode {
    /// To have the outputs.
    Normal,
    /// To replace broken outputs.
    Repair,
    /// To compare with the outputs that are there.
    Check,
}

impl BuildMode {
    pub(crate) async fn read<R: AsyncBufRead + Unpin>(reader: &mut WireReader<R>) -> Result<Self, WireError> {
        match reader.u64("build mode").await? {
            0 => Ok(Self::Normal),
            1 => Ok(Self::Repair),
            2 => Ok(Self::Check),
            other => Err(WireError::invalid("build mode", other.to_string())),
        }
    }

    pub(crate) fn write(self, out: &mut WireWriter) {
        out.u64(match self {
            Self::Normal => 0,
            Self::Repair => 1,
            Self::Check => 2,
        });
    }
}

/// What a store knows of a valid path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathInfo {
    /// The path.
    pub path: StorePath,
    /// The derivation that made it.
    pub deriver: Option<StorePath>,
    /// The hash of its archive.
    pub nar_hash: Sha256Hash,
    /// The paths it refers to, itself perhaps included.
    pub references: BTreeSet<StorePath>,
    /// When it became valid, in seconds since 1970.
    pub registration_time: u64,
    /// The length of its archive.
    pub nar_size: u64,
    /// Whether it was built on that very machine.
    pub ultimate: bool,
    /// `<key name>:<base64>` each.
    pub signatures: BTreeSet<String>,
    /// How its content is its address, if it is.
    pub ca: Option<String>,
}

impl PathInfo {
    /// Reads what follows the path.
    pub(crate) async fn read_unkeyed<R: AsyncBufRead + Unpin>(
        reader: &mut WireReader<R>,
        path: StorePath,
    ) -> Result<Self, WireError> {
        let deriver = reader.optional_path("deriver").await?;
        let hash = reader.string("hash of the archive", MAX_WORD).await?;
        let nar_hash =
            Sha256Hash::parse(&hash).map_err(|_| WireError::invalid("hash of the archive", &hash))?;
        let references = reader.store_paths("references").await?;
        let registration_time = reader.u64("registration time").await?;
        let nar_size = reader.u64("size of the archive").await?;
        let ultimate = reader.bool("ultimate").await?;
        let mut signatures = BTreeSet::new();
        for _ in 0..reader.count("number of signatures", MAX_SIGNATURES).await? {
            signatures.insert(reader.string("signature", MAX_WORD).await?);
        }
        let ca = Some(reader.string("content address", MAX_WORD).await?).filter(|ca| !ca.is_empty());
        Ok(Self {
            path,
            deriver,
            nar_hash,
            references,
            registration_time,
            nar_size,
            ultimate,
            signatures,
            ca,
        })
    }

    /// Reads the path and what follows it.
    pub(crate) async fn read<R: AsyncBufRead + Unpin>(reader: &mut WireReader<R>) -> Result<Self, WireError> {
        let path = reader.store_path("path").await?;
        Self::read_unkeyed(reader, path).await
    }

    /// Writes all but the path.
    pub(crate) fn write_unkeyed(&self, out: &mut WireWriter) {
        out.optional_path(self.deriver.as_ref());
        out.bytes(self.nar_hash.to_base16());
        out.paths(&self.references);
        out.u64(self.registration_time);
        out.u64(self.nar_size);
        out.bool(self.ultimate);
        out.strings(&self.signatures);
        out.bytes(self.ca.as_deref().unwrap_or_default());
    }

    pub(crate) fn write(&self, out: &mut WireWriter) {
        out.path(&self.path);
        self.write_unkeyed(out);
    }
}

/// How a build ended, as the daemon says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultStatus {
    /// It was built.
    Built,
    /// Its outputs were fetched from a substituter.
    Substituted,
    /// Its outputs were there.
    AlreadyValid,
    /// The builder program failed; it would again.
    PermanentFailure,
    /// The derivation cannot be built there.
    InputRejected,
    /// The outputs are not what they should be.
    OutputRejected,
    /// The builder program failed; perhaps not the next time.
    TransientFailure,
    /// It failed before, and that is remembered.
    CachedFailure,
    /// It took, or was silent, too long.
    TimedOut,
    /// Anything else.
    MiscFailure,
    /// Something it depends on failed.
    DependencyFailed,
    /// It printed too much.
    LogLimitExceeded,
    /// A second build differs from the first.
    NotDeterministic,
    /// It is, once resolved, another derivation, whose outputs are there.
    ResolvesToAlreadyValid,
    /// No substituter has it.
    NoSubstituters,
    /// A number from the future: a failure.
    Other(u64),
}

impl ResultStatus {
    const KNOWN: [Self; 15] = [
        Self::Built,
        Self::Substituted,
        Self::AlreadyValid,
        Self::PermanentFailure,
        Self::InputRejected,
        Self::OutputRejected,
        Self::TransientFailure,
        Self::CachedFailure,
        Self::TimedOut,
        Self::MiscFailure,
        Self::DependencyFailed,
        Self::LogLimitExceeded,
        Self::NotDeterministic,
        Self::ResolvesToAlreadyValid,
        Self::NoSubstituters,
    ];

    /// Whether the outputs are there.
    pub fn is_success(self) -> bool {
        matches!(self, Self::Built | Self::Substituted | Self::AlreadyValid | Self::ResolvesToAlreadyValid)
    }

    pub(crate) fn from_wire(wire: u64) -> Self {
        let known = usize::try_from(wire).ok().and_then(|index| Self::KNOWN.get(index));
        known.copied().unwrap_or(Self::Other(wire))
    }

    pub(crate) fn to_wire(self) -> u64 {
        if let Self::Other(wire) = self {
            return wire;
        }
        Self::KNOWN.iter().position(|known| *known == self).map_or(u64::MAX, |index| index as u64)
    }
}

/// What the daemon says of a build that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildResult {
    /// How it ended.
    pub status: ResultStatus,
    /// Why, if it failed; may have terminal colours.
    pub error: String,
    /// How often it was built.
    pub times_built: u64,
    /// Whether the builds differed.
    pub non_deterministic: bool,
    /// When it began, in seconds since 1970; 0 if it did not.
    pub start_time: u64,
    /// When it ended.
    pub stop_time: u64,
    /// Processor time of the builder program itself; told since 1.37, if known.
    pub cpu_user: Option<Duration>,
    /// Processor time of the system on its behalf.
    pub cpu_system: Option<Duration>,
    /// For each output `sha256:<hash>!<output name>` and its realisation, which is JSON that only Nix understands fully.
    pub built_outputs: BTreeMap<String, String>,
}

impl BuildResult {
    /// A result with nothing but a status and its reason.
    pub fn new(status: ResultStatus, error: impl Into<String>) -> Self {
        Self {
            status,
            error: error.into(),
            times_built: 0,
            non_deterministic: false,
            start_time: 0,
            stop_time: 0,
            cpu_user: None,
            cpu_system: None,
            built_outputs: BTreeMap::new(),
        }
    }

    /// Where the outputs are, according to the realisations.
    pub fn output_paths(&self) -> Result<BTreeMap<OutputName, StorePath>, WireError> {
        self.built_outputs.iter().map(|(id, realisation)| output_path(id, realisation)).collect()
    }

    pub(crate) async fn read<R: AsyncBufRead + Unpin>(
        reader: &mut WireReader<R>,
        version: Version,
    ) -> Result<Self, WireError> {
        let mut result = Self::new(
            ResultStatus::from_wire(reader.u64("build status").await?),
            reader.text("error message of the build", MAX_TEXT).await?,
        );
        result.times_built = reader.u64("number of builds").await?;
        result.non_deterministic = reader.bool("non-deterministic").await?;
        result.start_time = reader.u64("start time").await?;
        result.stop_time = reader.u64("stop time").await?;
        if version.has_cpu_times() {
            result.cpu_user = read_cpu_time(reader).await?;
            result.cpu_system = read_cpu_time(reader).await?;
        }
        for _ in 0..reader.count("number of built outputs", MAX_OUTPUTS).await? {
            let id = reader.string("id of a built output", MAX_WORD).await?;
            let realisation = reader.string("realisation of a built output", MAX_REALISATION).await?;
            result.built_outputs.insert(id, realisation);
        }
        Ok(result)
    }

    pub(crate) fn write(&self, out: &mut WireWriter, version: Version) {
        out.u64(self.status.to_wire());
        out.bytes(&self.error);
        out.u64(self.times_built);
        out.bool(self.non_deterministic);
        out.u64(self.start_time);
        out.u64(self.stop_time);
        if version.has_cpu_times() {
            write_cpu_time(out, self.cpu_user);
            write_cpu_time(out, self.cpu_system);
        }
        out.u64(self.built_outputs.len() as u64);
        for (id, realisation) in &self.built_outputs {
            out.bytes(id);
            out.bytes(realisation);
        }
    }
}

async fn read_cpu_time<R: AsyncBufRead + Unpin>(
    reader: &mut WireReader<R>,
) -> Result<Option<Duration>, WireError> {
    Ok(match reader.bool("processor time is known").await? {
        true => Some(Duration::from_micros(reader.u64("processor time").await?)),
        false => None,
    })
}

fn write_cpu_time(out: &mut WireWriter, time: Option<Duration>) {
    out.bool(time.is_some());
    if let Some(time) = time {
        out.u64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }
}

fn output_path(id: &str, realisation: &str) -> Result<(OutputName, StorePath), WireError> {
    const WHAT: &str = "realisation of a built output";
    let name = id.rsplit_once('!').and_then(|(_, name)| OutputName::parse(name).ok());
    let name = name.ok_or_else(|| WireError::invalid("id of a built output", id))?;
    let json: Value = serde_json::from_str(realisation).map_err(|_| WireError::invalid(WHAT, realisation))?;
    let base_name = json.get("outPath").and_then(Value::as_str);
    let base_name = base_name.ok_or_else(|| WireError::invalid(WHAT, realisation))?;
    match StorePath::from_base_name(base_name) {
        Ok(path) => Ok((name, path)),
        Err(source) => Err(WireError::BadPath { what: WHAT, source }),
    }
}

/// What the daemon would have to do for some targets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// These derivations would be built.
    pub will_build: BTreeSet<StorePath>,
    /// These paths would be fetched.
    pub will_substitute: BTreeSet<StorePath>,
    /// Nobody knows how to get these.
    pub unknown: BTreeSet<StorePath>,
    /// Bytes to download.
    pub download_size: u64,
    /// Bytes once unpacked.
    pub nar_size: u64,
}

impl Missing {
    pub(crate) async fn read<R: AsyncBufRead + Unpin>(reader: &mut WireReader<R>) -> Result<Self, WireError> {
        Ok(Self {
            will_build: reader.store_paths("derivations to build").await?,
            will_substitute: reader.store_paths("paths to substitute").await?,
            unknown: reader.store_paths("unknown paths").await?,
            download_size: reader.u64("download size").await?,
            nar_size: reader.u64("unpacked size").await?,
        })
    }

    pub(crate) fn write(&self, out: &mut WireWriter) {
        out.paths(&self.will_build);
        out.paths(&self.will_substitute);
        out.paths(&self.unknown);
        out.u64(self.download_size);
        out.u64(self.nar_size);
    }
}
