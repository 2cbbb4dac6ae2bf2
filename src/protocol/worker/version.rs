//! Versions of the worker protocol.

use std::fmt;

/// A version 1.x; all differences we know of hang on the number after the dot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u8);

impl Version {
    /// The oldest we speak: Nix 2.4.
    pub const MIN: Self = Self(32);
    /// The newest we speak; everything later comes as named features, of which we offer none.
    pub const MAX: Self = Self(38);

    /// Version 1.`minor`.
    pub const fn new(minor: u8) -> Self {
        Self(minor)
    }

    /// The number after the dot.
    pub const fn minor(self) -> u8 {
        self.0
    }

    /// Reads the wire form; `None` if it is not a version 1.
    pub(crate) fn from_wire(wire: u64) -> Option<Self> {
        (wire >> 8 == 1).then_some(Self((wire & 0xff) as u8))
    }

    pub(crate) fn to_wire(self) -> u64 {
        1 << 8 | u64::from(self.0)
    }

    /// Whether the server tells its Nix version in the handshake.
    pub(crate) fn tells_daemon_version(self) -> bool {
        self.0 >= 33
    }

    /// Whether the server tells in the handshake if it trusts the client.
    pub(crate) fn tells_trust(self) -> bool {
        self.0 >= 35
    }

    /// Whether a build result has processor times.
    pub(crate) fn has_cpu_times(self) -> bool {
        self.0 >= 37
    }

    /// Whether both sides name their features in the handshake.
    pub(crate) fn has_features(self) -> bool {
        self.0 >= 38
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1.{}", self.0)
    }
}
