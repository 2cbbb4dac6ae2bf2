//! `broker check`: whether the configuration is right, and what its pools need.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use super::doctor::finding::{Finding, FindingView};
use super::doctor::{gather, needs};
use super::output::{Document, Json, Screen};
use super::report::{self, Complaint};
use super::text::{count, span};
use crate::config::{self, Config, Defaults};
use crate::ipc::view::SCHEMA;
use crate::model::{PoolSpec, ProviderSpec, Slots};

/// Check the configuration, and say what its pools need
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  broker check
  broker check ./config.toml

Finds every problem in one go, each with its line. Exit status: 0 when the file is valid, whatever this machine still
lacks; 1 when it is not. The broker reads the file when it starts: `systemctl restart nix-broker`.")]
pub(super) struct Args {
    /// The configuration file
    #[arg(value_name = "FILE", env = config::PATH_VARIABLE, hide_env_values = true, default_value = config::DEFAULT_PATH)]
    file: PathBuf,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    pools: Vec<&'a str>,
    warnings: Vec<String>,
    findings: Vec<FindingView<'a>>,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Complaint> {
    let config = config::load(&args.file, &Defaults::here())?;
    let account = gather::likely_broker_account();
    let host = gather::host_facts(Path::new("/"), &config);
    let findings = needs::of_pools(&config.pools, &config.state_dir, &account, &host);
    let overflow = config::overflows(&config.pools).into_iter().map(|(later, earlier)| {
        Finding::note(format!(
            "`{later}` gets a build only when `{earlier}` is full: whatever fits it fits both"
        ))
    });
    let findings: Vec<Finding> = overflow.chain(findings).collect();
    let mut screen = Screen::stdout();
    if args.json {
        let report = Report {
            schema: SCHEMA,
            pools: config.pools.iter().map(|pool| pool.name.as_str()).collect(),
            warnings: config.warnings.iter().map(|problem| problem.located(&args.file)).collect(),
            findings: findings.iter().map(FindingView::from).collect(),
        };
        screen.json(&report, Json::Pretty)?;
        return Ok(ExitCode::SUCCESS);
    }
    screen.print(&document(&args.file, &config, &account.name, &findings))?;
    for problem in &config.warnings {
        report::warn(&problem.located(&args.file));
    }
    Ok(ExitCode::SUCCESS)
}

fn document(file: &Path, config: &Config, user: &str, findings: &[Finding]) -> Document {
    let mut document = Document::default();
    document.line(format!("`{}` is valid: {}.", file.display(), count(config.pools.len(), "pool"))).blank();
    let header = ["POOL", "PROVIDER", "SYSTEMS", "FEATURES", "SLOTS", "BUILDERS", "IDLE TIMEOUT"];
    document.table(&header, config.pools.iter().map(row).collect());
    document.blank().line(format!("What to know, for a broker that runs here as the user `{user}`:"));
    for finding in findings {
        finding.print(&mut document);
    }
    document
}

fn row(pool: &PoolSpec) -> Vec<String> {
    let provider = match &pool.provider {
        ProviderSpec::Local(_) => "local".to_owned(),
        ProviderSpec::Hosts(hosts) => count(hosts.len(), "host"),
        ProviderSpec::Ec2(_) => "ec2".to_owned(),
    };
    let features = pool.offer.features.iter().map(ToString::to_string);
    let mandatory = pool.offer.mandatory.iter().map(|feature| format!("{feature} (mandatory)"));
    let features: Vec<String> = mandatory.chain(features).collect();
    let slots = match pool.slots {
        Slots::Fixed(n) => n.to_string(),
        Slots::Auto { .. } => "auto".to_owned(),
    };
    vec![
        pool.name.to_string(),
        provider,
        pool.offer.systems.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        if features.is_empty() { "-".to_owned() } else { features.join(", ") },
        slots,
        format!("{} to {}", pool.min_builders, pool.max_builders),
        span(pool.idle_timeout.as_secs_f64()),
    ]
}
