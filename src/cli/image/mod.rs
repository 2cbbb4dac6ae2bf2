//! `broker image`: AMIs for builders, from a disk image to the day on which nothing needs them any more.
//!
//! Owns the words; what is done is in `provider::ec2::image`. One file per subcommand.

mod copy;
mod list;
mod prune;
mod share;
mod upload;

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Subcommand;

use super::report::Complaint;
use crate::provider::ec2::api::{Api, ApiError, ErrorClass};
use crate::provider::ec2::image::ImageError;

/// Upload, list, share, copy and prune images for builders on EC2
#[derive(Debug, clap::Args)]
#[command(
    disable_help_subcommand = true,
    after_help = "\
Examples:
  nix build .#builder-image && broker image upload ./result
  broker image list
  broker image prune --dry-run

A pool with `image = \"own\"` in its `ec2` section boots the newest image for its processors. Permissions are in
nix/iam-policy-image.json; docs/aws.md has a worked example with what it costs."
)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Upload(upload::Args),
    List(list::Args),
    Share(share::Args),
    Copy(copy::Args),
    Prune(prune::Args),
}

/// Whose account it is about.
#[derive(Debug, clap::Args)]
struct ProfileArgs {
    /// The profile of ~/.aws/config
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
}

/// One account and one region of it.
#[derive(Debug, clap::Args)]
struct SiteArgs {
    #[command(flatten)]
    profile: ProfileArgs,
    /// The region [default: the one that every AWS tool would use]
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
}

/// One account and some regions of it.
#[derive(Debug, clap::Args)]
struct SitesArgs {
    #[command(flatten)]
    profile: ProfileArgs,
    /// A region, more than once for several [default: the one that every AWS tool would use]
    #[arg(long, value_name = "NAME")]
    region: Vec<String>,
}

impl ProfileArgs {
    async fn connect(&self, region: Option<&str>) -> Result<Api, ApiError> {
        Api::connect(self.profile.as_deref(), region).await.map_err(|error| {
            if error.class == ErrorClass::Config && region.is_none() {
                error.with_advice("name one with `--region`")
            } else {
                error
            }
        })
    }
}

impl SiteArgs {
    async fn connect(&self) -> Result<Api, ApiError> {
        self.profile.connect(self.region.as_deref()).await
    }
}

impl SitesArgs {
    async fn connect(&self) -> Result<Vec<Api>, ApiError> {
        if self.region.is_empty() {
            return Ok(vec![self.profile.connect(None).await?]);
        }
        let mut apis = Vec::new();
        for region in &self.region {
            apis.push(self.profile.connect(Some(region)).await?);
        }
        Ok(apis)
    }
}

pub(super) fn run(args: Args) -> Result<ExitCode, Complaint> {
    match args.command {
        Command::Upload(args) => upload::run(&args),
        Command::List(args) => list::run(&args),
        Command::Share(args) => share::run(&args),
        Command::Copy(args) => copy::run(&args),
        Command::Prune(args) => prune::run(&args),
    }
}

fn parse_image(text: &str) -> Result<String, String> {
    let digits = text.strip_prefix("ami-").unwrap_or_default();
    let is_id = digits.len() >= 8 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| text.to_owned()).ok_or_else(|| "an image is named like `ami-0123456789abcdef0`".to_owned())
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// How long ago EC2 says something was made, in seconds.
fn age(creation_date: &str) -> Option<u64> {
    let made = humantime::parse_rfc3339_weak(creation_date).ok()?;
    Some(now().saturating_sub(made.duration_since(UNIX_EPOCH).ok()?.as_secs()))
}

impl From<ImageError> for Complaint {
    fn from(error: ImageError) -> Self {
        Self::of(&error, None)
    }
}
