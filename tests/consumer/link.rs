//! N1, N2 and N4 for the consumer: silence, outages, refusals and peers that are no nsqd.

use std::time::Duration;

use async_nsq::protocol::{self, Frame};
use async_nsq::{BoxError, ErrorKind, Message, Step};
use tokio::time::Instant;

use crate::scripted::{FIRST, Nsqd, SECOND, chain, delivery, fin, message, stuck, succeed};
use crate::support::{Command, frames, settle};

#[tokio::test(start_paused = true)]
async fn n1_lesson_24_an_nsqd_silent_for_two_heartbeat_intervals_is_replaced() {
    let mut nsqd = Nsqd::start();
    let connection = nsqd.connection().heartbeat_interval(10 * SECOND);
    let builder = nsqd.consumer().connection(connection);
    let (consumer, mut peer) = nsqd.consume_with(builder, succeed).await;
    for _ in 0..5 {
        tokio::time::sleep(19 * SECOND).await;
        peer.heartbeat().await;
        assert_eq!(peer.next().await, Some(Command::Nop));
    }
    let silent = Instant::now();
    assert_eq!(peer.expect_close().await, 0);
    assert_eq!(silent.elapsed().as_secs(), 20);
    // The old socket is still open on nsqd's side.
    let mut next = nsqd.accept().await;
    assert_eq!(next.command().await, Command::Rdy(200));
    next.deliver([1]).await;
    assert_eq!(next.command().await, fin(1));
    assert_eq!(consumer.stats().connections, 1);
}

#[tokio::test(start_paused = true)]
async fn n1_an_nsqd_that_sends_but_takes_nothing_is_replaced() {
    let mut nsqd = Nsqd::start();
    let (_consumer, mut peer) = nsqd.consume(2500, succeed).await;
    let sending = tokio::spawn(async move {
        for round in 0.. {
            peer.deliver(1000 * round..1000 * round + 1000).await;
            peer.heartbeat().await;
            tokio::time::sleep(SECOND).await;
        }
    });
    let mut next = nsqd.accept().await;
    assert_eq!(next.command().await, Command::Rdy(2500));
    sending.abort();
}

#[tokio::test(start_paused = true)]
async fn n2_lesson_60_an_nsqd_that_was_away_for_hours_is_consumed_again_within_a_minute() {
    let mut nsqd = Nsqd::start();
    let (consumer, peer) = nsqd.consume(10, succeed).await;
    let network = nsqd.stop();
    drop(peer);
    tokio::time::sleep(5 * 3600 * SECOND).await;
    let error = consumer.ready(SECOND).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(chain(&error).contains("nsqd:4150"), "{error}");
    let mut nsqd = Nsqd::start_at(&network, "nsqd:4150");
    let back = Instant::now();
    let mut peer = nsqd.accept().await;
    assert!(back.elapsed() <= 61 * SECOND);
    assert_eq!(peer.command().await, Command::Rdy(10));
    consumer.ready(SECOND).await.unwrap();
    peer.deliver([1]).await;
    assert_eq!(peer.command().await, fin(1));
}

