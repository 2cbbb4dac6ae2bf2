//! What a build goes through, from its acceptance to its end, when all goes well: which builder it gets, and when.

use super::fixtures::*;
use crate::model::requirement::CA_DERIVATIONS;
use crate::model::{BuildId, BuildPhase, BuilderId, FailureKind, Outcome, PoolName, PoolSpec, Slots};
use crate::scheduler::{Answer, AttemptEnd, BuilderFaultKind, Event, Note};

#[test]
fn a_build_launches_a_builder_runs_on_it_and_is_told_each_step() {
    let mut world = one_pool();
    world.apply(Event::Accepted { build: BuildId(1), request: request(X86, &[]) });
    assert_eq!(world.launches(), 0, "nothing is launched for a build whose inputs may never come");
    let actions = world.apply(Event::InputsKnown(BuildId(1)));
    let pool = PoolName::new("x86");
    let builder = BuilderId(1);
    assert_eq!(
        notes_to(&actions, 1),
        [Note::Queued { pool: pool.clone(), ahead: 0 }, Note::Launching { pool, builder }]
    );
    assert!(matches!(notes_to(&world.launched(1), 1)[..], [Note::Booting { .. }]));
    world.pass(40);
    assert_eq!(
        notes_to(&world.ready(1), 1),
        [Note::BuilderReady { builder, after: seconds(40) }, Note::Started { builder }]
    );
    world.end(1, AttemptEnd::Succeeded);
    assert_eq!(ended(&world, 1), Some(&Outcome::Succeeded));
}

#[test]
fn builders_are_launched_for_what_their_slots_do_not_hold() {
    let mut world = World::new(vec![PoolSpec { max_builders: 5, ..pool("x86", X86, &[]) }]);
    for (build, launches) in [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)] {
        world.accept(build, X86, &[]);
        assert_eq!(world.launches(), launches, "after {build} builds");
    }
}

#[test]
fn what_a_builder_turned_out_to_have_is_planned_with() {
    let spec =
        PoolSpec { slots: Slots::Auto { expected: 1, most: None }, max_builders: 9, ..pool("x86", X86, &[]) };
    let mut world = World::new(vec![spec]);
    world.accept(1, X86, &[]);
    world.ready(1);
    for build in 2..=12 {
        world.accept(build, X86, &[]);
    }
    // Four processors: builds 2 to 4 run beside the first, and the other eight need two builders more.
    assert_eq!(world.running.len(), 4);
    assert_eq!(world.launches(), 3);
}

#[test]
fn the_builder_with_most_builds_gets_the_next_so_that_the_other_becomes_idle() {
    let mut world = World::new(vec![PoolSpec { slots: Slots::Fixed(3), ..pool("x86", X86, &[]) }]);
    for build in 1..=6 {
        world.accept(build, X86, &[]);
    }
    world.ready(1);
    world.ready(2);
    for build in [1, 2, 4] {
        world.end(build, AttemptEnd::Succeeded);
    }
    // One build is left on the first builder and two on the second.
    world.accept(7, X86, &[]);
    assert_eq!(world.builder_of(7), Some(2));
}

#[test]
fn slots_go_to_builds_in_the_order_of_their_acceptance() {
    let mut world = single_slots(1);
    for build in [3, 1, 2] {
        world.accept(build, X86, &[]);
    }
    world.ready(1);
    let mut order = vec![];
    while let Some((build, _)) = world.running.first_key_value() {
        let build = build.0;
        order.push(build);
        world.end(build, AttemptEnd::Succeeded);
    }
    assert_eq!(order, [3, 1, 2]);
}

#[test]
fn a_build_that_is_tried_again_comes_before_those_accepted_after_it() {
    let mut world = single_slots(1);
    for build in 1..=3 {
        world.accept(build, X86, &[]);
    }
    world.ready(1);
    world.lose(1, BuilderFaultKind::ConnectionLost);
    world.end(1, failed(FailureKind::BuilderLost));
    world.gone(1);
    world.wait(3);
    world.ready(2);
    assert_eq!(world.builder_of(1), Some(2));
}

