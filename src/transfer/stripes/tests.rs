//! The streams against the scripts themselves, run by this machine's `sh`.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::transfer::direct::DirectWriter;

struct Program {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    packs: bool,
}

/// A program that has said it is ready.
async fn program(command: &str) -> Program {
    let mut child = Command::new("sh")
        .args(["-c", &format!("exec {command}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut stdout = BufReader::new(stdout);
    let mut line = Vec::new();
    stdout.read_until(b'\n', &mut line).await.unwrap();
    assert!([READY, READY_TO_PACK, READY_PLAIN].contains(&&line[..]), "{line:?}");
    Program { child, stdin, stdout, packs: line == READY_TO_PACK }
}

fn place() -> Place {
    static COUNTER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let count = COUNTER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    Place::new(format!("test{}x{count}", std::process::id()))
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn lanes<S>(streams: impl IntoIterator<Item = S>) -> UnboundedReceiver<Lane<S>> {
    let (sender, receiver) = unbounded_channel();
    for (index, stream) in streams.into_iter().enumerate() {
        sender.send(Lane { index, stream }).map_err(drop).unwrap();
    }
    receiver
}

#[tokio::test]
async fn what_is_written_into_lanes_comes_out_in_order_and_nothing_is_left() {
    let place = place();
    let mut main = program(&place.merge_into("cat")).await;
    let (mut children, mut streams) = (Vec::new(), Vec::new());
    for index in 0..3 {
        let lane = program(&place.lane_up(index)).await;
        children.push(lane.child);
        streams.push(lane.stdin);
    }
    let content = content(5 * BLOCK + 12_345);
    let mut writer = StripedWriter::new(main.stdin, lanes(streams), false);
    // A request and its answer, before and after the large part: nothing waits in a block that is not full.
    writer.write_all(b"hello").await.unwrap();
    writer.flush().await.unwrap();
    let mut hello = [0; 5];
    main.stdout.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello");
    let expected = content.clone();
    let writing = tokio::spawn(async move {
        for part in content.chunks(70_000) {
            writer.write_all(part).await.unwrap();
        }
        // A pipe is closed by dropping it.
        writer.shutdown().await.unwrap();
    });
    let mut read = Vec::new();
    main.stdout.read_to_end(&mut read).await.unwrap();
    assert!(read == expected, "{} bytes of {}", read.len(), expected.len());
    writing.await.unwrap();
    assert!(main.child.wait().await.unwrap().success());
    for mut child in children {
        assert!(child.wait().await.unwrap().success());
    }
    assert!(!std::path::Path::new(&place.directory()).exists());
}

#[tokio::test]
async fn a_lane_that_is_lost_ends_the_stream_early_and_is_no_end_of_it() {
    let place = place();
    let mut main = program(&place.merge_into("cat")).await;
    let mut first = program(&place.lane_up(0)).await;
    let (sender, receiver) = unbounded_channel();
    sender.send(Lane { index: 0, stream: first.stdin }).unwrap();
    let mut writer = StripedWriter::new(main.stdin, receiver, false);
    writer.write_all(&content(1000)).await.unwrap();
    writer.flush().await.unwrap();
    let mut whole = vec![0; 1000];
    main.stdout.read_exact(&mut whole).await.unwrap();
    first.child.kill().await.unwrap();
    let writing = tokio::spawn(async move {
        let _fails_or_is_lost = writer.write_all(&content(BLOCK)).await;
        let _fails_or_is_lost = writer.flush().await;
    });
    let mut rest = Vec::new();
    main.stdout.read_to_end(&mut rest).await.unwrap();
    assert!(rest.len() < BLOCK);
    writing.await.unwrap();
    assert_eq!(main.child.wait().await.unwrap().code(), Some(0), "of `cat`, the program behind it");
    assert!(!std::path::Path::new(&place.directory()).exists());
}

#[tokio::test]
async fn what_comes_from_elsewhere_is_put_between_what_we_write() {
    let place = place();
    let mut main = program(&place.merge_into("cat")).await;
    let mut lane = program(&place.lane_from_elsewhere()).await;
    let (mut writer, elsewhere) = DirectWriter::new(main.stdin);
    let (ours, theirs) = (content(BLOCK + 5), content(2 * BLOCK));
    let sending = tokio::spawn({
        let theirs = theirs.clone();
        async move {
            for block in theirs.chunks(BLOCK) {
                lane.stdin.write_all(block).await.unwrap();
                lane.stdin.write_all(END_OF_BLOCK).await.unwrap();
            }
            drop(lane.stdin);
            assert!(lane.child.wait().await.unwrap().success());
        }
    });
    let expected = [&ours[..], &theirs, b"and at last"].concat();
    let writing = tokio::spawn(async move {
        writer.write_all(&ours).await.unwrap();
        elsewhere.take(BLOCK as u64);
        elsewhere.take(BLOCK as u64);
        writer.write_all(b"and at last").await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let mut read = Vec::new();
    main.stdout.read_to_end(&mut read).await.unwrap();
    assert!(read == expected, "{} bytes of {}", read.len(), expected.len());
    writing.await.unwrap();
    sending.await.unwrap();
    assert!(main.child.wait().await.unwrap().success());
    assert!(!std::path::Path::new(&place.directory()).exists());
}

#[tokio::test]
async fn less_from_elsewhere_than_was_said_is_the_end_and_nothing_of_ours_takes_its_place() {
    let place = place();
    let mut main = program(&place.merge_into("cat")).await;
    let mut lane = program(&place.lane_from_elsewhere()).await;
    let (mut writer, elsewhere) = DirectWriter::new(main.stdin);
    elsewhere.take(100);
    writer.write_all(b"ours").await.unwrap();
    writer.flush().await.unwrap();
    lane.stdin.write_all(b"short").await.unwrap();
    drop(lane.stdin);
    let mut read = Vec::new();
    main.stdout.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, b"short");
    assert!(lane.child.wait().await.unwrap().success());
    drop(writer);
    assert_eq!(main.child.wait().await.unwrap().code(), Some(0), "of `cat`, the program behind it");
}

#[tokio::test]
async fn scripts_end_when_nobody_comes() {
    let place = place();
    let main = program(&place.merge_into("cat")).await;
    let lane = program(&place.lane_up(0)).await;
    let Program { mut child, stdin, .. } = main;
    drop(stdin);
    assert!(child.wait().await.unwrap().success());
    let Program { mut child, stdin, .. } = lane;
    drop(stdin);
    assert!(child.wait().await.unwrap().success());
    assert!(!std::path::Path::new(&place.directory()).exists());
}

#[tokio::test]
async fn what_is_split_into_lanes_is_read_in_order_while_lanes_join() {
    let place = place();
    let dir = tempfile::tempdir().unwrap();
    let content = content(9 * BLOCK + 777);
    std::fs::write(dir.path().join("content"), &content).unwrap();
    // A `nix-store` that dumps this file, whatever it is asked for.
    let fake = dir.path().join("nix-store");
    std::fs::write(&fake, format!("#!/bin/sh\nexec cat {}/content\n", dir.path().display())).unwrap();
    std::fs::set_permissions(&fake, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = StorePath::from_base_name("0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-a").unwrap();
    let mut main = program(&format!("env PATH={}:$PATH {}", dir.path().display(), place.split(&path))).await;
    let (sender, receiver) = unbounded_channel();
    let mut reader = StripedReader::new(main.stdin, receiver, content.len() as u64, false);
    let mut read = vec![0; 3 * BLOCK];
    let mut children = Vec::new();
    for index in 0..3 {
        let lane = program(&place.lane_down(index)).await;
        children.push(lane.child);
        sender.send(Lane { index, stream: lane.stdout }).unwrap();
        if index == 0 {
            reader.read_exact(&mut read).await.unwrap();
        }
    }
    reader.read_to_end(&mut read).await.unwrap();
    assert!(read == content, "{} bytes of {}", read.len(), content.len());
    drop(reader);
    assert!(main.child.wait().await.unwrap().success());
    for mut child in children {
        child.wait().await.unwrap();
    }
    assert!(!std::path::Path::new(&place.directory()).exists());
}

#[tokio::test]
async fn an_archive_that_ends_too_early_is_followed_by_nonsense_and_not_by_silence() {
    let place = place();
    let path = StorePath::from_base_name("0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-a").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let fake = dir.path().join("nix-store");
    std::fs::write(&fake, "#!/bin/sh\necho beginning; exit 1\n").unwrap();
    std::fs::set_permissions(&fake, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut main = program(&format!("env PATH={}:$PATH {}", dir.path().display(), place.split(&path))).await;
    let lane = program(&place.lane_down(0)).await;
    let mut reader = StripedReader::new(main.stdin, lanes([lane.stdout]), 3 * BLOCK as u64, false);
    let mut read = Vec::new();
    reader.read_to_end(&mut read).await.unwrap();
    assert_eq!(read.len(), 3 * BLOCK);
    assert!(read.starts_with(b"beginning\ny\ny\n"));
    drop(reader);
    main.child.wait().await.unwrap();
}

/// A directory to be put before `PATH`, with these programs in it: names, and what `sh` is to do.
fn programs(programs: &[(&str, String)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, script) in programs {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    dir
}

fn with_programs(dir: &tempfile::TempDir, command: &str) -> String {
    format!("env PATH={}:$PATH {command}", dir.path().display())
}

/// Text that becomes much smaller, and no two blocks of it are alike.
fn text(len: usize) -> Vec<u8> {
    (0..).flat_map(|i: u32| format!("line {i} of the text\n").into_bytes()).take(len).collect()
}

/// A slow wire: so many bytes, then a pause. Counts what has gone over it.
async fn creep(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin) -> usize {
    let (mut part, mut count) = (vec![0; 32 << 10], 0);
    loop {
        let read = from.read(&mut part).await.unwrap_or(0);
        if read == 0 || to.write_all(&part[..read]).await.is_err() {
            return count;
        }
        count += read;
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn blocks_for_a_slow_wire_are_packed_and_come_out_as_they_were() {
    let place = place();
    let mut main = program(&place.merge_into("cat")).await;
    assert!(main.packs, "the tests need the program `zstd` (tests/lab/packages.sh)");
    let mut lane = program(&place.lane_up(0)).await;
    let (near, far) = tokio::io::duplex(64 << 10);
    let wire = tokio::spawn(async move { creep(far, lane.stdin).await });
    let mut writer = StripedWriter::new(main.stdin, lanes([near]), true);
    let content = text(24 * BLOCK);
    let expected = content.clone();
    let writing = tokio::spawn(async move {
        writer.write_all(&content).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let mut read = Vec::new();
    main.stdout.read_to_end(&mut read).await.unwrap();
    assert!(read == expected, "{} bytes of {}", read.len(), expected.len());
    writing.await.unwrap();
    let sent = wire.await.unwrap();
    assert!(sent < expected.len() / 2, "{sent} bytes went over the wire");
    assert!(lane.child.wait().await.unwrap().success());
}

#[tokio::test]
async fn blocks_over_a_slow_wire_are_asked_for_packed_and_read_as_they_were() {
    let place = place();
    let content = text(24 * BLOCK);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &content).unwrap();
    let dir = programs(&[("nix-store", format!("exec cat {}", file.path().display()))]);
    let path = StorePath::from_base_name("0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-a").unwrap();
    let main = program(&with_programs(&dir, &place.split(&path))).await;
    let lane = program(&place.lane_down(0)).await;
    let (near, far) = tokio::io::duplex(64 << 10);
    let wire = tokio::spawn(async move { creep(lane.stdout, far).await });
    let mut reader = StripedReader::new(main.stdin, lanes([near]), content.len() as u64, main.packs);
    let mut read = Vec::new();
    reader.read_to_end(&mut read).await.unwrap();
    assert!(read == content, "{} bytes of {}", read.len(), content.len());
    drop(reader);
    let sent = wire.await.unwrap();
    assert!(sent < content.len() / 2, "{sent} bytes went over the wire");
}

#[tokio::test]
async fn a_frame_that_is_damaged_or_missing_ends_the_stream_and_is_no_end_of_it() {
    // Something that takes the place of `zstd` when it matters.
    for broken in ["exit 1", "zstd \"$@\" | tr elx abc", "head -c 1000"] {
        let script = format!("PATH=${{PATH#*:}}; case $1 in -qc) exec zstd -qc ;; esac; {broken}");
        let dir = programs(&[("zstd", script)]);
        let place = place();
        let mut main = program(&with_programs(&dir, &place.merge_into("cat"))).await;
        let lane = program(&place.lane_up(0)).await;
        let (near, far) = tokio::io::duplex(64 << 10);
        let wire = tokio::spawn(async move { creep(far, lane.stdin).await });
        let mut writer = StripedWriter::new(main.stdin, lanes([near]), main.packs);
        let content = text(12 * BLOCK);
        let expected = content.clone();
        let writing = tokio::spawn(async move {
            let _fails_or_is_lost = writer.write_all(&content).await;
            let _fails_or_is_lost = writer.shutdown().await;
        });
        let mut read = Vec::new();
        main.stdout.read_to_end(&mut read).await.unwrap();
        assert!(read != expected, "{broken}");
        writing.abort();
        wire.abort();

        // The same on the way down, where we are the ones who notice.
        let place = self::place();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &expected).unwrap();
        let store = format!("exec cat {}", file.path().display());
        std::fs::write(dir.path().join("nix-store"), format!("#!/bin/sh\n{store}\n")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path().join("nix-store"), mode).unwrap();
        let path = StorePath::from_base_name("0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-a").unwrap();
        let main = program(&with_programs(&dir, &place.split(&path))).await;
        let lane = program(&place.lane_down(0)).await;
        let (near, far) = tokio::io::duplex(64 << 10);
        let wire = tokio::spawn(async move { creep(lane.stdout, far).await });
        let mut reader = StripedReader::new(main.stdin, lanes([near]), expected.len() as u64, main.packs);
        let mut read = Vec::new();
        let whole = reader.read_to_end(&mut read).await;
        assert!(whole.is_err(), "{broken}: {} bytes", read.len());
        wire.abort();
    }
}

#[tokio::test]
async fn a_machine_without_the_program_says_so_and_is_sent_plain_blocks() {
    let dir = programs(&[("zstd", "exit 127".to_owned())]);
    let place = place();
    let main = program(&with_programs(&dir, &place.merge_into("cat"))).await;
    assert!(!main.packs);
}
