//! Whatever a peer sends: a typed error, another connection, and publishes go on.

use std::time::Duration;

use async_nsq::protocol::ErrorCode;
use async_nsq::{Culprit, Error, ErrorKind, Step};

use crate::support::{IDENTIFY_ANSWER, Peer, ScriptedNsqd, frames};
use crate::{cause, publish};

/// Bytes that are no answer, with what they are taken for and a word that the error must contain.
const BAD: [(&str, &[u8], ErrorKind, &str); 11] = [
    (
        "garbage",
        b"\xde\xad\xbe\xef\xde\xad\xbe\xef",
        ErrorKind::Protocol,
        "negative",
    ),
    (
        "text",
        b"220 mail.example ESMTP\r\n",
        ErrorKind::Protocol,
        "begins with",
    ),
    ("HTTP", b"HTTP/1.1 400 Bad Request\r\n\r\n", ErrorKind::Protocol, "HTTP"),
    (
        "a TLS alert",
        b"\x15\x03\x01\x00\x02\x02\x46",
        ErrorKind::Protocol,
        "TLS",
    ),
    (
        "an oversized frame",
        b"\x7f\xff\xff\xff\0\0\0\0",
        ErrorKind::Protocol,
        "limit",
    ),
    (
        "a negative size",
        b"\xff\xff\xff\xff\0\0\0\0",
        ErrorKind::Protocol,
        "negative",
    ),
    ("an empty frame", b"\0\0\0\0", ErrorKind::Protocol, "size 0"),
    (
        "an unknown type",
        b"\0\0\0\x06\0\0\0\x03OK",
        ErrorKind::Protocol,
        "unknown type 3",
    ),
    (
        "a short message",
        b"\0\0\0\x05\0\0\0\x02x",
        ErrorKind::Protocol,
        "too short",
    ),
    (
        "a cut frame",
        b"\0\0\0\x06\0\0\0\0O",
        ErrorKind::ConnectionLost,
        "closed",
    ),
    ("nothing", b"", ErrorKind::ConnectionLost, "closed"),
];

