//! Handlers of several messages at once.

use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use super::answer::desk::Desk;
use super::answer::keep_alive::{Grip, keep_all, poll_slot};
use super::answer::lease::Lease;
use super::duplicates::{Ticket, Unstarted};
use super::handler::{BoxError, Verdict};
use super::message::Message;
use super::state::State;
use super::supervisor::mailbox::Event;
use super::work::answers::Answers;
use super::work::inbox::Inbox;
use super::work::lookout::Lookout;
use super::work::panics::{catch_panic, caught};
use super::work::source::Source;
use super::work::worker::judge;
use crate::error::{Error, Result};
use crate::protocol::{self, MessageId};

/// How messages are gathered for a [`BatchHandler`].
///
/// ```
/// use std::time::Duration;
/// use async_nsq::BatchOptions;
///
/// let options = BatchOptions::new().size(500).linger(Duration::from_millis(250));
/// # let _ = options;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "options do nothing until they are given to a consumer"]
pub struct BatchOptions {
    size: usize,
    linger: Duration,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self {
            size: 100,
            linger: Duration::from_millis(100),
        }
    }
}

impl BatchOptions {
    /// Batches of up to 100 messages, gathered for up to 100 ms.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many messages a batch has at most. Default: 100. Allowed: 1 to 100,000.
    ///
    /// No batch is larger than `max_in_flight`, and with several nsqds each has a share of that: `max_in_flight` should be
    /// at least twice the size, so that the next batch arrives while one is handled.
    pub fn size(mut self, messages: usize) -> Self {
        self.size = messages;
        self
    }

    /// How long the first message of a batch waits for others. Default: 100 ms. Allowed: 0 to 1 min; with 0 a batch is
    /// what is there.
    ///
    /// A batch is handed over before that when it is full, or when waiting cannot help because every nsqd has sent all
    /// that it may: everything allowed is in this or other batches.
    ///
    /// nsqd's `msg_timeout` (60 s) runs meanwhile, so linger and handling together must be shorter.
    pub fn linger(mut self, time: Duration) -> Self {
        self.linger = time;
        self
    }

    pub(super) fn validate(&self) -> Result<()> {
        if !(1..=100_000).contains(&self.size) {
            return Err(Error::option("size", self.size, "1 to 100000"));
        }
        if self.linger > Duration::from_secs(60) {
            return Err(Error::option("linger", format_args!("{:?}", self.linger), "0 to 1min"));
        }
        Ok(())
    }
}

/// What a service does with several messages at once: see
/// [`ConsumerBuilder::start_batches`](super::ConsumerBuilder::start_batches).
///
/// The result answers the messages: `Result<(), E>` all of them, `Vec<Result<(), E>>` each in the order of the batch, where
/// a message without a result is requeued and that is logged at `error`. An error means the same as for a
/// [`Handler`](super::Handler), a [`HandlerError`](super::HandlerError) included; a panic is an error of all.
///
/// Messages that are [given up](super::HandlerError::give_up) are given up one after the other, once the rest of the batch is
/// answered.
///
/// A message may also be answered by hand ([`finish`](Message::finish), [`requeue`](Message::requeue)) or
/// [taken over](Message::take_over); what the result says of it is then ignored.
///
/// A closure is a batch handler:
///
/// ```
/// use async_nsq::{BoxError, Message};
///
/// let store = |batch: Vec<Message>| async move {
///     println!("storing {} orders at once", batch.len());
///     Ok::<(), BoxError>(())
/// };
/// let store_each = |batch: Vec<Message>| async move {
///     let store = |message: &Message| std::str::from_utf8(message.body()).map(drop);
///     batch.iter().map(store).collect::<Vec<Result<(), _>>>()
/// };
/// # fn check(_: impl async_nsq::BatchHandler) {}
/// # check(store);
/// # check(store_each);
/// ```
///
/// # Blocking
/// As for a [`Handler`](super::Handler#blocking).
///
/// # Cancel safety
/// As for a [`Handler`](super::Handler#cancel-safety).
pub trait BatchHandler: Send + Sync + 'static {
    /// What has become of the messages.
    type Outcome: Into<BatchOutcome>;

    /// Handles the messages of one batch, at least one.
    fn handle(&self, batch: Vec<Message>) -> impl Future<Output = Self::Outcome> + Send;
}

