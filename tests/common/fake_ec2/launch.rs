//! RunInstances: what it checks, in which order, and what it makes.
//!
//! Owns the semantics of the client token, and every reason not to launch.

use std::net::Ipv4Addr;

use nix_broker::model::ec2::Market;

use super::account::{Account, Type, Volume};
use super::faults::Faults;
use super::form::Form;
use super::instance::{FakeInstance, State};
use super::{Answer, Asked, Notice, Refusal, dry_run, xml};

/// What user data may have, before it is coded.
const MAX_USER_DATA: usize = 16 * 1024;

/// Where an instance is to be.
struct Place {
    vpc: String,
    subnet: String,
    zone: String,
    address: Ipv4Addr,
}

impl Account {
    pub(super) fn run_instances(&mut self, asked: &Asked<'_>, faults: &Faults) -> Answer {
        let form = asked.form;
        let token = form.get("ClientToken").unwrap_or_default().to_owned();
        if let Some(known) = self.by_token(asked, &token)? {
            return Ok(launched(&known));
        }
        if form.get("MinCount") != Some("1") || form.get("MaxCount") != Some("1") {
            return Err(invalid("this fake launches one instance at a time"));
        }
        let kind = self.checked_kind(form)?;
        let user_data = checked_user_data(form)?;
        let market = market(form);
        let interface = form.below("NetworkInterface.1");
        let groups = self.checked_groups(asked.region, &interface)?;
        let place = self.checked_place(asked.region, &interface)?;
        if !Self::is_offered(&kind.name, &place.zone) {
            let words = format!(
                "Your requested instance type ({}) is not supported in your requested Availability Zone ({}).",
                kind.name, place.zone
            );
            return Err(Refusal::new(400, "Unsupported", words));
        }
        let nested = form.get("CpuOptions.NestedVirtualization") == Some("enabled");
        if nested && (!kind.nested_virt || market == Market::Spot) {
            return Err(Refusal::new(400, "Unsupported", "Nested virtualization is not supported here"));
        }
        if market == Market::Spot {
            self.checked_bid(form, &kind, &place.zone, faults)?;
        }
        if form.get("DryRun") == Some("true") {
            return Err(dry_run());
        }
        faults.within_quota(market, self.vcpus_in_use(asked.region, market), kind.vcpus)?;
        faults.capacity(&kind.name, &place.zone, market, asked.now)?;
        Ok(launched(&self.make(asked, &token, &kind, place, groups, user_data)))
    }

    /// What an earlier request with this token has launched.
    fn by_token(&self, asked: &Asked<'_>, token: &str) -> Result<Option<FakeInstance>, Refusal> {
        if token.len() > 64 || !token.is_ascii() {
            return Err(invalid("Invalid client token"));
        }
        if token.is_empty() {
            return Ok(None);
        }
        let Some((form, id)) = self.regions[asked.region].tokens.get(token) else { return Ok(None) };
        if *form != asked.form.fingerprint() {
            let words = "The parameters of the request are not those of the one that the token was used with";
            return Err(Refusal::new(400, "IdempotentParameterMismatch", words));
        }
        let instance = &self.instances[id];
        if instance.state == State::Terminated {
            let words = "The instance that the token was used for has been terminated";
            return Err(Refusal::new(400, "IdempotentInstanceTerminated", words));
        }
        Ok(Some(instance.clone()))
    }

    fn checked_kind(&self, form: &Form) -> Result<Type, Refusal> {
        let name = form.get("InstanceType").unwrap_or_default();
        let kind = self
            .kind(name)
            .cloned()
            .ok_or_else(|| invalid(&format!("Invalid value '{name}' for InstanceType.")))?;
        let image_id = form.get("ImageId").unwrap_or_default();
        let image = self.images.iter().find(|image| image.id == image_id).ok_or_else(|| {
            let words = format!("The image id '[{image_id}]' does not exist");
            Refusal::new(400, "InvalidAMIID.NotFound", words)
        })?;
        if image.arch != kind.arch {
            return Err(invalid(&format!(
                "The architecture '{}' of the specified instance type does not match the architecture '{}' of the \
                 specified AMI.",
                kind.arch, image.arch
            )));
        }
        Ok(kind)
    }

