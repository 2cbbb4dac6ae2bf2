//! What is remembered of derivations: the answer to [`super::walk`]'s question for each, up to a bound.
//!
//! A derivation never changes, so nothing here is ever wrong; it is only forgotten, what was not asked for longest first.

use std::collections::HashMap;

use super::walk::Lineage;
use crate::model::DrvPath;

/// A bounded memory in two generations: when the young one is full, it becomes the old one, and what was old and has not
/// been asked for since is forgotten.
#[derive(Debug)]
pub(super) struct Memo {
    young: HashMap<DrvPath, Lineage>,
    old: HashMap<DrvPath, Lineage>,
    /// The most of one generation.
    most: usize,
}

impl Memo {
    /// For no more than `most` derivations.
    pub(super) fn new(most: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), most: (most / 2).max(1) }
    }

    pub(super) fn get(&mut self, drv: &DrvPath) -> Option<Lineage> {
        if let Some(lineage) = self.young.get(drv) {
            return Some(lineage.clone());
        }
        let (drv, lineage) = self.old.remove_entry(drv)?;
        self.insert(drv, lineage.clone());
        Some(lineage)
    }

    pub(super) fn insert(&mut self, drv: DrvPath, lineage: Lineage) {
        if self.young.len() >= self.most {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(drv, lineage);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::walk::testing::drv;
    use super::*;

    #[test]
    fn what_is_asked_for_stays_and_what_is_not_is_forgotten() {
        let mut memo = Memo::new(10);
        memo.insert(drv("kept"), Lineage::default());
        for n in 0..100 {
            memo.insert(drv(&format!("other-{n}")), Lineage::default());
            assert!(memo.get(&drv("kept")).is_some(), "forgotten after {n}");
            assert!(memo.len() <= 10, "{} are remembered", memo.len());
        }
        assert!(memo.get(&drv("other-0")).is_none());
        assert!(memo.get(&drv("other-99")).is_some());
    }
}
