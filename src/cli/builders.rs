//! `broker builders`: every machine, with its age and end.

use std::process::ExitCode;

use serde::Serialize;

use super::output::{Document, Json, Screen};
use super::report::Complaint;
use super::{Context, picture};
use crate::ipc::view::{BuilderView, SCHEMA, StatusView};

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

/// The machines alone, for programs.
#[derive(Serialize)]
pub(super) struct Listing<'a> {
    schema: u32,
    builders: &'a [BuilderView],
}

impl<'a> Listing<'a> {
    pub(super) fn of(view: &'a StatusView) -> Self {
        Self { schema: SCHEMA, builders: &view.builders }
    }
}

pub(super) fn run(args: &Args, context: &Context) -> Result<ExitCode, Complaint> {
    let view = context.connect()?.status()?;
    let mut screen = Screen::stdout();
    if args.json {
        screen.json(&Listing::of(&view), Json::Pretty)?;
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
