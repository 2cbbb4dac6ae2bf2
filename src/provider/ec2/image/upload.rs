//! From a disk to an AMI that can be launched, or to nothing.
//!
//! Owns the order of the steps, and that a snapshot which does not become part of an AMI is deleted again: nothing is
//! written, hence nothing costs, before EC2 has said that we may delete the snapshot and register an image of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::{Instant, sleep};

use super::blocks::{self, Block, BlockPlan};
use super::disk::DiskFile;
use super::{BYTES_TAG, CONTENT_TAG, ImageError, LABEL_TAG, OURS, UPLOAD_TAG, VERSION_TAG, hex};
use crate::provider::ec2::api::{Api, ApiError, BootMode, ErrorClass, ImageOrder, OwnImage, SnapshotOrder};
use crate::provider::random;

/// Blocks on their way at a time: what a slow line still takes within the time that a request has, and a fast one does
/// not wait for.
const AT_A_TIME: usize = 16;
/// A snapshot that was just begun may be unknown for a while, and requests are counted for each snapshot.
const BLOCK_WITHIN: Duration = Duration::from_secs(180);
/// After so long the tags of a snapshot are known everywhere.
const YOUNG: Duration = Duration::from_secs(20);
/// Between two attempts, and between two looks.
const WAIT: Duration = Duration::from_secs(3);
/// From sealed to complete, and from registered to available. It takes a minute or two.
const READY_WITHIN: Duration = Duration::from_secs(30 * 60);
/// How often a snapshot is asked to be deleted.
const DELETIONS: u32 = 5;
/// Where NixOS, and every image for Xen's successors, has its root.
const ROOT_DEVICE: &str = "/dev/xvda";
/// What a name may have.
const MAX_NAME: usize = 128;

/// What an image is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadOrder {
    /// Unique in its account and region.
    pub name: String,
    /// `x86_64` or `arm64`.
    pub arch: String,
    /// How it starts.
    pub boot_mode: BootMode,
    /// What it says it is, such as a release of NixOS.
    pub label: Option<String>,
}

/// How far an upload is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is a snapshot to write to.
    Started {
        /// Its id.
        snapshot: String,
    },
    /// So many of its blocks are written.
    Written {
        /// So many.
        done: usize,
        /// Of so many.
        of: usize,
    },
    /// All are, and EBS has to make them a snapshot.
    Sealed,
    /// There is an image, which is not available yet.
    Registered {
        /// Its id.
        image: String,
    },
}

/// An image that can be launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uploaded {
    /// `ami-...`
    pub id: String,
    /// Its name.
    pub name: String,
    /// Nothing was uploaded: an earlier upload had the same disk.
    pub is_old: bool,
}

/// The name of an image of this content: what it is, and a few digits that no other content has.
pub fn name_of(label: &str, system: &str, plan: &BlockPlan) -> String {
    let digits = &hex(&plan.content())[..8];
    let allowed = |c: char| c.is_ascii_alphanumeric() || "()[] ./-'@_".contains(c);
    let label: String = label.chars().map(|c| if allowed(c) { c } else { '-' }).collect();
    let fixed = format!("nix-broker/-{system}-{digits}").len();
    let label: String = label.chars().take(MAX_NAME.saturating_sub(fixed)).collect();
    format!("nix-broker/{label}-{system}-{digits}")
}

