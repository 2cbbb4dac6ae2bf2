//! The rendered text: size, traps, and what may not stand in it.

use super::*;

const PEM: &str = "-----BEGIN OPENSSH PRIVATE KEY-----\n\
    b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW\n\
    QyNTUxOQAAACDX8f9p\n-----END OPENSSH PRIVATE KEY-----\n";
const PUBLIC: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINfx/2mJZz3kXc0W8d8n7oA6pGJ2u0r9kYh5lXcZ1bQe";

fn features(names: &[&str]) -> BTreeSet<Feature> {
    names.iter().map(|name| Feature::new(*name)).collect()
}

fn spec(features: &BTreeSet<Feature>) -> BootSpec<'_> {
    BootSpec {
        host_key_private: PEM,
        host_key_public: PUBLIC,
        client_key: PUBLIC,
        system_features: features,
        lease: Duration::from_secs(900),
        idle: Duration::from_secs(1200),
        hard_limit: Duration::from_secs(8 * 3600),
        build_users: 32,
        nix_settings: &[],
        cache: None,
    }
}

fn with(change: impl for<'a> FnOnce(&mut BootSpec<'a>)) -> Result<String, UserDataError> {
    let features = features(&["big-parallel"]);
    let mut spec = spec(&features);
    change(&mut spec);
    render(&spec)
}

#[test]
fn the_host_key_stands_in_lines_that_nixos_finds() {
    let text = with(|_| {}).unwrap();
    let lines: Vec<&str> = text.lines().take(5).collect();
    assert_eq!(lines[0], "#!/bin/sh");
    assert!(
        lines[2].starts_with("SSH_HOST_ED25519_KEY:-----BEGIN OPENSSH PRIVATE KEY-----|b3Bl"),
        "{}",
        lines[2]
    );
    assert!(lines[2].ends_with("|-----END OPENSSH PRIVATE KEY-----"), "{}", lines[2]);
    assert_eq!(lines[3], format!("SSH_HOST_ED25519_KEY_PUB:{PUBLIC}"));
    assert!(!lines[..2].concat().contains('|') && !lines[1].contains('#'));
    assert!(!text.contains('\r'));
    // Only there, and nothing that NixOS takes for a channel.
    assert_eq!(text.matches("b3BlbnNzaC1rZXk").count(), 1);
    assert!(!text.contains("\n###"));
}

#[test]
fn line_ends_of_another_system_and_a_comment_are_no_harm() {
    let plain = with(|_| {}).unwrap();
    let crlf = PEM.replace('\n', "\r\n");
    let features = features(&["big-parallel"]);
    let key = format!("{PUBLIC} alice@laptop\r\n");
    let spec =
        BootSpec { host_key_private: &crlf, host_key_public: &key, client_key: &key, ..spec(&features) };
    assert_eq!(render(&spec).unwrap(), plain);
}

#[test]
fn every_placeholder_has_a_value_and_every_value_a_placeholder() {
    let text = with(|_| {}).unwrap();
    let left: Vec<&str> = text.lines().filter(|line| line.contains('@') && !line.contains("$@")).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(text.contains(DEAD_MAN.trim_end()));
    for line in ["lease=900", "lease-busy=3600", "idle=1200", "hard=28800", "system-features = big-parallel"]
    {
        assert!(text.lines().any(|found| found == line), "{line}");
    }
    let values = BTreeMap::from([("A", "@B@".to_owned()), ("B", "no".to_owned())]);
    assert_eq!(fill("x@A@y@ @ @a@ @@ @A", &values).unwrap(), "x@B@y@ @ @a@ @@ @A");
    assert_eq!(fill("@C@", &values), Err(UserDataError::Template("C".into())));
}

#[test]
fn it_stays_below_what_ec2_takes_with_room_to_spare() {
    let most = with(|_| {}).unwrap().len();
    assert!(most < 14_500, "{most} bytes leave little room for features");
    let settings = [("extra-substituters".to_owned(), "x".repeat(6000))];
    let features = features(&["kvm"]);
    let error = render(&BootSpec { nix_settings: &settings, ..spec(&features) }).err();
    assert!(matches!(error, Some(UserDataError::TooLong(bytes)) if bytes > MAX_BYTES), "{error:?}");
}

