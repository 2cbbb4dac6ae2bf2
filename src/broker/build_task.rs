//! One attempt of one build on one builder: inputs up, build, outputs down. Its end is always reported, whatever
//! happens inside, because a slot depends on it.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::build::{Build, Source};
use super::driver::DriverHandle;
use super::remote::{Daemon, Remote};
use super::{Shared, chain};
use crate::model::{Delivery, Failure, FailureKind, LeaseId, OutputName, StorePath};
use crate::protocol::derivation::BasicDerivation;
use crate::protocol::worker::operation::{BuildDerivation, SetOptions};
use crate::protocol::worker::{
    BuildMode, BuildResult, ClientOptions, LogEvent, LogSink, ProtocolError, ResultStatus, Substitute,
};
use crate::scheduler::{AttemptEnd, Event, RunPhase};
use crate::transfer::{LocalStoreError, Products, download};

/// How much later than the builder we end a build that is over its time: the builder's own report says more.
const WATCHDOG_MARGIN: Duration = Duration::from_secs(30);

/// Outputs larger than this are imported while they arrive; smaller ones are here before an importer could start.
const IMPORTED_MEANWHILE: u64 = 4 << 20;

/// Starts the attempt.
pub(crate) fn spawn(
    shared: &Arc<Shared>,
    driver: &DriverHandle,
    build: Arc<Build>,
    remote: Arc<Remote>,
    lease: LeaseId,
    cancelled: CancellationToken,
) {
    let driver = driver.clone();
    let task_shared = Arc::clone(shared);
    shared.tasks.spawn(async move {
        let id = build.id;
        let attempt = Attempt { build: &build, remote: &remote, shared: &task_shared, driver: &driver, lease };
        // A panic in here is a defect; it must cost this build and nothing else.
        let end = tokio::select! {
            end = AssertUnwindSafe(attempt.run()).catch_unwind() => match end {
                Ok(Ok(products)) => {
                    build.set_products(products);
                    AttemptEnd::Succeeded
                }
                Ok(Err(failure)) => {
                    tracing::info!(build = %id, builder = %remote.builder(), reason = failure.reason, "attempt failed");
                    AttemptEnd::Failed(failure)
                }
                Err(_panic) => AttemptEnd::Failed(Failure::new(
                    FailureKind::Broker,
                    "the broker made a mistake in this build (see its log); please report it",
                )),
            },
            () = cancelled.cancelled() => AttemptEnd::Aborted,
        };
        driver.event(Event::AttemptEnded { build: id, lease, end });
    });
}

struct Attempt<'a> {
    build: &'a Build,
    remote: &'a Arc<Remote>,
    shared: &'a Shared,
    driver: &'a DriverHandle,
    lease: LeaseId,
}

