//! What the tests of the choice start from.

use std::time::Duration;

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
