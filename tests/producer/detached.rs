//! Fire and forget: every message that was taken is confirmed, or its failure told.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nsq::{ErrorKind, ProducerBuilder, PublishFailure};
use bytes::Bytes;
use tokio::time::Instant;

use crate::support::{Command, ScriptedNsqd, settle};
use crate::{poll_once, publish};

const SECOND: Duration = Duration::from_secs(1);

type Told = Arc<Mutex<Vec<PublishFailure>>>;

fn telling(builder: ProducerBuilder) -> (ProducerBuilder, Told) {
    let told = Told::default();
    let hears = Arc::clone(&told);
    let builder = builder.on_failure(move |failure| hears.lock().unwrap().push(failure.clone()));
    (builder, told)
}

fn taken(told: &Told) -> Vec<(String, Bytes, ErrorKind)> {
    let told = std::mem::take(&mut *told.lock().unwrap());
    told.into_iter()
        .map(|failure| (failure.topic.to_string(), failure.body, failure.error.kind()))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn enqueue_returns_before_the_answer_and_flush_after_it() {
    let mut nsqd = ScriptedNsqd::start();
    let (builder, told) = telling(nsqd.producer());
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    for body in ["1", "2", "3"] {
        producer.enqueue("a", body).await.unwrap();
    }
    assert_eq!(peer.command().await, Command::publish_many("a", ["1", "2", "3"]));
    let mut flush = Box::pin(producer.flush(10 * SECOND));
    assert!(poll_once(flush.as_mut()).await.is_none());
    peer.ok().await;
    flush.await.unwrap();
    assert!(taken(&told).is_empty());
    assert_eq!(producer.stats().ok, 3);
}

#[tokio::test(start_paused = true)]
async fn each_failure_is_told_with_topic_and_body() {
    let mut nsqd = ScriptedNsqd::start();
    let (builder, told) = telling(nsqd.producer().publish_timeout(5 * SECOND));
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    for (topic, body) in [("a", "refused"), ("b", "sent again, then unknown")] {
        producer.enqueue(topic, body).await.unwrap();
    }
    peer.command().await;
    peer.command().await;
    peer.error("E_UNAUTHORIZED AUTH failed").await;
    drop(peer);
    let mut peer = nsqd.accept().await;
    assert_eq!(peer.command().await, Command::publish("b", "sent again, then unknown"));
    drop(peer);
    settle().await;
    let _refusing = nsqd.stop();
    producer.enqueue("c", "never sent").await.unwrap();
    producer.flush(60 * SECOND).await.unwrap();
    let expected = [
        ("a", "refused", ErrorKind::Rejected),
        ("b", "sent again, then unknown", ErrorKind::Unknown),
        ("c", "never sent", ErrorKind::NotSent),
    ];
    let expected = expected.map(|(topic, body, kind)| (topic.to_owned(), Bytes::from(body), kind));
    assert_eq!(taken(&told), expected);
}

#[tokio::test(start_paused = true)]
async fn enqueue_waits_for_room_and_its_own_errors_are_not_told() {
    let mut nsqd = ScriptedNsqd::start();
    let (builder, told) = telling(nsqd.producer().max_pending_messages(2).publish_timeout(SECOND));
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    for body in ["1", "2"] {
        producer.enqueue("a", body).await.unwrap();
    }
    let begun = Instant::now();
    let error = producer.enqueue("a", "3").await.unwrap_err();
    assert_eq!((error.kind(), begun.elapsed().as_millis()), (ErrorKind::NotSent, 1_000));
    assert_eq!(error.address(), Some(ScriptedNsqd::ADDRESS));
    for invalid in [producer.enqueue("a b", "x").await, producer.enqueue("a", "").await] {
        assert_eq!(invalid.unwrap_err().kind(), ErrorKind::Invalid);
    }
    let mut dropped = Box::pin(producer.enqueue("a", "dropped"));
    assert!(poll_once(dropped.as_mut()).await.is_none());
    drop(dropped);
    // Its deadline is over, but it was sent: the answer still counts.
    peer.command().await;
    peer.ok().await;
    producer.enqueue("a", "4").await.unwrap();
    assert_eq!(peer.command().await, Command::publish("a", "4"));
    peer.ok().await;
    producer.flush(SECOND).await.unwrap();
    assert!(taken(&told).is_empty());
    let stats = producer.stats();
    assert_eq!((stats.ok, stats.not_sent, stats.invalid), (3, 1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_panics_hears_of_the_next_failure_too() {
    let calls = Arc::new(AtomicUsize::new(0));
    let hears = Arc::clone(&calls);
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().batching(false).on_failure(move |_| {
        hears.fetch_add(1, Ordering::Relaxed);
        panic!("the hook's own mistake");
    });
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    for body in ["1", "2"] {
        producer.enqueue("a", body).await.unwrap();
        peer.command().await;
        peer.error("E_PUB_FAILED PUB failed").await;
        producer.flush(SECOND).await.unwrap();
        peer = nsqd.accept().await;
    }
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    let published = publish(&producer, "a", "3");
    peer.command().await;
    peer.ok().await;
    published.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn shutdown_waits_for_what_was_enqueued_and_its_hook() {
    let mut nsqd = ScriptedNsqd::start();
    let (builder, told) = telling(nsqd.producer());
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    producer.enqueue("a", "1").await.unwrap();
    let server = tokio::spawn(async move { peer.serve().await });
    assert!(producer.shutdown(10 * SECOND).await.is_clean());
    assert_eq!(server.await.unwrap(), [Command::publish("a", "1")]);
    assert!(taken(&told).is_empty());

    let (builder, told) = telling(nsqd.producer());
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    producer.enqueue("a", "unanswered").await.unwrap();
    settle().await;
    peer.command().await;
    let begun = Instant::now();
    let report = producer.shutdown(SECOND).await;
    assert_eq!(begun.elapsed().as_millis(), 1_000);
    assert_eq!((report.not_sent, report.unknown), (0, 1));
    assert_eq!(
        taken(&told),
        [("a".to_owned(), Bytes::from("unanswered"), ErrorKind::Unknown)]
    );
    let error = producer.enqueue("a", "late").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSent);
}

#[tokio::test(start_paused = true)]
async fn what_was_enqueued_goes_although_the_last_handle_is_gone() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    producer.enqueue("a", "1").await.unwrap();
    drop(producer);
    assert_eq!(peer.serve().await, [Command::publish("a", "1")]);
}

#[test]
fn a_hook_that_blocks_holds_up_no_connection() {
    // Another thread has to go on while the hook sits on its own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let blocked = Mutex::new(blocked);
    let (entered, mut hook_runs) = tokio::sync::mpsc::unbounded_channel();
    runtime.block_on(async move {
        let mut nsqd = ScriptedNsqd::start();
        let builder = nsqd.producer().max_pending_messages(3).on_failure(move |_| {
            entered.send(()).unwrap();
            let _released = blocked.lock().unwrap().recv();
        });
        let (producer, mut peer) = nsqd.connect_with(builder).await;
        producer.enqueue("a", "refused").await.unwrap();
        peer.command().await;
        peer.error("E_PUB_FAILED PUB failed").await;
        hook_runs.recv().await.unwrap();
        let mut peer = nsqd.accept().await;
        for _ in 0..10 {
            let published = publish(&producer, "a", "goes on");
            peer.command().await;
            peer.ok().await;
            published.await.unwrap().unwrap();
        }
        assert_eq!(producer.stats().pending_messages, 1, "the failure that is being told");
        release.send(()).unwrap();
        producer.flush(60 * SECOND).await.unwrap();
        assert_eq!(producer.stats().pending_messages, 0);
    });
}
