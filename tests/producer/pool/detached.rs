//! What nobody waits for, flushes and stats, with several nsqds.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nsq::{ErrorKind, Producer, Routing, Topic};
use bytes::Bytes;
use futures_util::SinkExt;
use tokio::time::Instant;

use super::{Nsqds, SECOND, Served};
use crate::support::{Command, settle};
use crate::{poll_once, publish};

#[tokio::test(start_paused = true)]
async fn p1_what_was_enqueued_goes_elsewhere_and_a_flush_waits_for_it() {
    let mut nsqds = Nsqds::start(2);
    let builder = nsqds.producer(2).routing(Routing::failover());
    let (producer, mut peers) = nsqds.connect(builder).await;
    let second = Served::new(peers.remove(1));
    let blocking = publish(&producer, "x", crate::large());
    settle().await;
    for body in ["1", "2", "3"] {
        producer.enqueue("t", body).await.unwrap();
    }
    let mut flush = Box::pin(producer.flush(20 * SECOND));
    assert!(poll_once(flush.as_mut()).await.is_none());
    assert_eq!(second.count(), 0);
    drop(peers);
    flush.await.unwrap();
    blocking.await.unwrap().unwrap();
    let mut came = second.take();
    came.retain(|body| body.len() == 1);
    assert_eq!(came, ["1", "2", "3"]);
    let stats = producer.stats();
    // Each once, although the first nsqd has failed all of them.
    assert_eq!((stats.ok, stats.not_sent, stats.rerouted), (4, 0, 4));
    assert_eq!((stats.nsqds[0].not_sent, stats.nsqds[1].ok), (4, 4));
}

#[tokio::test(start_paused = true)]
async fn p3_each_failure_is_told_before_the_flush_ends() {
    let mut nsqds = Nsqds::start(2);
    let told: Arc<Mutex<Vec<(Bytes, ErrorKind)>>> = Arc::default();
    let hears = Arc::clone(&told);
    let builder = nsqds
        .producer(2)
        .routing(Routing::failover())
        .publish_timeout(5 * SECOND)
        .on_failure(move |failure| {
            let failure = (failure.body.clone(), failure.error.kind());
            hears.lock().unwrap().push(failure);
        });
    let (producer, mut peers) = nsqds.connect(builder).await;
    producer.enqueue("t", "unknown").await.unwrap();
    assert_eq!(peers[0].command().await, Command::publish("t", "unknown"));
    nsqds.close("a:1");
    nsqds.close("b:1");
    drop(peers);
    settle().await;
    producer.enqueue("t", "not sent").await.unwrap();
    let stats = producer.stats();
    assert_eq!(
        (stats.pending_messages, stats.pending_bytes),
        (1, 8),
        "it waits for a connection"
    );
    let error = producer.flush(SECOND).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.to_string().contains("1 publishes wait to be sent"), "{error}");
    producer.flush(5 * SECOND).await.unwrap();
    let expected = [("unknown", ErrorKind::Unknown), ("not sent", ErrorKind::NotSent)];
    let expected = expected.map(|(body, kind)| (Bytes::from(body), kind));
    assert_eq!(*told.lock().unwrap(), expected);
    let stats = producer.stats();
    assert_eq!((stats.ok, stats.unknown, stats.not_sent), (0, 1, 1));
    assert_eq!((stats.pending_messages, stats.pending_bytes), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn p5_enqueue_waits_for_room_and_for_no_longer_than_its_deadline() {
    let mut nsqds = Nsqds::start(2);
    let builder = nsqds.producer(2).max_pending_messages(2).publish_timeout(5 * SECOND);
    let (producer, mut peers) = nsqds.connect(builder).await;
    for _ in 0..2 {
        producer.enqueue("t", "m").await.unwrap();
    }
    let hasty = producer.with_publish_timeout(SECOND);
    let error = hasty.enqueue("t", "m").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSent);
    let mut waits = Box::pin(producer.enqueue("t", "m"));
    assert!(poll_once(waits.as_mut()).await.is_none());
    peers[0].command().await;
    peers[0].ok().await;
    waits.await.unwrap();
    settle().await;
    let report = producer.shutdown(Duration::ZERO).await;
    assert_eq!((report.not_sent, report.unknown), (0, 2));
    let stats = producer.stats();
    assert_eq!((stats.ok, stats.not_sent, stats.unknown), (1, 1, 2));
    let error = producer.enqueue("t", "m").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSent);
}

