//! P3: every publish resolves exactly once, whatever ends.

use std::time::Duration;

use async_nsq::{ErrorKind, Producer};
use tokio::time::Instant;

use crate::support::{Command, ScriptedNsqd, settle};
use crate::{LARGE, large, poll_once, publish};

const SECOND: Duration = Duration::from_secs(1);

/// Publishes of each stage: answered never, sent; partly written; in the write buffer; waiting in the queue; waiting
/// for room.
async fn at_every_stage(
    nsqd: &mut ScriptedNsqd,
    bounds: u32,
) -> (
    Producer,
    crate::support::Peer,
    Vec<tokio::task::JoinHandle<async_nsq::Result<()>>>,
) {
    let builder = nsqd
        .producer()
        .max_pending_messages(bounds)
        .publish_timeout(20 * SECOND);
    let (producer, peer) = nsqd.connect_with(builder).await;
    let mut all = vec![publish(&producer, "a", "sent")];
    settle().await;
    all.push(publish(&producer, "b", large()));
    all.push(publish(&producer, "c", "behind the partly written one"));
    settle().await;
    all.push(publish(&producer, "d", "queued"));
    all.push(publish(&producer, "d", "waiting for room"));
    settle().await;
    assert!(all.iter().all(|publish| !publish.is_finished()));
    (producer, peer, all)
}

async fn kinds(all: Vec<tokio::task::JoinHandle<async_nsq::Result<()>>>) -> Vec<Option<ErrorKind>> {
    let mut kinds = Vec::new();
    for published in all {
        kinds.push(published.await.unwrap().err().map(|error| error.kind()));
    }
    kinds
}

#[tokio::test(start_paused = true)]
async fn p3_lesson_08_a_lost_connection_resolves_or_sends_again_each_stage() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, peer, all) = at_every_stage(&mut nsqd, 4).await;
    drop(peer);
    let mut peer = nsqd.accept().await;
    let served = tokio::spawn(async move { peer.serve().await });
    let unknown = Some(ErrorKind::Unknown);
    assert_eq!(kinds(all).await, [unknown, None, None, None, None]);
    assert!(
        producer.shutdown(SECOND).await.is_clean(),
        "what was lost long ago is no leftover"
    );
    let bodies: Vec<_> = served.await.unwrap().iter().flat_map(Command::bodies).collect();
    assert_eq!(bodies.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn p3_a_silent_nsqd_resolves_each_stage_at_its_deadline() {
    let mut nsqd = ScriptedNsqd::start();
    let begun = Instant::now();
    let (_producer, _peer, all) = at_every_stage(&mut nsqd, 4).await;
    let (unknown, not_sent) = (Some(ErrorKind::Unknown), Some(ErrorKind::NotSent));
    assert_eq!(kinds(all).await, [unknown, unknown, unknown, not_sent, not_sent]);
    assert!(begun.elapsed() <= 20 * SECOND + Duration::from_millis(10));
}

#[tokio::test(start_paused = true)]
async fn p3_an_outage_resolves_each_stage_at_its_deadline() {
    let mut nsqd = ScriptedNsqd::start();
    let begun = Instant::now();
    let (_producer, peer, all) = at_every_stage(&mut nsqd, 4).await;
    drop(peer);
    let _refusing = nsqd.stop();
    let (unknown, not_sent) = (Some(ErrorKind::Unknown), Some(ErrorKind::NotSent));
    assert_eq!(kinds(all).await, [unknown, not_sent, not_sent, not_sent, not_sent]);
    assert!(begun.elapsed() <= 20 * SECOND + Duration::from_millis(10));
}

#[tokio::test(start_paused = true)]
async fn p3_lesson_11_shutdown_sends_what_is_pending_and_closes() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer, mut all) = at_every_stage(&mut nsqd, 10).await;
    let ending = tokio::spawn({
        let producer = producer.clone();
        async move { producer.shutdown(10 * SECOND).await }
    });
    settle().await;
    let late = producer.publish("orders", "too late").await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::NotSent);
    assert!(late.to_string().contains("shut down"), "{late}");
    assert_eq!(peer.serve().await.len(), 4);
    assert!(ending.await.unwrap().is_clean());
    assert!(kinds(std::mem::take(&mut all)).await.iter().all(Option::is_none));
    assert!(
        producer.shutdown(SECOND).await.is_clean(),
        "a second call sees the same end"
    );
    assert_eq!(
        producer.publish("orders", "later").await.unwrap_err().kind(),
        ErrorKind::NotSent
    );
}

