//! The whole way of a message through a client, from its call or its handler to the stream and back.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nsq::{ConnectionConfig, Consumer, Message, Producer, Topic};
use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::Result;
use crate::nsqd::{BODY, Nsqd};

const DEADLINE: Duration = Duration::from_secs(10);

/// One thread, and a clock that moves on only when there is nothing else to do.
fn runtime() -> Result<Runtime> {
    Ok(Builder::new_current_thread().enable_time().start_paused(true).build()?)
}

/// So many callers, each awaiting one publish after the other.
pub(crate) fn publish(messages: u64, callers: u64) -> Result<()> {
    runtime()?.block_on(async {
        let producer = producer().await?;
        let topic = Topic::new("orders")?;
        let mut tasks: JoinSet<async_nsq::Result<()>> = JoinSet::new();
        for _ in 0..callers {
            let (producer, topic) = (producer.clone(), topic.clone());
            tasks.spawn(async move {
                for _ in 0..messages / callers {
                    producer.publish(topic.clone(), Bytes::from_static(BODY)).await?;
                }
                Ok(())
            });
        }
        while let Some(task) = tasks.join_next().await {
            task??;
        }
        producer.shutdown(DEADLINE).await;
        Ok(())
    })
}

/// One caller, awaiting one batch of 100 after the other.
pub(crate) fn publish_many(messages: u64) -> Result<()> {
    runtime()?.block_on(async {
        let producer = producer().await?;
        let topic = Topic::new("orders")?;
        for _ in 0..messages / 100 {
            let bodies = std::iter::repeat_n(Bytes::from_static(BODY), 100);
            producer.publish_many(topic.clone(), bodies).await?;
        }
        producer.shutdown(DEADLINE).await;
        Ok(())
    })
}

async fn producer() -> async_nsq::Result<Producer> {
    let connection = ConnectionConfig::new().connector(Nsqd { messages: 0 });
    Producer::builder()
        .nsqd("nsqd:4150")
        .connection(connection)
        .connect()
        .await
}

/// A handler that only counts.
pub(crate) fn consume(messages: u64, max_in_flight: u32) -> Result<()> {
    runtime()?.block_on(async {
        let done = Arc::new(Notify::new());
        let handled = AtomicU64::new(0);
        let is_done = Arc::clone(&done);
        let consumer = Consumer::builder("orders", "billing")
            .nsqd("nsqd:4150")
            .connection(ConnectionConfig::new().connector(Nsqd { messages }))
            .max_in_flight(max_in_flight)
            .start(move |_: Message| {
                if handled.fetch_add(1, Ordering::Relaxed) + 1 == messages {
                    is_done.notify_one();
                }
                async { Ok::<(), Infallible>(()) }
            })
            .await?;
        done.notified().await;
        consumer.shutdown(DEADLINE).await;
        Ok(())
    })
}
