//! VPCs, subnets, security groups and volumes.
//!
//! Owns those actions, and what cannot be deleted because it is in use.

use std::collections::BTreeMap;

use super::account::{Account, Cidr, Rule};
use super::form::tag_attribute;
use super::instance::State;
use super::launch::invalid;
use super::{Answer, Asked, Refusal, xml};

/// Something by one of its names, or by its tags.
fn attribute(own: &[(&str, String)], tags: &BTreeMap<String, String>, name: &str) -> Option<Vec<String>> {
    match own.iter().find(|(known, _)| *known == name) {
        Some((_, value)) => Some(vec![value.clone()]),
        None => tag_attribute(tags, name),
    }
}

impl Account {
    pub(super) fn describe_vpcs(&mut self, asked: &Asked<'_>) -> Answer {
        let mut found = Vec::new();
        for vpc in self.regions[asked.region].vpcs.values() {
            let own = [
                ("vpc-id", vpc.id.clone()),
                ("is-default", vpc.is_default.to_string()),
                ("cidr", vpc.cidr.to_string()),
            ];
            if asked.form.passes(|name| attribute(&own, &vpc.tags, name))? {
                found.push(
                    xml::leaf("vpcId", &vpc.id)
                        + &xml::leaf("state", "available")
                        + &xml::leaf("cidrBlock", vpc.cidr)
                        + &xml::leaf("isDefault", vpc.is_default)
                        + &xml::tags(&vpc.tags),
                );
            }
        }
        let (page, next) = asked.form.page(&found, self.settings.page);
        Ok(xml::list("vpcSet", page) + &xml::optional("nextToken", next))
    }

    pub(super) fn describe_subnets(&mut self, asked: &Asked<'_>) -> Answer {
        let mut found = Vec::new();
        for subnet in self.regions[asked.region].subnets.values() {
            let own = [
                ("subnet-id", subnet.id.clone()),
                ("vpc-id", subnet.vpc.clone()),
                ("availability-zone", subnet.zone.clone()),
                ("default-for-az", subnet.is_default.to_string()),
                ("state", "available".to_owned()),
            ];
            if asked.form.passes(|name| attribute(&own, &subnet.tags, name))? {
                found.push(self.subnet_document(&subnet.id, asked.region));
            }
        }
        let (page, next) = asked.form.page(&found, self.settings.page);
        Ok(xml::list("subnetSet", page) + &xml::optional("nextToken", next))
    }

    fn subnet_document(&self, id: &str, region: &str) -> String {
        let subnet = &self.regions[region].subnets[id];
        let inside = |address: &std::net::Ipv4Addr| subnet.cidr.contains(*address);
        let living = self.instances.values().filter(|instance| instance.state != State::Terminated);
        let used = living.filter(|instance| instance.subnet == id && inside(&instance.private_ip)).count();
        [
            xml::leaf("subnetId", &subnet.id),
            xml::leaf("state", "available"),
            xml::leaf("vpcId", &subnet.vpc),
            xml::leaf("cidrBlock", subnet.cidr),
            xml::leaf("availableIpAddressCount", subnet.cidr.usable().count() - used),
            xml::leaf("availabilityZone", &subnet.zone),
            xml::leaf("defaultForAz", subnet.is_default),
            xml::leaf("mapPublicIpOnLaunch", subnet.is_default),
            xml::tags(&subnet.tags),
        ]
        .concat()
    }

    pub(super) fn describe_groups(&mut self, asked: &Asked<'_>) -> Answer {
        let mut found = Vec::new();
        for group in self.regions[asked.region].groups.values() {
            let own = [
                ("group-id", group.id.clone()),
                ("group-name", group.name.clone()),
                ("vpc-id", group.vpc.clone()),
            ];
            if asked.form.passes(|name| attribute(&own, &group.tags, name))? {
                let rules = group.ingress.iter().map(|(protocol, from, to, source, note)| {
                    let note = xml::leaf("description", note);
                    let sources = match source.starts_with("sg-") {
                        true => xml::list("groups", [xml::leaf("groupId", source) + &note]),
                        false => xml::list("ipRanges", [xml::leaf("cidrIp", source) + &note]),
                    };
                    xml::leaf("ipProtocol", protocol)
                        + &xml::leaf("fromPort", from)
                        + &xml::leaf("toPort", to)
                        + &sources
                });
                found.push(
                    xml::leaf("groupId", &group.id)
                        + &xml::leaf("groupName", &group.name)
                        + &xml::leaf("groupDescription", &group.description)
                        + &xml::leaf("vpcId", &group.vpc)
                        + &xml::list("ipPermissions", rules)
                        + &xml::tags(&group.tags),
                );
            }
        }
        let (page, next) = asked.form.page(&found, self.settings.page);
        Ok(xml::list("securityGroupInfo", page) + &xml::optional("nextToken", next))
    }

