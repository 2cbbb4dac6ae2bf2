//! `broker simulate`: what configurations would do with a graph of builds, side by side.
//!
//! What is built is read in [`subject`], what came of it shown in [`view`].

mod subject;
mod view;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::config_path;
use super::output::{Json, Screen};
use super::report::{self, Complaint};
use crate::config::{self, Config, Defaults};
use crate::simulate::shapes::{SHAPES, Shape};
use crate::simulate::{self, Contender, Faults, FixedFleet, Foresight, Scenario, Timeline, svg};

/// Try configurations on a graph of builds, without building or buying anything
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["graph", "history", "shape"])))]
#[command(after_help = "\
Examples:
  nix derivation show -r .#tiger > tiger.json
  nix build --dry-run .#tiger 2> wanted.txt
  broker simulate --graph tiger.json --only wanted.txt
  broker simulate --graph tiger.json --config now.toml --config larger.toml --svg tiger.svg
  broker simulate --graph tiger.json --fcfs --fixed 4xc6a.4xlarge --fixed 1xc7a.16xlarge
  nix-eval-jobs --flake .#hydraJobs | broker simulate --graph -
  broker simulate --history --since 7d --config other.toml
  broker simulate --shape long-tail --seed 7

The scheduler is the real one, and so are the choice of machines and the prices. Times are models:
a machine is ready 40 to 70 seconds after its launch; builds that share a machine share its
processors; a name that no file of durations has gets a guess (5 s for a download, around 30 s for a
build, 60 s where it builds in parallel, 30 min for `big-parallel`). A fixed fleet is ready when the
work begins, is used by stock Nix, and is paid for until the work is done.

FINISHED is when the last build ended; COST until the last machine had ended, and AFTER what of it
came when nothing was left to build; USED how much of the processor time that was paid for built
something; IDLE the time of machines that were ready with nothing to do; WAITED how long a build
waited for its slot on average.")]
pub(super) struct Args {
    /// What to build: the JSON of `nix derivation show -r`, or the lines of `nix-eval-jobs` [`-`: standard input]
    #[arg(long, value_name = "FILE", conflicts_with = "shape")]
    graph: Option<PathBuf>,
    /// Build only the derivations that this text names, as `nix build --dry-run` does; the others count as built
    #[arg(long, value_name = "FILE", requires = "graph")]
    only: Option<PathBuf>,
    /// How long builds take: lines of `NAME SECONDS [THREADS]`, or an object in JSON
    #[arg(long, value_name = "FILE", requires = "graph")]
    durations: Option<PathBuf>,
    /// The broker's history, from its state directory [default: the configuration's]: with `--graph` it says how long
    /// builds take; alone, the builds that were recorded are made again when they were made
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = "", conflicts_with = "shape")]
    history: Option<PathBuf>,
    /// Of the history, only this long ago and later, such as `7d`
    #[arg(long, value_name = "TIME", requires = "history", value_parser = humantime::parse_duration)]
    since: Option<Duration>,
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

pub(super) fn run(args: &Args) -> Result<ExitCode, Complaint> {
    let subject = subject::of(args)?;
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
        screen.json(&view::of(args, &subject, &runs), Json::Pretty)?;
    } else {
        let document = view::document(&subject, &runs, screen.is_terminal());
        screen.print(&document)?;
    }
    for note in &subject.notes {
        report::warn(note);
    }
    Ok(ExitCode::SUCCESS)
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
