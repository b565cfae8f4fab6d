//! C8 and lesson 31: what is given up goes to a topic of its own, and is finished only after that.

use std::sync::{Arc, Mutex};

use async_nsq::{BoxError, Consumer, ConsumerBuilder, ErrorKind, HandlerError, Message, Producer};
use bytes::Bytes;

use crate::scripted::{Nsqd, SECOND, delivery, fin, id, req, stuck, succeed};
use crate::support::{Command, Peer, frames, settle};

const DEAD: &str = "orders.dead";

/// A producer for dead letters, with what its nsqd sees.
async fn morgue(nsqd: &Nsqd) -> (Nsqd, Producer, Peer) {
    let network = nsqd.network();
    let mut morgue = Nsqd::start_at(network, "morgue:4150");
    let builder = Producer::builder()
        .nsqd("morgue:4150")
        .batching(false)
        .connection(morgue.connection());
    let (producer, peer) = tokio::join!(builder.connect(), async {
        let mut peer = morgue.accept_raw().await;
        peer.handshake().await;
        peer
    });
    (morgue, producer.unwrap(), peer)
}

/// A consumer that gives up what is delivered a second time.
async fn consume(nsqd: &mut Nsqd, builder: ConsumerBuilder) -> (Consumer, Peer) {
    let builder = builder.max_in_flight(10).max_attempts(1);
    let consumer = builder.start(succeed).await.unwrap();
    let mut peer = nsqd.accept_unproven().await;
    assert!(matches!(peer.command().await, Command::Rdy(_)));
    (consumer, peer)
}

/// What goes to the topic for dead letters.
fn letter(body: impl Into<Bytes>) -> Command {
    Command::publish(DEAD, body)
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

async fn expect_no_answer(peer: &mut Peer) {
    let unwanted = tokio::time::timeout(20 * SECOND, answer(peer)).await;
    assert!(unwanted.is_err(), "{unwanted:?}");
}

#[tokio::test(start_paused = true)]
async fn lesson_31_a_message_that_is_given_up_is_finished_only_after_its_dead_letter_is_confirmed() {
    let mut nsqd = Nsqd::start();
    let (_morgue, producer, mut dead) = morgue(&nsqd).await;
    let builder = nsqd.consumer().dead_letter(producer, DEAD);
    let (consumer, mut peer) = consume(&mut nsqd, builder).await;
    peer.send_bytes(&frames(&[delivery(1, 2, &b"\0body\xff"[..])])).await;
    assert_eq!(dead.command().await, letter(&b"\0body\xff"[..]));
    expect_no_answer(&mut peer).await;
    assert_eq!((consumer.stats().given_up, consumer.stats().in_flight), (0, 1));
    dead.ok().await;
    assert_eq!(answer(&mut peer).await, fin(1));
    let stats = consumer.stats();
    assert_eq!((stats.given_up, stats.finished, stats.requeued), (1, 1, 0));
    // What is handled is published nowhere.
    peer.deliver([2]).await;
    assert_eq!(answer(&mut peer).await, fin(2));
    assert_eq!(dead.drain().await, []);
}

#[tokio::test(start_paused = true)]
async fn c8_each_way_to_give_up_leads_to_the_dead_letter_topic() {
    let mut nsqd = Nsqd::start();
    let (_morgue, producer, mut dead) = morgue(&nsqd).await;
    let builder = nsqd.consumer().max_in_flight(10).dead_letter(producer, DEAD);
    let results = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&results);
    let consumer = builder
        .start(move |message: Message| {
            let seen = Arc::clone(&seen);
            async move {
                if crate::scripted::text(&message) == "by hand" {
                    let given_up = message.give_up().await.is_ok();
                    seen.lock().unwrap().push(given_up);
                    return Ok(());
                }
                Err::<(), BoxError>(HandlerError::give_up().into())
            }
        })
        .await
        .unwrap();
    let mut peer = nsqd.accept_unproven().await;
    for (number, attempts, body) in [(1, 1, "by error"), (2, 1, "by hand"), (3, 6, "by attempts")] {
        peer.send_bytes(&frames(&[delivery(number, attempts, body)])).await;
        assert_eq!(dead.command().await, letter(body));
        settle().await;
        assert_eq!(results.lock().unwrap().len(), usize::from(number > 2));
        dead.ok().await;
        assert_eq!(answer(&mut peer).await, fin(number));
        settle().await;
    }
    assert_eq!(*results.lock().unwrap(), [true]);
    assert_eq!(consumer.stats().given_up, 3);
}

