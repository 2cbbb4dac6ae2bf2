//! Which build gets which builder next.
//!
//! Among the builds that any open builder fits, the one comes first whose turn it is ([`super::queue`]). It goes to the
//! first of its pools with a free slot: to a builder that made some of its inputs, if one of them is open; else to the
//! fullest, so that others become idle and end. One that is `big-parallel` goes to the one with most room instead; what it
//! takes of it is [`super::builder::room_of_big`]'s arithmetic. Where the roomiest has less, it waits for a builder that
//! starts, if one does, and else gets what there is; but one that is worth a launch of its own waits for a machine that
//! gives it twice of that, as long as such a one starts or can be launched: the work costs the same there, and is done
//! sooner. [`refused`] tells [`super::growth`] that it does.
//!
//! None goes to a builder that it has failed on while there is, or soon will be, another; where all the others are full,
//! [`super::scaling`] launches one for it, and is told so by [`awaits_a_full_one`]. What a builder has no memory for
//! ([`super::headroom`]) counts as no free slot, here and where launches are decided.

use std::collections::BTreeMap;
use std::time::Duration;

use super::build::Build;
use super::builder::room_of_big;
use super::pool::PoolIx;
use super::queue::{Fit, Lane, LaneIx, Queue, Turn};
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

/// What a pool may still bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ahead {
    /// Whether another builder could be launched.
    pub(super) may_grow: bool,
    /// Slots of the largest builder that starts or could be launched, where they come in sizes; else none.
    pub(super) largest: u32,
    /// A build that takes no less than this is worth a launch of its own.
    pub(super) horizon: Duration,
}

