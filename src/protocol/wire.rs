//! The primitives all of Nix's binary protocols are made of: 64-bit integers, padded strings, lists.
//!
//! Owns their bytes and the bounds on them. Every length of a peer is checked against the bound of the place it stands
//! at and against the budget of the whole message, and memory grows only with bytes that really arrived. What the values
//! mean is the business of the protocol that reads them.

use std::collections::BTreeSet;
use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

use crate::model::{OutputName, StorePath, StorePathError};

/// Bound for a store path, a name, a signature or anything else that is one word.
pub const MAX_WORD: u64 = 64 << 10;
/// Bound for texts without a natural size: a log line, the value of an environment variable.
pub const MAX_TEXT: u64 = 64 << 20;
/// Bound for the number of items in a list.
pub const MAX_ITEMS: u64 = 1 << 20;
/// Bound for the number of outputs a derivation has.
pub const MAX_OUTPUTS: u64 = 1 << 16;
/// Bound for all strings of one message together.
pub const MAX_MESSAGE: u64 = 128 << 20;
/// What a list item costs besides its bytes, so that a million empty strings are not free.
const ITEM_COST: u64 = 32;

/// Why a value cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The peer closed in the middle.
    #[error("the stream ends inside {0}")]
    Truncated(&'static str),
    /// The stream failed.
    #[error("read {what}")]
    Io {
        /// The field.
        what: &'static str,
        /// What the stream said.
        #[source]
        source: io::Error,
    },
    /// A length or a count is past its bound.
    #[error("{what} has length {len}, more than {max}")]
    TooLong {
        /// The field.
        what: &'static str,
        /// What the peer announced.
        len: u64,
        /// What the place allows.
        max: u64,
    },
    /// The bytes that fill a string up to a multiple of eight are not zero.
    #[error("{0} is padded with something other than zeros")]
    BadPadding(&'static str),
    /// The value does not exist in the protocol.
    #[error("{what} cannot be `{value}`")]
    Invalid {
        /// The field.
        what: &'static str,
        /// What the peer sent, shortened.
        value: String,
    },
    /// A text that should be a store path is not.
    #[error("{what} is not a store path")]
    BadPath {
        /// The field.
        what: &'static str,
        /// Which rule it breaks.
        #[source]
        source: StorePathError,
    },
}

impl WireError {
    /// An [`Invalid`](Self::Invalid) that shows at most the beginning of the value.
    pub(crate) fn invalid(what: &'static str, value: impl AsRef<[u8]>) -> Self {
        const MAX_SHOWN: usize = 200;
        let bytes = value.as_ref();
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_SHOWN)]).into_owned();
        Self::Invalid { what, value: shown }
    }

    pub(crate) fn from_io(what: &'static str, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            Self::Truncated(what)
        } else {
            Self::Io { what, source }
        }
    }
}

/// Reads values from a buffered stream.
///
/// No method is cancel-safe: a reader whose method was dropped half-way has lost its place.
#[derive(Debug)]
pub struct WireReader<R> {
    inner: R,
    budget: u64,
}

impl<R: AsyncBufRead + Unpin> WireReader<R> {
    /// A reader with the budget of one message.
    pub fn new(inner: R) -> Self {
        Self { inner, budget: MAX_MESSAGE }
    }

    /// Starts a message: what it may cost is full again.
    pub fn begin_message(&mut self) {
        self.budget = MAX_MESSAGE;
    }

    /// The stream itself, to look at.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }

    /// The stream itself, for bodies that are not made of wire values.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// The stream itself.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// Whether the peer closed exactly here. Waits for a byte or the end; cancel-safe.
    pub async fn at_end(&mut self, what: &'static str) -> Result<bool, WireError> {
        match self.inner.fill_buf().await {
            Ok(buffer) => Ok(buffer.is_empty()),
            Err(source) => Err(WireError::Io { what, source }),
        }
    }

    /// An integer.
    pub async fn u64(&mut self, what: &'static str) -> Result<u64, WireError> {
        self.inner.read_u64_le().await.map_err(|source| WireError::from_io(what, source))
    }

