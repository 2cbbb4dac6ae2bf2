//! Everything this broker has on EC2, over all its pools: one poller, one set of records, one sweep.
//!
//! Owns what is known, and who may change it. The looks are made in [`super::watch`],
//! how an instance comes to be is in [`super::launch`], how it ends in [`super::retire`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

use super::api::{Api, ApiError, InstanceState, Observed};
use super::expiry::{self, Expiry, Refusal, Terms};
use super::records::{IntentId, Record, Records, Site, Stage};
use crate::model::{Ec2Spec, PoolSpec};
use crate::provider::{ProviderContext, ProviderError};

/// An instance whose broker has not renewed this for so long belongs to a broker that is gone.
pub(super) const EXPIRES_AFTER: Duration = Duration::from_secs(60 * 60);

/// The time of day; a test gives its own.
#[derive(Clone)]
pub struct WallClock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WallClock({})", self.unix())
    }
}

impl WallClock {
    /// A clock that says this.
    pub fn new(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// Seconds since 1970.
    pub(super) fn unix(&self) -> u64 {
        (self.0)().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }
}

/// Profile and region, as far as a pool names them.
type Wanted = (Option<String>, Option<String>);

/// How to get at EC2; a test gives its own.
pub trait Connect: Send + Sync {
    /// A client for one site, or for the region that every AWS tool would use.
    fn connect<'a>(
        &'a self,
        profile: Option<&'a str>,
        region: Option<&'a str>,
    ) -> Pin<Box<dyn Future<Output = Result<Api, ApiError>> + Send + 'a>>;
}

/// What a look, when it finds the instance of a launch that nobody heard the answer of, does with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finds {
    /// Its pool takes it over.
    Adopt,
    /// Nobody waits for it: it is ended.
    End,
}

/// Everything this broker has on EC2.
pub struct Estate {
    state: Mutex<State>,
    connect: Box<dyn Connect>,
    clients: tokio::sync::Mutex<BTreeMap<Wanted, Api>>,
    clock: WallClock,
    /// Counts the looks: whoever waits for a change waits for the next.
    pub(super) looks: watch::Sender<u64>,
    pub(super) hurry: Notify,
    /// There is something to do about the end of an instance by AWS itself.
    pub(super) errand: Notify,
    settled: tokio::sync::OnceCell<()>,
    /// Held by whoever makes the looks.
    pub(super) watch: tokio::sync::Mutex<()>,
}

pub(super) struct State {
    pub(super) records: Records,
    pub(super) in_flight: BTreeSet<IntentId>,
    pub(super) claimed: BTreeSet<IntentId>,
    pub(super) misses: BTreeMap<IntentId, u32>,
    pub(super) shown: BTreeMap<String, Observed>,
    pub(super) ended: BTreeMap<String, String>,
    /// What the last look at a site failed with: said once.
    pub(super) blind: BTreeMap<Site, String>,
    pub(super) sites: BTreeSet<Site>,
    /// Launches of an earlier broker that nobody has taken over yet.
    inherited: BTreeSet<IntentId>,
    /// Pools that launch where every AWS tool would; known as sites once that region is.
    pub(super) profiles: BTreeSet<Option<String>>,
    pools: BTreeSet<String>,
    /// Of the pools whose instances AWS itself ends when they are too old.
    pub(super) terms: BTreeMap<String, Terms>,
    /// Launches of which nothing is left but their record, and what AWS was asked to do.
    pub(super) over: BTreeSet<IntentId>,
    /// Where AWS would not.
    pub(super) refused: BTreeMap<IntentId, Refusal>,
    pub(super) renewed_at: u64,
}

impl State {
    /// Puts a launch into another stage, with what follows for its end; whether there is something to do about that.
    fn advance(&mut self, intent: &IntentId, stage: Stage, now: u64) -> io::Result<bool> {
        let expiry = self
            .records
            .get(intent)
            .and_then(|record| expiry::on_advance(&record.stage, &stage, self.terms.get(&record.pool), now));
        let has_errand = matches!(expiry, Some(Expiry::Wanted { .. }));
        self.records.advance(intent, stage, expiry).map(|()| has_errand)
    }
}

