//! How long builders without work are kept.

use super::fixtures::*;
use crate::model::ec2::Market;
use crate::model::{BuildId, BuilderId, HourlyRate, InstanceClass, PoolName, PoolSpec, Slots, Usd};
use crate::scheduler::{Action, AttemptEnd, Event};

/// One slot each; idle ones are kept for ten minutes, spare ones for two.
fn paid(max_builders: u32) -> PoolSpec {
    PoolSpec {
        slots: Slots::Fixed(1),
        max_builders,
        surplus_idle_timeout: seconds(120),
        ..ec2_pool("ec2", Market::OnDemand)
    }
}

const NONE: [u64; 0] = [];

fn at_dollars(rate: u64) -> InstanceClass {
    InstanceClass { rate: HourlyRate(Usd::from_micros(rate * 1_000_000)), ..class(Market::OnDemand) }
}

/// A builder for each build, at so many dollars an hour, all of them running.
fn busy(spec: PoolSpec, rates: &[u64]) -> World {
    let mut world = World::new(vec![spec]);
    for (number, rate) in (1..).zip(rates) {
        world.accept(number, X86, &[]);
        world.launched_as(number, at_dollars(*rate));
        world.pass(60);
        world.ready(number);
        assert_eq!(world.builder_of(number), Some(number));
    }
    world
}

/// Those that were ended, in order; one that is not gone is ended again and again.
fn ended(world: &World) -> Vec<u64> {
    let mut ended = Vec::new();
    for builder in &world.terminated {
        if !ended.contains(&builder.0) {
            ended.push(builder.0);
        }
    }
    ended
}

#[test]
fn of_idle_builders_the_cheapest_is_kept_and_the_others_end_soon() {
    let mut world = busy(paid(3), &[2, 1, 3]);
    for build in 1..=3 {
        world.end(build, AttemptEnd::Succeeded);
    }
    world.wait(119);
    assert_eq!(ended(&world), NONE);
    world.wait(1);
    assert_eq!(ended(&world), [1, 3]);
    world.wait(479);
    assert_eq!(ended(&world), [1, 3]);
    world.wait(1);
    assert_eq!(ended(&world), [1, 3, 2], "the last one after its whole time");
}

#[test]
fn the_reason_of_a_spare_one_says_what_is_special() {
    let mut world = busy(paid(2), &[1, 2]);
    for build in 1..=2 {
        world.end(build, AttemptEnd::Succeeded);
    }
    world.pass(120);
    let actions = world.apply(Event::Tick);
    let why = "idle for 120 s, and another builder of its pool has room";
    let is_said =
        |action: &Action| matches!(action, Action::Terminate { reason, .. } if reason.as_str() == why);
    assert!(actions.iter().any(is_said), "{actions:?}");
}

#[test]
fn an_idle_builder_is_no_spare_one_while_the_others_are_full() {
    let mut world = busy(paid(2), &[1, 2]);
    world.end(2, AttemptEnd::Succeeded);
    world.wait(300);
    assert_eq!(ended(&world), NONE, "whatever comes next needs it");
    let ends_in = |world: &World| {
        let status = world.fleet.status(world.now);
        status.builders.iter().map(|builder| builder.ends_in).collect::<Vec<_>>()
    };
    assert_eq!(ends_in(&world), [None, Some(seconds(300))]);
    // Now it has another beside it, which costs less.
    world.end(1, AttemptEnd::Succeeded);
    assert_eq!(ends_in(&world), [Some(seconds(600)), Some(seconds(0))]);
    world.wait(120);
    assert_eq!(ended(&world), [2]);
}

#[test]
fn one_that_an_operator_asked_for_is_kept_for_its_whole_time() {
    let mut world = busy(paid(2), &[1]);
    world.apply(Event::StartRequested(PoolName::new("ec2")));
    world.launched_as(2, at_dollars(9));
    world.ready(2);
    world.end(1, AttemptEnd::Succeeded);
    world.wait(599);
    assert_eq!(ended(&world), [1]);
    world.wait(1);
    assert_eq!(ended(&world), [1, 2]);
}

#[test]
fn no_builder_is_spare_while_inputs_are_on_their_way() {
    let mut world = busy(paid(2), &[1, 2]);
    for build in 1..=2 {
        world.end(build, AttemptEnd::Succeeded);
    }
    world.apply(Event::Accepted { build: BuildId(3), request: request(X86, &[]) });
    world.wait(300);
    assert_eq!(ended(&world), NONE);
    world.apply(Event::ClientGone(BuildId(3)));
    world.wait(120);
    assert_eq!(ended(&world), [2]);
}

#[test]
fn what_a_pool_keeps_is_no_spare_one() {
    let mut world = busy(PoolSpec { min_builders: 2, ..paid(2) }, &[]);
    for builder in [1, 2] {
        world.launched_as(builder, at_dollars(1));
        world.ready(builder);
    }
    world.wait(2000);
    assert_eq!(ended(&world), NONE);
}

/// A wave of builds every few minutes: a builder that ends and is launched again costs a boot each time.
#[test]
fn a_spare_builder_that_is_missed_makes_the_next_ones_stay_for_longer() {
    let mut world = busy(paid(2), &[1, 2]);
    let mut build = 2;
    let mut idle_for = Vec::new();
    for _ in 0..3 {
        let running: Vec<u64> = world.running.keys().map(|build| build.0).collect();
        for build in running {
            world.end(build, AttemptEnd::Succeeded);
        }
        let (before, since) = (world.terminated.len(), world.now);
        while world.terminated.len() == before {
            world.wait(1);
        }
        idle_for.push((world.now - since).as_secs());
        let spare = world.terminated[before];
        world.gone(spare.0);
        world.wait(20);
        for _ in 0..2 {
            build += 1;
            world.accept(build, X86, &[]);
        }
        let fresh = BuilderId(world.launches() as u64);
        world.launched_as(fresh.0, at_dollars(2));
        world.pass(60);
        world.ready(fresh.0);
        assert_eq!(world.running.len(), 2);
    }
    assert_eq!(idle_for, [120, 240, 480]);
}
