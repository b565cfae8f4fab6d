//! N1, N2 and heartbeats: a connection that is dead is noticed and replaced, for ever.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nsq::transport::{Connecting, Connector, MemoryConnector};
use async_nsq::{ErrorKind, Step};
use tokio::time::Instant;

use crate::support::{Command, Peer, ScriptedNsqd, settle};
use crate::{cause, large, publish};

const SECOND: Duration = Duration::from_secs(1);

/// The longest wait before the first attempt after a healthy connection.
const FIRST_DELAY: Duration = Duration::from_millis(200);

#[tokio::test(start_paused = true)]
async fn heartbeats_are_answered_while_idle() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    for _ in 0..20 {
        tokio::time::sleep(30 * SECOND).await;
        peer.heartbeat().await;
        let asked = Instant::now();
        assert_eq!(peer.next().await, Some(Command::Nop));
        assert_eq!(asked.elapsed(), Duration::ZERO);
    }
    assert!(producer.is_connected());
}

#[tokio::test(start_paused = true)]
async fn heartbeats_are_answered_while_the_pipeline_is_full() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().max_pending_messages(4).publish_timeout(3600 * SECOND);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let all: Vec<_> = (0..10).map(|n| publish(&producer, "a", n.to_string())).collect();
    peer.command().await;
    for _ in 0..10 {
        tokio::time::sleep(30 * SECOND).await;
        peer.heartbeat().await;
        assert_eq!(peer.next().await, Some(Command::Nop));
    }
    let server = tokio::spawn(async move {
        peer.ok().await;
        peer.serve().await
    });
    for published in all {
        published.await.unwrap().unwrap();
    }
    drop(producer);
    server.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn heartbeats_between_answers_shift_nothing() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().batching(false);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let all = ["1", "2"].map(|body| publish(&producer, "a", body));
    peer.heartbeat().await;
    peer.ok().await;
    peer.heartbeat().await;
    peer.heartbeat().await;
    settle().await;
    assert!(all[0].is_finished() && !all[1].is_finished());
    peer.ok().await;
    for published in all {
        published.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn n1_a_silent_peer_is_replaced_after_two_intervals() {
    let mut nsqd = ScriptedNsqd::start();
    let connection = nsqd.connection().heartbeat_interval(10 * SECOND);
    let builder = nsqd.producer().connection(connection);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    tokio::time::sleep(7 * SECOND).await;
    peer.heartbeat().await;
    let last_heard = Instant::now();
    let published = publish(&producer, "a", "one");
    let error = published.await.unwrap().unwrap_err();
    assert_eq!(last_heard.elapsed().as_millis(), 20_000);
    assert_eq!(error.kind(), ErrorKind::Unknown);
    assert_eq!(
        (cause(&error).kind(), cause(&error).step()),
        (ErrorKind::ConnectionLost, Some(Step::Heartbeat))
    );
    assert!(!producer.is_connected());

    let mut replacement = nsqd.accept().await;
    assert!(last_heard.elapsed() <= 20 * SECOND + FIRST_DELAY + Duration::from_millis(2));
    let published = publish(&producer, "a", "two");
    assert_eq!(replacement.command().await, Command::publish("a", "two"));
    replacement.ok().await;
    published.await.unwrap().unwrap();
    drop(peer);
}

#[tokio::test(start_paused = true)]
async fn n1_lesson_04_a_peer_that_takes_nothing_is_replaced_although_it_talks() {
    let mut nsqd = ScriptedNsqd::start();
    let connection = nsqd.connection().heartbeat_interval(10 * SECOND);
    let builder = nsqd.producer().connection(connection);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    tokio::time::sleep(3 * SECOND).await;
    let begun = Instant::now();
    let published = publish(&producer, "a", large());
    let talking = tokio::spawn(async move {
        loop {
            peer.heartbeat().await;
            tokio::time::sleep(SECOND).await;
        }
    });
    settle().await;
    while producer.is_connected() {
        settle().await;
    }
    // The clock may have been read up to a millisecond's tick apart.
    let waited = begun.elapsed();
    assert!(
        waited >= 20 * SECOND && waited <= 20 * SECOND + Duration::from_millis(3),
        "{waited:?}"
    );
    // Not a byte too few had left, so it is sent again.
    let mut replacement = nsqd.accept().await;
    assert_eq!(replacement.command().await.bodies()[0].len(), crate::LARGE);
    replacement.ok().await;
    published.await.unwrap().unwrap();
    talking.abort();
}

#[tokio::test(start_paused = true)]
async fn n1_a_peer_that_talks_but_never_answers_is_replaced() {
    let mut nsqd = ScriptedNsqd::start();
    let connection = nsqd.connection().heartbeat_interval(10 * SECOND);
    let builder = nsqd.producer().connection(connection).publish_timeout(5 * SECOND);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let begun = Instant::now();
    let published = publish(&producer, "a", "one");
    let talking = tokio::spawn(async move {
        loop {
            peer.heartbeat().await;
            tokio::time::sleep(SECOND).await;
        }
    });
    assert_eq!(published.await.unwrap().unwrap_err().kind(), ErrorKind::Unknown);
    assert_eq!(begun.elapsed().as_secs(), 5);

    let mut replacement = nsqd.accept().await;
    let waited = begun.elapsed();
    assert!(waited >= 25 * SECOND && waited <= 50 * SECOND, "{waited:?}");
    let published = publish(&producer, "a", "two");
    assert_eq!(replacement.command().await, Command::publish("a", "two"));
    replacement.ok().await;
    published.await.unwrap().unwrap();
    talking.abort();
}

#[tokio::test(start_paused = true)]
async fn n1_a_slow_peer_is_not_a_dead_one() {
    let mut nsqd = ScriptedNsqd::start();
    let connection = nsqd.connection().heartbeat_interval(10 * SECOND);
    let builder = nsqd.producer().connection(connection).publish_timeout(3600 * SECOND);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    let published = publish(&producer, "a", large());
    // It takes a little and says a word, each just in time.
    let chunk = 50_000;
    for _ in 0..(crate::LARGE - chunk) / chunk {
        tokio::time::sleep(19 * SECOND).await;
        peer.take_bytes(chunk).await;
        peer.heartbeat().await;
    }
    assert_eq!(peer.command().await.bodies()[0].len(), crate::LARGE);
    peer.ok().await;
    published.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn n4_heartbeats_of_a_peer_that_takes_nothing_do_not_pile_up_answers() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let _blocked = publish(&producer, "a", vec![b'x'; 1_000_000]);
    settle().await;
    for _ in 0..200_000 {
        peer.heartbeat().await;
    }
    peer.command().await;
    let mut nops = 0;
    while let Ok(Some(Command::Nop)) = tokio::time::timeout(SECOND, peer.next()).await {
        nops += 1;
    }
    assert!((1..=2).contains(&nops), "{nops} answers");
}

/// Tells when connections are tried.
#[derive(Clone, Debug)]
struct Dials {
    inner: MemoryConnector,
    at: Arc<Mutex<Vec<Instant>>>,
}

impl Connector for Dials {
    fn connect(&self, address: &str) -> Connecting {
        self.at.lock().unwrap().push(Instant::now());
        self.inner.connect(address)
    }
}

impl Dials {
    fn new(nsqd: &ScriptedNsqd) -> Self {
        Self {
            inner: nsqd.network().connector(),
            at: Arc::default(),
        }
    }

    fn count(&self) -> usize {
        self.at.lock().unwrap().len()
    }

    /// The time from `since` to the next dial, from that to the one after it, and so on. Forgets them.
    fn delays(&self, since: Instant) -> Vec<Duration> {
        let at = std::mem::take(&mut *self.at.lock().unwrap());
        std::iter::once(since)
            .chain(at.iter().copied())
            .zip(&at)
            .map(|(before, at)| *at - before)
            .collect()
    }
}

fn assert_backs_off(delays: &[Duration]) {
    let mut step = FIRST_DELAY;
    for (attempt, delay) in delays.iter().enumerate() {
        let tick = Duration::from_millis(2);
        assert!(
            *delay >= step / 2 && *delay <= step + tick,
            "attempt {attempt}: {delay:?} of {step:?}"
        );
        step = (2 * step).min(60 * SECOND);
    }
}

#[tokio::test(start_paused = true)]
async fn n2_lesson_14_reconnects_for_ever_with_growing_delays_and_starts_over_when_healthy() {
    let mut nsqd = ScriptedNsqd::start();
    let dials = Dials::new(&nsqd);
    let builder = nsqd.producer().connection(nsqd.connection().connector(dials.clone()));
    let (producer, peer) = nsqd.connect_with(builder).await;
    tokio::time::sleep(15 * SECOND).await;
    dials.delays(Instant::now());
    let network = nsqd.stop();
    let lost = Instant::now();
    drop(peer);
    tokio::time::sleep(3600 * SECOND).await;
    let delays = dials.delays(lost);
    assert!(delays.len() >= 60, "{} attempts in an hour", delays.len());
    assert_backs_off(&delays);

    let mut nsqd = ScriptedNsqd::start_in(&network);
    let mut peer = nsqd.accept().await;
    let published = publish(&producer, "a", "after the outage");
    assert_eq!(peer.command().await, Command::publish("a", "after the outage"));
    peer.ok().await;
    published.await.unwrap().unwrap();
    tokio::time::sleep(15 * SECOND).await;
    dials.delays(Instant::now());
    let lost = Instant::now();
    drop(peer);
    nsqd.accept().await;
    assert_backs_off(&dials.delays(lost));
}

#[tokio::test(start_paused = true)]
async fn n2_a_peer_that_accepts_and_drops_is_backed_off_from_too() {
    let mut nsqd = ScriptedNsqd::start();
    let dials = Dials::new(&nsqd);
    let builder = nsqd.producer().connection(nsqd.connection().connector(dials.clone()));
    let (_producer, peer) = nsqd.connect_with(builder).await;
    drop(peer);
    for _ in 0..15 {
        drop(nsqd.accept().await);
    }
    assert_eq!(dials.count(), 16);
    let first = dials.at.lock().unwrap().remove(0);
    assert_backs_off(&dials.delays(first));
}

#[tokio::test(start_paused = true)]
async fn a_first_connection_that_fails_is_an_error_of_connect() {
    let network = async_nsq::transport::MemoryNetwork::new();
    let nowhere = || async_nsq::ConnectionConfig::new().connector(network.connector());
    let error = async_nsq::Producer::builder()
        .nsqd("nsqd.example:4150")
        .connection(nowhere())
        .connect()
        .await
        .unwrap_err();
    assert_eq!((error.kind(), error.step()), (ErrorKind::Unreachable, Some(Step::Dial)));
    assert_eq!(error.address(), Some("nsqd.example:4150"));
    assert!(error.to_string().contains("is nsqd running there?"), "{error}");
    // An option out of range is found before anything is tried.
    let error = async_nsq::Producer::builder()
        .connection(nowhere())
        .connect()
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.step()),
        (ErrorKind::Invalid, Some(Step::Configure))
    );
}

