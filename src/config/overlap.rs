//! Pools that have to do with each other: one that takes what another has no room for, and two that share a machine.

use std::collections::BTreeMap;

use super::pool::{ReadPool, hosts_of};
use super::problem::Problems;
use crate::model::{Offer, PoolName, PoolSpec};

/// The pools that get a build only when an earlier one is full, each with that earlier one: whatever fits them fits it
/// as well, and the first pool that fits and has room wins.
pub fn overflows(pools: &[PoolSpec]) -> Vec<(&PoolName, &PoolName)> {
    let mut found = Vec::new();
    for (index, later) in pools.iter().enumerate() {
        if let Some(earlier) = pools[..index].iter().find(|earlier| covers(&earlier.offer, &later.offer)) {
            found.push((&later.name, &earlier.name));
        }
    }
    found
}

/// Warns of machines that two pools would each fill up.
pub(super) fn warn_of_shared_hosts(pools: &[ReadPool], problems: &mut Problems) {
    let mut owners: BTreeMap<(&str, u16), &ReadPool> = BTreeMap::new();
    for pool in pools {
        for host in hosts_of(&pool.spec) {
            let place = (host.address.as_str(), host.port);
            match owners.get(&place) {
                Some(owner) if owner.spec.name != pool.spec.name => {
                    let message = format!(
                        "`{}` is in pool `{}` too; both give it work without knowing of each other",
                        host.address, owner.spec.name
                    );
                    problems.warn(pool.line, format!("{}.hosts", pool.path), message);
                }
                Some(_) => {}
                None => {
                    owners.insert(place, pool);
                }
            }
        }
    }
}

/// Whether every requirement that fits `later` fits `earlier` as well.
fn covers(earlier: &Offer, later: &Offer) -> bool {
    later.systems.is_subset(&earlier.systems)
        && later
            .features
            .union(&later.mandatory)
            .all(|feature| earlier.features.contains(feature) || earlier.mandatory.contains(feature))
        && earlier.mandatory.is_subset(&later.mandatory)
}
