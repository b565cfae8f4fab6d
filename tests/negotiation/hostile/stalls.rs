//! A handshake that does not go on ends at its timeout.

use std::time::Duration;

use async_nsq::protocol::Frame;
use async_nsq::{ErrorKind, Step};
use bytes::Bytes;
use tokio::time::sleep;

use super::frame;
use crate::peer::{At, Ending, Peer, Plan, ending, ending_with, heartbeat, ok};

/// The default of `handshake_timeout`.
const PATIENCE: Duration = Duration::from_secs(5);

fn assert_too_slow<T: std::fmt::Debug>(ending: &Ending<T>, place: At) {
    let text = ending.check(place, ErrorKind::ConnectionLost);
    assert!(text.contains("handshake_timeout (5s)"), "{text}");
    // An nsqd that stalls is not refusing: it may be restarting.
    assert!(ending.error.is_retryable());
    let late = ending.after.saturating_sub(PATIENCE);
    assert!(
        ending.after >= PATIENCE && late <= Duration::from_millis(20),
        "{place:?}: {:?}",
        ending.after
    );
}

/// What nsqd would answer.
fn answer(plan: &Plan, place: At) -> Frame {
    match place {
        At::Start | At::Identify => plan.granted(),
        At::Auth => Frame::Response(Bytes::from_static(b"{}")),
        _ => ok(),
    }
}

#[tokio::test(start_paused = true)]
async fn n5_a_peer_that_stalls_at_any_step_is_given_up_in_time() {
    for plan in Plan::all() {
        for place in plan.places() {
            let ending = ending(&plan, place, Peer::closed).await;
            assert_too_slow(&ending, place);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn n5_heartbeats_for_ever_are_no_answer() {
    for plan in Plan::all() {
        for place in plan.places() {
            if place == At::TlsHandshake {
                continue;
            }
            let ending = ending(&plan, place, |mut peer| async move {
                let mut beats = 0;
                loop {
                    let wire = peer.encode(&frame(&heartbeat()));
                    if !peer.write(&wire).await {
                        return beats;
                    }
                    beats += 1;
                    sleep(Duration::from_millis(100)).await;
                }
            })
            .await;
            assert_too_slow(&ending, place);
            assert!(ending.told >= 49, "{place:?}: {}", ending.told);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn n5_a_byte_now_and_then_is_too_slow() {
    for plan in Plan::all() {
        for place in plan.places() {
            let answer = frame(&answer(&plan, place));
            let ending = ending(&plan, place, move |mut peer| async move {
                let wire = match place {
                    // A record of the server's hello, as it may well begin.
                    At::TlsHandshake => [&b"\x16\x03\x03\x10\0\x02\0\x0f\xf0\x03\x03"[..], &[7; 100]].concat(),
                    _ => peer.encode(&answer).to_vec(),
                };
                for byte in wire {
                    if !peer.write(&[byte]).await {
                        break;
                    }
                    // Deflate says OK in three bytes.
                    sleep(Duration::from_secs(2)).await;
                }
            })
            .await;
            assert_too_slow(&ending, place);
        }
    }
}

/// On the real clock: a paused one stands still for as long as there is something to do.
#[tokio::test]
async fn n5_a_flood_of_what_is_no_answer_does_not_hold_the_timeout_up() {
    for plan in Plan::all() {
        for place in plan.places() {
            if place == At::TlsHandshake {
                continue;
            }
            // Much plain text in few bytes, and as many heartbeats as possible.
            let ending = flooded(&plan, place, |peer| {
                peer.encode(&b"\0\0\0\x0f\0\0\0\0_heartbeat_".repeat(50_000)).to_vec()
            })
            .await;
            assert_timed_out(&ending);
        }
    }
}

/// On the real clock, as above.
#[tokio::test]
async fn n5_a_flood_that_decompresses_to_nothing_does_not_hold_the_timeout_up() {
    // Padding, and a chunk that may be skipped; an empty stored block. Both streams begin as they should.
    let snappy: &'static [u8] = b"\xfe\x10\0\0................\x80\x04\0\0....";
    let deflate: &'static [u8] = b"\0\0\0\xff\xff";
    let cases: [(Plan, &'static [u8]); 2] = [
        (Plan::full(async_nsq::Compression::Snappy), snappy),
        (Plan::full(Plan::DEFLATE), deflate),
    ];
    for (plan, nothing) in cases {
        for place in [At::Compression, At::Auth, At::Subscribe] {
            let ending = flooded(&plan, place, move |peer| {
                let beginning = peer.encode(&frame(&heartbeat()));
                [&beginning[..], &nothing.repeat(50_000)].concat()
            })
            .await;
            assert_timed_out(&ending);
        }
    }
}

/// Where it was at that moment, depends on how busy this machine is.
fn assert_timed_out(ending: &Ending<()>) {
    assert_eq!(ending.error.kind(), ErrorKind::ConnectionLost);
    assert!(
        ending.error.to_string().contains("handshake_timeout"),
        "{}",
        ending.error
    );
}

/// The peer sends these bytes, and for ever what it gets when it asks for them again.
async fn flooded(plan: &Plan, place: At, bytes: impl Fn(&mut Peer) -> Vec<u8> + Send + 'static) -> Ending<()> {
    let patience = Duration::from_millis(300);
    ending_with(
        plan,
        place,
        |connection| connection.handshake_timeout(patience),
        move |mut peer| async move {
            let first = bytes(&mut peer);
            let again = bytes(&mut peer);
            peer.write(&first).await;
            while peer.write(&again).await {}
        },
    )
    .await
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_closes_at_any_step_is_lost_at_that_step() {
    for plan in Plan::all() {
        for place in plan.places() {
            let ending = ending(&plan, place, |peer| async move { drop(peer) }).await;
            ending.check(place, ErrorKind::ConnectionLost);
            assert!(
                ending.after < Duration::from_millis(20),
                "{place:?}: {:?}",
                ending.after
            );
            assert!(ending.error.is_retryable());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_closes_within_an_answer_is_lost_at_that_step() {
    for plan in Plan::all() {
        for place in plan.places() {
            let answer = frame(&answer(&plan, place));
            let ending = ending(&plan, place, move |mut peer| async move {
                let wire = peer.encode(&answer);
                peer.write(&wire[..2]).await;
            })
            .await;
            if place == At::TlsHandshake {
                // What begins a plain frame begins no TLS.
                assert_eq!(ending.error.step(), Some(Step::Tls));
            } else {
                ending.check(place, ErrorKind::ConnectionLost);
            }
        }
    }
}
