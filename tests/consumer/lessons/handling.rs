//! Section 3.2: handling, timeouts and answers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nsq::backoff::Off;
use async_nsq::protocol::{Command, CommandName, ErrorCode};
use async_nsq::test_server::Nsqd;
use async_nsq::transport::MemoryNetwork;
use async_nsq::{BoxError, ConnectionConfig, Consumer, ErrorKind, Message, Step};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::{House, Notes, only, rest, until};
use crate::scripted::{SECOND, stuck, succeed, text};

#[tokio::test(start_paused = true)]
async fn lesson_24_an_nsqd_that_fell_silent_is_soon_shown_as_lost_with_the_reason() {
    let house = House::new().await;
    house.publish(1);
    let connection = house.connection().heartbeat_interval(10 * SECOND);
    let consumer = house.consumer().connection(connection).start(stuck).await.unwrap();
    until(&consumer, |stats| (stats.connections, stats.in_flight) == (1, 1)).await;
    // The cable is cut: nothing comes any more, not even an end.
    house.nsqd.faults().freeze();
    house.nsqd.faults().refuse_connections();
    let cut = Instant::now();
    let stats = until(&consumer, |stats| stats.connections == 0).await;
    assert!(cut.elapsed() <= 21 * SECOND, "{:?}", cut.elapsed());
    let lost = only(&stats);
    assert_eq!((stats.in_flight, lost.connection.as_ref()), (0, None));
    let failure = lost.failure.as_ref().unwrap();
    assert_eq!(
        (failure.kind(), failure.step()),
        (ErrorKind::ConnectionLost, Some(Step::Heartbeat))
    );
    assert!(consumer.ready(SECOND).await.is_err());
    house.nsqd.faults().accept_connections().unwrap();
    let stats = until(&consumer, |stats| stats.connections == 1).await;
    assert!(only(&stats).failure.is_none());
}

#[tokio::test(start_paused = true)]
async fn lesson_25_the_error_itself_says_what_e_fin_failed_means() {
    let house = House::with(Nsqd::builder().msg_timeout(SECOND)).await;
    let (sender, mut messages) = mpsc::channel(10);
    let handler = move |message: Message| {
        let sender = sender.clone();
        async move {
            sender.send(message.take_over()).await?;
            Ok::<(), BoxError>(())
        }
    };
    let _consumer = house.consumer().start(handler).await.unwrap();
    house.publish(1);
    let message = messages.recv().await.unwrap();
    let id = message.id().to_string();
    // nsqd would deliver it to the same connection again at once, and a late FIN would finish that delivery.
    house.nsqd.pause_channel("orders", "billing").unwrap();
    sleep(3 * SECOND).await;
    let error = message.finish_confirmed().await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::FinFailed));
    let told = error.to_string();
    for part in [
        "nsqd:4150",
        "E_FIN_FAILED",
        &id,
        "taken the message back",
        "msg_timeout (1s)",
    ] {
        assert!(told.contains(part), "{part} is missing in {told:?}");
    }
}

/// One message whose FIN comes too late. Returns how often RDY was 0 and the level of backoff after it, and waits until
/// the redelivery is finished.
async fn too_late(off: bool) -> (usize, u32) {
    let house = House::new().await;
    let builder = house.consumer().max_in_flight(10);
    let builder = if off { builder.backoff(Off) } else { builder };
    let consumer = builder.start(succeed).await.unwrap();
    until(&consumer, |stats| stats.connections == 1).await;
    house.nsqd.faults().command(CommandName::Fin).once().late();
    house.publish(1);
    let stats = until(&consumer, |stats| stats.refused == 1).await;
    let level = until(&consumer, |stats| stats.backoff_level > 0 || off)
        .await
        .backoff_level;
    // The redelivery was on its way already. What comes next is tried alone, and goes well.
    house.finishes(1).await;
    house.publish(1);
    house.finishes(2).await;
    rest().await;
    assert_eq!(consumer.stats().backoff_level, 0);
    assert_eq!((house.client().rdy, house.nsqd.stats().accepted), (10, 1), "{stats:?}");
    let commands = house.nsqd.commands();
    let stops = commands
        .iter()
        .filter(|received| received.command == Command::Rdy { count: 0 });
    (stops.count(), level)
}

