//! What an account may have of instances, as AWS counts it.
//!
//! Names only: what a refusal means for the next launch is `cooling`'s, which words of EC2 are one is `api`'s.

use std::fmt;

/// A quota of an account, which decides what else is out of reach together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Quota {
    /// Processors of on-demand instances of one family group.
    OnDemand(QuotaFamily),
    /// Processors of spot instances of one family group.
    Spot(QuotaFamily),
    /// A new account that AWS has not finished verifying.
    Verification,
    /// Something else that is counted.
    Other,
}

/// The groups of instance families that AWS counts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QuotaFamily {
    /// A, C, D, H, I, M, R, T, Z.
    Standard,
    /// X.
    X,
    /// F.
    F,
    /// G and VT.
    G,
    /// P.
    P,
    /// HPC.
    Hpc,
    /// Anything else.
    Other,
}

impl QuotaFamily {
    /// The group of an instance type.
    pub fn of(instance_type: &str) -> Self {
        let family: String = instance_type.chars().take_while(char::is_ascii_lowercase).collect();
        match family.as_str() {
            "a" | "c" | "d" | "h" | "i" | "im" | "is" | "m" | "r" | "t" | "z" => Self::Standard,
            "x" => Self::X,
            "f" => Self::F,
            "g" | "gr" | "vt" => Self::G,
            "p" => Self::P,
            "hpc" => Self::Hpc,
            _ => Self::Other,
        }
    }
}

impl Quota {
    /// Its code in Service Quotas, where we know it.
    pub fn code(self) -> Option<&'static str> {
        match self {
            Self::OnDemand(QuotaFamily::Standard) => Some("L-1216C47A"),
            Self::OnDemand(QuotaFamily::X) => Some("L-7295265B"),
            Self::OnDemand(QuotaFamily::F) => Some("L-74FC7D96"),
            Self::OnDemand(QuotaFamily::G) => Some("L-DB2E81BA"),
            Self::OnDemand(QuotaFamily::P) => Some("L-417A185B"),
            Self::OnDemand(QuotaFamily::Hpc) => Some("L-F7808C92"),
            Self::Spot(QuotaFamily::Standard) => Some("L-34B43A08"),
            Self::Spot(QuotaFamily::X) => Some("L-E3A00192"),
            Self::Spot(QuotaFamily::F) => Some("L-88CF9481"),
            Self::Spot(QuotaFamily::G) => Some("L-3819A6DF"),
            Self::Spot(QuotaFamily::P) => Some("L-7212CCBC"),
            Self::OnDemand(QuotaFamily::Other)
            | Self::Spot(QuotaFamily::Hpc | QuotaFamily::Other)
            | Self::Verification
            | Self::Other => None,
        }
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnDemand(family) => write!(f, "vCPUs of on-demand {family} instances")?,
            Self::Spot(family) => write!(f, "vCPUs of spot {family} instances")?,
            Self::Verification => f.write_str("instances of an account that is being verified")?,
            Self::Other => f.write_str("what an account may have")?,
        }
        match self.code() {
            Some(code) => write!(f, " ({code})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for QuotaFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Standard => "standard (A, C, D, H, I, M, R, T, Z)",
            Self::X => "X",
            Self::F => "F",
            Self::G => "G and VT",
            Self::P => "P",
            Self::Hpc => "HPC",
            Self::Other => "other",
        })
    }
}
