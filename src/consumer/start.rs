//! How a consumer comes to life: its supervisor, and those who take its messages.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::Consumer;
use super::answer::dead_letter::DeadLetters;
use super::answer::desk::{Desk, Rules};
use super::batch::{BatchHandler, BatchOptions, Batcher, Hall};
use super::builder::ConsumerBuilder;
use super::duplicates::Duplicates;
use super::flow::{Flow, FlowOptions};
use super::group::Ration;
use super::handler::Handler;
#[cfg(doc)]
use super::message::Message;
use super::state::{FlowPicture, State};
use super::stream::MessageStream;
use super::supervisor::Supervisor;
use super::supervisor::node;
use super::work::inbox::Inbox;
use super::work::lookout::Lookout;
use super::work::panics::caught;
use super::work::source::Source;
use super::work::worker::{Shop, Worker};
use crate::backoff::Backoff;
use crate::config::LookupdConfig;
use crate::discovery::{Discovery, TopicWatch};
use crate::error::{Error, Result};
use crate::name::{Channel, Topic};

/// The default of `concurrency` is `max_in_flight`, but not more than this: a worker costs a task.
const MOST_WORKERS_BY_DEFAULT: u32 = 256;

/// Keeps the panics of a user's strategy from the supervisor, with which the consumer would be gone.
#[derive(Debug)]
struct Guarded(Arc<dyn Backoff>);

impl Backoff for Guarded {
    fn delay(&self, attempt: u32, jitter: f64) -> Duration {
        let delay = caught(|| Ok(self.0.delay(attempt, jitter)));
        delay.unwrap_or_else(|error| {
            tracing::error!(%error, attempt, "the backoff strategy failed; the consumer does not wait");
            Duration::ZERO
        })
    }
}

