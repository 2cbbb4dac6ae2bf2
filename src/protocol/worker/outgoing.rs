//! The client's half of the stream towards the server.
//!
//! Owns sending while a reply is read: neither side may ever wait for the other to read first.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

use super::BoxedWriter;
use super::error::ProtocolError;
use crate::protocol::wire::WireWriter;

/// What is to be sent, and how much of it has been. Survives the loss of the future that sends it.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    pub(super) bytes: WireWriter,
    sent: usize,
}

impl Outgoing {
    pub(super) fn is_done(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut BoxedWriter,
    ) -> Poll<io::Result<()>> {
        while self.sent < self.bytes.len() {
            let rest = &self.bytes.as_bytes()[self.sent..];
            let sent = std::task::ready!(Pin::new(&mut *writer).poll_write(cx, rest))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += sent;
        }
        if !self.bytes.is_empty() {
            std::task::ready!(Pin::new(writer).poll_flush(cx))?;
            self.bytes.clear();
            self.sent = 0;
        }
        Poll::Ready(Ok(()))
    }
}

/// Awaits a reply and sends meanwhile. A peer that does not read any more may still have said why, so what can be read
/// goes before what cannot be written.
pub(super) async fn while_sending<T>(
    writer: &mut BoxedWriter,
    out: &mut Outgoing,
    reply: impl Future<Output = Result<T, ProtocolError>>,
) -> Result<T, ProtocolError> {
    let mut reply = pin!(reply);
    poll_fn(|cx| {
        if let Poll::Ready(result) = reply.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        match out.poll_send(cx, writer) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(ProtocolError::Write(error))),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    })
    .await
}