#[tokio::test(start_paused = true)]
async fn c8_a_dead_letter_that_is_not_confirmed_requeues_its_message_as_a_failure() {
    for outcome in ["rejected", "unknown", "not sent"] {
        let mut nsqd = Nsqd::start();
        let (_morgue, producer, mut dead) = morgue(&nsqd).await;
        if outcome == "not sent" {
            let (_report, seen) = tokio::join!(producer.shutdown(SECOND), dead.serve());
            assert_eq!(seen, []);
        }
        let builder = nsqd.consumer().dead_letter(producer, DEAD);
        let (consumer, mut peer) = consume(&mut nsqd, builder).await;
        peer.send_bytes(&frames(&[delivery(1, 2, "body")])).await;
        if outcome != "not sent" {
            assert_eq!(dead.command().await, letter("body"));
        }
        match outcome {
            "rejected" => dead.error("E_PUB_FAILED PUB failed disk full").await,
            "unknown" => drop(dead),
            _ => {}
        }
        while peer.command().await != Command::Rdy(0) {}
        assert_eq!(peer.command().await, req(1, 180_000), "{outcome}");
        let stats = consumer.stats();
        assert_eq!(
            (stats.given_up, stats.requeued, stats.in_flight),
            (0, 1, 0),
            "{outcome}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn c8_the_hook_comes_first_and_one_that_panics_keeps_the_message_from_being_published() {
    for panics in [false, true] {
        let mut nsqd = Nsqd::start();
        let (_morgue, producer, mut dead) = morgue(&nsqd).await;
        let hooked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&hooked);
        let builder = nsqd
            .consumer()
            .dead_letter(producer, DEAD)
            .on_give_up(move |message: Message| {
                let seen = Arc::clone(&seen);
                async move {
                    tokio::time::sleep(SECOND).await;
                    assert!(!panics, "the hook panics");
                    seen.lock().unwrap().push(message.id());
                }
            });
        let (_consumer, mut peer) = consume(&mut nsqd, builder).await;
        peer.send_bytes(&frames(&[delivery(1, 2, "body")])).await;
        if panics {
            assert_eq!(answer(&mut peer).await, req(1, 180_000));
            assert_eq!(dead.drain().await, []);
            continue;
        }
        assert_eq!(dead.command().await, letter("body"));
        assert_eq!(*hooked.lock().unwrap(), [id(1)]);
        dead.ok().await;
        assert_eq!(answer(&mut peer).await, fin(1));
    }
}

#[tokio::test(start_paused = true)]
async fn c8_keep_alive_touches_a_message_while_its_dead_letter_is_published_and_handler_timeout_is_not_for_that() {
    let mut nsqd = Nsqd::start();
    let (_morgue, producer, mut dead) = morgue(&nsqd).await;
    let builder = nsqd
        .consumer()
        .max_in_flight(10)
        .max_attempts(1)
        .keep_alive(true)
        .handler_timeout(SECOND)
        .dead_letter(producer, DEAD);
    let consumer = builder.start(stuck).await.unwrap();
    let granted = br#"{"max_rdy_count":2500,"version":"1.3.0","msg_timeout":10000,"max_msg_timeout":22000}"#;
    let mut peer = nsqd.accept_granting(granted).await;
    peer.send_bytes(&frames(&[delivery(1, 2, "late"), delivery(2, 2, "never")]))
        .await;
    assert_eq!(dead.commands(2).await, [letter("late"), letter("never")]);
    for _ in 0..2 {
        assert!(matches!(answer(&mut peer).await, Command::Touch(_)));
    }
    dead.ok().await;
    // Which of the two was published first is not said.
    let Command::Fin(finished) = answer(&mut peer).await else {
        panic!("FIN is due")
    };
    // The other is lost at 22 s: nsqd delivers it again, and it is given up again.
    for _ in 0..2 {
        assert!(matches!(answer(&mut peer).await, Command::Touch(touched) if touched != finished));
    }
    expect_no_answer(&mut peer).await;
    let stats = consumer.stats();
    assert_eq!((stats.timed_out, stats.given_up, stats.in_flight), (1, 1, 0));
    assert_eq!(stats.handler_timeouts, 0);
}

#[tokio::test(start_paused = true)]
async fn c7_a_shutdown_waits_for_a_dead_letter_within_its_deadline() {
    for confirmed in [true, false] {
        let mut nsqd = Nsqd::start();
        let (_morgue, producer, mut dead) = morgue(&nsqd).await;
        let builder = nsqd.consumer().dead_letter(producer, DEAD);
        let (consumer, mut peer) = consume(&mut nsqd, builder).await;
        peer.send_bytes(&frames(&[delivery(1, 2, "body")])).await;
        assert_eq!(dead.command().await, letter("body"));
        let (report, seen, _) = tokio::join!(consumer.shutdown(20 * SECOND), peer.close_wait(), async {
            tokio::time::sleep(10 * SECOND).await;
            if confirmed {
                dead.ok().await;
            }
        });
        let answers: Vec<_> = seen
            .into_iter()
            .filter(|command| !matches!(command, Command::Rdy(_)))
            .collect();
        if confirmed {
            assert_eq!(answers, [fin(1)]);
            assert!(report.is_clean() && report.given_up == 1, "{report:?}");
        } else {
            assert_eq!(answers, [req(1, 0)]);
            assert_eq!(report.abandoned.len(), 1, "{report:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_topic_with_a_bad_name_is_told_at_the_start() {
    let nsqd = Nsqd::start();
    let (_morgue, producer, _dead) = morgue(&nsqd).await;
    let builder = nsqd.consumer().dead_letter(producer, "no spaces allowed");
    let error = builder.start(succeed).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("no spaces allowed"), "{error}");
}
