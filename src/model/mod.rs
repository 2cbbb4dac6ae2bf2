//! The nouns of the product: every other module speaks in these.
//!
//! Owns the vocabulary and its invariants; knows nothing of bytes on a wire, of time, of SSH or of any provider.
//! One word per thing:
//!
//! - [`Derivation paths and store paths`](store_path): what Nix names things by.
//! - [`Requirement`]: system and features a derivation needs; [`Offer`]: what a pool or a builder has.
//! - [`BuildRequest`]: one `try` of Nix. Our reply is a [`Verdict`]; once accepted it is a *build* with an [`Outcome`].
//! - [`PoolSpec`]: a configured kind of builder. A *builder* is one machine as we manage it, an *instance* the
//!   provider's thing behind it. A *slot* is one unit of capacity on a builder, a *lease* the right to use one.
//! - [`Status`]: the read-only picture of all of it.

pub mod day;
pub mod delivery;
pub mod ec2;
pub mod ids;
pub mod instance;
pub mod load;
pub mod money;
pub mod outcome;
pub mod pool;
pub mod prediction;
pub mod record;
pub mod request;
pub mod requirement;
pub mod status;
pub mod store_path;

pub use day::UtcDay;
pub use delivery::{Delivery, Share};
pub use ec2::{Ec2Spec, Market};
pub use ids::{BuildId, BuilderId, ClientId, InstanceId, LeaseId, PoolName};
pub use instance::{BuilderFacts, Demand, Ending, Instance, InstanceClass};
pub use load::{Bytes, Hundredths, Load, Space, Throughput};
pub use money::{Caps, HourlyRate, Spent, Usd};
pub use outcome::{Blame, Failure, FailureKind, Outcome};
pub use pool::{DeclineRule, HostSpec, LocalSpec, PoolSpec, ProviderSpec, Slots};
pub use prediction::{Basis, Prediction};
pub use record::{BuildRecord, InstanceRecord, Phases, Place, Record, Traffic};
pub use request::{BuildInputs, BuildRequest, BuildSettings, Nature, Verdict};
pub use requirement::{Feature, Inherited, Misfit, Offer, Requirement, System};
pub use status::{
    BuildPhase, BuildStatus, BuilderState, BuilderStatus, EndedCounts, MoneyStatus, PoolStatus, Status,
};
pub use store_path::{DrvPath, OutputName, StorePath, StorePathError};
