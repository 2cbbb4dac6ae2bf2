//! What an instance costs by the hour: compute, the volume, the public address.
//!
//! Estimates, rounded up. Traffic is not in them: it is billed by what crosses the border, not by the hour.

use super::ladder::Rung;
use crate::model::ec2::{DiskSpec, Reach};
use crate::model::{Ec2Spec, HourlyRate, InstanceClass, Usd};

// EBS and VPC price lists, us-east-1, July 2026, in micro-dollars.
const GIB_MONTH: u64 = 80_000;
/// For each beyond those that are included.
const IOPS_MONTH: u64 = 5_000;
/// For each MiB/s beyond those that are included.
const THROUGHPUT_MONTH: u64 = 40_000;
const INCLUDED_IOPS: u32 = 3_000;
const INCLUDED_THROUGHPUT: u32 = 125;
const PUBLIC_ADDRESS_HOUR: u64 = 5_000;
/// What AWS takes a month to be.
const HOURS_A_MONTH: u64 = 730;

/// What the volume costs, whether its instance runs or is stopped.
pub fn disk(disk: DiskSpec) -> HourlyRate {
    let iops = disk.iops.saturating_sub(INCLUDED_IOPS);
    let throughput = disk.throughput.saturating_sub(INCLUDED_THROUGHPUT);
    let month = [(disk.size, GIB_MONTH), (iops, IOPS_MONTH), (throughput, THROUGHPUT_MONTH)]
        .into_iter()
        .map(|(amount, each)| u64::from(amount) * each)
        .sum::<u64>();
    HourlyRate(Usd::from_micros(month.div_ceil(HOURS_A_MONTH)))
}

/// What a running instance costs in all when its compute costs this.
pub fn running(compute: HourlyRate, spec: &Ec2Spec) -> HourlyRate {
    let address = match spec.reach {
        Reach::Public => PUBLIC_ADDRESS_HOUR,
        Reach::Private | Reach::Proxy(_) => 0,
    };
    compute + disk(spec.disk) + HourlyRate(Usd::from_micros(address))
}

/// What will have been bought when this rung holds.
pub fn class(rung: &Rung, spec: &Ec2Spec) -> InstanceClass {
    InstanceClass {
        instance_type: rung.instance_type.name.clone(),
        market: rung.market,
        zone: rung.zone.clone(),
        rate: running(rung.rate, spec),
        stopped_rate: disk(spec.disk),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::ec2::fixtures::spec;

    fn usd(text: &str) -> HourlyRate {
        HourlyRate(Usd::parse(text).unwrap())
    }

    #[test]
    fn a_volume_costs_what_the_price_list_says() {
        // 60 GB = 0.0066 an hour; nothing for what is included.
        assert_eq!(disk(DiskSpec { size: 60, throughput: 125, iops: 3_000 }), usd("0.006576"));
        // 100 x 0.08 + 375 x 0.04 + 1000 x 0.005 = 28 a month.
        assert_eq!(disk(DiskSpec { size: 100, throughput: 500, iops: 4_000 }), usd("0.038357"));
        assert!(disk(DiskSpec { size: u32::MAX, throughput: u32::MAX, iops: u32::MAX }) > usd("1"));
    }

    #[test]
    fn only_a_public_address_is_paid_for() {
        let mut spec = spec();
        spec.disk = DiskSpec { size: 0, throughput: 0, iops: 0 };
        assert_eq!(running(usd("0.612"), &spec), usd("0.617"));
        spec.reach = Reach::Private;
        assert_eq!(running(usd("0.612"), &spec), usd("0.612"));
        spec.reach = Reach::Proxy("nc %h %p".to_owned());
        assert_eq!(running(usd("0.612"), &spec), usd("0.612"));
    }
}
