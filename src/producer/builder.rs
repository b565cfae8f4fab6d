//! Options of a producer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::batch::{Encoding, MAX_BATCH_BYTES};
use super::detached::{FailureHook, PublishFailure};
use super::linger::Linger;
use super::node::{Link, Node, Phase};
use super::pipeline::{Bounds, Pipeline};
use super::stats::Local;
use super::{Limits, Producer, Shared, ended};
use crate::config::{ConnectionConfig, address};
use crate::error::{Error, ErrorKind, Result, Step};
use crate::protocol::{DEFAULT_MAX_BODY_SIZE, DEFAULT_MAX_REQ_TIMEOUT, IdentifyRequest};

/// Options of a [`Producer`], each with a default.
///
/// A setter never fails; [`connect`](Self::connect) reports a value out of range, with the option's name and what is
/// allowed.
///
/// ```
/// use std::time::Duration;
/// use async_nsq::{ConnectionConfig, Producer, test_server::Nsqd};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let nsqd = Nsqd::start().await?;
/// let producer = Producer::builder()
///     .nsqd(nsqd.address())
///     .publish_timeout(Duration::from_secs(5))
///     .connection(ConnectionConfig::new().client_id("billing-7"))
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `connect` is called"]
pub struct ProducerBuilder {
    nsqd: Option<String>,
    connection: ConnectionConfig,
    publish_timeout: Duration,
    max_pending_messages: u32,
    max_pending_bytes: u32,
    max_body_size: usize,
    max_req_timeout: Duration,
    batching: bool,
    linger: Duration,
    linger_messages: Option<usize>,
    on_failure: FailureHook,
}

impl ProducerBuilder {
    pub(super) fn new() -> Self {
        Self {
            nsqd: None,
            connection: ConnectionConfig::new(),
            publish_timeout: Duration::from_secs(30),
            max_pending_messages: 10_000,
            max_pending_bytes: 64 * 1024 * 1024,
            max_body_size: DEFAULT_MAX_BODY_SIZE,
            max_req_timeout: DEFAULT_MAX_REQ_TIMEOUT,
            batching: true,
            linger: Duration::ZERO,
            linger_messages: None,
            on_failure: FailureHook::default(),
        }
    }

    /// The nsqd to publish to: `host:port` of its TCP protocol, 4150 by default. Required.
    pub fn nsqd(mut self, address: impl Into<String>) -> Self {
        self.nsqd = Some(address.into());
        self
    }

    /// How to connect. Default: [`ConnectionConfig::new`].
    pub fn connection(mut self, connection: ConnectionConfig) -> Self {
        self.connection = connection;
        self
    }

    /// The deadline of each publish, counted from its call: past it the publish ends as *not sent* or *unknown*.
    /// Default: 30 s. Allowed: more than zero. [`Producer::with_publish_timeout`] sets it for some publishes only.
    pub fn publish_timeout(mut self, timeout: Duration) -> Self {
        self.publish_timeout = timeout;
        self
    }

    /// How many messages may be pending, that is accepted and not resolved; past that, publishes wait. Default:
    /// 10,000. Allowed: 1 to 2^29.
    pub fn max_pending_messages(mut self, count: u32) -> Self {
        self.max_pending_messages = count;
        self
    }

    /// How many bytes of bodies may be pending; past that, publishes wait. A message larger than this is sent alone.
    /// Default: 64 MiB. Allowed: 1 to 2^29.
    pub fn max_pending_bytes(mut self, bytes: u32) -> Self {
        self.max_pending_bytes = bytes;
        self
    }

    /// The largest MPUB body in bytes, as nsqd's `max-body-size`. Default: 5 MiB, as in nsqd. Allowed: 64 bytes to
    /// 1 GiB.
    pub fn max_body_size(mut self, bytes: usize) -> Self {
        self.max_body_size = bytes;
        self
    }

    /// The longest delay of a deferred publish, as nsqd's `max-req-timeout`. Default: one hour, as in nsqd. Any
    /// duration is allowed, but nsqd refuses a longer one than its own.
    pub fn max_req_timeout(mut self, timeout: Duration) -> Self {
        self.max_req_timeout = timeout;
        self
    }

    /// Whether publishes to one topic that wait at the same moment leave as one MPUB. Default: true.
    ///
    /// Without it each is a PUB of its own, which costs nsqd about five times as much; a consumer sees no difference.
    pub fn batching(mut self, on: bool) -> Self {
        self.batching = on;
        self
    }

    /// How long a message may wait for others that leave with it, counted from the publish of the first. Default: zero,
    /// that is not at all: what waits together leaves together, and nothing is delayed for it. Allowed: less than
    /// [`publish_timeout`](Self::publish_timeout), and with [`batching`](Self::batching) only. The timer counts in
    /// milliseconds.
    ///
    /// It makes each caller wait and saves nsqd work where few publish at a time. A batch leaves earlier when
    /// [`linger_messages`](Self::linger_messages) wait, when they are 1 MiB or fill
    /// [`max_body_size`](Self::max_body_size) or what may be pending, at a flush and at the shutdown. What is sent with
    /// [`publish_many`](Producer::publish_many), [`publish_deferred`](Producer::publish_deferred) or
    /// [`ping`](Producer::ping) leaves at once and takes along what waits.
    pub fn linger(mut self, most: Duration) -> Self {
        self.linger = most;
        self
    }

    /// How many messages, of all topics, are enough for a batch that [lingers](Self::linger) to leave. Default: what
    /// may be pending. Allowed: 1 and more; without `linger` it has no effect.
    pub fn linger_messages(mut self, count: usize) -> Self {
        self.linger_messages = Some(count);
        self
    }

