//! Where the answers to messages are decided on, whoever gives them: a worker for its handler, or the holder of a message
//! by hand.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use slab::Slab;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::dead_letter::DeadLetters;
use super::keep_alive::Patience;
use crate::consumer::duplicates::Duplicates;
use crate::consumer::flow::Outcome;
use crate::consumer::handler::{BoxError, Verdict};
use crate::consumer::link::refusal::AnswerRefused;
use crate::consumer::link::{Command, Link, Purpose};
use crate::consumer::message::Message;
use crate::consumer::state::{Counts, MessageRef};
use crate::consumer::supervisor::mailbox::{Event, Mailbox};
use crate::consumer::work::panics::{catch_panic, caught};
use crate::error::{Error, ErrorKind, Result};
use crate::name::{Channel, Topic};
use crate::protocol::MessageId;

/// The longest delay that nsqd understands: it counts in nanoseconds, and takes what does not fit for no delay at all.
const LONGEST_REQUEUE_MS: u64 = i64::MAX as u64 / 1_000_000;

/// How often it is told at most that messages are late.
const TELL_LATE_EVERY: Duration = Duration::from_secs(60);

/// What is called with a message that is given up.
pub(in crate::consumer) type GiveUpHook =
    Arc<dyn Fn(Message) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// What is called when nsqd has refused an answer.
pub(in crate::consumer) type RefusedHook = Arc<dyn Fn(&AnswerRefused) + Send + Sync>;

/// What becomes of messages that are not handled.
#[derive(Clone)]
pub(in crate::consumer) struct Rules {
    /// 0 is no limit.
    pub(in crate::consumer) max_attempts: u16,
    pub(in crate::consumer) default_requeue_delay: Duration,
    pub(in crate::consumer) max_requeue_delay: Duration,
    pub(in crate::consumer) give_up: Option<GiveUpHook>,
    pub(in crate::consumer) dead_letters: Option<DeadLetters>,
    pub(in crate::consumer) patience: Patience,
    pub(in crate::consumer) answer_refused: Option<RefusedHook>,
}

impl Default for Rules {
    /// go-nsq's.
    fn default() -> Self {
        Self {
            max_attempts: 5,
            default_requeue_delay: Duration::from_secs(90),
            max_requeue_delay: Duration::from_secs(15 * 60),
            give_up: None,
            dead_letters: None,
            patience: Patience::default(),
            answer_refused: None,
        }
    }
}

impl Rules {
    /// go-nsq's: the default delay times the attempts so far, up to the maximum.
    fn requeue_delay(&self, attempts: u16) -> Duration {
        self.default_requeue_delay
            .saturating_mul(u32::from(attempts))
            .min(self.max_requeue_delay)
    }

    /// Whether a message that is given up is still of use to anybody.
    #[inline]
    pub(in crate::consumer) fn wants_given_up(&self) -> bool {
        self.give_up.is_some() || self.dead_letters.is_some()
    }

    /// Whether a message that was delivered this often is not to be handled any more.
    #[inline]
    pub(in crate::consumer) fn is_exceeded_by(&self, attempts: u16) -> bool {
        self.max_attempts > 0 && attempts > self.max_attempts
    }
}

/// What all messages, workers and connections of a consumer share.
#[derive(Default)]
pub(in crate::consumer) struct Desk {
    /// Whose it is, for the log.
    pub(in crate::consumer) topic: String,
    pub(in crate::consumer) channel: String,
    pub(in crate::consumer) mailbox: Mailbox,
    pub(in crate::consumer) counts: Counts,
    pub(in crate::consumer) rules: Rules,
    /// Recognises messages that were finished before, if the user wants that.
    pub(in crate::consumer) duplicates: Option<Arc<Duplicates>>,
    /// Whether the flow wants to hear of successes: only while it backs off.
    pub(in crate::consumer) reports_success: AtomicBool,
    /// The messages that are answered by hand, and are not yet.
    held: Mutex<Books>,
    abandoned: Mutex<Vec<MessageRef>>,
    /// When it was told last that messages are late.
    late_told: Mutex<Option<Instant>>,
    /// Whether the supervisor waits for `held` to become empty.
    ending: AtomicBool,
}

#[derive(Debug, Default)]
struct Books {
    held: Slab<(u64, Held)>,
    claims: u64,
}

/// A message that somebody holds and is to answer.
#[derive(Debug)]
pub(in crate::consumer) struct Held {
    pub(in crate::consumer) link: Arc<Link>,
    pub(in crate::consumer) id: MessageId,
}

