//! What there is to choose from: types, offerings, prices, zones.
//!
//! Owns those lists, from the product's own table of types.

use super::account::{Account, ZONES};
use super::launch::invalid;
use super::{Answer, Asked, Refusal, xml};

/// As many types as one request may name.
const MAX_TYPES: usize = 100;

impl Account {
    pub(super) fn describe_types(&mut self, asked: &Asked<'_>) -> Answer {
        let names = asked.form.list("InstanceType");
        if names.len() > MAX_TYPES {
            return Err(invalid("the list of instance types is too long"));
        }
        if !names.is_empty() && asked.form.get("MaxResults").is_some() {
            let words = "The parameters InstanceTypes and MaxResults cannot be used together";
            return Err(Refusal::new(400, "InvalidParameterCombination", words));
        }
        if let Some(unknown) = names.iter().find(|name| self.kind(name).is_none()) {
            let words = format!("The following supplied instance types do not exist: [{unknown}]");
            return Err(Refusal::new(400, "InvalidInstanceType", words));
        }
        let mut found = Vec::new();
        for kind in &self.types {
            let attribute = |name: &str| (name == "instance-type").then(|| vec![kind.name.clone()]);
            if (names.is_empty() || names.contains(&kind.name)) && asked.form.passes(attribute)? {
                let nested = kind.nested_virt.then(|| "nested-virtualization".to_owned());
                let processor = xml::list("supportedArchitectures", [kind.arch.clone()])
                    + &xml::list("supportedFeatures", nested);
                let cpu = xml::leaf("defaultVCpus", kind.vcpus) + &xml::leaf("defaultCores", kind.cores);
                let storage = (kind.nvme_gb > 0)
                    .then(|| xml::node("instanceStorageInfo", xml::leaf("totalSizeInGB", kind.nvme_gb)));
                found.push(
                    [
                        xml::leaf("instanceType", &kind.name),
                        xml::leaf("bareMetal", kind.name.contains("metal")),
                        xml::leaf("hibernationSupported", kind.nvme_gb == 0),
                        xml::list("supportedUsageClasses", ["on-demand".to_owned(), "spot".to_owned()]),
                        xml::node("processorInfo", processor),
                        xml::node("vCpuInfo", cpu),
                        xml::node("memoryInfo", xml::leaf("sizeInMiB", kind.memory_mib)),
                        storage.unwrap_or_default(),
                    ]
                    .concat(),
                );
            }
        }
        let (page, next) = asked.form.page(&found, self.settings.page);
        Ok(xml::list("instanceTypeSet", page) + &xml::optional("nextToken", next))
    }

    pub(super) fn describe_offerings(&mut self, asked: &Asked<'_>) -> Answer {
        let mut found = Vec::new();
        for kind in &self.types {
            for letter in ZONES {
                let zone = format!("{}{letter}", asked.region);
                let attribute = |name: &str| match name {
                    "instance-type" => Some(vec![kind.name.clone()]),
                    "location" => Some(vec![zone.clone()]),
                    _ => None,
                };
                if Self::is_offered(&kind.name, &zone) && asked.form.passes(attribute)? {
                    found.push(
                        xml::leaf("instanceType", &kind.name)
                            + &xml::leaf("locationType", "availability-zone")
                            + &xml::leaf("location", &zone),
                    );
                }
            }
        }
        let (page, next) = asked.form.page(&found, self.settings.page);
        Ok(xml::list("instanceTypeOfferingSet", page) + &xml::optional("nextToken", next))
    }

    pub(super) fn describe_spot_prices(&mut self, asked: &Asked<'_>) -> Answer {
        let names = asked.form.list("InstanceType");
        let mut found = Vec::new();
        for kind in self.types.iter().filter(|kind| names.is_empty() || names.contains(&kind.name)) {
            for letter in ZONES {
                let zone = format!("{}{letter}", asked.region);
                if !Self::is_offered(&kind.name, &zone) {
                    continue;
                }
                let price = self.spot_price(kind, &zone);
                found.push(
                    [
                        xml::leaf("instanceType", &kind.name),
                        xml::leaf("productDescription", "Linux/UNIX"),
                        xml::leaf("spotPrice", format!("{}.{:06}", price / 1_000_000, price % 1_000_000)),
                        xml::leaf("timestamp", xml::time(asked.now)),
                        xml::leaf("availabilityZone", &zone),
                    ]
                    .concat(),
                );
            }
        }
        let (page, next) = asked.form.page(&found, self.settings.page);
        // The real one ends with an empty token.
        Ok(xml::list("spotPriceHistorySet", page) + &xml::leaf("nextToken", next.unwrap_or_default()))
    }

    pub(super) fn describe_zones(&mut self, asked: &Asked<'_>) -> Answer {
        let zones = ZONES.iter().map(|letter| {
            xml::leaf("zoneName", format!("{}{letter}", asked.region))
                + &xml::leaf("regionName", asked.region)
                + &xml::leaf("zoneState", "available")
        });
        Ok(xml::list("availabilityZoneInfo", zones))
    }
}
