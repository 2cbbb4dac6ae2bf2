//! `nixos-rebuild build --flake .#tiger` with no wrapper and no flag, on a machine that is set up as our NixOS module sets
//! it up: nix.conf, the file beside it, the daemon's environment and the broker's configuration are evaluated from the
//! module and put in place.
//!
//! Two things are taken as real as they can be had, and the test says which it took. The module is evaluated in the real
//! NixOS where `NIXPKGS` names a tree of nixpkgs, else in the stand-in of nix/tests. The command is the real
//! `nixos-rebuild` where `NIXOS_REBUILD` names it (nixos-rebuild-ng, or the script of NixOS up to 25.05), else what
//! nixos-rebuild-ng runs for `build`, word for word.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says so by panicking")]

// Harness code: not every test file uses all of it.
#[allow(dead_code)]
#[path = "common/lab.rs"]
mod lab;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::LazyLock;

use serde_json::Value;

use lab::{Lab, on_each_of, text};

/// Packages and sources, and the system on top: what the hook is asked about.
const REMOTE: u64 = 20 * 10 + 20 + 1;

/// What nixos-rebuild-ng runs for `nixos-rebuild build --flake .#tiger`.
const COMMAND: &str = "#!/bin/sh\n\
    [ \"$*\" = 'build --flake .#tiger' ] || exit 64\n\
    exec nix --extra-experimental-features 'nix-command flakes' build --print-out-paths \
    '.#nixosConfigurations.\"tiger\".config.system.build.toplevel'\n";

#[test]
fn a_users_rebuild_through_the_daemon_is_built_on_the_pool() {
    on_each_of(&["trixie", "forky"], |release| {
        let lab = tiger(release);
        assert_is_built_on_the_pool(&lab, "alice");
        assert!(lab.sh("cat /var/log/nix-daemon.log").contains("user alice"), "the daemon was not asked");
    });
}

/// The daemon is there, as on every NixOS, but root's Nix opens the store itself.
#[test]
fn roots_rebuild_without_the_daemon_is_built_on_the_pool() {
    on_each_of(&["trixie", "forky"], |release| {
        let lab = tiger(release);
        assert_is_built_on_the_pool(&lab, "root");
        let log = lab.sh("cat /var/log/nix-daemon.log");
        assert!(log.contains("user nix-broker") && !log.contains("user root"), "{log}");
    });
}

/// A machine as the module makes it, with a running broker and daemon.
fn tiger(release: &'static str) -> Lab {
    let module = &*MODULE;
    let mut lab = Lab::bare(release, &toml::to_string(&module["broker"]).unwrap());
    lab.sh("rm -rf /etc/nix /etc/xdg/nix; mkdir -p /etc/nix");
    lab.write("/etc/nix/nix.conf", module["nixConf"].as_str().unwrap());
    for (path, file) in module["files"].as_object().unwrap() {
        lab.write(&format!("/etc/{path}"), file["text"].as_str().unwrap());
        lab.sh(&format!("chmod {} /etc/{path}", file["mode"].as_str().unwrap()));
    }
    // What NixOS itself does to nix.conf when it builds a system; a warning is an error there.
    let check = "nix config show --no-net --option experimental-features nix-command 2>&1 >/dev/null";
    assert_eq!(lab.run("alice", &["sh", "-c", check]), "", "NixOS would refuse this nix.conf");
    lab.start_broker();
    let environment = module["daemonEnvironment"].as_object().unwrap();
    let environment: Vec<String> =
        environment.iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap())).collect();
    lab.start_daemon(&environment);
    install_nixos_rebuild(&lab);
    lab
}

