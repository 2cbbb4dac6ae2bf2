//! `.drv` files of every kind, real ones and invented ones, and the step to what a builder gets.

use proptest::prelude::*;

use super::*;
use crate::protocol::testing::{any_basic_derivation, any_drv_path, any_output_name, run};

const KINDS: [&str; 10] =
    ["good", "fixed", "ca", "dependent", "inputs", "features", "deferred", "impure", "text", "dynamic"];

fn golden(kind: &str) -> Vec<u8> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/derivations");
    std::fs::read(format!("{dir}/{kind}.drv")).unwrap()
}

fn parsed(kind: &str) -> Derivation {
    Derivation::parse(&golden(kind)).unwrap_or_else(|error| panic!("{kind}: {error:?}"))
}

/// The only output of a derivation that has one.
fn output(kind: &str) -> Output {
    let outputs = parsed(kind).outputs;
    assert_eq!(outputs.len(), 1);
    outputs.into_values().next().unwrap()
}

// ---- The other direction, which only tests need. ----

fn quoted(text: impl AsRef<[u8]>) -> Vec<u8> {
    let mut bytes = vec![b'"'];
    for byte in text.as_ref() {
        match byte {
            b'"' | b'\\' => bytes.extend([b'\\', *byte]),
            b'\n' => bytes.extend(b"\\n"),
            b'\r' => bytes.extend(b"\\r"),
            b'\t' => bytes.extend(b"\\t"),
            other => bytes.push(*other),
        }
    }
    bytes.push(b'"');
    bytes
}

fn joined(open: u8, items: impl IntoIterator<Item = Vec<u8>>, close: u8) -> Vec<u8> {
    let mut bytes = vec![open];
    bytes.extend(items.into_iter().collect::<Vec<_>>().join(&b','));
    bytes.push(close);
    bytes
}

fn list(items: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    joined(b'[', items, b']')
}

fn tuple(items: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    joined(b'(', items, b')')
}

fn printed_input(input: &InputDrv) -> Vec<u8> {
    let outputs = list(input.outputs.iter().map(|name| quoted(name.as_str())));
    if input.dynamic.is_empty() {
        return outputs;
    }
    let dynamic =
        input.dynamic.iter().map(|(name, input)| tuple([quoted(name.as_str()), printed_input(input)]));
    tuple([outputs, list(dynamic)])
}

fn printed(derivation: &Derivation) -> Vec<u8> {
    let outputs = derivation.outputs.iter().map(|(name, output)| {
        let (path, algorithm, hash) = output.to_texts();
        tuple([quoted(name.as_str()), quoted(path), quoted(algorithm), quoted(hash)])
    });
    let inputs = derivation
        .input_drvs
        .iter()
        .map(|(path, input)| tuple([quoted(path.to_string()), printed_input(input)]));
    let fields = [
        list(outputs),
        list(inputs),
        list(derivation.input_srcs.iter().map(|path| quoted(path.to_string()))),
        quoted(&derivation.system),
        quoted(&derivation.builder),
        list(derivation.args.iter().map(quoted)),
        list(derivation.env.iter().map(|(name, value)| tuple([quoted(name), quoted(value)]))),
    ];
    let is_dynamic = derivation.input_drvs.values().any(|input| !input.dynamic.is_empty());
    if is_dynamic {
        let version = [quoted("xp-dyn-drv")];
        [b"DrvWithVersion".to_vec(), tuple(version.into_iter().chain(fields))].concat()
    } else {
        [b"Derive".to_vec(), tuple(fields)].concat()
    }
}