/// Uploads a disk, whose plan this is, until the image can be launched; ends early, with nothing left, when `stop` does.
pub async fn upload(
    api: &Api,
    file: &Arc<DiskFile>,
    plan: &BlockPlan,
    order: &UploadOrder,
    stop: impl Future<Output = ()>,
    tell: &mut dyn FnMut(Progress),
) -> Result<Uploaded, ImageError> {
    if let Some(uploaded) = preflight(api, plan, order).await? {
        return Ok(uploaded);
    }
    let token = random::token().map_err(|source| ImageError::Read { path: "/dev/urandom".into(), source })?;
    let mut image = image_order(plan, order, &token);
    let begun = SnapshotOrder {
        client_token: token.clone(),
        description: order.name.clone(),
        size: plan.gib(),
        tags: image.tags.clone(),
    };
    image.snapshot = match api.start_snapshot(&begun).await {
        Ok(snapshot) => snapshot,
        Err(error) => return Err(forget(api, &begun.client_token, error).await),
    };
    tell(Progress::Started { snapshot: image.snapshot.clone() });
    let mut stop = std::pin::pin!(stop);
    let made = tokio::select! {
        biased;
        () = &mut stop => Err(ImageError::Interrupted),
        made = write(api, file, plan, &image, tell) => made,
    };
    let made = match made {
        Ok(()) => register(api, &image).await,
        Err(error) => Err(error),
    };
    let id = match made {
        Ok(id) => id,
        Err(error) => return Err(abandon(api, &image.snapshot, error).await),
    };
    tell(Progress::Registered { image: id.clone() });
    let ready = tokio::select! {
        biased;
        () = &mut stop => Err(ImageError::Unready(id.clone())),
        ready = available(api, &id) => ready,
    };
    match ready {
        Ok(()) => Ok(Uploaded { id, name: image.name, is_old: false }),
        Err(error @ ImageError::Failed { .. }) => {
            if let Err(refusal) = api.deregister_image(&id).await {
                tracing::warn!(image = id, error = %refusal, "cannot deregister an image that has failed");
            }
            Err(abandon(api, &image.snapshot, error).await)
        }
        // It has its snapshot, and may still become available.
        Err(error) => Err(error),
    }
}

/// What can be known before anything is made: the image that has this content already, or what is in the way.
pub async fn preflight(
    api: &Api,
    plan: &BlockPlan,
    order: &UploadOrder,
) -> Result<Option<Uploaded>, ImageError> {
    if let Some(image) = find_content(api, &hex(&plan.content()), &order.arch).await? {
        return Ok(Some(Uploaded { id: image.id, name: image.name, is_old: true }));
    }
    if let Some(taken) = named(api, &order.name).await? {
        return Err(ImageError::NameTaken { id: taken.id, name: taken.name });
    }
    Ok(None)
}

fn image_order(plan: &BlockPlan, order: &UploadOrder, token: &str) -> ImageOrder {
    ImageOrder {
        name: order.name.clone(),
        description: format!("Builder of nix-broker {}", env!("CARGO_PKG_VERSION")),
        arch: order.arch.clone(),
        boot_mode: order.boot_mode,
        root_device: ROOT_DEVICE.to_owned(),
        // Not begun yet.
        snapshot: String::new(),
        size: plan.gib(),
        tags: tags(order, plan, token),
    }
}

fn tags(order: &UploadOrder, plan: &BlockPlan, token: &str) -> BTreeMap<String, String> {
    let mut tags: BTreeMap<String, String> =
        OURS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let mut put = |key: &str, value: String| drop(tags.insert(key.to_owned(), value));
    put("Name", order.name.clone());
    put(CONTENT_TAG, hex(&plan.content()));
    put(UPLOAD_TAG, token.to_owned());
    put(BYTES_TAG, plan.bytes().to_string());
    put(VERSION_TAG, env!("CARGO_PKG_VERSION").to_owned());
    if let Some(label) = &order.label {
        // As much as a tag takes.
        put(LABEL_TAG, label.chars().take(256).collect());
    }
    tags
}

/// An image of ours of this content that can be launched, or will be.
pub(super) async fn find_content(
    api: &Api,
    content: &str,
    arch: &str,
) -> Result<Option<OwnImage>, ImageError> {
    let [managed, image] = OURS.map(|(key, value)| (format!("tag:{key}"), [value.to_owned()]));
    let tag = format!("tag:{CONTENT_TAG}");
    let filters = [(managed.0.as_str(), &managed.1[..]), (&image.0, &image.1), (&tag, &[content.to_owned()])];
    let found = api.own_images(&filters).await?.into_iter();
    // Filters are checked again: what is taken for uploaded will not be.
    let mut fits = found.filter(|found| {
        found.arch == arch
            && ["available", "pending"].contains(&found.state.as_str())
            && super::is_ours(&found.tags)
            && found.tags.get(CONTENT_TAG).is_some_and(|tag| tag == content)
    });
    Ok(fits.next())
}

