//! One nsqd as its producer sees it: what is pending there, and how its connection fares.

use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::batch::Encoding;
use super::detached::FailureHook;
use super::linger::Linger;
use super::node::{Leftover, Link, Node, Notices};
use super::phase::{Phase, PhaseWatch};
use super::pipeline::{Bounds, Haste, Left, Load, Manner, Payload, Pipeline, Span};
use super::stats::ProducerNodeStats;
use crate::config::ConnectionConfig;
use crate::connection::Negotiated;
use crate::error::{Error, ErrorKind, Result, Step};
use crate::name::Topic;

/// What the lanes of one producer have in common.
#[derive(Clone, Debug)]
pub(super) struct LaneOptions {
    pub(super) connection: ConnectionConfig,
    pub(super) encoding: Encoding,
    pub(super) bounds: Bounds,
    pub(super) linger: Option<Linger>,
    pub(super) haste: Haste,
    pub(super) on_failure: FailureHook,
}

/// Dropping it ends it in the background, once nothing is pending.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) address: Arc<str>,
    pub(super) pipeline: Arc<Pipeline>,
    phase: watch::Sender<Phase>,
    link: watch::Receiver<Link>,
    dial_soon: Arc<Notify>,
}

impl Lane {
    /// The lane of a producer that has no other: publishes wait in it while there is no connection.
    pub(super) fn only(address: Arc<str>, options: &LaneOptions) -> Self {
        let pipeline = Pipeline::new(
            options.bounds,
            options.linger,
            options.haste.clone(),
            options.on_failure.clone(),
        );
        let lane = Self::spawn(address, pipeline, options, None);
        let (failures, mut end) = (Arc::clone(&lane.pipeline), lane.link.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = failures.keep_telling() => {}
                _ = ended(&mut end) => {}
            }
            failures.tell_failures();
        });
        lane
    }

    /// A lane among others. It knows of no publish that nobody waits for: the pool does that.
    pub(super) fn in_pool(address: Arc<str>, options: &LaneOptions, notices: Notices) -> Self {
        let pipeline = Pipeline::in_pool(options.bounds, options.linger, options.haste.clone());
        Self::spawn(address, pipeline, options, Some(notices))
    }

    fn spawn(address: Arc<str>, pipeline: Pipeline, options: &LaneOptions, notices: Option<Notices>) -> Self {
        let pipeline = Arc::new(pipeline);
        let (phase, phase_seen) = watch::channel(Phase::Running);
        let (link, link_seen) = watch::channel(Link::Connecting);
        let dial_soon = Arc::new(Notify::new());
        let node = Node {
            config: options.connection.clone(),
            encoding: options.encoding.clone(),
            address: Arc::clone(&address),
            pipeline: Arc::clone(&pipeline),
            phase: PhaseWatch::new(phase_seen),
            link,
            notices,
            dial_soon: Arc::clone(&dial_soon),
        };
        tokio::spawn(node.run());
        // A task of its own: the node's is woken thousands of times for each time that a deadline matters.
        let (deadlines, mut end) = (Arc::clone(&pipeline), link_seen.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = deadlines.keep_deadlines() => {}
                _ = ended(&mut end) => {}
            }
        });
        Self {
            address,
            pipeline,
            phase,
            link: link_seen,
            dial_soon,
        }
    }

    /// Publishes in a pool; see [`Pipeline::submit_as`].
    pub(super) async fn submit(
        &self,
        manner: Manner,
        topic: Option<Topic>,
        payload: Payload,
        span: Span,
    ) -> Result<()> {
        let submitted = self.pipeline.submit_as(manner, topic, payload, span);
        submitted.await.map_err(|error| error.at(&self.address))
    }

    pub(super) fn is_connected(&self) -> bool {
        matches!(*self.link.borrow(), Link::Connected(_))
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(*self.link.borrow(), Link::Ended(_))
    }

    /// Why there is no connection, once that is known.
    pub(super) fn failure(&self) -> Option<Error> {
        match &*self.link.borrow() {
            Link::Lost(error) => Some(error.clone()),
            _ => None,
        }
    }

    fn negotiated(&self) -> Option<Arc<Negotiated>> {
        match &*self.link.borrow() {
            Link::Connected(negotiated) => Some(Arc::clone(negotiated)),
            _ => None,
        }
    }

    /// Whether this nsqd would take it, as far as it has told its limits.
    pub(super) fn takes(&self, payload: &Payload) -> bool {
        self.pipeline.learnt().check(payload).is_ok()
    }

    pub(super) fn load(&self) -> Load {
        self.pipeline.load()
    }

    /// See [`Pipeline::flush`].
    pub(super) async fn flush(&self, deadline: Instant) -> Result<(), Left> {
        self.pipeline.flush(deadline).await
    }

    pub(super) fn stats(&self) -> ProducerNodeStats {
        let pipeline = self.pipeline.stats();
        let traffic = &self.pipeline.traffic;
        let counts = pipeline.counts;
        ProducerNodeStats {
            address: Arc::clone(&self.address),
            connected: self.is_connected(),
            failure: self.failure(),
            negotiated: self.negotiated(),
            reconnections: traffic.reconnections(),
            pending_messages: pipeline.pending_messages,
            pending_bytes: pipeline.pending_bytes,
            batches: traffic.batches(),
            batched_messages: traffic.messages(),
            ok: counts.ok,
            rejected: counts.rejected,
            not_sent: counts.not_sent,
            unknown: counts.unknown,
            invalid: counts.invalid,
            latency: pipeline.latency,
        }
    }

    /// Waits for the end of the first attempt to connect; at once if that is long ago.
    pub(super) async fn first_attempt(&self) -> Result<()> {
        let mut link = self.link.clone();
        let first = link.wait_for(|link| !matches!(link, Link::Connecting)).await;
        match first.as_deref() {
            Ok(Link::Connected(_)) => Ok(()),
            Ok(Link::Lost(error)) => Err(error.clone()),
            _ => Err(gone()),
        }
    }

    /// Waits for a connection, however many attempts that takes.
    pub(super) async fn connected(&self) -> Result<()> {
        let mut link = self.link.clone();
        let up = link.wait_for(|link| matches!(link, Link::Connected(_) | Link::Ended(_)));
        match up.await.as_deref() {
            Ok(Link::Connected(_)) => Ok(()),
            _ => Err(gone()),
        }
    }

    /// Ends the pause before the next attempt to connect, if there is one at this moment.
    pub(super) fn dial_soon(&self) {
        self.dial_soon.notify_waiters();
    }

    /// The producer ends, but publishes that are under way may still come.
    pub(super) fn begin_end(&self) {
        self.raise(Phase::Ending);
    }

    /// Accepts nothing more, for this reason, and ends once nothing is pending.
    pub(super) fn drain(&self, reason: &'static str) {
        self.pipeline
            .close(Error::new(ErrorKind::NotSent, Step::Publish, reason));
        self.raise(Phase::Draining);
    }

    fn raise(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let is_further = *phase < to;
            *phase = (*phase).max(to);
            is_further
        });
    }

    /// Gives up what is still pending.
    pub(super) fn stop(&self) {
        self.phase.send_replace(Phase::Stopping);
    }

    /// Waits for the end that [`drain`](Self::drain) or [`stop`](Self::stop) brings.
    pub(super) async fn ended(&self) -> Leftover {
        ended(&mut self.link.clone()).await
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.drain(SHUT_DOWN);
    }
}

/// Why a producer that is ending takes nothing more.
pub(super) const SHUT_DOWN: &str = "the producer has been shut down";

fn gone() -> Error {
    Error::new(ErrorKind::Shutdown, Step::Dial, "the producer has ended")
}

async fn ended(link: &mut watch::Receiver<Link>) -> Leftover {
    match link.wait_for(|link| matches!(link, Link::Ended(_))).await.as_deref() {
        Ok(Link::Ended(leftover)) => *leftover,
        // The task is gone with its runtime.
        _ => Leftover::default(),
    }
}
