//! Handshakes, requests sent ahead, errors, and what is left after an operation that did not end.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::model::DrvPath;
use crate::protocol::derivation::BasicDerivation;
use crate::protocol::wire::WireWriter;
use crate::protocol::worker::operation::{AddTempRoot, BuildDerivation, IsValidPath, QueryPathInfo};

fn derivation() -> (DrvPath, BasicDerivation) {
    let drv = StorePath::from_base_name(&format!("{:032}-x.drv", 0)).unwrap();
    let derivation = BasicDerivation {
        outputs: std::collections::BTreeMap::new(),
        input_srcs: BTreeSet::new(),
        system: "x86_64-linux".into(),
        builder: b"/bin/sh".to_vec(),
        args: Vec::new(),
        env: std::collections::BTreeMap::new(),
    };
    (DrvPath::try_from(drv).unwrap(), derivation)
}

#[tokio::test]
async fn both_sides_agree_on_the_older_version() {
    for minor in 32..=38 {
        let (mut client, mut server) = pair_of(Version::new(minor), 64).await;
        assert_eq!((client.version(), server.version()), (Version::new(minor), Version::new(minor)));
        assert_eq!(client.daemon_version(), (minor >= 33).then_some("2.0"));
        assert_eq!(client.trust(), if minor >= 35 { Trust::Trusted } else { Trust::Unknown });
        assert_in_step(&mut client, &mut server).await;
    }
}

#[tokio::test]
async fn what_is_no_daemon_is_refused() {
    let mut too_old = WireWriter::new();
    too_old.u64(SERVER_MAGIC);
    too_old.u64(0x11f);
    let mut too_new = WireWriter::new();
    too_new.u64(SERVER_MAGIC);
    too_new.u64(0x226);
    let open = async |bytes: &[u8]| {
        let reader = std::io::Cursor::new(bytes.to_vec());
        Connection::open(reader, tokio::io::sink()).await.unwrap_err()
    };
    assert!(matches!(open(b"Welcome to this machine!\n").await, ProtocolError::WrongMagic(_)));
    let error = open(too_old.as_bytes()).await;
    assert_eq!(error.to_string(), "the peer speaks worker protocol 1.31, not 1.32 or newer");
    assert!(matches!(open(too_new.as_bytes()).await, ProtocolError::UnsupportedVersion(0x226)));
    assert!(matches!(open(b"").await, ProtocolError::Wire(_)));

    let accept = async |bytes: &[u8]| {
        let hello = ServerHello { daemon_version: String::new(), trust: Trust::Trusted };
        let reader = std::io::Cursor::new(bytes.to_vec());
        Server::accept(reader, tokio::io::sink(), hello).await.unwrap_err()
    };
    assert!(matches!(accept(b"GET / HTTP/1.1\r\n").await, ProtocolError::WrongMagic(_)));
    let mut too_old = WireWriter::new();
    too_old.u64(CLIENT_MAGIC);
    too_old.u64(0x11f);
    assert!(matches!(accept(too_old.as_bytes()).await, ProtocolError::UnsupportedVersion(0x11f)));
}

#[tokio::test]
async fn our_handshake_is_one_flight() {
    let ((reader, writer), (mut from_client, _to_client)) = streams(1 << 10);
    let opening = tokio::spawn(Connection::open(reader, writer));
    // Everything arrives although the server has not said a word.
    let mut hello = [0; 32];
    within_deadline(from_client.read_exact(&mut hello)).await.unwrap();
    let words: Vec<u64> = hello.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    assert_eq!(words, [CLIENT_MAGIC, 0x125, 0, 0]);
    opening.abort();
}

#[tokio::test]
async fn many_requests_are_on_their_way_at_once() {
    const MANY: usize = 10_000;
    let (mut client, mut server) = pair(256).await;
    let paths: Vec<StorePath> = (0..MANY).map(path).collect();
    let archive = archive(b"x");
    let serve = async {
        for number in 0..MANY {
            let request = server.next_request().await.unwrap().unwrap();
            assert_eq!(request, Request::QueryPathInfo(path(number)));
            match number % 3 {
                0 => server.reply_path_info(None).await,
                1 => server.reply_path_info(Some(&info(path(number), &archive))).await,
                _ => server.reply_error(&RemoteError::new("path 'x' is not valid")).await,
            }
            .unwrap();
        }
    };
    let (infos, ()) = within_deadline(async { tokio::join!(client.query_path_infos(&paths), serve) }).await;
    for (number, found) in infos.unwrap().into_iter().enumerate() {
        assert_eq!(found.map(|info| info.path), (number % 3 == 1).then(|| path(number)));
    }
    assert_in_step(&mut client, &mut server).await;
}

