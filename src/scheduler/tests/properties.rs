//! Random interleavings of everything that can happen, in good order and out of it.
//!
//! After each event every invariant holds; when the faults stop, every accepted build ends and the fleet shrinks to
//! its minimum; and when a shutdown is asked for, the broker comes to its end.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use super::chaos::*;
use super::fixtures::*;
use crate::model::ec2::Market;
use crate::model::{
    BuildId, BuildRequest, Caps, ClientId, FailureKind, HourlyRate, Outcome, PoolName, PoolSpec, Slots, Usd,
};
use crate::scheduler::rank::MOST_AHEAD;
use crate::scheduler::{AttemptEnd, Event};

fn specs_min(specs: &[PoolSpec]) -> usize {
    specs.iter().map(|spec| spec.min_builders as usize).sum()
}

fn caps() -> impl Strategy<Value = Caps> {
    let amount =
        || prop_oneof![Just(None), (1_u64..4_000_000).prop_map(|micros| Some(Usd::from_micros(micros)))];
    (amount(), amount(), amount()).prop_map(|(hour, day, month)| Caps {
        hour: hour.map(HourlyRate),
        day,
        month,
    })
}

/// Launches since there were so many in pools that cost nothing.
fn unpaid_launches(chaos: &Chaos, before: usize) -> usize {
    let status = chaos.world.fleet.status(chaos.world.now);
    let is_free =
        |name: &PoolName| status.pools.iter().any(|pool| pool.name == *name && pool.money.is_none());
    chaos.world.pools_of.values().skip(before).filter(|name| is_free(name)).count()
}

