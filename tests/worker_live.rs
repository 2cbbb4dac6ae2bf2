//! Our worker protocol client against the real daemons of three Nix versions, and our server against their real clients.
//!
//! The machines are made by tests/lab/host.sh, one for each version and test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::wildcard_enum_match_arm)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;

use futures_util::stream;
use nix_broker::model::{DrvPath, OutputName, StorePath};
use nix_broker::protocol::derivation::{BasicDerivation, Output};
use nix_broker::protocol::nar;
use nix_broker::protocol::worker::operation::{BuildDerivation, QueryPathInfo};
use nix_broker::protocol::worker::{
    BuildMode, BuildResult, ClientOptions, Connection, LogEvent, LogSink, Missing, PathInfo, ProtocolError,
    RemoteError, Repair, Request, ResultStatus, Server, ServerHello, Signatures, Substitute, Trust, Version,
};
use tokio::process::{Child, Command};

const HOST_SH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/host.sh");

/// A machine; gone when dropped.
struct Host(String);

impl std::ops::Deref for Host {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _gone = std::process::Command::new(HOST_SH).args(["down", &self.0]).output();
    }
}

/// One machine for each Nix version.
fn hosts(test: &str) -> Vec<Host> {
    let up = |release: &str| {
        let host = Host(format!("live{}-{test}-{release}", std::process::id()));
        let made = std::process::Command::new(HOST_SH).args(["up", &host.0, release]).output().unwrap();
        assert!(made.status.success(), "no test host: {}", String::from_utf8_lossy(&made.stderr));
        host
    };
    ["bookworm", "trixie", "forky"].map(up).into()
}

fn daemon(host: &str) -> Child {
    Command::new(HOST_SH)
        .args(["in", host, "--", "nix-daemon", "--stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn connect(host: &str, version: Option<Version>) -> (Child, Connection) {
    let mut child = daemon(host);
    let (reader, writer) = (child.stdout.take().unwrap(), child.stdin.take().unwrap());
    let connection = match version {
        Some(version) => Connection::open_as(version, reader, writer).await.unwrap(),
        None => Connection::open(reader, writer).await.unwrap(),
    };
    (child, connection)
}

fn path(seed: &str, name: &str) -> StorePath {
    let hash = nix_broker::protocol::hash::Sha256Hash::of(seed.as_bytes()).to_nix32();
    StorePath::from_base_name(&format!("{}-{name}", &hash[..32])).unwrap()
}

fn derivation(output: Output, script: &str, inputs: BTreeSet<StorePath>) -> BasicDerivation {
    let mut env =
        BTreeMap::from([(b"PATH".to_vec(), b"/usr/bin:/bin".to_vec()), (b"name".to_vec(), b"live".to_vec())]);
    let out = output.path().map_or_else(
        || "/1rz4g4znpzjwh1xymhjpm42vipw92pr73vdgl6xs1hycac8kf2n9".to_owned(),
        ToString::to_string,
    );
    env.insert(b"out".to_vec(), out.into_bytes());
    BasicDerivation {
        outputs: BTreeMap::from([(OutputName::parse("out").unwrap(), output)]),
        input_srcs: inputs,
        system: "x86_64-linux".into(),
        builder: b"/bin/sh".to_vec(),
        args: vec![b"-c".to_vec(), script.as_bytes().to_vec()],
        env,
    }
}

fn small_nar() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "hello\n").unwrap();
    std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
    let mut bytes = Vec::new();
    nar::write_tree(dir.path(), &mut bytes).unwrap();
    bytes
}

fn info_of(path: StorePath, bytes: &[u8], references: BTreeSet<StorePath>) -> PathInfo {
    PathInfo {
        path,
        deriver: None,
        nar_hash: nix_broker::protocol::hash::Sha256Hash::of(bytes),
        references,
        registration_time: 0,
        nar_size: bytes.len() as u64,
        ultimate: false,
        signatures: BTreeSet::new(),
        ca: None,
    }
}

fn lines(log: &[LogEvent]) -> Vec<String> {
    log.iter()
        .filter_map(|event| match event {
            LogEvent::Line { text, .. } => Some(String::from_utf8_lossy(text).into_owned()),
            _ => None,
        })
        .collect()
}

