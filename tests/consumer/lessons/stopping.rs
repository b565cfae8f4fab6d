//! Section 3.5: stopping, and errors that nobody listens to.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_nsq::protocol::CommandName;
use async_nsq::test_server::Nsqd;
use async_nsq::transport::MemoryNetwork;
use async_nsq::{BoxError, Consumer, Error, ErrorKind, LookupdStatus, Message};
use tokio::time::{Instant, sleep};

use super::{ADDRESS, House, Notes, consumer_in, until};
use crate::scripted::{SECOND, stuck, succeed, text};

#[tokio::test(start_paused = true)]
async fn lesson_72_a_stop_under_full_load_ends_in_time_and_loses_nothing() {
    for (seed, moment) in [3, 250, 1111, 2500].into_iter().enumerate() {
        let network = MemoryNetwork::new();
        let mut nsqds = Vec::new();
        let mut builder = consumer_in(&network).max_in_flight(60).concurrency(40);
        for number in 0..3 {
            let address = format!("nsqd-{number}:4150");
            let nsqd = Nsqd::builder().start_in(&network, &address).await.unwrap();
            nsqd.create_channel("orders", "billing").unwrap();
            for message in 0..2_000 {
                nsqd.publish("orders", message.to_string()).unwrap();
            }
            nsqds.push(nsqd);
            builder = builder.nsqd(address);
        }
        let handled = Notes::new();
        let notes = handled.clone();
        let consumer = builder
            .start(move |message: Message| {
                let notes = notes.clone();
                async move {
                    let number: u64 = text(&message).parse()?;
                    sleep(Duration::from_millis((number * 7 + seed as u64) % 50)).await;
                    notes.add(());
                    if number % 50 == 49 {
                        Err(BoxError::from("no"))
                    } else {
                        Ok(())
                    }
                }
            })
            .await
            .unwrap();
        sleep(Duration::from_millis(moment)).await;
        let begun = Instant::now();
        let report = consumer.shutdown(10 * SECOND).await;
        assert!(begun.elapsed() <= SECOND, "{:?}", begun.elapsed());
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(handled.take().len() as u64, report.finished + report.requeued);
        sleep(SECOND).await;
        let channels: Vec<_> = nsqds
            .iter()
            .map(|nsqd| nsqd.channel("orders", "billing").unwrap())
            .collect();
        let finished: u64 = channels.iter().map(|channel| channel.finish_count).sum();
        assert_eq!(finished, report.finished);
        for channel in &channels {
            let left = channel.depth + channel.deferred;
            assert_eq!(left as u64 + channel.finish_count, 2_000);
            assert_eq!(
                (channel.in_flight, channel.timeout_count, channel.clients.len()),
                (0, 0, 0)
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn lesson_73_a_stop_wins_over_an_nsqd_that_never_answers_the_handshake() {
    let house = House::new().await;
    house.nsqd.faults().command(CommandName::Identify).ignore();
    let consumer = house.consumer().start(succeed).await.unwrap();
    house.nsqd.wait_for(|stats| stats.clients.len() == 1).await.unwrap();
    let begun = Instant::now();
    assert!(consumer.shutdown(30 * SECOND).await.is_clean());
    assert!(begun.elapsed() < SECOND, "{:?}", begun.elapsed());
    sleep(600 * SECOND).await;
    let stats = house.nsqd.stats();
    assert_eq!(
        (stats.accepted, stats.clients.len()),
        (1, 0),
        "and nothing connects afterwards"
    );
}

#[tokio::test(start_paused = true)]
async fn lesson_74_a_handler_may_stop_its_own_consumer_without_a_deadlock() {
    // To wait for the end in a handler is to wait for oneself: the deadline ends it, and the message is told as abandoned.
    for waits in [false, true] {
        let house = House::new().await;
        house.publish(1);
        let own: Arc<OnceLock<Arc<Consumer>>> = Arc::default();
        let seen = Arc::clone(&own);
        let handler = move |_: Message| {
            let consumer = seen.get().map(Arc::clone);
            async move {
                let consumer = consumer.ok_or("not yet")?;
                if waits {
                    consumer.shutdown(5 * SECOND).await;
                } else {
                    tokio::spawn(async move { consumer.shutdown(5 * SECOND).await });
                }
                Ok::<(), BoxError>(())
            }
        };
        let consumer = house.consumer().max_in_flight(0).start(handler).await.unwrap();
        let consumer = Arc::new(consumer);
        own.set(Arc::clone(&consumer)).unwrap();
        until(&consumer, |stats| stats.connections == 1).await;
        consumer.set_max_in_flight(10).await;
        house
            .nsqd
            .wait_for_within(60 * SECOND, |stats| stats.clients.is_empty())
            .await
            .unwrap();
        let report = consumer.shutdown(SECOND).await;
        assert_eq!(report.abandoned.len(), usize::from(waits), "{report:?}");
        assert_eq!(house.channel().finish_count, u64::from(!waits));
        assert_eq!(
            house.channel().depth,
            usize::from(waits),
            "given back, not left to time out"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn lesson_75_a_stop_takes_no_longer_than_allowed_whatever_handlers_do() {
    for seconds in [0, 1, 10] {
        let house = House::new().await;
        house.publish(10);
        let consumer = house.consumer().max_in_flight(10).start(stuck).await.unwrap();
        until(&consumer, |stats| stats.in_flight == 10).await;
        let deadline = seconds * SECOND;
        let begun = Instant::now();
        let report = consumer.shutdown(deadline).await;
        assert!(
            begun.elapsed() <= deadline + Duration::from_millis(1),
            "{:?}",
            begun.elapsed()
        );
        assert_eq!(report.abandoned.len(), 10, "it says what was not done");
        assert!(!report.is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn lesson_76_errors_that_nobody_listens_to_end_nothing_and_can_be_read_later() {
    let house = House::new().await;
    house.nsqd.faults().command(CommandName::Fin).times(3).late();
    let consumer = house.consumer().nsqd("nobody:4150").lookupd("nowhere:4161");
    let consumer = consumer
        .on_answer_refused(|_| panic!("a hook that fails"))
        .max_attempts(0)
        .default_requeue_delay(SECOND)
        .start(|message: Message| async move {
            match message.attempts() {
                1 => Err(BoxError::from("no")),
                2 => panic!("worse"),
                _ => Ok(()),
            }
        })
        .await
        .unwrap();
    house.publish(20);
    house.nsqd.faults().disconnect();
    house.finishes(20).await;
    let stats = consumer.stats();
    let kind = |address: &str| {
        let nsqd = stats.nsqds.iter().find(|nsqd| &*nsqd.address == address).unwrap();
        nsqd.failure.as_ref().map(Error::kind)
    };
    assert_eq!(kind("nobody:4150"), Some(ErrorKind::Unreachable));
    assert_eq!(kind(ADDRESS), None);
    assert!(matches!(stats.lookupds[0].status, LookupdStatus::Failing { .. }));
    assert_eq!((stats.refused, stats.connections), (3, 1));
    assert!(stats.requeued >= 40, "{stats:?}");
}
