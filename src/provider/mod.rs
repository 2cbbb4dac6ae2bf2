//! Where machines come from: launch one, know when it is gone, leave nothing behind.
//!
//! Owns the life of instances, and how they are reached. Whether one is wanted is the scheduler's decision, talking to
//! it over SSH the broker's business.
//!
//! The set is closed: [`Provider`] is one of [`local`] (sets of processes on this host), [`hosts`] (machines that exist
//! already) and, with the cargo feature of that name, `ec2`. A new one is a variant here and in [`ProviderSpec`].

pub mod ec2;
pub mod hosts;
pub mod load;
pub mod local;
pub mod probe;
pub mod random;

use std::fmt;
use std::io;
use std::path::PathBuf;
#[cfg(feature = "ec2")]
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use crate::model::Ending;
use crate::model::{
    BuilderFacts, BuilderId, Demand, HourlyRate, Instance, InstanceId, PoolSpec, ProviderSpec,
};

use self::hosts::Hosts;
use self::local::Local;

/// Where the machines of one pool come from.
#[derive(Debug)]
pub enum Provider {
    /// Sets of processes on this host.
    Local(Local),
    /// Machines that exist already.
    Hosts(Hosts),
    /// EC2 instances.
    #[cfg(feature = "ec2")]
    Ec2(Box<ec2::Ec2>),
}

/// What every provider may need to know of the broker.
#[derive(Clone, Debug)]
pub struct ProviderContext {
    /// The broker's own directory, which outlives it.
    pub state_dir: PathBuf,
    /// The public key that the broker logs in with (`ssh-ed25519 AAAA...`).
    pub client_key: String,
    /// The `broker` program, which the local provider starts to watch over each machine.
    pub broker_program: PathBuf,
    /// Makes a host key for a machine that has none of its own yet.
    pub host_keys: fn() -> io::Result<HostKeyPair>,
    /// What all pools on EC2 share, once there is one.
    #[cfg(feature = "ec2")]
    pub estate: Arc<OnceLock<Arc<ec2::Estate>>>,
}

/// A host key, both halves in OpenSSH's form. The private one is a secret: it is never shown.
#[derive(Clone)]
pub struct HostKeyPair {
    /// `-----BEGIN OPENSSH PRIVATE KEY-----`...
    pub private: String,
    /// `ssh-ed25519 AAAA...`
    pub public: String,
}

impl ProviderContext {
    /// A context with the running program as the `broker` program.
    pub fn new(
        state_dir: PathBuf,
        client_key: String,
        host_keys: fn() -> io::Result<HostKeyPair>,
    ) -> io::Result<Self> {
        Ok(Self {
            state_dir,
            client_key,
            broker_program: std::env::current_exe()?,
            host_keys,
            #[cfg(feature = "ec2")]
            estate: Arc::default(),
        })
    }
}

/// What a launch is asked for.
#[derive(Clone, Copy)]
pub struct LaunchOrder<'a> {
    /// The builder that the instance will be.
    pub builder: BuilderId,
    /// Its pool.
    pub pool: &'a PoolSpec,
    /// What for.
    pub demand: Demand,
    /// An instance that costs more is one too many: what is left of the cap per hour. When nothing that would do costs as
    /// little, the launch fails with [`ProviderErrorKind::OverBudget`].
    pub at_most: Option<HourlyRate>,
    /// Hears, in words for the person who waits, what is going on.
    pub progress: &'a (dyn Fn(&str) + Send + Sync),
}

impl fmt::Debug for HostKeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostKeyPair").field("public", &self.public).finish_non_exhaustive()
    }
}

impl fmt::Debug for LaunchOrder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LaunchOrder")
            .field("builder", &self.builder)
            .field("pool", &self.pool.name)
            .field("demand", &self.demand)
            .finish_non_exhaustive()
    }
}

/// An instance, and how to reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// What was made.
    pub instance: Instance,
    /// Where its sshd is, now or soon.
    pub address: Address,
}

