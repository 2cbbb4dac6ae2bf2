//! `broker image`.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use super::{Desk, ONE_POOL, REGION};
use crate::disk::{self, BIOS_BOOT, BLOCK, EFI_SYSTEM};

const INFO: &str = r#"{"label": "26.05.7", "system": "x86_64-linux", "file": "/nix/store/x/disk.img"}"#;

fn desk() -> Desk {
    Desk::new(ONE_POOL).with("AWS_REGION", REGION)
}

/// What `nix build` made: a directory with a disk of two blocks, which differ by this.
fn result(desk: &Desk, mark: u8) -> String {
    let dir = desk.dir.path().join(format!("result-{mark}"));
    fs::create_dir_all(dir.join("nix-support")).unwrap();
    fs::write(dir.join("nix-support/image-info.json"), INFO).unwrap();
    disk::write(&dir.join("disk.img"), 8 * BLOCK as u64, EFI_SYSTEM, &[(3 * BLOCK as u64, &[mark])]);
    dir.to_str().unwrap().to_owned()
}

fn file(desk: &Desk, name: &str, make: impl FnOnce(&PathBuf)) -> String {
    let path = desk.dir.path().join(name);
    make(&path);
    path.to_str().unwrap().to_owned()
}

#[test]
fn an_image_is_uploaded_listed_shared_and_booted_by_a_pool() {
    let desk = Desk::new(&format!("{ONE_POOL}image = \"own\"\n")).with("AWS_REGION", REGION);
    let words = desk.run(&["doctor", "--aws"]).ended(1);
    assert!(words.contains("has no image that `broker image` has uploaded"), "{words}");
    let result = result(&desk, 1);
    let words = desk.run(&["image", "upload", &result, "--dry-run"]).ended(0);
    for part in
        ["nix-broker/26.05.7-x86_64-linux-", "x86_64, starts by uefi", "1 GiB", "a month", "Nothing was made"]
    {
        assert!(words.contains(part), "{part}: {words}");
    }
    assert_eq!(desk.deeds(), [""; 0]);

    let words = desk.run(&["image", "upload", &result]).ended(0);
    let image = desk.fake.own_images().remove(0);
    assert!(words.contains(&format!("`{}` in {REGION} can be launched", image.id)), "{words}");
    assert_eq!(desk.fake.snapshots()[0].blocks.len(), 2);
    let words = desk.run(&["image", "upload", &result]).ended(0);
    assert!(words.contains("nothing was uploaded"), "{words}");

    let words = desk.run(&["image", "list"]).ended(0);
    let row = words.lines().nth(1).unwrap();
    for part in [REGION, &image.id, &image.name, "x86_64", "available", "1 GiB", "$0.00"] {
        assert!(row.contains(part), "{part}: {row}");
    }
    let list = desk.run(&["image", "list", "--json"]).ended(0);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list[0]["id"], image.id.as_str());

    let share = ["image", "share", &image.id, "--account", "123456789012"];
    assert!(desk.run(&share).ended(0).contains("is shared with 123456789012"));
    let words = desk.run(&[&share[..], &["--unshare"]].concat()).ended(0);
    assert!(words.contains("is shared with no other account"), "{words}");

    let words = desk.run(&["image", "copy", &image.id, "--to", "eu-west-1"]).ended(0);
    assert!(words.contains("eu-west-1 has it as `ami-"), "{words}");
    let words = desk.run(&["image", "list", "--region", "eu-west-1"]).ended(0);
    assert!(words.contains("eu-west-1"), "{words}");

    let words = desk.run(&["doctor", "--aws"]).stdout;
    assert!(words.contains(&format!("pool `zen3`: boots `{}` ({})", image.id, image.name)), "{words}");
}

#[test]
fn prune_keeps_the_newest_what_runs_and_what_the_configuration_names() {
    let desk = desk();
    let mut ids = Vec::new();
    for mark in 1..=4 {
        desk.run(&["image", "upload", &result(&desk, mark)]).ended(0);
        ids.push(desk.fake.own_images().pop().unwrap().id);
        let date = format!("2026-11-{mark:02}T00:00:00.000Z");
        desk.fake.change_image(ids.last().unwrap(), |image| image.created = date);
    }
    let named = format!("state-dir = \"{}\"\n{ONE_POOL}image = \"{}\"\n", desk.dir.path().display(), ids[0]);
    fs::write(desk.dir.path().join("config.toml"), named).unwrap();
    let words = desk.run(&["image", "prune", "--keep", "1", "--dry-run"]).ended(0);
    let row = |id: &str| words.lines().find(|line| line.contains(id)).unwrap();
    assert!(row(&ids[0]).contains("used by pool `zen3`"), "{words}");
    assert!(row(&ids[1]).contains("goes") && row(&ids[2]).contains("goes"), "{words}");
    assert!(row(&ids[3]).contains("one of the newest"), "{words}");
    assert!(desk.run(&["image", "prune", "--keep", "1"]).ended(1).contains("--yes"));
    assert_eq!(desk.fake.own_images().len(), 4);
    desk.run(&["image", "prune", "--keep", "1", "--yes"]).ended(0);
    let left: Vec<String> = desk.fake.own_images().into_iter().map(|image| image.id).collect();
    assert_eq!(left, [ids[0].clone(), ids[3].clone()]);
    assert_eq!(desk.fake.snapshots().len(), 2);
    let words = desk.run(&["image", "prune", "--keep", "1", "--yes"]).ended(0);
    assert!(!words.contains("goes"), "{words}");
}

