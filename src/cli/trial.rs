//! `broker try`: one small build in a pool, asked for by Nix itself, with a broker of its own: whether all of it works,
//! before anything depends on it.
//!
//! Owns the derivation, and what is said of what became of it. The broker that lives as long as the command is
//! [`super::run`]'s; what a pool launches and costs is said by who asks for the trial.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Instant;

use anyhow::Context as _;
use tokio::process::Command;

#[cfg(feature = "ec2")]
use super::aws::{self, SitePool};
use super::confirm::confirm;
use super::output::{Document, Mark, Screen};
use super::report::Complaint;
use super::run::{self, Order};
use super::text::span;
use crate::config::{self, Defaults};
use crate::model::{PoolName, PoolSpec, ProviderSpec};

/// What the build leaves behind is a line; more is not ours.
const MAX_RESULT: usize = 4096;

/// Build something small in a pool, to see whether it works
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  broker try zen3
  broker try --yes --config ./config.toml zen3

Starts a broker of its own (as `broker run` does), lets Nix build a derivation that requires what the pool is for, and ends
the builder again: on EC2 about two minutes of the machine that a single build gets. Nothing else that Nix builds is asked
of that broker, and a service that runs already is left alone.

Your Nix must take the hook from you: run it as root, or as one of `trusted-users`. Exit status: 1 when it was not built.")]
pub(super) struct Args {
    /// The pool [default: the only one there is]
    #[arg(value_name = "POOL")]
    pool: Option<String>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// The configuration file
    #[arg(long, value_name = "FILE", env = config::PATH_VARIABLE, hide_env_values = true, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Complaint> {
    let config = config::load(&args.config, &Defaults::here())?;
    let names: Vec<String> = args.pool.iter().cloned().collect();
    let config = config.only(&names)?;
    let [pool] = &config.pools[..] else {
        let hint = "name one: `broker try POOL`".to_owned();
        return Err(Complaint::new(format!("which of the pools {}?", config.pool_names()), Some(hint)));
    };
    if is_paid_for(pool) && !args.yes && !confirm(&question(pool)?)? {
        return Err(Complaint::new("not confirmed; nothing was launched", None));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("start the runtime")?.block_on(perform(&args.config, pool))
}

/// What a person is asked before money is spent.
pub(super) fn question(pool: &PoolSpec) -> Result<String, Complaint> {
    let how = match &pool.provider {
        #[cfg(feature = "ec2")]
        ProviderSpec::Ec2(ec2) => {
            let (launches, price) = aws::first_launch(&SitePool { spec: pool, ec2 })?;
            format!(" on a machine of its own (about two minutes of a {launches} at {price})")
        }
        ProviderSpec::Local(_) | ProviderSpec::Hosts(_) => String::new(),
        #[cfg(not(feature = "ec2"))]
        ProviderSpec::Ec2(_) => String::new(),
    };
    Ok(format!("Try pool `{}` with a small build{how}?", pool.name))
}

/// The pool to try first: one that is paid for, if there is any; the others have little that could be wrong.
#[cfg(feature = "ec2")]
pub(super) fn first_choice(pools: &[PoolSpec]) -> Option<&PoolSpec> {
    pools.iter().find(|pool| is_paid_for(pool)).or(pools.first())
}

fn is_paid_for(pool: &PoolSpec) -> bool {
    match pool.provider {
        ProviderSpec::Ec2(_) => true,
        ProviderSpec::Local(_) | ProviderSpec::Hosts(_) => false,
    }
}

/// Builds, and says what came of it.
pub(super) async fn perform(config: &Path, pool: &PoolSpec) -> Result<ExitCode, Complaint> {
    let mut screen = Screen::stdout();
    let order =
        Order { config: config.to_owned(), pools: vec![pool.name.as_str().to_owned()], state_dir: None };
    let mut nix = Command::new("nix-build");
    // A Nix that could build it itself would not show anything.
    nix.args(["--no-out-link", "--max-jobs", "0", "-E", &expression(pool)]).stdout(Stdio::piped());
    let began = Instant::now();
    let ended = run::with_broker(&order, nix).await?;
    let took = span(began.elapsed().as_secs_f64());
    if ended.code != 0 {
        let message = format!("pool `{}` did not build it (after {took}); Nix says why above", pool.name);
        let hint = match pool.provider {
            ProviderSpec::Ec2(_) => {
                "`broker doctor --aws` looks at the account, `broker check` at this machine"
            }
            ProviderSpec::Local(_) | ProviderSpec::Hosts(_) => "`broker check` looks at what the pool needs",
        };
        return Err(Complaint::new(message, Some(hint.to_owned())));
    }
    let text = verdict(&pool.name, &took, &result(&ended.stdout));
    screen.print(Document::default().marked(Mark::Ok, &text, None))?;
    Ok(ExitCode::SUCCESS)
}

fn verdict(pool: &PoolName, took: &str, machine: &str) -> String {
    let on = if machine.is_empty() { String::new() } else { format!(" on {machine}") };
    format!("pool `{pool}` built it{on}; with start and end of the builder that took {took}")
}

/// What the build has written: of the machine, in its own words.
fn result(stdout: &[u8]) -> String {
    let path = String::from_utf8_lossy(stdout);
    let text = std::fs::read(path.trim()).unwrap_or_default();
    String::from_utf8_lossy(&text[..text.len().min(MAX_RESULT)]).trim().to_owned()
}

/// A derivation that has never been built, and that requires what tells the pool from others. With nothing but what every
/// `/bin/sh` has: a sandbox holds no more.
fn expression(pool: &PoolSpec) -> String {
    let features = pool.offer.features.iter().filter(|feature| feature.is_processor());
    let required = pool.offer.mandatory.iter().chain(features).fold(String::new(), |mut text, feature| {
        // Writing to a string cannot fail.
        let _infallible = write!(text, " \"{feature}\"");
        text
    });
    let system = pool.offer.systems.first().map(ToString::to_string).unwrap_or_default();
    format!(
        r#"derivation {{
  name = "nix-broker-try";
  system = "{system}";
  requiredSystemFeatures = [{required} ];
  builder = "/bin/sh";
  args = [ "-c" ''
    n=0
    while IFS=: read -r key value; do
      case $key in processor*) n=$((n+1)) ;; "model name"*) model=''${{value# }} ;; esac
    done < /proc/cpuinfo
    read -r kernel < /proc/sys/kernel/osrelease
    echo "$n processors''${{model:+ ($model)}}, Linux $kernel" > $out
  '' ];
  allowSubstitutes = false;
  nonce = builtins.currentTime;
}}"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools(text: &str) -> Vec<PoolSpec> {
        config::parse(text, &Defaults::here(), &|path| std::fs::read_to_string(path)).unwrap().pools
    }

    #[test]
    fn what_is_built_requires_what_the_pool_is_for_and_no_more() {
        let pools = pools(
            "[[pool]]\nname = \"zen3\"\nsystems = [\"x86_64-linux\"]\n\
             features = [\"gccarch-znver3\", \"kvm\"]\nmandatory-features = [\"benchmark\"]\n[pool.local]\n",
        );
        let expression = expression(&pools[0]);
        let required = "requiredSystemFeatures = [ \"benchmark\" \"gccarch-znver3\" ];";
        assert!(expression.contains(required), "{expression}");
        assert!(expression.contains("system = \"x86_64-linux\";"), "{expression}");
    }

    #[test]
    fn a_machine_that_says_nothing_of_itself_is_left_out() {
        let name = PoolName::new("zen3");
        assert_eq!(
            verdict(&name, "1m 14s", ""),
            "pool `zen3` built it; with start and end of the builder that took 1m 14s"
        );
        assert_eq!(result(b"/no/such/path\n"), "");
    }
}
