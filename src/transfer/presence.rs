//! What one builder is known to hold, and which paths are on their way to it: one upload of a path at a time, however
//! many builds want it.
//!
//! Owns the bookkeeping only. A path counts as present when it was found valid (or was uploaded) *after* a temp root
//! for it was taken on a connection that is still open; when that connection is lost, [`Presence::forget`] is called
//! and everything is asked anew. Who talks to the builder is [`super::upload`].
//!
//! Claims cannot deadlock: one takes all its free paths at one moment and waits only for claims that are older.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::model::StorePath;

/// The paths of one builder.
#[derive(Debug, Default)]
pub struct Presence {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    present: BTreeSet<StorePath>,
    in_flight: BTreeMap<StorePath, watch::Receiver<()>>,
    /// Counts the calls of `forget`: a claim from before one proves nothing after it.
    epoch: u64,
}

/// The right, and the duty, to make some paths present. Dropped unfinished, the paths are free for the next one.
#[derive(Debug)]
pub struct Claim<'a> {
    presence: &'a Presence,
    paths: BTreeSet<StorePath>,
    epoch: u64,
    /// Dropped with the claim, which wakes all who wait for it.
    _done: watch::Sender<()>,
}

/// Paths that an older claim is making present.
#[derive(Debug)]
pub struct InFlight(Vec<watch::Receiver<()>>);

impl Presence {
    /// Divides these paths into those known to be present (left out of the answer), those claimed for the caller, and
    /// those that somebody else is bringing.
    pub fn claim<'a>(&'a self, paths: &BTreeSet<StorePath>) -> (Claim<'a>, InFlight) {
        let (done, watcher) = watch::channel(());
        let mut state = self.lock();
        let mut mine = BTreeSet::new();
        let mut others: Vec<watch::Receiver<()>> = Vec::new();
        for path in paths {
            if state.present.contains(path) {
                continue;
            }
            match state.in_flight.get(path) {
                Some(other) if others.iter().any(|known| known.same_channel(other)) => {}
                Some(other) => others.push(other.clone()),
                None => {
                    state.in_flight.insert(path.clone(), watcher.clone());
                    mine.insert(path.clone());
                }
            }
        }
        let epoch = state.epoch;
        drop(state);
        (Claim { presence: self, paths: mine, epoch, _done: done }, InFlight(others))
    }

    /// Forgets what is present: the connection that held the temp roots is gone.
    pub fn forget(&self) {
        let mut state = self.lock();
        state.epoch += 1;
        state.present.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock, so a poisoned one is still consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim<'_> {
    /// The claimed paths.
    pub fn paths(&self) -> &BTreeSet<StorePath> {
        &self.paths
    }

    /// All claimed paths are present now, rooted by a connection that was open since before the claim was made.
    pub fn succeed(self) {
        let mut state = self.presence.lock();
        if state.epoch == self.epoch {
            state.present.extend(self.paths.iter().cloned());
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.presence.lock();
        for path in &self.paths {
            state.in_flight.remove(path);
        }
    }
}

impl InFlight {
    /// Whether nothing is on its way.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns when every one of those claims has ended, well or badly.
    pub async fn ended(self) {
        for mut watcher in self.0 {
            // Nothing is ever sent: the sender's end is the signal.
            while watcher.changed().await.is_ok() {}
        }
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
        let waiter = in_flight.ended();
        tokio::pin!(waiter);
        assert!(futures_util::poll!(waiter.as_mut()).is_pending());
        first.succeed();
        waiter.await;
        let (third, in_flight) = presence.claim(&paths(&["a", "b"]));
        assert!(third.paths().is_empty() && in_flight.is_empty());
    }

    #[tokio::test]
    async fn a_claim_that_failed_frees_its_paths() {
        let presence = Presence::default();
        let (first, _) = presence.claim(&paths(&["a"]));
        drop(first);
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
}
