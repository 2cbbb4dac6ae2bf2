//! Which instance types a launch may use, best first.
//!
//! A type has to run everything that its pool offers, not only what waits now: the next build may be any that the pool
//! takes. Among those that do, the best fit to the queue goes first, then the one whose work is cheapest by price, cores and
//! their speed. Where they are to be had is the business of [`super::ladder`].

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::{Architecture, Catalog, InstanceType, microarch, size};
use crate::model::ec2::{IdleAction, Market};
use crate::model::{Demand, Ec2Spec, HourlyRate, Offer, Slots};

/// What EC2 hibernates at most (User Guide, "Prerequisites for EC2 instance hibernation").
const MOST_MEMORY_TO_HIBERNATE_MIB: u32 = 150 * 1024;

/// One instance type that will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub instance_type: &'static InstanceType,
    /// What its compute costs on demand, by the table.
    pub on_demand: HourlyRate,
    /// Whether it may be a spot instance.
    pub spot: bool,
    /// Whether to ask for nested virtualisation (`CpuOptions`).
    pub nested_virtualization: bool,
    /// Lower goes first whatever the prices are; those of one rank differ in nothing else.
    pub rank: u32,
}

/// What EC2 said of the types there are (DescribeInstanceTypes). It knows better than the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Every type that one of the pool's regions has.
    pub types: BTreeMap<String, VerifiedType>,
}

/// What EC2 said of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedType {
    /// `nested-virtualization` is among its supported processor features.
    pub nested_virtualization: bool,
    /// It can hibernate.
    pub hibernation: bool,
}

/// Why no type is left: the filter that removed the last ones.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCandidate {
    /// By system.
    #[error("EC2 has no instance type for {systems}{}", of_listed(*.listed))]
    System {
        /// What the pool builds for.
        systems: String,
        /// Whether the pool lists its types.
        listed: bool,
    },
    /// By processor.
    #[error(
        "no instance type runs code for {features}{}{}",
        if *.exact { " on exactly that processor (`exact`)" } else { "" },
        of_listed(*.listed)
    )]
    Processor {
        /// The `gccarch-` features.
        features: String,
        /// Whether only the very processor counts.
        exact: bool,
        /// Whether the pool lists its types.
        listed: bool,
    },
    /// By what the regions have.
    #[error("none of {types} is offered in the pool's regions; add a region, or other `types`")]
    NotOffered {
        /// What would have done.
        types: String,
    },
    /// By virtualisation.
    #[error(
        "`{feature}` needs nested virtualisation, and none of {types} has it; drop the feature from the pool, or list a \
         metal type under `types` (`c6a.metal` is $7.34/h)"
    )]
    NestedVirtualization {
        /// `kvm` or `nixos-test`.
        feature: &'static str,
        /// What would have done.
        types: String,
    },
    /// By hibernation.
    #[error(
        "`idle-action = \"hibernate\"` needs a type of at most 150 GiB of memory, less than `disk-size`, that EC2 can \
         hibernate; none of {types} is one"
    )]
    Hibernation {
        /// What would have done.
        types: String,
    },
    /// By price.
    #[error("`max-price` is {max}, and the cheapest that would do, `{cheapest}`, costs {price} on demand")]
    Price {
        /// The limit.
        max: HourlyRate,
        /// The type.
        cheapest: String,
        /// Its price.
        price: HourlyRate,
    },
}

/// How instances are bought first for this demand.
pub fn market(spec: &Ec2Spec, demand: &Demand) -> Market {
    if demand.on_demand_only { Market::OnDemand } else { spec.market }
}

/// Every type that may come into question, whatever the demand: what to ask EC2 about.
pub fn type_names(spec: &Ec2Spec, offer: &Offer) -> Result<Vec<String>, NoCandidate> {
    Ok(fitting_types(spec, offer, None)?.into_iter().map(|known| known.name.clone()).collect())
}

