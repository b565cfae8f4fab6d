//! A connection on which nsqd sends no heartbeats.

use std::time::Duration;

use async_nsq::test_server::Nsqd;
use async_nsq::{ConnectionConfig, Consumer, Error, ErrorKind, Producer, Step};
use tokio::time::{Instant, sleep, timeout};

use crate::scripted::{Command, ScriptedNsqd};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

async fn disconnected(producer: &Producer) {
    let disconnected = async {
        while producer.is_connected() {
            sleep(SECOND).await;
        }
    };
    timeout(10 * MINUTE, disconnected).await.expect("still connected");
}

fn failure(producer: &Producer) -> Error {
    producer.stats().nsqds[0].failure.clone().expect("it has failed")
}

#[tokio::test(start_paused = true)]
async fn a_producer_is_left_in_peace() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().connection(nsqd.connection().no_heartbeats());
    let (producer, mut peer) = tokio::join!(builder.connect(), async {
        let mut peer = nsqd.accept_raw().await;
        let asked = peer.read_identify().await;
        let asked = String::from_utf8(asked.to_vec()).unwrap();
        assert!(asked.contains("\"heartbeat_interval\":-1"), "{asked}");
        peer.ok().await;
        peer
    });
    let producer = producer.unwrap();
    peer.expect_nothing(30 * MINUTE).await;
    assert!(producer.is_connected());
    let publishing = tokio::spawn({
        let producer = producer.clone();
        async move { producer.publish("orders", "one").await }
    });
    assert_eq!(peer.command().await, Command::publish("orders", "one"));
    peer.ok().await;
    publishing.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_nsqd_agrees_and_does_not_disconnect() {
    let network = async_nsq::transport::MemoryNetwork::new();
    let nsqd = Nsqd::builder().start_in(&network, "nsqd:4150").await.unwrap();
    let connection = ConnectionConfig::new().connector(network.connector()).no_heartbeats();
    let producer = Producer::builder()
        .nsqd(nsqd.address())
        .connection(connection)
        .connect()
        .await
        .unwrap();
    for _ in 0..3 {
        producer.publish("orders", "one").await.unwrap();
        sleep(3600 * SECOND).await;
    }
    assert_eq!(producer.stats().nsqds[0].reconnections, 0);
}

#[tokio::test(start_paused = true)]
async fn n1_an_nsqd_that_has_died_is_found_by_a_publish_that_is_not_answered() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd
        .producer()
        .connection(nsqd.connection().no_heartbeats())
        .publish_timeout(5 * SECOND);
    let (producer, _dead) = nsqd.connect_with(builder).await;
    sleep(100 * MINUTE).await;
    assert!(producer.is_connected());
    let published = Instant::now();
    let error = producer.publish("orders", "one").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unknown);
    assert_eq!(published.elapsed().as_secs(), 5);
    disconnected(&producer).await;
    let found = published.elapsed() - 5 * SECOND;
    assert!(found >= MINUTE && found <= 2 * MINUTE + SECOND, "{found:?}");
    let failure = failure(&producer);
    assert_eq!(
        (failure.kind(), failure.step()),
        (ErrorKind::ConnectionLost, Some(Step::Read))
    );
    // And replaced.
    let mut peer = nsqd.accept().await;
    let publishing = tokio::spawn(async move { producer.publish("orders", "two").await });
    assert_eq!(peer.command().await, Command::publish("orders", "two"));
    peer.ok().await;
    publishing.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn n1_an_nsqd_that_takes_nothing_is_found_after_a_minute() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd
        .producer()
        .connection(nsqd.connection().no_heartbeats())
        .publish_timeout(3600 * SECOND);
    let (producer, _stuck) = nsqd.connect_with(builder).await;
    let begun = Instant::now();
    let publishing = tokio::spawn({
        let producer = producer.clone();
        async move { producer.publish("orders", vec![7; 300_000]).await }
    });
    sleep(SECOND).await;
    disconnected(&producer).await;
    let found = begun.elapsed();
    assert!(found >= MINUTE && found <= 2 * MINUTE + SECOND, "{found:?}");
    assert_eq!(failure(&producer).step(), Some(Step::Write));
    publishing.abort();
}

/// nsqd would refuse SUB.
#[tokio::test(start_paused = true)]
async fn a_consumer_refuses_the_option_at_its_start() {
    let consumer = Consumer::builder("orders", "billing")
        .nsqd("nsqd:4150")
        .connection(ConnectionConfig::new().no_heartbeats());
    let succeed = |_: async_nsq::Message| async { Ok::<(), async_nsq::BoxError>(()) };
    let error = consumer.start(succeed).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.step()),
        (ErrorKind::Invalid, Some(Step::Configure))
    );
    for part in ["heartbeat_interval", "off", "1s to 60s", "SUB"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}
