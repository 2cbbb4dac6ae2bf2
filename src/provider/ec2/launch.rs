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
use super::tags;
use crate::model::ec2::Reach;
use crate::model::{BuilderId, InstanceClass};
use crate::provider::{Callers, Inner};

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
        let expiry = self.state().terms.contains_key(pool).then(|| (tags::EXPIRY_TAG, "schedule".to_owned()));
        let tags = [
            ("Name", format!("nix-broker {pool} {builder}")),
            (tags::MANAGED_TAG, tags::MANAGED_BY.to_owned()),
            (tags::BROKER_TAG, self.broker()),
            (INTENT_TAG, intent.as_str().to_owned()),
            (tags::POOL_TAG, pool.to_owned()),
            (tags::EXPIRES_TAG, estate::expires(self.now())),
        ];
        tags.into_iter().chain(expiry).map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// Waits until an instance can be reached, and says at which address; or why it never will be.
    pub(super) async fn address_of(&self, instance: &str, reach: &Reach) -> Result<Whereabouts, String> {
        let wanted = |estate: &Self| {
            if let Some(reason) = estate.end_of(instance) {
                return Some(Err(reason));
            }
            let shown = estate.shown(instance)?;
            match shown.state {
                InstanceState::Pending | InstanceState::Running => whereabouts(&shown, reach).map(Ok),
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

/// Where an instance is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Whereabouts {
    /// For the broker.
    pub(super) host: String,
    /// For other builders.
    pub(super) inner: Option<Inner>,
}

/// Where this instance is reached; nothing as long as EC2 has not said. Builders come to each other at their private
/// addresses, for which alone a security group's rule about its members counts. Those mean something in their VPC, and
/// where it is routed to: to where the broker is, if that is how it gets there itself.
pub(super) fn whereabouts(instance: &Observed, reach: &Reach) -> Option<Whereabouts> {
    let (host, callers) = match reach {
        Reach::Public => (&instance.public_ip, Callers::Neighbours),
        Reach::Private => (&instance.private_ip, Callers::All),
        Reach::Proxy(_) => (&instance.private_ip, Callers::Neighbours),
    };
    let inner = |host: &String| Inner {
        host: host.clone(),
        network: instance.vpc.clone(),
        zone: Some(instance.zone.clone()),
        callers,
    };
    Some(Whereabouts { host: host.clone()?, inner: instance.private_ip.as_ref().map(inner) })
}

/// The root volume as it is asked for.
pub(super) fn disk(spec: crate::model::ec2::DiskSpec) -> RunDisk {
    RunDisk { size: spec.size, throughput: spec.throughput, iops: spec.iops }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::observed;
    use super::*;

    #[test]
    fn builders_meet_at_their_private_addresses_in_one_vpc() {
        let at = |vpc: Option<&str>, reach: &Reach| {
            let (private_ip, public_ip) = (Some("172.31.0.9".to_owned()), Some("203.0.113.9".to_owned()));
            let shown = Observed { private_ip, public_ip, vpc: vpc.map(str::to_owned), ..observed("i-1") };
            whereabouts(&shown, reach).unwrap()
        };
        let proxy = Reach::Proxy("ssh -W %h:%p bastion".to_owned());
        for (reach, host) in
            [(Reach::Public, "203.0.113.9"), (Reach::Private, "172.31.0.9"), (proxy.clone(), "172.31.0.9")]
        {
            let place = at(Some("vpc-1"), &reach);
            assert_eq!((place.host.as_str(), place.inner.unwrap().host.as_str()), (host, "172.31.0.9"));
        }
        let inner = |vpc, reach| at(vpc, reach).inner.unwrap();
        let public = inner(Some("vpc-1"), &Reach::Public);
        assert!(public.is_for(&public) && public.is_for(&inner(Some("vpc-1"), &Reach::Private)));
        let home = Inner { host: "pc".to_owned(), network: None, zone: None, callers: Callers::All };
        for elsewhere in [inner(Some("vpc-2"), &Reach::Public), inner(None, &Reach::Public), home.clone()] {
            assert!(!public.is_for(&elsewhere), "{elsewhere:?}");
            assert!(!inner(Some("vpc-1"), &proxy).is_for(&elsewhere), "{elsewhere:?}");
        }
        assert!(
            !inner(None, &Reach::Public).is_for(&inner(None, &Reach::Public)),
            "two VPCs, for all we know"
        );
        let at_home = inner(Some("vpc-1"), &Reach::Private);
        let next_door = Inner { zone: Some("eu-central-1b".to_owned()), ..at_home.clone() };
        assert!(public.is_beside(&at_home) && !public.is_beside(&next_door) && !home.is_beside(&home));
        // How the broker gets there, others may too: it is tried.
        assert!(inner(Some("vpc-1"), &Reach::Private).is_for(&home) && home.is_for(&public));
    }

    #[test]
    fn an_instance_without_the_address_that_is_used_is_nowhere_yet() {
        let shown =
            Observed { private_ip: Some("172.31.0.9".to_owned()), public_ip: None, ..observed("i-1") };
        assert_eq!(whereabouts(&shown, &Reach::Public), None);
        assert_eq!(whereabouts(&shown, &Reach::Private).unwrap().host, "172.31.0.9");
    }
}
