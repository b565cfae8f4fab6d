//! What an auth server has granted to one connection, as nsqd understands it, and how nsqd asks for it.

use std::fmt;
use std::io;
use std::time::Duration;

use hyper::{StatusCode, header};
use regex::bytes::{Regex, RegexBuilder};
use serde::Serialize;
use tokio::time::Instant;

use super::pattern::translate;
use crate::protocol::Secret;
use crate::test_server::LONGEST;
use crate::test_server::http::{Patience, encode, get};
use crate::test_server::json::{self, Members, Mismatch};
use crate::transport::Connector;

/// The largest answer that is read.
const MAX_ANSWER: usize = 1024 * 1024;

/// How many regular expressions an answer may hold, and how large each may become. nsqd has no such limits.
const MAX_REGEXES: usize = 1_000;
const MAX_REGEX: usize = 256 * 1024;

/// What one connection may do, and until when that is believed.
#[derive(Debug)]
pub(in crate::test_server) struct Authorizations {
    identity: String,
    identity_url: String,
    entries: Vec<Entry>,
    expires: Instant,
}

#[derive(Debug)]
struct Entry {
    topic: Regex,
    channels: Vec<Regex>,
    subscribe: bool,
    publish: bool,
}

/// The auth server's answer makes no sense to nsqd.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::test_server) struct Unusable(&'static str);

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the auth server's answer is unusable: {}", self.0)
    }
}

impl std::error::Error for Unusable {}

impl From<Mismatch> for Unusable {
    fn from(_: Mismatch) -> Self {
        Self("not the expected JSON")
    }
}

/// nsqd's answer to AUTH.
#[derive(Serialize)]
struct Reply<'a> {
    identity: &'a str,
    identity_url: &'a str,
    permission_count: usize,
}

impl Authorizations {
    /// Reads the body of an answer with status 200.
    pub(in crate::test_server) fn parse(body: &[u8], now: Instant) -> Result<Self, Unusable> {
        let mut answer = Members::read(body)?;
        let ttl = answer.integer("ttl")?;
        let (identity, identity_url) = (answer.text("identity")?, answer.text("identity_url")?);
        let mut room = MAX_REGEXES;
        let mut entries = Vec::new();
        for entry in answer.list("authorizations")? {
            entries.push(Entry::read(Members::of(entry)?, &mut room)?);
        }
        let ttl = u64::try_from(ttl).ok().filter(|ttl| *ttl > 0);
        let ttl = Duration::from_secs(ttl.ok_or(Unusable("the ttl is not above 0"))?);
        Ok(Self {
            identity,
            identity_url,
            entries,
            expires: now + ttl.min(LONGEST),
        })
    }

    /// Whether one may subscribe to the channel, or publish to the topic if the channel is empty.
    pub(in crate::test_server) fn is_allowed(&self, topic: &str, channel: &str) -> bool {
        self.entries.iter().any(|entry| entry.allows(topic, channel))
    }

    /// How many entries there are. With none, AUTH fails.
    pub(in crate::test_server) fn permission_count(&self) -> usize {
        self.entries.len()
    }

    pub(in crate::test_server) fn identity(&self) -> &str {
        &self.identity
    }

    pub(in crate::test_server) fn identity_url(&self) -> &str {
        &self.identity_url
    }

    /// Whether the auth server has to be asked again before the next check.
    pub(in crate::test_server) fn is_expired(&self, now: Instant) -> bool {
        now > self.expires
    }

    /// The JSON that nsqd answers to AUTH.
    pub(in crate::test_server) fn reply(&self) -> Vec<u8> {
        json::to_vec(&Reply {
            identity: &self.identity,
            identity_url: &self.identity_url,
            permission_count: self.permission_count(),
        })
    }
}

impl Entry {
    fn read(mut members: Members, room: &mut usize) -> Result<Self, Unusable> {
        let mut entry = Self {
            topic: compile(&members.text("topic")?, room)?,
            channels: Vec::new(),
            subscribe: false,
            publish: false,
        };
        for channel in members.texts("channels")? {
            entry.channels.push(compile(&channel, room)?);
        }
        for permission in members.texts("permissions")? {
            match &*permission {
                "subscribe" => entry.subscribe = true,
                "publish" => entry.publish = true,
                _ => return Err(Unusable("an unknown permission")),
            }
        }
        Ok(entry)
    }

    fn allows(&self, topic: &str, channel: &str) -> bool {
        let permitted = if channel.is_empty() {
            self.publish
        } else {
            self.subscribe
        };
        permitted
            && self.topic.is_match(topic.as_bytes())
            && self.channels.iter().any(|regex| regex.is_match(channel.as_bytes()))
    }
}

