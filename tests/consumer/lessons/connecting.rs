//! Section 3.4: connecting to nsqds, and what is told when it does not work.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nsq::test_server::{Lookupd, Nsqd, ServerTls, TlsRequired};
use async_nsq::transport::{Connecting, Connector, MemoryConnector, MemoryNetwork};
use async_nsq::{ConnectionConfig, ErrorKind, Step};
use tokio::time::{Instant, sleep};

use super::{ADDRESS, House, LOOKUPD, Notes, PATIENCE, announced, consumer_in, lookupd, only, rest, until};
use crate::scripted::{self, SECOND, chain, succeed};
use crate::support::Command;

/// Notes whom it is asked to connect to and when.
#[derive(Debug)]
struct Noted {
    inner: MemoryConnector,
    dials: Notes<(String, Instant)>,
}

impl Connector for Noted {
    fn connect(&self, address: &str) -> Connecting {
        self.dials.add((address.to_owned(), Instant::now()));
        self.inner.connect(address)
    }
}

fn noted(network: &MemoryNetwork) -> (ConnectionConfig, Notes<(String, Instant)>) {
    let dials = Notes::new();
    let connector = Noted {
        inner: network.connector(),
        dials: dials.clone(),
    };
    (ConnectionConfig::new().connector(connector), dials)
}

#[tokio::test(start_paused = true)]
async fn lesson_59_an_nsqd_that_was_removed_while_it_was_away_is_not_dialled_again() {
    let house = House::new().await;
    let (connection, dials) = noted(&house.network);
    let builder = house.consumer().nsqd("other:4150").connection(connection);
    let consumer = builder.start(succeed).await.unwrap();
    until(&consumer, |stats| stats.connections == 1).await;
    house.nsqd.kill().await;
    sleep(300 * SECOND).await;
    assert!(consumer.remove_nsqd(ADDRESS).await.unwrap());
    house.nsqd.restart().await.unwrap();
    dials.take();
    sleep(PATIENCE).await;
    assert!(dials.take().iter().all(|(address, _)| address == "other:4150"));
    assert_eq!(house.nsqd.connections(), 0);
    assert!(consumer.stats().nsqds.iter().all(|nsqd| &*nsqd.address != ADDRESS));
}

#[tokio::test(start_paused = true)]
async fn lesson_59_an_address_has_one_connection_however_often_it_is_named() {
    let network = MemoryNetwork::new();
    let lookupd = lookupd(&network).await;
    let nsqd = announced(&network, &lookupd, "nsqd").await;
    let builder = consumer_in(&network).nsqd(ADDRESS).nsqd(ADDRESS).lookupd(LOOKUPD);
    let consumer = builder.start(succeed).await.unwrap();
    until(&consumer, |stats| stats.connections == 1).await;
    for _ in 0..5 {
        consumer.add_nsqd(ADDRESS).await.unwrap();
        sleep(70 * SECOND).await;
        consumer.remove_nsqd(ADDRESS).await.unwrap();
        sleep(70 * SECOND).await;
    }
    let stats = nsqd.stats();
    assert_eq!((stats.accepted, stats.clients.len()), (1, 1));
    // Taken away and put back at once, the new connection follows the old one.
    lookupd.unregister("orders", ADDRESS).unwrap();
    sleep(PATIENCE).await;
    assert_eq!(nsqd.connections(), 0);
    for _ in 0..5 {
        consumer.add_nsqd(ADDRESS).await.unwrap();
        consumer.remove_nsqd(ADDRESS).await.unwrap();
    }
    consumer.add_nsqd(ADDRESS).await.unwrap();
    until(&consumer, |stats| stats.connections == 1).await;
    rest().await;
    assert_eq!(nsqd.channel("orders", "billing").unwrap().clients.len(), 1);
}

/// The pauses between the dials of an nsqd that is away for a day.
async fn pauses() -> Vec<Duration> {
    let network = MemoryNetwork::new();
    let (connection, dials) = noted(&network);
    let builder = consumer_in(&network).nsqd(ADDRESS).connection(connection);
    let _consumer = builder.start(succeed).await.unwrap();
    sleep(24 * 3600 * SECOND).await;
    let dials = dials.take();
    dials.windows(2).map(|pair| pair[1].1 - pair[0].1).collect()
}

