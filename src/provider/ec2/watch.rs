//! The one poller: looks at every site again and again, and does what follows.
//!
//! What follows is decided in [`super::reconcile`]; what is known is kept in [`super::estate`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::api::{Api, ApiError, Observed};
use super::estate::{Estate, Finds, expires};
use super::reconcile::{INTENT_TAG, Look, Step, reconcile};
use super::records::{IntentId, Record, Site, Stage};
use super::retire::only;
use super::tags::{BROKER_TAG, EXPIRES_TAG};

/// Between two looks while something is on its way up or down.
const BUSY_INTERVAL: Duration = Duration::from_secs(5);
/// Between two looks otherwise.
const QUIET_INTERVAL: Duration = Duration::from_secs(60);
/// Whoever is in a hurry has just made a call that EC2 needs a moment for, and others may follow.
const HURRIED_INTERVAL: Duration = Duration::from_secs(2);
/// How often the tag that says until when an instance is wanted is renewed.
const RENEW_INTERVAL: Duration = Duration::from_secs(15 * 60);

impl Estate {
    /// Looks again and again, for as long as the broker lives. Every pool calls it, one of them does it.
    pub(in crate::provider) async fn tend(&self) {
        let _mine = self.watch.lock().await;
        // Before it is known what is taken over, everything would look as if nobody looked after it.
        self.settle().await;
        tokio::join!(self.look_on(), self.keep_expiries());
    }

