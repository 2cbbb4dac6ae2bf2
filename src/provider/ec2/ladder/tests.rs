//! Which attempts are made, in which order, and what is never among them.

use std::time::Duration;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;
use crate::catalog::Catalog;
use crate::model::ec2::Market::{OnDemand, Spot};
use crate::model::{Ec2Spec, Slots, Usd};
use crate::provider::ec2::candidates::candidates;
use crate::provider::ec2::fixtures::{demand, offer, spec};

const AUTO: Slots = Slots::Auto { expected: 8, most: None };

fn usd(text: &str) -> HourlyRate {
    HourlyRate(Usd::parse(text).unwrap())
}

fn place(zone: &str, offered: &[&str]) -> Place {
    Place {
        region: zone[..zone.len() - 1].to_owned(),
        zone: zone.to_owned(),
        subnet: format!("subnet-{zone}"),
        offered: offered.iter().map(|&name| name.to_owned()).collect(),
    }
}

/// A zone that has everything.
fn whole(zone: &str) -> Place {
    let all: Vec<_> = Catalog::get().types().map(|known| known.name.as_str()).collect();
    place(zone, &all)
}

fn zen3() -> Vec<Candidate> {
    candidates(&spec(), &offer("x86_64-linux", &["gccarch-znver3"]), AUTO, &demand(1), None).unwrap()
}

struct Case {
    market: Market,
    max_price: Option<HourlyRate>,
    spot_prices: BTreeMap<(String, String), HourlyRate>,
    cooling: Cooling,
    now: Instant,
}

impl Case {
    fn new(market: Market) -> Self {
        Self {
            market,
            max_price: None,
            spot_prices: BTreeMap::new(),
            cooling: Cooling::new(),
            now: Instant::now(),
        }
    }

    fn ladder(&self, candidates: &[Candidate], places: &[Place]) -> Result<Vec<Rung>, NoRung> {
        let terms = Terms { market: self.market, max_price: self.max_price, spot_prices: &self.spot_prices };
        ladder(candidates, places, &terms, &self.cooling, self.now)
    }
}

/// `c7a.2xlarge a`, with `spot` where it is that.
fn shown(rungs: &[Rung]) -> Vec<String> {
    rungs
        .iter()
        .map(|rung| {
            let zone = rung.zone.chars().last().unwrap();
            let spot = if rung.market == Spot { " spot" } else { "" };
            format!("{} {zone}{spot}", rung.instance_type.name)
        })
        .collect()
}

#[test]
fn the_best_type_is_tried_in_some_zones_and_then_another_type() {
    let places = ["x1a", "x1b", "x1c", "x1d"].map(whole);
    let rungs = Case::new(OnDemand).ladder(&zen3(), &places).unwrap();
    assert_eq!(
        shown(&rungs),
        [
            "c8a.2xlarge a",
            "c8a.2xlarge b",
            "c8a.2xlarge c",
            "m8a.2xlarge a",
            "m8a.2xlarge b",
            "m8a.2xlarge c"
        ]
    );
    assert_eq!(rungs[0].rate, usd("0.43108"));
    assert_eq!(rungs[0].max_spot_price, None);
}

#[test]
fn spot_goes_first_and_on_demand_is_always_tried_after_it() {
    let rungs = Case::new(Spot).ladder(&zen3(), &["x1a", "x1b", "x1c"].map(whole)).unwrap();
    assert_eq!(
        shown(&rungs),
        [
            "c8a.2xlarge a spot",
            "c8a.2xlarge b spot",
            "m8a.2xlarge a spot",
            "c8a.2xlarge a",
            "c8a.2xlarge b",
            "m8a.2xlarge a",
        ]
    );
    assert_eq!(rungs[0].max_spot_price, Some(usd("0.43108")), "never more than on demand");
}

#[test]
fn spot_prices_order_what_fits_equally_well() {
    let mut case = Case::new(Spot);
    let mut costs = |zone: &str, name: &str, price: &str| {
        case.spot_prices.insert((zone.to_owned(), name.to_owned()), usd(price));
    };
    costs("x1a", "c7a.2xlarge", "0.20");
    costs("x1b", "c7a.2xlarge", "0.15");
    costs("x1a", "c8a.2xlarge", "0.22"); // dearer, and so much faster
    costs("x1b", "c7a.4xlarge", "0.10"); // the cheapest of all, but larger than what waits
    costs("x1a", "m7a.2xlarge", "0.90"); // dearer than on demand
    let rungs = case.ladder(&zen3(), &["x1a", "x1b"].map(whole)).unwrap();
    let spot: Vec<_> = rungs.into_iter().filter(|rung| rung.market == Spot).collect();
    assert_eq!(shown(&spot), ["c7a.2xlarge b spot", "c8a.2xlarge a spot", "c7a.2xlarge a spot"]);
    assert_eq!(spot[0].rate, usd("0.15"));
}

