//! Which connection the next channel goes to, when one more is dialed, and what is learned from refusals and losses.

use std::sync::Arc;

use parking_lot::MutexGuard;
use tokio::time::Instant;

use super::super::session::{self, Session};
use super::{
    CHANNELS_PER_SESSION, DialRight, Entry, LIMIT_MEMORY, Load, MAX_BULK_SESSIONS, MAX_DIALS, MAX_SESSIONS,
    Place, REFUSALS_BEFORE_RETIREMENT, Refusal, STALL_POLL, Set, State, Step,
};

impl Set {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn with_entry(&self, id: u64, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.lock().entries.iter_mut().find(|entry| entry.id == id) {
            change(entry);
        }
    }

    /// Decides what the caller does next, and reserves what it needs for that.
    pub(super) fn step(self: &Arc<Self>, load: Load) -> Step {
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
        let total = state.entries.len() + state.dialing.small + state.dialing.bulk;
        let for_bulk =
            state.dialing.bulk + state.entries.iter().filter(|entry| entry.load == Load::Bulk).count();
        let may_dial = state.dialing.small + state.dialing.bulk < MAX_DIALS && total < MAX_SESSIONS;
        let (may_dial, is_full) = match load {
            Load::Small => (may_dial, total >= MAX_SESSIONS),
            Load::Bulk => {
                let is_full = total >= MAX_SESSIONS || for_bulk >= MAX_BULK_SESSIONS;
                (may_dial && !is_full, is_full)
            }
        };
        // The emptiest connection of the kind first: it has the most bandwidth to spare. Bulk wants one for itself, and
        // only when there can be no more connections, one of the other kind, or one that others use, will do.
        let suits = |entry: &&mut Entry| match load {
            Load::Small => entry.load == Load::Small || is_full,
            Load::Bulk => (entry.load == Load::Bulk && entry.used == 0) || is_full,
        };
        let is_usable = |entry: &&mut Entry| !entry.session.is_closed() && !entry.session.is_stalled();
        let roomy = state
            .entries
            .iter_mut()
            .filter(|entry| entry.used < entry.limit)
            .filter(is_usable)
            .filter(suits)
            .min_by_key(|entry| (entry.load != load, entry.used));
        if let Some(entry) = roomy {
            entry.used += 1;
            return Step::Use(Arc::clone(&entry.session), Place { set: Arc::downgrade(self), id: entry.id });
        }
        // One dial serves several callers; the next is worth it only for those it leaves over.
        let is_needed = match load {
            Load::Small => state.waiting.small > state.dialing.small * CHANNELS_PER_SESSION,
            Load::Bulk => state.waiting.bulk > state.dialing.bulk,
        };
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
        *state.dialing.of(load) += 1;
        Step::Dial(DialRight { set: Arc::clone(self), load })
    }

    /// Takes a new connection in, and watches over its end.
    pub(super) fn add(set: &Arc<Self>, session: Session, load: Load) {
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
            load,
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
    pub(super) fn lose(&self, id: u64, reason: &Arc<str>) {
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
    pub(super) fn refused(&self, id: u64) -> Refusal {
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

    pub(super) fn close(&self) {
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
