//! The messages, in their serialised form. Whoever reads one validates it into model types.

use serde::{Deserialize, Serialize};

use super::log::LogRequest;
use super::view::{CostView, HistoryView, StatusView};
use crate::model::{
    BuildRequest, BuildSettings, ClientId, DrvPath, Failure, FailureKind, Feature, Requirement,
    StorePathError, System,
};

/// Version of this form. Both binaries come from one package; a mismatch is a half-done upgrade and is said so.
pub const VERSION: u32 = 1;

/// Environment variable that tells the store endpoint which finished build it serves.
pub const BUILD_VARIABLE: &str = "NIX_BROKER_BUILD";
/// Environment variable that names the broker's socket.
pub const SOCKET_VARIABLE: &str = "NIX_BROKER_SOCKET";
/// Where the broker's socket is when nothing says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/nix-broker/broker.sock";

/// The first frame of a connection, from the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "role")]
pub enum Hello {
    /// A hook: [`HookRequest`]s and [`HookReply`]s follow.
    Hook {
        /// [`VERSION`] of the client.
        version: u32,
    },
    /// The command line: one [`OperatorRequest`], then its replies.
    Operator {
        /// [`VERSION`] of the client.
        version: u32,
    },
    /// The store endpoint for the importer of this succeeded build.
    Import {
        /// [`VERSION`] of the client.
        version: u32,
        /// The token of [`HookReply::Succeeded`].
        token: String,
    },
    /// The store endpoint as a machine in `builders`: the broker places each build.
    Store {
        /// [`VERSION`] of the client.
        version: u32,
    },
    /// The store endpoint as the store of one pool: a raw relay to `nix-daemon` on one of its builders.
    Relay {
        /// [`VERSION`] of the client.
        version: u32,
        /// Which pool.
        pool: String,
    },
}

impl Hello {
    /// The client's [`VERSION`].
    pub fn version(&self) -> u32 {
        match self {
            Self::Hook { version }
            | Self::Operator { version }
            | Self::Import { version, .. }
            | Self::Store { version }
            | Self::Relay { version, .. } => *version,
        }
    }
}

/// The answer to [`Hello`], always. A client need not wait for it before it sends its first request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reply")]
pub enum Reply {
    /// Go on.
    Go,
    /// No: this is why.
    Refused {
        /// A sentence.
        why: String,
    },
}

/// From a hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "request")]
pub enum HookRequest {
    /// May this be built? Answered by `Accept`, `Decline` or `Postpone`.
    Ask(Ask),
    /// The hook told Nix "accept" to an earlier broker, which is gone: take it, or fail it. Answered by `Accept` or
    /// `Failed`.
    Resume(Ask),
    /// After the accept: what Nix sent.
    Inputs {
        /// Full store paths.
        paths: Vec<String>,
        /// Output names.
        wanted_outputs: Vec<String>,
    },
}

/// One request of Nix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ask {
    /// Full path of the derivation.
    pub drv: String,
    /// Its system.
    pub system: String,
    /// Its required features.
    pub features: Vec<String>,
    /// Whether Nix could start it locally right now.
    pub am_willing: bool,
    /// Whether this machine's Nix surely cannot build it.
    #[serde(default)]
    pub only_remote: bool,
    /// Whether this machine's Nix surely can build it, when it has a job free.
    #[serde(default)]
    pub can_locally: bool,
    /// The process of Nix that asks; 0 is not known.
    #[serde(default)]
    pub run: u32,
    /// Seconds; 0 is none.
    pub timeout: u64,
    /// Seconds; 0 is none.
    pub max_silent_time: u64,
    /// 0 is all.
    pub cores: u64,
    /// Keep the build directory of a failed build.
    pub keep_failed: bool,
    /// The builder may substitute inputs.
    pub use_substitutes: bool,
    /// Bytes; 0 is unlimited.
    pub max_log_size: u64,
    /// The hook knows [`HookReply::Arriving`]. One that was started before an upgrade does not.
    #[serde(default)]
    pub imports_meanwhile: bool,
    /// The hook knows [`HookReply::Soon`]. One that was started before an upgrade does not.
    #[serde(default)]
    pub prepares: bool,
    /// What the derivation's file says, when the hook has read it: whoever waits for a verdict can wait for the disk too,
    /// and the broker, for whose answers everybody waits, need not.
    #[serde(default)]
    pub file: Option<String>,
}

impl Ask {
    /// The serialised form of a request.
    pub fn new(request: &BuildRequest) -> Self {
        let seconds = |limit: Option<std::time::Duration>| limit.map_or(0, |limit| limit.as_secs().max(1));
        Self {
            drv: request.drv.to_string(),
            system: request.requirement.system.to_string(),
            features: request.requirement.features.iter().map(ToString::to_string).collect(),
            am_willing: request.am_willing,
            only_remote: request.settings.only_remote,
            can_locally: request.settings.can_locally,
            run: u32::try_from(request.client.0).unwrap_or(0),
            timeout: seconds(request.settings.timeout),
            max_silent_time: seconds(request.settings.max_silent_time),
            cores: request.settings.cores,
            keep_failed: request.settings.keep_failed,
            use_substitutes: request.settings.use_substitutes,
            max_log_size: request.settings.max_log_size.unwrap_or(0),
            imports_meanwhile: false,
            prepares: false,
            file: None,
        }
    }
}

