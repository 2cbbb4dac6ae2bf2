//! What money has to do with it: the account is kept, caps are kept to, and what is worth remembering is written down.

use std::time::Instant;

use super::action::{Action, Note};
use super::build::{Build, Stage};
use super::builder::{Builder, EndReason};
use super::fleet::Fleet;
use super::money::Ledger;
use super::pool::PoolIx;
use super::trail::Why;
use crate::model::{
    BuildId, BuildRecord, BuilderId, Caps, Failure, FailureKind, HourlyRate, InstanceRecord, MoneyStatus,
    Outcome, Place, PoolName, Record, Spent, Usd, UtcDay,
};

impl Fleet {
    /// The fleet, with these caps, after so much was spent.
    #[must_use]
    pub fn with_money(mut self, caps: Caps, spent: &Spent) -> Self {
        self.ledger = Ledger::new(caps, spent, |name| self.pool_ix(name));
        self
    }

    fn pool_ix(&self, name: &PoolName) -> Option<PoolIx> {
        self.pools.iter().position(|pool| pool.spec.name == *name).map(PoolIx)
    }

    /// Books everything until now, so that a day that ends has all that belongs to it.
    pub(super) fn on_clock(&mut self, day: UtcDay, aside: Vec<(PoolName, HourlyRate)>) {
        let aside = aside.into_iter().filter_map(|(name, rate)| Some((self.pool_ix(&name)?, rate))).collect();
        for (ix, cost) in self.ledger.put_aside(self.now, aside) {
            let pool = self.pools[ix.0].spec.name.clone();
            self.actions.push(Action::Record(Record::PutAside { pool, cost }));
        }
        let ids: Vec<BuilderId> = self.roster.iter().map(|builder| builder.id).collect();
        for id in ids {
            self.book(id);
            if self.roster.get(id).is_some_and(|builder| builder.rate() != HourlyRate::default()) {
                self.record_instance(id, false);
            }
        }
        self.ledger.turn_to(day);
    }

    fn book(&mut self, id: BuilderId) {
        let now = self.now;
        let Some(builder) = self.roster.get(id) else { return };
        let (pool, cost) = (builder.pool, builder.cost(now));
        self.ledger.book(pool, cost.saturating_sub(builder.booked));
        self.roster.change(id, |builder| builder.booked = cost);
    }

    /// A builder is gone, and costs nothing any more.
    pub(super) fn close_account(&mut self, id: BuilderId) {
        self.book(id);
        self.record_instance(id, true);
    }

    pub(super) fn record_instance(&mut self, id: BuilderId, has_ended: bool) {
        let Some(builder) = self.roster.get(id) else { return };
        let Some(instance) = builder.instance.clone() else { return };
        let age = self.now.saturating_duration_since(builder.launched_at);
        let record = InstanceRecord { builder: id, instance, age, cost: builder.cost(self.now), has_ended };
        self.actions.push(Action::Record(Record::Instance(record)));
    }

    pub(super) fn record_build(
        &mut self,
        build: &Build,
        place: Option<&(PoolName, BuilderId)>,
        outcome: &Outcome,
    ) {
        let place = place.map(|(pool, builder)| Place {
            pool: pool.clone(),
            builder: *builder,
            instance: self.roster.get(*builder).and_then(|builder| builder.instance.clone()),
        });
        let record = BuildRecord {
            build: build.id,
            drv: build.request.drv.clone(),
            requirement: build.request.requirement.clone(),
            place,
            phases: build.phases,
            took: build.took,
            traffic: build.traffic,
            attempts: build.starts,
            outcome: outcome.clone(),
            cost: build.cost,
        };
        self.actions.push(Action::Record(Record::Build(Box::new(record))));
    }

    /// What living builders have cost since their part was last booked.
    fn unbooked(&self, now: Instant) -> Usd {
        self.roster.iter().map(|builder| builder.cost(now).saturating_sub(builder.booked)).sum()
    }

    /// Ends what is paid for when a day or month has had enough, and the builds that only wait for such.
    pub(super) fn keep_to_caps(&mut self) {
        if self.ledger.caps == Caps::default() {
            return;
        }
        self.ledger.check(self.unbooked(self.now));
        if let Some(reason) = self.ledger.reached.clone() {
            self.end_paid_for(&reason);
        }
        self.fail_capped();
    }

