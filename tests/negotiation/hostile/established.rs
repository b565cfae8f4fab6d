//! What happens to a connection that was in order.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_nsq::transport::{BoxIo, MemoryNetwork};
use async_nsq::{Compression, Error, ErrorKind, Step};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep};

use super::frame;
use crate::chain;
use crate::peer::{ADDRESS, Peer, Plan, heartbeat, lost, ok};

const SECOND: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_secs(10);

/// Turns bits of a connection over, once it is told to.
struct Tampered {
    io: BoxIo,
    incoming: Arc<AtomicBool>,
    outgoing: Arc<AtomicBool>,
}

impl AsyncRead for Tampered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        if self.incoming.load(Ordering::Relaxed) {
            if let Some(last) = buffer.filled_mut()[before..].last_mut() {
                *last ^= 1;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tampered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut bytes = bytes.to_vec();
        if self.outgoing.load(Ordering::Relaxed) {
            if let Some(last) = bytes.last_mut() {
                *last ^= 1;
            }
        }
        Pin::new(&mut self.io).poll_write(cx, &bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A producer has published and the peer answers with this, made of the encoded OK. What the publish and the connection
/// end with.
async fn answered(plan: &Plan, spoil: impl FnOnce(&mut Peer, Vec<u8>) -> Vec<u8>) -> (Error, Error) {
    let (producer, mut peer) = plan.producer(&MemoryNetwork::new()).await;
    let publishing = tokio::spawn({
        let producer = producer.clone();
        async move { producer.publish("orders", "one").await.unwrap_err() }
    });
    peer.command().await.unwrap();
    let wire = peer.encode(&frame(&ok())).to_vec();
    let wire = spoil(&mut peer, wire);
    peer.write(&wire).await;
    drop(peer);
    let failure = lost(&producer).await;
    assert_eq!(failure.address(), Some(ADDRESS));
    let published = publishing.await.unwrap();
    assert_eq!(published.kind(), ErrorKind::Unknown);
    assert!(
        chain(&published).contains(&failure.to_string()),
        "{}",
        chain(&published)
    );
    (published, failure)
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_decompressed_breaks_the_protocol_and_leaves_the_publish_unknown() {
    for (compression, says) in [(Compression::Snappy, "checksum"), (Plan::DEFLATE, "deflate")] {
        for plan in [Plan::plain(compression), Plan::full(compression)] {
            let (_, failure) = answered(&plan, |_, mut wire| {
                match compression {
                    // The checksum behind type and length.
                    Compression::Snappy => wire[4] ^= 1,
                    // A type of block that does not exist.
                    _ => wire[0] |= 0b110,
                }
                wire
            })
            .await;
            let text = chain(&failure);
            assert_eq!(
                (failure.kind(), failure.step()),
                (ErrorKind::Protocol, Some(Step::Read)),
                "{text}"
            );
            assert!(text.contains("cannot be decoded") && text.contains(says), "{text}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn garbage_instead_of_an_answer_breaks_the_protocol() {
    for plan in Plan::all().into_iter().chain([Plan::full(Compression::None)]) {
        let garbage = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n";
        for encoded in [false, true] {
            let (_, failure) = answered(&plan, |peer, _| match encoded {
                true => peer.encode(garbage).to_vec(),
                false => garbage.to_vec(),
            })
            .await;
            assert_eq!(
                (failure.kind(), failure.step()),
                (ErrorKind::Protocol, Some(Step::Read))
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_within_a_chunk_is_lost() {
    for plan in Plan::all() {
        let (_, failure) = answered(&plan, |_, mut wire| {
            // Enough to begin with, and for deflate still no frame.
            wire.truncate(2);
            wire
        })
        .await;
        assert_eq!(
            (failure.kind(), failure.step()),
            (ErrorKind::ConnectionLost, Some(Step::Read))
        );
    }
}

/// The peer's TLS finds that somebody is in between, and says so by an alert.
#[tokio::test(start_paused = true)]
async fn an_alert_after_the_handshake_is_told_as_what_it_is() {
    for compression in [Compression::None, Compression::Snappy, Plan::DEFLATE] {
        let (network, tampering) = (MemoryNetwork::new(), Arc::<AtomicBool>::default());
        let plan = Plan::full(compression);
        let between = |io| -> BoxIo {
            let (incoming, outgoing) = (Arc::clone(&tampering), Arc::default());
            Box::new(Tampered { io, incoming, outgoing })
        };
        let (producer, mut peer) = plan.producer_through(&network, between).await;
        tampering.store(true, Ordering::Relaxed);
        let publishing = tokio::spawn({
            let producer = producer.clone();
            async move { producer.publish("orders", "one").await.unwrap_err() }
        });
        assert!(peer.command().await.is_none());
        let failure = lost(&producer).await;
        let text = chain(&failure);
        assert_eq!(
            (failure.kind(), failure.step()),
            (ErrorKind::Protocol, Some(Step::Tls)),
            "{text}"
        );
        assert!(text.contains("BadRecordMac") && text.contains(ADDRESS), "{text}");
        assert_eq!(publishing.await.unwrap().kind(), ErrorKind::Unknown);
    }
}

/// Here it is ours that finds out.
#[tokio::test(start_paused = true)]
async fn a_record_of_tls_that_was_tampered_with_breaks_the_protocol() {
    for compression in [Compression::None, Compression::Snappy, Plan::DEFLATE] {
        let (network, tampering) = (MemoryNetwork::new(), Arc::<AtomicBool>::default());
        let plan = Plan::full(compression);
        let between = |io| -> BoxIo {
            let (incoming, outgoing) = (Arc::default(), Arc::clone(&tampering));
            Box::new(Tampered { io, incoming, outgoing })
        };
        let (producer, mut peer) = plan.producer_through(&network, between).await;
        tampering.store(true, Ordering::Relaxed);
        peer.send(&heartbeat()).await;
        let failure = lost(&producer).await;
        let text = chain(&failure);
        assert_eq!(
            (failure.kind(), failure.step()),
            (ErrorKind::Protocol, Some(Step::Read)),
            "{text}"
        );
        assert!(text.contains("cannot be decoded"), "{text}");
    }
}

/// More than a pipe takes and less than it and the buffers of a stream together, so that only a flush is stuck.
fn noise() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(1);
    std::iter::repeat_with(|| random.u8(..)).take(100_000).collect()
}

fn all() -> Vec<Plan> {
    let mut plans = Plan::all().to_vec();
    plans.extend([
        Plan::plain(Compression::Snappy),
        Plan::plain(Plan::DEFLATE),
        Plan::full(Compression::None),
    ]);
    plans
}

#[tokio::test(start_paused = true)]
async fn n1_a_peer_that_takes_nothing_is_dead_although_it_talks_and_our_buffers_take_more() {
    for plan in all() {
        let network = MemoryNetwork::new();
        let connection = plan.connection(&network).heartbeat_interval(INTERVAL);
        let (producer, mut peer) = plan.producer_with(&network, connection).await;
        let talking = tokio::spawn(async move {
            loop {
                peer.send(&heartbeat()).await;
                sleep(SECOND).await;
            }
        });
        sleep(3 * SECOND).await;
        let begun = Instant::now();
        let publishing = tokio::spawn({
            let producer = producer.clone();
            async move { producer.publish("orders", noise()).await }
        });
        let failure = lost(&producer).await;
        let waited = begun.elapsed();
        assert_eq!(
            (failure.kind(), failure.step()),
            (ErrorKind::ConnectionLost, Some(Step::Write)),
            "{failure} after {waited:?}"
        );
        assert!(
            waited >= 2 * INTERVAL && waited <= 2 * INTERVAL + SECOND / 10,
            "{waited:?}"
        );
        publishing.abort();
        talking.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn n1_a_peer_that_takes_little_at_a_time_is_alive() {
    for plan in [
        Plan::plain(Compression::None),
        Plan::plain(Compression::Snappy),
        Plan::plain(Plan::DEFLATE),
    ] {
        let network = MemoryNetwork::new();
        let connection = plan.connection(&network).heartbeat_interval(INTERVAL);
        let (producer, mut peer) = plan.producer_with(&network, connection).await;
        let publishing = tokio::spawn({
            let producer = producer.with_publish_timeout(300 * SECOND);
            async move { producer.publish("orders", noise()).await }
        });
        // The flush takes longer than two intervals.
        for _ in 0..60 {
            peer.send(&heartbeat()).await;
            peer.take(1000).await.unwrap();
            sleep(SECOND).await;
        }
        peer.command().await.unwrap();
        peer.send(&ok()).await;
        publishing.await.unwrap().unwrap();
        assert_eq!(producer.stats().nsqds[0].reconnections, 0);
    }
}
