//! Chance from a seed, the same on every machine: a SplitMix64 (Steele, Lea and Flood 2014).

use std::time::Duration;

/// A source of numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The source that begins here.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The source that belongs to a name.
    pub fn of_name(name: &str) -> Self {
        // FNV-1a, so that a name has the same source in every graph and every version.
        Self(name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }))
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 up to, but not, 1.
    pub fn fraction(&mut self) -> f64 {
        (self.number() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From 0 up to, but not, this many; 0 when that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        ((self.fraction() * bound as f64) as usize).min(bound.saturating_sub(1))
    }

    /// Anything between these, evenly.
    pub fn between(&mut self, least: Duration, most: Duration) -> Duration {
        least + most.saturating_sub(least).mul_f64(self.fraction())
    }

    /// The time until something happens that happens this often an hour; `None` for never.
    pub fn next_after(&mut self, per_hour: f64) -> Option<Duration> {
        if per_hour <= 0.0 {
            return None;
        }
        let hours = -(1.0 - self.fraction()).ln() / per_hour;
        Duration::try_from_secs_f64(hours * 3600.0).ok()
    }

    /// Around 0, the standard deviation being 1: the sum of twelve even ones is as good as normal for our purpose.
    pub fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.fraction()).sum::<f64>() - 6.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        // The reference values of the paper's generator for the seed 1234567.
        let mut random = Random::new(1_234_567);
        assert_eq!(
            [random.number(), random.number(), random.number()],
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn numbers_stay_within_their_bounds_and_spread_over_them() {
        let mut random = Random::new(1);
        let fractions: Vec<f64> = (0..1000).map(|_| random.fraction()).collect();
        assert!(fractions.iter().all(|fraction| (0.0..1.0).contains(fraction)));
        let mean = fractions.iter().sum::<f64>() / 1000.0;
        assert!((0.45..0.55).contains(&mean), "{mean}");
        assert!((0..1000).all(|_| random.below(3) < 3));
        assert_eq!(random.below(0), 0);
        assert_eq!(random.next_after(0.0), None);
        let mean = (0..1000).filter_map(|_| random.next_after(2.0)).sum::<Duration>() / 1000;
        assert!((1600..2000).contains(&mean.as_secs()), "{mean:?}");
    }
}
