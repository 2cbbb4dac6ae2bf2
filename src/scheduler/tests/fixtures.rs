//! A fleet with a clock of its own, and short words for what happens to it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::model::ec2::{DiskSpec, IdleAction, ImageSpec, Market, Reach};
use crate::model::requirement::CA_DERIVATIONS;
use crate::model::{
    BuildId, BuildRequest, BuilderFacts, BuilderId, Caps, Demand, DrvPath, Ec2Spec, Failure, FailureKind,
    Feature, HourlyRate, Instance, InstanceClass, InstanceId, LeaseId, LocalSpec, Offer, Outcome, PoolName,
    PoolSpec, ProviderSpec, Record, Requirement, Slots, Spent, System, Usd,
};
use crate::scheduler::build::{Build, Stage};
use crate::scheduler::disk::Disk;
use crate::scheduler::fleet::Mode;
use crate::scheduler::placement;
use crate::scheduler::pool::PoolIx;
use crate::scheduler::{Action, Adoption, AttemptEnd, BuilderFault, BuilderFaultKind, Event, Fleet, Note};

pub(super) const X86: &str = "x86_64-linux";
pub(super) const ARM: &str = "aarch64-linux";

pub(super) fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(super) fn features(words: &[&str]) -> BTreeSet<Feature> {
    words.iter().map(|&word| Feature::new(word)).collect()
}

/// Two slots, at most two builders, ten minutes idle, an hour of life, five minutes to start.
pub(super) fn pool(name: &str, system: &str, offered: &[&str]) -> PoolSpec {
    PoolSpec {
        name: PoolName::new(name),
        offer: Offer {
            systems: [System::new(system)].into(),
            features: features(offered),
            mandatory: [].into(),
        },
        slots: Slots::Fixed(2),
        min_builders: 0,
        max_builders: 2,
        idle_timeout: seconds(600),
        surplus_idle_timeout: seconds(600),
        launch_horizon: None,
        max_lifetime: seconds(3600),
        launch_timeout: seconds(300),
        declines: [].into(),
        direct: true,
        provider: ProviderSpec::Local(LocalSpec { nix_daemon: None, sshd: None, sandbox_paths: vec![] }),
    }
}

/// Machines of many sizes, bought like this; planned with four slots each.
pub(super) fn ec2_pool(name: &str, market: Market) -> PoolSpec {
    let spec = Ec2Spec {
        profile: None,
        regions: vec![],
        market,
        types: vec![],
        exact: false,
        max_price: None,
        image: ImageSpec::Id("ami-0".to_owned()),
        subnets: vec![],
        security_groups: vec![],
        reach: Reach::Public,
        disk: DiskSpec { size: 100, throughput: 250, iops: 3000 },
        idle_action: IdleAction::Terminate,
        lease: seconds(600),
        cache: None,
        expiry_role: None,
    };
    PoolSpec {
        slots: Slots::Auto { expected: 4, most: None },
        provider: ProviderSpec::Ec2(spec),
        ..pool(name, X86, &[])
    }
}

/// What a dollar an hour buys.
pub(super) fn class(market: Market) -> InstanceClass {
    InstanceClass {
        instance_type: "c7a.4xlarge".to_owned(),
        market,
        zone: "eu-central-1a".to_owned(),
        rate: HourlyRate(Usd::from_micros(1_000_000)),
        stopped_rate: HourlyRate(Usd::from_micros(10_000)),
    }
}

pub(super) fn request(system: &str, required: &[&str]) -> BuildRequest {
    let drv = DrvPath::parse("/nix/store/0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-hello.drv").unwrap();
    let requirement = Requirement::new(System::new(system), features(required));
    BuildRequest { am_willing: true, ..BuildRequest::new(drv, requirement) }
}

/// A derivation of its own for each build: what becomes of one says something of that one alone.
pub(super) fn drv(build: u64) -> DrvPath {
    DrvPath::parse(&format!("/nix/store/0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-hello-{build}.drv")).unwrap()
}

pub(super) fn facts(spec: &PoolSpec) -> BuilderFacts {
    let mut offer = spec.offer.clone();
    offer.features.insert(Feature::new(CA_DERIVATIONS));
    BuilderFacts { offer, processors: 4, nix_version: None, cpu_flags: BTreeSet::new() }
}

pub(super) fn fault(kind: BuilderFaultKind) -> BuilderFault {
    BuilderFault { kind, reason: format!("{kind:?} as told") }
}

pub(super) fn failed(kind: FailureKind) -> AttemptEnd {
    AttemptEnd::Failed(Failure::new(kind, format!("{kind:?} as told")))
}

