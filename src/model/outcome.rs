//! How a build ends, who must act on a failure, and whether trying again can help.

use std::fmt;

/// The end of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every output was fetched from the builder.
    Succeeded,
    /// It will not be tried again.
    Failed(Failure),
    /// The client went away.
    Cancelled,
}

/// Why an attempt or a build failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind of thing went wrong: decides about retries and exit status.
    pub kind: FailureKind,
    /// A sentence fragment for people: what failed, on what, what to do.
    pub reason: String,
}

/// The kinds of failure a build can meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureKind {
    /// The derivation's own program failed, or its outputs were rejected: the same anywhere.
    Derivation,
    /// `timeout` or `max-silent-time` passed.
    TimedOut,
    /// The log grew past `max-build-log-size`.
    LogLimitExceeded,
    /// The builder's Nix failed in a way that another try, or another machine, may not.
    Transient,
    /// The builder's disk is full.
    NoSpace,
    /// The connection or the machine went away.
    BuilderLost,
    /// An input could not be read here or stored there.
    Transfer,
    /// No machine could be had.
    Provider,
    /// Nothing that is configured can build this.
    Request,
    /// A defect of ours.
    Broker,
}

/// Who must act on a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The author of the derivation.
    Derivation,
    /// Whoever asked for it.
    Request,
    /// The machine it ran on.
    Builder,
    /// Where machines come from.
    Provider,
    /// Us.
    Broker,
}

impl Failure {
    /// A failure of this kind, with its reason.
    pub fn new(kind: FailureKind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into() }
    }

    /// The hook's exit status: Nix up to 2.28 tells permanent (100) from timed out (101) from anything else (1).
    pub fn exit_status(&self) -> u8 {
        match self.kind {
            FailureKind::Derivation => 100,
            FailureKind::TimedOut => 101,
            FailureKind::LogLimitExceeded
            | FailureKind::Transient
            | FailureKind::NoSpace
            | FailureKind::BuilderLost
            | FailureKind::Transfer
            | FailureKind::Provider
            | FailureKind::Request
            | FailureKind::Broker => 1,
        }
    }
}

impl FailureKind {
    /// Whether another attempt may end differently.
    pub fn is_retryable(self) -> bool {
        match self {
            Self::Transient | Self::NoSpace | Self::BuilderLost | Self::Transfer => true,
            Self::Derivation
            | Self::TimedOut
            | Self::LogLimitExceeded
            | Self::Provider
            | Self::Request
            | Self::Broker => false,
        }
    }

    /// Who must act.
    pub fn blame(self) -> Blame {
        match self {
            Self::Derivation | Self::TimedOut | Self::LogLimitExceeded => Blame::Derivation,
            Self::Transient | Self::NoSpace | Self::BuilderLost | Self::Transfer => Blame::Builder,
            Self::Provider => Blame::Provider,
            Self::Request => Blame::Request,
            Self::Broker => Blame::Broker,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}
