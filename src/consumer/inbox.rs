//! Where connections put messages and workers take them: one inbox per consumer.
//!
//! What costs in handing messages over is waking tasks across threads, not queues or copies. So the driver appends all
//! messages of a read under one lock and wakes *one* worker; that worker takes a group, and only a handler that waits
//! or proves slow makes it give the rest back and wake another. Handlers that return at once are thus run by one
//! worker without any further wake-up, and handlers that wait are run by as many workers as there are.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::link::Link;
use crate::protocol;

/// The most that one worker takes at once. One lock per 64 messages is below what can be measured.
const LARGEST_TAKE: usize = 64;

/// Up to this limit, a worker that leaves messages behind wakes the next one at once: messages are slow, so running
/// them side by side pays for the wake-up.
const EAGER_TAKE: usize = 4;

/// A message and the connection that delivered it.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) message: protocol::Message,
    pub(super) link: Arc<Link>,
}

/// Messages that are delivered and not begun.
#[derive(Debug)]
pub(super) struct Inbox {
    state: Mutex<State>,
    groups: Vec<Group>,
}

#[derive(Debug)]
struct State {
    messages: VecDeque<Delivery>,
    /// The workers that wait for messages, the last to come first to go: it is the likeliest to be warm.
    idle: Vec<(usize, Waker)>,
    /// How many messages a worker takes; adapts to how handlers behave.
    limit: usize,
    /// Whether somebody looks after groups whose worker is stuck.
    watched: bool,
    closed: bool,
}

/// What one worker has taken and not begun. It is kept where it can be taken back from a worker whose handler blocks
/// its thread.
#[derive(Debug, Default)]
struct Group {
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    messages: VecDeque<Delivery>,
    /// Whether the worker has taken a message since the last look.
    moved: bool,
}

/// How a group went, for the size of the next ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// Every handler returned at once.
    Quick,
    /// A handler had to wait for something.
    Waited,
    /// A handler kept its thread busy.
    Busy,
}

/// What [`Inbox::poll_take`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Take {
    /// Messages are in the worker's group. Somebody has to be told to watch over it if `unwatched`.
    Messages { unwatched: bool },
    /// There will be none any more.
    Closed,
}

impl Inbox {
    pub(super) fn new(workers: usize) -> Self {
        Self {
            state: Mutex::new(State {
                messages: VecDeque::new(),
                idle: Vec::new(),
                limit: 1,
                watched: false,
                closed: false,
            }),
            groups: (0..workers).map(|_| Group::default()).collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends messages and wakes one worker. Leaves them where they are if the inbox is closed.
    pub(super) fn append(&self, messages: &mut Vec<Delivery>) {
        let mut state = self.lock();
        if state.closed || messages.is_empty() {
            return;
        }
        state.messages.extend(messages.drain(..));
        let worker = state.idle.pop();
        drop(state);
        wake(worker);
    }

    /// Fills the group of `worker` or arranges for it to be woken.
    pub(super) fn poll_take(&self, worker: usize, cx: &Context<'_>) -> Poll<Take> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.messages.is_empty() {
            if state.closed {
                return Poll::Ready(Take::Closed);
            }
            match state.idle.iter_mut().find(|(idle, _)| *idle == worker) {
                Some((_, waker)) => waker.clone_from(cx.waker()),
                None => state.idle.push((worker, cx.waker().clone())),
            }
            return Poll::Pending;
        }
        // A worker that came by itself may still be listed.
        state.idle.retain(|(idle, _)| *idle != worker);
        let count = state.limit.min(state.messages.len());
        let mut group = self.groups[worker].lock();
        group.messages.extend(state.messages.drain(..count));
        group.moved = true;
        drop(group);
        let unwatched = count > 1 && !state.watched;
        state.watched |= unwatched;
        let next = if state.limit <= EAGER_TAKE && !state.messages.is_empty() {
            state.idle.pop()
        } else {
            None
        };
        drop(guard);
        wake(next);
        Poll::Ready(Take::Messages { unwatched })
    }

    /// The next message of a worker's group.
    pub(super) fn next(&self, worker: usize) -> Option<Delivery> {
        let mut group = self.groups[worker].lock();
        group.moved = true;
        group.messages.pop_front()
    }

    /// Gives the rest of a worker's group back to the front of the inbox and wakes another worker for it.
    pub(super) fn give_back(&self, worker: usize) {
        let mut state = self.lock();
        let returned = self.groups[worker].lock().give_back_to(&mut state);
        let next = if returned { state.idle.pop() } else { None };
        drop(state);
        wake(next);
    }

    /// A worker is through with its group.
    pub(super) fn adapt(&self, pace: Pace) {
        let mut state = self.lock();
        state.limit = match pace {
            Pace::Quick => (state.limit * 2).min(LARGEST_TAKE),
            Pace::Waited => (state.limit / 2).max(1),
            Pace::Busy => 1,
        };
    }

    /// Takes back the groups of workers that have not moved since the last call: their handlers block their threads,
    /// and another worker can run what they hold. Returns whether any worker holds anything, that is, whether to call
    /// again.
    pub(super) fn take_back_stuck(&self) -> bool {
        let mut state = self.lock();
        let mut holding = false;
        let mut returned = false;
        for group in &self.groups {
            let mut group = group.lock();
            if group.messages.is_empty() {
                continue;
            }
            holding = true;
            if !std::mem::take(&mut group.moved) {
                returned |= group.give_back_to(&mut state);
            }
        }
        state.watched = holding;
        let next = if returned { state.idle.pop() } else { None };
        drop(state);
        wake(next);
        holding
    }

    /// Lets nothing more in and returns all that no handler has begun. Workers end once they have nothing.
    pub(super) fn close(&self) -> Vec<Delivery> {
        let mut state = self.lock();
        state.closed = true;
        let mut unstarted: Vec<_> = state.messages.drain(..).collect();
        for group in &self.groups {
            unstarted.extend(group.lock().messages.drain(..));
        }
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        idle.into_iter().for_each(|(_, waker)| waker.wake());
        unstarted
    }

    /// Forgets what a connection delivered and no handler has begun: the connection is gone, and nsqd delivers these
    /// messages again. Kept, they would pile up behind stuck handlers with each reconnection.
    pub(super) fn forget(&self, link: &Arc<Link>) {
        let of_another = |delivery: &Delivery| !Arc::ptr_eq(&delivery.link, link);
        let mut state = self.lock();
        state.messages.retain(of_another);
        for group in &self.groups {
            group.lock().messages.retain(of_another);
        }
    }

    /// Gives back what a burst has made the queues grow to.
    pub(super) fn shrink(&self) {
        let mut state = self.lock();
        if state.messages.is_empty() {
            state.messages = VecDeque::new();
        }
    }
}

impl Group {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn give_back_to(&mut self, state: &mut State) -> bool {
        let any = !self.messages.is_empty();
        while let Some(delivery) = self.messages.pop_back() {
            state.messages.push_front(delivery);
        }
        any
    }
}

fn wake(worker: Option<(usize, Waker)>) {
    if let Some((_, waker)) = worker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use bytes::Bytes;

    use super::super::flow::ConnectionId;
    use super::super::mailbox::Mailbox;
    use super::*;
    use crate::protocol::MessageId;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn deliveries(count: u8) -> Vec<Delivery> {
        let link = Arc::new(Link::new(
            ConnectionId(1),
            Arc::from("nsqd:4150"),
            2500,
            Arc::new(Mailbox::default()),
        ));
        (0..count)
            .map(|number| Delivery {
                message: protocol::Message {
                    timestamp: 0,
                    attempts: 1,
                    id: MessageId::new([number; 16]),
                    body: Bytes::new(),
                },
                link: Arc::clone(&link),
            })
            .collect()
    }

    fn number(delivery: &Delivery) -> u8 {
        delivery.message.id.as_bytes()[0]
    }

    #[test]
    fn one_worker_is_woken_per_append_and_order_is_kept_when_it_gives_back() {
        let inbox = Inbox::new(2);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let cx = Context::from_waker(&waker);
        for worker in [0, 1, 1] {
            assert!(inbox.poll_take(worker, &cx).is_pending());
        }
        inbox.append(&mut deliveries(5));
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);

        for _ in 0..3 {
            inbox.adapt(Pace::Quick);
        }
        assert!(inbox.poll_take(1, &cx).is_ready());
        assert_eq!(number(&inbox.next(1).unwrap()), 0);
        inbox.give_back(1);
        assert_eq!(woken.0.load(Ordering::SeqCst), 2);
        assert!(inbox.next(1).is_none());
        assert!(inbox.poll_take(0, &cx).is_ready());
        let rest: Vec<_> = std::iter::from_fn(|| inbox.next(0))
            .map(|delivery| number(&delivery))
            .collect();
        assert_eq!(rest, [1, 2, 3, 4]);
    }

