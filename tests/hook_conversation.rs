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

#[path = "hook_conversation/endpoint.rs"]
mod endpoint;
#[path = "hook_conversation/importer.rs"]
mod importer;
#[path = "hook_conversation/restarts.rs"]
mod restarts;
#[path = "hook_conversation/verdicts.rs"]
mod verdicts;
#[path = "hook_conversation/waiting.rs"]
mod waiting;

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

/// A hook with these settings that was asked about one derivation.
fn asking(place: &Place, pairs: &[(&str, &str)]) -> FakeNix {
    let mut nix = place.hook();
    nix.send(&settings(pairs)).unwrap();
    try_hello(&mut nix);
    nix
}

/// Up to the accept; Nix sends its lists next.
fn taken(place: &Place, broker: &FakeBroker) -> (FakeNix, Peer) {
    let mut nix = asking(place, SETTINGS);
    let (peer, _) = broker.accept_build();
    assert_eq!(nix.reply().reply, "accept");
    assert_eq!(nix.line().unwrap(), "tiger");
    (nix, peer)
}

/// Up to the moment where hook and broker wait for the build.
fn accepted(place: &Place, broker: &FakeBroker) -> (FakeNix, Peer) {
    let (mut nix, mut peer) = taken(place, broker);
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
    let mut nix = asking(place, pairs);
    let reply = nix.reply();
    (nix, reply)
}

fn assert_one_warning(said: &[String], part: &str) {
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("\"level\":1") && said[0].contains(part), "{said:?}");
}

/// The process of a stock client ends.
fn assert_ends(process: u32) {
    let deadline = Instant::now() + fake_nix::DEADLINE;
    let stat = PathBuf::from(format!("/proc/{process}/stat"));
    while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < deadline, "the stock client lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_build_goes_from_the_request_to_the_importer() {
    let place = Place::new();
    let broker = place.broker();
    place.stock(
        r#"echo '# accept' >&2; echo 'ssh-ng://localhost?remote-program=/x' >&2
           cat >"$RECORD"; echo "token $NIX_BROKER_BUILD" >&4; exit 0"#,
    );
    let mut nix = asking(&place, SETTINGS);
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
    let (mut nix, mut peer) = taken(&place, &broker);
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
    let (mut nix, mut peer) = taken(&place, &broker);
    nix.send_lists(&["/nix/store/a".to_owned()], &["/nix/store/out"]);
    assert_eq!(peer.inputs(), (vec!["/nix/store/a".to_owned()], Vec::new()));
}

#[test]
fn secrets_leave_the_hook_only_towards_the_stock_client() {
    let place = Place::new();
    let broker = place.broker();
    place.stock(r#"cat >"$RECORD"; exit 1"#);
    let mut nix = asking(&place, SETTINGS);
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
