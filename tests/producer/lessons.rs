//! What users of other clients have met, where no other test of this target bears its number.

use std::io;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_nsq::test_server::Nsqd;
use async_nsq::transport::MemoryNetwork;
use async_nsq::{ConnectionConfig, Producer};
use tracing::Dispatch;
use tracing::subscriber::DefaultGuard;

use crate::support::{Command, ScriptedNsqd, settle};
use crate::{LARGE, large, publish};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn lesson_06_answers_are_read_while_a_write_is_blocked_and_the_other_way_round() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    let first = publish(&producer, "a", "first");
    settle().await;
    let blocked = publish(&producer, "b", large());
    settle().await;
    // nsqd takes no more of the large one than it must, and answers the first.
    assert_eq!(peer.command().await, Command::publish("a", "first"));
    peer.ok().await;
    first.await.unwrap().unwrap();
    assert!(!blocked.is_finished());
    // It goes on reading, and keeps its answer to itself.
    assert_eq!(peer.command().await.bodies()[0].len(), LARGE);
    let next = publish(&producer, "c", "next");
    assert_eq!(peer.command().await, Command::publish("c", "next"));
    peer.ok().await;
    peer.ok().await;
    blocked.await.unwrap().unwrap();
    next.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn lesson_07_a_flood_waits_for_room_and_none_of_it_times_out() {
    let mut nsqd = ScriptedNsqd::start();
    let builder = nsqd.producer().max_pending_messages(100);
    let (producer, mut peer) = nsqd.connect_with(builder).await;
    // A tenth of a second for each command: an nsqd with a slow disk.
    let server = tokio::spawn(async move {
        let mut seen = 0;
        while let Some(command) = peer.next().await {
            tokio::time::sleep(SECOND / 10).await;
            seen += command.bodies().len();
            peer.ok().await;
        }
        seen
    });
    for n in 0..10_000u32 {
        producer.enqueue("a", n.to_string()).await.unwrap();
        assert!(producer.stats().pending_messages <= 100);
    }
    assert!(producer.shutdown(60 * SECOND).await.is_clean());
    let stats = producer.stats();
    assert_eq!((stats.ok, stats.not_sent, stats.unknown), (10_000, 0, 0));
    assert_eq!(server.await.unwrap(), 10_000);
}

#[tokio::test(start_paused = true)]
async fn lesson_09_what_was_enqueued_and_flushed_has_arrived() {
    let network = MemoryNetwork::new();
    let nsqd = Nsqd::builder().start_in(&network, "nsqd:4150").await.unwrap();
    let producer = Producer::builder()
        .nsqd("nsqd:4150")
        .connection(ConnectionConfig::new().connector(network.connector()))
        .connect()
        .await
        .unwrap();
    for n in 0..10_000u32 {
        producer.enqueue("metrics", n.to_string()).await.unwrap();
    }
    producer.flush(60 * SECOND).await.unwrap();
    assert_eq!(nsqd.topic("metrics").unwrap().message_count, 10_000);
}

/// Collects what is logged in this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn of_warnings() -> (Self, DefaultGuard) {
        /// tracing decides once for each line of code whether anybody listens, and while it knows of one listener only, it
        /// asks the thread that gets there first: another test's. With two that never end, all of them are asked.
        static OTHERS: OnceLock<[Dispatch; 2]> = OnceLock::new();
        OTHERS.get_or_init(|| [Self::default().listener(), Self::default().listener()]);
        let log = Self::default();
        let guard = tracing::dispatcher::set_default(&log.listener());
        (log, guard)
    }

    fn listener(&self) -> Dispatch {
        let writer = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::WARN)
            .with_writer(move || writer.clone())
            .finish();
        Dispatch::new(subscriber)
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn lesson_10_an_intended_close_is_no_error() {
    let (log, _guard) = Log::of_warnings();
    for peer_closes_first in [false, true] {
        let mut nsqd = ScriptedNsqd::start();
        let (producer, mut peer) = nsqd.connect().await;
        let published = publish(&producer, "a", "1");
        peer.command().await;
        let ending = tokio::spawn({
            let producer = producer.clone();
            async move { producer.shutdown(10 * SECOND).await }
        });
        settle().await;
        peer.ok().await;
        if peer_closes_first {
            drop(peer);
        } else {
            peer.expect_close().await;
        }
        published.await.unwrap().unwrap();
        assert!(ending.await.unwrap().is_clean());
    }
    assert_eq!(log.text(), "");
    // And the log is not deaf: a connection that is lost is told.
    let mut nsqd = ScriptedNsqd::start();
    let (_producer, peer) = nsqd.connect().await;
    drop(peer);
    settle().await;
    assert!(log.text().contains("producer is not connected"), "{}", log.text());
}

#[tokio::test(start_paused = true)]
async fn lesson_17_a_producer_that_ends_sends_nothing_but_what_was_pending() {
    let mut nsqd = ScriptedNsqd::start();
    let (producer, mut peer) = nsqd.connect().await;
    producer.enqueue("a", "1").await.unwrap();
    let server = tokio::spawn(async move { peer.serve().await });
    producer.shutdown(SECOND).await;
    // No CLS, which nsqd refuses to who has not subscribed.
    assert_eq!(server.await.unwrap(), [Command::publish("a", "1")]);
}
