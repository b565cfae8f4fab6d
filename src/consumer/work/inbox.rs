//! Where connections put messages and workers take them: one inbox per consumer.
//!
//! What costs in handing messages over is waking tasks across threads, not queues or copies. So the driver appends all
//! messages of a read under one lock and wakes *one* worker; that worker takes a group, and only a handler that waits
//! or proves slow makes it give the rest back and wake another. Handlers that return at once are thus run by one
//! worker without any further wake-up, and handlers that wait are run by as many workers as there are.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::time::Instant;

use super::answers::{Answer, Answers};
use crate::consumer::flow::ConnectionId;
use crate::consumer::link::Link;
use crate::protocol::{self, MessageId};

/// The most that one worker takes at once. One lock per 64 messages is below what can be measured.
const LARGEST_TAKE: usize = 64;

/// Workers that have grown back to more than this many messages at once have no use for company any more.
const EAGER_TAKE: usize = 4;

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

#[derive(Debug)]
struct State {
    messages: VecDeque<Delivery>,
    /// The workers that wait for messages, the last to come first to go: it is the likeliest to be warm.
    idle: Vec<(usize, Waker)>,
    /// How many messages a worker takes; adapts to how handlers behave.
    limit: usize,
    /// Handlers keep their threads busy: a worker that leaves messages behind wakes the next one before it begins.
    /// (Where handlers wait, the wait itself wakes the next one, for less.)
    eager: bool,
    /// Whether any worker has taken messages since the last look.
    moved: bool,
    closed: bool,
}

/// What one worker has taken and not begun, and the answers that it has not handed over. Both are kept where they can
/// be taken from a worker whose handler blocks its thread.
#[derive(Debug, Default)]
struct Group {
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    messages: VecDeque<Delivery>,
    answers: Answers,
    /// The message that the worker is handling.
    handling: Option<(ConnectionId, MessageId)>,
    /// Likewise, if it handles several at once.
    batch: Vec<(ConnectionId, MessageId)>,
    /// Whether the handler is being polled, so that it has the thread.
    polled: bool,
    /// Whether it was found not to have moved.
    stuck: bool,
    /// Whether the worker has taken a message, or polled its handler, since the last look.
    moved: bool,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::consumer) enum Take {
    /// Messages are in the worker's group. Somebody has to be told to watch over it if `unwatched`. Another worker was
    /// woken if `woken`.
    Messages { unwatched: bool, woken: bool },
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
    Message(Delivery),
    /// Answers were handed over and have woken a driver. Ask again once it had the chance to run.
    Woken,
    /// The worker's group is empty.
    Nothing,
}

