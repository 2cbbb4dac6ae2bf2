//! Instances that an earlier broker launched: they are used again, as far as there may be so many.

use std::collections::BTreeSet;

use super::action::Action;
use super::builder::{Builder, EndReason};
use super::event::Adoption;
use super::fleet::{Fleet, Mode};
use super::pool::PoolIx;
use crate::model::{Ending, InstanceId};

impl Fleet {
    /// All of them in one event, so that no builder is launched for what one of them can do.
    pub(super) fn on_adopted(&mut self, found: Vec<Adoption>) {
        // Too late to do anything for them: the next broker finds them again.
        if self.mode == Mode::Exited {
            return;
        }
        let mut pools = BTreeSet::new();
        for Adoption { builder: id, instance, age } in found {
            self.last_builder = self.last_builder.max(id.0);
            if self.roster.get(id).is_some() || self.knows(&instance.id) {
                continue;
            }
            let Some(ix) = self.pools.iter().position(|pool| pool.spec.name == instance.pool).map(PoolIx)
            else {
                let reason = format!("there is no pool `{}` any more", instance.pool);
                self.actions.push(Action::Terminate { builder: id, ending: Ending::Final, reason });
                continue;
            };
            let spec = &self.pools[ix.0].spec;
            let (timeout, lifetime) = (spec.launch_timeout, spec.max_lifetime);
            self.roster.insert(Builder::adopted(id, ix, self.now, age, timeout, instance));
            self.record_instance(id, false);
            pools.insert(ix);
            if age >= lifetime {
                self.end_builder(id, EndReason::TooOld(lifetime));
            }
        }
        for ix in pools {
            self.end_surplus(ix);
        }
    }

    /// Whether a builder has this instance.
    pub fn knows(&self, instance: &InstanceId) -> bool {
        let mut instances = self.roster.iter().filter_map(|builder| builder.instance.as_ref());
        instances.any(|known| known.id == *instance)
    }

    /// Ends those that have the least time left. None of them has got a build yet.
    fn end_surplus(&mut self, ix: PoolIx) {
        let census = self.roster.census(ix);
        let surplus = census.staffed().saturating_sub(self.pools[ix.0].spec.max_builders);
        let adopted = census.starting.iter().filter_map(|id| self.roster.get(*id));
        let mut adopted: Vec<_> = adopted
            .filter(|builder| builder.is_adopted)
            .map(|builder| (builder.launched_at, builder.id))
            .collect();
        adopted.sort_unstable();
        for (_, id) in adopted.into_iter().take(surplus as usize) {
            self.end_builder(id, EndReason::Surplus);
        }
    }
}
