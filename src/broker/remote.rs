//! A ready builder as builds see it: its daemons, and what its store is known to hold.
//!
//! Owns the idle daemons, and the single flight of uploads; the temp roots are held by [`super::roots`]. Uploads and dials
//! run in tasks of their own: a build that is cancelled takes nothing with it that others wait for. Whether the builder
//! lives is the builder task's business; which build runs here is the scheduler's.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::FutureExt;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use super::roots::Roots;
use super::stall::unless_stalled;
use crate::model::{BuilderId, StorePath};
use crate::protocol::worker::{Connection, Substitute};
use crate::ssh::{self, Channel, Sessions};
use crate::transfer::{Beat, Claim, InFlight, LocalStore, Presence, upload};

/// What runs at the other end of a channel.
const DAEMON_COMMAND: &str = "nix-daemon --stdio";

/// From asking for a channel to getting it, and from there to the daemon's greeting. Slow links take seconds; a builder
/// that takes longer is as good as lost for this attempt.
const OPEN_LIMIT: Duration = Duration::from_secs(60);

/// How long a builder may fetch inputs from its substituters before we send them.
const SUBSTITUTE_LIMIT: Duration = Duration::from_secs(30 * 60);

/// Daemons kept for the next build, and how long. Each is a process on the builder.
const MAX_IDLE: usize = 16;
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// Daemons kept however long nobody wants them: a first build does not wait for one.
const MIN_IDLE: usize = 2;

/// See the module.
#[derive(Debug)]
pub(crate) struct Remote {
    builder: BuilderId,
    sessions: Sessions,
    local: Arc<LocalStore>,
    tasks: TaskTracker,
    pub(super) presence: Presence,
    /// Keeps what is in `presence` from being collected.
    roots: Roots,
    daemons: Mutex<Daemons>,
    /// A daemon was given back or opened, or cannot be opened.
    returned: Notify,
    /// Each daemon in use has a clone.
    in_use: Arc<()>,
}

#[derive(Debug, Default)]
struct Daemons {
    idle: Vec<Idle>,
    /// Being opened.
    opening: usize,
    /// Callers of `daemon` that have none yet.
    waiting: usize,
    /// Why daemons could not be opened, for as many of those callers.
    failures: Vec<anyhow::Error>,
    /// Daemons of an older one are not kept: see [`Remote::still_has`].
    generation: u64,
}

/// Counts a caller of `daemon` as long as it has none.
struct Waiting<'a>(&'a Remote);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

#[derive(Debug)]
struct Idle {
    daemon: Daemon,
    since: Instant,
}

/// One `nix-daemon --stdio` on the builder, greeted.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) connection: Connection,
    program: ssh::Remote,
    generation: u64,
    _in_use: Option<Arc<()>>,
}

impl Daemon {
    /// An error of this daemon, with what the program behind it complained about.
    pub(crate) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        explain(&self.program, error)
    }

    /// Whether it can be asked something: in step, and as far as we have heard not gone.
    pub(super) fn is_usable(&self) -> bool {
        self.connection.is_clean() && self.program.exit().now_or_never().is_none()
    }
}

