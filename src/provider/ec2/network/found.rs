//! What there is of a network in one region, and which of it a pool uses.
//!
//! Pure. What is missing of it, and what `broker init` does about that, is in `super::plan`.

use std::collections::BTreeSet;
use std::fmt;

use super::cidr::Cidr;
use super::{GROUP_NAME, NetworkError};

/// The port builders are reached at.
pub(super) const SSH: i32 = 22;

/// Everything that was looked at in one region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Every VPC.
    pub vpcs: Vec<Vpc>,
    /// Every subnet.
    pub subnets: Vec<Subnet>,
    /// The groups that are ours, have our name, or were asked for.
    pub groups: Vec<Group>,
    /// Whatever runs in the VPCs that have something of ours.
    pub instances: Vec<Tenant>,
}

/// A VPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vpc {
    /// `vpc-...`
    pub id: String,
    /// Its ranges.
    pub cidrs: Vec<Cidr>,
    /// The region's default one.
    pub is_default: bool,
    /// `broker init` made it.
    pub is_ours: bool,
}

/// A subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// `subnet-...`
    pub id: String,
    /// Its VPC.
    pub vpc: String,
    /// Its zone.
    pub zone: String,
    /// Its range.
    pub cidr: Cidr,
    /// Addresses that nothing has.
    pub free_addresses: u32,
    /// The default one of its zone.
    pub is_default: bool,
    /// What is launched in it gets a public address unless it is asked not to.
    pub is_public: bool,
    /// `broker init` made it.
    pub is_ours: bool,
}

/// A security group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// `sg-...`
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its VPC.
    pub vpc: String,
    /// Who may come in.
    pub ingress: Vec<Rule>,
    /// `broker init` made it.
    pub is_ours: bool,
}

/// One rule of a security group: one protocol, one range of ports, one source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// `tcp`, or `-1` for all of them.
    pub protocol: String,
    /// Both ends; `None` is every port.
    pub ports: Option<(i32, i32)>,
    /// Who.
    pub source: Source,
    /// What the rule is for, as whoever made it wrote down.
    pub description: Option<String>,
}

/// Who a rule lets in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A range of IPv4 addresses.
    Ipv4(Cidr),
    /// Whatever is in the group that has the rule, at its private address.
    Members,
    /// A range of IPv6 addresses, another security group, or a prefix list.
    Other(String),
}

/// An instance that a network cannot be removed under.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tenant {
    /// `i-...`
    pub id: String,
    /// Its VPC.
    pub vpc: Option<String>,
    /// Its subnet.
    pub subnet: Option<String>,
    /// The groups it is in.
    pub groups: BTreeSet<String>,
}

/// What a pool's configuration names.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Given {
    /// Subnets; empty leaves the choice to us.
    pub subnets: BTreeSet<String>,
    /// Security groups; empty leaves the choice to us.
    pub groups: BTreeSet<String>,
}

/// Where a pool's instances are launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The VPC of all of it.
    pub vpc: String,
    /// One or more for each zone.
    pub subnets: Vec<Subnet>,
    /// The security groups' ids.
    pub groups: Vec<String>,
}

/// Why a rule of our group is there, by its description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Lets this broker in from where it is.
    Broker(String),
    /// Lets in the machine on which `broker init` ran before it had a broker.
    Init,
    /// Lets in what `broker init --address` named.
    ByHand,
    /// Lets in the VPC itself.
    Vpc,
    /// Lets builders in to each other.
    Members,
    /// None of ours.
    Foreign,
}

impl Purpose {
    const PREFIX: &str = "nix-broker ";

    pub(super) fn of(rule: &Rule) -> Self {
        let is_ssh = rule.protocol == "tcp" && rule.ports == Some((SSH, SSH));
        let word = rule.description.as_deref().and_then(|text| text.strip_prefix(Self::PREFIX));
        match (word, &rule.source) {
            (Some(word), Source::Ipv4(_)) if is_ssh => match word {
                "init" => Self::Init,
                "init --address" => Self::ByHand,
                "VPC" => Self::Vpc,
                id if is_broker_id(id) => Self::Broker(id.to_owned()),
                _ => Self::Foreign,
            },
            (Some("builders"), Source::Members) if is_ssh => Self::Members,
            _ => Self::Foreign,
        }
    }
}

/// The description that [`Purpose::of`] reads. EC2 takes letters, digits and some punctuation.
impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::PREFIX)?;
        f.write_str(match self {
            Self::Broker(id) => id,
            Self::Init => "init",
            Self::ByHand => "init --address",
            Self::Vpc => "VPC",
            Self::Members => "builders",
            Self::Foreign => "?",
        })
    }
}

