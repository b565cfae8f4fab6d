//! What is known of a consumer, for whoever asks: read without waiting for any task.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use tokio::time::Instant;

use super::flow::PauseReason;
use super::link::Link;
use crate::error::Error;
use crate::protocol::MessageId;

/// What a consumer's handle asks of its supervisor.
#[derive(Debug)]
pub(super) enum Control {
    SetMaxInFlight(u32),
    SetPaused(bool),
    Shutdown { deadline: Instant },
}

/// The supervisor's picture, published whenever it changes.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The connections that are subscribed.
    pub(super) links: Vec<Arc<Link>>,
    /// Messages delivered by connections that have ended.
    pub(super) received_before: u64,
    /// The nsqds to be connected to.
    pub(super) nodes: BTreeSet<Arc<str>>,
    /// Those of them without a connection, and why.
    pub(super) failing: BTreeMap<Arc<str>, Error>,
    /// The nsqlookupds that were asked, and why they could not be.
    pub(super) lookups: Vec<(Arc<str>, Option<Error>)>,
    /// Set at the end.
    pub(super) report: Option<ConsumerReport>,
}

impl State {
    pub(super) fn retire(&mut self, link: &Arc<Link>) {
        self.links.retain(|live| !Arc::ptr_eq(live, link));
        self.received_before += link.received();
    }
}

/// One connection of a consumer at one moment: see [`Consumer::connections`](super::Consumer::connections).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionStats {
    /// The address of the nsqd, as configured or discovered.
    pub nsqd: Arc<str>,
    /// How many messages nsqd may have in flight to this connection.
    pub rdy: u32,
    /// Why `rdy` is 0, if it is: the answer to "why does nothing come?".
    pub paused: Option<PauseReason>,
    /// Messages delivered and not answered.
    pub in_flight: u32,
    /// Messages delivered by this connection.
    pub received: u64,
}

/// What has become of messages, over all of a consumer's life.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) finished: AtomicU64,
    pub(super) requeued: AtomicU64,
    pub(super) given_up: AtomicU64,
    /// Given back without being begun.
    pub(super) returned: AtomicU64,
    /// Answers that nsqd has refused.
    pub(super) refused: AtomicU64,
    /// Answers that were lost with their connections.
    pub(super) unsent: AtomicU64,
    /// The flow's, for whoever asks.
    pub(super) backoff_level: AtomicU32,
}

/// Counts of a consumer at one moment: see [`Consumer::stats`](super::Consumer::stats).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerStats {
    /// Connections that are subscribed.
    pub connections: usize,
    /// Messages delivered and not answered.
    pub in_flight: u64,
    /// Messages delivered so far, redeliveries included.
    pub received: u64,
    /// Messages finished so far, those given up included: FIN is written.
    pub finished: u64,
    /// Messages requeued because they could not be handled: REQ is written.
    pub requeued: u64,
    /// Messages given up.
    pub given_up: u64,
    /// Answers that nsqd has refused, because they came after `msg_timeout`.
    pub refused: u64,
    /// Answers that were lost with their connections.
    pub unsent: u64,
    /// Failures that are not yet made up for by successes; above 0 the consumer is in backoff.
    pub backoff_level: u32,
}

/// One message of one nsqd.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct MessageRef {
    /// The address of the nsqd, as configured or discovered.
    pub nsqd: Arc<str>,
    /// The id, unique within a topic of that nsqd.
    pub id: MessageId,
}

/// What a consumer did until its end: see [`Consumer::shutdown`](super::Consumer::shutdown).
///
/// An answer counts once it is written to its socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerReport {
    /// Messages finished, those given up included.
    pub finished: u64,
    /// Messages requeued because they could not be handled.
    pub requeued: u64,
    /// Messages given up.
    pub given_up: u64,
    /// Messages given back at the end without a handler having begun.
    pub returned: u64,
    /// Answers that nsqd has refused, because they came after `msg_timeout`: it has delivered those messages again.
    pub refused: u64,
    /// Answers that were lost with their connections: nsqd delivers those messages again.
    pub unsent: u64,
    /// Messages whose handlers were stopped by the deadline, or still run because they cannot be stopped, and those that
    /// somebody held and had not answered by then. They are given back; nsqd delivers them again.
    pub abandoned: Vec<MessageRef>,
    /// Connections that did not close in time, or broke during the shutdown with answers unsent: their nsqds deliver those
    /// messages again.
    pub unflushed: usize,
}

impl ConsumerReport {
    /// Whether every message was answered by whoever had it and, during the shutdown, every answer was written.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.abandoned.is_empty() && self.unflushed == 0
    }
}