/// The right to answer a message by hand. A key is used again once its message is answered, so it goes with a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::consumer) struct Claim {
    key: usize,
    number: u64,
}

impl Desk {
    pub(in crate::consumer) fn new(
        topic: &Topic,
        channel: &Channel,
        rules: Rules,
        duplicates: Option<Arc<Duplicates>>,
    ) -> Self {
        Self {
            topic: topic.to_string(),
            channel: channel.to_string(),
            rules,
            duplicates,
            ..Self::default()
        }
    }

    /// What nsqd is told of a message, and what the flow is.
    pub(in crate::consumer) fn command(
        &self,
        id: MessageId,
        attempts: u16,
        verdict: Result<(), Verdict>,
    ) -> (Command, Outcome) {
        let Err(Verdict::Requeue { delay, backoff }) = verdict else {
            return (Command::Finish(id), Outcome::Success);
        };
        let delay = delay.unwrap_or_else(|| self.rules.requeue_delay(attempts));
        let delay_ms = u64::try_from(delay.as_millis())
            .unwrap_or(u64::MAX)
            .min(LONGEST_REQUEUE_MS);
        let outcome = if backoff {
            Outcome::Failure
        } else {
            Outcome::FailureWithoutBackoff
        };
        let purpose = Purpose::Failed;
        (Command::Requeue { id, delay_ms, purpose }, outcome)
    }

    /// Whether the flow has to hear of this outcome, and before nsqd does.
    #[inline]
    pub(in crate::consumer) fn concerns_flow(&self, outcome: Outcome) -> bool {
        outcome != Outcome::Success || self.reports_success.load(Ordering::Relaxed)
    }

    /// Sends an answer given by hand. What is returned resolves once it is written, if it could be queued.
    pub(in crate::consumer) fn answer(
        &self,
        link: &Arc<Link>,
        id: MessageId,
        attempts: u16,
        verdict: Result<(), Verdict>,
    ) -> Result<Option<oneshot::Receiver<Result<()>>>> {
        let (command, outcome) = self.command(id, attempts, verdict);
        if !self.concerns_flow(outcome) {
            return link.send(command).map(|()| None);
        }
        let (written, receiver) = oneshot::channel();
        self.mailbox.send(Event::Handled {
            link: Arc::clone(link),
            answer: command,
            outcome,
            written: Some(written),
        });
        Ok(Some(receiver))
    }

