//! What brokers have left in an account, found by its tags alone: for `broker sweep` on any machine.
//!
//! Owns the choice of what ends, and sees that it does. Needs no state directory and no configuration, because it is for
//! the day on which both are lost; what a living broker does about its own is the provider's.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::api::{Api, ApiError, ErrorClass, InstanceState, Observed, SecurityGroup, Volume};
use super::network::NETWORK_TAG;
use super::tags::{BROKER_TAG, EXPIRES_TAG, EXPIRY_TAG, MANAGED_BY, MANAGED_TAG, POOL_TAG};

/// A broker says every 15 minutes that it wants its instances for another hour. Something without such a tag may have
/// been made this long ago by a broker that has not come to tagging it.
const GRACE: Duration = Duration::from_secs(60 * 60);
/// How long to wait until EC2 shows that what was ended ends.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(180);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);

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
    /// The instance type, or the size of a volume.
    pub what: String,
    /// As EC2 calls it (`running`).
    pub state: &'static str,
    /// The pool it was launched for.
    pub pool: Option<String>,
    /// The broker that launched it.
    pub broker: Option<String>,
    /// When it was launched, in seconds since 1970.
    pub since: Option<u64>,
    /// Until when its broker wants it, in seconds since 1970.
    pub expires: Option<u64>,
    /// AWS itself would end it when it is too old, by a schedule that is not needed then.
    pub has_expiry: bool,
    /// Nothing has to be done about it any more.
    pub is_ending: bool,
}

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

/// Everything in this region that carries a broker's tag and is not gone: instances, volumes that are attached to nothing,
/// security groups.
pub async fn look(api: &Api) -> Result<Vec<Stray>, ApiError> {
    let tag = format!("tag:{MANAGED_TAG}");
    let ours = [MANAGED_BY.to_owned()];
    let available = ["available".to_owned()];
    let filters = [(tag.as_str(), ours.as_slice())];
    let of_volumes = [(tag.as_str(), ours.as_slice()), ("status", available.as_slice())];
    let (instances, volumes, groups) =
        tokio::try_join!(api.instances(&filters), api.volumes(&of_volumes), api.security_groups(&filters))?;
    let region = api.region();
    let alive = instances.iter().filter(|instance| !instance.state.is_gone());
    let strays = alive.map(|instance| of_instance(instance, region));
    let volumes = volumes.iter().filter(|volume| volume.is_available).map(|volume| of_volume(volume, region));
    let groups = groups.iter().filter(|group| group.tags.contains_key(NETWORK_TAG));
    let groups = groups.map(|group| of_group(group, region));
    Ok(strays.chain(volumes).chain(groups).collect())
}

fn of_instance(instance: &Observed, region: &str) -> Stray {
    Stray {
        kind: Kind::Instance,
        id: instance.id.clone(),
        what: instance.instance_type.clone(),
        state: instance.state.name(),
        since: u64::try_from(instance.launch_time).ok().filter(|since| *since > 0),
        is_ending: is_ending(instance.state),
        ..tagged(&instance.tags, region)
    }
}

fn of_volume(volume: &Volume, region: &str) -> Stray {
    Stray {
        kind: Kind::Volume,
        id: volume.id.clone(),
        what: format!("{} GiB", volume.size),
        state: "available",
        ..tagged(&volume.tags, region)
    }
}

fn of_group(group: &SecurityGroup, region: &str) -> Stray {
    Stray {
        kind: Kind::SecurityGroup,
        id: group.id.clone(),
        what: group.name.clone(),
        state: "-",
        ..tagged(&group.tags, region)
    }
}

/// What tags say.
fn tagged(tags: &BTreeMap<String, String>, region: &str) -> Stray {
    let expires = tags.get(EXPIRES_TAG).and_then(|text| humantime::parse_rfc3339_weak(text).ok());
    let seconds =
        |time: std::time::SystemTime| time.duration_since(std::time::UNIX_EPOCH).map(|it| it.as_secs());
    Stray {
        kind: Kind::Volume,
        id: String::new(),
        region: region.to_owned(),
        what: String::new(),
        state: "",
        pool: tags.get(POOL_TAG).cloned(),
        broker: tags.get(BROKER_TAG).cloned(),
        since: None,
        expires: expires.and_then(|time| seconds(time).ok()),
        has_expiry: tags.contains_key(EXPIRY_TAG),
        is_ending: false,
    }
}

/// From then on it costs nothing and cannot come back.
fn is_ending(state: InstanceState) -> bool {
    match state {
        InstanceState::ShuttingDown | InstanceState::Terminated => true,
        InstanceState::Pending
        | InstanceState::Running
        | InstanceState::Stopping
        | InstanceState::Stopped => false,
    }
}

