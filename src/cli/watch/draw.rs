//! The model as lines for a screen of a size: pure.
//!
//! Every section has a header that says what it holds and how much of it; when there is no room for all, each keeps its
//! beginning and its header says how much is hidden, and the selected line is always in sight.

use super::grid::{Column, Line, Row, Tone, longest_fitting, table};
use super::model::{Item, Link, Model, Notice, Page, ended, running, waiting};
use super::next::next;
use crate::cli::picture;
use crate::cli::text::{amount, count, rate, span};
use crate::ipc::view::{BuildView, BuilderView, MoneyView, PoolView, StatusView};

/// Characters of the bar that shows the use of slots.
const BAR: u32 = 10;
/// Lines that a log keeps on a crowded screen, its header included.
const LOG_AT_LEAST: usize = 3;

/// A part of the screen.
struct Section {
    header: Line,
    rows: Vec<Line>,
    /// Which row must be in sight.
    selected: Option<usize>,
}

/// The whole screen: at most `height` lines of at most `width` columns.
pub(super) fn draw(model: &Model, width: u16, height: u16) -> Vec<Line> {
    let (width, height) = (usize::from(width), usize::from(height));
    let footer = [notice(model, width), keys(model, width)];
    let room = height.saturating_sub(footer.len());
    let mut lines = match (&model.page, &model.view) {
        (Page::Help, _) => help(),
        (Page::Log { build, up }, view) => log_page(model, *build, *up, view.as_ref(), width, room),
        (Page::Overview, Some(view)) => overview(model, view, width, room),
        (Page::Overview, None) => vec![Line::new("broker", Tone::Title), link(&model.link)],
    };
    lines.truncate(room);
    lines.resize(room, Line::default());
    lines.extend(footer);
    lines.truncate(height);
    lines.into_iter().map(|line| line.fit(width)).collect()
}

fn overview(model: &Model, view: &StatusView, width: usize, height: usize) -> Vec<Line> {
    let mut lines = vec![heading(model, view, width), costs(view, width)];
    let is_selected = |item: Item| model.selected.as_ref() == Some(&item);
    let on_build = |build: &&BuildView| is_selected(Item::Build(build.id));
    let mut sections = vec![section(&POOL, view.pools.iter().map(|pool| pool_row(pool, view)), None, width)];
    if !view.builders.is_empty() {
        let at = view.builders.iter().position(|builder| is_selected(Item::Builder(builder.id.clone())));
        sections.push(section(&BUILDER, view.builders.iter().map(builder_row), at, width));
    }
    let (runs, waits, over) = (running(view), waiting(view), ended(view));
    if runs.is_empty() {
        let header = Line::new("  BUILD", Tone::Title).then("  none runs", Tone::Faint);
        sections.push(Section { header, rows: Vec::new(), selected: None });
    } else {
        let phase = |build: &BuildView| match (model.tail.build == Some(build.id), &model.tail.phase) {
            (true, Some(phase)) if build.phase == "building" => format!("{}: {phase}", build.phase),
            (_, _) => build.phase.clone(),
        };
        let rows = runs.iter().map(|build| running_row(build, phase(build)));
        sections.push(section(&RUNNING, rows, runs.iter().position(on_build), width));
    }
    if !waits.is_empty() {
        let rows = waits.iter().map(|build| waiting_row(build, view));
        sections.push(section(&WAITING, rows, waits.iter().position(on_build), width));
    }
    let upcoming = next(view);
    let rows = upcoming.iter().map(|next| {
        let tone = if next.is_trouble { Tone::Warn } else { Tone::Plain };
        Row::default().cell(&next.when, tone).cell(&next.what, tone)
    });
    if upcoming.is_empty() {
        let header = Line::new("  NEXT", Tone::Title).then("  nothing is planned", Tone::Faint);
        sections.push(Section { header, rows: Vec::new(), selected: None });
    } else {
        sections.push(section(&NEXT, rows, None, width));
    }
    let room = height.saturating_sub(lines.len());
    let log = log_header(model, view);
    let mut for_log = log.as_ref().map_or(0, |_| LOG_AT_LEAST.min(1 + model.tail.lines.len().max(1)));
    let ended_at = over.iter().position(on_build);
    let reserved = if ended_at.is_some() { 2 } else { 0 };
    let main = share(sections, room.saturating_sub(for_log + reserved), width);
    // What is over comes last, and shares what is left with the log.
    let mut left = room.saturating_sub(for_log + main.len());
    lines.extend(main);
    if !over.is_empty() && left >= 2 {
        let over = section(&ENDED, over.iter().map(|build| ended_row(build)), ended_at, width);
        let rows = if log.is_some() { (left / 3).clamp(2, left) } else { left };
        let over = share(vec![over], rows, width);
        left -= over.len();
        lines.extend(over);
    }
    if let Some(header) = log {
        for_log += left;
        lines.push(header);
        lines.extend(tail_lines(model, 0, for_log.saturating_sub(1)));
    }
    lines
}

