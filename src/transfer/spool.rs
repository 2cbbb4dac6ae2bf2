//! Where an output waits between the builder that made it and the importer that takes it: in memory while it is small,
//! in an unlinked file when it is not. Nothing of it outlives the process.
//!
//! It can be read while it is written: readers wait for what has not come yet. That it is whole is known when it is
//! finished; one that is given up is an error for its readers, never a short archive.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Outputs up to this many bytes never touch the disk.
const MAX_IN_MEMORY: usize = 256 << 10;
/// Compared at once with what is there already.
const COMPARED: usize = 64 << 10;

/// A NAR under way. Dropped unfinished, it is broken off for its readers.
#[derive(Debug)]
pub struct SpoolWriter {
    dir: PathBuf,
    spool: Spool,
    /// Where the next byte goes: before the end when the stream was begun again.
    position: u64,
}

/// A NAR, whole or growing; cheap to clone.
#[derive(Clone, Debug)]
pub struct Spool {
    content: Arc<Mutex<Content>>,
}

#[derive(Debug, Default)]
struct Content {
    memory: Vec<u8>,
    file: Option<Arc<File>>,
    len: u64,
    end: End,
    readers: Vec<Waker>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    /// More may come.
    #[default]
    Open,
    Whole,
    BrokenOff,
}

impl SpoolWriter {
    /// An empty one, which spills into this directory.
    pub fn new(dir: &Path) -> Self {
        let spool = Spool { content: Arc::default() };
        Self { dir: dir.to_owned(), spool, position: 0 }
    }

    /// For those who read what has come so far.
    pub fn spool(&self) -> Spool {
        self.spool.clone()
    }

    /// The same bytes come once more, from the beginning: what was read of them stays true, or writing fails.
    pub fn begin_again(&mut self) {
        self.position = 0;
    }

    /// It is whole.
    pub fn finish(&mut self) -> Spool {
        self.spool.end(End::Whole);
        self.spool()
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut content = self.spool.content.lock();
        let known = usize::try_from(content.len - self.position).unwrap_or(usize::MAX).min(bytes.len());
        let mut there = [0; COMPARED];
        for part in bytes[..known].chunks(COMPARED) {
            let there = &mut there[..part.len()];
            content.read_exact_at(there, self.position)?;
            if there != part {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "not what came the first time"));
            }
            self.position += part.len() as u64;
        }
        let bytes = &bytes[known..];
        if content.file.is_none() && content.memory.len() + bytes.len() > MAX_IN_MEMORY {
            let mut file = tempfile::tempfile_in(&self.dir)?;
            file.write_all(&std::mem::take(&mut content.memory))?;
            content.file = Some(Arc::new(file));
        }
        match &content.file {
            Some(file) => file.write_all_at(bytes, content.len)?,
            None => content.memory.extend_from_slice(bytes),
        }
        content.len += bytes.len() as u64;
        self.position = content.len.min(self.position + bytes.len() as u64);
        content.wake();
        Ok(())
    }
}

impl Drop for SpoolWriter {
    fn drop(&mut self) {
        self.spool.end(End::BrokenOff);
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

impl Content {
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        if let Some(file) = &self.file {
            return file.read_at(buffer, position);
        }
        let start = usize::try_from(position).unwrap_or(usize::MAX).min(self.memory.len());
        let n = buffer.len().min(self.memory.len() - start);
        buffer[..n].copy_from_slice(&self.memory[start..start + n]);
        Ok(n)
    }

    fn read_exact_at(&self, buffer: &mut [u8], position: u64) -> io::Result<()> {
        let mut got = 0;
        while got < buffer.len() {
            match self.read_at(&mut buffer[got..], position + got as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => got += n,
            }
        }
        Ok(())
    }

    fn wake(&mut self) {
        self.readers.drain(..).for_each(Waker::wake);
    }
}

impl Spool {
    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.content.lock().len
    }

    /// Whether it holds nothing. A NAR never does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A reader over the whole of it.
    pub fn reader(&self) -> SpoolReader {
        SpoolReader { spool: self.clone(), position: 0 }
    }

    /// The first end counts.
    fn end(&self, end: End) {
        let mut content = self.content.lock();
        if content.end == End::Open {
            content.end = end;
        }
        content.wake();
    }
}

/// Reads a spool from its beginning. Waits for nothing but its writer.
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
        let Self { spool, position } = &mut *self;
        let mut content = spool.content.lock();
        if *position == content.len {
            match content.end {
                End::Whole => return Poll::Ready(Ok(())),
                End::BrokenOff => {
                    return Poll::Ready(Err(io::Error::other("the output does not come any further")));
                }
                End::Open => {}
            }
            if !content.readers.iter().any(|reader| reader.will_wake(cx.waker())) {
                content.readers.push(cx.waker().clone());
            }
            return Poll::Pending;
        }
        let n = match content.file.clone() {
            // The writer need not wait for this copy.
            Some(file) => {
                drop(content);
                file.read_at(buf.initialize_unfilled(), *position)?
            }
            None => content.read_at(buf.initialize_unfilled(), *position)?,
        };
        buf.advance(n);
        *position += n as u64;
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

    #[tokio::test]
    async fn what_grows_is_read_meanwhile_and_what_is_given_up_is_no_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = SpoolWriter::new(dir.path());
        let mut reader = writer.spool().reader();
        let large = vec![7; 2 * MAX_IN_MEMORY];
        let mut read = vec![0; large.len()];
        writer.write_all(&large).await.unwrap();
        reader.read_exact(&mut read).await.unwrap();
        assert_eq!(read, large);
        let waiting = tokio::spawn(async move { reader.read_u8().await.map(|byte| (byte, reader)) });
        tokio::task::yield_now().await;
        writer.write_all(&[8]).await.unwrap();
        let (byte, mut reader) = waiting.await.unwrap().unwrap();
        assert_eq!(byte, 8);
        drop(writer);
        assert!(reader.read_u8().await.unwrap_err().to_string().contains("any further"));
    }

    #[tokio::test]
    async fn a_stream_that_begins_again_goes_on_where_the_first_one_was_if_it_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..3 * MAX_IN_MEMORY).map(|i| (i % 241) as u8).collect();
        let mut writer = SpoolWriter::new(dir.path());
        writer.write_all(&content[..2 * MAX_IN_MEMORY]).await.unwrap();
        writer.begin_again();
        for part in content.chunks(100_000) {
            writer.write_all(part).await.unwrap();
        }
        let mut read = Vec::new();
        writer.spool().reader().take(content.len() as u64).read_to_end(&mut read).await.unwrap();
        assert!(read == content);
        writer.begin_again();
        writer.write_all(b"another").await.unwrap_err();
    }
}
