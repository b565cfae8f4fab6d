//! Several nsqds behind one producer: who is there, who is healthy, and the way of a publish among them.
//!
//! The decisions are pure: `routing` tells which nsqds are the best for a message, `retry` what an outcome means, `mirror`
//! what the outcomes of several copies mean together. What is here carries them out.
//!
//! An nsqd is healthy while it has a connection. One without is left alone by publishes; its lane dials it with backoff,
//! which is the probe.

mod books;
mod carry;
mod detached;
mod discovery;
mod members;
mod mirror;
mod retry;
mod routing;

use std::future::{Future, poll_fn};
use std::ops::Deref;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use self::books::Books;
use self::carry::Queue;
use self::detached::Desk;
use self::discovery::Following;
use self::members::Members;
pub(super) use self::members::{Place, Source, not_ready};
pub(super) use self::mirror::Copies;
use self::retry::Budget;
pub use self::routing::{RoutedMessage, RoutedNsqd, Router, Routing};
use super::ends_at;
use super::lane::{Lane, LaneOptions, SHUT_DOWN};
use super::node::{Leftover, Notices};
use super::pipeline::{Hurry, Left};
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
    books: Books,
    waiting: Queue,
    /// Publishes that nobody waits for.
    detached: Desk,
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
    /// Nothing lingers any more once it is closed.
    hurry: OnceLock<Hurry>,
}

/// A publish under way.
struct Inside<P: Deref<Target = Pool>> {
    pool: P,
    generation: u64,
}

impl<P: Deref<Target = Pool>> Inside<P> {
    fn enter(pool: P) -> Result<Self> {
        pool.gate.inside.fetch_add(1, Ordering::SeqCst);
        let generation = pool.books.enter();
        let inside = Self { pool, generation };
        if inside.pool.is_closed() {
            return Err(Error::new(ErrorKind::NotSent, Step::Publish, SHUT_DOWN));
        }
        Ok(inside)
    }

    fn count(&self, outcome: &Result<()>, messages: usize) {
        self.pool.books.count(outcome, messages);
    }
}

impl<P: Deref<Target = Pool>> Drop for Inside<P> {
    fn drop(&mut self) {
        let gate = &self.pool.gate;
        if gate.inside.fetch_sub(1, Ordering::SeqCst) == 1 && gate.closed.load(Ordering::SeqCst) {
            self.pool.drain();
        }
        self.pool.books.leave(self.generation);
    }
}

impl Pool {
    pub(super) fn new(policy: Policy, options: LaneOptions) -> Self {
        let detached = Desk::new(options.bounds, options.on_failure.clone());
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
            books: Books::default(),
            waiting: Queue::default(),
            detached,
        }
    }

    fn is_closed(&self) -> bool {
        self.gate.closed.load(Ordering::SeqCst)
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

    /// Ends all lingering until what is returned is dropped.
    pub(super) fn hurry(&self) -> Hurry {
        let hurry = self.options.haste.begin();
        self.all_lanes().iter().for_each(|lane| lane.pipeline.hurry());
        hurry
    }

    /// Accepts nothing more. The lanes end once the last publish under way has its outcome.
    fn close(&self) {
        self.gate.closed.store(true, Ordering::SeqCst);
        self.stop_following();
        self.all_lanes().iter().for_each(|lane| lane.begin_end());
        self.gate.hurry.get_or_init(|| self.hurry());
        self.detached.room.close();
        if self.gate.inside.load(Ordering::SeqCst) == 0 {
            self.drain();
        }
        // For those who wait until there is a connection and publish nothing; others go on waiting.
        self.notices.up.ring();
    }

    pub(super) async fn shutdown(&self, deadline: Duration) -> Leftover {
        if !self.is_closed() {
            // What they left is no matter of this end.
            self.forget_ended();
        }
        self.books.close();
        self.close();
        let at = ends_at(Instant::now(), deadline);
        let lanes = self.all_lanes();
        if self.books.flush(at).await.is_ok() {
            if let Ok(mut leftover) = timeout_at(at, all_ended(&lanes)).await {
                // The lanes tell of those only whose callers have left.
                leftover.add(self.books.left_at_end());
                return leftover;
            }
        }
        let mut between = self.waiting.publishes();
        lanes.iter().for_each(|lane| between.add(lane.pipeline.in_line()));
        self.books.stop(between);
        self.gate.stopping.store(true, Ordering::SeqCst);
        for lane in &lanes {
            lane.drain(SHUT_DOWN);
            lane.stop();
        }
        self.notices.up.ring();
        let mut leftover = all_ended(&lanes).await;
        leftover.add(self.books.left_at_end());
        // Not those with a caller: it may never look.
        self.detached.all_ended().await;
        leftover
    }

    /// Waits until every publish that has begun before has ended, with its copies, and its failure is told.
    pub(super) async fn flush(&self, deadline: Instant) -> Result<(), Left> {
        // Also for those that come to an nsqd only now.
        let _hurry = self.hurry();
        let (lanes, books) = (self.flush_lanes(deadline), self.books.flush(deadline));
        let (mut left, unresolved) = tokio::join!(lanes, books);
        if unresolved.is_ok() && left.is_none() && self.policy.copies.count > 1 {
            // Copies beyond a quorum.
            left = self.flush_lanes(deadline).await;
        }
        let unresolved = unresolved.err().unwrap_or(0);
        if left.is_none() && unresolved == 0 {
            return Ok(());
        }
        let mut left = left.unwrap_or_default();
        left.untold = self.detached.untold();
        // What is at no nsqd waits for a connection, or for its turn after a pause.
        left.waiting += unresolved.saturating_sub(left.waiting + left.unanswered + left.untold);
        Err(left)
    }

    async fn flush_lanes(&self, deadline: Instant) -> Option<Left> {
        let lanes = self.all_lanes();
        let mut sum: Option<Left> = None;
        let flushes = lanes.iter().map(|lane| Box::pin(lane.flush(deadline)));
        join(flushes.collect(), |flushed| {
            if let Err(left) = flushed {
                let sum = sum.get_or_insert_default();
                sum.waiting += left.waiting;
                sum.unanswered += left.unanswered;
            }
        })
        .await;
        sum
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
        all.add(lane.ended().await);
    }
    all
}

/// The time left until `deadline`.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Waits for all of them at the same time, and hands each outcome to `each`.
async fn join<F: Future>(mut futures: Vec<Pin<Box<F>>>, mut each: impl FnMut(F::Output)) {
    poll_fn(|cx| {
        futures.retain_mut(|future| match future.as_mut().poll(cx) {
            Poll::Ready(outcome) => {
                each(outcome);
                false
            }
            Poll::Pending => true,
        });
        if futures.is_empty() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}
