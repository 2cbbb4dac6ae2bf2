//! `broker status`: what runs, what waits for what, what ends when.

use std::process::ExitCode;

use super::output::{Json, Screen};
use super::report::{self, Complaint};
use super::{Context, picture, watch};
use crate::ipc::view::StatusView;

/// Show what runs, what waits for what, and when each machine ends
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  broker status
  broker status --watch
  broker status --json | jq '.pools[] | {name, queued}'
  broker status --watch --json     One document per line at every change")]
pub(super) struct Args {
    /// Print a JSON document (`schema` 1: fields are only ever added)
    #[arg(long)]
    json: bool,
    /// Go on at every change, until interrupted; on a terminal the whole screen, with keys (`?` lists them)
    #[arg(long)]
    watch: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<ExitCode, Complaint> {
    let mut client = context.connect()?;
    let mut screen = Screen::stdout();
    if args.watch && !args.json && watch::is_possible() {
        // The view makes its own connections, but a broker that is not there is an error and no view.
        drop(client);
        return watch::run(&context.socket());
    }
    if args.watch {
        let mut is_first = true;
        client.watch::<Complaint>(|view| {
            if args.json {
                screen.json(&view, Json::Line)?;
            } else if screen.is_terminal() {
                screen.redraw(&picture::status(&view, true))?;
            } else {
                let mut document = picture::status(&view, false);
                document.blank();
                screen.print(&document)?;
            }
            if std::mem::take(&mut is_first) && !screen.is_terminal() {
                warn_of_versions(&view);
            }
            Ok(())
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let view = client.status()?;
    if args.json {
        screen.json(&view, Json::Pretty)?;
    } else {
        screen.print(&picture::status(&view, screen.is_terminal()))?;
    }
    warn_of_versions(&view);
    Ok(ExitCode::SUCCESS)
}

fn warn_of_versions(view: &StatusView) {
    let ours = env!("CARGO_PKG_VERSION");
    if view.version != ours {
        report::warn(&format!(
            "the running broker is {}, this command {ours}; `systemctl restart nix-broker` after an upgrade",
            view.version
        ));
    }
}
