//! How an instance ends, or is put aside: until DescribeInstances agrees.

use std::time::Duration;

use super::api::{ApiError, ErrorClass, InstanceState, PerInstance};
use super::estate::Estate;
use super::records::{ClassRecord, Record, Stage};
use crate::model::ec2::IdleAction;

/// How long EC2 may take to show that an instance ends, before it is asked again.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(60);

/// Why an instance is not known to have ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum RetireError {
    /// EC2 did not take the call.
    #[error("cannot end instance `{instance}`")]
    Refused {
        /// Which.
        instance: String,
        /// What EC2 says.
        source: ApiError,
    },
    /// EC2 took it, and shows no change.
    #[error("EC2 took TerminateInstances for `{instance}` but still shows it running after {} s", CONFIRMED_WITHIN.as_secs())]
    Unconfirmed {
        /// Which.
        instance: String,
    },
}

impl Estate {
    /// Ends an instance. Returns when EC2 shows that it shuts down: from then on it costs nothing and cannot come back.
    /// Its record stays until EC2 shows it terminated.
    pub(super) async fn terminate(&self, instance: &str) -> Result<(), RetireError> {
        let Some(record) = self.with_records(|records| records.of_instance(instance).cloned()) else {
            // Its record goes only when EC2 has shown it terminated.
            return Ok(());
        };
        let since = match record.stage {
            Stage::Ending { since, .. } => since,
            Stage::Asked { .. } | Stage::Abandoned | Stage::Live { .. } | Stage::Shelved { .. } => self.now(),
        };
        self.advance(&record.intent, Stage::Ending { instance: instance.to_owned(), since });
        self.disclaim(&record.intent);
        let refused = |source| RetireError::Refused { instance: instance.to_owned(), source };
        let api = self.client_of(&record.site).await.map_err(refused)?;
        match only(api.terminate(&[instance.to_owned()]).await) {
            // It may be too young to be known, or gone: what is shown decides.
            Err(error) if error.class == ErrorClass::NotFound => {}
            answer => answer.map_err(refused)?,
        }
        self.confirm(instance, |estate| {
            let is_forgotten = estate.with_records(|records| records.of_instance(instance).is_none());
            is_forgotten
                || matches!(
                    estate.state_of(instance),
                    Some(InstanceState::ShuttingDown | InstanceState::Terminated)
                )
        })
        .await?;
        self.end_expiry(&record.intent).await;
        Ok(())
    }

    /// Puts an idle instance aside, if the pool wants that and EC2 can; otherwise ends it.
    pub(super) async fn put_aside(&self, instance: &str, action: IdleAction) -> Result<(), RetireError> {
        let record = self.with_records(|records| records.of_instance(instance).cloned());
        let (hibernate, max_stopped) = match action {
            IdleAction::Terminate => return self.terminate(instance).await,
            IdleAction::Stop { max_stopped } => (false, max_stopped),
            IdleAction::Hibernate { max_stopped } => (true, max_stopped),
        };
        let Some(Record { intent, site, stage: Stage::Live { class, .. }, .. }) = record else {
            return self.terminate(instance).await;
        };
        if class.spot {
            // A spot request for one time cannot be stopped, only terminated.
            return self.terminate(instance).await;
        }
        let flight = self.resume(&intent);
        let since = self.now();
        let until = since.saturating_add(max_stopped.as_secs());
        let shelved = |class: &ClassRecord| Stage::Shelved {
            instance: instance.to_owned(),
            class: class.clone(),
            since,
            until,
        };
        self.advance(&intent, shelved(&class));
        self.disclaim(&intent);
        let stopped = match self.client_of(&site).await {
            Ok(api) => only(api.stop(&[instance.to_owned()], hibernate).await),
            Err(error) => Err(error),
        };
        if let Err(error) = stopped {
            tracing::warn!(instance, %error, "cannot stop an idle instance; it is terminated instead");
            drop(flight);
            return self.terminate(instance).await;
        }
        let is_down = |estate: &Self| {
            estate.with_records(|records| records.of_instance(instance).is_none())
                || estate.state_of(instance).is_some_and(|state| match state {
                    InstanceState::Pending | InstanceState::Running => false,
                    InstanceState::Stopping
                    | InstanceState::Stopped
                    | InstanceState::ShuttingDown
                    | InstanceState::Terminated => true,
                })
        };
        let confirmed = self.confirm(instance, is_down).await;
        drop(flight);
        match confirmed {
            Ok(()) => Ok(()),
            Err(_) => self.terminate(instance).await,
        }
    }

    fn state_of(&self, instance: &str) -> Option<InstanceState> {
        self.shown(instance).map(|shown| shown.state)
    }

    async fn confirm(&self, instance: &str, is_done: impl Fn(&Self) -> bool) -> Result<(), RetireError> {
        let done = self.until(|estate| is_done(estate).then_some(()));
        match tokio::time::timeout(CONFIRMED_WITHIN, done).await {
            Ok(()) => Ok(()),
            Err(_elapsed) => Err(RetireError::Unconfirmed { instance: instance.to_owned() }),
        }
    }
}

/// The answer to a request about one instance.
pub(super) fn only(answers: PerInstance) -> Result<(), ApiError> {
    answers.into_values().collect()
}