    /// Has `hook` called for each message of [`enqueue`](Producer::enqueue) that was not confirmed. Default: a log line
    /// at `warn` for those that fail at the same time.
    ///
    /// It is called in a task of its own, one failure after the other; while it runs, the failures that wait for it
    /// count as pending, so that a slow hook makes `enqueue` wait. It should not block. A panic in it is caught and
    /// logged.
    ///
    /// ```
    /// # use async_nsq::{Producer, test_server::Nsqd};
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let nsqd = Nsqd::start().await?;
    /// let producer = Producer::builder()
    ///     .nsqd(nsqd.address())
    ///     .on_failure(|failure| eprintln!("{}: {}", failure.topic, failure.error))
    ///     .connect()
    ///     .await?;
    /// producer.enqueue("metrics", "requests 1").await?;
    /// producer.flush(Duration::from_secs(5)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_failure(mut self, hook: impl Fn(&PublishFailure) + Send + Sync + 'static) -> Self {
        self.on_failure = FailureHook::new(hook);
        self
    }

    /// Connects, and keeps connected from then on.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for options out of range, and what keeps the *first* connection from being made: later
    /// ones are tried for ever.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection; nothing is left behind.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn connect(self) -> Result<Producer> {
        let producer = self.spawn()?;
        let mut link = producer.shared.link.clone();
        let first = link.wait_for(|link| !matches!(link, Link::Connecting)).await;
        match first.as_deref() {
            Ok(Link::Connected) => Ok(producer.clone()),
            Ok(Link::Lost(error)) => Err(error.clone()),
            _ => Err(Error::new(
                ErrorKind::Shutdown,
                Step::Dial,
                "the runtime is shutting down",
            )),
        }
    }

    fn spawn(self) -> Result<Producer> {
        let address = self.validate()?;
        let bounds = Bounds {
            messages: self.max_pending_messages,
            bytes: self.max_pending_bytes,
        };
        let pipeline = Arc::new(Pipeline::new(bounds, self.lingering(), self.on_failure.clone()));
        let (phase, phase_seen) = watch::channel(Phase::Running);
        let (link, link_seen) = watch::channel(Link::Connecting);
        let limits = Limits {
            msg_size: self.connection.max_msg_size,
            body_size: self.max_body_size,
            delay: self.max_req_timeout,
        };
        let node = Node {
            encoding: Encoding {
                batching: self.batching,
                max_body_size: self.max_body_size,
                ping: ping_body(&self.connection),
            },
            config: self.connection,
            address: Arc::clone(&address),
            pipeline: Arc::clone(&pipeline),
            phase: phase_seen,
            link,
        };
        tokio::spawn(node.run());
        // A task of its own: the node's is woken thousands of times for each time that a deadline matters.
        let (deadlines, mut end) = (Arc::clone(&pipeline), link_seen.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = deadlines.keep_deadlines() => {}
                _ = ended(&mut end) => {}
            }
        });
        let (failures, mut end) = (Arc::clone(&pipeline), link_seen.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = failures.keep_telling() => {}
                _ = ended(&mut end) => {}
            }
            failures.tell_failures();
        });
        Ok(Producer {
            shared: Arc::new(Shared {
                address,
                pipeline,
                limits,
                phase,
                link: link_seen,
                local: Local::default(),
            }),
            publish_timeout: self.publish_timeout,
        })
    }

    fn lingering(&self) -> Option<Linger> {
        let batch = MAX_BATCH_BYTES.min(self.max_body_size);
        let pending = self.max_pending_messages as usize;
        (!self.linger.is_zero()).then(|| Linger {
            delay: self.linger,
            messages: self.linger_messages.unwrap_or(pending).min(pending),
            bytes: batch.min(self.max_pending_bytes as usize),
        })
    }

    fn validate(&self) -> Result<Arc<str>> {
        // What tokio's semaphores can count, also on 32-bit systems.
        const MOST: u32 = 1 << 29;
        self.connection.validate()?;
        let Some(nsqd) = &self.nsqd else {
            return Err(Error::option("nsqd", "not set", "host:port, such as 127.0.0.1:4150"));
        };
        for (name, value) in [
            ("max_pending_messages", self.max_pending_messages),
            ("max_pending_bytes", self.max_pending_bytes),
        ] {
            if !(1..=MOST).contains(&value) {
                return Err(Error::option(name, value, "1 to 536870912"));
            }
        }
        if !(64..=1 << 30).contains(&self.max_body_size) {
            return Err(Error::option(
                "max_body_size",
                self.max_body_size,
                "64 to 1073741824 bytes",
            ));
        }
        if self.publish_timeout.is_zero() {
            return Err(Error::option("publish_timeout", "0", "more than zero"));
        }
        if !self.linger.is_zero() && !self.batching {
            return Err(Error::option(
                "linger",
                format!("{:?}", self.linger),
                "zero, as batching is off",
            ));
        }
        if self.linger >= self.publish_timeout {
            return Err(Error::option(
                "linger",
                format!("{:?}", self.linger),
                &format!("less than publish_timeout ({:?})", self.publish_timeout),
            ));
        }
        if self.linger_messages == Some(0) {
            return Err(Error::option("linger_messages", 0, "1 and more"));
        }
        address::parse("nsqd", nsqd)
    }
}

/// The IDENTIFY that serves as a ping: the names of the first one, since nsqd overwrites them, and nothing that would
/// negotiate anew.
fn ping_body(connection: &ConnectionConfig) -> Vec<u8> {
    let identity = connection.identify();
    IdentifyRequest {
        client_id: identity.client_id,
        hostname: identity.hostname,
        user_agent: identity.user_agent,
        ..IdentifyRequest::default()
    }
    .to_json()
}
