//! tokio-nsq.
//!
//! Its producer is one handle that nobody can share: "so many callers" are here so many publishes that wait for their
//! acknowledgement. It writes when 8 KB have gathered or its timer fires.

use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio_nsq::{
    NSQChannel, NSQConfigShared, NSQConsumer, NSQConsumerConfig, NSQConsumerConfigSources, NSQEvent, NSQProducer,
    NSQProducerConfig, NSQTopic,
};

use crate::job::{Job, Work};
use crate::sleep::Sleepers;
use crate::span::{Clock, Span};
use crate::{Result, memory};

/// Does the job, with the timer's interval if it is not the default.
pub(crate) async fn be(job: &Job, bodies: &'static [Bytes], flush_interval: Option<Duration>) -> Result<Span> {
    let shared = NSQConfigShared::new();
    let shared = match flush_interval {
        Some(interval) => shared.set_flush_interval(interval),
        None => shared,
    };
    match job.work {
        Work::Publish { batch, in_flight } => publish(job, shared, bodies, batch, in_flight).await,
        Work::Consume { max_in_flight } => consume(job, shared, max_in_flight).await,
        Work::Sleep {
            max_in_flight,
            handlers,
            one_in,
            microseconds,
        } => {
            let sleepers = Sleepers::new(job.messages, one_in, Duration::from_micros(microseconds));
            let consumer = consumer(job, (&job.topics[0], "bench"), shared, max_in_flight)?;
            let shared = Arc::clone(&sleepers);
            let spawning = spawn_each(consumer, handlers, move || {
                let shared = Arc::clone(&shared);
                async move { shared.handle().await }
            });
            tokio::select! {
                span = sleepers.done() => Ok(span),
                ended = spawning => Err(ended),
            }
        }
        Work::Latency { .. } => Err("tokio-nsq has no such settings".into()),
        Work::Idle { .. } => memory::tokio_nsq(job, &shared, bodies).await,
    }
}

async fn publish(job: &Job, shared: NSQConfigShared, bodies: &[Bytes], batch: usize, in_flight: u32) -> Result<Span> {
    let mut bodies = bodies.iter().cycle();
    let mut producer = NSQProducerConfig::new(job.nsqd.to_string()).set_shared(shared).build();
    match producer.consume().await {
        Some(NSQEvent::Healthy()) => {}
        other => return Err(format!("no connection but {other:?}").into()),
    }
    let topics = job.topics.iter().map(|topic| NSQTopic::new(topic).ok_or("not a topic"));
    let topics: Vec<Arc<NSQTopic>> = topics.collect::<std::result::Result<_, _>>()?;
    for topic in &topics {
        // The first creates the topic.
        send(&mut producer, topic, &mut bodies, batch).await?;
        acknowledged(&mut producer).await?;
    }
    let calls = job.messages / batch as u64;
    let mut topics = topics.iter().cycle();
    let clock = Clock::start();
    let (mut sent, mut answered) = (0, 0);
    while answered < calls {
        while sent < calls && sent - answered < u64::from(in_flight) {
            send(&mut producer, topics.next().ok_or("no topic")?, &mut bodies, batch).await?;
            sent += 1;
        }
        acknowledged(&mut producer).await?;
        answered += 1;
    }
    Ok(clock.stop(calls * batch as u64))
}

async fn send(
    producer: &mut NSQProducer,
    topic: &Arc<NSQTopic>,
    bodies: &mut impl Iterator<Item = &Bytes>,
    batch: usize,
) -> Result<()> {
    let mut batch: Vec<Vec<u8>> = bodies.take(batch).map(|body| body.to_vec()).collect();
    let sent = match (batch.len(), batch.pop()) {
        (1, Some(body)) => producer.publish(topic, body).await,
        (_, last) => {
            batch.extend(last);
            producer.publish_multiple(topic, batch).await
        }
    };
    sent.map_err(|error| error.to_string().into())
}

async fn acknowledged(producer: &mut NSQProducer) -> Result<()> {
    match producer.consume().await {
        Some(NSQEvent::Ok()) => Ok(()),
        other => Err(format!("no acknowledgement but {other:?}").into()),
    }
}

pub(crate) fn consumer(
    job: &Job,
    (topic, channel): (&str, &str),
    shared: NSQConfigShared,
    max_in_flight: u32,
) -> Result<NSQConsumer> {
    let topic = NSQTopic::new(topic).ok_or("not a topic")?;
    let channel = NSQChannel::new(channel).ok_or("not a channel")?;
    Ok(NSQConsumerConfig::new(topic, channel)
        .set_sources(NSQConsumerConfigSources::Daemons(job.addresses().collect()))
        .set_max_in_flight(max_in_flight)
        .set_shared(shared)
        .build())
}

/// Takes messages and finishes them. The clock runs from the first message on.
async fn consume(job: &Job, shared: NSQConfigShared, max_in_flight: u32) -> Result<Span> {
    let mut consumer = consumer(job, (&job.topics[0], "bench"), shared, max_in_flight)?;
    let mut clock = None;
    for _ in 0..job.messages {
        let message = consumer.consume_filtered().await.ok_or("no more messages")?;
        clock.get_or_insert_with(Clock::start);
        message.finish().await;
    }
    let clock = clock.ok_or("nothing to consume")?;
    Ok(clock.stop(job.messages))
}

/// Handles each message in a task of its own, so many at once, as a service has to with a client that has no handlers.
/// Returns only when there are no more messages, which should not happen.
async fn spawn_each<F>(
    mut consumer: NSQConsumer,
    handlers: u32,
    handler: impl Fn() -> F + Clone + Send + 'static,
) -> Box<dyn Error + Send + Sync>
where
    F: Future<Output = ()> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(handlers as usize));
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        let Some(message) = consumer.consume_filtered().await else {
            break;
        };
        let handler = handler.clone();
        tokio::spawn(async move {
            handler().await;
            message.finish().await;
            drop(permit);
        });
    }
    "no more messages".into()
}
