//! P1 and P2: what a publish tells is true.

use std::time::Duration;

use async_nsq::protocol::ErrorCode;
use async_nsq::{Culprit, Error, ErrorKind, Producer, Result, Step};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::support::{Command, ScriptedNsqd, settle};
use crate::{LARGE, cause, large, publish};

#[tokio::test(start_paused = true)]
async fn p1_ok_comes_only_after_nsqds_ok() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let published = publish(&producer, "orders", "one");
    assert_eq!(peer.command().await, Command::publish("orders", "one"));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!published.is_finished());
    peer.ok().await;
    published.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn p1_half_an_answer_is_none() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let published = publish(&producer, "orders", "one");
    peer.command().await;
    for byte in b"\0\0\0\x06\0\0\0\0O" {
        peer.send_bytes(&[*byte]).await;
        settle().await;
        assert!(!published.is_finished());
    }
    peer.send_bytes(b"K").await;
    published.await.unwrap().unwrap();
}

fn assert_invalid(result: Result<(), Error>, text: &str) {
    let error = result.expect_err(text);
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert_eq!(error.culprit(), Culprit::Caller);
    assert!(!error.is_retryable() && !error.is_ambiguous());
    assert!(error.to_string().contains(text), "{error} does not tell of {text:?}");
}

#[tokio::test(start_paused = true)]
async fn p2_lesson_19_invalid_is_refused_before_the_wire_and_p6_fails_alone() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd
        .producer()
        .connection(nsqd.connection().max_msg_size(100))
        .max_body_size(150)
        .max_req_timeout(Duration::from_secs(60));
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let minute = Duration::from_secs(60);

    assert_invalid(producer.publish("no spaces", "x").await, "no spaces");
    assert_invalid(producer.publish("", "x").await, "name");
    assert_invalid(producer.publish("x".repeat(65), "x").await, "name");
    assert_invalid(producer.publish("t", "").await, "empty");
    assert_invalid(producer.publish("t", vec![0; 101]).await, "max_msg_size");
    assert_invalid(producer.publish_many("t", ["a", ""]).await, "empty");
    assert_invalid(producer.publish_many("t", [vec![0; 101]]).await, "max_msg_size");
    assert_invalid(producer.publish_many("a b", ["a"]).await, "a b");
    let too_late = minute + Duration::from_nanos(1);
    assert_invalid(producer.publish_deferred("t", too_late, "x").await, "max_req_timeout");
    assert_invalid(producer.publish_deferred("t", minute, "").await, "empty");
    peer.expect_nothing(Duration::from_secs(10)).await;

    // What is just within the limits goes, on the same connection.
    for (call, answered) in [
        publish(&producer, "t", vec![0; 100]),
        tokio::spawn({
            let producer = producer.clone();
            async move { producer.publish_many("t", [vec![0; 70], vec![0; 68]]).await }
        }),
        tokio::spawn({
            let producer = producer.clone();
            async move { producer.publish_deferred("t", minute, "x").await }
        }),
    ]
    .into_iter()
    .zip([100, 138, 1])
    {
        let size: usize = peer.command().await.bodies().iter().map(|body| body.len()).sum();
        assert_eq!(size, answered);
        peer.ok().await;
        call.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn p2_no_message_at_all_is_ok_at_once() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    producer.publish_many("t", Vec::<String>::new()).await.unwrap();
    peer.expect_nothing(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn p2_rejected_carries_nsqds_code() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let published = publish(&producer, "orders", "one");
    peer.command().await;
    peer.error("E_PUB_FAILED PUB failed disk full").await;
    drop(peer);
    let error = published.await.unwrap().unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::Rejected, Some(ErrorCode::PubFailed))
    );
    assert_eq!(
        (error.step(), error.address()),
        (Some(Step::Publish), Some(ScriptedNsqd::ADDRESS))
    );
    assert_eq!(error.culprit(), Culprit::Peer);
    assert!(!error.is_retryable());
    assert!(
        error.to_string().contains("E_PUB_FAILED PUB failed disk full"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn p2_a_batch_that_nsqd_may_have_stored_in_part_is_unknown() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let published = tokio::spawn(async move { producer.publish_many("orders", ["one", "two"]).await });
    peer.command().await;
    peer.error("E_MPUB_FAILED MPUB failed write: no space left on device")
        .await;
    drop(peer);
    assert_eq!(published.await.unwrap().unwrap_err().kind(), ErrorKind::Unknown);
}

/// Each kind of publish, the two that leave as one MPUB included.
fn publish_all(producer: &Producer) -> Vec<JoinHandle<Result<()>>> {
    let (many, deferred) = (producer.clone(), producer.clone());
    vec![
        publish(producer, "a", "1"),
        publish(producer, "b", "2"),
        publish(producer, "b", "3"),
        tokio::spawn(async move { many.publish_many("c", ["4", "5"]).await }),
        tokio::spawn(async move { deferred.publish_deferred("d", Duration::from_secs(1), "6").await }),
    ]
}

#[tokio::test(start_paused = true)]
async fn p2_what_an_exiting_nsqd_refuses_was_not_stored_and_is_sent_again() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let all = publish_all(&producer);
    let mut commands = Vec::new();
    for _ in 0..4 {
        commands.push(peer.command().await);
    }
    // Whatever it is that it refuses: nsqd reads no further then.
    for code in ["PUB", "MPUB", "MPUB", "DPUB"] {
        peer.error(&format!("E_{code}_FAILED {code} failed exiting")).await;
        drop(peer);
        peer = nsqd.accept().await;
        for command in &commands {
            assert_eq!(peer.command().await, *command);
        }
        commands.remove(0);
        peer.ok().await;
    }
    for published in all {
        published.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn p2_what_an_exiting_nsqd_refused_was_not_sent_if_there_is_no_other() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().publish_timeout(Duration::from_secs(5));
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let all = publish_all(&producer);
    peer.command().await;
    peer.error("E_PUB_FAILED PUB failed exiting").await;
    drop(peer);
    let _refusing = nsqd.stop();
    for published in all {
        let error = published.await.unwrap().unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::NotSent, None));
        assert!(error.is_retryable());
    }
}

