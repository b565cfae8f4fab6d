//! Values of flags as Go programs take them.

use std::fmt;
use std::time::Duration;

/// A flag that nsqd or nsqlookupd does not know, or a value that does not fit it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlagError {
    text: String,
}

impl FlagError {
    pub(in crate::test_server) fn unknown(name: &str) -> Self {
        Self {
            text: format!("unknown flag -{name}"),
        }
    }

    pub(in crate::test_server) fn value(name: &str, value: &str, allowed: impl fmt::Display) -> Self {
        Self {
            text: format!("flag -{name} is {value:?}, allowed is {allowed}"),
        }
    }
}

impl fmt::Display for FlagError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for FlagError {}

/// A duration as Go reads it: `90s`, `1m30s`, `1.5h`, `0`.
pub(in crate::test_server) fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut sum = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let number_len = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .filter(|len| *len > 0)?;
        let number: f64 = rest[..number_len].parse().ok()?;
        rest = &rest[number_len..];
        let unit_len = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let seconds = match &rest[..unit_len] {
            "ns" => 1e-9,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        sum = sum.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[unit_len..];
    }
    Some(sum)
}

/// A truth value as Go reads it.
pub(in crate::test_server) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_go() {
        for (text, ms) in [
            ("0", 0),
            ("250ms", 250),
            ("60s", 60_000),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            ("+2s", 2_000),
            ("1h0m0.5s", 3_600_500),
        ] {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "1", "s", "1x", "-1s", "1s ", "1 s", ".s", "1.2.3s"] {
            assert_eq!(parse_duration(text), None, "{text:?}");
        }
    }

    #[test]
    fn truth_reads_as_in_go() {
        assert_eq!(parse_bool("T"), Some(true));
        assert_eq!(parse_bool("0"), Some(false));
        assert_eq!(parse_bool("yes"), None);
    }
}
