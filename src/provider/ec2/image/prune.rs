//! Which images of ours may go, and what goes with them.
//!
//! Owns that choice, which is pure ([`choose`]), the look before it and the deeds after it. What uses an image besides
//! instances (a configuration) is told by the caller.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::sleep;

use super::{BYTES_TAG, is_ours};
use crate::model::Usd;
use crate::provider::ec2::api::{Api, ApiError, ErrorClass, OwnImage, Snapshot};

/// An upload that was not finished a day ago never will be.
const HALF_MADE: Duration = Duration::from_secs(24 * 60 * 60);
/// An image that was just deregistered still holds its snapshots for a moment.
const DELETED_WITHIN: u32 = 10;
const WAIT: Duration = Duration::from_secs(3);
/// USD for a GiB and month of snapshots in most regions, in millionths.
const GIB_MONTH: u64 = 50_000;

/// What there is in a region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Images of ours.
    pub images: Vec<OwnImage>,
    /// Snapshots of ours.
    pub snapshots: Vec<Snapshot>,
    /// Every snapshot that any image of the account is made of.
    pub imaged: BTreeSet<String>,
    /// Images in use, and what uses them.
    pub used: BTreeMap<String, String>,
}

/// Why an image stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is one of the newest of its architecture.
    Newest,
    /// Something uses it.
    Used(String),
    /// It is not finished.
    Unfinished,
}

/// What is to become of it all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruning {
    /// To deregister, with those of its snapshots that are ours.
    pub end: Vec<(OwnImage, Vec<String>)>,
    /// To keep, and why.
    pub keep: Vec<(OwnImage, Kept)>,
    /// To delete: they are of no image.
    pub half_made: Vec<Snapshot>,
}

/// Keeps the newest images of each architecture, and whatever is used; `now` is in seconds since 1970.
pub fn choose(inventory: &Inventory, keep: usize, now: u64) -> Pruning {
    let mut images: Vec<&OwnImage> = inventory.images.iter().collect();
    images.sort_by(|a, b| (&b.creation_date, &b.id).cmp(&(&a.creation_date, &a.id)));
    let ours: BTreeSet<&str> = inventory.snapshots.iter().map(|snapshot| snapshot.id.as_str()).collect();
    let mut ranks: BTreeMap<&str, usize> = BTreeMap::new();
    let mut pruning = Pruning::default();
    for image in images {
        let why = match (inventory.used.get(&image.id), image.state.as_str()) {
            (Some(user), _) => {
                *ranks.entry(&image.arch).or_default() += 1;
                Some(Kept::Used(user.clone()))
            }
            (None, "available") => {
                let rank = ranks.entry(&image.arch).or_default();
                *rank += 1;
                (*rank <= keep).then_some(Kept::Newest)
            }
            (None, "pending") => Some(Kept::Unfinished),
            // Failed, or disabled by somebody who does not want it.
            (None, _) => None,
        };
        match why {
            Some(why) => pruning.keep.push((image.clone(), why)),
            None => {
                let its = image.snapshots.iter().filter(|id| ours.contains(id.as_str())).cloned();
                pruning.end.push((image.clone(), its.collect()));
            }
        }
    }
    let is_old = |snapshot: &Snapshot| {
        u64::try_from(snapshot.started).is_ok_and(|started| started + HALF_MADE.as_secs() <= now)
    };
    let half_made =
        inventory.snapshots.iter().filter(|one| !inventory.imaged.contains(&one.id) && is_old(one));
    pruning.half_made = half_made.cloned().collect();
    pruning
}

/// What an image costs a month: what was written to its snapshots, or at most their whole size.
pub fn monthly(image: &OwnImage, snapshots: &[Snapshot]) -> Usd {
    let tagged = || image.tags.get(BYTES_TAG).and_then(|text| text.parse::<u64>().ok());
    let its = snapshots.iter().filter(|snapshot| image.snapshots.contains(&snapshot.id));
    let shown: Option<u64> =
        its.map(|snapshot| snapshot.bytes).sum::<Option<u64>>().filter(|bytes| *bytes > 0);
    let bytes = shown.or_else(tagged).unwrap_or_else(|| u64::from(image.size) << 30);
    cost_of(bytes)
}

/// What this much of a snapshot costs a month.
pub fn cost_of(bytes: u64) -> Usd {
    let micros = u128::from(bytes) * u128::from(GIB_MONTH) / (1 << 30);
    Usd::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
}

/// What there is of ours in a region, and which instances use it.
pub async fn look(api: &Api) -> Result<Inventory, ApiError> {
    let (images, snapshots) = tokio::try_join!(api.own_images(&[]), api.snapshots(&[]))?;
    let imaged = images.iter().flat_map(|image| image.snapshots.iter().cloned()).collect();
    let images: Vec<OwnImage> = images.into_iter().filter(|image| is_ours(&image.tags)).collect();
    let snapshots = snapshots.into_iter().filter(|snapshot| is_ours(&snapshot.tags)).collect();
    let ids: Vec<String> = images.iter().map(|image| image.id.clone()).collect();
    let mut used = BTreeMap::new();
    // As many as a filter takes.
    for ids in ids.chunks(200) {
        let instances = api.instances(&[("image-id", ids)]).await?;
        for instance in instances.into_iter().filter(|instance| !instance.state.is_gone()) {
            used.entry(instance.image).or_insert_with(|| format!("instance `{}`", instance.id));
        }
    }
    Ok(Inventory { images, snapshots, imaged, used })
}

