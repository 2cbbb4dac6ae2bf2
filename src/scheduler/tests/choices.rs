//! Which build gets which machine, and when one is launched for it: one choice each.

use super::fixtures::*;
use crate::model::ec2::Market;
use crate::model::{
    Basis, BuildId, BuildRequest, BuilderFacts, BuilderId, ClientId, DeclineRule, FailureKind, Load,
    PoolSpec, Prediction, Slots, Space,
};
use crate::scheduler::{Answer, AttemptEnd, BuilderFaultKind, Event, RunPhase};

/// A pool whose builders run so many builds each.
fn slots(slots: u32, max_builders: u32) -> PoolSpec {
    PoolSpec { slots: Slots::Fixed(slots), max_builders, ..pool("x86", X86, &["big-parallel"]) }
}

/// A build that takes so many seconds, asked for by this client.
fn ask(world: &mut World, build: u64, client: u64, lasts: u64) {
    ask_for(world, build, client, Prediction::exact(seconds(lasts)), &[]);
}

fn ask_for(world: &mut World, build: u64, client: u64, prediction: Prediction, features: &[&str]) {
    let request =
        BuildRequest { drv: drv(build), client: ClientId(client), prediction, ..request(X86, features) };
    world.apply(Event::Accepted { build: BuildId(build), request });
    world.apply(Event::InputsKnown(BuildId(build)));
}

fn why(world: &World, build: u64) -> String {
    world.fleet.explain(world.now, BuildId(build)).unwrap().why.join("\n")
}

/// The builds in the order in which one slot takes them, when each ends before the next begins.
fn order(world: &mut World) -> Vec<u64> {
    let mut order = Vec::new();
    while let Some(build) = world.running.keys().next().copied() {
        order.push(build.0);
        world.end(build.0, AttemptEnd::Succeeded);
    }
    order
}

#[test]
fn the_longest_comes_first_and_what_others_wait_for_counts_as_long() {
    let mut world = World::new(vec![slots(1, 1)]);
    for (build, lasts) in [(1, 100), (2, 300), (3, 200)] {
        ask(&mut world, build, 1, lasts);
    }
    ask_for(&mut world, 4, 1, Prediction { tail: seconds(1_000), ..Prediction::exact(seconds(10)) }, &[]);
    // A minute later: 60 seconds of waiting are worth more than the 50 that it takes longer.
    world.pass(60);
    ask(&mut world, 5, 1, 150);
    world.ready(1);
    assert_eq!(order(&mut world), [4, 2, 3, 1, 5]);
}

#[test]
fn a_run_with_one_build_does_not_wait_for_one_with_many() {
    let mut world = World::new(vec![slots(2, 1)]);
    for build in 1..=6 {
        ask(&mut world, build, 1, 1_000);
    }
    world.ready(1);
    ask(&mut world, 7, 2, 1);
    assert_eq!(world.builder_of(7), None);
    world.end(1, AttemptEnd::Succeeded);
    assert_eq!(world.builder_of(7), Some(1));
    // Each has one running now, and the longer one is the next.
    ask(&mut world, 8, 2, 1);
    world.end(2, AttemptEnd::Succeeded);
    assert_eq!((world.builder_of(3), world.builder_of(8)), (Some(1), None));
}

#[test]
fn a_build_that_uses_all_processors_gets_room_and_others_fill_the_fullest() {
    let mut world = World::new(vec![PoolSpec { min_builders: 3, ..slots(4, 3) }]);
    for builder in 1..=3 {
        world.ready(builder);
    }
    let plain = Prediction::UNKNOWN;
    ask_for(&mut world, 1, 1, plain, &[]);
    ask_for(&mut world, 2, 1, plain, &["big-parallel"]);
    ask_for(&mut world, 3, 1, plain, &["big-parallel"]);
    assert_eq!([1, 2, 3].map(|build| world.builder_of(build)), [Some(1), Some(2), Some(3)]);
    // The fullest with a slot: one that uses all processors counts for three of four.
    ask_for(&mut world, 4, 1, plain, &[]);
    ask_for(&mut world, 5, 1, plain, &[]);
    ask_for(&mut world, 6, 1, plain, &[]);
    assert_eq!([4, 5, 6].map(|build| world.builder_of(build)), [Some(2), Some(3), Some(1)]);
    assert!(why(&world, 2).contains("alone, with room for 3"), "{}", why(&world, 2));
    let status = world.fleet.status(world.now);
    assert_eq!(status.builders.iter().map(|builder| builder.slots_used).collect::<Vec<_>>(), [2, 4, 4]);
    // It gets what is left rather than waits for what may never be free at once, and the rest when others have ended.
    ask_for(&mut world, 7, 1, plain, &[]);
    ask_for(&mut world, 8, 1, plain, &["big-parallel"]);
    assert_eq!(world.builder_of(8), Some(1), "{}", why(&world, 8));
    ask_for(&mut world, 9, 1, plain, &[]);
    for (build, then) in [(1, None), (6, None), (7, Some(1))] {
        world.end(build, AttemptEnd::Succeeded);
        assert_eq!(world.builder_of(9), then, "after {build}");
    }
    for build in [2, 3, 4, 5, 8, 9] {
        world.end(build, AttemptEnd::Succeeded);
    }
    assert!(world.fleet.status(world.now).builders.iter().all(|builder| builder.slots_used == 0));
}

