//! The `[[pool]]` tables.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::time::Duration;

use super::load::Defaults;
use super::problem::{Problems, quote};
use super::section::{Section, Text};
use super::{ec2, hosts, overlap};
use crate::model::requirement::BUILTIN_SYSTEM;
use crate::model::{
    DeclineRule, Feature, HostSpec, LocalSpec, Offer, PoolName, PoolSpec, ProviderSpec, Slots, System,
};

const MAX_NAME_LEN: usize = 64;
/// More is a typing error; it would be thousands of machines.
const MAX_BUILDERS: u32 = 1_000;
const MAX_SLOTS: u32 = 10_000;
const MAX_PRIORITY: u32 = 1_000;
/// What to plan with until a machine that we cannot ask yet has said how many processors it has.
const EXPECTED_PROCESSORS: u32 = 4;
const ONE_SECOND: Duration = Duration::from_secs(1);

/// The times of a pool that does not say otherwise.
pub(super) struct Times {
    /// `idle-timeout`.
    pub(super) idle: Duration,
    /// `surplus-idle-timeout`, where `idle-timeout` is no shorter.
    pub(super) surplus_idle: Duration,
    /// `max-lifetime`.
    pub(super) lifetime: Duration,
    /// `launch-timeout`.
    pub(super) launch: Duration,
}

/// Of machines that are there, or are processes: nothing of theirs has to boot, and idle ones cost nothing.
const TIMES: Times = Times {
    idle: Duration::from_secs(10 * 60),
    surplus_idle: Duration::MAX,
    lifetime: Duration::from_secs(24 * 60 * 60),
    launch: Duration::from_secs(60),
};

/// A pool with its place in the file.
pub(super) struct ReadPool {
    pub(super) spec: PoolSpec,
    pub(super) line: usize,
    pub(super) path: String,
    priority: u32,
}

/// Reads every pool of the file; what is wrong is in `problems`, and the values are then not to be used.
pub(super) fn read_all(
    top: &mut Section<'_>,
    defaults: &Defaults,
    read: &dyn Fn(&Path) -> io::Result<String>,
    problems: &mut Problems,
) -> Vec<ReadPool> {
    let Some(sections) = top.sections("pool", problems) else {
        if !top.has("pool") {
            problems.error(1, "pool", "no pool: without one, nothing can be built; add a `[[pool]]`");
        }
        return Vec::new();
    };
    if sections.is_empty() {
        top.error("pool", "no pool: without one, nothing can be built", problems);
    }
    let mut lines_of_names = BTreeMap::new();
    let mut pools = Vec::new();
    for section in sections {
        pools.extend(read_pool(section, &mut lines_of_names, defaults, read, problems));
    }
    overlap::warn_of_shared_hosts(&pools, problems);
    // Whoever chooses among pools takes the first that will do.
    pools.sort_by_key(|pool| std::cmp::Reverse(pool.priority));
    pools
}

