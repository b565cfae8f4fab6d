//! C4 on the wire: what nsqds are told when handlers fail, and in which order.

use std::time::Duration;

use async_nsq::backoff::Off;
use async_nsq::{BoxError, Consumer, HandlerError, Message};
use tokio::time::Instant;

use crate::scripted::{Nsqd, SECOND, delivery, fin, req, text};
use crate::support::{Command, Peer, frames, settle};

/// Does what the body says.
async fn obey(message: Message) -> Result<(), BoxError> {
    match text(&message) {
        "fail" => Err("no".into()),
        "fail quietly" => Err(HandlerError::requeue().without_backoff().into()),
        "slow" => {
            tokio::time::sleep(SECOND).await;
            Ok(())
        }
        _ => Ok(()),
    }
}

async fn deliver(peer: &mut Peer, number: u64, body: &'static str) {
    peer.send_bytes(&frames(&[delivery(number, 1, body)])).await;
}

/// A consumer of two nsqds with RDY 5 each.
async fn two() -> (Vec<Nsqd>, Consumer, [Peer; 2]) {
    let mut nsqds = Nsqd::start_many(2);
    let builder = nsqds[0].consumer().nsqd("nsqd-1:4150").max_in_flight(10);
    let consumer = builder.start(obey).await.unwrap();
    let mut peers = [nsqds[0].accept().await, nsqds[1].accept().await];
    let mut last = [None, None];
    // The first one gets more until the second one has delivered, too.
    for _ in 0..2 {
        for (peer, last) in peers.iter_mut().zip(&mut last) {
            *last = peer.drain().await.pop().or(last.take());
        }
    }
    assert_eq!(last, [Some(Command::Rdy(5)), Some(Command::Rdy(5))]);
    (nsqds, consumer, peers)
}

/// Waits until one of the two is probed. Returns it and the other one.
async fn probed(peers: &mut [Peer; 2]) -> (&mut Peer, &mut Peer) {
    let [first, second] = peers;
    let (first_is_it, command) = tokio::select! {
        command = first.command() => (true, command),
        command = second.command() => (false, command),
    };
    assert_eq!(command, Command::Rdy(1));
    if first_is_it { (first, second) } else { (second, first) }
}

#[tokio::test(start_paused = true)]
async fn c4_lesson_42_rdy_0_is_written_to_all_before_the_req_that_caused_it() {
    for (failing, busy) in [(0, false), (1, false), (0, true), (1, true)] {
        let (_nsqds, _consumer, mut peers) = two().await;
        if busy {
            for number in 0..4 {
                deliver(&mut peers[1 - failing], number, "slow").await;
            }
            settle().await;
        }
        deliver(&mut peers[failing], 7, "fail").await;
        assert_eq!(peers[failing].command().await, Command::Rdy(0));
        // The other one has been told already when the rest comes.
        assert_eq!(peers[1 - failing].at_hand().await, Some(Command::Rdy(0)));
        assert_eq!(peers[failing].command().await, req(7, 90_000));
    }
}

#[tokio::test(start_paused = true)]
async fn c4_lesson_42_one_probe_follows_the_pause_and_its_success_restores_all_shares() {
    let (_nsqds, _consumer, mut peers) = two().await;
    let failed = Instant::now();
    deliver(&mut peers[0], 7, "fail").await;
    for peer in &mut peers {
        assert_eq!(peer.command().await, Command::Rdy(0));
    }
    assert_eq!(peers[0].command().await, req(7, 90_000));
    let (probe, other) = probed(&mut peers).await;
    assert_eq!(failed.elapsed().as_secs(), 2);
    other.expect_nothing(SECOND).await;
    deliver(probe, 8, "succeed").await;
    // RDY before the answer, here as well.
    assert_eq!(probe.command().await, Command::Rdy(5));
    assert_eq!(probe.command().await, fin(8));
    assert_eq!(other.command().await, Command::Rdy(5));
}

#[tokio::test(start_paused = true)]
async fn c4_a_failed_probe_deepens_and_each_success_recovers_one_level() {
    let mut nsqd = Nsqd::start();
    let (_consumer, mut peer) = nsqd.consume(10, obey).await;
    // The levels of go-nsq: up 2, 4, 8 s, and down again.
    let mut number = 0;
    for (body, pause) in [("fail", 2), ("fail", 4), ("fail", 8), ("succeed", 4), ("succeed", 2)] {
        let answered = Instant::now();
        deliver(&mut peer, number, body).await;
        assert_eq!(peer.command().await, Command::Rdy(0));
        let answer = if body == "fail" {
            req(number, 90_000)
        } else {
            fin(number)
        };
        assert_eq!(peer.command().await, answer);
        assert_eq!(peer.command().await, Command::Rdy(1));
        assert_eq!(answered.elapsed().as_secs(), pause, "after {number}");
        number += 1;
    }
    deliver(&mut peer, number, "succeed").await;
    assert_eq!(peer.command().await, Command::Rdy(10));
    assert_eq!(peer.command().await, fin(number));
}

#[tokio::test(start_paused = true)]
async fn c4_a_burst_of_failures_is_one_step() {
    let mut nsqd = Nsqd::start();
    let (_consumer, mut peer) = nsqd.consume(10, obey).await;
    let failed = Instant::now();
    let burst: Vec<_> = (0..10).map(|number| delivery(number, 1, "fail")).collect();
    peer.send_bytes(&frames(&burst)).await;
    assert_eq!(peer.command().await, Command::Rdy(0));
    assert_eq!(
        peer.commands(10).await,
        (0..10).map(|number| req(number, 90_000)).collect::<Vec<_>>()
    );
    assert_eq!(peer.command().await, Command::Rdy(1));
    assert_eq!(failed.elapsed().as_secs(), 2);
}

