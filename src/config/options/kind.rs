//! What an option can be: its type and its range.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::duration;
use super::value::Raw;
use crate::protocol::Secret;

/// A type and a range.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Time {
        least: Duration,
        /// [`Duration::MAX`] is no limit.
        most: Duration,
        special: Option<Special>,
    },
    Integer {
        least: i64,
        /// [`i64::MAX`] is no limit.
        most: i64,
        special: Option<Special>,
    },
    /// From 0 to 1.
    Fraction,
    Boolean,
    Text,
    /// The path of a file.
    File,
    Secret,
    /// One of these words.
    Word(&'static [&'static str]),
    /// An address of this host: IP and port.
    Address,
}

/// A number out of the range that has a meaning of its own; for times, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Special {
    pub(super) value: i64,
    pub(super) meaning: &'static str,
}

/// A value of the option's type and within its range.
#[derive(Clone, PartialEq)]
pub(super) enum Checked {
    /// `None` for -1.
    Time(Option<Duration>),
    Integer(i64),
    Fraction(f64),
    Boolean(bool),
    Text(String),
    File(PathBuf),
    Secret(Secret),
    Word(&'static str),
    /// `None` for an empty text.
    Address(Option<SocketAddr>),
}

impl Kind {
    /// The value, if it is one of this kind. Numbers and booleans may come as text: flags and variables have nothing else.
    pub(super) fn check(&self, raw: &Raw) -> Option<Checked> {
        match *self {
            Self::Time { least, most, special } => time(raw, least, most, special).map(Checked::Time),
            Self::Integer { least, most, special } => {
                let number = i64::try_from(integer(raw)?).ok()?;
                let is_special = special.is_some_and(|special| special.value == number);
                (is_special || (least..=most).contains(&number)).then_some(Checked::Integer(number))
            }
            Self::Fraction => {
                let number = fraction(raw)?;
                (0.0..=1.0).contains(&number).then_some(Checked::Fraction(number))
            }
            Self::Boolean => boolean(raw).map(Checked::Boolean),
            Self::Text => match raw {
                Raw::Text(text) => Some(Checked::Text(text.clone())),
                Raw::Integer(number) => Some(Checked::Text(number.to_string())),
                _ => None,
            },
            Self::File => match raw {
                Raw::Text(path) if !path.is_empty() && !raw.is_pem() => Some(Checked::File(path.into())),
                _ => None,
            },
            Self::Secret => match raw {
                // A number may have lost zeros at its beginning.
                Raw::Text(secret) => Some(Checked::Secret(secret.into())),
                _ => None,
            },
            Self::Word(words) => match raw {
                Raw::Text(text) => words.iter().find(|word| *word == text).map(|word| Checked::Word(word)),
                _ => None,
            },
            Self::Address => match raw {
                Raw::Text(address) if address.is_empty() => Some(Checked::Address(None)),
                Raw::Text(address) => address.parse().ok().map(|address| Checked::Address(Some(address))),
                _ => None,
            },
        }
    }

    /// What is allowed, in a few words.
    pub(super) fn range(&self) -> String {
        let with = |range: String, special: Option<Special>| match special {
            Some(Special { value, meaning }) => format!("{range}, or {value} for {meaning}"),
            None => range,
        };
        match *self {
            Self::Time { least, most, special } if most == Duration::MAX => {
                with(format!("{} or more", duration::shown(least)), special)
            }
            Self::Time { least, most, special } => with(
                format!("{} to {}", duration::shown(least), duration::shown(most)),
                special,
            ),
            Self::Integer { least, most, special } if most == i64::MAX => with(format!("{least} or more"), special),
            Self::Integer { least, most, special } => with(format!("{least} to {most}"), special),
            Self::Fraction => "0 to 1".to_owned(),
            Self::Boolean => "true or false".to_owned(),
            Self::Text => "a text".to_owned(),
            Self::File => "the path of a file".to_owned(),
            Self::Secret => "a text".to_owned(),
            Self::Word(words) => {
                let words: Vec<_> = words.iter().copied().filter(|word| !word.is_empty()).collect();
                words.join(", ")
            }
            Self::Address => "an IP address and a port, as in 10.0.0.7:0".to_owned(),
        }
    }

