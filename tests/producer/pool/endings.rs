//! How a pool begins and ends, and callers that leave.

use async_nsq::{ErrorKind, RoutedMessage, RoutedNsqd, Router, Routing};
use tokio::time::Instant;

use super::{NAMES, Nsqds, SECOND, Served};
use crate::support::settle;
use crate::{cause, poll_once, publish};

#[tokio::test(start_paused = true)]
async fn one_nsqd_is_enough_to_connect() {
    let mut nsqds = Nsqds::start(1);
    let (producer, served) = nsqds.serve(nsqds.producer(3)).await;
    for n in 0..3 {
        producer.publish("t", n.to_string()).await.unwrap();
    }
    assert_eq!(served[0].count(), 3);
    // The others are tried further, and come in when they are there.
    nsqds.open("c:1");
    let third = Served::new(nsqds.accept("c:1").await);
    settle().await;
    producer.publish("t", "3").await.unwrap();
    producer.publish("t", "4").await.unwrap();
    assert_eq!((served[0].count(), third.count()), (4, 1));
}

#[tokio::test(start_paused = true)]
async fn lesson_15_without_any_nsqd_connecting_fails_and_tells_why() {
    let nsqds = Nsqds::start(0);
    let error = nsqds.producer(3).connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("3 of the 3 nsqds fail"), "{error}");
    assert!(NAMES[..3].contains(&cause(&error).address().unwrap()));
}

#[tokio::test(start_paused = true)]
async fn lesson_12_a_lazy_producer_is_ready_once_there_is_an_nsqd() {
    for count in [1, 2] {
        let mut nsqds = Nsqds::start(0);
        let producer = nsqds.producer(count).connect_lazily().unwrap();
        assert!(!producer.is_connected());
        let begun = Instant::now();
        let error = producer.ready(5 * SECOND).await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed().as_secs()), (ErrorKind::Unreachable, 5));
        assert_eq!(cause(&error).kind(), ErrorKind::Unreachable);
        let waits = publish(&producer, "t", "early");
        nsqds.open("a:1");
        let served = Served::new(nsqds.accept("a:1").await);
        producer.ready(60 * SECOND).await.unwrap();
        waits.await.unwrap().unwrap();
        assert_eq!(served.take(), ["early"]);
        producer.shutdown(SECOND).await;
        let error = producer.ready(SECOND).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Shutdown);
    }
}

#[tokio::test(start_paused = true)]
async fn p3_shutdown_sends_what_is_pending_also_elsewhere() {
    let mut nsqds = Nsqds::start(2);
    let (producer, mut peers) = nsqds.connect(nsqds.producer(2).routing(Routing::failover())).await;
    let second = Served::new(peers.remove(1));
    let blocking = publish(&producer, "t", crate::large());
    settle().await;
    let queued = publish(&producer, "t", "m");
    settle().await;
    let ending = producer.clone();
    let ending = tokio::spawn(async move { ending.shutdown(5 * SECOND).await });
    settle().await;
    let late = producer.publish("t", "late").await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::NotSent);
    drop(peers);
    blocking.await.unwrap().unwrap();
    queued.await.unwrap().unwrap();
    assert!(ending.await.unwrap().is_clean());
    assert_eq!(second.count(), 2);
    assert!(second.task.await.is_ok(), "the connection was closed");
}

