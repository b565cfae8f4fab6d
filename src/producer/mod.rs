//! Publishing to nsqd.
//!
//! ```text
//! Producer ── submit ──▶ pipeline ── take ──▶ node: PublishRole ──▶ connection::Driver ──▶ nsqd
//!    ▲                      │                    │ batch: PUB, MPUB, DPUB
//!    └────── outcome ───────┘ ◀──── resolve ─────┘ answers, in order
//! ```
//!
//! That is the way with one nsqd, a [`Lane`](lane::Lane). With several, with copies or with repetitions a
//! [`Pool`](pool::Pool) stands between the producer and the pipelines of its lanes.

mod batch;
mod bell;
mod builder;
mod detached;
mod lane;
mod lanes;
mod limits;
mod linger;
mod node;
mod options;
mod parts;
mod phase;
mod pipeline;
mod pool;
mod sink;
mod stats;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

pub use self::builder::ProducerBuilder;
pub use self::detached::PublishFailure;
use self::lanes::Lanes;
use self::parts::Verdict;
use self::pipeline::{Detached, Payload, Span};
pub use self::pool::{RoutedMessage, RoutedNsqd, Router, Routing};
pub use self::sink::ProducerSink;
use self::sink::Tally;
use self::stats::Local;
pub use self::stats::{LatencyHistogram, ProducerNodeStats, ProducerStats};
use crate::config::address;
use crate::error::{Error, ErrorKind, Result, Step};
use crate::name::Topic;

/// Publishes messages to one nsqd or to several.
///
/// A producer is a handle: cheap to clone, to be used from many tasks at once. All clones share one connection to each
/// nsqd, on which many publishes are on their way at the same time. It is made again whenever it is lost, for ever, with
/// delays from 100 ms to 60 s.
///
/// # What a publish tells
/// `Ok` means that nsqd has answered OK for that message. An error is one of four kinds
/// ([`ErrorKind`]): *invalid* (refused here, nothing was sent), *rejected* (nsqd's error code), *not sent* (safe to
/// retry) and *unknown* (sent and never answered: the message may be in the queue). Each publish ends within its
/// deadline, 30 s by default ([`with_publish_timeout`](Self::with_publish_timeout)), whatever happens to the
/// connection. While there is no connection, publishes wait for one until their deadline; so do those that nsqd refuses
/// because it is exiting, as it has not stored them.
///
/// # Several nsqds
/// Given by address ([`nsqd`](ProducerBuilder::nsqd)) or found through nsqlookupd ([`lookupd`](ProducerBuilder::lookupd)),
/// one of those that have a connection is chosen for each publish ([`Routing`]). What could not be sent to one goes to
/// another at once; only while none has a connection do publishes wait. What was sent and not answered is *unknown* as
/// ever, unless the producer may repeat it ([`at_least_once`](ProducerBuilder::at_least_once)). nsqds do not replicate:
/// to survive the loss of one with its disk, send each message to several ([`copies`](ProducerBuilder::copies)). The
/// messages of a topic are in order at each nsqd only.
///
/// ```
/// use async_nsq::{Producer, Routing, test_server::Nsqd};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (first, second, third) = (Nsqd::start().await?, Nsqd::start().await?, Nsqd::start().await?);
/// let producer = Producer::builder()
///     .nsqd(first.address())
///     .nsqd(second.address())
///     .nsqd(third.address())
///     .routing(Routing::least_loaded())
///     .copies(2)
///     .connect()
///     .await?;
/// producer.publish("orders", r#"{"id":1}"#).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Batching
/// Publishes to one topic that wait at the same moment leave together as MPUB, without any added delay; each caller gets
/// its own result. The messages of one topic are sent in the order in which they were published.
///
/// # Drop
/// Dropping the last clone ends the connection in the background once nothing is pending, at once if nothing is, and
/// after 30 s in any case. With several nsqds, what was enqueued goes on until its deadline before that. Use
/// [`shutdown`](Self::shutdown) to wait for it.
///
/// ```
/// use async_nsq::{Producer, test_server::Nsqd};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let nsqd = Nsqd::start().await?; // or the real one
/// let producer = Producer::connect(nsqd.address()).await?;
/// producer.publish("orders", r#"{"id":1}"#).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Producer {
    shared: Arc<Shared>,
    publish_timeout: Duration,
}