async fn named(api: &Api, name: &str) -> Result<Option<OwnImage>, ImageError> {
    let found = api.own_images(&[("name", &[name.to_owned()])]).await?;
    Ok(found.into_iter().find(|image| image.name == name))
}

/// Writes and seals the snapshot, until it is complete.
async fn write(
    api: &Api,
    file: &Arc<DiskFile>,
    plan: &BlockPlan,
    image: &ImageOrder,
    tell: &mut dyn FnMut(Progress),
) -> Result<(), ImageError> {
    let snapshot = image.snapshot.as_str();
    let begun = Instant::now();
    permitted(begun, || api.may_delete_snapshot(snapshot)).await?;
    permitted(begun, || api.may_register_image(image)).await?;
    let of = plan.blocks.len();
    tell(Progress::Written { done: 0, of });
    let mut written = stream::iter(&plan.blocks)
        .map(|planned| put(api, file, plan.size, snapshot, *planned, begun))
        .buffer_unordered(AT_A_TIME)
        .enumerate()
        .map(|(before, result)| result.map(|()| before + 1));
    while let Some(done) = written.try_next().await? {
        tell(Progress::Written { done, of });
    }
    drop(written);
    tell(Progress::Sealed);
    let blocks = u32::try_from(of).unwrap_or(u32::MAX);
    match api.complete_snapshot(snapshot, blocks, &plan.sha256()).await {
        // A repeated request is refused where the first one had arrived; EBS gives up what is not sealed.
        Err(error) if !error.may_have_acted => Err(error.into()),
        Ok(()) | Err(_) => completed(api, snapshot).await,
    }
}

async fn put(
    api: &Api,
    file: &Arc<DiskFile>,
    size: u64,
    snapshot: &str,
    planned: Block,
    begun: Instant,
) -> Result<(), ImageError> {
    let from = Arc::clone(file);
    let read = tokio::task::spawn_blocking(move || {
        let data = blocks::block(size, planned.index, |at, bytes| from.read(at, bytes))?;
        let sum = blocks::sum(&data);
        Ok((bytes::Bytes::from(data), sum))
    });
    let read = read.await.unwrap_or_else(|panic| Err(std::io::Error::other(panic)));
    let (data, sum) = read.map_err(|source| ImageError::Read { path: file.path().to_owned(), source })?;
    if sum != planned.sha256 {
        return Err(ImageError::Changed(planned.index));
    }
    let deadline = Instant::now() + BLOCK_WITHIN;
    loop {
        match api.put_snapshot_block(snapshot, planned.index, data.clone(), &planned.sha256).await {
            Err(error) if is_passing(error.class) && Instant::now() < deadline => sleep(WAIT).await,
            Err(error) if is_young(&error, begun) => sleep(WAIT).await,
            other => return other.map_err(ImageError::Api),
        }
    }
}

/// Asks for a permission until it is given, or surely is not.
async fn permitted<R>(begun: Instant, ask: impl Fn() -> R) -> Result<(), ApiError>
where
    R: Future<Output = Result<(), ApiError>>,
{
    loop {
        match ask().await {
            Err(error) if is_young(&error, begun) => sleep(WAIT).await,
            other => return other,
        }
    }
}

/// What we may do to a snapshot depends on its tags, which may not be known everywhere when it was just begun.
fn is_young(error: &ApiError, begun: Instant) -> bool {
    error.class == ErrorClass::Identity && begun.elapsed() < YOUNG
}

/// Whether the same request may do later.
fn is_passing(class: ErrorClass) -> bool {
    match class {
        // A young snapshot is not known everywhere.
        ErrorClass::NotFound | ErrorClass::Throttle | ErrorClass::Transient | ErrorClass::Busy => true,
        ErrorClass::Capacity
        | ErrorClass::Quota(_)
        | ErrorClass::Subnet
        | ErrorClass::SpotRole
        | ErrorClass::Identity
        | ErrorClass::Config
        | ErrorClass::Idempotency
        | ErrorClass::Unknown => false,
    }
}

