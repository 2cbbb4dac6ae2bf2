//! What the view knows, and what a fact or a key changes: no clock, no terminal, no socket.
//!
//! [`Model::update`] takes an [`Event`] and gives the [`Effect`]s that are wanted; `draw` shows the model.

use std::collections::VecDeque;

use super::keys::Key;
use crate::cli::log_lines::LogLine;
use crate::cli::picture;
use crate::ipc::view::{BuildView, StatusView};
use crate::ipc::{OperatorRequest, Target};

/// Lines of a log that can be scrolled through; `broker logs` has all of them.
const MAX_LINES: usize = 5_000;
/// Lines that a page key moves by.
const PAGE: usize = 10;

/// Something happened.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A picture came.
    Picture(Box<StatusView>),
    /// The broker cannot be reached, or is gone. Tried again until it is back.
    Lost(String),
    Key(Key),
    /// Lines of the log that is followed.
    Log {
        build: u64,
        lines: Vec<LogLine>,
    },
    /// The log that is followed has ended, or cannot be had: why.
    LogEnded {
        build: u64,
        how: String,
    },
    /// What came of an order.
    Answered {
        text: String,
        done: bool,
    },
    /// A second has passed.
    Tick,
}

/// Something is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Send the lines of this build's log from now on, and of no other.
    Follow(Option<u64>),
    Order(OperatorRequest),
    Redraw,
    Suspend,
    Quit,
}

/// What a line of the overview is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    Builder(String),
    Build(u64),
}

/// What is on the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    Overview,
    /// A log, so many lines above its end.
    Log {
        build: u64,
        up: usize,
    },
    Help,
}

/// How the broker is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Connecting,
    Up,
    Lost { why: String, seconds: u32 },
}

/// A line below everything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// Said once; gone with the next key.
    Said { text: String, good: bool },
    /// Stop this builder?
    Confirm { builder: String, builds: u32 },
}

/// The end of a log.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail {
    pub(super) build: Option<u64>,
    pub(super) lines: VecDeque<String>,
    pub(super) phase: Option<String>,
    /// Why there will be no more.
    pub(super) ended: Option<String>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) view: Option<StatusView>,
    pub(super) link: Link,
    pub(super) selected: Option<Item>,
    pub(super) page: Page,
    pub(super) tail: Tail,
    pub(super) notice: Option<Notice>,
}

impl Model {
    pub(super) fn new() -> Self {
        Self {
            view: None,
            link: Link::Connecting,
            selected: None,
            page: Page::Overview,
            tail: Tail::default(),
            notice: None,
        }
    }

    pub(super) fn update(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = match event {
            Event::Picture(view) => self.take_picture(*view),
            Event::Lost(why) => self.lose(why),
            Event::Key(key) => self.press(key),
            Event::Log { build, lines } => {
                if self.tail.build == Some(build) {
                    self.take_lines(lines);
                }
                Vec::new()
            }
            Event::LogEnded { build, how } => {
                if self.tail.build == Some(build) {
                    self.tail.ended = Some(how);
                }
                Vec::new()
            }
            Event::Answered { text, done } => {
                self.notice = Some(Notice::Said { text, good: done });
                Vec::new()
            }
            Event::Tick => {
                if let Link::Lost { seconds, .. } = &mut self.link {
                    *seconds += 1;
                }
                Vec::new()
            }
        };
        let focus = self.focus();
        // Without the broker what was read stays on the screen.
        if self.link == Link::Up && focus != self.tail.build {
            self.tail = Tail { build: focus, ..Tail::default() };
            effects.push(Effect::Follow(focus));
        }
        effects
    }

    fn take_picture(&mut self, view: StatusView) -> Vec<Effect> {
        if let Link::Lost { seconds, .. } = self.link {
            let text = format!("the broker is back, after {seconds}s");
            self.notice = Some(Notice::Said { text, good: true });
            // Another broker numbers its builds and builders anew.
            self.tail = Tail::default();
            self.page = Page::Overview;
        }
        self.link = Link::Up;
        self.view = Some(view);
        if let Some(item) = &self.selected
            && !self.items().contains(item)
        {
            self.selected = None;
        }
        if let Some(Notice::Confirm { builder, .. }) = &self.notice
            && !self.items().contains(&Item::Builder(builder.clone()))
        {
            self.notice = None;
        }
        Vec::new()
    }

    fn lose(&mut self, why: String) -> Vec<Effect> {
        let seconds = match self.link {
            Link::Lost { seconds, .. } => seconds,
            Link::Connecting | Link::Up => 0,
        };
        self.link = Link::Lost { why, seconds };
        Vec::new()
    }

    fn take_lines(&mut self, lines: Vec<LogLine>) {
        for line in lines {
            let text = match line {
                LogLine::Text(text) => text,
                LogLine::Phase(phase) => {
                    let text = format!("-- {phase} --");
                    self.tail.phase = Some(phase);
                    text
                }
            };
            if self.tail.lines.len() == MAX_LINES {
                self.tail.lines.pop_front();
            }
            self.tail.lines.push_back(text);
            // Who has scrolled up keeps what he reads.
            if let Page::Log { up, .. } = &mut self.page
                && *up > 0
            {
                *up = (*up + 1).min(MAX_LINES);
            }
        }
    }

