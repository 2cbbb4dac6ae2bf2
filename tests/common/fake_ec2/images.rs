//! Images and snapshots of the account: how they come to be, who may have them, and how they end.
//!
//! Owns those actions of EC2, and the three of EBS that write what is in a snapshot, which speak JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use nix_broker::provider::ec2::api::{WireRequest, WireResponse};

use super::account::Account;
use super::form::{Form, tag_attribute};
use super::launch::invalid;
use super::{Answer, Asked, Refusal, xml};

/// The account itself.
pub(crate) const OWNER: &str = "111122223333";
const BLOCK: usize = 512 * 1024;
/// From sealed to complete.
const COMPLETES: Duration = Duration::from_secs(20);
/// From registered to available.
const AVAILABLE: Duration = Duration::from_secs(5);

/// An image.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    pub(crate) id: String,
    pub(crate) owner: String,
    pub(crate) name: String,
    pub(crate) arch: String,
    pub(crate) created: String,
    /// `None` is every region: those of other accounts.
    pub(crate) region: Option<String>,
    pub(crate) available: Duration,
    pub(crate) snapshot: String,
    pub(crate) size: u32,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) shared: BTreeSet<String>,
    /// What it was registered with.
    pub(crate) request: Form,
}

impl Image {
    pub(super) fn is_in(&self, region: &str) -> bool {
        self.region.as_deref().is_none_or(|is| is == region)
    }
}

/// A snapshot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) id: String,
    pub(crate) region: String,
    pub(crate) size: u32,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) blocks: BTreeMap<u32, Vec<u8>>,
    pub(crate) shared: BTreeSet<String>,
    pub(crate) token: String,
    pub(crate) started: Duration,
    /// When it is complete, once it is sealed.
    pub(crate) complete: Option<Duration>,
}

impl Snapshot {
    fn state(&self, now: Duration) -> &'static str {
        if self.complete.is_some_and(|at| at <= now) { "completed" } else { "pending" }
    }
}

/// A request to EBS, as its path has it.
pub(super) struct Block<'a> {
    pub(super) action: &'static str,
    snapshot: &'a str,
    index: u32,
}

/// What this request asks of EBS; `None` is a request to EC2.
pub(super) fn to_ebs(target: &str) -> Option<Block<'_>> {
    let (method, path) = target.split_once(' ')?;
    let path = path.split('?').next()?;
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match (method, parts.as_slice()) {
        ("POST", ["snapshots"]) => Some(Block { action: "StartSnapshot", snapshot: "", index: 0 }),
        ("POST", ["snapshots", "completion", snapshot]) => {
            Some(Block { action: "CompleteSnapshot", snapshot, index: 0 })
        }
        ("PUT", ["snapshots", snapshot, "blocks", index]) => {
            Some(Block { action: "PutSnapshotBlock", snapshot, index: index.parse().ok()? })
        }
        _ => None,
    }
}

/// What EBS is asked for, as faults and tests look at it.
pub(super) fn form_of(block: &Block<'_>) -> Form {
    Form::of(&[("SnapshotId", block.snapshot), ("BlockIndex", &block.index.to_string())])
}

/// A refusal as EBS writes it.
pub(super) fn refused(refusal: &Refusal) -> WireResponse {
    // As EBS calls what EC2 calls otherwise.
    let code = match refusal.code.as_str() {
        "UnauthorizedOperation" => "AccessDeniedException",
        "RequestLimitExceeded" => "RequestThrottledException",
        "InternalError" => "InternalServerException",
        code => code,
    };
    let body = serde_json::json!({ "__type": code, "Message": refusal.message });
    WireResponse { status: refusal.status, body: body.to_string().into_bytes() }
}

fn ebs_refusal(code: &str, words: &str) -> Refusal {
    Refusal::new(if code == "ResourceNotFoundException" { 404 } else { 400 }, code, words)
}

/// Base64, as checksums are written.
fn base64(bytes: &[u8]) -> String {
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits: Vec<bool> =
        bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1)).collect();
    let letter = |six: &[bool]| {
        let value = (0..6).fold(0, |value, bit| value << 1 | usize::from(six.get(bit) == Some(&true)));
        char::from(letters[value])
    };
    let mut text: String = bits.chunks(6).map(letter).collect();
    while !text.len().is_multiple_of(4) {
        text.push('=');
    }
    text
}

