//! `broker image prune`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::{SitesArgs, age, now};
use crate::cli::aws;
use crate::cli::confirm::confirm;
use crate::cli::output::{Document, Mark, Screen};
use crate::cli::report::{self, Complaint};
use crate::cli::text::{count, span};
use crate::config::{self, Config, Defaults, LoadError};
use crate::provider::ec2::api::Api;
use crate::provider::ec2::image::{self, Inventory, Kept, Pruning};

/// Deregister images that newer ones have replaced, and delete their snapshots
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  broker image prune --dry-run
  broker image prune --keep 1
  broker image prune --region eu-central-1 --region eu-west-1 --yes

Keeps the newest images of each architecture and region, whatever an instance of the account runs, and what a pool of the
configuration would launch next. Looks only at images that `broker image` has made. Snapshots of uploads that were not
finished go as well, when they are a day old.

Exit status: 1 when something is left that was to go.")]
pub(super) struct Args {
    /// How many of the newest to keep, of each architecture
    #[arg(long, value_name = "N", default_value_t = 3)]
    keep: usize,
    #[command(flatten)]
    sites: SitesArgs,
    /// Show what would go, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// The configuration whose images stay [default: /etc/nix-broker/config.toml, if it is there]
    #[arg(long, value_name = "FILE", env = config::PATH_VARIABLE, hide_env_values = true)]
    config: Option<PathBuf>,
}

/// One region.
struct Work {
    api: Api,
    inventory: Inventory,
    pruning: Pruning,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Complaint> {
    let config = load(args.config.as_deref())?;
    aws::block_on(go(args, config.as_ref()))
}

/// A configuration that was named must be there; the usual one may not be on this machine.
fn load(path: Option<&Path>) -> Result<Option<Config>, Complaint> {
    match config::load(path.unwrap_or(Path::new(config::DEFAULT_PATH)), &Defaults::here()) {
        Ok(config) => Ok(Some(config)),
        Err(LoadError::Missing(_)) if path.is_none() => {
            report::warn("there is no configuration here: only instances are asked which images they use");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

async fn go(args: &Args, config: Option<&Config>) -> Result<ExitCode, Complaint> {
    let mut work = Vec::new();
    for api in args.sites.connect().await? {
        let mut inventory = image::look(&api).await?;
        let pools = config.iter().flat_map(|config| aws::pools(config));
        let pools = pools.map(|pool| (pool.spec.name.as_str(), &pool.spec.offer, pool.ec2));
        for (id, pool) in image::wanted(&inventory.images, pools) {
            inventory.used.entry(id).or_insert(pool);
        }
        let pruning = image::choose(&inventory, args.keep, now());
        work.push(Work { api, inventory, pruning });
    }
    let mut screen = Screen::stdout();
    screen.print(&table(&work))?;
    let images: usize = work.iter().map(|work| work.pruning.end.len()).sum();
    let snapshots: usize = work.iter().map(|work| work.pruning.half_made.len()).sum();
    if images + snapshots == 0 || args.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    let question =
        format!("End {} and {} for good?", count(images, "image"), count(snapshots, "unfinished snapshot"));
    if !args.yes && !confirm(&question)? {
        return Err(Complaint::new("not confirmed; nothing was ended", None));
    }
    let mut left = 0_usize;
    for work in &work {
        let images = work.pruning.end.iter().map(|(one, its)| (Some(one.id.as_str()), its.clone()));
        let snapshots = work.pruning.half_made.iter().map(|one| (None, vec![one.id.clone()]));
        for (image, its) in images.chain(snapshots) {
            let name = image.unwrap_or(&its[0]);
            let mut line = Document::default();
            match image::end(&work.api, image, &its).await {
                Ok(()) => line.marked(Mark::Ok, &format!("`{name}` in {} is gone", work.api.region()), None),
                Err(error) => {
                    left += 1;
                    let text = format!("`{name}` in {} is not all gone: {error}", work.api.region());
                    line.marked(Mark::Fail, &text, None)
                }
            };
            screen.print(&line)?;
        }
    }
    Ok(if left == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn table(work: &[Work]) -> Document {
    let mut rows = Vec::new();
    for Work { api, inventory, pruning } in work {
        let mut row = |id: &str, what: &str, age: Option<u64>, cost: String, end: &str, why: &str| {
            let age = age.map_or_else(|| "-".to_owned(), ago);
            let cells = [api.region(), id, what, &age, &cost, end, why];
            rows.push(cells.map(str::to_owned).to_vec());
        };
        let cost = |one| {
            let cost = image::monthly(one, &inventory.snapshots);
            cost.to_string()
        };
        for (one, why) in &pruning.keep {
            let why = match why {
                Kept::Newest => "one of the newest",
                Kept::Unfinished => "not finished",
                Kept::Used(user) => &format!("used by {user}"),
            };
            row(&one.id, &one.name, age(&one.creation_date), cost(one), "stays", why);
        }
        for (one, _) in &pruning.end {
            let why = if one.state == "available" { "replaced" } else { one.state.as_str() };
            row(&one.id, &one.name, age(&one.creation_date), cost(one), "goes", why);
        }
        for one in &pruning.half_made {
            let age = u64::try_from(one.started).ok().map(|started| now().saturating_sub(started));
            row(&one.id, "snapshot", age, "-".to_owned(), "goes", "of no image");
        }
    }
    let mut document = Document::default();
    if rows.is_empty() {
        document.line("There are no images of `broker image`.");
    } else {
        document.table(&["REGION", "ID", "NAME", "AGE", "COST", "PRUNE", "WHY"], rows);
    }
    document
}

fn ago(seconds: u64) -> String {
    span(Duration::from_secs(seconds).as_secs_f64())
}
