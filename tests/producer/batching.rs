//! Group commit, P6 within a batch, and ping.

use std::ops::Range;
use std::time::Duration;

use async_nsq::protocol::{ErrorCode, Frame};
use async_nsq::{ErrorKind, Step};
use bytes::Bytes;

use crate::support::{Command, ScriptedNsqd, frames, settle};
use crate::{cause, publish};

#[tokio::test(start_paused = true)]
async fn what_waits_together_leaves_as_one_command_per_topic() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let all = [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4"), ("b", "5"), ("a", "6")]
        .map(|(topic, body)| publish(&producer, topic, body));
    assert_eq!(peer.command().await, Command::publish_many("a", ["1", "3", "6"]));
    assert_eq!(peer.command().await, Command::publish_many("b", ["2", "5"]));
    assert_eq!(peer.command().await, Command::publish("c", "4"));
    let ok = Frame::Response("OK".into());
    peer.send_bytes(&frames(&[ok.clone(), ok.clone(), ok])).await;
    for published in all {
        published.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn answers_go_to_the_callers_of_their_command() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let [a1, b, a2, c] =
        [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4")].map(|(topic, body)| publish(&producer, topic, body));
    for _ in 0..3 {
        peer.command().await;
    }
    peer.ok().await;
    settle().await;
    assert!(a1.is_finished() && a2.is_finished() && !b.is_finished() && !c.is_finished());
    peer.error("E_PUB_FAILED PUB failed").await;
    drop(peer);
    assert_eq!(b.await.unwrap().unwrap_err().kind(), ErrorKind::Rejected);
    settle().await;
    assert!(!c.is_finished());
    let mut peer = nsqd.accept().await;
    assert_eq!(peer.command().await, Command::publish("c", "4"));
    peer.ok().await;
    c.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_topics_order_is_kept_around_what_cannot_be_joined() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let second = Duration::from_secs(1);
    let calls = async {
        tokio::join!(
            producer.publish("a", "1"),
            producer.publish("b", "x"),
            producer.publish("a", "2"),
            producer.publish_deferred("a", second + Duration::from_nanos(1), "3"),
            producer.publish("b", "y"),
            producer.publish("a", "4"),
            producer.publish_many("a", ["5", "6"]),
            producer.publish("a", "7"),
            producer.publish("a", "8"),
        )
    };
    let peer_side = async {
        for expected in [
            Command::publish_many("a", ["1", "2"]),
            Command::publish_many("b", ["x", "y"]),
            Command::publish_deferred("a", 1_001, "3"),
            Command::publish("a", "4"),
            Command::publish_many("a", ["5", "6"]),
            Command::publish_many("a", ["7", "8"]),
        ] {
            assert_eq!(peer.command().await, expected);
            peer.ok().await;
        }
    };
    let (outcomes, ()) = tokio::join!(calls, peer_side);
    let (a, b, c, d, e, f, g, h, i) = outcomes;
    for outcome in [a, b, c, d, e, f, g, h, i] {
        outcome.unwrap();
    }
}

/// nsqd stores one half while the callers of the other come back with their next publishes.
#[tokio::test(start_paused = true)]
async fn a_large_batch_leaves_in_two_halves_unless_others_are_on_their_way() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let bodies: Vec<String> = (0..120).map(|number| number.to_string()).collect();
    let all = |range: Range<usize>| -> Vec<_> {
        range
            .map(|number| publish(&producer, "t", bodies[number].clone()))
            .collect()
    };
    let expected = |range: Range<usize>| Command::Mpub {
        topic: "t".to_owned(),
        bodies: bodies[range].iter().cloned().map(Bytes::from).collect(),
    };
    let mut published = all(0..40);
    assert_eq!(peer.command().await, expected(0..20));
    assert_eq!(peer.command().await, expected(20..40));
    published.extend(all(40..80));
    assert_eq!(peer.command().await, expected(40..80));
    peer.ok().await;
    settle().await;
    assert!(published[..20].iter().all(|published| published.is_finished()));
    assert!(published[20..].iter().all(|published| !published.is_finished()));
    for _ in 0..2 {
        peer.ok().await;
    }
    for published in published {
        published.await.unwrap().unwrap();
    }
    // Fewer are not worth a second command.
    let few = all(80..100);
    assert_eq!(peer.command().await, expected(80..100));
    peer.ok().await;
    for published in few {
        published.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn p2_what_is_too_much_for_one_turn_stays_where_it_can_be_taken_back() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().publish_timeout(Duration::from_secs(1));
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let large = "x".repeat(900_000);
    let all: Vec<_> = (0..12).map(|_| publish(&producer, "t", large.clone())).collect();
    // Two turns are unanswered, each with as much as 4 MiB have room for. The others wait, and have not left when their
    // time is over.
    for _ in 0..8 {
        // Not `assert_eq`: it would print a megabyte.
        assert!(peer.command().await == Command::publish("t", large.clone()));
    }
    peer.expect_nothing(Duration::from_millis(999)).await;
    for (number, published) in all.into_iter().enumerate() {
        let expected = if number < 8 {
            ErrorKind::Unknown
        } else {
            ErrorKind::NotSent
        };
        assert_eq!(published.await.unwrap().unwrap_err().kind(), expected, "{number}");
    }
}

#[tokio::test(start_paused = true)]
async fn turns_follow_each_other_until_nothing_waits() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let bodies = ["a", "b", "c", "d", "e"].map(|letter| letter.repeat(600_000));
    let all: Vec<_> = bodies
        .iter()
        .map(|body| publish(&producer, "t", body.clone()))
        .collect();
    for body in bodies {
        // Not `assert_eq`: it would print a megabyte.
        assert!(peer.command().await == Command::publish("t", body));
        peer.ok().await;
    }
    for published in all {
        published.await.unwrap().unwrap();
    }
    peer.expect_nothing(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_batch_stays_within_max_body_size() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().max_body_size(64);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let all: Vec<_> = (0..10).map(|n| publish(&producer, "a", vec![n; 16])).collect();
    // A message larger than that is fine by itself: the limit is on MPUB only.
    let large = publish(&producer, "a", vec![99; 100]);
    let mut seen = Vec::new();
    while seen.len() < 11 {
        let bodies = peer.command().await.bodies();
        let body_len = 4 + bodies.iter().map(|body| 4 + body.len()).sum::<usize>();
        assert!(bodies.len() == 1 || body_len <= 64, "{body_len}");
        seen.extend(bodies.iter().map(|body| body[0]));
        peer.ok().await;
    }
    assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 99]);
    for published in all.into_iter().chain([large]) {
        published.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn without_batching_each_is_a_command_of_its_own() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().batching(false);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let all = ["1", "2", "3"].map(|body| publish(&producer, "a", body));
    for body in ["1", "2", "3"] {
        assert_eq!(peer.command().await, Command::publish("a", body));
    }
    for published in all {
        peer.ok().await;
        published.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn at_most_two_turns_are_unanswered_and_the_rest_grows_into_a_batch() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let mut all = Vec::new();
    for body in ["1", "2", "3", "4", "5"] {
        all.push(publish(&producer, "a", body));
        settle().await;
    }
    assert_eq!(peer.command().await, Command::publish("a", "1"));
    assert_eq!(peer.command().await, Command::publish("a", "2"));
    peer.expect_nothing(Duration::from_secs(1)).await;
    peer.ok().await;
    assert_eq!(peer.command().await, Command::publish_many("a", ["3", "4", "5"]));
    peer.ok().await;
    peer.ok().await;
    for published in all {
        published.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn p6_lesson_20_in_a_refused_batch_only_the_guilty_message_fails() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let all = ["good", "guilty", "fine"].map(|body| publish(&producer, "a", body));
    let other = publish(&producer, "b", "other topic");
    assert_eq!(peer.command().await.bodies().len(), 3);
    peer.command().await;
    peer.error("E_BAD_MESSAGE MPUB failed to read message body").await;
    drop(peer);

    // Sent apart, and refused at the guilty one: nsqd reads nothing behind it.
    let mut peer = nsqd.accept().await;
    assert_eq!(peer.command().await, Command::publish("a", "good"));
    assert_eq!(peer.command().await, Command::publish("a", "guilty"));
    peer.ok().await;
    peer.error("E_BAD_MESSAGE PUB failed to read message body").await;
    drop(peer);

    let mut peer = nsqd.accept().await;
    assert_eq!(peer.command().await, Command::publish("a", "fine"));
    assert_eq!(peer.command().await, Command::publish("b", "other topic"));
    peer.ok().await;
    peer.ok().await;
    let [good, guilty, fine] = all;
    good.await.unwrap().unwrap();
    fine.await.unwrap().unwrap();
    other.await.unwrap().unwrap();
    let error = guilty.await.unwrap().unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::Rejected, Some(ErrorCode::BadMessage))
    );
}

#[tokio::test(start_paused = true)]
async fn p6_a_refused_topic_fails_for_its_batch_and_no_other() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let refused = ["1", "2"].map(|body| publish(&producer, "a", body));
    let other = publish(&producer, "b", "3");
    peer.command().await;
    peer.error("E_UNAUTHORIZED AUTH failed for MPUB on \"a\" \"\"").await;
    drop(peer);
    for published in refused {
        let error = published.await.unwrap().unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::Unauthorized));
    }
    let mut peer = nsqd.accept().await;
    assert_eq!(peer.command().await, Command::publish("b", "3"));
    peer.ok().await;
    other.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn p6_the_callers_own_batch_is_refused_as_a_whole() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let refused = tokio::spawn(async move { producer.publish_many("a", ["1", "2"]).await });
    peer.command().await;
    peer.error("E_BAD_MESSAGE MPUB message too big").await;
    assert_eq!(refused.await.unwrap().unwrap_err().kind(), ErrorKind::Rejected);
}

