//! The `[pool.ec2]` table: instances that are launched when they are needed.
//!
//! Reads its keys one by one; what they mean for what the pool offers is in [`offer`], a cache of builders in `cache`,
//! the role for AWS's own expiry in `expiry`. Nothing here asks AWS: a region, a subnet or an image that does not exist is
//! found out by `broker doctor --aws`.

mod cache;
mod expiry;
pub(super) mod offer;
#[cfg(test)]
mod tests;

use std::time::Duration;

use super::pool::Times;
use super::problem::{Problems, did_you_mean, quote};
use super::section::{Section, Text};
use crate::catalog::{Catalog, microarch};
use crate::model::ec2::{DiskSpec, IdleAction, ImageSpec, Market, Reach};
use crate::model::{Ec2Spec, HourlyRate};

pub(super) const TIMES: Times = Times {
    idle: Duration::from_secs(20 * 60),
    surplus_idle: Duration::from_secs(60),
    lifetime: Duration::from_secs(8 * 60 * 60),
    // Boot and preparation take about a minute; after this long something is wrong.
    launch: Duration::from_secs(5 * 60),
};

/// The account that publishes the NixOS images.
const NIXOS_OWNER: &str = "427812963091";
const NIXOS_IMAGES: &str = "nixos/26.05*";
/// The newest image of `broker image upload`.
const OWN_IMAGE: &str = "own";
const DISK: DiskSpec = DiskSpec { size: 100, throughput: 500, iops: 3_000 };
const LEASE: Duration = Duration::from_secs(15 * 60);
const MAX_STOPPED: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const ONE_MINUTE: Duration = Duration::from_secs(60);
/// EC2 keeps nothing hibernated for longer.
const MAX_HIBERNATED: Duration = Duration::from_secs(60 * 24 * 60 * 60);

/// The limits of a gp3 volume (EBS User Guide, "General Purpose SSD volumes").
const MAX_DISK_SIZE: u32 = 65_536;
const MAX_THROUGHPUT: u32 = 2_000;
const MAX_IOPS: u32 = 80_000;
const IOPS_PER_THROUGHPUT: u32 = 4;
const IOPS_PER_GIB: u32 = 500;
/// The image alone takes some; a store of any use the rest.
const MIN_DISK_SIZE: u32 = 20;

/// Reads the table; what is wrong is in `problems`.
pub(super) fn read(mut section: Section<'_>, problems: &mut Problems) -> Ec2Read {
    let profile = read_word(&mut section, "profile", "a profile of `~/.aws/config`", problems);
    let regions = read_regions(&mut section, problems);
    let market = read_market(&mut section, problems);
    let types_line = section.line("types", problems);
    let types = read_types(&mut section, problems);
    let exact_line = section.line("exact", problems);
    let exact = section.truth("exact", problems).unwrap_or(false);
    let max_price_line = section.line("max-price", problems);
    let max_price = section.money("max-price", problems).map(HourlyRate);
    let image = read_image(&mut section, problems);
    let subnets = read_ids(&mut section, "subnets", "subnet-", problems);
    let security_groups = read_ids(&mut section, "security-groups", "sg-", problems);
    let reach = read_reach(&mut section, problems);
    let disk = read_disk(&mut section, problems);
    let idle_action = read_idle_action(&mut section, market, problems);
    let lease = section.duration("lease", ONE_MINUTE, problems).unwrap_or(LEASE);
    let cache = cache::read(&mut section, problems).map(Box::new);
    let expiry_role = expiry::read(&mut section, &regions, problems);
    let path = section.path().to_owned();
    section.finish(problems);
    let spec = Ec2Spec {
        profile,
        regions,
        market,
        types,
        exact,
        max_price,
        image,
        subnets,
        security_groups,
        reach,
        disk,
        idle_action,
        lease,
        cache,
        expiry_role,
    };
    Ec2Read { spec, path, types_line, exact_line, max_price_line }
}

/// The table with the places of what may turn out not to fit the rest of the pool.
pub(super) struct Ec2Read {
    pub(super) spec: Ec2Spec,
    path: String,
    types_line: usize,
    exact_line: usize,
    max_price_line: usize,
}

fn read_word(
    section: &mut Section<'_>,
    key: &'static str,
    what: &str,
    problems: &mut Problems,
) -> Option<String> {
    let text = section.text(key, problems)?;
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        section.error(key, format!("{} is not {what}", quote(text)), problems);
        return None;
    }
    Some(text.to_owned())
}

