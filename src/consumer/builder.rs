//! Options of a consumer.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::Consumer;
use super::flow::{Flow, FlowOptions};
use super::handler::Handler;
use super::inbox::Inbox;
use super::lookout::Lookout;
use super::mailbox::Mailbox;
use super::message::Message;
use super::node;
use super::state::{Counts, State};
use super::supervisor::Supervisor;
use super::worker::{Rules, Shop, Worker};
use crate::backoff::{Backoff, Exponential};
use crate::config::{ConnectionConfig, LookupdConfig, address};
use crate::discovery::{Discovery, DiscoveryOptions};
use crate::error::{Error, Result};
use crate::name::{Channel, Topic};
use crate::protocol::LookupProducer;

/// The default of `concurrency` is `max_in_flight`, but not more than this: a worker costs a task.
const MOST_WORKERS_BY_DEFAULT: u32 = 256;

/// Options of a [`Consumer`], each with a default. The names are go-nsq's where go-nsq has the option.
///
/// A setter never fails; [`start`](Self::start) reports a value out of range, with the option's name and what is
/// allowed.
///
/// ```
/// use std::time::Duration;
/// use async_nsq::{BoxError, Consumer, Message, backoff::FullJitter, test_server::Nsqd};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let nsqd = Nsqd::start().await?;
/// let consumer = Consumer::builder("orders", "billing")
///     .nsqd(nsqd.address())
///     .max_in_flight(500)
///     .concurrency(50)
///     .max_attempts(10)
///     .default_requeue_delay(Duration::from_secs(10))
///     .backoff(FullJitter::default())
///     .start(|_message: Message| async { Ok::<(), BoxError>(()) })
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a builder does nothing until `start` is called"]
pub struct ConsumerBuilder {
    topic: Result<Topic>,
    channel: Result<Channel>,
    nsqds: Vec<String>,
    lookupds: Vec<LookupdConfig>,
    connection: ConnectionConfig,
    discovery: DiscoveryOptions,
    flow: FlowOptions,
    backoff: Arc<dyn Backoff>,
    concurrency: Option<u32>,
    rules: Rules,
}

impl ConsumerBuilder {
    pub(super) fn new(topic: Result<Topic>, channel: Result<Channel>) -> Self {
        Self {
            topic,
            channel,
            nsqds: Vec::new(),
            lookupds: Vec::new(),
            connection: ConnectionConfig::new(),
            discovery: DiscoveryOptions::default(),
            flow: FlowOptions {
                max_in_flight: 200,
                ..FlowOptions::default()
            },
            backoff: Arc::new(Exponential::default()),
            concurrency: None,
            rules: Rules {
                max_attempts: 5,
                default_requeue_delay: Duration::from_secs(90),
                max_requeue_delay: Duration::from_secs(15 * 60),
                give_up: None,
            },
        }
    }

    /// Consumes from the nsqd at `address` (`host:port` of its TCP protocol, 4150 by default). May be called several
    /// times, and together with [`lookupd`](Self::lookupd).
    pub fn nsqd(mut self, address: impl Into<String>) -> Self {
        self.nsqds.push(address.into());
        self
    }

    /// Finds the topic's nsqds through this nsqlookupd: its HTTP address (`host:port` or `http://host:port`, port 4161 by
    /// default), or a [`LookupdConfig`] where it asks for more. May be called several times: all of them are asked at
    /// once and their answers united. One given twice is asked once, by the later settings.
    pub fn lookupd(mut self, lookupd: impl Into<LookupdConfig>) -> Self {
        self.lookupds.push(lookupd.into());
        self
    }

    /// How to connect. Default: [`ConnectionConfig::new`].
    pub fn connection(mut self, connection: ConnectionConfig) -> Self {
        self.connection = connection;
        self
    }

    /// How many messages may be delivered and not answered, over all connections together. Default: 200 (go-nsq's is
    /// 1). 0 pauses the consumer.
    ///
    /// It bounds the memory that messages take, and what is delivered again if this process dies. More than
    /// `concurrency` keeps handlers busy while answers are on their way.
    pub fn max_in_flight(mut self, count: u32) -> Self {
        self.flow.max_in_flight = count;
        self
    }

