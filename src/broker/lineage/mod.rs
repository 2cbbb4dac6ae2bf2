//! What a derivation needs because of its inputs: which rule that follows is [`walk`]'s, what is remembered [`memo`]'s;
//! here is what reads the store, and how long anybody waits for it.
//!
//! Nix builds from the bottom up, so mostly one file is needed per question: the derivation's own, for its inputs were
//! asked about before. The hook brings that one, so the answer comes from memory. Not so where the inputs were substituted,
//! and after a start of the broker: then all that lies below has to be read once, some ten microseconds a file while it is
//! in the page cache. Nix's loop stands still meanwhile, so:
//!
//! - every question may read what [`MOMENT`] says, which is a few milliseconds;
//! - one at a time may go on reading, in the background when it lasts longer than [`LIMIT`]; Nix is told "postpone" then,
//!   and so are the others that need more than a moment. That is five seconds to Nix, hence the limit, which is less than
//!   the stock hook takes for every build, and is met once for a derivation.
//!
//! This is done whatever the pools offer. One that names no processor is just the one on which a tuned program would die.

mod memo;
mod walk;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use memo::Memo;
use walk::{Budget, Files, Lineage, Progress, Walk};

use crate::model::store_path::STORE_DIR;
use crate::model::{BuildRequest, DrvPath};
use crate::protocol::derivation::{Ancestry, file};

/// Derivations remembered: those of a few whole systems, in less than 30 MB.
const MAX_REMEMBERED: usize = 1 << 17;

/// What any question may read while Nix waits. By count: a machine that is busy answers as one that is not.
const MOMENT: Budget = Budget { files: 500, bytes: 4 << 20 };

/// What the file is worth that a hook has brought: itself.
const BROUGHT: Budget = Budget { files: 1, bytes: u64::MAX };

/// How long Nix waits at most: some ten thousand files.
const LIMIT: Duration = Duration::from_millis(100);
/// The same while a long walk goes on, which may be because the disk is slow: every question would meet that.
const LIMIT_DURING_LONG_WALK: Duration = Duration::from_millis(10);

/// What is read for one derivation in all; what lies beyond counts as not tuned.
const WHOLE: Budget = Budget { files: MAX_REMEMBERED, bytes: 1 << 30 };

/// The longest file that is read; the largest ones known have a few megabytes.
const MAX_FILE: u64 = 16 << 20;

/// Walks at a time: as many threads may hang on a disk that does.
const MAX_WALKS: usize = 16;

/// What is known of the derivations of this machine's store.
#[derive(Debug)]
pub(crate) struct Lineages {
    /// A walk in the background ends when this is gone.
    memo: Arc<Mutex<Memo>>,
    store_dir: PathBuf,
    walks: Arc<Semaphore>,
    /// One walk at a time goes on for as long as it takes: another one would mostly read the same files.
    long_walk: Arc<Semaphore>,
}

/// How long who asks can wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Nix's event loop waits.
    Moment,
    /// Nobody but this build waits.
    UntilKnown,
}

/// There is more to read than there is patience. It is read now: ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the derivations it is made from are still being read")]
pub(crate) struct StillReading;

impl Default for Lineages {
    fn default() -> Self {
        Self::of(Path::new(STORE_DIR))
    }
}

impl Lineages {
    fn of(store_dir: &Path) -> Self {
        Self {
            memo: Arc::new(Mutex::new(Memo::new(MAX_REMEMBERED))),
            store_dir: store_dir.to_owned(),
            walks: Arc::new(Semaphore::new(MAX_WALKS)),
            long_walk: Arc::new(Semaphore::new(1)),
        }
    }

    /// Adds to this request what its derivation inherits, and what it says of where it is best built. Its file need not be
    /// read when it was brought.
    pub(crate) async fn complete(
        &self,
        request: &mut BuildRequest,
        brought: Option<&str>,
        patience: Patience,
    ) -> Result<(), StillReading> {
        let may_inherit = request.requirement.may_inherit();
        // Where else it could be built only counts where there is a choice.
        let has_a_choice = request.am_willing && request.settings.can_locally;
        if !may_inherit && !has_a_choice {
            return Ok(());
        }
        let drv = &request.drv;
        let known = self.memo.lock().get(drv);
        let lineage = match known {
            Some(lineage) => lineage,
            None => self.find_out(drv, brought, patience).await?,
        };
        request.nature = lineage.nature;
        let inherited = lineage.needs();
        if may_inherit && !inherited.is_empty() {
            request.requirement.inherit(inherited);
        }
        Ok(())
    }

