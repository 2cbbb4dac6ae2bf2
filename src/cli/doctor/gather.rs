//! Finds the facts out: reads files below a root folder, looks at processes, asks the broker and Nix. Changes nothing,
//! judges nothing, and takes whatever cannot be found out for not known.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::facts::{
    Account, BrokerFact, ConfigFact, Daemon, DaemonEnvironment, DaemonFact, Facts, HostFacts, NixFacts,
    NixProgram, Part, PathFact, RootConf, Settings, Version, XdgConf,
};
use super::{hook, needs, settings};
use crate::cli::client::{Client, ClientError};
use crate::config::{self, Config, Defaults, LoadError};
use crate::ipc::message::{DEFAULT_SOCKET, SOCKET_VARIABLE};
use crate::model::ProviderSpec;

/// The user the packages make.
const BROKER_USER: &str = "nix-broker";
const DAEMON_SOCKET: &str = "/nix/var/nix/daemon-socket/socket";
const STORE_STATE: &str = "/nix/var/nix/db";
const MAX_INCLUDES: usize = 50;
/// Nothing that is looked at here is longer.
const MAX_FILE: u64 = 1 << 20;

/// The machine whose root folder this is.
struct Machine<'a> {
    root: &'a Path,
}

pub(super) fn facts(root: &Path, config_path: &Path, socket: Option<&Path>) -> Facts {
    let machine = Machine { root };
    let config = configuration(config_path);
    let configured = match &config {
        ConfigFact::Valid { config, .. } => config.socket.clone(),
        ConfigFact::Missing { .. } | ConfigFact::Unreadable { .. } | ConfigFact::Invalid { .. } => None,
    };
    let socket = socket.map(Path::to_owned).or(configured).unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET));
    let (broker, broker_uid) = ask_broker(&socket);
    let invoker = machine.account_of(rustix::process::geteuid().as_raw());
    let broker_account = match broker_uid {
        Some(uid) => machine.account_of(uid),
        None => machine.broker_account(&invoker),
    };
    let host = match &config {
        ConfigFact::Valid { config, .. } => host_facts(root, config),
        ConfigFact::Missing { .. } | ConfigFact::Unreadable { .. } | ConfigFact::Invalid { .. } => {
            HostFacts::default()
        }
    };
    let nix = machine.nix(&invoker);
    let hook_programs = machine.hook_programs(&nix);
    Facts { invoker, broker_account, config, socket, broker, own_hook: own_hook(), hook_programs, nix, host }
}

/// The account the broker runs as when it is not running: the packages' user, else whoever asks.
pub(in crate::cli) fn likely_broker_account() -> Account {
    let machine = Machine { root: Path::new("/") };
    machine.broker_account(&machine.account_of(rustix::process::geteuid().as_raw()))
}

fn configuration(path: &Path) -> ConfigFact {
    let path = path.to_owned();
    match config::load(&path, &Defaults::here()) {
        Ok(config) => ConfigFact::Valid { path, config },
        Err(LoadError::Missing(_)) => ConfigFact::Missing { path },
        Err(LoadError::Unreadable { source, .. }) => ConfigFact::Unreadable { path, why: source.to_string() },
        Err(LoadError::Invalid { problems, .. }) => ConfigFact::Invalid { path, problems },
    }
}

fn ask_broker(socket: &Path) -> (BrokerFact, Option<u32>) {
    let asked = Client::connect(socket).and_then(|mut client| Ok((client.peer_uid(), client.status()?)));
    match asked {
        Ok((uid, view)) => (BrokerFact::Answers(view), uid),
        Err(ClientError::NotRunning { .. }) => (BrokerFact::NotRunning, None),
        Err(ClientError::Denied { .. }) => (BrokerFact::Denied, None),
        Err(error) => {
            let hint = error.hint().map(str::to_owned);
            (BrokerFact::Trouble { what: error.to_string(), hint }, None)
        }
    }
}

fn own_hook() -> Option<PathBuf> {
    let beside = std::env::current_exe().ok()?.with_file_name("broker-hook");
    beside.is_file().then_some(beside)
}

