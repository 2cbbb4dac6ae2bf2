//! Machines that differ: in size, in how they were bought, in who launched them.

use super::fixtures::*;
use crate::model::ec2::Market;
use crate::model::{
    BuildId, BuildRequest, BuilderId, BuilderState, Caps, FailureKind, HourlyRate, Instance, InstanceId,
    Phases, PoolName, PoolSpec, Prediction, Record, Slots, Usd, UtcDay,
};
use crate::scheduler::{
    Action, Adoption, Answer, AttemptEnd, BuilderFaultKind, Event, Fleet, RunPhase, Selection,
};

/// A build that takes so many seconds.
fn ask(world: &mut World, build: u64, lasts: u64) {
    let prediction = Prediction::exact(seconds(lasts));
    let request = BuildRequest { drv: drv(build), prediction, ..request(X86, &[]) };
    world.apply(Event::Accepted { build: BuildId(build), request });
    world.apply(Event::InputsKnown(BuildId(build)));
}

fn ec2(market: Market, max_builders: u32) -> World {
    World::new(vec![PoolSpec { max_builders, ..ec2_pool("ec2", market) }])
}

#[test]
fn a_launch_waits_until_the_queue_stands_still_and_is_for_all_of_it() {
    let mut world = ec2(Market::OnDemand, 1);
    for build in 1..=200 {
        world.accept(build, X86, &[]);
        assert_eq!(world.launches(), 0, "the size is decided when all have come");
    }
    world.wait(1);
    assert_eq!(world.demanded(), [(200, false)]);
    // It is told to all whom it will serve, and its promise is believed.
    world.accept(201, X86, &[]);
    world.wait(10);
    assert_eq!(world.launches(), 1);
}

#[test]
fn a_queue_that_never_stands_still_is_not_waited_for() {
    let mut world = ec2(Market::OnDemand, 9);
    for build in 1..=30 {
        world.accept(build, X86, &[]);
        world.now += std::time::Duration::from_millis(100);
        world.apply(Event::Tick);
    }
    let planned: u32 = world.demanded().iter().map(|(builds, _)| builds).sum();
    assert!((10..=30).contains(&planned), "{:?}", world.demanded());
}

#[test]
fn a_pool_whose_machines_are_all_alike_launches_at_once() {
    let fixed = PoolSpec { slots: Slots::Fixed(4), ..ec2_pool("ec2", Market::OnDemand) };
    let mut world = World::new(vec![fixed]);
    world.accept(1, X86, &[]);
    assert_eq!(world.demanded(), [(1, false)]);
}

#[test]
fn a_second_pool_is_not_launched_in_while_the_first_decides_on_a_size() {
    let mut world = World::new(vec![ec2_pool("ec2", Market::OnDemand), pool("local", X86, &[])]);
    world.accept(1, X86, &[]);
    assert_eq!(world.launches(), 0);
    world.wait(1);
    assert_eq!(world.pools_of.values().map(ToString::to_string).collect::<Vec<_>>(), ["ec2"]);
}

#[test]
fn a_small_machine_for_one_build_does_not_make_the_next_ones_small() {
    let mut world = ec2(Market::OnDemand, 9);
    world.accept(1, X86, &[]);
    world.wait(1);
    world.ready_with(1, 2);
    // One more slot there; nineteen others are planned for in eights, twice what is expected of the smallest.
    for build in 2..=21 {
        world.accept(build, X86, &[]);
    }
    world.wait(1);
    assert_eq!(world.demanded(), [(1, false), (7, false), (6, false), (6, false)]);
}

#[test]
fn a_machine_that_was_smaller_than_asked_for_is_the_largest_there_is() {
    let mut world = ec2(Market::OnDemand, 2);
    for build in 1..=40 {
        world.accept(build, X86, &[]);
    }
    world.wait(1);
    assert_eq!(world.demanded(), [(20, false), (20, false)]);
    world.ready_with(1, 16);
    world.ready_with(2, 16);
    assert_eq!(world.running.len(), 32);
}

