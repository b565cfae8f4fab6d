//! nsqd: the broker that keeps messages.

use std::{
    net::SocketAddr,
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::{http::query_value, process::Process};

/// How to start an nsqd.
#[must_use = "nothing runs before `start`"]
pub(crate) struct Builder {
    binary: PathBuf,
    flags: Vec<String>,
}

impl Builder {
    pub(super) fn new(binary: &Path) -> Self {
        // With TLS configured nsqd would also listen on its default HTTPS port, the same for every test.
        let flags = ["--broadcast-address=127.0.0.1", "--https-address=127.0.0.1:0"];
        Self {
            binary: binary.to_path_buf(),
            flags: flags.map(String::from).to_vec(),
        }
    }

    /// One more command-line flag. Later flags win, over the defaults of this harness too.
    pub(crate) fn flag(mut self, flag: impl Into<String>) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// Registers with the nsqlookupd whose TCP address this is; may be called several times.
    pub(crate) fn lookupd(self, tcp_address: SocketAddr) -> Self {
        self.flag(format!("--lookupd-tcp-address={tcp_address}"))
    }

    /// Starts nsqd with a data path of its own and returns when it serves.
    pub(crate) async fn start(self) -> Nsqd {
        let Self { binary, mut flags } = self;
        let flags = |directory: &Path| {
            flags.insert(0, format!("--data-path={}", directory.display()));
            flags
        };
        Nsqd(Process::start("nsqd", &binary, flags).await)
    }
}

/// A running nsqd. Its life (addresses, `terminate`, `kill`, `start_again`, plain HTTP) is that of its [`Process`].
pub(crate) struct Nsqd(Process);

/// What nsqd counts for a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct ChannelStats {
    /// Messages that wait for delivery.
    pub(crate) depth: u64,
    /// Messages that were sent and neither answered nor timed out.
    #[serde(rename = "in_flight_count")]
    pub(crate) in_flight: u64,
    /// Messages whose delay is not over.
    #[serde(rename = "deferred_count")]
    pub(crate) deferred: u64,
    /// Messages that the channel has got since nsqd started.
    pub(crate) message_count: u64,
    /// REQs since nsqd started.
    pub(crate) requeue_count: u64,
    /// Messages taken back for want of an answer since nsqd started.
    pub(crate) timeout_count: u64,
    /// Subscribed connections.
    pub(crate) client_count: u64,
}

impl Nsqd {
    /// The whole answer of `/stats`: `topics` with their channels and clients, `producers`.
    pub(crate) async fn stats(&self) -> Value {
        self.get_json("/stats?format=json&include_mem=false").await
    }

    /// The part of `/stats` on one topic; `None` while nsqd does not know the topic.
    pub(crate) async fn topic_stats(&self, topic: &str) -> Option<Value> {
        let path = format!("/stats?format=json&include_mem=false&topic={}", query_value(topic));
        named(&self.get_json(&path).await["topics"], "topic_name", topic)
    }

    /// The messages of a topic that no channel has taken yet.
    pub(crate) async fn topic_depth(&self, topic: &str) -> Option<u64> {
        self.topic_stats(topic).await?["depth"].as_u64()
    }

    /// The messages that a topic has got since nsqd started.
    pub(crate) async fn topic_message_count(&self, topic: &str) -> Option<u64> {
        self.topic_stats(topic).await?["message_count"].as_u64()
    }

    /// What nsqd counts for a channel; `None` while it does not exist.
    pub(crate) async fn channel_stats(&self, topic: &str, channel: &str) -> Option<ChannelStats> {
        let stats = named(&self.topic_stats(topic).await?["channels"], "channel_name", channel)?;
        Some(serde_json::from_value(stats).expect("nsqd's channel statistics"))
    }

    /// Publishes one message over HTTP.
    pub(crate) async fn publish(&self, topic: &str, body: impl Into<Bytes>) {
        self.post_ok(&format!("/pub?topic={}", query_value(topic)), body).await;
    }

    /// Creates a topic; no change if it exists.
    pub(crate) async fn create_topic(&self, topic: &str) {
        self.post_ok(&format!("/topic/create?topic={}", query_value(topic)), "")
            .await;
    }

    /// Creates a channel and, if need be, its topic; no change if it exists.
    pub(crate) async fn create_channel(&self, topic: &str, channel: &str) {
        let (topic, channel) = (query_value(topic), query_value(channel));
        // nsqd answers 404 for a channel of an unknown topic.
        self.post_ok(&format!("/topic/create?topic={topic}"), "").await;
        self.post_ok(&format!("/channel/create?topic={topic}&channel={channel}"), "")
            .await;
    }
}

impl Deref for Nsqd {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.0
    }
}

impl DerefMut for Nsqd {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.0
    }
}

/// The element of a JSON list whose `key` is `name`.
fn named(list: &Value, key: &str, name: &str) -> Option<Value> {
    list.as_array()?.iter().find(|element| element[key] == name).cloned()
}
