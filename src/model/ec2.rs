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
    /// With which role AWS itself ends an instance that is older than it may be; `None` leaves that to everybody else.
    pub expiry_role: Option<RoleArn>,
}

/// A role of IAM by its whole name: `arn:aws:iam::123456789012:role/nix-broker-expiry`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleArn(String);

/// The separate worlds of AWS, as an ARN names them, with how the names of their regions begin.
const PARTITIONS: [(&str, &str); 3] = [("aws-cn", "cn-"), ("aws-us-gov", "us-gov-"), ("aws", "")];

impl RoleArn {
    /// The role of this name; `None` for what is no name of a role (IAM User Guide, "IAM ARNs").
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(6, ':');
        let mut next = || parts.next().unwrap_or_default();
        let (arn, partition, service, region, account, role) =
            (next(), next(), next(), next(), next(), next());
        let is_account = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/_+=,.@-".contains(&byte);
        let is_role = role.strip_prefix("role/").is_some_and(|name| {
            (1..=512).contains(&name.len()) && name.bytes().all(is_plain) && !name.ends_with('/')
        });
        let is_known = PARTITIONS.iter().any(|(known, _)| *known == partition);
        (arn == "arn" && is_known && service == "iam" && region.is_empty() && is_account && is_role)
            .then(|| Self(text.to_owned()))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The partition it is in: `aws`, `aws-cn`, `aws-us-gov`.
    pub fn partition(&self) -> &str {
        self.0.split(':').nth(1).unwrap_or_default()
    }

    /// Whether something in this region can use it: no role is known in two partitions.
    pub fn is_known_in(&self, region: &str) -> bool {
        partition_of(region) == self.partition()
    }
}

/// The partition of a region.
pub fn partition_of(region: &str) -> &'static str {
    let known = PARTITIONS.iter().find(|(_, prefix)| region.starts_with(prefix));
    known.map_or("aws", |(partition, _)| partition)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_name_of_a_role_is_one() {
        for good in [
            "arn:aws:iam::123456789012:role/nix-broker-expiry",
            "arn:aws-cn:iam::123456789012:role/builds/of/nix+x=y,z.@_-",
            "arn:aws-us-gov:iam::123456789012:role/r",
        ] {
            assert_eq!(RoleArn::parse(good).map(|role| role.as_str().to_owned()).as_deref(), Some(good));
        }
        let long = format!("arn:aws:iam::123456789012:role/{}", "r".repeat(513));
        for bad in [
            "",
            "nix-broker-expiry",
            "arn:aws:iam::123456789012:user/somebody",
            "arn:aws:iam::123456789012:role/",
            "arn:aws:iam::123456789012:role/a b",
            "arn:aws:iam::123456789012:role/a:b",
            "arn:aws:iam:us-east-1:123456789012:role/a",
            "arn:aws:iam::ACCOUNT:role/nix-broker-expiry",
            "arn:aws-moon:iam::123456789012:role/a",
            "arn:aws:sts::123456789012:assumed-role/a/b",
            &long,
        ] {
            assert_eq!(RoleArn::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_role_is_known_in_the_regions_of_its_partition() {
        let role =
            |partition: &str| RoleArn::parse(&format!("arn:{partition}:iam::123456789012:role/r")).unwrap();
        for (partition, region) in
            [("aws", "eu-central-1"), ("aws-cn", "cn-north-1"), ("aws-us-gov", "us-gov-west-1")]
        {
            assert_eq!(role(partition).partition(), partition);
            for (other, _) in PARTITIONS {
                assert_eq!(role(other).is_known_in(region), other == partition, "{other} {region}");
            }
        }
    }
}