#[tokio::test(start_paused = true)]
async fn lesson_26_a_fin_that_comes_too_late_is_a_failure_to_back_off_from() {
    assert_eq!(too_late(false).await, (1, 1));
    assert_eq!(too_late(true).await, (0, 0), "unless there is no backoff");
}

#[tokio::test(start_paused = true)]
async fn lesson_29_lesson_30_messages_that_nobody_began_go_back_at_once_and_cost_one_attempt() {
    let house = House::new().await;
    house.publish(20);
    let seen = Notes::new();
    let slow = seen.clone();
    let first = house.consumer().max_in_flight(20).concurrency(1);
    let first = first
        .start(move |message: Message| {
            slow.add(message.attempts());
            async {
                sleep(5 * SECOND).await;
                Ok::<(), BoxError>(())
            }
        })
        .await
        .unwrap();
    until(&first, |stats| stats.in_flight == 20).await;
    let begun = Instant::now();
    let report = first.shutdown(30 * SECOND).await;
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.finished, report.returned), (1, 19));
    assert!(
        begun.elapsed() < 6 * SECOND,
        "one handler's time, not a message timeout"
    );
    assert_eq!(seen.take(), [1]);
    // Had nsqd sent them to the ending consumer again, they would be at their third attempt by now, and given up.
    let channel = house.channel();
    assert_eq!(
        (channel.depth, channel.requeue_count, channel.timeout_count),
        (19, 19, 0)
    );
    let next = seen.clone();
    let second = house.consumer().max_in_flight(20).max_attempts(2);
    let second = second
        .start(move |message: Message| {
            next.add(message.attempts());
            async { Ok::<(), BoxError>(()) }
        })
        .await
        .unwrap();
    house.finishes(20).await;
    assert_eq!(seen.take(), [2; 19]);
    assert_eq!(second.stats().given_up, 0);
}

#[tokio::test(start_paused = true)]
async fn lesson_32_a_message_is_handled_max_attempts_times_and_given_up_on_the_delivery_after() {
    let house = House::new().await;
    let (handled, given_up) = (Notes::new(), Notes::new());
    let (of_handler, of_hook) = (handled.clone(), given_up.clone());
    let builder = house.consumer().max_attempts(3).on_give_up(move |message: Message| {
        of_hook.add(message.attempts());
        async {}
    });
    let handler = move |message: Message| {
        of_handler.add(message.attempts());
        async { Err::<(), _>("no") }
    };
    let consumer = builder.start(handler).await.unwrap();
    house.publish(1);
    house.finishes(1).await;
    assert_eq!((handled.take(), given_up.take()), (vec![1, 2, 3], vec![4]));
    rest().await;
    let stats = consumer.stats();
    assert_eq!((stats.received, stats.requeued, stats.given_up), (4, 3, 1));
    assert_eq!(house.channel().requeue_count, 3);
    // What does not fail ends before: the last allowed attempt may still succeed.
    let last = handled.clone();
    let builder = house.consumer().max_attempts(3);
    drop(consumer);
    let _consumer = builder
        .start(move |message: Message| {
            last.add(message.attempts());
            async move { if message.attempts() < 3 { Err("not yet") } else { Ok(()) } }
        })
        .await
        .unwrap();
    house.publish(1);
    house.finishes(2).await;
    assert_eq!(handled.take(), [1, 2, 3]);
}

