//! Garbage collection on a builder that is low on disk.
//!
//! The scheduler has seen to it that no build runs there and none is started until this is done. What was sent and made there
//! before is let go first, or its own temp roots would keep it; what is believed to be there is forgotten again afterwards,
//! for others than builds may have asked meanwhile.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::{Instant, sleep};

use super::driver::DriverHandle;
use super::remote::Remote;
use super::{Shared, chain, load};
use crate::model::{Load, Space};
use crate::scheduler::Event;
use crate::ssh::Exit;

/// How long one run may take.
const LIMIT: Duration = Duration::from_secs(5 * 60);
/// Runs. Daemons that were let go end by themselves, and until then hold what they held.
const RUNS: usize = 2;
/// Before each: for those daemons to end.
const PAUSE: Duration = Duration::from_secs(2);

/// Collects so many bytes of garbage, and tells the scheduler what is left of the disk and that it is done.
pub(crate) fn spawn(shared: &Arc<Shared>, driver: &DriverHandle, remote: Arc<Remote>, bytes: u64) {
    let driver = driver.clone();
    shared.tasks.spawn(async move {
        let builder = remote.builder();
        remote.let_go().await;
        let before = free(load::now(&remote).await.as_ref());
        for _ in 0..RUNS {
            sleep(PAUSE).await;
            let collected = collect(&remote, bytes).await;
            if let Err(error) = &collected {
                tracing::warn!(%builder, error = %chain(error), "cannot collect garbage");
            }
            let now = load::now(&remote).await;
            let gained = free(now.as_ref()).saturating_sub(before);
            if let Some(load) = now {
                driver.event(Event::Load { builder, load });
            }
            tracing::info!(%builder, bytes, gained, "garbage was collected");
            if gained >= bytes || collected.is_err() {
                break;
            }
        }
        remote.let_go().await;
        driver.event(Event::Collected(builder));
    });
}

fn free(load: Option<&Load>) -> u64 {
    load.and_then(|load| load.disk).map_or(0, Space::free)
}

async fn collect(remote: &Remote, bytes: u64) -> anyhow::Result<()> {
    let command = format!("nix-store --gc --max-freed {bytes}");
    let context = || format!("run `{command}` on builder {}", remote.builder());
    let output = remote.sessions().run(&command, Instant::now() + LIMIT).await.with_context(context)?;
    match output.exit {
        Exit::Status(0) => Ok(()),
        Exit::Status(_) | Exit::Signal(_) | Exit::NotStarted | Exit::Unknown | Exit::Lost(_) => {
            bail!("`{command}` on builder {} fails: {}", remote.builder(), output.stderr_tail.trim())
        }
    }
}
