//! A fixed set of machines, as somebody lists them in `builders`: `4xc6a.4xlarge`, `2xc7g.2xlarge+1xc6a.8xlarge`.

use std::collections::BTreeSet;

use super::buy::{Machine, standing};
use crate::catalog::Catalog;
use crate::model::ec2::DiskSpec;
use crate::model::{Feature, HourlyRate, Offer, System, Usd};
use crate::provider::ec2::price;

/// Machines at most: what a person lists by hand.
const MOST: usize = 1000;
/// The volume of a builder on which nobody thought about volumes.
const DISK: DiskSpec = DiskSpec { size: 100, throughput: 500, iops: 3_000 };
/// A public IPv4 address, per hour in micro-dollars, as pools pay for it.
const ADDRESS: HourlyRate = HourlyRate(Usd::from_micros(5_000));
/// What a person lists for such a machine, and what its processor runs besides.
const FEATURES: [&str; 5] = ["benchmark", "big-parallel", "ca-derivations", "kvm", "nixos-test"];

/// Machines that are always there.
#[derive(Clone, Debug, PartialEq)]
pub struct FixedFleet {
    /// As it was written.
    pub text: String,
    /// All of them.
    pub machines: Vec<Machine>,
    /// What each of them builds.
    pub offers: Vec<Offer>,
}

impl FixedFleet {
    /// Reads `4xc6a.4xlarge+c7g.large`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut fleet = Self { text: text.to_owned(), machines: Vec::new(), offers: Vec::new() };
        for part in text.split('+') {
            let (count, name) = match part.split_once('x') {
                Some((count, name))
                    if !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit()) =>
                {
                    (count.parse().unwrap_or(usize::MAX), name)
                }
                _ => (1, part),
            };
            let Some(known) = Catalog::get().find(name) else {
                return Err(format!(
                    "`{name}` is no instance type with a known price; write `4xc6a.4xlarge`"
                ));
            };
            if count == 0 || fleet.machines.len().saturating_add(count) > MOST {
                return Err(format!("from 1 to {MOST} machines, as in `4xc6a.4xlarge`"));
            }
            let system = known.architecture.system();
            let mut systems = BTreeSet::from([System::new(system)]);
            if system == "x86_64-linux" {
                systems.insert(System::new("i686-linux"));
            }
            let features = FEATURES.into_iter().map(Feature::new);
            let tuned = known.processor.gccarchs().map(|name| Feature::new(format!("gccarch-{name}")));
            let offer = Offer { systems, features: features.chain(tuned).collect(), mandatory: [].into() };
            let machine = standing(known, price::disk(DISK) + ADDRESS);
            fleet.machines.extend(std::iter::repeat_n(machine, count));
            fleet.offers.extend(std::iter::repeat_n(offer, count));
        }
        Ok(fleet)
    }

    /// What it costs as long as nobody ends it.
    pub fn rate(&self) -> HourlyRate {
        self.machines.iter().map(Machine::rate).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_a_person_writes_it() {
        let fleet = FixedFleet::parse("2xc6a.4xlarge+c7g.large").unwrap();
        assert_eq!(fleet.machines.len(), 3);
        assert_eq!((fleet.machines[0].power.vcpus, fleet.machines[2].power.vcpus), (16, 2));
        assert_eq!(fleet.offers[2].systems.first().unwrap().as_str(), "aarch64-linux");
        // 2 x 0.612 + 0.0725, and thrice a volume of 100 GiB with 375 MiB/s more, and an address.
        assert_eq!(fleet.rate().0.micros(), 1_224_000 + 72_500 + 3 * (31_507 + 5_000));
    }

    #[test]
    fn what_is_no_list_is_told_what_one_looks_like() {
        for (text, complaint) in [
            ("4xlarge", "`large` is no instance type with a known price; write `4xc6a.4xlarge`"),
            ("0xc6a.large", "from 1 to 1000 machines, as in `4xc6a.4xlarge`"),
            ("99999999999999999999xc6a.large", "from 1 to 1000 machines, as in `4xc6a.4xlarge`"),
            ("c6a.large+", "`` is no instance type with a known price; write `4xc6a.4xlarge`"),
        ] {
            assert_eq!(FixedFleet::parse(text).unwrap_err(), complaint, "{text}");
        }
    }
}
