//! What the README tells people on a Linux that is not NixOS to type, typed: line by line from the README itself, on a
//! machine that has Nix and nothing of ours. systemd is real where the release's root has one; for the oldest release a
//! stand-in for `systemctl` starts what the unit says, as the user it says.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

// Harness code: not every test file uses all of it.
#[allow(dead_code)]
#[path = "common/lab.rs"]
mod lab;
#[path = "common/systemd.rs"]
mod systemd;

use std::path::Path;

use lab::{LOCAL_POOL, Lab, on_each_of, text};
use systemd::{CTL, Systemd, WITH_SYSTEMD};

/// For a machine without systemd, and so without socket activation.
const SYSTEMCTL: &str = r#"#!/bin/sh
# As much of systemctl as an installation needs.
unit=/etc/systemd/system/nix-broker.service
value() { sed -n "s/^$1=//p" $unit; }
case "$*" in
daemon-reload) ;;
'enable --now nix-broker')
  install -d -m 755 -o "$(value User)" /run/nix-broker
  install -d -m "$(value StateDirectoryMode)" -o "$(value User)" /var/lib/"$(value StateDirectory)"
  setsid setpriv --reuid="$(value User)" --regid="$(value Group)" --init-groups env -i "$(value Environment)" PATH="$PATH" \
    $(value ExecStart) </dev/null >/var/log/broker.log 2>&1 &
  until broker status >/dev/null 2>&1; do sleep 0.05; kill -0 $! || { cat /var/log/broker.log; exit 1; }; done
  ;;
'restart nix-daemon') touch /run/restart-nix-daemon ;;
*) echo "systemctl: not in the lab: $*" >&2; exit 1 ;;
esac
"#;

/// The commands of the README's section on other distributions.
fn commands() -> String {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let section = readme.split("### On another Linux").nth(1).unwrap();
    section.split("```sh\n").nth(1).unwrap().split("```").next().unwrap().to_owned()
}

#[test]
fn the_readmes_commands_set_a_machine_up_and_doctor_has_nothing_to_say() {
    on_each_of(&["bookworm", "trixie", "forky"], |release| {
        let lab = Lab::bare(release, LOCAL_POOL);
        // A person's clone with the programs built, and a machine as the distribution left it.
        lab.sh("rm -rf /run/nix-broker; mkdir -p /root/clone/target/release; cd /root/clone/target/release; mv /usr/local/bin/broker* .");
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for file in ["nix-broker.service", "nix-broker.socket", "local.conf"]
            .map(|file| format!("contrib/systemd/{file}"))
        {
            lab.write(&format!("/root/clone/{file}"), &std::fs::read_to_string(root.join(&file)).unwrap());
        }
        let systemd = WITH_SYSTEMD.contains(&release).then(|| Systemd::start(&lab));
        let real = format!(
            "#!/bin/sh\n[ \"$*\" != 'restart nix-daemon' ] || exec touch /run/restart-nix-daemon\n{CTL} \"$@\" 2>/run/systemctl.log || {{ cat /run/systemctl.log /var/log/systemd.log; exit 1; }}\n"
        );
        lab.install("/usr/local/sbin/systemctl", if systemd.is_some() { &real } else { SYSTEMCTL });
        lab.start_daemon(&[]);

        let commands = commands();
        let (before_doctor, doctor) = commands.split_at(commands.find("broker doctor").unwrap());
        let path = "export PATH=/usr/local/sbin:$PATH; cd clone";
        lab.sh(&format!("{path}\n{before_doctor}"));
        assert_eq!(lab.sh("ls /run/restart-nix-daemon"), "/run/restart-nix-daemon");
        lab.start_daemon(&[]);

        // As root it can read everything, and finds nothing to complain of; others are told what they cannot see.
        let said = lab.output("root", &["sh", "-c", doctor]);
        let complains = |word: &str| text(&said).lines().any(|line| line.starts_with(word));
        assert!(said.status.success() && !complains("fail") && !complains("warn"), "{}", text(&said));
        lab.run("alice", &["sh", "-c", doctor]);

        for user in ["root", "alice"] {
            let graph = [
                "/t/graph.nix",
                "--argstr",
                "nonce",
                user,
                "--argstr",
                "width",
                "3",
                "--argstr",
                "depth",
                "2",
            ];
            assert_eq!(lab.build(user, &graph).len(), 1);
        }
        assert_eq!(lab.ended("succeeded"), 2 * 7);
        assert!(
            lab.sh("cat /etc/systemd/system/nix-broker.service.d/local.conf")
                .contains("RestrictNamespaces=false")
        );
        if let Some(systemd) = systemd {
            assert_eq!(systemd.states(&lab), "active\nactive");
            systemd.ctl(&lab, "stop nix-broker");
            systemd.stop(&lab);
        }
    });
}
