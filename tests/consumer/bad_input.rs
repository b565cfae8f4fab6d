//! Whatever an nsqd sends and whenever: never a panic, never a stuck consumer, and the cause can be seen.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nsq::backoff::Off;
use async_nsq::protocol::{self, ErrorCode, Frame, MessageId};
use async_nsq::{BoxError, Consumer, ConsumerReport, Message};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::scripted::{FIRST, Nsqd, SECOND, chain, delivery, fin, message, req, succeed, text};
use crate::support::{Command, IDENTIFY_ANSWER, Peer, frames, settle};

/// Every code that nsqd has, as it words them, and what it has not.
const ERRORS: [&str; 25] = [
    "E_INVALID invalid command \"RDX\"",
    "E_BAD_PROTOCOL",
    "E_BAD_BODY MPUB failed to read body size",
    "E_BAD_TOPIC SUB topic name \"a b\" is not valid",
    "E_BAD_CHANNEL SUB channel name \"a b\" is not valid",
    "E_BAD_MESSAGE PUB invalid message body size 0",
    "E_PUB_FAILED PUB failed exiting",
    "E_MPUB_FAILED MPUB failed exiting",
    "E_DPUB_FAILED DPUB failed exiting",
    "E_SUB_FAILED SUB failed too many channel consumers",
    "E_FIN_FAILED FIN 0000000000000001 failed ID not in flight",
    "E_REQ_FAILED REQ 0000000000000001 failed ID not in flight",
    "E_TOUCH_FAILED TOUCH 0000000000000001 failed ID not in flight",
    "E_FIN_FAILED",
    "E_REQ_FAILED REQ \u{fffd} failed",
    "E_AUTH_FIRST AUTH required before SUB",
    "E_AUTH_FAILED AUTH failed",
    "E_AUTH_DISABLED AUTH disabled",
    "E_AUTH_ERROR AUTH error",
    "E_UNAUTHORIZED AUTH failed for SUB",
    "E_IDENTIFY_FAILED IDENTIFY failed snappy",
    "E_OF_TOMORROW something new",
    "no code at all",
    "e_fin_failed in small letters",
    "",
];

#[test]
fn every_code_is_in_the_table() {
    let known = ERRORS.map(ErrorCode::of);
    let names: std::collections::BTreeSet<_> = known.iter().map(|code| code.name()).collect();
    // The nineteen and "E_?". A code that is added belongs into the table.
    assert_eq!(names.len(), 20);
}

/// When an error frame comes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    InsteadOfIdentified,
    InsteadOfSubscribed,
    BeforeTheFirstRdy,
    Idle,
    InFlight,
    InBackoff,
    Probing,
}

const MOMENTS: [Moment; 7] = [
    Moment::InsteadOfIdentified,
    Moment::InsteadOfSubscribed,
    Moment::BeforeTheFirstRdy,
    Moment::Idle,
    Moment::InFlight,
    Moment::InBackoff,
    Moment::Probing,
];

impl Moment {
    fn is_handshake(self) -> bool {
        matches!(self, Self::InsteadOfIdentified | Self::InsteadOfSubscribed)
    }
}

