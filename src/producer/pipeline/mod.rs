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

mod deadlines;
mod ending;
mod flush;
mod haste;
mod room;
mod state;
mod telling;

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

pub(super) use self::flush::{Generations, Left};
pub(super) use self::haste::{Haste, Hurry};
use self::room::InLine;
pub(super) use self::room::{Cost, Room};
use self::state::{Owner, Slot, State};
use super::detached::FailureHook;
use super::limits::Learnt;
use super::linger::{Departure, Linger, Waiting};
use super::node::Leftover;
use super::sink::Tally;
use super::stats::{Counts, LatencyHistogram, Traffic};
use crate::error::{Error, Result, Step};
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

    pub(super) fn messages(&self) -> usize {
        match self {
            Self::One(_) | Self::Deferred { .. } => 1,
            Self::Many(bodies) => bodies.len(),
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

    pub(super) fn is_live(&self) -> bool {
        !matches!(self.payload, Payload::Gone)
    }

    /// Takes it away and leaves what only keeps its place.
    fn leave_gone(&mut self) -> Self {
        let gone = Self {
            seq: self.seq,
            slot: self.slot,
            group: 0,
            alone: false,
            topic: None,
            payload: Payload::Gone,
        };
        std::mem::replace(self, gone)
    }
}

/// How much may be pending.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) messages: u32,
    pub(super) bytes: u32,
}

/// When a publish was called and when it ends at the latest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) begun: Instant,
    pub(super) deadline: Instant,
}

/// How a publish differs from the usual one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Manner {
    /// Not to be joined with others: it may have been in a batch that another nsqd has refused.
    pub(super) alone: bool,
    /// It is sent once it is in the queue, even if its caller leaves before.
    pub(super) stays: bool,
    /// It has waited elsewhere, so it does not linger here.
    pub(super) urgent: bool,
    /// An earlier attempt may have arrived: what is not sent this time stays unknown in all.
    pub(super) may_have_arrived: bool,
}

/// How full a pipeline is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) messages: usize,
    pub(super) has_room: bool,
}

/// A message that nobody waits for.
#[derive(Debug)]
pub(super) struct Detached {
    pub(super) topic: Topic,
    pub(super) body: Bytes,
    /// The books of the sink that it came by.
    pub(super) tally: Option<Arc<Tally>>,
}

/// What a pipeline tells of itself.
#[derive(Debug)]
pub(super) struct PipelineStats {
    pub(super) pending_messages: usize,
    pub(super) pending_bytes: usize,
    pub(super) counts: Counts,
    pub(super) latency: LatencyHistogram,
}

#[derive(Debug)]
pub(super) struct Pipeline {
    state: Mutex<State>,
    room: Room,
    /// Whether publishes can go elsewhere, so that none waits for a connection here.
    in_pool: bool,
    linger: Option<Linger>,
    haste: Haste,
    on_failure: FailureHook,
    /// Held while the hook runs: failures are told one after the other.
    telling: Mutex<()>,
    pub(super) traffic: Traffic,
}

/// What [`Pipeline::take`] found.
pub(super) enum Taken {
    /// What one turn may carry of all that waited is now in the caller's vector.
    Entries,
    /// Fewer than expected wait; ask again after the callers have had a chance to come back.
    FewerThanExpected,
    /// What waits is to wait for more, at most until then. The driver is woken earlier if enough has come.
    Lingers(Instant),
    /// Nothing waits; the next entry wakes the driver.
    Nothing,
    /// Nothing waits and nothing more will come.
    Closed,
}

impl Pipeline {
    pub(super) fn new(bounds: Bounds, linger: Option<Linger>, haste: Haste, on_failure: FailureHook) -> Self {
        Self {
            state: Mutex::default(),
            room: Room::new(bounds),
            in_pool: false,
            linger,
            haste,
            on_failure,
            telling: Mutex::new(()),
            traffic: Traffic::default(),
        }
    }

    /// A pipeline that keeps nothing waiting while there is no connection: whatever waits is *not sent* at once, so that
    /// it can go elsewhere.
    pub(super) fn in_pool(bounds: Bounds, linger: Option<Linger>, haste: Haste) -> Self {
        let mut pipeline = Self::new(bounds, linger, haste, FailureHook::default());
        pipeline.in_pool = true;
        pipeline.lock().turns_away = true;
        pipeline
    }

