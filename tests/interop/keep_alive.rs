//! Keeping messages alive on the real nsqd, and the end of that.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nsq::{BoxError, Consumer, ConsumerBuilder, ErrorKind, Message, Producer};

use crate::broker::{Brokers, ChannelStats, Nsqd, eventually};

fn consumer(nsqd: &Nsqd) -> ConsumerBuilder {
    Consumer::builder("orders", "billing")
        .nsqd(nsqd.tcp_address().to_string())
        .keep_alive(true)
        .max_backoff_duration(Duration::ZERO)
}

/// Waits until the one message is finished and the channel is empty, and tells how it went.
async fn emptied(nsqd: &Nsqd, consumer: &Consumer) -> ChannelStats {
    eventually("the message is finished", async || {
        (consumer.stats().finished > 0).then_some(())
    })
    .await;
    eventually("the channel is empty", async || {
        let stats = nsqd.channel_stats("orders", "billing").await?;
        let left = stats.depth + stats.in_flight + stats.deferred;
        (left == 0 && stats.message_count > 0).then_some(stats)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn lesson_27_a_handler_of_three_seconds_keeps_its_message_on_an_nsqd_that_waits_for_one() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let nsqd = brokers.nsqd().flag("--msg-timeout=1s").start().await;
    nsqd.create_channel("orders", "billing").await;
    nsqd.publish("orders", "one").await;
    let begun = Arc::new(AtomicU32::new(0));
    let counting = Arc::clone(&begun);
    let consumer = consumer(&nsqd)
        .start(move |_: Message| {
            counting.fetch_add(1, Ordering::Relaxed);
            async {
                tokio::time::sleep(Duration::from_secs(3)).await;
                Ok::<(), BoxError>(())
            }
        })
        .await
        .unwrap();
    let stats = emptied(&nsqd, &consumer).await;
    assert_eq!((stats.timeout_count, stats.requeue_count), (0, 0));
    assert_eq!(begun.load(Ordering::Relaxed), 1);
    let report = consumer.shutdown(Duration::from_secs(10)).await;
    assert_eq!((report.finished, report.timed_out, report.refused), (1, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn lesson_27_past_max_msg_timeout_the_handler_is_stopped_and_the_message_comes_again() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let nsqd = brokers.nsqd().flag("--msg-timeout=1s").flag("--max-msg-timeout=2s");
    let nsqd = nsqd.start().await;
    nsqd.create_channel("orders", "billing").await;
    nsqd.publish("orders", "one").await;
    let lost = Arc::new(Mutex::new(Vec::new()));
    let noting = Arc::clone(&lost);
    let consumer = consumer(&nsqd)
        .start(move |message: Message| {
            let lost = Arc::clone(&noting);
            async move {
                if message.attempts() == 1 {
                    let reason = message.lost().await.kind();
                    lost.lock().unwrap().push(reason);
                    std::future::pending::<()>().await;
                }
                Ok::<(), BoxError>(())
            }
        })
        .await
        .unwrap();
    let stats = emptied(&nsqd, &consumer).await;
    assert_eq!((stats.timeout_count, stats.requeue_count), (1, 0));
    eventually("the first handler is stopped", async || {
        (consumer.stats().timed_out == 1).then_some(())
    })
    .await;
    // By the clock here, or because nsqd was quicker and has delivered it again.
    assert_eq!(*lost.lock().unwrap(), [ErrorKind::TimedOut]);
    let report = consumer.shutdown(Duration::from_secs(10)).await;
    assert_eq!((report.finished, report.timed_out), (1, 1));
    assert!(report.is_clean(), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lesson_31_what_is_given_up_arrives_at_the_dead_letter_topic() {
    let Some(brokers) = Brokers::find_or_skip() else { return };
    let nsqd = brokers.nsqd().start().await;
    nsqd.create_channel("orders", "billing").await;
    let producer = Producer::connect(nsqd.tcp_address().to_string()).await.unwrap();
    let dead_letters = producer.clone();
    let consumer = consumer(&nsqd)
        .max_attempts(2)
        .default_requeue_delay(Duration::ZERO)
        .dead_letter(dead_letters, "orders.dead")
        .start(|_: Message| async { Err::<(), BoxError>("no".into()) })
        .await
        .unwrap();
    producer.publish("orders", "hopeless").await.unwrap();
    let stats = emptied(&nsqd, &consumer).await;
    assert_eq!(stats.requeue_count, 2);
    assert_eq!(nsqd.topic_message_count("orders.dead").await, Some(1));
    let report = consumer.shutdown(Duration::from_secs(10)).await;
    assert_eq!((report.given_up, report.finished, report.requeued), (1, 1, 2));
}
