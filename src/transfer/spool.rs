//! Where an output waits between the builder that made it and the importer that takes it: in memory while it is small,
//! in an unlinked file when it is not. Nothing of it outlives the process.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Outputs up to this many bytes never touch the disk.
const MAX_IN_MEMORY: usize = 256 << 10;

/// A NAR under way.
#[derive(Debug)]
pub struct SpoolWriter {
    dir: PathBuf,
    memory: Vec<u8>,
    file: Option<File>,
    len: u64,
}

/// A whole NAR; cheap to clone.
#[derive(Clone, Debug)]
pub struct Spool {
    content: Arc<Content>,
    len: u64,
}

#[derive(Debug)]
enum Content {
    Memory(Vec<u8>),
    File(File),
}

impl SpoolWriter {
    /// An empty one, which spills into this directory.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), memory: Vec::new(), file: None, len: 0 }
    }

    /// No more is coming.
    pub fn finish(self) -> Spool {
        let content = match self.file {
            Some(file) => Content::File(file),
            None => Content::Memory(self.memory),
        };
        Spool { content: Arc::new(content), len: self.len }
    }
}

/// Never waits: what goes to the file goes to the page cache.
impl AsyncWrite for SpoolWriter {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.take(bytes).map(|()| bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl SpoolWriter {
    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.write_all(bytes)?;
        } else if self.memory.len() + bytes.len() <= MAX_IN_MEMORY {
            self.memory.extend_from_slice(bytes);
        } else {
            let mut file = tempfile::tempfile_in(&self.dir)?;
            file.write_all(&std::mem::take(&mut self.memory))?;
            file.write_all(bytes)?;
            self.file = Some(file);
        }
        self.len += bytes.len() as u64;
        Ok(())
    }
}

impl Spool {
    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it holds nothing. A NAR never does.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads at this position; 0 is the end.
    pub fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        match &*self.content {
            Content::Memory(bytes) => {
                let start = usize::try_from(position).unwrap_or(usize::MAX).min(bytes.len());
                let n = buffer.len().min(bytes.len() - start);
                buffer[..n].copy_from_slice(&bytes[start..start + n]);
                Ok(n)
            }
            Content::File(file) => file.read_at(buffer, position),
        }
    }

    /// A reader over the whole of it.
    pub fn reader(&self) -> SpoolReader {
        SpoolReader { spool: self.clone(), position: 0 }
    }
}

/// Reads a spool from its beginning. Never waits for more than the page cache.
#[derive(Debug)]
pub struct SpoolReader {
    spool: Spool,
    position: u64,
}

impl AsyncRead for SpoolReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A large spool is read in a loop that never waits: without this, other tasks would.
        let coop = ready!(tokio::task::coop::poll_proceed(cx));
        let n = self.spool.read_at(buf.initialize_unfilled(), self.position)?;
        buf.advance(n);
        self.position += n as u64;
        coop.made_progress();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn small_and_large_contents_come_back_and_leave_no_name() {
        let dir = tempfile::tempdir().unwrap();
        for len in [0, 1, MAX_IN_MEMORY, MAX_IN_MEMORY + 1, 3 * MAX_IN_MEMORY] {
            let content: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let mut writer = SpoolWriter::new(dir.path());
            for chunk in content.chunks(10_000) {
                writer.write_all(chunk).await.unwrap();
            }
            let spool = writer.finish();
            assert_eq!(spool.len(), len as u64);
            let mut read = Vec::new();
            spool.reader().read_to_end(&mut read).await.unwrap();
            assert_eq!(read, content);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }
}
