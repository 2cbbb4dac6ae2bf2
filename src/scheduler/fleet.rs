//! The whole state, and the way of an event through it: dispatch, then settle what it made possible.
//!
//! What each event does is beside it: builds in [`super::on_build`], builders in [`super::on_builder`], operators and
//! the end in [`super::on_operator`]; launches are in [`super::growth`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::action::{Action, Note};
use super::build::{Build, Run, Stage};
use super::builder::Builder;
use super::event::{Event, RunPhase};
use super::history::History;
use super::money::Ledger;
use super::placement::{self, Placement};
use super::poison::Poison;
use super::pool::{Pool, PoolIx};
use super::queue::Queue;
use super::roster::Roster;
use super::trail::Why;
use super::verdict::{Offers, PoolOffer};
use super::worth::{End, Ends};
use crate::model::{BuildId, BuilderId, LeaseId, PoolSpec};

/// No configured duration counts for more: an `Instant` far enough in the future cannot be represented.
const LONGEST_DURATION: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Builds that are told about launches, at most per pool: those behind them wait for something else first.
const TOLD_OF_LAUNCHES: usize = 512;

/// All builders, all builds and the queue.
#[derive(Clone, Debug)]
pub struct Fleet {
    pub(super) began: Instant,
    pub(super) now: Instant,
    pub(super) mode: Mode,
    pub(super) pools: Vec<Pool>,
    pub(super) roster: Roster,
    pub(super) builds: BTreeMap<BuildId, Build>,
    pub(super) queue: Queue,
    pub(super) poison: Poison,
    pub(super) ends: Ends,
    pub(super) history: History,
    pub(super) ledger: Ledger,
    /// What is wanted since the event came in.
    pub(super) actions: Vec<Action>,
    /// Advances with every failed launch, so that a build can tell which ones it has waited through.
    pub(super) failure_counter: u64,
    /// Builds whose Nix has not sent the inputs yet.
    pub(super) awaiting_inputs: usize,
    /// Builds that were queued for the first time since the event came in.
    pub(super) newly_queued: Vec<BuildId>,
    /// Whether a launch failed since the event came in, or a build was queued for a pool that is unfit.
    pub(super) hope_was_lost: bool,
    offers: Arc<Offers>,
    has_begun: bool,
    pub(super) last_builder: u64,
    last_lease: u64,
    pub(super) last_ticket: u64,
}

/// How far the broker is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mode {
    /// Not at all.
    Accepting,
    /// What was accepted is finished.
    Finishing,
    /// What still runs is stopped.
    Forced,
    /// Nothing is left.
    Exited,
}

impl Fleet {
    /// A fleet without builders. Pools with a minimum get theirs at the first `apply`, for which
    /// [`next_deadline`](Self::next_deadline) asks at once.
    pub fn new(pools: Vec<PoolSpec>, now: Instant) -> Self {
        let pools: Vec<Pool> = pools.into_iter().map(|spec| Pool::new(within_bounds(spec))).collect();
        let (roster, ends) = (Roster::new(pools.len()), Ends::new(pools.len()));
        let offers = Offers::of(true, pools.iter().map(|pool| PoolOffer::of(pool, false)));
        Self {
            began: now,
            now,
            mode: Mode::Accepting,
            pools,
            roster,
            builds: BTreeMap::new(),
            queue: Queue::default(),
            poison: Poison::default(),
            ends,
            history: History::default(),
            ledger: Ledger::default(),
            actions: Vec::new(),
            failure_counter: 0,
            awaiting_inputs: 0,
            newly_queued: Vec::new(),
            hope_was_lost: false,
            offers: Arc::new(offers),
            has_begun: false,
            last_builder: 0,
            last_lease: 0,
            last_ticket: 0,
        }
    }

