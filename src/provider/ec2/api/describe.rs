//! What there is to choose from: images, instance types, where they are offered, and for how much.
//!
//! Owns those lists as EC2 gives them. Ranking them is the business of the choice modules.

use aws_sdk_ec2::primitives::DateTime;
use aws_sdk_ec2::types::{
    ArchitectureType, Image as SdkImage, ImageState, ImdsSupportValues, InstanceType, InstanceTypeInfo,
    LocationType, SpotPrice, SupportedAdditionalProcessorFeature,
};

use super::action::Action;
use super::client::{Api, Call};
use super::error::ApiError;
use super::read;
use crate::model::{HourlyRate, Usd};

/// As many types as one request may name.
const MAX_TYPES: usize = 100;
/// Entries in one page where the size is ours to choose.
const PAGE: i32 = 1000;

/// An AMI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// `ami-...`
    pub id: String,
    /// `nixos/26.05...`
    pub name: String,
    /// ISO 8601, so that the text sorts as the time does.
    pub creation_date: String,
    /// `x86_64` or `arm64`.
    pub arch: String,
    /// `/dev/xvda`
    pub root_device: String,
    /// Whether instances can be made of it now.
    pub is_available: bool,
    /// It says that it works with IMDSv2 alone.
    pub imds_v2: bool,
    /// GiB that its root volume must have at least; 0 if it does not say.
    pub root_size: u32,
}

/// An instance type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeFacts {
    /// `c6a.4xlarge`
    pub name: String,
    /// Processors as it counts them.
    pub vcpus: u32,
    /// Physical cores.
    pub cores: u32,
    /// Memory.
    pub memory_mib: u64,
    /// `x86_64`, `arm64`; a type may have several.
    pub arch: Vec<String>,
    /// Its processors can run virtual machines, without being bare metal.
    pub nested_virt: bool,
    /// It is a whole machine.
    pub bare_metal: bool,
    /// It can be hibernated.
    pub hibernation: bool,
    /// Instance store on NVMe, in GB; 0 is none.
    pub nvme_gb: u64,
    /// It can be bought as spot.
    pub spot: bool,
}

/// What a spot instance costs now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpotOffer {
    /// `eu-central-1b`
    pub zone: String,
    /// `c6a.4xlarge`
    pub instance_type: String,
    /// The current price.
    pub price: HourlyRate,
}

impl Api {
    /// The owner's available images of this name (`*` is the wildcard) for this architecture (`x86_64`, `arm64`).
    pub async fn images(&self, owner: &str, name: &str, arch: &str) -> Result<Vec<Image>, ApiError> {
        let call = Call::new(Action::DescribeImages).of(format!("{name} ({arch}) by {owner}"));
        let filters = read::filters(&[
            ("name", &[name.to_owned()]),
            ("architecture", &[arch.to_owned()]),
            ("state", &["available".to_owned()]),
        ]);
        let send = |next: Option<String>| {
            let request = self.client().describe_images().owners(owner).set_filters(Some(filters.clone()));
            request.max_results(PAGE).set_next_token(next).send()
        };
        self.pages(&call, send, |output| {
            let images = output.images().iter().filter_map(image).collect();
            (images, output.next_token().map(str::to_owned))
        })
        .await
    }

    /// The available images of this account for this architecture that carry these tags.
    pub async fn tagged_images(&self, tags: &[(&str, &str)], arch: &str) -> Result<Vec<Image>, ApiError> {
        let call = Call::new(Action::DescribeImages).of(format!("this account ({arch})"));
        let tags: Vec<(String, Vec<String>)> =
            tags.iter().map(|(key, value)| (format!("tag:{key}"), vec![(*value).to_owned()])).collect();
        let (arch, state) = ([arch.to_owned()], ["available".to_owned()]);
        let mut filters = vec![("architecture", &arch[..]), ("state", &state[..])];
        filters.extend(tags.iter().map(|(key, values)| (key.as_str(), values.as_slice())));
        let filters = read::filters(&filters);
        let send = |next: Option<String>| {
            let request = self.client().describe_images().owners("self").set_filters(Some(filters.clone()));
            request.max_results(PAGE).set_next_token(next).send()
        };
        self.pages(&call, send, |output| {
            let images = output.images().iter().filter_map(image).collect();
            (images, output.next_token().map(str::to_owned))
        })
        .await
    }

