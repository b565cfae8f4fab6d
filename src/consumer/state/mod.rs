//! What is known of a consumer, for whoever asks: read without waiting for any task.

pub(super) mod follow;
pub(super) mod ready;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::connection::Negotiated;
use crate::consumer::flow::PauseReason;
use crate::consumer::link::Link;
use crate::discovery::{LookupdFacts, LookupdStats, NsqdDiscovered, NsqdFacts};
use crate::error::Error;
use crate::protocol::MessageId;

/// The supervisor's picture, published whenever it changes.
#[derive(Debug, Default)]
pub(in crate::consumer) struct State {
    /// The connections that are subscribed.
    pub(in crate::consumer) links: Vec<Arc<Link>>,
    /// Messages delivered by connections that have ended.
    pub(in crate::consumer) received_before: u64,
    /// The nsqds to be connected to.
    pub(in crate::consumer) nodes: BTreeSet<Arc<str>>,
    /// Those of them without a connection, and why.
    pub(in crate::consumer) failing: BTreeMap<Arc<str>, Error>,
    /// How each nsqlookupd does.
    pub(in crate::consumer) lookupds: Vec<LookupdFacts>,
    /// The nsqds that they announce.
    pub(in crate::consumer) discovered: Vec<NsqdFacts>,
    pub(in crate::consumer) flow: FlowPicture,
    /// Set at the end.
    pub(in crate::consumer) report: Option<ConsumerReport>,
}

/// What the flow has decided for the consumer as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::consumer) struct FlowPicture {
    pub(in crate::consumer) max_in_flight: u32,
    pub(in crate::consumer) paused: bool,
    pub(in crate::consumer) backoff_level: u32,
    pub(in crate::consumer) backoff_until: Option<std::time::Instant>,
}

impl State {
    pub(in crate::consumer) fn retire(&mut self, link: &Arc<Link>) {
        self.links.retain(|live| !Arc::ptr_eq(live, link));
        self.received_before += link.received();
    }

    /// All of it for whoever asks.
    pub(in crate::consumer) fn stats(&self, counts: &Counts) -> ConsumerStats {
        let now = Instant::now().into_std();
        let links: Vec<ConnectionStats> = self.links.iter().map(|link| link.stats()).collect();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ConsumerStats {
            connections: links.len(),
            in_flight: links.iter().map(|link| u64::from(link.in_flight)).sum(),
            received: self.received_before + links.iter().map(|link| link.received).sum::<u64>(),
            finished: count(&counts.finished),
            requeued: count(&counts.requeued),
            given_up: count(&counts.given_up),
            duplicates: count(&counts.duplicates),
            timed_out: count(&counts.timed_out),
            late: count(&counts.late),
            handler_timeouts: count(&counts.handler_timeouts),
            refused: count(&counts.refused),
            unsent: count(&counts.unsent),
            max_in_flight: self.flow.max_in_flight,
            paused: self.flow.paused,
            backoff_level: self.flow.backoff_level,
            backoff_left: self
                .flow
                .backoff_until
                .map(|until| until.saturating_duration_since(now)),
            nsqds: self.nsqds(links, now),
            lookupds: self.lookupds.iter().map(|lookupd| lookupd.stats(now)).collect(),
        }
    }

    /// Every nsqd that there is to say something about, each once, sorted by address.
    fn nsqds(&self, links: Vec<ConnectionStats>, now: std::time::Instant) -> Vec<NsqdStats> {
        let mut nsqds: BTreeMap<Arc<str>, NsqdStats> = BTreeMap::new();
        let discovered = self.discovered.iter().map(|found| &found.address);
        let connected = links.iter().map(|link| &link.nsqd);
        for address in self.nodes.iter().chain(discovered).chain(connected) {
            nsqds.entry(Arc::clone(address)).or_insert_with(|| NsqdStats {
                address: Arc::clone(address),
                connection: None,
                failure: self.failing.get(address).cloned(),
                discovered: None,
            });
        }
        for found in &self.discovered {
            if let Some(nsqd) = nsqds.get_mut(&found.address) {
                nsqd.discovered = Some(found.stats(now));
            }
        }
        for link in links {
            if let Some(nsqd) = nsqds.get_mut(&link.nsqd) {
                // While one is being closed there may be its successor, which comes later in the list.
                nsqd.connection = Some(link);
            }
        }
        nsqds.into_values().collect()
    }
}

