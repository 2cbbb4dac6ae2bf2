//! The life of instances as requests: run, observe, tag, stop, start, terminate.
//!
//! Owns what each of those requests says and how its answer is read. When to make them is the provider's decision.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::types::{
    BlockDeviceMapping, CpuOptionsRequest, EbsBlockDevice, HibernationOptionsRequest, HttpTokensState,
    InstanceInterruptionBehavior, InstanceMarketOptionsRequest, InstanceMetadataEndpointState,
    InstanceMetadataOptionsRequest, InstanceNetworkInterfaceSpecification, InstanceType, MarketType,
    NestedVirtualizationSpecification, ResourceType, ShutdownBehavior, SpotInstanceType, SpotMarketOptions,
    Tag, TagSpecification, VolumeType,
};

use super::action::Action;
use super::client::{Api, Call, Repeat};
use super::encode::{base64, from_base64};
use super::error::{ApiError, ErrorClass};
use super::order::RunOrder;
use super::read::{self, Observed};
use crate::model::ec2::Market;

/// Ids in one request; EC2 takes a thousand, and refuses them all for one that it does not know.
const MAX_IDS: usize = 100;
/// How much of a console is worth reading.
const MAX_CONSOLE: usize = 64 * 1024;
/// Instances in one page.
const PAGE: i32 = 500;

/// What became of a request about one of several instances.
pub type PerInstance = BTreeMap<String, Result<(), ApiError>>;

/// A request about several instances.
#[derive(Clone, Copy)]
enum Change {
    Terminate,
    Stop { hibernate: bool },
    Start,
}

impl Change {
    fn action(self) -> Action {
        match self {
            Self::Terminate => Action::TerminateInstances,
            Self::Stop { .. } => Action::StopInstances,
            Self::Start => Action::StartInstances,
        }
    }
}

impl Api {
    /// Launches the instance of this order, or finds the one that an earlier request with the same order has launched.
    /// Sent again after an unclear answer: the token makes that safe.
    pub async fn run_instance(&self, order: &RunOrder) -> Result<Observed, ApiError> {
        let call =
            Call::new(Action::RunInstances).of(order.summary()).instance(&order.instance_type, order.market);
        if order.region != self.region() {
            let message = format!("the order is for {}", order.region);
            return Err(ApiError::config(call.action.name(), self.region(), message));
        }
        let output = self.call(&call, || self.run_request(order).send()).await?;
        let observed = output.instances().first().and_then(read::instance);
        observed.ok_or_else(|| ApiError {
            class: ErrorClass::Unknown,
            may_have_acted: true,
            ..ApiError::config(call.action.name(), self.region(), "the answer names no instance")
        })
    }

    pub(super) fn run_request(
        &self,
        order: &RunOrder,
    ) -> aws_sdk_ec2::operation::run_instances::builders::RunInstancesFluentBuilder {
        let spot = order.market == Market::Spot;
        let interface = InstanceNetworkInterfaceSpecification::builder()
            .device_index(0)
            .subnet_id(&order.subnet)
            .set_groups(Some(order.security_groups.clone()))
            .associate_public_ip_address(order.public_ip)
            .delete_on_termination(true)
            .set_private_ip_address(order.private_ip.clone())
            .build();
        let metadata = InstanceMetadataOptionsRequest::builder()
            .http_endpoint(InstanceMetadataEndpointState::Enabled)
            .http_tokens(HttpTokensState::Required)
            .http_put_response_hop_limit(1)
            .build();
        let cpu = order.nested_virt.then(|| {
            CpuOptionsRequest::builder()
                .nested_virtualization(NestedVirtualizationSpecification::Enabled)
                .build()
        });
        let hibernation =
            order.hibernation.then(|| HibernationOptionsRequest::builder().configured(true).build());
        let bid = spot.then(|| {
            let options = SpotMarketOptions::builder()
                .spot_instance_type(SpotInstanceType::OneTime)
                .instance_interruption_behavior(InstanceInterruptionBehavior::Terminate)
                .set_max_price(order.max_price.map(|rate| decimal(rate.0.micros())))
                .build();
            InstanceMarketOptionsRequest::builder()
                .market_type(MarketType::Spot)
                .spot_options(options)
                .build()
        });
        let mut tagged = vec![ResourceType::Instance, ResourceType::Volume, ResourceType::NetworkInterface];
        if spot {
            tagged.push(ResourceType::SpotInstancesRequest);
        }
        self.client()
            .run_instances()
            .client_token(&order.client_token)
            .image_id(&order.image)
            .instance_type(InstanceType::from(order.instance_type.as_str()))
            .min_count(1)
            .max_count(1)
            .network_interfaces(interface)
            .user_data(base64(order.user_data.as_bytes()))
            .set_block_device_mappings(Some(devices(order)))
            .metadata_options(metadata)
            .set_cpu_options(cpu)
            .set_hibernation_options(hibernation)
            .set_instance_market_options(bid)
            .instance_initiated_shutdown_behavior(ShutdownBehavior::Terminate)
            .set_tag_specifications(Some(
                tagged.into_iter().map(|resource| tags_on(resource, &order.tags)).collect(),
            ))
    }

