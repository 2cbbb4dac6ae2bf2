//! The `local` provider: a machine is a set of processes on this host, with its own store, reached through real SSH.
//!
//! Owns the broker's half: making a machine's directory, starting its supervisor, and making sure that nothing of a
//! machine is left, even when its supervisor was killed. The supervisor's half is [`machine`].
//!
//! Everything of a machine is in one directory, `STATE_DIR/local/ID`, and every process of it either descends from its
//! supervisor, carries its id in the environment, or serves its private address. So it can be found whole, by whoever
//! comes later. What escapes when the supervisor is killed outright is an orphan that also dropped its environment;
//! builds cannot make one, since their sandbox is a PID namespace.

mod layout;
pub mod machine;
mod processes;
mod programs;
mod remove;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::watch;

use self::layout::Layout;
use super::{Address, Launched, ProviderContext, ProviderError, ProviderErrorKind};
use crate::model::{BuilderId, Instance, InstanceId, PoolName, PoolSpec, ProviderSpec};

/// From starting the supervisor until its sshd listens.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a supervisor may take to end its machine before we do it ourselves.
const END_LIMIT: Duration = Duration::from_secs(20);
/// How long processes may take to die and files to go when we do it ourselves.
const SWEEP_LIMIT: Duration = Duration::from_secs(20);

/// What a supervisor may say about its end.
const LAST_WORDS_LIMIT: u64 = 1 << 10;

/// The machines on this host.
#[derive(Debug)]
pub struct Local {
    context: ProviderContext,
    machines: Mutex<BTreeMap<InstanceId, Machine>>,
}

/// A machine that we started.
#[derive(Debug)]
struct Machine {
    pool: PoolName,
    /// Closed, it tells the supervisor to end the machine; our own death closes it too.
    lifeline: Option<ChildStdin>,
    /// Why the supervisor ended, once it has.
    ended: watch::Receiver<Option<String>>,
}

impl Local {
    /// No machine yet.
    pub fn new(context: &ProviderContext) -> Result<Self, ProviderError> {
        let mut context = context.clone();
        let made = fs::create_dir_all(&context.state_dir).and_then(|()| context.state_dir.canonicalize());
        context.state_dir = made.map_err(|source| {
            let reason = format!("cannot use the state directory `{}`", context.state_dir.display());
            ProviderError { kind: ProviderErrorKind::Config, reason, source: Some(source) }
        })?;
        layout::check_path(&context.state_dir)?;
        Ok(Self { context, machines: Mutex::default() })
    }

    /// Makes a machine; returns when its sshd listens. Dropped in between, it leaves nothing running.
    pub async fn launch(&self, _builder: BuilderId, pool: &PoolSpec) -> Result<Launched, ProviderError> {
        let ProviderSpec::Local(spec) = &pool.provider else {
            let reason = format!("pool `{}` is not a local one", pool.name);
            return Err(ProviderError::new(ProviderErrorKind::Config, reason));
        };
        let directory = Unclaimed::create(&self.context.state_dir)?;
        let layout = {
            let (path, pool, spec) = (directory.path().to_owned(), pool.clone(), spec.clone());
            let key = self.context.client_key.clone();
            blocking(move || layout::write(&path, &pool, &spec, &key)).await?
        };
        let id = layout.id.clone();
        // Two days beyond its time: builds that run then may end, a machine that everybody forgot does not stay.
        let lifetime = pool.max_lifetime.saturating_mul(2) + Duration::from_secs(48 * 3600);
        let mut child = self.supervise(&layout, lifetime)?;
        // From here on the supervisor owns the directory, and the lifeline the supervisor.
        directory.disown();
        let lifeline = child.stdin.take();
        let started = tokio::time::timeout(START_LIMIT, started(&mut child)).await;
        let Ok(Some(words)) = started else {
            drop(lifeline);
            let log = layout::log_tail(&layout.directory);
            let _ended = tokio::time::timeout(END_LIMIT, child.wait()).await;
            self.sweep(&id).await?;
            let reason = format!("sshd of machine `{id}` does not start: {log}");
            return Err(ProviderError::new(ProviderErrorKind::Unknown, reason));
        };
        let (ended_tx, ended) = watch::channel(None);
        tokio::spawn(async move {
            let mut last_words = String::new();
            // Without any, the status says what there is to say.
            let _unread = words.take(LAST_WORDS_LIMIT).read_to_string(&mut last_words).await;
            let reason = match child.wait().await {
                Ok(status) if last_words.is_empty() => format!("its supervisor ended with {status}"),
                Ok(_) => last_words.trim().to_owned(),
                Err(error) => format!("its supervisor cannot be waited for: {error}"),
            };
            ended_tx.send_replace(Some(reason));
        });
        let instance = Instance { id: InstanceId::new(id), pool: pool.name.clone(), class: None };
        self.machines
            .lock()
            .insert(instance.id.clone(), Machine { pool: pool.name.clone(), lifeline, ended });
        let address = Address {
            host: layout.address.ip().to_string(),
            port: layout.address.port(),
            user: layout.user,
            host_keys: vec![layout.host_key],
            identity_file: None,
            // What is here is no nearer to another builder than to us.
            inner: None,
            proxy_command: None,
        };
        Ok(Launched { instance, address })
    }

