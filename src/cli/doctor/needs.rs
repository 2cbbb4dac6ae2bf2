//! Checks of what the pools' providers need of this machine and of the broker's user.

use std::path::{Path, PathBuf};

use super::facts::{Account, ConfigFact, Facts, HostFacts, PathFact, Want};
use super::finding::Finding;
use crate::model::{HostSpec, LocalSpec, PoolSpec, ProviderSpec};

/// The broker's own key for `hosts`, in its state directory.
pub(in crate::cli) const OWN_KEY: &str = "id_ed25519";
pub(in crate::cli) const KVM: &str = "/dev/kvm";
/// The programs a `local` pool runs, by the names they are looked up by.
pub(in crate::cli) const LOCAL_PROGRAMS: [&str; 2] = ["sshd", "nix-daemon"];
/// Shells that let nobody in.
const NO_SHELLS: [&str; 3] = ["nologin", "false", "true"];

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let ConfigFact::Valid { config, .. } = &facts.config else { return Vec::new() };
    of_pools(&config.pools, &config.state_dir, &facts.broker_account, &facts.host)
}

/// What these pools need of this machine, once each.
pub(in crate::cli) fn of_pools(
    pools: &[PoolSpec],
    state_dir: &Path,
    account: &Account,
    host: &HostFacts,
) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for pool in pools {
        let of_pool = match &pool.provider {
            ProviderSpec::Local(local) => of_local(pool, local, account, host),
            ProviderSpec::Hosts(hosts) => {
                hosts.iter().flat_map(|spec| of_host(pool, spec, state_dir, account, host)).collect()
            }
            // What EC2 itself has to say is asked by `doctor --aws`.
            ProviderSpec::Ec2(_) => Vec::new(),
        };
        for finding in of_pool {
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
    }
    findings
}

fn of_local(pool: &PoolSpec, local: &LocalSpec, account: &Account, host: &HostFacts) -> Vec<Finding> {
    let mut findings = vec![
        program("sshd", local.sshd.as_ref(), "install OpenSSH's server", pool, account, host),
        program("nix-daemon", local.nix_daemon.as_ref(), "install Nix", pool, account, host),
        user_namespaces(account, host),
        shell(account),
    ];
    for entry in &local.sandbox_paths {
        // `INSIDE=HERE`, with a `?` behind it when it may be missing.
        let here = Path::new(entry.split_once('=').map_or(entry.as_str(), |(_, here)| here));
        let is_optional = entry.ends_with('?');
        if !is_optional && host.files.get(here).is_some_and(|file| !file.exists) {
            findings.push(Finding::fail(
                format!("pool `{}`: `{}` of `sandbox-paths` does not exist", pool.name, here.display()),
                "every build of the pool fails; correct the path, or end the entry with `?`",
            ));
        }
    }
    let wants_kvm = pool.offer.features.iter().chain(&pool.offer.mandatory).any(|f| f.as_str() == "kvm");
    if let (true, Some(kvm)) = (wants_kvm, host.files.get(Path::new(KVM))) {
        let hint = "take `kvm` out of the pool's `features`, or give the user access (group `kvm`)";
        if !kvm.exists {
            findings.push(Finding::fail(
                format!("pool `{}` promises `kvm`, and this machine has no `{KVM}`", pool.name),
                hint,
            ));
        } else if let Some(at) = kvm.obstacle(account, Want::Write) {
            let text = format!(
                "pool `{}` promises `kvm`; `{}` may not use `{}`",
                pool.name,
                account.name,
                at.display()
            );
            findings.push(Finding::fail(text, hint));
        }
    }
    findings
}

fn program(
    name: &str,
    configured: Option<&PathBuf>,
    install: &str,
    pool: &PoolSpec,
    account: &Account,
    host: &HostFacts,
) -> Finding {
    let key = format!("pool.{}.local.{name}", pool.name);
    match configured {
        Some(path) => match host.files.get(path) {
            Some(file) if !file.exists => Finding::fail(
                format!("`{key}` is `{}`, which does not exist", path.display()),
                "correct the path",
            ),
            Some(file) => match file.obstacle(account, Want::Execute) {
                Some(at) => Finding::fail(
                    format!(
                        "`{}` may not start `{}`: `{}` keeps it out",
                        account.name,
                        path.display(),
                        at.display()
                    ),
                    format!("see its mode with `ls -ld {}`", at.display()),
                ),
                None => Finding::ok(format!("`local` pools: {name} is `{}`", path.display())),
            },
            None => Finding::note(format!("`local` pools: {name} is `{}`, not looked at", path.display())),
        },
        None => match host.programs.get(name) {
            Some(Some(path)) => Finding::ok(format!("`local` pools: {name} is `{}`", path.display())),
            Some(None) | None => Finding::fail(
                format!("`local` pools: there is no `{name}` in `PATH`"),
                format!("{install}, or say where it is with `{key}`"),
            ),
        },
    }
}

