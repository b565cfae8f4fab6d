//! Snapshots of the broker's state, and what it has received.

use std::time::Duration;

use tokio::time::Instant;

use crate::protocol::Command;
use crate::test_server::tls::TlsDetails;

/// The state of an [`Nsqd`](super::Nsqd) at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// The topics, by name.
    pub topics: Vec<TopicStats>,
    /// Every connection, in the order in which they were accepted: publishers, consumers, and those that have not said
    /// anything yet.
    pub clients: Vec<ClientStats>,
    /// How many connections were accepted since the broker was started.
    pub accepted: u64,
}

impl Stats {
    /// The topic of this name, if it exists.
    #[must_use]
    pub fn topic(&self, topic: &str) -> Option<&TopicStats> {
        self.topics.iter().find(|candidate| candidate.name == topic)
    }

    /// The channel of these names, if it exists.
    #[must_use]
    pub fn channel(&self, topic: &str, channel: &str) -> Option<&ChannelStats> {
        let topic = self.topic(topic)?;
        topic.channels.iter().find(|candidate| candidate.name == channel)
    }
}

/// The state of a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicStats {
    /// The topic's name.
    pub name: String,
    /// The messages that wait for the topic's first channel.
    pub depth: usize,
    /// The messages published so far.
    pub message_count: u64,
    /// The bytes of the messages published so far.
    pub message_bytes: u64,
    /// Whether messages stay in the topic.
    pub paused: bool,
    /// The channels, by name.
    pub channels: Vec<ChannelStats>,
}

/// The state of a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChannelStats {
    /// The channel's name.
    pub name: String,
    /// The messages that wait to be sent: neither in flight nor deferred.
    pub depth: usize,
    /// The messages that were sent and are neither answered nor timed out.
    pub in_flight: usize,
    /// The messages that wait for their delay to pass.
    pub deferred: usize,
    /// The messages that have reached the channel. Each counts once, however often it is sent.
    pub message_count: u64,
    /// The messages that were given back by REQ.
    pub requeue_count: u64,
    /// The messages whose timeout has passed.
    pub timeout_count: u64,
    /// The messages that were finished by FIN.
    pub finish_count: u64,
    /// Whether nothing is sent to consumers.
    pub paused: bool,
    /// The subscribed connections, in the order in which they subscribed.
    pub clients: Vec<ClientStats>,
}

/// The state of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientStats {
    /// The connection's number: 1 for the first that was accepted.
    pub connection: u64,
    /// The other end: `ip:port`, or `memory` within a memory network.
    pub remote: String,
    /// When it was accepted, in nanoseconds since the Unix epoch.
    pub connected_at: i64,
    /// `client_id` of IDENTIFY; the host of the remote address before it.
    pub client_id: String,
    /// `hostname` of IDENTIFY; the host of the remote address before it.
    pub hostname: String,
    /// `user_agent` of IDENTIFY.
    pub user_agent: String,
    /// The state by nsqd's number: 0 at first, 3 once subscribed, 4 after CLS.
    pub state: u8,
    /// Topic and channel, once subscribed.
    pub subscription: Option<(String, String)>,
    /// The RDY in force.
    pub rdy: u32,
    /// The messages in flight to this connection.
    pub in_flight: u64,
    /// The messages sent, redeliveries included.
    pub message_count: u64,
    /// The messages finished.
    pub finish_count: u64,
    /// The messages given back.
    pub requeue_count: u64,
    /// How many messages it has published to which topic.
    pub published: Vec<(String, u64)>,
    /// The percentage of messages that are delivered; 0 is all.
    pub sample_rate: u8,
    /// Whether the connection is compressed by snappy.
    pub snappy: bool,
    /// Whether the connection is compressed by deflate.
    pub deflate: bool,
    /// What TLS has agreed on, if the connection is encrypted.
    pub encryption: Option<Encryption>,
    /// The identity and its URL, by the auth server, once authorized.
    pub identity: Option<(String, String)>,
}

/// What the TLS of a connection has agreed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Encryption {
    /// The version, as nsqd names it.
    pub version: String,
    /// The cipher suite, as nsqd names it.
    pub cipher_suite: String,
    /// The common name of the client's certificate, if it has shown one.
    pub common_name: Option<String>,
}

impl From<TlsDetails> for Encryption {
    fn from(details: TlsDetails) -> Self {
        Self {
            version: details.version.to_owned(),
            cipher_suite: details.cipher_suite,
            common_name: Some(details.common_name).filter(|name| !name.is_empty()),
        }
    }
}

/// A command that the broker received.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Received {
    /// The number of the connection: see [`ClientStats::connection`].
    pub connection: u64,
    /// When it was complete, on tokio's clock.
    pub at: Instant,
    /// The command.
    pub command: Command,
}

/// The condition of a [`wait_for`](super::Nsqd::wait_for) did not come true in time.
#[derive(Clone)]
pub struct WaitError {
    pub(super) waited: Duration,
    pub(super) last: Box<Stats>,
}

impl WaitError {
    /// The state when the time was up.
    #[must_use]
    pub fn last(&self) -> &Stats {
        &self.last
    }
}

impl std::fmt::Display for WaitError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the condition did not come true within {:?}; the broker's state was {:#?}",
            self.waited, self.last
        )
    }
}

/// As [`Display`](std::fmt::Display), since tests unwrap.
impl std::fmt::Debug for WaitError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for WaitError {}