fn assert_is_built_on_the_pool(lab: &Lab, user: &str) {
    let flake = include_str!("nix/tiger/flake.nix");
    for (name, content) in [("flake.nix", flake), ("nonce", user)] {
        lab.write(&format!("/t/tiger/{name}"), content);
    }
    let home = lab.run(
        user,
        &["sh", "-c", "mkdir -p tiger/bin && cp /t/tiger/* tiger && cp /bin/busybox tiger/bin && pwd"],
    );

    let rebuild = lab.output(user, &["sh", "-c", "cd tiger && exec nixos-rebuild build --flake .#tiger"]);

    let said = text(&rebuild);
    assert!(rebuild.status.success(), "{said}\n{}", lab.diagnosis());
    assert_no_complaint(&rebuild);
    let system = lab.run(user, &["readlink", &format!("{home}/tiger/result")]);
    assert!(system.ends_with("-nixos-system-tiger"), "{system}");
    let packages = lab.run(user, &["cat", &format!("{system}/packages")]);
    assert_eq!(packages.matches("-package-").count(), 20 * 10, "{packages}");
    assert_eq!(lab.run(user, &["cat", &format!("{system}/files")]).lines().count(), 40);
    // Everything was built on the pool but what prefers to be built here.
    assert_eq!(lab.ended("succeeded"), REMOTE, "{:#}", lab.status());
    assert_eq!(lab.ended("failed"), 0);
    lab.run("root", &["nix-store", "--verify-path", &system]);
    lab.assert_all_is_over();

    // A command that only asks gets no word from us either.
    assert_no_complaint(&lab.output(user, &["nix-store", "--query", "--references", &system]));
}

/// Nix says nothing that it would not say without us; the lab has no network, which it remarks on.
fn assert_no_complaint(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    let complaints: Vec<_> = said
        .lines()
        .filter(|line| line.contains("warning") || line.contains("error"))
        .filter(|line| !line.contains("you don't have Internet access"))
        .collect();
    assert!(output.status.success() && complaints.is_empty(), "{complaints:#?}");
}

/// What the module makes of a short configuration (`tiger` of nix/tests/default.nix).
static MODULE: LazyLock<Value> = LazyLock::new(|| {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/evaluate.sh");
    let output = Command::new(script).arg("tiger").output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let module: Value = serde_json::from_slice(&output.stdout).unwrap();
    let nixos =
        if module["isReal"] == true { "the real NixOS of $NIXPKGS" } else { "the stand-in for NixOS" };
    lab::note(&format!("the module is evaluated in {nixos}"));
    module
});

/// Puts what `NIXOS_REBUILD` names in place: a script, or the directory that nixos-rebuild-ng's `nixos_rebuild` is in, for
/// which `NIXOS_REBUILD_PYTHON` names a Python of at least 3.12 (a directory with `bin/python3`; the lab has none).
fn install_nixos_rebuild(lab: &Lab) {
    let installed = "/usr/local/bin/nixos-rebuild";
    let Some(path) = std::env::var_os("NIXOS_REBUILD").filter(|path| !path.is_empty()) else {
        lab::note("nixos-rebuild is the command that nixos-rebuild-ng runs; NIXOS_REBUILD is not set");
        return lab.install(installed, COMMAND);
    };
    let path = Path::new(&path);
    if !path.is_dir() {
        lab::note(&format!("nixos-rebuild is the real one, {}", path.display()));
        // What its package fills in: where things are on this machine.
        let script = std::fs::read_to_string(path).unwrap();
        let script = script
            .replace("@runtimeShell@", "/bin/bash")
            .replace("@path@", "/usr/bin")
            .replace("@nix@", "/usr");
        return lab.install(installed, &script);
    }
    lab::note(&format!("nixos-rebuild is the real nixos-rebuild-ng, {}", path.display()));
    let python = std::env::var_os("NIXOS_REBUILD_PYTHON").expect("NIXOS_REBUILD_PYTHON names no Python");
    lab.unpack(path, "/opt/nixos-rebuild-ng");
    lab.unpack(Path::new(&python), "/opt/python");
    lab.install(
        installed,
        "#!/bin/sh\nexport PYTHONPATH=/opt/nixos-rebuild-ng LD_LIBRARY_PATH=/opt/python/lib PYTHONDONTWRITEBYTECODE=1\n\
         exec /opt/python/bin/python3 -c 'from nixos_rebuild import main; main()' \"$@\"\n",
    );
}
