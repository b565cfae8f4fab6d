//! Options by name, for what is configured from outside: flags, files, variables of the environment.

mod connection;
mod duration;
mod kind;
mod nearest;
mod sources;
mod table;
#[cfg(test)]
pub(crate) mod tests;
mod value;
mod values;

use std::collections::BTreeMap;
use std::fmt;

use self::kind::{Checked, Kind};
pub use self::value::OptionValue;
use self::value::Raw;
use self::values::{ConnectionValues, TlsValues};
pub(crate) use self::values::{ConsumerValues, DiscoveryValues, ProducerValues, Values, put};
use crate::error::{Error, ErrorKind, Result, Step};

/// Longer names and values are cut off in errors.
const LONGEST_SHOWN: usize = 100;

/// Options of producers and consumers by name, to be set from flags, configuration files and variables of the environment.
///
/// The names, the rules of parsing and the ranges are those of go-nsq's `Config`, so that what configures a program in Go
/// configures one in Rust. A value is checked when it is set; what is wrong is an [`ErrorKind::Invalid`] that names the
/// option, the value and what is allowed, and for a name that does not exist, the one that was probably meant.
///
/// ```
/// use async_nsq::{Consumer, Options, Producer};
///
/// let mut options = Options::new();
/// options.set("max_in_flight", 500)?;
/// options.set("msg-timeout", "1m30s")?;
///
/// let error = options.set("max_attempts", "many").unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "configuration: option max_attempts is \"many\", allowed is 0 to 65535"
/// );
///
/// let consumer = Consumer::builder("orders", "billing").options(&options);
/// let producer = Producer::builder().options(&options); // max_in_flight does not concern it
/// # let _ = (consumer, producer);
/// # Ok::<(), async_nsq::Error>(())
/// ```
///
/// # From a file
/// It is a map for [`serde`](serde::Deserialize), whose values are texts, numbers or booleans. A name that does not exist or
/// comes twice is an error.
///
/// ```
/// use async_nsq::Options;
///
/// #[derive(serde::Deserialize)]
/// struct Settings {
///     topic: String,
///     nsq: Options,
/// }
///
/// let settings: Settings = serde_json::from_str(
///     r#"{"topic": "orders", "nsq": {"max_in_flight": 500, "msg_timeout": "90s", "snappy": true}}"#,
/// )?;
/// # let _ = (settings.topic, settings.nsq);
/// # Ok::<(), serde_json::Error>(())
/// ```
///
/// # From the environment
/// See [`from_env`](Self::from_env). Where some come from a file and some from the environment, [`merge`](Self::merge) puts
/// them together.
///
/// # How values are written
/// | type | as text | otherwise |
/// | --- | --- | --- |
/// | time | `1m30s`, `1.5h`, `250ms`: units `ns`, `us`, `ms`, `s`, `m`, `h`; a number without one is milliseconds | a whole number of milliseconds, a [`Duration`](std::time::Duration) |
/// | number | `200` | `200` |
/// | yes or no | `1`, `t`, `T`, `true`, `TRUE`, `True`; `0`, `f`, `F`, `false`, `FALSE`, `False` | `true`, `false`; of numbers, all but 0 is `true` |
/// | text | as it is | a whole number, but not for secrets |
///
/// Names are in small letters, and `-` is as good as `_`.
///
/// # The options
/// What is *for* consumers is ignored by producers and the other way round, as in go-nsq. The setter of the same
/// name, or of one much like it, tells more of each: of [`ConsumerBuilder`](crate::ConsumerBuilder), [`ProducerBuilder`](crate::ProducerBuilder),
/// [`ConnectionConfig`](crate::ConnectionConfig) or [`TlsConfig`](crate::TlsConfig). What depends on other options, or on files, is
/// checked when a producer connects or a consumer starts.
///
#[doc = include_str!("table.md")]
///
/// go-nsq's `tls_config` cannot be written as text: see [`TlsConfig::rustls`](crate::TlsConfig::rustls).
#[derive(Clone, Default, PartialEq)]
pub struct Options {
    given: BTreeMap<&'static str, Checked>,
    skip_verify_allowed: bool,
}

impl Options {
    /// No option is set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets an option. One that was set before is replaced.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if there is no option of this name, or the value is not of its type or out of its range. The
    /// option stays as it was. A secret is not shown.
    pub fn set(&mut self, name: &str, value: impl Into<OptionValue>) -> Result<()> {
        let (name, checked) = check(name, &value.into().0)?;
        self.given.insert(name, checked);
        Ok(())
    }

