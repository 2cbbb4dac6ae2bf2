//! Which build gets which builder next.
//!
//! The earliest accepted build that any open builder fits comes first, so a build is never overtaken for a slot it
//! could have had. It goes to the first of its pools with a free slot, there to the builder with most leases, and not
//! to one it has failed on while there is, or soon will be, another.

use std::collections::BTreeMap;

use super::build::Build;
use super::pool::PoolIx;
use super::queue::{LaneIx, Queue, Ticket};
use super::roster::Roster;
use crate::model::{BuildId, BuilderId};

/// A build and the builder it is to run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placement {
    pub(super) ticket: Ticket,
    pub(super) lane: LaneIx,
    pub(super) build: BuildId,
    pub(super) builder: BuilderId,
}

/// The next placement, if there is any.
pub(super) fn next(queue: &Queue, roster: &Roster, builds: &BTreeMap<BuildId, Build>) -> Option<Placement> {
    let mut best: Option<Placement> = None;
    for (lane_ix, lane) in queue.lanes() {
        let Some(open) = first_open(&lane.pools, roster) else { continue };
        if let Some((ticket, build)) = lane.first_plain()
            && best.is_none_or(|best| ticket < best.ticket)
        {
            best = Some(Placement { ticket, lane: lane_ix, build, builder: open });
        }
        for (ticket, build) in lane.picky() {
            if best.is_some_and(|best| best.ticket < ticket) {
                break;
            }
            let Some(known) = builds.get(&build) else { continue };
            if let Some(builder) = choose_for_picky(&lane.pools, roster, known) {
                best = Some(Placement { ticket, lane: lane_ix, build, builder });
                break;
            }
        }
    }
    best
}

/// The builder for a build that any will do for.
fn first_open(pools: &[PoolIx], roster: &Roster) -> Option<BuilderId> {
    pools.iter().find_map(|pool| roster.census(*pool).open.first()).map(|(_, builder)| *builder)
}

/// The builder for a build that has failed on some that are still ready.
fn choose_for_picky(pools: &[PoolIx], roster: &Roster, build: &Build) -> Option<BuilderId> {
    let fresh = pools
        .iter()
        .flat_map(|pool| &roster.census(*pool).open)
        .map(|(_, builder)| *builder)
        .find(|builder| !build.has_failed_on(*builder));
    if fresh.is_some() || another_will_be_free(pools, roster, build) {
        return fresh;
    }
    first_open(pools, roster)
}

/// Whether a builder that this build has not failed on is on its way, or is busy.
fn another_will_be_free(pools: &[PoolIx], roster: &Roster, build: &Build) -> bool {
    pools.iter().map(|pool| roster.census(*pool)).any(|census| {
        !census.starting.is_empty() || census.ready.iter().any(|builder| !build.has_failed_on(*builder))
    })
}
