//! Decisions, and nothing else: `apply(now, event) -> actions`, `next_deadline()`.
//!
//! Pure: no clock, no I/O, no randomness, ordered maps. What an [`Action`] means in effects is the broker's business;
//! the same events at the same moments give the same actions, so a log of events is a replay.

pub mod action;
pub mod event;

mod build;
mod builder;
mod fleet;
mod history;
mod on_build;
mod on_builder;
mod on_operator;
mod placement;
mod pool;
mod queue;
mod retry;
mod roster;
mod scaling;
mod status;
mod trail;
mod verdict;

#[cfg(test)]
mod tests;

pub use action::{Action, Note};
pub use event::{AttemptEnd, BuilderFault, BuilderFaultKind, Event, RunPhase, Selection};
pub use fleet::Fleet;
pub use verdict::{Answer, Offers, PoolOffer};
