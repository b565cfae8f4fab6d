//! The books of a pool's publishes: which of them are unresolved, for a flush, and how the others have ended.
//!
//! The lanes count what happens at each nsqd. Here a message counts once, however many attempts and copies it takes.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use tokio::time::{Instant, timeout_at};

use super::super::node::Leftover;
use super::super::pipeline::Generations;
use super::super::stats::Counts;
use crate::error::{ErrorKind, Result};

#[derive(Debug, Default)]
pub(super) struct Books {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    generations: Generations,
    counts: Counts,
    ending: Option<Ending>,
}

/// What has happened since the producer began to end.
#[derive(Clone, Copy, Debug, Default)]
struct Ending {
    /// Publishes that ended as unknown, and those that were at no nsqd when it stopped.
    left: Leftover,
    /// What is still pending was given up. From here on the lanes count it.
    stopped: bool,
}

/// A flush that waits.
struct Flushing<'a> {
    books: &'a Books,
    ticket: usize,
}

impl Drop for Flushing<'_> {
    fn drop(&mut self) {
        let waker = self.books.lock().generations.waiting.remove(self.ticket);
        // Not under the lock: with it a task may go that holds publishes.
        drop(waker);
    }
}

impl Books {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A publish begins. Returns its generation.
    pub(super) fn enter(&self) -> u64 {
        self.lock().generations.enter()
    }

    /// A publish has ended, or its caller has left.
    pub(super) fn leave(&self, generation: u64) {
        let mut wakers = Vec::new();
        self.lock().generations.leave(generation, &mut wakers);
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(super) fn count(&self, outcome: &Result<()>, messages: usize) {
        let mut state = self.lock();
        state.counts.count(outcome, messages as u32);
        if let (Some(ending), Err(error)) = (&mut state.ending, outcome) {
            if !ending.stopped && error.kind() == ErrorKind::Unknown {
                ending.left.unknown += 1;
            }
        }
    }

    /// The producer begins to end.
    pub(super) fn close(&self) {
        self.lock().ending.get_or_insert_default();
    }

    /// What is still pending is given up, with these publishes at no nsqd.
    pub(super) fn stop(&self, between: Leftover) {
        let mut state = self.lock();
        let ending = state.ending.get_or_insert_default();
        if !ending.stopped {
            ending.left.add(between);
            ending.stopped = true;
        }
    }

    /// What has been left since the producer began to end, but what a lane has counted.
    pub(super) fn left_at_end(&self) -> Leftover {
        self.lock().ending.unwrap_or_default().left
    }

    pub(super) fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// Waits until all publishes that have begun before this call have ended, or tells how many of them have not at the
    /// deadline.
    pub(super) async fn flush(&self, deadline: Instant) -> Result<(), usize> {
        let (generation, ticket) = {
            let generations = &mut self.lock().generations;
            let Some(generation) = generations.divide() else {
                return Ok(());
            };
            (generation, generations.waiting.insert(None))
        };
        let _waiting = Flushing { books: self, ticket };
        let over = poll_fn(|cx| {
            let mut state = self.lock();
            if state.generations.is_over(generation) {
                return Poll::Ready(());
            }
            let replaced = state.generations.waiting[ticket].replace(cx.waker().clone());
            drop(state);
            drop(replaced);
            Poll::Pending
        });
        match timeout_at(deadline, over).await {
            Ok(()) => Ok(()),
            Err(_elapsed) => Err(self.lock().generations.unresolved_until(generation)),
        }
    }
}
