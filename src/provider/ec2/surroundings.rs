//! What must be known of a region before anything is launched there: images, types, zones, subnets, spot prices.
//!
//! Asked when it is needed and believed for a while, since none of it changes while a person waits. What is made of it
//! is decided in [`super::candidates`] and [`super::ladder`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::api::{Api, ApiError, ErrorClass, Image};
use super::boot::image::{self, ImageFact};
use super::candidates::{self, Verified, VerifiedType};
use super::estate::Estate;
use super::image::OURS;
use super::ladder;
use super::network;
use super::records::Site;
use crate::model::ec2::{ImageSpec, Market, Reach};
use crate::model::{Ec2Spec, HourlyRate, PoolSpec};
use crate::provider::{ProviderError, ProviderErrorKind};

/// Types, zones and images: new ones come by the week.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Subnets fill and networks are changed by people who then wait.
const MINUTES: Duration = Duration::from_secs(5 * 60);
/// Finding out this machine's address and telling the security group.
const ADMITTED_WITHIN: Duration = Duration::from_secs(15);

/// A subnet to launch in, and everything that is the same for all launches there.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) place: ladder::Place,
    pub(super) site: Site,
    pub(super) api: Api,
    pub(super) image: ImageFact,
    pub(super) groups: Vec<String>,
}

impl Place {
    pub(super) fn subnet(&self) -> &str {
        &self.place.subnet
    }
}

/// Everything that a choice is made from.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) verified: Verified,
    pub(super) places: Vec<Place>,
    pub(super) spot_prices: BTreeMap<(String, String), HourlyRate>,
}

/// What is known of the regions of one pool.
#[derive(Debug)]
pub(super) struct Surroundings {
    estate: Arc<Estate>,
    regions: Mutex<BTreeMap<Site, Region>>,
}

#[derive(Debug, Default)]
struct Region {
    types: Believed<BTreeMap<String, VerifiedType>>,
    offered: Believed<BTreeMap<String, BTreeSet<String>>>,
    image: Believed<ImageFact>,
    network: Believed<network::Network>,
    spot_prices: Believed<BTreeMap<(String, String), HourlyRate>>,
}

/// An answer, and until when it is believed.
#[derive(Debug)]
struct Believed<T>(Option<(T, Instant)>);

impl<T> Default for Believed<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Clone> Believed<T> {
    fn get(&self) -> Option<T> {
        self.0.as_ref().filter(|(_, until)| *until > Instant::now()).map(|(value, _)| value.clone())
    }

    fn put(&mut self, value: T, believed: Duration) -> T {
        self.0 = Some((value.clone(), Instant::now() + believed));
        value
    }
}

impl Surroundings {
    pub(super) fn new(estate: Arc<Estate>) -> Self {
        Self { estate, regions: Mutex::default() }
    }

    /// The image that a launch named is gone: the next look asks again.
    pub(super) async fn forget_image(&self, site: &Site) {
        if let Some(region) = self.regions.lock().await.get_mut(site) {
            region.image = Believed::default();
        }
    }

    /// Looks at every region of the pool. One that cannot be seen is left out, unless none is left.
    pub(super) async fn look(&self, pool: &PoolSpec, spec: &Ec2Spec) -> Result<View, ProviderError> {
        let mut regions: Vec<Option<&str>> =
            spec.regions.iter().map(|region| Some(region.as_str())).collect();
        if regions.is_empty() {
            regions.push(None);
        }
        let wanted = candidates::type_names(spec, &pool.offer)
            .map_err(|error| ProviderError::new(ProviderErrorKind::Config, error.to_string()))?;
        let (mut view, mut refusal) = (View::default(), None);
        for region in regions {
            let seen = match self.estate.client(spec.profile.as_deref(), region).await {
                Ok(api) => self.look_at(&mut view, api, pool, spec, &wanted).await,
                Err(error) => Err(refused(&error)),
            };
            if let Err(error) = seen {
                tracing::warn!(pool = %pool.name, region, %error, "a region cannot be used");
                refusal.get_or_insert(error);
            }
        }
        match refusal {
            Some(refusal) if view.places.is_empty() => Err(refusal),
            Some(_) | None => Ok(view),
        }
    }

