//! Every action of EC2, of EBS and of EventBridge Scheduler that this program ever asks for.
//!
//! Owns the list: a request cannot be made without an entry here, so policies that allow these allow the broker, and
//! `broker doctor --aws` asks about each that the broker needs.

use std::fmt;

macro_rules! actions {
    ($($name:ident),+ $(,)?) => {
        /// An action, by its own name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Action {
            $(#[doc = concat!("`", stringify!($name), "`")] $name),+
        }

        impl Action {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Its name, as a policy has it after the service's.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name)),+
                }
            }
        }
    };
}

actions!(
    AuthorizeSecurityGroupIngress,
    CompleteSnapshot,
    CopyImage,
    CreateDefaultVpc,
    CreateSchedule,
    CreateSecurityGroup,
    CreateSubnet,
    CreateTags,
    DeleteInternetGateway,
    DeleteSchedule,
    DeleteSecurityGroup,
    DeleteSnapshot,
    DeleteSubnet,
    DeleteVolume,
    DeleteVpc,
    DeregisterImage,
    DescribeAvailabilityZones,
    DescribeImageAttribute,
    DescribeImages,
    DescribeInstanceTypeOfferings,
    DescribeInstanceTypes,
    DescribeInstances,
    DescribeInternetGateways,
    DescribeRegions,
    DescribeSecurityGroups,
    DescribeSnapshots,
    DescribeSpotPriceHistory,
    DescribeSubnets,
    DescribeVolumes,
    DescribeVpcs,
    DetachInternetGateway,
    GetConsoleOutput,
    ModifyImageAttribute,
    ModifyInstanceMetadataOptions,
    ModifySnapshotAttribute,
    PutSnapshotBlock,
    RegisterImage,
    RevokeSecurityGroupIngress,
    RunInstances,
    StartInstances,
    StartSnapshot,
    StopInstances,
    TerminateInstances,
    UpdateSchedule,
);

impl Action {
    /// The service it belongs to, as a policy has it before the name.
    pub const fn service(self) -> &'static str {
        match self {
            Self::StartSnapshot | Self::PutSnapshotBlock | Self::CompleteSnapshot => "ebs",
            Self::CreateSchedule | Self::DeleteSchedule | Self::UpdateSchedule => "scheduler",
            Self::AuthorizeSecurityGroupIngress
            | Self::CopyImage
            | Self::CreateDefaultVpc
            | Self::CreateSecurityGroup
            | Self::CreateSubnet
            | Self::CreateTags
            | Self::DeleteInternetGateway
            | Self::DeleteSecurityGroup
            | Self::DeleteSnapshot
            | Self::DeleteSubnet
            | Self::DeleteVolume
            | Self::DeleteVpc
            | Self::DeregisterImage
            | Self::DescribeAvailabilityZones
            | Self::DescribeImageAttribute
            | Self::DescribeImages
            | Self::DescribeInstanceTypeOfferings
            | Self::DescribeInstanceTypes
            | Self::DescribeInstances
            | Self::DescribeInternetGateways
            | Self::DescribeRegions
            | Self::DescribeSecurityGroups
            | Self::DescribeSnapshots
            | Self::DescribeSpotPriceHistory
            | Self::DescribeSubnets
            | Self::DescribeVolumes
            | Self::DescribeVpcs
            | Self::DetachInternetGateway
            | Self::GetConsoleOutput
            | Self::ModifyImageAttribute
            | Self::ModifyInstanceMetadataOptions
            | Self::ModifySnapshotAttribute
            | Self::RegisterImage
            | Self::RevokeSecurityGroupIngress
            | Self::RunInstances
            | Self::StartInstances
            | Self::StopInstances
            | Self::TerminateInstances => "ec2",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
