//! What a flush waits for.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};

use slab::Slab;
use tokio::time::{Instant, timeout_at};

use super::Pipeline;

/// What a flush has not seen the end of.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::producer) struct Left {
    /// Publishes that wait to be sent.
    pub(in crate::producer) waiting: usize,
    /// Publishes whose answer has not come.
    pub(in crate::producer) unanswered: usize,
    /// Failures of which the hook has not been told.
    pub(in crate::producer) untold: usize,
}

impl Pipeline {
    /// Waits until everything that was accepted before this call is resolved, and its failures told, or tells what is
    /// left at the deadline.
    pub(in crate::producer) async fn flush(&self, deadline: Instant) -> Result<(), Left> {
        let Some((generation, ticket)) = self.lock().begin_flush() else {
            return Ok(());
        };
        let _hurry = self.begin_hurry();
        let _waiting = Flushing { pipeline: self, ticket };
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
            Err(_elapsed) => Err(self.lock().left_of(generation)),
        }
    }
}

/// A flush that waits.
struct Flushing<'a> {
    pipeline: &'a Pipeline,
    ticket: usize,
}

impl Drop for Flushing<'_> {
    fn drop(&mut self) {
        let waker = self.pipeline.lock().generations.waiting.remove(self.ticket);
        // Not under the lock: with it a task may go that holds publishes.
        drop(waker);
    }
}

/// Counts what is unresolved in generations, which flushes divide: a flush has ended once nothing is left of the
/// generations before it. So a publish costs two additions, however many flushes wait.
#[derive(Debug)]
pub(in crate::producer) struct Generations {
    /// The number of the oldest one.
    first: u64,
    /// How many are unresolved of each, the newest last; never empty.
    unresolved: VecDeque<usize>,
    /// The flushes that wait.
    pub(in crate::producer) waiting: Slab<Option<Waker>>,
}

impl Default for Generations {
    fn default() -> Self {
        Self {
            first: 0,
            unresolved: VecDeque::from([0]),
            waiting: Slab::new(),
        }
    }
}

impl Generations {
    /// A publish is accepted. Returns its generation.
    pub(in crate::producer) fn enter(&mut self) -> u64 {
        if let Some(newest) = self.unresolved.back_mut() {
            *newest += 1;
        }
        self.newest()
    }

    /// A publish is resolved.
    pub(in crate::producer) fn leave(&mut self, generation: u64, wakers: &mut Vec<Waker>) {
        if let Some(count) = self.unresolved.get_mut((generation - self.first) as usize) {
            *count -= 1;
        }
        let before = self.first;
        while self.unresolved.len() > 1 && self.unresolved.front() == Some(&0) {
            self.unresolved.pop_front();
            self.first += 1;
        }
        if self.first > before {
            wakers.extend(self.waiting.iter_mut().filter_map(|(_, waker)| waker.take()));
        }
    }

    /// Begins a new generation. Returns the one that ends with it; `None` if nothing is unresolved.
    pub(in crate::producer) fn divide(&mut self) -> Option<u64> {
        if self.unresolved.len() == 1 && self.unresolved.front() == Some(&0) {
            return None;
        }
        if self.unresolved.back() != Some(&0) {
            self.unresolved.push_back(0);
        }
        Some(self.newest() - 1)
    }

    /// Whether nothing is left of this generation and those before it.
    pub(in crate::producer) fn is_over(&self, generation: u64) -> bool {
        generation < self.first
    }

    /// How many of this generation and those before it are unresolved.
    pub(in crate::producer) fn unresolved_until(&self, generation: u64) -> usize {
        let generations = (generation + 1).saturating_sub(self.first) as usize;
        self.unresolved.iter().take(generations).sum()
    }

    /// Whether somebody may wait for what is unresolved.
    #[cfg(test)]
    pub(super) fn is_divided(&self) -> bool {
        self.unresolved.len() > 1
    }

    fn newest(&self) -> u64 {
        self.first + self.unresolved.len() as u64 - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_over_with_all_before_it() {
        let mut generations = Generations::default();
        let wakers = &mut Vec::new();
        assert_eq!(generations.divide(), None);
        let (a, b) = (generations.enter(), generations.enter());
        let first = generations.divide().unwrap();
        // Without anything in between it is the same flush.
        assert_eq!(generations.divide(), Some(first));
        let c = generations.enter();
        let second = generations.divide().unwrap();
        let d = generations.enter();
        assert_eq!((a, b, c, d), (first, first, second, second + 1));
        generations.leave(c, wakers);
        generations.leave(a, wakers);
        assert!(!generations.is_over(first) && !generations.is_over(second));
        generations.leave(b, wakers);
        assert!(generations.is_over(first) && generations.is_over(second));
        assert!(!generations.is_divided());
        generations.leave(d, wakers);
        assert_eq!(generations.divide(), None);
    }
}
