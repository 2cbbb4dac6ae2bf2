//! Carries one NAR from one asynchronous stream to another.
//!
//! Owns finding the archive's end: the worker protocol sends it with no length, so what follows must stay in the source.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt};

use super::{Digester, NarDigest, NarError, NarParser};

/// Why a NAR was not copied; the source has lost its place in every case.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The source failed.
    #[error("read the archive")]
    Source(#[source] io::Error),
    /// The sink failed.
    #[error("pass the archive on")]
    Sink(#[source] io::Error),
    /// The bytes are no archive, or the source ended early.
    #[error("the archive is not valid")]
    Nar(#[from] NarError),
}

impl CopyError {
    /// Whether the archive ended where a length was to come, and this stood there. The source is then right behind it.
    pub(crate) fn ended_by_length(&self, wanted: u64) -> bool {
        matches!(self, Self::Nar(NarError::TooLong { len, .. }) if *len == wanted)
    }
}

/// Copies exactly one archive, validates it on the way, flushes the sink, and says what it was.
///
/// What was passed on before an error is not an archive and must be thrown away.
pub async fn copy(
    source: &mut (impl AsyncBufRead + Unpin),
    sink: &mut (impl AsyncWrite + Unpin),
) -> Result<NarDigest, CopyError> {
    let mut parser = NarParser::new();
    let mut digester = Digester::default();
    while !parser.is_done() {
        let bytes = source.fill_buf().await.map_err(CopyError::Source)?;
        if bytes.is_empty() {
            parser.finish()?;
        }
        let begin = parser.offset();
        let taken = match parser.feed(bytes) {
            Ok(taken) => taken,
            Err(error) => {
                // What follows the first wrong bytes may explain them: see `ended_by_length`.
                let taken = parser.offset() - begin;
                source.consume(usize::try_from(taken).unwrap_or(0));
                return Err(error.into());
            }
        };
        let bytes = &bytes[..taken];
        digester.update(bytes);
        sink.write_all(bytes).await.map_err(CopyError::Sink)?;
        source.consume(taken);
    }
    sink.flush().await.map_err(CopyError::Sink)?;
    Ok(digester.finish())
}
