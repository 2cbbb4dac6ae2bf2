//! Ranges of IPv4 addresses, as security groups and subnets are described with them.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A range of IPv4 addresses. Invariant: the bits behind the prefix are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    base: u32,
    prefix: u8,
}

/// A text that is no range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a range of IPv4 addresses such as `203.0.113.7/32`")]
pub struct CidrError {
    text: String,
}

impl Cidr {
    /// One address.
    pub fn host(address: Ipv4Addr) -> Self {
        Self { base: u32::from(address), prefix: 32 }
    }

    /// What every default VPC has.
    pub fn default_vpc() -> Self {
        Self { base: u32::from(Ipv4Addr::new(172, 31, 0, 0)), prefix: 16 }
    }

    /// The leading bits that all its addresses share.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether the address is in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == self.base
    }

    /// Whether every address of the other one is in it.
    pub fn covers(self, other: Self) -> bool {
        self.prefix <= other.prefix && self.contains(Ipv4Addr::from(other.base))
    }

    /// Whether some address is in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// The first range with this prefix within this one that overlaps none of those.
    pub fn first_free(self, prefix: u8, taken: &[Self]) -> Option<Self> {
        let end = u64::from(self.base) + (1 << (32 - u64::from(self.prefix)));
        let step = 1 << (32 - u64::from(prefix));
        let mut base = u64::from(self.base);
        if prefix < self.prefix {
            return None;
        }
        while base + step <= end {
            let range = Self { base: u32::try_from(base).ok()?, prefix };
            match taken.iter().find(|taken| taken.overlaps(range)) {
                None => return Some(range),
                // Behind what is in the way, so that a large hole costs one step and not thousands.
                Some(taken) => {
                    let behind = u64::from(taken.base) + (1 << (32 - u64::from(taken.prefix)));
                    base = behind.max(base + 1).next_multiple_of(step);
                }
            }
        }
        None
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl FromStr for Cidr {
    type Err = CidrError;

    /// `203.0.113.7/32`; an address alone is that address.
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let error = || CidrError { text: text.chars().take(60).collect() };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, prefix.parse().map_err(|_| error())?),
            None => (text, 32),
        };
        let address: Ipv4Addr = address.parse().map_err(|_| error())?;
        let base = u32::from(address);
        if prefix > 32 || base & !mask(prefix) != 0 {
            return Err(error());
        }
        Ok(Self { base, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_are_read_as_ec2_writes_them_and_nothing_else_is() {
        for text in ["0.0.0.0/0", "10.0.0.0/8", "203.0.113.7/32", "172.31.16.0/20"] {
            assert_eq!(cidr(text).to_string(), text);
        }
        assert_eq!(cidr("203.0.113.7").to_string(), "203.0.113.7/32");
        for odd in ["", "/", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0/8", "::/0", "1.2.3.4/32/1"] {
            assert!(odd.parse::<Cidr>().is_err(), "{odd}");
        }
    }

    #[test]
    fn a_range_knows_what_is_in_it() {
        assert!(cidr("10.0.0.0/8").contains(Ipv4Addr::new(10, 9, 8, 7)));
        assert!(!cidr("10.0.0.0/8").contains(Ipv4Addr::new(11, 0, 0, 0)));
        assert!(cidr("0.0.0.0/0").contains(Ipv4Addr::BROADCAST));
        assert!(cidr("10.0.0.0/8").covers(cidr("10.1.0.0/16")));
        assert!(!cidr("10.1.0.0/16").covers(cidr("10.0.0.0/8")));
        assert!(cidr("10.1.0.0/16").overlaps(cidr("10.0.0.0/8")));
        assert!(!cidr("10.1.0.0/16").overlaps(cidr("10.2.0.0/16")));
    }

    #[test]
    fn the_first_hole_that_is_large_enough_is_found() {
        let vpc = cidr("172.31.0.0/16");
        let taken = |texts: &[&str]| texts.iter().map(|text| cidr(text)).collect::<Vec<_>>();
        let free =
            |prefix, texts: &[&str]| vpc.first_free(prefix, &taken(texts)).map(|free| free.to_string());
        assert_eq!(free(20, &[]).as_deref(), Some("172.31.0.0/20"));
        assert_eq!(free(20, &["172.31.0.0/20", "172.31.32.0/20"]).as_deref(), Some("172.31.16.0/20"));
        assert_eq!(free(20, &["172.31.0.0/28", "172.31.16.0/21"]).as_deref(), Some("172.31.32.0/20"));
        assert_eq!(free(16, &[]).as_deref(), Some("172.31.0.0/16"));
        assert_eq!(free(15, &[]), None);
        assert_eq!(free(20, &["172.31.0.0/17", "172.31.128.0/17"]), None);
        assert_eq!(cidr("255.255.255.240/28").first_free(28, &[]).map(|it| it.prefix()), Some(28));
        assert_eq!(cidr("0.0.0.0/0").first_free(32, &taken(&["0.0.0.0/1", "128.0.0.0/1"])), None);
    }
}
