//! The conversation with Nix: settings, requests and their replies, and after an accept the one build this process is
//! there for.
//!
//! ```text
//!  settings ─▶ asking ─▶ declined, postponed ─▶ asking ...       (one process answers any number of requests)
//!                 └────▶ accepted ─▶ inputs ─▶ waiting ─▶ importing ─▶ exit
//!                                      ▲          │ the broker went away
//!                                      └─ resume ◀┘
//! ```
//!
//! The end of Nix's stream means nothing after the accept: every version closes it right after the lists.

use std::io::{self, BufReader, StdinLock};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::absence::{Absence, Otherwise, Sign};
use super::broker_client::{BrokerClient, BrokerError};
use super::handover::Handover;
use super::importer::{self, Import, ImportError, Ready, fits_machine_line};
use super::log_pipe::LogPipe;
use super::notes::Notes;
use super::resume::{self, Patience, Resumed};
use super::settings::ClientSettings;
use super::stock_client::StockReply;
use super::waiting::{self, End};
use super::{replies, sentence};
use crate::ipc::{Ask, FrameError, HookReply, HookRequest, WireFailure};
use crate::model::DrvPath;
use crate::protocol::derivation::file;
use crate::protocol::hook::{HookInput, HookReadError, Lists, SettingsBlock, Try};
use crate::protocol::log_line::Level;

/// How long Nix's event loop may stand still for a broker that does not answer.
const VERDICT_LIMIT: Duration = Duration::from_secs(1);
/// How often one build may be handed to a new broker in quick succession: one that dies of it would never end.
const MAX_RESUMES: u32 = 5;
/// The longest `.drv` file to bring along, in bytes; most have a few thousand.
const MAX_BROUGHT: u64 = 64 << 10;
/// A broker that lasted so long did not die of this build.
const LONG_ATTEMPT: Duration = Duration::from_secs(60);

/// What to tell Nix.
enum Decision {
    /// The broker takes it.
    Accept {
        broker: BrokerClient,
        ask: Ask,
        machine: String,
    },
    /// The stock hook takes it.
    AcceptedByStock {
        machine: String,
    },
    Decline,
    DeclinePermanently,
    Postpone,
}

/// What takes the place of a broker that cannot be asked.
#[derive(Clone, Copy)]
enum Instead {
    /// The machines in `builders`, by way of the stock hook.
    OwnMachines,
    /// The broker itself, when Nix asks again.
    BrokerLater,
    /// Nix, which builds it here or says that it cannot.
    Nix,
}

/// What one hook process has and knows.
struct Conversation {
    socket: PathBuf,
    verbosity: String,
    block: SettingsBlock,
    settings: ClientSettings,
    /// The connection of an earlier request.
    broker: Option<BrokerClient>,
    stock: Handover,
    has_warned: bool,
    absence: Option<Absence>,
}

/// Talks with Nix until there is nothing more to say.
pub(super) fn run(socket: PathBuf, verbosity: String) -> ExitCode {
    let log = LogPipe::open();
    let mut input = HookInput::new(io::stdin().lock());
    let block = match input.settings() {
        Ok(block) => block,
        Err(HookReadError::Ended) => return ExitCode::SUCCESS,
        Err(error) => return decline_and_end(&error),
    };
    let nix_remote = std::env::var("NIX_REMOTE").ok();
    let processors = std::thread::available_parallelism().map_or(0, |n| n.get() as u64);
    let settings = ClientSettings::read(&block, nix_remote.as_deref(), processors);
    let conversation = Conversation {
        socket,
        verbosity,
        block,
        settings,
        broker: None,
        stock: Handover::default(),
        has_warned: false,
        absence: None,
    };
    // Nobody is there to be told when writing to Nix fails.
    conversation.serve(input, log).unwrap_or(ExitCode::FAILURE)
}

/// Nix waits for a reply to a request that cannot be read, and nothing after it can be.
fn decline_and_end(error: &HookReadError) -> ExitCode {
    replies::say(Level::Warning, &format!("warning: nix-broker: cannot understand Nix: {}", sentence(error)));
    let _gone = replies::write("# decline\n");
    ExitCode::FAILURE
}

