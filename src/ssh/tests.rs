//! The SSH client against a real OpenSSH server, run by the test as whoever runs the test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::*;

mod keys;
mod proxy;
mod sharing;
mod stalls;

/// Far more than anything here takes; it only ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(60);

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// An sshd of our own; killed when dropped.
struct Sshd {
    directory: tempfile::TempDir,
    child: Child,
    target: Target,
}

impl Sshd {
    fn start(options: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let key = ClientKey::generate();
        std::fs::write(path("authorized_keys"), key.public_openssh()).unwrap();
        keygen(&path("host_key"));
        let host_key = HostKey::parse(&std::fs::read_to_string(path("host_key.pub")).unwrap()).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.7:0").unwrap().local_addr().unwrap().port();
        let here = directory.path().display();
        let mut config = format!(
            "ListenAddress 127.0.0.7:{port}\nHostKey {here}/host_key\nAuthorizedKeysFile {here}/authorized_keys\n\
             PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        );
        for option in options {
            config += option;
            config.push('\n');
        }
        std::fs::write(path("sshd_config"), config).unwrap();
        if rustix::process::getuid().is_root() {
            std::fs::create_dir_all("/run/sshd").unwrap();
        }
        let log = std::fs::File::create(path("log")).unwrap();
        let child = Command::new(sshd())
            .arg("-D")
            .arg("-e")
            .arg("-f")
            .arg(path("sshd_config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let until = std::time::Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(("127.0.0.7", port)).is_err() {
            assert!(std::time::Instant::now() < until, "sshd does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        let user = String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
        let target = Target {
            address: "127.0.0.7".into(),
            port,
            user: user.trim().into(),
            host_keys: vec![host_key],
            key,
            proxy_command: None,
        };
        Self { directory, child, target }
    }

    async fn dial(&self) -> Session {
        match Session::dial(&self.target, soon()).await {
            Ok(session) => session,
            Err(error) => panic!("{error}; log of sshd:\n{}", self.log()),
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// Kills the listener, every process that serves a connection, and what those have started.
    fn kill(&mut self) {
        let out = Command::new("ps").args(["-e", "-o", "pid=,ppid="]).output().unwrap();
        let table = String::from_utf8(out.stdout).unwrap();
        let table: Vec<(&str, &str)> =
            table.lines().filter_map(|line| line.trim().split_once(char::is_whitespace)).collect();
        let mut victims = vec![self.child.id().to_string()];
        let mut next = 0;
        while let Some(parent) = victims.get(next).cloned() {
            victims.extend(table.iter().filter(|row| row.1.trim() == parent).map(|row| row.0.to_owned()));
            next += 1;
        }
        Command::new("kill").arg("-9").args(&victims).status().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn sshd() -> PathBuf {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths)
        .chain(["/usr/sbin".into(), "/run/current-system/sw/bin".into()])
        .map(|directory| directory.join("sshd"))
        .find(|path| path.exists())
        .expect("these tests need OpenSSH's server (Debian: openssh-server), and there is no `sshd`")
}

fn keygen(path: &Path) {
    let status = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).status();
    assert!(status.expect("these tests need `ssh-keygen` (Debian: openssh-client)").success());
}

fn text(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

#[tokio::test]
async fn a_command_runs_and_its_streams_and_status_come_back() {
    let sshd = Sshd::start(&[]);
    let session = sshd.dial().await;
    let output = session.run("echo out; echo err >&2; exit 7", soon()).await.unwrap();
    assert_eq!(text(&output), "out\n");
    assert_eq!(output.stderr_tail, "err\n");
    assert_eq!(output.exit, Exit::Status(7));
    let output = session.run("kill -9 $$", soon()).await.unwrap();
    assert_eq!(output.exit, Exit::Signal("KILL".into()));
    session.ping().await.unwrap();
}

#[tokio::test]
async fn only_the_tail_of_standard_error_is_kept() {
    let sshd = Sshd::start(&[]);
    let session = sshd.dial().await;
    let output = session.run("seq 1 100000 >&2; echo last words >&2", soon()).await.unwrap();
    assert_eq!(output.stderr_tail.len(), 4096);
    assert!(output.stderr_tail.ends_with("99999\n100000\nlast words\n"), "{}", output.stderr_tail);
}

#[tokio::test]
async fn a_host_with_another_key_is_refused_for_good_and_both_keys_are_named() {
    let sshd = Sshd::start(&[]);
    let directory = tempfile::tempdir().unwrap();
    keygen(&directory.path().join("other"));
    let other = std::fs::read_to_string(directory.path().join("other.pub")).unwrap();
    let other = HostKey::parse(&other).unwrap();
    let target = Target { host_keys: vec![other.clone()], ..sshd.target.clone() };
    let error = Session::dial(&target, soon()).await.unwrap_err();
    assert!(error.is_final());
    assert!(Sessions::new(target).run("true", soon()).await.unwrap_err().is_final());
    let DialError::HostKeyMismatch { expected, got, .. } = error else { panic!("{error}") };
    assert_eq!(expected, [other.fingerprint()]);
    assert_eq!(got, sshd.target.host_keys[0].fingerprint());

    let several = Target { host_keys: vec![other, sshd.target.host_keys[0].clone()], ..sshd.target.clone() };
    Session::dial(&several, soon()).await.unwrap();
}

#[tokio::test]
async fn without_any_host_key_nobody_is_trusted() {
    let sshd = Sshd::start(&[]);
    let target = Target { host_keys: Vec::new(), ..sshd.target.clone() };
    assert!(Session::dial(&target, soon()).await.is_err());
}

#[tokio::test]
async fn a_key_that_is_not_authorized_is_refused_but_may_be_tried_again() {
    let sshd = Sshd::start(&[]);
    let target = Target { key: ClientKey::generate(), ..sshd.target.clone() };
    let error = Session::dial(&target, soon()).await.unwrap_err();
    assert!(!error.is_final());
    assert!(matches!(error, DialError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up_and_the_phase_is_named() {
    let listener = TcpListener::bind("127.0.0.7:0").await.unwrap();
    let target = Target {
        address: "127.0.0.7".into(),
        port: listener.local_addr().unwrap().port(),
        user: "nobody".into(),
        host_keys: Vec::new(),
        key: ClientKey::generate(),
        proxy_command: None,
    };
    let error = Session::dial(&target, Instant::now() + Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(error, DialError::TimedOut { phase: Phase::Handshake, .. }), "{error}");
    // Giving up closes the connection: the other side sees its end.
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut greeting = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut greeting)).await.unwrap().unwrap();
    assert!(greeting.starts_with(b"SSH-2.0-"));

    drop(listener);
    let error = Session::dial(&target, soon()).await.unwrap_err();
    assert!(matches!(error, DialError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_server_that_stops_after_its_greeting_is_given_up_and_let_go() {
    let listener = TcpListener::bind("127.0.0.7:0").await.unwrap();
    let target = Target {
        address: "127.0.0.7".into(),
        port: listener.local_addr().unwrap().port(),
        user: "nobody".into(),
        host_keys: Vec::new(),
        key: ClientKey::generate(),
        proxy_command: None,
    };
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"SSH-2.0-Silence\r\n").await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
    });
    let error = Session::dial(&target, Instant::now() + Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(error, DialError::TimedOut { phase: Phase::Handshake, .. }), "{error}");
    tokio::time::timeout(PATIENCE, server).await.expect("the connection was leaked").unwrap();
}

/// Deterministic bytes that no compression or off-by-one survives.
fn noise(length: usize) -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn big_transfers_both_ways_at_once_arrive_intact() {
    let sshd = Sshd::start(&[]);
    let sessions = Sessions::new(sshd.target.clone());
    let data = std::sync::Arc::new(noise(48 << 20));
    let mut streams = Vec::new();
    for _ in 0..3 {
        let Channel { mut stdin, mut stdout, remote } = sessions.open("cat", soon()).await.unwrap();
        let sent = std::sync::Arc::clone(&data);
        let expected = std::sync::Arc::clone(&data);
        streams.push(tokio::spawn(async move {
            let writer = async {
                stdin.write_all(&sent).await.unwrap();
                stdin.shutdown().await.unwrap();
            };
            let mut received = Vec::new();
            let (_, read) = tokio::join!(writer, stdout.read_to_end(&mut received));
            read.unwrap();
            assert!(received == *expected, "{} of {} bytes", received.len(), expected.len());
            assert_eq!(remote.exit().await, Exit::Status(0));
        }));
    }
    for stream in streams {
        stream.await.unwrap();
    }
    assert_eq!(sessions.connections(), 1);
}

#[tokio::test]
async fn dropping_a_channel_hangs_up_on_its_program() {
    let sshd = Sshd::start(&[]);
    let session = sshd.dial().await;
    let witness = sshd.directory.path().join("witness");
    let command = format!("cat; echo ended > {}", witness.display());
    let Channel { stdin, stdout, remote } = session.exec(&command, soon()).await.unwrap();
    drop(stdout);
    assert!(!witness.exists());
    drop(stdin);
    remote.exit().await;
    let until = Instant::now() + PATIENCE;
    while !witness.exists() {
        assert!(Instant::now() < until, "the program does not notice");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The connection itself is none the worse for it.
    assert_eq!(text(&session.run("echo fine", soon()).await.unwrap()), "fine\n");
}

#[tokio::test]
async fn a_program_that_does_not_exist_ends_its_channel_and_says_why() {
    let sshd = Sshd::start(&[]);
    let session = sshd.dial().await;
    let output = session.run("no-such-program --stdio", soon()).await.unwrap();
    assert_eq!(output.exit, Exit::Status(127));
    assert!(output.stderr_tail.contains("no-such-program"), "{}", output.stderr_tail);
}

#[tokio::test]
async fn a_server_that_dies_ends_reads_writes_and_exits_with_an_error() {
    let mut sshd = Sshd::start(&[]);
    let sessions = Sessions::new(sshd.target.clone());
    let mut losses = sessions.losses();
    // Nobody reads on the other side: the write will be stuck for want of a window.
    let Channel { mut stdin, mut stdout, remote } = sessions.open("sleep 1000", soon()).await.unwrap();
    let writer = tokio::spawn(async move {
        let block = vec![0; 1 << 20];
        loop {
            if let Err(error) = stdin.write_all(&block).await {
                return error;
            }
        }
    });
    let reader = tokio::spawn(async move { stdout.read_u8().await.unwrap_err() });
    sshd.kill();
    let all = async {
        assert_eq!(reader.await.unwrap().kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(writer.await.unwrap().kind(), std::io::ErrorKind::BrokenPipe);
        assert!(matches!(remote.exit().await, Exit::Lost(_)));
        losses.next().await;
    };
    tokio::time::timeout(PATIENCE, all).await.expect("something still waits for a dead connection");
    assert_eq!(sessions.connections(), 0);
    let error = sessions.open("true", soon()).await.unwrap_err();
    assert!(matches!(error, OpenError::Dial(DialError::Unreachable { .. })), "{error}");
}
