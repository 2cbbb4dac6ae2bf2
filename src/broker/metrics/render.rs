//! The page in Prometheus' text format, version 0.0.4: from a status and counters, pure.
//!
//! Every series that can be there is there from the start, at 0, so that rates and alerts work from the first event on;
//! those of a builder are there while it says how busy it is.

use std::fmt::{Display, Write as _};
use std::time::Duration;

use super::{BOUNDS, Counts};
use crate::model::{BuildPhase, BuilderState, HourlyRate, Hundredths, Load, PoolStatus, Space, Status, Usd};
use crate::scheduler::BuilderFaultKind;

/// The page.
pub(super) fn render(status: &Status, counts: &Counts, uptime: Duration, version: &str) -> String {
    let mut page = Page::default();
    page.family("info", "gauge", "The running broker; its version is a label.");
    page.sample("info", &[("version", version)], 1);
    page.single("uptime_seconds", "gauge", "Seconds since the broker started.", uptime.as_secs_f64());
    page.single(
        "accepting",
        "gauge",
        "1 when new builds are accepted, 0 during a shutdown.",
        u8::from(status.accepting),
    );
    builds(&mut page, status);
    pools(&mut page, status);
    loads(&mut page, status);
    money(&mut page, status);
    counters(&mut page, status, counts);
    page.text
}

fn builds(page: &mut Page, status: &Status) {
    page.family("builds_total", "counter", "Builds that have ended, by outcome.");
    let ended = &status.ended;
    for (outcome, n) in
        [("succeeded", ended.succeeded), ("failed", ended.failed), ("cancelled", ended.cancelled)]
    {
        page.sample("builds_total", &[("outcome", outcome)], n);
    }
    page.family("builds", "gauge", "Builds that are on, by phase.");
    for phase in PHASES {
        let n = status.builds.iter().filter(|build| phase_name(&build.phase) == Some(phase)).count();
        page.sample("builds", &[("phase", phase)], n);
    }
    let waits = |phase: &BuildPhase| matches!(phase, BuildPhase::Queued { .. });
    let longest = status.builds.iter().filter(|build| waits(&build.phase)).map(|build| build.in_phase).max();
    page.single(
        "queue_oldest_seconds",
        "gauge",
        "Seconds that the build has waited that waits longest for a slot; 0 when none waits.",
        longest.unwrap_or_default().as_secs_f64(),
    );
}

const PHASES: [&str; 5] = ["accepted", "queued", "uploading", "building", "downloading"];

fn phase_name(phase: &BuildPhase) -> Option<&'static str> {
    match phase {
        BuildPhase::Accepted => Some("accepted"),
        BuildPhase::Queued { .. } => Some("queued"),
        BuildPhase::Uploading => Some("uploading"),
        BuildPhase::Building => Some("building"),
        BuildPhase::Downloading => Some("downloading"),
        BuildPhase::Succeeded | BuildPhase::Failed { .. } | BuildPhase::Cancelled => None,
    }
}

/// A number of every pool: its name, what it says, where it is.
type Gauge = (&'static str, &'static str, fn(&PoolStatus) -> u32);

fn pools(page: &mut Page, status: &Status) {
    page.family("builders", "gauge", "Builders by pool and state.");
    const STATES: [(BuilderState, &str); 5] = [
        (BuilderState::Launching, "launching"),
        (BuilderState::Booting, "booting"),
        (BuilderState::Ready, "ready"),
        (BuilderState::Draining, "draining"),
        (BuilderState::Terminating, "terminating"),
    ];
    for pool in &status.pools {
        for (state, name) in STATES {
            let there = status.builders.iter();
            let n = there.filter(|builder| builder.pool == pool.name && builder.state == state).count();
            page.sample("builders", &[("pool", pool.name.as_str()), ("state", name)], n);
        }
    }
    let gauges: [Gauge; 6] = [
        ("builders_max", "Builders that a pool may have.", |pool| pool.max_builders),
        ("slots", "Slots of a pool's ready builders.", |pool| pool.slots),
        ("slots_used", "Slots of a pool's ready builders that are in use.", |pool| pool.slots_used),
        ("queued_builds", "Builds that wait for a slot, by the pool they would get it from.", |pool| {
            pool.queued
        }),
        ("launches_paused", "1 while a pool launches nothing because its last launch failed.", |pool| {
            u32::from(pool.cooling.is_some())
        }),
        ("launches_capped", "1 while a pool launches nothing because of a cap on costs.", |pool| {
            u32::from(pool.capped.is_some())
        }),
    ];
    for (name, help, value) in gauges {
        page.family(name, "gauge", help);
        for pool in &status.pools {
            page.sample(name, &[("pool", pool.name.as_str())], value(pool));
        }
    }
}

