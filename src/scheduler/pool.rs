//! A pool at run time: its configuration, what was learned about its builders, and the trouble it is in.
//!
//! Which builders it has is in [`super::roster`].

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::event::{BuilderFault, BuilderFaultKind};
use super::idle::Spares;
use super::retry::{self, LAUNCH_FAILURES_TO_WAIT_THROUGH};
use crate::model::ec2::Market;
use crate::model::requirement::CA_DERIVATIONS;
use crate::model::{BuilderFacts, Demand, Feature, HourlyRate, Offer, PoolSpec, ProviderSpec, Slots};

/// More slots than this on one machine are a misreading, not a machine.
const MOST_SLOTS: u32 = 1024;

/// Before a machine is chosen by the number of builds that wait, the queue must have stood still for this long: Nix
/// asks for a graph of builds one by one, and the first of them says nothing of how many come.
const QUIET: Duration = Duration::from_millis(300);
/// But nobody waits longer than this for others.
const LONGEST_GATHERING: Duration = Duration::from_secs(2);

/// A second machine that is taken away within this time means that there is a shortage,
const INTERRUPTION_WINDOW: Duration = Duration::from_secs(15 * 60);
/// and for this time the pool launches none that may be taken away.
const STEADY_TIME: Duration = Duration::from_secs(30 * 60);

/// From a launch until the builder is ready, as long as there was none: an instance that boots,
const EC2_LAUNCH: Duration = Duration::from_secs(60);
/// and one that runs already, or is a process.
const NEAR_LAUNCH: Duration = Duration::from_secs(2);

/// Work that comes to less than this many times of what a launch takes, for one slot, is worth no further slot of a machine
/// that is paid for: it would be paid for its boot, and wait for work for most of its life. Where nothing is paid for,
/// whatever is done sooner by one more is worth it.
const HORIZON: u32 = 4;

/// In which any build counts for a slot of its own.
const LEAST_HORIZON: Duration = Duration::from_millis(1);

/// How long it is believed that nothing is cheaper: spot prices move.
const PRICES_HOLD: Duration = Duration::from_secs(10 * 60);

/// The place of a pool in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PoolIx(pub(super) usize);

/// A pool at run time.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    /// As configured.
    pub(super) spec: PoolSpec,
    /// What builds are matched with: the configured offer and what every Nix may have.
    pub(super) offer: Offer,
    learned: Learned,
    gathering: Option<Gathering>,
    /// What became of its builders that had no work while others had room.
    pub(super) spares: Spares,
    /// When a machine was last taken away.
    interrupted_at: Option<Instant>,
    /// Only machines that stay are launched until then.
    steady_until: Option<Instant>,
    trouble: Trouble,
    /// No machine that would do cost as little as this, and when that was found.
    too_dear: Option<(HourlyRate, Instant)>,
    /// The last thing that went wrong, and when.
    pub(super) last_fault: Option<(String, Instant)>,
}

/// What its builders turned out to be, for planning with those that are not ready.
#[derive(Clone, Copy, Debug, Default)]
struct Learned {
    /// Slots that a machine for few builds has.
    usual: Option<u32>,
    /// Slots that a machine had which was asked to have more.
    most: Option<u32>,
    /// Whole seconds from a launch until the builder is ready, as the last ones took.
    launch: Option<u32>,
}

/// The time in which builds come together before a launch.
#[derive(Clone, Copy, Debug)]
struct Gathering {
    until: Instant,
    latest: Instant,
}

/// What keeps a pool from launching.
#[derive(Clone, Debug, Default)]
struct Trouble {
    /// Rounds of failed launches since a builder was ready.
    failures: u32,
    /// When the last round was counted: failures of builders launched before it belong to it.
    counted_at: Option<Instant>,
    /// The last rounds as readings of the fleet's failure counter, oldest first.
    rounds: VecDeque<u64>,
    /// No launch before this.
    rests_until: Option<Instant>,
    /// Why its last builder was not what the pool promises; holds as long as the rest does.
    unfit: Option<String>,
}