/// Gives every section its header and then row after row in turn, until there is no room or nothing left to show.
fn share(sections: Vec<Section>, room: usize, width: usize) -> Vec<Line> {
    let mut given: Vec<usize> =
        sections.iter().map(|section| usize::from(!section.rows.is_empty())).collect();
    let mut left = room.saturating_sub(sections.len() + given.iter().sum::<usize>());
    loop {
        let before = left;
        for (given, section) in given.iter_mut().zip(&sections) {
            if left > 0 && *given < section.rows.len() {
                *given += 1;
                left -= 1;
            }
        }
        if left == before {
            break;
        }
    }
    let mut lines = Vec::new();
    for (section, given) in sections.into_iter().zip(given) {
        let hidden = section.rows.len() - given;
        lines.push(if hidden > 0 { counted(section.header, hidden, width) } else { section.header });
        // So many of the rows that the selected one is among them.
        let start = section.selected.map_or(0, |at| (at + 1).saturating_sub(given));
        lines.extend(section.rows.into_iter().skip(start).take(given));
    }
    lines
}

/// A header that says at its right end how many rows there is no room for.
fn counted(header: Line, hidden: usize, width: usize) -> Line {
    let tag = format!(" +{hidden} more");
    let room = width.saturating_sub(tag.len());
    let header = header.fit(room);
    let padding = " ".repeat(room.saturating_sub(header.width()));
    header.then(padding, Tone::Plain).then(tag, Tone::Faint)
}

fn section(
    columns: &[Column],
    rows: impl Iterator<Item = Row>,
    selected: Option<usize>,
    width: usize,
) -> Section {
    let mut rows: Vec<Row> = rows.collect();
    if let Some(row) = selected.and_then(|at| rows.get_mut(at)) {
        row.selected = true;
    }
    // A column that is empty in every row says nothing.
    let useful: Vec<bool> = (0..columns.len())
        .map(|i| rows.iter().any(|row| row.cells.get(i).is_some_and(|cell| !cell.0.is_empty())))
        .collect();
    let columns: Vec<Column> =
        columns.iter().zip(&useful).filter(|(_, useful)| **useful).map(|(column, _)| *column).collect();
    for row in &mut rows {
        let mut is_useful = useful.iter();
        row.cells.retain(|_| is_useful.next().copied().unwrap_or(true));
    }
    let (header, rows) = table(&columns, &rows, width);
    Section { header, rows, selected }
}

fn heading(model: &Model, view: &StatusView, width: usize) -> Line {
    if model.link != Link::Up {
        return link(&model.link);
    }
    let (accepting, tone) = match view.accepting {
        true => ("accepting builds", Tone::Good),
        false => ("shutting down, no new builds", Tone::Warn),
    };
    let name = format!("broker {}", view.version);
    let done = ended_so_far(view);
    let short = Line::new(&name, Tone::Title).then("  ", Tone::Plain).then(accepting, tone);
    let up = format!(", up {}", span(view.uptime));
    let long = short.clone().then(up, Tone::Faint);
    let longest = long.clone().then(format!("  {done}"), Tone::Faint);
    longest_fitting(vec![longest, long, short], width)
}

fn ended_so_far(view: &StatusView) -> String {
    let ended = &view.ended;
    let parts = [(ended.succeeded, "succeeded"), (ended.failed, "failed"), (ended.cancelled, "cancelled")];
    let parts: Vec<String> =
        parts.into_iter().filter(|(n, _)| *n > 0).map(|(n, how)| format!("{n} {how}")).collect();
    parts.join(", ")
}

