//! No broker at the socket, one of another version, or one that says no.

use super::*;

#[test]
fn a_broker_of_another_version_is_told_of() {
    let other = StatusView { version: "0.0.9".to_owned(), ..idle() };
    let (run, _) = Desk::new().ask(&["status"], vec![OperatorReply::Status(other)]);
    insta::assert_snapshot!(run.text(), @r"
    exit 0
    --- stdout
    broker 0.0.9, up 3s, accepting builds

    POOL  BUILDERS  MAX  SLOTS  QUEUED  IDLE TIMEOUT
    x86   none      2    0/0    0       10m

    No builds.
    --- stderr
    warning: the running broker is 0.0.9, this command 0.1.0; `systemctl restart nix-broker` after an upgrade
    ");
}

#[test]
fn a_broker_that_is_not_running_has_its_own_exit_status() {
    let desk = Desk::new();
    insta::assert_snapshot!(desk.run(&["status"]).text(), @r"
    exit 3
    --- stderr
    error: the broker is not running: nobody listens at `DIR/s`
      caused by: No such file or directory (os error 2)
    hint: start it with `systemctl start nix-broker`, or name its socket with `--socket`
    ");
    // A socket that a broker left behind when it was killed.
    drop(UnixListener::bind(desk.path("s")).unwrap());
    insta::assert_snapshot!(desk.run(&["drain", "--all"]).text(), @r"
    exit 3
    --- stderr
    error: the broker is not running: nobody listens at `DIR/s`
      caused by: Connection refused (os error 111)
    hint: start it with `systemctl start nix-broker`, or name its socket with `--socket`
    ");
}

#[test]
fn a_refusal_is_passed_on_with_what_to_do() {
    let desk = Desk::new();
    let broker = desk.serve(|mut stream| {
        send(
            &mut stream,
            &Reply::Refused { why: "this broker speaks version 2, the client version 1".to_owned() },
        );
    });
    insta::assert_snapshot!(desk.run(&["status"]).text(), @r"
    exit 1
    --- stderr
    error: the broker refuses: this broker speaks version 2, the client version 1
    hint: this command and the running broker may be of different versions; after an upgrade, `systemctl restart nix-broker`
    ");
    broker.join().unwrap();
}

#[test]
fn whatever_else_is_at_the_socket_is_not_taken_for_a_broker() {
    let says = |bytes: &'static [u8]| {
        let desk = Desk::new();
        let other = desk.serve(move |mut stream| {
            stream.write_all(bytes).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            // Reads to the end, so that the client sees a close and no reset.
            drop(stream.read_to_end(&mut Vec::new()));
        });
        let run = desk.run(&["status"]);
        other.join().unwrap();
        run.text()
    };
    insta::assert_snapshot!(says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), @r"
    exit 1
    --- stderr
    error: what answers at `DIR/s` cannot be understood
      caused by: frame of unknown kind 72
    hint: either this is not the broker's socket, or broker and command are of different versions; after an upgrade, `systemctl restart nix-broker`
    ");
    insta::assert_snapshot!(says(b"m\xff\xff\xff\xff"), @r"
    exit 1
    --- stderr
    error: what answers at `DIR/s` cannot be understood
      caused by: frame of 4294967295 bytes is longer than 16777216
    hint: either this is not the broker's socket, or broker and command are of different versions; after an upgrade, `systemctl restart nix-broker`
    ");
    insta::assert_snapshot!(says(b"m\x02\x00\x00\x00{}"), @r"
    exit 1
    --- stderr
    error: what answers at `DIR/s` cannot be understood
      caused by: unexpected message
      caused by: missing field `reply` at line 1 column 2
    hint: either this is not the broker's socket, or broker and command are of different versions; after an upgrade, `systemctl restart nix-broker`
    ");
    insta::assert_snapshot!(says(b"m\x09\x00\x00\x00half"), @r"
    exit 1
    --- stderr
    error: the broker closed the connection
    hint: see its log with `journalctl -u nix-broker`
    ");
    insta::assert_snapshot!(says(b""), @r"
    exit 1
    --- stderr
    error: the broker closed the connection
    hint: see its log with `journalctl -u nix-broker`
    ");
}

#[test]
fn a_wrong_answer_is_no_answer() {
    let (run, _) = Desk::new().ask(&["status"], vec![OperatorReply::Why { lines: vec![] }]);
    insta::assert_snapshot!(run.text(), @r"
    exit 1
    --- stderr
    error: the broker gave the answer to another question: an explanation
    hint: either this is not the broker's socket, or broker and command are of different versions; after an upgrade, `systemctl restart nix-broker`
    ");
}

#[test]
fn the_socket_of_the_configuration_is_used_when_nothing_else_names_one() {
    let desk = Desk::new();
    fs::write(
        desk.path("config.toml"),
        format!("socket = \"{}\"\n[[pool]]\nname = \"p\"\n[pool.local]\n", desk.path("t")),
    )
    .unwrap();
    let run = desk.finish(desk.command().env_remove("NIX_BROKER_SOCKET").arg("status"));
    assert!(run.stderr.contains("nobody listens at `DIR/t`"), "{}", run.stderr);
    let run = desk.finish(desk.command().args(["status", "--socket", "/nonexistent/u"]));
    assert!(run.stderr.contains("nobody listens at `/nonexistent/u`"), "{}", run.stderr);
}