/// What all clones share. Dropped with the last of them, which is how the lanes learn that they are gone.
struct Shared {
    lanes: Lanes,
    limits: Limits,
    local: Local,
}

/// What nsqd would refuse, refused here.
#[derive(Clone, Copy, Debug)]
struct Limits {
    msg_size: usize,
    body_size: usize,
    delay: Duration,
}

/// What was left unconfirmed when a producer was shut down: see [`Producer::shutdown`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProducerReport {
    /// Publishes that were accepted and ended as [`ErrorKind::NotSent`] because of the shutdown. Those that still waited for
    /// room end so, too, and are not counted.
    pub not_sent: usize,
    /// Publishes whose answer never came: they ended as [`ErrorKind::Unknown`], or their callers had left. With one nsqd those
    /// count whose answer is missing at the end, with several those whose callers were told so meanwhile.
    pub unknown: usize,
}

impl ProducerReport {
    /// Whether nothing was left unconfirmed.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        *self == Self::default()
    }
}

impl Producer {
    /// Connects to the nsqd at `address` (`host:port` of its TCP protocol, 4150 by default) with default options.
    ///
    /// # Errors
    /// As [`ProducerBuilder::connect`].
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection; nothing is left behind.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn connect(address: impl AsRef<str>) -> Result<Self> {
        Self::builder().nsqd(address.as_ref()).connect().await
    }

    /// Options before connecting.
    pub fn builder() -> ProducerBuilder {
        ProducerBuilder::new()
    }

    /// Publishes one message and waits for nsqd's answer.
    ///
    /// `topic` is a string or a [`Topic`]; `body` is anything that turns into [`Bytes`]: a `Vec<u8>`, a `String`,
    /// `Bytes` or something static.
    ///
    /// # Errors
    /// One of the four outcomes that [`Producer`] lists. *Invalid* are a bad topic name, an empty body and one larger
    /// than [`max_msg_size`](crate::ConnectionConfig::max_msg_size).
    ///
    /// # Cancel safety
    /// Dropping the future before the message was handed to the connection takes it back; after that it is published
    /// and its answer ignored, unless it would have to be sent again, which is not done for nobody. With [`copies`](ProducerBuilder::copies), those that wait at an nsqd are published, too. Other
    /// publishes are not affected.
    pub async fn publish<T>(&self, topic: T, body: impl Into<Bytes>) -> Result<()>
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
    {
        let topic = self.counted(topic.try_into().map_err(Into::into))?;
        let body = body.into();
        self.check_body(&body)?;
        self.submit(Some(topic), Payload::One(body)).await
    }

    /// Takes one message for publishing and returns, as soon as there is room for it within what may be pending.
    ///
    /// Whether nsqd confirms it is counted in [`stats`](Self::stats), and a failure goes to
    /// [`on_failure`](ProducerBuilder::on_failure). [`flush`](Self::flush) and [`shutdown`](Self::shutdown) wait for it.
    /// Its deadline is that of a publish until it is sent; after that its answer is awaited for as long as the
    /// connection lives, so that *unknown* is told only where it is.
    ///
    /// With several nsqds the message goes the way of a publish in a task of its own, and its deadline is that of a
    /// publish to the end, also when the last clone is dropped before. Room is then counted over all nsqds: as much may be
    /// enqueued and unresolved as may be pending at one. What finds no connection at first may be sent in another order.
    ///
    /// # Errors
    /// *Invalid* as for [`publish`](Self::publish), *not sent* if there was no room within the deadline or the producer
    /// has been shut down. The hook is not told of these.
    ///
    /// # Cancel safety
    /// Dropping the future before it is ready takes the message back.
    pub async fn enqueue<T>(&self, topic: T, body: impl Into<Bytes>) -> Result<()>
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
    {
        let topic = self.counted(topic.try_into().map_err(Into::into))?;
        let body = body.into();
        self.check_body(&body)?;
        let span = self.span();
        let (lanes, tally) = (&self.shared.lanes, None);
        match lanes.try_detach(Detached { topic, body, tally }, span) {
            Ok(queued) => queued,
            Err(back) => lanes.detach(back, span).await,
        }
    }

