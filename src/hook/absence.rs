//! A broker that cannot be asked: when it is asked again, and what Nix is told meanwhile. Owns a decision about time alone;
//! what is asked, and of whom, is `conversation`'s.
//!
//! A machine that is short of memory or processor time makes the best broker silent for seconds. One that is started again
//! is not there for milliseconds, since systemd makes its socket anew, and after a crash for half a second. Nix takes
//! `postpone` for "ask again later", about five seconds later, and meanwhile does what else there is to do.

use std::time::{Duration, Instant};

/// What this machine can build waits so long for the broker before it is left to Nix.
const PATIENCE: Duration = Duration::from_secs(5);
/// What nobody else can build waits so long for one that is not there: two of Nix's questions more, or whoever has stopped
/// his broker would wait a minute to be told.
const LAST_PATIENCE_WITHOUT: Duration = Duration::from_secs(10);
/// The same for one that is there, since to decline the build is to fail it.
const LAST_PATIENCE: Duration = Duration::from_secs(60);
/// Nix's event loop stands still for each question to a silent broker, so they are rare.
const PAUSE: Duration = Duration::from_secs(5);
/// The pause when nobody waits any more: a second for each of five hundred requests would be eight minutes.
const LONG_PAUSE: Duration = Duration::from_secs(30);

/// What is noticed of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// It listens, and says nothing for as long as Nix can stand still.
    Silent,
    /// It hung up on the question, as one does that ends, most likely to be started again.
    HungUp,
    /// Nobody listens.
    Nobody,
}

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
pub(super) struct Absence {
    sign: Sign,
    began: Instant,
    ask_again: Instant,
}

impl Absence {
    /// It has not answered now, as little as before.
    pub(super) fn noticed(before: Option<Self>, sign: Sign, now: Instant) -> Self {
        let began = before.map_or(now, |before| before.began);
        let pause = match sign {
            Sign::HungUp | Sign::Nobody => Duration::ZERO,
            Sign::Silent if now.duration_since(began) < LAST_PATIENCE => PAUSE,
            Sign::Silent => LONG_PAUSE,
        };
        Self { sign, began, ask_again: now + pause }
    }

    /// Whether it is left alone for now.
    pub(super) fn holds(&self, now: Instant) -> bool {
        now < self.ask_again
    }

    /// Whether Nix is told to ask again later.
    pub(super) fn is_worth_waiting(&self, now: Instant, otherwise: Otherwise) -> bool {
        let patience = match (otherwise, self.sign) {
            // Whoever has stopped his broker sees at once that it is not there.
            (Otherwise::Built, Sign::Nobody) => Duration::ZERO,
            (Otherwise::Built, Sign::Silent | Sign::HungUp) => PATIENCE,
            (Otherwise::Fails, Sign::Nobody) => LAST_PATIENCE_WITHOUT,
            (Otherwise::Fails, Sign::Silent | Sign::HungUp) => LAST_PATIENCE,
        };
        now.duration_since(self.began) < patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_broker_is_waited_for_and_not_asked_often() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut silence = Absence::noticed(None, Sign::Silent, start);
        for (seconds, built, fails) in [(0, true, true), (4, true, true), (5, false, true), (59, false, true)]
        {
            assert_eq!(silence.is_worth_waiting(at(seconds), Otherwise::Built), built, "{seconds}");
            assert_eq!(silence.is_worth_waiting(at(seconds), Otherwise::Fails), fails, "{seconds}");
            silence = Absence::noticed(Some(silence), Sign::Silent, at(seconds));
            assert!(silence.holds(at(seconds + 4)) && !silence.holds(at(seconds + 5)), "{seconds}");
        }
        silence = Absence::noticed(Some(silence), Sign::Silent, at(60));
        assert!(!silence.is_worth_waiting(at(60), Otherwise::Fails));
        assert!(silence.holds(at(89)) && !silence.holds(at(90)));
    }

    #[test]
    fn a_broker_that_is_started_again_is_waited_for_and_one_that_was_stopped_only_by_what_it_alone_can_build()
    {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let hung_up = Absence::noticed(None, Sign::HungUp, start);
        assert!(!hung_up.holds(start), "to ask costs nothing");
        assert!(hung_up.is_worth_waiting(at(4), Otherwise::Built));
        assert!(!hung_up.is_worth_waiting(at(5), Otherwise::Built));
        assert!(hung_up.is_worth_waiting(at(59), Otherwise::Fails));

        for (before, seconds) in [(None, 0), (Some(hung_up), 1)] {
            let gone = Absence::noticed(before, Sign::Nobody, at(seconds));
            assert!(!gone.holds(at(seconds)), "to ask costs nothing");
            assert!(!gone.is_worth_waiting(at(seconds), Otherwise::Built));
            assert!(gone.is_worth_waiting(at(9), Otherwise::Fails));
            assert!(!gone.is_worth_waiting(at(10), Otherwise::Fails), "counted from the first question");
        }
    }
}
