//! nsqlookupd's answers to `/lookup` and `/topics`.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// Where the messages of a topic are: nsqlookupd's answer to `/lookup?topic=...`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
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
#[non_exhaustive]
pub struct LookupProducer {
    /// The host name or IP address at which the nsqd says that clients reach it.
    pub broadcast_address: String,
    /// The address and port from which the nsqd talks to nsqlookupd, as the latter sees it.
    #[serde(default)]
    pub remote_address: String,
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
    let answer = unwrap(body, |answer| answer.producers.is_some())?;
    answer.read()
}

/// The topics that nsqlookupd knows: its answer to `/topics`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LookupTopics {
    /// The names of the topics, not checked.
    pub topics: Vec<String>,
    /// How many entries of the answer are no text and are left out of `topics`.
    pub malformed: usize,
}

/// Reads the body of nsqlookupd's answer to `/topics`, in either form, as [`parse_lookup`] does.
///
/// ```
/// use async_nsq::protocol::parse_topics;
///
/// let answer = parse_topics(br#"{"topics":["orders","invoices"]}"#)?;
/// assert_eq!(answer.topics, ["orders", "invoices"]);
/// # Ok::<(), async_nsq::protocol::LookupError>(())
/// ```
///
/// # Errors
/// [`LookupError`] if the body is not JSON, not an object with a list of topics, or an old envelope that reports a
/// failure.
pub fn parse_topics(body: &[u8]) -> Result<LookupTopics, LookupError> {
    let answer = unwrap(body, |answer| answer.topics.is_some())?;
    let mut topics = LookupTopics::default();
    for entry in entries(answer.topics.ok_or(LookupError::Shape)?)? {
        match serde_json::from_str(entry.get()) {
            Ok(name) => topics.topics.push(name),
            Err(_) => topics.malformed += 1,
        }
    }
    Ok(topics)
}

/// What the body means, without the envelope of old versions; `complete` tells whether there is none.
fn unwrap(body: &[u8], complete: impl Fn(&Answer<'_>) -> bool) -> Result<Answer<'_>, LookupError> {
    let answer: Answer<'_> = parse(body)?;
    if complete(&answer) {
        return Ok(answer);
    }
    match (answer.status_code, answer.data) {
        (Some(200), Some(data)) => parse(data.get().as_bytes()),
        (Some(200) | None, _) => Err(LookupError::Shape),
        (Some(_), _) => Err(LookupError::Status(answer.status_txt.unwrap_or_default().into_owned())),
    }
}

/// Either form of the answer. Lists stay unread text until each entry is looked at by itself: a tree of all of them
/// would take a hundred times the body's size, which is the peer's choice.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(default, borrow, deserialize_with = "present")]
    producers: Option<&'a RawValue>,
    #[serde(borrow)]
    channels: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    topics: Option<&'a RawValue>,
    status_code: Option<u64>,
    #[serde(borrow)]
    status_txt: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

impl Answer<'_> {
    fn read(self) -> Result<Lookup, LookupError> {
        let mut lookup = Lookup::default();
        let Some(producers) = self.producers else {
            return Err(LookupError::Shape);
        };
        for entry in entries(producers)? {
            match serde_json::from_str::<LookupProducer>(entry.get()) {
                Ok(producer) if !producer.broadcast_address.is_empty() && producer.tcp_port != 0 => {
                    lookup.producers.push(producer);
                }
                _ => lookup.malformed += 1,
            }
        }
        if let Some(channels) = self.channels {
            let names = entries(channels)?.into_iter();
            lookup.channels = names.filter_map(|name| serde_json::from_str(name.get()).ok()).collect();
        }
        Ok(lookup)
    }
}

/// Keeps `null` apart from a field that is not there.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(value: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(value).map(Some)
}

fn parse<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, LookupError> {
    // serde would also take an array for a struct.
    let is_object = text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    match serde_json::from_slice(text) {
        Ok(value) if is_object => Ok(value),
        Err(error) if error.is_syntax() || error.is_eof() => Err(LookupError::Json(error)),
        _ => Err(LookupError::Shape),
    }
}

/// The entries of a list; Go writes an empty one as `null`, too.
fn entries(list: &RawValue) -> Result<Vec<&RawValue>, LookupError> {
    let entries: Option<Vec<&RawValue>> = serde_json::from_str(list.get()).map_err(|_| LookupError::Shape)?;
    Ok(entries.unwrap_or_default())
}

/// Why a body is not an answer of nsqlookupd.
#[derive(Debug)]
#[non_exhaustive]
pub enum LookupError {
    /// It is not JSON.
    Json(serde_json::Error),
    /// It is JSON without the list that was asked for.
    Shape,
    /// It is the old envelope, reporting a failure with this text (`TOPIC_NOT_FOUND`, for one).
    Status(String),
}

impl fmt::Display for LookupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(_) => f.write_str("the answer is not JSON; is this nsqlookupd's HTTP port (4161 by default)?"),
            Self::Shape => f.write_str("the answer is JSON without the list that was asked for; is this nsqlookupd?"),
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
    fn topics_are_read_in_both_forms_and_one_bad_entry_hides_no_other() {
        let bare = parse_topics(br#"{"topics":["a",7,"b\u002ec",null]}"#).unwrap();
        assert_eq!(bare.topics, ["a", "b.c"]);
        assert_eq!(bare.malformed, 2);
        let old = br#"{"status_code":200,"status_txt":"OK","data":{"topics":["a",7,"b.c",null]}}"#;
        assert_eq!(parse_topics(old).unwrap(), bare);
        for empty in [&br#"{"topics":[]}"#[..], br#"{"topics":null}"#] {
            assert_eq!(parse_topics(empty).unwrap(), LookupTopics::default());
        }
        for other in [
            &br#"{"producers":[]}"#[..],
            br#"{"topics":{}}"#,
            br#"{"status_code":200,"data":{}}"#,
        ] {
            assert!(matches!(parse_topics(other), Err(LookupError::Shape)));
        }
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
