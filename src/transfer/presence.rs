//! What one builder is known to hold, and which paths are on their way to it: one upload of a path at a time, however
//! many builds want it.
//!
//! Owns the bookkeeping only. A path counts as present when it was found valid (or was uploaded) *after* a temp root
//! for it was taken on a connection that is still open; when that connection is lost, [`Presence::forget`] is called
//! and everything is asked anew. Who talks to the builder is [`super::upload()`].
//!
//! Claims cannot deadlock: one takes all its free paths at one moment and waits only for claims that are older. A claim is
//! made for a build but does not end with it: whoever carries it out goes on as long as anybody waits ([`Claim::abandoned`]).
//! What arrives first of a claim can be used at once ([`Claim::succeed_in_part`]): a small path does not wait for a huge one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::model::StorePath;

/// The paths of one builder. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Presence {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    present: BTreeSet<StorePath>,
    in_flight: BTreeMap<StorePath, Arc<Flight>>,
    /// Counts the calls of `forget`: a claim from before one proves nothing after it.
    epoch: u64,
}

/// How a claim ended, once it has: whether well. Its receivers are those who want it to succeed; they are told of parts, too.
type Flight = watch::Sender<Option<bool>>;

/// The right, and the duty, to make some paths present. Dropped unfinished, the paths are free for the next one.
#[derive(Debug)]
pub struct Claim {
    presence: Presence,
    paths: BTreeSet<StorePath>,
    epoch: u64,
    flight: Arc<Flight>,
    has_succeeded: bool,
}

/// Paths that are on their way in claims that are being carried out, and the wish that they be.
#[derive(Debug)]
pub struct InFlight {
    presence: Presence,
    /// For each claim, what is waited for of it.
    flights: Vec<(watch::Receiver<Option<bool>>, BTreeSet<StorePath>)>,
}

impl Presence {
    /// Divides these paths into those known to be present (left out of the answer), those claimed for the caller, and
    /// those that somebody else is bringing.
    pub fn claim(&self, paths: &BTreeSet<StorePath>) -> (Claim, InFlight) {
        let flight = Arc::new(watch::Sender::new(None));
        let mut state = self.state.lock();
        let mut mine = BTreeSet::new();
        let mut others: Vec<(Arc<Flight>, BTreeSet<StorePath>)> = Vec::new();
        for path in paths {
            if state.present.contains(path) {
                continue;
            }
            let Some(other) = state.in_flight.get(path) else {
                mine.insert(path.clone());
                continue;
            };
            // The paths of one claim lie together more often than not.
            match others.iter_mut().rev().find(|(known, _)| Arc::ptr_eq(known, other)) {
                Some((_, theirs)) => drop(theirs.insert(path.clone())),
                None => others.push((Arc::clone(other), BTreeSet::from([path.clone()]))),
            }
        }
        for path in &mine {
            state.in_flight.insert(path.clone(), Arc::clone(&flight));
        }
        let epoch = state.epoch;
        drop(state);
        let flights = others.into_iter().map(|(flight, theirs)| (flight.subscribe(), theirs)).collect();
        let claim = Claim { presence: self.clone(), paths: mine, epoch, flight, has_succeeded: false };
        (claim, InFlight { presence: self.clone(), flights })
    }

    /// Counts the losses: what is learned in one epoch is not known in the next.
    pub fn epoch(&self) -> u64 {
        self.state.lock().epoch
    }

    /// These paths are present, rooted by a connection that was open in this epoch.
    pub fn add(&self, paths: &BTreeSet<StorePath>, epoch: u64) {
        let mut state = self.state.lock();
        if state.epoch == epoch {
            state.present.extend(paths.iter().cloned());
        }
    }

    /// Forgets what is present: the connection that held the temp roots is gone.
    pub fn forget(&self) {
        let mut state = self.state.lock();
        state.epoch += 1;
        state.present.clear();
    }

    /// Those of these paths that are present.
    pub fn of(&self, paths: &BTreeSet<StorePath>) -> BTreeSet<StorePath> {
        let state = self.state.lock();
        paths.intersection(&state.present).cloned().collect()
    }

    fn has(&self, paths: &BTreeSet<StorePath>) -> bool {
        let state = self.state.lock();
        paths.iter().all(|path| state.present.contains(path))
    }
}

impl Claim {
    /// The claimed paths.
    pub fn paths(&self) -> &BTreeSet<StorePath> {
        &self.paths
    }

    /// The wish of the one who made the claim.
    pub fn wish(&self) -> InFlight {
        let flights = vec![(self.flight.subscribe(), self.paths.clone())];
        InFlight { presence: self.presence.clone(), flights }
    }

    /// Returns when nobody wishes for it any more. Whoever comes later finds the claim ended, and makes another.
    pub fn abandoned(&self) -> impl Future<Output = ()> + Send + 'static {
        let flight = Arc::clone(&self.flight);
        async move { flight.closed().await }
    }

    /// These of the claimed paths are present already; the others are still on their way.
    pub fn succeed_in_part(&mut self, paths: &BTreeSet<StorePath>) {
        self.presence.add(paths, self.epoch);
        let mut state = self.presence.state.lock();
        for path in paths {
            if self.paths.remove(path) {
                state.in_flight.remove(path);
            }
        }
        drop(state);
        // The value is the same, but whoever waits looks again.
        self.flight.send_modify(|_| ());
    }

    /// All claimed paths are present now, rooted by a connection that was open since before the claim was made.
    pub fn succeed(mut self) {
        self.has_succeeded = true;
        self.presence.add(&self.paths, self.epoch);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.presence.state.lock();
        for path in &self.paths {
            state.in_flight.remove(path);
        }
        drop(state);
        self.flight.send_replace(Some(self.has_succeeded));
    }
}