#[tokio::test]
async fn an_error_among_many_leaves_the_others_and_the_connection() {
    let (mut client, mut server) = pair(256).await;
    let paths: Vec<StorePath> = (0..10).map(path).collect();
    let serve = async {
        for number in 0..10 {
            server.next_request().await.unwrap().unwrap();
            match number {
                4 => server.reply_error(&RemoteError::new("no room")).await,
                _ => server.reply_one().await,
            }
            .unwrap();
        }
    };
    let (result, ()) = within_deadline(async { tokio::join!(client.add_temp_roots(&paths), serve) }).await;
    assert_eq!(result.unwrap_err().to_string(), "no room");
    assert!(client.is_clean());
    assert_in_step(&mut client, &mut server).await;
}

#[tokio::test]
async fn a_build_and_its_outputs_take_one_flight() {
    let (mut client, mut server) = pair(1 << 16).await;
    let (drv, derivation) = derivation();
    let build = BuildDerivation { drv: &drv, derivation: &derivation, mode: BuildMode::Normal };
    let out = path(1);
    client.send(&build).unwrap();
    client.send(&QueryPathInfo(&out)).unwrap();
    client.send_nar_from_path(&out).unwrap();
    client.flush().await.unwrap();
    assert!(!client.is_clean());
    assert!(matches!(client.receive(&QueryPathInfo(&out), &mut ()).await, Err(ProtocolError::OutOfOrder)));

    let archive = archive(b"output");
    let told = info(out.clone(), &archive);
    let line = LogEvent::Line { activity: 1, text: b"building".to_vec() };
    // All of it is answered before the client reads anything.
    within_deadline(async {
        assert!(matches!(server.next_request().await.unwrap(), Some(Request::BuildDerivation { .. })));
        server.send_log(&line).await.unwrap();
        server.reply_build_result(&BuildResult::new(ResultStatus::Built, "")).await.unwrap();
        server.next_request().await.unwrap().unwrap();
        server.reply_path_info(Some(&told)).await.unwrap();
        server.next_request().await.unwrap().unwrap();
        server.reply_nar(&mut &archive[..]).await.unwrap();
    })
    .await;

    let mut log = Vec::new();
    assert_eq!(client.receive(&build, &mut log).await.unwrap().status, ResultStatus::Built);
    assert_eq!(log, [line]);
    assert_eq!(client.receive(&QueryPathInfo(&out), &mut ()).await.unwrap(), Some(told));
    let mut sink = Vec::new();
    let digest = client.receive_nar(&mut sink, &mut ()).await.unwrap();
    assert_eq!((digest.size, &sink), (archive.len() as u64, &archive));
    assert!(client.is_clean());
    assert_in_step(&mut client, &mut server).await;
}

#[tokio::test]
async fn what_cannot_be_sent_yet_goes_out_while_a_reply_is_awaited() {
    // The second request is larger than all buffers, and the server does not read it before the first is answered.
    let (mut client, mut server) = pair(64).await;
    let many: BTreeSet<StorePath> = (0..1000).map(path).collect();
    let first = AddTempRoot(many.first().unwrap());
    let second = operation::QueryValidPaths { paths: &many, substitute: Substitute::No };
    client.send(&first).unwrap();
    client.send(&second).unwrap();
    let serve = async {
        server.next_request().await.unwrap().unwrap();
        for _ in 0..100 {
            server.send_log(&LogEvent::Message { text: vec![b'x'; 100] }).await.unwrap();
        }
        server.reply_one().await.unwrap();
        let request = server.next_request().await.unwrap().unwrap();
        let Request::QueryValidPaths { paths, .. } = request else { panic!("{request:?}") };
        server.reply_valid_paths(&paths).await.unwrap();
    };
    let ask = async {
        let mut log = Vec::new();
        client.receive(&first, &mut log).await.unwrap();
        assert_eq!(log.len(), 100);
        assert_eq!(client.receive(&second, &mut ()).await.unwrap(), many);
    };
    within_deadline(async { tokio::join!(ask, serve) }).await;
    assert_in_step(&mut client, &mut server).await;
}

#[tokio::test]
async fn an_operation_that_is_dropped_half_way_poisons_the_connection() {
    let (mut client, mut server) = pair(1 << 10).await;
    let wanted = path(1);
    {
        let mut asking = std::pin::pin!(client.is_valid_path(&wanted));
        tokio::select! {
            _ = &mut asking => panic!("nobody has replied"),
            request = server.next_request() => assert!(request.unwrap().is_some()),
        }
    }
    server.reply_bool(true).await.unwrap();
    assert_unusable(&mut client).await;
}

