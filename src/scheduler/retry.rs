//! Whether a failed attempt is tried again, and how long a pool rests after a failed launch.
//!
//! Policy only, as functions of what happened: who performs it is [`super::fleet`].

use std::collections::BTreeSet;
use std::time::Duration;

use crate::model::{BuilderId, Failure, FailureKind};

/// A pool's rest after its first failed launch; it doubles with each further one.
const FIRST_REST: Duration = Duration::from_secs(3);
/// The longest rest of a pool.
pub(super) const LONGEST_REST: Duration = Duration::from_secs(5 * 60);
/// A build is given up after it has waited through this many launch failures in a row of every pool that fits it.
pub(super) const LAUNCH_FAILURES_TO_WAIT_THROUGH: usize = 3;
/// A build that has lost this many different builders is the likely cause.
pub(super) const BUILDERS_TO_LOSE: usize = 3;
/// An earlier attempt's reason is cut to this many characters in the list of attempts.
const SHOWN_REASON: usize = 240;

/// One attempt that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attempt {
    /// Where it ran.
    pub(super) builder: BuilderId,
    /// What went wrong, as a kind.
    pub(super) kind: FailureKind,
    /// What went wrong, for people.
    pub(super) reason: String,
}

/// What follows from a failed attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Another attempt, elsewhere if possible.
    Again,
    /// The build fails.
    GiveUp(Failure),
}

/// Decides after the last of these attempts. Invariant: `attempts` is not empty.
pub(super) fn next(attempts: &[Attempt]) -> Next {
    let Some(last) = attempts.last() else { return Next::Again };
    if !last.kind.is_retryable() {
        // What is wrong with the derivation is said as it is: earlier losses have nothing to do with it.
        return Next::GiveUp(Failure::new(last.kind, last.reason.clone()));
    }
    let lost: BTreeSet<BuilderId> = attempts
        .iter()
        .filter(|attempt| attempt.kind == FailureKind::BuilderLost)
        .map(|attempt| attempt.builder)
        .collect();
    if lost.len() >= BUILDERS_TO_LOSE {
        let reason = format!(
            "{} builders were lost while they built it, so it is not tried on another: {}",
            lost.len(),
            list(attempts)
        );
        return Next::GiveUp(Failure::new(FailureKind::BuilderLost, reason));
    }
    if attempts.len() < attempts_allowed(last.kind) {
        return Next::Again;
    }
    let reason = match attempts {
        [only] => only.reason.clone(),
        several => format!("gave up after {} attempts: {}", several.len(), list(several)),
    };
    Next::GiveUp(Failure::new(last.kind, reason))
}

/// Attempts in all before a failure of this kind is final.
fn attempts_allowed(kind: FailureKind) -> usize {
    match kind {
        // Nothing says that the build is at fault, and a machine that goes away is seldom the same twice.
        FailureKind::BuilderLost => 5,
        // Machines come in sizes, and of one size they are full at different times.
        FailureKind::Transfer | FailureKind::NoSpace => 3,
        FailureKind::Transient => 2,
        FailureKind::Derivation
        | FailureKind::TimedOut
        | FailureKind::LogLimitExceeded
        | FailureKind::Provider
        | FailureKind::Request
        | FailureKind::Broker => 1,
    }
}

fn list(attempts: &[Attempt]) -> String {
    let mut lines = Vec::with_capacity(attempts.len());
    for attempt in attempts {
        lines.push(format!("on {}: {}", attempt.builder, shorten(&attempt.reason)));
    }
    lines.join("; ")
}

fn shorten(reason: &str) -> String {
    match reason.char_indices().nth(SHOWN_REASON) {
        Some((end, _)) => format!("{}...", &reason[..end]),
        None => reason.to_owned(),
    }
}

/// How long a pool rests after this many failed launches in a row.
pub(super) fn rest_after(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    FIRST_REST.saturating_mul(1 << doublings).min(LONGEST_REST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempts(list: &[(u64, FailureKind)]) -> Vec<Attempt> {
        list.iter()
            .map(|&(builder, kind)| Attempt {
                builder: BuilderId(builder),
                kind,
                reason: format!("{kind:?}"),
            })
            .collect()
    }

    fn given_up(list: &[(u64, FailureKind)]) -> Option<Failure> {
        match next(&attempts(list)) {
            Next::Again => None,
            Next::GiveUp(failure) => Some(failure),
        }
    }

    #[test]
    fn what_would_fail_anywhere_is_final_with_its_own_reason() {
        use FailureKind::{BuilderLost, Derivation};
        let failure = given_up(&[(1, BuilderLost), (2, Derivation)]).unwrap();
        assert_eq!(failure, Failure::new(Derivation, "Derivation"));
    }

    #[test]
    fn a_transient_failure_is_tried_once_more() {
        use FailureKind::Transient;
        assert_eq!(given_up(&[(1, Transient)]), None);
        let failure = given_up(&[(1, Transient), (2, Transient)]).unwrap();
        assert_eq!(failure.kind, Transient);
        assert_eq!(failure.reason, "gave up after 2 attempts: on b-1: Transient; on b-2: Transient");
    }

    #[test]
    fn a_build_that_loses_three_different_builders_is_not_given_a_fourth() {
        use FailureKind::BuilderLost;
        assert_eq!(given_up(&[(1, BuilderLost), (1, BuilderLost), (2, BuilderLost)]), None);
        let failure = given_up(&[(1, BuilderLost), (2, BuilderLost), (3, BuilderLost)]).unwrap();
        assert!(failure.reason.starts_with("3 builders were lost while they built it"), "{failure}");
    }

    #[test]
    fn losing_the_same_builder_again_and_again_ends_too() {
        use FailureKind::BuilderLost;
        assert_eq!(given_up(&[(1, BuilderLost); 4]), None);
        assert!(given_up(&[(1, BuilderLost); 5]).is_some());
    }

    #[test]
    fn the_rest_doubles_up_to_five_minutes() {
        let rests: Vec<u64> = (1..=9).map(|failures| rest_after(failures).as_secs()).collect();
        assert_eq!(rests, [3, 6, 12, 24, 48, 96, 192, 300, 300]);
        assert_eq!(rest_after(u32::MAX), LONGEST_REST);
    }
}