    /// How many handlers may run at once. Default: `max_in_flight`, at most 256; 256 if that is 0. Allowed: 1 to 100,000.
    ///
    /// Each costs a task (about a kilobyte) even when idle. With 1, messages are handled one after the other.
    pub fn concurrency(mut self, count: u32) -> Self {
        self.concurrency = Some(count);
        self
    }

    /// How often a message may be delivered before it is given up: on a delivery beyond this the handler is not
    /// called, but the hook of [`on_give_up`](Self::on_give_up), and the message is finished. Default: 5, as in
    /// go-nsq. 0 means no limit.
    pub fn max_attempts(mut self, attempts: u16) -> Self {
        self.rules.max_attempts = attempts;
        self
    }

    /// Is called with each message that is given up, because it exceeded `max_attempts` or its handler said so
    /// ([`HandlerError::give_up`](super::HandlerError::give_up)). The message is finished once the hook has ended, and
    /// requeued if it panics. Default: nothing, beyond a warning in the log for each such message.
    ///
    /// ```
    /// # use async_nsq::{Consumer, Message};
    /// let builder = Consumer::builder("orders", "billing")
    ///     .max_attempts(3)
    ///     .on_give_up(|message: Message| async move {
    ///         eprintln!("given up after {} attempts: {:?}", message.attempts(), message.body());
    ///     });
    /// # let _ = builder;
    /// ```
    pub fn on_give_up<F, Fut>(mut self, hook: F) -> Self
    where
        F: Fn(Message) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.rules.give_up = Some(Arc::new(move |message| Box::pin(hook(message))));
        self
    }

    /// The delay of a requeue after an error that names none, times the message's attempts so far. Default: 90 s, as in go-nsq. Allowed: up to one
    /// hour.
    pub fn default_requeue_delay(mut self, delay: Duration) -> Self {
        self.rules.default_requeue_delay = delay;
        self
    }

    /// The most that the default delay grows to. Default: 15 min, as in go-nsq. Allowed: up to one hour.
    pub fn max_requeue_delay(mut self, delay: Duration) -> Self {
        self.rules.max_requeue_delay = delay;
        self
    }

    /// How long the consumer pauses at each level of backoff. Default: [`Exponential`], as in go-nsq.
    pub fn backoff(mut self, strategy: impl Backoff + 'static) -> Self {
        self.backoff = Arc::new(strategy);
        self
    }

    /// The longest pause of the backoff; its level rises no further once the next pause would be longer. Default: 2
    /// min, as in go-nsq. Allowed: up to one hour. 0 switches backoff off.
    pub fn max_backoff_duration(mut self, duration: Duration) -> Self {
        self.flow.max_backoff_duration = duration;
        self
    }

    /// How often nsqlookupds are asked when all is well. Default: 60 s, as in go-nsq. Allowed: 10 ms to 5 min.
    ///
    /// At the start and after each change (an nsqd found or dropped, an nsqlookupd that begins to fail or recovers) they
    /// are asked more often, from every second up to this interval, and within a second when a connection is lost.
    pub fn lookupd_poll_interval(mut self, interval: Duration) -> Self {
        self.discovery.poll_interval = interval;
        self
    }

    /// By how much the time between two rounds of questions is shortened at random, so that many consumers that started
    /// together do not ask together: a delay is `interval × (1 − jitter × random / 2)`. Default: 0.3, as in go-nsq.
    /// Allowed: 0 to 1.
    pub fn lookupd_poll_jitter(mut self, jitter: f64) -> Self {
        self.discovery.poll_jitter = jitter;
        self
    }

    /// How long an nsqlookupd may take to answer. Default: 2 s. Allowed: 1 ms to 5 min.
    pub fn lookupd_timeout(mut self, timeout: Duration) -> Self {
        self.discovery.timeout = timeout;
        self
    }

    /// How many nsqds are accepted from nsqlookupds; further ones are ignored, with a warning in the log. Default: 1,000.
    /// Allowed: 1 or more. Those given with [`nsqd`](Self::nsqd) do not count.
    ///
    /// It bounds the connections that an nsqlookupd can make this process open.
    pub fn max_nsqds(mut self, count: usize) -> Self {
        self.discovery.max_nodes = count;
        self
    }

    /// The largest answer of an nsqlookupd that is read, in bytes; a larger one is a failure of that nsqlookupd. Default:
    /// 4 MiB, some 20,000 nsqds. Allowed: 1 KiB to 1 GiB.
    pub fn max_lookupd_answer(mut self, bytes: usize) -> Self {
        self.discovery.max_body = bytes;
        self
    }

    /// Connects only to those announced nsqds for which `filter` returns true, as go-nsq's `DiscoveryFilter`. Default: to
    /// all. An nsqd that is rejected counts as not announced, so one that is rejected from some moment on is left as if
    /// it had gone.
    ///
    /// It is called for each nsqd in each answer of each nsqlookupd, in the consumer's own task, so it must be quick. Where
    /// it panics, the entry is ignored, with a warning in the log.
    ///
    /// ```
    /// # use async_nsq::Consumer;
    /// let builder = Consumer::builder("orders", "billing")
    ///     .lookupd("127.0.0.1:4161")
    ///     .discovery_filter(|nsqd| nsqd.broadcast_address.ends_with(".eu-west.example"));
    /// # let _ = builder;
    /// ```
    pub fn discovery_filter(mut self, filter: impl Fn(&LookupProducer) -> bool + Send + Sync + 'static) -> Self {
        self.discovery.hooks.filter = Some(Arc::new(filter));
        self
    }

    /// Connects to an announced nsqd at the `host:port` that `map` returns, for nsqds whose broadcast address is not one
    /// that can be reached from here (in containers, for example). Default: `broadcast_address:tcp_port`.
    ///
    /// It is called as [`discovery_filter`](Self::discovery_filter) is, after it. Where it panics or returns no
    /// `host:port`, the entry is ignored, with a warning in the log.
    ///
    /// ```
    /// # use async_nsq::Consumer;
    /// let builder = Consumer::builder("orders", "billing")
    ///     .lookupd("127.0.0.1:4161")
    ///     .map_address(|nsqd| format!("127.0.0.1:{}", nsqd.tcp_port));
    /// # let _ = builder;
    /// ```
    pub fn map_address(mut self, map: impl Fn(&LookupProducer) -> String + Send + Sync + 'static) -> Self {
        self.discovery.hooks.map_address = Some(Arc::new(map));
        self
    }

    /// Creates the topic and the channel at every nsqlookupd that does not know the channel. Default: false.
    ///
    /// A channel gets the messages that are published after it was created, and without this it is created by the first
    /// consumer that connects: what was published before goes to the other channels only. With it, an nsqd that gets
    /// the topic's first message asks nsqlookupd for the topic's channels, and creates this one before that message.
    ///
    /// It goes along with the rounds of questions, so a failure is repaired by the next one, and so is a channel that is
    /// deleted, or forgotten by an nsqlookupd that was restarted: as long as this consumer runs, its topic and channel
    /// exist. Failures are logged and never fatal. It does not help with nsqds that know no nsqlookupd or have the
    /// topic already, needs nsqlookupd 1.0 or later, and is refused for a channel that is `#ephemeral`: nsqd creates such a
    /// channel with its first consumer and not before.
    pub fn create_topic_and_channel(mut self, create: bool) -> Self {
        self.discovery.create = create;
        self
    }

    /// Starts consuming with this handler and keeps doing so until [`Consumer::shutdown`].
    ///
    /// It does not wait for a connection, so a service can start before its nsqds: see [`Consumer::ready`].
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for a bad name or address, no address at all, or an option
    /// out of range; [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for an nsqlookupd given with `https://`
    /// in a build without TLS.
    ///
    /// # Cancel safety
    /// Dropping the future starts nothing.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn start<H: Handler>(self, handler: H) -> Result<Consumer> {
        self.spawn(handler)
    }

    fn spawn<H: Handler>(self, handler: H) -> Result<Consumer> {
        let pinned = self.validate()?;
        let (topic, channel) = (self.topic.clone()?, self.channel.clone()?);
        let concurrency = self.worker_count();
        let discovery = Some(self.new_discovery(&topic, &channel)?);
        let inbox = Arc::new(Inbox::new(concurrency));
        let mailbox = Arc::new(Mailbox::default());
        let counts = Arc::new(Counts::default());
        let reports_success = Arc::new(AtomicBool::new(false));
        let shop = Arc::new(Shop {
            handler,
            lookout: Lookout::new(Arc::clone(&inbox)),
            inbox: Arc::clone(&inbox),
            mailbox: Arc::clone(&mailbox),
            rules: self.rules,
            counts: Arc::clone(&counts),
            reports_success: Arc::clone(&reports_success),
        });
        let mut workers = JoinSet::new();
        for number in 0..concurrency {
            workers.spawn(Worker::new(number, Arc::clone(&shop)).run());
        }
        let (control_sender, control) = mpsc::channel(16);
        let (state, state_seen) = watch::channel(State::default());
        let supervisor = Supervisor {
            shared: Arc::new(node::Shared {
                config: self.connection.for_consumer(self.flow.max_in_flight),
                topic: topic.clone(),
                channel: channel.clone(),
                inbox,
                mailbox,
                counts: Arc::clone(&counts),
                next_id: AtomicU64::new(0),
            }),
            flow: Flow::new(self.flow, Box::new(self.backoff), fastrand::u64(..)),
            discovery,
            nodes: HashMap::new(),
            pinned,
            node_tasks: JoinSet::new(),
            workers,
            links: BTreeMap::new(),
            broken: 0,
            reports_success,
            control,
            state,
        };
        tokio::spawn(supervisor.run());
        Ok(Consumer {
            topic,
            channel,
            control: control_sender,
            state: state_seen,
            counts,
        })
    }

    fn worker_count(&self) -> usize {
        let by_default = match self.flow.max_in_flight {
            // It starts paused; how much will be in flight later is not known.
            0 => MOST_WORKERS_BY_DEFAULT,
            count => count.min(MOST_WORKERS_BY_DEFAULT),
        };
        self.concurrency.unwrap_or(by_default) as usize
    }

    fn new_discovery(&self, topic: &Topic, channel: &Channel) -> Result<Discovery> {
        Discovery::new(
            topic.clone(),
            channel,
            &self.lookupds,
            Arc::clone(&self.connection.connector),
            &self.discovery,
            fastrand::u64(..),
        )
    }

    fn validate(&self) -> Result<Vec<Arc<str>>> {
        self.topic.clone()?;
        self.channel.clone()?;
        self.connection.validate()?;
        if self.nsqds.is_empty() && self.lookupds.is_empty() {
            return Err(Error::option("nsqd", "not set", "an address here or of a lookupd"));
        }
        if let Some(concurrency) = self.concurrency {
            if !(1..=100_000).contains(&concurrency) {
                return Err(Error::option("concurrency", concurrency, "1 to 100000"));
            }
        }
        let hour = Duration::from_secs(3600);
        for (name, value) in [
            ("default_requeue_delay", self.rules.default_requeue_delay),
            ("max_requeue_delay", self.rules.max_requeue_delay),
            ("max_backoff_duration", self.flow.max_backoff_duration),
        ] {
            if value > hour {
                return Err(Error::option(name, format_args!("{value:?}"), "0 to 1h"));
            }
        }
        let mut pinned = Vec::new();
        for nsqd in &self.nsqds {
            let address = address::parse("nsqd", nsqd)?;
            if !pinned.contains(&address) {
                pinned.push(address);
            }
        }
        Ok(pinned)
    }
}

impl std::fmt::Debug for ConsumerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsumerBuilder")
            .field("topic", &self.topic)
            .field("channel", &self.channel)
            .field("nsqds", &self.nsqds)
            .field("lookupds", &self.lookupds)
            .field("connection", &self.connection)
            .field("max_in_flight", &self.flow.max_in_flight)
            .finish_non_exhaustive()
    }
}