impl Account {
    pub(super) fn ebs(
        &mut self,
        request: &WireRequest,
        block: &Block<'_>,
        region: &str,
        now: Duration,
    ) -> Result<serde_json::Value, Refusal> {
        let header = |name: &str| request.headers.get(name).map(String::as_str).unwrap_or_default();
        if block.action == "StartSnapshot" {
            return self.start_snapshot(&request.body, region, now);
        }
        let hidden = self.settings.hidden;
        let unknown = || ebs_refusal("ResourceNotFoundException", "The snapshot does not exist.");
        let snapshot = self.snapshots.get_mut(block.snapshot).ok_or_else(unknown)?;
        if snapshot.region != region || now < snapshot.started + hidden {
            return Err(unknown());
        }
        if snapshot.complete.is_some() {
            return Err(ebs_refusal("ValidationException", "The snapshot is not in the pending state."));
        }
        if header("x-amz-checksum-algorithm") != "SHA256" {
            return Err(ebs_refusal("ValidationException", "Invalid checksum algorithm"));
        }
        if block.action == "PutSnapshotBlock" {
            let length = header("x-amz-data-length").parse();
            let fits = request.body.len() == BLOCK && length == Ok(BLOCK);
            let is_there = u64::from(block.index) * (BLOCK as u64) < u64::from(snapshot.size) << 30;
            if !fits || !is_there {
                return Err(ebs_refusal("ValidationException", "Invalid block"));
            }
            let sum = base64(&Sha256::digest(&request.body));
            if header("x-amz-checksum") != sum {
                return Err(ebs_refusal("ValidationException", "Checksum does not match the block's data"));
            }
            snapshot.blocks.insert(block.index, request.body.clone());
            return Ok(serde_json::json!({}));
        }
        let mut sum = Sha256::new();
        for data in snapshot.blocks.values() {
            sum.update(Sha256::digest(data));
        }
        let count = snapshot.blocks.len().to_string();
        if header("x-amz-changedblockscount") != count
            || header("x-amz-checksum") != base64(&sum.finalize())
            || header("x-amz-checksum-aggregation-method") != "LINEAR"
        {
            return Err(ebs_refusal("ValidationException", "The snapshot is not what it is said to be"));
        }
        snapshot.complete = Some(now + COMPLETES);
        Ok(serde_json::json!({ "Status": "pending" }))
    }

    fn start_snapshot(
        &mut self,
        body: &[u8],
        region: &str,
        now: Duration,
    ) -> Result<serde_json::Value, Refusal> {
        let body: serde_json::Value = serde_json::from_slice(body).unwrap();
        let token = body["ClientToken"].as_str().unwrap().to_owned();
        let known = self.snapshots.values().find(|one| one.token == token).map(|one| one.id.clone());
        let id = known.unwrap_or_else(|| self.new_id("snap"));
        let tags = body["Tags"].as_array().unwrap().iter();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let snapshot = Snapshot {
            id: id.clone(),
            region: region.to_owned(),
            size: u32::try_from(body["VolumeSize"].as_u64().unwrap()).unwrap(),
            tags: tags.map(|tag| (text(&tag["Key"]), text(&tag["Value"]))).collect(),
            token,
            started: now,
            ..Snapshot::default()
        };
        assert!((10..=4320).contains(&body["Timeout"].as_u64().unwrap()), "{body}");
        self.snapshots.entry(id.clone()).or_insert(snapshot);
        Ok(serde_json::json!({ "SnapshotId": id, "BlockSize": BLOCK, "Status": "pending" }))
    }

