//! All connections to one builder, and how channels are spread over them.
//!
//! Owns the numbers: how many channels a connection gets, how many connections a builder, how many dials at once. A
//! stock sshd takes 10 sessions per connection (`MaxSessions`) and starts to refuse when 10 connections have not yet
//! logged in (`MaxStartups 10:30:100`); we stay below both, and learn a lower limit from a refusal instead of
//! failing. Whether a builder whose connections died is dialed again is its owner's decision: see [`Losses`].

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

mod spread;

use super::channel::Channel;
use super::dial::{DialError, Target};
use super::session::{self, ExecError, Output, RunError, Session};

/// Below the stock `MaxSessions` of 10: a program that has not ended yet still counts there, though not here.
const CHANNELS_PER_SESSION: usize = 8;
/// Connections to one builder at most.
const MAX_SESSIONS: usize = 8;
/// Of these, connections for what is large.
const MAX_BULK_SESSIONS: usize = 5;
/// Dials to one builder at once: builders come up together, and each guards itself with `MaxStartups`.
const MAX_DIALS: usize = 4;
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

/// What a channel is for. What is small must not wait behind what is large, in the buffers of one TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Questions, logs, small paths.
    Small,
    /// As much as the connection carries: each on a connection of its own, as long as there are enough.
    Bulk,
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
    dialing: Counts,
    /// Calls of `open` that have no place yet and wait for one or for a dial.
    waiting: Counts,
    dial_not_before: Option<Instant>,
    is_closed: bool,
}

/// For each kind of load.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    small: usize,
    bulk: usize,
}

impl Counts {
    fn of(&mut self, load: Load) -> &mut usize {
        match load {
            Load::Small => &mut self.small,
            Load::Bulk => &mut self.bulk,
        }
    }
}

#[derive(Debug)]
struct Entry {
    id: u64,
    /// What it was dialed for.
    load: Load,
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
    load: Load,
}

impl Drop for DialRight {
    fn drop(&mut self) {
        *self.set.lock().dialing.of(self.load) -= 1;
        self.set.changed.notify_waiters();
    }
}

/// Counts a caller of `open` as long as it has no place.
struct Waiting<'a>(&'a Set, Load);

impl<'a> Waiting<'a> {
    fn new(set: &'a Set, load: Load) -> Self {
        *set.lock().waiting.of(load) += 1;
        Self(set, load)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        *self.0.lock().waiting.of(self.1) -= 1;
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
        self.open_for(Load::Small, command, deadline).await
    }

    /// As [`open`](Self::open), on a connection for this load.
    pub async fn open_for(&self, load: Load, command: &str, deadline: Instant) -> Result<Channel, OpenError> {
        let (mut losses, mut retirements) = (0, 0);
        loop {
            // Registered before the look, so that no change in between is missed.
            let changed = self.set.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let waiting = Waiting::new(&self.set, load);
            match self.set.step(load) {
                Step::Closed => return Err(OpenError::Closed),
                Step::Use(session, place) => {
                    let id = place.id;
                    // Nobody need dial for one who has a place.
                    drop(waiting);
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

    /// Dials a connection for bulk ahead, unless there is one.
    pub async fn warm_bulk(&self, deadline: Instant) -> Result<(), OpenError> {
        let right = {
            let mut state = self.set.lock();
            let has_one = state.entries.iter().any(|entry| entry.load == Load::Bulk);
            if has_one || state.is_closed || state.dialing.bulk > 0 {
                return Ok(());
            }
            state.dialing.bulk += 1;
            DialRight { set: Arc::clone(&self.set), load: Load::Bulk }
        };
        self.dial(right, deadline).await
    }

    /// The time that a question takes on the least busy connection for what is small.
    pub async fn round_trip(&self) -> Result<Duration, ExecError> {
        let session = {
            let state = self.set.lock();
            let least = state.entries.iter().min_by_key(|entry| (entry.load != Load::Small, entry.used));
            least.map(|entry| Arc::clone(&entry.session))
        };
        match session {
            Some(session) => session.ping().await,
            None => Err(ExecError::Lost("there is no connection".into())),
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
        match Session::dial_for(right.load, &self.set.target, deadline).await {
            Ok(session) => {
                Set::add(&self.set, session, right.load);
                drop(right);
                Ok(())
            }
            Err(error) => {
                let mut state = self.set.lock();
                state.dial_not_before = Some(Instant::now() + DIAL_PAUSE);
                let others_live = !state.entries.is_empty();
                drop(state);
                // With others alive there will be room again; without, the caller has to know. Bulk has other ways to go.
                let may_wait = others_live && right.load == Load::Small && !error.is_final();
                if may_wait { Ok(()) } else { Err(error.into()) }
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