impl Remote {
    /// A builder that these sessions lead to, for inputs from this store. What outlives a build runs among these tasks.
    pub(crate) fn new(
        builder: BuilderId,
        sessions: Sessions,
        local: Arc<LocalStore>,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            builder,
            sessions,
            local,
            tasks,
            presence: Presence::default(),
            roots: Roots::default(),
            daemons: Mutex::default(),
            returned: Notify::new(),
            in_use: Arc::default(),
        }
    }

    /// Which builder it is.
    pub(crate) fn builder(&self) -> BuilderId {
        self.builder
    }

    /// Whether a build or a transfer is under way there.
    pub(crate) fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.in_use) > 1
    }

    /// Its connections.
    pub(crate) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// A daemon that waits for its first or next operation: an idle one, or whatever comes first of a fresh one and one
    /// that another build gives back. A builder that is full is waited for.
    pub(crate) async fn daemon(self: &Arc<Self>) -> anyhow::Result<Daemon> {
        self.lock().waiting += 1;
        let _waiting = Waiting(self);
        loop {
            let returned = self.returned.notified();
            tokio::pin!(returned);
            returned.as_mut().enable();
            if let Some(daemon) = self.take_idle() {
                return Ok(daemon);
            }
            let failure = self.lock().failures.pop();
            match failure {
                Some(error) if is_no_room(&error) && Arc::strong_count(&self.in_use) > 1 => {}
                Some(error) => return Err(error),
                None => {}
            }
            self.open_for_those_who_wait(0);
            returned.await;
        }
    }

    /// Opens daemons ahead of those who will want them: as many as are not idle or on their way. What cannot be opened
    /// is left to whoever wants it.
    pub(crate) fn warm(self: &Arc<Self>, count: usize) {
        let this = Arc::clone(self);
        self.tasks.spawn(async move { this.roots.warm(&this).await });
        self.open_for_those_who_wait(count.min(MAX_IDLE));
    }

    /// Opens daemons whatever becomes of those who want them; who comes first gets it.
    fn open_for_those_who_wait(self: &Arc<Self>, ahead: usize) {
        let mut state = self.lock();
        let wanted = state.waiting.max(ahead).saturating_sub(state.idle.len());
        while state.opening < wanted {
            state.opening += 1;
            let this = Arc::clone(self);
            self.tasks.spawn(async move {
                let opened = this.fresh_daemon().await;
                this.lock().opening -= 1;
                match opened {
                    Ok(daemon) => this.give_back(daemon),
                    Err(error) => {
                        let mut state = this.lock();
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
        let mut state = self.lock();
        if daemon.is_usable() && daemon.generation == state.generation && state.idle.len() < MAX_IDLE {
            state.idle.push(Idle { daemon, since: Instant::now() });
        }
        drop(state);
        // Whether it was kept or not: there is room for a channel now.
        self.returned.notify_one();
    }

    /// Ends the daemons that nobody has used for a while, but for a few; to be called now and then.
    pub(crate) fn sweep(self: &Arc<Self>) {
        let mut state = self.lock();
        state.idle.retain(|idle| idle.daemon.is_usable());
        // Those at the end were used last.
        let spare = state.idle.len().saturating_sub(MIN_IDLE);
        let old = state.idle.iter().take(spare).take_while(|idle| idle.since.elapsed() >= IDLE_LIMIT).count();
        state.idle.drain(..old);
        drop(state);
        self.warm(MIN_IDLE);
    }

    fn take_idle(&self) -> Option<Daemon> {
        let mut state = self.lock();
        loop {
            let Idle { daemon, .. } = state.idle.pop()?;
            // Those of a connection that was lost are all dead, and not yet swept.
            if daemon.is_usable() {
                return Some(self.in_use(daemon));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Daemons> {
        self.daemons.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_use(&self, daemon: Daemon) -> Daemon {
        Daemon { _in_use: Some(Arc::clone(&self.in_use)), ..daemon }
    }

    /// A channel to a fresh daemon that has not been greeted: for a client that speaks to it itself.
    pub(crate) async fn channel(&self) -> anyhow::Result<Channel> {
        self.sessions
            .open(DAEMON_COMMAND, Instant::now() + OPEN_LIMIT)
            .await
            .with_context(|| format!("start a daemon on builder {}", self.builder))
    }

    pub(super) async fn fresh_daemon(&self) -> anyhow::Result<Daemon> {
        let generation = self.lock().generation;
        let Channel { stdin, stdout, remote: program } = self.channel().await?;
        let greeting = Connection::open(Box::new(stdout), Box::new(stdin));
        match timeout(OPEN_LIMIT, greeting).await {
            Ok(Ok(connection)) => Ok(Daemon { connection, program, generation, _in_use: None }),
            Ok(Err(error)) => Err(explain(&program, anyhow::Error::new(error)))
                .with_context(|| format!("greet the nix-daemon of builder {}", self.builder)),
            Err(_) => {
                bail!("the nix-daemon of builder {} did not answer within {OPEN_LIMIT:?}", self.builder)
            }
        }
    }

    /// Returns when all these paths are valid on the builder and kept from being collected there.
    pub(crate) async fn ensure_present(
        self: &Arc<Self>,
        paths: &BTreeSet<StorePath>,
        substitute: Substitute,
    ) -> anyhow::Result<()> {
        loop {
            self.roots.look(&self.presence);
            let (claim, in_flight) = self.presence.claim(paths);
            if claim.paths().is_empty() {
                if in_flight.is_empty() {
                    return Ok(());
                }
                in_flight.ended().await;
                continue;
            }
            let _wish = claim.wish();
            let this = Arc::clone(self);
            let bringing =
                self.tasks.spawn(async move { this.carry_out(claim, in_flight, substitute).await });
            bringing.await.context("an upload was lost to a defect of the broker")??;
        }
    }

    /// Makes the claimed paths present. Goes on as long as any build waits for them.
    async fn carry_out(
        self: &Arc<Self>,
        claim: Claim,
        in_flight: InFlight,
        substitute: Substitute,
    ) -> anyhow::Result<()> {
        let mut missing = self.missing(claim.paths()).await?;
        if substitute == Substitute::Yes && !missing.is_empty() {
            tokio::select! {
                substituted = self.substitute(&missing) => missing = substituted?,
                () = claim.abandoned() => bail!("no build waits for these inputs any more"),
            }
        }
        // What the missing ones refer to may be among what others bring, and has to be there before them.
        if !in_flight.ended().await {
            // It is not: the next claim has that in it too.
            return Ok(());
        }
        if !missing.is_empty() {
            tokio::select! {
                uploaded = self.upload(&missing) => uploaded?,
                () = claim.abandoned() => bail!("no build waits for these inputs any more"),
            }
        }
        claim.succeed();
        Ok(())
    }

    async fn upload(self: &Arc<Self>, missing: &BTreeSet<StorePath>) -> anyhow::Result<()> {
        let mut daemon = self.daemon().await?;
        let beat = Beat::default();
        let uploaded = async {
            let uploaded = upload(&mut daemon.connection, &self.local, missing, &beat).await;
            uploaded.map_err(anyhow::Error::new)
        };
        match unless_stalled(&beat, uploaded).await {
            Ok(()) => {
                self.give_back(daemon);
                Ok(())
            }
            Err(error) => Err(daemon.explain(error).context(format!("upload to builder {}", self.builder))),
        }
    }

    /// Lets the builder fetch what it can by itself, and says what it could not.
    async fn substitute(
        self: &Arc<Self>,
        missing: &BTreeSet<StorePath>,
    ) -> anyhow::Result<BTreeSet<StorePath>> {
        let mut daemon = self.daemon().await?;
        let asked = daemon.connection.query_valid_paths(missing, Substitute::Yes);
        match timeout(SUBSTITUTE_LIMIT, asked).await {
            Ok(Ok(valid)) => {
                self.give_back(daemon);
                Ok(missing.difference(&valid).cloned().collect())
            }
            Ok(Err(error)) => {
                let error = daemon.explain(anyhow::Error::new(error));
                Err(error.context(format!("let builder {} substitute inputs", self.builder)))
            }
            // It is slower than we are.
            Err(_) => Ok(missing.clone()),
        }
    }

    async fn missing(&self, paths: &BTreeSet<StorePath>) -> anyhow::Result<BTreeSet<StorePath>> {
        self.roots.missing(paths, self).await
    }

    /// Holds what a build is about to make, so that the builds after it need not ask for it. The answer comes while it is
    /// built.
    pub(crate) fn expect(self: &Arc<Self>, outputs: &BTreeSet<StorePath>) -> Expected {
        let (this, paths) = (Arc::clone(self), outputs.clone());
        let epoch = self.presence.epoch();
        let held = self.tasks.spawn(async move { this.roots.hold(paths, &this).await });
        Expected { remote: Arc::clone(self), outputs: outputs.clone(), epoch, held }
    }

    /// Whether all these paths are still valid, whatever was known of them: there are ways to delete a path in spite of
    /// all roots. If not, nothing that was known is believed any more, here or by a daemon that has been asked before.
    pub(crate) async fn still_has(&self, paths: &BTreeSet<StorePath>) -> anyhow::Result<bool> {
        let mut daemon = self.fresh_daemon().await?;
        let asked = daemon.connection.query_valid_paths(paths, Substitute::No);
        let valid = timeout(OPEN_LIMIT, asked).await.context("there is no answer")??;
        if paths.is_subset(&valid) {
            return Ok(true);
        }
        {
            let mut state = self.lock();
            state.generation += 1;
            state.idle.clear();
        }
        self.roots.reset(&self.presence).await;
        Ok(false)
    }

    /// Ends every connection.
    pub(crate) fn close(&self) {
        self.sessions.close();
    }
}

/// Outputs of a build that runs, on their way to being held.
#[derive(Debug)]
pub(crate) struct Expected {
    remote: Arc<Remote>,
    outputs: BTreeSet<StorePath>,
    epoch: u64,
    held: JoinHandle<anyhow::Result<()>>,
}

impl Expected {
    /// The build made them, and the daemon that did has said that they are valid. It keeps them until it ends, which is
    /// later than the answer that we wait for here.
    pub(crate) fn are_valid(self) {
        let Self { remote, outputs, epoch, held } = self;
        let tasks = remote.tasks.clone();
        tasks.spawn(async move {
            // Whoever cannot hold them asks for them when they are needed.
            if matches!(held.await, Ok(Ok(()))) {
                remote.presence.add(&outputs, epoch);
            }
        });
    }
}

/// Whether every channel that the builder allows is taken.
fn is_no_room(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<ssh::OpenError>(), Some(ssh::OpenError::NoRoom))
}

fn explain(program: &ssh::Remote, error: anyhow::Error) -> anyhow::Error {
    match program.stderr_tail().trim() {
        "" => error,
        complaint => error.context(format!("the builder says: {complaint}")),
    }
}
