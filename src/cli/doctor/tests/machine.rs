//! The machines that the checks look at: a healthy one, and parts and faces of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::facts::*;
use super::super::*;
use crate::config::Config;
use crate::ipc::view::{EndedView, StatusView};
use crate::model::{LocalSpec, Offer, PoolName, PoolSpec, ProviderSpec, Slots, System};

pub(super) const HOOK: &str = "/usr/bin/broker-hook";

pub(super) fn settings(pairs: &[(&str, &str)]) -> Settings {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

pub(super) fn version(text: &str) -> Version {
    Version::parse(&format!("nix (Nix) {text}")).unwrap()
}

pub(super) fn account(name: &str, uid: u32) -> Account {
    Account { name: name.to_owned(), uid, gids: vec![uid], shell: Some("/bin/sh".into()) }
}

/// Folders that everybody may pass, and at their end this.
pub(super) fn path(path: &str, uid: u32, mode: u32) -> PathFact {
    let whole = Path::new(path);
    let mut ancestors: Vec<&Path> = whole.ancestors().collect();
    ancestors.reverse();
    let part = |part: &&Path| {
        let is_last = *part == whole;
        Part {
            path: part.to_path_buf(),
            uid: if is_last { uid } else { 0 },
            gid: uid,
            mode: if is_last { mode } else { 0o755 },
            is_dir: !is_last,
        }
    };
    PathFact { parts: ancestors.iter().map(part).collect(), exists: true }
}

pub(super) fn pool(provider: ProviderSpec) -> PoolSpec {
    PoolSpec {
        name: PoolName::new("p"),
        offer: Offer {
            systems: [System::new("x86_64-linux")].into(),
            features: [].into(),
            mandatory: [].into(),
        },
        slots: Slots::Fixed(1),
        min_builders: 0,
        max_builders: 1,
        idle_timeout: Duration::from_secs(1),
        surplus_idle_timeout: Duration::from_secs(1),
        launch_horizon: None,
        max_lifetime: Duration::from_secs(1),
        launch_timeout: Duration::from_secs(1),
        declines: [].into(),
        direct: true,
        provider,
    }
}

pub(super) fn local() -> LocalSpec {
    LocalSpec { nix_daemon: None, sshd: None, sandbox_paths: vec![] }
}

pub(super) fn daemon(facts: &mut Facts) -> &mut Daemon {
    match &mut facts.nix.daemon {
        DaemonFact::Running(daemon) => daemon,
        DaemonFact::NotRunning => panic!("a daemon"),
    }
}

pub(super) fn config(facts: &mut Facts) -> &mut Config {
    match &mut facts.config {
        ConfigFact::Valid { config, .. } => config,
        ConfigFact::Missing { .. } | ConfigFact::Unreadable { .. } | ConfigFact::Invalid { .. } => {
            panic!("valid")
        }
    }
}

pub(super) fn status(facts: &mut Facts) -> &mut StatusView {
    match &mut facts.broker {
        BrokerFact::Answers(view) => view,
        BrokerFact::NotRunning | BrokerFact::Denied | BrokerFact::Trouble { .. } => panic!("answers"),
    }
}

/// Root looks at a machine on which all is well, with a Nix that reads nix.conf.
pub(super) fn healthy() -> Facts {
    let conf = settings(&[("build-hook", HOOK), ("builders", "@/etc/nix/machines"), ("max-jobs", "4")]);
    Facts {
        invoker: account("root", 0),
        broker_account: account("nix-broker", 990),
        config: ConfigFact::Valid {
            path: "/etc/nix-broker/config.toml".into(),
            config: Config {
                socket: None,
                state_dir: "/var/lib/nix-broker".into(),
                drain_grace: Duration::ZERO,
                metrics: None,
                caps: crate::model::Caps::default(),
                pools: vec![pool(ProviderSpec::Local(local()))],
                warnings: vec![],
            },
        },
        socket: "/run/nix-broker/broker.sock".into(),
        broker: BrokerFact::Answers(StatusView {
            money: None,
            schema: 1,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: 60.0,
            accepting: true,
            pools: vec![],
            builders: vec![],
            builds: vec![],
            ended: EndedView { succeeded: 0, failed: 0, cancelled: 0 },
        }),
        own_hook: Some(HOOK.into()),
        hook_programs: [(PathBuf::from(HOOK), path(HOOK, 0, 0o755))].into(),
        nix: NixFacts {
            client: Some(NixProgram { path: "/usr/bin/nix".into(), version: version("2.34.8") }),
            system_conf: Some(conf.clone()),
            xdg_conf: None,
            root_conf: RootConf::Absent,
            daemon: DaemonFact::Running(Daemon {
                pid: 77,
                version: Some(version("2.34.8")),
                environment: Some(DaemonEnvironment::default()),
                settings: Some(conf.clone()),
                changed_since: vec![],
            }),
            own_nix_config: None,
            own_settings: Some(conf),
            invoker_owns_store: true,
            daemon_socket: Some(path("/nix/var/nix/daemon-socket/socket", 0, 0o666)),
        },
        host: HostFacts {
            programs: needs::LOCAL_PROGRAMS
                .iter()
                .map(|name| (name.to_string(), Some(PathBuf::from(format!("/usr/sbin/{name}")))))
                .collect(),
            ..HostFacts::default()
        },
    }
}

/// As Nix 2.25 to 2.33 see the same files: their own default over `build-hook`.
pub(super) fn clobbered() -> Facts {
    let mut facts = healthy();
    let seen = settings(&[("build-hook", "/usr/bin/nix __build-remote"), ("builders", "@/etc/nix/machines")]);
    facts.nix.client.as_mut().unwrap().version = version("2.31.2");
    daemon(&mut facts).version = Some(version("2.31.2"));
    daemon(&mut facts).settings = Some(seen.clone());
    facts.nix.own_settings = Some(seen);
    facts
}

/// The same machine, looked at by an ordinary user.
pub(super) fn as_alice(mut facts: Facts) -> Facts {
    facts.invoker = account("alice", 1000);
    facts.nix.invoker_owns_store = false;
    facts.nix.root_conf = RootConf::Unreadable;
    daemon(&mut facts).environment = None;
    daemon(&mut facts).settings = None;
    facts
}
