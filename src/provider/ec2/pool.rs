//! One EC2 pool: from a launch order to an instance that can be dialled, and back to nothing.
//!
//! Owns the climb over the ladder's rungs and what each refusal teaches. The calls are in [`super::launch`] and
//! [`super::retire`], the watch over what runs in [`super::estate`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::api::{ApiError, ErrorClass, Observed, RunOrder};
use super::boot::cache::BootCache;
use super::boot::user_data::{BootSpec, UserDataError, render};
use super::candidates::{candidates, market};
use super::cooling::Cooling;
use super::estate::Estate;
use super::expiry::hard_limit;
use super::ladder::{Rung, Terms, ladder};
use super::launch::{Attempt, AttemptError, Whereabouts, disk};
use super::price;
use super::records::{Record, Stage};
use super::retire::only;
use super::surroundings::{Place, Surroundings};
use crate::model::ec2::{IdleAction, Reach};
use crate::model::{Ec2Spec, Instance, InstanceClass, InstanceId, Offer, PoolName, PoolSpec};
use crate::provider::{
    Address, HostKeyPair, LaunchOrder, Launched, ProviderContext, ProviderError, ProviderErrorKind,
};

/// The user whom NixOS images know.
const USER: &str = "root";
const SSH_PORT: u16 = 22;
/// On the machine itself the idle limit is longer than the broker's window: it is for a broker that forgets.
const IDLE_FACTOR: u32 = 2;
/// An image that was resolved may be gone a moment later: then it is resolved anew, once.
const RESOLVES: usize = 2;

/// The instances of one pool.
pub struct Ec2 {
    pub(super) name: PoolName,
    pub(super) spec: Ec2Spec,
    pool: PoolSpec,
    pub(super) estate: Arc<Estate>,
    client_key: String,
    host_keys: fn() -> io::Result<HostKeyPair>,
    cooling: Mutex<Cooling>,
    /// Whose interruption has been counted.
    interrupted: Mutex<BTreeSet<InstanceId>>,
    surroundings: Surroundings,
}

