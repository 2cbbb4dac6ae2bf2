//! The end of the broker: SIGTERM or SIGINT drains it, a second one or the end of the grace forces it.

use std::time::Duration;

use anyhow::Context;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::driver::DriverHandle;
use crate::scheduler::Event;

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

    /// Waits for the first signal, tells the scheduler to drain, and forces it when the grace is over. Never returns;
    /// the caller stops waiting when the driver has ended.
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
        std::future::pending::<()>().await;
    }
}

/// Tells the service manager, if there is one.
pub(crate) fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}
