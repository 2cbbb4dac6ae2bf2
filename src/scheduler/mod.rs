//! Decisions, and nothing else: `apply(now, event) -> actions`, `next_deadline()`.
//!
//! Pure: no clock, no I/O, no randomness, ordered maps. What an [`Action`] means in effects is the broker's business.

pub mod action;
pub mod event;

pub use action::{Action, Note};
pub use event::{AttemptEnd, BuilderFault, BuilderFaultKind, Event, RunPhase, Selection};
