//! How far a producer has been shut down.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// How long an nsqd's task may go on without any handle left, for publishes whose callers have gone. As long as a publish
/// may take by default; without a limit a peer that lives but never answers would keep the task for ever.
const AFTER_THE_LAST_HANDLE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Running,
    /// The producer ends. What is under way among several nsqds may still come here.
    Ending,
    /// Nothing further is accepted; what is pending goes on.
    Draining,
    /// What is still pending is to be resolved at once.
    Stopping,
}

/// The phase as an nsqd's task sees it.
#[derive(Debug)]
pub(super) struct PhaseWatch {
    // The sender lives as long as any handle of the producer.
    phase: watch::Receiver<Phase>,
    /// When the time of a producer without handles is over.
    over_at: Option<Instant>,
}

impl PhaseWatch {
    pub(super) fn new(phase: watch::Receiver<Phase>) -> Self {
        Self { phase, over_at: None }
    }

    pub(super) fn now(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Ready once what is pending is to be given up: when the producer is stopped, or some time after its last handle has
    /// gone. Without handles nobody waits for anything, but what was handed over is still to be published.
    ///
    /// # Cancel safety
    /// That time is counted once, however often the future is dropped and made again.
    pub(super) async fn stopping(&mut self) {
        if self.phase.wait_for(|phase| *phase == Phase::Stopping).await.is_err() {
            let over_at = self
                .over_at
                .get_or_insert_with(|| Instant::now() + AFTER_THE_LAST_HANDLE);
            sleep_until(*over_at).await;
        }
    }

    /// Whether [`stopping`](Self::stopping) is ready at this time.
    pub(super) fn is_stopping(&self, now: Instant) -> bool {
        self.now() == Phase::Stopping || self.over_at.is_some_and(|at| at <= now)
    }
}
