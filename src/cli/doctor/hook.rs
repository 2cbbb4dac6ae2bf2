//! Checks of what makes Nix ask the broker: its version, `build-hook`, `builders`, and the program they lead to.
//!
//! There are two kinds of asker on a machine with a daemon, and a setting that reaches one need not reach the other:
//! the daemon, for ordinary users, and root itself, whose commands (`sudo nixos-rebuild switch`) work on the store
//! directly. On a single-user installation there is only the owner of the store.

use std::path::Path;

use super::facts::{Account, Daemon, DaemonFact, Facts, RootConf, Settings, Version, Want};
use super::finding::Finding;

const HOOK_NAME: &str = "broker-hook";
const SYSTEM_CONF: &str = "/etc/nix/nix.conf";
const ROOT_CONF: &str = "/root/.config/nix/nix.conf";
const XDG_CONF: &str = "/etc/xdg/nix/nix.conf";

/// Who starts the hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    Daemon,
    Root,
    Owner,
}

impl Asker {
    /// As the beginning of a sentence.
    fn builds(self) -> &'static str {
        match self {
            Self::Daemon => "builds through the nix-daemon",
            Self::Root => "root's own builds (`sudo nixos-rebuild`, without the daemon)",
            Self::Owner => "builds",
        }
    }
}

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings = versions(facts);
    // Without a Nix there is nobody to ask the broker, and nothing to be said about how.
    if facts.nix.client.is_none() && daemon(facts).is_none() {
        return findings;
    }
    for asker in askers(facts) {
        findings.extend(build_hook(facts, asker));
        findings.extend(builders(facts, asker));
    }
    findings.extend(programs(facts));
    if let Some(daemon) = daemon(facts) {
        findings.extend(daemon.changed_since.iter().map(|file| {
            let file = file.display();
            Finding::warn(
                format!(
                    "`{file}` is newer than the nix-daemon (process {}), which reads it when it starts",
                    daemon.pid
                ),
                "`systemctl restart nix-daemon`: builds that run go on",
            )
        }));
    }
    let max_jobs = facts.nix.own_settings.as_ref().and_then(|settings| settings.get("max-jobs"));
    if max_jobs.is_some_and(|value| value == "0") {
        findings.push(Finding::note("`max-jobs` is 0: what fits no pool is built nowhere"));
    }
    findings
}

fn askers(facts: &Facts) -> Vec<Asker> {
    if facts.nix.invoker_owns_store && !facts.invoker.is_root() {
        return vec![Asker::Owner];
    }
    if facts.nix.daemon_socket.is_some() || daemon(facts).is_some() {
        vec![Asker::Daemon, Asker::Root]
    } else {
        vec![Asker::Root]
    }
}

fn daemon(facts: &Facts) -> Option<&Daemon> {
    match &facts.nix.daemon {
        DaemonFact::Running(daemon) => Some(daemon),
        DaemonFact::NotRunning => None,
    }
}

fn versions(facts: &Facts) -> Vec<Finding> {
    let client = facts.nix.client.as_ref();
    let daemon = daemon(facts).and_then(|daemon| daemon.version.as_ref());
    let mut findings = Vec::new();
    match (client, daemon) {
        (None, None) => {
            let hint = "install Nix, or run this with a `PATH` that has it";
            return vec![Finding::fail("there is no `nix` in `PATH`", hint)];
        }
        (Some(client), Some(daemon)) if client.version != *daemon => findings.push(Finding::ok(format!(
            "Nix {} (`{}`), and a nix-daemon of {}",
            client.version.text,
            client.path.display(),
            daemon.text
        ))),
        (Some(client), _) => {
            findings.push(Finding::ok(format!("Nix {} (`{}`)", client.version.text, client.path.display())));
        }
        (None, Some(daemon)) => findings.push(Finding::ok(format!("a nix-daemon of {}", daemon.text))),
    }
    let mut seen: Vec<&Version> = Vec::new();
    for version in client.map(|client| &client.version).into_iter().chain(daemon) {
        if seen.contains(&version) {
            continue;
        }
        seen.push(version);
        if version.has_another_hook_protocol() {
            findings.push(Finding::fail(
                format!("Lix {} speaks another protocol with its hook", version.text),
                "name the broker as a machine in `builders` instead; the README says how",
            ));
        } else if version.is_too_old() {
            findings.push(Finding::fail(
                format!("Nix {} is too old: the broker works with 2.4 and newer", version.text),
                "update Nix",
            ));
        }
    }
    findings
}

/// What a setting is for one asker.
struct Seen<'a> {
    /// `None` when nothing that we could read sets it.
    value: Option<&'a str>,
    /// Whether there may be more that we could not read.
    may_be_more: bool,
}

