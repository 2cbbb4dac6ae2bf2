//! `nix/builder/setup.sh`, which makes an instance with our own image a builder: run in the shells it may meet, with a
//! directory for its root. The dead-man, which does not depend on it, has its own tests beside `provider/ec2/boot`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

const SHELLS: [&str; 2] = ["dash", "bash"];
const GOOD: &str = "SSH_HOST_ED25519_KEY:-----BEGIN|b3Bl|-----END\n\
    client-key=ssh-ed25519 AAAAC3Nz broker@tiger\n\
    features=big-parallel gccarch-znver3\n\
    lease=600\nhard=7200\nversion=3\n";

/// A machine's root in which the script has run with this user-data.
fn run(shell: &str, user_data: Option<&str>) -> TempDir {
    let root = TempDir::new().unwrap();
    let path = |name: &str| root.path().join(name);
    for dir in ["proc", "bin", "root", "run"] {
        std::fs::create_dir(path(dir)).unwrap();
    }
    std::fs::write(path("proc/uptime"), "41.07 80.0\n").unwrap();
    std::fs::write(path("bin/systemctl"), "#!/bin/sh\necho \"$@\" >>\"$NIX_BROKER_ROOT/systemctl.log\"\n")
        .unwrap();
    std::fs::set_permissions(path("bin/systemctl"), PermissionsExt::from_mode(0o755)).unwrap();
    if let Some(user_data) = user_data {
        std::fs::write(path("user-data"), user_data).unwrap();
    }
    let status = Command::new(shell)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("nix/builder/setup.sh"))
        .arg(path("user-data"))
        .env("NIX_BROKER_ROOT", root.path())
        .env("PATH", format!("{}:{}", path("bin").display(), std::env::var("PATH").unwrap()))
        .status()
        .unwrap();
    assert!(status.success(), "{shell}: {status}");
    root
}

fn read(root: &TempDir, name: &str) -> String {
    std::fs::read_to_string(root.path().join(name)).unwrap_or_default()
}

#[test]
fn a_few_lines_of_user_data_make_a_builder() {
    for shell in SHELLS {
        let root = run(shell, Some(GOOD));
        assert_eq!(
            read(&root, "root/.ssh/authorized_keys"),
            "ssh-ed25519 AAAAC3Nz broker@tiger\ncert-authority,restrict ssh-ed25519 AAAAC3Nz broker@tiger\n"
        );
        let mode = |name: &str| root.path().join(name).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!([mode("root/.ssh"), mode("root/.ssh/authorized_keys")], [0o700, 0o600]);
        assert_eq!(read(&root, "run/nix-broker/nix.conf"), "system-features = big-parallel gccarch-znver3\n");
        // What is not said is the image's own, in /etc.
        assert_eq!(read(&root, "run/nix-broker/limits"), "lease=600\nhard=7200\n");
        assert_eq!(read(&root, "run/nix-broker/ready"), "3 41.07\n");
        assert_eq!(read(&root, "systemctl.log"), "try-restart nix-daemon.service\n");
        assert!(!root.path().join("run/nix-broker/failed").exists());
    }
}

#[test]
fn user_data_that_is_no_good_is_said_so_and_never_ready() {
    let shell_code = "client-key=ssh-ed25519 A$(touch /tmp/broken)\nfeatures=a\n";
    let option = "client-key=command=\"sh\" ssh-ed25519 AAAA\nfeatures=a\n";
    for shell in SHELLS {
        for (user_data, why) in [
            (None, "there is no user-data"),
            (Some(""), "no client-key"),
            (Some("client-key=\n"), "no client-key"),
            (Some(shell_code), "no client-key"),
            (Some(option), "no client-key"),
        ] {
            let root = run(shell, user_data);
            assert!(read(&root, "run/nix-broker/failed").contains(why), "{shell}: {user_data:?}");
            assert!(!root.path().join("run/nix-broker/ready").exists(), "{shell}: {user_data:?}");
        }
    }
}

#[test]
fn limits_that_are_no_numbers_are_left_to_the_image() {
    let user_data = "client-key=ssh-ed25519 AAAA\nlease=never\nidle=-1\nhard=1h\nlease-busy=\n";
    for shell in SHELLS {
        let root = run(shell, Some(user_data));
        assert_eq!(read(&root, "run/nix-broker/limits"), "", "{shell}");
        // And no feature is claimed that nobody named.
        assert_eq!(read(&root, "run/nix-broker/nix.conf"), "system-features = \n", "{shell}");
        assert!(root.path().join("run/nix-broker/ready").exists(), "{shell}");
    }
}

#[test]
fn the_script_that_other_images_get_runs_as_it_is() {
    for shell in SHELLS {
        let root = run(shell, Some("#!/bin/sh\necho \"ran\" >\"$NIX_BROKER_ROOT/proof\"\n"));
        assert_eq!(read(&root, "proof"), "ran\n", "{shell}");
        assert!(!root.path().join("run/nix-broker/ready").exists(), "that is for the script to say");
    }
}
