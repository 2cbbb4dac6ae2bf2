//! `broker builds`: every build that is on, and with `--all` those that have ended.

use std::process::ExitCode;

use serde::Serialize;

use super::output::{Document, Json, Screen};
use super::report::Complaint;
use super::{Context, picture};
use crate::ipc::view::{BuildView, SCHEMA};

/// List the builds
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  broker builds
  broker builds --all                Those that have ended lately too, with the reason of a failure
  broker why '#12'                   How one of them got where it is")]
pub(super) struct Args {
    /// Print a JSON document
    #[arg(long)]
    json: bool,
    /// Include builds that have ended lately
    #[arg(long)]
    all: bool,
}

#[derive(Serialize)]
struct Listing<'a> {
    schema: u32,
    builds: &'a [&'a BuildView],
}

pub(super) fn run(args: &Args, context: &Context) -> Result<ExitCode, Complaint> {
    let view = context.connect()?.status()?;
    let builds: Vec<&BuildView> =
        view.builds.iter().filter(|build| args.all || !picture::is_ended(build)).collect();
    let mut screen = Screen::stdout();
    if args.json {
        screen.json(&Listing { schema: SCHEMA, builds: &builds }, Json::Pretty)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut document = Document::default();
    if builds.is_empty() {
        document.line("No builds.");
    } else {
        picture::builds(&mut document, &view, builds.into_iter(), screen.is_terminal());
    }
    screen.print(&document)?;
    Ok(ExitCode::SUCCESS)
}