#[tokio::test]
async fn an_operation_that_was_never_polled_does_no_harm() {
    let (mut client, mut server) = pair(1 << 10).await;
    drop(client.is_valid_path(&path(1)));
    assert_in_step(&mut client, &mut server).await;
}

#[tokio::test]
async fn a_reply_that_makes_no_sense_poisons_the_connection() {
    let (mut client, mut server) = pair(1 << 10).await;
    let wanted = path(1);
    let (reply, ()) = tokio::join!(client.is_valid_path(&wanted), async {
        server.next_request().await.unwrap().unwrap();
        server.reply_missing(&Missing { nar_size: 9, ..Missing::default() }).await.unwrap();
    });
    // The first number of the reply is a valid "no". What follows it nobody asked for.
    assert!(!reply.unwrap());
    assert_unusable(&mut client).await;

    let (mut client, mut server) = pair(1 << 10).await;
    let (reply, ()) = tokio::join!(client.is_valid_path(&wanted), async {
        server.next_request().await.unwrap().unwrap();
        server
            .reply_missing(&Missing { will_build: BTreeSet::from([path(1), path(2)]), ..Missing::default() })
            .await
            .unwrap();
    });
    assert!(matches!(reply, Err(ProtocolError::Wire(_))), "{reply:?}");
    assert_unusable(&mut client).await;
}

#[tokio::test]
async fn a_server_that_goes_away_poisons_the_connection() {
    let (mut client, server) = pair(1 << 10).await;
    drop(server);
    assert!(client.is_valid_path(&path(1)).await.is_err());
    assert_unusable(&mut client).await;
}

#[tokio::test]
async fn a_remote_error_does_not() {
    let (mut client, mut server) = pair(1 << 10).await;
    let (drv, derivation) = derivation();
    let error = RemoteError { level: 0, message: "you are not privileged".into(), traces: vec!["t".into()] };
    let (reply, ()) = within_deadline(async {
        tokio::join!(async { client.build_derivation(&drv, &derivation, &mut ()).await }, async {
            server.next_request().await.unwrap().unwrap();
            server.reply_error(&error).await.unwrap();
        })
    })
    .await;
    assert!(matches!(reply, Err(ProtocolError::Remote(it)) if it == error));
    assert!(client.is_clean());
    assert_in_step(&mut client, &mut server).await;
}

#[tokio::test]
async fn a_promised_archive_that_is_not_there_is_a_remote_error_and_the_end() {
    // Nix 2.34 says so where the archive should begin, 2.26 and older after its first word.
    for begun in [&b""[..], b"\x0d\0\0\0\0\0\0\0nix-archive-1\0\0\0"] {
        let (mut client, mut server) = pair(1 << 10).await;
        let mut frames = WireWriter::new();
        log::write_last(&mut frames);
        let mut error = WireWriter::new();
        RemoteError::new("it is not valid").write(&mut error);
        let bytes = [frames.as_bytes(), begun, error.as_bytes()].concat();
        let wanted = path(1);
        let mut sink = Vec::new();
        let (reply, ()) = within_deadline(async {
            tokio::join!(client.nar_from_path(&wanted, &mut sink), async {
                server.next_request().await.unwrap().unwrap();
                server.raw_writer().write_all(&bytes).await.unwrap();
            })
        })
        .await;
        assert_eq!(reply.unwrap_err().to_string(), "it is not valid");
        assert_unusable(&mut client).await;
    }
}

