//! Builders that are lost, or on which builds fail: where the builds go, and how often.

use super::fixtures::*;
use crate::model::{BuildId, BuilderId, BuilderState, FailureKind, PoolSpec};
use crate::scheduler::{AttemptEnd, BuilderFaultKind, Event, Note};

#[test]
fn the_loss_of_a_ready_builder_is_no_failed_launch() {
    let mut world = one_pool();
    world.accept(1, X86, &[]);
    world.ready(1);
    world.lose(1, BuilderFaultKind::ConnectionLost);
    world.end(1, failed(FailureKind::BuilderLost));
    for builder in 2..=4 {
        assert_eq!(ended(&world, 1), None);
        world.gone(builder - 1);
        world.wait(20);
        world.lose(builder, BuilderFaultKind::LaunchFailed);
    }
    assert_eq!(world.failure_of(1).kind, FailureKind::Provider);
}

#[test]
fn a_termination_that_nobody_confirms_is_asked_for_again() {
    let mut world = one_pool();
    world.accept(1, X86, &[]);
    world.lose(1, BuilderFaultKind::BootFailed);
    world.apply(Event::ClientGone(BuildId(1)));
    world.wait(60);
    assert_eq!(world.terminated, [BuilderId(1); 2]);
    world.gone(1);
    world.wait(600);
    assert_eq!(world.terminated, [BuilderId(1); 2]);
}

#[test]
fn builds_behind_a_builder_that_never_goes_away_fail_in_the_end() {
    let mut world = single_slots(1);
    world.accept(1, X86, &[]);
    world.ready(1);
    world.lose(1, BuilderFaultKind::ConnectionLost);
    world.end(1, failed(FailureKind::BuilderLost));
    world.wait(899);
    assert_eq!(ended(&world, 1), None);
    world.wait(1);
    assert!(world.failure_of(1).reason.contains("b-1 is not gone after 900 s"));
}

#[test]
fn a_lost_builder_sends_its_builds_to_another() {
    let mut world = one_pool();
    world.accept(1, X86, &[]);
    world.accept(2, X86, &[]);
    world.ready(1);
    world.lose(1, BuilderFaultKind::ConnectionLost);
    assert_eq!(world.terminated, [BuilderId(1)], "it is ended without waiting for its attempts");
    world.gone(1);
    let actions = world.end(1, failed(FailureKind::BuilderLost));
    assert!(matches!(notes_to(&actions, 1)[..], [Note::Retrying { attempts: 1, .. }]));
    world.end(2, failed(FailureKind::BuilderLost));
    world.wait(3);
    world.ready(2);
    assert_eq!((world.builder_of(1), world.builder_of(2)), (Some(2), Some(2)));
}

#[test]
fn news_of_a_loss_that_comes_after_the_attempts_costs_no_further_attempt() {
    let mut world = one_pool();
    world.accept(1, X86, &[]);
    world.accept(2, X86, &[]);
    world.ready(1);
    world.end(1, failed(FailureKind::BuilderLost));
    world.end(2, failed(FailureKind::BuilderLost));
    assert!(world.running.is_empty(), "a suspect builder gets nothing");
    world.pass(1);
    world.lose(1, BuilderFaultKind::ConnectionLost);
    world.wait(3);
    assert_eq!(world.fleet.explain(world.now, BuildId(1)).unwrap().attempts, 1);
    assert_eq!(world.launches(), 2);
}

#[test]
fn a_suspicion_that_is_not_confirmed_passes() {
    let mut world = single_slots(1);
    world.accept(1, X86, &[]);
    world.ready(1);
    world.end(1, failed(FailureKind::BuilderLost));
    world.wait(4);
    assert_eq!(world.builder_of(1), None);
    world.wait(1);
    assert_eq!(world.builder_of(1), Some(1), "there is no other builder");
}

#[test]
fn a_build_avoids_the_builder_it_failed_on_while_there_is_another() {
    let mut world = single_slots(2);
    world.accept(1, X86, &[]);
    world.accept(2, X86, &[]);
    world.ready(1);
    world.ready(2);
    world.end(1, failed(FailureKind::Transient));
    assert_eq!(world.builder_of(1), None, "the other builder is busy, but it will be free");
    world.accept(3, X86, &[]);
    assert_eq!(world.builder_of(3), Some(1), "the slot is not kept for a build that avoids it");
    world.end(2, AttemptEnd::Succeeded);
    assert_eq!(world.builder_of(1), Some(2));
}

#[test]
fn a_build_returns_to_the_only_builder_rather_than_wait_for_ever() {
    let mut world = single_slots(2);
    world.accept(1, X86, &[]);
    world.accept(2, X86, &[]);
    world.ready(1);
    world.ready(2);
    world.end(1, failed(FailureKind::Transient));
    world.lose(2, BuilderFaultKind::ConnectionLost);
    assert_eq!(world.builder_of(1), Some(1));
    world.end(1, failed(FailureKind::Transient));
    assert_eq!(
        world.failure_of(1).reason,
        "gave up after 2 attempts: on b-1: Transient as told; on b-1: Transient as told"
    );
}

#[test]
fn a_builder_on_which_every_build_fails_is_drained() {
    let mut world = World::new(vec![PoolSpec { max_builders: 3, ..pool("x86", X86, &[]) }]);
    for build in 1..=20 {
        world.accept(build, X86, &[]);
    }
    world.ready(1);
    world.ready(2);
    for _ in 0..5 {
        let build = world.running.iter().find(|(_, (builder, _))| builder.0 == 1).map(|(build, _)| build.0);
        world.end(build.unwrap(), failed(FailureKind::Transfer));
    }
    let status = world.fleet.status(world.now);
    assert_eq!(status.builders[0].state, BuilderState::Draining);
    let (fault, _) = status.pools[0].last_fault.clone().unwrap();
    assert_eq!(fault, "b-1: 5 builds in a row failed on it");
}

#[test]
fn a_build_that_kills_builders_is_stopped_at_the_third() {
    let mut world = one_pool();
    world.accept(1, X86, &[]);
    for builder in 1..=3 {
        world.ready(builder);
        assert_eq!(world.builder_of(1), Some(builder));
        world.lose(builder, BuilderFaultKind::ConnectionLost);
        world.end(1, failed(FailureKind::BuilderLost));
        world.gone(builder);
        world.wait(3);
    }
    let failure = world.failure_of(1);
    assert_eq!(failure.kind, FailureKind::BuilderLost);
    assert!(failure.reason.starts_with("3 builders were lost while they built it"), "{failure}");
}