    pub(super) fn describe_volumes(&mut self, asked: &Asked<'_>) -> Answer {
        let mut found = Vec::new();
        let here =
            |volume: &&super::account::Volume| volume.region == asked.region && volume.deleted.is_none();
        for volume in self.volumes.values().filter(here) {
            let status = if volume.instance.is_some() { "in-use" } else { "available" };
            let own = [("volume-id", volume.id.clone()), ("status", status.to_owned())];
            if asked.form.passes(|name| attribute(&own, &volume.tags, name))? {
                found.push(
                    xml::leaf("volumeId", &volume.id)
                        + &xml::leaf("size", volume.size)
                        + &xml::leaf("status", status)
                        + &xml::leaf("availabilityZone", &volume.zone)
                        + &xml::tags(&volume.tags),
                );
            }
        }
        let (page, next) = asked.form.page(&found, self.settings.page);
        Ok(xml::list("volumeSet", page) + &xml::optional("nextToken", next))
    }

    pub(super) fn delete_volume(&mut self, asked: &Asked<'_>) -> Answer {
        let id = asked.form.get("VolumeId").unwrap_or_default();
        let volume = self.volumes.get_mut(id).filter(|volume| volume.deleted.is_none());
        let volume = volume.ok_or_else(|| {
            Refusal::new(400, "InvalidVolume.NotFound", format!("The volume '{id}' does not exist."))
        })?;
        if let Some(instance) = &volume.instance {
            let words = format!("Volume {id} is currently attached to {instance}");
            return Err(Refusal::new(400, "VolumeInUse", words));
        }
        volume.deleted = Some(asked.now);
        Ok(xml::done())
    }

    pub(super) fn create_group(&mut self, asked: &Asked<'_>) -> Answer {
        let (vpc, name) = (asked.form.get("VpcId").unwrap_or_default(), asked.form.get("GroupName"));
        let name = name.unwrap_or_default();
        self.known_vpc(asked, vpc)?;
        let groups = &self.regions[asked.region].groups;
        if groups.values().any(|group| group.vpc == vpc && group.name == name) {
            let words = format!("The security group '{name}' already exists for VPC '{vpc}'");
            return Err(Refusal::new(400, "InvalidGroup.Duplicate", words));
        }
        let description = asked.form.get("GroupDescription").unwrap_or_default();
        let id = self.add_group(asked.region, vpc, name, description, asked.form.tags_for("security-group"));
        Ok(xml::done() + &xml::leaf("groupId", id))
    }

    fn known_vpc(&self, asked: &Asked<'_>, vpc: &str) -> Result<Cidr, Refusal> {
        self.regions[asked.region].vpcs.get(vpc).map(|vpc| vpc.cidr).ok_or_else(|| {
            Refusal::new(400, "InvalidVpcID.NotFound", format!("The vpc ID '{vpc}' does not exist"))
        })
    }

    fn group<'a>(&'a mut self, asked: &Asked<'_>) -> Result<&'a mut super::account::Group, Refusal> {
        let id = asked.form.get("GroupId").unwrap_or_default();
        self.regions.get_mut(asked.region).unwrap().groups.get_mut(id).ok_or_else(|| {
            Refusal::new(400, "InvalidGroup.NotFound", format!("The security group '{id}' does not exist"))
        })
    }

    /// Sources are ranges and groups, which look different enough.
    fn rules(&self, asked: &Asked<'_>) -> Result<Vec<Rule>, Refusal> {
        let mut rules = Vec::new();
        for rule in asked.form.forms("IpPermissions") {
            let text = |name: &str| rule.get(name).unwrap_or_default().to_owned();
            for range in rule.forms("IpRanges") {
                let cidr = range.get("CidrIp").unwrap_or_default();
                if Cidr::parse(cidr).is_none() {
                    return Err(invalid(&format!("CIDR block {cidr} is malformed")));
                }
                let note = range.get("Description").unwrap_or_default().to_owned();
                rules.push((text("IpProtocol"), text("FromPort"), text("ToPort"), cidr.to_owned(), note));
            }
            for pair in rule.forms("Groups") {
                let group = pair.get("GroupId").unwrap_or_default();
                if !self.regions[asked.region].groups.contains_key(group) {
                    let words = format!("The security group '{group}' does not exist");
                    return Err(Refusal::new(400, "InvalidGroup.NotFound", words));
                }
                let note = pair.get("Description").unwrap_or_default().to_owned();
                rules.push((text("IpProtocol"), text("FromPort"), text("ToPort"), group.to_owned(), note));
            }
        }
        if rules.is_empty() {
            return Err(Refusal::new(400, "MissingParameter", "The request must contain IpPermissions"));
        }
        Ok(rules)
    }

