//! Whether an instance is ready: the question as a shell command, and the reading of its answer.
//!
//! Only `user-data.sh` says ready, as its last act. What the builder then offers is asked with
//! [`probe`](crate::provider::probe).

use std::time::Duration;

use super::answer::Answer;
use super::quoted;

/// The version of `user-data.sh` that we understand; it is what the file `ready` says first.
pub(super) const VERSION: u32 = 1;
const MAX_PHASES: usize = 40;

/// Prints how far the boot is. For an SSH session as root, whatever its login shell.
pub fn command() -> String {
    format!("sh -c {}", quoted(include_str!("ready.sh")))
}

/// How far the boot is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What it comes to.
    pub state: State,
    /// What is done, in order.
    pub phases: Vec<Phase>,
}

/// What an instance says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Not ready yet.
    Booting,
    /// Everything is set up.
    Ready {
        /// The uptime at which it was.
        at: Duration,
    },
    /// It gave up and will never be ready; the reason is for people.
    Failed(String),
    /// It is powering off; the reason is for people.
    Ending(String),
}

/// A part of the boot that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// The uptime at which it was.
    pub at: Duration,
    /// `imds closed`.
    pub name: String,
}

/// The answer is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the instance does not say how far its boot is: does it run Linux with a shell?")]
pub struct ProgressError;

/// Reads what [`command`] printed.
pub fn parse(stdout: &[u8]) -> Result<Progress, ProgressError> {
    let answer = Answer::new(stdout);
    answer.number("boot-uptime").ok_or(ProgressError)?;
    let phases = answer.values("boot-phase").take(MAX_PHASES);
    let phases = phases.filter_map(|line| timed(&line)).map(|(at, name)| Phase { at, name }).collect();
    let state = if let Some(reason) = answer.value("boot-off") {
        State::Ending(reason)
    } else if let Some(reason) = answer.value("boot-failed") {
        State::Failed(reason)
    } else if let Some(ready) = answer.value("boot-ready") {
        match ready.split_once(' ').map(|(version, at)| (version.parse(), seconds(at))) {
            Some((Ok(VERSION), Some(at))) => State::Ready { at },
            Some(_) | None => State::Failed(format!(
                "it was set up by another version of nix-broker (`{ready}`, and {VERSION} is ours)"
            )),
        }
    } else {
        State::Booting
    };
    Ok(Progress { state, phases })
}

fn timed(line: &str) -> Option<(Duration, String)> {
    let (at, name) = line.split_once(' ')?;
    Some((seconds(at)?, name.to_owned()))
}

fn seconds(text: &str) -> Option<Duration> {
    text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(stdout: &str) -> State {
        parse(stdout.as_bytes()).unwrap().state
    }

    #[test]
    fn each_state_is_told_from_the_others() {
        assert_eq!(state("boot-uptime = 5.00\n"), State::Booting);
        assert_eq!(
            state("Welcome!\nboot-phase = 20.10 armed\nboot-ready = 1 41.27\nboot-uptime = 50.00\n"),
            State::Ready { at: Duration::from_millis(41_270) }
        );
        assert_eq!(
            state("boot-failed = Nix cannot be configured: no space\nboot-uptime = 50.00\n"),
            State::Failed("Nix cannot be configured: no space".into())
        );
        // Ready once, and now on its way out: no build may be sent there.
        assert_eq!(
            state("boot-ready = 1 41.27\nboot-off = nothing was built for 1200 s\nboot-uptime = 5\n"),
            State::Ending("nothing was built for 1200 s".into())
        );
    }

    #[test]
    fn phases_are_told_with_their_uptime() {
        let progress = parse(
            b"boot-phase = 20.10 armed\nboot-phase = nonsense\nboot-phase = 21.50 imds closed\n\
            boot-uptime = 22\n",
        );
        let phase = |millis, name: &str| Phase { at: Duration::from_millis(millis), name: name.into() };
        assert_eq!(progress.unwrap().phases, [phase(20_100, "armed"), phase(21_500, "imds closed")]);
    }

    #[test]
    fn an_unknown_version_is_not_ready() {
        for odd in ["2 41.0", "1", "1 soon", "1 -5", "1 inf", "one 41", "ready"] {
            let said = format!("boot-ready = {odd}\nboot-uptime = 50\n");
            assert!(matches!(state(&said), State::Failed(_)), "{odd}");
        }
    }

    #[test]
    fn nonsense_is_no_answer_and_does_no_harm() {
        for odd in ["", "boot-uptime =", "boot-uptime = x", "boot-uptime = NaN", "sh: not found\n"] {
            assert_eq!(parse(odd.as_bytes()), Err(ProgressError), "{odd}");
        }
        assert_eq!(parse(&[0xff; 100_000]), Err(ProgressError));
        let many = "boot-phase = 1 x\n".repeat(1000) + "boot-uptime = 5\n";
        assert_eq!(parse(many.as_bytes()).unwrap().phases.len(), MAX_PHASES);
        let long = format!("boot-uptime = 5\nboot-failed = \u{1b}[2J{}\n", "x".repeat(9000));
        let State::Failed(reason) = state(&long) else { panic!("not failed") };
        assert!(reason.starts_with("[2Jx") && reason.chars().count() == 1000, "{}", reason.len());
    }
}
