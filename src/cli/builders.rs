//! `broker builders`: every machine, with its age and end.

use std::process::ExitCode;

use serde::Serialize;

use super::output::{Document, Json, Screen};
use super::report::Complaint;
use super::{Context, picture};
use crate::ipc::view::{BuilderView, SCHEMA};

/// List the machines
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  broker builders
  broker builders --json | jq -r '.builders[] | select(.state == \"ready\") | .id'

States: launching (the provider was asked), booting (it exists and is being checked), ready, draining (takes no new
builds), terminating.")]
pub(super) struct Args {
    /// Print a JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Listing<'a> {
    schema: u32,
    builders: &'a [BuilderView],
}

pub(super) fn run(args: &Args, context: &Context) -> Result<ExitCode, Complaint> {
    let view = context.connect()?.status()?;
    let mut screen = Screen::stdout();
    if args.json {
        screen.json(&Listing { schema: SCHEMA, builders: &view.builders }, Json::Pretty)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut document = Document::default();
    if view.builders.is_empty() {
        document.line("No builders.");
    } else {
        picture::builders(&mut document, view.builders.iter());
    }
    screen.print(&document)?;
    Ok(ExitCode::SUCCESS)
}
