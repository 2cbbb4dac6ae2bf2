//! The user-data, from the first line to `ready`, and what happens when a part of it fails.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix_broker::provider::ec2::boot::ready::State;

use crate::machine::{Machine, NIX_CONF, SHELLS, features, printed};

const PHASES: [&str; 7] =
    ["armed", "key installed", "imds closed", "sshd configured", "kvm checked", "nix configured", "ready"];

fn effective_sshd(machine: &Machine) -> String {
    if rustix::process::getuid().is_root() {
        fs::create_dir_all("/run/sshd").unwrap();
    }
    let mut command = Command::new("/usr/sbin/sshd");
    let output = command.arg("-T").arg("-f").arg(machine.path("etc/ssh/sshd_config")).output().unwrap();
    assert!(output.status.success(), "{}", printed(&output));
    // Newer releases write the names as the manual does.
    printed(&output).to_lowercase()
}

/// As OpenSSH reads it from the private one.
fn public_half(key: &Path) -> String {
    let output = Command::new("ssh-keygen").arg("-y").arg("-f").arg(key).output().unwrap();
    printed(&output).trim_end().to_owned()
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not so after 30 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_fresh_instance_becomes_a_builder() {
    for shell in SHELLS {
        let machine = Machine::new(shell);
        let said = machine.boot();
        assert_eq!(machine.phases(), PHASES, "{said}");
        assert_eq!(machine.progress().state, State::Ready { at: Duration::from_millis(20_500) });

        // First of all it is made sure that it ends.
        let calls = machine.calls();
        assert_eq!(calls[0], "systemctl is-active --quiet nix-broker-hard-limit.timer");
        let systemctl = "ROOT/bin/systemctl poweroff --force --force";
        assert_eq!(
            calls[1],
            format!(
                "systemd-run --quiet --unit=nix-broker-hard-limit --on-boot=28920s --property=DefaultDependencies=no \
                 --timer-property=DefaultDependencies=no --timer-property=AccuracySec=5s {systemctl}"
            )
        );
        assert_eq!(
            calls[3],
            "systemd-run --quiet --unit=nix-broker-dead-man --on-boot=30s --on-unit-active=30s \
             --property=DefaultDependencies=no --timer-property=DefaultDependencies=no \
             --timer-property=AccuracySec=5s /bin/sh ROOT/run/nix-broker/dead-man.sh"
        );
        for (tool, address) in [("iptables", "169.254.169.254/32"), ("ip6tables", "fd00:ec2::254/128")] {
            let rule = format!("{tool} -w -I OUTPUT -d {address} -m owner ! --uid-owner 0 -j REJECT");
            assert!(calls.contains(&rule), "{rule}: {calls:?}");
        }

        let authorized = machine.path("root/.ssh/authorized_keys");
        let key = &machine.keys.client;
        let expected = format!("{key}\ncert-authority,restrict {key}\n");
        assert_eq!(fs::read_to_string(&authorized).unwrap(), expected);
        assert_eq!(fs::metadata(&authorized).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(machine.path("root/.ssh")).unwrap().permissions().mode() & 0o777, 0o700);

        let sshd = effective_sshd(&machine);
        for line in ["maxsessions 1000", "maxstartups 1000:30:1000", "passwordauthentication no", "usepam no"]
        {
            assert!(sshd.lines().any(|found| found == line), "{line}: {sshd}");
        }
        assert!(calls.contains(&"systemctl restart sshd.service".into()), "{calls:?}");
        assert!(calls.contains(&"systemctl restart nix-daemon.service".into()), "{calls:?}");
        assert!(
            !calls.iter().any(|call| call.contains("poweroff") && call.starts_with("systemctl")),
            "{calls:?}"
        );

        let conf = machine.read("etc/nix/nix.conf");
        let features: Vec<&str> = conf.lines().filter(|line| line.contains("system-features")).collect();
        assert_eq!(features, ["system-features = big-parallel gccarch-znver3"], "{conf}");
        // Nix takes the last one.
        let jobs: Vec<&str> = conf.lines().filter(|line| line.starts_with("max-jobs")).collect();
        assert_eq!(jobs, ["max-jobs = 0", "max-jobs = auto"]);
        assert!(conf.contains("sandbox = true\n"), "{conf}");
        // The store is as it was.
        assert_eq!(machine.read("nix/store/etc-nix-nix.conf"), NIX_CONF);
        assert!(machine.read("dev/console").contains("nix-broker: ready after 20.50 s"));
        assert!(!said.contains("BEGIN OPENSSH") && !said.contains(&machine.keys.client), "{said}");
    }
}

#[test]
fn after_a_stop_or_another_run_everything_is_as_after_the_first() {
    for shell in SHELLS {
        let machine = Machine::new(shell);
        machine.boot();
        let conf = machine.read("etc/nix/nix.conf");
        let sshd = machine.read("etc/ssh/sshd_config");
        let first = machine.calls();

        machine.boot();
        assert_eq!(machine.phases(), PHASES);
        let again = machine.calls();
        assert!(
            !again.iter().any(|call| call.starts_with("systemd-run") || call.contains(" -I ")),
            "{again:?}"
        );

        // A start after a stop: the timers are gone, and have to come back; NixOS has renewed its links.
        machine.reboot();
        machine.linked("etc/nix/nix.conf", NIX_CONF);
        assert_eq!(machine.progress().state, State::Booting);
        machine.boot();
        assert_eq!(machine.phases(), PHASES);
        assert_eq!(machine.calls(), first);
        assert_eq!(machine.read("etc/nix/nix.conf"), conf);
        assert_eq!(machine.read("etc/ssh/sshd_config"), sshd);
    }
}

#[test]
fn nixos_finds_the_host_key_and_it_is_the_one_that_was_made() {
    let machine = Machine::new("bash");
    let text = machine.user_data(|_| {});
    // As the module ec2-data does it, where a pipe or a return before the key would spoil it. What else has pipes ends up
    // behind the key, where OpenSSH does not look.
    machine.write("user-data", &text);
    let script = "(umask 077; printf '%s\\n' \"$(sed 's/|/\\n/g; s/SSH_HOST_ED25519_KEY://; t; d' user-data)\" >key); \
        printf '%s\\n' \"$(sed 's/SSH_HOST_ED25519_KEY_PUB://; t; d' user-data)\"";
    let output = machine.command("bash").args(["-c", script]).output().unwrap();
    assert_eq!(printed(&output).trim_end(), machine.keys.host.public_openssh);
    assert!(machine.read("key").starts_with(&machine.keys.host.private_openssh_pem));
    assert_eq!(public_half(&machine.path("key")), machine.keys.host.public_openssh);
    // And where the image came with another one, ours replaces it.
    machine.write("etc/ssh/ssh_host_ed25519_key", "another");
    machine.run(&text);
    let key = machine.path("etc/ssh/ssh_host_ed25519_key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(public_half(&key), machine.keys.host.public_openssh);
    assert_eq!(machine.read("etc/ssh/ssh_host_ed25519_key"), machine.keys.host.private_openssh_pem);
}

#[test]
fn a_value_is_never_run() {
    for shell in SHELLS {
        let machine = Machine::new(shell);
        let value = "$(touch hit1) `touch hit2` ; touch hit3 | touch hit4 && touch hit5 > hit6 'a\\";
        let settings = [("extra-substituters".to_owned(), value.to_owned())];
        let text = machine.user_data(|spec| {
            spec.nix_settings = Box::leak(Box::new(settings));
            // Comments are dropped, whatever is in them.
            spec.client_key = Box::leak(format!("{} $(touch hit7)", spec.client_key).into_boxed_str());
        });
        machine.run(&text);
        assert!(matches!(machine.progress().state, State::Ready { .. }));
        assert!(machine.read("etc/nix/nix.conf").contains(&format!("extra-substituters = {value}\n")));
        let hits: Vec<_> = fs::read_dir(machine.root())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("hit"))
            .collect();
        assert!(hits.is_empty(), "{hits:?}");
    }
}

#[test]
fn a_failed_step_is_told_and_the_machine_ends_nevertheless() {
    // What fails, how it is broken, and words that reach a person.
    type Case = (&'static str, fn(&Machine), &'static str);
    let cases: [Case; 6] = [
        (
            "imds",
            |machine| {
                machine.fail("iptables", "iptables: no such table");
                machine.fail("ip", "RTNETLINK: not permitted");
            },
            "builds cannot be kept from the instance's metadata: ",
        ),
        (
            "imds over IPv6",
            |machine| {
                machine.fail("ip6tables", "ip6tables: no such table");
                machine.fail("ip", "RTNETLINK: not permitted");
            },
            "RTNETLINK: not permitted",
        ),
        (
            "sshd",
            |machine| machine.linked("etc/ssh/sshd_config", "NoSuchDirective yes\n"),
            "sshd cannot be configured: ",
        ),
        ("restart", |machine| machine.fail("systemctl", "bus: gone"), "sshd cannot be configured: bus: gone"),
        (
            "nix",
            |machine| {
                fs::remove_file(machine.path("etc/nix/nix.conf")).unwrap();
                fs::create_dir(machine.path("etc/nix/nix.conf")).unwrap();
            },
            "Nix cannot be configured: ",
        ),
        (
            "key",
            |machine| {
                machine.write("root/.ssh", "a file");
            },
            "the broker's key cannot be installed: ",
        ),
    ];
    for shell in SHELLS {
        for (name, break_it, expected) in &cases {
            let machine = Machine::new(shell);
            break_it(&machine);
            let said = machine.boot();
            let reason = machine.failure();
            assert!(reason.contains(expected) && !reason.trim().ends_with(':'), "{name}: {reason}");
            assert!(said.contains(&format!("nix-broker: not ready: {}", &reason[..30])), "{name}: {said}");
            assert!(machine.read("dev/console").contains(&reason[..30]), "{name}");
            assert!(!machine.path("run/nix-broker/ready").exists());
            assert_eq!(machine.phases()[0], "armed", "{name}");
            for unit in ["nix-broker-hard-limit.timer", "nix-broker-dead-man.timer"] {
                assert!(machine.path("active").join(unit).exists(), "{name}: {unit}");
            }
            // Whatever it was, when it is over the next run succeeds.
            assert!(
                *name == "key" || machine.read("root/.ssh/authorized_keys").starts_with("ssh-ed25519"),
                "{name}"
            );
        }
    }
}

#[test]
fn a_machine_that_cannot_be_armed_says_so_and_ends_without_timers() {
    for shell in SHELLS {
        let machine = Machine::new(shell);
        machine.fail("systemd-run", "Failed to connect to bus");
        machine.boot();
        let reason = machine.failure();
        assert!(reason.starts_with("the dead-man timers cannot be started"), "{reason}");
        assert!(reason.contains("Failed to connect to bus"), "{reason}");
        assert!(
            machine.read("root/.ssh/authorized_keys").starts_with("ssh-ed25519"),
            "the broker can come and look"
        );
        wait_for("powered off", || {
            let calls = machine.read("calls");
            let mut calls = calls.lines();
            calls.any(|call| call == "sleep 300")
                && calls.any(|call| call == "systemctl poweroff --force --force")
        });
    }
}

#[test]
fn without_iptables_builds_are_kept_from_the_metadata_by_routing() {
    for shell in SHELLS {
        let machine = Machine::new(shell);
        machine.fail("iptables", "iptables: command not found");
        fs::remove_file(machine.path("proc/net/if_inet6")).unwrap();
        machine.boot();
        assert_eq!(machine.phases(), PHASES);
        let calls = machine.calls();
        let rule = "ip -4 rule add to 169.254.169.254/32 uidrange 1-4294967294 prohibit";
        assert!(calls.contains(&rule.to_owned()), "{calls:?}");
        assert!(!calls.iter().any(|call| call.starts_with("ip6tables")), "no IPv6, no rule: {calls:?}");
    }
}

#[test]
fn kvm_is_promised_only_where_it_is() {
    for shell in SHELLS {
        let machine = Machine::new(shell);
        let features = features(&["kvm", "nixos-test"]);
        let text = machine.user_data(|spec| spec.system_features = Box::leak(Box::new(features)));
        machine.run(&text);
        assert!(
            machine.failure().starts_with("there is no /dev/kvm for the feature kvm"),
            "{}",
            machine.failure()
        );
        let calls = machine.calls();
        assert!(calls.contains(&"modprobe kvm_intel".to_owned()), "{calls:?}");
        machine.write("dev/kvm", "");
        machine.run(&text);
        assert_eq!(machine.phases(), PHASES);
    }
}

#[test]
fn an_older_sshd_is_configured_without_what_it_does_not_know() {
    let machine = Machine::new("dash");
    let picky = "#!/bin/sh\nif grep -q PerSourcePenalties \"$3\"; then echo 'Bad configuration option' >&2; exit 1; fi\n";
    machine.write("bin/sshd", picky);
    fs::set_permissions(machine.path("bin/sshd"), PermissionsExt::from_mode(0o755)).unwrap();
    machine.boot();
    assert_eq!(machine.phases(), PHASES);
    let conf = machine.read("etc/ssh/sshd_config");
    assert!(conf.contains("MaxSessions 1000\n") && !conf.contains("PerSourcePenalties"), "{conf}");
}

#[test]
fn an_sshd_that_is_started_per_connection_is_not_restarted() {
    let machine = Machine::new("dash");
    fs::remove_file(machine.path("active/sshd.service")).unwrap();
    machine.boot();
    assert_eq!(machine.phases(), PHASES);
    assert!(!machine.calls().iter().any(|call| call.contains("restart sshd")));
}

#[test]
fn instance_store_is_used_for_builds_and_nothing_else_is_formatted() {
    for shell in SHELLS {
        let machine = Machine::new(shell);
        machine.write("sys/block/nvme0n1/device/model", "Amazon Elastic Block Store              \n");
        machine.write("sys/block/nvme1n1/device/model", "Amazon EC2 NVMe Instance Storage        \n");
        machine.boot();
        assert!(machine.phases().contains(&"instance store in use".to_owned()));
        let calls: Vec<_> = machine
            .calls()
            .into_iter()
            .filter(|call| call.starts_with("mkfs") || call.starts_with("mount"))
            .collect();
        assert_eq!(
            calls,
            [
                "mkfs.ext4 -q -F -O ^has_journal -E nodiscard,lazy_itable_init=1 /dev/nvme1n1",
                "mount -o noatime /dev/nvme1n1 ROOT/run/nix-broker/disk",
                "mount --bind ROOT/run/nix-broker/disk/builds ROOT/nix/var/nix/builds",
                "mount --bind ROOT/run/nix-broker/disk/tmp ROOT/tmp",
            ]
        );
        let tmp = fs::metadata(machine.path("run/nix-broker/disk/tmp")).unwrap();
        assert_eq!(tmp.permissions().mode() & 0o7777, 0o1777);

        // In use already, as after another run of this.
        machine.write(
            "proc/mounts",
            "/dev/nvme0n1p1 / ext4 rw 0 0\n/dev/nvme1n1 /run/nix-broker/disk ext4 rw 0 0\n",
        );
        machine.boot();
        assert!(!machine.calls().iter().any(|call| call.starts_with("mkfs")));
    }
}

#[test]
fn a_disk_that_cannot_be_used_is_no_reason_to_give_up() {
    for shell in SHELLS {
        let machine = Machine::new(shell);
        machine.write("sys/block/nvme1n1/device/model", "Amazon EC2 NVMe Instance Storage\n");
        machine.fail("mkfs.ext4", "mkfs.ext4: input/output error");
        machine.boot();
        let phases = machine.phases();
        let told = "instance store left alone: mkfs.ext4: input/output error";
        assert!(phases.iter().any(|phase| phase.trim() == told), "{phases:?}");
        assert_eq!(phases.last().unwrap(), "ready");
    }
}

#[test]
fn there_are_as_many_build_users_as_builds_at_a_time() {
    for shell in SHELLS {
        let machine = Machine::new(shell);
        let text = machine.user_data(|spec| spec.build_users = 34);
        machine.run(&text);
        let calls = machine.calls();
        let added: Vec<_> = calls.iter().filter(|call| call.starts_with("useradd")).collect();
        assert_eq!(added.len(), 2, "{calls:?}");
        assert!(
            added[0].ends_with("--gid nixbld --groups nixbld nixbld33") && added[1].ends_with("nixbld34")
        );

        machine.fail("useradd", "useradd: cannot lock /etc/passwd");
        machine.run(&text);
        assert_eq!(machine.phases().last().unwrap(), "ready");
        assert!(machine.phases().iter().any(|phase| phase.starts_with("build users are too few: useradd")));

        machine.calls();
        machine.linked("etc/nix/nix.conf", "auto-allocate-uids = true\n");
        machine.run(&text);
        assert!(!machine.calls().iter().any(|call| call.starts_with("useradd")), "Nix makes its own");
    }
}
