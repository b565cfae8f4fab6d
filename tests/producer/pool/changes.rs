//! Nsqds that are added and removed while the producer runs.

use async_nsq::test_server::Lookupd;
use async_nsq::{ErrorKind, Producer, Routing};
use tokio::time::sleep;

use super::{Nsqds, SECOND, Served};
use crate::publish;
use crate::support::settle;

#[tokio::test(start_paused = true)]
async fn p1_nsqds_come_and_go_and_what_is_pending_is_still_sent() {
    let mut nsqds = Nsqds::start(2);
    let builder = nsqds.producer(1).dynamic_nsqds(true).routing(Routing::failover());
    let connecting = tokio::spawn(builder.connect());
    let mut first = nsqds.accept("a:1").await;
    let producer = connecting.await.unwrap().unwrap();

    assert!(producer.add_nsqd("b:1").unwrap());
    assert!(!producer.add_nsqd("b:1").unwrap());
    let second = Served::new(nsqds.accept("b:1").await);
    settle().await;
    let mut all = vec![publish(&producer, "t", "1")];
    settle().await;
    all.push(publish(&producer, "t", "2"));
    settle().await;
    assert_eq!((producer.nsqds().len(), second.count()), (2, 0));

    assert!(producer.remove_nsqd("a:1").unwrap());
    assert!(!producer.remove_nsqd("a:1").unwrap());
    producer.publish("t", "3").await.unwrap();
    assert_eq!(second.take(), ["3"]);
    for _ in 0..2 {
        first.command().await;
        first.ok().await;
    }
    first.expect_close().await;
    for published in all {
        published.await.unwrap().unwrap();
    }
    // The last one may go, too, and be there again.
    assert!(producer.remove_nsqd("b:1").unwrap());
    assert!(second.task.await.is_ok(), "the connection was closed");
    let waits = publish(&producer, "t", "4");
    settle().await;
    assert!(producer.add_nsqd("b:1").unwrap());
    let again = Served::new(nsqds.accept("b:1").await);
    waits.await.unwrap().unwrap();
    assert_eq!(again.take(), ["4"]);
    let stats = producer.stats();
    assert_eq!((stats.ok, stats.latency.count(), stats.nsqds.len()), (4, 4, 1));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_added_or_removed_is_told() {
    let mut nsqds = Nsqds::start(1);
    let (one, _served) = nsqds.serve(nsqds.producer(1)).await;
    for changed in [one.add_nsqd("b:1"), one.remove_nsqd("a:1")] {
        let error = changed.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let text = error.to_string();
        assert!(text.contains("a:1") && text.contains("dynamic_nsqds(true)"), "{text}");
    }
    let producer = nsqds.producer(2).connect_lazily().unwrap();
    for bad in ["", "two", "two:0", "http://two:4150"] {
        assert_eq!(producer.add_nsqd(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        assert_eq!(
            producer.remove_nsqd(bad).unwrap_err().kind(),
            ErrorKind::Invalid,
            "{bad}"
        );
    }
    producer.shutdown(SECOND).await;
    assert_eq!(producer.add_nsqd("c:1").unwrap_err().kind(), ErrorKind::Shutdown);
    assert_eq!(producer.remove_nsqd("a:1").unwrap_err().kind(), ErrorKind::Shutdown);
}

#[tokio::test(start_paused = true)]
async fn an_nsqd_goes_when_neither_its_user_nor_an_nsqlookupd_tells_of_it() {
    let mut nsqds = Nsqds::start(1);
    let lookupd = Lookupd::start_in(&nsqds.network, "lookupd:4161").await.unwrap();
    lookupd.register("other", "a:1").unwrap();
    let builder = Producer::builder()
        .connection(nsqds.connection())
        .lookupd("lookupd:4161");
    let connecting = tokio::spawn(builder.connect());
    let _served = Served::new(nsqds.accept("a:1").await);
    let producer = connecting.await.unwrap().unwrap();

    assert!(!producer.remove_nsqd("a:1").unwrap(), "it was not given");
    assert!(producer.add_nsqd("a:1").unwrap(), "it is kept from now on");
    assert!(producer.remove_nsqd("a:1").unwrap());
    sleep(600 * SECOND).await;
    assert_eq!(producer.nsqds().len(), 1, "it is announced");
    assert!(producer.add_nsqd("a:1").unwrap());
    lookupd.unregister("other", "a:1").unwrap();
    sleep(600 * SECOND).await;
    assert_eq!(producer.nsqds().len(), 1, "it is given");
    assert!(producer.remove_nsqd("a:1").unwrap());
    assert!(producer.nsqds().is_empty());
}

#[tokio::test(start_paused = true)]
async fn nsqds_can_be_added_outside_of_the_runtime() {
    let mut nsqds = Nsqds::start(1);
    let (producer, _served) = nsqds.serve(nsqds.producer(1).dynamic_nsqds(true)).await;
    nsqds.open("b:1");
    let adding = std::thread::spawn(move || producer.add_nsqd("b:1").map(|is_new| (producer, is_new)));
    let (_producer, is_new) = adding.join().unwrap().unwrap();
    assert!(is_new);
    nsqds.accept("b:1").await;
}

/// One whose answer never came because it was removed and died, and one whose own deadline passed meanwhile.
#[tokio::test(start_paused = true)]
async fn p2_a_shutdown_counts_each_unknown_publish_once() {
    for removed in [true, false] {
        let mut nsqds = Nsqds::start(2);
        let builder = nsqds.producer(2).routing(Routing::failover());
        let (producer, mut peers) = nsqds.connect(builder).await;
        let hasty = producer.with_publish_timeout(2 * SECOND);
        let published = publish(if removed { &producer } else { &hasty }, "t", "m");
        peers[0].command().await;
        if removed {
            assert!(producer.remove_nsqd("a:1").unwrap());
        }
        let ending = producer.clone();
        let ending = tokio::spawn(async move { ending.shutdown(5 * SECOND).await });
        sleep(3 * SECOND).await;
        peers.remove(0);
        assert_eq!(published.await.unwrap().unwrap_err().kind(), ErrorKind::Unknown);
        let report = ending.await.unwrap();
        assert_eq!((report.unknown, report.not_sent), (1, 0), "removed: {removed}");
    }
}
