//! Where the inputs of a build came from, once they are on its builder.

use std::collections::BTreeMap;
use std::fmt;

use super::{BuilderId, Bytes};

/// The inputs of one attempt, by where they came from. Each is in one place only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// Sent from here.
    pub home: Share,
    /// Sent by other builders.
    pub builders: BTreeMap<BuilderId, Share>,
    /// Paths that the builder fetched by itself; how large they are, it does not say.
    pub substituted: u64,
    /// Paths that came at the same time, for other builds.
    pub shared: u64,
    /// Paths that the builder had.
    pub held: u64,
}

/// Some of the inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// How many.
    pub paths: u64,
    /// Bytes of their archives.
    pub bytes: u64,
}

impl Share {
    /// This and that.
    pub fn add(&mut self, other: Self) {
        self.paths = self.paths.saturating_add(other.paths);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

impl Delivery {
    /// What this builder sent.
    pub fn add_of(&mut self, builder: BuilderId, share: Share) {
        if share.paths > 0 {
            self.builders.entry(builder).or_default().add(share);
        }
    }

    /// This and that.
    pub fn add(&mut self, other: Self) {
        let Self { home, builders, substituted, shared, held } = other;
        self.home.add(home);
        for (builder, share) in builders {
            self.add_of(builder, share);
        }
        self.substituted = self.substituted.saturating_add(substituted);
        self.shared = self.shared.saturating_add(shared);
        self.held = self.held.saturating_add(held);
    }

    /// How many inputs these are.
    pub fn paths(&self) -> u64 {
        let sent = self.builders.values().map(|share| share.paths);
        let others = [self.home.paths, self.substituted, self.shared, self.held];
        sent.chain(others).fold(0, u64::saturating_add)
    }

    /// Bytes that other builders sent.
    pub fn bytes_direct(&self) -> u64 {
        self.builders.values().map(|share| share.bytes).fold(0, u64::saturating_add)
    }
}

/// `2 from here (1.1 MiB), 1 from b-3 (64 MiB), 12 from a substituter, 3 came for other builds, 40 were there`
impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { home, builders, substituted, shared, held } = self;
        let sent = |from: &dyn fmt::Display, share: &Share| {
            (share.paths > 0).then(|| format!("{} from {from} ({})", share.paths, Bytes(share.bytes)))
        };
        let counted = |n: &u64, what: &str| (*n > 0).then(|| format!("{n} {what}"));
        let mut parts = vec![sent(&"here", home)];
        parts.extend(builders.iter().map(|(builder, share)| sent(builder, share)));
        let was = if *held == 1 { "was there" } else { "were there" };
        parts.extend([
            counted(substituted, "from a substituter"),
            counted(shared, "came for other builds"),
            counted(held, was),
        ]);
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        f.write_str(if parts.is_empty() { "none" } else { "" })?;
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_adds_up_and_says_only_what_there_is() {
        let mut delivery = Delivery { held: 1, ..Delivery::default() };
        assert_eq!((delivery.to_string().as_str(), delivery.paths()), ("1 was there", 1));
        let share = |paths, bytes| Share { paths, bytes };
        delivery.add_of(BuilderId(3), share(1, 64 << 20));
        delivery.add_of(BuilderId(4), share(0, 0));
        let more = Delivery {
            home: share(2, 1 << 20),
            builders: [(BuilderId(3), share(1, 1 << 20))].into(),
            substituted: 12,
            shared: 3,
            held: 39,
        };
        delivery.add(more);
        assert_eq!(
            delivery.to_string(),
            "2 from here (1.0 MiB), 2 from b-3 (65 MiB), 12 from a substituter, 3 came for other builds, 40 were there"
        );
        assert_eq!((delivery.paths(), delivery.bytes_direct()), (59, 65 << 20));
        assert_eq!(Delivery::default().to_string(), "none");
    }
}
