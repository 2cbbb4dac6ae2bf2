//! The default VPC as a whole, with its way out, and the list of regions.
//!
//! Owns those actions. A region begins with a default VPC, whose gateway is not modelled; one that is made later has one.

use std::collections::BTreeMap;

use super::account::{Account, Cidr, Gateway, Vpc, ZONES};
use super::form::tag_attribute;
use super::{Answer, Asked, Refusal, xml};

impl Account {
    pub(super) fn describe_regions(&mut self, _asked: &Asked<'_>) -> Answer {
        let regions = self.regions.keys().map(|name| {
            xml::leaf("regionName", name) + &xml::leaf("regionEndpoint", format!("ec2.{name}.amazonaws.com"))
        });
        Ok(xml::list("regionInfo", regions))
    }

    pub(super) fn create_default_vpc(&mut self, asked: &Asked<'_>) -> Answer {
        if self.regions[asked.region].vpcs.values().any(|vpc| vpc.is_default) {
            let words = "A Default VPC already exists for this account in this region.";
            return Err(Refusal::new(400, "DefaultVpcAlreadyExists", words));
        }
        let (vpc, gateway) = (self.new_id("vpc"), self.new_id("igw"));
        let cidr = Cidr::parse("172.31.0.0/16").unwrap();
        let region = self.regions.get_mut(asked.region).unwrap();
        region
            .vpcs
            .insert(vpc.clone(), Vpc { id: vpc.clone(), cidr, is_default: true, tags: BTreeMap::new() });
        region.gateways.insert(gateway, Gateway { vpc: Some(vpc.clone()), tags: BTreeMap::new() });
        self.add_group(asked.region, &vpc, "default", "default VPC security group", BTreeMap::new());
        for (index, letter) in ZONES.iter().enumerate() {
            let cidr = Cidr::parse(&format!("172.31.{}.0/20", index * 16)).unwrap();
            let zone = format!("{}{letter}", asked.region);
            self.add_subnet(asked.region, &vpc, &zone, cidr, true, BTreeMap::new());
        }
        let inside = xml::leaf("vpcId", &vpc) + &xml::leaf("cidrBlock", cidr) + &xml::leaf("isDefault", true);
        Ok(xml::node("vpc", inside))
    }

    pub(super) fn describe_gateways(&mut self, asked: &Asked<'_>) -> Answer {
        let mut found = Vec::new();
        for (id, gateway) in &self.regions[asked.region].gateways {
            let passes = asked.form.passes(|name| match name {
                "attachment.vpc-id" => Some(gateway.vpc.clone().into_iter().collect()),
                "internet-gateway-id" => Some(vec![id.clone()]),
                other => tag_attribute(&gateway.tags, other),
            })?;
            if passes {
                found.push(xml::leaf("internetGatewayId", id) + &xml::tags(&gateway.tags));
            }
        }
        Ok(xml::list("internetGatewaySet", found))
    }

    fn gateway<'a>(&'a mut self, asked: &Asked<'_>) -> Result<&'a mut Gateway, Refusal> {
        let id = asked.form.get("InternetGatewayId").unwrap_or_default();
        self.regions.get_mut(asked.region).unwrap().gateways.get_mut(id).ok_or_else(|| {
            let words = format!("The internetGateway ID '{id}' does not exist");
            Refusal::new(400, "InvalidInternetGatewayID.NotFound", words)
        })
    }

    pub(super) fn detach_gateway(&mut self, asked: &Asked<'_>) -> Answer {
        let vpc = asked.form.get("VpcId").unwrap_or_default().to_owned();
        let gateway = self.gateway(asked)?;
        if gateway.vpc.as_deref() != Some(&vpc) {
            let words = "resource is not attached to network";
            return Err(Refusal::new(400, "Gateway.NotAttached", words));
        }
        gateway.vpc = None;
        Ok(xml::done())
    }

    pub(super) fn delete_gateway(&mut self, asked: &Asked<'_>) -> Answer {
        if self.gateway(asked)?.vpc.is_some() {
            let words = "The internetGateway has dependencies and cannot be deleted.";
            return Err(Refusal::new(400, "DependencyViolation", words));
        }
        let id = asked.form.get("InternetGatewayId").unwrap_or_default();
        self.regions.get_mut(asked.region).unwrap().gateways.remove(id);
        Ok(xml::done())
    }

    pub(super) fn delete_vpc(&mut self, asked: &Asked<'_>) -> Answer {
        let id = asked.form.get("VpcId").unwrap_or_default();
        let region = self.regions.get_mut(asked.region).unwrap();
        if !region.vpcs.contains_key(id) {
            let words = format!("The vpc ID '{id}' does not exist");
            return Err(Refusal::new(400, "InvalidVpcID.NotFound", words));
        }
        let is_used = region.subnets.values().any(|subnet| subnet.vpc == id)
            || region.gateways.values().any(|gateway| gateway.vpc.as_deref() == Some(id))
            || region.groups.values().any(|group| group.vpc == id && group.name != "default");
        if is_used {
            let words = format!("The vpc '{id}' has dependencies and cannot be deleted.");
            return Err(Refusal::new(400, "DependencyViolation", words));
        }
        region.vpcs.remove(id);
        region.groups.retain(|_, group| group.vpc != id);
        Ok(xml::done())
    }

    /// The region as an account has it whose owner deleted the default VPC.
    pub(super) fn forget_default_vpc(&mut self, region: &str) {
        let region = self.regions.get_mut(region).unwrap();
        let gone: Vec<_> =
            region.vpcs.values().filter(|vpc| vpc.is_default).map(|vpc| vpc.id.clone()).collect();
        region.vpcs.retain(|id, _| !gone.contains(id));
        region.subnets.retain(|_, subnet| !gone.contains(&subnet.vpc));
        region.groups.retain(|_, group| !gone.contains(&group.vpc));
    }
}
