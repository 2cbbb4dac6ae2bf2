//! What happened and what it cost, for longer than the broker runs: one SQLite file in the state directory.
//!
//! Owns the file, its form and its bounds. Who records what is the scheduler's decision; nothing here may keep a build
//! waiting or make it fail: records go through a bounded queue to one thread, and a file that cannot be written costs the
//! history and nothing else.
//!
//! - [`Store`]: the file, used by one thread at a time.
//! - [`History`]: the way to that thread, for everybody.

mod read;
mod schema;
mod store;
#[cfg(test)]
mod tests;
mod write;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

pub use read::{BuildRow, By, CostRow, DurationRow};
pub use store::Store;

use crate::model::Record;

/// Records that may wait for the disk; further ones are dropped.
const MAX_WAITING: usize = 10_000;
/// Records that are written together.
const MAX_BATCH: usize = 500;

/// Why there is no history.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file cannot be used.
    #[error("cannot use the history at `{}`", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// A later version of the broker has written it.
    #[error("the history at `{}` is of a newer nix-broker (form {found}, and {known} is the latest known here); delete it to begin anew", path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its form.
        found: u32,
        /// The latest that we know.
        known: u32,
    },
    /// An earlier version of the broker has written it, and it may only be read.
    #[error("the history at `{}` is of an older nix-broker (form {found}, and {known} is read here); the broker brings it up to date when it starts", path.display())]
    Older {
        /// Which file.
        path: PathBuf,
        /// Its form.
        found: u32,
        /// The one that is read.
        known: u32,
    },
    /// The file was fine and cannot be read or written now.
    #[error("cannot read or write the history")]
    Sql(#[from] rusqlite::Error),
    /// There is none, since the start of the broker or since its thread ended.
    #[error("there is no history; the broker's log says why")]
    None,
}

type Question = Box<dyn FnOnce(&mut Store) + Send>;

enum Job {
    /// At this moment, since the beginning of 1970.
    Write(Duration, Record),
    Ask(Question),
}

/// The way to the history. Clones lead to the same.
#[derive(Clone, Debug)]
pub struct History {
    jobs: Option<SyncSender<Job>>,
    /// The one warning about records that are lost was given.
    has_warned: Arc<AtomicBool>,
}

impl History {
    /// No history: everything is forgotten.
    pub fn none() -> Self {
        Self { jobs: None, has_warned: Arc::default() }
    }

    /// Gives the store to a thread of its own.
    pub fn new(store: Store) -> Self {
        let (jobs, waiting) = sync_channel(MAX_WAITING);
        let has_warned = Arc::new(AtomicBool::new(false));
        let warned = Arc::clone(&has_warned);
        let spawned = std::thread::Builder::new()
            .name("history".to_owned())
            .spawn(move || work(store, &waiting, &warned));
        match spawned {
            Ok(_ends_with_the_last_sender) => Self { jobs: Some(jobs), has_warned },
            Err(error) => {
                tracing::warn!(%error, "cannot start the history's thread: nothing is recorded");
                Self::none()
            }
        }
    }

    /// Remembers this, as of that moment since the beginning of 1970. Never waits.
    pub fn record(&self, at: Duration, record: Record) {
        let Some(jobs) = &self.jobs else { return };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            jobs.try_send(Job::Write(at, record))
        {
            warn_once(&self.has_warned, &"its disk is too slow, or its thread has ended");
        }
    }

    /// Asks something of the store, behind what was recorded before.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Store) -> Result<T, HistoryError> + Send + 'static,
    ) -> Result<T, HistoryError> {
        let jobs = self.jobs.as_ref().ok_or(HistoryError::None)?;
        let (sender, answer) = tokio::sync::oneshot::channel();
        let ask: Question = Box::new(move |store| {
            let _asker_left = sender.send(question(store));
        });
        jobs.try_send(Job::Ask(ask)).map_err(|_| HistoryError::None)?;
        answer.await.map_err(|_| HistoryError::None)?
    }

    /// Waits until what was recorded before is written.
    pub async fn settle(&self) {
        // Without a history there is nothing to wait for.
        let _none = self.ask(|_store| Ok(())).await;
    }
}

/// Records in batches: a transaction costs as much as a hundred rows in it.
fn work(mut store: Store, waiting: &Receiver<Job>, has_warned: &AtomicBool) {
    while let Ok(first) = waiting.recv() {
        let mut batch = Vec::new();
        let mut question = None;
        for job in std::iter::once(first).chain(waiting.try_iter().take(MAX_BATCH)) {
            match job {
                Job::Write(at, record) => batch.push((at, record)),
                Job::Ask(ask) => {
                    question = Some(ask);
                    break;
                }
            }
        }
        if let Err(error) = store.write(&batch) {
            warn_once(has_warned, &error);
        }
        if let Some(ask) = question {
            ask(&mut store);
        }
    }
}

fn warn_once(has_warned: &AtomicBool, why: &dyn std::fmt::Display) {
    if !has_warned.swap(true, Ordering::Relaxed) {
        tracing::warn!(%why, "the history cannot be written: builds go on, but what they cost is not remembered");
    }
}
