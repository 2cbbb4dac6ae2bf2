//! Money: amounts and rates in US dollars, the currency of every EC2 price list.
//!
//! Whole micro-dollars, so that sums over months are exact and comparisons mean something. An instance-hour costs about
//! a dollar; a second of the smallest machine some 10 micro-dollars.

use std::collections::BTreeMap;
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};
use std::time::Duration;

use super::PoolName;
use super::day::UtcDay;

const MICROS: u64 = 1_000_000;
const MICROS_PER_HOUR: u128 = 3_600_000_000;

/// An amount of US dollars, never negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Usd(u64);

impl Usd {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// So many millionths of a dollar.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Reads `0.0765` or `12`: what price lists and configuration files say. Digits beyond the sixth are cut off.
    pub fn parse(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let is_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !is_digits(whole) || !is_digits(fraction) {
            return None;
        }
        let fraction: String = fraction.chars().chain("000000".chars()).take(6).collect();
        let micros = whole.parse::<u64>().ok()?.checked_mul(MICROS)?;
        Some(Self(micros.checked_add(fraction.parse().ok()?)?))
    }

    /// Millionths of a dollar.
    pub const fn micros(self) -> u64 {
        self.0
    }

    /// What is left when `other` is spent; nothing when it is more.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Add for Usd {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Usd {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Usd {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Add::add)
    }
}

impl fmt::Display for Usd {
    /// `$0.08`, `$12.40`; under a cent with all its digits, `$0.0007`, since such amounts add up.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 > 0 && self.0 < MICROS / 100 {
            let digits = format!("{:06}", self.0);
            return write!(f, "$0.{}", digits.trim_end_matches('0'));
        }
        let cents = (self.0 + MICROS / 200) / (MICROS / 100);
        write!(f, "${}.{:02}", cents / 100, cents % 100)
    }
}

/// US dollars per hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HourlyRate(pub Usd);

impl HourlyRate {
    /// What this long costs at this rate, rounded up: an estimate must not be below the bill.
    pub fn over(self, time: Duration) -> Usd {
        let product = u128::from(self.0.0).saturating_mul(time.as_micros());
        Usd(u64::try_from(product.div_ceil(MICROS_PER_HOUR)).unwrap_or(u64::MAX))
    }
}

impl Add for HourlyRate {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl Sum for HourlyRate {
    fn sum<I: Iterator<Item = Self>>(rates: I) -> Self {
        Self(rates.map(|rate| rate.0).sum())
    }
}

impl fmt::Display for HourlyRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/h", self.0)
    }
}

/// What may be spent at most. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// By everything that runs or is stopped, together.
    pub hour: Option<HourlyRate>,
    /// Within a day.
    pub day: Option<Usd>,
    /// Within a month.
    pub month: Option<Usd>,
}

/// What was spent before this broker started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Today.
    pub day: UtcDay,
    /// Today, by pool; pools that are not configured any more count as well.
    pub today: BTreeMap<PoolName, Usd>,
    /// This month, today included.
    pub month: Usd,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_read_as_price_lists_write_them() {
        assert_eq!(Usd::parse("0.0765"), Some(Usd(76_500)));
        assert_eq!(Usd::parse("12"), Some(Usd(12_000_000)));
        assert_eq!(Usd::parse("0.12345678"), Some(Usd(123_456)));
        for odd in ["", ".", "-1", "1,5", "1e3", ".5", "18446744073709551615", "$1"] {
            assert_eq!(Usd::parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn amounts_are_shown_in_cents_and_small_ones_with_their_digits() {
        let shown = |micros| Usd(micros).to_string();
        assert_eq!(shown(0), "$0.00");
        assert_eq!(shown(700), "$0.0007");
        assert_eq!(shown(76_500), "$0.08");
        assert_eq!(shown(999_999), "$1.00");
        assert_eq!(shown(12_400_000), "$12.40");
    }

    #[test]
    fn a_rate_over_time_is_never_below_the_bill() {
        let rate = HourlyRate(Usd(612_000));
        assert_eq!(rate.over(Duration::from_secs(3600)), Usd(612_000));
        assert_eq!(rate.over(Duration::from_secs(60)), Usd(10_200));
        assert_eq!(rate.over(Duration::from_micros(1)), Usd(1));
        assert_eq!(HourlyRate(Usd(u64::MAX)).over(Duration::MAX), Usd(u64::MAX));
    }
}