fn compact(log: &[LogEvent]) -> String {
    let text = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
    let line = |event: &LogEvent| match event {
        LogEvent::Line { activity, text: line } => format!("  line {} {:?}", activity & 0xff, text(line)),
        LogEvent::Start { id, level, kind, text: what, .. } => {
            format!("  start {} kind {kind} level {level} {:?}", id & 0xff, text(what))
        }
        LogEvent::Message { text: what } => format!("  message {:?}", text(what)),
        other => format!("  {other:?}"),
    };
    log.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn handshakes_work_at_every_version() {
    for host in hosts("hs") {
        for minor in 32..=38 {
            let (_child, mut connection) = connect(&host, Some(Version::new(minor))).await;
            println!("{host} offered 1.{minor}: {connection:?}");
            assert!(!connection.is_valid_path(&path("none", "none")).await.unwrap());
            assert!(connection.is_clean());
        }
    }
}

#[tokio::test]
async fn all_operations_work() {
    for host in hosts("ops") {
        let seed = format!("{host}{}", std::process::id());
        let (_child, mut connection) = connect(&host, None).await;
        println!("== {host}: {connection:?}");
        let options = ClientOptions {
            max_log_size: Some(1 << 20),
            timeout: Some(std::time::Duration::from_secs(100)),
            ..ClientOptions::default()
        };
        connection.set_options(&options).await.unwrap();

        let bytes = small_nar();
        let first = info_of(path(&format!("{seed}a"), "first"), &bytes, BTreeSet::new());
        let second =
            info_of(path(&format!("{seed}b"), "second"), &bytes, BTreeSet::from([first.path.clone()]));
        connection.add_temp_root(&first.path).await.unwrap();
        let entries = [first.clone(), second.clone()].map(|info| Ok((info, &bytes[..])));
        let mut log = Vec::new();
        connection
            .add_multiple_to_store(2, stream::iter(entries), Repair::No, Signatures::DontCheck, &mut log)
            .await
            .unwrap();
        assert!(connection.is_clean());
        let both = BTreeSet::from([first.path.clone(), second.path.clone()]);
        assert_eq!(connection.query_valid_paths(&both, Substitute::No).await.unwrap(), both);
        let info = connection.query_path_info(&second.path).await.unwrap().unwrap();
        assert_eq!((info.nar_hash, info.nar_size), (second.nar_hash, second.nar_size));
        assert_eq!(info.references, second.references);

        let third = info_of(path(&format!("{seed}c"), "third"), &bytes, BTreeSet::new());
        connection
            .add_to_store_nar(&third, &bytes[..], Repair::No, Signatures::DontCheck, &mut ())
            .await
            .unwrap();
        let mut back = Vec::new();
        let digest = connection.nar_from_path(&third.path, &mut back).await.unwrap();
        assert_eq!(back, bytes);
        assert_eq!((digest.sha256, digest.size), (third.nar_hash, third.nar_size));

        // A build, with everything asked for in one flight.
        let out = path(&format!("{seed}d"), "live");
        let drv = DrvPath::try_from(path(&format!("{seed}d"), "live.drv")).unwrap();
        let script = r#"echo one; echo two >&2; printf '@nix {"action":"setPhase","phase":"buildPhase"}\n'; printf 'a\rb\n'; printf '\377\n'; sleep 1; printf 'no end'; echo content > $out"#;
        let basic = derivation(Output::InputAddressed(out.clone()), script, both.clone());
        let build = BuildDerivation { drv: &drv, derivation: &basic, mode: BuildMode::Normal };
        let mut log = Vec::new();
        connection.send(&build).unwrap();
        connection.send(&QueryPathInfo(&out)).unwrap();
        connection.send_nar_from_path(&out).unwrap();
        let result = connection.receive(&build, &mut log).await.unwrap();
        println!("{result:?}\n{}", compact(&log));
        assert_eq!(result.status, ResultStatus::Built);
        println!("outputs {:?}", result.output_paths());
        assert_eq!(lines(&log)[..2], ["one", "two"]);
        let info = connection.receive(&QueryPathInfo(&out), &mut ()).await.unwrap().unwrap();
        let mut back = Vec::new();
        let digest = connection.receive_nar(&mut back, &mut ()).await.unwrap();
        assert_eq!((digest.sha256, digest.size), (info.nar_hash, info.nar_size));
        assert!(connection.is_clean());

        // Build output comes whatever the options; messages of the daemon itself do not.
        let (_other_child, mut other) = connect(&host, None).await;
        for (number, verbosity) in [None, Some(0), Some(7)].into_iter().enumerate() {
            if let Some(verbosity) = verbosity {
                let print_build_logs = number % 2 == 0;
                let options = ClientOptions { verbosity, print_build_logs, ..ClientOptions::default() };
                other.set_options(&options).await.unwrap();
            }
            let out = path(&format!("{seed}v{number}"), "live");
            let basic = derivation(Output::InputAddressed(out), "echo one; echo x > $out", BTreeSet::new());
            let mut log = Vec::new();
            other.build_derivation(&drv, &basic, &mut log).await.unwrap();
            assert_eq!(lines(&log), ["one"]);
            let messages = log.iter().filter(|event| matches!(event, LogEvent::Message { .. })).count();
            println!("verbosity {verbosity:?}: {messages} messages, {} events", log.len());
        }

        // It arrives while the build runs: this build ends only after its first line was seen.
        struct Watch(Option<tokio::sync::oneshot::Sender<()>>);
        impl LogSink for Watch {
            async fn event(&mut self, event: LogEvent) {
                if matches!(event, LogEvent::Line { .. })
                    && let Some(seen) = self.0.take()
                {
                    seen.send(()).unwrap();
                }
            }
        }
        let script = "echo started; while [ ! -e /tmp/go-on ]; do sleep 0.01; done; echo x > $out";
        let out = path(&format!("{seed}w"), "live");
        let basic = derivation(Output::InputAddressed(out), script, BTreeSet::new());
        let (seen, was_seen) = tokio::sync::oneshot::channel();
        let mut watch = Watch(Some(seen));
        let go_on = async {
            was_seen.await.unwrap();
            assert!(in_host(&host, &["touch", "/tmp/go-on"]).await.0);
        };
        let (result, ()) = tokio::join!(other.build_derivation(&drv, &basic, &mut watch), go_on);
        assert_eq!(result.unwrap().status, ResultStatus::Built);
        in_host(&host, &["rm", "/tmp/go-on"]).await;

        // A failing build.
        let out = path(&format!("{seed}e"), "live");
        let basic = derivation(Output::InputAddressed(out.clone()), "echo so long; exit 3", both.clone());
        let mut log = Vec::new();
        let result = connection.build_derivation(&drv, &basic, &mut log).await.unwrap();
        println!("{result:?}\n{}", compact(&log));
        assert_eq!(result.status, ResultStatus::PermanentFailure);

        // A remote error leaves the connection usable: content-addressed without the feature.
        let basic = derivation(
            Output::Floating { algorithm: "r:sha256".into() },
            "echo ca; echo content > $out",
            BTreeSet::new(),
        );
        let result = connection.build_derivation(&drv, &basic, &mut ()).await;
        println!("content-addressed: {result:?}");
        println!("clean: {}", connection.is_clean());

        // Many at once.
        let (_child, mut connection) = connect(&host, None).await;
        let mut many = vec![path("nobody", "x"); 10_000];
        many[5_000] = first.path.clone();
        let infos = connection.query_path_infos(&many).await.unwrap();
        assert_eq!(infos.iter().flatten().count(), 1);
        assert!(infos[5_000].is_some());
        connection.add_temp_roots(&many[..1000]).await.unwrap();

        // An early error: an entry whose reference is missing, followed by more than any buffer holds.
        let big = vec![0_u8; 300 << 20];
        let mut bad = info_of(path(&format!("{seed}f"), "bad"), &bytes, BTreeSet::new());
        bad.nar_hash = nix_broker::protocol::hash::Sha256Hash::of(b"other");
        let mut huge = info_of(path(&format!("{seed}g"), "huge"), &bytes, BTreeSet::new());
        huge.nar_size = big.len() as u64;
        let entries: Vec<std::io::Result<(PathInfo, &[u8])>> = vec![Ok((bad, &bytes[..])), Ok((huge, &big))];
        let result = connection
            .add_multiple_to_store(2, stream::iter(entries), Repair::No, Signatures::DontCheck, &mut ())
            .await;
        println!("bad upload: {result:?}");
        assert!(matches!(result, Err(ProtocolError::Remote(_))));
        assert!(connection.is_clean());
        assert!(connection.is_valid_path(&first.path).await.unwrap());

        // A source that ends early.
        let result = connection
            .add_multiple_to_store(
                1,
                stream::iter([Ok((
                    info_of(path(&format!("{seed}h"), "short"), &bytes, BTreeSet::new()),
                    &bytes[..100],
                ))]),
                Repair::No,
                Signatures::DontCheck,
                &mut (),
            )
            .await;
        println!("short upload: {result:?}");
        assert!(matches!(result, Err(ProtocolError::ShortArchive { .. })));
        assert!(connection.is_clean());
        assert!(connection.is_valid_path(&first.path).await.unwrap());

        // An archive of nothing.
        let result = connection.nar_from_path(&path("nobody", "x"), &mut Vec::new()).await;
        println!("no archive: {result:?}, clean {}", connection.is_clean());
    }
}

/// Runs a command in a host; whether it succeeded, and all it printed.
async fn in_host(host: &str, command: &[&str]) -> (bool, String) {
    let output = Command::new(HOST_SH).args(["in", host, "--"]).args(command).output().await.unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&printed).into_owned())
}

