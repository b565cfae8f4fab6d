//! Messages as a stream, for whoever would rather take them than be called.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;

use super::Consumer;
use super::answer::lease::Leases;
use super::duplicates::Unstarted;
use super::message::Message;
use super::state::ConsumerReport;
use super::work::source::Source;

/// The messages of a consumer, to be taken one by one: see [`ConsumerBuilder::stream`](super::ConsumerBuilder::stream).
///
/// Each message is *owned*: [`finish`](Message::finish), [`requeue`](Message::requeue) or
/// [`give_up`](Message::give_up) answers it, and one that is dropped unanswered is requeued. Messages that nobody has taken
/// yet count as in flight like those that are not answered, so nsqd sends no more than `max_in_flight` of both together:
/// whoever takes slowly is sent little. nsqd's `msg_timeout` runs from the delivery on, also for what is not taken yet.
///
/// It is a [`Stream`] for the combinators of `futures-util` or `tokio-stream`; [`next`](Self::next) needs neither. It
/// ends, with `None`, once the consumer is shut down.
///
/// ```
/// use std::time::Duration;
/// use async_nsq::{Consumer, test_server::Nsqd};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let nsqd = Nsqd::start().await?;
/// # nsqd.create_channel("orders", "billing")?;
/// # for order in ["one", "two"] { nsqd.publish("orders", order)?; }
/// let mut messages = Consumer::builder("orders", "billing")
///     .nsqd(nsqd.address())
///     .max_in_flight(200)
///     .stream()
///     .await?;
/// while let Some(message) = messages.next().await {
///     println!("{:?}", message.body());
///     let last = message.body() == "two";
///     message.finish();
///     if last {
///         break;
///     }
/// }
/// let report = messages.shutdown(Duration::from_secs(10)).await;
/// assert_eq!(report.finished, 2);
/// # Ok(())
/// # }
/// ```
///
/// With the combinators of `futures-util`, the first ten messages:
///
/// ```
/// # use async_nsq::{Message, MessageStream};
/// use futures_util::StreamExt;
///
/// async fn first_ten(messages: &mut MessageStream) -> Vec<Message> {
///     messages.by_ref().take(10).collect().await
/// }
/// ```
///
/// # Drop
/// Dropping the stream drops its consumer: messages not taken are given back to nsqd at once, and connections are closed
/// once the messages that somebody still holds are answered, in the background and as long as the runtime lives.
#[must_use = "messages come only to whoever takes them"]
pub struct MessageStream {
    // Before the consumer: what it is about to hand out is given back while there is a connection to do it on.
    source: Source,
    leases: Leases,
    consumer: Consumer,
}

impl MessageStream {
    pub(super) fn new(source: Source, consumer: Consumer) -> Self {
        Self {
            source,
            leases: Leases::default(),
            consumer,
        }
    }

    /// The next message, or `None` once the consumer is shut down.
    ///
    /// # Cancel safety
    /// No message is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Message> {
        poll_fn(|cx| self.poll_message(cx)).await
    }

    /// The consumer behind the stream: its statistics, its connections, and [`ready`](Consumer::ready).
    #[must_use]
    pub fn consumer(&self) -> &Consumer {
        &self.consumer
    }

    /// Ends the consumer within `deadline`, as [`Consumer::shutdown`] does: nsqds are told to send no more, messages that
    /// were not taken are given back at once, and those that were can be answered by whoever holds them until the deadline
    /// comes near. The stream ends when this begins.
    ///
    /// # Cancel safety
    /// As [`Consumer::shutdown`].
    pub async fn shutdown(&mut self, deadline: Duration) -> ConsumerReport {
        self.source.stop_asking();
        self.consumer.shutdown(deadline).await
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        self.source.poll_next(cx, None).map(|next| {
            let (delivery, ticket) = next.and_then(Unstarted::begin)?;
            let lease = self.leases.next(&delivery.link, delivery.delivered_at);
            Some(Message::owned(delivery.message, lease, ticket))
        })
    }
}

impl Stream for MessageStream {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        self.poll_message(cx)
    }
}

impl fmt::Debug for MessageStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageStream")
            .field("consumer", &self.consumer)
            .finish_non_exhaustive()
    }
}
