//! The connection to EC2 in one region: credentials, time limits, and which requests are sent again.
//!
//! Owns how a request goes out. The SDK's own retries are off, because they repeat what must not be repeated (a lack of
//! capacity is HTTP 500); what the requests say is in the modules beside this one.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_config::{AppName, BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::http::HttpResponse;
use aws_sdk_ec2::config::retry::RetryConfig;
use aws_sdk_ec2::config::timeout::TimeoutConfig;
use aws_sdk_ec2::config::{SharedHttpClient, StalledStreamProtectionConfig};
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use backon::Retryable;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until, timeout};

use super::action::Action;
use super::classify::Asked;
use super::error::{ApiError, ErrorClass};
use super::failure;
use super::wire::{Wire, WireClient};
use crate::model::ec2::Market;

/// EC2 takes a connection in milliseconds, or something is wrong.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// One request, from the first byte out to the last one in. RunInstances can take more than ten seconds.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
/// All attempts of one call with the waits between them.
const CALL_TIMEOUT: Duration = Duration::from_secs(100);
/// Credentials may come from a command, or from a service that is far away.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(30);
/// Attempts after the first.
const REPEATS: u32 = 4;
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// EC2 in one region, as one identity. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    /// The data of snapshots has a service of its own.
    ebs: aws_sdk_ebs::Client,
    scheduler: aws_sdk_scheduler::Client,
    region: String,
    profile: Option<String>,
    /// When an action that was throttled may be asked for again, whoever asks.
    pace: Mutex<BTreeMap<Action, Instant>>,
    jitter: Mutex<u64>,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api")
            .field("region", &self.shared.region)
            .field("profile", &self.shared.profile)
            .finish_non_exhaustive()
    }
}

/// One call, for the log and for the person who reads why it failed.
#[derive(Clone, Debug)]
pub(super) struct Call<'a> {
    pub(super) action: Action,
    pub(super) subject: String,
    pub(super) instance: Option<(&'a str, Market)>,
    pub(super) repeat: Repeat,
}

/// When a call may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// However the last one ended: doing it twice is doing it once.
    Always,
    /// Only when it surely was not done.
    Undone,
}

impl<'a> Call<'a> {
    /// A call that may be repeated.
    pub(super) fn new(action: Action) -> Self {
        Self { action, subject: String::new(), instance: None, repeat: Repeat::Always }
    }

    pub(super) fn of(self, subject: impl Into<String>) -> Self {
        Self { subject: subject.into(), ..self }
    }

    pub(super) fn instance(self, instance_type: &'a str, market: Market) -> Self {
        Self { instance: Some((instance_type, market)), ..self }
    }

    pub(super) fn repeat(self, repeat: Repeat) -> Self {
        Self { repeat, ..self }
    }
}