/// Stands between a stock client, which wants to start a program, and our server, which listens on a socket.
const BRIDGE: &str = r#"#!/usr/bin/perl
use IO::Socket::UNIX; use IO::Select;
my $s = IO::Socket::UNIX->new(Peer => "/tmp/live.sock") or die "connect: $!";
my $select = IO::Select->new(\*STDIN, $s);
while (1) {
  for my $from ($select->can_read) {
    my $to = $from == $s ? \*STDOUT : $s;
    my $n = sysread($from, my $bytes, 65536);
    if (!$n) { exit 0 if $from == $s; shutdown($s, 1); $select->remove($from); next }
    for (my $at = 0; $at < $n; $at += syswrite($to, $bytes, $n - $at, $at)) { }
  }
}
"#;

#[derive(Default)]
struct Store {
    paths: BTreeMap<StorePath, (PathInfo, Vec<u8>)>,
    requests: Vec<String>,
}

/// A store in memory that pretends to build: whatever the derivation, the output is one file.
async fn serve(mut server: Server, store: &tokio::sync::Mutex<Store>) -> Result<(), ProtocolError> {
    while let Some(request) = server.next_request().await? {
        let mut store = store.lock().await;
        let name = format!("{request:?}");
        store.requests.push(name.split(['(', ' ']).next().unwrap().to_owned());
        match request {
            Request::IsValidPath(path) => server.reply_bool(store.paths.contains_key(&path)).await?,
            Request::QueryValidPaths { paths, .. } => {
                let valid = paths.into_iter().filter(|path| store.paths.contains_key(path)).collect();
                server.reply_valid_paths(&valid).await?;
            }
            Request::QueryPathInfo(path) => {
                server.reply_path_info(store.paths.get(&path).map(|(info, _)| info)).await?;
            }
            Request::NarFromPath(path) => {
                let archive = store.paths[&path].1.clone();
                server.reply_nar(&mut &archive[..]).await?;
            }
            Request::AddMultipleToStore { .. } => {
                let mut entries = server.entries().await?;
                while let Some(info) = entries.next().await? {
                    let mut archive = Vec::new();
                    let digest = entries.nar(&mut archive).await?;
                    assert_eq!((digest.sha256, digest.size), (info.nar_hash, info.nar_size));
                    store.paths.insert(info.path.clone(), (info, archive));
                }
                server.reply_done().await?;
            }
            Request::BuildDerivation { derivation, .. } => {
                assert!(derivation.input_srcs.iter().all(|path| store.paths.contains_key(path)));
                let id = 77;
                let fields = Vec::new();
                let text = b"building".to_vec();
                server
                    .send_log(&LogEvent::Start { id, level: 3, kind: 105, text, fields, parent: 0 })
                    .await?;
                server.send_log(&LogEvent::Line { activity: id, text: b"our own line".to_vec() }).await?;
                server.send_log(&LogEvent::Stop { id }).await?;
                let file = tempfile::NamedTempFile::new().unwrap();
                std::fs::write(file.path(), "made by us\n").unwrap();
                let mut archive = Vec::new();
                nar::write_tree(file.path(), &mut archive).unwrap();
                let mut result = BuildResult::new(ResultStatus::Built, "");
                for (name, path) in derivation.known_outputs() {
                    let info = info_of(path.clone(), &archive, BTreeSet::new());
                    store.paths.insert(path.clone(), (info, archive.clone()));
                    let id = format!("sha256:{}!{name}", "0".repeat(64));
                    let realisation = format!(
                        r#"{{"dependentRealisations":{{}},"id":"{id}","outPath":"{}","signatures":[]}}"#,
                        path.base_name()
                    );
                    result.built_outputs.insert(id, realisation);
                }
                server.reply_build_result(&result).await?;
            }
            // `nix copy --from` asks to have built what it wants to copy.
            Request::BuildPathsWithResults { targets, .. } => {
                let there = BuildResult::new(ResultStatus::AlreadyValid, "");
                let results: Vec<_> = targets.into_iter().map(|target| (target, there.clone())).collect();
                server.reply_build_results(&results).await?;
            }
            Request::SetOptions(_) => server.reply_done().await?,
            Request::AddTempRoot(_) | Request::EnsurePath(_) => server.reply_one().await?,
            Request::QueryMissing(_) => server.reply_missing(&Missing::default()).await?,
            _ => server.reply_error(&RemoteError::new("not here")).await?,
        }
    }
    Ok(())
}

