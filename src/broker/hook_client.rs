//! One hook: asks until it is accepted, then waits for its build. Its socket closing is cancellation.
//!
//! Log and notes go from here straight to the hook; only facts go through the owner loop. So does the word that a short
//! build has begun: its hook starts the importer beside it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::build::{Build, End, Listener, Shelf, Shelved, Source};
use super::driver::{DriverHandle, Message};
use super::lineage::Patience;
use super::{Shared, notes};
use crate::ipc::{Ask, Frame, FrameError, HookReply, HookRequest, WireFailure};
use crate::model::{BuildInputs, BuildRequest, Failure, FailureKind, OutputName, StorePath, StorePathError};
use crate::scheduler::{Answer, Event, Note};

/// A build that takes no longer than this is worth an importer that waits for it.
const SHORT: Duration = Duration::from_secs(2);

/// Answers one hook until it is accepted, which is what Nix waits for, or gone.
pub(crate) async fn decide(
    stream: &mut UnixStream,
    uid: u32,
    shared: &Shared,
    driver: &DriverHandle,
) -> anyhow::Result<Option<Accepted>> {
    loop {
        let request = match Frame::receive(stream).await {
            Err(FrameError::Closed) => return Ok(None),
            frame => frame?.parse::<HookRequest>()?,
        };
        match request {
            HookRequest::Ask(ask) => {
                let accepted = consider(ask, Patience::Moment, stream, uid, shared, driver).await?;
                if accepted.is_some() {
                    return Ok(accepted);
                }
            }
            HookRequest::Resume(ask) => {
                // Nix has been told "accept": there is no choice any more.
                let ask = Ask { am_willing: false, ..ask };
                match consider(ask, Patience::UntilKnown, &mut Discard, uid, shared, driver).await? {
                    Some(accepted) => {
                        send(stream, &accepted.reply()).await?;
                        return Ok(Some(accepted));
                    }
                    None => {
                        let failure = Failure::new(
                            FailureKind::Request,
                            "the broker was restarted and no longer has a pool for this build; see `broker why`",
                        );
                        send(stream, &HookReply::Failed(WireFailure::from(&failure))).await?;
                        return Ok(None);
                    }
                }
            }
            HookRequest::Inputs { .. } => bail!("a hook sent inputs before it was accepted"),
        }
    }
}

/// Where a verdict goes: to the hook that asked, or nowhere when the hook cannot take another answer than "accept".
trait VerdictSink {
    async fn reply(&mut self, reply: &HookReply) -> anyhow::Result<()>;
}

struct Discard;

impl VerdictSink for Discard {
    async fn reply(&mut self, _reply: &HookReply) -> anyhow::Result<()> {
        Ok(())
    }
}

impl VerdictSink for UnixStream {
    async fn reply(&mut self, reply: &HookReply) -> anyhow::Result<()> {
        send(self, reply).await
    }
}

/// An accepted build and its only client. Dropped, the client is gone.
pub(crate) struct Accepted {
    build: Arc<Build>,
    machine: String,
    listener: Listener,
    gone: Gone,
    imports_meanwhile: bool,
    prepares: bool,
    /// Keeps the shutdown waiting.
    _token: TaskTrackerToken,
}

/// Tells the scheduler on drop; harmless when the build has ended.
struct Gone {
    build: crate::model::BuildId,
    driver: DriverHandle,
}

impl Drop for Gone {
    fn drop(&mut self) {
        self.driver.event(Event::ClientGone(self.build));
    }
}

/// The verdict, from memory and the derivation's own file: Nix's whole event loop waits for it, unless it has been told
/// "accept" already.
async fn consider(
    mut ask: Ask,
    patience: Patience,
    sink: &mut impl VerdictSink,
    uid: u32,
    shared: &Shared,
    driver: &DriverHandle,
) -> anyhow::Result<Option<Accepted>> {
    let (imports_meanwhile, prepares, began) = (ask.imports_meanwhile, ask.prepares, Instant::now());
    let file = ask.file.take();
    let mut request = BuildRequest::try_from(ask).context("read a hook's question")?;
    request.prediction = shared.foresight().predict(&request.drv, &request.requirement);
    let answer = match shared.lineages.complete(&mut request, file.as_deref(), patience).await {
        Ok(()) => driver.offers().answer(&request),
        Err(still_reading) => Answer::Postpone { why: still_reading.to_string() },
    };
    shared.metrics.answered(&answer, began.elapsed());
    match answer {
        Answer::Accept { pool } => {
            let id = shared.next_build_id();
            let (build, listener) = Build::new(id, request, Source::LocalStore, &shared.spool_dir);
            shared.logs.keep(&build, Some(uid));
            let gone = Gone { build: build.id, driver: driver.clone() };
            driver.send(Message::NewBuild(Arc::clone(&build)));
            let _token = shared.clients.token();
            let accepted = Accepted {
                build,
                machine: pool.to_string(),
                listener,
                gone,
                imports_meanwhile,
                prepares,
                _token,
            };
            sink.reply(&accepted.reply()).await?;
            Ok(Some(accepted))
        }
        Answer::Decline { why } => {
            tracing::debug!(drv = %request.drv, why, "decline");
            shared.remember_refusal(&request.drv, format!("declined, {why}"));
            sink.reply(&HookReply::Decline { why }).await?;
            Ok(None)
        }
        Answer::Postpone { why } => {
            tracing::debug!(drv = %request.drv, why, "postpone");
            shared.remember_refusal(&request.drv, format!("Nix is to ask again, {why}"));
            sink.reply(&HookReply::Postpone { why }).await?;
            Ok(None)
        }
    }
}

