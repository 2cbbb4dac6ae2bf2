//! The instance types and their prices, from the table beside this file.
//!
//! The table is of one region and one day; elsewhere and later its prices are estimates, and are called that wherever
//! they are shown. There is no honest factor per region: it differs from family to family.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::microarch::{self, Processor};
use crate::model::{HourlyRate, System, Usd};

const TABLE: &str = include_str!("ec2-types.csv");

/// What AWS adds per processor and hour to a burstable type that is busy all the time, in micro-dollars: 0.05 USD for
/// x86 and 0.04 for Graviton (EC2 on-demand price list, "unlimited mode", the default of these families). Building is
/// being busy all the time.
const SURPLUS_CREDITS: [(Architecture, u64); 2] =
    [(Architecture::X86_64, 50_000), (Architecture::Arm64, 40_000)];

/// What the second hyperthread of a core adds to the first, in percent of it.
pub const SIBLING: u64 = 25;

/// Of a builder that nobody asked for by name.
const LEAST_MEMORY_MIB: u32 = 4 * 1024;
const LEAST_VCPUS: u32 = 2;

/// What EC2 calls the architecture of an instance type and of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Architecture {
    /// Intel and AMD.
    X86_64,
    /// Graviton.
    Arm64,
}

impl Architecture {
    /// The one whose instances build for this system without emulation.
    pub fn of(system: &System) -> Option<Self> {
        match system.as_str() {
            "x86_64-linux" | "i686-linux" => Some(Self::X86_64),
            "aarch64-linux" => Some(Self::Arm64),
            _ => None,
        }
    }

    /// As the API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Arm64 => "arm64",
        }
    }

    /// The system that its instances are.
    pub const fn system(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-linux",
            Self::Arm64 => "aarch64-linux",
        }
    }
}

/// One instance type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceType {
    /// `c6a.4xlarge`.
    pub name: String,
    /// `c6a`.
    pub family: String,
    /// What `nproc` says on it.
    pub vcpus: u32,
    /// Physical ones; half the vCPUs where a vCPU is a hyperthread.
    pub cores: u32,
    /// MiB of memory.
    pub memory_mib: u32,
    /// Of its processor.
    pub architecture: Architecture,
    /// Whether a virtual one of it can run virtual machines, on the day of the table; EC2 itself knows better.
    pub nested_virtualization: bool,
    /// GB of instance store, 0 for none.
    pub nvme_gb: u32,
    /// Mbit/s to its volumes that it always has.
    pub ebs_mbps: u32,
    /// On demand, by the table; with the surplus credits of a burstable one that is busy all the time.
    pub price: HourlyRate,
    /// Of its family.
    pub processor: &'static Processor,
}

impl InstanceType {
    /// A whole machine without a hypervisor: has `/dev/kvm` of its own.
    pub fn is_metal(&self) -> bool {
        self.name.split_once('.').is_some_and(|(_, size)| size.starts_with("metal"))
    }

    /// Fast only for as long as it has credits (`t3`): no builder, unless somebody insists.
    pub fn is_burstable(&self) -> bool {
        is_burstable(&self.family)
    }

    /// Whether it is taken when no pool lists it. Metal is several dollars an hour whatever waits; burstable types are
    /// slow once they have built for a while, or cost more than others; small ones swap, or build one thing at a time.
    pub fn is_chosen_unasked(&self) -> bool {
        !self.is_metal()
            && !self.is_burstable()
            && self.memory_mib >= LEAST_MEMORY_MIB
            && self.vcpus >= LEAST_VCPUS
    }

    /// What it gets done in an hour with all processors busy, in percent of a core of Zen 3: the second hyperthread of a core
    /// adds [`SIBLING`].
    pub fn output(&self) -> u64 {
        let (cores, vcpus) = (u64::from(self.cores), u64::from(self.vcpus));
        let threads = cores * 100 + vcpus.saturating_sub(cores) * SIBLING;
        (threads * u64::from(self.processor.speed) / 100).max(1)
    }

    /// What at this price an hour of work of one core of Zen 3 costs, in micro-dollars.
    pub fn price_per_work(&self, rate: HourlyRate) -> u64 {
        rate.0.micros().saturating_mul(100) / self.output()
    }
}

fn is_burstable(family: &str) -> bool {
    family.strip_prefix('t').is_some_and(|rest| rest.starts_with(|digit: char| digit.is_ascii_digit()))
}

/// All types of the table.
#[derive(Debug)]
pub struct Catalog {
    region: &'static str,
    date: &'static str,
    types: BTreeMap<String, InstanceType>,
}

