//! `broker doctor`: what on this machine keeps builds from reaching the broker, and what to do about it.
//!
//! [`gather`] finds facts out, the checks judge them, and only this file prints. The checks are pure, so that each of
//! the situations they are about is a row of a table in a test.
//!
//! - [`setup`]: the configuration, the broker, its socket.
//! - [`hook`]: whether Nix asks our hook, whoever starts it.
//! - [`aws`]: what pools on EC2 need of AWS, with `--aws` only, because it asks AWS.
//! - [`needs`]: what the pools' providers need of this machine (`broker check` shows these as well).

#[cfg(feature = "ec2")]
mod aws;
pub(super) mod facts;
pub(super) mod finding;
pub(super) mod gather;
mod hook;
pub(super) mod needs;
pub(super) mod settings;
mod setup;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use self::facts::Facts;
use self::finding::{Finding, FindingView};
use super::Context;
use super::output::{Document, Json, Mark, Screen};
use super::report::Complaint;
use super::text::count;
use crate::config;
use crate::ipc::view::SCHEMA;

/// Find out what keeps Nix from asking the broker, and what to do about it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo broker doctor        As root it can look into the nix-daemon; it changes nothing
  broker doctor --json
  broker doctor --aws       With the credentials of this shell: the service may have others

Exit status: 1 when something fails; a warning alone is no failure.")]
pub(super) struct Args {
    /// Print a JSON document
    #[arg(long)]
    json: bool,
    /// The configuration file
    #[arg(long, value_name = "FILE", env = config::PATH_VARIABLE, hide_env_values = true, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// Look at the machine whose root folder this is: for tests.
    #[arg(long, hide = true, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Ask AWS instead whether pools on EC2 have what they need there: credentials, permissions, images, network
    #[cfg(feature = "ec2")]
    #[arg(long)]
    aws: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    findings: Vec<FindingView<'a>>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<ExitCode, Complaint> {
    #[cfg(feature = "ec2")]
    if args.aws {
        let config = config::load(&args.config, &config::Defaults::here())?;
        let findings = super::aws::block_on(aws::findings(&config))?;
        return report(
            args,
            &findings,
            "Nothing keeps the pools on EC2 from launching, as far as can be seen.",
        );
    }
    let facts = gather::facts(&args.root, &args.config, context.socket.as_deref());
    report(args, &judge(&facts), "Nothing keeps Nix from asking the broker, as far as can be seen.")
}

fn report(args: &Args, findings: &[Finding], all_well: &str) -> Result<ExitCode, Complaint> {
    let n_failed = findings.iter().filter(|finding| finding.mark == Mark::Fail).count();
    let mut screen = Screen::stdout();
    if args.json {
        let findings = findings.iter().map(FindingView::from).collect();
        screen.json(&Report { schema: SCHEMA, findings }, Json::Pretty)?;
    } else {
        let mut document = Document::default();
        for finding in findings {
            finding.print(&mut document);
        }
        document.blank().line(match n_failed {
            0 => all_well.to_owned(),
            n => format!("{} to be put right.", count(n, "thing")),
        });
        screen.print(&document)?;
    }
    Ok(if n_failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every judgement, in the order in which they are best put right.
fn judge(facts: &Facts) -> Vec<Finding> {
    [setup::findings(facts), hook::findings(facts), needs::findings(facts)].concat()
}