fn read_pool(
    mut section: Section<'_>,
    lines_of_names: &mut BTreeMap<PoolName, usize>,
    defaults: &Defaults,
    read: &dyn Fn(&Path) -> io::Result<String>,
    problems: &mut Problems,
) -> Option<ReadPool> {
    let name = read_name(&mut section, problems);
    if let Some(name) = &name {
        let line = section.line("name", problems);
        let first = *lines_of_names.entry(name.clone()).or_insert(line);
        if first != line {
            let message = format!("there is a pool of this name already, on line {first}");
            section.error("name", message, problems);
        }
    }
    let mut offer = read_offer(&mut section, defaults, problems);
    let min_builders = section.number("min-builders", 0..=MAX_BUILDERS, problems);
    let max_builders = section.number("max-builders", 1..=MAX_BUILDERS, problems);
    let idle_timeout = section.duration("idle-timeout", ONE_SECOND, problems);
    let surplus_idle_timeout = section.duration("surplus-idle-timeout", ONE_SECOND, problems);
    let launch_horizon = section.duration("launch-horizon", Duration::ZERO, problems);
    let max_lifetime = section.duration("max-lifetime", ONE_SECOND, problems);
    let launch_timeout = section.duration("launch-timeout", ONE_SECOND, problems);
    let priority = section.number("priority", 0..=MAX_PRIORITY, problems).unwrap_or(0);
    let declines = read_declines(&mut section, problems);
    let direct = section.truth("direct", problems).unwrap_or(true);
    let provider = read_provider(&mut section, &mut offer, defaults, read, problems);
    let times = match &provider {
        Some(ProviderSpec::Ec2(_)) => ec2::TIMES,
        Some(ProviderSpec::Local(_) | ProviderSpec::Hosts(_)) | None => TIMES,
    };
    let idle_timeout = idle_timeout.unwrap_or(times.idle);
    if surplus_idle_timeout.is_some_and(|surplus| surplus > idle_timeout) {
        section.error("surplus-idle-timeout", "longer than `idle-timeout`", problems);
    }
    let surplus_idle_timeout = surplus_idle_timeout.unwrap_or(times.surplus_idle).min(idle_timeout);
    let max_lifetime = max_lifetime.unwrap_or(times.lifetime);
    let launch_timeout = launch_timeout.unwrap_or(times.launch);
    let alike = |expected| Slots::Auto { expected, most: None };
    let (auto, available) = match &provider {
        Some(ProviderSpec::Hosts(hosts)) => (alike(EXPECTED_PROCESSORS), u32::try_from(hosts.len()).ok()),
        Some(ProviderSpec::Ec2(spec)) => (ec2::offer::slots(spec, &offer), None),
        Some(ProviderSpec::Local(_)) | None => (alike(defaults.processors), None),
    };
    let slots = read_slots(&mut section, auto, problems);
    if let Some(ProviderSpec::Local(_)) = &provider {
        warn_of_foreign_systems(&section, &offer, &defaults.system, problems);
    }

    // A bound that is wrong itself has been complained about; only good ones are compared.
    if let (Some(max), Some(available)) = (max_builders, available)
        && max > available
    {
        let message = format!("{max} builders, but only {available} listed under `hosts`");
        section.error("max-builders", message, problems);
    }
    let max_is_wrong = section.has("max-builders") && max_builders.is_none();
    let max_builders = max_builders.or(available).unwrap_or(1);
    let min_builders = min_builders.unwrap_or(0);
    if min_builders > max_builders && !max_is_wrong && provider.is_some() {
        let message = format!("{min_builders} is more than the {max_builders} of `max-builders`");
        section.error("min-builders", message, problems);
    }
    if max_lifetime <= launch_timeout {
        let message = "not longer than `launch-timeout`: a builder could be too old before it is ready";
        let key = if section.has("max-lifetime") { "max-lifetime" } else { "launch-timeout" };
        section.error(key, message, problems);
    }

    let (line, path) = (section.line("name", problems), section.path().to_owned());
    section.finish(problems);
    let spec = PoolSpec {
        name: name?,
        offer,
        slots,
        min_builders,
        max_builders,
        idle_timeout,
        surplus_idle_timeout,
        launch_horizon,
        max_lifetime,
        launch_timeout,
        declines,
        direct,
        provider: provider?,
    };
    Some(ReadPool { spec, line, path, priority })
}

/// Reads the name; from then on complaints name the pool by it.
fn read_name(section: &mut Section<'_>, problems: &mut Problems) -> Option<PoolName> {
    if !section.has("name") {
        section.error("name", "missing: every pool has a name, such as \"local\"", problems);
    }
    let name = section.text("name", problems)?;
    let is_valid = (1..=MAX_NAME_LEN).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if !is_valid {
        let message = format!(
            "{} is not a name: up to {MAX_NAME_LEN} letters, digits, `-`, `_` and `.`, a letter or digit first",
            quote(name)
        );
        section.error("name", message, problems);
        return None;
    }
    section.set_path(format!("pool.{name}"));
    Some(PoolName::new(name))
}

fn read_offer(section: &mut Section<'_>, defaults: &Defaults, problems: &mut Problems) -> Offer {
    let systems = match section.texts("systems", problems) {
        Some(systems) => {
            if systems.is_empty() {
                let message = "empty: such a pool builds nothing; leave it out for this machine's own system";
                section.error("systems", message, problems);
            }
            systems
                .into_iter()
                .filter(|system| is_system(*system, &section.key("systems"), problems))
                .map(|system| System::new(system.text))
                .collect()
        }
        None => BTreeSet::from([defaults.system.clone()]),
    };
    let features = read_features(section, "features", problems);
    let mandatory = read_features(section, "mandatory-features", problems);
    Offer { systems, features, mandatory }
}

fn is_system(system: Text<'_>, key: &str, problems: &mut Problems) -> bool {
    let Text { text, line } = system;
    if text == BUILTIN_SYSTEM {
        problems.error(line, key, "`builtin` is no system of a machine: every pool takes those builds");
        return false;
    }
    let is_word = |word: &str| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let valid = text.split_once('-').is_some_and(|(processor, kernel)| is_word(processor) && is_word(kernel));
    if !valid {
        problems.error(line, key, format!("{} is not a system such as \"x86_64-linux\"", quote(text)));
    }
    valid
}

fn read_features(section: &mut Section<'_>, key: &'static str, problems: &mut Problems) -> BTreeSet<Feature> {
    let mut features = BTreeSet::new();
    for Text { text, line } in section.texts(key, problems).unwrap_or_default() {
        // Nix writes features separated by commas or blanks.
        if text.is_empty() || text.contains(|c: char| c == ',' || c.is_whitespace() || c.is_control()) {
            let message = format!("{} is not one feature; write each in quotes of its own", quote(text));
            problems.error(line, section.key(key), message);
        } else {
            features.insert(Feature::new(text));
        }
    }
    features
}

