//! C7: a shutdown within its deadline, and a report that is right.

use std::sync::Arc;
use std::time::Duration;

use async_nsq::transport::{Connecting, Connector};
use async_nsq::{BoxError, ConnectionConfig, Consumer, ConsumerReport, ErrorKind, Message};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::scripted::{FIRST, Nsqd, SECOND, fin, req, stuck, succeed};
use crate::support::{Command, Peer, settle};

/// Ends it in a task of its own. The deadline passes in virtual time.
fn shut_down(consumer: &Arc<Consumer>, deadline: Duration) -> JoinHandle<(ConsumerReport, Duration)> {
    let consumer = Arc::clone(consumer);
    let begun = Instant::now();
    tokio::spawn(async move { (consumer.shutdown(deadline).await, begun.elapsed()) })
}

/// A handler that waits for a permit.
fn gated(gate: &Arc<Semaphore>) -> impl async_nsq::Handler + use<> {
    let gate = Arc::clone(gate);
    move |_: Message| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await?.forget();
            Ok::<(), BoxError>(())
        }
    }
}

/// One worker that runs the first of three messages.
async fn one_of_three_runs(handler: impl async_nsq::Handler) -> (Nsqd, Arc<Consumer>, Peer) {
    let mut nsqd = Nsqd::start();
    let builder = nsqd.consumer().max_in_flight(10).concurrency(1);
    let (consumer, mut peer) = nsqd.consume_with(builder, handler).await;
    peer.deliver(1..=3).await;
    settle().await;
    (nsqd, Arc::new(consumer), peer)
}

#[tokio::test(start_paused = true)]
async fn c7_lesson_29_running_handlers_end_and_are_answered_what_is_not_begun_goes_back_at_once() {
    let gate = Arc::new(Semaphore::new(0));
    let (_nsqd, consumer, mut peer) = one_of_three_runs(gated(&gate)).await;
    let ending = shut_down(&consumer, 30 * SECOND);
    assert_eq!(peer.command().await, Command::Cls);
    assert_eq!(peer.commands(2).await, [req(2, 0), req(3, 0)]);
    // It crossed CLS on the way.
    peer.deliver([4]).await;
    assert_eq!(peer.command().await, req(4, 0));
    peer.heartbeat().await;
    assert_eq!(peer.next().await, Some(Command::Nop));
    peer.expect_nothing(5 * SECOND).await;
    gate.add_permits(1);
    assert_eq!(peer.command().await, fin(1));
    // Only CLOSE_WAIT says that nothing more comes.
    peer.expect_nothing(5 * SECOND).await;
    peer.deliver([5]).await;
    assert_eq!(peer.command().await, req(5, 0));
    peer.respond(b"CLOSE_WAIT").await;
    assert_eq!(peer.expect_close().await, 0);
    let (report, _) = ending.await.unwrap();
    assert!(report.is_clean());
    assert_eq!((report.finished, report.returned, report.requeued), (FIRST + 1, 4, 0));
    assert_eq!(consumer.stats().connections, 0);
}

#[tokio::test(start_paused = true)]
async fn c7_close_wait_before_the_last_answer_does_not_close() {
    let gate = Arc::new(Semaphore::new(0));
    let (_nsqd, consumer, mut peer) = one_of_three_runs(gated(&gate)).await;
    let ending = shut_down(&consumer, 30 * SECOND);
    assert_eq!(peer.command().await, Command::Cls);
    peer.respond(b"CLOSE_WAIT").await;
    assert_eq!(peer.commands(2).await, [req(2, 0), req(3, 0)]);
    peer.expect_nothing(10 * SECOND).await;
    gate.add_permits(1);
    assert_eq!(peer.command().await, fin(1));
    assert_eq!(peer.expect_close().await, 0);
    assert!(ending.await.unwrap().0.is_clean());
}

