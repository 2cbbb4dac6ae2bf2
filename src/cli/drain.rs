//! `broker drain`: no new builds there; it ends when the last one has.

use std::process::ExitCode;

use super::report::Complaint;
use super::{Context, TargetArgs, start};
use crate::ipc::OperatorRequest;

/// Give a machine no new builds, and end it when its last one has ended
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  broker drain b-3
  broker drain --all        Every machine; new builds get new ones")]
pub(super) struct Args {
    #[command(flatten)]
    target: TargetArgs,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<ExitCode, Complaint> {
    start::order(context, &OperatorRequest::Drain { target: args.target.target() })
}
