//! Builders that cannot be launched, do not come up in time, or are not what was promised.

use super::fixtures::*;
use crate::model::{BuildId, BuilderId, FailureKind, Feature};
use crate::scheduler::{Answer, AttemptEnd, BuilderFaultKind, Event};

#[test]
fn launches_are_tried_again_after_three_six_and_twelve_seconds() {
    let mut world = one_pool();
    world.accept(1, X86, &[]);
    for (builder, rest) in [(1, 3), (2, 6)] {
        world.lose(builder, BuilderFaultKind::LaunchFailed);
        world.gone(builder);
        world.wait(rest - 1);
        assert_eq!(world.launches() as u64, builder, "launched during the rest");
        world.wait(1);
        assert_eq!(world.launches() as u64, builder + 1);
    }
    world.accept(2, X86, &[]);
    world.lose(3, BuilderFaultKind::LaunchFailed);
    world.gone(3);
    assert_eq!(ended(&world, 2), None, "it has waited through one failure only");
    world.wait(11);
    assert_eq!(world.launches(), 3);
    world.wait(1);
    assert_eq!(world.launches(), 4);
    world.ready(4);
    world.lose(4, BuilderFaultKind::ConnectionLost);
    world.gone(4);
    world.end(2, failed(FailureKind::BuilderLost));
    world.wait(3);
    world.lose(5, BuilderFaultKind::LaunchFailed);
    let rest = world.fleet.status(world.now).pools[0].cooling;
    assert_eq!(rest, Some(seconds(3)), "a builder that was ready ends the series");
}

#[test]
fn after_three_failed_launches_a_build_fails_with_the_words_of_the_provider() {
    let mut world = one_pool();
    world.accept(1, X86, &[]);
    for builder in 1..=3 {
        assert_eq!(ended(&world, 1), None);
        world.lose(builder, BuilderFaultKind::LaunchFailed);
        world.gone(builder);
        world.wait(20);
    }
    let failure = world.failure_of(1);
    assert_eq!(failure.kind, FailureKind::Provider);
    assert_eq!(
        failure.reason,
        "no builder could be had: pool `x86` failed to launch 3 times in a row: LaunchFailed as told"
    );
}

#[test]
fn launches_that_are_refused_together_count_as_one() {
    let mut world = single_slots(4);
    for build in 1..=4 {
        world.accept(build, X86, &[]);
    }
    for builder in 1..=4 {
        world.lose(builder, BuilderFaultKind::LaunchFailed);
    }
    assert!(world.ended.is_empty());
    assert_eq!(world.fleet.status(world.now).pools[0].cooling, Some(seconds(3)));
}

#[test]
fn builds_do_not_fail_while_a_builder_of_their_pool_works() {
    let mut world = single_slots(2);
    world.accept(1, X86, &[]);
    world.ready(1);
    world.accept(2, X86, &[]);
    for builder in 2..8 {
        world.lose(builder, BuilderFaultKind::LaunchFailed);
        world.gone(builder);
        world.wait(100);
    }
    assert!(world.ended.is_empty());
    world.end(1, AttemptEnd::Succeeded);
    assert_eq!(world.builder_of(2), Some(1));
}

#[test]
fn a_builder_that_is_not_ready_in_time_is_ended_and_replaced() {
    let mut world = one_pool();
    world.accept(1, X86, &[]);
    world.pass(200);
    world.launched(1);
    world.wait(99);
    assert!(world.terminated.is_empty());
    world.wait(1);
    assert_eq!(world.terminated, [BuilderId(1)]);
    let (fault, _) = world.fleet.status(world.now).pools[0].last_fault.clone().unwrap();
    assert_eq!(fault, "not ready 300 s after its launch");
    world.wait(3);
    assert_eq!(world.launches(), 2);
}

#[test]
fn a_builder_without_a_promised_feature_is_ended_and_the_feature_is_named() {
    let mut world = World::new(vec![pool("x86", X86, &["kvm", "big-parallel"])]);
    world.accept(1, X86, &["kvm"]);
    let mut facts = world.facts_of(1);
    facts.offer.features.remove(&Feature::new("kvm"));
    world.apply(Event::Ready { builder: BuilderId(1), facts });
    assert_eq!(world.terminated, [BuilderId(1)]);
    let failure = world.failure_of(1);
    assert_eq!(failure.kind, FailureKind::Provider);
    assert!(failure.reason.contains("pool `x86` is not what it promises"), "{failure}");
    assert!(failure.reason.contains("its Nix lacks `kvm` in `system-features`"), "{failure}");
    // Further requests go elsewhere, until the pool has rested and is worth another look.
    let asked = request(X86, &["kvm"]);
    assert!(matches!(world.fleet.offers().answer(&asked), Answer::Decline { .. }));
    world.wait(300);
    assert!(matches!(world.fleet.offers().answer(&asked), Answer::Accept { .. }));
}

#[test]
fn an_accept_given_just_before_the_pool_proved_unfit_fails_without_waiting() {
    let mut world = one_pool();
    world.accept(1, X86, &[]);
    world.apply(Event::Accepted { build: BuildId(2), request: request(X86, &[]) });
    world.lose(1, BuilderFaultKind::Unfit);
    world.apply(Event::InputsKnown(BuildId(2)));
    assert_eq!(world.failure_of(2).kind, FailureKind::Provider);
}

#[test]
fn a_good_builder_proves_that_a_pool_with_an_unfit_one_is_of_use() {
    let mut world = single_slots(2);
    world.accept(1, X86, &[]);
    world.accept(2, X86, &[]);
    world.ready(1);
    world.lose(2, BuilderFaultKind::Unfit);
    assert_eq!(ended(&world, 2), None);
    assert!(matches!(world.fleet.offers().answer(&request(X86, &[])), Answer::Accept { .. }));
}
