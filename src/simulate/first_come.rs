//! The comparison without a plan: first come, first served, on the same pools.
//!
//! A build goes to the first free slot of the first pool that fits, in the order of arrival. For what finds none a
//! machine of the pool's usual size is launched for as many builds as it has slots, up to the pool's maximum, and a
//! machine that was idle for the pool's window is ended. That is what a list of machines and a script around it do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::decider::Decider;
use crate::model::requirement::CA_DERIVATIONS;
use crate::model::{
    BuildId, BuildRequest, BuilderId, Demand, Ending, Failure, FailureKind, Feature, LeaseId, Outcome,
    PoolSpec, Requirement, Slots,
};
use crate::scheduler::{Action, Answer, AttemptEnd, Event};

/// After a failed launch.
const REST: Duration = Duration::from_secs(30);
/// Attempts of a build that loses its machines.
const ATTEMPTS: u32 = 10;

#[derive(Debug)]
struct Builder {
    pool: usize,
    stage: Stage,
    slots: u32,
    leases: BTreeSet<LeaseId>,
    idle_since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    Ready,
    Ending,
}

/// See above.
#[derive(Debug)]
pub(super) struct FirstCome {
    pools: Vec<PoolSpec>,
    rests_until: Vec<Option<Instant>>,
    builders: BTreeMap<BuilderId, Builder>,
    requests: BTreeMap<BuildId, Requirement>,
    waiting: VecDeque<BuildId>,
    running: BTreeMap<LeaseId, (BuildId, BuilderId)>,
    attempts: BTreeMap<BuildId, u32>,
    last_builder: u64,
    last_lease: u64,
    now: Instant,
    actions: Vec<Action>,
    has_begun: bool,
}

impl FirstCome {
    pub(super) fn new(mut pools: Vec<PoolSpec>, now: Instant) -> Self {
        for pool in &mut pools {
            pool.offer.features.insert(Feature::new(CA_DERIVATIONS));
        }
        Self {
            rests_until: vec![None; pools.len()],
            pools,
            builders: BTreeMap::new(),
            requests: BTreeMap::new(),
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            attempts: BTreeMap::new(),
            last_builder: 0,
            last_lease: 0,
            now,
            actions: Vec::new(),
            has_begun: false,
        }
    }

    fn fits(&self, build: BuildId, pool: usize) -> bool {
        self.requests.get(&build).is_some_and(|needed| self.pools[pool].offer.satisfies(needed).is_ok())
    }

    /// The first free slot for this build.
    fn open_for(&self, build: BuildId) -> Option<BuilderId> {
        (0..self.pools.len()).filter(|pool| self.fits(build, *pool)).find_map(|pool| {
            let mut of_pool = self.builders.iter().filter(|(_, builder)| builder.pool == pool);
            of_pool
                .find(|(_, builder)| {
                    builder.stage == Stage::Ready && builder.leases.len() < builder.slots as usize
                })
                .map(|(id, _)| *id)
        })
    }

    fn place(&mut self) {
        let mut left = VecDeque::new();
        for build in std::mem::take(&mut self.waiting) {
            let Some(id) = self.open_for(build) else {
                left.push_back(build);
                continue;
            };
            self.last_lease += 1;
            let lease = LeaseId(self.last_lease);
            if let Some(builder) = self.builders.get_mut(&id) {
                builder.leases.insert(lease);
            }
            self.running.insert(lease, (build, id));
            *self.attempts.entry(build).or_default() += 1;
            self.actions.push(Action::Start { build, builder: id, lease });
        }
        self.waiting = left;
    }

