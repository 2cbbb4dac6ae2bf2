//! Puts the broker together, runs it, takes it apart in the right order.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use sd_notify::NotifyState;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::driver::{Driver, DriverHandle, Message};
use super::listener::{Activation, Listener};
use super::shared::{PoolRuntime, Shared};
use super::signals::{StopSignals, notify};
use super::{chain, metrics, since_1970};
use crate::config::Config;
use crate::history::{History, HistoryError};
use crate::model::{Spent, UtcDay};
use crate::predict::Observation;
use crate::provider::{Survivor, tend_leftovers};
use crate::scheduler::{Event, Fleet};

/// How long importers may take after the last build: a large output on a slow disk.
const IMPORT_DEADLINE: Duration = Duration::from_secs(120);

/// How long tasks may take to end after the last build and builder are gone.
const TASKS_DEADLINE: Duration = Duration::from_secs(10);

/// Between two questions for what an earlier broker left, while the provider cannot say it.
const SURVIVORS_INTERVAL: Duration = Duration::from_secs(15);

/// How often the scheduler is told the day: the precision with which days are told apart, and caps are kept to.
const CLOCK_INTERVAL: Duration = Duration::from_secs(60);

/// Runs a broker until it was told to stop and everything it started has ended. It listens at `activation` if there is
/// one, else at a socket of its own.
pub async fn serve(config: Config, socket: &Path, activation: Option<Activation>) -> anyhow::Result<()> {
    let signals = StopSignals::install()?;
    std::fs::create_dir_all(&config.state_dir)
        .with_context(|| format!("create state directory `{}`", config.state_dir.display()))?;
    let _lock = lock_state_dir(&config)?;
    raise_file_limit();
    let shared = Arc::new(Shared::new(&config)?);
    for pool in shared.pools() {
        let reaped = pool
            .provider
            .reap_strays()
            .await
            .with_context(|| format!("end what an earlier broker left in pool `{}`", pool.spec.name))?;
        if reaped > 0 {
            tracing::warn!(pool = %pool.spec.name, reaped, "ended instances that an earlier broker left behind");
        }
    }
    let listener = Listener::open(socket, activation).await?;
    let (survivors, unanswered) = survivors(&shared);
    let spent = spent_before(&shared.history, &survivors).await;
    learn_from_before(&shared).await;
    let fleet = Fleet::new(config.pools.clone(), Instant::now().into_std()).with_money(config.caps, &spent);
    let (mut driver, handle) = Driver::new(fleet, Arc::clone(&shared));
    let stop = CancellationToken::new();
    let activated = listener.is_activated();
    // Before anything is taken over: from then on nothing may fail but at the end. What hooks bring waits for the driver.
    let listening = listener.start(Arc::clone(&shared), handle.clone(), stop.clone())?;
    driver.begin_with(survivors);
    // Dropped last of all: what a provider does by itself goes on until no instance is left.
    let mut background = JoinSet::new();
    for pool in unanswered {
        background.spawn(find_later(pool, handle.clone()));
    }
    if let Some(address) = config.metrics.clone() {
        background.spawn(metrics::listen(address, Arc::clone(&shared), handle.clone()));
    }
    background.spawn(tell_the_time(Arc::clone(&shared), handle.clone()));
    for pool in shared.pools().iter().map(Arc::clone) {
        background.spawn(async move { pool.provider.tend().await });
    }
    background.spawn(tend_leftovers(shared.provider_context.clone()));
    tracing::info!(socket = %socket.display(), activated, pools = shared.pools().len(), "accepting builds");
    notify(&[NotifyState::Ready, NotifyState::Status("accepting builds")]);

    tokio::select! {
        () = driver.run() => {}
        () = signals.drain(&handle, config.drain_grace) => {
            let left = left_running(&shared);
            bail!("some builders did not end in time; the next start will end what is left of them: {left}");
        }
    }

    // Every build has ended, but some of the good ones are still being taken over by their importers.
    shared.clients.close();
    if tokio::time::timeout(IMPORT_DEADLINE, shared.clients.wait()).await.is_err() {
        tracing::warn!(
            clients = shared.clients.len(),
            "some clients have not taken over their builds in time"
        );
    }
    stop.cancel();
    if let Some(own) = listening.await.context("the listener died")? {
        std::fs::remove_file(&own).with_context(|| format!("remove `{}`", own.display()))?;
    }
    shared.tasks.close();
    if tokio::time::timeout(TASKS_DEADLINE, shared.tasks.wait()).await.is_err() {
        bail!("{} tasks did not end within {TASKS_DEADLINE:?}", shared.tasks.len());
    }
    background.shutdown().await;
    if tokio::time::timeout(TASKS_DEADLINE, shared.history.settle()).await.is_err() {
        tracing::warn!("the history was not written in time");
    }
    tracing::info!("ended; nothing is left running");
    Ok(())
}