impl fmt::Debug for Estate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Estate").field("records", &self.state().records).finish_non_exhaustive()
    }
}

/// Says that a launch, a start or a stop is under way: what a look sees of it means nothing yet. Ends when dropped.
#[must_use]
pub(super) struct Flight<'a> {
    estate: &'a Estate,
    intent: IntentId,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.estate.state().in_flight.remove(&self.intent);
    }
}

impl Estate {
    /// What an earlier broker with this directory has left, and nothing looked at yet.
    pub fn open(state_dir: &Path, connect: Box<dyn Connect>, clock: WallClock) -> io::Result<Self> {
        let (records, unreadable) = Records::open(state_dir)?;
        for file in unreadable {
            tracing::error!(
                path = %file.path.display(), reason = file.reason,
                "cannot read a launch record; if it has an instance, that will be terminated"
            );
        }
        let inherited = records.iter().map(|record| record.intent.clone()).collect();
        let state = State {
            sites: records.sites().clone(),
            records,
            in_flight: BTreeSet::new(),
            claimed: BTreeSet::new(),
            misses: BTreeMap::new(),
            shown: BTreeMap::new(),
            ended: BTreeMap::new(),
            blind: BTreeMap::new(),
            inherited,
            profiles: BTreeSet::new(),
            pools: BTreeSet::new(),
            terms: BTreeMap::new(),
            over: BTreeSet::new(),
            refused: BTreeMap::new(),
            renewed_at: 0,
        };
        Ok(Self {
            state: Mutex::new(state),
            connect,
            clients: tokio::sync::Mutex::default(),
            clock,
            looks: watch::Sender::new(0),
            hurry: Notify::new(),
            errand: Notify::new(),
            settled: tokio::sync::OnceCell::new(),
            watch: tokio::sync::Mutex::default(),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The value of [`super::tags::BROKER_TAG`].
    pub(super) fn broker(&self) -> String {
        self.state().records.broker().to_owned()
    }

    /// Seconds since 1970.
    pub(super) fn now(&self) -> u64 {
        self.clock.unix()
    }

    /// A client for this profile and region; `None` is what every AWS tool would use.
    pub(super) async fn client(&self, profile: Option<&str>, region: Option<&str>) -> Result<Api, ApiError> {
        let key = (profile.map(str::to_owned), region.map(str::to_owned));
        let mut clients = self.clients.lock().await;
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = self.connect.connect(profile, region).await?;
        clients.insert(key, client.clone());
        Ok(client)
    }

    /// A client for this site.
    pub(super) async fn client_of(&self, site: &Site) -> Result<Api, ApiError> {
        self.client(site.profile.as_deref(), Some(&site.region)).await
    }

    /// This pool is configured: what an earlier broker had for it is taken over, and where it launches is looked at.
    pub(super) fn include(&self, pool: &PoolSpec, spec: &Ec2Spec) {
        let mut state = self.state();
        state.pools.insert(pool.name.to_string());
        state.terms.extend(Terms::of(pool.max_lifetime, spec).map(|terms| (pool.name.to_string(), terms)));
        if spec.regions.is_empty() {
            state.profiles.insert(spec.profile.clone());
        }
        for region in &spec.regions {
            state.sites.insert(Site { profile: spec.profile.clone(), region: region.clone() });
        }
    }

    /// An instance of this pool that was put aside, and is nobody else's from here on: its record says that it is live.
    pub(super) fn take_shelved(&self, pool: &str) -> Option<(Record, Flight<'_>)> {
        let now = self.now();
        let mut state = self.state();
        let is_ready = |record: &&Record| {
            let Stage::Shelved { instance, until, .. } = &record.stage else { return false };
            let is_stopped =
                state.shown.get(instance).is_some_and(|shown| shown.state == InstanceState::Stopped);
            record.pool == pool && is_stopped && *until > now && !state.in_flight.contains(&record.intent)
        };
        let record = state.records.iter().find(is_ready).cloned()?;
        let Stage::Shelved { instance, class, .. } = record.stage.clone() else { return None };
        let stage = Stage::Live { instance: instance.clone(), class };
        // Written before it is started: a broker that dies in between looks after it again, or ends it.
        let advanced = state.advance(&record.intent, stage, now);
        self.follow(&record.intent, advanced);
        state.in_flight.insert(record.intent.clone());
        state.claimed.insert(record.intent.clone());
        // What it was while it was stopped is no news of what it is now.
        state.shown.remove(&instance);
        let flight = Flight { estate: self, intent: record.intent.clone() };
        Some((record, flight))
    }

    /// The live launches of this pool that an earlier broker made and that nobody has taken over. Fails, with the reason,
    /// as long as they are not known.
    pub(super) fn inherited(&self, pool: &str) -> Result<Vec<Record>, String> {
        if !self.settled.initialized() {
            return Err("EC2 has not been asked yet".to_owned());
        }
        let state = self.state();
        let records: Vec<_> = state
            .inherited
            .iter()
            .filter_map(|intent| state.records.get(intent))
            .filter(|record| record.pool == pool && matches!(record.stage, Stage::Live { .. }))
            .cloned()
            .collect();
        let unseen = |record: &&Record| !record.instance().is_some_and(|id| state.shown.contains_key(id));
        if let Some(reason) = records.iter().filter(unseen).find_map(|record| state.blind.get(&record.site)) {
            return Err(reason.clone());
        }
        Ok(records)
    }

    /// These have been handed out.
    pub(super) fn take_over(&self, records: &[Record]) {
        let mut state = self.state();
        for record in records {
            state.inherited.remove(&record.intent);
        }
    }

    /// Reads the records.
    pub(super) fn with_records<T>(&self, read: impl FnOnce(&Records) -> T) -> T {
        read(&self.state().records)
    }

    /// Writes down that a launch begins; on disk when this returns.
    pub(super) fn begin(&self, record: Record) -> io::Result<Flight<'_>> {
        let intent = record.intent.clone();
        let mut state = self.state();
        state.sites.insert(record.site.clone());
        state.records.put(record)?;
        state.in_flight.insert(intent.clone());
        Ok(Flight { estate: self, intent })
    }

    /// The same for a launch that has a record.
    pub(super) fn resume(&self, intent: &IntentId) -> Flight<'_> {
        self.state().in_flight.insert(intent.clone());
        Flight { estate: self, intent: intent.clone() }
    }

    /// Puts a launch into another stage. What cannot be written is complained of: the stage on disk is then an older
    /// one, with which the next start looks again.
    pub(super) fn advance(&self, intent: &IntentId, stage: Stage) {
        let now = self.now();
        let advanced = self.state().advance(intent, stage, now);
        self.follow(intent, advanced);
        self.hurry();
    }

    /// What follows from [`State::advance`].
    fn follow(&self, intent: &IntentId, advanced: io::Result<bool>) {
        match advanced {
            Ok(true) => self.errand.notify_one(),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(intent = intent.as_str(), %error, "cannot write a launch record");
            }
        }
    }

