//! What a consumer tells about itself: statistics, the reasons behind them, and their changes.

use std::time::Duration;

use async_nsq::test_server::{Lookupd, Nsqd};
use async_nsq::transport::MemoryNetwork;
use async_nsq::{
    BoxError, ConnectionConfig, Consumer, ConsumerBuilder, ConsumerStats, ErrorKind, LookupdStatus, Message, NsqdStats,
    PauseReason,
};
use tokio::time::timeout;

use crate::scripted::{SECOND, stuck, succeed};

async fn nsqd(network: &MemoryNetwork, address: &str) -> Nsqd {
    let nsqd = Nsqd::builder().start_in(network, address).await.unwrap();
    nsqd.create_channel("orders", "billing").unwrap();
    nsqd
}

fn consumer(network: &MemoryNetwork) -> ConsumerBuilder {
    Consumer::builder("orders", "billing").connection(ConnectionConfig::new().connector(network.connector()))
}

/// Follows the consumer until its state is as wanted.
async fn until(consumer: &Consumer, wanted: impl Fn(&ConsumerStats) -> bool) -> ConsumerStats {
    let mut watch = consumer.watch();
    let followed = timeout(600 * SECOND, async {
        while !wanted(&watch.stats()) {
            assert!(watch.changed().await, "the consumer has ended");
        }
        watch.stats()
    });
    match followed.await {
        Ok(stats) => stats,
        Err(_) => panic!("it never came to be so: {:#?}", watch.stats()),
    }
}

fn one<'a>(stats: &'a ConsumerStats, address: &str) -> &'a NsqdStats {
    let found = stats.nsqds.iter().find(|nsqd| &*nsqd.address == address);
    found.unwrap_or_else(|| panic!("{address} is not in {stats:#?}"))
}

#[tokio::test(start_paused = true)]
async fn lesson_71_an_nsqd_without_a_connection_is_seen_with_its_reason_and_seen_to_recover() {
    let network = MemoryNetwork::new();
    let first = nsqd(&network, "one:4150").await;
    let consumer = consumer(&network).nsqd("one:4150").nsqd("two:4150");
    let consumer = consumer.start(succeed).await.unwrap();
    let stats = until(&consumer, |stats| stats.nsqds.iter().any(|nsqd| nsqd.failure.is_some())).await;
    let missing = one(&stats, "two:4150");
    assert!(missing.connection.is_none() && missing.discovered.is_none());
    assert_eq!(missing.failure.as_ref().unwrap().kind(), ErrorKind::Unreachable);
    let second = nsqd(&network, "two:4150").await;
    let stats = until(&consumer, |stats| stats.connections == 2).await;
    assert!(stats.nsqds.iter().all(|nsqd| nsqd.failure.is_none()));
    first.kill().await;
    let stats = until(&consumer, |stats| stats.connections == 1).await;
    let lost = one(&stats, "one:4150").failure.as_ref().unwrap();
    assert_eq!(lost.kind(), ErrorKind::ConnectionLost);
    drop(second);
}

