//! All connections to one builder, and how channels are spread over them.
//!
//! Owns the numbers: how many channels a connection gets, how many connections a builder, how many dials at once. A
//! stock sshd takes 10 sessions per connection (`MaxSessions`) and starts to refuse when 10 connections have not yet
//! logged in (`MaxStartups 10:30:100`); we stay below both, and learn a lower limit from a refusal instead of
//! failing. Whether a builder whose connections died is dialed again is its owner's decision: see [`Losses`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use super::channel::Channel;
use super::dial::{DialError, Target};
use super::session::{self, ExecError, Output, RunError, Session};

/// Below the stock `MaxSessions` of 10: a program that has not ended yet still counts there, though not here.
const CHANNELS_PER_SESSION: usize = 8;
/// Connections to one builder at most.
const MAX_SESSIONS: usize = 8;
/// Dials to one builder at once: builders come up together, and each guards itself with `MaxStartups`.
const MAX_DIALS: usize = 2;
/// A program that was hung up on takes a moment to free its session on the other side.
const REFUSAL_PAUSE: Duration = Duration::from_millis(50);
/// A connection without any channel that refuses one this often is of no use.
const REFUSALS_BEFORE_RETIREMENT: u32 = 3;
/// How often a connection that is held up by a reader is looked at again.
const STALL_POLL: Duration = Duration::from_millis(100);
/// How often one `open` starts over because a connection went away, or was of no use.
const LOSSES_PER_OPEN: u32 = 3;
const RETIREMENTS_PER_OPEN: u32 = 2;
/// A limit that was lowered because programs had not ended yet is tried again after this.
const LIMIT_MEMORY: Duration = Duration::from_secs(60);
/// After a dial failed while other connections live, the next one waits: sshd may be turning us away.
const DIAL_PAUSE: Duration = Duration::from_millis(500);

/// The connections to one builder, dialed as channels are asked for. Clones are the same set; dropping the last one,
/// or [`Sessions::close`], ends them all.
#[derive(Clone, Debug)]
pub struct Sessions {
    set: Arc<Set>,
}

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The builder cannot be connected to.
    #[error("cannot open a channel")]
    Dial(#[from] DialError),
    /// A fresh connection does not take a single channel.
    #[error("cannot open a channel: {0}")]
    Exec(#[from] ExecError),
    /// Every connection is full, and none may be added.
    #[error("no channel becomes free in time")]
    NoRoom,
    /// The set was closed.
    #[error("the connections to this builder are closed")]
    Closed,
}

/// Tells of connections that ended without being asked to.
#[derive(Clone, Debug)]
pub struct Losses {
    watch: watch::Receiver<Arc<str>>,
}

impl Losses {
    /// Waits for the next loss; several between two calls are one. Never ends once the set is closed.
    pub async fn next(&mut self) -> Arc<str> {
        if self.watch.changed().await.is_err() {
            return std::future::pending().await;
        }
        Arc::clone(&self.watch.borrow_and_update())
    }
}

#[derive(Debug)]
struct Set {
    target: Target,
    state: Mutex<State>,
    /// Something changed that may let a waiting `open` go on.
    changed: Notify,
    /// The reason of the latest.
    losses: watch::Sender<Arc<str>>,
}

#[derive(Debug, Default)]
struct State {
    entries: Vec<Entry>,
    next_id: u64,
    dialing: usize,
    /// Calls of `open` that have no channel yet and wait for room or for a dial.
    waiting: usize,
    dial_not_before: Option<Instant>,
    is_closed: bool,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    session: Arc<Session>,
    /// Channels open or being opened.
    used: usize,
    limit: usize,
    /// When the limit was lowered.
    lowered: Option<Instant>,
    /// Refusals in a row while it had no channel at all.
    refusals: u32,
}

/// What a caller of `open` is to do.
enum Step {
    /// Try this session; a place on it is taken.
    Use(Arc<Session>, Place),
    /// Dial; the right to do so is taken.
    Dial(DialRight),
    /// Wait for a change, or until then.
    Wait(Option<Instant>),
    Closed,
}

/// What a refused channel means for its connection.
enum Refusal {
    /// It carries others and takes no more for now.
    Full,
    /// It carries none: perhaps those before it have not quite ended.
    Empty,
    /// It never takes any, and is dropped.
    Retired,
}

/// One place on one session.
#[derive(Debug)]
struct Place {
    set: Weak<Set>,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(set) = self.set.upgrade() {
            set.with_entry(self.id, |entry| entry.used -= 1);
            set.changed.notify_waiters();
        }
    }
}

/// The right to dial.
#[derive(Debug)]
struct DialRight {
    set: Arc<Set>,
}

