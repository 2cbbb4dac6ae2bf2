//! How long a build will take, from how long builds like it took.
//!
//! Owns the bounded memory of durations and the answer from it; pure, and answered in microseconds, because Nix waits for
//! the verdict that it is a part of. What ended comes from the history at the start, and from the scheduler's records
//! from then on. What follows from a prediction is the scheduler's decision.
//!
//! The closest of these that anything is known of is the answer: builds of the same name for the same system; of the same
//! package in other versions; all builds for the system, those that require `big-parallel` apart from the others.

mod durations;
mod memory;
mod name;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::{Basis, BuildRecord, DrvPath, Outcome, Prediction, Requirement, System};
use durations::Durations;
use memory::Memory;

/// Names remembered for each system, and as many packages.
const MOST_NAMES: usize = 1 << 15;
/// Systems remembered; Nix knows some ten.
const MOST_SYSTEMS: usize = 16;
/// The last builds of a name that count.
const OF_A_NAME: usize = 9;
/// The last builds of a system that count.
const OF_A_SYSTEM: usize = 255;
/// How much further from the truth another version is, as a variance of logarithms.
const OTHER_VERSION: f32 = 0.1;

/// A build that ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation<'a> {
    /// The derivation's name, without hash and `.drv`.
    pub name: &'a str,
    /// Its system.
    pub system: &'a str,
    /// Whether it required `big-parallel`.
    pub is_big: bool,
    /// On the builder, in the attempt that ended well.
    pub took: Duration,
}

/// What is known of builds that ended.
#[derive(Clone, Debug, Default)]
pub struct Predictor {
    systems: BTreeMap<String, Known>,
}

/// What is known of one system.
#[derive(Clone, Debug)]
struct Known {
    names: Memory<Durations<OF_A_NAME>>,
    packages: Memory<Durations<OF_A_NAME>>,
    /// Builds that require `big-parallel`, and all others.
    big: Durations<OF_A_SYSTEM>,
    plain: Durations<OF_A_SYSTEM>,
}

impl Default for Known {
    fn default() -> Self {
        let memory = || Memory::new(MOST_NAMES);
        Self { names: memory(), packages: memory(), big: Durations::default(), plain: Durations::default() }
    }
}

impl Predictor {
    /// Takes in a build that ended, unless nothing follows from it: one that failed says how long it takes to fail.
    pub fn learn(&mut self, record: &BuildRecord) {
        let (Outcome::Succeeded, Some(took)) = (&record.outcome, record.took) else { return };
        self.observe(Observation {
            name: record.drv.name(),
            system: record.requirement.system.as_str(),
            is_big: record.requirement.is_big_parallel(),
            took,
        });
    }

    /// Takes in a build that ended well.
    pub fn observe(&mut self, seen: Observation<'_>) {
        if !self.systems.contains_key(seen.system) {
            if self.systems.len() == MOST_SYSTEMS {
                return;
            }
            self.systems.insert(seen.system.to_owned(), Known::default());
        }
        let Some(known) = self.systems.get_mut(seen.system) else { return };
        known.names.change(seen.name, |durations| durations.add(seen.took));
        let package = name::package(seen.name);
        known.packages.change(package, |durations| durations.add(seen.took));
        let of_its_kind = if seen.is_big { &mut known.big } else { &mut known.plain };
        of_its_kind.add(seen.took);
    }

    /// What is expected of a build.
    pub fn predict(&self, drv: &DrvPath, requirement: &Requirement) -> Prediction {
        self.predict_for(drv.name(), &requirement.system, requirement.is_big_parallel())
    }

    /// What is expected of a build of this name.
    pub fn predict_for(&self, name: &str, system: &System, is_big: bool) -> Prediction {
        let Some(known) = self.systems.get(system.as_str()) else { return Prediction::UNKNOWN };
        let of_name = || known.names.get(name)?.estimate().map(|estimate| (Basis::Name, estimate));
        let of_package = || {
            let estimate = known.packages.get(name::package(name))?.estimate()?;
            Some((Basis::Package, estimate.widened(OTHER_VERSION)))
        };
        let of_system = || {
            let (first, second) =
                if is_big { (&known.big, &known.plain) } else { (&known.plain, &known.big) };
            first.estimate().or_else(|| second.estimate()).map(|estimate| (Basis::System, estimate))
        };
        match of_name().or_else(of_package).or_else(of_system) {
            Some((basis, estimate)) => estimate.prediction(basis),
            None => Prediction::UNKNOWN,
        }
    }

    /// How many names are remembered.
    pub fn names(&self) -> usize {
        self.systems.values().map(|known| known.names.len()).sum()
    }
}

#[cfg(test)]
mod tests;
