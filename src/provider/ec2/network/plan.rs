//! What `broker init` does to a region's network, and what `broker init --remove` does: decided here, done in
//! `super::perform`.
//!
//! Pure. Nothing that a person made is ever changed or deleted, not even a rule that was added to our group.

use std::collections::BTreeSet;
use std::fmt;

use super::cidr::Cidr;
use super::found::{Found, Given, Group, Purpose, Rule, Subnet, Vpc};
use super::{GROUP_NAME, NetworkError};

/// The size of a subnet where the VPC has room: 4,091 instances, as AWS makes its default ones.
const SUBNET_PREFIX: u8 = 20;
/// EC2 makes none smaller.
const SMALLEST_SUBNET: u8 = 28;

/// What one or more pools need of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// What their configuration names.
    pub given: Given,
    /// Zones that offer what they may launch.
    pub zones: BTreeSet<String>,
    /// Who must be let in to SSH from outside.
    pub admit: Option<Entrant>,
    /// Who must be let in from inside.
    pub inside: Inside,
    /// This broker, if it has an id yet.
    pub broker: Option<String>,
}

/// Who is let in that is in the VPC; what comes later lets in more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Inside {
    /// Nobody.
    Nobody,
    /// Builders, by each other.
    Members,
    /// Whatever is there: the broker, say.
    Vpc,
}

/// Who is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrant {
    /// The address this machine was seen with.
    Seen(Cidr),
    /// What a person said.
    Told(Cidr),
}

/// Something that exists, or that is made by an earlier change of the same plan.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// This one.
    Id(String),
    /// The one that was just made.
    New,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Make the region's default VPC, with its subnets and its way out.
    CreateDefaultVpc,
    /// Make a subnet.
    CreateSubnet {
        /// Where.
        vpc: String,
        /// In this zone.
        zone: String,
        /// With this range.
        cidr: Cidr,
    },
    /// Make our security group.
    CreateGroup {
        /// Where.
        vpc: Place,
    },
    /// Let somebody in.
    Authorize {
        /// To which group.
        group: Place,
        /// How.
        rule: Rule,
    },
    /// Let somebody in no more.
    Revoke {
        /// From which group.
        group: String,
        /// Which rule.
        rule: Rule,
        /// Why.
        why: &'static str,
    },
    /// Delete a security group of ours.
    DeleteGroup {
        /// Which.
        group: String,
    },
    /// Delete a subnet of ours.
    DeleteSubnet {
        /// Which.
        subnet: String,
        /// Of this zone.
        zone: String,
    },
    /// Delete a VPC of ours, with its subnets and its way out.
    DeleteVpc {
        /// Which.
        vpc: String,
    },
}

/// What to do, and what else there is to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub changes: Vec<Change>,
    /// What is used as it is.
    pub uses: Vec<String>,
    /// What cannot be done, and why not.
    pub obstacles: Vec<String>,
    /// What works and may not be meant.
    pub warnings: Vec<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "`{id}`"),
            Self::New => f.write_str("the new group"),
        }
    }
}

impl Change {
    /// What is done, in the word of the API.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::CreateDefaultVpc | Self::CreateSubnet { .. } | Self::CreateGroup { .. } => "create",
            Self::Authorize { .. } => "authorize",
            Self::Revoke { .. } => "revoke",
            Self::DeleteGroup { .. } | Self::DeleteSubnet { .. } | Self::DeleteVpc { .. } => "delete",
        }
    }

    /// To what.
    pub fn object(&self) -> String {
        match self {
            Self::CreateDefaultVpc => "the default VPC, with a subnet in every zone".to_owned(),
            Self::CreateSubnet { vpc, zone, cidr } => format!("subnet {cidr} in {zone} of `{vpc}`"),
            Self::CreateGroup { vpc: Place::Id(vpc) } => format!("security group `{GROUP_NAME}` in `{vpc}`"),
            Self::CreateGroup { vpc: Place::New } => format!("security group `{GROUP_NAME}` in the new VPC"),
            Self::Authorize { group, rule } => format!("{rule} in {group}"),
            Self::Revoke { group, rule, why } => format!("{rule} in `{group}`: {why}"),
            Self::DeleteGroup { group } => format!("security group `{group}`"),
            Self::DeleteSubnet { subnet, zone } => format!("subnet `{subnet}` in {zone}"),
            Self::DeleteVpc { vpc } => format!("VPC `{vpc}`, with its subnets and internet gateway"),
        }
    }
}

