//! `broker completions` and `broker man`: what a package installs beside the programs, made from the same declarations
//! that the command line is read with.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::Cli;
use super::report::Complaint;

/// Print the completions for a shell
#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Write the manual pages into a directory
#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// Where to; it is made if it is not there
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<ExitCode, Complaint> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "broker", &mut text);
    std::io::Write::write_all(&mut std::io::stdout(), &text)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn man(args: &ManArgs) -> Result<ExitCode, Complaint> {
    let written = std::fs::create_dir_all(&args.dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), &args.dir));
    written.map_err(|error| {
        Complaint::new(format!("cannot write manual pages to `{}`: {error}", args.dir.display()), None)
    })?;
    Ok(ExitCode::SUCCESS)
}
