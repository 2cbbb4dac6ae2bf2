//! The end of a striped stream that reads.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc::UnboundedReceiver;

use super::{BLOCK, Lane};

/// Blocks asked for ahead, for each lane: as much as its connection can hold.
const AHEAD: usize = 4;

/// Asks for blocks of a stream of known length, and reads them in order. Lanes join as they come.
#[derive(Debug)]
pub struct StripedReader<C, R> {
    control: C,
    /// Control lines that are not sent yet.
    lines: Vec<u8>,
    lanes: Vec<(u8, R)>,
    joining: UnboundedReceiver<Lane<R>>,
    /// Nobody is left who would send a lane.
    is_complete: bool,
    /// Which lane the next bytes come from, and how many.
    blocks: VecDeque<(usize, usize)>,
    /// Not asked for yet.
    left: u64,
}

impl<C: AsyncWrite + Unpin, R: AsyncRead + Unpin> StripedReader<C, R> {
    /// A stream of so many bytes, asked for on `control`.
    pub fn new(control: C, joining: UnboundedReceiver<Lane<R>>, size: u64) -> Self {
        Self {
            control,
            lines: Vec::new(),
            lanes: Vec::new(),
            joining,
            is_complete: false,
            blocks: VecDeque::new(),
            left: size,
        }
    }

    fn ask(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while !self.is_complete {
            match self.joining.poll_recv(cx) {
                Poll::Ready(Some(lane)) => {
                    let number = lane.number();
                    self.lines.extend_from_slice(format!("{number} open\n").as_bytes());
                    self.lanes.push((number, lane.stream));
                }
                Poll::Ready(None) => self.is_complete = true,
                Poll::Pending => break,
            }
        }
        if self.is_complete && self.lanes.is_empty() {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "no lane could be opened"));
        }
        while self.left > 0 {
            let asked = |lane| self.blocks.iter().filter(|(of, _)| *of == lane).count();
            let next = (0..self.lanes.len()).map(|lane| (asked(lane), lane)).min();
            let Some((asked, lane)) = next else { break };
            if asked >= AHEAD {
                break;
            }
            let size = usize::try_from(self.left).map_or(BLOCK, |left| left.min(BLOCK));
            self.left -= size as u64;
            self.blocks.push_back((lane, size));
            let number = self.lanes[lane].0;
            self.lines.extend_from_slice(format!("{number} {size}\n").as_bytes());
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
        let Some((lane, left)) = this.blocks.front_mut() else {
            // Everything was read, or no lane has joined yet.
            return if this.left == 0 { Poll::Ready(Ok(())) } else { Poll::Pending };
        };
        let limit = buffer.remaining().min(*left);
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(limit));
        ready!(Pin::new(&mut this.lanes[*lane].1).poll_read(cx, &mut part))?;
        let got = part.filled().len();
        if got == 0 && limit > 0 {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        buffer.advance(got);
        *left -= got;
        if *left == 0 {
            this.blocks.pop_front();
            // What is asked for now is here when its turn comes.
            this.ask(cx)?;
        }
        Poll::Ready(Ok(()))
    }
}