impl<F, Fut, O> BatchHandler for F
where
    F: Fn(Vec<Message>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = O> + Send,
    O: Into<BatchOutcome>,
{
    type Outcome = O;

    fn handle(&self, batch: Vec<Message>) -> impl Future<Output = O> + Send {
        self(batch)
    }
}

/// What has become of the messages of a batch: made from `Result<(), E>`, for all of them, or from `Vec<Result<(), E>>`, for
/// each in order.
#[derive(Debug)]
pub struct BatchOutcome {
    outcomes: Outcomes,
}

#[derive(Debug)]
enum Outcomes {
    Same(std::result::Result<(), BoxError>),
    Each(Vec<std::result::Result<(), BoxError>>),
}

impl<E: Into<BoxError>> From<std::result::Result<(), E>> for BatchOutcome {
    fn from(result: std::result::Result<(), E>) -> Self {
        let outcomes = Outcomes::Same(result.map_err(Into::into));
        Self { outcomes }
    }
}

impl<E: Into<BoxError>> From<Vec<std::result::Result<(), E>>> for BatchOutcome {
    fn from(results: Vec<std::result::Result<(), E>>) -> Self {
        let each = results.into_iter().map(|result| result.map_err(Into::into));
        let outcomes = Outcomes::Each(each.collect());
        Self { outcomes }
    }
}

/// What all batchers of a consumer share.
pub(super) struct Hall<H> {
    pub(super) handler: H,
    pub(super) options: BatchOptions,
    pub(super) inbox: Arc<Inbox>,
    pub(super) desk: Arc<Desk>,
    pub(super) lookout: Lookout,
    pub(super) state: watch::Receiver<State>,
    /// Whoever holds it gathers the next batch. It is held while waiting for messages, and to wait for it is to wait for
    /// one's turn: were several to gather, each would have a part of what could be one batch. Nobody waits for it who has a
    /// message to answer. (A task that gathers for the others and hands batches on would hold one more that nobody handles,
    /// or need a turn to say who is free; and what it has started would not be awaited when the workers are stopped.)
    pub(super) turn: Mutex<Source>,
}

/// Gathers a batch, handles it, and again; a consumer has as many as batches may be handled at once.
pub(super) struct Batcher<H> {
    number: usize,
    hall: Arc<Hall<H>>,
}

impl<H: BatchHandler> Batcher<H> {
    pub(super) fn new(number: usize, hall: Arc<Hall<H>>) -> Self {
        Self { number, hall }
    }

    pub(super) async fn run(self) {
        while let Some(gathered) = self.gather().await {
            // Whose turn it is now was woken, and must not be stuck behind a handler that blocks this thread.
            yield_now().await;
            self.handle(gathered).await;
        }
        self.hall.turn.lock().await.end().await;
    }

    /// The next batch, or `None` once the consumer ends. What was gathered until then is given back.
    async fn gather(&self) -> Option<Vec<Unstarted>> {
        let hall = &*self.hall;
        let BatchOptions { size, linger } = hall.options;
        let mut source = hall.turn.lock().await;
        let mut gathered: Vec<Unstarted> = Vec::new();
        let mut until = Instant::now();
        while gathered.len() < size {
            let next = poll_fn(|cx| source.poll_next(cx, Some(&hall.lookout)));
            let next = if gathered.is_empty() {
                next.await
            } else {
                tokio::select! {
                    biased;
                    next = next => next,
                    () = hall.starved() => break,
                    () = sleep_until(until) => break,
                }
            };
            let next = next?;
            if gathered.is_empty() {
                until = Instant::now() + linger;
            }
            gathered.push(next);
        }
        Some(gathered)
    }

    async fn handle(&self, gathered: Vec<Unstarted>) {
        let (messages, entries) = self.open(gathered);
        if messages.is_empty() {
            return;
        }
        let _at_work = AtWork::begin(&self.hall.inbox, self.number, &entries);
        let verdicts = match self.run_handler(messages, &entries).await {
            Ok(outcomes) => verdicts(&entries, outcomes),
            Err(limit) => {
                let counts = &self.hall.desk.counts;
                counts.handler_timeouts.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    messages = entries.len(),
                    "the handler of a batch is stopped, since it has taken longer than handler_timeout ({limit:?}); its \
                     messages are requeued unless it has answered them or handed them on"
                );
                vec![Err(Verdict::PLAIN); entries.len()]
            }
        };
        self.answer(entries, verdicts).await;
    }

    /// Runs the handler, within what its patience allows. The error is how much that was.
    async fn run_handler(&self, messages: Vec<Message>, entries: &[Open]) -> std::result::Result<Outcomes, Duration> {
        let mut outcome = None;
        let slot = &mut outcome;
        let handling = catch_panic(|| {
            let handling = self.hall.handler.handle(messages);
            async move {
                *slot = Some(handling.await.into());
                Ok::<(), BoxError>(())
            }
        });
        let handled = self.attended(handling, entries).await?;
        Ok(match (handled, outcome) {
            (Ok(()), Some(BatchOutcome { outcomes })) => outcomes,
            (Err(panicked), _) => Outcomes::Same(Err(panicked)),
            (Ok(()), None) => Outcomes::Each(Vec::new()),
        })
    }

    /// Runs what may be stopped if it takes too long, and what may block its thread.
    async fn attended<F: Future>(&self, future: F, entries: &[Open]) -> std::result::Result<F::Output, Duration> {
        let mut slot = pin!(Some(future));
        let first = poll_fn(|cx| Poll::Ready(poll_slot(slot.as_mut(), cx)));
        if let Poll::Ready(output) = self.watched(first).await {
            return Ok(output);
        }
        let patience = self.hall.desk.rules.patience;
        let mut running = pin!(poll_fn(|cx| poll_slot(slot.as_mut(), cx)));
        let kept = keep_all(patience, entries.iter().map(Open::grip), running.as_mut());
        let result = self.watched(kept).await;
        if result.is_err() {
            // What the future owns may have a destructor that panics.
            let dropped = caught(|| {
                slot.set(None);
                Ok(())
            });
            if let Err(error) = dropped {
                tracing::debug!(error = &*error as &dyn std::error::Error, "while being stopped");
            }
        }
        result
    }

    /// Makes messages of what was gathered, without what was lost with its connection meanwhile.
    fn open(&self, gathered: Vec<Unstarted>) -> (Vec<Message>, Vec<Open>) {
        let keep = self.hall.desk.rules.wants_given_up();
        let alive = |unstarted: &Unstarted| {
            let link = unstarted.delivery().map(|delivery| &delivery.link);
            link.is_some_and(|link| link.check().is_ok())
        };
        let gathered = gathered.into_iter().filter(alive).filter_map(Unstarted::begin);
        gathered
            .map(|(delivery, ticket)| {
                let message = delivery.message;
                let open = Open {
                    kept: keep.then(|| message.clone()),
                    id: message.id,
                    attempts: message.attempts,
                    lease: Arc::new(Lease::new(delivery.link, delivery.delivered_at)),
                    ticket,
                };
                let message = Message::of_handler(message, Arc::clone(&open.lease), open.ticket.clone());
                (message, open)
            })
            .unzip()
    }

    /// Answers what is not answered by hand; what is given up comes last, since that may take its time.
    async fn answer(&self, entries: Vec<Open>, verdicts: Vec<std::result::Result<(), Verdict>>) {
        let mut answers = Answers::default();
        let mut given_up = Vec::new();
        for (entry, verdict) in entries.into_iter().zip(verdicts) {
            if !entry.lease.is_claimed() {
                entry.grip().note_if_late();
            }
            if verdict == Err(Verdict::GiveUp) {
                given_up.push(entry);
            } else {
                self.settle(&entry, verdict, &mut answers).await;
            }
        }
        answers.hand_over();
        if given_up.is_empty() {
            return;
        }
        let _at_work = AtWork::begin(&self.hall.inbox, self.number, &given_up);
        let giving_up = pin!(self.give_up(&given_up));
        let patience = self.hall.desk.rules.patience.without_timeout();
        let kept = keep_all(patience, given_up.iter().map(Open::grip), giving_up);
        // There is no timeout.
        let _never_too_long = self.watched(kept).await;
    }

    /// Gives these up, one after the other.
    async fn give_up(&self, entries: &[Open]) {
        let mut answers = Answers::default();
        for entry in entries.iter().filter(|entry| !entry.lease.is_claimed()) {
            self.hall.desk.log_given_up(&entry.lease.link, entry.id, entry.attempts);
            let message = entry.kept.clone();
            let message = message.map(|kept| Message::of_handler(kept, Arc::clone(&entry.lease), None));
            let verdict = self.hall.desk.give_up(message).await;
            self.settle(entry, verdict, &mut answers).await;
            answers.hand_over();
        }
    }

    /// Answers one message, once it is recorded that it was finished.
    async fn settle(&self, entry: &Open, verdict: std::result::Result<(), Verdict>, answers: &mut Answers) {
        if entry.lease.is_claimed() {
            return;
        }
        let finished = verdict.is_ok();
        let ticket = &entry.ticket;
        if let Some(recording) = ticket.as_ref().filter(|_| finished).and_then(|ticket| ticket.record()) {
            answers.hand_over();
            recording.await;
        }
        if self.send(entry, verdict, answers) {
            ticket.iter().for_each(|ticket| ticket.end(finished));
        }
    }

    /// Returns whether it was to be answered still.
    fn send(&self, entry: &Open, verdict: std::result::Result<(), Verdict>, answers: &mut Answers) -> bool {
        if !entry.lease.claim() {
            return false;
        }
        let desk = &self.hall.desk;
        let (command, outcome) = desk.command(entry.id, entry.attempts, verdict);
        let link = Arc::clone(&entry.lease.link);
        if desk.concerns_flow(outcome) {
            desk.mailbox.send(Event::Handled {
                link,
                answer: command,
                outcome,
                written: None,
            });
        } else {
            answers.push(&link, command);
        }
        true
    }

    /// Runs what may block its thread whenever it is polled.
    async fn watched<F: Future>(&self, future: F) -> F::Output {
        let hall = &*self.hall;
        let mut future = pin!(future);
        poll_fn(|cx| {
            if hall.inbox.poll_begins(self.number) {
                hall.lookout.begin();
            }
            let poll = future.as_mut().poll(cx);
            hall.inbox.poll_ends(self.number);
            poll
        })
        .await
    }
}

