//! Graphs of every shape, and what comes of them.

use proptest::prelude::*;

use super::testing::{Drvs, drv};
use super::*;

const PLENTY: Budget = Budget { files: 100_000, bytes: u64::MAX };

fn memo() -> Mutex<Memo> {
    Mutex::new(Memo::new(1_000_000))
}

fn lineage(memo: &Mutex<Memo>, drvs: &mut Drvs, name: &str) -> Lineage {
    match Walk::to(drv(name)).advance(memo, drvs, &mut PLENTY.clone()) {
        Progress::Done(lineage) => lineage,
        Progress::Spent => panic!("the budget is spent"),
    }
}

/// What a derivation needs, as words: feature and the name of who names it.
fn needs(drvs: &mut Drvs, name: &str) -> Vec<(String, String)> {
    let needs = lineage(&memo(), drvs, name).needs();
    needs.0.iter().map(|(feature, drv)| (feature.to_string(), drv.name().to_owned())).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|&(feature, name)| (feature.to_owned(), name.to_owned())).collect()
}

#[test]
fn a_raw_derivation_inherits_through_other_raw_ones() {
    let mut drvs = Drvs::default();
    drvs.add("gcc", &["gccarch-znver3", "big-parallel", "kvm"], &["bootstrap"]);
    drvs.add("bootstrap", &["gccarch-skylake"], &[]);
    drvs.add("cc-wrapper", &[], &["gcc"]);
    drvs.add("stdenv-linux", &["benchmark"], &["cc-wrapper", "plain"]);
    drvs.add("plain", &["kvm"], &[]);
    let znver3 = pairs(&[("gccarch-znver3", "gcc")]);
    assert_eq!(needs(&mut drvs, "stdenv-linux"), znver3, "no other feature, and nothing of what built gcc");
    assert_eq!(needs(&mut drvs, "cc-wrapper"), znver3);
    assert_eq!(needs(&mut drvs, "plain"), []);
    assert_eq!(needs(&mut drvs, "gcc"), [], "it speaks for itself");
}

#[test]
fn inputs_that_disagree_are_all_needed() {
    let mut drvs = Drvs::default();
    drvs.add("a", &["gccarch-znver3"], &[]);
    drvs.add("b", &["gccarch-skylake"], &[]);
    drvs.add("c", &["gccarch-znver3"], &[]);
    drvs.add("top", &[], &["a", "b", "c"]);
    let found = needs(&mut drvs, "top");
    let features: Vec<_> = found.iter().map(|(feature, _)| feature.as_str()).collect();
    assert_eq!(features, ["gccarch-skylake", "gccarch-znver3"]);
    assert_eq!(found[0].1, "b");
}

#[test]
fn a_fetcher_runs_its_inputs_and_what_it_fetched_is_only_data() {
    let mut drvs = Drvs::default();
    drvs.add("curl", &["gccarch-znver3"], &[]);
    drvs.add("source", &[], &["curl"]).is_fixed = true;
    drvs.add("tuned-source", &["gccarch-znver3"], &["curl"]).is_fixed = true;
    drvs.add("untuned", &[], &["source", "tuned-source"]);
    assert_eq!(needs(&mut drvs, "source"), pairs(&[("gccarch-znver3", "curl")]));
    assert_eq!(needs(&mut drvs, "untuned"), []);
}

#[test]
fn what_nix_makes_itself_runs_nothing_and_hands_on_everything() {
    let mut drvs = Drvs::default();
    drvs.add("tool", &["gccarch-znver3"], &[]);
    drvs.add("fetch", &[], &["tool"]).is_builtin = true;
    drvs.add("profile", &[], &["tool"]).system = "builtin".to_owned();
    drvs.add("user", &[], &["profile"]);
    assert_eq!(needs(&mut drvs, "fetch"), []);
    assert_eq!(needs(&mut drvs, "profile"), []);
    assert_eq!(needs(&mut drvs, "user"), pairs(&[("gccarch-znver3", "tool")]));
}

#[test]
fn a_bundle_for_another_machine_does_not_need_that_machine() {
    let mut drvs = Drvs::default();
    drvs.add("arm-tool", &["gccarch-armv8.2-a"], &[]).system = "aarch64-linux".to_owned();
    drvs.add("bundle", &[], &["arm-tool"]);
    drvs.add("arm-user", &[], &["bundle"]).system = "aarch64-linux".to_owned();
    drvs.add("lib32", &["gccarch-znver3"], &[]).system = "i686-linux".to_owned();
    drvs.add("wine", &[], &["lib32"]);
    assert_eq!(needs(&mut drvs, "bundle"), []);
    assert_eq!(needs(&mut drvs, "arm-user"), pairs(&[("gccarch-armv8.2-a", "arm-tool")]));
    assert_eq!(needs(&mut drvs, "wine"), pairs(&[("gccarch-znver3", "lib32")]));
}