impl ConsumerBuilder {
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
        self.start_with(handler, None)
    }

    /// Starts as a member of a group, which says how many messages may be in flight.
    pub(super) fn start_rationed<H: Handler>(self, handler: H, ration: Arc<Ration>) -> Result<Consumer> {
        self.start_with(handler, Some(ration))
    }

    /// The same options for another topic.
    pub(super) fn for_topic(&self, topic: Topic) -> Self {
        Self {
            topic: Ok(topic),
            ..self.clone()
        }
    }

    pub(super) fn own_max_in_flight(&self) -> u32 {
        self.flow.max_in_flight
    }

    /// Which topics there are, by the same nsqlookupds; checks all options.
    pub(super) fn topic_watch(&self) -> Result<TopicWatch> {
        if self.lookupds.is_empty() {
            return Err(Error::option("lookupd", "not set", "an address, to ask for topics"));
        }
        self.validate()?;
        TopicWatch::watch(
            &self.lookupds(),
            Arc::clone(&self.connection.connector),
            &self.discovery,
            TopicWatch::MAX_TOPICS,
            fastrand::u64(..),
        )
    }

    fn start_with<H: Handler>(self, handler: H, ration: Option<Arc<Ration>>) -> Result<Consumer> {
        let concurrency = self.worker_count();
        let hired = self.spawn(concurrency, ration, |inbox, desk, _| {
            let shop = Arc::new(Shop {
                handler,
                lookout: Lookout::new(Arc::clone(inbox)),
                inbox: Arc::clone(inbox),
                desk: Arc::clone(desk),
            });
            let workers = (0..concurrency).map(|number| Worker::new(number, Arc::clone(&shop)).run());
            (workers.collect(), ())
        });
        hired.map(|(consumer, ())| consumer)
    }

    /// Starts consuming with a handler of several messages at once, and keeps doing so until [`Consumer::shutdown`].
    ///
    /// Up to `concurrency` batches are handled at once. A batch that is not full when the consumer is shut down is given
    /// back unhandled.
    ///
    /// ```
    /// use async_nsq::{BatchOptions, BoxError, Consumer, Message, test_server::Nsqd};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let nsqd = Nsqd::start().await?;
    /// let consumer = Consumer::builder("orders", "billing")
    ///     .nsqd(nsqd.address())
    ///     .max_in_flight(1000)
    ///     .concurrency(2)
    ///     .start_batches(BatchOptions::new().size(500), |batch: Vec<Message>| async move {
    ///         println!("storing {} orders at once", batch.len());
    ///         Ok::<(), BoxError>(())
    ///     })
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`start`](Self::start), and [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for an option of `options` out
    /// of range.
    ///
    /// # Cancel safety
    /// Dropping the future starts nothing.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn start_batches<H: BatchHandler>(self, options: BatchOptions, handler: H) -> Result<Consumer> {
        options.validate()?;
        let concurrency = self.worker_count();
        let hired = self.spawn(concurrency, None, |inbox, desk, state| {
            let hall = Arc::new(Hall {
                handler,
                options,
                inbox: Arc::clone(inbox),
                desk: Arc::clone(desk),
                lookout: Lookout::new(Arc::clone(inbox)),
                state: state.clone(),
                turn: tokio::sync::Mutex::new(Source::new(Arc::clone(inbox), Arc::clone(desk))),
            });
            let batchers = (0..concurrency).map(|number| Batcher::new(number, Arc::clone(&hall)).run());
            (batchers.collect(), ())
        });
        hired.map(|(consumer, ())| consumer)
    }

    /// Starts consuming, with the messages as a stream instead of a handler, until [`MessageStream::shutdown`] or until the
    /// stream is dropped. Options about handlers mean nothing to it: `concurrency`, `handler_timeout`, and `keep_alive` but
    /// for what is [given up](Message::give_up), whose hook and dead letter may take as long as they need then. See
    /// [`Message::keep_alive_while`].
    ///
    /// # Errors
    /// As [`start`](Self::start).
    ///
    /// # Cancel safety
    /// Dropping the future starts nothing.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn stream(self) -> Result<MessageStream> {
        let nobody = Vec::<std::future::Ready<()>>::new;
        let (consumer, source) = self.spawn(1, None, |inbox, desk, _| {
            (nobody(), Source::new(Arc::clone(inbox), Arc::clone(desk)))
        })?;
        Ok(MessageStream::new(source, consumer))
    }

    /// Starts everything but those who take messages, whom `hire` brings: at most so many workers at once.
    fn spawn<F, T>(
        self,
        workers: usize,
        ration: Option<Arc<Ration>>,
        hire: impl FnOnce(&Arc<Inbox>, &Arc<Desk>, &watch::Receiver<State>) -> (Vec<F>, T),
    ) -> Result<(Consumer, T)>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let pinned = self.validate()?;
        let (topic, channel) = (self.topic.clone()?, self.channel.clone()?);
        let discovery = self.new_discovery(&topic, &channel)?;
        let desk = Arc::new(Desk::new(
            &topic,
            &channel,
            Rules {
                dead_letters: self.new_dead_letters(&topic)?,
                ..self.rules
            },
            self.duplicates.map(|window| Duplicates::new(window, &topic, &channel)),
        ));
        let inbox = Arc::new(Inbox::new(workers));
        let (control_sender, control) = mpsc::channel(16);
        let (state, state_seen) = watch::channel(Self::first_state(&self.flow, &pinned, &discovery));
        let (hired, hirer) = hire(&inbox, &desk, &state_seen);
        let workers = hired.into_iter().collect::<JoinSet<()>>();
        let supervisor = Supervisor {
            shared: Arc::new(node::Shared {
                config: self.connection.for_consumer(self.flow.max_in_flight),
                topic: topic.clone(),
                channel: channel.clone(),
                inbox,
                desk: Arc::clone(&desk),
                next_id: AtomicU64::new(0),
            }),
            flow: Flow::new(self.flow, Box::new(Guarded(self.backoff)), fastrand::u64(..)),
            ration,
            discovery: Some(discovery),
            nodes: BTreeMap::new(),
            pinned,
            node_tasks: JoinSet::new(),
            workers,
            links: BTreeMap::new(),
            outlived: BTreeMap::new(),
            broken: 0,
            control,
            state,
        };
        tokio::spawn(supervisor.run());
        let control = control_sender;
        let consumer = Consumer {
            topic,
            channel,
            control,
            state: state_seen,
            desk,
        };
        Ok((consumer, hirer))
    }

    /// What is known of the consumer before its supervisor has had a look.
    fn first_state(flow: &FlowOptions, pinned: &[Arc<str>], discovery: &Discovery) -> State {
        State {
            nodes: pinned.iter().cloned().collect(),
            lookupds: discovery.lookupd_facts(),
            flow: FlowPicture {
                max_in_flight: flow.max_in_flight,
                ..FlowPicture::default()
            },
            ..State::default()
        }
    }

    /// Whether it could start.
    pub(super) fn check(&self) -> Result<()> {
        self.validate()?;
        self.new_discovery(&self.topic.clone()?, &self.channel.clone()?)?;
        self.new_dead_letters(&self.topic.clone()?)?;
        Ok(())
    }

    fn new_dead_letters(&self, topic: &Topic) -> Result<Option<DeadLetters>> {
        let Some((producer, dead_letter)) = self.dead_letter.clone() else {
            return Ok(None);
        };
        Ok(Some(DeadLetters::new(producer, dead_letter?, topic)))
    }

    fn worker_count(&self) -> usize {
        let by_default = match self.flow.max_in_flight {
            // It starts paused; how much will be in flight later is not known.
            0 => MOST_WORKERS_BY_DEFAULT,
            count => count.min(MOST_WORKERS_BY_DEFAULT),
        };
        self.concurrency.unwrap_or(by_default) as usize
    }

    fn lookupds(&self) -> Vec<LookupdConfig> {
        let with_tls = |lookupd: &LookupdConfig| lookupd.clone().with_tls_of(&self.connection);
        self.lookupds.iter().map(with_tls).collect()
    }

    fn new_discovery(&self, topic: &Topic, channel: &Channel) -> Result<Discovery> {
        Discovery::new(
            topic.clone(),
            channel,
            &self.lookupds(),
            Arc::clone(&self.connection.connector),
            &self.discovery,
            fastrand::u64(..),
        )
    }
}