    /// This image; an error of class `Config` with `is_image_gone` if there is none.
    pub async fn image(&self, id: &str) -> Result<Image, ApiError> {
        let call = Call::new(Action::DescribeImages).of(id);
        let output = self.call(&call, || self.client().describe_images().image_ids(id).send()).await?;
        output.images().iter().find_map(image).ok_or_else(|| ApiError {
            code: Some("InvalidAMIID.NotFound".into()),
            ..ApiError::config(call.action.name(), self.region(), format!("there is no image {id}"))
        })
    }

    /// What these types are (`c6a.*` is allowed). A name that EC2 does not know is an error; empty is nothing.
    pub async fn type_facts(&self, types: &[String]) -> Result<Vec<TypeFacts>, ApiError> {
        let mut all = Vec::new();
        let (patterns, names): (Vec<_>, Vec<_>) = types.iter().cloned().partition(|name| name.contains('*'));
        // Names go by name, so that an unknown one is told; patterns only work as a filter, and match what there is.
        for batch in names.chunks(MAX_TYPES) {
            all.append(&mut self.type_pages(batch, None).await?);
        }
        for batch in patterns.chunks(MAX_TYPES) {
            all.append(&mut self.type_pages(&[], Some(batch)).await?);
        }
        Ok(all)
    }

    async fn type_pages(
        &self,
        names: &[String],
        patterns: Option<&[String]>,
    ) -> Result<Vec<TypeFacts>, ApiError> {
        let subject = if names.len() <= 4 { names.join(", ") } else { format!("{} types", names.len()) };
        let call = Call::new(Action::DescribeInstanceTypes).of(subject);
        let names: Vec<_> = names.iter().map(|name| InstanceType::from(name.as_str())).collect();
        let filters = patterns.map(|patterns| read::filters(&[("instance-type", patterns)]));
        let send = |next: Option<String>| {
            let request = self.client().describe_instance_types().set_filters(filters.clone());
            // A page size and a list of names exclude each other.
            let names = (!names.is_empty()).then(|| names.clone());
            let size = names.is_none().then_some(100);
            request.set_instance_types(names).set_max_results(size).set_next_token(next).send()
        };
        self.pages(&call, send, |output| {
            let types = output.instance_types().iter().filter_map(type_facts).collect();
            (types, output.next_token().map(str::to_owned))
        })
        .await
    }

    /// In which zone which of these types is offered: zone, type.
    pub async fn offerings(&self, types: &[String]) -> Result<Vec<(String, String)>, ApiError> {
        let call = Call::new(Action::DescribeInstanceTypeOfferings);
        let mut all = Vec::new();
        for batch in types.chunks(MAX_TYPES) {
            let filters = read::filters(&[("instance-type", batch)]);
            let send = |next: Option<String>| {
                let request = self.client().describe_instance_type_offerings();
                let request = request.location_type(LocationType::AvailabilityZone);
                request.set_filters(Some(filters.clone())).max_results(PAGE).set_next_token(next).send()
            };
            let read = |output: &aws_sdk_ec2::operation::describe_instance_type_offerings::DescribeInstanceTypeOfferingsOutput| {
                let offers = output.instance_type_offerings().iter();
                let pairs = offers.filter_map(|offer| {
                    Some((offer.location()?.to_owned(), offer.instance_type()?.as_str().to_owned()))
                });
                (pairs.collect(), output.next_token().map(str::to_owned))
            };
            all.append(&mut self.pages(&call, send, read).await?);
        }
        Ok(all)
    }

