//! `/stats`.

use std::sync::Arc;

use serde::Serialize;

use super::info::{health, start_time};
use super::stats_text::{Heading, render};
use super::{Answered, Front, arguments, truth};
use crate::test_server::VERSION;
use crate::test_server::http::{Answer, Request};
use crate::test_server::nsqd::stats::{ChannelStats, ClientStats, Stats, TopicStats};

pub(super) async fn stats(front: Arc<Front>, request: Request) -> Answered {
    let query = arguments(request).await?;
    let argument = |name| query.get(name).unwrap_or_default();
    let view = View {
        topic: argument("topic"),
        channel: argument("channel"),
        clients: truth(&query, "include_clients").unwrap_or(true),
        mem_queue_size: front.shared.options.mem_queue_size,
    };
    let memory = truth(&query, "include_mem").unwrap_or(true);
    let (stats, health, start_time, uptime) = front.shared.read(|state| {
        let uptime = state.started.elapsed();
        (state.stats(), health(state), start_time(state), uptime)
    });
    let report = Report {
        version: VERSION,
        health: &health,
        start_time,
        topics: view.topics(&stats),
        memory: memory.then(Memory::default),
        producers: view.producers(&stats),
    };
    if argument("format") == "json" {
        return Ok(Answer::json(&report));
    }
    let heading = Heading {
        uptime,
        now: front
            .shared
            .read(|state| state.wall_clock.unix_nanos(tokio::time::Instant::now()))
            / 1_000_000_000,
    };
    Ok(Answer::text(render(&report, heading)))
}

/// All members are in nsqd's order, and a list that Go leaves unmade is `null`.
#[derive(Serialize)]
pub(super) struct Report<'a> {
    pub(super) version: &'static str,
    pub(super) health: &'a str,
    pub(super) start_time: i64,
    pub(super) topics: Option<Vec<TopicReport<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) memory: Option<Memory>,
    pub(super) producers: Option<Vec<ClientReport<'a>>>,
}

#[derive(Serialize)]
pub(super) struct TopicReport<'a> {
    pub(super) topic_name: &'a str,
    pub(super) channels: Vec<ChannelReport<'a>>,
    pub(super) depth: usize,
    pub(super) backend_depth: usize,
    pub(super) message_count: u64,
    message_bytes: u64,
    pub(super) paused: bool,
    e2e_processing_latency: Latency,
}

#[derive(Serialize)]
pub(super) struct ChannelReport<'a> {
    pub(super) channel_name: &'a str,
    pub(super) depth: usize,
    pub(super) backend_depth: usize,
    pub(super) in_flight_count: usize,
    pub(super) deferred_count: usize,
    pub(super) message_count: u64,
    pub(super) requeue_count: u64,
    pub(super) timeout_count: u64,
    client_count: usize,
    pub(super) clients: Option<Vec<ClientReport<'a>>>,
    pub(super) paused: bool,
    e2e_processing_latency: Latency,
}

#[derive(Serialize)]
pub(super) struct ClientReport<'a> {
    client_id: &'a str,
    pub(super) hostname: &'a str,
    pub(super) version: &'static str,
    pub(super) remote_address: &'a str,
    pub(super) state: u8,
    pub(super) ready_count: u32,
    pub(super) in_flight_count: u64,
    pub(super) message_count: u64,
    pub(super) finish_count: u64,
    pub(super) requeue_count: u64,
    pub(super) connect_ts: i64,
    sample_rate: u8,
    deflate: bool,
    snappy: bool,
    pub(super) user_agent: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    authed: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    auth_identity: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    auth_identity_url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pub_counts: Option<[PubCount<'a>; 1]>,
    tls: bool,
    tls_cipher_suite: &'a str,
    tls_version: &'a str,
    tls_negotiated_protocol: &'static str,
    tls_negotiated_protocol_is_mutual: bool,
}

#[derive(Serialize)]
pub(super) struct PubCount<'a> {
    pub(super) topic: &'a str,
    pub(super) count: u64,
}

/// Nothing is measured: as nsqd without percentiles.
#[derive(Default, Serialize)]
struct Latency {
    count: u64,
    percentiles: Option<[u64; 0]>,
}

/// There is no garbage collector to tell of.
#[derive(Default, Serialize)]
pub(super) struct Memory {
    pub(super) heap_objects: u64,
    pub(super) heap_idle_bytes: u64,
    pub(super) heap_in_use_bytes: u64,
    pub(super) heap_released_bytes: u64,
    pub(super) gc_pause_usec_100: u64,
    pub(super) gc_pause_usec_99: u64,
    pub(super) gc_pause_usec_95: u64,
    pub(super) next_gc_bytes: u64,
    pub(super) gc_total_runs: u32,
}