    /// Takes in one fact, and answers with the effects that are wanted, in order.
    ///
    /// Late, duplicate and stale facts are harmless. A `now` before an earlier one counts as that one.
    pub fn apply(&mut self, now: Instant, event: Event) -> Vec<Action> {
        self.now = self.now.max(now);
        self.has_begun = true;
        match event {
            Event::Accepted { build, request } => self.on_accepted(build, request),
            Event::InputsMadeOn { build, builders } => self.on_inputs_made_on(build, builders),
            Event::InputsKnown(build) => self.on_inputs_known(build),
            Event::ClientGone(build) => self.on_client_gone(build),
            Event::Progressed { build, lease, phase } => self.on_progressed(build, lease, phase),
            Event::Delivered { build, lease, delivery } => self.on_delivered(build, lease, *delivery),
            Event::Fetched { build, lease, bytes } => self.on_fetched(build, lease, bytes),
            Event::AttemptEnded { build, lease, end } => self.on_attempt_ended(build, lease, end),
            Event::Adopted(found) => self.on_adopted(found),
            Event::Launched { builder, instance } => self.on_launched(builder, instance),
            Event::Progress { builder, text } => self.on_progress(builder, &text),
            Event::Ready { builder, facts } => self.on_ready(builder, &facts),
            Event::Load { builder, load } => self.on_load(builder, load),
            Event::Collected(builder) => self.on_collected(builder),
            Event::Lost { builder, fault } => self.on_lost(builder, fault),
            Event::Interrupted { builder, within, why } => self.on_interrupted(builder, within, &why),
            Event::Endangered { builder, why } => self.on_endangered(builder, why),
            Event::Warned { builder, why } => self.on_warned(builder, &why),
            Event::Gone(builder) => self.on_gone(builder),
            Event::Clock { day, aside } => self.on_clock(day, aside),
            Event::StartRequested(pool) => self.on_start_requested(&pool),
            Event::DrainRequested(selection) => self.on_drain_requested(selection),
            Event::StopRequested(selection) => self.on_stop_requested(selection),
            Event::ShutdownRequested => self.on_shutdown_requested(),
            Event::ShutdownForced => self.on_shutdown_forced(),
            Event::Tick => {}
        }
        self.settle();
        std::mem::take(&mut self.actions)
    }

    /// When to apply [`Event::Tick`] if nothing else happens before.
    pub fn next_deadline(&self) -> Option<Instant> {
        if !self.has_begun && self.pools.iter().any(|pool| pool.spec.min_builders > 0) {
            return Some(self.now);
        }
        if self.mode == Mode::Exited {
            return None;
        }
        let pools = self.pools.iter().filter_map(Pool::next_deadline).min();
        [self.roster.next_deadline(), pools, self.impatient_at()].into_iter().flatten().min()
    }

    /// What the pools offer, for verdicts that need no loop. Cheap; a new one is made only when something changed.
    pub fn offers(&self) -> Arc<Offers> {
        Arc::clone(&self.offers)
    }

    /// An id for a builder that no event has named yet.
    pub fn reserve_builder(&mut self) -> BuilderId {
        self.last_builder += 1;
        BuilderId(self.last_builder)
    }

    /// Whether new builds are accepted.
    pub fn accepting(&self) -> bool {
        self.mode == Mode::Accepting
    }

    /// Does what the event has made possible or due.
    ///
    /// Slots are given before deadlines are looked at: a builder must not end as idle at the moment it gets work.
    fn settle(&mut self) {
        self.keep_to_caps();
        self.place();
        for pool in &mut self.pools {
            pool.wake(self.now);
        }
        while let Some(builder) = self.roster.due(self.now) {
            self.look_at(builder);
        }
        self.give_up_hopeless();
        self.place();
        let newly_queued = std::mem::take(&mut self.newly_queued);
        self.tell_queued(&newly_queued);
        self.scale();
        self.note_what_is_too_small();
        self.tell_of_start_under_way(&newly_queued);
        self.tell_of_holds(&newly_queued);
        self.note_thrift(&newly_queued);
        self.make_room_under_cap();
        self.end_unneeded_for_shutdown();
        self.exit_if_nothing_is_left();
        self.refresh_offers();
    }

    /// Starts every build that can be.
    pub(super) fn place(&mut self) {
        while let Some(placement) =
            placement::next(&self.queue, &self.roster, &self.builds, |ix| self.ahead(ix))
        {
            self.start(placement);
        }
    }

    fn start(&mut self, placement: Placement) {
        let Placement { lane, build: id, builder, .. } = placement;
        self.last_lease += 1;
        let lease = LeaseId(self.last_lease);
        let Some(build) = self.builds.get_mut(&id) else { return };
        let place = build.place;
        self.queue.remove(lane, place);
        self.queue.started(lane, place.client);
        let (now, is_big) = (self.now, self.queue.lane(lane).fit.is_big);
        let granted = self.roster.change(builder, |builder| {
            let beside = builder.company();
            let room = builder.room_for(is_big);
            builder.grant(now, lease, id, room);
            (builder.pool, beside, room, builder.is_loose)
        });
        let Some((pool, beside, room, is_loose)) = granted else { return };
        let is_known = build.request.prediction.is_of_its_like();
        let end = is_known.then(|| End { at: now + place.lasts, lease, builder, is_loose });
        if let Some(end) = end {
            self.ends.insert(pool, end);
        }
        let run = Run { builder, pool, lane, lease, end, phase: RunPhase::Uploading, stop: None };
        build.enter(self.now, Stage::Running(run));
        build.starts = build.starts.saturating_add(1);
        let name = self.pools[pool.0].spec.name.clone();
        let is_near = build.near.contains(&builder);
        build.trail.push(self.now, Why::Started { builder, pool: name, beside, room, is_near });
        self.actions.push(Action::Start { build: id, builder, lease });
        self.actions.push(Action::Tell { build: id, note: Note::Started { builder } });
    }