impl Api {
    /// EC2 as every AWS tool on this machine would reach it, unless a profile or a region is given: environment,
    /// profiles, SSO, `credential_process`, endpoints. Fetches the credentials once, so that a lack of them is known now.
    pub async fn connect(profile: Option<&str>, region: Option<&str>) -> Result<Self, ApiError> {
        const ACTION: &str = "Finding AWS credentials";
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts());
        if let Ok(name) = AppName::new("nix-broker") {
            loader = loader.app_name(name);
        }
        if let Some(profile) = profile {
            loader = loader.profile_name(profile);
        }
        if let Some(region) = region {
            loader = loader.region(Region::new(region.to_owned()));
        }
        let late = |_| ApiError {
            class: ErrorClass::Transient,
            ..ApiError::config(
                ACTION,
                region.unwrap_or_default(),
                "whatever gives them does not answer in time",
            )
        };
        let config = timeout(CREDENTIALS_TIMEOUT, loader.load()).await.map_err(late)?;
        let named = profile.map(str::to_owned).or_else(|| std::env::var("AWS_PROFILE").ok());
        let Some(region) = config.region().map(|region| region.as_ref().to_owned()) else {
            let source = named.map_or_else(String::new, |name| format!(" and profile `{name}` names none"));
            return Err(ApiError::config("Finding the AWS region", "", format!("no region is set{source}"))
                .with_advice(
                    "set `region` of the pool, AWS_REGION, or `region` of the profile in ~/.aws/config",
                ));
        };
        if !is_region(&region) {
            let message = format!("`{region}` is not the name of a region");
            return Err(ApiError::config("Finding the AWS region", "", message)
                .with_advice("regions look like `eu-central-1`"));
        }
        if let Some(provider) = config.credentials_provider() {
            match timeout(CREDENTIALS_TIMEOUT, provider.provide_credentials()).await.map_err(late)? {
                Ok(_) => {}
                Err(error) => {
                    let about = failure::about_credentials(&error, named.as_deref());
                    let mut failed = ApiError::config(ACTION, &region, about.message);
                    failed.class = about.class;
                    failed.words.advice = about.advice;
                    return Err(failed);
                }
            }
        }
        Ok(Self::build(config, region, named, RandomState::new().hash_one(0)))
    }

    /// EC2, or what claims to be it, at this URL, with credentials that it will not check.
    pub fn at_endpoint(url: &str, region: &str) -> Self {
        let config = SdkConfig::builder().endpoint_url(url).credentials_provider(nobody()).build();
        Self::build(config, region.to_owned(), None, RandomState::new().hash_one(0))
    }

    /// EC2 behind a function: no socket, so that time may be simulated. Waits are the same for the same seed.
    pub fn over(wire: Arc<dyn Wire>, region: &str, seed: u64) -> Self {
        let config = SdkConfig::builder()
            .http_client(SharedHttpClient::new(WireClient(wire)))
            .credentials_provider(nobody())
            .build();
        Self::build(config, region.to_owned(), None, seed)
    }

    fn build(config: SdkConfig, region: String, profile: Option<String>, seed: u64) -> Self {
        let config = config
            .into_builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new(region.clone()))
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts())
            // The time limit of an attempt covers its body too.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .build();
        let shared = Shared {
            client: Client::new(&config),
            ebs: aws_sdk_ebs::Client::new(&config),
            scheduler: aws_sdk_scheduler::Client::new(&config),
            region,
            profile,
            pace: Mutex::default(),
            jitter: Mutex::new(seed | 1),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The region this is about.
    pub fn region(&self) -> &str {
        &self.shared.region
    }

    pub(super) fn client(&self) -> &Client {
        &self.shared.client
    }

    /// The EBS direct APIs: the blocks of snapshots.
    pub(super) fn ebs_client(&self) -> &aws_sdk_ebs::Client {
        &self.shared.ebs
    }

    /// EventBridge Scheduler: what AWS does by itself, later.
    pub(super) fn scheduler_client(&self) -> &aws_sdk_scheduler::Client {
        &self.shared.scheduler
    }

    /// An answer without what was asked for: EC2 may have acted all the same.
    pub(super) fn incomplete(&self, call: &Call<'_>, message: &str) -> ApiError {
        ApiError {
            class: ErrorClass::Unknown,
            may_have_acted: true,
            ..ApiError::config(call.action.name(), self.region(), message).of(&call.subject)
        }
    }

    /// Sends a request, and again where its class and the call allow it.
    pub(super) async fn call<T, E, F, R>(&self, call: &Call<'_>, send: F) -> Result<T, ApiError>
    where
        F: Fn() -> R,
        R: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        // What one attempt may have done, no later refusal takes back; and while one is out, it may be doing it.
        let acted = AtomicBool::new(false);
        let attempt = || async {
            self.wait_for_turn(call.action).await;
            let before = acted.swap(true, Ordering::Relaxed);
            send().await.map_err(|error| {
                let mut error = failure::explain(&error, &self.asked(call), &call.subject);
                if error.class == ErrorClass::Throttle {
                    self.slow_down(call.action);
                }
                error.may_have_acted |= before;
                acted.store(error.may_have_acted, Ordering::Relaxed);
                error
            })
        };
        let again = |error: &ApiError| match call.repeat {
            Repeat::Always => error.class.is_repeated(),
            Repeat::Undone => error.class.is_repeated() && !error.may_have_acted,
        };
        let mut last = None;
        let calls = attempt
            .retry(self.waits())
            .when(again)
            .notify(|error: &ApiError, wait: Duration| {
                tracing::debug!(action = %call.action, region = self.region(), ?wait, %error, "EC2 is asked again");
                last = Some(error.clone());
            });
        match timeout(CALL_TIMEOUT, calls).await {
            Ok(result) => result,
            Err(_elapsed) => {
                let may_have_acted = acted.load(Ordering::Relaxed);
                Err(ApiError { may_have_acted, ..last.unwrap_or_else(|| self.no_answer(call)) })
            }
        }
    }

    fn asked<'a>(&'a self, call: &Call<'a>) -> Asked<'a> {
        Asked {
            action: call.action.name(),
            service: call.action.service(),
            region: &self.shared.region,
            profile: self.shared.profile.as_deref(),
            instance: call.instance,
        }
    }

    fn no_answer(&self, call: &Call<'_>) -> ApiError {
        ApiError {
            class: ErrorClass::Transient,
            may_have_acted: true,
            ..ApiError::config(call.action.name(), self.region(), "no answer in time").of(&call.subject)
        }
    }

    /// Full jitter: any time up to a bound that doubles, so that many callers do not come back together.
    fn waits(&self) -> impl Iterator<Item = Duration> + Send + Sync + Unpin + use<> {
        let shared = Arc::clone(&self.shared);
        (0..REPEATS).map(move |step| {
            let bound = LONGEST_WAIT.min(FIRST_WAIT * 2_u32.pow(step));
            shared.up_to(bound)
        })
    }

    /// Until this action may be asked for again, if it was throttled.
    async fn wait_for_turn(&self, action: Action) {
        let turn = self.shared.pace.lock().get(&action).copied();
        if let Some(turn) = turn {
            sleep_until(turn).await;
        }
    }

    /// This action was throttled: everybody who asks for it waits a while.
    fn slow_down(&self, action: Action) {
        let turn = Instant::now() + FIRST_WAIT + self.shared.up_to(FIRST_WAIT);
        self.shared.pace.lock().insert(action, turn);
    }
}

impl Shared {
    /// Some time up to this bound. Good enough to keep callers apart; nothing here is secret.
    fn up_to(&self, bound: Duration) -> Duration {
        let mut state = self.jitter.lock();
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        let millis = u64::try_from(bound.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(*state % millis.max(1))
    }
}

fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(ATTEMPT_TIMEOUT)
        .operation_attempt_timeout(ATTEMPT_TIMEOUT)
        .operation_timeout(ATTEMPT_TIMEOUT)
        .build()
}

fn nobody() -> SharedCredentialsProvider {
    SharedCredentialsProvider::new(Credentials::new("AKIDNOBODY", "unchecked", None, None, "nix-broker"))
}

/// Whether this can be a region: it becomes part of a host name.
fn is_region(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}
