//! The comparison that needs no broker: machines listed in `builders`, and Nix's own hook.
//!
//! It gives a build to the machine that has the fewest, at once when one has a slot free; otherwise it declines what this
//! machine can build now, and has Nix ask again for the rest.

use std::collections::BTreeMap;
use std::time::Instant;

use super::decider::Decider;
use super::fixed::FixedFleet;
use crate::model::{
    BuildId, BuildRequest, BuilderId, Failure, FailureKind, LeaseId, Offer, Outcome, PoolName, Requirement,
};
use crate::scheduler::{Action, Answer, AttemptEnd, Event};

#[derive(Debug)]
struct Machine {
    offer: Offer,
    slots: usize,
    used: usize,
}

/// See above. Its builders are numbered from 1 in the order of the fleet.
#[derive(Debug)]
pub(super) struct Stock {
    machines: Vec<Machine>,
    accepted: BTreeMap<BuildId, Requirement>,
    running: BTreeMap<LeaseId, usize>,
    last_lease: u64,
}

impl Stock {
    pub(super) fn new(fleet: &FixedFleet) -> Self {
        let machines = fleet.machines.iter().zip(&fleet.offers).map(|(machine, offer)| Machine {
            offer: offer.clone(),
            slots: machine.power.vcpus as usize,
            used: 0,
        });
        Self {
            machines: machines.collect(),
            accepted: BTreeMap::new(),
            running: BTreeMap::new(),
            last_lease: 0,
        }
    }

    fn best(&self, needed: &Requirement) -> Option<usize> {
        let fits = |machine: &&Machine| machine.offer.satisfies(needed).is_ok();
        let free = self.machines.iter().enumerate().filter(|(_, machine)| machine.used < machine.slots);
        free.filter(|(_, machine)| fits(machine)).min_by_key(|(_, machine)| machine.used).map(|(ix, _)| ix)
    }

    fn start(&mut self, build: BuildId) -> Vec<Action> {
        let Some(needed) = self.accepted.remove(&build) else { return Vec::new() };
        let Some(ix) = self.best(&needed) else {
            let failure = Failure::new(FailureKind::Broker, "its slot was taken");
            return vec![Action::Finish { build, outcome: Outcome::Failed(failure) }];
        };
        self.machines[ix].used += 1;
        self.last_lease += 1;
        let lease = LeaseId(self.last_lease);
        self.running.insert(lease, ix);
        vec![Action::Start { build, builder: BuilderId(ix as u64 + 1), lease }]
    }
}

impl Decider for Stock {
    fn answer(&self, request: &BuildRequest) -> Answer {
        let fits = |machine: &&Machine| machine.offer.satisfies(&request.requirement).is_ok();
        if !self.machines.iter().any(|machine| fits(&machine)) {
            return Answer::Decline { why: "no machine fits".to_owned() };
        }
        if self.best(&request.requirement).is_some() {
            return Answer::Accept { pool: PoolName::new("machines") };
        }
        let why = "every machine is full".to_owned();
        if request.am_willing { Answer::Decline { why } } else { Answer::Postpone { why } }
    }

    fn apply(&mut self, _now: Instant, event: Event) -> Vec<Action> {
        match event {
            Event::Accepted { build, request } => {
                self.accepted.insert(build, request.requirement);
                Vec::new()
            }
            Event::InputsKnown(build) => self.start(build),
            Event::AttemptEnded { build, lease, end } => {
                if let Some(ix) = self.running.remove(&lease) {
                    self.machines[ix].used -= 1;
                }
                let outcome = match end {
                    AttemptEnd::Succeeded => Outcome::Succeeded,
                    AttemptEnd::Failed(failure) => Outcome::Failed(failure),
                    AttemptEnd::Aborted => Outcome::Cancelled,
                };
                vec![Action::Finish { build, outcome }]
            }
            Event::ClientGone(_)
            | Event::InputsMadeOn { .. }
            | Event::Progressed { .. }
            | Event::Delivered { .. }
            | Event::Fetched { .. }
            | Event::Adopted(_)
            | Event::Launched { .. }
            | Event::Progress { .. }
            | Event::Load { .. }
            | Event::Collected(_)
            | Event::Ready { .. }
            | Event::Lost { .. }
            | Event::Interrupted { .. }
            | Event::Endangered { .. }
            | Event::Warned { .. }
            | Event::Gone(_)
            | Event::Clock { .. }
            | Event::StartRequested(_)
            | Event::DrainRequested(_)
            | Event::StopRequested(_)
            | Event::ShutdownRequested
            | Event::ShutdownForced
            | Event::Tick => Vec::new(),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }
}
