//! The daemons of a builder: idle ones for the next build, fresh ones opened ahead or when nobody gives one back.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::FutureExt;
use tokio::time::{Instant, timeout};

use super::{DAEMON_COMMAND, Remote, explain};
use crate::protocol::worker::Connection;
use crate::ssh::{self, Channel, Load};

/// From asking for a channel to getting it, and from there to the daemon's greeting. Slow links take seconds; a builder
/// that takes longer is as good as lost for this attempt.
pub(super) const OPEN_LIMIT: Duration = Duration::from_secs(60);

/// Daemons kept for the next build, and how long. Each is a process on the builder.
const MAX_IDLE: usize = 16;
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// How long what was sent to and built on a builder is held there while it has nothing to do.
const HOLD_LIMIT: Duration = Duration::from_secs(10 * 60);
/// Daemons kept however long nobody wants them: a first build does not wait for one.
const MIN_IDLE: usize = 2;

#[derive(Debug, Default)]
pub(super) struct Daemons {
    pub(super) idle: Vec<Idle>,
    /// Being opened.
    opening: usize,
    /// Callers of `daemon` that have none yet.
    waiting: usize,
    /// Why daemons could not be opened, for as many of those callers.
    failures: Vec<anyhow::Error>,
    /// Daemons of an older one are not kept: see [`Remote::still_has`].
    pub(super) generation: u64,
}

/// Counts a caller of `daemon` as long as it has none.
struct Waiting<'a>(&'a Remote);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.daemons.lock().waiting -= 1;
    }
}

#[derive(Debug)]
pub(super) struct Idle {
    daemon: Daemon,
    since: Instant,
}

/// One `nix-daemon --stdio` on the builder, greeted.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) connection: Connection,
    program: ssh::Remote,
    generation: u64,
    /// What its connection is for.
    load: Load,
    _in_use: Option<Arc<()>>,
}

impl Daemon {
    /// An error of this daemon, with what the program behind it complained about.
    pub(crate) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        explain(&self.program, error)
    }

    /// Whether it can be asked something: in step, and as far as we have heard not gone.
    pub(in crate::broker) fn is_usable(&self) -> bool {
        self.connection.is_clean() && self.program.exit().now_or_never().is_none()
    }
}

impl Remote {
    /// A daemon that waits for its first or next operation: an idle one, or whatever comes first of a fresh one and one
    /// that another build gives back. A builder that is full is waited for.
    pub(crate) async fn daemon(self: &Arc<Self>) -> anyhow::Result<Daemon> {
        self.daemons.lock().waiting += 1;
        let _waiting = Waiting(self);
        loop {
            let returned = self.returned.notified();
            tokio::pin!(returned);
            returned.as_mut().enable();
            if let Some(daemon) = self.take_idle() {
                return Ok(daemon);
            }
            let failure = self.daemons.lock().failures.pop();
            match failure {
                Some(error) if is_no_room(&error) && Arc::strong_count(&self.in_use) > 1 => {}
                Some(error) => return Err(error),
                None => {}
            }
            self.open_for_those_who_wait(0);
            returned.await;
        }
    }

    /// Opens the first daemon and waits until it answers. It makes the store if there is none yet: several daemons of Nix
    /// 2.8 that do so at once can leave one of them waiting for ever.
    pub(crate) async fn open_first(self: &Arc<Self>) -> anyhow::Result<()> {
        let daemon = self.fresh_daemon().await?;
        self.give_back(daemon);
        Ok(())
    }

    /// Opens daemons ahead of those who will want them: as many as are not idle or on their way. What cannot be opened
    /// is left to whoever wants it.
    pub(crate) fn warm(self: &Arc<Self>, count: usize) {
        let this = Arc::clone(self);
        self.tasks.spawn(async move {
            // The build that a builder was launched for comes at once, and its first question is for its inputs.
            tokio::join!(this.roots.warm(&this), this.measure_round_trip());
            // For the first large transfer. One that cannot be had is tried again when it is needed.
            let _none = this.sessions.warm_bulk(Instant::now() + OPEN_LIMIT).await;
        });
        self.open_for_those_who_wait(count.min(MAX_IDLE));
    }

    /// Opens daemons whatever becomes of those who want them; who comes first gets it.
    fn open_for_those_who_wait(self: &Arc<Self>, ahead: usize) {
        let mut state = self.daemons.lock();
        let wanted = state.waiting.max(ahead).saturating_sub(state.idle.len());
        while state.opening < wanted {
            state.opening += 1;
            let this = Arc::clone(self);
            self.tasks.spawn(async move {
                let opened = this.fresh_daemon().await;
                this.daemons.lock().opening -= 1;
                match opened {
                    Ok(daemon) => this.give_back(daemon),
                    Err(error) => {
                        let mut state = this.daemons.lock();
                        if state.failures.len() < state.waiting {
                            state.failures.push(error);
                        }
                        drop(state);
                        this.returned.notify_one();
                    }
                }
            });
        }
    }