/// What the providers of these pools need, as it is found on the machine with this root.
pub(in crate::cli) fn host_facts(root: &Path, config: &Config) -> HostFacts {
    let machine = Machine { root };
    let mut host = HostFacts {
        max_user_namespaces: machine.number("/proc/sys/user/max_user_namespaces"),
        unprivileged_userns_clone: machine.number("/proc/sys/kernel/unprivileged_userns_clone"),
        apparmor_restricts_userns: machine.number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
        ..HostFacts::default()
    };
    let mut files = vec![PathBuf::from(needs::KVM)];
    for pool in &config.pools {
        match &pool.provider {
            ProviderSpec::Local(local) => {
                for name in needs::LOCAL_PROGRAMS {
                    host.programs.entry(name.to_owned()).or_insert_with(|| machine.find_program(name));
                }
                files.extend(local.nix_daemon.clone());
                files.extend(local.sshd.clone());
                files.extend(local.sandbox_paths.iter().map(|entry| {
                    PathBuf::from(entry.split_once('=').map_or(entry.as_str(), |(_, here)| here))
                }));
            }
            ProviderSpec::Hosts(hosts) => {
                for spec in hosts {
                    let key =
                        spec.identity_file.clone().unwrap_or_else(|| config.state_dir.join(needs::OWN_KEY));
                    let mut public = key.clone().into_os_string();
                    public.push(".pub");
                    if let Some(text) = machine.read(Path::new(&public)) {
                        host.public_keys.insert(key.clone(), text.trim().to_owned());
                    }
                    files.extend(spec.identity_file.clone());
                }
            }
            ProviderSpec::Ec2(_) => {}
        }
    }
    host.files = files.into_iter().map(|path| (path.clone(), machine.path_fact(&path))).collect();
    host
}

