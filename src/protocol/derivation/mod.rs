//! Derivations as Nix's protocols speak of them: with their input derivations, as a `.drv` file has them, or without, as
//! a builder gets them.
//!
//! Owns the types, the step from one to the other, and the wire form of the second. What a `.drv` file says is [`aterm`]'s
//! to read, and where it lies [`mod@file`]'s.

pub mod aterm;
pub mod file;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tokio::io::AsyncBufRead;

pub use aterm::AtermError;

use crate::model::{DrvPath, OutputName, StorePath};
use crate::protocol::wire::{MAX_ITEMS, MAX_OUTPUTS, MAX_TEXT, MAX_WORD, WireError, WireReader, WireWriter};

/// Under this name the environment carries structured attributes as JSON.
const STRUCTURED_ATTRS: &[u8] = b"__json";
const REQUIRED_FEATURES: &str = "requiredSystemFeatures";
const PREFER_LOCAL: &str = "preferLocalBuild";
/// What Nix requires for outputs whose paths are not known beforehand.
const CA_FEATURE: &str = "ca-derivations";

/// Where an output goes, and how its path comes about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// The path follows from the derivation.
    InputAddressed(StorePath),
    /// The content is known beforehand.
    Fixed {
        /// The path that follows from the content.
        path: StorePath,
        /// Such as `sha256`, `r:sha256`, `text:sha256`.
        algorithm: String,
        /// Base16.
        hash: String,
    },
    /// The path will follow from the content.
    Floating {
        /// Such as `r:sha256`.
        algorithm: String,
    },
    /// The path will follow from the derivation once those of its inputs are known.
    Deferred,
    /// Like floating, and never the same twice.
    Impure {
        /// Such as `r:sha256`.
        algorithm: String,
    },
}

impl Output {
    /// Reads the three texts in which both the file and the wire spell an output.
    pub(crate) fn from_texts(path: &str, algorithm: &str, hash: &str) -> Result<Self, WireError> {
        let parse_path =
            || StorePath::parse(path).map_err(|source| WireError::BadPath { what: "output path", source });
        if algorithm.is_empty() {
            return match (path, hash) {
                ("", "") => Ok(Self::Deferred),
                (_, "") => Ok(Self::InputAddressed(parse_path()?)),
                _ => Err(WireError::invalid("output hash without an algorithm", hash)),
            };
        }
        let is_word = |text: &str, more: &[u8]| {
            text.len() <= 256 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
        };
        if !is_word(algorithm, b":") {
            return Err(WireError::invalid("output hash algorithm", algorithm));
        }
        if !is_word(hash, b"") {
            return Err(WireError::invalid("output hash", hash));
        }
        let algorithm = algorithm.to_owned();
        match (path, hash) {
            ("", "") => Ok(Self::Floating { algorithm }),
            ("", "impure") => Ok(Self::Impure { algorithm }),
            (_, "" | "impure") | ("", _) => {
                Err(WireError::invalid("output path of this kind of output", path))
            }
            _ => Ok(Self::Fixed { path: parse_path()?, algorithm, hash: hash.to_owned() }),
        }
    }

    fn to_texts(&self) -> (String, &str, &str) {
        match self {
            Self::InputAddressed(path) => (path.to_string(), "", ""),
            Self::Fixed { path, algorithm, hash } => (path.to_string(), algorithm, hash),
            Self::Floating { algorithm } => (String::new(), algorithm, ""),
            Self::Deferred => (String::new(), "", ""),
            Self::Impure { algorithm } => (String::new(), algorithm, "impure"),
        }
    }

    /// The path, where it is known before the build.
    pub fn path(&self) -> Option<&StorePath> {
        match self {
            Self::InputAddressed(path) | Self::Fixed { path, .. } => Some(path),
            Self::Floating { .. } | Self::Deferred | Self::Impure { .. } => None,
        }
    }
}

/// Which outputs of an input derivation are needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InputDrv {
    /// These, of the derivation itself.
    pub outputs: BTreeSet<OutputName>,
    /// And these, of derivations that are outputs of it (`dynamic-derivations`).
    pub dynamic: BTreeMap<OutputName, Self>,
}

