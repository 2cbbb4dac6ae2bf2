//! What the tests of this module share: arbitrary values, and a way to await them.

use std::collections::BTreeMap;
use std::future::Future;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

use super::derivation::{BasicDerivation, Output};
use crate::model::{DrvPath, OutputName, StorePath};

/// Awaits something that needs no other task.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

pub(crate) fn any_store_path() -> impl Strategy<Value = StorePath> {
    "[0-9a-df-np-sv-z]{32}-[a-zA-Z0-9+_?=][a-zA-Z0-9+._?=-]{0,20}"
        .prop_map(|base_name| StorePath::from_base_name(&base_name).unwrap())
}

pub(crate) fn any_drv_path() -> impl Strategy<Value = DrvPath> {
    any_store_path().prop_map(|path| {
        DrvPath::try_from(StorePath::from_base_name(&format!("{}.drv", path.base_name())).unwrap()).unwrap()
    })
}

pub(crate) fn any_output_name() -> impl Strategy<Value = OutputName> {
    "[a-z0-9]{1,8}".prop_map(|name| OutputName::parse(&name).unwrap())
}

fn any_output() -> impl Strategy<Value = Output> {
    let algorithm = || prop_oneof!["sha256", "r:sha256", "text:sha512"];
    prop_oneof![
        any_store_path().prop_map(Output::InputAddressed),
        (any_store_path(), algorithm(), "[0-9a-f]{64}").prop_map(|(path, algorithm, hash)| Output::Fixed {
            path,
            algorithm,
            hash
        }),
        algorithm().prop_map(|algorithm| Output::Floating { algorithm }),
        Just(Output::Deferred),
        algorithm().prop_map(|algorithm| Output::Impure { algorithm }),
    ]
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..40)
}

pub(crate) fn any_basic_derivation() -> impl Strategy<Value = BasicDerivation> {
    let env = btree_map(any_bytes(), any_bytes(), 0..5);
    let outputs = btree_map(any_output_name(), any_output(), 0..4);
    let rest = ("[a-z0-9_-]{1,20}", any_bytes(), vec(any_bytes(), 0..4), env);
    (outputs, btree_set(any_store_path(), 0..5), rest).prop_map(
        |(outputs, input_srcs, (system, builder, args, env))| BasicDerivation {
            outputs,
            input_srcs,
            system,
            builder,
            args,
            env: env as BTreeMap<_, _>,
        },
    )
}
