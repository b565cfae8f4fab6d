//! What nsqd does over longer histories than a line of `tests/conformance` can tell.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the line that did it")]

#[allow(dead_code, reason = "each test binary uses its part")]
#[path = "support/raw.rs"]
mod raw;

use std::time::Duration;

use async_nsq::protocol::{Command, Frame, HEARTBEAT, Message, Secret};
use async_nsq::test_server::{AuthServer, Grant, Lookupd, LookupdState, Nsqd, NsqdBuilder, Permission, Stats};
use async_nsq::transport::{Connector, MemoryNetwork};
use bytes::Bytes;
use raw::{Event, RawClient};
use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, sleep};

const ADDRESS: &str = "nsqd:4150";

async fn start(network: &MemoryNetwork, builder: NsqdBuilder) -> Nsqd {
    builder.start_in(network, ADDRESS).await.unwrap()
}

async fn client(network: &MemoryNetwork) -> RawClient {
    RawClient::open(&network.connector(), ADDRESS).await
}

async fn consumer(network: &MemoryNetwork, topic: &str, channel: &str, rdy: u32) -> RawClient {
    let mut client = client(network).await;
    client.subscribe(topic, channel, rdy).await;
    client
}

fn registering_at(lookupd: &Lookupd) -> NsqdBuilder {
    let builder = Nsqd::builder().flag("lookupd-tcp-address", lookupd.tcp_address());
    builder.unwrap()
}

async fn identify(client: &mut RawClient, body: &'static str) {
    let body = Bytes::from_static(body.as_bytes());
    client.ask(Command::Identify { body }, "OK").await;
}