#[tokio::test(start_paused = true)]
async fn n2_a_refused_subscription_is_tried_ever_more_slowly_and_ready_tells_why() {
    for refusal in [
        "E_BAD_TOPIC SUB topic name is not valid",
        "E_SUB_FAILED SUB failed too many channel consumers",
    ] {
        let mut nsqd = Nsqd::start();
        let consumer = nsqd.consumer().start(succeed).await.unwrap();
        let begun = Instant::now();
        let mut attempts = 0;
        while begun.elapsed() < 600 * SECOND {
            let mut peer = nsqd.accept_raw().await;
            peer.read_identify().await;
            peer.ok().await;
            peer.read_sub().await;
            peer.error(refusal).await;
            assert_eq!(peer.expect_close().await, 0);
            attempts += 1;
        }
        assert!((15..40).contains(&attempts), "{attempts} attempts in ten minutes");
        let error = consumer.ready(Duration::from_millis(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        assert!(chain(&error).contains(refusal), "{error}");
        let source = std::error::Error::source(&error).unwrap();
        let source: &async_nsq::Error = source.downcast_ref().unwrap();
        assert_eq!(
            (source.kind(), source.step()),
            (ErrorKind::Rejected, Some(Step::Subscribe))
        );
        assert_eq!(source.address(), Some("nsqd:4150"));
    }
}

fn frame(size: u32, rest: &[u8]) -> Vec<u8> {
    [&size.to_be_bytes(), rest].concat()
}

#[tokio::test(start_paused = true)]
async fn n4_what_is_not_the_protocol_replaces_the_connection_and_nothing_else() {
    let garbage: Vec<Vec<u8>> = vec![
        frame(2_000_000, b"\0\0\0\x02"),
        frame(u32::MAX, b"\0\0\0\x02"),
        frame(0, b""),
        frame(3, b"\0\0\0"),
        frame(8, b"\0\0\0\x07junk"),
        frame(20, b"\0\0\0\x02too short a mess"),
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        (0..=255).rev().collect(),
        vec![0; 100_000],
        frame(6, b"\0\0\0\0OK"),
        frame(4, b"\0\0\0\0"),
        frame(7, b"\0\0\0\x01\xff\xfe\xfd"),
    ];
    let mut nsqd = Nsqd::start();
    let (consumer, mut peer) = nsqd.consume(10, succeed).await;
    for bytes in garbage {
        // Good frames before it in the same piece still count.
        let both = [&frames(&[message(1)])[..], &bytes].concat();
        peer.send_bytes(&both).await;
        while let Some(command) = peer.next().await {
            assert_eq!(command, fin(1));
        }
        peer = nsqd.accept().await;
        assert_eq!(peer.command().await, Command::Rdy(10));
        peer.deliver([2]).await;
        assert_eq!(peer.command().await, fin(2));
    }
    assert_eq!(consumer.stats().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn n4_a_frame_cut_short_by_the_end_is_no_message() {
    let mut nsqd = Nsqd::start();
    let (consumer, mut peer) = nsqd.consume(10, succeed).await;
    let bytes = frames(&[message(1), delivery(2, 1, "the end is missing")]);
    peer.send_bytes(&bytes[..bytes.len() - 1]).await;
    assert_eq!(peer.command().await, fin(1));
    drop(peer);
    nsqd.accept().await;
    assert_eq!(consumer.stats().received, FIRST + 1);
}

#[tokio::test(start_paused = true)]
async fn n4_lesson_41_a_flood_of_messages_beyond_rdy_is_cut_off_and_forgotten() {
    let mut nsqd = Nsqd::start();
    let builder = nsqd.consumer().max_in_flight(10).concurrency(3);
    let (consumer, mut peer) = nsqd.consume_with(builder, stuck).await;
    for _ in 0..5 {
        peer.deliver(0..10).await;
        settle().await;
        let begun = Instant::now();
        let flood = tokio::spawn(async move {
            for round in 0..100 {
                peer.deliver(1000 * round..1000 * round + 1000).await;
            }
            // Not closed from this side, whatever happens.
            peer
        });
        peer = nsqd.accept().await;
        assert!(
            begun.elapsed() < SECOND,
            "it is cut off, not found dead: {:?}",
            begun.elapsed()
        );
        flood.await.unwrap();
        let stats = consumer.stats();
        assert!(stats.in_flight <= 36, "{stats:?}");
        assert_eq!(peer.command().await, Command::Rdy(10));
    }
    // What the lost connections delivered does not come before what this one does.
    let report = consumer.shutdown(Duration::ZERO).await;
    assert_eq!((report.abandoned.len(), report.returned), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn n4_nothing_that_was_answered_before_a_flood_is_lost() {
    let mut nsqd = Nsqd::start();
    let (_consumer, mut peer) = nsqd.consume(10, succeed).await;
    peer.deliver(0..10).await;
    settle().await;
    let flood = frames(&(100..1000).map(message).collect::<Vec<_>>());
    peer.send_bytes(&flood).await;
    let mut finished = Vec::new();
    while let Some(command) = peer.next().await {
        finished.push(command);
    }
    assert_eq!(finished, (0..10).map(fin).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn n4_heartbeats_without_end_to_a_full_socket_take_no_memory_and_no_end() {
    let mut nsqd = Nsqd::start();
    let (_consumer, mut peer) = nsqd.consume(10, succeed).await;
    let begun = Instant::now();
    let heartbeats = frames(&vec![Frame::Response(protocol::HEARTBEAT.into()); 3]);
    let flood = tokio::spawn(async move {
        loop {
            peer.send_bytes(&heartbeats).await;
            // Without a clock that moves, the flood would be at one instant.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    nsqd.accept().await;
    assert!(begun.elapsed() <= 100 * SECOND, "{:?}", begun.elapsed());
    flood.abort();
}

#[tokio::test(start_paused = true)]
async fn n2_messages_of_a_lost_connection_are_never_answered_on_the_next() {
    let mut nsqd = Nsqd::start();
    let builder = nsqd.consumer().max_in_flight(10).concurrency(2);
    let (consumer, mut peer) = nsqd
        .consume_with(builder, |_: Message| async {
            tokio::time::sleep(5 * SECOND).await;
            Ok::<(), BoxError>(())
        })
        .await;
    peer.deliver(0..10).await;
    settle().await;
    drop(peer);
    let mut peer = nsqd.accept().await;
    assert_eq!(peer.command().await, Command::Rdy(10));
    // The two that run are for nothing, the other eight are not begun.
    peer.expect_nothing(50 * SECOND).await;
    let stats = consumer.stats();
    assert_eq!((stats.finished, stats.unsent), (2 * FIRST, 2));
    peer.deliver([0]).await;
    assert_eq!(peer.command().await, fin(0));
}