fn link(link: &Link) -> Line {
    match link {
        Link::Connecting => Line::new("connecting to the broker ...", Tone::Faint),
        Link::Up => Line::default(),
        Link::Lost { why, seconds } => {
            let since = span(f64::from(*seconds));
            Line::new(format!("NO BROKER for {since}, trying again; below is what was last known"), Tone::Bad)
                .then(format!(" ({why})"), Tone::Faint)
        }
    }
}

fn costs(view: &StatusView, width: usize) -> Line {
    let Some(money) = &view.money else { return Line::new("costs nothing", Tone::Faint) };
    let (now, ticker) = (rate(Some(money.rate)), ticker(money));
    let cap = |cap: Option<f64>| cap.map(|cap| format!(" of {}", amount(Some(cap)))).unwrap_or_default();
    let start = || Line::new("costs ", Tone::Plain).then(format!("{now} now"), Tone::Busy);
    let short = start().then(format!(", {ticker} today"), Tone::Plain);
    let today = start().then(format!(", {ticker}{} today", cap(money.cap_day)), Tone::Plain);
    let month = format!(", {}{} this month", amount(Some(money.month)), cap(money.cap_month));
    let hour = money.cap_hour.map(|cap| format!(" (at most {})", rate(Some(cap)))).unwrap_or_default();
    let all = start()
        .then(hour, Tone::Faint)
        .then(format!(", {ticker}{} today{month}", cap(money.cap_day)), Tone::Plain);
    longest_fitting(vec![all, today.clone().then(month, Tone::Plain), today, short], width)
}

/// Today's sum with the digits that move while one looks.
fn ticker(money: &MoneyView) -> String {
    format!("${:.4}", money.today.max(0.0))
}

const POOL: [Column; 8] = [
    Column::new("POOL", 0),
    Column::giving("BUILDERS", 0),
    Column::new("SLOTS", 1),
    Column::new("USED", 6),
    Column::new("QUEUED", 2),
    Column::new("RATE", 3),
    Column::new("TODAY", 4),
    Column::new("MAX", 5),
];

fn pool_row(pool: &PoolView, view: &StatusView) -> Row {
    let used = pool.slots_used.min(pool.slots).saturating_mul(BAR).checked_div(pool.slots).unwrap_or(0);
    let bar = format!("{}{}", "#".repeat(used as usize), "-".repeat((BAR.saturating_sub(used)) as usize));
    let tone = match (pool.ready, pool.starting) {
        (1.., _) => Tone::Good,
        (0, 1..) => Tone::Busy,
        (0, 0) => Tone::Faint,
    };
    let queued = if pool.queued > 0 { Tone::Busy } else { Tone::Faint };
    let money = |text: Option<String>| text.unwrap_or_default();
    Row::default()
        .cell(&pool.name, Tone::Plain)
        .cell(picture::pool_builders(pool, view), tone)
        .cell(format!("{}/{}", pool.slots_used, pool.slots), Tone::Plain)
        .cell(bar, Tone::Faint)
        .cell(pool.queued.to_string(), queued)
        .cell(money(pool.rate.map(|dollars| rate(Some(dollars)))), Tone::Plain)
        .cell(money(pool.today.map(|dollars| amount(Some(dollars)))), Tone::Plain)
        .cell(pool.max_builders.to_string(), Tone::Faint)
}

const BUILDER: [Column; 10] = [
    Column::new("BUILDER", 0),
    Column::new("POOL", 2),
    Column::giving("STATE", 0),
    Column::new("SLOTS", 1),
    Column::new("CPU", 5),
    Column::new("MEMORY", 6),
    Column::new("ENDS", 3),
    Column::new("SO FAR", 4),
    Column::new("TYPE", 7),
    Column::new("MARKET", 8),
];

