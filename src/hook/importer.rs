//! The importer: brings the outputs of a finished build into this machine's store.
//!
//! While a hook runs, Nix holds the locks of the output paths; the stock client is the one program that may write them
//! all the same, on every version. So it is started at the very end, with a single machine: the broker, through our own
//! store endpoint, which hands it the finished build. Another way of importing would replace [`import`] and nothing else.
//! Its own start takes most of the time, so for a build that ends soon it is started beside it, and waits.
//!
//! Many importers run at once. The stock client takes a lock file per slot of a machine, named after the machine's
//! address, and postpones when all are taken; so the address is made unique to this process by naming our program
//! `/proc/<process>/exe`. That also survives an upgrade of the program while the build waited, needs no quoting for the
//! shell of old versions, and leaves a bounded number of lock files behind where we are killed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::nix_executable::{self, NixNotFound};
use super::replies;
use super::stock_client::{StockClient, StockReply};
use crate::ipc::message::{BUILD_VARIABLE, SOCKET_VARIABLE};
use crate::protocol::hook::{Lists, SettingsBlock, Try};
use crate::protocol::log_line::{self, LogLine};

/// The endpoint is a program that the stock client starts on this machine.
const STORE: &str = "ssh-ng://localhost";
/// How every address of it begins in what people see, where it becomes the machine's name (2.26 leaves the host out).
const SHOWN_STORE: &str = "ssh-ng://";
/// What the stock client says of the inputs, all of which the endpoint claims to have.
const EMPTY_COPY: &str = "copying 0 paths";
/// Where the stock client keeps its lock files, below the state folder.
const LOCKS: &str = "current-load";
/// Nix's state folder when `NIX_STATE_DIR` says nothing else.
const DEFAULT_STATE: &str = "/nix/var/nix";
/// Pause before asking again after a postpone, and how often. It takes another process of our number to get one.
const POSTPONE_PAUSE: Duration = Duration::from_millis(100);
const MAX_POSTPONES: u32 = 100;
/// How often it may be killed by a signal, by whoever was short of memory, and be started again.
const MAX_DEATHS: u32 = 2;
/// How long one that was started beside its build waits for the end. It takes memory, and a build of hours needs none.
const KEPT_READY: Duration = Duration::from_secs(5);
/// Between two progress lines: the stock client writes thousands a second.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);
/// Words of the stock client that are kept for the reason of a failure.
const MAX_SAID: usize = 20;

/// What to import.
#[derive(Debug)]
pub(super) struct Import<'a> {
    /// What Nix told us, to be told again.
    pub(super) settings: &'a SettingsBlock,
    /// The request.
    pub(super) request: &'a Try,
    /// Inputs and wanted outputs.
    pub(super) lists: &'a Lists,
    /// Nix's verbosity.
    pub(super) verbosity: &'a str,
    /// Where the broker listens.
    pub(super) socket: &'a Path,
    /// What opens the endpoint.
    pub(super) token: &'a str,
    /// What people know the machine as.
    pub(super) machine: &'a str,
}

