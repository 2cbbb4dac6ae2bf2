//! Single runs of which the end is known.

use std::time::Duration;

use nix_broker::model::{Feature, System, Usd};
use nix_broker::simulate::shapes::{SHAPES, Shape};
use nix_broker::simulate::{Contender, Faults, FixedFleet, Graph, Report, Scenario, svg};

use crate::{broker, cloud, node, scenario, secs, simulate};

fn fixed(text: &str) -> Contender {
    Contender::Fixed(FixedFleet::parse(text).unwrap())
}

#[test]
fn a_fixed_machine_is_paid_for_from_the_beginning_to_the_end() {
    let graph = Graph::new(vec![node("a", 600, &[]), node("b", 300, &[0])]).unwrap();
    let timeline = simulate(&scenario(&graph), &fixed("1xc6a.large"));
    let report = Report::of(&timeline);
    assert_eq!((report.finish.as_secs(), report.built, report.launches, report.peak), (900, 2, 1, 1));
    // (0.0765 + 0.031507 + 0.005) / 4, and two questions of Nix.
    assert_eq!(report.cost.micros() / 100, 282);
    assert_eq!(report.cost_after, Usd::ZERO);
    assert!((report.used.unwrap() - 0.5).abs() < 0.01, "{report:?}");
}

#[test]
fn stock_nix_finds_a_free_slot_at_the_next_poll_only() {
    let nodes = (0..3).map(|n| node(&format!("n{n}"), 7, &[])).collect();
    let graph = Graph::new(nodes).unwrap();
    let timeline = simulate(&scenario(&graph), &fixed("1xc7a.large"));
    // Both slots are free after 6 s; Nix asked last after 5 s.
    let begins: Vec<u64> = timeline.lanes[0].bars.iter().map(|bar| bar.from.as_secs()).collect();
    assert_eq!(begins, [0, 0, 10]);
    assert_eq!(timeline.waits.iter().map(Duration::as_secs).collect::<Vec<_>>(), [0, 0, 10]);
}

#[test]
fn one_build_gets_one_machine_and_pays_its_boot_and_the_idle_window() {
    let graph = Graph::new(vec![node("a", 140, &[])]).unwrap();
    let timeline = simulate(&scenario(&graph), &broker(&cloud("idle-timeout = \"5m\"")));
    let report = Report::of(&timeline);
    assert_eq!((report.built, report.launches, report.peak), (1, 1, 1));
    let lane = &timeline.lanes[0];
    assert_eq!(lane.label, "c8a.2xlarge");
    let (running, ready, ended) = (lane.running.unwrap(), lane.ready.unwrap(), lane.ended.unwrap());
    assert!((secs(8)..=secs(20) + secs(3)).contains(&(running - lane.launched)), "{lane:?}");
    assert!((secs(32)..=secs(50)).contains(&(ready - running)), "{lane:?}");
    // At 1.4 times the reference speed.
    let bar = &lane.bars[0];
    assert_eq!((bar.to.unwrap() - bar.from).as_millis(), 100_000);
    assert_eq!(report.finish, bar.to.unwrap());
    assert!(ended > report.finish && ended <= report.finish + secs(301), "{lane:?}");
    assert_eq!(report.cost, lane.rate.over(ended - running));
    assert!(report.cost_after < report.cost && report.cost_after > Usd::ZERO);
}

#[test]
fn a_machine_is_billed_for_a_minute_at_least() {
    let graph = Graph::new(vec![node("a", 1, &[])]).unwrap();
    let timeline = simulate(&scenario(&graph), &fixed("1xc6a.4xlarge"));
    let lane = &timeline.lanes[0];
    assert_eq!(Report::of(&timeline).cost, lane.rate.over(secs(60)));
}