impl Machine<'_> {
    /// Where a path of the machine is for us.
    fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn read(&self, path: &Path) -> Option<String> {
        let mut bytes = Vec::new();
        fs::File::open(self.at(path)).ok()?.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.read(Path::new(path))?.trim().parse().ok()
    }

    fn find_program(&self, name: &str) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        // sshd is seldom in the path of an ordinary user.
        let folders =
            std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from));
        folders.map(|folder| folder.join(name)).find(|path| path.is_absolute() && self.at(path).is_file())
    }

    fn account_of(&self, uid: u32) -> Account {
        let passwd = self.read(Path::new("/etc/passwd")).unwrap_or_default();
        let group = self.read(Path::new("/etc/group")).unwrap_or_default();
        parse_account(&passwd, &group, |_, entry_uid| entry_uid == uid).unwrap_or_else(|| Account {
            name: format!("user {uid}"),
            uid,
            gids: Vec::new(),
            shell: None,
        })
    }

    fn broker_account(&self, invoker: &Account) -> Account {
        let passwd = self.read(Path::new("/etc/passwd")).unwrap_or_default();
        let group = self.read(Path::new("/etc/group")).unwrap_or_default();
        parse_account(&passwd, &group, |name, _| name == BROKER_USER).unwrap_or_else(|| invoker.clone())
    }

    /// Follows symbolic links, and keeps what can be seen of the way.
    fn path_fact(&self, path: &Path) -> PathFact {
        let real = fs::canonicalize(self.at(path));
        let exists = real.is_ok();
        // A path that cannot be followed is kept as it is written, up to where it can be seen.
        let real = real.unwrap_or_else(|_| self.at(path));
        let below_root = fs::canonicalize(self.root).unwrap_or_else(|_| self.root.to_owned());
        let mut parts = Vec::new();
        for ancestor in real.ancestors().collect::<Vec<_>>().into_iter().rev() {
            let Ok(inside) = ancestor.strip_prefix(&below_root) else { continue };
            let Ok(metadata) = fs::metadata(ancestor) else { break };
            parts.push(Part {
                path: Path::new("/").join(inside),
                uid: metadata.uid(),
                gid: metadata.gid(),
                mode: metadata.mode() & 0o7777,
                is_dir: metadata.is_dir(),
            });
        }
        PathFact { parts, exists }
    }

    fn nix(&self, invoker: &Account) -> NixFacts {
        let client = self.find_program("nix").and_then(|path| {
            let version = run(Command::new(&path).arg("--version"))
                .and_then(|text| Version::parse(text.lines().next()?));
            Some(NixProgram { path, version: version? })
        });
        let root_conf = Path::new("/root/.config/nix/nix.conf");
        NixFacts {
            own_settings: client
                .as_ref()
                .and_then(|client| effective_settings(|| Command::new(&client.path))),
            client,
            system_conf: self.settings_of(Path::new("/etc/nix/nix.conf")),
            xdg_conf: self.xdg_conf(),
            root_conf: match fs::metadata(self.at(root_conf)) {
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => RootConf::Unreadable,
                Err(_) => RootConf::Absent,
                Ok(_) => self.settings_of(root_conf).map_or(RootConf::Unreadable, RootConf::Read),
            },
            daemon: self.daemon(invoker),
            own_nix_config: std::env::var("NIX_CONFIG").ok().map(|text| settings::parse_plain(&text)),
            invoker_owns_store: fs::metadata(self.at(Path::new(STORE_STATE)))
                .is_ok_and(|metadata| metadata.uid() == invoker.uid),
            daemon_socket: Some(self.path_fact(Path::new(DAEMON_SOCKET)))
                .filter(|fact| fact.exists || self.hides(Path::new(DAEMON_SOCKET))),
        }
    }

    fn xdg_conf(&self) -> Option<XdgConf> {
        const OTHERS_MAY_READ: u32 = 0o004;
        let path = Path::new("/etc/xdg/nix/nix.conf");
        let settings = self.settings_of(path)?;
        let metadata = fs::metadata(self.at(path)).ok()?;
        Some(XdgConf { settings, is_public: metadata.mode() & OTHERS_MAY_READ != 0 })
    }

    /// Whether the path is behind a folder that we may not look into.
    fn hides(&self, path: &Path) -> bool {
        fs::metadata(self.at(path)).is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
    }

    fn settings_of(&self, path: &Path) -> Option<Settings> {
        let text = self.read(path)?;
        let folder = path.parent().unwrap_or(path);
        let mut left = MAX_INCLUDES;
        Some(settings::parse(&text, &mut |file| {
            left = left.checked_sub(1)?;
            self.read(&folder.join(file))
        }))
    }

    /// The nix-daemon that waits for connections: one that no other nix-daemon has started.
    fn daemon(&self, invoker: &Account) -> DaemonFact {
        let Ok(entries) = fs::read_dir(self.at(Path::new("/proc"))) else { return DaemonFact::NotRunning };
        let mut daemons = BTreeMap::new();
        for entry in entries.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            let Ok(owner) = entry.metadata().map(|metadata| metadata.uid()) else { continue };
            // Anybody can name a program so; only root's and our own are listened to, and started.
            if owner != 0 && owner != invoker.uid {
                continue;
            }
            let Some(stat) = self.read(&proc(pid, "stat")).and_then(|text| parse_stat(&text)) else {
                continue;
            };
            if stat.name == "nix-daemon" {
                daemons.insert(pid, stat);
            }
        }
        let listener = daemons.iter().find(|(_, stat)| !daemons.contains_key(&stat.parent));
        match listener {
            Some((&pid, stat)) => DaemonFact::Running(self.look_into(pid, stat)),
            None => DaemonFact::NotRunning,
        }
    }

    fn look_into(&self, pid: u32, stat: &Stat) -> Daemon {
        let environment = fs::read(self.at(&proc(pid, "environ"))).ok();
        let program = fs::read_link(self.at(&proc(pid, "exe"))).ok();
        let version = program.as_ref().and_then(|program| {
            run(Command::new(program).arg("--version")).and_then(|text| Version::parse(text.lines().next()?))
        });
        // What its environment makes of the settings is found out by Nix itself, in that environment.
        let settings = match (&program, &environment) {
            (Some(program), Some(environment)) => effective_settings(|| {
                let mut command = Command::new(program);
                in_environment(&mut command, environment);
                command
            }),
            _ => None,
        };
        let started = self.boot_time().zip(stat.started_after).map(|(boot, after)| boot + after);
        let conf = Path::new("/etc/nix/nix.conf");
        let changed = fs::metadata(self.at(conf)).ok().map(|metadata| metadata.mtime());
        let changed_since = match (started, changed) {
            // Both are rounded; a daemon that was started in the same second has read it.
            (Some(started), Some(changed)) if changed > started + 1 => vec![conf.to_owned()],
            _ => Vec::new(),
        };
        Daemon {
            pid,
            version,
            environment: environment.map(|bytes| daemon_environment(&bytes)),
            settings,
            changed_since,
        }
    }

    /// Seconds since 1970.
    fn boot_time(&self) -> Option<i64> {
        let stat = self.read(Path::new("/proc/stat"))?;
        stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
    }

    fn hook_programs(&self, nix: &NixFacts) -> BTreeMap<PathBuf, PathFact> {
        let (daemon_settings, daemon_config) = match &nix.daemon {
            DaemonFact::Running(daemon) => (
                daemon.settings.as_ref(),
                daemon.environment.as_ref().and_then(|environment| environment.nix_config.as_ref()),
            ),
            DaemonFact::NotRunning => (None, None),
        };
        let root_conf = match &nix.root_conf {
            RootConf::Read(settings) => Some(settings),
            RootConf::Absent | RootConf::Unreadable => None,
        };
        [
            nix.own_settings.as_ref(),
            nix.system_conf.as_ref(),
            nix.xdg_conf.as_ref().map(|conf| &conf.settings),
            root_conf,
            daemon_settings,
            daemon_config,
        ]
        .into_iter()
        .flatten()
        .filter_map(|settings| hook::program_of(settings.get("build-hook")?))
        .map(|program| (program.to_owned(), self.path_fact(program)))
        .collect()
    }
}

