//! `broker why`: how a build got where it is, or where a derivation would go.

use std::process::ExitCode;

use serde::Serialize;

use super::Context;
use super::client::ClientError;
use super::output::{Document, Json, Screen};
use super::report::Complaint;
use crate::ipc::view::SCHEMA;
use crate::ipc::{OperatorReply, OperatorRequest};

/// Explain why a derivation is built where it is, or would be
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  broker why '#12'                                 A build, as `broker builds` names it
  broker why hello                                 The builds of this name, or part of it
  broker why \"$(nix eval --raw .#hello.drvPath)\"   Where this derivation would go")]
pub(super) struct Args {
    /// A build (`#12`), the path of a derivation, or a name or part of it
    #[arg(value_name = "SUBJECT")]
    subject: String,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Explanation<'a> {
    schema: u32,
    lines: &'a [String],
}

pub(super) fn run(args: Args, context: &Context) -> Result<ExitCode, Complaint> {
    let request = OperatorRequest::Why { subject: args.subject };
    let lines = match context.connect()?.ask(&request)? {
        OperatorReply::Why { lines } => lines,
        OperatorReply::Failed { reason, hint } => return Err(Complaint::new(reason, hint)),
        OperatorReply::Cost(_) => return Err(ClientError::Unexpected("a bill").into()),
        OperatorReply::History(_) => return Err(ClientError::Unexpected("a history").into()),
        OperatorReply::Status(_) => return Err(ClientError::Unexpected("a status").into()),
        OperatorReply::Done { .. } => return Err(ClientError::Unexpected("a confirmation").into()),
    };
    let mut screen = Screen::stdout();
    if args.json {
        screen.json(&Explanation { schema: SCHEMA, lines: &lines }, Json::Pretty)?;
    } else {
        let mut document = Document::default();
        for line in &lines {
            document.line(line);
        }
        screen.print(&document)?;
    }
    Ok(ExitCode::SUCCESS)
}
