//! `broker simulate`: what configurations would do with a graph of builds, side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::config_path;
use super::output::{Document, Json, Mark, Screen};
use super::report::{self, Complaint};
use super::text::{amount, count, shorten, span};
use crate::catalog::Catalog;
use crate::config::{self, Config, Defaults};
use crate::ipc::view::SCHEMA;
use crate::model::DrvPath;
use crate::predict::Predictor;
use crate::simulate::read::{Derivations, ReadError, Sources, drv_paths};
use crate::simulate::shapes::{SHAPES, Shape};
use crate::simulate::{
    self, Contender, Durations, Faults, FixedFleet, Foresight, Graph, Report, Scenario, Source, Timeline, svg,
};

/// A graph of all of nixpkgs is a tenth of this.
const LARGEST_FILE: u64 = 4 << 30;
/// Characters of a run's name on a terminal.
const MAX_NAME: usize = 40;

/// Try configurations on a graph of builds, without building or buying anything
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nix derivation show -r .#tiger > tiger.json
  nix build --dry-run .#tiger 2> wanted.txt
  broker simulate --graph tiger.json --only wanted.txt
  broker simulate --graph tiger.json --config now.toml --config larger.toml --svg tiger.svg
  broker simulate --graph tiger.json --fcfs --fixed 4xc6a.4xlarge --fixed 1xc7a.16xlarge
  nix-eval-jobs --flake .#hydraJobs | broker simulate --graph -
  broker simulate --shape long-tail --seed 7

The scheduler is the real one, and so are the choice of machines and the prices. Times are models: a machine is ready 40
to 70 seconds after its launch; builds that share a machine share its processors; a name that is in no file of durations
gets a guess (5 s for a download, around 30 s for a build, 60 s where it builds in parallel, 30 min for `big-parallel`).
A fixed fleet is ready when the work begins, is used by stock Nix, and is paid for until the work is done.

Output: FINISHED, when the last build ended; COST, until the last machine had ended; USED, how much of the processor time
that was paid for built something; IDLE, time of machines that were ready with nothing to do; WAITED, how long a build
waited for its slot on average.")]
pub(super) struct Args {
    /// What to build: the JSON of `nix derivation show -r`, or the lines of `nix-eval-jobs` [`-`: standard input]
    #[arg(long, value_name = "FILE", required_unless_present = "shape", conflicts_with = "shape")]
    graph: Option<PathBuf>,
    /// Build only the derivations that this text names, as `nix build --dry-run` does; the others count as built
    #[arg(long, value_name = "FILE", conflicts_with = "shape")]
    only: Option<PathBuf>,
    /// How long builds take: lines of `NAME SECONDS [THREADS]`, or an object in JSON
    #[arg(long, value_name = "FILE", conflicts_with = "shape")]
    durations: Option<PathBuf>,
    /// Build a made-up graph instead: `wide`, `deep`, `diamond`, `long-tail` or `two-systems`
    #[arg(long, value_name = "NAME", value_parser = parse_shape)]
    shape: Option<Shape>,
    /// A configuration to try; several are shown side by side [default: the broker's own]
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Try the pools of each configuration also first come, first served
    #[arg(long)]
    fcfs: bool,
    /// Compare with machines that are always there, as in `4xc6a.4xlarge` or `2xc7g.xlarge+1xc7a.8xlarge`
    #[arg(long, value_name = "MACHINES", value_parser = FixedFleet::parse)]
    fixed: Vec<FixedFleet>,
    /// Builds that this machine takes itself, as in nix.conf
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1024))]
    max_jobs: u32,
    /// What spot costs, in percent of the on-demand price
    #[arg(long, value_name = "PERCENT", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=100))]
    spot_price: u32,
    /// How often EC2 takes back a spot instance, per hour that it runs
    #[arg(long, value_name = "PER_HOUR", default_value_t = 0.0, value_parser = parse_rate)]
    interruptions: f64,
    /// What the broker knows of durations: `none`, `learned` (history and what ends meanwhile), `rough`, `exact`
    #[arg(long, value_name = "HOW", default_value = "rough", value_parser = parse_foresight)]
    foresight: Foresight,
    /// Where all chance comes from: the same number gives the same run
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Draw the runs into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
}

