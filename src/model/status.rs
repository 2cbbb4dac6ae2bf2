//! The read-only picture of the whole broker: what people and programs see.
//!
//! The scheduler makes it, the broker publishes it, `ipc` gives it a serialised form. Times are durations before the
//! picture was taken, so that a reader needs no clock in common with us.

use std::time::Duration;

use super::{BuildId, BuilderId, Caps, DrvPath, HourlyRate, InstanceClass, InstanceId, Load, PoolName, Usd};

/// Everything, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// In the order of the configuration.
    pub pools: Vec<PoolStatus>,
    /// By id.
    pub builders: Vec<BuilderStatus>,
    /// Live builds by id, then the most recently ended.
    pub builds: Vec<BuildStatus>,
    /// Builds that have ended since the broker started.
    pub ended: EndedCounts,
    /// Whether new builds are accepted.
    pub accepting: bool,
    /// What all of it costs; `None` when there is nothing that costs anything.
    pub money: Option<MoneyStatus>,
}

/// How builds ended, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndedCounts {
    /// Well.
    pub succeeded: u64,
    /// Badly.
    pub failed: u64,
    /// Because their clients went away.
    pub cancelled: u64,
}

/// What all of it costs. Estimates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MoneyStatus {
    /// Now.
    pub rate: HourlyRate,
    /// Since the day began, in UTC.
    pub today: Usd,
    /// Since the month began, in UTC.
    pub month: Usd,
    /// At most.
    pub caps: Caps,
}

/// One pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    /// Its name.
    pub name: PoolName,
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
    /// How long an idle builder is kept.
    pub idle_timeout: Duration,
    /// The same while another one has room.
    pub surplus_idle_timeout: Duration,
    /// The last thing that went wrong, and how long ago.
    pub last_fault: Option<(String, Duration)>,
    /// No launch is tried for this long.
    pub cooling: Option<Duration>,
    /// The cap that keeps it from launching.
    pub capped: Option<String>,
    /// What its instances cost now, and have cost today; `None` where nobody sends a bill.
    pub money: Option<(HourlyRate, Usd)>,
}

/// One builder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuilderStatus {
    /// Its id.
    pub id: BuilderId,
    /// Its pool.
    pub pool: PoolName,
    /// The provider's instance, once there is one.
    pub instance: Option<InstanceId>,
    /// Where it is in its life.
    pub state: BuilderState,
    /// What it does on its way to ready.
    pub progress: Option<String>,
    /// How long it has been in that state.
    pub in_state: Duration,
    /// Since it was launched.
    pub age: Duration,
    /// Slots in use.
    pub slots_used: u32,
    /// Slots it has; 0 until it is ready.
    pub slots: u32,
    /// When it is idle: how long until it ends.
    pub ends_in: Option<Duration>,
    /// What was bought; `None` where nobody sends a bill.
    pub class: Option<InstanceClass>,
    /// What it has cost.
    pub cost: Usd,
    /// What it is short of, so that it gets no build, or only one, although it is ready and has slots.
    pub shortage: Option<String>,
    /// How busy it said it is, and how long ago; `None` when it has not said so lately.
    pub load: Option<(Load, Duration)>,
}

/// Where a builder is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BuilderState {
    /// The provider was asked for an instance.
    Launching,
    /// The instance exists; its sshd and Nix are awaited and checked.
    Booting,
    /// Takes builds.
    Ready,
    /// Takes no new builds; ends when the last one has.
    Draining,
    /// The provider was asked to end it.
    Terminating,
}

/// One build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildStatus {
    /// Its id.
    pub id: BuildId,
    /// What is built.
    pub drv: DrvPath,
    /// Where it is.
    pub phase: BuildPhase,
    /// How long in that phase; for an ended one, since it ended.
    pub in_phase: Duration,
    /// Since it was accepted.
    pub age: Duration,
    /// The pool it waits for or runs in.
    pub pool: Option<PoolName>,
    /// The builder it runs on or ran on.
    pub builder: Option<BuilderId>,
    /// Attempts so far.
    pub attempts: u32,
    /// How long it is expected to be built yet, once it runs; nothing where nothing is known of its like.
    pub remaining: Option<Duration>,
    /// Its share of what its builders cost.
    pub cost: Usd,
    /// Why it is where it is: decisions in order, oldest first.
    pub why: Vec<String>,
}

/// Where a build is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildPhase {
    /// Nix has not sent the inputs yet.
    Accepted,
    /// Waits for a slot, this many ahead of it.
    Queued {
        /// Builds that come before it.
        ahead: u32,
    },
    /// Inputs are on their way to the builder.
    Uploading,
    /// The builder builds it.
    Building,
    /// Outputs are on their way back.
    Downloading,
    /// Ended well.
    Succeeded,
    /// Ended badly.
    Failed {
        /// Why.
        reason: String,
    },
    /// Its client went away.
    Cancelled,
}
