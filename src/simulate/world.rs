//! The loop: what is due next happens, whoever decides is told, and what it wants is set in motion.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Scenario;
use super::buy::{Machine, Prices};
use super::client::{Client, POLL};
use super::decider::Decider;
use super::foresight::Oracle;
use super::graph::Node;
use super::machine::Power;
use super::random::Random;
use super::running::{HERE, Life, Sites};
use super::timeline::Timeline;
use crate::model::requirement::BUILTIN_SYSTEM;
use crate::model::{
    BuildId, BuildRequest, BuildSettings, BuilderId, LeaseId, Outcome, PoolName, PoolSpec, Record, UtcDay,
};
use crate::scheduler::{Action, Answer, AttemptEnd, BuilderFault, Event};

/// How long Nix's loop is busy with one question.
const ASKING: Duration = Duration::from_millis(2);
/// From the wish to stop an attempt until it has.
const TO_STOP: Duration = Duration::from_millis(200);
/// From the notice of an interruption until the machine is gone.
const NOTICE: Duration = Duration::from_secs(120);
/// How often the scheduler is told the time of day.
const CLOCK: Duration = Duration::from_secs(60);
/// When nothing has begun or ended for so long, nothing ever will.
const PATIENCE: Duration = Duration::from_secs(10 * 24 * 3600);
/// Things that may happen in a run: far more than in any that ends.
const MOST_STEPS: u64 = 100_000_000;
const DAY: u64 = 86_400;

/// Something that is going to happen.
#[derive(Clone, Debug)]
pub(super) enum Due {
    /// Nix wants this, if it has everything that it needs.
    Arrives(usize),
    /// Nix asks about the next derivation.
    Asks,
    /// `build-poll-interval` is over.
    Polls,
    /// The instance exists, and is billed.
    Runs(BuilderId),
    Ready(BuilderId),
    LaunchFails(BuilderId, BuilderFault),
    Gone(BuilderId),
    /// EC2 says that it takes an instance back.
    Interrupted(BuilderId),
    /// An instance is gone, with or without a notice.
    Lost(BuilderId),
    Uploaded(LeaseId),
    /// The next build on this machine is done, if nothing has changed since this version of its load.
    Built(BuilderId, u64),
    Ends(LeaseId, AttemptEnd),
    Clock,
}

/// A run.
pub(super) struct World<'a> {
    pub(super) scenario: &'a Scenario<'a>,
    pub(super) decider: Box<dyn Decider>,
    pub(super) pools: &'a [PoolSpec],
    pub(super) prices: Prices,
    pub(super) random: Random,
    oracle: Oracle,
    pub(super) epoch: Instant,
    pub(super) now: Duration,
    pub(super) due: BTreeMap<(Duration, u64), Due>,
    pub(super) last_due: u64,
    pub(super) client: Client<'a>,
    pub(super) sites: Sites,
    /// Whether Nix is about to ask.
    pub(super) is_asking: bool,
    /// Since when Nix asks about each derivation, until it runs.
    pub(super) asked: BTreeMap<usize, Duration>,
    /// Who made what is built.
    pub(super) made_on: BTreeMap<usize, BuilderId>,
    /// When something last began or ended.
    pub(super) moved: Duration,
    pub(super) clock_runs: bool,
    /// Of the client's own machine.
    pub(super) last_local: u64,
    pub(super) is_fixed: bool,
}

impl<'a> World<'a> {
    pub(super) fn new(
        scenario: &'a Scenario<'a>,
        decider: Box<dyn Decider>,
        pools: &'a [PoolSpec],
        given: &[Machine],
        epoch: Instant,
    ) -> Self {
        let mut world = Self {
            scenario,
            decider,
            pools,
            prices: Prices::new(scenario.spot_percent),
            random: Random::new(scenario.seed),
            oracle: Oracle::new(scenario.foresight, &scenario.memory, scenario.graph),
            epoch,
            now: Duration::ZERO,
            due: BTreeMap::new(),
            last_due: 0,
            client: Client::new(scenario.graph, scenario.max_jobs),
            sites: Sites::default(),
            is_asking: false,
            asked: BTreeMap::new(),
            made_on: BTreeMap::new(),
            moved: Duration::ZERO,
            clock_runs: false,
            last_local: u64::MAX / 2,
            is_fixed: !given.is_empty(),
        };
        if scenario.max_jobs > 0 {
            let here = Machine {
                power: Power::plain(scenario.max_jobs),
                class: None,
                to_running: Duration::ZERO,
                to_ready: Duration::ZERO,
            };
            world.stand(HERE, "this machine", here, scenario.max_jobs);
        }
        for (number, machine) in (1..).zip(given) {
            world.stand(BuilderId(number), "machines", machine.clone(), machine.power.vcpus);
        }
        for (ix, node) in scenario.graph.nodes().iter().enumerate() {
            world.at(node.arrives, Due::Arrives(ix));
        }
        world
    }

