//! C5 in random lives: handlers of all kinds, connections that are lost at any time, and each message answered at most
//! once, on the connection that delivered it.

use std::time::Duration;

use async_nsq::transport::MemoryNetwork;
use async_nsq::{BoxError, ConnectionConfig, Consumer, HandlerError, Message};
use tokio::time::sleep;

use crate::model::Model;
use crate::scripted::{SECOND, text};

const NSQDS: usize = 3;
const MESSAGES: u64 = 150;

/// Behaves by chance, but the same for the same seed and delivery.
async fn chance(seed: u64, message: Message) -> Result<(), BoxError> {
    let number: u64 = text(&message).parse()?;
    let mut rng = fastrand::Rng::with_seed(seed ^ (number << 20) ^ u64::from(message.attempts()));
    if rng.bool() {
        sleep(Duration::from_millis(rng.u64(0..200))).await;
    }
    if rng.u8(..4) == 0 {
        message.touch().ok();
    }
    match rng.u8(..10) {
        0 => Err("no".into()),
        1 => Err(HandlerError::requeue_after(Duration::from_millis(rng.u64(0..50))).into()),
        2 => Err(HandlerError::requeue().without_backoff().into()),
        3 => panic!("by chance"),
        4 if rng.u8(..4) == 0 => Err(HandlerError::give_up().into()),
        _ => Ok(()),
    }
}

async fn live(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let network = MemoryNetwork::new();
    let model = Model::start(&network, NSQDS, 2500);
    let max_in_flight = rng.u32(1..40);
    let builder = Consumer::builder("orders", "billing")
        .connection(ConnectionConfig::new().connector(network.connector()))
        .max_in_flight(max_in_flight)
        .concurrency(rng.u32(1..20))
        .max_attempts(if rng.bool() { 0 } else { 8 })
        .default_requeue_delay(Duration::from_millis(10))
        .max_backoff_duration(Duration::from_secs(if rng.bool() { 0 } else { 4 }));
    let builder = (0..NSQDS).fold(builder, |builder, nsqd| builder.nsqd(format!("nsqd-{nsqd}:4150")));
    let handler = move |message: Message| {
        // A panic in the call, before there is a future.
        assert!(
            message.attempts() != 2 || message.id().as_bytes()[15] != b'7',
            "in the call"
        );
        chance(seed, message)
    };
    let consumer = builder.start(handler).await.unwrap();
    let total = MESSAGES as usize * NSQDS;
    for nsqd in 0..NSQDS {
        model.publish(nsqd, (0..MESSAGES).map(|number| number + 1000 * nsqd as u64));
    }
    let mut rounds = 0;
    while model.finished() < total {
        sleep(Duration::from_millis(rng.u64(1..1000))).await;
        rounds += 1;
        assert!(
            rounds < 20_000,
            "seed {seed}: {} of {total} are finished",
            model.finished()
        );
        match rng.u8(..10) {
            0 | 1 if rounds < 200 => model.cut(rng.usize(..NSQDS)),
            2 => consumer.set_max_in_flight(rng.u32(0..40)).await,
            3 => consumer.set_max_in_flight(max_in_flight).await,
            _ => {}
        }
        model.check();
    }
    let report = consumer.shutdown(60 * SECOND).await;
    model.check();
    assert!(report.is_clean(), "seed {seed}: {report:?}");
    assert_eq!(consumer.stats().in_flight, 0);
    assert!(report.finished >= total as u64, "seed {seed}: {report:?}");
}

#[tokio::test(start_paused = true)]
async fn c5_each_message_is_answered_at_most_once_where_it_came_from_and_all_are_finished() {
    for seed in 0..12 {
        live(seed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn c7_lesson_72_a_shutdown_at_any_time_loses_and_doubles_nothing() {
    for seed in 0..60 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let network = MemoryNetwork::new();
        let model = Model::start(&network, NSQDS, 2500);
        for nsqd in 0..NSQDS {
            model.publish(nsqd, (0..MESSAGES).map(|number| number + 1000 * nsqd as u64));
        }
        let builder = Consumer::builder("orders", "billing")
            .connection(ConnectionConfig::new().connector(network.connector()))
            .max_in_flight(rng.u32(1..40))
            .concurrency(rng.u32(1..20))
            .default_requeue_delay(Duration::from_millis(10));
        let builder = (0..NSQDS).fold(builder, |builder, nsqd| builder.nsqd(format!("nsqd-{nsqd}:4150")));
        let consumer = builder.start(move |message| chance(seed, message)).await.unwrap();
        sleep(Duration::from_micros(rng.u64(0..2_000_000))).await;
        let cut = rng.bool();
        if cut {
            model.cut(rng.usize(..NSQDS));
        }
        if rng.u8(..3) == 0 {
            drop(consumer);
            sleep(SECOND).await;
        } else {
            let report = consumer.shutdown(Duration::from_millis(rng.u64(2..1000))).await;
            assert!(report.unflushed <= usize::from(cut), "seed {seed}: {report:?}");
        }
        sleep(SECOND).await;
        model.check();
        assert_eq!(
            model.in_flight(),
            0,
            "seed {seed}: what is not finished is back in its queue"
        );
    }
}