    /// Nothing came of a launch.
    pub(super) fn forget(&self, intent: &IntentId) {
        let mut state = self.state();
        state.misses.remove(intent);
        state.claimed.remove(intent);
        state.over.remove(intent);
        state.refused.remove(intent);
        if let Err(error) = state.records.forget(intent) {
            tracing::warn!(intent = intent.as_str(), %error, "cannot delete a launch record");
        }
    }

    /// Nothing is left of a launch and of its instance.
    pub(super) fn discard(&self, intent: &IntentId) {
        tracing::debug!(intent = intent.as_str(), "nothing is left of a launch");
        let id = self.with_records(|records| {
            records.get(intent).and_then(|record| record.instance().map(str::to_owned))
        });
        if let Some(id) = id {
            self.state().shown.remove(&id);
        }
        self.forget(intent);
    }

    /// Somebody looks after this launch's instance from here on.
    pub(super) fn claim(&self, intent: &IntentId) {
        self.state().claimed.insert(intent.clone());
    }

    /// Nobody does any more.
    pub(super) fn disclaim(&self, intent: &IntentId) {
        self.state().claimed.remove(intent);
        self.hurry();
    }

    /// Makes the next look come soon.
    pub(super) fn hurry(&self) {
        self.hurry.notify_one();
    }

