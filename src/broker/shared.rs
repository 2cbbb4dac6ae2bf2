//! What all tasks of the broker may look at: the configured pools with their providers, the local store, and the few
//! things that are nobody's alone.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::build::Shelf;
use super::chain;
use super::direct::Neighbours;
use super::guests::Guests;
use super::lineage::Lineages;
use super::load::Looks;
use super::logs::Logs;
use super::metrics::Metrics;
use super::origins::Origins;
use crate::config::Config;
use crate::history::{History, Store};
use crate::ipc::Frame;
use crate::model::{BuildId, ClientId, DrvPath, PoolName, PoolSpec};
use crate::predict::Predictor;
use crate::provider::{Address, HostKeyPair, Provider, ProviderContext, random};
use crate::ssh::{ClientKey, HostKey, Target};
use crate::transfer::LocalStore;

/// Declines remembered for `broker why`.
const MAX_DECLINES: usize = 1_000;

/// Clients of the endpoint are counted from here; hooks are known by the process that they serve, which is a smaller number.
const FIRST_ENDPOINT_CLIENT: u64 = 1 << 32;

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    pools: Vec<Arc<PoolRuntime>>,
    pub(crate) provider_context: ProviderContext,
    /// Where logs and outputs wait for their readers, in files without a name.
    pub(crate) spool_dir: PathBuf,
    pub(crate) local_store: Arc<LocalStore>,
    pub(crate) lineages: Lineages,
    pub(crate) origins: Origins,
    pub(crate) neighbours: Arc<Neighbours>,
    pub(crate) shelf: Shelf,
    /// Builder and build tasks: the shutdown waits for them.
    pub(crate) tasks: TaskTracker,
    /// Clients with a build that was accepted: the shutdown waits until they have imported what was built.
    pub(crate) clients: TaskTracker,
    /// The status as it was last shown to those who watch, and when it was made.
    pub(crate) picture: tokio::sync::Mutex<Option<(Instant, Frame)>>,
    /// When somebody last looked at the status.
    pub(crate) looks: Looks,
    pub(crate) guests: Guests,
    pub(crate) logs: Logs,
    pub(crate) metrics: Metrics,
    pub(crate) history: History,
    foresight: Mutex<Predictor>,
    started_at: Instant,
    last_build: AtomicU64,
    last_endpoint_client: AtomicU64,
    declines: Mutex<VecDeque<(DrvPath, String)>>,
}

/// A pool with the means to run it.
#[derive(Debug)]
pub(crate) struct PoolRuntime {
    pub(crate) spec: PoolSpec,
    pub(crate) provider: Provider,
    key: ClientKey,
}

impl PoolRuntime {
    /// How to log in to an instance.
    pub(crate) fn target(&self, address: &Address) -> anyhow::Result<Target> {
        let key = match &address.identity_file {
            Some(path) => ClientKey::load(path).context("read the pool's identity file")?,
            None => self.key.clone(),
        };
        let host_keys: Result<Vec<_>, _> = address.host_keys.iter().map(|key| HostKey::parse(key)).collect();
        Ok(Target {
            address: address.host.clone(),
            port: address.port,
            user: address.user.clone(),
            host_keys: host_keys.context("read the instance's host key")?,
            key,
            proxy_command: address.proxy_command.clone(),
        })
    }
}

impl Shared {
    /// Everything the configuration asks for; makes the directories it needs.
    pub(crate) fn new(config: &Config) -> anyhow::Result<Self> {
        let spool_dir = config.state_dir.join("spool");
        std::fs::create_dir_all(&spool_dir).with_context(|| format!("create `{}`", spool_dir.display()))?;
        let key_path = config.state_dir.join("id_ed25519");
        let key = ClientKey::load_or_create(&key_path).context("read or make the broker's SSH key")?;
        // For people, who put it into `authorized_keys` of their hosts.
        let public_path = key_path.with_extension("pub");
        std::fs::write(&public_path, format!("{} nix-broker\n", key.public_openssh()))
            .with_context(|| format!("write `{}`", public_path.display()))?;
        let context = ProviderContext::new(config.state_dir.clone(), key.public_openssh(), fresh_host_key)
            .context("find the broker's own program")?;
        let provider_context = context.clone();
        let pools: anyhow::Result<Vec<_>> = config
            .pools
            .iter()
            .map(|spec| {
                let provider = Provider::for_pool(spec, &context)
                    .with_context(|| format!("set up pool `{}`", spec.name))?;
                Ok(Arc::new(PoolRuntime { spec: spec.clone(), provider, key: key.clone() }))
            })
            .collect();
        Ok(Self {
            pools: pools?,
            provider_context,
            spool_dir,
            local_store: Arc::default(),
            lineages: Lineages::default(),
            origins: Origins::default(),
            neighbours: Arc::default(),
            shelf: Shelf::default(),
            tasks: TaskTracker::new(),
            clients: TaskTracker::new(),
            picture: tokio::sync::Mutex::default(),
            looks: Looks::default(),
            guests: Guests::default(),
            logs: Logs::default(),
            metrics: Metrics::default(),
            history: open_history(&config.state_dir),
            foresight: Mutex::default(),
            started_at: Instant::now(),
            last_build: AtomicU64::new(0),
            last_endpoint_client: AtomicU64::new(FIRST_ENDPOINT_CLIENT),
            declines: Mutex::default(),
        })
    }

