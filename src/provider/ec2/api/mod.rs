//! EC2 as a handful of calls with types of our own: the only module that names an AWS crate.
//!
//! Owns requests and answers: what is sent, how long it may take, what is sent again, what a refusal means. Knows nothing
//! of builders, pools or journals; that is the provider around it.
//!
//! | concern | where |
//! |---|---|
//! | credentials, time limits, repeats | `client` |
//! | run, observe, tag, stop, start, terminate | `instances`, `order`, `read` |
//! | images, types, offerings, spot prices | `describe` |
//! | images of our own, and their snapshots | `images`, `snapshots` |
//! | what is in a snapshot | `blocks` |
//! | what AWS does by itself, later | `schedules` |
//! | VPCs, subnets, security groups, volumes | `network` |
//! | the default VPC made and unmade, regions | `vpc` |
//! | may we? | `dry_run`, `action` |
//! | what went wrong, and what to do | `error`, `classify`, `failure` |
//! | EC2 in this process | `wire` |

mod action;
mod blocks;
mod classify;
mod client;
mod describe;
mod dry_run;
mod encode;
mod error;
mod failure;
mod images;
mod instances;
mod network;
mod order;
mod read;
mod schedules;
mod snapshots;
mod vpc;
mod wire;

pub use action::Action;
pub use blocks::{BLOCK_SIZE, SnapshotOrder};
pub(super) use classify::named_permission;
pub use client::Api;
pub use describe::{Image, SpotOffer, TypeFacts};
pub use dry_run::{DryRunAbout, Permission};
pub use error::{ApiError, ErrorClass};
pub use images::{BootMode, ImageOrder, OwnImage};
pub use instances::PerInstance;
pub use network::{Ingress, SecurityGroup, Subnet, Volume, Vpc, Zone};
pub use order::{RunDisk, RunOrder};
pub use read::{InstanceState, Observed};
pub use schedules::ScheduleOrder;
pub use snapshots::Snapshot;
pub use wire::{Wire, WireFuture, WireLost, WireRequest, WireResponse};
