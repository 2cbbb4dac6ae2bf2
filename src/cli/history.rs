//! `broker history`: the builds that ended, from before the broker started too.

use std::process::ExitCode;

use super::client::ClientError;
use super::output::{Document, Json, Screen};
use super::report::Complaint;
use super::text::{amount, shorten, span};
use super::{Context, export};
use crate::ipc::view::{HistoryView, PastBuildView};
use crate::ipc::{OperatorReply, OperatorRequest};

/// Characters of a derivation's name on a terminal; Nix allows 211.
const MAX_NAME: usize = 44;

/// List the builds that have ended, from before the broker started too
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  broker history                  The last 50 builds, where they ran and what they cost
  broker history --limit 1000
  broker history export --format csv > builds.csv
  broker history --json | jq '.builds[] | select(.outcome == \"failed\") | .drv'

Kept for 90 days, and 100,000 builds at most."
)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Show this many at most
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: u32,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Export(export::Args),
}

pub(super) fn run(args: &Args, context: &Context) -> Result<ExitCode, Complaint> {
    if let Some(Command::Export(args)) = &args.command {
        return export::run(args, context);
    }
    let request = OperatorRequest::History { most: args.limit, before: None };
    let view = match context.connect()?.ask(&request)? {
        OperatorReply::History(view) => view,
        OperatorReply::Failed { reason, hint } => return Err(Complaint::new(reason, hint)),
        OperatorReply::Status(_)
        | OperatorReply::Cost(_)
        | OperatorReply::Why { .. }
        | OperatorReply::Done { .. } => return Err(ClientError::Unexpected("no history").into()),
    };
    let mut screen = Screen::stdout();
    if args.json {
        screen.json(&view, Json::Pretty)?;
    } else {
        let document = document(&view, screen.is_terminal());
        screen.print(&document)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn document(view: &HistoryView, for_terminal: bool) -> Document {
    let mut document = Document::default();
    if view.builds.is_empty() {
        document.line("No build has ended yet.");
        return document;
    }
    let has_costs = view.builds.iter().any(|build| build.cost > 0.0);
    let mut header = vec!["ENDED", "DERIVATION", "OUTCOME", "WAITED", "BUILT", "MOVED", "WHERE"];
    if has_costs {
        header.push("COST");
    }
    let row = |build: &PastBuildView| {
        let mut cells = vec![
            format!("{} ago", span(build.ago)),
            shorten(&build.name, if for_terminal { MAX_NAME } else { usize::MAX }),
            build.outcome.clone(),
            span(build.waiting),
            span(build.building),
            span(build.uploading + build.downloading),
            whereabouts(build),
        ];
        if has_costs {
            cells.push(amount(Some(build.cost)));
        }
        cells
    };
    document.table(&header, view.builds.iter().map(row).collect());
    document
}

/// `x86 (c7a.4xlarge, spot)`, and why it failed.
fn whereabouts(build: &PastBuildView) -> String {
    let bought: Vec<&str> =
        [&build.instance_type, &build.market].into_iter().flatten().map(String::as_str).collect();
    let place = match (&build.pool, bought.as_slice()) {
        (None, _) => "-".to_owned(),
        (Some(pool), []) => pool.clone(),
        (Some(pool), bought) => format!("{pool} ({})", bought.join(", ")),
    };
    match &build.reason {
        Some(reason) => format!("{place}: {reason}"),
        None => place,
    }
}
