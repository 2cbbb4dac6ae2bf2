//! The real `broker-hook` between a fake Nix, which is as unforgiving as the real one, and a scripted broker.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

#[path = "common/fake_broker.rs"]
mod fake_broker;
#[path = "common/fake_nix.rs"]
mod fake_nix;

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fake_broker::{FakeBroker, Peer};
use fake_nix::{Ended, FakeNix, hook_program, lists, request, settings};
use nix_broker::ipc::{HookReply, HookRequest, Reply, WireFailure};
use rustix::process::Signal;
use tempfile::TempDir;

const DRV: &str = "/nix/store/0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-hello-2.12.drv";
const SECRET: &str = "github.com=ghp_averysecrettoken";
const OUT: &[&str] = &["out"];

/// What the settings of a client look like: a few we want, many we do not.
const SETTINGS: &[(&str, &str)] = &[
    ("access-tokens", SECRET),
    ("builders", "@/nonexistent/machines"),
    ("builders-use-substitutes", "true"),
    ("cores", "77"),
    ("keep-failed", "false"),
    ("max-build-log-size", "1000000"),
    ("max-silent-time", "60"),
    ("store", "auto"),
    ("timeout", "3600"),
];

/// One test's folder: the socket, and programs that stand for the stock client.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn broker(&self) -> FakeBroker {
        FakeBroker::bind(&self.path("socket"))
    }

    fn hook(&self) -> FakeNix {
        self.hook_with(&[])
    }

    fn hook_with(&self, more: &[(&str, &str)]) -> FakeNix {
        let mut environment: Vec<(&str, OsString)> = vec![
            ("NIX_BROKER_SOCKET", self.path("socket").into()),
            ("NIX_BROKER_NIX", self.path("stock").into()),
            ("NIX_BROKER_HOOK_PATIENCE_MS", "300".into()),
            ("NIX_BROKER_HOOK_BACKOFF_MS", "5-20".into()),
            ("RECORD", self.path("record").into()),
            ("NIX_STATE_DIR", self.path("state").into()),
        ];
        environment.extend(more.iter().map(|(name, value)| (*name, OsString::from(value))));
        FakeNix::start(&hook_program(), &[], &environment)
    }

    /// The program that stands for `nix __build-remote`. What it is fed can go to `$RECORD`.
    fn stock(&self, script: &str) {
        let path = self.path("stock");
        // Not written in place: a process that another test forks meanwhile would hold it open for writing.
        std::fs::write(self.path("stock.new"), format!("#!/bin/bash\n{script}\n")).unwrap();
        std::fs::set_permissions(self.path("stock.new"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let copied = std::process::Command::new("cp").arg(self.path("stock.new")).arg(path).status();
        assert!(copied.unwrap().success());
    }

    fn record(&self) -> Vec<u8> {
        std::fs::read(self.path("record")).unwrap()
    }
}

fn try_hello(nix: &mut FakeNix) {
    nix.send(&request(true, "x86_64-linux", DRV, &["kvm"])).unwrap();
}

/// Up to the moment where hook and broker wait for the build.
fn accepted(place: &Place, broker: &FakeBroker) -> (FakeNix, Peer) {
    let mut nix = place.hook();
    nix.send(&settings(SETTINGS)).unwrap();
    try_hello(&mut nix);
    let (mut peer, _) = broker.accept_build();
    assert_eq!(nix.reply().reply, "accept");
    assert_eq!(nix.line().unwrap(), "tiger");
    nix.send_lists(&["/nix/store/a".to_owned()], OUT);
    peer.inputs();
    (nix, peer)
}

fn failed(reason: &str, exit_status: u8, is_build_failure: bool) -> HookReply {
    HookReply::Failed(WireFailure { reason: reason.to_owned(), exit_status, is_build_failure })
}

fn succeeded() -> HookReply {
    HookReply::Succeeded { token: "the-token".into() }
}

/// The first request of a process with these settings.
fn first_reply(place: &Place, pairs: &[(&str, &str)]) -> (FakeNix, fake_nix::Reply) {
    let mut nix = place.hook();
    nix.send(&settings(pairs)).unwrap();
    try_hello(&mut nix);
    let reply = nix.reply();
    (nix, reply)
}

fn assert_one_warning(said: &[String], part: &str) {
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("\"level\":1") && said[0].contains(part), "{said:?}");
}

