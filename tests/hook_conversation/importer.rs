//! The stock client, which brings outputs into the store: when it starts, what it says, and how it ends.

use super::*;

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
