//! The archive format against another implementation (`nix-nar`) and against bytes nobody should send.

#![allow(clippy::wildcard_enum_match_arm)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

/// A file system tree.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    File { executable: bool, contents: Vec<u8> },
    Symlink(String),
    Directory(BTreeMap<String, Self>),
}

fn any_node() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![
        (any::<bool>(), prop::collection::vec(any::<u8>(), 0..100))
            .prop_map(|(executable, contents)| Node::File { executable, contents }),
        "[a-z/.é]{1,20}".prop_map(Node::Symlink),
        Just(Node::Directory(BTreeMap::new())),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        // Names in which the order of bytes, of letters and of lengths differ.
        let name = "[a-cA-C.~_é-]{1,4}".prop_filter("a real name", |name| name != "." && name != "..");
        prop::collection::btree_map(name, inner, 0..6).prop_map(Node::Directory)
    })
}

fn create(node: &Node, path: &Path) {
    match node {
        Node::File { executable, contents } => {
            fs::write(path, contents).unwrap();
            let mode = if *executable { 0o755 } else { 0o644 };
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        Node::Symlink(target) => std::os::unix::fs::symlink(target, path).unwrap(),
        Node::Directory(entries) => {
            fs::create_dir(path).unwrap();
            for (name, node) in entries {
                create(node, &path.join(name));
            }
        }
    }
}

/// A tree on disk that goes away with the value.
fn on_disk(node: &Node) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root");
    create(node, &path);
    (dir, path)
}

fn written(path: &Path) -> (Vec<u8>, NarDigest) {
    let mut bytes = Vec::new();
    let digest = write_tree(path, &mut bytes).unwrap();
    (bytes, digest)
}

/// What the parser says of bytes that come in pieces, as one text per event; contents are put together.
fn events(bytes: &[u8], piece: usize) -> Result<Vec<String>, NarError> {
    let mut parser = NarParser::new();
    let mut events = Vec::new();
    let mut contents: Option<Vec<u8>> = None;
    for piece in bytes.chunks(piece.max(1)) {
        let taken = parser.feed_with(piece, |event| {
            if let NarEvent::Contents(bytes) = event {
                assert!(!bytes.is_empty());
                contents.get_or_insert_default().extend_from_slice(bytes);
                return;
            }
            if let Some(contents) = contents.take() {
                events.push(format!("contents {contents:?}"));
            }
            events.push(match event {
                NarEvent::Entry { name } => format!("entry {}", String::from_utf8_lossy(name)),
                NarEvent::Symlink { target } => format!("symlink {}", String::from_utf8_lossy(target)),
                other => format!("{other:?}"),
            });
        })?;
        assert!(taken == piece.len() || parser.is_done());
    }
    parser.finish()?;
    if let Some(contents) = contents {
        events.push(format!("contents {contents:?}"));
    }
    Ok(events)
}

fn expected_events(node: &Node, events: &mut Vec<String>) {
    match node {
        Node::File { executable, contents } => {
            events.push(format!("File {{ executable: {executable}, size: {} }}", contents.len()));
            if !contents.is_empty() {
                events.push(format!("contents {contents:?}"));
            }
        }
        Node::Symlink(target) => events.push(format!("symlink {target}")),
        Node::Directory(entries) => {
            events.push("Directory".into());
            for (name, node) in entries {
                events.push(format!("entry {name}"));
                expected_events(node, events);
            }
            events.push("EndDirectory".into());
        }
    }
}

/// Strings as the archive has them.
fn strings(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in words {
        bytes.extend_from_slice(&(word.len() as u64).to_le_bytes());
        bytes.extend_from_slice(word);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes
}

/// An archive of a directory with empty files of these names, in this order.
fn directory_of(names: &[&[u8]]) -> Vec<u8> {
    let mut words: Vec<&[u8]> = vec![b"nix-archive-1", b"(", b"type", b"directory"];
    for name in names {
        words.extend([&b"entry"[..], b"(", b"name", name, b"node"]);
        words.extend([&b"("[..], b"type", b"regular", b"contents", b"", b")", b")"]);
    }
    words.push(b")");
    strings(&words)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn trees_are_written_as_another_implementation_writes_them(node in any_node(), piece in 1_usize..40) {
        let (_dir, path) = on_disk(&node);
        let (bytes, digest) = written(&path);
        let mut theirs = Vec::new();
        nix_nar::Encoder::new(&path).unwrap().read_to_end(&mut theirs).unwrap();
        prop_assert_eq!(&bytes, &theirs);
        prop_assert_eq!(digest.size, bytes.len() as u64);
        prop_assert_eq!(digest.sha256, Sha256Hash::of(&bytes));

        let mut expected = Vec::new();
        expected_events(&node, &mut expected);
        prop_assert_eq!(&events(&bytes, bytes.len()).unwrap(), &expected);
        prop_assert_eq!(&events(&bytes, piece).unwrap(), &expected);
    }

    #[test]
    fn what_we_take_another_implementation_takes(node in any_node(), at in any::<prop::sample::Index>(), byte: u8) {
        let (dir, path) = on_disk(&node);
        let (mut bytes, _) = written(&path);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let is_utf8 = |events: Vec<String>| events.iter().all(|event| !event.contains('\u{fffd}'));
        // The other implementation knows no names but UTF-8.
        if events(&bytes, 64).is_ok_and(is_utf8) {
            let unpacked = dir.path().join("unpacked");
            nix_nar::Decoder::new(&bytes[..]).unwrap().unpack(&unpacked).unwrap();
            prop_assert_eq!(written(&unpacked).0, bytes);
        }
    }

    #[test]
    fn noise_does_not_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), piece in 1_usize..50) {
        events(&bytes, piece).unwrap_err();
        let mut prefixed = strings(&[b"nix-archive-1", b"(", b"type"]);
        prefixed.append(&mut bytes);
        events(&prefixed, piece).unwrap_err();
    }
}

