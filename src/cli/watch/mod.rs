//! `broker status --watch` on a terminal: the whole picture on one screen, kept up to date, with keys.
//!
//! ```text
//! sources ──Input──▶ mod (loop) ──Event──▶ model ──▶ Effects ──▶ mod
//!                         └────────────── model ──▶ draw ──▶ terminal
//! ```
//!
//! `model`, `next`, `grid` and `draw` are pure; `sources`, `terminal` and the loop below are all that touch the world.

mod draw;
mod grid;
mod keys;
mod model;
mod next;
mod sources;
mod terminal;
#[cfg(test)]
mod tests;

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid, kill_process};

use self::model::{Effect, Event, Model};
use self::sources::{Follower, Input};
use self::terminal::Terminal;
use super::report::Complaint;

/// Inputs that wait for the screen; who sends more waits too.
const WAITING: usize = 256;
const TICK: Duration = Duration::from_secs(1);

/// Whether there is a person at a terminal that can be drawn on.
pub(super) fn is_possible() -> bool {
    let is_capable = std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal() && is_capable
}

/// Shows the view until somebody quits.
pub(super) fn run(socket: &Path) -> Result<ExitCode, Complaint> {
    let (sender, inputs) = sync_channel(WAITING);
    sources::signals(sender.clone())?;
    let terminal = Terminal::take()?;
    sources::pictures(socket.to_owned(), sender.clone())?;
    sources::keys(sender.clone())?;
    let view = View { socket, sender, terminal, model: Model::new(), follower: Follower::default() };
    Ok(view.run(&inputs)?)
}

struct View<'a> {
    socket: &'a Path,
    sender: SyncSender<Input>,
    terminal: Terminal,
    model: Model,
    follower: Follower,
}

impl View<'_> {
    fn run(mut self, inputs: &Receiver<Input>) -> std::io::Result<ExitCode> {
        let mut tick = Instant::now() + TICK;
        loop {
            if !self.terminal.is_taken() {
                return Err(std::io::Error::other("a part of the view has ended with a panic"));
            }
            self.terminal.show(|width, height| draw::draw(&self.model, width, height))?;
            let first = match inputs.recv_timeout(tick.saturating_duration_since(Instant::now())) {
                Ok(input) => input,
                Err(RecvTimeoutError::Timeout) => {
                    tick = Instant::now() + TICK;
                    Input::Event(Event::Tick)
                }
                // We hold a sender ourselves.
                Err(RecvTimeoutError::Disconnected) => return Ok(ExitCode::SUCCESS),
            };
            // All that has come is one picture.
            for input in std::iter::once(first).chain(inputs.try_iter().take(WAITING)) {
                if let Some(code) = self.take(input)? {
                    return Ok(code);
                }
            }
        }
    }

    fn take(&mut self, input: Input) -> std::io::Result<Option<ExitCode>> {
        let event = match input {
            Input::Event(event) => event,
            Input::Resized => return Ok(None),
            Input::Resumed => {
                self.terminal.reclaim()?;
                return Ok(None);
            }
            Input::End(status) => return Ok(Some(ExitCode::from(status))),
        };
        for effect in self.model.update(event) {
            match effect {
                Effect::Follow(build) => self.follower.follow(self.socket, build, &self.sender)?,
                Effect::Order(request) => sources::order(self.socket, request, self.sender.clone())?,
                Effect::Redraw => self.terminal.forget()?,
                Effect::Suspend => self.terminal.lend(|| {
                    // Goes on with SIGCONT; who cannot be stopped goes on at once.
                    let _stopped = kill_process(getpid(), Signal::STOP);
                })?,
                Effect::Quit => return Ok(Some(ExitCode::SUCCESS)),
            }
        }
        Ok(None)
    }
}
