//! `broker serve`: puts the resident process together and runs it.

use std::process::ExitCode;

use super::ServeArgs;

pub(super) fn serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let ServeArgs { config, state_dir, socket } = args;
    anyhow::bail!("`broker serve` is not built in ({config:?}, {state_dir:?}, {socket:?})")
}