#[tokio::test(start_paused = true)]
async fn lesson_60_reconnecting_begins_at_a_tenth_of_a_second_and_ends_at_a_minute_at_random() {
    let first = pauses().await;
    let milli = Duration::from_millis(1);
    assert!((100..=202).contains(&first[0].as_millis()), "{:?}", first[0]);
    assert!((200..=402).contains(&first[1].as_millis()), "{:?}", first[1]);
    assert!(first.len() >= 24 * 60, "it never gives up: {}", first.len());
    for pause in &first[10..] {
        assert!(*pause >= 30 * SECOND && *pause <= 60 * SECOND + 2 * milli, "{pause:?}");
    }
    let different: BTreeSet<_> = first[10..].iter().map(Duration::as_millis).collect();
    assert!(different.len() > 100, "{different:?}");
    assert_ne!(first, pauses().await, "no two consumers come back in step");
}

#[tokio::test(start_paused = true)]
async fn lesson_60_an_nsqd_that_was_restarted_is_consumed_again_within_a_second() {
    let house = House::new().await;
    let consumer = house.consumer().start(succeed).await.unwrap();
    for round in 1..=10 {
        until(&consumer, |stats| stats.connections == 1).await;
        // Long enough to count as healthy.
        sleep(15 * SECOND).await;
        house.nsqd.restart().await.unwrap();
        let back = Instant::now();
        house.publish(1);
        until(&consumer, |stats| stats.finished == round).await;
        assert!(back.elapsed() <= SECOND, "{:?}", back.elapsed());
    }
}

/// Reaches everything through one address.
#[derive(Debug)]
struct Proxy {
    network: MemoryConnector,
    asked: Notes<String>,
}

impl Connector for Proxy {
    fn connect(&self, address: &str) -> Connecting {
        self.asked.add(address.to_owned());
        let (_, port) = address.split_once(':').unwrap();
        self.network.connect(&format!("behind-the-proxy:{port}"))
    }
}

#[tokio::test(start_paused = true)]
async fn lesson_63_nsqlookupd_and_nsqds_are_reached_by_the_user_s_own_connector() {
    let network = MemoryNetwork::new();
    let lookupd = Lookupd::start_in(&network, "behind-the-proxy:4161").await.unwrap();
    let builder = Nsqd::builder().lookupd(&lookupd).broadcast_address("container-7");
    let nsqd = builder.start_in(&network, "behind-the-proxy:4150").await.unwrap();
    nsqd.publish("orders", "one").unwrap();
    let asked = Notes::new();
    let proxy = Proxy {
        network: network.connector(),
        asked: asked.clone(),
    };
    let connection = ConnectionConfig::new().connector(proxy);
    let consumer = consumer_in(&network).lookupd(LOOKUPD).connection(connection);
    let consumer = consumer.start(succeed).await.unwrap();
    until(&consumer, |stats| stats.finished == 1).await;
    let asked: BTreeSet<_> = asked.take().into_iter().collect();
    let expected = [LOOKUPD, "container-7:4150"].map(String::from);
    assert_eq!(asked, expected.into(), "by the names that they have beyond the proxy");
}

/// What an nsqd says to IDENTIFY when it wants the client to be authorized.
const AUTH_REQUIRED: &[u8] =
    br#"{"max_rdy_count":2500,"version":"1.3.0","max_msg_timeout":900000,"auth_required":true}"#;

#[tokio::test(start_paused = true)]
async fn lesson_66_an_nsqd_that_requires_auth_is_not_subscribed_to_without_and_the_error_names_the_step() {
    let mut nsqd = scripted::Nsqd::start();
    let consumer = nsqd.consumer().start(succeed).await.unwrap();
    let mut peer = nsqd.accept_raw().await;
    peer.read_identify().await;
    peer.respond(AUTH_REQUIRED).await;
    // nsqjs goes on without a word, and nsqd closes at SUB.
    assert_eq!(peer.expect_close().await, 0);
    let stats = until(&consumer, |stats| only(stats).failure.is_some()).await;
    let failure = only(&stats).failure.as_ref().unwrap();
    assert_eq!((failure.step(), failure.address()), (Some(Step::Auth), Some(ADDRESS)));
    for part in [ADDRESS, "AUTH"] {
        assert!(failure.to_string().contains(part), "{failure}");
    }
    let error = consumer.ready(SECOND).await.unwrap_err();
    assert!(chain(&error).contains("AUTH"), "{}", chain(&error));
}

