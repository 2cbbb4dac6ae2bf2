//! The scheduler under load: ten thousand builds on two hundred builders, through the public interface alone.
//!
//! It asserts that all of them end and prints what a decision costs; how long that may take is not asserted, because
//! that is a property of the machine.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use nix_broker::model::{
    BuildId, BuildRequest, BuilderFacts, BuilderId, DrvPath, Feature, LeaseId, LocalSpec, Offer, PoolName,
    PoolSpec, ProviderSpec, Requirement, Slots, System,
};
use nix_broker::scheduler::{Action, AttemptEnd, Event, Fleet};

const BUILDS: u64 = 10_000;
const BUILDERS_PER_POOL: u32 = 50;

fn pool(name: &str, features: &[&str]) -> PoolSpec {
    PoolSpec {
        name: PoolName::new(name),
        offer: Offer {
            systems: [System::new("x86_64-linux")].into(),
            features: features.iter().map(|&feature| Feature::new(feature)).collect(),
            mandatory: [].into(),
        },
        slots: Slots::Fixed(8),
        min_builders: 0,
        max_builders: BUILDERS_PER_POOL,
        idle_timeout: Duration::from_secs(600),
        surplus_idle_timeout: Duration::from_secs(600),
        launch_horizon: None,
        max_lifetime: Duration::from_secs(36_000),
        launch_timeout: Duration::from_secs(300),
        declines: [].into(),
        direct: true,
        provider: ProviderSpec::Local(LocalSpec { nix_daemon: None, sshd: None, sandbox_paths: vec![] }),
    }
}

fn request(number: u64) -> BuildRequest {
    let features: &[&str] = match number % 4 {
        0 => &["kvm"],
        1 => &["big-parallel"],
        2 => &["kvm", "big-parallel"],
        _ => &[],
    };
    let drv = "/nix/store/0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-hello.drv";
    let Ok(drv) = DrvPath::parse(drv) else { panic!("{drv} is valid") };
    let features = features.iter().map(|&feature| Feature::new(feature)).collect();
    let requirement = Requirement::new(System::new("x86_64-linux"), features);
    BuildRequest { am_willing: true, ..BuildRequest::new(drv, requirement) }
}

#[test]
fn ten_thousand_builds_on_two_hundred_builders_all_end() {
    let specs = vec![
        pool("plain", &[]),
        pool("kvm", &["kvm"]),
        pool("big", &["big-parallel"]),
        pool("all", &["kvm", "big-parallel"]),
    ];
    let now = Instant::now();
    let mut fleet = Fleet::new(specs.clone(), now);
    let mut running: VecDeque<(BuildId, LeaseId)> = VecDeque::new();
    let mut starting: Vec<(BuilderId, PoolName)> = vec![];
    let mut finished = 0;
    let mut events = 0_u32;
    let mut apply = |fleet: &mut Fleet,
                     event: Event,
                     running: &mut VecDeque<(BuildId, LeaseId)>,
                     starting: &mut Vec<(BuilderId, PoolName)>| {
        events += 1;
        for action in fleet.apply(now, event) {
            match action {
                Action::Start { build, lease, .. } => running.push_back((build, lease)),
                Action::Launch { builder, pool, .. } => starting.push((builder, pool)),
                Action::Finish { .. } => finished += 1,
                Action::Terminate { .. }
                | Action::CollectGarbage { .. }
                | Action::Abort { .. }
                | Action::Tell { .. }
                | Action::Record(_)
                | Action::Exit => {}
            }
        }
    };
    for number in 1..=BUILDS {
        let build = BuildId(number);
        let accepted = Event::Accepted { build, request: request(number) };
        apply(&mut fleet, accepted, &mut running, &mut starting);
        apply(&mut fleet, Event::InputsKnown(build), &mut running, &mut starting);
    }
    let queued = now.elapsed();
    assert_eq!(starting.len(), 4 * BUILDERS_PER_POOL as usize);
    for (builder, pool) in std::mem::take(&mut starting) {
        let offer = specs.iter().find(|spec| spec.name == pool).unwrap().offer.clone();
        let facts = BuilderFacts {
            offer,
            processors: 8,
            nix_version: None,
            cpu_flags: std::collections::BTreeSet::new(),
        };
        apply(&mut fleet, Event::Ready { builder, facts }, &mut running, &mut starting);
    }
    let status_took = Instant::now();
    assert_eq!(fleet.status(now).builds.len() as u64, BUILDS);
    let status_took = status_took.elapsed();
    while let Some((build, lease)) = running.pop_front() {
        assert!(fleet.next_deadline().is_some());
        let end = AttemptEnd::Succeeded;
        apply(&mut fleet, Event::AttemptEnded { build, lease, end }, &mut running, &mut starting);
    }
    let took = now.elapsed() - status_took;
    println!(
        "{events} events in {took:?}, {:.0} a second; queueing took {queued:?}, one status {status_took:?}",
        f64::from(events) / took.as_secs_f64()
    );
    assert_eq!(finished, BUILDS);
}
