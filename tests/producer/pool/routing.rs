//! Which nsqd gets a message.

use async_nsq::{ErrorKind, RoutedMessage, RoutedNsqd, Router, Routing};

use super::{NAMES, Nsqds, SECOND, Served};
use crate::publish;
use crate::support::settle;

fn counts(served: &[Served]) -> Vec<usize> {
    served.iter().map(|nsqd| nsqd.take().len()).collect()
}

#[tokio::test(start_paused = true)]
async fn round_robin_is_the_default_and_takes_turns() {
    let mut nsqds = Nsqds::start(3);
    let (producer, served) = nsqds.serve(nsqds.producer(3)).await;
    for n in 0..9 {
        producer.publish("t", n.to_string()).await.unwrap();
    }
    producer.publish_many("t", ["9", "10"]).await.unwrap();
    producer.publish_deferred("t", SECOND, "11").await.unwrap();
    assert_eq!(counts(&served), [3 + 2, 3 + 1, 3]);
    assert_eq!(producer.nsqds().iter().map(|it| &**it).collect::<Vec<_>>(), NAMES[..3]);
}

#[tokio::test(start_paused = true)]
async fn a_ping_asks_every_nsqd() {
    let mut nsqds = Nsqds::start(2);
    let (producer, mut peers) = nsqds.connect(nsqds.producer(2)).await;
    let pinging = tokio::spawn(async move { producer.ping().await });
    for peer in &mut peers {
        peer.command().await;
        settle().await;
        assert!(!pinging.is_finished());
        peer.ok().await;
    }
    pinging.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn failover_uses_the_second_only_while_the_first_is_away() {
    let mut nsqds = Nsqds::start(2);
    let (producer, served) = nsqds.serve(nsqds.producer(2).routing(Routing::failover())).await;
    producer.publish("t", "1").await.unwrap();
    producer.publish("t", "2").await.unwrap();
    assert_eq!(counts(&served), [2, 0]);
    nsqds.close("a:1");
    served[0].kill().await;
    producer.publish("t", "3").await.unwrap();
    assert_eq!(counts(&served), [0, 1]);

    nsqds.open("a:1");
    let first = Served::new(nsqds.accept("a:1").await);
    settle().await;
    producer.publish("t", "4").await.unwrap();
    assert_eq!((first.count(), counts(&served)), (1, vec![0, 0]));
}

#[tokio::test(start_paused = true)]
async fn least_loaded_passes_over_one_that_is_slow() {
    let mut nsqds = Nsqds::start(3);
    let builder = nsqds.producer(3).routing(Routing::least_loaded());
    let (producer, mut peers) = nsqds.connect(builder).await;
    let mut slow = peers.remove(1);
    let quick = [Served::new(peers.remove(0)), Served::new(peers.remove(0))];
    let mut all = Vec::new();
    for n in 0..12 {
        all.push(publish(&producer, "t", n.to_string()));
        settle().await;
    }
    assert_eq!(
        counts(&quick).iter().sum::<usize>(),
        11,
        "one waits for an answer there"
    );
    slow.command().await;
    slow.ok().await;
    for published in all {
        published.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_nsqd_holds_up_nobody() {
    let mut nsqds = Nsqds::start(2);
    let (producer, mut peers) = nsqds.connect(nsqds.producer(2).max_pending_messages(2)).await;
    let quick = Served::new(peers.remove(1));
    let mut all = Vec::new();
    for n in 0..20 {
        all.push(publish(&producer, "t", n.to_string()));
        settle().await;
    }
    assert_eq!(quick.count(), 18, "two are pending at the one that does not answer");
    assert_eq!(all.iter().filter(|published| !published.is_finished()).count(), 2);
    let stuck = Served::new(peers.remove(0));
    for published in all {
        published.await.unwrap().unwrap();
    }
    assert_eq!(stuck.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_same_zone_goes_first() {
    let mut nsqds = Nsqds::start(3);
    let places = [("a:1", "us", "x"), ("b:1", "eu", "y"), ("c:1", "eu", "x")];
    let builder = nsqds.producer(0).routing(Routing::same_zone_first("eu", "x"));
    let builder = places.into_iter().fold(builder, |builder, (name, region, zone)| {
        builder.nsqd_in(name, region, zone)
    });
    let (producer, served) = nsqds.serve(builder).await;
    for expected in [[0, 0, 1], [0, 1, 0], [1, 0, 0]] {
        producer.publish("t", "m").await.unwrap();
        assert_eq!(counts(&served), expected);
        // Gone for good, so that the next best has to do.
        let nearest = expected.iter().position(|count| *count == 1).unwrap();
        nsqds.close(NAMES[nearest]);
        served[nearest].kill().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_stays_with_its_nsqd_while_that_lives() {
    let mut nsqds = Nsqds::start(3);
    let by_first_word = Routing::by_key(|_, body| {
        body.iter()
            .take_while(|byte| **byte != b' ')
            .map(|it| u64::from(*it))
            .sum()
    });
    let (producer, mut served) = nsqds.serve(nsqds.producer(3).routing(by_first_word)).await;
    let keys: Vec<String> = (b'A'..=b'Z').map(|key| char::from(key).to_string()).collect();
    let mut homes = Vec::new();
    for round in 0..3 {
        for key in &keys {
            producer.publish("t", format!("{key} {round}")).await.unwrap();
        }
        let mut came: Vec<Vec<String>> = Vec::new();
        for nsqd in &served {
            let mut keys: Vec<String> = nsqd.take().iter().map(|body| body[..1].to_owned()).collect();
            keys.sort_unstable();
            came.push(keys);
        }
        match round {
            0 => {
                assert!(came.iter().all(|keys| keys.len() > 3), "{came:?}");
                homes = came;
                nsqds.close("b:1");
                served[1].kill().await;
            }
            1 => {
                for stays in [0, 2] {
                    assert!(homes[stays].iter().all(|key| came[stays].contains(key)));
                }
                assert!(
                    came[0].len() > homes[0].len() && came[2].len() > homes[2].len(),
                    "its keys are spread"
                );
                nsqds.open("b:1");
                served[1] = Served::new(nsqds.accept("b:1").await);
                settle().await;
            }
            _ => assert_eq!(came, homes, "they come back"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_router_of_ones_own_chooses_and_may_leave_out() {
    /// Never the first.
    struct NotA;
    impl Router for NotA {
        fn order(&self, message: &RoutedMessage<'_>, nsqds: &[RoutedNsqd<'_>]) -> Vec<usize> {
            assert_eq!((message.topic.as_str(), message.body), ("t", &b"m"[..]));
            (0..nsqds.len()).filter(|nsqd| nsqds[*nsqd].address != "a:1").collect()
        }
    }
    let mut nsqds = Nsqds::start(2);
    let builder = nsqds.producer(2).routing(Routing::custom(NotA)).publish_timeout(SECOND);
    let (producer, served) = nsqds.serve(builder).await;
    for _ in 0..4 {
        producer.publish("t", "m").await.unwrap();
    }
    assert_eq!(counts(&served), [0, 4]);
    nsqds.close("b:1");
    served[1].kill().await;
    let error = producer.publish("t", "m").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSent);
    assert_eq!(counts(&served), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn p2_a_router_that_panics_ends_its_own_publishes_only_and_each_is_told_so() {
    let mut nsqds = Nsqds::start(2);
    let told = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let hook = std::sync::Arc::clone(&told);
    let builder = nsqds
        .producer(2)
        .routing(Routing::by_key(|topic, _| {
            assert_ne!(topic.as_str(), "bad", "as the test says");
            1
        }))
        .copies(2)
        .max_pending_messages(2)
        .on_failure(move |failure| hook.lock().unwrap().push(failure.error.clone()));
    let (producer, served) = nsqds.serve(builder).await;
    for _ in 0..5 {
        let error = producer.publish("bad", "m").await.unwrap_err();
        told.lock().unwrap().push(error);
        producer.enqueue("bad", "m").await.unwrap();
    }
    producer.flush(SECOND).await.unwrap();
    assert_eq!(told.lock().unwrap().len(), 10);
    for error in told.lock().unwrap().iter() {
        assert_eq!(error.kind(), ErrorKind::NotSent);
        let text = error.to_string();
        assert!(text.contains("router") && text.contains("as the test says"), "{text}");
    }
    producer.enqueue("t", "m").await.unwrap();
    producer.flush(SECOND).await.unwrap();
    assert!(served.iter().all(|nsqd| nsqd.take() == ["m"]));
    let stats = producer.stats();
    assert_eq!(
        (stats.not_sent, stats.pending_messages, stats.pending_bytes),
        (10, 0, 0)
    );
    assert!(producer.shutdown(SECOND).await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn p2_a_router_that_panics_later_does_not_take_back_that_the_message_may_have_arrived() {
    let mut nsqds = Nsqds::start(2);
    let calls = std::sync::atomic::AtomicUsize::new(0);
    let router = move |_: &_, _: &[u8]| {
        let call = calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(call, 0, "as the test says");
        1
    };
    let told = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let hook = std::sync::Arc::clone(&told);
    let builder = nsqds
        .producer(2)
        .routing(Routing::by_key(router))
        .at_least_once(true)
        .on_failure(move |failure| hook.lock().unwrap().push(failure.error.clone()));
    let (producer, peers) = nsqds.connect(builder).await;
    producer.enqueue("t", "m").await.unwrap();
    settle().await;
    drop(peers);
    let _again = Served::new(nsqds.accept("a:1").await);
    producer.flush(SECOND).await.unwrap();
    let error = told.lock().unwrap().pop().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unknown);
    assert!(
        crate::cause(&error).to_string().contains("as the test says"),
        "{error:?}"
    );
}