/// The types that will do, best first. Never empty.
pub fn candidates(
    spec: &Ec2Spec,
    offer: &Offer,
    slots: Slots,
    demand: &Demand,
    verified: Option<&Verified>,
) -> Result<Vec<Candidate>, NoCandidate> {
    let types = fitting_types(spec, offer, verified)?;
    let kvm = kvm_feature(offer).is_some();
    let candidates = types.into_iter().map(|instance_type| {
        // A whole machine has /dev/kvm anyway; virtual ones have it on demand only.
        let nested_virtualization = kvm && !instance_type.is_metal();
        Candidate {
            instance_type,
            on_demand: instance_type.price,
            spot: !nested_virtualization,
            nested_virtualization,
            rank: 0,
        }
    });
    let candidates = affordable(candidates.collect(), spec, market(spec, demand))?;
    Ok(ranked(candidates, spec, slots, demand))
}

/// The types that run what the pool offers, at whatever price, in the order of the table or of the pool's own list.
fn fitting_types(
    spec: &Ec2Spec,
    offer: &Offer,
    verified: Option<&Verified>,
) -> Result<Vec<&'static InstanceType>, NoCandidate> {
    let listed = !spec.types.is_empty();
    let mut types = Catalog::get().choice(&spec.types);

    let architectures: BTreeSet<_> = offer.systems.iter().map(Architecture::of).collect();
    types.retain(|known| architectures.iter().all(|wanted| *wanted == Some(known.architecture)));
    if types.is_empty() {
        let systems = words(offer.systems.iter().map(|system| system.as_str()));
        return Err(NoCandidate::System { systems, listed });
    }

    let features: Vec<_> = offer.features.union(&offer.mandatory).collect();
    let gccarchs: Vec<_> = features.iter().filter_map(|feature| microarch::gccarch(feature)).collect();
    types.retain(|known| known.processor.accepts(gccarchs.iter().copied(), spec.exact));
    if types.is_empty() {
        let tuned = features.iter().filter(|feature| microarch::gccarch(feature).is_some());
        let features = words(tuned.map(|feature| feature.as_str()));
        return Err(NoCandidate::Processor { features, exact: spec.exact, listed });
    }

    let known_to_ec2 =
        |known: &InstanceType| verified.map(|verified| verified.types.get(&known.name).copied());
    types = narrowed(&types, |known| known_to_ec2(known).is_none_or(|said| said.is_some()))
        .map_err(|types| NoCandidate::NotOffered { types })?;

    if let Some(feature) = kvm_feature(offer) {
        types = narrowed(&types, |known| {
            let said = known_to_ec2(known).flatten();
            known.is_metal() || said.map_or(known.nested_virtualization, |said| said.nested_virtualization)
        })
        .map_err(|types| NoCandidate::NestedVirtualization { feature, types })?;
    }

    if let IdleAction::Hibernate { .. } = spec.idle_action {
        let most = MOST_MEMORY_TO_HIBERNATE_MIB.min(spec.disk.size.saturating_mul(1024).saturating_sub(1));
        types = narrowed(&types, |known| {
            let said = known_to_ec2(known).flatten();
            known.memory_mib <= most && said.map_or(!known.is_metal(), |said| said.hibernation)
        })
        .map_err(|types| NoCandidate::Hibernation { types })?;
    }
    Ok(types)
}

/// The feature of the pool that needs `/dev/kvm`.
fn kvm_feature(offer: &Offer) -> Option<&'static str> {
    let has =
        |name: &str| offer.features.iter().chain(&offer.mandatory).any(|feature| feature.as_str() == name);
    ["kvm", "nixos-test"].into_iter().find(|name| has(name))
}

/// Those that pass, or the names of all that did not.
fn narrowed(
    types: &[&'static InstanceType],
    passes: impl Fn(&InstanceType) -> bool,
) -> Result<Vec<&'static InstanceType>, String> {
    let left: Vec<_> = types.iter().copied().filter(|known| passes(known)).collect();
    if !left.is_empty() {
        return Ok(left);
    }
    let families: BTreeSet<&str> = types.iter().map(|known| known.family.as_str()).collect();
    if types.len() <= 4 {
        return Err(words(types.iter().map(|known| known.name.as_str())));
    }
    Err(words(families.into_iter()))
}

