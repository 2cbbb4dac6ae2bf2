//! Images of this account: registered, found, shared, copied, deregistered.
//!
//! Owns those requests. Which images are ours, and which of them may go, is for the caller; the images of others that
//! builders boot are in `describe`.

use std::collections::BTreeMap;

use aws_sdk_ec2::types::{
    ArchitectureValues, BlockDeviceMapping, BootModeValues, EbsBlockDevice, Image as SdkImage,
    ImageAttributeName, ImdsSupportValues, ResourceType, VolumeType,
};

use super::action::Action;
use super::client::{Api, Call, Repeat};
use super::error::ApiError;
use super::instances::tags_on;
use super::read;
use super::snapshots::operation;

const PAGE: i32 = 1000;

/// How firmware starts an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootMode {
    /// From its boot sector.
    LegacyBios,
    /// From its EFI system partition.
    Uefi,
    /// From either; UEFI where an instance type has it.
    UefiPreferred,
}

impl BootMode {
    /// EC2's name of it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LegacyBios => "legacy-bios",
            Self::Uefi => "uefi",
            Self::UefiPreferred => "uefi-preferred",
        }
    }
}

/// An image to be registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageOrder {
    /// Unique in its account and region.
    pub name: String,
    /// For people.
    pub description: String,
    /// `x86_64` or `arm64`.
    pub arch: String,
    /// How it starts.
    pub boot_mode: BootMode,
    /// `/dev/xvda`
    pub root_device: String,
    /// What the root volume is made of.
    pub snapshot: String,
    /// GiB of the root volume.
    pub size: u32,
    /// From its first moment.
    pub tags: BTreeMap<String, String>,
}

/// An image of this account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnImage {
    /// `ami-...`
    pub id: String,
    /// Unique in its account and region.
    pub name: String,
    /// `x86_64` or `arm64`.
    pub arch: String,
    /// `available`, `pending`, `failed`, ...
    pub state: String,
    /// Why it is in this state, in EC2's words.
    pub state_reason: Option<String>,
    /// ISO 8601, so that the text sorts as the time does.
    pub creation_date: String,
    /// What its volumes are made of.
    pub snapshots: Vec<String>,
    /// GiB of its volumes together.
    pub size: u32,
    /// Its account.
    pub owner: String,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

impl Api {
    /// The images of this account that pass these filters.
    pub async fn own_images(&self, filters: &[(&str, &[String])]) -> Result<Vec<OwnImage>, ApiError> {
        let call = Call::new(Action::DescribeImages);
        let filters = read::filters(filters);
        let send = |next: Option<String>| {
            let request = self.client().describe_images().owners("self");
            let request = request.set_filters(Some(filters.clone()));
            request.max_results(PAGE).set_next_token(next).send()
        };
        self.pages(&call, send, |output| {
            let images = output.images().iter().filter_map(own_image).collect();
            (images, output.next_token().map(str::to_owned))
        })
        .await
    }

    /// Registers an image; its id. It can be used once it is available. No token makes this safe to repeat, but names
    /// are unique: who is told that the name is taken looks for what an earlier attempt made.
    pub async fn register_image(&self, order: &ImageOrder) -> Result<String, ApiError> {
        let call = Call::new(Action::RegisterImage).of(&order.name).repeat(Repeat::Undone);
        let output = self.call(&call, || self.register_request(order).send()).await?;
        output.image_id().map(str::to_owned).ok_or_else(|| self.incomplete(&call, "the answer has no image"))
    }

    /// Whether such an image could be registered by us. Only a clear no is an error.
    pub async fn may_register_image(&self, order: &ImageOrder) -> Result<(), ApiError> {
        let call = Call::new(Action::RegisterImage).of(&order.name).repeat(Repeat::Undone);
        self.permitted(&call, || self.register_request(order).dry_run(true).send()).await
    }

