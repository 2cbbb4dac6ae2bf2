//! The owner loop: the one task that holds the fleet. It does `select -> Event -> apply -> perform` and nothing else.
//!
//! `apply` is pure and `perform` only hands work to tasks, so the loop never waits for anything but the next event.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::build::Build;
use super::builder_task::{self, BuilderHandle};
use super::remote::Remote;
use super::{Shared, build_task, collect};
use crate::model::{BuildId, BuildStatus, BuilderId, LeaseId, Record, Status};
use crate::provider::Survivor;
use crate::scheduler::{Action, Adoption, AttemptEnd, Event, Fleet, Offers};
use tokio_util::sync::CancellationToken;

/// What the owner loop is told or asked.
#[derive(Debug)]
pub(crate) enum Message {
    /// A fact.
    Event(Box<Event>),
    /// A request was accepted: remember the build, then apply `Event::Accepted`.
    NewBuild(Arc<Build>),
    /// Instances of an earlier broker were found alive.
    Adopt(Vec<Survivor>),
    /// The picture, please.
    Status(oneshot::Sender<Status>),
    /// What builds on this builder work with, if it is ready.
    Remote(BuilderId, oneshot::Sender<Option<Arc<Remote>>>),
    /// What is known about builds whose derivation or id matches.
    Explain(String, oneshot::Sender<Vec<String>>),
}

/// How anybody reaches the loop.
#[derive(Clone, Debug)]
pub(crate) struct DriverHandle {
    messages: mpsc::UnboundedSender<Message>,
    offers: watch::Receiver<Arc<Offers>>,
}

impl DriverHandle {
    /// A fact arrived. After the loop has ended there is nobody left to care.
    pub(crate) fn event(&self, event: Event) {
        self.send(Message::Event(Box::new(event)));
    }

    /// Some inputs of a build were made on these builders, if any were.
    pub(crate) fn inputs_made_on(&self, build: BuildId, builders: Vec<BuilderId>) {
        if !builders.is_empty() {
            self.event(Event::InputsMadeOn { build, builders });
        }
    }

    /// Says something to the loop.
    pub(crate) fn send(&self, message: Message) {
        let _after_the_end = self.messages.send(message);
    }

    /// What a verdict is made from, without asking the loop.
    pub(crate) fn offers(&self) -> Arc<Offers> {
        self.offers.borrow().clone()
    }

    /// The picture now; nothing when the loop has ended.
    pub(crate) async fn status(&self) -> Option<Status> {
        let (answer, status) = oneshot::channel();
        self.send(Message::Status(answer));
        status.await.ok()
    }

    /// What builds on this builder work with; nothing unless it is ready.
    pub(crate) async fn remote(&self, builder: BuilderId) -> Option<Arc<Remote>> {
        let (answer, remote) = oneshot::channel();
        self.send(Message::Remote(builder, answer));
        remote.await.ok().flatten()
    }

    /// What is known about a subject.
    pub(crate) async fn explain(&self, subject: String) -> Vec<String> {
        let (answer, lines) = oneshot::channel();
        self.send(Message::Explain(subject, answer));
        lines.await.unwrap_or_default()
    }
}

/// The loop and what it owns.
#[derive(Debug)]
pub(crate) struct Driver {
    fleet: Fleet,
    /// Unbounded: every sender is a task of ours that sends a few events in its life, and one that had to wait here
    /// could deadlock with the loop.
    messages: mpsc::UnboundedReceiver<Message>,
    offers: watch::Sender<Arc<Offers>>,
    handle: DriverHandle,
    shared: Arc<Shared>,
    builds: BTreeMap<BuildId, Arc<Build>>,
    builders: BTreeMap<BuilderId, BuilderHandle>,
    attempts: BTreeMap<LeaseId, CancellationToken>,
}

/// Whether the loop goes on.
enum Flow {
    Continue,
    Exit,
}