#[tokio::test(start_paused = true)]
async fn a_first_connection_that_fails_is_not_tried_again() {
    let mut nsqd = ScriptedNsqd::start();
    let dials = Dials::new(&nsqd);
    let builder = nsqd.producer().connection(nsqd.connection().connector(dials.clone()));
    let refuse = async {
        let mut peer = nsqd.accept_raw().await;
        peer.read_identify().await;
        peer.error("E_BAD_BODY IDENTIFY failed to decode JSON body").await;
        drop(peer);
    };
    let (connected, ()) = tokio::join!(builder.connect(), refuse);
    assert_eq!(connected.unwrap_err().kind(), ErrorKind::Rejected);
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(dials.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_connect_leaves_nothing_behind() {
    let mut nsqd = ScriptedNsqd::start();
    let dials = Dials::new(&nsqd);
    let builder = nsqd.producer().connection(nsqd.connection().connector(dials.clone()));
    let connecting = tokio::spawn(builder.connect());
    let mut peer: Peer = nsqd.accept_raw().await;
    peer.read_identify().await;
    let begun = Instant::now();
    connecting.abort();
    peer.expect_close().await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(dials.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_answer_the_handshake_is_given_up_in_time() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer();
    let begun = Instant::now();
    let mute = async {
        let mut peer = nsqd.accept_raw().await;
        peer.read_identify().await;
        peer.expect_close().await;
    };
    let (connected, ()) = tokio::join!(builder.connect(), mute);
    let error = connected.unwrap_err();
    assert_eq!(begun.elapsed().as_millis(), 5_000);
    assert_eq!(
        (error.kind(), error.step()),
        (ErrorKind::ConnectionLost, Some(Step::Identify))
    );
    assert!(error.to_string().contains("handshake_timeout"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_during_the_handshake_is_answered() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer();
    let slow = async {
        let mut peer = nsqd.accept_raw().await;
        peer.read_identify().await;
        peer.heartbeat().await;
        assert_eq!(peer.next().await, Some(Command::Nop));
        peer.respond(b"OK").await;
        peer
    };
    let (producer, mut peer) = tokio::join!(builder.connect(), slow);
    let published = publish(&producer.unwrap(), "a", "one");
    peer.command().await;
    peer.ok().await;
    published.await.unwrap().unwrap();
}