    /// This producer as a [`Sink`](futures_sink::Sink) of topics and bodies.
    ///
    /// ```
    /// # use async_nsq::{Producer, Topic, test_server::Nsqd};
    /// # use bytes::Bytes;
    /// use futures_util::{SinkExt, StreamExt, stream};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let nsqd = Nsqd::start().await?;
    /// # let producer = Producer::connect(nsqd.address()).await?;
    /// let orders = Topic::new("orders")?;
    /// let messages = stream::iter(["one", "two"]).map(|body| Ok((orders.clone(), Bytes::from(body))));
    /// messages.forward(producer.sink()).await?; // all confirmed
    /// # Ok(())
    /// # }
    /// ```
    pub fn sink(&self) -> ProducerSink {
        ProducerSink::new(self.clone())
    }

    /// Publishes several messages with one command (MPUB) and waits for nsqd's answer. No message at all is `Ok` at once.
    ///
    /// nsqd takes all of them or none, unless its disk fails in between: that ends as *unknown*.
    ///
    /// Messages that are more than [`max_body_size`](ProducerBuilder::max_body_size) in all leave in several commands,
    /// in order and all on their way at once. Then it is no longer all or none: `Ok` means that nsqd has confirmed all;
    /// otherwise the error is the worst of the parts' (*unknown* before *rejected* before *not sent*) and tells how many
    /// messages were confirmed. It is *unknown*, too, where a part was confirmed and another not sent, since to publish
    /// the whole again would publish that part twice. With several nsqds, each part goes to one of its own, or to as many
    /// as there are [`copies`](ProducerBuilder::copies).
    ///
    /// ```
    /// # use async_nsq::{Producer, test_server::Nsqd};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let nsqd = Nsqd::start().await?;
    /// # let producer = Producer::connect(nsqd.address()).await?;
    /// producer.publish_many("orders", ["one", "two", "three"]).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// One of the four outcomes that [`Producer`] lists, for all of them. *Invalid* are the cases of
    /// [`publish`](Self::publish).
    ///
    /// # Cancel safety
    /// As [`publish`](Self::publish).
    pub async fn publish_many<T, B>(&self, topic: T, bodies: impl IntoIterator<Item = B>) -> Result<()>
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
        B: Into<Bytes>,
    {
        let topic = self.counted(topic.try_into().map_err(Into::into))?;
        let bodies: Vec<Bytes> = bodies.into_iter().map(Into::into).collect();
        if bodies.is_empty() {
            return Ok(());
        }
        for body in &bodies {
            self.check_body(body)?;
        }
        let limit = self.shared.limits.body_size.min(self.shared.lanes.learnt_body_size());
        let mut parts = parts::parts(bodies, limit);
        match parts.pop() {
            Some(whole) if parts.is_empty() => self.submit(Some(topic), whole).await,
            last => self.submit_parts(topic, parts.into_iter().chain(last)).await,
        }
    }

    /// Publishes one message that nsqd delivers after `delay`, rounded up to a millisecond, and waits for nsqd's
    /// answer (DPUB).
    ///
    /// nsqd keeps the delay in memory only: after its restart the message is delivered at once.
    ///
    /// # Errors
    /// One of the four outcomes that [`Producer`] lists. *Invalid* are the cases of [`publish`](Self::publish) and a
    /// delay longer than [`max_req_timeout`](ProducerBuilder::max_req_timeout).
    ///
    /// # Cancel safety
    /// As [`publish`](Self::publish).
    pub async fn publish_deferred<T>(&self, topic: T, delay: Duration, body: impl Into<Bytes>) -> Result<()>
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
    {
        let topic = self.counted(topic.try_into().map_err(Into::into))?;
        let body = body.into();
        self.check_body(&body)?;
        let most = self.shared.limits.delay;
        if delay > most {
            return self.counted(Err(Error::invalid(format!(
                "the delay of {delay:?} is longer than max_req_timeout ({most:?}), the most that nsqd accepts"
            ))));
        }
        self.submit(Some(topic), Payload::Deferred { delay, body }).await
    }

    /// Goes to nsqd and back: `Ok` means that nsqd has read and answered everything sent before. Of several nsqds, each that
    /// has a connection is asked.
    ///
    /// NSQ has no command for this. nsqd answers an IDENTIFY that repeats the first one's names, and it does so in
    /// order with publishes; it also logs a line for it, so this is a check and not something to call in a loop.
    ///
    /// # Errors
    /// *Not sent* if there was no connection within the deadline, *unknown* if no answer came.
    ///
    /// # Cancel safety
    /// As [`publish`](Self::publish).
    pub async fn ping(&self) -> Result<()> {
        self.submit(None, Payload::Ping).await
    }