    /// A truth value: 0 or 1.
    pub async fn bool(&mut self, what: &'static str) -> Result<bool, WireError> {
        match self.u64(what).await? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(WireError::invalid(what, other.to_string())),
        }
    }

    /// The length of a list.
    pub async fn count(&mut self, what: &'static str, max: u64) -> Result<u64, WireError> {
        let len = self.u64(what).await?;
        if len > max { Err(WireError::TooLong { what, len, max }) } else { Ok(len) }
    }

    /// A string of bytes.
    pub async fn bytes(&mut self, what: &'static str, max: u64) -> Result<Vec<u8>, WireError> {
        let len = self.u64(what).await?;
        let affordable = self.budget.saturating_sub(ITEM_COST);
        let max = max.min(affordable);
        if len > max || self.budget < ITEM_COST {
            return Err(WireError::TooLong { what, len, max });
        }
        self.budget -= len + ITEM_COST;
        let mut bytes = Vec::new();
        (&mut self.inner)
            .take(len)
            .read_to_end(&mut bytes)
            .await
            .map_err(|source| WireError::from_io(what, source))?;
        if (bytes.len() as u64) < len {
            return Err(WireError::Truncated(what));
        }
        self.padding(what, len).await?;
        Ok(bytes)
    }

    /// A string that must be UTF-8.
    pub async fn string(&mut self, what: &'static str, max: u64) -> Result<String, WireError> {
        let bytes = self.bytes(what, max).await?;
        String::from_utf8(bytes).map_err(|error| WireError::invalid(what, error.as_bytes()))
    }

    /// A text for people: what is not UTF-8 in it is replaced.
    pub async fn text(&mut self, what: &'static str, max: u64) -> Result<String, WireError> {
        let bytes = self.bytes(what, max).await?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into()))
    }

    /// A full store path.
    pub async fn store_path(&mut self, what: &'static str) -> Result<StorePath, WireError> {
        let text = self.string(what, MAX_WORD).await?;
        StorePath::parse(&text).map_err(|source| WireError::BadPath { what, source })
    }

    /// A full store path, or nothing: the empty string.
    pub async fn optional_path(&mut self, what: &'static str) -> Result<Option<StorePath>, WireError> {
        let text = self.string(what, MAX_WORD).await?;
        if text.is_empty() {
            return Ok(None);
        }
        StorePath::parse(&text).map(Some).map_err(|source| WireError::BadPath { what, source })
    }

    /// A set of store paths.
    pub async fn store_paths(&mut self, what: &'static str) -> Result<BTreeSet<StorePath>, WireError> {
        let count = self.count(what, MAX_ITEMS).await?;
        let mut paths = BTreeSet::new();
        for _ in 0..count {
            paths.insert(self.store_path(what).await?);
        }
        Ok(paths)
    }

    /// The name of an output.
    pub async fn output_name(&mut self, what: &'static str) -> Result<OutputName, WireError> {
        let text = self.string(what, MAX_WORD).await?;
        OutputName::parse(&text).map_err(|_| WireError::invalid(what, &text))
    }

    /// A list of words.
    pub async fn strings(&mut self, what: &'static str) -> Result<Vec<String>, WireError> {
        let count = self.count(what, MAX_ITEMS).await?;
        let mut strings = Vec::new();
        for _ in 0..count {
            strings.push(self.string(what, MAX_WORD).await?);
        }
        Ok(strings)
    }

    async fn padding(&mut self, what: &'static str, len: u64) -> Result<(), WireError> {
        let mut padding = [0; 8];
        let padding = &mut padding[..padding_len(len)];
        self.inner.read_exact(padding).await.map_err(|source| WireError::from_io(what, source))?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(WireError::BadPadding(what));
        }
        Ok(())
    }
}

/// Collects values as bytes, to be sent in one go.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct WireWriter(Vec<u8>);

impl WireWriter {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What was put so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// What was put.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// How many bytes were put.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was put.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets everything, keeps the memory unless it is large.
    pub fn clear(&mut self) {
        const MAX_KEPT: usize = 64 << 10;
        self.0.clear();
        self.0.shrink_to(MAX_KEPT);
    }

    /// An integer.
    pub fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// A truth value.
    pub fn bool(&mut self, value: bool) {
        self.u64(u64::from(value));
    }

    /// A string.
    pub fn bytes(&mut self, value: impl AsRef<[u8]>) {
        let value = value.as_ref();
        self.u64(value.len() as u64);
        self.0.extend_from_slice(value);
        self.0.extend_from_slice(&[0; 8][..padding_len(value.len() as u64)]);
    }

    /// A full store path.
    pub fn path(&mut self, path: &StorePath) {
        self.bytes(path.to_string());
    }

