//! The status as a document: the schema of `broker status --json`, and what the command line draws from.
//!
//! Version 1. Fields are only ever added; a change of meaning makes a new version. Durations are seconds, rounded down
//! to milliseconds.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{BuildPhase, BuildStatus, BuilderState, BuilderStatus, PoolStatus, Status};

/// Version of the document.
pub const SCHEMA: u32 = 1;

/// The whole document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StatusView {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Version of the broker.
    pub version: String,
    /// Seconds since it started.
    pub uptime: f64,
    /// Whether new builds are accepted.
    pub accepting: bool,
    /// Pools in the order of the configuration.
    pub pools: Vec<PoolView>,
    /// Builders by id.
    pub builders: Vec<BuilderView>,
    /// Live builds by id, then the most recently ended.
    pub builds: Vec<BuildView>,
    /// Builds that have ended since the broker started.
    pub ended: EndedView,
}

/// How builds ended, counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct EndedView {
    /// Well.
    pub succeeded: u64,
    /// Badly.
    pub failed: u64,
    /// Because their clients went away.
    pub cancelled: u64,
}

impl Eq for StatusView {}

/// One pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PoolView {
    /// Its name.
    pub name: String,
    /// Builders that are ready.
    pub ready: u32,
    /// Builders on their way to ready.
    pub starting: u32,
    /// Builders on their way out.
    pub ending: u32,
    /// Builders at most.
    pub max_builders: u32,
    /// Slots in use.
    pub slots_used: u32,
    /// Slots of ready builders.
    pub slots: u32,
    /// Builds that wait for a slot here.
    pub queued: u32,
    /// Seconds an idle builder is kept.
    pub idle_timeout: f64,
    /// The last thing that went wrong here.
    pub last_fault: Option<FaultView>,
    /// Seconds until a launch is tried again.
    pub cooling: Option<f64>,
}

/// Something that went wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FaultView {
    /// What.
    pub reason: String,
    /// Seconds ago.
    pub ago: f64,
}

/// One builder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BuilderView {
    /// `b-3`.
    pub id: String,
    /// Its pool.
    pub pool: String,
    /// The provider's name for its instance.
    pub instance: Option<String>,
    /// `launching`, `booting`, `ready`, `draining` or `terminating`.
    pub state: String,
    /// What it does on its way to ready.
    #[serde(default)]
    pub progress: Option<String>,
    /// Seconds in that state.
    pub in_state: f64,
    /// Seconds since it was launched.
    pub age: f64,
    /// Slots in use.
    pub slots_used: u32,
    /// Slots it has; 0 until it is ready.
    pub slots: u32,
    /// When it is idle: seconds until it ends.
    pub ends_in: Option<f64>,
}

/// One build.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BuildView {
    /// The number of `#12`.
    pub id: u64,
    /// Full path of the derivation.
    pub drv: String,
    /// Its name.
    pub name: String,
    /// `accepted`, `queued`, `uploading`, `building`, `downloading`, `succeeded`, `failed` or `cancelled`.
    pub phase: String,
    /// Builds ahead of it while it is queued.
    pub ahead: Option<u32>,
    /// Why it failed.
    pub reason: Option<String>,
    /// Seconds in that phase; for an ended one, since it ended.
    pub in_phase: f64,
    /// Seconds since it was accepted.
    pub age: f64,
    /// The pool it waits for or runs in.
    pub pool: Option<String>,
    /// The builder it runs on or ran on.
    pub builder: Option<String>,
    /// Attempts so far.
    pub attempts: u32,
}

impl StatusView {
    /// The document of a picture.
    pub fn new(status: &Status, uptime: Duration) -> Self {
        Self {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: seconds(uptime),
            accepting: status.accepting,
            pools: status.pools.iter().map(PoolView::from).collect(),
            builders: status.builders.iter().map(BuilderView::from).collect(),
            builds: status.builds.iter().map(BuildView::from).collect(),
            ended: EndedView {
                succeeded: status.ended.succeeded,
                failed: status.ended.failed,
                cancelled: status.ended.cancelled,
            },
        }
    }
}

impl From<&PoolStatus> for PoolView {
    fn from(pool: &PoolStatus) -> Self {
        Self {
            name: pool.name.to_string(),
            ready: pool.ready,
            starting: pool.starting,
            ending: pool.ending,
            max_builders: pool.max_builders,
            slots_used: pool.slots_used,
            slots: pool.slots,
            queued: pool.queued,
            idle_timeout: seconds(pool.idle_timeout),
            last_fault: pool
                .last_fault
                .as_ref()
                .map(|(reason, ago)| FaultView { reason: reason.clone(), ago: seconds(*ago) }),
            cooling: pool.cooling.map(seconds),
        }
    }
}

impl From<&BuilderStatus> for BuilderView {
    fn from(builder: &BuilderStatus) -> Self {
        let state = match builder.state {
            BuilderState::Launching => "launching",
            BuilderState::Booting => "booting",
            BuilderState::Ready => "ready",
            BuilderState::Draining => "draining",
            BuilderState::Terminating => "terminating",
        };
        Self {
            id: builder.id.to_string(),
            pool: builder.pool.to_string(),
            instance: builder.instance.as_ref().map(ToString::to_string),
            state: state.to_owned(),
            progress: builder.progress.clone(),
            in_state: seconds(builder.in_state),
            age: seconds(builder.age),
            slots_used: builder.slots_used,
            slots: builder.slots,
            ends_in: builder.ends_in.map(seconds),
        }
    }
}

impl From<&BuildStatus> for BuildView {
    fn from(build: &BuildStatus) -> Self {
        let mut ahead = None;
        let mut failure = None;
        let phase = match &build.phase {
            BuildPhase::Accepted => "accepted",
            BuildPhase::Queued { ahead: n } => {
                ahead = Some(*n);
                "queued"
            }
            BuildPhase::Uploading => "uploading",
            BuildPhase::Building => "building",
            BuildPhase::Downloading => "downloading",
            BuildPhase::Succeeded => "succeeded",
            BuildPhase::Failed { reason } => {
                failure = Some(reason.clone());
                "failed"
            }
            BuildPhase::Cancelled => "cancelled",
        };
        Self {
            id: build.id.0,
            drv: build.drv.to_string(),
            name: build.drv.name().to_owned(),
            phase: phase.to_owned(),
            ahead,
            reason: failure,
            in_phase: seconds(build.in_phase),
            age: seconds(build.age),
            pool: build.pool.as_ref().map(ToString::to_string),
            builder: build.builder.as_ref().map(ToString::to_string),
            attempts: build.attempts,
        }
    }
}

fn seconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1_000.0
}
