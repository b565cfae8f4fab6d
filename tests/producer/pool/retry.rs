//! Elsewhere, again, or not at all: what a pool makes of an outcome.

use async_nsq::protocol::ErrorCode;
use async_nsq::{ErrorKind, Routing};
use tokio::time::Instant;

use super::{Nsqds, SECOND, Served};
use crate::support::{Command, settle};
use crate::{cause, large, publish};

#[tokio::test(start_paused = true)]
async fn what_was_not_sent_goes_elsewhere_at_once() {
    let mut nsqds = Nsqds::start(2);
    let builder = nsqds.producer(2).routing(Routing::failover()).max_pending_messages(4);
    let (producer, mut peers) = nsqds.connect(builder).await;
    let second = Served::new(peers.remove(1));
    // Partly written, queued, and waiting for room.
    let mut all = vec![publish(&producer, "t", large())];
    settle().await;
    all.extend((0..8).map(|n| publish(&producer, "t", n.to_string())));
    settle().await;
    assert!(all.iter().all(|published| !published.is_finished()));
    assert_eq!(second.count(), 0);

    let killed = Instant::now();
    nsqds.close("a:1");
    drop(peers);
    for published in all {
        published.await.unwrap().unwrap();
    }
    assert_eq!(killed.elapsed().as_millis(), 0);
    assert_eq!(second.count(), 9);
}

