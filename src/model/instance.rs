//! An instance as a provider reports it, and what a builder was found to be once it answered.

use std::collections::BTreeSet;

use super::ec2::Market;
use super::{HourlyRate, InstanceId, Offer, PoolName};

/// The provider's thing behind a builder, as observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// What the provider calls it.
    pub id: InstanceId,
    /// The pool it was launched for.
    pub pool: PoolName,
    /// What it is and costs; `None` where nobody sends a bill.
    pub class: Option<InstanceClass>,
}

/// What was bought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceClass {
    /// `c6a.4xlarge`.
    pub instance_type: String,
    /// How it was bought.
    pub market: Market,
    /// `eu-central-1a`.
    pub zone: String,
    /// Everything that is billed by the hour while it runs: compute, volume, public address. An estimate.
    pub rate: HourlyRate,
    /// What is still billed while it is stopped: the volume.
    pub stopped_rate: HourlyRate,
}

/// What a launch is for: decides how large and how it is bought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Slots that what waits for this builder would take at once; at least 1. A build takes one, unless it uses all
    /// processors.
    pub builds: u32,
    /// No machine that may be taken away: a build among them has lost one already.
    pub on_demand_only: bool,
}

/// Why an instance ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing is wrong with it, there is just no work: it may be put aside for the next time.
    Idle,
    /// It must be gone.
    Final,
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
    /// What its CPU can do, in the kernel's words (`avx2`); empty where the kernel does not say.
    pub cpu_flags: BTreeSet<String>,
}