impl TryFrom<Ask> for BuildRequest {
    type Error = StorePathError;

    fn try_from(ask: Ask) -> Result<Self, StorePathError> {
        let seconds = |limit: u64| (limit > 0).then(|| std::time::Duration::from_secs(limit));
        let drv = DrvPath::parse(&ask.drv)?;
        let features = ask.features.into_iter().map(Feature::new).collect();
        let requirement = Requirement::new(System::new(ask.system), features);
        Ok(Self {
            client: ClientId(u64::from(ask.run)),
            am_willing: ask.am_willing,
            settings: BuildSettings {
                only_remote: ask.only_remote,
                can_locally: ask.can_locally,
                timeout: seconds(ask.timeout),
                max_silent_time: seconds(ask.max_silent_time),
                cores: ask.cores,
                keep_failed: ask.keep_failed,
                use_substitutes: ask.use_substitutes,
                max_log_size: (ask.max_log_size > 0).then_some(ask.max_log_size),
            },
            ..Self::new(drv, requirement)
        })
    }
}

/// To a hook. Log bytes travel between these as [`Frame::Log`](super::Frame::Log).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reply")]
pub enum HookReply {
    /// The broker owns the outcome; send the inputs.
    Accept {
        /// For people and logs.
        build: u64,
        /// What Nix shows as the machine.
        machine: String,
    },
    /// Not for us.
    Decline {
        /// A sentence.
        why: String,
    },
    /// Ask again later.
    Postpone {
        /// A sentence.
        why: String,
    },
    /// Something the person who waits wants to know: one short line.
    Note {
        /// The line.
        text: String,
    },
    /// A builder has it, and it will not take long: get the importer ready, whose start takes longer than its work.
    Soon {
        /// What [`HookReply::Succeeded`] will say.
        token: String,
    },
    /// The outputs are on their way, and large: run the importer now. What follows says how the build ends; an importer
    /// that fails before that has been told too early.
    Arriving {
        /// Opens the store endpoint of this build.
        token: String,
    },
    /// Every output is here: run the importer unless it has succeeded already, then close the connection.
    Succeeded {
        /// Opens the store endpoint of this build.
        token: String,
    },
    /// It failed for good.
    Failed(WireFailure),
}

/// A failure in its serialised form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct WireFailure {
    /// For the log's last line.
    pub reason: String,
    /// The hook's exit status.
    pub exit_status: u8,
    /// Whether the derivation's own program failed (its own output explains it best).
    pub is_build_failure: bool,
}

impl From<&Failure> for WireFailure {
    fn from(failure: &Failure) -> Self {
        Self {
            reason: failure.reason.clone(),
            exit_status: failure.exit_status(),
            is_build_failure: failure.kind == FailureKind::Derivation,
        }
    }
}

/// Which builders an operator means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// This one: `b-3`.
    Builder(String),
    /// Every one.
    All,
}

/// What costs are added up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CostBy {
    /// Days in UTC, the latest first.
    Day,
    /// Pools, this month.
    Pool,
    /// Instances, the latest first.
    Builder,
    /// Derivations by name, the dearest first.
    Build,
}

/// From the command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "request")]
pub enum OperatorRequest {
    /// The picture now. Answered by one `Status`.
    Status,
    /// The picture now and at every change, a few times a second at most. Answered by `Status` until somebody closes.
    Watch,
    /// Why a derivation (or `#build`) went where it did, or would. Answered by `Why`.
    Why {
        /// Full path of a derivation, its name or part of it, or `#12`.
        subject: String,
    },
    /// What was spent. Answered by `Cost`.
    Cost {
        /// Added up by what.
        by: CostBy,
    },
    /// The builds that ended last, from before the broker started too. Answered by `History`.
    History {
        /// So many at most.
        most: u32,
        /// Only those before this row.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<u64>,
    },
    /// The log of a build. Answered by [`LogReply`](super::LogReply)s.
    Log(LogRequest),
    /// One builder more. Answered by `Done`.
    Start {
        /// In which pool.
        pool: String,
    },
    /// No new builds there, end when idle. Answered by `Done`.
    Drain {
        /// Which.
        target: Target,
    },
    /// End now; builds are tried elsewhere. Answered by `Done`.
    Stop {
        /// Which.
        target: Target,
    },
}

/// To the command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reply")]
pub enum OperatorReply {
    /// The picture.
    Status(StatusView),
    /// What was spent.
    Cost(CostView),
    /// What was built.
    History(HistoryView),
    /// Lines for a person.
    Why {
        /// The lines.
        lines: Vec<String>,
    },
    /// It is under way.
    Done {
        /// What was done, as a sentence.
        text: String,
    },
    /// It cannot be done.
    Failed {
        /// A sentence fragment.
        reason: String,
        /// What to do.
        hint: Option<String>,
    },
}