    async fn look_on(&self) {
        loop {
            let interval = if self.is_busy() { BUSY_INTERVAL } else { QUIET_INTERVAL };
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = self.hurry.notified() => {
                    tokio::time::sleep(HURRIED_INTERVAL).await;
                }
            }
            self.look_everywhere(Finds::End).await;
            self.renew().await;
        }
    }

    fn is_busy(&self) -> bool {
        let state = self.state();
        !state.in_flight.is_empty()
            || state.records.iter().any(|record| match record.stage {
                Stage::Asked { .. } | Stage::Abandoned | Stage::Ending { .. } => true,
                Stage::Live { .. } | Stage::Shelved { .. } => false,
            })
    }

    pub(super) async fn look_everywhere(&self, finds: Finds) {
        self.resolve_regions().await;
        let sites = self.state().sites.clone();
        for site in sites {
            match self.look(&site, finds).await {
                Ok(()) => drop(self.state().blind.remove(&site)),
                Err(error) => {
                    let reason = error.to_string();
                    let known = self.state().blind.insert(site.clone(), reason.clone());
                    if known.as_ref() != Some(&reason) {
                        tracing::warn!(region = site.region, reason, "cannot see what runs on EC2");
                    }
                }
            }
        }
        self.looks.send_modify(|count| *count += 1);
    }

    /// Finds out which region a pool means that names none.
    async fn resolve_regions(&self) {
        let profiles = self.state().profiles.clone();
        for profile in profiles {
            // Why it cannot be found out is said by the launch that needs it.
            if let Ok(api) = self.client(profile.as_deref(), None).await {
                let mut state = self.state();
                state.profiles.remove(&profile);
                state.sites.insert(Site { profile, region: api.region().to_owned() });
            }
        }
    }

    async fn look(&self, site: &Site, finds: Finds) -> Result<(), ApiError> {
        let api = self.client_of(site).await?;
        // What begins after this moment may be missing from the answer.
        let began: BTreeSet<IntentId> = self.state().in_flight.clone();
        let broker = [self.broker()];
        let instances = api.instances(&[(&format!("tag:{BROKER_TAG}"), &broker)]).await?;
        let steps = self.take_in(site, &instances, &began);
        for step in steps {
            self.perform(&api, site, step, finds, &instances).await;
        }
        Ok(())
    }

    /// Compares what was shown with the records.
    fn take_in(&self, site: &Site, instances: &[Observed], began: &BTreeSet<IntentId>) -> Vec<Step> {
        let now = self.now();
        let mut guard = self.state();
        let state = &mut *guard;
        for instance in instances {
            state.shown.insert(instance.id.clone(), instance.clone());
        }
        let ids: BTreeSet<&str> = instances.iter().map(|instance| instance.id.as_str()).collect();
        let of_site = || state.records.iter().filter(|record| record.site == *site);
        for record in of_site() {
            let tag = record.intent.as_str();
            let is_shown = record.instance().is_some_and(|id| ids.contains(id))
                || instances.iter().any(|shown| shown.tags.get(INTENT_TAG).is_some_and(|it| it == tag));
            let misses = state.misses.entry(record.intent.clone()).or_default();
            *misses = if is_shown { 0 } else { misses.saturating_add(1) };
        }
        // Those that were under way when the question was asked are as unknown as those that are now.
        let in_flight: BTreeSet<IntentId> = state.in_flight.union(began).cloned().collect();
        let look =
            Look { instances, in_flight: &in_flight, claimed: &state.claimed, misses: &state.misses, now };
        reconcile(of_site(), &look)
    }

    async fn perform(&self, api: &Api, site: &Site, step: Step, finds: Finds, instances: &[Observed]) {
        match step {
            Step::Forget { intent } => {
                let is_guarded = |record: &Record| record.expiry.is_some();
                if self.with_records(|records| records.get(&intent).is_some_and(is_guarded)) {
                    // The record goes when AWS has nothing more to do.
                    self.state().over.insert(intent);
                    self.errand.notify_one();
                } else {
                    self.discard(&intent);
                }
            }
            Step::Ended { intent, reason } => {
                let mut state = self.state();
                let id = state.records.get(&intent).and_then(|record| record.instance().map(str::to_owned));
                if let Some(id) = id
                    && state.ended.insert(id.clone(), reason.clone()).is_none()
                {
                    tracing::warn!(instance = id, reason, "an instance ended by itself");
                }
            }
            Step::Found { intent, instance } => self.found(&intent, &instance, finds, instances),
            Step::Terminate { instance, why } => {
                tracing::warn!(instance, why, region = site.region, "terminate");
                self.expect_end(&instance);
                if let Err(error) = only(api.terminate(std::slice::from_ref(&instance)).await) {
                    tracing::warn!(instance, %error, "cannot terminate; trying again");
                }
            }
        }
    }

    /// From here on its record, if it has one, says that it must end.
    fn expect_end(&self, instance: &str) {
        let since = self.now();
        let record = self.with_records(|records| records.of_instance(instance).cloned());
        if let Some(record) = record
            && !matches!(record.stage, Stage::Ending { .. })
        {
            self.advance(&record.intent, Stage::Ending { instance: instance.to_owned(), since });
        }
    }

    fn found(&self, intent: &IntentId, instance: &str, finds: Finds, instances: &[Observed]) {
        let Some(record) = self.with_records(|records| records.get(intent).cloned()) else { return };
        let Stage::Asked { class, .. } = record.stage else { return };
        tracing::warn!(
            instance,
            ?finds,
            "found the instance of a launch that an earlier broker did not finish"
        );
        let id = instance.to_owned();
        match finds {
            Finds::Adopt if instances.iter().any(|shown| shown.id == instance) => {
                self.claim(intent);
                self.advance(intent, Stage::Live { instance: id, class });
            }
            Finds::Adopt | Finds::End => {
                self.advance(intent, Stage::Ending { instance: id, since: self.now() });
            }
        }
    }

    /// Says on every instance that is looked after until when it is wanted.
    async fn renew(&self) {
        let now = self.now();
        let due: BTreeMap<Site, Vec<String>> = {
            let mut state = self.state();
            if now < state.renewed_at.saturating_add(RENEW_INTERVAL.as_secs()) {
                return;
            }
            state.renewed_at = now;
            let mut due: BTreeMap<Site, Vec<String>> = BTreeMap::new();
            for record in state.records.iter() {
                if let Stage::Live { instance, .. } | Stage::Shelved { instance, .. } = &record.stage {
                    due.entry(record.site.clone()).or_default().push(instance.clone());
                }
            }
            due
        };
        for (site, ids) in due {
            let until = expires(now);
            let tags = [(EXPIRES_TAG, until.as_str())];
            let result = match self.client_of(&site).await {
                Ok(api) => api.tag(&ids, &tags).await,
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                tracing::warn!(region = site.region, %error, "cannot renew the tag `{EXPIRES_TAG}`");
            }
        }
    }
}
