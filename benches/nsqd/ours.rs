//! The crate, used as a service would use it.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_nsq::{ConsumerBuilder, Message, Producer, Topic};
use bytes::Bytes;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::Result;
use crate::span::{Clock, Span};

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// So many callers that share `calls`, each awaiting one publish of `batch` messages to its topic after the other. The
/// producer is shut down afterwards.
pub(crate) async fn publish(
    producer: Producer,
    topics: &[String],
    bodies: &'static [Bytes],
    calls: u64,
    batch: usize,
    callers: u32,
) -> Result<Span> {
    let topics: Vec<Topic> = topics.iter().map(Topic::new).collect::<async_nsq::Result<_>>()?;
    for topic in &topics {
        // The first creates the topic.
        publish_batch(&producer, topic, &mut bodies.iter().cycle(), batch).await?;
    }
    let mut tasks: JoinSet<async_nsq::Result<()>> = JoinSet::new();
    let clock = Clock::start();
    for (caller, topic) in topics.iter().cycle().take(callers as usize).enumerate() {
        let (producer, topic) = (producer.clone(), topic.clone());
        tasks.spawn(async move {
            let mut bodies = bodies.iter().cycle().skip(caller);
            for _ in 0..calls / u64::from(callers) {
                publish_batch(&producer, &topic, &mut bodies, batch).await?;
            }
            Ok(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    let span = clock.stop(calls / u64::from(callers) * u64::from(callers) * batch as u64);
    producer.shutdown(DEADLINE).await;
    Ok(span)
}

async fn publish_batch(
    producer: &Producer,
    topic: &Topic,
    bodies: &mut impl Iterator<Item = &'static Bytes>,
    batch: usize,
) -> async_nsq::Result<()> {
    if batch == 1 {
        let body = bodies.next().cloned().unwrap_or_default();
        producer.publish(topic.clone(), body).await
    } else {
        producer.publish_many(topic.clone(), bodies.take(batch).cloned()).await
    }
}

/// Handles so many messages with a handler that only counts them. The clock runs from the first message on.
pub(crate) async fn consume(builder: ConsumerBuilder, messages: u64) -> Result<Span> {
    let counter = Arc::new(Counter::default());
    let shared = Arc::clone(&counter);
    let consumer = builder
        .start(move |_: Message| {
            shared.count(messages);
            async { Ok::<(), Infallible>(()) }
        })
        .await?;
    let span = counter.reached().await;
    consumer.shutdown(DEADLINE).await;
    Ok(span)
}

/// Counts messages and times them, from the first to the last.
#[derive(Default)]
pub(crate) struct Counter {
    handled: AtomicU64,
    clock: OnceLock<Clock>,
    span: OnceLock<Span>,
    done: Notify,
}

impl Counter {
    /// Counts one message of so many that are timed.
    pub(crate) fn count(&self, until: u64) {
        let handled = self.handled.fetch_add(1, Ordering::Relaxed) + 1;
        if handled == 1 {
            self.clock.get_or_init(Clock::start);
        } else if handled == until {
            self.span
                .get_or_init(|| self.clock.get_or_init(Clock::start).stop(until));
            self.done.notify_one();
        }
    }

    /// Returns when the last one that `count` was to time is counted.
    pub(crate) async fn reached(&self) -> Span {
        loop {
            if let Some(span) = self.span.get() {
                return *span;
            }
            self.done.notified().await;
        }
    }
}
