//! The first five minutes: finds out what is here, proposes a configuration with what it costs, and writes it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::propose::{Found, Machine, Proposal, Wanted, propose};
use crate::catalog::Catalog;
use crate::cli::aws::{self, SitePool};
use crate::cli::confirm::confirm;
use crate::cli::output::{Document, Mark, Screen};
use crate::cli::report::Complaint;
use crate::config::{self, Config, Defaults, LoadError};
use crate::model::ProviderSpec;
use crate::provider::ec2::api::Api;
use crate::provider::ec2::sweep;

/// A flake whose inputs have to be fetched takes a while; one that takes longer is told by flags.
const EVALUATION: Duration = Duration::from_secs(90);
const VERSION: Duration = Duration::from_secs(10);
/// What each machine of a flake is; one that cannot be evaluated is left out.
const MACHINES: &str = "all: builtins.mapAttrs (name: machine: \
    let platform = machine.config.nixpkgs.hostPlatform; \
        said = { system = platform.system; gccarch = platform.gcc.arch or null; }; \
        tried = builtins.tryEval (builtins.deepSeq said said); \
    in if tried.success then tried.value else null) all";

/// What the command line says about it.
#[derive(Debug)]
pub(super) struct Wish<'a> {
    pub(super) path: &'a Path,
    pub(super) pools: &'a [Wanted],
    pub(super) flake: Option<&'a Path>,
    pub(super) yes: bool,
    pub(super) dry_run: bool,
}

/// Proposes and writes; the configuration that is there then. Nothing after a dry run.
pub(super) async fn configure(wish: &Wish<'_>) -> Result<Option<Config>, Complaint> {
    let mut screen = Screen::stdout();
    let mut document = Document::default();
    match nix_version().await {
        Some(version) => document.marked(Mark::Ok, &version, None),
        None => document.marked(
            Mark::Warn,
            "there is no `nix` on the PATH",
            Some("the broker works for a Nix on this machine"),
        ),
    };
    let defaults = Defaults::here();
    let aws = match region().await {
        Ok(region) => {
            document.marked(Mark::Ok, &format!("EC2 takes the credentials found here, in {region}"), None);
            Ok(region)
        }
        Err(why) => {
            document.marked(
                Mark::Note,
                &format!("EC2 cannot be used: {why}"),
                Some("credentials and a region as every AWS tool takes them"),
            );
            Err(why)
        }
    };
    let machines = machines(wish, &mut document).await;
    let found = Found { system: defaults.system.clone(), aws, machines };
    let proposal = propose(&found, wish.pools).map_err(|why| Complaint::new(why, None))?;
    for remark in &proposal.remarks {
        document.marked(Mark::Note, remark, None);
    }
    let config = read(wish.path, &proposal, &defaults)?;
    show(&config, &proposal, &mut document)?;
    screen.print(&document)?;
    if wish.dry_run {
        screen.print(Document::default().blank().line("Nothing was written."))?;
        return Ok(None);
    }
    if !wish.yes && !confirm(&format!("Write it to `{}`?", wish.path.display()))? {
        return Err(Complaint::new("not confirmed; nothing was written", None));
    }
    write(wish.path, &proposal.text)?;
    let next = "`broker check` explains it, and `broker doctor` says what Nix needs to ask the broker.";
    let written = format!("Wrote `{}`. {next}", wish.path.display());
    screen.print(Document::default().blank().line(written).blank())?;
    Ok(Some(config))
}

/// What the configuration's own reader makes of the proposal.
fn read(path: &Path, proposal: &Proposal, defaults: &Defaults) -> Result<Config, Complaint> {
    let read = config::parse(&proposal.text, defaults, &|path| std::fs::read_to_string(path));
    Ok(read.map_err(|problems| LoadError::Invalid { path: path.to_owned(), problems })?)
}