/// How many handlers ran at once at most, of 40 messages; and what was in flight at most.
async fn parallel(max_in_flight: u32, concurrency: Option<u32>) -> (usize, u64) {
    let house = House::new().await;
    let running = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (handler_running, handler_most) = (Arc::clone(&running), Arc::clone(&most));
    let builder = house.consumer().max_in_flight(max_in_flight);
    let builder = concurrency
        .into_iter()
        .fold(builder, |builder, count| builder.concurrency(count));
    let consumer = builder
        .start(move |_: Message| {
            let (running, most) = (Arc::clone(&handler_running), Arc::clone(&handler_most));
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                sleep(SECOND).await;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok::<(), BoxError>(())
            }
        })
        .await
        .unwrap();
    house.publish(40);
    let mut in_flight = 0;
    while house.channel().finish_count < 40 {
        sleep(Duration::from_millis(100)).await;
        in_flight = in_flight.max(consumer.stats().in_flight);
    }
    (most.load(Ordering::SeqCst), in_flight)
}

#[tokio::test(start_paused = true)]
async fn lesson_34_one_number_says_how_many_handlers_run_at_once() {
    assert_eq!(parallel(10, Some(1)).await, (1, 10));
    assert_eq!(parallel(10, Some(4)).await, (4, 10));
    assert_eq!(parallel(10, None).await, (10, 10), "all that may be in flight");
    assert_eq!(parallel(1, Some(8)).await, (1, 1), "no more than there can be");
}

#[tokio::test(start_paused = true)]
async fn lesson_36_a_single_handler_gets_the_messages_of_an_nsqd_in_the_order_of_their_delivery() {
    let house = House::new().await;
    house.publish(500);
    let order = Notes::new();
    let notes = order.clone();
    let builder = house.consumer().max_in_flight(100).concurrency(1);
    let _consumer = builder
        .start(move |message: Message| {
            let (notes, number) = (notes.clone(), text(&message).parse::<u64>().unwrap());
            async move {
                notes.add(number);
                // Some at once, some not: groups of all sizes are taken and given back.
                if number % 7 == 0 {
                    sleep(Duration::from_millis(number % 5)).await;
                }
                Ok::<(), BoxError>(())
            }
        })
        .await
        .unwrap();
    house.finishes(500).await;
    assert_eq!(order.take(), (0..500).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn lesson_38_handlers_are_tested_without_nsqd_and_without_waiting() {
    let house = House::new().await;
    let seen = Notes::new();
    let notes = seen.clone();
    let _consumer = house
        .consumer()
        .start(move |message: Message| {
            notes.add(message.id());
            async { Err::<(), _>("no") }
        })
        .await
        .unwrap();
    house.publish(1);
    let begun = Instant::now();
    house.finishes(1).await;
    let ids = seen.take();
    assert_eq!((ids.len(), ids.iter().collect::<BTreeSet<_>>().len()), (5, 1));
    // 90 s, 180 s, 270 s, 360 s and 450 s between the attempts.
    assert!(begun.elapsed() >= 1350 * SECOND);
}

/// One handler, and more in flight than it gets to in time.
#[tokio::test(start_paused = true)]
async fn lesson_34_messages_that_wait_here_longer_than_nsqd_does_are_told() {
    let broker = Nsqd::builder().msg_timeout(10 * SECOND);
    let network = MemoryNetwork::new();
    let nsqd = broker.start_in(&network, "nsqd:4150").await.unwrap();
    nsqd.create_channel("orders", "billing").unwrap();
    let slow = |_: Message| async {
        sleep(4 * SECOND).await;
        Ok::<(), BoxError>(())
    };
    let consumer = Consumer::builder("orders", "billing")
        .connection(ConnectionConfig::new().connector(network.connector()))
        .nsqd("nsqd:4150")
        .max_in_flight(4)
        .concurrency(1)
        .max_attempts(0);
    let consumer = consumer.start(slow).await.unwrap();
    for _ in 0..4 {
        nsqd.publish("orders", "one").unwrap();
    }
    sleep(9 * SECOND).await;
    assert_eq!(consumer.stats().late, 0, "two were in time");
    sleep(9 * SECOND).await;
    assert!(consumer.stats().late >= 2, "{:?}", consumer.stats());
}
