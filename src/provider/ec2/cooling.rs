//! What EC2 refused lately, and is not asked for again at once.
//!
//! A refusal for lack of capacity names one offering, and asking again within a minute gets the same answer; who asks on
//! and on gets throttled. Forgotten with the process: a new broker may ask once more.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::api::QuotaFamily;
use crate::model::ec2::Market;

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

/// How long a thing cools after its first, second, third and any further refusal.
const STEPS: [Duration; 4] = [minutes(3), minutes(6), minutes(12), minutes(30)];
/// A refusal this long after the end of the last cooling has nothing to do with it.
const FORGOTTEN_AFTER: Duration = minutes(30);
/// Types of one family that have to be refused in a zone until the others are not tried either.
const SIZES_OF_A_FAMILY: usize = 3;
/// So many interruptions of spot instances...
const INTERRUPTIONS: usize = 2;
/// ...in so long...
const INTERRUPTIONS_WITHIN: Duration = minutes(15);
/// ...are as long without spot.
const WITHOUT_SPOT: Duration = minutes(30);

/// One thing that EC2 may have or not have: a type in a zone on a market.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Offering {
    /// `eu-central-1`.
    pub region: String,
    /// `eu-central-1a`.
    pub zone: String,
    /// `c6a.4xlarge`.
    pub instance_type: String,
    /// How it would be bought.
    pub market: Market,
}

impl Offering {
    fn family(&self) -> &str {
        family_of(&self.instance_type)
    }
}

fn family_of(instance_type: &str) -> &str {
    instance_type.split_once('.').map_or(instance_type, |(family, _)| family)
}

/// What cools.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Offering(Offering),
    Family { zone: String, family: String, market: Market },
    Quota { region: String, family: QuotaFamily, market: Market },
    Subnet(String),
}

#[derive(Clone, Copy, Debug)]
struct Cold {
    until: Instant,
    refusals: usize,
}

/// Everything that cools.
#[derive(Clone, Debug, Default)]
pub struct Cooling {
    cold: BTreeMap<Thing, Cold>,
    interruptions: VecDeque<Instant>,
    spot_from: Option<Instant>,
}

impl Cooling {
    /// Nothing was refused yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// There is no capacity for this offering now. Three types of its family cooling in a zone are the whole family.
    pub fn no_capacity(&mut self, offering: &Offering, now: Instant) {
        let until = self.chill(Thing::Offering(offering.clone()), now);
        let sizes: BTreeSet<&str> = self
            .cold
            .iter()
            .filter(|(_, cold)| cold.until > now)
            .filter_map(|(thing, _)| match thing {
                Thing::Offering(other) => Some(other),
                Thing::Family { .. } | Thing::Quota { .. } | Thing::Subnet(_) => None,
            })
            .filter(|other| {
                (other.zone.as_str(), other.market) == (offering.zone.as_str(), offering.market)
                    && other.family() == offering.family()
            })
            .map(|other| other.instance_type.as_str())
            .collect();
        if sizes.len() >= SIZES_OF_A_FAMILY {
            let family = Thing::Family {
                zone: offering.zone.clone(),
                family: offering.family().to_owned(),
                market: offering.market,
            };
            let cold = self.cold.entry(family).or_insert(Cold { until, refusals: 0 });
            cold.until = cold.until.max(until);
        }
    }

    /// The account may not have more vCPUs of this kind.
    pub fn no_quota(&mut self, offering: &Offering, now: Instant) {
        let family = QuotaFamily::of(&offering.instance_type);
        let thing = Thing::Quota { region: offering.region.clone(), family, market: offering.market };
        self.chill(thing, now);
    }

    /// The subnet has no address left.
    pub fn no_addresses(&mut self, subnet: &str, now: Instant) {
        self.chill(Thing::Subnet(subnet.to_owned()), now);
    }

