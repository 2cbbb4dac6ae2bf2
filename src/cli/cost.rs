//! `broker cost`: what was spent, and on what.

use std::process::ExitCode;

use super::client::ClientError;
use super::output::{Document, Json, Screen};
use super::report::Complaint;
use super::text::{amount, span};
use super::{Context, picture};
use crate::ipc::view::{CostRowView, CostView};
use crate::ipc::{CostBy, OperatorReply, OperatorRequest};

/// Show what was spent
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  broker cost                What each of the last 31 days cost
  broker cost --by pool      What each pool has cost this month
  broker cost --by builder   Each instance of the last 31 days
  broker cost --by build     The derivations that cost most in the last 31 days
  broker cost --json | jq '[.rows[].cost] | add'

All of it is an estimate, a little above the bill: compute, volume and public address at the prices that were known at the
launch. A build is charged for the time that it ran, its builder's rate divided by the builds that ran there; boots and
idle time belong to no build. Days and months are those of UTC.")]
pub(super) struct Args {
    /// Add up by `day`, `pool`, `builder` or `build`
    #[arg(long, value_name = "WHAT", default_value = "day", value_parser = parse_by)]
    by: CostBy,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
}

fn parse_by(text: &str) -> Result<CostBy, String> {
    match text {
        "day" => Ok(CostBy::Day),
        "pool" => Ok(CostBy::Pool),
        "builder" => Ok(CostBy::Builder),
        "build" => Ok(CostBy::Build),
        _ => Err("costs are added up by `day`, `pool`, `builder` or `build`".to_owned()),
    }
}

pub(super) fn run(args: &Args, context: &Context) -> Result<ExitCode, Complaint> {
    let view = match context.connect()?.ask(&OperatorRequest::Cost { by: args.by })? {
        OperatorReply::Cost(view) => view,
        OperatorReply::Failed { reason, hint } => return Err(Complaint::new(reason, hint)),
        OperatorReply::Status(_)
        | OperatorReply::History(_)
        | OperatorReply::Why { .. }
        | OperatorReply::Done { .. } => return Err(ClientError::Unexpected("no bill").into()),
    };
    let mut screen = Screen::stdout();
    if args.json {
        screen.json(&view, Json::Pretty)?;
    } else {
        screen.print(&document(&view))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn document(view: &CostView) -> Document {
    let mut document = Document::default();
    if let Some(money) = &view.money {
        document.line(picture::costs(money)).blank();
    }
    if view.rows.is_empty() {
        document.line("Nothing has cost anything.");
        return document;
    }
    let word = |word: &Option<String>| word.clone().unwrap_or_else(|| "-".to_owned());
    let count = |row: &CostRowView| row.count.to_string();
    let cells = |row: &CostRowView| match view.by {
        CostBy::Day | CostBy::Pool => vec![row.name.clone(), count(row), span(row.time)],
        CostBy::Builder => vec![
            row.name.clone(),
            word(&row.pool),
            word(&row.instance_type),
            word(&row.market),
            span(row.time),
        ],
        CostBy::Build => vec![row.name.clone(), word(&row.pool), count(row), span(row.time)],
    };
    let header: &[&str] = match view.by {
        CostBy::Day => &["DAY", "INSTANCES", "TIME", "COST"],
        CostBy::Pool => &["POOL", "INSTANCES", "TIME", "COST"],
        CostBy::Builder => &["INSTANCE", "POOL", "TYPE", "MARKET", "TIME", "COST"],
        CostBy::Build => &["DERIVATION", "POOL", "BUILDS", "TIME", "COST"],
    };
    let rows = view.rows.iter().map(|row| {
        let mut cells = cells(row);
        cells.push(amount(Some(row.cost)));
        cells
    });
    document.table(header, rows.collect());
    document
}
