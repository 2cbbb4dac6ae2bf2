//! The status as a document: the schema of `broker status --json`, and what the command line draws from.
//!
//! Version 1. Fields are only ever added; a change of meaning makes a new version. Durations are seconds, rounded down
//! to milliseconds.

mod load;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::load::LoadView;
use super::CostBy;
use crate::model::{
    BuildPhase, BuildStatus, BuilderState, BuilderStatus, MoneyStatus, PoolStatus, Status, Usd,
};

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
    /// What all of it costs; missing when nothing costs anything.
    #[serde(default)]
    pub money: Option<MoneyView>,
}

/// What all of it costs, in dollars. Estimates; days and months in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MoneyView {
    /// Per hour, now.
    pub rate: f64,
    /// Today.
    pub today: f64,
    /// This month.
    pub month: f64,
    /// Per hour at most.
    pub cap_hour: Option<f64>,
    /// Per day at most.
    pub cap_day: Option<f64>,
    /// Per month at most.
    pub cap_month: Option<f64>,
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
    /// The same while another one of the pool has room.
    #[serde(default)]
    pub surplus_idle_timeout: f64,
    /// The last thing that went wrong here.
    pub last_fault: Option<FaultView>,
    /// Seconds until a launch is tried again.
    pub cooling: Option<f64>,
    /// The cap that keeps it from launching.
    #[serde(default)]
    pub capped: Option<String>,
    /// Dollars per hour that its instances cost now.
    #[serde(default)]
    pub rate: Option<f64>,
    /// Dollars that they have cost today, in UTC.
    #[serde(default)]
    pub today: Option<f64>,
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
    /// `c7a.4xlarge`, where it was bought.
    #[serde(default)]
    pub instance_type: Option<String>,
    /// `spot` or `on-demand`.
    #[serde(default)]
    pub market: Option<String>,
    /// Where it is.
    #[serde(default)]
    pub zone: Option<String>,
    /// Dollars per hour.
    #[serde(default)]
    pub rate: Option<f64>,
    /// Dollars that it has cost.
    #[serde(default)]
    pub cost: Option<f64>,
    /// Why it gets no build, or only one, although it is ready and has slots.
    #[serde(default)]
    pub shortage: Option<String>,
    /// How busy it says it is; missing when it has not said so in the last minute.
    #[serde(default)]
    pub load: Option<LoadView>,
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
    /// Seconds it is expected to run yet; missing where nothing is known of its like.
    #[serde(default)]
    pub remaining: Option<f64>,
    /// Dollars: its share of what its builders cost.
    #[serde(default)]
    pub cost: Option<f64>,
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
            money: status.money.as_ref().map(MoneyView::from),
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
            surplus_idle_timeout: seconds(pool.surplus_idle_timeout),
            last_fault: pool
                .last_fault
                .as_ref()
                .map(|(reason, ago)| FaultView { reason: reason.clone(), ago: seconds(*ago) }),
            cooling: pool.cooling.map(seconds),
            capped: pool.capped.clone(),
            rate: pool.money.map(|(rate, _)| dollars(rate.0)),
            today: pool.money.map(|(_, today)| dollars(today)),
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
        let class = builder.class.as_ref();
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
            instance_type: class.map(|class| class.instance_type.clone()),
            market: class.map(|class| class.market.name().to_owned()),
            zone: class.map(|class| class.zone.clone()),
            rate: class.map(|class| dollars(class.rate.0)),
            cost: class.map(|_| dollars(builder.cost)),
            shortage: builder.shortage.clone(),
            load: builder.load.as_ref().map(|(load, ago)| LoadView::new(load, *ago)),
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
            remaining: build.remaining.map(seconds),
            cost: (build.cost != Usd::ZERO).then(|| dollars(build.cost)),
        }
    }
}

impl From<&MoneyStatus> for MoneyView {
    fn from(money: &MoneyStatus) -> Self {
        Self {
            rate: dollars(money.rate.0),
            today: dollars(money.today),
            month: dollars(money.month),
            cap_hour: money.caps.hour.map(|cap| dollars(cap.0)),
            cap_day: money.caps.day.map(dollars),
            cap_month: money.caps.month.map(dollars),
        }
    }
}

/// Dollars as a number; it has six digits at most after the point.
pub fn dollars(amount: Usd) -> f64 {
    amount.micros() as f64 / 1e6
}

/// Seconds as a number, rounded down to milliseconds.
pub fn seconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1_000.0
}

/// A bill.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CostView {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What it is added up by.
    pub by: CostBy,
    /// Now, today and this month; missing when nothing costs anything.
    pub money: Option<MoneyView>,
    /// Its lines.
    pub rows: Vec<CostRowView>,
}

/// One line of a bill.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CostRowView {
    /// The day, the pool, the instance, the derivation's name.
    pub name: String,
    /// Where, unless it is the name or several.
    pub pool: Option<String>,
    /// What was bought, for an instance.
    pub instance_type: Option<String>,
    /// `spot` or `on-demand`, for an instance.
    pub market: Option<String>,
    /// Instances, or builds.
    pub count: u64,
    /// Seconds in all.
    pub time: f64,
    /// Dollars.
    pub cost: f64,
}

/// What was built.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HistoryView {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The builds that ended last, the very last first.
    pub builds: Vec<PastBuildView>,
}

/// A build that ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PastBuildView {
    /// Its place in the history; the next page is asked for by it.
    #[serde(default)]
    pub row: u64,
    /// When, in seconds since 1970.
    pub ended: u64,
    /// How many seconds ago that was.
    pub ago: f64,
    /// Its number in that run of the broker.
    pub id: u64,
    /// Full path of the derivation.
    pub drv: String,
    /// Its name.
    pub name: String,
    /// Its system.
    pub system: String,
    /// What it required.
    pub features: Vec<String>,
    /// The pool it ran in last.
    pub pool: Option<String>,
    /// The builder.
    pub builder: Option<String>,
    /// The provider's name for its instance.
    pub instance: Option<String>,
    /// `c7a.4xlarge`, where it was bought.
    pub instance_type: Option<String>,
    /// `spot` or `on-demand`.
    pub market: Option<String>,
    /// Seconds without a slot.
    pub waiting: f64,
    /// Seconds in which inputs went to the builder.
    pub uploading: f64,
    /// Seconds on the builder.
    pub building: f64,
    /// Seconds in which outputs came from the builder.
    pub downloading: f64,
    /// Seconds on the builder in the last attempt; nothing when that was never reached.
    #[serde(default)]
    pub took: Option<f64>,
    /// Bytes to the builder from here.
    #[serde(default)]
    pub bytes_up: u64,
    /// Bytes to the builder from other builders.
    #[serde(default)]
    pub bytes_direct: u64,
    /// Bytes from the builder.
    #[serde(default)]
    pub bytes_down: u64,
    /// Attempts.
    pub attempts: u32,
    /// `succeeded`, `failed` or `cancelled`.
    pub outcome: String,
    /// Why it failed.
    pub reason: Option<String>,
    /// Dollars: its share of what its builders cost.
    pub cost: f64,
}

impl Eq for CostView {}
impl Eq for HistoryView {}
