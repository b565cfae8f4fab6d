//! A worker runs handlers, one at a time; a consumer has as many workers as handlers may run at once.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::{coop, yield_now};
use tokio::time::Instant;

use super::answers::Answer;
use super::flow::Outcome;
use super::handler::{BoxError, Handler, Verdict};
use super::inbox::{Delivery, Inbox, Next, Pace, Take};
use super::link::{Command, Link};
use super::lookout::Lookout;
use super::mailbox::{Event, Mailbox};
use super::message::Message;
use super::state::Counts;
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

/// The longest delay that nsqd understands: it counts in nanoseconds, and takes what does not fit for no delay at all.
const LONGEST_REQUEUE_MS: u64 = i64::MAX as u64 / 1_000_000;

/// What is called with a message that is given up.
pub(super) type GiveUpHook = Arc<dyn Fn(Message) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// What becomes of messages that are not handled.
#[derive(Clone)]
pub(super) struct Rules {
    /// 0 is no limit.
    pub(super) max_attempts: u16,
    pub(super) default_requeue_delay: Duration,
    pub(super) max_requeue_delay: Duration,
    pub(super) give_up: Option<GiveUpHook>,
}

impl Rules {
    /// go-nsq's: the default delay times the attempts so far, up to the maximum.
    fn requeue_delay(&self, attempts: u16) -> Duration {
        self.default_requeue_delay
            .saturating_mul(u32::from(attempts))
            .min(self.max_requeue_delay)
    }
}

/// What all workers of a consumer share.
pub(super) struct Shop<H> {
    pub(super) handler: H,
    pub(super) inbox: Arc<Inbox>,
    pub(super) lookout: Lookout,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) rules: Rules,
    pub(super) counts: Arc<Counts>,
    /// Whether the flow wants to hear of successes: only while it backs off.
    pub(super) reports_success: Arc<AtomicBool>,
}

pub(super) struct Worker<H> {
    number: usize,
    shop: Arc<Shop<H>>,
}

impl<H: Handler> Worker<H> {
    pub(super) fn new(number: usize, shop: Arc<Shop<H>>) -> Self {
        Self { number, shop }
    }

