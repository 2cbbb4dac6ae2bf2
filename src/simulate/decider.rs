//! What the simulated world asks of whoever decides: the interface of the scheduler, so that the scheduler is one.

use std::time::Instant;

use crate::model::BuildRequest;
use crate::scheduler::{Action, Answer, Event, Fleet};

/// Somebody who decides.
pub(super) trait Decider {
    /// The verdict on a request.
    fn answer(&self, request: &BuildRequest) -> Answer;

    /// Takes in a fact, and answers with what is wanted.
    fn apply(&mut self, now: Instant, event: Event) -> Vec<Action>;

    /// When to apply a tick if nothing else happens before.
    fn next_deadline(&self) -> Option<Instant>;
}

impl Decider for Fleet {
    fn answer(&self, request: &BuildRequest) -> Answer {
        self.offers().answer(request)
    }

    fn apply(&mut self, now: Instant, event: Event) -> Vec<Action> {
        Self::apply(self, now, event)
    }

    fn next_deadline(&self) -> Option<Instant> {
        Self::next_deadline(self)
    }
}
