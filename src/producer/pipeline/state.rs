//! What is behind the pipeline's lock: the queue, the slots and their books.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use slab::Slab;
use tokio::time::Instant;

use super::flush::Generations;
use super::room::{Cost, Room};
use super::{Entry, Left, Payload};
use crate::error::{Error, ErrorKind, Result, Step};
use crate::producer::batch::MAX_TURN_BYTES;
use crate::producer::detached::PublishFailure;
use crate::producer::limits::Learnt;
use crate::producer::linger::Waiting;
use crate::producer::sink::Tally;
use crate::producer::stats::{Counts, LatencyHistogram};

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) seq: u64,
    pub(super) step: Step,
    /// How many messages its outcome is counted for.
    pub(super) messages: u32,
    pub(super) generation: u64,
    pub(super) begun: Instant,
    pub(super) deadline: Instant,
    /// Until its caller takes it.
    pub(super) outcome: Option<Result<()>>,
    pub(super) owner: Owner,
    /// An entry in the queue or in a turn refers to the slot, so it must not be freed yet.
    pub(super) referred: bool,
    /// It has had its outcome, or nobody needs one any more: an answer that comes now changes nothing.
    pub(super) resolved: bool,
    /// What waits is sent although its caller has left.
    pub(super) stays: bool,
    /// With an earlier attempt, elsewhere or here.
    pub(super) may_have_arrived: bool,
}

/// Whose publish it is.
#[derive(Debug)]
pub(super) enum Owner {
    /// A caller awaits it.
    Caller(Option<Waker>),
    /// Its caller is gone: whoever lets go of the entry frees the slot.
    Left,
    /// Nobody has ever waited for it: its outcome is counted, in a sink's tally if there is one, and a failure told.
    Nobody(Option<Arc<Tally>>),
}

/// A failure to be told. What it takes of the bounds is given back after that, so that they bound these, too.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) failure: PublishFailure,
    pub(super) cost: Cost,
    pub(super) generation: u64,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) queue: VecDeque<Entry>,
    pub(super) slots: Slab<Slot>,
    pub(super) next_seq: u64,
    /// Entries from this one on are waiting; older ones have been taken.
    pub(super) first_waiting: u64,
    /// How many entries of the queue are [`Payload::Gone`].
    pub(super) gone: usize,
    /// Taken and not yet resolved by an answer or by the connection's end.
    pub(super) taken: usize,
    /// What waits, as far as a batch that lingers depends on it.
    pub(super) waiting_since: Option<Instant>,
    pub(super) waiting_bytes: usize,
    pub(super) urgent: bool,
    /// The driver has left its waker for a batch that lingers: it need not be woken until that is complete.
    pub(super) lingers: bool,
    /// Left by a driver that wants to be woken by the next entry.
    pub(super) driver: Option<Waker>,
    /// Woken when a deadline comes in that is earlier than `timer`.
    pub(super) keeper: Option<Waker>,
    /// Left by a node without a connection, which ends as soon as nothing is pending any more.
    pub(super) ender: Option<Waker>,
    /// When the keeper looks at deadlines next.
    pub(super) timer: Option<Instant>,
    /// Why there is no connection at the moment.
    pub(super) unreachable: Option<Error>,
    /// In a pool without a connection, so nothing is accepted.
    pub(super) turns_away: bool,
    /// Set once no further publish is accepted.
    pub(super) closed: Option<Error>,
    pub(super) generations: Generations,
    /// Failures that are to be told.
    pub(super) failed: VecDeque<Failed>,
    /// Left by whoever tells them.
    pub(super) reporter: Option<Waker>,
    pub(super) limits: Learnt,
    pub(super) counts: Counts,
    pub(super) latency: LatencyHistogram,
}

impl Default for State {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            slots: Slab::new(),
            next_seq: 0,
            first_waiting: 0,
            gone: 0,
            taken: 0,
            waiting_since: None,
            waiting_bytes: 0,
            urgent: false,
            lingers: false,
            driver: None,
            keeper: None,
            ender: None,
            timer: None,
            unreachable: None,
            turns_away: false,
            closed: None,
            generations: Generations::default(),
            failed: VecDeque::new(),
            reporter: None,
            limits: Learnt::NOTHING,
            counts: Counts::default(),
            latency: LatencyHistogram::default(),
        }
    }
}

