//! Connections that a command makes, and what becomes of the command.

use super::*;

#[tokio::test]
async fn a_proxy_command_carries_the_connection_and_dies_with_it() {
    let sshd = Sshd::start(&[]);
    let pid_file = sshd.directory.path().join("proxy.pid");
    let port = sshd.target.port;
    let relay = format!("echo $$ > {}; exec python3 -c \"$RELAY\" 127.0.0.7 {port}", pid_file.display());
    let script = "import os, select, socket, sys\n\
        peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n\
        while True:\n\
        \u{20}for source in select.select([0, peer], [], [])[0]:\n\
        \u{20}\u{20}data = os.read(0, 65536) if source == 0 else peer.recv(65536)\n\
        \u{20}\u{20}if not data: sys.exit()\n\
        \u{20}\u{20}peer.sendall(data) if source == 0 else os.write(1, data)\n";
    let command = format!("RELAY='{script}'; export RELAY; {relay}");
    // Nobody is at this address: only the command knows the way.
    let target = Target { address: "192.0.2.1".into(), proxy_command: Some(command), ..sshd.target.clone() };
    let session = Session::dial(&target, soon()).await.unwrap();
    let output = session.run("echo through", soon()).await.unwrap();
    assert_eq!(output.stdout, b"through\n");
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    let alive = || Path::new("/proc").join(pid.trim()).join("cmdline").exists();
    assert!(alive());
    drop(session);
    let until = std::time::Instant::now() + PATIENCE;
    while alive() {
        assert!(std::time::Instant::now() < until, "the command outlives its connection");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let target = Target { proxy_command: Some("echo not ssh; echo no way >&2; exit 7".into()), ..target };
    let error = Session::dial(&target, soon()).await.unwrap_err();
    assert!(matches!(error, DialError::Proxy { .. }), "{error}");
    let words = error.to_string();
    assert!(words.starts_with("SSH handshake with 192.0.2.1:"), "{words}");
    let expected = "the `proxy-command` ended with status 7 and printed `no way`; try it by hand";
    assert!(words.contains(expected), "{words}");
    assert!(!error.is_final());
}

#[tokio::test]
async fn a_proxy_command_that_hangs_is_given_up_with_its_children_and_its_words() {
    let folder = tempfile::tempdir().unwrap();
    let pid_file = folder.path().join("pid");
    // A child of the shell, which the shell waits for.
    let command =
        format!("echo asks for a password >&2; sleep 1000 & echo $! > {}; wait", pid_file.display());
    let target = Target {
        address: "192.0.2.1".into(),
        port: 22,
        user: "nobody".into(),
        host_keys: Vec::new(),
        key: ClientKey::generate(),
        proxy_command: Some(command),
    };
    let error = Session::dial(&target, Instant::now() + Duration::from_secs(2)).await.unwrap_err();
    let words = error.to_string();
    assert!(words.contains("SSH handshake with 192.0.2.1:22 gets no answer"), "{words}");
    let expected = "the `proxy-command` had not ended by itself and printed `asks for a password`";
    assert!(words.contains(expected), "{words}");
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    let stat =
        || std::fs::read_to_string(Path::new("/proc").join(pid.trim()).join("stat")).unwrap_or_default();
    let until = std::time::Instant::now() + PATIENCE;
    while !stat().is_empty() && !stat().contains(") Z ") {
        assert!(std::time::Instant::now() < until, "its child outlives it");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
