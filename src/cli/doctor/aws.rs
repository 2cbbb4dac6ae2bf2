//! `broker doctor --aws`: what the pools on EC2 need of AWS, and whether they have it.
//!
//! Asks EC2 and changes nothing. The judgements are made here; what can be known is found out by the provider.

use std::collections::BTreeSet;

use super::finding::Finding;
use crate::catalog::Architecture;
use crate::cli::aws::{self, Site, SitePool};
use crate::cli::report::Complaint;
use crate::cli::text::count;
use crate::config::Config;
use crate::model::ec2::{ImageSpec, Market, Reach};
use crate::provider::ec2::api::{Action, Api, ApiError, ErrorClass, Image};
use crate::provider::ec2::image;
use crate::provider::ec2::network::{self, Cidr, Network};
use crate::provider::ec2::permissions::{self, Launch, Need, Verdict};
use crate::provider::ec2::sweep;

/// Where EC2 is, when it is not where it should be.
const ENDPOINT_VARIABLES: [&str; 2] = ["AWS_ENDPOINT_URL_EC2", "AWS_ENDPOINT_URL"];
/// A subnet this full is soon in the way.
const FEW_ADDRESSES: u32 = 8;
/// What a new account usually may have of standard on-demand instances, in vCPUs.
const USUAL_QUOTA: &str = "a new account often has 5 vCPUs of standard on-demand instances (quota L-1216C47A) and as few of spot \
                           (L-34B43A08), and a builder of the usual size has 8";

/// Every judgement about AWS.
pub(super) async fn findings(config: &Config) -> Result<Vec<Finding>, Complaint> {
    let sites = aws::sites(config);
    if sites.is_empty() {
        return Ok(vec![Finding::note("no pool is on EC2")]);
    }
    let mut findings = Vec::new();
    for name in ENDPOINT_VARIABLES {
        if let Some(url) = std::env::var(name).ok().filter(|url| !url.is_empty()) {
            findings.push(Finding::note(format!("{name} is set: `{url}` is asked instead of AWS")));
            break;
        }
    }
    let is_public = sites.iter().flat_map(|site| &site.pools).any(|pool| pool.ec2.reach == Reach::Public);
    let address = if is_public { own_address(&mut findings).await } else { None };
    for site in &sites {
        of_site(site, address, &mut findings).await;
    }
    Ok(findings)
}

async fn own_address(findings: &mut Vec<Finding>) -> Option<Cidr> {
    match network::public_address().await {
        Ok(address) => Some(Cidr::host(address)),
        Err(error) => {
            let hint =
                "without it the broker cannot let itself in; `broker init --address` lets in what you name";
            findings.push(Finding::fail(sentence(&error), hint));
            None
        }
    }
}

async fn of_site(site: &Site<'_>, address: Option<Cidr>, findings: &mut Vec<Finding>) {
    let profile = match &site.profile {
        Some(profile) => format!("profile `{profile}`"),
        None => "credentials".to_owned(),
    };
    let api = match Api::connect(site.profile.as_deref(), site.region.as_deref()).await {
        Ok(api) => api,
        Err(error) => {
            findings.push(failed(&error));
            return;
        }
    };
    // The first question shows whether EC2 takes the credentials at all.
    let strays = match sweep::look(&api).await {
        Ok(strays) => strays,
        Err(error) if is_denied(&error) => Vec::new(),
        Err(error) => {
            findings.push(failed(&error));
            return;
        }
    };
    findings.push(Finding::ok(format!("EC2 takes the {profile} found here, in {}", api.region())));
    let running =
        strays.iter().filter(|stray| stray.kind == sweep::Kind::Instance && !stray.is_ending).count();
    if running > 0 {
        findings.push(Finding::note(format!(
            "{} of some broker {} in {} now; `broker sweep --dry-run` lists them",
            count(running, "instance"),
            if running == 1 { "is there" } else { "are there" },
            api.region()
        )));
    }
    let mut launches = Vec::new();
    for pool in &site.pools {
        launches.push((pool, of_pool(&api, pool, address, findings).await));
    }
    // Permissions do not depend on the pool; the one that is nearest to a launch can be asked most about.
    if let Some((pool, launch)) = launches.into_iter().max_by_key(|(_, launch)| launch.known()) {
        permissions(&api, pool, launch, findings).await;
    }
    findings.push(Finding::note(format!(
        "quotas cannot be seen through EC2: {USUAL_QUOTA}; see \
         https://{region}.console.aws.amazon.com/servicequotas/home/services/ec2/quotas",
        region = api.region()
    )));
}