    /// Keeps a daemon whose last operation ended cleanly; any other is ended.
    pub(crate) fn give_back(&self, daemon: Daemon) {
        let daemon = Daemon { _in_use: None, ..daemon };
        let mut state = self.daemons.lock();
        let is_wanted = daemon.load == Load::Small && state.idle.len() < MAX_IDLE;
        if is_wanted && daemon.is_usable() && daemon.generation == state.generation {
            state.idle.push(Idle { daemon, since: Instant::now() });
        }
        drop(state);
        // Whether it was kept or not: there is room for a channel now.
        self.returned.notify_one();
    }

    /// Ends the daemons that nobody has used for a while, but for a few; to be called now and then. A builder that has had
    /// nothing to do for long may collect its garbage: all that was held for the next build is let go.
    pub(crate) fn sweep(self: &Arc<Self>) {
        let is_asleep = {
            let mut state = self.daemons.lock();
            state.idle.retain(|idle| idle.daemon.is_usable());
            let is_asleep = Arc::strong_count(&self.in_use) == 1
                && !state.idle.is_empty()
                && state.idle.iter().all(|idle| idle.since.elapsed() >= HOLD_LIMIT);
            // Those at the end were used last.
            let spare = if is_asleep { state.idle.len() } else { state.idle.len().saturating_sub(MIN_IDLE) };
            let old = state.idle.iter().take(spare).take_while(|idle| idle.since.elapsed() >= IDLE_LIMIT);
            let old = old.count();
            state.idle.drain(..old);
            is_asleep
        };
        if is_asleep {
            let this = Arc::clone(self);
            self.tasks.spawn(async move {
                this.roots.reset(&this.presence).await;
                this.warm(MIN_IDLE);
            });
        } else {
            self.warm(MIN_IDLE);
        }
    }

    fn take_idle(&self) -> Option<Daemon> {
        let mut state = self.daemons.lock();
        loop {
            let Idle { daemon, .. } = state.idle.pop()?;
            // Those of a connection that was lost are all dead, and not yet swept.
            if daemon.is_usable() {
                return Some(self.in_use(daemon));
            }
        }
    }

    fn in_use(&self, daemon: Daemon) -> Daemon {
        Daemon { _in_use: Some(Arc::clone(&self.in_use)), ..daemon }
    }

    /// A daemon on a connection that carries nothing small.
    pub(super) async fn bulk_daemon(&self) -> anyhow::Result<Daemon> {
        Ok(self.in_use(self.daemon_of(Load::Bulk).await?))
    }

    /// A channel to a fresh daemon that has not been greeted: for a client that speaks to it itself. How much it will have
    /// to say, and how fast it reads, nobody knows; builds are not to wait for that.
    pub(crate) async fn channel(&self) -> anyhow::Result<Channel> {
        match self.channel_of(Load::Bulk).await {
            Ok(channel) => Ok(channel),
            // A builder that takes no more connections.
            Err(_) => self.channel_of(Load::Small).await,
        }
    }

    async fn channel_of(&self, load: Load) -> anyhow::Result<Channel> {
        self.sessions
            .open_for(load, DAEMON_COMMAND, Instant::now() + OPEN_LIMIT)
            .await
            .with_context(|| format!("start a daemon on builder {}", self.builder))
    }

    pub(in crate::broker) async fn fresh_daemon(&self) -> anyhow::Result<Daemon> {
        self.daemon_of(Load::Small).await
    }

    async fn daemon_of(&self, load: Load) -> anyhow::Result<Daemon> {
        let generation = self.daemons.lock().generation;
        let Channel { stdin, stdout, remote: program } = self.channel_of(load).await?;
        let greeting = Connection::open(Box::new(stdout), Box::new(stdin));
        match timeout(OPEN_LIMIT, greeting).await {
            Ok(Ok(connection)) => Ok(Daemon { connection, program, generation, load, _in_use: None }),
            Ok(Err(error)) => Err(explain(&program, anyhow::Error::new(error)))
                .with_context(|| format!("greet the nix-daemon of builder {}", self.builder)),
            Err(_) => {
                bail!("the nix-daemon of builder {} did not answer within {OPEN_LIMIT:?}", self.builder)
            }
        }
    }
}

/// Whether every channel that the builder allows is taken.
fn is_no_room(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<ssh::OpenError>(), Some(ssh::OpenError::NoRoom))
}
