//! How many connections each user of this machine has who is neither root nor one of ours: a bound on what one of them can
//! take from all others.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Connections of one user at once: some terminals that watch.
const MAX_PER_USER: usize = 32;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Guests {
    seats: Taken,
}

/// How many each user has.
type Taken = Arc<Mutex<BTreeMap<u32, usize>>>;

/// One connection's place; free again when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Taken,
    uid: u32,
}

impl Guests {
    /// A place for one more connection of this user, unless all of his are taken.
    pub(crate) fn admit(&self, uid: u32) -> Option<Seat> {
        let mut seats = self.seats.lock();
        let taken = seats.entry(uid).or_default();
        (*taken < MAX_PER_USER).then(|| {
            *taken += 1;
            Seat { seats: Arc::clone(&self.seats), uid }
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.seats.lock();
        if let Some(taken) = seats.get_mut(&self.uid) {
            *taken -= 1;
            if *taken == 0 {
                seats.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_cannot_take_the_places_of_another_and_gets_his_own_back() {
        let guests = Guests::default();
        let seats: Vec<_> = (0..MAX_PER_USER).map(|_| guests.admit(7).unwrap()).collect();
        assert!(guests.admit(7).is_none());
        assert!(guests.admit(8).is_some());
        drop(seats);
        assert!(guests.admit(7).is_some());
        assert!(guests.seats.lock().is_empty());
    }
}
