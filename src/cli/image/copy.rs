//! `broker image copy`.

use std::process::ExitCode;

use super::{ProfileArgs, parse_image};
use crate::cli::aws;
use crate::cli::output::{Document, Mark, Screen};
use crate::cli::report::Complaint;
use crate::provider::ec2::image;

/// Copy an image to other regions
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  broker image copy ami-0123456789abcdef0 --to eu-west-1 --to eu-north-1

Waits until the copies can be launched, which takes minutes. A region that has the same content already is passed over.
AWS charges what goes from one region to another, about 0.02 USD for a GB.")]
pub(super) struct Args {
    /// The image, as `broker image list` names it
    #[arg(value_name = "AMI", value_parser = parse_image)]
    image: String,
    /// A region to copy to, more than once for several
    #[arg(long, value_name = "NAME", required = true)]
    to: Vec<String>,
    /// The region it is in [default: the one that every AWS tool would use]
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
    #[command(flatten)]
    profile: ProfileArgs,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Complaint> {
    aws::block_on(go(args))
}

async fn go(args: &Args) -> Result<ExitCode, Complaint> {
    let from = args.profile.connect(args.region.as_deref()).await?;
    let mut screen = Screen::stdout();
    for region in &args.to {
        let to = args.profile.connect(Some(region)).await?;
        let (id, was_there) = image::copy(&from, &to, &args.image).await?;
        let what = if was_there { "has it already, as" } else { "has it as" };
        let mut document = Document::default();
        document.marked(Mark::Ok, &format!("{region} {what} `{id}`"), None);
        screen.print(&document)?;
    }
    Ok(ExitCode::SUCCESS)
}
