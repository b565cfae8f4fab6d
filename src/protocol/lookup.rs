//! nsqlookupd's answers to `/lookup`, `/topics` and `/nodes`.

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
    /// The region in which the nsqd runs, if it says so. nsqd and nsqlookupd up to 1.3.0 do not.
    #[serde(default, deserialize_with = "said")]
    pub topology_region: Option<String>,
    /// The zone within the region in which the nsqd runs, if it says so.
    #[serde(default, deserialize_with = "said")]
    pub topology_zone: Option<String>,
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

/// The nsqds that nsqlookupd knows: its answer to `/nodes`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LookupNodes {
    /// The nsqds, whatever topics they have, and also if they have none.
    pub nodes: Vec<LookupProducer>,
    /// How many entries of the answer could not be understood and are left out of `nodes`.
    pub malformed: usize,
}

/// Reads the body of nsqlookupd's answer to `/nodes`, in either form, as [`parse_lookup`] does. Each nsqd's topics and
/// tombstones, which are in the answer as well, are left out.
///
/// ```
/// use async_nsq::protocol::parse_nodes;
///
/// let body = br#"{"producers":[{"broadcast_address":"a","tcp_port":4150,"tombstones":[false],"topics":["orders"]}]}"#;
/// assert_eq!(parse_nodes(body)?.nodes[0].tcp_address(), "a:4150");
/// # Ok::<(), async_nsq::protocol::LookupError>(())
/// ```
///
/// # Errors
/// [`LookupError`] if the body is not JSON, not an object with a list of producers, or an old envelope that reports a
/// failure.
pub fn parse_nodes(body: &[u8]) -> Result<LookupNodes, LookupError> {
    let answer = unwrap(body, |answer| answer.producers.is_some())?;
    let (nodes, malformed) = answer.read_producers()?;
    Ok(LookupNodes { nodes, malformed })
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
        let (producers, malformed) = self.read_producers()?;
        let mut lookup = Lookup {
            channels: Vec::new(),
            producers,
            malformed,
        };
        if let Some(channels) = self.channels {
            let names = entries(channels)?.into_iter();
            lookup.channels = names.filter_map(|name| serde_json::from_str(name.get()).ok()).collect();
        }
        Ok(lookup)
    }

    /// The nsqds, and how many entries are none.
    fn read_producers(&self) -> Result<(Vec<LookupProducer>, usize), LookupError> {
        let entries = entries(self.producers.ok_or(LookupError::Shape)?)?;
        let total = entries.len();
        let read = entries.into_iter().filter_map(|entry| {
            let producer = serde_json::from_str::<LookupProducer>(entry.get()).ok()?;
            (!producer.broadcast_address.is_empty() && producer.tcp_port != 0).then_some(producer)
        });
        let producers: Vec<_> = read.collect();
        let malformed = total - producers.len();
        Ok((producers, malformed))
    }
}

/// Go writes a string that was never set as an empty one.
fn said<'de, D: Deserializer<'de>>(value: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(value)?;
    Ok(text.filter(|text| !text.is_empty()))
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
    fn nodes_are_read_in_both_forms_and_one_bad_entry_hides_no_other() {
        // As nsqlookupd 1.3.0 writes it; a later one adds where the nsqd runs.
        let body = r#"{"producers":[
            {"remote_address":"10.0.0.9:50000","hostname":"h","broadcast_address":"a","tcp_port":4150,"http_port":4151,"version":"1.3.0","tombstones":[false,true],"topics":["x","y"]},
            {"remote_address":"10.0.0.9:50001","hostname":"h","broadcast_address":"b","tcp_port":4150,"http_port":4151,"version":"1.3.1","tombstones":[],"topics":null,"topology_zone":"z1","topology_region":"r1"},
            {"broadcast_address":"c","tcp_port":4150,"topology_zone":"","topology_region":null},
            {"broadcast_address":"","tcp_port":4150},
            {"broadcast_address":"d","tcp_port":4150,"topology_zone":7}]}"#;
        let bare = parse_nodes(body.as_bytes()).unwrap();
        let addresses: Vec<_> = bare.nodes.iter().map(LookupProducer::tcp_address).collect();
        assert_eq!(addresses, ["a:4150", "b:4150", "c:4150"]);
        assert_eq!(bare.malformed, 2);
        let topology = |n: usize| {
            (
                bare.nodes[n].topology_region.as_deref(),
                bare.nodes[n].topology_zone.as_deref(),
            )
        };
        assert_eq!(topology(0), (None, None));
        assert_eq!(topology(1), (Some("r1"), Some("z1")));
        assert_eq!(topology(2), (None, None), "what is empty is not said");
        let old = format!(r#"{{"status_code":200,"status_txt":"OK","data":{body}}}"#);
        assert_eq!(parse_nodes(old.as_bytes()).unwrap(), bare);
        for empty in [&br#"{"producers":[]}"#[..], br#"{"producers":null}"#] {
            assert_eq!(parse_nodes(empty).unwrap(), LookupNodes::default());
        }
        for other in [
            &br#"{"topics":[]}"#[..],
            br#"{"producers":{}}"#,
            br#"{"status_code":200,"data":{}}"#,
        ] {
            assert!(matches!(parse_nodes(other), Err(LookupError::Shape)));
        }
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
