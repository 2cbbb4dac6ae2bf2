//! The supervisor of one machine: `broker local-machine`, a process of its own.
//!
//! Owns the machine's processes: starts its sshd, and ends everything and deletes the directory when the broker is
//! gone (its end of our standard input closes, however it died), when told to by a signal, when sshd ends, or when the
//! machine is older than it may ever be. Being the one that orphans are given to, it finds every process that any
//! build has left behind. Killed itself, sshd's listener dies with it, and the broker, this one or the next, does the
//! rest.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::layout::{self, Layout};
use super::{processes, remove};

/// The hidden subcommand that ends up in [`main`].
pub const SUBCOMMAND: &str = "local-machine";

/// What the supervisor says on its standard output once sshd listens.
pub(super) const READY: &[u8] = b"ready\n";

/// How long sshd may take to listen.
const LISTEN_LIMIT: Duration = Duration::from_secs(20);
/// How long processes may take to die. Longer than the broker waits: it then sees what is left by itself.
const END_LIMIT: Duration = Duration::from_secs(60);

/// The arguments that make the `broker` program supervise this machine.
pub(super) fn arguments(layout: &Layout, lifetime: Duration) -> Vec<OsString> {
    vec![
        SUBCOMMAND.into(),
        "watch".into(),
        layout.directory.clone().into(),
        layout.sshd.clone().into(),
        lifetime.as_secs().to_string().into(),
    ]
}

/// Runs the subcommand with the arguments after its name.
pub fn main(arguments: &[OsString]) -> ExitCode {
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    let result = match words[..] {
        ["watch", directory, sshd, lifetime] => match lifetime.parse() {
            Ok(seconds) => watch(Path::new(directory), Path::new(sshd), Duration::from_secs(seconds)),
            Err(_) => Err(usage()),
        },
        ["sshd", parent, sshd, config] => become_sshd(parent, sshd, config),
        _ => Err(usage()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Goes to the machine's log, or to whoever typed this by hand. Nobody is left to tell if it fails.
            drop(writeln!(io::stderr(), "broker {SUBCOMMAND}: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn usage() -> io::Error {
    io::Error::other("started by the broker only, for a machine of its own")
}

/// From the start of sshd to a deleted directory.
fn watch(directory: &Path, sshd: &Path, lifetime: Duration) -> io::Result<()> {
    let id = directory.file_name().and_then(|name| name.to_str()).ok_or_else(usage)?.to_owned();
    let address = layout::address(directory).ok_or_else(usage)?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    // One thread, this one: when it dies, and only then, sshd is told.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let reason = runtime.block_on(run(directory, sshd, address, lifetime));
    runtime.shutdown_background();

    // The broker may be gone, and then there is nobody to tell.
    let told = match &reason {
        Ok(reason) => writeln!(io::stdout(), "{reason}"),
        Err(error) => writeln!(io::stdout(), "its supervisor failed: {error}"),
    };
    drop(told);
    let us = rustix::process::getpid();
    let left = processes::end_all(&id, Some(address), Some(us), Instant::now() + END_LIMIT);
    if !left.is_empty() {
        return Err(io::Error::other(format!("processes {left:?} do not die")));
    }
    remove::remove_tree(directory)?;
    reason.map(drop)
}

/// Until the machine has to end; the result is why.
async fn run(
    directory: &Path,
    sshd: &Path,
    address: SocketAddr,
    lifetime: Duration,
) -> io::Result<&'static str> {
    // Before anything is started, so that nothing is missed.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut child_ended = signal(SignalKind::child())?;
    let mut lifeline = lifeline();
    let child = start_sshd(directory, sshd)?;
    let sshd = Pid::from_child(&child);
    let age = tokio::time::sleep(lifetime);
    tokio::pin!(age);
    let mut listening = Some(Instant::now() + LISTEN_LIMIT);
    loop {
        tokio::select! {
            _ = &mut lifeline => return Ok("the broker is gone or wants it gone"),
            _ = terminate.recv() => return Ok("told to, by SIGTERM"),
            _ = interrupt.recv() => return Ok("told to, by SIGINT"),
            _ = hangup.recv() => return Ok("told to, by SIGHUP"),
            () = &mut age => return Ok("it is older than it may be"),
            _ = child_ended.recv() => {
                while let Some((pid, _)) = rustix::process::wait(WaitOptions::NOHANG).unwrap_or_default() {
                    if pid == sshd {
                        return Ok("its sshd ended");
                    }
                }
            }
            () = tokio::time::sleep(Duration::from_millis(5)), if listening.is_some() => {
                if processes::is_listening(address) {
                    listening = None;
                    io::stdout().write_all(READY)?;
                    io::stdout().flush()?;
                } else if listening.is_some_and(|until| Instant::now() > until) {
                    return Ok("its sshd does not listen");
                }
            }
        }
    }
}

/// Resolves at the end of our standard input.
fn lifeline() -> oneshot::Receiver<()> {
    let (ended, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        // Nothing is ever sent; an error is as good as an end.
        while let Ok(1..) = io::stdin().read(&mut [0; 64]) {}
        ended.send(())
    });
    receiver
}

/// Starts ourselves once more, to become sshd.
fn start_sshd(directory: &Path, sshd: &Path) -> io::Result<Child> {
    let log = fs::OpenOptions::new().create(true).append(true).open(directory.join("sshd.log"))?;
    Command::new("/proc/self/exe")
        .arg0("broker")
        .args([SUBCOMMAND, "sshd", &std::process::id().to_string()])
        .arg(sshd)
        .arg(directory.join("sshd_config"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
}

/// Asks to be killed when the supervisor dies, which outlasts the change of program, and becomes sshd.
fn become_sshd(parent: &str, sshd: &str, config: &str) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have died before we asked.
    let alive = rustix::process::getppid().map(Pid::as_raw_pid);
    if alive != parent.parse().ok() {
        return Err(io::Error::other("the supervisor is gone"));
    }
    // -D: do not detach. -e: log to standard error.
    Err(Command::new(PathBuf::from(sshd)).args(["-D", "-e", "-f", config]).exec())
}
