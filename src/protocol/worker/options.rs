//! What a client may set for a connection, with its wire form.
//!
//! Owns which settings have a place of their own in the protocol and which travel by name; what a daemon makes of them
//! is its own business.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::AsyncBufRead;

use crate::protocol::wire::{MAX_TEXT, MAX_WORD, WireError, WireReader, WireWriter};

const MAX_SETTINGS: u64 = 1 << 12;
/// These two have no place of their own.
const TIMEOUT: &str = "timeout";
const MAX_LOG_SIZE: &str = "max-build-log-size";

/// What a client sets for all that it asks for on a connection.
///
/// Build output arrives as [`LogEvent::Line`](super::LogEvent::Line) whatever is set here; `verbosity` only decides
/// about messages of the daemon itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// Keep the build directory of a failed build, over there.
    pub keep_failed: bool,
    /// Go on after a failure with what does not depend on it.
    pub keep_going: bool,
    /// Build what cannot be substituted.
    pub fallback: bool,
    /// The least important messages that are sent: 0 errors, 1 warnings, 3 information, 7 everything.
    pub verbosity: u64,
    /// How many builds the daemon runs at once for this client; with 0 it builds nothing itself.
    pub max_jobs: u64,
    /// The longest a build may print nothing.
    pub max_silent_time: Option<Duration>,
    /// What `--print-build-logs` would say; read by no daemon we know, and sent as the stock client does.
    pub print_build_logs: bool,
    /// Processors a build may use; 0 is all of them.
    pub cores: u64,
    /// Let the daemon fetch from its substituters.
    pub use_substitutes: bool,
    /// The longest a build may take.
    pub timeout: Option<Duration>,
    /// The most bytes a build may print.
    pub max_log_size: Option<u64>,
    /// Any other setting by name; a daemon ignores, with a warning, what it does not know or does not allow.
    pub extra: BTreeMap<String, String>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            keep_failed: false,
            keep_going: false,
            fallback: false,
            verbosity: 0,
            max_jobs: 1,
            max_silent_time: None,
            print_build_logs: true,
            cores: 0,
            use_substitutes: false,
            timeout: None,
            max_log_size: None,
            extra: BTreeMap::new(),
        }
    }
}

impl ClientOptions {
    pub(crate) fn write(&self, out: &mut WireWriter) {
        const OBSOLETE_USE_BUILD_HOOK: u64 = 1;
        const OBSOLETE_LOG_TYPE: u64 = 0;
        const OBSOLETE_PRINT_BUILD_TRACE: u64 = 0;
        out.bool(self.keep_failed);
        out.bool(self.keep_going);
        out.bool(self.fallback);
        out.u64(self.verbosity);
        out.u64(self.max_jobs);
        out.u64(whole_seconds(self.max_silent_time).unwrap_or(0));
        out.u64(OBSOLETE_USE_BUILD_HOOK);
        out.u64(if self.print_build_logs { 0 } else { 7 });
        out.u64(OBSOLETE_LOG_TYPE);
        out.u64(OBSOLETE_PRINT_BUILD_TRACE);
        out.u64(self.cores);
        out.bool(self.use_substitutes);
        let mut extra: BTreeMap<&str, String> =
            self.extra.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        if let Some(seconds) = whole_seconds(self.timeout) {
            extra.insert(TIMEOUT, seconds.to_string());
        }
        if let Some(size) = self.max_log_size {
            extra.insert(MAX_LOG_SIZE, size.to_string());
        }
        out.u64(extra.len() as u64);
        for (name, value) in extra {
            out.bytes(name);
            out.bytes(value);
        }
    }

    pub(crate) async fn read<R: AsyncBufRead + Unpin>(reader: &mut WireReader<R>) -> Result<Self, WireError> {
        let mut options = Self {
            keep_failed: reader.bool("keep-failed").await?,
            keep_going: reader.bool("keep-going").await?,
            fallback: reader.bool("fallback").await?,
            verbosity: reader.u64("verbosity").await?,
            max_jobs: reader.u64("max-jobs").await?,
            max_silent_time: non_zero_seconds(reader.u64("max-silent-time").await?),
            ..Self::default()
        };
        reader.u64("obsolete use-build-hook").await?;
        options.print_build_logs = reader.u64("verbosity of builds").await? == 0;
        reader.u64("obsolete log type").await?;
        reader.u64("obsolete print-build-trace").await?;
        options.cores = reader.u64("cores").await?;
        options.use_substitutes = reader.bool("use-substitutes").await?;
        for _ in 0..reader.count("number of settings", MAX_SETTINGS).await? {
            let name = reader.text("name of a setting", MAX_WORD).await?;
            let value = reader.text("value of a setting", MAX_TEXT).await?;
            options.extra.insert(name, value);
        }
        // What is not a number stays among the others: Nix itself decides what to make of it.
        if let Some(seconds) = take_number(&mut options.extra, TIMEOUT) {
            options.timeout = non_zero_seconds(seconds);
        }
        options.max_log_size = take_number(&mut options.extra, MAX_LOG_SIZE).filter(|size| *size > 0);
        Ok(options)
    }
}

/// Nix counts in seconds and takes 0 for "none", so less than one becomes one.
fn whole_seconds(duration: Option<Duration>) -> Option<u64> {
    duration.map(|duration| duration.as_secs().max(1))
}

fn non_zero_seconds(seconds: u64) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

fn take_number(settings: &mut BTreeMap<String, String>, name: &str) -> Option<u64> {
    let number = settings.get(name)?.parse().ok()?;
    settings.remove(name);
    Some(number)
}
