//! Complaints: the one place that writes to standard error and that knows the exit statuses.
//!
//! ```text
//! error: cannot reach the broker at `/run/nix-broker/broker.sock`
//!   caused by: Connection refused (os error 111)
//! hint: is the service running? `systemctl status nix-broker`
//! ```

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use super::client::ClientError;
use super::output::colour_wanted;
use super::text::clean;
use crate::config::{LoadError, UnknownPool};

/// Why a command failed, for the process that started us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// Whoever read our output has had enough: no failure at all.
    Silent = 0,
    Failed = 1,
    NotRunning = 3,
    Internal = 70,
}

/// An error as a person gets to see it.
#[derive(Debug)]
pub(super) struct Complaint {
    exit: Exit,
    message: String,
    causes: Vec<String>,
    /// Lines of their own below the message: the problems of a file.
    details: Vec<String>,
    hint: Option<String>,
}

impl Complaint {
    pub(super) fn new(message: impl Into<String>, hint: Option<String>) -> Self {
        Self { exit: Exit::Failed, message: message.into(), causes: Vec::new(), details: Vec::new(), hint }
    }

    /// An error with what it comes from.
    pub(super) fn of(error: &dyn std::error::Error, hint: Option<String>) -> Self {
        Self { causes: sources(error), ..Self::new(error.to_string(), hint) }
    }

    /// What went wrong, in one sentence.
    #[cfg(feature = "ec2")]
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    pub(super) fn internal() -> Self {
        let hint = "this is a defect of the broker; please report it with the lines above";
        Self { exit: Exit::Internal, ..Self::new("internal error", Some(hint.to_owned())) }
    }
}

impl From<ClientError> for Complaint {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::NotRunning { .. } => Exit::NotRunning,
            ClientError::Denied { .. }
            | ClientError::Refused { .. }
            | ClientError::Closed
            | ClientError::Silent { .. }
            | ClientError::Garbled { .. }
            | ClientError::Io { .. }
            | ClientError::Unexpected(_) => Exit::Failed,
        };
        let hint = error.hint().map(str::to_owned);
        Self { exit, causes: sources(&error), ..Self::new(error.to_string(), hint) }
    }
}

impl From<LoadError> for Complaint {
    fn from(error: LoadError) -> Self {
        let mut complaint = Self { causes: sources(&error), ..Self::new(error.to_string(), None) };
        match error {
            LoadError::Missing(_) => {
                complaint.hint =
                    Some("name another file on the command line, or with NIX_BROKER_CONFIG".to_owned());
            }
            LoadError::Unreadable { .. } => {}
            LoadError::Invalid { path, problems } => {
                complaint.details = problems.iter().map(|problem| problem.located(&path)).collect();
            }
        }
        complaint
    }
}

impl From<io::Error> for Complaint {
    /// An error of standard output: nothing else is written to by a command.
    fn from(error: io::Error) -> Self {
        let exit = if error.kind() == io::ErrorKind::BrokenPipe { Exit::Silent } else { Exit::Failed };
        Self { exit, causes: vec![error.to_string()], ..Self::new("cannot write to standard output", None) }
    }
}

impl From<UnknownPool> for Complaint {
    fn from(error: UnknownPool) -> Self {
        Self::new(error.to_string(), None)
    }
}

impl From<anyhow::Error> for Complaint {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<LoadError>() {
            Ok(error) => error.into(),
            Err(error) => {
                let causes = error.chain().skip(1).map(ToString::to_string).collect();
                Self { causes, ..Self::new(error.to_string(), None) }
            }
        }
    }
}

fn sources(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(error.source(), |error| error.source()).map(ToString::to_string).collect()
}

/// Prints a complaint and gives the exit status it means.
pub(super) fn complain(complaint: &Complaint) -> ExitCode {
    if complaint.exit == Exit::Silent {
        return ExitCode::SUCCESS;
    }
    let mut lines = vec![format!("{} {}", label("error:", "31"), clean(&complaint.message))];
    lines.extend(complaint.causes.iter().map(|cause| format!("  caused by: {}", clean(cause))));
    lines.extend(complaint.details.iter().map(|detail| format!("  {}", clean(detail))));
    if let Some(hint) = &complaint.hint {
        lines.push(format!("{} {}", label("hint:", "36"), clean(hint)));
    }
    write_lines(&lines);
    ExitCode::from(complaint.exit as u8)
}

/// Says how something went, beside what is printed.
pub(super) fn note(message: &str) {
    write_lines(&[clean(message)]);
}

/// Prints a warning; the command goes on.
pub(super) fn warn(message: &str) {
    write_lines(&[format!("{} {}", label("warning:", "33"), clean(message))]);
}

/// What clap has to say: help and the version go to standard output, complaints to standard error.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    // Nobody is left to tell when this cannot be written either.
    drop(error.print());
    u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}

fn label(text: &str, colour: &str) -> String {
    if colour_wanted(io::stderr().is_terminal()) {
        format!("\x1b[1;{colour}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

fn write_lines(lines: &[String]) {
    // Nobody is left to tell when standard error is gone.
    drop(io::stderr().lock().write_all(format!("{}\n", lines.join("\n")).as_bytes()));
}
