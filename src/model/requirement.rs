//! What a derivation needs and what a pool offers, and whether they fit.

use std::collections::BTreeSet;
use std::fmt;

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

/// System and features of one derivation, from the hook's `try`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The derivation's `system`.
    pub system: System,
    /// Its `requiredSystemFeatures`.
    pub features: BTreeSet<Feature>,
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
    /// It lacks these features.
    MissingFeatures(BTreeSet<Feature>),
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
            return Err(Misfit::MissingFeatures(missing));
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
            Self::MissingFeatures(features) => write!(f, "lacks {}", list(features)),
            Self::Reserved(features) => {
                write!(f, "is reserved for derivations that require {}", list(features))
            }
        }
    }
}

fn list(features: &BTreeSet<Feature>) -> String {
    features.iter().map(|feature| format!("`{feature}`")).collect::<Vec<_>>().join(", ")
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
        let requirement = Requirement { system: System::new(system), features: features(required) };
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
}