/// Judges what a pool needs; gives what a launch would take of it.
async fn of_pool(
    api: &Api,
    pool: &SitePool<'_>,
    address: Option<Cidr>,
    findings: &mut Vec<Finding>,
) -> Launch {
    let name = &pool.spec.name;
    let types = match aws::types(pool) {
        Ok(types) => types,
        Err(complaint) => {
            findings.push(Finding::fail(
                complaint.message(),
                "change the pool's features, `types` or `max-price`",
            ));
            return Launch::default();
        }
    };
    let zones = match aws::zones(api, &types).await {
        Ok(zones) => zones,
        Err(error) => {
            findings.push(failed(&error));
            BTreeSet::new()
        }
    };
    if zones.is_empty() {
        findings.push(Finding::fail(
            format!(
                "pool `{name}`: no zone of {} offers any of its {}",
                api.region(),
                count(types.len(), "type")
            ),
            "take the region from the pool's `regions`, or list other `types`",
        ));
    } else {
        let first = types.first().map_or("", String::as_str);
        findings.push(Finding::ok(format!(
            "pool `{name}`: {} fit, first `{first}`; offered in {}",
            count(types.len(), "type"),
            joined(&zones)
        )));
    }
    findings.extend(expiry(api, pool));
    let image = image_of(api, pool, findings).await;
    let network = network(api, pool, &zones, address, findings).await;
    Launch {
        image: image.map(|image| (image.id, image.root_device)),
        instance_type: types.first().cloned(),
        network,
    }
}

/// What AWS is to end by itself, as far as that can be told without doing it.
fn expiry(api: &Api, pool: &SitePool<'_>) -> Option<Finding> {
    let (name, role) = (&pool.spec.name, pool.ec2.expiry_role.as_ref()?);
    if !role.is_known_in(api.region()) {
        return Some(Finding::fail(
            format!("pool `{name}`: `expiry-role` is a role of another partition than {}", api.region()),
            "name a role of the account that the pool launches in",
        ));
    }
    Some(Finding::note(format!(
        "pool `{name}`: AWS itself ends what is too old, as `{}`. Whether it may cannot be tried; should a launch show that \
         it may not, `broker status` says so, and nix/iam-policy-expiry.json has what is needed",
        role.as_str()
    )))
}

