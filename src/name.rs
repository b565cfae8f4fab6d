//! Names of topics and channels, checked once.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use crate::error::{Error, Result};

/// The longest name in bytes, `#ephemeral` included.
const MAX_LEN: usize = 64;
const EPHEMERAL: &str = "#ephemeral";

/// A checked name, held in place: a copy costs no allocation and no shared counter, which is why a publish can carry
/// its topic through the pipeline for free.
#[derive(Clone, Copy)]
struct Name {
    len: u8,
    bytes: [u8; MAX_LEN],
}

impl Name {
    fn new(what: &str, name: &str) -> Result<Self> {
        let base = name.strip_suffix(EPHEMERAL).unwrap_or(name);
        let well_formed = !base.is_empty()
            && name.len() <= MAX_LEN
            && base
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if !well_formed {
            return Err(Error::invalid(format!(
                "{what} name {name:?} is not valid: 1 to {MAX_LEN} characters of a-z A-Z 0-9 . _ - are allowed, \
                 optionally ending in {EPHEMERAL}"
            )));
        }
        let mut bytes = [0; MAX_LEN];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Ok(Self {
            len: name.len() as u8,
            bytes,
        })
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    fn as_str(&self) -> &str {
        // `new` let only ASCII in.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $type(Name);

        impl $type {
            /// Checks the name.
            ///
            /// # Errors
            /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) unless the name is 1 to 64 characters of
            /// `a-z A-Z 0-9 . _ -`, optionally ending in `#ephemeral` (which counts toward the 64).
            pub fn new(name: impl AsRef<str>) -> Result<Self> {
                Name::new($what, name.as_ref()).map(Self)
            }

            /// The name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }

            pub(crate) fn as_bytes(&self) -> &[u8] {
                self.0.as_bytes()
            }

            /// Whether the name ends in `#ephemeral`: nsqd keeps such a topic or channel in memory only and deletes
            /// it with its last channel or consumer.
            #[must_use]
            pub fn is_ephemeral(&self) -> bool {
                self.as_str().ends_with(EPHEMERAL)
            }
        }

        impl PartialEq for $type {
            fn eq(&self, other: &Self) -> bool {
                self.as_bytes() == other.as_bytes()
            }
        }

        impl Eq for $type {}

        impl PartialOrd for $type {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Ord for $type {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                self.as_bytes().cmp(other.as_bytes())
            }
        }

        impl Hash for $type {
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.as_bytes().hash(state);
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl FromStr for $type {
            type Err = Error;

            fn from_str(name: &str) -> Result<Self> {
                Self::new(name)
            }
        }

        impl TryFrom<&str> for $type {
            type Error = Error;

            fn try_from(name: &str) -> Result<Self> {
                Self::new(name)
            }
        }

        impl TryFrom<String> for $type {
            type Error = Error;

            fn try_from(name: String) -> Result<Self> {
                Self::new(name)
            }
        }

        impl TryFrom<&String> for $type {
            type Error = Error;

            fn try_from(name: &String) -> Result<Self> {
                Self::new(name)
            }
        }

        impl From<&$type> for $type {
            fn from(name: &$type) -> Self {
                name.clone()
            }
        }
    };
}

name_type! {
    /// The name of a topic: what messages are published to.
    ///
    /// Every method that takes a topic also takes a string and checks it; make a `Topic` once to check it once.
    ///
    /// ```
    /// use async_nsq::Topic;
    ///
    /// let topic = Topic::new("orders.eu-west")?;
    /// assert_eq!(topic.as_str(), "orders.eu-west");
    /// assert!(Topic::new("orders#ephemeral")?.is_ephemeral());
    /// assert!(Topic::new("orders/eu").is_err());
    /// # Ok::<(), async_nsq::Error>(())
    /// ```
    Topic, "topic"
}

name_type! {
    /// The name of a channel: every channel of a topic gets its own copy of each message, and the consumers of one
    /// channel share its messages.
    ///
    /// ```
    /// use async_nsq::Channel;
    ///
    /// assert_eq!(Channel::new("billing")?.as_str(), "billing");
    /// assert!(Channel::new("").is_err());
    /// # Ok::<(), async_nsq::Error>(())
    /// ```
    Channel, "channel"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn names_follow_nsqds_rule() {
        let longest = "a".repeat(64);
        let longest_ephemeral = format!("{}#ephemeral", "a".repeat(54));
        for good in ["a", "a.b_C-9", "a#ephemeral", &longest, &longest_ephemeral] {
            assert_eq!(Topic::new(good).unwrap().as_str(), good);
        }
        let too_long = "a".repeat(65);
        let too_long_ephemeral = format!("{}#ephemeral", "a".repeat(55));
        for bad in [
            "",
            "#ephemeral",
            "a b",
            "a\n",
            "a#",
            "a#ephemeral#ephemeral",
            "a#ephemeralx",
            "\u{e4}",
            "a/b",
            &too_long,
            &too_long_ephemeral,
        ] {
            assert_eq!(Channel::new(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn the_error_shows_the_name_and_what_is_allowed() {
        let text = Topic::new("bad name\n").unwrap_err().to_string();
        assert!(text.contains("\"bad name\\n\"") && text.contains("1 to 64"), "{text}");
    }
}
