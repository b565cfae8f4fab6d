//! A worker runs handlers, one at a time; a consumer has as many workers as handlers may run at once.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::{coop, yield_now};
use tokio::time::Instant;

use super::inbox::{Delivery, Inbox, Next, Pace, Take};
use super::lookout::Lookout;
use super::panics::{Caught, caught, start_caught};
use crate::consumer::answer::desk::Desk;
use crate::consumer::answer::keep_alive::{Cut, Grip, Patience, poll_slot};
use crate::consumer::answer::lease::{Lease, Leases};
use crate::consumer::duplicates::{Admission, Ticket, Unstarted};
use crate::consumer::flow::Outcome;
use crate::consumer::handler::{BoxError, Handler, Verdict};
use crate::consumer::link::{Command, Link};
use crate::consumer::message::Message;
use crate::consumer::supervisor::mailbox::Event;
use crate::protocol::{self, MessageId};

/// A handler that keeps its thread for longer than this, on average, is run side by side with others: waking another
/// worker costs a few microseconds.
const BUSY: Duration = Duration::from_micros(20);

/// With so many answers a worker hands them over although more messages wait. It is more than one read brings of small
/// messages, so that the answers to a read leave in one write, and less than nsqd would stop at for want of answers.
const ENOUGH_ANSWERS: usize = 1024;

/// How long a worker goes on with quick messages before it hands its answers over. One that has nothing to do hands them
/// over at once; until then the driver could only make smaller writes of them.
const LONG_HELD: Duration = Duration::from_micros(500);

/// A worker looks at the clock after 1, 2, 4 and 8 messages of a group, and then after each so many: handlers may turn slow
/// behind quick ones, whose answers wait for that.
const LOOK_EVERY: u32 = 16;

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
    leases: Leases,
}

