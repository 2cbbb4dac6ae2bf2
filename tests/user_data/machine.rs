//! A machine as far as the scripts of an instance see one: a directory that stands before every path, with what a fresh
//! NixOS instance has there, and programs that write down how they were called instead of doing it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use nix_broker::model::Feature;
use nix_broker::provider::ec2::boot::user_data::{self, BootSpec};
use nix_broker::provider::ec2::boot::{beat, ready};
use nix_broker::ssh::{ClientKey, HostKeyPair};

/// amazon-init runs user-data with bash, an image of our own may do it with another one.
pub(crate) const SHELLS: [&str; 2] = ["dash", "bash"];

/// What is written down instead of done.
const RECORDED: [&str; 9] =
    ["systemctl", "systemd-run", "iptables", "ip6tables", "ip", "useradd", "mkfs.ext4", "mount", "modprobe"];

const STUB: &str = r#"#!/bin/sh
name=${0##*/}
echo "$name $*" >>"$NIX_BROKER_ROOT/calls"
case "$name $*" in
  "systemctl is-active"*) [ -e "$NIX_BROKER_ROOT/active/${3}" ]; exit ;;
  ip*tables*" -C "*) grep -qsxFe "$*" "$NIX_BROKER_ROOT/rules-$name"; exit ;;
esac
[ ! -e "$NIX_BROKER_ROOT/fails/$name" ] || { cat "$NIX_BROKER_ROOT/fails/$name" >&2; exit 1; }
case "$name $*" in
  ip*tables*" -I "*) echo "$*" | sed 's/ -I / -C /' >>"$NIX_BROKER_ROOT/rules-$name" ;;
  systemd-run*) for word; do case $word in --unit=*) : >"$NIX_BROKER_ROOT/active/${word#--unit=}.timer" ;; esac; done ;;
esac
exit 0
"#;

/// What NixOS puts into its links.
pub(crate) const NIX_CONF: &str = "# WARNING: this file is generated from the nix.* options\n\
    auto-optimise-store = false\nmax-jobs = 0\nsandbox = true\n\
    system-features = nixos-test benchmark big-parallel kvm\ntrusted-users = root @wheel\n\
    extra-system-features = gccarch-made-up\n";

pub(crate) struct Keys {
    pub(crate) host: HostKeyPair,
    pub(crate) client: String,
}

pub(crate) struct Machine {
    directory: tempfile::TempDir,
    pub(crate) shell: &'static str,
    pub(crate) keys: Keys,
}

impl Machine {
    pub(crate) fn new(shell: &'static str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let keys =
            Keys { host: HostKeyPair::generate().unwrap(), client: ClientKey::generate().public_openssh() };
        let machine = Self { directory, shell, keys };
        for name in [
            "bin",
            "active",
            "fails",
            "run",
            "proc/net",
            "dev",
            "root",
            "etc/ssh",
            "etc/nix",
            "nix/store",
            "sys/block",
        ] {
            fs::create_dir_all(machine.path(name)).unwrap();
        }
        for name in RECORDED {
            machine.write(&format!("bin/{name}"), STUB);
            fs::set_permissions(machine.path(&format!("bin/{name}")), PermissionsExt::from_mode(0o755))
                .unwrap();
        }
        // What the scripts find as `sh`: bash on NixOS.
        let known = ["/bin", "/usr/bin"].map(|place| Path::new(place).join(shell));
        symlink(known.iter().find(|path| path.exists()).unwrap(), machine.path("bin/sh")).unwrap();
        // The five minutes that a machine stays when it could not be armed.
        machine.write("bin/sleep", "#!/bin/sh\necho \"sleep $*\" >>\"$NIX_BROKER_ROOT/calls\"\n");
        fs::set_permissions(machine.path("bin/sleep"), PermissionsExt::from_mode(0o755)).unwrap();
        let users: Vec<String> = (1..=32).map(|number| format!("nixbld{number}")).collect();
        machine.write("etc/group", &format!("root:x:0:\nnixbld:x:30000:{}\n", users.join(",")));
        let lines: String =
            users.iter().enumerate().map(|(at, user)| format!("{user}:x:{}:30000\n", 30001 + at)).collect();
        machine.write("etc/passwd", &lines);
        machine.linked("etc/nix/nix.conf", NIX_CONF);
        let root = machine.root().display().to_string();
        let sshd = format!("UsePAM no\nMaxSessions 10\nHostKey {root}/etc/ssh/ssh_host_ed25519_key\n");
        machine.linked("etc/ssh/sshd_config", &sshd);
        machine.write("proc/mounts", "/dev/nvme0n1p1 / ext4 rw 0 0\n");
        machine.write("proc/net/if_inet6", "");
        machine.process(1, 0, 0);
        machine.activate("sshd.service");
        machine.activate("nix-daemon.service");
        machine.set_uptime(20);
        machine
    }

