//! The client's uploads: a request whose body is a stream of frames, sent while the server may already object.
//!
//! Owns the rule that keeps the connection usable: whatever goes wrong, here or there, the frame being sent is finished
//! and the empty last frame follows, since the server reads up to it in every case.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::Poll;

use futures_util::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::error::ProtocolError;
use super::log::RemoteError;
use super::types::{PathInfo, Repair, Signatures};
use super::{BoxedWriter, op};
use crate::protocol::wire::WireWriter;

/// The length that goes before each frame's bytes.
const HEADER: usize = 8;
/// A full frame. Servers read frames piecemeal, so only our own memory matters.
const MAX_FRAME: usize = HEADER + (64 << 10);

type Replies<'a> = Pin<Box<dyn Future<Output = Result<Result<(), RemoteError>, ProtocolError>> + Send + 'a>>;

/// How an upload ended.
pub(super) struct Answer {
    pub(super) result: Result<(), ProtocolError>,
    /// Whether both sides agree that it did.
    pub(super) is_in_step: bool,
}

/// An upload under way.
pub(super) struct Upload<'a> {
    writer: &'a mut BoxedWriter,
    replies: Replies<'a>,
    /// What the server said, once it has.
    answered: Option<Result<Result<(), RemoteError>, ProtocolError>>,
    /// What goes out next: the request before the first frame, then the frame that is being filled.
    pending: Vec<u8>,
    /// Where in it the frame begins, with room for its length.
    frame: usize,
    /// The first thing that went wrong on our side.
    failure: Option<ProtocolError>,
    /// Whether all that was announced is in the frames.
    is_complete: bool,
}

pub(super) fn write_add_multiple_to_store(out: &mut WireWriter, repair: Repair, signatures: Signatures) {
    out.u64(op::ADD_MULTIPLE_TO_STORE);
    out.bool(repair == Repair::Yes);
    out.bool(signatures == Signatures::DontCheck);
}

pub(super) fn write_add_to_store_nar(
    out: &mut WireWriter,
    info: &PathInfo,
    repair: Repair,
    signatures: Signatures,
) {
    out.u64(op::ADD_TO_STORE_NAR);
    info.write(out);
    out.bool(repair == Repair::Yes);
    out.bool(signatures == Signatures::DontCheck);
}

impl<'a> Upload<'a> {
    pub(super) fn new(writer: &'a mut BoxedWriter, replies: Replies<'a>, request: &WireWriter) -> Self {
        let frame = request.len();
        let mut pending = Vec::with_capacity(frame + MAX_FRAME);
        pending.extend_from_slice(request.as_bytes());
        pending.extend_from_slice(&[0; HEADER]);
        Self { writer, replies, answered: None, pending, frame, failure: None, is_complete: false }
    }

    /// Sends the count and the entries.
    pub(super) async fn entries<A>(
        &mut self,
        announced: u64,
        entries: impl Stream<Item = io::Result<(PathInfo, A)>>,
    ) where
        A: AsyncRead + Send + Unpin,
    {
        let mut entries = pin!(entries);
        let mut got = 0;
        self.values(|out| out.u64(announced)).await;
        while self.is_wanted() {
            self.is_complete = got == announced;
            match self.unless_answered(entries.next()).await {
                Some(Some(Ok(_))) if self.is_complete => {
                    self.failure = Some(ProtocolError::WrongCount { got: got + 1, announced });
                }
                Some(Some(Ok((info, archive)))) => {
                    self.values(|out| info.write(out)).await;
                    self.archive(&info, archive).await;
                    got += 1;
                }
                Some(Some(Err(error))) => self.failure = Some(ProtocolError::Source(error)),
                Some(None) if !self.is_complete => {
                    self.failure = Some(ProtocolError::WrongCount { got, announced });
                }
                Some(None) | None => return,
            }
        }
    }

    /// Sends the count and the entries; each archive is frames of at most `most` bytes, of which only the heads are sent.
    pub(super) async fn entries_from_elsewhere(
        &mut self,
        infos: &[PathInfo],
        most: u64,
        due: &mut (impl FnMut(u64) + Send),
    ) {
        self.values(|out| out.u64(infos.len() as u64)).await;
        for info in infos {
            self.values(|out| info.write(out)).await;
            if !self.is_wanted() {
                return;
            }
            self.send_frame().await;
            let mut left = info.nar_size;
            while left > 0 && self.is_wanted() {
                let len = left.min(most.max(1));
                self.send_head(len).await;
                due(len);
                left -= len;
            }
        }
        self.is_complete = self.is_wanted();
    }

    /// Sends the only archive.
    pub(super) async fn only_archive(&mut self, info: &PathInfo, archive: impl AsyncRead + Send + Unpin) {
        self.archive(info, archive).await;
        self.is_complete = self.is_wanted();
    }

