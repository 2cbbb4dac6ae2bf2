//! The server of the worker protocol.
//!
//! Owns one connection of a client: the handshake, what it asks, and the bytes of what it is told. What is told is the
//! endpoint's business. For each request exactly one reply: any number of log frames, then one `reply_*`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};

use super::error::ProtocolError;
use super::framed::{Entries, FrameState, FramedReader};
use super::log::{self, LogEvent, RemoteError};
use super::request::Request;
use super::types::{BuildResult, Missing, PathInfo, Trust};
use super::version::Version;
use super::{BoxedReader, BoxedWriter, CLIENT_MAGIC, READ_BUFFER, SERVER_MAGIC};
use crate::model::{OutputName, StorePath};
use crate::protocol::nar::{self, NarDigest};
use crate::protocol::wire::{MAX_WORD, WireError, WireReader, WireWriter};

const MAX_FEATURES: u64 = 1 << 10;

/// What the server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerHello {
    /// Shown by `nix store info`.
    pub daemon_version: String,
    /// What stock clients go by when they decide how to ask for a build: only with
    /// [`Trusted`](Trust::Trusted) do they send `BuildDerivation` for everything.
    pub trust: Trust,
}

/// One client's connection.
pub struct Server {
    reader: WireReader<BoxedReader>,
    writer: BoxedWriter,
    out: WireWriter,
    version: Version,
    /// The body of the current request, as far as it has been read.
    body: Option<FrameState>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The next bytes are a request.
    Idle,
    /// A request waits for its reply.
    Asked,
    /// A request whose arguments are still in the stream waits for its reply.
    AskedInVain,
    /// Something was left half-done: no byte means anything any more.
    Lost,
}

impl Server {
    /// Shakes hands with a client.
    pub async fn accept(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
        hello: ServerHello,
    ) -> Result<Self, ProtocolError> {
        let mut server = Self {
            reader: WireReader::new(BufReader::with_capacity(READ_BUFFER, Box::new(reader))),
            writer: Box::new(writer),
            out: WireWriter::new(),
            version: Version::MAX,
            body: None,
            state: State::Lost,
        };
        server.shake_hands(&hello).await?;
        server.state = State::Idle;
        Ok(server)
    }

    async fn shake_hands(&mut self, hello: &ServerHello) -> Result<(), ProtocolError> {
        self.reader.begin_message();
        let magic = self.reader.u64("magic number of the client").await?;
        if magic != CLIENT_MAGIC {
            return Err(ProtocolError::WrongMagic(magic));
        }
        self.out.u64(SERVER_MAGIC);
        self.out.u64(Version::MAX.to_wire());
        self.send().await?;
        let theirs = self.reader.u64("version of the client").await?;
        let unsupported = ProtocolError::UnsupportedVersion(theirs);
        self.version = Version::from_wire(theirs).ok_or(unsupported)?.min(Version::MAX);
        if self.version < Version::MIN {
            return Err(ProtocolError::UnsupportedVersion(theirs));
        }
        if self.version.has_features() {
            for _ in 0..self.reader.count("number of features", MAX_FEATURES).await? {
                self.reader.bytes("feature", MAX_WORD).await?;
            }
            self.out.u64(0);
            self.send().await?;
        }
        if self.reader.u64("obsolete processor affinity").await? != 0 {
            self.reader.u64("obsolete processor").await?;
        }
        self.reader.u64("obsolete reserved space").await?;
        if self.version.tells_daemon_version() {
            self.out.bytes(&hello.daemon_version);
        }
        if self.version.tells_trust() {
            hello.trust.write(&mut self.out);
        }
        log::write_last(&mut self.out);
        self.send().await
    }

    /// What both sides speak.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The next request; `None` once the client has closed, or after an operation that could not be read.
    ///
    /// Not cancel-safe. What is left of the last request's body is skipped first.
    pub async fn next_request(&mut self) -> Result<Option<Request>, ProtocolError> {
        if self.state != State::Idle {
            return if self.state == State::AskedInVain { Ok(None) } else { Err(ProtocolError::Unclean) };
        }
        self.state = State::Lost;
        self.drain_body().await?;
        if self.reader.at_end("operation").await? {
            return Ok(None);
        }
        let request = Request::read(&mut self.reader).await?;
        self.body = request.has_body().then(FrameState::default);
        let is_known = !matches!(request, Request::Unsupported(_));
        self.state = if is_known { State::Asked } else { State::AskedInVain };
        Ok(Some(request))
    }

    /// Resolves when the client has closed its side; stays pending when it sends something instead. Cancel-safe; only
    /// between reading a request with its body and replying.
    pub async fn client_closed(&mut self) {
        match self.reader.get_mut().fill_buf().await {
            Ok(bytes) if !bytes.is_empty() => std::future::pending().await,
            Ok(_) | Err(_) => {}
        }
    }

