//! A worker runs handlers, one at a time; a consumer has as many workers as handlers may run at once.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tokio::task::{coop, yield_now};
use tokio::time::Instant;

use super::answers::Answer;
use super::inbox::{Delivery, Inbox, Next, Pace, Take};
use super::lookout::Lookout;
use super::panics::{catch_panic, caught};
use crate::consumer::answer::desk::Desk;
use crate::consumer::answer::keep_alive::{Cut, Grip, Patience, poll_slot};
use crate::consumer::answer::lease::Lease;
use crate::consumer::duplicates::{Admission, Ticket, Unstarted};
use crate::consumer::handler::{BoxError, Handler, Verdict};
use crate::consumer::link::Link;
use crate::consumer::message::Message;
use crate::consumer::supervisor::mailbox::Event;
use crate::protocol::MessageId;

/// A handler that keeps its thread for longer than this, on average, is run side by side with others: waking another
/// worker costs a few microseconds.
const BUSY: Duration = Duration::from_micros(20);

/// With so many answers a worker hands them over although more messages wait. It is more than one read brings of small
/// messages, so that the answers to a read leave in one write, and less than nsqd would stop at for want of answers.
const ENOUGH_ANSWERS: usize = 1024;

/// How long a worker goes on with quick messages before it hands its answers over. One that has nothing to do hands them
/// over at once; until then the driver could only make smaller writes of them.
const LONG_HELD: Duration = Duration::from_micros(500);

/// What all workers of a consumer share.
pub(in crate::consumer) struct Shop<H> {
    pub(in crate::consumer) handler: H,
    pub(in crate::consumer) inbox: Arc<Inbox>,
    pub(in crate::consumer) lookout: Lookout,
    pub(in crate::consumer) desk: Arc<Desk>,
}

pub(in crate::consumer) struct Worker<H> {
    number: usize,
    shop: Arc<Shop<H>>,
    lease: Arc<Lease>,
}

impl<H: Handler> Worker<H> {
    pub(in crate::consumer) fn new(number: usize, shop: Arc<Shop<H>>) -> Self {
        Self {
            number,
            shop,
            lease: Arc::default(),
        }
    }

    /// Takes and handles messages until the inbox is closed.
    ///
    /// A task that a worker wakes lands in its thread's slot for the next task, which no other thread can take from.
    /// Were a handler to block the thread then, the driver, the supervisor or another worker would be stuck behind it
    /// (C1). So between waking and running a handler there is always a yield. The rest is up to the [`Lookout`].
    pub(in crate::consumer) async fn run(mut self) {
        let shop = Arc::clone(&self.shop);
        let inbox = &shop.inbox;
        let mut held_since = None;
        loop {
            let take = poll_fn(|cx| {
                let take = inbox.poll_take(self.number, cx);
                if take.is_pending() {
                    inbox.hand_over(self.number);
                    held_since = None;
                }
                take
            });
            match take.await {
                Take::Closed => return,
                Take::Messages { unwatched, woken } => {
                    if unwatched {
                        shop.lookout.begin();
                    }
                    if woken {
                        yield_now().await;
                    }
                }
            }
            let since = *held_since.get_or_insert_with(Instant::now);
            let pace = self.work_through().await;
            inbox.adapt(pace);
            let enough = pace != Pace::Quick || inbox.held(self.number) >= ENOUGH_ANSWERS;
            if enough || since.elapsed() > LONG_HELD {
                held_since = None;
                if inbox.hand_over(self.number) || pace == Pace::Busy {
                    yield_now().await;
                    continue;
                }
            }
            coop::consume_budget().await;
        }
    }

    /// Handles the group that was taken.
    async fn work_through(&mut self) -> Pace {
        let shop = Arc::clone(&self.shop);
        let mut pace = Pace::Quick;
        let mut begun = Instant::now();
        let mut handled: u32 = 0;
        let mut answer = None;
        loop {
            match shop.inbox.next(self.number, answer.take()) {
                Next::Nothing => return pace,
                Next::Message(delivery) => answer = self.handle(delivery, begun, &mut pace).await,
                Next::Woken => {}
            }
            if answer.is_none() {
                yield_now().await;
                (begun, handled) = (Instant::now(), 0);
                continue;
            }
            handled += 1;
            // Reading the clock after each message would cost as much as the message.
            if pace == Pace::Quick && handled.is_power_of_two() && begun.elapsed() > BUSY * handled {
                shop.inbox.give_back(self.number);
                pace = Pace::Busy;
            }
        }
    }