    /// Sends one archive of exactly the announced size.
    async fn archive(&mut self, info: &PathInfo, archive: impl AsyncRead + Send + Unpin) {
        let mut rest = archive.take(info.nar_size);
        while rest.limit() > 0 && self.is_wanted() {
            let room = self.room();
            if room == 0 {
                self.send_frame().await;
                continue;
            }
            let mut pending = std::mem::take(&mut self.pending);
            let read = self.unless_answered(read_some(&mut rest, &mut pending, room)).await;
            self.pending = pending;
            match read {
                Some(Ok(0)) => {
                    self.failure = Some(ProtocolError::ShortArchive {
                        path: info.path.to_string(),
                        got: info.nar_size - rest.limit(),
                        announced: info.nar_size,
                    });
                }
                Some(Err(error)) => self.failure = Some(ProtocolError::Source(error)),
                Some(Ok(_)) | None => {}
            }
        }
    }

    /// Ends the body and hears what the server says.
    pub(super) async fn finish(mut self) -> Answer {
        if !self.is_wanted() {
            // The server throws away what it gets from here on.
            self.pending.truncate(self.frame + HEADER);
        }
        if self.room() < MAX_FRAME - HEADER {
            self.send_frame().await;
        }
        self.send_frame().await;
        if self.answered.is_none() && !self.cannot_write() {
            self.answered = Some(self.replies.as_mut().await);
        }
        let cannot_write = self.cannot_write();
        let in_step = |result| Answer { result, is_in_step: true };
        let lost = |error| Answer { result: Err(error), is_in_step: false };
        match (self.failure, self.answered) {
            // What the server said explains more than that it then stopped reading.
            (_, Some(Ok(Err(error)))) if cannot_write => lost(error.into()),
            (Some(failure), _) if cannot_write => lost(failure),
            // The server's complaint is only about what we did not send.
            (Some(failure), Some(Ok(_))) => in_step(Err(failure)),
            (Some(failure), Some(Err(_)) | None) => lost(failure),
            (None, Some(Ok(Ok(())))) if !self.is_complete => lost(ProtocolError::EarlyReply),
            (None, Some(Ok(answer))) => in_step(answer.map_err(ProtocolError::from)),
            (None, Some(Err(error))) => lost(error),
            (None, None) => lost(ProtocolError::Unclean),
        }
    }

    /// Whether more of the body makes sense.
    fn is_wanted(&self) -> bool {
        self.failure.is_none() && self.answered.is_none()
    }

    fn cannot_write(&self) -> bool {
        matches!(self.failure, Some(ProtocolError::Write(_)))
    }

    /// How much still goes into the frame.
    fn room(&self) -> usize {
        (self.frame + MAX_FRAME).saturating_sub(self.pending.len())
    }

    /// Puts values into the body.
    async fn values(&mut self, write: impl FnOnce(&mut WireWriter)) {
        let mut out = WireWriter::new();
        write(&mut out);
        let mut rest = out.as_bytes();
        while !rest.is_empty() && self.is_wanted() {
            let taken = rest.len().min(self.room());
            self.pending.extend_from_slice(&rest[..taken]);
            rest = &rest[taken..];
            if !rest.is_empty() {
                self.send_frame().await;
            }
        }
    }

    /// Sends the frame and begins the next. An empty frame is the end of the body.
    async fn send_frame(&mut self) {
        self.send_head((self.pending.len() - self.frame - HEADER) as u64).await;
    }

    /// Sends the head of a frame of this length, and what there is of it, and begins the next.
    async fn send_head(&mut self, len: u64) {
        let body = self.frame + HEADER;
        self.pending[self.frame..body].copy_from_slice(&len.to_le_bytes());
        let Self { writer, replies, answered, pending, .. } = self;
        let sending = async {
            writer.write_all(pending).await?;
            if len == 0 { writer.flush().await } else { Ok(()) }
        };
        let sent = with_replies(sending, replies, answered).await;
        self.frame = 0;
        self.pending.clear();
        self.pending.resize(HEADER, 0);
        if let Err(error) = sent {
            self.failure.get_or_insert(ProtocolError::Write(error));
        }
    }

    /// Awaits something of ours; `None` if the server answers first.
    async fn unless_answered<T>(&mut self, ours: impl Future<Output = T>) -> Option<T> {
        let mut ours = pin!(ours);
        poll_fn(|cx| {
            if self.answered.is_none()
                && let Poll::Ready(answer) = self.replies.as_mut().poll(cx)
            {
                self.answered = Some(answer);
            }
            if self.answered.is_some() { Poll::Ready(None) } else { ours.as_mut().poll(cx).map(Some) }
        })
        .await
    }
}

async fn read_some(
    source: &mut (impl AsyncRead + Unpin),
    frame: &mut Vec<u8>,
    room: usize,
) -> io::Result<usize> {
    source.take(room as u64).read_buf(frame).await
}

/// Awaits something that must not be left half-done, and hears the server meanwhile.
async fn with_replies<T>(
    ours: impl Future<Output = T>,
    replies: &mut Replies<'_>,
    answered: &mut Option<Result<Result<(), RemoteError>, ProtocolError>>,
) -> T {
    let mut ours = pin!(ours);
    poll_fn(|cx| {
        if answered.is_none()
            && let Poll::Ready(answer) = replies.as_mut().poll(cx)
        {
            *answered = Some(answer);
        }
        ours.as_mut().poll(cx)
    })
    .await
}