#[test]
fn what_is_no_key_is_refused_and_a_private_one_never_shown() {
    for odd in [
        "",
        "secret",
        "-----BEGIN OPENSSH PRIVATE KEY-----\n-----END OPENSSH PRIVATE KEY-----",
        "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN OPENSSH PRIVATE KEY-----\n$(secret)\n-----END OPENSSH PRIVATE KEY-----",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nAA|secret\n-----END OPENSSH PRIVATE KEY-----",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\nHOST_KEYS",
    ] {
        let error = with(|spec| spec.host_key_private = odd).unwrap_err();
        assert_eq!(error, UserDataError::HostKey);
        assert!(!error.to_string().contains("secret"));
    }
    let features = features(&["kvm"]);
    assert!(!format!("{:?}", spec(&features)).contains("b3Bl"));
    for odd in [
        "",
        "ssh-ed25519",
        "ssh-ed25519 short",
        "ssh-dss AAAAC3NzaC1lZDI1NTE5AAAAINfx2mJZz3kXc0W8d8n7oA6pGJ2u0r9",
        "command=\"sh\" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINfx2mJZz3kXc0W8d8n7oA6pGJ2u0r9",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINfx/2mJZz3kXc0W8d8n7oA6`touch x`",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINfx/2mJZz3kXc0W8d8n7oA6pGJ2\nCLIENT_KEY\ntouch x",
    ] {
        assert!(matches!(with(|spec| spec.client_key = odd), Err(UserDataError::PublicKey(_))), "{odd}");
        assert!(matches!(with(|spec| spec.host_key_public = odd), Err(UserDataError::PublicKey(_))), "{odd}");
    }
}

#[test]
fn features_and_settings_that_would_be_something_else_are_refused() {
    for odd in ["", "a b", "kvm\nbuilders = x", "$(x)", "a'b", "a|b", "NIX_CONF\n", &"x".repeat(65)] {
        let features = features(&[odd]);
        assert!(matches!(render(&spec(&features)), Err(UserDataError::Feature(_))), "{odd}");
    }
    let features = features(&["gccarch-x86-64-v3", "gccarch-armv8.2-a", "kvm"]);
    for (name, value) in [
        ("", "x"),
        ("system features", "x"),
        ("sandbox\nbuilders", "x"),
        ("Sandbox", "x"),
        ("sandbox", "false\nbuilders = x"),
        ("sandbox", "false\r"),
        ("sandbox", "false # or not"),
    ] {
        let settings = [(name.to_owned(), value.to_owned())];
        let error = render(&BootSpec { nix_settings: &settings, ..spec(&features) }).unwrap_err();
        assert!(matches!(error, UserDataError::NixSetting(_)), "{name} {value}");
        assert!(!error.to_string().contains(char::is_control), "{error}");
    }
    let settings = [("extra-substituters".to_owned(), "https://cache.example/$(x)?a='b'".to_owned())];
    let text = render(&BootSpec { nix_settings: &settings, ..spec(&features) }).unwrap();
    assert!(
        text.contains("\nextra-substituters = https://cache.example/$(x)?a='b'\nsystem-features = gccarch-")
    );
}

#[test]
fn a_limit_that_would_never_end_it_or_end_it_at_once_is_refused() {
    for seconds in [0, 59, 91 * 24 * 3600, u64::MAX] {
        let odd = Duration::from_secs(seconds);
        for error in
            [with(|spec| spec.lease = odd), with(|spec| spec.idle = odd), with(|spec| spec.hard_limit = odd)]
        {
            assert!(matches!(error, Err(UserDataError::Limit { .. })), "{seconds}");
        }
    }
    assert!(with(|spec| spec.lease = Duration::from_secs(60)).is_ok());
}