impl Attempt<'_> {
    async fn run(&self) -> Result<Arc<Products>, Failure> {
        self.progress(RunPhase::Uploading);
        if self.build.log.len() > 0 {
            // For whoever reads the stored log: what follows is not a part of what stands before.
            let line = format!("nix-broker: the build begins again, on builder {}\n", self.remote.builder());
            let appended = self.build.log.append(line.as_bytes());
            appended.map_err(|error| lost_log(&error))?;
        }
        let inputs = self.build.inputs();
        let derivation = self.derivation(&inputs.paths).await?;
        match self.once(&inputs.paths, &derivation).await {
            Err(failure)
                if may_be_for_lack_of_inputs(&failure) && self.inputs_are_gone(&inputs.paths).await =>
            {
                self.progress(RunPhase::Uploading);
                self.once(&inputs.paths, &derivation).await
            }
            end => end,
        }
    }

    /// Inputs up, build, outputs down. For inputs that are known to be there and outputs whose paths are known beforehand, it
    /// all goes in one flight: a round trip, and what the build itself takes.
    async fn once(
        &self,
        inputs: &BTreeSet<StorePath>,
        derivation: &BasicDerivation,
    ) -> Result<Arc<Products>, Failure> {
        let substitute =
            if self.build.request.settings.use_substitutes { Substitute::Yes } else { Substitute::No };
        let known = known_outputs(derivation);
        let (present, ahead) =
            tokio::join!(self.remote.ensure_present(inputs, substitute), self.wanted(&known));
        let delivery = present.map_err(|error| lost("send the inputs", &error))?;
        self.delivered(delivery);
        let mut daemon = self.remote.daemon().await.map_err(|error| lost("start the build", &error))?;
        let expected = self.remote.expect(&known);
        self.progress(RunPhase::Building);
        let result = self.build_on(&mut daemon, derivation, &ahead).await?;
        self.progress(RunPhase::Downloading);
        let cannot_fetch = |error| lost("fetch the outputs", &error);
        let asked = if known.is_empty() {
            let wanted = self.wanted(&output_paths(derivation, &result)?).await;
            let asked = download::request(&mut daemon.connection, &wanted);
            asked.map_err(|error| cannot_fetch(error.into()))?;
            wanted
        } else {
            ahead
        };
        let announced = download::announced(&mut daemon.connection, &asked, &self.shared.spool_dir).await;
        let arriving = announced.map_err(|error| cannot_fetch(daemon.explain(error.into())))?;
        let outputs = arriving.iter().map(|arriving| (arriving.info.path.clone(), arriving.output()));
        let products = Arc::new(Products { result, outputs: outputs.collect() });
        if products.outputs.values().any(|output| output.info.nar_size > IMPORTED_MEANWHILE) {
            self.build.announce(&products);
        }
        let kept = self.remote.receive(daemon, arriving).await.map_err(cannot_fetch)?;
        let sizes = products.outputs.values().map(|output| output.info.nar_size);
        self.shared.metrics.traffic.add_down(sizes.fold(0, u64::saturating_add));
        kept.into_iter().for_each(|daemon| self.remote.give_back(daemon));
        self.shared.origins.note(self.remote.builder(), products.outputs.keys());
        let down = products.outputs.values().map(|output| output.info.nar_size).sum();
        self.fetched(down);
        if products.outputs.len() == known.len() {
            expected.are_valid();
        }
        Ok(products)
    }

    /// Whether a build failed because what it needs was deleted on the builder under our hands.
    async fn inputs_are_gone(&self, inputs: &BTreeSet<StorePath>) -> bool {
        let are_gone = matches!(self.remote.still_has(inputs).await, Ok(false));
        if are_gone {
            tracing::warn!(build = %self.build.id, builder = %self.remote.builder(), "inputs were deleted on the builder");
        }
        are_gone
    }

    fn progress(&self, phase: RunPhase) {
        self.driver.event(Event::Progressed { build: self.build.id, lease: self.lease, phase });
    }

    fn delivered(&self, delivery: Delivery) {
        if delivery != Delivery::default() {
            let delivery = Box::new(delivery);
            self.driver.event(Event::Delivered { build: self.build.id, lease: self.lease, delivery });
        }
    }

    fn fetched(&self, bytes: u64) {
        if bytes > 0 {
            self.driver.event(Event::Fetched { build: self.build.id, lease: self.lease, bytes });
        }
    }

    async fn derivation(&self, inputs: &BTreeSet<StorePath>) -> Result<BasicDerivation, Failure> {
        match &self.build.source {
            Source::Given(derivation) => Ok((**derivation).clone()),
            Source::LocalStore => {
                let derivation = self.shared.local_store.derivation(&self.build.request.drv).await;
                let derivation =
                    derivation.map_err(|error| lost("read the derivation", &anyhow::Error::new(error)))?;
                Ok(derivation.to_basic(inputs))
            }
        }
    }

    async fn build_on(
        &self,
        daemon: &mut Daemon,
        derivation: &BasicDerivation,
        outputs: &BTreeSet<StorePath>,
    ) -> Result<BuildResult, Failure> {
        let settings = &self.build.request.settings;
        let options = ClientOptions {
            keep_failed: settings.keep_failed,
            max_silent_time: settings.max_silent_time,
            timeout: settings.timeout,
            cores: settings.cores,
            use_substitutes: settings.use_substitutes,
            max_log_size: settings.max_log_size,
            ..ClientOptions::default()
        };
        let (last_sign, signs) = watch::channel(Instant::now());
        let mut log = LogRelay { build: self.build, last_sign, tells_full_disk: false, failed: None };
        let built = async {
            // All in one flight, with the outputs that are known.
            let (set_options, build) = (
                SetOptions(&options),
                BuildDerivation { drv: &self.build.request.drv, derivation, mode: BuildMode::Normal },
            );
            daemon.connection.send(&set_options)?;
            daemon.connection.send(&build)?;
            download::request(&mut daemon.connection, outputs)?;
            daemon.connection.receive(&set_options, &mut ()).await?;
            daemon.connection.receive(&build, &mut log).await
        };
        let result = tokio::select! {
            result = built => result,
            failure = self.watchdog(signs) => return Err(failure),
        };
        if let Some(error) = log.failed {
            return Err(lost_log(&error));
        }
        match result {
            Ok(result) if result.status.is_success() => Ok(result),
            Ok(result) => Err(build_failure(&result, log.tells_full_disk)),
            // The daemon is alive and refused: its Nix cannot do this build.
            Err(ProtocolError::Remote(error)) => {
                let kind = if error.message.contains("is required to build") {
                    FailureKind::Request
                } else if tells_full_disk(error.message.as_bytes()) {
                    FailureKind::NoSpace
                } else {
                    FailureKind::Transient
                };
                Err(Failure::new(
                    kind,
                    format!("builder {}: {}", self.remote.builder(), plain(&error.message)),
                ))
            }
            Err(error) => Err(lost("build", &daemon.explain(anyhow::Error::new(error)))),
        }
    }

    /// Ends when a build has overstepped its limits and its builder has not noticed.
    async fn watchdog(&self, last_sign: watch::Receiver<Instant>) -> Failure {
        let settings = &self.build.request.settings;
        let started = Instant::now();
        loop {
            let total = settings.timeout.map(|limit| started + limit + WATCHDOG_MARGIN);
            let silent = settings.max_silent_time.map(|limit| *last_sign.borrow() + limit + WATCHDOG_MARGIN);
            let Some(deadline) = total.into_iter().chain(silent).min() else {
                return std::future::pending().await;
            };
            if deadline <= Instant::now() {
                let limit = if Some(deadline) == total { "timeout" } else { "max-silent-time" };
                return Failure::new(FailureKind::TimedOut, format!("the build overstepped `{limit}`"));
            }
            tokio::time::sleep_until(deadline).await;
        }
    }

    /// Those of these outputs that are not in our store yet.
    async fn wanted(&self, paths: &BTreeSet<StorePath>) -> BTreeSet<StorePath> {
        if paths.is_empty() {
            return BTreeSet::new();
        }
        // When the local daemon cannot say, everything is fetched: that is only slower.
        let valid = self.shared.local_store.valid_paths(paths).await.unwrap_or_default();
        paths.difference(&valid).cloned().collect()
    }
}

