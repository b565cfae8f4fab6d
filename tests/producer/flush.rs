//! Waiting for what is pending.

use std::time::Duration;

use async_nsq::{ErrorKind, Step};
use tokio::time::Instant;

use crate::support::{Command, ScriptedNsqd, settle};
use crate::{poll_once, publish};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_flush_waits_for_what_was_accepted_before_it_and_for_nothing_after() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    producer.flush(Duration::ZERO).await.unwrap();

    let before = publish(&producer, "a", "1");
    settle().await;
    let clone = producer.clone();
    let mut flush = Box::pin(clone.flush(10 * SECOND));
    assert!(poll_once(flush.as_mut()).await.is_none());
    let after = publish(&producer, "b", "2");
    settle().await;
    assert!(poll_once(flush.as_mut()).await.is_none());
    let mut second = Box::pin(producer.flush(10 * SECOND));
    assert!(poll_once(second.as_mut()).await.is_none());
    peer.ok().await;
    before.await.unwrap().unwrap();
    flush.await.unwrap();
    assert!(!after.is_finished());
    assert!(poll_once(second.as_mut()).await.is_none());
    peer.ok().await;
    second.await.unwrap();
    after.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_flush_does_not_fail_because_a_publish_does() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let refused = publish(&producer, "a", "1");
    let abandoned = publish(&producer, "b", "2");
    peer.command().await;
    peer.command().await;
    abandoned.abort();
    let flush = tokio::spawn({
        let producer = producer.clone();
        async move { producer.flush(10 * SECOND).await }
    });
    settle().await;
    peer.error("E_UNAUTHORIZED AUTH failed").await;
    drop(peer);
    // What nobody waits for any more and had not been acted on is not sent again.
    flush.await.unwrap().unwrap();
    assert!(refused.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_flush_waits_for_the_answer_of_what_its_caller_has_left() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let abandoned = publish(&producer, "a", "1");
    peer.command().await;
    abandoned.abort();
    settle().await;
    let mut flush = Box::pin(producer.flush(10 * SECOND));
    assert!(poll_once(flush.as_mut()).await.is_none());
    peer.ok().await;
    settle().await;
    assert!(poll_once(flush.as_mut()).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_flush_tells_what_is_left_at_its_deadline() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let mut all = vec![publish(&producer, "a", "1")];
    settle().await;
    all.push(publish(&producer, "b", "2"));
    settle().await;
    for body in ["3", "4", "5"] {
        all.push(publish(&producer, "c", body));
    }
    settle().await;
    let begun = Instant::now();
    let flush = tokio::spawn({
        let producer = producer.clone();
        async move { producer.flush(SECOND).await }
    });
    settle().await;
    all.push(publish(&producer, "d", "6"));
    let error = flush.await.unwrap().unwrap_err();
    assert_eq!(begun.elapsed().as_millis(), 1_000);
    assert_eq!((error.kind(), error.step()), (ErrorKind::TimedOut, Some(Step::Publish)));
    let text = error.to_string();
    assert!(
        text.contains("3 publishes wait to be sent, 2 for nsqd's answer"),
        "{text}"
    );
    assert_eq!(error.address(), Some(ScriptedNsqd::ADDRESS));
    // Nothing was given up.
    let server = tokio::spawn(async move { peer.serve().await });
    for published in all {
        published.await.unwrap().unwrap();
    }
    producer.flush(SECOND).await.unwrap();
    drop(producer);
    assert_eq!(server.await.unwrap().iter().flat_map(Command::bodies).count(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_flush_and_many_of_them_change_nothing() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let published = publish(&producer, "a", "1");
    settle().await;
    for _ in 0..100 {
        let mut flush = Box::pin(producer.flush(SECOND));
        assert!(poll_once(flush.as_mut()).await.is_none());
    }
    let flushes: Vec<_> = (0..100)
        .map(|_| {
            let producer = producer.clone();
            tokio::spawn(async move { producer.flush(SECOND).await })
        })
        .collect();
    settle().await;
    peer.ok().await;
    for flush in flushes {
        flush.await.unwrap().unwrap();
    }
    published.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_flush_ends_with_the_producer() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, peer) = nsqd.connect().await;
    let published = publish(&producer, "a", "1");
    settle().await;
    let flush = tokio::spawn({
        let producer = producer.clone();
        async move { producer.flush(100 * SECOND).await }
    });
    settle().await;
    let begun = Instant::now();
    assert_eq!(producer.shutdown(SECOND).await.unknown, 1);
    flush.await.unwrap().unwrap();
    assert_eq!(begun.elapsed().as_millis(), 1_000);
    assert!(published.await.unwrap().is_err());
    producer.flush(Duration::ZERO).await.unwrap();
    drop(peer);
}