    /// Handles one message. If the handler has to wait, the rest of the group is given back first. Returns the answer,
    /// unless it had to take the way over the supervisor or was given by hand. `now` is when its group was taken, or later.
    async fn handle(&mut self, delivery: Delivery, now: Instant, pace: &mut Pace) -> Option<Answer> {
        let (delivery, ticket) = match self.shop.desk.duplicates {
            None => (delivery, None),
            Some(_) => self.admit(delivery, pace).await?,
        };
        let lease = self.new_lease();
        let shop = &*self.shop;
        let link = Arc::clone(&delivery.link);
        let (id, attempts) = (delivery.message.id, delivery.message.attempts);
        let duty = Duty::new(&link, id, &lease);
        // Kept for the hook, which may be needed after the handler has taken the message.
        let kept = shop.desk.rules.wants_given_up().then(|| delivery.clone());
        let grip = Grip {
            link: &link,
            id,
            delivered_at: delivery.delivered_at,
            touched_ms: &lease.touched_ms,
            lease: Some(&lease),
        };
        let verdict = if shop.desk.rules.is_exceeded_by(attempts) {
            Err(Verdict::GiveUp)
        } else {
            let message = Message::of_handler(delivery, Arc::clone(&lease)).with_ticket(ticket.clone());
            self.run_handler(message, grip, now, pace).await
        };
        if duty.is_taken_over() {
            return None;
        }
        let verdict = match verdict {
            Err(Verdict::GiveUp) => {
                let message = kept.map(|kept| Message::of_handler(kept, Arc::clone(&lease)));
                self.give_up(message, attempts, grip, pace).await
            }
            verdict => verdict,
        };
        let finished = verdict.is_ok();
        if let Some(recording) = ticket.as_ref().filter(|_| finished).and_then(|ticket| ticket.record()) {
            *pace = Pace::Waited;
            shop.inbox.give_back(self.number);
            recording.await;
        }
        if !duty.end() {
            return None;
        }
        ticket.iter().for_each(|ticket| ticket.end(finished));
        let (command, outcome) = shop.desk.command(id, attempts, verdict);
        if !shop.desk.concerns_flow(outcome) {
            return Some(Answer { link, command });
        }
        let (answer, written) = (command, None);
        shop.desk.mailbox.send(Event::Handled {
            link,
            answer,
            outcome,
            written,
        });
        None
    }

    /// Runs the handler, within what its patience allows. `now` is a little ago: no clock is read for a quick handler.
    async fn run_handler(
        &self,
        message: Message,
        grip: Grip<'_>,
        now: Instant,
        pace: &mut Pace,
    ) -> Result<(), Verdict> {
        let shop = &*self.shop;
        let waited = now.saturating_duration_since(grip.delivered_at);
        let begins_late = waited >= grip.link.msg_timeout;
        if begins_late {
            shop.desk.note_late(grip.link, grip.id, waited);
        }
        let mut handling = pin!(Some(catch_panic(|| shop.handler.handle(message))));
        let first = poll_fn(|cx| Poll::Ready(poll_slot(handling.as_mut(), cx)));
        let result = match first.await {
            Poll::Ready(result) => Ok(result),
            Poll::Pending => {
                *pace = Pace::Waited;
                shop.inbox.give_back(self.number);
                let result = self.attended(handling, shop.desk.rules.patience, grip).await;
                if result.is_ok() && !begins_late {
                    grip.note_if_late();
                }
                result
            }
        };
        match result {
            Ok(result) => judge(result, grip.link, grip.id),
            // It is answered already, by nothing.
            Err(Cut::Lost(_)) => Err(Verdict::PLAIN),
            Err(Cut::TimedOut(limit)) => {
                shop.desk.counts.handler_timeouts.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    topic = shop.desk.topic, channel = shop.desk.channel, nsqd = %grip.link.address, id = %grip.id,
                    "the handler is stopped, since it has taken longer than handler_timeout ({limit:?}); its message is requeued \
                     unless it has answered it or handed it on"
                );
                Err(Verdict::PLAIN)
            }
        }
    }

    async fn give_up(
        &self,
        message: Option<Message>,
        attempts: u16,
        grip: Grip<'_>,
        pace: &mut Pace,
    ) -> Result<(), Verdict> {
        let shop = &*self.shop;
        *pace = Pace::Waited;
        shop.inbox.give_back(self.number);
        shop.desk.log_given_up(grip.link, grip.id, attempts);
        let giving_up = pin!(Some(shop.desk.give_up(message)));
        let patience = shop.desk.rules.patience.without_timeout();
        // What is cut off has lost its message, and so is not to answer.
        let given_up = self.attended(giving_up, patience, grip).await;
        given_up.unwrap_or(Err(Verdict::PLAIN))
    }

    /// Whether a message is to be handled, if duplicates are skipped.
    async fn admit(&self, delivery: Delivery, pace: &mut Pace) -> Option<(Delivery, Option<Arc<Ticket>>)> {
        let shop = &*self.shop;
        let Some(duplicates) = &shop.desk.duplicates else {
            return Some((delivery, None));
        };
        match duplicates.admit(delivery, &shop.inbox) {
            Admission::Begin(unstarted) => unstarted.begin(),
            Admission::Settled => None,
            Admission::Asking(asking) => {
                *pace = Pace::Waited;
                shop.inbox.give_back(self.number);
                asking.await.and_then(Unstarted::begin)
            }
        }
    }

    /// The lease of the message before, if nobody has kept that message.
    fn new_lease(&mut self) -> Arc<Lease> {
        match Arc::get_mut(&mut self.lease) {
            Some(lease) => lease.renew(),
            None => self.lease = Arc::default(),
        }
        Arc::clone(&self.lease)
    }
}

