//! Publishes over a pool that nobody waits for: each goes its way in a task.

use std::collections::VecDeque;
use std::error::Error as StdError;
use std::future::Future;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::super::detached::{FailureHook, PublishFailure};
use super::super::lane::SHUT_DOWN;
use super::super::pipeline::{Bounds, Cost, Detached, Payload, Room, Span};
use super::super::sink::Tally;
use super::{Inside, Pool};
use crate::error::{Error, ErrorKind, Result, Step};
use crate::name::Topic;

/// Failures that are to be told, and whether somebody is telling them.
///
/// Both are behind one lock, so that whoever finds the turn taken knows that his failure will be seen.
#[derive(Default)]
struct Failures {
    waiting: VecDeque<(PublishFailure, Seat)>,
    /// Failures are told one after the other.
    being_told: bool,
}

/// What a pool has to do with publishes that nobody waits for.
pub(super) struct Desk {
    /// Bounds them, with the failures that are still to be told.
    pub(super) room: Room,
    /// How many there are.
    count: watch::Sender<usize>,
    on_failure: FailureHook,
    failures: Mutex<Failures>,
    /// Where their tasks run, and those of nsqds: a sink may be polled outside of it.
    pub(super) runtime: Handle,
}

impl Desk {
    pub(super) fn new(bounds: Bounds, on_failure: FailureHook) -> Self {
        Self {
            room: Room::new(bounds),
            count: watch::Sender::new(0),
            on_failure,
            failures: Mutex::default(),
            runtime: Handle::current(),
        }
    }

    /// Waits until all of them have ended and their failures are told.
    pub(super) async fn all_ended(&self) {
        let mut count = self.count.subscribe();
        // The sender is here, so this cannot fail.
        let _none = count.wait_for(|count| *count == 0).await;
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many failures are still to be told.
    pub(super) fn untold(&self) -> usize {
        self.failures().waiting.len()
    }

    /// Tells the hook of all failures, unless somebody does so already.
    fn tell(&self) {
        if mem::replace(&mut self.failures().being_told, true) {
            return;
        }
        let (mut unheard, mut last) = (0u64, None);
        while let Some((failure, _seat)) = self.next_failure() {
            if !self.on_failure.call(&failure) {
                unheard += 1;
                last = Some(failure);
            }
        }
        if let Some(PublishFailure { topic, error, .. }) = last {
            tracing::warn!(count = unheard, %topic, error = &error as &dyn StdError, "enqueued messages were not published");
        }
    }

    /// The next failure to be told; with the last of them goes the turn to do so.
    fn next_failure(&self) -> Option<(PublishFailure, Seat)> {
        let mut failures = self.failures();
        let next = failures.waiting.pop_front();
        failures.being_told = next.is_some();
        next
    }
}

/// The place of a publish that nobody waits for, from when it is accepted until its failure is told.
struct Seat {
    inside: Inside<Arc<Pool>>,
    cost: Cost,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let desk = &self.inside.pool.detached;
        desk.room.give_back(mem::take(&mut self.cost));
        desk.count.send_modify(|count| *count -= 1);
    }
}

/// A publish that nobody waits for and that has no outcome yet.
struct Underway(Option<Unresolved>);

struct Unresolved {
    topic: Topic,
    body: Bytes,
    tally: Option<Arc<Tally>>,
    seat: Seat,
}

impl Underway {
    fn resolve(&mut self, outcome: Result<()>) {
        let Some(Unresolved {
            topic,
            body,
            tally,
            seat,
        }) = self.0.take()
        else {
            return;
        };
        seat.inside.count(&outcome, 1);
        let mut wakers = Vec::new();
        let told = match &tally {
            Some(tally) => tally.resolve(Some(&topic), &outcome, &mut wakers),
            None => outcome.is_ok(),
        };
        wakers.into_iter().for_each(Waker::wake);
        if let (Err(error), false) = (outcome, told) {
            let pool = Arc::clone(&seat.inside.pool);
            let failure = PublishFailure { topic, body, error };
            pool.detached.failures().waiting.push_back((failure, seat));
            pool.detached.tell();
        }
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        // It has none only if its task was dropped with the runtime.
        self.resolve(Err(Error::new(
            ErrorKind::Unknown,
            Step::Publish,
            "the runtime has ended before nsqd answered; the message may have arrived",
        )));
    }
}

impl Pool {
    /// Takes a message that nobody waits for, if there is room, or gives it back.
    pub(in crate::producer) fn try_detach(
        self: &Arc<Self>,
        message: Detached,
        span: Span,
    ) -> Result<Result<()>, Detached> {
        let cost = self.cost_of(&message);
        if self.detached.room.try_take(cost) {
            Ok(self.start(message, cost, span))
        } else {
            Err(message)
        }
    }

    /// Takes a message that nobody waits for as soon as there is room.
    pub(in crate::producer) async fn detach(self: &Arc<Self>, message: Detached, span: Span) -> Result<()> {
        let cost = self.cost_of(&message);
        let mut in_line = self.detached.room.stand_in_line(false);
        // Batches that linger make room by leaving.
        self.all_lanes().iter().for_each(|lane| lane.pipeline.hurry());
        if in_line.take(cost, span.deadline).await {
            return self.start(message, cost, span);
        }
        let outcome = Err(if self.is_closed() {
            Error::new(ErrorKind::NotSent, Step::Publish, SHUT_DOWN)
        } else {
            let text = "the deadline passed while as much was enqueued as may be pending";
            let error = Error::new(ErrorKind::NotSent, Step::Publish, text);
            match self.failure().filter(|_| !self.is_connected()) {
                Some(failure) => error.because(failure),
                None => error,
            }
        });
        self.books.count(&outcome, 1);
        outcome
    }

    fn cost_of(&self, message: &Detached) -> Cost {
        self.detached.room.cost_of(&Payload::One(message.body.clone()))
    }

    /// Sends a message on its way, for which there is room.
    fn start(self: &Arc<Self>, message: Detached, cost: Cost, span: Span) -> Result<()> {
        let Detached { topic, body, tally } = message;
        let inside = match Inside::enter(Arc::clone(self)) {
            Ok(inside) => inside,
            Err(error) => {
                self.detached.room.give_back(cost);
                let outcome = Err(error);
                self.books.count(&outcome, 1);
                return outcome;
            }
        };
        self.detached.count.send_modify(|count| *count += 1);
        let mut underway = Underway(Some(Unresolved {
            topic: topic.clone(),
            body: body.clone(),
            tally,
            seat: Seat { inside, cost },
        }));
        let pool = Arc::clone(self);
        let mut publish = Box::pin(async move { pool.carry_all(topic, Payload::One(body), span).await });
        let _timers = self.detached.runtime.enter();
        // It is in the queue of an nsqd after this, so that what is enqueued later comes after it.
        let first = publish.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        self.detached.runtime.spawn(async move {
            let outcome = match first {
                Poll::Ready(outcome) => outcome,
                Poll::Pending => publish.await,
            };
            underway.resolve(outcome);
        });
        Ok(())
    }
}
