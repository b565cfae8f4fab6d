//! Batches that wait for more, if asked to.

use std::time::Duration;

use async_nsq::{ErrorKind, ProducerBuilder};
use tokio::time::Instant;

use crate::publish;
use crate::support::{Command, Peer, ScriptedNsqd, settle};

const LINGER: Duration = Duration::from_millis(50);

fn lingering(nsqd: &ScriptedNsqd) -> ProducerBuilder {
    nsqd.producer().linger(LINGER)
}

/// The next command, and how long it took to come.
async fn next(peer: &mut Peer, since: Instant) -> (Command, u128) {
    let command = peer.command().await;
    peer.ok().await;
    (command, since.elapsed().as_millis())
}

#[tokio::test(start_paused = true)]
async fn a_batch_waits_from_its_first_message_and_no_longer() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = lingering(&nsqd);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    for _ in 0..3 {
        let begun = Instant::now();
        let mut all = Vec::new();
        for body in ["1", "2", "3"] {
            all.push(publish(&producer, "a", body));
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
        let expected = Command::publish_many("a", ["1", "2", "3"]);
        let (command, took) = next(&mut peer, begun).await;
        assert_eq!(command, expected);
        assert!((50..=52).contains(&took), "{took}");
        for published in all {
            published.await.unwrap().unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn enough_messages_or_bytes_leave_at_once() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = lingering(&nsqd).linger_messages(3).max_body_size(1000);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let begun = Instant::now();
    // Of all topics together.
    let all = [("a", "1"), ("b", "2"), ("a", "3")].map(|(topic, body)| publish(&producer, topic, body));
    assert_eq!(
        next(&mut peer, begun).await,
        (Command::publish_many("a", ["1", "3"]), 0)
    );
    assert_eq!(next(&mut peer, begun).await, (Command::publish("b", "2"), 0));
    for published in all {
        published.await.unwrap().unwrap();
    }
    let begun = Instant::now();
    let all = [
        publish(&producer, "a", vec![1; 500]),
        publish(&producer, "a", vec![2; 500]),
    ];
    assert_eq!(peer.command().await.bodies().len(), 1);
    assert_eq!(peer.command().await.bodies().len(), 1);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    for published in all {
        peer.ok().await;
        published.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_joined_leaves_at_once_and_takes_the_others_along() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = lingering(&nsqd);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    for kind in 0..3 {
        let begun = Instant::now();
        let waits = publish(&producer, "a", "waits");
        settle().await;
        let urgent = tokio::spawn({
            let producer = producer.clone();
            async move {
                match kind {
                    0 => producer.ping().await,
                    1 => producer.publish_many("a", ["1", "2"]).await,
                    _ => producer.publish_deferred("a", Duration::from_secs(1), "3").await,
                }
            }
        });
        assert_eq!(next(&mut peer, begun).await, (Command::publish("a", "waits"), 1));
        assert_eq!(next(&mut peer, begun).await.1, 1);
        waits.await.unwrap().unwrap();
        urgent.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_has_to_wait_for_a_batch_that_lingers() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = lingering(&nsqd).max_pending_messages(2).max_pending_bytes(100);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let second = Duration::from_secs(1);

    // A publish with less time than that.
    let begun = Instant::now();
    let hasty = publish(&producer.with_publish_timeout(Duration::from_millis(20)), "a", "hasty");
    assert_eq!(next(&mut peer, begun).await, (Command::publish("a", "hasty"), 0));
    hasty.await.unwrap().unwrap();

    // A flush.
    let begun = Instant::now();
    let waits = publish(&producer, "a", "flushed");
    settle().await;
    let flush = tokio::spawn({
        let producer = producer.clone();
        async move { producer.flush(second).await }
    });
    assert_eq!(next(&mut peer, begun).await, (Command::publish("a", "flushed"), 1));
    flush.await.unwrap().unwrap();
    waits.await.unwrap().unwrap();

    // One that finds no room: by count, and by bytes.
    for (size, count) in [(1, 3), (60, 2)] {
        let begun = Instant::now();
        let all: Vec<_> = (0..count).map(|_| publish(&producer, "a", vec![0; size])).collect();
        assert_eq!(next(&mut peer, begun).await.1, 0, "{size} bytes");
        settle().await;
        peer.command().await;
        peer.ok().await;
        for published in all {
            published.await.unwrap().unwrap();
        }
    }

    // The shutdown.
    let begun = Instant::now();
    let waits = publish(&producer, "a", "last");
    settle().await;
    let ending = tokio::spawn(async move { producer.shutdown(second).await });
    assert_eq!(next(&mut peer, begun).await, (Command::publish("a", "last"), 1));
    waits.await.unwrap().unwrap();
    assert!(ending.await.unwrap().is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_lingering_publish_can_be_taken_back_and_the_timer_serves_the_next() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = lingering(&nsqd);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let dropped = publish(&producer, "a", "dropped");
    tokio::time::sleep(LINGER / 2).await;
    dropped.abort();
    settle().await;
    let begun = Instant::now();
    let stays = publish(&producer, "a", "stays");
    let (command, took) = next(&mut peer, begun).await;
    assert_eq!(command, Command::publish("a", "stays"));
    assert!((50..=52).contains(&took), "{took}");
    stays.await.unwrap().unwrap();
    peer.expect_nothing(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn options_of_linger_out_of_range() {
    let nsqd = ScriptedNsqd::start();
    for (builder, option) in [
        (lingering(&nsqd).batching(false), "linger"),
        (lingering(&nsqd).publish_timeout(LINGER), "linger"),
        (lingering(&nsqd).linger_messages(0), "linger_messages"),
    ] {
        let error = builder.connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(option), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_was_taken_back_does_not_hold_the_next_one() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = lingering(&nsqd);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let left = publish(&producer, "a", "left");
    settle().await;
    left.abort();
    tokio::time::sleep(2 * LINGER).await;
    let begun = Instant::now();
    let published = publish(&producer, "a", "1");
    let (command, took) = next(&mut peer, begun).await;
    assert_eq!(command, Command::publish("a", "1"));
    assert!((50..=52).contains(&took), "{took}");
    published.await.unwrap().unwrap();
}