    #[test]
    fn c1_what_a_stuck_worker_holds_is_taken_back_and_what_a_moving_one_holds_is_not() {
        let inbox = Inbox::new(2);
        let cx = Context::from_waker(Waker::noop());
        (0..6).for_each(|_| inbox.adapt(Pace::Quick));
        inbox.append(&mut deliveries(10));
        assert_eq!(inbox.poll_take(0, &cx), Poll::Ready(Take::Messages { unwatched: true }));
        inbox.next(0);
        assert!(inbox.take_back_stuck(), "the worker has moved");
        inbox.next(0);
        assert!(inbox.take_back_stuck(), "and has moved again");
        assert!(inbox.take_back_stuck(), "now it has not: its messages go back");
        assert!(inbox.next(0).is_none());
        assert!(!inbox.take_back_stuck(), "nobody holds anything");
        assert!(inbox.poll_take(1, &cx).is_ready());
        assert_eq!(number(&inbox.next(1).unwrap()), 2);
    }

    #[test]
    fn what_a_lost_connection_delivered_is_forgotten() {
        let inbox = Inbox::new(1);
        let cx = Context::from_waker(Waker::noop());
        let (mut lost, mut kept) = (deliveries(2), deliveries(3));
        let link = Arc::clone(&lost[0].link);
        inbox.append(&mut lost);
        inbox.append(&mut kept);
        inbox.adapt(Pace::Quick);
        assert!(inbox.poll_take(0, &cx).is_ready());
        inbox.forget(&link);
        assert!(inbox.next(0).is_none());
        assert_eq!(inbox.close().len(), 3);
    }

    #[test]
    fn c7_close_returns_all_that_is_not_begun() {
        let inbox = Inbox::new(1);
        let cx = Context::from_waker(Waker::noop());
        inbox.adapt(Pace::Quick);
        inbox.append(&mut deliveries(5));
        assert!(inbox.poll_take(0, &cx).is_ready());
        inbox.next(0);
        let mut unstarted: Vec<_> = inbox.close().iter().map(number).collect();
        unstarted.sort_unstable();
        assert_eq!(unstarted, [1, 2, 3, 4]);
        assert_eq!(inbox.poll_take(0, &cx), Poll::Ready(Take::Closed));
        let mut late = deliveries(1);
        inbox.append(&mut late);
        assert_eq!(late.len(), 1);
    }
}