#[tokio::test]
async fn a_sink_that_fails_poisons_the_connection() {
    let (mut client, mut server) = pair(1 << 10).await;
    let archive = archive(&[7; 100_000]);
    let (mut sink, reader) = tokio::io::duplex(64);
    drop(reader);
    let wanted = path(1);
    let result = within_deadline(async {
        tokio::select! {
            result = client.nar_from_path(&wanted, &mut sink) => result,
            () = async {
                server.next_request().await.unwrap().unwrap();
                server.reply_nar(&mut &archive[..]).await.ok();
                std::future::pending::<()>().await;
            } => unreachable!(),
        }
    })
    .await;
    assert!(matches!(result, Err(ProtocolError::Nar(_))), "{result:?}");
    assert_unusable(&mut client).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_sink_holds_the_server_back() {
    struct Slow(tokio::sync::mpsc::Sender<LogEvent>);
    impl LogSink for Slow {
        async fn event(&mut self, event: LogEvent) {
            self.0.send(event).await.ok();
        }
    }
    let (mut client, mut server) = pair(64).await;
    let (events, mut taken) = tokio::sync::mpsc::channel(1);
    let (drv, derivation) = derivation();
    let sent = std::sync::atomic::AtomicUsize::new(0);
    let serve = async {
        server.next_request().await.unwrap().unwrap();
        for _ in 0..100_000 {
            server.send_log(&LogEvent::Message { text: vec![b'x'; 1000] }).await.unwrap();
            sent.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    };
    let mut sink = Slow(events);
    tokio::select! {
        biased;
        () = serve => panic!("the server was not held back"),
        _ = client.build_derivation(&drv, &derivation, &mut sink) => panic!("there was no reply"),
        // Nobody takes events; once everyone waits for someone else, only time can pass.
        () = tokio::time::sleep(Duration::from_millis(1)) => {}
    }
    let sent = sent.into_inner();
    assert!(sent < 200, "{sent} events were sent although none was taken");
    assert!(taken.try_recv().is_ok());
}

#[tokio::test]
async fn an_unknown_operation_is_answered_and_ends_the_conversation() {
    let ((mut from_server, mut to_server), (reader, writer)) = streams(1 << 10);
    let mut hello = WireWriter::new();
    for word in [CLIENT_MAGIC, 0x125, 0, 0, 999, 1, 2, 3] {
        hello.u64(word);
    }
    to_server.write_all(hello.as_bytes()).await.unwrap();
    let server_hello = ServerHello { daemon_version: "2.0".into(), trust: Trust::Trusted };
    let mut server = Server::accept(reader, writer, server_hello).await.unwrap();
    assert_eq!(server.next_request().await.unwrap(), Some(Request::Unsupported(999)));
    assert!(matches!(server.reply_done().await, Err(ProtocolError::OutOfOrder)));
    server.reply_error(&RemoteError::new("operation 999 is not supported")).await.unwrap();
    assert_eq!(server.next_request().await.unwrap(), None);
    drop(server);
    let mut said = Vec::new();
    from_server.read_to_end(&mut said).await.unwrap();
    assert!(String::from_utf8_lossy(&said).contains("operation 999 is not supported"));
}

#[tokio::test]
async fn the_server_notices_that_its_client_has_gone() {
    let (client, mut server) = pair(1 << 10).await;
    {
        let mut closed = std::pin::pin!(server.client_closed());
        tokio::select! {
            biased;
            () = &mut closed => panic!("the client is still there"),
            () = tokio::task::yield_now() => {}
        }
        drop(client);
        within_deadline(closed).await;
    }
    assert_eq!(server.next_request().await.unwrap(), None);
}

#[tokio::test]
async fn every_request_gets_exactly_one_reply() {
    let (mut client, mut server) = pair(1 << 10).await;
    assert!(matches!(server.reply_one().await, Err(ProtocolError::OutOfOrder)));
    assert!(matches!(server.send_log(&LogEvent::Stop { id: 1 }).await, Err(ProtocolError::OutOfOrder)));
    client.send(&IsValidPath(&path(1))).unwrap();
    client.flush().await.unwrap();
    server.next_request().await.unwrap().unwrap();
    assert!(matches!(server.next_request().await, Err(ProtocolError::Unclean)));
    server.reply_bool(false).await.unwrap();
    assert!(!client.receive(&IsValidPath(&path(1)), &mut ()).await.unwrap());
    assert_in_step(&mut client, &mut server).await;
}

#[tokio::test]
async fn every_operation_can_run_in_a_task() {
    fn check<T: Send>(_: T) {}
    let (mut client, mut server) = pair(64).await;
    let (drv, derivation) = derivation();
    let (wanted, archive) = (path(1), archive(b"x"));
    let told = info(wanted.clone(), &archive);
    let all = BTreeSet::from([wanted.clone()]);
    let (mut log, mut sink) = (Vec::new(), Vec::new());
    check(client.query_path_infos(&[]));
    check(client.query_valid_paths(&all, Substitute::No));
    check(client.build_derivation(&drv, &derivation, &mut log));
    check(client.nar_from_path(&wanted, &mut sink));
    check(client.add_to_store_nar(&told, &archive[..], Repair::No, Signatures::Check, &mut log));
    let entries = futures_util::stream::iter([Ok((told.clone(), &archive[..]))]);
    check(client.add_multiple_to_store(1, entries, Repair::No, Signatures::Check, &mut log));
    check(client.receive(&IsValidPath(&wanted), &mut log));
    check(client);
    check(server.next_request());
    check(server.reply_nar(&mut &archive[..]));
    check(server.entries());
    check(server);
}
