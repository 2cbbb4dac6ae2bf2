//! Frames: one byte of kind, four bytes of length (little-endian), the payload.
//!
//! Blocking and asynchronous readers and writers share one form and one bound; the length of a peer is checked before
//! anything is allocated.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest payload: 100,000 input paths fit.
pub const MAX_PAYLOAD: usize = 16 << 20;

const KIND_MESSAGE: u8 = b'm';
const KIND_LOG: u8 = b'l';
const HEADER_LEN: usize = 5;

/// What has a form as a message.
pub trait Message: Serialize + DeserializeOwned {}

impl<T: Serialize + DeserializeOwned> Message for T {}

/// What travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A JSON message.
    Message(Vec<u8>),
    /// Raw bytes of build log.
    Log(Vec<u8>),
}

/// Why a frame cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed or ended inside a frame.
    #[error("read or write a frame")]
    Io(#[from] io::Error),
    /// The peer closed between two frames.
    #[error("the connection was closed")]
    Closed,
    /// The peer is not one of ours.
    #[error("frame of unknown kind {0}")]
    UnknownKind(u8),
    /// The peer is broken.
    #[error("frame of {0} bytes is longer than {MAX_PAYLOAD}")]
    TooLong(usize),
    /// The payload is not the message that was expected.
    #[error("unexpected message")]
    BadMessage(#[from] serde_json::Error),
}

impl Frame {
    /// The frame of a message.
    pub fn message(message: &impl Serialize) -> Result<Self, FrameError> {
        Ok(Self::Message(serde_json::to_vec(message)?))
    }

    /// The message of a frame that is one.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        match self {
            Self::Message(payload) => Ok(serde_json::from_slice(payload)?),
            Self::Log(_) => Err(FrameError::UnknownKind(KIND_LOG)),
        }
    }

    /// The whole frame as bytes.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let (kind, payload) = match self {
            Self::Message(payload) => (KIND_MESSAGE, payload),
            Self::Log(payload) => (KIND_LOG, payload),
        };
        let len = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= MAX_PAYLOAD);
        let Some(len) = len else { return Err(FrameError::TooLong(payload.len())) };
        let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
        bytes.push(kind);
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(payload);
        Ok(bytes)
    }

    fn from_parts(kind: u8, payload: Vec<u8>) -> Result<Self, FrameError> {
        match kind {
            KIND_MESSAGE => Ok(Self::Message(payload)),
            KIND_LOG => Ok(Self::Log(payload)),
            other => Err(FrameError::UnknownKind(other)),
        }
    }

    /// Reads one frame, blocking.
    pub fn read(stream: &mut impl Read) -> Result<Self, FrameError> {
        let mut header = [0; HEADER_LEN];
        // The first byte alone tells a close between frames from one inside a frame.
        loop {
            match stream.read(&mut header[..1]) {
                Ok(0) => return Err(FrameError::Closed),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        stream.read_exact(&mut header[1..])?;
        let len = payload_len(header)?;
        let mut payload = Vec::new();
        stream.take(len as u64).read_to_end(&mut payload)?;
        if payload.len() < len {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Self::from_parts(header[0], payload)
    }

    /// Writes one frame, blocking.
    pub fn write(&self, stream: &mut impl Write) -> Result<(), FrameError> {
        Ok(stream.write_all(&self.encode()?)?)
    }

    /// Reads one frame. Not cancel-safe: a reader that is dropped half-way has lost the stream.
    pub async fn receive(stream: &mut (impl AsyncRead + Unpin)) -> Result<Self, FrameError> {
        let mut header = [0; HEADER_LEN];
        if stream.read(&mut header[..1]).await? == 0 {
            return Err(FrameError::Closed);
        }
        stream.read_exact(&mut header[1..]).await?;
        let len = payload_len(header)?;
        let mut payload = Vec::new();
        stream.take(len as u64).read_to_end(&mut payload).await?;
        if payload.len() < len {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Self::from_parts(header[0], payload)
    }

    /// Writes one frame.
    pub async fn send(&self, stream: &mut (impl AsyncWrite + Unpin)) -> Result<(), FrameError> {
        stream.write_all(&self.encode()?).await?;
        Ok(stream.flush().await?)
    }
}

fn payload_len(header: [u8; HEADER_LEN]) -> Result<usize, FrameError> {
    let [kind, a, b, c, d] = header;
    if kind != KIND_MESSAGE && kind != KIND_LOG {
        return Err(FrameError::UnknownKind(kind));
    }
    let len = u32::from_le_bytes([a, b, c, d]) as usize;
    if len > MAX_PAYLOAD { Err(FrameError::TooLong(len)) } else { Ok(len) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_went() {
        let mut bytes = Vec::new();
        let frames =
            [Frame::Message(b"{}".to_vec()), Frame::Log(vec![0, 255, b'\n']), Frame::Log(Vec::new())];
        for frame in &frames {
            frame.write(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        for frame in &frames {
            assert_eq!(&Frame::read(&mut rest).unwrap(), frame);
        }
        assert!(matches!(Frame::read(&mut rest), Err(FrameError::Closed)));
    }

    #[test]
    fn every_truncation_is_an_error_and_none_a_close() {
        let bytes = Frame::Log(b"some log".to_vec()).encode().unwrap();
        for end in 1..bytes.len() {
            assert!(matches!(Frame::read(&mut &bytes[..end]), Err(FrameError::Io(_))), "cut at {end}");
        }
    }

    #[test]
    fn a_hostile_length_is_refused_before_anything_is_allocated() {
        assert!(matches!(Frame::read(&mut &b"l\xff\xff\xff\xff"[..]), Err(FrameError::TooLong(_))));
        assert!(matches!(Frame::read(&mut &b"GET / HTTP/1.1"[..]), Err(FrameError::UnknownKind(b'G'))));
    }
}
