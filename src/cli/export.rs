//! `broker history export`: every build that is remembered, for spreadsheets and scripts.

use std::io;
use std::process::ExitCode;

use super::Context;
use super::client::ClientError;
use super::output::{Json, Screen};
use super::report::Complaint;
use crate::ipc::view::{HistoryView, PastBuildView};
use crate::ipc::{OperatorReply, OperatorRequest};

/// Builds that are asked for at a time: as many as fit into one answer whatever they failed with.
const PAGE: u32 = 2_000;

/// Print every build that is remembered, the latest first
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  broker history export > builds.jsonl              One JSON object for each build
  broker history export --format csv > builds.csv   The same as a table, with a header

Times are seconds, amounts of data bytes, costs US dollars.")]
pub(super) struct Args {
    /// How they are printed
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// JSON lines
    Jsonl,
    /// Comma-separated values (RFC 4180)
    Csv,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<ExitCode, Complaint> {
    let mut screen = Screen::stdout();
    if args.format == Format::Csv {
        screen.raw(line(COLUMNS.iter().map(|(name, _)| (*name).to_owned())).as_bytes())?;
    }
    let mut before = None;
    loop {
        let page = page(context, before)?;
        for build in &page.builds {
            print(&mut screen, args.format, build)?;
        }
        match page.builds.last() {
            Some(last) if page.builds.len() >= PAGE as usize => before = Some(last.row),
            Some(_) | None => return Ok(ExitCode::SUCCESS),
        }
    }
}

fn page(context: &Context, before: Option<u64>) -> Result<HistoryView, Complaint> {
    match context.connect()?.ask(&OperatorRequest::History { most: PAGE, before })? {
        OperatorReply::History(view) => Ok(view),
        OperatorReply::Failed { reason, hint } => Err(Complaint::new(reason, hint)),
        OperatorReply::Status(_)
        | OperatorReply::Cost(_)
        | OperatorReply::Why { .. }
        | OperatorReply::Done { .. } => Err(ClientError::Unexpected("no history").into()),
    }
}

fn print(screen: &mut Screen, format: Format, build: &PastBuildView) -> io::Result<()> {
    match format {
        Format::Jsonl => screen.json(build, Json::Line),
        Format::Csv => screen.raw(line(COLUMNS.iter().map(|(_, value)| value(build))).as_bytes()),
    }
}

/// What a column of the table holds.
type Value = fn(&PastBuildView) -> String;

const COLUMNS: &[(&str, Value)] = &[
    ("ended", |build| build.ended.to_string()),
    ("id", |build| build.id.to_string()),
    ("name", |build| build.name.clone()),
    ("drv", |build| build.drv.clone()),
    ("system", |build| build.system.clone()),
    ("features", |build| build.features.join(" ")),
    ("outcome", |build| build.outcome.clone()),
    ("reason", |build| build.reason.clone().unwrap_or_default()),
    ("pool", |build| build.pool.clone().unwrap_or_default()),
    ("builder", |build| build.builder.clone().unwrap_or_default()),
    ("instance", |build| build.instance.clone().unwrap_or_default()),
    ("instance-type", |build| build.instance_type.clone().unwrap_or_default()),
    ("market", |build| build.market.clone().unwrap_or_default()),
    ("attempts", |build| build.attempts.to_string()),
    ("waiting", |build| build.waiting.to_string()),
    ("uploading", |build| build.uploading.to_string()),
    ("building", |build| build.building.to_string()),
    ("downloading", |build| build.downloading.to_string()),
    ("took", |build| build.took.map(|took| took.to_string()).unwrap_or_default()),
    ("bytes-up", |build| build.bytes_up.to_string()),
    ("bytes-direct", |build| build.bytes_direct.to_string()),
    ("bytes-down", |build| build.bytes_down.to_string()),
    ("cost", |build| build.cost.to_string()),
];

/// One line of the table. What holds a comma, a quote or a line end is quoted.
fn line(cells: impl Iterator<Item = String>) -> String {
    let cells = cells.map(|cell| {
        if cell.contains([',', '"', '\n', '\r']) {
            format!("\"{}\"", cell.replace('"', "\"\""))
        } else {
            cell
        }
    });
    let mut line = cells.collect::<Vec<_>>().join(",");
    line.push_str("\r\n");
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_break_a_table_is_quoted() {
        let cells = ["plain", "a, b", "said \"no\"", "two\nlines", ""].map(str::to_owned);
        assert_eq!(line(cells.into_iter()), "plain,\"a, b\",\"said \"\"no\"\"\",\"two\nlines\",\r\n");
    }
}