impl Accepted {
    fn reply(&self) -> HookReply {
        HookReply::Accept { build: self.build.id.0, machine: self.machine.clone() }
    }

    /// Serves its hook until either side is done.
    pub(crate) async fn serve(self, stream: UnixStream, shared: &Shared) -> anyhow::Result<()> {
        let (mut reader, mut writer) = stream.into_split();
        match Frame::receive(&mut reader).await?.parse()? {
            HookRequest::Inputs { paths, wanted_outputs } => match read_inputs(&paths, &wanted_outputs) {
                Ok(inputs) => {
                    self.gone.driver.inputs_made_on(self.build.id, shared.origins.of(&inputs.paths));
                    self.build.set_inputs(inputs);
                }
                Err(error) => {
                    let failure = Failure::new(FailureKind::Request, format!("Nix sent bad inputs: {error}"));
                    let reply = HookReply::Failed(WireFailure::from(&failure));
                    return send(&mut writer, &reply).await;
                }
            },
            HookRequest::Ask(_) | HookRequest::Resume(_) => bail!("a hook asked again after it was accepted"),
        }
        self.gone.driver.event(Event::InputsKnown(self.build.id));
        let token = super::fresh_token()?;
        let is_short = self.build.request.prediction.duration <= SHORT;
        let mut relay = Relay {
            build: &self.build,
            listener: self.listener,
            shelf: self.imports_meanwhile.then_some(&shared.shelf),
            soon: (self.prepares && is_short).then(|| token.clone()),
            position: 0,
        };
        // Outputs that a hook has begun to take stay where they are until it has ended.
        let (end, _arriving) = tokio::select! {
            end = relay.until_the_end(&mut writer) => end?,
            () = closed(&mut reader) => return Ok(()),
        };
        match end {
            End::Succeeded(products) => {
                let _shelved = shared.shelf.put(token.clone(), products);
                send(&mut writer, &HookReply::Succeeded { token }).await?;
                // The importer runs now; the hook closes when it has ended.
                closed(&mut reader).await;
                Ok(())
            }
            End::Failed(failure) => send(&mut writer, &HookReply::Failed(WireFailure::from(&failure))).await,
            End::Cancelled => Ok(()),
        }
    }
}

/// Log, notes and outputs that arrive of one build on their way to its hook.
struct Relay<'a> {
    build: &'a Build,
    listener: Listener,
    /// Where outputs are put that arrive, if the hook takes them so.
    shelf: Option<&'a Shelf>,
    /// What will open the outputs, if the hook is to get ready for them as soon as the build has begun.
    soon: Option<String>,
    position: u64,
}

impl<'a> Relay<'a> {
    async fn until_the_end(
        &mut self,
        writer: &mut OwnedWriteHalf,
    ) -> anyhow::Result<(End, Option<Shelved<'a>>)> {
        let mut notes_open = true;
        // What an attempt that broke off left is taken away when there is something newer, or an end.
        let mut shelved = None;
        loop {
            tokio::select! {
                () = self.build.log.grown_past(self.position) => self.send_log(writer).await?,
                note = self.listener.notes.recv(), if notes_open => match note {
                    Some(note) => {
                        if let (Note::Started { .. }, Some(token)) = (&note, &self.soon) {
                            send(writer, &HookReply::Soon { token: token.clone() }).await?;
                        }
                        send(writer, &HookReply::Note { text: notes::line(&note) }).await?;
                    }
                    None => notes_open = false,
                },
                Ok(()) = self.listener.arriving.changed(), if self.shelf.is_some() => {
                    let products = self.listener.arriving.borrow_and_update().clone();
                    if let (Some(products), Some(shelf)) = (products, self.shelf) {
                        self.send_log(writer).await?;
                        let token = super::fresh_token()?;
                        drop(shelved.replace(shelf.put(token.clone(), products)));
                        send(writer, &HookReply::Arriving { token }).await?;
                    }
                }
                end = ended(&mut self.listener.end) => {
                    self.send_log(writer).await?;
                    return Ok((end, shelved));
                }
            }
        }
    }

    async fn send_log(&mut self, writer: &mut OwnedWriteHalf) -> anyhow::Result<()> {
        loop {
            let chunk = self.build.log.read_from(self.position).context("read back a build log")?;
            if chunk.is_empty() {
                return Ok(());
            }
            self.position += chunk.len() as u64;
            Frame::Log(chunk).send(writer).await?;
        }
    }
}

/// The end of a build. Cancel-safe.
pub(crate) async fn ended(end: &mut tokio::sync::watch::Receiver<Option<End>>) -> End {
    match end.wait_for(Option::is_some).await.map(|end| end.clone()) {
        Ok(Some(end)) => end,
        // The owner loop has ended without a word for this build: the broker is dying.
        Ok(None) | Err(_) => End::Failed(Failure::new(FailureKind::Broker, "the broker has ended")),
    }
}

/// Returns when the peer has closed, or says something it has no business to say.
async fn closed(reader: &mut OwnedReadHalf) {
    let _bytes_or_error = reader.read(&mut [0; 1]).await;
}

async fn send(writer: &mut (impl AsyncWrite + Unpin), reply: &HookReply) -> anyhow::Result<()> {
    Ok(Frame::message(reply)?.send(writer).await?)
}

fn read_inputs(paths: &[String], wanted_outputs: &[String]) -> Result<BuildInputs, StorePathError> {
    let paths: Result<BTreeSet<_>, _> = paths.iter().map(|path| StorePath::parse(path)).collect();
    let outputs: Result<BTreeSet<_>, _> = wanted_outputs.iter().map(|name| OutputName::parse(name)).collect();
    Ok(BuildInputs { paths: paths?, wanted_outputs: outputs? })
}