    pub(super) fn describe_images(&mut self, asked: &Asked<'_>) -> Answer {
        let ids = asked.form.list("ImageId");
        let owners = asked.form.list("Owner");
        let here = |image: &&Image| image.is_in(asked.region);
        if let Some(unknown) =
            ids.iter().find(|id| !self.images.iter().filter(here).any(|image| image.id == **id))
        {
            let words = format!("The image id '[{unknown}]' does not exist");
            return Err(Refusal::new(400, "InvalidAMIID.NotFound", words));
        }
        let mut found = Vec::new();
        for image in self.images.iter().filter(here) {
            let state = if image.available <= asked.now { "available" } else { "pending" };
            let attribute = |name: &str| {
                let value = match name {
                    "name" => &image.name,
                    "architecture" => &image.arch,
                    "state" => state,
                    "owner-id" => &image.owner,
                    "image-id" => &image.id,
                    _ => return tag_attribute(&image.tags, name),
                };
                Some(vec![value.to_owned()])
            };
            let is_owned =
                |owner: &String| *owner == image.owner || (owner == "self" && image.owner == OWNER);
            let chosen = (ids.is_empty() || ids.contains(&image.id))
                && (owners.is_empty() || owners.iter().any(is_owned))
                && asked.form.passes(attribute)?;
            if chosen {
                let root = xml::leaf("snapshotId", &image.snapshot) + &xml::leaf("volumeSize", image.size);
                let device = xml::leaf("deviceName", "/dev/xvda") + &xml::node("ebs", root);
                found.push(
                    [
                        xml::leaf("imageId", &image.id),
                        xml::leaf("name", &image.name),
                        xml::leaf("imageOwnerId", &image.owner),
                        xml::leaf("imageState", state),
                        xml::leaf("architecture", &image.arch),
                        xml::leaf("creationDate", &image.created),
                        xml::leaf("rootDeviceName", "/dev/xvda"),
                        xml::leaf("imdsSupport", "v2.0"),
                        xml::list("blockDeviceMapping", [device]),
                        xml::tags(&image.tags),
                    ]
                    .concat(),
                );
            }
        }
        let (page, next) = asked.form.page(&found, self.settings.page);
        Ok(xml::list("imagesSet", page) + &xml::optional("nextToken", next))
    }

    pub(super) fn register_image(&mut self, asked: &Asked<'_>) -> Answer {
        let name = asked.form.get("Name").unwrap_or_default().to_owned();
        if let Some(image) = self.images.iter().find(|it| it.name == name && it.is_in(asked.region)) {
            let words = format!("AMI name {name} is already in use by AMI {}", image.id);
            return Err(Refusal::new(400, "InvalidAMIName.Duplicate", words));
        }
        let root = asked.form.below("BlockDeviceMapping.1");
        let snapshot = root.get("Ebs.SnapshotId").unwrap_or_default().to_owned();
        let size = root.get("Ebs.VolumeSize").and_then(|size| size.parse().ok()).unwrap_or(0);
        match self.snapshots.get(&snapshot).filter(|one| one.region == asked.region) {
            None => {
                let words = format!("The snapshot '{snapshot}' does not exist.");
                return Err(Refusal::new(400, "InvalidSnapshot.NotFound", words));
            }
            Some(one) if one.state(asked.now) != "completed" || size < one.size => {
                return Err(invalid(&format!("Snapshot {snapshot} is not complete, or larger than {size}")));
            }
            Some(_) => {}
        }
        let id = self.new_id("ami");
        self.images.push(Image {
            id: id.clone(),
            owner: OWNER.to_owned(),
            name,
            arch: asked.form.get("Architecture").unwrap_or_default().to_owned(),
            created: xml::time(asked.now),
            region: Some(asked.region.to_owned()),
            available: asked.now + AVAILABLE,
            snapshot,
            size,
            tags: asked.form.tags_for("image"),
            shared: BTreeSet::new(),
            request: asked.form.clone(),
        });
        Ok(xml::leaf("imageId", id))
    }

    pub(super) fn copy_image(&mut self, asked: &Asked<'_>) -> Answer {
        let source = asked.form.get("SourceImageId").unwrap_or_default();
        let from = asked.form.get("SourceRegion").unwrap_or_default();
        let image = self.images.iter().find(|image| image.id == source && image.is_in(from)).cloned();
        let image = image.ok_or_else(|| Refusal::new(400, "InvalidAMIID.NotFound", "no such image"))?;
        let token = asked.form.get("ClientToken").unwrap_or_default().to_owned();
        let made = |one: &&Snapshot| one.token == token && one.region == asked.region;
        if let Some(known) = self.snapshots.values().find(made) {
            let copy = self.images.iter().find(|image| image.snapshot == known.id).unwrap();
            return Ok(xml::leaf("imageId", &copy.id));
        }
        let snapshot = Snapshot {
            id: self.new_id("snap"),
            region: asked.region.to_owned(),
            tags: asked.form.tags_for("snapshot"),
            shared: BTreeSet::new(),
            token,
            started: asked.now,
            complete: Some(asked.now),
            ..self.snapshots[&image.snapshot].clone()
        };
        let copy = Image {
            id: self.new_id("ami"),
            region: Some(asked.region.to_owned()),
            name: asked.form.get("Name").unwrap_or_default().to_owned(),
            created: xml::time(asked.now),
            available: asked.now + AVAILABLE,
            snapshot: snapshot.id.clone(),
            tags: asked.form.tags_for("image"),
            shared: BTreeSet::new(),
            ..image
        };
        let id = copy.id.clone();
        self.snapshots.insert(snapshot.id.clone(), snapshot);
        self.images.push(copy);
        Ok(xml::leaf("imageId", id))
    }