#[tokio::test(start_paused = true)]
async fn p2_what_stands_behind_a_refused_command_is_sent_again() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().batching(false);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let [first, refused, behind] = ["first", "refused", "behind"].map(|body| publish(&producer, "orders", body));
    for _ in 0..3 {
        peer.command().await;
    }
    peer.ok().await;
    peer.error("E_PUB_FAILED PUB failed disk full").await;
    drop(peer);
    first.await.unwrap().unwrap();
    assert_eq!(refused.await.unwrap().unwrap_err().kind(), ErrorKind::Rejected);
    let mut peer = nsqd.accept().await;
    assert_eq!(peer.command().await, Command::publish("orders", "behind"));
    peer.ok().await;
    behind.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn p2_answers_that_came_before_the_connection_broke_count() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let first = publish(&producer, "orders", "first");
    peer.command().await;
    // nsqd answers, refuses the second by its size alone and closes, all before the client has written it to the end.
    let second = publish(&producer, "orders", large());
    settle().await;
    peer.ok().await;
    peer.error("E_BAD_MESSAGE PUB message too big 300000 > 1000").await;
    drop(peer);
    first.await.unwrap().unwrap();
    let error = second.await.unwrap().unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::Rejected, Some(ErrorCode::BadMessage))
    );
}

#[tokio::test(start_paused = true)]
async fn p2_lesson_12_not_sent_when_no_connection_comes_within_the_deadline() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, peer) = nsqd.connect().await;
    let _refusing = nsqd.stop();
    drop(peer);
    settle().await;
    assert!(!producer.is_connected());
    let begun = Instant::now();
    let impatient = producer.with_publish_timeout(Duration::from_secs(5));
    let (one, many, ping) = tokio::join!(
        impatient.publish("orders", "one"),
        impatient.publish_many("orders", ["two", "three"]),
        impatient.ping(),
    );
    assert_eq!(begun.elapsed().as_millis(), 5_000);
    for error in [one, many, ping].map(Result::unwrap_err) {
        assert_eq!(error.kind(), ErrorKind::NotSent);
        assert!(error.is_retryable() && !error.is_ambiguous());
        assert_eq!(error.address(), Some(ScriptedNsqd::ADDRESS));
        assert_eq!(
            (cause(&error).kind(), cause(&error).step()),
            (ErrorKind::Unreachable, Some(Step::Dial))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn p2_lesson_15_a_publish_waits_for_the_connection_and_then_goes() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, peer) = nsqd.connect().await;
    let network = nsqd.stop();
    drop(peer);
    settle().await;
    let published = publish(&producer, "orders", "patient");
    tokio::time::sleep(Duration::from_secs(10)).await;
    let mut nsqd = ScriptedNsqd::start_in(&network);
    let mut peer = nsqd.accept().await;
    assert_eq!(peer.command().await, Command::publish("orders", "patient"));
    peer.ok().await;
    published.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn p2_not_sent_when_the_pipeline_is_full_until_the_deadline() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd
        .producer()
        .max_pending_messages(1)
        .publish_timeout(Duration::from_secs(60));
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let first = publish(&producer, "orders", "first");
    peer.command().await;
    let begun = Instant::now();
    let impatient = producer.with_publish_timeout(Duration::from_secs(2));
    let error = impatient.publish("orders", "second").await.unwrap_err();
    assert_eq!(begun.elapsed().as_millis(), 2_000);
    assert_eq!(error.kind(), ErrorKind::NotSent);
    assert!(error.to_string().contains("full"), "{error}");
    peer.ok().await;
    first.await.unwrap().unwrap();
    peer.expect_nothing(Duration::from_secs(5)).await;
}

