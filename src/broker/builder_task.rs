//! One builder, from launch to gone: the only task that touches its instance and its sessions.
//!
//! ```text
//! launch ─▶ dial and check, again and again ─▶ ready ─▶ watch ─┐
//!    └──────────────┴──── fault or told to ────────────────────┴─▶ terminate, until the provider agrees
//! ```
//!
//! It reports facts. Deadlines, and what a fault means for the pool, are the scheduler's; it says `Terminate`, and this
//! task never leaves an instance behind, whatever it was doing when it was told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::direct::Door;
use super::driver::DriverHandle;
use super::load;
use super::remote::Remote;
use super::{PoolRuntime, Shared, chain};
use crate::model::{
    BuilderFacts, BuilderId, Demand, Ending, HourlyRate, Instance, InstanceId, PoolName, Slots,
};
use crate::provider::{BuilderNotice, LaunchOrder, Launched, ProviderErrorKind, Readiness, probe};
use crate::scheduler::{BuilderFault, BuilderFaultKind, Event};
use crate::ssh::{RunOnceError, Sessions, Target};

/// How long a builder that no longer answers is dialled again before it counts as lost.
const REDIAL_DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks for daemons on the builder that nobody uses.
const SWEEP_INTERVAL: Duration = Duration::from_secs(15);
/// How long one attempt to reach a builder that boots, and to look at it, may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(20);

/// Between two questions whether a builder has set itself up.
const READINESS_INTERVAL: Duration = Duration::from_secs(1);

/// A builder that does not answer for this long is no news to the person who waits.
const UNREMARKABLE: Duration = Duration::from_secs(5);

/// Before the scheduler gives a launch up, what went wrong is found out: this long at most.
const POST_MORTEM: Duration = Duration::from_secs(20);
/// Lines of the console in the reason; all of it is in the log.
const CONSOLE_LINES: usize = 8;
/// How long a heartbeat may take; the next one may follow at once.
const BEAT_DEADLINE: Duration = Duration::from_secs(30);

/// How the driver holds a builder.
#[derive(Debug)]
pub(crate) struct BuilderHandle {
    end: Arc<WantedEnd>,
    remote: Arc<OnceLock<Arc<Remote>>>,
}

/// Whether a builder shall end, and how.
#[derive(Debug, Default)]
struct WantedEnd {
    asked: CancellationToken,
    is_final: AtomicBool,
}

impl BuilderHandle {
    /// Asks for its end; may be asked again.
    pub(crate) fn terminate(&self, ending: Ending) {
        if ending == Ending::Final {
            self.end.is_final.store(true, Ordering::Release);
        }
        self.end.asked.cancel();
    }

    /// What builds work with; nothing before it is ready.
    pub(crate) fn remote(&self) -> Option<Arc<Remote>> {
        self.remote.get().cloned()
    }
}

/// How the life of a builder begins.
enum Beginning {
    /// With a launch.
    Launch(Demand, Option<HourlyRate>),
    /// An earlier broker launched it.
    Adopted(Box<Launched>),
}

/// Starts the life of a builder with a launch.
pub(crate) fn spawn(
    shared: &Arc<Shared>,
    driver: &DriverHandle,
    builder: BuilderId,
    pool: &PoolName,
    demand: Demand,
    at_most: Option<HourlyRate>,
) -> BuilderHandle {
    begin(shared, driver, builder, pool, Beginning::Launch(demand, at_most))
}

/// Goes on with the life of an instance that an earlier broker launched.
pub(crate) fn adopt(
    shared: &Arc<Shared>,
    driver: &DriverHandle,
    builder: BuilderId,
    launched: Launched,
) -> BuilderHandle {
    let pool = launched.instance.pool.clone();
    begin(shared, driver, builder, &pool, Beginning::Adopted(Box::new(launched)))
}

fn begin(
    shared: &Arc<Shared>,
    driver: &DriverHandle,
    builder: BuilderId,
    pool: &PoolName,
    beginning: Beginning,
) -> BuilderHandle {
    let handle = BuilderHandle { end: Arc::default(), remote: Arc::default() };
    let Some(runtime) = shared.runtime(pool) else {
        // The scheduler knows pools from the same configuration, so this is a defect; it must still not hang.
        driver.event(Event::Lost {
            builder,
            fault: fault(BuilderFaultKind::LaunchFailed, format!("there is no pool `{pool}`")),
        });
        driver.event(Event::Gone(builder));
        return handle;
    };
    let task = Task {
        builder,
        runtime,
        shared: Arc::clone(shared),
        driver: driver.clone(),
        end: Arc::clone(&handle.end),
        remote: Arc::clone(&handle.remote),
        began: Instant::now(),
    };
    shared.tasks.spawn(task.run(beginning));
    handle
}

