//! The `ec2` provider: instances of a CPU that fits, launched when they are needed, and never one left behind.
//!
//! Owns the order of things between us and EC2: what is written down before which call, who looks after which instance,
//! and what is ended when. Which type and where is decided in the pure modules beside this one; what the calls look like
//! is known to `api` alone.

pub mod candidates;
pub mod cooling;
#[cfg(test)]
mod fixtures;
pub mod ladder;
pub mod price;

use super::{
    Beat, BuilderNotice, Ending, LaunchOrder, Launched, ProviderContext, ProviderError, ProviderErrorKind,
    Readiness, Survivor,
};
use crate::model::{BuilderFacts, Ec2Spec, HourlyRate, Instance, InstanceId, PoolSpec};

/// The instances of one pool.
#[derive(Debug)]
pub struct Ec2 {
    _spec: Ec2Spec,
}

impl Ec2 {
    /// A provider for this pool; asks EC2 nothing yet.
    pub fn new(_pool: &PoolSpec, spec: &Ec2Spec, _context: &ProviderContext) -> Result<Self, ProviderError> {
        Ok(Self { _spec: spec.clone() })
    }

    pub(super) async fn launch(&self, _order: LaunchOrder<'_>) -> Result<Launched, ProviderError> {
        std::future::ready(()).await;
        Err(ProviderError::new(ProviderErrorKind::Config, "EC2 pools cannot launch yet"))
    }

    pub(super) async fn terminate(
        &self,
        _instance: &InstanceId,
        _ending: Ending,
    ) -> Result<(), ProviderError> {
        std::future::ready(()).await;
        Ok(())
    }

    pub(super) fn distrust(&self, _instance: &InstanceId) {}

    pub(super) fn list(&self) -> Vec<Instance> {
        Vec::new()
    }

    pub(super) async fn gone(&self, _instance: &InstanceId) -> String {
        std::future::pending().await
    }

    pub(super) async fn reap_strays(&self) -> Result<usize, ProviderError> {
        std::future::ready(()).await;
        Ok(0)
    }

    pub(super) async fn survivors(&self) -> Result<Vec<Survivor>, ProviderError> {
        std::future::ready(()).await;
        Ok(Vec::new())
    }

    pub(super) fn put_aside(&self) -> HourlyRate {
        HourlyRate::default()
    }

    pub(super) async fn tend(&self) {
        std::future::pending::<()>().await;
    }

    pub(super) fn readiness(&self, _instance: &InstanceId) -> Option<String> {
        None
    }

    pub(super) fn read_readiness(&self, _instance: &InstanceId, _stdout: &[u8]) -> Readiness {
        Readiness::Ready
    }

    pub(super) fn objection(&self, _instance: &InstanceId, _facts: &BuilderFacts) -> Option<String> {
        None
    }

    pub(super) fn beat(&self, _instance: &InstanceId, _is_in_use: bool) -> Option<Beat> {
        None
    }

    pub(super) fn read_beat(&self, _instance: &InstanceId, _stdout: &[u8]) -> Vec<BuilderNotice> {
        Vec::new()
    }
}
