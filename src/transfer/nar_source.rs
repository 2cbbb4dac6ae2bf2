//! A local store path as a stream of its NAR, straight from the file system.

use std::io::{self, Write};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::task::JoinHandle;
use tokio_util::io::SyncIoBridge;

use crate::protocol::nar::{NarDigest, TreeError, write_tree};

/// Bytes read ahead of the network.
const READ_AHEAD: usize = 512 << 10;

/// The stream. A thread reads the files; it stops when the stream is dropped.
#[derive(Debug)]
pub struct NarSource {
    pipe: tokio::io::DuplexStream,
    writer: Option<JoinHandle<Result<NarDigest, TreeError>>>,
}

impl NarSource {
    /// The NAR of what lies at this path.
    pub fn open(path: PathBuf) -> Self {
        let (pipe, sink) = tokio::io::duplex(READ_AHEAD);
        let writer = tokio::task::spawn_blocking(move || {
            let mut sink = SyncIoBridge::new(sink);
            let digest = write_tree(&path, &mut sink)?;
            sink.flush().map_err(TreeError::Write)?;
            Ok(digest)
        });
        Self { pipe, writer: Some(writer) }
    }
}

impl AsyncRead for NarSource {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.pipe).poll_read(cx, buf))?;
        if buf.filled().len() > before || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        // The end of the pipe is the end of the archive only when the thread says so.
        let Some(writer) = &mut self.writer else { return Poll::Ready(Ok(())) };
        match Pin::new(writer).poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(end) => {
                self.writer = None;
                Poll::Ready(match end {
                    Ok(Ok(_digest)) => Ok(()),
                    Ok(Err(error)) => Err(io::Error::other(error)),
                    Err(panic) => Err(io::Error::other(panic)),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn a_tree_is_streamed_whole_and_a_missing_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("large"), vec![7; 3 * READ_AHEAD]).unwrap();
        let mut expected = Vec::new();
        write_tree(dir.path(), &mut expected).unwrap();
        let mut read = Vec::new();
        NarSource::open(dir.path().to_owned()).read_to_end(&mut read).await.unwrap();
        assert_eq!(read, expected);
        let missing = NarSource::open(dir.path().join("missing")).read_to_end(&mut Vec::new()).await;
        assert!(missing.unwrap_err().to_string().contains("missing"));
    }
}
