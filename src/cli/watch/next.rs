//! What will happen next, as far as the picture says it: idle machines that end, launches that are held and until when.

use crate::cli::text::{count, span};
use crate::ipc::view::{BuilderView, PoolView, StatusView};

/// One thing that will happen.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Next {
    /// In so many seconds; nothing when it hangs on something else.
    pub(super) seconds: Option<f64>,
    /// `in 4m 10s`, `after 2 builds`, `held`.
    pub(super) when: String,
    pub(super) what: String,
    /// Somebody should look at it.
    pub(super) is_trouble: bool,
}

/// The soonest first, then what hangs on something else.
pub(super) fn next(view: &StatusView) -> Vec<Next> {
    let mut all: Vec<Next> = view.builders.iter().filter_map(of_builder).collect();
    all.extend(view.pools.iter().filter_map(|pool| of_pool(pool, view)));
    if !view.accepting {
        let live = view.builds.len() - super::model::ended(view).len();
        let when = if live == 0 { "now".to_owned() } else { format!("after {}", count(live, "build")) };
        let what = "the broker ends, and every builder with it".to_owned();
        all.push(Next { seconds: None, when, what, is_trouble: true });
    }
    let order = |next: &Next| next.seconds.unwrap_or(f64::INFINITY);
    all.sort_by(|a, b| order(a).total_cmp(&order(b)));
    all
}

fn of_builder(builder: &BuilderView) -> Option<Next> {
    let (id, pool) = (&builder.id, &builder.pool);
    let at = |seconds: Option<f64>, when: String, what: String| {
        Some(Next { seconds, when, what, is_trouble: false })
    };
    match (builder.state.as_str(), builder.ends_in, builder.slots_used) {
        ("terminating", ..) => at(Some(0.0), "now".to_owned(), format!("{id} ({pool}) ends")),
        ("draining", _, 0) => at(Some(0.0), "now".to_owned(), format!("{id} ({pool}) ends: drained")),
        ("draining", _, used) => {
            at(None, format!("after {}", count(used, "build")), format!("{id} ({pool}) ends: it is drained"))
        }
        (_, Some(wait), _) => {
            at(Some(wait), format!("in {}", span(wait)), format!("{id} ({pool}) ends unless it gets a build"))
        }
        (_, None, _) => None,
    }
}

fn of_pool(pool: &PoolView, view: &StatusView) -> Option<Next> {
    let name = &pool.name;
    if let Some(cap) = &pool.capped {
        let what = format!("{name} launches nothing: {cap}");
        return Some(Next { seconds: None, when: "held".to_owned(), what, is_trouble: true });
    }
    let wait = pool.cooling?;
    let why = pool.last_fault.as_ref().map(|fault| format!(", after: {}", fault.reason)).unwrap_or_default();
    let for_whom =
        if pool.queued > 0 { format!(" for {}", count(pool.queued, "build")) } else { String::new() };
    let verb = if pool.queued > 0 && view.accepting { "launches again" } else { "may launch again" };
    let what = format!("{name} {verb}{for_whom}{why}");
    Some(Next { seconds: Some(wait), when: format!("in {}", span(wait)), what, is_trouble: true })
}