impl Catalog {
    /// The table that this program was built with, read once.
    pub fn get() -> &'static Self {
        static CATALOG: LazyLock<Catalog> = LazyLock::new(|| Catalog::parse(TABLE));
        &CATALOG
    }

    fn parse(table: &'static str) -> Self {
        let mut lines = table.lines();
        let facts = lines.next().unwrap_or_default();
        let fact = |key: &str| {
            facts.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default()
        };
        let types = lines.skip(1).filter_map(parse_row).map(|row| (row.name.clone(), row)).collect();
        Self { region: fact("region"), date: fact("date"), types }
    }

    /// The region whose prices these are.
    pub fn region(&self) -> &'static str {
        self.region
    }

    /// The day of which these prices are (`2026-07-20`).
    pub fn date(&self) -> &'static str {
        self.date
    }

    /// The type of this name.
    pub fn find(&self, name: &str) -> Option<&InstanceType> {
        self.types.get(name)
    }

    /// What there is to choose from: these, in this order, or when there are none, all that builders may be.
    pub fn choice(&self, listed: &[String]) -> Vec<&InstanceType> {
        if listed.is_empty() {
            self.types().filter(|known| known.is_chosen_unasked()).collect()
        } else {
            listed.iter().filter_map(|name| self.find(name)).collect()
        }
    }

    /// All of them, by name.
    pub fn types(&self) -> impl Iterator<Item = &InstanceType> {
        self.types.values()
    }
}

fn parse_row(row: &str) -> Option<InstanceType> {
    let fields: Vec<&str> = row.split(',').collect();
    let [name, vcpus, cores, memory, architecture, _, _, nested, nvme, ebs, price] = fields[..] else {
        return None;
    };
    let family = name.split_once('.')?.0;
    let architecture = [Architecture::X86_64, Architecture::Arm64]
        .into_iter()
        .find(|known| known.as_str() == architecture)?;
    let vcpus: u32 = vcpus.parse().ok()?;
    let surplus = SURPLUS_CREDITS.iter().find(|(of, _)| *of == architecture && is_burstable(family));
    let surplus = surplus.map_or(0, |(_, micros)| micros.saturating_mul(u64::from(vcpus)));
    Some(InstanceType {
        name: name.to_owned(),
        family: family.to_owned(),
        vcpus,
        cores: cores.parse().ok()?,
        memory_mib: memory.parse().ok()?,
        architecture,
        nested_virtualization: nested == "1",
        nvme_gb: nvme.parse().ok()?,
        ebs_mbps: ebs.parse().ok()?,
        price: HourlyRate(Usd::parse(price)? + Usd::from_micros(surplus)),
        processor: microarch::processor_of(family).filter(|known| known.architecture == architecture)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table_is_a_type_of_a_known_processor() {
        let catalog = Catalog::get();
        assert_eq!(catalog.types().count(), TABLE.lines().count() - 2);
        assert_eq!((catalog.region(), catalog.date()), ("us-east-1", "2026-07-20"));
        for known in catalog.types() {
            assert!(known.cores >= 1 && known.vcpus >= known.cores, "{known:?}");
            assert!(known.price > HourlyRate::default() && known.memory_mib >= 1024, "{known:?}");
        }
    }

    #[test]
    fn a_row_is_read_as_it_stands() {
        let c6a = Catalog::get().find("c6a.4xlarge").unwrap();
        assert_eq!((c6a.family.as_str(), c6a.vcpus, c6a.cores, c6a.memory_mib), ("c6a", 16, 8, 32_768));
        assert_eq!((c6a.architecture, c6a.nested_virtualization), (Architecture::X86_64, false));
        assert_eq!((c6a.nvme_gb, c6a.ebs_mbps), (0, 5_000));
        assert_eq!(c6a.price, HourlyRate(Usd::from_micros(612_000)));
        // Eight cores, of which each does a quarter more with its sibling.
        assert_eq!((c6a.output(), c6a.price_per_work(c6a.price)), (1_000, 61_200));
        let c8a = Catalog::get().find("c8a.4xlarge").unwrap();
        assert_eq!((c8a.output(), c8a.price_per_work(c8a.price)), (2_240, 38_489));
        assert!(Catalog::get().find("c7i.large").unwrap().nested_virtualization);
        assert_eq!(Catalog::get().find("c6id.large").unwrap().nvme_gb, 118);
    }

    #[test]
    fn metal_and_burstable_types_are_told_from_the_others() {
        let names = |is: fn(&InstanceType) -> bool| -> Vec<&str> {
            Catalog::get().types().filter(|known| is(known)).map(|known| known.name.as_str()).collect()
        };
        assert_eq!(names(InstanceType::is_metal), ["c6a.metal", "c7a.metal-48xl"]);
        let burstable = names(InstanceType::is_burstable);
        assert_eq!(burstable.len(), 12);
        assert!(burstable.iter().all(|name| name.starts_with('t')), "{burstable:?}");
        // 0.3328 for the machine and 8 x 0.05 for being busy.
        assert_eq!(Catalog::get().find("t3.2xlarge").unwrap().price.0.micros(), 732_800);
        assert_eq!(Catalog::get().find("t4g.large").unwrap().price.0.micros(), 147_200);
    }

    #[test]
    fn a_damaged_row_is_no_type() {
        for row in [
            "",
            "c6a.large",
            "c6a,2,1,4096,x86_64,AMD,3.6,0,0,650,0.07",
            "zz.large,2,1,4096,x86_64,A,3,0,0,6,1",
        ] {
            assert_eq!(parse_row(row), None, "{row}");
        }
    }
}
