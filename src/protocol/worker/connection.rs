//! The client of the worker protocol.
//!
//! Owns one connection and the knowledge whether it is still in step with the server. An operation that was dropped
//! half-way or failed in transport leaves the connection unclean for good; a failure the server reported does not.
//!
//! Requests can be sent ahead: [`send`](Connection::send) several, then [`receive`](Connection::receive) the replies in
//! the same order. While a reply is awaited, what is left to send goes out, so neither side ever waits for the other.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::io;

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};

use super::error::ProtocolError;
use super::log::{self, LogSink, RemoteError, read_frames};
use super::operation::{
    AddTempRoot, BuildDerivation, EnsurePath, IsValidPath, Operation, QueryMissing, QueryPathInfo,
    QueryValidPaths, SetOptions,
};
use super::options::ClientOptions;
use super::outgoing::{Outgoing, while_sending};
use super::types::{BuildMode, BuildResult, Missing, PathInfo, Repair, Signatures, Substitute, Trust};
use super::upload::{self, Upload};
use super::version::Version;
use super::{BoxedReader, BoxedWriter, CLIENT_MAGIC, READ_BUFFER, SERVER_MAGIC, op};
use crate::model::{DrvPath, StorePath};
use crate::protocol::derivation::BasicDerivation;
use crate::protocol::nar::{self, NarDigest};
use crate::protocol::wire::{MAX_WORD, WireReader, WireWriter};

/// What we say we speak. 1.38 differs from 1.37 only in that both sides name features and wait for each other's; we
/// have none to name, and without that exchange the whole handshake is one round trip.
const OFFERED: Version = Version::new(37);
/// How many requests of one kind may be on their way; more wait for replies. Bounds what is encoded ahead.
const MAX_IN_FLIGHT: usize = 4096;
const MAX_FEATURES: u64 = 1 << 10;

/// One connection to a `nix-daemon`.
pub struct Connection {
    reader: WireReader<BoxedReader>,
    writer: BoxedWriter,
    out: Outgoing,
    version: Version,
    daemon_version: Option<String>,
    trust: Trust,
    /// Whether every operation so far ended; not true while one is under way.
    in_step: bool,
    /// The operations whose replies have not been read.
    awaited: VecDeque<u64>,
}