/// The outputs, if the paths of all of them are known before the build.
fn known_outputs(derivation: &BasicDerivation) -> BTreeSet<StorePath> {
    let paths: Option<_> = derivation.outputs.values().map(|output| output.path().cloned()).collect();
    paths.unwrap_or_default()
}

/// A build without one of its inputs fails in many words, depending on when it is missed.
fn may_be_for_lack_of_inputs(failure: &Failure) -> bool {
    match failure.kind {
        FailureKind::Derivation | FailureKind::Transient | FailureKind::Request => true,
        FailureKind::TimedOut
        | FailureKind::LogLimitExceeded
        | FailureKind::NoSpace
        | FailureKind::BuilderLost
        | FailureKind::Transfer
        | FailureKind::Provider
        | FailureKind::Broker => false,
    }
}

/// Where the outputs are: known beforehand, or from the result for content-addressed ones.
fn output_paths(derivation: &BasicDerivation, result: &BuildResult) -> Result<BTreeSet<StorePath>, Failure> {
    let mut realised: Option<BTreeMap<OutputName, StorePath>> = None;
    let mut paths = BTreeSet::new();
    for (name, output) in &derivation.outputs {
        if let Some(path) = output.path() {
            paths.insert(path.clone());
            continue;
        }
        let realised = match &realised {
            Some(realised) => realised,
            None => realised.insert(result.output_paths().map_err(|error| {
                Failure::new(FailureKind::Transient, format!("the builder's result is not readable: {error}"))
            })?),
        };
        match realised.get(name) {
            Some(path) => paths.insert(path.clone()),
            None => {
                let reason = format!("the builder does not say where output `{name}` is");
                return Err(Failure::new(FailureKind::Transient, reason));
            }
        };
    }
    Ok(paths)
}

