//! nsqd and nsqlookupd, each the real one or ours: whichever registers with whichever, a directory comes out that is
//! right.
//!
//! Everything is done and seen by HTTP, so one scenario fits all pairs. That of the two real ones proves the scenario.

use std::net::SocketAddr;
use std::time::Instant;

use async_nsq::test_server::{self, Lookupd, Stats};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use crate::broker::{self, Brokers, DEADLINE, POLL, eventually, request};
use crate::wire::{Wire, ok};

#[tokio::test(flavor = "multi_thread")]
async fn real_nsqd_registers_with_real_nsqlookupd() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let lookupd = brokers.nsqlookupd().start().await;
    let nsqd = brokers.nsqd().lookupd(lookupd.tcp_address()).start().await;
    registers(Nsqd::Real(nsqd), lookupd.http_address()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn real_nsqd_registers_with_our_nsqlookupd() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let lookupd = Lookupd::start().await.unwrap();
    let nsqd = brokers.nsqd().lookupd(lookupd.tcp_address().parse().unwrap());
    registers(Nsqd::Real(nsqd.start().await), lookupd.address().parse().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn real_nsqlookupd_lists_what_our_nsqd_has_while_it_runs() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let lookupd = brokers.nsqlookupd().start().await;
    lookupd
        .post_ok("/channel/create?topic=orders&channel=billing", "")
        .await;
    let nsqd = test_server::Nsqd::builder().lookupd_tcp_address(lookupd.tcp_address().to_string());
    let nsqd = nsqd.start().await.unwrap();
    let address = vec![nsqd.address().to_owned()];
    let listed = async |expected: &[&str], producers: &[String]| {
        eventually(&format!("{producers:?} have {expected:?}"), async || {
            let mut channels = lookupd.lookup("orders").await.unwrap()["channels"].take();
            channels.as_array_mut().unwrap().sort_by_key(Value::to_string);
            (channels == json!(expected) && lookupd.producers("orders").await == producers).then_some(())
        })
        .await;
    };
    let mut client = Wire::connect(address[0].parse().unwrap()).await;
    // An nsqd that does not yet know who the nsqlookupd is asks it for no topic's channels.
    client.send_body("PUB greeting", "hello").await;
    assert_eq!(client.answer().await, ok());
    eventually("they have met", async || {
        (lookupd.producers("greeting").await == address).then_some(())
    })
    .await;
    client.send_body("PUB orders", "first").await;
    assert_eq!(client.answer().await, ok());
    listed(&["billing"], &address).await;
    // The channel was there before the message.
    let has_it = |stats: &Stats| stats.channel("orders", "billing").is_some_and(|it| it.depth == 1);
    nsqd.wait_for(has_it).await.unwrap();

    client.send("SUB orders tail#ephemeral").await;
    assert_eq!(client.answer().await, ok());
    listed(&["billing", "tail#ephemeral"], &address).await;
    drop(client);
    listed(&["billing"], &address).await;
    nsqd.stop().await;
    listed(&["billing"], &[]).await;
    nsqd.restart().await.unwrap();
    listed(&["billing"], &address).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_nsqd_registers_with_real_nsqlookupd() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let lookupd = brokers.nsqlookupd().start().await;
    registers(
        our_nsqd(&lookupd.tcp_address().to_string()).await,
        lookupd.http_address(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_nsqd_registers_with_our_nsqlookupd() {
    let lookupd = Lookupd::start().await.unwrap();
    let nsqd = our_nsqd(lookupd.tcp_address()).await;
    registers(nsqd, lookupd.address().parse().unwrap()).await;
}

async fn our_nsqd(lookupd: &str) -> Nsqd {
    let nsqd = test_server::Nsqd::builder().lookupd_tcp_address(lookupd);
    Nsqd::Ours(nsqd.start().await.unwrap())
}

enum Nsqd {
    Real(broker::Nsqd),
    Ours(test_server::Nsqd),
}

impl Nsqd {
    fn tcp_address(&self) -> SocketAddr {
        match self {
            Self::Real(nsqd) => nsqd.tcp_address(),
            Self::Ours(nsqd) => nsqd.address().parse().unwrap(),
        }
    }

    fn http_address(&self) -> SocketAddr {
        match self {
            Self::Real(nsqd) => nsqd.http_address(),
            Self::Ours(nsqd) => nsqd.http_address().parse().unwrap(),
        }
    }

    async fn stop(&mut self) {
        match self {
            Self::Real(nsqd) => nsqd.terminate().await,
            Self::Ours(nsqd) => nsqd.stop().await,
        }
    }

    async fn start_again(&mut self) {
        match self {
            Self::Real(nsqd) => nsqd.start_again().await,
            Self::Ours(nsqd) => nsqd.restart().await.unwrap(),
        }
    }
}

async fn registers(mut nsqd: Nsqd, lookupd: SocketAddr) {
    let pair = Pair {
        nsqd: nsqd.http_address(),
        tcp_port: nsqd.tcp_address().port(),
        lookupd,
    };
    pair.nsqd_is_a_node(json!([]), json!([])).await;
    pair.topics_and_channels_are_listed().await;
    pair.ephemeral_channel_is_listed_while_it_is_there(nsqd.tcp_address())
        .await;
    pair.channels_that_the_directory_knows_get_the_first_message().await;
    pair.tombstone_hides_one_topic().await;
    pair.deleted_things_have_no_producer().await;

    nsqd.stop().await;
    pair.shows("/nodes", json!({"producers": []})).await;
    pair.shows(
        "/lookup?topic=orders",
        json!({"channels": ["billing"], "producers": []}),
    )
    .await;
    nsqd.start_again().await;
    // Registered anew, and without the tombstone.
    pair.nsqd_is_a_node(json!(["orders", "ready"]), json!([false, false]))
        .await;
    pair.is_produced("orders", &["billing"]).await;
}

/// An nsqd and the nsqlookupd that it registers with.
struct Pair {
    /// Its HTTP address.
    nsqd: SocketAddr,
    tcp_port: u16,
    /// Its HTTP address.
    lookupd: SocketAddr,
}

impl Pair {
    async fn topics_and_channels_are_listed(&self) {
        self.post(self.nsqd, "/topic/create?topic=orders").await;
        self.is_produced("orders", &[]).await;
        self.post(self.nsqd, "/channel/create?topic=orders&channel=billing")
            .await;
        self.is_produced("orders", &["billing"]).await;
        self.shows("/topics", json!({"topics": ["orders"]})).await;
        self.shows("/channels?topic=orders", json!({"channels": ["billing"]}))
            .await;
        self.nsqd_is_a_node(json!(["orders"]), json!([false])).await;
    }

    async fn ephemeral_channel_is_listed_while_it_is_there(&self, nsqd: SocketAddr) {
        let mut client = Wire::connect(nsqd).await;
        client.send("SUB orders tail#ephemeral").await;
        assert_eq!(client.answer().await, ok());
        self.is_produced("orders", &["billing", "tail#ephemeral"]).await;
        drop(client);
        self.is_produced("orders", &["billing"]).await;
    }

    async fn channels_that_the_directory_knows_get_the_first_message(&self) {
        self.post(self.lookupd, "/channel/create?topic=ready&channel=waiting")
            .await;
        // Created on one side only.
        self.shows("/lookup?topic=ready", json!({"channels": ["waiting"], "producers": []}))
            .await;
        let publish = request(self.nsqd, Method::POST, "/pub?topic=ready", "first".into()).await;
        assert_eq!(publish.unwrap().status, StatusCode::OK);
        self.is_produced("ready", &["waiting"]).await;
        eventually("the message reaches the channel", async || {
            let stats = self
                .get(self.nsqd, "/stats?format=json&topic=ready&channel=waiting")
                .await;
            (stats["topics"][0]["channels"][0]["depth"] == 1).then_some(())
        })
        .await;
        self.nsqd_is_a_node(json!(["orders", "ready"]), json!([false, false]))
            .await;
    }

    async fn tombstone_hides_one_topic(&self) {
        let node = format!("127.0.0.1:{}", self.nsqd.port());
        self.post(self.lookupd, &format!("/topic/tombstone?topic=ready&node={node}"))
            .await;
        self.shows("/lookup?topic=ready", json!({"channels": ["waiting"], "producers": []}))
            .await;
        self.is_produced("orders", &["billing"]).await;
        self.nsqd_is_a_node(json!(["orders", "ready"]), json!([false, true]))
            .await;
    }

    async fn deleted_things_have_no_producer(&self) {
        self.post(self.nsqd, "/topic/create?topic=gone").await;
        self.post(self.nsqd, "/channel/create?topic=gone&channel=first").await;
        self.post(self.nsqd, "/channel/create?topic=gone&channel=second").await;
        self.is_produced("gone", &["first", "second"]).await;
        self.post(self.nsqd, "/channel/delete?topic=gone&channel=first").await;
        self.has_producers("channel:gone:first", 0).await;
        self.has_producers("channel:gone:second", 1).await;
        self.has_producers("topic:gone:", 1).await;
        self.post(self.nsqd, "/topic/delete?topic=gone").await;
        self.has_producers("channel:gone:second", 0).await;
        self.has_producers("topic:gone:", 0).await;
        // The names stay until somebody deletes them here.
        self.shows(
            "/lookup?topic=gone",
            json!({"channels": ["first", "second"], "producers": []}),
        )
        .await;
        self.post(self.lookupd, "/topic/delete?topic=gone").await;
        let lookup = request(self.lookupd, Method::GET, "/lookup?topic=gone", "".into()).await;
        assert_eq!(lookup.unwrap().status, StatusCode::NOT_FOUND);
    }

    /// Waits until the directory says that the nsqd has this topic with these channels.
    async fn is_produced(&self, topic: &str, channels: &[&str]) {
        let path = format!("/lookup?topic={topic}");
        self.shows(&path, json!({"channels": channels, "producers": [self.producer()]}))
            .await;
    }

    async fn nsqd_is_a_node(&self, topics: Value, tombstones: Value) {
        let mut node = self.producer();
        node["topics"] = topics;
        node["tombstones"] = tombstones;
        self.shows("/nodes", json!({"producers": [node]})).await;
    }

    /// What the directory must say of the nsqd wherever it names it.
    fn producer(&self) -> Value {
        json!({
            "broadcast_address": "127.0.0.1",
            "tcp_port": self.tcp_port,
            "http_port": self.nsqd.port(),
            "version": "1.3.0",
        })
    }

    async fn has_producers(&self, key: &str, count: usize) {
        eventually(&format!("{key} has {count} producers"), async || {
            let debug = self.get(self.lookupd, "/debug").await;
            let producers = debug[key].as_array().map_or(0, Vec::len);
            (producers == count).then_some(())
        })
        .await;
    }

    /// Waits until the directory's answer is this one, the order of lists aside.
    async fn shows(&self, path: &str, expected: Value) {
        let mut last = Value::Null;
        let deadline = Instant::now() + DEADLINE;
        while last != expected {
            assert!(
                Instant::now() < deadline,
                "{path} within {DEADLINE:?}\nmust be {expected}\nbut is  {last}"
            );
            let answer = request(self.lookupd, Method::GET, path, "".into()).await.unwrap();
            last = serde_json::from_slice(&answer.body).map_or(Value::Null, comparable);
            tokio::time::sleep(POLL).await;
        }
    }

    async fn get(&self, address: SocketAddr, path: &str) -> Value {
        let answer = request(address, Method::GET, path, "".into()).await.unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        serde_json::from_slice(&answer.body).unwrap()
    }

    async fn post(&self, address: SocketAddr, path: &str) {
        let answer = request(address, Method::POST, path, "".into()).await.unwrap();
        let body = String::from_utf8_lossy(&answer.body);
        assert_eq!(answer.status, StatusCode::OK, "{path}: {body}");
    }
}

/// An answer of nsqlookupd without what no test can know, and with its lists in order.
fn comparable(mut answer: Value) -> Value {
    for key in ["channels", "topics"] {
        if let Some(names) = answer.get_mut(key).and_then(Value::as_array_mut) {
            names.sort_by_key(Value::to_string);
        }
    }
    let producers = answer.get_mut("producers").and_then(Value::as_array_mut);
    for producer in producers.into_iter().flatten() {
        let producer = producer.as_object_mut().unwrap();
        producer.remove("hostname");
        producer.remove("remote_address");
        // Two lists that belong together.
        let take = |producer: &mut serde_json::Map<String, Value>, key| match producer.remove(key) {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        };
        if producer.contains_key("topics") {
            let topics = take(producer, "topics");
            let mut both: Vec<_> = topics.into_iter().zip(take(producer, "tombstones")).collect();
            both.sort_by_key(|(topic, _)| topic.to_string());
            let (topics, tombstones): (Vec<_>, Vec<_>) = both.into_iter().unzip();
            producer.insert("topics".into(), topics.into());
            producer.insert("tombstones".into(), tombstones.into());
        }
    }
    answer
}
