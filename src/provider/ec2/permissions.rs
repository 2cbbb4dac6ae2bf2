//! What whoever runs the broker must be allowed to do on EC2, what for, and whether they are.
//!
//! Owns the meaning of each action; that there is no other is seen to by [`Action`], through which every request goes. The
//! policies in `nix/` are held against this table by `tests/iam_policy.rs`.

use std::collections::BTreeMap;

use super::api::{
    Action, Api, ApiError, DryRunAbout, InstanceState, Permission, RunDisk, RunOrder, named_permission,
};
use super::network::{NETWORK_TAG, Network};
use crate::model::Ec2Spec;
use crate::model::ec2::{Market, Reach};

/// Why an action is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// By the running broker, and by `broker sweep`.
    pub by_broker: bool,
    /// By `broker init`.
    pub by_init: bool,
    /// By `broker image`.
    pub by_image: bool,
    /// By the running broker, for pools with `expiry-role`.
    pub by_expiry: bool,
    /// What it is done to, on which the permission may depend.
    pub subject: Subject,
    /// What is missing without it.
    pub purpose: &'static str,
}

/// What a permission may depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// Nothing that has tags.
    Nothing,
    /// Everything that a launch names.
    Launch,
    /// An instance of ours.
    Instance,
    /// A volume of ours.
    Volume,
    /// A security group of ours.
    Group,
    /// A subnet of ours.
    Subnet,
    /// Any VPC.
    AnyVpc,
    /// A VPC of ours.
    Vpc,
}

impl Subject {
    /// For the person who reads that there is none.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Launch => "network with an image to launch in it",
            Self::Instance => "instance of a broker",
            Self::Volume => "unattached volume of a broker",
            Self::Group => "security group of `broker init`",
            Self::Subnet => "subnet of `broker init`",
            Self::AnyVpc => "VPC",
            Self::Vpc => "VPC of `broker init`",
        }
    }
}