    fn checked_groups(&self, region: &str, interface: &Form) -> Result<Vec<String>, Refusal> {
        let groups = interface.list("SecurityGroupId");
        match groups.iter().find(|group| !self.regions[region].groups.contains_key(*group)) {
            Some(unknown) => {
                let words = format!("The security group '{unknown}' does not exist");
                Err(Refusal::new(400, "InvalidGroup.NotFound", words))
            }
            None => Ok(groups),
        }
    }

    fn checked_place(&self, region: &str, interface: &Form) -> Result<Place, Refusal> {
        let id = interface.get("SubnetId").unwrap_or_default();
        let subnet = self.regions[region].subnets.get(id).ok_or_else(|| {
            Refusal::new(400, "InvalidSubnetID.NotFound", format!("The subnet ID '{id}' does not exist"))
        })?;
        let taken: Vec<Ipv4Addr> = self
            .instances
            .values()
            .filter(|instance| instance.subnet == subnet.id && instance.state != State::Terminated)
            .map(|instance| instance.private_ip)
            .collect();
        let address = match interface.get("PrivateIpAddress") {
            Some(wanted) => {
                let wanted = wanted.parse().map_err(|_| invalid("invalid address"))?;
                if !subnet.cidr.contains(wanted) {
                    return Err(invalid("Address does not fall within the subnet's address range"));
                }
                if taken.contains(&wanted) {
                    return Err(Refusal::new(400, "InvalidIPAddress.InUse", "Address is in use."));
                }
                wanted
            }
            None => subnet.cidr.usable().find(|address| !taken.contains(address)).ok_or_else(|| {
                let words = "There are not enough free addresses in the subnet";
                Refusal::new(400, "InsufficientFreeAddressesInSubnet", words)
            })?,
        };
        let (vpc, zone) = (subnet.vpc.clone(), subnet.zone.clone());
        Ok(Place { vpc, subnet: subnet.id.clone(), zone, address })
    }

    fn checked_bid(&self, form: &Form, kind: &Type, zone: &str, faults: &Faults) -> Result<(), Refusal> {
        if faults.no_spot_role {
            let code = "AuthFailure.ServiceLinkedRoleCreationNotPermitted";
            let words = "The provided credentials do not have permission to create the service-linked role";
            return Err(Refusal::new(403, code, words));
        }
        let Some(bid) = form.get("InstanceMarketOptions.SpotOptions.MaxPrice") else { return Ok(()) };
        let price = self.spot_price(kind, zone);
        let bid = nix_broker::model::Usd::parse(bid).ok_or_else(|| invalid("invalid price"))?;
        if bid.micros() < price {
            let words =
                "Your Spot request price is lower than the minimum required Spot request fulfillment price";
            return Err(Refusal::new(400, "SpotMaxPriceTooLow", words));
        }
        Ok(())
    }

    fn vcpus_in_use(&self, region: &str, market: Market) -> u32 {
        let counts = |instance: &&FakeInstance| {
            instance.region == region
                && instance.market == market
                && matches!(instance.state, State::Pending | State::Running)
        };
        let used = self.instances.values().filter(counts);
        used.filter_map(|instance| self.kind(&instance.instance_type)).map(|kind| kind.vcpus).sum()
    }

