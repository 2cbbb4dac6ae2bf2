//! The default VPC made whole and unmade, its way out, and the regions there are.
//!
//! Owns those actions, and the order in which a VPC can be taken apart.

use super::account::Account;
use super::launch::invalid;
use super::{Answer, Asked, Refusal, xml};

impl Account {
    pub(super) fn describe_regions(&self) -> Answer {
        let regions = self.regions.keys().map(|name| {
            xml::leaf("regionName", name)
                + &xml::leaf("regionEndpoint", format!("ec2.{name}.invalid"))
                + &xml::leaf("optInStatus", "opt-in-not-required")
        });
        Ok(xml::list("regionInfo", regions))
    }

    pub(super) fn create_default_vpc(&mut self, asked: &Asked<'_>) -> Answer {
        if self.regions[asked.region].vpcs.values().any(|vpc| vpc.is_default) {
            let words = "A Default VPC already exists for this account in this region.";
            return Err(Refusal::new(400, "DefaultVpcAlreadyExists", words));
        }
        let vpc = self.add_default_vpc(asked.region);
        let inside = xml::leaf("vpcId", vpc) + &xml::leaf("state", "pending") + &xml::leaf("isDefault", true);
        Ok(xml::node("vpc", inside))
    }

    pub(super) fn delete_vpc(&mut self, asked: &Asked<'_>) -> Answer {
        let id = asked.form.get("VpcId").unwrap_or_default();
        let region = self.regions.get_mut(asked.region).unwrap();
        if !region.vpcs.contains_key(id) {
            let words = format!("The vpc ID '{id}' does not exist");
            return Err(Refusal::new(400, "InvalidVpcID.NotFound", words));
        }
        let is_used = region.subnets.values().any(|subnet| subnet.vpc == id)
            || region.groups.values().any(|group| group.vpc == id && group.name != "default")
            || region.gateways.values().any(|vpc| vpc.as_deref() == Some(id));
        if is_used {
            let words = format!("The vpc '{id}' has dependencies and cannot be deleted.");
            return Err(Refusal::new(400, "DependencyViolation", words));
        }
        region.vpcs.remove(id);
        region.groups.retain(|_, group| group.vpc != id);
        Ok(xml::done())
    }

    pub(super) fn describe_gateways(&self, asked: &Asked<'_>) -> Answer {
        let mut found = Vec::new();
        for (id, vpc) in &self.regions[asked.region].gateways {
            let attribute = |name: &str| match name {
                "internet-gateway-id" => Some(vec![id.clone()]),
                "attachment.vpc-id" => Some(vpc.clone().into_iter().collect()),
                _ => None,
            };
            if asked.form.passes(attribute)? {
                let attached =
                    vpc.iter().map(|vpc| xml::leaf("vpcId", vpc) + &xml::leaf("state", "available"));
                found.push(xml::leaf("internetGatewayId", id) + &xml::list("attachmentSet", attached));
            }
        }
        let (page, next) = asked.form.page(&found, self.settings.page);
        Ok(xml::list("internetGatewaySet", page) + &xml::optional("nextToken", next))
    }

    fn gateway<'a>(&'a mut self, asked: &Asked<'_>) -> Result<(&'a str, &'a mut Option<String>), Refusal> {
        let id = asked.form.get("InternetGatewayId").unwrap_or_default();
        let gateways = &mut self.regions.get_mut(asked.region).unwrap().gateways;
        let found = gateways.iter_mut().find(|(known, _)| *known == id);
        found.map(|(id, vpc)| (id.as_str(), vpc)).ok_or_else(|| {
            let words = format!("The internetGateway ID '{id}' does not exist");
            Refusal::new(400, "InvalidInternetGatewayID.NotFound", words)
        })
    }

    pub(super) fn detach_gateway(&mut self, asked: &Asked<'_>) -> Answer {
        let wanted = asked.form.get("VpcId").ok_or_else(|| invalid("VpcId"))?;
        let (id, vpc) = self.gateway(asked)?;
        if vpc.as_deref() != Some(wanted) {
            let words = format!("resource {id} is not attached to network {wanted}");
            return Err(Refusal::new(400, "Gateway.NotAttached", words));
        }
        *vpc = None;
        Ok(xml::done())
    }

    pub(super) fn delete_gateway(&mut self, asked: &Asked<'_>) -> Answer {
        let (id, vpc) = self.gateway(asked)?;
        if vpc.is_some() {
            let words = format!("The internetGateway '{id}' has dependencies and cannot be deleted.");
            return Err(Refusal::new(400, "DependencyViolation", words));
        }
        let id = id.to_owned();
        self.regions.get_mut(asked.region).unwrap().gateways.remove(&id);
        Ok(xml::done())
    }
}
