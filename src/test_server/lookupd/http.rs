//! nsqlookupd's HTTP side.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::StatusCode;
use serde::Serialize;
use tokio::time::Instant;

use super::Shared;
use super::registry::{Full, Node};
use super::state::LookupdRequest;
use crate::name::{Channel, Topic};
use crate::test_server::VERSION;
use crate::test_server::http::{Answer, Query, Refusal, Request, Router, Service};

/// What Go makes of the time of a tombstone that never was.
const NO_TIME: i64 = -6_795_364_578_871_345_152;

type Answered = Result<Answer, Refusal>;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .get("/ping", async |_, _| Ok(Answer::bare(StatusCode::OK, "OK")))
        .get("/info", info)
        .get("/debug", debug)
        .get("/lookup", lookup)
        .get("/topics", topics)
        .get("/channels", channels)
        .get("/nodes", nodes)
        .post("/topic/create", create_topic)
        .post("/topic/delete", delete_topic)
        .post("/channel/create", create_channel)
        .post("/channel/delete", delete_channel)
        .post("/topic/tombstone", tombstone)
}

impl Service for Shared {
    async fn answer(self: Arc<Self>, request: Request) -> Answer {
        let record = LookupdRequest {
            at: Instant::now(),
            method: request.method().to_string(),
            target: request.target().to_owned(),
        };
        self.record_request(record);
        match self.script.intervene(request.path()).await {
            Some(answer) => answer,
            None => self.routes.answer(&self, request).await,
        }
    }
}

#[derive(Serialize)]
struct Info {
    version: &'static str,
}

async fn info(_: Arc<Shared>, _: Request) -> Answered {
    Ok(Answer::json(&Info { version: VERSION }))
}

/// An nsqd as `/lookup` tells of it.
#[derive(Serialize)]
struct Producer<'a> {
    remote_address: &'a str,
    hostname: &'a str,
    broadcast_address: &'a str,
    tcp_port: i64,
    http_port: i64,
    version: &'a str,
}

impl<'a> Producer<'a> {
    fn new(node: &'a Node) -> Self {
        Self {
            remote_address: &node.remote_address,
            hostname: &node.identity.hostname,
            broadcast_address: &node.identity.broadcast_address,
            tcp_port: node.identity.tcp_port,
            http_port: node.identity.http_port,
            version: &node.identity.version,
        }
    }
}

#[derive(Serialize)]
struct Lookup<'a> {
    channels: Vec<&'a str>,
    producers: Vec<Producer<'a>>,
}

async fn lookup(shared: Arc<Shared>, request: Request) -> Answered {
    let query = request.query()?;
    let topic = argument(&query, "topic")?;
    shared.registry.read(|book| {
        if !book.knows(topic) {
            return Err(Refusal::not_found("TOPIC_NOT_FOUND"));
        }
        Ok(Answer::json(&Lookup {
            channels: book.channels(topic),
            producers: book.producers(topic).into_iter().map(Producer::new).collect(),
        }))
    })
}

#[derive(Serialize)]
struct Topics<'a> {
    topics: Vec<&'a str>,
}

async fn topics(shared: Arc<Shared>, _: Request) -> Answered {
    shared
        .registry
        .read(|book| Ok(Answer::json(&Topics { topics: book.topics() })))
}

#[derive(Serialize)]
struct Channels<'a> {
    channels: Vec<&'a str>,
}

async fn channels(shared: Arc<Shared>, request: Request) -> Answered {
    let query = request.query()?;
    let topic = argument(&query, "topic")?;
    shared.registry.read(|book| {
        Ok(Answer::json(&Channels {
            channels: book.channels(topic),
        }))
    })
}

#[derive(Serialize)]
struct Nodes<'a> {
    producers: Vec<NodeEntry<'a>>,
}

/// An nsqd as `/nodes` tells of it.
#[derive(Serialize)]
struct NodeEntry<'a> {
    #[serde(flatten)]
    producer: Producer<'a>,
    tombstones: Vec<bool>,
    topics: Vec<&'a str>,
}