struct Task {
    builder: BuilderId,
    runtime: Arc<PoolRuntime>,
    shared: Arc<Shared>,
    driver: DriverHandle,
    end: Arc<WantedEnd>,
    remote: Arc<OnceLock<Arc<Remote>>>,
    began: Instant,
}

impl Task {
    async fn run(self, beginning: Beginning) {
        let launched = match beginning {
            Beginning::Launch(demand, at_most) => self.launch(demand, at_most).await,
            Beginning::Adopted(launched) => Some(*launched),
        };
        if let Some(launched) = launched {
            self.live(&launched).await;
            self.end(&launched.instance).await;
        }
        self.driver.event(Event::Gone(self.builder));
    }

    async fn launch(&self, demand: Demand, at_most: Option<HourlyRate>) -> Option<Launched> {
        // Not raced against the wish to end: an instance that was asked for and not waited for might come to life unseen.
        let progress = |text: &str| self.progress(text.to_owned());
        let order = LaunchOrder {
            builder: self.builder,
            pool: &self.runtime.spec,
            demand,
            at_most,
            progress: &progress,
        };
        match self.runtime.provider.launch(order).await {
            Ok(launched) => {
                let (builder, instance) = (self.builder, launched.instance.clone());
                tracing::info!(%builder, instance = %instance.id, pool = %instance.pool, "launched");
                self.driver.event(Event::Launched { builder, instance });
                Some(launched)
            }
            Err(error) => {
                let kind = match error.kind {
                    ProviderErrorKind::OverBudget => BuilderFaultKind::OverBudget,
                    ProviderErrorKind::Capacity
                    | ProviderErrorKind::Refused
                    | ProviderErrorKind::Config
                    | ProviderErrorKind::Unknown => BuilderFaultKind::LaunchFailed,
                };
                let reason = chain(&anyhow::Error::new(error));
                tracing::warn!(builder = %self.builder, pool = %self.runtime.spec.name, reason, "launch failed");
                self.driver.event(Event::Lost { builder: self.builder, fault: fault(kind, reason) });
                None
            }
        }
    }

    fn progress(&self, text: String) {
        tracing::debug!(builder = %self.builder, text, "progress");
        self.driver.event(Event::Progress { builder: self.builder, text });
    }

    /// From launched until it must end; reports every fault.
    async fn live(&self, launched: &Launched) {
        let builder = self.builder;
        let fault = tokio::select! {
            fault = self.boot_and_watch(launched) => fault,
            reason = self.runtime.provider.gone(&launched.instance.id) => fault(
                BuilderFaultKind::ConnectionLost,
                format!("instance `{}` ended by itself: {reason}", launched.instance.id),
            ),
            () = self.end.asked.cancelled() => return,
        };
        tracing::warn!(%builder, reason = fault.reason, "builder lost");
        self.runtime.provider.distrust(&launched.instance.id);
        // Whatever it is ended for, it is not put aside for another time.
        self.end.is_final.store(true, Ordering::Release);
        self.driver.event(Event::Lost { builder, fault });
        self.end.asked.cancelled().await;
    }

    async fn boot_and_watch(&self, launched: &Launched) -> BuilderFault {
        let (sessions, door) = match self.runtime.target(&launched.address) {
            Ok(target) => (Sessions::new(target.clone()), self.door(launched, target)),
            Err(error) => return fault(BuilderFaultKind::Unfit, chain(&error)),
        };
        let facts = match self.first_contact(&sessions, &launched.instance.id).await {
            Ok(facts) => facts,
            Err(fault) => return fault,
        };
        let (local, tasks) = (Arc::clone(&self.shared.local_store), self.shared.tasks.clone());
        let traffic = Arc::clone(&self.shared.metrics.traffic);
        let remote = Arc::new(Remote::new(self.builder, traffic, sessions, local, tasks, door));
        let remote = self.remote.get_or_init(|| remote);
        if let Err(error) = remote.open_first().await {
            return fault(BuilderFaultKind::BootFailed, chain(&error));
        }
        self.shared.neighbours.join(remote);
        tracing::info!(builder = %self.builder, processors = facts.processors, nix = ?facts.nix_version, "ready");
        // A builder comes up because builds wait for it: one daemon for each that it takes at once.
        remote.warm(match self.runtime.spec.slots {
            Slots::Fixed(slots) => slots as usize,
            Slots::Auto { .. } => facts.processors as usize,
        });
        self.driver.event(Event::Ready { builder: self.builder, facts });
        tokio::select! {
            fault = self.watch(remote) => fault,
            fault = self.beat(remote, &launched.instance.id) => fault,
            never = load::tell(self.builder, remote, &self.driver, &self.shared.looks) => match never {},
        }
    }

