//! Pools that get in each other's way: they work, and are hardly what was meant, so these are warnings.

use std::collections::BTreeMap;

use super::pool::{ReadPool, hosts_of};
use super::problem::Problems;
use crate::model::Offer;

/// Warns of pools that can never get a build.
pub(super) fn warn(pools: &[ReadPool], problems: &mut Problems) {
    for (index, later) in pools.iter().enumerate() {
        if let Some(earlier) =
            pools[..index].iter().find(|earlier| covers(&earlier.spec.offer, &later.spec.offer))
        {
            let message = format!(
                "never gets a build: whatever fits here fits `{}` on line {} too, and the first that fits wins; \
                 put this pool first, or give it `mandatory-features`",
                earlier.spec.name, earlier.line
            );
            problems.warn(later.line, later.path.as_str(), message);
        }
    }
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
