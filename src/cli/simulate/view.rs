//! What came of it: as a table, and as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::subject::Subject;
use super::{Args, Run};
use crate::catalog::Catalog;
use crate::cli::output::{Document, Mark};
use crate::cli::text::{amount, count, shorten, span};
use crate::ipc::view::SCHEMA;
use crate::model::Usd;
use crate::simulate::read::Sources;
use crate::simulate::{Contender, Report, Source};

/// Characters of a run's name on a terminal.
const MAX_NAME: usize = 40;

pub(super) fn document(subject: &Subject, runs: &[Run], for_terminal: bool) -> Document {
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
    let header = ["RUN", "FINISHED", "COST", "AFTER", "USED", "LAUNCHES", "PEAK", "IDLE", "WAITED"];
    let rows = runs.iter().map(|run| {
        let report = Report::of(&run.timeline);
        let missing =
            if report.unbuilt > 0 { format!(" ({} unbuilt)", report.unbuilt) } else { String::new() };
        vec![
            shorten(&run.name, if for_terminal { MAX_NAME } else { usize::MAX }),
            format!("{}{missing}", span(report.finish.as_secs_f64())),
            amount(Some(dollars(report.cost))),
            amount(Some(dollars(report.cost_after))),
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

fn dollars(amount: Usd) -> f64 {
    amount.micros() as f64 / 1e6
}

#[derive(Serialize)]
pub(super) struct View<'a> {
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
    cost_after: f64,
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

pub(super) fn of<'a>(args: &Args, subject: &'a Subject, runs: &'a [Run]) -> View<'a> {
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
        cost_after: dollars(report.cost_after),
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