/// The state of a snapshot, if EC2 shows it.
async fn state_of(api: &Api, snapshot: &str) -> Result<Option<String>, ImageError> {
    let found = api.snapshots(&[("snapshot-id", &[snapshot.to_owned()])]).await;
    let found = match found {
        Err(error) if error.class == ErrorClass::NotFound => Vec::new(),
        other => other?,
    };
    Ok(found.into_iter().find(|found| found.id == snapshot).map(|found| found.state))
}

async fn completed(api: &Api, snapshot: &str) -> Result<(), ImageError> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        let state = state_of(api, snapshot).await?.unwrap_or_else(|| "unknown".to_owned());
        match state.as_str() {
            "completed" => return Ok(()),
            "error" => return Err(ImageError::Failed { id: snapshot.to_owned(), state, reason: None }),
            _ if Instant::now() >= deadline => return Err(slow(snapshot, state)),
            _ => sleep(WAIT).await,
        }
    }
}

fn slow(id: &str, state: String) -> ImageError {
    ImageError::Slow { id: id.to_owned(), state, minutes: READY_WITHIN.as_secs() / 60 }
}

/// Makes the image. Where it is not clear whether that was done, the name tells.
async fn register(api: &Api, order: &ImageOrder) -> Result<String, ImageError> {
    let error = match api.register_image(order).await {
        Ok(id) => return Ok(id),
        Err(error) => error,
    };
    if error.may_have_acted || error.code.as_deref() == Some("InvalidAMIName.Duplicate") {
        match named(api, &order.name).await? {
            Some(image) if image.snapshots.contains(&order.snapshot) => return Ok(image.id),
            Some(other) => return Err(ImageError::NameTaken { id: other.id, name: other.name }),
            None => {}
        }
    }
    Err(error.into())
}

/// Waits until an image can be launched.
pub(super) async fn available(api: &Api, id: &str) -> Result<(), ImageError> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        let found = match api.own_images(&[("image-id", &[id.to_owned()])]).await {
            Err(error) if error.is_image_gone() => Vec::new(),
            other => other?,
        };
        let image = found.into_iter().find(|image| image.id == id);
        let state = image.as_ref().map_or("unknown", |image| image.state.as_str()).to_owned();
        match state.as_str() {
            "available" => return Ok(()),
            "failed" | "error" | "invalid" => {
                let reason = image.and_then(|image| image.state_reason);
                return Err(ImageError::Failed { id: id.to_owned(), state, reason });
            }
            _ if Instant::now() >= deadline => return Err(slow(id, state)),
            _ => sleep(WAIT).await,
        }
    }
}

/// Deletes the snapshot of an upload that came to nothing; what there is to say about it.
async fn abandon(api: &Api, snapshot: &str, why: ImageError) -> ImageError {
    let mut attempt = 1;
    loop {
        match api.delete_snapshot(snapshot).await {
            Ok(()) => return why,
            Err(error) if attempt < DELETIONS && is_passing(error.class) => {
                attempt += 1;
                sleep(WAIT).await;
            }
            Err(refusal) => {
                return ImageError::Left {
                    snapshot: snapshot.to_owned(),
                    region: api.region().to_owned(),
                    refusal: Box::new(refusal),
                    source: Box::new(why),
                };
            }
        }
    }
}

/// A snapshot that may have been begun, but nobody has told us its name: it is found by what it says of itself.
async fn forget(api: &Api, token: &str, error: ApiError) -> ImageError {
    if !error.may_have_acted {
        return error.into();
    }
    let mut why = ImageError::Api(error);
    match api.snapshots(&[(&format!("tag:{UPLOAD_TAG}"), &[token.to_owned()])]).await {
        Ok(found) => {
            for lost in found {
                why = abandon(api, &lost.id, why).await;
            }
        }
        Err(error) => tracing::warn!(
            %error, "cannot see whether a snapshot was begun; EBS gives it up by itself, and `broker image prune` deletes it"
        ),
    }
    why
}
