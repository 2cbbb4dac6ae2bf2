//! What exists in the account, region by region, and how time changes it.
//!
//! Owns the resources themselves and what a new account has. Actions on them are in the modules beside this one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use super::Notice;
use super::form::Form;
use super::images::{Image, Snapshot};
use super::instance::{FakeInstance, State};
use super::schedules::{Fired, Schedule};

/// How the account behaves.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// From the launch to running.
    pub(crate) pending: Duration,
    /// From the request to terminated.
    pub(crate) shutting_down: Duration,
    /// From the request to stopped.
    pub(crate) stopping: Duration,
    /// How long a new instance is not known to anything but its own launch.
    pub(crate) hidden: Duration,
    /// How long the tags of a new instance are not known to filters.
    pub(crate) tags_hidden: Duration,
    /// How long a terminated instance is still described.
    pub(crate) remembered: Duration,
    /// Before each answer.
    pub(crate) latency: Duration,
    /// No page is longer.
    pub(crate) page: usize,
    /// The public address of an instance is its private one: there is but one machine.
    pub(crate) public_is_private: bool,
    /// What spot costs, in percent of on-demand.
    pub(crate) spot_percent: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pending: Duration::from_secs(10),
            shutting_down: Duration::from_secs(30),
            stopping: Duration::from_secs(20),
            hidden: Duration::ZERO,
            tags_hidden: Duration::ZERO,
            remembered: Duration::from_secs(3600),
            latency: Duration::ZERO,
            page: 1000,
            public_is_private: false,
            spot_percent: 35,
        }
    }
}

/// What a region has.
#[derive(Debug, Default)]
pub(super) struct Region {
    pub(super) vpcs: BTreeMap<String, Vpc>,
    pub(super) subnets: BTreeMap<String, Subnet>,
    pub(super) groups: BTreeMap<String, Group>,
    pub(super) gateways: BTreeMap<String, Gateway>,
    /// Token, what was asked for with it, what came of it.
    pub(super) tokens: BTreeMap<String, (Form, String)>,
}

/// An internet gateway.
#[derive(Clone, Debug)]
pub(super) struct Gateway {
    pub(super) vpc: Option<String>,
    pub(super) tags: BTreeMap<String, String>,
}

#[derive(Clone, Debug)]
pub(super) struct Vpc {
    pub(super) id: String,
    pub(super) cidr: Cidr,
    pub(super) is_default: bool,
    pub(super) tags: BTreeMap<String, String>,
}

#[derive(Clone, Debug)]
pub(super) struct Subnet {
    pub(super) id: String,
    pub(super) vpc: String,
    pub(super) zone: String,
    pub(super) cidr: Cidr,
    pub(super) is_default: bool,
    pub(super) tags: BTreeMap<String, String>,
}

#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) id: String,
    pub(super) vpc: String,
    pub(super) name: String,
    pub(super) description: String,
    pub(super) ingress: Vec<Rule>,
    pub(super) tags: BTreeMap<String, String>,
}

/// What a group lets in: protocol, first port, last port, range, note.
pub(super) type Rule = (String, String, String, String, String);

#[derive(Clone, Debug)]
pub(super) struct Volume {
    pub(super) id: String,
    pub(super) region: String,
    pub(super) zone: String,
    pub(super) size: u32,
    pub(super) tags: BTreeMap<String, String>,
    /// What it is attached to.
    pub(super) instance: Option<String>,
    pub(super) with_instance: bool,
    pub(super) created: Duration,
    pub(super) deleted: Option<Duration>,
}

/// A line of the table of types.
#[derive(Clone, Debug)]
pub(super) struct Type {
    pub(super) name: String,
    pub(super) vcpus: u32,
    pub(super) cores: u32,
    pub(super) memory_mib: u64,
    pub(super) arch: String,
    pub(super) nested_virt: bool,
    pub(super) nvme_gb: u64,
    /// Micro-dollars an hour, on-demand.
    pub(super) price: u64,
}