    /// A full store path or the empty string.
    pub fn optional_path(&mut self, path: Option<&StorePath>) {
        match path {
            Some(path) => self.path(path),
            None => self.bytes(""),
        }
    }

    /// A list or set of store paths.
    pub fn paths<'a>(&mut self, paths: impl IntoIterator<Item = &'a StorePath, IntoIter: ExactSizeIterator>) {
        let paths = paths.into_iter();
        self.u64(paths.len() as u64);
        for path in paths {
            self.path(path);
        }
    }

    /// A list or set of strings.
    pub fn strings<T: AsRef<[u8]>>(
        &mut self,
        strings: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
    ) {
        let strings = strings.into_iter();
        self.u64(strings.len() as u64);
        for string in strings {
            self.bytes(string);
        }
    }
}

/// How many zeros follow a string of this length.
pub(crate) fn padding_len(len: u64) -> usize {
    (len.wrapping_neg() % 8) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::testing::run;

    fn read<T>(bytes: &[u8], read: impl AsyncFnOnce(&mut WireReader<&[u8]>) -> T) -> T {
        run(async { read(&mut WireReader::new(bytes)).await })
    }

    fn string_of(len: u64, rest: &[u8]) -> Vec<u8> {
        [&len.to_le_bytes(), rest].concat()
    }

    #[test]
    fn strings_of_every_length_are_padded_to_eight() {
        for len in 0..20 {
            let value = vec![b'x'; len];
            let mut out = WireWriter::new();
            out.bytes(&value);
            assert_eq!(out.len() % 8, 0);
            let bytes = out.as_bytes();
            assert_eq!(read(bytes, async |reader| reader.bytes("it", 100).await).unwrap(), value);
            for end in 0..bytes.len() {
                let cut = read(&bytes[..end], async |reader| reader.bytes("it", 100).await);
                assert!(matches!(cut, Err(WireError::Truncated("it"))), "{len} cut at {end}");
            }
            for padding in 8 + len..bytes.len() {
                let mut bent = bytes.to_vec();
                bent[padding] = 1;
                let bent = read(&bent, async |reader| reader.bytes("it", 100).await);
                assert!(matches!(bent, Err(WireError::BadPadding("it"))));
            }
        }
    }

    #[test]
    fn the_bound_of_the_place_decides() {
        let bytes = string_of(9, b"123456789\0\0\0\0\0\0\0");
        assert!(read(&bytes, async |reader| reader.bytes("it", 9).await).is_ok());
        let refused = read(&bytes, async |reader| reader.bytes("it", 8).await);
        assert!(matches!(refused, Err(WireError::TooLong { what: "it", len: 9, max: 8 })));
        let refused = read(&bytes, async |reader| reader.count("it", 8).await);
        assert!(matches!(refused, Err(WireError::TooLong { .. })));
    }

    #[test]
    fn a_message_as_a_whole_is_bounded_too() {
        // Empty strings cost something, and the next message has its own budget.
        let bytes = vec![0; 64 << 20];
        let taken = read(&bytes, async |reader| {
            let mut taken = 0_u64;
            reader.budget = 1000;
            while reader.string("it", 0).await.is_ok() {
                taken += 1;
            }
            reader.begin_message();
            assert_eq!(reader.budget, MAX_MESSAGE);
            taken
        });
        assert_eq!(taken, 1000 / ITEM_COST);
    }

    #[test]
    fn values_that_do_not_exist_are_refused() {
        let two = 2_u64.to_le_bytes();
        assert!(matches!(read(&two, async |reader| reader.bool("it").await), Err(WireError::Invalid { .. })));
        let latin1 = string_of(1, b"\xe9\0\0\0\0\0\0\0");
        let refused = read(&latin1, async |reader| reader.string("it", 9).await);
        assert!(matches!(refused, Err(WireError::Invalid { .. })));
        assert_eq!(read(&latin1, async |reader| reader.text("it", 9).await).unwrap(), "\u{fffd}");
        let nothing = string_of(0, b"");
        let refused = read(&nothing, async |reader| reader.store_path("it").await);
        assert!(matches!(refused, Err(WireError::BadPath { .. })));
        assert_eq!(read(&nothing, async |reader| reader.optional_path("it").await).unwrap(), None);
    }

    #[test]
    fn an_error_shows_the_beginning_of_a_long_value() {
        let error = WireError::invalid("it", vec![0xff; 100_000]);
        assert!(error.to_string().len() < 1000);
    }
}
