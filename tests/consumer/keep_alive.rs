//! Keeping messages alive, what becomes of handlers whose messages are lost, and handlers that take too long.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nsq::{BoxError, Consumer, ConsumerBuilder, ErrorKind, Handler, HandlerError, Message};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::scripted::{Nsqd, SECOND, delivery, fin, id, req, text};
use crate::support::{Command, Peer, frames, settle};

/// nsqd waits 10 s for an answer, and 22 s whatever happens.
const GRANTED: &[u8] = br#"{"max_rdy_count":2500,"version":"1.3.0","msg_timeout":10000,"max_msg_timeout":22000}"#;

/// What handlers have noted.
type Notes = Arc<Mutex<Vec<String>>>;

fn note(notes: &Notes, what: impl Into<String>) {
    notes.lock().unwrap().push(what.into());
}

fn noted(notes: &Notes) -> Vec<String> {
    notes.lock().unwrap().clone()
}

/// Notes when it is dropped.
struct Dropped(Notes);

impl Drop for Dropped {
    fn drop(&mut self) {
        note(&self.0, "dropped");
    }
}

async fn consume(builder: ConsumerBuilder, nsqd: &mut Nsqd, handler: impl Handler) -> (Consumer, Peer) {
    let consumer = builder.max_in_flight(10).start(handler).await.unwrap();
    let mut peer = nsqd.accept_granting(GRANTED).await;
    assert!(matches!(peer.command().await, Command::Rdy(_)));
    (consumer, peer)
}

/// A consumer that keeps messages alive and does not back off.
async fn keeping(handler: impl Handler) -> (Nsqd, Consumer, Peer) {
    let mut nsqd = Nsqd::start();
    let builder = nsqd.consumer().keep_alive(true).max_backoff_duration(Duration::ZERO);
    let (consumer, peer) = consume(builder, &mut nsqd, handler).await;
    (nsqd, consumer, peer)
}

/// The next command that is no RDY.
async fn answer(peer: &mut Peer) -> Command {
    loop {
        match peer.command().await {
            Command::Rdy(_) => {}
            command => return command,
        }
    }
}

/// Fails if anything but RDY comes for a while.
async fn expect_no_answer(peer: &mut Peer) {
    let unwanted = tokio::time::timeout(30 * SECOND, answer(peer)).await;
    assert!(unwanted.is_err(), "{unwanted:?}");
}

fn touch(number: u64) -> Command {
    Command::Touch(id(number).to_string())
}

async fn refuse_touch(peer: &mut Peer, number: u64) {
    peer.error(&format!("E_TOUCH_FAILED TOUCH {} failed ID not in flight", id(number)))
        .await;
    settle().await;
}

/// Waits for ever, notes when its message is lost, and when it is dropped.
fn waiting(notes: &Notes) -> impl Handler {
    let notes = Arc::clone(notes);
    move |message: Message| {
        let notes = Arc::clone(&notes);
        async move {
            let _dropped = Dropped(Arc::clone(&notes));
            let lost = message.lost().await;
            note(&notes, format!("{:?}", lost.kind()));
            std::future::pending::<Result<(), BoxError>>().await
        }
    }
}

#[tokio::test(start_paused = true)]
async fn lesson_27_a_message_is_touched_up_to_max_msg_timeout_and_then_its_handler_is_told_and_stopped() {
    let notes = Notes::default();
    let (_nsqd, consumer, mut peer) = keeping(waiting(&notes)).await;
    peer.deliver([1]).await;
    let begun = Instant::now();
    for seconds in [5, 10, 15] {
        assert_eq!(answer(&mut peer).await, touch(1));
        assert_eq!(begun.elapsed().as_secs(), seconds);
    }
    sleep(begun + Duration::from_millis(21_990) - Instant::now()).await;
    assert_eq!(noted(&notes), [""; 0]);
    sleep(Duration::from_millis(20)).await;
    assert_eq!(noted(&notes), ["TimedOut", "dropped"]);
    expect_no_answer(&mut peer).await;
    let stats = consumer.stats();
    assert_eq!((stats.timed_out, stats.in_flight, stats.refused), (1, 0, 0));
    // The worker goes on.
    peer.deliver([2]).await;
    assert_eq!(answer(&mut peer).await, touch(2));
    assert_eq!(consumer.shutdown(Duration::ZERO).await.timed_out, 1);
}