/// An instance that an earlier broker launched, and that lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survivor {
    /// It, and how to reach it.
    pub launched: Launched,
    /// Since when it runs.
    pub age: Duration,
}

/// How far an instance is that sets itself up after its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Done: what it offers can be asked.
    Ready,
    /// Not yet.
    NotYet {
        /// What it has done last, for the person who waits.
        phase: String,
    },
    /// It gave up.
    Failed {
        /// Why.
        reason: String,
    },
}

/// The heartbeat of a builder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// What to run on it.
    pub command: String,
    /// How often.
    pub every: Duration,
}

/// What a builder says of its future.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuilderNotice {
    /// It is taken away.
    Interruption {
        /// How soon, where that is known.
        within: Option<Duration>,
        /// In words.
        why: String,
    },
    /// It is more likely than usual to be taken away.
    Rebalance {
        /// In words.
        why: String,
    },
    /// It is powering off.
    Ending {
        /// In words.
        why: String,
    },
    /// It works, and one of the things is missing that would end it should everything else fail.
    Unguarded {
        /// In words, with what to do.
        why: String,
    },
}

/// How an instance is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Name or address.
    pub host: String,
    /// How other builders come to it; `None` where they do not.
    pub inner: Option<Inner>,
    /// TCP port of its sshd.
    pub port: u16,
    /// The user to log in as.
    pub user: String,
    /// The host keys of which it has one, in OpenSSH form.
    pub host_keys: Vec<String>,
    /// A private key to log in with; `None` is the broker's own.
    pub identity_file: Option<PathBuf>,
    /// A command, for a shell, whose standard input and output are the connection; `None` is TCP.
    pub proxy_command: Option<String>,
}

/// Where an instance is for other builders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Name or address, as they see it.
    pub host: String,
    /// The network that the instance is in, by a name that no other has; `None` where that is not known.
    pub network: Option<String>,
    /// The part of that network within which bytes cost nothing, an availability zone; `None` where there is no such thing.
    pub zone: Option<String>,
    /// Whose it is to try.
    pub callers: Callers,
}

/// Which builders try to connect to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callers {
    /// All: the broker gets there by the same name, so others may as well.
    All,
    /// Those in its network: for others the name means something else, or nothing.
    Neighbours,
}

impl Inner {
    /// Whether the builder there is to try to connect to this one.
    pub fn is_for(&self, caller: &Self) -> bool {
        match self.callers {
            Callers::All => true,
            Callers::Neighbours => self.network.is_some() && self.network == caller.network,
        }
    }

    /// Whether the builder there is in the same zone.
    pub fn is_beside(&self, other: &Self) -> bool {
        self.zone.is_some() && (&self.network, &self.zone) == (&other.network, &other.zone)
    }
}

/// Why a provider could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct ProviderError {
    /// What kind of thing went wrong.
    pub kind: ProviderErrorKind,
    /// What failed, on what.
    pub reason: String,
    /// The system's own words, if it had any.
    pub source: Option<io::Error>,
}

/// The kinds of failure of a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProviderErrorKind {
    /// Nothing is free right now; later there may be.
    Capacity,
    /// Nothing that would do costs as little as it may.
    OverBudget,
    /// It will not do this for us.
    Refused,
    /// It was asked for something that cannot be: a person has to change the configuration or this host.
    Config,
    /// Anything else; trying again may help.
    Unknown,
}

impl ProviderError {
    pub(crate) fn new(kind: ProviderErrorKind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into(), source: None }
    }

    /// A failure that the system explains.
    pub(crate) fn io(reason: impl Into<String>, source: io::Error) -> Self {
        Self { kind: ProviderErrorKind::Unknown, reason: reason.into(), source: Some(source) }
    }
}

