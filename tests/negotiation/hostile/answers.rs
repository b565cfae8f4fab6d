//! Answers that are refusals, too large, or none at all.

use std::time::Duration;

use async_nsq::protocol::{self, ErrorCode, Frame, MessageId};
use async_nsq::{Compression, ErrorKind, Step};
use bytes::{BufMut, Bytes, BytesMut};

use super::frame;
use crate::peer::{At, Peer, Plan, ending, ending_with, ok};

const CODES: [&str; 20] = [
    "E_INVALID",
    "E_BAD_PROTOCOL",
    "E_BAD_BODY",
    "E_BAD_TOPIC",
    "E_BAD_CHANNEL",
    "E_BAD_MESSAGE",
    "E_PUB_FAILED",
    "E_MPUB_FAILED",
    "E_DPUB_FAILED",
    "E_SUB_FAILED",
    "E_FIN_FAILED",
    "E_REQ_FAILED",
    "E_TOUCH_FAILED",
    "E_AUTH_FIRST",
    "E_AUTH_FAILED",
    "E_AUTH_DISABLED",
    "E_AUTH_ERROR",
    "E_UNAUTHORIZED",
    "E_IDENTIFY_FAILED",
    "E_OF_THE_FUTURE",
];

/// More than a pipe holds and the layers of a stream read ahead.
const LITTLE: usize = 400 * 1024;

fn error(text: &str) -> Frame {
    Frame::Error(Bytes::copy_from_slice(text.as_bytes()))
}

#[tokio::test(start_paused = true)]
async fn an_error_frame_with_any_code_at_any_step_is_a_rejection_with_that_code() {
    for plan in Plan::all() {
        for place in plan.places() {
            for code in CODES {
                let refusal = error(&format!("{code} because of something"));
                let ending = ending(&plan, place, move |mut peer| async move {
                    peer.send(&refusal).await;
                    peer.closed().await;
                })
                .await;
                if place == At::TlsHandshake {
                    // In clear text it is no answer to a ClientHello.
                    ending.check(place, ErrorKind::Protocol);
                    continue;
                }
                let text = ending.check(place, ErrorKind::Rejected);
                assert!(text.contains(&format!("{code} because of something")), "{text}");
                assert_eq!(ending.error.code(), Some(ErrorCode::of(code)));
                assert!(ending.after < Duration::from_millis(20), "{:?}", ending.after);
            }
        }
    }
}

