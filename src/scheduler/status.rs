//! The picture of the fleet for people and programs, made when somebody asks.

use std::collections::BTreeMap;
use std::time::Duration;
use std::time::Instant;

use super::build::{Build, Stage, shown};
use super::builder::{Builder, Life};
use super::fleet::Fleet;
use super::headroom::Shortage;
use super::pool::PoolIx;
use crate::model::{
    BuildId, BuildPhase, BuildStatus, BuilderState, BuilderStatus, PoolName, PoolStatus, Status,
};

/// Ended builds that a status shows; [`Fleet::explain`] knows more.
const ENDED_SHOWN: usize = 50;
/// What a builder said of its load longer ago is no news any more.
const LOAD_HOLDS: Duration = Duration::from_secs(60);

impl Fleet {
    /// Everything, at this moment. Its cost grows with the number of builds: make one when somebody looks, or a few
    /// times a second.
    pub fn status(&self, now: Instant) -> Status {
        let now = self.now.max(now);
        let positions = self.queue.positions();
        let live = self.builds.values().map(|build| self.build_status(now, build, &positions));
        let ended = self.history.latest(ENDED_SHOWN).filter_map(|build| self.history.show(now, build));
        Status {
            pools: (0..self.pools.len()).map(|ix| self.pool_status(now, PoolIx(ix))).collect(),
            builders: self.roster.iter().map(|builder| self.builder_status(now, builder)).collect(),
            builds: live.chain(ended).collect(),
            ended: self.history.counts(),
            accepting: self.accepting(),
            money: self.money_status(now),
        }
    }

    /// The builds, live or among the last thousand that ended, whose derivation's path has this text in it, or whose id
    /// this is (`#12`). The latest of them, and no more than a person reads.
    pub fn matching(&self, now: Instant, subject: &str) -> Vec<BuildStatus> {
        const MOST: usize = 10;
        if let Some(build) = subject.strip_prefix('#').and_then(|id| id.parse().ok()).map(BuildId) {
            return self.explain(now, build).into_iter().collect();
        }
        let live =
            self.builds.iter().rev().filter(|(_, build)| build.request.drv.to_string().contains(subject));
        let ids = live.map(|(id, _)| *id).chain(self.history.matching(subject)).take(MOST);
        ids.filter_map(|id| self.explain(now, id)).collect()
    }

    /// One build, live or among the last thousand that ended, with why it is where it is.
    pub fn explain(&self, now: Instant, build: BuildId) -> Option<BuildStatus> {
        let now = self.now.max(now);
        match self.builds.get(&build) {
            Some(live) => {
                let mut status = self.build_status(now, live, &self.queue.positions());
                status.why.extend(self.shortages_before(live));
                Some(status)
            }
            None => self.history.show(now, build),
        }
    }

    /// What keeps a build that waits from slots that are not in use.
    fn shortages_before(&self, build: &Build) -> Vec<String> {
        const MOST: usize = 8;
        let Stage::Queued { lane, .. } = &build.stage else { return Vec::new() };
        let pools = &self.queue.lane(*lane).fit.pools;
        let ready = pools.iter().flat_map(|ix| &self.roster.census(*ix).ready);
        let short = ready.filter_map(|id| self.roster.get(*id)).filter_map(shortage_of);
        short.take(MOST).collect()
    }

    fn pool_status(&self, now: Instant, ix: PoolIx) -> PoolStatus {
        let pool = &self.pools[ix.0];
        let mut status = PoolStatus {
            name: pool.spec.name.clone(),
            ready: 0,
            starting: 0,
            ending: 0,
            max_builders: pool.spec.max_builders,
            slots_used: 0,
            slots: 0,
            queued: self.queue.counts_by_first_pool().get(&ix).copied().unwrap_or(0),
            idle_timeout: pool.spec.idle_timeout,
            surplus_idle_timeout: pool.spec.surplus_idle_timeout,
            last_fault: pool
                .last_fault
                .as_ref()
                .map(|(reason, at)| (reason.clone(), now.saturating_duration_since(*at))),
            cooling: pool
                .rests_until()
                .map(|until| until.saturating_duration_since(now))
                .filter(|rest| !rest.is_zero()),
            capped: self.held(ix),
            money: self.pool_money(now, ix),
        };
        for builder in self.roster.iter().filter(|builder| builder.pool == ix) {
            match builder.state() {
                BuilderState::Launching | BuilderState::Booting => status.starting += 1,
                BuilderState::Ready => {
                    status.ready += 1;
                    status.slots += builder.slots;
                    status.slots_used += builder.used();
                }
                BuilderState::Draining | BuilderState::Terminating => status.ending += 1,
            }
        }
        status
    }

