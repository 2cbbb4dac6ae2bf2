//! How busy ready builders are: asked again and again over the sessions that are there anyway.
//!
//! A builder is asked while something runs there or somebody looks, and is otherwise left alone. What it says goes to the
//! scheduler as an event. One that gives no answer, or none that makes sense, just has no load that anybody knows: whether
//! it lives is watched by its task, and nobody waits for this.

use std::convert::Infallible;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::chain;
use super::driver::DriverHandle;
use super::remote::Remote;
use crate::model::{BuilderId, Load};
use crate::provider::load::{self, Reading};
use crate::scheduler::Event;

/// Between two questions to a builder in use. The kernel's shortest average of pressure is over as much.
const INTERVAL: Duration = Duration::from_secs(10);
/// Between two looks whether there is a reason to ask.
const LOOK: Duration = Duration::from_secs(1);
/// How long an answer may take; the place on a connection is wanted by others.
const LIMIT: Duration = Duration::from_secs(10);
/// Whoever looked so recently may look again.
const ATTENTION: Duration = Duration::from_secs(15);
/// From a reading that is older, no share of now can be told.
const TELLING: Duration = Duration::from_secs(45);
/// Between the two readings that are taken when there is none to begin with.
const PAIR: Duration = Duration::from_secs(1);

/// When somebody last looked at the picture of the fleet.
#[derive(Debug, Default)]
pub(crate) struct Looks(Mutex<Option<Instant>>);

impl Looks {
    /// Somebody looks now.
    pub(crate) fn note(&self) {
        *self.0.lock() = Some(Instant::now());
    }

    fn are_recent(&self) -> bool {
        let last = *self.0.lock();
        last.is_some_and(|at| at.elapsed() < ATTENTION)
    }
}

/// Asks this builder as long as it lives, and tells the scheduler.
pub(crate) async fn tell(
    builder: BuilderId,
    remote: &Remote,
    driver: &DriverHandle,
    looks: &Looks,
) -> Infallible {
    // Builds come to a builder as soon as it is ready, and its connections are theirs first.
    sleep(PAIR).await;
    let mut before: Option<(Reading, Instant)> = None;
    loop {
        let at = Instant::now();
        let reading = read(remote).await;
        let age = |before: &(Reading, Instant)| at.duration_since(before.1);
        let is_first = before.as_ref().is_none_or(|before| age(before) >= TELLING);
        if let Some(reading) = &reading {
            let before = before.as_ref().filter(|_| !is_first);
            let load = reading.since(before.map(|before| (&before.0, age(before))));
            driver.event(Event::Load { builder, load });
        }
        let (has_answered, was_in_use) = (reading.is_some(), remote.is_in_use());
        before = reading.map(|reading| (reading, at));
        if is_first && has_answered {
            sleep(PAIR).await;
            continue;
        }
        sleep(INTERVAL).await;
        // What the last build has left behind is asked for once more.
        while !(was_in_use || remote.is_in_use() || looks.are_recent()) {
            sleep(LOOK).await;
        }
    }
}

/// How busy a builder is now; nothing when it does not say.
pub(crate) async fn now(remote: &Remote) -> Option<Load> {
    read(remote).await.map(|reading| reading.since(None))
}

async fn read(remote: &Remote) -> Option<Reading> {
    match remote.sessions().run(load::COMMAND, Instant::now() + LIMIT).await {
        Ok(output) => load::parse(&output.stdout),
        Err(error) => {
            let error = chain(&anyhow::Error::new(error));
            tracing::debug!(builder = %remote.builder(), error, "its load is not known");
            None
        }
    }
}