/// Compiles a regular expression of Go.
fn compile(pattern: &str, room: &mut usize) -> Result<Regex, Unusable> {
    let unusable = Unusable("a regular expression that does not compile");
    *room = room.checked_sub(1).ok_or(Unusable("too many regular expressions"))?;
    let Some(pattern) = translate(pattern) else {
        return Err(unusable);
    };
    // Names are ASCII, and so are Go's \w, \d and \b. Only a Unicode class needs the larger tables.
    let build = |unicode| {
        RegexBuilder::new(&pattern)
            .unicode(unicode)
            .size_limit(MAX_REGEX)
            .dfa_size_limit(MAX_REGEX)
            .build()
    };
    build(false).or_else(|_| build(true)).map_err(|_| unusable)
}

/// What nsqd tells an auth server of a client.
#[derive(Clone, Debug)]
pub(in crate::test_server) struct Question {
    /// The common name of its certificate, or nothing.
    pub(in crate::test_server) common_name: String,
    /// Its address without the port.
    pub(in crate::test_server) remote_ip: String,
    /// What it sent with AUTH.
    pub(in crate::test_server) secret: Secret,
    pub(in crate::test_server) tls: bool,
}

impl Question {
    fn query(&self) -> String {
        encode(&[
            ("common_name", self.common_name.as_bytes()),
            ("remote_ip", self.remote_ip.as_bytes()),
            ("secret", self.secret.reveal()),
            ("tls", if self.tls { b"true" } else { b"false" }),
        ])
    }
}

/// Asks one auth server after the other, from a random one on, until one gives a usable answer. An address is
/// `host:port`, or an `http://` URL that is used as it is. The error is that of the last one, and does not show the
/// secret.
pub(in crate::test_server) async fn query(
    connector: &dyn Connector,
    addresses: &[String],
    question: &Question,
    patience: Patience,
) -> io::Result<Authorizations> {
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "no auth server is configured");
    let start = fastrand::usize(..addresses.len().max(1));
    for address in addresses.iter().cycle().skip(start).take(addresses.len()) {
        match ask(connector, address, question, patience).await {
            Ok(authorizations) => return Ok(authorizations),
            Err(error) => last_error = error,
        }
    }
    Err(last_error)
}