fn proc(pid: u32, file: &str) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join(file)
}

/// What matters of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    parent: u32,
    /// Seconds after the boot.
    started_after: Option<i64>,
}

fn parse_stat(text: &str) -> Option<Stat> {
    /// The kernel's USER_HZ, on every architecture that Nix builds for.
    const TICKS_PER_SECOND: i64 = 100;
    // The name is in brackets and may contain any of the signs around it.
    let (head, tail) = text.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = tail.split_whitespace().collect();
    let parent = fields.get(1)?.parse().ok()?;
    let ticks = fields.get(19).and_then(|field| field.parse::<i64>().ok());
    Some(Stat { name, parent, started_after: ticks.map(|ticks| ticks / TICKS_PER_SECOND) })
}

fn parse_account(passwd: &str, group: &str, wanted: impl Fn(&str, u32) -> bool) -> Option<Account> {
    let mut account = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let (name, uid, gid) = (*fields.first()?, fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
        // An empty shell is the standard one.
        let shell = fields.get(6).map(|shell| if shell.is_empty() { "/bin/sh" } else { shell });
        let account =
            Account { name: name.to_owned(), uid, gids: vec![gid], shell: shell.map(PathBuf::from) };
        wanted(name, uid).then_some(account)
    })?;
    for line in group.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let is_member =
            fields.get(3).is_some_and(|members| members.split(',').any(|name| name == account.name));
        if let (true, Some(Ok(gid))) = (is_member, fields.get(2).map(|gid| gid.parse())) {
            account.gids.push(gid);
        }
    }
    Some(account)
}

/// Only what is looked for is taken out of an environment that may hold secrets.
fn daemon_environment(bytes: &[u8]) -> DaemonEnvironment {
    let text = String::from_utf8_lossy(bytes);
    let value = |name: &str| {
        text.split('\0')
            .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name))
            .map(|(_, value)| value)
    };
    DaemonEnvironment {
        nix_config: value("NIX_CONFIG").map(settings::parse_plain),
        broker_socket: value(SOCKET_VARIABLE).map(PathBuf::from),
    }
}

fn in_environment(command: &mut Command, environment: &[u8]) {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    command.env_clear();
    for pair in environment.split(|&byte| byte == 0) {
        if let Some(at) = pair.iter().position(|&byte| byte == b'=').filter(|&at| at > 0) {
            command.env(OsStr::from_bytes(&pair[..at]), OsStr::from_bytes(&pair[at + 1..]));
        }
    }
}

/// The settings as Nix itself understands them; older versions have another name for the question.
fn effective_settings(nix: impl Fn() -> Command) -> Option<Settings> {
    let ask = |words: &[&str]| run(nix().args(["--extra-experimental-features", "nix-command"]).args(words));
    let text = ask(&["config", "show"]).or_else(|| ask(&["show-config"]))?;
    Some(settings::parse_plain(&text))
}

/// The standard output of a program that succeeds.
fn run(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name_is() {
        let fields = "S 1 2 2 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 999";
        let stat = parse_stat(&format!("77 (nix) (daemon) {fields}")).unwrap();
        assert_eq!(stat, Stat { name: "nix) (daemon".to_owned(), parent: 1, started_after: Some(123) });
        assert_eq!(parse_stat("77 nonsense"), None);
    }

    #[test]
    fn an_account_has_its_groups_and_its_shell() {
        let passwd = "root:x:0:0::/root:/bin/bash\nnix-broker:x:990:980::/var/lib/nix-broker:\n";
        let group = "root:x:0:\nnix-users:x:970:alice,nix-broker\nnix-broker:x:980:\n";
        let account = parse_account(passwd, group, |name, _| name == "nix-broker").unwrap();
        assert_eq!((account.uid, account.gids), (990, vec![980, 970]));
        assert_eq!(account.shell, Some("/bin/sh".into()));
        assert_eq!(parse_account(passwd, group, |_, uid| uid == 1), None);
    }

    #[test]
    fn only_what_is_asked_for_is_kept_of_an_environment() {
        let bytes = b"SECRET=x\0NIX_CONFIG=build-hook = /a\nbuilders =\0NIX_BROKER_SOCKET=/s\0";
        let environment = daemon_environment(bytes);
        assert_eq!(environment.broker_socket, Some("/s".into()));
        assert_eq!(
            environment.nix_config.unwrap().into_keys().collect::<Vec<_>>(),
            ["build-hook", "builders"]
        );
    }
}
