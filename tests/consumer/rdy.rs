//! C2 and C3 on the wire: what nsqds are told of RDY, all together.

use std::time::Duration;

use async_nsq::transport::MemoryNetwork;
use async_nsq::{BoxError, ConnectionConfig, Consumer, ConsumerBuilder, Message, PauseReason};
use tokio::time::{Instant, sleep};

use crate::model::Model;
use crate::scripted::{Nsqd, SECOND, fin, stuck, succeed};
use crate::support::{Command, settle};

/// A consumer of all nsqds of a model.
fn consumer(network: &MemoryNetwork, nsqds: usize, max_in_flight: u32) -> ConsumerBuilder {
    let builder = Consumer::builder("orders", "billing")
        .connection(ConnectionConfig::new().connector(network.connector()))
        .max_in_flight(max_in_flight);
    (0..nsqds).fold(builder, |builder, nsqd| builder.nsqd(format!("nsqd-{nsqd}:4150")))
}

async fn slow(_: Message) -> Result<(), BoxError> {
    sleep(Duration::from_millis(200)).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn c2_max_in_flight_is_shared_by_the_connections_there_are() {
    for (nsqds, mut expected) in [
        (1, vec![10]),
        (2, vec![5, 5]),
        (3, vec![3, 3, 4]),
        (4, vec![2, 2, 3, 3]),
    ] {
        let network = MemoryNetwork::new();
        let model = Model::start(&network, nsqds, 2500);
        let _consumer = consumer(&network, nsqds, 10).start(succeed).await.unwrap();
        sleep(SECOND).await;
        assert_eq!(model.rdys(), vec![1; nsqds], "one each until there was a message");
        for nsqd in 0..nsqds {
            model.publish(nsqd, [nsqd as u64]);
        }
        sleep(SECOND).await;
        let mut rdys = model.rdys();
        rdys.sort_unstable();
        expected.sort_unstable();
        assert_eq!(rdys, expected);
        assert_eq!(model.largest_rdy_sum(), 10);
    }
}

#[tokio::test(start_paused = true)]
async fn c2_lesson_49_the_sum_of_rdys_never_exceeds_max_in_flight_while_connections_come_and_go() {
    for seed in 0..10 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let network = MemoryNetwork::new();
        let model = Model::start(&network, 4, 2500);
        for nsqd in 0..4 {
            model.publish(nsqd, (0..2_000).map(|number| number + 10_000 * nsqd as u64));
        }
        let _consumer = consumer(&network, 4, 12).start(slow).await.unwrap();
        for _ in 0..40 {
            sleep(Duration::from_millis(rng.u64(1..400))).await;
            if rng.u8(..4) == 0 {
                model.cut(rng.usize(..4));
            }
        }
        // Every nsqd may have used up its window at the moment that it was lowered.
        assert!(
            model.most_in_flight() <= 2 * 12,
            "seed {seed}: {}",
            model.most_in_flight()
        );
        assert!(
            model.largest_rdy_sum() <= 12,
            "seed {seed}: {}",
            model.largest_rdy_sum()
        );
        assert!(model.finished() > 150, "seed {seed}: it went on");
        model.check();
    }
}

#[tokio::test(start_paused = true)]
async fn c2_what_nsqd_accepts_at_most_bounds_rdy() {
    let network = MemoryNetwork::new();
    let model = Model::start(&network, 2, 7);
    let _consumer = consumer(&network, 2, 100).start(succeed).await.unwrap();
    model.publish(0, [0]);
    model.publish(1, [1]);
    sleep(SECOND).await;
    assert_eq!(model.rdys(), [7, 7]);
}

#[tokio::test(start_paused = true)]
async fn c2_lesson_51_max_in_flight_changes_at_run_time_and_zero_pauses() {
    let mut nsqd = Nsqd::start();
    let (consumer, mut peer) = nsqd.consume(10, succeed).await;
    consumer.set_max_in_flight(3).await;
    assert_eq!(peer.command().await, Command::Rdy(3));
    consumer.set_max_in_flight(0).await;
    assert_eq!(peer.command().await, Command::Rdy(0));
    // What was on its way is handled all the same.
    peer.deliver([1, 2]).await;
    assert_eq!(peer.commands(2).await, [fin(1), fin(2)]);
    peer.expect_nothing(50 * SECOND).await;
    peer.heartbeat().await;
    consumer.set_max_in_flight(25).await;
    assert_eq!(peer.command().await, Command::Rdy(25));
}