impl Pool {
    pub(super) fn new(spec: PoolSpec) -> Self {
        let mut offer = spec.offer.clone();
        offer.features.insert(Feature::new(CA_DERIVATIONS));
        Self {
            spec,
            offer,
            learned: Learned::default(),
            gathering: None,
            spares: Spares::default(),
            interrupted_at: None,
            steady_until: None,
            trouble: Trouble::default(),
            too_dear: None,
            last_fault: None,
        }
    }

    /// Whether a launch that is told of more builds may bring a larger machine.
    pub(super) fn comes_in_sizes(&self) -> bool {
        matches!((&self.spec.provider, self.spec.slots), (ProviderSpec::Ec2(_), Slots::Auto { .. }))
    }

    /// Whether somebody sends a bill for its machines.
    pub(super) fn is_paid_for(&self) -> bool {
        matches!(self.spec.provider, ProviderSpec::Ec2(_))
    }

    /// Whether the machines that it launches now may be taken away.
    pub(super) fn is_loose(&self, now: Instant) -> bool {
        match &self.spec.provider {
            ProviderSpec::Ec2(spec) => spec.market == Market::Spot && !self.avoids_loose(now),
            ProviderSpec::Local(_) | ProviderSpec::Hosts(_) => false,
        }
    }

    /// Whether it launches no machines that may be taken away, because too many were.
    pub(super) fn avoids_loose(&self, now: Instant) -> bool {
        self.steady_until.is_some_and(|until| now < until)
    }

    /// One of its machines is taken away.
    pub(super) fn was_interrupted(&mut self, now: Instant) {
        let recent = |at: Instant| now.saturating_duration_since(at) <= INTERRUPTION_WINDOW;
        if self.interrupted_at.replace(now).is_some_and(recent) {
            self.steady_until = Some(now + STEADY_TIME);
        }
    }

    /// The slots to plan with for a builder that is not launched yet.
    pub(super) fn expected_slots(&self) -> u32 {
        let configured = self.spec.slots.expected();
        let expected = match self.learned.usual {
            // One build got a small machine; that says nothing of the size that a long queue is planned with.
            Some(usual) if self.comes_in_sizes() => configured.max(usual),
            Some(usual) => usual,
            None => configured,
        };
        self.bounded(expected)
    }

    /// The slots that a further builder is to bring at most before another one is launched beside it. Where machines come in
    /// sizes that is twice the smallest: few machines of some size serve builds that use all processors better than many
    /// small ones, and each costs its disk, its address and its boot.
    pub(super) fn planned_slots(&self) -> u32 {
        let expected = self.expected_slots();
        let several = self.spec.slots.expected().saturating_mul(2);
        if self.comes_in_sizes() { self.bounded(expected.max(several)) } else { expected }
    }

    /// The slots to plan with for a builder that was launched for this.
    pub(super) fn expected_slots_for(&self, demand: Demand) -> u32 {
        if !self.comes_in_sizes() {
            return self.expected_slots();
        }
        self.bounded(demand.builds.max(self.learned.usual.unwrap_or_else(|| self.spec.slots.expected())))
    }

    fn bounded(&self, slots: u32) -> u32 {
        let most = [self.learned.most, self.spec.slots.most()].into_iter().flatten().min();
        slots.min(most.unwrap_or(MOST_SLOTS)).clamp(1, MOST_SLOTS)
    }

    /// A build has come to wait here: a launch may have to be for more than it.
    pub(super) fn gather(&mut self, now: Instant) {
        if self.comes_in_sizes() {
            let latest = self.gathering.map_or(now + LONGEST_GATHERING, |gathering| gathering.latest);
            self.gathering = Some(Gathering { until: latest.min(now + QUIET), latest });
        }
    }

    /// Until when no launch is decided because more builds may come.
    pub(super) fn gathers_until(&self) -> Option<Instant> {
        self.gathering.map(|gathering| gathering.until)
    }

