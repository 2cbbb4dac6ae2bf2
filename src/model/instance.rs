//! An instance as a provider reports it, and what a builder was found to be once it answered.

use super::{InstanceId, Offer, PoolName};

/// The provider's thing behind a builder, as observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// What the provider calls it.
    pub id: InstanceId,
    /// The pool it was launched for.
    pub pool: PoolName,
}

/// What the checks found on a running builder; only after them it is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuilderFacts {
    /// Systems and features its Nix has (`system`, `extra-platforms`, `system-features`).
    pub offer: Offer,
    /// What its `nproc` said.
    pub processors: u32,
    /// Its daemon's version, when it says.
    pub nix_version: Option<String>,
}