#[tokio::test(start_paused = true)]
async fn lesson_50_every_reason_for_rdy_0_is_told() {
    let network = MemoryNetwork::new();
    let nsqds = [nsqd(&network, "one:4150").await, nsqd(&network, "two:4150").await];
    let fail = |_: Message| async { Err::<(), BoxError>("no".into()) };
    let consumer = consumer(&network).nsqd("one:4150").nsqd("two:4150").max_in_flight(10);
    let consumer = consumer.start(fail).await.unwrap();
    let reasons = |stats: &ConsumerStats| -> Vec<Option<PauseReason>> {
        let connections = stats.nsqds.iter().filter_map(|nsqd| nsqd.connection.as_ref());
        connections.map(|connection| connection.paused).collect()
    };
    let all = |reason| move |stats: &ConsumerStats| reasons(stats) == [reason; 2];
    until(&consumer, all(None)).await;
    consumer.pause().await;
    let stats = until(&consumer, all(Some(PauseReason::Paused))).await;
    assert!(stats.paused && stats.max_in_flight == 10);
    consumer.resume().await;
    consumer.set_max_in_flight(0).await;
    until(&consumer, all(Some(PauseReason::MaxInFlightZero))).await;
    consumer.set_max_in_flight(1).await;
    until(&consumer, |stats| {
        reasons(stats).contains(&Some(PauseReason::WaitingForShare)) && reasons(stats).contains(&None)
    })
    .await;
    consumer.set_max_in_flight(10).await;
    until(&consumer, all(None)).await;
    nsqds[0].publish("orders", "one").unwrap();
    let stats = until(&consumer, all(Some(PauseReason::Backoff))).await;
    assert_eq!(stats.backoff_level, 1);
    let left = stats.backoff_left.unwrap();
    assert!(left > SECOND && left <= 2 * SECOND, "{left:?}");
    let stats = until(&consumer, |stats| stats.backoff_left.is_none()).await;
    assert_eq!(stats.backoff_level, 1, "a message is tried");
}

#[tokio::test(start_paused = true)]
async fn lesson_54_each_nsqlookupd_is_told_with_its_age_its_error_and_what_it_announces() {
    let network = MemoryNetwork::new();
    let lookupd = Lookupd::builder().start_in(&network, "good:4161").await.unwrap();
    let _nsqd = Nsqd::builder()
        .lookupd(&lookupd)
        .broadcast_address("one")
        .start_in(&network, "one:4150")
        .await
        .unwrap();
    _nsqd.create_channel("orders", "billing").unwrap();
    let consumer = consumer(&network).lookupd("good:4161").lookupd("dead:4161");
    let consumer = consumer.start(succeed).await.unwrap();
    let stats = consumer.stats();
    assert_eq!(stats.lookupds.len(), 2);
    let stats = until(&consumer, |stats| stats.connections == 1).await;
    let [good, dead] = &stats.lookupds[..] else {
        panic!("{stats:#?}")
    };
    assert!(matches!(good.status, LookupdStatus::Answering { .. }));
    assert_eq!((good.announced, good.topic_known), (1, Some(true)));
    assert!(good.answer_age.is_some() && dead.answer_age.is_none());
    assert!(matches!(&dead.status, LookupdStatus::Failing { error, .. } if error.kind() == ErrorKind::Unreachable));
    let found = one(&stats, "one:4150").discovered.as_ref().unwrap();
    assert_eq!((&*found.announced_by, found.missing), ("good:4161", None));
}

#[tokio::test(start_paused = true)]
async fn lesson_59_nsqds_and_nsqlookupds_come_and_go_while_the_consumer_runs() {
    let network = MemoryNetwork::new();
    let lookupd = Lookupd::builder().start_in(&network, "lookupd:4161").await.unwrap();
    let first = nsqd(&network, "one:4150").await;
    let second = Nsqd::builder()
        .lookupd(&lookupd)
        .broadcast_address("two")
        .start_in(&network, "two:4150")
        .await
        .unwrap();
    second.create_channel("orders", "billing").unwrap();
    let consumer = consumer(&network).nsqd("one:4150").start(succeed).await.unwrap();
    until(&consumer, |stats| stats.connections == 1).await;

    assert!(consumer.add_lookupd("lookupd:4161").await.unwrap());
    assert!(!consumer.add_lookupd("http://lookupd:4161").await.unwrap());
    until(&consumer, |stats| stats.connections == 2).await;
    assert!(consumer.add_nsqd("two:4150").await.unwrap(), "it is pinned from now on");
    assert!(!consumer.add_nsqd("two:4150").await.unwrap());

    assert!(consumer.remove_nsqd("one:4150").await.unwrap());
    assert!(!consumer.remove_nsqd("one:4150").await.unwrap());
    first.wait_for(|stats| stats.clients.is_empty()).await.unwrap();
    until(&consumer, |stats| stats.nsqds.len() == 1).await;

    assert!(consumer.remove_nsqd("two:4150").await.unwrap());
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(consumer.stats().connections, 1, "it is announced, so it stays");

    assert!(consumer.remove_lookupd("lookupd:4161").await.unwrap());
    assert!(!consumer.remove_lookupd("lookupd:4161").await.unwrap());
    assert!(consumer.stats().lookupds.is_empty());
    for bad in ["", "two", "two:0", "http://two:4150"] {
        assert_eq!(
            consumer.add_nsqd(bad).await.unwrap_err().kind(),
            ErrorKind::Invalid,
            "{bad}"
        );
        assert_eq!(
            consumer.remove_nsqd(bad).await.unwrap_err().kind(),
            ErrorKind::Invalid,
            "{bad}"
        );
    }
    consumer.shutdown(SECOND).await;
    assert_eq!(
        consumer.add_nsqd("one:4150").await.unwrap_err().kind(),
        ErrorKind::Shutdown
    );
    assert_eq!(
        consumer.remove_lookupd("lookupd:4161").await.unwrap_err().kind(),
        ErrorKind::Shutdown
    );
}