    /// An instance as it was last shown.
    pub(super) fn shown(&self, instance: &str) -> Option<Observed> {
        self.state().shown.get(instance).cloned()
    }

    /// What an answer said of an instance that a look may not show for a while.
    pub(super) fn show(&self, instance: &Observed) {
        self.state().shown.insert(instance.id.clone(), instance.clone());
    }

    /// Why an instance that somebody looks after ended, if it has.
    pub(super) fn end_of(&self, instance: &str) -> Option<String> {
        self.state().ended.get(instance).cloned()
    }

    /// Waits, look by look, until there is an answer, and makes the looks come soon. They are made by
    /// [`Estate::tend`].
    pub(super) async fn until<T>(&self, answer: impl FnMut(&Self) -> Option<T>) -> T {
        self.wait(answer, Self::hurry).await
    }

    /// The same for what may take all day.
    pub(super) async fn patiently<T>(&self, answer: impl FnMut(&Self) -> Option<T>) -> T {
        self.wait(answer, |_| {}).await
    }

    async fn wait<T>(&self, mut answer: impl FnMut(&Self) -> Option<T>, before: impl Fn(&Self)) -> T {
        let mut looks = self.looks.subscribe();
        loop {
            if let Some(answer) = answer(self) {
                return answer;
            }
            before(self);
            if looks.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The first look of a broker's life, at every site: takes over what the configured pools had, ends the rest. What
    /// cannot be seen now is looked at again.
    pub(super) async fn settle(&self) {
        self.settled.get_or_init(|| self.first_look()).await;
    }

    async fn first_look(&self) {
        {
            let mut guard = self.state();
            let state = &mut *guard;
            let is_configured = |record: &&Record| state.pools.contains(&record.pool);
            let records = || state.records.iter();
            let live = records().filter(|record| matches!(record.stage, Stage::Live { .. }));
            state.claimed.extend(live.filter(is_configured).map(|record| record.intent.clone()));
            let asked = records().filter(|record| matches!(record.stage, Stage::Asked { .. }));
            let orphans: Vec<_> =
                asked.filter(|record| !is_configured(record)).map(|record| record.intent.clone()).collect();
            for intent in orphans {
                if let Err(error) = state.records.advance(&intent, Stage::Abandoned, None) {
                    tracing::error!(intent = intent.as_str(), %error, "cannot write a launch record");
                }
            }
        }
        self.look_everywhere(Finds::Adopt).await;
    }
}

/// The value of [`super::tags::EXPIRES_TAG`] for something that is wanted now: `2026-11-21T08:00:00Z`.
pub(super) fn expires(now: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(now) + EXPIRES_AFTER).to_string()
}

/// EC2 itself, as every AWS tool on this machine would reach it.
struct Aws;

impl Connect for Aws {
    fn connect<'a>(
        &'a self,
        profile: Option<&'a str>,
        region: Option<&'a str>,
    ) -> Pin<Box<dyn Future<Output = Result<Api, ApiError>> + Send + 'a>> {
        Box::pin(Api::connect(profile, region))
    }
}

impl ProviderContext {
    /// What all pools on EC2 share; opened by the first.
    pub(in crate::provider) fn estate(&self) -> Result<Arc<Estate>, ProviderError> {
        if let Some(estate) = self.estate.get() {
            return Ok(Arc::clone(estate));
        }
        let estate = Estate::open(&self.state_dir, Box::new(Aws), WallClock::new(SystemTime::now))
            .map_err(|error| ProviderError::io("cannot read what is recorded of EC2 instances", error))?;
        Ok(Arc::clone(self.estate.get_or_init(|| Arc::new(estate))))
    }
}