    /// A link into the store, as NixOS has them in /etc.
    pub(crate) fn linked(&self, name: &str, text: &str) {
        let stored = format!("nix/store/{}", name.replace('/', "-"));
        self.write(&stored, text);
        fs::set_permissions(self.path(&stored), PermissionsExt::from_mode(0o444)).unwrap();
        let _absent = fs::remove_file(self.path(name));
        symlink(self.path(&stored), self.path(name)).unwrap();
    }

    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub(crate) fn set_uptime(&self, seconds: u64) {
        self.write("proc/uptime", &format!("{seconds}.50 {seconds}.00\n"));
    }

    pub(crate) fn activate(&self, unit: &str) {
        self.write(&format!("active/{unit}"), "");
    }

    /// From now on this program fails with these words.
    pub(crate) fn fail(&self, program: &str, words: &str) {
        self.write(&format!("fails/{program}"), words);
    }

    pub(crate) fn process(&self, pid: u32, uid: u32, gid: u32) {
        let ids = |id: u32| format!("{id}\t{id}\t{id}\t{id}");
        let status = format!("Name:\tsh\nPid:\t{pid}\nUid:\t{}\nGid:\t{}\nGroups:\t0\n", ids(uid), ids(gid));
        self.write(&format!("proc/{pid}/status"), &status);
    }

    pub(crate) fn end_process(&self, pid: u32) {
        fs::remove_dir_all(self.path(&format!("proc/{pid}"))).unwrap();
    }

    /// What was called so far; then forgotten.
    pub(crate) fn calls(&self) -> Vec<String> {
        let calls = self.read("calls");
        self.write("calls", "");
        calls.lines().map(|line| line.replace(&self.root().display().to_string(), "ROOT")).collect()
    }

    /// /run is in memory: what a boot begins with.
    pub(crate) fn reboot(&self) {
        fs::remove_dir_all(self.path("run")).unwrap();
        fs::remove_dir_all(self.path("active")).unwrap();
        for name in ["run", "active"] {
            fs::create_dir_all(self.path(name)).unwrap();
        }
        for name in ["rules-iptables", "rules-ip6tables"] {
            let _absent = fs::remove_file(self.path(name));
        }
        self.activate("sshd.service");
        self.activate("nix-daemon.service");
        self.set_uptime(20);
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", self.path("bin").display());
        command.env_clear().env("PATH", path).env("NIX_BROKER_ROOT", self.root()).current_dir(self.root());
        command
    }

    pub(crate) fn user_data(&self, change: impl FnOnce(&mut BootSpec<'_>)) -> String {
        let features = features(&["big-parallel", "gccarch-znver3"]);
        let mut spec = BootSpec {
            host_key_private: &self.keys.host.private_openssh_pem,
            host_key_public: &self.keys.host.public_openssh,
            client_key: &self.keys.client,
            system_features: &features,
            lease: Duration::from_secs(900),
            idle: Duration::from_secs(1200),
            hard_limit: Duration::from_secs(28_800),
            build_users: 32,
            nix_settings: &[],
            cache: None,
        };
        change(&mut spec);
        user_data::render(&spec).unwrap()
    }

    /// Boots with this user-data, and says what the boot printed.
    pub(crate) fn run(&self, user_data: &str) -> String {
        self.write("etc/ec2-metadata/user-data", user_data);
        let output = self.command(self.shell).arg(self.path("etc/ec2-metadata/user-data")).output().unwrap();
        let text = printed(&output);
        assert!(output.status.success(), "{text}");
        text
    }

    pub(crate) fn boot(&self) -> String {
        self.run(&self.user_data(|_| {}))
    }

    pub(crate) fn progress(&self) -> ready::Progress {
        let output = self.command(self.shell).args(["-c", &ready::command()]).output().unwrap();
        ready::parse(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", printed(&output)))
    }

    pub(crate) fn phases(&self) -> Vec<String> {
        self.progress().phases.into_iter().map(|phase| phase.name).collect()
    }

    pub(crate) fn failure(&self) -> String {
        match self.progress().state {
            ready::State::Failed(reason) => reason,
            state @ (ready::State::Booting | ready::State::Ready { .. } | ready::State::Ending(_)) => {
                panic!("{state:?}: {}", self.read("run/nix-broker/phases"))
            }
        }
    }

    pub(crate) fn beat(&self, in_use: bool) -> beat::Beat {
        let order = beat::BeatOrder { spot: false, in_use };
        let output = self.command(self.shell).args(["-c", &beat::command(order)]).output().unwrap();
        beat::parse(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", printed(&output)))
    }
}

pub(crate) fn features(names: &[&str]) -> BTreeSet<Feature> {
    names.iter().map(|name| Feature::new(*name)).collect()
}

pub(crate) fn printed(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
