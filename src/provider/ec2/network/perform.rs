//! Makes what was planned, and keeps a broker's way in open.

use std::future::Future;
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use backon::{ConstantBuilder, Retryable};

use super::cidr::Cidr;
use super::found::{Group, Network, Rule, Source};
use super::look::{look_at_groups, tags};
use super::plan::{Change, Inside, Place, admission};
use super::{GROUP_NAME, NetworkError};
use crate::provider::ec2::api::{Api, ApiError};

/// What a person reads in the console.
const GROUP_DESCRIPTION: &str = "Lets the broker in to its builders (made by: broker init)";

/// EC2 may not know for a while what it has just made.
const KNOWN_WITHIN: Duration = Duration::from_secs(30);
const ASKED_EVERY: Duration = Duration::from_secs(1);

/// Makes these changes in this order, and reports each when it is made. What fails stops it; what was made by then stays,
/// is tagged, and is found the next time.
pub async fn perform(
    api: &Api,
    changes: &[Change],
    report: &mut dyn FnMut(&Change) -> io::Result<()>,
) -> Result<(), NetworkError> {
    let mut made = Made::default();
    for change in changes {
        made.perform(api, change).await?;
        report(change).map_err(NetworkError::Report)?;
    }
    Ok(())
}

/// What the [`Place::New`] of later changes is.
#[derive(Debug, Default)]
struct Made {
    vpc: Option<String>,
    group: Option<String>,
}

impl Made {
    async fn perform(&mut self, api: &Api, change: &Change) -> Result<(), NetworkError> {
        let tags = tags();
        match change {
            Change::CreateDefaultVpc => {
                let vpc = api.create_default_vpc().await?;
                // It cannot be tagged while it is made; one without the tag costs nothing and stays.
                let ids = parts(api, &vpc).await?;
                let pairs: Vec<_> = tags.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
                once_known(|| api.tag(&ids, &pairs)).await?;
                self.vpc = Some(vpc);
            }
            Change::CreateSubnet { vpc, zone, cidr } => {
                api.create_subnet(vpc, zone, &cidr.to_string(), &tags).await?;
            }
            Change::CreateGroup { vpc } => {
                let vpc = at(vpc, self.vpc.as_ref())?;
                let create = || api.create_security_group(vpc, GROUP_NAME, GROUP_DESCRIPTION, &tags);
                self.group = Some(once_known(create).await?);
            }
            Change::Authorize { group, rule } => {
                let group = at(group, self.group.as_ref())?;
                once_known(|| authorize(api, group, rule)).await?;
            }
            Change::Revoke { group, rule, .. } => revoke(api, group, rule).await?,
            Change::DeleteGroup { group } => api.delete_security_group(group).await?,
            Change::DeleteSubnet { subnet, .. } => api.delete_subnet(subnet).await?,
            Change::DeleteVpc { vpc } => {
                for subnet in api.subnets(&[("vpc-id", std::slice::from_ref(vpc))]).await? {
                    api.delete_subnet(&subnet.id).await?;
                }
                for gateway in api.internet_gateways(vpc).await? {
                    api.delete_internet_gateway(&gateway, vpc).await?;
                }
                api.delete_vpc(vpc).await?;
            }
        }
        Ok(())
    }
}

/// A VPC and what is deleted with it.
async fn parts(api: &Api, vpc: &String) -> Result<Vec<String>, ApiError> {
    let subnets = api.subnets(&[("vpc-id", std::slice::from_ref(vpc))]).await?;
    let gateways = api.internet_gateways(vpc).await?;
    let subnets = subnets.into_iter().map(|subnet| subnet.id);
    Ok([vpc.clone()].into_iter().chain(subnets).chain(gateways).collect())
}

fn at<'a>(place: &'a Place, new: Option<&'a String>) -> Result<&'a str, NetworkError> {
    match place {
        Place::Id(id) => Ok(id),
        Place::New => new.map(String::as_str).ok_or(NetworkError::NotMade),
    }
}

async fn authorize(api: &Api, group: &str, rule: &Rule) -> Result<(), ApiError> {
    let note = rule.description.as_deref().unwrap_or_default();
    match (rule.ssh_source(), &rule.source) {
        (Some(cidr), _) => api.authorize_ingress(group, &cidr.to_string(), note).await,
        (None, Source::Members) => api.authorize_members(group, note).await,
        // Nothing else is ever planned.
        (None, Source::Ipv4(_) | Source::Other(_)) => Ok(()),
    }
}

async fn revoke(api: &Api, group: &str, rule: &Rule) -> Result<(), ApiError> {
    match rule.ssh_source() {
        Some(cidr) => api.revoke_ingress(group, &cidr.to_string()).await,
        None => Ok(()),
    }
}