/// One connection of a consumer at one moment: see [`Consumer::connections`](crate::consumer::Consumer::connections).
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
    /// What was agreed on with nsqd: its version and limits, TLS, compression, and as whom it knows this client.
    pub negotiated: Arc<Negotiated>,
}

/// One nsqd of a consumer at one moment: see [`ConsumerStats::nsqds`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NsqdStats {
    /// The nsqd's address, as configured or discovered.
    pub address: Arc<str>,
    /// Its connection, if there is one that is subscribed.
    pub connection: Option<ConnectionStats>,
    /// Why there is no connection: the latest failure. `None` as well while the first attempt is under way.
    pub failure: Option<Error>,
    /// What nsqlookupd says about it; `None` if it was configured by address only.
    pub discovered: Option<NsqdDiscovered>,
}

/// What has become of messages, over all of a consumer's life.
#[derive(Debug, Default)]
pub(in crate::consumer) struct Counts {
    pub(in crate::consumer) finished: AtomicU64,
    pub(in crate::consumer) requeued: AtomicU64,
    pub(in crate::consumer) given_up: AtomicU64,
    /// Deliveries of messages that were finished before.
    pub(in crate::consumer) duplicates: AtomicU64,
    /// Given back without being begun.
    pub(in crate::consumer) returned: AtomicU64,
    /// Lost while they were handled, so that their handlers were stopped.
    pub(in crate::consumer) timed_out: AtomicU64,
    /// Begun or answered when nsqd's patience was over.
    pub(in crate::consumer) late: AtomicU64,
    pub(in crate::consumer) handler_timeouts: AtomicU64,
    /// Answers that nsqd has refused.
    pub(in crate::consumer) refused: AtomicU64,
    /// Answers that were lost with their connections.
    pub(in crate::consumer) unsent: AtomicU64,
}

/// A consumer at one moment: see [`Consumer::stats`](crate::consumer::Consumer::stats).
#[derive(Clone, Debug, Default)]
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
    /// Deliveries that were not handled, because their message was finished before: see
    /// [`skip_duplicates`](crate::consumer::ConsumerBuilder::skip_duplicates). They are among those finished.
    pub duplicates: u64,
    /// Messages that nsqd has taken back and whose handlers were stopped for that, under
    /// [`keep_alive`](crate::consumer::ConsumerBuilder::keep_alive). Nothing was answered.
    pub timed_out: u64,
    /// Messages that were begun or answered after `msg_timeout`, by this host's clock: they waited here for a handler, or
    /// their handler took too long. nsqd has delivered them again.
    pub late: u64,
    /// Handlers that were stopped by [`handler_timeout`](crate::consumer::ConsumerBuilder::handler_timeout); their messages count
    /// as requeued, too.
    pub handler_timeouts: u64,
    /// Answers that nsqd has refused, because they came after `msg_timeout`, touches included.
    pub refused: u64,
    /// Answers that were lost with their connections, and messages whose handlers were stopped because of that.
    pub unsent: u64,
    /// What `max_in_flight` is now.
    pub max_in_flight: u32,
    /// Whether the consumer is [paused](crate::consumer::Consumer::pause).
    pub paused: bool,
    /// Failures that are not yet made up for by successes; above 0 the consumer is in backoff.
    pub backoff_level: u32,
    /// How long the consumer still waits before it tries a message. `None` if it does not: it is not in backoff, or a
    /// message is being tried.
    pub backoff_left: Option<Duration>,
    /// Every nsqd that was configured or found, connected or not, sorted by address.
    pub nsqds: Vec<NsqdStats>,
    /// Every nsqlookupd, in the order in which they were given.
    pub lookupds: Vec<LookupdStats>,
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

/// What a consumer did until its end: see [`Consumer::shutdown`](crate::consumer::Consumer::shutdown).
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
    /// Deliveries that were not handled, because their message was finished before.
    pub duplicates: u64,
    /// Messages given back at the end without a handler having begun.
    pub returned: u64,
    /// Messages that nsqd has taken back and whose handlers were stopped for that: it has delivered them again.
    pub timed_out: u64,
    /// Handlers that were stopped because they took longer than `handler_timeout`; their messages count as requeued, too.
    pub handler_timeouts: u64,
    /// Answers that nsqd has refused, because they came after `msg_timeout`: it has delivered those messages again.
    pub refused: u64,
    /// Answers that were lost with their connections, and messages whose handlers were stopped because of that: nsqd
    /// delivers those messages again.
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
