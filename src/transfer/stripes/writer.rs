//! The end of a striped stream that writes.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::sync::mpsc::UnboundedReceiver;

use super::{BLOCK, Lane};

/// After every block of a lane: the reader's proof that the block was whole.
const END_OF_BLOCK: &[u8] = b".\n";

/// Cuts what is written into blocks, each into whichever lane has room. Lanes join as they come.
#[derive(Debug)]
pub struct StripedWriter<C, W> {
    control: Outbox<C>,
    lanes: Vec<(u8, Outbox<W>)>,
    joining: UnboundedReceiver<Lane<W>>,
    /// Nobody is left who would send a lane.
    is_complete: bool,
    block: Vec<u8>,
}

/// Bytes on their way into a stream.
#[derive(Debug)]
struct Outbox<W> {
    stream: W,
    bytes: VecDeque<Vec<u8>>,
    sent: usize,
}

impl<C: AsyncWrite + Unpin, W: AsyncWrite + Unpin> StripedWriter<C, W> {
    /// A stream whose control lines go to `control`; writing waits until the first lane has joined.
    pub fn new(control: C, joining: UnboundedReceiver<Lane<W>>) -> Self {
        Self {
            control: Outbox::new(control),
            lanes: Vec::new(),
            joining,
            is_complete: false,
            block: Vec::with_capacity(BLOCK + END_OF_BLOCK.len()),
        }
    }

    /// Moves whatever can be moved.
    fn drive(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while !self.is_complete {
            match self.joining.poll_recv(cx) {
                Poll::Ready(Some(lane)) => {
                    let number = lane.number();
                    self.control.push(format!("{number} open\n").into_bytes());
                    self.lanes.push((number, Outbox::new(lane.stream)));
                }
                Poll::Ready(None) => self.is_complete = true,
                Poll::Pending => break,
            }
        }
        if self.is_complete && self.lanes.is_empty() {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "no lane could be opened"));
        }
        for (_, lane) in &mut self.lanes {
            lane.drive(cx)?;
        }
        self.control.drive(cx)
    }

    /// Gives the block to a lane that has none waiting.
    fn poll_dispatch(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.drive(cx)?;
        let Some((number, lane)) = self.lanes.iter_mut().find(|(_, lane)| lane.bytes.is_empty()) else {
            return Poll::Pending;
        };
        self.control.push(format!("{number} {}\n", self.block.len()).into_bytes());
        let mut block = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK + END_OF_BLOCK.len()));
        block.extend_from_slice(END_OF_BLOCK);
        lane.push(block);
        // The one that was used goes to the end, so that all are used.
        if let Some(index) = self.lanes.iter().position(|(_, lane)| !lane.bytes.is_empty()) {
            let used = self.lanes.remove(index);
            self.lanes.push(used);
        }
        self.drive(cx)?;
        Poll::Ready(Ok(()))
    }
}

impl<C: AsyncWrite + Unpin, W: AsyncWrite + Unpin> AsyncWrite for StripedWriter<C, W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.block.len() >= BLOCK {
            ready!(self.poll_dispatch(cx))?;
        }
        let taken = bytes.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.block.is_empty() {
            ready!(self.poll_dispatch(cx))?;
        }
        self.drive(cx)?;
        let this = &mut *self;
        for (_, lane) in &mut this.lanes {
            ready!(lane.poll_flush(cx))?;
        }
        this.control.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        // The script ends with its control lines, and the lanes with it.
        Pin::new(&mut self.control.stream).poll_shutdown(cx)
    }
}

impl<W: AsyncWrite + Unpin> Outbox<W> {
    fn new(stream: W) -> Self {
        Self { stream, bytes: VecDeque::new(), sent: 0 }
    }

    fn push(&mut self, bytes: Vec<u8>) {
        self.bytes.push_back(bytes);
    }

    /// Sends until it would have to wait.
    fn drive(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while let Some(front) = self.bytes.front() {
            match Pin::new(&mut self.stream).poll_write(cx, &front[self.sent..]) {
                Poll::Pending => break,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(sent)) => self.sent += sent,
            }
            if self.sent == front.len() {
                self.bytes.pop_front();
                self.sent = 0;
            }
        }
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.drive(cx)?;
        if self.bytes.is_empty() { Pin::new(&mut self.stream).poll_flush(cx) } else { Poll::Pending }
    }
}
