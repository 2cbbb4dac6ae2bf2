//! Images against moto: what is written is read back through its own reading of the EBS direct APIs.

use std::future::pending;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;

use nix_broker::provider::ec2::api::{Api, BootMode};
use nix_broker::provider::ec2::image::{self, DiskFile, Sharing, UploadOrder};

use super::moto::url;
use super::strings;
use crate::disk::{self, BIOS_BOOT, BLOCK};

/// What moto's EBS of a region answers to this path.
fn get(region: &str, path: &str) -> Vec<u8> {
    let host = url().strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    let credential = format!("AKID/20261121/{region}/ebs/aws4_request");
    let request = format!(
        "GET {path} HTTP/1.0\r\nHost: {host}\r\nAuthorization: AWS4-HMAC-SHA256 Credential={credential}, \
         SignedHeaders=host, Signature=0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    assert!(answer.starts_with(b"HTTP/1.") && answer[9..].starts_with(b"200"), "{path}");
    answer.split_off(end + 4)
}

#[tokio::test]
async fn moto_has_the_blocks_that_are_not_zero_as_they_are_on_the_disk() {
    let region = "ca-central-1";
    let api = Api::at_endpoint(url(), region);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let size = 6 * BLOCK as u64 + 512;
    let whole: Vec<u8> = (0..BLOCK).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let content: [(u64, &[u8]); 3] =
        [(BLOCK as u64, &whole), (4 * BLOCK as u64 - 1, &[1, 2]), (size - 1, &[3])];
    disk::write(&path, size, BIOS_BOOT, &content);
    let file = Arc::new(DiskFile::open(&path).unwrap());
    assert_eq!(file.disk().boot_mode, Some(BootMode::LegacyBios));
    let plan = file.plan().unwrap();
    let order = UploadOrder {
        name: "nix-broker/moto".into(),
        arch: "x86_64".into(),
        boot_mode: BootMode::LegacyBios,
        label: None,
    };
    let uploaded = image::upload(&api, &file, &plan, &order, pending(), &mut |_| ()).await.unwrap();

    let snapshots = api.snapshots(&[("tag:nix-broker:image", &strings(["1"]))]).await.unwrap();
    assert_eq!(snapshots.len(), 1);
    let snapshot = &snapshots[0].id;
    let list: serde_json::Value =
        serde_json::from_slice(&get(region, &format!("/snapshots/{snapshot}/blocks"))).unwrap();
    let mut indices: Vec<u64> =
        list["Blocks"].as_array().unwrap().iter().map(|it| it["BlockIndex"].as_u64().unwrap()).collect();
    indices.sort_unstable();
    assert_eq!(indices, [0, 1, 3, 4, 6]);
    let mut disk = std::fs::read(&path).unwrap();
    disk.resize(7 * BLOCK, 0);
    for index in indices {
        let block = get(region, &format!("/snapshots/{snapshot}/blocks/{index}?blockToken=x"));
        let start = usize::try_from(index).unwrap() * BLOCK;
        assert!(block == disk[start..start + BLOCK], "block {index}");
    }

    // moto registers images without their tags.
    let tags = [("ManagedBy", "nix-broker"), ("nix-broker:image", "1")];
    api.tag(std::slice::from_ref(&uploaded.id), &tags).await.unwrap();
    let accounts = strings(["123456789012"]);
    let shared = image::share(&api, &uploaded.id, &accounts, Sharing::Give).await.unwrap();
    assert_eq!(shared.into_iter().collect::<Vec<_>>(), accounts);
    assert!(image::share(&api, &uploaded.id, &accounts, Sharing::Take).await.unwrap().is_empty());

    // Nor does it make them of the snapshot they are to have, so that one is of no image, two days from now.
    let inventory = image::look(&api).await.unwrap();
    let now = u64::try_from(inventory.snapshots[0].started).unwrap() + 2 * 86_400;
    assert_eq!(image::choose(&inventory, 1, now).end, []);
    let pruning = image::choose(&inventory, 0, now);
    assert_eq!((pruning.end.len(), pruning.half_made.len()), (1, 1));
    image::end(&api, Some(&pruning.end[0].0.id), &pruning.end[0].1).await.unwrap();
    image::end(&api, None, &[pruning.half_made[0].id.clone()]).await.unwrap();
    let after = image::look(&api).await.unwrap();
    assert_eq!((after.images.len(), after.snapshots.len()), (0, 0));
    image::end(&api, Some(&uploaded.id), std::slice::from_ref(snapshot)).await.unwrap();
}
