//! The machines of a run and the attempts on them, as they are now.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::buy::Machine;
use super::machine::Load;
use super::timeline::{Bar, Lane, Timeline};
use crate::model::{BuilderId, LeaseId, Market, PoolName};

/// Where a machine is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// Wanted; nothing is billed yet.
    Launching,
    /// Runs and is not ready.
    Booting,
    /// Takes builds.
    Ready,
    /// Ended, and the scheduler has not been told.
    Ending,
}

/// One machine.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) pool: PoolName,
    pub(super) life: Life,
    pub(super) machine: Machine,
    pub(super) load: Load,
    lane: usize,
    taken: BTreeSet<u32>,
}

/// What an attempt is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Uploading,
    Building,
    Downloading,
    /// It was stopped, or its machine is lost: only its end is to come.
    Over,
}

/// One attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    pub(super) node: usize,
    pub(super) builder: BuilderId,
    pub(super) step: Step,
    slot: u32,
    bar: usize,
}

/// All of them, and the record of what they did.
#[derive(Debug, Default)]
pub(super) struct Sites {
    pub(super) all: BTreeMap<BuilderId, Site>,
    pub(super) attempts: BTreeMap<LeaseId, Attempt>,
    pub(super) timeline: Timeline,
}

/// The client's own machine.
pub(super) const HERE: BuilderId = BuilderId(0);

impl Sites {
    /// A machine is wanted.
    pub(super) fn add(&mut self, now: Duration, id: BuilderId, pool: PoolName, machine: Machine, slots: u32) {
        let label = machine.class.as_ref().map_or_else(String::new, |class| match class.market {
            Market::OnDemand => class.instance_type.clone(),
            Market::Spot => format!("{}, spot", class.instance_type),
        });
        self.timeline.lanes.push(Lane {
            builder: (id != HERE).then_some(id),
            pool: pool.to_string(),
            label,
            launched: now,
            running: None,
            ready: None,
            ended: None,
            slots,
            vcpus: machine.power.vcpus,
            rate: machine.rate(),
            busy: 0.0,
            bars: Vec::new(),
        });
        let site = Site {
            pool,
            life: Life::Launching,
            load: Load::new(machine.power),
            machine,
            lane: self.timeline.lanes.len() - 1,
            taken: BTreeSet::new(),
        };
        self.all.insert(id, site);
    }

    /// Its bill begins.
    pub(super) fn runs(&mut self, now: Duration, id: BuilderId) {
        let Some(site) = self.all.get_mut(&id) else { return };
        site.life = Life::Booting;
        self.timeline.lanes[site.lane].running = Some(now);
    }

    /// It takes builds.
    pub(super) fn is_ready(&mut self, now: Duration, id: BuilderId) {
        let Some(site) = self.all.get_mut(&id) else { return };
        site.life = Life::Ready;
        self.timeline.lanes[site.lane].ready = Some(now);
    }

    /// Its bill ends.
    pub(super) fn ends(&mut self, now: Duration, id: BuilderId) {
        let Some(site) = self.all.get_mut(&id) else { return };
        site.life = Life::Ending;
        site.load.advance(now);
        let lane = &mut self.timeline.lanes[site.lane];
        lane.busy = site.load.busy;
        lane.ended.get_or_insert(now);
    }

    /// What is kept of machines that still run.
    pub(super) fn close(&mut self, now: Duration) {
        for site in self.all.values_mut() {
            site.load.advance(now);
            self.timeline.lanes[site.lane].busy = site.load.busy;
        }
        self.timeline.closed = now;
    }

    /// An attempt begins.
    pub(super) fn begin(
        &mut self,
        now: Duration,
        lease: LeaseId,
        builder: BuilderId,
        node: usize,
        name: &str,
    ) {
        let Some(site) = self.all.get_mut(&builder) else { return };
        let slot = (0..).find(|slot| !site.taken.contains(slot)).unwrap_or_default();
        site.taken.insert(slot);
        let bars = &mut self.timeline.lanes[site.lane].bars;
        bars.push(Bar { name: name.to_owned(), slot, from: now, to: None, is_good: false });
        let attempt = Attempt { node, builder, step: Step::Uploading, slot, bar: bars.len() - 1 };
        self.attempts.insert(lease, attempt);
    }

    /// An attempt is over. Answers which it was.
    pub(super) fn over(&mut self, now: Duration, lease: LeaseId, is_good: bool) -> Option<Attempt> {
        let attempt = self.attempts.remove(&lease)?;
        if let Some(site) = self.all.get_mut(&attempt.builder) {
            site.taken.remove(&attempt.slot);
            site.load.end(now, lease);
            let lane = &mut self.timeline.lanes[site.lane];
            let bar = &mut lane.bars[attempt.bar];
            // Nothing runs longer than its machine, whenever that is noticed.
            bar.to = Some(lane.ended.map_or(now, |ended| ended.min(now)));
            bar.is_good = is_good;
        }
        Some(attempt)
    }

    /// The attempts on a machine that are not over.
    pub(super) fn on(&self, builder: BuilderId) -> Vec<LeaseId> {
        let there = |(_, attempt): &(&LeaseId, &Attempt)| attempt.builder == builder;
        self.attempts.iter().filter(there).map(|(lease, _)| *lease).collect()
    }

    /// Machines of a pool that are not on their way out.
    pub(super) fn staffed(&self, pool: &PoolName) -> usize {
        let stays = |site: &&Site| site.pool == *pool && site.life != Life::Ending;
        self.all.values().filter(stays).count()
    }

    /// Whether there is any machine but the client's own that is not on its way out.
    pub(super) fn any_staffed(&self) -> bool {
        self.all.iter().any(|(id, site)| *id != HERE && site.life != Life::Ending)
    }

    /// Whether every machine is ready, and none is on its way in or out.
    pub(super) fn are_settled(&self) -> bool {
        self.attempts.is_empty() && self.all.values().all(|site| site.life == Life::Ready)
    }
}
