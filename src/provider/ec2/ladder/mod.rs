//! In which order to ask EC2 for a machine: one type in one subnet on one market at a time.
//!
//! Region after region as the pool lists them, in each spot before on-demand where the pool wants spot, and then the
//! candidates in their order. What cools is left out. A launch has few attempts, so each region and each market gets its
//! part of them, and no type more than half of its market's: the same type is refused in the next zone more often than
//! another one is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::candidates::Candidate;
use super::cooling::{Cooling, Offering};
use crate::catalog::InstanceType;
use crate::model::HourlyRate;
use crate::model::ec2::Market;

/// Attempts of one launch. Then the build goes elsewhere or waits; what failed cools meanwhile.
pub const ATTEMPTS: usize = 6;

/// A subnet to launch in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// `eu-central-1`.
    pub region: String,
    /// `eu-central-1a`.
    pub zone: String,
    /// `subnet-0abc`.
    pub subnet: String,
    /// The types that the zone has (DescribeInstanceTypeOfferings).
    pub offered: BTreeSet<String>,
}

/// On what terms instances are bought.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// What to try first: see [`super::candidates::market`].
    pub market: Market,
    /// What compute may cost at most, on any market.
    pub max_price: Option<HourlyRate>,
    /// What is known of spot prices, by zone and type (DescribeSpotPriceHistory).
    pub spot_prices: &'a BTreeMap<(String, String), HourlyRate>,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rung {
    /// Where.
    pub region: String,
    /// Where in the region.
    pub zone: String,
    /// The subnet there.
    pub subnet: String,
    /// What.
    pub instance_type: &'static InstanceType,
    /// How.
    pub market: Market,
    /// What its compute is expected to cost; never more than the maximum price.
    pub rate: HourlyRate,
    /// For spot: what to say that it may cost at most.
    pub max_spot_price: Option<HourlyRate>,
    /// Whether to ask for nested virtualisation (`CpuOptions`).
    pub nested_virtualization: bool,
}

impl Rung {
    /// What of EC2's it asks for.
    pub fn offering(&self) -> Offering {
        Offering {
            region: self.region.clone(),
            zone: self.zone.clone(),
            instance_type: self.instance_type.name.clone(),
            market: self.market,
        }
    }
}

/// Why there is nothing to try.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRung {
    /// There is no subnet at all.
    #[error(
        "there is no subnet to launch in; `broker init` makes what is missing, or list `subnets` in the pool"
    )]
    NoPlace,
    /// No zone of the subnets has the types.
    #[error("{types} and the others that would do are not offered in {zones}; add subnets in other zones")]
    NotOffered {
        /// The best candidates.
        types: String,
        /// Where was looked.
        zones: String,
    },
    /// Nothing is cheap enough.
    #[error("nothing that would do costs at most `max-price`, {max}")]
    Price {
        /// The limit.
        max: HourlyRate,
    },
    /// Everything was refused lately.
    #[error("EC2 refused everything that would do within the last minutes; it is asked again later")]
    Cooling {
        /// When the first of it may be asked for again.
        until: Instant,
    },
}

/// The attempts to make now, in this order. Never empty, never the same twice.
pub fn ladder(
    candidates: &[Candidate],
    places: &[Place],
    terms: &Terms<'_>,
    cooling: &Cooling,
    now: Instant,
) -> Result<Vec<Rung>, NoRung> {
    let markets: &[Market] = match terms.market {
        Market::Spot => &[Market::Spot, Market::OnDemand],
        Market::OnDemand => &[Market::OnDemand],
    };
    let mut refused = Refused::default();
    let mut taken = BTreeSet::new();
    // Region by region, market by market; each in order of preference.
    let mut regions: Vec<(&str, Vec<Vec<Rung>>)> = Vec::new();
    for place in places {
        if !regions.iter().any(|(region, _)| *region == place.region) {
            regions.push((&place.region, vec![Vec::new(); markets.len()]));
        }
    }
    for (region, by_market) in &mut regions {
        for (market, rungs) in markets.iter().zip(by_market) {
            let in_region = places.iter().filter(|place| place.region == *region);
            let offers: Vec<_> = in_region.collect();
            rungs.extend(of_market(*market, candidates, &offers, terms, cooling, now, &mut refused));
            rungs.retain(|rung| {
                taken.insert((rung.subnet.clone(), rung.instance_type.name.as_str(), rung.market))
            });
        }
    }
    let regions: Vec<_> = regions.into_iter().map(|(_, by_market)| by_market).collect();
    let sizes: Vec<usize> = regions.iter().map(|markets| markets.iter().map(Vec::len).sum()).collect();
    let mut rungs = Vec::new();
    for (by_market, attempts) in regions.into_iter().zip(shares(ATTEMPTS, &sizes)) {
        let sizes: Vec<usize> = by_market.iter().map(Vec::len).collect();
        for (of_market, attempts) in by_market.into_iter().zip(shares(attempts, &sizes)) {
            rungs.extend(varied(of_market, attempts));
        }
    }
    if rungs.is_empty() { Err(refused.why(candidates, places, terms)) } else { Ok(rungs) }
}