    /// What is allowed, for errors.
    pub(super) fn allowed(&self) -> String {
        let range = self.range();
        match self {
            Self::Time { .. } => format!("{range}, written as 1m30s or as a number of milliseconds"),
            Self::Word(_) => format!("one of {range}"),
            _ => range,
        }
    }
}

/// As go-nsq: whole numbers are milliseconds.
fn time(raw: &Raw, least: Duration, most: Duration, special: Option<Special>) -> Option<Option<Duration>> {
    let nanos = match raw {
        Raw::Text(text) => duration::parse(text)?,
        Raw::Time(time) => i128::try_from(time.as_nanos()).unwrap_or(i128::MAX),
        number => integer(number)?.saturating_mul(duration::NANOS_PER_MILLI),
    };
    let special = special.map(|special| i128::from(special.value) * duration::NANOS_PER_MILLI);
    if special == Some(nanos) {
        return Some((nanos >= 0).then(|| duration::from_nanos(nanos)));
    }
    let time = duration::from_nanos(nanos);
    (nanos >= 0 && (least..=most).contains(&time)).then_some(Some(time))
}

fn integer(raw: &Raw) -> Option<i128> {
    /// Up to here, each whole number is a number of its own.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match raw {
        Raw::Text(text) => text.parse().ok(),
        Raw::Integer(number) => Some(*number),
        // Some programs write 1048576 as 1.048576e+06.
        Raw::Fraction(number) if number.fract() == 0.0 && number.abs() <= EXACT => Some(*number as i128),
        _ => None,
    }
}

fn fraction(raw: &Raw) -> Option<f64> {
    match raw {
        Raw::Text(text) => text.parse().ok(),
        Raw::Integer(number) => Some(*number as f64),
        Raw::Fraction(number) => Some(*number),
        _ => None,
    }
}

/// As Go's `strconv.ParseBool`, and numbers: all but 0 is true.
fn boolean(raw: &Raw) -> Option<bool> {
    match raw {
        Raw::Boolean(is) => Some(*is),
        Raw::Integer(number) => Some(*number != 0),
        Raw::Text(text) => match text.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// What the rows of the table take out. `None` is what another kind has, which the tests would find.
impl Checked {
    pub(super) fn time(&self) -> Option<Duration> {
        self.time_or_off().flatten()
    }

    pub(super) fn time_or_off(&self) -> Option<Option<Duration>> {
        match self {
            Self::Time(time) => Some(*time),
            _ => None,
        }
    }

    /// A number that does not fit, as on 32-bit systems one might, is as large as it can be.
    pub(super) fn size(&self) -> Option<usize> {
        Some(usize::try_from(self.integer::<i64>()?).unwrap_or(usize::MAX))
    }

    pub(super) fn integer<T: TryFrom<i64>>(&self) -> Option<T> {
        match self {
            Self::Integer(number) => T::try_from(*number).ok(),
            _ => None,
        }
    }

    pub(super) fn fraction(&self) -> Option<f64> {
        match self {
            Self::Fraction(number) => Some(*number),
            _ => None,
        }
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        match self {
            Self::Boolean(is) => Some(*is),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    pub(super) fn file(&self) -> Option<PathBuf> {
        match self {
            Self::File(path) => Some(path.clone()),
            _ => None,
        }
    }

    pub(super) fn secret(&self) -> Option<Secret> {
        match self {
            Self::Secret(secret) => Some(secret.clone()),
            _ => None,
        }
    }

    pub(super) fn is_word(&self, word: &str) -> Option<bool> {
        match self {
            Self::Word(given) => Some(*given == word),
            _ => None,
        }
    }

    pub(super) fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Address(address) => *address,
            _ => None,
        }
    }
}

/// The value alone; a secret's type does not show it.
impl fmt::Debug for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(Some(time)) => f.write_str(&duration::shown(*time)),
            Self::Time(None) => f.write_str("-1"),
            Self::Integer(number) => number.fmt(f),
            Self::Fraction(number) => number.fmt(f),
            Self::Boolean(is) => is.fmt(f),
            Self::Text(text) => text.fmt(f),
            Self::File(path) => path.fmt(f),
            Self::Secret(secret) => secret.fmt(f),
            Self::Word(word) => word.fmt(f),
            Self::Address(Some(address)) => address.fmt(f),
            Self::Address(None) => f.write_str("\"\""),
        }
    }
}
