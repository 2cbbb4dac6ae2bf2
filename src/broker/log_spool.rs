//! The log of one build, between the builder that writes it and the hook that reads it at Nix's pace.
//!
//! It lies in an unlinked file of the state directory, made with the first byte (a queued build has none): a reader that
//! stalls costs disk and not memory, stalls nobody else on the builder's connection, and nothing outlives the process.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tokio::sync::watch;

use crate::model::Outcome;

/// Bytes handed to a reader at once.
const CHUNK: usize = 64 << 10;

/// The log; many may read, one attempt at a time writes.
#[derive(Debug)]
pub(crate) struct LogSpool {
    dir: PathBuf,
    file: OnceLock<File>,
    len: watch::Sender<u64>,
    outcome: watch::Sender<Option<Outcome>>,
}

impl LogSpool {
    /// An empty log in this directory.
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            file: OnceLock::new(),
            len: watch::Sender::new(0),
            outcome: watch::Sender::new(None),
        }
    }

    /// Adds bytes.
    pub(crate) fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let len = *self.len.borrow();
        let file = match self.file.get() {
            Some(file) => file,
            None => {
                let file = tempfile::tempfile_in(&self.dir)?;
                self.file.get_or_init(|| file)
            }
        };
        file.write_all_at(bytes, len)?;
        self.len.send_replace(len + bytes.len() as u64);
        Ok(())
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> u64 {
        *self.len.borrow()
    }

    /// The next bytes from here, at most some tens of KiB; empty when there are none yet.
    pub(crate) fn read_from(&self, position: u64) -> io::Result<Vec<u8>> {
        let available = self.len().saturating_sub(position);
        let mut chunk = vec![0; usize::try_from(available).unwrap_or(CHUNK).min(CHUNK)];
        if let Some(file) = self.file.get() {
            file.read_exact_at(&mut chunk, position)?;
        }
        Ok(chunk)
    }

    /// Nothing follows any more: its build has ended so.
    pub(crate) fn close(&self, outcome: Outcome) {
        self.outcome.send_replace(Some(outcome));
    }

    /// How its build ended, if it has.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        self.outcome.borrow().clone()
    }

    /// Returns when its build has ended. Cancel-safe.
    pub(crate) async fn closed(&self) {
        let mut outcome = self.outcome.subscribe();
        // The sender lives in `self`, so this cannot fail.
        let _ended = outcome.wait_for(Option::is_some).await;
    }

    /// Returns when there is something after this position. Cancel-safe.
    pub(crate) async fn grown_past(&self, position: u64) {
        let mut len = self.len.subscribe();
        // The sender lives in `self`, so this cannot fail.
        let _grown = len.wait_for(|len| *len > position).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reader_sees_every_byte_in_order_and_waits_for_more() {
        let dir = tempfile::tempdir().unwrap();
        let spool = LogSpool::new(dir.path());
        spool.append(&[b'x'; CHUNK]).unwrap();
        spool.append(b"end").unwrap();
        let first = spool.read_from(0).unwrap();
        assert_eq!(first.len(), CHUNK);
        assert_eq!(spool.read_from(first.len() as u64).unwrap(), b"end");
        let position = spool.len();
        assert!(spool.read_from(position).unwrap().is_empty());
        let wait = spool.grown_past(position);
        tokio::pin!(wait);
        assert!(futures_util::poll!(wait.as_mut()).is_pending());
        spool.append(b"!").unwrap();
        wait.await;
        assert_eq!(spool.read_from(position).unwrap(), b"!");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
    }
}