    /// Takes and handles messages until the inbox is closed.
    ///
    /// A task that a worker wakes lands in its thread's slot for the next task, which no other thread can take from.
    /// Were a handler to block the thread then, the driver, the supervisor or another worker would be stuck behind it
    /// (C1). So between waking and running a handler there is always a yield. The rest is up to the [`Lookout`].
    pub(super) async fn run(self) {
        let inbox = &self.shop.inbox;
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
                        self.shop.lookout.begin();
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
    async fn work_through(&self) -> Pace {
        let shop = &*self.shop;
        let mut pace = Pace::Quick;
        let mut begun = Instant::now();
        let mut handled: u32 = 0;
        let mut answer = None;
        loop {
            match shop.inbox.next(self.number, answer.take()) {
                Next::Nothing => return pace,
                Next::Message(delivery) => answer = self.handle(delivery, &mut pace).await,
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
    /// unless it had to take the way over the supervisor.
    async fn handle(&self, delivery: Delivery, pace: &mut Pace) -> Option<Answer> {
        let shop = &*self.shop;
        let Delivery { message, link } = delivery;
        let (id, attempts) = (message.id, message.attempts);
        let lease = Lease::new(&link, id, &shop.counts);
        // Kept for the hook, which may be needed after the handler has taken the message.
        let kept = shop.rules.give_up.is_some().then(|| message.clone());
        let verdict = if shop.rules.max_attempts > 0 && attempts > shop.rules.max_attempts {
            Err(Verdict::GiveUp)
        } else {
            let message = Message::new(message, Arc::clone(&link));
            let mut handling = pin!(catch_panic(|| shop.handler.handle(message)));
            let first = poll_fn(|cx| Poll::Ready(handling.as_mut().poll(cx))).await;
            let result = match first {
                Poll::Ready(result) => result,
                Poll::Pending => {
                    *pace = Pace::Waited;
                    shop.inbox.give_back(self.number);
                    self.watched(handling).await
                }
            };
            judge(result, &link, id)
        };
        let verdict = match verdict {
            Err(Verdict::GiveUp) => {
                *pace = Pace::Waited;
                shop.inbox.give_back(self.number);
                tracing::warn!(nsqd = %link.address, %id, attempts, "message is given up");
                let message = kept.map(|message| Message::new(message, Arc::clone(&link)));
                self.watched(pin!(shop.give_up(message))).await
            }
            verdict => verdict,
        };
        lease.answered();
        let (command, outcome) = shop.answer(id, attempts, verdict);
        if outcome == Outcome::Success && !shop.reports_success.load(Ordering::Relaxed) {
            return Some(Answer { link, command });
        }
        shop.mailbox.send(Event::Handled {
            link,
            answer: command,
            outcome,
        });
        None
    }
}

impl<H> Worker<H> {
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

impl<H> Shop<H> {
    /// What nsqd is told of a message, and what the flow is.
    fn answer(&self, id: MessageId, attempts: u16, verdict: Result<(), Verdict>) -> (Command, Outcome) {
        let Err(Verdict::Requeue { delay, backoff }) = verdict else {
            self.counts.finished.fetch_add(1, Ordering::Relaxed);
            return (Command::Finish(id), Outcome::Success);
        };
        self.counts.requeued.fetch_add(1, Ordering::Relaxed);
        let delay = delay.unwrap_or_else(|| self.rules.requeue_delay(attempts));
        let delay_ms = u64::try_from(delay.as_millis())
            .unwrap_or(u64::MAX)
            .min(LONGEST_REQUEUE_MS);
        let outcome = if backoff {
            Outcome::Failure
        } else {
            Outcome::FailureWithoutBackoff
        };
        (Command::Requeue { id, delay_ms }, outcome)
    }

    /// Calls the give-up hook, if there is one, with the message. A hook that panics has not dealt with the message,
    /// so it is requeued.
    async fn give_up(&self, message: Option<Message>) -> Result<(), Verdict> {
        if let (Some(hook), Some(message)) = (&self.rules.give_up, message) {
            let called = catch_panic(|| {
                let calling = hook(message);
                async {
                    calling.await;
                    Ok::<(), BoxError>(())
                }
            });
            if let Err(error) = called.await {
                tracing::error!(%error, "the give-up hook failed; the message is requeued");
                return Err(Verdict::PLAIN);
            }
        }
        self.counts.given_up.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// What a handler's result means for its message.
fn judge(result: Result<(), BoxError>, link: &Link, id: MessageId) -> Result<(), Verdict> {
    let Err(error) = result else { return Ok(()) };
    // The error is the user's, and so is what it does when it is displayed or dropped.
    let judged = caught(move || {
        tracing::debug!(nsqd = %link.address, %id, error = &*error as &dyn std::error::Error, "handler failed");
        Ok(Verdict::of(&error))
    });
    Err(judged.unwrap_or(Verdict::PLAIN))
}

/// The duty to answer a message. If a worker is stopped in the middle of a handler, the message is given back.
struct Lease<'a> {
    link: Option<&'a Link>,
    id: MessageId,
    counts: &'a Counts,
}

impl<'a> Lease<'a> {
    fn new(link: &'a Link, id: MessageId, counts: &'a Counts) -> Self {
        Self {
            link: Some(link),
            id,
            counts,
        }
    }

    fn answered(mut self) {
        self.link = None;
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(link) = self.link {
            self.counts.abandoned.fetch_add(1, Ordering::Relaxed);
            // On a lost connection nsqd takes the message back by itself.
            let _lost_with_its_connection = link.send(Command::Requeue {
                id: self.id,
                delay_ms: 0,
            });
        }
    }
}

/// Runs what `make` makes and turns a panic, in either, into an error: it stays within its message.
///
/// What the panic left half-done belongs to the handler, which knows that it shares state with others.
async fn catch_panic<F, E>(make: impl FnOnce() -> F) -> Result<(), BoxError>
where
    F: Future<Output = Result<(), E>>,
    E: Into<BoxError>,
{
    let mut future = pin!(Some(caught(|| Ok(make()))?));
    let result = poll_fn(|cx: &mut Context<'_>| {
        let polled = caught(|| match future.as_mut().as_pin_mut() {
            Some(future) => Ok(future.poll(cx).map_err(Into::into)),
            None => Ok(Poll::Pending),
        });
        polled.unwrap_or_else(|error| Poll::Ready(Err(error)))
    })
    .await;
    // Dropping is part of it: what a future owns may have a destructor that panics.
    let dropped = caught(|| {
        future.set(None);
        Ok(())
    });
    result.and(dropped)
}

fn caught<T>(run: impl FnOnce() -> Result<T, BoxError>) -> Result<T, BoxError> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|payload| Err(panicked(payload)))
}

fn panicked(payload: Box<dyn Any + Send>) -> BoxError {
    let said = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let error = format!("the handler panicked: {}", said.unwrap_or("no text")).into();
    if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        // A payload that panics when it is dropped may have made another such: there is no end to that but this.
        std::mem::forget(another);
    }
    error
}
