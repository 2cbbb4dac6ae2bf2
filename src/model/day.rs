//! Days and months as bills know them: in UTC.

use std::fmt;
use std::time::Duration;

const SECONDS: u64 = 86_400;

/// A day in UTC, as days since 1970-01-01.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UtcDay(pub u32);

impl UtcDay {
    /// The day of a moment that is so long after the beginning of 1970.
    pub fn at(since_1970: Duration) -> Self {
        Self(u32::try_from(since_1970.as_secs() / SECONDS).unwrap_or(u32::MAX))
    }

    /// When it begins, in seconds since 1970.
    pub fn begins(self) -> u64 {
        u64::from(self.0) * SECONDS
    }

    /// The day after.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The first day of its month.
    #[must_use]
    pub fn month(self) -> Self {
        let (_, _, day) = self.civil();
        Self(self.0 - (day - 1))
    }

    /// Year, month and day of the month. The well-known arithmetic on years that begin in March, so that a leap day is the last.
    fn civil(self) -> (u64, u32, u32) {
        let days = u64::from(self.0) + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        let year = year + era * 400 + u64::from(month <= 2);
        (year, u32::try_from(month).unwrap_or(1), u32::try_from(day).unwrap_or(1))
    }
}

impl fmt::Display for UtcDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.civil();
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_the_names_that_the_calendar_gives_them() {
        for (day, name, month) in [
            (0, "1970-01-01", "1970-01-01"),
            (58, "1970-02-28", "1970-02-01"),
            (11_016, "2000-02-29", "2000-02-01"),
            (11_017, "2000-03-01", "2000-03-01"),
            (20_778, "2026-11-21", "2026-11-01"),
            (20_819, "2027-01-01", "2027-01-01"),
            (47_540, "2100-02-28", "2100-02-01"),
            (47_541, "2100-03-01", "2100-03-01"),
        ] {
            assert_eq!(UtcDay(day).to_string(), name);
            assert_eq!(UtcDay(day).month().to_string(), month);
        }
        assert_eq!(UtcDay::at(Duration::from_secs(1_795_244_399)), UtcDay(20_778));
        assert_eq!(UtcDay(20_778).next().begins(), 1_795_305_600);
        assert!(!UtcDay(u32::MAX).to_string().is_empty());
    }
}
