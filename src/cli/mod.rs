//! The command line: what people type, and what they get to read.
//!
//! One file per command. Every command but `serve`, `run`, `try`, `check`, `simulate` and those about AWS (`init`, `sweep`,
//! `image`) is a client of the broker's socket (`client`); what goes to standard output is laid out by `output` alone, and
//! every complaint by `report`. Exit status: 0 done, 1 failed, 2 wrong usage, 3 the broker is not running, 70 a defect of
//! ours.

#[cfg(feature = "ec2")]
mod aws;
mod builders;
mod builds;
mod check;
mod client;
mod confirm;
mod cost;
mod daemon;
mod doctor;
mod drain;
mod export;
mod generate;
mod history;
#[cfg(feature = "ec2")]
mod image;
#[cfg(feature = "ec2")]
mod init;
mod log_format;
mod log_lines;
mod logs;
mod output;
mod picture;
mod report;
mod run;
mod simulate;
mod start;
mod status;
mod stop;
#[cfg(feature = "ec2")]
mod sweep;
mod text;
mod top;
mod trial;
mod watch;
mod why;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use self::client::Client;
use self::report::Complaint;
use crate::config::{self, Defaults};
use crate::ipc::Target;
use crate::ipc::message::{DEFAULT_SOCKET, SOCKET_VARIABLE};
use crate::model::BuilderId;
use crate::provider;

const EXAMPLES: &str = "\
Examples:
  broker status             What runs, what waits for what, and when each machine ends
  broker status --watch     The same, kept up to date, with keys to drain and to read logs
  broker top                How busy each machine is
  broker logs -f hello      What a build prints
  broker cost               What was spent, day by day
  broker why hello          Why a derivation is built where it is
  broker doctor             What keeps Nix from asking the broker, and what to do about it
  broker check              Whether the configuration is right
  broker try zen3           Whether a pool works: one small build there
  broker run -- nix build   A broker for one command, such as in CI

Exit status: 0 done, 1 failed, 2 wrong usage, 3 the broker is not running, 70 internal error";

/// Launches builders for Nix on demand, shares them, and ends them when they are idle.
#[derive(Debug, Parser)]
#[command(name = "broker", version, after_help = EXAMPLES, disable_help_subcommand = true)]
struct Cli {
    /// The broker's socket [default: the configuration's, or /run/nix-broker/broker.sock]
    #[arg(long, global = true, value_name = "PATH", env = SOCKET_VARIABLE, hide_env_values = true)]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Status(status::Args),
    Builders(builders::Args),
    Builds(builds::Args),
    Top(top::Args),
    Logs(logs::Args),
    Why(why::Args),
    Cost(cost::Args),
    History(history::Args),
    Start(start::Args),
    Drain(drain::Args),
    Stop(stop::Args),
    Check(check::Args),
    Doctor(doctor::Args),
    Run(run::Args),
    Try(trial::Args),
    Simulate(simulate::Args),
    #[cfg(feature = "ec2")]
    Init(init::Args),
    #[cfg(feature = "ec2")]
    Sweep(sweep::Args),
    #[cfg(feature = "ec2")]
    Image(image::Args),
    Serve(ServeArgs),
    #[command(hide = true)]
    Completions(generate::CompletionsArgs),
    #[command(hide = true)]
    Man(generate::ManArgs),
    /// One machine of a `local` pool; started by the broker.
    #[command(hide = true, disable_help_flag = true)]
    LocalMachine {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

/// Run the broker: what the service manager starts
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  broker serve
  broker serve --config ./config.toml --socket /tmp/broker.sock --state-dir /tmp/broker

Ends on SIGTERM or SIGINT: takes no new builds, waits for the running ones (`drain-grace`), ends every builder.

The log goes to standard error, or with fields to journald when that is where standard error leads
(`journalctl -u nix-broker NIX_BROKER_BUILDER=b-3`).
NIX_BROKER_LOG=nix_broker=debug shows every decision; NIX_BROKER_LOG_FORMAT is `text`, `json` (a line for each event,
in OpenTelemetry's words) or `journald`.")]
struct ServeArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = config::PATH_VARIABLE, hide_env_values = true, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// The state directory [default: the configuration's, or $STATE_DIRECTORY, or /var/lib/nix-broker]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Only this pool of the configuration
    #[arg(long = "pool", value_name = "POOL", hide = true)]
    pools: Vec<String>,
    /// End at once when standard input ends: `broker run` starts it so
    #[arg(long, hide = true)]
    until_eof: bool,
    /// The socket to listen on: the global option, put here before `serve` is called.
    #[arg(skip)]
    socket: Option<PathBuf>,
}

/// What every client command needs to know.
#[derive(Debug)]
struct Context {
    socket: Option<PathBuf>,
}

impl Context {
    /// The option or its variable, else what the configuration says, else the default.
    fn socket(&self) -> PathBuf {
        self.socket.clone().or_else(configured_socket).unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET))
    }

