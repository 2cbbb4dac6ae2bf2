//! Every action of EC2 that this broker ever asks for.
//!
//! Owns the list: a request cannot be made without an entry here, so a policy that allows these allows the broker, and
//! `broker doctor --aws` asks about each.

use std::fmt;

macro_rules! actions {
    ($($name:ident),+ $(,)?) => {
        /// An action of EC2, by its own name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Action {
            $(#[doc = concat!("`ec2:", stringify!($name), "`")] $name),+
        }

        impl Action {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Its name, as a policy has it after `ec2:`.
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
    CreateDefaultVpc,
    CreateSecurityGroup,
    CreateSubnet,
    CreateTags,
    DeleteInternetGateway,
    DeleteSecurityGroup,
    DeleteSubnet,
    DeleteVolume,
    DeleteVpc,
    DescribeAvailabilityZones,
    DescribeImages,
    DescribeInstanceTypeOfferings,
    DescribeInstanceTypes,
    DescribeInstances,
    DescribeInternetGateways,
    DescribeRegions,
    DescribeSecurityGroups,
    DescribeSpotPriceHistory,
    DescribeSubnets,
    DescribeVolumes,
    DescribeVpcs,
    DetachInternetGateway,
    GetConsoleOutput,
    ModifyInstanceMetadataOptions,
    RevokeSecurityGroupIngress,
    RunInstances,
    StartInstances,
    StopInstances,
    TerminateInstances,
);

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