    async fn look_at(
        &self,
        view: &mut View,
        api: Api,
        pool: &PoolSpec,
        spec: &Ec2Spec,
        wanted: &[String],
    ) -> Result<(), ProviderError> {
        let site = Site { profile: spec.profile.clone(), region: api.region().to_owned() };
        let mut regions = self.regions.lock().await;
        let region = regions.entry(site.clone()).or_default();
        let broker = self.estate.broker();
        let (types, offered, image, network, spot_prices) = tokio::join!(
            types(&mut region.types, &api, wanted),
            offered(&mut region.offered, &api, wanted),
            image(&mut region.image, &api, spec, pool),
            network(&mut region.network, &api, pool, spec, &broker),
            spot_prices(&mut region.spot_prices, &api, spec, wanted, self.estate.now()),
        );
        let (image, network, offered) = (image?, network?, offered?);
        view.verified.types.extend(types?);
        view.spot_prices.extend(spot_prices);
        for subnet in network.subnets {
            let place = ladder::Place {
                region: site.region.clone(),
                offered: offered.get(&subnet.zone).cloned().unwrap_or_default(),
                zone: subnet.zone,
                subnet: subnet.id,
            };
            view.places.push(Place {
                place,
                site: site.clone(),
                api: api.clone(),
                image: image.clone(),
                groups: network.groups.clone(),
            });
        }
        Ok(())
    }
}

async fn types(
    known: &mut Believed<BTreeMap<String, VerifiedType>>,
    api: &Api,
    wanted: &[String],
) -> Result<BTreeMap<String, VerifiedType>, ProviderError> {
    if let Some(types) = known.get() {
        return Ok(types);
    }
    let facts = api.type_facts(wanted).await.map_err(|error| refused(&error))?;
    let types = facts.into_iter().map(|fact| {
        let verified =
            VerifiedType { nested_virtualization: fact.nested_virt, hibernation: fact.hibernation };
        (fact.name, verified)
    });
    Ok(known.put(types.collect(), DAY))
}

async fn offered(
    known: &mut Believed<BTreeMap<String, BTreeSet<String>>>,
    api: &Api,
    wanted: &[String],
) -> Result<BTreeMap<String, BTreeSet<String>>, ProviderError> {
    if let Some(offered) = known.get() {
        return Ok(offered);
    }
    let mut offered: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (zone, name) in api.offerings(wanted).await.map_err(|error| refused(&error))? {
        offered.entry(zone).or_default().insert(name);
    }
    Ok(known.put(offered, DAY))
}

async fn image(
    known: &mut Believed<ImageFact>,
    api: &Api,
    spec: &Ec2Spec,
    pool: &PoolSpec,
) -> Result<ImageFact, ProviderError> {
    if let Some(image) = known.get() {
        return Ok(image);
    }
    let arch = pool.offer.systems.iter().find_map(|system| image::arch_of(system.as_str()));
    let config = |reason: String| ProviderError::new(ProviderErrorKind::Config, reason);
    let arch =
        arch.ok_or_else(|| config(format!("EC2 has no machine for the systems of pool `{}`", pool.name)))?;
    let found = match &spec.image {
        ImageSpec::Id(id) => {
            let image = api.image(id).await.map_err(|error| refused(&error))?;
            if image.arch != arch {
                let reason =
                    format!("image `{id}` is for {}, and pool `{}` needs {arch}", image.arch, pool.name);
                return Err(config(reason));
            }
            fact(image)
        }
        ImageSpec::Own => {
            let images = api.tagged_images(&OURS, arch).await.map_err(|error| refused(&error))?;
            let newest = images.into_iter().max_by(|a, b| a.creation_date.cmp(&b.creation_date));
            newest.map(fact).ok_or_else(|| {
                config(format!(
                    "this account has no image of `broker image upload` for {arch} in {}: upload or copy one there, or \
                     leave out `image = \"own\"` of pool `{}`",
                    api.region(),
                    pool.name
                ))
            })?
        }
        ImageSpec::Newest { owner, name } => {
            let images = api.images(owner, name, arch).await.map_err(|error| refused(&error))?;
            let images: Vec<_> = images.into_iter().map(fact).collect();
            let newest = image::newest(&images, name, arch).cloned();
            newest.ok_or_else(|| {
                config(format!(
                    "owner `{owner}` has no image `{name}` for {arch} in {}: set `image`, or `image-owner` and \
                     `image-name`, of pool `{}`",
                    api.region(),
                    pool.name
                ))
            })?
        }
    };
    Ok(known.put(found, DAY))
}

