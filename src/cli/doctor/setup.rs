//! Checks of the configuration, the broker itself, and its socket.

use super::facts::{BrokerFact, ConfigFact, DaemonFact, Facts, PathFact, Want};
use super::finding::Finding;
use crate::cli::text::{count, span};
use crate::ipc::message::{DEFAULT_SOCKET, SOCKET_VARIABLE};
use crate::ipc::view::StatusView;

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    [configuration(facts), broker(facts), socket_of_the_hook(facts), store(facts)].concat()
}

fn configuration(facts: &Facts) -> Vec<Finding> {
    match &facts.config {
        ConfigFact::Valid { path, config } => {
            let pools = count(config.pools.len(), "pool");
            let mut findings = vec![Finding::ok(format!("`{}` is valid: {pools}", path.display()))];
            findings.extend(config.warnings.iter().map(|problem| {
                Finding::warn(problem.located(path), "nothing fails because of it; see whether it is meant")
            }));
            findings
        }
        ConfigFact::Missing { path } => vec![Finding::fail(
            format!("there is no configuration at `{}`", path.display()),
            "write one with at least one `[[pool]]`, and check it with `broker check`",
        )],
        ConfigFact::Unreadable { path, why } => vec![Finding::warn(
            format!("`{}` cannot be read: {why}", path.display()),
            "run this as root, so that the pools can be checked",
        )],
        ConfigFact::Invalid { path, problems } => problems
            .iter()
            .map(|problem| {
                Finding::fail(problem.located(path), "put it right; `broker check` says when it is")
            })
            .collect(),
    }
}

fn broker(facts: &Facts) -> Vec<Finding> {
    let socket = facts.socket.display();
    match &facts.broker {
        BrokerFact::Answers(view) => answering(facts, view),
        BrokerFact::NotRunning => vec![Finding::fail(
            format!("the broker is not running: nobody listens at `{socket}`"),
            "`systemctl start nix-broker`, and `journalctl -u nix-broker` when it does not stay up",
        )],
        BrokerFact::Denied => vec![Finding::warn(
            format!("`{}` may not use the broker's socket `{socket}`", facts.invoker.name),
            "run this as root, or as a user who may write to the socket",
        )],
        BrokerFact::Trouble { what, hint } => {
            let hint = hint.clone().unwrap_or_else(|| "see `journalctl -u nix-broker`".to_owned());
            vec![Finding::fail(what.clone(), hint)]
        }
    }
}

fn answering(facts: &Facts, view: &StatusView) -> Vec<Finding> {
    let ours = env!("CARGO_PKG_VERSION");
    let mut findings = vec![Finding::ok(format!(
        "the broker answers at `{}`: version {}, up {}",
        facts.socket.display(),
        view.version,
        span(view.uptime)
    ))];
    if view.version != ours {
        findings.push(Finding::warn(
            format!("the running broker is {}, this command {ours}", view.version),
            "`systemctl restart nix-broker`: it waits for the builds that run",
        ));
    }
    if !view.accepting {
        let hint = "wait for it to end, or `systemctl restart nix-broker`";
        findings.push(Finding::warn("the broker is shutting down and takes no builds", hint));
    }
    for pool in &view.pools {
        if let Some(fault) = &pool.last_fault {
            findings.push(Finding::warn(
                format!("pool `{}`, {} ago: {}", pool.name, span(fault.ago), fault.reason),
                format!("when that is put right, `broker start {}` tries it", pool.name),
            ));
        }
    }
    findings
}

/// The hook knows the default and its environment, and reads no configuration.
fn socket_of_the_hook(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.socket.as_os_str() != DEFAULT_SOCKET {
        let socket = facts.socket.display();
        let set = format!("`{SOCKET_VARIABLE}={socket}`");
        match &facts.nix.daemon {
            DaemonFact::Running(daemon) => match &daemon.environment {
                Some(environment) if environment.broker_socket.as_ref() == Some(&facts.socket) => {
                    findings.push(Finding::ok(format!("the nix-daemon passes {set} on to the hook")));
                }
                Some(_) => findings.push(Finding::fail(
                    format!("the hook does not know that the broker's socket is `{socket}`"),
                    format!("set {set} in the environment of the nix-daemon and restart it, or leave `socket` out of the configuration"),
                )),
                None => findings.push(Finding::warn(
                    format!("the nix-daemon's environment cannot be read: it must have {set}"),
                    "run this as root",
                )),
            },
            DaemonFact::NotRunning => findings.push(Finding::note(format!(
                "the socket is not at its usual place: whatever starts Nix needs {set} in its environment"
            ))),
        }
    }
    // Who has a store of their own runs the hook themselves.
    if facts.nix.invoker_owns_store && !facts.invoker.is_root() && facts.broker == BrokerFact::Denied {
        findings.push(Finding::fail(
            format!("Nix runs the hook as `{}`, who may not use the broker's socket", facts.invoker.name),
            format!("give `{}` the right to write to `{}`", facts.invoker.name, facts.socket.display()),
        ));
    }
    findings
}

/// The broker reads inputs through the daemon of this machine.
fn store(facts: &Facts) -> Vec<Finding> {
    let account = &facts.broker_account;
    match &facts.nix.daemon_socket {
        Some(socket) => match obstacle(socket, facts) {
            None => vec![],
            Some(at) => vec![Finding::fail(
                format!(
                    "the broker's user `{}` cannot reach the nix-daemon: `{at}` keeps it out",
                    account.name
                ),
                format!(
                    "put it in the group that may use the daemon (Debian: `usermod -aG nix-users {}`) and restart the broker",
                    account.name
                ),
            )],
        },
        None if account.is_root() || facts.nix.client.is_none() => vec![],
        None if facts.nix.invoker_owns_store && account.uid == facts.invoker.uid => vec![],
        None => vec![Finding::warn(
            format!("there is no socket of a nix-daemon for the broker's user `{}`", account.name),
            "start it: `systemctl start nix-daemon.socket`",
        )],
    }
}

fn obstacle(socket: &PathFact, facts: &Facts) -> Option<String> {
    socket.obstacle(&facts.broker_account, Want::Write).map(|path| path.display().to_string())
}