    /// EC2 took a spot instance back, or announced it. Says whether that is the end of spot for a while.
    pub fn interrupted(&mut self, now: Instant) -> bool {
        self.interruptions.push_back(now);
        self.interruptions.retain(|&at| now.saturating_duration_since(at) <= INTERRUPTIONS_WITHIN);
        let enough = self.interruptions.len() >= INTERRUPTIONS;
        if enough {
            self.interruptions.clear();
            self.no_spot(now);
        }
        enough
    }

    /// This account cannot have spot instances, for a reason that is not of one offering.
    pub fn no_spot(&mut self, now: Instant) {
        self.spot_from = Some(now + WITHOUT_SPOT);
    }

    /// This offering was there: earlier refusals of it, its family and its quota no longer mean anything.
    pub fn launched(&mut self, offering: &Offering) {
        let quota = QuotaFamily::of(&offering.instance_type);
        self.cold.retain(|thing, _| match thing {
            Thing::Offering(cold) => cold != offering,
            Thing::Family { zone, family, market } => {
                (zone, family.as_str(), *market) != (&offering.zone, offering.family(), offering.market)
            }
            Thing::Quota { region, family, market } => {
                (region, *family, *market) != (&offering.region, quota, offering.market)
            }
            Thing::Subnet(_) => true,
        });
    }

    /// When this offering may be asked for again in this subnet; `None` is now.
    pub fn until(&self, offering: &Offering, subnet: &str, now: Instant) -> Option<Instant> {
        let things = [
            Thing::Offering(offering.clone()),
            Thing::Family {
                zone: offering.zone.clone(),
                family: offering.family().to_owned(),
                market: offering.market,
            },
            Thing::Quota {
                region: offering.region.clone(),
                family: QuotaFamily::of(&offering.instance_type),
                market: offering.market,
            },
            Thing::Subnet(subnet.to_owned()),
        ];
        let cold = things.iter().filter_map(|thing| self.cold.get(thing)).map(|cold| cold.until);
        let spot = match offering.market {
            Market::Spot => self.spot_from,
            Market::OnDemand => None,
        };
        cold.chain(spot).filter(|&until| until > now).max()
    }

