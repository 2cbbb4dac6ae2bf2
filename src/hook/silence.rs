//! A broker that does not answer: when it is asked again, and what Nix is told meanwhile. Owns a decision about time alone;
//! what is asked, and of whom, is `conversation`'s.
//!
//! A machine that is short of memory or processor time makes the best broker silent for seconds. Nix takes `postpone` for
//! "ask again later", about five seconds later, and meanwhile does what else there is to do.

use std::time::{Duration, Instant};

/// What this machine can build waits so long for the broker before it is left to Nix.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same for what nobody else can build, so that to decline it is to fail it.
const LAST_PATIENCE: Duration = Duration::from_secs(60);
/// Nix's event loop stands still for each question without an answer, so they are rare.
const PAUSE: Duration = Duration::from_secs(5);
/// The pause when nobody waits any more: a second for each of five hundred requests would be eight minutes.
const LONG_PAUSE: Duration = Duration::from_secs(30);

/// What becomes of a derivation that the broker does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Otherwise {
    /// Nix builds it here, or may.
    Built,
    /// Nothing can build it.
    Fails,
}

/// A broker that has not answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Silence {
    began: Instant,
    ask_again: Instant,
}

impl Silence {
    /// It has not answered now, as little as before.
    pub(super) fn noticed(before: Option<Self>, now: Instant) -> Self {
        let began = before.map_or(now, |before| before.began);
        let pause = if now.duration_since(began) < LAST_PATIENCE { PAUSE } else { LONG_PAUSE };
        Self { began, ask_again: now + pause }
    }

    /// Whether it is left alone for now.
    pub(super) fn holds(&self, now: Instant) -> bool {
        now < self.ask_again
    }

    /// Whether Nix is told to ask again later.
    pub(super) fn is_worth_waiting(&self, now: Instant, otherwise: Otherwise) -> bool {
        let patience = match otherwise {
            Otherwise::Built => PATIENCE,
            Otherwise::Fails => LAST_PATIENCE,
        };
        now.duration_since(self.began) < patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_built_here_waits_for_seconds_and_what_cannot_for_a_minute() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut silence = Silence::noticed(None, start);
        for (seconds, built, fails) in [(0, true, true), (4, true, true), (5, false, true), (59, false, true)]
        {
            assert_eq!(silence.is_worth_waiting(at(seconds), Otherwise::Built), built, "{seconds}");
            assert_eq!(silence.is_worth_waiting(at(seconds), Otherwise::Fails), fails, "{seconds}");
            silence = Silence::noticed(Some(silence), at(seconds));
            assert!(silence.holds(at(seconds + 4)) && !silence.holds(at(seconds + 5)), "{seconds}");
        }
        silence = Silence::noticed(Some(silence), at(60));
        assert!(!silence.is_worth_waiting(at(60), Otherwise::Fails));
        assert!(silence.holds(at(89)) && !silence.holds(at(90)));
    }
}
