//! Decisions, and nothing else: `apply(now, event) -> actions`, `next_deadline()`.
//!
//! Pure: no clock, no I/O, no randomness, ordered maps. What an [`Action`] means in effects is the broker's business;
//! the same events at the same moments give the same actions, so a log of events is a replay.
//!
//! # A build
//!
//! ```text
//! Accepted ──inputs known──▶ Queued ──a slot is free──▶ Running{builder, lease}
//!     │                       │  ▲                          │
//!     │                       │  └── tried again ───────────┤  builder lost, transient failure, builder stopped
//!     │                       │                             │
//!     └───────────────────────┴──────────▶ ended ◀──────────┘  Succeeded, Failed, Cancelled
//! ```
//!
//! A build in the queue ends there when its client goes away, when no pool can build it after all, and when every pool
//! that could has failed to give a builder three times in a row since it waits: Nix never waits for ever. A running one
//! ends only with its attempt: a client that goes away has it aborted, and the slot is free when it has stopped.
//!
//! # A builder
//!
//! ```text
//! Launching ──instance──▶ Booting ──all checks passed──▶ Ready ──too old, drained, stopped──▶ Draining
//!     │                      │                             │                                     │ no lease left,
//!     │ fault, deadline      │ fault, deadline, unfit      │ idle, lost                          │ deadline, lost
//!     └──────────────────────┴─────────────▶ Terminating ◀─┴─────────────────────────────────────┘
//!                                                 │  asked again every minute
//!                                                gone
//! ```
//!
//! An instance that an earlier broker launched enters as `Booting`, with the age that it has.
//!
//! A ready builder says how busy it is: what it is short of counts as slots that are not free (`headroom`, `disk`).
//! Only a ready builder gets builds; every other state has a deadline, or ends with its last lease. The leases of a lost
//! builder are released by the ends of their attempts, for which nobody waits before ending it.
//!
//! # Invariants
//!
//! A build is in exactly one state, and is finished exactly once. A lease belongs to one running build, and a builder
//! has no more of them than slots. A pool has no more builders than its maximum, those included that are not gone yet.
//! A build waits only while no slot it could have is free; one that uses all processors also for a builder that starts, or
//! for a larger one that can be launched. `tests` checks them after every event.

pub mod action;
pub mod event;

mod build;
mod builder;
mod disk;
mod economics;
mod fleet;
mod growth;
mod headroom;
mod history;
mod idle;
mod money;
mod on_adoption;
mod on_build;
mod on_builder;
mod on_interruption;
mod on_money;
mod on_operator;
mod placement;
mod poison;
mod pool;
mod queue;
mod rank;
mod retry;
mod roster;
mod scaling;
mod status;
mod trail;
mod verdict;
mod work;
mod worth;

#[cfg(test)]
mod tests;

pub use action::{Action, Note};
pub use event::{Adoption, AttemptEnd, BuilderFault, BuilderFaultKind, Event, RunPhase, Selection};
pub use fleet::Fleet;
pub use verdict::{Answer, Offers, PoolOffer};