impl Connection {
    /// Shakes hands.
    pub async fn open(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Self, ProtocolError> {
        Self::open_as(OFFERED, reader, writer).await
    }

    /// Shakes hands as a client that speaks nothing newer than `offered`.
    pub async fn open_as(
        offered: Version,
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Self, ProtocolError> {
        let mut connection = Self {
            reader: WireReader::new(BufReader::with_capacity(READ_BUFFER, Box::new(reader))),
            writer: Box::new(writer),
            out: Outgoing::default(),
            version: offered,
            daemon_version: None,
            trust: Trust::Unknown,
            in_step: false,
            awaited: VecDeque::new(),
        };
        connection.shake_hands(offered).await?;
        connection.end_step();
        Ok(connection)
    }

    async fn shake_hands(&mut self, offered: Version) -> Result<(), ProtocolError> {
        const OBSOLETE_CPU_AFFINITY: u64 = 0;
        const OBSOLETE_RESERVE_SPACE: u64 = 0;
        const NO_FEATURES: u64 = 0;
        self.out.bytes.u64(CLIENT_MAGIC);
        self.out.bytes.u64(offered.to_wire());
        if !offered.has_features() {
            self.out.bytes.u64(OBSOLETE_CPU_AFFINITY);
            self.out.bytes.u64(OBSOLETE_RESERVE_SPACE);
        }
        let Self { reader, writer, out, .. } = self;
        let hello = async {
            reader.begin_message();
            let magic = reader.u64("magic number of the server").await?;
            if magic != SERVER_MAGIC {
                return Err(ProtocolError::WrongMagic(magic));
            }
            Ok(reader.u64("version of the server").await?)
        };
        let theirs = while_sending(writer, out, hello).await?;
        let unsupported = ProtocolError::UnsupportedVersion(theirs);
        self.version = Version::from_wire(theirs).ok_or(unsupported)?.min(offered);
        if self.version < Version::MIN {
            return Err(ProtocolError::UnsupportedVersion(theirs));
        }
        if offered.has_features() {
            if self.version.has_features() {
                self.out.bytes.u64(NO_FEATURES);
            }
            self.out.bytes.u64(OBSOLETE_CPU_AFFINITY);
            self.out.bytes.u64(OBSOLETE_RESERVE_SPACE);
        }
        let Self { reader, writer, out, version, .. } = self;
        let rest = read_server_info(reader, *version);
        (self.daemon_version, self.trust) = while_sending(writer, out, rest).await?;
        // A server may say all of this unasked, before our part is out.
        self.send_rest().await
    }

    /// What both sides speak.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The server's Nix version, if it tells.
    pub fn daemon_version(&self) -> Option<&str> {
        self.daemon_version.as_deref()
    }

    /// Whether the server trusts us.
    pub fn trust(&self) -> Trust {
        self.trust
    }

    /// Whether the connection can be used for another operation: everything that was asked for has been answered in full,
    /// and nothing has come that was not asked for.
    pub fn is_clean(&self) -> bool {
        self.in_step && self.awaited.is_empty() && self.out.is_done() && !self.has_unasked()
    }

    // ---- Steps of an operation, for requests that are sent ahead. ----

    /// Puts a request among those to be sent; it goes out with the next [`flush`](Self::flush) or `receive`.
    pub fn send<O: Operation>(&mut self, operation: &O) -> Result<(), ProtocolError> {
        self.require_step()?;
        operation.encode(&mut self.out.bytes);
        self.awaited.push_back(O::OP);
        Ok(())
    }

    /// As [`send`](Self::send), for an archive; its reply is read with [`receive_nar`](Self::receive_nar).
    ///
    /// If the path is not valid when its turn comes, the server ends the whole connection.
    pub fn send_nar_from_path(&mut self, path: &StorePath) -> Result<(), ProtocolError> {
        self.require_step()?;
        self.out.bytes.u64(op::NAR_FROM_PATH);
        self.out.bytes.path(path);
        self.awaited.push_back(op::NAR_FROM_PATH);
        Ok(())
    }

    /// Sends what was put there.
    ///
    /// Only for requests that the server reads at once: while it works, it reads nothing. `receive` always works.
    pub async fn flush(&mut self) -> Result<(), ProtocolError> {
        self.begin_step()?;
        self.send_rest().await?;
        self.end_step();
        Ok(())
    }

    async fn send_rest(&mut self) -> Result<(), ProtocolError> {
        let Self { writer, out, .. } = self;
        poll_fn(|cx| out.poll_send(cx, writer)).await.map_err(ProtocolError::Write)
    }

    /// Reads the reply of the operation that was sent the longest ago.
    pub async fn receive<O: Operation>(
        &mut self,
        operation: &O,
        log: &mut impl LogSink,
    ) -> Result<O::Reply, ProtocolError> {
        self.begin_reply(O::OP)?;
        let Self { reader, writer, out, version, .. } = self;
        let reply = async {
            match read_frames(reader, log).await? {
                Ok(()) => Ok(Ok(operation.read_reply(reader, *version).await?)),
                Err(error) => Ok(Err(error)),
            }
        };
        let reply = while_sending(writer, out, reply).await?;
        self.end_step();
        Ok(reply?)
    }

    /// As [`receive`](Self::receive), for an archive that was asked for with
    /// [`send_nar_from_path`](Self::send_nar_from_path).
    ///
    /// An archive that is refused, here or by the sink, leaves the connection unclean.
    pub async fn receive_nar(
        &mut self,
        sink: &mut (impl AsyncWrite + Send + Unpin),
        log: &mut impl LogSink,
    ) -> Result<NarDigest, ProtocolError> {
        self.begin_reply(op::NAR_FROM_PATH)?;
        let Self { reader, writer, out, .. } = self;
        let reply = async {
            if let Err(error) = read_frames(reader, log).await? {
                return Ok(Err(error));
            }
            match nar::copy(reader.get_mut(), sink).await {
                Ok(digest) => Ok(Ok(digest)),
                // The server promises an archive before it looks for the path. If it cannot keep the promise, the error
                // stands where the archive, or the next part of it, should begin, and then it hangs up.
                Err(error) if error.ended_by_length(log::ERROR) => {
                    Err(RemoteError::read(reader).await?.into())
                }
                Err(error) => Err(error.into()),
            }
        };
        let digest = while_sending(writer, out, reply).await?;
        self.end_step();
        Ok(digest?)
    }

    // ---- Whole operations. ----

    /// Sends one request and reads its reply.
    pub async fn call<O: Operation>(
        &mut self,
        operation: &O,
        log: &mut impl LogSink,
    ) -> Result<O::Reply, ProtocolError> {
        self.require_clean()?;
        self.send(operation)?;
        self.receive(operation, log).await
    }

    /// Sends many requests without waiting for replies in between. What the server refuses is an error in its place; the
    /// others are answered all the same.
    pub async fn call_all<O: Operation>(
        &mut self,
        operations: &[O],
        log: &mut impl LogSink,
    ) -> Result<Vec<Result<O::Reply, RemoteError>>, ProtocolError> {
        self.require_clean()?;
        let mut replies = Vec::with_capacity(operations.len());
        let mut to_send = operations.iter();
        for operation in operations {
            while self.awaited.len() < MAX_IN_FLIGHT {
                let Some(next) = to_send.next() else { break };
                self.send(next)?;
            }
            replies.push(match self.receive(operation, log).await {
                Ok(reply) => Ok(reply),
                Err(ProtocolError::Remote(error)) if self.in_step => Err(error),
                Err(error) => return Err(error),
            });
        }
        Ok(replies)
    }

    /// Sets this client's options for everything that follows.
    pub async fn set_options(&mut self, options: &ClientOptions) -> Result<(), ProtocolError> {
        self.call(&SetOptions(options), &mut ()).await
    }

    /// Whether a path is valid.
    pub async fn is_valid_path(&mut self, path: &StorePath) -> Result<bool, ProtocolError> {
        self.call(&IsValidPath(path), &mut ()).await
    }

    /// Keeps a path from being collected as long as this connection lives, be it valid or not yet.
    pub async fn add_temp_root(&mut self, path: &StorePath) -> Result<(), ProtocolError> {
        self.call(&AddTempRoot(path), &mut ()).await
    }

    /// As [`add_temp_root`](Self::add_temp_root), for many paths in little more than one round trip.
    pub async fn add_temp_roots(&mut self, paths: &[StorePath]) -> Result<(), ProtocolError> {
        let operations: Vec<_> = paths.iter().map(AddTempRoot).collect();
        for reply in self.call_all(&operations, &mut ()).await? {
            reply?;
        }
        Ok(())
    }

    /// Makes a path valid by substitution if it is not.
    pub async fn ensure_path(&mut self, path: &StorePath) -> Result<(), ProtocolError> {
        self.call(&EnsurePath(path), &mut ()).await
    }

    /// Which of these paths are valid.
    pub async fn query_valid_paths(
        &mut self,
        paths: &BTreeSet<StorePath>,
        substitute: Substitute,
    ) -> Result<BTreeSet<StorePath>, ProtocolError> {
        self.call(&QueryValidPaths { paths, substitute }, &mut ()).await
    }

    /// What the store knows of a path; `None` if it is not valid.
    pub async fn query_path_info(&mut self, path: &StorePath) -> Result<Option<PathInfo>, ProtocolError> {
        let reply = self.call(&QueryPathInfo(path), &mut ()).await;
        match reply {
            Err(ProtocolError::Remote(error)) => Ok(absent(error)?),
            other => other,
        }
    }

    /// As [`query_path_info`](Self::query_path_info), for many paths in little more than one round trip.
    pub async fn query_path_infos(
        &mut self,
        paths: &[StorePath],
    ) -> Result<Vec<Option<PathInfo>>, ProtocolError> {
        let operations: Vec<_> = paths.iter().map(QueryPathInfo).collect();
        let replies = self.call_all(&operations, &mut ()).await?;
        Ok(replies.into_iter().map(|reply| reply.or_else(absent)).collect::<Result<_, _>>()?)
    }

    /// What would have to be done for some targets.
    pub async fn query_missing(&mut self, targets: &[String]) -> Result<Missing, ProtocolError> {
        self.call(&QueryMissing(targets), &mut ()).await
    }

    /// Builds. A build that fails is a result; an error is a server that could not even try.
    pub async fn build_derivation(
        &mut self,
        drv: &DrvPath,
        derivation: &BasicDerivation,
        log: &mut impl LogSink,
    ) -> Result<BuildResult, ProtocolError> {
        self.call(&BuildDerivation { drv, derivation, mode: BuildMode::Normal }, log).await
    }

    /// Writes the archive of a path into a sink, validated on the way, and says what it was. Whether that is what the path
    /// info promised is for the caller to compare.
    pub async fn nar_from_path(
        &mut self,
        path: &StorePath,
        sink: &mut (impl AsyncWrite + Send + Unpin),
    ) -> Result<NarDigest, ProtocolError> {
        self.require_clean()?;
        self.send_nar_from_path(path)?;
        self.receive_nar(sink, &mut ()).await
    }

    /// Gives the server one path. The archive must have exactly the announced size.
    pub async fn add_to_store_nar(
        &mut self,
        info: &PathInfo,
        archive: impl AsyncRead + Send + Unpin,
        repair: Repair,
        signatures: Signatures,
        log: &mut impl LogSink,
    ) -> Result<(), ProtocolError> {
        let mut header = WireWriter::new();
        upload::write_add_to_store_nar(&mut header, info, repair, signatures);
        let mut upload = self.begin_upload(&header, log)?;
        upload.only_archive(info, archive).await;
        let answer = upload.finish().await;
        self.end_upload(answer)
    }

    /// Gives the server `count` paths, each after those it refers to. An error of the server stops the upload at once.
    ///
    /// An error of `entries`, or an archive shorter than announced, is returned after the server was told; the connection
    /// stays clean.
    pub async fn add_multiple_to_store<A>(
        &mut self,
        count: u64,
        entries: impl Stream<Item = io::Result<(PathInfo, A)>> + Send,
        repair: Repair,
        signatures: Signatures,
        log: &mut impl LogSink,
    ) -> Result<(), ProtocolError>
    where
        A: AsyncRead + Send + Unpin,
    {
        let mut header = WireWriter::new();
        upload::write_add_multiple_to_store(&mut header, repair, signatures);
        let mut upload = self.begin_upload(&header, log)?;
        upload.entries(count, entries).await;
        let answer = upload.finish().await;
        self.end_upload(answer)
    }

    /// As [`add_multiple_to_store`](Self::add_multiple_to_store), for archives that somebody else puts into the stream: when
    /// everything has been written that goes before bytes of one, `due` is told how many they are, `most` at a time. Some
    /// daemons keep that much in memory.
    pub async fn add_multiple_from_elsewhere(
        &mut self,
        infos: &[PathInfo],
        most: u64,
        due: &mut (impl FnMut(u64) + Send),
        signatures: Signatures,
        log: &mut impl LogSink,
    ) -> Result<(), ProtocolError> {
        let mut header = WireWriter::new();
        upload::write_add_multiple_to_store(&mut header, Repair::No, signatures);
        let mut upload = self.begin_upload(&header, log)?;
        upload.entries_from_elsewhere(infos, most, due).await;
        let answer = upload.finish().await;
        self.end_upload(answer)
    }

    fn begin_upload<'a>(
        &'a mut self,
        header: &WireWriter,
        log: &'a mut impl LogSink,
    ) -> Result<Upload<'a>, ProtocolError> {
        self.require_clean()?;
        self.in_step = false;
        let replies = Box::pin(read_frames(&mut self.reader, log));
        Ok(Upload::new(&mut self.writer, replies, header))
    }

