//! `broker image share`.

use std::process::ExitCode;

use super::{SiteArgs, parse_image};
use crate::cli::aws;
use crate::cli::output::{Document, Mark, Screen};
use crate::cli::report::Complaint;
use crate::provider::ec2::image::{self, Sharing};

/// Let other accounts launch an image
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  broker image share ami-0123456789abcdef0 --account 123456789012
  broker image share ami-0123456789abcdef0 --account 123456789012 --unshare

Shares the image and its snapshot. The other account names it in its pool, as `image = \"ami-...\"`. An image that is
encrypted with the account's default key cannot be shared, which is so where volumes are encrypted by default.")]
pub(super) struct Args {
    /// The image, as `broker image list` names it
    #[arg(value_name = "AMI", value_parser = parse_image)]
    image: String,
    /// An account, more than once for several
    #[arg(long, value_name = "ID", required = true, value_parser = parse_account)]
    account: Vec<String>,
    /// Share it no longer
    #[arg(long)]
    unshare: bool,
    #[command(flatten)]
    site: SiteArgs,
}

fn parse_account(text: &str) -> Result<String, String> {
    let is_account = text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit());
    is_account.then(|| text.to_owned()).ok_or_else(|| "an account is 12 digits".to_owned())
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Complaint> {
    aws::block_on(go(args))
}

async fn go(args: &Args) -> Result<ExitCode, Complaint> {
    let api = args.site.connect().await?;
    let sharing = if args.unshare { Sharing::Take } else { Sharing::Give };
    let accounts = image::share(&api, &args.image, &args.account, sharing).await?;
    let mut document = Document::default();
    let accounts = accounts.into_iter().collect::<Vec<_>>().join(", ");
    let text = match accounts.as_str() {
        "" => format!("`{}` is shared with no other account", args.image),
        accounts => format!("`{}` is shared with {accounts}", args.image),
    };
    document.marked(Mark::Ok, &text, None);
    Screen::stdout().print(&document)?;
    Ok(ExitCode::SUCCESS)
}