/// What of it all was asked for; an empty name is any.
struct View<'a> {
    topic: &'a str,
    channel: &'a str,
    clients: bool,
    mem_queue_size: usize,
}

impl View<'_> {
    fn topics<'a>(&self, stats: &'a Stats) -> Option<Vec<TopicReport<'a>>> {
        if !self.topic.is_empty() && stats.topic(self.topic).is_none() {
            return None;
        }
        let topics = stats.topics.iter();
        let topics = topics.filter(|topic| self.topic.is_empty() || topic.name == self.topic);
        Some(topics.filter_map(|topic| self.topic(topic)).collect())
    }

    /// A topic without the wanted channel is left out.
    fn topic<'a>(&self, topic: &'a TopicStats) -> Option<TopicReport<'a>> {
        let channels = topic.channels.iter();
        let channels = channels.filter(|channel| self.channel.is_empty() || channel.name == self.channel);
        let channels: Vec<_> = channels.map(|channel| self.channel(channel)).collect();
        (self.channel.is_empty() || !channels.is_empty()).then(|| TopicReport {
            topic_name: &topic.name,
            channels,
            depth: topic.depth,
            backend_depth: self.backend(topic.depth),
            message_count: topic.message_count,
            message_bytes: topic.message_bytes,
            paused: topic.paused,
            e2e_processing_latency: Latency::default(),
        })
    }

    fn channel<'a>(&self, channel: &'a ChannelStats) -> ChannelReport<'a> {
        let clients = channel.clients.iter().map(|client| self.client(client));
        ChannelReport {
            channel_name: &channel.name,
            depth: channel.depth,
            backend_depth: self.backend(channel.depth),
            in_flight_count: channel.in_flight,
            deferred_count: channel.deferred,
            message_count: channel.message_count,
            requeue_count: channel.requeue_count,
            timeout_count: channel.timeout_count,
            client_count: channel.clients.len(),
            clients: self.clients.then(|| clients.collect()),
            paused: channel.paused,
            e2e_processing_latency: Latency::default(),
        }
    }

    /// What nsqd would have on its disk: all that its memory has no room for.
    fn backend(&self, depth: usize) -> usize {
        depth.saturating_sub(self.mem_queue_size)
    }

    /// The connections that have published, whatever the topic. There are none beside a topic that does not exist.
    fn producers<'a>(&self, stats: &'a Stats) -> Option<Vec<ClientReport<'a>>> {
        if !self.clients || !self.topic.is_empty() && stats.topic(self.topic).is_none() {
            return None;
        }
        let clients = stats.clients.iter().filter(|client| !client.published.is_empty());
        let producers: Vec<_> = clients.map(|client| self.client(client)).collect();
        (!producers.is_empty()).then_some(producers)
    }

    fn client<'a>(&self, client: &'a ClientStats) -> ClientReport<'a> {
        // nsqd tells of one topic only, of several the one that comes up first.
        let mut published = client.published.iter();
        let published = published.find(|(topic, _)| self.topic.is_empty() || topic == self.topic);
        let encryption = client.encryption.as_ref();
        let identity = client.identity.as_ref();
        ClientReport {
            client_id: &client.client_id,
            hostname: &client.hostname,
            version: "V2",
            remote_address: &client.remote,
            state: client.state,
            ready_count: client.rdy,
            in_flight_count: client.in_flight,
            message_count: client.message_count,
            finish_count: client.finish_count,
            requeue_count: client.requeue_count,
            connect_ts: client.connected_at.div_euclid(1_000_000_000),
            sample_rate: client.sample_rate,
            deflate: client.deflate,
            snappy: client.snappy,
            user_agent: &client.user_agent,
            authed: identity.is_some(),
            auth_identity: identity.map_or("", |(identity, _)| identity),
            auth_identity_url: identity.map_or("", |(_, url)| url),
            pub_counts: published.map(|(topic, count)| [PubCount { topic, count: *count }]),
            tls: encryption.is_some(),
            tls_cipher_suite: encryption.map_or("", |encryption| &encryption.cipher_suite),
            tls_version: encryption.map_or("", |encryption| &encryption.version),
            tls_negotiated_protocol: "",
            // Go says so of every TLS connection.
            tls_negotiated_protocol_is_mutual: encryption.is_some(),
        }
    }
}
