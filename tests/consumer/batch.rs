//! Handlers of several messages at once.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nsq::protocol::CommandName;
use async_nsq::{BatchOptions, BoxError, Consumer, ConsumerBuilder, ErrorKind, HandlerError, Message};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::by_hand::House;
use crate::scripted::{self, SECOND, fin, req, sorted, text};
use crate::support::{Command, Peer, frames, settle};

/// The next so many commands that are no RDY.
async fn answers(peer: &mut Peer, count: usize) -> Vec<Command> {
    let mut commands = Vec::new();
    while commands.len() < count {
        match peer.command().await {
            Command::Rdy(_) => {}
            command => commands.push(command),
        }
    }
    sorted(commands)
}

const CALM: Duration = Duration::ZERO;

fn bodies(batch: &[Message]) -> Vec<String> {
    batch.iter().map(|message| text(message).to_owned()).collect()
}

/// The first message of a connection comes alone, and then as many as the consumer asks for.
async fn warm_up(house: &House, consumer: &Consumer) {
    house.publish(&["first"]);
    while consumer.stats().finished == 0 {
        sleep(SECOND).await;
    }
}

/// A consumer that tells of each batch when it comes, and finishes it.
async fn telling(
    house: &House,
    builder: ConsumerBuilder,
    options: BatchOptions,
) -> (Consumer, mpsc::UnboundedReceiver<(Instant, Vec<String>)>) {
    let (sender, mut told) = mpsc::unbounded_channel();
    let handler = move |batch: Vec<Message>| {
        let _ = sender.send((Instant::now(), bodies(&batch)));
        async { Ok::<(), BoxError>(()) }
    };
    let consumer = builder.start_batches(options, handler).await.unwrap();
    warm_up(house, &consumer).await;
    told.recv().await.unwrap();
    (consumer, told)
}

#[tokio::test(start_paused = true)]
async fn lesson_35_a_batch_is_handed_over_when_it_is_full_or_its_first_has_waited_for_linger() {
    let house = House::new().await;
    let options = BatchOptions::new().size(3).linger(SECOND);
    let (consumer, mut told) = telling(&house, house.consumer(), options).await;
    house.publish(&["1", "2", "3", "4"]);
    let begun = Instant::now();
    assert_eq!(told.recv().await.unwrap().1, ["1", "2", "3"]);
    assert!(begun.elapsed() < SECOND / 2);
    sleep(SECOND / 2).await;
    house.publish(&["5"]);
    let (at, batch) = told.recv().await.unwrap();
    assert_eq!(batch, ["4", "5"]);
    let waited = at - begun;
    assert!(waited > SECOND * 9 / 10 && waited < SECOND * 11 / 10, "{waited:?}");
    settle().await;
    assert_eq!(consumer.stats().finished, 6);
}

#[tokio::test(start_paused = true)]
async fn lesson_35_a_batch_larger_than_max_in_flight_does_not_wait_for_what_cannot_come() {
    let house = House::new().await;
    let options = BatchOptions::new().size(1000).linger(20 * SECOND);
    let (_consumer, mut told) = telling(&house, house.consumer().max_in_flight(4), options).await;
    let begun = Instant::now();
    house.publish(&["order"; 10]);
    assert_eq!(told.recv().await.unwrap().1.len(), 4);
    assert_eq!(told.recv().await.unwrap().1.len(), 4);
    assert!(begun.elapsed() < SECOND);
    assert_eq!(told.recv().await.unwrap().1.len(), 2);
    assert!(begun.elapsed() >= 20 * SECOND, "two more could have come");
}

#[tokio::test(start_paused = true)]
async fn lesson_35_messages_in_other_batches_count_too() {
    let house = House::new().await;
    let (sender, mut told) = mpsc::unbounded_channel();
    let builder = house.consumer().max_in_flight(5).concurrency(4);
    let options = BatchOptions::new().size(3).linger(20 * SECOND);
    let handler = move |batch: Vec<Message>| {
        let first = text(&batch[0]) == "first";
        if !first {
            let _ = sender.send(batch.len());
        }
        async move {
            if !first {
                std::future::pending::<()>().await;
            }
            Ok::<(), BoxError>(())
        }
    };
    let consumer = builder.start_batches(options, handler).await.unwrap();
    warm_up(&house, &consumer).await;
    house.publish(&["order"; 10]);
    let begun = Instant::now();
    let mut sizes = [told.recv().await.unwrap(), told.recv().await.unwrap()];
    sizes.sort_unstable();
    assert_eq!(sizes, [2, 3]);
    assert!(begun.elapsed() < SECOND);
}

