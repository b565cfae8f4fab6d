//! Who is woken for what, and that nothing is kept from being handled.

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

/// A waker that counts how often it wakes.
fn counted_waker() -> (Arc<Woken>, Waker) {
    let woken = Arc::new(Woken::default());
    (Arc::clone(&woken), Waker::from(woken))
}

fn link(number: u64) -> Arc<Link> {
    let desk = Arc::new(Desk::default());
    Arc::new(Link::new(
        ConnectionId(number),
        Arc::from("nsqd:4150"),
        Arc::default(),
        desk,
    ))
}

/// Messages with ids from 0 on.
fn messages(count: u8) -> VecDeque<protocol::Message> {
    let message = |number| protocol::Message {
        timestamp: 0,
        attempts: 1,
        id: MessageId::new([number; 16]),
        body: Bytes::new(),
    };
    (0..count).map(message).collect()
}

fn append(inbox: &Inbox, count: u8) -> Arc<Link> {
    let link = link(1);
    inbox.append(&link, Instant::now(), &mut messages(count));
    link
}

fn number(id: MessageId) -> u8 {
    id.as_bytes()[0]
}

fn next(inbox: &Inbox, worker: usize) -> Option<u8> {
    match inbox.next(worker, &link(1), None) {
        Next::Message(message) => Some(number(message.id)),
        Next::Woken | Next::Nothing => None,
    }
}

/// What a worker still has, all of it.
fn rest(inbox: &Inbox, worker: usize) -> Vec<u8> {
    std::iter::from_fn(|| next(inbox, worker)).collect()
}

#[test]
fn a_worker_that_returns_is_not_helped_unless_it_falls_behind() {
    let inbox = Inbox::new(3);
    let (woken, waker) = counted_waker();
    let cx = Context::from_waker(&waker);
    (0..3).for_each(|_| inbox.adapt(Pace::Quick));
    for worker in [0, 1, 2] {
        assert!(inbox.poll_take(worker, &cx).is_pending());
    }
    append(&inbox, 5);
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    assert!(inbox.poll_take(2, &cx).is_ready());
    append(&inbox, 5);
    assert_eq!(woken.0.load(Ordering::SeqCst), 1, "it comes back for these");
    append(&inbox, 5);
    assert_eq!(woken.0.load(Ordering::SeqCst), 2, "and has not, so another comes");
    assert!(inbox.poll_take(1, &cx).is_ready());
    inbox.give_back(1);
    assert_eq!(woken.0.load(Ordering::SeqCst), 3, "a handler waits");
}

