//! Several nsqds behind one producer: who is there, who is healthy, and the way of a publish among them.
//!
//! The decisions are pure: `routing` tells which nsqds are the best for a message, `retry` what an outcome means, `mirror`
//! what the outcomes of several copies mean together. What is here carries them out.
//!
//! An nsqd is healthy while it has a connection. One without is left alone by publishes; its lane dials it with backoff,
//! which is the probe.

mod carry;
mod discovery;
mod members;
mod mirror;
mod retry;
mod routing;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use self::discovery::Following;
use self::members::Members;
pub(super) use self::members::{Place, not_ready};
pub(super) use self::mirror::Copies;
use self::retry::Budget;
pub use self::routing::{RoutedMessage, RoutedNsqd, Router, Routing};
use super::lane::{Lane, LaneOptions, SHUT_DOWN};
use super::node::{Leftover, Notices};
use crate::error::{Error, ErrorKind, Result, Step};

/// How a pool chooses, copies and repeats.
#[derive(Clone, Debug, Default)]
pub(super) struct Policy {
    pub(super) routing: Routing,
    pub(super) copies: Copies,
    pub(super) at_least_once: bool,
}

pub(super) struct Pool {
    policy: Policy,
    options: LaneOptions,
    members: RwLock<Members>,
    notices: Notices,
    following: Mutex<Option<Following>>,
    budget: Budget,
    counts: Counts,
    gate: Gate,
    /// How many publishes wait for a connection.
    waiting: AtomicUsize,
}

/// What the pool did on its own account, for the statistics.
#[derive(Debug, Default)]
struct Counts {
    /// Publishes repeated after an unknown outcome.
    retried: AtomicU64,
    /// Publishes, or copies, that went to another nsqd because nothing had reached the first.
    elsewhere: AtomicU64,
}

/// Who is still publishing when the producer ends.
///
/// A publish may be between two nsqds, so that no lane knows of it. The lanes therefore close only when the last publish has
/// ended, or when the time for it is over.
#[derive(Debug, Default)]
struct Gate {
    inside: AtomicUsize,
    closed: AtomicBool,
    stopping: AtomicBool,
}

/// A publish under way.
struct Inside<'a>(&'a Pool);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let gate = &self.0.gate;
        if gate.inside.fetch_sub(1, Ordering::SeqCst) == 1 && gate.closed.load(Ordering::SeqCst) {
            self.0.drain();
        }
    }
}

impl Pool {
    pub(super) fn new(policy: Policy, options: LaneOptions) -> Self {
        Self {
            policy,
            options,
            members: RwLock::default(),
            notices: Notices {
                up: Arc::default(),
                lost: watch::Sender::new(()),
            },
            following: Mutex::default(),
            budget: Budget::new(),
            counts: Counts::default(),
            gate: Gate::default(),
            waiting: AtomicUsize::new(0),
        }
    }

    /// How often a publish was repeated after an unknown outcome, and how often one, or one copy, went to another nsqd.
    #[expect(dead_code, reason = "for the statistics")]
    pub(super) fn counts(&self) -> (u64, u64) {
        let Counts { retried, elsewhere } = &self.counts;
        (retried.load(Ordering::Relaxed), elsewhere.load(Ordering::Relaxed))
    }

    fn enter(&self) -> Result<Inside<'_>> {
        self.gate.inside.fetch_add(1, Ordering::SeqCst);
        let inside = Inside(self);
        if self.gate.closed.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::NotSent, Step::Publish, SHUT_DOWN));
        }
        Ok(inside)
    }

    fn is_stopping(&self) -> bool {
        self.gate.stopping.load(Ordering::SeqCst)
    }

    /// Has the lanes end once nothing is pending there.
    fn drain(&self) {
        for lane in self.all_lanes() {
            lane.drain(SHUT_DOWN);
        }
    }

    /// Accepts nothing more. The lanes end once the last publish under way has its outcome.
    fn close(&self) {
        self.gate.closed.store(true, Ordering::SeqCst);
        self.stop_following();
        if self.gate.inside.load(Ordering::SeqCst) == 0 {
            self.drain();
        }
    }

    pub(super) async fn shutdown(&self, deadline: Duration) -> Leftover {
        self.close();
        let lanes = self.all_lanes();
        if let Ok(leftover) = timeout(deadline, all_ended(&lanes)).await {
            return leftover;
        }
        let waited = self.waiting.load(Ordering::SeqCst);
        self.gate.stopping.store(true, Ordering::SeqCst);
        for lane in &lanes {
            lane.drain(SHUT_DOWN);
            lane.stop();
        }
        self.notices.up.ring();
        let mut leftover = all_ended(&lanes).await;
        leftover.not_sent += waited;
        leftover
    }

    /// Waits until any nsqd has a connection.
    pub(super) async fn ready(&self, deadline: Duration) -> Result<()> {
        let mut up = self.notices.up.listen();
        let any = async {
            while !self.is_connected() {
                if self.gate.closed.load(Ordering::SeqCst) {
                    return Err(Error::new(ErrorKind::Shutdown, Step::Dial, "the producer has ended"));
                }
                up.rung().await;
            }
            Ok(())
        };
        match timeout(deadline, any).await {
            Ok(ready) => ready,
            Err(_elapsed) => Err(self.not_ready(Some(deadline))),
        }
    }
}

async fn all_ended(lanes: &[Arc<Lane>]) -> Leftover {
    let mut all = Leftover::default();
    for lane in lanes {
        let leftover = lane.ended().await;
        all.not_sent += leftover.not_sent;
        all.unknown += leftover.unknown;
    }
    all
}

/// The time left until `deadline`.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}
