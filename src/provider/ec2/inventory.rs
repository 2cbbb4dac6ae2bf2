//! What a pool has on EC2: which instances, since when, at what cost, and how each ends.
//!
//! The records behind it are the estate's; how an instance comes to be is in [`super::pool`].

use std::time::Duration;

use super::launch;
use super::pool::Ec2;
use super::records::Stage;
use crate::model::{HourlyRate, Instance, InstanceClass, InstanceId};
use crate::provider::{Ending, ProviderError, ProviderErrorKind, Survivor};

/// How long a start waits for EC2.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);

impl Ec2 {
    /// What an instance that is in use was bought as.
    pub(super) fn class_of(&self, instance: &InstanceId) -> Option<InstanceClass> {
        let record = self.estate.with_records(|records| records.of_instance(instance.as_str()).cloned())?;
        match &record.stage {
            Stage::Live { class, .. } | Stage::Shelved { class, .. } => Some(class.into()),
            Stage::Asked { .. } | Stage::Abandoned | Stage::Ending { .. } => None,
        }
    }

    /// Ends an instance, or puts it aside.
    pub(in crate::provider) async fn terminate(
        &self,
        instance: &InstanceId,
        ending: Ending,
    ) -> Result<(), ProviderError> {
        let result = match ending {
            Ending::Idle => self.estate.put_aside(instance.as_str(), self.spec.idle_action).await,
            Ending::Final => self.estate.terminate(instance.as_str()).await,
        };
        result.map_err(|error| {
            let kind = ProviderErrorKind::Unknown;
            let reason = crate::provider::chain(&error);
            ProviderError::new(kind, reason)
        })
    }

    /// The instances of this pool, as observed; those that are put aside too.
    pub(in crate::provider) fn list(&self) -> Vec<Instance> {
        self.estate.with_records(|records| {
            let of_pool = records.iter().filter(|record| record.pool == self.name.as_str());
            of_pool
                .filter_map(|record| {
                    let class = match &record.stage {
                        Stage::Live { class, .. } | Stage::Shelved { class, .. } => Some(class.into()),
                        Stage::Asked { .. } | Stage::Abandoned | Stage::Ending { .. } => None,
                    };
                    let id = InstanceId::new(record.instance()?);
                    Some(Instance { id, pool: self.name.clone(), class })
                })
                .collect()
        })
    }

    /// What the instances cost that are put aside.
    pub(in crate::provider) fn put_aside(&self) -> HourlyRate {
        self.estate.with_records(|records| {
            let of_pool = records.iter().filter(|record| record.pool == self.name.as_str());
            of_pool
                .map(|record| match &record.stage {
                    Stage::Shelved { class, .. } => InstanceClass::from(class).stopped_rate,
                    Stage::Asked { .. } | Stage::Abandoned | Stage::Live { .. } | Stage::Ending { .. } => {
                        HourlyRate::default()
                    }
                })
                .sum()
        })
    }

    /// Waits until EC2 shows that an instance ended without being asked to.
    pub(in crate::provider) async fn gone(&self, instance: &InstanceId) -> String {
        self.estate.patiently(|estate| estate.end_of(instance.as_str())).await
    }

    /// Takes over or ends what an earlier broker left, over all pools. A start does not wait long for that: what EC2
    /// cannot be asked now is done in [`Ec2::tend`].
    pub(in crate::provider) async fn reap_strays(&self) {
        let settled = tokio::time::timeout(SETTLED_WITHIN, self.estate.settle()).await;
        if settled.is_err() {
            tracing::warn!(pool = %self.name, "EC2 has not said what an earlier broker left there; asking on");
        }
    }

    /// The running instances of this pool that an earlier broker launched. Fails as long as EC2 has not shown each.
    pub(in crate::provider) fn survivors(&self) -> Result<Vec<Survivor>, ProviderError> {
        let unknown = |reason: String| ProviderError::new(ProviderErrorKind::Unknown, reason);
        let now = self.estate.now();
        let inherited = self.estate.inherited(self.name.as_str()).map_err(unknown)?;
        let mut survivors = Vec::new();
        for record in &inherited {
            let Some(instance) = record.instance() else { continue };
            if self.estate.end_of(instance).is_some() {
                // Nobody looks after it, so the next look ends what is left of it.
                self.estate.disclaim(&record.intent);
                continue;
            }
            let shown = self.estate.shown(instance);
            let whereabouts = shown.and_then(|shown| launch::whereabouts(&shown, &self.spec.reach));
            let whereabouts = whereabouts
                .ok_or_else(|| unknown(format!("EC2 does not show an address of `{instance}` yet")))?;
            if let Some(launched) = self.launched(record, whereabouts) {
                let age = Duration::from_secs(now.saturating_sub(record.asked_at));
                survivors.push(Survivor { launched, age });
            }
        }
        self.estate.take_over(&inherited);
        Ok(survivors)
    }

    /// Watches over everything this broker has on EC2; returns never.
    pub(in crate::provider) async fn tend(&self) {
        self.estate.tend().await;
    }

    /// What the console of an instance says last: for one that did not become ready.
    pub(in crate::provider) async fn console(&self, instance: &InstanceId) -> Option<String> {
        let record = self.estate.with_records(|records| records.of_instance(instance.as_str()).cloned())?;
        let api = self.estate.client_of(&record.site).await.ok()?;
        api.console_output(instance.as_str()).await.ok().flatten()
    }
}