async fn ask(
    connector: &dyn Connector,
    address: &str,
    question: &Question,
    patience: Patience,
) -> io::Result<Authorizations> {
    let (address, path) = endpoint(address)?;
    let target = format!("{path}?{}", question.query());
    let accept = [(header::ACCEPT, "application/vnd.nsq; version=1.0")];
    let (status, body) = get(connector, &address, &target, &accept, patience, MAX_ANSWER).await?;
    if status != StatusCode::OK {
        return Err(io::Error::other(format!("the auth server answered {status}")));
    }
    Authorizations::parse(&body, Instant::now()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// `host:port`, and the path there.
fn endpoint(address: &str) -> io::Result<(String, String)> {
    let Some((scheme, rest)) = address.split_once("://") else {
        return Ok((address.to_owned(), "/auth".to_owned()));
    };
    if !scheme.eq_ignore_ascii_case("http") {
        let message = format!("auth server address {address:?}: only http is supported");
        return Err(io::Error::new(io::ErrorKind::Unsupported, message));
    }
    let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let has_port = host
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let host = if has_port {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    Ok((host, path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_server::{AuthServer, Grant, Permission};
    use crate::transport::MemoryNetwork;

    fn parse(answer: &str) -> Result<Authorizations, Unusable> {
        Authorizations::parse(answer.as_bytes(), Instant::now())
    }

    fn entry(entry: &str) -> Authorizations {
        parse(&format!(r#"{{"ttl":60,"authorizations":[{entry}]}}"#)).unwrap()
    }

    fn question(secret: &str) -> Question {
        Question {
            common_name: String::new(),
            remote_ip: "10.0.0.1".to_owned(),
            secret: Secret::new(secret.to_owned()),
            tls: true,
        }
    }

    #[tokio::test]
    async fn regular_expressions_are_not_anchored() {
        let allowed = entry(r#"{"topic":"foo","channels":["^c"],"permissions":["subscribe"]}"#);
        assert!(allowed.is_allowed("xfoox", "cc"));
        assert!(!allowed.is_allowed("fo", "c") && !allowed.is_allowed("foo", "dc"));
        let allowed = entry(r#"{"channels":["\\w+\\p{L}"],"permissions":["subscribe"]}"#);
        assert!(allowed.is_allowed("any", "ab") && !allowed.is_allowed("any", "a"));
    }

    #[tokio::test]
    async fn to_publish_is_another_permission_and_its_channel_is_empty() {
        let publish = |channels: &str| {
            entry(&format!(
                r#"{{"topic":"t","channels":{channels},"permissions":["publish"]}}"#
            ))
        };
        assert!(publish(r#"[".*"]"#).is_allowed("t", ""));
        for channels in ["[]", "null", r#"["^c$"]"#] {
            assert!(!publish(channels).is_allowed("t", ""), "{channels}");
        }
        assert!(!publish(r#"[".*"]"#).is_allowed("t", "c"));
    }

    #[tokio::test]
    async fn answers_are_read_by_the_rules_of_nsqd() {
        for usable in [
            r#"{"ttl":1}"#,
            r#"{"TTL":1,"authorizations":null,"zz":[1]}"#,
            r#"{"ttl":9223372036854775807,"authorizations":[null]}"#,
        ] {
            assert!(parse(usable).is_ok(), "{usable}");
        }
        for unusable in [
            "",
            "[]",
            "null",
            "{}",
            r#"{"ttl":0}"#,
            r#"{"ttl":-1}"#,
            r#"{"ttl":1.5}"#,
            r#"{"ttl":"1"}"#,
            r#"{"ttl":1,"identity":7}"#,
            r#"{"ttl":1,"authorizations":{}}"#,
            r#"{"ttl":1,"authorizations":[{"permissions":["delete"]}]}"#,
            r#"{"ttl":1,"authorizations":[{"topic":"("}]}"#,
            r#"{"ttl":1,"authorizations":[{"channels":["*"]}]}"#,
            r#"{"ttl":1,"authorizations":[{"topic":"((a{100}){100}){100}"}]}"#,
        ] {
            assert!(parse(unusable).is_err(), "{unusable}");
        }
    }

    #[tokio::test]
    async fn n4_the_number_of_regular_expressions_is_limited() {
        let many = |count: usize| {
            let channels = vec![r#""c""#; count].join(",");
            parse(&format!(
                r#"{{"ttl":1,"authorizations":[{{"channels":[{channels}]}}]}}"#
            ))
        };
        assert!(many(MAX_REGEXES - 1).is_ok());
        assert!(many(MAX_REGEXES).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_grant_expires_after_its_ttl() {
        let granted = parse(r#"{"ttl":2,"identity":"b<b>","authorizations":[{}]}"#).unwrap();
        let now = Instant::now();
        assert!(!granted.is_expired(now + Duration::from_secs(2)));
        assert!(granted.is_expired(now + Duration::from_millis(2001)));
        assert_eq!(
            granted.reply(),
            br#"{"identity":"b\u003cb\u003e","identity_url":"","permission_count":1}"#
        );
    }

    #[tokio::test(start_paused = true)]
    async fn auth_servers_are_asked_until_one_answers() {
        let network = MemoryNetwork::new();
        let auth = AuthServer::start_in(&network, "auth:4181").await.unwrap();
        let other = AuthServer::start_in(&network, "other:4181").await.unwrap();
        auth.grant(
            "s&=",
            Grant::new().identity("bob").allow("t", [".*"], [Permission::Publish]),
        );
        other.faults().hang();
        let addresses = ["gone:4181", "other:4181", "auth:4181"].map(str::to_owned);
        let connector = network.connector();
        let ask = async |addresses: &[String], secret: &str| {
            query(&connector, addresses, &question(secret), Patience::default()).await
        };
        // Wherever it begins.
        for _ in 0..10 {
            let granted = ask(&addresses, "s&=").await.unwrap();
            assert_eq!((granted.identity(), granted.permission_count()), ("bob", 1));
            assert!(granted.is_allowed("t", "") && !granted.is_allowed("u", ""));
        }
        let asked = &auth.requests()[0];
        assert_eq!(
            (asked.secret(), &*asked.remote_ip, asked.tls),
            ("s&=", "10.0.0.1", true)
        );

        let error = ask(&addresses, "wrong").await.unwrap_err().to_string();
        assert!(!error.contains("wrong"), "{error}");
        assert!(ask(&[], "s&=").await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_with_a_scheme_is_taken_as_it_is() {
        assert_eq!(endpoint("auth:1").unwrap(), ("auth:1".into(), "/auth".into()));
        assert_eq!(endpoint("http://auth/x/y").unwrap(), ("auth:80".into(), "/x/y".into()));
        assert_eq!(endpoint("HTTP://auth:1").unwrap(), ("auth:1".into(), "/".into()));
        assert!(endpoint("https://auth:1/auth").is_err());
    }
}