    /// Tells the builds at the head of the queue which of these builders is launched for them.
    pub(super) fn tell_of_launches(&mut self, ix: PoolIx, builders: &[BuilderId]) {
        let mut unaware = self.queue.heads(ix, TOLD_OF_LAUNCHES).into_iter();
        for builder in builders {
            let slots = self.roster.get(*builder).map_or(0, |builder| self.slots_to_come(builder));
            let audience: Vec<_> =
                unaware.by_ref().filter(|build| !self.awaits_a_start(*build)).take(slots).collect();
            for build in audience {
                self.tell_of_start(build, *builder);
            }
        }
    }

    /// A build that is queued while a builder starts learns of it, if that builder will have a slot for it.
    fn tell_of_start_under_way(&mut self, newly_queued: &[BuildId]) {
        for build in newly_queued {
            let Some(Stage::Queued { lane, .. }) = self.builds.get(build).map(|build| &build.stage) else {
                continue;
            };
            let newest = self
                .queue
                .lane(*lane)
                .fit
                .pools
                .iter()
                .find_map(|ix| self.roster.census(*ix).starting.last());
            let Some(builder) = newest.and_then(|id| self.roster.get(*id)) else { continue };
            let has_room = builder.audience.len() < self.slots_to_come(builder);
            let id = builder.id;
            if has_room && !self.awaits_a_start(*build) {
                self.tell_of_start(*build, id);
            }
        }
    }

    pub(super) fn awaits_a_start(&self, build: BuildId) -> bool {
        let herald = self.builds.get(&build).and_then(|build| build.herald);
        herald.and_then(|builder| self.roster.get(builder)).is_some_and(Builder::is_starting)
    }

    fn tell_of_start(&mut self, id: BuildId, builder: BuilderId) {
        let Some(build) = self.builds.get_mut(&id) else { return };
        build.herald = Some(builder);
        let now = self.now;
        let told = self.roster.change(builder, |builder| {
            builder.audience.push(id);
            (builder.pool, builder.instance.clone())
        });
        let Some((pool, instance)) = told else { return };
        let pool = self.pools[pool.0].spec.name.clone();
        build.trail.push(now, Why::Launching { builder, pool: pool.clone() });
        let note = match instance {
            Some(instance) => Note::Booting { builder, instance: instance.id },
            None => Note::Launching { pool, builder },
        };
        self.actions.push(Action::Tell { build: id, note });
    }

    fn exit_if_nothing_is_left(&mut self) {
        let ends = matches!(self.mode, Mode::Finishing | Mode::Forced);
        if ends && self.builds.is_empty() && self.roster.is_empty() {
            self.mode = Mode::Exited;
            self.actions.push(Action::Exit);
        }
    }

    fn refresh_offers(&mut self) {
        let accepting = self.accepting();
        let pools = self.pools.iter().enumerate();
        let is_current = self.offers.accepting == accepting
            && pools.clone().zip(&self.offers.pools).all(|((ix, pool), offer)| {
                let unfit = if self.has_ready(PoolIx(ix)) { None } else { pool.unfit() };
                offer.capped == self.declines(PoolIx(ix))
                    && offer.is_up == self.is_up(PoolIx(ix))
                    && offer.launch == pool.launch_takes()
                    && offer.unfit.as_deref() == unfit
                    && offer.offer.features.len() == pool.offer.features.len()
            });
        if !is_current {
            let pools = pools.map(|(ix, pool)| PoolOffer {
                capped: self.declines(PoolIx(ix)),
                is_up: self.is_up(PoolIx(ix)),
                ..PoolOffer::of(pool, self.has_ready(PoolIx(ix)))
            });
            self.offers = Arc::new(Offers::of(accepting, pools));
        }
    }

    fn is_up(&self, ix: PoolIx) -> bool {
        self.roster.census(ix).staffed() > 0
    }

    fn has_ready(&self, ix: PoolIx) -> bool {
        !self.roster.census(ix).ready.is_empty()
    }
}

fn within_bounds(mut spec: PoolSpec) -> PoolSpec {
    spec.idle_timeout = spec.idle_timeout.min(LONGEST_DURATION);
    spec.surplus_idle_timeout = spec.surplus_idle_timeout.min(spec.idle_timeout);
    spec.max_lifetime = spec.max_lifetime.min(LONGEST_DURATION);
    spec.launch_timeout = spec.launch_timeout.min(LONGEST_DURATION);
    spec
}