    fn end_paid_for(&mut self, reason: &str) {
        let paid_for: Vec<BuilderId> = self
            .roster
            .iter()
            .filter(|builder| builder.is_ready() || builder.is_starting())
            .filter(|builder| self.pools[builder.pool.0].is_paid_for())
            .map(|builder| builder.id)
            .collect();
        for id in paid_for {
            self.drain(id, EndReason::Capped(reason.to_owned()), None);
        }
    }

    /// Fails the builds that wait only for pools that will launch nothing more.
    fn fail_capped(&mut self) {
        let mut failed: Vec<(BuildId, String)> = Vec::new();
        for (_, lane) in self.queue.lanes() {
            let reasons: Option<Vec<String>> = lane.fit.pools.iter().map(|ix| self.closed(*ix)).collect();
            let Some(reasons) = reasons else { continue };
            let named = lane.fit.pools.iter().zip(reasons);
            let reason = named.map(|(ix, reason)| format!("pool `{}`: {reason}", self.pools[ix.0].spec.name));
            let reason = reason.collect::<Vec<_>>().join("; ");
            failed.extend(lane.iter().map(|(_, id)| (id, reason.clone())));
        }
        for (id, reason) in failed {
            let reason = format!("no builder may be launched: {reason}; see `[cost]` in the configuration");
            self.finish(id, Outcome::Failed(Failure::new(FailureKind::Provider, reason)));
        }
    }

    /// Why a pool will launch nothing more, until a day ends or a person changes something.
    fn closed(&self, ix: PoolIx) -> Option<String> {
        let pool = &self.pools[ix.0];
        if !pool.is_paid_for() {
            return None;
        }
        if let Some(reason) = &self.ledger.reached {
            return Some(reason.clone());
        }
        let (cap, left) = self.too_little_of_hour(ix)?;
        // What it has goes on, and may take another build.
        if self.roster.census(ix).staffed() > 0 {
            return None;
        }
        if pool.is_too_dear(cap) {
            return Some(format!("no instance that would do costs as little as the cap of {cap}"));
        }
        let is_costly =
            |builder: &Builder| builder.rate() != HourlyRate::default() || builder.unknown_price().is_some();
        let more_will_be_left = self.roster.iter().any(is_costly);
        (!more_will_be_left).then(|| format!("stopped instances leave {left} of the cap of {cap}"))
    }

    /// The cap per hour and what is left of it, when that is too little for another builder of a pool.
    fn too_little_of_hour(&self, ix: PoolIx) -> Option<(HourlyRate, HourlyRate)> {
        let (cap, left) = (self.ledger.caps.hour?, self.left_of_hour()?);
        let is_too_little = left == HourlyRate::default() || self.pools[ix.0].is_too_dear(left);
        is_too_little.then_some((cap, left))
    }

    /// Why a pool launches nothing now, as far as money is concerned.
    pub(super) fn held(&self, ix: PoolIx) -> Option<String> {
        let hour = || {
            let (cap, left) = self.too_little_of_hour(ix)?;
            Some(format!("{left} is left of the cap of {cap}, which is too little for another builder"))
        };
        if self.pools[ix.0].is_paid_for() { self.closed(ix).or_else(hour) } else { None }
    }

    /// Why a request is not taken for a pool that fits it: it launches nothing, and has nothing.
    pub(super) fn declines(&self, ix: PoolIx) -> Option<String> {
        let has_any = self.roster.census(ix).staffed() > 0;
        self.closed(ix).or_else(|| if has_any { None } else { self.held(ix) })
    }

    /// What is left of the cap per hour: less what runs, what is stopped, and what a launch under way may cost.
    pub(super) fn left_of_hour(&self) -> Option<HourlyRate> {
        let cap = self.ledger.caps.hour?;
        let running = self.roster.iter().map(|builder| match builder.unknown_price() {
            Some(at_most) => at_most,
            None => builder.rate(),
        });
        let taken: HourlyRate = running.sum::<HourlyRate>() + self.ledger.aside();
        Some(HourlyRate(cap.0.saturating_sub(taken.0)))
    }