/// Fails on "fail", takes its time on "slow".
async fn obey(message: Message) -> Result<(), BoxError> {
    match text(&message) {
        "fail" => Err("as told".into()),
        "slow" => {
            tokio::time::sleep(SECOND).await;
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Brings a consumer to this moment and has it refused there.
async fn refused_at(nsqd: &mut Nsqd, moment: Moment, refusal: &str) -> Peer {
    let mut peer = nsqd.accept_raw().await;
    peer.read_identify().await;
    if moment == Moment::InsteadOfIdentified {
        peer.error(refusal).await;
        return peer;
    }
    peer.respond(IDENTIFY_ANSWER).await;
    peer.read_sub().await;
    let refusal = Frame::Error(refusal.to_owned().into());
    match moment {
        Moment::InsteadOfIdentified | Moment::InsteadOfSubscribed => {}
        // In one piece.
        Moment::BeforeTheFirstRdy => {
            let ok = Frame::Response(protocol::OK.into());
            peer.send_bytes(&frames(&[ok, refusal])).await;
            return peer;
        }
        _ => {
            peer.ok().await;
            assert!(matches!(peer.command().await, Command::Rdy(_)));
        }
    }
    match moment {
        Moment::InFlight => {
            peer.send_bytes(&frames(&[delivery(1, 1, "slow")])).await;
            settle().await;
        }
        Moment::InBackoff | Moment::Probing => {
            peer.send_bytes(&frames(&[delivery(1, 1, "fail")])).await;
            until(&mut peer, req(1, 90_000)).await;
            if moment == Moment::Probing {
                until(&mut peer, Command::Rdy(1)).await;
            }
        }
        _ => {}
    }
    peer.send(&refusal).await;
    peer
}

/// Reads up to this command. RDY may change before it.
async fn until(peer: &mut Peer, wanted: Command) {
    loop {
        match peer.command().await {
            command if command == wanted => return,
            Command::Rdy(_) | Command::Fin(_) => {}
            other => panic!("{other:?} instead of {wanted:?}"),
        }
    }
}

/// That the consumer works: a message comes and is finished, and nothing is left over.
async fn works(consumer: &Consumer, peer: &mut Peer) {
    peer.deliver([77]).await;
    until(peer, fin(77)).await;
    tokio::time::sleep(10 * SECOND).await;
    let stats = consumer.stats();
    assert_eq!((stats.connections, stats.in_flight), (1, 0), "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn c6_an_error_at_any_moment_ends_the_connection_if_it_is_fatal_and_the_consumer_never() {
    for moment in MOMENTS {
        for refusal in ERRORS {
            let mut nsqd = Nsqd::start();
            let consumer = nsqd.consumer().max_in_flight(10).start(obey).await.unwrap();
            let mut peer = refused_at(&mut nsqd, moment, refusal).await;
            let fatal = ErrorCode::of(refusal).is_fatal() || moment.is_handshake();
            if fatal {
                while peer.next().await.is_some() {}
                settle().await;
                assert_eq!(consumer.stats().connections, 0, "{moment:?}: {refusal:?}");
                // Until the next connection `ready` tells why there is none.
                let error = consumer.ready(Duration::from_millis(1)).await.unwrap_err();
                assert!(chain(&error).contains(refusal), "{moment:?}: {}", chain(&error));
                peer = nsqd.accept().await;
            }
            works(&consumer, &mut peer).await;
            assert_eq!(consumer.stats().refused, u64::from(!fatal), "{moment:?}: {refusal:?}");
            // In its time, and without another connection.
            let again = timeout(SECOND, nsqd.accept_raw()).await;
            assert!(again.is_err(), "{moment:?}: {refusal:?} has cost a connection");
        }
    }
}

fn shut_down(consumer: Consumer) -> JoinHandle<(Consumer, ConsumerReport)> {
    tokio::spawn(async move {
        let report = consumer.shutdown(30 * SECOND).await;
        (consumer, report)
    })
}

#[tokio::test(start_paused = true)]
async fn c7_an_error_after_cls_or_instead_of_close_wait_does_not_keep_the_consumer_from_its_end() {
    for answers_cls in [true, false] {
        for refusal in ERRORS {
            let mut nsqd = Nsqd::start();
            let (consumer, mut peer) = nsqd.consume(10, obey).await;
            peer.send_bytes(&frames(&[delivery(1, 1, "slow")])).await;
            settle().await;
            let begun = Instant::now();
            let ending = shut_down(consumer);
            assert_eq!(peer.command().await, Command::Cls);
            peer.error(refusal).await;
            if answers_cls {
                peer.respond(protocol::CLOSE_WAIT).await;
            }
            while peer.next().await.is_some() {}
            let (consumer, report) = ending.await.unwrap();
            assert!(begun.elapsed() <= 31 * SECOND, "{refusal:?}: {:?}", begun.elapsed());
            // Only a peer that answers is a clean end: what else it may have sent is not known.
            let clean = answers_cls && !ErrorCode::of(refusal).is_fatal();
            assert_eq!(report.is_clean(), clean, "{refusal:?}: {report:?}");
            assert_eq!(consumer.stats().connections, 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn c7_messages_for_a_consumer_that_has_ended_are_not_handled() {
    let mut nsqd = Nsqd::start();
    let (consumer, mut peer) = nsqd.consume(10, succeed).await;
    let consumer = Arc::new(consumer);
    let ending = Arc::clone(&consumer);
    let ending = tokio::spawn(async move { ending.shutdown(30 * SECOND).await });
    assert_eq!(peer.command().await, Command::Cls);
    // What crossed CLS, what came before its answer, and what nsqd should not have sent after it.
    peer.deliver([1, 2]).await;
    peer.respond(protocol::CLOSE_WAIT).await;
    peer.deliver([3]).await;
    assert_eq!(peer.commands(3).await, [req(1, 0), req(2, 0), req(3, 0)]);
    assert_eq!(peer.expect_close().await, 0);
    let report = ending.await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.finished, report.returned), (FIRST, 3));
    peer.deliver([4, 5]).await;
    peer.heartbeat().await;
    settle().await;
    assert_eq!(consumer.stats().received, FIRST + 3);
    assert!(
        timeout(600 * SECOND, nsqd.accept_raw()).await.is_err(),
        "an ended consumer connects no more"
    );
}

/// Frames that keep to the format and that no nsqd sends.
fn strange_frames() -> Vec<(String, Vec<u8>)> {
    let mut strange = Vec::new();
    for size in 0..=16_u32 {
        for kind in [0_u32, 1, 2, 3, 4, 255, u32::MAX] {
            let payload = [&kind.to_be_bytes()[..], &[b'x'; 12]].concat();
            let bytes = [&size.to_be_bytes(), &payload[..size as usize]].concat();
            strange.push((format!("type {kind}, size {size}"), bytes));
        }
    }
    for response in ["OK", "CLOSE_WAIT", "", "{}", "_heartbeat", "_heartbeat_ ", "\0"] {
        let frame = Frame::Response(response.into());
        strange.push((format!("the response {response:?}"), frames(&[frame]).to_vec()));
    }
    strange
}

#[tokio::test(start_paused = true)]
async fn n4_a_frame_that_makes_no_sense_costs_at_most_its_connection() {
    for (name, bytes) in strange_frames() {
        let mut nsqd = Nsqd::start();
        let (consumer, mut peer) = nsqd.consume(10, succeed).await;
        // Between good ones.
        peer.send_bytes(&[&frames(&[message(1)])[..], &bytes, &frames(&[message(2)])].concat())
            .await;
        while let Ok(Some(_)) = timeout(SECOND, peer.next()).await {}
        if consumer.stats().received < FIRST + 2 {
            let replaced = timeout(SECOND, nsqd.accept()).await;
            peer = replaced.unwrap_or_else(|_| panic!("{name}: it neither goes on nor connects again"));
        }
        works(&consumer, &mut peer).await;
    }
}

/// Whatever may stand where an answer of the handshake should, as bytes.
fn instead_of_answers() -> Vec<(String, Vec<u8>)> {
    let mut instead = strange_frames();
    instead.push(("a message".into(), frames(&[message(1)]).to_vec()));
    instead.push((
        "a heartbeat and no more".into(),
        frames(&[Frame::Response(protocol::HEARTBEAT.into())]).to_vec(),
    ));
    for json in [
        "{",
        "[]",
        "7",
        "null",
        r#"{"max_rdy_count":-1}"#,
        r#"{"max_rdy_count":0}"#,
        r#"{"max_rdy_count":18446744073709551616}"#,
        r#"{"max_rdy_count":"many"}"#,
        r#"{"msg_timeout":-1,"max_msg_timeout":-1,"version":7}"#,
        r#"{"tls_v1":true}"#,
        r#"{"snappy":true,"deflate":true,"deflate_level":-4}"#,
        r#"{"auth_required":true}"#,
        r#"{"output_buffer_size":9223372036854775807,"output_buffer_timeout":-9223372036854775808}"#,
    ] {
        let frame = Frame::Response(json.into());
        instead.push((format!("the answer {json}"), frames(&[frame]).to_vec()));
    }
    instead
}

#[tokio::test(start_paused = true)]
async fn n4_anything_instead_of_an_answer_of_the_handshake_costs_at_most_its_connection() {
    for moment in [Moment::InsteadOfIdentified, Moment::InsteadOfSubscribed] {
        for (name, bytes) in instead_of_answers() {
            let mut nsqd = Nsqd::start();
            let consumer = nsqd.consumer().max_in_flight(10).start(succeed).await.unwrap();
            let mut peer = nsqd.accept_raw().await;
            peer.read_identify().await;
            if moment == Moment::InsteadOfSubscribed {
                peer.respond(IDENTIFY_ANSWER).await;
                peer.read_sub().await;
            }
            peer.send_bytes(&bytes).await;
            // Some of it will do for an answer. Such a connection is cut off here.
            let _goes_on = timeout(10 * SECOND, peer.next()).await;
            drop(peer);
            settle().await;
            let told = consumer.ready(Duration::from_millis(1)).await;
            assert!(told.is_err(), "{moment:?}, {name}: there is no connection");
            let again = timeout(10 * SECOND, nsqd.accept()).await;
            let mut peer = again.unwrap_or_else(|_| panic!("{moment:?}, {name}: it does not connect again"));
            works(&consumer, &mut peer).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn n4_a_message_before_the_first_rdy_is_a_message() {
    let mut nsqd = Nsqd::start();
    let consumer = nsqd.consumer().max_in_flight(10).start(succeed).await.unwrap();
    let mut peer = nsqd.accept_raw().await;
    peer.read_identify().await;
    peer.respond(IDENTIFY_ANSWER).await;
    peer.read_sub().await;
    let ok = Frame::Response(protocol::OK.into());
    peer.send_bytes(&frames(&[ok, message(1), message(2)])).await;
    let mut finished = 0;
    while finished < 2 {
        finished += usize::from(matches!(peer.command().await, Command::Fin(_)));
    }
    works(&consumer, &mut peer).await;
}

#[tokio::test(start_paused = true)]
async fn n4_close_wait_that_nobody_asked_for_closes_nothing() {
    let mut nsqd = Nsqd::start();
    let (consumer, mut peer) = nsqd.consume(10, succeed).await;
    peer.respond(protocol::CLOSE_WAIT).await;
    peer.deliver([1]).await;
    until(&mut peer, fin(1)).await;
    works(&consumer, &mut peer).await;
}

#[tokio::test(start_paused = true)]
async fn c5_a_message_delivered_twice_at_once_is_answered_for_each_delivery() {
    let mut nsqd = Nsqd::start();
    let (consumer, mut peer) = nsqd.consume(10, obey).await;
    let twins = [delivery(5, 1, "slow"), delivery(5, 2, "slow"), delivery(5, 2, "quick")];
    peer.send_bytes(&frames(&twins)).await;
    for _ in 0..3 {
        until(&mut peer, fin(5)).await;
    }
    peer.error("E_FIN_FAILED FIN 0000000000000005 failed ID not in flight")
        .await;
    peer.error("E_FIN_FAILED FIN 0000000000000005 failed ID not in flight")
        .await;
    works(&consumer, &mut peer).await;
}

/// Uses all that a message tells of itself.
async fn inspect(message: Message) -> Result<(), BoxError> {
    let told = format!(
        "{message:?} {:?} {} {}",
        message.timestamp(),
        message.id(),
        message.attempts()
    );
    assert!(!told.is_empty());
    obey(message).await
}

#[tokio::test(start_paused = true)]
async fn n4_a_message_with_impossible_fields_is_a_message() {
    let mut nsqd = Nsqd::start();
    let (consumer, mut peer) = nsqd.consume(10, inspect).await;
    for attempts in [0, 1, 5, 6, u16::MAX] {
        for timestamp in [i64::MIN, -1, 0, 1, i64::MAX] {
            for id in [*b"0000000000000001", [0; 16], *b"'\"\\%{}[]()<>|&;:"] {
                let id = MessageId::new(id);
                for body in ["", "body"] {
                    let body = body.into();
                    let odd = protocol::Message {
                        timestamp,
                        attempts,
                        id,
                        body,
                    };
                    peer.send(&Frame::Message(odd)).await;
                    until(
                        &mut peer,
                        Command::Fin(String::from_utf8(id.as_bytes().to_vec()).unwrap()),
                    )
                    .await;
                }
            }
        }
    }
    works(&consumer, &mut peer).await;
}

#[tokio::test(start_paused = true)]
async fn c5_the_requeue_delay_is_bounded_for_every_number_of_attempts() {
    let mut nsqd = Nsqd::start();
    let builder = nsqd.consumer().max_in_flight(10).max_attempts(0).backoff(Off);
    let (consumer, mut peer) = nsqd.consume_with(builder, inspect).await;
    for (attempts, delay_ms) in [(0, 0), (1, 90_000), (10, 900_000), (11, 900_000), (u16::MAX, 900_000)] {
        peer.send_bytes(&frames(&[delivery(1, attempts, "fail")])).await;
        until(&mut peer, req(1, delay_ms)).await;
    }
    works(&consumer, &mut peer).await;
}

#[tokio::test(start_paused = true)]
async fn n4_a_refusal_of_a_megabyte_is_told_in_a_line() {
    let long = |code: &str| format!("{code} \n{}", "x".repeat(1_000_000));
    let texts = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&texts);
    let mut nsqd = Nsqd::start();
    let builder = nsqd.consumer().max_in_flight(10);
    let builder = builder.on_answer_refused(move |refused| heard.lock().unwrap().push(refused.text.clone()));
    let (consumer, mut peer) = nsqd.consume_with(builder, succeed).await;
    for _ in 0..100 {
        peer.error(&long("E_FIN_FAILED")).await;
    }
    works(&consumer, &mut peer).await;
    let texts = std::mem::take(&mut *texts.lock().unwrap());
    assert_eq!(texts.len(), 100);
    assert!(texts.iter().all(|text| text.len() < 1000 && !text.contains('\n')));
    for response in [false, true] {
        if response {
            peer.respond(long("OK").as_bytes()).await;
        } else {
            peer.error(&long("E_INVALID")).await;
        }
        while peer.next().await.is_some() {}
        settle().await;
        let told = chain(&consumer.ready(Duration::from_millis(1)).await.unwrap_err());
        assert!(told.len() < 2000 && !told.contains('\n'), "{told}");
        peer = nsqd.accept().await;
    }
    works(&consumer, &mut peer).await;
}