#[tokio::test(start_paused = true)]
async fn p3_shutdown_ends_in_time_and_counts_what_it_leaves() {
    let mut nsqds = Nsqds::start(2);
    let builder = nsqds.producer(2).at_least_once(true).routing(Routing::failover());
    let (producer, mut peers) = nsqds.connect(builder).await;
    let unanswered = publish(&producer, "t", "m");
    peers[0].command().await;
    let begun = Instant::now();
    let report = producer.shutdown(2 * SECOND).await;
    assert_eq!(begun.elapsed().as_secs(), 2);
    assert_eq!((report.unknown, report.not_sent), (1, 0));
    assert_eq!(unanswered.await.unwrap().unwrap_err().kind(), ErrorKind::Unknown);

    let nsqds = Nsqds::start(0);
    let producer = nsqds.producer(2).connect_lazily().unwrap();
    let waiting = publish(&producer, "t", "m");
    settle().await;
    let report = producer.shutdown(2 * SECOND).await;
    assert_eq!((report.unknown, report.not_sent), (0, 1));
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), ErrorKind::NotSent);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_whose_caller_leaves_goes_on() {
    let mut nsqds = Nsqds::start(2);
    let (producer, mut peers) = nsqds.connect(nsqds.producer(2)).await;
    let published = publish(&producer, "t", "m");
    settle().await;
    {
        let shutdown = producer.shutdown(5 * SECOND);
        let mut shutdown = std::pin::pin!(shutdown);
        assert!(poll_once(shutdown.as_mut()).await.is_none());
    }
    assert_eq!(
        producer.publish("t", "late").await.unwrap_err().kind(),
        ErrorKind::NotSent
    );
    peers[0].command().await;
    peers[0].ok().await;
    published.await.unwrap().unwrap();
    for peer in &mut peers {
        peer.expect_close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_handle_takes_the_connections_with_it() {
    let mut nsqds = Nsqds::start(3);
    let (producer, mut peers) = nsqds.connect(nsqds.producer(3)).await;
    drop(producer);
    for peer in &mut peers {
        peer.expect_close().await;
    }
}

/// Drops a publish after each number of polls, while nsqds die and come back, and looks for traces.
#[tokio::test(start_paused = true)]
async fn p4_a_publish_dropped_at_any_await_leaves_no_trace() {
    for copies in [1, 2] {
        for polls in 0..12 {
            let mut nsqds = Nsqds::start(3);
            let builder = nsqds
                .producer(3)
                .copies(copies)
                .at_least_once(true)
                .max_pending_messages(1)
                .max_pending_bytes(4);
            let (producer, mut peers) = nsqds.connect(builder).await;
            let body = format!("dropped after {polls} polls");
            let mut publishing = Box::pin(producer.publish("t", body));
            for poll in 0..polls {
                assert!(poll_once(publishing.as_mut()).await.is_none());
                settle().await;
                // Unknown at the first, then at the second; then there is none for some time.
                match poll {
                    2 | 4 => {
                        peers.remove(0);
                    }
                    6 => peers.clear(),
                    _ => tokio::time::sleep(SECOND / 20).await,
                }
            }
            drop(publishing);
            let served: Vec<_> = peers.into_iter().map(Served::new).collect();
            let mut others = Vec::new();
            for name in &NAMES[..3 - served.len()] {
                others.push(Served::new(nsqds.accept(name).await));
            }
            settle().await;
            // Room for one: any that leaked would be missed now.
            for n in 0..30 {
                producer.publish("t", n.to_string()).await.unwrap();
            }
            assert!(
                producer.shutdown(SECOND).await.is_clean(),
                "{copies} copies, {polls} polls"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_until_it_is_ready_is_told_of_the_shutdown() {
    for count in [1, 2] {
        let nsqds = Nsqds::start(0);
        let producer = nsqds.producer(count).connect_lazily().unwrap();
        let waiting = producer.clone();
        let waiting = tokio::spawn(async move { waiting.ready(3600 * SECOND).await });
        settle().await;
        let begun = Instant::now();
        producer.shutdown(SECOND).await;
        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Shutdown);
        assert!(begun.elapsed() <= SECOND, "{:?}", begun.elapsed());
    }
}

/// One that pauses before its repetition, and one that waits for a connection to be repeated, are at no nsqd.
#[tokio::test(start_paused = true)]
async fn p2_a_shutdown_counts_what_was_about_to_be_repeated_as_unknown() {
    for pauses in [true, false] {
        let mut nsqds = Nsqds::start(1);
        let builder = nsqds.producer(1).at_least_once(true);
        let (producer, mut peers) = nsqds.connect(builder).await;
        let published = publish(&producer, "t", "m");
        peers[0].command().await;
        nsqds.close("a:1");
        peers.clear();
        settle().await;
        if !pauses {
            tokio::time::sleep(SECOND).await;
        }
        assert_eq!(producer.stats().pending_messages, 1);
        let report = producer.shutdown(std::time::Duration::ZERO).await;
        assert_eq!(published.await.unwrap().unwrap_err().kind(), ErrorKind::Unknown);
        assert_eq!((report.unknown, report.not_sent), (1, 0), "pauses: {pauses}");
    }
}

#[tokio::test(start_paused = true)]
async fn p2_a_shutdown_reports_what_was_lost_while_it_waited() {
    for count in [1, 2] {
        for repeat in [false, true] {
            let mut nsqds = Nsqds::start(count);
            let builder = nsqds.producer(count).at_least_once(repeat).routing(Routing::failover());
            let (producer, mut peers) = nsqds.connect(builder).await;
            let published = publish(&producer, "t", "m");
            peers[0].command().await;
            let ending = producer.clone();
            let ending = tokio::spawn(async move { ending.shutdown(5 * SECOND).await });
            settle().await;
            nsqds.close("a:1");
            let second = (count > 1).then(|| Served::new(peers.remove(1)));
            drop(peers);
            let report = ending.await.unwrap();
            let outcome = published.await.unwrap();
            if repeat && second.is_some() {
                outcome.unwrap();
                assert!(report.is_clean(), "{report:?}");
            } else {
                assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Unknown);
                assert_eq!((report.unknown, report.not_sent), (1, 0), "{count} nsqds");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_shutdown_reports_what_the_first_one_left() {
    let mut nsqds = Nsqds::start(2);
    let (producer, mut peers) = nsqds.connect(nsqds.producer(2)).await;
    let _published = publish(&producer, "t", "m");
    peers[0].command().await;
    let patient = producer.clone();
    let patient = tokio::spawn(async move { patient.shutdown(60 * SECOND).await });
    settle().await;
    assert_eq!(producer.shutdown(SECOND).await.unknown, 1);
    assert_eq!(patient.await.unwrap().unknown, 1);
}

#[tokio::test(start_paused = true)]
async fn a_second_shutdown_reports_what_the_first_one_did_not_send() {
    let nsqds = Nsqds::start(0);
    let producer = nsqds.producer(2).connect_lazily().unwrap();
    let published = publish(&producer, "t", "m");
    settle().await;
    let patient = producer.clone();
    let patient = tokio::spawn(async move { patient.shutdown(60 * SECOND).await });
    settle().await;
    assert_eq!(producer.shutdown(SECOND).await.not_sent, 1);
    assert_eq!(published.await.unwrap().unwrap_err().kind(), ErrorKind::NotSent);
    assert_eq!(patient.await.unwrap().not_sent, 1);
}

/// Its nsqd dies while the shutdown waits for another.
#[tokio::test(start_paused = true)]
async fn p2_a_shutdown_reports_what_was_lost_without_its_caller() {
    let mut nsqds = Nsqds::start(2);
    let (producer, mut peers) = nsqds.connect(nsqds.producer(2)).await;
    let left = publish(&producer, "t", "left");
    settle().await;
    let awaited = publish(&producer, "t", "awaited");
    settle().await;
    left.abort();
    let ending = producer.clone();
    let ending = tokio::spawn(async move { ending.shutdown(5 * SECOND).await });
    settle().await;
    nsqds.close("a:1");
    peers.remove(0);
    settle().await;
    peers[0].command().await;
    peers[0].ok().await;
    awaited.await.unwrap().unwrap();
    let report = ending.await.unwrap();
    assert_eq!((report.unknown, report.not_sent), (1, 0));
}

/// A repetition that waits at an nsqd, in its queue or for room there, and next to it a publish that was never sent.
#[tokio::test(start_paused = true)]
async fn p2_a_shutdown_counts_a_repetition_that_waits_at_an_nsqd_as_unknown() {
    /// Each where its first letter says, as long as that is there.
    struct ByName;
    impl Router for ByName {
        fn order(&self, message: &RoutedMessage<'_>, nsqds: &[RoutedNsqd<'_>]) -> Vec<usize> {
            let mut order: Vec<usize> = (0..nsqds.len()).collect();
            order.sort_by_key(|nsqd| nsqds[*nsqd].address.as_bytes()[0] != message.body[0]);
            order
        }
    }
    for room in [10, 3, 2] {
        let mut nsqds = Nsqds::start(2);
        let builder = nsqds
            .producer(2)
            .at_least_once(true)
            .routing(Routing::custom(ByName))
            .max_pending_messages(room);
        let (producer, mut peers) = nsqds.connect(builder).await;
        let mut all = Vec::new();
        // As much as may be unanswered at the second.
        for body in ["b1", "b2"] {
            all.push(publish(&producer, "t", body));
            settle().await;
        }
        all.push(publish(&producer, "t", "a"));
        peers[0].command().await;
        nsqds.close("a:1");
        peers.remove(0);
        tokio::time::sleep(SECOND).await;
        all.push(publish(&producer, "t", "b3"));
        settle().await;
        let report = producer.shutdown(std::time::Duration::ZERO).await;
        let mut kinds = Vec::new();
        for published in all {
            kinds.push(published.await.unwrap().unwrap_err().kind());
        }
        let unknown = ErrorKind::Unknown;
        assert_eq!(kinds, [unknown, unknown, unknown, ErrorKind::NotSent]);
        assert_eq!((report.unknown, report.not_sent), (3, 1), "room for {room}");
    }
}
