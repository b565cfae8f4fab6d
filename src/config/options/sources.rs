//! Where options come from: the environment, and whatever serde reads.

use std::env;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::value::{OptionValue, Raw};
use super::{Options, invalid, shown};
use crate::error::{Error, Result};

/// What serde_json calls a number that it keeps as text, where a crate in the program has turned on its feature
/// `arbitrary_precision`.
const NUMBER_AS_TEXT: &str = "$serde_json::private::Number";

impl Options {
    /// The options in the variables of the environment whose names begin with `prefix`: after it comes the option's name, in
    /// capitals, as in `NSQ_MAX_IN_FLIGHT=200`.
    ///
    /// The prefix must be for options alone: a variable that is none is an error, so that slips are found. Kubernetes sets
    /// `NSQ_SERVICE_HOST` and others in the pods of a namespace that has a service called `nsq`; `BILLING_NSQ_` is a prefix that
    /// is nobody else's. An empty variable is not the same as none.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid), as from [`set`](Self::set), with the variable's name; if two variables
    /// mean the same option; for an empty prefix.
    pub fn from_env(prefix: &str) -> Result<Self> {
        let mut ours = Vec::new();
        for (name, value) in env::vars_os() {
            let name = name.to_string_lossy();
            if !name.starts_with(prefix) {
                continue;
            }
            let Ok(value) = value.into_string() else {
                return Err(invalid(format!("variable {} is no text in UTF-8", shown(&name))));
            };
            ours.push((name.into_owned(), value));
        }
        Self::from_vars(prefix, ours)
    }

    /// As [`from_env`](Self::from_env), with these variables instead of the environment's.
    ///
    /// ```
    /// use async_nsq::Options;
    ///
    /// let vars = [("PATH", "/bin"), ("NSQ_MAX_IN_FLIGHT", "200"), ("NSQ_TLS_V1", "true")];
    /// let options = Options::from_vars("NSQ_", vars)?;
    /// assert_eq!(format!("{options:?}"), "Options { max_in_flight: 200, tls_v1: true }");
    ///
    /// let error = Options::from_vars("NSQ_", [("NSQ_MAX_INFLIGHT", "200")]).unwrap_err();
    /// assert_eq!(
    ///     error.to_string(),
    ///     "configuration: variable NSQ_MAX_INFLIGHT: there is no option \"max_inflight\"; did you mean max_in_flight?"
    /// );
    /// # Ok::<(), async_nsq::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    pub fn from_vars<N, V>(prefix: &str, vars: impl IntoIterator<Item = (N, V)>) -> Result<Self>
    where
        N: AsRef<str>,
        V: Into<String>,
    {
        if prefix.is_empty() {
            // Each variable of the environment would have to be an option.
            return Err(Error::option(
                "prefix",
                "empty",
                "how the names of variables begin, as in NSQ_",
            ));
        }
        let mut options = Self::new();
        for (name, value) in vars {
            let Some(option) = name.as_ref().strip_prefix(prefix) else {
                continue;
            };
            options
                .add(&option.to_ascii_lowercase(), &Raw::Text(value.into()))
                .map_err(|error| error.found_in(format_args!("variable {}", shown(name.as_ref()))))?;
        }
        Ok(options)
    }
}

impl<'de> Deserialize<'de> for Options {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Options;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from names of NSQ options to their values")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Options, M::Error> {
                let mut options = Options::new();
                while let Some(name) = map.next_key::<String>()? {
                    let value: OptionValue = map.next_value()?;
                    options.add(&name, &value.0).map_err(M::Error::custom)?;
                }
                Ok(options)
            }
        }
        source.deserialize_map(All)
    }
}

/// Takes whatever comes, so that an error can name the option and what it can be.
impl<'de> Deserialize<'de> for OptionValue {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = OptionValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a number or a boolean")
            }

            fn visit_bool<E>(self, is: bool) -> Result<OptionValue, E> {
                Ok(is.into())
            }

            fn visit_i64<E>(self, number: i64) -> Result<OptionValue, E> {
                Ok(number.into())
            }

            fn visit_u64<E>(self, number: u64) -> Result<OptionValue, E> {
                Ok(number.into())
            }

            fn visit_i128<E>(self, number: i128) -> Result<OptionValue, E> {
                Ok(number.into())
            }

            fn visit_f64<E>(self, number: f64) -> Result<OptionValue, E> {
                Ok(number.into())
            }

            fn visit_str<E>(self, text: &str) -> Result<OptionValue, E> {
                Ok(text.into())
            }

            fn visit_unit<E>(self) -> Result<OptionValue, E> {
                Ok(OptionValue(Raw::Unusable("null")))
            }

            fn visit_none<E>(self) -> Result<OptionValue, E> {
                Ok(OptionValue(Raw::Unusable("null")))
            }

            fn visit_some<D: Deserializer<'de>>(self, source: D) -> Result<OptionValue, D::Error> {
                source.deserialize_any(self)
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<OptionValue, S::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(OptionValue(Raw::Unusable("a list")))
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<OptionValue, M::Error> {
                while let Some(key) = map.next_key::<String>()? {
                    if key == NUMBER_AS_TEXT {
                        return map.next_value::<String>().map(Into::into);
                    }
                    map.next_value::<IgnoredAny>()?;
                }
                Ok(OptionValue(Raw::Unusable("a map")))
            }
        }
        source.deserialize_any(Any)
    }
}
