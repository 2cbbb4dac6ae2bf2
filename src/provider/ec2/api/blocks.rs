//! The blocks of a snapshot, written one by one: the EBS direct APIs.
//!
//! Owns those three requests. Which blocks there are, and what becomes of a snapshot that was not finished, is for the
//! caller; whatever else there is to do with a snapshot is in `snapshots`.

use std::collections::BTreeMap;
use std::fmt;

use aws_sdk_ebs::primitives::ByteStream;
use aws_sdk_ebs::types::{ChecksumAggregationMethod, ChecksumAlgorithm, Tag};

use super::action::Action;
use super::client::{Api, Call};
use super::encode::base64;
use super::error::ApiError;

/// EBS has blocks of this size and of no other.
pub const BLOCK_SIZE: usize = 512 * 1024;
/// EBS gives a snapshot up when nothing was written to it for so many minutes: the least that it takes, for the day on
/// which nobody is left to delete it.
const GIVEN_UP_AFTER: i32 = 10;

/// A snapshot to be written.
#[derive(Clone, PartialEq, Eq)]
pub struct SnapshotOrder {
    /// At most 64 ASCII characters, of this order alone: EBS gives the same snapshot for the same token.
    pub client_token: String,
    /// For people.
    pub description: String,
    /// GiB of the volumes that are made of it.
    pub size: u32,
    /// From its first moment.
    pub tags: BTreeMap<String, String>,
}

impl fmt::Debug for SnapshotOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotOrder")
            .field("client_token", &self.client_token)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl Api {
    /// Begins a snapshot; its id. It is encrypted where the account has that as its default.
    pub async fn start_snapshot(&self, order: &SnapshotOrder) -> Result<String, ApiError> {
        let call = Call::new(Action::StartSnapshot).of(&order.description);
        let tags: Vec<Tag> =
            order.tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
        let send = || {
            let request = self.ebs_client().start_snapshot().client_token(&order.client_token);
            let request = request.description(&order.description).volume_size(i64::from(order.size));
            request.timeout(GIVEN_UP_AFTER).set_tags(Some(tags.clone())).send()
        };
        let output = self.call(&call, send).await?;
        // The size of its blocks is in there too, and is what it always is: EBS refuses a block of any other.
        output
            .snapshot_id()
            .map(str::to_owned)
            .ok_or_else(|| self.incomplete(&call, "the answer has no snapshot"))
    }

    /// Writes a block, whole; EBS checks that it arrived as it was sent. Doing it twice is doing it once.
    pub async fn put_snapshot_block(
        &self,
        snapshot: &str,
        index: u32,
        data: bytes::Bytes,
        sha256: &[u8; 32],
    ) -> Result<(), ApiError> {
        let call = Call::new(Action::PutSnapshotBlock).of(format!("block {index} of {snapshot}"));
        let whole = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
        let (length, checksum) = (whole(data.len()), base64(sha256));
        let send = || {
            let request = self.ebs_client().put_snapshot_block().snapshot_id(snapshot);
            let request = request.block_index(i32::try_from(index).unwrap_or(i32::MAX));
            let request = request.checksum_algorithm(ChecksumAlgorithm::ChecksumAlgorithmSha256);
            request.checksum(&checksum).data_length(length).block_data(ByteStream::from(data.clone())).send()
        };
        self.call(&call, send).await.map(|_| ())
    }

    /// Seals a snapshot that has so many blocks with the SHA-256 of their SHA-256s in their order. It is complete a
    /// while later.
    pub async fn complete_snapshot(
        &self,
        snapshot: &str,
        blocks: u32,
        sha256: &[u8; 32],
    ) -> Result<(), ApiError> {
        let call = Call::new(Action::CompleteSnapshot).of(snapshot);
        let checksum = base64(sha256);
        let send = || {
            let request = self.ebs_client().complete_snapshot().snapshot_id(snapshot);
            let request = request.changed_blocks_count(i32::try_from(blocks).unwrap_or(i32::MAX));
            let request = request.checksum_algorithm(ChecksumAlgorithm::ChecksumAlgorithmSha256);
            let method = ChecksumAggregationMethod::ChecksumAggregationLinear;
            request.checksum(&checksum).checksum_aggregation_method(method).send()
        };
        self.call(&call, send).await.map(|_| ())
    }
}