async fn nodes(shared: Arc<Shared>, _: Request) -> Answered {
    shared.registry.read(|book| {
        let nodes = book.active_nodes().into_iter().map(|(node, topics)| {
            let (topics, tombstones) = topics.into_iter().unzip();
            NodeEntry {
                producer: Producer::new(node),
                tombstones,
                topics,
            }
        });
        Ok(Answer::json(&Nodes {
            producers: nodes.collect(),
        }))
    })
}

/// An nsqd as `/debug` tells of it.
#[derive(Serialize)]
struct DebugEntry<'a> {
    broadcast_address: &'a str,
    hostname: &'a str,
    http_port: i64,
    id: &'a str,
    last_update: i64,
    tcp_port: i64,
    tombstoned: bool,
    tombstoned_at: i64,
    version: &'a str,
}

async fn debug(shared: Arc<Shared>, _: Request) -> Answered {
    shared.registry.read(|book| {
        let mut entries = BTreeMap::new();
        for (key, nodes) in book.entries() {
            let nodes = nodes.into_iter().map(|(node, tombstone)| DebugEntry {
                broadcast_address: &node.identity.broadcast_address,
                hostname: &node.identity.hostname,
                http_port: node.identity.http_port,
                id: &node.remote_address,
                last_update: book.unix_nanos(node.last_update),
                tcp_port: node.identity.tcp_port,
                tombstoned: tombstone.is_some(),
                tombstoned_at: tombstone.map_or(NO_TIME, |since| book.unix_nanos(since)),
                version: &node.identity.version,
            });
            entries.insert(key, nodes.collect::<Vec<_>>());
        }
        Ok(Answer::json(&entries))
    })
}

async fn create_topic(shared: Arc<Shared>, request: Request) -> Answered {
    let query = request.query()?;
    let topic = argument(&query, "topic")?;
    if Topic::new(topic).is_err() {
        return Err(Refusal::bad_request("INVALID_ARG_TOPIC"));
    }
    shared.registry.change(|book| book.create_topic(topic)).map_err(full)?;
    Ok(Answer::done())
}

async fn delete_topic(shared: Arc<Shared>, request: Request) -> Answered {
    let query = request.query()?;
    let topic = argument(&query, "topic")?;
    shared.registry.change(|book| book.delete_topic(topic));
    Ok(Answer::done())
}

async fn create_channel(shared: Arc<Shared>, request: Request) -> Answered {
    let query = request.query()?;
    let (topic, channel) = topic_and_channel(&query)?;
    let created = shared.registry.change(|book| book.create_channel(topic, channel));
    created.map_err(full)?;
    Ok(Answer::done())
}

async fn delete_channel(shared: Arc<Shared>, request: Request) -> Answered {
    let query = request.query()?;
    let (topic, channel) = topic_and_channel(&query)?;
    if shared.registry.change(|book| book.delete_channel(topic, channel)) {
        Ok(Answer::done())
    } else {
        Err(Refusal::not_found("CHANNEL_NOT_FOUND"))
    }
}

async fn tombstone(shared: Arc<Shared>, request: Request) -> Answered {
    let query = request.query()?;
    let topic = argument(&query, "topic")?;
    let node = argument(&query, "node")?;
    shared.registry.change(|book| book.tombstone(topic, node));
    Ok(Answer::done())
}

fn argument<'a>(query: &'a Query, name: &str) -> Result<&'a str, Refusal> {
    let missing = || Refusal::bad_request(format!("MISSING_ARG_{}", name.to_ascii_uppercase()));
    query.get(name).ok_or_else(missing)
}

fn topic_and_channel(query: &Query) -> Result<(&str, &str), Refusal> {
    let topic = argument(query, "topic")?;
    if Topic::new(topic).is_err() {
        return Err(Refusal::bad_request("INVALID_ARG_TOPIC"));
    }
    let channel = argument(query, "channel")?;
    if Channel::new(channel).is_err() {
        return Err(Refusal::bad_request("INVALID_ARG_CHANNEL"));
    }
    Ok((topic, channel))
}

fn full(_: Full) -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "TOO_MANY_REGISTRATIONS")
}