#[test]
fn each_file_is_read_once_however_many_ways_lead_to_it() {
    let mut drvs = Drvs::default();
    drvs.add("row-0", &["gccarch-znver3"], &[]);
    drvs.add("side-0", &[], &[]);
    for n in 1..=200 {
        let (below, side) = (format!("row-{}", n - 1), format!("side-{}", n - 1));
        drvs.add(&format!("row-{n}"), &[], &[&below, &side]);
        drvs.add(&format!("side-{n}"), &[], &[&below, &side]);
    }
    let memo = memo();
    assert!(!lineage(&memo, &mut drvs, "row-200").needs().is_empty());
    assert_eq!(drvs.reads, 2 * 200 + 1, "`side-200` is no input, and all others are");
    lineage(&memo, &mut drvs, "row-200");
    lineage(&memo, &mut drvs, "row-100");
    assert_eq!(drvs.reads, 2 * 200 + 1, "something was read again");
    lineage(&memo, &mut drvs, "side-200");
    assert_eq!(drvs.reads, 2 * 200 + 2);
}

#[test]
fn one_set_is_shared_by_all_that_carry_it() {
    let mut drvs = Drvs::default();
    drvs.add("gcc", &["gccarch-znver3"], &[]);
    drvs.add("a", &[], &["gcc"]);
    drvs.add("b", &[], &["gcc"]);
    drvs.add("top", &[], &["a", "b"]);
    let memo = memo();
    let top = lineage(&memo, &mut drvs, "top").carries.unwrap();
    let gcc = lineage(&memo, &mut drvs, "gcc").carries.unwrap();
    assert!(Arc::ptr_eq(&top, &gcc));
}

#[test]
fn a_missing_file_takes_nothing_else_with_it() {
    let mut drvs = Drvs::default();
    drvs.add("gcc", &["gccarch-znver3"], &[]);
    drvs.add("top", &[], &["gcc", "missing"]);
    assert_eq!(needs(&mut drvs, "top"), pairs(&[("gccarch-znver3", "gcc")]));
    assert_eq!(needs(&mut drvs, "missing"), []);
}

#[test]
fn files_that_lead_in_circles_lead_nowhere() {
    let mut drvs = Drvs::default();
    drvs.add("self", &[], &["self"]);
    drvs.add("a", &[], &["b"]);
    drvs.add("b", &[], &["c", "gcc"]);
    drvs.add("c", &[], &["a"]);
    drvs.add("gcc", &["gccarch-znver3"], &[]);
    assert_eq!(needs(&mut drvs, "self"), []);
    assert_eq!(needs(&mut drvs, "a"), pairs(&[("gccarch-znver3", "gcc")]));
}

#[test]
fn a_chain_as_long_as_the_store_does_not_exhaust_the_stack() {
    let mut drvs = Drvs::default();
    drvs.add("link-0", &["gccarch-znver3"], &[]);
    for n in 1..=50_000 {
        drvs.add(&format!("link-{n}"), &[], &[&format!("link-{}", n - 1)]);
    }
    assert_eq!(needs(&mut drvs, "link-50000"), pairs(&[("gccarch-znver3", "link-0")]));
}

fn chain() -> Drvs {
    let mut drvs = Drvs::default();
    drvs.add("link-0", &["gccarch-znver3"], &[]);
    for n in 1..100 {
        drvs.add(&format!("link-{n}"), &[], &[&format!("link-{}", n - 1)]);
    }
    drvs
}

#[test]
fn a_walk_goes_on_where_its_budget_was_spent() {
    let (memo, mut drvs) = (memo(), chain());
    let mut walk = Walk::to(drv("link-99"));
    for _ in 0..9 {
        let mut budget = Budget { files: 10, bytes: u64::MAX };
        assert_eq!(walk.advance(&memo, &mut drvs, &mut budget), Progress::Spent);
    }
    let Progress::Done(lineage) = walk.advance(&memo, &mut drvs, &mut Budget { files: 10, bytes: u64::MAX })
    else {
        panic!("100 files are left to read")
    };
    assert!(!lineage.needs().is_empty());
    assert_eq!(drvs.reads, 100);
    let mut bytes = Budget { files: 1_000, bytes: 3_500 };
    let mut fresh = Drvs::default();
    fresh.clone_from(&chain());
    assert_eq!(
        Walk::to(drv("link-99")).advance(&Mutex::new(Memo::new(10)), &mut fresh, &mut bytes),
        Progress::Spent
    );
    assert_eq!(fresh.reads, 4, "the file that spends the last byte is read");
}