/// A fleet, its clock, and what it wanted.
#[derive(Debug)]
pub(super) struct World {
    pub(super) fleet: Fleet,
    pub(super) now: Instant,
    specs: Vec<PoolSpec>,
    pub(super) running: BTreeMap<BuildId, (BuilderId, LeaseId)>,
    pub(super) pools_of: BTreeMap<BuilderId, PoolName>,
    pub(super) demands: BTreeMap<BuilderId, Demand>,
    pub(super) records: Vec<Record>,
    pub(super) terminated: Vec<BuilderId>,
    /// Garbage is collected there, as far as has been told.
    pub(super) collecting: BTreeSet<BuilderId>,
    pub(super) aborted: Vec<BuildId>,
    pub(super) ended: BTreeMap<BuildId, Outcome>,
    pub(super) exits: usize,
}

impl World {
    pub(super) fn new(specs: Vec<PoolSpec>) -> Self {
        Self::with_caps(specs, Caps::default())
    }

    pub(super) fn with_caps(specs: Vec<PoolSpec>, caps: Caps) -> Self {
        let now = Instant::now();
        let mut world = Self {
            fleet: Fleet::new(specs.clone(), now).with_money(caps, &Spent::default()),
            now,
            specs,
            running: BTreeMap::new(),
            pools_of: BTreeMap::new(),
            demands: BTreeMap::new(),
            records: vec![],
            terminated: vec![],
            collecting: BTreeSet::new(),
            aborted: vec![],
            ended: BTreeMap::new(),
            exits: 0,
        };
        world.fleet.check_invariants();
        if world.fleet.next_deadline().is_some() {
            world.apply(Event::Tick);
        }
        world
    }

    /// Applies, checks every invariant, and takes note of what is wanted.
    pub(super) fn apply(&mut self, event: Event) -> Vec<Action> {
        if let Event::AttemptEnded { build, lease, .. } = &event
            && self.running.get(build).is_some_and(|(_, running)| running == lease)
        {
            self.running.remove(build);
        }
        let actions = self.fleet.apply(self.now, event);
        for action in &actions {
            self.take_note(action);
        }
        self.fleet.check_invariants();
        actions
    }

    fn take_note(&mut self, action: &Action) {
        match action {
            Action::Launch { builder, pool, demand, .. } => {
                assert!(self.pools_of.insert(*builder, pool.clone()).is_none(), "{builder} launched twice");
                assert!(demand.builds > 0, "{builder} is launched for nothing");
                self.demands.insert(*builder, *demand);
            }
            Action::Terminate { builder, .. } => self.terminated.push(*builder),
            Action::CollectGarbage { builder, bytes } => {
                assert!(self.running.values().all(|(on, _)| on != builder), "{builder} is not idle");
                assert!(*bytes > 0, "nothing is collected on {builder}");
                self.collecting.insert(*builder);
            }
            Action::Start { build, builder, lease } => {
                assert!(!self.terminated.contains(builder), "{build} started on ended {builder}");
                assert!(self.running.insert(*build, (*builder, *lease)).is_none(), "{build} runs twice");
                assert!(!self.ended.contains_key(build), "{build} started after its end");
            }
            Action::Abort { build, lease } => {
                assert_eq!(self.running.get(build).map(|(_, running)| running), Some(lease));
                assert!(!self.aborted.contains(build) || self.fleet.explain(self.now, *build).is_some());
                self.aborted.push(*build);
            }
            Action::Tell { build, .. } => {
                assert!(!self.ended.contains_key(build), "{build} is told something after its end");
            }
            Action::Finish { build, outcome } => {
                assert!(!self.running.contains_key(build), "{build} finished while it runs");
                assert!(self.ended.insert(*build, outcome.clone()).is_none(), "{build} finished twice");
            }
            Action::Record(record) => self.records.push(record.clone()),
            Action::Exit => {
                assert!(self.running.is_empty(), "exit with running builds");
                self.exits += 1;
                assert_eq!(self.exits, 1, "exit twice");
            }
        }
    }