    pub(super) fn authorize(&mut self, asked: &Asked<'_>) -> Answer {
        let rules = self.rules(asked)?;
        let group = self.group(asked)?;
        for rule in rules {
            let same = |other: &Rule| {
                (&other.0, &other.1, &other.2, &other.3) == (&rule.0, &rule.1, &rule.2, &rule.3)
            };
            if group.ingress.iter().any(same) {
                let words = "the specified rule already exists";
                return Err(Refusal::new(400, "InvalidPermission.Duplicate", words));
            }
            group.ingress.push(rule);
        }
        Ok(xml::done())
    }

    pub(super) fn revoke(&mut self, asked: &Asked<'_>) -> Answer {
        let rules = self.rules(asked)?;
        let group = self.group(asked)?;
        for rule in rules {
            let before = group.ingress.len();
            group.ingress.retain(|other| {
                (&other.0, &other.1, &other.2, &other.3) != (&rule.0, &rule.1, &rule.2, &rule.3)
            });
            if group.ingress.len() == before {
                let words = "The specified rule does not exist in this security group.";
                return Err(Refusal::new(400, "InvalidPermission.NotFound", words));
            }
        }
        Ok(xml::done())
    }

    pub(super) fn delete_group(&mut self, asked: &Asked<'_>) -> Answer {
        let id = self.group(asked)?.id.clone();
        let living = self.instances.values().filter(|instance| instance.state != State::Terminated);
        if living.into_iter().any(|instance| instance.groups.contains(&id)) {
            let words = format!("resource {id} has a dependent object");
            return Err(Refusal::new(400, "DependencyViolation", words));
        }
        // One that refers to itself is in nobody's way.
        let mut others = self.regions[asked.region].groups.values().filter(|group| group.id != id);
        if others.any(|group| group.ingress.iter().any(|rule| rule.3 == id)) {
            let words = format!("resource {id} has a dependent object");
            return Err(Refusal::new(400, "DependencyViolation", words));
        }
        self.regions.get_mut(asked.region).unwrap().groups.remove(&id);
        Ok(xml::done())
    }

    pub(super) fn create_subnet(&mut self, asked: &Asked<'_>) -> Answer {
        let text = |name: &str| asked.form.get(name).unwrap_or_default();
        let (vpc, cidr, zone) = (text("VpcId"), text("CidrBlock"), text("AvailabilityZone"));
        let whole = self.known_vpc(asked, vpc)?;
        let range = Cidr::parse(cidr).ok_or_else(|| invalid(&format!("CIDR block {cidr} is malformed")))?;
        if !whole.holds(range) {
            let words = format!("The CIDR '{cidr}' is invalid.");
            return Err(Refusal::new(400, "InvalidSubnet.Range", words));
        }
        let taken = self.regions[asked.region].subnets.values();
        if taken.into_iter().any(|subnet| subnet.vpc == vpc && subnet.cidr.overlaps(range)) {
            let words = format!("The CIDR '{cidr}' conflicts with another subnet");
            return Err(Refusal::new(400, "InvalidSubnet.Conflict", words));
        }
        let id = self.add_subnet(asked.region, vpc, zone, range, false, asked.form.tags_for("subnet"));
        Ok(xml::node("subnet", self.subnet_document(&id, asked.region)))
    }

    pub(super) fn delete_subnet(&mut self, asked: &Asked<'_>) -> Answer {
        let id = asked.form.get("SubnetId").unwrap_or_default();
        if !self.regions[asked.region].subnets.contains_key(id) {
            let words = format!("The subnet ID '{id}' does not exist");
            return Err(Refusal::new(400, "InvalidSubnetID.NotFound", words));
        }
        let living = self.instances.values().filter(|instance| instance.state != State::Terminated);
        if living.into_iter().any(|instance| instance.subnet == id) {
            let words = format!("The subnet '{id}' has dependencies and cannot be deleted.");
            return Err(Refusal::new(400, "DependencyViolation", words));
        }
        self.regions.get_mut(asked.region).unwrap().subnets.remove(id);
        Ok(xml::done())
    }
}
