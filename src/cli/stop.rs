//! `broker stop`: end a machine now.

use std::process::ExitCode;

use super::report::Complaint;
use super::{Context, TargetArgs, start};
use crate::ipc::OperatorRequest;

/// End a machine now; its builds are tried again on another one
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  broker stop b-3           A machine that misbehaves
  broker stop --all         Everything that costs money, now

`broker drain` lets the builds end first. To end the broker itself: `systemctl stop nix-broker`.")]
pub(super) struct Args {
    #[command(flatten)]
    target: TargetArgs,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<ExitCode, Complaint> {
    start::order(context, &OperatorRequest::Stop { target: args.target.target() })
}
