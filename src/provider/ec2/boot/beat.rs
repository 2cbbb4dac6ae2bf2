//! The heartbeat of a builder: the command that renews its lease, and the reading of what it says about itself.
//!
//! When to beat and what to do about a notice is for the caller: every minute, every 5 seconds on spot. How busy a builder
//! is is asked of builders of every kind, elsewhere (`provider::load`).

use std::time::{Duration, SystemTime};

use super::answer::Answer;
use super::quoted;

/// What the command is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeatOrder {
    /// It is a spot instance: ask for notices too.
    pub spot: bool,
    /// Something is under way there (an upload is no process of a build): the idle limit begins anew.
    pub in_use: bool,
}

/// Renews the lease and prints the facts. For an SSH session as root, whatever its login shell.
pub fn command(order: BeatOrder) -> String {
    let market = if order.spot { "spot" } else { "on-demand" };
    let used = if order.in_use { "used" } else { "unused" };
    format!("sh -c {} beat {market} {used}", quoted(include_str!("beat.sh")))
}

/// What a builder says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// How long it is up.
    pub uptime: Duration,
    /// EC2 wants it back, or may soon.
    pub notice: Option<Notice>,
    /// Notices were asked for and could not be read: an interruption would come unannounced.
    pub notices_unreadable: bool,
    /// It is powering off; the reason is for people.
    pub ending: Option<String>,
}

/// What EC2 announces to a spot instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It is taken away.
    Interruption {
        /// When, where that could be read; two minutes after the notice at most.
        at: Option<SystemTime>,
    },
    /// It is more likely than usual to be taken away.
    Rebalance,
}

/// Why an answer is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BeatError {
    /// The lease is as old as before.
    #[error("the lease of the builder could not be renewed: is `/run/nix-broker` there?")]
    NotRenewed,
}

enum Item {
    None,
    Some(String),
    Unreadable,
}

/// Reads what [`command`] printed.
pub fn parse(stdout: &[u8]) -> Result<Beat, BeatError> {
    let answer = Answer::new(stdout);
    answer.number("lease_at").ok_or(BeatError::NotRenewed)?;
    let uptime = answer.number("uptime").and_then(|up| Duration::try_from_secs_f64(up).ok());
    let interruption = item(&answer, "interruption");
    let rebalance = item(&answer, "rebalance");
    let notices_unreadable =
        matches!(interruption, Item::Unreadable) || matches!(rebalance, Item::Unreadable);
    let notice = match (interruption, rebalance) {
        (Item::Some(body), _) => Some(Notice::Interruption { at: time(&body) }),
        (Item::None | Item::Unreadable, Item::Some(_)) => Some(Notice::Rebalance),
        (Item::None | Item::Unreadable, Item::None | Item::Unreadable) => None,
    };
    Ok(Beat {
        uptime: uptime.ok_or(BeatError::NotRenewed)?,
        notice,
        notices_unreadable,
        ending: answer.value("off"),
    })
}

/// A document of the instance's metadata, followed by the status it came with. `404` is what it says when there is none.
fn item(answer: &Answer, name: &'static str) -> Item {
    let Some(line) = answer.values(name).next() else { return Item::None };
    let (body, status) = line.rsplit_once(' ').unwrap_or(("", &line));
    match status {
        "200" => Item::Some(body.to_owned()),
        "404" => Item::None,
        _ => Item::Unreadable,
    }
}

/// Of `{"action": "terminate", "time": "2017-09-18T08:22:00Z"}`.
fn time(body: &str) -> Option<SystemTime> {
    let (_, rest) = body.split_once("\"time\"")?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    humantime::parse_rfc3339(rest.split_once('"')?.0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: &str = "lease_at = 1234\nuptime = 1234.56\n";

    fn notice(lines: &str) -> (Option<Notice>, bool) {
        let beat = parse(format!("{CALM}{lines}").as_bytes()).unwrap();
        (beat.notice, beat.notices_unreadable)
    }

    #[test]
    fn the_facts_are_read_and_what_else_a_login_prints_does_no_harm() {
        let beat = parse(format!("Welcome!\nload = none of these\n{CALM}").as_bytes());
        let expected = Beat {
            uptime: Duration::from_millis(1_234_560),
            notice: None,
            notices_unreadable: false,
            ending: None,
        };
        assert_eq!(beat.unwrap(), expected);
    }

    #[test]
    fn an_answer_without_a_lease_and_a_time_is_none() {
        assert_eq!(parse(b"lease_at = 5\nuptime = \n"), Err(BeatError::NotRenewed));
        assert_eq!(parse(CALM.replace("lease_at", "used_at").as_bytes()), Err(BeatError::NotRenewed));
        assert_eq!(parse(&[0xff; 100_000]), Err(BeatError::NotRenewed));
        assert_eq!(parse(b""), Err(BeatError::NotRenewed));
    }

    #[test]
    fn notices_are_told_apart_and_an_interruption_counts_more() {
        let at = humantime::parse_rfc3339("2017-09-18T08:22:00Z").ok();
        assert_eq!(notice("interruption = <?xml ?> 404\nrebalance = 404\n"), (None, false));
        let taken = "interruption = {\"action\": \"terminate\", \"time\": \"2017-09-18T08:22:00Z\"} 200\n";
        assert_eq!(notice(taken), (Some(Notice::Interruption { at }), false));
        let advice = "rebalance = {\"noticeTime\": \"2020-10-27T08:22:00Z\"} 200\n";
        assert_eq!(notice(&format!("interruption = 404\n{advice}")), (Some(Notice::Rebalance), false));
        assert_eq!(notice(&format!("{taken}{advice}")), (Some(Notice::Interruption { at }), false));
    }

    #[test]
    fn an_interruption_without_a_time_is_one_nevertheless() {
        for body in ["", "{}", "{\"time\": 5}", "{\"time\":\"soon\"}", "{\"time\""] {
            let line = format!("interruption = {body} 200\nrebalance = 404\n");
            assert_eq!(notice(&line), (Some(Notice::Interruption { at: None }), false), "{body}");
        }
    }

    #[test]
    fn a_notice_that_cannot_be_read_is_neither_there_nor_absent() {
        for said in ["000", "401", "<html> 503", ""] {
            assert_eq!(notice(&format!("interruption = {said}\nrebalance = 404\n")), (None, true), "{said}");
        }
    }

    #[test]
    fn a_machine_that_powers_off_says_why() {
        let beat = parse(format!("{CALM}off = nothing was built for 1200 s\n").as_bytes()).unwrap();
        assert_eq!(beat.ending.as_deref(), Some("nothing was built for 1200 s"));
    }
}
