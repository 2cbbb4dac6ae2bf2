//! What a decision costs: ten thousand builds on two hundred builders, from the request to the end, without any I/O.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "the macros write the functions; a bench that cannot go on panics"
)]

use std::collections::VecDeque;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use nix_broker::config::{Config, Defaults, parse};
use nix_broker::model::{
    BuildId, BuildRequest, BuilderFacts, DrvPath, Feature, Requirement, System,
};
use nix_broker::scheduler::{Action, AttemptEnd, Event, Fleet};

const BUILDS: u64 = 10_000;
const POOLS: [&str; 4] = ["", "\"kvm\"", "\"big-parallel\"", "\"kvm\", \"big-parallel\""];

fn config() -> Config {
    let pool = |(number, features): (usize, &&str)| {
        format!(
            "[[pool]]\nname = \"p{number}\"\nsystems = [\"x86_64-linux\"]\nfeatures = [{features}]\nslots = 8\n\
             max-builders = 50\nidle-timeout = \"1h\"\n[pool.local]\n"
        )
    };
    let text: String = POOLS.iter().enumerate().map(pool).collect();
    let defaults =
        Defaults { system: System::new("x86_64-linux"), processors: 8, state_dir: PathBuf::from("/tmp") };
    parse(&text, &defaults, &|path| std::fs::read_to_string(path)).unwrap()
}

fn request(number: u64) -> BuildRequest {
    let features: &[&str] = match number % 4 {
        0 => &["kvm"],
        1 => &["big-parallel"],
        2 => &["kvm", "big-parallel"],
        _ => &[],
    };
    let drv = DrvPath::parse("/nix/store/0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-hello.drv").unwrap();
    let features = features.iter().map(|&feature| Feature::new(feature)).collect();
    let requirement = Requirement::new(System::new("x86_64-linux"), features);
    BuildRequest { am_willing: true, ..BuildRequest::new(drv, requirement) }
}

/// Every build once through the fleet; says how many events that took.
fn run(config: &Config) -> u64 {
    let now = Instant::now();
    let mut fleet = Fleet::new(config.pools.clone(), now);
    let (mut events, mut running, mut starting) = (0, VecDeque::new(), Vec::new());
    let mut apply = |fleet: &mut Fleet, event, running: &mut VecDeque<_>, starting: &mut Vec<_>| {
        events += 1;
        for action in fleet.apply(now, event) {
            if let Action::Start { build, lease, .. } = action {
                running.push_back((build, lease));
            } else if let Action::Launch { builder, pool, .. } = action {
                starting.push((builder, pool));
            }
        }
    };
    for build in (1..=BUILDS).map(BuildId) {
        let accepted = Event::Accepted { build, request: request(build.0) };
        apply(&mut fleet, accepted, &mut running, &mut starting);
        apply(&mut fleet, Event::InputsKnown(build), &mut running, &mut starting);
    }
    for (builder, pool) in std::mem::take(&mut starting) {
        let spec = config.pools.iter().find(|spec| spec.name == pool).unwrap();
        let facts = BuilderFacts {
            offer: spec.offer.clone(),
            processors: 8,
            nix_version: None,
            cpu_flags: Default::default(),
        };
        apply(&mut fleet, Event::Ready { builder, facts }, &mut running, &mut starting);
    }
    let mut ended = 0;
    while let Some((build, lease)) = running.pop_front() {
        let event = Event::AttemptEnded { build, lease, end: AttemptEnd::Succeeded };
        apply(&mut fleet, event, &mut running, &mut starting);
        ended += 1;
    }
    assert_eq!(ended, BUILDS);
    events
}

fn decisions(criterion: &mut Criterion) {
    let config = config();
    let mut group = criterion.benchmark_group("scheduler");
    group.sample_size(10).throughput(Throughput::Elements(run(&config)));
    group.bench_function("10,000 builds on 200 builders", |bencher| bencher.iter(|| run(&config)));
    group.throughput(Throughput::Elements(1));
    let mut fleet = Fleet::new(config.pools.clone(), Instant::now());
    for build in (1..=BUILDS).map(BuildId) {
        drop(fleet.apply(Instant::now(), Event::Accepted { build, request: request(build.0) }));
    }
    let offers = fleet.offers();
    group.bench_function("one verdict with 10,000 queued", |bencher| {
        bencher.iter_batched(
            || request(2),
            |request| offers.answer(black_box(&request)),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, decisions);
criterion_main!(benches);