/// An IPv4 range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cidr {
    base: u32,
    length: u32,
}

impl Cidr {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (base, length) = text.split_once('/')?;
        let (base, length) = (u32::from(base.parse::<Ipv4Addr>().ok()?), length.parse().ok()?);
        (length <= 32).then_some(Self { base, length })
    }

    fn size(self) -> u32 {
        1_u32.checked_shl(32 - self.length).unwrap_or(u32::MAX)
    }

    pub(super) fn contains(self, address: Ipv4Addr) -> bool {
        let address = u32::from(address);
        address >= self.base && address - self.base < self.size()
    }

    pub(super) fn holds(self, other: Self) -> bool {
        other.length >= self.length && self.contains(Ipv4Addr::from(other.base))
    }

    pub(super) fn overlaps(self, other: Self) -> bool {
        self.holds(other) || other.holds(self)
    }

    /// What instances can have: AWS keeps the first four and the last.
    pub(super) fn usable(self) -> impl Iterator<Item = Ipv4Addr> {
        (4..self.size().saturating_sub(1)).map(move |offset| Ipv4Addr::from(self.base + offset))
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.length)
    }
}

/// Everything that exists.
pub(crate) struct Account {
    pub(crate) settings: Settings,
    pub(super) regions: BTreeMap<String, Region>,
    pub(super) images: Vec<Image>,
    pub(super) snapshots: BTreeMap<String, Snapshot>,
    pub(super) types: Vec<Type>,
    pub(super) instances: BTreeMap<String, FakeInstance>,
    pub(super) volumes: BTreeMap<String, Volume>,
    pub(super) notices: Vec<Notice>,
    /// By name.
    pub(super) schedules: BTreeMap<String, Schedule>,
    pub(super) ever_scheduled: BTreeSet<String>,
    pub(super) fired: Vec<Fired>,
    next_id: u64,
}

/// The zones of every region, by their last letter; the last has the fewest types.
pub(super) const ZONES: [&str; 3] = ["a", "b", "c"];

impl Account {
    pub(super) fn new() -> Self {
        let mut account = Self {
            settings: Settings::default(),
            regions: BTreeMap::new(),
            images: Vec::new(),
            snapshots: BTreeMap::new(),
            types: types(),
            instances: BTreeMap::new(),
            volumes: BTreeMap::new(),
            notices: Vec::new(),
            schedules: BTreeMap::new(),
            ever_scheduled: BTreeSet::new(),
            fired: Vec::new(),
            next_id: 1,
        };
        for region in ["eu-central-1", "eu-west-1", "us-east-1"] {
            account.add_region(region);
        }
        for (arch, system) in [("x86_64", "x86_64-linux"), ("arm64", "aarch64-linux")] {
            for (label, created) in [
                ("25.11.4321.aaaaaaaaaaaa", "2026-09-06T02:10:11.000Z"),
                ("26.05.1234.bbbbbbbbbbbb", "2026-11-08T02:10:11.000Z"),
                ("26.05.1301.cccccccccccc", "2026-11-15T02:10:11.000Z"),
            ] {
                account.add_image("427812963091", &format!("nixos/{label}-{system}"), arch, created);
            }
        }
        account
    }

    /// A new id of this kind: later ones sort after earlier ones.
    pub(super) fn new_id(&mut self, kind: &str) -> String {
        let id = self.next_id;
        self.next_id += 1;
        format!("{kind}-{id:017x}")
    }

