//! A Nix that does to a hook exactly what the real one does: settings and requests on fd 0, replies read byte by byte from
//! fd 2, the log from fd 4 at most 4096 bytes a round, and on the end of fd 2 a kill of the whole process group.
//!
//! Owns Nix's side of the pipes and nothing of the broker's.

#![allow(dead_code)]

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process_group};

/// No wait of a test is longer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// What Nix reads of a descriptor in one round.
const ROUND: usize = 4096;

/// Puts fd 4 and fd 5 in place and becomes the hook. Opening them by the parent's names needs no inheritance.
const LAUNCHER: &str = r#"exec 4>"$1" 5<"$2"; shift 2; exec "$@""#;

/// One hook process, and Nix's ends of its pipes.
pub(crate) struct FakeNix {
    child: Child,
    input: Option<ChildStdin>,
    output: File,
    log: File,
    log_write_end: OwnedFd,
    killed: bool,
}

/// A reply, and the lines that came before it.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) said: Vec<String>,
    pub(crate) reply: String,
}

/// How a build ended, as Nix sees it.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) log: Vec<u8>,
    pub(crate) said: String,
}

impl Ended {
    pub(crate) fn log_text(&self) -> String {
        String::from_utf8_lossy(&self.log).into_owned()
    }
}

impl FakeNix {
    /// Starts the hook with these words before the verbosity.
    pub(crate) fn start(hook: &Path, words: &[&str], environment: &[(&str, OsString)]) -> Self {
        let (output, output_write_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (log, log_write_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let name = |end: &OwnedFd| format!("/proc/{}/fd/{}", std::process::id(), end.as_raw_fd());
        let mut child = Command::new("bash")
            .args(["-c", LAUNCHER, "-", &name(&log_write_end), &name(&log)])
            .arg(hook)
            .args(words)
            .arg("3")
            .env_remove("NIX_REMOTE")
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(output_write_end.try_clone().unwrap())
            .stderr(output_write_end)
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        // Nix keeps its own copy of the log's write end: the end of the log is never seen.
        Self { child, input, output: output.into(), log: log.into(), log_write_end, killed: false }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes raw bytes to the hook. Nix is told when the hook is gone.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.input.as_mut().expect("the input is still open").write_all(bytes)
    }

    pub(crate) fn close_input(&mut self) {
        self.input = None;
    }

    /// Reads up to the reply, as Nix does: byte by byte, and to its end is a catastrophe.
    pub(crate) fn reply(&mut self) -> Reply {
        let mut said = Vec::new();
        loop {
            let line = self.line().expect("unexpected end while reading the hook's reply: aborts all of Nix");
            match line.strip_prefix("# ") {
                Some(reply) => return Reply { said, reply: reply.to_owned() },
                None => said.push(line),
            }
        }
    }

    /// One line of the hook; `None` at the end.
    pub(crate) fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            wait_for(&[PollFd::new(&self.output, PollFlags::IN)], DEADLINE).expect("a line of the hook");
            if self.output.read(&mut byte).unwrap() == 0 {
                assert!(line.is_empty(), "ended inside a line: {}", String::from_utf8_lossy(&line));
                return None;
            }
            if byte[0] == b'\n' {
                return Some(String::from_utf8(line).unwrap());
            }
            line.push(byte[0]);
        }
    }

    /// Sends the lists and closes the input, as Nix does after an accept.
    pub(crate) fn send_lists(&mut self, inputs: &[String], outputs: &[&str]) {
        self.send(&lists(inputs, outputs)).unwrap();
        self.close_input();
    }

    /// The loop of a running build, to its end.
    pub(crate) fn finish(self) -> Ended {
        self.finish_with(|_, _| {})
    }