#[test]
fn a_build_that_uses_all_processors_waits_for_a_builder_that_starts_rather_than_squeezes_in() {
    let mut world = World::new(vec![PoolSpec { min_builders: 2, ..slots(4, 2) }]);
    world.ready(1);
    for build in [1, 2] {
        ask_for(&mut world, build, 1, Prediction::UNKNOWN, &[]);
    }
    for build in [3, 4] {
        ask_for(&mut world, build, 1, Prediction::UNKNOWN, &["big-parallel"]);
        assert_eq!(world.builder_of(build), None, "{}", why(&world, build));
    }
    world.ready(2);
    // Nothing starts any more, so the second gets what there is, where there is most.
    assert_eq!([3, 4].map(|build| world.builder_of(build)), [Some(2), Some(1)]);
}

/// Machines of any size, planned with sixteen slots each; the first is there and has four.
fn beside_a_small_machine(max_builders: u32) -> World {
    let spec = ec2_pool("ec2", Market::OnDemand);
    let offer = pool("", X86, &["big-parallel"]).offer;
    let mut world = World::new(vec![PoolSpec {
        max_builders,
        offer,
        slots: Slots::Auto { expected: 8, most: None },
        ..spec
    }]);
    ask(&mut world, 1, 1, 3_000);
    world.wait(60);
    world.ready_with(1, 4);
    assert_eq!(world.builder_of(1), Some(1));
    world
}

/// A build that uses all processors.
fn ask_big(world: &mut World, build: u64, lasts: u64) {
    ask_for(world, build, 1, Prediction::exact(seconds(lasts)), &["big-parallel"]);
    world.wait(3);
}

#[test]
fn a_long_build_that_uses_all_processors_gets_a_larger_machine_than_the_one_that_is_open() {
    let mut world = beside_a_small_machine(3);
    ask_big(&mut world, 2, 3_000);
    assert_eq!((world.builder_of(2), world.launches()), (None, 2), "{}", why(&world, 2));
    assert_eq!(world.demands[&BuilderId(2)].builds, 16);
    assert!(why(&world, 2).contains("waits for a machine with more room than b-1, where it would get 3:"));
    // It is said once, and others go on.
    ask(&mut world, 3, 1, 3_000);
    assert_eq!(world.builder_of(3), Some(1));
    assert_eq!(why(&world, 2).matches("more room").count(), 1, "{}", why(&world, 2));
    world.ready_with(2, 16);
    assert_eq!((world.builder_of(2), world.launches()), (Some(2), 2));
    assert!(why(&world, 2).contains("alone, with room for 12"), "{}", why(&world, 2));
    // The next has no room beside it, and rather shares the large one when that is all there is.
    ask_big(&mut world, 4, 3_000);
    assert_eq!((world.builder_of(4), world.launches()), (None, 3));
    world.ready_with(3, 16);
    assert_eq!(world.builder_of(4), Some(3));
}

#[test]
fn one_that_is_not_worth_a_launch_or_has_no_other_choice_takes_the_small_machine() {
    let mut world = beside_a_small_machine(3);
    ask_big(&mut world, 2, 100);
    assert_eq!((world.builder_of(2), world.launches()), (Some(1), 1));
    // No further machine may be launched.
    let mut world = beside_a_small_machine(1);
    ask_big(&mut world, 2, 3_000);
    assert_eq!((world.builder_of(2), world.launches()), (Some(1), 1));
    // The launch fails, and for a while there will be no other.
    let mut world = beside_a_small_machine(3);
    ask_big(&mut world, 2, 3_000);
    assert_eq!((world.builder_of(2), world.launches()), (None, 2));
    world.lose(2, BuilderFaultKind::LaunchFailed);
    assert_eq!(world.builder_of(2), Some(1), "{}", why(&world, 2));
    // It comes, and is no larger: what EC2 had is what there is.
    let mut world = beside_a_small_machine(3);
    ask_big(&mut world, 2, 3_000);
    world.ready_with(2, 4);
    assert_eq!((world.builder_of(2), world.launches()), (Some(2), 2), "{}", why(&world, 2));
    // A pool whose machines are all alike has no larger ones.
    let mut world = World::new(vec![PoolSpec { min_builders: 1, ..slots(4, 3) }]);
    world.ready(1);
    ask_big(&mut world, 2, 3_000);
    assert_eq!((world.builder_of(2), world.launches()), (Some(1), 1));
}