#[tokio::test(start_paused = true)]
async fn lesson_35_starved_is_who_can_get_no_more_before_answering() {
    let network = MemoryNetwork::new();
    let nsqd = nsqd(&network, "one:4150").await;
    let consumer = consumer(&network).nsqd("one:4150").max_in_flight(10).concurrency(20);
    let consumer = consumer.start(stuck).await.unwrap();
    consumer.ready(SECOND).await.unwrap();
    for number in 0..10 {
        // At first nsqd may send one only, and go-nsq rounds 85 % of 10 down to 8.
        assert!(!consumer.is_starved() || number >= 8 || number == 1, "{number}");
        nsqd.publish("orders", "one").unwrap();
        tokio::time::sleep(SECOND).await;
    }
    assert!(consumer.is_starved());
}

#[tokio::test(start_paused = true)]
async fn lesson_71_who_watches_hears_of_the_end_and_does_not_keep_it_from_coming() {
    let network = MemoryNetwork::new();
    let _nsqd = nsqd(&network, "one:4150").await;
    let consumer = consumer(&network).nsqd("one:4150").start(succeed).await.unwrap();
    until(&consumer, |stats| stats.connections == 1).await;
    let mut watch = consumer.watch();
    drop(consumer);
    let ended = timeout(Duration::from_secs(60), async { while watch.changed().await {} });
    ended.await.unwrap();
    assert_eq!(watch.stats().connections, 0);
}

#[tokio::test(start_paused = true)]
async fn an_nsqd_that_was_removed_and_added_again_has_no_failure_when_its_first_connection_closes() {
    let network = MemoryNetwork::new();
    let nsqd = nsqd(&network, "one:4150").await;
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let gated = {
        let gate = gate.clone();
        move |_: Message| {
            let gate = gate.clone();
            async move {
                gate.acquire().await?.forget();
                Ok::<(), BoxError>(())
            }
        }
    };
    let consumer = consumer(&network).nsqd("one:4150").max_in_flight(10);
    let consumer = consumer.start(gated).await.unwrap();
    nsqd.publish("orders", "one").unwrap();
    until(&consumer, |stats| stats.in_flight == 1).await;
    assert!(consumer.remove_nsqd("one:4150").await.unwrap());
    assert!(consumer.add_nsqd("one:4150").await.unwrap());
    until(&consumer, |stats| stats.connections == 2).await;
    gate.add_permits(1);
    let stats = until(&consumer, |stats| stats.connections == 1).await;
    let nsqd = one(&stats, "one:4150");
    assert!(nsqd.connection.is_some());
    assert!(nsqd.failure.is_none(), "{nsqd:#?}");
}