fn builder_row(builder: &BuilderView) -> Row {
    let tone = match builder.state.as_str() {
        "ready" => Tone::Good,
        "launching" | "booting" => Tone::Busy,
        "draining" | "terminating" => Tone::Warn,
        _ => Tone::Plain,
    };
    let since = span(builder.in_state);
    let state = match builder.progress.as_ref().or(builder.shortage.as_ref()) {
        Some(progress) => format!("{} {since}: {progress}", builder.state),
        None => format!("{} {since}", builder.state),
    };
    let slots =
        if builder.slots == 0 { "-".to_owned() } else { format!("{}/{}", builder.slots_used, builder.slots) };
    let word = |word: &Option<String>| word.clone().unwrap_or_default();
    let load = builder.load.as_ref();
    let cpu = load.and_then(|load| load.cpu).map(|percent| format!("{percent:.0}%"));
    let memory = load.and_then(|load| load.memory_total.zip(load.memory_available));
    let memory = memory.map(|(total, free)| picture::share(total.saturating_sub(free), total));
    Row::default()
        .cell(&builder.id, Tone::Plain)
        .cell(&builder.pool, Tone::Plain)
        .cell(state, tone)
        .cell(slots, Tone::Plain)
        .cell(word(&cpu), Tone::Plain)
        .cell(word(&memory), Tone::Plain)
        .cell(picture::end_of(builder), Tone::Plain)
        .cell(builder.cost.map(|dollars| amount(Some(dollars))).unwrap_or_default(), Tone::Plain)
        .cell(word(&builder.instance_type), Tone::Faint)
        .cell(word(&builder.market), Tone::Faint)
}

const RUNNING: [Column; 7] = [
    Column::new("BUILD", 0),
    Column::giving("DERIVATION", 0),
    Column::giving("PHASE", 1),
    Column::new("FOR", 0),
    Column::new("LEFT", 2),
    Column::new("ON", 3),
    Column::new("COST", 4),
];

fn running_row(build: &BuildView, phase: String) -> Row {
    let phase = if build.attempts > 1 { format!("{phase} (try {})", build.attempts) } else { phase };
    let left = build
        .remaining
        .map(|seconds| if seconds > 0.0 { format!("~{}", span(seconds)) } else { "soon".to_owned() });
    Row::default()
        .cell(format!("#{}", build.id), Tone::Plain)
        .cell(&build.name, Tone::Plain)
        .cell(phase, Tone::Good)
        .cell(span(build.in_phase), Tone::Plain)
        .cell(left.unwrap_or_default(), Tone::Plain)
        .cell(build.builder.clone().unwrap_or_default(), Tone::Plain)
        .cell(build.cost.map(|dollars| amount(Some(dollars))).unwrap_or_default(), Tone::Faint)
}

const WAITING: [Column; 4] = [
    Column::new("QUEUED", 0),
    Column::giving("DERIVATION", 0),
    Column::new("FOR", 1),
    Column::giving("WHAT FOR", 0),
];

fn waiting_row(build: &BuildView, view: &StatusView) -> Row {
    let what = picture::whereabouts(build, view);
    Row::default()
        .cell(format!("#{}", build.id), Tone::Plain)
        .cell(&build.name, Tone::Plain)
        .cell(span(build.in_phase), Tone::Plain)
        .cell(what.strip_prefix("waits for ").unwrap_or(&what), Tone::Busy)
}

const NEXT: [Column; 2] = [Column::new("NEXT", 0), Column::giving("", 0)];

const ENDED: [Column; 4] = [
    Column::new("ENDED", 0),
    Column::giving("DERIVATION", 0),
    Column::new("AGO", 1),
    Column::giving("HOW", 0),
];

fn ended_row(build: &BuildView) -> Row {
    let (how, tone) = match (build.phase.as_str(), &build.reason) {
        ("failed", Some(reason)) => (format!("failed: {reason}"), Tone::Bad),
        ("failed", None) => ("failed".to_owned(), Tone::Bad),
        (phase, _) => (phase.to_owned(), Tone::Faint),
    };
    Row::default()
        .cell(format!("#{}", build.id), Tone::Plain)
        .cell(&build.name, Tone::Plain)
        .cell(span(build.in_phase), Tone::Plain)
        .cell(how, tone)
}

fn log_header(model: &Model, view: &StatusView) -> Option<Line> {
    let id = model.tail.build?;
    let name = view.builds.iter().find(|build| build.id == id).map_or("", |build| build.name.as_str());
    Some(Line::new("  LOG", Tone::Title).then(format!("  #{id} {name}"), Tone::Faint))
}