#[test]
fn the_second_pool_takes_what_the_first_cannot() {
    let mut world = World::new(vec![
        PoolSpec { max_builders: 1, ..pool("small", X86, &[]) },
        PoolSpec { max_builders: 1, ..pool("big", X86, &["kvm"]) },
    ]);
    for build in 1..=3 {
        world.accept(build, X86, &[]);
    }
    assert_eq!(world.pools_of[&BuilderId(1)], PoolName::new("small"));
    assert_eq!(world.pools_of[&BuilderId(2)], PoolName::new("big"));
    world.accept(4, X86, &["kvm"]);
    world.ready(1);
    world.ready(2);
    assert_eq!(world.builder_of(1), Some(1));
    assert_eq!(world.builder_of(4), Some(2));
}

#[test]
fn a_rest_of_the_first_pool_makes_the_second_one_grow() {
    let mut world = World::new(vec![pool("spot", X86, &[]), pool("on-demand", X86, &[])]);
    world.accept(1, X86, &[]);
    let actions = world.lose(1, BuilderFaultKind::LaunchFailed);
    assert_eq!(world.pools_of[&BuilderId(2)], PoolName::new("on-demand"));
    assert!(matches!(
        notes_to(&actions, 1)[..],
        [Note::BuilderFailed { .. }, Note::Launching { builder: BuilderId(2), .. }]
    ));
}

#[test]
fn a_build_is_not_overtaken_by_one_that_has_less_choice() {
    let mut world = World::new(vec![
        PoolSpec { slots: Slots::Fixed(1), max_builders: 1, ..pool("all", X86, &["kvm"]) },
        PoolSpec { slots: Slots::Fixed(1), max_builders: 1, ..pool("plain", X86, &[]) },
    ]);
    world.accept(1, X86, &[]);
    world.accept(2, X86, &["kvm"]);
    world.ready(1);
    assert_eq!((world.builder_of(1), world.builder_of(2)), (Some(1), None));
}

#[test]
fn content_addressed_builds_are_accepted_until_a_builder_says_no() {
    let mut world = one_pool();
    let asked = request(X86, &[CA_DERIVATIONS]);
    assert!(matches!(world.fleet.offers().answer(&asked), Answer::Accept { .. }));
    world.accept(1, X86, &[CA_DERIVATIONS]);
    world.accept(2, X86, &[]);
    let mut facts = world.facts_of(1);
    facts.offer.features.clear();
    world.apply(Event::Ready { builder: BuilderId(1), facts });
    let failure = world.failure_of(1);
    assert_eq!(failure.kind, FailureKind::Request);
    assert!(failure.reason.ends_with("pool `x86` lacks `ca-derivations`"), "{failure}");
    assert_eq!(world.builder_of(2), Some(1), "the builder is good for everything else");
    assert!(matches!(world.fleet.offers().answer(&asked), Answer::Decline { .. }));
}

#[test]
fn a_content_addressed_build_moves_to_the_pool_that_can() {
    let mut world = World::new(vec![pool("old", X86, &[]), pool("new", X86, &[])]);
    world.accept(1, X86, &[CA_DERIVATIONS]);
    let mut facts = world.facts_of(1);
    facts.offer.features.clear();
    world.apply(Event::Ready { builder: BuilderId(1), facts });
    assert_eq!(world.pools_of[&BuilderId(2)], PoolName::new("new"));
    world.ready(2);
    assert_eq!(world.builder_of(1), Some(2));
}

#[test]
fn an_idle_builder_ends_after_its_window_and_not_before() {
    let mut world = one_pool();
    world.accept(1, X86, &[]);
    world.ready(1);
    world.pass(1000);
    world.end(1, AttemptEnd::Succeeded);
    world.wait(599);
    assert!(world.terminated.is_empty());
    let status = world.fleet.status(world.now);
    assert_eq!(status.builders[0].ends_in, Some(seconds(1)));
    world.wait(1);
    assert_eq!(world.terminated, [BuilderId(1)]);
}

#[test]
fn a_build_that_comes_at_the_last_moment_keeps_the_builder() {
    let mut world = one_pool();
    world.accept(1, X86, &[]);
    world.ready(1);
    world.end(1, AttemptEnd::Succeeded);
    world.apply(Event::Accepted { build: BuildId(2), request: request(X86, &[]) });
    world.pass(600);
    world.apply(Event::InputsKnown(BuildId(2)));
    assert_eq!(world.builder_of(2), Some(1));
    assert!(world.terminated.is_empty());
}

