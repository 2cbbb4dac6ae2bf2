//! Finding the broker again after it went away under a build that Nix believes accepted: it is being restarted, most
//! likely, and comes back within seconds.

use std::path::Path;
use std::time::{Duration, Instant};

use super::broker_client::{BrokerClient, BrokerError};
use crate::ipc::{Ask, HookReply, HookRequest, WireFailure};

/// How long a broker that has just started may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Milliseconds in all, for tests.
const PATIENCE_VARIABLE: &str = "NIX_BROKER_HOOK_PATIENCE_MS";
/// Milliseconds of the first and of the longest pause, for tests: `50-1000`.
const BACKOFF_VARIABLE: &str = "NIX_BROKER_HOOK_BACKOFF_MS";

/// How the search ended.
#[derive(Debug)]
pub(super) enum Resumed {
    /// The broker has taken the build; the inputs come next.
    Taken(BrokerClient),
    /// The broker cannot take it.
    Failed(WireFailure),
}

/// How long to try, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patience {
    total: Duration,
    first: Duration,
    longest: Duration,
}

impl Patience {
    /// Sixty seconds, unless a test says otherwise.
    pub(super) fn from_environment() -> Self {
        let total = std::env::var(PATIENCE_VARIABLE).ok();
        let backoff = std::env::var(BACKOFF_VARIABLE).ok();
        Self::read(total.as_deref(), backoff.as_deref())
    }

    fn read(total: Option<&str>, backoff: Option<&str>) -> Self {
        let millis = |text: &str| text.trim().parse().ok().map(Duration::from_millis);
        let (first, longest) = backoff
            .and_then(|backoff| backoff.split_once('-'))
            .and_then(|(first, longest)| millis(first).zip(millis(longest)))
            .unwrap_or((Duration::from_millis(50), Duration::from_secs(1)));
        Self { total: total.and_then(millis).unwrap_or(Duration::from_secs(60)), first, longest }
    }
}

/// Tries to hand the build to whatever broker comes back. The last error when none does. A build that has lost brokers
/// before begins with a longer pause: it may be what they die of.
pub(super) fn resume(
    socket: &Path,
    ask: &Ask,
    patience: Patience,
    lost_before: u32,
) -> Result<Resumed, BrokerError> {
    let deadline = Instant::now() + patience.total;
    let request = HookRequest::Resume(ask.clone());
    let process = std::process::id();
    let mut pause = (patience.first * 2u32.saturating_pow(lost_before)).min(patience.longest);
    loop {
        std::thread::sleep(spread(pause, process));
        pause = (pause * 2).min(patience.longest);
        let answer = BrokerClient::connect(socket).and_then(|mut broker| {
            match broker.ask(&request, ANSWER_LIMIT)? {
                HookReply::Accept { .. } => Ok(Resumed::Taken(broker)),
                HookReply::Failed(failure) => Ok(Resumed::Failed(failure)),
                HookReply::Decline { .. }
                | HookReply::Postpone { .. }
                | HookReply::Note { .. }
                | HookReply::Soon { .. }
                | HookReply::Arriving { .. }
                | HookReply::Succeeded { .. } => Err(broker.out_of_turn()),
            }
        });
        let error = match answer {
            Ok(resumed) => return Ok(resumed),
            // It is back, and of another version than we are.
            Err(error @ BrokerError::Refused { .. }) => return Err(error),
            Err(error) => error,
        };
        if Instant::now() + pause > deadline {
            return Err(error);
        }
    }
}

/// Between three and five quarters of the pause, by process, so that a thousand hooks do not come back as one.
fn spread(pause: Duration, process: u32) -> Duration {
    pause * (96 + process % 64) / 128
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_a_minute_unless_told() {
        let normal = Patience::read(None, Some("nonsense"));
        assert_eq!(normal, Patience::read(Some("60000"), Some("50-1000")));
        assert_eq!(Patience::read(Some("10"), Some("1-2")).longest, Duration::from_millis(2));
    }

    #[test]
    fn pauses_are_spread_around_their_length() {
        let pause = Duration::from_millis(1_000);
        let all: Vec<_> = (0..200).map(|process| spread(pause, process)).collect();
        assert!(all.iter().all(|&one| one >= pause * 3 / 4 && one <= pause * 5 / 4));
        assert!(all.iter().max() > all.iter().min());
    }
}