fn look_up<'a>(facts: &'a Facts, asker: Asker, name: &str) -> Seen<'a> {
    let nix = &facts.nix;
    // What Nix itself says beats what we make of files.
    let said = match asker {
        Asker::Daemon => daemon(facts).and_then(|daemon| daemon.settings.as_ref()),
        Asker::Root if !facts.invoker.is_root() => None,
        Asker::Root | Asker::Owner => nix.own_settings.as_ref(),
    };
    if let Some(settings) = said {
        return Seen { value: settings.get(name).map(String::as_str), may_be_more: false };
    }
    let ignored = name == "build-hook" && ignores_nix_conf(facts, asker);
    let environment = match asker {
        Asker::Daemon => daemon(facts).and_then(|daemon| daemon.environment.as_ref()),
        Asker::Root | Asker::Owner => None,
    };
    let root_conf = match &nix.root_conf {
        RootConf::Read(settings) => Some(settings),
        RootConf::Absent | RootConf::Unreadable => None,
    };
    // From the strongest to the weakest.
    let layers = [
        environment.and_then(|environment| environment.nix_config.as_ref()),
        root_conf,
        nix.xdg_conf.as_ref().map(|conf| &conf.settings),
        nix.system_conf.as_ref().filter(|_| !ignored),
    ];
    let value = layers.into_iter().flatten().find_map(|layer: &Settings| layer.get(name));
    let environment_is_hidden = asker == Asker::Daemon && environment.is_none();
    Seen {
        value: value.map(String::as_str),
        may_be_more: environment_is_hidden || nix.root_conf == RootConf::Unreadable,
    }
}

fn version_of(facts: &Facts, asker: Asker) -> Option<&Version> {
    let client = facts.nix.client.as_ref().map(|client| &client.version);
    match asker {
        Asker::Daemon => daemon(facts).and_then(|daemon| daemon.version.as_ref()).or(client),
        Asker::Root | Asker::Owner => client,
    }
}

fn ignores_nix_conf(facts: &Facts, asker: Asker) -> bool {
    version_of(facts, asker).is_some_and(Version::ignores_build_hook_in_nix_conf)
}

fn is_ours(value: &str) -> bool {
    program_of(value).is_some_and(|program| program.file_name().is_some_and(|name| name == HOOK_NAME))
}

/// The program that a `build-hook` starts.
pub(super) fn program_of(value: &str) -> Option<&Path> {
    value.split_whitespace().next().map(Path::new)
}

fn build_hook(facts: &Facts, asker: Asker) -> Vec<Finding> {
    let builds = asker.builds();
    let seen = look_up(facts, asker, "build-hook");
    if let Some(value) = seen.value.filter(|value| is_ours(value)) {
        let mut findings = vec![Finding::ok(format!("{builds} start the hook `{value}`"))];
        findings.extend(warn_of_xdg(facts, asker));
        findings.extend(warn_of_session(facts, asker));
        return findings;
    }
    let in_nix_conf = set_in_nix_conf(facts).is_some_and(is_ours);
    let version = version_of(facts, asker).map_or("this Nix", |version| version.text.as_str());
    if in_nix_conf && ignores_nix_conf(facts, asker) {
        let text = format!("Nix {version} ignores `build-hook` in `{SYSTEM_CONF}`, as 2.25 to 2.33 do");
        return vec![if seen.may_be_more {
            Finding::warn(
                format!("{text}; whether something else sets it for {builds} could not be read"),
                "run this as root",
            )
        } else {
            Finding::fail(format!("{text}: {builds} do not ask the broker"), how_to_set(facts, asker))
        }];
    }
    // A stock hook is the default, and says nothing about anybody's intent.
    let other = seen.value.filter(|value| !value.is_empty() && !value.contains("build-remote"));
    vec![match (other, seen.may_be_more) {
        (Some(other), _) => Finding::fail(
            format!("{builds} start another hook, `{other}`"),
            format!("Nix has one hook only; {}", how_to_set(facts, asker)),
        ),
        (None, true) => {
            Finding::warn(format!("whether {builds} ask the broker could not be read"), "run this as root")
        }
        (None, false) => Finding::fail(
            format!("{builds} do not ask the broker: nothing sets `build-hook`"),
            how_to_set(facts, asker),
        ),
    }]
}

fn set_in_nix_conf(facts: &Facts) -> Option<&str> {
    facts.nix.system_conf.as_ref()?.get("build-hook").map(String::as_str)
}

