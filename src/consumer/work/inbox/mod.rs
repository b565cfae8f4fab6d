//! Where connections put messages and workers take them: one inbox per consumer.
//!
//! What costs in handing messages over is waking tasks across threads, not queues or copies. So the driver appends all
//! messages of a read under one lock and wakes *one* worker; that worker takes a group, and only a handler that waits
//! or proves slow makes it give the rest back and wake another. Handlers that return at once are thus run by one
//! worker without any further wake-up, and handlers that wait are run by as many workers as there are.
//!
//! A worker that is at work on quick messages comes back for what arrives meanwhile. No other is woken for that, unless
//! it falls behind: two workers on two threads would only fight over the same cache lines.

mod group;
mod run;
mod spares;
mod state;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::time::Instant;

use self::group::Group;
use self::run::Run;
use self::state::{SMALL, State};
use crate::consumer::flow::ConnectionId;
use crate::consumer::link::{Command, Link};
use crate::protocol::{self, MessageId};

/// A message and the connection that delivered it.
#[derive(Clone, Debug)]
pub(in crate::consumer) struct Delivery {
    pub(in crate::consumer) message: protocol::Message,
    pub(in crate::consumer) link: Arc<Link>,
    /// When it was read.
    pub(in crate::consumer) delivered_at: Instant,
}

/// Messages that are delivered and not begun.
#[derive(Debug)]
pub(in crate::consumer) struct Inbox {
    state: Mutex<State>,
    groups: Vec<Group>,
    /// Whether somebody looks after workers that are stuck.
    watched: AtomicBool,
}

/// How a group went, for the size of the next ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::consumer) enum Pace {
    /// Every handler returned at once.
    Quick,
    /// A handler had to wait for something.
    Waited,
    /// A handler kept its thread busy.
    Busy,
}

/// What [`Inbox::poll_take`] found.
#[derive(Debug)]
pub(in crate::consumer) enum Take {
    /// Messages are in the worker's group, all of one read. Somebody has to be told to watch over it if `unwatched`. Another
    /// worker was woken if `woken`.
    Messages {
        link: Arc<Link>,
        delivered_at: Instant,
        unwatched: bool,
        woken: bool,
    },
    /// There will be none any more.
    Closed,
}

/// What [`Inbox::relieve_stuck`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::consumer) enum Look {
    /// Workers are at work, some of them newly found to be `stuck`: look again.
    Again { stuck: bool },
    /// There is nothing to look after, or somebody else has begun to.
    Done,
}

/// What [`Inbox::next`] found.
#[derive(Debug)]
pub(in crate::consumer) enum Next {
    Message(protocol::Message),
    /// Answers were handed over and have woken a driver. Ask again once it had the chance to run.
    Woken,
    /// The worker's group is empty.
    Nothing,
}