/// Ends an image with these snapshots, or only the snapshots. What is done is not undone by what cannot be.
pub async fn end(api: &Api, image: Option<&str>, snapshots: &[String]) -> Result<(), ApiError> {
    if let Some(image) = image {
        api.deregister_image(image).await?;
    }
    let mut refused = Ok(());
    for snapshot in snapshots {
        refused = refused.and(delete(api, snapshot).await);
    }
    refused
}

async fn delete(api: &Api, snapshot: &str) -> Result<(), ApiError> {
    let mut attempt = 1;
    loop {
        match api.delete_snapshot(snapshot).await {
            Err(error) if error.class == ErrorClass::Busy && attempt < DELETED_WITHIN => {
                attempt += 1;
                sleep(WAIT).await;
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;
    const DAY: i64 = 86_400;

    fn image(number: u32, arch: &str) -> OwnImage {
        OwnImage {
            id: format!("ami-{number}"),
            name: format!("nix-broker/{number}"),
            arch: arch.into(),
            state: "available".into(),
            state_reason: None,
            creation_date: format!("2026-11-{number:02}T00:00:00.000Z"),
            snapshots: vec![format!("snap-{number}")],
            size: 8,
            owner: "123456789012".into(),
            tags: BTreeMap::new(),
        }
    }

    fn snapshot(id: &str, age: i64) -> Snapshot {
        let started = i64::try_from(NOW).unwrap() - age;
        let tags = BTreeMap::new();
        Snapshot { id: id.into(), state: "completed".into(), size: 8, bytes: None, started, tags }
    }

    fn inventory(images: Vec<OwnImage>) -> Inventory {
        let imaged: BTreeSet<String> = images.iter().flat_map(|image| image.snapshots.clone()).collect();
        let snapshots = imaged.iter().map(|id| snapshot(id, 30 * DAY)).collect();
        Inventory { images, snapshots, imaged, used: BTreeMap::new() }
    }

    fn ended(inventory: &Inventory, keep: usize) -> Vec<String> {
        choose(inventory, keep, NOW).end.into_iter().map(|(image, _)| image.id).collect()
    }

    #[test]
    fn the_newest_of_each_architecture_stay() {
        let images = vec![image(1, "x86_64"), image(2, "arm64"), image(3, "x86_64"), image(4, "x86_64")];
        let inventory = inventory(images);
        assert_eq!(ended(&inventory, 1), ["ami-3", "ami-1"]);
        assert_eq!(ended(&inventory, 2), ["ami-1"]);
        assert_eq!(ended(&inventory, 3), [""; 0]);
        assert_eq!(ended(&inventory, 0).len(), 4);
        let pruning = choose(&inventory, 2, NOW);
        assert_eq!(pruning.end[0].1, ["snap-1"]);
        assert!(pruning.keep.iter().all(|(_, why)| *why == Kept::Newest));
        assert_eq!(pruning.half_made, []);
    }

    #[test]
    fn what_is_used_or_not_finished_is_never_ended() {
        let mut inventory = inventory(vec![image(1, "x86_64"), image(2, "x86_64"), image(3, "x86_64")]);
        inventory.used.insert("ami-1".into(), "instance `i-1`".into());
        inventory.images[1].state = "pending".into();
        assert_eq!(ended(&inventory, 0), ["ami-3"]);
        let kept = choose(&inventory, 0, NOW).keep;
        assert_eq!(kept[1].1, Kept::Used("instance `i-1`".into()));
        inventory.images[1].state = "failed".into();
        assert_eq!(ended(&inventory, 9), ["ami-2"], "it takes no place from one that can be used");
    }

    #[test]
    fn snapshots_of_no_image_go_when_they_are_a_day_old() {
        let mut inventory = inventory(vec![image(1, "x86_64")]);
        inventory.snapshots.push(snapshot("snap-old", DAY));
        inventory.snapshots.push(snapshot("snap-young", DAY - 1));
        // Somebody made an image of it that is none of ours.
        inventory.snapshots.push(snapshot("snap-theirs", 9 * DAY));
        inventory.imaged.insert("snap-theirs".into());
        let half_made = choose(&inventory, 1, NOW).half_made;
        assert_eq!(half_made.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["snap-old"]);
    }

    #[test]
    fn a_snapshot_that_is_not_ours_is_not_deleted_with_its_image() {
        let mut inventory = inventory(vec![image(1, "x86_64")]);
        inventory.images[0].snapshots.push("snap-theirs".into());
        assert_eq!(choose(&inventory, 0, NOW).end[0].1, ["snap-1"]);
    }

    #[test]
    fn an_image_costs_what_was_written_to_it() {
        let mut image = image(1, "x86_64");
        let mut snapshots = [snapshot("snap-1", DAY), snapshot("snap-2", DAY)];
        assert_eq!(monthly(&image, &snapshots), Usd::from_micros(400_000), "the whole of it at most");
        image.tags.insert(BYTES_TAG.into(), (2_u64 << 30).to_string());
        assert_eq!(monthly(&image, &snapshots), Usd::from_micros(100_000));
        snapshots[0].bytes = Some(3 << 30);
        assert_eq!(monthly(&image, &snapshots), Usd::from_micros(150_000), "EC2 knows better");
    }
}