    /// Whether only the answer to one launch says whether there may be another.
    pub(super) fn launches_one_by_one(&self, ix: PoolIx) -> bool {
        self.ledger.caps.hour.is_some() && self.pools[ix.0].is_paid_for()
    }

    /// Whether a launch is under way whose answer decides on the next.
    pub(super) fn awaits_a_price(&self, ix: PoolIx) -> bool {
        self.launches_one_by_one(ix) && self.roster.iter().any(|builder| builder.unknown_price().is_some())
    }

    /// Says once to each of these that nothing is launched for it, and why.
    pub(super) fn tell_of_holds(&mut self, newly_queued: &[BuildId]) {
        for id in newly_queued {
            let Some(Stage::Queued { lane, .. }) = self.builds.get(id).map(|build| &build.stage) else {
                continue;
            };
            let pools = self.queue.lane(*lane).fit.pools.clone();
            let Some(reasons) = pools.iter().map(|ix| self.declines(*ix)).collect::<Option<Vec<_>>>() else {
                continue;
            };
            let (Some(ix), Some(reason)) = (pools.first(), reasons.into_iter().next()) else { continue };
            let pool = self.pools[ix.0].spec.name.clone();
            if let Some(build) = self.builds.get_mut(id) {
                build.trail.push(self.now, Why::Held(reason.clone()));
            }
            self.actions.push(Action::Tell { build: *id, note: Note::Held { pool, reason } });
        }
    }

    /// Builds wait, and an idle builder that they cannot use costs what one for them would: it ends before its time.
    pub(super) fn make_room_under_cap(&mut self) {
        if self.ledger.caps.hour.is_none() {
            return;
        }
        let is_stuck = |ix: &PoolIx| {
            self.roster.census(*ix).staffed() == 0 && self.held(*ix).is_some() && self.closed(*ix).is_none()
        };
        let some_are_stuck = self.queue.lanes().any(|(_, lane)| lane.fit.pools.iter().all(is_stuck));
        let has_begun = self.roster.iter().any(|builder| builder.is_yielding());
        if !some_are_stuck || has_begun {
            return;
        }
        let idle = self.roster.iter().find(|builder| {
            let kept = self.pools[builder.pool.0].spec.min_builders;
            let is_idle = builder.is_ready() && builder.leases.is_empty();
            is_idle
                && builder.rate() != HourlyRate::default()
                && !self.queue.waits_for(builder.pool)
                && self.roster.census(builder.pool).staffed() > kept
        });
        if let Some(id) = idle.map(|builder| builder.id) {
            self.end_builder(id, EndReason::Yields);
        }
    }

    pub(super) fn money_status(&self, now: Instant) -> Option<MoneyStatus> {
        let unbooked = self.unbooked(now);
        let running: HourlyRate = self.roster.iter().map(Builder::rate).sum();
        let status = MoneyStatus {
            rate: running + self.ledger.aside(),
            today: self.ledger.today() + unbooked,
            month: self.ledger.month() + unbooked,
            caps: self.ledger.caps,
        };
        let costs = self.pools.iter().any(super::pool::Pool::is_paid_for) || status.month != Usd::ZERO;
        costs.then_some(status)
    }

    pub(super) fn pool_money(&self, now: Instant, ix: PoolIx) -> Option<(HourlyRate, Usd)> {
        if !self.pools[ix.0].is_paid_for() {
            return None;
        }
        let of_pool = || self.roster.iter().filter(|builder| builder.pool == ix);
        let rate: HourlyRate = of_pool().map(Builder::rate).sum();
        let unbooked: Usd = of_pool().map(|builder| builder.cost(now).saturating_sub(builder.booked)).sum();
        Some((rate + self.ledger.aside_of(ix), self.ledger.today_of(ix) + unbooked))
    }

    /// What the attempt that runs has cost.
    pub(super) fn cost_under_way(&self, now: Instant, build: &Build) -> Usd {
        match &build.stage {
            Stage::Running(run) => self
                .roster
                .get(run.builder)
                .map(|builder| builder.cost_under(now, run.lease))
                .unwrap_or_default(),
            Stage::Accepted | Stage::Queued { .. } => Usd::ZERO,
        }
    }
}
