//! Each kind of publish, and consuming it, on the real nsqd.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nsq::protocol::ErrorCode;
use async_nsq::{BoxError, Consumer, ConsumerBuilder, ErrorKind, HandlerError, Message, Producer};
use tokio::task::JoinSet;

use crate::broker::{Brokers, DEADLINE, Nsqd, eventually};

/// Bodies in the order in which a handler saw them.
pub(crate) type Seen = Arc<Mutex<Vec<String>>>;

pub(crate) fn recorder(seen: &Seen) -> impl Fn(Message) -> std::future::Ready<Result<(), BoxError>> + use<> {
    let seen = Arc::clone(seen);
    move |message| {
        let body = String::from_utf8_lossy(message.body()).into_owned();
        seen.lock().unwrap().push(body);
        std::future::ready(Ok(()))
    }
}

pub(crate) async fn seen_all(seen: &Seen, count: usize) {
    eventually(&format!("{count} different messages handled"), async || {
        let different: BTreeSet<String> = seen.lock().unwrap().iter().cloned().collect();
        (different.len() >= count).then_some(())
    })
    .await;
}

fn address(nsqd: &Nsqd) -> String {
    nsqd.tcp_address().to_string()
}

fn consume(nsqd: &Nsqd, topic: &str) -> ConsumerBuilder {
    Consumer::builder(topic, "billing").nsqd(address(nsqd))
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_every_kind_of_publish_is_confirmed_and_arrives() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let nsqd = brokers.nsqd().start().await;
    let producer = Producer::connect(address(&nsqd)).await.unwrap();

    producer.publish("orders", "one").await.unwrap();
    producer.publish_many("orders", ["two", "three"]).await.unwrap();
    producer
        .publish_deferred("orders", Duration::from_millis(100), "four")
        .await
        .unwrap();
    producer.ping().await.unwrap();
    assert_eq!(nsqd.topic_message_count("orders").await, Some(4));

    let seen = Seen::default();
    let consumer = consume(&nsqd, "orders").start(recorder(&seen)).await.unwrap();
    seen_all(&seen, 4).await;
    let mut bodies = seen.lock().unwrap().clone();
    bodies.sort();
    assert_eq!(bodies, ["four", "one", "three", "two"]);

    let report = consumer.shutdown(DEADLINE).await;
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.finished, 4);
    let channel = nsqd.channel_stats("orders", "billing").await.unwrap();
    assert_eq!(
        (
            channel.depth,
            channel.in_flight,
            channel.deferred,
            channel.requeue_count,
            channel.timeout_count
        ),
        (0, 0, 0, 0, 0)
    );
    assert!(producer.shutdown(DEADLINE).await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_a_thousand_callers_at_once_over_several_topics_each_get_their_answer() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let nsqd = brokers.nsqd().start().await;
    let producer = Producer::connect(address(&nsqd)).await.unwrap();
    let mut callers = JoinSet::new();
    for caller in 0..1000 {
        let producer = producer.clone();
        callers.spawn(async move {
            for number in 0..5 {
                let topic = format!("topic-{}", caller % 7);
                producer.publish(&topic, format!("{caller}/{number}")).await.unwrap();
            }
        });
    }
    callers.join_all().await;
    let mut total = 0;
    for topic in 0..7 {
        total += nsqd.topic_message_count(&format!("topic-{topic}")).await.unwrap();
    }
    assert_eq!(total, 5000);
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_what_nsqd_would_refuse_is_refused_here_and_the_connection_stays() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let nsqd = brokers.nsqd().start().await;
    let producer = Producer::connect(address(&nsqd)).await.unwrap();
    let largest = vec![b'x'; 1024 * 1024];
    let mut too_large = largest.clone();
    too_large.push(b'x');

    for refused in [
        producer.publish("bad name", "x").await,
        producer.publish("orders", "").await,
        producer.publish("orders", too_large.clone()).await,
        producer.publish_many("orders", vec![vec![b'x'], too_large]).await,
        producer
            .publish_deferred("orders", Duration::from_secs(3601), "x")
            .await,
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);
    }
    producer.publish("orders", largest.clone()).await.unwrap();
    // More than max-body-size in all: it leaves in parts.
    producer.publish_many("orders", vec![largest; 6]).await.unwrap();
    assert_eq!(nsqd.topic_message_count("orders").await, Some(7));
    producer
        .publish_deferred("orders", Duration::from_secs(3600), "x")
        .await
        .unwrap();

    let log = nsqd.log();
    assert_eq!(log.matches("IDENTIFY").count(), 1, "one connection served all: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_an_nsqd_with_lower_limits_rejects_the_guilty_message_alone() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let nsqd = brokers.nsqd().flag("--max-msg-size=100").start().await;
    let producer = Producer::connect(address(&nsqd)).await.unwrap();
    let publishes = (0..50).map(|number| {
        let producer = producer.clone();
        tokio::spawn(async move {
            let len = if number == 20 { 101 } else { 100 };
            producer.publish("orders", vec![b'x'; len]).await
        })
    });
    let publishes: Vec<_> = publishes.collect();
    for (number, publish) in publishes.into_iter().enumerate() {
        let outcome = publish.await.unwrap();
        if number == 20 {
            let error = outcome.unwrap_err();
            assert_eq!(
                (error.kind(), error.code()),
                (ErrorKind::Rejected, Some(ErrorCode::BadMessage))
            );
        } else {
            outcome.unwrap();
        }
    }
    assert_eq!(nsqd.topic_message_count("orders").await, Some(49));

    // nsqd has told its limit: no more of them costs a connection.
    let mut again = JoinSet::new();
    for _ in 0..20 {
        let producer = producer.clone();
        again.spawn(async move { producer.publish("orders", vec![b'x'; 101]).await });
    }
    for outcome in again.join_all().await {
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Invalid);
    }
    producer.publish("orders", vec![b'x'; 100]).await.unwrap();
    assert_eq!(producer.stats().nsqds[0].reconnections, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_lesson_18_a_lower_max_body_size_is_learnt_from_the_real_nsqd() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let nsqd = brokers.nsqd().flag("--max-body-size=2000").start().await;
    let producer = Producer::connect(address(&nsqd)).await.unwrap();
    let mut calls = JoinSet::new();
    for _ in 0..200 {
        let producer = producer.clone();
        calls.spawn(async move { producer.publish("orders", vec![b'x'; 100]).await });
    }
    for outcome in calls.join_all().await {
        outcome.unwrap();
    }
    producer
        .publish_many("orders", vec![vec![b'x'; 100]; 100])
        .await
        .unwrap();
    assert_eq!(nsqd.topic_message_count("orders").await, Some(300));
    assert_eq!(producer.stats().nsqds[0].reconnections, 1);
}