impl<H> Worker<H> {
    /// Runs what may block its thread and may be cut off.
    async fn attended<F: Future>(
        &self,
        mut slot: Pin<&mut Option<F>>,
        patience: Patience,
        grip: Grip<'_>,
    ) -> Result<F::Output, Cut> {
        if patience.is_unlimited() {
            let running = poll_fn(|cx| poll_slot(slot.as_mut(), cx));
            return Ok(self.watched(pin!(running)).await);
        }
        // In a box, so that workers without any of this are not the larger for it.
        self.watched(Box::pin(grip.attend(patience, slot)).as_mut()).await
    }

    /// Runs what may block its thread whenever it is polled.
    async fn watched<F: Future>(&self, mut future: Pin<&mut F>) -> F::Output {
        poll_fn(|cx| {
            if self.shop.inbox.poll_begins(self.number) {
                self.shop.lookout.begin();
            }
            let poll = future.as_mut().poll(cx);
            self.shop.inbox.poll_ends(self.number);
            poll
        })
        .await
    }
}

impl<H> Drop for Worker<H> {
    fn drop(&mut self) {
        // A worker that is stopped still says what was done.
        self.shop.inbox.retire(self.number);
    }
}

/// What a handler's result means for its message.
pub(in crate::consumer) fn judge(result: Result<(), BoxError>, link: &Link, id: MessageId) -> Result<(), Verdict> {
    let Err(error) = result else { return Ok(()) };
    // The error is the user's, and so is what it does when it is displayed or dropped.
    let judged = caught(move || {
        tracing::debug!(
            topic = link.desk.topic, channel = link.desk.channel, nsqd = %link.address, %id,
            error = &*error as &dyn std::error::Error, "handler failed"
        );
        Ok(Verdict::of(&error))
    });
    Err(judged.unwrap_or(Verdict::PLAIN))
}

/// The duty to answer a message. If a worker is stopped in the middle of a handler, the message is given back.
struct Duty<'a> {
    link: &'a Link,
    id: MessageId,
    lease: &'a Lease,
}

impl<'a> Duty<'a> {
    fn new(link: &'a Link, id: MessageId, lease: &'a Lease) -> Self {
        Self { link, id, lease }
    }

    /// Whether the handler has answered the message by hand, or somebody else is going to.
    fn is_taken_over(&self) -> bool {
        self.lease.is_claimed()
    }

    /// Whether the answer is still to be given.
    fn end(self) -> bool {
        self.lease.claim()
    }
}

impl Drop for Duty<'_> {
    fn drop(&mut self) {
        if self.lease.claim() {
            self.link.desk.abandon(self.link, self.id);
        }
    }
}
