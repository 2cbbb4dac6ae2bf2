//! The graphs that Nix writes, in all the forms it ever gave them.
//!
//! - `nix derivation show -r` (`nix show-derivation -r` up to 2.13): one object, keyed by derivation. Up to 2.31 keys and
//!   inputs are full paths; later base names. Inputs are `inputDrvs`, later `inputs.drvs`; the outputs that are wanted of
//!   them were a list, later an object. The newest wraps it all in `{"version": 4, "derivations": {...}}`.
//! - `nix-eval-jobs`: an object per line. Its jobs are the whole graph: what else they need counts as built.
//!
//! Several documents may follow each other, so files can be put together. Everything that is not needed is skipped
//! without being kept: the environments of derivations are most of such a file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::durations::{Durations, Hints, Source};
use super::graph::{Graph, GraphError, Node};
use crate::model::requirement::{BIG_PARALLEL, CA_DERIVATIONS};
use crate::model::store_path::STORE_DIR;
use crate::model::{DrvPath, Feature, Nature, Requirement, StorePath, System};

/// Derivations that are shown in a complaint about many.
const SHOWN: usize = 3;

/// Why a file is no graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Not even JSON.
    #[error("is not what `nix derivation show -r` or `nix-eval-jobs` writes: {0}")]
    NotJson(String),
    /// Nothing in it.
    #[error("has no derivation in it")]
    Empty,
    /// A key that is no derivation.
    #[error("`{0}` is not the path of a derivation in {STORE_DIR}")]
    NotADerivation(String),
    /// The same twice.
    #[error("has `{0}` twice")]
    Twice(String),
    /// It needs what is not there.
    #[error("lacks what others need: {0}")]
    Missing(String),
}

/// What a file says of one derivation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    drv: DrvPath,
    requirement: Requirement,
    needs: Vec<DrvPath>,
    hints: Hints,
}

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Derivations {
    found: Vec<Found>,
    /// Jobs that could not be evaluated.
    pub broken: usize,
    /// Jobs that are built already.
    pub cached: usize,
}

/// How many durations come from where.
pub type Sources = BTreeMap<Source, usize>;

impl Derivations {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.found.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// The graph of these, with durations. With `only`, the others count as built.
    pub fn graph(
        &self,
        durations: &Durations,
        only: Option<&BTreeSet<DrvPath>>,
    ) -> Result<(Graph, Sources), GraphError> {
        let wanted = |found: &&Found| only.is_none_or(|only| only.contains(&found.drv));
        let kept: Vec<&Found> = self.found.iter().filter(wanted).collect();
        let places: BTreeMap<&DrvPath, usize> = kept.iter().map(|found| &found.drv).zip(0..).collect();
        let mut sources = Sources::new();
        let mut node = |found: &&Found| {
            let (work, source) = durations.work(found.drv.name(), &found.requirement.system, found.hints);
            *sources.entry(source).or_default() += 1;
            Node {
                drv: found.drv.clone(),
                requirement: found.requirement.clone(),
                nature: found.hints.nature,
                needs: found.needs.iter().filter_map(|needed| places.get(needed).copied()).collect(),
                arrives: Duration::ZERO,
                work,
            }
        };
        let nodes = kept.iter().map(&mut node).collect();
        Ok((Graph::new(nodes)?, sources))
    }
}

/// Reads a file of any of these forms.
pub fn read(text: &str) -> Result<Derivations, ReadError> {
    let mut derivations = Derivations::default();
    let mut seen = BTreeSet::new();
    let mut is_closed = true;
    for document in serde_json::Deserializer::from_str(text).into_iter::<Document>() {
        let document = document.map_err(|error| ReadError::NotJson(error.to_string()))?;
        let raw = match document {
            Document::Derivations(raw) => raw,
            Document::Job(job) => {
                is_closed = false;
                match job {
                    Job::Broken => derivations.broken += 1,
                    Job::Cached => derivations.cached += 1,
                    Job::NotBuilt(path, raw) => {
                        // Several attributes may be one derivation.
                        let found = raw.found(&path)?;
                        if seen.insert(found.drv.clone()) {
                            derivations.found.push(found);
                        }
                    }
                }
                continue;
            }
        };
        for (path, raw) in raw {
            let found = raw.found(&path)?;
            if !seen.insert(found.drv.clone()) {
                return Err(ReadError::Twice(found.drv.to_string()));
            }
            derivations.found.push(found);
        }
    }
    if derivations.found.is_empty() && derivations.cached == 0 {
        return Err(ReadError::Empty);
    }
    if is_closed {
        complete(&derivations.found, &seen)?;
    }
    Ok(derivations)
}