impl fmt::Debug for Ec2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ec2").field("pool", &self.name).field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl Ec2 {
    /// A provider for this pool; asks EC2 nothing yet.
    pub fn new(pool: &PoolSpec, spec: &Ec2Spec, context: &ProviderContext) -> Result<Self, ProviderError> {
        let estate = context.estate()?;
        estate.include(pool, spec);
        Ok(Self {
            name: pool.name.clone(),
            spec: spec.clone(),
            pool: pool.clone(),
            surroundings: Surroundings::new(Arc::clone(&estate)),
            estate,
            client_key: context.client_key.clone(),
            host_keys: context.host_keys,
            cooling: Mutex::default(),
            interrupted: Mutex::default(),
        })
    }

    /// Its name.
    pub(super) fn name(&self) -> &PoolName {
        &self.name
    }

    /// What the pool promises.
    pub(super) fn offer(&self) -> &Offer {
        &self.pool.offer
    }

    /// A spot instance that EC2 takes back counts against spot, once.
    pub(super) fn interrupted(&self, instance: &InstanceId) {
        let mut interrupted = self.interrupted.lock();
        if interrupted.insert(instance.clone()) && self.cooling.lock().interrupted(now()) {
            tracing::warn!(%instance, pool = %self.name, "two spot interruptions: no spot for half an hour");
        }
    }

    /// Gets an instance; returns when its address is known.
    pub(in crate::provider) async fn launch(
        &self,
        order: LaunchOrder<'_>,
    ) -> Result<Launched, ProviderError> {
        if let Some(launched) = self.wake(&order).await {
            return Ok(launched);
        }
        let mut refusals = Vec::new();
        for resolve in 0..RESOLVES {
            let (rungs, places) = self.rungs(&order).await?;
            for rung in rungs {
                let Some(place) = places.iter().find(|place| place.subnet() == rung.subnet) else { continue };
                (order.progress)(&format!("asks EC2 for a {}", summary(&rung)));
                match self.climb(&order, &rung, place).await {
                    Ok(instance) => return self.reach(&order, instance, place).await,
                    Err(AttemptError::Refused(error)) => {
                        tracing::warn!(pool = %self.name, rung = summary(&rung), %error, "launch refused");
                        match self.learn(&rung, &error) {
                            Lesson::NextRung => refusals.push(error),
                            Lesson::Stop(_) if error.is_image_gone() && resolve + 1 < RESOLVES => {
                                self.surroundings.forget_image(&place.site).await;
                                break;
                            }
                            Lesson::Stop(kind) => return Err(ProviderError::new(kind, error.to_string())),
                        }
                    }
                    Err(
                        error @ (AttemptError::Journal(_)
                        | AttemptError::UserData(_)
                        | AttemptError::HostKey(_)),
                    ) => return Err(journal(error)),
                    Err(AttemptError::Unclear(error)) => {
                        return Err(ProviderError::new(
                            ProviderErrorKind::Unknown,
                            AttemptError::Unclear(error).to_string(),
                        ));
                    }
                }
            }
            if refusals.len() > resolve {
                break;
            }
        }
        Err(ProviderError::new(ProviderErrorKind::Capacity, nothing_left(&refusals)))
    }

    /// What to try, in this order.
    async fn rungs(&self, order: &LaunchOrder<'_>) -> Result<(Vec<Rung>, Vec<Place>), ProviderError> {
        let config = |reason: String| ProviderError::new(ProviderErrorKind::Config, reason);
        let view = self.surroundings.look(&self.pool, &self.spec).await?;
        let spec = &self.spec;
        let candidates =
            candidates(spec, &self.pool.offer, self.pool.slots, &order.demand, Some(&view.verified))
                .map_err(|error| config(error.to_string()))?;
        let terms = Terms {
            market: market(spec, &order.demand),
            max_price: spec.max_price,
            spot_prices: &view.spot_prices,
        };
        let places: Vec<_> = view.places.iter().map(|place| place.place.clone()).collect();
        let rungs = ladder(&candidates, &places, &terms, &self.cooling.lock(), now()).map_err(|error| {
            let kind = match error {
                super::ladder::NoRung::Cooling { .. } => ProviderErrorKind::Capacity,
                super::ladder::NoRung::NoPlace
                | super::ladder::NoRung::NotOffered { .. }
                | super::ladder::NoRung::Price { .. } => ProviderErrorKind::Config,
            };
            ProviderError::new(kind, error.to_string())
        })?;
        let Some(at_most) = order.at_most else { return Ok((rungs, view.places)) };
        let cheapest = rungs.iter().map(|rung| price::running(rung.rate, spec)).min();
        let rungs: Vec<_> =
            rungs.into_iter().filter(|rung| price::running(rung.rate, spec) <= at_most).collect();
        if rungs.is_empty() {
            let reason = format!(
                "the cheapest machine that would do costs {}, and {at_most} is left of the cap per hour",
                cheapest.unwrap_or_default()
            );
            return Err(ProviderError::new(ProviderErrorKind::OverBudget, reason));
        }
        Ok((rungs, view.places))
    }

    async fn climb(
        &self,
        order: &LaunchOrder<'_>,
        rung: &Rung,
        place: &Place,
    ) -> Result<Observed, AttemptError> {
        let keys = (self.host_keys)().map_err(AttemptError::HostKey)?;
        let request = self.request(rung, place, &keys)?;
        let attempt = Attempt {
            api: &place.api,
            site: place.site.clone(),
            pool: self.name.as_str(),
            builder: order.builder,
            class: price::class(rung, &self.spec),
            host_key: &keys.public,
            order: request,
        };
        let instance = self.estate.attempt(attempt).await?;
        self.cooling.lock().launched(&rung.offering());
        Ok(instance)
    }

    /// Read at every launch, so that a key can be changed without a restart.
    fn cache_key(&self) -> Result<Option<String>, AttemptError> {
        let Some(path) = self.spec.cache.as_ref().and_then(|cache| cache.secret_key_file.as_ref()) else {
            return Ok(None);
        };
        let unreadable =
            |error: io::Error| UserDataError::CacheSecretKeyFile { path: path.clone(), kind: error.kind() };
        std::fs::read_to_string(path).map(Some).map_err(|error| AttemptError::UserData(unreadable(error)))
    }

    fn request(&self, rung: &Rung, place: &Place, keys: &HostKeyPair) -> Result<RunOrder, AttemptError> {
        let slots = self.pool.slots.expected().max(rung.instance_type.vcpus);
        let secret_key = self.cache_key()?;
        let boot = BootSpec {
            host_key_private: &keys.private,
            host_key_public: &keys.public,
            client_key: &self.client_key,
            system_features: &self.pool.offer.features.union(&self.pool.offer.mandatory).cloned().collect(),
            lease: self.spec.lease,
            idle: (self.pool.idle_timeout * IDLE_FACTOR).max(self.spec.lease),
            hard_limit: hard_limit(self.pool.max_lifetime, &self.spec),
            build_users: u16::try_from(slots).unwrap_or(u16::MAX),
            nix_settings: &[],
            cache: self.spec.cache.as_ref().map(|cache| BootCache {
                url: &cache.url,
                public_key: &cache.public_key,
                secret_key: secret_key.as_deref(),
            }),
        };
        let user_data = render(&boot).map_err(AttemptError::UserData)?;
        Ok(RunOrder {
            region: rung.region.clone(),
            client_token: String::new(),
            image: place.image.id.clone(),
            root_device: place.image.root_device.clone(),
            instance_type: rung.instance_type.name.clone(),
            subnet: rung.subnet.clone(),
            zone: rung.zone.clone(),
            security_groups: place.groups.clone(),
            user_data,
            market: rung.market,
            max_price: rung.max_spot_price,
            public_ip: self.spec.reach == Reach::Public,
            private_ip: None,
            disk: disk(self.spec.disk),
            instance_store: 0,
            nested_virt: rung.nested_virtualization,
            hibernation: matches!(self.spec.idle_action, IdleAction::Hibernate { .. }),
            tags: BTreeMap::new(),
        })
    }

    /// What a refusal says about the other rungs.
    fn learn(&self, rung: &Rung, error: &ApiError) -> Lesson {
        let mut cooling = self.cooling.lock();
        match error.class {
            ErrorClass::Capacity => cooling.no_capacity(&rung.offering(), now()),
            ErrorClass::Quota(_) => cooling.no_quota(&rung.offering(), now()),
            ErrorClass::Subnet => cooling.no_addresses(&rung.subnet, now()),
            ErrorClass::SpotRole => cooling.no_spot(now()),
            ErrorClass::Throttle | ErrorClass::Transient | ErrorClass::Busy => {
                return Lesson::Stop(ProviderErrorKind::Unknown);
            }
            ErrorClass::Identity => return Lesson::Stop(ProviderErrorKind::Refused),
            ErrorClass::Config | ErrorClass::NotFound => return Lesson::Stop(ProviderErrorKind::Config),
            ErrorClass::Idempotency | ErrorClass::Unknown => {}
        }
        Lesson::NextRung
    }

    /// From launched to an address; an instance that gets none is ended.
    async fn reach(
        &self,
        order: &LaunchOrder<'_>,
        instance: Observed,
        place: &Place,
    ) -> Result<Launched, ProviderError> {
        (order.progress)(&format!("{} is launched in {}", instance.id, instance.zone));
        tracing::info!(instance = instance.id, region = place.site.region, "waits for its address");
        let whereabouts = match self.estate.address_of(&instance.id, &self.spec.reach).await {
            Ok(whereabouts) => whereabouts,
            Err(reason) => {
                self.give_up(&instance.id).await;
                let reason = format!("instance `{}`: {reason}", instance.id);
                return Err(ProviderError::new(ProviderErrorKind::Unknown, reason));
            }
        };
        let record = self.estate.with_records(|records| records.of_instance(&instance.id).cloned());
        match record.as_ref().and_then(|record| self.launched(record, whereabouts)) {
            Some(launched) => Ok(launched),
            None => {
                let reason = format!("instance `{}` ended before it could be used", instance.id);
                Err(ProviderError::new(ProviderErrorKind::Unknown, reason))
            }
        }
    }

    /// Ends an instance that no builder will be; the estate goes on with it if this does not succeed.
    async fn give_up(&self, instance: &str) {
        if let Err(error) = self.estate.terminate(instance).await {
            tracing::error!(instance, %error, "cannot terminate, trying again");
        }
    }

    pub(super) fn launched(&self, record: &Record, whereabouts: Whereabouts) -> Option<Launched> {
        let Stage::Live { instance, class } = &record.stage else { return None };
        Some(Launched {
            instance: Instance {
                id: InstanceId::new(instance.as_str()),
                pool: self.name.clone(),
                class: Some(InstanceClass::from(class)),
            },
            address: Address {
                port: SSH_PORT,
                user: USER.to_owned(),
                host_keys: vec![record.host_key.clone()],
                identity_file: None,
                proxy_command: self.proxy_command(instance, &whereabouts.host),
                inner: whereabouts.inner,
                host: whereabouts.host,
            },
        })
    }

    fn proxy_command(&self, instance: &str, host: &str) -> Option<String> {
        match &self.spec.reach {
            Reach::Public | Reach::Private => None,
            Reach::Proxy(command) => Some(fill_in(command, instance, host)),
        }
    }

    /// Starts an instance of this pool that was put aside, if there is one that can be.
    async fn wake(&self, order: &LaunchOrder<'_>) -> Option<Launched> {
        while let Some((record, flight)) = self.estate.take_shelved(self.name.as_str()) {
            let id = record.instance()?.to_owned();
            (order.progress)(&format!("starts {id}, which was put aside"));
            let started = match self.estate.client_of(&record.site).await {
                Ok(api) => only(api.start(std::slice::from_ref(&id)).await),
                Err(error) => Err(error),
            };
            let reached = match started {
                Ok(()) => self.estate.address_of(&id, &self.spec.reach).await,
                Err(error) => Err(error.to_string()),
            };
            drop(flight);
            match reached {
                Ok(whereabouts) => {
                    let record = self.estate.with_records(|records| records.of_instance(&id).cloned());
                    if let Some(launched) = record.and_then(|record| self.launched(&record, whereabouts)) {
                        return Some(launched);
                    }
                }
                Err(reason) => {
                    tracing::warn!(instance = id, reason, "cannot start what was put aside; it is ended");
                    self.give_up(&id).await;
                }
            }
        }
        None
    }
}

