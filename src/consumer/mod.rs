//! Consuming from nsqd.
//!
//! ```text
//!  nsqd ─▶ connection::Driver ─▶ Session ─▶ inbox ─▶ workers: Handler
//!    ▲            │                                      │
//!    └─ FIN, REQ ─┴──────── link (per connection) ◀──────┤
//!                  RDY ▲                                 │ outcomes that the flow
//!                      └── supervisor: flow, discovery ◀─┘ has to know first
//! ```

mod answer;
mod batch;
mod builder;
mod duplicates;
mod flow;
mod group;
mod handler;
mod link;
mod message;
mod options;
mod start;
mod state;
mod stream;
mod supervisor;
mod work;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

pub use self::answer::answering::Answering;
use self::answer::desk::Desk;
pub use self::batch::{BatchHandler, BatchOptions, BatchOutcome};
pub use self::builder::ConsumerBuilder;
pub use self::duplicates::{DuplicateStore, DuplicateWindow, StoreFuture};
pub use self::flow::PauseReason;
pub use self::group::{
    ConsumerGroup, ConsumerGroupBuilder, GroupReport, GroupStats, MemberId, MemberReport, MemberStats, TopicPattern,
};
pub use self::handler::{BoxError, Handler, HandlerError};
pub use self::link::refusal::AnswerRefused;
pub use self::message::Message;
use self::state::State;
pub use self::state::follow::ConsumerWatch;
pub use self::state::{ConnectionStats, ConsumerReport, ConsumerStats, MessageRef, NsqdStats};
pub use self::stream::MessageStream;
use self::supervisor::control::Control;
use crate::config::{LookupdConfig, address};
use crate::error::{Error, ErrorKind, Result, Step};
use crate::name::{Channel, Topic};

/// Consumes a channel of a topic with a [`Handler`], from all nsqds that have the topic.
///
/// The nsqds are given by address, or found and followed through nsqlookupd. Each connection is made again whenever it
/// is lost, for ever. Reading, heartbeats and answers never wait for a handler: a stuck handler costs its own message
/// and nothing else.
///
/// # What becomes of a message
/// `Ok` from the handler finishes it. An error or a panic requeues it after 90 s times its attempts, and makes the
/// consumer back off as go-nsq does: it pauses, tries one message, and goes on or pauses for longer. A message
/// delivered more than `max_attempts` times (5) is given up. NSQ delivers *at least once*: a message may come twice,
/// when its answer is lost with a connection or its handler takes longer than nsqd's `msg-timeout` (60 s).
///
/// # Drop
/// Dropping the consumer stops its handlers in the middle, gives their messages and those not begun back to nsqd, and
/// closes the connections, in the background and as long as the runtime lives. Use [`shutdown`](Self::shutdown) to let
/// handlers end and to know.
///
/// ```
/// use std::time::Duration;
/// use async_nsq::{BoxError, Consumer, Message, test_server::Nsqd};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let nsqd = Nsqd::start().await?; // or the real one
/// let consumer = Consumer::builder("orders", "billing")
///     .nsqd(nsqd.address())
///     .max_in_flight(200)
///     .start(|message: Message| async move {
///         println!("{:?}, attempt {}", message.body(), message.attempts());
///         Ok::<(), BoxError>(())
///     })
///     .await?;
/// consumer.ready(Duration::from_secs(5)).await?;
/// let report = consumer.shutdown(Duration::from_secs(30)).await;
/// assert!(report.is_clean());
/// # Ok(())
/// # }
/// ```
pub struct Consumer {
    topic: Topic,
    channel: Channel,
    control: mpsc::Sender<Control>,
    state: watch::Receiver<State>,
    desk: Arc<Desk>,
}

impl Consumer {
    /// Options of a consumer of this topic and channel; names are checked by [`ConsumerBuilder::start`].
    pub fn builder<T, C>(topic: T, channel: C) -> ConsumerBuilder
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
        C: TryInto<Channel>,
        C::Error: Into<Error>,
    {
        ConsumerBuilder::new(
            topic.try_into().map_err(Into::into),
            channel.try_into().map_err(Into::into),
        )
    }