/// The derivations that this text names, wherever: `nix build --dry-run` lists what it would build.
pub fn drv_paths(text: &str) -> BTreeSet<DrvPath> {
    let words = text.split(|c: char| c.is_whitespace() || "'\"`,;()".contains(c));
    words.filter_map(|word| DrvPath::parse(word).ok()).collect()
}

fn complete(found: &[Found], seen: &BTreeSet<DrvPath>) -> Result<(), ReadError> {
    let needed: BTreeSet<&DrvPath> = found.iter().flat_map(|found| &found.needs).collect();
    let missing: Vec<_> = needed.into_iter().filter(|needed| !seen.contains(*needed)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut names: Vec<String> = missing.iter().take(SHOWN).map(|drv| format!("`{drv}`")).collect();
    if missing.len() > SHOWN {
        names.push(format!("and {} more", missing.len() - SHOWN));
    }
    Err(ReadError::Missing(names.join(", ")))
}

fn drv_path(text: &str) -> Result<DrvPath, ReadError> {
    let path = if text.contains('/') { StorePath::parse(text) } else { StorePath::from_base_name(text) };
    let path = path.and_then(DrvPath::try_from);
    path.map_err(|_| ReadError::NotADerivation(text.chars().take(300).collect()))
}

/// One JSON document of a file.
enum Document {
    Derivations(Vec<(String, RawDerivation)>),
    Job(Job),
}

/// What became of a job's evaluation.
enum Job {
    Broken,
    Cached,
    NotBuilt(String, Box<RawDerivation>),
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawDerivation {
    system: String,
    input_drvs: Keys,
    inputs: RawInputs,
    outputs: BTreeMap<String, RawOutput>,
    env: RawEnv,
    structured_attrs: Option<RawEnv>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawInputs {
    drvs: Keys,
}

/// A derivation's output may be null in the JSON of a job.
#[derive(Deserialize, Default)]
#[serde(untagged)]
enum RawOutput {
    #[serde(rename_all = "camelCase")]
    Described {
        hash: Option<IgnoredAny>,
        hash_algo: Option<IgnoredAny>,
        path: Option<IgnoredAny>,
    },
    #[default]
    Null,
    Other(IgnoredAny),
}

/// The few attributes that matter, of an environment, where all is text, or of structured attributes.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawEnv {
    required_system_features: Words,
    prefer_local_build: Flag,
    enable_parallel_building: Flag,
    #[serde(rename = "__json")]
    json: Option<String>,
}

/// Words in one text or in a list.
#[derive(Default)]
struct Words(Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            List(Vec<String>),
            Other(IgnoredAny),
        }
        Ok(Self(match Form::deserialize(deserializer)? {
            Form::Text(text) => text.split_whitespace().map(str::to_owned).collect(),
            Form::List(list) => list,
            Form::Other(_) => Vec::new(),
        }))
    }
}

/// `true`, `"1"`, `1`.
#[derive(Default)]
struct Flag(bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Bool(bool),
            Text(String),
            Number(i64),
            Other(IgnoredAny),
        }
        Ok(Self(match Form::deserialize(deserializer)? {
            Form::Bool(flag) => flag,
            Form::Text(text) => text == "1",
            Form::Number(number) => number == 1,
            Form::Other(_) => false,
        }))
    }
}