    fn end_upload(&mut self, answer: upload::Answer) -> Result<(), ProtocolError> {
        self.in_step = answer.is_in_step;
        answer.result
    }

    /// Whether bytes came although no reply is awaited. A daemon that fails while it still reads a request reports that
    /// twice, in one go, and hangs up.
    fn has_unasked(&self) -> bool {
        self.awaited.is_empty() && !self.reader.get_ref().buffer().is_empty()
    }

    fn end_step(&mut self) {
        self.in_step = !self.has_unasked();
    }

    fn require_step(&self) -> Result<(), ProtocolError> {
        if self.in_step { Ok(()) } else { Err(ProtocolError::Unclean) }
    }

    fn require_clean(&self) -> Result<(), ProtocolError> {
        if self.is_clean() { Ok(()) } else { Err(ProtocolError::Unclean) }
    }

    /// From here on the connection counts as lost, until the step is known to have ended.
    fn begin_step(&mut self) -> Result<(), ProtocolError> {
        self.require_step()?;
        self.in_step = false;
        Ok(())
    }

    fn begin_reply(&mut self, op: u64) -> Result<(), ProtocolError> {
        self.require_step()?;
        if self.awaited.front() != Some(&op) {
            return Err(ProtocolError::OutOfOrder);
        }
        self.awaited.pop_front();
        self.in_step = false;
        Ok(())
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("version", &self.version)
            .field("daemon_version", &self.daemon_version)
            .field("trust", &self.trust)
            .field("in_step", &self.in_step)
            .field("awaited", &self.awaited)
            .finish_non_exhaustive()
    }
}

async fn read_server_info(
    reader: &mut WireReader<BoxedReader>,
    version: Version,
) -> Result<(Option<String>, Trust), ProtocolError> {
    if version.has_features() {
        for _ in 0..reader.count("number of features", MAX_FEATURES).await? {
            reader.bytes("feature", MAX_WORD).await?;
        }
    }
    let mut daemon_version = None;
    if version.tells_daemon_version() {
        daemon_version = Some(reader.text("version of the daemon", MAX_WORD).await?);
    }
    let trust = if version.tells_trust() { Trust::read(reader).await? } else { Trust::Unknown };
    read_frames(reader, &mut ()).await??;
    Ok((daemon_version, trust))
}

/// Some servers report an invalid path as an error instead of saying so.
fn absent(error: RemoteError) -> Result<Option<PathInfo>, RemoteError> {
    if error.message.contains("is not valid") { Ok(None) } else { Err(error) }
}
