//! The configuration file: TOML as a person writes it, turned into validated domain values.
//!
//! Owns the file's form, its defaults, and every complaint about it: all problems are found in one reading, each with
//! its line and key. What the values *mean* is the business of the scheduler and the providers, and whether this
//! machine has what they need that of `broker check`.
//!
//! ```toml
//! socket = "/run/nix-broker/broker.sock"   # where hooks and the command line find the broker
//! state-dir = "/var/lib/nix-broker"        # default: $STATE_DIRECTORY, else this
//! drain-grace = "10m"                      # how long a shutdown waits for running builds
//!
//! [[pool]]                                 # the first that fits and has room gets a build
//! name = "zen3"                            # what Nix shows as the machine
//! systems = ["x86_64-linux"]               # default: this machine's system
//! features = ["kvm", "gccarch-znver3"]     # what derivations may require
//! mandatory-features = []                  # what derivations must require to be built here
//! slots = "auto"                           # builds at once on one builder; auto: its number of processors
//! min-builders = 0                         # kept even when idle
//! max-builders = 2                         # default: 1, or the number of hosts
//! idle-timeout = "10m"                     # how long a builder without work is kept
//! launch-horizon = "1m"                    # what waits is to be done in this time by what is launched for it
//! max-lifetime = "24h"                     # an older builder takes no new work and ends
//! launch-timeout = "1m"                    # from the launch until it is ready, at most
//! priority = 0                             # pools with a higher one come before those with a lower one
//! decline = ["prefer-local", "fixed-output", "tiny", "short"]  # what this machine builds while it has a job free
//! direct = true                            # builders send to each other what they have; see the README, "Security"
//!
//! [pool.local]                             # where its machines come from: one of `local`, `hosts`, `ec2`
//! sandbox-paths = []                       # programs of this host that builds may see
//!
//! [[pool]]
//! name = "rack"
//!
//! [[pool.hosts]]
//! address = "10.0.0.7"
//! port = 22
//! user = "nix"                             # must be trusted by its Nix
//! host-keys = ["ssh-ed25519 AAAA..."]      # or: known-hosts-file = "/etc/ssh/ssh_known_hosts"
//! identity-file = "/etc/nix-broker/key"    # default: the broker's own key
//!
//! [[pool]]
//! name = "cloud"
//! features = ["gccarch-znver3"]            # offers what such processors run besides, `big-parallel` and `benchmark`
//! max-builders = 2                         # default: 1
//! idle-timeout = "20m"                     # these four are the defaults of such pools
//! surplus-idle-timeout = "1m"              # the same while another one has room; other pools: like `idle-timeout`
//! max-lifetime = "8h"
//! launch-timeout = "5m"
//!
//! [pool.ec2]                               # every key may be left out
//! profile = "builds"                       # of ~/.aws/config; default: what every AWS tool uses
//! regions = ["eu-central-1", "eu-west-1"]  # tried in this order; or: region = "eu-central-1"
//! market = "spot"                          # "on-demand" (default), or spot first and on-demand after
//! types = ["c7a.4xlarge", "c6a.4xlarge"]   # best first among equal sizes; default: chosen by features and queue
//! exact = false                            # true: only this very processor, none of its supersets
//! max-price = 1.20                         # USD an hour of compute; dearer ones are not launched
//! image-owner = "427812963091"             # the newest of these images (this is NixOS); or: image = "ami-...", or
//! image-name = "nixos/26.05*"              # image = "own" for the newest of `broker image upload`
//! subnets = ["subnet-0123456789abcdef0"]   # default: what `broker init` made, else those of the default VPC
//! security-groups = []                     # default: what `broker init` made
//! reach = "public"                         # or "private"; or: proxy-command = "ssh -W %h:%p bastion"
//! disk-size = 100                          # GiB
//! disk-throughput = 500                    # MiB/s
//! disk-iops = 3000                         # at least 4 for each MiB/s
//! idle-action = "terminate"                # or "stop" or "hibernate" (on demand only), which keep the warm store
//! lease = "15m"                            # a builder that hears nothing of the broker for this long ends itself
//! cache = "s3://builds?region=eu-central-1"  # or https://: a binary cache that builders take from and put into
//! cache-public-key = "builds-1:PxOXCzycYaWCvKr6Fxsj7Y6u5NL7y7SY44G0vqgNV00="  # what they trust there
//! cache-secret-key-file = "/run/credentials/nix-broker.service/cache"  # without it they only take
//! expiry-role = "arn:aws:iam::123456789012:role/nix-broker-expiry"  # AWS ends by itself what is too old; default: none
//!
//! [cost]                                   # of all EC2 pools together, in USD; default: no limit
//! max-per-hour = 5
//! max-per-day = 20
//! max-per-month = 200
//!
//! [metrics]                                # for Prometheus; default: none
//! listen = "127.0.0.1:9119"                # an address of this machine alone, or the path of a Unix socket
//! ```
//!
//! `decline` names what is left to this machine although the pool could build it, as long as every pool that could says so,
//! and this machine's Nix could start it now: `prefer-local` is what says `preferLocalBuild`, `fixed-output` what is
//! fetched; `tiny` and `short`, while no builder is up, what takes three seconds, or ends before one could be up, as builds
//! of its name have shown. With `max-jobs = 0` nothing is left to it.
//!
//! `launch-horizon` is money against time: with `"0s"` every build that waits is launched for as if it were the only one; with
//! an hour no builder is launched for what those that are there do within it. Unset it is the time of a launch, four of them
//! (four minutes) in EC2 pools.
//!
//! `slots = "auto"` of an EC2 pool counts, until the builder has said how many processors it has, on those of the type
//! that is launched for a single build: 8, unless `types` or `max-price` leave none of that size.

