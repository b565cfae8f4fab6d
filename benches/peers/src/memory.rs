//! What connections hold that have nothing to do: when they are new, right after each has brought many messages at once,
//! and a while later.
//!
//! There is one consumer per topic, with a connection to each nsqd. With one nsqd that is the dearest way to have so many
//! connections, since each pays for a whole consumer. nsqd sends heartbeats each second, so that what a client gives back
//! when a connection goes quiet is given back soon.

use std::convert::Infallible;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::Duration;

use async_nsq::{ConnectionConfig, Consumer, Message};
use bytes::Bytes;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;
use tokio_nsq::{NSQConfigShared, NSQEvent};

use crate::job::{Job, Work};
use crate::ours::{Counter, DEADLINE};
use crate::span::{Span, status_kib};
use crate::{Result, allocations, raw, tokio_peer};

/// How long everything has to settle before the first look, in heartbeats.
const SETTLES: u32 = 1;

/// The same after the messages. A connection that has had three heartbeats and nothing else is quiet.
const QUIETS: u32 = 4;

/// It goes with its last consumer, as its topic does.
const CHANNEL: &str = "bench#ephemeral";

/// What a process holds, in bytes.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Held {
    /// What it has allocated and not given back. In Go with the stacks of goroutines: in Rust what a task waits with is
    /// allocated like everything else.
    pub(crate) live: u64,
    /// What of its memory is there for the system.
    pub(crate) resident: u64,
}

/// What was held at four times. The Go program prints the same fields.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Memory {
    pub(crate) connections: u64,
    /// Without any connection.
    pub(crate) before: Held,
    pub(crate) new: Held,
    /// Right after the messages are handled.
    pub(crate) loaded: Held,
    pub(crate) quiet: Held,
}

impl Held {
    fn now() -> Self {
        Self {
            live: allocations::live(),
            resident: status_kib("VmRSS:").unwrap_or(0) * 1024,
        }
    }
}

/// This crate's consumers.
pub(crate) async fn ours(job: &Job, connection: ConnectionConfig, bodies: &'static [Bytes]) -> Result<Span> {
    let watch = Watch::begin(job, bodies)?;
    let connection = connection.heartbeat_interval(watch.heartbeat);
    let mut consumers = Vec::new();
    for topic in &job.topics {
        let (counter, messages) = (Arc::clone(&watch.counter), job.messages);
        let builder = job
            .addresses()
            .fold(Consumer::builder(topic, CHANNEL), |builder, nsqd| builder.nsqd(nsqd));
        let consumer = builder
            .connection(connection.clone())
            .max_in_flight(watch.max_in_flight())
            .concurrency(watch.handlers)
            .start(move |_: Message| {
                counter.count(messages);
                async { Ok::<(), Infallible>(()) }
            })
            .await?;
        consumers.push(consumer);
    }
    for consumer in &consumers {
        consumer.ready(DEADLINE).await?;
    }
    watch.look().await
}

/// tokio-nsq's. It has no setting for heartbeats, but nothing to give back either when they come.
pub(crate) async fn tokio_nsq(job: &Job, shared: &NSQConfigShared, bodies: &'static [Bytes]) -> Result<Span> {
    let watch = Watch::begin(job, bodies)?;
    let mut consumers = Vec::new();
    for topic in &job.topics {
        let mut consumer = tokio_peer::consumer(job, (topic, CHANNEL), shared.clone(), watch.max_in_flight())?;
        for _ in job.addresses() {
            match consumer.consume().await {
                Some(NSQEvent::Healthy()) => {}
                other => return Err(format!("no connection but {other:?}").into()),
            }
        }
        consumers.push(consumer);
    }
    let mut tasks = JoinSet::new();
    for consumer in consumers {
        let (counter, messages) = (Arc::clone(&watch.counter), job.messages);
        // Its `drop` panics when the runtime has ended.
        let mut consumer = ManuallyDrop::new(consumer);
        tasks.spawn(async move {
            while let Some(message) = consumer.consume_filtered().await {
                counter.count(messages);
                message.finish().await;
            }
        });
    }
    watch.look().await
}

/// Looks at what the process holds while it has connections.
struct Watch<'a> {
    job: &'a Job,
    bodies: &'static [Bytes],
    handlers: u32,
    burst: u32,
    heartbeat: Duration,
    before: Held,
    counter: Arc<Counter>,
}

impl<'a> Watch<'a> {
    fn begin(job: &'a Job, bodies: &'static [Bytes]) -> Result<Self> {
        let Work::Idle {
            handlers,
            burst,
            heartbeat_interval,
        } = job.work
        else {
            return Err("this is about connections with nothing to do".into());
        };
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        // Each connection takes a file.
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
        Ok(Self {
            job,
            bodies,
            handlers,
            burst,
            heartbeat: Duration::from_millis(heartbeat_interval),
            counter: Arc::default(),
            before: Held::now(),
        })
    }

    /// Of each consumer: all that comes at once.
    fn max_in_flight(&self) -> u32 {
        self.burst * self.job.nsqds().count() as u32
    }

    /// To be called with all connections made.
    async fn look(self) -> Result<Span> {
        sleep(SETTLES * self.heartbeat).await;
        let new = Held::now();
        let (job, burst, bodies) = (self.job.clone(), self.burst, self.bodies);
        spawn_blocking(move || publish(&job, burst, bodies)).await??;
        let span = self.counter.reached().await;
        let loaded = Held::now();
        sleep(QUIETS * self.heartbeat).await;
        Ok(Span {
            memory: Some(Memory {
                connections: self.job.connections(),
                before: self.before,
                new,
                loaded,
                quiet: Held::now(),
            }),
            ..span
        })
    }
}

/// So many messages to each topic at each nsqd, each time all of them at once.
fn publish(job: &Job, burst: u32, bodies: &[Bytes]) -> Result<()> {
    for nsqd in job.nsqds() {
        for topic in &job.topics {
            // The batch that would create the topic is all.
            raw::publish(nsqd, topic, bodies, 0, burst as usize, 1)?;
        }
    }
    Ok(())
}