/// Those within `max-price`. One that may be a spot instance stays: what that costs is known per zone.
fn affordable(
    mut candidates: Vec<Candidate>,
    spec: &Ec2Spec,
    market: Market,
) -> Result<Vec<Candidate>, NoCandidate> {
    let Some(max) = spec.max_price else { return Ok(candidates) };
    let by_spot = market == Market::Spot;
    let cheapest = candidates.iter().min_by_key(|candidate| candidate.on_demand).copied();
    candidates.retain(|candidate| candidate.on_demand <= max || (by_spot && candidate.spot));
    match cheapest {
        Some(cheapest) if candidates.is_empty() => Err(NoCandidate::Price {
            max,
            cheapest: cheapest.instance_type.name.clone(),
            price: cheapest.on_demand,
        }),
        _ => Ok(candidates),
    }
}

fn ranked(mut candidates: Vec<Candidate>, spec: &Ec2Spec, slots: Slots, demand: &Demand) -> Vec<Candidate> {
    let at_once = match slots {
        Slots::Fixed(slots) => demand.builds.min(slots),
        Slots::Auto { .. } => demand.builds,
    };
    let wanted = size::processors_wanted(at_once);
    if spec.types.is_empty() {
        let small_enough = |candidate: &Candidate| candidate.instance_type.vcpus <= wanted.saturating_mul(2);
        if candidates.iter().any(small_enough) {
            candidates.retain(small_enough);
        }
    }
    let place_in_list = |name: &str| spec.types.iter().position(|listed| listed == name);
    for candidate in &mut candidates {
        // A list is in the order that its author wants; only how well a size fits the queue goes before it.
        let place = place_in_list(&candidate.instance_type.name).and_then(|place| u32::try_from(place).ok());
        let listed = u32::try_from(spec.types.len()).unwrap_or(u32::MAX).max(1);
        let misfit = size::misfit(candidate.instance_type.vcpus, wanted);
        candidate.rank = misfit.saturating_mul(listed).saturating_add(place.unwrap_or(0));
    }
    candidates.sort_by_key(|candidate| {
        let known = candidate.instance_type;
        (candidate.rank, known.price_per_work(known.price), known.vcpus.abs_diff(wanted), known.name.as_str())
    });
    candidates
}

fn of_listed(listed: bool) -> &'static str {
    if listed { " among those under `types`" } else { "" }
}