#[test]
fn a_build_goes_from_the_request_to_the_importer() {
    let place = Place::new();
    let broker = place.broker();
    place.stock(
        r#"echo '# accept' >&2; echo 'ssh-ng://localhost?remote-program=/x' >&2
           cat >"$RECORD"; echo "token $NIX_BROKER_BUILD" >&4; exit 0"#,
    );
    let mut nix = place.hook();
    nix.send(&settings(SETTINGS)).unwrap();
    try_hello(&mut nix);
    let (mut peer, ask) = broker.accept_build();
    assert_eq!(ask.drv, DRV);
    assert_eq!((ask.system.as_str(), ask.am_willing), ("x86_64-linux", true));
    assert_eq!(ask.features, ["kvm"]);
    assert_eq!((ask.timeout, ask.max_silent_time, ask.cores, ask.max_log_size), (3600, 60, 77, 1_000_000));
    assert_eq!((ask.keep_failed, ask.use_substitutes), (false, true));
    assert_eq!(nix.reply().reply, "accept");
    assert_eq!(nix.line().unwrap(), "tiger");
    let inputs = ["/nix/store/a".to_owned(), "/nix/store/b".to_owned()];
    nix.send_lists(&inputs, &["dev", "out"]);
    let (paths, wanted) = peer.inputs();
    assert_eq!((paths, wanted), (inputs.to_vec(), vec!["dev".to_owned(), "out".to_owned()]));
    peer.log(b"building\n\xff\x00no newline");
    peer.send(&succeeded());
    let pid = nix.pid();
    let ended = nix.finish();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(ended.log, b"building\n\xff\x00no newlinetoken the-token\n");
    assert_eq!(ended.said, "");
    // What the stock client was fed: our machine in place of `builders`, the rest as Nix sent it.
    let line = format!("ssh-ng://localhost?remote-program=/proc/{pid}/exe x86_64-linux - 1 1 kvm - -");
    let mut pairs: Vec<_> = SETTINGS.iter().copied().filter(|(name, _)| *name != "builders").collect();
    pairs.push(("builders", &line));
    let expected =
        [settings(&pairs), request(false, "x86_64-linux", DRV, &["kvm"]), lists(&inputs, &["dev", "out"])]
            .concat();
    assert_eq!(place.record(), expected);
}

#[test]
fn sixty_kilobytes_of_log_arrive_whole_before_the_exit() {
    let place = Place::new();
    let broker = place.broker();
    let (nix, mut peer) = accepted(&place, &broker);
    let log: Vec<u8> =
        (0..60_000u32).map(|i| if i % 61 == 60 { b'\n' } else { b'a' + (i % 23) as u8 }).collect();
    log.chunks(7_000).for_each(|chunk| peer.log(chunk));
    peer.send(&failed("it did not work", 100, true));
    let mut rounds = 0;
    let ended = nix.finish_with(|_, _| {
        rounds += 1;
        std::thread::sleep(Duration::from_millis(2));
    });
    assert!(rounds > 10);
    assert!(ended.log.starts_with(&log), "{} of {} bytes", ended.log.len(), log.len());
    assert!(ended.log_text().ends_with("\nnix-broker: it did not work\n"));
    assert_eq!(ended.status.code(), Some(100));
}

#[test]
fn a_log_longer_than_every_pipe_arrives_whole() {
    let place = Place::new();
    let broker = place.broker();
    let (nix, mut peer) = accepted(&place, &broker);
    let writer = std::thread::spawn(move || {
        for i in 0..3_000 {
            peer.log(format!("{i:0>1000}\n").as_bytes());
        }
        peer.send(&failed("end", 1, true));
        peer
    });
    let ended = nix.finish();
    drop(writer.join().unwrap());
    assert_eq!(ended.log.len(), 3_000 * 1_001 + "nix-broker: end\n".len());
}

#[test]
fn two_thousand_inputs_of_two_hundred_kilobytes_arrive() {
    let place = Place::new();
    let broker = place.broker();
    let mut nix = place.hook();
    nix.send(&settings(SETTINGS)).unwrap();
    try_hello(&mut nix);
    let (mut peer, _) = broker.accept_build();
    assert_eq!(nix.reply().reply, "accept");
    nix.line();
    let inputs: Vec<_> = (0..2_000).map(|i| format!("/nix/store/{i:0>32}-{}", "n".repeat(60))).collect();
    assert!(lists(&inputs, OUT).len() > 200 << 10);
    nix.send_lists(&inputs, OUT);
    assert_eq!(peer.inputs().0, inputs);
    peer.send(&failed("enough", 1, true));
    assert_eq!(nix.finish().status.code(), Some(1));
}

