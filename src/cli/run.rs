//! `broker run -- COMMAND`: a broker for as long as one command lives, for machines where none is installed, such as CI.
//!
//! Owns the order: start, wait until it answers, run the command with a `NIX_CONFIG` that leads to the hook, drain, pass
//! the command's status on. The broker is `broker serve` in a process of its own; it ends when this process does, even by
//! SIGKILL, because it watches its standard input.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::client::Client;
use super::report::{self, Complaint};
use crate::config::{self, Defaults};
use crate::ipc::message::SOCKET_VARIABLE;

/// Until the broker answers: it first ends what an earlier one left.
const START_LIMIT: Duration = Duration::from_secs(300);
/// Between two looks whether it answers.
const START_PAUSE: Duration = Duration::from_millis(20);
/// Of the broker's log, when it failed.
const LOG_TAIL: usize = 4096;
/// Of what a command prints that is not for the terminal.
const MAX_STDOUT: u64 = 1 << 20;
/// What a shell says of a command that a signal ended: 128 and the signal's number.
const BY_SIGNAL: u8 = 128;

/// Run a command with a broker of its own
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  broker run -- nix build .#tests
  broker run --config ./ci.toml -- nixos-rebuild build --flake .#tiger
  broker run --pool zen3 -- nix build .#tests

The command's Nix must take the hook from you: run it as root, or as one of `trusted-users`.
Every builder ends with the command. Exit status: the command's; 1 when only the broker failed.")]
pub(super) struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = config::PATH_VARIABLE, hide_env_values = true, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// Only this pool of the configuration; can be said several times [default: all]
    #[arg(long = "pool", value_name = "POOL")]
    pools: Vec<String>,
    /// Where the broker keeps its key and its log [default: a directory that is gone with the command]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// A broker for as long as one command lives.
#[derive(Debug)]
pub(super) struct Order {
    /// The configuration file.
    pub(super) config: PathBuf,
    /// The only pools of it that are wanted; none means all.
    pub(super) pools: Vec<String>,
    /// Where it keeps its key and its log, unless in a directory that is gone with the command.
    pub(super) state_dir: Option<PathBuf>,
}

/// How the command ended, after its broker and every builder.
#[derive(Debug)]
pub(super) struct Ended {
    /// The command's status as a shell says it; 1 when only the broker failed.
    pub(super) code: u8,
    /// What the command printed, if that was wanted.
    pub(super) stdout: Vec<u8>,
}

pub(super) fn run(args: Args) -> Result<ExitCode, Complaint> {
    let Args { config, pools, state_dir, command } = args;
    let order = Order { config, pools, state_dir };
    // Before anything is started, and with every problem of the file.
    config::load(&order.config, &Defaults::here())?.only(&order.pools)?;
    let mut nix = Command::new(&command[0]);
    nix.args(&command[1..]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("start the runtime")?;
    Ok(ExitCode::from(runtime.block_on(with_broker(&order, nix))?.code))
}

/// Starts a broker, runs the command with a Nix that asks it, and ends the broker with all of its builders.
pub(super) async fn with_broker(order: &Order, mut command: Command) -> anyhow::Result<Ended> {
    let work = tempfile::Builder::new().prefix("nix-broker-").tempdir().context("make a directory")?;
    // The hook runs as root, or as whoever the nix-daemon is: it must get to the socket.
    std::fs::set_permissions(work.path(), PermissionsExt::from_mode(0o755)).context("open the directory")?;
    let socket = work.path().join("broker.sock");
    let state_dir = order.state_dir.clone().unwrap_or_else(|| work.path().join("state"));
    let log = work.path().join("broker.log");
    let mut signals = Signals::install()?;

    let mut broker = start_broker(order, &socket, &state_dir, &log)?;
    // Held until the end: waiting for a child closes what is still its own.
    let lifeline = broker.stdin.take();
    wait_until_it_answers(&mut broker, &socket, &log).await?;
    let hook = write_hook(work.path(), &socket)?;
    let spawned = command
        .env("NIX_CONFIG", nix_config(std::env::var_os("NIX_CONFIG"), &hook))
        .env(SOCKET_VARIABLE, &socket)
        .spawn();
    let ran = match spawned {
        Ok(mut child) => {
            let stdout = child.stdout.take();
            let read = async {
                let mut said = Vec::new();
                if let Some(stdout) = stdout {
                    stdout.take(MAX_STDOUT).read_to_end(&mut said).await?;
                }
                Ok::<_, std::io::Error>(said)
            };
            let (status, said) = tokio::join!(signals.pass_on_until(&mut child), read);
            Ok((status?, said.context("read what the command prints")?))
        }
        Err(error) => Err(error),
    };

    terminate(&broker);
    let ended = signals.pass_on_until(&mut broker).await?;
    drop(lifeline);
    if !ended.success() {
        report::warn(&format!("the broker did not end well ({ended}):\n{}", tail(&log)));
    }
    let program = command.as_std().get_program();
    let (status, stdout) = ran.with_context(|| format!("start `{}`", program.display()))?;
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(1),
        (None, Some(signal)) => BY_SIGNAL.saturating_add(u8::try_from(signal).unwrap_or(0)),
        (None, None) => 1,
    };
    Ok(Ended { code: if code == 0 && !ended.success() { 1 } else { code }, stdout })
}