    /// Cools a thing, longer each time; says until when.
    fn chill(&mut self, thing: Thing, now: Instant) -> Instant {
        self.cold.retain(|_, cold| now.saturating_duration_since(cold.until) < FORGOTTEN_AFTER);
        let cold = self.cold.entry(thing).or_insert(Cold { until: now, refusals: 0 });
        // Launches that were under way together are refused together: that is one refusal.
        if cold.until > now {
            return cold.until;
        }
        let step = STEPS[cold.refusals.min(STEPS.len() - 1)];
        cold.refusals += 1;
        cold.until = now + step;
        cold.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offering(instance_type: &str) -> Offering {
        Offering {
            region: "eu-central-1".to_owned(),
            zone: "eu-central-1a".to_owned(),
            instance_type: instance_type.to_owned(),
            market: Market::OnDemand,
        }
    }

    fn spot(instance_type: &str) -> Offering {
        Offering { market: Market::Spot, ..offering(instance_type) }
    }

    fn left(cooling: &Cooling, offering: &Offering, now: Instant) -> Option<u64> {
        cooling.until(offering, "subnet-1", now).map(|until| (until - now).as_secs() / 60)
    }

    #[test]
    fn an_offering_cools_longer_each_time_and_is_forgiven_in_the_end() {
        let (mut cooling, mut now) = (Cooling::new(), Instant::now());
        let c6a = offering("c6a.4xlarge");
        for expected in [3, 6, 12, 30, 30] {
            cooling.no_capacity(&c6a, now);
            assert_eq!(left(&cooling, &c6a, now), Some(expected));
            assert_eq!(left(&cooling, &spot("c6a.4xlarge"), now), None, "the other market");
            assert_eq!(left(&cooling, &offering("c6a.2xlarge"), now), None, "another size");
            let elsewhere = Offering { zone: "eu-central-1b".to_owned(), ..c6a.clone() };
            assert_eq!(left(&cooling, &elsewhere, now), None);
            now += minutes(expected);
            assert_eq!(left(&cooling, &c6a, now), None, "it may be asked for again");
        }
        now += FORGOTTEN_AFTER;
        cooling.no_capacity(&c6a, now);
        assert_eq!(left(&cooling, &c6a, now), Some(3));
        cooling.launched(&c6a);
        assert_eq!(left(&cooling, &c6a, now), None);
        cooling.no_capacity(&c6a, now);
        assert_eq!(left(&cooling, &c6a, now), Some(3));
    }

    #[test]
    fn three_sizes_are_the_family_in_that_zone_and_market() {
        let (mut cooling, now) = (Cooling::new(), Instant::now());
        for size in ["c6a.large", "c6a.large", "c6a.xlarge", "c7a.xlarge"] {
            cooling.no_capacity(&offering(size), now);
        }
        let other = offering("c6a.16xlarge");
        assert_eq!(left(&cooling, &other, now), None, "two sizes are not three");
        cooling.no_capacity(&offering("c6a.2xlarge"), now);
        assert_eq!(left(&cooling, &other, now), Some(3));
        for free in [spot("c6a.16xlarge"), offering("c7a.16xlarge"), offering("m6a.16xlarge")] {
            assert_eq!(left(&cooling, &free, now), None, "{free:?}");
        }
        assert_eq!(left(&cooling, &other, now + minutes(3)), None);
        // Sizes that were refused long ago do not count.
        cooling.no_capacity(&offering("c6a.4xlarge"), now + minutes(7));
        assert_eq!(left(&cooling, &other, now + minutes(7)), None);
        cooling.launched(&other);
        assert_eq!(left(&cooling, &other, now), None, "there is capacity for the family after all");
    }

    #[test]
    fn a_quota_cools_all_that_share_it() {
        let (mut cooling, now) = (Cooling::new(), Instant::now());
        cooling.no_quota(&offering("c6a.4xlarge"), now);
        assert_eq!(left(&cooling, &offering("m7i-flex.large"), now), Some(3));
        let elsewhere = Offering { region: "us-east-1".to_owned(), ..offering("c6a.4xlarge") };
        for free in [spot("c6a.4xlarge"), offering("x8g.large"), elsewhere] {
            assert_eq!(left(&cooling, &free, now), None, "{free:?}");
        }
        cooling.no_quota(&spot("c6a.4xlarge"), now);
        assert_eq!(left(&cooling, &spot("r7g.large"), now), Some(3));
    }

    #[test]
    fn a_full_subnet_cools_alone() {
        let (mut cooling, now) = (Cooling::new(), Instant::now());
        cooling.no_addresses("subnet-1", now);
        assert_eq!(left(&cooling, &offering("c6a.large"), now), Some(3));
        assert_eq!(cooling.until(&offering("c6a.large"), "subnet-2", now), None);
    }

    #[test]
    fn two_interruptions_within_a_quarter_of_an_hour_are_half_an_hour_without_spot() {
        let (mut cooling, now) = (Cooling::new(), Instant::now());
        let c6a = spot("c6a.large");
        assert!(!cooling.interrupted(now));
        assert!(!cooling.interrupted(now + minutes(16)), "the first one is too long ago");
        assert_eq!(left(&cooling, &c6a, now + minutes(16)), None);
        let second = now + minutes(31);
        assert!(cooling.interrupted(second));
        assert_eq!(left(&cooling, &c6a, second), Some(30));
        assert_eq!(left(&cooling, &offering("c6a.large"), second), None);
        assert_eq!(left(&cooling, &c6a, second + minutes(30)), None);
        assert!(!cooling.interrupted(second + minutes(30)), "counted from anew");
    }
}