#[test]
fn the_order_of_a_list_outlives_spot_prices() {
    let types = ["c8a.2xlarge", "c7a.2xlarge"].map(str::to_owned);
    let listed = Ec2Spec { types: types.into(), ..spec() };
    let found = candidates(&listed, &offer("x86_64-linux", &[]), AUTO, &demand(1), None).unwrap();
    let mut case = Case::new(Spot);
    case.spot_prices.insert(("x1a".to_owned(), "c7a.2xlarge".to_owned()), usd("0.01"));
    let rungs = case.ladder(&found, &[whole("x1a")]).unwrap();
    assert_eq!(shown(&rungs), ["c8a.2xlarge a spot", "c7a.2xlarge a spot", "c8a.2xlarge a", "c7a.2xlarge a"]);
}

#[test]
fn a_second_region_gets_its_part_of_the_attempts() {
    let places = ["y1a", "x1a", "y1b", "x1b"].map(whole);
    let rungs = Case::new(OnDemand).ladder(&zen3(), &places).unwrap();
    let regions: Vec<_> = rungs.iter().map(|rung| rung.region.as_str()).collect();
    assert_eq!(regions, ["y1", "y1", "y1", "x1", "x1", "x1"]);
    // What a region has no use for goes to the other.
    let places = [place("y1a", &["c6a.2xlarge"]), whole("x1a")];
    let rungs = Case::new(OnDemand).ladder(&zen3(), &places).unwrap();
    assert_eq!(rungs.iter().filter(|rung| rung.region == "x1").count(), 5);
}

#[test]
fn types_that_cannot_be_spot_instances_are_bought_on_demand() {
    let kvm = candidates(&spec(), &offer("x86_64-linux", &["kvm"]), AUTO, &demand(1), None).unwrap();
    let rungs = Case::new(Spot).ladder(&kvm, &[whole("x1a")]).unwrap();
    assert_eq!(rungs.len(), ATTEMPTS);
    assert!(rungs.iter().all(|rung| rung.market == OnDemand && rung.nested_virtualization));
}

#[test]
fn what_cools_is_left_out_until_it_may_be_tried_again() {
    let mut case = Case::new(OnDemand);
    let places = ["x1a", "x1b"].map(whole);
    let start = case.now;
    // As a launch does it: every refusal cools its rung, and the next launch goes on with what is left.
    let first = case.ladder(&zen3(), &places).unwrap();
    for rung in &first {
        case.cooling.no_capacity(&rung.offering(), case.now);
    }
    let second = case.ladder(&zen3(), &places).unwrap();
    assert!(second.iter().all(|rung| !first.contains(rung)));
    case.now = start + Duration::from_secs(180);
    assert_eq!(case.ladder(&zen3(), &places).unwrap(), first);
}

#[test]
fn without_spot_there_is_still_on_demand() {
    let mut case = Case::new(Spot);
    case.cooling.no_spot(case.now);
    let rungs = case.ladder(&zen3(), &["x1a", "x1b"].map(whole)).unwrap();
    assert_eq!(rungs.len(), ATTEMPTS);
    assert!(rungs.iter().all(|rung| rung.market == OnDemand));
}

#[test]
fn nothing_to_try_says_why() {
    let mut case = Case::new(OnDemand);
    assert_eq!(case.ladder(&zen3(), &[]), Err(NoRung::NoPlace));
    let error = case.ladder(&zen3(), &[place("x1a", &["c5.large"])]).unwrap_err().to_string();
    assert_eq!(
        error,
        "`c7a.2xlarge`, `c8a.2xlarge`, `m8a.2xlarge` and the others that would do are not offered in `x1a`; \
         add subnets in other zones"
    );
    case.cooling.no_addresses("subnet-x1a", case.now);
    let until = case.now + Duration::from_secs(180);
    assert_eq!(case.ladder(&zen3(), &[whole("x1a")]), Err(NoRung::Cooling { until }));

    let mut case = Case::new(Spot);
    case.max_price = Some(usd("0.000001"));
    case.spot_prices =
        Catalog::get().types().map(|known| (("x1a".to_owned(), known.name.clone()), usd("0.01"))).collect();
    let error = case.ladder(&zen3(), &[whole("x1a")]).unwrap_err();
    assert_eq!(error, NoRung::Price { max: usd("0.000001") });
}