/// Why the outputs are not in the store.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImportError {
    /// There is no Nix.
    #[error(transparent)]
    NoNix(#[from] NixNotFound),
    /// The stock client does not start, or breaks off.
    #[error("run the stock client")]
    Io(#[from] io::Error),
    /// It did not take the build.
    #[error("the stock client declined: {0}")]
    Declined(String),
    /// It was killed, and what it was writing is not whole.
    #[error("{0}")]
    Killed(String),
    /// It failed.
    #[error("{0}")]
    Failed(String),
}

/// A stock client that was started while its build runs: it has read its settings, and waits for the request. Dropped, it
/// ends.
#[derive(Debug)]
pub(super) struct Ready {
    client: StockClient,
    token: String,
    until: Instant,
}

impl Ready {
    /// When it is not worth its memory any more.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// The client, if it is there for this import, and still there.
    fn client_for(mut self, token: &str) -> Option<StockClient> {
        (self.token == token && self.client.is_running()).then_some(self.client)
    }
}

/// Starts the stock client for an import that will come soon. `None` when it does not start: the import will say why.
pub(super) fn prepare(job: &Import<'_>) -> Option<Ready> {
    let client = start(job, &nix_executable::find().ok()?).ok()?;
    Some(Ready { client, token: job.token.to_owned(), until: Instant::now() + KEPT_READY })
}

/// Imports the outputs, with the client that is ready for them if one is. After `Ok` all of them are valid in this
/// machine's store.
pub(super) fn import(job: &Import<'_>, ready: Option<Ready>) -> Result<(), ImportError> {
    let nix = nix_executable::find()?;
    let mut ready = ready.and_then(|ready| ready.client_for(job.token));
    let mut deaths = 0;
    for _ in 0..MAX_POSTPONES {
        let client = match ready.take() {
            Some(client) => client,
            None => start(job, &nix)?,
        };
        match attempt(job, client) {
            Ok(true) => return Ok(()),
            Ok(false) => std::thread::sleep(POSTPONE_PAUSE),
            // The broker still has the outputs, and the next one begins with removing half a path.
            Err(ImportError::Killed(_)) if deaths < MAX_DEATHS => deaths += 1,
            Err(error) => return Err(error),
        }
    }
    Err(ImportError::Declined("its slots stay taken".to_owned()))
}

/// A stock client with its settings, to which the broker is the only machine.
fn start(job: &Import<'_>, nix: &Path) -> io::Result<StockClient> {
    let environment = [(BUILD_VARIABLE, OsStr::new(job.token)), (SOCKET_VARIABLE, job.socket.as_os_str())];
    let client = StockClient::start(nix, job.verbosity, &environment)?;
    client.feed(job.settings.with("builders", &machine_line(std::process::id(), job.request)));
    Ok(client)
}

/// One try; `false` when it was postponed.
fn attempt(job: &Import<'_>, mut client: StockClient) -> Result<bool, ImportError> {
    let mut relay = Relay::new(job.machine);
    // Unwilling, so that taken slots are a postpone and a decline means trouble.
    client.feed(Try { am_willing: false, ..job.request.clone() }.encode());
    client.feed(job.lists.as_bytes().to_vec());
    client.close_input();
    let machine = match client.reply(|line| relay.line(line))? {
        StockReply::Accept { machine } => machine,
        StockReply::Postpone => return Ok(false),
        StockReply::Decline | StockReply::DeclinePermanently => {
            return Err(ImportError::Declined(relay.reason("it gave no reason")));
        }
        StockReply::Died => {
            let status = client.finish(|line| relay.line(line))?;
            let reason = relay.reason(&format!("the stock client ended at once ({status})"));
            return Err(ended_badly(status, reason));
        }
    };
    let status = client.finish(|line| relay.line(line))?;
    remove_locks(&machine);
    if status.success() {
        relay.show_errors();
        return Ok(true);
    }
    let reason = relay.reason(&format!("the stock client failed ({status})"));
    Err(ended_badly(status, reason))
}

/// A client that was killed is worth another try, whenever that was.
fn ended_badly(status: ExitStatus, reason: String) -> ImportError {
    match status.signal() {
        Some(_) => ImportError::Killed(reason),
        None => ImportError::Failed(reason),
    }
}

/// `uri systems key maxjobs speed supported-features mandatory-features`. A feature in the last column would have to be
/// required by the derivation, so all stand in the one before.
fn machine_line(process: u32, request: &Try) -> String {
    let features = if request.features.is_empty() { "-".to_owned() } else { request.features.join(",") };
    format!("{STORE}?remote-program=/proc/{process}/exe {} - 1 1 {features} - -", request.system)
}

/// Whether a word of a request can stand in a machine line. One that cannot is no name of anything we build.
pub(super) fn fits_machine_line(word: &str) -> bool {
    word != "-"
        && !word.is_empty()
        && !word.contains(|c: char| c.is_whitespace() || c.is_control() || ",;#@".contains(c))
}

/// Removes the lock files that belong to this address alone, and those of our kind whose process was killed before it
/// could. The names are the stock client's.
fn remove_locks(machine: &str) {
    let state = std::env::var_os("NIX_STATE_DIR").map_or_else(|| DEFAULT_STATE.into(), PathBuf::from);
    let locks = state.join(LOCKS);
    let stem = machine.replace('/', "_");
    for name in [format!("{stem}-0"), format!("{stem}.upload-lock")] {
        // One that stays is removed by the next.
        let _absent = std::fs::remove_file(locks.join(name));
    }
    for entry in std::fs::read_dir(&locks).into_iter().flatten().flatten() {
        let process = entry.file_name().to_str().and_then(process_of_lock);
        if process.is_some_and(|process| !Path::new("/proc").join(process.to_string()).exists()) {
            let _absent = std::fs::remove_file(entry.path());
        }
    }
}

/// The process that a lock file of our kind is named after.
fn process_of_lock(name: &str) -> Option<u32> {
    let (_, rest) = name.split_once("localhost?remote-program=_proc_")?;
    rest.split_once("_exe")?.0.parse().ok()
}

/// Passes the stock client's log lines on to Nix: few numbers, our machine's name, and errors only when it is over.
struct Relay<'a> {
    machine: &'a str,
    errors: Vec<String>,
    said: Vec<String>,
    held: BTreeMap<(u64, u64), String>,
    next_progress: Instant,
}