    fn builder_status(&self, now: Instant, builder: &Builder) -> BuilderStatus {
        BuilderStatus {
            id: builder.id,
            pool: self.pool_name(builder.pool),
            instance: builder.instance.as_ref().map(|instance| instance.id.clone()),
            state: builder.state(),
            progress: builder.progress.clone().filter(|_| builder.is_starting()),
            in_state: now.saturating_duration_since(builder.since),
            age: now.saturating_duration_since(builder.launched_at),
            slots_used: builder.used(),
            slots: builder.slots,
            ends_in: self.ends_in(now, builder),
            class: builder.instance.as_ref().and_then(|instance| instance.class.clone()),
            cost: builder.cost(now),
            shortage: builder.shortage().map(|shortage| shortage.to_string()),
            load: builder.load.as_ref().filter(|_| builder.slots > 0).and_then(|(load, at)| {
                let age = now.saturating_duration_since(*at);
                (age <= LOAD_HOLDS).then(|| (load.clone(), age))
            }),
        }
    }

    /// How long until an idle builder ends, unless its pool keeps it.
    fn ends_in(&self, now: Instant, builder: &Builder) -> Option<Duration> {
        let Life::Ready { idle: Some(_), lifetime_deadline, .. } = &builder.life else {
            return None;
        };
        let idle_end = self.idle_end(builder).map(|(at, _)| at.max(now));
        let ends_at = idle_end.map_or(*lifetime_deadline, |at| at.min(*lifetime_deadline));
        Some(ends_at.saturating_duration_since(now))
    }

    fn build_status(&self, now: Instant, build: &Build, positions: &BTreeMap<BuildId, u32>) -> BuildStatus {
        let (phase, pool, builder) = match &build.stage {
            Stage::Accepted => (BuildPhase::Accepted, None, None),
            Stage::Queued { lane, .. } => {
                let ahead = positions.get(&build.id).copied().unwrap_or(0);
                let first = self.queue.lane(*lane).fit.pools.first();
                (BuildPhase::Queued { ahead }, first.map(|ix| self.pool_name(*ix)), None)
            }
            Stage::Running(run) => (shown(run.phase), Some(self.pool_name(run.pool)), Some(run.builder)),
        };
        BuildStatus {
            id: build.id,
            drv: build.request.drv.clone(),
            phase,
            in_phase: now.saturating_duration_since(build.since),
            age: now.saturating_duration_since(build.accepted_at),
            pool,
            builder,
            attempts: build.starts,
            remaining: build.remaining(now),
            cost: build.cost + self.cost_under_way(now, build),
            why: build.trail.lines(),
        }
    }

    fn pool_name(&self, ix: PoolIx) -> PoolName {
        self.pools[ix.0].spec.name.clone()
    }
}

/// `b-1 gets no build beside the 3 that run there: it is short of memory (1.2 GiB of 16 GiB free)`.
fn shortage_of(builder: &Builder) -> Option<String> {
    let (shortage, id) = (builder.shortage()?, builder.id);
    let load = builder.load.as_ref().map(|(load, _)| load);
    let disk = load.and_then(|load| load.disk).map(|disk| format!(" ({disk})")).unwrap_or_default();
    match shortage {
        Shortage::Disk => {
            Some(format!("now {id} gets no build: it is {shortage}{disk}, and what runs there ends first"))
        }
        Shortage::Collection => Some(format!("now {id} gets no build: it is {shortage}{disk}")),
        Shortage::Memory => {
            let alone = match builder.company() {
                0 => "one build at a time".to_owned(),
                1 => "no build beside the one that runs there".to_owned(),
                n => format!("no build beside the {n} that run there"),
            };
            let free = load.and_then(|load| load.memory).map(|memory| memory.to_string());
            let pressure = load.and_then(|load| load.memory_pressure).filter(|pressure| pressure.0 > 0);
            let pressure = pressure
                .map(|pressure| format!("something waits for it {:.0}% of the time", pressure.value()));
            let details = [free, pressure].into_iter().flatten().collect::<Vec<_>>().join(", ");
            Some(format!("now {id} gets {alone}: it is {shortage} ({details})"))
        }
    }
}