#[test]
fn attempts_are_divided_so_that_all_get_some_and_none_is_lost() {
    for (attempts, sizes, expected) in [
        (6, &[9][..], &[6][..]),
        (6, &[9, 9], &[3, 3]),
        (6, &[9, 1], &[5, 1]),
        (6, &[1, 9], &[1, 5]),
        (6, &[9, 0], &[6, 0]),
        (6, &[0, 9], &[0, 6]),
        (6, &[9, 9, 9], &[3, 2, 1]),
        (6, &[1, 1, 1], &[1, 1, 1]),
        (6, &[], &[]),
        (0, &[9], &[0]),
    ] {
        assert_eq!(shares(attempts, sizes), expected, "{attempts} among {sizes:?}");
    }
}

/// What EC2 may answer to one attempt.
#[derive(Clone, Copy, Debug)]
enum Answer {
    NoCapacity,
    NoQuota,
    NoAddresses,
    Interrupted,
    Launched,
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        6 => Just(Answer::NoCapacity),
        1 => Just(Answer::NoQuota),
        1 => Just(Answer::NoAddresses),
        1 => Just(Answer::Interrupted),
        2 => Just(Answer::Launched),
    ]
}

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn whatever_was_answered_no_rung_repeats_is_too_dear_or_cools(
        spot in any::<bool>(),
        builds in 1_u32..300,
        max_cents in proptest::option::of(1_u64..400),
        zones in vec((0_usize..3, 0_usize..4), 1..6),
        prices in btree_map((0_usize..4, 0_usize..40), 1_u64..3_000_000, 0..40),
        answers in vec((answer(), 0_u64..1_000), 0..60),
    ) {
        let regions = ["u1", "v1", "w1"];
        let letters = ["a", "b", "c", "d"];
        let places: Vec<_> =
            zones.iter().map(|(region, zone)| whole(&format!("{}{}", regions[*region], letters[*zone]))).collect();
        let mut spec = spec();
        spec.market = if spot { Spot } else { OnDemand };
        spec.max_price = max_cents.map(|cents| HourlyRate(Usd::from_micros(cents * 10_000)));
        let offer = offer("x86_64-linux", &["gccarch-znver3"]);
        let Ok(found) = candidates(&spec, &offer, AUTO, &demand(builds), None) else { return Ok(()) };
        let mut case = Case::new(spec.market);
        case.max_price = spec.max_price;
        case.spot_prices = prices
            .iter()
            .filter_map(|((zone, index), micros)| {
                let name = found.get(*index)?.instance_type.name.clone();
                Some(((format!("u1{}", letters[*zone]), name), HourlyRate(Usd::from_micros(*micros))))
            })
            .collect();

        let mut answers = answers.into_iter();
        loop {
            let rungs = match case.ladder(&found, &places) {
                Ok(rungs) => rungs,
                Err(NoRung::Cooling { until }) => {
                    prop_assert!(until > case.now);
                    case.now = until;
                    let again = case.ladder(&found, &places);
                    prop_assert!(again.is_ok(), "{:?}", again);
                    again.unwrap()
                }
                Err(NoRung::Price { .. }) if case.max_price.is_some() => break,
                Err(other) => return Err(TestCaseError::fail(format!("{other:?}"))),
            };
            prop_assert!((1..=ATTEMPTS).contains(&rungs.len()));
            let mut seen = BTreeSet::new();
            for rung in &rungs {
                prop_assert!(seen.insert((&rung.subnet, &rung.instance_type.name, rung.market)));
                prop_assert_eq!(case.cooling.until(&rung.offering(), &rung.subnet, case.now), None);
                let limit = case.max_price.unwrap_or(rung.instance_type.price).min(rung.instance_type.price);
                prop_assert!(rung.rate <= limit);
                prop_assert_eq!(rung.max_spot_price, (rung.market == Spot).then_some(limit));
                prop_assert!(spot || rung.market == OnDemand);
            }
            for rung in rungs {
                let Some((answer, seconds)) = answers.next() else { return Ok(()) };
                case.now += Duration::from_secs(seconds);
                match answer {
                    Answer::NoCapacity => case.cooling.no_capacity(&rung.offering(), case.now),
                    Answer::NoQuota => case.cooling.no_quota(&rung.offering(), case.now),
                    Answer::NoAddresses => case.cooling.no_addresses(&rung.subnet, case.now),
                    Answer::Interrupted => drop(case.cooling.interrupted(case.now)),
                    Answer::Launched => case.cooling.launched(&rung.offering()),
                }
            }
        }
    }
}