    async fn find_out(
        &self,
        drv: &DrvPath,
        brought: Option<&str>,
        patience: Patience,
    ) -> Result<Lineage, StillReading> {
        let mut walk = Walk::to(drv.clone());
        // What cannot be parsed may have been spoilt on its way.
        if let Some(ancestry) = brought.and_then(|file| Ancestry::parse(file.as_bytes()).ok()) {
            let progress = walk.advance(&self.memo, &mut Brought(Some(ancestry)), &mut BROUGHT.clone());
            if let Progress::Done(lineage) = progress {
                return Ok(lineage);
            }
        }
        let reader = Reader {
            walk,
            memo: Arc::downgrade(&self.memo),
            files: StoreFiles { dir: self.store_dir.clone() },
        };
        match patience {
            Patience::Moment => {
                let is_free = self.long_walk.available_permits() > 0;
                let limit = if is_free { LIMIT } else { LIMIT_DURING_LONG_WALK };
                timeout(limit, self.in_a_moment(reader)).await.unwrap_or(Err(StillReading))
            }
            Patience::UntilKnown => {
                let permit = Arc::clone(&self.long_walk).acquire_owned().await;
                let read = tokio::task::spawn_blocking(move || {
                    let lineage = reader.finish();
                    drop(permit);
                    lineage
                });
                Ok(read.await.unwrap_or_else(|_| after_a_defect(drv)))
            }
        }
    }

    /// Reads for a moment and, when that is not enough, goes on unless somebody else does already.
    async fn in_a_moment(&self, mut reader: Reader) -> Result<Lineage, StillReading> {
        let drv = reader.walk.root().clone();
        let permit = Arc::clone(&self.walks).acquire_owned().await;
        let long_walk = Arc::clone(&self.long_walk);
        let (answer, answered) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            let found = reader.advance(&mut MOMENT.clone());
            drop(permit);
            let lineage = match found {
                Some(Progress::Done(lineage)) => Ok(lineage),
                Some(Progress::Spent) => match long_walk.try_acquire() {
                    Ok(_permit) => Ok(reader.finish()),
                    Err(_) => Err(StillReading),
                },
                None => Err(StillReading),
            };
            // Who asked may have lost patience; what was found is remembered.
            let _unheard = answer.send(lineage);
        });
        answered.await.unwrap_or_else(|_| Ok(after_a_defect(&drv)))
    }
}

/// A walk that died would die again: to wait for it would be to wait for ever.
fn after_a_defect(drv: &DrvPath) -> Lineage {
    tracing::error!(%drv, "a defect: its inputs could not be looked at; it counts as not tuned for a processor");
    Lineage::default()
}

/// A walk over the store.
struct Reader {
    walk: Walk,
    memo: Weak<Mutex<Memo>>,
    files: StoreFiles,
}

impl Reader {
    /// Nothing when the broker has ended.
    fn advance(&mut self, budget: &mut Budget) -> Option<Progress> {
        let memo = self.memo.upgrade()?;
        Some(self.walk.advance(&memo, &mut self.files, budget))
    }

    fn finish(mut self) -> Lineage {
        let mut left = WHOLE;
        loop {
            // Piece by piece, to see when the broker has ended.
            let mut budget = Budget { files: left.files.min(MOMENT.files), bytes: left.bytes };
            let files = budget.files;
            match self.advance(&mut budget) {
                Some(Progress::Done(lineage)) => return lineage,
                Some(Progress::Spent) => {}
                None => return Lineage::default(),
            }
            left = Budget { files: left.files - (files - budget.files), bytes: budget.bytes };
            if left.files == 0 || left.bytes == 0 {
                let drv = self.walk.root().clone();
                tracing::warn!(%drv, "is made from more derivations than are looked at; the rest counts as not tuned");
                let Some(memo) = self.memo.upgrade() else { return Lineage::default() };
                return self.walk.give_up(&memo);
            }
        }
    }
}

/// What a hook has brought: the derivation it asks about, and no other.
struct Brought(Option<Ancestry>);

impl Files for Brought {
    fn read(&mut self, _root: &DrvPath) -> (Option<Ancestry>, u64) {
        (self.0.take(), 0)
    }
}

/// The derivations of the store.
struct StoreFiles {
    dir: PathBuf,
}

impl Files for StoreFiles {
    fn read(&mut self, drv: &DrvPath) -> (Option<Ancestry>, u64) {
        let path = self.dir.join(drv.as_store_path().base_name());
        let file = match file::read(&path, MAX_FILE) {
            Ok(file) => file,
            Err(error) => {
                tracing::debug!(%drv, %error, "cannot be read: inherits nothing");
                return (None, 0);
            }
        };
        match Ancestry::parse(&file) {
            Ok(ancestry) => (Some(ancestry), file.len() as u64),
            Err(error) => {
                tracing::debug!(%drv, %error, "cannot be parsed: inherits nothing");
                (None, file.len() as u64)
            }
        }
    }
}

#[cfg(test)]
mod tests;
