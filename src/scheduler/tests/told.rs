//! What people are told of a build or of a machine, beside what happens to it.

use super::fixtures::*;
use crate::model::ec2::Market;
use crate::model::{BuildId, BuilderId, Delivery, LeaseId, PoolSpec, Record, Share, Traffic};
use crate::scheduler::{AttemptEnd, Event, Selection};

#[test]
fn a_warning_is_shown_with_the_pool_and_changes_nothing_else() {
    let mut world = World::new(vec![PoolSpec { max_builders: 1, ..ec2_pool("ec2", Market::OnDemand) }]);
    world.accept(1, X86, &[]);
    world.wait(1);
    world.launched_as(1, class(Market::OnDemand));
    world.ready_with(1, 4);
    let before = world.fleet.status(world.now);
    let warned = Event::Warned { builder: BuilderId(1), why: "nobody guards it".to_owned() };
    assert_eq!(world.fleet.apply(world.now, warned.clone()), []);
    let mut after = world.fleet.status(world.now);
    let (words, _) = after.pools[0].last_fault.take().unwrap();
    assert_eq!(words, "b-1: nobody guards it");
    assert_eq!(after, before, "builds, builders and launches go on");
    // One that is gone is nobody's concern.
    world.end(1, AttemptEnd::Succeeded);
    world.apply(Event::StopRequested(Selection::All));
    world.gone(1);
    let before = world.fleet.status(world.now);
    world.apply(warned);
    assert_eq!(world.fleet.status(world.now), before);
}

#[test]
fn where_inputs_came_from_is_told_and_counted_for_the_attempt_that_runs() {
    let mut world = World::new(vec![pool("x86", X86, &[])]);
    world.accept(1, X86, &[]);
    world.ready(1);
    let (_, lease) = world.running[&BuildId(1)];
    let share = |bytes| Share { paths: 1, bytes };
    let delivery = Delivery {
        home: share(1 << 10),
        builders: [(BuilderId(7), share(64 << 20))].into(),
        ..Delivery::default()
    };
    for lease in [lease, LeaseId(lease.0 + 1)] {
        let delivery = Box::new(delivery.clone());
        world.apply(Event::Delivered { build: BuildId(1), lease, delivery });
        world.apply(Event::Fetched { build: BuildId(1), lease, bytes: 9 });
    }
    let why = world.fleet.explain(world.now, BuildId(1)).unwrap().why;
    let told: Vec<_> = why.iter().filter(|line| line.contains("has its inputs: ")).collect();
    assert_eq!(told.len(), 1, "{why:?}");
    assert!(told[0].ends_with("has its inputs: 1 from here (1.0 KiB), 1 from b-7 (64 MiB)"), "{told:?}");
    world.end(1, AttemptEnd::Succeeded);
    let traffic: Vec<_> = world
        .records
        .iter()
        .filter_map(|record| match record {
            Record::Build(build) => Some(build.traffic),
            Record::Instance(_) | Record::PutAside { .. } => None,
        })
        .collect();
    assert_eq!(traffic, [Traffic { up: 1 << 10, direct: 64 << 20, down: 9 }]);
}
