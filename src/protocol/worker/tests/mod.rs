//! The worker protocol, our client against our server: what is said arrives, and what goes wrong leaves no trace that
//! another operation could stumble over. (Against stock Nix: `tests/worker_golden.rs`.)

mod conversation;
mod round_trip;
mod uploads;

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use tokio::io::DuplexStream;

use super::*;
use crate::model::StorePath;
use crate::protocol::hash::Sha256Hash;

/// Both ends of a connection whose buffers hold this many bytes in each direction.
async fn pair(buffer: usize) -> (Connection, Server) {
    pair_of(Version::MAX, buffer).await
}

async fn pair_of(version: Version, buffer: usize) -> (Connection, Server) {
    let ((client_reader, client_writer), (server_reader, server_writer)) = streams(buffer);
    let hello = ServerHello { daemon_version: "2.0".into(), trust: Trust::Trusted };
    let (client, server) = within_deadline(async {
        tokio::join!(
            Connection::open_as(version, client_reader, client_writer),
            Server::accept(server_reader, server_writer, hello)
        )
    })
    .await;
    (client.unwrap(), server.unwrap())
}

type Halves = (DuplexStream, DuplexStream);

fn streams(buffer: usize) -> (Halves, Halves) {
    let (to_server, from_client) = tokio::io::duplex(buffer);
    let (to_client, from_server) = tokio::io::duplex(buffer);
    ((from_server, to_server), (from_client, to_client))
}

/// A deadlock must fail, not hang.
async fn within_deadline<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.unwrap()
}

fn path(number: usize) -> StorePath {
    StorePath::from_base_name(&format!("{number:032}-path")).unwrap()
}

/// An archive of one file.
fn archive(contents: &[u8]) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), contents).unwrap();
    let mut bytes = Vec::new();
    crate::protocol::nar::write_tree(file.path(), &mut bytes).unwrap();
    bytes
}

fn info(path: StorePath, archive: &[u8]) -> PathInfo {
    PathInfo {
        path,
        deriver: None,
        nar_hash: Sha256Hash::of(archive),
        references: BTreeSet::new(),
        registration_time: 0,
        nar_size: archive.len() as u64,
        ultimate: false,
        signatures: BTreeSet::new(),
        ca: None,
    }
}

/// One more operation works, on both sides.
async fn assert_in_step(client: &mut Connection, server: &mut Server) {
    let wanted = path(7);
    within_deadline(async {
        let (valid, request) = tokio::join!(client.is_valid_path(&wanted), async {
            let request = server.next_request().await.unwrap().unwrap();
            server.reply_bool(true).await.unwrap();
            request
        });
        assert!(valid.unwrap());
        assert_eq!(request, Request::IsValidPath(wanted.clone()));
    })
    .await;
}

async fn assert_unusable(client: &mut Connection) {
    assert!(!client.is_clean());
    let path = path(7);
    let paths = BTreeSet::from([path.clone()]);
    let unclean = |error| assert!(matches!(error, ProtocolError::Unclean), "{error:?}");
    unclean(client.is_valid_path(&path).await.unwrap_err());
    unclean(client.query_valid_paths(&paths, Substitute::No).await.unwrap_err());
    unclean(client.query_path_infos(std::slice::from_ref(&path)).await.unwrap_err());
    unclean(client.nar_from_path(&path, &mut Vec::new()).await.unwrap_err());
    unclean(client.flush().await.unwrap_err());
    let archive = archive(b"x");
    let info = info(path, &archive);
    let upload = client.add_to_store_nar(&info, &archive[..], Repair::No, Signatures::Check, &mut ()).await;
    unclean(upload.unwrap_err());
}
