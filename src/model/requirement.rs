//! What a derivation needs and what a pool offers, and whether they fit.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::DrvPath;
use super::ids::named;

named!(
    /// A Nix system such as `x86_64-linux`.
    System
);
named!(
    /// A Nix system feature such as `kvm` or `gccarch-znver3`.
    Feature
);

/// The system of derivations that Nix builds itself (`builtin:fetchurl`); any machine will do.
pub const BUILTIN_SYSTEM: &str = "builtin";

/// The feature Nix adds to floating content-addressed derivations. A builder has it when its Nix has the experimental
/// feature on, so nobody lists it; a pool has it until one of its builders turned out not to.
pub const CA_DERIVATIONS: &str = "ca-derivations";

/// The feature of derivations that use as many processors as there are.
pub const BIG_PARALLEL: &str = "big-parallel";

/// What the features begin with that name a processor by gcc's name of it.
const PROCESSOR_PREFIX: &str = "gccarch-";

impl Feature {
    /// Whether it names the processor that programs are made for (`gccarch-znver3`): the one kind of feature that is
    /// needed by whoever runs those programs, too.
    pub fn is_processor(&self) -> bool {
        self.as_str().starts_with(PROCESSOR_PREFIX)
    }
}

/// Processor features that a derivation needs because of its inputs, each with the one among them that names it.
///
/// A raw derivation of a package set that is tuned for a processor names no feature (`stdenv-linux`, nixpkgs #342208),
/// and runs the programs of its inputs all the same: on another processor they die of an illegal instruction.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Inherited(pub BTreeMap<Feature, DrvPath>);

impl Inherited {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where they come from.
    fn sources(&self) -> String {
        let names: BTreeSet<_> = self.0.values().map(|drv| format!("`{}.drv`", drv.name())).collect();
        format!("its inputs ({})", names.into_iter().collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Display for Inherited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inherits {} from {}", list(self.0.keys()), self.sources())
    }
}

/// System and features that one derivation needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The derivation's `system`.
    pub system: System,
    /// Its `requiredSystemFeatures`, from the hook's `try`, and what it inherits.
    pub features: BTreeSet<Feature>,
    /// Those of them that it does not name itself.
    pub inherited: Inherited,
}

impl Requirement {
    /// What a derivation says of itself.
    pub fn new(system: System, features: BTreeSet<Feature>) -> Self {
        Self { system, features, inherited: Inherited::default() }
    }

    /// Whether it may need a processor that it does not name: who names one has decided, and what Nix builds itself runs
    /// no program.
    pub fn may_inherit(&self) -> bool {
        self.system.as_str() != BUILTIN_SYSTEM && !self.features.iter().any(Feature::is_processor)
    }

    /// Whether it uses as many processors as there are.
    pub fn is_big_parallel(&self) -> bool {
        self.features.iter().any(|feature| feature.as_str() == BIG_PARALLEL)
    }

    /// Adds what the inputs bring.
    pub fn inherit(&mut self, inherited: Inherited) {
        self.features.extend(inherited.0.keys().cloned());
        self.inherited = inherited;
    }

    /// The misfit of an offer without these.
    fn missing(&self, features: BTreeSet<Feature>) -> Misfit {
        let origin = |feature: &Feature| self.inherited.0.get_key_value(feature);
        let (inherited, named) =
            features.into_iter().partition::<BTreeSet<_>, _>(|one| origin(one).is_some());
        let inherited = inherited.iter().filter_map(origin);
        let inherited = inherited.map(|(feature, drv)| (feature.clone(), drv.clone())).collect();
        Misfit::MissingFeatures { named, inherited: Inherited(inherited) }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.system)?;
        if !self.features.is_empty() {
            write!(f, " with {}", list(&self.features))?;
        }
        Ok(())
    }
}

/// What a pool says its builders have, or a builder was found to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Systems it builds for. Invariant: never empty.
    pub systems: BTreeSet<System>,
    /// Features a derivation may require.
    pub features: BTreeSet<Feature>,
    /// Features a derivation *must* require to be built here. They count as supported too.
    pub mandatory: BTreeSet<Feature>,
}

/// Why an offer does not fit a requirement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// It does not build for this system.
    System(System),
    /// It lacks features.
    MissingFeatures {
        /// These, which the derivation names.
        named: BTreeSet<Feature>,
        /// And these.
        inherited: Inherited,
    },
    /// It is reserved for derivations that require these.
    Reserved(BTreeSet<Feature>),
}