#[test]
fn what_fits_nowhere_fails_with_everything_that_needs_it() {
    let mut odd = node("odd", 10, &[]);
    odd.requirement.system = System::new("riscv64-linux");
    let graph = Graph::new(vec![odd, node("needs-it", 10, &[0]), node("free", 10, &[])]).unwrap();
    let timeline = simulate(&scenario(&graph), &broker(&cloud("")));
    assert_eq!((timeline.built, timeline.unbuilt), (1, 2));
    let (why, count) = timeline.failures.first_key_value().unwrap();
    assert_eq!((why.as_str(), *count), ("pool `cloud` does not build for `riscv64-linux`", 1));
}

#[test]
fn this_machine_takes_what_prefers_it_and_what_is_declined() {
    let mut link = node("links", 10, &[]);
    link.nature.prefers_local = true;
    let graph = Graph::new(vec![link, node("big", 3000, &[0])]).unwrap();
    let scenario = Scenario { max_jobs: 2, ..scenario(&graph) };
    let timeline = simulate(&scenario, &broker(&cloud("")));
    assert_eq!(timeline.built, 2);
    let local = timeline.lanes.iter().find(|lane| lane.builder.is_none()).unwrap();
    assert_eq!(local.bars.iter().map(|bar| bar.name.as_str()).collect::<Vec<_>>(), ["links"]);
    // Nobody lists a machine for riscv, so it is declined; this machine cannot build it either.
    let mut tuned = node("tuned", 10, &[]);
    tuned.requirement.features = [Feature::new("gccarch-znver9")].into();
    let graph = Graph::new(vec![tuned]).unwrap();
    let timeline = simulate(&Scenario { graph: &graph, ..scenario }, &broker(&cloud("")));
    assert_eq!(timeline.unbuilt, 1);
}

#[test]
fn the_hourly_cap_keeps_what_runs_below_it() {
    let graph = Shape::Wide.graph(3).unwrap();
    let config = format!("{}\n[cost]\nmax-per-hour = 1.5\n", cloud("max-builders = 20"));
    let timeline = simulate(&scenario(&graph), &broker(&config));
    assert_eq!(timeline.unbuilt, 0, "{:?}", timeline.failures);
    let mut moments: Vec<Duration> = timeline.lanes.iter().filter_map(|lane| lane.running).collect();
    moments.sort_unstable();
    for at in moments {
        let alive = |lane: &&nix_broker::simulate::timeline::Lane| {
            lane.running.is_some_and(|since| since <= at) && lane.end(timeline.closed) > at
        };
        let rate: u64 = timeline.lanes.iter().filter(alive).map(|lane| lane.rate.0.micros()).sum();
        assert!(rate <= 1_500_000, "{rate} at {at:?}");
    }
}

#[test]
fn a_spot_machine_that_is_taken_back_costs_its_builds_their_time_only() {
    let nodes = (0..40).map(|n| node(&format!("n{n:02}"), 900, &[])).collect();
    let graph = Graph::new(nodes).unwrap();
    let spot = format!("{}market = \"spot\"\n", cloud("max-builders = 3"));
    let calm = simulate(&scenario(&graph), &broker(&spot));
    let faults = Faults { interruptions: 3.0, ..Faults::default() };
    let stormy = simulate(&Scenario { faults, ..scenario(&graph) }, &broker(&spot));
    assert_eq!((calm.built, stormy.built), (40, 40), "{:?}", stormy.failures);
    assert!(calm.lanes[0].label.ends_with(", spot"), "{:?}", calm.lanes[0].label);
    let good = |timeline: &nix_broker::simulate::Timeline| {
        timeline.lanes.iter().flat_map(|lane| &lane.bars).filter(|bar| bar.is_good).count()
    };
    assert_eq!((good(&calm), good(&stormy)), (40, 40));
    assert!(stormy.lanes.iter().flat_map(|lane| &lane.bars).any(|bar| !bar.is_good));
    assert!(stormy.finished > calm.finished);
}

