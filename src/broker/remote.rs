//! A ready builder as builds see it: its daemons, and what its store is known to hold.
//!
//! Owns the idle daemons, the connection that holds the temp roots, and the single flight of uploads. Whether the
//! builder lives is the builder task's business; which build runs here is the scheduler's.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::time::Instant;

use crate::model::{BuilderId, StorePath};
use crate::protocol::worker::{Connection, Substitute};
use crate::ssh::{self, Channel, Sessions};
use crate::transfer::{LocalStore, Presence, upload};

/// What runs at the other end of a channel.
const DAEMON_COMMAND: &str = "nix-daemon --stdio";

/// From asking for a channel to the daemon's greeting. Builders that are full and slow links take seconds; a builder
/// that takes longer is as good as lost for this attempt.
const OPEN_DEADLINE: Duration = Duration::from_secs(60);

/// Daemons kept for the next build. Each is a process on the builder.
const MAX_IDLE: usize = 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct Remote {
    builder: BuilderId,
    sessions: Sessions,
    presence: Presence,
    /// Holds the temp roots of everything in `presence` for as long as it is open.
    roots: tokio::sync::Mutex<Option<Daemon>>,
    idle: Mutex<Vec<Daemon>>,
}

/// One `nix-daemon --stdio` on the builder, greeted.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) connection: Connection,
    program: ssh::Remote,
}

impl Daemon {
    /// An error of this daemon, with what the program behind it complained about.
    pub(crate) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        explain(&self.program, error)
    }
}

impl Remote {
    /// A builder that these sessions lead to.
    pub(crate) fn new(builder: BuilderId, sessions: Sessions) -> Self {
        Self {
            builder,
            sessions,
            presence: Presence::default(),
            roots: tokio::sync::Mutex::new(None),
            idle: Mutex::default(),
        }
    }

    /// Which builder it is.
    pub(crate) fn builder(&self) -> BuilderId {
        self.builder
    }

    /// Its connections.
    pub(crate) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// A daemon that waits for its first or next operation.
    pub(crate) async fn daemon(&self) -> anyhow::Result<Daemon> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match idle {
            Some(daemon) => Ok(daemon),
            None => self.fresh_daemon().await,
        }
    }

    /// Keeps a daemon whose last operation ended cleanly; any other is ended.
    pub(crate) fn give_back(&self, daemon: Daemon) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if daemon.connection.is_clean() && idle.len() < MAX_IDLE {
            idle.push(daemon);
        }
    }

    /// A channel to a fresh daemon that has not been greeted: for a client that speaks to it itself.
    pub(crate) async fn channel(&self) -> anyhow::Result<Channel> {
        self.sessions
            .open(DAEMON_COMMAND, Instant::now() + OPEN_DEADLINE)
            .await
            .with_context(|| format!("start a daemon on builder {}", self.builder))
    }

    async fn fresh_daemon(&self) -> anyhow::Result<Daemon> {
        let Channel { stdin, stdout, remote: program } = self.channel().await?;
        let greeting = Connection::open(Box::new(stdout), Box::new(stdin));
        match tokio::time::timeout(OPEN_DEADLINE, greeting).await {
            Ok(Ok(connection)) => Ok(Daemon { connection, program }),
            Ok(Err(error)) => Err(explain(&program, anyhow::Error::new(error)))
                .with_context(|| format!("greet the nix-daemon of builder {}", self.builder)),
            Err(_) => anyhow::bail!(
                "the nix-daemon of builder {} did not answer within {OPEN_DEADLINE:?}",
                self.builder
            ),
        }
    }

    /// Returns when all these paths are valid on the builder and kept from being collected there.
    pub(crate) async fn ensure_present(
        &self,
        local: &LocalStore,
        paths: &BTreeSet<StorePath>,
        substitute: Substitute,
    ) -> anyhow::Result<()> {
        loop {
            let (claim, in_flight) = self.presence.claim(paths);
            if claim.paths().is_empty() && in_flight.is_empty() {
                return Ok(());
            }
            let missing = self.root_and_ask(claim.paths(), substitute).await?;
            // What the missing ones refer to may be among what others bring, and has to be there before them.
            in_flight.ended().await;
            if !missing.is_empty() {
                let mut daemon = self.daemon().await?;
                if let Err(error) = upload(&mut daemon.connection, local, &missing).await {
                    let error = daemon.explain(anyhow::Error::new(error));
                    return Err(error.context(format!("upload to builder {}", self.builder)));
                }
                self.give_back(daemon);
            }
            claim.succeed();
        }
    }

    /// Takes temp roots for these paths, then asks which are not valid: in this order nothing can be collected between
    /// the question and its use.
    async fn root_and_ask(
        &self,
        paths: &BTreeSet<StorePath>,
        substitute: Substitute,
    ) -> anyhow::Result<BTreeSet<StorePath>> {
        if paths.is_empty() {
            return Ok(BTreeSet::new());
        }
        let mut roots = self.roots.lock().await;
        if !roots.as_ref().is_some_and(|daemon| daemon.connection.is_clean()) {
            // Whatever it held may be collected from now on.
            self.presence.forget();
            *roots = Some(self.fresh_daemon().await?);
        }
        let Some(daemon) = roots.as_mut() else { anyhow::bail!("no connection for temp roots") };
        let list: Vec<StorePath> = paths.iter().cloned().collect();
        let asked = async {
            daemon.connection.add_temp_roots(&list).await?;
            daemon.connection.query_valid_paths(paths, substitute).await
        };
        match asked.await {
            Ok(valid) => Ok(paths.difference(&valid).cloned().collect()),
            Err(error) => {
                let error = daemon.explain(anyhow::Error::new(error));
                *roots = None;
                self.presence.forget();
                Err(error.context(format!("ask builder {} which inputs it has", self.builder)))
            }
        }
    }

    /// Ends every connection.
    pub(crate) fn close(&self) {
        self.sessions.close();
    }
}

fn explain(program: &ssh::Remote, error: anyhow::Error) -> anyhow::Error {
    match program.stderr_tail().trim() {
        "" => error,
        complaint => error.context(format!("the builder says: {complaint}")),
    }
}