#[tokio::test(start_paused = true)]
async fn c2_lesson_49_a_lowered_window_is_worked_off_before_any_rdy_rises() {
    let network = MemoryNetwork::new();
    let model = Model::start(&network, 2, 2500);
    model.publish(0, 0..100);
    model.publish(1, 100..200);
    let consumer = consumer(&network, 2, 0).start(stuck).await.unwrap();
    sleep(SECOND).await;
    consumer.set_max_in_flight(20).await;
    settle().await;
    assert_eq!((model.rdys(), model.in_flight()), (vec![10, 10], 20));
    consumer.set_max_in_flight(6).await;
    settle().await;
    assert_eq!((model.rdys(), model.in_flight()), (vec![3, 3], 20));
    consumer.set_max_in_flight(30).await;
    settle().await;
    assert_eq!((model.rdys(), model.in_flight()), (vec![15, 15], 30));
    assert_eq!(model.largest_rdy_sum(), 30);
}

#[tokio::test(start_paused = true)]
async fn c2_a_connection_that_ends_leaves_its_share_to_the_others() {
    let network = MemoryNetwork::new();
    let mut nsqds: Vec<_> = (0..2)
        .map(|number| Nsqd::start_at(&network, &format!("nsqd-{number}:4150")))
        .collect();
    let _consumer = consumer(&network, 2, 10).start(succeed).await.unwrap();
    let mut first = nsqds[0].accept().await;
    let second = nsqds[1].accept().await;
    settle().await;
    first.drain().await;
    drop((second, nsqds.pop()));
    assert_eq!(first.command().await, Command::Rdy(10));
}

