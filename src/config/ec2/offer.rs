//! What an EC2 pool offers: what its table, its features and EC2's processors come to together.
//!
//! Nobody lists that a Zen 3 builds Zen 2 code: a pool offers every `gccarch-` that all the types it may launch run. An
//! `exact` one offers only what it lists, since building for a lesser processor on a better one is just what it is to
//! avoid.

use std::collections::BTreeSet;

use super::Ec2Read;
use crate::catalog::{Architecture, Catalog, InstanceType, microarch, size};
use crate::config::problem::Problems;
use crate::config::section::Section;
use crate::model::ec2::Market;
use crate::model::{Ec2Spec, Feature, Offer, Slots, System};

/// What every builder can be said to have.
const ALWAYS: [&str; 2] = ["benchmark", "big-parallel"];
/// What needs `/dev/kvm`.
const KVM: [&str; 2] = ["kvm", "nixos-test"];

/// Fills in what the pool offers, and complains about what does not go together. `here` is this machine's system.
pub(in crate::config) fn complete(
    pool: &Section<'_>,
    read: &Ec2Read,
    offer: &mut Offer,
    here: &System,
    problems: &mut Problems,
) {
    let features: Vec<Feature> = offer.features.union(&offer.mandatory).cloned().collect();
    let gccarchs: Vec<&str> = features.iter().filter_map(microarch::gccarch).collect();
    let in_features: BTreeSet<Feature> = offer.features.clone();
    let key_of = |gccarch: &str| {
        let is_listed = in_features.contains(&microarch::feature(gccarch));
        if is_listed { "features" } else { "mandatory-features" }
    };

    let mut of_features = Vec::new();
    for gccarch in &gccarchs {
        match microarch::architecture_of(gccarch) {
            Ok(architecture) => of_features.push((*gccarch, architecture)),
            Err(error) => pool.error(key_of(gccarch), error.to_string(), problems),
        }
    }
    let listed: Vec<_> = read.spec.types.iter().filter_map(|name| Catalog::get().find(name)).collect();

    let Some(architecture) = architecture(pool, offer, here, &of_features, &listed, problems) else { return };
    let mut fits = of_features.len() == gccarchs.len();
    for (gccarch, of_feature) in &of_features {
        if *of_feature != architecture {
            let message = format!(
                "`gccarch-{gccarch}` is of {} processors, and the pool builds for `{}`",
                of_feature.as_str(),
                architecture.system()
            );
            pool.error(key_of(gccarch), message, problems);
            fits = false;
        }
    }
    if read.spec.exact && gccarchs.is_empty() {
        let message = "says which processor it must be only together with a `gccarch-` feature";
        problems.error(read.exact_line, format!("{}.exact", read.path), message);
        fits = false;
    }
    if !fits {
        return;
    }

    let exact = read.spec.exact;
    for known in &listed {
        let complaint = if known.architecture != architecture {
            format!(
                "is an {} type, and the pool builds for `{}`",
                known.architecture.as_str(),
                architecture.system()
            )
        } else if let Some(gccarch) = gccarchs.iter().find(|gccarch| !known.processor.runs(gccarch)) {
            format!("({}) does not run code for `{gccarch}`", known.processor.name)
        } else if !known.processor.accepts(gccarchs.iter().copied(), exact) {
            format!("({}) is a superset, and the pool is `exact`", known.processor.name)
        } else {
            continue;
        };
        problems.error(
            read.types_line,
            format!("{}.types", read.path),
            format!("`{}` {complaint}", known.name),
        );
        fits = false;
    }
    if !fits {
        return;
    }

    let acceptable = acceptable(&read.spec, architecture, &gccarchs);
    if acceptable.is_empty() {
        let names = gccarchs.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" and ");
        let (line, key, message) = if exact {
            let message = format!(
                "no instance type is known to be exactly {names}; leave `exact` out for its supersets"
            );
            (read.exact_line, format!("{}.exact", read.path), message)
        } else {
            let key = key_of(gccarchs.first().copied().unwrap_or_default());
            let message =
                format!("no instance type with a known price runs code for {names}; make a pool for each");
            (pool.line(key, problems), pool.key(key), message)
        };
        problems.error(line, key, message);
        return;
    }
    warn_of_what_never_launches(pool, read, &features, &acceptable, problems);

    offer.features.extend(ALWAYS.map(Feature::new));
    if !exact {
        let common = acceptable.iter().map(|known| known.processor.gccarchs().collect::<BTreeSet<_>>());
        let common = common.reduce(|common, other| common.intersection(&other).copied().collect());
        offer.features.extend(common.unwrap_or_default().into_iter().map(microarch::feature));
    }
    if offer.systems.contains(&System::new("x86_64-linux")) {
        offer.systems.insert(System::new("i686-linux"));
    }
}

