//! Whatever the graph, the pools and the trouble: when the trouble is over everything is built, and nothing is left.

use std::time::Duration;

use nix_broker::model::{Feature, Nature, PoolSpec, Requirement, System};
use nix_broker::simulate::timeline::Lane;
use nix_broker::simulate::{Contender, Faults, Foresight, Graph, Node, Scenario, Timeline, Work};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::{config, drv, scenario, secs, simulate};

#[derive(Clone, Debug)]
struct Plan {
    seconds: u64,
    threads: u32,
    is_arm: bool,
    is_big: bool,
    arrives: u64,
    /// Each one before it by its place, modulo how many there are.
    needs: Vec<usize>,
}

fn plan() -> impl Strategy<Value = Plan> {
    (1..2000_u64, 1..9_u32, any::<bool>(), prop::bool::weighted(0.1), 0..900_u64, vec(0..1000_usize, 0..4))
        .prop_map(|(seconds, threads, is_arm, is_big, arrives, needs)| Plan {
            seconds,
            threads,
            is_arm,
            is_big,
            arrives,
            needs,
        })
}

fn graph(plans: &[Plan]) -> Graph {
    let node = |(ix, plan): (usize, &Plan)| {
        let system = if plan.is_arm { "aarch64-linux" } else { "x86_64-linux" };
        let features = if plan.is_big { [Feature::new("big-parallel")].into() } else { [].into() };
        Node {
            drv: drv(&format!("n{ix}")),
            requirement: Requirement::new(System::new(system), features),
            nature: Nature::default(),
            needs: plan.needs.iter().filter_map(|needed| needed.checked_rem(ix)).collect(),
            arrives: secs(plan.arrives),
            work: Work {
                building: secs(plan.seconds),
                threads: plan.threads,
                uploading: Duration::from_millis(300),
                downloading: Duration::from_millis(700),
            },
        }
    };
    Graph::new(plans.iter().enumerate().map(node).collect()).unwrap()
}

#[derive(Clone, Debug)]
struct Pools {
    x86_max: u32,
    arm_max: u32,
    min: u32,
    slots: Option<u32>,
    is_spot: bool,
    idle: u64,
}

impl Pools {
    fn specs(&self) -> Vec<PoolSpec> {
        let slots = self.slots.map_or_else(String::new, |slots| format!("slots = {slots}\n"));
        let market = if self.is_spot { "spot" } else { "on-demand" };
        let one = |name: &str, system: &str, min: u32, max: u32| {
            format!(
                "[[pool]]\nname = \"{name}\"\nsystems = [\"{system}\"]\nmin-builders = {min}\nmax-builders = {max}\n\
                 idle-timeout = \"{}s\"\n{slots}[pool.ec2]\nmarket = \"{market}\"\n",
                self.idle
            )
        };
        let arm = one("arm", "aarch64-linux", 0, self.arm_max);
        config(&(one("x86", "x86_64-linux", self.min.min(self.x86_max), self.x86_max) + &arm)).pools
    }
}

fn pools() -> impl Strategy<Value = Pools> {
    (1..5_u32, 1..4_u32, 0..3_u32, prop::option::of(1..6_u32), any::<bool>(), 5..2000_u64).prop_map(
        |(x86_max, arm_max, min, slots, is_spot, idle)| Pools { x86_max, arm_max, min, slots, is_spot, idle },
    )
}

fn foresight() -> impl Strategy<Value = Foresight> {
    prop::sample::select(Foresight::ALL.map(|(_, foresight)| foresight).to_vec())
}

/// The most lanes that were alive at the same moment.
fn most_alive<'a>(lanes: impl Iterator<Item = &'a Lane>, closed: Duration) -> usize {
    let mut changes: Vec<(Duration, i32)> =
        lanes.flat_map(|lane| [(lane.launched, 1), (lane.end(closed), -1)]).collect();
    changes.sort_unstable();
    let mut alive = 0;
    let most = changes.into_iter().map(|(_, change)| {
        alive += change;
        alive
    });
    usize::try_from(most.max().unwrap_or(0)).unwrap()
}