impl Inbox {
    pub(in crate::consumer) fn new(workers: usize) -> Self {
        Self {
            state: Mutex::new(State::new(workers)),
            groups: (0..workers).map(|_| Group::default()).collect(),
            watched: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends what a connection has delivered, and wakes one worker unless another is soon to come back for it. Leaves the
    /// messages where they are if the inbox is closed.
    pub(in crate::consumer) fn append(
        &self,
        link: &Arc<Link>,
        delivered_at: Instant,
        messages: &mut VecDeque<protocol::Message>,
    ) {
        let mut state = self.lock();
        if state.closed || messages.is_empty() {
            return;
        }
        // Whoever was to come for what came before has not kept up.
        let behind = !state.runs.is_empty();
        let spare = state.spares.pop();
        state.runs.push_back(Run {
            link: Arc::clone(link),
            delivered_at,
            // As large as the last, or it would grow there step by step.
            messages: std::mem::replace(
                messages,
                spare.unwrap_or_else(|| VecDeque::with_capacity(messages.len())),
            ),
        });
        let worker = if behind || state.eager || state.returning == 0 {
            state.pop_idle()
        } else {
            None
        };
        drop(state);
        wake(worker);
    }

    /// Fills the group of `worker`, or hands its answers over and arranges for it to be woken.
    pub(in crate::consumer) fn poll_take(&self, worker: usize, cx: &Context<'_>) -> Poll<Take> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut group = self.groups[worker].lock();
        let some = state.take_run(&mut group.run);
        group.set_returning(state, some);
        let Some((link, delivered_at)) = group.run.as_ref().filter(|_| some).map(Run::origin) else {
            group.answers.hand_over();
            state.keep_answers(group.answers.take_large_room(SMALL));
            if state.closed {
                return Poll::Ready(Take::Closed);
            }
            state.list(worker, cx.waker());
            return Poll::Pending;
        };
        state.unlist(worker);
        group.answers.put_room(|| state.spare_answers.pop());
        group.moved = true;
        drop(group);
        state.moved = true;
        let left_behind = !state.runs.is_empty();
        let next = if state.eager && left_behind {
            state.pop_idle()
        } else {
            None
        };
        drop(guard);
        Poll::Ready(Take::Messages {
            link,
            delivered_at,
            unwatched: self.claim_watch(),
            woken: wake(next),
        })
    }

    /// Keeps an answer to a message of this connection, and takes the next message of a worker's group.
    #[inline]
    pub(in crate::consumer) fn next(&self, worker: usize, link: &Arc<Link>, answer: Option<Command>) -> Next {
        let mut guard = self.groups[worker].lock();
        let group = &mut *guard;
        group.moved = true;
        group.handling = None;
        group.polled = false;
        if let Some(answer) = answer {
            if group.answers.push(link, answer) {
                return Next::Woken;
            }
        }
        let Some(run) = &mut group.run else {
            return Next::Nothing;
        };
        let Some(message) = run.messages.pop_front() else {
            return Next::Nothing;
        };
        group.handling = Some((run.link.id, message.id));
        group.polled = true;
        Next::Message(message)
    }

    /// Takes the next message of a worker's group, for somebody who has no handler that is to be watched.
    pub(in crate::consumer) fn pop(&self, worker: usize) -> Option<Delivery> {
        let mut group = self.groups[worker].lock();
        let run = group.run.as_mut()?;
        Some(Delivery {
            message: run.messages.pop_front()?,
            link: Arc::clone(&run.link),
            delivered_at: run.delivered_at,
        })
    }

    /// The handler of `worker` has to wait, or takes long: its answers leave, the rest of its group goes back to the
    /// front of the inbox, and another worker is woken for what is there.
    pub(in crate::consumer) fn give_back(&self, worker: usize) {
        let mut state = self.lock();
        let mut group = self.groups[worker].lock();
        group.polled = false;
        group.answers.hand_over();
        group.give_back_to(&mut state);
        group.set_returning(&mut state, false);
        drop(group);
        // Also if the group was empty: this worker may have left messages behind when it took it.
        let next = if state.runs.is_empty() { None } else { state.pop_idle() };
        drop(state);
        wake(next);
    }

    /// How many answers a worker holds.
    pub(in crate::consumer) fn held(&self, worker: usize) -> usize {
        self.groups[worker].lock().answers.len()
    }

    /// Hands over the answers of a worker. Returns whether a driver was asleep and has been woken.
    pub(in crate::consumer) fn hand_over(&self, worker: usize) -> bool {
        self.groups[worker].lock().answers.hand_over()
    }

    /// A worker has ended, perhaps in the middle of a handler.
    pub(in crate::consumer) fn retire(&self, worker: usize) {
        self.groups[worker].lock().handling = None;
        // It may have been the one to come for what waits.
        self.give_back(worker);
    }

    /// The messages that workers are handling.
    pub(in crate::consumer) fn handling(&self) -> Vec<(ConnectionId, MessageId)> {
        let mut handling = Vec::new();
        for group in &self.groups {
            let group = group.lock();
            handling.extend(group.handling);
            handling.extend_from_slice(&group.batch);
        }
        handling
    }

    /// A worker that handles several messages at once is at work on these, and no others.
    pub(in crate::consumer) fn set_batch(&self, worker: usize, batch: Vec<(ConnectionId, MessageId)>) {
        self.groups[worker].lock().batch = batch;
    }

    /// A worker is through with its group.
    pub(in crate::consumer) fn adapt(&self, pace: Pace) {
        self.lock().adapt(pace);
    }

    /// The handler of `worker` is polled once more. Returns whether somebody has to be told to watch over it.
    pub(in crate::consumer) fn poll_begins(&self, worker: usize) -> bool {
        let mut group = self.groups[worker].lock();
        group.moved = true;
        group.polled = true;
        drop(group);
        self.claim_watch()
    }

    /// The handler of `worker` has returned from its poll.
    pub(in crate::consumer) fn poll_ends(&self, worker: usize) {
        self.groups[worker].lock().polled = false;
    }

    /// Whether there was no watch. The caller has to begin one.
    fn claim_watch(&self) -> bool {
        !self.watched.load(Ordering::SeqCst) && !self.watched.swap(true, Ordering::SeqCst)
    }

    /// Looks after workers that have not moved since the last call: their handlers block their threads. Another worker
    /// gets what they have taken, and the answers that they hold are handed over.
    pub(in crate::consumer) fn relieve_stuck(&self) -> Look {
        // Before the look, so that whoever comes after it begins a watch of its own.
        self.watched.store(false, Ordering::SeqCst);
        let mut guard = self.lock();
        let state = &mut *guard;
        let (mut again, mut stuck) = (false, false);
        for group in &self.groups {
            let mut group = group.lock();
            let at_work = group.polled || group.holds_any();
            if !(at_work || group.returning) {
                continue;
            }
            if std::mem::take(&mut group.moved) {
                group.stuck = false;
                again = true;
            } else if !at_work {
                // It has yielded and does not get its thread back, so nobody can count on it.
                group.set_returning(state, false);
            } else if !group.stuck || group.holds_any() {
                group.stuck = true;
                stuck = true;
                group.answers.hand_over();
                group.give_back_to(state);
                group.set_returning(state, false);
            }
        }
        if stuck {
            state.adapt(Pace::Busy);
        }
        let could_be_run = !state.runs.is_empty() && !state.idle.is_empty();
        // Messages that nobody took are behind workers that are stuck too.
        let unmoved = !std::mem::take(&mut state.moved);
        let next = if could_be_run && (stuck || unmoved) {
            state.pop_idle()
        } else {
            None
        };
        drop(guard);
        wake(next);
        if (again || stuck || could_be_run) && self.claim_watch() {
            Look::Again { stuck }
        } else {
            Look::Done
        }
    }

    /// Lets nothing more in, hands all answers over and returns all that no handler has begun. Workers end once they have
    /// nothing.
    pub(in crate::consumer) fn close(&self) -> Vec<Delivery> {
        let mut state = self.lock();
        state.closed = true;
        let mut unstarted: Vec<_> = state.runs.drain(..).flat_map(Run::into_deliveries).collect();
        for group in &self.groups {
            let mut group = group.lock();
            group.answers.hand_over();
            unstarted.extend(group.take_rest().into_iter().flat_map(Run::into_deliveries));
        }
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        idle.into_iter().for_each(|(_, waker)| waker.wake());
        unstarted
    }

    /// Forgets what a connection delivered and no handler has begun: the connection is gone, and nsqd delivers these
    /// messages again. Kept, they would pile up behind stuck handlers with each reconnection.
    pub(in crate::consumer) fn forget(&self, link: &Arc<Link>) {
        let mut state = self.lock();
        state.runs.retain(|run| !Arc::ptr_eq(&run.link, link));
        for group in &self.groups {
            let mut group = group.lock();
            if let Some(run) = group.run.as_mut().filter(|run| Arc::ptr_eq(&run.link, link)) {
                run.messages.clear();
            }
        }
    }

    /// Gives back what a burst has made the queues grow to.
    pub(in crate::consumer) fn shrink(&self) {
        let mut state = self.lock();
        state.shrink();
        for group in &self.groups {
            group.lock().shrink();
        }
    }
}

/// Returns whether there was a worker to wake.
fn wake(worker: Option<(usize, Waker)>) -> bool {
    worker.map(|(_, waker)| waker.wake()).is_some()
}