/// Ends what an earlier broker had on EC2 when no pool is there any more. Never ends, as
/// [`tend`](Provider::tend).
pub async fn tend_leftovers(context: ProviderContext) {
    #[cfg(feature = "ec2")]
    if context.estate.get().is_none() && context.state_dir.join("ec2").is_dir() {
        match context.estate() {
            Ok(estate) => estate.tend().await,
            Err(error) => tracing::error!(%error, "cannot see to what an earlier broker had on EC2"),
        }
    }
    drop(context);
    std::future::pending::<()>().await;
}

/// An error with its causes, on one line.
#[cfg(feature = "ec2")]
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl fmt::Display for ProviderErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Capacity => "no capacity",
            Self::OverBudget => "over budget",
            Self::Refused => "refused",
            Self::Config => "configuration",
            Self::Unknown => "failure",
        })
    }
}

#[cfg_attr(
    not(feature = "ec2"),
    allow(unused_variables, clippy::unused_async, reason = "some of this is asked of EC2 instances alone")
)]
impl Provider {
    /// The provider that the configuration names for this pool.
    pub fn for_pool(pool: &PoolSpec, context: &ProviderContext) -> Result<Self, ProviderError> {
        Ok(match &pool.provider {
            ProviderSpec::Local(_) => Self::Local(Local::new(context)?),
            ProviderSpec::Hosts(hosts) => Self::Hosts(Hosts::new(hosts.clone())),
            #[cfg(feature = "ec2")]
            ProviderSpec::Ec2(spec) => Self::Ec2(Box::new(ec2::Ec2::new(pool, spec, context)?)),
            #[cfg(not(feature = "ec2"))]
            ProviderSpec::Ec2(_) => {
                let reason = "this broker was built without EC2 (cargo feature `ec2`)";
                return Err(ProviderError::new(ProviderErrorKind::Config, reason));
            }
        })
    }

    /// Makes an instance. It may still be on its way up when this returns. Not to be cancelled: see each provider.
    pub async fn launch(&self, order: LaunchOrder<'_>) -> Result<Launched, ProviderError> {
        match self {
            Self::Local(local) => local.launch(order.builder, order.pool).await,
            Self::Hosts(hosts) => hosts.launch(&order.pool.name),
            #[cfg(feature = "ec2")]
            Self::Ec2(ec2) => ec2.launch(order).await,
        }
    }

    /// Ends an instance. Returns only when nothing of it is left (or it is put aside, where the pool wants that of an
    /// idle one); ending one that is gone already succeeds.
    pub async fn terminate(&self, instance: &InstanceId, ending: Ending) -> Result<(), ProviderError> {
        match self {
            #[cfg(feature = "ec2")]
            Self::Ec2(ec2) => ec2.terminate(instance, ending).await,
            Self::Local(local) => local.terminate(instance).await,
            Self::Hosts(hosts) => {
                hosts.terminate(instance);
                Ok(())
            }
        }
    }

    /// This instance failed to be of use: where there is a choice, the next launch makes another one.
    pub fn distrust(&self, instance: &InstanceId) {
        match self {
            // Every local machine is made anew.
            Self::Local(_) => {}
            Self::Hosts(hosts) => hosts.distrust(instance),
            #[cfg(feature = "ec2")]
            // Each is made anew; an offering that only makes bad ones would be a matter for its price list.
            Self::Ec2(_) => {}
        }
    }

    /// The instances there are, as observed.
    pub fn list(&self) -> Vec<Instance> {
        match self {
            Self::Local(local) => local.list(),
            Self::Hosts(hosts) => hosts.list(),
            #[cfg(feature = "ec2")]
            Self::Ec2(ec2) => ec2.list(),
        }
    }

    /// Waits until an instance has ended without being asked to, and says why. Never ends for one it cannot watch.
    pub async fn gone(&self, instance: &InstanceId) -> String {
        match self {
            Self::Local(local) => local.gone(instance).await,
            Self::Hosts(_) => std::future::pending().await,
            #[cfg(feature = "ec2")]
            Self::Ec2(ec2) => ec2.gone(instance).await,
        }
    }