impl Driver {
    /// A loop over this fleet, not running yet.
    pub(crate) fn new(fleet: Fleet, shared: Arc<Shared>) -> (Self, DriverHandle) {
        let (messages_tx, messages) = mpsc::unbounded_channel();
        let (offers, offers_rx) = watch::channel(fleet.offers());
        let handle = DriverHandle { messages: messages_tx, offers: offers_rx };
        let driver = Self {
            fleet,
            messages,
            offers,
            handle: handle.clone(),
            shared,
            builds: BTreeMap::new(),
            builders: BTreeMap::new(),
            attempts: BTreeMap::new(),
        };
        (driver, handle)
    }

    /// Takes these over before anything else happens, so that nothing is launched for what they can do.
    pub(crate) fn begin_with(&mut self, survivors: Vec<Survivor>) {
        // Nothing that is adopted can end the broker.
        let _goes_on = self.adopt(survivors);
    }

    /// Runs until the scheduler says that the shutdown is complete.
    pub(crate) async fn run(mut self) {
        // The first tick lets pools with `min-builders` start theirs.
        let mut message = Message::Event(Box::new(Event::Tick));
        loop {
            match self.take(message) {
                Flow::Continue => message = self.select().await,
                Flow::Exit => return,
            }
        }
    }

    async fn select(&mut self) -> Message {
        let deadline = self.fleet.next_deadline().map(Instant::from_std);
        let tick = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // The loop holds a sender itself, so the channel is never closed.
            Some(message) = self.messages.recv() => message,
            () = tick => Message::Event(Box::new(Event::Tick)),
        }
    }

    fn take(&mut self, message: Message) -> Flow {
        match message {
            Message::Event(event) => self.apply(*event),
            Message::NewBuild(build) => {
                let event = Event::Accepted { build: build.id, request: build.request.clone() };
                self.builds.insert(build.id, build);
                self.apply(event)
            }
            Message::Adopt(survivors) => self.adopt(survivors),
            Message::Status(answer) => {
                let _asker_left = answer.send(self.fleet.status(Instant::now().into_std()));
                Flow::Continue
            }
            Message::Remote(builder, answer) => {
                let _asker_left = answer.send(self.builders.get(&builder).and_then(BuilderHandle::remote));
                Flow::Continue
            }
            Message::Explain(subject, answer) => {
                let now = Instant::now().into_std();
                let _asker_left = answer.send(explain(&self.fleet.matching(now, &subject)));
                Flow::Continue
            }
        }
    }

    fn adopt(&mut self, survivors: Vec<Survivor>) -> Flow {
        let mut adoptions = Vec::new();
        for Survivor { launched, age } in survivors {
            let instance = launched.instance.clone();
            if self.fleet.knows(&instance.id) {
                continue;
            }
            let builder = self.fleet.reserve_builder();
            tracing::info!(%builder, instance = %instance.id, pool = %instance.pool, ?age, "adopt");
            let handle = builder_task::adopt(&self.shared, &self.handle, builder, launched);
            self.builders.insert(builder, handle);
            adoptions.push(Adoption { builder, instance, age });
        }
        if adoptions.is_empty() { Flow::Continue } else { self.apply(Event::Adopted(adoptions)) }
    }

    fn apply(&mut self, event: Event) -> Flow {
        match &event {
            Event::Gone(builder) => {
                self.builders.remove(builder);
            }
            Event::AttemptEnded { lease, .. } => {
                self.attempts.remove(lease);
            }
            Event::Lost { fault, .. } => self.shared.metrics.lost(fault.kind),
            Event::Accepted { .. }
            | Event::InputsKnown(_)
            | Event::InputsMadeOn { .. }
            | Event::ClientGone(_)
            | Event::Progressed { .. }
            | Event::Delivered { .. }
            | Event::Fetched { .. }
            | Event::Adopted(_)
            | Event::Launched { .. }
            | Event::Progress { .. }
            | Event::Ready { .. }
            | Event::Load { .. }
            | Event::Collected(_)
            | Event::Interrupted { .. }
            | Event::Endangered { .. }
            | Event::Warned { .. }
            | Event::Clock { .. }
            | Event::StartRequested(_)
            | Event::DrainRequested(_)
            | Event::StopRequested(_)
            | Event::ShutdownRequested
            | Event::ShutdownForced
            | Event::Tick => {}
        }
        tracing::debug!(?event, "apply");
        let actions = self.fleet.apply(Instant::now().into_std(), event);
        let mut flow = Flow::Continue;
        for action in actions {
            tracing::debug!(?action, "perform");
            if let Flow::Exit = self.perform(action) {
                flow = Flow::Exit;
            }
        }
        let offers = self.fleet.offers();
        self.offers.send_if_modified(|current| {
            let changed = !Arc::ptr_eq(current, &offers);
            *current = offers;
            changed
        });
        flow
    }

    fn perform(&mut self, action: Action) -> Flow {
        match action {
            Action::Launch { builder, pool, demand, at_most } => {
                tracing::info!(%builder, %pool, ?demand, ?at_most, "launch");
                self.shared.metrics.launched(&pool);
                let handle = builder_task::spawn(&self.shared, &self.handle, builder, &pool, demand, at_most);
                self.builders.insert(builder, handle);
            }
            Action::Terminate { builder, ending, reason } => match self.builders.get(&builder) {
                Some(handle) => {
                    tracing::info!(%builder, ?ending, reason, "terminate");
                    handle.terminate(ending);
                }
                // Its task has ended already: the provider agreed that it is gone.
                None => self.handle.event(Event::Gone(builder)),
            },
            Action::CollectGarbage { builder, bytes } => {
                tracing::info!(%builder, bytes, "collect garbage");
                match self.builders.get(&builder).and_then(BuilderHandle::remote) {
                    Some(remote) => collect::spawn(&self.shared, &self.handle, remote, bytes),
                    None => self.handle.event(Event::Collected(builder)),
                }
            }
            Action::Start { build, builder, lease } => self.start(build, builder, lease),
            Action::Abort { build, lease } => match self.attempts.get(&lease) {
                Some(token) => token.cancel(),
                None => self.handle.event(Event::AttemptEnded { build, lease, end: AttemptEnd::Aborted }),
            },
            Action::Tell { build, note } => {
                if let Some(build) = self.builds.get(&build) {
                    build.tell(note);
                }
            }
            Action::Finish { build, outcome } => {
                tracing::info!(%build, ?outcome, "finished");
                if let Some(build) = self.builds.remove(&build) {
                    build.finish(outcome);
                }
            }
            Action::Record(record) => {
                if let Record::Build(build) = &record {
                    self.shared.foresight().learn(build);
                }
                self.shared.history.record(super::since_1970(), record);
            }
            Action::Exit => return Flow::Exit,
        }
        Flow::Continue
    }

    fn start(&mut self, build: BuildId, builder: BuilderId, lease: LeaseId) {
        let remote = self.builders.get(&builder).and_then(BuilderHandle::remote);
        match (self.builds.get(&build), remote) {
            (Some(build), Some(remote)) => {
                let token = CancellationToken::new();
                self.attempts.insert(lease, token.clone());
                build_task::spawn(&self.shared, &self.handle, Arc::clone(build), remote, lease, token);
            }
            (_, _) => {
                let failure = crate::model::Failure::new(
                    crate::model::FailureKind::BuilderLost,
                    format!("builder {builder} went away before the build started"),
                );
                self.handle.event(Event::AttemptEnded { build, lease, end: AttemptEnd::Failed(failure) });
            }
        }
    }
}

/// The decisions about some builds, as lines for a person.
fn explain(builds: &[BuildStatus]) -> Vec<String> {
    let mut lines = Vec::new();
    for build in builds {
        lines.push(format!("{} {}", build.id, build.drv));
        lines.extend(build.why.iter().map(|why| format!("  {why}")));
    }
    lines
}