/// What holds in every run.
fn check(timeline: &Timeline, specs: &[PoolSpec], count: usize) -> Result<(), TestCaseError> {
    prop_assert_eq!(timeline.built + timeline.unbuilt, count);
    prop_assert!(
        !timeline.failures.keys().any(|why| why.contains("nothing would ever build")),
        "{:?}",
        timeline.failures
    );
    for spec in specs {
        let of_pool = || timeline.lanes.iter().filter(|lane| lane.pool == spec.name.as_str());
        let left = of_pool().filter(|lane| lane.ended.is_none()).count();
        prop_assert!(left <= spec.min_builders as usize, "{} left of `{}`", left, spec.name);
        let most = most_alive(of_pool(), timeline.closed);
        prop_assert!(most <= spec.max_builders as usize, "{} at once of `{}`", most, spec.name);
    }
    for lane in &timeline.lanes {
        for bar in &lane.bars {
            prop_assert!(lane.ready.is_some_and(|ready| ready <= bar.from), "{:?}", lane);
            prop_assert!(bar.to.is_some_and(|to| to <= lane.end(timeline.closed)), "{:?}", lane);
            prop_assert!(bar.slot < lane.slots.max(1), "{:?}", lane);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn without_trouble_everything_is_built_and_nothing_is_left(
        plans in vec(plan(), 1..60), pools in pools(), foresight in foresight(), max_jobs in 0..3_u32, seed: u64,
    ) {
        let (graph, specs) = (graph(&plans), pools.specs());
        let scenario = Scenario { foresight, max_jobs, seed, ..scenario(&graph) };
        let broker = Contender::Broker { pools: specs.clone(), caps: Default::default() };
        for contender in [broker, Contender::FirstCome { pools: specs.clone() }] {
            let timeline = simulate(&scenario, &contender);
            prop_assert_eq!(timeline.unbuilt, 0, "{:?}", timeline.failures);
            check(&timeline, &specs, plans.len())?;
            // Nothing takes longer than everything one after the other on the slowest machine, with a boot for each.
            let all: Duration = graph.nodes().iter().map(|node| node.work.building * node.work.threads).sum();
            let boots = secs(180) * u32::try_from(plans.len()).unwrap();
            prop_assert!(timeline.finished <= secs(900) + all * 4 + boots, "{:?} of {:?}", timeline.finished, all);
        }
    }

    #[test]
    fn when_the_trouble_is_over_every_build_ends_and_the_fleet_shrinks(
        plans in vec(plan(), 1..40), pools in pools(), foresight in foresight(), seed: u64,
        interruptions in 0.0..6.0_f64, losses in 0.0..6.0_f64, failed_launches in 0.0..1.0_f64, until in 0..20_000_u64,
    ) {
        let (graph, specs) = (graph(&plans), pools.specs());
        let faults = Faults { interruptions, losses, failed_launches, until: Some(secs(until)) };
        let scenario = Scenario { foresight, faults, seed, ..scenario(&graph) };
        let broker = Contender::Broker { pools: specs.clone(), caps: Default::default() };
        let timeline = simulate(&scenario, &broker);
        check(&timeline, &specs, plans.len())?;
        // What is not built was given up for a reason that is a rule.
        for why in timeline.failures.keys() {
            let rules = ["builders were lost", "no builder could be had", "gave up after"];
            prop_assert!(rules.iter().any(|rule| why.contains(rule)), "{}", why);
        }
    }

    #[test]
    fn interruptions_alone_never_cost_a_build(
        plans in vec(plan(), 1..40), pools in pools(), seed: u64, interruptions in 0.0..10.0_f64,
    ) {
        let (graph, specs) = (graph(&plans), Pools { is_spot: true, ..pools }.specs());
        let faults = Faults { interruptions, ..Faults::default() };
        let scenario = Scenario { faults, seed, ..scenario(&graph) };
        let broker = Contender::Broker { pools: specs.clone(), caps: Default::default() };
        let timeline = simulate(&scenario, &broker);
        prop_assert_eq!(timeline.unbuilt, 0, "{:?}", timeline.failures);
        check(&timeline, &specs, plans.len())?;
    }
}