/// The keys of an object.
#[derive(Default)]
struct Keys(Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfMap;
        impl<'de> Visitor<'de> for OfMap {
            type Value = Keys;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the derivations that are needed, as an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = Vec::new();
                while let Some((key, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
                    keys.push(key);
                }
                Ok(Keys(keys))
            }
        }
        deserializer.deserialize_map(OfMap)
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(DocumentVisitor)
    }
}

struct DocumentVisitor;

impl<'de> Visitor<'de> for DocumentVisitor {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of derivations, or a job")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
        let mut derivations = Vec::new();
        let mut job = RawJob::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                path if path.ends_with(".drv") => derivations.push((key, map.next_value()?)),
                "derivations" => derivations.extend(map.next_value::<Entries>()?.0),
                "drvPath" => job.drv_path = map.next_value()?,
                "system" => job.raw.system = map.next_value()?,
                "inputDrvs" => job.raw.input_drvs = map.next_value()?,
                "requiredSystemFeatures" => job.raw.env.required_system_features = map.next_value()?,
                "attr" => job.is_one = map.next_value::<IgnoredAny>().map(|_| true)?,
                "error" => job.is_broken = map.next_value::<Option<IgnoredAny>>()?.is_some(),
                "cacheStatus" => job.cache_status = map.next_value()?,
                "isCached" => job.is_cached = map.next_value()?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        if !job.is_one && job.drv_path.is_none() {
            return Ok(Document::Derivations(derivations));
        }
        let is_cached = job.is_cached.0 || matches!(job.cache_status.as_deref(), Some("cached" | "local"));
        let state = match job.drv_path {
            _ if job.is_broken => Job::Broken,
            None => Job::Broken,
            Some(_) if is_cached => Job::Cached,
            Some(path) => Job::NotBuilt(path, Box::new(job.raw)),
        };
        Ok(Document::Job(state))
    }
}

#[derive(Default)]
struct RawJob {
    drv_path: Option<String>,
    raw: RawDerivation,
    is_one: bool,
    is_broken: bool,
    is_cached: Flag,
    cache_status: Option<String>,
}

/// An object as a list, so that a key that is there twice is seen.
struct Entries(Vec<(String, RawDerivation)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfMap;
        impl<'de> Visitor<'de> for OfMap {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("derivations, as an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(OfMap)
    }
}

impl RawDerivation {
    fn found(self, path: &str) -> Result<Found, ReadError> {
        let drv = drv_path(path)?;
        let needs = self.input_drvs.0.iter().chain(&self.inputs.drvs.0);
        let needs = needs.map(|needed| drv_path(needed)).collect::<Result<_, _>>()?;
        let is_fixed = |output: &RawOutput| matches!(output, RawOutput::Described { hash: Some(_), .. });
        let is_floating = |output: &RawOutput| {
            matches!(output, RawOutput::Described { hash: None, hash_algo: Some(_), path: None })
        };
        let is_fixed_output = self.outputs.values().any(is_fixed);
        let floats = self.outputs.values().any(is_floating);
        // Structured attributes are a text in the environment of older formats.
        let nested = self.env.json.as_deref().and_then(|text| serde_json::from_str::<RawEnv>(text).ok());
        let envs = [Some(self.env), self.structured_attrs, nested];
        let envs: Vec<RawEnv> = envs.into_iter().flatten().collect();
        let words = envs.iter().flat_map(|env| &env.required_system_features.0);
        let mut features: BTreeSet<Feature> = words.map(|word| Feature::new(word.as_str())).collect();
        if floats {
            features.insert(Feature::new(CA_DERIVATIONS));
        }
        let hints = Hints {
            nature: Nature {
                prefers_local: envs.iter().any(|env| env.prefer_local_build.0),
                is_fixed_output,
            },
            big_parallel: features.contains(&Feature::new(BIG_PARALLEL)),
            parallel: envs.iter().any(|env| env.enable_parallel_building.0),
        };
        let requirement = Requirement::new(System::new(self.system), features);
        Ok(Found { drv, requirement, needs, hints })
    }
}