    fn own_image(&mut self, asked: &Asked<'_>) -> Result<&mut Image, Refusal> {
        let id = asked.form.get("ImageId").unwrap_or_default();
        let image = self
            .images
            .iter_mut()
            .find(|image| image.id == id && image.owner == OWNER && image.is_in(asked.region));
        image.ok_or_else(|| {
            Refusal::new(400, "InvalidAMIID.NotFound", format!("The image id '[{id}]' does not exist"))
        })
    }

    pub(super) fn deregister_image(&mut self, asked: &Asked<'_>) -> Answer {
        let id = self.own_image(asked)?.id.clone();
        self.images.retain(|image| image.id != id);
        Ok(xml::done())
    }

    pub(super) fn image_attribute(&mut self, asked: &Asked<'_>) -> Answer {
        let users = self.own_image(asked)?.shared.iter().map(|user| xml::leaf("userId", user));
        Ok(xml::list("launchPermission", users.collect::<Vec<_>>()))
    }

    pub(super) fn modify_image(&mut self, asked: &Asked<'_>) -> Answer {
        let users = asked.form.list("UserId");
        let image = self.own_image(asked)?;
        match (asked.form.get("Attribute"), asked.form.get("OperationType")) {
            (Some("launchPermission"), Some("add")) => image.shared.extend(users),
            (Some("launchPermission"), Some("remove")) => image.shared.retain(|it| !users.contains(it)),
            other => return Err(invalid(&format!("{other:?}"))),
        }
        Ok(xml::done())
    }

    fn snapshot_mut(&mut self, asked: &Asked<'_>) -> Result<&mut Snapshot, Refusal> {
        let id = asked.form.get("SnapshotId").unwrap_or_default();
        self.snapshots.get_mut(id).filter(|one| one.region == asked.region).ok_or_else(|| {
            let words = format!("The snapshot '{id}' does not exist.");
            Refusal::new(400, "InvalidSnapshot.NotFound", words)
        })
    }

    pub(super) fn modify_snapshot(&mut self, asked: &Asked<'_>) -> Answer {
        let users = asked.form.list("UserId");
        let snapshot = self.snapshot_mut(asked)?;
        match (asked.form.get("Attribute"), asked.form.get("OperationType")) {
            (Some("createVolumePermission"), Some("add")) => snapshot.shared.extend(users),
            (Some("createVolumePermission"), Some("remove")) => {
                snapshot.shared.retain(|it| !users.contains(it));
            }
            other => return Err(invalid(&format!("{other:?}"))),
        }
        Ok(xml::done())
    }

    pub(super) fn delete_snapshot(&mut self, asked: &Asked<'_>) -> Answer {
        let id = self.snapshot_mut(asked)?.id.clone();
        if let Some(image) = self.images.iter().find(|image| image.snapshot == id) {
            let words = format!("The snapshot {id} is currently in use by {}", image.id);
            return Err(Refusal::new(400, "InvalidSnapshot.InUse", words));
        }
        self.snapshots.remove(&id);
        Ok(xml::done())
    }

    pub(super) fn describe_snapshots(&mut self, asked: &Asked<'_>) -> Answer {
        let mut found = Vec::new();
        for one in self.snapshots.values().filter(|one| one.region == asked.region) {
            let attribute = |name: &str| match name {
                "snapshot-id" => Some(vec![one.id.clone()]),
                _ => tag_attribute(&one.tags, name),
            };
            if asked.form.passes(attribute)? {
                found.push(
                    [
                        xml::leaf("snapshotId", &one.id),
                        xml::leaf("ownerId", OWNER),
                        xml::leaf("status", one.state(asked.now)),
                        xml::leaf("volumeSize", one.size),
                        xml::leaf("startTime", xml::time(one.started)),
                        xml::leaf("fullSnapshotSizeInBytes", one.blocks.len() * BLOCK),
                        xml::tags(&one.tags),
                    ]
                    .concat(),
                );
            }
        }
        let (page, next) = asked.form.page(&found, self.settings.page);
        Ok(xml::list("snapshotSet", page) + &xml::optional("nextToken", next))
    }
}
