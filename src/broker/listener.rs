//! The Unix socket, our own or one that systemd keeps for us: accepts connections, learns who is there, and hands each to
//! the task of its role.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::driver::DriverHandle;
use super::{Shared, endpoint_client, hook_client, operator_client};
use crate::ipc::{Frame, FrameError, Hello, Reply, VERSION};
use crate::model::store_path::STORE_DIR;

/// How long a fresh connection may take to say what it is for.
const HELLO_DEADLINE: std::time::Duration = std::time::Duration::from_secs(10);

/// How long to wait after an accept failed (no file descriptors left, say) before the next.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// Who is at the other end, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Root, or the user the broker runs as: may do everything.
    Owner,
    /// Whoever owns this machine's store (single-user Nix): its hooks may ask.
    StoreOwner,
    /// Anybody else on this machine: may watch. A hook names inputs that nobody checks, so one of his could spoil outputs
    /// on builders that others get theirs from.
    User,
}

/// A socket that the service manager listens at for us: hooks can connect to it before we run, between two of us, and
/// while we start, and are served when we are ready.
#[derive(Debug)]
pub struct Activation(std::os::unix::net::UnixListener);

impl Activation {
    /// The one that was handed to this process, if one was. To be called before there are other threads: it takes the
    /// variables that say so out of the environment, which is our children's too.
    pub fn from_environment() -> anyhow::Result<Option<Self>> {
        let mut handed = listenfd::ListenFd::from_env();
        if handed.len() > 1 {
            bail!("the service manager hands over {} sockets: the broker has one", handed.len());
        }
        if handed.len() == 0 {
            return Ok(None);
        }
        let listener = handed.take_unix_listener(0).context("take the service manager's socket over")?;
        let Some(listener) = listener else { return Ok(None) };
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::CLOEXEC)
            .context("keep the service manager's socket from children")?;
        listener.set_nonblocking(true).context("take the service manager's socket over")?;
        Ok(Some(Self(listener)))
    }
}

/// Where connections come in.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    /// The file to remove at the end: the service manager's is not ours to remove.
    own: Option<PathBuf>,
}

impl Listener {
    /// Takes the service manager's socket, or makes one.
    pub(crate) async fn open(path: &Path, activation: Option<Activation>) -> anyhow::Result<Self> {
        let Some(Activation(handed)) = activation else {
            return Ok(Self { socket: bind(path).await?, own: Some(path.to_owned()) });
        };
        let address = handed.local_addr().context("ask where the service manager listens")?;
        match address.as_pathname() {
            Some(theirs) if theirs == path => {}
            Some(theirs) => bail!(
                "the service manager listens at `{}`, and the configuration says `{}`: make `ListenStream=` of \
                 nix-broker.socket and `socket` the same, and start both again",
                theirs.display(),
                path.display()
            ),
            None => bail!(
                "the service manager's socket has no path: give nix-broker.socket `ListenStream={}`",
                path.display()
            ),
        }
        Ok(Self {
            socket: UnixListener::from_std(handed).context("listen at the service manager's socket")?,
            own: None,
        })
    }

    /// Whether the service manager keeps it.
    pub(crate) fn is_activated(&self) -> bool {
        self.own.is_none()
    }

    /// Accepts until told to stop. Returns the socket's file if it is ours: no successor can have made its own before it
    /// is gone.
    pub(crate) async fn run(
        self,
        shared: Arc<Shared>,
        driver: DriverHandle,
        stop: CancellationToken,
    ) -> Option<PathBuf> {
        accept(&self.socket, shared, driver, stop).await;
        self.own
    }
}

/// Makes the socket, and takes the place of one that a dead broker left.
pub(super) async fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("create `{}`", dir.display()))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            bail!("`{}` exists and is no socket", path.display());
        }
        Ok(_) if UnixStream::connect(path).await.is_ok() => {
            bail!("another broker answers at `{}`; stop it first", path.display());
        }
        Ok(_) => std::fs::remove_file(path).with_context(|| format!("remove stale `{}`", path.display()))?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listen at `{}`", path.display()))?;
    // Hooks of single-user Nix run as their users; what each peer may do is decided by its credentials.
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o666))
        .with_context(|| format!("open `{}` to all users", path.display()))?;
    Ok(listener)
}

async fn accept(listener: &UnixListener, shared: Arc<Shared>, driver: DriverHandle, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let (shared, driver) = (Arc::clone(&shared), driver.clone());
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, shared, driver).await {
                        tracing::debug!(error = %crate::broker::chain(&error), "client");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(mut stream: UnixStream, shared: Arc<Shared>, driver: DriverHandle) -> anyhow::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let peer = peer(uid);
    let _seat = match peer {
        Peer::User => {
            Some(shared.guests.admit(uid).with_context(|| format!("user {uid} has too many connections"))?)
        }
        Peer::Owner | Peer::StoreOwner => None,
    };
    let hello: Hello = match tokio::time::timeout(HELLO_DEADLINE, Frame::receive(&mut stream)).await {
        Ok(Err(FrameError::Closed)) => return Ok(()),
        Ok(frame) => frame?.parse()?,
        Err(_) => bail!("a client said nothing"),
    };
    if hello.version() != VERSION {
        let why = format!(
            "the client speaks version {} and the broker version {VERSION}; restart the broker after an upgrade",
            hello.version()
        );
        return refuse(&mut stream, why).await;
    }
    match (hello, peer) {
        (Hello::Hook { .. }, Peer::User) => {
            let why = "hooks are run by root or by the owner of the store".to_owned();
            refuse(&mut stream, why).await
        }
        (Hello::Hook { .. }, Peer::Owner | Peer::StoreOwner) => {
            Frame::message(&Reply::Go)?.send(&mut stream).await?;
            hook_client::serve(stream, &shared, &driver).await
        }
        (Hello::Operator { .. }, peer) => {
            Frame::message(&Reply::Go)?.send(&mut stream).await?;
            operator_client::serve(stream, peer, &shared, &driver).await
        }
        (Hello::Import { token, .. }, _) => match shared.shelf.get(&token) {
            // The hook's end is the end of its importer, even if that was not killed with it.
            Some(shelved) => tokio::select! {
                served = endpoint_client::import(stream, &shelved.products) => served,
                () = shelved.taken_away.cancelled() => Ok(()),
            },
            None => refuse(&mut stream, "no finished build waits under this token".to_owned()).await,
        },
        (Hello::Store { .. }, Peer::Owner) => endpoint_client::store(stream, &shared, &driver).await,
        (Hello::Relay { pool, .. }, Peer::Owner) => {
            endpoint_client::relay(stream, &pool, &shared, &driver).await
        }
        // Whoever writes to a builder's store decides what everybody's builds there are made of.
        (Hello::Store { .. } | Hello::Relay { .. }, Peer::StoreOwner | Peer::User) => {
            let why = "only root and the broker's own user may use it as a store".to_owned();
            refuse(&mut stream, why).await
        }
    }
}

async fn refuse(stream: &mut UnixStream, why: String) -> anyhow::Result<()> {
    Ok(Frame::message(&Reply::Refused { why })?.send(stream).await?)
}

fn peer(uid: u32) -> Peer {
    let owns_store = || std::fs::metadata(STORE_DIR).is_ok_and(|store| store.uid() == uid);
    if uid == 0 || uid == rustix::process::geteuid().as_raw() {
        Peer::Owner
    } else if owns_store() {
        Peer::StoreOwner
    } else {
        Peer::User
    }
}
