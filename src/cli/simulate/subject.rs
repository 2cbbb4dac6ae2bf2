//! What is to be built: read from files, from the history, or made up.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Args;
use crate::cli::config_path;
use crate::cli::report::Complaint;
use crate::cli::text::count;
use crate::config::{self, Defaults};
use crate::history::{BuildRow, Store};
use crate::model::requirement::BIG_PARALLEL;
use crate::model::{DrvPath, Feature, System};
use crate::predict::{Observation, Predictor};
use crate::simulate::read::{Derivations, ReadError, Sources, drv_paths};
use crate::simulate::recorded::{self, Recorded};
use crate::simulate::{self, Durations, Graph, GraphError};

/// A graph of all of nixpkgs is a tenth of this.
const LARGEST_FILE: u64 = 4 << 30;
/// Of the history: all that is kept.
const MOST_ROWS: u32 = 1_000_000;

/// What is built, and what is known of it.
pub(super) struct Subject {
    pub(super) graph: Graph,
    pub(super) sources: Option<Sources>,
    pub(super) memory: Predictor,
    pub(super) notes: Vec<String>,
}

pub(super) fn of(args: &Args) -> Result<Subject, Complaint> {
    if let Some(shape) = args.shape {
        let graph = shape.graph(args.seed).map_err(|error| Complaint::new(error.to_string(), None))?;
        return Ok(Subject { graph, sources: None, memory: Predictor::default(), notes: Vec::new() });
    }
    let history = args.history.as_deref().map(|dir| read_history(args, dir)).transpose()?;
    match (&args.graph, history) {
        (Some(file), history) => of_file(args, file, &history.unwrap_or_default()),
        (None, history) => of_history(args, history.unwrap_or_default()),
    }
}

fn of_file(args: &Args, file: &Path, history: &[BuildRow]) -> Result<Subject, Complaint> {
    let mut durations = Durations::default();
    for seen in history.iter().rev().filter_map(observation) {
        durations.record(seen);
    }
    if let Some(file) = &args.durations {
        let taken = durations.give(&read_file(file)?);
        taken.map_err(|error| Complaint::new(format!("`{}`: {error}", file.display()), None))?;
    }
    let derivations = simulate::read(&read_file(file)?).map_err(|error| not_a_graph(file, &error))?;
    let only = args.only.as_deref().map(wanted).transpose()?;
    let graph = derivations.graph(&durations, only.as_ref());
    let (graph, sources) = graph.map_err(|error| {
        let hint = only.is_some().then(|| {
            "`--only` names none of the graph's derivations; both have to be of the same evaluation"
                .to_owned()
        });
        Complaint::new(format!("`{}`: {error}", file.display()), hint)
    })?;
    let memory = durations.recorded().clone();
    Ok(Subject { graph, sources: Some(sources), memory, notes: notes(&derivations) })
}

fn of_history(args: &Args, rows: Vec<BuildRow>) -> Result<Subject, Complaint> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = args.since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
    let (before, within): (Vec<BuildRow>, Vec<BuildRow>) =
        rows.into_iter().partition(|row| row.ended < since);
    // What was known when it all began.
    let mut memory = Predictor::default();
    for seen in before.iter().rev().filter_map(observation) {
        memory.observe(seen);
    }
    let graph = recorded::graph(within.iter().rev().filter_map(recorded).collect()).map_err(|error| {
        let hint = match error {
            GraphError::Empty => Some("no build of that time ended well on a builder".to_owned()),
            GraphError::Cycle(_) | GraphError::TooLarge(_) => None,
        };
        Complaint::new(format!("the history: {error}"), hint)
    })?;
    Ok(Subject { graph, sources: None, memory, notes: Vec::new() })
}

fn read_history(args: &Args, dir: &Path) -> Result<Vec<BuildRow>, Complaint> {
    let dir = if dir.as_os_str().is_empty() {
        let file = args.config.first().cloned().unwrap_or_else(config_path);
        config::load(&file, &Defaults::here())?.state_dir
    } else {
        dir.to_owned()
    };
    let hint = "the state directory is the broker's own: run this as the user that it runs as, or as root";
    Store::open_to_read(&dir)
        .and_then(|store| store.builds(MOST_ROWS, None))
        .map_err(|error| Complaint::of(&error, Some(hint.to_owned())))
}

/// How long a build was on its builder, if that says how long it takes.
fn took(row: &BuildRow) -> Option<Duration> {
    (row.outcome == "succeeded").then(|| row.took.unwrap_or(row.building))
}

fn observation(row: &BuildRow) -> Option<Observation<'_>> {
    let is_big = row.features.iter().any(|feature| feature == BIG_PARALLEL);
    Some(Observation { name: &row.name, system: &row.system, is_big, took: took(row)? })
}

fn recorded(row: &BuildRow) -> Option<Recorded> {
    let spent = row.waiting + row.uploading + row.building + row.downloading;
    Some(Recorded {
        drv: DrvPath::parse(&row.drv).ok()?,
        system: System::new(row.system.as_str()),
        features: row.features.iter().map(|feature| Feature::new(feature.as_str())).collect(),
        asked: row.ended.saturating_sub(spent),
        uploading: row.uploading,
        building: took(row)?,
        downloading: row.downloading,
        instance_type: row.instance_type.clone(),
    })
}

fn notes(derivations: &Derivations) -> Vec<String> {
    let mut notes = Vec::new();
    if derivations.broken > 0 {
        notes.push(format!("{} could not be evaluated and are left out", count(derivations.broken, "job")));
    }
    if derivations.cached > 0 {
        notes.push(format!("{} are built already and are left out", count(derivations.cached, "job")));
    }
    notes
}

fn wanted(file: &Path) -> Result<BTreeSet<DrvPath>, Complaint> {
    let wanted = drv_paths(&read_file(file)?);
    if wanted.is_empty() {
        let hint = "make it with `nix build --dry-run INSTALLABLE 2> FILE`".to_owned();
        return Err(Complaint::new(format!("`{}` names no derivation", file.display()), Some(hint)));
    }
    Ok(wanted)
}

fn not_a_graph(file: &Path, error: &ReadError) -> Complaint {
    let hint = match error {
        ReadError::NotJson(_) | ReadError::Empty => {
            "make it with `nix derivation show -r INSTALLABLE > FILE` (`nix show-derivation -r` before Nix 2.14)"
        }
        ReadError::Missing(_) => "was it made without `-r`?",
        ReadError::NotADerivation(_) => "only graphs of the store `/nix/store` can be simulated",
        ReadError::Twice(_) => "are two graphs of the same derivations in one file?",
    };
    Complaint::new(format!("`{}` {error}", file.display()), Some(hint.to_owned()))
}

/// Reads a file, or standard input for `-`.
fn read_file(file: &Path) -> Result<String, Complaint> {
    let mut bytes = Vec::new();
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(LARGEST_FILE).read_to_end(&mut bytes)
    } else {
        File::open(file).and_then(|opened| opened.take(LARGEST_FILE).read_to_end(&mut bytes))
    };
    let failed = |why: String| Complaint::new(format!("cannot read `{}`: {why}", file.display()), None);
    read.map_err(|error| failed(error.to_string()))?;
    String::from_utf8(bytes).map_err(|_| failed("it is not text".to_owned()))
}