    /// Ends what an earlier broker with this state directory left behind, and nothing else; says how many it was.
    pub async fn reap_strays(&self) -> Result<usize, ProviderError> {
        match self {
            Self::Local(local) => local.reap_strays().await,
            Self::Hosts(_) => Ok(0),
            #[cfg(feature = "ec2")]
            Self::Ec2(ec2) => {
                ec2.reap_strays().await;
                Ok(0)
            }
        }
    }

    /// The instances that an earlier broker with this state directory launched for this pool and that still run, to be
    /// used again; never one that this process launched. Called after [`reap_strays`](Self::reap_strays), and again
    /// later when it fails.
    pub fn survivors(&self) -> Result<Vec<Survivor>, ProviderError> {
        match self {
            // What an earlier broker left of a local machine was reaped; a host is nobody's until it is handed out.
            Self::Local(_) | Self::Hosts(_) => Ok(Vec::new()),
            #[cfg(feature = "ec2")]
            Self::Ec2(ec2) => ec2.survivors(),
        }
    }

    /// What the instances cost that are put aside for the next time.
    pub fn put_aside(&self) -> HourlyRate {
        match self {
            Self::Local(_) | Self::Hosts(_) => HourlyRate::default(),
            #[cfg(feature = "ec2")]
            Self::Ec2(ec2) => ec2.put_aside(),
        }
    }

    /// Whatever the provider has to do by itself as long as the broker runs: pollers, sweeps. Never ends; dropped when
    /// no instance is wanted any more.
    pub async fn tend(&self) {
        match self {
            Self::Local(_) | Self::Hosts(_) => std::future::pending().await,
            #[cfg(feature = "ec2")]
            Self::Ec2(ec2) => ec2.tend().await,
        }
    }

    /// What the console of an instance says, for one that did not become ready; `None` where there is none to be read.
    pub async fn console(&self, instance: &InstanceId) -> Option<String> {
        match self {
            Self::Local(_) | Self::Hosts(_) => None,
            #[cfg(feature = "ec2")]
            Self::Ec2(ec2) => ec2.console(instance).await,
        }
    }

    /// The command that asks an instance whether it has set itself up; `None` where there is nothing to set up.
    pub fn readiness(&self, instance: &InstanceId) -> Option<String> {
        match self {
            Self::Local(_) | Self::Hosts(_) => None,
            #[cfg(feature = "ec2")]
            Self::Ec2(ec2) => ec2.readiness(instance),
        }
    }

    /// Reads what the command of [`readiness`](Self::readiness) printed.
    pub fn read_readiness(&self, instance: &InstanceId, stdout: &[u8]) -> Readiness {
        match self {
            Self::Local(_) | Self::Hosts(_) => Readiness::Ready,
            #[cfg(feature = "ec2")]
            Self::Ec2(ec2) => ec2.read_readiness(instance, stdout),
        }
    }

    /// What speaks against a builder with these facts that its own Nix does not know; a sentence fragment.
    pub fn objection(&self, instance: &InstanceId, facts: &BuilderFacts) -> Option<String> {
        match self {
            Self::Local(_) | Self::Hosts(_) => None,
            #[cfg(feature = "ec2")]
            Self::Ec2(ec2) => ec2.objection(instance, facts),
        }
    }

    /// The next heartbeat of a ready builder; `is_in_use` when builds or transfers are under way there.
    pub fn beat(&self, instance: &InstanceId, is_in_use: bool) -> Option<Beat> {
        match self {
            Self::Local(_) | Self::Hosts(_) => None,
            #[cfg(feature = "ec2")]
            Self::Ec2(ec2) => ec2.beat(instance, is_in_use),
        }
    }

    /// Reads what the command of [`beat`](Self::beat) printed.
    pub fn read_beat(&self, instance: &InstanceId, stdout: &[u8]) -> Vec<BuilderNotice> {
        match self {
            Self::Local(_) | Self::Hosts(_) => Vec::new(),
            #[cfg(feature = "ec2")]
            Self::Ec2(ec2) => ec2.read_beat(instance, stdout),
        }
    }
}