/// What to set where, for this asker and its version.
fn how_to_set(facts: &Facts, asker: Asker) -> String {
    let configured = set_in_nix_conf(facts).filter(|value| is_ours(value));
    let own = facts.own_hook.as_ref().map(|path| path.display().to_string());
    let hook = configured.map(str::to_owned).or(own).unwrap_or_else(|| format!("/PATH/OF/{HOOK_NAME}"));
    match (asker, ignores_nix_conf(facts, asker)) {
        // One file that reaches both: the daemon is root's as well.
        (Asker::Daemon | Asker::Root, true) => format!(
            "add the line `build-hook = {hook}` to `{ROOT_CONF}`, which this Nix does read, and restart the nix-daemon; \
             on NixOS the broker's module sees to it"
        ),
        (Asker::Owner, true) => {
            format!(
                "add the line `build-hook = {hook}` to `~/.config/nix/nix.conf`, which this Nix does read"
            )
        }
        (Asker::Daemon, false) => {
            format!("add the line `build-hook = {hook}` to `{SYSTEM_CONF}` and restart the nix-daemon")
        }
        (Asker::Root | Asker::Owner, false) => {
            format!("add the line `build-hook = {hook}` to `{SYSTEM_CONF}`")
        }
    }
}

/// Settings of a readable `xdg` file reach everybody, also those who may not have them.
fn warn_of_xdg(facts: &Facts, asker: Asker) -> Option<Finding> {
    let conf = facts.nix.xdg_conf.as_ref()?;
    let reaches_everybody = conf.is_public && conf.settings.contains_key("build-hook");
    (asker == Asker::Daemon && reaches_everybody).then(|| {
        Finding::warn(
            format!("`build-hook` in `{XDG_CONF}` makes Nix warn every ordinary user at every command"),
            format!("let root alone read it: `chmod 0400 {XDG_CONF}`"),
        )
    })
}

/// What root has set in this session says nothing about the next one.
fn warn_of_session(facts: &Facts, asker: Asker) -> Option<Finding> {
    let own = facts.nix.own_nix_config.as_ref().and_then(|settings| settings.get("build-hook"));
    (asker != Asker::Daemon && own.is_some()).then(|| {
        Finding::warn(
            format!("for {} this comes from `NIX_CONFIG` of this very session", asker.builds()),
            "run this in a fresh session without `NIX_CONFIG`, to see what others get",
        )
    })
}

/// An empty `builders` is how a user opts out; the hook honours it, and nothing would say why nothing happens.
fn builders(facts: &Facts, asker: Asker) -> Option<Finding> {
    let seen = look_up(facts, asker, "builders");
    (seen.value == Some("")).then(|| {
        Finding::fail(
            format!("{} never get to the broker: `builders` is empty, which means not to build elsewhere", asker.builds()),
            "remove the line `builders =` from nix.conf, and restart the nix-daemon; on NixOS, `nix.distributedBuilds = true`",
        )
    })
}

/// Whether the programs that the settings name can be started by those who start them.
fn programs(facts: &Facts) -> Vec<Finding> {
    let root = Account { name: "root".to_owned(), ..Account::default() };
    let mut findings: Vec<Finding> = Vec::new();
    for asker in askers(facts) {
        let account = if asker == Asker::Owner { &facts.invoker } else { &root };
        let named = look_up(facts, asker, "build-hook").value.or_else(|| set_in_nix_conf(facts));
        let Some(program) = named.filter(|value| is_ours(value)).and_then(program_of) else { continue };
        let shown = program.display();
        let finding = if !program.is_absolute() {
            Finding::fail(
                format!("`build-hook = {shown}` is not a whole path"),
                "write it from `/` on: Nix up to 2.24 finds it in no other way",
            )
        } else {
            match facts.hook_programs.get(program) {
                Some(fact) if !fact.exists => Finding::fail(
                    format!("`build-hook` names `{shown}`, which does not exist"),
                    "every build fails or stays here because of it; install the broker there, or change the setting",
                ),
                Some(fact) => match fact.obstacle(account, Want::Execute) {
                    Some(at) if at == program => Finding::fail(
                        format!("the hook `{shown}` may not be started by `{}`", account.name),
                        format!("`chmod a+rx {shown}`"),
                    ),
                    Some(at) => Finding::fail(
                        format!(
                            "`{}` may not start the hook `{shown}`: `{}` keeps it out",
                            account.name,
                            at.display()
                        ),
                        format!("`chmod a+x {}`, or put the hook elsewhere", at.display()),
                    ),
                    None => Finding::ok(format!("the hook `{shown}` can be started by `{}`", account.name)),
                },
                None => continue,
            }
        };
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    }
    findings
}
