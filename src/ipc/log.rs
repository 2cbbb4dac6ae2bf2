//! How a person reads the log of a build: what is asked, what opens the answer, and what ends it.
//!
//! Between [`LogReply::Opened`] and [`LogReply::Ended`] the log itself travels as [`Frame::Log`](super::Frame::Log).

use serde::{Deserialize, Serialize};

/// Whose log, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LogRequest {
    /// `#12`, the full path of a derivation, its name or part of it.
    pub build: String,
    /// From its end, so many bytes at most; all of it without this. Begins with a whole line.
    pub tail: Option<u64>,
    /// Go on until the build ends.
    pub follow: bool,
}

/// To the command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reply")]
pub enum LogReply {
    /// This is the build that was meant; its log follows.
    Opened {
        /// The number of `#12`.
        build: u64,
        /// Full path of the derivation.
        drv: String,
    },
    /// That was all of it.
    Ended {
        /// `succeeded`, `failed` or `cancelled`; nothing while the build is on.
        outcome: Option<String>,
        /// Why it failed.
        reason: Option<String>,
    },
    /// There is no such log, or it is not for everybody.
    Failed {
        /// A sentence fragment.
        reason: String,
        /// What to do.
        hint: Option<String>,
    },
}
