//! What passes over a connection of each combination, whichever nsqd it is. Shared with the tests on the real nsqd.
#![allow(dead_code, unreachable_pub, reason = "each test target uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the line that did it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_nsq::{BoxError, Compression, ConnectionConfig, Consumer, ConsumerBuilder, Message, Negotiated, Producer};
use bytes::Bytes;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::support::{Combination, Encryption, House, IDENTITY, PATIENCE, SECRET};

/// An nsqd that was started with the flags of a combination.
pub trait Broker {
    fn tcp_address(&self) -> String;
    fn http_address(&self) -> String;
}

/// nsqd's largest message.
pub const LARGEST: usize = 1_048_576;

/// The sizes of messages: the smallest, those around the buffers and chunks on the way, and nsqd's largest.
const SIZES: [usize; 15] = [
    1, 2, 3, 26, 255, 1000, 4095, 4097, 16_383, 16_385, 65_535, 65_536, 65_537, 200_000, LARGEST,
];

pub fn text(seed: u64, len: usize) -> Bytes {
    let line = format!("order {seed} is to be billed to the customer; ");
    let mut text = line.repeat(len / line.len() + 1).into_bytes();
    text.truncate(len);
    text.into()
}

pub fn noise(seed: u64, len: usize) -> Bytes {
    let mut noise = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut noise);
    noise.into()
}

/// Of each size up to this one, a body that can be compressed well, and a random one.
fn bodies(seed: u64, largest: usize) -> Vec<Bytes> {
    let sizes = SIZES.into_iter().filter(|size| *size <= largest);
    sizes.flat_map(|len| [text(seed, len), noise(seed, len)]).collect()
}

/// A consumer whose bodies come out of the channel. What is in the channel is bounded by what was published.
pub async fn consume(builder: ConsumerBuilder) -> (Consumer, mpsc::UnboundedReceiver<Bytes>) {
    let (sender, bodies) = mpsc::unbounded_channel();
    let handler = move |message: Message| {
        let taken = sender.send(message.into_body());
        async move { taken.map_err(BoxError::from) }
    };
    (builder.start(handler).await.unwrap(), bodies)
}

pub async fn take(bodies: &mut mpsc::UnboundedReceiver<Bytes>, count: usize) -> Vec<Bytes> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let body = timeout(PATIENCE, bodies.recv()).await;
        let body = body.unwrap_or_else(|_| panic!("{} of {count} messages came", taken.len()));
        taken.push(body.expect("the consumer runs"));
    }
    taken
}

/// Publishes bodies of all sizes in every way and reads them back, byte for byte; nsqd and both clients must agree on
/// what was negotiated.
pub async fn every_size_and_every_publish(house: &House, combination: &Combination, broker: &impl Broker) {
    let address = broker.tcp_address();
    let connection = house.connection(combination);
    let producer = Producer::builder().nsqd(&address).connection(connection.clone());
    let producer = producer
        .connect()
        .await
        .unwrap_or_else(|error| panic!("{combination:?}: {error}"));
    let alone = bodies(1, LARGEST);
    let together = [bodies(2, 200_000), vec![text(2, LARGEST), noise(2, 800_000)]].concat();
    let later = [bodies(3, 20_000), vec![noise(3, LARGEST), text(3, 800_000)]].concat();

    // These wait for the consumer, which gets as many as fit at once.
    for body in &alone {
        producer.publish("orders", body.clone()).await.unwrap();
    }
    let consumer = Consumer::builder("orders", "billing")
        .nsqd(&address)
        .connection(connection);
    let (consumer, mut came) = consume(consumer.max_in_flight(100)).await;
    consumer.ready(PATIENCE).await.unwrap();
    producer.publish_many("orders", together.clone()).await.unwrap();
    for body in &later {
        let delay = Duration::from_millis(20);
        producer.publish_deferred("orders", delay, body.clone()).await.unwrap();
    }
    let mut expected = [alone, together, later].concat();
    let mut came = take(&mut came, expected.len()).await;
    expected.sort_unstable();
    came.sort_unstable();
    assert!(expected == came, "{combination:?}: other bodies than were published");

    for negotiated in [
        of_producer(&producer),
        Arc::clone(&consumer.connections()[0].negotiated),
    ] {
        check(combination, &negotiated);
    }
    check_stats(combination, &stats(&broker.http_address()).await);
    check_auth(house, combination);
    let report = consumer.shutdown(PATIENCE).await;
    assert!(report.is_clean(), "{combination:?}: {report:?}");
    assert!(producer.shutdown(PATIENCE).await.is_clean());
}