impl Offer {
    /// Whether a derivation with this requirement can be built here.
    pub fn satisfies(&self, requirement: &Requirement) -> Result<(), Misfit> {
        if requirement.system.as_str() != BUILTIN_SYSTEM && !self.systems.contains(&requirement.system) {
            return Err(Misfit::System(requirement.system.clone()));
        }
        let missing: BTreeSet<_> = requirement
            .features
            .iter()
            .filter(|feature| !self.features.contains(feature) && !self.mandatory.contains(feature))
            .cloned()
            .collect();
        if !missing.is_empty() {
            return Err(requirement.missing(missing));
        }
        let unused: BTreeSet<_> = self.mandatory.difference(&requirement.features).cloned().collect();
        if !unused.is_empty() {
            return Err(Misfit::Reserved(unused));
        }
        Ok(())
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(system) => write!(f, "does not build for `{system}`"),
            Self::MissingFeatures { named, inherited } => {
                f.write_str("lacks ")?;
                if !named.is_empty() {
                    f.write_str(&list(named))?;
                }
                if !named.is_empty() && !inherited.is_empty() {
                    f.write_str(", and also ")?;
                }
                if !inherited.is_empty() {
                    let features = list(inherited.0.keys());
                    write!(f, "{features}, which the derivation inherits from {}", inherited.sources())?;
                }
                Ok(())
            }
            Self::Reserved(features) => {
                write!(f, "is reserved for derivations that require {}", list(features))
            }
        }
    }
}

fn list<'a>(features: impl IntoIterator<Item = &'a Feature>) -> String {
    features.into_iter().map(|feature| format!("`{feature}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(words: &[&str]) -> BTreeSet<Feature> {
        words.iter().map(|&word| Feature::new(word)).collect()
    }

    fn check(system: &str, required: &[&str]) -> Result<(), String> {
        let offer = Offer {
            systems: [System::new("x86_64-linux")].into(),
            features: features(&["kvm", "big-parallel"]),
            mandatory: features(&["gccarch-znver3"]),
        };
        let requirement = Requirement::new(System::new(system), features(required));
        offer.satisfies(&requirement).map_err(|misfit| misfit.to_string())
    }

    #[test]
    fn all_required_and_all_mandatory_features_fit() {
        assert_eq!(check("x86_64-linux", &["gccarch-znver3", "kvm"]), Ok(()));
        assert_eq!(check("builtin", &["gccarch-znver3"]), Ok(()));
    }

    #[test]
    fn each_misfit_says_what_is_wrong() {
        assert_eq!(check("i686-linux", &[]).unwrap_err(), "does not build for `i686-linux`");
        assert_eq!(check("x86_64-linux", &["gccarch-znver3", "a", "b"]).unwrap_err(), "lacks `a`, `b`");
        assert_eq!(
            check("x86_64-linux", &["kvm"]).unwrap_err(),
            "is reserved for derivations that require `gccarch-znver3`"
        );
    }

    #[test]
    fn what_is_inherited_is_needed_and_said_so() {
        let offer = Offer {
            systems: [System::new("x86_64-linux")].into(),
            features: features(&["gccarch-skylake"]),
            mandatory: BTreeSet::new(),
        };
        let gcc = DrvPath::parse("/nix/store/0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-gcc-13.drv").unwrap();
        let tuned =
            |words: &[&str]| Inherited(words.iter().map(|&word| (Feature::new(word), gcc.clone())).collect());
        let mut raw = Requirement::new(System::new("x86_64-linux"), BTreeSet::new());
        assert!(raw.may_inherit() && offer.satisfies(&raw).is_ok());
        raw.inherit(tuned(&["gccarch-skylake"]));
        assert_eq!(offer.satisfies(&raw), Ok(()));
        assert_eq!(raw.inherited.to_string(), "inherits `gccarch-skylake` from its inputs (`gcc-13.drv`)");
        raw.inherit(tuned(&["gccarch-skylake", "gccarch-znver3"]));
        assert_eq!(
            offer.satisfies(&raw).unwrap_err().to_string(),
            "lacks `gccarch-znver3`, which the derivation inherits from its inputs (`gcc-13.drv`)"
        );
        let mut with_kvm = Requirement::new(System::new("x86_64-linux"), features(&["kvm"]));
        with_kvm.inherit(tuned(&["gccarch-znver3"]));
        assert_eq!(
            offer.satisfies(&with_kvm).unwrap_err().to_string(),
            "lacks `kvm`, and also `gccarch-znver3`, which the derivation inherits from its inputs (`gcc-13.drv`)"
        );
    }

    #[test]
    fn a_pool_reserved_for_a_processor_takes_what_inherits_it() {
        let offer = Offer {
            systems: [System::new("x86_64-linux")].into(),
            features: BTreeSet::new(),
            mandatory: features(&["gccarch-znver3"]),
        };
        let gcc = DrvPath::parse("/nix/store/0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-gcc-13.drv").unwrap();
        let mut raw = Requirement::new(System::new("x86_64-linux"), BTreeSet::new());
        assert!(matches!(offer.satisfies(&raw), Err(Misfit::Reserved(_))));
        raw.inherit(Inherited([(Feature::new("gccarch-znver3"), gcc)].into()));
        assert_eq!(offer.satisfies(&raw), Ok(()));
    }

    #[test]
    fn who_names_a_processor_and_what_nix_builds_itself_inherit_nothing() {
        let may = |system: &str, words: &[&str]| {
            Requirement::new(System::new(system), features(words)).may_inherit()
        };
        assert!(may("x86_64-linux", &["kvm", "big-parallel"]));
        assert!(!may("x86_64-linux", &["gccarch-skylake"]));
        assert!(!may("builtin", &[]));
    }
}