fn show(config: &Config, proposal: &Proposal, document: &mut Document) -> Result<(), Complaint> {
    let mut rows = Vec::new();
    let sites = aws::sites(config);
    for spec in &config.pools {
        let (launches, price) = match &spec.provider {
            ProviderSpec::Ec2(ec2) => aws::first_launch(&SitePool { spec, ec2 })?,
            ProviderSpec::Local(_) | ProviderSpec::Hosts(_) => {
                ("processes here".to_owned(), "nothing".to_owned())
            }
        };
        let systems: Vec<_> = spec.offer.systems.iter().map(ToString::to_string).collect();
        rows.push(vec![spec.name.to_string(), systems.join(", "), launches, price]);
    }
    document.blank().table(&["POOL", "SYSTEMS", "LAUNCHES FIRST", "COSTS"], rows);
    if !sites.is_empty() {
        let catalog = Catalog::get();
        document.line(format!(
            "Prices are those of {} on {}, on demand; spot is mostly cheaper, and nothing is launched before a build needs it.",
            catalog.region(),
            catalog.date()
        ));
    }
    for problem in &config.warnings {
        document.marked(Mark::Warn, &problem.to_string(), None);
    }
    document.blank();
    for line in proposal.text.lines() {
        document.line(format!("  {line}"));
    }
    Ok(())
}

/// A file that has come to be there meanwhile is not written over.
fn write(path: &Path, text: &str) -> Result<(), Complaint> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let written = dir
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::File::create_new(path))
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| {
        let hint = "run this as root, or name a place that you may write to with `--config`";
        Complaint::new(format!("cannot write `{}`: {error}", path.display()), Some(hint.to_owned()))
    })
}

/// `nix (Nix) 2.34.8`, `nix (Lix, like Nix) 2.93.0`: implementation and version, in its own words.
async fn nix_version() -> Option<String> {
    let said = output(Command::new("nix").arg("--version"), VERSION).await.ok()?;
    said.lines().next().map(str::to_owned)
}

/// The region in which EC2 takes the credentials of this shell.
async fn region() -> Result<String, String> {
    let api = Api::connect(None, None).await.map_err(|error| one_line(&error))?;
    match sweep::look(&api).await {
        Ok(_) => Ok(api.region().to_owned()),
        Err(error) => Err(one_line(&error)),
    }
}

fn one_line(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

async fn machines(wish: &Wish<'_>, document: &mut Document) -> BTreeMap<String, Machine> {
    let here = PathBuf::from(".");
    let flake = match wish.flake {
        Some(flake) => flake.to_owned(),
        None if wish.pools.is_empty() && here.join("flake.nix").is_file() => here,
        None => return BTreeMap::new(),
    };
    let Ok(flake) = std::path::absolute(&flake) else { return BTreeMap::new() };
    let mut command = Command::new("nix");
    command.args([
        "--extra-experimental-features",
        "nix-command flakes",
        "eval",
        "--json",
        "--no-write-lock-file",
    ]);
    command.arg(format!("{}#nixosConfigurations", flake.display())).args(["--apply", MACHINES]);
    let said = output(&mut command, EVALUATION).await.and_then(|text| {
        serde_json::from_str::<BTreeMap<String, Option<Machine>>>(&text).map_err(|error| error.to_string())
    });
    match said {
        Ok(all) => {
            let known: BTreeMap<String, Machine> =
                all.into_iter().filter_map(|(name, machine)| Some((name, machine?))).collect();
            let words: Vec<String> = known
                .iter()
                .map(|(name, machine)| match &machine.gccarch {
                    Some(arch) => format!("{name} ({}, {arch})", machine.system),
                    None => format!("{name} ({})", machine.system),
                })
                .collect();
            let text = if words.is_empty() { "none".to_owned() } else { words.join(", ") };
            document.marked(
                Mark::Ok,
                &format!("machines of the flake in `{}`: {text}", flake.display()),
                None,
            );
            known
        }
        Err(why) => {
            let text =
                format!("the flake in `{}` does not say which machines it has: {why}", flake.display());
            document.marked(
                Mark::Note,
                &text,
                Some("`--pool x86_64-linux:gccarch-znver3` says what is needed"),
            );
            BTreeMap::new()
        }
    }
}

/// What a program prints, if it ends well and in time; else why not.
async fn output(command: &mut Command, limit: Duration) -> Result<String, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    match tokio::time::timeout(limit, command.output()).await {
        Err(_) => Err(format!("no answer within {}s", limit.as_secs())),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(output)) if output.status.success() => {
            String::from_utf8(output.stdout).map_err(|error| error.to_string())
        }
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let last = said.lines().rfind(|line| line.trim_start().starts_with("error:"));
            Err(last.unwrap_or("it failed without an error").trim().to_owned())
        }
    }
}