#[test]
fn lists_that_come_before_the_reply_are_read_after_it() {
    let place = Place::new();
    let broker = place.broker();
    let mut nix = place.hook();
    let inputs: Vec<_> = (0..20).map(|i| format!("/nix/store/{i:0>32}-x")).collect();
    // Three times "no", with unread lists of every size in between, then a "yes".
    nix.send(&settings(SETTINGS)).unwrap();
    let mut peer = None;
    for n in [0, 3, 20] {
        try_hello(&mut nix);
        nix.send(&lists(&inputs[..n], &["a", "b", "c"])).unwrap();
        let peer = peer.get_or_insert_with(|| broker.accept_hook());
        peer.ask();
        peer.send(&HookReply::Decline { why: "no".into() });
        assert_eq!(nix.reply().reply, "decline");
    }
    try_hello(&mut nix);
    nix.send(&lists(&inputs, OUT)).unwrap();
    nix.close_input();
    let mut peer = peer.unwrap();
    peer.ask();
    peer.send(&HookReply::Accept { build: 1, machine: "tiger".into() });
    assert_eq!(nix.reply().reply, "accept");
    nix.line();
    assert_eq!(peer.inputs(), (inputs, vec!["out".to_owned()]));
}

#[test]
fn a_nix_that_blocks_in_early_lists_is_not_waited_for() {
    let place = Place::new();
    let broker = place.broker();
    let mut nix = place.hook();
    let inputs: Vec<_> = (0..4_000).map(|i| format!("/nix/store/{i:0>32}-{}", "n".repeat(60))).collect();
    nix.send(&settings(SETTINGS)).unwrap();
    let all = [request(true, "x86_64-linux", DRV, &[]), lists(&inputs, OUT)].concat();
    // The write blocks until the hook reads, and the hook must have replied by then.
    std::thread::scope(|scope| {
        scope.spawn(|| nix.send(&all).unwrap());
        let (mut peer, _) = broker.accept_build();
        assert_eq!(peer.inputs().0.len(), 4_000);
    });
    assert_eq!(nix.reply().reply, "accept");
}

#[test]
fn store_paths_in_the_second_list_are_no_output_names() {
    let place = Place::new();
    let broker = place.broker();
    let mut nix = place.hook();
    nix.send(&settings(SETTINGS)).unwrap();
    try_hello(&mut nix);
    let (mut peer, _) = broker.accept_build();
    assert_eq!(nix.reply().reply, "accept");
    nix.line();
    nix.send_lists(&["/nix/store/a".to_owned()], &["/nix/store/out"]);
    assert_eq!(peer.inputs(), (vec!["/nix/store/a".to_owned()], Vec::new()));
}

#[test]
fn one_process_answers_many_requests_over_one_connection() {
    let place = Place::new();
    let broker = place.broker();
    let mut nix = place.hook();
    nix.send(&settings(SETTINGS)).unwrap();
    try_hello(&mut nix);
    let mut peer = broker.accept_hook();
    for round in 0..5 {
        peer.ask();
        let reply = if round % 2 == 0 {
            HookReply::Postpone { why: "later".into() }
        } else {
            HookReply::Decline { why: "no".into() }
        };
        peer.send(&reply);
        assert_eq!(nix.reply().reply, if round % 2 == 0 { "postpone" } else { "decline" });
        try_hello(&mut nix);
    }
    // A broker that was restarted in between is asked again, without a word.
    drop(peer);
    let (_peer, _) = broker.accept_build();
    let reply = nix.reply();
    assert_eq!((reply.reply.as_str(), reply.said.len()), ("accept", 0));
}

#[test]
fn the_end_in_place_of_a_request_is_a_quiet_exit() {
    let place = Place::new();
    for bytes in [Vec::new(), settings(SETTINGS), [settings(SETTINGS), fake_nix::string("quit")].concat()] {
        let mut nix = place.hook();
        nix.send(&bytes).unwrap();
        assert_eq!(nix.exit_status().code(), Some(0));
    }
}

#[test]
fn a_request_that_cannot_be_read_is_declined_before_the_exit() {
    let place = Place::new();
    let mut nix = place.hook();
    let huge = [settings(SETTINGS), fake_nix::string("try"), fake_nix::number(1), vec![0xff; 8]].concat();
    nix.send(&huge).unwrap();
    assert_eq!(nix.reply().reply, "decline");
    let mut nix = place.hook();
    nix.send(&[fake_nix::number(1), vec![0xff; 8]].concat()).unwrap();
    let reply = nix.reply();
    assert_eq!(reply.reply, "decline");
    assert_one_warning(&reply.said, "cannot understand Nix");
}

#[test]
fn an_empty_builders_setting_opts_out_for_good() {
    let place = Place::new();
    let (nix, reply) = first_reply(&place, &[("builders", " ")]);
    assert_eq!((reply.reply.as_str(), reply.said.len()), ("decline-permanently", 0));
    assert_eq!(nix.exit_status().code(), Some(0));
}

#[test]
fn another_store_is_declined_with_one_warning() {
    let place = Place::new();
    let (mut nix, reply) = first_reply(&place, &[("store", "local?root=/tmp/x")]);
    assert_eq!(reply.reply, "decline");
    assert_one_warning(&reply.said, "local?root=/tmp/x");
    try_hello(&mut nix);
    let reply = nix.reply();
    assert_eq!((reply.reply.as_str(), reply.said.len()), ("decline", 0));
}