    /// Taken without the lock, so it is a moment old.
    pub(super) fn load(&self) -> Load {
        self.room.load()
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
        span: Span,
    ) -> impl Future<Output = Result<()>> + Send + '_ {
        self.submit_as(Manner::default(), topic, payload, span)
    }

    /// As [`submit`](Self::submit), in another manner than the usual.
    pub(super) fn submit_as(
        &self,
        manner: Manner,
        topic: Option<Topic>,
        payload: Payload,
        span: Span,
    ) -> impl Future<Output = Result<()>> + Send + '_ {
        let cost = self.room.cost_of(&payload);
        let queued = if self.room.try_take(cost) {
            Ok(self.queue_awaited(manner, topic, payload, span, cost))
        } else {
            Err(Box::pin(async move {
                let _in_line = self.reserve(manner, &payload, cost, span.deadline).await?;
                self.queue_awaited(manner, topic, payload, span, cost)
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

    /// Queues a message that nobody waits for, if there is room, or gives it back.
    pub(super) fn try_detach(&self, message: Detached, span: Span) -> Result<Result<()>, Detached> {
        let payload = Payload::One(message.body);
        let cost = self.room.cost_of(&payload);
        if self.room.try_take(cost) {
            let owner = Owner::Nobody(message.tally);
            let entry = Accepted::new(Some(message.topic), payload, span, owner);
            let queued = self.queue_reserved(entry, cost);
            return Ok(queued.map(|_slot| ()));
        }
        let Payload::One(body) = payload else {
            unreachable!("made above")
        };
        Err(Detached { body, ..message })
    }

    /// Queues a message that nobody waits for as soon as there is room.
    pub(super) async fn detach(&self, message: Detached, span: Span) -> Result<()> {
        let payload = Payload::One(message.body);
        let cost = self.room.cost_of(&payload);
        let _in_line = self.reserve(Manner::default(), &payload, cost, span.deadline).await?;
        let owner = Owner::Nobody(message.tally);
        self.queue_reserved(Accepted::new(Some(message.topic), payload, span, owner), cost)?;
        Ok(())
    }

    /// Waits for room. What is returned is to be kept until the publish is in the queue.
    async fn reserve(&self, manner: Manner, payload: &Payload, cost: Cost, deadline: Instant) -> Result<InLine<'_>> {
        let mut in_line = self.room.stand_in_line(manner.may_have_arrived);
        // A batch that lingers makes room by leaving.
        self.hurry();
        if in_line.take(cost, deadline).await {
            return Ok(in_line);
        }
        let mut state = self.lock();
        let error = match &state.closed {
            Some(closed) => closed.clone(),
            None => state.not_sent(payload.step(), "the deadline passed while the pipeline was full"),
        };
        let outcome = Err(error);
        state.counts.count(&outcome, payload.messages() as u32);
        drop(state);
        outcome.map(|()| in_line)
    }

    /// Queues a publish whose cost is reserved, for a caller.
    fn queue_awaited(
        &self,
        manner: Manner,
        topic: Option<Topic>,
        payload: Payload,
        span: Span,
        cost: Cost,
    ) -> Result<Pending<'_>> {
        let mut publish = Accepted::new(topic, payload, span, Owner::Caller(None));
        publish.manner = manner;
        let slot = self.queue_reserved(publish, cost)?;
        Ok(Pending {
            pipeline: self,
            slot: Some(slot),
        })
    }

    /// Queues a publish whose cost is reserved.
    fn queue_reserved(&self, publish: Accepted, cost: Cost) -> Result<usize> {
        let accepted = self.queue(publish);
        if accepted.is_err() {
            self.room.give_back(cost);
        }
        accepted
    }

    fn queue(&self, publish: Accepted) -> Result<usize> {
        let Accepted {
            manner,
            topic,
            payload,
            span,
            owner,
        } = publish;
        let mut guard = self.lock();
        let state = &mut *guard;
        let messages = payload.messages() as u32;
        let refusal = match &state.closed {
            Some(closed) => Err(closed.clone()),
            None if state.turns_away => Err(state.not_sent(payload.step(), "there is no connection to it")),
            None => state.limits.check(&payload),
        };
        if refusal.is_err() {
            state.counts.count(&refusal, messages);
            refusal?;
        }
        if self.linger.is_some() {
            self.join_batch(state, &payload, span);
            state.urgent |= manner.urgent;
        }
        let seq = state.next_seq;
        state.next_seq += 1;
        let slot = state.slots.insert(Slot {
            seq,
            step: payload.step(),
            messages,
            generation: state.generations.enter(),
            begun: span.begun,
            deadline: span.deadline,
            outcome: None,
            owner,
            referred: true,
            resolved: false,
            stays: manner.stays,
            may_have_arrived: manner.may_have_arrived,
        });
        state.waiting_bytes += payload.size();
        state.queue.push_back(Entry {
            seq,
            slot,
            group: 0,
            alone: manner.alone,
            topic,
            payload,
        });
        let keeper = state.look_at(span.deadline);
        let driver = self.driver_to_wake(state, span.begun);
        drop(guard);
        keeper.into_iter().chain(driver).for_each(Waker::wake);
        Ok(slot)
    }

    /// What a batch that lingers has to know of a publish that joins it.
    fn join_batch(&self, state: &mut State, payload: &Payload, span: Span) {
        if state.live() == 0 {
            state.waiting_since = Some(span.begun);
        }
        let delay = self.linger.map_or(Duration::ZERO, |linger| linger.delay);
        // What cannot be joined gains nothing by waiting, and what has no time for it must not.
        state.urgent |= !matches!(payload, Payload::One(_)) || span.deadline <= span.begun + delay;
    }

    /// The waker of a driver that has something to do now.
    fn driver_to_wake(&self, state: &mut State, now: Instant) -> Option<Waker> {
        if let Some(linger) = self.linger.filter(|_| state.lingers) {
            if !linger.is_enough(&self.waiting(state, now)) {
                return None;
            }
        }
        state.driver.take()
    }

    /// What waits, which is something.
    fn waiting(&self, state: &State, now: Instant) -> Waiting {
        let mut waiting = state.waiting(now);
        waiting.urgent |= self.room.is_awaited() || self.haste.is_due();
        waiting
    }

    /// Moves waiting entries to `entries`, which is empty: as many as one turn may carry. With fewer than `expected` of
    /// them, nothing is moved.
    pub(super) fn take(&self, expected: usize, entries: &mut Vec<Entry>, cx: &Context<'_>) -> Taken {
        let mut guard = self.lock();
        let state = &mut *guard;
        let live = state.live();
        if live == 0 {
            if state.closed.is_some() && state.taken == 0 {
                return Taken::Closed;
            }
            // All that lingered may have been taken back: the next batch is a new one, and has to wake the driver.
            state.lingers = false;
            state.urgent = false;
            state.driver = Some(cx.waker().clone());
            return Taken::Nothing;
        }
        if let Some(linger) = &self.linger {
            let now = Instant::now();
            if let Departure::At(at) = linger.departure(&self.waiting(state, now), now) {
                state.lingers = true;
                state.driver = Some(cx.waker().clone());
                return Taken::Lingers(at);
            }
        } else if live < expected {
            return Taken::FewerThanExpected;
        }
        state.take(entries);
        Taken::Entries
    }

    /// Resolves the entries of one command alike. Returns how many entries wait now.
    pub(super) fn resolve(&self, entries: &mut [Entry], outcome: &Result<()>, wakers: &mut Vec<Waker>) -> usize {
        let mut cost = Cost::default();
        // One reading for all of them.
        let now = Instant::now();
        let mut state = self.lock();
        state.taken -= entries.len();
        for entry in entries {
            cost.add(state.settle_in_place(entry, || outcome.clone(), now, &self.room, wakers));
        }
        let waiting = state.live();
        drop(state);
        self.room.give_back(cost);
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
        let mut wakers = Vec::new();
        let now = Instant::now();
        let mut guard = self.lock();
        let state = &mut *guard;
        state.taken -= entries.len();
        if let Some(first) = entries.first() {
            state.first_waiting = first.seq;
        }
        for entry in entries.into_iter().rev() {
            let slot = &state.slots[entry.slot];
            let (step, deadline, resolved) = (slot.step, slot.deadline, slot.resolved);
            match slot.owner {
                Owner::Caller(_) if !resolved => {}
                Owner::Nobody(_) if deadline > now => wakers.extend(state.look_at(deadline)),
                Owner::Left if !resolved => {
                    state.withdraw(entry.slot, &mut wakers);
                    cost.add(state.settle(entry, || Ok(()), now, &self.room, &mut wakers));
                    continue;
                }
                // Its deadline has passed.
                _ => {
                    let error = state.not_sent(step, "the deadline passed before it could be sent again");
                    cost.add(state.settle(entry, || Err(error), now, &self.room, &mut wakers));
                    continue;
                }
            }
            state.waiting_bytes += entry.payload.size();
            // It has waited long enough.
            state.urgent = true;
            state.queue.push_front(entry);
        }
        drop(guard);
        self.room.give_back(cost);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// nsqd has refused something with these words. Returns what is known of its limits if they tell of one.
    pub(super) fn learn(&self, text: &str) -> Option<Learnt> {
        let mut state = self.lock();
        state.limits.learn(text).then_some(state.limits)
    }

    /// What nsqd has told of its limits.
    pub(super) fn learnt(&self) -> Learnt {
        self.lock().limits
    }

    /// nsqd may be another one now, with other limits.
    pub(super) fn forget_limits(&self) {
        self.lock().limits = Learnt::NOTHING;
    }

    /// Resolves what waits although nsqd is known to refuse it: each would cost a connection.
    pub(super) fn refuse_oversized(&self) {
        let mut wakers = Vec::new();
        let mut cost = Cost::default();
        let now = Instant::now();
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.limits == Learnt::NOTHING {
            return;
        }
        for index in 0..state.queue.len() {
            let Err(error) = state.limits.check(&state.queue[index].payload) else {
                continue;
            };
            let entry = state.queue[index].leave_gone();
            state.gone += 1;
            state.waiting_bytes -= entry.payload.size();
            cost.add(state.settle(entry, || Err(error), now, &self.room, &mut wakers));
        }
        wakers.extend(state.take_ender());
        drop(guard);
        self.room.give_back(cost);
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(super) fn stats(&self) -> PipelineStats {
        let (pending_messages, pending_bytes) = self.room.taken();
        let state = self.lock();
        PipelineStats {
            pending_messages,
            pending_bytes,
            counts: state.counts,
            latency: state.latency.clone(),
        }
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

    /// The publishes that wait for room. A pool has accepted them, but no queue has.
    pub(super) fn in_line(&self) -> Leftover {
        self.room.in_line()
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
        assert_eq!(state.waiting_bytes, 0);
        assert_eq!((state.failed.len(), state.generations.waiting.len()), (0, 0));
        assert!(!state.generations.is_divided() && !self.room.is_awaited());
        assert_eq!(self.room.taken(), (0, 0));
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
        if let Owner::Caller(waker) = &mut waiting.owner {
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                let replaced = waker.replace(cx.waker().clone());
                drop(state);
                drop(replaced);
            }
        }
        Poll::Pending
    }

    /// The caller of a slot is gone.
    fn abandon(&self, slot: usize) {
        let mut wakers = Vec::new();
        let mut cost = Cost::default();
        let mut guard = self.lock();
        let state = &mut *guard;
        let left = &state.slots[slot];
        let mut withdrawn = None;
        if !left.resolved && left.seq >= state.first_waiting && !left.stays {
            withdrawn = state.remove_waiting(slot);
            if let Some(entry) = &withdrawn {
                cost.add(self.room.cost_of(&entry.payload));
            }
            state.withdraw(slot, &mut wakers);
        }
        let unused = state.let_go(slot);
        wakers.extend(state.take_ender());
        drop(guard);
        drop((unused, withdrawn));
        self.room.give_back(cost);
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// A publish whose cost is reserved.
struct Accepted {
    manner: Manner,
    topic: Option<Topic>,
    payload: Payload,
    span: Span,
    owner: Owner,
}

impl Accepted {
    fn new(topic: Option<Topic>, payload: Payload, span: Span, owner: Owner) -> Self {
        Self {
            manner: Manner::default(),
            topic,
            payload,
            span,
            owner,
        }
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