fn parse_shape(name: &str) -> Result<Shape, String> {
    Shape::parse(name).ok_or_else(|| {
        let names: Vec<String> = SHAPES.iter().map(|shape| format!("`{shape}`")).collect();
        format!("the shapes are {}", names.join(", "))
    })
}

fn parse_foresight(name: &str) -> Result<Foresight, String> {
    let found = Foresight::ALL.into_iter().find(|(known, _)| *known == name);
    found.map(|(_, foresight)| foresight).ok_or_else(|| {
        let names: Vec<String> = Foresight::ALL.iter().map(|(name, _)| format!("`{name}`")).collect();
        format!("one of {}", names.join(", "))
    })
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "a number such as 0.05".to_owned())?;
    if (0.0..=60.0).contains(&rate) { Ok(rate) } else { Err("from 0 to 60 an hour".to_owned()) }
}

/// One line of the comparison.
struct Run {
    name: String,
    contender: Contender,
    timeline: Timeline,
}

/// What is built, and what is known of it.
struct Subject {
    graph: Graph,
    sources: Option<Sources>,
    memory: Predictor,
    notes: Vec<String>,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Complaint> {
    let subject = subject(args)?;
    let scenario = Scenario {
        graph: &subject.graph,
        max_jobs: args.max_jobs,
        system: Defaults::here().system,
        foresight: args.foresight,
        memory: subject.memory.clone(),
        seed: args.seed,
        spot_percent: args.spot_price,
        faults: Faults { interruptions: args.interruptions, ..Faults::default() },
    };
    // Only differences count.
    let epoch = Instant::now();
    let runs: Vec<Run> = contenders(args)?
        .into_iter()
        .map(|(name, contender)| {
            let timeline = simulate::run(&scenario, &contender, epoch);
            Run { name, contender, timeline }
        })
        .collect();
    if let Some(file) = &args.svg {
        let drawn: Vec<(&str, &Timeline)> =
            runs.iter().map(|run| (run.name.as_str(), &run.timeline)).collect();
        write(file, &svg::draw(&drawn))?;
    }
    let mut screen = Screen::stdout();
    if args.json {
        screen.json(&view(args, &subject, &runs), Json::Pretty)?;
    } else {
        let document = document(&subject, &runs, screen.is_terminal());
        screen.print(&document)?;
    }
    for note in &subject.notes {
        report::warn(note);
    }
    Ok(ExitCode::SUCCESS)
}

fn subject(args: &Args) -> Result<Subject, Complaint> {
    if let Some(shape) = args.shape {
        let graph = shape.graph(args.seed).map_err(|error| Complaint::new(error.to_string(), None))?;
        return Ok(Subject { graph, sources: None, memory: Predictor::default(), notes: Vec::new() });
    }
    let file = args.graph.clone().unwrap_or_else(|| PathBuf::from("-"));
    let mut durations = Durations::default();
    if let Some(file) = &args.durations {
        let taken = durations.give(&read_file(file)?);
        taken.map_err(|error| Complaint::new(format!("`{}`: {error}", file.display()), None))?;
    }
    let derivations = simulate::read(&read_file(&file)?).map_err(|error| not_a_graph(&file, &error))?;
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

fn write(file: &Path, text: &str) -> Result<(), Complaint> {
    std::fs::write(file, text)
        .map_err(|error| Complaint::new(format!("cannot write `{}`: {error}", file.display()), None))
}

fn contenders(args: &Args) -> Result<Vec<(String, Contender)>, Complaint> {
    let defaults = Defaults::here();
    let mut files = args.config.clone();
    if files.is_empty() && (args.fixed.is_empty() || args.fcfs) {
        files.push(config_path());
    }
    let mut contenders = Vec::new();
    for file in &files {
        let Config { pools, caps, .. } = config::load(file, &defaults)?;
        let name = name_of(file, &files);
        contenders.push((name.clone(), Contender::Broker { pools: pools.clone(), caps }));
        if args.fcfs {
            contenders.push((format!("{name}, first come"), Contender::FirstCome { pools }));
        }
    }
    let fixed = args.fixed.iter().map(|fleet| (fleet.text.clone(), Contender::Fixed(fleet.clone())));
    contenders.extend(fixed);
    Ok(contenders)
}

/// The file's own name, or its path when two are called the same.
fn name_of(file: &Path, files: &[PathBuf]) -> String {
    let is_only = files.iter().filter(|other| other.file_name() == file.file_name()).count() == 1;
    let name = file.file_name().filter(|_| is_only).map(Path::new).unwrap_or(file);
    name.display().to_string()
}

fn document(subject: &Subject, runs: &[Run], for_terminal: bool) -> Document {
    let graph = &subject.graph;
    let mut document = Document::default();
    let systems: Vec<String> =
        graph.systems().into_iter().map(|(name, count)| format!("{count} for {name}")).collect();
    document.line(format!(
        "{} ({}): {} of work, the longest chain {}.",
        count(graph.nodes().len(), "build"),
        systems.join(", "),
        span(graph.total().as_secs_f64()),
        span(graph.longest_chain().as_secs_f64())
    ));
    if let Some(sources) = &subject.sources {
        document.line(format!("Durations: {}.", durations_line(sources)));
    }
    let catalog = Catalog::get();
    document.line(format!("Prices: {}, {}.", catalog.region(), catalog.date())).blank();
    let header = ["RUN", "FINISHED", "COST", "USED", "LAUNCHES", "PEAK", "IDLE", "WAITED"];
    let rows = runs.iter().map(|run| {
        let report = Report::of(&run.timeline);
        let missing =
            if report.unbuilt > 0 { format!(" ({} unbuilt)", report.unbuilt) } else { String::new() };
        vec![
            shorten(&run.name, if for_terminal { MAX_NAME } else { usize::MAX }),
            format!("{}{missing}", span(report.finish.as_secs_f64())),
            amount(Some(dollars(report.cost))),
            report.used.map_or_else(|| "-".to_owned(), |used| format!("{:.0}%", used * 100.0)),
            report.launches.to_string(),
            report.peak.to_string(),
            span(report.idle.as_secs_f64()),
            span(report.mean_wait.as_secs_f64()),
        ]
    });
    document.table(&header, rows.collect());
    let mut is_first = true;
    for (mark, text) in runs.iter().flat_map(remarks) {
        if std::mem::take(&mut is_first) {
            document.blank();
        }
        document.marked(mark, &text, None);
    }
    document
}

fn remarks(run: &Run) -> Vec<(Mark, String)> {
    let mut remarks = Vec::new();
    if let Contender::Fixed(fleet) = &run.contender {
        let a_day = fleet.rate().over(Duration::from_secs(24 * 3600));
        remarks.push((Mark::Note, format!("`{}` costs {a_day} a day when nobody ends it", run.name)));
    }
    for (why, builds) in &run.timeline.failures {
        let text = format!("`{}`: {} failed: {why}", run.name, count(*builds, "build"));
        remarks.push((Mark::Warn, text));
    }
    if run.timeline.lost_attempts > 0 {
        let lost = count(run.timeline.lost_attempts, "attempt");
        remarks.push((Mark::Note, format!("`{}`: {lost} lost with a machine, and made again", run.name)));
    }
    remarks
}

fn durations_line(sources: &Sources) -> String {
    let words = |source| match source {
        Source::Given => "from the file",
        Source::Recorded => "from the history",
        Source::Guessed => "guessed",
    };
    let parts: Vec<String> =
        sources.iter().map(|(source, count)| format!("{count} {}", words(*source))).collect();
    parts.join(", ")
}

fn dollars(amount: crate::model::Usd) -> f64 {
    amount.micros() as f64 / 1e6
}

#[derive(Serialize)]
struct View<'a> {
    schema: u32,
    builds: usize,
    work: f64,
    longest_chain: f64,
    systems: BTreeMap<String, usize>,
    durations: BTreeMap<&'static str, usize>,
    prices: PricesView,
    seed: u64,
    runs: Vec<RunView<'a>>,
}

#[derive(Serialize)]
struct PricesView {
    region: &'static str,
    date: &'static str,
    spot_percent: u32,
}

/// Times in seconds, money in USD.
#[derive(Serialize)]
struct RunView<'a> {
    name: &'a str,
    kind: &'static str,
    finish: f64,
    cost: f64,
    used: Option<f64>,
    launches: usize,
    peak: usize,
    idle: f64,
    mean_wait: f64,
    longest_wait: f64,
    built: usize,
    unbuilt: usize,
    failures: &'a BTreeMap<String, usize>,
    lost_attempts: usize,
    machines: Vec<MachineView<'a>>,
}

