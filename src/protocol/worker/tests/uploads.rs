//! Uploads: what arrives, who stops when something is wrong, and that the connection survives it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::stream;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use super::*;

type Entry<'a> = io::Result<(PathInfo, &'a [u8])>;

/// Takes everything there is.
async fn take_all(server: &mut Server) -> Vec<(PathInfo, Vec<u8>)> {
    let request = server.next_request().await.unwrap().unwrap();
    assert!(matches!(request, Request::AddMultipleToStore { .. }), "{request:?}");
    let mut taken = Vec::new();
    let mut entries = server.entries().await.unwrap();
    while let Some(info) = entries.next().await.unwrap() {
        let mut bytes = Vec::new();
        let digest = entries.nar(&mut bytes).await.unwrap();
        assert_eq!((digest.sha256, digest.size), (info.nar_hash, info.nar_size));
        taken.push((info, bytes));
    }
    server.reply_done().await.unwrap();
    taken
}

async fn upload(client: &mut Connection, count: u64, entries: Vec<Entry<'_>>) -> Result<(), ProtocolError> {
    client
        .add_multiple_to_store(count, stream::iter(entries), Repair::No, Signatures::DontCheck, &mut ())
        .await
}

#[tokio::test]
async fn archives_of_all_sizes_arrive() {
    let archives: Vec<Vec<u8>> = [0, 1, 8, 65_000, 65_536, 200_000, 1 << 20]
        .into_iter()
        .enumerate()
        .map(|(number, len)| archive(&vec![number as u8; len]))
        .collect();
    let entries: Vec<_> =
        archives.iter().enumerate().map(|(number, bytes)| (info(path(number), bytes), bytes)).collect();
    for buffer in [100, 1 << 20] {
        let (mut client, mut server) = pair(buffer).await;
        let sent = entries.iter().map(|(info, bytes)| Ok((info.clone(), &bytes[..]))).collect();
        let (result, taken) = within_deadline(async {
            tokio::join!(upload(&mut client, archives.len() as u64, sent), take_all(&mut server))
        })
        .await;
        result.unwrap();
        assert!(client.is_clean());
        assert_eq!(taken.len(), entries.len());
        for ((info, bytes), (sent_info, sent_bytes)) in taken.iter().zip(&entries) {
            assert_eq!((info, bytes), (sent_info, *sent_bytes));
        }
        assert_in_step(&mut client, &mut server).await;
    }
}

#[tokio::test]
async fn nothing_at_all_can_be_uploaded() {
    let (mut client, mut server) = pair(100).await;
    let (result, taken) =
        within_deadline(async { tokio::join!(upload(&mut client, 0, Vec::new()), take_all(&mut server)) })
            .await;
    result.unwrap();
    assert_eq!(taken, []);
    assert_in_step(&mut client, &mut server).await;
}

#[tokio::test]
async fn one_archive_can_be_uploaded_alone() {
    let (mut client, mut server) = pair(100).await;
    let bytes = archive(&[1; 100_000]);
    let told = info(path(1), &bytes);
    let (result, ()) = within_deadline(async {
        tokio::join!(
            async {
                client.add_to_store_nar(&told, &bytes[..], Repair::Yes, Signatures::Check, &mut ()).await
            },
            async {
                let request = server.next_request().await.unwrap().unwrap();
                let (repair, signatures) = (Repair::Yes, Signatures::Check);
                assert_eq!(
                    request,
                    Request::AddToStoreNar { info: Box::new(told.clone()), repair, signatures }
                );
                let mut body = Vec::new();
                server.body().read_to_end(&mut body).await.unwrap();
                assert_eq!(body, bytes);
                server.reply_done().await.unwrap();
            }
        )
    })
    .await;
    result.unwrap();
    assert_in_step(&mut client, &mut server).await;
}

/// An archive without end that counts what is taken of it.
struct Endless<'a>(&'a std::sync::atomic::AtomicU64);

