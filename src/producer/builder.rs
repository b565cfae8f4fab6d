//! Options of a producer.

use std::sync::Arc;
use std::time::Duration;

use super::batch::{Encoding, MAX_BATCH_BYTES};
use super::detached::{FailureHook, PublishFailure};
use super::lane::{Lane, LaneOptions};
use super::linger::Linger;
use super::pipeline::{Bounds, Haste};
use super::pool::{Place, Policy, Pool, Routing, Source};
use super::stats::Local;
use super::{Lanes, Limits, Producer, Shared};
use crate::config::{ConnectionConfig, LookupdConfig, address};
use crate::discovery::{DiscoveryOptions, NodeWatch};
use crate::error::{Error, Result};
use crate::protocol::{DEFAULT_MAX_BODY_SIZE, DEFAULT_MAX_REQ_TIMEOUT, IdentifyRequest, LookupProducer};

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
    pub(super) nsqds: Vec<(String, Place)>,
    pub(super) lookupds: Vec<LookupdConfig>,
    pub(super) discovery: DiscoveryOptions,
    pub(super) policy: Policy,
    pub(super) connection: ConnectionConfig,
    pub(super) publish_timeout: Duration,
    pub(super) max_pending_messages: u32,
    pub(super) max_pending_bytes: u32,
    pub(super) max_body_size: usize,
    pub(super) max_req_timeout: Duration,
    pub(super) batching: bool,
    pub(super) linger: Duration,
    pub(super) linger_messages: Option<usize>,
    pub(super) on_failure: FailureHook,
    pub(super) dynamic_nsqds: bool,
}

impl ProducerBuilder {
    pub(super) fn new() -> Self {
        Self {
            nsqds: Vec::new(),
            lookupds: Vec::new(),
            discovery: DiscoveryOptions::default(),
            policy: Policy::default(),
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
            dynamic_nsqds: false,
        }
    }

    /// An nsqd to publish to: `host:port` of its TCP protocol, 4150 by default. At least one is required, here or from
    /// [`lookupd`](Self::lookupd).
    ///
    /// May be called several times: the producer then chooses among them for each publish ([`routing`](Self::routing)),
    /// and one that has no connection is passed over. The order in which they are given matters to
    /// [`Routing::failover`] only. An address given twice counts once.
    pub fn nsqd(mut self, address: impl Into<String>) -> Self {
        self.nsqds.push((address.into(), Place::default()));
        self
    }

    /// Whether nsqds can be [added](Producer::add_nsqd) and [removed](Producer::remove_nsqd) while the producer runs,
    /// although only one is given. Default: false. It has no effect with several nsqds, with [`lookupd`](Self::lookupd) or
    /// with [`at_least_once`](Self::at_least_once): then they can be.
    ///
    /// The producer is then one with several nsqds, even while it has a single one: see [`routing`](Self::routing). A publish
    /// goes on only while it is polled, and costs an allocation and a choice more than with one nsqd for good.
    pub fn dynamic_nsqds(mut self, on: bool) -> Self {
        self.dynamic_nsqds = on;
        self
    }

    /// An nsqd as by [`nsqd`](Self::nsqd), and where it stands, for [`Routing::same_zone_first`].
    pub fn nsqd_in(mut self, address: impl Into<String>, region: impl Into<String>, zone: impl Into<String>) -> Self {
        let place = Place {
            region: Some(region.into().into()),
            zone: Some(zone.into().into()),
        };
        self.nsqds.push((address.into(), place));
        self
    }

    /// Publishes to all nsqds that this nsqlookupd knows: its HTTP address (`host:port` or `http://host:port`, port 4161 by
    /// default), or a [`LookupdConfig`] where it asks for more. May be called several times: all of them are asked at once
    /// and their answers united. Those given with [`nsqd`](Self::nsqd) are used as well, whatever nsqlookupd says.
    ///
    /// It is asked for all nsqds (`/nodes`) and never for those of a topic: an nsqd has a topic once something was
    /// published there, so a new topic is nowhere, and an old one would never come to a new nsqd.
    ///
    /// An nsqd that no nsqlookupd announces any more is left after some rounds, once what is pending there has been sent.
    pub fn lookupd(mut self, lookupd: impl Into<LookupdConfig>) -> Self {
        self.lookupds.push(lookupd.into());
        self
    }

