//! How busy a builder is, as a part of the status document.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::seconds;
use crate::model::{Hundredths, Load, Space};

/// What a builder said of itself; what it did not say is missing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LoadView {
    /// Seconds since it said so.
    pub ago: f64,
    /// Processors.
    pub processors: Option<u32>,
    /// Processes that ran or wanted to, over the last minute.
    pub average: Option<f64>,
    /// Percent of its processors' time in use since the look before.
    pub cpu: Option<f64>,
    /// Bytes of memory.
    pub memory_total: Option<u64>,
    /// Bytes of memory that can be had without swapping.
    pub memory_available: Option<u64>,
    /// Percent of the last ten seconds in which something waited for memory.
    pub memory_pressure: Option<f64>,
    /// Bytes of the store's disk.
    pub disk_total: Option<u64>,
    /// Bytes free on the store's disk.
    pub disk_free: Option<u64>,
    /// Bytes per second that it receives.
    pub received: Option<u64>,
    /// Bytes per second that it sends.
    pub sent: Option<u64>,
}

impl LoadView {
    pub(super) fn new(load: &Load, ago: Duration) -> Self {
        Self {
            ago: seconds(ago),
            processors: load.processors,
            average: load.average.map(Hundredths::value),
            cpu: load.cpu.map(Hundredths::value),
            memory_total: load.memory.map(Space::total),
            memory_available: load.memory.map(Space::free),
            memory_pressure: load.memory_pressure.map(Hundredths::value),
            disk_total: load.disk.map(Space::total),
            disk_free: load.disk.map(Space::free),
            received: load.network.map(|network| network.received),
            sent: load.network.map(|network| network.sent),
        }
    }
}
