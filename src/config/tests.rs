//! Files that are right, files that are wrong in one place each, and one that is wrong everywhere.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::host_key::KnownHosts;
use super::*;
use crate::model::{DeclineRule, Feature, HostSpec, LocalSpec, ProviderSpec, Slots, System};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKzGxzKd0v4+U52GLBchvq5xvKQpQ3YEy3a2vPT8YyVL";
const OTHER_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPdhe0Hb2Zb1Q2mXm4o4rmQ1Pc2v2mfqU5n6mQyq1x3e";

fn defaults() -> Defaults {
    Defaults { system: System::new("x86_64-linux"), processors: 6, state_dir: "/var/lib/nix-broker".into() }
}

/// The files that a configuration may name.
fn read(path: &Path) -> io::Result<String> {
    match path.to_str() {
        Some("/known") => Ok(format!(
            "# a comment\n\
             rack.example,10.0.0.7 {KEY} root@rack\n\
             [rack.example]:2222 {OTHER_KEY}\n\
             *.lab,!bad.lab {KEY}\n\
             @cert-authority *.cert {KEY}\n\
             revoked.example {KEY}\n\
             @revoked * {OTHER_KEY}\n\
             gone.example {OTHER_KEY}\n\
             old.example ssh-rsa AAAAB3NzaC1yc2E=\n"
        )),
        Some("/hashed") => {
            Ok(format!("|1|JfKTdBh7rNbXkVAQCRp4OQoPfmI=|USECr3SWf1JUPsms5AqfD5QfxkM= {KEY}\n"))
        }
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

pub(super) fn parse(text: &str) -> Result<Config, Vec<Problem>> {
    super::parse(text, &defaults(), &read)
}

#[track_caller]
pub(super) fn good(text: &str) -> Config {
    parse(text).unwrap_or_else(|problems| panic!("{}", lines(&problems)))
}

pub(super) fn lines(problems: &[Problem]) -> String {
    problems.iter().map(|problem| problem.located(Path::new("config.toml"))).collect::<Vec<_>>().join("\n")
}

/// A pool that is right, but for these lines in its body.
fn local(body: &str) -> String {
    format!("[[pool]]\nname = \"p\"\n{body}\n[pool.local]\n")
}

/// A host that is right, but for these lines.
fn hosts(host: &str) -> String {
    format!("[[pool]]\nname = \"p\"\n[[pool.hosts]]\nuser = \"nix\"\n{host}\n")
}

#[test]
fn a_minimal_file_gets_every_default() {
    let config = good(&local(""));
    assert_eq!((config.socket, config.state_dir), (None, "/var/lib/nix-broker".into()));
    assert_eq!(config.drain_grace, Duration::from_secs(600));
    assert_eq!(config.warnings, []);
    let [pool] = &config.pools[..] else { panic!("one pool") };
    assert_eq!(pool.name.as_str(), "p");
    assert_eq!(pool.offer.systems, [System::new("x86_64-linux")].into());
    assert_eq!(pool.slots, Slots::Auto { expected: 6, most: None });
    assert_eq!((pool.min_builders, pool.max_builders), (0, 1));
    assert_eq!([pool.idle_timeout, pool.surplus_idle_timeout], [Duration::from_secs(600); 2]);
    assert_eq!(pool.max_lifetime, Duration::from_secs(86_400));
    assert_eq!(pool.launch_timeout, Duration::from_secs(60));
    let local = LocalSpec { nix_daemon: None, sshd: None, sandbox_paths: vec![] };
    assert_eq!(pool.provider, ProviderSpec::Local(local));
}

#[test]
fn every_key_is_taken_as_written() {
    let config = good(&format!(
        r#"
        socket = "/run/other.sock"
        state-dir = "/srv/broker"
        drain-grace = "0s"
        [[pool]]
        name = "zen3"
        systems = ["x86_64-linux", "i686-linux"]
        features = ["kvm"]
        mandatory-features = ["gccarch-znver3"]
        slots = 16
        min-builders = 1
        max-builders = 2
        idle-timeout = "1h 30m"
        surplus-idle-timeout = "90s"
        launch-horizon = "0s"
        max-lifetime = "2days"
        launch-timeout = "90s"
        local = {{ nix-daemon = "/nix/bin/nix-daemon", sshd = "/sbin/sshd", sandbox-paths = ["/bin/sh=/bin/busybox"] }}
        [[pool]]
        name = "rack"
        [[pool.hosts]]
        address = "10.0.0.7"
        user = "nix"
        port = 2222
        identity-file = "/etc/key"
        host-keys = ["{KEY} root@rack"]
        [[pool.hosts]]
        address = "fe80::1"
        user = "nix"
        host-keys = ["{KEY}"]
        "#
    ));
    assert_eq!(config.socket, Some("/run/other.sock".into()));
    assert_eq!(config.state_dir, Path::new("/srv/broker"));
    assert_eq!(config.drain_grace, Duration::ZERO);
    let [zen3, rack] = &config.pools[..] else { panic!("two pools") };
    assert_eq!(zen3.offer.mandatory, [Feature::new("gccarch-znver3")].into());
    assert_eq!(zen3.slots, Slots::Fixed(16));
    assert_eq!(zen3.idle_timeout, Duration::from_secs(5_400));
    assert_eq!(zen3.surplus_idle_timeout, Duration::from_secs(90));
    assert_eq!([zen3.launch_horizon, rack.launch_horizon], [Some(Duration::ZERO), None]);
    assert_eq!(zen3.max_lifetime, Duration::from_secs(172_800));
    assert_eq!(
        zen3.provider,
        ProviderSpec::Local(LocalSpec {
            nix_daemon: Some("/nix/bin/nix-daemon".into()),
            sshd: Some("/sbin/sshd".into()),
            sandbox_paths: vec!["/bin/sh=/bin/busybox".to_owned()],
        })
    );
    assert_eq!((rack.min_builders, rack.max_builders), (0, 2), "as many builders as hosts");
    let ProviderSpec::Hosts(hosts) = &rack.provider else { panic!("hosts") };
    assert_eq!(
        hosts[0],
        HostSpec {
            address: "10.0.0.7".to_owned(),
            port: 2222,
            user: "nix".to_owned(),
            host_keys: vec![KEY.to_owned()],
            identity_file: Some("/etc/key".into()),
        }
    );
}

#[test]
fn what_is_left_to_this_machine_is_everything_or_what_is_named() {
    let rules = |body: &str| good(&local(body)).pools[0].declines.clone();
    assert_eq!(rules(""), DeclineRule::ALL.into());
    assert_eq!(rules("decline = []"), [].into());
    assert_eq!(
        rules("decline = [\"tiny\", \"prefer-local\"]"),
        [DeclineRule::Tiny, DeclineRule::PrefersLocal].into()
    );
    let problems = lines(&parse(&local("decline = [\"small\"]")).unwrap_err());
    assert!(problems.contains("is not one of `prefer-local`, `fixed-output`, `tiny`, `short`"), "{problems}");
}

#[test]
fn builders_send_to_each_other_unless_their_pool_says_otherwise() {
    let direct = |body: &str| good(&local(body)).pools[0].direct;
    assert!(direct(""));
    assert!(!direct("direct = false"));
}

#[test]
fn pools_come_by_priority_and_then_as_written() {
    let pool = |name: &str, body: &str| format!("[[pool]]\nname = \"{name}\"\n{body}\n[pool.local]\n");
    let file = [pool("a", ""), pool("b", "priority = 7"), pool("c", ""), pool("d", "priority = 7")].concat();
    let names: Vec<_> = good(&file).pools.iter().map(|pool| pool.name.to_string()).collect();
    assert_eq!(names, ["b", "d", "a", "c"]);
}

#[cfg(feature = "ec2")]
#[test]
fn the_example_in_the_documentation_is_a_right_file() {
    let lines = include_str!("mod.rs").lines().filter_map(|line| line.strip_prefix("//!"));
    let example: Vec<&str> =
        lines.skip_while(|line| *line != " ```toml").skip(1).take_while(|line| *line != " ```").collect();
    let config = good(&example.join("\n").replace("ssh-ed25519 AAAA...", KEY));
    assert_eq!(config.pools.len(), 3);
    assert_eq!(config.warnings, []);
    assert!(config.caps.month.is_some());
}

#[test]
fn each_mistake_is_named_with_its_line_and_key() {
    let cases: &[(String, &str)] = &[
        ("".into(), "1: pool: no pool: without one"),
        ("pool = []".into(), "1: pool: no pool: without one"),
        (
            "[pool.x86]\nname = \"x86\"".into(),
            "1: pool: expected a list of tables, each headed `[[pool]]`, found a table",
        ),
        ("[[pool]\nname = 3".into(), "1: this is not TOML:"),
        (local("slots = 1\nslots = 2"), "4: this is not TOML: duplicate key"),
        (format!("sokcet = \"/x\"\n{}", local("")), "1: sokcet: unknown key; did you mean `socket`?"),
        (format!("socket = \"x\"\n{}", local("")), "1: socket: `x` is a relative path"),
        (format!("socket = \"/{}\"\n{}", "x".repeat(107), local("")), "1: socket: longer than the 107 bytes"),
        (format!("drain-grace = 5\n{}", local("")), "1: drain-grace: `5` has no unit; write \"5s\""),
        (
            format!("state-dir = true\n{}", local("")),
            "1: state-dir: expected a path in quotes, found true or false",
        ),
        ("[[pool]]\n[pool.local]".into(), "1: pool[1].name: missing"),
        ("[[pool]]\nname = \"a b\"\n[pool.local]".into(), "2: pool[1].name: `a b` is not a name"),
        (
            format!("{}{}", local(""), local("")),
            "6: pool.p.name: there is a pool of this name already, on line 2",
        ),
        (local("idle_timeout = \"1m\""), "3: pool.p.idle_timeout: unknown key; did you mean `idle-timeout`?"),
        (local("colour = 1"), "3: pool.p.colour: unknown key; known here: `name`, `systems`"),
        (local("idle-timeout = \"1 fortnight\""), "3: pool.p.idle-timeout: `1 fortnight` is not a duration"),
        (local("idle-timeout = \"0s\""), "3: pool.p.idle-timeout: `0s` is shorter than 1s"),
        (
            local("idle-timeout = \"1m\"\nsurplus-idle-timeout = \"2m\""),
            "4: pool.p.surplus-idle-timeout: longer than `idle-timeout`",
        ),
        (local("launch-horizon = 0"), "3: pool.p.launch-horizon: `0` has no unit"),
        (local("idle-timeout = \"9000days\""), "3: pool.p.idle-timeout: `9000days` is longer than a year"),
        (local("max-lifetime = \"1m\""), "3: pool.p.max-lifetime: not longer than `launch-timeout`"),
        (local("launch-timeout = \"2days\""), "3: pool.p.launch-timeout: not longer than `launch-timeout`"),
        (local("max-builders = 0"), "3: pool.p.max-builders: 0 is not between 1 and 1000"),
        (local("max-builders = -0x1"), "3: this is not TOML"),
        (
            local("max-builders = 99999999999999999999999999"),
            "3: pool.p.max-builders: 99999999999999999999999999 is not",
        ),
        (
            local("max-builders = 1.5"),
            "3: pool.p.max-builders: expected a whole number, found a decimal number",
        ),
        (local("min-builders = 2"), "3: pool.p.min-builders: 2 is more than the 1 of `max-builders`"),
        (local("slots = 0"), "3: pool.p.slots: 0 is not between 1 and 10000"),
        (local("slots = \"many\""), "3: pool.p.slots: `many` is neither \"auto\" nor a number"),
        (local("systems = []"), "3: pool.p.systems: empty"),
        (
            local("systems = \"x86_64-linux\""),
            "3: pool.p.systems: expected a list of texts in quotes, found text",
        ),
        (local("systems = [\n\"x86_64-linux\",\n\"linux\"]"), "5: pool.p.systems: `linux` is not a system"),
        (local("systems = [\"builtin\"]"), "3: pool.p.systems: `builtin` is no system"),
        (
            local("features = [\"kvm big-parallel\"]"),
            "3: pool.p.features: `kvm big-parallel` is not one feature",
        ),
        (local("features = [3]"), "3: pool.p.features: expected text in quotes, found a number"),
        ("[[pool]]\nname = \"p\"".into(), "2: pool.p: no provider"),
        (
            "[[pool]]\nname = \"p\"\nhosts = []\nlocal = {}".into(),
            "3: pool.p.hosts: `local` and `hosts`: a pool has one",
        ),
        ("[[pool]]\nname = \"p\"\nhosts = []".into(), "3: pool.p.hosts: empty"),
        (
            "[[pool]]\nname = \"p\"\nhosts = [1]".into(),
            "3: pool.p.hosts[1]: expected a table, found a number",
        ),
        (
            "[[pool]]\nname = \"p\"\n[pool.ec2]\nregion = 1".into(),
            "4: pool.p.ec2.region: expected text in quotes, found a number",
        ),
        (
            "[[pool]]\nname = \"p\"\n[pool.ec2]\n[pool.local]".into(),
            "3: pool.p.ec2: `local` and `ec2`: a pool has one provider",
        ),
        (
            format!("{}sandbox-paths = [\"sh\"]", local("")),
            "5: pool.p.local.sandbox-paths: `sh` is not a path",
        ),
        (format!("{}sshd = \"sshd\"", local("")), "5: pool.p.local.sshd: `sshd` is a relative path"),
        (hosts(&format!("host-keys = [\"{KEY}\"]")), "3: pool.p.hosts[1].address: missing"),
        (
            hosts("address = \"a\""),
            "3: pool.p.hosts[1].host-keys: missing: a host is never trusted at first sight",
        ),
        (hosts("address = \"a\"\nhost-keys = []"), "6: pool.p.hosts[1].host-keys: empty"),
        (
            hosts("address = \"root@a\"\nhost-keys = []"),
            "5: pool.p.hosts[1].address: `root@a` is neither a name nor an address; the user",
        ),
        (
            hosts("address = \"a:22\"\nhost-keys = []"),
            "5: pool.p.hosts[1].address: `a:22` is neither a name nor an address; the port",
        ),
        (hosts("address = \"a\"\nport = 65536"), "6: pool.p.hosts[1].port: 65536 is not between 1 and 65535"),
        (
            hosts("address = \"a\"\nhost-keys = [\"ssh-rsa AAAA\"]"),
            "6: pool.p.hosts[1].host-keys: RSA host keys are not supported",
        ),
        (
            hosts("address = \"a\"\nhost-keys = [\"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKzG\"]"),
            "6: pool.p.hosts[1].host-keys: the `ssh-ed25519` key is damaged or cut off",
        ),
        (
            hosts("address = \"a\"\nhost-keys = [\"-----BEGIN OPENSSH PRIVATE KEY-----\"]"),
            "6: pool.p.hosts[1].host-keys: this is a private key",
        ),
        (
            hosts(&format!("address = \"a\"\nhost-keys = [\"a {KEY}\"]")),
            "6: pool.p.hosts[1].host-keys: a line of a `known_hosts` file",
        ),
        (
            hosts("address = \"a\"\nknown-hosts-file = \"/none\""),
            "6: pool.p.hosts[1].known-hosts-file: cannot read `/none`",
        ),
        (
            hosts("address = \"a\"\nknown-hosts-file = \"/known\""),
            "6: pool.p.hosts[1].known-hosts-file: `/known` does not have `a`",
        ),
        (
            hosts("address = \"a\"\nknown-hosts-file = \"/hashed\""),
            "6: pool.p.hosts[1].known-hosts-file: `/hashed` does not have `a`",
        ),
        (
            hosts(&format!("address = \"a\"\nhost-keys = [\"{KEY}\"]\nknown-hosts-file = \"/known\"")),
            "7: pool.p.hosts[1].known-hosts-file: given together with `host-keys`",
        ),
        (
            hosts("address = \"a\"\nidentity-file = \"-----BEGIN OPENSSH PRIVATE KEY-----\""),
            "6: pool.p.hosts[1].identity-file: the text of a key where the path of its file belongs",
        ),
        (
            format!("{}[[pool.hosts]]\nuser = \"nix\"\naddress = \"a\"", hosts("address = \"a\"")),
            "8: pool.p.hosts[2].address: `a` is listed twice",
        ),
        (
            hosts(&format!("address = \"a\"\nhost-keys = [\"{KEY}\"]"))
                .replace("name", "max-builders = 2\nname"),
            "2: pool.p.max-builders: 2 builders, but only 1 listed",
        ),
    ];
    for (text, expected) in cases {
        let problems = parse(text).expect_err(text);
        let found = lines(&problems);
        assert!(
            found.lines().any(|line| line.starts_with(&format!("config.toml:{expected}"))),
            "\n--- file\n{text}\n--- expected\nconfig.toml:{expected}\n--- found\n{found}"
        );
    }
}

#[test]
fn a_known_hosts_file_gives_the_keys_of_the_host_and_no_others() {
    let keys = |address: &str, port: u16| {
        parse(&hosts(&format!("address = \"{address}\"\nport = {port}\nknown-hosts-file = \"/known\"")))
            .map(|config| match &config.pools[0].provider {
                ProviderSpec::Hosts(hosts) => hosts[0].host_keys.clone(),
                ProviderSpec::Local(_) | ProviderSpec::Ec2(_) => panic!("hosts"),
            })
            .map_err(|problems| problems[0].message.clone())
    };
    assert_eq!(keys("10.0.0.7", 22), Ok(vec![KEY.to_owned()]));
    assert_eq!(keys("RACK.example", 22), Ok(vec![KEY.to_owned()]));
    assert_eq!(keys("a.lab", 22), Ok(vec![KEY.to_owned()]));
    let has_no = "does not have";
    for (address, port, why) in [
        ("rack.example", 2222, "its key is revoked"),
        ("gone.example", 22, "its key is revoked"),
        ("bad.lab", 22, has_no),
        ("a.cert", 22, has_no),
        ("10.0.0.7", 2222, has_no),
        ("old.example", 22, "RSA host keys are not supported"),
    ] {
        let message = keys(address, port).unwrap_err();
        assert!(message.contains(why), "{address}: {message}");
    }
}

#[test]
fn a_pool_that_an_earlier_one_covers_is_its_overflow() {
    let kvm = "features = [\"kvm\"]";
    let kvm_only = "mandatory-features = [\"kvm\"]";
    for (first, second, expected) in [
        (kvm, "", true),
        (kvm, kvm, true),
        (kvm, kvm_only, true),
        (kvm_only, kvm_only, true),
        ("systems = [\"x86_64-linux\", \"i686-linux\"]", "", true),
        ("", kvm, false),
        (kvm_only, kvm, false),
        ("", "systems = [\"i686-linux\"]", false),
    ] {
        let config = good(&format!("{}{}", local(first), local(second).replace("\"p\"", "\"q\"")));
        let found: Vec<_> = overflows(&config.pools)
            .into_iter()
            .map(|(later, first)| (later.as_str(), first.as_str()))
            .collect();
        assert_eq!(found, if expected { vec![("q", "p")] } else { vec![] }, "{first} {second}");
    }
}

#[test]
fn a_machine_in_two_pools_and_a_foreign_system_are_warned_of() {
    let host = format!("address = \"a\"\nhost-keys = [\"{KEY}\"]");
    let text = format!("{}{}", hosts(&host), hosts(&host).replace("\"p\"", "\"q\"\nfeatures = [\"kvm\"]"));
    insta::assert_snapshot!(
        lines(&good(&text).warnings),
        @r"
        config.toml:8: pool.q.hosts: `a` is in pool `p` too; both give it work without knowing of each other
        "
    );
    insta::assert_snapshot!(
        lines(&good(&local("systems = [\"aarch64-linux\", \"i686-linux\"]")).warnings),
        @r"
        config.toml:3: pool.p.systems: this machine is `x86_64-linux`: its Nix must have `aarch64-linux` in `extra-platforms` and an emulator for it
        "
    );
}

/// Wrong wherever it can be.
const TERRIBLE: &str = r#"
sockets = "/run/x.sock"
state-dir = "relative"
drain-grace = "soon"

[[pool]]
name = "x86"
system = ["x86_64-linux"]
features = ["kvm", "", 7]
slots = -1
min-builders = 9
max-builders = 3
idle-timeout = 600
max-lifetime = "1m"
launch-timeout = "5m"
[pool.local]
sandbox-path = []
[[pool.hosts]]
address = "nix@10.0.0.7"
host-key = ["ssh-ed25519 AAAA"]

[[pool]]
name = "x86"
[pool.local]
sandbox-paths = []

[[pool]]
slots = "some"

[[pool]]
name = "rack"
max-builders = 5
[[pool.hosts]]
address = "10.0.0.7"
port = 0
user = ""
identity-file = "~/.ssh/id_ed25519"
known-hosts-file = "/none"
[[pool.hosts]]
address = "10.0.0.8"
user = "nix"
"#;

#[test]
fn a_terrible_file_gets_all_its_complaints_at_once() {
    insta::assert_snapshot!(lines(&parse(TERRIBLE).unwrap_err()), @r#"
    config.toml:2: sockets: unknown key; did you mean `socket`?
    config.toml:3: state-dir: `relative` is a relative path; write it from `/` on
    config.toml:4: drain-grace: `soon` is not a duration such as "10m" or "1h 30m": expected number at 0
    config.toml:8: pool.x86.system: unknown key; did you mean `systems`?
    config.toml:9: pool.x86.features: `` is not one feature; write each in quotes of its own
    config.toml:9: pool.x86.features: expected text in quotes, found a number
    config.toml:10: pool.x86.slots: -1 is not between 1 and 10000
    config.toml:11: pool.x86.min-builders: 9 is more than the 3 of `max-builders`
    config.toml:13: pool.x86.idle-timeout: `600` has no unit; write "600s" or "600m"
    config.toml:14: pool.x86.max-lifetime: not longer than `launch-timeout`: a builder could be too old before it is ready
    config.toml:17: pool.x86.local.sandbox-path: unknown key; did you mean `sandbox-paths`?
    config.toml:18: pool.x86.hosts: `local` and `hosts`: a pool has one provider; make two pools
    config.toml:18: pool.x86.hosts[1].host-keys: missing: a host is never trusted at first sight; its key is on that machine in `/etc/ssh/ssh_host_ed25519_key.pub`
    config.toml:18: pool.x86.hosts[1].user: missing: the user to log in as, whom its Nix must trust (`trusted-users`)
    config.toml:19: pool.x86.hosts[1].address: `nix@10.0.0.7` is neither a name nor an address; the user has a key of its own, `user`
    config.toml:20: pool.x86.hosts[1].host-key: unknown key; did you mean `host-keys`?
    config.toml:23: pool.x86.name: there is a pool of this name already, on line 7
    config.toml:27: pool[3]: no provider; say where the machines come from: a `[pool.local]` table, a `[pool.ec2]` table, or `[[pool.hosts]]`
    config.toml:27: pool[3].name: missing: every pool has a name, such as "local"
    config.toml:28: pool[3].slots: `some` is neither "auto" nor a number
    config.toml:32: pool.rack.max-builders: 5 builders, but only 2 listed under `hosts`
    config.toml:35: pool.rack.hosts[1].port: 0 is not between 1 and 65535
    config.toml:36: pool.rack.hosts[1].user: `` is not a user name
    config.toml:37: pool.rack.hosts[1].identity-file: `~/.ssh/id_ed25519` is a relative path; write it from `/` on
    config.toml:38: pool.rack.hosts[1].known-hosts-file: cannot read `/none`: entity not found
    config.toml:39: pool.rack.hosts[2].host-keys: missing: a host is never trusted at first sight; its key is on that machine in `/etc/ssh/ssh_host_ed25519_key.pub`
    "#);
}

#[cfg(not(feature = "ec2"))]
#[test]
fn a_broker_without_ec2_says_so_before_it_is_asked_for_an_instance() {
    let problems = parse("[[pool]]\nname = \"p\"\n[pool.ec2]\nregion = \"Frankfurt\"").unwrap_err();
    insta::assert_snapshot!(lines(&problems), @r#"
    config.toml:3: pool.p.ec2: this broker was built without EC2; use `[pool.local]` or `[[pool.hosts]]`
    config.toml:4: pool.p.ec2.region: `Frankfurt` is not a region such as "eu-central-1"
    "#);
}

#[test]
fn no_file_whatsoever_makes_the_reader_panic() {
    for end in 0..TERRIBLE.len() {
        // Every beginning and every end of it is some other terrible file.
        drop(parse(&TERRIBLE[..end]));
        drop(parse(&TERRIBLE[end..]));
    }
    for text in [
        "\u{feff}",
        "\0",
        "a.b.c.d = 1",
        "[[pool.hosts]]",
        "pool = [[[[]]]]",
        "pool.local = 1",
        "[[pool]]\n[[pool.local]]",
    ] {
        assert!(parse(text).is_err(), "{text:?}");
    }
}

#[test]
fn hashed_names_are_found_as_openssh_hashes_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("known_hosts");
    std::fs::write(&path, format!("builder.example {KEY}\n[builder.example]:2222 {OTHER_KEY}\n")).unwrap();
    let hashed = std::process::Command::new("ssh-keygen").arg("-H").arg("-f").arg(&path).output().unwrap();
    assert!(hashed.status.success());
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains("builder.example"));
    let known = KnownHosts::parse(&text);
    assert_eq!(known.keys_of("Builder.Example", 22).unwrap(), [KEY]);
    assert_eq!(known.keys_of("builder.example", 2222).unwrap(), [OTHER_KEY]);
    assert!(known.keys_of("builder.exampl", 22).is_err());
}