#[tokio::test(start_paused = true)]
async fn c7_lesson_74_stuck_handlers_are_stopped_in_time_for_their_messages_to_go_back() {
    let (_nsqd, consumer, mut peer) = one_of_three_runs(stuck).await;
    let ending = shut_down(&consumer, 30 * SECOND);
    let begun = Instant::now();
    assert_eq!(peer.command().await, Command::Cls);
    peer.respond(b"CLOSE_WAIT").await;
    assert_eq!(peer.commands(2).await, [req(2, 0), req(3, 0)]);
    assert_eq!(peer.command().await, req(1, 0));
    assert_eq!(begun.elapsed().as_secs(), 29);
    assert_eq!(peer.expect_close().await, 0);
    let (report, took) = ending.await.unwrap();
    assert!(took < 30 * SECOND);
    assert_eq!((report.abandoned.len(), report.returned, report.unflushed), (1, 2, 0));
    assert!(!report.is_clean());
}

#[tokio::test(start_paused = true)]
async fn c7_the_deadline_holds_with_a_peer_that_never_answers_cls() {
    for deadline in [Duration::ZERO, Duration::from_millis(7), 20 * SECOND] {
        for stays_quiet in [true, false] {
            let mut nsqd = Nsqd::start();
            let (consumer, mut peer) = nsqd.consume(10, stuck).await;
            let consumer = Arc::new(consumer);
            if !stays_quiet {
                peer.deliver(0..10).await;
                settle().await;
            }
            let (report, took) = shut_down(&consumer, deadline).await.unwrap();
            assert!(took <= deadline + Duration::from_millis(1), "{took:?}");
            assert_eq!(report.unflushed, 1);
            assert_eq!(report.abandoned.len(), if stays_quiet { 0 } else { 10 });
        }
    }
}

#[tokio::test(start_paused = true)]
async fn c7_lesson_72_the_deadline_holds_with_a_peer_that_takes_nothing() {
    let mut nsqd = Nsqd::start();
    let builder = nsqd.consumer().max_in_flight(2500);
    let (consumer, mut peer) = nsqd.consume_with(builder, succeed).await;
    // 21 bytes each fill the 64 KiB of the connection.
    for round in 0..8 {
        peer.deliver(1000 * round..1000 * round + 1000).await;
        settle().await;
    }
    let begun = Instant::now();
    let report = consumer.shutdown(20 * SECOND).await;
    assert_eq!(begun.elapsed().as_secs(), 20);
    assert_eq!(report.unflushed, 1);
}

#[tokio::test(start_paused = true)]
async fn c7_lesson_74_shutting_down_twice_and_at_once_is_one_shutdown() {
    let gate = Arc::new(Semaphore::new(0));
    let (_nsqd, consumer, mut peer) = one_of_three_runs(gated(&gate)).await;
    let many: Vec<_> = (0..100).map(|_| shut_down(&consumer, 30 * SECOND)).collect();
    settle().await;
    gate.add_permits(1);
    assert_eq!(peer.close_wait().await, [fin(1), req(2, 0), req(3, 0)]);
    let mut reports = Vec::new();
    for one in many {
        reports.push(one.await.unwrap().0);
    }
    reports.push(consumer.shutdown(SECOND).await);
    let first = reports[0].clone();
    assert_eq!((first.finished, first.returned), (FIRST + 1, 2));
    assert!(reports.iter().all(|report| *report == first));
    assert_eq!(consumer.ready(SECOND).await.unwrap_err().kind(), ErrorKind::Shutdown);
    consumer.set_max_in_flight(7).await;
}

#[tokio::test(start_paused = true)]
async fn c7_a_shutdown_whose_caller_went_away_goes_on() {
    let gate = Arc::new(Semaphore::new(0));
    let (_nsqd, consumer, mut peer) = one_of_three_runs(gated(&gate)).await;
    assert!(
        timeout(Duration::from_millis(1), consumer.shutdown(30 * SECOND))
            .await
            .is_err()
    );
    drop(consumer);
    gate.add_permits(1);
    assert_eq!(peer.close_wait().await, [fin(1), req(2, 0), req(3, 0)]);
}

#[derive(Debug)]
struct NeverConnects;

impl Connector for NeverConnects {
    fn connect(&self, _: &str) -> Connecting {
        Box::pin(std::future::pending())
    }
}

