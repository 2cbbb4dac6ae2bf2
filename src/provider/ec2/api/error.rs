//! What EC2 or the way to it said no with, as a class the ladder can act on and a sentence a person can act on.
//!
//! Owns the error type and its words. Which code is of which class is the table in `classify`; how an SDK error is taken
//! apart is in `failure`.

use std::fmt;

use crate::provider::ec2::quota::Quota;

/// What kind of no it was: each class has one right reaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorClass {
    /// None of this type in this zone and market right now: cool the offering, take the next rung at once.
    Capacity,
    /// The account may not have more: cool everything that counts against this quota, and say which.
    Quota(Quota),
    /// The subnet has no address left: cool the subnet.
    Subnet,
    /// The service-linked role of spot does not exist and may not be made: no spot until a person made it.
    SpotRole,
    /// Too many requests.
    Throttle,
    /// The other side or the way to it failed, and may have acted: the same request again.
    Transient,
    /// Nobody, or somebody who may not: stop, and say what is missing.
    Identity,
    /// The request can never succeed as it is: stop using what it was made from.
    Config,
    /// There is no such thing, or not yet: an id we were just given may be unknown for minutes.
    NotFound,
    /// It is not in a state for this now: later it may be.
    Busy,
    /// The token was used for another request: a new token, after looking for what the old one made.
    Idempotency,
    /// None of these; trying the next rung may help.
    Unknown,
}

impl ErrorClass {
    /// Whether the same request is sent again by this module before the caller hears of it.
    pub(super) fn is_repeated(self) -> bool {
        match self {
            Self::Throttle | Self::Transient => true,
            Self::Capacity
            | Self::Quota(_)
            | Self::Subnet
            | Self::SpotRole
            | Self::Identity
            | Self::Config
            | Self::NotFound
            | Self::Busy
            | Self::Idempotency
            | Self::Unknown => false,
        }
    }
}

/// A request that failed.
#[derive(Clone, Debug, thiserror::Error)]
pub struct ApiError {
    /// What to do about it.
    pub class: ErrorClass,
    /// The action without the service's prefix (`RunInstances`), or what else was tried.
    pub action: &'static str,
    /// EC2's own code (`InsufficientInstanceCapacity`), if it gave one.
    pub code: Option<String>,
    /// Of the response, if there was one.
    pub status: Option<u16>,
    /// What AWS support asks for.
    pub request_id: Option<String>,
    /// EC2 may have done what it was asked for all the same, if not at this attempt then at an earlier one of the call.
    pub may_have_acted: bool,
    /// For the person who reads it.
    pub(super) words: Box<Words>,
}

/// What an error says.
#[derive(Clone, Debug, Default)]
pub(super) struct Words {
    /// What the request was about, where that helps.
    pub(super) subject: String,
    /// Where it was sent.
    pub(super) region: String,
    /// The other side's words, cut to what is readable.
    pub(super) message: String,
    /// What a person can do.
    pub(super) advice: Option<String>,
}

impl ApiError {
    /// The request named an image that is gone: a newer one may have replaced it.
    pub fn is_image_gone(&self) -> bool {
        let codes = ["InvalidAMIID.NotFound", "InvalidAMIID.Unavailable", "InvalidAMIID.Malformed"];
        self.code.as_deref().is_some_and(|code| codes.contains(&code))
    }

    /// What a person can do about it, if it is known.
    pub fn advice(&self) -> Option<&str> {
        self.words.advice.as_deref()
    }

    /// The same with more to do about it, which only the caller knows.
    #[must_use]
    pub fn with_advice(mut self, advice: impl Into<String>) -> Self {
        self.words.advice = Some(advice.into());
        self
    }

    /// The same about this.
    #[must_use]
    pub(super) fn of(mut self, subject: &str) -> Self {
        subject.clone_into(&mut self.words.subject);
        self
    }

    /// A failure of our own making, before anything was sent.
    pub(super) fn config(action: &'static str, region: &str, message: impl Into<String>) -> Self {
        Self {
            class: ErrorClass::Config,
            action,
            code: None,
            status: None,
            request_id: None,
            may_have_acted: false,
            words: Box::new(Words { region: region.to_owned(), message: message.into(), ..Words::default() }),
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.action)?;
        if !self.words.subject.is_empty() {
            write!(f, " of {}", self.words.subject)?;
        }
        if !self.words.region.is_empty() && !self.words.subject.contains(&self.words.region) {
            write!(f, " in {}", self.words.region)?;
        }
        f.write_str(" fails: ")?;
        match &self.code {
            Some(code) if self.words.message.is_empty() => f.write_str(code)?,
            Some(code) => write!(f, "{code}: {}", self.words.message)?,
            None => f.write_str(&self.words.message)?,
        }
        if let Some(id) = &self.request_id {
            write!(f, " (request {id})")?;
        }
        match &self.words.advice {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}
