//! What the checks say of a healthy machine, and what each change to it brings up.

mod machine;

use std::path::{Path, PathBuf};

use machine::*;

use super::facts::*;
use super::*;
use crate::ipc::view::{FaultView, PoolView};
use crate::model::{HostSpec, ProviderSpec};

/// Everything that is not well, one line each.
fn complaints(facts: &Facts) -> String {
    judge(facts)
        .into_iter()
        .filter(|finding| finding.mark != Mark::Ok)
        .map(|finding| {
            let hint = finding.hint.map(|hint| format!("\n     -> {hint}")).unwrap_or_default();
            format!("{} {}{hint}\n", finding.mark.word(), finding.text)
        })
        .collect()
}

fn complaints_after(change: impl FnOnce(&mut Facts)) -> String {
    let mut facts = healthy();
    change(&mut facts);
    complaints(&facts)
}

#[test]
fn a_healthy_machine_gets_no_complaint() {
    assert_eq!(complaints(&healthy()), "");
    let text: Vec<String> = judge(&healthy()).into_iter().map(|finding| finding.text).collect();
    insta::assert_snapshot!(text.join("\n"), @r"
    `/etc/nix-broker/config.toml` is valid: 1 pool
    the broker answers at `/run/nix-broker/broker.sock`: version 0.1.0, up 1m
    Nix 2.34.8 (`/usr/bin/nix`)
    builds through the nix-daemon start the hook `/usr/bin/broker-hook`
    root's own builds (`sudo nixos-rebuild`, without the daemon) start the hook `/usr/bin/broker-hook`
    the hook `/usr/bin/broker-hook` can be started by `root`
    `local` pools: sshd is `/usr/sbin/sshd`
    `local` pools: nix-daemon is `/usr/sbin/nix-daemon`
    `local` pools: `nix-broker` can sandbox builds
    `local` pools: the shell of `nix-broker` is `/bin/sh`
    ");
}

#[test]
fn an_ordinary_user_sees_a_healthy_machine_as_healthy_when_nix_conf_decides() {
    assert_eq!(complaints(&as_alice(healthy())), "");
}

#[test]
fn versions_are_told_apart() {
    for (line, ignores, other_protocol, too_old) in [
        ("nix (Nix) 2.3.16", false, false, true),
        ("nix (Nix) 2.8.0", false, false, false),
        ("nix (Nix) 2.24.14", false, false, false),
        ("nix (Nix) 2.25.0", true, false, false),
        ("nix (Nix) 2.33.3", true, false, false),
        ("nix (Nix) 2.34.0pre20260101_abcdef", false, false, false),
        ("nix (Determinate Nix 3.8.4) 2.30.2", true, false, false),
        ("nix (Lix, like Nix) 2.93.3", false, false, false),
        ("nix (Lix, like Nix) 2.94.0", false, true, false),
        ("nix (Nix) 3.0", false, false, false),
    ] {
        let version = Version::parse(line).unwrap();
        let found = (
            version.ignores_build_hook_in_nix_conf(),
            version.has_another_hook_protocol(),
            version.is_too_old(),
        );
        assert_eq!(found, (ignores, other_protocol, too_old), "{line}");
    }
    assert_eq!(Version::parse("command not found"), None);
}

#[test]
fn a_build_hook_that_nix_ignores_is_found_for_the_daemon_and_for_root() {
    insta::assert_snapshot!(complaints(&clobbered()), @r"
    fail Nix 2.31.2 ignores `build-hook` in `/etc/nix/nix.conf`, as 2.25 to 2.33 do: builds through the nix-daemon do not ask the broker
         -> add the line `build-hook = /usr/bin/broker-hook` to `/root/.config/nix/nix.conf`, which this Nix does read, and restart the nix-daemon; on NixOS the broker's module sees to it
    fail Nix 2.31.2 ignores `build-hook` in `/etc/nix/nix.conf`, as 2.25 to 2.33 do: root's own builds (`sudo nixos-rebuild`, without the daemon) do not ask the broker
         -> add the line `build-hook = /usr/bin/broker-hook` to `/root/.config/nix/nix.conf`, which this Nix does read, and restart the nix-daemon; on NixOS the broker's module sees to it
    ");
}

#[test]
fn nix_config_of_the_daemon_reaches_the_daemon_alone() {
    let mut facts = clobbered();
    let seen = settings(&[("build-hook", HOOK), ("builders", "@/etc/nix/machines")]);
    daemon(&mut facts).settings = Some(seen);
    insta::assert_snapshot!(complaints(&facts), @r"
    fail Nix 2.31.2 ignores `build-hook` in `/etc/nix/nix.conf`, as 2.25 to 2.33 do: root's own builds (`sudo nixos-rebuild`, without the daemon) do not ask the broker
         -> add the line `build-hook = /usr/bin/broker-hook` to `/root/.config/nix/nix.conf`, which this Nix does read, and restart the nix-daemon; on NixOS the broker's module sees to it
    ");
}

#[test]
fn an_ordinary_user_is_told_what_cannot_be_seen() {
    insta::assert_snapshot!(complaints(&as_alice(clobbered())), @r"
    warn Nix 2.31.2 ignores `build-hook` in `/etc/nix/nix.conf`, as 2.25 to 2.33 do; whether something else sets it for builds through the nix-daemon could not be read
         -> run this as root
    warn Nix 2.31.2 ignores `build-hook` in `/etc/nix/nix.conf`, as 2.25 to 2.33 do; whether something else sets it for root's own builds (`sudo nixos-rebuild`, without the daemon) could not be read
         -> run this as root
    ");
}

#[test]
fn a_file_that_reaches_every_user_is_warned_of() {
    let conf = |is_public| XdgConf { settings: settings(&[("build-hook", HOOK)]), is_public };
    let complaints = complaints_after(|facts| facts.nix.xdg_conf = Some(conf(true)));
    assert!(complaints.starts_with("warn `build-hook` in `/etc/xdg/nix/nix.conf`"), "{complaints}");
    assert_eq!(complaints_after(|facts| facts.nix.xdg_conf = Some(conf(false))), "");
}

#[test]
fn an_empty_builders_is_an_opt_out_and_a_missing_file_is_none() {
    insta::assert_snapshot!(
        complaints_after(|facts| {
            facts.nix.own_settings.as_mut().unwrap().insert("builders".to_owned(), String::new());
            daemon(facts).settings = facts.nix.own_settings.clone();
        }),
        @r"
        fail builds through the nix-daemon never get to the broker: `builders` is empty, which means not to build elsewhere
             -> remove the line `builders =` from nix.conf, and restart the nix-daemon; on NixOS, `nix.distributedBuilds = true`
        fail root's own builds (`sudo nixos-rebuild`, without the daemon) never get to the broker: `builders` is empty, which means not to build elsewhere
             -> remove the line `builders =` from nix.conf, and restart the nix-daemon; on NixOS, `nix.distributedBuilds = true`
        "
    );
}

#[test]
fn each_trouble_with_the_setting_has_its_own_words() {
    let nothing_set = complaints_after(|facts| {
        facts.nix.system_conf = None;
        let defaults = settings(&[("build-hook", "/usr/libexec/nix/build-remote")]);
        daemon(facts).settings = Some(defaults.clone());
        facts.nix.own_settings = Some(defaults);
    });
    insta::assert_snapshot!(nothing_set, @r"
    fail builds through the nix-daemon do not ask the broker: nothing sets `build-hook`
         -> add the line `build-hook = /usr/bin/broker-hook` to `/etc/nix/nix.conf` and restart the nix-daemon
    fail root's own builds (`sudo nixos-rebuild`, without the daemon) do not ask the broker: nothing sets `build-hook`
         -> add the line `build-hook = /usr/bin/broker-hook` to `/etc/nix/nix.conf`
    ");
    let another = complaints_after(|facts| {
        daemon(facts).settings = Some(settings(&[("build-hook", "/opt/other-hook --fast")]));
    });
    insta::assert_snapshot!(another, @r"
    fail builds through the nix-daemon start another hook, `/opt/other-hook --fast`
         -> Nix has one hook only; add the line `build-hook = /usr/bin/broker-hook` to `/etc/nix/nix.conf` and restart the nix-daemon
    ");
    let session = complaints_after(|facts| {
        facts.nix.own_nix_config = Some(settings(&[("build-hook", HOOK)]));
    });
    insta::assert_snapshot!(session, @r"
    warn for root's own builds (`sudo nixos-rebuild`, without the daemon) this comes from `NIX_CONFIG` of this very session
         -> run this in a fresh session without `NIX_CONFIG`, to see what others get
    ");
    let restart = complaints_after(|facts| daemon(facts).changed_since = vec!["/etc/nix/nix.conf".into()]);
    insta::assert_snapshot!(restart, @r"
    warn `/etc/nix/nix.conf` is newer than the nix-daemon (process 77), which reads it when it starts
         -> `systemctl restart nix-daemon`: builds that run go on
    ");
    let lix = complaints_after(|facts| {
        facts.nix.client.as_mut().unwrap().version = Version::parse("nix (Lix, like Nix) 2.94.0").unwrap();
    });
    insta::assert_snapshot!(lix, @r"
    fail Lix 2.94.0 speaks another protocol with its hook
         -> name the broker as a machine in `builders` instead; the README says how
    ");
    let no_nix = complaints_after(|facts| facts.nix = NixFacts::default());
    insta::assert_snapshot!(no_nix, @r"
    fail there is no `nix` in `PATH`
         -> install Nix, or run this with a `PATH` that has it
    ");
    let no_local_builds = complaints_after(|facts| {
        facts.nix.own_settings.as_mut().unwrap().insert("max-jobs".to_owned(), "0".to_owned());
    });
    insta::assert_snapshot!(no_local_builds, @"note `max-jobs` is 0: what fits no pool is built nowhere");
}

#[test]
fn the_hook_program_must_be_there_and_be_startable() {
    let gone = complaints_after(|facts| {
        facts.hook_programs.get_mut(Path::new(HOOK)).unwrap().exists = false;
    });
    insta::assert_snapshot!(gone, @r"
    fail `build-hook` names `/usr/bin/broker-hook`, which does not exist
         -> every build fails or stays here because of it; install the broker there, or change the setting
    ");
    let not_executable = complaints_after(|facts| {
        facts.hook_programs.insert(HOOK.into(), path(HOOK, 0, 0o644));
    });
    insta::assert_snapshot!(not_executable, @r"
    fail the hook `/usr/bin/broker-hook` may not be started by `root`
         -> `chmod a+rx /usr/bin/broker-hook`
    ");
    let behind_a_folder = complaints_after(|facts| {
        facts.invoker = account("alice", 1000);
        facts.nix.daemon = DaemonFact::NotRunning;
        facts.hook_programs.get_mut(Path::new(HOOK)).unwrap().parts[2].mode = 0o700;
    });
    insta::assert_snapshot!(behind_a_folder, @r"
    fail `alice` may not start the hook `/usr/bin/broker-hook`: `/usr/bin` keeps it out
         -> `chmod a+x /usr/bin`, or put the hook elsewhere
    ");
}

#[test]
fn each_trouble_with_the_broker_has_its_own_words() {
    insta::assert_snapshot!(
        complaints_after(|facts| facts.config = ConfigFact::Missing { path: "/etc/x.toml".into() }),
        @r"
        fail there is no configuration at `/etc/x.toml`
             -> write one with at least one `[[pool]]`, and check it with `broker check`
        "
    );
    insta::assert_snapshot!(complaints_after(|facts| facts.broker = BrokerFact::NotRunning), @r"
    fail the broker is not running: nobody listens at `/run/nix-broker/broker.sock`
         -> `systemctl start nix-broker`, and `journalctl -u nix-broker` when it does not stay up
    ");
    insta::assert_snapshot!(
        complaints_after(|facts| {
            facts.invoker = account("alice", 1000);
            facts.nix.daemon = DaemonFact::NotRunning;
            facts.nix.daemon_socket = None;
            facts.broker_account = facts.invoker.clone();
            facts.broker = BrokerFact::Denied;
        }),
        @r"
        warn `alice` may not use the broker's socket `/run/nix-broker/broker.sock`
             -> run this as root, or as a user who may write to the socket
        fail Nix runs the hook as `alice`, who may not use the broker's socket
             -> give `alice` the right to write to `/run/nix-broker/broker.sock`
        "
    );
    insta::assert_snapshot!(
        complaints_after(|facts| {
            let view = status(facts);
            view.version = "0.0.9".to_owned();
            view.accepting = false;
            let fault = FaultView { reason: "lacks `kvm`".to_owned(), ago: 125.0 };
            view.pools.push(PoolView {
                capped: None,
                rate: None,
                today: None,
                name: "zen3".to_owned(),
                ready: 0,
                starting: 0,
                ending: 0,
                max_builders: 1,
                slots_used: 0,
                slots: 0,
                queued: 0,
                idle_timeout: 600.0,
                surplus_idle_timeout: 600.0,
                last_fault: Some(fault),
                cooling: None,
            });
        }),
        @r"
        warn the running broker is 0.0.9, this command 0.1.0
             -> `systemctl restart nix-broker`: it waits for the builds that run
        warn the broker is shutting down and takes no builds
             -> wait for it to end, or `systemctl restart nix-broker`
        warn pool `zen3`, 2m 5s ago: lacks `kvm`
             -> when that is put right, `broker start zen3` tries it
        "
    );
    insta::assert_snapshot!(
        complaints_after(|facts| facts.nix.daemon_socket.as_mut().unwrap().parts[4].mode = 0o770),
        @r"
        fail the broker's user `nix-broker` cannot reach the nix-daemon: `/nix/var/nix/daemon-socket` keeps it out
             -> put it in the group that may use the daemon (Debian: `usermod -aG nix-users nix-broker`) and restart the broker
        "
    );
}

#[test]
fn a_socket_at_another_place_must_be_known_to_the_hook() {
    let moved = |environment: Option<DaemonEnvironment>| {
        complaints_after(|facts| {
            facts.socket = "/run/other.sock".into();
            daemon(facts).environment = environment;
        })
    };
    let told = DaemonEnvironment { broker_socket: Some("/run/other.sock".into()), nix_config: None };
    assert_eq!(moved(Some(told)), "");
    insta::assert_snapshot!(moved(Some(DaemonEnvironment::default())), @r"
    fail the hook does not know that the broker's socket is `/run/other.sock`
         -> set `NIX_BROKER_SOCKET=/run/other.sock` in the environment of the nix-daemon and restart it, or leave `socket` out of the configuration
    ");
    insta::assert_snapshot!(moved(None), @r"
    warn the nix-daemon's environment cannot be read: it must have `NIX_BROKER_SOCKET=/run/other.sock`
         -> run this as root
    ");
}

#[test]
fn a_local_pool_says_what_it_lacks() {
    insta::assert_snapshot!(
        complaints_after(|facts| {
            facts.broker_account.shell = Some("/usr/sbin/nologin".into());
            facts.host.programs.insert("sshd".to_owned(), None);
            facts.host.max_user_namespaces = Some(0);
            facts.host.files.insert("/bin/busybox".into(), PathFact::default());
            facts.host.files.insert(needs::KVM.into(), path(needs::KVM, 0, 0o660));
            let mut spec = local();
            spec.sandbox_paths = vec!["/bin/sh=/bin/busybox".to_owned()];
            let mut pool = pool(ProviderSpec::Local(spec));
            pool.offer.features = [crate::model::Feature::new("kvm")].into();
            config(facts).pools = vec![pool];
        }),
        @r"
        fail `local` pools: there is no `sshd` in `PATH`
             -> install OpenSSH's server, or say where it is with `pool.p.local.sshd`
        fail `local` pools: `nix-broker` may not make user namespaces (`user.max_user_namespaces`), so builds have no sandbox
             -> `sysctl -w user.max_user_namespaces=15000`, and put that into `/etc/sysctl.d` to keep it
        fail `local` pools: the shell of `nix-broker` is `/usr/sbin/nologin`, which runs nothing
             -> sshd starts commands through it: `usermod -s /bin/sh nix-broker`
        fail pool `p`: `/bin/busybox` of `sandbox-paths` does not exist
             -> every build of the pool fails; correct the path, or end the entry with `?`
        fail pool `p` promises `kvm`; `nix-broker` may not use `/dev/kvm`
             -> take `kvm` out of the pool's `features`, or give the user access (group `kvm`)
        "
    );
}

#[test]
fn a_host_says_which_key_it_must_let_in() {
    let host = |identity_file: Option<&str>| HostSpec {
        address: "10.0.0.7".to_owned(),
        port: 22,
        user: "nix".to_owned(),
        host_keys: vec!["ssh-ed25519 AAAA".to_owned()],
        identity_file: identity_file.map(PathBuf::from),
    };
    let with_files = |files: &[(&str, PathFact)]| {
        complaints_after(|facts| {
            facts.host.files = files.iter().map(|(name, fact)| (PathBuf::from(name), fact.clone())).collect();
            facts
                .host
                .public_keys
                .insert("/var/lib/nix-broker/id_ed25519".into(), "ssh-ed25519 BBBB".to_owned());
            config(facts).pools = vec![pool(ProviderSpec::Hosts(vec![host(None), host(Some("/etc/key"))]))];
        })
    };
    insta::assert_snapshot!(with_files(&[("/etc/key", path("/etc/key", 990, 0o600))]), @r"
    note `nix@10.0.0.7` must let this key in (`~/.ssh/authorized_keys`): ssh-ed25519 BBBB
    note `nix@10.0.0.7` takes inputs from other builders where a second line says: cert-authority,restrict ssh-ed25519 BBBB
    note `nix@10.0.0.7` must let the key in that `ssh-keygen -y -f /etc/key` prints
    ");
    insta::assert_snapshot!(with_files(&[("/etc/key", path("/etc/key", 0, 0o600))]), @r"
    note `nix@10.0.0.7` must let this key in (`~/.ssh/authorized_keys`): ssh-ed25519 BBBB
    note `nix@10.0.0.7` takes inputs from other builders where a second line says: cert-authority,restrict ssh-ed25519 BBBB
    fail `nix-broker` may not read the key `/etc/key`: `/etc/key` keeps it out
         -> `chown nix-broker /etc/key`, and let it into the folders above
    note `nix@10.0.0.7` must let the key in that `ssh-keygen -y -f /etc/key` prints
    ");
    insta::assert_snapshot!(with_files(&[("/etc/key", path("/etc/key", 990, 0o644))]), @r"
    note `nix@10.0.0.7` must let this key in (`~/.ssh/authorized_keys`): ssh-ed25519 BBBB
    note `nix@10.0.0.7` takes inputs from other builders where a second line says: cert-authority,restrict ssh-ed25519 BBBB
    warn others than its owner may use the key `/etc/key`
         -> `chmod 600 /etc/key`
    note `nix@10.0.0.7` must let the key in that `ssh-keygen -y -f /etc/key` prints
    ");
    insta::assert_snapshot!(with_files(&[("/etc/key", PathFact::default())]), @r"
    note `nix@10.0.0.7` must let this key in (`~/.ssh/authorized_keys`): ssh-ed25519 BBBB
    note `nix@10.0.0.7` takes inputs from other builders where a second line says: cert-authority,restrict ssh-ed25519 BBBB
    fail the key `/etc/key` does not exist
         -> `ssh-keygen -t ed25519 -N '' -f /etc/key`
    note `nix@10.0.0.7` must let the key in that `ssh-keygen -y -f /etc/key` prints
    ");
}