/// `create subnet 172.31.48.0/20 in eu-central-1c of `vpc-1``
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb(), self.object())
    }
}

/// What is missing, and what is too much.
pub fn plan(found: &Found, wish: &Wish) -> Result<Plan, NetworkError> {
    let mut plan = Plan::default();
    let Some(vpc) = found.home(&wish.given)? else {
        plan.changes.push(Change::CreateDefaultVpc);
        plan.changes.push(Change::CreateGroup { vpc: Place::New });
        // The ranges of a default VPC are always these.
        let rules = wish.rules(&[Cidr::default_vpc()]);
        plan.changes.extend(rules.into_iter().map(|rule| authorize(Place::New, rule)));
        return Ok(plan);
    };
    let kind = if vpc.is_default { " (the default one)" } else { "" };
    plan.uses.push(format!("VPC `{}`{kind}", vpc.id));
    subnets(found, vpc, wish, &mut plan);
    groups(found, vpc, wish, &mut plan)?;
    Ok(plan)
}

impl Plan {
    /// This and that, each thing once.
    pub fn merge(&mut self, other: Self) {
        fn add<T: PartialEq>(all: &mut Vec<T>, more: Vec<T>) {
            for one in more {
                if !all.contains(&one) {
                    all.push(one);
                }
            }
        }
        add(&mut self.changes, other.changes);
        add(&mut self.uses, other.uses);
        add(&mut self.obstacles, other.obstacles);
        add(&mut self.warnings, other.warnings);
    }
}

impl Wish {
    /// The rules of a group in a VPC with these ranges.
    fn rules(&self, vpc: &[Cidr]) -> Vec<Rule> {
        let inside = match self.inside {
            Inside::Nobody => Vec::new(),
            Inside::Members => vec![Rule::among_members()],
            Inside::Vpc => vpc.iter().map(|cidr| Rule::ssh(*cidr, &Purpose::Vpc)).collect(),
        };
        inside.into_iter().chain(self.entry()).collect()
    }

    /// The rule that lets in who must be let in from outside.
    fn entry(&self) -> Option<Rule> {
        let purpose = match (self.admit?, &self.broker) {
            (Entrant::Told(_), _) => Purpose::ByHand,
            (Entrant::Seen(_), Some(broker)) => Purpose::Broker(broker.clone()),
            (Entrant::Seen(_), None) => Purpose::Init,
        };
        Some(Rule::ssh(self.admit?.cidr(), &purpose))
    }
}

impl Entrant {
    fn cidr(self) -> Cidr {
        match self {
            Self::Seen(cidr) | Self::Told(cidr) => cidr,
        }
    }
}

fn authorize(group: Place, rule: Rule) -> Change {
    Change::Authorize { group, rule }
}

fn subnets(found: &Found, vpc: &Vpc, wish: &Wish, plan: &mut Plan) {
    let used = found.subnets_in(vpc, &wish.given);
    for subnet in &used {
        if wish.zones.contains(&subnet.zone) {
            plan.uses.push(format!("subnet `{}` in {}", subnet.id, subnet.zone));
        }
    }
    let covered: BTreeSet<_> = used.iter().map(|subnet| &subnet.zone).collect();
    let missing = wish.zones.iter().filter(|zone| !covered.contains(zone));
    if !wish.given.subnets.is_empty() {
        if !used.iter().any(|subnet| wish.zones.contains(&subnet.zone)) {
            plan.obstacles.push(format!(
                "none of the pool's `subnets` is in a zone that offers its instance types ({})",
                list(&wish.zones)
            ));
        }
        return;
    }
    let mut taken: Vec<_> =
        found.subnets.iter().filter(|subnet| subnet.vpc == vpc.id).map(|subnet| subnet.cidr).collect();
    for zone in missing {
        // In a network that somebody else laid out, we cannot know which way out a subnet of ours should have.
        if !vpc.is_default && !vpc.is_ours {
            plan.uses.push(format!("no subnet in {zone}: `{}` has none there", vpc.id));
            continue;
        }
        match free_range(vpc, &taken) {
            Some(cidr) => {
                taken.push(cidr);
                plan.changes.push(Change::CreateSubnet { vpc: vpc.id.clone(), zone: zone.clone(), cidr });
            }
            None => plan.obstacles.push(format!("`{}` has no room for a subnet in {zone}", vpc.id)),
        }
    }
}

