//! The producer of the simulation, over all nsqds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nsq::{ErrorKind, Producer};
use tokio::time::sleep;

use super::plan::ProducerPlan;
use crate::hosts::connection;
use crate::plan::{NSQDS, nsqd_name};
use crate::wire::Simulated;

pub type Outcome = Result<(), ErrorKind>;

/// Chooses among producers of one nsqd each.
pub struct Pool {
    producers: Vec<Producer>,
    copies: usize,
    next: AtomicUsize,
}

impl Pool {
    pub async fn connect(options: &ProducerPlan) -> Arc<Self> {
        let mut producers = Vec::new();
        for n in 0..NSQDS {
            let builder = Producer::builder()
                .nsqd(format!("{}:4150", nsqd_name(n)))
                .connection(connection().connector(Simulated).client_id("producer"))
                .publish_timeout(options.timeout)
                .max_pending_messages(options.max_pending)
                .batching(options.batching);
            if let Ok(producer) = builder.connect().await {
                producers.push(producer);
            }
        }
        while producers.len() < options.copies {
            sleep(Duration::from_millis(50)).await;
            return Box::pin(Self::connect(options)).await;
        }
        Arc::new(Self {
            producers,
            copies: options.copies,
            next: AtomicUsize::new(0),
        })
    }

    async fn each<F: Future<Output = async_nsq::Result<()>>>(&self, publish: impl Fn(Producer) -> F) -> Outcome {
        let start = self.next.fetch_add(1, Ordering::Relaxed);
        let count = self.producers.len();
        let all = (0..count).map(|i| &self.producers[(start + i) % count]);
        let chosen: Vec<_> = all
            .filter(|producer| producer.is_connected())
            .take(self.copies)
            .collect();
        if chosen.len() < self.copies {
            return Err(ErrorKind::NotSent);
        }
        let publishes = chosen.into_iter().map(|producer| publish(producer.clone()));
        let outcomes = futures_util::future::join_all(publishes).await;
        let kinds: Vec<_> = outcomes
            .into_iter()
            .map(|outcome| outcome.map_err(|error| error.kind()))
            .collect();
        if kinds.iter().all(|kind| *kind == kinds[0]) {
            return kinds[0];
        }
        Err(ErrorKind::Unknown)
    }

    pub async fn publish(&self, topic: &'static str, body: String) -> Outcome {
        self.each(|producer| {
            let body = body.clone();
            async move { producer.publish(topic, body).await }
        })
        .await
    }

    pub async fn publish_many(&self, topic: &'static str, bodies: Vec<String>) -> Outcome {
        self.each(|producer| {
            let bodies = bodies.clone();
            async move { producer.publish_many(topic, bodies).await }
        })
        .await
    }

    pub async fn publish_deferred(&self, topic: &'static str, delay: Duration, body: String) -> Outcome {
        self.each(|producer| {
            let body = body.clone();
            async move { producer.publish_deferred(topic, delay, body).await }
        })
        .await
    }

    pub async fn shutdown(&self, deadline: Duration) -> bool {
        let shutdowns = self.producers.iter().map(|producer| producer.shutdown(deadline));
        let reports = futures_util::future::join_all(shutdowns).await;
        reports.iter().all(|report| report.is_clean())
    }
}