fn deferred(ms: u64) -> Command {
    Command::Dpub {
        topic: "t".to_owned(),
        delay_ms: ms,
        body: "deferred".into(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_gets_a_heartbeat_after_30_s_and_is_closed_after_60_s() {
    let network = MemoryNetwork::new();
    let _nsqd = start(&network, Nsqd::builder()).await;
    let opened = Instant::now();
    let mut client = client(&network).await;
    let first = client.next(Duration::from_secs(100)).await;
    assert_eq!(first, Event::Frame(Frame::Response(Bytes::from_static(HEARTBEAT))));
    assert_eq!(opened.elapsed(), Duration::from_secs(30));
    // The second heartbeat and the end fall together.
    while client.next(Duration::from_secs(100)).await != Event::Closed {}
    assert_eq!(opened.elapsed(), Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_trickles_in_does_not_extend_the_deadline() {
    let network = MemoryNetwork::new();
    let _nsqd = start(&network, Nsqd::builder()).await;
    let mut client = client(&network).await;
    identify(&mut client, r#"{"heartbeat_interval":1000}"#).await;
    let begun = Instant::now();
    client.send_bytes(b"PUB t\n\x00\x00\x00\x64").await;
    let end = loop {
        match client.next(Duration::from_millis(400)).await {
            Event::Frame(Frame::Response(text)) if text == HEARTBEAT => {}
            Event::Nothing => client.send_bytes(b"x").await,
            event => break event,
        }
    };
    let text = Bytes::from_static(b"E_BAD_MESSAGE PUB failed to read message body");
    assert_eq!(end, Event::Frame(Frame::Error(text)));
    assert_eq!(begun.elapsed(), Duration::from_secs(2));
    while client.next(Duration::from_secs(10)).await != Event::Closed {}
}

#[tokio::test(start_paused = true)]
async fn a_sample_of_1_delivers_about_2_percent_and_drops_the_rest() {
    const MESSAGES: usize = 3_000;
    let network = MemoryNetwork::new();
    let nsqd = start(&network, Nsqd::builder()).await;
    for _ in 0..MESSAGES {
        nsqd.publish("t", "x").unwrap();
    }
    let mut client = client(&network).await;
    identify(&mut client, r#"{"sample_rate":1}"#).await;
    client.subscribe("t", "c", 2_500).await;
    let mut delivered = 0;
    while let Event::Frame(frame) = client.next(Duration::from_secs(5)).await {
        if let Frame::Message(Message { id, .. }) = frame {
            client.send(Command::Fin { id }).await;
            delivered += 1;
        }
    }
    // 60 are expected; fewer than 20 or more than 120 come once in a million runs.
    assert!(
        (20..=120).contains(&delivered),
        "{delivered} of {MESSAGES} were delivered"
    );
    let channel = nsqd.channel("t", "c").unwrap();
    assert_eq!((channel.depth, channel.in_flight, channel.deferred), (0, 0, 0));
    assert_eq!(channel.requeue_count + channel.timeout_count, 0);
}

#[tokio::test(start_paused = true)]
async fn a_restart_keeps_queued_in_flight_and_deferred_messages_and_forgets_delays() {
    let network = MemoryNetwork::new();
    let nsqd = start(&network, Nsqd::builder()).await;
    let mut first = consumer(&network, "t", "c", 1).await;
    nsqd.publish("t", "in flight").unwrap();
    assert_eq!(first.message().await.attempts, 1);
    nsqd.publish("t", "queued").unwrap();
    first.ask(deferred(3_600_000), "OK").await;
    let _ephemeral = consumer(&network, "t", "e#ephemeral", 0).await;
    let _other = consumer(&network, "gone#ephemeral", "c", 0).await;

    nsqd.restart().await.unwrap();
    assert_eq!(first.next(Duration::ZERO).await, Event::Closed);
    assert!(nsqd.channel("t", "e#ephemeral").is_none());
    assert!(nsqd.topic("gone#ephemeral").is_none());

    let mut second = consumer(&network, "t", "c", 5).await;
    let mut messages = Vec::new();
    for _ in 0..3 {
        let Message { body, attempts, .. } = second.message().await;
        messages.push((String::from_utf8(body.to_vec()).unwrap(), attempts));
    }
    messages.sort();
    let expected = [("deferred", 1), ("in flight", 2), ("queued", 1)];
    assert_eq!(messages, expected.map(|(body, attempts)| (body.to_owned(), attempts)));
}

#[tokio::test(start_paused = true)]
async fn a_paused_channel_is_still_paused_after_a_restart() {
    let network = MemoryNetwork::new();
    let nsqd = start(&network, Nsqd::builder()).await;
    let _before = consumer(&network, "t", "c", 0).await;
    let mut http = network.connector().connect("nsqd:4151").await.unwrap();
    let request = b"POST /channel/pause?topic=t&channel=c HTTP/1.1\r\nHost: nsqd\r\nContent-Length: 0\r\n\r\n";
    http.write_all(request).await.unwrap();
    let paused = |stats: &Stats| stats.channel("t", "c").is_some_and(|channel| channel.paused);
    nsqd.wait_for(paused).await.unwrap();

    nsqd.restart().await.unwrap();
    assert!(nsqd.channel("t", "c").unwrap().paused);
    let mut after = consumer(&network, "t", "c", 1).await;
    nsqd.publish("t", "x").unwrap();
    after.assert_silent(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_topic_begins_with_the_channels_that_nsqlookupd_knows() {
    let network = MemoryNetwork::new();
    let lookupd = Lookupd::builder().start_in(&network, "lookupd:4161").await.unwrap();
    // Another nsqd has the topic already.
    let elsewhere = Nsqd::builder().lookupd(&lookupd);
    let elsewhere = elsewhere.start_in(&network, "elsewhere:4150").await.unwrap();
    let mut other = RawClient::open(&network.connector(), "elsewhere:4150").await;
    other.subscribe("t", "a", 0).await;
    let mut ephemeral = RawClient::open(&network.connector(), "elsewhere:4150").await;
    ephemeral.subscribe("t", "e#ephemeral", 0).await;
    let known = |state: &LookupdState| state.topics.iter().any(|topic| topic.channels.len() == 2);
    lookupd.wait_for(known).await.unwrap();

    let nsqd = start(&network, registering_at(&lookupd)).await;
    let registered = |state: &LookupdState| state.nodes.len() == 2;
    lookupd.wait_for(registered).await.unwrap();
    let mut publisher = client(&network).await;
    let first = Command::Pub {
        topic: "t".to_owned(),
        body: "x".into(),
    };
    publisher.ask(first, "OK").await;
    let taken = |stats: &Stats| stats.channel("t", "a").is_some_and(|channel| channel.depth == 1);
    nsqd.wait_for(taken).await.unwrap();
    assert!(nsqd.channel("t", "e#ephemeral").is_none());
    drop(elsewhere);
}

#[tokio::test(start_paused = true)]
async fn an_nsqd_that_stops_leaves_its_topics_at_nsqlookupd_without_producers() {
    let network = MemoryNetwork::new();
    let lookupd = Lookupd::builder().start_in(&network, "lookupd:4161").await.unwrap();
    let nsqd = start(&network, registering_at(&lookupd)).await;
    let _consumer = consumer(&network, "t", "c", 0).await;
    let producers = |count: usize| {
        move |state: &LookupdState| {
            state
                .topics
                .iter()
                .any(|topic| topic.name == "t" && topic.producers.len() == count)
        }
    };
    lookupd.wait_for(producers(1)).await.unwrap();
    nsqd.stop().await;
    let state = lookupd.wait_for(producers(0)).await.unwrap();
    assert!(state.nodes.is_empty());
    assert_eq!(state.topics[0].channels, ["c"]);
}

#[tokio::test(start_paused = true)]
async fn coarse_timers_are_late_for_a_new_channel_and_nearly_exact_for_a_known_one() {
    let network = MemoryNetwork::new();
    let _nsqd = start(&network, Nsqd::builder().coarse_timers(true)).await;
    let mut consumer = consumer(&network, "t", "c", 5).await;
    let mut delays = Vec::new();
    for _ in 0..2 {
        let published = Instant::now();
        consumer.ask(deferred(100), "OK").await;
        let Message { id, .. } = consumer.message().await;
        consumer.send(Command::Fin { id }).await;
        delays.push(published.elapsed());
    }
    assert!(delays[0] <= Duration::from_millis(5_300), "{delays:?}");
    // The timer of the output buffer comes on top.
    assert!(delays[1] <= Duration::from_millis(100 + 100 + 250), "{delays:?}");
    assert!(
        delays.iter().all(|&delay| delay >= Duration::from_millis(100)),
        "{delays:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn of_two_auth_servers_one_that_answers_is_enough() {
    let network = MemoryNetwork::new();
    let auth = AuthServer::start_in(&network, "auth:4181").await.unwrap();
    let everything = Grant::new().ttl(Duration::from_secs(1));
    let everything = everything.allow(".*", [".*"], [Permission::Publish, Permission::Subscribe]);
    auth.grant("s", everything);
    let builder = Nsqd::builder().flag("auth-http-address", "nobody:1").unwrap();
    let builder = builder.flag("auth-http-address", auth.address()).unwrap();
    let nsqd = start(&network, builder).await;
    let secret = Secret::new("s");
    for _ in 0..5 {
        let mut client = client(&network).await;
        client.send(Command::Auth { secret: secret.clone() }).await;
        assert!(matches!(client.frame().await, Frame::Response(_)));
    }

    // A consumer is not asked again.
    let mut consumer = client(&network).await;
    consumer.send(Command::Auth { secret }).await;
    consumer.frame().await;
    consumer.subscribe("t", "c", 1).await;
    auth.revoke("s");
    sleep(Duration::from_secs(10)).await;
    nsqd.publish("t", "x").unwrap();
    assert_eq!(consumer.message().await.body, "x");
}
