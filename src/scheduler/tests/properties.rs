//! Random interleavings of everything that can happen, in good order and out of it.
//!
//! After each event every invariant holds; when the faults stop, every accepted build ends and the fleet shrinks to
//! its minimum; and when a shutdown is asked for, the broker comes to its end.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::FileFailurePersistence;

use super::fixtures::*;
use crate::model::ec2::Market;
use crate::model::requirement::CA_DERIVATIONS;
use crate::model::{
    BuildId, BuildRequest, BuilderFacts, BuilderId, Caps, ClientId, FailureKind, Feature, HourlyRate,
    Hundredths, Instance, InstanceId, LeaseId, Load, Outcome, PoolName, PoolSpec, Prediction, Slots, Space,
    Usd, UtcDay,
};
use crate::scheduler::rank::MOST_AHEAD;
use crate::scheduler::{AttemptEnd, BuilderFaultKind, Event, RunPhase, Selection};

/// One thing that happens. Indexes pick from what there is at that moment.
#[derive(Clone, Debug)]
enum Step {
    Accept(Asked),
    /// The same build once more, or inputs of one that has ended.
    Repeat(Index),
    WithholdInputs(Asked),
    Inputs(Index),
    ClientGone(Index),
    Progress(Index, usize),
    EndAttempt(Index, usize),
    /// An end under a lease that never was, or is past.
    StaleEnd(u64, u64),
    Launched(Index),
    Adopt(Vec<(usize, u64)>),
    Ready(Index, usize),
    Load(Index, usize),
    Collected(Index),
    Lost(Index, usize),
    Gone(Index),
    Interrupted(Index),
    Endangered(Index),
    Clock(u32),
    Start(usize),
    Drain(Index),
    DrainAll,
    Stop(Index),
    StopAll,
    Tick,
    Pass(u64),
    Shutdown,
    Force,
}

/// What one build is.
#[derive(Clone, Copy, Debug)]
struct Asked {
    kind: usize,
    /// Few, so that some are asked for again and again.
    drv: u64,
    client: u64,
    /// Predicted seconds, and of what waits for it.
    lasts: u64,
    tail: u64,
}

fn asked() -> impl Strategy<Value = Asked> {
    let lasts = || prop_oneof![Just(0_u64), 1..100_u64, 100..20_000_u64, Just(u64::MAX)];
    let parts = (0..KINDS.len(), 0..12_u64, 0..4_u64, lasts(), lasts());
    parts.prop_map(|(kind, drv, client, lasts, tail)| Asked { kind, drv, client, lasts, tail })
}

