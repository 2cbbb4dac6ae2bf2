//! Which build gets which builder next.
//!
//! Among the builds that any open builder fits, the one comes first whose turn it is ([`super::queue`]). It goes to the
//! first of its pools with a free slot: to a builder that made some of its inputs, if one of them is open; else to the
//! fullest, so that others become idle and end. One that is `big-parallel` goes to the one with most room instead, and
//! takes half of it. None goes to a builder that it has failed on while there is, or soon will be, another. What a builder
//! has no memory for ([`super::headroom`]) counts as no free slot, here and where launches are decided.

use std::collections::BTreeMap;

use super::build::Build;
use super::pool::PoolIx;
use super::queue::{Fit, LaneIx, Queue, Turn};
use super::roster::Roster;
use crate::model::{BuildId, BuilderId};

/// A build and the builder it is to run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placement {
    turn: Turn,
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
    let is_better = |turn: Turn, best: &Option<Placement>| best.is_none_or(|best| turn < best.turn);
    for (lane_ix, lane) in queue.lanes() {
        let Some(open) = first_open(&lane.fit, roster) else { continue };
        if let Some((turn, build)) = lane.first_plain()
            && is_better(turn, &best)
        {
            let builder = builds.get(&build).and_then(|build| near(&lane.fit, roster, build)).unwrap_or(open);
            best = Some(Placement { turn, lane: lane_ix, build, builder });
        }
        let suited = lane.picky().find_map(|(turn, build)| {
            let builder = choose_for_picky(&lane.fit, roster, builds.get(&build)?, &may_grow)?;
            Some(Placement { turn, lane: lane_ix, build, builder })
        });
        if let Some(suited) = suited
            && is_better(suited.turn, &best)
        {
            best = Some(suited);
        }
    }
    best
}

/// The builder for a build that any will do for.
fn first_open(fit: &Fit, roster: &Roster) -> Option<BuilderId> {
    fit.pools.iter().find_map(|pool| {
        let census = roster.census(*pool);
        if fit.is_big {
            census.roomy.first().map(|(_, builder)| *builder)
        } else {
            census.open.first().map(|(_, builder)| *builder)
        }
    })
}

/// An open builder that made some of its inputs.
fn near(fit: &Fit, roster: &Roster, build: &Build) -> Option<BuilderId> {
    let will_do = |id: &&BuilderId| {
        roster.get(**id).is_some_and(|builder| builder.is_open() && fit.pools.contains(&builder.pool))
    };
    build.near.iter().find(will_do).copied()
}

/// The builder for a build that would rather not run on some: it has failed on them, or they may be taken away.
fn choose_for_picky(
    fit: &Fit,
    roster: &Roster,
    build: &Build,
    may_grow: impl Fn(PoolIx) -> bool,
) -> Option<BuilderId> {
    let is_shunned =
        |id: &BuilderId| build.shuns_loose && roster.get(*id).is_some_and(|builder| builder.is_loose);
    let suits = |id: &BuilderId| !(build.has_failed_on(*id) || is_shunned(id));
    let open = || fit.pools.iter().flat_map(|pool| &roster.census(*pool).open).map(|(_, builder)| *builder);
    if let Some(best) = open().find(&suits) {
        return Some(best);
    }
    let another_will_be_free = fit.pools.iter().any(|pool| {
        let census = roster.census(*pool);
        census.starting.iter().chain(&census.ready).any(&suits)
    });
    if another_will_be_free {
        return None;
    }
    // Where it has failed, but not shunned: as long as such a slot is free, nothing is launched for builds like this.
    open().find(|id| !is_shunned(id)).or_else(|| {
        let one_is_launched = build.shuns_loose && fit.pools.iter().any(|pool| may_grow(*pool));
        if one_is_launched { None } else { first_open(fit, roster) }
    })
}