    /// The instances that match every one of these filters (`tag:Name`, `instance-state-name`, ...), terminated ones
    /// included while EC2 shows them.
    pub async fn instances(&self, filters: &[(&str, &[String])]) -> Result<Vec<Observed>, ApiError> {
        let call = Call::new(Action::DescribeInstances);
        let filters = read::filters(filters);
        let send = |next: Option<String>| {
            let request = self.client().describe_instances();
            request.set_filters(Some(filters.clone())).max_results(PAGE).set_next_token(next).send()
        };
        self.pages(&call, send, |output| {
            let reservations = output.reservations().iter();
            let instances = reservations.flat_map(|reservation| reservation.instances());
            (instances.filter_map(read::instance).collect(), output.next_token().map(str::to_owned))
        })
        .await
    }

    /// Ends these for good; ending what has ended already succeeds. Answers for each: one id that EC2 does not know
    /// does not save the others.
    pub async fn terminate(&self, ids: &[String]) -> PerInstance {
        self.change(Change::Terminate, ids).await
    }

    /// Stops these, with their memory on disk if it says so.
    pub async fn stop(&self, ids: &[String], hibernate: bool) -> PerInstance {
        self.change(Change::Stop { hibernate }, ids).await
    }

    /// Starts these, which were stopped. The error of a single one has its class: a lack of capacity is common.
    pub async fn start(&self, ids: &[String]) -> PerInstance {
        self.change(Change::Start, ids).await
    }

    async fn change(&self, change: Change, ids: &[String]) -> PerInstance {
        let ids: Vec<String> = ids.iter().collect::<BTreeSet<_>>().into_iter().cloned().collect();
        let mut answers = PerInstance::new();
        for batch in ids.chunks(MAX_IDS) {
            match self.change_together(change, batch).await {
                Ok(()) => answers.extend(batch.iter().map(|id| (id.clone(), Ok(())))),
                // One id spoils the whole request: each for itself says which. Where everybody is refused for the same
                // reason, asking a hundred times more helps nobody.
                Err(error) if batch.len() > 1 && blames_one(error.class) => {
                    for id in batch {
                        let answer = self.change_together(change, std::slice::from_ref(id)).await;
                        answers.insert(id.clone(), answer);
                    }
                }
                Err(error) => answers.extend(batch.iter().map(|id| (id.clone(), Err(error.clone())))),
            }
        }
        answers
    }

    async fn change_together(&self, change: Change, ids: &[String]) -> Result<(), ApiError> {
        let subject = match ids {
            [one] => one.clone(),
            many => format!("{} instances", many.len()),
        };
        let call = Call::new(change.action()).of(subject);
        let ids = Some(ids.to_vec());
        let client = self.client();
        match change {
            Change::Terminate => {
                let send = || client.terminate_instances().set_instance_ids(ids.clone()).send();
                self.call(&call, send).await.map(|_| ())
            }
            Change::Stop { hibernate } => {
                let send =
                    || client.stop_instances().set_instance_ids(ids.clone()).hibernate(hibernate).send();
                self.call(&call, send).await.map(|_| ())
            }
            Change::Start => {
                let send = || client.start_instances().set_instance_ids(ids.clone()).send();
                self.call(&call, send).await.map(|_| ())
            }
        }
    }