    /// The body of the current request, from where the last reader stopped. Empty if it has none.
    pub fn body(&mut self) -> FramedReader<'_> {
        let state = self.body.get_or_insert_with(FrameState::ended);
        FramedReader::new(self.reader.get_mut(), state)
    }

    /// The paths in the body of an `AddMultipleToStore`.
    pub async fn entries(&mut self) -> Result<Entries<'_>, ProtocolError> {
        Ok(Entries::begin(self.body()).await?)
    }

    /// Sends a log frame of the current request.
    pub async fn send_log(&mut self, event: &LogEvent) -> Result<(), ProtocolError> {
        self.require_asked()?;
        let asked = std::mem::replace(&mut self.state, State::Lost);
        event.write(&mut self.out);
        self.send().await?;
        self.state = asked;
        Ok(())
    }

    /// Says that the request failed. An unsupported operation must be answered with this.
    pub async fn reply_error(&mut self, error: &RemoteError) -> Result<(), ProtocolError> {
        self.require_asked()?;
        let asked = std::mem::replace(&mut self.state, State::Lost);
        error.write(&mut self.out);
        self.send().await?;
        self.state = if asked == State::AskedInVain { State::AskedInVain } else { State::Idle };
        Ok(())
    }

    /// Replies to `SetOptions`, `AddMultipleToStore` or `AddToStoreNar`.
    pub async fn reply_done(&mut self) -> Result<(), ProtocolError> {
        self.reply(|_, _| {}).await
    }

    /// Replies to `AddTempRoot`, `EnsurePath`, `BuildPaths` or `AddBuildLog`.
    pub async fn reply_one(&mut self) -> Result<(), ProtocolError> {
        self.reply(|out, _| out.u64(1)).await
    }

    /// Replies to `IsValidPath`.
    pub async fn reply_bool(&mut self, value: bool) -> Result<(), ProtocolError> {
        self.reply(|out, _| out.bool(value)).await
    }

    /// Replies to `QueryValidPaths`.
    pub async fn reply_valid_paths(&mut self, paths: &BTreeSet<StorePath>) -> Result<(), ProtocolError> {
        self.reply(|out, _| out.paths(paths)).await
    }

    /// Replies to `QueryPathInfo`.
    pub async fn reply_path_info(&mut self, info: Option<&PathInfo>) -> Result<(), ProtocolError> {
        self.reply(|out, _| {
            out.bool(info.is_some());
            if let Some(info) = info {
                info.write_unkeyed(out);
            }
        })
        .await
    }

    /// Replies to `BuildDerivation`.
    pub async fn reply_build_result(&mut self, result: &BuildResult) -> Result<(), ProtocolError> {
        self.reply(|out, version| result.write(out, version)).await
    }

    /// Replies to `BuildPathsWithResults`, with each target as it was asked for.
    pub async fn reply_build_results(
        &mut self,
        results: &[(String, BuildResult)],
    ) -> Result<(), ProtocolError> {
        self.reply(|out, version| {
            out.u64(results.len() as u64);
            for (target, result) in results {
                out.bytes(target);
                result.write(out, version);
            }
        })
        .await
    }

    /// Replies to `QueryDerivationOutputMap`; an output whose path is not known has none.
    pub async fn reply_output_map(
        &mut self,
        outputs: &BTreeMap<OutputName, Option<StorePath>>,
    ) -> Result<(), ProtocolError> {
        self.reply(|out, _| {
            out.u64(outputs.len() as u64);
            for (name, path) in outputs {
                out.bytes(name.as_str());
                out.optional_path(path.as_ref());
            }
        })
        .await
    }

    /// Replies to `QueryMissing`.
    pub async fn reply_missing(&mut self, missing: &Missing) -> Result<(), ProtocolError> {
        self.reply(|out, _| missing.write(out)).await
    }

    /// Replies to `QueryRealisation`: one realisation or none.
    pub async fn reply_realisation(&mut self, realisation: Option<&str>) -> Result<(), ProtocolError> {
        self.reply(|out, _| out.strings(realisation.into_iter().collect::<Vec<_>>())).await
    }

    /// Replies to `NarFromPath` with exactly one archive, validated on the way. If it cannot be had to its end, the
    /// connection is over: the client can only be told by closing it.
    pub async fn reply_nar(
        &mut self,
        archive: &mut (impl AsyncBufRead + Send + Unpin),
    ) -> Result<NarDigest, ProtocolError> {
        self.begin_reply().await?;
        self.send().await?;
        let digest = nar::copy(archive, &mut self.writer).await?;
        self.state = State::Idle;
        Ok(digest)
    }

    /// For tests of what no server should say.
    #[cfg(test)]
    pub(crate) fn raw_writer(&mut self) -> &mut BoxedWriter {
        &mut self.writer
    }

    async fn reply(&mut self, write: impl FnOnce(&mut WireWriter, Version)) -> Result<(), ProtocolError> {
        self.begin_reply().await?;
        write(&mut self.out, self.version);
        self.send().await?;
        self.state = State::Idle;
        Ok(())
    }

    /// Success is said only after all of the body was read.
    async fn begin_reply(&mut self) -> Result<(), ProtocolError> {
        if self.state != State::Asked {
            return Err(ProtocolError::OutOfOrder);
        }
        self.state = State::Lost;
        self.drain_body().await?;
        log::write_last(&mut self.out);
        Ok(())
    }

    async fn drain_body(&mut self) -> Result<(), ProtocolError> {
        const WHAT: &str = "body of a request";
        let drained = self.body().drain().await;
        self.body = None;
        drained.map_err(|source| WireError::from_io(WHAT, source))?;
        Ok(())
    }

    fn require_asked(&self) -> Result<(), ProtocolError> {
        match self.state {
            State::Asked | State::AskedInVain => Ok(()),
            State::Idle => Err(ProtocolError::OutOfOrder),
            State::Lost => Err(ProtocolError::Unclean),
        }
    }

    async fn send(&mut self) -> Result<(), ProtocolError> {
        self.writer.write_all(self.out.as_bytes()).await.map_err(ProtocolError::Write)?;
        self.writer.flush().await.map_err(ProtocolError::Write)?;
        self.out.clear();
        Ok(())
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("version", &self.version)
            .field("body", &self.body)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