    /// How often nsqlookupds are asked when all is well, as
    /// [`ConsumerBuilder::lookupd_poll_interval`](crate::ConsumerBuilder::lookupd_poll_interval). Default: 60 s. Allowed:
    /// 10 ms to 5 min.
    pub fn lookupd_poll_interval(mut self, interval: Duration) -> Self {
        self.discovery.poll_interval = interval;
        self
    }

    /// How long an nsqlookupd may take to answer. Default: 2 s. Allowed: 1 ms to 5 min.
    pub fn lookupd_timeout(mut self, timeout: Duration) -> Self {
        self.discovery.timeout = timeout;
        self
    }

    /// How many nsqds are accepted from nsqlookupds; further ones are ignored, with a warning in the log. Default: 1,000.
    /// Allowed: 1 or more.
    ///
    /// It bounds the connections that an nsqlookupd can make this process open, and with
    /// [`max_pending_bytes`](Self::max_pending_bytes) the memory.
    pub fn max_nsqds(mut self, count: usize) -> Self {
        self.discovery.max_nodes = count;
        self
    }

    /// Publishes only to those announced nsqds for which `filter` returns true, as
    /// [`ConsumerBuilder::discovery_filter`](crate::ConsumerBuilder::discovery_filter). Default: to all.
    pub fn discovery_filter(mut self, filter: impl Fn(&LookupProducer) -> bool + Send + Sync + 'static) -> Self {
        self.discovery.hooks.filter = Some(Arc::new(filter));
        self
    }

    /// Connects to an announced nsqd at the `host:port` that `map` returns, as
    /// [`ConsumerBuilder::map_address`](crate::ConsumerBuilder::map_address). Default: `broadcast_address:tcp_port`.
    pub fn map_address(mut self, map: impl Fn(&LookupProducer) -> String + Send + Sync + 'static) -> Self {
        self.discovery.hooks.map_address = Some(Arc::new(map));
        self
    }

    /// How to choose among several nsqds. Default: [`Routing::round_robin`].
    pub fn routing(mut self, routing: Routing) -> Self {
        self.policy.routing = routing;
        self
    }

    /// To how many different nsqds each message is sent, so that it survives the loss of all of them but one. Default: 1.
    /// Allowed: 1 to the number of nsqds; with [`lookupd`](Self::lookupd) to 1,000.
    ///
    /// nsqds are told apart by their addresses: give those that are announced, too, as they are announced, or one could
    /// get both copies.
    ///
    /// A publish is `Ok` once all copies are confirmed, or as many as [`quorum`](Self::quorum) says. A consumer gets each
    /// copy, since nsqds know nothing of each other: give it a [`DuplicateWindow`](crate::DuplicateWindow).
    ///
    /// While fewer nsqds than that have a connection, nothing is sent: the publish waits for them and ends as *not sent* at its
    /// deadline. See [`accept_fewer_copies`](Self::accept_fewer_copies). If some copies are confirmed, but fewer than needed,
    /// it ends as *unknown*: the message is in a queue, and may be lost with it.
    pub fn copies(mut self, count: usize) -> Self {
        self.policy.copies.count = count;
        self
    }

    /// How many [`copies`](Self::copies) have to be confirmed. Default: all. Allowed: 1 to the number of copies.
    ///
    /// The others are on their way or wait at their nsqd by then, and are not sent elsewhere if they fail there. Those
    /// for which there was no room at their nsqd are not sent at all.
    pub fn quorum(mut self, count: usize) -> Self {
        self.policy.copies.quorum = Some(count);
        self
    }

    /// Whether to make do with fewer [`copies`](Self::copies) while fewer nsqds have a connection. Default: false.
    ///
    /// If so, at least as many copies as [`quorum`](Self::quorum) says have to be confirmed, and a single one if that is
    /// not set.
    pub fn accept_fewer_copies(mut self, accept: bool) -> Self {
        self.policy.copies.accept_fewer = accept;
        self
    }

