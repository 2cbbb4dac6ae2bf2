//! Keys of hosts and our own, as OpenSSH has them.

use super::*;

#[test]
fn a_fresh_host_key_is_one_that_openssh_takes_and_its_secret_is_not_shown() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("key");
    let pair = HostKeyPair::generate().unwrap();
    std::fs::write(&file, &pair.private_openssh_pem).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let output = Command::new("ssh-keygen").arg("-y").arg("-f").arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), pair.public_openssh);
    assert!(HostKey::parse(&pair.public_openssh).is_ok());
    assert_ne!(pair, HostKeyPair::generate().unwrap());
    assert!(!format!("{pair:?}").contains("PRIVATE"));
}

#[test]
fn a_client_key_is_made_once_and_kept_private() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    let made = ClientKey::load_or_create(&path).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(ClientKey::load_or_create(&path).unwrap().public_openssh(), made.public_openssh());
    // OpenSSH reads it, and agrees about the public half.
    let out = Command::new("ssh-keygen").arg("-y").arg("-f").arg(&path).output().unwrap();
    assert_eq!(String::from_utf8(out.stdout).unwrap().trim(), made.public_openssh());
    std::fs::write(&path, "nonsense").unwrap();
    assert!(matches!(ClientKey::load_or_create(&path), Err(KeyError::Unusable { .. })));
    assert!(matches!(ClientKey::load(&directory.path().join("none")), Err(KeyError::File { .. })));
}

#[test]
fn a_key_with_a_passphrase_is_refused_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "secret", "-f"]).arg(&path);
    assert!(keygen.status().unwrap().success());
    let error = ClientKey::load(&path).unwrap_err().to_string();
    assert!(error.contains("passphrase"), "{error}");
}

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEiN+tNTyvS4zL7TvMeAaCvrJAU5zGeqkTGeIIMKDMnA";

#[test]
fn a_host_key_that_is_of_no_use_is_refused_with_the_reason() {
    assert_eq!(HostKey::parse(&format!("{KEY} comment")).unwrap().to_string(), KEY);
    for text in ["", "ssh-ed25519", "ssh-ed25519 AAAA", "nonsense"] {
        assert!(HostKey::parse(text).is_err(), "{text} was taken");
    }
}