#[test]
fn a_decline_that_fails_the_build_says_what_the_pools_lack() {
    let machine = [("system", "x86_64-linux"), ("system-features", "big-parallel"), ("max-jobs", "2")];
    let idle = [("system", "x86_64-linux"), ("max-jobs", "0")];
    let is_said = |block: &[(&str, &str)], system: &str, features: &[&str]| {
        let place = Place::new();
        let broker = place.broker();
        let mut nix = place.hook();
        nix.send(&settings(block)).unwrap();
        nix.send(&request(false, system, DRV, features)).unwrap();
        let mut peer = broker.accept_hook();
        peer.ask();
        peer.send(&HookReply::Decline { why: "pool `a` lacks `kvm`".into() });
        let reply = nix.reply();
        assert_eq!(reply.reply, "decline");
        reply.said.join("\n").contains("lacks `kvm`")
    };
    assert!(is_said(&machine, "x86_64-linux", &["kvm"]));
    assert!(is_said(&machine, "aarch64-linux", &[]));
    assert!(is_said(&idle, "x86_64-linux", &[]));
    assert!(!is_said(&machine, "x86_64-linux", &["big-parallel"]), "this machine may build it");
    assert!(!is_said(&[], "aarch64-linux", &["kvm"]), "a Nix that sends nothing leaves it open");
}

#[test]
fn features_that_are_no_words_are_declined_without_asking() {
    let place = Place::new();
    let mut nix = place.hook();
    nix.send(&settings(SETTINGS)).unwrap();
    nix.send(&request(true, "x86_64-linux", DRV, &["a - -;ssh://elsewhere"])).unwrap();
    let reply = nix.reply();
    assert_eq!((reply.reply.as_str(), reply.said.len()), ("decline", 0));
}

#[test]
fn without_a_broker_and_without_machines_each_request_is_declined_and_one_warned_of() {
    let place = Place::new();
    let (mut nix, reply) = first_reply(&place, SETTINGS);
    assert_eq!(reply.reply, "decline");
    assert_one_warning(&reply.said, "systemctl status nix-broker");
    for _ in 0..3 {
        try_hello(&mut nix);
        let reply = nix.reply();
        assert_eq!((reply.reply.as_str(), reply.said.len()), ("decline", 0));
    }
}