#[test]
fn only_what_is_long_for_the_pool_with_larger_machines_has_one_launched() {
    // On processes here a minute is long; there are none to be had.
    let offer = pool("", X86, &["big-parallel"]).offer;
    let here = PoolSpec { offer: offer.clone(), max_builders: 1, ..pool("here", X86, &[]) };
    let slots = Slots::Auto { expected: 8, most: None };
    let ec2 = PoolSpec { offer, max_builders: 5, slots, ..ec2_pool("ec2", Market::OnDemand) };
    let mut world = World::new(vec![here, ec2]);
    let fill = |world: &mut World, builds: std::ops::RangeInclusive<u64>| {
        for build in builds {
            ask(world, build, 1, 30_000);
        }
    };
    fill(&mut world, 1..=3);
    world.ready(1);
    world.wait(60);
    world.ready_with(2, 4);
    assert_eq!([1, 2, 3].map(|build| world.builder_of(build)), [Some(1), Some(1), Some(2)]);
    ask_for(&mut world, 4, 1, Prediction::exact(seconds(3_000)), &["big-parallel"]);
    for build in 5..=9 {
        ask_for(&mut world, build, 1, Prediction::exact(seconds(60)), &["big-parallel"]);
    }
    world.wait(3);
    // One for the long one; the others come to what two are busy with for the horizon.
    assert_eq!((world.builder_of(4), world.launches()), (None, 2 + 1 + 2), "{}", why(&world, 4));
}

#[test]
fn several_long_builds_share_out_the_large_machines_that_may_be_launched() {
    let mut world = beside_a_small_machine(3);
    for build in 2..=4 {
        ask_big(&mut world, build, 3_000);
    }
    assert_eq!(world.launches(), 3);
    world.ready_with(2, 16);
    assert_eq!([2, 3, 4].map(|build| world.builder_of(build)), [Some(2), None, None]);
    world.ready_with(3, 16);
    // Nothing larger than the first machine comes any more.
    assert_eq!([2, 3, 4].map(|build| world.builder_of(build)), [Some(2), Some(3), Some(2)]);
}

#[test]
fn a_machine_with_a_quarter_less_than_was_asked_for_does_not_mean_that_there_are_no_larger_ones() {
    let launches = |processors: u32| {
        let spec = ec2_pool("ec2", Market::OnDemand);
        let mut world = World::new(vec![PoolSpec {
            max_builders: 9,
            slots: Slots::Auto { expected: 8, most: None },
            ..spec
        }]);
        for build in 1..=10 {
            ask(&mut world, build, 1, 3_000);
        }
        world.wait(60);
        assert_eq!(world.demanded(), [(10, false)]);
        world.ready_with(1, processors);
        for build in 11..=50 {
            ask(&mut world, build, 1, 3_000);
        }
        world.wait(3);
        world.launches() - 1
    };
    // Each is planned with sixteen slots; after one that had far fewer than it was to have, with no more than that one had.
    assert_eq!(launches(8), 4);
    assert_eq!(launches(7), 7);
}

#[test]
fn where_types_are_listed_no_launch_is_planned_with_more_than_the_largest_has() {
    let launches = |most: Option<u32>| {
        let slots = Slots::Auto { expected: 8, most };
        let mut world =
            World::new(vec![PoolSpec { max_builders: 9, slots, ..ec2_pool("ec2", Market::OnDemand) }]);
        for build in 1..=32 {
            ask(&mut world, build, 1, 3_000);
        }
        world.wait(3);
        world.launches()
    };
    assert_eq!(launches(Some(8)), 4);
    assert_eq!(launches(Some(16)), 2);
    assert_eq!(launches(None), 2);
}

