//! A ready builder as builds see it: its daemons, and what its store is known to hold.
//!
//! Owns the idle daemons, and the single flight of uploads; the temp roots are held by [`super::roots`]. Uploads and dials
//! run in tasks of their own: a build that is cancelled takes nothing with it that others wait for. Whether the builder
//! lives is the builder task's business; which build runs here is the scheduler's.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use self::daemons::{Daemons, OPEN_LIMIT};
use self::link::Link;
use super::direct::{self, Door};
use super::metrics::Traffic;
use super::roots::Roots;
use super::stall::unless_stalled;
use super::wide::{self, Width};
use crate::model::{BuilderId, Delivery, Share, StorePath};
use crate::protocol::worker::operation::{QueryValidPaths, SetOptions};
use crate::protocol::worker::{ClientOptions, Substitute};
use crate::ssh::{self, Sessions};
use crate::transfer::direct::Parts;
use crate::transfer::download::Arriving;
use crate::transfer::{Beat, Cargo, Claim, InFlight, LocalStore, Presence, download, upload};

mod daemons;
mod link;

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
    /// How other builders of ours come here; without it they do not, and give nothing.
    pub(super) door: Option<Door>,
    /// Keeps what is in `presence` from being collected.
    roots: Roots,
    daemons: Mutex<Daemons>,
    /// A daemon was given back or opened, or cannot be opened.
    returned: Notify,
    /// Each daemon in use has a clone.
    in_use: Arc<()>,
    link: Link,
}