    /// Sets these tags on resources of any kind, over what is there under the same keys.
    pub async fn tag(&self, ids: &[String], tags: &[(&str, &str)]) -> Result<(), ApiError> {
        let call = Call::new(Action::CreateTags).of(ids.join(", "));
        let tags: Vec<Tag> = tags.iter().map(|(key, value)| tag(key, value)).collect();
        let send = || {
            let request = self.client().create_tags();
            request.set_resources(Some(ids.to_vec())).set_tags(Some(tags.clone())).send()
        };
        self.call(&call, send).await.map(|_| ())
    }

    /// Closes the metadata service of an instance, for good.
    pub async fn close_metadata(&self, id: &str) -> Result<(), ApiError> {
        let call = Call::new(Action::ModifyInstanceMetadataOptions).of(id);
        let send = || {
            let request = self.client().modify_instance_metadata_options();
            request.instance_id(id).http_endpoint(InstanceMetadataEndpointState::Disabled).send()
        };
        self.call(&call, send).await.map(|_| ())
    }

    /// The last of what an instance has written to its console; nothing yet is `None`.
    pub async fn console_output(&self, id: &str) -> Result<Option<String>, ApiError> {
        // Of all actions this has the smallest bucket, and nothing depends on it.
        let call = Call::new(Action::GetConsoleOutput).of(id).repeat(Repeat::Undone);
        let send = |latest: bool| {
            self.client().get_console_output().instance_id(id).set_latest(latest.then_some(true)).send()
        };
        let output = match self.call(&call, || send(true)).await {
            // Only Nitro instances have a console to look at; the others have what was kept of it.
            Err(error) if error.code.as_deref() == Some("UnsupportedOperation") => {
                self.call(&call, || send(false)).await?
            }
            other => other?,
        };
        Ok(output.output().and_then(from_base64).filter(|bytes| !bytes.is_empty()).map(|bytes| {
            let tail = &bytes[bytes.len().saturating_sub(MAX_CONSOLE)..];
            String::from_utf8_lossy(tail).into_owned()
        }))
    }
}

/// Whether a refusal may be about one of the ids only.
fn blames_one(class: ErrorClass) -> bool {
    match class {
        ErrorClass::NotFound
        | ErrorClass::Busy
        | ErrorClass::Config
        | ErrorClass::Capacity
        | ErrorClass::Unknown
        // Permissions may depend on the tags of each.
        | ErrorClass::Identity => true,
        ErrorClass::Quota(_)
        | ErrorClass::Subnet
        | ErrorClass::SpotRole
        | ErrorClass::Throttle
        | ErrorClass::Transient
        | ErrorClass::Idempotency => false,
    }
}

/// The root volume, and the instance store where it has to be asked for.
fn devices(order: &RunOrder) -> Vec<BlockDeviceMapping> {
    let whole = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
    let root = EbsBlockDevice::builder()
        .volume_type(VolumeType::Gp3)
        .volume_size(whole(order.disk.size))
        .throughput(whole(order.disk.throughput))
        .iops(whole(order.disk.iops))
        .encrypted(true)
        .delete_on_termination(true)
        .build();
    let store = ('b'..='y').zip(0..order.instance_store).map(|(letter, number)| {
        BlockDeviceMapping::builder()
            .device_name(format!("/dev/sd{letter}"))
            .virtual_name(format!("ephemeral{number}"))
            .build()
    });
    let root = BlockDeviceMapping::builder().device_name(&order.root_device).ebs(root).build();
    std::iter::once(root).chain(store).collect()
}

fn tag(key: &str, value: &str) -> Tag {
    Tag::builder().key(key).value(value).build()
}

/// These tags on what is made of this kind.
pub(super) fn tags_on(resource: ResourceType, tags: &BTreeMap<String, String>) -> TagSpecification {
    let tags = tags.iter().map(|(key, value)| tag(key, value)).collect();
    TagSpecification::builder().resource_type(resource).set_tags(Some(tags)).build()
}

/// Dollars as EC2 reads them: all digits, no sign.
fn decimal(micros: u64) -> String {
    format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}
