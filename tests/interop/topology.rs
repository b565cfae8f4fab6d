//! Several nsqds, found through nsqlookupd, and nsqds that go away and come back.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_nsq::{Consumer, ErrorKind, LookupdConfig, Producer};

use crate::broker::{Brokers, DEADLINE, Nsqd, eventually};
use crate::publishing::{Seen, recorder, seen_all};

fn address(nsqd: &Nsqd) -> String {
    nsqd.tcp_address().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn n5_one_consumer_finds_a_topic_spread_over_three_nsqds_through_two_nsqlookupds() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let (first, second) = (brokers.nsqlookupd().start().await, brokers.nsqlookupd().start().await);
    // No nsqlookupd knows them all.
    let nsqds = [
        brokers.nsqd().lookupd(first.tcp_address()).start().await,
        brokers.nsqd().lookupd(second.tcp_address()).start().await,
        brokers
            .nsqd()
            .lookupd(first.tcp_address())
            .lookupd(second.tcp_address())
            .start()
            .await,
    ];
    let seen = Seen::default();
    let consumer = Consumer::builder("orders", "billing")
        .lookupd(first.http_address().to_string())
        .lookupd(format!("http://{}", second.http_address()))
        .max_in_flight(3)
        .start(recorder(&seen))
        .await
        .unwrap();

    // The topic does not exist yet: no error, and found as soon as it does.
    for (number, nsqd) in nsqds.iter().enumerate() {
        let producer = Producer::connect(address(nsqd)).await.unwrap();
        let bodies = (0..100).map(|message| format!("{number}/{message}"));
        producer.publish_many("orders", bodies).await.unwrap();
        assert!(producer.shutdown(DEADLINE).await.is_clean());
    }

    seen_all(&seen, 300).await;
    assert_eq!(consumer.stats().connections, 3);
    let report = consumer.shutdown(DEADLINE).await;
    assert!(report.is_clean(), "{report:?}");
    for nsqd in &nsqds {
        let channel = nsqd.channel_stats("orders", "billing").await.unwrap();
        assert_eq!((channel.depth, channel.in_flight), (0, 0));
    }
}

/// The consumer is there before the topic, and ends before the first message: only a channel that exists by then keeps it.
#[tokio::test(flavor = "multi_thread")]
async fn n5_lesson_55_a_channel_created_beforehand_gets_the_first_message_of_its_topic() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let (first, second) = (brokers.nsqlookupd().start().await, brokers.nsqlookupd().start().await);
    let nsqd = brokers
        .nsqd()
        .lookupd(first.tcp_address())
        .lookupd(second.tcp_address())
        .start()
        .await;
    let builder = |channel: &str| {
        // nsqlookupd does not care about headers.
        let lookupd = LookupdConfig::new(first.http_address().to_string())
            .bearer("sesame")
            .header("X-Team", "billing")
            .allow_plaintext_auth();
        Consumer::builder("orders#ephemeral", channel)
            .lookupd(lookupd)
            .lookupd(second.http_address().to_string())
    };
    let seen = Seen::default();
    let late = builder("created").create_topic_and_channel(true);
    let consumer = late.clone().start(recorder(&seen)).await.unwrap();
    let other = builder("other").start(recorder(&Seen::default())).await.unwrap();
    for lookupd in [&first, &second] {
        let created = async || {
            let channels = lookupd.lookup("orders#ephemeral").await?["channels"].clone();
            (channels == serde_json::json!(["created"])).then_some(())
        };
        eventually("the channel is known to nsqlookupd", created).await;
    }
    // nsqd has to have registered before it can ask for channels.
    let registered = async || {
        let nodes: serde_json::Value = serde_json::from_slice(&first.get("/nodes").await.body).ok()?;
        (nodes["producers"].as_array()?.len() == 1).then_some(())
    };
    eventually("nsqd has registered", registered).await;
    assert!(consumer.shutdown(DEADLINE).await.is_clean());

    let producer = Producer::connect(address(&nsqd)).await.unwrap();
    producer.publish("orders#ephemeral", "the first").await.unwrap();
    let kept = nsqd.channel_stats("orders#ephemeral", "created").await.unwrap();
    assert_eq!((kept.message_count, kept.depth), (1, 1));
    // The channel of the consumer that did not ask for it comes too late.
    other.ready(DEADLINE).await.unwrap();
    let missed = nsqd.channel_stats("orders#ephemeral", "other").await.unwrap();
    assert_eq!(missed.message_count, 0);

    let consumer = late.start(recorder(&seen)).await.unwrap();
    seen_all(&seen, 1).await;
    for consumer in [consumer, other] {
        assert!(consumer.shutdown(DEADLINE).await.is_clean());
    }
}

#[derive(Default)]
pub(crate) struct Outcomes {
    pub(crate) confirmed: BTreeSet<String>,
    pub(crate) unknown: BTreeSet<String>,
    pub(crate) not_sent: BTreeSet<String>,
}

/// Publishes one message after another from several tasks until told to stop, and keeps the books.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    outcomes: Arc<Mutex<Outcomes>>,
    tasks: tokio::task::JoinSet<()>,
}

