//! Sees to it that AWS knows when to end what, beside everything else: no launch and no look waits for it.
//!
//! What is to be done is decided in [`super`].

use std::time::Duration;

use futures_util::future::join_all;

use super::{Errand, Expiry, Remains, again_after, errand};
use crate::provider::ec2::api::{ApiError, ErrorClass, InstanceState};
use crate::provider::ec2::estate::Estate;
use crate::provider::ec2::records::{IntentId, Record};

/// Between two looks at what was refused, or is new without a word.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How long the end of an instance waits for its schedule to be removed; after that it is removed with the record.
const REMOVED_WITHIN: Duration = Duration::from_secs(10);

const ABOUT_THE_ROLE: &str =
    "docs/aws.md has what the role of `expiry-role` must trust and may do (\"Ended by AWS itself\")";

/// AWS would not agree.
#[derive(Clone, Debug)]
pub(in crate::provider::ec2) struct Refusal {
    /// For the person who runs the broker.
    words: String,
    /// In seconds since 1970.
    again_at: u64,
    is_told: bool,
}

impl Refusal {
    /// The next one: words that were told once are not told again.
    fn after(known: Option<&Self>, words: String, again_at: u64) -> Self {
        let is_told = known.is_some_and(|known| known.is_told && known.words == words);
        Self { words, again_at, is_told }
    }
}

impl Estate {
    /// Does what is to be done, again and again. Never ends.
    pub(in crate::provider::ec2) async fn keep_expiries(&self) {
        loop {
            join_all(self.errands().into_iter().map(|(record, errand)| self.run(record, errand))).await;
            tokio::select! {
                () = self.errand.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    fn errands(&self) -> Vec<(Record, Errand)> {
        let now = self.now();
        let state = self.state();
        let due = |record: &Record| {
            let is_over = state.over.contains(&record.intent);
            let refusal = state.refused.get(&record.intent).filter(|_| !is_over);
            if refusal.is_some_and(|refusal| now < refusal.again_at) {
                return None;
            }
            let shown = record.instance().and_then(|id| state.shown.get(id)).map(|shown| shown.state);
            let remains = match shown {
                _ if is_over => Remains::Record,
                Some(InstanceState::ShuttingDown | InstanceState::Terminated) => Remains::Shadow,
                Some(
                    InstanceState::Pending
                    | InstanceState::Running
                    | InstanceState::Stopping
                    | InstanceState::Stopped,
                )
                | None => Remains::Instance,
            };
            let errand = errand(record, remains, state.terms.get(&record.pool), now)?;
            Some((record.clone(), errand))
        };
        state.records.iter().filter_map(due).collect()
    }

    async fn run(&self, record: Record, errand: Errand) {
        let Some(instance) = record.instance() else { return };
        match errand {
            Errand::Set { at } => self.set(&record, instance, at).await,
            Errand::Remove => {
                if let Err(error) = self.unschedule(&record, instance).await {
                    tracing::warn!(instance, %error, "a schedule is left over; AWS removes it after its time");
                }
                self.discard(&record.intent);
            }
        }
    }

    async fn set(&self, record: &Record, instance: &str, at: u64) {
        let Some(terms) = self.state().terms.get(&record.pool).cloned() else { return };
        self.write_expiry(&record.intent, Some(Expiry::Wanted { at }));
        let answer = match self.client_of(&record.site).await {
            Ok(api) => api.schedule(&terms.order(record, instance, at)).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(()) => {
                tracing::debug!(instance, at, "AWS ends it then, whoever is left");
                self.state().refused.remove(&record.intent);
                // What has changed its stage meanwhile may want another time.
                if self.expiry_of(&record.intent) == Some(Expiry::Wanted { at }) {
                    self.write_expiry(&record.intent, Some(Expiry::Set { at }));
                }
            }
            Err(error) => self.refuse(&record.intent, instance, error),
        }
    }

    fn refuse(&self, intent: &IntentId, instance: &str, error: ApiError) {
        let is_bare = error.class == ErrorClass::Config && error.advice().is_none();
        let error = if is_bare { error.with_advice(ABOUT_THE_ROLE) } else { error };
        let words = format!("AWS will not end it by itself when its broker is lost: {error}");
        let again_at = self.now().saturating_add(again_after(error.class).as_secs());
        let mut state = self.state();
        let known = state.refused.get(intent);
        if known.is_none_or(|known| known.words != words) {
            tracing::warn!(instance, reason = words, "an instance without an expiry");
        }
        let refusal = Refusal::after(known, words, again_at);
        state.refused.insert(intent.clone(), refusal);
    }

    /// Why AWS will not end this instance by itself, said once.
    pub(in crate::provider::ec2) fn take_refusal(&self, instance: &str) -> Option<String> {
        let mut state = self.state();
        let intent = state.records.of_instance(instance)?.intent.clone();
        let refusal = state.refused.get_mut(&intent).filter(|refusal| !refusal.is_told)?;
        refusal.is_told = true;
        Some(refusal.words.clone())
    }

    /// An instance has just ended for good: nothing is left for AWS to do. One of which AWS may be hearing just now is
    /// seen to with its record.
    pub(in crate::provider::ec2) async fn end_expiry(&self, intent: &IntentId) {
        let Some(record) = self.with_records(|records| records.get(intent).cloned()) else { return };
        let (Some(instance), Some(Expiry::Set { .. })) = (record.instance(), record.expiry) else { return };
        match tokio::time::timeout(REMOVED_WITHIN, self.unschedule(&record, instance)).await {
            Ok(Ok(())) => self.write_expiry(intent, None),
            Ok(Err(error)) => tracing::debug!(instance, %error, "its schedule is removed later"),
            Err(_elapsed) => tracing::debug!(instance, "its schedule is removed later"),
        }
    }

    async fn unschedule(&self, record: &Record, instance: &str) -> Result<(), ApiError> {
        self.client_of(&record.site).await?.unschedule(instance).await
    }

    fn expiry_of(&self, intent: &IntentId) -> Option<Expiry> {
        self.with_records(|records| records.get(intent).and_then(|record| record.expiry))
    }

    /// What cannot be written is what an older broker knew: the next one asks again, which does no harm.
    fn write_expiry(&self, intent: &IntentId, expiry: Option<Expiry>) {
        let result = self.state().records.set_expiry(intent, expiry);
        if let Err(error) = result {
            tracing::error!(intent = intent.as_str(), %error, "cannot write a launch record");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_once_however_often_aws_was_asked_before_somebody_listened() {
        let first = Refusal::after(None, "no role".to_owned(), 60);
        let second = Refusal::after(Some(&first), "no role".to_owned(), 120);
        assert!(!second.is_told, "nobody has heard it yet");
        let heard = Refusal { is_told: true, ..second };
        assert!(Refusal::after(Some(&heard), "no role".to_owned(), 180).is_told);
        assert!(!Refusal::after(Some(&heard), "no trust".to_owned(), 180).is_told);
    }
}
