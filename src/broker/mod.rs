//! The resident process: the only place that spawns, sleeps and reads the clock.
//!
//! ```text
//! serve ─┬─ driver            owns the fleet: select ─▶ Event ─▶ apply ─▶ perform
//!        ├─ listener ── client tasks     hook_client, operator_client, endpoint_client: one per connection;
//!        │                               verdicts on a thread of their own
//!        ├─ builder_task      one per builder: launch, dial, check, watch, terminate
//!        └─ build_task        one per running attempt: upload, build, download
//! ```
//!
//! Control goes through the driver as events; logs, store paths and outputs go from task to client directly. Stopping
//! runs the other way: the driver ends last, when the scheduler knows that no build and no builder is left.

mod bills;
mod build;
mod build_task;
mod builder_task;
mod collect;
mod direct;
mod driver;
mod endpoint_client;
mod guests;
mod hook_client;
mod lineage;
mod listener;
mod load;
mod log_client;
mod log_spool;
mod logs;
mod metrics;
mod notes;
mod operator_client;
mod origins;
mod remote;
mod roots;
mod serve;
mod shared;
mod signals;
mod stall;
mod throttle;
mod wide;

pub use listener::Activation;
pub use serve::serve;
pub(crate) use shared::{PoolRuntime, Shared, fresh_token};

/// What the clock on the wall says.
pub(crate) fn since_1970() -> std::time::Duration {
    // A clock that stands before 1970 is no clock.
    std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// The whole chain of an error on one line.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    format!("{error:#}")
}