    /// A fresh id.
    pub(crate) fn next_build_id(&self) -> BuildId {
        BuildId(self.last_build.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// What is known of how long builds take. Held for microseconds: a verdict waits for it.
    pub(crate) fn foresight(&self) -> MutexGuard<'_, Predictor> {
        self.foresight.lock()
    }

    /// A client of the endpoint that nobody has been before.
    pub(crate) fn next_endpoint_client(&self) -> ClientId {
        ClientId(self.last_endpoint_client.fetch_add(1, Ordering::Relaxed))
    }

    /// Since the broker started.
    pub(crate) fn uptime(&self) -> Duration {
        self.started_at.elapsed()
    }

    /// All pools.
    pub(crate) fn pools(&self) -> &[Arc<PoolRuntime>] {
        &self.pools
    }

    /// A pool by name.
    pub(crate) fn runtime(&self, name: &PoolName) -> Option<Arc<PoolRuntime>> {
        self.pools.iter().find(|pool| pool.spec.name == *name).cloned()
    }

    /// A pool as configured, by the name somebody typed.
    pub(crate) fn pool(&self, name: &str) -> Option<&PoolSpec> {
        self.pools.iter().map(|pool| &pool.spec).find(|spec| spec.name.as_str() == name)
    }

    /// The names of all pools.
    pub(crate) fn pool_names(&self) -> impl Iterator<Item = &PoolName> {
        self.pools.iter().map(|pool| &pool.spec.name)
    }

    /// Remembers why a request was not accepted.
    pub(crate) fn remember_refusal(&self, drv: &DrvPath, why: String) {
        let mut declines = self.declines.lock();
        declines.retain(|(known, _)| known != drv);
        if declines.len() == MAX_DECLINES {
            declines.pop_front();
        }
        declines.push_back((drv.clone(), why));
    }

    /// Why requests that match were not accepted.
    pub(crate) fn declines_of(&self, subject: &str) -> Vec<String> {
        let declines = self.declines.lock();
        declines
            .iter()
            .filter(|(drv, _)| drv.to_string().contains(subject))
            .map(|(drv, why)| format!("{}: {why}", drv.name()))
            .collect()
    }
}

/// The history, or none: nobody's build fails for want of it.
fn open_history(state_dir: &Path) -> History {
    match Store::open(state_dir) {
        Ok(store) => History::new(store),
        Err(error) => {
            let reason = chain(&anyhow::Error::new(error));
            tracing::warn!(reason, "there is no history: builds go on, but what they cost is not remembered");
            History::none()
        }
    }
}

/// A host key for a machine that has none yet.
fn fresh_host_key() -> std::io::Result<HostKeyPair> {
    let key = crate::ssh::HostKeyPair::generate().map_err(std::io::Error::other)?;
    Ok(HostKeyPair { private: key.private_openssh_pem.clone(), public: key.public_openssh.clone() })
}

/// A token that nobody can guess: 128 bits from the kernel.
pub(crate) fn fresh_token() -> anyhow::Result<String> {
    random::token().context("read random bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::HistoryError;

    #[tokio::test]
    async fn a_history_that_cannot_be_opened_is_none_and_no_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("history.sqlite")).unwrap();
        let history = open_history(dir.path());
        assert!(matches!(history.ask(|store| store.builds(1, None)).await, Err(HistoryError::None)));
    }
}
