//! C5, C6 and C8: how each message is answered, and what its accessors tell.

use std::panic::{panic_any, resume_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_nsq::{BoxError, Consumer, ErrorKind, HandlerError, Message};
use tokio::sync::oneshot;

use crate::scripted::{FIRST, Nsqd, SECOND, delivery, fin, id, req, succeed, text};
use crate::support::{Command, Peer, frames};

/// A connected consumer with backoff off.
async fn calm<H: async_nsq::Handler>(handler: H) -> (Nsqd, Consumer, Peer) {
    let mut nsqd = Nsqd::start();
    let builder = nsqd.consumer().max_in_flight(10).max_backoff_duration(Duration::ZERO);
    let (consumer, peer) = nsqd.consume_with(builder, handler).await;
    (nsqd, consumer, peer)
}

/// Panics when it is dropped, but not while another panic is under way.
struct PanicsInDrop;

impl Drop for PanicsInDrop {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            resume_unwind(Box::new("a destructor panics"));
        }
    }
}

#[derive(Debug)]
struct PanickingError;

impl From<PanickingError> for BoxError {
    fn from(_: PanickingError) -> Self {
        resume_unwind(Box::new("a conversion panics"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_tells_what_nsqd_sent() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&seen);
    let (_nsqd, _consumer, mut peer) = calm(move |message: Message| {
        keep.lock().unwrap().push(message);
        async { Ok::<(), BoxError>(()) }
    })
    .await;
    peer.send_bytes(&frames(&[delivery(7, 3, &b"\0body\xff"[..]), delivery(8, 1, "")]))
        .await;
    assert_eq!(peer.commands(2).await, [fin(7), fin(8)]);
    let mut seen = std::mem::take(&mut *seen.lock().unwrap());
    let empty = seen.pop().unwrap();
    assert!(empty.body().is_empty());
    let message = seen.pop().unwrap();
    assert_eq!(&message.body()[..], b"\0body\xff");
    assert_eq!((message.id(), message.attempts()), (id(7), 3));
    assert_eq!(message.nsqd(), "nsqd:4150");
    let sent = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    assert_eq!(message.timestamp(), sent);
    assert!(!format!("{message:?}").contains("body\\"), "a body may be a secret");
    assert_eq!(&message.into_body()[..], b"\0body\xff");
}

#[tokio::test(start_paused = true)]
async fn c5_success_is_one_fin() {
    let (_nsqd, consumer, mut peer) = calm(succeed).await;
    peer.deliver([1]).await;
    assert_eq!(peer.command().await, fin(1));
    peer.expect_nothing(50 * SECOND).await;
    let stats = consumer.stats();
    assert_eq!(
        (stats.received, stats.finished, stats.in_flight),
        (FIRST + 1, FIRST + 1, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn c5_an_error_is_one_req_after_90_s_times_the_attempts_up_to_15_min() {
    let mut nsqd = Nsqd::start();
    let builder = nsqd
        .consumer()
        .max_in_flight(10)
        .max_backoff_duration(Duration::ZERO)
        .max_attempts(0);
    let failing = |_: Message| async { Err::<(), _>("no") };
    let (consumer, mut peer) = nsqd.consume_with(builder, failing).await;
    for (attempts, seconds) in [
        (1, 90),
        (2, 180),
        (5, 450),
        (10, 900),
        (11, 900),
        (u16::MAX, 900),
        (0, 0),
    ] {
        peer.send_bytes(&frames(&[delivery(7, attempts, "")])).await;
        assert_eq!(peer.command().await, req(7, 1000 * seconds), "attempt {attempts}");
    }
    peer.expect_nothing(50 * SECOND).await;
    assert_eq!((consumer.stats().requeued, consumer.stats().in_flight), (7, 0));
}

#[tokio::test(start_paused = true)]
async fn c5_an_error_can_say_what_shall_become_of_the_message() {
    let (_nsqd, consumer, mut peer) = calm(|message: Message| async move {
        Err::<(), BoxError>(match text(&message) {
            "0" => HandlerError::requeue_after(Duration::from_millis(1234)).into(),
            "1" => HandlerError::requeue_after(Duration::ZERO).without_backoff().into(),
            "2" => HandlerError::requeue().because("of that").into(),
            "3" => HandlerError::requeue_after(Duration::MAX).into(),
            _ => HandlerError::give_up().because("it is hopeless").into(),
        })
    })
    .await;
    peer.deliver(0..5).await;
    // nsqd counts in nanoseconds and takes what overflows for zero.
    let longest = i64::MAX as u64 / 1_000_000;
    let expected = [fin(4), req(0, 1234), req(1, 0), req(2, 90_000), req(3, longest)];
    assert_eq!(peer.commands(5).await, expected);
    let stats = consumer.stats();
    assert_eq!((stats.finished, stats.given_up, stats.requeued), (FIRST + 1, 1, 4));
}

#[tokio::test(start_paused = true)]
async fn c5_a_panic_of_any_kind_is_a_req_and_the_consumer_goes_on() {
    let mut nsqd = Nsqd::start();
    let builder = nsqd
        .consumer()
        .max_in_flight(10)
        .concurrency(2)
        .max_backoff_duration(Duration::ZERO);
    let (consumer, mut peer) = nsqd
        .consume_with(builder, |message: Message| {
            assert!(text(&message) != "0", "in the call");
            async move {
                match text(&message) {
                    "1" => panic!("in the future"),
                    "2" => {
                        tokio::task::yield_now().await;
                        panic!("{} later", "a little")
                    }
                    "3" => panic_any(42),
                    "4" => panic_any(PanicsInDrop),
                    "5" => {
                        let _dropped_at_the_end = PanicsInDrop;
                        Ok(())
                    }
                    "6" => Err(PanickingError),
                    _ => Ok(()),
                }
            }
        })
        .await;
    for round in 0..3 {
        for number in 0..7 {
            peer.deliver([number]).await;
            assert_eq!(peer.command().await, req(number, 90_000), "round {round}");
        }
        peer.deliver(0..8).await;
        let mut expected: Vec<_> = (0..7).map(|number| req(number, 90_000)).collect();
        expected.insert(0, fin(7));
        assert_eq!(peer.commands(8).await, expected);
    }
    let stats = consumer.stats();
    assert_eq!((stats.requeued, stats.finished, stats.in_flight), (42, FIRST + 3, 0));
    assert!(consumer.shutdown(Duration::ZERO).await.abandoned.is_empty());
}

/// A future that panics when it is dropped, after it has ended.
struct Bomb;

impl Future for Bomb {
    type Output = Result<(), BoxError>;

    fn poll(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        std::task::Poll::Ready(Ok(()))
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        drop(PanicsInDrop);
    }
}

#[tokio::test(start_paused = true)]
async fn c5_a_future_that_panics_when_dropped_costs_no_worker() {
    let mut nsqd = Nsqd::start();
    let builder = nsqd.consumer().concurrency(1).max_backoff_duration(Duration::ZERO);
    let (_consumer, mut peer) = nsqd.consume_with(builder, |_: Message| Bomb).await;
    for number in 0..5 {
        peer.deliver([number]).await;
        assert_eq!(peer.command().await, req(number, 90_000));
    }
}

#[tokio::test(start_paused = true)]
async fn c6_lesson_28_answers_that_nsqd_refuses_keep_the_connection() {
    let (_nsqd, consumer, mut peer) = calm(succeed).await;
    for code in ["E_FIN_FAILED", "E_REQ_FAILED", "E_TOUCH_FAILED"] {
        peer.error(&format!("{code} FIN 0d1a2b3c4d5e6f70 failed ID not in flight"))
            .await;
        peer.deliver([1]).await;
        assert_eq!(peer.command().await, fin(1));
    }
    assert_eq!(consumer.stats().connections, 1);
}

#[tokio::test(start_paused = true)]
async fn c6_lesson_28_every_other_error_replaces_the_connection() {
    let (mut nsqd, _consumer, mut peer) = calm(succeed).await;
    for error in [
        "E_INVALID cannot RDY in current state",
        "E_BAD_TOPIC",
        "E_FIN_FAILEDX",
        "E_NEW_IN_2030 what",
        "",
    ] {
        peer.error(error).await;
        assert_eq!(peer.expect_close().await, 0);
        peer = nsqd.accept().await;
        assert_eq!(peer.command().await, Command::Rdy(10));
    }
}

#[tokio::test(start_paused = true)]
async fn c8_beyond_max_attempts_the_hook_gets_the_message_instead_of_the_handler() {
    let handled = Arc::new(Mutex::new(Vec::new()));
    let given_up = Arc::new(Mutex::new(Vec::new()));
    let (of_handler, of_hook) = (Arc::clone(&handled), Arc::clone(&given_up));
    let mut nsqd = Nsqd::start();
    let builder = nsqd.consumer().max_attempts(3).on_give_up(move |message: Message| {
        let given_up = Arc::clone(&of_hook);
        async move {
            // The message is finished only after this.
            tokio::time::sleep(SECOND).await;
            given_up
                .lock()
                .unwrap()
                .push((text(&message).to_owned(), message.attempts()));
        }
    });
    let (consumer, mut peer) = nsqd
        .consume_with(builder, move |message: Message| {
            of_handler.lock().unwrap().push(message.attempts());
            async move {
                match text(&message) {
                    "hopeless" => Err(BoxError::from(HandlerError::give_up())),
                    _ => Ok(()),
                }
            }
        })
        .await;
    peer.send_bytes(&frames(&[
        delivery(1, 3, "last try"),
        delivery(2, 4, "too late"),
        delivery(3, 1, "hopeless"),
    ]))
    .await;
    assert_eq!(peer.command().await, fin(1));
    assert_eq!(given_up.lock().unwrap().len(), 0);
    assert_eq!(peer.commands(2).await, [fin(2), fin(3)]);
    assert_eq!(*handled.lock().unwrap(), [3, 1]);
    let mut given_up = given_up.lock().unwrap().clone();
    given_up.sort();
    assert_eq!(given_up, [("hopeless".to_owned(), 1), ("too late".to_owned(), 4)]);
    let stats = consumer.stats();
    assert_eq!((stats.finished, stats.given_up, stats.requeued), (FIRST + 3, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn c8_a_hook_that_panics_has_not_dealt_with_the_message() {
    for in_the_call in [true, false] {
        let mut nsqd = Nsqd::start();
        let builder = nsqd.consumer().max_attempts(1).on_give_up(move |_: Message| {
            assert!(!in_the_call, "in the call");
            async { panic!("in the future") }
        });
        let (consumer, mut peer) = nsqd.consume_with(builder, succeed).await;
        peer.send_bytes(&frames(&[delivery(1, 2, "")])).await;
        assert_eq!(peer.command().await, Command::Rdy(0));
        assert_eq!(peer.command().await, req(1, 180_000));
        assert_eq!((consumer.stats().given_up, consumer.stats().requeued), (0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn c8_without_a_hook_the_message_is_finished_and_0_is_no_limit() {
    for (limit, answer) in [(5, fin(1)), (0, req(1, 7))] {
        let mut nsqd = Nsqd::start();
        let builder = nsqd.consumer().max_attempts(limit).max_backoff_duration(Duration::ZERO);
        let failing =
            |_: Message| async { Err::<(), BoxError>(HandlerError::requeue_after(Duration::from_millis(7)).into()) };
        let (_consumer, mut peer) = nsqd.consume_with(builder, failing).await;
        peer.send_bytes(&frames(&[delivery(1, u16::MAX, "")])).await;
        assert_eq!(peer.command().await, answer);
    }
}

#[tokio::test(start_paused = true)]
async fn a_touch_goes_out_at_once_and_fails_once_the_connection_is_lost() {
    let (tell, told) = oneshot::channel();
    let tell = Mutex::new(Some(tell));
    let (mut nsqd, _consumer, mut peer) = calm(move |message: Message| {
        let tell = tell.lock().unwrap().take();
        async move {
            message.touch()?;
            tokio::time::sleep(SECOND).await;
            message.touch()?;
            if let Some(tell) = tell {
                let _ = tell.send(message);
            }
            stuck_forever().await
        }
    })
    .await;
    peer.deliver([1]).await;
    for _ in 0..2 {
        assert_eq!(peer.command().await, Command::Touch(id(1).to_string()));
    }
    let message = told.await.unwrap();
    drop(peer);
    let mut peer = nsqd.accept().await;
    let error = message.touch().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionLost);
    assert_eq!(error.address(), Some("nsqd:4150"));
    assert_eq!(peer.command().await, Command::Rdy(10));
    peer.expect_nothing(SECOND).await;
}

async fn stuck_forever() -> Result<(), BoxError> {
    std::future::pending().await
}

#[tokio::test(start_paused = true)]
async fn n4_touches_without_end_are_refused_and_answers_still_leave() {
    let (_nsqd, _consumer, mut peer) = calm(|message: Message| async move {
        let mut sent = 0_u32;
        let refused = loop {
            match message.touch() {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(refused.kind(), ErrorKind::NotSent);
        Err::<(), BoxError>(HandlerError::requeue_after(Duration::from_millis(sent.into())).into())
    })
    .await;
    peer.deliver([1]).await;
    let mut touches = 0;
    loop {
        match peer.command().await {
            Command::Touch(_) => touches += 1,
            answer => break assert_eq!(answer, req(1, touches)),
        }
    }
    assert!(touches > 1_000 && touches < 10_000);
}
