//! What somebody asks to end before its time: a build, a builder, the broker.

use super::fixtures::*;
use crate::model::{BuildId, BuilderId, FailureKind, Outcome, PoolSpec, Slots};
use crate::scheduler::{Action, AttemptEnd, BuilderFaultKind, Event, Selection};

#[test]
fn a_client_that_goes_away_frees_its_slot_only_when_the_build_has_stopped() {
    let mut world = single_slots(1);
    world.accept(1, X86, &[]);
    world.accept(2, X86, &[]);
    world.ready(1);
    let actions = world.apply(Event::ClientGone(BuildId(1)));
    assert!(matches!(actions[..], [Action::Abort { build: BuildId(1), .. }]));
    assert!(world.apply(Event::ClientGone(BuildId(1))).is_empty(), "once is enough");
    assert_eq!(world.builder_of(2), None);
    world.end(1, AttemptEnd::Aborted);
    assert_eq!(ended(&world, 1), Some(&Outcome::Cancelled));
    assert_eq!(world.builder_of(2), Some(1));
}

#[test]
fn a_client_that_goes_away_early_cancels_at_once() {
    let mut world = one_pool();
    world.apply(Event::Accepted { build: BuildId(1), request: request(X86, &[]) });
    world.apply(Event::ClientGone(BuildId(1)));
    world.accept(2, X86, &[]);
    world.apply(Event::ClientGone(BuildId(2)));
    assert_eq!(ended(&world, 1), Some(&Outcome::Cancelled));
    assert_eq!(ended(&world, 2), Some(&Outcome::Cancelled));
    world.ready(1);
    assert!(world.running.is_empty());
}

#[test]
fn a_stopped_builder_hands_its_builds_on_without_counting_the_attempt() {
    let mut world = single_slots(2);
    world.accept(1, X86, &[]);
    world.ready(1);
    let actions = world.apply(Event::StopRequested(Selection::One(BuilderId(1))));
    assert!(matches!(actions[..], [Action::Abort { .. }]));
    world.end(1, AttemptEnd::Aborted);
    assert_eq!(world.terminated, [BuilderId(1)]);
    assert_eq!(world.launches(), 2);
    for builder in 2..4 {
        world.ready(builder);
        world.lose(builder, BuilderFaultKind::ConnectionLost);
        world.end(1, failed(FailureKind::BuilderLost));
        world.gone(builder);
        world.wait(3);
    }
    assert_eq!(ended(&world, 1), None, "two builders were lost, and the stopped one is not a third");
}

#[test]
fn a_stopped_builder_ends_even_if_its_builds_do_not() {
    let mut world = one_pool();
    world.accept(1, X86, &[]);
    world.ready(1);
    world.apply(Event::StopRequested(Selection::All));
    world.wait(9);
    assert!(world.terminated.is_empty());
    world.wait(1);
    assert_eq!(world.terminated, [BuilderId(1)]);
}

#[test]
fn a_client_that_goes_away_from_a_stopped_builder_is_not_served_elsewhere() {
    let mut world = one_pool();
    world.accept(1, X86, &[]);
    world.ready(1);
    world.apply(Event::StopRequested(Selection::All));
    assert!(world.apply(Event::ClientGone(BuildId(1))).is_empty());
    world.end(1, AttemptEnd::Aborted);
    assert_eq!(ended(&world, 1), Some(&Outcome::Cancelled));
}

#[test]
fn a_drained_builder_finishes_what_it_has() {
    let mut world = one_pool();
    world.accept(1, X86, &[]);
    world.ready(1);
    world.apply(Event::DrainRequested(Selection::One(BuilderId(1))));
    world.accept(2, X86, &[]);
    assert_eq!(world.launches(), 2, "its free slot is not to be used");
    world.end(1, AttemptEnd::Succeeded);
    assert_eq!(world.terminated, [BuilderId(1)]);
}

#[test]
fn a_shutdown_finishes_what_was_accepted_then_ends_every_builder_then_exits() {
    let mut world = World::new(vec![PoolSpec {
        min_builders: 1,
        max_builders: 1,
        slots: Slots::Fixed(1),
        ..pool("x86", X86, &[])
    }]);
    world.ready(1);
    world.accept(1, X86, &[]);
    world.accept(2, X86, &[]);
    world.apply(Event::ShutdownRequested);
    assert!(!world.fleet.offers().accepting);
    world.end(1, AttemptEnd::Succeeded);
    assert_eq!(world.builder_of(2), Some(1));
    world.end(2, AttemptEnd::Succeeded);
    assert_eq!(world.terminated, [BuilderId(1)]);
    assert_eq!(world.exits, 0);
    world.gone(1);
    assert_eq!(world.exits, 1);
}

#[test]
fn a_forced_shutdown_aborts_what_runs_and_says_why_to_all() {
    let mut world = single_slots(1);
    for build in 1..=2 {
        world.accept(build, X86, &[]);
    }
    world.ready(1);
    world.apply(Event::ShutdownRequested);
    world.apply(Event::ShutdownForced);
    assert_eq!(world.aborted, [BuildId(1)]);
    assert_eq!(world.failure_of(2).reason, "the broker is shutting down");
    world.end(1, AttemptEnd::Aborted);
    assert_eq!(world.failure_of(1).kind, FailureKind::Broker);
    world.accept(3, X86, &[]);
    assert_eq!(world.failure_of(3).kind, FailureKind::Broker, "an accept that came too late");
    assert_eq!(world.exits, 0);
    world.gone(1);
    assert_eq!(world.exits, 1);
}

#[test]
fn a_polite_request_does_not_soften_a_forced_shutdown() {
    let mut world = single_slots(1);
    world.accept(1, X86, &[]);
    world.ready(1);
    world.apply(Event::ShutdownForced);
    world.apply(Event::ShutdownRequested);
    world.accept(2, X86, &[]);
    assert_eq!(world.failure_of(2).kind, FailureKind::Broker);
}

#[test]
fn a_shutdown_of_an_empty_fleet_exits_at_once() {
    let mut world = one_pool();
    world.apply(Event::ShutdownRequested);
    assert_eq!(world.exits, 1);
}