impl State {
    pub(super) fn live(&self) -> usize {
        self.queue.len() - self.gone
    }

    pub(super) fn is_finished(&self) -> bool {
        self.closed.is_some() && self.live() == 0 && self.taken == 0
    }

    pub(super) fn take_ender(&mut self) -> Option<Waker> {
        if self.is_finished() { self.ender.take() } else { None }
    }

    pub(super) fn not_sent(&self, step: Step, message: &'static str) -> Error {
        let error = Error::new(ErrorKind::NotSent, step, message);
        match &self.unreachable {
            Some(cause) => error.because(cause.clone()),
            None => error,
        }
    }

    /// As [`not_sent`](Self::not_sent), and carries nsqd's code if the entry was in a batch that nsqd has refused: then it
    /// must not share one with others elsewhere, either.
    pub(super) fn entry_not_sent(&self, entry: &Entry, reason: &'static str) -> Error {
        let error = self.not_sent(entry.step(), reason);
        match &self.unreachable {
            Some(refusal) if entry.alone => error.coded(refusal.code()),
            _ => error,
        }
    }

    /// Sees to it that the keeper looks at this deadline in time.
    pub(super) fn look_at(&mut self, deadline: Instant) -> Option<Waker> {
        if self.timer.is_none_or(|timer| deadline < timer) {
            self.timer = Some(deadline);
            return self.keeper.take();
        }
        None
    }

    /// What waits, which is something.
    pub(super) fn waiting(&self, now: Instant) -> Waiting {
        Waiting {
            since: self.waiting_since.unwrap_or(now),
            messages: self.live(),
            bytes: self.waiting_bytes,
            urgent: self.urgent || self.closed.is_some(),
        }
    }

    /// The generation that a flush waits for, and its place among those that wait; `None` if there is nothing to wait for.
    pub(super) fn begin_flush(&mut self) -> Option<(u64, usize)> {
        let generation = self.generations.divide()?;
        Some((generation, self.generations.waiting.insert(None)))
    }

    /// What is left of a generation and those before it.
    pub(super) fn left_of(&self, generation: u64) -> Left {
        let mut left = Left {
            untold: self
                .failed
                .iter()
                .filter(|failed| failed.generation <= generation)
                .count(),
            ..Left::default()
        };
        for (_, slot) in &self.slots {
            if slot.resolved || slot.generation > generation {
                continue;
            }
            if slot.seq >= self.first_waiting {
                left.waiting += 1;
            } else {
                left.unanswered += 1;
            }
        }
        left
    }

    /// Moves to `entries`, which is empty, what comes first, up to what one turn may carry. There is something.
    pub(super) fn take(&mut self, entries: &mut Vec<Entry>) {
        if self.waiting_bytes <= MAX_TURN_BYTES {
            entries.extend(self.queue.drain(..).filter(Entry::is_live));
            self.nothing_waits();
        } else {
            self.take_some(entries);
        }
        self.taken += entries.len();
    }

    fn take_some(&mut self, entries: &mut Vec<Entry>) {
        let mut bytes = 0;
        while let Some(entry) = self.queue.front() {
            let size = entry.payload.size();
            if !entries.is_empty() && bytes + size > MAX_TURN_BYTES {
                break;
            }
            bytes += size;
            match self.queue.pop_front() {
                Some(entry) if entry.is_live() => entries.push(entry),
                _ => self.gone -= 1,
            }
        }
        self.waiting_bytes -= bytes;
        match self.queue.front() {
            Some(next) => self.first_waiting = next.seq,
            None => self.nothing_waits(),
        }
    }

    /// The queue is empty now.
    pub(super) fn nothing_waits(&mut self) {
        self.gone = 0;
        self.first_waiting = self.next_seq;
        self.waiting_since = None;
        self.waiting_bytes = 0;
        self.urgent = false;
        self.lingers = false;
    }

    /// An entry is done with. Returns what it gives back of the bounds.
    pub(super) fn settle(
        &mut self,
        mut entry: Entry,
        outcome: impl FnOnce() -> Result<()>,
        now: Instant,
        room: &Room,
        wakers: &mut Vec<Waker>,
    ) -> Cost {
        self.settle_in_place(&mut entry, outcome, now, room, wakers)
    }