#[tokio::test(start_paused = true)]
async fn c7_lesson_73_a_shutdown_ends_each_stage_of_connecting() {
    async fn at_once(consumer: Consumer) {
        let begun = Instant::now();
        let finished = consumer.stats().finished;
        let report = consumer.shutdown(30 * SECOND).await;
        assert_eq!(report.finished, finished);
        assert_eq!((report.returned, report.abandoned.len(), report.unflushed), (0, 0, 0));
        assert!(begun.elapsed() < SECOND);
    }
    // Dialling.
    let nsqd = Nsqd::start();
    let never = ConnectionConfig::new().connector(NeverConnects);
    let consumer = nsqd.consumer().connection(never).start(succeed).await.unwrap();
    settle().await;
    at_once(consumer).await;
    // Before IDENTIFY is answered, and before SUB is.
    for step in 0..2 {
        let mut nsqd = Nsqd::start();
        let consumer = nsqd.consumer().start(succeed).await.unwrap();
        let mut peer = nsqd.accept_raw().await;
        peer.read_identify().await;
        if step == 1 {
            peer.ok().await;
            peer.read_sub().await;
        }
        at_once(consumer).await;
        assert_eq!(peer.expect_close().await, 0);
    }
    // Waiting to dial again.
    let mut nsqd = Nsqd::start();
    let (consumer, peer) = nsqd.consume(10, succeed).await;
    nsqd.stop();
    drop(peer);
    tokio::time::sleep(600 * SECOND).await;
    at_once(consumer).await;
}

#[tokio::test(start_paused = true)]
async fn c7_lesson_73_a_connection_made_while_the_shutdown_begins_is_closed_properly() {
    let mut nsqd = Nsqd::start();
    let consumer = Arc::new(nsqd.consumer().start(succeed).await.unwrap());
    let mut peer = nsqd.accept_raw().await;
    peer.read_identify().await;
    peer.ok().await;
    peer.read_sub().await;
    // Both at the same instant: whatever wins, nothing hangs.
    peer.ok().await;
    let ending = shut_down(&consumer, 30 * SECOND);
    let seen = peer.close_wait().await;
    assert!(seen.is_empty() || seen == [Command::Rdy(1)], "{seen:?}");
    let (report, took) = ending.await.unwrap();
    assert!(report.is_clean() && took < SECOND);
}

