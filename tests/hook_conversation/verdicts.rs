//! From the request to the reply, with a broker, without one, and with machines of the user's own.

use super::*;

#[test]
fn one_process_answers_many_requests_over_one_connection() {
    let place = Place::new();
    let broker = place.broker();
    let mut nix = asking(&place, SETTINGS);
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
    let ways: [(&str, Misbehave, &str); 5] = [
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
        let mut nix = asking(&place, SETTINGS);
        misbehave(&mut broker.accept());
        let reply = nix.reply();
        assert_eq!(reply.reply, "decline", "{name}");
        assert_one_warning(&reply.said, part);
    }
}

#[test]
fn a_broker_that_hangs_up_because_it_is_started_again_costs_nothing() {
    let place = Place::new();
    let broker = place.broker();
    let mut nix = asking(&place, SETTINGS);
    drop(broker.accept());
    let (_peer, _ask) = broker.accept_build();
    let reply = nix.reply();
    assert_eq!((reply.reply.as_str(), reply.said.len()), ("accept", 0), "{:?}", reply.said);
}

/// As one does that ends; its successor is asked at once, and if there is none yet, a little later.
#[test]
fn a_broker_that_hangs_up_is_waited_for_until_nobody_is_there_any_more() {
    type HangUp = fn(&mut Peer);
    let ways: [(&str, HangUp); 3] = [
        ("at once", |_| {}),
        ("after the greeting", |peer| drop(peer.hello())),
        ("after the question", |peer| {
            peer.hello();
            peer.send(&Reply::Go);
            peer.ask();
        }),
    ];
    for (name, hang_up) in ways {
        let place = Place::new();
        let broker = place.broker();
        let mut nix = asking(&place, SETTINGS);
        hang_up(&mut broker.accept());
        hang_up(&mut broker.accept());
        let reply = nix.reply();
        assert_eq!(reply.reply, "postpone", "{name}");
        assert_one_warning(&reply.said, "talk to the broker");

        broker.die();
        try_hello(&mut nix);
        let reply = nix.reply();
        assert_eq!((reply.reply.as_str(), reply.said.len()), ("decline", 0), "{name}");
    }
}

/// Nobody has answered: Nix is told to come back, and finds a broker then.
fn assert_a_later_broker_gets_it(place: &Place, nix: &mut FakeNix) {
    let reply = nix.reply();
    assert_eq!(reply.reply, "postpone");
    assert_one_warning(&reply.said, "asking it again");

    let broker = place.broker();
    try_hello(nix);
    let (_peer, _ask) = broker.accept_build();
    assert_eq!(nix.reply().reply, "accept");
}

/// With systemd the socket itself is made anew when the service is started again.
#[test]
fn a_broker_that_hangs_up_and_is_back_a_little_later_gets_the_build() {
    let place = Place::new();
    let broker = place.broker();
    let mut nix = asking(&place, SETTINGS);
    let caller = broker.accept();
    broker.die();
    drop(caller);
    assert_a_later_broker_gets_it(&place, &mut nix);
}

/// As one that was stopped while Nix did something else.
#[test]
fn a_broker_that_ended_between_two_requests_is_waited_for_a_moment() {
    let place = Place::new();
    let broker = place.broker();
    let mut nix = asking(&place, SETTINGS);
    let mut peer = broker.accept_hook();
    peer.ask();
    peer.send(&HookReply::Postpone { why: "as it should be".into() });
    assert_eq!(nix.reply().reply, "postpone");
    broker.die();
    drop(peer);

    for expected in ["postpone", "decline"] {
        try_hello(&mut nix);
        assert_eq!(nix.reply().reply, expected);
    }
}

#[test]
fn what_only_the_broker_can_build_waits_for_one_that_is_not_there_yet() {
    let place = Place::new();
    let mut nix = asking(&place, &[SETTINGS, &[("max-jobs", "0")]].concat());
    assert_a_later_broker_gets_it(&place, &mut nix);
}

#[test]
fn what_only_the_broker_can_build_is_declined_when_none_comes() {
    let place = Place::new();
    let mut nix = asking(&place, &[SETTINGS, &[("max-jobs", "0")]].concat());
    assert_eq!(nix.reply().reply, "postpone");
    assert_eq!(ask_until_decided(&mut nix).reply, "decline");
}

/// Asks until there is another reply than `postpone`, as Nix does.
fn ask_until_decided(nix: &mut FakeNix) -> fake_nix::Reply {
    let deadline = Instant::now() + fake_nix::DEADLINE;
    loop {
        try_hello(nix);
        let reply = nix.reply();
        if reply.reply != "postpone" {
            return reply;
        }
        assert!(Instant::now() < deadline, "Nix is told to come back for ever");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A hook that has asked once, in vain.
fn unanswered(place: &Place, broker: &FakeBroker, pairs: &[(&str, &str)]) -> FakeNix {
    let mut nix = asking(place, pairs);
    let _silent = broker.accept_hook();
    let reply = nix.reply();
    assert_eq!(reply.reply, "postpone");
    assert_one_warning(&reply.said, "does not answer");
    nix
}

#[test]
fn a_broker_that_never_answers_is_given_up_and_not_asked_again_soon() {
    let place = Place::new();
    let broker = place.broker();
    let mut nix = unanswered(&place, &broker, SETTINGS);
    let asked = std::thread::spawn(move || (ask_until_decided(&mut nix), nix));
    let _silent = broker.accept_hook();
    let (reply, mut nix) = asked.join().unwrap();
    assert_eq!((reply.reply.as_str(), reply.said.len()), ("decline", 0));
    for _ in 0..20 {
        try_hello(&mut nix);
        assert_eq!(nix.reply().reply, "decline");
    }
    assert!(!broker.has_caller(), "each of them waited again");
}

#[test]
fn a_broker_that_was_silent_for_a_moment_costs_that_moment() {
    let place = Place::new();
    let broker = place.broker();
    let mut nix = unanswered(&place, &broker, SETTINGS);
    let asked = std::thread::spawn(move || (ask_until_decided(&mut nix), nix));
    let mut peer = broker.accept_hook();
    assert!(matches!(peer.request(), HookRequest::Ask(_)));
    peer.send(&HookReply::Decline { why: "as it should be".into() });
    let (reply, mut nix) = asked.join().unwrap();
    assert_eq!(reply.reply, "decline");
    // The next moment is another one.
    try_hello(&mut nix);
    assert_eq!(nix.reply().reply, "postpone");
}

#[test]
fn what_only_the_broker_can_build_waits_longer_for_it() {
    let place = Place::new();
    let broker = place.broker();
    let mut nix = unanswered(&place, &broker, &[SETTINGS, &[("max-jobs", "0")]].concat());
    let asked = std::thread::spawn(move || ask_until_decided(&mut nix));
    // As long as it takes to give up what can be built here.
    let _silent = broker.accept_hook();
    let mut peer = broker.accept_hook();
    assert!(matches!(peer.request(), HookRequest::Ask(_)));
    peer.send(&HookReply::Decline { why: "as it should be".into() });
    let reply = asked.join().unwrap();
    assert!(reply.said.iter().any(|line| line.contains("as it should be")), "{:?}", reply.said);
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
