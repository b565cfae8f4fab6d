//! The publishes of one nsqd that are not resolved yet: who waits, for what, and with which outcome.
//!
//! ```text
//!            enqueue             take                 answer / loss / deadline
//!  caller ───────────▶ waiting ────────▶ sent (in a turn) ─────────────────▶ resolved ──▶ caller
//!                        │  ▲               │
//!       dropped/deadline │  └───────────────┘ connection lost before the command had left
//!                        ▼
//!                      gone
//! ```
//!
//! A publish owns a *slot* from when it is accepted until both its outcome is known and its caller has taken it or is
//! gone. Answers are matched to commands, never to callers, so a caller that leaves shifts nobody's answer (P4).

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use slab::Slab;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::error::{Error, ErrorKind, Result, Step};
use crate::name::Topic;

/// What to send.
#[derive(Clone, Debug)]
pub(super) enum Payload {
    One(Bytes),
    Many(Vec<Bytes>),
    Deferred {
        delay: Duration,
        body: Bytes,
    },
    Ping,
    /// Its caller is gone; the place in the queue remains until it is reached.
    Gone,
}

impl Payload {
    /// The bytes of the bodies.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::One(body) | Self::Deferred { body, .. } => body.len(),
            Self::Many(bodies) => bodies.iter().map(Bytes::len).sum(),
            Self::Ping | Self::Gone => 0,
        }
    }

    fn step(&self) -> Step {
        if matches!(self, Self::Ping) {
            Step::Ping
        } else {
            Step::Publish
        }
    }
}

/// A publish in the queue or in a turn.
#[derive(Debug)]
pub(super) struct Entry {
    /// Grows by one per publish; the queue is sorted by it.
    seq: u64,
    slot: usize,
    /// To which command of its turn it belongs.
    pub(super) group: u32,
    /// Not to be joined with others: a batch with it was refused.
    pub(super) alone: bool,
    pub(super) topic: Option<Topic>,
    pub(super) payload: Payload,
}

impl Entry {
    pub(super) fn step(&self) -> Step {
        self.payload.step()
    }
}

#[derive(Debug)]
struct Slot {
    seq: u64,
    step: Step,
    deadline: Instant,
    outcome: Option<Result<()>>,
    waker: Option<Waker>,
    /// An entry in the queue or in a turn refers to the slot, so it must not be freed yet.
    referred: bool,
    /// The caller has its outcome or is gone: whoever lets go of the entry frees the slot.
    abandoned: bool,
    /// What waits is sent although its caller has left.
    stays: bool,
}

/// How a publish differs from the usual one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Manner {
    /// Not to be joined with others: it may have been in a batch that another nsqd has refused.
    pub(super) alone: bool,
    /// It is sent once it is in the queue, even if its caller leaves before.
    pub(super) stays: bool,
}

/// How full a pipeline is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) messages: usize,
    pub(super) has_room: bool,
}

/// How much may be pending.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) messages: u32,
    pub(super) bytes: u32,
}

#[derive(Debug)]
pub(super) struct Pipeline {
    state: Mutex<State>,
    bounds: Bounds,
    /// Whether publishes can go elsewhere, so that none waits for a connection here.
    in_pool: bool,
    // Permits for what is pending. They are taken before an entry is made and given back when its command is
    // resolved or its place given up, so that memory is bounded by them (P5).
    messages: Semaphore,
    bytes: Semaphore,
    // Callers for whom there was no room stand in line, and only the first of them may take permits. Without it a
    // newcomer could take what is free while the one whose permits have just come is still to run.
    turnstile: Semaphore,
    in_line: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Entry>,
    slots: Slab<Slot>,
    next_seq: u64,
    /// Entries from this one on are waiting; older ones have been taken.
    first_waiting: u64,
    /// How many entries of the queue are [`Payload::Gone`].
    gone: usize,
    /// Taken and not yet resolved by an answer or by the connection's end.
    taken: usize,
    /// Left by a driver that wants to be woken by the next entry.
    driver: Option<Waker>,
    /// Woken when a deadline comes in that is earlier than `timer`.
    keeper: Option<Waker>,
    /// Left by a node without a connection, which ends as soon as nothing is pending any more.
    ender: Option<Waker>,
    /// When the keeper looks at deadlines next.
    timer: Option<Instant>,
    /// Why there is no connection at the moment.
    unreachable: Option<Error>,
    /// In a pool without a connection, so nothing is accepted.
    turns_away: bool,
    /// Set once no further publish is accepted.
    closed: Option<Error>,
}