/// Why this action is needed.
pub fn need(action: Action) -> Need {
    use Subject as On;
    let nobody = |subject, purpose| Need {
        by_broker: false,
        by_init: false,
        by_image: false,
        by_expiry: false,
        subject,
        purpose,
    };
    let broker = |subject, purpose| Need { by_broker: true, ..nobody(subject, purpose) };
    let init = |subject, purpose| Need { by_init: true, ..nobody(subject, purpose) };
    let both = |subject, purpose| Need { by_broker: true, ..init(subject, purpose) };
    let image = |purpose| Need { by_image: true, ..nobody(On::Nothing, purpose) };
    let expiry = |purpose| Need { by_expiry: true, ..nobody(On::Nothing, purpose) };
    match action {
        Action::CreateSchedule => expiry("`expiry-role`: AWS ends nothing by itself"),
        Action::UpdateSchedule => expiry("`expiry-role`: AWS ends what was stopped as if it had never been"),
        Action::DeleteSchedule => expiry("`expiry-role`: schedules stay until their time has come"),
        Action::AuthorizeSecurityGroupIngress => both(
            On::Group,
            "builders with a public address let in nobody, or stay open to an earlier address",
        ),
        Action::RevokeSecurityGroupIngress => {
            both(On::Group, "an earlier address of this machine stays let in")
        }
        Action::StartSnapshot | Action::PutSnapshotBlock | Action::CompleteSnapshot => {
            image("`broker image upload` cannot write the snapshot that an image is made of")
        }
        Action::RegisterImage => image("`broker image upload` cannot make an image of its snapshot"),
        Action::CopyImage => image("`broker image copy` cannot copy an image to another region"),
        Action::DescribeSnapshots => image("what images cost, and snapshots without an image, are not found"),
        Action::DeregisterImage | Action::DeleteSnapshot => {
            image("images that are not used any more stay, and cost")
        }
        Action::DescribeImageAttribute | Action::ModifyImageAttribute | Action::ModifySnapshotAttribute => {
            image("`broker image share` cannot share an image with other accounts")
        }
        Action::CreateDefaultVpc => init(On::Nothing, "a region without a default VPC stays without one"),
        Action::CreateSecurityGroup => init(On::AnyVpc, "there is no security group to launch with"),
        Action::CreateSubnet => init(On::AnyVpc, "zones without a subnet are not used"),
        Action::CreateTags => Need {
            by_image: true,
            ..both(On::Instance, "nothing can be launched, as everything launched is tagged")
        },
        Action::DeleteInternetGateway | Action::DetachInternetGateway | Action::DeleteVpc => {
            init(On::Vpc, "`broker init --remove` leaves the default VPC it made")
        }
        Action::DeleteSecurityGroup => {
            both(On::Group, "`broker init --remove` and `broker sweep --everything` leave the security group")
        }
        Action::DeleteSubnet => init(On::Subnet, "`broker init --remove` leaves the subnets it made"),
        Action::DeleteVolume => broker(On::Volume, "a volume that outlived its instance stays, and costs"),
        Action::DescribeAvailabilityZones => broker(On::Nothing, "zones are not known"),
        Action::DescribeImages => {
            Need { by_image: true, ..broker(On::Nothing, "there is no image to launch") }
        }
        Action::DescribeInstanceTypeOfferings => {
            both(On::Nothing, "types are asked for where they are not offered")
        }
        Action::DescribeInstanceTypes => broker(On::Nothing, "what types can do is taken from a table"),
        Action::DescribeInstances => Need {
            by_image: true,
            ..both(On::Nothing, "nothing can be found again, hence nothing is launched")
        },
        Action::DescribeInternetGateways => {
            init(On::Nothing, "`broker init --remove` leaves the default VPC")
        }
        Action::DescribeRegions => {
            broker(On::Nothing, "`broker sweep --all-regions` cannot tell the regions")
        }
        Action::DescribeSecurityGroups => both(On::Nothing, "there is no security group to launch with"),
        Action::DescribeSpotPriceHistory => broker(On::Nothing, "spot prices are not known"),
        Action::DescribeSubnets => both(On::Nothing, "there is no subnet to launch in"),
        Action::DescribeVolumes => broker(On::Nothing, "a volume that outlived its instance is not found"),
        Action::DescribeVpcs => both(On::Nothing, "the network of `broker init` is not found"),
        Action::GetConsoleOutput => broker(On::Instance, "why a builder did not come up is not shown"),
        Action::ModifyInstanceMetadataOptions => {
            broker(On::Instance, "builds may reach the instance's metadata service")
        }
        Action::RunInstances => broker(On::Launch, "nothing can be launched"),
        Action::StartInstances => {
            broker(On::Instance, "`idle-action = \"stop\"`: stopped builders stay stopped")
        }
        Action::StopInstances => {
            broker(On::Instance, "`idle-action = \"stop\"`: idle builders are terminated")
        }
        Action::TerminateInstances => broker(On::Instance, "nothing that was launched can be ended"),
    }
}

/// What there is to ask about.
#[derive(Clone, Debug)]
pub struct Subjects {
    about: DryRunAbout,
    has_launch: bool,
    group: Option<String>,
    subnet: Option<String>,
    our_vpc: Option<String>,
}

/// What a launch would take, as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    /// The image, with its root device.
    pub image: Option<(String, String)>,
    /// The type.
    pub instance_type: Option<String>,
    /// Where.
    pub network: Option<Network>,
}

impl Launch {
    /// How much of it is known.
    pub fn known(&self) -> usize {
        [self.image.is_some(), self.instance_type.is_some(), self.network.is_some()]
            .into_iter()
            .filter(|is_known| *is_known)
            .count()
    }
}