/// The last lines of the log, or those so many lines above.
fn tail_lines(model: &Model, up: usize, room: usize) -> Vec<Line> {
    let mut room = room;
    let ended = model.tail.ended.as_ref().filter(|_| up == 0 && room > 0);
    let ended = ended.map(|how| {
        room -= 1;
        Line::new(format!("  {how}"), Tone::Warn)
    });
    let all = &model.tail.lines;
    let end = all.len() - up.min(all.len());
    let start = end.saturating_sub(room);
    let mut lines: Vec<Line> =
        all.range(start..end).map(|line| Line::new(format!("  {line}"), Tone::Plain)).collect();
    if lines.is_empty() && ended.is_none() && room > 0 {
        lines.push(Line::new("  nothing yet", Tone::Faint));
    }
    lines.extend(ended);
    lines
}

fn log_page(
    model: &Model,
    id: u64,
    up: usize,
    view: Option<&StatusView>,
    width: usize,
    height: usize,
) -> Vec<Line> {
    let build = view.and_then(|view| view.builds.iter().find(|build| build.id == id));
    let mut header = Line::new(format!("#{id}"), Tone::Title);
    if let Some(build) = build {
        let phase = model.tail.phase.as_deref().filter(|_| build.phase == "building");
        let phase = phase.map(|phase| format!(": {phase}")).unwrap_or_default();
        header = header
            .then(format!(" {}", build.name), Tone::Title)
            .then(format!("  {}{phase} {}", build.phase, span(build.in_phase)), Tone::Good);
        if let Some(builder) = &build.builder {
            header = header.then(format!(" on {builder}"), Tone::Faint);
        }
    }
    let mut lines = vec![header.fit(width)];
    if model.link != Link::Up {
        lines.push(link(&model.link));
    }
    let room = height.saturating_sub(lines.len());
    lines.extend(tail_lines(model, up, room));
    if up > 0
        && let Some(last) = lines.last_mut()
    {
        *last = Line::new(format!("  ... {} below; G goes to the end", count(up, "line")), Tone::Faint);
    }
    lines
}

fn notice(model: &Model, _width: usize) -> Line {
    match &model.notice {
        None => Line::default(),
        Some(Notice::Said { text, good }) => Line::new(text, if *good { Tone::Good } else { Tone::Warn }),
        Some(Notice::Confirm { builder, builds: 0 }) => {
            Line::new(format!("stop {builder} now? y/n"), Tone::Warn)
        }
        Some(Notice::Confirm { builder, builds }) => {
            let what =
                format!("stop {builder} now? its {} begin again elsewhere: y/n", count(*builds, "build"));
            Line::new(what, Tone::Warn)
        }
    }
}

fn keys(model: &Model, width: usize) -> Line {
    let faint = |texts: &[&str]| texts.iter().map(|text| Line::new(text, Tone::Faint)).collect();
    let variants = match model.page {
        Page::Overview => faint(&[
            "arrows select   Enter log   d drain   s stop   ? help   q quit",
            "Enter log  d drain  s stop  ?  q quit",
            "? help  q quit",
        ]),
        Page::Log { .. } => faint(&["arrows scroll   g start   G end   q back   ? help", "q back  ? help"]),
        Page::Help => faint(&["any key goes back"]),
    };
    longest_fitting(variants, width)
}

fn help() -> Vec<Line> {
    const HELP: [(&str, &str); 10] = [
        ("Up Down, k j", "select a builder or a build"),
        ("g G", "the first, the last"),
        ("Enter, l", "the log of the selected build"),
        ("d", "drain the selected builder: its builds end first"),
        ("s", "stop the selected builder now, after a question"),
        ("Esc", "select nothing"),
        ("q, Control-C", "quit; the broker goes on"),
        ("", ""),
        ("#", "a build, as `broker why '#12'` and `broker logs '#12'` name it"),
        ("~4m", "what a build is expected to take yet"),
    ];
    let lines =
        HELP.iter().map(|(key, what)| Line::new(format!("  {key:<14}"), Tone::Title).then(what, Tone::Plain));
    std::iter::once(Line::new("Keys", Tone::Title)).chain(lines).collect()
}