#[tokio::test(start_paused = true)]
async fn c3_lesson_47_with_more_nsqds_than_max_in_flight_each_gets_its_turn_within_low_rdy_timeout() {
    let network = MemoryNetwork::new();
    let model = Model::start(&network, 7, 2500);
    for nsqd in 0..7 {
        model.publish(nsqd, (0..10_000).map(|number| number + 1_000_000 * nsqd as u64));
    }
    let begun = Instant::now();
    let _consumer = consumer(&network, 7, 2).start(slow).await.unwrap();
    // It lets a turn end at the tick before it would be too long, and the next one begins when its last message is
    // answered.
    let (ten_minutes, allowed) = (600 * SECOND, 31 * SECOND);
    sleep(ten_minutes).await;
    assert!(model.largest_rdy_sum() <= 2);
    for nsqd in 0..7 {
        let mut last = begun;
        for at in model.delivered(nsqd).into_iter().chain([Instant::now()]) {
            assert!(at - last <= allowed, "nsqd {nsqd} waited {:?}", at - last);
            last = at;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn c3_lesson_48_an_idle_nsqd_lends_its_share_and_gets_it_back() {
    let network = MemoryNetwork::new();
    let model = Model::start(&network, 2, 2500);
    let consumer = consumer(&network, 2, 0).start(slow).await.unwrap();
    sleep(SECOND).await;
    model.publish(0, 0..100_000);
    consumer.set_max_in_flight(20).await;
    sleep(60 * SECOND).await;
    let mut rdys = model.rdys();
    rdys.sort_unstable();
    assert_eq!(rdys, [1, 19]);
    model.publish(1, 200_000..300_000);
    sleep(SECOND).await;
    assert_eq!(model.rdys(), [10, 10]);
    assert!(model.largest_rdy_sum() <= 20);
}

#[tokio::test(start_paused = true)]
async fn c2_a_connection_has_rdy_1_until_its_first_message_and_then_costs_nothing_more() {
    let mut nsqd = Nsqd::start();
    let consumer = nsqd.consumer().max_in_flight(10).start(succeed).await.unwrap();
    let mut peer = nsqd.accept_unproven().await;
    assert_eq!(peer.command().await, Command::Rdy(1));
    for _ in 0..10 {
        sleep(30 * SECOND).await;
        peer.heartbeat().await;
    }
    assert_eq!(peer.drain().await, []);
    peer.deliver([1]).await;
    assert_eq!(peer.commands(2).await, [fin(1), Command::Rdy(10)]);
    peer.deliver(2..10).await;
    assert_eq!(peer.commands(8).await, (2..10).map(fin).collect::<Vec<_>>());
    drop(peer);
    // A new connection to the same nsqd has to show it again.
    let mut peer = nsqd.accept_unproven().await;
    assert_eq!(peer.command().await, Command::Rdy(1));
    assert_eq!(consumer.connections()[0].rdy, 1);
}

#[tokio::test(start_paused = true)]
async fn c3_an_nsqd_that_never_delivers_keeps_nothing_but_one_from_the_others() {
    let network = MemoryNetwork::new();
    let model = Model::start(&network, 3, 2500);
    model.publish(0, 0..100_000);
    let _consumer = consumer(&network, 3, 20).start(slow).await.unwrap();
    sleep(600 * SECOND).await;
    let mut rdys = model.rdys();
    rdys.sort_unstable();
    assert_eq!(rdys, [1, 1, 18]);
    assert!(model.largest_rdy_sum() <= 20);
}

#[tokio::test(start_paused = true)]
async fn a_pause_stops_all_nsqds_and_resuming_restores_them() {
    let mut nsqd = Nsqd::start();
    let (consumer, mut peer) = nsqd.consume(10, succeed).await;
    consumer.pause().await;
    assert_eq!(peer.command().await, Command::Rdy(0));
    settle().await;
    assert_eq!(consumer.connections()[0].paused, Some(PauseReason::Paused));
    // What was on its way is handled all the same.
    peer.deliver([1, 2]).await;
    assert_eq!(peer.commands(2).await, [fin(1), fin(2)]);
    consumer.pause().await;
    consumer.set_max_in_flight(7).await;
    peer.expect_nothing(50 * SECOND).await;
    peer.heartbeat().await;
    consumer.resume().await;
    assert_eq!(peer.command().await, Command::Rdy(7));
    settle().await;
    assert_eq!(consumer.connections()[0].paused, None);
    consumer.resume().await;
    peer.expect_nothing(SECOND).await;
    // A connection that is made during a pause waits for its end.
    consumer.pause().await;
    assert_eq!(peer.command().await, Command::Rdy(0));
    drop(peer);
    let mut peer = nsqd.accept().await;
    peer.expect_nothing(50 * SECOND).await;
    consumer.resume().await;
    assert_eq!(peer.command().await, Command::Rdy(7));
}

#[tokio::test(start_paused = true)]
async fn a_consumer_is_starved_while_an_nsqd_has_all_of_its_rdy_in_flight() {
    let mut nsqd = Nsqd::start();
    let (consumer, mut peer) = nsqd.consume(10, stuck).await;
    settle().await;
    assert!(!consumer.is_starved());
    peer.deliver(1..=7).await;
    settle().await;
    assert!(!consumer.is_starved());
    peer.deliver([8]).await;
    settle().await;
    assert!(consumer.is_starved());
}

#[tokio::test(start_paused = true)]
async fn c3_the_times_of_redistribution_are_the_user_s() {
    let network = MemoryNetwork::new();
    let model = Model::start(&network, 2, 2500);
    for nsqd in 0..2 {
        model.publish(nsqd, (0..10_000).map(|number| number + 1_000_000 * nsqd as u64));
    }
    let builder = consumer(&network, 2, 1)
        .low_rdy_timeout(4 * SECOND)
        .low_rdy_idle_timeout(2 * SECOND)
        .rdy_redistribute_interval(Duration::from_millis(100));
    let begun = Instant::now();
    let _consumer = builder.start(slow).await.unwrap();
    sleep(100 * SECOND).await;
    for nsqd in 0..2 {
        let mut last = begun;
        for at in model.delivered(nsqd).into_iter().chain([Instant::now()]) {
            assert!(at - last <= 5 * SECOND, "nsqd {nsqd} waited {:?}", at - last);
            last = at;
        }
    }
}
