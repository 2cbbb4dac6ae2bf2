//! How busy a builder is, as it says itself.

use std::fmt;

/// What a builder said of itself at one moment. What it did not say, or not so that it makes sense, is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Processors.
    pub processors: Option<u32>,
    /// The load average: processes that ran or wanted to, over the last minute.
    pub average: Option<Hundredths>,
    /// Percent of its processors' time that was used since the look before.
    pub cpu: Option<Hundredths>,
    /// Its memory; free is what can be had without swapping (`MemAvailable`).
    pub memory: Option<Space>,
    /// Percent of the last ten seconds in which something had to wait for memory (`/proc/pressure/memory`).
    pub memory_pressure: Option<Hundredths>,
    /// The disk of its store; free is what an ordinary user can have.
    pub disk: Option<Space>,
    /// What went over its network since the look before.
    pub network: Option<Throughput>,
}

/// A number of two digits after the point: what the kernel prints, and something that is equal to itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hundredths(pub u32);

/// Bytes there are, and bytes left of them. Invariant: no more are left than there are, and there are some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    total: u64,
    free: u64,
}

/// Bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throughput {
    /// To the builder.
    pub received: u64,
    /// From it.
    pub sent: u64,
}

/// Bytes for people: `1.2 GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl Hundredths {
    /// As a number.
    pub fn value(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

impl Space {
    /// So much, if that makes sense.
    pub fn new(total: u64, free: u64) -> Option<Self> {
        (total > 0 && free <= total).then_some(Self { total, free })
    }

    /// Bytes there are.
    pub fn total(self) -> u64 {
        self.total
    }

    /// Bytes left.
    pub fn free(self) -> u64 {
        self.free
    }

    /// Bytes taken.
    pub fn used(self) -> u64 {
        self.total - self.free
    }

    /// Whether less is left than so many hundredths of all.
    pub fn is_below(self, percent: u32) -> bool {
        u128::from(self.free) * 100 < u128::from(self.total) * u128::from(percent)
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} free", Bytes(self.free), Bytes(self.total))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut size = self.0 as f64 / 1024.0;
        let mut units = UNITS.iter();
        let mut unit = units.next().unwrap_or(&"KiB");
        // What would be shown as 1024 is 1 of the next.
        while size >= 1023.5 {
            let Some(next) = units.next() else { break };
            (size, unit) = (size / 1024.0, next);
        }
        // Two digits say enough, and a third when there is no point among them.
        if size < 9.95 { write!(f, "{size:.1} {unit}") } else { write!(f, "{size:.0} {unit}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (10 * 1024, "10 KiB"),
            (1_048_575, "1.0 MiB"),
            (1_288_490_189, "1.2 GiB"),
            (64 << 30, "64 GiB"),
            (1000 << 30, "1000 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn space_makes_sense_or_is_none() {
        assert_eq!(Space::new(0, 0), None);
        assert_eq!(Space::new(5, 6), None);
        let space = Space::new(u64::MAX, u64::MAX / 20).unwrap();
        assert!(space.is_below(10) && !space.is_below(4));
        assert_eq!(Space::new(100, 10).map(|space| (space.used(), space.is_below(10))), Some((90, false)));
    }
}
