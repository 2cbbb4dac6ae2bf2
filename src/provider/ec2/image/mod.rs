//! Images for builders: a disk image becomes an AMI of this account, is found again by its tags, shared, and ended when
//! newer ones have taken its place.
//!
//! Owns what happens between a file and an AMI, and which AMIs may go. What is in the image is the business of
//! `nix/image.nix`; which image a launch takes is decided by [`super::boot::image`].
//!
//! ```text
//! pure      disk (what is in the file) ─▶ blocks (what is to be written)        prune (what may go)
//! effects   upload (snapshot, blocks, AMI, or nothing at all)      share      copy      prune
//! ```
//!
//! A snapshot costs until it is deleted, so an upload that ends in any other way than with an AMI deletes it. Where it
//! cannot, EBS gives up a snapshot to which nothing is written for ten minutes, and `broker image prune` deletes what is
//! left of that.

mod blocks;
mod copy;
mod disk;
mod found;
mod prune;
mod share;
mod upload;
mod wanted;

pub use blocks::{Block, BlockPlan};
pub use copy::copy;
pub use disk::{Disk, DiskError, DiskFile, LARGEST, recognise};
pub use found::ImageFile;
pub use prune::{Inventory, Kept, Pruning, choose, cost_of, end, look, monthly};
pub use share::{Sharing, share};
pub use upload::{Progress, UploadOrder, Uploaded, name_of, preflight, upload};
pub use wanted::wanted;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use super::api::{Api, ApiError, OwnImage};
use super::tags::{MANAGED_BY, MANAGED_TAG};

/// On every image that was uploaded by `broker image`, and on its snapshot.
pub const IMAGE_TAG: &str = "nix-broker:image";
/// The tags by which images of `broker image` are known.
pub const OURS: [(&str, &str); 2] = [(MANAGED_TAG, MANAGED_BY), (IMAGE_TAG, "1")];
/// The SHA-256 of what is on the disk: the same content is not uploaded twice.
const CONTENT_TAG: &str = "nix-broker:content";
/// One upload, so that its snapshot is found when the answer that names it was lost.
const UPLOAD_TAG: &str = "nix-broker:upload";
/// How much was written, in bytes: what is paid for.
const BYTES_TAG: &str = "nix-broker:bytes";
/// The version of the program that uploaded it.
const VERSION_TAG: &str = "nix-broker:version";
/// What the image says it is, such as a release of NixOS.
const LABEL_TAG: &str = "nix-broker:label";

/// Why an image is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// EC2 or EBS says no.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what can be uploaded.
    #[error("`{}` {problem}", path.display())]
    Disk {
        /// Which.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: DiskError,
    },
    /// Somebody writes to the file.
    #[error(
        "the file changes while it is uploaded: block {0} is not what it was a moment ago; leave it alone, and upload it again"
    )]
    Changed(u32),
    /// Names are unique in an account and region.
    #[error("`{id}` has the name `{name}` already: give another `--name`, or deregister that image")]
    NameTaken {
        /// The image that has it.
        id: String,
        /// The name.
        name: String,
    },
    /// A signal.
    #[error("interrupted; nothing is left of the upload")]
    Interrupted,
    /// A signal, when there was an image already.
    #[error("interrupted; `{0}` is registered, and `broker image list` shows when it is available")]
    Unready(String),
    /// EC2 has given up.
    #[error("EC2 shows `{id}` as {state}{}; upload the image again", reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})")))]
    Failed {
        /// The snapshot or the image.
        id: String,
        /// Its state.
        state: String,
        /// Why, as far as EC2 says.
        reason: Option<String>,
    },
    /// EC2 takes longer than it ever should.
    #[error("EC2 still shows `{id}` as {state} after {minutes} minutes")]
    Slow {
        /// The snapshot or the image.
        id: String,
        /// Its state.
        state: String,
        /// How long.
        minutes: u64,
    },
    /// There is no such image, or it is not one of ours.
    #[error("`{id}` is no image of `broker image` in {region}: `broker image list` shows those that are")]
    NotOurs {
        /// Which.
        id: String,
        /// Where.
        region: String,
    },
    /// Something that costs is left.
    #[error(
        "snapshot `{snapshot}` is left behind, and costs until it is gone, because it cannot be deleted ({refusal}): \
         `aws ec2 delete-snapshot --region {region} --snapshot-id {snapshot}`"
    )]
    Left {
        /// Which.
        snapshot: String,
        /// Where.
        region: String,
        /// Why it is there.
        refusal: Box<ApiError>,
        /// Why it was to be deleted.
        source: Box<Self>,
    },
}

/// Whether something with these tags is ours.
fn is_ours(tags: &BTreeMap<String, String>) -> bool {
    OURS.iter().all(|(key, value)| tags.get(*key).is_some_and(|found| found == value))
}

/// The image of ours with this id.
async fn ours(api: &Api, id: &str) -> Result<OwnImage, ImageError> {
    let found = match api.own_images(&[("image-id", &[id.to_owned()])]).await {
        Err(error) if error.is_image_gone() => Vec::new(),
        other => other?,
    };
    found
        .into_iter()
        .find(|image| image.id == id && is_ours(&image.tags))
        .ok_or_else(|| ImageError::NotOurs { id: id.to_owned(), region: api.region().to_owned() })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