fn read_regions(section: &mut Section<'_>, problems: &mut Problems) -> Vec<String> {
    let one_line = section.line("region", problems);
    let one = section.text("region", problems).map(|text| Text { text, line: one_line });
    let several = section.texts("regions", problems);
    if section.has("region") && section.has("regions") {
        section.error("region", "given together with `regions`; one of them is enough", problems);
    }
    let key = if one.is_some() { "region" } else { "regions" };
    let mut regions = Vec::new();
    for Text { text, line } in one.into_iter().chain(several.unwrap_or_default()) {
        let complaint = if regions.iter().any(|listed| listed == text) {
            format!("{} is listed twice", quote(text))
        } else if is_region(text) {
            regions.push(text.to_owned());
            continue;
        } else {
            match text.strip_suffix(|zone: char| zone.is_ascii_lowercase()).filter(|rest| is_region(rest)) {
                Some(region) => format!(
                    "{} is a zone; its region is `{region}`. Zones are chosen by `subnets`",
                    quote(text)
                ),
                None => format!("{} is not a region such as \"eu-central-1\"", quote(text)),
            }
        };
        problems.error(line, section.key(key), complaint);
    }
    regions
}

fn is_region(text: &str) -> bool {
    let Some((words, number)) = text.rsplit_once('-') else { return false };
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let mut words = words.split('-');
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
    is_number && text.len() <= 32 && words.clone().count() >= 2 && words.all(is_word)
}

fn read_market(section: &mut Section<'_>, problems: &mut Problems) -> Market {
    match section.text("market", problems) {
        Some("spot") => Market::Spot,
        Some("on-demand") | None => Market::OnDemand,
        Some(other) => {
            let message = format!("{} is neither \"on-demand\" nor \"spot\"", quote(other));
            section.error("market", message, problems);
            Market::OnDemand
        }
    }
}

fn read_types(section: &mut Section<'_>, problems: &mut Problems) -> Vec<String> {
    let catalog = Catalog::get();
    let mut types: Vec<String> = Vec::new();
    let listed = section.texts("types", problems);
    if listed.as_ref().is_some_and(Vec::is_empty) {
        let message = "empty: leave it out to have types chosen by what the pool offers";
        section.error("types", message, problems);
    }
    for Text { text, line } in listed.unwrap_or_default() {
        if catalog.find(text).is_none() {
            let message = unknown_type(text, catalog);
            problems.error(line, section.key("types"), message);
        } else if types.iter().any(|known| known == text) {
            problems.error(line, section.key("types"), format!("{} is listed twice", quote(text)));
        } else {
            types.push(text.to_owned());
        }
    }
    types
}

fn unknown_type(text: &str, catalog: &Catalog) -> String {
    let (family, _) = text.split_once('.').unwrap_or((text, ""));
    let sizes: Vec<&str> = catalog
        .types()
        .filter(|known| known.family == family)
        .filter_map(|known| known.name.split_once('.'))
        .map(|(_, size)| size)
        .collect();
    let names: Vec<&str> = catalog.types().map(|known| known.name.as_str()).collect();
    let hint = if let Some(meant) = did_you_mean(text, &names) {
        format!("did you mean `{meant}`?")
    } else if !sizes.is_empty() {
        format!("the sizes of `{family}` are {}", sizes.join(", "))
    } else {
        "types of other families cannot be used: no limit on cost would hold for them".to_owned()
    };
    let known = if sizes.is_empty() && microarch::processor_of(family).is_some() {
        "has no price"
    } else {
        "is no instance type"
    };
    format!("{} {known} in the table of {} ({}); {hint}", quote(text), catalog.date(), catalog.region())
}

fn read_image(section: &mut Section<'_>, problems: &mut Problems) -> ImageSpec {
    let id = section.text("image", problems);
    let owner = section.text("image-owner", problems);
    let name = section.text("image-name", problems);
    if let Some(id) = id {
        let is_own = id == OWN_IMAGE;
        if !is_own && !is_id(id, "ami-") {
            let message = format!(
                "{} is neither \"{OWN_IMAGE}\" nor an AMI such as \"ami-0123456789abcdef0\"",
                quote(id)
            );
            section.error("image", message, problems);
        }
        for key in ["image-owner", "image-name"] {
            if section.has(key) {
                section.error(key, "given together with `image`, which is enough", problems);
            }
        }
        return if is_own { ImageSpec::Own } else { ImageSpec::Id(id.to_owned()) };
    }
    if let Some(owner) = owner {
        let is_account = owner.len() == 12 && owner.bytes().all(|byte| byte.is_ascii_digit());
        if !is_account && !["self", "amazon"].contains(&owner) {
            let message = format!("{} is neither an account of 12 digits nor \"self\"", quote(owner));
            section.error("image-owner", message, problems);
        }
        if owner != NIXOS_OWNER && !section.has("image-name") {
            section.error("image-owner", "without `image-name`: say which of its images", problems);
        }
    }
    if let Some(name) = name
        && (name.is_empty() || name.len() > 128 || name.contains(char::is_control))
    {
        let message = format!("{} is not the name of an image, with `*` for any text", quote(name));
        section.error("image-name", message, problems);
    }
    ImageSpec::Newest {
        owner: owner.unwrap_or(NIXOS_OWNER).to_owned(),
        name: name.unwrap_or(NIXOS_IMAGES).to_owned(),
    }
}