    /// The slots of a builder with these facts.
    pub(super) fn slots_of(&self, facts: &BuilderFacts) -> u32 {
        match self.spec.slots {
            Slots::Fixed(n) => n,
            Slots::Auto { .. } => facts.processors,
        }
        .clamp(1, MOST_SLOTS)
    }

    /// What the pool promises and a builder with these facts has not.
    pub(super) fn unfitness(&self, facts: &BuilderFacts) -> Option<String> {
        let promised = &self.spec.offer;
        let has = |feature: &&Feature| {
            !facts.offer.features.contains(*feature) && !facts.offer.mandatory.contains(*feature)
        };
        let features: BTreeSet<&Feature> = promised.features.union(&promised.mandatory).filter(has).collect();
        let systems: Vec<_> = promised.systems.difference(&facts.offer.systems).collect();
        let mut parts = Vec::new();
        if !systems.is_empty() {
            parts.push(format!("its Nix does not build for {}", quoted(systems)));
        }
        if !features.is_empty() {
            parts.push(format!("its Nix lacks {} in `system-features`", quoted(features)));
        }
        (!parts.is_empty()).then(|| parts.join(", and "))
    }

    /// A builder passed all checks: the pool is well.
    pub(super) fn builder_became_ready(&mut self, slots: u32, demand: Demand) {
        // A machine that is chosen for so many may have a quarter less (`catalog::size`), although there are larger ones.
        if slots < demand.builds - demand.builds / 4 && self.comes_in_sizes() {
            self.learned.most = Some(slots);
        } else {
            self.learned.usual = Some(slots);
            self.learned.most = self.learned.most.filter(|most| slots <= *most);
        }
        self.trouble = Trouble::default();
    }

    /// Whether its builders' Nix builds content-addressed derivations. Answers whether that is news.
    pub(super) fn learn_ca_derivations(&mut self, has: bool) -> bool {
        let feature = Feature::new(CA_DERIVATIONS);
        if has || self.spec.offer.features.contains(&feature) {
            self.offer.features.insert(feature)
        } else {
            self.offer.features.remove(&feature)
        }
    }

    /// A builder of it was ready after this time.
    pub(super) fn learn_launch(&mut self, after: Duration) {
        let seconds = u32::try_from(after.as_secs()).unwrap_or(u32::MAX);
        // Half of it is the latest one: a machine that was put aside wakes sooner than a new one boots.
        let before = self.learned.launch.unwrap_or(seconds);
        self.learned.launch = Some(before.midpoint(seconds));
    }

    /// How long a builder will take that has to be launched.
    pub(super) fn launch_takes(&self) -> Duration {
        match (self.learned.launch, &self.spec.provider) {
            (Some(seconds), _) => Duration::from_secs(u64::from(seconds)),
            (None, ProviderSpec::Ec2(_)) => EC2_LAUNCH,
            (None, ProviderSpec::Local(_) | ProviderSpec::Hosts(_)) => NEAR_LAUNCH,
        }
    }

    /// The time in which what waits is to be done by the slots that it is planned with: at least that of a launch, before which
    /// no other slot comes, unless the pool's operator has his own idea.
    pub(super) fn horizon(&self) -> Duration {
        let times = if self.is_paid_for() { HORIZON } else { 1 };
        let horizon = self.spec.launch_horizon.unwrap_or_else(|| self.launch_takes().saturating_mul(times));
        // In no time at all nothing would be done, by however many slots.
        horizon.max(LEAST_HORIZON)
    }

