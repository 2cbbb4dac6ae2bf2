//! The end of a striped stream that writes.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::pack::{self, Choice, Packed};
use super::{BLOCK, END_OF_BLOCK, Lane};

/// Cuts what is written into blocks, each into whichever lane has room. Lanes join as they come.
#[derive(Debug)]
pub struct StripedWriter<C, W> {
    control: Outbox<C>,
    lanes: Vec<(u8, Outbox<W>)>,
    joining: UnboundedReceiver<Lane<W>>,
    /// Nobody is left who would send a lane.
    is_complete: bool,
    block: Vec<u8>,
    /// The block before that, until a lane takes it.
    outgoing: Option<Outgoing>,
    choice: Choice,
}

/// A block that no more is added to.
#[derive(Debug)]
enum Outgoing {
    /// In a thread of its own, from this length.
    Packing(usize, JoinHandle<io::Result<Packed>>),
    /// As it goes over the wire, and whether that is a frame.
    Ready(Vec<u8>, bool),
}

/// Bytes on their way into a stream.
#[derive(Debug)]
struct Outbox<W> {
    stream: W,
    bytes: VecDeque<Vec<u8>>,
    sent: usize,
}

impl<C: AsyncWrite + Unpin, W: AsyncWrite + Unpin> StripedWriter<C, W> {
    /// A stream whose control lines go to `control`; writing waits until the first lane has joined. Blocks are packed
    /// when the other side can unpack them and the wire is slow.
    pub fn new(control: C, joining: UnboundedReceiver<Lane<W>>, unpacks: bool) -> Self {
        Self {
            control: Outbox::new(control),
            lanes: Vec::new(),
            joining,
            is_complete: false,
            block: Vec::with_capacity(BLOCK + END_OF_BLOCK.len()),
            outgoing: None,
            choice: Choice::new(unpacks, Instant::now()),
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

    /// Gives the block, packed if that is worth it, to a lane that has none waiting.
    fn poll_dispatch(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.drive(cx)?;
        let outgoing = match self.outgoing.take() {
            Some(outgoing) => outgoing,
            None => {
                let empty = Vec::with_capacity(BLOCK + END_OF_BLOCK.len());
                let block = std::mem::replace(&mut self.block, empty);
                if self.choice.is_for(block.len()) {
                    let len = block.len();
                    Outgoing::Packing(len, tokio::task::spawn_blocking(move || pack::pack(block)))
                } else {
                    Outgoing::Ready(block, false)
                }
            }
        };
        let (bytes, is_frame) = match outgoing {
            Outgoing::Ready(bytes, is_frame) => (bytes, is_frame),
            Outgoing::Packing(len, mut packing) => match Pin::new(&mut packing).poll(cx) {
                Poll::Pending => {
                    self.outgoing = Some(Outgoing::Packing(len, packing));
                    return Poll::Pending;
                }
                Poll::Ready(packed) => {
                    let packed = packed.map_err(io::Error::other)??;
                    self.choice.was_packed(len, packed.len, packed.took);
                    (packed.bytes, packed.is_frame)
                }
            },
        };
        let Some(index) = self.lanes.iter().position(|(_, lane)| lane.bytes.is_empty()) else {
            self.choice.waits();
            self.outgoing = Some(Outgoing::Ready(bytes, is_frame));
            return Poll::Pending;
        };
        // The one that is used goes to the end, so that all are used.
        let (number, mut lane) = self.lanes.remove(index);
        let packed = if is_frame { " z" } else { "" };
        self.control.push(format!("{number} {}{packed}\n", bytes.len()).into_bytes());
        self.choice.has_moved(bytes.len(), Instant::now());
        let mut block = bytes;
        block.extend_from_slice(END_OF_BLOCK);
        lane.push(block);
        self.lanes.push((number, lane));
        self.drive(cx)?;
        Poll::Ready(Ok(()))
    }
}

impl<C: AsyncWrite + Unpin, W: AsyncWrite + Unpin> AsyncWrite for StripedWriter<C, W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        while self.outgoing.is_some() || self.block.len() >= BLOCK {
            // While one block is packed or waits for a lane, the next is filled.
            let dispatched = self.poll_dispatch(cx);
            if dispatched.is_pending() && self.block.len() < BLOCK {
                break;
            }
            ready!(dispatched)?;
        }
        let taken = bytes.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.outgoing.is_some() || !self.block.is_empty() {
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