#[test]
fn a_build_goes_where_its_inputs_were_made() {
    let mut world = World::new(vec![PoolSpec { min_builders: 3, ..slots(2, 3) }]);
    for builder in 1..=3 {
        world.ready(builder);
    }
    for (build, made_on) in [(1, vec![9, 3]), (2, vec![3]), (3, vec![3, 2]), (4, vec![])] {
        let request = BuildRequest { drv: drv(build), ..request(X86, &[]) };
        let build = BuildId(build);
        world.apply(Event::Accepted { build, request });
        world.apply(Event::InputsMadeOn { build, builders: made_on.into_iter().map(BuilderId).collect() });
        world.apply(Event::InputsKnown(build));
    }
    // The third finds the best one full; the last goes to the fullest.
    assert_eq!([1, 2, 3, 4].map(|build| world.builder_of(build)), [Some(3), Some(3), Some(2), Some(2)]);
    assert!(why(&world, 1).contains("started on b-3 of pool `x86`, which made some of its inputs, alone"));
    assert!(!why(&world, 4).contains("inputs"));
}

#[test]
fn what_lost_three_builders_is_not_built_when_it_is_asked_for_again() {
    let mut world = World::new(vec![slots(2, 3)]);
    let mut builder = 0;
    for build in 1..=3 {
        // Three runs of Nix, each of which gives up after its first loss.
        let request = BuildRequest { drv: drv(77), ..request(X86, &[]) };
        world.apply(Event::Accepted { build: BuildId(build), request });
        world.apply(Event::InputsKnown(BuildId(build)));
        world.wait(10);
        builder += 1;
        world.ready(builder);
        assert_eq!(world.builder_of(build), Some(builder), "{}", why(&world, build));
        world.lose(builder, BuilderFaultKind::ConnectionLost);
        world.end(build, failed(FailureKind::BuilderLost));
        world.apply(Event::ClientGone(BuildId(build)));
        world.gone(builder);
        world.wait(600);
        for other in builder + 1..=world.launches() as u64 {
            world.gone(other);
            builder = other;
        }
    }
    let request = BuildRequest { drv: drv(77), ..request(X86, &[]) };
    world.apply(Event::Accepted { build: BuildId(4), request: request.clone() });
    world.apply(Event::InputsKnown(BuildId(4)));
    let failure = world.failure_of(4);
    assert_eq!(failure.kind, FailureKind::BuilderLost);
    assert!(failure.reason.starts_with("3 builders were lost while they built it"), "{failure}");
    world.pass(3600);
    world.apply(Event::Accepted { build: BuildId(5), request });
    world.apply(Event::InputsKnown(BuildId(5)));
    assert!(!world.ended.contains_key(&BuildId(5)), "an hour later it is tried again");
}

#[test]
fn a_full_disk_drains_the_builder_and_the_build_is_tried_on_another() {
    let mut world = World::new(vec![slots(2, 2)]);
    world.accept(1, X86, &[]);
    world.accept(2, X86, &[]);
    world.ready(1);
    world.end(1, failed(FailureKind::NoSpace));
    assert_eq!(world.launches(), 2, "another one is launched, for the first takes nothing any more");
    world.ready(2);
    assert_eq!((world.builder_of(1), world.builder_of(2)), (Some(2), Some(1)));
    assert!(world.terminated.is_empty(), "what runs there may end well");
    world.end(2, AttemptEnd::Succeeded);
    assert_eq!(world.terminated, [BuilderId(1)]);
}

#[test]
fn no_builder_is_launched_for_what_those_that_are_there_do_sooner() {
    let mut world = World::new(vec![PoolSpec {
        slots: Slots::Fixed(2),
        max_builders: 9,
        ..ec2_pool("ec2", Market::Spot)
    }]);
    ask(&mut world, 1, 1, 1_000);
    world.launched(1);
    world.pass(60);
    world.ready(1);
    // One slot is taken for long; the other does one now, and for four launches more when that has ended.
    for build in 2..=26 {
        ask(&mut world, build, 1, 10);
    }
    assert_eq!(world.launches(), 1);
    assert!(
        why(&world, 7).contains(
            "no builder is launched for it alone: what waits like it takes 10 s, a launch 60 s, and a slot is"
        ),
        "{}",
        why(&world, 7)
    );
    ask(&mut world, 27, 1, 10);
    assert_eq!(world.launches(), 2, "one more would come too late");
    for build in 28..=74 {
        ask(&mut world, build, 1, 10);
    }
    assert_eq!(world.launches(), 2, "which has two slots for twenty-four each");
    ask(&mut world, 75, 1, 10);
    assert_eq!(world.launches(), 3);
}