impl Load {
    pub(crate) fn start(producer: &Producer) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            outcomes: Arc::default(),
            tasks: tokio::task::JoinSet::new(),
        };
        for task in 0..20 {
            let (producer, stop) = (producer.clone(), Arc::clone(&load.stop));
            let outcomes = Arc::clone(&load.outcomes);
            load.tasks.spawn(async move {
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    let body = format!("{task}/{number}");
                    number += 1;
                    let outcome = producer.publish("orders", body.clone()).await;
                    let mut outcomes = outcomes.lock().unwrap();
                    match outcome.map_err(|error| error.kind()) {
                        Ok(()) => outcomes.confirmed.insert(body),
                        Err(ErrorKind::Unknown) => outcomes.unknown.insert(body),
                        Err(ErrorKind::NotSent) => outcomes.not_sent.insert(body),
                        Err(kind) => panic!("{body} ended as {kind:?}"),
                    };
                }
            });
        }
        load
    }

    pub(crate) fn confirmed(&self) -> usize {
        self.outcomes.lock().unwrap().confirmed.len()
    }

    pub(crate) async fn confirmed_at_least(&self, count: usize) {
        eventually(&format!("{count} publishes confirmed"), async || {
            (self.confirmed() >= count).then_some(())
        })
        .await;
    }

    pub(crate) async fn stop(self) -> Outcomes {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await;
        std::mem::take(&mut *self.outcomes.lock().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn n2_nsqd_stopped_and_started_again_loses_nothing_that_was_confirmed() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let lookupd = brokers.nsqlookupd().start().await;
    let mut nsqd = brokers.nsqd().lookupd(lookupd.tcp_address()).start().await;
    let producer = Producer::connect(address(&nsqd)).await.unwrap();
    let seen = Seen::default();
    let consumer = Consumer::builder("orders", "billing")
        .lookupd(lookupd.http_address().to_string())
        .start(recorder(&seen))
        .await
        .unwrap();

    let load = Load::start(&producer);
    for _restart in 0..3 {
        let before = load.confirmed();
        load.confirmed_at_least(before + 500).await;
        nsqd.terminate().await;
        nsqd.start_again().await;
        let again = load.confirmed();
        load.confirmed_at_least(again + 500).await;
    }
    let outcomes = load.stop().await;
    assert!(outcomes.not_sent.is_empty(), "publishes wait for the reconnection");

    seen_all_of(&seen, &outcomes.confirmed).await;
    let handled: BTreeSet<String> = seen.lock().unwrap().iter().cloned().collect();
    // What is neither confirmed nor unknown was never published.
    assert!(
        handled
            .iter()
            .all(|body| outcomes.confirmed.contains(body) || outcomes.unknown.contains(body))
    );
    assert!(consumer.shutdown(DEADLINE).await.is_clean());
    assert!(producer.shutdown(DEADLINE).await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_nsqd_killed_may_lose_messages_but_no_publish_is_misreported() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    // Everything goes through the disk queue, so that what nsqd had not written is what it can lose.
    let mut nsqd = brokers.nsqd().start().await;
    let producer = Producer::connect(address(&nsqd)).await.unwrap();
    let seen = Seen::default();
    let consumer = Consumer::builder("orders", "billing")
        .nsqd(address(&nsqd))
        .start(recorder(&seen))
        .await
        .unwrap();

    let load = Load::start(&producer);
    load.confirmed_at_least(500).await;
    nsqd.kill();
    nsqd.start_again().await;
    let again = load.confirmed();
    load.confirmed_at_least(again + 500).await;
    let outcomes = load.stop().await;
    assert!(outcomes.not_sent.is_empty(), "publishes wait for the reconnection");

    // The end of the queue: everything before it that nsqd still has has been handled.
    producer.publish("orders", "end").await.unwrap();
    eventually("the end of the queue is handled", async || {
        seen.lock().unwrap().iter().any(|body| body == "end").then_some(())
    })
    .await;
    eventually("nothing is left in nsqd", async || {
        let channel = nsqd.channel_stats("orders", "billing").await?;
        (channel.depth == 0 && channel.in_flight == 0 && channel.deferred == 0).then_some(())
    })
    .await;
    let handled: BTreeSet<String> = seen.lock().unwrap().iter().cloned().collect();
    let lost = outcomes.confirmed.difference(&handled).count();
    println!(
        "killed nsqd: {} confirmed, {} unknown, {lost} of the confirmed lost in nsqd's memory, {} of the unknown arrived",
        outcomes.confirmed.len(),
        outcomes.unknown.len(),
        outcomes.unknown.intersection(&handled).count()
    );
    // What arrived was reported as confirmed or as unknown, never as not sent.
    assert!(
        handled
            .iter()
            .filter(|body| *body != "end")
            .all(|body| outcomes.confirmed.contains(body) || outcomes.unknown.contains(body))
    );
    assert!(consumer.shutdown(DEADLINE).await.is_clean());
}

pub(crate) async fn seen_all_of(seen: &Seen, expected: &BTreeSet<String>) {
    eventually("every confirmed message handled", async || {
        let handled: BTreeSet<String> = seen.lock().unwrap().iter().cloned().collect();
        expected.is_subset(&handled).then_some(())
    })
    .await;
}