#[test]
fn the_minimum_is_launched_at_once_kept_when_idle_and_replaced_when_lost() {
    let mut world = World::new(vec![PoolSpec { min_builders: 1, ..pool("x86", X86, &[]) }]);
    assert_eq!(world.launches(), 1);
    world.ready(1);
    world.wait(3000);
    assert!(world.terminated.is_empty());
    assert_eq!(world.fleet.status(world.now).builders[0].ends_in, Some(seconds(600)), "it is not immortal");
    world.lose(1, BuilderFaultKind::ConnectionLost);
    assert_eq!(world.launches(), 1);
    world.wait(3);
    assert_eq!(world.launches(), 2);
}

#[test]
fn an_old_builder_finishes_its_builds_takes_no_more_and_is_replaced() {
    let mut world = one_pool();
    world.accept(1, X86, &[]);
    world.ready(1);
    world.wait(3600);
    world.accept(2, X86, &[]);
    assert_eq!(world.launches(), 2);
    assert!(world.terminated.is_empty());
    world.end(1, AttemptEnd::Succeeded);
    assert_eq!(world.terminated, [BuilderId(1)]);
}

#[test]
fn an_operator_can_start_a_builder_in_advance_even_while_the_pool_rests() {
    let mut world = one_pool();
    world.accept(1, X86, &[]);
    world.lose(1, BuilderFaultKind::Unfit);
    world.gone(1);
    world.apply(Event::StartRequested(PoolName::new("x86")));
    world.ready(2);
    world.wait(599);
    assert!(!world.terminated.contains(&BuilderId(2)));
    world.wait(1);
    assert!(world.terminated.contains(&BuilderId(2)));
}

#[test]
fn an_operator_cannot_start_more_than_the_pool_may_have() {
    let mut world = one_pool();
    for _ in 0..5 {
        world.apply(Event::StartRequested(PoolName::new("x86")));
    }
    assert_eq!(world.launches(), 2);
}

#[test]
fn after_a_jump_in_time_facts_come_before_deadlines() {
    let mut world = one_pool();
    world.accept(1, X86, &[]);
    world.launched(1);
    // The host was asleep for an hour; the builder's answer is the first thing that is read.
    world.pass(3000);
    world.ready(1);
    assert_eq!(world.builder_of(1), Some(1));
    assert!(world.terminated.is_empty());
}

#[test]
fn a_status_shows_positions_slots_and_reasons() {
    let mut world = single_slots(1);
    for build in 1..=3 {
        world.accept(build, X86, &[]);
    }
    world.ready(1);
    world.pass(2);
    let status = world.fleet.status(world.now);
    assert_eq!((status.pools[0].slots_used, status.pools[0].slots, status.pools[0].queued), (1, 1, 2));
    let phases: Vec<_> = status.builds.iter().map(|build| build.phase.clone()).collect();
    assert_eq!(
        phases,
        [BuildPhase::Uploading, BuildPhase::Queued { ahead: 0 }, BuildPhase::Queued { ahead: 1 }]
    );
    assert_eq!(
        status.builds[0].why,
        [
            "+0.0s accepted",
            "+0.0s waits for a slot in `x86`, 0 ahead of it",
            "+0.0s b-1 is launched in pool `x86`",
            "+0.0s started on b-1 of pool `x86`, alone",
        ]
    );
    world.end(1, failed(FailureKind::Derivation));
    world.pass(5);
    let ended = world.fleet.explain(world.now, BuildId(1)).unwrap();
    assert_eq!(ended.in_phase, seconds(5));
    assert_eq!((ended.pool, ended.builder), (Some(PoolName::new("x86")), Some(BuilderId(1))));
    assert_eq!(ended.why.last().unwrap(), "+2.0s failed: Derivation as told");
    assert_eq!(world.fleet.status(world.now).builds.last().unwrap().id, BuildId(1));
}

#[test]
fn the_oldest_ended_builds_are_forgotten() {
    let mut world = one_pool();
    for build in 1..=1_001 {
        world.accept(build, ARM, &[]);
    }
    assert_eq!(world.ended.len(), 1_001, "nothing builds for that system");
    assert_eq!(world.fleet.explain(world.now, BuildId(1)), None);
    assert!(world.fleet.explain(world.now, BuildId(2)).is_some());
}
