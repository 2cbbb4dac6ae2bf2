//! `broker`: the resident process (`broker serve`) and the command line that talks to it.

use std::process::ExitCode;

fn main() -> ExitCode {
    nix_broker::cli::main(std::env::args_os())
}
