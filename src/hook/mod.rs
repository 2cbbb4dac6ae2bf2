//! `broker-hook`: the small process that stands between Nix and the broker.
//!
//! Nix starts one for every build it accepts, and a thousand of them may wait at once: plain blocking I/O, one thread,
//! nothing kept but what Nix said. Its arguments decide what it is:
//!
//! ```text
//!  broker-hook [--socket PATH] VERBOSITY          the build hook
//!
//!   Nix ──fd 0──▶ conversation ──────▶ broker_client ──▶ broker
//!       ◀─fd 2── replies, notes ◀──── waiting ◀───────────┘  (log frames, notes, the end)
//!       ◀─fd 4── log_pipe ◀──────────────┘
//!                   │ when the outputs are there        │ when there is no broker
//!                importer                            handover
//!                   └────────▶ stock_client ◀───────────┘
//!                     (`nix __build-remote`, found by nix_executable)
//!                              │ starts, for the importer
//!                              ▼
//!  broker-hook --stdio [--store POOL]             the store endpoint: splices its stdio to the broker
//! ```
//!
//! Dying is how a hook cancels: the broker sees the socket close. So SIGTERM keeps its default action, and nothing
//! needs cleaning up. What must never happen is an exit between a request and its reply: it aborts the whole Nix
//! operation, so every trouble there becomes a decline.

mod absence;
mod arguments;
mod broker_client;
mod conversation;
mod endpoint;
mod handover;
mod importer;
mod log_pipe;
mod nix_executable;
mod notes;
mod readiness;
mod replies;
mod resume;
mod settings;
mod stock_client;
mod waiting;

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use arguments::{Arguments, USAGE};

/// The whole program.
pub fn main() -> ExitCode {
    match Arguments::read(std::env::args_os().skip(1)) {
        Ok(Arguments::Hook { socket, verbosity }) => conversation::run(socket, verbosity),
        Ok(Arguments::Endpoint { socket, pool }) => endpoint::run(&socket, pool),
        Ok(Arguments::Help) => print(USAGE),
        Ok(Arguments::Version) => print(concat!("broker-hook ", env!("CARGO_PKG_VERSION"), "\n")),
        Err(error) => {
            complain(&error);
            ExitCode::from(2)
        }
    }
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// One line on standard error for a person. A reader that is gone is no reason to fail differently.
fn complain(error: &dyn Error) {
    let _unheard = writeln!(std::io::stderr(), "error: {}", sentence(error));
}

/// An error and its causes on one line.
fn sentence(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