fn read_declines(section: &mut Section<'_>, problems: &mut Problems) -> BTreeSet<DeclineRule> {
    let Some(names) = section.texts("decline", problems) else { return DeclineRule::ALL.into() };
    let mut rules = BTreeSet::new();
    for Text { text, line } in names {
        match DeclineRule::ALL.into_iter().find(|rule| rule.name() == text) {
            Some(rule) => {
                rules.insert(rule);
            }
            None => {
                let known = DeclineRule::ALL.map(|rule| quote(rule.name())).join(", ");
                let message = format!("{} is not one of {known}", quote(text));
                problems.error(line, section.key("decline"), message);
            }
        }
    }
    rules
}

fn read_slots(section: &mut Section<'_>, auto: Slots, problems: &mut Problems) -> Slots {
    if !section.is_text("slots") {
        return section.number("slots", 1..=MAX_SLOTS, problems).map_or(auto, Slots::Fixed);
    }
    if let Some(text) = section.text("slots", problems)
        && text != "auto"
    {
        section.error("slots", format!("{} is neither \"auto\" nor a number", quote(text)), problems);
    }
    auto
}

fn read_provider(
    section: &mut Section<'_>,
    offer: &mut Offer,
    defaults: &Defaults,
    read: &dyn Fn(&Path) -> io::Result<String>,
    problems: &mut Problems,
) -> Option<ProviderSpec> {
    const HOW: &str =
        "say where the machines come from: a `[pool.local]` table, a `[pool.ec2]` table, or `[[pool.hosts]]`";
    if section.has("ec2") && cfg!(not(feature = "ec2")) {
        let message = "this broker was built without EC2; use `[pool.local]` or `[[pool.hosts]]`";
        section.error("ec2", message, problems);
    }
    let named: Vec<&str> = ["local", "hosts", "ec2"].into_iter().filter(|key| section.has(key)).collect();
    if named.is_empty() {
        let message = format!("no provider; {HOW}");
        problems.error(section.line("name", problems), section.path(), message);
    } else if named.len() > 1 {
        let listed = named.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(" and ");
        let message = format!("{listed}: a pool has one provider; make two pools");
        section.error(named[1], message, problems);
    }
    let local = section.section("local", problems).map(|section| read_local(section, problems));
    let hosts = section.sections("hosts", problems).map(|sections| {
        if sections.is_empty() {
            section.error("hosts", "empty: list at least one machine", problems);
        }
        hosts::read_all(sections, read, problems)
    });
    let ec2 = section.section("ec2", problems).map(|table| ec2::read(table, problems));
    match (local, hosts, ec2) {
        (Some(local), _, _) => Some(ProviderSpec::Local(local)),
        (None, Some(hosts), _) => Some(ProviderSpec::Hosts(hosts)),
        (None, None, Some(ec2)) => {
            ec2::offer::complete(section, &ec2, offer, &defaults.system, problems);
            Some(ProviderSpec::Ec2(ec2.spec))
        }
        (None, None, None) => None,
    }
}

fn read_local(mut section: Section<'_>, problems: &mut Problems) -> LocalSpec {
    let nix_daemon = section.absolute_path("nix-daemon", problems);
    let sshd = section.absolute_path("sshd", problems);
    let mut sandbox_paths = Vec::new();
    for Text { text, line } in section.texts("sandbox-paths", problems).unwrap_or_default() {
        // Nix takes a list separated by blanks, each `PATH` or `PATH-INSIDE=PATH-HERE`.
        if text.starts_with('/') && !text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            sandbox_paths.push(text.to_owned());
        } else {
            let message = format!("{} is not a path such as \"/bin/sh=/bin/busybox\"", quote(text));
            problems.error(line, section.key("sandbox-paths"), message);
        }
    }
    section.finish(problems);
    LocalSpec { nix_daemon, sshd, sandbox_paths }
}

/// A `local` machine has this machine's processor.
fn warn_of_foreign_systems(section: &Section<'_>, offer: &Offer, here: &System, problems: &mut Problems) {
    for system in &offer.systems {
        let runs_here =
            system == here || (here.as_str() == "x86_64-linux" && system.as_str() == "i686-linux");
        if !runs_here {
            let message = format!(
                "this machine is `{here}`: its Nix must have `{system}` in `extra-platforms` and an emulator for it"
            );
            problems.warn(section.line("systems", problems), section.key("systems"), message);
        }
    }
}

/// The hosts of a pool that has them.
pub(super) fn hosts_of(spec: &PoolSpec) -> &[HostSpec] {
    match &spec.provider {
        ProviderSpec::Hosts(hosts) => hosts,
        ProviderSpec::Local(_) | ProviderSpec::Ec2(_) => &[],
    }
}
