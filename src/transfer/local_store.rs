//! What we read from this machine's store: path infos through its daemon, derivations and contents from its files.
//!
//! Writing into it is nobody's business here: the importer does it (see the crate's documentation).

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use crate::model::{DrvPath, StorePath};
use crate::protocol::derivation::{AtermError, Derivation, file};
use crate::protocol::worker::operation::{Operation, QueryPathInfo, QueryValidPaths};
use crate::protocol::worker::{Connection, PathInfo, ProtocolError, RemoteError, Substitute};

/// Where the daemon of this machine listens.
pub const DAEMON_SOCKET: &str = "/nix/var/nix/daemon-socket/socket";

/// The longest derivation that is read: a hundred times what nixpkgs has.
const MAX_DERIVATION: u64 = 64 << 20;

/// Connections kept for the next question.
const MAX_IDLE: usize = 4;

/// How long a daemon may take to greet us and to answer: its questions are all answered from its database.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// How long to wait for a daemon that is not there, because it is being restarted, and between two looks.
const RESTART_LIMIT: Duration = Duration::from_secs(10);
const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// This machine's store.
#[derive(Debug)]
pub struct LocalStore {
    socket: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

/// Why something could not be read from the local store.
#[derive(Debug, thiserror::Error)]
pub enum LocalStoreError {
    /// Nobody listens, or we may not ask.
    #[error("connect to this machine's nix-daemon at `{socket}`")]
    Connect {
        /// Where.
        socket: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The daemon did not answer as it should.
    #[error("ask this machine's nix-daemon")]
    Daemon(#[from] ProtocolError),
    /// The daemon hangs.
    #[error("this machine's nix-daemon does not answer within {ANSWER_LIMIT:?}")]
    Silent,
    /// A path that Nix named is not valid (any more).
    #[error("`{0}` is not valid in this machine's store")]
    NotValid(StorePath),
    /// The derivation cannot be read.
    #[error("read `{drv}`")]
    Read {
        /// Which.
        drv: DrvPath,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The derivation is not one.
    #[error("parse `{drv}`")]
    Parse {
        /// Which.
        drv: DrvPath,
        /// Why.
        #[source]
        source: AtermError,
    },
}

impl LocalStoreError {
    /// Whether it is the request that is wrong, rather than this machine's daemon: trying again is of no use.
    pub fn is_final(&self) -> bool {
        match self {
            Self::NotValid(_) | Self::Read { .. } | Self::Parse { .. } => true,
            Self::Connect { .. } | Self::Daemon(_) | Self::Silent => false,
        }
    }
}

impl Default for LocalStore {
    fn default() -> Self {
        Self::new(Path::new(DAEMON_SOCKET))
    }
}

impl LocalStore {
    /// The store behind this daemon.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), idle: Mutex::default() }
    }

    /// What the store knows of these paths; one that is not valid is an error.
    pub async fn path_infos(&self, paths: &BTreeSet<StorePath>) -> Result<Vec<PathInfo>, LocalStoreError> {
        let questions: Vec<_> = paths.iter().map(QueryPathInfo).collect();
        let answers = self.ask(&questions).await?;
        let info = |(path, answer): (&StorePath, Result<Option<PathInfo>, RemoteError>)| match answer {
            Ok(Some(info)) => Ok(info),
            // Daemons before 1.17 of the protocol, and some after, say it as an error.
            Ok(None) | Err(_) => Err(LocalStoreError::NotValid(path.clone())),
        };
        paths.iter().zip(answers).map(info).collect()
    }

    /// Those of these paths that are valid.
    pub async fn valid_paths(
        &self,
        paths: &BTreeSet<StorePath>,
    ) -> Result<BTreeSet<StorePath>, LocalStoreError> {
        let answers = self.ask(&[QueryValidPaths { paths, substitute: Substitute::No }]).await?;
        match answers.into_iter().next() {
            Some(answer) => Ok(answer.map_err(ProtocolError::Remote)?),
            None => Ok(BTreeSet::new()),
        }
    }

    /// A derivation of the store.
    pub async fn derivation(&self, drv: &DrvPath) -> Result<Derivation, LocalStoreError> {
        let path = drv.as_store_path().to_path_buf();
        let read = tokio::task::spawn_blocking(move || file::read(&path, MAX_DERIVATION)).await;
        let bytes = read
            .unwrap_or_else(|died| Err(died.into()))
            .map_err(|source| LocalStoreError::Read { drv: drv.clone(), source })?;
        Derivation::parse(&bytes).map_err(|source| LocalStoreError::Parse { drv: drv.clone(), source })
    }

    /// Asks, all at once, on an idle connection if there is one. The daemon may have been restarted since that one was used, so a
    /// failure there counts for nothing: the question is asked again on a fresh one.
    async fn ask<O: Operation>(
        &self,
        questions: &[O],
    ) -> Result<Vec<Result<O::Reply, RemoteError>>, LocalStoreError> {
        let idle = self.idle.lock().pop();
        let asked = async {
            if let Some(mut connection) = idle
                && let Ok(answers) = connection.call_all(questions, &mut ()).await
            {
                return Ok((answers, connection));
            }
            let stream = self.connect().await?;
            let (reader, writer) = stream.into_split();
            let mut connection = Connection::open(Box::new(reader), Box::new(writer)).await?;
            let answers = connection.call_all(questions, &mut ()).await?;
            Ok::<_, LocalStoreError>((answers, connection))
        };
        let (answers, connection) =
            timeout(ANSWER_LIMIT, asked).await.map_err(|_| LocalStoreError::Silent)??;
        self.give_back(connection);
        Ok(answers)
    }

    /// A build waits for this and a daemon that is restarted is back in a moment.
    async fn connect(&self) -> Result<UnixStream, LocalStoreError> {
        let give_up = Instant::now() + RESTART_LIMIT;
        loop {
            match UnixStream::connect(&self.socket).await {
                Ok(stream) => return Ok(stream),
                Err(error) if is_absence(&error) && Instant::now() < give_up => sleep(RESTART_PAUSE).await,
                Err(source) => {
                    let socket = self.socket.display().to_string();
                    return Err(LocalStoreError::Connect { socket, source });
                }
            }
        }
    }

    /// Keeps a connection whose operation ended cleanly.
    fn give_back(&self, connection: Connection) {
        let mut idle = self.idle.lock();
        if connection.is_clean() && idle.len() < MAX_IDLE {
            idle.push(connection);
        }
    }
}

/// Whether nobody listens, as opposed to that we may not ask.
fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_hangs_is_an_error_after_a_while_and_one_that_is_absent_too() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let store = LocalStore::new(&socket);
        let path = StorePath::from_base_name("0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-a").unwrap();
        let paths = BTreeSet::from([path]);
        let absent = store.valid_paths(&paths).await.unwrap_err();
        assert!(matches!(absent, LocalStoreError::Connect { .. }), "{absent}");
        // Connections are taken by the kernel, and nobody ever reads them.
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let silent = store.valid_paths(&paths).await.unwrap_err();
        assert!(matches!(silent, LocalStoreError::Silent), "{silent}");
        assert!(!silent.is_final() && !absent.is_final());
    }
}
