//! Stock `nix __build-remote` as our child: starts it, feeds it, reads what it says. Two of us use it: the importer at the
//! end of every build, and the hand-over when there is no broker.
//!
//! It inherits fd 4, where it writes the log, and fd 5, which it reads when a connection fails and then closes. Its
//! standard error comes to us, because only we may talk to Nix.

use std::ffi::OsStr;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};

/// One line of it at most.
const MAX_LINE: u64 = 1 << 20;
/// What the thread that feeds it needs.
const FEEDER_STACK: usize = 64 << 10;
/// Up to 2.19 it starts a `remote-program` through `bash`, which a service's `PATH` may not lead to.
const USUAL_PATH: &str = "/run/current-system/sw/bin:/usr/bin:/bin";

/// What it replies to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StockReply {
    /// It builds it, on this machine.
    Accept {
        /// As it calls it.
        machine: String,
    },
    /// Not for any of its machines.
    Decline,
    /// It has no machines.
    DeclinePermanently,
    /// All that fit are busy.
    Postpone,
    /// It ended, or said something else.
    Died,
}

/// A running stock client. Killed when dropped.
#[derive(Debug)]
pub(super) struct StockClient {
    child: Child,
    input: Option<Sender<Vec<u8>>>,
    output: BufReader<ChildStderr>,
}

impl StockClient {
    /// Starts it. The name it is called by is its command in every version: before 2.9 there is no `__build-remote`.
    pub(super) fn start(nix: &Path, verbosity: &str, environment: &[(&str, &OsStr)]) -> io::Result<Self> {
        let mut path = std::env::var_os("PATH").unwrap_or_default();
        path.push(":");
        path.push(USUAL_PATH);
        let mut child = Command::new(nix)
            .arg0("build-remote")
            .arg(verbosity)
            .env("PATH", path)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let (Some(mut stdin), Some(stderr)) = (child.stdin.take(), child.stderr.take()) else {
            return Err(io::Error::other("the pipes to the child are missing"));
        };
        let (input, chunks) = channel::<Vec<u8>>();
        // A thread of its own: it may talk before it has read everything, and both pipes are short.
        std::thread::Builder::new().stack_size(FEEDER_STACK).spawn(move || {
            // An early death is seen on its standard error.
            chunks.into_iter().try_for_each(|chunk| stdin.write_all(&chunk))
        })?;
        Ok(Self { child, input: Some(input), output: BufReader::new(stderr) })
    }

    /// Whether it has not ended.
    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends it bytes. Does not wait.
    pub(super) fn feed(&self, bytes: Vec<u8>) {
        if let Some(input) = &self.input {
            // A feeder that is gone has met a client that is gone, which shows in its output.
            let _gone = input.send(bytes);
        }
    }

    /// Nothing more will come.
    pub(super) fn close_input(&mut self) {
        self.input = None;
    }

    /// Waits for its reply to a request; what it says before goes to `relay`, line by line.
    pub(super) fn reply(&mut self, mut relay: impl FnMut(&[u8])) -> io::Result<StockReply> {
        while let Some(line) = self.next_line()? {
            match &*line {
                b"# accept" => {
                    let Some(machine) = self.next_line()? else { break };
                    return Ok(StockReply::Accept {
                        machine: String::from_utf8_lossy(&machine).into_owned(),
                    });
                }
                b"# decline" => return Ok(StockReply::Decline),
                b"# decline-permanently" => return Ok(StockReply::DeclinePermanently),
                b"# postpone" => return Ok(StockReply::Postpone),
                _ => relay(&line),
            }
        }
        Ok(StockReply::Died)
    }

    /// Relays all it still says, and waits for its end.
    pub(super) fn finish(mut self, mut relay: impl FnMut(&[u8])) -> io::Result<ExitStatus> {
        self.close_input();
        while let Some(line) = self.next_line()? {
            relay(&line);
        }
        self.child.wait()
    }

    /// The next line without its end; `None` at the end. Bytes that are no text stay what they are.
    fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        if self.output.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        Ok(Some(line))
    }
}

impl Drop for StockClient {
    fn drop(&mut self) {
        // Already gone, in the usual case.
        let _gone = self.child.kill().and_then(|()| self.child.wait());
    }
}
