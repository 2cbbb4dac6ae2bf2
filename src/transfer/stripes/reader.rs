//! The end of a striped stream that reads.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::pack::{Choice, Unpacking};
use super::{BLOCK, Lane};

/// Blocks asked for ahead, for each lane: as much as its connection can hold.
const AHEAD: usize = 4;
/// What is read from a lane at once and not for whoever reads: a part of a packed block.
const READ_BUFFER: usize = 64 << 10;

/// Asks for blocks of a stream of known length, and reads them in order. Lanes join as they come.
#[derive(Debug)]
pub struct StripedReader<C, R> {
    control: C,
    /// Control lines that are not sent yet.
    lines: Vec<u8>,
    lanes: Vec<(u8, BufReader<R>)>,
    joining: UnboundedReceiver<Lane<R>>,
    /// Nobody is left who would send a lane.
    is_complete: bool,
    /// What was asked for and has not come, the next first.
    blocks: VecDeque<Block>,
    /// What was packed and is to be read now, and how far it has been.
    unpacked: (Vec<u8>, usize),
    choice: Choice,
    /// Not asked for yet.
    left: u64,
}

#[derive(Debug)]
struct Block {
    lane: usize,
    len: usize,
    /// Bytes that have gone over the wire.
    came: usize,
    is_packed: bool,
    unpacking: Option<Unpacking>,
}

impl<C: AsyncWrite + Unpin, R: AsyncRead + Unpin> StripedReader<C, R> {
    /// A stream of so many bytes, asked for on `control`. Blocks are asked for packed when the other side can do that
    /// and the wire is slow.
    pub fn new(control: C, joining: UnboundedReceiver<Lane<R>>, size: u64, packs: bool) -> Self {
        Self {
            control,
            lines: Vec::new(),
            lanes: Vec::new(),
            joining,
            is_complete: false,
            blocks: VecDeque::new(),
            unpacked: (Vec::new(), 0),
            choice: Choice::new(packs, Instant::now()),
            left: size,
        }
    }

    fn ask(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while !self.is_complete {
            match self.joining.poll_recv(cx) {
                Poll::Ready(Some(lane)) => {
                    let number = lane.number();
                    self.lines.extend_from_slice(format!("{number} open\n").as_bytes());
                    self.lanes.push((number, BufReader::with_capacity(READ_BUFFER, lane.stream)));
                }
                Poll::Ready(None) => self.is_complete = true,
                Poll::Pending => break,
            }
        }
        if self.is_complete && self.lanes.is_empty() {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "no lane could be opened"));
        }
        while self.left > 0 {
            let asked = |lane| self.blocks.iter().filter(|block| block.lane == lane).count();
            let next = (0..self.lanes.len()).map(|lane| (asked(lane), lane)).min();
            let Some((asked, lane)) = next else { break };
            if asked >= AHEAD {
                break;
            }
            let len = usize::try_from(self.left).map_or(BLOCK, |left| left.min(BLOCK));
            self.left -= len as u64;
            let is_packed = self.choice.is_for(len);
            self.blocks.push_back(Block { lane, len, came: 0, is_packed, unpacking: None });
            let (number, packed) = (self.lanes[lane].0, if is_packed { " z" } else { "" });
            self.lines.extend_from_slice(format!("{number} {len}{packed}\n").as_bytes());
        }
        while !self.lines.is_empty() {
            match Pin::new(&mut self.control).poll_write(cx, &self.lines) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(sent)) => drop(self.lines.drain(..sent)),
            }
        }
        match Pin::new(&mut self.control).poll_flush(cx) {
            Poll::Ready(Err(error)) => Err(error),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }
}

impl<C: AsyncWrite + Unpin, R: AsyncRead + Unpin> AsyncRead for StripedReader<C, R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.ask(cx)?;
        loop {
            let (unpacked, read) = &mut this.unpacked;
            if *read < unpacked.len() {
                let limit = buffer.remaining().min(unpacked.len() - *read);
                buffer.put_slice(&unpacked[*read..*read + limit]);
                *read += limit;
                return Poll::Ready(Ok(()));
            }
            let Some(block) = this.blocks.front() else {
                // Everything was read, or no lane has joined yet.
                return if this.left == 0 { Poll::Ready(Ok(())) } else { Poll::Pending };
            };
            let polled = if block.is_packed {
                this.poll_unpack(cx)
            } else {
                this.poll_plain(cx, buffer).map_ok(|()| true)
            };
            let Poll::Ready(has_read) = polled else {
                this.choice.waits();
                return Poll::Pending;
            };
            if has_read? {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<C: AsyncWrite + Unpin, R: AsyncRead + Unpin> StripedReader<C, R> {
    /// Reads of the next block what there is, straight to where it is wanted.
    fn poll_plain(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(block) = self.blocks.front_mut() else { return Poll::Ready(Ok(())) };
        let limit = buffer.remaining().min(block.len - block.came);
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(limit));
        ready!(Pin::new(&mut self.lanes[block.lane].1).poll_read(cx, &mut part))?;
        let got = part.filled().len();
        if got == 0 && limit > 0 {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        buffer.advance(got);
        block.came += got;
        if block.came == block.len {
            self.next_block(cx);
        }
        Poll::Ready(Ok(()))
    }

    /// Unpacks of the next block what there is. There is nothing to be read from that yet.
    fn poll_unpack(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let Some(block) = self.blocks.front_mut() else { return Poll::Ready(Ok(false)) };
        let unpacking = match &mut block.unpacking {
            Some(unpacking) => unpacking,
            none => none.insert(Unpacking::new(block.len)?),
        };
        let mut lane = Pin::new(&mut self.lanes[block.lane].1);
        let bytes = ready!(lane.as_mut().poll_fill_buf(cx))?;
        if bytes.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        let (taken, is_whole) = unpacking.take(bytes)?;
        lane.consume(taken);
        block.came += taken;
        if is_whole && let Some(unpacking) = block.unpacking.take() {
            self.choice.was_packed(block.len, block.came, Duration::ZERO);
            self.unpacked = (unpacking.into_block(), 0);
            self.next_block(cx);
        }
        Poll::Ready(Ok(false))
    }

    /// The next block is here; what is asked for now is here when its turn comes.
    fn next_block(&mut self, cx: &mut Context<'_>) {
        if let Some(block) = self.blocks.pop_front() {
            self.choice.has_moved(block.came, Instant::now());
        }
        // An error is met again by whoever reads on; what has come goes first.
        let _met_again = self.ask(cx);
    }
}