#[test]
fn a_builder_that_a_pool_keeps_is_as_large_as_planned() {
    let world = World::new(vec![PoolSpec { min_builders: 1, ..ec2_pool("ec2", Market::Spot) }]);
    assert_eq!(world.demanded(), [(4, false)]);
}

#[test]
fn a_build_that_lost_a_spot_machine_gets_one_that_stays() {
    let mut world = ec2(Market::Spot, 3);
    world.accept(1, X86, &[]);
    world.wait(1);
    world.launched_as(1, class(Market::Spot));
    world.ready_with(1, 4);
    world.accept(2, X86, &[]);
    world.lose(1, BuilderFaultKind::ConnectionLost);
    world.end(1, failed(FailureKind::BuilderLost));
    world.end(2, failed(FailureKind::BuilderLost));
    world.gone(1);
    world.wait(10);
    assert_eq!(world.demanded(), [(1, false), (2, true)]);
    // Another spot machine is there first, and does not get them.
    for build in 3..=8 {
        world.accept(build, X86, &[]);
    }
    world.wait(1);
    assert_eq!(world.demanded().len(), 3);
    world.launched_as(3, class(Market::Spot));
    world.ready_with(3, 16);
    assert_eq!((world.builder_of(1), world.builder_of(3)), (None, Some(3)));
    world.launched_as(2, class(Market::OnDemand));
    world.ready_with(2, 4);
    assert_eq!((world.builder_of(1), world.builder_of(2)), (Some(2), Some(2)));
}

#[test]
fn a_build_that_lost_a_spot_machine_takes_another_when_no_other_can_be_had() {
    let mut world = ec2(Market::Spot, 2);
    for build in 1..=9 {
        world.accept(build, X86, &[]);
    }
    world.wait(1);
    for builder in [1, 2] {
        world.launched_as(builder, class(Market::Spot));
        world.ready_with(builder, 8);
    }
    let there = world.builder_of(1).unwrap();
    world.lose(there, BuilderFaultKind::ConnectionLost);
    world.end(1, failed(FailureKind::BuilderLost));
    // The lost one counts until it is gone, so nothing can be launched beside the other.
    assert_eq!(world.builder_of(1), Some(3 - there));
}

#[test]
fn a_build_that_shuns_spot_goes_back_to_where_it_failed_when_nothing_is_launched_for_it() {
    let kept = |name, market| PoolSpec { min_builders: 1, ..ec2_pool(name, market) };
    let mut world = World::new(vec![kept("spot", Market::Spot), kept("steady", Market::OnDemand)]);
    for (builder, market) in [(1, Market::Spot), (2, Market::OnDemand)] {
        world.launched_as(builder, class(market));
        world.ready_with(builder, 4);
    }
    world.accept(1, X86, &[]);
    assert_eq!(world.builder_of(1), Some(1));
    world.end(1, failed(FailureKind::BuilderLost));
    assert_eq!(world.builder_of(1), Some(2));
    world.end(1, failed(FailureKind::BuilderLost));
    // Both connections turn out to be in order. There is room for a third machine, but a free slot is there already.
    world.wait(60);
    assert_eq!((world.builder_of(1), world.launches()), (Some(2), 2));
}

#[test]
fn a_build_that_failed_where_there_is_room_gets_another_machine_when_the_others_are_full() {
    let spec = PoolSpec { slots: Slots::Fixed(1), max_builders: 3, ..pool("x86", X86, &[]) };
    let mut world = World::new(vec![spec]);
    for build in [1, 2] {
        world.accept(build, X86, &[]);
        world.ready(build);
    }
    world.end(2, failed(FailureKind::Transient));
    // The second builder has room, but it has failed there; the first works for who knows how long.
    assert_eq!((world.builder_of(2), world.launches()), (None, 3));
    world.ready(3);
    assert_eq!(world.builder_of(2), Some(3));
}