impl Remote {
    /// A builder that these sessions lead to, for inputs from this store. What outlives a build runs among these tasks.
    pub(crate) fn new(
        builder: BuilderId,
        traffic: Arc<Traffic>,
        sessions: Sessions,
        local: Arc<LocalStore>,
        tasks: TaskTracker,
        door: Option<Door>,
    ) -> Self {
        Self {
            builder,
            traffic,
            sessions,
            local,
            tasks,
            presence: Presence::default(),
            door,
            roots: Roots::default(),
            daemons: Mutex::default(),
            returned: Notify::new(),
            in_use: Arc::default(),
            link: Link::default(),
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

    /// What is known of the way there.
    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// Notices what it holds no longer.
    pub(super) fn look(&self) {
        self.roots.look(&self.presence);
    }

    /// It counts as used as long as this lives.
    pub(super) fn occupy(&self) -> impl Send + use<> {
        Arc::clone(&self.in_use)
    }

    /// Its connections.
    pub(crate) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Returns when all these paths are valid on the builder and kept from being collected there; says where they came from.
    pub(crate) async fn ensure_present(
        self: &Arc<Self>,
        paths: &BTreeSet<StorePath>,
        substitute: Substitute,
    ) -> anyhow::Result<Delivery> {
        let all = paths.len() as u64;
        let (mut delivery, mut known) = (Delivery::default(), None);
        loop {
            self.look();
            let (claim, in_flight) = self.presence.claim(paths);
            // Known from the start; whatever is neither that nor claimed here in the end came for others.
            let known = *known.get_or_insert(all - (claim.paths().len() + in_flight.count()) as u64);
            if claim.paths().is_empty() {
                if in_flight.is_empty() {
                    // A connection that was lost meanwhile made us ask for some again: each path counts once.
                    let rest = all.saturating_sub(delivery.paths());
                    delivery.held += known.min(rest);
                    delivery.shared = rest.saturating_sub(known);
                    return Ok(delivery);
                }
                in_flight.arrived().await;
                continue;
            }
            let _wish = claim.wish();
            let this = Arc::clone(self);
            let bringing =
                self.tasks.spawn(async move { this.carry_out(claim, in_flight, substitute).await });
            delivery.add(bringing.await.context("an upload was lost to a defect of the broker")??);
        }
    }

    /// Makes the claimed paths present, and says where each came from; nothing of it if what they refer to did not come.
    /// Goes on as long as any build waits for them.
    async fn carry_out(
        self: &Arc<Self>,
        mut claim: Claim,
        in_flight: InFlight,
        substitute: Substitute,
    ) -> anyhow::Result<Delivery> {
        let mut missing = self.missing(claim.paths()).await?;
        let held = (claim.paths().len() - missing.len()) as u64;
        let mut delivery = Delivery { held, ..Delivery::default() };
        if substitute == Substitute::Yes && !missing.is_empty() {
            tokio::select! {
                left = self.substitute(&missing) => {
                    let left = left?;
                    delivery.substituted = (missing.len() - left.len()) as u64;
                    missing = left;
                }
                () = claim.abandoned() => bail!("no build waits for these inputs any more"),
            }
        }
        // What the missing ones refer to may be among what others bring, and has to be there before them.
        if !in_flight.arrived().await {
            // It is not: the next claim has that in it too.
            return Ok(Delivery::default());
        }
        if !missing.is_empty() {
            let abandoned = claim.abandoned();
            tokio::select! {
                uploaded = self.upload_all(&missing, &mut claim) => delivery.add(uploaded?),
                () = abandoned => bail!("no build waits for these inputs any more"),
            }
        }
        claim.succeed();
        Ok(delivery)
    }

    /// Makes another builder send what it has, if that is sooner here; sends the rest.
    async fn upload_all(
        self: &Arc<Self>,
        missing: &BTreeSet<StorePath>,
        claim: &mut Claim,
    ) -> anyhow::Result<Delivery> {
        let cargo = Cargo::of(&self.local, missing).await;
        let mut cargo = cargo.with_context(|| format!("upload to builder {}", self.builder))?;
        let mut delivery = Delivery::default();
        while let Some((from, paths)) = direct::source_for(self, &cargo).await {
            let Parts { before, direct, after } = cargo.around(&paths);
            let paths_before = before.paths();
            delivery.home.add(Box::pin(self.send_all(before, claim)).await?);
            claim.succeed_in_part(&paths_before);
            match Box::pin(direct::bring(self, &from, direct.clone())).await {
                Ok(()) => {
                    let share = direct.share();
                    self.traffic.add_direct(share.bytes);
                    delivery.add_of(from.builder(), share);
                    claim.succeed_in_part(&direct.paths());
                    cargo = after;
                }
                Err(error) => {
                    direct::keep_apart(self, &from, &error);
                    // Some of it may have come.
                    let missing = self.missing(&direct.paths()).await?;
                    let share = direct.clone().without(&missing).share();
                    self.traffic.add_direct_in_part(share.bytes);
                    delivery.add_of(from.builder(), share);
                    cargo = direct.only_then(&missing, after);
                }
            }
        }
        delivery.home.add(Box::pin(self.send_all(cargo, claim)).await?);
        Ok(delivery)
    }

    /// Sends paths; when some are huge, the others first, for builds that want no more than those.
    async fn send_all(self: &Arc<Self>, cargo: Cargo, claim: &mut Claim) -> anyhow::Result<Share> {
        let share = cargo.share();
        if cargo.is_empty() {
            return Ok(share);
        }
        let (small, huge) = cargo.split(wide::worth_it(self));
        // What was missing and has arrived is held by the roots that were taken before the question.
        if huge.size() > 0 && small.size() > 0 {
            let paths = small.paths();
            self.upload(small).await?;
            claim.succeed_in_part(&paths);
            self.upload(huge).await?;
        } else {
            self.upload(if huge.size() > 0 { huge } else { small }).await?;
        }
        Ok(share)
    }

    /// Sends all of it.
    async fn upload(self: &Arc<Self>, cargo: Cargo) -> anyhow::Result<()> {
        let context = || format!("upload to builder {}", self.builder);
        let (size, beat) = (cargo.size(), Beat::default());
        self.traffic.add_up(size);
        if let Some(width) = Width::of(self, size).await {
            let sent = unless_stalled(&beat, wide::send(self, cargo.clone(), width, &beat)).await;
            if self.went_well(sent) {
                return Ok(());
            }
        }
        let mut daemon = self.daemon_for(size).await?;
        let began = Instant::now();
        let uploaded = async {
            let uploaded = upload(&mut daemon.connection, cargo, &beat).await;
            uploaded.map_err(anyhow::Error::new)
        };
        match unless_stalled(&beat, uploaded).await {
            Ok(()) => {
                self.link.note_pace(size, began.elapsed());
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
        let limit = wide::worth_it(self);
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
            if !self.went_well(fetched) {
                plain.push(arriving);
            }
        }
        if plain.is_empty() {
            return Ok(None);
        }
        let size = plain.iter().map(|arriving| arriving.info.nar_size).fold(0, u64::saturating_add);
        let mut daemon = self.daemon_for(size).await?;
        for arriving in &plain {
            daemon.connection.send_nar_from_path(&arriving.info.path)?;
        }
        let began = Instant::now();
        self.receive_on(&mut daemon, plain, &beat, u64::MAX).await?;
        self.link.note_pace(size, began.elapsed());
        Ok(Some(daemon))
    }

    /// A daemon for a transfer of so many bytes: what is large has a connection without small ones.
    async fn daemon_for(self: &Arc<Self>, size: u64) -> anyhow::Result<Daemon> {
        if size >= wide::worth_it(self) {
            match self.bulk_daemon().await {
                Ok(daemon) => return Ok(daemon),
                // A builder that takes no more connections; slower for others is better than not at all.
                Err(error) => {
                    let reason = super::chain(&error);
                    tracing::debug!(builder = %self.builder, reason, "a large transfer has no connection of its own");
                }
            }
        }
        self.daemon().await
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

    /// A busy machine makes a short way look long, so more than one look is taken; one that is too long still costs no
    /// more than a stream that is wider than it need be.
    pub(super) async fn measure_round_trip(&self) {
        for _ in 0..ROUND_TRIP_LOOKS {
            // A connection that is gone is noticed elsewhere.
            let Ok(measured) = self.sessions.round_trip().await else { return };
            self.link.note_round_trip(measured);
        }
    }

    /// Whether a transfer over several connections went well, which the next ones go by.
    fn went_well(&self, striped: anyhow::Result<()>) -> bool {
        let Err(error) = striped else {
            self.link.note_stripes();
            return true;
        };
        let (reason, rest) = (super::chain(&error), self.link.note_failed_stripes());
        tracing::info!(builder = %self.builder, reason, ?rest, "large transfers use one connection for a while");
        false
    }

    /// Lets the builder fetch what it can by itself, and says what it could not.
    async fn substitute(
        self: &Arc<Self>,
        missing: &BTreeSet<StorePath>,
    ) -> anyhow::Result<BTreeSet<StorePath>> {
        let mut daemon = self.daemon().await?;
        // A daemon that did a build whose client did not allow it would still obey that one.
        let options = ClientOptions { use_substitutes: true, ..ClientOptions::default() };
        let (set_options, question) =
            (SetOptions(&options), QueryValidPaths { paths: missing, substitute: Substitute::Yes });
        let asked = async {
            let connection = &mut daemon.connection;
            connection.send(&set_options)?;
            connection.send(&question)?;
            connection.receive(&set_options, &mut ()).await?;
            connection.receive(&question, &mut ()).await
        };
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
        self.let_go().await;
        Ok(false)
    }

    /// Nothing is held there any more, and nothing that was known is believed, here or by a daemon that has been asked
    /// before.
    pub(crate) async fn let_go(&self) {
        {
            let mut state = self.daemons.lock();
            state.generation += 1;
            state.idle.clear();
        }
        self.roots.reset(&self.presence).await;
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
