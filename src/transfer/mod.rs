//! Store paths on their way: inputs from the local store to a builder, outputs from a builder to whoever takes them.
//!
//! Owns what is read from the local store and how, what a builder is known to hold, and where outputs wait. Which
//! builder, over which connection, and when to give up is the broker's.

pub mod beat;
pub mod direct;
pub mod download;
pub mod local_store;
pub mod nar_source;
pub mod presence;
pub mod spool;
pub mod stripes;
pub mod upload;

pub use beat::Beat;
pub use download::{DownloadError, Output, Products};
pub use local_store::{LocalStore, LocalStoreError};
pub use presence::{Claim, InFlight, Presence};
pub use spool::{Spool, SpoolReader, SpoolWriter};
pub use upload::{Cargo, announce, upload};
