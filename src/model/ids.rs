//! Names of the things the broker tracks. Plain values: who may create them is decided by the scheduler.

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;

            /// Reads `PREFIX-NUMBER`, or the bare number.
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.strip_prefix($prefix).unwrap_or(text).parse().map(Self)
            }
        }
    };
}

numbered!(
    /// An accepted build, `#12`. Unique within one run of the broker.
    BuildId,
    "#"
);
numbered!(
    /// One machine as we manage it, `b-3`. Unique within one run of the broker.
    BuilderId,
    "b-"
);
numbered!(
    /// The right of one build to use one slot of one builder. Never reused within one run of the broker.
    LeaseId,
    "lease-"
);

numbered!(
    /// One run of Nix that asks for builds, `run-7`: those that wait share the slots between them.
    ClientId,
    "run-"
);

macro_rules! named {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Takes the text as it is; whoever reads it from outside has validated it.
            pub fn new(text: impl Into<std::sync::Arc<str>>) -> Self {
                Self(text.into())
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

pub(super) use named;

named!(
    /// The name of a pool, as the configuration gives it.
    PoolName
);
named!(
    /// What a provider calls one of its instances.
    InstanceId
);
