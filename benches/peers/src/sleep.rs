//! Handlers that wait for something, as those of services do.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nsq::{ConsumerBuilder, Message};
use tokio::time::sleep;

use crate::Result;
use crate::ours::{Counter, DEADLINE};
use crate::span::Span;

/// What all of a client's handlers share: one message in so many has them sleep. The clock runs from the first message
/// handled to the last.
pub(crate) struct Sleepers {
    messages: u64,
    one_in: u64,
    pause: Duration,
    begun: AtomicU64,
    counter: Counter,
}

impl Sleepers {
    pub(crate) fn new(messages: u64, one_in: u64, pause: Duration) -> Arc<Self> {
        Arc::new(Self {
            messages,
            one_in,
            pause,
            begun: AtomicU64::new(0),
            counter: Counter::default(),
        })
    }

    pub(crate) async fn handle(&self) {
        if self.begun.fetch_add(1, Ordering::Relaxed).is_multiple_of(self.one_in) {
            sleep(self.pause).await;
        }
        self.counter.count(self.messages);
    }

    /// Returns when so many messages are handled.
    pub(crate) async fn done(&self) -> Span {
        self.counter.reached().await
    }
}

/// This crate as the consumer.
pub(crate) async fn consume(builder: ConsumerBuilder, sleepers: Arc<Sleepers>) -> Result<Span> {
    let shared = Arc::clone(&sleepers);
    let consumer = builder
        .start(move |_: Message| {
            let shared = Arc::clone(&shared);
            async move {
                shared.handle().await;
                Ok::<(), Infallible>(())
            }
        })
        .await?;
    let span = sleepers.done().await;
    consumer.shutdown(DEADLINE).await;
    Ok(span)
}