impl Asked {
    fn request(self) -> BuildRequest {
        let (system, required) = KINDS[self.kind];
        BuildRequest {
            drv: drv(self.drv),
            client: ClientId(self.client),
            prediction: Prediction { tail: seconds(self.tail), ..Prediction::exact(seconds(self.lasts)) },
            ..request(system, required)
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<Index>;
    prop_oneof![
        8 => asked().prop_map(Step::Accept),
        1 => index().prop_map(Step::Repeat),
        1 => asked().prop_map(Step::WithholdInputs),
        1 => index().prop_map(Step::Inputs),
        2 => index().prop_map(Step::ClientGone),
        1 => (index(), 0..3_usize).prop_map(|(at, phase)| Step::Progress(at, phase)),
        8 => (index(), 0..ENDS).prop_map(|(at, end)| Step::EndAttempt(at, end)),
        1 => (0..40_u64, 0..60_u64).prop_map(|(build, lease)| Step::StaleEnd(build, lease)),
        5 => index().prop_map(Step::Launched),
        1 => vec((0..4_usize, 0..8000_u64), 0..4).prop_map(Step::Adopt),
        8 => (index(), 0..12_usize).prop_map(|(at, facts)| Step::Ready(at, facts)),
        3 => (index(), 0..LOADS).prop_map(|(at, load)| Step::Load(at, load)),
        1 => index().prop_map(Step::Collected),
        3 => (index(), 0..5_usize).prop_map(|(at, kind)| Step::Lost(at, kind)),
        5 => index().prop_map(Step::Gone),
        2 => index().prop_map(Step::Interrupted),
        1 => index().prop_map(Step::Endangered),
        2 => (0..3_u32).prop_map(Step::Clock),
        1 => (0..3_usize).prop_map(Step::Start),
        1 => index().prop_map(Step::Drain),
        1 => Just(Step::DrainAll),
        1 => index().prop_map(Step::Stop),
        1 => Just(Step::StopAll),
        3 => Just(Step::Tick),
        4 => prop_oneof![0..10_u64, 30..90_u64, 200..700_u64, 3000..9000_u64].prop_map(Step::Pass),
    ]
}

/// Builds of one kind that fail or lose their builder as often as not, and machines that come up well.
fn failing_step() -> impl Strategy<Value = Step> {
    let index = any::<Index>;
    let end = prop_oneof![Just(0_usize), Just(5), Just(6)];
    prop_oneof![
        4 => asked().prop_map(|asked| Step::Accept(Asked { kind: 0, ..asked })),
        3 => index().prop_map(Step::Launched),
        5 => index().prop_map(|at| Step::Ready(at, 5)),
        6 => (index(), end).prop_map(|(at, end)| Step::EndAttempt(at, end)),
        2 => Just(Step::Pass(6)),
        3 => Just(Step::Tick),
    ]
}

/// What builds ask for: something each pool has, something both have, something nobody has.
const KINDS: [(&str, &[&str]); 7] = [
    (X86, &[]),
    (X86, &["kvm"]),
    (ARM, &[]),
    (X86, &[CA_DERIVATIONS]),
    ("builtin", &[]),
    (ARM, &["kvm"]),
    (X86, &["big-parallel"]),
];
const ENDS: usize = 12;

fn end_of(number: usize) -> AttemptEnd {
    match number {
        0..=3 => AttemptEnd::Succeeded,
        4 => failed(FailureKind::Derivation),
        5 => failed(FailureKind::Transient),
        6 | 7 => failed(FailureKind::BuilderLost),
        8 => failed(FailureKind::Transfer),
        9 => failed(FailureKind::Broker),
        10 => failed(FailureKind::NoSpace),
        _ => AttemptEnd::Aborted,
    }
}

const LOADS: usize = 5;

/// What a builder may say of itself: that it has enough, that memory is short in either way, next to nothing.
fn load_of(number: usize) -> Load {
    let percent = |percent: u64| Space::new(100 << 30, percent << 30);
    let (memory, pressure, disk) = match number {
        0 => (percent(50), Some(0), percent(50)),
        1 => (percent(5), Some(0), percent(50)),
        2 => (percent(50), Some(40_00), percent(50)),
        3 => (percent(12), Some(15_00), percent(1)),
        _ => (None, None, None),
    };
    Load { memory, memory_pressure: pressure.map(Hundredths), disk, ..Load::default() }
}

fn fault_kind(number: usize) -> BuilderFaultKind {
    match number {
        4 => BuilderFaultKind::OverBudget,
        0 => BuilderFaultKind::LaunchFailed,
        1 => BuilderFaultKind::BootFailed,
        2 => BuilderFaultKind::Unfit,
        _ => BuilderFaultKind::ConnectionLost,
    }
}

fn pools() -> impl Strategy<Value = Vec<PoolSpec>> {
    let shape = || {
        let idle = prop_oneof![Just((0_u64, 0_u64)), Just((5, 5)), Just((600, 600)), Just((600, 60))];
        (0..2_u32, 1..4_u32, 1..4_u32, idle, any::<bool>(), 0..3_u8)
    };
    (shape(), shape(), shape()).prop_map(|(a, b, c)| {
        let specs =
            [pool("plain", X86, &["big-parallel"]), pool("kvm", X86, &["kvm"]), pool("arm", ARM, &["kvm"])];
        specs
            .into_iter()
            .zip([a, b, c])
            .map(|(spec, (min, max, slots, (idle, surplus), auto, machines))| PoolSpec {
                provider: match machines {
                    0 => ec2_pool("ec2", Market::OnDemand).provider,
                    1 => ec2_pool("ec2", Market::Spot).provider,
                    _ => spec.provider,
                },
                min_builders: min.min(max),
                max_builders: max,
                slots: match auto {
                    true => Slots::Auto { expected: slots, most: (max > 2).then_some(4) },
                    false => Slots::Fixed(slots),
                },
                idle_timeout: seconds(idle),
                surplus_idle_timeout: seconds(surplus),
                launch_horizon: [None, Some(0), Some(surplus)][slots as usize % 3].map(seconds),
                ..spec
            })
            .collect()
    })
}

/// A world under random events.
struct Chaos {
    world: World,
    /// Builders that the provider has told us to be gone, so that it tells it again at most out of malice.
    gone: Vec<BuilderId>,
    last_build: u64,
    day: u32,
}

impl Chaos {
    fn new(specs: Vec<PoolSpec>) -> Self {
        Self::with_caps(specs, Caps::default())
    }

    fn with_caps(specs: Vec<PoolSpec>, caps: Caps) -> Self {
        Self { world: World::with_caps(specs, caps), gone: vec![], last_build: 0, day: 1 }
    }

    fn builder(&self, at: Index) -> BuilderId {
        // One that never was is among them.
        BuilderId(at.index(self.world.launches() + 2) as u64)
    }

    fn build(&self, at: Index) -> BuildId {
        BuildId(at.index(self.last_build as usize + 2) as u64)
    }

    fn facts(&self, builder: BuilderId, variant: usize) -> BuilderFacts {
        let known = self.world.pools_of.contains_key(&builder);
        let mut facts = self.world.facts_of(if known { builder.0 } else { 1 });
        match variant {
            0 => facts.offer.features.clear(),
            1 => facts.offer.systems.clear(),
            2 => {
                facts.offer.features.remove(&Feature::new(CA_DERIVATIONS));
            }
            3 => facts.processors = 0,
            4 => facts.processors = u32::MAX,
            6 => facts.processors = 1,
            7 => facts.processors = 2,
            8 => facts.processors = 16,
            _ => {}
        }
        facts
    }

    fn perform(&mut self, step: &Step) {
        let world = &mut self.world;
        match step {
            Step::Accept(asked) | Step::WithholdInputs(asked) => {
                self.last_build += 1;
                let build = BuildId(self.last_build);
                world.apply(Event::Accepted { build, request: asked.request() });
                let builders = (0..asked.drv).map(BuilderId).collect();
                world.apply(Event::InputsMadeOn { build, builders });
                if matches!(step, Step::Accept(_)) {
                    world.apply(Event::InputsKnown(build));
                }
            }
            Step::Repeat(at) => {
                let build = BuildId(at.index(self.last_build as usize + 1) as u64);
                if build.0 > 0 {
                    world.apply(Event::Accepted { build, request: request(X86, &[]) });
                }
            }
            Step::Inputs(at) => {
                let build = self.build(*at);
                self.world.apply(Event::InputsKnown(build));
            }
            Step::ClientGone(at) => {
                let build = self.build(*at);
                self.world.apply(Event::ClientGone(build));
            }
            Step::Progress(at, phase) => {
                let build = self.build(*at);
                let lease = self.world.running.get(&build).map_or(LeaseId(1), |(_, lease)| *lease);
                let phase = [RunPhase::Uploading, RunPhase::Building, RunPhase::Downloading][*phase];
                self.world.apply(Event::Progressed { build, lease, phase });
            }
            Step::EndAttempt(at, end) => {
                let running: Vec<BuildId> = world.running.keys().copied().collect();
                if !running.is_empty() {
                    world.end(at.get(&running).0, end_of(*end));
                }
            }
            Step::StaleEnd(build, lease) => {
                let (build, lease) = (BuildId(*build), LeaseId(*lease));
                world.apply(Event::AttemptEnded { build, lease, end: AttemptEnd::Succeeded });
            }
            Step::Launched(at) => {
                let builder = self.builder(*at);
                let class =
                    [Some(class(Market::Spot)), Some(class(Market::OnDemand)), None][at.index(3)].clone();
                let instance = Instance { id: InstanceId::new("i-0"), pool: PoolName::new("plain"), class };
                self.world.apply(Event::Launched { builder, instance });
            }
            Step::Adopt(found) => {
                let pool = |ix: usize| ["plain", "kvm", "arm", "no such pool"][ix];
                world.adopt(&found.iter().map(|(ix, age)| (pool(*ix), *age)).collect::<Vec<_>>());
            }
            Step::Ready(at, variant) => {
                let builder = self.builder(*at);
                if self.world.launches() > 0 {
                    let facts = self.facts(builder, *variant);
                    self.world.apply(Event::Ready { builder, facts });
                }
            }
            Step::Load(at, number) => {
                let builder = self.builder(*at);
                self.world.apply(Event::Load { builder, load: load_of(*number) });
            }
            Step::Collected(at) => {
                let builder = self.builder(*at);
                self.world.apply(Event::Collected(builder));
            }
            Step::Lost(at, kind) => {
                let builder = self.builder(*at);
                self.world.lose(builder.0, fault_kind(*kind));
            }
            Step::Gone(at) => {
                let builder = self.builder(*at);
                self.gone.push(builder);
                self.world.apply(Event::Gone(builder));
            }
            Step::Interrupted(at) => {
                let (builder, within) = (self.builder(*at), Some(seconds(at.index(120) as u64)));
                self.world.apply(Event::Interrupted { builder, within, why: "as told".to_owned() });
            }
            Step::Clock(days) => {
                self.day += days;
                let aside = vec![(PoolName::new("plain"), HourlyRate(Usd::from_micros(5_000)))];
                self.world.apply(Event::Clock { day: UtcDay(self.day), aside });
            }
            Step::Endangered(at) => {
                let builder = self.builder(*at);
                self.world.apply(Event::Endangered { builder, why: "as told".to_owned() });
            }
            Step::Start(pool) => {
                let name = PoolName::new(["plain", "kvm", "no such pool"][*pool]);
                world.apply(Event::StartRequested(name));
            }
            Step::Drain(at) => {
                let builder = self.builder(*at);
                self.world.apply(Event::DrainRequested(Selection::One(builder)));
            }
            Step::DrainAll => {
                world.apply(Event::DrainRequested(Selection::All));
            }
            Step::Stop(at) => {
                let builder = self.builder(*at);
                self.world.apply(Event::StopRequested(Selection::One(builder)));
            }
            Step::StopAll => {
                world.apply(Event::StopRequested(Selection::All));
            }
            Step::Tick => {
                world.apply(Event::Tick);
            }
            Step::Pass(seconds) => world.pass(*seconds),
            Step::Shutdown => {
                world.apply(Event::ShutdownRequested);
            }
            Step::Force => {
                world.apply(Event::ShutdownForced);
            }
        }
    }

    /// From here on nothing fails: one round of everything that a well-behaved driver would report.
    fn one_good_round(&mut self) {
        for build in 1..=self.last_build {
            self.world.apply(Event::InputsKnown(BuildId(build)));
        }
        let living: Vec<_> = self.world.fleet.status(self.world.now).builders;
        for builder in living {
            if self.world.terminated.contains(&builder.id) {
                self.world.apply(Event::Gone(builder.id));
            } else {
                self.world.ready(builder.id.0);
            }
        }
        for builder in std::mem::take(&mut self.world.collecting) {
            self.world.apply(Event::Collected(builder));
        }
        let running: Vec<BuildId> = self.world.running.keys().copied().collect();
        for build in running {
            let was_stopped = self.world.aborted.contains(&build);
            let end = if was_stopped { AttemptEnd::Aborted } else { AttemptEnd::Succeeded };
            // An abort of an earlier attempt is indistinguishable here, so a stop that nobody asked for may be told.
            self.world.end(build.0, end);
        }
        self.world.wait(20);
    }
}

fn specs_min(specs: &[PoolSpec]) -> usize {
    specs.iter().map(|spec| spec.min_builders as usize).sum()
}

fn caps() -> impl Strategy<Value = Caps> {
    let amount =
        || prop_oneof![Just(None), (1_u64..4_000_000).prop_map(|micros| Some(Usd::from_micros(micros)))];
    (amount(), amount(), amount()).prop_map(|(hour, day, month)| Caps {
        hour: hour.map(HourlyRate),
        day,
        month,
    })
}

/// Launches since there were so many in pools that cost nothing.
fn unpaid_launches(chaos: &Chaos, before: usize) -> usize {
    let status = chaos.world.fleet.status(chaos.world.now);
    let is_free =
        |name: &PoolName| status.pools.iter().any(|pool| pool.name == *name && pool.money.is_none());
    chaos.world.pools_of.values().skip(before).filter(|name| is_free(name)).count()
}

/// Seeds of failures are kept beside this file, not in the top level of the repository.
fn config() -> ProptestConfig {
    let persistence = FileFailurePersistence::WithSource("seeds");
    ProptestConfig { failure_persistence: Some(Box::new(persistence)), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn under_any_caps_every_build_ends_and_nothing_runs_that_may_not(
        specs in pools(),
        caps in caps(),
        steps in vec(step(), 1..120),
    ) {
        // What a pool keeps can keep the rest of the cap from all others for ever: a person's decision.
        let specs: Vec<PoolSpec> = specs.into_iter().map(|spec| PoolSpec { min_builders: 0, ..spec }).collect();
        let mut chaos = Chaos::with_caps(specs, caps);
        for step in &steps {
            chaos.perform(step);
            let money = chaos.world.fleet.status(chaos.world.now).money.unwrap_or_default();
            let over_the_day = caps.day.is_some_and(|cap| money.today >= cap);
            let before = chaos.world.launches();
            chaos.world.apply(Event::Tick);
            // Adopted ones come into a world that is over its cap already.
            let paid: Vec<_> = chaos.world.fleet.status(chaos.world.now).pools;
            let paid: Vec<_> = paid.into_iter().filter(|pool| pool.money.is_some()).collect();
            if over_the_day {
                prop_assert_eq!(chaos.world.launches(), before + unpaid_launches(&chaos, before));
                prop_assert!(paid.iter().all(|pool| pool.ready + pool.starting == 0), "{:?}", paid);
            }
        }
        for _ in 0..200 + chaos.last_build {
            if chaos.world.ended.len() == chaos.last_build as usize {
                break;
            }
            chaos.one_good_round();
            chaos.world.wait(60);
        }
        for build in 1..=chaos.last_build {
            prop_assert!(chaos.world.ended.contains_key(&BuildId(build)), "#{build} never ended");
        }
    }

    #[test]
    fn when_faults_stop_every_build_ends_and_the_fleet_shrinks_to_its_minimum(
        specs in pools(),
        steps in vec(step(), 1..120),
    ) {
        let mut chaos = Chaos::new(specs.clone());
        for step in &steps {
            chaos.perform(step);
        }
        // The longest rest is five minutes, and a slot serves one build a round.
        for _ in 0..60 + chaos.last_build {
            if chaos.world.ended.len() == chaos.last_build as usize {
                break;
            }
            chaos.one_good_round();
        }
        for build in 1..=chaos.last_build {
            prop_assert!(chaos.world.ended.contains_key(&BuildId(build)), "#{build} never ended");
        }
        // Old age and idleness take their time, and so does the rest of a pool whose last builder left slowly.
        chaos.world.wait(700);
        for _ in 0..20 {
            chaos.one_good_round();
        }
        // One that is kept grows too old at any time, also now: it leaves, and the next one of its pool comes.
        for _ in 0..2 * specs.len() {
            if chaos.world.fleet.status(chaos.world.now).builders.len() != specs_min(&specs) {
                chaos.one_good_round();
            }
        }
        let status = chaos.world.fleet.status(chaos.world.now);
        prop_assert_eq!(status.builders.len(), specs_min(&specs), "{:?}", status.builders);
        prop_assert!(status.builders.iter().all(|builder| builder.slots_used == 0));
        for builder in chaos.world.pools_of.keys() {
            let lives = status.builders.iter().any(|living| living.id == *builder);
            let ended = chaos.world.terminated.contains(builder) || chaos.gone.contains(builder);
            prop_assert!(lives || ended, "{} was forgotten", builder);
        }
    }

    #[test]
    fn a_shutdown_at_any_moment_finishes_what_was_accepted_and_exits_once(
        specs in pools(),
        before in vec(step(), 0..60),
        after in vec(step(), 0..30),
        forced in any::<bool>(),
    ) {
        let mut chaos = Chaos::new(specs);
        for step in &before {
            chaos.perform(step);
        }
        chaos.perform(&Step::Shutdown);
        prop_assert!(!chaos.world.fleet.offers().accepting);
        for step in &after {
            chaos.perform(step);
        }
        if forced {
            chaos.perform(&Step::Force);
            let shutting_down = chaos.world.running.len();
            prop_assert!(chaos.world.ended.len() + shutting_down >= chaos.last_build as usize);
        }
        for _ in 0..60 + chaos.last_build {
            if chaos.world.exits > 0 {
                break;
            }
            chaos.one_good_round();
        }
        prop_assert_eq!(chaos.world.ended.len(), chaos.last_build as usize);
        prop_assert_eq!(chaos.world.exits, 1);
        prop_assert_eq!(chaos.world.fleet.next_deadline(), None);
    }

    #[test]
    fn a_provider_that_never_works_makes_every_build_fail_in_bounded_time(
        specs in pools(),
        kinds in vec(asked(), 1..20),
        fault in 0..3_usize,
    ) {
        let mut chaos = Chaos::new(specs);
        for kind in &kinds {
            chaos.perform(&Step::Accept(*kind));
        }
        for _ in 0..200 {
            let living = chaos.world.fleet.status(chaos.world.now).builders;
            for builder in living {
                if chaos.world.terminated.contains(&builder.id) {
                    chaos.world.gone(builder.id.0);
                } else {
                    chaos.world.lose(builder.id.0, fault_kind(fault));
                }
            }
            chaos.world.wait(10);
        }
        prop_assert_eq!(chaos.world.ended.len(), kinds.len());
        for outcome in chaos.world.ended.values() {
            let Outcome::Failed(failure) = outcome else { panic!("{outcome:?}") };
            prop_assert_eq!(failure.kind, FailureKind::Provider);
        }
    }

    #[test]
    fn nothing_is_overtaken_by_its_own_client_s_builds_of_half_an_hour_later(
        asked in vec((asked(), 0..1_000_u64), 1..60),
        slots in 1..4_u32,
    ) {
        let spec = PoolSpec { slots: Slots::Fixed(slots), max_builders: 1, max_lifetime: seconds(1 << 40), ..pool("x86", X86, &[]) };
        let mut world = World::new(vec![spec]);
        let mut accepted = std::collections::BTreeMap::new();
        let mut started: Vec<BuildId> = Vec::new();
        for (id, (asked, pause)) in (1..).zip(&asked) {
            let build = BuildId(id);
            let request = BuildRequest { drv: drv(id), ..Asked { kind: 0, ..*asked }.request() };
            accepted.insert(build, (world.now, request.client));
            world.apply(Event::Accepted { build, request });
            world.apply(Event::InputsKnown(build));
            if id == 1 {
                world.ready(1);
            }
            let fresh: Vec<_> = world.running.keys().filter(|build| !started.contains(build)).copied().collect();
            started.extend(fresh);
            world.pass(*pause);
        }
        // One ends at a time; what starts then is the scheduler's choice.
        while let Some(build) = world.running.keys().next().copied() {
            world.end(build.0, AttemptEnd::Succeeded);
            let fresh: Vec<_> = world.running.keys().filter(|build| !started.contains(build)).copied().collect();
            started.extend(fresh);
            world.pass(100);
        }
        prop_assert_eq!(started.len(), asked.len());
        for (place, late) in started.iter().enumerate() {
            for early in &started[..place] {
                let ((late_at, late_client), (early_at, early_client)) = (accepted[late], accepted[early]);
                let ahead = early_at.saturating_duration_since(late_at);
                prop_assert!(late_client != early_client || ahead <= MOST_AHEAD, "{} overtook {}", early, late);
            }
        }
    }

    #[test]
    fn whoever_has_nothing_running_is_served_before_who_has(
        asked in vec(asked(), 2..40),
        slots in 1..5_u32,
    ) {
        let spec = PoolSpec { slots: Slots::Fixed(slots), max_builders: 1, ..pool("x86", X86, &[]) };
        let mut world = World::new(vec![spec]);
        let mut clients = std::collections::BTreeMap::new();
        for (id, asked) in (1..).zip(&asked) {
            let build = BuildId(id);
            let request = BuildRequest { drv: drv(id), ..Asked { kind: 0, ..*asked }.request() };
            clients.insert(build, request.client);
            world.apply(Event::Accepted { build, request });
            world.apply(Event::InputsKnown(build));
        }
        world.ready(1);
        while let Some(build) = world.running.keys().next().copied() {
            let before: std::collections::BTreeSet<BuildId> = world.running.keys().copied().collect();
            world.end(build.0, AttemptEnd::Succeeded);
            let share = |client: ClientId| before.iter().filter(|other| **other != build && clients[*other] == client).count();
            let waiting: Vec<_> = clients.keys().filter(|build| !before.contains(build) && !world.running.contains_key(build) && !world.ended.contains_key(build)).collect();
            if let Some(next) = world.running.keys().find(|build| !before.contains(build)) {
                let least = waiting.iter().map(|build| share(clients[build])).min();
                prop_assert!(least.is_none_or(|least| share(clients[next]) <= least), "{} was not its turn", next);
            }
        }
        prop_assert_eq!(world.ended.len(), asked.len());
    }

    /// The invariants say it after every event; here builds fail often, on machines that are full and of both kinds.
    #[test]
    fn what_avoids_a_builder_waits_for_something_that_comes(
        shapes in vec((1..4_u32, 1..4_u32, any::<bool>()), 1..3),
        steps in vec(failing_step(), 10..80),
    ) {
        let specs = shapes.iter().zip(["plain", "kvm"]).map(|((max_builders, slots, is_spot), name)| {
            let market = if *is_spot { Market::Spot } else { Market::OnDemand };
            PoolSpec { max_builders: *max_builders, slots: Slots::Fixed(*slots), ..ec2_pool(name, market) }
        });
        let mut chaos = Chaos::new(specs.collect());
        for step in &steps {
            chaos.perform(step);
        }
    }

    #[test]
    fn the_same_events_give_the_same_actions(specs in pools(), steps in vec(step(), 1..60)) {
        let mut chaos = Chaos::new(specs);
        for step in &steps {
            let mut twin = chaos.world.fleet.clone();
            let (now, event) = (chaos.world.now, Event::Tick);
            prop_assert_eq!(twin.apply(now, event.clone()), chaos.world.apply(event));
            chaos.perform(step);
        }
    }
}