/// After a handshake that fails on its side nsqd tells why in clear text, behind an alert if TLS has one for it.
#[tokio::test(start_paused = true)]
async fn e_identify_failed_in_clear_text_ends_a_tls_handshake() {
    let plan = Plan::full(Compression::None);
    let alert: &[u8] = b"\x15\x03\x03\0\x02\x02";
    let bad_certificate = 42;
    let protocol_version = 70;
    for (alert, kind, says) in [
        (None, ErrorKind::Protocol, "does not speak TLS here"),
        (Some(bad_certificate), ErrorKind::Rejected, "client_certificate_files"),
        (Some(protocol_version), ErrorKind::Rejected, "no version of TLS"),
    ]
    .map(|(code, kind, says)| (code.map(|code| [alert, &[code]].concat()), kind, says))
    {
        let ending = ending(&plan, At::TlsHandshake, move |mut peer| async move {
            let text = error("E_IDENTIFY_FAILED IDENTIFY failed tls: something");
            let words = [&alert.unwrap_or_default()[..], &frame(&text)].concat();
            peer.write(&words).await;
        })
        .await;
        let text = ending.check(At::TlsHandshake, kind);
        assert!(text.contains(says), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn n4_an_oversized_frame_at_any_step_is_refused_by_its_header() {
    for plan in Plan::all() {
        for place in plan.places() {
            if place == At::TlsHandshake {
                continue;
            }
            for size in [2_000_000_u32, 0x7fff_ffff, 0xffff_ffff, 3] {
                let ending = ending(&plan, place, move |mut peer| async move {
                    let mut header = BytesMut::new();
                    header.put_u32(size);
                    header.put_u32(0);
                    let wire = peer.encode(&header);
                    peer.write(&wire).await;
                    // What would come if it were read.
                    let body = peer.encode(&[7; 10_000]);
                    peer.flood(&body).await
                })
                .await;
                let text = ending.check(place, ErrorKind::Protocol);
                assert!(text.contains("frame"), "{text}");
                assert_eq!(text.contains("max_msg_size"), size >> 31 == 0 && size > 3, "{text}");
                assert!(ending.told < LITTLE, "{} bytes were taken", ending.told);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn n4_a_users_limit_holds_for_what_is_decompressed() {
    for plan in Plan::all() {
        for place in plan.places() {
            if place == At::TlsHandshake {
                continue;
            }
            let ending = ending_with(
                &plan,
                place,
                |connection| connection.max_msg_size(1000),
                |mut peer| async move {
                    // A few bytes if they are compressed.
                    peer.send(&Frame::Response(vec![b'x'; 100_000].into())).await;
                    peer.closed().await;
                },
            )
            .await;
            let text = ending.check(place, ErrorKind::Protocol);
            assert!(text.contains("max_msg_size"), "{text}");
        }
    }
}

/// What ports of other kinds say, and noise.
fn garbage() -> Vec<Vec<u8>> {
    vec![
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n".to_vec(),
        b"220 mail.example ESMTP Postfix; who are you, and what do you want?\r\n".to_vec(),
        b"\x17\x03\x03\0\x20................................................".to_vec(),
        vec![0; 100],
        vec![0xff; 100],
    ]
}

#[tokio::test(start_paused = true)]
async fn garbage_at_any_step_is_told_as_such() {
    for plan in Plan::all() {
        for place in plan.places() {
            for bytes in garbage() {
                let ending = ending(&plan, place, move |mut peer| async move {
                    peer.write(&bytes).await;
                    peer.closed().await;
                })
                .await;
                ending.check(place, ErrorKind::Protocol);
                assert!(ending.after < Duration::from_millis(20), "{:?}", ending.after);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn garbage_that_is_well_compressed_is_told_as_such() {
    for plan in [Plan::full(Compression::Snappy), Plan::full(Plan::DEFLATE)] {
        for place in [At::Compression, At::Auth, At::Subscribe] {
            for bytes in garbage() {
                let ending = ending(&plan, place, move |mut peer| async move {
                    let wire = peer.encode(&bytes);
                    peer.write(&wire).await;
                    peer.closed().await;
                })
                .await;
                ending.check(place, ErrorKind::Protocol);
            }
        }
    }
}

/// Who is in between could else make up nsqd's first words behind TLS.
#[tokio::test(start_paused = true)]
async fn clear_text_behind_the_answer_that_grants_tls_is_not_taken_for_what_comes_by_tls() {
    for compression in [Compression::None, Compression::Snappy, Plan::DEFLATE] {
        let plan = Plan::full(compression);
        let granted = frame(&plan.granted());
        for injected in [
            frame(&ok()),
            frame(&error("E_AUTH_FIRST AUTH")),
            BytesMut::from(&b"\0"[..]),
        ] {
            let together = [&granted[..], &injected].concat();
            let ending = ending(&plan, At::Identify, move |mut peer| async move {
                peer.write(&together).await;
                peer.closed().await;
            })
            .await;
            let text = ending.check(At::Tls, ErrorKind::Protocol);
            assert!(text.contains("in between"), "{text}");
        }
        // It may come a little later, too.
        let ending = ending(&plan, At::TlsHandshake, |mut peer| async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            peer.send(&ok()).await;
            peer.closed().await;
        })
        .await;
        ending.check(At::Tls, ErrorKind::Protocol);
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_during_a_handshake_breaks_the_protocol() {
    for plan in Plan::all() {
        for place in plan.places() {
            if place == At::TlsHandshake {
                continue;
            }
            let ending = ending(&plan, place, |mut peer| async move {
                peer.send(&Frame::Message(protocol::Message {
                    timestamp: 1,
                    attempts: 1,
                    id: MessageId::new(*b"0123456789abcdef"),
                    body: Bytes::from_static(b"early"),
                }))
                .await;
                peer.closed().await;
            })
            .await;
            ending.check(place, ErrorKind::Protocol);
        }
    }
}

/// A peer that repeats the secret does not get it into the log.
#[tokio::test(start_paused = true)]
async fn the_refusal_of_a_secret_does_not_show_it() {
    let plan = Plan::full(Compression::Snappy);
    let ending = ending(&plan, At::Auth, |mut peer: Peer| async move {
        peer.send(&error("E_AUTH_FAILED nobody knows \"open sesame\"")).await;
        peer.closed().await;
    })
    .await;
    assert_eq!(ending.error.step(), Some(Step::Auth));
    let text = ending.check(At::Auth, ErrorKind::Rejected);
    assert!(!text.contains("open sesame"), "{text}");
    assert!(!format!("{:?}", ending.error).contains("open sesame"));
}