    /// Ends a machine, by its supervisor or without.
    pub async fn terminate(&self, instance: &InstanceId) -> Result<(), ProviderError> {
        let ended = self.machines.lock().get_mut(instance).map(|machine| {
            machine.lifeline = None;
            machine.ended.clone()
        });
        if let Some(mut ended) = ended {
            let _in_time = tokio::time::timeout(END_LIMIT, ended.wait_for(Option::is_some)).await;
        }
        self.sweep(instance.as_str()).await?;
        self.machines.lock().remove(instance);
        Ok(())
    }

    /// The machines that we started and have not ended.
    pub fn list(&self) -> Vec<Instance> {
        let machines = self.machines.lock();
        machines
            .iter()
            .map(|(id, machine)| Instance { id: id.clone(), pool: machine.pool.clone(), class: None })
            .collect()
    }

    /// Waits for the end of a supervisor.
    pub async fn gone(&self, instance: &InstanceId) -> String {
        let ended = self.machines.lock().get(instance).map(|machine| machine.ended.clone());
        let Some(mut ended) = ended else { return "there is no such machine".to_owned() };
        let reason = ended.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.unwrap_or_else(|| "its supervisor is not watched any more".to_owned())
    }

    /// Ends every machine whose broker is dead.
    pub async fn reap_strays(&self) -> Result<usize, ProviderError> {
        let strays = {
            let root = layout::root(&self.context.state_dir);
            blocking(move || {
                layout::ids(&root).map_err(|source| {
                    ProviderError::io(format!("cannot look for machines in `{}`", root.display()), source)
                })
            })
            .await?
        };
        let mut reaped = 0;
        for id in strays {
            let directory = layout::root(&self.context.state_dir).join(&id);
            if layout::owner_lives(&directory) {
                continue;
            }
            self.sweep(&id).await?;
            reaped += 1;
        }
        Ok(reaped)
    }

    /// Starts the supervisor in a process group of its own, so that no terminal's Ctrl-C ends machines behind our back.
    fn supervise(&self, layout: &Layout, lifetime: Duration) -> Result<Child, ProviderError> {
        let log = layout::open_log(&layout.directory).map_err(|source| {
            ProviderError::io(format!("cannot write the log of machine `{}`", layout.id), source)
        })?;
        let mut command = std::process::Command::new(&self.context.broker_program);
        command
            .args(machine::arguments(layout, lifetime))
            .env_clear()
            .env("PATH", &layout.search_path)
            .env(processes::MARKER, &layout.id)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut command = Command::from(command);
        command.process_group(0).spawn().map_err(|source| {
            let program = self.context.broker_program.display();
            ProviderError::io(format!("cannot start `{program}` for machine `{}`", layout.id), source)
        })
    }

    /// Ends whatever is left of a machine, whoever started it.
    async fn sweep(&self, id: &str) -> Result<(), ProviderError> {
        let directory = layout::root(&self.context.state_dir).join(id);
        let id = id.to_owned();
        blocking(move || {
            let until = std::time::Instant::now() + SWEEP_LIMIT;
            let left = processes::end_all(&id, layout::address(&directory), None, until);
            if !left.is_empty() {
                let reason = format!("processes {left:?} of machine `{id}` do not die");
                return Err(ProviderError::new(ProviderErrorKind::Unknown, reason));
            }
            remove::remove_tree(&directory).map_err(|source| {
                ProviderError::io(
                    format!("cannot delete `{}` of machine `{id}`", directory.display()),
                    source,
                )
            })
        })
        .await
    }
}

/// Waits for the supervisor's word that sshd listens, after which it will say why it ends.
async fn started(child: &mut Child) -> Option<ChildStdout> {
    let mut stdout = child.stdout.take()?;
    let mut word = [0; machine::READY.len()];
    stdout.read_exact(&mut word).await.ok()?;
    (word == *machine::READY).then_some(stdout)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ProviderError> + Send + 'static,
) -> Result<T, ProviderError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ProviderError::new(ProviderErrorKind::Unknown, error.to_string())),
    }
}

/// A fresh directory that nobody watches over yet: deleted when the launch does not get further.
struct Unclaimed(Option<PathBuf>);

impl Unclaimed {
    fn create(state_dir: &Path) -> Result<Self, ProviderError> {
        let root = layout::root(state_dir);
        let create = || -> io::Result<PathBuf> {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
            let path = root.join(layout::fresh_id()?);
            fs::DirBuilder::new().mode(0o700).create(&path)?;
            Ok(path)
        };
        let path = create().map_err(|source| {
            ProviderError::io(format!("cannot make a machine's directory in `{}`", root.display()), source)
        })?;
        Ok(Self(Some(path)))
    }

    fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(""))
    }

    fn disown(mut self) {
        self.0 = None;
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = remove::remove_tree(path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot delete the directory of a machine that never was");
        }
    }
}
