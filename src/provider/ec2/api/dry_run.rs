//! Whether we may, asked without doing it.
//!
//! Owns the DryRun of every action. EC2 checks the permission before most of the rest, but some things about the request
//! before the permission: where it stumbles over one of those, the answer is unclear, and says so.

use std::error::Error as StdError;
use std::future::Future;

use aws_sdk_ec2::config::http::HttpResponse;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::types::{
    InstanceMetadataEndpointState, InstanceType, IpPermission, IpRange, LocationType, ResourceType, Tag,
};

use super::action::Action;
use super::client::{Api, Call, Repeat};
use super::error::{ApiError, ErrorClass};
use super::instances::tags_on;
use super::order::RunOrder;

/// What the questions are about. Real things make real answers: permissions may depend on their tags.
#[derive(Clone, Debug)]
pub struct DryRunAbout {
    /// What a launch would ask for.
    pub order: RunOrder,
    /// One of our instances, if there is one.
    pub instance: Option<String>,
    /// Where a security group and subnets would be made.
    pub vpc: Option<String>,
    /// One of our volumes, if there is one.
    pub volume: Option<String>,
}

/// Whether we may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Yes.
    Allowed,
    /// No.
    Denied {
        /// EC2's words, which name who may not do what.
        reason: String,
    },
    /// It was done, whatever it was: this is an endpoint that knows no DryRun.
    Done,
    /// EC2 did not say.
    Unclear {
        /// What it said instead.
        reason: String,
        /// Its code for that (`InvalidInstanceID.NotFound`), if it gave one.
        code: Option<String>,
    },
}

/// Ids that cannot be anybody's, where there is no real one.
const NO_INSTANCE: &str = "i-00000000000000000";
const NO_VPC: &str = "vpc-00000000000000000";
const NO_GROUP: &str = "sg-00000000000000000";
const NO_SUBNET: &str = "subnet-00000000000000000";
const NO_VOLUME: &str = "vol-00000000000000000";
/// Of the range that is for documentation.
const NO_CIDR: &str = "192.0.2.1/32";
const NO_GATEWAY: &str = "igw-00000000000000000";
/// The one tag that is ever set later than at the launch: a policy need not allow others.
const RENEWED_TAG: &str = "nix-broker:expires-at";

