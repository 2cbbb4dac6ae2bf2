//! What a client asks for, and what we reply.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{BuildId, ClientId, DrvPath, OutputName, Prediction, Requirement, StorePath};

/// One `try` of Nix: becomes a build only when accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildRequest {
    /// The valid local `.drv`.
    pub drv: DrvPath,
    /// System and features it needs.
    pub requirement: Requirement,
    /// Whether Nix could start it locally right now.
    pub am_willing: bool,
    /// What the client's settings say of this build.
    pub settings: BuildSettings,
    /// What its derivation says of where it is best built.
    pub nature: Nature,
    /// What is expected of it.
    pub prediction: Prediction,
    /// Whose it is.
    pub client: ClientId,
}

impl BuildRequest {
    /// A request that nothing more is known of.
    pub fn new(drv: DrvPath, requirement: Requirement) -> Self {
        Self {
            drv,
            requirement,
            am_willing: false,
            settings: BuildSettings::default(),
            nature: Nature::default(),
            prediction: Prediction::UNKNOWN,
            client: ClientId(0),
        }
    }
}

/// What a derivation says of where it is best built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nature {
    /// `preferLocalBuild`: it takes less time than its inputs take to travel.
    pub prefers_local: bool,
    /// Its content is known beforehand: it is fetched, not made.
    pub is_fixed_output: bool,
}

/// The client's settings that go with a build to the builder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildSettings {
    /// `timeout`: the longest a build may take; `None` is for ever.
    pub timeout: Option<Duration>,
    /// `max-silent-time`: the longest a build may print nothing; `None` is for ever.
    pub max_silent_time: Option<Duration>,
    /// `cores` for the build; 0 means all the builder has.
    pub cores: u64,
    /// `keep-failed`: keep the build directory of a failed build (on the builder).
    pub keep_failed: bool,
    /// `builders-use-substitutes`: let the builder fetch inputs from its own substituters first.
    pub use_substitutes: bool,
    /// This machine's Nix surely cannot build it: declined, it fails.
    pub only_remote: bool,
    /// This machine's Nix surely can build it, when it has a job free.
    pub can_locally: bool,
    /// `max-build-log-size` in bytes; `None` is unlimited.
    pub max_log_size: Option<u64>,
}

/// What Nix tells after the accept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildInputs {
    /// The full runtime closure of all direct inputs; every path is valid locally.
    pub paths: BTreeSet<StorePath>,
    /// The outputs that are missing locally.
    pub wanted_outputs: BTreeSet<OutputName>,
}

/// Our reply to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The broker owns the outcome from here on.
    Accept {
        /// The build it has become.
        build: BuildId,
        /// What Nix shows as the machine: the pool's name.
        machine: String,
    },
    /// Not for us: Nix builds it locally or says why it cannot.
    Decline {
        /// A sentence for `broker why`.
        why: String,
    },
    /// The user opted out (`builders =` is empty): never ask again in this run of Nix.
    DeclinePermanently,
    /// Ask again at the next poll.
    Postpone {
        /// A sentence for `broker why`.
        why: String,
    },
}
