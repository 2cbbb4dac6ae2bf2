//! What brokers have left in an account, found by its tags alone: for `broker sweep` on any machine.
//!
//! Owns the choice of what ends, and sees that it does. Needs no state directory and no configuration, because it is for
//! the day on which both are lost; what a living broker does about its own is in [`super::estate`].

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What `broker sweep` is to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// What no broker has renewed for an hour.
    Expired,
    /// What this broker has.
    Broker(String),
    /// What any broker has, and the security groups that `broker init` made.
    Everything,
}

/// What kind of thing was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Costs money until it is terminated, stopped or not.
    Instance,
    /// Costs money until it is deleted.
    Volume,
    /// Costs nothing.
    SecurityGroup,
}

/// One thing with the tag of a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stray {
    /// What it is.
    pub kind: Kind,
    /// `i-...`, `vol-...`, `sg-...`
    pub id: String,
    /// Where.
    pub region: String,
    /// As EC2 calls it (`running`), or the instance type's or volume's.
    pub state: String,
    /// The instance type, or the size of a volume.
    pub what: String,
    /// The pool it was launched for.
    pub pool: Option<String>,
    /// The broker that launched it.
    pub broker: Option<String>,
    /// Since when it exists, in seconds since 1970.
    pub since: Option<u64>,
    /// Until when its broker wants it, in seconds since 1970.
    pub expires: Option<u64>,
    /// Nothing has to be done about it any more.
    pub is_ending: bool,
}

/// A broker says every 15 minutes that it wants its instances for another hour. Something without such a tag may have
/// been made this long ago by a broker that has not come to tagging it.
const GRACE: Duration = Duration::from_secs(60 * 60);

/// Whether this is to end.
pub fn is_chosen(stray: &Stray, which: &Which, now: u64) -> bool {
    if stray.is_ending {
        return false;
    }
    match (which, stray.kind) {
        (Which::Everything, _) => true,
        (Which::Broker(_) | Which::Expired, Kind::SecurityGroup) => false,
        (Which::Broker(broker), Kind::Instance | Kind::Volume) => stray.broker.as_ref() == Some(broker),
        (Which::Expired, Kind::Instance | Kind::Volume) => match (stray.expires, stray.since) {
            (Some(expires), _) => expires <= now,
            (None, Some(since)) => since.saturating_add(GRACE.as_secs()) <= now,
            (None, None) => true,
        },
    }
}
