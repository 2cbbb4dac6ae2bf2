//! `broker serve`: reads the configuration, sets up the log, and runs the resident process.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use rustix::process::{Signal, getpid, kill_process};

use super::{ServeArgs, log_format};
use crate::broker::{self, Activation};
use crate::config::{self, Defaults};
use crate::ipc::message::DEFAULT_SOCKET;

pub(super) fn serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let activation = Activation::from_environment()?;
    log_format::set_up()?;
    let mut config = config::load(&args.config, &Defaults::here())?.only(&args.pools)?;
    for warning in &config.warnings {
        tracing::warn!("{}", warning.located(&args.config));
    }
    if let Some(state_dir) = args.state_dir {
        config.state_dir = state_dir;
    }
    if args.until_eof {
        end_with_standard_input().context("watch standard input")?;
    }
    let socket =
        args.socket.or_else(|| config.socket.clone()).unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET));
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(broker::serve(config, &socket, activation))?;
    Ok(ExitCode::SUCCESS)
}

/// The end of whoever started us is ours too, even if it was killed: then the kernel closes its end of the pipe. At once:
/// nobody waits for what still builds. (The second signal is another one, because two of a kind may become one.)
fn end_with_standard_input() -> std::io::Result<()> {
    std::thread::Builder::new().name("standard input".to_owned()).spawn(|| {
        let _end = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        for signal in [Signal::TERM, Signal::INT] {
            let _ending = kill_process(getpid(), signal);
        }
    })?;
    Ok(())
}
