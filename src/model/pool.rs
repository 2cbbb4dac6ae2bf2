//! A pool as the configuration describes it, validated.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use super::{Ec2Spec, Offer, PoolName};

/// A configured kind of builder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// Its name; also what Nix shows as the machine.
    pub name: PoolName,
    /// What its builders can build.
    pub offer: Offer,
    /// How many builds one builder runs at once.
    pub slots: Slots,
    /// Builders kept even when idle.
    pub min_builders: u32,
    /// Builders at most. Invariant: at least 1 and at least `min_builders`.
    pub max_builders: u32,
    /// How long a builder without work is kept.
    pub idle_timeout: Duration,
    /// The same while another builder of the pool has room for what comes next. Invariant: no more than `idle_timeout`.
    pub surplus_idle_timeout: Duration,
    /// The time in which what waits is to be done by the slots that are launched for it; zero: a slot for each. `None`: the
    /// time of a launch, or four where builders are paid for.
    pub launch_horizon: Option<Duration>,
    /// A builder older than this takes no new work and ends.
    pub max_lifetime: Duration,
    /// From the launch until the builder is ready, at most.
    pub launch_timeout: Duration,
    /// What is left to this machine while it has a job free.
    pub declines: BTreeSet<DeclineRule>,
    /// Whether its builders give store paths to other builders, and take from them, over their own network.
    pub direct: bool,
    /// Where its machines come from.
    pub provider: ProviderSpec,
}

/// Why a build is left to this machine, which could be built in a pool: it costs less there, or takes less time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeclineRule {
    /// The derivation says that it prefers that (`preferLocalBuild`).
    PrefersLocal,
    /// Its content is fetched, and would only travel twice.
    FixedOutput,
    /// It takes less time than its inputs take to travel, and no builder is up.
    Tiny,
    /// It ends here before a builder could be up.
    Short,
}

impl DeclineRule {
    /// All of them: what a pool has that says nothing else.
    pub const ALL: [Self; 4] = [Self::PrefersLocal, Self::FixedOutput, Self::Tiny, Self::Short];

    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::PrefersLocal => "prefer-local",
            Self::FixedOutput => "fixed-output",
            Self::Tiny => "tiny",
            Self::Short => "short",
        }
    }
}

/// How many builds one builder runs at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slots {
    /// This many.
    Fixed(u32),
    /// What the running builder's `nproc` says.
    Auto {
        /// What to plan with until a builder has said it.
        expected: u32,
        /// What the largest builder that there can be would say, where that is known.
        most: Option<u32>,
    },
}

impl Slots {
    /// The number to plan with before a builder is up.
    pub fn expected(self) -> u32 {
        match self {
            Self::Fixed(n) | Self::Auto { expected: n, .. } => n,
        }
    }

    /// What no builder has more of, where that is known before one is up.
    pub fn most(self) -> Option<u32> {
        match self {
            Self::Fixed(n) => Some(n),
            Self::Auto { most, .. } => most,
        }
    }
}

/// Where a pool's machines come from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "there are as many as pools, and they stay where they are")]
pub enum ProviderSpec {
    /// Sets of processes on this host, each with its own store.
    Local(LocalSpec),
    /// Machines that exist already. Invariant: never empty.
    Hosts(Vec<HostSpec>),
    /// EC2 instances, launched when they are needed.
    Ec2(Ec2Spec),
}

/// Settings of the `local` provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalSpec {
    /// `nix-daemon` to run as the machine's Nix; `None` looks it up in `PATH`.
    pub nix_daemon: Option<PathBuf>,
    /// `sshd` to run; `None` looks it up in `PATH` and `/usr/sbin`.
    pub sshd: Option<PathBuf>,
    /// Programs of this host that builds may see in their sandbox (`sandbox-paths`).
    pub sandbox_paths: Vec<String>,
}

/// One machine that the user already has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSpec {
    /// Name or address.
    pub address: String,
    /// TCP port of its sshd.
    pub port: u16,
    /// The user to log in as; must be trusted by its Nix.
    pub user: String,
    /// Its host keys, each in OpenSSH form (`ssh-ed25519 AAAA...`). Invariant: never empty.
    pub host_keys: Vec<String>,
    /// A private key to log in with; `None` is the broker's own.
    pub identity_file: Option<PathBuf>,
}
