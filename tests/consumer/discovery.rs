//! Consuming through nsqlookupd, and what `ready` says when it does not work.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nsq::transport::{BoxIo, Connecting, Connector, MemoryConnector, MemoryNetwork};
use async_nsq::{ConnectionConfig, Consumer, ConsumerBuilder, Error, ErrorKind, LookupdConfig, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::scripted::{FIRST, Nsqd, SECOND, chain, fin, succeed, text};
use crate::support::{Command, settle};

const LOOKUPD: &str = "lookupd:4161";

/// An nsqlookupd that announces what it is told to.
struct Lookupd {
    announced: Arc<Mutex<Option<Vec<&'static str>>>>,
    /// How often it was asked.
    asked: Arc<AtomicUsize>,
    server: JoinHandle<()>,
}

impl Lookupd {
    /// `None` says that it does not know the topic. Of `host@port`, the port is the one at which it sees the nsqd, another
    /// one for each registration, and `*` is another one in each answer.
    fn start(network: &MemoryNetwork, announced: Option<Vec<&'static str>>) -> Self {
        let mut listener = network.listen(LOOKUPD).unwrap();
        let announced = Arc::new(Mutex::new(announced));
        let asked = Arc::<AtomicUsize>::default();
        let (answers, asking) = (Arc::clone(&announced), Arc::clone(&asked));
        let server = tokio::spawn(async move {
            loop {
                let io = listener.accept().await;
                let number = asking.fetch_add(1, Ordering::Relaxed);
                let answer = answer(answers.lock().unwrap().as_deref(), number);
                tokio::spawn(serve(io, answer));
            }
        });
        Self {
            announced,
            asked,
            server,
        }
    }

    fn announce(&self, announced: Option<Vec<&'static str>>) {
        *self.announced.lock().unwrap() = announced;
    }
}

impl Drop for Lookupd {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn answer(announced: Option<&[&str]>, number: usize) -> String {
    let (status, body) = match announced {
        None => ("404 Not Found", r#"{"message":"TOPIC_NOT_FOUND"}"#.to_owned()),
        Some(hosts) => {
            let producers: Vec<_> = hosts
                .iter()
                .map(|host| {
                    let (host, port) = host.split_once('@').unwrap_or((host, "1"));
                    let port = port.replace('*', &number.to_string());
                    format!(
                        r#"{{"broadcast_address":"{host}","remote_address":"10.0.0.7:{port}","hostname":"h","tcp_port":4150,"http_port":4151}}"#
                    )
                })
                .collect();
            let producers = producers.join(",");
            ("200 OK", format!(r#"{{"channels":[],"producers":[{producers}]}}"#))
        }
    };
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

async fn serve(mut io: BoxIo, answer: String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match io.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let _the_client_may_be_gone = io.write_all(answer.as_bytes()).await;
    let _until_it_closes = io.read_u8().await;
}

fn consumer(network: &MemoryNetwork) -> ConsumerBuilder {
    Consumer::builder("orders", "billing")
        .connection(ConnectionConfig::new().connector(network.connector()))
        .lookupd(LOOKUPD)
        .max_in_flight(10)
}

/// A handler that takes as many seconds as the body says.
async fn sleep_by_body(message: Message) -> Result<(), Error> {
    tokio::time::sleep(Duration::from_secs(text(&message).parse().unwrap())).await;
    Ok(())
}

async fn not_ready(consumer: &Consumer) -> Error {
    let error = consumer.ready(10 * SECOND).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    error
}

#[tokio::test(start_paused = true)]
async fn n5_lesson_58_an_announced_nsqd_is_consumed_and_an_outage_of_nsqlookupd_changes_nothing() {
    let network = MemoryNetwork::new();
    let mut nsqd = Nsqd::start_at(&network, "nsqd:4150");
    let lookupd = Lookupd::start(&network, None);
    let consumer = consumer(&network).start(succeed).await.unwrap();
    let error = not_ready(&consumer).await;
    for part in [LOOKUPD, "topic orders"] {
        assert!(chain(&error).contains(part), "{error}");
    }
    lookupd.announce(Some(vec!["nsqd"]));
    let mut peer = nsqd.accept().await;
    consumer.ready(SECOND).await.unwrap();
    assert_eq!(peer.command().await, Command::Rdy(10));
    drop(lookupd);
    for number in 0..30 {
        tokio::time::sleep(20 * SECOND).await;
        peer.heartbeat().await;
        peer.deliver([number]).await;
        assert_eq!(peer.command().await, fin(number));
    }
    // Not even when the nsqd is lost meanwhile.
    drop(peer);
    let mut peer = nsqd.accept().await;
    assert_eq!(peer.command().await, Command::Rdy(10));
}

#[tokio::test(start_paused = true)]
async fn n5_lesson_57_an_nsqd_that_is_no_longer_announced_is_left_once_its_messages_are_answered() {
    let network = MemoryNetwork::new();
    let mut nsqd = Nsqd::start_at(&network, "nsqd:4150");
    let lookupd = Lookupd::start(&network, Some(vec!["nsqd"]));
    let consumer = consumer(&network)
        .lookupd_poll_interval(10 * SECOND)
        .start(sleep_by_body)
        .await
        .unwrap();
    let mut peer = nsqd.accept().await;
    assert_eq!(peer.command().await, Command::Rdy(10));
    peer.deliver([100]).await;
    lookupd.announce(Some(vec![]));
    for _ in 0..3 {
        tokio::time::sleep(25 * SECOND).await;
        peer.heartbeat().await;
    }
    assert_eq!(peer.command().await, Command::Cls);
    peer.respond(b"CLOSE_WAIT").await;
    assert_eq!(peer.command().await, fin(100));
    assert_eq!(peer.expect_close().await, 0);
    settle().await;
    assert_eq!(consumer.stats().connections, 0);
    // Announced again, it is consumed again.
    lookupd.announce(Some(vec!["nsqd"]));
    let mut peer = nsqd.accept().await;
    assert_eq!(peer.command().await, Command::Rdy(10));
    consumer.ready(SECOND).await.unwrap();
}

/// Drops each connection once it is subscribed, for so long. Returns how often there was one.
async fn crash_for(nsqd: &mut Nsqd, duration: Duration) -> u32 {
    let mut connections = 0;
    let crashing = async {
        loop {
            drop(nsqd.accept().await);
            connections += 1;
        }
    };
    assert!(timeout(duration, crashing).await.is_err());
    connections
}

#[tokio::test(start_paused = true)]
async fn n2_an_nsqd_that_registers_anew_is_dialled_at_once_however_far_it_was_backed_off_from() {
    let network = MemoryNetwork::new();
    let mut nsqd = Nsqd::start_at(&network, "nsqd:4150");
    let lookupd = Lookupd::start(&network, Some(vec!["nsqd@1"]));
    let consumer = consumer(&network)
        .lookupd_poll_interval(5 * SECOND)
        .start(succeed)
        .await
        .unwrap();
    // Announced without a change, it is dialled at the pace of the backoff.
    let connections = crash_for(&mut nsqd, 600 * SECOND).await;
    assert!((15..40).contains(&connections), "{connections} in ten minutes");
    for seen_at in ["nsqd@2", "nsqd@3"] {
        lookupd.announce(Some(vec![seen_at]));
        let announced = Instant::now();
        let mut peer = nsqd.accept().await;
        assert!(announced.elapsed() <= 5 * SECOND, "{:?}", announced.elapsed());
        peer.deliver([1]).await;
        while peer.command().await != fin(1) {}
        // Once for each registration, and no more.
        drop(peer);
        assert!(crash_for(&mut nsqd, 100 * SECOND).await <= 4);
    }
    // Gone, and seen again as it was before: a moment's break of its connection to nsqlookupd.
    lookupd.announce(Some(vec![]));
    crash_for(&mut nsqd, 20 * SECOND).await;
    lookupd.announce(Some(vec!["nsqd@3"]));
    let announced = Instant::now();
    let _peer = nsqd.accept().await;
    assert!(announced.elapsed() <= 5 * SECOND, "{:?}", announced.elapsed());
    consumer.ready(SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn n5_a_registration_anew_does_not_touch_a_connection_and_hastens_nothing_after_its_end() {
    let network = MemoryNetwork::new();
    let mut nsqd = Nsqd::start_at(&network, "nsqd:4150");
    let lookupd = Lookupd::start(&network, Some(vec!["nsqd@1"]));
    let _consumer = consumer(&network).start(succeed).await.unwrap();
    let mut peer = nsqd.accept().await;
    assert_eq!(peer.command().await, Command::Rdy(10));
    lookupd.announce(Some(vec!["nsqd@2"]));
    for number in 0..10 {
        tokio::time::sleep(20 * SECOND).await;
        peer.heartbeat().await;
        peer.deliver([number]).await;
        assert_eq!(peer.command().await, fin(number));
    }
    let lost = Instant::now();
    drop(peer);
    let _peer = nsqd.accept().await;
    assert!(lost.elapsed() >= Duration::from_millis(100), "spread as ever");
}

/// Counts the attempts to reach nsqds.
#[derive(Debug)]
struct Counting(MemoryConnector, Arc<AtomicUsize>);

impl Connector for Counting {
    fn connect(&self, address: &str) -> Connecting {
        if address != LOOKUPD {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
        self.0.connect(address)
    }
}

#[tokio::test(start_paused = true)]
async fn n5_a_registration_anew_in_each_answer_costs_an_attempt_a_round_and_no_further_rounds() {
    let network = MemoryNetwork::new();
    let lookupd = Lookupd::start(&network, Some(vec!["unreachable@*", "unreachable@7*"]));
    let dials = Arc::<AtomicUsize>::default();
    let connection = ConnectionConfig::new().connector(Counting(network.connector(), Arc::clone(&dials)));
    let _consumer = consumer(&network).connection(connection).start(succeed).await.unwrap();
    tokio::time::sleep(600 * SECOND).await;
    let (dials, rounds) = (dials.load(Ordering::Relaxed), lookupd.asked.load(Ordering::Relaxed));
    assert!((10..20).contains(&rounds), "{rounds} rounds in ten minutes");
    // Besides those of the backoff, which goes on.
    assert!(
        (rounds..rounds + 25).contains(&dials),
        "{dials} dials in {rounds} rounds"
    );
}

#[tokio::test(start_paused = true)]
async fn c7_an_nsqd_that_is_being_left_is_not_told_twice_to_stop() {
    let network = MemoryNetwork::new();
    let mut nsqd = Nsqd::start_at(&network, "nsqd:4150");
    let lookupd = Lookupd::start(&network, Some(vec!["nsqd"]));
    let consumer = consumer(&network)
        .lookupd_poll_interval(10 * SECOND)
        .start(sleep_by_body)
        .await
        .unwrap();
    let mut peer = nsqd.accept().await;
    assert_eq!(peer.command().await, Command::Rdy(10));
    peer.deliver([100]).await;
    lookupd.announce(Some(vec![]));
    for _ in 0..3 {
        tokio::time::sleep(25 * SECOND).await;
        peer.heartbeat().await;
    }
    assert_eq!(peer.command().await, Command::Cls);
    peer.respond(b"CLOSE_WAIT").await;
    let ending = tokio::spawn(async move { consumer.shutdown(60 * SECOND).await });
    // nsqd closes at a second CLS, and the answer to what is still being handled would be lost.
    assert_eq!(peer.command().await, fin(100));
    assert_eq!(peer.expect_close().await, 0);
    let report = ending.await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.finished, FIRST + 1);
}

#[tokio::test(start_paused = true)]
async fn n5_lesson_62_an_unreachable_address_is_told_with_the_nsqlookupd_that_announces_it() {
    let network = MemoryNetwork::new();
    let _lookupd = Lookupd::start(&network, Some(vec!["container-7"]));
    let consumer = consumer(&network).start(succeed).await.unwrap();
    let error = not_ready(&consumer).await;
    for part in [LOOKUPD, "container-7:4150", "broadcast-address"] {
        assert!(chain(&error).contains(part), "{error}");
    }
    let mut causes = 0;
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = cause {
        causes += 1;
        cause = error.source();
    }
    assert!(causes >= 4, "down to the refusal of the connection");
}

#[tokio::test(start_paused = true)]
async fn lesson_53_ready_names_the_nsqlookupd_that_cannot_be_reached() {
    let network = MemoryNetwork::new();
    let error = not_ready(&consumer(&network).start(succeed).await.unwrap()).await;
    assert!(chain(&error).contains(LOOKUPD), "{error}");
}

/// Reaches nsqlookupd, and waits for ever for nsqds.
#[derive(Debug)]
struct BlackHole(MemoryConnector);

impl Connector for BlackHole {
    fn connect(&self, address: &str) -> Connecting {
        if address == LOOKUPD {
            self.0.connect(address)
        } else {
            Box::pin(std::future::pending())
        }
    }
}

#[tokio::test(start_paused = true)]
async fn ready_does_not_blame_nsqlookupd_for_an_nsqd_that_does_not_answer() {
    let network = MemoryNetwork::new();
    let _lookupd = Lookupd::start(&network, Some(vec!["first", "second"]));
    let connection = ConnectionConfig::new()
        .connector(BlackHole(network.connector()))
        .dial_timeout(60 * SECOND);
    let consumer = consumer(&network).connection(connection).start(succeed).await.unwrap();
    let error = not_ready(&consumer).await;
    assert!(chain(&error).contains("first:4150"), "{error}");
    assert!(!error.to_string().contains("knows no nsqd"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn lesson_53_ready_counts_the_nsqds_that_refuse_and_names_one() {
    let network = MemoryNetwork::new();
    let consumer = Consumer::builder("orders", "billing")
        .connection(ConnectionConfig::new().connector(network.connector()))
        .nsqd("one:4150")
        .nsqd("two:4150")
        .nsqd("three:4150")
        .start(succeed)
        .await
        .unwrap();
    let error = not_ready(&consumer).await;
    assert!(chain(&error).contains("one:4150"), "{error}");
    assert!(chain(&error).contains("3 addresses fail"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn n5_lesson_62_nsqds_are_filtered_and_reached_at_the_mapped_address() {
    let network = MemoryNetwork::new();
    let mut nsqd = Nsqd::start_at(&network, "published:14150");
    let _lookupd = Lookupd::start(&network, Some(vec!["container-7", "elsewhere"]));
    let consumer = consumer(&network)
        .discovery_filter(|nsqd| nsqd.broadcast_address.starts_with("container"))
        .map_address(|nsqd| format!("published:1{}", nsqd.tcp_port))
        .start(succeed)
        .await
        .unwrap();
    let mut peer = nsqd.accept().await;
    consumer.ready(SECOND).await.unwrap();
    assert_eq!(peer.command().await, Command::Rdy(10));
    assert_eq!(consumer.connections().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn n5_lesson_62_a_hook_that_panics_ends_nothing() {
    let network = MemoryNetwork::new();
    let mut nsqd = Nsqd::start_at(&network, "good:4150");
    let _lookupd = Lookupd::start(&network, Some(vec!["bad", "good"]));
    let consumer = consumer(&network)
        .map_address(|nsqd| {
            assert_ne!(nsqd.broadcast_address, "bad");
            nsqd.tcp_address()
        })
        .start(succeed)
        .await
        .unwrap();
    let mut peer = nsqd.accept().await;
    consumer.ready(SECOND).await.unwrap();
    assert_eq!(peer.command().await, Command::Rdy(10));
    peer.deliver([1]).await;
    assert_eq!(peer.command().await, fin(1));
}

#[tokio::test]
async fn options_of_discovery_are_checked_at_the_start() {
    let network = MemoryNetwork::new();
    for (builder, option) in [
        (
            consumer(&network).lookupd_poll_interval(Duration::ZERO),
            "lookupd_poll_interval",
        ),
        (consumer(&network).lookupd_poll_jitter(1.1), "lookupd_poll_jitter"),
        (consumer(&network).lookupd_timeout(Duration::ZERO), "lookupd_timeout"),
        (consumer(&network).max_nsqds(0), "max_nsqds"),
        (consumer(&network).max_lookupd_answer(1), "max_lookupd_answer"),
        (
            consumer(&network).lookupd(LookupdConfig::new("b:4161").header("X Team", "hush")),
            "lookupd",
        ),
        (
            consumer(&network).lookupd(LookupdConfig::new("b:4161").bearer("hush")),
            "allow_plaintext_auth",
        ),
        (
            Consumer::builder("orders", "tail#ephemeral")
                .lookupd(LOOKUPD)
                .create_topic_and_channel(true),
            "create_topic_and_channel",
        ),
    ] {
        assert!(!format!("{builder:?}").contains("hush"), "{builder:?}");
        let error = builder.start(succeed).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(option), "{error}");
        assert!(!error.to_string().contains("hush"), "{error}");
    }
}
