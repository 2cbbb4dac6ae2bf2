//! A world under random events: what can happen, in good order and out of it, and the pools it happens to.
//!
//! Owns the steps and how they are drawn; what has to hold meanwhile and after them is in `properties`.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::fixtures::*;
use crate::model::ec2::Market;
use crate::model::requirement::CA_DERIVATIONS;
use crate::model::{
    BuildId, BuildRequest, BuilderFacts, BuilderId, Caps, ClientId, FailureKind, Feature, HourlyRate,
    Hundredths, Instance, InstanceId, LeaseId, Load, PoolName, PoolSpec, Prediction, Slots, Space, Usd,
    UtcDay,
};
use crate::scheduler::{AttemptEnd, BuilderFaultKind, Event, RunPhase, Selection};

/// One thing that happens. Indexes pick from what there is at that moment.
#[derive(Clone, Debug)]
pub(super) enum Step {
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
pub(super) struct Asked {
    kind: usize,
    /// Few, so that some are asked for again and again.
    drv: u64,
    client: u64,
    /// Predicted seconds, and of what waits for it.
    lasts: u64,
    tail: u64,
}

pub(super) fn asked() -> impl Strategy<Value = Asked> {
    let lasts = || prop_oneof![Just(0_u64), 1..100_u64, 100..20_000_u64, Just(u64::MAX)];
    let parts = (0..KINDS.len(), 0..12_u64, 0..4_u64, lasts(), lasts());
    parts.prop_map(|(kind, drv, client, lasts, tail)| Asked { kind, drv, client, lasts, tail })
}

impl Asked {
    /// The same of a kind that every pool for its system takes.
    pub(super) fn plain(self) -> Self {
        Self { kind: 0, ..self }
    }

    pub(super) fn request(self) -> BuildRequest {
        let (system, required) = KINDS[self.kind];
        BuildRequest {
            drv: drv(self.drv),
            client: ClientId(self.client),
            prediction: Prediction { tail: seconds(self.tail), ..Prediction::exact(seconds(self.lasts)) },
            ..request(system, required)
        }
    }
}

pub(super) fn step() -> impl Strategy<Value = Step> {
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
pub(super) fn failing_step() -> impl Strategy<Value = Step> {
    let index = any::<Index>;
    let end = prop_oneof![Just(0_usize), Just(5), Just(6)];
    prop_oneof![
        4 => asked().prop_map(|asked| Step::Accept(asked.plain())),
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

pub(super) fn fault_kind(number: usize) -> BuilderFaultKind {
    match number {
        4 => BuilderFaultKind::OverBudget,
        0 => BuilderFaultKind::LaunchFailed,
        1 => BuilderFaultKind::BootFailed,
        2 => BuilderFaultKind::Unfit,
        _ => BuilderFaultKind::ConnectionLost,
    }
}

pub(super) fn pools() -> impl Strategy<Value = Vec<PoolSpec>> {
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
pub(super) struct Chaos {
    pub(super) world: World,
    /// Builders that the provider has told us to be gone, so that it tells it again at most out of malice.
    pub(super) gone: Vec<BuilderId>,
    pub(super) last_build: u64,
    day: u32,
}

impl Chaos {
    pub(super) fn new(specs: Vec<PoolSpec>) -> Self {
        Self::with_caps(specs, Caps::default())
    }

    pub(super) fn with_caps(specs: Vec<PoolSpec>, caps: Caps) -> Self {
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

    pub(super) fn perform(&mut self, step: &Step) {
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
    pub(super) fn one_good_round(&mut self) {
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
