//! Publishes over a pool that nobody waits for: each goes its way in a task.

use std::collections::VecDeque;
use std::error::Error as StdError;
use std::future::Future;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, watch};

use super::super::detached::{FailureHook, PublishFailure};
use super::super::lane::SHUT_DOWN;
use super::super::pipeline::{Bounds, Cost, Detached, Payload, Room, Span};
use super::super::sink::Tally;
use super::{Inside, Pool};
use crate::error::{Error, ErrorKind, Result, Step};
use crate::name::Topic;

/// What a pool has to do with publishes that nobody waits for.
#[derive(Debug)]
pub(super) struct Desk {
    /// Bounds them, with the failures that are still to be told.
    pub(super) room: Room,
    /// How many there are.
    count: watch::Sender<usize>,
    on_failure: FailureHook,
    failed: Mutex<VecDeque<PublishFailure>>,
    /// Held while the hook runs: failures are told one after the other.
    telling: AsyncMutex<()>,
    /// Where their tasks run: a sink may be polled outside of it.
    runtime: Handle,
}

impl Desk {
    pub(super) fn new(bounds: Bounds, on_failure: FailureHook) -> Self {
        Self {
            room: Room::new(bounds),
            count: watch::Sender::new(0),
            on_failure,
            failed: Mutex::default(),
            telling: AsyncMutex::default(),
            runtime: Handle::current(),
        }
    }

    /// Waits until all of them have ended and their failures are told.
    pub(super) async fn all_ended(&self) {
        let mut count = self.count.subscribe();
        // The sender is here, so this cannot fail.
        let _none = count.wait_for(|count| *count == 0).await;
    }

    /// How many failures are still to be told.
    pub(super) fn untold(&self) -> usize {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn is_to_tell(&self, failure: PublishFailure) {
        self.failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(failure);
    }

    /// Tells the hook of all failures; to be called with the turn to do so.
    fn tell(&self) {
        let (mut unheard, mut last) = (0u64, None);
        loop {
            let next = self.failed.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(failure) = next else { break };
            if !self.on_failure.call(&failure) {
                unheard += 1;
                last = Some(failure);
            }
        }
        if let Some(PublishFailure { topic, error, .. }) = last {
            tracing::warn!(count = unheard, %topic, error = &error as &dyn StdError, "enqueued messages were not published");
        }
    }
}

/// A publish that nobody waits for, from when it is accepted until its failure is told.
struct Underway {
    inside: Inside<Arc<Pool>>,
    /// Until it has its outcome.
    message: Option<(Topic, Bytes)>,
    tally: Option<Arc<Tally>>,
    cost: Cost,
}

impl Underway {
    async fn end(mut self, outcome: Result<()>) {
        if self.resolve(outcome) {
            return;
        }
        let desk = &self.inside.pool.detached;
        // Whoever had the turn before may have told this failure, too.
        let _turn = desk.telling.lock().await;
        desk.tell();
    }

    /// `false` if that is a failure to be told.
    fn resolve(&mut self, outcome: Result<()>) -> bool {
        let Some((topic, body)) = self.message.take() else {
            return true;
        };
        self.inside.count(&outcome, 1);
        let mut wakers = Vec::new();
        let told = match &self.tally {
            Some(tally) => tally.resolve(Some(&topic), &outcome, &mut wakers),
            None => outcome.is_ok(),
        };
        wakers.into_iter().for_each(Waker::wake);
        match outcome {
            Err(error) if !told => {
                let failure = PublishFailure { topic, body, error };
                self.inside.pool.detached.is_to_tell(failure);
                false
            }
            _ => true,
        }
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        // Only when its task is dropped with the runtime.
        let ended = Error::new(
            ErrorKind::Unknown,
            Step::Publish,
            "the runtime has ended before nsqd answered; the message may have arrived",
        );
        let told = self.resolve(Err(ended));
        let desk = &self.inside.pool.detached;
        if !told {
            if let Ok(_turn) = desk.telling.try_lock() {
                desk.tell();
            }
        }
        desk.room.give_back(mem::take(&mut self.cost));
        desk.count.send_modify(|count| *count -= 1);
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
        let mut in_line = self.detached.room.stand_in_line();
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
        let underway = Underway {
            inside,
            message: Some((topic.clone(), body.clone())),
            tally,
            cost,
        };
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
            underway.end(outcome).await;
        });
        Ok(())
    }
}
