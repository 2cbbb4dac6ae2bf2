//! The one question that some commands ask before they change something.

use std::io::{self, BufRead, IsTerminal, Write};

use super::report::Complaint;

/// Whether to go on. Without a person to ask, `--yes` must have been said already.
pub(super) fn confirm(question: &str) -> Result<bool, Complaint> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        let message = "nobody can be asked whether to go on: standard input is not a terminal";
        let hint = "`--yes` goes on without asking, `--dry-run` only shows what would be done";
        return Err(Complaint::new(message, Some(hint.to_owned())));
    }
    let mut err = io::stderr().lock();
    // A question that cannot be shown is answered with no below: nothing was read.
    drop(write!(err, "{question} [y/N] ").and_then(|()| err.flush()));
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