    fn alive(&self, pool: usize) -> u32 {
        let count = self.builders.values().filter(|builder| builder.pool == pool).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    fn staffed(&self, pool: usize) -> u32 {
        let stays = |builder: &&Builder| builder.pool == pool && builder.stage != Stage::Ending;
        u32::try_from(self.builders.values().filter(stays).count()).unwrap_or(u32::MAX)
    }

    fn scale(&mut self) {
        let mut to_come: Vec<u64> = vec![0; self.pools.len()];
        for builder in self.builders.values().filter(|builder| builder.stage == Stage::Starting) {
            to_come[builder.pool] += u64::from(builder.slots);
        }
        for build in self.waiting.clone() {
            let fitting: Vec<usize> = (0..self.pools.len()).filter(|pool| self.fits(build, *pool)).collect();
            if let Some(pool) = fitting.iter().find(|pool| to_come[**pool] > 0) {
                to_come[*pool] -= 1;
                continue;
            }
            let may_grow = |pool: &&usize| {
                self.rests_until[**pool].is_none() && self.alive(**pool) < self.pools[**pool].max_builders
            };
            if let Some(pool) = fitting.iter().find(may_grow).copied() {
                to_come[pool] += u64::from(self.launch(pool)).saturating_sub(1);
            }
        }
        for pool in 0..self.pools.len() {
            while self.staffed(pool) < self.pools[pool].min_builders && self.rests_until[pool].is_none() {
                self.launch(pool);
            }
        }
    }

    fn launch(&mut self, pool: usize) -> u32 {
        self.last_builder += 1;
        let id = BuilderId(self.last_builder);
        let slots = self.pools[pool].slots.expected();
        self.builders.insert(
            id,
            Builder { pool, stage: Stage::Starting, slots, leases: BTreeSet::new(), idle_since: self.now },
        );
        self.actions.push(Action::Launch {
            builder: id,
            pool: self.pools[pool].name.clone(),
            demand: Demand { builds: slots, on_demand_only: false },
            at_most: None,
        });
        slots
    }

    fn idle_deadline(&self, builder: &Builder) -> Option<Instant> {
        let pool = &self.pools[builder.pool];
        let is_idle = builder.stage == Stage::Ready && builder.leases.is_empty();
        (is_idle && self.staffed(builder.pool) > pool.min_builders)
            .then(|| builder.idle_since + pool.idle_timeout)
    }

    fn end_idle(&mut self) {
        while let Some(id) = self.one_idle_too_long() {
            self.end(id, "idle", Ending::Idle);
        }
    }

    fn one_idle_too_long(&self) -> Option<BuilderId> {
        let is_due = |builder: &Builder| self.idle_deadline(builder).is_some_and(|at| at <= self.now);
        self.builders.iter().find(|(_, builder)| is_due(builder)).map(|(id, _)| *id)
    }

    fn end(&mut self, id: BuilderId, reason: &str, ending: Ending) {
        let Some(builder) = self.builders.get_mut(&id) else { return };
        if builder.stage != Stage::Ending {
            builder.stage = Stage::Ending;
            self.actions.push(Action::Terminate { builder: id, ending, reason: reason.to_owned() });
        }
    }

    fn lost(&mut self, id: BuilderId) {
        let Some(builder) = self.builders.get(&id) else { return };
        if builder.stage == Stage::Starting {
            self.rests_until[builder.pool] = Some(self.now + REST);
        }
        self.end(id, "lost", Ending::Final);
    }

    fn attempt_ended(&mut self, lease: LeaseId, end: AttemptEnd) {
        let Some((build, id)) = self.running.remove(&lease) else { return };
        if let Some(builder) = self.builders.get_mut(&id) {
            builder.leases.remove(&lease);
            builder.idle_since = self.now;
        }
        let outcome = match end {
            AttemptEnd::Succeeded => Outcome::Succeeded,
            AttemptEnd::Failed(failure)
                if failure.kind.is_retryable() && self.attempts[&build] < ATTEMPTS =>
            {
                self.waiting.push_front(build);
                return;
            }
            AttemptEnd::Failed(failure) => Outcome::Failed(failure),
            AttemptEnd::Aborted => Outcome::Failed(Failure::new(FailureKind::Broker, "was stopped")),
        };
        self.requests.remove(&build);
        self.actions.push(Action::Finish { build, outcome });
    }
}

impl Decider for FirstCome {
    fn answer(&self, request: &BuildRequest) -> Answer {
        let fitting = self.pools.iter().find(|pool| pool.offer.satisfies(&request.requirement).is_ok());
        match fitting {
            Some(pool) => Answer::Accept { pool: pool.name.clone() },
            None => Answer::Decline { why: "no pool fits".to_owned() },
        }
    }

    fn apply(&mut self, now: Instant, event: Event) -> Vec<Action> {
        self.now = self.now.max(now);
        self.has_begun = true;
        match event {
            Event::Accepted { build, request } => {
                self.requests.insert(build, request.requirement);
            }
            Event::InputsKnown(build) => self.waiting.push_back(build),
            Event::AttemptEnded { lease, end, .. } => self.attempt_ended(lease, end),
            Event::Ready { builder, facts } => {
                if let Some(builder) = self.builders.get_mut(&builder)
                    && builder.stage == Stage::Starting
                {
                    builder.stage = Stage::Ready;
                    builder.idle_since = self.now;
                    builder.slots = match self.pools[builder.pool].slots {
                        Slots::Fixed(slots) => slots,
                        Slots::Auto { .. } => facts.processors.max(1),
                    };
                }
            }
            Event::Lost { builder, .. } => self.lost(builder),
            Event::Gone(builder) => {
                self.builders.remove(&builder);
            }
            // It notices when the machine is gone, like any list of machines.
            Event::Interrupted { .. }
            | Event::Endangered { .. }
            | Event::Warned { .. }
            | Event::ClientGone(_)
            | Event::InputsMadeOn { .. }
            | Event::Progressed { .. }
            | Event::Delivered { .. }
            | Event::Fetched { .. }
            | Event::Adopted(_)
            | Event::Launched { .. }
            | Event::Progress { .. }
            | Event::Load { .. }
            | Event::Collected(_)
            | Event::Clock { .. }
            | Event::StartRequested(_)
            | Event::DrainRequested(_)
            | Event::StopRequested(_)
            | Event::ShutdownRequested
            | Event::ShutdownForced
            | Event::Tick => {}
        }
        for rest in &mut self.rests_until {
            *rest = rest.filter(|until| self.now < *until);
        }
        self.place();
        self.end_idle();
        self.scale();
        std::mem::take(&mut self.actions)
    }

    fn next_deadline(&self) -> Option<Instant> {
        if !self.has_begun && self.pools.iter().any(|pool| pool.min_builders > 0) {
            return Some(self.now);
        }
        let idle = self.builders.values().filter_map(|builder| self.idle_deadline(builder));
        idle.chain(self.rests_until.iter().copied().flatten()).min()
    }
}