    /// How other builders come to it, where they may.
    fn door(&self, launched: &Launched, target: Target) -> Option<Door> {
        let inner = launched.address.inner.clone().filter(|_| self.runtime.spec.direct)?;
        Some(Door { neighbours: Arc::clone(&self.shared.neighbours), inner, target })
    }

    /// Until it no longer answers.
    async fn watch(&self, remote: &Arc<Remote>) -> BuilderFault {
        let mut losses = remote.sessions().losses();
        let mut sweeps = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            let reason = tokio::select! {
                reason = losses.next() => reason,
                _ = sweeps.tick() => {
                    remote.sweep();
                    continue;
                }
            };
            tracing::debug!(builder = %self.builder, %reason, "a session was lost");
            match probe_once(remote.sessions(), Instant::now() + REDIAL_DEADLINE).await {
                // Said again, it clears the suspicion that the scheduler has after a lost attempt.
                Ok(facts) => self.driver.event(Event::Ready { builder: self.builder, facts }),
                Err(error) => {
                    let reason = format!("{reason}, and it does not answer again: {}", chain(&error));
                    return fault(BuilderFaultKind::ConnectionLost, reason);
                }
            }
        }
    }

    /// Tells the builder that we are there, and listens to what it knows of its own end. One that does not answer is
    /// not lost for that: whether its sessions live is watched beside this, and the next heartbeat may be heard.
    async fn beat(&self, remote: &Remote, instance: &InstanceId) -> BuilderFault {
        let (builder, provider) = (self.builder, &self.runtime.provider);
        while let Some(beat) = provider.beat(instance, remote.is_in_use()) {
            match remote.sessions().run(&beat.command, Instant::now() + BEAT_DEADLINE).await {
                Ok(output) => {
                    for notice in provider.read_beat(instance, &output.stdout) {
                        tracing::warn!(%builder, ?notice, "notice");
                        match notice {
                            BuilderNotice::Interruption { within, why } => {
                                self.driver.event(Event::Interrupted { builder, within, why });
                            }
                            BuilderNotice::Rebalance { why } => {
                                self.driver.event(Event::Endangered { builder, why });
                            }
                            BuilderNotice::Unguarded { why } => {
                                self.driver.event(Event::Warned { builder, why });
                            }
                            BuilderNotice::Ending { why } => {
                                return fault(
                                    BuilderFaultKind::ConnectionLost,
                                    format!("it is ending: {why}"),
                                );
                            }
                        }
                    }
                }
                Err(error) => {
                    tracing::debug!(%builder, error = %chain(&anyhow::Error::new(error)), "a heartbeat was lost");
                }
            }
            tokio::time::sleep(beat.every).await;
        }
        std::future::pending().await
    }

    /// Dials until it answers and has set itself up, or is late: then what its console says belongs to the fault.
    async fn first_contact(
        &self,
        sessions: &Sessions,
        instance: &InstanceId,
    ) -> Result<BuilderFacts, BuilderFault> {
        let mut delays = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_secs(2))
            .without_max_times()
            .build();
        let began = Instant::now();
        let launch_timeout = self.runtime.spec.launch_timeout;
        let patience = launch_timeout.saturating_sub(POST_MORTEM.min(launch_timeout / 4));
        let mut last = "it does not answer".to_owned();
        loop {
            if self.began.elapsed() > patience {
                return Err(self.post_mortem(instance, &last).await);
            }
            // Whatever hangs, what it is remembered by is known before the time is up.
            let until = (Instant::now() + PROBE_DEADLINE).min(self.began + patience);
            let error = match self.look(sessions, instance, until).await {
                Ok(Look::Facts(facts)) => {
                    return match self.runtime.provider.objection(instance, &facts) {
                        None => Ok(facts),
                        Some(objection) => Err(fault(BuilderFaultKind::Unfit, objection)),
                    };
                }
                Ok(Look::NotYet(phase)) => {
                    last.clone_from(&phase);
                    self.progress(phase);
                    tokio::time::sleep(READINESS_INTERVAL).await;
                    continue;
                }
                Ok(Look::GaveUp(reason)) => return Err(fault(BuilderFaultKind::BootFailed, reason)),
                Err(error) => error,
            };
            if error.downcast_ref::<RunOnceError>().is_some_and(RunOnceError::is_final) {
                return Err(fault(BuilderFaultKind::Unfit, chain(&error)));
            }
            last = chain(&error);
            tracing::debug!(builder = %self.builder, error = last, "not answering yet");
            if began.elapsed() > UNREMARKABLE {
                self.progress(format!("not answering yet: {error:#}"));
            }
            tokio::time::sleep(delays.next().unwrap_or(Duration::from_secs(2))).await;
        }
    }

    /// What is known of a builder that did not become ready in time, while its instance can still be asked.
    async fn post_mortem(&self, instance: &InstanceId, last: &str) -> BuilderFault {
        let waited = self.began.elapsed().as_secs();
        let mut reason = format!("not ready {waited} s after its launch: {last}");
        let console = self.runtime.provider.console(instance);
        if let Ok(Some(console)) = tokio::time::timeout(POST_MORTEM / 2, console).await {
            tracing::error!(builder = %self.builder, %instance, console, "the console of what did not become ready");
            let lines: Vec<&str> = console.lines().filter(|line| !line.trim().is_empty()).collect();
            let shown = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
            reason.push_str(&format!("; its console says last: {}", shown.join(" / ")));
        }
        fault(BuilderFaultKind::BootFailed, reason)
    }

    /// Asks whether it has set itself up, and then what it offers.
    async fn look(&self, sessions: &Sessions, instance: &InstanceId, until: Instant) -> anyhow::Result<Look> {
        if let Some(question) = self.runtime.provider.readiness(instance) {
            let output = sessions.run(&question, until).await?;
            match self.runtime.provider.read_readiness(instance, &output.stdout) {
                Readiness::Ready => {}
                Readiness::NotYet { phase } => return Ok(Look::NotYet(phase)),
                Readiness::Failed { reason } => return Ok(Look::GaveUp(reason)),
            }
        }
        Ok(Look::Facts(probe_once(sessions, until).await?))
    }

    /// Ends the instance, and keeps at it until the provider agrees.
    async fn end(&self, instance: &Instance) {
        if let Some(remote) = self.remote.get() {
            remote.close();
        }
        let mut delays = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(Duration::from_secs(60))
            .without_max_times()
            .build();
        let is_final = self.end.is_final.load(Ordering::Acquire);
        let mut ending = if is_final { Ending::Final } else { Ending::Idle };
        while let Err(error) = self.runtime.provider.terminate(&instance.id, ending).await {
            let reason = chain(&anyhow::Error::new(error));
            // What cannot be put aside must at least not go on.
            ending = Ending::Final;
            tracing::error!(builder = %self.builder, instance = %instance.id, reason, "cannot terminate, trying again");
            tokio::time::sleep(delays.next().unwrap_or(Duration::from_secs(60))).await;
        }
        tracing::info!(builder = %self.builder, instance = %instance.id, "gone");
    }
}

/// What a builder that answers is found to be.
enum Look {
    /// Set up, and this.
    Facts(BuilderFacts),
    /// Busy with setting itself up.
    NotYet(String),
    /// It will never be ready.
    GaveUp(String),
}

async fn probe_once(sessions: &Sessions, until: Instant) -> anyhow::Result<BuilderFacts> {
    let output = sessions.run(probe::COMMAND, until).await?;
    probe::parse(&output.stdout).with_context(|| match output.stderr_tail.trim() {
        "" => "look at the builder".to_owned(),
        complaint => format!("look at the builder, which says: {complaint}"),
    })
}

fn fault(kind: BuilderFaultKind, reason: String) -> BuilderFault {
    BuilderFault { kind, reason }
}