#[tokio::test(start_paused = true)]
async fn ping_is_a_round_trip_behind_what_was_published() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd
        .producer()
        .connection(nsqd.connection().client_id("billing-7").topology("eu", "b"));
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let before = publish(&producer, "a", "before");
    let ping = tokio::spawn({
        let producer = producer.clone();
        async move { producer.ping().await }
    });
    let after = publish(&producer, "b", "after");
    assert_eq!(peer.command().await, Command::publish("a", "before"));
    let Command::Identify(identity) = peer.command().await else {
        panic!("no ping")
    };
    let identity: serde_json::Value = serde_json::from_slice(&identity).unwrap();
    assert_eq!(identity["client_id"], "billing-7");
    // nsqd overwrites it, too.
    assert_eq!([&identity["topology_region"], &identity["topology_zone"]], ["eu", "b"]);
    assert_eq!(identity["feature_negotiation"], false);
    assert_eq!(peer.command().await, Command::publish("b", "after"));
    peer.ok().await;
    before.await.unwrap().unwrap();
    settle().await;
    assert!(!ping.is_finished());
    peer.ok().await;
    ping.await.unwrap().unwrap();
    settle().await;
    assert!(!after.is_finished());
    peer.ok().await;
    after.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn ping_without_an_answer_is_unknown_and_without_a_connection_not_sent() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let ping = tokio::spawn({
        let producer = producer.clone();
        async move { producer.ping().await }
    });
    peer.command().await;
    drop(peer);
    let error = ping.await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.step()), (ErrorKind::Unknown, Some(Step::Ping)));
    assert_eq!(cause(&error).kind(), ErrorKind::ConnectionLost);
    let _refusing = nsqd.stop();
    let error = producer
        .with_publish_timeout(Duration::from_secs(1))
        .ping()
        .await
        .unwrap_err();
    assert_eq!((error.kind(), error.step()), (ErrorKind::NotSent, Some(Step::Ping)));
}