impl Drop for DialRight {
    fn drop(&mut self) {
        self.set.lock().dialing -= 1;
        self.set.changed.notify_waiters();
    }
}

/// Counts a caller of `open` as long as it has no channel.
struct Waiting<'a>(&'a Set);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

impl Sessions {
    /// No connection yet: the first is dialed when the first channel is asked for.
    pub fn new(target: Target) -> Self {
        let losses = watch::Sender::new("".into());
        let set = Set { target, state: Mutex::default(), changed: Notify::new(), losses };
        Self { set: Arc::new(set) }
    }

    /// Starts a command on a connection with room, on a new one if there is none, or waits for room.
    pub async fn open(&self, command: &str, deadline: Instant) -> Result<Channel, OpenError> {
        self.set.lock().waiting += 1;
        let _waiting = Waiting(&self.set);
        let (mut losses, mut retirements) = (0, 0);
        loop {
            // Registered before the look, so that no change in between is missed.
            let changed = self.set.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.set.step() {
                Step::Closed => return Err(OpenError::Closed),
                Step::Use(session, place) => {
                    let id = place.id;
                    match session.exec_holding(command, deadline, place).await {
                        Ok(channel) => {
                            self.set.with_entry(id, |entry| entry.refusals = 0);
                            return Ok(channel);
                        }
                        Err(error @ ExecError::TimedOut) => return Err(error.into()),
                        Err(ExecError::Lost(reason)) => {
                            self.set.lose(id, &reason);
                            losses += 1;
                            if losses >= LOSSES_PER_OPEN {
                                return Err(ExecError::Lost(reason).into());
                            }
                        }
                        Err(error @ ExecError::Refused(_)) => match self.set.refused(id) {
                            Refusal::Full => {}
                            Refusal::Empty => {
                                tokio::time::sleep_until(deadline.min(Instant::now() + REFUSAL_PAUSE)).await;
                            }
                            Refusal::Retired => {
                                retirements += 1;
                                if retirements >= RETIREMENTS_PER_OPEN {
                                    return Err(error.into());
                                }
                            }
                        },
                    }
                }
                Step::Dial(right) => self.dial(right, deadline).await?,
                Step::Wait(until) => {
                    let until = until.map_or(deadline, |until| until.min(deadline));
                    if timeout_at(until, changed.as_mut()).await.is_err() && Instant::now() >= deadline {
                        return Err(OpenError::NoRoom);
                    }
                }
            }
        }
    }

    /// Runs a command that reads nothing, to its end.
    pub async fn run(&self, command: &str, deadline: Instant) -> Result<Output, RunOnceError> {
        let channel = self.open(command, deadline).await?;
        Ok(session::finish(channel, deadline).await?)
    }

    /// Asks every connection for a sign of life; the first that gives none is ended, and its reason returned.
    pub async fn ping(&self, deadline: Instant) -> Result<(), Arc<str>> {
        let sessions: Vec<_> =
            self.set.lock().entries.iter().map(|entry| (entry.id, Arc::clone(&entry.session))).collect();
        for (id, session) in sessions {
            let reason: Arc<str> = match timeout_at(deadline, session.ping()).await {
                Ok(Ok(_)) => continue,
                Ok(Err(error)) => error.to_string().into(),
                Err(_) => "it answers no ping".into(),
            };
            session.close();
            self.set.lose(id, &reason);
            return Err(reason);
        }
        Ok(())
    }

    /// A view of the losses from now on.
    pub fn losses(&self) -> Losses {
        Losses { watch: self.set.losses.subscribe() }
    }

    /// How many connections are up.
    pub fn connections(&self) -> usize {
        self.set.lock().entries.len()
    }

    #[cfg(test)]
    pub(super) fn is_any_stalled(&self) -> bool {
        self.set.lock().entries.iter().any(|entry| entry.session.is_stalled())
    }

    /// Ends every connection and every channel at once; `open` fails from now on.
    pub fn close(&self) {
        self.set.close();
    }

    async fn dial(&self, right: DialRight, deadline: Instant) -> Result<(), OpenError> {
        match Session::dial(&self.set.target, deadline).await {
            Ok(session) => {
                Set::add(&self.set, session);
                drop(right);
                Ok(())
            }
            Err(error) => {
                let mut state = self.set.lock();
                state.dial_not_before = Some(Instant::now() + DIAL_PAUSE);
                let others_live = !state.entries.is_empty();
                drop(state);
                // With others alive there will be room again; without, the caller has to know.
                if others_live && !error.is_final() { Ok(()) } else { Err(error.into()) }
            }
        }
    }
}

