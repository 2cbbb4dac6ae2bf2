//! A ready builder as builds see it: its daemons, and what its store is known to hold.
//!
//! Owns the idle daemons, the connection that holds the temp roots, and the single flight of uploads. Uploads and dials
//! run in tasks of their own: a build that is cancelled takes nothing with it that others wait for. Whether the builder
//! lives is the builder task's business; which build runs here is the scheduler's.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::FutureExt;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

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

/// From wanting to ask which inputs are there to the answer: behind others who ask, and on a fresh connection.
const ASK_LIMIT: Duration = Duration::from_secs(150);

/// How long a builder may fetch inputs from its substituters before we send them.
const SUBSTITUTE_LIMIT: Duration = Duration::from_secs(30 * 60);

/// Daemons kept for the next build, and how long. Each is a process on the builder.
const MAX_IDLE: usize = 16;
const IDLE_LIMIT: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(crate) struct Remote {
    builder: BuilderId,
    sessions: Sessions,
    local: Arc<LocalStore>,
    tasks: TaskTracker,
    presence: Presence,
    /// Holds the temp roots of everything in `presence` for as long as it is open.
    roots: tokio::sync::Mutex<Option<Daemon>>,
    idle: Mutex<Vec<Idle>>,
    /// A daemon was given back.
    returned: Notify,
    /// Each daemon in use has a clone.
    in_use: Arc<()>,
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
    _in_use: Option<Arc<()>>,
}

impl Daemon {
    /// An error of this daemon, with what the program behind it complained about.
    pub(crate) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        explain(&self.program, error)
    }

    /// Whether it can be asked something: in step, and as far as we have heard not gone.
    fn is_usable(&self) -> bool {
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
            roots: tokio::sync::Mutex::new(None),
            idle: Mutex::default(),
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
        let mut opening = None;
        loop {
            let returned = self.returned.notified();
            tokio::pin!(returned);
            returned.as_mut().enable();
            if let Some(daemon) = self.take_idle() {
                return Ok(daemon);
            }
            tokio::select! {
                () = returned => {}
                opened = opening.get_or_insert_with(|| self.open_in_background()) => {
                    opening = None;
                    match opened.context("a task that opens a daemon was lost")? {
                        Ok(daemon) => return Ok(self.in_use(daemon)),
                        Err(error) if is_no_room(&error) && Arc::strong_count(&self.in_use) > 1 => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }

    /// Keeps a daemon whose last operation ended cleanly; any other is ended.
    pub(crate) fn give_back(&self, daemon: Daemon) {
        let daemon = Daemon { _in_use: None, ..daemon };
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if daemon.is_usable() && idle.len() < MAX_IDLE {
            idle.push(Idle { daemon, since: Instant::now() });
            drop(idle);
            self.returned.notify_one();
        }
    }

    /// Ends the daemons that nobody has used for a while; to be called now and then.
    pub(crate) fn sweep(&self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|idle| idle.since.elapsed() < IDLE_LIMIT && idle.daemon.is_usable());
    }

    fn take_idle(&self) -> Option<Daemon> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let Idle { daemon, .. } = idle.pop()?;
            // Those of a connection that was lost are all dead, and not yet swept.
            if daemon.is_usable() {
                return Some(self.in_use(daemon));
            }
        }
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

    /// Opens a daemon whatever becomes of the one who wants it; if nobody does any more, it is kept for the next.
    fn open_in_background(self: &Arc<Self>) -> oneshot::Receiver<anyhow::Result<Daemon>> {
        let (answer, opened) = oneshot::channel();
        let this = Arc::clone(self);
        self.tasks.spawn(async move {
            if let Err(Ok(unwanted)) = answer.send(this.fresh_daemon().await) {
                this.give_back(unwanted);
            }
        });
        opened
    }

    async fn fresh_daemon(&self) -> anyhow::Result<Daemon> {
        let Channel { stdin, stdout, remote: program } = self.channel().await?;
        let greeting = Connection::open(Box::new(stdout), Box::new(stdin));
        match timeout(OPEN_LIMIT, greeting).await {
            Ok(Ok(connection)) => Ok(Daemon { connection, program, _in_use: None }),
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
            // Whoever holds the lock is asking, and finds out by itself.
            if let Ok(mut roots) = self.roots.try_lock() {
                self.forget_lost(&mut roots);
            }
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
        let mut missing = self.root_and_ask(claim.paths()).await?;
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

    /// Takes temp roots for these paths, then asks which are not valid: in this order nothing can be collected between
    /// the question and its use.
    async fn root_and_ask(&self, paths: &BTreeSet<StorePath>) -> anyhow::Result<BTreeSet<StorePath>> {
        let doing = || format!("ask builder {} which inputs it has", self.builder);
        match timeout(ASK_LIMIT, self.root_and_ask_unbounded(paths)).await {
            Ok(answer) => answer.with_context(doing),
            // The connection was left in the middle of a question, and the next who asks replaces it.
            Err(_) => Err(anyhow::anyhow!("there is no answer within {ASK_LIMIT:?}")).with_context(doing),
        }
    }

    async fn root_and_ask_unbounded(
        &self,
        paths: &BTreeSet<StorePath>,
    ) -> anyhow::Result<BTreeSet<StorePath>> {
        let mut roots = self.roots.lock().await;
        self.forget_lost(&mut roots);
        let daemon = match &mut *roots {
            Some(daemon) => daemon,
            empty => empty.insert(self.fresh_daemon().await?),
        };
        let list: Vec<StorePath> = paths.iter().cloned().collect();
        let asked = async {
            daemon.connection.add_temp_roots(&list).await?;
            daemon.connection.query_valid_paths(paths, Substitute::No).await
        };
        match asked.await {
            Ok(valid) => Ok(paths.difference(&valid).cloned().collect()),
            Err(error) => {
                let error = daemon.explain(anyhow::Error::new(error));
                *roots = None;
                self.presence.forget();
                Err(error)
            }
        }
    }

    /// Whatever a lost connection held may be collected from now on.
    fn forget_lost(&self, roots: &mut Option<Daemon>) {
        if roots.as_ref().is_some_and(|daemon| !daemon.is_usable()) {
            self.presence.forget();
            *roots = None;
        }
    }

    /// Ends every connection.
    pub(crate) fn close(&self) {
        self.sessions.close();
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