/// Log events on their way to the spool.
struct LogRelay<'a> {
    build: &'a Build,
    last_sign: watch::Sender<Instant>,
    /// Whether something in it was a complaint about a full disk.
    tells_full_disk: bool,
    failed: Option<std::io::Error>,
}

impl LogSink for LogRelay<'_> {
    async fn event(&mut self, event: LogEvent) {
        let bytes = match event {
            LogEvent::Line { mut text, .. } => {
                self.tells_full_disk |= tells_full_disk(&text);
                text.push(b'\n');
                text
            }
            // As the build itself said it: Nix reads the phase from such a line.
            LogEvent::Phase { phase, .. } => {
                let quoted: String =
                    phase.chars().filter(|c| !c.is_control() && !"\"\\".contains(*c)).collect();
                format!("@nix {{\"action\":\"setPhase\",\"phase\":\"{quoted}\"}}\n").into_bytes()
            }
            LogEvent::Message { text, .. } => {
                self.tells_full_disk |= tells_full_disk(&text);
                return;
            }
            LogEvent::Start { .. } | LogEvent::Stop { .. } | LogEvent::Result { .. } => return,
        };
        self.last_sign.send_replace(Instant::now());
        if let Err(error) = self.build.log.append(&bytes)
            && self.failed.is_none()
        {
            self.failed = Some(error);
        }
    }
}

/// Whether this is what a kernel or a Nix says that has no space left.
fn tells_full_disk(text: &[u8]) -> bool {
    ["No space left on device", "lack of free disk space"]
        .iter()
        .any(|complaint| text.windows(complaint.len()).any(|part| part == complaint.as_bytes()))
}

/// A Nix that finds its own disk full calls the failure transient; a derivation that only says so has failed.
fn build_failure(result: &BuildResult, tells_full_disk: bool) -> Failure {
    let kind = match result.status {
        ResultStatus::TransientFailure | ResultStatus::MiscFailure if tells_full_disk => FailureKind::NoSpace,
        ResultStatus::TimedOut => FailureKind::TimedOut,
        ResultStatus::LogLimitExceeded => FailureKind::LogLimitExceeded,
        ResultStatus::TransientFailure | ResultStatus::MiscFailure | ResultStatus::NoSubstituters => {
            FailureKind::Transient
        }
        ResultStatus::InputRejected => FailureKind::Request,
        ResultStatus::Built
        | ResultStatus::Substituted
        | ResultStatus::AlreadyValid
        | ResultStatus::ResolvesToAlreadyValid
        | ResultStatus::PermanentFailure
        | ResultStatus::OutputRejected
        | ResultStatus::CachedFailure
        | ResultStatus::DependencyFailed
        | ResultStatus::NotDeterministic
        | ResultStatus::Other(_) => FailureKind::Derivation,
    };
    Failure::new(kind, summary(&result.error))
}

/// What a daemon said of a failed build, without the log's tail that it repeats: the log is at hand in full.
fn summary(error: &str) -> String {
    let is_tail = |line: &str| {
        let line = line.to_ascii_lowercase();
        line.starts_with("last ") || line.starts_with("for full logs")
    };
    let plain = plain(error);
    let lines: Vec<_> = plain.lines().map(str::trim).take_while(|line| !is_tail(line)).collect();
    lines.join(" ").trim_end_matches(';').to_owned()
}