/// Why there is no output.
#[derive(Debug, thiserror::Error)]
pub enum RunOnceError {
    /// No channel.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The command itself.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl OpenError {
    /// Whether trying again is pointless, and perhaps dangerous: see [`DialError::is_final`].
    pub fn is_final(&self) -> bool {
        match self {
            Self::Dial(error) => error.is_final(),
            Self::Closed => true,
            Self::Exec(_) | Self::NoRoom => false,
        }
    }
}

impl RunOnceError {
    /// Whether trying again is pointless, and perhaps dangerous: see [`DialError::is_final`].
    pub fn is_final(&self) -> bool {
        match self {
            Self::Open(error) => error.is_final(),
            Self::Run(_) => false,
        }
    }
}

impl Set {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_entry(&self, id: u64, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.lock().entries.iter_mut().find(|entry| entry.id == id) {
            change(entry);
        }
    }

    /// Decides what the caller does next, and reserves what it needs for that.
    fn step(self: &Arc<Self>) -> Step {
        let mut state = self.lock();
        if state.is_closed {
            return Step::Closed;
        }
        let now = Instant::now();
        for entry in &mut state.entries {
            if entry.lowered.is_some_and(|lowered| lowered + LIMIT_MEMORY <= now) {
                entry.limit = CHANNELS_PER_SESSION;
                entry.lowered = None;
            }
        }
        // The emptiest connection first: it has the most bandwidth to spare.
        let is_usable = |entry: &&mut Entry| !entry.session.is_closed() && !entry.session.is_stalled();
        let roomy = state
            .entries
            .iter_mut()
            .filter(|entry| entry.used < entry.limit)
            .filter(is_usable)
            .min_by_key(|entry| entry.used);
        if let Some(entry) = roomy {
            entry.used += 1;
            return Step::Use(Arc::clone(&entry.session), Place { set: Arc::downgrade(self), id: entry.id });
        }
        let may_dial = state.dialing < MAX_DIALS && state.entries.len() + state.dialing < MAX_SESSIONS;
        // One dial serves several callers; the next is worth it only for those it leaves over.
        let is_needed = state.waiting > state.dialing * CHANNELS_PER_SESSION;
        if !may_dial || !is_needed {
            // Nobody tells when a stalled connection moves again.
            let is_stalled = state.entries.iter().any(|entry| entry.session.is_stalled());
            return Step::Wait(is_stalled.then(|| now + STALL_POLL));
        }
        if let Some(time) = state.dial_not_before
            && time > now
        {
            return Step::Wait(Some(time));
        }
        state.dialing += 1;
        Step::Dial(DialRight { set: Arc::clone(self) })
    }

    /// Takes a new connection in, and watches over its end.
    fn add(set: &Arc<Self>, session: Session) {
        let session = Arc::new(session);
        let ended = session.ended();
        let mut state = set.lock();
        if state.is_closed {
            session.close();
            return;
        }
        let id = state.next_id;
        state.next_id += 1;
        state.dial_not_before = None;
        state.entries.push(Entry {
            id,
            session,
            used: 0,
            limit: CHANNELS_PER_SESSION,
            lowered: None,
            refusals: 0,
        });
        drop(state);
        set.changed.notify_waiters();

        let set = Arc::downgrade(set);
        tokio::spawn(async move {
            let reason = session::closed(ended).await;
            if let Some(set) = set.upgrade() {
                set.lose(id, &reason);
            }
        });
    }

    /// Forgets a connection that is gone; whoever notices first tells.
    fn lose(&self, id: u64, reason: &Arc<str>) {
        let mut state = self.lock();
        let before = state.entries.len();
        state.entries.retain(|entry| entry.id != id);
        let was_known = state.entries.len() < before;
        drop(state);
        if was_known {
            self.losses.send_replace(Arc::clone(reason));
            self.changed.notify_waiters();
        }
    }

    /// Learns from a refused channel, whose place is already free again.
    fn refused(&self, id: u64) -> Refusal {
        let mut state = self.lock();
        let Some(index) = state.entries.iter().position(|entry| entry.id == id) else {
            return Refusal::Full;
        };
        let entry = &mut state.entries[index];
        if entry.used > 0 {
            entry.limit = entry.limit.min(entry.used);
            entry.lowered = Some(Instant::now());
            return Refusal::Full;
        }
        entry.refusals += 1;
        if entry.refusals < REFUSALS_BEFORE_RETIREMENT {
            return Refusal::Empty;
        }
        state.entries.remove(index);
        Refusal::Retired
    }

    fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        let entries = std::mem::take(&mut state.entries);
        drop(state);
        for entry in entries {
            entry.session.close();
        }
        self.changed.notify_waiters();
    }
}