/// Ends these, which are all of one region, until EC2 shows that they end. What is left of them, and why.
pub async fn end(api: &Api, strays: &[Stray]) -> BTreeMap<String, String> {
    let ids = |kind: Kind| -> Vec<String> {
        strays.iter().filter(|stray| stray.kind == kind).map(|stray| stray.id.clone()).collect()
    };
    let (instances, groups) = (ids(Kind::Instance), ids(Kind::SecurityGroup));
    // A group can only be deleted when nothing is left of what was in it.
    let mut left = terminate(api, &instances, !groups.is_empty()).await;
    let ended = |stray: &&Stray| stray.kind == Kind::Instance && !left.contains_key(&stray.id);
    for instance in strays.iter().filter(ended).filter(|stray| stray.has_expiry) {
        // Left over, it would end nothing, and go by itself after its time.
        if let Err(error) = api.unschedule(&instance.id).await {
            tracing::warn!(instance = instance.id, %error, "a schedule is left over");
        }
    }
    for volume in ids(Kind::Volume) {
        if let Err(error) = api.delete_volume(&volume).await {
            left.insert(volume, error.to_string());
        }
    }
    for group in groups {
        if let Err(error) = delete_group(api, &group).await {
            left.insert(group, error.to_string());
        }
    }
    left
}

/// Asks again and again, because EC2 may refuse for a while and may not know a young instance.
async fn terminate(api: &Api, ids: &[String], wait_for_end: bool) -> BTreeMap<String, String> {
    let deadline = Instant::now() + CONFIRMED_WITHIN;
    let mut left: BTreeMap<String, String> =
        ids.iter().map(|id| (id.clone(), "EC2 still shows it running".to_owned())).collect();
    loop {
        let pending: Vec<String> = left.keys().cloned().collect();
        if pending.is_empty() {
            return left;
        }
        let mut is_hopeless = true;
        for (id, answer) in api.terminate(&pending).await {
            match answer {
                Ok(()) => is_hopeless = false,
                Err(error) => {
                    is_hopeless &= error.class == ErrorClass::Identity;
                    left.insert(id, error.to_string());
                }
            }
        }
        match api.instances(&[("instance-id", &pending)]).await {
            Ok(shown) => left.retain(|id, _| {
                let shown = shown.iter().find(|instance| instance.id == *id);
                // What is not shown may be young, or gone; the deadline decides.
                !shown.is_some_and(|shown| match wait_for_end {
                    true => shown.state.is_gone(),
                    false => is_ending(shown.state),
                })
            }),
            Err(error) => tracing::debug!(%error, "cannot see whether instances end"),
        }
        if left.is_empty() || is_hopeless || Instant::now() >= deadline {
            return left;
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Interfaces of instances that have just ended stay for a moment.
async fn delete_group(api: &Api, group: &str) -> Result<(), ApiError> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match api.delete_security_group(group).await {
            Err(error) if error.class == ErrorClass::Busy && Instant::now() < deadline => {
                sleep(LOOK_EVERY).await;
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn stray(kind: Kind) -> Stray {
        let tags = [(BROKER_TAG, "b1"), (POOL_TAG, "zen3"), (EXPIRES_TAG, "2027-01-15T08:00:00Z")];
        let tags = tags.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        Stray { kind, ..tagged(&tags, "eu-north-1") }
    }

    fn chosen(stray: &Stray, which: &Which) -> bool {
        is_chosen(stray, which, NOW)
    }

    #[test]
    fn what_was_not_renewed_has_expired() {
        let expiring = |expires, since| Stray { expires, since, ..stray(Kind::Instance) };
        assert_eq!(stray(Kind::Instance).expires, Some(NOW));
        for (expires, since, ends) in [
            (Some(NOW), Some(1), true),
            (Some(NOW + 1), Some(1), false),
            // Not tagged yet, or a tag that is no time.
            (None, Some(NOW - 3600), true),
            (None, Some(NOW - 3599), false),
            (None, None, true),
        ] {
            assert_eq!(chosen(&expiring(expires, since), &Which::Expired), ends, "{expires:?} {since:?}");
        }
        assert!(chosen(&stray(Kind::Volume), &Which::Expired));
        assert!(!chosen(&stray(Kind::SecurityGroup), &Which::Expired));
    }

    #[test]
    fn a_broker_and_everything_are_chosen_whatever_the_time_is() {
        let fresh = Stray { expires: Some(NOW + 3600), ..stray(Kind::Instance) };
        assert!(chosen(&fresh, &Which::Broker("b1".into())));
        assert!(!chosen(&fresh, &Which::Broker("b2".into())));
        assert!(!chosen(&stray(Kind::SecurityGroup), &Which::Broker("b1".into())));
        for kind in [Kind::Instance, Kind::Volume, Kind::SecurityGroup] {
            assert!(chosen(&stray(kind), &Which::Everything));
        }
        let ending = Stray { is_ending: true, ..fresh };
        assert!(!chosen(&ending, &Which::Everything));
    }
}
