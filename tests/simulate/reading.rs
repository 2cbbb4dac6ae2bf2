//! Every form of a graph that Nix has ever written, and what is no graph.

use std::collections::BTreeSet;

use nix_broker::model::DrvPath;
use nix_broker::simulate::read::{Derivations, drv_paths};
use nix_broker::simulate::{Durations, Node, ReadError, read};

fn golden(version: &str) -> Derivations {
    let path = format!("{}/tests/golden/graphs/{version}.json", env!("CARGO_MANIFEST_DIR"));
    read(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn nodes(derivations: &Derivations, only: Option<&BTreeSet<DrvPath>>) -> Vec<Node> {
    let (graph, _) = derivations.graph(&Durations::default(), only).unwrap();
    let mut nodes = graph.nodes().to_vec();
    // By name, with what they need by name: files differ in their order.
    let names: Vec<String> = nodes.iter().map(|node| node.drv.name().to_owned()).collect();
    let mut order: Vec<usize> = (0..nodes.len()).collect();
    order.sort_by_key(|ix| &names[*ix]);
    for node in &mut nodes {
        for needed in &mut node.needs {
            *needed = order.iter().position(|ix| ix == needed).unwrap();
        }
        node.needs.sort_unstable();
    }
    nodes.sort_by(|a, b| a.drv.name().cmp(b.drv.name()));
    nodes
}

fn shown(nodes: &[Node]) -> String {
    let line = |node: &Node| {
        let needs: Vec<&str> = node.needs.iter().map(|ix| nodes[*ix].drv.name()).collect();
        let nature = match (node.nature.is_fixed_output, node.nature.prefers_local) {
            (true, _) => ", fetched",
            (false, true) => ", local",
            (false, false) => "",
        };
        let threads = node.work.threads;
        format!(
            "{}: {}{nature}, {threads} threads <- {}\n",
            node.drv.name(),
            node.requirement,
            needs.join(" ")
        )
    };
    nodes.iter().map(line).collect()
}

#[test]
fn nix_2_8_and_2_26_and_2_34_say_the_same_of_the_same_graph() {
    let oldest = nodes(&golden("2.8.0"), None);
    insta::assert_snapshot!(shown(&oldest), @r"
    arm-1: aarch64-linux, 1 threads <- source.tar.gz
    compiler-13: x86_64-linux with `big-parallel`, `gccarch-znver3`, 16 threads <- library-1.2
    floating-3: x86_64-linux with `ca-derivations`, 1 threads <- library-1.2
    library-1.2: x86_64-linux, 4 threads <- source.tar.gz
    source.tar.gz: x86_64-linux, fetched, 1 threads <- 
    structured-2: x86_64-linux with `kvm`, 1 threads <- library-1.2
    text: x86_64-linux, local, 1 threads <- 
    top-1.0: x86_64-linux, 1 threads <- arm-1 compiler-13 floating-3 structured-2 text
    ");
    assert_eq!(nodes(&golden("2.26.3"), None), oldest);
    assert_eq!(nodes(&golden("2.34.8"), None), oldest);
}

#[test]
fn what_a_dry_run_does_not_name_counts_as_built() {
    let dry_run = "these 2 derivations will be built:\n  \
        /nix/store/0j1fy0mrkljap32gyz67s77yql4ijgrv-top-1.0.drv\n  \
        /nix/store/grqia4k7li6l063z9rfyvhy5ll81wxf7-text.drv\nthese 3 paths will be fetched:\n  /nix/store/x\n";
    let only = drv_paths(dry_run);
    assert_eq!(only.len(), 2);
    insta::assert_snapshot!(shown(&nodes(&golden("2.34.8"), Some(&only))), @r"
    text: x86_64-linux, local, 1 threads <- 
    top-1.0: x86_64-linux, 1 threads <- text
    ");
    let none = golden("2.34.8").graph(&Durations::default(), Some(&BTreeSet::new())).unwrap_err();
    assert_eq!(none.to_string(), "there is nothing to build");
}

#[test]
fn jobs_of_nix_eval_jobs_are_the_graph_as_far_as_they_go() {
    let top = "/nix/store/0j1fy0mrkljap32gyz67s77yql4ijgrv-top-1.0.drv";
    let text = "/nix/store/grqia4k7li6l063z9rfyvhy5ll81wxf7-text.drv";
    let lines = format!(
        "{{\"attr\":\"top\",\"attrPath\":[\"top\"],\"drvPath\":\"{top}\",\"inputDrvs\":{{\"{text}\":[\"out\"],\
         \"/nix/store/y8j3fss17n0p72rvaaivz2r1lj8wilh3-compiler-13.drv\":[\"out\"]}},\"name\":\"top-1.0\",\
         \"outputs\":{{\"out\":\"/nix/store/a\"}},\"requiredSystemFeatures\":[\"kvm\"],\"system\":\"x86_64-linux\"}}\n\
         {{\"attr\":\"text\",\"attrPath\":[\"text\"],\"drvPath\":\"{text}\",\"name\":\"text\",\
         \"outputs\":{{\"out\":null}},\"system\":\"aarch64-linux\"}}\n\
         {{\"attr\":\"again\",\"attrPath\":[\"again\"],\"drvPath\":\"{text}\",\"name\":\"text\",\
         \"outputs\":{{\"out\":null}},\"system\":\"aarch64-linux\"}}\n\
         {{\"attr\":\"bad\",\"attrPath\":[\"bad\"],\"error\":\"assertion failed\"}}\n\
         {{\"attr\":\"old\",\"drvPath\":\"/nix/store/j1k9zw8wfmfh8cp7hhfczxr6q1f6m524-source.tar.gz.drv\",\
         \"name\":\"s\",\"outputs\":{{}},\"system\":\"x86_64-linux\",\"isCached\":true,\"cacheStatus\":\"local\"}}\n"
    );
    let derivations = read(&lines).unwrap();
    assert_eq!((derivations.len(), derivations.broken, derivations.cached), (2, 1, 1));
    insta::assert_snapshot!(shown(&nodes(&derivations, None)), @r"
    text: aarch64-linux, 1 threads <- 
    top-1.0: x86_64-linux with `kvm`, 1 threads <- text
    ");
}

#[test]
fn several_graphs_may_follow_each_other_in_one_file() {
    let a = r#"{"/nix/store/grqia4k7li6l063z9rfyvhy5ll81wxf7-text.drv": {"system": "x"}}"#;
    let b = r#"{"derivations": {"j1k9zw8wfmfh8cp7hhfczxr6q1f6m524-s.drv": {"system": "y"}}, "version": 4}"#;
    assert_eq!(read(&format!("{a}\n{b}")).unwrap().len(), 2);
    assert_eq!(
        read(&format!("{a}{a}")).unwrap_err(),
        ReadError::Twice("/nix/store/grqia4k7li6l063z9rfyvhy5ll81wxf7-text.drv".to_owned())
    );
}

#[test]
fn the_same_key_twice_in_one_object_is_seen() {
    let twice =
        r#"{"grqia4k7li6l063z9rfyvhy5ll81wxf7-a.drv": {}, "grqia4k7li6l063z9rfyvhy5ll81wxf7-a.drv": {}}"#;
    for text in [twice.to_owned(), format!("{{\"version\": 4, \"derivations\": {twice}}}")] {
        assert!(matches!(read(&text), Err(ReadError::Twice(_))), "{text}");
    }
}

#[test]
fn what_is_no_graph_is_told_what_is_wrong_with_it() {
    let complaint = |text: &str| read(text).unwrap_err().to_string();
    assert_eq!(complaint(""), "has no derivation in it");
    assert_eq!(complaint("{}"), "has no derivation in it");
    assert_eq!(complaint(r#"{"version": 4, "derivations": {}}"#), "has no derivation in it");
    for text in ["[]", "3", "hello", "{\"a", "null", "{\"x.drv\": 3}", "\"\\ud800\""] {
        let said = complaint(text);
        assert!(
            said.starts_with("is not what `nix derivation show -r` or `nix-eval-jobs` writes: "),
            "{text}: {said}"
        );
    }
    assert_eq!(
        complaint(r#"{"/gnu/store/grqia4k7li6l063z9rfyvhy5ll81wxf7-a.drv": {}}"#),
        "`/gnu/store/grqia4k7li6l063z9rfyvhy5ll81wxf7-a.drv` is not the path of a derivation in /nix/store"
    );
    assert_eq!(
        complaint(
            r#"{"grqia4k7li6l063z9rfyvhy5ll81wxf7-a.drv":
                {"inputDrvs": {"/nix/store/j1k9zw8wfmfh8cp7hhfczxr6q1f6m524-s.drv": ["out"]}}}"#
        ),
        "lacks what others need: `/nix/store/j1k9zw8wfmfh8cp7hhfczxr6q1f6m524-s.drv`"
    );
}

#[test]
fn a_cycle_is_named() {
    let (a, b) = ("grqia4k7li6l063z9rfyvhy5ll81wxf7-a.drv", "j1k9zw8wfmfh8cp7hhfczxr6q1f6m524-b.drv");
    let text = format!(
        "{{\"{a}\": {{\"inputDrvs\": {{\"{b}\": []}}}}, \"{b}\": {{\"inputDrvs\": {{\"{a}\": []}}}}}}"
    );
    let error = read(&text).unwrap().graph(&Durations::default(), None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "these derivations need each other, so none of them can be built: `a`, `b`"
    );
}