/// Text without terminal colours.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("\u{1b}[") {
        plain.push_str(&rest[..start]);
        let after = &rest[start + 2..];
        rest = after.find(|c: char| c.is_ascii_alphabetic()).map_or("", |end| &after[end + 1..]);
    }
    plain.push_str(rest);
    plain.trim().trim_start_matches("error: ").to_owned()
}

fn lost_log(error: &std::io::Error) -> Failure {
    Failure::new(FailureKind::Broker, format!("cannot keep the build's log: {error}"))
}

/// A failure on the way to or from the builder; another one may do better.
fn lost(doing: &str, error: &anyhow::Error) -> Failure {
    Failure::new(kind_of_loss(error), format!("cannot {doing}: {}", chain(error)))
}

/// Whom a failed transfer tells something about: a builder that answers is not lost, and is not to blame for what cannot be
/// read or written here.
fn kind_of_loss(error: &anyhow::Error) -> FailureKind {
    for cause in error.chain() {
        if let Some(local) = cause.downcast_ref::<LocalStoreError>() {
            return if local.is_final() { FailureKind::Request } else { FailureKind::Transfer };
        }
        if let Some(ProtocolError::Remote(error)) = cause.downcast_ref()
            && tells_full_disk(error.message.as_bytes())
        {
            return FailureKind::NoSpace;
        }
        if let Some(
            ProtocolError::Remote(_) | ProtocolError::Source(_) | ProtocolError::ShortArchive { .. },
        ) = cause.downcast_ref()
        {
            return FailureKind::Transfer;
        }
    }
    FailureKind::BuilderLost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_build_is_summed_up_without_colours_and_without_the_tail_of_its_log() {
        let old = "builder for '\u{1b}[35;1m/nix/store/x.drv\u{1b}[0m' failed with exit code 3;\n       last 2 log lines:\n       > a\n       > b\n       For full logs, run 'nix log x'.";
        assert_eq!(summary(old), "builder for '/nix/store/x.drv' failed with exit code 3");
        let new = "Cannot build '/nix/store/x.drv'.\n       Reason: builder failed with exit code 3.\n       Output paths:\n         /nix/store/x\n       Last 2 log lines:\n       > a";
        assert_eq!(
            summary(new),
            "Cannot build '/nix/store/x.drv'. Reason: builder failed with exit code 3. Output paths: /nix/store/x"
        );
    }

    #[test]
    fn a_full_disk_is_the_builders_only_where_its_nix_agrees() {
        let full = b"cp: error writing 'x': No space left on device";
        assert!(tells_full_disk(full) && !tells_full_disk(b"No space"));
        let kind = |status, told| build_failure(&BuildResult::new(status, "failed"), told).kind;
        assert_eq!(kind(ResultStatus::TransientFailure, true), FailureKind::NoSpace);
        assert_eq!(kind(ResultStatus::TransientFailure, false), FailureKind::Transient);
        assert_eq!(kind(ResultStatus::PermanentFailure, true), FailureKind::Derivation);
    }

    #[test]
    fn only_a_builder_that_does_not_answer_is_lost() {
        use crate::protocol::worker::RemoteError;
        fn kind(error: impl std::error::Error + Send + Sync + 'static) -> FailureKind {
            kind_of_loss(&anyhow::Error::new(error).context("upload to builder b-1"))
        }
        let path = StorePath::from_base_name("0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-a").unwrap();
        let unwritable = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert_eq!(kind(ProtocolError::Write(unwritable)), FailureKind::BuilderLost);
        assert_eq!(kind(ProtocolError::Remote(RemoteError::new("disk full"))), FailureKind::Transfer);
        let full = "writing to file: No space left on device";
        assert_eq!(kind(ProtocolError::Remote(RemoteError::new(full))), FailureKind::NoSpace);
        let unreadable = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        assert_eq!(kind(ProtocolError::Source(unreadable)), FailureKind::Transfer);
        assert_eq!(kind(LocalStoreError::Silent), FailureKind::Transfer);
        // Three of these in a row would drain a builder that has nothing to do with it.
        assert_eq!(kind(LocalStoreError::NotValid(path)), FailureKind::Request);
    }
}