#[test]
fn a_worker_that_ends_or_is_stuck_does_not_count_as_returning() {
    for ends in [false, true] {
        let inbox = Inbox::new(2);
        let (woken, waker) = counted_waker();
        let cx = Context::from_waker(&waker);
        append(&inbox, 1);
        assert!(inbox.poll_take(0, &cx).is_ready());
        assert!(inbox.poll_take(1, &cx).is_pending());
        next(&inbox, 0);
        if ends {
            inbox.retire(0);
        } else {
            inbox.relieve_stuck();
            assert_eq!(inbox.relieve_stuck(), Look::Again { stuck: true });
        }
        append(&inbox, 1);
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn queues_serve_again_and_workers_keep_none_of_what_they_have_emptied() {
    let inbox = Inbox::new(1);
    let cx = Context::from_waker(Waker::noop());
    let (link, mut arrived) = (link(1), messages(100));
    (0..7).for_each(|_| inbox.adapt(Pace::Quick));
    for _ in 0..10 {
        inbox.append(&link, Instant::now(), &mut arrived);
        assert!(inbox.poll_take(0, &cx).is_ready());
        assert_eq!(rest(&inbox, 0).len(), 100);
        assert!(inbox.poll_take(0, &cx).is_pending());
        arrived.extend(messages(100));
        // The one at hand, and one to put in its place.
        let mut state = inbox.lock();
        assert!(std::iter::from_fn(|| state.spares.pop()).count() <= 1);
    }
}

#[test]
fn one_worker_is_woken_per_append_and_order_is_kept_when_it_gives_back() {
    let inbox = Inbox::new(2);
    let (woken, waker) = counted_waker();
    let cx = Context::from_waker(&waker);
    for worker in [0, 1, 1] {
        assert!(inbox.poll_take(worker, &cx).is_pending());
    }
    append(&inbox, 5);
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
    assert_eq!(rest(&inbox, 0), [1, 2, 3, 4]);
}

#[test]
fn c1_a_worker_that_waits_on_the_last_of_its_group_leaves_the_rest_to_another() {
    let inbox = Inbox::new(2);
    let (woken, waker) = counted_waker();
    let cx = Context::from_waker(&waker);
    assert!(inbox.poll_take(1, &cx).is_pending());
    assert!(inbox.poll_take(0, &cx).is_pending());
    append(&inbox, 2);
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
    append(&inbox, 10);
    let taken = inbox.poll_take(0, &cx);
    assert!(matches!(
        taken,
        Poll::Ready(Take::Messages {
            unwatched: true,
            woken: false,
            ..
        })
    ));
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
    let (woken, waker) = counted_waker();
    let cx = Context::from_waker(&waker);
    assert!(inbox.poll_take(1, &cx).is_pending());
    inbox.adapt(Pace::Quick);
    let (link, id) = (append(&inbox, 3), messages(1)[0].id);
    inbox.lock().list(1, &waker);
    woken.0.store(0, Ordering::SeqCst);
    assert!(inbox.poll_take(0, &cx).is_ready());
    next(&inbox, 0);
    assert!(matches!(
        inbox.next(0, &link, Some(Command::Finish(id))),
        Next::Message(_)
    ));
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
    let link = append(&inbox, 2);
    append(&inbox, 3);
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
    let link = append(&inbox, 5);
    assert!(inbox.poll_take(0, &cx).is_ready());
    next(&inbox, 0);
    let mut unstarted: Vec<_> = inbox
        .close()
        .iter()
        .map(|unstarted| number(unstarted.message.id))
        .collect();
    unstarted.sort_unstable();
    assert_eq!(unstarted, [1, 2, 3, 4]);
    assert!(matches!(inbox.poll_take(0, &cx), Poll::Ready(Take::Closed)));
    let mut late = messages(1);
    inbox.append(&link, Instant::now(), &mut late);
    assert_eq!(late.len(), 1);
}

#[test]
fn c1_a_worker_that_does_not_get_its_thread_back_is_not_waited_for() {
    let inbox = Inbox::new(2);
    let (woken, waker) = counted_waker();
    let cx = Context::from_waker(&waker);
    append(&inbox, 1);
    assert!(inbox.poll_take(0, &cx).is_ready());
    assert!(inbox.poll_take(1, &cx).is_pending());
    assert_eq!(rest(&inbox, 0), [0]);
    // It is through with its group, and has yielded before it takes again.
    assert_eq!(inbox.relieve_stuck(), Look::Again { stuck: false });
    assert_eq!(inbox.relieve_stuck(), Look::Done);
    append(&inbox, 1);
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
}

#[test]
fn handlers_that_keep_their_threads_busy_are_helped_at_once() {
    let inbox = Inbox::new(2);
    let (woken, waker) = counted_waker();
    let cx = Context::from_waker(&waker);
    inbox.adapt(Pace::Busy);
    append(&inbox, 1);
    assert!(inbox.poll_take(0, &cx).is_ready());
    assert!(inbox.poll_take(1, &cx).is_pending());
    next(&inbox, 0);
    append(&inbox, 1);
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
}

#[test]
fn what_waits_for_a_worker_that_ends_is_another_ones() {
    let inbox = Inbox::new(2);
    let (woken, waker) = counted_waker();
    let cx = Context::from_waker(&waker);
    append(&inbox, 1);
    assert!(inbox.poll_take(0, &cx).is_ready());
    assert!(inbox.poll_take(1, &cx).is_pending());
    append(&inbox, 1);
    assert_eq!(woken.0.load(Ordering::SeqCst), 0);
    inbox.retire(0);
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
}