/// A range for another subnet.
fn free_range(vpc: &Vpc, taken: &[Cidr]) -> Option<Cidr> {
    (SUBNET_PREFIX..=SMALLEST_SUBNET)
        .find_map(|prefix| vpc.cidrs.iter().find_map(|cidr| cidr.first_free(prefix, taken)))
}

fn groups(found: &Found, vpc: &Vpc, wish: &Wish, plan: &mut Plan) -> Result<(), NetworkError> {
    if !wish.given.groups.is_empty() {
        for id in &wish.given.groups {
            plan.uses.push(format!("security group `{id}`, as it is"));
        }
        let groups = found.groups.iter().filter(|group| wish.given.groups.contains(&group.id));
        let rules: Vec<_> = groups.flat_map(|group| &group.ingress).collect();
        if let Some(entrant) = wish.admit
            && !rules.iter().any(|rule| rule.admits(entrant.cidr()))
        {
            plan.obstacles.push(format!(
                "none of the pool's `security-groups` lets in {} to port 22: add a rule to one of them",
                entrant.cidr()
            ));
        }
        return Ok(());
    }
    let wanted = wish.rules(&vpc.cidrs);
    let Some(group) = found.group_in(&vpc.id) else {
        if let Some(namesake) = found.namesake_in(&vpc.id) {
            return Err(NetworkError::Namesake(namesake.id.clone()));
        }
        plan.changes.push(Change::CreateGroup { vpc: Place::Id(vpc.id.clone()) });
        plan.changes.extend(wanted.into_iter().map(|rule| authorize(Place::New, rule)));
        return Ok(());
    };
    plan.uses.push(format!("security group `{}`", group.id));
    let is_there = |rule: &Rule| match rule.ssh_source() {
        // EC2 takes no second rule for the same range, whatever its description.
        Some(source) => group.ingress.iter().any(|there| there.ssh_source() == Some(source)),
        None => group.ingress.iter().any(Rule::admits_members),
    };
    let missing = wanted.into_iter().filter(|rule| !is_there(rule));
    let place = || Place::Id(group.id.clone());
    plan.changes.extend(missing.map(|rule| authorize(place(), rule)));
    plan.changes.extend(superfluous(group, vpc, wish).map(|(rule, why)| Change::Revoke {
        group: group.id.clone(),
        rule: rule.clone(),
        why,
    }));
    for rule in group.ingress.iter().filter(|rule| Purpose::of(rule) == Purpose::Foreign) {
        plan.warnings.push(format!(
            "security group `{}` also lets in {rule}, which no broker asked for: revoke it unless it is meant",
            group.id
        ));
    }
    Ok(())
}

/// Rules of our group that should not be there.
fn superfluous<'a>(
    group: &'a Group,
    vpc: &'a Vpc,
    wish: &'a Wish,
) -> impl Iterator<Item = (&'a Rule, &'static str)> {
    let entrant = wish.admit.map(Entrant::cidr);
    group.ingress.iter().filter_map(move |rule| {
        let source = rule.ssh_source();
        if source.is_some() && (source == entrant || source.is_some_and(|it| vpc.cidrs.contains(&it))) {
            return None;
        }
        let is_own = |broker: &String| wish.broker.as_ref() == Some(broker);
        match Purpose::of(rule) {
            // Whoever only needs the VPC says nothing about the address from outside.
            Purpose::Init | Purpose::ByHand if entrant.is_none() => None,
            Purpose::Init => Some((rule, "this machine was seen there earlier")),
            Purpose::ByHand => Some((rule, "an earlier `--address`")),
            Purpose::Broker(broker) if is_own(&broker) && entrant.is_some() => {
                Some((rule, "this broker was there earlier"))
            }
            Purpose::Broker(_) => None,
            Purpose::Vpc => Some((rule, "the VPC has that range no longer")),
            // Other brokers' builders need it too.
            Purpose::Members => None,
            // A person made it.
            Purpose::Foreign => None,
        }
    })
}

