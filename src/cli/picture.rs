//! The broker's picture as tables: what `status`, `builders` and `builds` share.
//!
//! Draws from the serialised form alone; a word that this version does not know (a state of a newer broker) is shown
//! as it came.

use super::output::{Document, Mark};
use super::text::{amount, count, rate, shorten, span};
use crate::ipc::view::{BuildView, BuilderView, MoneyView, PoolView, StatusView};

/// Builds that `status` lists; the rest is counted.
const MAX_LISTED: usize = 20;
/// Characters of a derivation's name on a terminal; Nix allows 211.
const MAX_NAME: usize = 44;

/// The whole picture, on one screen as far as it goes.
pub(super) fn status(view: &StatusView, for_terminal: bool) -> Document {
    let mut document = Document::default();
    let accepting = if view.accepting { "accepting builds" } else { "shutting down, no new builds" };
    document.line(format!("broker {}, up {}, {accepting}", view.version, span(view.uptime))).blank();
    pools(&mut document, view);
    if !view.builders.is_empty() {
        document.blank();
        builders(&mut document, view.builders.iter());
    }
    document.blank();
    let mut live: Vec<&BuildView> = view.builds.iter().filter(|build| !is_ended(build)).collect();
    // What runs comes first; a stable sort keeps the order of arrival.
    live.sort_by_key(|build| !is_running(build));
    if live.is_empty() {
        document.line("No builds.");
    } else {
        builds(&mut document, view, live.iter().copied().take(MAX_LISTED), for_terminal);
        if live.len() > MAX_LISTED {
            document.line(format!("... and {} more: `broker builds`", live.len() - MAX_LISTED));
        }
    }
    if let Some(line) = ended_so_far(view) {
        document.blank().line(line);
    }
    document
}

fn pools(document: &mut Document, view: &StatusView) {
    let row = |pool: &PoolView| {
        vec![
            pool.name.clone(),
            pool_builders(pool, view),
            pool.max_builders.to_string(),
            format!("{}/{}", pool.slots_used, pool.slots),
            pool.queued.to_string(),
            span(pool.idle_timeout),
        ]
    };
    let mut header = vec!["POOL", "BUILDERS", "MAX", "SLOTS", "QUEUED", "IDLE TIMEOUT"];
    let mut rows: Vec<_> = view.pools.iter().map(row).collect();
    if view.pools.iter().any(|pool| pool.rate.is_some()) {
        header.extend(["RATE", "TODAY"]);
        for (row, pool) in rows.iter_mut().zip(&view.pools) {
            row.extend([rate(pool.rate), amount(pool.today)]);
        }
    }
    document.table(&header, rows);
    for pool in &view.pools {
        if let Some(fault) = &pool.last_fault {
            let next =
                pool.cooling.map(|wait| format!("; next launch in {}", span(wait))).unwrap_or_default();
            let text = format!("pool `{}`: {} ({} ago){next}", pool.name, fault.reason, span(fault.ago));
            document.marked(Mark::Warn, &text, None);
        }
        if let Some(cap) = &pool.capped {
            document.marked(Mark::Warn, &format!("pool `{}` launches nothing: {cap}", pool.name), None);
        }
    }
    if let Some(money) = &view.money {
        document.blank().line(costs(money));
    }
}

/// `Costs $0.62/h now, $3.10 today (cap $20.00), $41.00 this month`.
pub(super) fn costs(money: &MoneyView) -> String {
    let part = |amount: String, when: &str, cap: Option<String>| {
        let cap = cap.map(|cap| format!(" (cap {cap})")).unwrap_or_default();
        format!("{amount} {when}{cap}")
    };
    let parts = [
        part(rate(Some(money.rate)), "now", money.cap_hour.map(|cap| rate(Some(cap)))),
        part(amount(Some(money.today)), "today", money.cap_day.map(|cap| amount(Some(cap)))),
        part(amount(Some(money.month)), "this month", money.cap_month.map(|cap| amount(Some(cap)))),
    ];
    format!("Costs {} (UTC; `broker cost`)", parts.join(", "))
}