/// What the body of a message asks of its handler. Counts the tries of the one that never works.
fn verdict(message: &Message, tries: &AtomicU32) -> Result<(), BoxError> {
    let first = message.attempts() == 1;
    match &message.body()[..] {
        b"fails once" if first => Err("not this time".into()),
        b"panics once" if first => panic!("as the test wants it"),
        b"never works" => {
            tries.fetch_add(1, Ordering::Relaxed);
            Err(HandlerError::requeue_after(Duration::from_millis(1)).into())
        }
        b"hopeless" => Err(HandlerError::give_up().into()),
        _ => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c5_an_error_a_panic_and_a_given_up_message_on_the_real_nsqd() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let nsqd = brokers.nsqd().start().await;
    let producer = Producer::connect(address(&nsqd)).await.unwrap();
    producer
        .publish_many(
            "orders",
            ["good", "fails once", "panics once", "never works", "hopeless"],
        )
        .await
        .unwrap();

    let handled = Seen::default();
    let given_up = Seen::default();
    let tries = Arc::new(AtomicU32::new(0));
    let (record, give_up) = (recorder(&handled), recorder(&given_up));
    let counted = Arc::clone(&tries);
    let consumer = consume(&nsqd, "orders")
        .max_attempts(3)
        .default_requeue_delay(Duration::from_millis(1))
        .max_backoff_duration(Duration::ZERO)
        .on_give_up(move |message| {
            let recorded = give_up(message);
            async move {
                recorded.await.unwrap();
            }
        })
        .start(move |message: Message| {
            let recorded = verdict(&message, &counted).map(|()| record(message));
            async move {
                match recorded {
                    Ok(recorded) => recorded.await,
                    Err(error) => Err(error),
                }
            }
        })
        .await
        .unwrap();
    seen_all(&handled, 3).await;
    seen_all(&given_up, 2).await;
    let report = consumer.shutdown(DEADLINE).await;

    assert_eq!(
        tries.load(Ordering::Relaxed),
        3,
        "C8: handled max_attempts times and not more"
    );
    assert_eq!((report.given_up, report.finished), (2, 5));
    let channel = nsqd.channel_stats("orders", "billing").await.unwrap();
    assert_eq!((channel.depth, channel.in_flight, channel.deferred), (0, 0, 0));
}
