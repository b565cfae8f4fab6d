//! Options of a consumer.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::answer::desk::Rules;
use super::duplicates::DuplicateWindow;
use super::flow::FlowOptions;
use super::link::refusal::AnswerRefused;
use super::message::Message;
use crate::backoff::{Backoff, Exponential};
use crate::config::{ConnectionConfig, LookupdConfig, address};
use crate::discovery::DiscoveryOptions;
use crate::error::{Error, Result};
use crate::name::{Channel, Topic};
use crate::producer::Producer;
use crate::protocol::LookupProducer;

/// Options of a [`Consumer`](super::Consumer), each with a default. The names are go-nsq's where go-nsq has the option.
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
    pub(super) topic: Result<Topic>,
    pub(super) channel: Result<Channel>,
    pub(super) nsqds: Vec<String>,
    pub(super) lookupds: Vec<LookupdConfig>,
    pub(super) connection: ConnectionConfig,
    pub(super) discovery: DiscoveryOptions,
    pub(super) flow: FlowOptions,
    pub(super) backoff: Arc<dyn Backoff>,
    pub(super) backoff_multiplier: Duration,
    pub(super) concurrency: Option<u32>,
    pub(super) rules: Rules,
    pub(super) dead_letter: Option<(Producer, Result<Topic>)>,
    pub(super) duplicates: Option<DuplicateWindow>,
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
            // Only to be checked: the strategy has it.
            backoff_multiplier: Duration::ZERO,
            concurrency: None,
            rules: Rules::default(),
            dead_letter: None,
            duplicates: None,
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

    /// How to connect. Default: [`ConnectionConfig::new`]. It replaces what [`options`](Self::options) said of that
    /// before; where that was TLS and this is not, it is an error.
    pub fn connection(mut self, connection: ConnectionConfig) -> Self {
        self.connection = connection.instead_of(&self.connection);
        self
    }

    /// How many messages may be delivered and not answered, over all connections together. Default: 200 (go-nsq's is
    /// 1). With 0 nothing comes until [`Consumer::set_max_in_flight`](super::Consumer::set_max_in_flight) raises it.
    ///
    /// Each nsqd gets an even share of it as its RDY. A new connection starts with 1 and gets its share with its first
    /// message; one that has been silent for [`low_rdy_idle_timeout`](Self::low_rdy_idle_timeout) keeps 1, and the others
    /// use the rest until its next message.
    ///
    /// It bounds the memory that messages take, and what is delivered again if this process dies. More than
    /// `concurrency` keeps handlers busy while answers are on their way.
    pub fn max_in_flight(mut self, count: u32) -> Self {
        self.flow.max_in_flight = count;
        self
    }

    /// How many handlers may run at once. Default: `max_in_flight`, at most 256; 256 if that is 0. Allowed: 1 to 100,000.
    ///
    /// Each costs a task (about two kilobytes) even when idle. With 1, messages are handled one after the other.
    pub fn concurrency(mut self, count: u32) -> Self {
        self.concurrency = Some(count);
        self
    }

    /// How often a message may be delivered before it is given up: on a delivery beyond this the handler is not
    /// called, but the hook of [`on_give_up`](Self::on_give_up); the message goes to the topic of
    /// [`dead_letter`](Self::dead_letter), where there is one, and is finished. Default: 5, as in go-nsq. 0 means no limit.
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

    /// Publishes each message that is given up to `topic` with this producer, and finishes it only once nsqd has confirmed
    /// that (`Ok`). The body is unchanged; attempts and timestamp begin anew. Default: none; given up means dropped.
    ///
    /// A hook of [`on_give_up`](Self::on_give_up) is called first. If the publish fails in whatever way, the message is
    /// requeued with the default delay, which counts as a failure, and the reason is logged at `error`; at its next delivery
    /// the hook is called again. After [`ErrorKind::Unknown`](crate::ErrorKind::Unknown) the topic may get it twice, as it
    /// does when the publish takes longer than `msg_timeout`: keep
    /// [`publish_timeout`](crate::ProducerBuilder::publish_timeout) below that, or use [`keep_alive`](Self::keep_alive).
    ///
    /// Use another topic than the one consumed, or messages go round for ever. Shut the producer down after the consumer.
    ///
    /// ```
    /// use async_nsq::{BoxError, Consumer, HandlerError, Message, Producer, test_server::Nsqd};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let nsqd = Nsqd::start().await?;
    /// let producer = Producer::connect(nsqd.address()).await?;
    /// let consumer = Consumer::builder("orders", "billing")
    ///     .nsqd(nsqd.address())
    ///     .dead_letter(producer.clone(), "orders.dead")
    ///     .start(|_: Message| async { Err::<(), BoxError>(HandlerError::give_up().into()) })
    ///     .await?;
    /// producer.publish("orders", "hopeless").await?;
    /// nsqd.wait_for(|stats| stats.topic("orders.dead").is_some_and(|topic| topic.message_count == 1)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn dead_letter<T>(mut self, producer: Producer, topic: T) -> Self
    where
        T: TryInto<Topic>,
        T::Error: Into<Error>,
    {
        self.dead_letter = Some((producer, topic.try_into().map_err(Into::into)));
        self
    }

    /// Whether messages are kept from timing out while their handlers wait. Default: no, since the official guide for
    /// clients asks them never to TOUCH by themselves: a handler that hangs for ever would keep its message until nsqd's
    /// `max-msg-timeout` (15 min by default).
    ///
    /// With `true`, a message is touched whenever half of nsqd's `msg_timeout` has passed, from its handler's first wait on.
    /// Once it is lost all the same, its handler is stopped, so that it does not work on what another consumer is about to
    /// get: [`Message::lost`](super::Message::lost) resolves, the handler is polled once more, its future is dropped,
    /// and nothing is answered. That happens when `max-msg-timeout` has passed since the delivery, when nsqd refuses the
    /// TOUCH or delivers the message again, and when the connection ends. But for the last, it counts in
    /// [`ConsumerStats::timed_out`](super::ConsumerStats::timed_out) and makes the consumer back off.
    ///
    /// Messages that wait for a handler to begin are not touched: do not let `max_in_flight` be much more than
    /// [`concurrency`](Self::concurrency) if handlers are slow. Neither are those of
    /// [streams](Self::stream), nor those that were
    /// [taken over](super::Message::take_over): see [`Message::keep_alive_while`](super::Message::keep_alive_while).
    ///
    /// All messages of a [batch](Self::start_batches) are touched while its handler waits, each until it is answered or lost.
    /// The handler is not stopped then: it goes on with the others, and [`Message::lost`](super::Message::lost) tells.
    ///
    /// A [stream](Self::stream) has no handlers: what is taken from it is touched by nobody but
    /// [`Message::keep_alive_while`](super::Message::keep_alive_while).
    ///
    /// Cost: a timer for each handler that waits and an entry in a table for each of its messages, nothing for those that
    /// return at once.
    pub fn keep_alive(mut self, keep_alive: bool) -> Self {
        self.rules.patience.keep_alive = keep_alive;
        self
    }

    /// How long a handler may take, from its first wait on: then its future is dropped at an await point, the message is
    /// requeued with the default delay, which counts as a failure, and a warning is logged. Default: no limit. Allowed: 1 ms
    /// to 24 h.
    ///
    /// Below nsqd's `msg_timeout`, it turns a handler that hangs into a requeue rather than a duplicate. A handler that
    /// blocks its thread cannot be stopped. One that has taken its message over or has answered it is stopped as well, and
    /// the message left to whoever has it.
    ///
    /// The handler of a [batch](Self::start_batches) has as much time for all of its messages together, and counts once. To
    /// a [stream](Self::stream) it means nothing.
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.rules.patience.handler_timeout = Some(timeout);
        self
    }

    /// Is called when nsqd has refused an answer, because the message's `msg_timeout` had passed (E_FIN_FAILED,
    /// E_REQ_FAILED, E_TOUCH_FAILED): nsqd has delivered the message again, so it is handled twice. Default: nothing,
    /// beyond a warning in the log and a count in the statistics.
    ///
    /// A refused FIN or REQ makes the consumer back off, as a failed message does: it is the commonest sign of handlers
    /// that are slower than `msg_timeout` allows.
    ///
    /// The hook runs in the task that looks after the consumer, so it must be quick. At most 1,024 refusals wait for it;
    /// more at once are only counted.
    pub fn on_answer_refused(mut self, hook: impl Fn(&AnswerRefused) + Send + Sync + 'static) -> Self {
        self.rules.answer_refused = Some(Arc::new(hook));
        self
    }

    /// The delay of a requeue after an error that names none, times the message's attempts so far. Default: 90 s, as in
    /// go-nsq. Allowed: up to one hour.
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
    ///
    /// It replaces what [`backoff_multiplier`](Self::backoff_multiplier) has set before: a strategy has its own.
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

    /// The unit of the default strategy's pauses: twice this after the first failure, then four times, eight times and
    /// so on. Default: 1 s, as in go-nsq. Allowed: up to one hour. 0 switches backoff off.
    ///
    /// It sets the strategy to an [`Exponential`] of this multiplier, so of this and [`backoff`](Self::backoff) the last
    /// call counts. A longer one is easier on what the handlers depend on, and slower to notice that it is well again.
    pub fn backoff_multiplier(mut self, multiplier: Duration) -> Self {
        self.backoff_multiplier = multiplier;
        self.backoff = Arc::new(Exponential::new(multiplier));
        self
    }

    /// How long an nsqd may hold RDY without sending a message while others could use it. Default: 10 s, as in go-nsq.
    /// Allowed: 1 s to 5 min.
    ///
    /// Then its turn is over if there are more nsqds than `max_in_flight`; else it keeps RDY 1 and lends the rest of its
    /// share until its next message (go-nsq does not). A shorter time brings more of `max_in_flight` to where the
    /// messages are, at the price of two RDY commands for each nsqd whenever one falls silent or speaks up.
    pub fn low_rdy_idle_timeout(mut self, timeout: Duration) -> Self {
        self.flow.low_rdy_idle_timeout = timeout;
        self
    }

    /// How long an nsqd waits at most for its turn when there are more of them than `max_in_flight`. Default: 30 s, as
    /// in go-nsq. Allowed: 1 s to 5 min.
    ///
    /// A shorter time is fairer and costs more changes of RDY, each with a moment in which a part of `max_in_flight` is
    /// in nobody's use. With enough in flight for all nsqds it has no effect.
    pub fn low_rdy_timeout(mut self, timeout: Duration) -> Self {
        self.flow.low_rdy_timeout = timeout;
        self
    }

    /// How often, at least, it is looked whether RDY should move from one nsqd to another. Default: 5 s, as in go-nsq.
    /// Allowed: 1 ms to 5 s.
    ///
    /// It is looked more often where `low_rdy_timeout` asks for it. Each look wakes one task and costs about a
    /// microsecond for each connection; there is none with a single nsqd, nor with exactly as many as `max_in_flight`.
    pub fn rdy_redistribute_interval(mut self, interval: Duration) -> Self {
        self.flow.rdy_redistribute_interval = interval;
        self
    }

    /// How often nsqlookupds are asked when all is well. Default: 60 s, as in go-nsq. Allowed: 10 ms to 5 min.
    ///
    /// At the start and after each change (an nsqd found, missing or dropped, an nsqlookupd that begins to fail or
    /// recovers) they are asked more often, from every second up to this interval, and within a second when a connection
    /// is lost. An nsqd that has registered anew with one of them, as it does when it is started, is connected to at
    /// once.
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
    /// Without an nsqlookupd it does nothing. It goes along with the rounds of questions, so a failure is repaired by the
    /// next one, and so is a channel that is deleted, or forgotten by an nsqlookupd that was restarted: as long as this
    /// consumer runs, its topic and channel exist. Failures are logged and never fatal. It does not help with nsqds that know no nsqlookupd or have the
    /// topic already, needs nsqlookupd 1.0 or later, and is refused for a channel that is `#ephemeral`: nsqd creates such a
    /// channel with its first consumer and not before.
    pub fn create_topic_and_channel(mut self, create: bool) -> Self {
        self.discovery.create = create;
        self
    }

    /// Finishes a message whose key was finished before, instead of handling it again. Default: off.
    ///
    /// NSQ delivers again whatever it has not heard a FIN of: one lost with a connection, or too late. This saves handlers
    /// from most of that; it makes publishing to several nsqds at once usable
    /// ([`DuplicateWindow::key`]). It is no promise of *exactly once*: a process that dies forgets a window
    /// in memory, and one that dies between handling and recording has not recorded.
    ///
    /// A key is recorded before its FIN is sent: when the handler has returned `Ok`, when the message is finished by hand,
    /// or when it was given up. A message that comes while another of the same key is being handled waits, unhandled and in
    /// flight: if that one is finished, so is this one; if not, this one is handled. Both are counted in
    /// [`ConsumerStats::duplicates`](super::ConsumerStats::duplicates).
    pub fn skip_duplicates(mut self, window: DuplicateWindow) -> Self {
        self.duplicates = Some(window);
        self
    }

    pub(super) fn validate(&self) -> Result<Vec<Arc<str>>> {
        self.topic.clone()?;
        self.channel.clone()?;
        self.connection.validate_for_consumer()?;
        if self.nsqds.is_empty() && self.lookupds.is_empty() {
            return Err(Error::option(
                "nsqd",
                "not set and neither is lookupd",
                "an address of one of them at least",
            ));
        }
        if let Some(concurrency) = self.concurrency {
            if !(1..=100_000).contains(&concurrency) {
                return Err(Error::option("concurrency", concurrency, "1 to 100000"));
            }
        }
        self.validate_times()?;
        let mut pinned = Vec::new();
        for nsqd in &self.nsqds {
            let address = address::parse("nsqd", nsqd)?;
            if !pinned.contains(&address) {
                pinned.push(address);
            }
        }
        Ok(pinned)
    }

    fn validate_times(&self) -> Result<()> {
        const SECOND: Duration = Duration::from_secs(1);
        let hour = (Duration::ZERO, 3600 * SECOND, "0 to 1h");
        let turn = (SECOND, 300 * SECOND, "1s to 5min");
        let tick = (Duration::from_millis(1), 5 * SECOND, "1ms to 5s");
        let day = (Duration::from_millis(1), 86_400 * SECOND, "1ms to 24h");
        let handler_timeout = self.rules.patience.handler_timeout;
        for (name, value, (least, most, allowed)) in [
            ("default_requeue_delay", self.rules.default_requeue_delay, hour),
            ("max_requeue_delay", self.rules.max_requeue_delay, hour),
            ("max_backoff_duration", self.flow.max_backoff_duration, hour),
            ("backoff_multiplier", self.backoff_multiplier, hour),
            ("low_rdy_idle_timeout", self.flow.low_rdy_idle_timeout, turn),
            ("low_rdy_timeout", self.flow.low_rdy_timeout, turn),
            ("rdy_redistribute_interval", self.flow.rdy_redistribute_interval, tick),
            ("handler_timeout", handler_timeout.unwrap_or(SECOND), day),
        ] {
            if !(least..=most).contains(&value) {
                return Err(Error::option(name, format_args!("{value:?}"), allowed));
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backoff::Off;
    use crate::consumer::Consumer;
    use crate::error::ErrorKind;

    const SECOND: Duration = Duration::from_secs(1);
    const NANOSECOND: Duration = Duration::from_nanos(1);

    fn builder() -> ConsumerBuilder {
        Consumer::builder("orders", "billing").nsqd("127.0.0.1:4150")
    }

    #[test]
    fn options_of_the_flow_have_go_nsq_s_ranges_and_say_so() {
        type Setter = fn(ConsumerBuilder, Duration) -> ConsumerBuilder;
        let options: [(&str, Setter, Duration, Duration, &str); 5] = [
            (
                "low_rdy_idle_timeout",
                ConsumerBuilder::low_rdy_idle_timeout,
                SECOND,
                300 * SECOND,
                "1s to 5min",
            ),
            (
                "low_rdy_timeout",
                ConsumerBuilder::low_rdy_timeout,
                SECOND,
                300 * SECOND,
                "1s to 5min",
            ),
            (
                "rdy_redistribute_interval",
                ConsumerBuilder::rdy_redistribute_interval,
                Duration::from_millis(1),
                5 * SECOND,
                "1ms to 5s",
            ),
            (
                "max_backoff_duration",
                ConsumerBuilder::max_backoff_duration,
                Duration::ZERO,
                3600 * SECOND,
                "0 to 1h",
            ),
            (
                "backoff_multiplier",
                ConsumerBuilder::backoff_multiplier,
                Duration::ZERO,
                3600 * SECOND,
                "0 to 1h",
            ),
        ];
        for (name, set, least, most, allowed) in options {
            for value in [least, most] {
                assert!(set(builder(), value).validate().is_ok(), "{name} {value:?}");
            }
            for value in [least.checked_sub(NANOSECOND), Some(most + NANOSECOND)]
                .into_iter()
                .flatten()
            {
                let error = set(builder(), value).validate().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Invalid);
                let text = error.to_string();
                for told in [name, allowed, &format!("{value:?}")] {
                    assert!(text.contains(told), "{told} is missing in {text:?}");
                }
            }
        }
    }

    #[test]
    fn of_the_strategy_and_the_multiplier_the_last_one_counts() {
        let first_pause = |builder: ConsumerBuilder| builder.backoff.delay(1, 0.0);
        assert_eq!(first_pause(builder()), 2 * SECOND);
        assert_eq!(first_pause(builder().backoff_multiplier(3 * SECOND)), 6 * SECOND);
        let off = builder().backoff_multiplier(3 * SECOND).backoff(Off);
        assert_eq!(first_pause(off.clone()), Duration::ZERO);
        assert_eq!(first_pause(off.backoff_multiplier(SECOND)), 2 * SECOND);
    }
}