/// What stood in the way of rungs that are not there.
#[derive(Default)]
struct Refused {
    cooling_until: Option<Instant>,
    by_price: bool,
}

impl Refused {
    fn why(self, candidates: &[Candidate], places: &[Place], terms: &Terms<'_>) -> NoRung {
        let quoted = |words: BTreeSet<&str>| {
            words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
        };
        match (self.cooling_until, terms.max_price) {
            (Some(until), _) => NoRung::Cooling { until },
            (None, Some(max)) if self.by_price => NoRung::Price { max },
            (None, _) if places.is_empty() => NoRung::NoPlace,
            (None, _) => NoRung::NotOffered {
                types: quoted(
                    candidates.iter().take(3).map(|best| best.instance_type.name.as_str()).collect(),
                ),
                zones: quoted(places.iter().map(|place| place.zone.as_str()).collect()),
            },
        }
    }
}

/// All attempts on one market of one region, best first.
fn of_market(
    market: Market,
    candidates: &[Candidate],
    places: &[&Place],
    terms: &Terms<'_>,
    cooling: &Cooling,
    now: Instant,
    refused: &mut Refused,
) -> Vec<Rung> {
    let mut rungs = Vec::new();
    for candidate in candidates.iter().filter(|candidate| market == Market::OnDemand || candidate.spot) {
        let known = candidate.instance_type;
        for place in places.iter().filter(|place| place.offered.contains(&known.name)) {
            let Some((rate, max_spot_price)) = price(candidate, place, market, terms) else {
                refused.by_price = true;
                continue;
            };
            let rung = Rung {
                region: place.region.clone(),
                zone: place.zone.clone(),
                subnet: place.subnet.clone(),
                instance_type: known,
                market,
                rate,
                max_spot_price,
                nested_virtualization: candidate.nested_virtualization,
            };
            if let Some(until) = cooling.until(&rung.offering(), &place.subnet, now) {
                refused.cooling_until = Some(refused.cooling_until.map_or(until, |other| other.min(until)));
                continue;
            }
            rungs.push(rung);
        }
    }
    if market == Market::Spot {
        by_spot_price(&mut rungs, candidates);
    }
    rungs
}

/// What it costs there, and for spot the most that it may cost; `None` when that is too much. Spot never costs more than
/// on-demand: above that, on-demand is the better bargain.
fn price(
    candidate: &Candidate,
    place: &Place,
    market: Market,
    terms: &Terms<'_>,
) -> Option<(HourlyRate, Option<HourlyRate>)> {
    let limit = terms.max_price.map_or(candidate.on_demand, |max| max.min(candidate.on_demand));
    match market {
        Market::OnDemand => (candidate.on_demand <= limit).then_some((candidate.on_demand, None)),
        Market::Spot => {
            let key = (place.zone.clone(), candidate.instance_type.name.clone());
            // One whose price nobody knows is counted at the most that it may cost.
            let expected = terms.spot_prices.get(&key).copied().unwrap_or(limit);
            (expected <= limit).then_some((expected, Some(limit)))
        }
    }
}

/// Spot prices differ by zone and day, so they order the candidates that are otherwise as good as each other.
fn by_spot_price(rungs: &mut [Rung], candidates: &[Candidate]) {
    let ranks: BTreeMap<&str, u32> =
        candidates.iter().map(|candidate| (candidate.instance_type.name.as_str(), candidate.rank)).collect();
    rungs.sort_by_key(|rung| {
        let rank = ranks.get(rung.instance_type.name.as_str()).copied();
        (rank, rung.instance_type.price_per_work(rung.rate))
    });
}

/// So many of them, no type more than half, unless there is nothing else; in their order.
fn varied(rungs: Vec<Rung>, attempts: usize) -> Vec<Rung> {
    let most = attempts.div_ceil(2);
    let mut of_type: BTreeMap<&str, usize> = BTreeMap::new();
    let (within, beyond): (Vec<_>, Vec<_>) = rungs.into_iter().partition(|rung| {
        let count = of_type.entry(rung.instance_type.name.as_str()).or_default();
        *count += 1;
        *count <= most
    });
    within.into_iter().chain(beyond).take(attempts).collect()
}

/// Divides attempts among groups of these sizes: each leaves half to those that follow, the last takes the rest, and
/// what a group cannot use the first that can gets.
fn shares(attempts: usize, sizes: &[usize]) -> Vec<usize> {
    let mut left = attempts;
    let mut shares = Vec::new();
    for (index, size) in sizes.iter().enumerate() {
        let is_last = sizes[index + 1..].iter().all(|later| *later == 0);
        let share = if is_last { left } else { left.div_ceil(2) }.min(*size);
        left -= share;
        shares.push(share);
    }
    for (share, size) in shares.iter_mut().zip(sizes) {
        let more = left.min(size - *share);
        *share += more;
        left -= more;
    }
    shares
}

#[cfg(test)]
mod tests;