/// Processors of a builder that is launched for one build, and of the largest where types are listed.
pub(in crate::config) fn slots(spec: &Ec2Spec, offer: &Offer) -> Slots {
    let wanted = size::processors_wanted(1);
    let gccarchs: Vec<_> = offer.features.union(&offer.mandatory).filter_map(microarch::gccarch).collect();
    let architecture = offer.systems.iter().find_map(Architecture::of);
    let acceptable = architecture.map(|architecture| acceptable(spec, architecture, &gccarchs));
    let acceptable = acceptable.unwrap_or_default();
    let sizes = || acceptable.iter().filter(|known| is_affordable(spec, known)).map(|known| known.vcpus);
    let expected = sizes().min_by_key(|vcpus| size::misfit(*vcpus, wanted)).unwrap_or(wanted);
    let most = if spec.types.is_empty() { None } else { sizes().max() };
    Slots::Auto { expected, most }
}

fn acceptable(spec: &Ec2Spec, architecture: Architecture, gccarchs: &[&str]) -> Vec<&'static InstanceType> {
    let mut types = Catalog::get().choice(&spec.types);
    types.retain(|known| {
        known.architecture == architecture && known.processor.accepts(gccarchs.iter().copied(), spec.exact)
    });
    types
}

/// Whether the table's price is within `max-price`; what spot costs is not known yet.
fn is_affordable(spec: &Ec2Spec, known: &InstanceType) -> bool {
    spec.market == Market::Spot || spec.max_price.is_none_or(|max| known.price <= max)
}

/// The one architecture of the pool's builders. A pool that says no system has that of its features or types, else this
/// machine's.
fn architecture(
    pool: &Section<'_>,
    offer: &mut Offer,
    here: &System,
    of_features: &[(&str, Architecture)],
    listed: &[&InstanceType],
    problems: &mut Problems,
) -> Option<Architecture> {
    if !pool.has("systems") {
        let told = of_features.iter().map(|(_, architecture)| *architecture);
        let told = told.chain(listed.iter().map(|known| known.architecture)).next();
        let Some(architecture) = told.or_else(|| Architecture::of(here)) else {
            let message = format!(
                "missing: this machine is `{here}`, which no instance is; write `systems = [\"x86_64-linux\"]` or \
                 \"aarch64-linux\""
            );
            pool.error("systems", message, problems);
            return None;
        };
        offer.systems = [System::new(architecture.system())].into();
        return Some(architecture);
    }
    let mut found = BTreeSet::new();
    for system in &offer.systems {
        match Architecture::of(system) {
            Some(architecture) => {
                found.insert(architecture);
            }
            None => {
                let message = format!(
                    "no instance builds for `{system}`; EC2 has `x86_64-linux`, `i686-linux` and `aarch64-linux`"
                );
                pool.error("systems", message, problems);
            }
        }
    }
    if found.len() > 1 {
        let message = "an instance has one kind of processor: x86 and aarch64 need a pool each";
        pool.error("systems", message, problems);
        return None;
    }
    found.pop_first()
}

/// Warns of a pool for which, as far as the table knows, nothing can be launched. EC2 may know better by now.
fn warn_of_what_never_launches(
    pool: &Section<'_>,
    read: &Ec2Read,
    features: &[Feature],
    acceptable: &[&InstanceType],
    problems: &mut Problems,
) {
    let date = Catalog::get().date();
    if let Some(feature) = features.iter().find(|feature| KVM.contains(&feature.as_str()))
        && !acceptable.iter().any(|known| known.nested_virtualization || known.is_metal())
    {
        let message = format!(
            "`{feature}` needs nested virtualisation, which on {date} none of the types had that this pool may launch; \
             unless EC2 has some by now, nothing is launched. A metal type such as \"c6a.metal\" can be listed under `types`"
        );
        let key = if pool.has("features") { "features" } else { "mandatory-features" };
        problems.warn(pool.line(key, problems), pool.key(key), message);
    }
    if !acceptable.iter().any(|known| is_affordable(&read.spec, known))
        && let Some(cheapest) = acceptable.iter().min_by_key(|known| known.price)
    {
        let message = format!(
            "the cheapest type that will do, {}, was {} on {date}: nothing is launched for less",
            cheapest.name, cheapest.price
        );
        problems.warn(read.max_price_line, format!("{}.max-price", read.path), message);
    }
}