    fn press(&mut self, key: Key) -> Vec<Effect> {
        match key {
            Key::Interrupt => return vec![Effect::Quit],
            Key::Suspend => return vec![Effect::Suspend],
            Key::Redraw => return vec![Effect::Redraw],
            Key::Char(_)
            | Key::Up
            | Key::Down
            | Key::PageUp
            | Key::PageDown
            | Key::Home
            | Key::End
            | Key::Enter
            | Key::Escape => {}
        }
        if let Some(Notice::Confirm { builder, .. }) = self.notice.take() {
            if key == Key::Char('y') {
                return vec![Effect::Order(OperatorRequest::Stop { target: Target::Builder(builder) })];
            }
            let text = format!("{builder} goes on");
            self.notice = Some(Notice::Said { text, good: true });
            return Vec::new();
        }
        match self.page {
            Page::Overview => self.press_in_overview(key),
            Page::Log { build, up } => {
                self.press_in_log(key, build, up);
                Vec::new()
            }
            Page::Help => {
                self.page = Page::Overview;
                Vec::new()
            }
        }
    }

    fn press_in_overview(&mut self, key: Key) -> Vec<Effect> {
        match key {
            Key::Char('q') => return vec![Effect::Quit],
            Key::Char('?' | 'h') => self.page = Page::Help,
            Key::Up | Key::Char('k') => self.go(-1),
            Key::Down | Key::Char('j') => self.go(1),
            Key::PageUp => self.go(-(PAGE as isize)),
            Key::PageDown => self.go(PAGE as isize),
            Key::Home | Key::Char('g') => self.go(isize::MIN / 2),
            Key::End | Key::Char('G') => self.go(isize::MAX / 2),
            Key::Escape => self.selected = None,
            Key::Enter | Key::Char('l') => self.open_log(),
            Key::Char('d') => {
                if let Some((builder, _)) = self.builder_for("drain") {
                    let target = Target::Builder(builder);
                    return vec![Effect::Order(OperatorRequest::Drain { target })];
                }
            }
            Key::Char('s') => {
                if let Some((builder, builds)) = self.builder_for("stop") {
                    self.notice = Some(Notice::Confirm { builder, builds });
                }
            }
            Key::Char(_) | Key::Interrupt | Key::Suspend | Key::Redraw => {}
        }
        Vec::new()
    }

    fn press_in_log(&mut self, key: Key, build: u64, up: usize) {
        let most = self.tail.lines.len().saturating_sub(1);
        let up = match key {
            Key::Up | Key::Char('k') => up + 1,
            Key::Down | Key::Char('j') => up.saturating_sub(1),
            Key::PageUp => up + PAGE,
            Key::PageDown | Key::Char(' ') => up.saturating_sub(PAGE),
            Key::Home | Key::Char('g') => most,
            Key::End | Key::Char('G') => 0,
            Key::Escape | Key::Enter | Key::Char('q' | 'l') => {
                self.page = Page::Overview;
                return;
            }
            Key::Char('?') => {
                self.page = Page::Help;
                return;
            }
            Key::Char(_) | Key::Interrupt | Key::Suspend | Key::Redraw => return,
        };
        self.page = Page::Log { build, up: up.min(most) };
    }

    fn open_log(&mut self) {
        let build = match &self.selected {
            Some(Item::Build(build)) => Some(*build),
            Some(Item::Builder(_)) | None => self.focus(),
        };
        match build {
            Some(build) => self.page = Page::Log { build, up: 0 },
            None => self.say("there is no build whose log could be opened; arrows select one"),
        }
    }

    /// The selected builder and the builds that run there.
    fn builder_for(&mut self, doing: &str) -> Option<(String, u32)> {
        let Some(Item::Builder(id)) = self.selected.clone() else {
            self.say(&format!("select the builder to {doing} with the arrows first"));
            return None;
        };
        if self.link != Link::Up {
            self.say("the broker cannot be reached");
            return None;
        }
        let builders = self.view.iter().flat_map(|view| &view.builders);
        let builder = builders.into_iter().find(|builder| builder.id == id)?;
        Some((id, builder.slots_used))
    }

    fn say(&mut self, text: &str) {
        self.notice = Some(Notice::Said { text: text.to_owned(), good: false });
    }

    fn go(&mut self, by: isize) {
        let items = self.items();
        self.notice = None;
        let Some(last) = items.len().checked_sub(1) else { return };
        let place = self.selected.as_ref().and_then(|item| items.iter().position(|known| known == item));
        let place = match place {
            Some(place) => place.saturating_add_signed(by).min(last),
            None if by < 0 => last,
            None => 0,
        };
        self.selected = items.get(place).cloned();
    }

    /// What can be selected, as it stands on the screen.
    pub(super) fn items(&self) -> Vec<Item> {
        let Some(view) = &self.view else { return Vec::new() };
        let builders = view.builders.iter().map(|builder| Item::Builder(builder.id.clone()));
        let builds = running(view).into_iter().chain(waiting(view)).chain(ended(view));
        builders.chain(builds.map(|build| Item::Build(build.id))).collect()
    }

    /// The build whose log is shown: the one that is open or selected, else one that runs.
    fn focus(&self) -> Option<u64> {
        if let Page::Log { build, .. } = self.page {
            return Some(build);
        }
        let view = self.view.as_ref()?;
        match &self.selected {
            Some(Item::Build(build)) => Some(*build),
            Some(Item::Builder(builder)) => {
                let mut there = running(view).into_iter();
                there.find(|build| build.builder.as_ref() == Some(builder)).map(|build| build.id)
            }
            None => running(view).first().map(|build| build.id),
        }
    }
}

/// Builds that have a slot, in the order of their numbers.
pub(super) fn running(view: &StatusView) -> Vec<&BuildView> {
    view.builds.iter().filter(|build| picture::is_running(build)).collect()
}

/// Builds without a slot, in the order of their numbers.
pub(super) fn waiting(view: &StatusView) -> Vec<&BuildView> {
    view.builds.iter().filter(|build| !picture::is_running(build) && !picture::is_ended(build)).collect()
}

/// Builds that have ended, the last first.
pub(super) fn ended(view: &StatusView) -> Vec<&BuildView> {
    view.builds.iter().filter(|build| picture::is_ended(build)).collect()
}
