//! The `ec2` provider: instances of a CPU that fits, launched when they are needed, and never one left behind.
//!
//! Owns the order of things between us and EC2: what is written down before which call, who looks after which instance,
//! and what is ended when.
//!
//! ```text
//! pure      candidates ─▶ ladder ◀─ cooling    price    reconcile    expiry    boot (texts)
//! effects   surroundings ─▶ launch ─▶ estate (one poller, records) ─▶ retire
//! the wire  api: the only place that knows the AWS SDK
//! ```
//!
//! Six things see to it that no instance is left: the broker ends what it launched; every launch is written down before
//! it is asked for, and what a start finds without a record is ended; one look a minute at every region that was ever
//! used; the dead-man on the instance itself; `broker sweep` from any machine, by the tag that says until when an
//! instance is wanted; and, where a pool names a role for it, AWS itself.
//!
//! Without the cargo feature `ec2` only the pure choice of a machine is left: `broker simulate` makes it too.

#[cfg(feature = "ec2")]
pub mod api;
#[cfg(feature = "ec2")]
pub mod boot;
pub mod candidates;
pub mod cooling;
#[cfg(feature = "ec2")]
mod estate;
#[cfg(feature = "ec2")]
mod expiry;
#[cfg(test)]
mod fixtures;
#[cfg(feature = "ec2")]
mod health;
#[cfg(feature = "ec2")]
pub mod image;
#[cfg(feature = "ec2")]
mod inventory;
pub mod ladder;
#[cfg(feature = "ec2")]
mod launch;
#[cfg(feature = "ec2")]
pub mod network;
#[cfg(feature = "ec2")]
pub mod permissions;
#[cfg(feature = "ec2")]
mod pool;
pub mod price;
pub mod quota;
#[cfg(feature = "ec2")]
mod reconcile;
#[cfg(feature = "ec2")]
mod records;
#[cfg(feature = "ec2")]
mod retire;
#[cfg(feature = "ec2")]
mod surroundings;
#[cfg(feature = "ec2")]
pub mod sweep;
#[cfg(feature = "ec2")]
mod tags;
#[cfg(feature = "ec2")]
mod watch;

#[cfg(feature = "ec2")]
pub use estate::{Connect, Estate, WallClock};
#[cfg(feature = "ec2")]
pub use pool::Ec2;