/// A number of every builder that has said it: its name, what it says, where it is.
type LoadGauge = (&'static str, &'static str, fn(&Load) -> Option<f64>);

fn loads(page: &mut Page, status: &Status) {
    fn used(space: Space) -> f64 {
        space.used() as f64 / space.total() as f64
    }
    let gauges: [LoadGauge; 5] = [
        ("builder_load_average", "Processes on a builder that ran or wanted to, over a minute.", |load| {
            load.average.map(Hundredths::value)
        }),
        ("builder_cpu_ratio", "Share of a builder's processors in use.", |load| {
            load.cpu.map(|percent| percent.value() / 100.0)
        }),
        ("builder_memory_used_ratio", "Share of a builder's memory in use.", |load| load.memory.map(used)),
        (
            "builder_memory_pressure_ratio",
            "Share of ten seconds in which something on a builder waited for memory.",
            |load| load.memory_pressure.map(|percent| percent.value() / 100.0),
        ),
        ("builder_disk_used_ratio", "Share of the disk of a builder's store in use.", |load| {
            load.disk.map(used)
        }),
    ];
    for (name, help, value) in gauges {
        page.family(name, "gauge", help);
        for builder in &status.builders {
            let value = builder.load.as_ref().and_then(|(load, _)| value(load));
            if let Some(value) = value {
                let labels = [("pool", builder.pool.as_str()), ("builder", &builder.id.to_string())];
                page.sample(name, &labels, value);
            }
        }
    }
}

/// Dollars as a number; it has six digits at most after the point.
fn dollars(amount: Usd) -> f64 {
    amount.micros() as f64 / 1e6
}

fn money(page: &mut Page, status: &Status) {
    page.family(
        "cost_rate_dollars",
        "gauge",
        "Dollars an hour that a pool's instances cost now; an estimate.",
    );
    for pool in &status.pools {
        let rate = pool.money.map_or(0.0, |(HourlyRate(rate), _)| dollars(rate));
        page.sample("cost_rate_dollars", &[("pool", pool.name.as_str())], rate);
    }
    page.family("cost_today_dollars", "gauge", "Dollars that a pool has cost today, in UTC; an estimate.");
    for pool in &status.pools {
        let today = pool.money.map_or(0.0, |(_, today)| dollars(today));
        page.sample("cost_today_dollars", &[("pool", pool.name.as_str())], today);
    }
    let month = status.money.as_ref().map_or(0.0, |money| dollars(money.month));
    let help = "Dollars that all pools have cost this month, in UTC; an estimate.";
    page.single("cost_month_dollars", "gauge", help, month);
}