impl Api {
    /// Whether this identity may do this. An error is about the way to EC2 or about who asks, not about the permission.
    pub async fn dry_run(&self, action: Action, about: &DryRunAbout) -> Result<Permission, ApiError> {
        let client = self.client();
        let order = &about.order;
        let instance = about.instance.as_deref().unwrap_or(NO_INSTANCE);
        let vpc = about.vpc.as_deref().unwrap_or(NO_VPC);
        let group = order.security_groups.first().map_or(NO_GROUP, String::as_str);
        let kind = InstanceType::from(order.instance_type.as_str());
        let range = IpRange::builder().cidr_ip(NO_CIDR).build();
        let rule =
            IpPermission::builder().ip_protocol("tcp").from_port(22).to_port(22).ip_ranges(range).build();
        let tag = Tag::builder().key(RENEWED_TAG).value("2000-01-01T00:00:00Z").build();
        match action {
            // About things that only `broker image` knows, which asks for itself; and EBS knows no dry run.
            Action::CompleteSnapshot
            | Action::CopyImage
            | Action::DeleteSnapshot
            | Action::DeregisterImage
            | Action::DescribeImageAttribute
            | Action::DescribeSnapshots
            | Action::ModifyImageAttribute
            | Action::ModifySnapshotAttribute
            | Action::PutSnapshotBlock
            | Action::RegisterImage
            | Action::StartSnapshot => {
                let reason = "only `broker image` asks for it".to_owned();
                Ok(Permission::Unclear { reason, code: Some("NotAsked".to_owned()) })
            }
            // EventBridge Scheduler knows no dry run either.
            Action::CreateSchedule | Action::DeleteSchedule | Action::UpdateSchedule => {
                let reason = "it cannot be asked about without doing it".to_owned();
                Ok(Permission::Unclear { reason, code: Some("NotAsked".to_owned()) })
            }
            Action::AuthorizeSecurityGroupIngress => {
                let request = client.authorize_security_group_ingress().group_id(group).ip_permissions(rule);
                self.ask(action, || request.clone().dry_run(true).send()).await
            }
            Action::RevokeSecurityGroupIngress => {
                let request = client.revoke_security_group_ingress().group_id(group).ip_permissions(rule);
                self.ask(action, || request.clone().dry_run(true).send()).await
            }
            Action::CreateSecurityGroup => {
                let request = client.create_security_group().vpc_id(vpc).group_name("nix-broker-doctor");
                let request = request.description("dry run");
                let request = request.tag_specifications(tags_on(ResourceType::SecurityGroup, &order.tags));
                self.ask(action, || request.clone().dry_run(true).send()).await
            }
            Action::CreateSubnet => {
                let request = client.create_subnet().vpc_id(vpc).cidr_block("192.0.2.0/28");
                let request = request.tag_specifications(tags_on(ResourceType::Subnet, &order.tags));
                self.ask(action, || request.clone().dry_run(true).send()).await
            }
            Action::CreateTags => {
                let request = client.create_tags().resources(instance).tags(tag);
                self.ask(action, || request.clone().dry_run(true).send()).await
            }
            Action::CreateDefaultVpc => {
                self.ask(action, || client.create_default_vpc().dry_run(true).send()).await
            }
            Action::DeleteVpc => {
                let request = client.delete_vpc().vpc_id(vpc);
                self.ask(action, || request.clone().dry_run(true).send()).await
            }
            Action::DeleteInternetGateway => {
                let request = client.delete_internet_gateway().internet_gateway_id(NO_GATEWAY);
                self.ask(action, || request.clone().dry_run(true).send()).await
            }
            Action::DetachInternetGateway => {
                let request = client.detach_internet_gateway().internet_gateway_id(NO_GATEWAY).vpc_id(vpc);
                self.ask(action, || request.clone().dry_run(true).send()).await
            }
            Action::DescribeInternetGateways => {
                self.ask(action, || client.describe_internet_gateways().dry_run(true).send()).await
            }
            Action::DescribeRegions => {
                self.ask(action, || client.describe_regions().dry_run(true).send()).await
            }
            Action::DeleteSecurityGroup => {
                let request = client.delete_security_group().group_id(group);
                self.ask(action, || request.clone().dry_run(true).send()).await
            }
            Action::DeleteSubnet => {
                let subnet = if order.subnet.is_empty() { NO_SUBNET } else { &order.subnet };
                let request = client.delete_subnet().subnet_id(subnet);
                self.ask(action, || request.clone().dry_run(true).send()).await
            }
            Action::DeleteVolume => {
                let request = client.delete_volume().volume_id(about.volume.as_deref().unwrap_or(NO_VOLUME));
                self.ask(action, || request.clone().dry_run(true).send()).await
            }
            Action::DescribeAvailabilityZones => {
                self.ask(action, || client.describe_availability_zones().dry_run(true).send()).await
            }
            Action::DescribeImages => {
                let request = client.describe_images().owners("self");
                self.ask(action, || request.clone().dry_run(true).send()).await
            }
            Action::DescribeInstanceTypeOfferings => {
                let request = client.describe_instance_type_offerings();
                let request = request.location_type(LocationType::AvailabilityZone);
                self.ask(action, || request.clone().dry_run(true).send()).await
            }
            Action::DescribeInstanceTypes => {
                let request = client.describe_instance_types().instance_types(kind);
                self.ask(action, || request.clone().dry_run(true).send()).await
            }
            Action::DescribeInstances => {
                self.ask(action, || client.describe_instances().dry_run(true).send()).await
            }
            Action::DescribeSecurityGroups => {
                self.ask(action, || client.describe_security_groups().dry_run(true).send()).await
            }
            Action::DescribeSpotPriceHistory => {
                let request = client.describe_spot_price_history().instance_types(kind);
                self.ask(action, || request.clone().dry_run(true).send()).await
            }
            Action::DescribeSubnets => {
                self.ask(action, || client.describe_subnets().dry_run(true).send()).await
            }
            Action::DescribeVolumes => {
                self.ask(action, || client.describe_volumes().dry_run(true).send()).await
            }
            Action::DescribeVpcs => self.ask(action, || client.describe_vpcs().dry_run(true).send()).await,
            Action::GetConsoleOutput => {
                let request = client.get_console_output().instance_id(instance);
                self.ask(action, || request.clone().dry_run(true).send()).await
            }
            Action::ModifyInstanceMetadataOptions => {
                let request = client.modify_instance_metadata_options().instance_id(instance);
                let request = request.http_endpoint(InstanceMetadataEndpointState::Disabled);
                self.ask(action, || request.clone().dry_run(true).send()).await
            }
            Action::RunInstances => self.ask(action, || self.run_request(order).dry_run(true).send()).await,
            Action::StartInstances => {
                let request = client.start_instances().instance_ids(instance);
                self.ask(action, || request.clone().dry_run(true).send()).await
            }
            Action::StopInstances => {
                let request = client.stop_instances().instance_ids(instance);
                self.ask(action, || request.clone().dry_run(true).send()).await
            }
            Action::TerminateInstances => {
                let request = client.terminate_instances().instance_ids(instance);
                self.ask(action, || request.clone().dry_run(true).send()).await
            }
        }
    }

    async fn ask<T, E, F, R>(&self, action: Action, send: F) -> Result<Permission, ApiError>
    where
        F: Fn() -> R,
        R: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        let Err(error) = self.call(&Call::new(action).repeat(Repeat::Undone), send).await else {
            return Ok(Permission::Done);
        };
        match error.code.as_deref() {
            Some("DryRunOperation") => return Ok(Permission::Allowed),
            Some("UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException") => {
                return Ok(Permission::Denied { reason: error.words.message });
            }
            Some(_) | None => {}
        }
        match error.class {
            ErrorClass::Identity | ErrorClass::Transient | ErrorClass::Throttle => Err(error),
            ErrorClass::Capacity
            | ErrorClass::Quota(_)
            | ErrorClass::Subnet
            | ErrorClass::SpotRole
            | ErrorClass::Config
            | ErrorClass::NotFound
            | ErrorClass::Busy
            | ErrorClass::Idempotency
            | ErrorClass::Unknown => Ok(Permission::Unclear { reason: error.to_string(), code: error.code }),
        }
    }
}
