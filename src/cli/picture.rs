//! The broker's picture as tables: what `status`, `builders` and `builds` share.
//!
//! Draws from the serialised form alone; a word that this version does not know (a state of a newer broker) is shown
//! as it came.

use super::output::{Document, Mark};
use super::text::{count, shorten, span};
use crate::ipc::view::{BuildView, BuilderView, PoolView, StatusView};

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
    let header = ["POOL", "BUILDERS", "MAX", "SLOTS", "QUEUED", "IDLE TIMEOUT"];
    document.table(&header, view.pools.iter().map(row).collect());
    for pool in &view.pools {
        if let Some(fault) = &pool.last_fault {
            let next =
                pool.cooling.map(|wait| format!("; next launch in {}", span(wait))).unwrap_or_default();
            let text = format!("pool `{}`: {} ({} ago){next}", pool.name, fault.reason, span(fault.ago));
            document.marked(Mark::Warn, &text, None);
        }
    }
}

/// `2 ready, 1 booting (38s)`: those on their way with the time of the one that takes longest.
fn pool_builders(pool: &PoolView, view: &StatusView) -> String {
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
            match &builder.progress {
                Some(progress) => format!("{}: {progress}", builder.state),
                None => builder.state.clone(),
            },
            span(builder.in_state),
            format!("{}/{}", builder.slots_used, builder.slots),
            end_of(builder),
            builder.instance.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    };
    let header = ["BUILDER", "POOL", "STATE", "FOR", "SLOTS", "ENDS", "INSTANCE"];
    document.table(&header, builders.map(row).collect());
}

fn end_of(builder: &BuilderView) -> String {
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
    let header = ["BUILD", "DERIVATION", "STATE", "FOR", "WHERE"];
    document.table(&header, builds.map(row).collect());
}

/// Where a build runs or ran, or what it waits for.
fn whereabouts(build: &BuildView, view: &StatusView) -> String {
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
    match (pool.ready, on_its_way, pool.cooling) {
        (0, Some(builder), _) => {
            format!("waits for {} ({}, {}){ahead}", builder.id, pool.name, builder.state)
        }
        (0, None, Some(wait)) => {
            format!("waits for {}, which launches again in {}{ahead}", pool.name, span(wait))
        }
        (0, None, None) => format!("waits for a builder of {}{ahead}", pool.name),
        (_, _, _) => format!("waits for a slot of {}{ahead}", pool.name),
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

fn is_running(build: &BuildView) -> bool {
    matches!(build.phase.as_str(), "uploading" | "building" | "downloading")
}
