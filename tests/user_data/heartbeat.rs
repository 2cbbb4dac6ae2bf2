//! The heartbeat in a real shell with a real curl, against instance metadata on loopback.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use nix_broker::provider::ec2::boot::beat::{self, Beat, BeatError, BeatOrder, Notice};
use nix_broker::provider::ec2::boot::ready::State;

use crate::machine::{Machine, SHELLS, printed};

/// IMDSv2: nothing without a token, and a token only for a PUT that says how long it is for.
struct Metadata {
    address: String,
}

impl Metadata {
    /// Serves these documents until the process ends; anything else is 404.
    fn serve(documents: &'static [(&'static str, u16, &'static str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(&mut stream.unwrap(), documents);
            }
        });
        Self { address }
    }
}

fn answer(stream: &mut TcpStream, documents: &[(&str, u16, &str)]) {
    let mut reader = BufReader::new(stream.try_clone().unwrap().take(8000));
    let lines: Vec<String> =
        reader.by_ref().lines().map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
    let has = |header: &str| lines.iter().any(|line| line.eq_ignore_ascii_case(header));
    let (status, body) = match lines[0].split(' ').take(2).collect::<Vec<_>>()[..] {
        ["PUT", "/latest/api/token"] if has("X-aws-ec2-metadata-token-ttl-seconds: 60") => (200, "TOKEN=="),
        ["GET", path] if has("X-aws-ec2-metadata-token: TOKEN==") => {
            documents.iter().find(|(name, _, _)| path == format!("/latest/meta-data/{name}")).map_or(
                (404, "<?xml version=\"1.0\"?>\n<html>404 - Not Found</html>\n"),
                |(_, status, body)| (*status, *body),
            )
        }
        _ => (401, "<html>401 - Unauthorized</html>"),
    };
    let length = body.len();
    let reply = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    stream.write_all(reply.as_bytes()).unwrap();
}

fn machine(shell: &'static str) -> Machine {
    let machine = Machine::new(shell);
    machine.boot();
    machine
}

fn beat_with(machine: &Machine, imds: &str) -> Beat {
    let command = beat::command(BeatOrder { spot: true, in_use: false });
    let output =
        machine.command(machine.shell).args(["-c", &command]).env("NIX_BROKER_IMDS", imds).output().unwrap();
    beat::parse(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", printed(&output)))
}

#[test]
fn a_beat_renews_the_lease_with_the_builders_own_uptime() {
    for shell in SHELLS {
        let machine = machine(shell);
        machine.set_uptime(1234);
        let said = machine.beat(false);
        assert_eq!(machine.read("run/nix-broker/lease_at"), "1234\n");
        assert!(!machine.path("run/nix-broker/used_at").exists());
        assert_eq!(said.uptime, Duration::from_millis(1_234_500));
        assert_eq!((said.notice, said.notices_unreadable, said.ending), (None, false, None));

        machine.set_uptime(1300);
        machine.beat(true);
        assert_eq!(machine.read("run/nix-broker/lease_at"), "1300\n");
        assert_eq!(machine.read("run/nix-broker/used_at"), "1300\n");
    }
}

#[test]
fn a_lease_that_cannot_be_renewed_is_told() {
    for shell in SHELLS {
        // Nothing has booted there.
        let machine = Machine::new(shell);
        let command = beat::command(BeatOrder { spot: false, in_use: true });
        let output = machine.command(shell).args(["-c", &command]).output().unwrap();
        assert_eq!(beat::parse(&output.stdout), Err(BeatError::NotRenewed), "{}", printed(&output));
        assert_eq!(machine.progress().state, State::Booting);
    }
}

#[test]
fn spot_notices_are_read_with_a_token() {
    const TAKEN: (&str, u16, &str) =
        ("spot/instance-action", 200, "{\"action\": \"terminate\", \"time\": \"2026-11-21T08:22:00Z\"}");
    const ADVICE: (&str, u16, &str) =
        ("events/recommendations/rebalance", 200, "{\n  \"noticeTime\": \"2026-11-21T08:20:00Z\"\n}\n");
    let calm = Metadata::serve(&[]);
    let taken = Metadata::serve(&[TAKEN]);
    let advice = Metadata::serve(&[ADVICE]);
    let both = Metadata::serve(&[ADVICE, TAKEN]);
    let at = humantime::parse_rfc3339("2026-11-21T08:22:00Z").ok();
    for shell in SHELLS {
        let machine = machine(shell);
        let notice = |imds: &Metadata| {
            let beat = beat_with(&machine, &imds.address);
            assert!(!beat.notices_unreadable, "{beat:?}");
            beat.notice
        };
        assert_eq!(notice(&calm), None);
        assert_eq!(notice(&taken), Some(Notice::Interruption { at }));
        assert_eq!(notice(&advice), Some(Notice::Rebalance));
        assert_eq!(notice(&both), Some(Notice::Interruption { at }));
    }
}

#[test]
fn metadata_that_does_not_answer_is_neither_a_notice_nor_none() {
    let broken = Metadata::serve(&[
        ("spot/instance-action", 500, "oops"),
        ("events/recommendations/rebalance", 503, ""),
    ]);
    // Bound and gone again: nobody listens there.
    let closed = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    for shell in SHELLS {
        let machine = machine(shell);
        for address in [&broken.address, &closed] {
            machine.set_uptime(500);
            let beat = beat_with(&machine, address);
            assert_eq!((beat.notice, beat.notices_unreadable), (None, true), "{address}");
            // The lease does not depend on it.
            assert_eq!(machine.read("run/nix-broker/lease_at"), "500\n");
        }
    }
}

#[test]
fn a_notice_cannot_stand_for_another_line() {
    let odd = Metadata::serve(&[(
        "spot/instance-action",
        200,
        "{}\nlease_at = 1\noff = never\r\nrebalance = {} 200\n",
    )]);
    for shell in SHELLS {
        let machine = machine(shell);
        let beat = beat_with(&machine, &odd.address);
        assert_eq!(beat.notice, Some(Notice::Interruption { at: None }));
        assert_eq!(beat.ending, None);
    }
}
