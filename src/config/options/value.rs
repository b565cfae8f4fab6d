//! The value of an option, before it is known whether it is one.

use std::fmt;
use std::time::Duration;

use super::shown;

/// What an option may be set to: see [`Options::set`](super::Options::set). A text, a number, a boolean or a
/// [`Duration`] becomes one by itself.
///
/// Its `Debug` does not show the value, which may be a secret.
#[derive(Clone)]
pub struct OptionValue(pub(super) Raw);

#[derive(Clone, Debug)]
pub(super) enum Raw {
    Text(String),
    Integer(i128),
    Fraction(f64),
    Boolean(bool),
    Time(Duration),
    /// What no option can be, named by its kind.
    Unusable(&'static str),
}

impl Raw {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Integer(_) | Self::Fraction(_) => "a number",
            Self::Boolean(_) => "a boolean",
            Self::Time(_) => "a duration",
            Self::Unusable(kind) => kind,
        }
    }

    /// Whether it is a certificate or a key itself instead of its file's path.
    pub(super) fn is_pem(&self) -> bool {
        matches!(self, Self::Text(text) if text.contains("-----BEGIN"))
    }

    /// For errors. Not to be used for what may be a secret.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Text(text) => format!("\"{}\"", shown(text)),
            Self::Integer(number) => number.to_string(),
            Self::Fraction(number) => number.to_string(),
            Self::Boolean(is) => is.to_string(),
            Self::Time(time) => format!("{time:?}"),
            Self::Unusable(kind) => (*kind).to_owned(),
        }
    }
}

impl fmt::Debug for OptionValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OptionValue({})", self.0.kind())
    }
}

impl From<&str> for OptionValue {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<String> for OptionValue {
    fn from(text: String) -> Self {
        Self(Raw::Text(text))
    }
}

impl From<&String> for OptionValue {
    fn from(text: &String) -> Self {
        text.clone().into()
    }
}

impl From<bool> for OptionValue {
    fn from(is: bool) -> Self {
        Self(Raw::Boolean(is))
    }
}

impl From<Duration> for OptionValue {
    fn from(time: Duration) -> Self {
        Self(Raw::Time(time))
    }
}

impl From<f64> for OptionValue {
    fn from(number: f64) -> Self {
        Self(Raw::Fraction(number))
    }
}

impl From<i128> for OptionValue {
    fn from(number: i128) -> Self {
        Self(Raw::Integer(number))
    }
}

impl From<usize> for OptionValue {
    fn from(number: usize) -> Self {
        // No machine counts further than that.
        i128::try_from(number).unwrap_or(i128::MAX).into()
    }
}

macro_rules! from_integers {
    ($($integer:ty),*) => {
        $(impl From<$integer> for OptionValue {
            fn from(number: $integer) -> Self {
                i128::from(number).into()
            }
        })*
    };
}

from_integers!(u8, u16, u32, u64, i8, i16, i32, i64);