#[test]
fn a_slot_of_a_builder_that_takes_no_more_is_not_waited_for() {
    let spec = PoolSpec { slots: Slots::Fixed(1), max_builders: 2, ..ec2_pool("ec2", Market::Spot) };
    let mut world = World::new(vec![spec]);
    ask(&mut world, 1, 30);
    world.wait(60);
    world.ready(1);
    ask(&mut world, 2, 30);
    assert_eq!(world.launches(), 1, "its slot is free before another could be there");
    world.apply(Event::DrainRequested(Selection::One(BuilderId(1))));
    assert_eq!(world.launches(), 2);
}

#[test]
fn an_adopted_builder_is_used_and_nothing_is_launched_beside_it() {
    let mut world = World::new(vec![pool("x86", X86, &[])]);
    assert_eq!(world.adopt(&[("x86", 600)]), [1]);
    world.accept(1, X86, &[]);
    assert_eq!(world.launches(), 1, "only the adopted one");
    world.ready(1);
    assert_eq!(world.builder_of(1), Some(1));
    // The next to be launched has another id.
    for build in 2..=3 {
        world.accept(build, X86, &[]);
    }
    assert!(world.pools_of.contains_key(&BuilderId(2)));
}

#[test]
fn an_adopted_builder_is_as_old_as_its_instance() {
    let mut world = World::new(vec![pool("x86", X86, &[])]);
    world.adopt(&[("x86", 3000), ("x86", 3600)]);
    assert_eq!(world.terminated, [BuilderId(2)], "older than an hour");
    world.ready(1);
    world.accept(1, X86, &[]);
    world.wait(599);
    assert_eq!(world.fleet.status(world.now).builders[0].state, BuilderState::Ready);
    world.wait(1);
    assert_eq!(world.fleet.status(world.now).builders[0].state, BuilderState::Draining);
}

#[test]
fn of_more_builders_than_there_may_be_the_oldest_end() {
    let mut world = World::new(vec![pool("x86", X86, &[])]);
    world.adopt(&[("x86", 10), ("x86", 30), ("x86", 20), ("gone", 5)]);
    assert_eq!(world.terminated, [BuilderId(4), BuilderId(2)]);
}

#[test]
fn an_adopted_builder_that_does_not_answer_is_ended_and_is_no_reason_not_to_launch() {
    let mut world = World::new(vec![PoolSpec { max_builders: 1, ..pool("x86", X86, &[]) }]);
    world.adopt(&[("x86", 600)]);
    world.accept(1, X86, &[]);
    world.wait(300);
    assert_eq!(world.terminated, [BuilderId(1)]);
    world.gone(1);
    world.wait(3);
    assert_eq!(world.launches(), 2);
    assert!(world.ended.is_empty());
}

#[test]
fn a_pool_that_keeps_builders_counts_the_adopted_ones() {
    let now = std::time::Instant::now();
    let spec = PoolSpec { min_builders: 1, ..pool("x86", X86, &[]) };
    let mut fleet = Fleet::new(vec![spec], now);
    let builder = fleet.reserve_builder();
    let instance = Instance { id: InstanceId::new("i-1"), pool: PoolName::new("x86"), class: None };
    let adoption = Adoption { builder, instance: instance.clone(), age: seconds(1) };
    let actions = fleet.apply(now, Event::Adopted(vec![adoption.clone()]));
    assert!(matches!(actions[..], [Action::Record(_)]), "{actions:?}");
    assert_eq!(fleet.apply(now, Event::Tick), []);
    // Told twice, it is still one.
    let again = Adoption { builder: fleet.reserve_builder(), ..adoption };
    assert_eq!(fleet.apply(now, Event::Adopted(vec![again])), []);
    assert!(fleet.knows(&instance.id));
}

fn interrupt(world: &mut World, builder: u64) {
    let within = Some(seconds(120));
    world.apply(Event::Interrupted { builder: BuilderId(builder), within, why: "as told".to_owned() });
}

#[test]
fn an_interruption_is_no_attempt_of_the_build() {
    let mut world = ec2(Market::Spot, 1);
    world.accept(1, X86, &[]);
    // A build gives up after five machines that were lost while it ran; this is not that.
    for round in 1..=9 {
        world.wait(1);
        world.launched_as(round, class(Market::Spot));
        world.ready_with(round, 4);
        interrupt(&mut world, round);
        world.end(1, AttemptEnd::Aborted);
        world.wait(1);
        world.gone(round);
    }
    assert!(world.ended.is_empty());
}