pub fn of_producer(producer: &Producer) -> Arc<Negotiated> {
    let stats = producer.stats();
    Arc::clone(stats.nsqds[0].negotiated.as_ref().expect("it is connected"))
}

/// What the client says was negotiated.
fn check(combination: &Combination, negotiated: &Negotiated) {
    let Combination {
        encryption,
        compression,
        auth,
    } = combination;
    let encrypted = *encryption != Encryption::Plain;
    let identify = &negotiated.identify;
    assert_eq!(identify.tls_v1, encrypted, "{combination:?}");
    assert_eq!(identify.snappy, *compression == Compression::Snappy, "{combination:?}");
    assert_eq!(
        identify.deflate,
        matches!(compression, Compression::Deflate { .. }),
        "{combination:?}"
    );
    if let Compression::Deflate { level } = compression {
        assert_eq!(identify.deflate_level, i64::from(*level), "{combination:?}");
    }
    assert_eq!(identify.auth_required, *auth, "{combination:?}");
    let version = negotiated.tls.as_ref().map(|session| &session.version[..]);
    assert_eq!(version, encrypted.then_some("TLSv1_3"), "{combination:?}");
    let identity = negotiated
        .auth
        .as_ref()
        .map(|auth| (&auth.identity[..], auth.permission_count));
    assert_eq!(identity, auth.then_some((IDENTITY, 1)), "{combination:?}");
}

/// What nsqd says was negotiated.
fn check_stats(combination: &Combination, stats: &Value) {
    let encrypted = combination.encryption != Encryption::Plain;
    let identity = if combination.auth { IDENTITY } else { "" };
    let consumer = &stats["topics"][0]["channels"][0]["clients"][0];
    for client in [&stats["producers"][0], consumer] {
        let told = |key: &str| client[key].as_bool().unwrap_or_else(|| panic!("no {key} in {client}"));
        assert_eq!(told("tls"), encrypted, "{combination:?}: {client}");
        assert_eq!(
            told("snappy"),
            combination.compression == Compression::Snappy,
            "{combination:?}: {client}"
        );
        let deflate = matches!(combination.compression, Compression::Deflate { .. });
        assert_eq!(told("deflate"), deflate, "{combination:?}: {client}");
        assert_eq!(
            client["auth_identity"].as_str().unwrap_or_default(),
            identity,
            "{combination:?}: {client}"
        );
    }
}

/// What the auth server was asked.
fn check_auth(house: &House, combination: &Combination) {
    let asked = house.auth.requests();
    // For the producer and the consumer.
    assert_eq!(
        asked.len(),
        if combination.auth { 2 } else { 0 },
        "{combination:?}: {asked:?}"
    );
    let name = if combination.encryption == Encryption::MutualTls {
        IDENTITY
    } else {
        ""
    };
    for request in asked {
        assert_eq!(request.secret(), SECRET);
        assert_eq!(
            request.tls,
            combination.encryption != Encryption::Plain,
            "{combination:?}: {request:?}"
        );
        assert_eq!(request.common_name, name, "{combination:?}: {request:?}");
    }
}

/// nsqd's statistics.
async fn stats(http_address: &str) -> Value {
    let mut stream = TcpStream::connect(http_address).await.unwrap();
    let request = "GET /stats?format=json&include_mem=false HTTP/1.0\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let body = answer
        .windows(4)
        .position(|bytes| bytes == b"\r\n\r\n")
        .expect("an HTTP answer")
        + 4;
    serde_json::from_slice(&answer[body..]).expect("nsqd answers JSON")
}

/// nsqd lowers the level of deflate to its largest, 6, and both speak what it grants.
pub async fn every_level_of_deflate(house: &House, broker: &impl Broker) {
    for (topic, level) in (1..=9).map(|level| (format!("level-{level}"), level)) {
        let connection = ConnectionConfig::new().compression(Compression::Deflate { level });
        let producer = Producer::builder()
            .nsqd(broker.tcp_address())
            .connection(connection.clone());
        let producer = producer.connect().await.unwrap();
        assert_eq!(of_producer(&producer).identify.deflate_level, i64::from(level.min(6)));
        let bodies = bodies(level.into(), 200_000);
        producer.publish_many(&topic, bodies.clone()).await.unwrap();
        let consumer = Consumer::builder(&topic, "billing").nsqd(broker.tcp_address());
        let (_consumer, mut came) = consume(consumer.connection(connection).max_in_flight(100)).await;
        let mut came = take(&mut came, bodies.len()).await;
        came.sort_unstable();
        let mut expected = bodies;
        expected.sort_unstable();
        assert!(came == expected, "level {level}");
    }
    assert!(house.auth.requests().is_empty());
}