#[test]
fn a_broker_that_fails_before_the_verdict_costs_one_warning_and_a_decline() {
    type Misbehave = fn(&mut Peer);
    let ways: [(&str, Misbehave, &str); 8] = [
        ("hangs up at once", |_| {}, "talk to the broker"),
        ("hangs up after the greeting", |peer| drop(peer.hello()), "talk to the broker"),
        (
            "hangs up after the question",
            |peer| {
                peer.hello();
                peer.send(&Reply::Go);
                peer.ask();
            },
            "talk to the broker",
        ),
        (
            "hangs up inside a frame",
            |peer| {
                peer.hello();
                peer.ask();
                peer.raw(b"m\x09\0\0\0{\"re");
            },
            "talk to the broker",
        ),
        (
            "talks another language",
            |peer| peer.raw(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            "frame of unknown kind 72",
        ),
        ("sends a hostile length", |peer| peer.raw(b"m\xff\xff\xff\xff"), "is longer than"),
        (
            "sends log in place of a verdict",
            |peer| {
                peer.send(&Reply::Go);
                peer.log(b"hello");
            },
            "frame of unknown kind 108",
        ),
        (
            "is of another version",
            |peer| peer.send(&Reply::Refused { why: "it speaks version 9".into() }),
            "it speaks version 9",
        ),
    ];
    for (name, misbehave, part) in ways {
        let place = Place::new();
        let broker = place.broker();
        let mut nix = place.hook();
        nix.send(&settings(SETTINGS)).unwrap();
        try_hello(&mut nix);
        misbehave(&mut broker.accept());
        // One that ends may be another one a moment later, so whoever hangs up is asked once more.
        if name.starts_with("hangs up") && !name.ends_with("inside a frame") {
            misbehave(&mut broker.accept());
        }
        let reply = nix.reply();
        assert_eq!(reply.reply, "decline", "{name}");
        assert_one_warning(&reply.said, part);
    }
}

#[test]
fn a_broker_that_hangs_up_because_it_is_started_again_costs_nothing() {
    let place = Place::new();
    let broker = place.broker();
    let mut nix = place.hook();
    nix.send(&settings(SETTINGS)).unwrap();
    try_hello(&mut nix);
    drop(broker.accept());
    let (_peer, _ask) = broker.accept_build();
    let reply = nix.reply();
    assert_eq!((reply.reply.as_str(), reply.said.len()), ("accept", 0), "{:?}", reply.said);
}

#[test]
fn a_broker_that_never_answers_is_given_up_and_not_asked_again_soon() {
    let place = Place::new();
    let broker = place.broker();
    let mut nix = place.hook();
    nix.send(&settings(SETTINGS)).unwrap();
    try_hello(&mut nix);
    let _peer = broker.accept();
    let reply = nix.reply();
    assert_eq!(reply.reply, "decline");
    assert_one_warning(&reply.said, "does not answer");
    for _ in 0..20 {
        try_hello(&mut nix);
        assert_eq!(nix.reply().reply, "decline");
    }
    assert!(!broker.has_caller(), "each of them waited again");
}

#[test]
fn a_broker_that_does_not_accept_connections_is_given_up() {
    let place = Place::new();
    // A full queue: nobody accepts, and it holds very few.
    let listener =
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
    let address = rustix::net::SocketAddrUnix::new(place.path("socket")).unwrap();
    rustix::net::bind(&listener, &address).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let mut queued = Vec::new();
    while queued.len() < 20 {
        let flags = rustix::net::SocketFlags::NONBLOCK;
        let (family, kind) = (rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM);
        let socket = rustix::net::socket_with(family, kind, flags, None).unwrap();
        if rustix::net::connect(&socket, &address).is_err() {
            break;
        }
        queued.push(socket);
    }
    assert!(queued.len() < 20, "the queue never fills");
    let (_nix, reply) = first_reply(&place, SETTINGS);
    assert_eq!(reply.reply, "decline");
    assert_one_warning(&reply.said, "connect to the broker");
}

#[test]
fn without_a_broker_the_stock_hook_gets_every_byte_when_there_are_machines() {
    let place = Place::new();
    place.stock(
        r#"echo '@nix {"action":"msg","level":3,"msg":"stock speaks"}' >&2
           echo '# accept' >&2; echo 'ssh://mac' >&2
           cat >"$RECORD"; echo 'log of stock' >&4
           echo '@nix {"action":"msg","level":3,"msg":"stock again"}' >&2; exit 7"#,
    );
    let pairs = [("access-tokens", SECRET), ("builders", "ssh://mac x86_64-linux")];
    let (mut nix, reply) = first_reply(&place, &pairs);
    assert_eq!(reply.reply, "accept");
    assert_eq!(reply.said.len(), 2, "{reply:?}");
    assert!(reply.said[0].contains("using the machines in `builders`"));
    assert!(reply.said[1].contains("stock speaks"));
    assert_eq!(nix.line().unwrap(), "ssh://mac");
    let inputs: Vec<_> = (0..2_000).map(|i| format!("/nix/store/{i:0>32}-{}", "n".repeat(60))).collect();
    nix.send_lists(&inputs, OUT);
    let ended = nix.finish();
    assert_eq!(ended.status.code(), Some(7));
    assert_eq!(ended.log, b"log of stock\n");
    assert!(ended.said.contains("stock again"));
    let request = request(true, "x86_64-linux", DRV, &["kvm"]);
    assert_eq!(place.record(), [settings(&pairs), request, lists(&inputs, OUT)].concat());
}

#[test]
fn the_stock_hook_answers_several_requests_in_one_process() {
    let place = Place::new();
    // Answers as often as it is asked, and would show it if it were started twice.
    place.stock(
        r#"echo started >>"$RECORD"; echo '# decline' >&2; echo '# postpone' >&2; echo '# decline' >&2; sleep 60 & wait"#,
    );
    let (mut nix, reply) = first_reply(&place, &[("builders", "ssh://mac")]);
    assert_eq!(reply.reply, "decline");
    for expected in ["postpone", "decline"] {
        try_hello(&mut nix);
        assert_eq!(nix.reply().reply, expected);
    }
    assert_eq!(place.record(), b"started\n");
}

#[test]
fn a_stock_hook_that_dies_or_is_missing_is_a_decline() {
    let place = Place::new();
    let pairs = [("builders", "ssh://mac")];
    let (mut nix, reply) = first_reply(&place, &pairs);
    assert_eq!((reply.reply.as_str(), reply.said.len()), ("decline", 1), "{reply:?}");
    place.stock("exit 1");
    try_hello(&mut nix);
    assert_eq!(nix.reply().reply, "decline");
    place.stock("echo '# decline-permanently' >&2; exit 0");
    try_hello(&mut nix);
    assert_eq!(nix.reply().reply, "decline", "the broker may be back for the next one");
}

#[test]
fn what_the_broker_declines_goes_to_the_users_own_machines() {
    let place = Place::new();
    let broker = place.broker();
    place.stock("echo '# accept' >&2; echo 'ssh://mac' >&2; cat >/dev/null; exit 0");
    let mut nix = place.hook();
    nix.send(&settings(&[("builders", "ssh://mac aarch64-darwin")])).unwrap();
    nix.send(&request(false, "aarch64-darwin", DRV, &[])).unwrap();
    let mut peer = broker.accept_hook();
    peer.ask();
    peer.send(&HookReply::Decline { why: "no pool for `aarch64-darwin`".into() });
    let reply = nix.reply();
    assert_eq!((reply.reply.as_str(), reply.said.len()), ("accept", 0));
    assert_eq!(nix.line().unwrap(), "ssh://mac");
    nix.send_lists(&[], OUT);
    assert_eq!(nix.finish().status.code(), Some(0));
}

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
    let mut nix = place.hook();
    nix.send(&settings(SETTINGS)).unwrap();
    try_hello(&mut nix);
    let (mut peer, _) = broker.accept_build();
    assert_eq!(nix.reply().reply, "accept");
    nix.line();
    nix.send(&fake_nix::number(5)).unwrap();
    nix.close_input();
    assert!(peer.is_closed());
    assert!(nix.wait_dead(fake_nix::DEADLINE).is_some_and(|status| !status.success()));
}

