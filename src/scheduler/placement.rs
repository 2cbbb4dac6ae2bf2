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
///
/// `may_grow` says whether another builder could be launched in a pool.
pub(super) fn next(
    queue: &Queue,
    roster: &Roster,
    builds: &BTreeMap<BuildId, Build>,
    may_grow: impl Fn(PoolIx) -> bool,
) -> Option<Placement> {
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
            if let Some(builder) = choose_for_picky(&lane.pools, roster, known, &may_grow) {
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

/// The builder for a build that would rather not run on some: it has failed on them, or they may be taken away.
fn choose_for_picky(
    pools: &[PoolIx],
    roster: &Roster,
    build: &Build,
    may_grow: impl Fn(PoolIx) -> bool,
) -> Option<BuilderId> {
    let suits = |id: &BuilderId| {
        let is_loose = || roster.get(*id).is_some_and(|builder| builder.is_loose);
        !(build.has_failed_on(*id) || build.shuns_loose && is_loose())
    };
    let open = pools.iter().flat_map(|pool| &roster.census(*pool).open).map(|(_, builder)| *builder);
    let best = open.clone().find(&suits);
    let another_will_be_free = || {
        pools.iter().any(|pool| {
            let census = roster.census(*pool);
            // One that is only launched because this one waits counts as well.
            let is_launched = build.shuns_loose && may_grow(*pool);
            is_launched || census.starting.iter().chain(&census.ready).any(&suits)
        })
    };
    if best.is_some() || another_will_be_free() { best } else { first_open(pools, roster) }
}
