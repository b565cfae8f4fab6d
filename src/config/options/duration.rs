//! Times as text, by the rules of Go's `time.ParseDuration`, and whole milliseconds.

use std::time::Duration;

pub(super) const NANOS_PER_MILLI: i128 = 1_000_000;

/// The units and how many nanoseconds each has. There are two characters that look like the Greek letter.
const UNITS: [(&str, i128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", NANOS_PER_MILLI),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3_600 * 1_000_000_000),
];

/// How many digits after the point count: what is further behind is less than a nanosecond of an hour.
const DIGITS: usize = 15;

/// The nanoseconds of `1m30s`, `1.5h` or `-1`: a number without a unit is milliseconds, and what is too large is as large as
/// it can be.
pub(super) fn parse(text: &str) -> Option<i128> {
    let (sign, amount) = match text.strip_prefix('-') {
        Some(amount) => (-1, amount),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, rest) = split_digits(amount);
    if rest.is_empty() && !whole.is_empty() {
        return Some(sign * number(whole).saturating_mul(NANOS_PER_MILLI));
    }
    parse_with_units(amount).map(|nanos| sign * nanos)
}

fn parse_with_units(mut text: &str) -> Option<i128> {
    let mut nanos = None;
    while !text.is_empty() {
        let (whole, rest) = split_digits(text);
        let (fraction, rest) = rest.strip_prefix('.').map_or(("", rest), split_digits);
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let unit_ends = rest.find(|c: char| c == '.' || c.is_ascii_digit());
        let (unit, rest) = rest.split_at(unit_ends.unwrap_or(rest.len()));
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let part = number(whole)
            .saturating_mul(*unit)
            .saturating_add(fraction_of(*unit, fraction));
        nanos = Some(nanos.unwrap_or(0_i128).saturating_add(part));
        text = rest;
    }
    nanos
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

fn number(digits: &str) -> i128 {
    // Of digits alone, only too many cannot be read.
    if digits.is_empty() {
        0
    } else {
        digits.parse().unwrap_or(i128::MAX)
    }
}

fn fraction_of(unit: i128, digits: &str) -> i128 {
    let digits = &digits[..digits.len().min(DIGITS)];
    let scale = (0..digits.len()).fold(1, |scale: i128, _| scale * 10);
    number(digits) * unit / scale
}

/// The time of so many nanoseconds, none of which are negative.
pub(super) fn from_nanos(nanos: i128) -> Duration {
    let nanos = nanos.unsigned_abs();
    let (seconds, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    match (u64::try_from(seconds), u32::try_from(rest)) {
        (Ok(seconds), Ok(rest)) => Duration::new(seconds, rest),
        _ => Duration::MAX,
    }
}

/// A time in the largest unit that divides it, as [`parse`] reads it.
pub(super) fn shown(duration: Duration) -> String {
    let nanos = i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX);
    let unit = UNITS.iter().rev().find(|(_, unit)| nanos % unit == 0);
    match unit {
        Some((name, unit)) if nanos != 0 => format!("{}{name}", nanos / unit),
        _ => nanos.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i128 = 1_000_000_000;

    #[test]
    fn times_are_read_as_go_reads_them() {
        for (text, nanos) in [
            ("0", 0),
            ("5s", 5 * SECOND),
            ("30s", 30 * SECOND),
            ("1478s", 1478 * SECOND),
            ("-5s", -5 * SECOND),
            ("+5s", 5 * SECOND),
            ("-0", 0),
            ("+0", 0),
            ("5.0s", 5 * SECOND),
            ("5.6s", 5_600_000_000),
            ("5.s", 5 * SECOND),
            (".5s", 500_000_000),
            ("1.0s", SECOND),
            ("1.004s", 1_004_000_000),
            ("100.00100s", 100_001_000_000),
            ("10ns", 10),
            ("11us", 11_000),
            ("12µs", 12_000),
            ("12μs", 12_000),
            ("13ms", 13 * NANOS_PER_MILLI),
            ("14s", 14 * SECOND),
            ("15m", 900 * SECOND),
            ("16h", 57_600 * SECOND),
            ("3h30m", 12_600 * SECOND),
            ("10.5s4m", 250_500_000_000),
            ("-2m3.4s", -123_400_000_000),
            ("1h2m3s4ms5us6ns", 3_723_004_005_006),
            ("1m30s", 90 * SECOND),
            ("52763797000ns", 52_763_797_000),
            ("0.3333333333333333333h", 1_199_999_999_999),
            ("0.100000000000000000000h", 360 * SECOND),
            ("0.9223372036854775807h", 3_320_413_933_267),
        ] {
            assert_eq!(parse(text), Some(nanos), "{text}");
        }
    }

    #[test]
    fn a_whole_number_is_milliseconds() {
        assert_eq!(parse("200"), Some(200 * NANOS_PER_MILLI));
        assert_eq!(parse("-1"), Some(-NANOS_PER_MILLI));
        assert_eq!(parse("1.5"), None, "which unit that is cannot be known");
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for text in [
            "",
            "-",
            "+",
            "s",
            ".",
            "-.",
            ".s",
            "+.s",
            "3000d",
            "1s ",
            " 1s",
            "1 s",
            "1h 30m",
            "1S",
            "--1s",
            "+-1s",
            "1e3s",
            "1_000ms",
            "\u{660}s",
            "\u{85}\u{85}",
            "\u{ffff}",
            "hello",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn what_is_too_large_stays_large() {
        let long = "9".repeat(1000);
        for text in [long.clone(), format!("{long}h"), format!("{long}.{long}h{long}h")] {
            assert!(parse(&text).unwrap() > i128::MAX / 10, "{text}");
            assert!(parse(&format!("-{text}")).unwrap() < i128::MIN / 10, "{text}");
        }
        assert_eq!(from_nanos(i128::MAX), Duration::MAX);
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        for (nanos, text) in [
            (0, "0"),
            (1, "1ns"),
            (25 * NANOS_PER_MILLI, "25ms"),
            (90 * SECOND, "90s"),
            (300 * SECOND, "5m"),
            (24 * 3600 * SECOND, "24h"),
        ] {
            assert_eq!(shown(from_nanos(nanos)), text);
            assert_eq!(parse(text), Some(nanos));
        }
    }
}