#[tokio::test(start_paused = true)]
async fn p3_the_deadline_of_shutdown_resolves_all_and_counts_it() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer, all) = at_every_stage(&mut nsqd, 4).await;
    let begun = Instant::now();
    let report = producer.shutdown(5 * SECOND).await;
    assert_eq!(begun.elapsed().as_millis(), 5_000);
    assert!(!report.is_clean());
    assert_eq!((report.not_sent, report.unknown), (3, 1));
    let (unknown, not_sent) = (Some(ErrorKind::Unknown), Some(ErrorKind::NotSent));
    assert_eq!(kinds(all).await, [unknown, not_sent, not_sent, not_sent, not_sent]);
    assert_eq!(peer.command().await, Command::publish("a", "sent"));
    assert!(peer.expect_close().await < LARGE);
}

#[tokio::test(start_paused = true)]
async fn p3_a_second_shutdown_can_be_less_patient() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, _peer, _all) = at_every_stage(&mut nsqd, 4).await;
    let patient = tokio::spawn({
        let producer = producer.clone();
        async move { producer.shutdown(15 * SECOND).await }
    });
    settle().await;
    let begun = Instant::now();
    let report = producer.shutdown(SECOND).await;
    assert_eq!(begun.elapsed().as_millis(), 1_000);
    assert_eq!(patient.await.unwrap(), report);
    assert_eq!(producer.shutdown(Duration::ZERO).await, report);
}

#[tokio::test(start_paused = true)]
async fn p3_a_dropped_shutdown_leaves_the_producer_ending() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer, all) = at_every_stage(&mut nsqd, 10).await;
    assert!(poll_once(Box::pin(producer.shutdown(SECOND)).as_mut()).await.is_none());
    assert_eq!(
        producer.publish("a", "late").await.unwrap_err().kind(),
        ErrorKind::NotSent
    );
    assert_eq!(peer.serve().await.len(), 4);
    assert!(kinds(all).await.iter().all(Option::is_none));
}

#[tokio::test(start_paused = true)]
async fn p3_shutdown_is_immediate_if_nothing_is_pending() {
    // Connected, waiting for the next attempt, and in the middle of one.
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let begun = Instant::now();
    assert!(producer.shutdown(10 * SECOND).await.is_clean());
    peer.expect_close().await;
    assert_eq!(begun.elapsed(), Duration::ZERO);

    let (producer, peer) = nsqd.connect().await;
    drop(peer);
    let network = nsqd.stop();
    tokio::time::sleep(20 * SECOND).await;
    let begun = Instant::now();
    assert!(producer.shutdown(10 * SECOND).await.is_clean());
    assert_eq!(begun.elapsed(), Duration::ZERO, "while it waits to connect again");

    let mut nsqd = ScriptedNsqd::start_in(&network);
    let (producer, peer) = nsqd.connect().await;
    drop(peer);
    let mut mute = nsqd.accept_raw().await;
    mute.read_identify().await;
    let begun = Instant::now();
    assert!(producer.shutdown(10 * SECOND).await.is_clean());
    mute.expect_close().await;
    assert_eq!(begun.elapsed(), Duration::ZERO, "while it connects");
}

#[tokio::test(start_paused = true)]
async fn p3_shutdown_ends_with_the_last_pending_publish_while_there_is_no_connection() {
    for dropped in [true, false] {
        let mut nsqd = ScriptedNsqd::start();
        let (producer, peer) = nsqd.connect().await;
        drop(peer);
        let _refusing = nsqd.stop();
        tokio::time::sleep(600 * SECOND).await;
        let pending = publish(&producer.with_publish_timeout(2 * SECOND), "orders", "one");
        settle().await;
        let begun = Instant::now();
        let ending = tokio::spawn({
            let producer = producer.clone();
            async move { producer.shutdown(25 * SECOND).await }
        });
        settle().await;
        assert!(!ending.is_finished());
        if dropped {
            pending.abort();
        } else {
            assert_eq!(pending.await.unwrap().unwrap_err().kind(), ErrorKind::NotSent);
        }
        assert!(ending.await.unwrap().is_clean());
        let expected = if dropped { 0 } else { 2 };
        assert_eq!(begun.elapsed().as_secs_f64().round() as u64, expected);
    }
}

