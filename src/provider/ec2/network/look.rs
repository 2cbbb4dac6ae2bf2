//! Looks at a region's network.

use std::collections::{BTreeMap, BTreeSet};

use super::cidr::Cidr;
use super::found::{Found, Given, Group, Network, Rule, Source, Subnet, Tenant, Vpc};
use super::{GROUP_NAME, NETWORK_TAG, NetworkError};
use crate::model::Ec2Spec;
use crate::provider::ec2::api::{self, Api, ApiError, InstanceState};
use crate::provider::ec2::tags::{MANAGED_BY, MANAGED_TAG};

/// The tags of everything that `broker init` makes.
pub(super) fn tags() -> BTreeMap<String, String> {
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    BTreeMap::from([pair(MANAGED_TAG, MANAGED_BY), pair(NETWORK_TAG, "1")])
}

/// Both tags, so that one set by accident deletes nothing.
fn is_ours(found: &BTreeMap<String, String>) -> bool {
    tags().iter().all(|(key, value)| found.get(key) == Some(value))
}

/// Where a pool with these settings launches now.
pub async fn find(api: &Api, spec: &Ec2Spec) -> Result<Network, NetworkError> {
    let given = Given::of(spec);
    look(api, &given).await?.network(&given, api.region())
}

/// What there is of a network, as far as a pool with these settings is concerned.
pub async fn look(api: &Api, given: &Given) -> Result<Found, NetworkError> {
    let (vpcs, subnets, groups) =
        tokio::try_join!(api.vpcs(&[]), api.subnets(&[]), groups_of_interest(api, given))?;
    Ok(Found {
        vpcs: vpcs.into_iter().map(vpc).collect(),
        subnets: subnets.into_iter().filter_map(subnet).collect(),
        groups: groups.into_iter().map(group).collect(),
        instances: Vec::new(),
    })
}

/// What there is of ours, and which instances stand in the way of its removal.
pub async fn look_to_remove(api: &Api) -> Result<Found, NetworkError> {
    let mut found = look(api, &Given::default()).await?;
    let ids = |ids: Vec<&String>| ids.into_iter().cloned().collect::<Vec<_>>();
    let groups = ids(found.groups.iter().filter(|group| group.is_ours).map(|group| &group.id).collect());
    let subnets = ids(found.subnets.iter().filter(|it| it.is_ours).map(|subnet| &subnet.id).collect());
    let vpcs = ids(found.vpcs.iter().filter(|vpc| vpc.is_ours).map(|vpc| &vpc.id).collect());
    for group in groups {
        let groups = BTreeSet::from([group.clone()]);
        for id in tenants(api, "instance.group-id", group).await? {
            found.instances.push(Tenant { id, vpc: None, subnet: None, groups: groups.clone() });
        }
    }
    for subnet in subnets {
        for id in tenants(api, "subnet-id", subnet.clone()).await? {
            let subnet = Some(subnet.clone());
            found.instances.push(Tenant { id, vpc: None, subnet, groups: BTreeSet::new() });
        }
    }
    for vpc in vpcs {
        for id in tenants(api, "vpc-id", vpc.clone()).await? {
            let vpc = Some(vpc.clone());
            found.instances.push(Tenant { id, vpc, subnet: None, groups: BTreeSet::new() });
        }
    }
    Ok(found)
}

/// These groups.
pub(super) async fn look_at_groups(api: &Api, ids: &[String]) -> Result<Vec<Group>, ApiError> {
    Ok(api.security_groups(&[("group-id", ids)]).await?.into_iter().map(group).collect())
}

/// The instances there that still hold on to their network.
async fn tenants(api: &Api, filter: &str, value: String) -> Result<Vec<String>, ApiError> {
    let instances = api.instances(&[(filter, &[value])]).await?;
    let holding = instances.into_iter().filter(|instance| match instance.state {
        InstanceState::Terminated => false,
        InstanceState::Pending
        | InstanceState::Running
        | InstanceState::ShuttingDown
        | InstanceState::Stopping
        | InstanceState::Stopped => true,
    });
    Ok(holding.map(|instance| instance.id).collect())
}

/// Ours, those with our name, and those that the pool names.
async fn groups_of_interest(api: &Api, given: &Given) -> Result<Vec<api::SecurityGroup>, ApiError> {
    let tag = format!("tag:{NETWORK_TAG}");
    let (one, name) = (["1".to_owned()], [GROUP_NAME.to_owned()]);
    let named: Vec<_> = given.groups.iter().cloned().collect();
    let (by_tag, by_name) = ([(tag.as_str(), one.as_slice())], [("group-name", name.as_slice())]);
    let (ours, namesakes) = tokio::try_join!(api.security_groups(&by_tag), api.security_groups(&by_name))?;
    let named = match named.is_empty() {
        true => Vec::new(),
        false => api.security_groups(&[("group-id", &named)]).await?,
    };
    let all = [ours, namesakes, named].into_iter().flatten();
    Ok(all.map(|group| (group.id.clone(), group)).collect::<BTreeMap<_, _>>().into_values().collect())
}

impl Given {
    /// What this pool's configuration names.
    pub fn of(spec: &Ec2Spec) -> Self {
        Self {
            subnets: spec.subnets.iter().cloned().collect(),
            groups: spec.security_groups.iter().cloned().collect(),
        }
    }
}

fn vpc(vpc: api::Vpc) -> Vpc {
    Vpc {
        cidrs: vpc.cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect(),
        is_default: vpc.is_default,
        is_ours: is_ours(&vpc.tags),
        id: vpc.id,
    }
}

/// None for one without IPv4 addresses: nothing of ours can be launched there.
fn subnet(subnet: api::Subnet) -> Option<Subnet> {
    Some(Subnet {
        cidr: subnet.cidr.parse().ok()?,
        free_addresses: subnet.free_addresses,
        is_default: subnet.is_default,
        is_public: subnet.public_ip,
        is_ours: is_ours(&subnet.tags),
        id: subnet.id,
        vpc: subnet.vpc,
        zone: subnet.zone,
    })
}

fn group(group: api::SecurityGroup) -> Group {
    Group {
        ingress: group.ingress.into_iter().map(|ingress| rule(ingress, &group.id)).collect(),
        is_ours: is_ours(&group.tags),
        id: group.id,
        name: group.name,
        vpc: group.vpc,
    }
}

/// A rule of this group.
fn rule(ingress: api::Ingress, group: &str) -> Rule {
    Rule {
        ports: (ingress.protocol != "-1").then_some((ingress.from_port, ingress.to_port)),
        protocol: ingress.protocol,
        source: match ingress.source.parse::<Cidr>() {
            Ok(cidr) => Source::Ipv4(cidr),
            Err(_) if ingress.source == group => Source::Members,
            Err(_) => Source::Other(ingress.source),
        },
        description: Some(ingress.description).filter(|text| !text.is_empty()),
    }
}