    /// Gives a message up: calls the hook with it and publishes it to the dead-letter topic, where there are such. A hook
    /// that panics has not dealt with the message, and neither has a publish that is not confirmed, so it is to be requeued.
    pub(in crate::consumer) async fn give_up(&self, message: Option<Message>) -> Result<(), Verdict> {
        let body = message.as_ref().map(|message| message.body().clone());
        if let (Some(hook), Some(message)) = (&self.rules.give_up, message) {
            let called = catch_panic(|| {
                let calling = hook(message);
                async {
                    calling.await;
                    Ok::<(), BoxError>(())
                }
            });
            if let Err(error) = called.await {
                tracing::error!(
                    topic = self.topic, channel = self.channel, %error,
                    "the give-up hook failed; the message is requeued"
                );
                return Err(Verdict::PLAIN);
            }
        }
        if let (Some(dead_letters), Some(body)) = (&self.rules.dead_letters, body) {
            dead_letters.publish(body).await.map_err(|_logged| Verdict::PLAIN)?;
        }
        self.counts.given_up.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Tells in the log that a message is given up, and why.
    pub(in crate::consumer) fn log_given_up(&self, link: &Link, id: MessageId, attempts: u16) {
        let (topic, channel, max_attempts) = (&*self.topic, &*self.channel, self.rules.max_attempts);
        if self.rules.is_exceeded_by(attempts) {
            tracing::warn!(
                topic, channel, nsqd = %link.address, %id, attempts, max_attempts, msg_timeout = ?link.msg_timeout,
                "message is given up, since it was delivered too often: its handler fails, or takes longer than msg_timeout"
            );
        } else {
            tracing::warn!(topic, channel, nsqd = %link.address, %id, attempts, "message is given up, as its handler asked");
        }
    }

    /// A message was begun or answered when nsqd's patience was over, this long after its delivery.
    #[cold]
    pub(in crate::consumer) fn note_late(&self, link: &Link, id: MessageId, after: Duration) {
        let late = self.counts.late.fetch_add(1, Ordering::Relaxed) + 1;
        let now = Instant::now();
        let mut told = self.late_told.lock().unwrap_or_else(PoisonError::into_inner);
        // It happens to every message once it happens to one.
        if told.is_some_and(|at| now.saturating_duration_since(at) < TELL_LATE_EVERY) {
            return;
        }
        *told = Some(now);
        drop(told);
        tracing::warn!(
            topic = self.topic, channel = self.channel, nsqd = %link.address, %id, ?after, msg_timeout = ?link.msg_timeout, late,
            "messages are handled too late: nsqd delivers them again, and each delivery counts as an attempt. Lower \
             max_in_flight or raise concurrency if they wait here for a handler, else raise msg_timeout or use keep_alive"
        );
    }

    /// nsqd has taken a message back, this long after its delivery, and it was at work still: nothing is to be answered.
    /// The caller had the right to answer it.
    pub(in crate::consumer) fn lose(&self, link: &Arc<Link>, id: MessageId, error: &Error, after: Duration) {
        if error.kind() == ErrorKind::ConnectionLost {
            // That is no handler's fault, and the loss of the connection is told once, with the number of its messages.
            tracing::debug!(
                topic = self.topic, channel = self.channel, nsqd = %link.address, %id,
                "the message is lost with its connection; what handled it is stopped"
            );
            self.counts.unsent.fetch_add(1, Ordering::Relaxed);
            return;
        }
        tracing::warn!(
            topic = self.topic, channel = self.channel, nsqd = %link.address, %id, ?after,
            msg_timeout = ?link.msg_timeout, max_msg_timeout = ?link.max_msg_timeout,
            error = error as &dyn std::error::Error, "the message is lost; what handled it is stopped"
        );
        self.counts.timed_out.fetch_add(1, Ordering::Relaxed);
        self.mailbox.send(Event::Handled {
            link: Arc::clone(link),
            answer: Command::Forget(id),
            outcome: Outcome::Failure,
            written: None,
        });
    }

    /// Gives a message back whose handling was stopped in the middle, and keeps it for the report.
    pub(in crate::consumer) fn abandon(&self, link: &Link, id: MessageId) {
        self.abandoned().push(MessageRef {
            nsqd: Arc::clone(&link.address),
            id,
        });
        // On a lost connection nsqd takes the message back by itself.
        let _lost_with_its_connection = link.send(Command::give_back(id, Purpose::Abandoned));
    }

    /// The messages whose handling was stopped. It is bounded by what is in flight, since only the consumer's end stops
    /// handlers.
    pub(in crate::consumer) fn abandoned(&self) -> MutexGuard<'_, Vec<MessageRef>> {
        self.abandoned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls the hook for refused answers, if there is one.
    pub(in crate::consumer) fn tell_refused(&self, refused: &AnswerRefused) {
        let Some(hook) = &self.rules.answer_refused else { return };
        let called = caught(|| {
            hook(refused);
            Ok(())
        });
        if let Err(error) = called {
            tracing::error!(topic = self.topic, channel = self.channel, %error, "the hook for refused answers failed");
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on somebody else than a handler's result answers this message. It is bounded by what is in flight.
    pub(in crate::consumer) fn hold(&self, link: &Arc<Link>, id: MessageId) -> Claim {
        let mut books = self.books();
        books.claims += 1;
        let number = books.claims;
        let link = Arc::clone(link);
        let key = books.held.insert((number, Held { link, id }));
        Claim { key, number }
    }

    /// Gives a claim up. Whether it was good: not if the connection is gone or the consumer has given the message back.
    pub(in crate::consumer) fn release(&self, claim: Claim) -> bool {
        let mut books = self.books();
        let good = books
            .held
            .get(claim.key)
            .is_some_and(|(number, _)| *number == claim.number);
        if good {
            books.held.remove(claim.key);
        }
        let was_last = good && books.held.is_empty();
        drop(books);
        if was_last && self.ending.load(Ordering::SeqCst) {
            self.mailbox.notify();
        }
        good
    }

    /// Whether messages are held by hand. From the first call on, the supervisor is notified when the last is answered.
    pub(in crate::consumer) fn holds_any(&self) -> bool {
        self.ending.store(true, Ordering::SeqCst);
        !self.books().held.is_empty()
    }

    /// Takes the right to answer from everybody who holds a message.
    pub(in crate::consumer) fn take_held(&self) -> Vec<Held> {
        self.books().held.drain().map(|(_, held)| held).collect()
    }

    /// Forgets what a connection has delivered: it is gone, and nsqd delivers these messages again.
    pub(in crate::consumer) fn forget(&self, link: &Link) {
        self.books().held.retain(|_, (_, held)| held.link.id != link.id);
    }
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk")
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}