/// Builds are sandboxed, and an ordinary user can make a sandbox with user namespaces only.
fn user_namespaces(account: &Account, host: &HostFacts) -> Finding {
    if account.is_root() {
        return Finding::ok("`local` pools: root can sandbox builds");
    }
    let obstacle = if host.max_user_namespaces == Some(0) {
        Some(("user.max_user_namespaces", "user.max_user_namespaces=15000"))
    } else if host.unprivileged_userns_clone == Some(0) {
        Some(("kernel.unprivileged_userns_clone", "kernel.unprivileged_userns_clone=1"))
    } else if host.apparmor_restricts_userns == Some(1) {
        Some((
            "kernel.apparmor_restrict_unprivileged_userns",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ))
    } else {
        None
    };
    match obstacle {
        Some((switch, remedy)) => Finding::fail(
            format!(
                "`local` pools: `{}` may not make user namespaces (`{switch}`), so builds have no sandbox",
                account.name
            ),
            format!("`sysctl -w {remedy}`, and put that into `/etc/sysctl.d` to keep it"),
        ),
        None => Finding::ok(format!("`local` pools: `{}` can sandbox builds", account.name)),
    }
}

/// sshd runs every command through the user's shell.
fn shell(account: &Account) -> Finding {
    let Some(shell) = &account.shell else {
        return Finding::warn(
            format!("`local` pools: `{}` is not in `/etc/passwd`, so its shell is not known", account.name),
            "sshd starts commands through the user's shell: it must be a real one",
        );
    };
    if shell.file_name().is_none_or(|name| NO_SHELLS.iter().any(|no| name == *no)) {
        return Finding::fail(
            format!(
                "`local` pools: the shell of `{}` is `{}`, which runs nothing",
                account.name,
                shell.display()
            ),
            format!("sshd starts commands through it: `usermod -s /bin/sh {}`", account.name),
        );
    }
    Finding::ok(format!("`local` pools: the shell of `{}` is `{}`", account.name, shell.display()))
}

fn of_host(
    pool: &PoolSpec,
    spec: &HostSpec,
    state_dir: &Path,
    account: &Account,
    host: &HostFacts,
) -> Vec<Finding> {
    let place = format!("{}@{}", spec.user, spec.address);
    let key_file = spec.identity_file.clone().unwrap_or_else(|| state_dir.join(OWN_KEY));
    let mut findings = Vec::new();
    if let (Some(path), Some(file)) = (&spec.identity_file, host.files.get(&key_file)) {
        findings.push(identity(path, file, account));
    }
    findings.push(match host.public_keys.get(&key_file) {
        Some(key) => {
            Finding::note(format!("`{place}` must let this key in (`~/.ssh/authorized_keys`): {key}"))
        }
        None if spec.identity_file.is_some() => Finding::note(format!(
            "`{place}` must let the key in that `ssh-keygen -y -f {}` prints",
            key_file.display()
        )),
        None => Finding::note(format!(
            "`{place}` must let the broker's own key in, which its first start writes to `{}.pub`",
            key_file.display()
        )),
    });
    if let Some(key) = host.public_keys.get(&key_file).filter(|_| pool.direct) {
        findings.push(Finding::note(format!(
            "`{place}` takes inputs from other builders where a second line says: cert-authority,restrict {key}"
        )));
    }
    findings
}

fn identity(path: &Path, file: &PathFact, account: &Account) -> Finding {
    let shown = path.display();
    if !file.exists && file.obstacle(account, Want::Read).is_none() {
        return Finding::fail(
            format!("the key `{shown}` does not exist"),
            format!("`ssh-keygen -t ed25519 -N '' -f {shown}`"),
        );
    }
    if let Some(at) = file.obstacle(account, Want::Read) {
        return Finding::fail(
            format!("`{}` may not read the key `{shown}`: `{}` keeps it out", account.name, at.display()),
            format!("`chown {} {shown}`, and let it into the folders above", account.name),
        );
    }
    match file.parts.last() {
        Some(part) if part.mode & 0o077 != 0 && !part.is_dir => Finding::warn(
            format!("others than its owner may use the key `{shown}`"),
            format!("`chmod 600 {shown}`"),
        ),
        _ => Finding::ok(format!("the key `{shown}` can be read by `{}`", account.name)),
    }
}
