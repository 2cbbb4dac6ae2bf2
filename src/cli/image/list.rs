//! `broker image list`.

use std::process::ExitCode;
use std::time::Duration;

use super::{SitesArgs, age};
use crate::cli::aws;
use crate::cli::output::{Document, Json, Screen};
use crate::cli::report::Complaint;
use crate::cli::text::span;
use crate::provider::ec2::api::Api;
use crate::provider::ec2::image::{self, Inventory};

/// Show the images that `broker image` has made
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  broker image list
  broker image list --region eu-central-1 --region eu-west-1
  broker image list --json

COST is for a month, at 0.05 USD for a GiB of snapshots, which most regions charge; what is not written is not charged.
USED BY is an instance; `broker image prune` also looks at the configuration.")]
pub(super) struct Args {
    #[command(flatten)]
    sites: SitesArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct ImageView<'a> {
    region: &'a str,
    id: &'a str,
    name: &'a str,
    arch: &'a str,
    state: &'a str,
    created: &'a str,
    size_gib: u32,
    usd_per_month: f64,
    used_by: Option<&'a str>,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Complaint> {
    aws::block_on(go(args))
}

async fn go(args: &Args) -> Result<ExitCode, Complaint> {
    let mut found: Vec<(Api, Inventory)> = Vec::new();
    for api in args.sites.connect().await? {
        let inventory = image::look(&api).await?;
        found.push((api, inventory));
    }
    let views: Vec<_> = found.iter().flat_map(|(api, inventory)| views(api, inventory)).collect();
    let mut screen = Screen::stdout();
    if args.json {
        screen.json(&views, Json::Pretty)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut document = Document::default();
    if views.is_empty() {
        document.line("There are no images of `broker image`.");
    } else {
        let header = ["REGION", "IMAGE", "NAME", "ARCH", "STATE", "AGE", "SIZE", "COST", "USED BY"];
        let rows = views.iter().map(|view| {
            vec![
                view.region.to_owned(),
                view.id.to_owned(),
                view.name.to_owned(),
                view.arch.to_owned(),
                view.state.to_owned(),
                age(view.created).map_or_else(|| "-".to_owned(), ago),
                format!("{} GiB", view.size_gib),
                crate::cli::text::amount(Some(view.usd_per_month)),
                view.used_by.unwrap_or("-").to_owned(),
            ]
        });
        document.table(&header, rows.collect());
    }
    screen.print(&document)?;
    Ok(ExitCode::SUCCESS)
}

fn ago(seconds: u64) -> String {
    span(Duration::from_secs(seconds).as_secs_f64())
}

/// The newest first.
fn views<'a>(api: &'a Api, inventory: &'a Inventory) -> Vec<ImageView<'a>> {
    let mut views: Vec<_> = inventory
        .images
        .iter()
        .map(|one| ImageView {
            region: api.region(),
            id: &one.id,
            name: &one.name,
            arch: &one.arch,
            state: &one.state,
            created: &one.creation_date,
            size_gib: one.size,
            usd_per_month: image::monthly(one, &inventory.snapshots).micros() as f64 / 1e6,
            used_by: inventory.used.get(&one.id).map(String::as_str),
        })
        .collect();
    views.sort_by(|a, b| (b.created, b.id).cmp(&(a.created, a.id)));
    views
}