    /// As [`Self::finish`]; `each_round` sees what has arrived so far.
    pub(crate) fn finish_with(mut self, mut each_round: impl FnMut(&[u8], &str)) -> Ended {
        let deadline = Instant::now() + DEADLINE;
        let (mut log, mut said) = (Vec::new(), Vec::new());
        let mut buffer = [0; ROUND];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let ready = {
                let fds = [PollFd::new(&self.output, PollFlags::IN), PollFd::new(&self.log, PollFlags::IN)];
                wait_for(&fds, left).unwrap_or_else(|| {
                    panic!("the hook does not end; it said {:?}", String::from_utf8_lossy(&said))
                })
            };
            if ready[1] {
                let n = self.log.read(&mut buffer).unwrap();
                log.extend_from_slice(&buffer[..n]);
            }
            if ready[0] {
                let n = self.output.read(&mut buffer).unwrap();
                if n == 0 {
                    break;
                }
                said.extend_from_slice(&buffer[..n]);
            }
            each_round(&log, &String::from_utf8_lossy(&said));
        }
        self.kill();
        let status = self.child.wait().unwrap();
        let said = String::from_utf8(said).unwrap();
        assert!(said.is_empty() || said.ends_with('\n'), "an unfinished line: {said}");
        for line in said.lines() {
            let json = line.strip_prefix("@nix ").unwrap_or_else(|| panic!("no log line: {line}"));
            serde_json::from_str::<serde_json::Value>(json).unwrap();
        }
        Ended { status, log, said }
    }

    /// Waits for the end of a hook that has no build.
    pub(crate) fn exit_status(mut self) -> ExitStatus {
        self.close_input();
        while self.line().is_some() {}
        self.child.wait().unwrap()
    }

    /// Signals the whole group, as Nix does.
    pub(crate) fn signal(&self, signal: Signal) {
        let group = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        let _gone = kill_process_group(group, signal);
    }

    fn kill(&mut self) {
        if !std::mem::replace(&mut self.killed, true) {
            self.signal(Signal::KILL);
        }
    }

    /// Waits for the process alone, without reading anything; whether it ended in time.
    pub(crate) fn wait_dead(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return Some(status),
                None if Instant::now() > deadline => return None,
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    /// The read end of the log.
    pub(crate) fn log_pipe(&self) -> File {
        self.log.try_clone().unwrap()
    }
}

impl Drop for FakeNix {
    fn drop(&mut self) {
        self.kill();
        let _gone = self.child.wait();
    }
}

/// Which are ready, or `None` after the limit.
fn wait_for(fds: &[PollFd<'_>], limit: Duration) -> Option<Vec<bool>> {
    let mut fds = fds.to_vec();
    let limit =
        Timespec { tv_sec: limit.as_secs().try_into().unwrap(), tv_nsec: limit.subsec_nanos().into() };
    let ready = poll(&mut fds, Some(&limit)).unwrap();
    (ready > 0).then(|| fds.iter().map(|fd| !fd.revents().is_empty()).collect())
}

pub(crate) fn number(n: u64) -> Vec<u8> {
    n.to_le_bytes().to_vec()
}

pub(crate) fn string(text: &str) -> Vec<u8> {
    let mut bytes = number(text.len() as u64);
    bytes.extend_from_slice(text.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

pub(crate) fn strings<S: AsRef<str>>(items: &[S]) -> Vec<u8> {
    let mut bytes = number(items.len() as u64);
    for item in items {
        bytes.extend(string(item.as_ref()));
    }
    bytes
}

pub(crate) fn lists(inputs: &[String], outputs: &[&str]) -> Vec<u8> {
    [strings(inputs), strings(outputs)].concat()
}

pub(crate) fn settings(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in pairs {
        bytes.extend([number(1), string(name), string(value)].concat());
    }
    bytes.extend(number(0));
    bytes
}

pub(crate) fn request(am_willing: bool, system: &str, drv: &str, features: &[&str]) -> Vec<u8> {
    [string("try"), number(am_willing.into()), string(system), string(drv), strings(features)].concat()
}

/// The binary under test.
pub(crate) fn hook_program() -> PathBuf {
    env!("CARGO_BIN_EXE_broker-hook").into()
}
