//! `broker init`: a configuration where there is none (`first`, `propose`), and what the pools on EC2 need of a network,
//! found or made, and undone again.

mod first;
mod propose;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use self::propose::Wanted;
use crate::cli::aws::{self, Site};
use crate::cli::confirm::confirm;
use crate::cli::output::{Document, Mark, Screen};
use crate::cli::report::Complaint;
use crate::cli::text::count;
use crate::cli::trial;
use crate::config::{self, Config, Defaults, LoadError};
use crate::model::ec2::Reach;
use crate::provider::ec2::api::Api;
use crate::provider::ec2::network::{self, Cidr, Entrant, Given, Inside, Plan, Wish};

/// Write a first configuration, and find or make the network that pools on EC2 need
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  broker init --dry-run     What is there, and what would be made
  broker init               The same, then asks, then makes it
  broker init --address 198.51.100.0/28
  broker init --remove      Deletes what it made, and nothing else
  broker init --yes --pool x86_64-linux:gccarch-znver3 --pool aarch64-linux

Where there is no configuration yet, it looks for Nix, for credentials of AWS and their region, and in a flake's directory
for what the flake's machines are; proposes pools with their prices and caps on the cost; asks, and writes the file. One
that is there is never written over. `--pool` says which pools instead; without credentials there is one on this machine.
At the end it offers a small test build (`broker try`).

For every region of the configuration's `ec2` pools: a VPC (the pool's, else the one of an earlier `broker init`, else the
default one, else a new default one), a subnet in every zone that offers the pool's instance types, and a security group
`nix-broker` that lets in port 22 from this machine's address and from nowhere else. With `reach = \"private\"` or a
`proxy-command` it lets in the VPC instead. What a pool names itself is used and never changed. Everything made is tagged
`ManagedBy=nix-broker`. Done twice, it does nothing the second time.

This machine's address is asked of http://checkip.amazonaws.com/, or of the URL in NIX_BROKER_ADDRESS_URL; a running broker
asks again before it launches, and follows.

Exit status: 1 when something is left that only you can do.")]
pub(super) struct Args {
    /// Show what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// After a first configuration: also run a small test build, as `broker try` does
    #[arg(long = "try", conflicts_with_all = ["remove", "dry_run"])]
    trial: bool,
    /// Delete what `broker init` made
    #[arg(long, conflicts_with = "address")]
    remove: bool,
    /// From where builders are reached [default: this machine's public address]
    #[arg(long, value_name = "CIDR", value_parser = parse_address)]
    address: Option<Cidr>,
    /// For a first configuration: a pool, such as `local`, `aarch64-linux` or `x86_64-linux:gccarch-znver3`
    #[arg(long = "pool", value_name = "POOL", conflicts_with = "remove")]
    pools: Vec<Wanted>,
    /// For a first configuration: whose machines are to be built [default: the flake here, if there is one]
    #[arg(long, value_name = "DIR", conflicts_with = "remove")]
    flake: Option<PathBuf>,
    /// The configuration file
    #[arg(long, value_name = "FILE", env = config::PATH_VARIABLE, hide_env_values = true, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
}

/// What is to be done at one site.
struct Work<'a> {
    site: Site<'a>,
    api: Api,
    /// In this order, each looked at again when the one before it is done. Empty to remove.
    wishes: Vec<Wish>,
    plan: Plan,
}

/// More than this many addresses is no place from which somebody builds.
const WIDEST: u8 = 16;