#[tokio::test(start_paused = true)]
async fn c5_each_message_of_a_batch_has_an_outcome_of_its_own() {
    let mut nsqd = scripted::Nsqd::start();
    let builder = nsqd.consumer().max_in_flight(10).max_backoff_duration(CALM);
    let handler = |batch: Vec<Message>| async move {
        let outcome = |message: &Message| match text(message) {
            "2" => Err(BoxError::from("no")),
            "3" => Err(HandlerError::requeue_after(Duration::from_millis(7)).into()),
            "4" => Err(HandlerError::give_up().into()),
            _ => Ok(()),
        };
        // The last one is forgotten.
        batch[..batch.len() - 1].iter().map(outcome).collect::<Vec<_>>()
    };
    let consumer = builder
        .start_batches(BatchOptions::new().size(6), handler)
        .await
        .unwrap();
    let mut peer = nsqd.accept_unproven().await;
    peer.command().await;
    peer.deliver(1..=6).await;
    let expected = [fin(1), fin(4), fin(5), req(2, 90_000), req(3, 7), req(6, 90_000)];
    assert_eq!(answers(&mut peer, 6).await, expected);
    let stats = consumer.stats();
    assert_eq!((stats.finished, stats.requeued, stats.given_up), (3, 3, 1));
}

#[tokio::test(start_paused = true)]
async fn c5_one_result_and_a_panic_are_for_all_that_are_not_answered_by_hand() {
    for panics in [false, true] {
        let mut nsqd = scripted::Nsqd::start();
        let builder = nsqd.consumer().max_in_flight(10).max_backoff_duration(CALM);
        let handler = move |mut batch: Vec<Message>| async move {
            batch.remove(0).finish();
            batch.remove(0).requeue(Duration::from_millis(7));
            assert!(!panics, "on purpose");
            Err::<(), _>("the database is down")
        };
        let _consumer = builder
            .start_batches(BatchOptions::new().size(4), handler)
            .await
            .unwrap();
        let mut peer = nsqd.accept_unproven().await;
        peer.command().await;
        for _ in 0..2 {
            peer.deliver(1..=4).await;
            let expected = [fin(1), req(2, 7), req(3, 90_000), req(4, 90_000)];
            assert_eq!(answers(&mut peer, 4).await, expected);
        }
        peer.expect_nothing(20 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn c5_a_message_taken_out_of_a_batch_is_answered_by_who_took_it() {
    let house = House::new().await;
    let (sender, mut taken) = mpsc::unbounded_channel();
    let handler = move |mut batch: Vec<Message>| {
        let _ = sender.send(batch.remove(0).take_over());
        async { Ok::<(), BoxError>(()) }
    };
    let options = BatchOptions::new().size(2);
    let consumer = house.consumer().start_batches(options, handler).await.unwrap();
    house.publish(&["one", "two"]);
    let one = taken.recv().await.unwrap();
    sleep(SECOND).await;
    assert_eq!(house.answers(), ["FIN"]);
    assert_eq!(consumer.stats().in_flight, 1);
    one.requeue(SECOND).await.unwrap();
    assert_eq!(house.answers(), ["FIN", "REQ 1000"]);
}

#[tokio::test(start_paused = true)]
async fn c7_a_batch_that_is_not_begun_is_given_back_and_one_that_is_may_end() {
    let house = House::new().await;
    let (sender, mut begun) = mpsc::unbounded_channel();
    let handler = move |batch: Vec<Message>| {
        let first = text(&batch[0]) == "first";
        if !first {
            let _ = sender.send(batch.len());
        }
        async move {
            if !first {
                sleep(5 * SECOND).await;
            }
            Ok::<(), BoxError>(())
        }
    };
    let options = BatchOptions::new().size(3).linger(20 * SECOND);
    let builder = house.consumer().concurrency(2);
    let consumer = builder.start_batches(options, handler).await.unwrap();
    warm_up(&house, &consumer).await;
    house.nsqd.clear_commands();
    house.publish(&["1", "2", "3", "4", "5"]);
    assert_eq!(begun.recv().await, Some(3));
    sleep(SECOND).await;
    let (report, ()) = tokio::join!(consumer.shutdown(60 * SECOND), async {
        settle().await;
        assert_eq!(house.answers(), ["REQ 0", "REQ 0"]);
    });
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.finished, report.returned, report.requeued), (4, 2, 0));
    assert!(begun.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn c7_a_batch_that_is_stopped_is_given_back_and_reported_message_by_message() {
    let house = House::new().await;
    let handler = |batch: Vec<Message>| async move {
        let _held = batch;
        std::future::pending::<Result<(), BoxError>>().await
    };
    let options = BatchOptions::new().size(2).linger(CALM);
    let consumer = house.consumer().start_batches(options, handler).await.unwrap();
    house.publish(&["1", "2"]);
    sleep(SECOND).await;
    let report = consumer.shutdown(10 * SECOND).await;
    assert_eq!((report.abandoned.len(), report.unflushed), (2, 0), "{report:?}");
    assert_eq!(house.answers(), ["REQ 0", "REQ 0"]);
}

#[tokio::test(start_paused = true)]
async fn c7_dropping_the_consumer_gives_a_half_gathered_batch_back() {
    let house = House::new().await;
    let options = BatchOptions::new().size(3).linger(20 * SECOND);
    let (consumer, mut told) = telling(&house, house.consumer(), options).await;
    house.nsqd.clear_commands();
    house.publish(&["1", "2"]);
    sleep(SECOND).await;
    drop(consumer);
    house.nsqd.wait_for(|stats| stats.clients.is_empty()).await.unwrap();
    assert_eq!(house.answers(), ["REQ 0", "REQ 0"]);
    assert!(told.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn c1_stuck_batches_cost_no_heartbeat_and_no_connection() {
    let house = House::new().await;
    let handler = |_: Vec<Message>| std::future::pending::<Result<(), BoxError>>();
    let builder = house.consumer().concurrency(2);
    let consumer = builder
        .start_batches(BatchOptions::new().size(2), handler)
        .await
        .unwrap();
    house.publish(&["order"; 6]);
    sleep(50 * SECOND).await;
    house.nsqd.clear_commands();
    sleep(550 * SECOND).await;
    assert_eq!(consumer.stats().connections, 1);
    let nops = house.nsqd.commands().into_iter();
    let nops = nops
        .filter(|received| received.command.name() == CommandName::Nop)
        .count();
    assert!(nops >= 18, "{nops}");
}

#[tokio::test(start_paused = true)]
async fn c4_a_batch_that_fails_is_one_step_of_backoff() {
    let house = House::new().await;
    let handler = |_: Vec<Message>| async { Err::<(), _>("no") };
    let options = BatchOptions::new().size(10).linger(SECOND);
    let consumer = house.consumer().start_batches(options, handler).await.unwrap();
    house.publish(&["order"; 10]);
    house
        .nsqd
        .wait_for_command(|received| received.command.name() == CommandName::Req)
        .await
        .unwrap();
    settle().await;
    assert_eq!(consumer.stats().backoff_level, 1);
}

#[tokio::test(start_paused = true)]
async fn c6_what_was_lost_with_its_connection_is_not_handled() {
    let mut nsqd = scripted::Nsqd::start();
    let told = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&told);
    let handler = move |batch: Vec<Message>| {
        seen.lock().unwrap().extend(bodies(&batch));
        async { Ok::<(), BoxError>(()) }
    };
    let options = BatchOptions::new().size(3).linger(20 * SECOND);
    let builder = nsqd.consumer().max_in_flight(10);
    let _consumer = builder.start_batches(options, handler).await.unwrap();
    let mut peer = nsqd.accept_unproven().await;
    peer.command().await;
    peer.deliver([1, 2]).await;
    settle().await;
    drop(peer);
    let mut peer = nsqd.accept_unproven().await;
    peer.command().await;
    peer.deliver([3, 4, 5, 6]).await;
    assert_eq!(answers(&mut peer, 4).await, [fin(3), fin(4), fin(5), fin(6)]);
    let mut told = told.lock().unwrap().clone();
    told.sort();
    assert_eq!(told, ["3", "4", "5", "6"]);
}

#[tokio::test]
async fn options_of_batches_out_of_range_are_refused_by_name() {
    let builder = Consumer::builder("orders", "billing").nsqd("127.0.0.1:1");
    let handler = |_: Vec<Message>| async { Ok::<(), BoxError>(()) };
    for (options, name) in [
        (BatchOptions::new().size(0), "size"),
        (BatchOptions::new().size(100_001), "size"),
        (BatchOptions::new().linger(61 * SECOND), "linger"),
    ] {
        let refused = builder.clone().start_batches(options, handler).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid);
        assert!(refused.to_string().contains(name), "{refused}");
    }
}

#[tokio::test(start_paused = true)]
async fn c8_a_shutdown_lets_what_is_being_given_up_end() {
    let mut nsqd = scripted::Nsqd::start();
    let handler = |_: Vec<Message>| async { Ok::<(), BoxError>(()) };
    let builder = nsqd.consumer().max_in_flight(10).max_attempts(1);
    let builder = builder.on_give_up(|_| sleep(5 * SECOND));
    let consumer = builder.start_batches(BatchOptions::new(), handler).await.unwrap();
    let mut peer = nsqd.accept_unproven().await;
    peer.command().await;
    peer.send_bytes(&frames(&[scripted::delivery(1, 2, "1")])).await;
    settle().await;
    peer.drain().await;
    let (report, seen) = tokio::join!(consumer.shutdown(60 * SECOND), peer.close_wait());
    assert_eq!(seen, [fin(1)]);
    assert!(report.is_clean());
    assert_eq!((report.given_up, report.finished, report.requeued), (1, 1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c7_a_batch_whose_handler_blocks_its_thread_is_reported_message_by_message() {
    let house = House::new().await;
    let (begun, told) = std::sync::mpsc::channel();
    let (gate, opened) = std::sync::mpsc::channel::<()>();
    let opened = Mutex::new(opened);
    let handler = move |batch: Vec<Message>| {
        let _ = begun.send(batch.len());
        let _ = opened.lock().unwrap().recv();
        async { Ok::<(), BoxError>(()) }
    };
    let options = BatchOptions::new().size(1);
    let consumer = house.consumer().start_batches(options, handler).await.unwrap();
    house.publish(&["1"]);
    tokio::task::spawn_blocking(move || told.recv()).await.unwrap().unwrap();
    let report = consumer.shutdown(SECOND / 5).await;
    assert_eq!(report.abandoned.len(), 1, "{report:?}");
    drop(gate);
}

/// An error whose destructor panics.
#[derive(Debug)]
struct Bomb;

impl std::fmt::Display for Bomb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no")
    }
}

impl std::error::Error for Bomb {}

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "on purpose");
    }
}

#[tokio::test(start_paused = true)]
async fn c5_results_beyond_the_batch_cost_no_message_even_if_they_panic() {
    let mut nsqd = scripted::Nsqd::start();
    let builder = nsqd.consumer().max_in_flight(10).concurrency(1);
    let handler = |_: Vec<Message>| async { vec![Ok(()), Err(Bomb)] };
    let options = BatchOptions::new().size(1);
    let _consumer = builder.start_batches(options, handler).await.unwrap();
    let mut peer = nsqd.accept_unproven().await;
    peer.command().await;
    for number in [1, 2] {
        peer.deliver([number]).await;
        assert_eq!(answers(&mut peer, 1).await, [fin(number)]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_given_up_does_not_hold_back_the_answers_to_the_rest_of_the_batch() {
    let mut nsqd = scripted::Nsqd::start();
    let builder = nsqd.consumer().max_in_flight(10).on_give_up(|_| sleep(30 * SECOND));
    let handler = |batch: Vec<Message>| async move {
        let outcome = |message: &Message| match text(message) {
            "1" => Err(HandlerError::give_up()),
            _ => Ok(()),
        };
        batch.iter().map(outcome).collect::<Vec<_>>()
    };
    let options = BatchOptions::new().size(3);
    let _consumer = builder.start_batches(options, handler).await.unwrap();
    let mut peer = nsqd.accept_unproven().await;
    peer.command().await;
    peer.deliver(1..=3).await;
    let begun = Instant::now();
    assert_eq!(answers(&mut peer, 2).await, [fin(2), fin(3)]);
    assert!(begun.elapsed() < SECOND);
    assert_eq!(answers(&mut peer, 1).await, [fin(1)]);
}

/// nsqd waits 10 s for an answer, and 22 s whatever happens.
const GRANTED: &[u8] = br#"{"max_rdy_count":2500,"version":"1.3.0","msg_timeout":10000,"max_msg_timeout":22000}"#;

#[tokio::test(start_paused = true)]
async fn lesson_27_each_message_of_a_batch_is_touched_until_it_is_answered_or_lost() {
    let mut nsqd = scripted::Nsqd::start();
    let builder = nsqd.consumer().max_in_flight(10).keep_alive(true);
    let handler = |mut batch: Vec<Message>| async move {
        sleep(7 * SECOND).await;
        batch.remove(0).finish();
        sleep(12 * SECOND).await;
        Ok::<(), BoxError>(())
    };
    let options = BatchOptions::new().size(2);
    let consumer = builder.start_batches(options, handler).await.unwrap();
    let mut peer = nsqd.accept_granting(GRANTED).await;
    peer.command().await;
    peer.deliver([1, 2]).await;
    let touch = |number| Command::Touch(scripted::id(number).to_string());
    let expected = [touch(1), touch(2)];
    assert_eq!(answers(&mut peer, 2).await, expected);
    assert_eq!(answers(&mut peer, 1).await, [fin(1)]);
    assert_eq!(answers(&mut peer, 1).await, [touch(2)]);
    assert_eq!(answers(&mut peer, 1).await, [touch(2)]);
    assert_eq!(answers(&mut peer, 1).await, [fin(2)]);
    peer.expect_nothing(20 * SECOND).await;
    assert_eq!(consumer.stats().finished, 2);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_takes_longer_than_handler_timeout_is_stopped_and_requeued() {
    let mut nsqd = scripted::Nsqd::start();
    let builder = nsqd.consumer().max_in_flight(10).max_backoff_duration(CALM);
    let handler = |mut batch: Vec<Message>| async move {
        batch.remove(0).finish();
        std::future::pending::<Result<(), BoxError>>().await
    };
    let options = BatchOptions::new().size(3);
    let builder = builder.handler_timeout(5 * SECOND);
    let consumer = builder.start_batches(options, handler).await.unwrap();
    let mut peer = nsqd.accept_unproven().await;
    peer.command().await;
    for round in 1..=2 {
        peer.deliver(1..=3).await;
        let begun = Instant::now();
        let expected = [fin(1), req(2, 90_000), req(3, 90_000)];
        assert_eq!(answers(&mut peer, 3).await, expected);
        assert!(begun.elapsed() >= 5 * SECOND);
        assert_eq!(consumer.stats().handler_timeouts, round);
    }
}

#[tokio::test(start_paused = true)]
async fn lesson_27_a_message_of_a_batch_that_is_lost_is_touched_no_more_and_the_others_are() {
    let mut nsqd = scripted::Nsqd::start();
    let builder = nsqd.consumer().max_in_flight(10).keep_alive(true);
    let builder = builder.max_backoff_duration(CALM);
    let handler = |_batch: Vec<Message>| async move {
        sleep(30 * SECOND).await;
        Ok::<(), BoxError>(())
    };
    let options = BatchOptions::new().size(2);
    let consumer = builder.start_batches(options, handler).await.unwrap();
    let mut peer = nsqd.accept_granting(GRANTED).await;
    peer.command().await;
    peer.deliver([1, 2]).await;
    let touch = |number| Command::Touch(scripted::id(number).to_string());
    assert_eq!(answers(&mut peer, 2).await, [touch(1), touch(2)]);
    let refused = format!("E_TOUCH_FAILED TOUCH {} failed ID not in flight", scripted::id(1));
    peer.error(&refused).await;
    assert_eq!(answers(&mut peer, 2).await, [touch(2), touch(2)]);
    // nsqd's max_msg_timeout is over by then; it decides what becomes of the answers.
    assert_eq!(answers(&mut peer, 2).await, [fin(1), fin(2)]);
    assert_eq!((consumer.stats().connections, consumer.stats().in_flight), (1, 0));
}