    /// Whether to publish again what was sent and never answered, which may put it into a queue twice. Default: false: the
    /// publish ends as *unknown*, and its caller decides.
    ///
    /// What *cannot* have arrived goes to another nsqd in any case, and what nsqd has rejected is never repeated. A
    /// repetition is made after a short random pause, at another nsqd if there is one, within the publish's deadline, and
    /// only as long as there is budget: 1,000 in advance, and one for every ten publishes. Then *unknown* is the outcome after
    /// all.
    pub fn at_least_once(mut self, on: bool) -> Self {
        self.policy.at_least_once = on;
        self
    }

    /// How to connect. Default: [`ConnectionConfig::new`]. It replaces what [`options`](Self::options) said of that
    /// before; where that was TLS and this is not, it is an error.
    pub fn connection(mut self, connection: ConnectionConfig) -> Self {
        self.connection = connection.instead_of(&self.connection);
        self
    }

    /// The deadline of each publish, counted from its call: past it the publish ends as *not sent* or *unknown*.
    /// Default: 30 s. Allowed: more than zero. [`Producer::with_publish_timeout`] sets it for some publishes only.
    pub fn publish_timeout(mut self, timeout: Duration) -> Self {
        self.publish_timeout = timeout;
        self
    }

    /// How many messages may be pending at each nsqd, that is accepted and not resolved; past that, publishes wait. Default:
    /// 10,000. Allowed: 1 to 2^29.
    ///
    /// What was sent stays pending after its deadline, and when its caller has left, until nsqd answers or the connection
    /// ends: it is kept for its answer's place in the order. An nsqd that never answers, though it sends heartbeats, is
    /// left a few heartbeat intervals after the deadline.
    pub fn max_pending_messages(mut self, count: u32) -> Self {
        self.max_pending_messages = count;
        self
    }

    /// How many bytes of bodies may be pending at each nsqd, counted as by
    /// [`max_pending_messages`](Self::max_pending_messages); past that, publishes wait. A message larger than this is sent alone.
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

    /// Whether publishes to one topic that wait at the same moment leave together as MPUB: as one, or as two if there are many
    /// and nothing else is on its way. Default: true.
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
    /// [`ping`](Producer::ping) leaves at once and takes along what waits. Each nsqd has batches of its own.
    pub fn linger(mut self, most: Duration) -> Self {
        self.linger = most;
        self
    }

    /// How many messages, of all topics at one nsqd, are enough for a batch that [lingers](Self::linger) to leave. Default: what
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

