//! The end of the broker: SIGTERM or SIGINT drains it, a second one or the end of the grace forces it.

use std::time::Duration;

use anyhow::Context;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::driver::DriverHandle;
use crate::scheduler::Event;

/// How long the end of what was forced to end may take: instances are terminated, and nothing else is waited for.
const FORCED_DEADLINE: Duration = Duration::from_secs(45);

/// The signals we stop for.
pub(crate) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// From now on these signals no longer kill the process.
    pub(crate) fn install() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("handle SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("handle SIGINT")?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _signal = self.terminate.recv() => {}
            _signal = self.interrupt.recv() => {}
        }
    }

    /// Waits for the first signal, tells the scheduler to drain, and forces it when the grace is over. Returns only when
    /// the driver should have ended long since; its caller stops waiting when it has.
    pub(crate) async fn drain(mut self, driver: &DriverHandle, grace: Duration) {
        self.next().await;
        tracing::info!(grace = %humantime::format_duration(grace), "draining: no new builds, running ones may finish");
        notify(&[NotifyState::Stopping, NotifyState::Status("draining")]);
        driver.event(Event::ShutdownRequested);
        tokio::select! {
            () = self.next() => tracing::warn!("second signal: ending what still runs"),
            () = tokio::time::sleep(grace) => tracing::warn!("the grace is over: ending what still runs"),
        }
        driver.event(Event::ShutdownForced);
        tokio::time::sleep(FORCED_DEADLINE).await;
    }
}

/// Tells the service manager, if there is one.
pub(crate) fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}