fn counters(page: &mut Page, status: &Status, counts: &Counts) {
    page.family("verdicts_total", "counter", "Answers to hooks, by verdict.");
    for (verdict, n) in
        [("accept", counts.accepted), ("decline", counts.declined), ("postpone", counts.postponed)]
    {
        page.sample("verdicts_total", &[("verdict", verdict)], n);
    }
    let name = "verdict_duration_seconds";
    page.family(name, "histogram", "How long a hook, and with it Nix's event loop, waited for a verdict.");
    let (mut below, bucket) = (0, format!("{name}_bucket"));
    for (bound, n) in BOUNDS.iter().zip(counts.verdicts.buckets) {
        below += n;
        page.sample(&bucket, &[("le", &seconds(*bound).to_string())], below);
    }
    page.sample(&bucket, &[("le", "+Inf")], counts.verdicts.count);
    page.sample(&format!("{name}_sum"), &[], seconds(counts.verdicts.micros));
    page.sample(&format!("{name}_count"), &[], counts.verdicts.count);
    page.family("launches_total", "counter", "Launches that were begun, by pool.");
    for pool in &status.pools {
        let n = counts.launches.get(&pool.name).unwrap_or(&0);
        page.sample("launches_total", &[("pool", pool.name.as_str())], n);
    }
    page.family(
        "builder_faults_total",
        "counter",
        "Builders that did not become ready, or were lost, by kind.",
    );
    const FAULTS: [(BuilderFaultKind, &str); 5] = [
        (BuilderFaultKind::LaunchFailed, "launch-failed"),
        (BuilderFaultKind::OverBudget, "over-budget"),
        (BuilderFaultKind::BootFailed, "boot-failed"),
        (BuilderFaultKind::Unfit, "unfit"),
        (BuilderFaultKind::ConnectionLost, "connection-lost"),
    ];
    for (kind, name) in FAULTS {
        page.sample("builder_faults_total", &[("kind", name)], counts.faults.get(&kind).unwrap_or(&0));
    }
    let help = "Bytes of store paths that went to builders (up) and came from them (down).";
    page.family("transfer_bytes_total", "counter", help);
    for (direction, bytes) in [("up", counts.up), ("down", counts.down)] {
        page.sample("transfer_bytes_total", &[("direction", direction)], bytes);
    }
    let help = "Bytes of store paths that a builder sent to another, and not from here.";
    page.family("direct_bytes_total", "counter", help);
    page.sample("direct_bytes_total", &[], counts.direct);
    let help = "Transfers from builder to builder: those that were done, and those after which paths went from here.";
    page.family("direct_transfers_total", "counter", help);
    for (outcome, n) in [("done", counts.direct_done), ("fell-back", counts.direct_failed)] {
        page.sample("direct_transfers_total", &[("outcome", outcome)], n);
    }
}

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// The text under way.
#[derive(Debug, Default)]
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail, here and below.
        let _written =
            writeln!(self.text, "# HELP nix_broker_{name} {help}\n# TYPE nix_broker_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<_> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _written = writeln!(self.text, "nix_broker_{name}{labels} {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::model::{BuilderId, BuilderStatus, EndedCounts, MoneyStatus, PoolName};

    fn pool(name: &str) -> PoolStatus {
        PoolStatus {
            name: PoolName::new(name),
            ready: 1,
            starting: 0,
            ending: 0,
            max_builders: 2,
            slots_used: 3,
            slots: 8,
            queued: 4,
            idle_timeout: Duration::from_secs(600),
            surplus_idle_timeout: Duration::from_secs(600),
            last_fault: None,
            cooling: Some(Duration::from_secs(9)),
            capped: None,
            money: Some((HourlyRate(Usd::from_micros(612_000)), Usd::from_micros(3_104_200))),
        }
    }

    fn builder() -> BuilderStatus {
        BuilderStatus {
            id: BuilderId(3),
            pool: PoolName::new("x86"),
            instance: None,
            state: BuilderState::Ready,
            progress: None,
            in_state: Duration::from_secs(60),
            age: Duration::from_secs(100),
            slots_used: 3,
            slots: 8,
            ends_in: None,
            class: None,
            cost: Usd::ZERO,
            shortage: None,
            load: Some((
                Load {
                    processors: Some(8),
                    average: Some(Hundredths(1234)),
                    cpu: Some(Hundredths(7550)),
                    memory: Space::new(64 << 30, 48 << 30),
                    memory_pressure: Some(Hundredths(120)),
                    disk: Space::new(100 << 30, 90 << 30),
                    network: None,
                },
                Duration::from_secs(4),
            )),
        }
    }

    fn page() -> String {
        // One that says nothing has no series.
        let silent = BuilderStatus { id: BuilderId(4), load: None, ..builder() };
        let status = Status {
            builders: vec![builder(), silent],
            pools: vec![pool("x86"), PoolStatus { money: None, cooling: None, ..pool("ar\"m") }],
            ended: EndedCounts { succeeded: 12, failed: 1, cancelled: 0 },
            accepting: true,
            money: Some(MoneyStatus { month: Usd::from_micros(41_000_000), ..MoneyStatus::default() }),
            ..Status::default()
        };
        let mut counts = Counts {
            accepted: 3,
            declined: 1,
            up: 1 << 40,
            down: 7,
            direct: 1 << 30,
            direct_done: 5,
            ..Counts::default()
        };
        counts.verdicts.add(Duration::from_micros(300));
        counts.verdicts.add(Duration::from_micros(400));
        counts.verdicts.add(Duration::from_secs(2));
        counts.launches.insert(PoolName::new("x86"), 2);
        counts.faults.insert(BuilderFaultKind::BootFailed, 1);
        render(&status, &counts, Duration::from_millis(15_120_500), "0.3.1")
    }

    #[test]
    fn a_page_says_everything() {
        insta::assert_snapshot!(page());
    }

    /// The grammar of the format: `# HELP`, `# TYPE`, and samples of that family only, none twice.
    #[test]
    fn a_page_is_what_prometheus_reads() {
        let page = page();
        let (mut family, mut kind) = (String::new(), String::new());
        let mut seen = BTreeSet::new();
        let mut buckets = BTreeMap::new();
        for line in page.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').unwrap();
                assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
                assert!(help.ends_with('.'), "{line}");
                family = name.to_owned();
                kind.clear();
            } else if let Some(typed) = line.strip_prefix("# TYPE ") {
                kind = typed.strip_prefix(&format!("{family} ")).unwrap().to_owned();
                assert!(["counter", "gauge", "histogram"].contains(&kind.as_str()), "{line}");
                assert_eq!(kind == "counter", family.ends_with("_total"), "{line}");
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let name = series.split('{').next().unwrap();
                let suffix =
                    name.strip_prefix(&family).unwrap_or_else(|| panic!("{line} is not of {family}"));
                let suffixes: &[&str] =
                    if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
                assert!(suffixes.contains(&suffix) && !kind.is_empty(), "{line}");
                assert!(seen.insert(series.to_owned()), "{line} is there twice");
                let value: f64 = value.parse().unwrap();
                if suffix == "_bucket" {
                    let last = buckets.insert(family.clone(), value).unwrap_or(0.0);
                    assert!(last <= value, "{line}: buckets add up");
                }
            }
        }
        assert!(page.ends_with('\n') && seen.len() > 40);
    }

    /// Words of a query that look like metrics of ours.
    fn metrics_of(query: &str) -> BTreeSet<String> {
        let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        words.filter(|word| word.starts_with("nix_broker_")).map(str::to_owned).collect()
    }

    fn strings<'a>(value: &'a serde_json::Value, key: &str, found: &mut Vec<&'a str>) {
        match value {
            serde_json::Value::Object(object) => {
                for (name, value) in object {
                    match value.as_str() {
                        Some(text) if name == key => found.push(text),
                        Some(_) | None => strings(value, key, found),
                    }
                }
            }
            serde_json::Value::Array(values) => values.iter().for_each(|value| strings(value, key, found)),
            serde_json::Value::Null
            | serde_json::Value::Bool(_)
            | serde_json::Value::Number(_)
            | serde_json::Value::String(_) => {}
        }
    }

    #[test]
    fn the_dashboard_asks_for_nothing_that_is_not_there_and_shows_all_there_is() {
        let dashboard = include_str!("../../../contrib/grafana.json");
        let dashboard: serde_json::Value = serde_json::from_str(dashboard).unwrap();
        let mut queries = Vec::new();
        strings(&dashboard, "expr", &mut queries);
        assert!(queries.len() >= 10, "{queries:?}");
        let page = page();
        let known: BTreeSet<String> = page
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split(['{', ' ']).next().unwrap().to_owned())
            .collect();
        let mut asked = BTreeSet::new();
        for query in &queries {
            let metrics = metrics_of(query);
            assert!(!metrics.is_empty(), "{query}");
            assert!(metrics.is_subset(&known), "{query} asks for what is not on the page");
            // Labels, too: `by (pool)`, `{outcome="failed"}`.
            for label in ["pool", "state", "outcome", "phase", "kind", "direction", "verdict", "le"] {
                let names_it =
                    query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|word| word == label);
                let has_it = |metric: &String| {
                    page.lines().any(|line| {
                        line.starts_with(&format!("{metric}{{")) && line.contains(&format!("{label}=\""))
                    })
                };
                assert!(!names_it || metrics.iter().any(has_it), "{query}: there is no label `{label}`");
            }
            asked.extend(metrics);
        }
        let families = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        for family in families {
            assert!(asked.iter().any(|metric| metric.starts_with(family)), "no panel shows {family}");
        }
    }
}
