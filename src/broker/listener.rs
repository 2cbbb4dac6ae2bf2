//! The Unix socket, our own or one that systemd keeps for us: accepts connections, learns who is there, and hands each to
//! the task of its role.
//!
//! All of Nix stands still until its hook is answered, so this has a thread that does nothing else: the workers of the main
//! runtime may all be at a piece of an archive. Hooks stay here until they are accepted; whoever needs more than an answer
//! goes to the main runtime.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
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
    socket: std::os::unix::net::UnixListener,
    /// The file to remove at the end: the service manager's is not ours to remove.
    own: Option<PathBuf>,
}

impl Listener {
    /// Takes the service manager's socket, or makes one.
    pub(crate) async fn open(path: &Path, activation: Option<Activation>) -> anyhow::Result<Self> {
        let Some(Activation(handed)) = activation else {
            let socket = bind(path).await?.into_std().context("listen on a thread of its own")?;
            return Ok(Self { socket, own: Some(path.to_owned()) });
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
        Ok(Self { socket: handed, own: None })
    }

    /// Whether the service manager keeps it.
    pub(crate) fn is_activated(&self) -> bool {
        self.own.is_none()
    }

    /// Accepts until told to stop. Answers then, with the socket's file if it is ours: no successor can have made its own
    /// before it is gone.
    pub(crate) fn start(
        self,
        shared: Arc<Shared>,
        driver: DriverHandle,
        stop: CancellationToken,
    ) -> anyhow::Result<oneshot::Receiver<Option<PathBuf>>> {
        let desk = Desk { shared, driver, main: Handle::current() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("start the listener's runtime")?;
        let socket = {
            let _inside = runtime.enter();
            UnixListener::from_std(self.socket).context("listen on a thread of its own")?
        };
        let (ended, end) = oneshot::channel();
        let listen = move || {
            runtime.block_on(accept(&socket, desk, stop));
            // Whoever waited has gone only if the broker is dying.
            let _unheard = ended.send(self.own);
        };
        std::thread::Builder::new()
            .name("listener".to_owned())
            .spawn(listen)
            .context("start the listener")?;
        Ok(end)
    }
}

/// What it takes to serve whoever comes.
#[derive(Clone, Debug)]
struct Desk {
    shared: Arc<Shared>,
    driver: DriverHandle,
    /// Where whatever is no verdict runs.
    main: Handle,
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

async fn accept(listener: &UnixListener, desk: Desk, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let desk = desk.clone();
                tokio::spawn(async move { trace(desk.receive(stream).await) });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// How a client ended is nobody's business but who looks for a defect.
fn trace(served: anyhow::Result<()>) {
    if let Err(error) = served {
        tracing::debug!(error = %crate::broker::chain(&error), "client");
    }
}

impl Desk {
    /// Learns who is there, and what for.
    async fn receive(self, mut stream: UnixStream) -> anyhow::Result<()> {
        let uid = stream.peer_cred()?.uid();
        let peer = peer(uid);
        let seat = match peer {
            Peer::User => {
                let seat = self.shared.guests.admit(uid);
                Some(seat.with_context(|| format!("user {uid} has too many connections"))?)
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
            (Hello::Hook { .. }, Peer::Owner | Peer::StoreOwner) => {
                Frame::message(&Reply::Go)?.send(&mut stream).await?;
                let decided = hook_client::decide(&mut stream, uid, &self.shared, &self.driver).await?;
                let Some(accepted) = decided else { return Ok(()) };
                let Self { shared, main, .. } = self;
                hand_over(&main, stream, move |stream| async move { accepted.serve(stream, &shared).await })
            }
            (hello, peer) => {
                let main = self.main.clone();
                hand_over(&main, stream, move |stream| async move {
                    let _seat = seat;
                    self.serve(hello, peer, stream).await
                })
            }
        }
    }

    /// Serves whoever wants more than a verdict.
    async fn serve(&self, hello: Hello, peer: Peer, mut stream: UnixStream) -> anyhow::Result<()> {
        let (shared, driver) = (&self.shared, &self.driver);
        match (hello, peer) {
            (Hello::Hook { .. }, _) => {
                refuse(&mut stream, "hooks are run by root or by the owner of the store".to_owned()).await
            }
            (Hello::Operator { .. }, peer) => {
                Frame::message(&Reply::Go)?.send(&mut stream).await?;
                operator_client::serve(stream, peer, shared, driver).await
            }
            (Hello::Import { token, .. }, _) => match shared.shelf.get(&token) {
                // The hook's end is the end of its importer, even if that was not killed with it.
                Some(shelved) => tokio::select! {
                    served = endpoint_client::import(stream, &shelved.products) => served,
                    () = shelved.taken_away.cancelled() => Ok(()),
                },
                None => refuse(&mut stream, "no finished build waits under this token".to_owned()).await,
            },
            (Hello::Store { .. }, Peer::Owner) => endpoint_client::store(stream, shared, driver).await,
            (Hello::Relay { pool, .. }, Peer::Owner) => {
                endpoint_client::relay(stream, &pool, shared, driver).await
            }
            // Whoever writes to a builder's store decides what everybody's builds there are made of.
            (Hello::Store { .. } | Hello::Relay { .. }, Peer::StoreOwner | Peer::User) => {
                let why = "only root and the broker's own user may use it as a store".to_owned();
                refuse(&mut stream, why).await
            }
        }
    }
}

/// Moves a client to the main runtime.
fn hand_over<F>(
    main: &Handle,
    stream: UnixStream,
    serve: impl FnOnce(UnixStream) -> F + Send + 'static,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>> + Send,
{
    // Each runtime hears of its own sockets only.
    let stream = stream.into_std()?;
    main.spawn(async move {
        trace(match UnixStream::from_std(stream) {
            Ok(stream) => serve(stream).await,
            Err(error) => Err(error.into()),
        });
    });
    Ok(())
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::broker::driver::Driver;
    use crate::config::{self, Defaults};
    use crate::ipc::{HookReply, HookRequest, Message};
    use crate::model::System;
    use crate::scheduler::Fleet;

    fn say(stream: &mut UnixStream, message: &impl Message) {
        Frame::message(message).unwrap().write(stream).unwrap();
    }

    fn hear<T: Message>(stream: &mut UnixStream) -> T {
        Frame::read(stream).unwrap().parse().unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_verdict_does_not_wait_for_what_the_main_runtime_does() {
        let dir = tempfile::tempdir().unwrap();
        let defaults =
            Defaults { system: System::new("x86_64-linux"), processors: 1, state_dir: dir.path().to_owned() };
        let pool = "[[pool]]\nname = \"p\"\n[pool.local]\n";
        let config = config::parse(pool, &defaults, &|path| std::fs::read_to_string(path)).unwrap();
        let shared = Arc::new(Shared::new(&config).unwrap());
        let (_driver, handle) =
            Driver::new(Fleet::new(config.pools.clone(), Instant::now()), Arc::clone(&shared));
        let (path, stop) = (dir.path().join("socket"), CancellationToken::new());
        let listener = Listener::open(&path, None).await.unwrap();
        let end = listener.start(shared, handle, stop.clone()).unwrap();

        // Its only worker is at something that ends when the hook has its answer.
        let ((began, is_busy), (answered, is_answered)) = (mpsc::channel(), mpsc::channel::<()>());
        let busy = tokio::spawn(async move {
            began.send(()).unwrap();
            is_answered.recv().unwrap();
        });
        is_busy.recv().unwrap();
        let mut hook = UnixStream::connect(&path).unwrap();
        hook.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        say(&mut hook, &Hello::Hook { version: VERSION });
        assert!(matches!(hear(&mut hook), Reply::Go));
        let drv = "/nix/store/00000000000000000000000000000000-a.drv";
        let ask = serde_json::json!({
            "drv": drv, "system": "riscv64-netbsd", "features": [], "am-willing": true, "timeout": 0,
            "max-silent-time": 0, "cores": 0, "keep-failed": false, "use-substitutes": false, "max-log-size": 0,
        });
        say(&mut hook, &HookRequest::Ask(serde_json::from_value(ask).unwrap()));
        assert!(matches!(hear(&mut hook), HookReply::Decline { .. }));
        answered.send(()).unwrap();
        busy.await.unwrap();

        stop.cancel();
        assert_eq!(end.await.unwrap(), Some(path));
    }
}