    /// A machine that is there from the beginning.
    pub(super) fn stand(&mut self, id: BuilderId, pool: &str, machine: Machine, slots: u32) {
        self.sites.add(Duration::ZERO, id, PoolName::new(pool), machine, slots);
        self.sites.runs(Duration::ZERO, id);
        self.sites.is_ready(Duration::ZERO, id);
    }

    /// Lets everything happen.
    pub(super) fn run(mut self) -> Timeline {
        for _ in 0..MOST_STEPS {
            if self.client.left() == 0 {
                if self.sites.timeline.finished == Duration::ZERO {
                    self.sites.timeline.finished = self.now;
                }
                if self.is_settled() {
                    break;
                }
            }
            let next = self.due.first_key_value().map(|((at, _), _)| *at);
            let deadline = self.decider.next_deadline().map(|at| at.saturating_duration_since(self.epoch));
            match (next, deadline) {
                (None, None) => break,
                (Some(at), deadline) if deadline.is_none_or(|deadline| at <= deadline) => {
                    self.now = self.now.max(at);
                    if let Some((_, due)) = self.due.pop_first() {
                        self.happen(due);
                    }
                }
                (_, Some(deadline)) => {
                    self.now = self.now.max(deadline);
                    self.tell(Event::Tick);
                }
                (Some(_), None) => {}
            }
            if self.client.left() > 0 && self.now.saturating_sub(self.moved) > PATIENCE {
                break;
            }
        }
        self.close()
    }

    pub(super) fn close(mut self) -> Timeline {
        let is_done = self.client.left() == 0;
        let closed = if is_done { self.now } else { self.moved };
        self.sites.close(closed);
        let mut timeline = self.sites.timeline;
        if !is_done {
            timeline.finished = closed;
            *timeline.failures.entry("nothing would ever build them".to_owned()).or_default() +=
                self.client.left();
        }
        timeline.built = self.client.count_built();
        timeline.unbuilt = self.scenario.graph.nodes().len() - timeline.built;
        if self.sites.all.len() > 1 || timeline.lanes.len() > 1 {
            // Its lane says nothing when it did nothing.
            timeline.lanes.retain(|lane| lane.builder.is_some() || !lane.bars.is_empty());
        }
        timeline
    }

    /// Whether nothing will change any more that costs money.
    pub(super) fn is_settled(&self) -> bool {
        let is_small = |pool: &PoolSpec| self.sites.staffed(&pool.name) <= pool.min_builders as usize;
        self.is_fixed || self.sites.are_settled() && self.pools.iter().all(is_small)
    }

    pub(super) fn at(&mut self, at: Duration, due: Due) {
        self.last_due += 1;
        self.due.insert((at, self.last_due), due);
    }

    pub(super) fn after(&mut self, time: Duration, due: Due) {
        self.at(self.now + time, due);
    }

    pub(super) fn tell(&mut self, event: Event) {
        for action in self.decider.apply(self.epoch + self.now, event) {
            self.perform(action);
        }
    }

    pub(super) fn happen(&mut self, due: Due) {
        match due {
            Due::Arrives(ix) => {
                self.moved = self.now;
                if self.client.supply(ix) {
                    self.let_ask();
                }
            }
            Due::Asks => self.ask(),
            Due::Polls => {
                self.client.poll();
                self.let_ask();
            }
            Due::Runs(id) => self.runs(id),
            Due::Ready(id) => self.ready(id),
            Due::LaunchFails(id, fault) => {
                if self.sites.all.get(&id).is_some_and(|site| site.life == Life::Launching) {
                    self.tell(Event::Lost { builder: id, fault });
                }
            }
            Due::Gone(id) => {
                self.sites.all.remove(&id);
                self.tell(Event::Gone(id));
            }
            Due::Interrupted(id) => {
                if self.sites.all.get(&id).is_some_and(|site| site.life == Life::Ready) {
                    let why = "EC2 wants it back".to_owned();
                    self.after(NOTICE, Due::Lost(id));
                    self.tell(Event::Interrupted { builder: id, within: Some(NOTICE), why });
                }
            }
            Due::Lost(id) => self.lost(id),
            Due::Uploaded(lease) => self.uploaded(lease),
            Due::Built(id, version) => self.built(id, version),
            Due::Ends(lease, end) => self.ends(lease, end),
            Due::Clock => {
                let day = UtcDay(u32::try_from(self.now.as_secs() / DAY).unwrap_or(u32::MAX));
                self.clock_runs = false;
                self.tell(Event::Clock { day, aside: Vec::new() });
                self.let_clock_run();
            }
        }
    }

    pub(super) fn let_clock_run(&mut self) {
        let is_needed = self.sites.any_staffed() && !self.is_fixed;
        if is_needed && !self.clock_runs {
            self.clock_runs = true;
            self.after(CLOCK, Due::Clock);
        }
    }

    pub(super) fn let_ask(&mut self) {
        if !self.is_asking && self.client.has_next() {
            self.is_asking = true;
            self.after(ASKING, Due::Asks);
        }
    }