/// The next placement, if there is any.
pub(super) fn next(
    queue: &Queue,
    roster: &Roster,
    builds: &BTreeMap<BuildId, Build>,
    ahead: impl Fn(PoolIx) -> Ahead,
) -> Option<Placement> {
    let mut best: Option<Placement> = None;
    let is_better = |turn: Turn, best: &Option<Placement>| best.is_none_or(|best| turn < best.turn);
    for (lane_ix, lane) in queue.lanes() {
        let Some(open) = first_open(&lane.fit, roster) else { continue };
        if let Some((turn, id)) = lane.first_plain()
            && is_better(turn, &best)
            && let Some(build) = builds.get(&id)
        {
            let does = |builder: &BuilderId| {
                worth_waiting_from(&lane.fit, roster, *builder, &ahead)
                    .is_none_or(|from| build.place.lasts < from)
            };
            let chosen = near(&lane.fit, roster, build).filter(does).or_else(|| Some(open).filter(does));
            if let Some(builder) = chosen {
                best = Some(Placement { turn, lane: lane_ix, build: id, builder });
            }
        }
        let suited = lane.picky().find_map(|(turn, build)| {
            match choose_for_picky(&lane.fit, roster, builds.get(&build)?, |pool| ahead(pool).may_grow) {
                Choice::Now(builder) => Some(Placement { turn, lane: lane_ix, build, builder }),
                Choice::Later | Choice::OnAFullOne => None,
            }
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
    let censuses = || fit.pools.iter().map(|pool| roster.census(*pool));
    if !fit.is_big {
        return censuses().find_map(|census| census.open.first()).map(|(_, builder)| *builder);
    }
    let roomiest = || censuses().filter_map(|census| census.roomy.first()).map(|(_, builder)| *builder);
    let has_room = |id: &BuilderId| roster.get(*id).is_some_and(|builder| builder.has_room_for(true));
    if let Some(builder) = roomiest().find(has_room) {
        return Some(builder);
    }
    if holds_out_for_room(fit, roster) { None } else { roomiest().next() }
}

/// Whether a build that nothing has room for waits for a builder that starts. That ends: it becomes ready, or is given up.
pub(super) fn holds_out_for_room(fit: &Fit, roster: &Roster) -> bool {
    fit.is_big && fit.pools.iter().any(|pool| !roster.census(*pool).starting.is_empty())
}

/// How long a build must take to wait rather than run on this builder: for a machine that starts or can be launched, where it
/// would get at least twice of what it gets here. `None` where there is no such machine.
fn worth_waiting_from(
    fit: &Fit,
    roster: &Roster,
    builder: BuilderId,
    ahead: impl Fn(PoolIx) -> Ahead,
) -> Option<Duration> {
    if !fit.is_big {
        return None;
    }
    let here = roster.get(builder)?.room_of_next_big();
    let ahead = fit.pools.iter().map(|pool| ahead(*pool));
    ahead.filter(|ahead| room_of_big(ahead.largest) / 2 >= here).map(|ahead| ahead.horizon).min()
}

/// An open builder that is too small for the build whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) build: BuildId,
    pub(super) builder: BuilderId,
    /// All that take no less than this wait for a larger one.
    pub(super) from: Duration,
}

/// The builder that is refused by the build whose turn it is in this lane, if that waits for a larger one.
pub(super) fn refused(
    lane: &Lane,
    roster: &Roster,
    builds: &BTreeMap<BuildId, Build>,
    ahead: impl Fn(PoolIx) -> Ahead,
) -> Option<Refused> {
    let (_, build) = lane.first_plain()?;
    let builder = first_open(&lane.fit, roster)?;
    let from = worth_waiting_from(&lane.fit, roster, builder, ahead)?;
    (builds.get(&build)?.place.lasts >= from).then_some(Refused { build, builder, from })
}

/// An open builder that made some of its inputs.
fn near(fit: &Fit, roster: &Roster, build: &Build) -> Option<BuilderId> {
    let will_do = |id: &&BuilderId| {
        roster.get(**id).is_some_and(|builder| {
            builder.is_open() && builder.has_room_for(fit.is_big) && fit.pools.contains(&builder.pool)
        })
    };
    build.near.iter().find(will_do).copied()
}

/// Where a build goes that would rather not run on some builders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Now(BuilderId),
    /// Nowhere yet: one that suits it starts, is launched, or is under a suspicion that soon ends.
    Later,
    /// Nowhere yet: all that suit it are full.
    OnAFullOne,
}

/// Whether this build waits for a full builder to have a slot again, whatever is free elsewhere.
pub(super) fn awaits_a_full_one(fit: &Fit, roster: &Roster, build: &Build) -> bool {
    choose_for_picky(fit, roster, build, |_| false) == Choice::OnAFullOne
}

/// The builder for a build that would rather not run on some: it has failed on them, or they may be taken away.
fn choose_for_picky(fit: &Fit, roster: &Roster, build: &Build, may_grow: impl Fn(PoolIx) -> bool) -> Choice {
    let is_shunned =
        |id: &BuilderId| build.shuns_loose && roster.get(*id).is_some_and(|builder| builder.is_loose);
    let suits = |id: &BuilderId| !(build.has_failed_on(*id) || is_shunned(id));
    let open = || fit.pools.iter().flat_map(|pool| &roster.census(*pool).open).map(|(_, builder)| *builder);
    if let Some(best) = open().find(&suits) {
        return Choice::Now(best);
    }
    let censuses = || fit.pools.iter().map(|pool| roster.census(*pool));
    let has_free_slots = |id: &&BuilderId| roster.get(**id).is_some_and(|builder| builder.free() > 0);
    let suspect = censuses().flat_map(|census| census.ready.iter().filter(has_free_slots));
    if censuses().flat_map(|census| &census.starting).chain(suspect).any(&suits) {
        return Choice::Later;
    }
    if censuses().flat_map(|census| &census.ready).any(&suits) {
        return Choice::OnAFullOne;
    }
    // Where it has failed, but not shunned: as long as such a slot is free, nothing is launched for builds like this.
    let one_is_launched = || build.shuns_loose && fit.pools.iter().any(|pool| may_grow(*pool));
    let bad = open().find(|id| !is_shunned(id));
    match bad.or_else(|| if one_is_launched() { None } else { first_open(fit, roster) }) {
        Some(bad) => Choice::Now(bad),
        None => Choice::Later,
    }
}