    /// A builder launched at that moment failed. `counter` is the fleet's failure counter, already advanced.
    pub(super) fn builder_failed(
        &mut self,
        now: Instant,
        launched_at: Instant,
        fault: &BuilderFault,
        counter: u64,
    ) {
        self.last_fault = Some((fault.reason.clone(), now));
        let trouble = &mut self.trouble;
        // Ten launches refused together are one refusal: only a builder launched since tells something new.
        let is_news = trouble.counted_at.is_none_or(|counted_at| launched_at > counted_at);
        if is_news {
            trouble.failures = trouble.failures.saturating_add(1);
            trouble.counted_at = Some(now);
            trouble.rounds.push_back(counter);
            if trouble.rounds.len() > LAUNCH_FAILURES_TO_WAIT_THROUGH {
                trouble.rounds.pop_front();
            }
        }
        match fault.kind {
            BuilderFaultKind::Unfit => {
                // A machine of the wrong kind does not become the right one in seconds, and each look costs a boot.
                trouble.unfit = Some(fault.reason.clone());
                self.rest(now, retry::LONGEST_REST);
            }
            BuilderFaultKind::LaunchFailed
            | BuilderFaultKind::OverBudget
            | BuilderFaultKind::BootFailed
            | BuilderFaultKind::ConnectionLost => {
                let rest = retry::rest_after(trouble.failures);
                if is_news {
                    self.rest(now, rest);
                }
            }
        }
    }

    /// A builder that had been ready was lost: nothing says that the next launch fails, but it need not be at once.
    pub(super) fn builder_was_lost(&mut self, now: Instant, reason: &str) {
        self.last_fault = Some((reason.to_owned(), now));
        self.rest(now, retry::rest_after(1));
    }

    fn rest(&mut self, now: Instant, rest: Duration) {
        let until = now + rest;
        let current = self.trouble.rests_until.get_or_insert(until);
        *current = until.max(*current);
    }

    /// No launch before this.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        self.trouble.rests_until
    }

    /// Nothing that would do costs as little as this, as was just found.
    pub(super) fn found_too_dear(&mut self, now: Instant, at_most: HourlyRate) {
        self.too_dear = Some((at_most, now));
    }

    /// Whether this much is surely too little for any of its machines.
    pub(super) fn is_too_dear(&self, at_most: HourlyRate) -> bool {
        self.too_dear.is_some_and(|(rate, _)| at_most <= rate)
    }

    /// When something that keeps it from launching is over.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        [self.rests_until(), self.gathers_until()].into_iter().flatten().min()
    }

    /// Ends a rest and a gathering that are over.
    pub(super) fn wake(&mut self, now: Instant) {
        if self.trouble.rests_until.is_some_and(|until| until <= now) {
            self.trouble.rests_until = None;
            self.trouble.unfit = None;
        }
        let is_recent = |at: Instant| now.saturating_duration_since(at) < PRICES_HOLD;
        self.too_dear = self.too_dear.filter(|(_, at)| is_recent(*at));
        self.gathering = self.gathering.filter(|gathering| now < gathering.until);
    }

    /// Why the pool cannot be trusted with a build, unless it has a builder that proves otherwise.
    pub(super) fn unfit(&self) -> Option<&str> {
        self.trouble.unfit.as_deref()
    }

    /// Whether a build that waits since the failure counter had this reading has waited long enough here.
    pub(super) fn is_given_up(&self, waits_since: u64) -> bool {
        let rounds = &self.trouble.rounds;
        let waited_through = rounds.len() == LAUNCH_FAILURES_TO_WAIT_THROUGH
            && rounds.front().is_some_and(|first| *first > waits_since);
        waited_through || self.trouble.unfit.is_some()
    }

    /// Whether there is any build that has waited long enough here.
    pub(super) fn may_be_given_up(&self) -> bool {
        self.trouble.unfit.is_some() || self.trouble.rounds.len() == LAUNCH_FAILURES_TO_WAIT_THROUGH
    }

    /// What to say to a build that is given up.
    pub(super) fn complaint(&self) -> String {
        let fault = self.last_fault.as_ref().map_or("no builder could be launched", |(reason, _)| reason);
        match &self.trouble.unfit {
            Some(unfit) => format!("pool `{}` is not what it promises: {unfit}", self.spec.name),
            None => {
                format!(
                    "pool `{}` failed to launch {} times in a row: {fault}",
                    self.spec.name, self.trouble.failures
                )
            }
        }
    }
}

fn quoted<T: std::fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| format!("`{item}`")).collect::<Vec<_>>().join(", ")
}
