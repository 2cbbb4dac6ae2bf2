//! All builders, and the indexes that make decisions about them cheap.
//!
//! A builder is changed only through [`Roster::change`], so that no index can be forgotten.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::builder::Builder;
use super::pool::PoolIx;
use super::scaling::Stock;
use crate::model::BuilderId;

/// All builders.
#[derive(Clone, Debug)]
pub(super) struct Roster {
    builders: BTreeMap<BuilderId, Builder>,
    indexes: Indexes,
}

/// What is known of the builders without looking at each.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Indexes {
    /// By pool.
    census: Vec<Census>,
    deadlines: BTreeSet<(Instant, BuilderId)>,
}

/// The builders of one pool, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Census {
    /// On their way to ready, by id.
    pub(super) starting: BTreeSet<BuilderId>,
    /// Ready, by id.
    pub(super) ready: BTreeSet<BuilderId>,
    /// On their way out.
    pub(super) ending: u32,
    /// Slots of ready builders that are not in use.
    pub(super) free: Stock,
    /// Builders that may get a build; the one with most slots in use first, so that the others become idle.
    pub(super) open: BTreeSet<(Reverse<u32>, BuilderId)>,
    /// The same; the one with most free slots first.
    pub(super) roomy: BTreeSet<(Reverse<u32>, BuilderId)>,
}

impl Census {
    /// Builders that are or will be of use.
    pub(super) fn staffed(&self) -> u32 {
        u32::try_from(self.starting.len() + self.ready.len()).unwrap_or(u32::MAX)
    }

    /// Builders that the provider may still have.
    pub(super) fn alive(&self) -> u32 {
        self.staffed() + self.ending
    }

    fn add(&mut self, builder: &Builder) {
        if builder.is_starting() {
            self.starting.insert(builder.id);
        } else if builder.is_ready() {
            self.ready.insert(builder.id);
            *self.free.of(builder.is_loose) += u64::from(builder.free());
            if builder.is_open() {
                self.open.insert((Reverse(builder.used()), builder.id));
                self.roomy.insert((Reverse(builder.free()), builder.id));
            }
        } else {
            self.ending += 1;
        }
    }

    fn remove(&mut self, builder: &Builder) {
        if builder.is_starting() {
            self.starting.remove(&builder.id);
        } else if builder.is_ready() {
            self.ready.remove(&builder.id);
            *self.free.of(builder.is_loose) -= u64::from(builder.free());
            if builder.is_open() {
                self.open.remove(&(Reverse(builder.used()), builder.id));
                self.roomy.remove(&(Reverse(builder.free()), builder.id));
            }
        } else {
            self.ending -= 1;
        }
    }
}

impl Indexes {
    fn add(&mut self, builder: &Builder) {
        self.census[builder.pool.0].add(builder);
        if let Some(at) = builder.deadline() {
            self.deadlines.insert((at, builder.id));
        }
    }

    fn remove(&mut self, builder: &Builder) {
        self.census[builder.pool.0].remove(builder);
        if let Some(at) = builder.deadline() {
            self.deadlines.remove(&(at, builder.id));
        }
    }
}

impl Roster {
    pub(super) fn new(n_pools: usize) -> Self {
        let indexes = Indexes { census: vec![Census::default(); n_pools], deadlines: BTreeSet::new() };
        Self { builders: BTreeMap::new(), indexes }
    }

    pub(super) fn get(&self, id: BuilderId) -> Option<&Builder> {
        self.builders.get(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Builder> {
        self.builders.values()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.builders.is_empty()
    }

    /// The builders of one pool, counted.
    pub(super) fn census(&self, pool: PoolIx) -> &Census {
        &self.indexes.census[pool.0]
    }

    pub(super) fn insert(&mut self, builder: Builder) {
        self.indexes.add(&builder);
        self.builders.insert(builder.id, builder);
    }

    pub(super) fn remove(&mut self, id: BuilderId) -> Option<Builder> {
        let builder = self.builders.remove(&id)?;
        self.indexes.remove(&builder);
        Some(builder)
    }

    /// The only way to change a builder.
    pub(super) fn change<T>(&mut self, id: BuilderId, change: impl FnOnce(&mut Builder) -> T) -> Option<T> {
        let builder = self.builders.get_mut(&id)?;
        self.indexes.remove(builder);
        let answer = change(builder);
        self.indexes.add(builder);
        Some(answer)
    }

    /// The first moment at which a builder must be looked at.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.indexes.deadlines.first().map(|(at, _)| *at)
    }

    /// The first builder whose deadline has come.
    pub(super) fn due(&self, now: Instant) -> Option<BuilderId> {
        self.indexes.deadlines.first().filter(|(at, _)| *at <= now).map(|(_, id)| *id)
    }

    /// The census as it must be, for tests.
    #[cfg(test)]
    pub(super) fn recount(&self) -> Self {
        let mut fresh = Self::new(self.indexes.census.len());
        for builder in self.builders.values() {
            fresh.insert(builder.clone());
        }
        fresh
    }

    #[cfg(test)]
    pub(super) fn indexes_equal(&self, other: &Self) -> bool {
        self.indexes == other.indexes
    }
}
