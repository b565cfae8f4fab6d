//! This crate with handlers that wait for something, as those of services do.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_nsq::{ConsumerBuilder, Message};
use tokio::time::sleep;

use crate::Result;
use crate::ours::{Counter, DEADLINE};
use crate::span::Span;

/// Handles so many messages with handlers that sleep. The clock runs from the first message on.
pub(crate) async fn consume(builder: ConsumerBuilder, messages: u64, pause: Duration) -> Result<Span> {
    let counter = Arc::new(Counter::default());
    let shared = Arc::clone(&counter);
    let consumer = builder
        .start(move |_: Message| {
            let shared = Arc::clone(&shared);
            async move {
                sleep(pause).await;
                shared.count(messages);
                Ok::<(), Infallible>(())
            }
        })
        .await?;
    let span = counter.reached().await;
    consumer.shutdown(DEADLINE).await;
    Ok(span)
}
