//! One builder: where it is in its life, who leases it, and when it must be looked at again.
//!
//! Transitions only. Which of them is taken, and what follows for builds and pools, is decided by its callers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use super::disk::Disk;
use super::event::BuilderFault;
use super::money::{Tab, cost_of};
use super::pool::PoolIx;
use crate::model::ec2::Market;
use crate::model::{
    BuildId, BuilderId, BuilderState, Demand, Ending, HourlyRate, Instance, LeaseId, Load, Usd,
};

/// A termination the provider has not confirmed in this time is asked for again.
pub(super) const TERMINATE_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// A stopped builder's attempts have this long to end by themselves.
pub(super) const STOP_GRACE: Duration = Duration::from_secs(10);
/// After an attempt that lost the builder: time for the news of its loss to arrive, before it gets another build.
pub(super) const SUSPICION: Duration = Duration::from_secs(5);
/// A builder that kept at its pool's minimum is looked at again no sooner than this.
const SHORTEST_IDLE_CHECK: Duration = Duration::from_secs(1);
/// Different builds that fail on a builder in a row, with nothing else in between, before it is drained.
pub(super) const UNHEALTHY_STREAK: usize = 5;

/// One machine as we manage it.
#[derive(Clone, Debug)]
pub(super) struct Builder {
    pub(super) id: BuilderId,
    pub(super) pool: PoolIx,
    pub(super) launched_at: Instant,
    /// Since when we know of it: its launch, unless an earlier broker launched it.
    pub(super) known_since: Instant,
    /// Whether an earlier broker launched it.
    pub(super) is_adopted: bool,
    /// Whether an operator asked for it, to have it for the idle window at least.
    pub(super) is_ordered: bool,
    /// What it was launched for.
    pub(super) demand: Demand,
    /// Whether it may be taken away; a guess until there is an instance.
    pub(super) is_loose: bool,
    /// The provider's thing behind it, as observed.
    pub(super) instance: Option<Instance>,
    /// Slots in use. Invariant: never more than the slots it was ready with.
    pub(super) leases: BTreeMap<LeaseId, BuildId>,
    /// Slots that some leases take beyond one each.
    extra: BTreeMap<LeaseId, u32>,
    /// Slots it has; 0 until it is ready.
    pub(super) slots: u32,
    /// Whether its Nix builds content-addressed derivations; only a ready one has been asked.
    pub(super) has_ca_derivations: bool,
    pub(super) life: Life,
    /// What a launch may cost, under a cap.
    pub(super) at_most: Option<HourlyRate>,
    /// What of its cost is in the ledger.
    pub(super) booked: Usd,
    tab: Tab,
    /// What it does on its way to ready.
    pub(super) progress: Option<String>,
    /// How busy it said it is, and when.
    pub(super) load: Option<(Load, Instant)>,
    /// Since when it is in that state.
    pub(super) since: Instant,
    /// Builds that were told of its start, and hear how it goes on.
    pub(super) audience: Vec<BuildId>,
    failing_builds: BTreeSet<BuildId>,
}

/// Where a builder is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// The provider was asked.
    Launching {
        /// Ready by then, or given up.
        deadline: Instant,
    },
    /// The instance exists.
    Booting {
        /// Ready by then, or given up.
        deadline: Instant,
    },
    /// Takes builds.
    Ready {
        /// Too old for new builds from then on.
        lifetime_deadline: Instant,
        /// Without leases.
        idle: Option<Idle>,
        /// Takes no builds until then.
        suspect_until: Option<Instant>,
        /// Takes none beside another until then: it is short of memory.
        short_until: Option<Instant>,
        /// The disk of its store.
        disk: Disk,
    },
    /// Takes no new builds; ends when the last one has.
    Draining {
        /// Why it ends.
        why: EndReason,
        /// Ends by then even with leases.
        deadline: Option<Instant>,
    },
    /// The provider was asked to end it.
    Terminating {
        /// Why it ends.
        why: EndReason,
        /// When to ask again.
        again_at: Instant,
        /// How often it was asked again.
        repeats: u32,
    },
}

/// A ready builder without work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Idle {
    /// Since when.
    pub(super) since: Instant,
    /// When to see whether it may end.
    pub(super) look_at: Instant,
}