async fn image_of(api: &Api, pool: &SitePool<'_>, findings: &mut Vec<Finding>) -> Option<Image> {
    let name = &pool.spec.name;
    let architecture = pool.spec.offer.systems.iter().find_map(Architecture::of)?;
    let found = match &pool.ec2.image {
        ImageSpec::Id(id) => api.image(id).await.map(Some),
        ImageSpec::Own => {
            let images = api.tagged_images(&image::OURS, architecture.as_str()).await;
            images.map(|images| images.into_iter().max_by(|a, b| a.creation_date.cmp(&b.creation_date)))
        }
        ImageSpec::Newest { owner, name } => {
            let images = api.images(owner, name, architecture.as_str()).await;
            images.map(|images| images.into_iter().max_by(|a, b| a.creation_date.cmp(&b.creation_date)))
        }
    };
    let image = match found {
        Ok(Some(image)) => image,
        Ok(None) => {
            let (what, hint) = match &pool.ec2.image {
                ImageSpec::Own => (
                    "no image that `broker image` has uploaded",
                    "`broker image upload` makes one, `broker image copy` takes one to another region",
                ),
                ImageSpec::Id(_) | ImageSpec::Newest { .. } => (
                    "no image that matches `image-owner` and `image-name`",
                    "look for it with `aws ec2 describe-images --owners OWNER --filters Name=name,Values=NAME`",
                ),
            };
            findings.push(Finding::fail(format!("pool `{name}`: {} has {what}", api.region()), hint));
            return None;
        }
        Err(error) => {
            findings.push(failed(&error));
            return None;
        }
    };
    if image.arch != architecture.as_str() {
        findings.push(Finding::fail(
            format!(
                "pool `{name}`: image `{}` is for {}, its types are {}",
                image.id,
                image.arch,
                architecture.as_str()
            ),
            "name an image of the other architecture, or another `systems`",
        ));
        return None;
    }
    findings.push(Finding::ok(format!("pool `{name}`: boots `{}` ({})", image.id, image.name)));
    Some(image)
}

async fn network(
    api: &Api,
    pool: &SitePool<'_>,
    zones: &BTreeSet<String>,
    address: Option<Cidr>,
    findings: &mut Vec<Finding>,
) -> Option<Network> {
    let name = &pool.spec.name;
    let network = match network::find(api, pool.ec2).await {
        Ok(network) => network,
        Err(error) => {
            let hint = "`broker init --dry-run` shows what it would use and what it would make";
            findings.push(Finding::fail(format!("pool `{name}`: {}", sentence(&error)), hint));
            return None;
        }
    };
    let usable: Vec<_> = network.subnets.iter().filter(|subnet| zones.contains(&subnet.zone)).collect();
    let covered: BTreeSet<String> = usable.iter().map(|subnet| subnet.zone.clone()).collect();
    if covered.is_empty() && !zones.is_empty() {
        findings.push(Finding::fail(
            format!("pool `{name}`: none of its subnets is in a zone that offers its types"),
            "`broker init` makes subnets where there are none, unless the pool names its own",
        ));
    } else {
        let zones = joined(&covered);
        findings.push(Finding::ok(format!("pool `{name}`: `{}` has subnets in {zones}", network.vpc)));
    }
    for subnet in usable.iter().filter(|subnet| subnet.free_addresses < FEW_ADDRESSES) {
        findings.push(Finding::warn(
            format!("subnet `{}` has only {} left", subnet.id, count(subnet.free_addresses, "address")),
            "use a larger one, or one in another zone as well",
        ));
    }
    let groups = network.groups.iter().map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ");
    match network::entry(api, &network, address).await {
        Err(error) => findings.push(failed(&error)),
        Ok(entry) => {
            findings.push(match (entry.address, address) {
                (Some(true), Some(address)) if pool.ec2.reach == Reach::Public => Finding::ok(format!(
                    "pool `{name}`: security group {groups} lets in {address} to port 22"
                )),
                (Some(false), Some(address)) if pool.ec2.reach == Reach::Public => Finding::warn(
                    format!("pool `{name}`: security group {groups} does not let in {address} to port 22"),
                    "a broker lets itself in before it launches when the group is that of `broker init`; into one of \
                     your own, let it in yourself",
                ),
                (_, _) => Finding::ok(format!("pool `{name}`: security group {groups}")),
            });
            if pool.spec.direct && !entry.members {
                findings.push(Finding::warn(
                    format!(
                        "pool `{name}`: security group {groups} does not let its builders in to each other, so what one \
                         has and another needs is sent from here"
                    ),
                    "`broker init`, or the next launch, adds that rule to the group of `broker init`; to one of your own, \
                     add port 22 from the group itself, or set `direct = false` for the pool",
                ));
            }
        }
    }
    if pool.ec2.market == Market::Spot {
        findings.push(Finding::note(format!(
            "pool `{name}`: spot needs a role once per account: `aws iam create-service-linked-role --aws-service-name \
             spot.amazonaws.com` makes it, or says that it is there"
        )));
    }
    Some(network)
}