fn fact(image: Image) -> ImageFact {
    ImageFact {
        id: image.id,
        name: image.name,
        creation_date: image.creation_date,
        arch: image.arch,
        state: if image.is_available { "available" } else { "unavailable" }.to_owned(),
        root_device: image.root_device,
    }
}

async fn network(
    known: &mut Believed<network::Network>,
    api: &Api,
    pool: &PoolSpec,
    spec: &Ec2Spec,
    broker: &str,
) -> Result<network::Network, ProviderError> {
    if let Some(network) = known.get() {
        return Ok(network);
    }
    let found = network::find(api, spec).await.map_err(|error| match error {
        network::NetworkError::Api(error) => refused(&error),
        error @ (network::NetworkError::Nothing { .. }
        | network::NetworkError::Unknown(_)
        | network::NetworkError::Scattered(_)
        | network::NetworkError::Namesake(_)
        | network::NetworkError::NotMade
        | network::NetworkError::Report(_)) => {
            ProviderError::new(ProviderErrorKind::Config, crate::provider::chain(&error))
        }
    })?;
    if spec.reach == Reach::Public {
        let inside = if pool.direct { network::Inside::Members } else { network::Inside::Nobody };
        admit(api, &found, broker, inside).await;
    }
    Ok(known.put(found, MINUTES))
}

/// This machine's address may have changed since the network was made, and a group of an earlier version does not let its
/// members in. Where that cannot be found out or changed, a launch is made all the same: the groups may be a person's own.
async fn admit(api: &Api, network: &network::Network, broker: &str, inside: network::Inside) {
    let admitted = async {
        let address = network::public_address().await.inspect_err(|error| {
            let reason = crate::provider::chain(error);
            tracing::warn!(reason, "cannot see to it that the security group lets this machine in");
        });
        network::admit(api, &network.groups, broker, address.ok(), inside).await
    };
    match tokio::time::timeout(ADMITTED_WITHIN, admitted).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            let reason = crate::provider::chain(&error);
            tracing::warn!(reason, "cannot see to it that the security group lets in whom it should");
        }
        Err(_elapsed) => tracing::warn!("the security group was not looked at: no answer in time"),
    }
}

/// Nothing where they cannot be had: the ladder then goes by the table.
async fn spot_prices(
    known: &mut Believed<BTreeMap<(String, String), HourlyRate>>,
    api: &Api,
    spec: &Ec2Spec,
    wanted: &[String],
    now: u64,
) -> BTreeMap<(String, String), HourlyRate> {
    match spec.market {
        Market::OnDemand => return BTreeMap::new(),
        Market::Spot => {}
    }
    if let Some(prices) = known.get() {
        return prices;
    }
    match api.spot_prices(wanted, i64::try_from(now).unwrap_or(i64::MAX)).await {
        Ok(offers) => {
            let prices = offers.into_iter().map(|offer| ((offer.zone, offer.instance_type), offer.price));
            known.put(prices.collect(), MINUTES)
        }
        Err(error) => {
            tracing::warn!(%error, "spot prices are not known");
            BTreeMap::new()
        }
    }
}

/// A question that EC2 would not answer.
pub(super) fn refused(error: &ApiError) -> ProviderError {
    let kind = match error.class {
        ErrorClass::Identity => ProviderErrorKind::Refused,
        ErrorClass::Config | ErrorClass::NotFound => ProviderErrorKind::Config,
        ErrorClass::Capacity
        | ErrorClass::Quota(_)
        | ErrorClass::Subnet
        | ErrorClass::SpotRole
        | ErrorClass::Throttle
        | ErrorClass::Transient
        | ErrorClass::Busy
        | ErrorClass::Idempotency
        | ErrorClass::Unknown => ProviderErrorKind::Unknown,
    };
    ProviderError::new(kind, error.to_string())
}
