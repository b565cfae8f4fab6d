//! What a test sees of a [`Lookupd`](super::Lookupd).

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

/// What an nsqlookupd knows at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LookupdState {
    /// All topics, by name.
    pub topics: Vec<LookupdTopic>,
    /// All nsqds, in the order of their addresses. Those that are inactive are among them.
    pub nodes: Vec<LookupdNode>,
    /// How many HTTP requests have arrived, whatever the answer was.
    pub requests: u64,
    /// How many commands have arrived by TCP.
    pub commands: u64,
}

impl LookupdState {
    /// A topic, if it is known.
    #[must_use]
    pub fn topic(&self, name: &str) -> Option<&LookupdTopic> {
        self.topics.iter().find(|topic| topic.name == name)
    }

    /// The nsqd with this address, `host:port` of its TCP protocol, if it is known.
    #[must_use]
    pub fn node(&self, address: &str) -> Option<&LookupdNode> {
        self.nodes.iter().find(|node| node.address == address)
    }
}

/// A topic that an nsqlookupd knows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LookupdTopic {
    /// Its name.
    pub name: String,
    /// Its channels, by name.
    pub channels: Vec<String>,
    /// The nsqds that have registered it, in the order of their addresses, whether `/lookup` tells of them or not.
    pub producers: Vec<LookupdProducer>,
}

/// An nsqd that has registered a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LookupdProducer {
    /// Its `broadcast_address:tcp_port`, where clients connect.
    pub address: String,
    /// Whether `/lookup` keeps quiet about it for this topic, because of a tombstone.
    pub tombstoned: bool,
    /// Whether it has sent PING lately.
    pub active: bool,
}

/// An nsqd that an nsqlookupd knows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LookupdNode {
    /// Its `broadcast_address:tcp_port`, where clients connect.
    pub address: String,
    /// The host that it gives to clients.
    pub broadcast_address: String,
    /// The host that it runs on.
    pub hostname: String,
    /// The port of its TCP protocol.
    pub tcp_port: i64,
    /// The port of its HTTP interface.
    pub http_port: i64,
    /// Its version.
    pub version: String,
    /// Where its connection came from.
    pub remote_address: String,
    /// When it sent IDENTIFY or PING last, on tokio's clock.
    pub last_update: Instant,
    /// Whether that was within the `inactive-producer-timeout`. One that is registered by hand or directly always is.
    pub active: bool,
    /// The topics that it has registered, by name.
    pub topics: Vec<String>,
}

/// An HTTP request that an nsqlookupd received.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LookupdRequest {
    /// When it arrived, on tokio's clock.
    pub at: Instant,
    /// The verb.
    pub method: String,
    /// The path and the query, as they were sent.
    pub target: String,
}

impl LookupdRequest {
    /// The path without the query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.target.split_once('?').map_or(&*self.target, |(path, _)| path)
    }
}

/// A command that an nsqlookupd received by TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LookupdCommand {
    /// When it was complete, on tokio's clock.
    pub at: Instant,
    /// The number of the connection, counted from 1.
    pub connection: u64,
    /// The command's line.
    pub line: String,
    /// The body of IDENTIFY; other commands have none.
    pub body: Bytes,
}

/// The condition of a [`wait_for`](super::Lookupd::wait_for) did not come true in time.
#[derive(Clone)]
pub struct LookupdWaitError {
    pub(super) waited: Duration,
    pub(super) last: Box<LookupdState>,
}

impl LookupdWaitError {
    /// The state when the time was up.
    #[must_use]
    pub fn last(&self) -> &LookupdState {
        &self.last
    }
}

impl fmt::Display for LookupdWaitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the condition did not come true within {:?}; the nsqlookupd's state was {:#?}",
            self.waited, self.last
        )
    }
}

/// As [`Display`](fmt::Display), since tests unwrap.
impl fmt::Debug for LookupdWaitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for LookupdWaitError {}