#[test]
fn a_configuration_that_is_wrong_or_named_and_missing_prunes_nothing() {
    let desk = desk();
    desk.run(&["image", "upload", &result(&desk, 1)]).ended(0);
    let prune = ["image", "prune", "--keep", "0", "--yes"];
    fs::write(desk.dir.path().join("config.toml"), "[[pool]]\n").unwrap();
    desk.run(&prune).ended(1);
    fs::remove_file(desk.dir.path().join("config.toml")).unwrap();
    desk.run(&prune).ended(1);
    assert_eq!(desk.fake.own_images().len(), 1);
    // Nobody names one: the usual place has none on this machine.
    let desk = desk.with("NIX_BROKER_CONFIG", "");
    let words = desk.run(&prune).ended(0);
    assert!(words.contains("only instances are asked"), "{words}");
    assert!(desk.fake.own_images().is_empty() && desk.fake.snapshots().is_empty());
}

#[test]
fn what_cannot_be_uploaded_is_told_with_what_to_do_and_nothing_is_done() {
    let desk = desk();
    let size = 4 * BLOCK as u64;
    let plain = |name: &str| file(&desk, name, |path| disk::write(path, size, EFI_SYSTEM, &[]));
    let bios = file(&desk, "b.img", |path| disk::write(path, size, BIOS_BOOT, &[]));
    let cases = [
        (vec![file(&desk, "empty.img", |path| fs::write(path, "").unwrap())], 1, "is empty"),
        (
            vec![file(&desk, "x86_64.qcow2", |path| fs::write(path, b"QFI\xfb\0\0\0\x03").unwrap())],
            1,
            "qemu-img convert -O raw",
        ),
        (
            vec![file(&desk, "odd-x86_64.img", |path| disk::write(path, size + 1, EFI_SYSTEM, &[]))],
            1,
            "no multiple of 512",
        ),
        (
            vec![file(&desk, "huge-x86_64.img", |path| disk::write(path, (1 << 40) + 512, EFI_SYSTEM, &[]))],
            1,
            "no more than 1024 GiB",
        ),
        (
            vec![file(&desk, "notes-x86_64.txt", |path| fs::write(path, [b' '; 1024]).unwrap())],
            1,
            "no partition table",
        ),
        (vec![plain("some.img")], 1, "--arch aarch64"),
        (vec![bios.clone(), "--arch".into(), "aarch64".into()], 1, "no EFI system partition"),
        (vec![bios.clone(), "--arch".into(), "riscv64".into()], 2, "[possible values: x86_64, aarch64]"),
        (vec![bios, "--arch".into(), "x86_64".into(), "--name".into(), "a*".into()], 2, "3 to 128 letters"),
        (vec![result(&desk, 1), "--arch".into(), "aarch64".into()], 1, "leave out `--arch`"),
        (vec![desk.dir.path().to_str().unwrap().to_owned()], 1, "disk images in it, not one"),
        (vec!["/nonexistent.img".into()], 1, "cannot read `/nonexistent.img`"),
        (vec!["/dev/null".into()], 1, "is no file"),
    ];
    for (args, code, expected) in cases {
        let args: Vec<&str> =
            ["image", "upload"].into_iter().chain(args.iter().map(String::as_str)).collect();
        let words = desk.run(&args).ended(code);
        assert!(words.contains(expected), "{args:?}: {words}");
    }
    for (args, expected) in [
        (&["image", "share", "ami-01234567"][..], "--account"),
        (&["image", "share", "ami-01234567", "--account", "12"], "12 digits"),
        (&["image", "share", "nixos", "--account", "123456789012"], "ami-0123456789abcdef0"),
        (&["image", "prune", "--keep=-1"], "invalid value"),
    ] {
        let words = desk.run(args).ended(2);
        assert!(words.contains(expected), "{args:?}: {words}");
    }
    assert_eq!(desk.deeds(), [""; 0]);
}

#[test]
fn every_subcommand_has_examples_in_its_help() {
    let desk = desk();
    for name in ["upload", "list", "share", "copy", "prune"] {
        let words = desk.run(&["image", name, "--help"]).ended(0);
        assert!(words.contains(&format!("broker image {name}")) && words.contains("Examples:"), "{words}");
    }
    let words = desk.run(&["image", "--help"]).ended(0);
    assert!(words.contains("image = \"own\""), "{words}");
}

#[test]
fn a_signal_ends_an_upload_and_its_snapshot() {
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let desk = desk();
        desk.fake.settings(|settings| settings.latency = Duration::from_millis(500));
        let big = file(&desk, "big-x86_64.img", |path| {
            let marks: Vec<_> = (0..400).map(|block| (block * BLOCK as u64 + 4096, &[1_u8][..])).collect();
            disk::write(path, 400 * BLOCK as u64, EFI_SYSTEM, &marks);
        });
        let mut command = desk.command(&["image", "upload", &big]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("blocks are written")), "it begins");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).unwrap();
        let rest = lines.map(Result::unwrap).collect::<Vec<_>>();
        let mut words = String::new();
        child.stderr.take().unwrap().read_to_string(&mut words).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{words}");
        assert!(words.contains("interrupted; nothing is left of the upload"), "{words}");
        assert!(!rest.iter().any(|line| line.contains("can be launched")), "{rest:?}");
        assert!(desk.fake.snapshots().is_empty() && desk.fake.own_images().is_empty());
    }
}
