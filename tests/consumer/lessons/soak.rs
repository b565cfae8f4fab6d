//! What must not grow: tasks, messages that are kept, and bodies.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nsq::test_server::Nsqd;
use async_nsq::{BoxError, HandlerError, Message};
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::time::sleep;

use super::{House, Notes, rest, until};
use crate::scripted::{SECOND, stuck};

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

#[tokio::test(start_paused = true)]
async fn lesson_39_a_hundred_thousand_messages_leave_no_task_and_nothing_of_theirs_behind() {
    let house = House::with(Nsqd::builder().record_commands(0)).await;
    // Each handler has a part of it for as long as it lives.
    let token = Arc::new(());
    let numbers = AtomicU64::new(0);
    let part = Arc::clone(&token);
    let handler = move |message: Message| {
        let part = Arc::clone(&part);
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        async move {
            let _part = part;
            match number % 100 {
                0 => sleep(Duration::from_millis(number % 977)).await,
                1 => message.touch()?,
                2 => return Err(HandlerError::requeue_after(SECOND).without_backoff().into()),
                3 => {
                    let _lost = message.lost();
                    message.finish().await?;
                }
                _ => {}
            }
            Ok::<(), BoxError>(())
        }
    };
    let consumer = house.consumer().max_in_flight(500).concurrency(50);
    let consumer = consumer.start(handler).await.unwrap();
    let mut seen = Vec::new();
    for round in 1..=20 {
        house.publish(5_000);
        house.finishes(5_000 * round).await;
        rest().await;
        assert_eq!(consumer.stats().in_flight, 0);
        seen.push((tasks(), Arc::strong_count(&token)));
    }
    assert!(seen.iter().all(|count| *count == (seen[0].0, 2)), "{seen:?}");
    let stats = consumer.stats();
    assert_eq!((stats.finished, stats.unsent, stats.refused), (100_000, 0, 0));
    assert_eq!(stats.received, stats.finished + stats.requeued);
    drop(consumer);
    house.nsqd.wait_for(|stats| stats.clients.is_empty()).await.unwrap();
    rest().await;
    assert_eq!(Arc::strong_count(&token), 1, "the handler is gone too");
}

#[tokio::test(start_paused = true)]
async fn lesson_39_connections_that_come_and_go_leave_no_task_behind() {
    let house = House::new().await;
    let consumer = house.consumer().max_in_flight(10).start(stuck).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..100 {
        until(&consumer, |stats| stats.connections == 1).await;
        // Also with messages in its handlers' hands, which nothing will answer.
        house.publish(1);
        sleep(20 * SECOND).await;
        seen.push(tasks());
        house.nsqd.faults().disconnect();
        until(&consumer, |stats| stats.connections == 0).await;
    }
    assert!(seen.iter().all(|count| *count == seen[0]), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn lesson_40_a_body_is_shared_with_whoever_keeps_it_and_with_nobody_after() {
    let house = House::with(Nsqd::builder().record_commands(0)).await;
    let kept = Notes::new();
    let notes = kept.clone();
    let handler = move |message: Message| {
        // By reference, without a copy: the body of the same memory.
        let (body, also): (Bytes, Bytes) = (message.body().clone(), message.body().clone());
        assert_eq!(body.as_ptr(), also.as_ptr());
        drop(also);
        notes.add(body);
        async { Ok::<(), BoxError>(()) }
    };
    let _consumer = house.consumer().max_in_flight(100).start(handler).await.unwrap();
    let body = Bytes::from(vec![b'x'; 50_000]);
    for round in 1..=4 {
        for _ in 0..10 {
            house.nsqd.publish("orders", body.clone()).unwrap();
        }
        house.finishes(10 * round).await;
    }
    rest().await;
    let mut kept = kept.take();
    // What the reader reads into next may still be shared with the latest.
    kept.truncate(30);
    let total = kept.len();
    assert!(kept.iter().all(|kept| *kept == body));
    let mut alone = 0;
    while let Some(body) = kept.pop() {
        // Those that came in one piece share it with each other, so the last of them is the only owner.
        alone += usize::from(body.is_unique());
    }
    assert!(alone > 0, "of {total} bodies each is kept by somebody else as well");
}

#[tokio::test(start_paused = true)]
async fn lesson_40_lesson_41_behind_slow_handlers_nothing_piles_up_but_what_may_be_in_flight() {
    let house = House::with(Nsqd::builder().record_commands(0)).await;
    let body = Bytes::from(vec![b'x'; 1000]);
    for _ in 0..10_000 {
        house.nsqd.publish("orders", body.clone()).unwrap();
    }
    let alive: Arc<Mutex<(u64, u64)>> = Arc::default();
    let counted = Arc::clone(&alive);
    let handler = move |message: Message| {
        let counted = Arc::clone(&counted);
        async move {
            sleep(4 * SECOND).await;
            counted.lock().unwrap().0 += message.body().len() as u64;
            Ok::<(), BoxError>(())
        }
    };
    let consumer = house.consumer().max_in_flight(20).concurrency(2);
    let consumer = consumer.start(handler).await.unwrap();
    for _ in 0..600 {
        rest().await;
        let stats = consumer.stats();
        assert!(stats.in_flight <= 20, "{stats:?}");
        // What nsqd has given away and not got back: there is no other place where it could pile up.
        let given = house.channel().in_flight as u64;
        assert!(given <= 20, "{given}");
    }
    assert!(alive.lock().unwrap().0 > 0);
}