    fn make(
        &mut self,
        asked: &Asked<'_>,
        token: &str,
        kind: &Type,
        place: Place,
        groups: Vec<String>,
        user_data: String,
    ) -> FakeInstance {
        let form = asked.form;
        let id = self.new_id("i");
        let number = u32::try_from(self.instances.len()).unwrap();
        let public_ip =
            (form.get("NetworkInterface.1.AssociatePublicIpAddress") == Some("true")).then(|| {
                if self.settings.public_is_private {
                    place.address
                } else {
                    Ipv4Addr::from(0x3400_0000 + number)
                }
            });
        let volume = Volume {
            id: self.new_id("vol"),
            region: asked.region.to_owned(),
            zone: place.zone.clone(),
            size: form
                .get("BlockDeviceMapping.1.Ebs.VolumeSize")
                .and_then(|size| size.parse().ok())
                .unwrap_or(8),
            tags: form.tags_for("volume"),
            instance: Some(id.clone()),
            with_instance: form.get("BlockDeviceMapping.1.Ebs.DeleteOnTermination") == Some("true"),
            created: asked.now,
            deleted: None,
        };
        self.volumes.insert(volume.id.clone(), volume);
        let instance = FakeInstance {
            id: id.clone(),
            region: asked.region.to_owned(),
            zone: place.zone,
            vpc: place.vpc,
            subnet: place.subnet,
            instance_type: kind.name.clone(),
            arch: kind.arch.clone(),
            image: form.get("ImageId").unwrap_or_default().to_owned(),
            market: market(form),
            state: State::Pending,
            tags: form.tags_for("instance"),
            groups,
            private_ip: place.address,
            public_ip,
            client_token: token.to_owned(),
            user_data,
            request: form.clone(),
            launched_at: asked.now,
            started_at: asked.now,
            terminated_at: None,
            reason: None,
            interrupted_at: None,
            metadata_open: true,
            console: String::new(),
            ran: vec![(asked.now, None)],
            visible_at: asked.now + self.settings.hidden,
            tags_visible_at: asked.now + self.settings.tags_hidden,
            planned: Some((asked.now + self.settings.pending, State::Running)),
        };
        self.instances.insert(id.clone(), instance.clone());
        if !token.is_empty() {
            let known = (form.fingerprint(), id);
            self.regions.get_mut(asked.region).unwrap().tokens.insert(token.to_owned(), known);
        }
        self.notices.push(Notice::Launched(instance.clone()));
        instance
    }
}

fn launched(instance: &FakeInstance) -> String {
    [
        xml::leaf("reservationId", "r-00000000000000001"),
        xml::leaf("ownerId", "111122223333"),
        xml::list("instancesSet", [instance.document()]),
    ]
    .concat()
}

fn market(form: &Form) -> Market {
    match form.get("InstanceMarketOptions.MarketType") {
        Some("spot") => Market::Spot,
        Some(_) | None => Market::OnDemand,
    }
}

fn checked_user_data(form: &Form) -> Result<String, Refusal> {
    let coded = form.get("UserData").unwrap_or_default();
    let bytes = from_base64(coded).ok_or_else(|| {
        Refusal::new(400, "InvalidUserData.Malformed", "Invalid BASE64 encoding of user data.")
    })?;
    if bytes.len() > MAX_USER_DATA {
        return Err(Refusal::new(400, "InvalidUserData.Malformed", "User data is limited to 16384 bytes"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

pub(super) fn invalid(words: &str) -> Refusal {
    Refusal::new(400, "InvalidParameterValue", words)
}

/// Not the product's own decoder: two ends that share a mistake agree.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digit = |letter: u8| match letter {
        b'A'..=b'Z' => Some(u32::from(letter - b'A')),
        b'a'..=b'z' => Some(u32::from(letter - b'a') + 26),
        b'0'..=b'9' => Some(u32::from(letter - b'0') + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let mut bytes = Vec::new();
    for four in text.as_bytes().chunks(4) {
        let padding = four.iter().rev().take_while(|letter| **letter == b'=').count();
        let digits = four[..4 - padding].iter().map(|letter| digit(*letter)).collect::<Option<Vec<_>>>()?;
        let word = (0..4).fold(0_u32, |word, index| word << 6 | digits.get(index).copied().unwrap_or(0));
        bytes.extend(&word.to_be_bytes()[1..4 - padding.min(2)]);
    }
    Some(bytes)
}