#[test]
fn a_pool_may_launch_for_each_build_or_for_nothing_that_others_do_in_an_hour() {
    for (horizon, launches) in [(0, 4), (3_600, 1)] {
        let mut world = World::new(vec![PoolSpec {
            slots: Slots::Fixed(1),
            max_builders: 4,
            launch_horizon: Some(seconds(horizon)),
            ..ec2_pool("ec2", Market::OnDemand)
        }]);
        ask(&mut world, 1, 1, 10);
        world.wait(1);
        world.launched(1);
        world.pass(60);
        world.ready(1);
        for build in 2..=4 {
            ask(&mut world, build, 1, 10);
        }
        assert_eq!(world.launches(), launches, "{}", why(&world, 4));
    }
}

#[test]
fn a_disk_that_is_low_and_then_not_spoken_of_is_collected_all_the_same() {
    let mut world = World::new(vec![PoolSpec { min_builders: 1, ..slots(1, 1) }]);
    world.ready(1);
    ask(&mut world, 1, 1, 10);
    let low = Load { disk: Space::new(100 << 30, 1 << 30), ..Load::default() };
    for load in [low, Load::default()] {
        world.apply(Event::Load { builder: BuilderId(1), load });
    }
    assert!(world.collecting.is_empty(), "a build runs there");
    world.end(1, AttemptEnd::Succeeded);
    assert!(world.collecting.contains(&BuilderId(1)));
}

#[test]
fn predictions_that_turn_out_wrong_are_believed_for_six_launches() {
    let mut world = World::new(vec![PoolSpec {
        slots: Slots::Fixed(1),
        max_builders: 4,
        max_lifetime: seconds(36_000),
        launch_timeout: seconds(600),
        ..ec2_pool("ec2", Market::Spot)
    }]);
    for build in 1..=4 {
        ask(&mut world, build, 1, 1);
    }
    assert_eq!(world.launches(), 1);
    world.launched(1);
    world.pass(60);
    world.ready(1);
    assert_eq!(world.launches(), 1, "its slot will be free in a second");
    // It is not.
    world.wait(2);
    assert_eq!(world.launches(), 2);
    world.wait(296);
    assert_eq!(world.launches(), 2);
    world.wait(3);
    assert_eq!(world.launches(), 4, "{}", why(&world, 4));
}

#[test]
fn what_this_machine_would_have_done_already_is_left_to_it() {
    let spec = PoolSpec { declines: DeclineRule::ALL.into(), ..ec2_pool("ec2", Market::Spot) };
    let mut world = World::new(vec![spec.clone()]);
    let mut asked = BuildRequest { prediction: Prediction::exact(seconds(20)), ..request(X86, &[]) };
    asked.settings.can_locally = true;
    let answer = |world: &World, asked: &BuildRequest| world.fleet.offers().answer(asked);
    let Answer::Decline { why } = answer(&world, &asked) else { panic!("was not declined") };
    assert!(why.contains("would only be up in 60 s") && why.ends_with("(rule `short`)"), "{why}");
    // A builder that is on its way is as good as there.
    world.accept(1, X86, &[]);
    world.wait(1);
    assert!(matches!(answer(&world, &asked), Answer::Accept { .. }));
    world.launched(1);
    world.pass(9);
    let facts = BuilderFacts { processors: 4, ..facts(&spec) };
    world.apply(Event::Ready { builder: BuilderId(1), facts });
    world.end(1, AttemptEnd::Succeeded);
    world.wait(700);
    world.gone(1);
    // It was up in ten seconds: that is what is believed now.
    assert!(matches!(answer(&world, &asked), Answer::Accept { .. }));
    asked.prediction = Prediction { basis: Basis::System, ..Prediction::exact(seconds(1)) };
    assert!(matches!(answer(&world, &asked), Answer::Accept { .. }), "a guess is no reason");
}

#[test]
fn what_a_build_will_take_yet_is_shown_where_it_is_known() {
    let mut world = World::new(vec![slots(1, 1)]);
    ask(&mut world, 1, 1, 100);
    world.ready(1);
    let (_, lease) = world.running[&BuildId(1)];
    let remaining = |world: &World, build| world.fleet.explain(world.now, BuildId(build)).unwrap().remaining;
    world.pass(30);
    assert_eq!(remaining(&world, 1), Some(seconds(100)));
    world.apply(Event::Progressed { build: BuildId(1), lease, phase: RunPhase::Building });
    world.pass(30);
    assert_eq!(remaining(&world, 1), Some(seconds(70)));
    world.pass(300);
    assert_eq!(remaining(&world, 1), Some(seconds(0)));
    ask_for(&mut world, 2, 1, Prediction::UNKNOWN, &[]);
    assert_eq!(remaining(&world, 2), None);
    assert!(why(&world, 1).contains("is expected to take about 2 min"), "{}", why(&world, 1));
    assert!(!why(&world, 2).contains("expected"));
}
