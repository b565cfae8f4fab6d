//! Copies at several nsqds.

use async_nsq::{ErrorKind, Routing};
use tokio::time::Instant;

use super::{NAMES, Nsqds, SECOND, Served};
use crate::support::{Command, Peer, settle};
use crate::{cause, large, publish};

fn the_message() -> Command {
    Command::publish("t", "m")
}

#[tokio::test(start_paused = true)]
async fn p1_all_copies_are_confirmed_before_ok() {
    let mut nsqds = Nsqds::start(3);
    let builder = nsqds.producer(3).copies(2).routing(Routing::failover());
    let (producer, mut peers) = nsqds.connect(builder).await;
    let published = publish(&producer, "t", "m");
    for peer in &mut peers[..2] {
        assert_eq!(peer.command().await, the_message());
        settle().await;
        assert!(!published.is_finished());
        peer.ok().await;
    }
    published.await.unwrap().unwrap();
    peers[2].expect_nothing(SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn p1_a_quorum_is_enough_and_the_last_copy_is_sent_all_the_same() {
    let mut nsqds = Nsqds::start(3);
    let builder = nsqds.producer(3).copies(3).quorum(2);
    let (producer, mut peers) = nsqds.connect(builder).await;
    // The third takes nothing, and two turns of commands are under way there, so that its copy waits in the queue.
    let mut third = peers.pop().unwrap();
    for body in [large(), "small".into()] {
        let confirmed = publish(&producer, "x", body);
        for peer in &mut peers {
            peer.command().await;
            peer.ok().await;
        }
        confirmed.await.unwrap().unwrap();
    }
    let published = publish(&producer, "t", "m");
    for (n, peer) in peers.iter_mut().enumerate() {
        assert!(!published.is_finished());
        assert_eq!(peer.command().await, the_message(), "{n}");
        peer.ok().await;
    }
    published.await.unwrap().unwrap();
    assert_eq!(third.command().await.bodies()[0].len(), crate::LARGE);
    third.ok().await;
    assert_eq!(third.command().await, Command::publish("x", "small"));
    third.ok().await;
    assert_eq!(third.command().await, the_message());
    third.ok().await;
    settle().await;
    drop(peers);
    drop(third);
    assert!(producer.shutdown(SECOND).await.is_clean(), "nothing was left");
}

#[tokio::test(start_paused = true)]
async fn fewer_nsqds_than_copies_is_an_error_before_anything_is_sent() {
    let mut nsqds = Nsqds::start(2);
    let builder = nsqds.producer(3).copies(3).publish_timeout(2 * SECOND);
    let (producer, served) = nsqds.serve(builder).await;
    let error = producer.publish("t", "m").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSent);
    assert!(
        error.to_string().contains("2 of the 3 nsqds had a connection"),
        "{error}"
    );
    assert_eq!(cause(&error).address(), Some("c:1"));
    assert!(served.iter().all(|nsqd| nsqd.count() == 0));

    // It is worth waiting for.
    let waits = publish(&producer.with_publish_timeout(600 * SECOND), "t", "m");
    settle().await;
    nsqds.open("c:1");
    let third = Served::new(nsqds.accept("c:1").await);
    waits.await.unwrap().unwrap();
    assert_eq!(third.take(), ["m"]);
}

#[tokio::test(start_paused = true)]
async fn fewer_copies_are_accepted_if_so_said_but_never_fewer_than_the_quorum() {
    let mut nsqds = Nsqds::start(2);
    let builder = nsqds.producer(3).accept_fewer_copies(true).publish_timeout(2 * SECOND);
    let (producer, served) = nsqds.serve(builder.clone().copies(3)).await;
    producer.publish("t", "m").await.unwrap();
    assert!(served.iter().all(|nsqd| nsqd.take() == ["m"]));
    nsqds.close("a:1");
    served[0].kill().await;
    producer.publish("t", "m").await.unwrap();
    assert_eq!(served[1].take(), ["m"]);
    drop(producer);

    let mut nsqds = Nsqds::start(1);
    let builder = builder.connection(nsqds.connection()).copies(3).quorum(2);
    let (producer, served) = nsqds.serve(builder).await;
    let error = producer.publish("t", "m").await.unwrap_err();
    assert_eq!((error.kind(), served[0].count()), (ErrorKind::NotSent, 0));
}

/// Two copies, of which the second waits in the queue of an nsqd that takes nothing, and the third nsqd is free.
async fn with_a_copy_stuck(
    nsqds: &mut Nsqds,
    fewer: bool,
) -> (tokio::task::JoinHandle<async_nsq::Result<()>>, Vec<Peer>) {
    let builder = nsqds
        .producer(3)
        .copies(2)
        .accept_fewer_copies(fewer)
        .routing(Routing::failover())
        .publish_timeout(5 * SECOND);
    let (producer, mut peers) = nsqds.connect(builder).await;
    let blocking = publish(&producer, "x", large());
    peers[0].command().await;
    peers[0].ok().await;
    let published = publish(&producer, "t", "m");
    assert_eq!(peers[0].command().await, the_message());
    peers[0].ok().await;
    settle().await;
    assert!(!published.is_finished());
    drop(tokio::spawn(async move { blocking.await.unwrap() }));
    (published, peers)
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_was_not_sent_goes_to_an_nsqd_that_has_none() {
    let mut nsqds = Nsqds::start(3);
    let (published, mut peers) = with_a_copy_stuck(&mut nsqds, false).await;
    nsqds.close("b:1");
    drop(peers.remove(1));
    let mut third = peers.remove(1);
    while third.command().await != the_message() {
        third.ok().await;
    }
    third.ok().await;
    published.await.unwrap().unwrap();
    // Nothing came to the first any more: with the last publish the producer is gone.
    peers[0].expect_close().await;
}

#[tokio::test(start_paused = true)]
async fn p2_one_copy_of_two_is_unknown_since_it_is_in_a_queue() {
    for fewer in [false, true] {
        let mut nsqds = Nsqds::start(3);
        let (published, mut peers) = with_a_copy_stuck(&mut nsqds, fewer).await;
        for name in ["b:1", "c:1"] {
            nsqds.close(name);
        }
        let begun = Instant::now();
        // No nsqd is left for the second copy.
        drop(peers.pop());
        settle().await;
        drop(peers.pop());
        let outcome = published.await.unwrap();
        if fewer {
            outcome.unwrap();
            assert!(begun.elapsed() < SECOND);
        } else {
            let error = outcome.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unknown);
            assert!(error.to_string().contains("1 of 2 copies"), "{error}");
            assert_eq!(cause(&error).kind(), ErrorKind::NotSent);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn p2_a_copy_without_an_answer_is_unknown_and_repeated_only_if_asked_for() {
    for at_least_once in [false, true] {
        let mut nsqds = Nsqds::start(3);
        let builder = nsqds
            .producer(3)
            .copies(2)
            .routing(Routing::failover())
            .at_least_once(at_least_once);
        let (producer, mut peers) = nsqds.connect(builder).await;
        let published = publish(&producer, "t", "m");
        peers[0].command().await;
        peers[0].ok().await;
        peers[1].command().await;
        nsqds.close("b:1");
        drop(peers.remove(1));
        if at_least_once {
            assert_eq!(peers[1].command().await, the_message());
            peers[1].ok().await;
            published.await.unwrap().unwrap();
        } else {
            let error = published.await.unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unknown);
            assert_eq!(cause(&error).address(), Some("b:1"));
        }
        peers[0].expect_nothing(SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn p2_copies_that_all_are_rejected_are_rejected() {
    let mut nsqds = Nsqds::start(2);
    let (producer, mut peers) = nsqds.connect(nsqds.producer(2).copies(2)).await;
    let published = publish(&producer, "t", "m");
    for peer in &mut peers {
        peer.command().await;
        peer.error("E_PUB_FAILED PUB failed").await;
    }
    let error = published.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
}

#[tokio::test(start_paused = true)]
async fn p1_with_two_copies_an_nsqd_lost_for_good_takes_nothing_confirmed_with_it() {
    for victim in 0..3 {
        let mut nsqds = Nsqds::start(3);
        let (producer, served) = nsqds.serve(nsqds.producer(3).copies(2)).await;
        let mut all = Vec::new();
        for n in 0..200 {
            all.push((n.to_string(), publish(&producer, "t", n.to_string())));
            if n % 5 == 0 {
                settle().await;
            }
            if n == 100 {
                nsqds.close(NAMES[victim]);
                served[victim].task.abort();
            }
        }
        let mut survivors = Vec::new();
        for (body, published) in all {
            match published.await.unwrap() {
                Ok(()) => survivors.push(body),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unknown),
            }
        }
        let kept = |nsqd: usize| {
            if nsqd == victim {
                Vec::new()
            } else {
                served[nsqd].take()
            }
        };
        let came: Vec<String> = (0..3).flat_map(kept).collect();
        assert!(survivors.len() > 150 && survivors.iter().all(|body| came.contains(body)));
    }
}

#[tokio::test(start_paused = true)]
async fn copies_and_quorum_have_their_bounds() {
    let nsqds = Nsqds::start(3);
    let builder = || nsqds.producer(3);
    for (builder, option) in [
        (builder().copies(0), "copies"),
        (builder().copies(4), "copies"),
        (builder().nsqd("a:1").copies(4), "copies"),
        (builder().copies(2).quorum(0), "quorum"),
        (builder().copies(2).quorum(3), "quorum"),
    ] {
        let error = builder.connect_lazily().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(&format!("option {option} ")), "{error}");
    }
}