    /// Nix asks about one derivation.
    pub(super) fn ask(&mut self) {
        self.is_asking = false;
        let Some(ix) = self.client.next() else { return };
        let node = &self.scenario.graph.nodes()[ix];
        self.asked.entry(ix).or_insert(self.now);
        let may_be_here = self.can_be_built_here(node);
        if node.nature.prefers_local && may_be_here {
            self.build_here(ix);
        } else {
            let settings = BuildSettings {
                only_remote: !may_be_here,
                can_locally: may_be_here,
                ..BuildSettings::default()
            };
            let request = BuildRequest {
                am_willing: self.client.is_willing(),
                settings,
                nature: node.nature,
                prediction: self.oracle.predict(ix, node),
                ..BuildRequest::new(node.drv.clone(), node.requirement.clone())
            };
            match self.decider.answer(&request) {
                Answer::Accept { .. } => {
                    self.client.taken(ix);
                    let build = BuildId(ix as u64 + 1);
                    self.tell(Event::Accepted { build, request });
                    let builders = self.makers(ix);
                    if !builders.is_empty() {
                        self.tell(Event::InputsMadeOn { build, builders });
                    }
                    self.tell(Event::InputsKnown(build));
                }
                Answer::Postpone { .. } => {
                    if self.client.postpone(ix) {
                        self.after(POLL, Due::Polls);
                    }
                }
                Answer::Decline { .. } if may_be_here => self.build_here(ix),
                Answer::Decline { why } => self.failed(ix, why),
            }
        }
        self.let_ask();
    }

    /// The builders that made what this one needs and still run, those that made most of it first.
    fn makers(&self, ix: usize) -> Vec<BuilderId> {
        let mut counts: BTreeMap<BuilderId, usize> = BTreeMap::new();
        for builder in self.scenario.graph.nodes()[ix].needs.iter().filter_map(|ix| self.made_on.get(ix)) {
            if *builder != HERE && self.sites.all.contains_key(builder) {
                *counts.entry(*builder).or_default() += 1;
            }
        }
        let mut makers: Vec<_> = counts.into_iter().collect();
        makers.sort_by_key(|(builder, count)| (std::cmp::Reverse(*count), *builder));
        makers.into_iter().map(|(builder, _)| builder).collect()
    }

    /// How long the inputs of this one take to a builder: a fifth for asking, the rest for those that it did not make.
    pub(super) fn upload_time(&self, ix: usize, builder: BuilderId) -> Duration {
        let node = &self.scenario.graph.nodes()[ix];
        let there = node.needs.iter().filter(|needed| self.made_on.get(needed) == Some(&builder)).count();
        let missing = if node.needs.is_empty() { 1.0 } else { 1.0 - there as f64 / node.needs.len() as f64 };
        node.work.uploading.mul_f64(0.2 + 0.8 * missing)
    }

    pub(super) fn can_be_built_here(&self, node: &Node) -> bool {
        let system = &node.requirement.system;
        let fits = *system == self.scenario.system || system.as_str() == BUILTIN_SYSTEM;
        self.scenario.max_jobs > 0 && fits && node.requirement.features.iter().all(|f| !f.is_processor())
    }

    pub(super) fn build_here(&mut self, ix: usize) {
        if !self.client.is_willing() {
            self.client.want_slot(ix);
            return;
        }
        self.client.taken_here(ix);
        self.last_local += 1;
        let lease = LeaseId(self.last_local);
        self.start(ix, HERE, lease);
        // Nothing is carried anywhere.
        self.at(self.now, Due::Uploaded(lease));
    }

    pub(super) fn failed(&mut self, ix: usize, why: String) {
        *self.sites.timeline.failures.entry(why).or_default() += 1;
        self.moved = self.now;
        self.client.failed(ix);
    }

    pub(super) fn perform(&mut self, action: Action) {
        match action {
            Action::Launch { builder, pool, demand, at_most } => self.launch(builder, &pool, demand, at_most),
            Action::Terminate { builder, .. } => self.terminate(builder),
            Action::Start { build, builder, lease } => {
                let Ok(ix) = usize::try_from(build.0 - 1) else { return };
                self.start(ix, builder, lease);
                let uploading = self.upload_time(ix, builder);
                self.after(uploading, Due::Uploaded(lease));
            }
            Action::Abort { lease, .. } => {
                self.stop(lease);
                self.after(TO_STOP, Due::Ends(lease, AttemptEnd::Aborted));
            }
            Action::Finish { build, outcome } => {
                let Ok(ix) = usize::try_from(build.0 - 1) else { return };
                self.moved = self.now;
                match outcome {
                    Outcome::Succeeded => self.client.built(ix),
                    Outcome::Failed(failure) => self.failed(ix, failure.reason),
                    Outcome::Cancelled => self.failed(ix, "cancelled".to_owned()),
                }
                self.let_ask();
            }
            Action::Record(Record::Build(record)) => self.oracle.learn(&record),
            // Simulated machines do not say how busy they are.
            Action::CollectGarbage { .. }
            | Action::Tell { .. }
            | Action::Record(Record::Instance(_) | Record::PutAside { .. })
            | Action::Exit => {}
        }
    }
}