/// What [`Pipeline::take`] found.
pub(super) enum Taken {
    /// All that waited is now in the caller's vector.
    Entries,
    /// Fewer than expected wait; ask again after the callers have had a chance to come back.
    FewerThanExpected,
    /// Nothing waits; the next entry wakes the driver.
    Nothing,
    /// Nothing waits and nothing more will come.
    Closed,
}

impl Pipeline {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            state: Mutex::default(),
            bounds,
            in_pool: false,
            messages: Semaphore::new(bounds.messages as usize),
            bytes: Semaphore::new(bounds.bytes as usize),
            turnstile: Semaphore::new(1),
            in_line: AtomicUsize::new(0),
        }
    }

    /// A pipeline that keeps nothing waiting while there is no connection: whatever waits is *not sent* at once, so that
    /// it can go elsewhere.
    pub(super) fn in_pool(bounds: Bounds) -> Self {
        let mut pipeline = Self::new(bounds);
        pipeline.in_pool = true;
        pipeline.lock().turns_away = true;
        pipeline
    }

    /// Taken without the lock, so it is a moment old.
    pub(super) fn load(&self) -> Load {
        let free = self.messages.available_permits();
        Load {
            messages: (self.bounds.messages as usize).saturating_sub(free),
            has_room: free > 0 && self.bytes.available_permits() > 0 && self.in_line.load(Ordering::Relaxed) == 0,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; if something did, the state would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a publish, at once if there is room; the future waits until it is resolved.
    ///
    /// What many callers have to move around and keep in memory is this future, so it holds a publish no longer than
    /// until the queue has it, and what only waiting for room needs is boxed.
    ///
    /// # Cancel safety
    /// Dropping the future before the publish was taken for sending takes it back; after that its answer is awaited
    /// for nobody.
    pub(super) fn submit(
        &self,
        topic: Option<Topic>,
        payload: Payload,
        deadline: Instant,
    ) -> impl Future<Output = Result<()>> + Send + '_ {
        self.submit_as(Manner::default(), topic, payload, deadline)
    }

    /// As [`submit`](Self::submit), in another manner than the usual.
    pub(super) fn submit_as(
        &self,
        manner: Manner,
        topic: Option<Topic>,
        payload: Payload,
        deadline: Instant,
    ) -> impl Future<Output = Result<()>> + Send + '_ {
        let cost = self.cost_of(&payload);
        let queued = if self.try_reserve(cost) {
            Ok(self.enqueue_reserved(manner, topic, payload, deadline, cost))
        } else {
            Err(Box::pin(async move {
                let _in_line = self.reserve(cost, deadline, payload.step()).await?;
                self.enqueue_reserved(manner, topic, payload, deadline, cost)
            }))
        };
        async move {
            let pending = match queued {
                Ok(at_once) => at_once?,
                Err(waits) => waits.await?,
            };
            pending.await
        }
    }

    fn try_reserve(&self, cost: Cost) -> bool {
        if self.in_line.load(Ordering::Relaxed) > 0 {
            return false;
        }
        let Ok(messages) = self.messages.try_acquire_many(cost.messages as u32) else {
            return false;
        };
        let Ok(bytes) = self.bytes.try_acquire_many(cost.bytes as u32) else {
            return false;
        };
        messages.forget();
        bytes.forget();
        true
    }

    /// Waits for room. What is returned is to be kept until the publish is in the queue.
    async fn reserve(&self, cost: Cost, deadline: Instant, step: Step) -> Result<InLine<'_>> {
        let mut in_line = InLine::new(&self.in_line);
        let room = async {
            in_line.turn = Some(self.turnstile.acquire().await.ok()?);
            let messages = self.messages.acquire_many(cost.messages as u32).await.ok()?;
            let bytes = self.bytes.acquire_many(cost.bytes as u32).await.ok()?;
            Some((messages, bytes))
        };
        match timeout_at(deadline, room).await.ok().flatten() {
            Some((messages, bytes)) => {
                messages.forget();
                bytes.forget();
                Ok(in_line)
            }
            None => {
                let state = self.lock();
                let closed = state.closed.clone();
                Err(closed.unwrap_or_else(|| state.not_sent(step, "the deadline passed while the pipeline was full")))
            }
        }
    }

    /// Queues a publish whose cost is reserved.
    fn enqueue_reserved(
        &self,
        manner: Manner,
        topic: Option<Topic>,
        payload: Payload,
        deadline: Instant,
        cost: Cost,
    ) -> Result<Pending<'_>> {
        let accepted = self.enqueue(manner, topic, payload, deadline);
        if accepted.is_err() {
            self.release(cost);
        }
        accepted
    }

    fn enqueue(
        &self,
        manner: Manner,
        topic: Option<Topic>,
        payload: Payload,
        deadline: Instant,
    ) -> Result<Pending<'_>> {
        let mut state = self.lock();
        if let Some(closed) = &state.closed {
            return Err(closed.clone());
        }
        if state.turns_away {
            return Err(state.not_sent(payload.step(), "there is no connection to it"));
        }
        let seq = state.next_seq;
        state.next_seq += 1;
        let slot = state.slots.insert(Slot {
            seq,
            step: payload.step(),
            deadline,
            outcome: None,
            waker: None,
            referred: true,
            abandoned: false,
            stays: manner.stays,
        });
        state.queue.push_back(Entry {
            seq,
            slot,
            group: 0,
            alone: manner.alone,
            topic,
            payload,
        });
        let mut keeper = None;
        if state.timer.is_none_or(|timer| deadline < timer) {
            state.timer = Some(deadline);
            keeper = state.keeper.take();
        }
        let driver = state.driver.take();
        drop(state);
        keeper.into_iter().chain(driver).for_each(Waker::wake);
        Ok(Pending {
            pipeline: self,
            slot: Some(slot),
        })
    }

    fn cost_of(&self, payload: &Payload) -> Cost {
        let messages = match payload {
            Payload::Many(bodies) => bodies.len(),
            Payload::Gone => 0,
            _ => 1,
        };
        // A publish larger than a bound is let through alone: it takes all of it.
        Cost {
            messages: messages.min(self.bounds.messages as usize),
            bytes: payload.size().min(self.bounds.bytes as usize),
        }
    }

    fn release(&self, cost: Cost) {
        if cost.messages > 0 {
            self.messages.add_permits(cost.messages);
        }
        if cost.bytes > 0 {
            self.bytes.add_permits(cost.bytes);
        }
    }

    /// Moves all waiting entries to `entries`, which is empty. With fewer than `expected` of them, nothing is moved.
    pub(super) fn take(&self, expected: usize, entries: &mut Vec<Entry>, cx: &Context<'_>) -> Taken {
        let mut state = self.lock();
        let live = state.live();
        if live == 0 {
            if state.closed.is_some() && state.taken == 0 {
                return Taken::Closed;
            }
            state.driver = Some(cx.waker().clone());
            return Taken::Nothing;
        }
        if live < expected {
            return Taken::FewerThanExpected;
        }
        entries.extend(
            state
                .queue
                .drain(..)
                .filter(|entry| !matches!(entry.payload, Payload::Gone)),
        );
        state.gone = 0;
        state.taken += entries.len();
        state.first_waiting = state.next_seq;
        Taken::Entries
    }

    /// Resolves the entries of one command alike. Returns how many entries wait now.
    pub(super) fn resolve(&self, entries: &mut [Entry], outcome: &Result<()>, wakers: &mut Vec<Waker>) -> usize {
        let mut cost = Cost::default();
        let mut state = self.lock();
        state.taken -= entries.len();
        for entry in entries {
            cost.add(self.cost_of(&entry.payload));
            entry.payload = Payload::Gone;
            state.settle(entry.slot, || outcome.clone(), wakers);
        }
        let waiting = state.live();
        drop(state);
        self.release(cost);
        waiting
    }

    /// Whether the deadlines of all these entries, which have been taken, have passed at this time.
    pub(super) fn have_expired(&self, entries: &[Entry], at: Instant) -> bool {
        let state = self.lock();
        entries.iter().all(|entry| state.slots[entry.slot].deadline <= at)
    }

    /// Puts entries that nsqd cannot have acted on back to the front of the queue, to be sent again.
    pub(super) fn put_back(&self, mut entries: Vec<Entry>) {
        // Turns sort their entries by topic.
        entries.sort_unstable_by_key(|entry| entry.seq);
        let mut cost = Cost::default();
        let mut guard = self.lock();
        let state = &mut *guard;
        state.taken -= entries.len();
        if let Some(first) = entries.first() {
            state.first_waiting = first.seq;
        }
        for entry in entries.into_iter().rev() {
            let slot = &mut state.slots[entry.slot];
            if slot.outcome.is_none() && !slot.abandoned {
                state.queue.push_front(entry);
                continue;
            }
            // The caller has left, or its deadline has passed.
            cost.add(self.cost_of(&entry.payload));
            slot.referred = false;
            if slot.abandoned {
                state.slots.remove(entry.slot);
            }
        }
        drop(guard);
        self.release(cost);
    }

    /// Accepts no further publish; each is answered with `error`, also those that wait for room. What is pending goes
    /// on.
    pub(super) fn close(&self, error: Error) {
        let mut state = self.lock();
        state.closed.get_or_insert(error);
        let wakers = [state.driver.take(), state.take_ender()];
        drop(state);
        self.messages.close();
        self.bytes.close();
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Whether the pipeline is closed and nothing is pending.
    pub(super) fn is_finished(&self) -> bool {
        self.lock().is_finished()
    }

    /// Waits until the pipeline is closed and nothing is pending, for a node that has no connection: with one, its
    /// driver notices.
    pub(super) async fn finished(&self) {
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

    /// Tells why there is no connection, or that there is one, for the errors of those who wait meanwhile.
    ///
    /// In a pool, what waits is *not sent* with the connection, and so is what comes until there is another one.
    pub(super) fn set_unreachable(&self, error: Option<Error>) {
        let mut state = self.lock();
        state.turns_away = self.in_pool && error.is_some();
        state.unreachable = error;
        if state.turns_away {
            drop(state);
            self.fail_waiting("the connection was lost before it could be sent");
        }
    }

    /// Resolves everything that waits as not sent. Returns how many that were.
    pub(super) fn fail_waiting(&self, reason: &'static str) -> usize {
        let mut wakers = Vec::new();
        let mut cost = Cost::default();
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut failed = 0;
        for entry in std::mem::take(&mut state.queue) {
            if !matches!(entry.payload, Payload::Gone) {
                cost.add(self.cost_of(&entry.payload));
                let error = state.not_sent(entry.payload.step(), reason);
                state.settle(entry.slot, || Err(error), &mut wakers);
                failed += 1;
            }
        }
        state.gone = 0;
        state.first_waiting = state.next_seq;
        drop(guard);
        self.release(cost);
        wakers.into_iter().for_each(Waker::wake);
        failed
    }

    /// The node is gone: resolves everything, as nobody else will. Returns how many were not sent and how many stay
    /// unknown.
    pub(super) fn end(&self, error: Error) -> (usize, usize) {
        self.close(error);
        let not_sent = self.fail_waiting("the producer has ended");
        let mut wakers = Vec::new();
        let mut state = self.lock();
        for (_, slot) in &mut state.slots {
            slot.outcome.get_or_insert_with(|| {
                Err(Error::new(
                    ErrorKind::Unknown,
                    slot.step,
                    "the producer has ended before nsqd answered; the message may have arrived",
                ))
            });
            wakers.extend(slot.waker.take());
        }
        let unknown = std::mem::take(&mut state.taken);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        (not_sent, unknown)
    }

    /// Resolves each publish whose deadline has passed and keeps on doing so. Never ready.
    ///
    /// One timer serves all publishes: it is set for the earliest deadline known when it was set, so with equal
    /// timeouts a publish never touches it.
    pub(super) async fn keep_deadlines(&self) {
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
            if slot.outcome.is_some() || slot.abandoned {
                continue;
            }
            if slot.deadline <= now {
                expired.push(index);
            } else {
                next = Some(next.map_or(slot.deadline, |next| next.min(slot.deadline)));
            }
        }
        for index in expired {
            let slot = &state.slots[index];
            let (step, waiting) = (slot.step, slot.seq >= state.first_waiting);
            let error = if waiting {
                cost.add(self.cost_of(&state.remove_waiting(index)));
                state.not_sent(step, "the deadline passed before it could be sent")
            } else {
                Error::new(
                    ErrorKind::Unknown,
                    step,
                    "the deadline passed before nsqd answered; it may have arrived",
                )
            };
            let slot = &mut state.slots[index];
            slot.outcome = Some(Err(error));
            wakers.extend(slot.waker.take());
        }
        state.timer = next;
        wakers.extend(state.take_ender());
        drop(guard);
        self.release(cost);
        wakers.into_iter().for_each(Waker::wake);
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.live() == 0 && state.taken == 0
    }

    #[cfg(test)]
    pub(super) fn assert_nothing_is_left(&self) {
        let state = self.lock();
        assert_eq!(
            (state.live(), state.taken, state.slots.len()),
            (0, 0, 0),
            "queue, turns, slots"
        );
        assert_eq!(self.messages.available_permits(), self.bounds.messages as usize);
        assert_eq!(self.bytes.available_permits(), self.bounds.bytes as usize);
        assert_eq!(self.in_line.load(Ordering::Relaxed), 0);
    }

    fn poll_outcome(&self, slot: usize, cx: &Context<'_>) -> Poll<Result<()>> {
        let mut state = self.lock();
        let waiting = &mut state.slots[slot];
        if let Some(outcome) = waiting.outcome.take() {
            let unused = state.let_go(slot);
            drop(state);
            drop(unused);
            return Poll::Ready(outcome);
        }
        if !waiting.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            let replaced = waiting.waker.replace(cx.waker().clone());
            drop(state);
            drop(replaced);
        }
        Poll::Pending
    }

    /// The caller of a slot is gone.
    fn abandon(&self, slot: usize) {
        let mut state = self.lock();
        let left = &state.slots[slot];
        let mut cost = Cost::default();
        if left.outcome.is_none() && left.seq >= state.first_waiting && !left.stays {
            cost.add(self.cost_of(&state.remove_waiting(slot)));
        }
        let unused = state.let_go(slot);
        let ender = state.take_ender();
        drop(state);
        drop(unused);
        self.release(cost);
        ender.into_iter().for_each(Waker::wake);
    }
}

