//! What was found out about this machine, before anything is made of it. Plain data: `gather` fills it in, `checks`
//! judges it, and tests write it down by hand.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::config::{Config, Problem};
use crate::ipc::view::StatusView;

/// Everything the checks look at.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cli) struct Facts {
    /// Who asks.
    pub(in crate::cli) invoker: Account,
    /// Whom the broker runs as, or would.
    pub(in crate::cli) broker_account: Account,
    pub(in crate::cli) config: ConfigFact,
    /// Where the broker is looked for.
    pub(in crate::cli) socket: PathBuf,
    pub(in crate::cli) broker: BrokerFact,
    /// The `broker-hook` that belongs to this very command, to be named in advice.
    pub(in crate::cli) own_hook: Option<PathBuf>,
    /// What is known of every program that some `build-hook` names.
    pub(in crate::cli) hook_programs: BTreeMap<PathBuf, PathFact>,
    pub(in crate::cli) nix: NixFacts,
    pub(in crate::cli) host: HostFacts,
}

/// A user of this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct Account {
    pub(in crate::cli) name: String,
    pub(in crate::cli) uid: u32,
    pub(in crate::cli) gids: Vec<u32>,
    pub(in crate::cli) shell: Option<PathBuf>,
}

impl Account {
    pub(in crate::cli) fn is_root(&self) -> bool {
        self.uid == 0
    }
}

/// The configuration file.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cli) enum ConfigFact {
    Valid { path: PathBuf, config: Config },
    Missing { path: PathBuf },
    Unreadable { path: PathBuf, why: String },
    Invalid { path: PathBuf, problems: Vec<Problem> },
}

/// What happened when the broker was asked for its status.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cli) enum BrokerFact {
    Answers(StatusView),
    NotRunning,
    Denied,
    /// Anything else, as a sentence and what to do.
    Trouble {
        what: String,
        hint: Option<String>,
    },
}

/// Nix on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct NixFacts {
    /// The `nix` in `PATH`.
    pub(in crate::cli) client: Option<NixProgram>,
    /// `/etc/nix/nix.conf` and what it includes; `None` when there is none.
    pub(in crate::cli) system_conf: Option<Settings>,
    /// `/etc/xdg/nix/nix.conf`.
    pub(in crate::cli) xdg_conf: Option<XdgConf>,
    /// `/root/.config/nix/nix.conf`.
    pub(in crate::cli) root_conf: RootConf,
    pub(in crate::cli) daemon: DaemonFact,
    /// `NIX_CONFIG` of whoever asks.
    pub(in crate::cli) own_nix_config: Option<Settings>,
    /// What `nix config show` says to whoever asks.
    pub(in crate::cli) own_settings: Option<Settings>,
    /// Whether whoever asks may write the store without a daemon.
    pub(in crate::cli) invoker_owns_store: bool,
    /// The daemon's socket; `None` when there is no such socket.
    pub(in crate::cli) daemon_socket: Option<PathFact>,
}

/// The file that every Nix reads for whoever may open it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct XdgConf {
    pub(in crate::cli) settings: Settings,
    /// Whether ordinary users may open it.
    pub(in crate::cli) is_public: bool,
}

/// `name = value`, as in nix.conf.
pub(in crate::cli) type Settings = BTreeMap<String, String>;

/// A file that only root may read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) enum RootConf {
    #[default]
    Absent,
    Unreadable,
    Read(Settings),
}

/// One installed Nix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct NixProgram {
    pub(in crate::cli) path: PathBuf,
    pub(in crate::cli) version: Version,
}

/// What `nix --version` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Version {
    pub(in crate::cli) flavour: Flavour,
    pub(in crate::cli) major: u32,
    pub(in crate::cli) minor: u32,
    /// As printed: `2.26.3`.
    pub(in crate::cli) text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Flavour {
    Nix,
    Lix,
}

impl Version {
    /// Reads the line that `nix --version` prints. The last word is the version, and for the descendants of Nix (such
    /// as Determinate's) it is the Nix they are based on.
    pub(in crate::cli) fn parse(line: &str) -> Option<Self> {
        let text = line.split_whitespace().next_back()?;
        let mut numbers = text.split(|c: char| !c.is_ascii_digit());
        let major = numbers.next()?.parse().ok()?;
        let minor = numbers.next()?.parse().ok()?;
        let flavour = if line.contains("Lix") { Flavour::Lix } else { Flavour::Nix };
        Some(Self { flavour, major, minor, text: text.to_owned() })
    }

