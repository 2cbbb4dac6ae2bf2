//! Words and numbers for people.

use std::time::Duration;

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::model::{Bytes, HourlyRate, Usd};

/// Two units at most: `38s`, `4m 10s`, `4h 12m`, `3d 2h`.
///
/// Takes what the broker sent, which may be no duration at all.
pub(super) fn span(seconds: f64) -> String {
    let total = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    let (days, hours, minutes, seconds) = (total / 86_400, total / 3_600 % 24, total / 60 % 60, total % 60);
    let (large, small) = match (days, hours, minutes) {
        (0, 0, 0) => return format!("{seconds}s"),
        (0, 0, _) => ((minutes, "m"), (seconds, "s")),
        (0, _, _) => ((hours, "h"), (minutes, "m")),
        (_, _, _) => ((days, "d"), (hours, "h")),
    };
    match small.0 {
        0 => format!("{}{}", large.0, large.1),
        _ => format!("{}{} {}{}", large.0, large.1, small.0, small.1),
    }
}

/// `$0.62`; `-` where there is no amount. Takes what the broker sent, which may be no amount at all.
pub(super) fn amount(dollars: Option<f64>) -> String {
    dollars.map_or_else(|| "-".to_owned(), |dollars| usd(dollars).to_string())
}

/// `$0.62/h`; `-` where there is no rate.
pub(super) fn rate(dollars: Option<f64>) -> String {
    dollars.map_or_else(|| "-".to_owned(), |dollars| HourlyRate(usd(dollars)).to_string())
}

fn usd(dollars: f64) -> Usd {
    // A cast saturates, and makes nothing of what is no number.
    Usd::from_micros((dollars * 1e6).round() as u64)
}

/// `1 build`, `2 builds`.
pub(super) fn count(n: impl TryInto<u64>, noun: &str) -> String {
    match n.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {noun}"),
        n => format!("{n} {noun}s"),
    }
}

/// `1.2 GiB`.
pub(super) fn size(bytes: u64) -> String {
    Bytes(bytes).to_string()
}

/// `1.2 MiB/s`.
pub(super) fn size_rate(bytes: u64) -> String {
    format!("{}/s", Bytes(bytes))
}

/// Text from elsewhere without what would steer a terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c == '\n' || c == '\t' { ' ' } else { c }).filter(|c| !c.is_control()).collect()
}

/// The text, or its beginning and `...`, in this many columns.
pub(super) fn shorten(text: &str, width: usize) -> String {
    cut(text, width, "...")
}

/// The text, or its beginning and this mark, in this many columns.
pub(super) fn cut(text: &str, width: usize, mark: &str) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let room = width.saturating_sub(mark.len());
    let (mut kept, mut used) = (String::new(), 0);
    for c in text.chars() {
        let wide = c.width().unwrap_or(0);
        if used + wide > room {
            break;
        }
        used += wide;
        kept.push(c);
    }
    kept.extend(mark.chars().take(width.saturating_sub(used)));
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_two_units_at_most() {
        for (seconds, text) in [
            (0.0, "0s"),
            (0.999, "0s"),
            (38.2, "38s"),
            (60.0, "1m"),
            (250.0, "4m 10s"),
            (15_120.0, "4h 12m"),
            (3_600.0, "1h"),
            (270_000.0, "3d 3h"),
            (-1.0, "0s"),
            (f64::NAN, "0s"),
            (f64::INFINITY, "0s"),
        ] {
            assert_eq!(span(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn money_is_shown_in_cents_and_small_sums_with_their_digits() {
        assert_eq!(amount(Some(12.4)), "$12.40");
        assert_eq!(amount(Some(0.000_7)), "$0.0007");
        assert_eq!(rate(Some(0.612)), "$0.61/h");
        assert_eq!(amount(None), "-");
        for odd in [f64::NAN, -1.0] {
            assert_eq!(amount(Some(odd)), "$0.00");
        }
    }

    #[test]
    fn nothing_from_elsewhere_steers_the_terminal() {
        assert_eq!(clean("a\x1b[2Jb\r\nc\u{9b}d"), "a[2Jb cd");
    }

    #[test]
    fn a_shortened_text_says_so() {
        assert_eq!(shorten("abcdef", 6), "abcdef");
        assert_eq!(shorten("abcdefg", 6), "abc...");
        assert_eq!(shorten("abcdefg", 2), "..");
    }
}