/// In a process group of its own: Ctrl-C is for the command, and the broker ends after it.
fn start_broker(order: &Order, socket: &Path, state_dir: &Path, log: &Path) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("find the broker's own program")?;
    let log = File::create(log).context("make the broker's log")?;
    Command::new(program)
        .arg("serve")
        .arg("--config")
        .arg(&order.config)
        .args(order.pools.iter().flat_map(|pool| ["--pool", pool]))
        .arg("--socket")
        .arg(socket)
        .arg("--state-dir")
        .arg(state_dir)
        .arg("--until-eof")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("start the broker")
}

async fn wait_until_it_answers(broker: &mut Child, socket: &Path, log: &Path) -> anyhow::Result<()> {
    let answers = async {
        while Client::connect(socket).is_err() {
            tokio::time::sleep(START_PAUSE).await;
        }
    };
    tokio::select! {
        ended = broker.wait() => bail!("the broker ended at once ({}):\n{}", ended?, tail(log)),
        () = tokio::time::sleep(START_LIMIT) => bail!("the broker does not answer:\n{}", tail(log)),
        () = answers => Ok(()),
    }
}

/// One program without arguments, because Nix before 2.10 takes no more; with the socket in it, because the nix-daemon
/// starts the hook in its own environment.
fn write_hook(work: &Path, socket: &Path) -> anyhow::Result<PathBuf> {
    let program =
        std::env::current_exe().context("find the broker's own program")?.with_file_name("broker-hook");
    if !program.exists() {
        bail!("there is no `{}`: both programs belong into one directory", program.display());
    }
    let hook = work.join("hook");
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
    let script = format!("#!/bin/sh\nexec {} --socket {} \"$@\"\n", quoted(&program), quoted(socket));
    std::fs::write(&hook, script).context("write the hook")?;
    std::fs::set_permissions(&hook, PermissionsExt::from_mode(0o755)).context("make the hook a program")?;
    Ok(hook)
}

/// What the command's Nix is told, after whatever it is told already. `builders` too, because an empty one, which is
/// what a default NixOS has, means that nothing is to be built elsewhere.
fn nix_config(already: Option<OsString>, hook: &Path) -> OsString {
    let mut lines = already.unwrap_or_default();
    lines.push("\nbuild-hook = ");
    lines.push(hook);
    lines.push("\nbuilders = @/etc/nix/machines\n");
    lines
}

fn terminate(child: &Child) {
    signal_child(child, Signal::TERM);
}

fn signal_child(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // Gone already is what was wanted.
        let _gone = kill_process(pid, signal);
    }
}

fn tail(log: &Path) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = File::open(log) {
        let _unreadable = file.read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_TAIL)..]).into_owned();
    if text.is_empty() { "it said nothing".to_owned() } else { text }
}

/// The signals that must not end this process before its children.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn install() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("handle SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("handle SIGTERM")?,
            hangup: signal(SignalKind::hangup()).context("handle SIGHUP")?,
        })
    }

    /// Waits for the end of a child. It gets the signals that we get; a terminal sends SIGINT to both, and Nix takes a
    /// second one for the same.
    async fn pass_on_until(&mut self, child: &mut Child) -> anyhow::Result<ExitStatus> {
        loop {
            tokio::select! {
                ended = child.wait() => return ended.context("wait for a child"),
                _signal = self.interrupt.recv() => signal_child(child, Signal::INT),
                _signal = self.terminate.recv() => signal_child(child, Signal::TERM),
                _signal = self.hangup.recv() => signal_child(child, Signal::HUP),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn what_nix_is_told_already_stays() {
        let told = nix_config(Some("cores = 2".into()), Path::new("/t/hook"));
        assert_eq!(told, OsStr::new("cores = 2\nbuild-hook = /t/hook\nbuilders = @/etc/nix/machines\n"));
    }
}