/// Why a builder ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EndReason {
    /// No build for this long.
    Idle(Duration),
    /// No build for this long, and another one of its pool has room.
    Spare(Duration),
    /// Older than its pool allows.
    TooOld(Duration),
    /// An operator let it run empty.
    Drained,
    /// An operator ended it.
    Stopped,
    /// An earlier broker launched more than there may be.
    Surplus,
    /// Its provider takes it back.
    Interrupted(String),
    /// Its provider may take it back.
    Endangered(String),
    /// It has no work, and what it costs is needed for another.
    Yields,
    /// Nothing is started any more on what is paid for.
    Capped(String),
    /// This many builds in a row failed on it.
    Unhealthy(usize),
    /// Its disk is full.
    Full,
    /// The broker ends.
    Shutdown,
    /// Something went wrong with it.
    Fault(BuilderFault),
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle(timeout) => write!(f, "idle for {} s", timeout.as_secs()),
            Self::Spare(timeout) => {
                write!(f, "idle for {} s, and another builder of its pool has room", timeout.as_secs())
            }
            Self::TooOld(lifetime) => write!(f, "older than {} s", lifetime.as_secs()),
            Self::Drained => f.write_str("drained by an operator"),
            Self::Stopped => f.write_str("stopped by an operator"),
            Self::Yields => f.write_str("it is idle, and the cap per hour leaves nothing for what waits"),
            Self::Surplus => f.write_str("an earlier broker launched more than `max-builders`"),
            Self::Interrupted(reason) | Self::Endangered(reason) | Self::Capped(reason) => {
                f.write_str(reason)
            }
            Self::Unhealthy(streak) => write!(f, "{streak} builds in a row failed on it"),
            Self::Full => f.write_str("its disk is full"),
            Self::Shutdown => f.write_str("the broker is shutting down"),
            Self::Fault(fault) => f.write_str(&fault.reason),
        }
    }
}

impl EndReason {
    /// Whether the instance may be put aside for the next time: only when nothing but work is missing.
    pub(super) fn ending(&self) -> Ending {
        match self {
            Self::Idle(_) | Self::Spare(_) | Self::Yields => Ending::Idle,
            Self::TooOld(_)
            | Self::Drained
            | Self::Stopped
            | Self::Surplus
            | Self::Interrupted(_)
            | Self::Endangered(_)
            | Self::Capped(_)
            | Self::Unhealthy(_)
            | Self::Full
            | Self::Shutdown
            | Self::Fault(_) => Ending::Final,
        }
    }
}

/// Slots with which a build that uses all processors is well served: few go faster with more.
const ENOUGH_FOR_BIG: u32 = 16;

/// What a build that uses all processors gets of a machine with so many slots: half of it, or enough where that is more; a
/// quarter is left for others.
pub(super) fn room_of_big(slots: u32) -> u32 {
    let most = slots - slots.div_ceil(4);
    (slots / 2).max(most.min(ENOUGH_FOR_BIG)).max(1)
}

impl Builder {
    pub(super) fn launching(
        id: BuilderId,
        pool: PoolIx,
        now: Instant,
        timeout: Duration,
        demand: Demand,
        is_loose: bool,
    ) -> Self {
        Self {
            id,
            pool,
            launched_at: now,
            known_since: now,
            is_adopted: false,
            is_ordered: false,
            demand,
            is_loose,
            instance: None,
            leases: BTreeMap::new(),
            extra: BTreeMap::new(),
            slots: 0,
            has_ca_derivations: false,
            life: Life::Launching { deadline: now + timeout },
            at_most: None,
            booked: Usd::ZERO,
            tab: Tab::default(),
            progress: None,
            load: None,
            since: now,
            audience: Vec::new(),
            failing_builds: BTreeSet::new(),
        }
    }

    /// One that an earlier broker launched; it may well be ready, which its task finds out.
    pub(super) fn adopted(
        id: BuilderId,
        pool: PoolIx,
        now: Instant,
        age: Duration,
        timeout: Duration,
        instance: Instance,
    ) -> Self {
        let demand = Demand { builds: 1, on_demand_only: false };
        let mut builder = Self::launching(id, pool, now, timeout, demand, false);
        // A clock that began after the launch cannot say when it was.
        builder.launched_at = now.checked_sub(age).unwrap_or(now);
        builder.is_adopted = true;
        builder.boot(now, instance);
        // What it has cost so far was read from the history, where it is split by days.
        builder.booked = builder.cost(now);
        builder
    }

