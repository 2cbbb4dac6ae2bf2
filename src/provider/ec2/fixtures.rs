//! What the tests of the choice and of what is shown start from.

use std::time::Duration;

#[cfg(feature = "ec2")]
use super::api::{InstanceState, Observed};
use crate::model::ec2::{DiskSpec, IdleAction, ImageSpec, Market, Reach};
use crate::model::{Demand, Ec2Spec, Feature, Offer, System};

/// A pool as it is when nothing is configured.
pub(super) fn spec() -> Ec2Spec {
    Ec2Spec {
        profile: None,
        regions: Vec::new(),
        market: Market::OnDemand,
        types: Vec::new(),
        exact: false,
        max_price: None,
        image: ImageSpec::Id("ami-0123456789abcdef0".to_owned()),
        subnets: Vec::new(),
        security_groups: Vec::new(),
        reach: Reach::Public,
        disk: DiskSpec { size: 100, throughput: 500, iops: 3_000 },
        idle_action: IdleAction::Terminate,
        lease: Duration::from_secs(900),
        cache: None,
        expiry_role: None,
    }
}

pub(super) fn offer(system: &str, features: &[&str]) -> Offer {
    Offer {
        systems: [System::new(system)].into(),
        features: features.iter().map(|&name| Feature::new(name)).collect(),
        mandatory: [].into(),
    }
}

pub(super) fn demand(builds: u32) -> Demand {
    Demand { builds, on_demand_only: false }
}

/// A running instance, as EC2 shows it, without an address.
#[cfg(feature = "ec2")]
pub(super) fn observed(id: &str) -> Observed {
    Observed {
        id: id.to_owned(),
        state: InstanceState::Running,
        tags: [].into(),
        instance_type: "c6a.large".to_owned(),
        zone: "eu-central-1a".to_owned(),
        market: Market::OnDemand,
        private_ip: None,
        public_ip: None,
        launch_time: 0,
        state_reason: None,
        vpc: None,
        subnet: "subnet-1".to_owned(),
        image: "ami-1".to_owned(),
        client_token: None,
    }
}
