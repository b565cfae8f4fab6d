//! What a producer tells of itself.

use std::time::Duration;

use async_nsq::ErrorKind;

use crate::publish;
use crate::support::{ScriptedNsqd, settle};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn each_outcome_is_counted_by_message() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().publish_timeout(5 * SECOND);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let ok = tokio::spawn({
        let producer = producer.clone();
        async move { producer.publish_many("a", ["1", "2", "3"]).await }
    });
    peer.command().await;
    peer.ok().await;
    ok.await.unwrap().unwrap();
    // A caller that has left: the message is published all the same.
    let left = publish(&producer, "a", "4");
    peer.command().await;
    left.abort();
    settle().await;
    peer.ok().await;
    let pinged = tokio::spawn({
        let producer = producer.clone();
        async move { producer.ping().await }
    });
    peer.command().await;
    peer.ok().await;
    pinged.await.unwrap().unwrap();
    assert_eq!(producer.publish("a", "").await.unwrap_err().kind(), ErrorKind::Invalid);
    assert!(producer.publish("not a topic", "x").await.is_err());

    let rejected = publish(&producer, "a", "5");
    peer.command().await;
    peer.error("E_PUB_FAILED PUB failed").await;
    drop(peer);
    assert!(rejected.await.unwrap().is_err());
    let mut peer = nsqd.accept().await;
    let unknown = publish(&producer, "a", "6");
    peer.command().await;
    drop(peer);
    assert!(unknown.await.unwrap().is_err());
    settle().await;
    let _refusing = nsqd.stop();
    let not_sent = publish(&producer, "a", "7");
    settle().await;
    let stats = producer.stats();
    assert_eq!((stats.pending_messages, stats.pending_bytes), (1, 1));
    assert!(not_sent.await.unwrap().is_err());

    let stats = producer.stats();
    let outcomes = (
        stats.ok,
        stats.rejected,
        stats.not_sent,
        stats.unknown,
        stats.invalid,
        stats.retried,
    );
    assert_eq!(outcomes, (4, 1, 1, 1, 2, 0));
    assert_eq!((stats.pending_messages, stats.pending_bytes), (0, 0));
    assert_eq!((stats.batches, stats.batched_messages), (4, 6));
    assert_eq!(
        stats.latency.count(),
        2,
        "by command that was confirmed, not by message"
    );
    let node = &stats.nsqds[0];
    assert_eq!(&*node.address, ScriptedNsqd::ADDRESS);
    assert_eq!((node.connected, node.reconnections), (false, 1));
    let failure = node.failure.as_ref().expect("nobody listens");
    assert!(
        matches!(failure.kind(), ErrorKind::Unreachable | ErrorKind::ConnectionLost),
        "{failure}"
    );
}

#[tokio::test(start_paused = true)]
async fn latency_is_the_time_from_the_call_to_nsqds_answer() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().max_pending_messages(1);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let first = publish(&producer, "a", "1");
    settle().await;
    // It waits for room in the meantime.
    let second = publish(&producer, "a", "2");
    for _ in 0..2 {
        peer.command().await;
        tokio::time::sleep(SECOND).await;
        peer.ok().await;
        settle().await;
    }
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    let latency = producer.stats().latency;
    let near = |told: Duration, seconds: f64| (told.as_secs_f64() / seconds - 1.0).abs() < 0.02;
    assert_eq!(latency.count(), 2);
    assert!(near(latency.percentile(50.0), 1.0), "{latency:?}");
    assert!(
        near(latency.percentile(100.0), 2.0) && near(latency.max(), 2.0),
        "{latency:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn stats_of_a_producer_that_has_ended() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, peer) = nsqd.connect().await;
    assert!(producer.stats().nsqds[0].connected);
    producer.shutdown(SECOND).await;
    drop(peer);
    assert!(producer.publish("a", "late").await.is_err());
    let stats = producer.stats();
    assert!(!stats.nsqds[0].connected && stats.nsqds[0].failure.is_none());
    assert_eq!(stats.not_sent, 1);
    assert_eq!(stats.latency.percentile(99.0), Duration::ZERO);
}