#[tokio::test(start_paused = true)]
async fn lesson_66_whatever_step_fails_is_named() {
    let steps = [
        (Step::Identify, "E_BAD_BODY IDENTIFY failed to decode JSON body"),
        (Step::Subscribe, "E_SUB_FAILED SUB failed too many channel consumers"),
    ];
    for (step, refusal) in steps {
        let mut nsqd = scripted::Nsqd::start();
        let consumer = nsqd.consumer().start(succeed).await.unwrap();
        let mut peer = nsqd.accept_raw().await;
        peer.read_identify().await;
        if step == Step::Subscribe {
            peer.ok().await;
            peer.read_sub().await;
        }
        peer.error(refusal).await;
        let stats = until(&consumer, |stats| only(stats).failure.is_some()).await;
        let failure = only(&stats).failure.as_ref().unwrap();
        assert_eq!(failure.step(), Some(step));
        assert!(failure.to_string().contains(&step.to_string()), "{failure}");
        assert!(failure.to_string().contains(refusal), "{failure}");
    }
    let network = MemoryNetwork::new();
    let consumer = consumer_in(&network).nsqd(ADDRESS).start(succeed).await.unwrap();
    let stats = until(&consumer, |stats| only(stats).failure.is_some()).await;
    assert_eq!(only(&stats).failure.as_ref().unwrap().step(), Some(Step::Dial));
}

#[tokio::test(start_paused = true)]
async fn lesson_67_the_http_port_of_nsqd_is_recognized_and_costs_no_memory() {
    let house = House::new().await;
    let http = house.nsqd.http_address().to_owned();
    let consumer = consumer_in(&house.network).nsqd(&http).start(succeed).await.unwrap();
    let error = consumer.ready(10 * SECOND).await.unwrap_err();
    for part in [&*http, "HTTP port", "4150"] {
        assert!(chain(&error).contains(part), "{part} is missing in {}", chain(&error));
    }
    let stats = consumer.stats();
    let failure = only(&stats).failure.as_ref().unwrap();
    assert_eq!(failure.kind(), ErrorKind::Protocol);
}

#[tokio::test(start_paused = true)]
async fn lesson_67_a_frame_larger_than_allowed_is_not_waited_for() {
    let mut nsqd = scripted::Nsqd::start();
    let builder = nsqd.consumer().connection(nsqd.connection().max_msg_size(1000));
    let (consumer, mut peer) = nsqd.consume_with(builder, succeed).await;
    // The first four letters of some greeting are 1.2 GB; the other one is just too large.
    for size in [0x4854_5450_u32 - 1, 100_000] {
        let begun = Instant::now();
        peer.send_bytes(&[&size.to_be_bytes()[..], b"\0\0\0\x02"].concat())
            .await;
        assert_eq!(peer.expect_close().await, 0);
        assert!(begun.elapsed() < SECOND, "{:?}", begun.elapsed());
        let stats = until(&consumer, |stats| only(stats).failure.is_some()).await;
        let failure = only(&stats).failure.as_ref().unwrap();
        assert_eq!(failure.kind(), ErrorKind::Protocol, "{failure}");
        if size == 100_000 {
            assert!(failure.to_string().contains("set max_msg_size"), "{failure}");
        }
        peer = nsqd.accept().await;
        assert_eq!(peer.command().await, Command::Rdy(200));
    }
}

#[tokio::test(start_paused = true)]
async fn lesson_64_an_nsqd_that_requires_tls_says_so_and_is_told_from_one_that_is_away() {
    let network = MemoryNetwork::new();
    let certified = rcgen::generate_simple_self_signed(["nsqd".to_owned()]).unwrap();
    let (certificate, key) = (certified.cert.pem(), certified.signing_key.serialize_pem());
    let tls = ServerTls::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
    let builder = Nsqd::builder().tls(tls).tls_required(TlsRequired::Yes);
    let nsqd = builder.start_in(&network, ADDRESS).await.unwrap();
    let consumer = consumer_in(&network).nsqd(ADDRESS).start(succeed).await.unwrap();
    let stats = until(&consumer, |stats| only(stats).failure.is_some()).await;
    let failure = only(&stats).failure.as_ref().unwrap();
    assert_eq!(
        (failure.kind(), failure.address()),
        (ErrorKind::Unsupported, Some(ADDRESS))
    );
    assert!(failure.to_string().contains("requires TLS"), "{failure}");
    // Nothing is ever subscribed to in clear.
    sleep(600 * SECOND).await;
    assert!(nsqd.channel("orders", "billing").is_none());
}