#[tokio::test(start_paused = true)]
async fn c7_a_shutdown_during_backoff_does_not_wait_for_its_end() {
    for probing in [false, true] {
        let failing = |_: Message| async { Err::<(), _>("no") };
        let mut nsqd = Nsqd::start();
        let (consumer, mut peer) = nsqd.consume(10, failing).await;
        peer.deliver([1]).await;
        assert_eq!(peer.commands(2).await, [Command::Rdy(0), req(1, 90_000)]);
        if probing {
            assert_eq!(peer.command().await, Command::Rdy(1));
        }
        let ending = shut_down(&Arc::new(consumer), 30 * SECOND);
        assert_eq!(peer.close_wait().await, []);
        let (report, took) = ending.await.unwrap();
        assert!(report.is_clean() && took < SECOND);
        assert_eq!(report.requeued, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn c7_a_failure_during_the_shutdown_is_requeued_as_ever() {
    let gate = Arc::new(Semaphore::new(0));
    let failing = Arc::clone(&gate);
    let (_nsqd, consumer, mut peer) = one_of_three_runs(move |_: Message| {
        let gate = Arc::clone(&failing);
        async move {
            gate.acquire().await.unwrap().forget();
            Err::<(), _>("no")
        }
    })
    .await;
    let ending = shut_down(&consumer, 30 * SECOND);
    settle().await;
    gate.add_permits(1);
    assert_eq!(peer.close_wait().await, [req(1, 90_000), req(2, 0), req(3, 0)]);
    assert_eq!(ending.await.unwrap().0.requeued, 1);
}

#[tokio::test(start_paused = true)]
async fn c7_answers_lost_with_a_connection_during_the_shutdown_are_reported() {
    let gate = Arc::new(Semaphore::new(0));
    let (_nsqd, consumer, mut peer) = one_of_three_runs(gated(&gate)).await;
    let ending = shut_down(&consumer, 30 * SECOND);
    assert_eq!(peer.command().await, Command::Cls);
    drop(peer);
    settle().await;
    gate.add_permits(1);
    let (report, took) = ending.await.unwrap();
    assert_eq!(report.unflushed, 1);
    assert!(!report.is_clean() && took < SECOND);
}

#[tokio::test(start_paused = true)]
async fn c7_an_nsqd_that_closes_after_close_wait_loses_nothing() {
    let mut nsqd = Nsqd::start();
    let (consumer, mut peer) = nsqd.consume(10, succeed).await;
    let ending = shut_down(&Arc::new(consumer), 30 * SECOND);
    assert_eq!(peer.command().await, Command::Cls);
    drop(peer);
    let (report, took) = ending.await.unwrap();
    assert!(report.is_clean() && took < SECOND, "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn c7_a_dropped_consumer_gives_all_its_messages_back_and_closes() {
    let (_nsqd, consumer, mut peer) = one_of_three_runs(stuck).await;
    drop(consumer);
    assert_eq!(peer.close_wait().await, [req(1, 0), req(2, 0), req(3, 0)]);
}

#[tokio::test(start_paused = true)]
async fn c7_lesson_75_the_report_covers_the_whole_life() {
    let mut nsqd = Nsqd::start();
    let builder = nsqd
        .consumer()
        .max_in_flight(10)
        .max_backoff_duration(Duration::ZERO)
        .max_attempts(1);
    let handler = |message: Message| async move {
        match crate::scripted::text(&message) {
            "fail" => Err(BoxError::from("no")),
            "stuck" => std::future::pending().await,
            _ => Ok(()),
        }
    };
    let (consumer, mut peer) = nsqd.consume_with(builder, handler).await;
    use crate::scripted::delivery;
    let life = [
        delivery(1, 1, "ok"),
        delivery(2, 1, "ok"),
        delivery(3, 1, "fail"),
        delivery(4, 2, "too late"),
        delivery(5, 1, "stuck"),
    ];
    peer.send_bytes(&crate::support::frames(&life)).await;
    settle().await;
    let ending = shut_down(&Arc::new(consumer), 10 * SECOND);
    let seen = peer.close_wait().await;
    assert_eq!(seen, [fin(1), fin(2), fin(4), req(3, 90_000), req(5, 0)]);
    let (report, _) = ending.await.unwrap();
    assert_eq!((report.finished, report.requeued, report.given_up), (FIRST + 3, 1, 1));
    assert_eq!((report.returned, report.abandoned.len(), report.unflushed), (0, 1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c7_lesson_74_the_deadline_holds_with_a_handler_that_blocks_its_thread() {
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let gate = Arc::new(std::sync::Mutex::new(gate));
    let (began, running) = tokio::sync::oneshot::channel();
    let began = std::sync::Mutex::new(Some(began));
    let mut nsqd = Nsqd::start();
    let builder = nsqd.consumer().concurrency(1);
    let (consumer, mut peer) = nsqd
        .consume_with(builder, move |_: Message| {
            if let Some(began) = began.lock().unwrap().take() {
                let _ = began.send(());
            }
            let gate = Arc::clone(&gate);
            async move {
                let _gate_is_open = gate.lock().unwrap().recv();
                Ok::<(), BoxError>(())
            }
        })
        .await;
    peer.deliver([1, 2]).await;
    running.await.unwrap();
    let ending = shut_down(&Arc::new(consumer), Duration::from_millis(200));
    assert_eq!(peer.command().await, Command::Cls);
    assert_eq!(peer.command().await, req(2, 0));
    let (report, _) = ending.await.unwrap();
    assert_eq!((report.abandoned.len(), report.returned, report.unflushed), (1, 1, 1));
    assert_eq!(peer.expect_close().await, 0);
    drop(open);
}

#[tokio::test(start_paused = true)]
async fn c7_a_message_that_follows_close_wait_is_given_back() {
    let mut nsqd = Nsqd::start();
    let (consumer, mut peer) = nsqd.consume(10, succeed).await;
    let ending = shut_down(&Arc::new(consumer), 30 * SECOND);
    assert_eq!(peer.command().await, Command::Cls);
    peer.respond(b"CLOSE_WAIT").await;
    settle().await;
    // nsqd had chosen it before it heard of CLS.
    peer.deliver([1]).await;
    assert_eq!(peer.command().await, req(1, 0));
    assert_eq!(peer.expect_close().await, 0);
    let (report, _) = ending.await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.returned, 1);
}