    fn add_region(&mut self, name: &str) {
        self.regions.insert(name.to_owned(), Region::default());
        let vpc = self.new_id("vpc");
        let cidr = Cidr::parse("172.31.0.0/16").unwrap();
        let made = Vpc { id: vpc.clone(), cidr, is_default: true, tags: BTreeMap::new() };
        self.regions.get_mut(name).unwrap().vpcs.insert(vpc.clone(), made);
        self.add_group(name, &vpc, "default", "default VPC security group", BTreeMap::new());
        for (index, letter) in ZONES.iter().enumerate() {
            let cidr = Cidr::parse(&format!("172.31.{}.0/20", index * 16)).unwrap();
            self.add_subnet(name, &vpc, &format!("{name}{letter}"), cidr, true, BTreeMap::new());
        }
    }

    pub(super) fn add_subnet(
        &mut self,
        region: &str,
        vpc: &str,
        zone: &str,
        cidr: Cidr,
        is_default: bool,
        tags: BTreeMap<String, String>,
    ) -> String {
        let id = self.new_id("subnet");
        let subnet =
            Subnet { id: id.clone(), vpc: vpc.to_owned(), zone: zone.to_owned(), cidr, is_default, tags };
        self.regions.get_mut(region).unwrap().subnets.insert(id.clone(), subnet);
        id
    }

    pub(super) fn add_group(
        &mut self,
        region: &str,
        vpc: &str,
        name: &str,
        description: &str,
        tags: BTreeMap<String, String>,
    ) -> String {
        let id = self.new_id("sg");
        let (vpc, name, description) = (vpc.to_owned(), name.to_owned(), description.to_owned());
        let group = Group { id: id.clone(), vpc, name, description, ingress: Vec::new(), tags };
        self.regions.get_mut(region).unwrap().groups.insert(id.clone(), group);
        id
    }

    pub(super) fn add_image(&mut self, owner: &str, name: &str, arch: &str, created: &str) -> String {
        let id = self.new_id("ami");
        let (owner, name) = (owner.to_owned(), name.to_owned());
        self.images.push(Image {
            id: id.clone(),
            owner,
            name,
            arch: arch.to_owned(),
            created: created.to_owned(),
            snapshot: "snap-1".to_owned(),
            size: 3,
            ..Image::default()
        });
        id
    }

    pub(super) fn add_volume(
        &mut self,
        region: &str,
        zone: &str,
        tags: &[(&str, &str)],
        now: Duration,
    ) -> String {
        let id = self.new_id("vol");
        let volume = Volume {
            id: id.clone(),
            region: region.to_owned(),
            zone: zone.to_owned(),
            size: 8,
            tags: tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            instance: None,
            with_instance: false,
            created: now,
            deleted: None,
        };
        self.volumes.insert(id.clone(), volume);
        id
    }

    pub(super) fn default_network(&self, region: &str) -> (String, Vec<(String, String)>) {
        let found = &self.regions[region];
        let vpc = found.vpcs.values().find(|vpc| vpc.is_default).unwrap();
        let subnets = found.subnets.values().filter(|subnet| subnet.is_default);
        (vpc.id.clone(), subnets.map(|subnet| (subnet.zone.clone(), subnet.id.clone())).collect())
    }

    pub(super) fn default_group(&self, region: &str) -> String {
        let (vpc, _) = self.default_network(region);
        let groups = &self.regions[region].groups;
        groups.values().find(|group| group.vpc == vpc && group.name == "default").unwrap().id.clone()
    }

    pub(super) fn loopback_subnet(&mut self, region: &str) -> String {
        let vpc = self.new_id("vpc");
        let cidr = Cidr::parse("127.0.0.0/16").unwrap();
        let made = Vpc { id: vpc.clone(), cidr, is_default: false, tags: BTreeMap::new() };
        self.regions.get_mut(region).unwrap().vpcs.insert(vpc.clone(), made);
        let cidr = Cidr::parse("127.0.0.0/24").unwrap();
        self.add_subnet(region, &vpc, &format!("{region}a"), cidr, false, BTreeMap::new())
    }

