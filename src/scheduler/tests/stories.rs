//! One behaviour each, from the first event to the last.

use super::fixtures::*;
use crate::model::requirement::CA_DERIVATIONS;
use crate::model::{
    BuildId, BuildPhase, BuilderId, BuilderState, FailureKind, Feature, Outcome, PoolName, PoolSpec, Slots,
};
use crate::scheduler::{Action, Answer, AttemptEnd, BuilderFaultKind, Event, Note, Selection};

fn one_pool() -> World {
    World::new(vec![pool("x86", X86, &[])])
}

/// A pool whose builders run one build each.
fn single_slots(max_builders: u32) -> World {
    World::new(vec![PoolSpec { slots: Slots::Fixed(1), max_builders, ..pool("x86", X86, &[]) }])
}

fn notes_to(actions: &[Action], build: u64) -> Vec<Note> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Tell { build: told, note } if told.0 == build => Some(note.clone()),
            Action::Tell { .. }
            | Action::Launch { .. }
            | Action::Terminate { .. }
            | Action::CollectGarbage { .. }
            | Action::Start { .. }
            | Action::Abort { .. }
            | Action::Finish { .. }
            | Action::Record(_)
            | Action::Exit => None,
        })
        .collect()
}

fn ended(world: &World, build: u64) -> Option<&Outcome> {
    world.ended.get(&BuildId(build))
}

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