    /// Nix 2.25 to 2.33 read `build-hook` from nix.conf and then set their own default over it.
    pub(in crate::cli) fn ignores_build_hook_in_nix_conf(&self) -> bool {
        self.flavour == Flavour::Nix && self.major == 2 && (25..=33).contains(&self.minor)
    }

    /// Lix speaks another protocol with its hook from 2.94 on.
    pub(in crate::cli) fn has_another_hook_protocol(&self) -> bool {
        self.flavour == Flavour::Lix && (self.major, self.minor) >= (2, 94)
    }

    /// Before 2.4 the protocol says less than we need.
    pub(in crate::cli) fn is_too_old(&self) -> bool {
        (self.major, self.minor) < (2, 4)
    }
}

/// The resident nix-daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) enum DaemonFact {
    /// None runs; it may be started when somebody connects.
    #[default]
    NotRunning,
    Running(Daemon),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Daemon {
    pub(in crate::cli) pid: u32,
    pub(in crate::cli) version: Option<Version>,
    /// `None` when we may not look.
    pub(in crate::cli) environment: Option<DaemonEnvironment>,
    /// What `nix config show` says in the daemon's environment; `None` when we may not look.
    pub(in crate::cli) settings: Option<Settings>,
    /// Settings files that were changed after it started.
    pub(in crate::cli) changed_since: Vec<PathBuf>,
}

/// The part of the daemon's environment that matters here; the rest may hold secrets and is not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct DaemonEnvironment {
    pub(in crate::cli) nix_config: Option<Settings>,
    pub(in crate::cli) broker_socket: Option<PathBuf>,
}

/// A path, from the root down, after symbolic links were followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct PathFact {
    /// Every folder above it and the thing itself, as far as they could be looked at.
    pub(in crate::cli) parts: Vec<Part>,
    /// Whether the last of the parts is the thing itself.
    pub(in crate::cli) exists: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Part {
    pub(in crate::cli) path: PathBuf,
    pub(in crate::cli) uid: u32,
    pub(in crate::cli) gid: u32,
    pub(in crate::cli) mode: u32,
    pub(in crate::cli) is_dir: bool,
}

/// What somebody wants with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Want {
    Read = 4,
    Write = 2,
    Execute = 1,
}

impl PathFact {
    /// The first part that keeps this user from it, or `None`.
    pub(in crate::cli) fn obstacle(&self, account: &Account, want: Want) -> Option<&Path> {
        let last = self.parts.len().saturating_sub(1);
        self.parts
            .iter()
            .enumerate()
            .find(|(index, part)| {
                let want = if *index == last && !part.is_dir { want } else { Want::Execute };
                !part.allows(account, want)
            })
            .map(|(_, part)| part.path.as_path())
    }
}

impl Part {
    fn allows(&self, account: &Account, want: Want) -> bool {
        let bit = want as u32;
        if account.is_root() {
            // Root needs some execute bit to run a file, and nothing else.
            return want != Want::Execute || self.is_dir || self.mode & 0o111 != 0;
        }
        let shift = if self.uid == account.uid {
            6
        } else if account.gids.contains(&self.gid) {
            3
        } else {
            0
        };
        self.mode >> shift & bit != 0
    }
}

/// What the pools' providers may need of this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct HostFacts {
    /// Programs that were looked for, by name, and where they are.
    pub(in crate::cli) programs: BTreeMap<String, Option<PathBuf>>,
    /// Files that the configuration names, and `/dev/kvm`.
    pub(in crate::cli) files: BTreeMap<PathBuf, PathFact>,
    /// Public keys that were found, by the path of the private one.
    pub(in crate::cli) public_keys: BTreeMap<PathBuf, String>,
    /// `None` when the kernel does not say.
    pub(in crate::cli) max_user_namespaces: Option<u64>,
    /// Debian's switch.
    pub(in crate::cli) unprivileged_userns_clone: Option<u64>,
    /// Ubuntu's switch.
    pub(in crate::cli) apparmor_restricts_userns: Option<u64>,
}