/// Tries every action without doing it.
async fn permissions(api: &Api, pool: &SitePool<'_>, launch: Launch, findings: &mut Vec<Finding>) {
    let subjects = permissions::subjects(api, pool.ec2, launch).await;
    match permissions::can_be_asked(api, &subjects).await {
        Ok(true) => {}
        Ok(false) => {
            findings.push(Finding::warn(
                "permissions were not tried: the endpoint knows no `DryRun`, and would do what it is asked about",
                "ask AWS itself: unset AWS_ENDPOINT_URL_EC2 and AWS_ENDPOINT_URL",
            ));
            return;
        }
        Err(error) => {
            findings.push(failed(&error));
            return;
        }
    }
    let (mut allowed, mut untried) = (0_usize, BTreeSet::new());
    let mut denied = BTreeSet::new();
    // What only `broker image` does is asked about by itself, before it begins.
    let used = Action::ALL.iter().copied().filter(|action| {
        let need = permissions::need(*action);
        need.by_broker || need.by_init
    });
    for action in used.clone() {
        match permissions::ask(api, action, &subjects).await {
            Ok(Verdict::Allowed) => allowed += 1,
            Ok(Verdict::Untried(subject)) => {
                untried.insert((subject, action));
            }
            Ok(Verdict::Denied { missing, reason }) => {
                if denied.insert(missing.clone()) {
                    findings.push(of_denied(action, &missing, &reason));
                }
            }
            Ok(Verdict::Unclear(reason)) => findings.push(Finding::warn(
                format!("whether `ec2:{action}` is allowed cannot be told: {reason}"),
                "see whether what EC2 complains of would also be in the way of a launch",
            )),
            Err(error) => {
                findings.push(failed(&error));
                return;
            }
        }
    }
    findings.push(Finding::ok(format!(
        "{allowed} of the {} that brokers use are allowed",
        count(used.count(), "action")
    )));
    let subjects: BTreeSet<_> = untried.iter().map(|(subject, _)| *subject).collect();
    for subject in subjects {
        let actions =
            untried.iter().filter(|(on, _)| *on == subject).map(|(_, action)| format!("`{action}`"));
        let actions = actions.collect::<Vec<_>>().join(", ");
        let text = format!("not tried, as there is no {}: {actions}", subject.name());
        findings.push(Finding::note(text));
    }
}

fn of_denied(action: Action, missing: &str, reason: &str) -> Finding {
    let Need { by_broker, purpose, .. } = permissions::need(action);
    let text = format!("`{missing}` is not allowed: {purpose}");
    let hint = |file: &str| format!("allow it as {file} has it; EC2 says: {reason}");
    if by_broker {
        Finding::fail(text, hint("nix/iam-policy.json"))
    } else {
        // The broker runs without it.
        Finding::warn(format!("{text} (for `broker init` only)"), hint("nix/iam-policy-init.json"))
    }
}

fn is_denied(error: &ApiError) -> bool {
    error.code.as_deref() == Some("UnauthorizedOperation")
}

/// A request that failed; what to do about it is a line of its own.
fn failed(error: &ApiError) -> Finding {
    let words = sentence(error);
    match error.advice() {
        Some(advice) => {
            let what = words.strip_suffix(&format!("; {advice}")).unwrap_or(&words).to_owned();
            Finding::fail(what, advice)
        }
        None if error.class == ErrorClass::Transient => {
            Finding::fail(words, "see whether this machine reaches the internet, and try again")
        }
        None => Finding::fail(words, "the words above are EC2's; its request id helps AWS support"),
    }
}

/// An error with what it comes from, in one line.
fn sentence(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |error| error.source());
    std::iter::once(error.to_string()).chain(sources.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
}

fn joined(words: &BTreeSet<String>) -> String {
    words.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}
