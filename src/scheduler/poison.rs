//! Derivations that kill builders: one that has lost three of them, in however many builds, is not given a fourth.
//!
//! A build that takes its machine with it (out of memory, a kernel that panics) does so again when somebody asks for it
//! again. What is noted here is forgotten when the derivation has been built well, and an hour after the last loss.
//! Machines that their provider took back are no losses.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::retry::BUILDERS_TO_LOSE;
use crate::model::{BuilderId, DrvPath};

/// How long a loss counts after the latest.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);
/// Derivations noted at most: a network that breaks takes all that runs with it.
const MOST: usize = 10_000;

/// What is known of derivations that lost builders.
#[derive(Clone, Debug, Default)]
pub(super) struct Poison {
    losses: BTreeMap<DrvPath, Losses>,
    /// By the time of the latest loss.
    order: BTreeSet<(Instant, DrvPath)>,
}

#[derive(Clone, Debug)]
struct Losses {
    builders: BTreeSet<BuilderId>,
    latest: Instant,
}

impl Poison {
    /// A builder was lost that this was built on.
    pub(super) fn note(&mut self, now: Instant, drv: &DrvPath, builder: BuilderId) {
        self.forget_old(now);
        let mut builders = self.take(drv).map(|losses| losses.builders).unwrap_or_default();
        builders.insert(builder);
        self.order.insert((now, drv.clone()));
        self.losses.insert(drv.clone(), Losses { builders, latest: now });
        if self.losses.len() > MOST
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.losses.remove(&oldest);
        }
    }

    /// It was built well, so it is not to blame.
    pub(super) fn forget(&mut self, drv: &DrvPath) {
        self.take(drv);
    }

    fn take(&mut self, drv: &DrvPath) -> Option<Losses> {
        let losses = self.losses.remove(drv)?;
        self.order.remove(&(losses.latest, drv.clone()));
        Some(losses)
    }

    /// Why it is not built, if it is not.
    pub(super) fn verdict(&self, now: Instant, drv: &DrvPath) -> Option<String> {
        let losses = self.losses.get(drv)?;
        let age = now.saturating_duration_since(losses.latest);
        if losses.builders.len() < BUILDERS_TO_LOSE || age >= REMEMBERED {
            return None;
        }
        let builders: Vec<_> = losses.builders.iter().map(ToString::to_string).collect();
        let left = (REMEMBERED - age).as_secs().div_ceil(60);
        Some(format!(
            "{} builders were lost while they built it ({}): it is not tried again for {left} min; see whether it \
             needs more memory than they have",
            builders.len(),
            builders.join(", ")
        ))
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some((at, _)) = self.order.first()
            && now.saturating_duration_since(*at) >= REMEMBERED
        {
            if let Some((_, drv)) = self.order.pop_first() {
                self.losses.remove(&drv);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drv(name: &str) -> DrvPath {
        DrvPath::parse(&format!("/nix/store/0c0kyvd9yy1j1xcpq5h3lqkzxmfv0y7i-{name}.drv")).unwrap()
    }

    #[test]
    fn three_different_builders_in_an_hour_are_enough() {
        let (mut poison, now) = (Poison::default(), Instant::now());
        let after = |minutes: u64| now + Duration::from_secs(60 * minutes);
        for builder in [1, 1, 2] {
            poison.note(now, &drv("a"), BuilderId(builder));
        }
        assert_eq!(poison.verdict(now, &drv("a")), None);
        poison.note(after(50), &drv("a"), BuilderId(3));
        let why = poison.verdict(after(80), &drv("a")).unwrap();
        assert!(
            why.starts_with(
                "3 builders were lost while they built it (b-1, b-2, b-3): it is not tried again for 30 min"
            ),
            "{why}"
        );
        assert_eq!(poison.verdict(after(80), &drv("b")), None);
        assert_eq!(poison.verdict(after(110), &drv("a")), None, "an hour later it is tried again");
        poison.forget(&drv("a"));
        assert!(poison.losses.is_empty() && poison.order.is_empty());
    }

    #[test]
    fn the_list_is_bounded() {
        let (mut poison, now) = (Poison::default(), Instant::now());
        for n in 0..MOST + 10 {
            poison.note(now, &drv(&format!("n{n}")), BuilderId(1));
        }
        assert_eq!((poison.losses.len(), poison.order.len()), (MOST, MOST));
        poison.note(now + REMEMBERED, &drv("late"), BuilderId(1));
        assert_eq!(poison.losses.len(), 1);
    }
}