    /// As [`settle`](Self::settle), for an entry whose place is used again.
    pub(super) fn settle_in_place(
        &mut self,
        entry: &mut Entry,
        outcome: impl FnOnce() -> Result<()>,
        now: Instant,
        room: &Room,
        wakers: &mut Vec<Waker>,
    ) -> Cost {
        let cost = room.cost_of(&entry.payload);
        let payload = std::mem::replace(&mut entry.payload, Payload::Gone);
        let slot = &mut self.slots[entry.slot];
        slot.referred = false;
        if slot.resolved {
            // By its deadline.
            if matches!(slot.owner, Owner::Left) {
                self.slots.remove(entry.slot);
            }
            return cost;
        }
        let outcome = outcome();
        self.counts.count(&outcome, slot.messages);
        if outcome.is_ok() && slot.messages > 0 {
            self.latency.record(now.saturating_duration_since(slot.begun));
        }
        slot.resolved = true;
        let generation = slot.generation;
        match &mut slot.owner {
            Owner::Caller(waker) => {
                wakers.extend(waker.take());
                slot.outcome = Some(outcome);
            }
            Owner::Left => {
                self.slots.remove(entry.slot);
            }
            Owner::Nobody(tally) => {
                let told = match tally {
                    Some(tally) => tally.resolve(entry.topic.as_ref(), &outcome, wakers),
                    None => outcome.is_ok(),
                };
                self.slots.remove(entry.slot);
                if let (false, Err(error), Some(topic), Payload::One(body)) =
                    (told, outcome, entry.topic.take(), payload)
                {
                    self.failed.push_back(Failed {
                        failure: PublishFailure { topic, body, error },
                        cost,
                        generation,
                    });
                    wakers.extend(self.reporter.take());
                    return Cost::default();
                }
            }
        }
        self.generations.leave(generation, wakers);
        cost
    }

    /// Gives a publish that is still on its way an outcome.
    pub(super) fn resolve_sent(&mut self, slot: usize, error: Error, wakers: &mut Vec<Waker>) {
        let slot = &mut self.slots[slot];
        let outcome = Err(error);
        self.counts.count(&outcome, slot.messages);
        slot.resolved = true;
        match &mut slot.owner {
            Owner::Caller(waker) => {
                wakers.extend(waker.take());
                slot.outcome = Some(outcome);
            }
            Owner::Left => {}
            Owner::Nobody(tally) => {
                if let Some(tally) = tally {
                    tally.resolve(None, &outcome, wakers);
                }
            }
        }
        self.generations.leave(slot.generation, wakers);
    }

    /// A publish that has not left is taken back: it has no outcome.
    pub(super) fn withdraw(&mut self, slot: usize, wakers: &mut Vec<Waker>) {
        let slot = &mut self.slots[slot];
        slot.resolved = true;
        self.generations.leave(slot.generation, wakers);
    }

    /// The caller of a slot is done with it. Returns its waker, to be dropped once the lock is free: with the last
    /// waker of a task goes the task, which may hold other publishes.
    pub(super) fn let_go(&mut self, slot: usize) -> Option<Waker> {
        let owner = if self.slots[slot].referred {
            std::mem::replace(&mut self.slots[slot].owner, Owner::Left)
        } else {
            self.slots.remove(slot).owner
        };
        match owner {
            Owner::Caller(waker) => waker,
            Owner::Left | Owner::Nobody(_) => None,
        }
    }

    /// Takes the entry of a slot out of the queue.
    pub(super) fn remove_waiting(&mut self, slot: usize) -> Option<Entry> {
        let seq = self.slots[slot].seq;
        self.slots[slot].referred = false;
        let index = self.queue.binary_search_by_key(&seq, |entry| entry.seq).ok()?;
        let entry = self.queue[index].leave_gone();
        self.waiting_bytes -= entry.payload.size();
        self.gone += 1;
        // Removing from the middle would cost a move of the rest each time; so it is done for many at once.
        if self.gone > 32 && self.gone > self.queue.len() / 2 {
            self.queue.retain(Entry::is_live);
            self.gone = 0;
        }
        Some(entry)
    }
}