#[test]
fn a_build_that_ends_by_itself_while_it_is_moved_has_ended() {
    let mut world = ec2(Market::Spot, 1);
    for build in [1, 2] {
        world.accept(build, X86, &[]);
    }
    world.wait(1);
    world.launched_as(1, class(Market::Spot));
    world.ready_with(1, 4);
    interrupt(&mut world, 1);
    world.end(1, AttemptEnd::Succeeded);
    world.end(2, failed(FailureKind::Derivation));
    assert_eq!(world.ended.len(), 2);
}

#[test]
fn an_attempt_that_does_not_stop_does_not_keep_an_interrupted_machine() {
    let mut world = ec2(Market::Spot, 1);
    world.accept(1, X86, &[]);
    world.wait(1);
    world.launched_as(1, class(Market::Spot));
    world.ready_with(1, 4);
    interrupt(&mut world, 1);
    assert!(world.terminated.is_empty());
    world.wait(10);
    assert_eq!(world.terminated, [BuilderId(1)]);
}

#[test]
fn after_two_interruptions_within_a_quarter_of_an_hour_spot_is_off_for_half_an_hour() {
    let mut world = ec2(Market::Spot, 1);
    let bought = |world: &mut World, build: u64| {
        world.accept(build, X86, &[]);
        world.wait(1);
        let builder = world.launches() as u64;
        let on_demand_only = world.demanded().last().unwrap().1;
        let market = if on_demand_only { Market::OnDemand } else { Market::Spot };
        world.launched_as(builder, class(market));
        world.ready_with(builder, 4);
        world.end(build, AttemptEnd::Succeeded);
        interrupt(world, builder);
        world.wait(1);
        world.gone(builder);
        market
    };
    assert_eq!(bought(&mut world, 1), Market::Spot);
    world.wait(16 * 60);
    assert_eq!(bought(&mut world, 2), Market::Spot, "long after the first");
    world.wait(10 * 60);
    assert_eq!(bought(&mut world, 3), Market::Spot);
    assert_eq!(bought(&mut world, 4), Market::OnDemand);
    world.wait(31 * 60);
    assert_eq!(bought(&mut world, 5), Market::Spot);
}

fn dollars(text: &str) -> Usd {
    Usd::parse(text).unwrap()
}

#[test]
fn nothing_that_would_do_within_the_whole_cap_fails_with_its_name() {
    let caps = Caps { hour: Some(HourlyRate(dollars("0.10"))), ..Caps::default() };
    let mut world = World::with_caps(vec![ec2_pool("ec2", Market::Spot)], caps);
    world.accept(1, X86, &[]);
    world.wait(1);
    world.lose(1, BuilderFaultKind::OverBudget);
    let failure = world.failure_of(1);
    assert_eq!(failure.kind, FailureKind::Provider);
    assert!(failure.reason.contains("costs as little as the cap of $0.10/h"), "{failure}");
    world.gone(1);
    assert!(matches!(world.fleet.offers().answer(&request(X86, &[])), Answer::Decline { .. }));
    // Spot prices move.
    world.wait(600);
    world.apply(Event::Clock { day: UtcDay(1), aside: vec![] });
    assert!(matches!(world.fleet.offers().answer(&request(X86, &[])), Answer::Accept { .. }));
}

#[test]
fn stopped_machines_count_towards_every_cap() {
    let caps = Caps { hour: Some(HourlyRate(dollars("1"))), day: Some(dollars("2")), month: None };
    let mut world = World::with_caps(vec![ec2_pool("ec2", Market::Spot)], caps);
    let aside = || {
        vec![
            (PoolName::new("ec2"), HourlyRate(dollars("1"))),
            (PoolName::new("no such"), HourlyRate::default()),
        ]
    };
    world.apply(Event::Clock { day: UtcDay(1), aside: aside() });
    assert!(matches!(world.fleet.offers().answer(&request(X86, &[])), Answer::Decline { .. }));
    world.wait(3600);
    world.apply(Event::Clock { day: UtcDay(1), aside: aside() });
    assert_eq!(world.fleet.status(world.now).money.unwrap().today, dollars("1"));
    world.wait(3600);
    world.apply(Event::Clock { day: UtcDay(1), aside: vec![] });
    let Answer::Decline { why } = world.fleet.offers().answer(&request(X86, &[])) else { panic!("accepted") };
    assert!(why.contains("the cap of $2.00 a day is reached"), "{why}");
    assert!(world.records.iter().any(|record| matches!(record, Record::PutAside { .. })));
}