#[tokio::test]
async fn stock_clients_work_with_our_server() {
    for host in hosts("stock") {
        let store = std::sync::Arc::new(tokio::sync::Mutex::new(Store::default()));
        let root = Command::new(HOST_SH).args(["root", &*host]).output().await.unwrap().stdout;
        let root = String::from_utf8(root).unwrap().trim().to_owned();
        std::fs::write(format!("{root}/tmp/bridge"), BRIDGE).unwrap();
        std::fs::remove_file(format!("{root}/tmp/live.sock")).ok();
        let listener = tokio::net::UnixListener::bind(format!("{root}/tmp/live.sock")).unwrap();
        let served = store.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let (reader, writer) = listener.accept().await.unwrap().0.into_split();
                let store = served.clone();
                tokio::spawn(async move {
                    let hello = ServerHello { daemon_version: "nix-broker".into(), trust: Trust::Trusted };
                    let server = Server::accept(reader, writer, hello).await.unwrap();
                    println!("client speaks {}", server.version());
                    serve(server, &store).await.unwrap();
                });
            }
        });
        let script = r#"
            set -e; chmod +x /tmp/bridge; cd /tmp
            export NIX_CONFIG='experimental-features = nix-command
substituters ='
            url='ssh-ng://localhost?remote-program=/tmp/bridge'
            nix store ping --store "$url" 2>&1
            seq 1 200000 >big; file=$(nix-store --add big)
            nix copy --no-check-sigs --to "$url" $file
            nix path-info --store "$url" $file
            nix-store --delete $file >/dev/null
            nix copy --no-check-sigs --from "$url" $file
            cmp big $file && echo the same
            cat >live.nix <<EOF
derivation { name = "live-$RANDOM$$"; system = "x86_64-linux"; builder = "/bin/false"; outputs = [ "out" "dev" ]; }
EOF
            out=$(nix-build live.nix --no-out-link --max-jobs 0 --builders "$url x86_64-linux")
            cat $out
            nix-store --verify --check-contents && echo verified
        "#;
        let (succeeded, printed) = in_host(&host, &["bash", "-c", script]).await;
        println!("== {host}\n{printed}\n{:?}", store.lock().await.requests);
        assert!(succeeded);
        for expected in ["the same", "our own line", "made by us", "verified"] {
            assert!(printed.contains(expected), "{expected}");
        }
        accepting.abort();
    }
}
