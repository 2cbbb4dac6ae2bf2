//! `broker sweep`: ends what brokers left on EC2, known by its tags alone.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::aws;
use super::confirm::confirm;
use super::output::{Document, Mark, Screen};
use super::report::{self, Complaint};
use super::text::{count, span};
use crate::provider::ec2::api::{Api, ErrorClass};
use crate::provider::ec2::network;
use crate::provider::ec2::sweep::{self, Stray, Which};

/// Has every region but those that must be asked for.
const ANY_REGION: &str = "us-east-1";

/// End what brokers left on EC2, from any machine with credentials
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  broker sweep --all-regions --dry-run      What there is, and what would end
  broker sweep                              In the region that every AWS tool would use
  broker sweep --region eu-central-1 --region eu-west-1 --yes
  broker sweep --all-regions --everything   Whatever any broker has, living or not

Needs AWS credentials and nothing else: no broker, no configuration, no state. A broker says every 15 minutes, in the tag
`nix-broker:expires-at`, that it wants an instance for another hour; what it has not renewed is what ends. Without this
program:

  aws ec2 describe-instances --region REGION --filters Name=tag:ManagedBy,Values=nix-broker \\
      Name=instance-state-name,Values=pending,running,stopping,stopped \\
      --query 'Reservations[].Instances[].InstanceId' --output text |
    xargs -r aws ec2 terminate-instances --region REGION --instance-ids

Exit status: 0 when EC2 shows that all of it ends, or with `--dry-run`; 1 when something is left, or a region could not be
looked at.")]
pub(super) struct Args {
    /// The profile of ~/.aws/config
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// A region to look at, more than once for several [default: the one that every AWS tool would use]
    #[arg(long, value_name = "NAME", conflicts_with = "all_regions")]
    region: Vec<String>,
    /// Look at every region that the account can use
    #[arg(long)]
    all_regions: bool,
    #[command(flatten)]
    which: WhichArgs,
    /// Show what would end, and end nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct WhichArgs {
    /// What no broker has renewed for an hour: the default
    #[arg(long)]
    expired: bool,
    /// What this broker has; the id is in its STATE/ec2/broker-id and in the table below BROKER
    #[arg(long, value_name = "ID", value_parser = parse_broker)]
    broker: Option<String>,
    /// What any broker has, and the security groups of `broker init`
    #[arg(long)]
    everything: bool,
}

impl WhichArgs {
    fn which(&self) -> Which {
        match &self.broker {
            _ if self.everything => Which::Everything,
            Some(broker) => Which::Broker(broker.clone()),
            None => Which::Expired,
        }
    }
}

fn parse_broker(text: &str) -> Result<String, String> {
    let problem = "a broker's id is 32 hexadecimal digits".to_owned();
    network::is_broker_id(text).then(|| text.to_owned()).ok_or(problem)
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Complaint> {
    aws::block_on(go(args))
}

async fn go(args: &Args) -> Result<ExitCode, Complaint> {
    let which = args.which.which();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut found: Vec<(Api, Vec<Stray>)> = Vec::new();
    let mut blind = 0_usize;
    for api in regions(args).await? {
        match sweep::look(&api).await {
            Ok(strays) => found.push((api, strays)),
            Err(error) => {
                blind += 1;
                report::warn(&format!("cannot see what is in {}: {error}", api.region()));
            }
        }
    }
    let mut screen = Screen::stdout();
    let all: Vec<&Stray> = found.iter().flat_map(|(_, strays)| strays).collect();
    let chosen: Vec<&Stray> =
        all.iter().copied().filter(|stray| sweep::is_chosen(stray, &which, now)).collect();
    screen.print(&table(&all, &chosen, &which, now))?;
    let verdict = |left: usize| if blind + left == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if chosen.is_empty() || args.dry_run {
        return Ok(verdict(0));
    }
    if !args.yes && !confirm(&format!("End {} of these for good?", chosen.len()))? {
        return Err(Complaint::new("not confirmed; nothing was ended", None));
    }
    let mut left = 0;
    for (api, strays) in &found {
        let chosen: Vec<Stray> =
            strays.iter().filter(|stray| sweep::is_chosen(stray, &which, now)).cloned().collect();
        let survivors = sweep::end(api, &chosen).await;
        let mut document = Document::default();
        for stray in &chosen {
            match survivors.get(&stray.id) {
                None => document.marked(Mark::Ok, &format!("`{}` in {} ends", stray.id, stray.region), None),
                Some(why) => document.marked(
                    Mark::Fail,
                    &format!("`{}` in {} is left: {why}", stray.id, stray.region),
                    None,
                ),
            };
        }
        left += survivors.len();
        screen.print(&document)?;
    }
    Ok(verdict(left))
}

/// Where to look.
async fn regions(args: &Args) -> Result<Vec<Api>, Complaint> {
    let profile = args.profile.as_deref();
    if !args.all_regions {
        let named = args.region.iter().map(String::as_str).map(Some);
        let regions: Vec<_> = if args.region.is_empty() { vec![None] } else { named.collect() };
        let mut apis = Vec::new();
        for region in regions {
            let api = Api::connect(profile, region).await.map_err(|error| {
                if error.class == ErrorClass::Config {
                    error.with_advice("name one with `--region`, or say `--all-regions`")
                } else {
                    error
                }
            });
            apis.push(api?);
        }
        return Ok(apis);
    }
    // Which region tells the regions does not matter; this one is in every account.
    let api = match Api::connect(profile, None).await {
        Err(error) if error.class == ErrorClass::Config => Api::connect(profile, Some(ANY_REGION)).await?,
        other => other?,
    };
    let mut apis = Vec::new();
    for region in api.regions().await? {
        apis.push(Api::connect(profile, Some(&region)).await?);
    }
    Ok(apis)
}

fn table(all: &[&Stray], chosen: &[&Stray], which: &Which, now: u64) -> Document {
    let mut document = Document::default();
    if all.is_empty() {
        document.line("Nothing there carries a broker's tag.");
        return document;
    }
    let rows = all.iter().map(|stray| {
        let ends = if chosen.contains(stray) { "ends" } else { "-" };
        vec![
            stray.region.clone(),
            stray.id.clone(),
            stray.what.clone(),
            stray.state.to_owned(),
            stray.pool.clone().unwrap_or_else(|| "-".to_owned()),
            stray.broker.clone().unwrap_or_else(|| "-".to_owned()),
            stray.since.map_or_else(|| "-".to_owned(), |since| seconds(now.saturating_sub(since))),
            match stray.expires {
                Some(expires) if expires <= now => format!("{} ago", seconds(now - expires)),
                Some(expires) => format!("in {}", seconds(expires - now)),
                None => "-".to_owned(),
            },
            if stray.is_ending { "is ending".to_owned() } else { ends.to_owned() },
        ]
    });
    let header = ["REGION", "ID", "TYPE", "STATE", "POOL", "BROKER", "AGE", "EXPIRES", "SWEEP"];
    document.table(&header, rows.collect()).blank();
    let what = match which {
        Which::Expired => "has expired",
        Which::Broker(_) => "belongs to this broker",
        Which::Everything => "is there",
    };
    match chosen.len() {
        0 => document.line(format!("Nothing of it {what} and still runs.")),
        n => document.line(format!(
            "{} {what} and {} to end.",
            count(n, "thing"),
            if n == 1 { "is" } else { "are" }
        )),
    };
    document
}

fn seconds(seconds: u64) -> String {
    span(Duration::from_secs(seconds).as_secs_f64())
}