impl AsyncRead for Endless<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let len = buffer.remaining();
        buffer.put_slice(&vec![0; len]);
        self.0.fetch_add(len as u64, std::sync::atomic::Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn an_early_error_stops_the_upload_and_leaves_the_connection() {
    let taken = std::sync::atomic::AtomicU64::new(0);
    let (mut client, mut server) = pair(1 << 10).await;
    let huge = PathInfo { nar_size: 1 << 50, ..info(path(1), b"") };
    let entries = stream::iter([Ok((huge, Endless(&taken)))]);
    let ask = async {
        let result = client.add_multiple_to_store(1, entries, Repair::No, Signatures::Check, &mut ()).await;
        assert_eq!(result.unwrap_err().to_string(), "lacks a signature");
        assert!(client.is_clean());
        assert!(client.is_valid_path(&path(3)).await.unwrap());
    };
    let serve = async {
        server.next_request().await.unwrap().unwrap();
        server.body().read_exact(&mut vec![0; 100_000]).await.unwrap();
        server.reply_error(&RemoteError::new("lacks a signature")).await.unwrap();
        // What is left of the body does not become the next request.
        assert_eq!(server.next_request().await.unwrap(), Some(Request::IsValidPath(path(3))));
        server.reply_bool(true).await.unwrap();
    };
    within_deadline(async { tokio::join!(ask, serve) }).await;
    // What the server read, what the stream holds, and the frame that was under way.
    assert!(taken.into_inner() < 300_000);
}

#[tokio::test]
async fn an_early_error_is_heard_while_the_source_is_silent() {
    let (mut client, mut server) = pair(1 << 10).await;
    let (_silent, source) = tokio::io::duplex(64);
    let told = PathInfo { nar_size: 1 << 20, ..info(path(1), b"") };
    let other = archive(&[1; 200_000]);
    let entries = stream::iter([
        Ok((info(path(0), &other), Box::new(&other[..]) as Box<dyn AsyncRead + Send + Unpin>)),
        Ok((told, Box::new(source))),
    ]);
    let (result, ()) = within_deadline(async {
        tokio::join!(
            async { client.add_multiple_to_store(2, entries, Repair::No, Signatures::Check, &mut ()).await },
            async {
                server.next_request().await.unwrap().unwrap();
                server.reply_error(&RemoteError::new("disk full")).await.unwrap();
                server.body().read_to_end(&mut Vec::new()).await.unwrap();
            }
        )
    })
    .await;
    assert_eq!(result.unwrap_err().to_string(), "disk full");
    assert!(client.is_clean());
    assert_in_step(&mut client, &mut server).await;
}

/// A server that, as the real one, complains of a body that ends too early.
async fn complain(server: &mut Server) {
    server.next_request().await.unwrap().unwrap();
    let mut body = Vec::new();
    server.body().read_to_end(&mut body).await.unwrap();
    server.reply_error(&RemoteError::new("unexpected end of file")).await.unwrap();
}

#[tokio::test]
async fn what_goes_wrong_with_the_source_is_told_and_leaves_the_connection() {
    let bytes = archive(&[1; 100_000]);
    let good = || Ok((info(path(0), &bytes), &bytes[..]));
    let cases: [(u64, Vec<Entry<'_>>); 5] = [
        (1, vec![Ok((info(path(0), &bytes), &bytes[..70_000]))]),
        (1, vec![Ok((info(path(0), &bytes), &bytes[..0]))]),
        (2, vec![good(), Err(io::Error::other("gone"))]),
        (2, vec![good()]),
        (1, vec![good(), good()]),
    ];
    for (number, (count, entries)) in cases.into_iter().enumerate() {
        let (mut client, mut server) = pair(1 << 10).await;
        let (result, ()) = within_deadline(async {
            tokio::join!(upload(&mut client, count, entries), complain(&mut server))
        })
        .await;
        let error = result.unwrap_err();
        match number {
            0 | 1 => assert!(matches!(error, ProtocolError::ShortArchive { .. }), "{error:?}"),
            2 => assert!(matches!(error, ProtocolError::Source(_)), "{error:?}"),
            _ => assert!(matches!(error, ProtocolError::WrongCount { .. }), "{error:?}"),
        }
        assert!(client.is_clean());
        assert_in_step(&mut client, &mut server).await;
    }
}

#[tokio::test]
async fn a_server_that_is_done_too_early_is_not_believed() {
    let (mut client, mut server) = pair(1 << 10).await;
    let bytes = archive(&[1; 1 << 20]);
    let entries = vec![Ok((info(path(0), &bytes), &bytes[..]))];
    let mut early = crate::protocol::wire::WireWriter::new();
    log::write_last(&mut early);
    let result = within_deadline(async {
        tokio::select! {
            result = upload(&mut client, 1, entries) => result,
            () = async {
                use tokio::io::AsyncWriteExt;
                server.next_request().await.unwrap().unwrap();
                server.raw_writer().write_all(early.as_bytes()).await.unwrap();
                let mut body = Vec::new();
                server.body().read_to_end(&mut body).await.unwrap();
                std::future::pending::<()>().await;
            } => unreachable!(),
        }
    })
    .await;
    assert!(matches!(result, Err(ProtocolError::EarlyReply)), "{result:?}");
    assert_unusable(&mut client).await;
}

#[tokio::test]
async fn an_upload_that_is_dropped_poisons_the_connection() {
    let (mut client, mut server) = pair(1 << 10).await;
    let (_silent, source) = tokio::io::duplex(64);
    let told = PathInfo { nar_size: 1 << 20, ..info(path(1), b"") };
    {
        let uploading =
            async { client.add_to_store_nar(&told, source, Repair::No, Signatures::Check, &mut ()).await };
        let mut uploading = std::pin::pin!(uploading);
        tokio::select! {
            biased;
            _ = &mut uploading => panic!("the source has not ended"),
            () = tokio::task::yield_now() => {}
        }
    }
    assert_unusable(&mut client).await;
    drop(client);
    assert!(server.next_request().await.is_ok());
}

#[tokio::test]
async fn a_body_can_be_read_in_parts_or_not_at_all() {
    let bytes = archive(&[1; 100_000]);
    for taken in [0, 1, 9, 70_000] {
        let (mut client, mut server) = pair(1 << 10).await;
        let entries = vec![Ok((info(path(0), &bytes), &bytes[..]))];
        let (result, ()) = within_deadline(async {
            tokio::join!(upload(&mut client, 1, entries), async {
                server.next_request().await.unwrap().unwrap();
                server.body().read_exact(&mut vec![0; taken]).await.unwrap();
                server.body().read_exact(&mut vec![0; taken / 9]).await.unwrap();
                server.reply_done().await.unwrap();
            })
        })
        .await;
        result.unwrap();
        assert_in_step(&mut client, &mut server).await;
    }
}