/// What earlier brokers launched and left running. A provider that cannot say it now is asked again in the background:
/// whoever starts without a network must still be able to build elsewhere.
fn survivors(shared: &Shared) -> (Vec<Survivor>, Vec<Arc<PoolRuntime>>) {
    let (mut found, mut unanswered) = (Vec::new(), Vec::new());
    for pool in shared.pools() {
        match pool.provider.survivors() {
            Ok(survivors) => found.extend(survivors),
            Err(error) => {
                let reason = chain(&anyhow::Error::new(error));
                let name = &pool.spec.name;
                tracing::warn!(pool = %name, reason, "cannot find out which builders an earlier broker left, asking again");
                unanswered.push(Arc::clone(pool));
            }
        }
    }
    (found, unanswered)
}

/// What earlier brokers spent today and this month, those that live included.
async fn spent_before(history: &History, survivors: &[Survivor]) -> Spent {
    let alive = survivors.iter().map(|survivor| survivor.launched.instance.id.clone()).collect();
    let now = since_1970();
    match history.ask(move |store| store.begin(now, &alive)).await {
        Ok(spent) => spent,
        Err(error) => {
            let reason = chain(&anyhow::Error::new(error));
            tracing::warn!(
                reason,
                "what was spent before is not known, so today's and this month's caps begin anew"
            );
            Spent { day: UtcDay::at(now), ..Spent::default() }
        }
    }
}

/// What the history says of how long builds take.
async fn learn_from_before(shared: &Shared) {
    match shared.history.ask(|store| store.durations()).await {
        Ok(rows) => {
            let mut foresight = shared.foresight();
            for row in &rows {
                foresight.observe(Observation {
                    name: &row.name,
                    system: &row.system,
                    is_big: row.is_big,
                    took: row.took,
                });
            }
            tracing::debug!(builds = rows.len(), names = foresight.names(), "know how long builds take");
        }
        // That there is no history has been said.
        Err(HistoryError::None) => {}
        Err(error) => {
            let reason = chain(&anyhow::Error::new(error));
            tracing::warn!(reason, "how long builds took before is not known");
        }
    }
}

async fn find_later(pool: Arc<PoolRuntime>, handle: DriverHandle) {
    loop {
        tokio::time::sleep(SURVIVORS_INTERVAL).await;
        if let Ok(survivors) = pool.provider.survivors() {
            handle.send(Message::Adopt(survivors));
            return;
        }
    }
}

/// Says what day it is, and what stopped instances cost.
async fn tell_the_time(shared: Arc<Shared>, handle: DriverHandle) {
    let mut interval = tokio::time::interval(CLOCK_INTERVAL);
    loop {
        interval.tick().await;
        let aside = shared.pools().iter().map(|pool| (pool.spec.name.clone(), pool.provider.put_aside()));
        handle.event(Event::Clock { day: UtcDay::at(since_1970()), aside: aside.collect() });
    }
}

/// The instances that the providers still have.
fn left_running(shared: &Shared) -> String {
    let instances = shared.pools().iter().flat_map(|pool| pool.provider.list());
    let names: Vec<_> = instances.map(|instance| format!("`{}`", instance.id)).collect();
    if names.is_empty() { "none that a provider knows".to_owned() } else { names.join(", ") }
}

/// One broker per state directory: two would reap each other's machines.
fn lock_state_dir(config: &Config) -> anyhow::Result<File> {
    let path = config.state_dir.join("lock");
    let file = File::create(&path).with_context(|| format!("create `{}`", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("another broker uses the state directory `{}`; stop it first", config.state_dir.display());
    }
    Ok(file)
}

/// Every waiting hook is a file descriptor; the usual soft limit of 1,024 would refuse the thousandth.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Store;

    #[tokio::test]
    async fn what_was_spent_is_read_at_the_start_and_nothing_is_known_without_a_history() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(Store::open(dir.path()).unwrap());
        let cost = crate::model::Usd::from_micros(20_000);
        let record = crate::model::Record::PutAside { pool: crate::model::PoolName::new("x86"), cost };
        history.record(since_1970(), record);
        let spent = spent_before(&history, &[]).await;
        assert_eq!((spent.month, spent.day), (cost, UtcDay::at(since_1970())));
        let unknown = spent_before(&History::none(), &[]).await;
        assert_eq!((unknown.month, unknown.day), (crate::model::Usd::ZERO, spent.day));
    }
}