#[tokio::test(start_paused = true)]
async fn c4_a_requeue_without_backoff_changes_no_rdy() {
    let mut nsqd = Nsqd::start();
    let (_consumer, mut peer) = nsqd.consume(10, obey).await;
    deliver(&mut peer, 1, "fail quietly").await;
    assert_eq!(peer.command().await, req(1, 90_000));
    peer.expect_nothing(50 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn c4_lesson_44_a_probe_requeued_without_backoff_is_tried_again_after_the_same_pause() {
    let mut nsqd = Nsqd::start();
    let (_consumer, mut peer) = nsqd.consume(10, obey).await;
    deliver(&mut peer, 1, "fail").await;
    assert_eq!(
        peer.commands(3).await,
        [Command::Rdy(0), Command::Rdy(1), req(1, 90_000)]
    );
    let probed = Instant::now();
    deliver(&mut peer, 2, "fail quietly").await;
    assert_eq!(peer.command().await, Command::Rdy(0));
    assert_eq!(peer.command().await, req(2, 90_000));
    assert_eq!(peer.command().await, Command::Rdy(1));
    assert_eq!(probed.elapsed().as_secs(), 2);
}

#[tokio::test(start_paused = true)]
async fn c4_lesson_46_backoff_can_be_off() {
    for by_duration in [true, false] {
        let mut nsqd = Nsqd::start();
        let builder = nsqd.consumer().max_in_flight(10);
        let builder = if by_duration {
            builder.max_backoff_duration(Duration::ZERO)
        } else {
            builder.backoff(Off)
        };
        let (_consumer, mut peer) = nsqd.consume_with(builder, obey).await;
        for number in 0..20 {
            deliver(&mut peer, number, "fail").await;
            assert_eq!(peer.command().await, req(number, 90_000));
        }
        peer.expect_nothing(50 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn c4_lesson_43_the_way_back_survives_the_loss_of_all_connections() {
    let mut nsqd = Nsqd::start();
    let (_consumer, mut peer) = nsqd.consume(10, obey).await;
    deliver(&mut peer, 1, "fail").await;
    assert_eq!(peer.command().await, Command::Rdy(0));
    drop(peer);
    let mut peer = nsqd.accept_unproven().await;
    // The probe goes to whoever is there when the pause is over, and moves when that one goes too.
    assert_eq!(peer.command().await, Command::Rdy(1));
    drop(peer);
    let mut peer = nsqd.accept_unproven().await;
    assert_eq!(peer.command().await, Command::Rdy(1));
    deliver(&mut peer, 2, "succeed").await;
    assert_eq!(peer.command().await, Command::Rdy(10));
    assert_eq!(peer.command().await, fin(2));
}

#[tokio::test(start_paused = true)]
async fn c4_a_success_from_before_the_failure_does_not_end_the_pause() {
    let mut nsqd = Nsqd::start();
    let (_consumer, mut peer) = nsqd.consume(10, obey).await;
    deliver(&mut peer, 1, "slow").await;
    deliver(&mut peer, 2, "fail").await;
    let failed = Instant::now();
    assert_eq!(peer.command().await, Command::Rdy(0));
    assert_eq!(peer.command().await, req(2, 90_000));
    assert_eq!(peer.command().await, fin(1));
    assert_eq!(peer.command().await, Command::Rdy(1));
    assert_eq!(failed.elapsed().as_secs(), 2);
}

#[tokio::test(start_paused = true)]
async fn c4_a_pause_during_backoff_changes_nothing_but_when_the_probe_comes() {
    let mut nsqd = Nsqd::start();
    let (consumer, mut peer) = nsqd.consume(10, obey).await;
    deliver(&mut peer, 1, "fail").await;
    assert_eq!(peer.command().await, Command::Rdy(0));
    assert_eq!(peer.command().await, req(1, 90_000));
    consumer.pause().await;
    peer.expect_nothing(20 * SECOND).await;
    assert_eq!(consumer.stats().backoff_level, 1);
    consumer.resume().await;
    assert_eq!(peer.command().await, Command::Rdy(1));
    // The pause comes while the probe is on its way.
    consumer.pause().await;
    assert_eq!(peer.command().await, Command::Rdy(0));
    deliver(&mut peer, 2, "succeed").await;
    assert_eq!(peer.command().await, fin(2));
    assert_eq!(consumer.stats().backoff_level, 0);
    consumer.resume().await;
    assert_eq!(peer.command().await, Command::Rdy(10));
}

#[tokio::test(start_paused = true)]
async fn c4_the_multiplier_sets_the_pace() {
    let mut nsqd = Nsqd::start();
    let builder = nsqd.consumer().backoff_multiplier(5 * SECOND);
    let (_consumer, mut peer) = nsqd.consume_with(builder, obey).await;
    for (number, pause) in [(1, 10), (2, 20), (3, 40)] {
        let failed = Instant::now();
        deliver(&mut peer, number, "fail").await;
        assert_eq!(
            peer.commands(3).await,
            [Command::Rdy(0), Command::Rdy(1), req(number, 90_000)]
        );
        assert_eq!(failed.elapsed().as_secs(), pause);
    }
}
