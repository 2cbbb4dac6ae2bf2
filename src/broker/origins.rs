//! Which builder made which store path: a build is best placed where its inputs were made, for there they need not be sent.
//!
//! A hint and no more: bounded, never saved, and what it says may have been deleted there. That inputs are present is
//! [`super::remote`]'s business.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use parking_lot::Mutex;

use crate::model::{BuilderId, StorePath};

/// Paths remembered, in two generations: what was made last.
const MOST: usize = 1 << 16;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Origins {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    young: HashMap<StorePath, BuilderId>,
    old: HashMap<StorePath, BuilderId>,
}

impl Origins {
    /// These were made there.
    pub(crate) fn note<'a>(&self, builder: BuilderId, made: impl Iterator<Item = &'a StorePath>) {
        let mut known = self.known.lock();
        for path in made {
            if known.young.len() >= MOST / 2 {
                known.old = std::mem::take(&mut known.young);
            }
            known.young.insert(path.clone(), builder);
        }
    }

    /// Where these were made; the builder that made most of them comes first.
    pub(crate) fn of(&self, paths: &BTreeSet<StorePath>) -> Vec<BuilderId> {
        let mut counts: BTreeMap<BuilderId, usize> = BTreeMap::new();
        {
            let known = self.known.lock();
            if known.young.is_empty() && known.old.is_empty() {
                return Vec::new();
            }
            for path in paths {
                if let Some(builder) = known.young.get(path).or_else(|| known.old.get(path)) {
                    *counts.entry(*builder).or_default() += 1;
                }
            }
        }
        let mut builders: Vec<_> = counts.into_iter().collect();
        builders.sort_by_key(|(builder, count)| (std::cmp::Reverse(*count), *builder));
        builders.into_iter().map(|(builder, _)| builder).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> StorePath {
        StorePath::from_base_name(&format!("0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-{name}")).unwrap()
    }

    #[test]
    fn the_builder_that_made_most_comes_first_and_what_is_old_is_forgotten() {
        let origins = Origins::default();
        let all: BTreeSet<_> = ["a", "b", "c", "unknown"].map(path).into();
        assert!(origins.of(&all).is_empty());
        origins.note(BuilderId(1), [path("a")].iter());
        origins.note(BuilderId(2), [path("b"), path("c")].iter());
        assert_eq!(origins.of(&all), [BuilderId(2), BuilderId(1)]);
        for n in 0..MOST {
            origins.note(BuilderId(3), [path(&format!("n{n}"))].iter());
        }
        assert!(origins.of(&all).is_empty());
        let known = origins.known.lock();
        assert!(known.young.len() + known.old.len() <= MOST);
    }
}
