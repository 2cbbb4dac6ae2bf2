//! Framed bodies as the server reads them: pieces with their length in front, an empty one at the end.
//!
//! Owns only the framing; what is inside is read through it like any other stream, and where it ends nothing is lost of
//! what follows.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncWrite, ReadBuf};

use super::BoxedReader;
use super::error::ProtocolError;
use super::types::PathInfo;
use crate::protocol::nar::{self, NarDigest};
use crate::protocol::wire::{WireError, WireReader};

/// Where in a body its reader is; outlives the reader.
#[derive(Debug, Default)]
pub(super) struct FrameState {
    header: [u8; 8],
    header_len: usize,
    left: u64,
    ended: bool,
}

impl FrameState {
    /// The state of a body of which nothing is left.
    pub(super) fn ended() -> Self {
        Self { ended: true, ..Self::default() }
    }
}

/// The body of an upload. Ends where the body ends.
pub struct FramedReader<'a, R = BoxedReader> {
    inner: &'a mut R,
    state: &'a mut FrameState,
}

impl<'a, R: AsyncBufRead + Unpin> FramedReader<'a, R> {
    pub(super) fn new(inner: &'a mut R, state: &'a mut FrameState) -> Self {
        Self { inner, state }
    }

    /// Reads what is left and throws it away.
    pub(super) async fn drain(&mut self) -> io::Result<()> {
        loop {
            let len = self.fill_buf().await?.len();
            if len == 0 {
                return Ok(());
            }
            self.consume(len);
        }
    }

    /// Reads headers until there are bytes to come or the body has ended.
    fn poll_header(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { inner, state } = self;
        while state.left == 0 && !state.ended {
            let bytes = ready!(Pin::new(&mut **inner).poll_fill_buf(cx))?;
            if bytes.is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            let taken = bytes.len().min(8 - state.header_len);
            state.header[state.header_len..state.header_len + taken].copy_from_slice(&bytes[..taken]);
            Pin::new(&mut **inner).consume(taken);
            state.header_len += taken;
            if state.header_len == 8 {
                state.header_len = 0;
                state.left = u64::from_le_bytes(state.header);
                state.ended = state.left == 0;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<R: AsyncBufRead + Unpin> AsyncBufRead for FramedReader<'_, R> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        ready!(this.poll_header(cx))?;
        if this.state.ended {
            return Poll::Ready(Ok(&[]));
        }
        let bytes = ready!(Pin::new(&mut *this.inner).poll_fill_buf(cx))?;
        if bytes.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        let len = usize::try_from(this.state.left).map_or(bytes.len(), |left| left.min(bytes.len()));
        Poll::Ready(Ok(&bytes[..len]))
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        let this = self.get_mut();
        this.state.left = this.state.left.saturating_sub(amount as u64);
        Pin::new(&mut *this.inner).consume(amount);
    }
}

impl<R: AsyncBufRead + Unpin> AsyncRead for FramedReader<'_, R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let bytes = ready!(self.as_mut().poll_fill_buf(cx))?;
        let len = bytes.len().min(buffer.remaining());
        buffer.put_slice(&bytes[..len]);
        self.consume(len);
        Poll::Ready(Ok(()))
    }
}

/// The entries in the body of an upload of several paths. For each: [`next`](Self::next), then [`nar`](Self::nar).
pub struct Entries<'a> {
    reader: WireReader<FramedReader<'a>>,
    left: u64,
    /// The last path info whose archive has not been read.
    owed: bool,
}

impl<'a> Entries<'a> {
    pub(super) async fn begin(body: FramedReader<'a>) -> Result<Self, WireError> {
        let mut reader = WireReader::new(body);
        let left = reader.u64("number of paths").await?;
        Ok(Self { reader, left, owed: false })
    }

    /// How many entries have not been begun; a peer's number, so nothing to allocate by.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// The next path. An archive that was not read is skipped.
    pub async fn next(&mut self) -> Result<Option<PathInfo>, ProtocolError> {
        if self.owed {
            self.nar(&mut tokio::io::sink()).await?;
        }
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.reader.begin_message();
        let info = PathInfo::read(&mut self.reader).await?;
        self.owed = true;
        Ok(Some(info))
    }

    /// Writes the archive of the path that came last into a sink.
    pub async fn nar(
        &mut self,
        sink: &mut (impl AsyncWrite + Send + Unpin),
    ) -> Result<NarDigest, ProtocolError> {
        self.owed = false;
        Ok(nar::copy(self.reader.get_mut(), sink).await?)
    }
}

impl<R> fmt::Debug for FramedReader<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FramedReader").field("state", &self.state).finish_non_exhaustive()
    }
}

impl fmt::Debug for Entries<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entries").field("left", &self.left).field("owed", &self.owed).finish_non_exhaustive()
    }
}
