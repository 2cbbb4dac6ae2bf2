//! The other personality: a store on standard input and output.

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};

use nix_broker::ipc::{Hello, Reply, VERSION};

use super::{FakeBroker, Place, hook_program};

fn endpoint(place: &Place, words: &[&str], token: Option<&str>) -> Child {
    let mut command = Command::new(hook_program());
    command.args(words).env("NIX_BROKER_SOCKET", place.path("socket")).env_remove("NIX_BROKER_BUILD");
    if let Some(token) = token {
        command.env("NIX_BROKER_BUILD", token);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn open(broker: &FakeBroker) -> (Hello, super::Peer) {
    let mut peer = broker.accept();
    let hello = peer.hello();
    peer.send(&Reply::Go);
    (hello, peer)
}

#[test]
fn each_form_opens_its_own_door() {
    let place = Place::new();
    let broker = place.broker();
    let version = VERSION;
    for (words, token, expected) in [
        (&["--stdio"][..], None, Hello::Store { version }),
        (&["--stdio", "--store", "tiger"], None, Hello::Relay { version, pool: "tiger".into() }),
        (&["--stdio"], Some("t0"), Hello::Import { version, token: "t0".into() }),
        (&["--stdio", "--store", "x"], Some("t0"), Hello::Import { version, token: "t0".into() }),
    ] {
        let mut child = endpoint(&place, words, token);
        let (hello, peer) = open(&broker);
        assert_eq!(hello, expected);
        drop(peer);
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn bytes_go_both_ways_unchanged_and_at_once() {
    let place = Place::new();
    let broker = place.broker();
    let mut child = endpoint(&place, &["--stdio"], None);
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (_, mut peer) = open(&broker);
    // A short answer without a newline must not wait for more.
    for round in 0..50u8 {
        input.write_all(&[round, 0xff, b'\n']).unwrap();
        let mut bytes = [0; 3];
        peer.stream.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, [round, 0xff, b'\n']);
        peer.raw(&bytes[..2]);
        output.read_exact(&mut bytes[..2]).unwrap();
        assert_eq!(bytes[..2], [round, 0xff]);
    }
    // Megabytes each way, and the client's end before the broker's.
    let data: Vec<u8> = (0..5_000_000u32).map(|i| (i % 251) as u8).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            input.write_all(&data).unwrap();
            drop(input);
        });
        scope.spawn(|| {
            let mut received = Vec::new();
            peer.stream.read_to_end(&mut received).unwrap();
            assert!(received == data);
            peer.raw(&received);
            peer.stream.shutdown(std::net::Shutdown::Both).unwrap();
        });
        let mut received = Vec::new();
        output.read_to_end(&mut received).unwrap();
        assert!(received == data);
    });
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_end_of_the_broker_is_the_end_even_when_the_client_waits() {
    let place = Place::new();
    let broker = place.broker();
    let mut child = endpoint(&place, &["--stdio"], None);
    let _input = child.stdin.take();
    let (_, peer) = open(&broker);
    drop(peer);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_refusal_is_said_and_fails() {
    let place = Place::new();
    let broker = place.broker();
    let child = endpoint(&place, &["--stdio"], Some("old"));
    let mut peer = broker.accept();
    peer.hello();
    peer.send(&Reply::Refused { why: "no build has this token".into() });
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"");
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "error: the broker refuses: no build has this token\n"
    );
}

#[test]
fn no_broker_is_said_and_fails() {
    let place = Place::new();
    let output = endpoint(&place, &["--stdio"], None).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: connect to the broker at `"));
}

#[test]
fn help_and_version_are_answered() {
    let place = Place::new();
    for (word, part) in [("--help", "Usage: broker-hook"), ("--version", env!("CARGO_PKG_VERSION"))] {
        let output = endpoint(&place, &[word], None).wait_with_output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains(part));
    }
    assert_eq!(endpoint(&place, &["--nonsense"], None).wait_with_output().unwrap().status.code(), Some(2));
}
