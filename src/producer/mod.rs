//! Publishing to nsqd.
//!
//! ```text
//! Producer ── submit ──▶ pipeline ── take ──▶ node: PublishRole ──▶ connection::Driver ──▶ nsqd
//!    ▲                      │                    │ batch: PUB, MPUB, DPUB
//!    └────── outcome ───────┘ ◀──── resolve ─────┘ answers, in order
//! ```
//!
//! That is the way with one nsqd, a [`Lane`]. With several, with copies or with repetitions a [`Pool`] stands between the
//! producer and the pipelines of its lanes.

mod batch;
mod bell;
mod builder;
mod lane;
mod node;
mod pipeline;
mod pool;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};

pub use self::builder::ProducerBuilder;
use self::lane::{Lane, SHUT_DOWN};
use self::pipeline::Payload;
use self::pool::{Pool, not_ready};
pub use self::pool::{RoutedMessage, RoutedNsqd, Router, Routing};
use crate::error::{Error, Result};
use crate::name::Topic;
use crate::protocol::command;

/// Publishes messages to one nsqd or to several.
///
/// A producer is a handle: cheap to clone, to be used from many tasks at once. All clones share one connection to each
/// nsqd, on which many publishes are on their way at the same time. It is made again whenever it is lost, for ever, with
/// delays from 100 ms to 60 s.
///
/// # What a publish tells
/// `Ok` means that nsqd has answered OK for that message. An error is one of four kinds
/// ([`ErrorKind`](crate::ErrorKind)): *invalid* (refused here, nothing was sent), *rejected* (nsqd's error code), *not sent* (safe to
/// retry) and *unknown* (sent and never answered: the message may be in the queue). Each publish ends within its
/// deadline, 30 s by default ([`with_publish_timeout`](Self::with_publish_timeout)), whatever happens to the
/// connection. While there is no connection, publishes wait for one until their deadline.
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
/// Publishes to one topic that wait at the same moment leave as one MPUB, without any added delay; each caller gets
/// its own result. The messages of one topic are sent in the order in which they were published.
///
/// # Drop
/// Dropping the last clone ends the connection in the background once nothing is pending, at once if nothing is, and
/// after 30 s in any case. Use [`shutdown`](Self::shutdown) to wait for it.
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
}

/// Where publishes go.
enum Lanes {
    /// To the only nsqd, straight into its pipeline: nothing is chosen, copied or repeated. What everybody pays for each
    /// publish is paid here, so nothing else belongs on this path.
    One(Lane),
    /// To nsqds that a pool chooses.
    Many(Arc<Pool>),
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
    /// Publishes that ended as [`ErrorKind::NotSent`](crate::ErrorKind::NotSent) because of the shutdown.
    pub not_sent: usize,
    /// Publishes whose answer never came: they ended as [`ErrorKind::Unknown`](crate::ErrorKind::Unknown), or their callers had left.
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
    /// and its answer ignored. With [`copies`](ProducerBuilder::copies), those that wait at an nsqd are published, too. Other
    /// publishes are not affected.
    pub async fn publish<T>(&self, topic: T, body: impl Into<Bytes>) -> Result<()>
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
    {
        let topic = topic.try_into().map_err(Into::into)?;
        let body = body.into();
        self.check_body(&body)?;
        self.submit(Some(topic), Payload::One(body)).await
    }

