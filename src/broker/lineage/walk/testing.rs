//! Invented derivations, for the tests of this module and its neighbours.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::{Ancestry, DrvPath, Files};

/// The path of a derivation of this name; always the same one.
pub(in super::super) fn drv(name: &str) -> DrvPath {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    // Hexadecimal, but for the one digit that nix32 leaves out.
    let hash = format!("{:032x}", hasher.finish()).replace('e', "z");
    DrvPath::parse(&format!("/nix/store/{hash}-{name}.drv")).unwrap()
}

/// Derivations by path, and how often one was read.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Drvs {
    all: BTreeMap<DrvPath, Ancestry>,
    pub(in super::super) reads: usize,
}

impl Drvs {
    /// One more. Its features decide what it names.
    pub(in super::super) fn add(&mut self, name: &str, features: &[&str], inputs: &[&str]) -> &mut Ancestry {
        let mut inputs: Vec<_> = inputs.iter().map(|name| drv(name)).collect();
        inputs.sort();
        let ancestry = Ancestry {
            system: "x86_64-linux".to_owned(),
            is_builtin: false,
            is_fixed: false,
            prefers_local: false,
            features: features.iter().map(|&feature| feature.to_owned()).collect(),
            inputs,
        };
        self.all.entry(drv(name)).insert_entry(ancestry).into_mut()
    }
}

impl Files for Drvs {
    fn read(&mut self, drv: &DrvPath) -> (Option<Ancestry>, u64) {
        self.reads += 1;
        (self.all.get(drv).cloned(), 1_000)
    }
}
