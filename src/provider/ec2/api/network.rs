//! Where instances live and what they leave behind: VPCs, subnets, security groups, zones, volumes.
//!
//! Owns the requests that find, make and remove those. What is missing and whether it may be made is decided by
//! `broker init`; everything made here carries the tags it is given from its first moment.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::types::builders::IpPermissionBuilder;
use aws_sdk_ec2::types::{IpPermission, IpRange, ResourceType, UserIdGroupPair};

use super::action::Action;
use super::client::{Api, Call, Repeat};
use super::error::ApiError;
use super::instances::tags_on;
use super::read;

const PAGE: i32 = 500;
/// The one port that is ever opened.
const SSH: i32 = 22;

/// A VPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vpc {
    /// `vpc-...`
    pub id: String,
    /// Its IPv4 ranges.
    pub cidrs: Vec<String>,
    /// The region's default one.
    pub is_default: bool,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// A subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// `subnet-...`
    pub id: String,
    /// Its VPC.
    pub vpc: String,
    /// `eu-central-1b`
    pub zone: String,
    /// Its IPv4 range.
    pub cidr: String,
    /// Addresses left.
    pub free_addresses: u32,
    /// The zone's default one.
    pub is_default: bool,
    /// What is launched there gets a public address unless it says otherwise.
    pub public_ip: bool,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// A security group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecurityGroup {
    /// `sg-...`
    pub id: String,
    /// Its name, unique in its VPC.
    pub name: String,
    /// Its VPC.
    pub vpc: String,
    /// What may come in.
    pub ingress: Vec<Ingress>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// Something that a security group lets in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ingress {
    /// `tcp`, `-1` (everything), ...
    pub protocol: String,
    /// First port.
    pub from_port: i32,
    /// Last port.
    pub to_port: i32,
    /// From where: an IPv4 or IPv6 range, a security group or a prefix list.
    pub source: String,
    /// What it says about itself.
    pub description: String,
}

/// An availability zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// `eu-central-1b`
    pub name: String,
    /// It can be used.
    pub is_available: bool,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// `vol-...`
    pub id: String,
    /// Its zone.
    pub zone: String,
    /// GiB.
    pub size: u32,
    /// Attached to nothing.
    pub is_available: bool,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

impl Api {
    /// The VPCs that match (`is-default`, `tag:...`).
    pub async fn vpcs(&self, filters: &[(&str, &[String])]) -> Result<Vec<Vpc>, ApiError> {
        let filters = read::filters(filters);
        let send = |next: Option<String>| {
            let request = self.client().describe_vpcs().set_filters(Some(filters.clone()));
            request.max_results(PAGE).set_next_token(next).send()
        };
        self.pages(&Call::new(Action::DescribeVpcs), send, |output| {
            let one = |vpc: &aws_sdk_ec2::types::Vpc| {
                let more = vpc.cidr_block_association_set().iter().filter_map(|range| range.cidr_block());
                let cidrs: BTreeSet<_> = vpc.cidr_block().into_iter().chain(more).collect();
                Some(Vpc {
                    id: vpc.vpc_id()?.to_owned(),
                    cidrs: cidrs.into_iter().map(str::to_owned).collect(),
                    is_default: vpc.is_default() == Some(true),
                    tags: read::tags(vpc.tags()),
                })
            };
            (output.vpcs().iter().filter_map(one).collect(), output.next_token().map(str::to_owned))
        })
        .await
    }

    /// The subnets that match (`vpc-id`, `subnet-id`, `default-for-az`, `tag:...`).
    pub async fn subnets(&self, filters: &[(&str, &[String])]) -> Result<Vec<Subnet>, ApiError> {
        let filters = read::filters(filters);
        let send = |next: Option<String>| {
            let request = self.client().describe_subnets().set_filters(Some(filters.clone()));
            request.max_results(PAGE).set_next_token(next).send()
        };
        self.pages(&Call::new(Action::DescribeSubnets), send, |output| {
            (output.subnets().iter().filter_map(subnet).collect(), output.next_token().map(str::to_owned))
        })
        .await
    }

    /// The security groups that match (`group-name`, `vpc-id`, `group-id`, `tag:...`).
    pub async fn security_groups(
        &self,
        filters: &[(&str, &[String])],
    ) -> Result<Vec<SecurityGroup>, ApiError> {
        let filters = read::filters(filters);
        let send = |next: Option<String>| {
            let request = self.client().describe_security_groups().set_filters(Some(filters.clone()));
            request.max_results(PAGE).set_next_token(next).send()
        };
        self.pages(&Call::new(Action::DescribeSecurityGroups), send, |output| {
            let groups = output.security_groups().iter().filter_map(security_group).collect();
            (groups, output.next_token().map(str::to_owned))
        })
        .await
    }