    /// What spot instances of these types cost at this time (seconds since 1970) for Linux.
    pub async fn spot_prices(&self, types: &[String], now: i64) -> Result<Vec<SpotOffer>, ApiError> {
        let call = Call::new(Action::DescribeSpotPriceHistory);
        let mut newest: std::collections::BTreeMap<(String, String), (i64, HourlyRate)> = Default::default();
        for batch in types.chunks(MAX_TYPES) {
            let batch: Vec<_> = batch.iter().map(|name| InstanceType::from(name.as_str())).collect();
            let send = |next: Option<String>| {
                let request = self.client().describe_spot_price_history();
                // From now on means the price in force at this moment, one entry for each zone and type.
                let request = request.start_time(DateTime::from_secs(now)).product_descriptions("Linux/UNIX");
                let request = request.set_instance_types(Some(batch.clone()));
                request.max_results(PAGE).set_next_token(next).send()
            };
            let read = |output: &aws_sdk_ec2::operation::describe_spot_price_history::DescribeSpotPriceHistoryOutput| {
                let prices = output.spot_price_history().iter().filter_map(spot_price);
                (prices.collect(), output.next_token().map(str::to_owned))
            };
            for (at, offer) in self.pages(&call, send, read).await? {
                let entry = newest.entry((offer.zone, offer.instance_type)).or_insert((at, offer.price));
                if at >= entry.0 {
                    *entry = (at, offer.price);
                }
            }
        }
        let offer = |((zone, instance_type), (_, price))| SpotOffer { zone, instance_type, price };
        Ok(newest.into_iter().map(offer).collect())
    }
}

fn image(image: &SdkImage) -> Option<Image> {
    let root = image.root_device_name().unwrap_or("/dev/xvda");
    let size = image.block_device_mappings().iter().find(|mapping| mapping.device_name() == Some(root));
    let size = size.and_then(|mapping| mapping.ebs()?.volume_size());
    Some(Image {
        id: image.image_id()?.to_owned(),
        name: image.name().unwrap_or_default().to_owned(),
        creation_date: image.creation_date().unwrap_or_default().to_owned(),
        arch: image.architecture().map(|arch| arch.as_str().to_owned()).unwrap_or_default(),
        root_device: root.to_owned(),
        is_available: image.state() == Some(&ImageState::Available),
        imds_v2: image.imds_support() == Some(&ImdsSupportValues::V20),
        root_size: size.and_then(|size| u32::try_from(size).ok()).unwrap_or(0),
    })
}

fn type_facts(info: &InstanceTypeInfo) -> Option<TypeFacts> {
    let count = |number: Option<i32>| number.and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
    let processor = info.processor_info();
    let nested = SupportedAdditionalProcessorFeature::NestedVirtualization;
    let disk = info.instance_storage_info().and_then(|storage| storage.total_size_in_gb());
    Some(TypeFacts {
        name: info.instance_type()?.as_str().to_owned(),
        vcpus: count(info.v_cpu_info().and_then(|cpu| cpu.default_v_cpus())),
        cores: count(info.v_cpu_info().and_then(|cpu| cpu.default_cores())),
        memory_mib: info
            .memory_info()
            .and_then(|memory| u64::try_from(memory.size_in_mib()?).ok())
            .unwrap_or(0),
        arch: processor
            .map(|processor| processor.supported_architectures().iter())
            .into_iter()
            .flatten()
            .map(ArchitectureType::as_str)
            .map(str::to_owned)
            .collect(),
        nested_virt: processor.is_some_and(|processor| processor.supported_features().contains(&nested)),
        bare_metal: info.bare_metal() == Some(true),
        hibernation: info.hibernation_supported() == Some(true),
        nvme_gb: disk.and_then(|size| u64::try_from(size).ok()).unwrap_or(0),
        spot: info.supported_usage_classes().iter().any(|class| class.as_str() == "spot"),
    })
}

fn spot_price(price: &SpotPrice) -> Option<(i64, SpotOffer)> {
    let offer = SpotOffer {
        zone: price.availability_zone()?.to_owned(),
        instance_type: price.instance_type()?.as_str().to_owned(),
        price: HourlyRate(Usd::parse(price.spot_price()?)?),
    };
    Some((price.timestamp().map_or(0, |time| time.secs()), offer))
}