fn read_ids(
    section: &mut Section<'_>,
    key: &'static str,
    prefix: &str,
    problems: &mut Problems,
) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    for Text { text, line } in section.texts(key, problems).unwrap_or_default() {
        if is_id(text, prefix) {
            ids.push(text.to_owned());
        } else {
            let message = format!("{} is not an id such as \"{prefix}0123456789abcdef0\"", quote(text));
            problems.error(line, section.key(key), message);
        }
    }
    ids
}

/// AWS's ids: a prefix and 8 or 17 hexadecimal digits.
fn is_id(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|digits| {
        [8, 17].contains(&digits.len())
            && digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
}

fn read_reach(section: &mut Section<'_>, problems: &mut Problems) -> Reach {
    let reach = section.text("reach", problems);
    if let Some(command) = section.text("proxy-command", problems) {
        if section.has("reach") {
            section.error("reach", "given together with `proxy-command`, which is enough", problems);
        }
        if command.contains(|c: char| c.is_control()) {
            section.error("proxy-command", "a command is one line", problems);
        } else if !command.contains("%h") && !command.contains("%i") {
            let message = "names neither `%h`, the private address, nor `%i`, the instance: \
                           every builder would be reached at one place";
            section.error("proxy-command", message, problems);
        }
        return Reach::Proxy(command.to_owned());
    }
    match reach {
        Some("private") => Reach::Private,
        Some("public") | None => Reach::Public,
        Some(other) => {
            let message = format!("{} is neither \"public\" nor \"private\"", quote(other));
            section.error("reach", message, problems);
            Reach::Public
        }
    }
}

fn read_disk(section: &mut Section<'_>, problems: &mut Problems) -> DiskSpec {
    let size = section.number("disk-size", MIN_DISK_SIZE..=MAX_DISK_SIZE, problems);
    let throughput = section.number("disk-throughput", 125..=MAX_THROUGHPUT, problems);
    let iops = section.number("disk-iops", DISK.iops..=MAX_IOPS, problems);
    let disk = DiskSpec {
        size: size.unwrap_or(DISK.size),
        throughput: throughput.unwrap_or(DISK.throughput),
        iops: iops.unwrap_or(DISK.iops),
    };
    let least = disk.throughput * IOPS_PER_THROUGHPUT;
    if disk.iops < least {
        let message = format!(
            "a gp3 volume needs {IOPS_PER_THROUGHPUT} operations a second for each MiB/s: {} MiB/s take \
             `disk-iops = {least}`",
            disk.throughput
        );
        section.error("disk-throughput", message, problems);
    }
    let most = disk.size * IOPS_PER_GIB;
    if disk.iops > most {
        let message = format!("a gp3 volume of {} GiB has at most {most}", disk.size);
        section.error("disk-iops", message, problems);
    }
    disk
}

fn read_idle_action(section: &mut Section<'_>, market: Market, problems: &mut Problems) -> IdleAction {
    let max_stopped = section.duration("max-stopped", ONE_MINUTE, problems);
    let length = max_stopped.unwrap_or(MAX_STOPPED);
    let action = match section.text("idle-action", problems) {
        Some("stop") => IdleAction::Stop { max_stopped: length },
        Some("hibernate") => IdleAction::Hibernate { max_stopped: length },
        Some("terminate") | None => IdleAction::Terminate,
        Some(other) => {
            let message = format!("{} is none of \"terminate\", \"stop\" and \"hibernate\"", quote(other));
            section.error("idle-action", message, problems);
            return IdleAction::Terminate;
        }
    };
    match action {
        IdleAction::Terminate if section.has("max-stopped") => {
            let message = "nothing is stopped; it goes with `idle-action = \"stop\"` or \"hibernate\"";
            section.error("max-stopped", message, problems);
        }
        IdleAction::Hibernate { max_stopped } if max_stopped > MAX_HIBERNATED => {
            section.error("max-stopped", "EC2 keeps an instance hibernated for 60 days at most", problems);
        }
        IdleAction::Terminate => {}
        IdleAction::Stop { .. } | IdleAction::Hibernate { .. } => {
            if market == Market::Spot {
                let message =
                    "spot instances cannot be stopped, only terminated; use `market = \"on-demand\"`";
                section.error("idle-action", message, problems);
            }
        }
    }
    action
}
