//! nsqlookupd's answer to `/lookup`.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

/// Where the messages of a topic are: nsqlookupd's answer to `/lookup?topic=...`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lookup {
    /// The channels that any nsqd has for this topic.
    pub channels: Vec<String>,
    /// The nsqds that have the topic.
    pub producers: Vec<LookupProducer>,
    /// How many entries of the answer could not be understood and are left out of `producers`.
    pub malformed: usize,
}

/// One nsqd in an answer of nsqlookupd.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct LookupProducer {
    /// The host name or IP address at which the nsqd says that clients reach it.
    pub broadcast_address: String,
    /// The port of the TCP protocol.
    pub tcp_port: u16,
    /// The port of the HTTP interface.
    #[serde(default)]
    pub http_port: u16,
    /// The host on which the nsqd runs.
    #[serde(default)]
    pub hostname: String,
    /// The nsqd's version.
    #[serde(default)]
    pub version: String,
}

impl LookupProducer {
    /// `host:port` of the TCP protocol, with the brackets that an IPv6 address needs.
    ///
    /// ```
    /// use async_nsq::protocol::parse_lookup;
    ///
    /// let lookup = parse_lookup(br#"{"channels":[],"producers":[{"broadcast_address":"::1","tcp_port":4150}]}"#)?;
    /// assert_eq!(lookup.producers[0].tcp_address(), "[::1]:4150");
    /// # Ok::<(), async_nsq::protocol::LookupError>(())
    /// ```
    #[must_use]
    pub fn tcp_address(&self) -> String {
        let host = &self.broadcast_address;
        if host.contains(':') && !host.starts_with('[') {
            format!("[{host}]:{}", self.tcp_port)
        } else {
            format!("{host}:{}", self.tcp_port)
        }
    }
}

/// Reads the body of nsqlookupd's answer to `/lookup`: the bare object of version 1.0 and later, or the same within
/// the envelope `{"status_code":...,"data":...}` of older ones.
///
/// An entry that names no address is counted in [`Lookup::malformed`] and does not hide the others.
///
/// # Errors
/// [`LookupError`] if the body is not JSON, not an object with a list of producers, or an old envelope that reports a
/// failure.
pub fn parse_lookup(body: &[u8]) -> Result<Lookup, LookupError> {
    let mut value: Value = serde_json::from_slice(body).map_err(LookupError::Json)?;
    if value.get("producers").is_none() {
        value = open_envelope(value)?;
    }
    let Value::Object(mut object) = value else {
        return Err(LookupError::Shape);
    };
    let producers = match object.remove("producers") {
        Some(Value::Array(producers)) => producers,
        Some(Value::Null) => Vec::new(),
        _ => return Err(LookupError::Shape),
    };
    let channels = match object.remove("channels") {
        Some(Value::Array(channels)) => channels,
        _ => Vec::new(),
    };
    let mut lookup = Lookup {
        channels: channels
            .iter()
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect(),
        ..Lookup::default()
    };
    for entry in producers {
        match serde_json::from_value::<LookupProducer>(entry) {
            Ok(producer) if !producer.broadcast_address.is_empty() && producer.tcp_port != 0 => {
                lookup.producers.push(producer);
            }
            _ => lookup.malformed += 1,
        }
    }
    Ok(lookup)
}

fn open_envelope(mut value: Value) -> Result<Value, LookupError> {
    let status = value.get("status_code").and_then(Value::as_u64);
    match status {
        Some(200) => Ok(value.get_mut("data").map(Value::take).unwrap_or_default()),
        Some(_) => {
            let text = value.get("status_txt").and_then(Value::as_str).unwrap_or_default();
            Err(LookupError::Status(text.to_owned()))
        }
        None => Err(LookupError::Shape),
    }
}

/// Why a body is not an answer of nsqlookupd.
#[derive(Debug)]
#[non_exhaustive]
pub enum LookupError {
    /// It is not JSON.
    Json(serde_json::Error),
    /// It is JSON without a list of producers.
    Shape,
    /// It is the old envelope, reporting a failure with this text (`TOPIC_NOT_FOUND`, for one).
    Status(String),
}

impl fmt::Display for LookupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(_) => f.write_str("the answer is not JSON; is this nsqlookupd's HTTP port (4161 by default)?"),
            Self::Shape => f.write_str("the answer is JSON without a list of producers; is this nsqlookupd?"),
            Self::Status(text) => write!(f, "nsqlookupd answered {text:?}"),
        }
    }
}

impl std::error::Error for LookupError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Json(source) => Some(source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRODUCERS: &str = r#"{"channels":["c"],"producers":[{"remote_address":"127.0.0.1:5","hostname":"h","broadcast_address":"nsqd.example","tcp_port":4150,"http_port":4151,"version":"1.3.0"}]}"#;

    #[test]
    fn current_and_old_form_mean_the_same() {
        let bare = parse_lookup(PRODUCERS.as_bytes()).unwrap();
        assert_eq!(bare.channels, ["c"]);
        assert_eq!(bare.producers[0].tcp_address(), "nsqd.example:4150");
        let old = format!(r#"{{"status_code":200,"status_txt":"OK","data":{PRODUCERS}}}"#);
        assert_eq!(parse_lookup(old.as_bytes()).unwrap(), bare);
    }

    #[test]
    fn empty_and_null_lists_are_no_error() {
        assert_eq!(
            parse_lookup(br#"{"channels":[],"producers":[]}"#).unwrap(),
            Lookup::default()
        );
        assert_eq!(
            parse_lookup(br#"{"channels":null,"producers":null}"#).unwrap(),
            Lookup::default()
        );
    }

    #[test]
    fn a_malformed_entry_does_not_hide_the_others() {
        let body = br#"{"producers":[{"tcp_port":1},7,{"broadcast_address":"a","tcp_port":70000},{"broadcast_address":"b","tcp_port":1}]}"#;
        let lookup = parse_lookup(body).unwrap();
        assert_eq!(lookup.malformed, 3);
        assert_eq!(lookup.producers.len(), 1);
    }

    #[test]
    fn anything_else_is_a_typed_error() {
        assert!(matches!(parse_lookup(b"<html>"), Err(LookupError::Json(_))));
        assert!(matches!(parse_lookup(b"[]"), Err(LookupError::Shape)));
        assert!(matches!(parse_lookup(b"{\"producers\":7}"), Err(LookupError::Shape)));
        assert!(matches!(
            parse_lookup(br#"{"status_code":200,"data":7}"#),
            Err(LookupError::Shape)
        ));
        let not_found = parse_lookup(br#"{"status_code":500,"status_txt":"TOPIC_NOT_FOUND","data":null}"#);
        assert!(matches!(not_found, Err(LookupError::Status(text)) if text == "TOPIC_NOT_FOUND"));
    }
}