impl<'a> Relay<'a> {
    fn new(machine: &'a str) -> Self {
        Self {
            machine,
            errors: Vec::new(),
            said: Vec::new(),
            held: BTreeMap::new(),
            next_progress: Instant::now(),
        }
    }

    fn line(&mut self, bytes: &[u8]) {
        match log_line::parse(bytes) {
            None => keep(&mut self.said, String::from_utf8_lossy(bytes).into_owned()),
            Some(LogLine::Error(text)) => keep(&mut self.errors, text),
            Some(LogLine::Progress { id, kind }) => {
                let Some(line) = log_line::rename(bytes, SHOWN_STORE, self.machine) else { return };
                let now = Instant::now();
                if now < self.next_progress {
                    self.held.insert((id, kind), line);
                } else {
                    self.held.remove(&(id, kind));
                    self.next_progress = now + PROGRESS_INTERVAL;
                    replies::write_if_free(&line);
                }
            }
            Some(LogLine::Stop { id }) => {
                // The last numbers of an activity are the ones that count.
                let kinds: Vec<_> = self.held.range((id, 0)..=(id, u64::MAX)).map(|(&key, _)| key).collect();
                for key in kinds {
                    if let Some(line) = self.held.remove(&key) {
                        replies::write_if_free(&line);
                    }
                }
                replies::write_if_free(&log_line::stop(id));
            }
            Some(LogLine::Start { text }) if text == EMPTY_COPY => {}
            Some(LogLine::Start { .. } | LogLine::Other) => {
                if let Some(line) = log_line::rename(bytes, SHOWN_STORE, self.machine) {
                    replies::write_if_free(&line);
                }
            }
        }
    }

    /// Its last words, or ours.
    fn reason(&self, otherwise: &str) -> String {
        let words = if self.errors.is_empty() { &self.said } else { &self.errors };
        if words.is_empty() { otherwise.to_owned() } else { words.join("\n") }
    }

    /// It complained, and succeeded.
    fn show_errors(&self) {
        for error in &self.errors {
            replies::say(log_line::Level::Warning, error);
        }
    }
}

fn keep(words: &mut Vec<String>, word: String) {
    if words.len() < MAX_SAID && !word.trim().is_empty() {
        words.push(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_features_are_supported_and_none_mandatory() {
        let mut request = Try {
            am_willing: true,
            system: "x86_64-linux".into(),
            drv: String::new(),
            features: vec!["kvm".into(), "gccarch-znver3".into()],
        };
        assert_eq!(
            machine_line(12, &request),
            "ssh-ng://localhost?remote-program=/proc/12/exe x86_64-linux - 1 1 kvm,gccarch-znver3 - -"
        );
        request.features.clear();
        assert!(machine_line(12, &request).ends_with(" 1 1 - - -"));
    }

    #[test]
    fn words_that_would_break_a_machine_line_are_known() {
        for good in ["x86_64-linux", "kvm", "gccarch-x86-64-v3", "a.b+c"] {
            assert!(fits_machine_line(good), "{good}");
        }
        for bad in ["", "-", "a b", "a,b", "a;b", "a#b", "a\nb", "@file", "a\u{0}"] {
            assert!(!fits_machine_line(bad), "{bad:?}");
        }
    }

    #[test]
    fn lock_files_of_our_kind_name_their_process() {
        let name = "ssh-ng:__localhost?remote-program=_proc_664_exe-0";
        assert_eq!(process_of_lock(name), Some(664));
        assert_eq!(process_of_lock("ssh-ng:__localhost?remote-program=_proc_664_exe.upload-lock"), Some(664));
        for other in ["main-lock", "ssh-ng:__tiger-0", "ssh-ng:__localhost?remote-program=_proc_self_exe-0"] {
            assert_eq!(process_of_lock(other), None, "{other}");
        }
    }

    #[test]
    fn what_it_said_first_is_the_reason() {
        let mut relay = Relay::new("tiger");
        assert_eq!(relay.reason("nothing"), "nothing");
        relay.line(b"terminate called");
        assert_eq!(relay.reason("nothing"), "terminate called");
        relay.line(b"@nix {\"action\":\"msg\",\"level\":0,\"msg\":\"error: no such path\"}");
        assert_eq!(relay.reason("nothing"), "error: no such path");
    }
}
