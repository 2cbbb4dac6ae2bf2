//! One accepted build, as shared by the client that waits for it and the attempts that work on it.
//!
//! The scheduler decides about it by its id alone; this holds what the data path needs: inputs, log, products, and the
//! way to tell the client.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::log_spool::LogSpool;
use crate::model::{BuildId, BuildInputs, BuildRequest, Failure, Outcome};
use crate::protocol::derivation::BasicDerivation;
use crate::scheduler::Note;
use crate::transfer::Products;

/// Notes a slow client may fall behind; further ones are dropped, for they are about a past that is over.
const MAX_NOTES: usize = 64;

/// Where the derivation is read from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// The `.drv` in the local store.
    LocalStore,
    /// The client of the store endpoint sent it.
    Given(Box<BasicDerivation>),
}

/// An accepted build.
#[derive(Debug)]
pub(crate) struct Build {
    pub(crate) id: BuildId,
    pub(crate) request: BuildRequest,
    pub(crate) source: Source,
    pub(crate) log: Arc<LogSpool>,
    inputs: OnceLock<BuildInputs>,
    products: Mutex<Option<Arc<Products>>>,
    notes: mpsc::Sender<Note>,
    arriving: watch::Sender<Option<Arc<Products>>>,
    end: watch::Sender<Option<End>>,
}

/// How a build ended, with what its client needs then.
#[derive(Clone, Debug)]
pub(crate) enum End {
    /// The outputs are here.
    Succeeded(Arc<Products>),
    /// It failed for good.
    Failed(Failure),
    /// Nobody waits any more.
    Cancelled,
}

/// What the client of a build listens to.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) notes: mpsc::Receiver<Note>,
    /// Outputs that can be taken while they come. That all of them did is only said by the end.
    pub(crate) arriving: watch::Receiver<Option<Arc<Products>>>,
    pub(crate) end: watch::Receiver<Option<End>>,
}

impl Build {
    /// A fresh build and the ear of its client.
    pub(crate) fn new(
        id: BuildId,
        request: BuildRequest,
        source: Source,
        spool_dir: &Path,
    ) -> (Arc<Self>, Listener) {
        let (notes, notes_rx) = mpsc::channel(MAX_NOTES);
        let end = watch::Sender::new(None);
        let arriving = watch::Sender::new(None);
        let listener = Listener { notes: notes_rx, arriving: arriving.subscribe(), end: end.subscribe() };
        let build = Self {
            id,
            request,
            source,
            log: Arc::new(LogSpool::new(spool_dir)),
            inputs: OnceLock::new(),
            products: Mutex::new(None),
            notes,
            arriving,
            end,
        };
        (Arc::new(build), listener)
    }

    /// Nix has sent them; the first ones count.
    pub(crate) fn set_inputs(&self, inputs: BuildInputs) {
        self.inputs.get_or_init(|| inputs);
    }

    /// What Nix sent; nothing before it has.
    pub(crate) fn inputs(&self) -> BuildInputs {
        self.inputs.get().cloned().unwrap_or_default()
    }

    /// An attempt fetches these, and they are large: whoever waits may begin to take them.
    pub(crate) fn announce(&self, products: &Arc<Products>) {
        self.arriving.send_replace(Some(Arc::clone(products)));
    }

    /// An attempt has fetched everything.
    pub(crate) fn set_products(&self, products: Arc<Products>) {
        *self.products.lock() = Some(products);
    }

    /// Tells the person who waits, unless they are far behind.
    pub(crate) fn tell(&self, note: Note) {
        // A full queue or a client that is gone: both mean that nobody misses this note.
        let _missed = self.notes.try_send(note);
    }

    /// Tells the client the end.
    pub(crate) fn finish(&self, outcome: Outcome) {
        let products = self.products.lock().take();
        let end = match (outcome, products) {
            (Outcome::Succeeded, Some(products)) => End::Succeeded(products),
            (Outcome::Succeeded, None) => End::Failed(Failure::new(
                crate::model::FailureKind::Broker,
                "the build succeeded but its outputs are not here; this is a defect of nix-broker",
            )),
            (Outcome::Failed(failure), _) => End::Failed(failure),
            (Outcome::Cancelled, _) => End::Cancelled,
        };
        self.log.close(match &end {
            End::Succeeded(_) => Outcome::Succeeded,
            End::Failed(failure) => Outcome::Failed(failure.clone()),
            End::Cancelled => Outcome::Cancelled,
        });
        self.end.send_replace(Some(end));
    }
}

/// Outputs that wait for their importer, by token.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    products: Mutex<BTreeMap<String, OnShelf>>,
}

/// Products, and the end of their time there.
#[derive(Clone, Debug)]
pub(crate) struct OnShelf {
    pub(crate) products: Arc<Products>,
    /// Cancelled when nobody has a right to them any more: the hook is gone.
    pub(crate) taken_away: CancellationToken,
}

/// Takes the products from the shelf when dropped.
#[derive(Debug)]
pub(crate) struct Shelved<'a> {
    shelf: &'a Shelf,
    token: String,
}

impl Shelf {
    /// Puts products there until the guard is dropped.
    pub(crate) fn put(&self, token: String, products: Arc<Products>) -> Shelved<'_> {
        self.products
            .lock()
            .insert(token.clone(), OnShelf { products, taken_away: CancellationToken::new() });
        Shelved { shelf: self, token }
    }

    /// What lies under this token.
    pub(crate) fn get(&self, token: &str) -> Option<OnShelf> {
        self.products.lock().get(token).cloned()
    }
}

impl Drop for Shelved<'_> {
    fn drop(&mut self) {
        if let Some(gone) = self.shelf.products.lock().remove(&self.token) {
            gone.taken_away.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::worker::{BuildResult, ResultStatus};

    #[test]
    fn an_importer_learns_that_its_hook_is_gone() {
        let shelf = Shelf::default();
        let result = BuildResult::new(ResultStatus::Built, "");
        let shelved = shelf.put("token".to_owned(), Arc::new(Products { result, outputs: BTreeMap::new() }));
        // Nix 2.26 opens two connections per import.
        let (first, second) = (shelf.get("token").unwrap(), shelf.get("token").unwrap());
        assert!(!first.taken_away.is_cancelled());
        drop(shelved);
        assert!(first.taken_away.is_cancelled() && second.taken_away.is_cancelled());
        assert!(shelf.get("token").is_none());
    }
}