    /// The zones of the region.
    pub async fn zones(&self) -> Result<Vec<Zone>, ApiError> {
        let call = Call::new(Action::DescribeAvailabilityZones);
        let output = self.call(&call, || self.client().describe_availability_zones().send()).await?;
        let one = |zone: &aws_sdk_ec2::types::AvailabilityZone| {
            Some(Zone {
                name: zone.zone_name()?.to_owned(),
                is_available: zone.state().is_some_and(|state| state.as_str() == "available"),
            })
        };
        Ok(output.availability_zones().iter().filter_map(one).collect())
    }

    /// The volumes that match (`tag:...`, `status`).
    pub async fn volumes(&self, filters: &[(&str, &[String])]) -> Result<Vec<Volume>, ApiError> {
        let filters = read::filters(filters);
        let send = |next: Option<String>| {
            let request = self.client().describe_volumes().set_filters(Some(filters.clone()));
            request.max_results(PAGE).set_next_token(next).send()
        };
        self.pages(&Call::new(Action::DescribeVolumes), send, |output| {
            let one = |volume: &aws_sdk_ec2::types::Volume| {
                Some(Volume {
                    id: volume.volume_id()?.to_owned(),
                    zone: volume.availability_zone().unwrap_or_default().to_owned(),
                    size: volume.size().and_then(|size| u32::try_from(size).ok()).unwrap_or(0),
                    is_available: volume.state().is_some_and(|state| state.as_str() == "available"),
                    tags: read::tags(volume.tags()),
                })
            };
            (output.volumes().iter().filter_map(one).collect(), output.next_token().map(str::to_owned))
        })
        .await
    }

    /// Deletes a volume; one that is gone already is deleted.
    pub async fn delete_volume(&self, id: &str) -> Result<(), ApiError> {
        let call = Call::new(Action::DeleteVolume).of(id);
        gone_is_fine(self.call(&call, || self.client().delete_volume().volume_id(id).send()).await)
    }

    /// Makes a security group that lets nothing in. Not repeated when it may have been made: look for its tags.
    pub async fn create_security_group(
        &self,
        vpc: &str,
        name: &str,
        description: &str,
        tags: &BTreeMap<String, String>,
    ) -> Result<String, ApiError> {
        let call =
            Call::new(Action::CreateSecurityGroup).of(format!("{name} in {vpc}")).repeat(Repeat::Undone);
        let send = || {
            let request = self.client().create_security_group().vpc_id(vpc).group_name(name);
            let request = request.description(description);
            request.tag_specifications(tags_on(ResourceType::SecurityGroup, tags)).send()
        };
        let id = self.call(&call, send).await?.group_id().map(str::to_owned);
        id.ok_or_else(|| self.incomplete(&call, "the answer names nothing"))
    }

    /// Lets SSH in from these IPv4 addresses; what is let in already stays.
    pub async fn authorize_ingress(&self, group: &str, cidr: &str, note: &str) -> Result<(), ApiError> {
        let call = Call::new(Action::AuthorizeSecurityGroupIngress).of(format!("SSH from {cidr} to {group}"));
        let range = IpRange::builder().cidr_ip(cidr).description(note).build();
        self.authorize(&call, group, ssh().ip_ranges(range).build()).await
    }

    /// Lets SSH in to whatever is in this group from whatever else is in it, at its private address; what is let in already
    /// stays. A group that only it refers to can be deleted (EC2 API, DeleteSecurityGroup: not while *another* one does).
    pub async fn authorize_members(&self, group: &str, note: &str) -> Result<(), ApiError> {
        let call = Call::new(Action::AuthorizeSecurityGroupIngress).of(format!("SSH within {group}"));
        let pair = UserIdGroupPair::builder().group_id(group).description(note).build();
        self.authorize(&call, group, ssh().user_id_group_pairs(pair).build()).await
    }