/// Seeds of failures are kept beside this file, not in the top level of the repository.
fn config() -> ProptestConfig {
    let persistence = FileFailurePersistence::WithSource("seeds");
    ProptestConfig { failure_persistence: Some(Box::new(persistence)), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn under_any_caps_every_build_ends_and_nothing_runs_that_may_not(
        specs in pools(),
        caps in caps(),
        steps in vec(step(), 1..120),
    ) {
        // What a pool keeps can keep the rest of the cap from all others for ever: a person's decision.
        let specs: Vec<PoolSpec> = specs.into_iter().map(|spec| PoolSpec { min_builders: 0, ..spec }).collect();
        let mut chaos = Chaos::with_caps(specs, caps);
        for step in &steps {
            chaos.perform(step);
            let money = chaos.world.fleet.status(chaos.world.now).money.unwrap_or_default();
            let over_the_day = caps.day.is_some_and(|cap| money.today >= cap);
            let before = chaos.world.launches();
            chaos.world.apply(Event::Tick);
            // Adopted ones come into a world that is over its cap already.
            let paid: Vec<_> = chaos.world.fleet.status(chaos.world.now).pools;
            let paid: Vec<_> = paid.into_iter().filter(|pool| pool.money.is_some()).collect();
            if over_the_day {
                prop_assert_eq!(chaos.world.launches(), before + unpaid_launches(&chaos, before));
                prop_assert!(paid.iter().all(|pool| pool.ready + pool.starting == 0), "{:?}", paid);
            }
        }
        for _ in 0..200 + chaos.last_build {
            if chaos.world.ended.len() == chaos.last_build as usize {
                break;
            }
            chaos.one_good_round();
            chaos.world.wait(60);
        }
        for build in 1..=chaos.last_build {
            prop_assert!(chaos.world.ended.contains_key(&BuildId(build)), "#{build} never ended");
        }
    }

    #[test]
    fn when_faults_stop_every_build_ends_and_the_fleet_shrinks_to_its_minimum(
        specs in pools(),
        steps in vec(step(), 1..120),
    ) {
        let mut chaos = Chaos::new(specs.clone());
        for step in &steps {
            chaos.perform(step);
        }
        // The longest rest is five minutes, and a slot serves one build a round.
        for _ in 0..60 + chaos.last_build {
            if chaos.world.ended.len() == chaos.last_build as usize {
                break;
            }
            chaos.one_good_round();
        }
        for build in 1..=chaos.last_build {
            prop_assert!(chaos.world.ended.contains_key(&BuildId(build)), "#{build} never ended");
        }
        // Old age and idleness take their time, and so does the rest of a pool whose last builder left slowly.
        chaos.world.wait(700);
        for _ in 0..20 {
            chaos.one_good_round();
        }
        // One that is kept grows too old at any time, also now: it leaves, and the next one of its pool comes.
        for _ in 0..2 * specs.len() {
            if chaos.world.fleet.status(chaos.world.now).builders.len() != specs_min(&specs) {
                chaos.one_good_round();
            }
        }
        let status = chaos.world.fleet.status(chaos.world.now);
        prop_assert_eq!(status.builders.len(), specs_min(&specs), "{:?}", status.builders);
        prop_assert!(status.builders.iter().all(|builder| builder.slots_used == 0));
        for builder in chaos.world.pools_of.keys() {
            let lives = status.builders.iter().any(|living| living.id == *builder);
            let ended = chaos.world.terminated.contains(builder) || chaos.gone.contains(builder);
            prop_assert!(lives || ended, "{} was forgotten", builder);
        }
    }

    #[test]
    fn a_shutdown_at_any_moment_finishes_what_was_accepted_and_exits_once(
        specs in pools(),
        before in vec(step(), 0..60),
        after in vec(step(), 0..30),
        forced in any::<bool>(),
    ) {
        let mut chaos = Chaos::new(specs);
        for step in &before {
            chaos.perform(step);
        }
        chaos.perform(&Step::Shutdown);
        prop_assert!(!chaos.world.fleet.offers().accepting);
        for step in &after {
            chaos.perform(step);
        }
        if forced {
            chaos.perform(&Step::Force);
            let shutting_down = chaos.world.running.len();
            prop_assert!(chaos.world.ended.len() + shutting_down >= chaos.last_build as usize);
        }
        for _ in 0..60 + chaos.last_build {
            if chaos.world.exits > 0 {
                break;
            }
            chaos.one_good_round();
        }
        prop_assert_eq!(chaos.world.ended.len(), chaos.last_build as usize);
        prop_assert_eq!(chaos.world.exits, 1);
        prop_assert_eq!(chaos.world.fleet.next_deadline(), None);
    }

    #[test]
    fn a_provider_that_never_works_makes_every_build_fail_in_bounded_time(
        specs in pools(),
        kinds in vec(asked(), 1..20),
        fault in 0..3_usize,
    ) {
        let mut chaos = Chaos::new(specs);
        for kind in &kinds {
            chaos.perform(&Step::Accept(*kind));
        }
        for _ in 0..200 {
            let living = chaos.world.fleet.status(chaos.world.now).builders;
            for builder in living {
                if chaos.world.terminated.contains(&builder.id) {
                    chaos.world.gone(builder.id.0);
                } else {
                    chaos.world.lose(builder.id.0, fault_kind(fault));
                }
            }
            chaos.world.wait(10);
        }
        prop_assert_eq!(chaos.world.ended.len(), kinds.len());
        for outcome in chaos.world.ended.values() {
            let Outcome::Failed(failure) = outcome else { panic!("{outcome:?}") };
            prop_assert_eq!(failure.kind, FailureKind::Provider);
        }
    }

    #[test]
    fn nothing_is_overtaken_by_its_own_client_s_builds_of_half_an_hour_later(
        asked in vec((asked(), 0..1_000_u64), 1..60),
        slots in 1..4_u32,
    ) {
        let spec = PoolSpec { slots: Slots::Fixed(slots), max_builders: 1, max_lifetime: seconds(1 << 40), ..pool("x86", X86, &[]) };
        let mut world = World::new(vec![spec]);
        let mut accepted = std::collections::BTreeMap::new();
        let mut started: Vec<BuildId> = Vec::new();
        for (id, (asked, pause)) in (1..).zip(&asked) {
            let build = BuildId(id);
            let request = BuildRequest { drv: drv(id), ..asked.plain().request() };
            accepted.insert(build, (world.now, request.client));
            world.apply(Event::Accepted { build, request });
            world.apply(Event::InputsKnown(build));
            if id == 1 {
                world.ready(1);
            }
            let fresh: Vec<_> = world.running.keys().filter(|build| !started.contains(build)).copied().collect();
            started.extend(fresh);
            world.pass(*pause);
        }
        // One ends at a time; what starts then is the scheduler's choice.
        while let Some(build) = world.running.keys().next().copied() {
            world.end(build.0, AttemptEnd::Succeeded);
            let fresh: Vec<_> = world.running.keys().filter(|build| !started.contains(build)).copied().collect();
            started.extend(fresh);
            world.pass(100);
        }
        prop_assert_eq!(started.len(), asked.len());
        for (place, late) in started.iter().enumerate() {
            for early in &started[..place] {
                let ((late_at, late_client), (early_at, early_client)) = (accepted[late], accepted[early]);
                let ahead = early_at.saturating_duration_since(late_at);
                prop_assert!(late_client != early_client || ahead <= MOST_AHEAD, "{} overtook {}", early, late);
            }
        }
    }

    #[test]
    fn whoever_has_nothing_running_is_served_before_who_has(
        asked in vec(asked(), 2..40),
        slots in 1..5_u32,
    ) {
        let spec = PoolSpec { slots: Slots::Fixed(slots), max_builders: 1, ..pool("x86", X86, &[]) };
        let mut world = World::new(vec![spec]);
        let mut clients = std::collections::BTreeMap::new();
        for (id, asked) in (1..).zip(&asked) {
            let build = BuildId(id);
            let request = BuildRequest { drv: drv(id), ..asked.plain().request() };
            clients.insert(build, request.client);
            world.apply(Event::Accepted { build, request });
            world.apply(Event::InputsKnown(build));
        }
        world.ready(1);
        while let Some(build) = world.running.keys().next().copied() {
            let before: std::collections::BTreeSet<BuildId> = world.running.keys().copied().collect();
            world.end(build.0, AttemptEnd::Succeeded);
            let share = |client: ClientId| before.iter().filter(|other| **other != build && clients[*other] == client).count();
            let waiting: Vec<_> = clients.keys().filter(|build| !before.contains(build) && !world.running.contains_key(build) && !world.ended.contains_key(build)).collect();
            if let Some(next) = world.running.keys().find(|build| !before.contains(build)) {
                let least = waiting.iter().map(|build| share(clients[build])).min();
                prop_assert!(least.is_none_or(|least| share(clients[next]) <= least), "{} was not its turn", next);
            }
        }
        prop_assert_eq!(world.ended.len(), asked.len());
    }

    /// The invariants say it after every event; here builds fail often, on machines that are full and of both kinds.
    #[test]
    fn what_avoids_a_builder_waits_for_something_that_comes(
        shapes in vec((1..4_u32, 1..4_u32, any::<bool>()), 1..3),
        steps in vec(failing_step(), 10..80),
    ) {
        let specs = shapes.iter().zip(["plain", "kvm"]).map(|((max_builders, slots, is_spot), name)| {
            let market = if *is_spot { Market::Spot } else { Market::OnDemand };
            PoolSpec { max_builders: *max_builders, slots: Slots::Fixed(*slots), ..ec2_pool(name, market) }
        });
        let mut chaos = Chaos::new(specs.collect());
        for step in &steps {
            chaos.perform(step);
        }
    }

    #[test]
    fn the_same_events_give_the_same_actions(specs in pools(), steps in vec(step(), 1..60)) {
        let mut chaos = Chaos::new(specs);
        for step in &steps {
            let mut twin = chaos.world.fleet.clone();
            let (now, event) = (chaos.world.now, Event::Tick);
            prop_assert_eq!(twin.apply(now, event.clone()), chaos.world.apply(event));
            chaos.perform(step);
        }
    }
}