fn sample() -> Vec<u8> {
    let file = |contents: &[u8], executable| Node::File { executable, contents: contents.to_vec() };
    let inner = Node::Directory(BTreeMap::from([
        ("link".to_owned(), Node::Symlink("../file".into())),
        ("run".to_owned(), file(b"#!/bin/sh\n", true)),
    ]));
    let node = Node::Directory(BTreeMap::from([
        ("dir".to_owned(), inner),
        ("empty".to_owned(), file(b"", false)),
        ("file".to_owned(), file(b"some text\n", false)),
    ]));
    let (_dir, path) = on_disk(&node);
    written(&path).0
}

#[test]
fn every_truncation_is_noticed() {
    let bytes = sample();
    for end in 0..bytes.len() {
        assert_eq!(events(&bytes[..end], 7), Err(NarError::Truncated { offset: end as u64 }));
    }
    assert!(events(&bytes, 7).is_ok());
}

#[test]
fn bytes_after_the_end_are_left_alone() {
    let mut bytes = sample();
    let len = bytes.len();
    bytes.extend_from_slice(b"what follows");
    let mut parser = NarParser::new();
    assert_eq!(parser.feed(&bytes), Ok(len));
    assert!(parser.is_done());
    assert_eq!(parser.feed(b"more"), Ok(0));
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for name in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0b", b"\0"] {
        let result = events(&directory_of(&[name]), 64);
        assert!(matches!(result, Err(NarError::BadName { .. })), "{name:?}: {result:?}");
    }
    assert!(events(&directory_of(&[b"...", b".a", b"\xff"]), 64).is_ok());
    let long = [b'x'; 1024];
    assert!(events(&directory_of(&[&long[1..]]), 64).is_ok());
    assert!(matches!(events(&directory_of(&[&long]), 64), Err(NarError::TooLong { .. })));
}

#[test]
fn names_must_ascend_by_bytes() {
    assert!(events(&directory_of(&[b"A", b"B", b"a", b"a.b", b"aa", b"\x80"]), 64).is_ok());
    for names in [[&b"b"[..], b"a"], [b"a", b"a"], [b"a", b"A"], [b"\x80", b"a"], [b"aa", b"a"]] {
        let result = events(&directory_of(&names), 64);
        assert!(matches!(result, Err(NarError::Unsorted { .. })), "{names:?}: {result:?}");
    }
}

#[test]
fn the_grammar_allows_nothing_else() {
    let node: [&[u8]; 4] = [b"nix-archive-1", b"(", b"type", b"regular"];
    let with = |more: &[&[u8]]| strings(&[&node, more].concat());
    assert!(events(&with(&[b"contents", b"x", b")"]), 64).is_ok());
    assert!(events(&with(&[b"executable", b"", b"contents", b"x", b")"]), 64).is_ok());
    for bad in [
        with(&[b")"]),
        with(&[b"executable", b"yes", b"contents", b"x", b")"]),
        with(&[b"executable", b"", b"executable", b"", b"contents", b"x", b")"]),
        with(&[b"contents", b"x", b"contents", b"x", b")"]),
        with(&[b"contents", b"x", b"executable", b"", b")"]),
        strings(&[b"nix-archive-2", b"(", b"type", b"regular", b"contents", b"x", b")"]),
        strings(&[b"nix-archive-1", b"(", b"type", b"device", b")"]),
        strings(&[b"nix-archive-1", b"(", b"type", b"symlink", b"target", b"", b")"]),
        strings(&[b"nix-archive-1", b"(", b"type", b"symlink", b"target", b"a\0b", b")"]),
        strings(&[b"nix-archive-1", b"(", b"type", b"symlink", b")"]),
        strings(&[b"nix-archive-1", b"(", b"type", b"directory", b"entry", b")"]),
    ] {
        let result = events(&bad, 64);
        assert!(matches!(result, Err(NarError::Unexpected { .. })), "{result:?}");
    }
}

