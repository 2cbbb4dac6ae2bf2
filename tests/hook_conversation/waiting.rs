//! From the reply to the end of the build: what Nix sees meanwhile, and what ends it early.

use super::*;

#[test]
fn the_reason_of_a_failure_is_the_last_line_and_one_message() {
    let place = Place::new();
    let broker = place.broker();
    let (nix, mut peer) = accepted(&place, &broker);
    peer.log(b"half a line");
    peer.send(&failed("no machine of type m7a.xlarge to be had", 1, false));
    let ended = nix.finish();
    assert_eq!(ended.status.code(), Some(1));
    assert_eq!(ended.log_text(), "half a line\nnix-broker: no machine of type m7a.xlarge to be had\n");
    assert_eq!(ended.said.lines().count(), 1);
    assert!(
        ended.said.contains("\"level\":0")
            && ended.said.contains("error: nix-broker: hello-2.12: no machine")
    );
}

#[test]
fn each_exit_status_of_the_broker_is_the_hooks_and_never_success() {
    let place = Place::new();
    let broker = place.broker();
    for (sent, expected) in [(100, 100), (101, 101), (1, 1), (0, 1)] {
        let (nix, mut peer) = accepted(&place, &broker);
        peer.send(&failed("why", sent, true));
        let ended: Ended = nix.finish();
        assert_eq!(ended.status.code(), Some(expected));
        assert_eq!(ended.said, "", "a derivation's failure is for Nix to show");
    }
}

#[test]
fn a_note_that_lasts_becomes_an_activity_and_ends_when_the_log_begins() {
    let place = Place::new();
    let broker = place.broker();
    let (nix, mut peer) = accepted(&place, &broker);
    peer.send(&HookReply::Note { text: "first thought".into() });
    peer.send(&HookReply::Note { text: "launching a builder".into() });
    let mut went_on = false;
    let ended = nix.finish_with(|_, said| {
        if said.contains("launching") && !went_on {
            went_on = true;
            peer.log(b"building\n");
            peer.send(&failed("end", 1, true));
        }
    });
    let lines: Vec<_> = ended.said.lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("\"start\"") && lines[0].contains("hello-2.12: launching a builder"));
    assert!(lines[1].contains("\"stop\""));
}

#[test]
fn a_flood_of_notes_becomes_a_few_lines() {
    let place = Place::new();
    let broker = place.broker();
    let (nix, mut peer) = accepted(&place, &broker);
    let flood = std::thread::spawn(move || {
        for i in 0..20_000 {
            peer.send(&HookReply::Note { text: format!("{i}{}", "x".repeat(500)) });
        }
        peer.send(&failed("end", 1, true));
        peer
    });
    let ended = nix.finish();
    drop(flood.join().unwrap());
    assert!(ended.said.lines().count() < 40, "{}", ended.said.lines().count());
}

#[test]
fn a_nix_that_does_not_read_fd_2_does_not_stop_the_log() {
    let place = Place::new();
    let broker = place.broker();
    let (nix, mut peer) = accepted(&place, &broker);
    // Nobody reads fd 2 while its pipe is full of other lines.
    let pipe = format!("/proc/{}/fd/2", nix.pid());
    let mut filler = std::fs::OpenOptions::new().write(true).open(pipe).unwrap();
    let flags = rustix::fs::fcntl_getfl(&filler).unwrap();
    rustix::fs::fcntl_setfl(&filler, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    let line = format!("@nix {{\"action\":\"stop\",\"id\":{}}}\n", "1".repeat(4096 - 29));
    assert_eq!(line.len(), 4096);
    while std::io::Write::write(&mut filler, line.as_bytes()).is_ok() {}
    drop(filler);
    let log = nix.log_pipe();
    peer.send(&HookReply::Note { text: "one note".into() });
    std::thread::sleep(Duration::from_millis(400));
    peer.log(b"the log goes on\n");
    let mut buffer = [0; 16];
    std::io::Read::read_exact(&mut &log, &mut buffer).unwrap();
    assert_eq!(&buffer, b"the log goes on\n");
}

#[test]
fn sigterm_while_waiting_ends_at_once_and_cancels() {
    let place = Place::new();
    let broker = place.broker();
    let (mut nix, mut peer) = accepted(&place, &broker);
    nix.signal(Signal::TERM);
    // By the kernel, at once: Nix's grace is 500 ms.
    let status = nix.wait_dead(fake_nix::DEADLINE).expect("an end");
    assert_eq!(status.signal(), Some(Signal::TERM.as_raw()));
    assert!(peer.is_closed());
}

#[test]
fn sigterm_while_importing_takes_the_stock_client_along() {
    let place = Place::new();
    let broker = place.broker();
    place.stock(r#"echo $$ >"$RECORD.new"; mv "$RECORD.new" "$RECORD"; sleep 60"#);
    let (mut nix, mut peer) = accepted(&place, &broker);
    peer.send(&succeeded());
    let deadline = Instant::now() + fake_nix::DEADLINE;
    while !place.path("record").exists() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(2));
    }
    nix.signal(Signal::TERM);
    let status = nix.wait_dead(fake_nix::DEADLINE).expect("an end");
    assert_eq!(status.signal(), Some(Signal::TERM.as_raw()));
    assert_ends(String::from_utf8(place.record()).unwrap().trim().parse().unwrap());
}

#[test]
fn the_end_of_nixs_stream_is_no_cancellation() {
    let place = Place::new();
    let broker = place.broker();
    let (mut nix, mut peer) = accepted(&place, &broker);
    assert!(nix.wait_dead(Duration::from_millis(150)).is_none());
    peer.log(b"still here\n");
    peer.send(&failed("end", 1, true));
    assert!(nix.finish().log_text().starts_with("still here\n"));
}

#[test]
fn a_nix_that_dies_after_the_accept_cancels() {
    let place = Place::new();
    let broker = place.broker();
    let (mut nix, mut peer) = taken(&place, &broker);
    nix.send(&fake_nix::number(5)).unwrap();
    nix.close_input();
    assert!(peer.is_closed());
    assert!(nix.wait_dead(fake_nix::DEADLINE).is_some_and(|status| !status.success()));
}