    pub(super) fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    /// Lets time pass as a driver would: with a tick at every deadline.
    pub(super) fn wait(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        let mut ticks = 0;
        while let Some(at) = self.fleet.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.apply(Event::Tick);
            ticks += 1;
            assert!(ticks < 100_000, "deadlines do not move");
        }
        self.now = end;
    }

    pub(super) fn accept(&mut self, id: u64, system: &str, required: &[&str]) {
        let request = BuildRequest { drv: drv(id), ..request(system, required) };
        self.apply(Event::Accepted { build: BuildId(id), request });
        self.apply(Event::InputsKnown(BuildId(id)));
    }

    /// The broker finds these: pool and age of each. Answers their ids.
    pub(super) fn adopt(&mut self, found: &[(&str, u64)]) -> Vec<u64> {
        let adoptions: Vec<Adoption> = found
            .iter()
            .map(|&(pool, age)| {
                let builder = self.fleet.reserve_builder();
                let pool = PoolName::new(pool);
                self.pools_of.insert(builder, pool.clone());
                let id = InstanceId::new(format!("i-{}", builder.0));
                Adoption { builder, instance: Instance { id, pool, class: None }, age: seconds(age) }
            })
            .collect();
        let ids = adoptions.iter().map(|adoption| adoption.builder.0).collect();
        self.apply(Event::Adopted(adoptions));
        ids
    }

    pub(super) fn launched(&mut self, builder: u64) -> Vec<Action> {
        let builder = BuilderId(builder);
        let id = InstanceId::new(format!("i-{}", builder.0));
        let instance = Instance { id, pool: self.pools_of[&builder].clone(), class: None };
        self.apply(Event::Launched { builder, instance })
    }

    pub(super) fn launched_as(&mut self, builder: u64, class: InstanceClass) -> Vec<Action> {
        let builder = BuilderId(builder);
        let id = InstanceId::new(format!("i-{}", builder.0));
        let instance = Instance { id, pool: self.pools_of[&builder].clone(), class: Some(class) };
        self.apply(Event::Launched { builder, instance })
    }

    /// The builder is ready with so many processors.
    pub(super) fn ready_with(&mut self, builder: u64, processors: u32) -> Vec<Action> {
        let facts = BuilderFacts { processors, ..self.facts_of(builder) };
        self.apply(Event::Ready { builder: BuilderId(builder), facts })
    }

    /// What the launches were for, in their order.
    pub(super) fn demanded(&self) -> Vec<(u32, bool)> {
        self.demands.values().map(|demand| (demand.builds, demand.on_demand_only)).collect()
    }

    pub(super) fn facts_of(&self, builder: u64) -> BuilderFacts {
        let name = &self.pools_of[&BuilderId(builder)];
        // Of a pool that is not configured any more nobody asks, but for random tests.
        facts(self.specs.iter().find(|spec| spec.name == *name).unwrap_or(&self.specs[0]))
    }

    pub(super) fn ready(&mut self, builder: u64) -> Vec<Action> {
        let facts = self.facts_of(builder);
        self.apply(Event::Ready { builder: BuilderId(builder), facts })
    }

    pub(super) fn lose(&mut self, builder: u64, kind: BuilderFaultKind) -> Vec<Action> {
        self.apply(Event::Lost { builder: BuilderId(builder), fault: fault(kind) })
    }

    pub(super) fn gone(&mut self, builder: u64) -> Vec<Action> {
        self.apply(Event::Gone(BuilderId(builder)))
    }

    pub(super) fn end(&mut self, build: u64, end: AttemptEnd) -> Vec<Action> {
        let (_, lease) = self.running[&BuildId(build)];
        self.apply(Event::AttemptEnded { build: BuildId(build), lease, end })
    }

    pub(super) fn launches(&self) -> usize {
        self.pools_of.len()
    }

    pub(super) fn builder_of(&self, build: u64) -> Option<u64> {
        self.running.get(&BuildId(build)).map(|(builder, _)| builder.0)
    }

    #[track_caller]
    pub(super) fn failure_of(&self, build: u64) -> Failure {
        match self.ended.get(&BuildId(build)) {
            Some(Outcome::Failed(failure)) => failure.clone(),
            other => panic!("#{build} did not fail: {other:?}"),
        }
    }
}