impl<H: Handler> Worker<H> {
    pub(in crate::consumer) fn new(number: usize, shop: Arc<Shop<H>>) -> Self {
        Self {
            number,
            shop,
            leases: Leases::default(),
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
                    held_since = None;
                }
                take
            });
            let (link, delivered_at) = match take.await {
                Take::Closed => return,
                Take::Messages {
                    link,
                    delivered_at,
                    unwatched,
                    woken,
                } => {
                    if unwatched {
                        shop.lookout.begin();
                    }
                    if woken {
                        yield_now().await;
                    }
                    (link, delivered_at)
                }
            };
            let stint = Stint::begin(link, delivered_at);
            let since = *held_since.get_or_insert(stint.begun);
            let (pace, shared) = self.work_through(stint).await;
            inbox.adapt(pace);
            let enough = pace != Pace::Quick || inbox.held(self.number) >= ENOUGH_ANSWERS;
            if enough || since.elapsed() > LONG_HELD {
                held_since = None;
                if inbox.hand_over(self.number) || shared {
                    yield_now().await;
                    continue;
                }
            }
            coop::consume_budget().await;
        }
    }

    /// Handles the group that was taken. Returns how that went, and whether the rest of it was given back, which may have
    /// woken others.
    async fn work_through(&mut self, mut stint: Stint) -> (Pace, bool) {
        let shop = Arc::clone(&self.shop);
        let start = |message| shop.handler.handle(message);
        // One place for all handlers, one after the other: a quick one costs no future but its own.
        let mut slot = pin!(None);
        let (mut answer, mut admitted) = (None, None);
        loop {
            let stop = poll_fn(|cx| {
                let (answer, admitted) = (answer.take(), admitted.take());
                Poll::Ready(self.handle_quick(answer, admitted, slot.as_mut(), &start, &mut stint, cx))
            });
            match stop.await {
                Stop::Through => return (stint.pace, stint.shared),
                Stop::Woken => {}
                Stop::Unadmitted(message) => {
                    admitted = self.admit(message, &mut stint).await;
                    if admitted.is_some() {
                        continue;
                    }
                }
                Stop::Begun(open) => answer = self.conclude(open, slot.as_mut(), &mut stint.pace).await,
            }
            if answer.is_none() {
                yield_now().await;
                stint.begin_again();
            } else if stint.is_long_after_one_more() {
                shop.inbox.give_back(self.number);
            }
        }
    }

    /// Handles messages of the group while their handlers return at once and there is nothing to do but to finish them.
    fn handle_quick<F>(
        &mut self,
        mut answer: Option<Command>,
        mut admitted: Option<Admitted>,
        mut slot: Pin<&mut Option<F>>,
        start: &impl Fn(Message) -> F,
        stint: &mut Stint,
        cx: &mut Context<'_>,
    ) -> Stop
    where
        F: Future<Output = Result<(), H::Error>>,
    {
        let shop = Arc::clone(&self.shop);
        loop {
            let (message, ticket) = match admitted.take() {
                Some(admitted) => admitted,
                None => match shop.inbox.next(self.number, &stint.link, answer.take()) {
                    Next::Nothing => return Stop::Through,
                    Next::Woken => return Stop::Woken,
                    Next::Message(message) if shop.desk.duplicates.is_some() => return Stop::Unadmitted(message),
                    Next::Message(message) => (message, None),
                },
            };
            match self.begin(message, ticket, slot.as_mut(), start, stint, cx) {
                Begun::Finished(id) => answer = Some(Command::Finish(id)),
                Begun::Open(open) => return Stop::Begun(open),
            }
            if stint.is_long_after_one_more() {
                shop.inbox.give_back(self.number);
            }
        }
    }

    /// Starts the handler of a message and polls it once.
    fn begin<F>(
        &mut self,
        message: protocol::Message,
        ticket: Option<Arc<Ticket>>,
        slot: Pin<&mut Option<F>>,
        start: &impl Fn(Message) -> F,
        stint: &Stint,
        cx: &mut Context<'_>,
    ) -> Begun
    where
        F: Future<Output = Result<(), H::Error>>,
    {
        let desk = &self.shop.desk;
        let (id, attempts) = (message.id, message.attempts);
        let lease = self.leases.next(&stint.link, stint.delivered_at);
        // For the hook, which may be needed after the handler has taken the message.
        let kept = desk.rules.wants_given_up().then(|| message.clone());
        let first = if desk.rules.is_exceeded_by(attempts) {
            Poll::Ready(Err(Verdict::GiveUp))
        } else {
            if let Some(waited) = stint.late {
                desk.note_late(&stint.link, id, waited);
            }
            let message = Message::of_handler(message, Arc::clone(&lease), ticket.clone());
            start_caught(slot, || start(message), cx).map(|result| judge(result, &stint.link, id))
        };
        let simply = first == Poll::Ready(Ok(())) && ticket.is_none() && !desk.concerns_flow(Outcome::Success);
        if simply && lease.claim() {
            return Begun::Finished(id);
        }
        Begun::Open(Open {
            id,
            attempts,
            lease,
            begins_late: stint.late.is_some(),
            ticket,
            kept,
            first,
        })
    }

    /// Sees a message through whose handler was polled once. If that has to wait, the rest of the group is given back
    /// first. Returns the answer, unless it had to take the way over the supervisor or was given by hand.
    async fn conclude<F>(&self, open: Open, slot: Pin<&mut Option<F>>, pace: &mut Pace) -> Option<Command>
    where
        F: Future<Output = Result<(), H::Error>>,
    {
        let shop = &*self.shop;
        let (id, attempts, lease) = (open.id, open.attempts, &open.lease);
        let duty = Duty { lease, id };
        let grip = lease.grip(id);
        let verdict = match open.first {
            Poll::Ready(verdict) => verdict,
            Poll::Pending => self.wait_for(slot, grip, open.begins_late, pace).await,
        };
        if lease.is_claimed() {
            return None;
        }
        let verdict = match verdict {
            Err(Verdict::GiveUp) => {
                let message = open.kept.clone();
                let message = message.map(|kept| Message::of_handler(kept, Arc::clone(lease), None));
                self.give_up(message, attempts, grip, pace).await
            }
            verdict => verdict,
        };
        let ticket = open.ticket.as_ref();
        let finished = verdict.is_ok();
        if let Some(recording) = ticket.filter(|_| finished).and_then(|ticket| ticket.record()) {
            *pace = Pace::Waited;
            shop.inbox.give_back(self.number);
            recording.await;
        }
        if !duty.end() {
            return None;
        }
        ticket.into_iter().for_each(|ticket| ticket.end(finished));
        let (command, outcome) = shop.desk.command(id, attempts, verdict);
        if !shop.desk.concerns_flow(outcome) {
            return Some(command);
        }
        shop.desk.mailbox.send(Event::Handled {
            link: Arc::clone(&lease.link),
            answer: command,
            outcome,
            written: None,
        });
        None
    }

    /// Waits for a handler, within what its patience allows.
    async fn wait_for<F>(
        &self,
        slot: Pin<&mut Option<F>>,
        grip: Grip<'_>,
        begins_late: bool,
        pace: &mut Pace,
    ) -> Result<(), Verdict>
    where
        F: Future<Output = Result<(), H::Error>>,
    {
        let shop = &*self.shop;
        *pace = Pace::Waited;
        shop.inbox.give_back(self.number);
        let patience = shop.desk.rules.patience;
        // It was polled a moment ago and wakes this task. Nobody needs another look at it, and it must not get one before
        // what was just woken had its turn.
        let mut just_polled = patience.is_unlimited();
        let mut handler = Caught(slot);
        let handling = pin!(Some(poll_fn(move |cx| {
            if std::mem::take(&mut just_polled) {
                return Poll::Pending;
            }
            Pin::new(&mut handler).poll(cx)
        })));
        let result = self.attended(handling, patience, grip).await;
        match result {
            Ok(result) => {
                if !begins_late {
                    grip.note_if_late();
                }
                judge(result, grip.link, grip.id)
            }
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
    async fn admit(&self, message: protocol::Message, stint: &mut Stint) -> Option<Admitted> {
        let shop = &*self.shop;
        let Some(duplicates) = &shop.desk.duplicates else {
            return Some((message, None));
        };
        let delivery = Delivery {
            message,
            link: Arc::clone(&stint.link),
            delivered_at: stint.delivered_at,
        };
        let admitted = match duplicates.admit(delivery, &shop.inbox) {
            Admission::Begin(unstarted) => unstarted.begin(),
            Admission::Settled => None,
            Admission::Asking(asking) => {
                stint.pace = Pace::Waited;
                shop.inbox.give_back(self.number);
                asking.await.and_then(Unstarted::begin)
            }
        };
        admitted.map(|(delivery, ticket)| (delivery.message, ticket))
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
#[inline]
pub(in crate::consumer) fn judge(result: Result<(), BoxError>, link: &Link, id: MessageId) -> Result<(), Verdict> {
    result.map_err(|error| verdict_of(error, link, id))
}

#[cold]
fn verdict_of(error: BoxError, link: &Link, id: MessageId) -> Verdict {
    // The error is the user's, and so is what it does when it is displayed or dropped.
    let judged = caught(move || {
        tracing::debug!(
            topic = link.desk.topic, channel = link.desk.channel, nsqd = %link.address, %id,
            error = &*error as &dyn std::error::Error, "handler failed"
        );
        Ok(Verdict::of(&error))
    });
    judged.unwrap_or(Verdict::PLAIN)
}

/// A message that is to be handled. With the ticket, if duplicates are skipped.
type Admitted = (protocol::Message, Option<Arc<Ticket>>);

/// What stops a worker on its way through messages whose handlers return at once.
enum Stop {
    /// The group is empty.
    Through,
    /// A driver was woken, and is to have its turn before the next handler.
    Woken,
    /// It may be a duplicate.
    Unadmitted(protocol::Message),
    /// It takes more than a FIN.
    Begun(Open),
}

/// What came of a handler's first poll.
enum Begun {
    /// The message is to be finished, and that is all.
    Finished(MessageId),
    Open(Open),
}

/// A message whose handler was polled once.
struct Open {
    id: MessageId,
    attempts: u16,
    lease: Arc<Lease>,
    begins_late: bool,
    ticket: Option<Arc<Ticket>>,
    kept: Option<protocol::Message>,
    first: Poll<Result<(), Verdict>>,
}

/// How a worker fares with a group.
struct Stint {
    link: Arc<Link>,
    delivered_at: Instant,
    /// How long after the delivery it begins, if nsqd's patience is over by then.
    late: Option<Duration>,
    pace: Pace,
    /// The rest was given back since it took long.
    shared: bool,
    begun: Instant,
    handled: u32,
}

impl Stint {
    fn begin(link: Arc<Link>, delivered_at: Instant) -> Self {
        let mut stint = Self {
            link,
            delivered_at,
            late: None,
            pace: Pace::Quick,
            shared: false,
            begun: delivered_at,
            handled: 0,
        };
        stint.begin_again();
        stint
    }

    /// After a pause.
    fn begin_again(&mut self) {
        (self.begun, self.handled) = (Instant::now(), 0);
        let waited = self.begun.saturating_duration_since(self.delivered_at);
        self.late = Some(waited).filter(|waited| *waited >= self.link.msg_timeout);
    }

    /// Counts a message. Returns whether the rest of the group is to be shared with others.
    #[inline]
    fn is_long_after_one_more(&mut self) -> bool {
        self.handled += 1;
        // Reading the clock after each message would cost as much as the message.
        let looks = self.handled.is_power_of_two() || self.handled % LOOK_EVERY == 0;
        if self.pace != Pace::Quick || !looks {
            return false;
        }
        let elapsed = self.begun.elapsed();
        if elapsed > BUSY * self.handled {
            self.pace = Pace::Busy;
        }
        let long = self.pace == Pace::Busy || elapsed > LONG_HELD;
        self.shared |= long;
        long
    }
}

/// The duty to answer a message. If a worker is stopped in the middle of a handler, the message is given back.
struct Duty<'a> {
    lease: &'a Lease,
    id: MessageId,
}

impl Duty<'_> {
    /// Whether the answer is still to be given.
    fn end(self) -> bool {
        self.lease.claim()
    }
}

impl Drop for Duty<'_> {
    fn drop(&mut self) {
        if self.lease.claim() {
            self.lease.link.desk.abandon(&self.lease.link, self.id);
        }
    }
}
