//! Who ran from when to when, and for how much.
//!
//! Owns the bill: what a test's last assertions are about.

use std::collections::BTreeMap;
use std::time::Duration;

use nix_broker::model::ec2::Market;
use nix_broker::model::{HourlyRate, Usd};

use super::FakeEc2;
use super::account::Account;

/// What is paid for one instance with its volume, up to now or its end.
#[derive(Clone, Debug)]
pub(crate) struct Bill {
    pub(crate) id: String,
    pub(crate) region: String,
    pub(crate) instance_type: String,
    pub(crate) market: Market,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) client_token: String,
    /// From when to when its compute was paid for; the last may be open.
    pub(crate) ran: Vec<(Duration, Option<Duration>)>,
    /// All of that together.
    pub(crate) compute_time: Duration,
    /// How long its volume was there.
    pub(crate) volume_time: Duration,
    /// Whether anything of it is still paid for.
    pub(crate) is_open: bool,
    pub(crate) compute: Usd,
    pub(crate) volume: Usd,
}

/// gp3, per GiB and hour, in millionths of a dollar: 0.08 a month.
const VOLUME_MICROS: u64 = 110;

impl FakeEc2 {
    /// One line for each instance there ever was, oldest first.
    pub(crate) fn bills(&self) -> Vec<Bill> {
        self.with_account(|account, now| account.bills(now))
    }

    /// All of it.
    pub(crate) fn cost(&self) -> Usd {
        self.bills().iter().map(|bill| bill.compute + bill.volume).sum()
    }

    /// Volumes that are there, whatever they belong to.
    pub(crate) fn volumes(&self) -> Vec<String> {
        self.with_account(|account, _| {
            let there = account.volumes.values().filter(|volume| volume.deleted.is_none());
            there.map(|volume| volume.id.clone()).collect()
        })
    }
}

impl Account {
    fn bills(&self, now: Duration) -> Vec<Bill> {
        let bill = |instance: &super::FakeInstance| {
            let span = |(from, to): &(Duration, Option<Duration>)| to.unwrap_or(now).saturating_sub(*from);
            let compute_time: Duration = instance.ran.iter().map(span).sum();
            let ended = instance.terminated_at.unwrap_or(now);
            let volume_time = ended.saturating_sub(instance.launched_at);
            let size = instance.request.get("BlockDeviceMapping.1.Ebs.VolumeSize");
            let size = size.and_then(|size| size.parse::<u64>().ok()).unwrap_or(8);
            let kind = self.kind(&instance.instance_type).unwrap();
            let rate = match instance.market {
                Market::OnDemand => kind.price,
                Market::Spot => self.spot_price(kind, &instance.zone),
            };
            Bill {
                id: instance.id.clone(),
                region: instance.region.clone(),
                instance_type: instance.instance_type.clone(),
                market: instance.market,
                tags: instance.tags.clone(),
                client_token: instance.client_token.clone(),
                ran: instance.ran.clone(),
                compute_time,
                volume_time,
                is_open: instance.terminated_at.is_none(),
                compute: HourlyRate(Usd::from_micros(rate)).over(compute_time),
                volume: HourlyRate(Usd::from_micros(VOLUME_MICROS * size)).over(volume_time),
            }
        };
        self.instances.values().map(bill).collect()
    }
}
