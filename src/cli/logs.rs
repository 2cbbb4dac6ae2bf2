//! `broker logs`: what a build printed, and prints.

use std::process::ExitCode;

use super::Context;
use super::client::LogPiece;
use super::log_lines::{LogLine, LogLines};
use super::output::Screen;
use super::report::{self, Complaint};
use crate::ipc::LogRequest;

/// Print the log of a build that runs or has ended lately
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  broker logs '#12'              A build, as `broker builds` names it
  broker logs -f hello           The build of this name, to its end
  broker logs hello | tail       Its last lines

A terminal gets lines of plain text, everything else the very bytes that the build wrote. Logs can hold secrets: only
root, the broker's own user and whoever brought the build may read one. A build through nix-daemon was brought by root.
For builds that ended before the broker started: `nix log`.
Exit status with -f: 0 when the build succeeded, 1 when it did not.")]
pub(super) struct Args {
    /// A build (`#12`), the path of a derivation, or a name or part of it: the one that runs, else the latest
    #[arg(value_name = "BUILD")]
    build: String,
    /// Go on until the build ends, and say how it did
    #[arg(short, long)]
    follow: bool,
}

pub(super) fn run(args: Args, context: &Context) -> Result<ExitCode, Complaint> {
    let mut client = context.connect()?;
    let mut screen = Screen::stdout();
    let mut lines = screen.is_terminal().then(LogLines::default);
    let request = LogRequest { build: args.build, tail: None, follow: args.follow };
    let end = client.log::<Complaint>(request, |piece| match (piece, &mut lines) {
        (LogPiece::Opened { build, drv }, Some(_)) => {
            report::note(&format!("log of #{build} {drv}"));
            Ok(())
        }
        (LogPiece::Opened { .. }, None) => Ok(()),
        (LogPiece::Bytes(bytes), None) => Ok(screen.raw(bytes)?),
        (LogPiece::Bytes(bytes), Some(lines)) => Ok(screen.raw(&for_terminal(lines.push(bytes)))?),
    })?;
    if let Some(rest) = lines.and_then(|mut lines| lines.finish()) {
        screen.raw(&for_terminal(vec![rest]))?;
    }
    let end = end.map_err(|(reason, hint)| Complaint::new(reason, hint))?;
    if args.follow {
        report::note(&end.sentence());
        let succeeded = end.outcome.as_deref() == Some("succeeded");
        return Ok(if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    Ok(ExitCode::SUCCESS)
}

fn for_terminal(lines: Vec<LogLine>) -> Vec<u8> {
    let mut text = String::new();
    for line in lines {
        match line {
            LogLine::Text(line) => text.push_str(&line),
            LogLine::Phase(phase) => text.push_str(&format!("-- {phase} --")),
        }
        text.push('\n');
    }
    text.into_bytes()
}
