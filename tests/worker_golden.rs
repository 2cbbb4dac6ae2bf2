//! Our client and our server against recorded conversations of stock Nix (`tests/golden/record.sh`).
//!
//! Every conversation is read by our server as the stock client wrote it, asked again by our client, which must write the
//! same bytes and understand the recorded replies to the last one, and answered again by our server, which must write
//! the bytes the stock daemon wrote. Then all of it is cut and bent at every byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::wildcard_enum_match_arm)]

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use futures_util::stream;
use nix_broker::model::{OutputName, StorePath};
use nix_broker::protocol::derivation::Derivation;
use nix_broker::protocol::worker::operation::{
    AddTempRoot, BuildDerivation, BuildPaths, BuildPathsWithResults, EnsurePath, IsValidPath, Operation,
    QueryDerivationOutputMap, QueryMissing, QueryPathInfo, QueryRealisation, QueryValidPaths, SetOptions,
};
use nix_broker::protocol::worker::{
    BuildResult, Connection, LogEvent, Missing, PathInfo, ProtocolError, RemoteError, Request, ResultStatus,
    Server, ServerHello, Trust, Version,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// What one recording holds.
struct Conversation {
    name: String,
    client: Vec<u8>,
    server: Vec<u8>,
}

impl Conversation {
    /// The steps in which to go through its bytes: all of them for the newest Nix, some for the others, since they say
    /// much the same. Three, so that all places in a word are met.
    fn step(&self) -> usize {
        if self.name.starts_with("2.34") { 1 } else { 3 }
    }

    fn version(&self) -> Version {
        // Client and daemon of a recording are the same Nix, so what the client offers is what both speak.
        Version::new(self.client[8])
    }
}

fn conversations() -> Vec<Conversation> {
    let mut all = Vec::new();
    let sorted = |dir: &Path| {
        let mut paths: Vec<PathBuf> =
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    };
    for nix in sorted(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/worker")) {
        for client in sorted(&nix).into_iter().filter(|path| path.extension().unwrap() == "client") {
            let name = format!(
                "{}/{}",
                nix.file_name().unwrap().to_str().unwrap(),
                client.file_stem().unwrap().to_str().unwrap()
            );
            let server = std::fs::read(client.with_extension("server")).unwrap();
            all.push(Conversation { name, client: std::fs::read(client).unwrap(), server });
        }
    }
    assert!(all.len() >= 36, "only {} recordings", all.len());
    all
}

/// A request with what followed it.
#[derive(Debug, Clone, PartialEq)]
struct Asked {
    request: Request,
    entries: Vec<(PathInfo, Vec<u8>)>,
    body: Vec<u8>,
}

/// What came back.
#[derive(Debug, Clone, PartialEq)]
enum Reply {
    Done,
    One,
    Bool(bool),
    Paths(BTreeSet<StorePath>),
    Info(Option<PathInfo>),
    Result(BuildResult),
    Results(Vec<(String, BuildResult)>),
    Missing(Missing),
    OutputMap(BTreeMap<OutputName, Option<StorePath>>),
    Realisations(Vec<String>),
    Nar(Vec<u8>),
    Error(RemoteError),
}

type Logged = (Vec<LogEvent>, Reply);

fn hello(trust: Trust) -> ServerHello {
    ServerHello { daemon_version: "2.0".into(), trust }
}

/// Reads a client's side with our server, which throws its replies away.
async fn read_client(client: &[u8]) -> Result<Vec<Asked>, ProtocolError> {
    let reader = io::Cursor::new(client.to_vec());
    let mut server = Server::accept(reader, tokio::io::sink(), hello(Trust::Trusted)).await?;
    let mut asked = Vec::new();
    while let Some(request) = server.next_request().await? {
        let (mut entries, mut body) = (Vec::new(), Vec::new());
        if matches!(request, Request::AddMultipleToStore { .. }) {
            let mut reader = server.entries().await?;
            while let Some(info) = reader.next().await? {
                let mut nar = Vec::new();
                reader.nar(&mut nar).await?;
                entries.push((info, nar));
            }
        } else {
            server.body().read_to_end(&mut body).await.map_err(ProtocolError::Source)?;
        }
        match request {
            Request::Unsupported(_) => server.reply_error(&RemoteError::new("no")).await?,
            _ => server.reply_done().await?,
        }
        asked.push(Asked { request, entries, body });
    }
    Ok(asked)
}

/// Asks with our client what the stock client asked, of a server that says what the stock daemon said.
async fn replay_client(
    version: Version,
    asked: &[Asked],
    server: &[u8],
) -> Result<(Connection, Vec<Logged>, Tape), ProtocolError> {
    let tape = Tape::new(server);
    tape.close();
    let mut connection = Connection::open_as(version, tape.clone(), tape.clone()).await?;
    let mut replies = Vec::new();
    for asked in asked {
        let mut log = Vec::new();
        tape.close();
        let reply = match ask(&mut connection, asked, &mut log).await {
            Err(ProtocolError::Remote(error)) if connection.is_clean() => Reply::Error(error),
            other => other?,
        };
        assert!(connection.is_clean());
        replies.push((log, reply));
    }
    Ok((connection, replies, tape))
}

async fn ask(
    connection: &mut Connection,
    asked: &Asked,
    log: &mut Vec<LogEvent>,
) -> Result<Reply, ProtocolError> {
    Ok(match &asked.request {
        Request::IsValidPath(path) => Reply::Bool(connection.call(&IsValidPath(path), log).await?),
        Request::QueryValidPaths { paths, substitute } => {
            Reply::Paths(connection.call(&QueryValidPaths { paths, substitute: *substitute }, log).await?)
        }
        Request::QueryPathInfo(path) => Reply::Info(connection.call(&QueryPathInfo(path), log).await?),
        Request::NarFromPath(path) => {
            let mut nar = Vec::new();
            connection.send_nar_from_path(path)?;
            let digest = connection.receive_nar(&mut nar, log).await?;
            assert_eq!(digest.size, nar.len() as u64);
            Reply::Nar(nar)
        }
        Request::BuildDerivation { drv, derivation, mode } => {
            Reply::Result(connection.call(&BuildDerivation { drv, derivation, mode: *mode }, log).await?)
        }
        Request::BuildPaths { targets, mode } => {
            once(connection.call(&BuildPaths { targets, mode: *mode }, log)).await?
        }
        Request::BuildPathsWithResults { targets, mode } => {
            Reply::Results(connection.call(&BuildPathsWithResults { targets, mode: *mode }, log).await?)
        }
        Request::AddMultipleToStore { repair, signatures } => {
            let entries = asked.entries.iter().map(|(info, nar)| Ok((info.clone(), &nar[..])));
            let count = asked.entries.len() as u64;
            connection.add_multiple_to_store(count, stream::iter(entries), *repair, *signatures, log).await?;
            Reply::Done
        }
        Request::AddToStoreNar { info, repair, signatures } => {
            connection.add_to_store_nar(info, &asked.body[..], *repair, *signatures, log).await?;
            Reply::Done
        }
        Request::AddTempRoot(path) => once(connection.call(&AddTempRoot(path), log)).await?,
        Request::EnsurePath(path) => once(connection.call(&EnsurePath(path), log)).await?,
        Request::SetOptions(options) => {
            connection.call(&SetOptions(options), log).await?;
            Reply::Done
        }
        Request::QueryMissing(targets) => Reply::Missing(connection.call(&QueryMissing(targets), log).await?),
        Request::QueryDerivationOutputMap(drv) => {
            Reply::OutputMap(connection.call(&QueryDerivationOutputMap(drv), log).await?)
        }
        Request::QueryRealisation(id) => {
            Reply::Realisations(connection.call(&QueryRealisation(id), log).await?)
        }
        Request::AddBuildLog(_) | Request::Unsupported(_) => panic!("not ours to ask: {asked:?}"),
    })
}

async fn once(reply: impl Future<Output = Result<(), ProtocolError>>) -> Result<Reply, ProtocolError> {
    reply.await.map(|()| Reply::One)
}

/// Answers a client's recorded side with these replies; returns what our server wrote.
async fn replay_server(client: &[u8], hello: ServerHello, replies: &[Logged]) -> Vec<u8> {
    let tape = Tape::new(client);
    let mut server = Server::accept(tape.clone(), tape.clone(), hello).await.unwrap();
    for (log, reply) in replies {
        server.next_request().await.unwrap().unwrap();
        for event in log {
            server.send_log(event).await.unwrap();
        }
        match reply {
            Reply::Done => server.reply_done().await,
            Reply::One => server.reply_one().await,
            Reply::Bool(value) => server.reply_bool(*value).await,
            Reply::Paths(paths) => server.reply_valid_paths(paths).await,
            Reply::Info(info) => server.reply_path_info(info.as_ref()).await,
            Reply::Result(result) => server.reply_build_result(result).await,
            Reply::Results(results) => server.reply_build_results(results).await,
            Reply::Missing(missing) => server.reply_missing(missing).await,
            Reply::OutputMap(outputs) => server.reply_output_map(outputs).await,
            Reply::Realisations(found) => server.reply_realisation(found.first().map(String::as_str)).await,
            Reply::Nar(nar) => server.reply_nar(&mut &nar[..]).await.map(drop),
            Reply::Error(error) => server.reply_error(error).await,
        }
        .unwrap();
    }
    assert_eq!(server.next_request().await.unwrap(), None);
    tape.written()
}

/// Whether our client has all it needs to have this conversation itself.
fn is_ours_to_ask(asked: &[Asked]) -> bool {
    !asked.iter().any(|asked| matches!(asked.request, Request::AddBuildLog(_) | Request::Unsupported(_)))
}

#[tokio::test]
async fn recorded_conversations_are_read_and_written_byte_for_byte() {
    let mut operations = BTreeSet::new();
    for conversation in conversations() {
        let name = &conversation.name;
        let asked =
            read_client(&conversation.client).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        println!("{name}, {}:", conversation.version());
        for asked in &asked {
            println!("    {:.150}", format!("{:?}", asked.request));
            operations.insert(format!("{:?}", asked.request).split(['(', ' ']).next().unwrap().to_owned());
        }
        if !is_ours_to_ask(&asked) {
            continue;
        }

        let (connection, replies, tape) =
            replay_client(conversation.version(), &asked, &conversation.server).await.unwrap_or_else(
                |error| panic!("{name}: our client does not understand the recorded daemon: {error:?}"),
            );
        assert_eq!(tape.unread(), 0, "{name}: bytes of the daemon were left over");
        let written = tape.written();
        if asked.iter().any(|asked| asked.request.has_body()) {
            // Where frames begin and end is up to the sender; what is in them is not.
            assert_eq!(read_client(&written).await.unwrap(), asked, "{name}");
        } else {
            assert_eq!(written, conversation.client, "{name}: our client writes something else");
        }

        let hello = ServerHello {
            daemon_version: connection.daemon_version().unwrap_or_default().to_owned(),
            trust: connection.trust(),
        };
        let answered = replay_server(&conversation.client, hello, &replies).await;
        // Magic and the newest version known: ours may be newer than the recorded one.
        assert_eq!(answered[16..], conversation.server[16..], "{name}: our server writes something else");
    }
    let expected = [
        "AddMultipleToStore",
        "BuildDerivation",
        "BuildPathsWithResults",
        "NarFromPath",
        "QueryPathInfo",
        "QueryValidPaths",
    ];
    for operation in expected {
        assert!(operations.contains(operation), "{operation} is in no recording: {operations:?}");
    }
}

#[tokio::test]
async fn every_truncation_of_a_recording_is_an_error() {
    for conversation in conversations() {
        let name = &conversation.name;
        let asked = read_client(&conversation.client).await.unwrap();
        for end in 0..conversation.client.len() {
            // A client may close between two requests: then it has asked for less. It may not close anywhere else.
            if let Ok(fewer) = read_client(&conversation.client[..end]).await {
                assert!(fewer.len() < asked.len(), "{name}: request bytes cut at {end} were enough");
                assert_eq!(fewer[..], asked[..fewer.len()], "{name}: cut at {end}");
            }
        }
        if !is_ours_to_ask(&asked) {
            continue;
        }
        for end in (0..conversation.server.len()).step_by(conversation.step()) {
            let replayed = replay_client(conversation.version(), &asked, &conversation.server[..end]).await;
            assert!(replayed.is_err(), "{name}: reply bytes cut at {end} were enough");
        }
    }
}

#[tokio::test]
async fn bent_bytes_neither_panic_nor_hang_nor_cost_memory() {
    for conversation in conversations() {
        let asked = read_client(&conversation.client).await.unwrap();
        let bends: [fn(u8) -> u8; 3] = [|byte| byte ^ 1, |_| 0xff, |byte| byte ^ 0x80];
        for at in 0..conversation.client.len() {
            for bend in bends {
                let mut client = conversation.client.clone();
                client[at] = bend(client[at]);
                read_client(&client).await.ok();
            }
        }
        if !is_ours_to_ask(&asked) {
            continue;
        }
        for at in (0..conversation.server.len()).step_by(conversation.step()) {
            // One bend for each byte: the same messages come in every version, at other places.
            let mut server = conversation.server.clone();
            server[at] = bends[at % bends.len()](server[at]);
            replay_client(conversation.version(), &asked, &server).await.ok();
        }
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kilobytes: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kilobytes < 300_000, "{kilobytes} kB were needed");
}

#[tokio::test]
async fn a_failed_build_is_a_result_with_its_log() {
    for conversation in conversations().iter().filter(|it| it.name.ends_with("/build-bad")) {
        let asked = read_client(&conversation.client).await.unwrap();
        let (_, replies, _) =
            replay_client(conversation.version(), &asked, &conversation.server).await.unwrap();
        let (log, result) = replies
            .iter()
            .find_map(|(log, reply)| match reply {
                Reply::Result(result) => Some((log, result)),
                _ => None,
            })
            .unwrap();
        assert_eq!(result.status, ResultStatus::PermanentFailure);
        assert!(result.error.contains("exit code 3"), "{}", result.error);
        let printed: Vec<&[u8]> = log
            .iter()
            .filter_map(|event| match event {
                LogEvent::Line { text, .. } => Some(&text[..]),
                _ => None,
            })
            .collect();
        assert_eq!(printed, [b"so long"]);
    }
}

#[tokio::test]
async fn outputs_of_content_addressed_builds_are_told() {
    for conversation in conversations().iter().filter(|it| it.name.ends_with("/build-ca")) {
        let asked = read_client(&conversation.client).await.unwrap();
        let (_, replies, _) =
            replay_client(conversation.version(), &asked, &conversation.server).await.unwrap();
        let outputs = replies
            .iter()
            .find_map(|(_, reply)| match reply {
                Reply::Result(result) => Some(result.output_paths().unwrap()),
                _ => None,
            })
            .unwrap();
        let names: Vec<_> = outputs.iter().map(|(name, path)| (name.as_str(), path.name())).collect();
        assert_eq!(names, [("out", "ca")]);
    }
}

#[tokio::test]
async fn a_builder_gets_from_us_what_it_gets_from_the_stock_hook() {
    let mut compared = 0;
    for conversation in conversations() {
        let (_, scenario) = conversation.name.split_once('/').unwrap();
        let Some(kind) = scenario.strip_prefix("build-") else { continue };
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/derivations/{kind}.drv"));
        let Ok(file) = std::fs::read(file) else { continue };
        let (mut inputs, mut sent) = (BTreeSet::new(), None);
        for asked in read_client(&conversation.client).await.unwrap() {
            match asked.request {
                // The stock hook asks about all inputs before it uploads what is missing.
                Request::QueryValidPaths { paths, .. } => inputs = paths,
                Request::BuildDerivation { derivation, .. } => sent = Some(derivation),
                _ => {}
            }
        }
        let ours = Derivation::parse(&file).unwrap().to_basic(&inputs);
        assert_eq!(ours, *sent.unwrap(), "{}", conversation.name);
        compared += 1;
    }
    assert_eq!(compared, 12, "good, fixed, ca and dependent, for three versions of Nix");
}

#[test]
fn operations_know_their_numbers() {
    assert_eq!((IsValidPath::OP, BuildDerivation::OP, QueryPathInfo::OP), (1, 36, 26));
}

/// Both halves of a stream with recorded contents. What is read becomes available only once something was written and
/// flushed, as with a peer that answers.
#[derive(Clone)]
struct Tape(Arc<Mutex<TapeState>>);

struct TapeState {
    to_read: io::Cursor<Vec<u8>>,
    written: Vec<u8>,
    is_open: bool,
    reader: Option<Waker>,
}

impl Tape {
    fn new(to_read: &[u8]) -> Self {
        let to_read = io::Cursor::new(to_read.to_vec());
        Self(Arc::new(Mutex::new(TapeState { to_read, written: Vec::new(), is_open: true, reader: None })))
    }

    fn close(&self) {
        self.0.lock().unwrap().is_open = false;
    }

    fn written(&self) -> Vec<u8> {
        self.0.lock().unwrap().written.clone()
    }

    fn unread(&self) -> usize {
        let state = self.0.lock().unwrap();
        state.to_read.get_ref().len() - state.to_read.position() as usize
    }
}

impl AsyncRead for Tape {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.0.lock().unwrap();
        if !state.is_open {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        // Everything in this protocol has a length that is a multiple of eight, so whoever reads can never get hold of
        // more than it asked for, and so never of a reply to what it has not asked yet.
        let rest = &state.to_read.get_ref()[state.to_read.position() as usize..];
        let len = rest.len().min(buffer.remaining()).min(8);
        buffer.put_slice(&rest[..len]);
        let position = state.to_read.position() + len as u64;
        state.to_read.set_position(position);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tape {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let len = bytes.len().min(1009);
        self.0.lock().unwrap().written.extend_from_slice(&bytes[..len]);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock().unwrap();
        state.is_open = true;
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