    /// Lets time do its work.
    pub(super) fn advance(&mut self, now: Duration) {
        self.fire(now);
        let shutting_down = self.settings.shutting_down;
        for instance in self.instances.values_mut() {
            if instance.advance(now, shutting_down) {
                self.notices.push(Notice::Ended(instance.clone()));
            }
            let Some(at) = instance.terminated_at else { continue };
            for volume in self.volumes.values_mut() {
                if volume.instance.as_deref() == Some(&instance.id) {
                    volume.instance = None;
                    if volume.with_instance {
                        volume.deleted = Some(at);
                    }
                }
            }
        }
    }

    /// Goes down for good, unless it has.
    pub(super) fn end(&mut self, id: &str, now: Duration, reason: &str) {
        let shutting_down = self.settings.shutting_down;
        let Some(instance) = self.instances.get_mut(id) else { return };
        match instance.state {
            State::ShuttingDown | State::Terminated => {}
            State::Pending | State::Running => {
                instance.end(now, shutting_down, reason);
                self.notices.push(Notice::Ended(instance.clone()));
            }
            State::Stopping | State::Stopped => instance.end(now, shutting_down, reason),
        }
    }

    /// Its machine turns itself off: what then is what the launch said.
    pub(super) fn power_off(&mut self, id: &str, now: Duration) {
        let Some(instance) = self.instances.get(id) else { return };
        if !matches!(instance.state, State::Pending | State::Running) {
            return;
        }
        if instance.request.get("InstanceInitiatedShutdownBehavior") == Some("terminate") {
            self.end(id, now, "Client.InstanceInitiatedShutdown");
        } else {
            self.halt(id, now, "Client.InstanceInitiatedShutdown");
        }
    }

    /// Goes down until it is started.
    pub(super) fn halt(&mut self, id: &str, now: Duration, reason: &str) {
        let stopping = self.settings.stopping;
        let Some(instance) = self.instances.get_mut(id) else { return };
        instance.reason = Some(reason.to_owned());
        instance.enter(State::Stopping, now);
        instance.planned = Some((now + stopping, State::Stopped));
        self.notices.push(Notice::Ended(instance.clone()));
    }

    pub(super) fn interrupt(&mut self, id: &str, at: Duration) {
        if let Some(instance) = self.instances.get_mut(id) {
            instance.interrupted_at = Some(at);
        }
    }

    /// Whether the zone has the type: the last one lacks the newest.
    pub(super) fn is_offered(kind: &str, zone: &str) -> bool {
        !(zone.ends_with('c') && (kind.starts_with("c8") || kind.starts_with("m8") || kind.starts_with("c9")))
    }

    pub(super) fn kind(&self, name: &str) -> Option<&Type> {
        self.types.iter().find(|kind| kind.name == name)
    }

    /// Micro-dollars an hour. Each zone has its own price of spot.
    pub(super) fn spot_price(&self, kind: &Type, zone: &str) -> u64 {
        let index = ZONES.iter().position(|letter| zone.ends_with(letter)).unwrap_or(0);
        kind.price * (self.settings.spot_percent + 2 * u64::try_from(index).unwrap()) / 100
    }
}

/// The types of the product's own table: the fake offers those.
fn types() -> Vec<Type> {
    let table = include_str!("../../../src/catalog/ec2-types.csv");
    let line = |line: &str| {
        let field: Vec<&str> = line.split(',').collect();
        let number = |index: usize| field[index].parse::<u64>().unwrap_or(0);
        let price: f64 = field[10].parse().unwrap_or(1.0);
        Type {
            name: field[0].to_owned(),
            vcpus: u32::try_from(number(1)).unwrap(),
            cores: u32::try_from(number(2)).unwrap(),
            memory_mib: number(3),
            arch: field[4].to_owned(),
            nested_virt: field[7] == "1",
            nvme_gb: number(8),
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a price of the table"
            )]
            price: (price * 1e6).round() as u64,
        }
    };
    table.lines().filter(|line| !line.starts_with('#')).skip(1).map(line).collect()
}
