//! `broker logs`.

use super::*;

/// A broker that answers a question for a log so.
fn log_of(desk: &Desk, replies: Vec<LogReply>, log: &'static [&'static [u8]]) -> JoinHandle<OperatorRequest> {
    desk.serve(move |mut stream| {
        let _hello: Hello = Frame::read(&mut stream).unwrap().parse().unwrap();
        send(&mut stream, &Reply::Go);
        let request = Frame::read(&mut stream).unwrap().parse().unwrap();
        let mut replies = replies.iter();
        send(&mut stream, replies.next().unwrap());
        for piece in log {
            Frame::Log(piece.to_vec()).write(&mut stream).unwrap();
        }
        for reply in replies {
            send(&mut stream, reply);
        }
        request
    })
}

fn opened() -> LogReply {
    LogReply::Opened { build: 12, drv: drv("hello") }
}

fn log_ended(outcome: Option<&str>, reason: Option<&str>) -> LogReply {
    LogReply::Ended { outcome: outcome.map(str::to_owned), reason: reason.map(str::to_owned) }
}

#[test]
fn a_piped_log_is_the_very_bytes_and_its_end_is_said_to_who_follows() {
    const LOG: &[&[u8]] = &[b"one\n\x1b[31mtw", b"o\n@nix {}\nthree"];
    let desk = Desk::new();
    let broker = log_of(&desk, vec![opened(), log_ended(None, None)], LOG);
    let run = desk.run(&["logs", "hello"]);
    let asked = LogRequest { build: "hello".to_owned(), tail: None, follow: false };
    assert_eq!(broker.join().unwrap(), OperatorRequest::Log(asked));
    assert_eq!((run.code, run.stdout.as_str()), (0, "one\n\x1b[31mtwo\n@nix {}\nthree"));
    assert_eq!(run.stderr, "");

    for (end, code, said) in [
        (log_ended(Some("succeeded"), None), 0, "the build succeeded\n"),
        (
            log_ended(Some("failed"), Some("it exited\x1b[2J with 1")),
            1,
            "the build failed: it exited[2J with 1\n",
        ),
        (log_ended(Some("cancelled"), None), 1, "the build was cancelled\n"),
    ] {
        let desk = Desk::new();
        let broker = log_of(&desk, vec![opened(), end], LOG);
        let run = desk.run(&["logs", "-f", "#12"]);
        let asked = LogRequest { build: "#12".to_owned(), tail: None, follow: true };
        assert_eq!(broker.join().unwrap(), OperatorRequest::Log(asked));
        assert_eq!((run.code, run.stderr.as_str()), (code, said));
    }
}

#[test]
fn a_log_that_cannot_be_had_is_an_error_with_a_hint() {
    let desk = Desk::new();
    let refusal = LogReply::Failed {
        reason: "the log of `hello` is not yours".to_owned(),
        hint: Some("try it with `sudo`".to_owned()),
    };
    let _broker = log_of(&desk, vec![refusal], &[]);
    insta::assert_snapshot!(desk.run(&["logs", "hello"]).text(), @r"
    exit 1
    --- stderr
    error: the log of `hello` is not yours
    hint: try it with `sudo`
    ");
    let desk = Desk::new();
    let _broker = log_of(&desk, vec![opened()], &[b"half"]);
    let run = desk.run(&["logs", "-f", "hello"]);
    assert_eq!((run.code, run.stdout.as_str()), (1, "half"), "the broker went away: {}", run.stderr);
    assert!(run.stderr.contains("the broker closed the connection"), "{}", run.stderr);
}
