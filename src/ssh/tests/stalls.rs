//! What waits for whom when a reader, or the wire, does not take what is sent.

use super::sharing::{echo_all, open_many};
use super::*;

/// Waits until a reader holds the connection up.
async fn stall(session: &Session) {
    let until = Instant::now() + PATIENCE;
    while !session.is_stalled() {
        assert!(Instant::now() < until, "the reader does not stall its connection");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_pauses_holds_nobody_up_until_its_buffers_are_full() {
    let sshd = Sshd::start(&[]);
    let session = sshd.dial().await;
    let written = sshd.directory.path().join("written");
    let command = format!("head -c 10000000 /dev/zero; touch {}", written.display());
    let Channel { stdin: _stdin, mut stdout, remote } = session.exec(&command, soon()).await.unwrap();
    // All of it fits the buffers, so the program ends and the connection stays free although nobody reads.
    let until = Instant::now() + PATIENCE;
    while !written.exists() {
        assert!(Instant::now() < until, "the program is stuck");
        assert_eq!(text(&session.run("echo free", soon()).await.unwrap()), "free\n");
    }
    let mut received = Vec::new();
    stdout.read_to_end(&mut received).await.unwrap();
    assert_eq!(received.len(), 10_000_000);
    assert_eq!(remote.exit().await, Exit::Status(0));
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_given_up_only_for_the_sake_of_others() {
    let sshd = Sshd::start(&[]);
    let mut alone = sshd.dial().await;
    alone.set_patience(Duration::from_millis(10));
    let patient = alone.exec("cat /dev/zero", soon()).await.unwrap();
    let mut shared = sshd.dial().await;
    shared.set_patience(Duration::from_millis(10));
    let other = shared.exec("cat", soon()).await.unwrap();
    let mut given_up = shared.exec("cat /dev/zero", soon()).await.unwrap();

    stall(&alone).await;
    assert!(matches!(given_up.remote.exit().await, Exit::Lost(_)));
    echo_all(&mut [other]).await;
    let mut rest = Vec::new();
    let end = given_up.stdout.read_to_end(&mut rest).await;
    assert!(end.is_err(), "a stream that was cut looks complete");

    let Channel { mut stdout, .. } = patient;
    let mut some = vec![0; 64 << 20];
    stdout.read_exact(&mut some).await.unwrap();
}

#[tokio::test]
async fn channels_that_were_given_up_while_they_opened_do_not_stay_open_on_the_other_side() {
    let sshd = Sshd::start(&["MaxSessions 3"]);
    let session = sshd.dial().await;
    let stalled = session.exec("cat /dev/zero", soon()).await.unwrap();
    stall(&session).await;
    // The library's own buffer fills up a moment later than ours.
    let until = Instant::now() + PATIENCE;
    let mut given_up = 0;
    while given_up < 5 {
        assert!(Instant::now() < until, "a stalled connection opens channels");
        let opened = session.exec("cat", Instant::now() + Duration::from_millis(10)).await;
        given_up += u32::from(matches!(opened, Err(ExecError::TimedOut)));
    }
    drop(stalled);
    // Refused as long as those before it have not ended, and no longer.
    let until = Instant::now() + PATIENCE;
    let mut channels = Vec::new();
    while channels.len() < 3 {
        assert!(Instant::now() < until, "channels are leaked");
        match session.exec("cat", soon()).await {
            Ok(channel) => channels.push(channel),
            Err(error) => assert!(matches!(error, ExecError::Refused(_)), "{error}"),
        }
    }
    echo_all(&mut channels).await;
}

#[tokio::test]
async fn a_new_channel_avoids_a_connection_that_is_held_up() {
    let sshd = Sshd::start(&[]);
    let sessions = Sessions::new(sshd.target.clone());
    let mut channels = open_many(&sessions, 9).await;
    assert_eq!(sessions.connections(), 2);
    // The emptiest connection is the one that the next channel would get, so that is the one to stall.
    channels.truncate(8);
    let stalled = sessions.open("cat /dev/zero", soon()).await.unwrap();
    let until = Instant::now() + PATIENCE;
    while !sessions.is_any_stalled() {
        assert!(Instant::now() < until, "the reader does not stall its connection: {sessions:?} {stalled:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(channels.pop());
    let output = sessions.run("echo past it", soon()).await.unwrap();
    assert_eq!(text(&output), "past it\n");
    drop(stalled);
}

/// A server that never reads: how many bytes of ours wait in this machine for a place on the wire, at most.
#[tokio::test]
async fn little_waits_unsent_on_a_connection_for_what_is_small() {
    let listener = TcpListener::bind("127.0.0.7:0").await.unwrap();
    let target = Target {
        address: "127.0.0.7".into(),
        port: listener.local_addr().unwrap().port(),
        user: "nobody".into(),
        host_keys: vec![],
        key: ClientKey::generate(),
        proxy_command: None,
    };
    // What both sides' kernels take of a connection without a bound, which is what a small request would wait behind.
    let fill = async |mut stream: Box<dyn tokio::io::AsyncWrite + Send + Unpin>| {
        let _never_reads = listener.accept().await.unwrap();
        let (block, mut filled) = (vec![0; 64 << 10], 0);
        let idle = Duration::from_millis(300);
        while let Ok(written) = tokio::time::timeout(idle, stream.write(&block)).await {
            filled += written.unwrap();
        }
        filled
    };
    let plain = tokio::net::TcpStream::connect(("127.0.0.7", target.port)).await.unwrap();
    let unbounded = fill(Box::new(plain)).await;
    let small = fill(Box::new(dial::connect(&target, Load::Small).await.unwrap())).await;
    let bulk = fill(Box::new(dial::connect(&target, Load::Bulk).await.unwrap())).await;
    for large in [unbounded, bulk] {
        assert!(large > small + (1 << 20), "{small}, {large}");
    }
}