    /// Publishes several messages with one command (MPUB) and waits for nsqd's answer. No message at all is `Ok` at once.
    ///
    /// nsqd takes all of them or none, unless its disk fails in between: that ends as *unknown*.
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
    /// [`publish`](Self::publish) and a batch larger than [`max_body_size`](ProducerBuilder::max_body_size) in all.
    ///
    /// # Cancel safety
    /// As [`publish`](Self::publish).
    pub async fn publish_many<T, B>(&self, topic: T, bodies: impl IntoIterator<Item = B>) -> Result<()>
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
        B: Into<Bytes>,
    {
        let topic = topic.try_into().map_err(Into::into)?;
        let bodies: Vec<Bytes> = bodies.into_iter().map(Into::into).collect();
        if bodies.is_empty() {
            return Ok(());
        }
        for body in &bodies {
            self.check_body(body)?;
        }
        let size = command::mpub_body_len(bodies.iter().map(Bytes::len));
        let limit = self.shared.limits.body_size;
        if size > limit {
            return Err(Error::invalid(format!(
                "the {} messages make {size} bytes, more than max_body_size ({limit}): publish them in several calls",
                bodies.len()
            )));
        }
        self.submit(Some(topic), Payload::Many(bodies)).await
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
        let topic = topic.try_into().map_err(Into::into)?;
        let body = body.into();
        self.check_body(&body)?;
        let most = self.shared.limits.delay;
        if delay > most {
            return Err(Error::invalid(format!(
                "the delay of {delay:?} is longer than max_req_timeout ({most:?}), the most that nsqd accepts"
            )));
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

    /// The addresses of the nsqds, as configured or discovered.
    #[must_use]
    pub fn nsqds(&self) -> Vec<Arc<str>> {
        match &self.shared.lanes {
            Lanes::One(lane) => vec![Arc::clone(&lane.address)],
            Lanes::Many(pool) => pool.lanes().iter().map(|lane| Arc::clone(&lane.address)).collect(),
        }
    }

    /// Whether there is a connection, to any nsqd, at this moment.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        match &self.shared.lanes {
            Lanes::One(lane) => lane.is_connected(),
            Lanes::Many(pool) => pool.is_connected(),
        }
    }

    /// Waits until there is a connection to any nsqd.
    ///
    /// The producer goes on trying whatever this returns; it is for a service that wants to know, at its start, that its
    /// addresses are right.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`](crate::ErrorKind::Unreachable) once `deadline` has passed without a connection, with a
    /// failure as its source, unless all first answers are still on their way;
    /// [`ErrorKind::Shutdown`](crate::ErrorKind::Shutdown) if the producer has ended.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn ready(&self, deadline: Duration) -> Result<()> {
        match &self.shared.lanes {
            Lanes::One(lane) => match timeout(deadline, lane.connected()).await {
                Ok(connected) => connected,
                Err(_elapsed) => Err(not_ready(&[lane], None, Some(deadline))),
            },
            Lanes::Many(pool) => pool.ready(deadline).await,
        }
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
        let leftover = match &self.shared.lanes {
            Lanes::One(lane) => {
                lane.drain(SHUT_DOWN);
                match timeout(deadline, lane.ended()).await {
                    Ok(leftover) => leftover,
                    Err(_elapsed) => {
                        lane.stop();
                        lane.ended().await
                    }
                }
            }
            Lanes::Many(pool) => pool.shutdown(deadline).await,
        };
        ProducerReport {
            not_sent: leftover.not_sent,
            unknown: leftover.unknown,
        }
    }

    fn submit(&self, topic: Option<Topic>, payload: Payload) -> impl Future<Output = Result<()>> + Send + '_ {
        let now = Instant::now();
        // A timeout beyond what the clock can tell is none; a century will do for it.
        let deadline = now
            .checked_add(self.publish_timeout)
            .unwrap_or(now + Duration::from_secs(100 * 365 * 86_400));
        let submitted = match &self.shared.lanes {
            Lanes::One(lane) => Ok((lane.pipeline.submit(topic, payload, deadline), &lane.address)),
            Lanes::Many(pool) => Err(Box::pin(async move {
                match topic {
                    Some(topic) => pool.publish(topic, payload, deadline).await,
                    None => pool.ping(deadline).await,
                }
            })),
        };
        async {
            match submitted {
                Ok((one, address)) => one.await.map_err(|error| error.at(address)),
                Err(many) => many.await,
            }
        }
    }

    fn check_body(&self, body: &Bytes) -> Result<()> {
        let limit = self.shared.limits.msg_size;
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