impl Fleet {
    /// What must be true between any two events.
    pub(in crate::scheduler) fn check_invariants(&self) {
        assert!(self.roster.indexes_equal(&self.roster.recount()), "an index of the roster is stale");
        for (ix, pool) in self.pools.iter().enumerate() {
            let (name, most) = (&pool.spec.name, pool.spec.max_builders);
            let of_pool = self.roster.iter().filter(|builder| builder.pool.0 == ix);
            // What an earlier broker launched is there whether there is room or not, but is not kept.
            let launched = of_pool.filter(|builder| !builder.is_adopted).count();
            assert!(launched <= most as usize, "{launched} builders in `{name}`");
            let staffed = self.roster.census(PoolIx(ix)).staffed();
            assert!(staffed <= most, "{staffed} builders of use in `{name}`");
        }
        for builder in self.roster.iter() {
            assert!(builder.used() <= builder.slots, "{} has too many leases", builder.id);
            let is_left_low = matches!(builder.disk(), Some(Disk::Low { .. })) && builder.leases.is_empty();
            assert!(!is_left_low, "{} is low on disk, and nobody does anything about it", builder.id);
            for (lease, build) in &builder.leases {
                let runs = matches!(&self.builds.get(build), Some(Build { stage: Stage::Running(run), .. })
                    if run.lease == *lease && run.builder == builder.id);
                assert!(runs, "{} has a lease of {build}, which does not run there", builder.id);
            }
        }
        let waiting = self.queue.builds();
        let running = self.builds.values().filter(|build| matches!(build.stage, Stage::Running(_))).count();
        assert!(self.ends.len() <= running, "the end of an attempt that has ended is awaited");
        assert_eq!(self.queue.running(), running, "a client's share is miscounted");
        let mut awaiting_inputs = 0;
        for build in self.builds.values() {
            let is_queued = matches!(build.stage, Stage::Queued { .. });
            assert_eq!(waiting.contains(&build.id), is_queued, "{} in the queue", build.id);
            match &build.stage {
                Stage::Accepted => awaiting_inputs += 1,
                Stage::Queued { .. } => {}
                Stage::Running(run) => {
                    if let Some(builder) = self.roster.get(run.builder) {
                        assert_eq!(builder.leases.get(&run.lease), Some(&build.id), "a lease was lost");
                    }
                }
            }
            assert!(!self.history.contains(build.id), "{} lives and has ended", build.id);
        }
        assert_eq!(awaiting_inputs, self.awaiting_inputs);
        assert!(waiting.iter().all(|build| self.builds.contains_key(build)), "an ended build waits");
        assert!(self.actions.is_empty() && self.newly_queued.is_empty());
        if self.mode == Mode::Exited {
            assert!(self.builds.is_empty() && self.roster.is_empty());
        }
        self.check_nothing_could_start();
    }

    /// A build waits only if none of its pools has a slot for it; or, if it avoids a builder, for something that comes; and
    /// where nothing is there, something is on its way as long as anything may be launched.
    fn check_nothing_could_start(&self) {
        for (_, lane) in self.queue.lanes() {
            let pools = || lane.fit.pools.iter();
            let census = || pools().map(|ix| self.roster.census(*ix));
            let is_open = census().any(|census| !census.open.is_empty());
            let refused = placement::refused(lane, &self.roster, &self.builds, |ix| self.ahead(ix));
            let is_at_once = !placement::holds_out_for_room(&lane.fit, &self.roster) && refused.is_none();
            assert!(
                !is_open || !is_at_once || lane.first_plain().is_none(),
                "a build waits beside a free slot"
            );
            let ready = || census().flat_map(|census| &census.ready).filter_map(|id| self.roster.get(*id));
            let gathers = pools().any(|ix| self.pools[ix.0].gathers_until().is_some());
            let launches = pools().any(|ix| self.room(*ix) > 0);
            let starts = census().any(|census| !census.starting.is_empty());
            // Suspicions end by themselves, and so does a gathering.
            let is_settled = ready().all(|builder| builder.is_open() || builder.free() == 0);
            let ends_soon = pools().any(|ix| {
                let soon = self.ends.soon(*ix, self.now, self.pools[ix.0].launch_takes(), &self.roster);
                soon != Default::default()
            });
            if starts || !is_settled || ends_soon || gathers || !launches {
                continue;
            }
            assert!(!is_open, "a build waits beside a free slot, and nothing is launched for it");
            assert!(ready().next().is_some(), "a build waits, and nothing is launched for it");
        }
    }
}

pub(super) fn one_pool() -> World {
    World::new(vec![pool("x86", X86, &[])])
}

/// A pool whose builders run one build each.
pub(super) fn single_slots(max_builders: u32) -> World {
    World::new(vec![PoolSpec { slots: Slots::Fixed(1), max_builders, ..pool("x86", X86, &[]) }])
}

pub(super) fn notes_to(actions: &[Action], build: u64) -> Vec<Note> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Tell { build: told, note } if told.0 == build => Some(note.clone()),
            Action::Tell { .. }
            | Action::Launch { .. }
            | Action::Terminate { .. }
            | Action::CollectGarbage { .. }
            | Action::Start { .. }
            | Action::Abort { .. }
            | Action::Finish { .. }
            | Action::Record(_)
            | Action::Exit => None,
        })
        .collect()
}

pub(super) fn ended(world: &World, build: u64) -> Option<&Outcome> {
    world.ended.get(&BuildId(build))
}