impl Inbox {
    pub(in crate::consumer) fn new(workers: usize) -> Self {
        Self {
            state: Mutex::new(State {
                messages: VecDeque::new(),
                idle: Vec::new(),
                limit: 1,
                eager: false,
                moved: false,
                closed: false,
            }),
            groups: (0..workers).map(|_| Group::default()).collect(),
            watched: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends messages and wakes one worker. Leaves them where they are if the inbox is closed.
    pub(in crate::consumer) fn append(&self, messages: &mut Vec<Delivery>) {
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
    pub(in crate::consumer) fn poll_take(&self, worker: usize, cx: &Context<'_>) -> Poll<Take> {
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
        state.moved = true;
        let left_behind = !state.messages.is_empty();
        let next = if state.eager && left_behind {
            state.idle.pop()
        } else {
            None
        };
        drop(guard);
        Poll::Ready(Take::Messages {
            unwatched: self.claim_watch(),
            woken: wake(next),
        })
    }

    /// Keeps the answer to the message before, and takes the next message of a worker's group.
    pub(in crate::consumer) fn next(&self, worker: usize, answer: Option<Answer>) -> Next {
        let mut group = self.groups[worker].lock();
        group.moved = true;
        group.handling = None;
        group.polled = false;
        if let Some(answer) = answer {
            if group.answers.push(answer) {
                return Next::Woken;
            }
        }
        let Some(delivery) = group.messages.pop_front() else {
            return Next::Nothing;
        };
        group.handling = Some((delivery.link.id, delivery.message.id));
        group.polled = true;
        Next::Message(delivery)
    }

    /// Takes the next message of a worker's group, for somebody who has no handler that is to be watched.
    pub(in crate::consumer) fn pop(&self, worker: usize) -> Option<Delivery> {
        self.groups[worker].lock().messages.pop_front()
    }

    /// The handler of `worker` has to wait, or takes long: its answers leave, the rest of its group goes back to the
    /// front of the inbox, and another worker is woken for what is there.
    pub(in crate::consumer) fn give_back(&self, worker: usize) {
        let mut state = self.lock();
        let mut group = self.groups[worker].lock();
        group.polled = false;
        group.answers.hand_over();
        group.give_back_to(&mut state);
        drop(group);
        // Also if the group was empty: this worker may have left messages behind when it took it.
        let next = if state.messages.is_empty() {
            None
        } else {
            state.idle.pop()
        };
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
        let mut group = self.groups[worker].lock();
        group.handling = None;
        group.polled = false;
        group.answers.hand_over();
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
        let mut state = self.lock();
        state.limit = match pace {
            Pace::Quick => (state.limit * 2).min(LARGEST_TAKE),
            Pace::Waited => (state.limit / 2).max(1),
            Pace::Busy => 1,
        };
        state.eager = match pace {
            Pace::Quick => state.eager && state.limit <= EAGER_TAKE,
            Pace::Waited => false,
            Pace::Busy => true,
        };
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
            if !(group.polled || group.holds_any()) {
                continue;
            }
            if std::mem::take(&mut group.moved) {
                group.stuck = false;
                again = true;
            } else if !group.stuck || group.holds_any() {
                group.stuck = true;
                stuck = true;
                group.answers.hand_over();
                group.give_back_to(state);
            }
        }
        if stuck {
            state.limit = 1;
            state.eager = true;
        }
        let could_be_run = !state.messages.is_empty() && !state.idle.is_empty();
        // Messages that nobody took are behind workers that are stuck too.
        let unmoved = !std::mem::take(&mut state.moved);
        let next = if could_be_run && (stuck || unmoved) {
            state.idle.pop()
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
        let mut unstarted: Vec<_> = state.messages.drain(..).collect();
        for group in &self.groups {
            let mut group = group.lock();
            group.answers.hand_over();
            unstarted.extend(group.messages.drain(..));
        }
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        idle.into_iter().for_each(|(_, waker)| waker.wake());
        unstarted
    }

    /// Forgets what a connection delivered and no handler has begun: the connection is gone, and nsqd delivers these
    /// messages again. Kept, they would pile up behind stuck handlers with each reconnection.
    pub(in crate::consumer) fn forget(&self, link: &Arc<Link>) {
        let of_another = |delivery: &Delivery| !Arc::ptr_eq(&delivery.link, link);
        let mut state = self.lock();
        state.messages.retain(of_another);
        for group in &self.groups {
            group.lock().messages.retain(of_another);
        }
    }

    /// Gives back what a burst has made the queues grow to.
    pub(in crate::consumer) fn shrink(&self) {
        let mut state = self.lock();
        if state.messages.is_empty() {
            state.messages = VecDeque::new();
        }
        for group in &self.groups {
            group.lock().shrink();
        }
    }
}

impl Group {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn shrink(&mut self) {
        if self.messages.is_empty() {
            self.messages = VecDeque::new();
        }
        self.answers.shrink();
    }

    fn holds_any(&self) -> bool {
        !(self.messages.is_empty() && self.answers.is_empty())
    }

    fn give_back_to(&mut self, state: &mut State) {
        while let Some(delivery) = self.messages.pop_back() {
            state.messages.push_front(delivery);
        }
    }
}

/// Returns whether there was a worker to wake.
fn wake(worker: Option<(usize, Waker)>) -> bool {
    worker.map(|(_, waker)| waker.wake()).is_some()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use bytes::Bytes;

    use super::*;
    use crate::consumer::answer::desk::Desk;
    use crate::consumer::link::Command;

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
            Arc::default(),
            Arc::new(Desk::default()),
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
                delivered_at: Instant::now(),
            })
            .collect()
    }

    fn number(delivery: &Delivery) -> u8 {
        delivery.message.id.as_bytes()[0]
    }

    fn next(inbox: &Inbox, worker: usize) -> Option<u8> {
        match inbox.next(worker, None) {
            Next::Message(delivery) => Some(number(&delivery)),
            Next::Woken | Next::Nothing => None,
        }
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
        assert_eq!(next(&inbox, 1), Some(0));
        inbox.give_back(1);
        assert_eq!(woken.0.load(Ordering::SeqCst), 2);
        assert_eq!(next(&inbox, 1), None);
        assert!(inbox.poll_take(0, &cx).is_ready());
        let rest: Vec<_> = std::iter::from_fn(|| next(&inbox, 0)).collect();
        assert_eq!(rest, [1, 2, 3, 4]);
    }

