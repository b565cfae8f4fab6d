//! Where a producer's publishes go: to its only nsqd, or to those of a pool.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::lane::{Lane, SHUT_DOWN};
use super::node::Leftover;
use super::pipeline::{Detached, Hurry, Left, Payload, Span};
use super::pool::{Place, Pool, Source, not_ready};
use super::stats::{Local, ProducerStats};
use crate::error::{Error, Result};
use crate::name::Topic;

/// Where publishes go.
pub(super) enum Lanes {
    /// To the only nsqd, straight into its pipeline: nothing is chosen, copied or repeated. What everybody pays for each
    /// publish is paid here, so nothing else belongs on this path.
    One(Lane),
    /// To nsqds that a pool chooses.
    Many(Arc<Pool>),
}

impl Lanes {
    pub(super) fn submit(
        &self,
        topic: Option<Topic>,
        payload: Payload,
        span: Span,
    ) -> impl Future<Output = Result<()>> + Send + '_ {
        let submitted = match self {
            Self::One(lane) => Ok((lane.pipeline.submit(topic, payload, span), &lane.address)),
            Self::Many(pool) => Err(Box::pin(async move {
                match topic {
                    Some(topic) => pool.publish(topic, payload, span).await,
                    None => pool.ping(span).await,
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

    /// Takes a message that nobody waits for, if there is room, or gives it back.
    pub(super) fn try_detach(&self, message: Detached, span: Span) -> Result<Result<()>, Detached> {
        match self {
            Self::One(lane) => {
                let queued = lane.pipeline.try_detach(message, span)?;
                Ok(queued.map_err(|error| error.at(&lane.address)))
            }
            Self::Many(pool) => pool.try_detach(message, span),
        }
    }

    /// Takes a message that nobody waits for as soon as there is room.
    pub(super) async fn detach(&self, message: Detached, span: Span) -> Result<()> {
        match self {
            Self::One(lane) => {
                let queued = lane.pipeline.detach(message, span).await;
                queued.map_err(|error| error.at(&lane.address))
            }
            Self::Many(pool) => pool.detach(message, span).await,
        }
    }

    /// Ends all lingering until what is returned is dropped.
    pub(super) fn hurry(&self) -> Hurry {
        match self {
            Self::One(lane) => lane.pipeline.begin_hurry(),
            Self::Many(pool) => pool.hurry(),
        }
    }

    pub(super) async fn flush(&self, deadline: Instant) -> Result<(), Left> {
        match self {
            Self::One(lane) => lane.flush(deadline).await,
            Self::Many(pool) => pool.flush(deadline).await,
        }
    }

    /// The smallest of the `max-body-size`s that nsqds have told.
    pub(super) fn learnt_body_size(&self) -> usize {
        match self {
            Self::One(lane) => lane.pipeline.learnt().body_size,
            Self::Many(pool) => pool.learnt_body_size(),
        }
    }

    pub(super) fn addresses(&self) -> Vec<Arc<str>> {
        match self {
            Self::One(lane) => vec![Arc::clone(&lane.address)],
            Self::Many(pool) => pool.lanes().iter().map(|lane| Arc::clone(&lane.address)).collect(),
        }
    }

    pub(super) fn add_nsqd(&self, address: &Arc<str>) -> Result<bool> {
        self.changeable()?.add(address, Place::default(), Source::User)
    }

    pub(super) fn remove_nsqd(&self, address: &str) -> Result<bool> {
        self.changeable()?.remove_given(address)
    }

    fn changeable(&self) -> Result<&Arc<Pool>> {
        match self {
            Self::Many(pool) => Ok(pool),
            Self::One(lane) => Err(Error::invalid(format!(
                "the producer was built for nsqd {} alone: build it with dynamic_nsqds(true) to add or remove nsqds",
                lane.address
            ))),
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        match self {
            Self::One(lane) => lane.is_connected(),
            Self::Many(pool) => pool.is_connected(),
        }
    }

    pub(super) async fn ready(&self, deadline: Duration) -> Result<()> {
        match self {
            Self::One(lane) => match timeout(deadline, lane.connected()).await {
                Ok(connected) => connected,
                Err(_elapsed) => Err(not_ready(&[lane], None, Some(deadline))),
            },
            Self::Many(pool) => pool.ready(deadline).await,
        }
    }

    pub(super) fn stats(&self, local: &Local) -> ProducerStats {
        let mut stats = match self {
            Self::One(lane) => ProducerStats::of_one(lane.stats()),
            Self::Many(pool) => pool.stats(),
        };
        stats.invalid += local.invalid();
        stats
    }

    pub(super) async fn shutdown(&self, deadline: Duration) -> Leftover {
        let lane = match self {
            Self::One(lane) => lane,
            Self::Many(pool) => return pool.shutdown(deadline).await,
        };
        lane.drain(SHUT_DOWN);
        let leftover = match timeout(deadline, lane.ended()).await {
            Ok(leftover) => leftover,
            Err(_elapsed) => {
                lane.stop();
                lane.ended().await
            }
        };
        // Those whose deadline was this one's, too.
        lane.pipeline.tell_failures();
        leftover
    }
}
