//! What the commands about AWS share: which accounts and regions the configuration is about, and a runtime to ask them.

use std::collections::BTreeSet;
use std::future::Future;

use super::report::Complaint;
use super::text::rate;
use crate::catalog::Catalog;
use crate::config::Config;
use crate::ipc::view::dollars;
use crate::model::{Demand, Ec2Spec, PoolSpec, ProviderSpec};
use crate::provider::ec2::api::{Api, ApiError};
use crate::provider::ec2::candidates::candidates;
use crate::provider::ec2::network::{AddressError, NetworkError};

/// One profile and one region, and the pools that launch there.
#[derive(Clone, Debug)]
pub(super) struct Site<'a> {
    /// `None` is what every AWS tool would use.
    pub(super) profile: Option<String>,
    /// `None` is what every AWS tool would use.
    pub(super) region: Option<String>,
    pub(super) pools: Vec<SitePool<'a>>,
}

/// A pool on EC2.
#[derive(Clone, Copy, Debug)]
pub(super) struct SitePool<'a> {
    pub(super) spec: &'a PoolSpec,
    pub(super) ec2: &'a Ec2Spec,
}

impl Site<'_> {
    /// `pools `a`, `b` in eu-central-1`
    pub(super) fn title(&self, region: &str) -> String {
        let names: Vec<_> = self.pools.iter().map(|pool| format!("`{}`", pool.spec.name)).collect();
        let noun = if names.len() == 1 { "pool" } else { "pools" };
        format!("{noun} {} in {region}", names.join(", "))
    }
}

/// The pools on EC2.
pub(super) fn pools(config: &Config) -> impl Iterator<Item = SitePool<'_>> {
    config.pools.iter().filter_map(|spec| match &spec.provider {
        ProviderSpec::Ec2(ec2) => Some(SitePool { spec, ec2 }),
        ProviderSpec::Local(_) | ProviderSpec::Hosts(_) => None,
    })
}

/// Where the pools of this configuration launch, in its order.
pub(super) fn sites(config: &Config) -> Vec<Site<'_>> {
    let mut sites: Vec<Site<'_>> = Vec::new();
    for SitePool { spec, ec2 } in pools(config) {
        let named = ec2.regions.iter().cloned().map(Some);
        let regions: Vec<_> = if ec2.regions.is_empty() { vec![None] } else { named.collect() };
        for region in regions {
            let pool = SitePool { spec, ec2 };
            match sites.iter_mut().find(|site| site.profile == ec2.profile && site.region == region) {
                Some(site) => site.pools.push(pool),
                None => sites.push(Site { profile: ec2.profile.clone(), region, pools: vec![pool] }),
            }
        }
    }
    sites
}

/// What a pool may launch, best first.
pub(super) fn types(pool: &SitePool<'_>) -> Result<Vec<String>, Complaint> {
    let alone = Demand { builds: 1, on_demand_only: false };
    let candidates = candidates(pool.ec2, &pool.spec.offer, pool.spec.slots, &alone, None);
    let candidates = candidates.map_err(|error| {
        Complaint::new(format!("pool `{}` has nothing to launch: {error}", pool.spec.name), None)
    })?;
    Ok(candidates.into_iter().map(|candidate| candidate.instance_type.name.clone()).collect())
}

/// What a pool launches for a single build if it can be had, and what that costs, in words: `c7a.2xlarge`, `$0.41/h`.
pub(super) fn first_launch(pool: &SitePool<'_>) -> Result<(String, String), Complaint> {
    let first = types(pool)?.into_iter().next();
    let known = first.as_deref().and_then(|name| Catalog::get().find(name));
    let price = rate(known.map(|known| dollars(known.price.0)));
    Ok((first.unwrap_or_default(), price))
}

/// The zones that offer one of these types.
pub(super) async fn zones(api: &Api, types: &[String]) -> Result<BTreeSet<String>, ApiError> {
    Ok(api.offerings(types).await?.into_iter().map(|(zone, _)| zone).collect())
}

/// Runs what waits for AWS.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, Complaint>>) -> Result<T, Complaint> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Complaint::new(format!("cannot start: {error}"), None))?;
    runtime.block_on(work)
}

impl From<ApiError> for Complaint {
    fn from(error: ApiError) -> Self {
        Self::of(&error, None)
    }
}

impl From<NetworkError> for Complaint {
    fn from(error: NetworkError) -> Self {
        Self::of(&error, None)
    }
}

impl From<AddressError> for Complaint {
    fn from(error: AddressError) -> Self {
        Self::of(&error, None)
    }
}
