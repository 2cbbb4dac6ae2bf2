//! Where instances are launched, and who gets in to them: VPC, subnets, security group.
//!
//! Owns what `broker init` makes and what a launch uses of it. `found` says what there is, `plan` (pure) what follows,
//! `perform` does it. How an instance is then reached is the business of whoever dials it.
//!
//! The rules of our security group say in their description whose they are (`nix-broker BROKER-ID`), so that brokers
//! which share a group follow their own addresses and leave each other's alone. Builders get to each other by a rule of the
//! group about itself, which is every broker's: EC2 applies it to private addresses alone, within the VPC.

mod address;
mod cidr;
mod found;
mod look;
mod perform;
mod plan;

pub use address::{ADDRESS_URL, ADDRESS_URL_VARIABLE, AddressError, public_address};
pub use cidr::{Cidr, CidrError};
pub use found::{Found, Given, Group, Network, Rule, Source, Subnet, Tenant, Vpc, is_broker_id};
pub use look::{find, look, look_to_remove};
pub use perform::{Entry, admit, entry, perform};
pub use plan::{Change, Entrant, Inside, Place, Plan, Wish, plan, removal};

use std::io::Read;
use std::path::Path;

use super::api::ApiError;

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
    /// EC2 says no.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// A change needs what a change before it should have made.
    #[error("what this depends on was not made")]
    NotMade,
    /// Whoever is told of each change cannot be told any more.
    #[error("cannot report what was done")]
    Report(#[source] std::io::Error),
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// The id of the broker with this state directory, if it ever started and we may read it.
pub fn broker_id(state_dir: &Path) -> Option<String> {
    let mut text = String::new();
    let file = std::fs::File::open(state_dir.join("ec2").join("broker-id")).ok()?;
    file.take(64).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned()).filter(|id| is_broker_id(id))
}