fn parse_address(text: &str) -> Result<Cidr, String> {
    let cidr: Cidr = text.parse().map_err(|error: network::CidrError| error.to_string())?;
    if cidr.prefix() < WIDEST {
        return Err(format!("a range this wide would let in strangers; /{WIDEST} is the widest"));
    }
    Ok(cidr)
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Complaint> {
    match config::load(&args.config, &Defaults::here()) {
        Ok(_) if !args.pools.is_empty() || args.flake.is_some() => {
            let message = format!("there is a configuration at `{}` already", args.config.display());
            let hint = "`--pool` and `--flake` are for a first one; add a pool to the file yourself, or move it away";
            Err(Complaint::new(message, Some(hint.to_owned())))
        }
        Ok(config) => aws::block_on(go(args, &config)),
        Err(LoadError::Missing(_)) if !args.remove => aws::block_on(begin(args)),
        Err(error) => Err(error.into()),
    }
}

/// A configuration first, then the network of its pools, then a build to see whether they work.
async fn begin(args: &Args) -> Result<ExitCode, Complaint> {
    let wish = first::Wish {
        path: &args.config,
        pools: &args.pools,
        flake: args.flake.as_deref(),
        yes: args.yes,
        dry_run: args.dry_run,
    };
    let Some(config) = first::configure(&wish).await? else { return Ok(ExitCode::SUCCESS) };
    if !aws::sites(&config).is_empty() {
        let made = go(args, &config).await?;
        if made != ExitCode::SUCCESS {
            return Ok(made);
        }
    }
    match trial::first_choice(&config.pools) {
        Some(pool) if args.trial || (!args.yes && confirm(&trial::question(pool)?)?) => {
            trial::perform(&args.config, pool).await
        }
        Some(_) | None => Ok(ExitCode::SUCCESS),
    }
}

async fn go(args: &Args, config: &Config) -> Result<ExitCode, Complaint> {
    let sites = aws::sites(config);
    if sites.is_empty() {
        let message = format!("no pool of `{}` is on EC2", args.config.display());
        let hint = "`broker init` makes the network of pools with an `ec2` section; others need none";
        return Err(Complaint::new(message, Some(hint.to_owned())));
    }
    let mut work = Vec::new();
    let entrant = entrant(args, &sites).await?;
    let broker = network::broker_id(&config.state_dir);
    for site in sites {
        let api = Api::connect(site.profile.as_deref(), site.region.as_deref()).await?;
        let wishes =
            if args.remove { vec![] } else { wishes(&api, &site, entrant, broker.as_deref()).await? };
        let plan = plan(&api, &wishes).await?;
        work.push(Work { site, api, wishes, plan });
    }
    let mut screen = Screen::stdout();
    screen.print(&show(&work))?;
    let n_changes: usize = work.iter().map(|work| work.plan.changes.len()).sum();
    let is_blocked = work.iter().any(|work| !work.plan.obstacles.is_empty());
    let done = if is_blocked { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    let say = |screen: &mut Screen, text: &str| screen.print(Document::default().blank().line(text));
    if n_changes == 0 {
        let text = match (args.remove, is_blocked) {
            (_, true) => "Nothing that could be done now.",
            (true, false) => "Nothing to do: nothing of `broker init` is there.",
            (false, false) => "Nothing to do: the network is there.",
        };
        say(&mut screen, text)?;
        return Ok(done);
    }
    if args.dry_run {
        say(&mut screen, &format!("{} to make; nothing was changed.", count(n_changes, "change")))?;
        return Ok(done);
    }
    if !args.yes && !confirm(&format!("Make {}?", count(n_changes, "change")))? {
        return Err(Complaint::new("not confirmed; nothing was changed", None));
    }
    for work in &work {
        perform(&mut screen, work).await?;
    }
    let next = if args.remove { "" } else { " `broker doctor --aws` checks the rest." };
    say(&mut screen, &format!("Done.{next}"))?;
    Ok(done)
}

/// Who is let in from outside, if a pool wants that.
async fn entrant(args: &Args, sites: &[Site<'_>]) -> Result<Option<Entrant>, Complaint> {
    let is_wanted = sites.iter().flat_map(|site| &site.pools).any(|pool| pool.ec2.reach == Reach::Public);
    Ok(match args.address {
        Some(cidr) => Some(Entrant::Told(cidr)),
        None if args.remove || !is_wanted => None,
        None => Some(Entrant::Seen(Cidr::host(network::public_address().await?))),
    })
}

/// What the pools of a site need: one wish for all that name the same.
async fn wishes(
    api: &Api,
    site: &Site<'_>,
    entrant: Option<Entrant>,
    broker: Option<&str>,
) -> Result<Vec<Wish>, Complaint> {
    let mut wishes: BTreeMap<Given, Wish> = BTreeMap::new();
    for pool in &site.pools {
        let zones = aws::zones(api, &aws::types(pool)?).await?;
        if zones.is_empty() {
            let message =
                format!("no zone of {} offers what pool `{}` may launch", api.region(), pool.spec.name);
            let hint = "take the region from the pool's `regions`, or list other `types`";
            return Err(Complaint::new(message, Some(hint.to_owned())));
        }
        let given = Given::of(pool.ec2);
        let wish = wishes.entry(given.clone()).or_insert_with(|| Wish {
            given,
            zones: zones.clone(),
            admit: None,
            inside: Inside::Nobody,
            broker: broker.map(str::to_owned),
        });
        wish.zones.extend(zones);
        match pool.ec2.reach {
            Reach::Public => {
                wish.admit = entrant;
                if pool.spec.direct {
                    wish.inside = wish.inside.max(Inside::Members);
                }
            }
            Reach::Private | Reach::Proxy(_) => {
                wish.inside = Inside::Vpc;
                // A network that is routed to the VPC, say.
                if matches!(entrant, Some(Entrant::Told(_))) {
                    wish.admit = entrant;
                }
            }
        }
    }
    Ok(wishes.into_values().collect())
}

/// What all wishes together come to, or what removal does.
async fn plan(api: &Api, wishes: &[Wish]) -> Result<Plan, Complaint> {
    if wishes.is_empty() {
        return Ok(network::removal(&network::look_to_remove(api).await?));
    }
    let mut plan = Plan::default();
    for wish in wishes {
        let found = network::look(api, &wish.given).await?;
        plan.merge(network::plan(&found, wish)?);
    }
    Ok(plan)
}

fn show(work: &[Work<'_>]) -> Document {
    let mut rows = Vec::new();
    for work in work {
        let region = work.api.region();
        let row = |verb: &str, what: &str| vec![region.to_owned(), verb.to_owned(), what.to_owned()];
        rows.extend(work.plan.uses.iter().map(|what| row("use", what)));
        rows.extend(work.plan.changes.iter().map(|change| row(change.verb(), &change.object())));
    }
    let mut document = Document::default();
    if !rows.is_empty() {
        document.table(&["REGION", "DO", "WHAT"], rows);
    }
    for work in work {
        for obstacle in &work.plan.obstacles {
            document.marked(Mark::Fail, &format!("{}: {obstacle}", work.site.title(work.api.region())), None);
        }
        for warning in &work.plan.warnings {
            document.marked(Mark::Warn, &format!("{}: {warning}", work.site.title(work.api.region())), None);
        }
    }
    document
}

/// Makes the changes, one after the other, and says each when it is made.
async fn perform(screen: &mut Screen, work: &Work<'_>) -> Result<(), Complaint> {
    let mut report = |change: &network::Change| {
        let mut line = Document::default();
        line.marked(Mark::Ok, &format!("{change}"), None);
        screen.print(&line)
    };
    if work.wishes.is_empty() {
        return Ok(network::perform(&work.api, &work.plan.changes, &mut report).await?);
    }
    for wish in &work.wishes {
        // Looked at again: an earlier wish may have made what this one needs too.
        let found = network::look(&work.api, &wish.given).await?;
        let plan = network::plan(&found, wish)?;
        network::perform(&work.api, &plan.changes, &mut report).await?;
    }
    Ok(())
}
