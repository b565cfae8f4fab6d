//! Resolves what its deadline has overtaken.

use std::future::poll_fn;
use std::task::{Poll, Waker};

use tokio::time::{Instant, sleep_until};

use super::room::Cost;
use super::state::Owner;
use super::{Pipeline, Step};
use crate::error::{Error, ErrorKind};

impl Pipeline {
    /// Resolves each publish whose deadline has passed and keeps on doing so. Never ready.
    ///
    /// One timer serves all publishes: it is set for the earliest deadline known when it was set, so with equal
    /// timeouts a publish never touches it.
    pub(in crate::producer) async fn keep_deadlines(&self) {
        loop {
            let next = poll_fn(|cx| {
                let mut state = self.lock();
                if state.timer.is_none() {
                    state.keeper = Some(cx.waker().clone());
                }
                state.timer.map_or(Poll::Pending, Poll::Ready)
            })
            .await;
            let earlier = poll_fn(|cx| {
                let mut state = self.lock();
                state.keeper = Some(cx.waker().clone());
                match state.timer {
                    Some(timer) if timer < next => Poll::Ready(()),
                    _ => Poll::Pending,
                }
            });
            tokio::select! {
                biased;
                () = sleep_until(next) => self.expire(Instant::now()),
                () = earlier => {}
            }
        }
    }

    fn expire(&self, now: Instant) {
        let mut wakers = Vec::new();
        let mut cost = Cost::default();
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut next: Option<Instant> = None;
        let mut expired = Vec::new();
        for (index, slot) in &state.slots {
            let awaited = match slot.owner {
                Owner::Caller(_) => true,
                Owner::Left => false,
                // Once it was sent, nobody is better off without the answer.
                Owner::Nobody(_) => slot.seq >= state.first_waiting,
            };
            if slot.resolved || !awaited {
                continue;
            }
            if slot.deadline <= now {
                expired.push(index);
            } else {
                next = Some(next.map_or(slot.deadline, |next| next.min(slot.deadline)));
            }
        }
        for index in expired {
            let (seq, step) = (state.slots[index].seq, state.slots[index].step);
            if seq < state.first_waiting {
                state.resolve_sent(index, unanswered(step), &mut wakers);
            } else if let Some(entry) = state.remove_waiting(index) {
                let error = state.not_sent(step, "the deadline passed before it could be sent");
                cost.add(state.settle(entry, || Err(error), now, &self.room, &mut wakers));
            }
        }
        state.timer = next;
        wakers.extend(state.take_ender());
        drop(guard);
        self.room.give_back(cost);
        wakers.into_iter().for_each(Waker::wake);
    }
}

fn unanswered(step: Step) -> Error {
    Error::new(
        ErrorKind::Unknown,
        step,
        "the deadline passed before nsqd answered; it may have arrived",
    )
}