    fn connect(&self) -> Result<Client, Complaint> {
        Ok(Client::connect(&self.socket())?)
    }
}

/// A client need not be able to read the configuration, so every trouble with it is passed over here.
fn configured_socket() -> Option<PathBuf> {
    config::load(&config_path(), &Defaults::here()).ok()?.socket
}

/// Where the configuration is when no option says it.
fn config_path() -> PathBuf {
    std::env::var_os(config::PATH_VARIABLE)
        .filter(|path| !path.is_empty())
        .map_or_else(|| Path::new(config::DEFAULT_PATH).to_owned(), PathBuf::from)
}

/// Which builders a command is about.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct TargetArgs {
    /// The builder, as `broker builders` names it
    #[arg(value_name = "BUILDER", value_parser = parse_builder)]
    builder: Option<BuilderId>,
    /// Every builder of every pool
    #[arg(long)]
    all: bool,
}

impl TargetArgs {
    fn target(&self) -> Target {
        self.builder.map_or(Target::All, |builder| Target::Builder(builder.to_string()))
    }
}

fn parse_builder(text: &str) -> Result<BuilderId, String> {
    text.parse().map_err(|_| "a builder is named like `b-3`; `broker builders` lists them".to_owned())
}

/// Runs the command of these arguments (the program's name first).
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return report::usage(&error),
    };
    // A panic is a defect of ours, and says so with a status that a script cannot take for a failed build.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| dispatch(cli))) {
        Ok(Ok(code)) => code,
        Ok(Err(complaint)) => report::complain(&complaint),
        Err(_) => report::complain(&Complaint::internal()),
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode, Complaint> {
    let context = Context { socket: cli.socket };
    match cli.command {
        Command::Status(args) => status::run(&args, &context),
        Command::Builders(args) => builders::run(&args, &context),
        Command::Builds(args) => builds::run(&args, &context),
        Command::Top(args) => top::run(&args, &context),
        Command::Logs(args) => logs::run(args, &context),
        Command::Why(args) => why::run(args, &context),
        Command::Cost(args) => cost::run(&args, &context),
        Command::History(args) => history::run(&args, &context),
        Command::Start(args) => start::run(args, &context),
        Command::Drain(args) => drain::run(&args, &context),
        Command::Stop(args) => stop::run(&args, &context),
        Command::Check(args) => check::run(&args),
        Command::Doctor(args) => doctor::run(&args, &context),
        Command::Run(args) => run::run(args),
        Command::Try(args) => trial::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Completions(args) => generate::completions(&args),
        Command::Man(args) => generate::man(&args),
        #[cfg(feature = "ec2")]
        Command::Init(args) => init::run(&args),
        #[cfg(feature = "ec2")]
        Command::Sweep(args) => sweep::run(&args),
        #[cfg(feature = "ec2")]
        Command::Image(args) => image::run(args),
        Command::Serve(args) => Ok(daemon::serve(ServeArgs { socket: context.socket, ..args })?),
        Command::LocalMachine { args } => Ok(provider::local::machine::main(&args)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}
