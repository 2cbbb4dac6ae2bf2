//! A ready builder as builds see it: its daemons, and what its store is known to hold.
//!
//! Owns the idle daemons, and the single flight of uploads; the temp roots are held by [`super::roots`]. Uploads and dials
//! run in tasks of their own: a build that is cancelled takes nothing with it that others wait for. Whether the builder
//! lives is the builder task's business; which build runs here is the scheduler's.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use self::daemons::{Daemons, OPEN_LIMIT};
use super::metrics::Traffic;
use super::roots::Roots;
use super::stall::unless_stalled;
use super::wide::{self, Width};
use crate::model::{BuilderId, StorePath};
use crate::protocol::worker::Substitute;
use crate::ssh::{self, Sessions};
use crate::transfer::download::Arriving;
use crate::transfer::{Beat, Cargo, Claim, InFlight, LocalStore, Presence, download, upload};

mod daemons;

pub(crate) use self::daemons::Daemon;

/// What runs at the other end of a channel.
pub(super) const DAEMON_COMMAND: &str = "nix-daemon --stdio";

/// How long a builder may fetch inputs from its substituters before we send them.
const SUBSTITUTE_LIMIT: Duration = Duration::from_secs(30 * 60);

/// Each time.
const ROUND_TRIP_LOOKS: usize = 3;

/// See the module.
#[derive(Debug)]
pub(crate) struct Remote {
    builder: BuilderId,
    traffic: Arc<Traffic>,
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
    can_stripe: AtomicBool,
    /// The shortest that was measured: the route's own, whatever else was on it.
    round_trip: Mutex<Option<Duration>>,
}

impl Remote {
    /// A builder that these sessions lead to, for inputs from this store. What outlives a build runs among these tasks.
    pub(crate) fn new(
        builder: BuilderId,
        traffic: Arc<Traffic>,
        sessions: Sessions,
        local: Arc<LocalStore>,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            builder,
            traffic,
            sessions,
            local,
            tasks,
            presence: Presence::default(),
            roots: Roots::default(),
            daemons: Mutex::default(),
            returned: Notify::new(),
            in_use: Arc::default(),
            can_stripe: AtomicBool::new(true),
            round_trip: Mutex::default(),
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
        let context = || format!("upload to builder {}", self.builder);
        let cargo = Cargo::of(&self.local, missing).await.with_context(context)?;
        self.traffic.add_up(cargo.size());
        let beat = Beat::default();
        if let Some(width) = Width::of(self, cargo.size()).await {
            let sent = unless_stalled(&beat, wide::send(self, cargo.clone(), width, &beat)).await;
            match sent {
                Ok(()) => return Ok(()),
                Err(error) => self.avoid_stripes(&error),
            }
        }
        let mut daemon = self.daemon().await?;
        let uploaded = async {
            let uploaded = upload(&mut daemon.connection, cargo, &beat).await;
            uploaded.map_err(anyhow::Error::new)
        };
        match unless_stalled(&beat, uploaded).await {
            Ok(()) => {
                self.give_back(daemon);
                Ok(())
            }
            Err(error) => Err(daemon.explain(error).context(context())),
        }
    }

    /// Receives outputs that were asked for ahead on this daemon; large ones come in their own way. The daemon comes back
    /// unless it began to send one of those.
    pub(crate) async fn receive(
        self: &Arc<Self>,
        mut daemon: Daemon,
        arriving: Vec<Arriving>,
    ) -> anyhow::Result<Option<Daemon>> {
        let beat = Beat::default();
        let limit = Width::known(self).map_or(u64::MAX, |_| wide::WORTH_IT);
        let left = self.receive_on(&mut daemon, arriving, &beat, limit).await?;
        if left.is_empty() {
            return Ok(Some(daemon));
        }
        drop(daemon);
        let mut plain = Vec::new();
        for mut arriving in left {
            let Some(width) = Width::of(self, arriving.info.nar_size).await else {
                plain.push(arriving);
                continue;
            };
            let beat = Beat::default();
            let fetched = unless_stalled(&beat, wide::fetch(self, &mut arriving, width, &beat)).await;
            if let Err(error) = fetched {
                self.avoid_stripes(&error);
                plain.push(arriving);
            }
        }
        if plain.is_empty() {
            return Ok(None);
        }
        let mut daemon = self.daemon().await?;
        for arriving in &plain {
            daemon.connection.send_nar_from_path(&arriving.info.path)?;
        }
        self.receive_on(&mut daemon, plain, &beat, u64::MAX).await?;
        Ok(Some(daemon))
    }

    async fn receive_on(
        &self,
        daemon: &mut Daemon,
        arriving: Vec<Arriving>,
        beat: &Beat,
        limit: u64,
    ) -> anyhow::Result<Vec<Arriving>> {
        let received = async {
            let received = download::receive(&mut daemon.connection, arriving, beat, limit).await;
            received.map_err(anyhow::Error::new)
        };
        unless_stalled(beat, received).await.map_err(|error| daemon.explain(error))
    }

    /// Whether large transfers may go over several connections: not where that has failed.
    pub(super) fn can_stripe(&self) -> bool {
        self.can_stripe.load(Ordering::Relaxed)
    }

    pub(super) fn round_trip(&self) -> Option<Duration> {
        *self.round_trip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A busy machine makes a short way look long, so more than one look is taken; one that is too long still costs no
    /// more than a stream that is wider than it need be.
    pub(super) async fn measure_round_trip(&self) {
        for _ in 0..ROUND_TRIP_LOOKS {
            // A connection that is gone is noticed elsewhere.
            let Ok(measured) = self.sessions.round_trip().await else { return };
            let mut known = self.round_trip.lock().unwrap_or_else(PoisonError::into_inner);
            *known = Some(known.map_or(measured, |known| known.min(measured)));
        }
    }

    fn avoid_stripes(&self, error: &anyhow::Error) {
        let reason = super::chain(error);
        tracing::info!(builder = %self.builder, reason, "large transfers use one connection from now on");
        self.can_stripe.store(false, Ordering::Relaxed);
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

pub(super) fn explain(program: &ssh::Remote, error: anyhow::Error) -> anyhow::Error {
    match program.stderr_tail().trim() {
        "" => error,
        complaint => error.context(format!("the builder says: {complaint}")),
    }
}