impl InFlight {
    /// Whether nothing is on its way.
    pub fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    /// How many paths are.
    pub fn count(&self) -> usize {
        self.flights.iter().map(|(_, paths)| paths.len()).sum()
    }

    /// Returns when every one of those paths has arrived or its claim has ended, and says whether all ended well.
    pub async fn arrived(self) -> bool {
        let mut all_well = true;
        for (mut flight, paths) in self.flights {
            all_well &= loop {
                // Seen before the look, so that nothing that arrives in between is missed.
                let end = *flight.borrow_and_update();
                match end {
                    Some(is_well) => break is_well,
                    None if self.presence.has(&paths) => break true,
                    None => {}
                }
                if flight.changed().await.is_err() {
                    // A claim that is gone: its last word is its end, and without one it has ended badly.
                    break *flight.borrow() == Some(true);
                }
            };
        }
        all_well
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(names: &[&str]) -> BTreeSet<StorePath> {
        names
            .iter()
            .map(|name| {
                StorePath::from_base_name(&format!("0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-{name}")).unwrap()
            })
            .collect()
    }

    #[tokio::test]
    async fn a_path_is_claimed_once_and_waiters_wake_when_the_claim_ends() {
        let presence = Presence::default();
        let (first, in_flight) = presence.claim(&paths(&["a", "b"]));
        assert!(in_flight.is_empty());
        let (second, in_flight) = presence.claim(&paths(&["b", "c"]));
        assert_eq!(second.paths(), &paths(&["c"]));
        assert!(!in_flight.is_empty());
        let waiter = in_flight.arrived();
        tokio::pin!(waiter);
        assert!(futures_util::poll!(waiter.as_mut()).is_pending());
        first.succeed();
        assert!(waiter.await);
        let (third, in_flight) = presence.claim(&paths(&["a", "b"]));
        assert!(third.paths().is_empty() && in_flight.is_empty());
    }

    #[tokio::test]
    async fn a_claim_that_failed_frees_its_paths() {
        let presence = Presence::default();
        let (first, _) = presence.claim(&paths(&["a"]));
        let (_, waiting) = presence.claim(&paths(&["a"]));
        drop(first);
        assert!(!waiting.arrived().await, "who waited for it must not take its paths for present");
        let (second, in_flight) = presence.claim(&paths(&["a"]));
        assert_eq!(second.paths(), &paths(&["a"]));
        assert!(in_flight.is_empty());
    }

    #[test]
    fn what_was_proven_before_a_loss_proves_nothing_after_it() {
        let presence = Presence::default();
        let (claim, _) = presence.claim(&paths(&["a"]));
        presence.forget();
        claim.succeed();
        let (again, _) = presence.claim(&paths(&["a"]));
        assert_eq!(again.paths(), &paths(&["a"]));
    }

    #[test]
    fn what_was_built_is_present_until_all_is_forgotten() {
        let presence = Presence::default();
        let epoch = presence.epoch();
        presence.add(&paths(&["a"]), epoch);
        let (claim, _) = presence.claim(&paths(&["a", "b"]));
        assert_eq!(claim.paths(), &paths(&["b"]));
        drop(claim);
        presence.forget();
        presence.add(&paths(&["a", "b"]), epoch);
        let (claim, _) = presence.claim(&paths(&["a", "b"]));
        assert_eq!(claim.paths(), &paths(&["a", "b"]), "learned before the loss");
    }

    #[tokio::test]
    async fn what_arrives_first_of_a_claim_is_not_waited_for_any_longer() {
        let presence = Presence::default();
        let (mut huge, _) = presence.claim(&paths(&["huge", "small", "other"]));
        let (own, in_flight) = presence.claim(&paths(&["small", "own"]));
        assert_eq!(own.paths(), &paths(&["own"]));
        let both = presence.claim(&paths(&["huge", "small"])).1.arrived();
        let small = in_flight.arrived();
        tokio::pin!(both, small);
        assert!(futures_util::poll!(small.as_mut()).is_pending());
        huge.succeed_in_part(&paths(&["small", "other"]));
        assert_eq!(huge.paths(), &paths(&["huge"]));
        assert!(small.await, "it waits for what it does not want");
        assert!(futures_util::poll!(both.as_mut()).is_pending(), "the huge one has not arrived");
        let (later, in_flight) = presence.claim(&paths(&["small", "other"]));
        assert!(later.paths().is_empty() && in_flight.is_empty());
        // What has arrived stays when the rest fails.
        drop(huge);
        assert!(!both.await);
        let (again, _) = presence.claim(&paths(&["huge", "small"]));
        assert_eq!(again.paths(), &paths(&["huge"]));
    }

    #[tokio::test]
    async fn a_claim_is_abandoned_only_when_the_last_who_waits_for_it_has_left() {
        let presence = Presence::default();
        let (claim, _) = presence.claim(&paths(&["a"]));
        let wish = claim.wish();
        let (_, other) = presence.claim(&paths(&["a", "b"]));
        let abandoned = claim.abandoned();
        tokio::pin!(abandoned);
        drop(wish);
        assert!(futures_util::poll!(abandoned.as_mut()).is_pending(), "another build waits for it");
        drop(other);
        abandoned.await;
    }
}
