//! Messages that come again although they were finished.

use std::collections::HashSet;
use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nsq::{BatchOptions, BoxError, DuplicateStore, DuplicateWindow, Handler, HandlerError, Message, StoreFuture};
use tokio::sync::Semaphore;
use tokio::time::sleep;

use crate::scripted::{Nsqd, SECOND, delivery, fin, req, text};
use crate::support::{Command, Peer, frames, settle};

const MINUTE: Duration = Duration::from_secs(60);

fn window() -> DuplicateWindow {
    DuplicateWindow::new(100, MINUTE)
}

/// What was handled, and leave to go on: handlers wait for a permit each.
#[derive(Clone)]
struct Log {
    bodies: Arc<Mutex<Vec<String>>>,
    permits: Arc<Semaphore>,
}

impl Log {
    fn new(permits: usize) -> Self {
        Self {
            bodies: Arc::default(),
            permits: Arc::new(Semaphore::new(permits)),
        }
    }

    fn handler(&self) -> impl Handler {
        let log = self.clone();
        move |message: Message| {
            let log = log.clone();
            log.bodies.lock().unwrap().push(text(&message).to_owned());
            async move {
                log.permits.acquire().await?.forget();
                match text(&message) {
                    "bad" => Err(BoxError::from(HandlerError::requeue().without_backoff())),
                    _ => Ok(()),
                }
            }
        }
    }

    fn bodies(&self) -> Vec<String> {
        self.bodies.lock().unwrap().clone()
    }
}

async fn accept(nsqd: &mut Nsqd) -> Peer {
    let mut peer = nsqd.accept_unproven().await;
    assert!(matches!(peer.command().await, Command::Rdy(_)));
    peer
}

/// The commands that are no RDY.
async fn answers(peer: &mut Peer) -> Vec<Command> {
    let mut commands = peer.drain().await;
    commands.retain(|command| !matches!(command, Command::Rdy(_)));
    crate::scripted::sorted(commands)
}

/// Answers CLS. Returns the commands that came before the end and are no RDY.
async fn close_wait(peer: &mut Peer) -> Vec<Command> {
    let mut commands = peer.close_wait().await;
    commands.retain(|command| !matches!(command, Command::Rdy(_)));
    commands
}