#[test]
fn a_walk_that_gives_up_answers_what_it_knows_and_is_not_walked_again() {
    let (memo, mut drvs) = (memo(), chain());
    drvs.add("tuned", &["gccarch-skylake"], &[]);
    let mut budget = Budget { files: 20, bytes: u64::MAX };
    drvs.add("top", &[], &["tuned", "link-99"]);
    let mut walk = Walk::to(drv("top"));
    assert_eq!(walk.advance(&memo, &mut drvs, &mut budget), Progress::Spent);
    let known = walk.give_up(&memo);
    let reads = drvs.reads;
    assert_eq!(lineage(&memo, &mut drvs, "top"), known);
    assert_eq!(drvs.reads, reads, "it was walked again");
}

#[test]
fn a_memo_smaller_than_the_graph_costs_reading_and_not_the_answer() {
    let mut drvs = chain();
    let tiny = Mutex::new(Memo::new(4));
    assert!(!lineage(&tiny, &mut drvs, "link-99").needs().is_empty());
}

#[test]
fn a_derivation_that_names_a_thousand_processors_is_cut_short() {
    let mut drvs = Drvs::default();
    let many: Vec<_> = (0..1_000).map(|n| format!("gccarch-{n}")).collect();
    let long = format!("gccarch-{}", "x".repeat(1_000));
    let many: Vec<_> = many.iter().map(String::as_str).chain([long.as_str()]).collect();
    drvs.add("joke", &many, &[]);
    drvs.add("more", &["gccarch-znver3"], &[]);
    drvs.add("top", &[], &["joke", "more"]);
    assert!(needs(&mut drvs, "top").len() <= MAX_TUNINGS);
}

/// The rule once more, in the plainest words, for one platform.
fn by_definition(drvs: &[(Vec<usize>, Option<usize>, bool)], at: usize) -> HashSet<usize> {
    let (inputs, own, _) = &drvs[at];
    if own.is_some() {
        return HashSet::new();
    }
    inputs.iter().flat_map(|&input| carried(drvs, input)).collect()
}

fn carried(drvs: &[(Vec<usize>, Option<usize>, bool)], at: usize) -> HashSet<usize> {
    let (inputs, own, is_fixed) = &drvs[at];
    match (is_fixed, own) {
        (true, _) => HashSet::new(),
        (false, Some(own)) => [*own].into(),
        (false, None) => inputs.iter().flat_map(|&input| carried(drvs, input)).collect(),
    }
}

proptest! {
    #[test]
    fn any_graph_and_any_budget_come_to_what_the_rule_says(
        graph in prop::collection::vec((prop::collection::vec(any::<prop::sample::Index>(), 0..3), prop::option::weighted(0.3, 0..3_usize), prop::bool::weighted(0.2)), 1..15),
        files in 1..5_usize,
    ) {
        // An input always comes before what needs it.
        let graph: Vec<_> = graph.into_iter().enumerate().map(|(at, (inputs, own, is_fixed))| {
            let inputs: Vec<usize> = if at == 0 { vec![] } else { inputs.iter().map(|input| input.index(at)).collect() };
            (inputs, own, is_fixed)
        }).collect();
        let mut drvs = Drvs::default();
        for (at, (inputs, own, is_fixed)) in graph.iter().enumerate() {
            let own: Vec<_> = own.iter().map(|own| format!("gccarch-{own}")).collect();
            let inputs: Vec<_> = inputs.iter().map(|input| format!("d{input}")).collect();
            let words = |words: &[String]| words.iter().map(String::as_str).map(str::to_owned).collect::<Vec<_>>();
            let (own, inputs) = (words(&own), words(&inputs));
            drvs.add(&format!("d{at}"), &own.iter().map(String::as_str).collect::<Vec<_>>(), &inputs.iter().map(String::as_str).collect::<Vec<_>>()).is_fixed = *is_fixed;
        }
        let memo = memo();
        for at in (0..graph.len()).rev() {
            let mut walk = Walk::to(drv(&format!("d{at}")));
            let lineage = loop {
                if let Progress::Done(lineage) = walk.advance(&memo, &mut drvs, &mut Budget { files, bytes: u64::MAX }) {
                    break lineage;
                }
            };
            let found: HashSet<usize> = lineage.needs().0.keys().map(|feature| feature.as_str()["gccarch-".len()..].parse().unwrap()).collect();
            prop_assert_eq!(found, by_definition(&graph, at));
        }
        prop_assert!(drvs.reads <= graph.len());
    }
}