/// Finds what permissions may depend on. What cannot be looked at is taken for absent: that is another finding.
pub async fn subjects(api: &Api, spec: &Ec2Spec, launch: Launch) -> Subjects {
    let managed = ["nix-broker".to_owned()];
    let one = ["1".to_owned()];
    let network_tag = format!("tag:{NETWORK_TAG}");
    let ours = [("tag:ManagedBy", managed.as_slice())];
    let of_init = [("tag:ManagedBy", managed.as_slice()), (network_tag.as_str(), one.as_slice())];
    let (instances, volumes, groups, subnets, vpcs, our_vpcs) = tokio::join!(
        api.instances(&ours),
        api.volumes(&ours),
        api.security_groups(&of_init),
        api.subnets(&of_init),
        api.vpcs(&[]),
        api.vpcs(&of_init),
    );
    let alive = instances.unwrap_or_default().into_iter().find(|instance| match instance.state {
        InstanceState::ShuttingDown | InstanceState::Terminated => false,
        InstanceState::Pending
        | InstanceState::Running
        | InstanceState::Stopping
        | InstanceState::Stopped => true,
    });
    let volume = volumes.unwrap_or_default().into_iter().next().map(|volume| volume.id);
    let network = launch.network.as_ref();
    let subnet = network.and_then(|network| network.subnets.first());
    let has_launch = launch.image.is_some() && launch.instance_type.is_some() && subnet.is_some();
    let (image, root_device) = launch.image.unwrap_or_else(|| (String::new(), "/dev/xvda".to_owned()));
    let order = RunOrder {
        region: api.region().to_owned(),
        client_token: "nix-broker-doctor".to_owned(),
        image,
        root_device,
        instance_type: launch.instance_type.unwrap_or_else(|| "c6a.2xlarge".to_owned()),
        subnet: subnet.map(|subnet| subnet.id.clone()).unwrap_or_default(),
        zone: subnet.map(|subnet| subnet.zone.clone()).unwrap_or_default(),
        security_groups: network.map(|network| network.groups.clone()).unwrap_or_default(),
        user_data: "#!/bin/sh\npoweroff\n".to_owned(),
        market: match spec.market {
            Market::OnDemand => Market::OnDemand,
            Market::Spot => Market::Spot,
        },
        max_price: None,
        public_ip: spec.reach == Reach::Public,
        private_ip: None,
        disk: RunDisk { size: spec.disk.size, throughput: spec.disk.throughput, iops: spec.disk.iops },
        instance_store: 0,
        nested_virt: false,
        hibernation: false,
        tags: BTreeMap::from([("ManagedBy".to_owned(), "nix-broker".to_owned())]),
    };
    let vpc = network.map(|network| network.vpc.clone());
    let any_vpc = vpcs.unwrap_or_default().into_iter().next().map(|vpc| vpc.id);
    Subjects {
        about: DryRunAbout {
            order,
            instance: alive.map(|instance| instance.id),
            vpc: vpc.or(any_vpc),
            volume,
        },
        has_launch,
        group: groups.unwrap_or_default().into_iter().next().map(|group| group.id),
        subnet: subnets.unwrap_or_default().into_iter().next().map(|subnet| subnet.id),
        our_vpc: our_vpcs.unwrap_or_default().into_iter().next().map(|vpc| vpc.id),
    }
}

impl Subjects {
    fn has(&self, subject: Subject) -> bool {
        match subject {
            Subject::Nothing => true,
            Subject::Launch => self.has_launch,
            Subject::Instance => self.about.instance.is_some(),
            Subject::Volume => self.about.volume.is_some(),
            Subject::Group => self.group.is_some(),
            Subject::Subnet => self.subnet.is_some(),
            Subject::AnyVpc => self.about.vpc.is_some(),
            Subject::Vpc => self.our_vpc.is_some(),
        }
    }

    /// The same questions, about things of ours where they are about those.
    fn about(&self, subject: Subject) -> DryRunAbout {
        let mut about = self.about.clone();
        match subject {
            Subject::Nothing | Subject::Launch | Subject::Instance | Subject::Volume | Subject::AnyVpc => {}
            Subject::Group => about.order.security_groups = self.group.clone().into_iter().collect(),
            Subject::Subnet => about.order.subnet = self.subnet.clone().unwrap_or_default(),
            Subject::Vpc => about.vpc.clone_from(&self.our_vpc),
        }
        about
    }
}

/// Whether an action is allowed, as far as can be told without doing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Allowed,
    /// No.
    Denied {
        /// The permission that is missing (`ec2:CreateTags`), which may be another one than was asked for.
        missing: String,
        /// EC2's words.
        reason: String,
    },
    /// There is nothing to ask about, and the permission may depend on that.
    Untried(Subject),
    /// EC2 said something else.
    Unclear(String),
}

