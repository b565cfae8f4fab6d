//! P4: a publish future dropped at any await point shifts nobody's answer and leaks nothing.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use async_nsq::{ErrorKind, Result};

use crate::support::{Command, ScriptedNsqd, settle};
use crate::{poll_once, publish};

#[tokio::test(start_paused = true)]
async fn p4_dropped_before_its_first_poll() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    drop(producer.publish("orders", "never"));
    peer.expect_nothing(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn p4_dropped_while_waiting_for_room() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().max_pending_messages(1).max_pending_bytes(10);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let first = publish(&producer, "orders", "first");
    settle().await;
    let mut leaves = Box::pin(producer.publish("orders", "leaves"));
    let mut also_leaves = Box::pin(producer.publish("orders", "also"));
    assert!(poll_once(leaves.as_mut()).await.is_none());
    assert!(poll_once(also_leaves.as_mut()).await.is_none());
    let stays = publish(&producer, "orders", "stays");
    settle().await;
    drop(leaves);
    peer.command().await;
    peer.ok().await;
    first.await.unwrap().unwrap();
    // Its turn has come, but it leaves instead of taking it.
    drop(also_leaves);
    assert_eq!(peer.command().await, Command::publish("orders", "stays"));
    peer.ok().await;
    stays.await.unwrap().unwrap();
    for _ in 0..3 {
        let next = publish(&producer, "orders", "10 bytes..");
        peer.command().await;
        peer.ok().await;
        next.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn p4_dropped_while_queued_is_never_sent() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, peer) = nsqd.connect().await;
    drop(peer);
    settle().await;
    let before = publish(&producer, "orders", "before");
    let leaves = publish(&producer, "orders", "leaves");
    let after = publish(&producer, "orders", "after");
    settle().await;
    leaves.abort();
    let mut peer = nsqd.accept().await;
    assert_eq!(
        peer.command().await,
        Command::publish_many("orders", ["before", "after"])
    );
    peer.ok().await;
    before.await.unwrap().unwrap();
    after.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn p4_lesson_03_dropped_after_sending_keeps_its_place_in_the_answers() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().batching(false);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let all: Vec<_> = (0..9).map(|n| publish(&producer, "orders", n.to_string())).collect();
    for _ in 0..9 {
        peer.command().await;
    }
    for leaves in all.iter().step_by(2) {
        leaves.abort();
    }
    for (n, published) in all.into_iter().enumerate() {
        settle().await;
        assert_eq!(published.is_finished(), n % 2 == 0, "{n}");
        if n == 7 {
            peer.error("E_PUB_FAILED the last one that stays").await;
            assert_eq!(published.await.unwrap().unwrap_err().kind(), ErrorKind::Rejected);
            break;
        }
        peer.ok().await;
        match published.await {
            Ok(outcome) => outcome.unwrap(),
            Err(left) => assert!(left.is_cancelled() && n % 2 == 0),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn p4_dropped_within_a_batch_leaves_the_others_their_answer() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let all = ["a", "b", "c"].map(|body| publish(&producer, "orders", body));
    assert_eq!(peer.command().await, Command::publish_many("orders", ["a", "b", "c"]));
    all[1].abort();
    settle().await;
    peer.ok().await;
    let [a, b, c] = all;
    a.await.unwrap().unwrap();
    c.await.unwrap().unwrap();
    assert!(b.await.unwrap_err().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn p4_dropped_with_its_answer_there_but_not_taken() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().max_pending_messages(1);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    for _ in 0..5 {
        let mut answered = Box::pin(producer.publish("orders", "one"));
        assert!(poll_once(answered.as_mut()).await.is_none());
        peer.command().await;
        peer.ok().await;
        settle().await;
        drop(answered);
    }
    // An answer may also never be asked for: the room is free as soon as nsqd has answered.
    let mut ignored = Box::pin(producer.publish("orders", "one"));
    assert!(poll_once(ignored.as_mut()).await.is_none());
    peer.command().await;
    peer.ok().await;
    let last = publish(&producer, "orders", "last");
    assert_eq!(peer.command().await, Command::publish("orders", "last"));
    peer.ok().await;
    last.await.unwrap().unwrap();
    ignored.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn p4_dropped_while_a_part_of_it_was_written_is_published_whole() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let leaves = publish(&producer, "orders", crate::large());
    let stays = publish(&producer, "audit", "stays");
    settle().await;
    leaves.abort();
    settle().await;
    assert_eq!(peer.command().await.bodies()[0].len(), crate::LARGE);
    peer.ok().await;
    assert_eq!(peer.command().await, Command::publish("audit", "stays"));
    peer.ok().await;
    stays.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn p4_dropped_and_then_the_connection_lost_is_not_sent_again() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let leaves = publish(&producer, "orders", crate::large());
    let stays = publish(&producer, "audit", "stays");
    settle().await;
    leaves.abort();
    peer.take_bytes(100).await;
    drop(peer);
    let mut peer = nsqd.accept().await;
    assert_eq!(peer.command().await, Command::publish("audit", "stays"));
    peer.ok().await;
    stays.await.unwrap().unwrap();
    peer.expect_nothing(Duration::from_secs(5)).await;
}

/// A task whose wakers own it, as those of some executors do.
struct Task(
    #[expect(dead_code, reason = "it is there to be dropped")] Mutex<Pin<Box<dyn Future<Output = Result<()>> + Send>>>,
);

impl Wake for Task {
    fn wake(self: Arc<Self>) {}
}

#[tokio::test(start_paused = true)]
async fn p4_a_publish_may_go_with_the_last_waker_of_another() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let mut leaves = Box::pin({
        let producer = producer.clone();
        async move { producer.publish("orders", "leaves").await }
    });
    assert!(poll_once(leaves.as_mut()).await.is_none());
    let mut stays = Box::pin(producer.publish("orders", "stays"));
    let waker = Waker::from(Arc::new(Task(Mutex::new(leaves))));
    assert!(stays.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    drop(waker);
    // Another waker takes the place of the task's last one.
    assert!(poll_once(stays.as_mut()).await.is_none());
    assert_eq!(peer.command().await, Command::publish("orders", "stays"));
    peer.ok().await;
    stays.await.unwrap();
}