/// `2 ready, 1 booting (38s)`: those on their way with the time of the one that takes longest.
pub(super) fn pool_builders(pool: &PoolView, view: &StatusView) -> String {
    let mut groups: Vec<(&str, u32, f64)> = Vec::new();
    for builder in view.builders.iter().filter(|builder| builder.pool == pool.name) {
        match groups.iter_mut().find(|(state, ..)| *state == builder.state) {
            Some((_, n, longest)) => {
                *n += 1;
                *longest = longest.max(builder.in_state);
            }
            None => groups.push((&builder.state, 1, builder.in_state)),
        }
    }
    groups.sort_by_key(|(state, ..)| *state != "ready");
    let words: Vec<String> = groups
        .into_iter()
        .map(|(state, n, longest)| match state {
            "ready" => format!("{n} ready"),
            _ => format!("{n} {state} ({})", span(longest)),
        })
        .collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

pub(super) fn builders<'a>(document: &mut Document, builders: impl Iterator<Item = &'a BuilderView>) {
    let row = |builder: &BuilderView| {
        vec![
            builder.id.clone(),
            builder.pool.clone(),
            state_of(builder),
            span(builder.in_state),
            format!("{}/{}", builder.slots_used, builder.slots),
            end_of(builder),
            builder.instance.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    };
    let builders: Vec<_> = builders.collect();
    let mut header = vec!["BUILDER", "POOL", "STATE", "FOR", "SLOTS", "ENDS", "INSTANCE"];
    let mut rows: Vec<_> = builders.iter().map(|builder| row(builder)).collect();
    if builders.iter().any(|builder| builder.rate.is_some()) {
        header.extend(["TYPE", "MARKET", "ZONE", "RATE", "SO FAR"]);
        for (row, builder) in rows.iter_mut().zip(&builders) {
            let word = |word: &Option<String>| word.clone().unwrap_or_else(|| "-".to_owned());
            row.extend([word(&builder.instance_type), word(&builder.market), word(&builder.zone)]);
            row.extend([rate(builder.rate), amount(builder.cost)]);
        }
    }
    document.table(&header, rows);
}

/// Where a builder is in its life, and what it does there.
pub(super) fn state_of(builder: &BuilderView) -> String {
    match builder.progress.as_ref().or(builder.shortage.as_ref()) {
        Some(doing) => format!("{}: {doing}", builder.state),
        None => builder.state.clone(),
    }
}

/// `38%`; takes what the broker sent, which may be a part that is larger than the whole.
pub(super) fn share(part: u64, whole: u64) -> String {
    format!("{}%", (u128::from(part) * 100).checked_div(u128::from(whole)).unwrap_or(0))
}

pub(super) fn end_of(builder: &BuilderView) -> String {
    match (builder.state.as_str(), builder.ends_in, builder.slots_used) {
        ("terminating", ..) => "now".to_owned(),
        ("draining", _, used) if used > 0 => format!("after {}", count(used, "build")),
        (_, Some(wait), _) => format!("in {}", span(wait)),
        (_, None, _) => "-".to_owned(),
    }
}

pub(super) fn builds<'a>(
    document: &mut Document,
    view: &StatusView,
    builds: impl Iterator<Item = &'a BuildView>,
    for_terminal: bool,
) {
    let row = |build: &BuildView| {
        let width = if for_terminal { MAX_NAME } else { usize::MAX };
        let attempt = if build.attempts > 1 { format!(" (try {})", build.attempts) } else { String::new() };
        vec![
            format!("#{}", build.id),
            shorten(&build.name, width),
            format!("{}{attempt}", build.phase),
            if is_ended(build) { format!("{} ago", span(build.in_phase)) } else { span(build.in_phase) },
            whereabouts(build, view),
        ]
    };
    let builds: Vec<_> = builds.collect();
    let mut header = vec!["BUILD", "DERIVATION", "STATE", "FOR", "WHERE"];
    let mut rows: Vec<_> = builds.iter().map(|build| row(build)).collect();
    if builds.iter().any(|build| build.cost.is_some()) {
        header.push("COST");
        for (row, build) in rows.iter_mut().zip(&builds) {
            row.push(amount(build.cost));
        }
    }
    document.table(&header, rows);
}

/// Where a build runs or ran, or what it waits for.
pub(super) fn whereabouts(build: &BuildView, view: &StatusView) -> String {
    let place = match (&build.builder, &build.pool) {
        (Some(builder), Some(pool)) => format!("{builder} ({pool})"),
        (Some(builder), None) => builder.clone(),
        (None, Some(pool)) => pool.clone(),
        (None, None) => "-".to_owned(),
    };
    match build.phase.as_str() {
        "accepted" => "waits for its inputs from Nix".to_owned(),
        "queued" => waits_for(build, view),
        "failed" => format!("{place}: {}", build.reason.as_deref().unwrap_or("no reason is known")),
        _ => place,
    }
}

fn waits_for(build: &BuildView, view: &StatusView) -> String {
    let ahead = match build.ahead {
        Some(0) | None => String::new(),
        Some(n) => format!(", {n} ahead"),
    };
    let Some(pool) = view.pools.iter().find(|pool| Some(&pool.name) == build.pool.as_ref()) else {
        return format!("waits for a slot{ahead}");
    };
    let on_its_way = view.builders.iter().find(|builder| {
        builder.pool == pool.name && matches!(builder.state.as_str(), "launching" | "booting")
    });
    if let (0, None, Some(_)) = (pool.ready, on_its_way, &pool.capped) {
        return format!("waits for {}, which launches nothing{ahead}", pool.name);
    }
    match (pool.ready, on_its_way, pool.cooling) {
        (0, Some(builder), _) => {
            format!("waits for {} ({}, {}){ahead}", builder.id, pool.name, builder.state)
        }
        (0, None, Some(wait)) => {
            format!("waits for {}, which launches again in {}{ahead}", pool.name, span(wait))
        }
        (0, None, None) => format!("waits for a builder of {}{ahead}", pool.name),
        (_, _, _) => {
            let short = view.builders.iter().filter(|builder| builder.pool == pool.name);
            let short = short.filter(|builder| builder.slots_used < builder.slots);
            let short = short.filter_map(|builder| Some((&builder.id, builder.shortage.as_ref()?))).next();
            let short = short.map(|(id, shortage)| format!(" ({id}: {shortage})")).unwrap_or_default();
            format!("waits for a slot of {}{short}{ahead}", pool.name)
        }
    }
}

fn ended_so_far(view: &StatusView) -> Option<String> {
    let ended = &view.ended;
    let parts: Vec<String> =
        [(ended.succeeded, "succeeded"), (ended.failed, "failed"), (ended.cancelled, "cancelled")]
            .into_iter()
            .filter(|&(n, _)| n > 0)
            .map(|(n, how)| format!("{n} {how}"))
            .collect();
    (!parts.is_empty()).then(|| format!("Ended so far: {} (`broker builds --all`)", parts.join(", ")))
}

pub(super) fn is_ended(build: &BuildView) -> bool {
    matches!(build.phase.as_str(), "succeeded" | "failed" | "cancelled")
}

pub(super) fn is_running(build: &BuildView) -> bool {
    matches!(build.phase.as_str(), "uploading" | "building" | "downloading")
}
