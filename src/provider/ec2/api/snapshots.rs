//! Snapshots of volumes, from the outside: found, shared, deleted.
//!
//! Owns those requests. What is in a snapshot is written by `blocks`.

use std::collections::BTreeMap;

use aws_sdk_ec2::types::{OperationType, Snapshot as SdkSnapshot, SnapshotAttributeName};

use super::action::Action;
use super::client::{Api, Call, Repeat};
use super::error::{ApiError, ErrorClass};
use super::read;

const PAGE: i32 = 500;

/// A snapshot of this account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// `snap-...`
    pub id: String,
    /// `pending`, `completed`, `error`, ...
    pub state: String,
    /// GiB of a volume that is made of it.
    pub size: u32,
    /// What is in it, hence what it costs, in bytes, where EC2 says.
    pub bytes: Option<u64>,
    /// Seconds since 1970.
    pub started: i64,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

impl Api {
    /// The snapshots of this account that pass these filters.
    pub async fn snapshots(&self, filters: &[(&str, &[String])]) -> Result<Vec<Snapshot>, ApiError> {
        let call = Call::new(Action::DescribeSnapshots);
        let filters = read::filters(filters);
        let send = |next: Option<String>| {
            let request = self.client().describe_snapshots().owner_ids("self");
            let request = request.set_filters(Some(filters.clone()));
            request.max_results(PAGE).set_next_token(next).send()
        };
        self.pages(&call, send, |output| {
            let snapshots = output.snapshots().iter().filter_map(snapshot).collect();
            (snapshots, output.next_token().map(str::to_owned))
        })
        .await
    }

    /// Deletes a snapshot. Succeeds where there is none.
    pub async fn delete_snapshot(&self, id: &str) -> Result<(), ApiError> {
        let call = Call::new(Action::DeleteSnapshot).of(id);
        let send = || self.client().delete_snapshot().snapshot_id(id).send();
        match self.call(&call, send).await {
            Err(error) if error.class == ErrorClass::NotFound => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Whether a snapshot could be deleted by us. Only a clear no is an error.
    pub async fn may_delete_snapshot(&self, id: &str) -> Result<(), ApiError> {
        let call = Call::new(Action::DeleteSnapshot).of(id).repeat(Repeat::Undone);
        self.permitted(&call, || self.client().delete_snapshot().snapshot_id(id).dry_run(true).send()).await
    }

    /// Lets these accounts make volumes of a snapshot, or no longer.
    pub async fn share_snapshot(&self, id: &str, accounts: &[String], share: bool) -> Result<(), ApiError> {
        let call = Call::new(Action::ModifySnapshotAttribute).of(id);
        let send = || {
            let request = self.client().modify_snapshot_attribute().snapshot_id(id);
            let request = request.attribute(SnapshotAttributeName::CreateVolumePermission);
            request.operation_type(operation(share)).set_user_ids(Some(accounts.to_vec())).send()
        };
        self.call(&call, send).await.map(|_| ())
    }

    /// Asks for a permission. What is not a clear no is a yes: it will be asked for in earnest.
    pub(super) async fn permitted<T, E, F, R>(&self, call: &Call<'_>, send: F) -> Result<(), ApiError>
    where
        F: Fn() -> R,
        R: Future<
            Output = Result<T, aws_sdk_ec2::error::SdkError<E, aws_sdk_ec2::config::http::HttpResponse>>,
        >,
        E: aws_sdk_ec2::error::ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        match self.call(call, send).await {
            Err(error) if error.class == ErrorClass::Identity => Err(error),
            Err(_) | Ok(_) => Ok(()),
        }
    }
}

/// Give or take.
pub(super) fn operation(share: bool) -> OperationType {
    if share { OperationType::Add } else { OperationType::Remove }
}

fn snapshot(snapshot: &SdkSnapshot) -> Option<Snapshot> {
    Some(Snapshot {
        id: snapshot.snapshot_id()?.to_owned(),
        state: snapshot.state().map(|state| state.as_str().to_owned()).unwrap_or_default(),
        size: snapshot.volume_size().and_then(|size| u32::try_from(size).ok()).unwrap_or(0),
        bytes: snapshot.full_snapshot_size_in_bytes().and_then(|bytes| u64::try_from(bytes).ok()),
        started: snapshot.start_time().map_or(0, |time| time.secs()),
        tags: read::tags(snapshot.tags()),
    })
}