#[tokio::test(start_paused = true)]
async fn lesson_27_a_refused_touch_stops_the_handler_and_counts_as_a_failure() {
    let notes = Notes::default();
    let mut nsqd = Nsqd::start();
    let builder = nsqd.consumer().keep_alive(true);
    let (consumer, mut peer) = consume(builder, &mut nsqd, waiting(&notes)).await;
    peer.deliver([1]).await;
    assert_eq!(answer(&mut peer).await, touch(1));
    assert_eq!(consumer.stats().backoff_level, 0);
    refuse_touch(&mut peer, 1).await;
    assert_eq!(noted(&notes), ["Rejected", "dropped"]);
    let stats = consumer.stats();
    assert_eq!((stats.timed_out, stats.refused, stats.in_flight), (1, 1, 0));
    // The probe's message is awaited with a level above 0.
    let rdy = peer.drain().await;
    assert!(rdy.contains(&Command::Rdy(0)), "{rdy:?}");
    assert_eq!(consumer.stats().backoff_level, 1);
}

#[tokio::test(start_paused = true)]
async fn c5_a_handler_that_ends_because_its_message_is_lost_answers_nothing() {
    let (_nsqd, consumer, mut peer) = keeping(|message: Message| async move {
        tokio::select! {
            lost = message.lost() => Err::<(), BoxError>(lost.into()),
            () = std::future::pending() => Ok(()),
        }
    })
    .await;
    peer.deliver([1]).await;
    assert_eq!(answer(&mut peer).await, touch(1));
    refuse_touch(&mut peer, 1).await;
    peer.deliver([2]).await;
    for _ in 0..3 {
        assert_eq!(answer(&mut peer).await, touch(2));
    }
    expect_no_answer(&mut peer).await;
    let stats = consumer.stats();
    assert_eq!((stats.timed_out, stats.requeued, stats.in_flight), (2, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_handler_whose_connection_is_gone_is_stopped_and_that_is_no_failure() {
    let notes = Notes::default();
    let mut nsqd = Nsqd::start();
    let builder = nsqd.consumer().keep_alive(true);
    let (consumer, mut peer) = consume(builder, &mut nsqd, waiting(&notes)).await;
    peer.deliver([1]).await;
    settle().await;
    drop(peer);
    peer = nsqd.accept_granting(GRANTED).await;
    assert_eq!(noted(&notes), ["ConnectionLost", "dropped"]);
    expect_no_answer(&mut peer).await;
    let stats = consumer.stats();
    assert_eq!((stats.timed_out, stats.unsent, stats.backoff_level), (0, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn c5_a_message_that_comes_again_on_its_connection_is_handled_once_more_and_answered_once() {
    let notes = Notes::default();
    let handler = {
        let notes = Arc::clone(&notes);
        move |message: Message| {
            let notes = Arc::clone(&notes);
            async move {
                sleep(4 * SECOND).await;
                note(&notes, message.attempts().to_string());
                Ok::<(), BoxError>(())
            }
        }
    };
    let (_nsqd, consumer, mut peer) = keeping(handler).await;
    peer.deliver([1]).await;
    sleep(SECOND).await;
    peer.send_bytes(&frames(&[delivery(1, 2, "")])).await;
    assert_eq!(answer(&mut peer).await, fin(1));
    expect_no_answer(&mut peer).await;
    assert_eq!(noted(&notes), ["2"]);
    let stats = consumer.stats();
    assert_eq!((stats.timed_out, stats.finished, stats.in_flight), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_has_answered_by_hand_goes_on_and_touches_nothing() {
    for refused in [false, true] {
        let notes = Notes::default();
        let of_handler = Arc::clone(&notes);
        let handler = move |message: Message| {
            let notes = Arc::clone(&of_handler);
            async move {
                sleep(6 * SECOND).await;
                message.finish().await?;
                sleep(30 * SECOND).await;
                note(&notes, "done");
                Ok::<(), BoxError>(())
            }
        };
        let (_nsqd, consumer, mut peer) = keeping(handler).await;
        peer.deliver([1]).await;
        assert_eq!(answer(&mut peer).await, touch(1));
        assert_eq!(answer(&mut peer).await, fin(1));
        if refused {
            peer.error(&format!("E_FIN_FAILED FIN {} failed ID not in flight", id(1)))
                .await;
        }
        expect_no_answer(&mut peer).await;
        sleep(SECOND).await;
        assert_eq!(noted(&notes), ["done"]);
        assert_eq!(consumer.stats().timed_out, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn without_keep_alive_a_lost_message_is_only_told_of() {
    let notes = Notes::default();
    let handler = {
        let notes = Arc::clone(&notes);
        move |message: Message| {
            let notes = Arc::clone(&notes);
            async move {
                message.touch()?;
                let lost = message.lost().await;
                note(&notes, format!("{:?}", lost.code()));
                sleep(SECOND).await;
                Ok::<(), BoxError>(())
            }
        }
    };
    let mut nsqd = Nsqd::start();
    let builder = nsqd.consumer();
    let (consumer, mut peer) = consume(builder, &mut nsqd, handler).await;
    peer.deliver([1]).await;
    assert_eq!(answer(&mut peer).await, touch(1));
    refuse_touch(&mut peer, 1).await;
    assert_eq!(noted(&notes), ["Some(TouchFailed)"]);
    assert_eq!(answer(&mut peer).await, fin(1));
    assert_eq!(consumer.stats().timed_out, 0);
}

#[tokio::test(start_paused = true)]
async fn c5_a_destructor_that_panics_while_its_handler_is_stopped_costs_no_worker() {
    struct Panics;

    impl Drop for Panics {
        fn drop(&mut self) {
            std::panic::resume_unwind(Box::new("a destructor panics"));
        }
    }

    let mut nsqd = Nsqd::start();
    let builder = nsqd
        .consumer()
        .keep_alive(true)
        .concurrency(1)
        .max_backoff_duration(Duration::ZERO);
    let (consumer, mut peer) = consume(builder, &mut nsqd, |message: Message| async move {
        if text(&message) == "1" {
            let _panics = Panics;
            return std::future::pending().await;
        }
        Ok::<(), BoxError>(())
    })
    .await;
    for _ in 0..3 {
        peer.deliver([1]).await;
        assert_eq!(answer(&mut peer).await, touch(1));
        refuse_touch(&mut peer, 1).await;
        peer.deliver([2]).await;
        assert_eq!(answer(&mut peer).await, fin(2));
    }
    assert_eq!(consumer.stats().timed_out, 3);
}

/// A message that its handler has handed on.
async fn taken_over() -> (Nsqd, Consumer, Peer, Message) {
    let (sender, taken) = oneshot::channel();
    let sender = Mutex::new(Some(sender));
    let handler = move |message: Message| {
        let sender = sender.lock().unwrap().take().unwrap();
        async move { sender.send(message.take_over()).map_err(|_| "nobody wants it") }
    };
    let (nsqd, consumer, mut peer) = keeping(handler).await;
    peer.deliver([1]).await;
    let message = taken.await.unwrap();
    (nsqd, consumer, peer, message)
}

#[tokio::test(start_paused = true)]
async fn a_message_of_ones_own_is_kept_alive_while_a_future_runs() {
    let (_nsqd, consumer, mut peer, message) = taken_over().await;
    // Nobody touches it by itself; RDY has risen after the first message.
    assert_eq!(peer.drain().await, [Command::Rdy(10)]);
    let work = async {
        sleep(12 * SECOND).await;
        7
    };
    assert_eq!(message.keep_alive_while(work).await.unwrap(), 7);
    // Touched at 10 s.
    assert_eq!(message.time_left().as_secs(), 7);
    message.finish().await.unwrap();
    for expected in [touch(1), touch(1), fin(1)] {
        assert_eq!(answer(&mut peer).await, expected);
    }
    let stats = consumer.stats();
    assert_eq!((stats.finished, stats.timed_out, stats.in_flight), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn c5_a_message_of_ones_own_that_is_lost_drops_the_future_and_is_answered_by_nothing() {
    let (_nsqd, consumer, mut peer, message) = taken_over().await;
    let notes = Notes::default();
    let dropped = Dropped(Arc::clone(&notes));
    let work = async move {
        let _dropped = dropped;
        std::future::pending::<()>().await;
    };
    let lost = message.keep_alive_while(work).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::TimedOut);
    let told = "nsqd nsqd:4150: handler: max_msg_timeout (22s) has passed since the delivery: nsqd has taken the message back, \
                however often it was touched, and delivers it again";
    assert_eq!(lost.to_string(), told);
    assert_eq!(noted(&notes), ["dropped"]);
    let late = message.finish().await.unwrap_err();
    assert!(late.to_string().contains("nsqd has taken it back"), "{late}");
    for _ in 0..3 {
        assert_eq!(answer(&mut peer).await, touch(1));
    }
    expect_no_answer(&mut peer).await;
    let stats = consumer.stats();
    assert_eq!((stats.timed_out, stats.requeued, stats.in_flight), (1, 0, 0));
    assert!(consumer.shutdown(SECOND).await.abandoned.is_empty());
}

#[tokio::test(start_paused = true)]
async fn c7_a_shutdown_waits_for_a_handler_whose_message_is_kept_alive() {
    let (_nsqd, consumer, mut peer) = keeping(|_: Message| async {
        sleep(18 * SECOND).await;
        Ok::<(), BoxError>(())
    })
    .await;
    peer.deliver([1]).await;
    settle().await;
    let (report, seen) = tokio::join!(consumer.shutdown(30 * SECOND), peer.close_wait());
    let seen: Vec<_> = seen
        .into_iter()
        .filter(|command| !matches!(command, Command::Rdy(_)))
        .collect();
    assert_eq!(seen, [fin(1), touch(1), touch(1), touch(1)]);
    assert!(report.is_clean() && report.finished == 1, "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_takes_longer_than_handler_timeout_is_stopped_and_its_message_requeued() {
    let notes = Notes::default();
    let mut nsqd = Nsqd::start();
    let builder = nsqd.consumer().handler_timeout(3 * SECOND);
    let (consumer, mut peer) = consume(builder, &mut nsqd, waiting(&notes)).await;
    peer.deliver([1]).await;
    let begun = Instant::now();
    // C4: it is a failure, so RDY 0 goes first.
    while peer.command().await != Command::Rdy(0) {}
    assert_eq!(peer.command().await, req(1, 90_000));
    assert_eq!(begun.elapsed().as_secs(), 3);
    assert_eq!(noted(&notes), ["dropped"]);
    let stats = consumer.stats();
    assert_eq!((stats.handler_timeouts, stats.requeued, stats.timed_out), (1, 1, 0));
    assert_eq!(consumer.shutdown(Duration::ZERO).await.handler_timeouts, 1);
}

#[tokio::test(start_paused = true)]
async fn handler_timeout_and_keep_alive_work_together() {
    let mut nsqd = Nsqd::start();
    let builder = nsqd
        .consumer()
        .keep_alive(true)
        .handler_timeout(12 * SECOND)
        .max_backoff_duration(Duration::ZERO);
    let notes = Notes::default();
    let (_consumer, mut peer) = consume(builder, &mut nsqd, waiting(&notes)).await;
    peer.deliver([1]).await;
    let begun = Instant::now();
    for (command, seconds) in [(touch(1), 5), (touch(1), 10), (req(1, 90_000), 12)] {
        assert_eq!(answer(&mut peer).await, command);
        assert_eq!(begun.elapsed().as_secs(), seconds);
    }
    assert_eq!(noted(&notes), ["dropped"]);
}

#[tokio::test(start_paused = true)]
async fn c5_a_handler_that_is_stopped_after_its_message_was_taken_over_leaves_the_answer_to_its_holder() {
    let (sender, taken) = oneshot::channel();
    let sender = Mutex::new(Some(sender));
    let mut nsqd = Nsqd::start();
    let builder = nsqd.consumer().handler_timeout(3 * SECOND);
    let handler = move |message: Message| {
        let sender = sender.lock().unwrap().take().unwrap();
        async move {
            assert!(sender.send(message.take_over()).is_ok());
            std::future::pending::<Result<(), BoxError>>().await
        }
    };
    let (consumer, mut peer) = consume(builder, &mut nsqd, handler).await;
    peer.deliver([1]).await;
    let message = taken.await.unwrap();
    sleep(4 * SECOND).await;
    assert_eq!(consumer.stats().handler_timeouts, 1);
    message.finish().await.unwrap();
    assert_eq!(answer(&mut peer).await, fin(1));
    expect_no_answer(&mut peer).await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_in_time_is_not_touched_nor_stopped() {
    let mut nsqd = Nsqd::start();
    let builder = nsqd
        .consumer()
        .keep_alive(true)
        .handler_timeout(3 * SECOND)
        .max_backoff_duration(Duration::ZERO);
    let handler = |message: Message| async move {
        if text(&message) != "1" {
            sleep(2 * SECOND).await;
        }
        match text(&message) {
            "1" | "2" => Ok::<(), BoxError>(()),
            "3" => Err(HandlerError::requeue_after(SECOND).into()),
            _ => panic!("late"),
        }
    };
    let (consumer, mut peer) = consume(builder, &mut nsqd, handler).await;
    for (number, expected) in [(1, fin(1)), (2, fin(2)), (3, req(3, 1000)), (4, req(4, 90_000))] {
        peer.deliver([number]).await;
        assert_eq!(answer(&mut peer).await, expected);
    }
    expect_no_answer(&mut peer).await;
    let stats = consumer.stats();
    assert_eq!((stats.handler_timeouts, stats.timed_out, stats.in_flight), (0, 0, 0));
}

#[tokio::test]
async fn a_handler_timeout_out_of_range_is_told_with_what_is_allowed() {
    for timeout in [
        Duration::ZERO,
        Duration::from_micros(999),
        Duration::from_secs(86_401),
        Duration::MAX,
    ] {
        let started = Nsqd::start().consumer().handler_timeout(timeout);
        let error = started.start(crate::scripted::succeed).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let told = format!("configuration: option handler_timeout is {timeout:?}, allowed is 1ms to 24h");
        assert_eq!(error.to_string(), told);
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_time_nsqd_grants_a_message_can_be_kept_asked_for_its_time_and_held_beyond_the_consumer() {
    for granted in ["18446744073709551615", "9223372036854775807", "1", "0"] {
        let granted = format!(r#"{{"max_rdy_count":4294967295,"msg_timeout":{granted},"max_msg_timeout":{granted}}}"#);
        let mut nsqd = Nsqd::start();
        let builder = nsqd.consumer().keep_alive(true).max_in_flight(u32::MAX).concurrency(4);
        let (sender, mut held) = tokio::sync::mpsc::channel(10);
        let handler = move |message: Message| {
            let sender = sender.clone();
            async move {
                let _ = (message.time_left(), message.touch());
                if text(&message) == "2" {
                    sender.send(message.take_over()).await?;
                } else {
                    sleep(SECOND).await;
                }
                Ok::<(), BoxError>(())
            }
        };
        let consumer = builder.start(handler).await.unwrap();
        let mut peer = nsqd.accept_granting(granted.as_bytes()).await;
        peer.deliver([1, 2]).await;
        sleep(3 * SECOND).await;
        let message = held.recv().await.unwrap();
        drop(consumer);
        sleep(SECOND).await;
        drop(message);
        let seen = peer.close_wait().await;
        // Beyond the consumer's end it can be answered for as long as nsqd waits.
        let delay_ms = if granted.contains(":1,") || granted.contains(":0,") {
            0
        } else {
            90_000
        };
        assert!(seen.contains(&req(2, delay_ms)), "{seen:?}");
    }
}