    async fn authorize(&self, call: &Call<'_>, group: &str, rule: IpPermission) -> Result<(), ApiError> {
        let send = || {
            let request = self.client().authorize_security_group_ingress().group_id(group);
            request.ip_permissions(rule.clone()).send()
        };
        match self.call(call, send).await {
            Err(error) if error.code.as_deref() == Some("InvalidPermission.Duplicate") => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// No longer lets SSH in from these IPv4 addresses.
    pub async fn revoke_ingress(&self, group: &str, cidr: &str) -> Result<(), ApiError> {
        let call = Call::new(Action::RevokeSecurityGroupIngress).of(format!("SSH from {cidr} to {group}"));
        let rule = ssh().ip_ranges(IpRange::builder().cidr_ip(cidr).build()).build();
        let send = || {
            let request = self.client().revoke_security_group_ingress().group_id(group);
            request.ip_permissions(rule.clone()).send()
        };
        gone_is_fine(self.call(&call, send).await)
    }

    /// Deletes a security group; one that is gone already is deleted. Class `Busy` while an instance has it.
    pub async fn delete_security_group(&self, id: &str) -> Result<(), ApiError> {
        let call = Call::new(Action::DeleteSecurityGroup).of(id);
        gone_is_fine(self.call(&call, || self.client().delete_security_group().group_id(id).send()).await)
    }

    /// Makes a subnet. Not repeated when it may have been made: look for its tags.
    pub async fn create_subnet(
        &self,
        vpc: &str,
        zone: &str,
        cidr: &str,
        tags: &BTreeMap<String, String>,
    ) -> Result<String, ApiError> {
        let call =
            Call::new(Action::CreateSubnet).of(format!("{cidr} in {vpc} ({zone})")).repeat(Repeat::Undone);
        let send = || {
            let request = self.client().create_subnet().vpc_id(vpc).availability_zone(zone).cidr_block(cidr);
            request.tag_specifications(tags_on(ResourceType::Subnet, tags)).send()
        };
        let output = self.call(&call, send).await?;
        let id = output.subnet().and_then(|subnet| subnet.subnet_id()).map(str::to_owned);
        id.ok_or_else(|| self.incomplete(&call, "the answer names nothing"))
    }

    /// Deletes a subnet; one that is gone already is deleted. Class `Busy` while something is in it.
    pub async fn delete_subnet(&self, id: &str) -> Result<(), ApiError> {
        let call = Call::new(Action::DeleteSubnet).of(id);
        gone_is_fine(self.call(&call, || self.client().delete_subnet().subnet_id(id).send()).await)
    }
}

/// The beginning of a rule about SSH.
fn ssh() -> IpPermissionBuilder {
    IpPermission::builder().ip_protocol("tcp").from_port(SSH).to_port(SSH)
}

/// Removing what is not there has succeeded.
pub(super) fn gone_is_fine<T>(result: Result<T, ApiError>) -> Result<(), ApiError> {
    match result {
        Err(error) if error.code.as_deref().is_some_and(|code| code.ends_with(".NotFound")) => Ok(()),
        other => other.map(|_| ()),
    }
}

fn subnet(subnet: &aws_sdk_ec2::types::Subnet) -> Option<Subnet> {
    let free = subnet.available_ip_address_count();
    Some(Subnet {
        id: subnet.subnet_id()?.to_owned(),
        vpc: subnet.vpc_id().unwrap_or_default().to_owned(),
        zone: subnet.availability_zone().unwrap_or_default().to_owned(),
        cidr: subnet.cidr_block().unwrap_or_default().to_owned(),
        free_addresses: free.and_then(|count| u32::try_from(count).ok()).unwrap_or(0),
        is_default: subnet.default_for_az() == Some(true),
        public_ip: subnet.map_public_ip_on_launch() == Some(true),
        tags: read::tags(subnet.tags()),
    })
}

fn security_group(group: &aws_sdk_ec2::types::SecurityGroup) -> Option<SecurityGroup> {
    let rules = group.ip_permissions().iter().flat_map(|rule| {
        let v4 = rule.ip_ranges().iter().map(|range| (range.cidr_ip(), range.description()));
        let v6 = rule.ipv6_ranges().iter().map(|range| (range.cidr_ipv6(), range.description()));
        let groups = rule.user_id_group_pairs().iter().map(|pair| (pair.group_id(), pair.description()));
        let lists = rule.prefix_list_ids().iter().map(|list| (list.prefix_list_id(), list.description()));
        v4.chain(v6).chain(groups).chain(lists).map(|(source, description)| Ingress {
            protocol: rule.ip_protocol().unwrap_or_default().to_owned(),
            from_port: rule.from_port().unwrap_or(-1),
            to_port: rule.to_port().unwrap_or(-1),
            source: source.unwrap_or_default().to_owned(),
            description: description.unwrap_or_default().to_owned(),
        })
    });
    Some(SecurityGroup {
        id: group.group_id()?.to_owned(),
        name: group.group_name().unwrap_or_default().to_owned(),
        vpc: group.vpc_id().unwrap_or_default().to_owned(),
        ingress: rules.collect(),
        tags: read::tags(group.tags()),
    })
}
