//! What a launch would get: the provider's own choice of a machine, in one zone that has every type.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::machine::Power;
use super::random::Random;
use crate::catalog::{Catalog, InstanceType};
use crate::model::ec2::Market;
use crate::model::{Demand, Ec2Spec, HourlyRate, InstanceClass, PoolSpec, ProviderSpec, Slots, Usd};
use crate::provider::ec2::candidates::{candidates, market};
use crate::provider::ec2::cooling::Cooling;
use crate::provider::ec2::ladder::{Place, Terms, ladder};
use crate::provider::ec2::price;
use crate::scheduler::{BuilderFault, BuilderFaultKind};

/// From RunInstances to running, and from there until every check has passed: facts/ec2.md, 2.5.
const TO_RUNNING: (Duration, Duration) = (Duration::from_secs(8), Duration::from_secs(20));
const TO_READY: (Duration, Duration) = (Duration::from_secs(32), Duration::from_secs(50));
/// For machines that are there already, or are processes.
const TO_CONNECT: Duration = Duration::from_secs(1);
/// The one place of the simulation.
const ZONE: &str = "simulated";

/// A machine that was bought.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// What it can do.
    pub power: Power,
    /// What it is and costs; `None` where nobody sends a bill.
    pub class: Option<InstanceClass>,
    /// From the launch until it runs.
    pub to_running: Duration,
    /// From then until it is ready.
    pub to_ready: Duration,
}

impl Machine {
    /// What it costs.
    pub fn rate(&self) -> HourlyRate {
        self.class.as_ref().map_or(HourlyRate::default(), |class| class.rate)
    }
}

/// What spot costs in the one zone.
#[derive(Clone, Debug)]
pub struct Prices {
    spot: BTreeMap<(String, String), HourlyRate>,
    place: Place,
}

impl Prices {
    /// Spot at so many percent of the on-demand price.
    pub fn new(spot_percent: u32) -> Self {
        let spot_price = |known: &InstanceType| {
            let micros = known.price.0.micros().saturating_mul(u64::from(spot_percent)) / 100;
            ((ZONE.to_owned(), known.name.clone()), HourlyRate(Usd::from_micros(micros)))
        };
        let offered: BTreeSet<String> = Catalog::get().types().map(|known| known.name.clone()).collect();
        Self {
            spot: Catalog::get().types().map(spot_price).collect(),
            place: Place {
                region: Catalog::get().region().to_owned(),
                zone: ZONE.to_owned(),
                subnet: "subnet-simulated".to_owned(),
                offered,
            },
        }
    }

    /// The machine that a launch in this pool gets, or why it gets none.
    pub fn buy(
        &self,
        pool: &PoolSpec,
        demand: Demand,
        at_most: Option<HourlyRate>,
        now: Instant,
        random: &mut Random,
    ) -> Result<Machine, BuilderFault> {
        match &pool.provider {
            ProviderSpec::Ec2(spec) => {
                let mut machine = self.instance(pool, spec, demand, at_most, now)?;
                machine.to_running = random.between(TO_RUNNING.0, TO_RUNNING.1);
                machine.to_ready = random.between(TO_READY.0, TO_READY.1);
                Ok(machine)
            }
            ProviderSpec::Local(_) | ProviderSpec::Hosts(_) => Ok(Machine {
                power: Power::plain(pool.slots.expected()),
                class: None,
                to_running: TO_CONNECT,
                to_ready: TO_CONNECT,
            }),
        }
    }

    fn instance(
        &self,
        pool: &PoolSpec,
        spec: &Ec2Spec,
        demand: Demand,
        at_most: Option<HourlyRate>,
        now: Instant,
    ) -> Result<Machine, BuilderFault> {
        let fault = |kind, reason| BuilderFault { kind, reason };
        let found = candidates(spec, &pool.offer, pool.slots, &demand, None)
            .map_err(|error| fault(BuilderFaultKind::LaunchFailed, error.to_string()))?;
        let terms =
            Terms { market: market(spec, &demand), max_price: spec.max_price, spot_prices: &self.spot };
        let places = std::slice::from_ref(&self.place);
        let rungs = ladder(&found, places, &terms, &Cooling::new(), now)
            .map_err(|error| fault(BuilderFaultKind::LaunchFailed, error.to_string()))?;
        let within = |rate: HourlyRate| at_most.is_none_or(|most| price::running(rate, spec) <= most);
        let Some(rung) = rungs.into_iter().find(|rung| within(rung.rate)) else {
            let reason = "no machine that would do costs as little as is left of the cap per hour";
            return Err(fault(BuilderFaultKind::OverBudget, reason.to_owned()));
        };
        Ok(Machine {
            power: Power::of(rung.instance_type),
            class: Some(price::class(&rung, spec)),
            to_running: Duration::ZERO,
            to_ready: Duration::ZERO,
        })
    }
}

/// A machine of this type that is always there, bought on demand with the volume and address that pools have unless
/// told otherwise.
pub fn standing(known: &InstanceType, surcharge: HourlyRate) -> Machine {
    Machine {
        power: Power::of(known),
        class: Some(InstanceClass {
            instance_type: known.name.clone(),
            market: Market::OnDemand,
            zone: ZONE.to_owned(),
            rate: known.price + surcharge,
            stopped_rate: HourlyRate::default(),
        }),
        to_running: Duration::ZERO,
        to_ready: Duration::ZERO,
    }
}

/// Slots of a machine of this pool.
pub(super) fn slots(pool: &PoolSpec, power: Power) -> u32 {
    match pool.slots {
        Slots::Fixed(slots) => slots,
        Slots::Auto { .. } => power.vcpus,
    }
}
