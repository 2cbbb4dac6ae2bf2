//! What is asked without a broker: `broker check`, `broker doctor`, `--help`.

use super::*;

#[test]
fn check_prints_every_problem_of_a_file() {
    let desk = Desk::new();
    fs::write(desk.path("config.toml"), "[[pool]]\nnmae = \"x\"\nidle-timeout = 5\n").unwrap();
    insta::assert_snapshot!(desk.run(&["check"]).text(), @r#"
    exit 1
    --- stderr
    error: `DIR/config.toml` has 4 problems
      DIR/config.toml:1: pool[1]: no provider; say where the machines come from: a `[pool.local]` table, a `[pool.ec2]` table, or `[[pool.hosts]]`
      DIR/config.toml:1: pool[1].name: missing: every pool has a name, such as "local"
      DIR/config.toml:2: pool[1].nmae: unknown key; did you mean `name`?
      DIR/config.toml:3: pool[1].idle-timeout: `5` has no unit; write "5s" or "5m"
    "#);
    insta::assert_snapshot!(desk.run(&["check", &desk.path("none.toml")]).text(), @r"
    exit 1
    --- stderr
    error: there is no configuration at `DIR/none.toml`
    hint: name another file on the command line, or with NIX_BROKER_CONFIG
    ");
}

#[test]
fn check_shows_the_pools_of_a_valid_file() {
    let desk = Desk::new();
    let text = r#"
[[pool]]
name = "x86"
systems = ["x86_64-linux"]
features = ["big-parallel", "kvm"]
max-builders = 3
[pool.local]
[[pool]]
name = "overflow"
systems = ["x86_64-linux"]
slots = 4
[[pool.hosts]]
address = "10.0.0.7"
user = "nix"
host-keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKzGxzKd0v4+U52GLBchvq5xvKQpQ3YEy3a2vPT8YyVL"]
"#;
    fs::write(desk.path("c.toml"), text).unwrap();
    let run = desk.run(&["check", &desk.path("c.toml")]);
    assert_eq!(run.code, 0, "{}", run.text());
    let pools: Vec<&str> = run.stdout.lines().take_while(|line| !line.starts_with("What")).collect();
    insta::assert_snapshot!(pools.join("\n"), @r"
    `DIR/c.toml` is valid: 2 pools.

    POOL      PROVIDER  SYSTEMS       FEATURES           SLOTS  BUILDERS  IDLE TIMEOUT
    x86       local     x86_64-linux  big-parallel, kvm  auto   0 to 3    10m
    overflow  1 host    x86_64-linux  -                  4      0 to 1    10m
    ");
    let overflow = "note  `overflow` gets a build only when `x86` is full: whatever fits it fits both";
    assert!(run.stdout.contains(overflow), "{}", run.stdout);
    assert!(run.stdout.contains("`nix@10.0.0.7` must let the broker's own key in"), "{}", run.stdout);
    let run = desk.run(&["check", "--json", &desk.path("c.toml")]);
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report["pools"], serde_json::json!(["x86", "overflow"]));
}

/// A machine in a folder: a Nix that ignores `build-hook` in nix.conf, as 2.31 does, and a daemon with this NIX_CONFIG.
fn machine(desk: &Desk, nix_config: &str) {
    let write = |path: &str, text: &str| {
        let path = desk.path(path);
        fs::create_dir_all(Path::new(&path).parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    };
    write(
        "bin/nix",
        "#!/bin/sh\n\
         case \"$*\" in\n\
         --version) echo 'nix (Nix) 2.31.2';;\n\
         *'config show') echo 'build-hook = /bin/nix __build-remote'; echo 'builders = @/etc/nix/machines'; echo \"$NIX_CONFIG\";;\n\
         *) exit 1;;\n\
         esac\n",
    );
    fs::set_permissions(desk.path("bin/nix"), fs::Permissions::from_mode(0o755)).unwrap();
    write("root/etc/nix/nix.conf", "!include more.conf\n");
    write("root/etc/nix/more.conf", "build-hook = /opt/broker-hook\n");
    write("root/nix/var/nix/daemon-socket/socket", "");
    write("root/opt/broker-hook", "");
    fs::set_permissions(desk.path("root/opt/broker-hook"), fs::Permissions::from_mode(0o755)).unwrap();
    let fields = "S 1 2 2 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 999";
    write("root/proc/77/stat", &format!("77 (nix-daemon) {fields}"));
    write("root/proc/78/stat", &format!("78 (nix-daemon) {}", fields.replacen('1', "77", 1)));
    write(
        "root/proc/77/environ",
        &format!("SECRET=hunter2\0NIX_BROKER_SOCKET={}\0NIX_CONFIG={nix_config}\0", desk.path("s")),
    );
    std::os::unix::fs::symlink(desk.path("bin/nix"), desk.path("root/proc/77/exe")).unwrap();
}

#[test]
fn doctor_finds_a_build_hook_that_nix_ignores() {
    let doctor = |nix_config: &str| {
        let desk = Desk::new();
        machine(&desk, nix_config);
        let root = desk.path("root");
        let path = format!("{}:/usr/bin:/bin", desk.path("bin"));
        let run = desk.finish(desk.command().env("PATH", path).args(["doctor", "--root", &root]));
        assert!(!run.text().contains("hunter2"), "{}", run.text());
        assert_eq!(run.code, 1, "{}", run.text());
        run.stdout
    };
    let ignored = "Nix 2.31.2 ignores `build-hook` in `/etc/nix/nix.conf`, as 2.25 to 2.33 do: builds through the nix-daemon";
    let without = doctor("");
    assert!(without.contains(ignored), "{without}");
    let with = doctor("build-hook = /opt/broker-hook");
    assert!(!with.contains(ignored), "{with}");
    assert!(with.contains("ok    builds through the nix-daemon start the hook `/opt/broker-hook`"), "{with}");
    assert!(with.contains("ok    the nix-daemon passes"), "{with}");
    assert!(with.contains("fail  the broker is not running: nobody listens at `DIR/s`"), "{with}");
}

#[test]
fn doctor_in_json_has_levels_and_hints() {
    let desk = Desk::new();
    let broker = desk.answer(vec![OperatorReply::Status(idle())]);
    let root = desk.path("root");
    fs::create_dir(&root).unwrap();
    let run = desk.run(&["doctor", "--json", "--root", &root]);
    broker.join().unwrap();
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    insta::assert_snapshot!(serde_json::to_string_pretty(&report).unwrap().replace(desk.dir.path().to_str().unwrap(), "DIR"), @r#"
    {
      "findings": [
        {
          "hint": "write one with at least one `[[pool]]`, and check it with `broker check`",
          "level": "fail",
          "text": "there is no configuration at `DIR/config.toml`"
        },
        {
          "hint": null,
          "level": "ok",
          "text": "the broker answers at `DIR/s`: version 0.1.0, up 3s"
        },
        {
          "hint": null,
          "level": "note",
          "text": "the socket is not at its usual place: whatever starts Nix needs `NIX_BROKER_SOCKET=DIR/s` in its environment"
        },
        {
          "hint": "install Nix, or run this with a `PATH` that has it",
          "level": "fail",
          "text": "there is no `nix` in `PATH`"
        }
      ],
      "schema": 1
    }
    "#);
}

#[test]
fn every_command_has_help_with_examples() {
    let desk = Desk::new();
    for command in
        ["status", "builders", "builds", "top", "why", "start", "drain", "stop", "check", "doctor", "serve"]
    {
        let run = desk.run(&[command, "--help"]);
        assert_eq!(run.code, 0);
        assert!(run.stdout.contains("Example"), "{command}: {}", run.stdout);
    }
    assert_eq!(desk.run(&["--version"]).stdout, format!("broker {}\n", env!("CARGO_PKG_VERSION")));
    let hidden = desk.run(&["--help"]).stdout;
    assert!(!hidden.contains("local-machine"), "{hidden}");
}