fn any_input_drv() -> impl Strategy<Value = InputDrv> {
    let outputs = || prop::collection::btree_set(any_output_name(), 0..3);
    let leaf = outputs().prop_map(|outputs| InputDrv { outputs, dynamic: BTreeMap::new() });
    leaf.prop_recursive(3, 10, 2, move |inner| {
        (outputs(), prop::collection::btree_map(any_output_name(), inner, 0..3))
            .prop_map(|(outputs, dynamic)| InputDrv { outputs, dynamic })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_printed_is_parsed(
        basic in any_basic_derivation(),
        input_drvs in prop::collection::btree_map(any_drv_path(), any_input_drv(), 0..3),
    ) {
        let BasicDerivation { outputs, input_srcs, system, builder, args, env } = basic;
        let derivation = Derivation { outputs, input_drvs, input_srcs, system, builder, args, env };
        let file = printed(&derivation);
        prop_assert_eq!(Ancestry::parse(&file).unwrap(), ancestry_of(&derivation));
        prop_assert_eq!(Derivation::parse(&file).unwrap(), derivation);
    }

    #[test]
    fn the_wire_form_is_read_as_written(basic in any_basic_derivation()) {
        let mut out = WireWriter::new();
        basic.write(&mut out);
        let mut reader = WireReader::new(out.as_bytes());
        prop_assert_eq!(run(BasicDerivation::read(&mut reader)).unwrap(), basic);
        prop_assert!(reader.into_inner().is_empty());
    }
}

#[test]
fn real_files_are_understood_to_the_last_byte() {
    for kind in KINDS {
        assert_eq!(String::from_utf8_lossy(&printed(&parsed(kind))), String::from_utf8_lossy(&golden(kind)));
    }
}

/// The ancestry as the whole derivation tells it.
fn ancestry_of(derivation: &Derivation) -> Ancestry {
    Ancestry {
        system: derivation.system.clone(),
        is_builtin: derivation.builder.starts_with(b"builtin:"),
        is_fixed: derivation.outputs.values().all(|output| matches!(output, Output::Fixed { .. }))
            && !derivation.outputs.is_empty(),
        prefers_local: prefers_local(&derivation.env),
        features: derivation.required_system_features(),
        inputs: derivation.input_drvs.keys().cloned().collect(),
    }
}

#[test]
fn the_ancestry_is_what_the_whole_derivation_says() {
    for kind in KINDS {
        assert_eq!(Ancestry::parse(&golden(kind)).unwrap(), ancestry_of(&parsed(kind)), "{kind}");
    }
    let fixed = Ancestry::parse(&golden("fixed")).unwrap();
    assert!(fixed.is_fixed && !fixed.is_builtin);
    assert!(!Ancestry::parse(&golden("ca")).unwrap().is_fixed);
    let inputs = Ancestry::parse(&golden("inputs")).unwrap();
    assert_eq!(inputs.inputs.iter().map(DrvPath::name).collect::<Vec<_>>(), ["fixed", "good"]);
    assert!(inputs.features.contains("kvm"));
}

#[test]
fn every_kind_of_output_is_known() {
    assert!(matches!(output("features"), Output::InputAddressed(path) if path.name() == "features"));
    assert!(matches!(
        output("fixed"),
        Output::Fixed { path, algorithm, hash }
            if path.name() == "fixed" && algorithm == "sha256" && hash.starts_with("2cf24dba")
    ));
    assert_eq!(output("ca"), Output::Floating { algorithm: "r:sha256".into() });
    assert_eq!(output("text"), Output::Floating { algorithm: "text:sha256".into() });
    assert_eq!(output("impure"), Output::Impure { algorithm: "r:sha256".into() });
    assert_eq!(output("deferred"), Output::Deferred);
}

#[test]
fn inputs_and_escapes_are_read() {
    let derivation = parsed("inputs");
    let names: Vec<_> = derivation
        .input_drvs
        .iter()
        .map(|(path, input)| (path.name(), input.outputs.iter().map(OutputName::as_str).collect::<Vec<_>>()))
        .collect();
    assert_eq!(names, [("fixed", vec!["out"]), ("good", vec!["dev", "out"])]);
    let text = "a \"quoted\" \\ backslash,\ttab,\rreturn\nline, ${dollar} and é";
    assert_eq!(derivation.env[&b"text"[..]], text.as_bytes());
    assert_eq!(derivation.env[&b"empty"[..]], b"");

    let dynamic = &parsed("dynamic").input_drvs;
    let (path, input) = dynamic.iter().next().unwrap();
    let out = OutputName::parse("out").unwrap();
    assert_eq!((path.name(), input.dynamic[&out].outputs.len()), ("makes.drv", 1));
}

#[test]
fn features_come_from_where_nix_takes_them() {
    let features = |kind| parsed(kind).required_system_features().into_iter().collect::<Vec<_>>();
    assert_eq!(features("good"), [""; 0]);
    assert_eq!(features("inputs"), ["big-parallel", "kvm"]);
    assert_eq!(features("features"), ["kvm", "nixos-test"]);
    for kind in ["ca", "text", "impure", "deferred", "dynamic"] {
        assert_eq!(features(kind), ["ca-derivations"], "{kind}");
    }
    let mut bad = parsed("features");
    for json in [&b"{"[..], b"[]", b"{\"requiredSystemFeatures\":{}}", &b"[".repeat(100_000)] {
        bad.env.insert(b"__json".to_vec(), json.to_vec());
        assert!(bad.required_system_features().is_empty());
    }
}

#[test]
fn a_builder_gets_all_inputs_unless_there_were_only_sources() {
    let all = parsed("good").outputs.values().filter_map(Output::path).cloned().collect();
    assert_eq!(parsed("inputs").to_basic(&all).input_srcs, all);
    let good = parsed("good");
    assert_eq!(good.to_basic(&all).input_srcs, good.input_srcs);
    assert_eq!(good.to_basic(&all).env, good.env);
}

#[test]
fn every_truncation_is_an_error() {
    for kind in KINDS {
        let file = golden(kind);
        for end in 0..file.len() {
            assert!(Derivation::parse(&file[..end]).is_err(), "{kind} cut at {end}");
            assert!(Ancestry::parse(&file[..end]).is_err(), "{kind} cut at {end}");
        }
        let longer = [&file[..], b"\n"].concat();
        assert!(matches!(Derivation::parse(&longer), Err(AtermError::Expected { .. })), "{kind}");
    }
}

#[test]
fn bent_files_do_not_panic() {
    for kind in KINDS {
        let file = golden(kind);
        for at in 0..file.len() {
            for bend in [0, b'"', b'\\', b'[', b']', b'(', b')', b',', 0xff] {
                let mut bent = file.clone();
                bent[at] = bend;
                assert!(
                    Derivation::parse(&bent).is_err() || Ancestry::parse(&bent).is_ok(),
                    "{kind} at {at}"
                );
            }
        }
    }
}

#[test]
fn impossible_outputs_are_refused() {
    let path = "/nix/store/0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-x";
    for (path, algorithm, hash) in [
        ("", "", "abcd"),
        (path, "", "abcd"),
        (path, "r:sha256", ""),
        (path, "r:sha256", "impure"),
        ("", "r:sha256", "abcd"),
        ("/etc/passwd", "", ""),
        (path, "sha 256", "abcd"),
        (path, "sha256", "ab cd"),
    ] {
        assert!(Output::from_texts(path, algorithm, hash).is_err(), "{path} {algorithm} {hash}");
    }
}

#[test]
fn nesting_has_an_end() {
    let path = "/nix/store/0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-x.drv";
    let depth = 100_000;
    let file = format!("DrvWithVersion(\"xp-dyn-drv\",[],[(\"{path}\",{}", "([],[(\"out\",".repeat(depth));
    assert!(matches!(Derivation::parse(file.as_bytes()), Err(AtermError::TooDeep { .. })));
    // The old form does not know the new one.
    let file = format!("Derive([],[(\"{path}\",([\"out\"],[]))],[],\"s\",\"b\",[],[])");
    assert!(matches!(Derivation::parse(file.as_bytes()), Err(AtermError::Expected { .. })));
    let file = "DrvWithVersion(\"xp-dyn-drv-2\",[],[],[],\"s\",\"b\",[],[])";
    assert!(matches!(Derivation::parse(file.as_bytes()), Err(AtermError::UnknownFormat(_))));
}

#[test]
fn what_prefers_this_machine_says_so_as_text_or_structured() {
    let env =
        |name: &str, value: &str| BTreeMap::from([(name.as_bytes().to_vec(), value.as_bytes().to_vec())]);
    assert!(prefers_local(&env("preferLocalBuild", "1")));
    assert!(!prefers_local(&env("preferLocalBuild", "")));
    assert!(prefers_local(&env("__json", "{\"preferLocalBuild\": true}")));
    for other in ["{}", "{\"preferLocalBuild\": \"1\"}", "no json"] {
        assert!(!prefers_local(&env("__json", other)), "{other}");
    }
}
