//! P5: pending publishes are bounded by count and bytes; past that, callers wait their turn.

use std::time::Duration;

use async_nsq::Producer;
use bytes::Bytes;
use tokio::task::JoinSet;

use crate::support::{Command, Peer, ScriptedNsqd, settle};
use crate::{poll_once, publish};

fn publish_numbers(producer: &Producer, numbers: std::ops::Range<usize>) -> JoinSet<async_nsq::Result<()>> {
    let mut all = JoinSet::new();
    for n in numbers {
        let producer = producer.clone();
        all.spawn(async move { producer.publish("orders", format!("{n:04}")).await });
    }
    all
}

async fn read_pending(peer: &mut Peer) -> Vec<Bytes> {
    let mut bodies = Vec::new();
    // What the client sends without any answer is what it may have pending.
    while let Ok(command) = tokio::time::timeout(Duration::from_millis(10), peer.command()).await {
        bodies.push(command);
    }
    bodies.iter().flat_map(Command::bodies).collect()
}

async fn all_in_turn(builder: async_nsq::ProducerBuilder, nsqd: &mut ScriptedNsqd, most: usize) {
    let (producer, mut peer) = nsqd.connect_with(builder.batching(false)).await;
    let all = publish_numbers(&producer, 0..100);
    let first = read_pending(&mut peer).await;
    assert_eq!(first.len(), most);
    let mut seen = first;
    for answered in 0..100 {
        peer.ok().await;
        settle().await;
        if answered % 10 == 0 {
            seen.append(&mut read_pending(&mut peer).await);
            assert!(seen.len() <= answered + 1 + most, "more than {most} pending");
        }
    }
    seen.append(&mut read_pending(&mut peer).await);
    let expected: Vec<Bytes> = (0..100).map(|n| format!("{n:04}").into()).collect();
    assert_eq!(seen, expected);
    all.join_all().await.into_iter().for_each(|outcome| outcome.unwrap());
}

#[tokio::test(start_paused = true)]
async fn p5_bounded_by_count_and_the_rest_in_turn() {
    let mut nsqd = ScriptedNsqd::start();
    all_in_turn(nsqd.producer().max_pending_messages(3), &mut nsqd, 3).await;
}

#[tokio::test(start_paused = true)]
async fn p5_bounded_by_bytes_and_the_rest_in_turn() {
    let mut nsqd = ScriptedNsqd::start();
    all_in_turn(nsqd.producer().max_pending_bytes(5 * 4 + 3), &mut nsqd, 5).await;
}

#[tokio::test(start_paused = true)]
async fn p5_a_newcomer_does_not_overtake_those_who_wait() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().max_pending_messages(2);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let mut first = Box::pin(producer.publish_many("orders", ["one", "two"]));
    assert!(poll_once(first.as_mut()).await.is_none());
    let mut waits = Box::pin(producer.publish("orders", "waits"));
    assert!(poll_once(waits.as_mut()).await.is_none());
    peer.command().await;
    peer.ok().await;
    // There is room for both, and the newcomer is the first to look.
    first.await.unwrap();
    let mut newcomer = Box::pin(producer.publish("orders", "newcomer"));
    assert!(poll_once(newcomer.as_mut()).await.is_none());
    assert!(poll_once(waits.as_mut()).await.is_none());
    let server = tokio::spawn(async move { peer.serve().await });
    let (waits, newcomer) = tokio::join!(waits, newcomer);
    waits.unwrap();
    newcomer.unwrap();
    drop(producer);
    let bodies: Vec<Bytes> = server.await.unwrap().iter().flat_map(Command::bodies).collect();
    assert_eq!(bodies, ["waits", "newcomer"]);
}

#[tokio::test(start_paused = true)]
async fn p5_a_message_larger_than_the_bounds_goes_alone() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().max_pending_bytes(10).max_pending_messages(2);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let small = publish(&producer, "orders", "small");
    let big = publish(&producer, "orders", vec![b'x'; 1000]);
    let many = tokio::spawn({
        let producer = producer.clone();
        async move { producer.publish_many("orders", ["1", "2", "3", "4"]).await }
    });
    let last = publish(&producer, "orders", "last");
    for expected in [1, 1, 4, 1] {
        assert_eq!(peer.command().await.bodies().len(), expected);
        peer.expect_nothing(Duration::from_millis(100)).await;
        peer.ok().await;
    }
    for published in [small, big, many, last] {
        published.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn p5_room_comes_back_from_every_way_to_end() {
    let mut nsqd = ScriptedNsqd::start();
    let second = Duration::from_secs(1);
    let builder = nsqd
        .producer()
        .max_pending_messages(4)
        .max_pending_bytes(1000)
        .publish_timeout(second);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    for round in 0..12 {
        let mut calls = publish_numbers(&producer, 0..6);
        settle().await;
        match round % 4 {
            0 => calls.abort_all(),
            1 => {
                // Expired after sending, and lost with the connection.
                while calls.join_next().await.is_some() {}
                drop(peer);
                peer = nsqd.accept().await;
            }
            2 => {
                peer.command().await;
                peer.error("E_MPUB_FAILED MPUB failed").await;
                drop(peer);
                tokio::time::sleep(2 * second).await;
                peer = nsqd.accept().await;
            }
            _ => {
                drop(peer);
                calls.abort_all();
                peer = nsqd.accept().await;
            }
        }
        while calls.join_next().await.is_some() {}
        // Whatever is still on the wire gets its answer, and then a publish that takes all of the room must go.
        let whole = tokio::spawn({
            let producer = producer.with_publish_timeout(100 * second);
            async move { producer.publish_many("orders", vec![vec![7; 250]; 4]).await }
        });
        while !whole.is_finished() {
            if tokio::time::timeout(second, peer.command()).await.is_ok() {
                peer.ok().await;
                settle().await;
            }
        }
        whole.await.unwrap().unwrap();
    }
}
