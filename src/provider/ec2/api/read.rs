//! The SDK's nouns, where every field may be missing, as ours, where what we need is there.
//!
//! Owns the reading of instances, and what lists have in common: filters, pages, tags. An answer without its id is
//! dropped: there is nothing that could be done with it.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::future::Future;

use aws_sdk_ec2::config::http::HttpResponse;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::types::{Filter, Instance, InstanceLifecycleType, Tag};

use super::client::{Api, Call};
use super::error::{ApiError, ErrorClass};
use crate::model::ec2::Market;

/// More pages than any account has of anything; a server that never stops must not fill our memory.
const MAX_PAGES: usize = 100;

/// An instance as EC2 describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// `i-...`
    pub id: String,
    /// Where in its life it is.
    pub state: InstanceState,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// `c6a.4xlarge`
    pub instance_type: String,
    /// `eu-central-1b`
    pub zone: String,
    /// How it was bought.
    pub market: Market,
    /// Its address inside.
    pub private_ip: Option<String>,
    /// Its address outside.
    pub public_ip: Option<String>,
    /// Seconds since 1970; of the last start, if it was stopped in between.
    pub launch_time: i64,
    /// Why it is in this state, in EC2's words (`Server.SpotInstanceTermination: ...`).
    pub state_reason: Option<String>,
    /// `vpc-...`
    pub vpc: Option<String>,
    /// `subnet-...`
    pub subnet: String,
    /// `ami-...`
    pub image: String,
    /// The token it was launched with.
    pub client_token: Option<String>,
}

/// Where in its life an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InstanceState {
    /// On its way up.
    Pending,
    /// Up, as far as EC2 can see.
    Running,
    /// On its way to being terminated.
    ShuttingDown,
    /// Gone for good.
    Terminated,
    /// On its way down, to be started again.
    Stopping,
    /// Down; its volumes are there and cost.
    Stopped,
}

impl InstanceState {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Running, Self::ShuttingDown, Self::Terminated, Self::Stopping, Self::Stopped];

    /// EC2's name of it, as filters take it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::ShuttingDown => "shutting-down",
            Self::Terminated => "terminated",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }

    /// Whether anything of it is left that could go on costing.
    pub fn is_gone(self) -> bool {
        match self {
            Self::Terminated => true,
            Self::Pending | Self::Running | Self::ShuttingDown | Self::Stopping | Self::Stopped => false,
        }
    }
}

/// An SDK instance as we see it.
pub(super) fn instance(instance: &Instance) -> Option<Observed> {
    let named = instance.state().and_then(|state| state.name()).map(|name| name.as_str());
    let state = InstanceState::ALL.into_iter().find(|state| Some(state.name()) == named);
    let reason = instance.state_reason().map(|reason| {
        let (code, words) = (reason.code().unwrap_or_default(), reason.message().unwrap_or_default());
        if words.starts_with(code) { words.to_owned() } else { format!("{code}: {words}") }
    });
    let transition = instance.state_transition_reason().map(str::to_owned);
    Some(Observed {
        id: instance.instance_id()?.to_owned(),
        // A state that does not exist yet is surely one in which the instance may cost.
        state: state.unwrap_or(InstanceState::Pending),
        tags: tags(instance.tags()),
        instance_type: instance.instance_type().map(|name| name.as_str().to_owned()).unwrap_or_default(),
        zone: instance.placement().and_then(|place| place.availability_zone()).unwrap_or_default().to_owned(),
        market: match instance.instance_lifecycle() {
            Some(InstanceLifecycleType::Spot) => Market::Spot,
            Some(_) | None => Market::OnDemand,
        },
        private_ip: instance.private_ip_address().map(str::to_owned),
        public_ip: instance.public_ip_address().filter(|address| !address.is_empty()).map(str::to_owned),
        launch_time: instance.launch_time().map_or(0, |time| time.secs()),
        state_reason: reason.or(transition).filter(|reason| !reason.trim().is_empty()),
        vpc: instance.vpc_id().filter(|vpc| !vpc.is_empty()).map(str::to_owned),
        subnet: instance.subnet_id().unwrap_or_default().to_owned(),
        image: instance.image_id().unwrap_or_default().to_owned(),
        client_token: instance.client_token().filter(|token| !token.is_empty()).map(str::to_owned),
    })
}

/// Tags as a map.
pub(super) fn tags(tags: &[Tag]) -> BTreeMap<String, String> {
    let pair = |tag: &Tag| Some((tag.key()?.to_owned(), tag.value().unwrap_or_default().to_owned()));
    tags.iter().filter_map(pair).collect()
}

/// Filters as the SDK takes them.
pub(super) fn filters(filters: &[(&str, &[String])]) -> Vec<Filter> {
    let one = |(name, values): &(&str, &[String])| {
        Filter::builder().name(*name).set_values(Some(values.to_vec())).build()
    };
    filters.iter().map(one).collect()
}

impl Api {
    /// Every page of a list.
    pub(super) async fn pages<T, O, E, F, R>(
        &self,
        call: &Call<'_>,
        send: F,
        read: impl Fn(&O) -> (Vec<T>, Option<String>),
    ) -> Result<Vec<T>, ApiError>
    where
        F: Fn(Option<String>) -> R,
        R: Future<Output = Result<O, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        let (mut all, mut next) = (Vec::new(), None);
        for _ in 0..MAX_PAGES {
            let page = self.call(call, || send(next.clone())).await?;
            let (mut found, token) = read(&page);
            all.append(&mut found);
            next = token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(all);
            }
        }
        Err(ApiError {
            class: ErrorClass::Unknown,
            ..ApiError::config(
                call.action.name(),
                self.region(),
                format!("there are more than {MAX_PAGES} pages"),
            )
        })
    }
}