/// How many messages to send through a codec: what `NEGOTIATION_MESSAGES` says, or else so many.
pub fn count(otherwise: u32) -> u32 {
    let told = std::env::var("NEGOTIATION_MESSAGES");
    told.map_or(otherwise, |count| {
        count.parse().expect("NEGOTIATION_MESSAGES is a number")
    })
}

/// How many messages at most leave with one `publish_many`.
const TOGETHER: u32 = 500;

/// Bodies by number, of 4 to 83 bytes.
#[derive(Clone)]
struct Numbered {
    /// Half of it can be compressed.
    filling: Bytes,
}

impl Numbered {
    fn new() -> Self {
        let filling = [text(4, 1000), noise(4, 1000)].concat();
        Self {
            filling: filling.into(),
        }
    }

    fn body(&self, number: u32) -> Bytes {
        let from = number as usize * 31 % 1920;
        let mut body = Vec::with_capacity(100);
        body.extend_from_slice(&number.to_be_bytes());
        body.extend_from_slice(&self.filling[from..from + number as usize % 80]);
        body.into()
    }

    /// The number of a body, if it is as it was.
    fn number(&self, body: &Bytes) -> Option<u32> {
        let number = u32::from_be_bytes(body.get(..4)?.try_into().unwrap());
        (*body == self.body(number)).then_some(number)
    }
}

/// Publishes so many small messages and has each of them come, exactly once and as it was. Gives the time for publishing and
/// the time from the first to the last message, which overlap.
pub async fn many_messages(house: &House, combination: &Combination, broker: &impl Broker, count: u32) -> String {
    let connection = house.connection(combination);
    let seen: Arc<[AtomicU8]> = (0..count).map(|_| AtomicU8::new(0)).collect();
    let numbered = Numbered::new();
    let bodies = numbered.clone();
    let (sender, mut done) = mpsc::unbounded_channel();
    let handler_seen = Arc::clone(&seen);
    let left = Arc::new(AtomicU32::new(count));
    let consumer = Consumer::builder("orders", "billing")
        .nsqd(broker.tcp_address())
        .connection(connection.clone())
        .max_in_flight(2500)
        .start(move |message: Message| {
            let number = bodies.number(message.body());
            let seen = number.and_then(|number| handler_seen.get(number as usize));
            let fresh = seen.is_some_and(|seen| seen.fetch_add(1, Ordering::Relaxed) == 0);
            if !fresh || left.fetch_sub(1, Ordering::Relaxed) == 1 {
                let _the_test_may_have_failed = sender.send(if fresh { Ok(()) } else { Err(message.into_body()) });
            }
            std::future::ready(Ok::<(), BoxError>(()))
        })
        .await
        .unwrap();
    consumer.ready(PATIENCE).await.unwrap();
    let begin = Instant::now();
    let producer = Producer::builder().nsqd(broker.tcp_address()).connection(connection);
    let producer = producer.connect().await.unwrap();
    let mut number = 0;
    while number < count {
        let next = count.min(number + TOGETHER);
        producer
            .publish_many("orders", (number..next).map(|number| numbered.body(number)))
            .await
            .unwrap();
        number = next;
    }
    let published = begin.elapsed();
    match timeout(10 * PATIENCE, done.recv()).await {
        Ok(Some(Ok(()))) => {}
        Ok(wrong) => panic!("{combination:?}: wrong, or for the second time: {wrong:?}"),
        Err(_elapsed) => panic!("{combination:?}: messages are missing, {:?}", consumer.stats()),
    }
    let consumed = begin.elapsed();
    let report = consumer.shutdown(PATIENCE).await;
    assert!(
        report.is_clean() && report.finished == u64::from(count),
        "{combination:?}: {report:?}"
    );
    assert!(
        seen.iter().all(|seen| seen.load(Ordering::Relaxed) == 1),
        "{combination:?}"
    );
    format!("{count} messages, {combination:?}: published in {published:.1?}, all consumed after {consumed:.1?}")
}
