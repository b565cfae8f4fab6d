//! Publishes a thousand messages and consumes them, with nothing to install: the broker is the embedded one.
//!
//! ```sh
//! cargo run --example quickstart
//! ```
#![expect(clippy::print_stdout, reason = "an example tells what it does")]

use std::collections::HashSet;
use std::process::ExitCode;
use std::time::Duration;

use async_nsq::test_server::Nsqd;
use async_nsq::{BoxError, Consumer, HandlerError, Message, Producer};
use bytes::Bytes;
use futures_util::future::try_join_all;
use tokio::sync::mpsc;
use tokio::time::timeout;

const TOPIC: &str = "orders";

/// The message whose first delivery fails.
const UNLUCKY: &str = "order 13";

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    // The real one would listen on 127.0.0.1:4150; nothing else below would be different.
    let nsqd = Nsqd::start().await?;
    println!("an nsqd for tests listens on {}", nsqd.address());

    let producer = Producer::connect(nsqd.address()).await?;
    let published = publish(&producer).await?;
    println!("nsqd has confirmed {published} messages");

    let (handled, mut seen) = mpsc::channel(100);
    let consumer = Consumer::builder(TOPIC, "billing")
        .nsqd(nsqd.address())
        .max_in_flight(50)
        .start(move |message| handle(message, handled.clone()))
        .await?;
    consumer.ready(Duration::from_secs(5)).await?;

    // NSQ delivers at least once, so what counts is how many different messages were handled.
    let mut orders = HashSet::new();
    let collecting = async {
        while orders.len() < published {
            let Some(order) = seen.recv().await else { break };
            orders.insert(order);
        }
    };
    if timeout(Duration::from_secs(30), collecting).await.is_err() {
        println!("giving up after 30 s");
    }

    // Running handlers end, every answer is written, and only then are the connections closed.
    let consumed = consumer.shutdown(Duration::from_secs(10)).await;
    println!(
        "the consumer finished {} and requeued {}",
        consumed.finished, consumed.requeued
    );
    let left = producer.shutdown(Duration::from_secs(10)).await;
    println!(
        "both are shut down; the producer left nothing unconfirmed: {}",
        left.is_clean()
    );

    let lost = published - orders.len();
    println!("published {published}, handled {}, lost {lost}", orders.len());
    Ok(if lost == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Publishes in the three usual ways and returns how many messages nsqd has confirmed.
async fn publish(producer: &Producer) -> Result<usize, BoxError> {
    // One message. `Ok` means that nsqd has it.
    producer.publish(TOPIC, "order 0").await?;

    // Many at the same time, as from the requests of a service: they share one connection, and those that wait at the
    // same moment leave together.
    let single = (1..500).map(|number| producer.publish(TOPIC, format!("order {number}")));
    let confirmed = try_join_all(single).await?;

    // A batch that nsqd takes as a whole or not at all.
    let batch: Vec<String> = (500..1_000).map(|number| format!("order {number}")).collect();
    let batched = batch.len();
    producer.publish_many(TOPIC, batch).await?;

    Ok(1 + confirmed.len() + batched)
}

/// Handles one message: `Ok` finishes it, an error has it delivered again.
async fn handle(message: Message, handled: mpsc::Sender<Bytes>) -> Result<(), BoxError> {
    if *message.body() == UNLUCKY && message.attempts() == 1 {
        println!("{UNLUCKY} fails and is to come again in 200 ms");
        // Without `without_backoff` the whole consumer would slow down, as is right when a database is down.
        return Err(HandlerError::requeue_after(Duration::from_millis(200))
            .without_backoff()
            .into());
    }
    if message.attempts() > 1 {
        let order = String::from_utf8_lossy(message.body());
        println!("{order} succeeds at attempt {}", message.attempts());
    }
    handled.send(message.into_body()).await?;
    Ok(())
}