impl State {
    fn live(&self) -> usize {
        self.queue.len() - self.gone
    }

    fn is_finished(&self) -> bool {
        self.closed.is_some() && self.live() == 0 && self.taken == 0
    }

    fn take_ender(&mut self) -> Option<Waker> {
        if self.is_finished() { self.ender.take() } else { None }
    }

    fn not_sent(&self, step: Step, message: &'static str) -> Error {
        let error = Error::new(ErrorKind::NotSent, step, message);
        match &self.unreachable {
            Some(cause) => error.because(cause.clone()),
            None => error,
        }
    }

    /// The entry of a slot is done with.
    fn settle(&mut self, slot: usize, outcome: impl FnOnce() -> Result<()>, wakers: &mut Vec<Waker>) {
        let settled = &mut self.slots[slot];
        settled.referred = false;
        if settled.abandoned {
            self.slots.remove(slot);
        } else if settled.outcome.is_none() {
            settled.outcome = Some(outcome());
            wakers.extend(settled.waker.take());
        }
    }

    /// The caller of a slot is done with it. Returns its waker, to be dropped once the lock is free: with the last
    /// waker of a task goes the task, which may hold other publishes.
    fn let_go(&mut self, slot: usize) -> Option<Waker> {
        if self.slots[slot].referred {
            let left = &mut self.slots[slot];
            left.abandoned = true;
            left.waker.take()
        } else {
            self.slots.remove(slot).waker
        }
    }

