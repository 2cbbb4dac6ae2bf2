//! Nix: what it wants to build next, and what it does with an answer.
//!
//! It asks about one derivation at a time, in the order of their names, as soon as everything that it needs is there. What
//! is postponed is asked about again together at the next poll, which a build that ends does not hasten. What is declined
//! is built here when a job is free, and otherwise waits for one; then it is asked about anew.

use std::collections::BTreeSet;
use std::time::Duration;

use super::graph::Graph;

/// `build-poll-interval`.
pub(super) const POLL: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not everything that it needs is there.
    Waits,
    /// Nix is about to ask, or asks again later.
    Ready,
    /// Somebody builds it.
    Taken,
    Built,
    /// It failed, or something that it needs did.
    Failed,
}

/// The client's goals.
#[derive(Debug)]
pub(super) struct Client<'a> {
    graph: &'a Graph,
    states: Vec<State>,
    /// Inputs that are not there; its own arrival counts as one.
    missing: Vec<usize>,
    /// Places in the order of names.
    rank: Vec<usize>,
    by_rank: Vec<usize>,
    ready: BTreeSet<usize>,
    postponed: Vec<usize>,
    wants_slot: Vec<usize>,
    max_jobs: u32,
    jobs: u32,
    left: usize,
}

impl<'a> Client<'a> {
    pub(super) fn new(graph: &'a Graph, max_jobs: u32) -> Self {
        let nodes = graph.nodes();
        let mut by_rank: Vec<usize> = (0..nodes.len()).collect();
        by_rank.sort_by_key(|ix| (nodes[*ix].drv.name(), &nodes[*ix].drv));
        let mut rank = vec![0; nodes.len()];
        for (place, ix) in by_rank.iter().enumerate() {
            rank[*ix] = place;
        }
        Self {
            graph,
            states: vec![State::Waits; nodes.len()],
            missing: nodes.iter().map(|node| node.needs.len() + 1).collect(),
            rank,
            by_rank,
            ready: BTreeSet::new(),
            postponed: Vec::new(),
            wants_slot: Vec::new(),
            max_jobs,
            jobs: 0,
            left: nodes.len(),
        }
    }

    /// One thing less that this one waits for. Answers whether Nix asks about it now.
    pub(super) fn supply(&mut self, ix: usize) -> bool {
        self.missing[ix] = self.missing[ix].saturating_sub(1);
        let is_ready = self.missing[ix] == 0 && self.states[ix] == State::Waits;
        if is_ready {
            self.ask_again(ix);
        }
        is_ready
    }

    fn ask_again(&mut self, ix: usize) {
        self.states[ix] = State::Ready;
        self.ready.insert(self.rank[ix]);
    }

    /// What Nix asks about next.
    pub(super) fn next(&mut self) -> Option<usize> {
        self.ready.pop_first().map(|rank| self.by_rank[rank])
    }

    /// Whether there is anything to ask about.
    pub(super) fn has_next(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether Nix could build something itself right now.
    pub(super) fn is_willing(&self) -> bool {
        self.jobs < self.max_jobs
    }

    /// It is asked about again at the next poll. Answers whether that poll has to be set.
    pub(super) fn postpone(&mut self, ix: usize) -> bool {
        self.postponed.push(ix);
        self.postponed.len() == 1
    }

    /// The poll has come.
    pub(super) fn poll(&mut self) {
        for ix in std::mem::take(&mut self.postponed) {
            self.ask_again(ix);
        }
    }

    /// It waits for a job here.
    pub(super) fn want_slot(&mut self, ix: usize) {
        self.wants_slot.push(ix);
    }

    /// Somebody builds it from now on.
    pub(super) fn taken(&mut self, ix: usize) {
        self.states[ix] = State::Taken;
    }

    /// It is built here from now on.
    pub(super) fn taken_here(&mut self, ix: usize) {
        self.taken(ix);
        self.jobs += 1;
    }

    /// A build here is over: whatever wants a job asks anew.
    pub(super) fn job_is_free(&mut self) {
        self.jobs = self.jobs.saturating_sub(1);
        for ix in std::mem::take(&mut self.wants_slot) {
            self.ask_again(ix);
        }
    }

    /// It is there.
    pub(super) fn built(&mut self, ix: usize) {
        if self.states[ix] != State::Taken {
            return;
        }
        self.states[ix] = State::Built;
        self.left -= 1;
        for needing in self.graph.needed_by(ix) {
            self.supply(*needing);
        }
    }

    /// It will never be there, and so nothing that needs it.
    pub(super) fn failed(&mut self, ix: usize) {
        let mut hopeless = vec![ix];
        while let Some(ix) = hopeless.pop() {
            if matches!(self.states[ix], State::Built | State::Failed) {
                continue;
            }
            self.states[ix] = State::Failed;
            self.left -= 1;
            self.ready.remove(&self.rank[ix]);
            hopeless.extend(self.graph.needed_by(ix));
        }
    }

    /// Derivations that are neither built nor failed.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// How many were built.
    pub(super) fn count_built(&self) -> usize {
        self.states.iter().filter(|state| **state == State::Built).count()
    }
}
