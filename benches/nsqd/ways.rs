//! The crate's other ways to take messages.

use std::convert::Infallible;
use std::sync::Arc;

use async_nsq::{BatchOptions, ConsumerBuilder, Message};

use crate::Result;
use crate::ours::{Counter, DEADLINE};
use crate::span::Span;

/// Handles so many messages of a stream, each finished by hand.
pub(crate) async fn consume_stream(builder: ConsumerBuilder, messages: u64) -> Result<Span> {
    let mut stream = builder.stream().await?;
    let counter = Counter::default();
    for _ in 0..messages {
        let Some(message) = stream.next().await else { break };
        counter.count(messages);
        drop(message.finish());
    }
    let span = counter.reached().await;
    stream.shutdown(DEADLINE).await;
    Ok(span)
}

/// Handles them in batches of 100, one at a time.
pub(crate) async fn consume_batches(builder: ConsumerBuilder, messages: u64) -> Result<Span> {
    let counter = Arc::new(Counter::default());
    let shared = Arc::clone(&counter);
    let consumer = builder
        .concurrency(1)
        .start_batches(BatchOptions::new(), move |batch: Vec<Message>| {
            batch.iter().for_each(|_| shared.count(messages));
            async { Ok::<(), Infallible>(()) }
        })
        .await?;
    let span = counter.reached().await;
    consumer.shutdown(DEADLINE).await;
    Ok(span)
}