impl<H> Hall<H> {
    /// Resolves if waiting for more is of no use: every nsqd has sent all that it may. It wakes nobody when that changes
    /// without a message that arrives; `linger` ends the wait then.
    async fn starved(&self) {
        if !self.state.borrow().links.iter().all(|link| link.is_saturated()) {
            pending::<()>().await;
        }
    }
}

/// What each message's result means.
fn verdicts(entries: &[Open], outcomes: Outcomes) -> Vec<std::result::Result<(), Verdict>> {
    let Some(first) = entries.first() else {
        return Vec::new();
    };
    let results = match outcomes {
        // One error is told once.
        Outcomes::Same(result) => return vec![judge(result, &first.lease.link, first.id); entries.len()],
        Outcomes::Each(results) => results,
    };
    if results.len() != entries.len() {
        tracing::error!(
            "a batch handler gave {} results for {} messages; those without one are requeued",
            results.len(),
            entries.len()
        );
    }
    let mut results = results.into_iter();
    let verdict = |entry: &Open| match results.next() {
        Some(result) => judge(result, &entry.lease.link, entry.id),
        None => Err(Verdict::PLAIN),
    };
    let verdicts = entries.iter().map(verdict).collect();
    // Those beyond the batch are of no use, but their destructors are the user's.
    for result in results {
        let _panicked = caught(|| {
            drop(result);
            Ok(())
        });
    }
    verdicts
}

/// A message that is being handled as part of a batch. If its handler is stopped in the middle, the message is given back.
struct Open {
    id: MessageId,
    attempts: u16,
    lease: Arc<Lease>,
    ticket: Option<Arc<Ticket>>,
    /// For the give-up hook, which may be needed after the handler has taken the message.
    kept: Option<protocol::Message>,
}

impl Open {
    fn grip(&self) -> Grip<'_> {
        self.lease.grip(self.id)
    }
}

/// Tells which messages a batcher is at work on, until it is dropped.
struct AtWork<'a> {
    inbox: &'a Inbox,
    number: usize,
}

impl<'a> AtWork<'a> {
    fn begin(inbox: &'a Inbox, number: usize, entries: &[Open]) -> Self {
        let batch = entries.iter().map(|entry| (entry.lease.link.id, entry.id));
        inbox.set_batch(number, batch.collect());
        Self { inbox, number }
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.inbox.set_batch(self.number, Vec::new());
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.lease.claim() {
            self.lease.link.desk.abandon(&self.lease.link, self.id);
        }
    }
}