    fn enter(&mut self, now: Instant, life: Life) {
        self.life = life;
        self.since = now;
    }

    pub(super) fn is_starting(&self) -> bool {
        matches!(self.life, Life::Launching { .. } | Life::Booting { .. })
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.life, Life::Ready { .. })
    }

    pub(super) fn is_terminating(&self) -> bool {
        matches!(self.life, Life::Terminating { .. })
    }

    pub(super) fn is_yielding(&self) -> bool {
        matches!(self.life, Life::Terminating { why: EndReason::Yields, .. })
    }

    /// Builds that run here.
    pub(super) fn company(&self) -> u32 {
        u32::try_from(self.leases.len()).unwrap_or(u32::MAX)
    }

    /// Slots in use, or kept for a build that gets them when others have ended.
    pub(super) fn used(&self) -> u32 {
        let wanted = self.company().saturating_add(self.extra.values().sum::<u32>());
        wanted.min(self.slots.max(self.company()))
    }

    /// Slots that one more build takes. What is not free yet of those of one that uses all processors it gets as builds
    /// beside it end: it need not wait until so much is free at once.
    pub(super) fn room_for(&self, is_big: bool) -> u32 {
        if is_big { room_of_big(self.slots) } else { 1 }
    }

    /// Slots that one more build which uses all processors gets at once.
    pub(super) fn room_of_next_big(&self) -> u32 {
        self.free().min(self.room_for(true))
    }

    /// Whether one more build gets all the slots at once that it takes.
    pub(super) fn has_room_for(&self, is_big: bool) -> bool {
        self.free() >= self.room_for(is_big)
    }

    /// Whether a build may be started on it.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.life, Life::Ready { suspect_until: None, .. }) && self.free() > 0
    }

    /// When it must be looked at again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.life {
            Life::Launching { deadline } | Life::Booting { deadline } => Some(*deadline),
            Life::Ready { lifetime_deadline, idle, suspect_until, short_until, disk } => {
                let idle = idle.map(|idle| idle.look_at);
                let waits = [idle, *suspect_until, *short_until, disk.deadline()];
                waits.into_iter().flatten().chain([*lifetime_deadline]).min()
            }
            Life::Draining { deadline, .. } => *deadline,
            Life::Terminating { again_at, .. } => Some(*again_at),
        }
    }

    /// The provider has made the instance.
    pub(super) fn boot(&mut self, now: Instant, instance: Instance) {
        if let Some(class) = &instance.class {
            self.is_loose = class.market == Market::Spot;
        }
        self.instance = Some(instance);
        if let Life::Launching { deadline } = self.life {
            self.enter(now, Life::Booting { deadline });
        }
    }

    /// All checks passed.
    pub(super) fn become_ready(&mut self, now: Instant, slots: u32, idle: Duration, lifetime: Duration) {
        self.slots = slots;
        self.enter(
            now,
            Life::Ready {
                lifetime_deadline: self.launched_at + lifetime,
                idle: Some(Idle { since: now, look_at: now + idle }),
                suspect_until: None,
                short_until: None,
                disk: Disk::Unknown,
            },
        );
    }

    /// What it costs, as long as there is an instance that somebody sends a bill for.
    pub(super) fn rate(&self) -> HourlyRate {
        let class = self.instance.as_ref().and_then(|instance| instance.class.as_ref());
        class.map(|class| class.rate).unwrap_or_default()
    }

    /// What it may cost, as long as the provider has not said what it does cost.
    pub(super) fn unknown_price(&self) -> Option<HourlyRate> {
        if self.instance.is_some() || self.is_ready() { None } else { self.at_most }
    }

    /// What it has cost.
    pub(super) fn cost(&self, now: Instant) -> Usd {
        let has_instance = self.instance.is_some();
        if has_instance {
            cost_of(self.rate(), now.saturating_duration_since(self.launched_at))
        } else {
            Usd::ZERO
        }
    }

    /// What the build under this lease has cost.
    pub(super) fn cost_under(&self, now: Instant, lease: LeaseId) -> Usd {
        self.tab.so_far(now, self.rate(), lease)
    }

    /// A build more, and so many slots more in use.
    pub(super) fn grant(&mut self, now: Instant, lease: LeaseId, build: BuildId, room: u32) {
        self.tab.open(now, self.rate(), lease);
        self.leases.insert(lease, build);
        if room > 1 {
            self.extra.insert(lease, room - 1);
        }
        if let Life::Ready { idle, .. } = &mut self.life {
            *idle = None;
        }
    }

    /// A build less. Answers what its build has cost.
    pub(super) fn release(&mut self, now: Instant, lease: LeaseId, look_after: Duration) -> Usd {
        let cost = self.tab.close(now, self.rate(), lease);
        self.extra.remove(&lease);
        let was_leased = self.leases.remove(&lease).is_some();
        if let Life::Ready { idle, .. } = &mut self.life
            && was_leased
            && self.leases.is_empty()
        {
            *idle = Some(Idle { since: now, look_at: now + look_after });
        }
        cost
    }

    /// It is idle, but kept: looked at again after this time.
    pub(super) fn keep(&mut self, now: Instant, look_after: Duration) {
        if let Life::Ready { idle: Some(idle), .. } = &mut self.life {
            idle.look_at = now + look_after.max(SHORTEST_IDLE_CHECK);
        }
    }

    /// Since when it has no work, of a ready builder.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        if let Life::Ready { idle, .. } = &self.life { idle.map(|idle| idle.since) } else { None }
    }

    /// An attempt says that it is lost: no further build until that is known or disproved. Answers how many builds
    /// have failed in a row; those that one loss takes with it count as one.
    pub(super) fn suspect(&mut self, now: Instant, build: BuildId) -> usize {
        if let Life::Ready { suspect_until, .. } = &mut self.life
            && suspect_until.replace(now + SUSPICION).is_none()
        {
            return self.record_bad_attempt(build);
        }
        0
    }

    /// It was heard of, or nothing bad was heard for long enough.
    pub(super) fn trust(&mut self) {
        if let Life::Ready { suspect_until, .. } = &mut self.life {
            *suspect_until = None;
        }
    }

    /// An attempt ended without a fault of the builder.
    pub(super) fn record_good_attempt(&mut self) {
        self.failing_builds.clear();
    }

    /// An attempt failed in a way that may be the builder's fault. Answers how many builds have, in a row.
    pub(super) fn record_bad_attempt(&mut self, build: BuildId) -> usize {
        self.failing_builds.insert(build);
        self.failing_builds.len()
    }

    /// No new builds from here on.
    pub(super) fn drain(&mut self, now: Instant, why: EndReason, deadline: Option<Instant>) {
        if self.is_terminating() {
            return;
        }
        if let Life::Draining { why: first, deadline: current } = &mut self.life {
            // The first reason stays, but whoever is in a hurry is obeyed.
            if deadline.is_some() {
                *first = why;
                *current = match (*current, deadline) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (None, only) | (only, None) => only,
                };
            }
            return;
        }
        self.enter(now, Life::Draining { why, deadline });
    }

    /// The provider is asked to end it.
    pub(super) fn terminate(&mut self, now: Instant, why: EndReason) {
        self.enter(now, Life::Terminating { why, again_at: now + TERMINATE_AGAIN_AFTER, repeats: 0 });
    }

    /// The provider is asked once more. Answers how often that was.
    pub(super) fn terminate_again(&mut self, now: Instant) -> u32 {
        match &mut self.life {
            Life::Terminating { again_at, repeats, .. } => {
                *again_at = now + TERMINATE_AGAIN_AFTER;
                *repeats = repeats.saturating_add(1);
                *repeats
            }
            Life::Launching { .. } | Life::Booting { .. } | Life::Ready { .. } | Life::Draining { .. } => 0,
        }
    }

    /// The state as people see it.
    pub(super) fn state(&self) -> BuilderState {
        match self.life {
            Life::Launching { .. } => BuilderState::Launching,
            Life::Booting { .. } => BuilderState::Booting,
            Life::Ready { .. } => BuilderState::Ready,
            Life::Draining { .. } => BuilderState::Draining,
            Life::Terminating { .. } => BuilderState::Terminating,
        }
    }
}