/// What follows for the climb.
enum Lesson {
    /// Another rung may do.
    NextRung,
    /// No rung will.
    Stop(ProviderErrorKind),
}

fn summary(rung: &Rung) -> String {
    let market = match rung.market {
        crate::model::ec2::Market::OnDemand => "on-demand",
        crate::model::ec2::Market::Spot => "spot",
    };
    format!("{} in {} ({market}, {})", rung.instance_type.name, rung.zone, rung.rate)
}

/// `%h`, `%i` and `%p` in a proxy command. What EC2 calls an instance and its address goes into a shell, so it is only
/// what such names are made of.
fn fill_in(command: &str, instance: &str, host: &str) -> String {
    let plain = |text: &str| -> String {
        text.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-')).collect()
    };
    command.replace("%h", &plain(host)).replace("%i", &plain(instance)).replace("%p", &SSH_PORT.to_string())
}

fn journal(error: AttemptError) -> ProviderError {
    match error {
        AttemptError::Journal(source) => ProviderError {
            kind: ProviderErrorKind::Config,
            reason: "cannot write down a launch, so none is made: is the state directory full or read-only?"
                .to_owned(),
            source: Some(source),
        },
        AttemptError::UserData(_)
        | AttemptError::HostKey(_)
        | AttemptError::Refused(_)
        | AttemptError::Unclear(_) => ProviderError::new(ProviderErrorKind::Config, error.to_string()),
    }
}

/// What to say when every rung was refused: each different reason once.
fn nothing_left(refusals: &[ApiError]) -> String {
    let mut reasons: Vec<String> = Vec::new();
    for refusal in refusals {
        let reason = refusal.to_string();
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    format!("EC2 refused {} launches: {}", refusals.len(), reasons.join("; "))
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