#[tokio::test(start_paused = true)]
async fn p3_a_shutdown_sends_what_was_enqueued_and_dropping_the_producer_does_too() {
    for shuts_down in [true, false] {
        let mut nsqds = Nsqds::start(2);
        let (producer, served) = nsqds.serve(nsqds.producer(2)).await;
        for n in 0..20 {
            producer.enqueue("t", n.to_string()).await.unwrap();
        }
        if shuts_down {
            assert!(producer.shutdown(SECOND).await.is_clean());
        } else {
            drop(producer);
            settle().await;
        }
        assert_eq!(served[0].count() + served[1].count(), 20);
        for served in served {
            assert!(served.task.await.is_ok(), "the connection was closed");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_sink_sends_to_all_nsqds_and_reports_the_first_failure() {
    let mut nsqds = Nsqds::start(2);
    let builder = nsqds.producer(2).max_pending_messages(3).publish_timeout(SECOND);
    let (producer, served) = nsqds.serve(builder).await;
    let mut sink = producer.sink();
    let item = |n: usize| (Topic::new("t").unwrap(), Bytes::from(n.to_string()));
    for n in 0..10 {
        sink.feed(item(n)).await.unwrap();
    }
    sink.flush().await.unwrap();
    assert_eq!((served[0].count(), served[1].count()), (5, 5));
    ["a:1", "b:1"].into_iter().for_each(|name| nsqds.close(name));
    for served in &served {
        served.kill().await;
    }
    sink.feed(item(10)).await.unwrap();
    sink.feed(item(11)).await.unwrap();
    let error = sink.flush().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSent);
    assert!(error.to_string().contains("topic t"), "{error}");
    sink.flush().await.unwrap();
    assert_eq!((producer.stats().ok, producer.stats().not_sent), (10, 2));
}

#[tokio::test(start_paused = true)]
async fn a_flush_waits_for_the_copies_beyond_the_quorum_and_stats_count_a_message_once() {
    let mut nsqds = Nsqds::start(2);
    let builder = nsqds.producer(2).copies(2).quorum(1).routing(Routing::failover());
    let (producer, mut peers) = nsqds.connect(builder).await;
    let published = publish(&producer, "t", "m");
    for peer in &mut peers {
        peer.command().await;
    }
    peers[0].ok().await;
    published.await.unwrap().unwrap();
    let mut flush = Box::pin(producer.flush(20 * SECOND));
    assert!(poll_once(flush.as_mut()).await.is_none());
    peers[1].ok().await;
    flush.await.unwrap();
    let stats = producer.stats();
    assert_eq!((stats.ok, stats.batches, stats.latency.count()), (1, 2, 2));
    assert_eq!((stats.nsqds[0].ok, stats.nsqds[1].ok), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_flush_sends_off_what_lingers_at_each_nsqd() {
    let mut nsqds = Nsqds::start(2);
    let (producer, served) = nsqds.serve(nsqds.producer(2).linger(10 * SECOND)).await;
    for n in 0..4 {
        producer.enqueue("t", n.to_string()).await.unwrap();
    }
    settle().await;
    assert_eq!(served[0].count() + served[1].count(), 0);
    producer.flush(Duration::from_millis(10)).await.unwrap();
    assert_eq!((served[0].count(), served[1].count()), (2, 2));
    assert_eq!(producer.stats().batches, 2);
}

#[tokio::test(start_paused = true)]
async fn a_flush_hurries_what_first_waits_for_a_connection() {
    let mut nsqds = Nsqds::start(0);
    let builder = nsqds.producer(2).linger(20 * SECOND).publish_timeout(60 * SECOND);
    let producer = builder.connect_lazily().unwrap();
    let published = publish(&producer, "t", "1");
    producer.enqueue("t", "2").await.unwrap();
    settle().await;
    let flushing = producer.clone();
    let flush = tokio::spawn(async move { flushing.flush(5 * SECOND).await });
    settle().await;
    nsqds.open("a:1");
    let served = Served::new(nsqds.accept("a:1").await);
    flush.await.unwrap().unwrap();
    published.await.unwrap().unwrap();
    assert_eq!(served.count(), 2);
    // With the flush that ends.
    let begun = Instant::now();
    producer.publish("t", "3").await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_sinks_flush_sends_off_what_lingers_at_each_nsqd() {
    let mut nsqds = Nsqds::start(2);
    let (producer, served) = nsqds.serve(nsqds.producer(2).linger(20 * SECOND)).await;
    let begun = Instant::now();
    let mut sink = producer.sink();
    for n in 0..4 {
        let item = (Topic::new("t").unwrap(), Bytes::from(n.to_string()));
        sink.feed(item).await.unwrap();
    }
    settle().await;
    assert_eq!(producer.stats().batches, 0, "they linger");
    sink.flush().await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 0);
    assert_eq!((served[0].count(), served[1].count()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn p3_a_shutdown_sends_off_what_lingers_at_each_nsqd() {
    let mut nsqds = Nsqds::start(2);
    let (producer, served) = nsqds.serve(nsqds.producer(2).linger(20 * SECOND)).await;
    let published = publish(&producer, "t", "1");
    producer.enqueue("t", "2").await.unwrap();
    settle().await;
    assert_eq!(served[0].count() + served[1].count(), 0);
    assert!(producer.shutdown(SECOND).await.is_clean());
    published.await.unwrap().unwrap();
    assert_eq!((served[0].count(), served[1].count()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn the_parts_of_a_large_batch_go_their_own_ways_in_a_pool() {
    let mut nsqds = Nsqds::start(2);
    let (producer, served) = nsqds.serve(nsqds.producer(2).max_body_size(64)).await;
    let bodies: Vec<String> = (10..30).map(|n| n.to_string().repeat(10)).collect();
    producer.publish_many("t", bodies.clone()).await.unwrap();
    let mut came = [served[0].take(), served[1].take()];
    assert!(came.iter().all(|came| !came.is_empty()));
    let mut all = came.iter_mut().flat_map(std::mem::take).collect::<Vec<_>>();
    all.sort_unstable();
    assert_eq!(all, bodies);
    assert_eq!(producer.stats().ok, 20);
}

#[test]
fn p3_what_a_runtime_leaves_behind_is_told() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let told: Arc<Mutex<Vec<ErrorKind>>> = Arc::default();
    let hears = Arc::clone(&told);
    let inner = runtime();
    let producer: Producer = inner.block_on(async {
        let nsqds = Nsqds::start(0);
        let builder = nsqds
            .producer(2)
            .on_failure(move |failure| hears.lock().unwrap().push(failure.error.kind()));
        let producer = builder.connect_lazily().unwrap();
        producer.enqueue("t", "m").await.unwrap();
        producer
    });
    drop(inner);
    assert_eq!(*told.lock().unwrap(), [ErrorKind::Unknown]);
    runtime().block_on(async {
        producer.flush(SECOND).await.unwrap();
        producer.shutdown(SECOND).await;
    });
}