/// Nobody may wait for ever behind those who come later, however much work they bring.
#[test]
fn a_short_build_does_not_starve_behind_a_stream_of_long_ones() {
    let mut nodes: Vec<_> = (0..200)
        .map(|n| {
            let mut long = node(&format!("long-{n:03}"), 600, &[]);
            long.arrives = secs(100 * n);
            long
        })
        .collect();
    let mut short = node("short", 10, &[]);
    short.arrives = secs(1000);
    nodes.push(short);
    let graph = Graph::new(nodes).unwrap();
    // Four slots for six builds at any time.
    let few = "[[pool]]\nname = \"few\"\nslots = 4\nmax-builders = 1\nidle-timeout = \"1h\"\n[pool.local]\n";
    let timeline = simulate(&scenario(&graph), &broker(few));
    assert_eq!(timeline.built, 201);
    let bars: Vec<_> = timeline.lanes.iter().flat_map(|lane| &lane.bars).collect();
    let began = bars.iter().find(|bar| bar.name == "short").unwrap().from;
    let last = timeline.finished;
    assert!(last > secs(20_000), "there is no stream: {last:?}");
    assert!(began < secs(1000 + 2 * 3600), "it began after {began:?} of {last:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let graph = Shape::Diamond.graph(5).unwrap();
    let pools = format!("{}market = \"spot\"\n", cloud("max-builders = 3"));
    let faults = Faults { interruptions: 0.5, losses: 0.1, failed_launches: 0.2, until: None };
    let scenario = Scenario { faults, ..scenario(&graph) };
    let first = simulate(&scenario, &broker(&pools));
    assert_eq!(simulate(&scenario, &broker(&pools)), first);
    assert_ne!(simulate(&Scenario { seed: 2, ..scenario }, &broker(&pools)), first);
}

#[test]
fn every_shape_is_built_by_everybody() {
    let pools = "[[pool]]\nname = \"x86\"\nsystems = [\"x86_64-linux\"]\nmax-builders = 3\n[pool.ec2]\n\
                 [[pool]]\nname = \"arm\"\nsystems = [\"aarch64-linux\"]\nmax-builders = 2\n[pool.ec2]\n";
    let first_come = Contender::FirstCome { pools: crate::config(pools).pools };
    for shape in SHAPES {
        assert_eq!(Shape::parse(&shape.to_string()), Some(shape));
        let graph = shape.graph(1).unwrap();
        for contender in [&broker(pools), &first_come, &fixed("2xc6a.4xlarge+2xc7g.4xlarge")] {
            let timeline = simulate(&scenario(&graph), contender);
            assert_eq!(timeline.unbuilt, 0, "{shape} {contender:?}: {:?}", timeline.failures);
        }
    }
}

#[test]
fn a_picture_is_xml_with_a_bar_for_every_build_and_words_for_every_colour() {
    let nodes =
        vec![node("a+b=c?d", 600, &[]), node("b", 300, &[0]), node("short", 1, &[]), node("late", 60, &[1])];
    let graph = Graph::new(nodes).unwrap();
    let timeline = simulate(&scenario(&graph), &broker(&cloud("")));
    let picture = svg::draw(&[("first <&> \u{1}second", &timeline), ("again", &timeline)]);
    let document = roxmltree::Document::parse(&picture).unwrap();
    let has_class = |node: &roxmltree::Node<'_, '_>, class: &str| node.attribute("class") == Some(class);
    let count = |class: &str| document.descendants().filter(|node| has_class(node, class)).count();
    // One of each in the legend.
    assert_eq!(count("bar") + count("many") - 2, 2 * graph.nodes().len());
    assert_eq!((count("boot") - 1, count("lost") - 1), (2, 0));
    assert!(document.descendants().any(|node| node.text() == Some("ready, nothing to do")));
    let titled = |node: &roxmltree::Node<'_, '_>| node.children().any(|child| child.has_tag_name("title"));
    let in_runs = document.descendants().filter(|node| has_class(node, "bar")).skip(1);
    assert!(in_runs.into_iter().all(|node| titled(&node)));
    for node in document.descendants().filter(|node| node.has_tag_name("rect")) {
        let number =
            |name: &str| node.attribute(name).unwrap_or("0").trim_end_matches('%').parse::<f64>().unwrap();
        assert!(number("x") >= 0.0 && number("x") + number("width") <= 1200.0 + 1e-6, "{node:?}");
    }
}