#[test]
fn p3_the_end_of_the_runtime_resolves_what_was_on_it() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
    };
    let mut nsqd = ScriptedNsqd::start();
    let doomed = runtime();
    let builder = nsqd.producer().max_pending_messages(2);
    let (producer, peer) = doomed.block_on(nsqd.connect_with(builder));
    let mut sent = Box::pin(producer.publish("orders", "sent"));
    let mut waiting = Box::pin(producer.publish("orders", "waiting"));
    let mut no_room = Box::pin(producer.publish("orders", "no room"));
    doomed.block_on(async {
        assert!(poll_once(sent.as_mut()).await.is_none());
        settle().await;
    });
    // Nothing runs on it any more, so this one stays in the queue.
    runtime().block_on(async {
        assert!(poll_once(waiting.as_mut()).await.is_none());
    });
    let survivor = runtime();
    survivor.block_on(async { assert!(poll_once(no_room.as_mut()).await.is_none()) });
    drop(doomed);
    survivor.block_on(async {
        let begun = Instant::now();
        assert_eq!(sent.await.unwrap_err().kind(), ErrorKind::Unknown);
        assert_eq!(waiting.await.unwrap_err().kind(), ErrorKind::NotSent);
        assert_eq!(no_room.await.unwrap_err().kind(), ErrorKind::NotSent);
        assert_eq!(
            producer.publish("orders", "later").await.unwrap_err().kind(),
            ErrorKind::NotSent
        );
        assert!(!producer.is_connected());
        let report = producer.shutdown(SECOND).await;
        assert_eq!((report.not_sent, report.unknown), (1, 1));
        assert_eq!(begun.elapsed(), Duration::ZERO);
    });
    drop(peer);
}

#[tokio::test(start_paused = true)]
async fn p3_an_answer_after_the_deadline_does_not_shift_the_others() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().batching(false);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let late = publish(&producer.with_publish_timeout(SECOND), "orders", "late");
    let accepted = publish(&producer, "orders", "accepted");
    let refused = publish(&producer, "orders", "refused");
    for _ in 0..3 {
        peer.command().await;
    }
    assert_eq!(late.await.unwrap().unwrap_err().kind(), ErrorKind::Unknown);
    peer.ok().await;
    settle().await;
    assert!(!accepted.is_finished());
    peer.ok().await;
    accepted.await.unwrap().unwrap();
    assert!(!refused.is_finished());
    peer.error("E_PUB_FAILED PUB failed").await;
    assert_eq!(refused.await.unwrap().unwrap_err().kind(), ErrorKind::Rejected);
}

#[tokio::test(start_paused = true)]
async fn p3_what_was_handed_over_is_published_although_the_last_handle_is_gone() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let mut fire_and_forget = Box::pin(producer.publish("orders", large()));
    assert!(poll_once(fire_and_forget.as_mut()).await.is_none());
    settle().await;
    drop(fire_and_forget);
    drop(producer);
    settle().await;
    assert_eq!(peer.command().await.bodies()[0].len(), LARGE);
    peer.ok().await;
    peer.expect_close().await;
}

#[tokio::test(start_paused = true)]
async fn p3_a_producer_without_handles_does_not_wait_for_ever() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let mut abandoned = Box::pin(producer.publish("orders", "one"));
    assert!(poll_once(abandoned.as_mut()).await.is_none());
    peer.command().await;
    drop(abandoned);
    drop(producer);
    let begun = Instant::now();
    // Alive, but it never answers.
    loop {
        peer.heartbeat().await;
        if tokio::time::timeout(SECOND, peer.expect_close()).await.is_ok() {
            break;
        }
        assert!(begun.elapsed() < 60 * SECOND);
    }

    // Nothing pending: at once, also while there is no connection.
    let (producer, mut peer) = nsqd.connect().await;
    let begun = Instant::now();
    drop(producer);
    peer.expect_close().await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn p3_a_producer_without_handles_ends_after_30_s_however_often_it_dials_meanwhile() {
    let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd
        .producer()
        .publish_timeout(3600 * SECOND)
        .on_failure(move |failure| told.send(failure.error.kind()).unwrap());
    let (producer, peer) = nsqd.connect_with(builder).await;
    producer.enqueue("orders", large()).await.unwrap();
    settle().await;
    drop(producer);
    let begun = Instant::now();
    // One connection is lost later, the next is made and lost, and then there is none.
    tokio::time::sleep(10 * SECOND).await;
    drop(peer);
    let peer = nsqd.accept().await;
    tokio::time::sleep(10 * SECOND).await;
    drop(peer);
    let _refusing = nsqd.stop();
    assert_eq!(hears.recv().await, Some(ErrorKind::NotSent));
    assert_eq!(begun.elapsed().as_secs(), 30);
    assert_eq!(hears.recv().await, None, "the task has ended");
}