mod ec2;
mod host_key;
mod hosts;
mod load;
mod metrics;
mod overlap;
mod pool;
mod problem;
mod section;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

pub use load::{DEFAULT_PATH, Defaults, LoadError, PATH_VARIABLE, load, parse};
pub use metrics::MetricsAddress;
pub use overlap::overflows;
pub use problem::Problem;

use crate::model::{Caps, PoolSpec};

/// What the file says, validated, with every default filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the broker listens, when the file says it.
    pub socket: Option<PathBuf>,
    /// What must survive a restart of the broker: its key, the local pools' stores, the history.
    pub state_dir: PathBuf,
    /// How long a shutdown waits for running builds.
    pub drain_grace: Duration,
    /// What all EC2 pools together may cost.
    pub caps: Caps,
    /// Where programs read metrics; nowhere unless the file says it.
    pub metrics: Option<MetricsAddress>,
    /// By `priority`, then in the order of the file: the first that fits and has room gets a build. Invariant: never empty,
    /// names are unique.
    pub pools: Vec<PoolSpec>,
    /// What works but is probably not meant.
    pub warnings: Vec<Problem>,
}

/// A pool was named that the configuration does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no pool `{name}`; the configuration has {known}")]
pub struct UnknownPool {
    name: String,
    known: String,
}

impl Config {
    /// The same with these pools alone, in the order that they have there; with all when none is named.
    pub fn only(mut self, names: &[String]) -> Result<Self, UnknownPool> {
        let has = |name: &&String| self.pools.iter().any(|pool| pool.name.as_str() == *name);
        if let Some(name) = names.iter().find(|name| !has(name)) {
            return Err(UnknownPool { name: name.clone(), known: self.pool_names() });
        }
        self.pools.retain(|pool| names.is_empty() || names.iter().any(|name| name == pool.name.as_str()));
        Ok(self)
    }

    /// Its pools, for people: `` `zen3`, `arm` ``.
    pub fn pool_names(&self) -> String {
        self.pools.iter().map(|pool| format!("`{}`", pool.name)).collect::<Vec<_>>().join(", ")
    }
}