/// What lets in whom a broker needs let in, and itself from nowhere else, in a group of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Admission {
    pub(super) authorize: Vec<Rule>,
    pub(super) revoke: Vec<Rule>,
}

/// What to change so that a broker is let in from where it is now, as far as that is known, and its builders by each other
/// if they are to be. Other brokers' rules, and a person's, stay.
pub(super) fn admission(group: &Group, broker: &str, address: Option<Cidr>, inside: Inside) -> Admission {
    let mut admission = address.map(|address| entrance(group, broker, address)).unwrap_or_default();
    if inside == Inside::Members && !group.ingress.iter().any(Rule::admits_members) {
        admission.authorize.push(Rule::among_members());
    }
    admission
}

fn entrance(group: &Group, broker: &str, address: Cidr) -> Admission {
    let is_admitted = group.ingress.iter().any(|rule| rule.admits(address));
    let purpose = Purpose::Broker(broker.to_owned());
    let outdated = |rule: &&Rule| {
        let is_ours = [&purpose, &Purpose::Init].contains(&&Purpose::of(rule));
        is_ours && !rule.admits(address)
    };
    Admission {
        authorize: (!is_admitted).then(|| Rule::ssh(address, &purpose)).into_iter().collect(),
        revoke: group.ingress.iter().filter(outdated).cloned().collect(),
    }
}

/// What of ours can go. What has instances stays, and is said.
pub fn removal(found: &Found) -> Plan {
    let mut plan = Plan::default();
    let mut kept_vpcs: BTreeSet<&str> = BTreeSet::new();
    for group in found.groups.iter().filter(|group| group.is_ours) {
        let users: BTreeSet<_> = tenants(found, |tenant| tenant.groups.contains(&group.id));
        if users.is_empty() {
            plan.changes.push(Change::DeleteGroup { group: group.id.clone() });
        } else {
            kept_vpcs.insert(&group.vpc);
            plan.obstacles.push(format!("security group `{}` stays: {}", group.id, still_has(&users)));
        }
    }
    for vpc in found.vpcs.iter().filter(|vpc| vpc.is_ours) {
        let users = tenants(found, |tenant| tenant.vpc.as_ref() == Some(&vpc.id));
        if !users.is_empty() {
            kept_vpcs.insert(&vpc.id);
            plan.obstacles.push(format!("VPC `{}` stays: {}", vpc.id, still_has(&users)));
        }
    }
    // Those of a VPC of ours go with it, or stay with it.
    let is_alone =
        |subnet: &&Subnet| subnet.is_ours && !found.vpc(&subnet.vpc).is_some_and(|vpc| vpc.is_ours);
    for subnet in found.subnets.iter().filter(is_alone) {
        let users = tenants(found, |tenant| tenant.subnet.as_ref() == Some(&subnet.id));
        if users.is_empty() {
            plan.changes.push(Change::DeleteSubnet { subnet: subnet.id.clone(), zone: subnet.zone.clone() });
        } else {
            plan.obstacles.push(format!("subnet `{}` stays: {}", subnet.id, still_has(&users)));
        }
    }
    let vpcs = found.vpcs.iter().filter(|vpc| vpc.is_ours && !kept_vpcs.contains(vpc.id.as_str()));
    plan.changes.extend(vpcs.map(|vpc| Change::DeleteVpc { vpc: vpc.id.clone() }));
    plan
}

fn tenants(found: &Found, is_one: impl Fn(&super::found::Tenant) -> bool) -> BTreeSet<&str> {
    found.instances.iter().filter(|tenant| is_one(tenant)).map(|tenant| tenant.id.as_str()).collect()
}

fn still_has(instances: &BTreeSet<&str>) -> String {
    format!("it has {}; `broker sweep --everything` ends the broker's", list(instances))
}

fn list<T: fmt::Display>(names: &BTreeSet<T>) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