#[test]
fn what_runs_over_midnight_is_split_there() {
    let mut world = ec2(Market::OnDemand, 1);
    world.apply(Event::Clock { day: UtcDay(10), aside: vec![] });
    world.accept(1, X86, &[]);
    world.wait(1);
    world.launched_as(1, class(Market::OnDemand));
    world.ready_with(1, 4);
    world.wait(1799);
    world.apply(Event::Clock { day: UtcDay(11), aside: vec![] });
    world.wait(900);
    let money = world.fleet.status(world.now).money.unwrap();
    let cents = |amount: Usd| (amount.micros() + 5_000) / 10_000;
    assert_eq!((cents(money.today), cents(money.month)), (25, 75));
    assert_eq!(money.rate, HourlyRate(dollars("1")));
}

#[test]
fn every_build_and_every_machine_is_recorded_once_with_its_cost() {
    let mut world = ec2(Market::OnDemand, 1);
    for build in [1, 2] {
        world.accept(build, X86, &[]);
    }
    world.wait(1);
    world.launched_as(1, class(Market::OnDemand));
    world.ready_with(1, 4);
    let (_, lease) = world.running[&BuildId(1)];
    world.pass(36);
    world.apply(Event::Progressed { build: BuildId(1), lease, phase: RunPhase::Building });
    world.pass(36);
    world.end(1, AttemptEnd::Succeeded);
    world.pass(36);
    world.end(2, failed(FailureKind::Derivation));
    world.wait(600);
    world.gone(1);
    let builds: Vec<_> = world
        .records
        .iter()
        .filter_map(|record| match record {
            Record::Build(build) => Some((build.build.0, build.cost, build.phases)),
            Record::Instance(_) | Record::PutAside { .. } => None,
        })
        .collect();
    let phases = |uploading, building| Phases {
        waiting: seconds(1),
        uploading: seconds(uploading),
        building: seconds(building),
        downloading: seconds(0),
    };
    // A cent per 36 s: two builds share the first 72 s.
    assert_eq!(builds, [(1, dollars("0.01"), phases(36, 36)), (2, dollars("0.02"), phases(108, 0))]);
    let ends: Vec<_> = world
        .records
        .iter()
        .filter_map(|record| match record {
            Record::Instance(instance) => Some((instance.has_ended, instance.cost > dollars("0.19"))),
            Record::Build(_) | Record::PutAside { .. } => None,
        })
        .collect();
    assert_eq!(ends, [(false, false), (true, true)]);
}

#[test]
fn stopped_machines_that_leave_nothing_of_the_hour_keep_nobody_waiting() {
    let caps = Caps { hour: Some(HourlyRate(dollars("0.01"))), ..Caps::default() };
    let mut world = World::with_caps(vec![ec2_pool("ec2", Market::Spot)], caps);
    world.apply(Event::Clock {
        day: UtcDay(1),
        aside: vec![(PoolName::new("ec2"), HourlyRate(dollars("0.02")))],
    });
    world.accept(1, X86, &[]);
    let failure = world.failure_of(1);
    assert!(failure.reason.contains("stopped instances leave $0.00/h of the cap of $0.01/h"), "{failure}");
}

#[test]
fn what_is_found_after_the_end_is_left_to_the_next_broker() {
    let mut world = World::new(vec![pool("x86", X86, &[])]);
    world.apply(Event::ShutdownRequested);
    assert_eq!(world.exits, 1);
    world.adopt(&[("x86", 60)]);
    assert!(world.fleet.status(world.now).builders.is_empty());
}