    /// The same producer with another deadline for its publishes, counted from each call, in place of
    /// [`publish_timeout`](ProducerBuilder::publish_timeout).
    ///
    /// ```
    /// # use async_nsq::{Producer, test_server::Nsqd};
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let nsqd = Nsqd::start().await?;
    /// # let producer = Producer::connect(nsqd.address()).await?;
    /// let impatient = producer.with_publish_timeout(Duration::from_millis(500));
    /// impatient.publish("orders", "soon or not at all").await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_publish_timeout(&self, timeout: Duration) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            publish_timeout: timeout,
        }
    }

    /// Publishes to the nsqd at `address` (`host:port`) as well, once it has a connection. True if that is new: an nsqd that
    /// only nsqlookupd has announced so far is kept from now on, whatever nsqlookupd says. For all clones, and for
    /// [`Routing::failover`] behind those that are there.
    ///
    /// ```
    /// # use async_nsq::{Producer, test_server::Nsqd};
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (first, second) = (Nsqd::start().await?, Nsqd::start().await?);
    /// let producer = Producer::builder().nsqd(first.address()).dynamic_nsqds(true).connect().await?;
    /// // The first one is to be replaced.
    /// producer.add_nsqd(second.address())?;
    /// producer.remove_nsqd(first.address())?;
    /// producer.publish("orders", "for the second").await?;
    /// assert_eq!(second.stats().topic("orders").map(|topic| topic.message_count), Some(1));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if this is no address, or if the producer was built for one nsqd only and not
    /// [`dynamic_nsqds`](ProducerBuilder::dynamic_nsqds); [`ErrorKind::Shutdown`] if it has been shut down.
    pub fn add_nsqd(&self, address: &str) -> Result<bool> {
        let address = address::parse("nsqd", address)?;
        self.shared.lanes.add_nsqd(&address)
    }

    /// Publishes no more to an nsqd that was given by address: what is pending there is still sent, what cannot be, goes
    /// elsewhere, and then the connection closes. False if it was not given by address. While an nsqlookupd announces it,
    /// it is published to all the same.
    ///
    /// After the last one, publishes wait for another until their deadline.
    ///
    /// # Errors
    /// As [`add_nsqd`](Self::add_nsqd).
    pub fn remove_nsqd(&self, address: &str) -> Result<bool> {
        let address = address::parse("nsqd", address)?;
        self.shared.lanes.remove_nsqd(&address)
    }

    /// The addresses of the nsqds, as configured or discovered.
    #[must_use]
    pub fn nsqds(&self) -> Vec<Arc<str>> {
        self.shared.lanes.addresses()
    }

    /// Whether there is a connection, to any nsqd, at this moment.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.lanes.is_connected()
    }

    /// Waits until there is a connection to any nsqd.
    ///
    /// The producer goes on trying whatever this returns; it is for a service that wants to know, at its start, that its
    /// addresses are right.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`] once `deadline` has passed without a connection, with a
    /// failure as its source, unless all first answers are still on their way;
    /// [`ErrorKind::Shutdown`] if the producer has ended.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn ready(&self, deadline: Duration) -> Result<()> {
        self.shared.lanes.ready(deadline).await
    }

    /// Waits until every publish that was accepted before this call, of all clones, has its outcome; those that are
    /// still waiting for room are not accepted yet. What failed does not fail the flush: it was told to its caller, or
    /// to [`on_failure`](ProducerBuilder::on_failure), which has returned when the flush does.
    ///
    /// A batch that [lingers](ProducerBuilder::linger) leaves at once.
    ///
    /// With several nsqds, those that wait for room or for a connection are waited for as well. There a publish goes on
    /// only while its future is polled; one that nobody polls keeps the flush until its deadline.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] after `deadline`, with how much is left. That stays pending.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn flush(&self, deadline: Duration) -> Result<()> {
        let at = ends_at(Instant::now(), deadline);
        self.shared.lanes.flush(at).await.map_err(|left| {
            let text = format!(
                "the flush did not end within {deadline:?}: {} publishes wait to be sent, {} for nsqd's answer, and {} \
                 failures for on_failure",
                left.waiting, left.unanswered, left.untold
            );
            let error = Error::new(ErrorKind::TimedOut, Step::Publish, text);
            match &self.shared.lanes {
                Lanes::One(lane) => error.at(&lane.address),
                Lanes::Many(_) => error,
            }
        })
    }

    /// How the producer is doing at this moment. It waits for nothing, and copies some 11 KiB for each nsqd.
    #[must_use]
    pub fn stats(&self) -> ProducerStats {
        self.shared.lanes.stats(&self.shared.local)
    }

    /// Ends the producer: accepts nothing more, sends what is pending, waits for the answers, and closes the
    /// connection, all within `deadline`. What is not resolved by then is resolved as *not sent* or *unknown*.
    ///
    /// With several nsqds, what is counted is what was left at each of them, so that each copy of a message counts.
    ///
    /// It ends all clones. A second call waits for the first one's end.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the producer ending: it accepts nothing more and goes on with what is pending.
    pub async fn shutdown(&self, deadline: Duration) -> ProducerReport {
        let leftover = self.shared.lanes.shutdown(deadline).await;
        ProducerReport {
            not_sent: leftover.not_sent,
            unknown: leftover.unknown,
        }
    }

    fn submit(&self, topic: Option<Topic>, payload: Payload) -> impl Future<Output = Result<()>> + Send + '_ {
        self.shared.lanes.submit(topic, payload, self.span())
    }

    /// Submits parts of one batch, in order, and waits for all.
    async fn submit_parts(&self, topic: Topic, parts: impl Iterator<Item = Payload> + Send) -> Result<()> {
        let mut verdict = Verdict::default();
        let mut pending = Vec::new();
        for part in parts {
            let messages = part.messages();
            let mut submitted = Box::pin(self.submit(Some(topic.clone()), part));
            // Polled before the next one is made: if there is no room for it, it stands in line before the next.
            match poll_fn(|cx| Poll::Ready(submitted.as_mut().poll(cx))).await {
                Poll::Ready(outcome) => verdict.add(messages, outcome),
                Poll::Pending => pending.push((messages, submitted)),
            }
        }
        poll_fn(|cx| {
            pending.retain_mut(|(messages, submitted)| match submitted.as_mut().poll(cx) {
                Poll::Ready(outcome) => {
                    verdict.add(*messages, outcome);
                    false
                }
                Poll::Pending => true,
            });
            if pending.is_empty() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        verdict.into_result()
    }

    /// Puts a sink's message into the queue; if there is no room yet, the future does so.
    fn send_for(
        &self,
        tally: &Arc<Tally>,
        topic: Topic,
        body: Bytes,
    ) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        tally.begin();
        let refused = {
            let (tally, topic) = (Arc::clone(tally), topic.clone());
            move |queued: Result<()>| {
                if let Err(error) = queued {
                    let mut wakers = Vec::new();
                    tally.resolve(Some(&topic), &Err(error), &mut wakers);
                    wakers.into_iter().for_each(Waker::wake);
                }
            }
        };
        let (span, tally) = (self.span(), Some(Arc::clone(tally)));
        match self.shared.lanes.try_detach(Detached { topic, body, tally }, span) {
            Ok(queued) => {
                refused(queued);
                None
            }
            Err(back) => {
                let shared = Arc::clone(&self.shared);
                Some(Box::pin(async move { refused(shared.lanes.detach(back, span).await) }))
            }
        }
    }

    fn span(&self) -> Span {
        let begun = Instant::now();
        Span {
            begun,
            deadline: ends_at(begun, self.publish_timeout),
        }
    }

    /// Counts what is refused here.
    fn counted<T>(&self, checked: Result<T>) -> Result<T> {
        if checked.is_err() {
            self.shared.local.handle_invalid();
        }
        checked
    }

    fn check_body(&self, body: &Bytes) -> Result<()> {
        self.counted(self.shared.limits.check(body))
    }
}

impl Limits {
    fn check(&self, body: &Bytes) -> Result<()> {
        let limit = self.msg_size;
        if body.is_empty() {
            return Err(Error::invalid("the message is empty, which nsqd does not accept"));
        }
        if body.len() > limit {
            return Err(Error::invalid(format!(
                "the message has {} bytes, more than max_msg_size ({limit}); raise it together with nsqd's max-msg-size",
                body.len()
            )));
        }
        Ok(())
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer")
            .field("nsqds", &self.nsqds())
            .field("connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}

/// A timeout beyond what the clock can tell is none; a century will do for it.
fn ends_at(begun: Instant, timeout: Duration) -> Instant {
    begun
        .checked_add(timeout)
        .unwrap_or(begun + Duration::from_secs(100 * 365 * 86_400))
}
