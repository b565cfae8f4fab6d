//! A few bytes that become very many.

use std::time::Duration;

use async_nsq::protocol::{Frame, Message, MessageId};
use async_nsq::transport::MemoryNetwork;
use async_nsq::{Compression, ErrorKind, Producer, Step};
use bytes::{BufMut, Bytes, BytesMut};

use super::frame;
use crate::chain;
use crate::peer::{ADDRESS, At, Peer, Plan, ending, heartbeat, lost, lost_consumer, ok};

/// What a piece of a bomb becomes.
const PLAIN: usize = 200_000;

/// More than a pipe holds and the layers of a stream read ahead.
const LITTLE: usize = 400 * 1024;

fn compressed() -> [Plan; 4] {
    [
        Plan::plain(Compression::Snappy),
        Plan::plain(Plan::DEFLATE),
        Plan::full(Compression::Snappy),
        Plan::full(Plan::DEFLATE),
    ]
}

/// A piece of the stream that becomes so many zeros, again and again.
fn zeros(peer: &mut Peer) -> Vec<u8> {
    let zeros = vec![0; PLAIN];
    // The first one has nothing to refer to.
    peer.encode(&zeros);
    let again = peer.encode(&zeros).to_vec();
    assert!(again.len() < PLAIN / 20, "{}", again.len());
    again
}

fn header(size: u32, kind: u32) -> BytesMut {
    let mut header = BytesMut::new();
    header.put_u32(size);
    header.put_u32(kind);
    header
}

/// Two gigabytes, as far as the peer is concerned. Returns how much the client takes of it.
async fn explode(mut peer: Peer) -> usize {
    let header = peer.encode(&header(0x7fff_ffff, 0));
    peer.write(&header).await;
    let bomb = zeros(&mut peer);
    peer.flood(&bomb).await
}