#[tokio::test(start_paused = true)]
async fn unknown_is_not_repeated_unless_asked_for() {
    for at_least_once in [false, true] {
        let mut nsqds = Nsqds::start(2);
        let builder = nsqds
            .producer(2)
            .routing(Routing::failover())
            .at_least_once(at_least_once);
        let (producer, mut peers) = nsqds.connect(builder).await;
        let second = Served::new(peers.remove(1));
        let published = publish(&producer, "t", "m");
        peers[0].command().await;
        drop(peers);
        let outcome = published.await.unwrap();
        if at_least_once {
            outcome.unwrap();
            assert_eq!(second.take(), ["m"]);
        } else {
            let error = outcome.unwrap_err();
            assert_eq!((error.kind(), error.address()), (ErrorKind::Unknown, Some("a:1")));
            assert_eq!(second.count(), 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn at_least_once_works_with_a_single_nsqd() {
    let mut nsqds = Nsqds::start(1);
    let (producer, mut peers) = nsqds.connect(nsqds.producer(1).at_least_once(true)).await;
    let published = publish(&producer, "t", "m");
    peers[0].command().await;
    drop(peers);
    let again = Served::new(nsqds.accept("a:1").await);
    published.await.unwrap().unwrap();
    assert_eq!(again.take(), ["m"]);
}

#[tokio::test(start_paused = true)]
async fn p2_an_unknown_attempt_is_not_forgotten() {
    let mut nsqds = Nsqds::start(1);
    let builder = nsqds.producer(1).at_least_once(true).publish_timeout(5 * SECOND);
    let (producer, mut peers) = nsqds.connect(builder).await;
    let begun = Instant::now();
    let published = publish(&producer, "t", "m");
    peers[0].command().await;
    nsqds.close("a:1");
    drop(peers);
    let error = published.await.unwrap().unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Unknown,
        "it may have arrived with the first attempt"
    );
    assert_eq!(cause(&error).kind(), ErrorKind::NotSent);
    assert_eq!(begun.elapsed().as_secs(), 5, "the deadline is the publish's");
}

#[tokio::test(start_paused = true)]
async fn what_nsqd_rejects_is_never_repeated() {
    let mut nsqds = Nsqds::start(2);
    let builder = nsqds.producer(2).routing(Routing::failover()).at_least_once(true);
    let (producer, mut peers) = nsqds.connect(builder).await;
    let published = publish(&producer, "t", "m");
    peers[0].command().await;
    peers[0].error("E_PUB_FAILED PUB failed").await;
    let error = published.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::PubFailed));
    peers[1].expect_nothing(SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn p2_what_an_exiting_nsqd_refuses_goes_elsewhere_at_once() {
    let mut nsqds = Nsqds::start(2);
    let builder = nsqds.producer(2).routing(Routing::failover());
    let (producer, mut peers) = nsqds.connect(builder).await;
    let second = Served::new(peers.remove(1));
    let mut all: Vec<_> = ["1", "2"].map(|body| publish(&producer, "t", body)).into();
    peers[0].command().await;
    all.push(publish(&producer, "t", "3"));
    settle().await;
    let begun = Instant::now();
    nsqds.close("a:1");
    peers[0].error("E_MPUB_FAILED MPUB failed exiting").await;
    drop(peers);
    for published in all {
        published.await.unwrap().unwrap();
    }
    assert_eq!((begun.elapsed().as_millis(), second.count()), (0, 3));
    let stats = producer.stats();
    assert_eq!((stats.ok, stats.rejected, stats.rerouted), (3, 0, 3));
}

#[tokio::test(start_paused = true)]
async fn lesson_20_a_bad_message_fails_alone_and_takes_nobody_around_the_pool() {
    let mut nsqds = Nsqds::start(2);
    let (producer, mut peers) = nsqds.connect(nsqds.producer(2).routing(Routing::failover())).await;
    // All in one batch: while two turns are unanswered, the rest gathers.
    let first: Vec<_> = ["1", "2"].map(|body| publish(&producer, "t", body)).into();
    settle().await;
    let mut all: Vec<_> = ["3", "bad", "4"].map(|body| publish(&producer, "t", body)).into();
    settle().await;
    let (mut a, mut b) = (peers.remove(0), peers.remove(0));
    assert_eq!(a.command().await, Command::publish_many("t", ["1", "2"]));
    a.ok().await;
    assert_eq!(a.command().await, Command::publish_many("t", ["3", "bad", "4"]));
    a.error("E_BAD_MESSAGE MPUB message too big").await;
    drop(a);
    for body in ["3", "bad"] {
        assert_eq!(b.command().await, Command::publish("t", body));
    }
    b.ok().await;
    b.error("E_BAD_MESSAGE PUB message too big").await;
    drop(b);
    // Whichever is back first: nsqd read no further than to the bad one, so the last comes again.
    let (a, b) = (nsqds.accept("a:1").await, nsqds.accept("b:1").await);
    let served = [Served::new(a), Served::new(b)];
    let last = all.pop().unwrap().await.unwrap();
    let bad = all.pop().unwrap().await.unwrap().unwrap_err();
    assert_eq!(bad.code(), Some(ErrorCode::BadMessage));
    last.unwrap();
    for published in first.into_iter().chain(all) {
        published.await.unwrap().unwrap();
    }
    let again: Vec<String> = served.iter().flat_map(Served::take).collect();
    assert_eq!(again, ["4"]);
}

#[tokio::test(start_paused = true)]
async fn only_the_refused_batch_is_told_apart_elsewhere() {
    let mut nsqds = Nsqds::start(2);
    let (producer, mut peers) = nsqds.connect(nsqds.producer(2).routing(Routing::failover())).await;
    let (mut a, mut b) = (peers.remove(0), peers.remove(0));
    let mut all = vec![publish(&producer, "t", "1")];
    settle().await;
    all.extend(["2", "bad", "3"].map(|body| publish(&producer, "t", body)));
    settle().await;
    for n in 4..8 {
        all.push(publish(&producer, "t", n.to_string()));
        if n == 5 {
            // These two are behind the batch when it is refused; the last two still wait.
            assert_eq!(a.command().await, Command::publish("t", "1"));
            a.ok().await;
            settle().await;
        }
    }
    settle().await;
    nsqds.close("a:1");
    a.error("E_BAD_MESSAGE MPUB message too big").await;
    drop(a);
    for body in ["2", "bad", "3"] {
        assert_eq!(b.command().await, Command::publish("t", body));
    }
    assert_eq!(b.command().await, Command::publish_many("t", ["4", "5", "6", "7"]));
    for _ in 0..4 {
        b.ok().await;
    }
    for published in all {
        published.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn repetitions_end_with_the_budget() {
    let mut nsqds = Nsqds::start(2);
    let builder = nsqds.producer(2).routing(Routing::failover()).at_least_once(true);
    let (producer, mut peers) = nsqds.connect(builder).await;
    let second = Served::new(peers.remove(1));
    let all: Vec<_> = (0..1_500).map(|n| publish(&producer, "t", n.to_string())).collect();
    let mut came = 0;
    while came < all.len() {
        came += peers[0].command().await.bodies().len();
    }
    nsqds.close("a:1");
    drop(peers);
    let mut unknown = 0;
    for published in all {
        if let Err(error) = published.await.unwrap() {
            assert_eq!(error.kind(), ErrorKind::Unknown);
            unknown += 1;
        }
    }
    // An advance of 1,000, and a tenth of the publishes.
    assert_eq!((second.count(), unknown), (1_150, 350));
}

#[tokio::test(start_paused = true)]
async fn without_any_connection_publishes_wait_for_one() {
    let mut nsqds = Nsqds::start(2);
    let builder = nsqds.producer(2).publish_timeout(3 * SECOND);
    let (producer, served) = nsqds.serve(builder).await;
    for (name, nsqd) in ["a:1", "b:1"].into_iter().zip(&served) {
        nsqds.close(name);
        nsqd.kill().await;
    }
    settle().await;
    let begun = Instant::now();
    let error = producer.publish("t", "m").await.unwrap_err();
    assert_eq!(begun.elapsed().as_secs(), 3);
    assert_eq!(error.kind(), ErrorKind::NotSent);
    assert!(error.to_string().contains("none of the 2 nsqds"), "{error}");
    assert_eq!(cause(&error).kind(), ErrorKind::Unreachable);

    let patient = producer.with_publish_timeout(600 * SECOND);
    let waits = publish(&patient, "t", "patient");
    settle().await;
    nsqds.open("b:1");
    let served = Served::new(nsqds.accept("b:1").await);
    waits.await.unwrap().unwrap();
    assert_eq!(served.take(), ["patient"]);
}

#[tokio::test(start_paused = true)]
async fn p1_an_nsqd_that_dies_under_load_takes_nothing_confirmed_with_it() {
    for at_least_once in [false, true] {
        let mut nsqds = Nsqds::start(3);
        let (producer, served) = nsqds.serve(nsqds.producer(3).at_least_once(at_least_once)).await;
        let mut all = Vec::new();
        for n in 0..300 {
            all.push((n.to_string(), publish(&producer, "t", n.to_string())));
            if n % 7 == 0 {
                settle().await;
            }
            if n == 150 {
                nsqds.close("b:1");
                served[1].task.abort();
            }
        }
        let mut confirmed = Vec::new();
        for (body, published) in all {
            match published.await.unwrap() {
                Ok(()) => confirmed.push(body),
                Err(error) => assert_eq!((error.kind(), at_least_once), (ErrorKind::Unknown, false)),
            }
        }
        let came: Vec<String> = served.iter().flat_map(Served::take).collect();
        assert!(confirmed.len() > 250 && confirmed.iter().all(|body| came.contains(body)));
        if !at_least_once {
            let distinct: std::collections::HashSet<_> = came.iter().collect();
            assert_eq!(distinct.len(), came.len(), "nothing came twice");
        }
    }
}
