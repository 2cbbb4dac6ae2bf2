//! What was spent and what was built, as documents for the command line.

use std::time::Duration;

use super::{chain, since_1970};
use crate::history::{BuildRow, By, CostRow, History};
use crate::ipc::view::{
    CostRowView, CostView, HistoryView, MoneyView, PastBuildView, SCHEMA, dollars, seconds,
};
use crate::ipc::{CostBy, OperatorReply};
use crate::model::MoneyStatus;

/// Builds in one answer at most.
const MOST_BUILDS: u32 = 10_000;

/// The bill.
pub(crate) async fn cost(history: &History, money: Option<MoneyStatus>, by: CostBy) -> OperatorReply {
    let added_up_by = match by {
        CostBy::Day => By::Day,
        CostBy::Pool => By::Pool,
        CostBy::Builder => By::Builder,
        CostBy::Build => By::Build,
    };
    let now = since_1970();
    match history.ask(move |store| store.costs(now, added_up_by)).await {
        Ok(rows) => OperatorReply::Cost(CostView {
            schema: SCHEMA,
            by,
            money: money.as_ref().map(MoneyView::from),
            rows: rows.into_iter().map(cost_row).collect(),
        }),
        Err(error) => failed(error),
    }
}

/// The builds that ended last.
pub(crate) async fn builds(history: &History, most: u32, before: Option<u64>) -> OperatorReply {
    let (now, most) = (since_1970(), most.min(MOST_BUILDS));
    match history.ask(move |store| store.builds(most, before)).await {
        Ok(rows) => OperatorReply::History(HistoryView {
            schema: SCHEMA,
            builds: rows.into_iter().map(|row| past_build(row, now)).collect(),
        }),
        Err(error) => failed(error),
    }
}

fn failed(error: crate::history::HistoryError) -> OperatorReply {
    let hint = "see its log with `journalctl -u nix-broker`".to_owned();
    OperatorReply::Failed { reason: chain(&anyhow::Error::new(error)), hint: Some(hint) }
}

fn cost_row(row: CostRow) -> CostRowView {
    CostRowView {
        name: row.name,
        pool: row.pool,
        instance_type: row.instance_type,
        market: row.market,
        count: row.count,
        time: seconds(row.time),
        cost: dollars(row.cost),
    }
}

fn past_build(row: BuildRow, now: Duration) -> PastBuildView {
    PastBuildView {
        row: row.row,
        ended: row.ended.as_secs(),
        ago: seconds(now.saturating_sub(row.ended)),
        id: row.build,
        drv: row.drv,
        name: row.name,
        system: row.system,
        features: row.features,
        pool: row.pool,
        builder: row.builder,
        instance: row.instance,
        instance_type: row.instance_type,
        market: row.market,
        waiting: seconds(row.waiting),
        uploading: seconds(row.uploading),
        building: seconds(row.building),
        downloading: seconds(row.downloading),
        took: row.took.map(seconds),
        bytes_up: row.bytes_up,
        bytes_direct: row.bytes_direct,
        bytes_down: row.bytes_down,
        attempts: row.attempts,
        outcome: row.outcome,
        reason: row.reason,
        cost: dollars(row.cost),
    }
}