    #[test]
    fn c1_a_worker_that_waits_on_the_last_of_its_group_leaves_the_rest_to_another() {
        let inbox = Inbox::new(2);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let cx = Context::from_waker(&waker);
        assert!(inbox.poll_take(1, &cx).is_pending());
        assert!(inbox.poll_take(0, &cx).is_pending());
        inbox.append(&mut deliveries(2));
        assert!(inbox.poll_take(0, &cx).is_ready());
        assert_eq!(next(&inbox, 0), Some(0));
        inbox.give_back(0);
        assert_eq!(
            woken.0.load(Ordering::SeqCst),
            2,
            "the append wakes one, the wait the other"
        );
    }

    #[test]
    fn c1_what_a_stuck_worker_holds_is_taken_back_and_what_a_moving_one_holds_is_not() {
        let inbox = Inbox::new(2);
        let cx = Context::from_waker(Waker::noop());
        (0..6).for_each(|_| inbox.adapt(Pace::Quick));
        inbox.append(&mut deliveries(10));
        let watched = Take::Messages {
            unwatched: true,
            woken: false,
        };
        assert_eq!(inbox.poll_take(0, &cx), Poll::Ready(watched));
        let (moved, stuck) = (Look::Again { stuck: false }, Look::Again { stuck: true });
        next(&inbox, 0);
        assert_eq!(inbox.relieve_stuck(), moved);
        next(&inbox, 0);
        assert_eq!(inbox.relieve_stuck(), moved);
        assert_eq!(inbox.relieve_stuck(), stuck, "its messages go back");
        assert_eq!(
            inbox.relieve_stuck(),
            Look::Done,
            "that was all that can be done for it"
        );
        assert_eq!(next(&inbox, 0), None);
        assert!(inbox.poll_take(1, &cx).is_ready());
        assert_eq!(next(&inbox, 1), Some(2));
    }

    #[test]
    fn c1_the_answers_of_a_stuck_worker_leave_and_so_do_messages_that_it_never_took() {
        let inbox = Inbox::new(2);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let cx = Context::from_waker(&waker);
        assert!(inbox.poll_take(1, &cx).is_pending());
        inbox.adapt(Pace::Quick);
        let mut messages = deliveries(3);
        let (link, id) = (Arc::clone(&messages[0].link), messages[0].message.id);
        inbox.append(&mut messages);
        inbox.lock().idle.push((1, waker.clone()));
        woken.0.store(0, Ordering::SeqCst);
        assert!(inbox.poll_take(0, &cx).is_ready());
        next(&inbox, 0);
        let answer = Answer {
            link: Arc::clone(&link),
            command: Command::Finish(id),
        };
        assert!(matches!(inbox.next(0, Some(answer)), Next::Message(_)));
        // The second handler blocks its thread now; a third message is in the inbox.
        assert_eq!(inbox.relieve_stuck(), Look::Again { stuck: false });
        assert_eq!(inbox.relieve_stuck(), Look::Again { stuck: true });
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        let mut commands = Vec::new();
        link.take(&mut commands, &mut Vec::new(), 0, Waker::noop());
        assert_eq!(commands, [Command::Finish(id)]);
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
        assert_eq!(next(&inbox, 0), None);
        assert_eq!(inbox.close().len(), 3);
    }

    #[test]
    fn c7_close_returns_all_that_is_not_begun() {
        let inbox = Inbox::new(1);
        let cx = Context::from_waker(Waker::noop());
        inbox.adapt(Pace::Quick);
        inbox.append(&mut deliveries(5));
        assert!(inbox.poll_take(0, &cx).is_ready());
        next(&inbox, 0);
        let mut unstarted: Vec<_> = inbox.close().iter().map(number).collect();
        unstarted.sort_unstable();
        assert_eq!(unstarted, [1, 2, 3, 4]);
        assert_eq!(inbox.poll_take(0, &cx), Poll::Ready(Take::Closed));
        let mut late = deliveries(1);
        inbox.append(&mut late);
        assert_eq!(late.len(), 1);
    }
}