#[tokio::test(start_paused = true)]
async fn n4_a_bomb_in_a_handshake_is_refused_by_the_header_of_its_frame() {
    for plan in compressed() {
        for place in plan.places() {
            if ![At::Compression, At::Auth, At::Subscribe].contains(&place) {
                continue;
            }
            let ending = ending(&plan, place, explode).await;
            let text = ending.check(place, ErrorKind::Protocol);
            assert!(text.contains("max_msg_size"), "{text}");
            assert!(ending.told < LITTLE, "{} bytes were taken", ending.told);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn n4_a_bomb_after_the_handshake_is_refused_by_the_header_of_its_frame() {
    for plan in compressed() {
        let (producer, peer) = plan.producer(&MemoryNetwork::new()).await;
        let taken = tokio::spawn(explode(peer));
        let error = lost(&producer).await;
        let text = chain(&error);
        assert_eq!(
            (error.kind(), error.step()),
            (ErrorKind::Protocol, Some(Step::Read)),
            "{text}"
        );
        assert!(text.contains("max_msg_size") && text.contains(ADDRESS), "{text}");
        let taken = taken.await.unwrap();
        assert!(taken < LITTLE, "{taken} bytes were taken");
    }
}

/// A chunk of some bytes that says it becomes four gigabytes.
#[tokio::test(start_paused = true)]
async fn n4_a_snappy_chunk_that_claims_to_be_huge_is_refused_by_its_length() {
    let chunk = b"\x00\x0e\0\0\x01\x02\x03\x04\xff\xff\xff\xff\x0f\0\0\0\0\0";
    for plan in [Plan::plain(Compression::Snappy), Plan::full(Compression::Snappy)] {
        let ending = ending(&plan, At::Compression, move |mut peer| async move {
            peer.write(b"\xff\x06\0\0sNaPpY").await;
            peer.flood(chunk).await
        })
        .await;
        let text = ending.check(At::Compression, ErrorKind::Protocol);
        assert!(text.contains("4294967295 plain bytes"), "{text}");
        assert!(ending.told < LITTLE, "{} bytes were taken", ending.told);

        let (producer, mut peer) = plan.producer(&MemoryNetwork::new()).await;
        let taken = tokio::spawn(async move { peer.flood(chunk).await });
        let error = lost(&producer).await;
        assert_eq!((error.kind(), error.step()), (ErrorKind::Protocol, Some(Step::Read)));
        assert!(chain(&error).contains("4294967295 plain bytes"), "{}", chain(&error));
        assert!(taken.await.unwrap() < LITTLE);
    }
}

#[tokio::test(start_paused = true)]
async fn n4_a_flood_of_answers_that_nobody_asked_for_ends_with_the_first() {
    for plan in compressed() {
        let (producer, mut peer) = plan.producer(&MemoryNetwork::new()).await;
        let flooding = tokio::spawn(async move {
            let bomb = peer.encode(&frame(&ok()).repeat(100_000));
            peer.flood(&bomb).await
        });
        let error = lost(&producer).await;
        assert_eq!((error.kind(), error.step()), (ErrorKind::Protocol, Some(Step::Read)));
        assert!(flooding.await.unwrap() < LITTLE);
    }
}

/// Large messages, each of some kilobytes at most on the wire, to a consumer that has asked for one.
#[tokio::test(start_paused = true)]
async fn n4_messages_that_nobody_asked_for_are_taken_up_to_a_number() {
    for plan in compressed() {
        let (consumer, mut peer) = plan.consumer(&MemoryNetwork::new(), 1).await;
        let sending = tokio::spawn(async move {
            let mut sent = 0;
            while sent < 1000 {
                let message = Message {
                    timestamp: 1,
                    attempts: 1,
                    id: MessageId::new(format!("{sent:016x}").into_bytes().try_into().unwrap()),
                    body: Bytes::from(vec![0; PLAIN / 10]),
                };
                let wire = peer.encode(&frame(&Frame::Message(message)));
                if !peer.write(&wire).await {
                    break;
                }
                sent += 1;
            }
            sent
        });
        let error = lost_consumer(&consumer).await;
        assert_eq!((error.kind(), error.step()), (ErrorKind::Protocol, Some(Step::Read)));
        assert!(error.to_string().contains("RDY"), "{error}");
        // Twice RDY and some, and what fits into the pipe.
        let sent = sending.await.unwrap();
        assert!(sent < 200, "{sent} messages were taken");
    }
}

/// On the real clock: a paused one stands still for as long as there is something to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n4_a_flood_of_heartbeats_does_not_keep_a_publish_from_its_deadline() {
    for plan in compressed() {
        let network = MemoryNetwork::new();
        let (connected, mut peer) = plan.producer(&network).await;
        let flooding = tokio::spawn(async move {
            let beats = frame(&heartbeat()).repeat(50_000);
            let first = peer.encode(&beats);
            let again = peer.encode(&beats);
            peer.write(&first).await;
            peer.flood(&again).await
        });
        let hasty: Producer = connected.with_publish_timeout(Duration::from_millis(200));
        let error = hasty.publish("orders", "one").await.unwrap_err();
        assert!(
            [ErrorKind::Unknown, ErrorKind::NotSent].contains(&error.kind()),
            "{error}"
        );
        assert_eq!(error.kind() == ErrorKind::Unknown, error.is_ambiguous());
        assert!(connected.is_connected(), "heartbeats are no crime");
        flooding.abort();
    }
}

/// To be heard is to have something to say.
#[tokio::test(start_paused = true)]
async fn n1_a_peer_that_sends_what_decompresses_to_nothing_is_silent() {
    for (compression, nothing) in [
        (Compression::Snappy, &b"\xfe\x04\0\0...."[..]),
        (Plan::DEFLATE, b"\0\0\0\xff\xff"),
    ] {
        for plan in [Plan::plain(compression), Plan::full(compression)] {
            let network = MemoryNetwork::new();
            let interval = Duration::from_secs(10);
            let connection = plan.connection(&network).heartbeat_interval(interval);
            let (producer, mut peer) = plan.producer_with(&network, connection).await;
            let begun = tokio::time::Instant::now();
            let sending = tokio::spawn(async move {
                while peer.write(nothing).await {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            });
            let error = lost(&producer).await;
            assert_eq!(
                (error.kind(), error.step()),
                (ErrorKind::ConnectionLost, Some(Step::Heartbeat))
            );
            let silent = begun.elapsed();
            assert!(
                silent >= 2 * interval && silent < 2 * interval + Duration::from_secs(1),
                "{silent:?}"
            );
            sending.abort();
        }
    }
}
