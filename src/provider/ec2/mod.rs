//! The `ec2` provider: instances of a CPU that fits, launched when they are needed, and never one left behind.
//!
//! Owns the order of things between us and EC2: what is written down before which call, who looks after which instance,
//! and what is ended when.
//!
//! ```text
//! pure      candidates ─▶ ladder ◀─ cooling    price    reconcile    boot (texts)
//! effects   surroundings ─▶ launch ─▶ estate (one poller, records) ─▶ retire
//! the wire  api: the only place that knows the AWS SDK
//! ```
//!
//! Six things see to it that no instance is left: the broker ends what it launched; every launch is written down before
//! it is asked for, and what a start finds without a record is ended; one look a minute at every region that was ever
//! used; the dead-man on the instance itself; `broker sweep` from any machine; and the tag that says until when an
//! instance is wanted.

pub mod api;
pub mod boot;
pub mod candidates;
pub mod cooling;
mod estate;
#[cfg(test)]
mod fixtures;
mod health;
pub mod image;
mod inventory;
pub mod ladder;
mod launch;
pub mod network;
pub mod permissions;
mod pool;
pub mod price;
mod reconcile;
mod records;
mod retire;
mod surroundings;
pub mod sweep;
mod watch;

pub use estate::{Connect, Estate, WallClock};
pub use pool::Ec2;