impl Conversation {
    fn serve(mut self, mut input: HookInput<StdinLock<'_>>, log: LogPipe) -> io::Result<ExitCode> {
        let mut has_replied = false;
        while input.request_begins(has_replied) {
            let request = match input.request() {
                Ok(request) => request,
                Err(HookReadError::Ended) => break,
                Err(error) => return Ok(decline_and_end(&error)),
            };
            match self.decide_safely(&request) {
                Decision::Accept { broker, ask, machine } => {
                    replies::write(&format!("# accept\n{machine}\n"))?;
                    return Ok(match input.lists() {
                        Ok(lists) => {
                            drop(input);
                            Build::new(self, request, ask, machine, lists, log).run(broker)
                        }
                        // Nix is gone, and with our death the broker knows.
                        Err(_) => ExitCode::FAILURE,
                    });
                }
                Decision::AcceptedByStock { machine } => {
                    replies::write(&format!("# accept\n{machine}\n"))?;
                    let lists = input.lists();
                    return Ok(lists.map_or(ExitCode::FAILURE, |lists| {
                        let status = self.stock.finish(&lists);
                        log.drain();
                        status
                    }));
                }
                Decision::Decline => replies::write("# decline\n")?,
                Decision::Postpone => replies::write("# postpone\n")?,
                Decision::DeclinePermanently => {
                    replies::write("# decline-permanently\n")?;
                    return Ok(ExitCode::SUCCESS);
                }
            }
            has_replied = true;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// A defect of ours must not end the user's whole operation.
    fn decide_safely(&mut self, request: &Try) -> Decision {
        catch_unwind(AssertUnwindSafe(|| self.decide(request))).unwrap_or_else(|_| {
            self.warn("a defect of broker-hook; this build is left to Nix");
            Decision::Decline
        })
    }

    fn decide(&mut self, request: &Try) -> Decision {
        if self.settings.opted_out() {
            return Decision::DeclinePermanently;
        }
        if let Some(store) = self.settings.foreign_store() {
            let why = format!("not used for the store `{store}`, only for this machine's own");
            self.warn(&why);
            return Decision::Decline;
        }
        if !request.features.iter().chain([&request.system]).all(|word| fits_machine_line(word)) {
            return Decision::Decline;
        }
        if self.absence.is_some_and(|absence| absence.holds(Instant::now())) {
            let instead = self.instead(request);
            return self.without_broker(instead, request);
        }
        let ask = self.settings.ask(request);
        let answer = self.ask_broker(&ask);
        let sign = answer.as_ref().err().and_then(BrokerError::sign);
        self.absence = sign.map(|sign| Absence::noticed(self.absence, sign, Instant::now()));
        match answer {
            Ok((broker, HookReply::Accept { machine, .. })) => {
                Decision::Accept { broker, ask, machine: one_line(&machine) }
            }
            Ok((broker, HookReply::Decline { why })) => {
                self.broker = Some(broker);
                let names_machines = self.settings.names_machines();
                let decision = if names_machines { self.ask_stock(request) } else { Decision::Decline };
                if matches!(decision, Decision::Decline) && self.settings.cannot_build_locally(request) {
                    // Nix will say that it cannot build this, and not what our pools lack.
                    let name = one_line(&request.drv);
                    replies::say(
                        Level::Warning,
                        &format!("nix-broker: `{name}` fits no pool: {}", one_line(&why)),
                    );
                }
                decision
            }
            Ok((broker, HookReply::Postpone { .. })) => {
                self.broker = Some(broker);
                Decision::Postpone
            }
            Ok((
                broker,
                HookReply::Note { .. }
                | HookReply::Soon { .. }
                | HookReply::Arriving { .. }
                | HookReply::Succeeded { .. }
                | HookReply::Failed(_),
            )) => self.failed(&broker.out_of_turn(), request),
            Err(error) => self.failed(&error, request),
        }
    }

    fn ask_broker(&mut self, ask: &Ask) -> Result<(BrokerClient, HookReply), BrokerError> {
        // Not kept for a later broker, which has the time to read it: a thousand hooks may wait at once.
        let request = HookRequest::Ask(Ask { file: file_of(&ask.drv), ..ask.clone() });
        let first = match self.broker.take() {
            Some(mut broker) => broker.ask(&request, VERDICT_LIMIT).map(|reply| (broker, reply)),
            None => self.ask_anew(&request),
        };
        match first {
            // The last word of a broker that was told to stop, maybe to be started again, and maybe hours ago: whoever
            // listens after it is worth a try. That nobody does says less than that somebody has hung up.
            Err(error) if error.sign() == Some(Sign::HungUp) => match self.ask_anew(&request) {
                Err(later) if later.sign() == Some(Sign::Nobody) => Err(error),
                answer => answer,
            },
            answer => answer,
        }
    }

    fn ask_anew(&self, request: &HookRequest) -> Result<(BrokerClient, HookReply), BrokerError> {
        let mut broker = BrokerClient::connect(&self.socket)?;
        let reply = broker.ask(request, VERDICT_LIMIT)?;
        Ok((broker, reply))
    }

    /// The broker could not be asked.
    fn failed(&mut self, error: &BrokerError, request: &Try) -> Decision {
        let instead = self.instead(request);
        self.warn_of(error, instead);
        self.without_broker(instead, request)
    }

    /// The user's own machines, if there are any, are as good as they were before there was a broker. Without them Nix may
    /// have to come back, if the broker is only absent for a while.
    fn instead(&self, request: &Try) -> Instead {
        if self.settings.names_machines() {
            return Instead::OwnMachines;
        }
        let cannot = self.settings.cannot_build_locally(request);
        let otherwise = if cannot { Otherwise::Fails } else { Otherwise::Built };
        let is_worth_waiting = |absence: Absence| absence.is_worth_waiting(Instant::now(), otherwise);
        if self.absence.is_some_and(is_worth_waiting) { Instead::BrokerLater } else { Instead::Nix }
    }

    fn without_broker(&mut self, instead: Instead, request: &Try) -> Decision {
        match instead {
            Instead::OwnMachines => self.ask_stock(request),
            Instead::BrokerLater => Decision::Postpone,
            Instead::Nix => Decision::Decline,
        }
    }

    fn warn_of(&mut self, error: &BrokerError, instead: Instead) {
        let instead = match instead {
            Instead::OwnMachines => "using the machines in `builders` meanwhile",
            Instead::BrokerLater => "asking it again for a while, then building without it",
            Instead::Nix => "building without it",
        };
        let hint = match error {
            // Its own words say what to do.
            BrokerError::Refused { .. } => "see `broker doctor`",
            BrokerError::Connect { .. }
            | BrokerError::Silent { .. }
            | BrokerError::Broken { .. }
            | BrokerError::OutOfTurn { .. } => "is it running? `systemctl status nix-broker`",
        };
        // The others are sentences of their own.
        let cannot = match error {
            BrokerError::Connect { .. } | BrokerError::Broken { .. } => "cannot ",
            BrokerError::Silent { .. } | BrokerError::Refused { .. } | BrokerError::OutOfTurn { .. } => "",
        };
        self.warn(&format!("{cannot}{}; {instead} ({hint})", sentence(error)));
    }

    fn ask_stock(&mut self, request: &Try) -> Decision {
        match self.stock.ask(&self.block, request, &self.verbosity) {
            Ok(StockReply::Accept { machine }) => Decision::AcceptedByStock { machine: one_line(&machine) },
            Ok(StockReply::Postpone) => Decision::Postpone,
            // It means its machines for good, and the broker may be back for the next request.
            Ok(StockReply::Decline | StockReply::DeclinePermanently | StockReply::Died) => Decision::Decline,
            Err(error) => {
                self.warn(&format!("cannot {}", sentence(&error)));
                Decision::Decline
            }
        }
    }

    /// One warning per process: what is wrong stays wrong for a while, and Nix asks about every derivation.
    fn warn(&mut self, text: &str) {
        if !std::mem::replace(&mut self.has_warned, true) {
            replies::say(Level::Warning, &format!("warning: nix-broker: {text}"));
        }
    }
}

/// What a derivation's file says, if it is there and of a usual size; the broker reads the others itself.
fn file_of(drv: &str) -> Option<String> {
    let drv = DrvPath::parse(drv).ok()?;
    let bytes = file::read(&drv.as_store_path().to_path_buf(), MAX_BROUGHT).ok()?;
    String::from_utf8(bytes).ok()
}

/// Nix reads the machine's name up to the end of the line.
fn one_line(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The build this process has been accepted for.
struct Build {
    socket: PathBuf,
    verbosity: String,
    block: SettingsBlock,
    request: Try,
    ask: Ask,
    machine: String,
    lists: Lists,
    log: LogPipe,
    notes: Notes,
    name: String,
}

impl Build {
    fn new(from: Conversation, request: Try, ask: Ask, machine: String, lists: Lists, log: LogPipe) -> Self {
        let name =
            DrvPath::parse(&request.drv).map_or_else(|_| request.drv.clone(), |drv| drv.name().to_owned());
        Self {
            socket: from.socket,
            verbosity: from.verbosity,
            block: from.block,
            notes: Notes::new(&name),
            name,
            request,
            ask,
            machine,
            lists,
            log,
        }
    }

    fn run(mut self, mut broker: BrokerClient) -> ExitCode {
        let mut lost_before = 0;
        loop {
            let began = Instant::now();
            let lost = match self.attempt(broker) {
                Ok(code) => return code,
                Err(lost) => lost,
            };
            if began.elapsed() > LONG_ATTEMPT {
                lost_before = 0;
            } else if lost_before == MAX_RESUMES {
                return self.fail_here("lost the broker too many times");
            }
            let note = format!("lost the broker ({}), waiting for it to come back", sentence(&lost));
            self.notes.add(&note, Instant::now());
            self.notes.show_now(replies::write_if_free);
            match resume::resume(&self.socket, &self.ask, Patience::from_environment(), lost_before) {
                Ok(Resumed::Taken(found)) => broker = found,
                Ok(Resumed::Failed(failure)) => return self.fail(&failure),
                Err(error) => {
                    return self.fail_here(&format!("lost the broker, and cannot {}", sentence(&error)));
                }
            }
            // For whoever reads the stored log.
            let _gone = self.log.write_line("nix-broker: the broker was restarted, the build begins again");
            lost_before += 1;
        }
    }

    /// One broker, from the inputs to the end. An error when the broker was lost on the way.
    fn attempt(&mut self, broker: BrokerClient) -> Result<ExitCode, FrameError> {
        let inputs =
            HookRequest::Inputs { paths: self.lists.inputs(), wanted_outputs: self.lists.wanted_outputs() };
        match broker.send(&inputs) {
            // A broker that hangs up may have said why: what it said is read below, and its end is noticed there.
            Ok(())
            | Err(BrokerError::Broken { source: FrameError::Io(_), .. } | BrokerError::Silent { .. }) => {}
            Err(error) => return Ok(self.fail_here(&format!("cannot {}", sentence(&error)))),
        }
        drop(inputs);
        let mut stream = BufReader::new(broker.into_stream());
        let (mut is_imported, mut ready) = (false, None);
        loop {
            let until = ready.as_ref().map(Ready::until);
            let end = waiting::wait(&mut stream, &mut self.log, &mut self.notes, until);
            match end {
                End::Soon(token) => ready = importer::prepare(&self.import_of(&token)),
                End::Overdue => ready = None,
                // Whoever fails here may be ahead of a transfer that breaks off, which the broker does again.
                End::Arriving(token) => is_imported = is_imported || self.import(&token, None).is_ok(),
                // It is in the store, whatever else there was to say about it.
                End::Succeeded(_) | End::Failed(_) | End::Lost(_) if is_imported => return Ok(self.succeed()),
                End::Succeeded(token) => {
                    return match self.import(&token, ready) {
                        Ok(()) => Ok(self.succeed()),
                        // The outputs went with the broker; the next one builds them again.
                        Err(_) if waiting::is_gone(&mut stream) => Err(FrameError::Closed),
                        Err(error) => {
                            let drv = &self.request.drv;
                            let reason = format!("cannot import the outputs of {drv}: {}", sentence(&error));
                            Ok(self.fail_here(&reason))
                        }
                    };
                }
                End::Failed(failure) => return Ok(self.fail(&failure)),
                End::Lost(error) => return Err(error),
            }
        }
    }

    fn succeed(&self) -> ExitCode {
        self.log.drain();
        ExitCode::SUCCESS
    }

    fn import(&self, token: &str, ready: Option<Ready>) -> Result<(), ImportError> {
        importer::import(&self.import_of(token), ready)
    }

    fn import_of<'a>(&'a self, token: &'a str) -> Import<'a> {
        Import {
            settings: &self.block,
            request: &self.request,
            lists: &self.lists,
            verbosity: &self.verbosity,
            socket: &self.socket,
            token,
            machine: &self.machine,
        }
    }

    fn fail_here(&mut self, reason: &str) -> ExitCode {
        self.fail(&WireFailure { reason: reason.to_owned(), exit_status: 1, is_build_failure: false })
    }

    /// Says why, where Nix shows it: Nix itself only knows the exit status. A derivation's own failure is shown by Nix
    /// with the end of the log, and needs no error of ours beside it.
    fn fail(&mut self, failure: &WireFailure) -> ExitCode {
        self.notes.overtaken(replies::write_if_free);
        let reason = failure.reason.trim_end();
        // A Nix that no longer reads has ended this build.
        let _gone = self.log.write_line(&format!("nix-broker: {reason}"));
        self.log.drain();
        if !failure.is_build_failure {
            replies::say(Level::Error, &format!("error: nix-broker: {}: {reason}", self.name));
        }
        ExitCode::from(failure.exit_status.max(1))
    }
}