#[derive(Serialize)]
struct MachineView<'a> {
    builder: Option<String>,
    pool: &'a str,
    bought: &'a str,
    slots: u32,
    launched: f64,
    ready: Option<f64>,
    ended: f64,
    cost: f64,
    builds: usize,
}

fn view<'a>(args: &Args, subject: &'a Subject, runs: &'a [Run]) -> View<'a> {
    let key = |source: &Source| match source {
        Source::Given => "given",
        Source::Recorded => "recorded",
        Source::Guessed => "guessed",
    };
    let sources = subject.sources.iter().flatten();
    View {
        schema: SCHEMA,
        builds: subject.graph.nodes().len(),
        work: subject.graph.total().as_secs_f64(),
        longest_chain: subject.graph.longest_chain().as_secs_f64(),
        systems: subject.graph.systems().into_iter().collect(),
        durations: sources.map(|(source, count)| (key(source), *count)).collect(),
        prices: PricesView {
            region: Catalog::get().region(),
            date: Catalog::get().date(),
            spot_percent: args.spot_price,
        },
        seed: args.seed,
        runs: runs.iter().map(run_view).collect(),
    }
}

fn run_view(run: &Run) -> RunView<'_> {
    let report = Report::of(&run.timeline);
    let closed = run.timeline.closed;
    let machines = run.timeline.lanes.iter().map(|lane| MachineView {
        builder: lane.builder.map(|builder| builder.to_string()),
        pool: &lane.pool,
        bought: &lane.label,
        slots: lane.slots,
        launched: lane.launched.as_secs_f64(),
        ready: lane.ready.map(|at| at.as_secs_f64()),
        ended: lane.end(closed).as_secs_f64(),
        cost: dollars(lane.cost(closed)),
        builds: lane.bars.iter().filter(|bar| bar.is_good).count(),
    });
    RunView {
        name: &run.name,
        kind: match &run.contender {
            Contender::Broker { .. } => "broker",
            Contender::FirstCome { .. } => "first-come",
            Contender::Fixed(_) => "fixed",
        },
        finish: report.finish.as_secs_f64(),
        cost: dollars(report.cost),
        used: report.used,
        launches: report.launches,
        peak: report.peak,
        idle: report.idle.as_secs_f64(),
        mean_wait: report.mean_wait.as_secs_f64(),
        longest_wait: report.longest_wait.as_secs_f64(),
        built: report.built,
        unbuilt: report.unbuilt,
        failures: &run.timeline.failures,
        lost_attempts: run.timeline.lost_attempts,
        machines: machines.collect(),
    }
}
