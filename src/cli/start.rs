//! `broker start`: one builder more, before there is work for it.

use std::process::ExitCode;

use super::Context;
use super::output::{Document, Screen};
use super::report::Complaint;
use crate::ipc::OperatorRequest;

/// Launch one builder more in a pool
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  broker start arm64        A machine that is ready when the work comes; it ends like any other when it is idle")]
pub(super) struct Args {
    /// The pool, as `broker status` names it
    #[arg(value_name = "POOL")]
    pool: String,
}

pub(super) fn run(args: Args, context: &Context) -> Result<ExitCode, Complaint> {
    order(context, &OperatorRequest::Start { pool: args.pool })
}

/// Has something done, and says so.
pub(super) fn order(context: &Context, request: &OperatorRequest) -> Result<ExitCode, Complaint> {
    match context.connect()?.order(request)? {
        Ok(text) => {
            let mut document = Document::default();
            document.line(text);
            Screen::stdout().print(&document)?;
            Ok(ExitCode::SUCCESS)
        }
        Err((reason, hint)) => Err(Complaint::new(reason, hint)),
    }
}
