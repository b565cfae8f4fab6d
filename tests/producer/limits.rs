//! Limits that nsqd tells, and batches larger than one command.

use std::time::Duration;

use async_nsq::protocol::ErrorCode;
use async_nsq::test_server::Nsqd;
use async_nsq::transport::MemoryNetwork;
use async_nsq::{ConnectionConfig, ErrorKind, Producer, ProducerBuilder};
use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::support::{Command, ScriptedNsqd, settle};
use crate::{cause, publish};

const SECOND: Duration = Duration::from_secs(1);

async fn on_test_broker(nsqd: async_nsq::test_server::NsqdBuilder) -> (Nsqd, ProducerBuilder) {
    let network = MemoryNetwork::new();
    let nsqd = nsqd.start_in(&network, "nsqd:4150").await.unwrap();
    let connection = ConnectionConfig::new().connector(network.connector());
    let builder = Producer::builder().nsqd(nsqd.address()).connection(connection);
    (nsqd, builder)
}

fn publish_many(producer: &Producer, topic: &'static str, bodies: Vec<Bytes>) -> JoinHandle<async_nsq::Result<()>> {
    let producer = producer.clone();
    tokio::spawn(async move { producer.publish_many(topic, bodies).await })
}

#[tokio::test(start_paused = true)]
async fn p6_lesson_18_a_burst_of_oversized_messages_costs_one_reconnection() {
    for batching in [true, false] {
        let (nsqd, builder) = on_test_broker(Nsqd::builder().max_msg_size(100)).await;
        let producer = builder.batching(batching).connect().await.unwrap();
        let calls: Vec<_> = (0..60u8)
            .map(|n| {
                (
                    n,
                    publish(
                        &producer,
                        ["a", "b"][n as usize % 2],
                        vec![n; if n % 3 == 0 { 101 } else { 100 }],
                    ),
                )
            })
            .collect();
        let mut rejected = 0;
        for (n, call) in calls {
            match call.await.unwrap() {
                Ok(()) => assert_ne!(n % 3, 0),
                Err(error) => {
                    assert_eq!(n % 3, 0, "{error}");
                    match error.kind() {
                        ErrorKind::Rejected => rejected += 1,
                        ErrorKind::Invalid => assert!(error.to_string().contains("max-msg-size (100)"), "{error}"),
                        other => panic!("{other:?}: {error}"),
                    }
                }
            }
        }
        assert!(rejected >= 1);
        assert_eq!(producer.stats().nsqds[0].reconnections, 1, "batching: {batching}");
        // And none any more.
        let error = producer.publish("a", vec![0; 101]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let error = producer.publish_deferred("a", SECOND, vec![0; 101]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        producer.publish("a", vec![0; 100]).await.unwrap();
        assert_eq!(producer.stats().nsqds[0].reconnections, 1);
        let stats = producer.stats();
        assert_eq!((stats.ok, stats.rejected + stats.invalid), (41, 22));
        drop(nsqd);
    }
}

#[tokio::test(start_paused = true)]
async fn a_learnt_limit_is_forgotten_with_an_nsqd_that_goes_away() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let refused = publish(&producer, "a", "too big");
    peer.command().await;
    peer.error("E_BAD_MESSAGE PUB message too big 7 > 6").await;
    drop(peer);
    assert_eq!(refused.await.unwrap().unwrap_err().kind(), ErrorKind::Rejected);
    let peer = nsqd.accept().await;
    let error = producer.publish("a", "too big").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.address()),
        (ErrorKind::Invalid, Some(ScriptedNsqd::ADDRESS))
    );
    drop(peer);
    let mut peer = nsqd.accept().await;
    settle().await;
    let published = publish(&producer, "a", "too big");
    peer.command().await;
    peer.ok().await;
    published.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn p6_a_batch_larger_than_nsqds_max_body_size_is_sent_again_in_smaller_ones() {
    let (nsqd, builder) = on_test_broker(Nsqd::builder().max_body_size(2_000)).await;
    let producer = builder.connect().await.unwrap();
    let calls: Vec<_> = (0..40).map(|n| publish(&producer, "a", vec![n; 100])).collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(producer.stats().nsqds[0].reconnections, 1);
    let order: Vec<u8> = nsqd.topic("a").map(|_| ()).map_or(Vec::new(), |()| {
        nsqd.published("a").iter().map(|body| body[0]).collect()
    });
    assert_eq!(
        order.iter().rev().take(40).rev().copied().collect::<Vec<_>>(),
        (0..40).collect::<Vec<u8>>()
    );
    // Batches of the caller are divided by what was learnt, too.
    producer.publish_many("b", vec![vec![7; 100]; 40]).await.unwrap();
    assert_eq!(producer.stats().nsqds[0].reconnections, 1);
    assert_eq!(nsqd.topic("b").unwrap().message_count, 40);
}

#[tokio::test(start_paused = true)]
async fn lesson_18_a_batch_larger_than_max_body_size_leaves_in_parts_at_once() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().max_body_size(64);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let bodies: Vec<Bytes> = [20, 20, 20, 100, 7, 7]
        .map(|size| vec![size; size as usize].into())
        .to_vec();
    let call = publish_many(&producer, "a", bodies.clone());
    for part in [&bodies[..2], &bodies[2..3], &bodies[3..4], &bodies[4..]] {
        assert_eq!(peer.command().await.bodies(), part);
    }
    for _ in 0..4 {
        settle().await;
        assert!(!call.is_finished());
        peer.ok().await;
    }
    call.await.unwrap().unwrap();
    assert_eq!(producer.stats().batched_messages, 6);
}

#[tokio::test(start_paused = true)]
async fn parts_wait_for_room_in_order() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().max_body_size(64).max_pending_messages(4);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let bodies: Vec<Bytes> = (0..20)
        .map(|n| vec![n; if n % 5 == 0 { 50 } else { 10 }].into())
        .collect();
    let call = publish_many(&producer, "a", bodies.clone());
    let server = tokio::spawn(async move { peer.serve().await });
    call.await.unwrap().unwrap();
    drop(producer);
    let seen: Vec<Bytes> = server.await.unwrap().iter().flat_map(Command::bodies).collect();
    assert_eq!(seen, bodies);
}

#[tokio::test(start_paused = true)]
async fn p2_the_outcome_of_parts_is_the_worst_and_tells_how_much_was_confirmed() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().max_body_size(64).publish_timeout(SECOND);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let bodies = || vec![Bytes::from(vec![0; 20]); 6];

    // One confirmed, one refused, one sent again and confirmed.
    let call = publish_many(&producer, "a", bodies());
    for _ in 0..3 {
        peer.command().await;
    }
    peer.ok().await;
    peer.error("E_UNAUTHORIZED AUTH failed for MPUB on a").await;
    drop(peer);
    let mut peer = nsqd.accept().await;
    peer.command().await;
    peer.ok().await;
    let error = call.await.unwrap().unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::Rejected, Some(ErrorCode::Unauthorized))
    );
    assert!(error.to_string().contains("4 of 6 messages were confirmed"), "{error}");
    assert_eq!(cause(&error).kind(), ErrorKind::Rejected);

    // One confirmed, two never answered.
    let call = publish_many(&producer, "a", bodies());
    peer.command().await;
    peer.ok().await;
    let error = call.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unknown);
    assert!(error.to_string().contains("2 of 6"), "{error}");
    drop(peer);

    // None sent: that can be repeated.
    settle().await;
    let _refusing = nsqd.stop();
    let error = producer.publish_many("a", bodies()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSent);
    assert!(error.is_retryable() && error.to_string().contains("0 of 6"), "{error}");
}
