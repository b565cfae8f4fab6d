//! How a pipeline ends: nothing more comes in, and what is there is resolved.

use std::future::poll_fn;
use std::task::{Poll, Waker};

use tokio::time::Instant;

use super::room::Cost;
use super::state::{Owner, Slot};
use super::{Entry, Pipeline, Step};
use crate::error::{Error, ErrorKind};
use crate::producer::node::Leftover;
use crate::producer::phase::Phase;

impl Pipeline {
    /// How many of these, which were sent and not answered, are to be counted as left unknown by the producer's end.
    ///
    /// A pool itself counts what has an outcome already, and until it stops also what has a caller to take one: that publish
    /// may go on elsewhere.
    pub(in crate::producer) fn left_unknown(&self, entries: &[Entry], phase: Phase) -> usize {
        let state = self.lock();
        let counts = |slot: &Slot| match phase {
            // Earlier losses are no matter of the end.
            Phase::Running => false,
            _ if !self.in_pool => true,
            Phase::Ending | Phase::Draining => !slot.resolved && matches!(slot.owner, Owner::Left),
            Phase::Stopping => !slot.resolved,
        };
        entries.iter().filter(|entry| counts(&state.slots[entry.slot])).count()
    }

    /// Accepts no further publish; each is answered with `error`, also those that wait for room. What is pending goes
    /// on.
    pub(in crate::producer) fn close(&self, error: Error) {
        let mut state = self.lock();
        state.closed.get_or_insert(error);
        let wakers = [state.driver.take(), state.take_ender()];
        drop(state);
        self.room.close();
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Whether the pipeline is closed and nothing is pending.
    pub(in crate::producer) fn is_finished(&self) -> bool {
        self.lock().is_finished()
    }

    /// Waits until the pipeline is closed and nothing is pending, for a node that has no connection: with one, its
    /// driver notices.
    pub(in crate::producer) async fn finished(&self) {
        poll_fn(|cx| {
            let mut state = self.lock();
            if state.is_finished() {
                return Poll::Ready(());
            }
            state.ender = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Resolves everything that waits as not sent. Returns how many that were; of a publish that may have arrived with an
    /// earlier attempt the truth is *unknown*.
    pub(in crate::producer) fn fail_waiting(&self, reason: &'static str) -> Leftover {
        let mut wakers = Vec::new();
        let mut cost = Cost::default();
        let now = Instant::now();
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut failed = Leftover::default();
        for entry in std::mem::take(&mut state.queue) {
            if entry.is_live() {
                let error = state.entry_not_sent(&entry, reason);
                if state.slots[entry.slot].may_have_arrived {
                    failed.unknown += 1;
                } else {
                    failed.not_sent += 1;
                }
                cost.add(state.settle(entry, || Err(error), now, &self.room, &mut wakers));
            }
        }
        state.nothing_waits();
        drop(guard);
        self.room.give_back(cost);
        wakers.into_iter().for_each(Waker::wake);
        failed
    }

    /// The node is gone: resolves everything, as nobody else will. Returns what was left.
    pub(in crate::producer) fn end(&self, error: Error) -> Leftover {
        self.close(error);
        let mut leftover = self.fail_waiting("the producer has ended");
        let mut wakers = Vec::new();
        let mut guard = self.lock();
        let state = &mut *guard;
        let unresolved: Vec<(usize, Step)> = state
            .slots
            .iter()
            .filter(|(_, slot)| !slot.resolved)
            .map(|(index, slot)| (index, slot.step))
            .collect();
        let mut untold = 0;
        for (slot, step) in unresolved {
            untold += usize::from(matches!(state.slots[slot].owner, Owner::Nobody(None)));
            let error = Error::new(
                ErrorKind::Unknown,
                step,
                "the producer has ended before nsqd answered; the message may have arrived",
            );
            state.resolve_sent(slot, error, &mut wakers);
        }
        leftover.unknown += std::mem::take(&mut state.taken);
        drop(guard);
        wakers.into_iter().for_each(Waker::wake);
        self.tell_failures();
        if untold > 0 {
            tracing::warn!(
                count = untold,
                "enqueued messages were not answered before the runtime ended"
            );
        }
        leftover
    }
}