    /// Takes the entry of a slot out of the queue.
    fn remove_waiting(&mut self, slot: usize) -> Payload {
        let seq = self.slots[slot].seq;
        self.slots[slot].referred = false;
        let Ok(index) = self.queue.binary_search_by_key(&seq, |entry| entry.seq) else {
            return Payload::Gone;
        };
        let payload = std::mem::replace(&mut self.queue[index].payload, Payload::Gone);
        self.gone += 1;
        // Removing from the middle would cost a move of the rest each time; so it is done for many at once.
        if self.gone > 32 && self.gone > self.queue.len() / 2 {
            self.queue.retain(|entry| !matches!(entry.payload, Payload::Gone));
            self.gone = 0;
        }
        payload
    }
}

/// A place among the callers that wait for room.
struct InLine<'a> {
    count: &'a AtomicUsize,
    turn: Option<SemaphorePermit<'a>>,
}

impl<'a> InLine<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self { count, turn: None }
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        // Before the turn is passed on, so that whoever sees nobody in line is right.
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A publish on its way, awaited by its caller.
#[must_use = "a publish is taken back when this is dropped"]
struct Pending<'a> {
    pipeline: &'a Pipeline,
    slot: Option<usize>,
}

impl Future for Pending<'_> {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let Some(slot) = self.slot else { return Poll::Pending };
        let outcome = ready!(self.pipeline.poll_outcome(slot, cx));
        self.slot = None;
        Poll::Ready(outcome)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.pipeline.abandon(slot);
        }
    }
}

/// What a publish takes of the bounds.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    messages: usize,
    bytes: usize,
}

impl Cost {
    fn add(&mut self, other: Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
    }
}
