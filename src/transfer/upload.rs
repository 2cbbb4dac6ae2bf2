//! Missing inputs to a builder, in the order their references demand.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::stream;

use super::beat::Beat;
use super::direct::{Elsewhere, Parts};
use super::local_store::{LocalStore, LocalStoreError};
use super::nar_source::NarSource;
use super::stripes::BLOCK;
use crate::model::{Share, StorePath};
use crate::protocol::worker::{Connection, PathInfo, ProtocolError, Repair, Signatures};

/// Paths to be sent, in the order they are.
#[derive(Clone, Debug)]
pub struct Cargo {
    infos: Vec<PathInfo>,
}

impl Cargo {
    /// These paths of the local store; what they refer to must be among them or on the builder already.
    pub async fn of(local: &LocalStore, paths: &BTreeSet<StorePath>) -> Result<Self, LocalStoreError> {
        Ok(Self { infos: references_first(local.path_infos(paths).await?) })
    }

    /// Divides it into what is no larger than that and can go first, and the rest: what is larger, and what refers to it.
    pub fn split(self, limit: u64) -> (Self, Self) {
        let mut later = BTreeSet::new();
        let (mut first, mut rest) = (Vec::new(), Vec::new());
        // In this order, what a path refers to has been put somewhere when its turn comes.
        for info in self.infos {
            if info.nar_size > limit || info.references.iter().any(|other| later.contains(other)) {
                later.insert(info.path.clone());
                rest.push(info);
            } else {
                first.push(info);
            }
        }
        (Self { infos: first }, Self { infos: rest })
    }

    /// Divides it around what another builder may bring: paths of these that refer to nothing that comes after them.
    pub fn around(self, wanted: &BTreeSet<StorePath>) -> Parts {
        let (mut waits, mut refers_to_waiting) = (BTreeSet::new(), BTreeSet::new());
        let (mut before, mut direct, mut after) = (Vec::new(), Vec::new(), Vec::new());
        for info in self.infos {
            let refers_to =
                |others: &BTreeSet<StorePath>| info.references.iter().any(|other| others.contains(other));
            let is_late = refers_to(&refers_to_waiting);
            if !is_late && wanted.contains(&info.path) {
                waits.insert(info.path.clone());
                direct.push(info);
            } else if is_late || refers_to(&waits) {
                refers_to_waiting.insert(info.path.clone());
                after.push(info);
            } else {
                before.push(info);
            }
        }
        let [before, direct, after] = [before, direct, after].map(|infos| Self { infos });
        Parts { before, direct, after }
    }

    /// All but these paths.
    pub fn without(mut self, paths: &BTreeSet<StorePath>) -> Self {
        self.infos.retain(|info| !paths.contains(&info.path));
        self
    }

    /// Those of these paths, and then all of the others.
    pub fn only_then(self, paths: &BTreeSet<StorePath>, others: Self) -> Self {
        let infos = self.infos.into_iter().filter(|info| paths.contains(&info.path));
        Self { infos: infos.chain(others.infos).collect() }
    }

    /// Each path, with the bytes of its archive.
    pub fn sizes(&self) -> impl Iterator<Item = (&StorePath, u64)> {
        self.infos.iter().map(|info| (&info.path, info.nar_size))
    }

    /// Whether it is nothing.
    pub fn is_empty(&self) -> bool {
        self.infos.is_empty()
    }

    /// Which paths these are.
    pub fn paths(&self) -> BTreeSet<StorePath> {
        self.infos.iter().map(|info| info.path.clone()).collect()
    }

    /// How many, and how many bytes.
    pub fn share(&self) -> Share {
        Share { paths: self.infos.len() as u64, bytes: self.size() }
    }

    /// Bytes of all of it.
    pub fn size(&self) -> u64 {
        self.infos.iter().map(|info| info.nar_size).fold(0, u64::saturating_add)
    }
}

/// Sends paths.
pub async fn upload(connection: &mut Connection, cargo: Cargo, beat: &Beat) -> Result<(), ProtocolError> {
    let count = cargo.infos.len() as u64;
    let entries = cargo.infos.into_iter().map(|info| {
        let archive = beat.of(NarSource::open(info.path.to_path_buf()));
        // Built on this machine is not built on that one: "ultimate" is a store's trust in itself.
        Ok((PathInfo { ultimate: false, ..info }, archive))
    });
    // Trusted builders of ours take unsigned paths: this machine's store is the authority here.
    let entries = stream::iter(entries);
    connection.add_multiple_to_store(count, entries, Repair::No, Signatures::DontCheck, &mut ()).await
}

/// Tells of paths whose archives another builder brings.
pub async fn announce(
    connection: &mut Connection,
    cargo: Cargo,
    elsewhere: &Elsewhere,
) -> Result<(), ProtocolError> {
    let infos = cargo.infos.into_iter().map(|info| PathInfo { ultimate: false, ..info }).collect::<Vec<_>>();
    let mut due = |bytes| elsewhere.take(bytes);
    connection
        .add_multiple_from_elsewhere(&infos, BLOCK as u64, &mut due, Signatures::DontCheck, &mut ())
        .await
}