    /// Waits until at least one nsqd has accepted the subscription.
    ///
    /// The consumer goes on trying whatever this returns; it is for a service that wants to know, at its start, that
    /// its addresses are right.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`] once `deadline` has passed without a connection, with a failure as its source. There is
    /// no source where nothing has failed: an nsqlookupd has answered and knows no nsqd with the topic yet, or the first
    /// answers are still on their way. [`ErrorKind::Shutdown`] if the consumer has ended.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn ready(&self, deadline: Duration) -> Result<()> {
        let mut state = self.state.clone();
        let ready = state.wait_for(|state| !state.links.is_empty() || state.report.is_some());
        let ended = || Error::new(ErrorKind::Shutdown, Step::Subscribe, "the consumer has ended");
        match timeout(deadline, ready).await {
            Ok(Ok(state)) if state.report.is_none() => Ok(()),
            Ok(_) => Err(ended()),
            Err(_elapsed) => Err(state::ready::not_ready(&self.topic, &self.state.borrow(), deadline)),
        }
    }

    /// The topic consumed from.
    #[must_use]
    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    /// The channel consumed from.
    #[must_use]
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Everything that is known of the consumer, as of now. It waits for nothing.
    #[must_use]
    pub fn stats(&self) -> ConsumerStats {
        self.state.borrow().stats(&self.desk.counts)
    }

    /// Follows the consumer's state: connections, the RDY of each and why it is 0, backoff, discovery.
    ///
    /// ```
    /// # use async_nsq::Consumer;
    /// async fn log_backoff(consumer: &Consumer) {
    ///     let mut watch = consumer.watch();
    ///     while watch.changed().await {
    ///         let stats = watch.stats();
    ///         if stats.backoff_level > 0 {
    ///             println!("in backoff, level {}, for {:?}", stats.backoff_level, stats.backoff_left);
    ///         }
    ///     }
    /// }
    /// ```
    #[must_use]
    pub fn watch(&self) -> ConsumerWatch {
        ConsumerWatch::new(self.state.clone(), Arc::clone(&self.desk))
    }

    /// The connections that are subscribed, as of now, each with its RDY and the reason if that is 0. It waits for
    /// nothing.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionStats> {
        self.state.borrow().links.iter().map(|link| link.stats()).collect()
    }

    /// Changes how many messages may be in flight, from now on; with 0 nothing comes. To stop for a while, there is
    /// [`pause`](Self::pause), which remembers the number.
    ///
    /// How many handlers may run at once stays as it was when the consumer started
    /// ([`concurrency`](ConsumerBuilder::concurrency)).
    ///
    /// # Cancel safety
    /// Dropping the future may leave the number as it was.
    pub async fn set_max_in_flight(&self, count: u32) {
        // A consumer that has ended has nothing in flight.
        let _ended = self.control.send(Control::SetMaxInFlight(count)).await;
    }

    /// Consumes from the nsqd at `address` as well, from now on. True if that is new: an nsqd that only nsqlookupd has
    /// announced so far is kept from now on, whatever nsqlookupd says.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if this is no address; [`ErrorKind::Shutdown`] if the consumer has ended.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the consumer as it was.
    pub async fn add_nsqd(&self, address: &str) -> Result<bool> {
        let address = address::parse("nsqd", address)?;
        self.ask(|reply| Control::AddNsqd(address, reply)).await
    }

    /// Stops consuming from an nsqd that was given by address: it is told to send no more, what it has in flight is still
    /// answered, and then the connection closes. False if it was not given by address. While an nsqlookupd announces it,
    /// it is consumed from all the same: use [`discovery_filter`](ConsumerBuilder::discovery_filter) against that.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if this is no address; [`ErrorKind::Shutdown`] if the consumer has ended.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the consumer as it was.
    pub async fn remove_nsqd(&self, address: &str) -> Result<bool> {
        let address = address::parse("nsqd", address)?;
        self.ask(|reply| Control::RemoveNsqd(address, reply)).await
    }

    /// Finds nsqds through one more nsqlookupd, which is asked at once. False if it is asked already; it is asked by the
    /// new settings then.
    ///
    /// # Errors
    /// Those of [`ConsumerBuilder::start`] for an nsqlookupd; [`ErrorKind::Shutdown`] if the consumer has ended.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the consumer as it was.
    pub async fn add_lookupd(&self, lookupd: impl Into<LookupdConfig>) -> Result<bool> {
        let lookupd = Box::new(lookupd.into());
        self.ask(|reply| Control::AddLookupd(lookupd, reply)).await
    }

    /// Asks an nsqlookupd no more. An nsqd that only it announced is left after three rounds in which all others
    /// answered, and 30 s; once no nsqlookupd is left, all that were found so far stay. False if it was not asked.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if this is no address; [`ErrorKind::Shutdown`] if the consumer has ended.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the consumer as it was.
    pub async fn remove_lookupd(&self, address: &str) -> Result<bool> {
        let address = address.to_owned();
        self.ask(|reply| Control::RemoveLookupd(address, reply)).await
    }

    async fn ask(&self, control: impl FnOnce(oneshot::Sender<Result<bool>>) -> Control) -> Result<bool> {
        let (reply, answer) = oneshot::channel();
        self.control
            .send(control(reply))
            .await
            .map_err(|_| supervisor::control::ended())?;
        answer.await.unwrap_or_else(|_| Err(supervisor::control::ended()))
    }

    /// Stops the flow of messages until [`resume`](Self::resume): nsqds are told to send none. Those that are here or on
    /// their way are handled, and the connections stay.
    ///
    /// `max_in_flight` is as it was afterwards, and a backoff goes on underneath: its time runs, and the message that
    /// tries whether things are well again comes once the pause is over. A second pause changes nothing.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the consumer as it was.
    pub async fn pause(&self) {
        // A consumer that has ended is as quiet as it gets.
        let _ended = self.control.send(Control::SetPaused(true)).await;
    }

    /// Ends a [`pause`](Self::pause). Without one it does nothing.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the consumer paused.
    pub async fn resume(&self) {
        let _ended = self.control.send(Control::SetPaused(false)).await;
    }

    /// Whether an nsqd has about as many messages in flight here as it may: at least one, and 85 % of its RDY, as in
    /// go-nsq. A handler that collects messages asks this to know that waiting will bring no more, and that it should
    /// answer what it has. It waits for nothing.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        let is_closing = |connection: &ConnectionStats| connection.paused == Some(PauseReason::Closing);
        self.connections()
            .iter()
            .any(|connection| !is_closing(connection) && flow::is_starved(connection.in_flight, connection.rdy))
    }

    /// Ends the consumer within `deadline`: nsqds are told to send no more, messages not begun are given back at
    /// once, running handlers may end, every answer is written, and connections are closed. The last tenth of the time,
    /// at most 1 s, is kept for writing: handlers that still run then are stopped, and their messages given back.
    ///
    /// The report covers the consumer's whole life. A second call waits for the first one's end.
    ///
    /// # Cancel safety
    /// Dropping the future once it was polled leaves the consumer ending, by the deadline given.
    pub async fn shutdown(&self, deadline: Duration) -> ConsumerReport {
        let now = Instant::now();
        let deadline = now
            .checked_add(deadline)
            .unwrap_or(now + Duration::from_secs(86_400 * 365));
        // It fails only if the consumer is ending already.
        let _ending = self.control.send(Control::Shutdown { deadline }).await;
        let mut state = self.state.clone();
        match state.wait_for(|state| state.report.is_some()).await {
            Ok(state) => state.report.clone().unwrap_or_default(),
            // The task is gone with its runtime.
            Err(_) => self.unfinished(),
        }
    }

    /// What is known of a consumer that has not ended in time, or will not.
    fn unfinished(&self) -> ConsumerReport {
        let stats = self.stats();
        ConsumerReport {
            finished: stats.finished,
            requeued: stats.requeued,
            given_up: stats.given_up,
            duplicates: stats.duplicates,
            timed_out: stats.timed_out,
            handler_timeouts: stats.handler_timeouts,
            refused: stats.refused,
            unsent: stats.unsent,
            unflushed: stats.connections,
            ..ConsumerReport::default()
        }
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("topic", &self.topic)
            .field("channel", &self.channel)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