/// What a `.drv` file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Derivation {
    /// What it makes.
    pub outputs: BTreeMap<OutputName, Output>,
    /// The derivations it needs outputs of.
    pub input_drvs: BTreeMap<DrvPath, InputDrv>,
    /// The other store paths it needs.
    pub input_srcs: BTreeSet<StorePath>,
    /// What it runs on.
    pub system: String,
    /// The program that makes it.
    pub builder: Vec<u8>,
    /// The program's arguments.
    pub args: Vec<Vec<u8>>,
    /// The program's environment; structured attributes are in it as `__json`.
    pub env: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A derivation as a builder gets it: the inputs are paths that are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BasicDerivation {
    /// What it makes.
    pub outputs: BTreeMap<OutputName, Output>,
    /// Everything it needs.
    pub input_srcs: BTreeSet<StorePath>,
    /// What it runs on.
    pub system: String,
    /// The program that makes it.
    pub builder: Vec<u8>,
    /// The program's arguments.
    pub args: Vec<Vec<u8>>,
    /// The program's environment; structured attributes are in it as `__json`.
    pub env: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What a `.drv` file says of where its derivation runs, and of what it is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ancestry {
    /// What it runs on.
    pub system: String,
    /// Whether Nix itself makes it (`builtin:fetchurl`): no program of its inputs runs then.
    pub is_builtin: bool,
    /// Whether all its content is known beforehand: it is the same whoever made it.
    pub is_fixed: bool,
    /// `preferLocalBuild`.
    pub prefers_local: bool,
    /// As [`BasicDerivation::required_system_features`].
    pub features: BTreeSet<String>,
    /// The derivations it needs outputs of, in order.
    pub inputs: Vec<DrvPath>,
}

impl Ancestry {
    /// Reads the bytes of a `.drv` file, as strictly as [`Derivation::parse`].
    pub fn parse(file: &[u8]) -> Result<Self, AtermError> {
        aterm::parse_ancestry(file)
    }
}

impl Derivation {
    /// Reads the bytes of a `.drv` file.
    pub fn parse(file: &[u8]) -> Result<Self, AtermError> {
        aterm::parse(file)
    }

    /// What a builder gets, given all paths the build needs.
    ///
    /// As the stock hook does: without input derivations the sources stay as they are, since they are part of the
    /// identity of content-addressed outputs.
    pub fn to_basic(&self, inputs: &BTreeSet<StorePath>) -> BasicDerivation {
        let input_srcs = if self.input_drvs.is_empty() { &self.input_srcs } else { inputs };
        BasicDerivation {
            outputs: self.outputs.clone(),
            input_srcs: input_srcs.clone(),
            system: self.system.clone(),
            builder: self.builder.clone(),
            args: self.args.clone(),
            env: self.env.clone(),
        }
    }

    /// The features a builder must have.
    pub fn required_system_features(&self) -> BTreeSet<String> {
        required_features(&self.env, &self.outputs)
    }
}

impl BasicDerivation {
    /// The features a builder must have.
    pub fn required_system_features(&self) -> BTreeSet<String> {
        required_features(&self.env, &self.outputs)
    }

    /// The outputs whose paths are known before the build.
    pub fn known_outputs(&self) -> impl Iterator<Item = (&OutputName, &StorePath)> {
        self.outputs.iter().filter_map(|(name, output)| Some((name, output.path()?)))
    }

    /// Writes the wire form.
    pub fn write(&self, out: &mut WireWriter) {
        out.u64(self.outputs.len() as u64);
        for (name, output) in &self.outputs {
            let (path, algorithm, hash) = output.to_texts();
            out.bytes(name.as_str());
            out.bytes(path);
            out.bytes(algorithm);
            out.bytes(hash);
        }
        out.paths(&self.input_srcs);
        out.bytes(&self.system);
        out.bytes(&self.builder);
        out.strings(&self.args);
        out.u64(self.env.len() as u64);
        for (name, value) in &self.env {
            out.bytes(name);
            out.bytes(value);
        }
    }

    /// Reads the wire form.
    pub async fn read<R: AsyncBufRead + Unpin>(reader: &mut WireReader<R>) -> Result<Self, WireError> {
        let mut outputs = BTreeMap::new();
        for _ in 0..reader.count("number of outputs", MAX_OUTPUTS).await? {
            let name = reader.output_name("output name").await?;
            let path = reader.string("output path", MAX_WORD).await?;
            let algorithm = reader.string("output hash algorithm", MAX_WORD).await?;
            let hash = reader.string("output hash", MAX_WORD).await?;
            outputs.insert(name, Output::from_texts(&path, &algorithm, &hash)?);
        }
        let input_srcs = reader.store_paths("input paths").await?;
        let system = reader.string("system", MAX_WORD).await?;
        let builder = reader.bytes("builder program", MAX_TEXT).await?;
        let mut args = Vec::new();
        for _ in 0..reader.count("number of arguments", MAX_ITEMS).await? {
            args.push(reader.bytes("argument", MAX_TEXT).await?);
        }
        let mut env = BTreeMap::new();
        for _ in 0..reader.count("number of environment variables", MAX_ITEMS).await? {
            let name = reader.bytes("name of an environment variable", MAX_TEXT).await?;
            env.insert(name, reader.bytes("value of an environment variable", MAX_TEXT).await?);
        }
        Ok(Self { outputs, input_srcs, system, builder, args, env })
    }
}

/// Whether this variable has a part in [`required_features`] or [`prefers_local`].
fn tells_needs(variable: &[u8]) -> bool {
    let named = [STRUCTURED_ATTRS, REQUIRED_FEATURES.as_bytes(), PREFER_LOCAL.as_bytes()];
    named.contains(&variable)
}

/// Whether the derivation prefers this machine, as Nix reads it: the text `1`, or a structured `true`.
fn prefers_local(env: &BTreeMap<Vec<u8>, Vec<u8>>) -> bool {
    match env.get(STRUCTURED_ATTRS) {
        Some(json) => {
            let attributes: Value = serde_json::from_slice(json).unwrap_or_default();
            attributes.get(PREFER_LOCAL).and_then(Value::as_bool).unwrap_or(false)
        }
        None => env.get(PREFER_LOCAL.as_bytes()).is_some_and(|value| value == b"1"),
    }
}

fn required_features(
    env: &BTreeMap<Vec<u8>, Vec<u8>>,
    outputs: &BTreeMap<OutputName, Output>,
) -> BTreeSet<String> {
    let mut features = match env.get(STRUCTURED_ATTRS) {
        Some(json) => structured_features(json),
        None => env
            .get(REQUIRED_FEATURES.as_bytes())
            .map(|list| String::from_utf8_lossy(list).split_ascii_whitespace().map(str::to_owned).collect())
            .unwrap_or_default(),
    };
    if outputs.values().any(|output| output.path().is_none()) {
        features.insert(CA_FEATURE.to_owned());
    }
    features
}

/// Structured attributes that are no JSON make Nix fail the build itself: no feature can be read from them here.
fn structured_features(json: &[u8]) -> BTreeSet<String> {
    let attributes: Value = serde_json::from_slice(json).unwrap_or_default();
    let list = attributes.get(REQUIRED_FEATURES).and_then(Value::as_array).map(Vec::as_slice);
    list.unwrap_or_default().iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests;
