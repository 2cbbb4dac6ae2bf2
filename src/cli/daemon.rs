//! `broker serve`: reads the configuration, sets up the log, and runs the resident process.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use super::ServeArgs;
use crate::broker;
use crate::config::{self, Defaults};
use crate::ipc::message::DEFAULT_SOCKET;

/// What is logged: `nix_broker=debug` shows every event and action.
const LOG_VARIABLE: &str = "NIX_BROKER_LOG";

pub(super) fn serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let filter = EnvFilter::builder()
        .with_env_var(LOG_VARIABLE)
        .with_default_directive(tracing::Level::INFO.into())
        .from_env()
        .with_context(|| format!("read `{LOG_VARIABLE}`"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(false)
        .init();
    let mut config = config::load(&args.config, &Defaults::here())?;
    for warning in &config.warnings {
        tracing::warn!("{}", warning.located(&args.config));
    }
    if let Some(state_dir) = args.state_dir {
        config.state_dir = state_dir;
    }
    let socket =
        args.socket.or_else(|| config.socket.clone()).unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET));
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(broker::serve(config, &socket))?;
    Ok(ExitCode::SUCCESS)
}
