//! A launch as it is written down before it is asked for.
//!
//! Owns everything RunInstances is told, and nothing else: the same order gives the same bytes on the wire, so a broker
//! that was killed in between can send it again under the same token.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::ec2::Market;
use crate::model::{HourlyRate, Usd};

/// One instance, wanted once: EC2 gives the same instance for the same token and order.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunOrder {
    /// Where.
    pub region: String,
    /// At most 64 ASCII characters, of this order alone.
    pub client_token: String,
    /// `ami-...`
    pub image: String,
    /// The image's root device (`/dev/xvda`).
    pub root_device: String,
    /// `c6a.4xlarge`
    pub instance_type: String,
    /// Decides the zone.
    pub subnet: String,
    /// The subnet's zone, for messages.
    pub zone: String,
    /// Their ids.
    pub security_groups: Vec<String>,
    /// The text; under 16 KB. Carries a host key: never shown.
    pub user_data: String,
    /// How it is bought.
    #[serde(with = "MarketForm")]
    pub market: Market,
    /// The most a spot instance may cost; none is the on-demand price.
    #[serde(with = "rate_form")]
    pub max_price: Option<HourlyRate>,
    /// Give it a public IPv4 address.
    pub public_ip: bool,
    /// This private address and no other.
    pub private_ip: Option<String>,
    /// The root volume.
    pub disk: RunDisk,
    /// Instance store volumes that have to be mapped to be there (NVMe ones need not be).
    pub instance_store: u32,
    /// The type's processors can run virtual machines, and shall.
    pub nested_virt: bool,
    /// It may be hibernated later.
    pub hibernation: bool,
    /// On the instance and everything that is made with it.
    pub tags: BTreeMap<String, String>,
}

/// A gp3 root volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunDisk {
    /// GiB.
    pub size: u32,
    /// MiB/s.
    pub throughput: u32,
    /// I/O operations a second.
    pub iops: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Market", rename_all = "kebab-case")]
enum MarketForm {
    OnDemand,
    Spot,
}

/// A rate as whole micro-dollars an hour.
mod rate_form {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{HourlyRate, Usd};

    #[allow(clippy::ref_option, reason = "serde calls it with a reference to the field")]
    pub(super) fn serialize<S: Serializer>(rate: &Option<HourlyRate>, to: S) -> Result<S::Ok, S::Error> {
        rate.map(|rate| rate.0.micros()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<HourlyRate>, D::Error> {
        let micros = Option::<u64>::deserialize(from)?;
        Ok(micros.map(|micros| HourlyRate(Usd::from_micros(micros))))
    }
}

impl RunOrder {
    /// `c6a.4xlarge (spot) in eu-central-1b`, for a person.
    pub fn summary(&self) -> String {
        let market = match self.market {
            Market::OnDemand => "on-demand",
            Market::Spot => "spot",
        };
        format!("{} ({market}) in {}", self.instance_type, self.zone)
    }
}

impl fmt::Debug for RunOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunOrder")
            .field("client_token", &self.client_token)
            .field("region", &self.region)
            .field("instance_type", &self.instance_type)
            .field("zone", &self.zone)
            .field("subnet", &self.subnet)
            .field("market", &self.market)
            .field("image", &self.image)
            .field("user_data", &format_args!("{} bytes", self.user_data.len()))
            .finish_non_exhaustive()
    }
}