#[tokio::test(start_paused = true)]
async fn lesson_29_a_message_whose_fin_was_lost_with_the_connection_is_not_handled_again() {
    let mut nsqd = Nsqd::start();
    let log = Log::new(0);
    let builder = nsqd.consumer().max_in_flight(10).skip_duplicates(window());
    let consumer = builder.start(log.handler()).await.unwrap();
    let mut peer = accept(&mut nsqd).await;
    peer.deliver([1]).await;
    settle().await;
    drop(peer);
    let mut peer = accept(&mut nsqd).await;
    log.permits.add_permits(10);
    settle().await;
    peer.send_bytes(&frames(&[delivery(1, 2, "1"), delivery(2, 1, "2")]))
        .await;
    settle().await;
    assert_eq!(answers(&mut peer).await, [fin(1), fin(2)]);
    assert_eq!(log.bodies(), ["1", "2"]);
    let stats = consumer.stats();
    assert_eq!((stats.duplicates, stats.in_flight, stats.backoff_level), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_comes_again_while_it_is_handled_waits_for_the_outcome() {
    let mut nsqd = Nsqd::start();
    let log = Log::new(0);
    let builder = nsqd.consumer().max_in_flight(10).skip_duplicates(window());
    let consumer = builder.start(log.handler()).await.unwrap();
    let mut peer = accept(&mut nsqd).await;
    peer.send_bytes(&frames(&[delivery(1, 1, "good"), delivery(2, 1, "bad")]))
        .await;
    settle().await;
    drop(peer);
    let mut peer = accept(&mut nsqd).await;
    peer.send_bytes(&frames(&[delivery(1, 2, "good"), delivery(2, 2, "bad")]))
        .await;
    settle().await;
    assert_eq!(answers(&mut peer).await, []);
    assert_eq!((log.bodies().len(), consumer.stats().in_flight), (2, 2));
    log.permits.add_permits(2);
    settle().await;
    assert_eq!(answers(&mut peer).await, [fin(1)]);
    assert_eq!(log.bodies(), ["good", "bad", "bad"], "what failed is handled again");
    log.permits.add_permits(1);
    settle().await;
    assert_eq!(answers(&mut peer).await, [req(2, 180_000)]);
    assert_eq!((consumer.stats().duplicates, consumer.stats().in_flight), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_one_connection_delivers_twice_is_answered_once() {
    let mut nsqd = Nsqd::start();
    let log = Log::new(0);
    let builder = nsqd.consumer().max_in_flight(10).skip_duplicates(window());
    let consumer = builder.start(log.handler()).await.unwrap();
    let mut peer = accept(&mut nsqd).await;
    // nsqd's patience has passed twice, and it knows but one message of this id.
    for attempts in 1..=3 {
        peer.send_bytes(&frames(&[delivery(1, attempts, "good"), delivery(2, attempts, "bad")]))
            .await;
    }
    settle().await;
    assert_eq!(consumer.stats().in_flight, 4, "a third delivery replaces the second");
    log.permits.add_permits(2);
    settle().await;
    assert_eq!(answers(&mut peer).await, [fin(1), req(2, 90_000)]);
    assert_eq!(log.bodies(), ["good", "bad"]);
    assert_eq!((consumer.stats().duplicates, consumer.stats().in_flight), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_is_stuck_does_not_use_up_what_may_be_in_flight() {
    let mut nsqd = Nsqd::start();
    let log = Log::new(0);
    let builder = nsqd.consumer().max_in_flight(10).skip_duplicates(window());
    let consumer = builder.start(log.handler()).await.unwrap();
    let mut peer = accept(&mut nsqd).await;
    for attempts in 1..=30 {
        peer.send_bytes(&frames(&[delivery(1, attempts, "stuck")])).await;
        settle().await;
    }
    peer.deliver([2]).await;
    settle().await;
    assert_eq!((log.bodies().len(), consumer.stats().in_flight), (2, 3));
    assert_eq!(consumer.stats().connections, 1);
}

#[tokio::test(start_paused = true)]
async fn a_key_of_the_body_recognises_what_is_published_to_two_nsqds() {
    let mut nsqds = Nsqd::start_many(2);
    let log = Log::new(100);
    let builder = nsqds[0]
        .consumer()
        .nsqd("nsqd-1:4150")
        .max_in_flight(10)
        .skip_duplicates(window().key(|message| message.body().clone()));
    let consumer = builder.start(log.handler()).await.unwrap();
    let mut peers = Vec::new();
    for nsqd in &mut nsqds {
        peers.push(accept(nsqd).await);
    }
    for (peer, ids) in peers.iter_mut().zip([[1, 2], [8, 9]]) {
        peer.send_bytes(&frames(&[delivery(ids[0], 1, "a"), delivery(ids[1], 1, "b")]))
            .await;
    }
    settle().await;
    assert_eq!(answers(&mut peers[0]).await, [fin(1), fin(2)]);
    assert_eq!(answers(&mut peers[1]).await, [fin(8), fin(9)]);
    let mut bodies = log.bodies();
    bodies.sort();
    assert_eq!(bodies, ["a", "b"]);
    assert_eq!((consumer.stats().duplicates, consumer.stats().finished), (2, 4));
}

#[tokio::test(start_paused = true)]
async fn a_window_forgets_by_count_and_by_age_and_a_key_that_panics_is_no_key() {
    let mut nsqd = Nsqd::start();
    let log = Log::new(100);
    let window = DuplicateWindow::new(2, 5 * SECOND).key(|message| {
        assert!(text(message) != "keyless", "on purpose");
        message.body().clone()
    });
    let builder = nsqd.consumer().max_in_flight(10).skip_duplicates(window);
    let _consumer = builder.start(log.handler()).await.unwrap();
    let mut peer = accept(&mut nsqd).await;
    for (number, body) in ["a", "b", "a", "c", "a", "keyless", "keyless"].into_iter().enumerate() {
        peer.send_bytes(&frames(&[delivery(number as u64, 1, body)])).await;
        settle().await;
    }
    sleep(6 * SECOND).await;
    peer.send_bytes(&frames(&[delivery(9, 1, "c")])).await;
    settle().await;
    assert_eq!(log.bodies(), ["a", "b", "c", "a", "keyless", "keyless", "c"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_finished_by_hand_in_a_stream_or_in_a_batch_is_remembered_too() {
    let window = window().key(|message| message.body().clone());
    let mut nsqd = Nsqd::start();
    let builder = nsqd.consumer().max_in_flight(10).skip_duplicates(window.clone());
    let mut messages = builder.clone().stream().await.unwrap();
    let mut peer = accept(&mut nsqd).await;
    peer.send_bytes(&frames(&[
        delivery(1, 1, "a"),
        delivery(2, 1, "b"),
        delivery(3, 1, "a"),
    ]))
    .await;
    messages.next().await.unwrap().finish();
    // The third waits for nobody now, and the second comes in between.
    drop(messages.next().await.unwrap());
    assert!(tokio::time::timeout(SECOND, messages.next()).await.is_err());
    assert_eq!(answers(&mut peer).await, [fin(1), fin(3), req(2, 90_000)]);
    drop(messages);
    peer.close_wait().await;

    // Clones share what they remember.
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&log);
    let handler = move |batch: Vec<Message>| {
        seen.lock()
            .unwrap()
            .extend(batch.iter().map(|message| text(message).to_owned()));
        async { Ok::<(), BoxError>(()) }
    };
    let options = BatchOptions::new().size(2);
    let _consumer = builder.start_batches(options, handler).await.unwrap();
    let mut peer = accept(&mut nsqd).await;
    peer.send_bytes(&frames(&[
        delivery(4, 1, "a"),
        delivery(5, 1, "b"),
        delivery(6, 1, "b"),
    ]))
    .await;
    sleep(SECOND).await;
    assert_eq!(answers(&mut peer).await, [fin(4), fin(5), fin(6)]);
    assert_eq!(*log.lock().unwrap(), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn c7_what_waits_for_another_is_given_back_at_once_and_that_one_may_end() {
    let mut nsqd = Nsqd::start();
    let log = Log::new(0);
    let window = window().key(|message| message.body().clone());
    let builder = nsqd.consumer().max_in_flight(10).skip_duplicates(window);
    let consumer = builder.start(log.handler()).await.unwrap();
    let mut peer = accept(&mut nsqd).await;
    peer.send_bytes(&frames(&[delivery(1, 1, "a"), delivery(2, 1, "a")]))
        .await;
    settle().await;
    let (report, seen) = tokio::join!(consumer.shutdown(MINUTE), async {
        settle().await;
        log.permits.add_permits(1);
        close_wait(&mut peer).await
    });
    assert_eq!(seen, [fin(1), req(2, 0)]);
    assert!(report.is_clean());
    assert_eq!((report.returned, report.duplicates), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn c4_a_duplicate_as_the_probe_of_backoff_is_a_success() {
    let mut nsqd = Nsqd::start();
    let handler = |message: Message| async move {
        match text(&message) {
            "bad" => Err(BoxError::from("no")),
            _ => Ok(()),
        }
    };
    let window = window().key(|message| message.body().clone());
    let builder = nsqd.consumer().max_in_flight(10).skip_duplicates(window);
    let consumer = builder.start(handler).await.unwrap();
    let mut peer = accept(&mut nsqd).await;
    peer.send_bytes(&frames(&[delivery(1, 1, "a"), delivery(2, 1, "bad")]))
        .await;
    settle().await;
    assert_eq!(consumer.stats().backoff_level, 1);
    sleep(5 * SECOND).await;
    peer.drain().await;
    peer.send_bytes(&frames(&[delivery(3, 1, "a")])).await;
    settle().await;
    assert_eq!(consumer.stats().backoff_level, 0);
}

/// A store that takes its time, and fails or panics when told to.
#[derive(Clone, Default)]
struct Slow {
    keys: Arc<Mutex<HashSet<Vec<u8>>>>,
    failing: Arc<AtomicUsize>,
}

impl Slow {
    async fn call(&self) -> Result<(), BoxError> {
        sleep(SECOND).await;
        match self.failing.load(Ordering::Relaxed) {
            0 => Ok(()),
            1 => Err("the store is down".into()),
            2 => panic!("on purpose"),
            _ => pending().await,
        }
    }
}

impl DuplicateStore for Slow {
    fn is_finished<'a>(&'a self, key: &'a [u8]) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            self.call().await?;
            Ok(self.keys.lock().unwrap().contains(key))
        })
    }

    fn record_finished<'a>(&'a self, key: &'a [u8]) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            self.call().await?;
            self.keys.lock().unwrap().insert(key.to_vec());
            Ok(())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_of_ones_own_is_asked_before_the_handler_and_told_before_fin() {
    let mut nsqd = Nsqd::start();
    let (store, log) = (Slow::default(), Log::new(100));
    let window = DuplicateWindow::in_store(store.clone()).key(|message| message.body().clone());
    let builder = nsqd.consumer().max_in_flight(10).skip_duplicates(window);
    let consumer = builder.start(log.handler()).await.unwrap();
    let mut peer = accept(&mut nsqd).await;
    peer.send_bytes(&frames(&[delivery(1, 1, "a"), delivery(2, 1, "a")]))
        .await;
    sleep(SECOND / 2).await;
    assert!(log.bodies().is_empty());
    sleep(SECOND).await;
    assert_eq!(log.bodies(), ["a"]);
    assert_eq!(answers(&mut peer).await, [], "not recorded yet");
    sleep(SECOND).await;
    assert_eq!(answers(&mut peer).await, [fin(1), fin(2)]);
    peer.send_bytes(&frames(&[delivery(3, 1, "a")])).await;
    sleep(2 * SECOND).await;
    assert_eq!(answers(&mut peer).await, [fin(3)]);
    assert_eq!((log.bodies().len(), consumer.stats().duplicates), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_costs_no_message() {
    for failing in 1..=3 {
        let mut nsqd = Nsqd::start();
        let (store, log) = (Slow::default(), Log::new(100));
        store.failing.store(failing, Ordering::Relaxed);
        let builder = nsqd.consumer().max_in_flight(10);
        let builder = builder.skip_duplicates(DuplicateWindow::in_store(store));
        let _consumer = builder.start(log.handler()).await.unwrap();
        let mut peer = accept(&mut nsqd).await;
        peer.deliver([1]).await;
        sleep(11 * SECOND).await;
        assert_eq!(answers(&mut peer).await, [fin(1)], "{failing}");
        peer.deliver([1]).await;
        sleep(11 * SECOND).await;
        assert_eq!(answers(&mut peer).await, [fin(1)], "{failing}");
        assert_eq!(log.bodies(), ["1", "1"], "rather twice than not at all");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_waits_for_its_store_and_a_finish_by_hand_too() {
    let mut nsqd = Nsqd::start();
    let window = DuplicateWindow::in_store(Slow::default());
    let builder = nsqd.consumer().max_in_flight(10).skip_duplicates(window);
    let mut messages = builder.stream().await.unwrap();
    let mut peer = accept(&mut nsqd).await;
    peer.deliver([1, 2, 3]).await;
    let first = messages.next().await.unwrap();
    let finishing = first.finish();
    assert!(tokio::time::timeout(SECOND / 2, messages.next()).await.is_err());
    assert_eq!(answers(&mut peer).await, []);
    finishing.await.unwrap();
    assert_eq!(answers(&mut peer).await, [fin(1)]);
    // The second is being asked for.
    let (report, seen) = tokio::join!(messages.shutdown(MINUTE), close_wait(&mut peer));
    assert_eq!(seen, [req(2, 0), req(3, 0)]);
    assert!(report.is_clean());
    assert_eq!(report.returned, 2);
}

#[tokio::test(start_paused = true)]
async fn a_delivery_that_waits_for_one_that_is_lost_is_handled() {
    let mut nsqd = Nsqd::start();
    let (sender, mut taken) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |message: Message| {
        let sender = sender.clone();
        async move {
            if message.attempts() == 1 {
                sender.send(message.take_over())?;
            }
            Ok::<(), BoxError>(())
        }
    };
    let builder = nsqd.consumer().max_in_flight(10).skip_duplicates(window());
    let consumer = builder
        .max_backoff_duration(Duration::ZERO)
        .start(handler)
        .await
        .unwrap();
    let granted = br#"{"max_rdy_count":2500,"version":"1.3.0","msg_timeout":10000,"max_msg_timeout":22000}"#;
    let mut peer = nsqd.accept_granting(granted).await;
    peer.deliver([1]).await;
    let first = taken.recv().await.unwrap();
    // Longer than nsqd waits, so it delivers the message again on the same connection.
    sleep(first.time_left() + SECOND).await;
    peer.send_bytes(&frames(&[delivery(1, 2, "1")])).await;
    settle().await;
    assert_eq!(answers(&mut peer).await, []);
    assert!(first.keep_alive_while(sleep(SECOND)).await.is_err());
    drop(first);
    settle().await;
    assert_eq!(answers(&mut peer).await, [fin(1)]);
    assert_eq!(consumer.stats().connections, 1);
    assert_eq!((consumer.stats().in_flight, consumer.stats().duplicates), (0, 0));
}