#[test]
fn hostile_lengths_are_refused_where_they_stand() {
    let bytes = sample();
    // Every length in the archive, replaced by far too much: only that of a file's contents may be believed, and then the
    // archive ends too early.
    let mut places = 0;
    let mut at = 0;
    while at < bytes.len() {
        let len = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        for hostile in [u64::MAX, 1 << 63, 1 << 40] {
            let mut bent = bytes.clone();
            bent[at..at + 8].copy_from_slice(&hostile.to_le_bytes());
            match events(&bent, 64).unwrap_err() {
                NarError::TooLong { offset, len, .. } => assert_eq!((offset, len), (at as u64 + 8, hostile)),
                NarError::Truncated { .. } => assert!(hostile <= 1 << 40),
                other => panic!("{other:?}"),
            }
        }
        places += 1;
        at += 8 + usize::try_from(len).unwrap().next_multiple_of(8);
    }
    assert!(places > 40);
}

#[test]
fn padding_must_be_zero() {
    let bytes = sample();
    let mut at = 0;
    while at < bytes.len() {
        let len = usize::try_from(u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())).unwrap();
        for padding in len..len.next_multiple_of(8) {
            let mut bent = bytes.clone();
            bent[at + 8 + padding] = 1;
            assert!(matches!(events(&bent, 64), Err(NarError::BadPadding { .. })), "at {at}");
        }
        at += 8 + len.next_multiple_of(8);
    }
}

#[test]
fn directories_inside_each_other_have_an_end() {
    let level: [&[u8]; 8] = [b"(", b"type", b"directory", b"entry", b"(", b"name", b"d", b"node"];
    let bytes = strings(&[&[&b"nix-archive-1"[..]][..], &level.repeat(3000)].concat());
    assert!(matches!(events(&bytes, 4096), Err(NarError::TooDeep { .. })));
}

#[test]
fn an_error_is_final() {
    let mut parser = NarParser::new();
    let error = parser.feed(&[0xff; 16]).unwrap_err();
    assert_eq!(parser.feed(&sample()), Err(error.clone()));
    assert_eq!(parser.finish(), Err(error));
}

#[test]
fn deep_trees_are_written_without_deep_recursion() {
    let dir = tempfile::tempdir().unwrap();
    let deep: PathBuf = std::iter::repeat_n("d", 1000).collect();
    fs::create_dir_all(dir.path().join(deep)).unwrap();
    let path = dir.path().to_owned();
    let thread = std::thread::Builder::new().stack_size(128 << 10);
    let bytes = thread.spawn(move || written(&path).0).unwrap().join().unwrap();
    assert!(events(&bytes, 4096).is_ok());
}

#[test]
fn other_kinds_of_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let error = write_tree(dir.path(), &mut io::sink()).unwrap_err();
    assert!(matches!(&error, TreeError::Unsupported { path } if path.ends_with("socket")), "{error:?}");
    let error = write_tree(&dir.path().join("nothing"), &mut io::sink()).unwrap_err();
    assert!(matches!(error, TreeError::Read { .. }));
}

/// A sink in whose hands a file changes.
struct Meddler<F>(Option<F>);

impl<F: FnOnce()> Write for Meddler<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(meddle) = self.0.take() {
            meddle();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_file_that_changes_underneath_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    for new_len in [0, 100, 1 << 20, (1 << 20) + 1, 2 << 20] {
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        let result = write_tree(&path, &mut Meddler(Some(move || file.set_len(new_len).unwrap())));
        match result {
            Ok(_) => assert_eq!(new_len, 1 << 20),
            Err(TreeError::Changed { .. }) => assert_ne!(new_len, 1 << 20),
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn copying_stops_at_the_end_and_says_what_it_was() {
    let mut bytes = sample();
    let len = bytes.len();
    bytes.extend_from_slice(b"next");
    let mut source = &bytes[..];
    let mut sink = Vec::new();
    let digest = copy(&mut source, &mut sink).await.unwrap();
    assert_eq!(source, b"next");
    assert_eq!(sink, bytes[..len]);
    assert_eq!(digest, NarDigest { sha256: Sha256Hash::of(&bytes[..len]), size: len as u64 });
    for end in 0..len {
        let error = copy(&mut &bytes[..end], &mut Vec::new()).await.unwrap_err();
        assert!(matches!(error, CopyError::Nar(NarError::Truncated { .. })), "cut at {end}: {error:?}");
    }
}
