//! A broker that goes away while a build runs.

use super::*;

#[test]
fn a_restarted_broker_gets_the_build_again() {
    for step in ["after the accept", "after the inputs", "in the log", "in a frame", "nonsense"] {
        let place = Place::new();
        let broker = place.broker();
        let mut nix = asking(&place, SETTINGS);
        let (mut peer, ask) = broker.accept_build();
        assert_eq!(nix.reply().reply, "accept");
        nix.line();
        if step == "after the accept" {
            drop(peer);
            nix.send_lists(&["/nix/store/a".to_owned()], OUT);
        } else {
            nix.send_lists(&["/nix/store/a".to_owned()], OUT);
            peer.inputs();
            match step {
                "in the log" => peer.log(b"first try\n"),
                "in a frame" => peer.raw(b"l\x10\0\0\0half"),
                "nonsense" => peer.raw(b"?????"),
                _ => {}
            }
            drop(peer);
        }
        broker.die();
        std::thread::sleep(Duration::from_millis(30));
        let broker = place.broker();
        let mut peer = broker.accept_hook();
        assert_eq!(peer.request(), HookRequest::Resume(ask), "{step}");
        peer.send(&HookReply::Accept { build: 9, machine: "lion".into() });
        assert_eq!(peer.inputs(), (vec!["/nix/store/a".to_owned()], vec!["out".to_owned()]));
        peer.log(b"second try\n");
        peer.send(&failed("end", 100, true));
        let ended = nix.finish();
        assert!(ended.log_text().ends_with("second try\nnix-broker: end\n"), "{step}: {}", ended.log_text());
        assert_eq!(ended.status.code(), Some(100));
        let told: Vec<_> = ended.said.lines().filter(|line| line.contains("lost the broker")).collect();
        assert_eq!(told.len(), 1, "{step}: {}", ended.said);
    }
}

#[test]
fn a_broker_that_does_not_come_back_is_a_failure_that_says_so() {
    let place = Place::new();
    let broker = place.broker();
    let (nix, peer) = accepted(&place, &broker);
    drop(peer);
    broker.die();
    let ended = nix.finish();
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.log_text().contains("nix-broker: lost the broker, and cannot connect to the broker"));
    assert!(ended.said.contains("\"level\":0"));
}

#[test]
fn a_build_that_loses_every_broker_is_given_up() {
    let place = Place::new();
    let broker = place.broker();
    let (nix, mut peer) = accepted(&place, &broker);
    for _ in 0..5 {
        drop(peer);
        peer = broker.accept_hook();
        assert!(matches!(peer.request(), HookRequest::Resume(_)));
        peer.send(&HookReply::Accept { build: 1, machine: "tiger".into() });
        peer.inputs();
    }
    drop(peer);
    let ended = nix.finish();
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        ended.log_text().ends_with("nix-broker: lost the broker too many times\n"),
        "{}",
        ended.log_text()
    );
}

#[test]
fn a_broker_of_another_version_that_comes_back_is_a_failure_at_once() {
    let place = Place::new();
    let broker = place.broker();
    let (nix, peer) = accepted(&place, &broker);
    drop(peer);
    let mut peer = broker.accept();
    peer.hello();
    peer.send(&Reply::Refused { why: "this broker speaks version 2".into() });
    drop(peer);
    let ended = nix.finish();
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.log_text().contains("speaks version 2"));
}

#[test]
fn a_broker_that_refuses_the_resumed_build_says_why() {
    let place = Place::new();
    let broker = place.broker();
    let (nix, peer) = accepted(&place, &broker);
    drop(peer);
    let mut peer = broker.accept_hook();
    peer.request();
    peer.send(&failed("no pool fits any more", 1, false));
    let ended = nix.finish();
    assert!(ended.log_text().ends_with("nix-broker: no pool fits any more\n"));
}