/// Whether the other end knows what a dry run is. One that does not would do what it is asked about.
pub async fn can_be_asked(api: &Api, subjects: &Subjects) -> Result<bool, ApiError> {
    Ok(api.dry_run(Action::DescribeInstances, &subjects.about).await? != Permission::Done)
}

/// Asks about one action, of somebody who [can be asked](can_be_asked).
pub async fn ask(api: &Api, action: Action, subjects: &Subjects) -> Result<Verdict, ApiError> {
    let subject = need(action).subject;
    let answer = api.dry_run(action, &subjects.about(subject)).await?;
    Ok(verdict(action, answer, subjects.has(subject)))
}

fn verdict(action: Action, answer: Permission, has_subject: bool) -> Verdict {
    match answer {
        Permission::Allowed => Verdict::Allowed,
        // A policy that allows it for what carries our tag denies it for what does not exist.
        Permission::Denied { .. } if !has_subject => Verdict::Untried(need(action).subject),
        Permission::Denied { reason } => {
            let missing = named_permission(&reason).map_or_else(|| format!("ec2:{action}"), str::to_owned);
            Verdict::Denied { missing, reason }
        }
        Permission::Done if action.name().starts_with("Describe") => Verdict::Allowed,
        Permission::Done => Verdict::Unclear("the endpoint has done it instead of trying it".to_owned()),
        Permission::Unclear { .. } if !has_subject => Verdict::Untried(need(action).subject),
        Permission::Unclear { reason, code } => match code.as_deref() {
            // Who may not is told that first, so whoever hears of a mistake in the question may.
            Some(code) if is_about_the_question(code) => Verdict::Allowed,
            Some(_) | None => Verdict::Unclear(reason),
        },
    }
}

/// EC2 looked at what the request names, or at what is there already.
fn is_about_the_question(code: &str) -> bool {
    code.ends_with(".NotFound")
        || ["DefaultVpcAlreadyExists", "InvalidSubnet.Range", "IncorrectInstanceState", "DependencyViolation"]
            .contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_permission_is_the_one_that_ec2_names() {
        let reason = "You are not authorized to perform this operation. User: arn:aws:iam::123456789012:user/x is not \
                      authorized to perform: ec2:CreateTags on resource: arn:aws:ec2:eu-west-1:123456789012:instance/* \
                      because no identity-based policy allows the ec2:CreateTags action.";
        let denied = |reason: &str| Permission::Denied { reason: reason.to_owned() };
        let missing = |answer| match verdict(Action::RunInstances, answer, true) {
            Verdict::Denied { missing, .. } => missing,
            Verdict::Allowed | Verdict::Untried(_) | Verdict::Unclear(_) => String::new(),
        };
        assert_eq!(missing(denied(reason)), "ec2:CreateTags");
        assert_eq!(missing(denied("You are not authorized to perform this operation.")), "ec2:RunInstances");
        assert_eq!(missing(denied("not authorized to perform: \u{1b}[2J")), "ec2:RunInstances");
    }

    #[test]
    fn a_denial_about_something_that_does_not_exist_says_nothing() {
        let denied = Permission::Denied { reason: String::new() };
        assert_eq!(verdict(Action::TerminateInstances, denied, false), Verdict::Untried(Subject::Instance));
        assert_eq!(verdict(Action::TerminateInstances, Permission::Allowed, false), Verdict::Allowed);
    }

    #[test]
    fn a_mistake_in_the_question_means_that_it_was_heard() {
        let unclear = |code: &str| Permission::Unclear { reason: "r".into(), code: Some(code.to_owned()) };
        assert_eq!(
            verdict(Action::CreateDefaultVpc, unclear("DefaultVpcAlreadyExists"), true),
            Verdict::Allowed
        );
        assert_eq!(
            verdict(Action::RunInstances, unclear("VcpuLimitExceeded"), true),
            Verdict::Unclear("r".to_owned())
        );
    }

    #[test]
    fn every_action_is_needed_by_somebody() {
        for action in Action::ALL {
            let need = need(*action);
            assert!(need.by_broker || need.by_init || need.by_image || need.by_expiry, "{action}");
        }
    }
}