async fn assert_unknown(producer: &Producer, published: JoinHandle<Result<()>>) -> Error {
    let error = published.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unknown, "{error}");
    assert!(error.is_ambiguous() && !error.is_retryable());
    assert_eq!(error.address(), Some(&*producer.nsqds()[0]));
    error
}

#[tokio::test(start_paused = true)]
async fn p2_lesson_13_unknown_when_the_connection_ends_after_sending() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let published = publish(&producer, "orders", "one");
    peer.command().await;
    drop(peer);
    let error = assert_unknown(&producer, published).await;
    assert_eq!(cause(&error).kind(), ErrorKind::ConnectionLost);
    // It is not sent a second time.
    let mut peer = nsqd.accept().await;
    peer.expect_nothing(Duration::from_secs(10)).await;
}

#[tokio::test(start_paused = true)]
async fn p2_lesson_03_unknown_when_the_deadline_passes_after_sending() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let begun = Instant::now();
    let published = publish(&producer.with_publish_timeout(Duration::from_secs(3)), "orders", "one");
    peer.command().await;
    assert_unknown(&producer, published).await;
    assert_eq!(begun.elapsed().as_millis(), 3_000);
}

#[tokio::test(start_paused = true)]
async fn p2_each_publish_has_its_own_deadline_in_whatever_order_they_come() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, _peer) = nsqd.connect().await;
    let begun = Instant::now();
    let wait = |millis: u64| {
        let producer = producer.with_publish_timeout(Duration::from_millis(millis));
        async move {
            let error = producer.publish("orders", "one").await.unwrap_err();
            assert_eq!(begun.elapsed().as_millis(), u128::from(millis));
            error.kind()
        }
    };
    // The peer answers nothing, so all but the last two turns' publishes are still waiting.
    let kinds = tokio::join!(wait(5_000), wait(1_000), wait(9_000), wait(7), wait(3_000));
    assert_eq!(
        kinds,
        (
            ErrorKind::Unknown,
            ErrorKind::Unknown,
            ErrorKind::Unknown,
            ErrorKind::Unknown,
            ErrorKind::Unknown
        )
    );
    // As long as a lifetime is no problem, nor is no time at all.
    let endless = publish(&producer.with_publish_timeout(Duration::MAX), "orders", "one");
    let error = producer
        .with_publish_timeout(Duration::ZERO)
        .publish("orders", "now")
        .await;
    assert!(matches!(
        error.unwrap_err().kind(),
        ErrorKind::NotSent | ErrorKind::Unknown
    ));
    settle().await;
    assert!(!endless.is_finished());
}

#[tokio::test(start_paused = true)]
async fn p2_what_had_not_left_is_sent_again_and_not_reported_unknown() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let whole = publish(&producer, "whole", "left entirely");
    let partly = publish(&producer, "partly", large());
    settle().await;
    let behind = publish(&producer, "behind", "did not leave at all");
    settle().await;
    peer.take_bytes(1_000).await;
    drop(peer);

    assert_unknown(&producer, whole).await;
    let mut peer = nsqd.accept().await;
    assert_eq!(peer.command().await.bodies()[0].len(), LARGE);
    peer.ok().await;
    assert_eq!(peer.command().await, Command::publish("behind", "did not leave at all"));
    peer.ok().await;
    partly.await.unwrap().unwrap();
    behind.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn p2_one_byte_short_is_not_sent_and_the_last_byte_makes_it_unknown() {
    // What the pipe holds and what the peer has taken is all that the client can have written.
    const PIPE: usize = 64 * 1024;
    let command_len = "PUB t\n".len() + 4 + LARGE;
    for (short, sent_again) in [(1, true), (0, false)] {
        let mut nsqd = ScriptedNsqd::start();
        let (producer, mut peer) = nsqd.connect().await;
        let published = publish(&producer, "t", large());
        peer.take_bytes(command_len - PIPE - short).await;
        settle().await;
        drop(peer);
        let mut peer = nsqd.accept().await;
        if sent_again {
            peer.command().await;
            peer.ok().await;
            published.await.unwrap().unwrap();
        } else {
            assert_unknown(&producer, published).await;
            peer.expect_nothing(Duration::from_secs(5)).await;
        }
    }
}
