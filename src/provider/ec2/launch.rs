//! How an instance comes to be: what is written down, asked and waited for, in which order.
//!
//! One rung of the ladder after the other, each with a record on disk before the call. Which rungs there are is decided
//! in [`super::ladder`]; what is known of a region is gathered in [`super::surroundings`].

use std::collections::BTreeMap;
use std::time::Duration;

use super::api::{Api, ApiError, ErrorClass, InstanceState, Observed, RunDisk, RunOrder};
use super::estate::{self, Estate};
use super::reconcile::INTENT_TAG;
use super::records::{ClassRecord, IntentId, Record, Site, Stage};
use crate::model::ec2::Reach;
use crate::model::{BuilderId, InstanceClass};

/// How long EC2 may take to give a running instance its addresses.
const ADDRESS_WITHIN: Duration = Duration::from_secs(120);

/// One launch request, complete but for what is fresh each time.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    pub(super) api: &'a Api,
    pub(super) site: Site,
    pub(super) pool: &'a str,
    pub(super) builder: BuilderId,
    pub(super) class: InstanceClass,
    pub(super) host_key: &'a str,
    /// Without token and tags.
    pub(super) order: RunOrder,
}

/// Why an attempt came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttemptError {
    /// It could not be written down, so nothing was asked.
    #[error("cannot write down a launch, so none is made: is the state directory full or read-only?")]
    Journal(#[source] std::io::Error),
    /// There is no host key for it.
    #[error("cannot make a host key")]
    HostKey(#[source] std::io::Error),
    /// There is no user-data for it.
    #[error(transparent)]
    UserData(super::boot::user_data::UserDataError),
    /// EC2 says no.
    #[error(transparent)]
    Refused(ApiError),
    /// EC2 may have launched it or not; what comes of it is ended.
    #[error("it is not known whether EC2 launched an instance, so none is used: {0}")]
    Unclear(ApiError),
}

impl Estate {
    /// Asks once. On success somebody must look after the instance: it is claimed.
    pub(super) async fn attempt(&self, attempt: Attempt<'_>) -> Result<Observed, AttemptError> {
        let intent = IntentId::fresh().map_err(AttemptError::Journal)?;
        let mut order = attempt.order;
        intent.as_str().clone_into(&mut order.client_token);
        order.tags = self.tags(&intent, attempt.pool, attempt.builder);
        let class = ClassRecord::from(&attempt.class);
        let record = Record {
            intent: intent.clone(),
            pool: attempt.pool.to_owned(),
            site: attempt.site,
            host_key: attempt.host_key.to_owned(),
            asked_at: self.now(),
            stage: Stage::Asked { order: Box::new(order.clone()), class: class.clone() },
            expiry: None,
        };
        let flight = self.begin(record).map_err(AttemptError::Journal)?;
        match attempt.api.run_instance(&order).await {
            Ok(instance) => {
                self.claim(&intent);
                self.show(&instance);
                // The record no longer carries the request, and with it the private host key.
                self.advance(&intent, Stage::Live { instance: instance.id.clone(), class });
                drop(flight);
                Ok(instance)
            }
            Err(error) if error.may_have_acted || error.class == ErrorClass::Idempotency => {
                self.advance(&intent, Stage::Abandoned);
                drop(flight);
                self.hurry();
                Err(AttemptError::Unclear(error))
            }
            Err(error) => {
                self.forget(&intent);
                drop(flight);
                Err(AttemptError::Refused(error))
            }
        }
    }

    fn tags(&self, intent: &IntentId, pool: &str, builder: BuilderId) -> BTreeMap<String, String> {
        // So that whoever knows nothing but the tags knows that there is one.
        let expiry =
            self.state().terms.contains_key(pool).then(|| (estate::EXPIRY_TAG, "schedule".to_owned()));
        let tags = [
            ("Name", format!("nix-broker {pool} {builder}")),
            (estate::MANAGED_TAG, estate::MANAGED_BY.to_owned()),
            (estate::BROKER_TAG, self.broker()),
            (INTENT_TAG, intent.as_str().to_owned()),
            (estate::POOL_TAG, pool.to_owned()),
            (estate::EXPIRES_TAG, estate::expires(self.now())),
        ];
        tags.into_iter().chain(expiry).map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// Waits until an instance can be reached, and says at which address; or why it never will be.
    pub(super) async fn address_of(&self, instance: &str, reach: &Reach) -> Result<String, String> {
        let wanted = |estate: &Self| {
            if let Some(reason) = estate.end_of(instance) {
                return Some(Err(reason));
            }
            let shown = estate.shown(instance)?;
            match shown.state {
                InstanceState::Pending | InstanceState::Running => address(&shown, reach).map(Ok),
                // The look in which it went down says why it did.
                InstanceState::ShuttingDown
                | InstanceState::Terminated
                | InstanceState::Stopping
                | InstanceState::Stopped => None,
            }
        };
        match tokio::time::timeout(ADDRESS_WITHIN, self.until(wanted)).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(format!(
                "it has no {} address after {} s{}",
                match reach {
                    Reach::Public => "public",
                    Reach::Private | Reach::Proxy(_) => "private",
                },
                ADDRESS_WITHIN.as_secs(),
                match reach {
                    Reach::Public => "; does its subnet have a route to an internet gateway?",
                    Reach::Private | Reach::Proxy(_) => "",
                }
            )),
        }
    }
}

/// Where this instance is reached.
pub(super) fn address(instance: &Observed, reach: &Reach) -> Option<String> {
    match reach {
        Reach::Public => instance.public_ip.clone(),
        Reach::Private | Reach::Proxy(_) => instance.private_ip.clone(),
    }
}

/// The root volume as it is asked for.
pub(super) fn disk(spec: crate::model::ec2::DiskSpec) -> RunDisk {
    RunDisk { size: spec.size, throughput: spec.throughput, iops: spec.iops }
}