#[test]
fn a_restarted_broker_gets_the_build_again() {
    for step in ["after the accept", "after the inputs", "in the log", "in a frame", "nonsense"] {
        let place = Place::new();
        let broker = place.broker();
        let mut nix = place.hook();
        nix.send(&settings(SETTINGS)).unwrap();
        try_hello(&mut nix);
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

#[test]
fn an_importer_that_fails_gives_its_own_words() {
    let place = Place::new();
    let broker = place.broker();
    for (script, part) in [
        (
            r#"echo '@nix {"action":"msg","level":0,"msg":"error: path is corrupt"}' >&2; exit 1"#,
            "path is corrupt",
        ),
        ("echo 'terminate called' >&2; exit 134", "terminate called"),
        ("exit 3", "exit status: 3"),
        ("kill -9 $$", "signal: 9"),
    ] {
        for accept in ["", "echo '# accept' >&2; echo uri >&2; "] {
            place.stock(&format!("{accept} {script}"));
            let (nix, mut peer) = accepted(&place, &broker);
            peer.send(&succeeded());
            let ended = nix.finish();
            assert_eq!(ended.status.code(), Some(1));
            let last = ended.log_text();
            assert!(
                last.contains("cannot import the outputs of") && last.contains(part),
                "{accept}{script}: {last}"
            );
        }
    }
    place.stock(
        r#"echo '@nix {"action":"msg","level":0,"msg":"cannot build on it: no route"}' >&2; echo '# decline' >&2; sleep 60"#,
    );
    let (nix, mut peer) = accepted(&place, &broker);
    peer.send(&succeeded());
    let ended = nix.finish();
    assert!(ended.log_text().contains("declined: cannot build on it: no route"), "{}", ended.log_text());
}

#[test]
fn an_importer_that_is_postponed_is_started_again() {
    let place = Place::new();
    let broker = place.broker();
    place.stock(
        r#"echo x >>"$RECORD"; if [ "$(wc -l <"$RECORD")" -lt 3 ]; then echo '# postpone' >&2; exit 0; fi
           echo '# accept' >&2; echo uri >&2; cat >/dev/null; exit 0"#,
    );
    let (nix, mut peer) = accepted(&place, &broker);
    peer.send(&succeeded());
    assert_eq!(nix.finish().status.code(), Some(0));
    assert_eq!(place.record(), b"x\nx\nx\n");
}

#[test]
fn an_import_that_fails_with_its_broker_is_resumed() {
    let place = Place::new();
    let broker = place.broker();
    place.stock(
        r#"[ -e "$RECORD" ] && { echo '# accept' >&2; echo uri >&2; cat >/dev/null; exit 0; }
                   touch "$RECORD"; exec sleep 0.2; "#,
    );
    let (nix, mut peer) = accepted(&place, &broker);
    peer.send(&succeeded());
    drop(peer);
    let mut peer = broker.accept_hook();
    assert!(matches!(peer.request(), HookRequest::Resume(_)));
    peer.send(&HookReply::Accept { build: 2, machine: "tiger".into() });
    peer.inputs();
    peer.send(&succeeded());
    assert_eq!(nix.finish().status.code(), Some(0));
}

#[test]
fn an_importer_that_was_started_too_early_is_started_again() {
    let place = Place::new();
    let broker = place.broker();
    place.stock(
        r#"echo '# accept' >&2; echo uri >&2; cat >/dev/null; [ -e "$RECORD" ] && exit 0; touch "$RECORD"; exit 1"#,
    );
    for end in [succeeded(), HookReply::Arriving { token: "the-next".into() }] {
        let _absent = std::fs::remove_file(place.path("record"));
        let (nix, mut peer) = accepted(&place, &broker);
        peer.send(&HookReply::Arriving { token: "early".into() });
        peer.send(&end);
        peer.send(&succeeded());
        assert_eq!(nix.finish().status.code(), Some(0));
    }
    // The build ends badly after all, and says why.
    std::fs::remove_file(place.path("record")).unwrap();
    let (nix, mut peer) = accepted(&place, &broker);
    peer.send(&HookReply::Arriving { token: "early".into() });
    peer.send(&failed("builder b-1 was lost", 1, false));
    let ended = nix.finish();
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.log_text().ends_with("builder b-1 was lost\n"), "{}", ended.log_text());
}

#[test]
fn what_was_imported_while_it_arrived_is_imported_once_whatever_comes_after() {
    let place = Place::new();
    let broker = place.broker();
    place.stock(r#"echo x >>"$RECORD"; echo '# accept' >&2; echo uri >&2; cat >/dev/null; exit 0"#);
    for end in [Some(succeeded()), Some(failed("too late to matter", 1, false)), None] {
        let _absent = std::fs::remove_file(place.path("record"));
        let (nix, mut peer) = accepted(&place, &broker);
        peer.send(&HookReply::Arriving { token: "early".into() });
        if let Some(end) = end {
            peer.send(&end);
        }
        drop(peer);
        assert_eq!(nix.finish().status.code(), Some(0));
        assert_eq!(place.record(), b"x\n");
    }
}

/// A stock client that says in `$RECORD` when it starts, with which token and process, and what it was fed until its end.
const WAITS: &str = r#"echo "start $NIX_BROKER_BUILD $$" >>"$RECORD"; 
    fed=$(cat | tr -d '\0' | grep -c hello-2.12.drv) || exit 0
    echo "import $NIX_BROKER_BUILD" >>"$RECORD"; echo '# accept' >&2; echo uri >&2; exit 0"#;

/// The lines of `$RECORD` as soon as there are so many, without process numbers, and the processes.
fn recorded(place: &Place, lines: usize) -> (Vec<String>, Vec<u32>) {
    let deadline = Instant::now() + fake_nix::DEADLINE;
    loop {
        let text = std::fs::read_to_string(place.path("record")).unwrap_or_default();
        if text.lines().count() >= lines && text.ends_with('\n') {
            let words = |line: &str| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
            let processes = text.lines().filter_map(|line| line.split(' ').nth(2)?.parse().ok());
            return (text.lines().map(words).collect(), processes.collect());
        }
        assert!(Instant::now() < deadline, "{lines} lines wanted: {text}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn assert_ends(process: u32) {
    let deadline = Instant::now() + fake_nix::DEADLINE;
    let stat = PathBuf::from(format!("/proc/{process}/stat"));
    while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < deadline, "the stock client lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Up to the moment where an importer waits beside the build, for outputs under this token: its process too.
fn with_a_ready_importer(place: &Place, broker: &FakeBroker, token: &str) -> (FakeNix, Peer, u32) {
    let _absent = std::fs::remove_file(place.path("record"));
    let (nix, mut peer) = accepted(place, broker);
    peer.send(&HookReply::Soon { token: token.into() });
    let (lines, processes) = recorded(place, 1);
    assert_eq!(lines, [format!("start {token}")], "before the build has ended");
    (nix, peer, processes[0])
}

#[test]
fn an_importer_is_started_beside_a_short_build_and_imports_it() {
    let place = Place::new();
    let broker = place.broker();
    place.stock(WAITS);
    let (nix, mut peer, _) = with_a_ready_importer(&place, &broker, "the-token");
    peer.log(b"built\n");
    peer.send(&succeeded());
    let ended = nix.finish();
    assert_eq!((ended.status.code(), ended.log_text().as_str()), (Some(0), "built\n"));
    assert_eq!(recorded(&place, 2).0, ["start the-token", "import the-token"]);
}

#[test]
fn an_importer_that_waits_imports_nothing_else_and_is_done_without() {
    let place = Place::new();
    let broker = place.broker();
    place.stock(WAITS);
    // The outputs come under another name.
    let (nix, mut peer, _) = with_a_ready_importer(&place, &broker, "another");
    peer.send(&succeeded());
    assert_eq!(nix.finish().status.code(), Some(0));
    assert_eq!(recorded(&place, 3).0, ["start another", "start the-token", "import the-token"]);
    // It is gone when it is wanted.
    let (nix, mut peer, process) = with_a_ready_importer(&place, &broker, "the-token");
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(process.cast_signed()).unwrap(),
        Signal::KILL,
    )
    .unwrap();
    assert_ends(process);
    peer.send(&succeeded());
    assert_eq!(nix.finish().status.code(), Some(0));
    assert_eq!(recorded(&place, 3).0[2], "import the-token");
}

#[test]
fn an_importer_that_waits_in_vain_ends() {
    let place = Place::new();
    let broker = place.broker();
    place.stock(WAITS);
    // The build fails.
    let (nix, mut peer, process) = with_a_ready_importer(&place, &broker, "the-token");
    peer.send(&failed("exit code 3", 100, true));
    assert_eq!(nix.finish().status.code(), Some(100));
    assert_ends(process);
    // The hook is killed.
    let (mut nix, _peer, process) = with_a_ready_importer(&place, &broker, "the-token");
    nix.signal(Signal::KILL);
    nix.wait_dead(fake_nix::DEADLINE).expect("an end");
    assert_ends(process);
    // The build takes longer than was thought, and is imported by another.
    let (nix, mut peer, process) = with_a_ready_importer(&place, &broker, "the-token");
    assert_ends(process);
    peer.send(&succeeded());
    assert_eq!(nix.finish().status.code(), Some(0));
    assert_eq!(recorded(&place, 3).0, ["start the-token", "start the-token", "import the-token"]);
}

#[test]
fn lock_files_of_the_import_are_removed_and_others_stay() {
    let place = Place::new();
    let broker = place.broker();
    let locks = place.path("state").join("current-load");
    std::fs::create_dir_all(&locks).unwrap();
    place.stock(
        r#"cd "$NIX_STATE_DIR/current-load"; touch main-lock ssh:__mac-0 ssh-ng:__localhost?a=b-0 ssh-ng:__localhost?a=b.upload-lock
           echo '# accept' >&2; echo 'ssh-ng://localhost?a=b' >&2; cat >/dev/null; exit 0"#,
    );
    let (nix, mut peer) = accepted(&place, &broker);
    peer.send(&succeeded());
    assert_eq!(nix.finish().status.code(), Some(0));
    let mut left: Vec<_> = std::fs::read_dir(&locks)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["main-lock", "ssh:__mac-0"]);
}

#[test]
fn the_importers_progress_is_thinned_out_and_its_numbers_stay_true() {
    let place = Place::new();
    let broker = place.broker();
    place.stock(
        r#"echo '# accept' >&2; echo uri >&2; cat >/dev/null
           echo '@nix {"action":"start","id":5,"level":3,"type":100,"text":"copying path '"'x'"' from '"'ssh-ng://localhost?a'"'","fields":["x","ssh-ng://localhost","local"],"parent":0}' >&2
           for i in $(seq 1 3000); do echo '@nix {"action":"result","id":5,"type":105,"fields":['$i',3000,0,0]}'; done >&2
           echo '@nix {"action":"stop","id":5}' >&2; exit 0"#,
    );
    let (nix, mut peer) = accepted(&place, &broker);
    peer.send(&succeeded());
    let ended = nix.finish();
    assert_eq!(ended.status.code(), Some(0));
    let lines: Vec<_> = ended.said.lines().collect();
    assert!(lines.len() < 60, "{}", lines.len());
    assert!(lines[0].contains("'x' from 'tiger'") && !ended.said.contains("ssh-ng"), "{}", lines[0]);
    assert!(lines[lines.len() - 2].contains("[3000,3000,0,0]"), "{lines:?}");
    assert!(lines[lines.len() - 1].contains("\"stop\""));
}

#[test]
fn secrets_leave_the_hook_only_towards_the_stock_client() {
    let place = Place::new();
    let broker = place.broker();
    place.stock(r#"cat >"$RECORD"; exit 1"#);
    let mut nix = place.hook();
    nix.send(&settings(SETTINGS)).unwrap();
    try_hello(&mut nix);
    let mut peer = broker.accept();
    let mut sent = vec![peer.frame().unwrap(), peer.frame().unwrap()];
    peer.send(&Reply::Go);
    peer.send(&HookReply::Accept { build: 1, machine: "tiger".into() });
    let reply = nix.reply();
    nix.line();
    nix.send_lists(&[], OUT);
    sent.push(peer.frame().unwrap());
    peer.send(&succeeded());
    let ended = nix.finish();
    assert_eq!(ended.status.code(), Some(1));
    let everything = format!("{sent:?}{reply:?}{ended:?}");
    // `Frame` prints its bytes as numbers.
    let as_numbers = format!("{:?}", SECRET.as_bytes());
    assert!(!everything.contains(SECRET) && !everything.contains(as_numbers.trim_matches(['[', ']'])));
    assert!(String::from_utf8_lossy(&place.record()).contains(SECRET), "the stock client needs them");
}

mod endpoint {
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
        assert_eq!(
            endpoint(&place, &["--nonsense"], None).wait_with_output().unwrap().status.code(),
            Some(2)
        );
    }
}