/// Sorts so that every path comes after those it refers to.
fn references_first(infos: Vec<PathInfo>) -> Vec<PathInfo> {
    let mut by_path: BTreeMap<StorePath, PathInfo> =
        infos.into_iter().map(|info| (info.path.clone(), info)).collect();
    let order: Vec<StorePath> = by_path.keys().cloned().collect();
    let mut sorted = Vec::with_capacity(order.len());
    // An explicit stack: closures are deep, and the depth is somebody else's choice.
    let mut stack: Vec<Step> = order.into_iter().rev().map(Step::Enter).collect();
    let mut entered = BTreeSet::new();
    while let Some(step) = stack.pop() {
        match step {
            Step::Enter(path) => {
                let Some(info) = by_path.get(&path) else { continue };
                if entered.insert(path.clone()) {
                    stack.push(Step::Leave(path.clone()));
                    stack.extend(
                        info.references.iter().filter(|other| **other != path).cloned().map(Step::Enter),
                    );
                }
            }
            Step::Leave(path) => sorted.extend(by_path.remove(&path)),
        }
    }
    sorted
}

enum Step {
    Enter(StorePath),
    Leave(StorePath),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::hash::Sha256Hash;

    fn path(name: &str) -> StorePath {
        StorePath::from_base_name(&format!("0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-{name}")).unwrap()
    }

    fn info(name: &str, references: &[&str]) -> PathInfo {
        PathInfo {
            path: path(name),
            deriver: None,
            nar_hash: Sha256Hash::of(b""),
            references: references.iter().map(|name| path(name)).collect(),
            registration_time: 0,
            nar_size: 0,
            ultimate: false,
            signatures: BTreeSet::new(),
            ca: None,
        }
    }

    #[test]
    fn every_path_comes_after_its_references() {
        let infos = vec![
            info("a", &["c", "b", "a"]),
            info("b", &["d", "not-among-them"]),
            info("c", &["b"]),
            info("d", &[]),
        ];
        let sorted: Vec<_> =
            references_first(infos).into_iter().map(|info| info.path.name().to_owned()).collect();
        assert_eq!(sorted, ["d", "b", "c", "a"]);
    }

    #[test]
    fn what_is_small_goes_before_what_is_large_unless_it_refers_to_it() {
        let of_size = |name, references, nar_size| PathInfo { nar_size, ..info(name, references) };
        let infos = vec![
            of_size("huge", &["small"], 1000),
            of_size("small", &[], 100),
            of_size("refers", &["huge", "small"], 1),
            of_size("refers-to-that", &["refers"], 1),
            of_size("another", &["small", "not-among-them"], 100),
        ];
        let (first, rest) = Cargo { infos: references_first(infos) }.split(100);
        let paths = |names: &[&str]| names.iter().map(|name| path(name)).collect::<BTreeSet<_>>();
        assert_eq!(first.paths(), paths(&["another", "small"]));
        assert_eq!(rest.paths(), paths(&["huge", "refers", "refers-to-that"]));
        assert_eq!((first.size(), rest.size()), (200, 1002));
    }

    #[test]
    fn what_another_builder_brings_comes_after_what_it_refers_to_and_before_what_refers_to_it() {
        let infos = vec![
            info("base", &[]),
            info("wanted", &["base"]),
            info("wanted-too", &["wanted"]),
            info("refers", &["wanted-too"]),
            info("wanted-too-late", &["refers"]),
            info("refers-to-that", &["wanted-too-late", "base"]),
            info("beside", &["base"]),
        ];
        let paths = |names: &[&str]| names.iter().map(|name| path(name)).collect::<BTreeSet<_>>();
        let cargo = Cargo { infos: references_first(infos) };
        let Parts { before, direct, after } =
            cargo.around(&paths(&["wanted", "wanted-too", "wanted-too-late"]));
        assert_eq!(before.paths(), paths(&["base", "beside"]));
        assert_eq!(direct.paths(), paths(&["wanted", "wanted-too"]));
        assert_eq!(after.paths(), paths(&["refers", "wanted-too-late", "refers-to-that"]));
        // What did not come goes before the rest, in the same order.
        let rest = direct.only_then(&paths(&["wanted-too"]), after);
        let names: Vec<_> = rest.sizes().map(|(path, _)| path.name().to_owned()).collect();
        assert_eq!(names, ["wanted-too", "refers", "wanted-too-late", "refers-to-that"]);
    }

    #[test]
    fn a_chain_of_a_hundred_thousand_does_not_overflow() {
        let names: Vec<String> = (0..100_000).map(|i| format!("p{i}")).collect();
        let infos = names
            .iter()
            .enumerate()
            .map(|(i, name)| match names.get(i + 1) {
                Some(next) => info(name, &[next]),
                None => info(name, &[]),
            })
            .collect();
        assert_eq!(references_first(infos).len(), 100_000);
    }
}