    fn register_request(
        &self,
        order: &ImageOrder,
    ) -> aws_sdk_ec2::operation::register_image::builders::RegisterImageFluentBuilder {
        let root = EbsBlockDevice::builder()
            .snapshot_id(&order.snapshot)
            .volume_size(i32::try_from(order.size).unwrap_or(i32::MAX))
            .volume_type(VolumeType::Gp3)
            .delete_on_termination(true)
            .build();
        let root = BlockDeviceMapping::builder().device_name(&order.root_device).ebs(root).build();
        self.client()
            .register_image()
            .name(&order.name)
            .description(&order.description)
            .architecture(ArchitectureValues::from(order.arch.as_str()))
            .boot_mode(BootModeValues::from(order.boot_mode.name()))
            .virtualization_type("hvm")
            .ena_support(true)
            .sriov_net_support("simple")
            .imds_support(ImdsSupportValues::V20)
            .root_device_name(&order.root_device)
            .block_device_mappings(root)
            .tag_specifications(tags_on(ResourceType::Image, &order.tags))
    }

    /// Takes an image back: nothing is launched from it any more, and its snapshots stay. Succeeds where there is none.
    pub async fn deregister_image(&self, id: &str) -> Result<(), ApiError> {
        let call = Call::new(Action::DeregisterImage).of(id);
        let send = || self.client().deregister_image().image_id(id).send();
        match self.call(&call, send).await {
            Err(error) if error.is_image_gone() => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Lets these accounts launch an image, or no longer. Their volumes need its snapshots as well.
    pub async fn share_image(&self, id: &str, accounts: &[String], share: bool) -> Result<(), ApiError> {
        let call = Call::new(Action::ModifyImageAttribute).of(id);
        let send = || {
            let request = self.client().modify_image_attribute().image_id(id).attribute("launchPermission");
            request.operation_type(operation(share)).set_user_ids(Some(accounts.to_vec())).send()
        };
        self.call(&call, send).await.map(|_| ())
    }

    /// The accounts that may launch an image, besides its own.
    pub async fn image_shared_with(&self, id: &str) -> Result<Vec<String>, ApiError> {
        let call = Call::new(Action::DescribeImageAttribute).of(id);
        let send = || {
            let request = self.client().describe_image_attribute().image_id(id);
            request.attribute(ImageAttributeName::LaunchPermission).send()
        };
        let output = self.call(&call, send).await?;
        Ok(output.launch_permissions().iter().filter_map(|one| one.user_id().map(str::to_owned)).collect())
    }

    /// Copies an image of another region to this one, with its name, its snapshot and these tags; the id of the copy.
    pub async fn copy_image(
        &self,
        from: &OwnImage,
        from_region: &str,
        client_token: &str,
        tags: &BTreeMap<String, String>,
    ) -> Result<String, ApiError> {
        let call = Call::new(Action::CopyImage).of(format!("{} of {from_region}", from.id));
        let send = || {
            let request = self.client().copy_image().source_image_id(&from.id).source_region(from_region);
            let request = request.name(&from.name).client_token(client_token);
            let request = request.tag_specifications(tags_on(ResourceType::Image, tags));
            request.tag_specifications(tags_on(ResourceType::Snapshot, tags)).send()
        };
        let output = self.call(&call, send).await?;
        output.image_id().map(str::to_owned).ok_or_else(|| self.incomplete(&call, "the answer has no image"))
    }
}

fn own_image(image: &SdkImage) -> Option<OwnImage> {
    let disks = image.block_device_mappings().iter().filter_map(|mapping| mapping.ebs());
    let size = |disk: &EbsBlockDevice| disk.volume_size().and_then(|size| u32::try_from(size).ok());
    Some(OwnImage {
        id: image.image_id()?.to_owned(),
        name: image.name().unwrap_or_default().to_owned(),
        arch: image.architecture().map(|arch| arch.as_str().to_owned()).unwrap_or_default(),
        state: image.state().map(|state| state.as_str().to_owned()).unwrap_or_default(),
        state_reason: image.state_reason().and_then(|reason| reason.message()).map(str::to_owned),
        creation_date: image.creation_date().unwrap_or_default().to_owned(),
        snapshots: disks.clone().filter_map(|disk| disk.snapshot_id().map(str::to_owned)).collect(),
        size: disks.filter_map(size).fold(0, u32::saturating_add),
        owner: image.owner_id().unwrap_or_default().to_owned(),
        tags: read::tags(image.tags()),
    })
}