/// Whether this is the id of a broker, as its tag and its rules carry it.
pub fn is_broker_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl Rule {
    /// SSH from there, for this reason.
    pub(super) fn ssh(source: Cidr, purpose: &Purpose) -> Self {
        Self::ssh_from(Source::Ipv4(source), purpose)
    }

    /// SSH from builder to builder.
    pub(super) fn among_members() -> Self {
        Self::ssh_from(Source::Members, &Purpose::Members)
    }

    fn ssh_from(source: Source, purpose: &Purpose) -> Self {
        Self {
            protocol: "tcp".into(),
            ports: Some((SSH, SSH)),
            source,
            description: Some(purpose.to_string()),
        }
    }

    /// The range it lets in to SSH, if that is what it does and all it does.
    pub(super) fn ssh_source(&self) -> Option<Cidr> {
        match self.source {
            Source::Ipv4(cidr) if self.protocol == "tcp" && self.ports == Some((SSH, SSH)) => Some(cidr),
            Source::Ipv4(_) | Source::Members | Source::Other(_) => None,
        }
    }

    /// Whether whoever comes from this range gets to SSH by it.
    pub(super) fn admits(&self, who: Cidr) -> bool {
        match self.source {
            Source::Ipv4(cidr) => self.is_for_ssh() && cidr.covers(who),
            Source::Members | Source::Other(_) => false,
        }
    }

    /// Whether whatever is in its group gets to SSH by it.
    pub(super) fn admits_members(&self) -> bool {
        match self.source {
            Source::Members => self.is_for_ssh(),
            Source::Ipv4(_) | Source::Other(_) => false,
        }
    }

    /// Whether SSH is among what it lets in.
    pub(super) fn is_for_ssh(&self) -> bool {
        match (self.protocol.as_str(), self.ports) {
            ("-1", _) => true,
            ("tcp", Some((low, high))) => low <= SSH && SSH <= high,
            _ => false,
        }
    }
}

/// `tcp 22 from 203.0.113.7/32`
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol.as_str() {
            "-1" => f.write_str("everything")?,
            protocol => f.write_str(protocol)?,
        }
        match self.ports {
            Some((low, high)) if low == high => write!(f, " {low}")?,
            Some((low, high)) => write!(f, " {low}-{high}")?,
            None => {}
        }
        match &self.source {
            Source::Ipv4(cidr) => write!(f, " from {cidr}"),
            Source::Members => f.write_str(" from the group itself"),
            Source::Other(name) => write!(f, " from {name}"),
        }
    }
}

impl Found {
    pub(super) fn vpc(&self, id: &str) -> Option<&Vpc> {
        self.vpcs.iter().find(|vpc| vpc.id == id)
    }

    /// Our group in this VPC.
    pub(super) fn group_in(&self, vpc: &str) -> Option<&Group> {
        self.groups.iter().filter(|group| group.is_ours && group.vpc == vpc).min_by_key(|group| &group.id)
    }

    /// A group with the name we would give one, and without our tag.
    pub(super) fn namesake_in(&self, vpc: &str) -> Option<&Group> {
        self.groups.iter().find(|group| !group.is_ours && group.vpc == vpc && group.name == GROUP_NAME)
    }

    /// The VPC that a pool with these settings uses; `None` when there is none to use.
    pub(super) fn home(&self, given: &Given) -> Result<Option<&Vpc>, NetworkError> {
        let mut named = BTreeSet::new();
        for id in &given.subnets {
            let subnet = self.subnets.iter().find(|subnet| subnet.id == *id);
            named.insert(subnet.ok_or_else(|| NetworkError::Unknown(id.clone()))?.vpc.as_str());
        }
        for id in &given.groups {
            let group = self.groups.iter().find(|group| group.id == *id);
            named.insert(group.ok_or_else(|| NetworkError::Unknown(id.clone()))?.vpc.as_str());
        }
        if named.len() > 1 {
            let vpcs = named.into_iter().map(str::to_owned).collect();
            return Err(NetworkError::Scattered(vpcs));
        }
        if let Some(id) = named.into_iter().next() {
            return self.vpc(id).map(Some).ok_or_else(|| NetworkError::Unknown(id.to_owned()));
        }
        // An earlier `broker init` was here; should it have been in two, then the default one counts.
        let ours = self.vpcs.iter().filter(|vpc| self.group_in(&vpc.id).is_some());
        let default = self.vpcs.iter().find(|vpc| vpc.is_default);
        Ok(ours.max_by_key(|vpc| vpc.is_default).or(default))
    }

    /// The subnets of this VPC that a pool with these settings uses.
    pub(super) fn subnets_in(&self, vpc: &Vpc, given: &Given) -> Vec<&Subnet> {
        let here: Vec<_> = self.subnets.iter().filter(|subnet| subnet.vpc == vpc.id).collect();
        let narrowed = |is_wanted: &dyn Fn(&Subnet) -> bool| -> Vec<&Subnet> {
            here.iter().copied().filter(|subnet| is_wanted(subnet)).collect()
        };
        if !given.subnets.is_empty() {
            return narrowed(&|subnet| given.subnets.contains(&subnet.id));
        }
        let made_for_this = narrowed(&|subnet| subnet.is_default || subnet.is_ours);
        if made_for_this.is_empty() { here } else { made_for_this }
    }

    /// Where a pool with these settings launches, as things are.
    pub(super) fn network(&self, given: &Given, region: &str) -> Result<Network, NetworkError> {
        let nothing = |what| NetworkError::Nothing { what, region: region.to_owned() };
        let vpc = self.home(given)?.ok_or_else(|| nothing("VPC"))?;
        let subnets: Vec<_> = self.subnets_in(vpc, given).into_iter().cloned().collect();
        if subnets.is_empty() {
            return Err(nothing("subnet"));
        }
        let groups: Vec<_> = match given.groups.is_empty() {
            false => given.groups.iter().cloned().collect(),
            true => self.group_in(&vpc.id).map(|group| group.id.clone()).into_iter().collect(),
        };
        if groups.is_empty() {
            return Err(nothing("security group of the broker"));
        }
        Ok(Network { vpc: vpc.id.clone(), subnets, groups })
    }
}