fn assert_typed(name: &str, error: &Error, kind: ErrorKind, step: Step, word: &str) {
    assert_eq!((error.kind(), error.step()), (kind, Some(step)), "{name}: {error}");
    assert_eq!(error.address(), Some(ScriptedNsqd::ADDRESS), "{name}");
    assert!(
        error.to_string().contains(word),
        "{name}: {error} does not tell of {word:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn bad_input_in_the_handshake_is_a_typed_error_of_connect() {
    for (name, bytes, kind, word) in BAD {
        let mut nsqd = ScriptedNsqd::start();
        let builder = nsqd.producer();
        let answer = async {
            let mut peer = nsqd.accept_raw().await;
            peer.read_identify().await;
            peer.send_bytes(bytes).await;
        };
        let (connected, ()) = tokio::join!(builder.connect(), answer);
        assert_typed(name, &connected.unwrap_err(), kind, Step::Identify, word);
    }
}

#[tokio::test(start_paused = true)]
async fn bad_input_before_anything_was_read_is_named_all_the_same() {
    // An HTTP or TLS server answers the magic and hangs up without reading on.
    for (name, bytes, kind, word) in BAD {
        let mut nsqd = ScriptedNsqd::start();
        let builder = nsqd.producer();
        let answer = async { nsqd.accept_raw().await.send_bytes(bytes).await };
        let (connected, ()) = tokio::join!(builder.connect(), answer);
        let error = connected.unwrap_err();
        assert_eq!(
            (error.kind(), error.step()),
            (kind, Some(Step::Identify)),
            "{name}: {error}"
        );
        if kind == ErrorKind::Protocol {
            assert!(error.to_string().contains(word), "{name}: {error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_answer_to_identify_is_a_typed_error() {
    for (answer, kind, word) in [
        (&b"[]"[..], ErrorKind::Protocol, "not nsqd's"),
        (b"{", ErrorKind::Protocol, "not nsqd's"),
        (b"", ErrorKind::Protocol, "not nsqd's"),
        (b"OKAY", ErrorKind::Protocol, "not nsqd's"),
        (b"CLOSE_WAIT", ErrorKind::Protocol, "not nsqd's"),
        (br#"{"max_rdy_count":"many"}"#, ErrorKind::Protocol, "not nsqd's"),
        (br#"{"tls_v1":true}"#, ErrorKind::Protocol, "not asked for"),
        (br#"{"snappy":true}"#, ErrorKind::Protocol, "not asked for"),
    ] {
        let mut nsqd = ScriptedNsqd::start();
        let builder = nsqd.producer();
        let answer = async {
            let mut peer = nsqd.accept_raw().await;
            peer.read_identify().await;
            peer.respond(answer).await;
            peer
        };
        let (connected, _peer) = tokio::join!(builder.connect(), answer);
        assert_typed("IDENTIFY", &connected.unwrap_err(), kind, Step::Identify, word);
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_or_a_refusal_in_the_handshake_is_a_typed_error() {
    for refused in [true, false] {
        let mut nsqd = ScriptedNsqd::start();
        let builder = nsqd.producer();
        let answer = async {
            let mut peer = nsqd.accept_raw().await;
            peer.read_identify().await;
            if refused {
                peer.error("E_BAD_BODY IDENTIFY heartbeat interval (60000) is invalid")
                    .await;
            } else {
                peer.message("unasked").await;
            }
        };
        let (connected, ()) = tokio::join!(builder.connect(), answer);
        let error = connected.unwrap_err();
        if refused {
            assert_typed(
                "refusal",
                &error,
                ErrorKind::Rejected,
                Step::Identify,
                "heartbeat interval",
            );
            assert_eq!(error.code(), Some(ErrorCode::BadBody));
        } else {
            assert_typed("message", &error, ErrorKind::Protocol, Step::Identify, "message");
        }
    }
}

/// A later publish succeeds, on another connection.
async fn assert_recovers(producer: &async_nsq::Producer, nsqd: &mut ScriptedNsqd) -> Peer {
    // Each loss makes the next attempt wait longer.
    let published = publish(&producer.with_publish_timeout(Duration::from_secs(600)), "a", "later");
    let mut peer = nsqd.accept().await;
    assert_eq!(peer.command().await.bodies(), ["later"]);
    peer.ok().await;
    published.await.unwrap().unwrap();
    peer
}

#[tokio::test(start_paused = true)]
async fn bad_input_on_a_connection_is_the_cause_of_unknown_and_replaces_it() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    for (name, bytes, kind, word) in BAD {
        let published = publish(&producer, "a", "one");
        peer.command().await;
        peer.send_bytes(bytes).await;
        if kind == ErrorKind::Protocol {
            peer.expect_close().await;
        }
        drop(peer);
        let error = published.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unknown, "{name}");
        assert_typed(name, cause(&error), kind, Step::Read, word);
        peer = assert_recovers(&producer, &mut nsqd).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_good_answer_before_bad_input_still_counts() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().batching(false);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let answered = publish(&producer, "a", "one");
    let lost = publish(&producer, "a", "two");
    peer.command().await;
    peer.command().await;
    peer.send_bytes(b"\0\0\0\x06\0\0\0\0OK\xff\xff\xff\xff").await;
    answered.await.unwrap().unwrap();
    assert_eq!(lost.await.unwrap().unwrap_err().kind(), ErrorKind::Unknown);
    assert_recovers(&producer, &mut nsqd).await;
}

#[tokio::test(start_paused = true)]
async fn lesson_05_an_answer_that_is_not_ok_or_not_asked_for_replaces_the_connection() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    type Send = fn(&mut Peer) -> std::pin::Pin<Box<dyn Future<Output = ()> + '_>>;
    let unasked: [(&str, Send); 5] = [
        ("OK", |peer| Box::pin(peer.ok())),
        ("CLOSE_WAIT", |peer| Box::pin(peer.respond(b"CLOSE_WAIT"))),
        ("JSON", |peer| Box::pin(peer.respond(IDENTIFY_ANSWER))),
        ("a message", |peer| Box::pin(peer.message("hello"))),
        ("an empty response", |peer| Box::pin(peer.respond(b""))),
    ];
    for (name, send) in unasked {
        // While nothing is asked.
        send(&mut peer).await;
        peer.expect_close().await;
        let error = producer
            .with_publish_timeout(Duration::from_millis(50))
            .publish("a", "x")
            .await;
        let error = error.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotSent, "{name}");
        assert_typed(name, cause(&error), ErrorKind::Protocol, Step::Read, "");
        assert_eq!(cause(&error).culprit(), Culprit::Peer);
        peer = assert_recovers(&producer, &mut nsqd).await;
        // While a publish is.
        if name != "OK" {
            let published = publish(&producer, "a", "one");
            peer.command().await;
            send(&mut peer).await;
            let error = published.await.unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unknown, "{name}");
            assert_typed(name, cause(&error), ErrorKind::Protocol, Step::Read, "");
            peer = assert_recovers(&producer, &mut nsqd).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_frame_at_any_moment_replaces_the_connection() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    for text in ["E_INVALID cannot do that", "E_NEVER_HEARD of it", "", "\u{fffd} é"] {
        peer.error(text).await;
        peer.expect_close().await;
        let impatient = producer.with_publish_timeout(Duration::from_millis(50));
        let error = impatient.publish("a", "x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotSent, "{text:?}");
        assert_eq!(cause(&error).kind(), ErrorKind::Rejected, "{text:?}");
        assert_eq!(cause(&error).address(), Some(ScriptedNsqd::ADDRESS));
        peer = assert_recovers(&producer, &mut nsqd).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_about_a_message_in_flight_is_no_answer_to_a_publish() {
    // A producer has no messages in flight, so this is no answer: nsqd may well have taken the publish.
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    for text in [
        "E_FIN_FAILED FIN failed",
        "E_REQ_FAILED REQ failed",
        "E_TOUCH_FAILED TOUCH failed",
    ] {
        let published = publish(&producer, "a", "one");
        peer.command().await;
        peer.error(text).await;
        let error = published.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unknown, "{text}: {error}");
        assert_eq!(cause(&error).kind(), ErrorKind::Protocol);
        peer = assert_recovers(&producer, &mut nsqd).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_follows_the_answer_to_identify_in_one_piece_is_looked_at() {
    use async_nsq::protocol::Frame;
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer();
    let answer = async {
        let mut peer = nsqd.accept_raw().await;
        peer.read_identify().await;
        let piece = frames(&[
            Frame::Response(IDENTIFY_ANSWER.into()),
            Frame::Response("_heartbeat_".into()),
            Frame::Response("OK".into()),
        ]);
        peer.send_bytes(&piece).await;
        peer
    };
    let (connected, _peer) = tokio::join!(builder.connect(), answer);
    let error = connected.unwrap_err();
    assert_typed("OK", &error, ErrorKind::Protocol, Step::Read, "nothing was asked");
}
