//! Where instances are launched, and who gets in to them: VPC, subnets, security group.
//!
//! Owns what `broker init` makes and what a launch uses of it. [`found`] says what there is, [`plan`] (pure) what follows,
//! [`perform`] does it. How an instance is then reached is the business of whoever dials it.
//!
//! The rules of our security group say in their description whose they are (`nix-broker BROKER-ID`), so that brokers
//! which share a group follow their own addresses and leave each other's alone.

mod address;
mod cidr;
mod found;
mod plan;

pub use address::{ADDRESS_URL, ADDRESS_URL_VARIABLE, AddressError, public_address};
pub use cidr::{Cidr, CidrError};
pub use found::{Found, Given, Group, Network, Rule, Source, Subnet, Tenant, Vpc, is_broker_id};
pub use plan::{Change, Entrant, Place, Plan, Wish, plan, removal};

/// The name of the security group that `broker init` makes.
pub const GROUP_NAME: &str = "nix-broker";
/// On everything that `broker init` made.
pub const NETWORK_TAG: &str = "nix-broker:network";

/// Why there is no network to launch in.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Something has to be made first.
    #[error("there is no {what} in {region} to launch in: `broker init` makes what is missing")]
    Nothing {
        /// What.
        what: &'static str,
        /// Where.
        region: String,
    },
    /// The configuration names what EC2 does not show.
    #[error(
        "EC2 shows no `{0}`, which the pool's `subnets` or `security-groups` name; is the region the right one?"
    )]
    Unknown(String),
    /// The configuration names things that cannot be used together.
    #[error("the pool's `subnets` and `security-groups` are in different VPCs ({}); an instance is in one", quoted(.0))]
    Scattered(Vec<String>),
    /// A group that a person made has the name.
    #[error(
        "security group `{0}` is named `{GROUP_NAME}` but was not made by `broker init`: rename or delete it, or name it \
         in the pool's `security-groups`"
    )]
    Namesake(String),
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// (until the branch lands)
pub async fn find(api: &super::api::Api, spec: &crate::model::Ec2Spec) -> Result<Network, NetworkError> {
    let subnets = api
        .subnets(&[("subnet-id", &spec.subnets)])
        .await
        .map_err(|error| NetworkError::Unknown(error.to_string()))?;
    let subnets = subnets
        .into_iter()
        .map(|subnet| Subnet {
            id: subnet.id,
            vpc: subnet.vpc,
            zone: subnet.zone,
            cidr: subnet.cidr.parse().expect("cidr"),
            free_addresses: subnet.free_addresses,
            is_default: subnet.is_default,
            is_public: subnet.public_ip,
            is_ours: false,
        })
        .collect();
    Ok(Network { vpc: String::new(), subnets, groups: spec.security_groups.clone() })
}