    /// Sets what `other` has set, also where it was set before.
    ///
    /// ```
    /// use async_nsq::Options;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut options: Options = serde_json::from_str(r#"{"max_in_flight": 500, "tls_v1": true}"#)?;
    /// options.merge(&Options::from_vars("NSQ_", [("NSQ_MAX_IN_FLIGHT", "50")])?);
    /// assert_eq!(format!("{options:?}"), "Options { max_in_flight: 50, tls_v1: true }");
    /// # Ok(())
    /// # }
    /// ```
    pub fn merge(&mut self, other: &Self) {
        let theirs = other.given.iter().map(|(name, value)| (*name, value.clone()));
        self.given.extend(theirs);
        self.skip_verify_allowed |= other.skip_verify_allowed;
    }

    /// What makes options unsafe.
    pub fn dangerous(self) -> DangerousOptions {
        DangerousOptions(self)
    }

    /// As [`set`](Self::set), where a name may come once.
    fn add(&mut self, name: &str, value: &Raw) -> Result<()> {
        let (name, checked) = check(name, value)?;
        if self.given.insert(name, checked).is_some() {
            let message = format!("option {name} is given twice, with different spellings or in different places");
            return Err(invalid(message));
        }
        Ok(())
    }

    /// The options in the types of their setters.
    pub(crate) fn values(&self) -> Values {
        let mut values = Values::default();
        for definition in table::ALL {
            if let Some(checked) = self.given.get(definition.name) {
                (definition.store)(&mut values, checked);
            }
        }
        values.tls.skip_verify_allowed = self.skip_verify_allowed;
        values
    }
}

/// Secrets are not shown: their type does not.
impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Options");
        for (name, value) in &self.given {
            out.field(name, value);
        }
        out.finish()
    }
}

/// What makes options unsafe: see [`Options::dangerous`].
#[derive(Clone, Debug)]
#[must_use = "it does nothing by itself"]
pub struct DangerousOptions(Options);

impl DangerousOptions {
    /// Lets `tls_insecure_skip_verify` be `true`, so that whoever writes the configuration may decide that certificates are
    /// not looked at. Then anybody on the way can be the other end of a connection, and read what is sent, secrets included.
    ///
    /// ```
    /// use async_nsq::Options;
    ///
    /// # fn main() -> Result<(), async_nsq::Error> {
    /// let options = Options::from_env("BILLING_NSQ_")?.dangerous().allow_skip_verify();
    /// # let _ = options;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn allow_skip_verify(mut self) -> Options {
        self.0.skip_verify_allowed = true;
        self.0
    }
}

/// The option's name as we write it, and its value.
fn check(name: &str, value: &Raw) -> Result<(&'static str, Checked)> {
    let Some(definition) = table::find(name) else {
        return Err(unknown(name));
    };
    match definition.kind.check(value) {
        Some(checked) => Ok((definition.name, checked)),
        None => Err(Error::option(
            definition.name,
            match definition.kind {
                Kind::Secret => format!("{} (not shown)", value.kind()),
                Kind::File if value.is_pem() => "PEM itself (not shown)".to_owned(),
                _ => value.shown(),
            },
            &definition.kind.allowed(),
        )),
    }
}

/// The value is not told: it may be a secret whose option is misspelt.
fn unknown(name: &str) -> Error {
    let given = shown(name);
    if name.replace('-', "_") == "tls_config" {
        let message = format!("option {given} cannot be written as text; give it with TlsConfig::rustls");
        return invalid(message);
    }
    invalid(
        match nearest::nearest(name, table::ALL.iter().map(|definition| definition.name)) {
            Some(meant) => format!("there is no option \"{given}\"; did you mean {meant}?"),
            None => {
                format!("there is no option \"{given}\"; those that exist are listed in the docs of async_nsq::Options")
            }
        },
    )
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::Invalid, Step::Configure, message)
}

/// On one line, and not without end.
fn shown(text: &str) -> String {
    let mut characters = text.chars();
    let mut shown: String = characters
        .by_ref()
        .take(LONGEST_SHOWN)
        .flat_map(char::escape_debug)
        .collect();
    if !characters.as_str().is_empty() {
        shown.push_str("...");
    }
    shown
}