    /// Connects, and keeps connected from then on. Of several nsqds, one connection is enough; those that fail at first
    /// are tried further.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for options out of range, and what keeps the *first* connection
    /// from being made: later ones are tried for ever. Of several nsqds,
    /// [`ErrorKind::Unreachable`](crate::ErrorKind::Unreachable) once each has failed, with one failure as its source.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connections; nothing is left behind.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn connect(self) -> Result<Producer> {
        let producer = self.spawn()?;
        match &producer.shared.lanes {
            Lanes::One(lane) => lane.first_attempt().await?,
            Lanes::Many(pool) => pool.first_attempts().await?,
        }
        Ok(producer)
    }

    /// Begins to connect and returns at once. Publishes wait for a connection until their deadline;
    /// [`Producer::ready`] waits for one without publishing.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for options out of range.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn connect_lazily(self) -> Result<Producer> {
        self.spawn()
    }

    fn spawn(self) -> Result<Producer> {
        let nsqds = self.validate()?;
        let nodes = self.node_watch()?;
        let limits = Limits {
            msg_size: self.connection.max_msg_size,
            body_size: self.max_body_size,
            delay: self.max_req_timeout,
        };
        let options = LaneOptions {
            encoding: Encoding {
                batching: self.batching,
                max_body_size: self.max_body_size,
                ping: ping_body(&self.connection),
            },
            linger: self.lingering(),
            haste: Haste::default(),
            on_failure: self.on_failure,
            connection: self.connection,
            bounds: Bounds {
                messages: self.max_pending_messages,
                bytes: self.max_pending_bytes,
            },
        };
        let lanes = match &nsqds[..] {
            // Nothing to choose, copy or repeat: the publish goes straight into the one pipeline.
            [(only, _)] if nodes.is_none() && !self.policy.at_least_once && !self.dynamic_nsqds => {
                Lanes::One(Lane::only(Arc::clone(only), &options))
            }
            several => {
                let pool = Arc::new(Pool::new(self.policy, options));
                for (address, place) in several {
                    pool.add(address, place.clone(), Source::User)?;
                }
                if let Some(nodes) = nodes {
                    pool.follow(nodes);
                }
                Lanes::Many(pool)
            }
        };
        Ok(Producer {
            shared: Arc::new(Shared {
                lanes,
                limits,
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

    /// Checks the options. Returns the nsqds, each once.
    fn validate(&self) -> Result<Vec<(Arc<str>, Place)>> {
        // What tokio's semaphores can count, also on 32-bit systems.
        const MOST: u32 = 1 << 29;
        self.connection.validate()?;
        if self.nsqds.is_empty() && self.lookupds.is_empty() {
            return Err(Error::option("nsqd", "not set", "host:port, such as 127.0.0.1:4150"));
        }
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
        self.check_linger()?;
        let nsqds = self.distinct_nsqds()?;
        self.check_copies(nsqds.len())?;
        Ok(nsqds)
    }

    fn node_watch(&self) -> Result<Option<NodeWatch>> {
        if self.lookupds.is_empty() {
            return Ok(None);
        }
        let connector = Arc::clone(&self.connection.connector);
        let with_tls = |lookupd: &LookupdConfig| lookupd.clone().with_tls_of(&self.connection);
        let lookupds: Vec<_> = self.lookupds.iter().map(with_tls).collect();
        NodeWatch::watch(&lookupds, connector, &self.discovery, fastrand::u64(..)).map(Some)
    }

    fn distinct_nsqds(&self) -> Result<Vec<(Arc<str>, Place)>> {
        let mut nsqds: Vec<(Arc<str>, Place)> = Vec::new();
        for (address, place) in &self.nsqds {
            let address = address::parse("nsqd", address)?;
            // Two copies at the same nsqd would be lost with it.
            match nsqds.iter_mut().find(|(known, _)| *known == address) {
                Some((_, known)) if *place != Place::default() => known.clone_from(place),
                Some(_) => {}
                None => nsqds.push((address, place.clone())),
            }
        }
        Ok(nsqds)
    }

    fn check_copies(&self, nsqds: usize) -> Result<()> {
        let copies = &self.policy.copies;
        // How many will be discovered is not known.
        let (most, what) = match self.lookupds.len() {
            0 => (nsqds, "the number of nsqds, which is "),
            _ => (1_000, ""),
        };
        if !(1..=most).contains(&copies.count) {
            let allowed = format!("1 to {what}{most}");
            return Err(Error::option("copies", copies.count, &allowed));
        }
        if let Some(quorum) = copies.quorum.filter(|quorum| !(1..=copies.count).contains(quorum)) {
            let allowed = format!("1 to the number of copies, which is {}", copies.count);
            return Err(Error::option("quorum", quorum, &allowed));
        }
        Ok(())
    }

    fn check_linger(&self) -> Result<()> {
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
        Ok(())
    }
}

/// The IDENTIFY that serves as a ping: what the first one said of the client, since nsqd overwrites it, and nothing that
/// would negotiate anew.
fn ping_body(connection: &ConnectionConfig) -> Vec<u8> {
    let identity = connection.identify();
    IdentifyRequest {
        client_id: identity.client_id,
        hostname: identity.hostname,
        user_agent: identity.user_agent,
        topology_region: identity.topology_region,
        topology_zone: identity.topology_zone,
        ..IdentifyRequest::default()
    }
    .to_json()
}