/// Tries again while EC2 does not know what it has just made.
async fn once_known<T, F: Future<Output = Result<T, ApiError>>>(call: impl Fn() -> F) -> Result<T, ApiError> {
    let times = usize::try_from(KNOWN_WITHIN.as_secs() / ASKED_EVERY.as_secs()).unwrap_or(1);
    let is_unknown = |error: &ApiError| error.code.as_deref().is_some_and(|code| code.ends_with(".NotFound"));
    let waits = ConstantBuilder::default().with_delay(ASKED_EVERY).with_max_times(times);
    call.retry(waits).when(is_unknown).await
}

/// Lets a broker in from where it is now, if that is known, and its builders by each other if they are to be, through
/// those of these groups that `broker init` made; takes away what let it in from where it was. Groups that a person made
/// are a person's business.
pub async fn admit(
    api: &Api,
    groups: &[String],
    broker: &str,
    address: Option<Ipv4Addr>,
    inside: Inside,
) -> Result<(), NetworkError> {
    for group in look_at_groups(api, groups).await?.iter().filter(|group| group.is_ours) {
        let admission = admission(group, broker, address.map(Cidr::host), inside);
        for rule in &admission.authorize {
            tracing::info!(group = group.id, %rule, "let in");
            authorize(api, &group.id, rule).await?;
        }
        for rule in &admission.revoke {
            tracing::info!(group = group.id, %rule, "this broker comes from there no more");
            revoke(api, &group.id, rule).await?;
        }
    }
    Ok(())
}

/// Who gets to SSH in a network, by its groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whoever comes from an address; `None` without an address to ask about.
    pub address: Option<bool>,
    /// Builders, from each other.
    pub members: bool,
}

/// Who gets to SSH in this network.
pub async fn entry(api: &Api, network: &Network, address: Option<Cidr>) -> Result<Entry, ApiError> {
    Ok(entry_by(&look_at_groups(api, &network.groups).await?, network, address))
}

fn entry_by(groups: &[Group], network: &Network, address: Option<Cidr>) -> Entry {
    let rules = || groups.iter().flat_map(|group| &group.ingress);
    let admits = |who: Cidr| rules().any(|rule| rule.admits(who));
    // An instance is in all of the groups, so a rule of one about another is as good as one about itself.
    let among = |rule: &Rule| match &rule.source {
        Source::Members => rule.admits_members(),
        Source::Other(name) => rule.is_for_ssh() && network.groups.contains(name),
        Source::Ipv4(_) => false,
    };
    let members = rules().any(among) || network.subnets.iter().all(|subnet| admits(subnet.cidr));
    Entry { address: address.map(admits), members }
}

#[cfg(test)]
mod tests {
    use super::super::found::Subnet;
    use super::*;

    fn group(id: &str, rules: &[Rule]) -> Group {
        let (name, vpc) = ("any".to_owned(), "vpc-1".to_owned());
        Group { id: id.to_owned(), name, vpc, ingress: rules.to_vec(), is_ours: false }
    }

    fn from(source: Source) -> Rule {
        Rule { source, ..Rule::among_members() }
    }

    #[test]
    fn builders_get_to_each_other_by_their_groups_or_by_their_addresses() {
        let cidr = |text: &str| text.parse::<Cidr>().unwrap();
        let subnet = |id: &str, range: &str| Subnet {
            id: id.to_owned(),
            vpc: "vpc-1".to_owned(),
            zone: "xa".to_owned(),
            cidr: cidr(range),
            free_addresses: 9,
            is_default: true,
            is_public: true,
            is_ours: false,
        };
        let network = Network {
            vpc: "vpc-1".to_owned(),
            subnets: vec![subnet("subnet-a", "10.0.0.0/20"), subnet("subnet-b", "10.0.16.0/20")],
            groups: vec!["sg-1".to_owned(), "sg-2".to_owned()],
        };
        let members = |rules: &[Rule]| {
            let groups = [group("sg-1", rules), group("sg-2", &[])];
            entry_by(&groups, &network, None).members
        };
        assert!(!members(&[]));
        assert!(members(&[Rule::among_members()]));
        let everything = Rule { protocol: "-1".to_owned(), ports: None, ..Rule::among_members() };
        assert!(members(std::slice::from_ref(&everything)));
        assert!(!members(&[Rule { protocol: "udp".to_owned(), ..Rule::among_members() }]));
        assert!(!members(&[Rule { ports: Some((2049, 2049)), ..Rule::among_members() }]));
        assert!(members(&[from(Source::Other("sg-2".to_owned()))]));
        assert!(!members(&[from(Source::Other("sg-3".to_owned()))]));
        assert!(members(&[from(Source::Ipv4(cidr("10.0.0.0/16")))]));
        assert!(!members(&[from(Source::Ipv4(cidr("10.0.0.0/20")))]), "not from the other subnet");
        let entry = entry_by(&[group("sg-1", &[everything])], &network, Some(cidr("203.0.113.7/32")));
        assert_eq!(entry.address, Some(false));
    }
}
