//! A pool on EC2 as the configuration describes it, validated: in AWS's own words.

use std::path::PathBuf;
use std::time::Duration;

use super::money::HourlyRate;

/// Settings of the `ec2` provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ec2Spec {
    /// The profile of `~/.aws/config` to use; `None` is what every AWS tool would use.
    pub profile: Option<String>,
    /// Where to launch, in this order. Empty is the one region that every AWS tool would use.
    pub regions: Vec<String>,
    /// How instances are bought first.
    pub market: Market,
    /// Instance types, best first among equal sizes; empty means that they are found by what the pool's builders must offer.
    pub types: Vec<String>,
    /// Take only processors whose own name is the pool's `gccarch-`, not their supersets.
    pub exact: bool,
    /// An instance whose compute costs more is not launched; its volume and public address are not counted here.
    pub max_price: Option<HourlyRate>,
    /// What they boot.
    pub image: ImageSpec,
    /// Subnets to launch in; empty means those of the VPC that `broker init` tagged, else the default VPC's.
    pub subnets: Vec<String>,
    /// Security groups; empty means the one that `broker init` made.
    pub security_groups: Vec<String>,
    /// How the broker reaches them.
    pub reach: Reach,
    /// The root volume.
    pub disk: DiskSpec,
    /// What happens to a builder that was idle for the idle window.
    pub idle_action: IdleAction,
    /// How long a builder goes on when it hears nothing of the broker, before it ends itself.
    pub lease: Duration,
    /// Where what was built outlives the builders.
    pub cache: Option<Box<CacheSpec>>,
}

/// A binary cache next to the builders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSpec {
    /// A store of Nix's, such as `s3://bucket?region=eu-central-1`.
    pub url: String,
    /// Whose signatures builders trust there.
    pub public_key: String,
    /// The file with the key that builders sign with what they put there; without it they only take.
    pub secret_key_file: Option<PathBuf>,
}

/// How an instance is bought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Market {
    /// At the list price.
    OnDemand,
    /// At the spot price, until EC2 wants it back. Where there is none, on-demand.
    Spot,
}

impl Market {
    /// `on-demand` or `spot`.
    pub fn name(self) -> &'static str {
        match self {
            Self::OnDemand => "on-demand",
            Self::Spot => "spot",
        }
    }
}

/// What an instance boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSpec {
    /// The newest of the owner's images that matches.
    Newest {
        /// AWS account that publishes them.
        owner: String,
        /// With `*` as the wildcard, as DescribeImages takes it.
        name: String,
    },
    /// The newest that `broker image` has uploaded.
    Own,
    /// This AMI.
    Id(String),
}

/// How the broker reaches an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// At its public IPv4 address.
    Public,
    /// At its private address: the broker is in the same network, or routed to it.
    Private,
    /// Through a command whose standard input and output are the connection; `%h` is the private address, `%i` the
    /// instance, `%p` the port.
    Proxy(String),
}

/// The root volume (gp3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// GiB.
    pub size: u32,
    /// MiB/s.
    pub throughput: u32,
    /// I/O operations a second.
    pub iops: u32,
}

/// What happens to a builder that was idle for the idle window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdleAction {
    /// It is terminated.
    Terminate,
    /// It is stopped, and keeps its store; started again before a new one is launched.
    Stop {
        /// Terminated after this long.
        max_stopped: Duration,
    },
    /// The same, with its memory on its encrypted root volume.
    Hibernate {
        /// Terminated after this long.
        max_stopped: Duration,
    },
}
