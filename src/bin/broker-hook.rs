//! `broker-hook`: what Nix starts, see [`nix_broker::hook`].

use std::process::ExitCode;

fn main() -> ExitCode {
    nix_broker::hook::main()
}