fn words<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Usd;
    use crate::provider::ec2::fixtures::{demand, offer, spec};

    const AUTO: Slots = Slots::Auto { expected: 8, most: None };

    fn usd(text: &str) -> HourlyRate {
        HourlyRate(Usd::parse(text).unwrap())
    }

    fn choose(
        spec: &Ec2Spec,
        system: &str,
        features: &[&str],
        builds: u32,
    ) -> Result<Vec<Candidate>, String> {
        candidates(spec, &offer(system, features), AUTO, &demand(builds), None)
            .map_err(|error| error.to_string())
    }

    /// The first so many names.
    fn names(candidates: &[Candidate], count: usize) -> Vec<&str> {
        candidates.iter().take(count).map(|candidate| candidate.instance_type.name.as_str()).collect()
    }

    #[track_caller]
    fn check(system: &str, features: &[&str], builds: u32, expected: &[&str]) {
        let found = choose(&spec(), system, features, builds).unwrap();
        assert_eq!(names(&found, expected.len()), expected, "{system} {features:?} {builds}");
    }

    #[test]
    fn the_cheapest_work_of_the_right_size_goes_first() {
        let zen3 = &["gccarch-znver3"];
        check("x86_64-linux", zen3, 1, &["c8a.2xlarge", "m8a.2xlarge", "c7a.2xlarge", "m7a.2xlarge"]);
        check("x86_64-linux", zen3, 8, &["c8a.2xlarge", "m8a.2xlarge"]);
        check("x86_64-linux", zen3, 40, &["c8a.8xlarge", "c8a.12xlarge", "m8a.8xlarge", "m8a.12xlarge"]);
        check("x86_64-linux", zen3, 200, &["c8a.16xlarge", "c8a.24xlarge", "m8a.16xlarge", "m8a.24xlarge"]);
        check("x86_64-linux", &["gccarch-skylake"], 1, &["c8a.2xlarge", "m8a.2xlarge"]);
        check("x86_64-linux", &["gccarch-skylake-avx512"], 1, &["c8i-flex.2xlarge", "c8i.2xlarge"]);
        check("x86_64-linux", &["gccarch-sapphirerapids"], 1, &["c8i-flex.2xlarge"]);
        check("aarch64-linux", &[], 1, &["c9g.2xlarge", "c8g.2xlarge"]);
        check("aarch64-linux", &["gccarch-armv8.4-a"], 1, &["c9g.2xlarge", "c8g.2xlarge"]);
        check("aarch64-linux", &["gccarch-armv9-a"], 200, &["c9g.16xlarge", "c9g.24xlarge"]);
        check("x86_64-linux", &["kvm"], 1, &["c8i-flex.2xlarge", "c8i.2xlarge", "c7i-flex.2xlarge"]);
    }

    #[test]
    fn an_exact_pool_keeps_to_its_own_processor() {
        let exact = Ec2Spec { exact: true, ..spec() };
        let found = choose(&exact, "x86_64-linux", &["gccarch-znver3"], 1).unwrap();
        assert_eq!(names(&found, 3), ["c6a.2xlarge", "m6a.2xlarge", "r6a.2xlarge"]);
        assert!(found.iter().all(|candidate| candidate.instance_type.processor.name == "Milan"));
        assert_eq!(
            choose(&exact, "x86_64-linux", &["gccarch-skylake"], 1).unwrap_err(),
            "no instance type runs code for `gccarch-skylake` on exactly that processor (`exact`)"
        );
    }

    #[test]
    fn no_size_is_absurd_for_what_waits() {
        for builds in [1, 8, 40, 200, u32::MAX] {
            let found = choose(&spec(), "x86_64-linux", &["gccarch-znver3"], builds).unwrap();
            let wanted = size::processors_wanted(builds);
            assert!(found.iter().all(|candidate| candidate.instance_type.vcpus <= wanted * 2), "{builds}");
            assert!(found[0].instance_type.vcpus >= wanted, "{builds}");
            assert!(found.iter().all(|candidate| candidate.instance_type.is_chosen_unasked()));
        }
    }

    #[test]
    fn slots_bound_how_much_of_the_queue_counts() {
        let offer = offer("x86_64-linux", &["gccarch-znver3"]);
        let found = candidates(&spec(), &offer, Slots::Fixed(4), &demand(200), None).unwrap();
        assert_eq!(names(&found, 1), ["c8a.2xlarge"]);
        let found = candidates(&spec(), &offer, Slots::Fixed(30), &demand(200), None).unwrap();
        assert_eq!(names(&found, 1), ["c8a.8xlarge"]);
    }

    #[test]
    fn a_list_of_types_is_kept_to_in_its_order_among_equal_sizes() {
        let types = ["c6a.16xlarge", "m6a.4xlarge", "c6a.4xlarge", "c7a.4xlarge", "t3.2xlarge", "c6a.metal"];
        let listed = Ec2Spec { types: types.map(str::to_owned).into(), ..spec() };
        let pick = |features: &[&str], builds| choose(&listed, "x86_64-linux", features, builds);
        let zen3 = &["gccarch-znver3"];
        assert_eq!(
            names(&pick(zen3, 9).unwrap(), 9),
            ["m6a.4xlarge", "c6a.4xlarge", "c7a.4xlarge", "c6a.16xlarge", "c6a.metal"]
        );
        assert_eq!(names(&pick(zen3, 200).unwrap(), 1), ["c6a.16xlarge"]);
        assert_eq!(names(&pick(&[], 1).unwrap(), 1), ["t3.2xlarge"], "listed is listed");
        let metal = pick(&["gccarch-znver3", "kvm"], 1).unwrap();
        assert_eq!(names(&metal, 2), ["c6a.metal"]);
        assert!(metal[0].spot && !metal[0].nested_virtualization, "it has a /dev/kvm of its own");
        assert_eq!(
            pick(&["gccarch-znver5"], 1).unwrap_err(),
            "no instance type runs code for `gccarch-znver5` among those under `types`"
        );
        assert_eq!(
            choose(&listed, "aarch64-linux", &[], 1).unwrap_err(),
            "EC2 has no instance type for `aarch64-linux` among those under `types`"
        );
    }

    #[test]
    fn kvm_is_nested_virtualisation_on_demand_and_ec2_knows_best_who_has_it() {
        let found = choose(&spec(), "x86_64-linux", &["gccarch-skylake", "kvm"], 1).unwrap();
        assert!(found.iter().all(|candidate| candidate.nested_virtualization && !candidate.spot));
        assert!(choose(&spec(), "x86_64-linux", &["nixos-test"], 1).unwrap()[0].nested_virtualization);
        assert!(!choose(&spec(), "x86_64-linux", &[], 1).unwrap()[0].nested_virtualization);
        let error = choose(&spec(), "x86_64-linux", &["gccarch-znver3", "kvm"], 1).unwrap_err();
        assert!(
            error.starts_with("`kvm` needs nested virtualisation, and none of `c6a`, `c7a`, "),
            "{error}"
        );
        assert!(error.contains("c6a.metal"), "{error}");

        let said = |nested_virtualization| VerifiedType { nested_virtualization, hibernation: true };
        let verified = Verified {
            types: [("c8a.2xlarge".to_owned(), said(true)), ("c7i.2xlarge".to_owned(), said(false))].into(),
        };
        let offer = offer("x86_64-linux", &["gccarch-skylake", "kvm"]);
        let found = candidates(&spec(), &offer, AUTO, &demand(1), Some(&verified)).unwrap();
        assert_eq!(names(&found, 9), ["c8a.2xlarge"]);
    }

    #[test]
    fn what_no_region_has_is_no_candidate() {
        let verified = Verified::default();
        let listed = Ec2Spec { types: vec!["c6a.large".to_owned()], ..spec() };
        let offer = offer("x86_64-linux", &[]);
        let error = candidates(&listed, &offer, AUTO, &demand(1), Some(&verified)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "none of `c6a.large` is offered in the pool's regions; add a region, or other `types`"
        );
    }

    #[test]
    fn nothing_above_the_maximum_price_is_bought_on_demand() {
        let frugal = Ec2Spec { max_price: Some(usd("0.25")), ..spec() };
        let found = choose(&frugal, "x86_64-linux", &["gccarch-znver3"], 200).unwrap();
        assert!(found.iter().all(|candidate| candidate.on_demand <= usd("0.25")));
        assert_eq!(
            names(&found, 2),
            ["c8a.xlarge", "m8a.xlarge"],
            "smaller than wanted, but within the price"
        );
        let miser = Ec2Spec { max_price: Some(usd("0.01")), ..spec() };
        assert_eq!(
            choose(&miser, "x86_64-linux", &["gccarch-znver3"], 1).unwrap_err(),
            "`max-price` is $0.01/h, and the cheapest that would do, `c6a.large`, costs $0.08/h on demand"
        );

        let spot = Ec2Spec { market: Market::Spot, ..miser };
        assert!(choose(&spot, "x86_64-linux", &["gccarch-znver3"], 1).is_ok(), "its spot price may be less");
        let only = Demand { on_demand_only: true, ..demand(1) };
        let offered = offer("x86_64-linux", &["gccarch-znver3"]);
        assert!(matches!(candidates(&spot, &offered, AUTO, &only, None), Err(NoCandidate::Price { .. })));
        let kvm = choose(&spot, "x86_64-linux", &["kvm"], 1).unwrap_err();
        assert!(kvm.starts_with("`max-price` is $0.01/h"), "{kvm}");
    }

    #[test]
    fn memory_that_does_not_fit_the_volume_does_not_hibernate() {
        let mut sleepy = spec();
        sleepy.idle_action = IdleAction::Hibernate { max_stopped: std::time::Duration::from_secs(1) };
        sleepy.disk.size = 64;
        let found = choose(&sleepy, "x86_64-linux", &[], 40).unwrap();
        assert!(found.iter().all(|candidate| candidate.instance_type.memory_mib < 64 * 1024), "{found:?}");
        sleepy.disk.size = 2;
        let error = choose(&sleepy, "x86_64-linux", &[], 1).unwrap_err();
        assert!(error.starts_with("`idle-action = \"hibernate\"` needs"), "{error}");
    }

    #[test]
    fn a_system_that_ec2_has_not_is_said() {
        assert_eq!(
            choose(&spec(), "aarch64-darwin", &[], 1).unwrap_err(),
            "EC2 has no instance type for `aarch64-darwin`"
        );
    }
}
