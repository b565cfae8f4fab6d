//! A message as a handler sees it.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::answer::answering::{Answering, Sent};
use super::answer::desk::Claim;
use super::answer::keep_alive::{Cut, Grip, Patience};
use super::answer::lease::Lease;
use super::duplicates::Ticket;
use super::handler::Verdict;
use super::link::Command;
use crate::error::{Error, ErrorKind, Result, Step};
use crate::protocol::{self, MessageId};

/// A message delivered by nsqd.
///
/// # Who answers it
/// nsqd waits for one answer to each message, FIN or REQ. There is one way to give it for each way to get the message:
///
/// * A [`Handler`](super::Handler)'s result answers its message. The message itself need not be answered.
/// * A message of a [`MessageStream`](super::MessageStream), or one that was [taken over](Self::take_over) from a handler, is
///   *owned*: [`finish`](Self::finish), [`requeue`](Self::requeue) or [`give_up`](Self::give_up) answers it. They consume
///   the message, so there is no second answer.
///
/// # Drop
/// An owned message that is dropped unanswered is requeued with the default delay and counts as a failure, since whoever
/// dropped it has not handled it. Dropping the message of a handler does nothing.
pub struct Message {
    content: protocol::Message,
    lease: Arc<Lease>,
    duty: Duty,
    /// Keeps other deliveries of the same message away, if duplicates are to be skipped.
    ticket: Option<Arc<Ticket>>,
}

/// Who is to answer a message.
enum Duty {
    /// The handler's result, unless somebody else claims the lease.
    Handler,
    /// Whoever holds the message.
    Owned(Claim),
    /// Nobody: it is answered.
    Answered,
}

impl Message {
    /// A message that a handler's result answers.
    #[inline]
    pub(super) fn of_handler(content: protocol::Message, lease: Arc<Lease>, ticket: Option<Arc<Ticket>>) -> Self {
        Self {
            content,
            lease,
            duty: Duty::Handler,
            ticket,
        }
    }

    /// A message that whoever gets it answers.
    pub(super) fn owned(content: protocol::Message, lease: Arc<Lease>, ticket: Option<Arc<Ticket>>) -> Self {
        let claim = lease.link.desk.hold(&lease.link, content.id);
        Self {
            content,
            lease,
            duty: Duty::Owned(claim),
            ticket,
        }
    }

    /// What was published.
    ///
    /// The bytes are a slice of the buffer that was read from the connection (up to 64 KiB, or the message's size if
    /// it is larger), and keeping them keeps all of it: copy them with `Bytes::copy_from_slice` to keep a small body
    /// for long.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.content.body
    }

    /// What was published, without a copy. See [`body`](Self::body) on keeping it.
    ///
    /// The message is dropped: one that is owned is requeued.
    #[must_use]
    pub fn into_body(mut self) -> Bytes {
        std::mem::take(&mut self.content.body)
    }

    /// The id, unique within a topic of one nsqd.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.content.id
    }

    /// How often nsqd has delivered this message, this time included: 1 at first.
    #[must_use]
    pub fn attempts(&self) -> u16 {
        self.content.attempts
    }

    /// When nsqd took the message in, by nsqd's clock.
    #[must_use]
    pub fn timestamp(&self) -> SystemTime {
        let nanos = self.content.timestamp;
        let distance = Duration::from_nanos(nanos.unsigned_abs());
        let time = if nanos < 0 {
            SystemTime::UNIX_EPOCH.checked_sub(distance)
        } else {
            SystemTime::UNIX_EPOCH.checked_add(distance)
        };
        time.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// The address of the nsqd that delivered the message, as configured or discovered.
    #[must_use]
    pub fn nsqd(&self) -> &str {
        &self.lease.link.address
    }

    /// How long nsqd will wait for the answer from now on; zero once it has taken the message back.
    ///
    /// It is nsqd's `msg_timeout` from the delivery or the last [`touch`](Self::touch) on, and at most its
    /// `max-msg-timeout` from the delivery on, by this host's clock and without the time that the message took to come
    /// here: nsqd may be earlier by that.
    #[must_use]
    pub fn time_left(&self) -> Duration {
        self.grip().time_left()
    }

    fn grip(&self) -> Grip<'_> {
        Grip {
            // Whoever holds the message has its answer in their own hands.
            lease: None,
            ..self.lease.grip(self.content.id)
        }
    }

    /// Makes nsqd's timeout for this message begin anew (TOUCH), for a handler that takes long. nsqd allows it up to
    /// its `max-msg-timeout` (15 min by default) after the delivery.
    ///
    /// It returns when the command is queued; nsqd answers it only if it is too late (see [`lost`](Self::lost)).
    ///
    /// # Errors
    /// [`ErrorKind::ConnectionLost`] if the connection that delivered the message
    /// is gone: nsqd will deliver it again whatever this handler does.
    /// [`ErrorKind::NotSent`] if thousands of touches wait already.
    pub fn touch(&self) -> Result<()> {
        self.grip().touch()
    }

    /// Runs a future and touches the message meanwhile, whenever half of nsqd's `msg_timeout` has passed, so that nsqd does
    /// not take it back: for work that may take longer than that. If the message is lost all the same, the future is
    /// dropped.
    ///
    /// For a handler as a whole, [`ConsumerBuilder::keep_alive`](super::ConsumerBuilder::keep_alive) does this; for messages
    /// that were [taken over](Self::take_over), nobody does but this.
    ///
    /// ```
    /// use async_nsq::{BoxError, Message};
    ///
    /// async fn import(message: Message) -> Result<(), BoxError> {
    ///     let message = message.take_over();
    ///     message.keep_alive_while(load(message.body())).await??;
    ///     message.finish().await?;
    ///     Ok(())
    /// }
    /// # async fn load(_: &[u8]) -> Result<(), BoxError> { Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The message is lost, and nothing answers it any more: [`ErrorKind::TimedOut`] once nsqd's
    /// `max-msg-timeout` has passed since the delivery or the message has come again,
    /// [`ErrorKind::Rejected`] if nsqd has refused the TOUCH,
    /// [`ErrorKind::ConnectionLost`] if the connection has ended. In each case nsqd delivers
    /// the message again. The first two count in the statistics as timed out and make the consumer back off.
    ///
    /// # Cancel safety
    /// Dropping the future drops the given one and ends the touches; the message stays as it is.
    pub async fn keep_alive_while<F: Future>(&self, future: F) -> Result<F::Output> {
        let patience = Patience {
            keep_alive: true,
            handler_timeout: None,
        };
        match self.grip().keep(patience, pin!(future)).await {
            Ok(output) => Ok(output),
            Err(Cut::Lost(error)) => {
                if self.claim() {
                    self.grip().lose(&error);
                }
                Err(error)
            }
            Err(Cut::TimedOut(_)) => unreachable!("there is no timeout"),
        }
    }

    /// Resolves once this message is known to be lost to this consumer, with the reason: nsqd has refused a FIN, REQ or
    /// TOUCH of it because its `msg_timeout` had passed, the connection has ended, or the message has come again on the same
    /// connection. Where it is kept alive, also once nsqd's `max-msg-timeout` has passed. In each case nsqd delivers it
    /// again, here or elsewhere. As long as nothing of this happens, it waits.
    ///
    /// The future borrows nothing and may outlive the message.
    pub fn lost(&self) -> impl Future<Output = Error> + Send + use<> {
        let mut watch = self.lease.link.watch(self.content.id);
        async move { watch.refused().await }
    }

    /// Takes the message out of its handler's hands: the handler's result does not answer it any more, whoever holds it
    /// does (go-nsq's `DisableAutoResponse`). It counts as in flight until then.
    ///
    /// A message that is owned already stays as it is.
    ///
    /// ```
    /// use async_nsq::{BoxError, Message};
    /// use tokio::sync::mpsc;
    ///
    /// async fn hand_on(message: Message, writer: mpsc::Sender<Message>) -> Result<(), BoxError> {
    ///     // If the writer is gone, the message comes back in the error, is dropped, and so is requeued.
    ///     writer.send(message.take_over()).await?;
    ///     Ok(())
    /// }
    /// ```
    #[must_use = "a message that is dropped unanswered is requeued"]
    pub fn take_over(mut self) -> Self {
        if matches!(self.duty, Duty::Handler) {
            let link = &self.lease.link;
            self.duty = if self.lease.claim() {
                Duty::Owned(link.desk.hold(link, self.content.id))
            } else {
                Duty::Answered
            };
        }
        self
    }

    /// Finishes the message (FIN).
    ///
    /// FIN is queued when this is called; what is returned need not be awaited, it only tells when FIN is written. In a
    /// handler, the handler's result does not answer the message any more.
    ///
    /// # Errors
    /// When awaited: [`ErrorKind::ConnectionLost`] if the connection that delivered the
    /// message is gone, [`ErrorKind::Shutdown`] if the consumer has given the message
    /// back. In both cases nsqd delivers it again.
    ///
    /// NSQ does not confirm a FIN. One that comes after `msg_timeout` is refused later: see
    /// [`on_answer_refused`](super::ConsumerBuilder::on_answer_refused) and [`finish_confirmed`](Self::finish_confirmed).
    ///
    /// # Cancel safety
    /// Dropping what is returned changes nothing.
    pub fn finish(self) -> Answering {
        self.answer(Ok(()))
    }

    /// Requeues the message (REQ) after `delay`, or the consumer's default delay times the attempts if it is `None`. It
    /// counts as a failure, on which the consumer backs off.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    ///
    /// # Cancel safety
    /// Dropping what is returned changes nothing.
    pub fn requeue(self, delay: impl Into<Option<Duration>>) -> Answering {
        let delay = delay.into();
        self.answer(Err(Verdict::Requeue { delay, backoff: true }))
    }

    /// Requeues the message like [`requeue`](Self::requeue), but it does not count as a failure.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    ///
    /// # Cancel safety
    /// Dropping what is returned changes nothing.
    pub fn requeue_without_backoff(self, delay: impl Into<Option<Duration>>) -> Answering {
        let delay = delay.into();
        self.answer(Err(Verdict::Requeue { delay, backoff: false }))
    }

    /// Finishes the message and waits until nsqd has carried it out.
    ///
    /// NSQ has no answer to FIN but a refusal that comes later or never. So this sends a TOUCH of a message that does not
    /// exist after it: nsqd refuses that, and when the refusal arrives, FIN has been carried out or was refused
    /// before. It costs a round trip and a line in nsqd's log for each message.
    ///
    /// # Errors
    /// Those of [`finish`](Self::finish), and [`ErrorKind::Rejected`] with
    /// [`FinFailed`](protocol::ErrorCode::FinFailed) if FIN came too late: nsqd has delivered the message again.
    ///
    /// # Cancel safety
    /// FIN is queued at the first poll. Dropping the future later changes nothing.
    pub async fn finish_confirmed(self) -> Result<()> {
        let link = Arc::clone(&self.lease.link);
        let mut refusal = link.watch(self.content.id);
        self.finish().await?;
        let marker = link.next_marker();
        let mut confirmation = link.watch(marker);
        link.send(Command::Touch(marker))?;
        tokio::select! {
            biased;
            refused = refusal.refused() => Err(refused),
            confirmed = confirmation.refused() => match confirmed.kind() {
                ErrorKind::Rejected => Ok(()),
                _ => Err(confirmed),
            },
        }
    }

    /// Gives the message up: the consumer's give-up hook is called with it, it is published to the dead-letter topic, where
    /// there are such, and it is finished. If the hook panics or the publish is not confirmed, it is requeued.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    ///
    /// # Cancel safety
    /// Dropping the future before it is done drops the message, which requeues it.
    pub async fn give_up(self) -> Result<()> {
        let message = self.take_over();
        let giving_up = message.lease.link.desk.give_up(Some(message.copy()));
        let verdict = if message.lease.link.desk.rules.patience.keep_alive {
            message.keep_alive_while(giving_up).await?
        } else {
            giving_up.await
        };
        message.answer(verdict).await
    }

    /// The same message for a hook, which does not answer it.
    fn copy(&self) -> Self {
        Self {
            content: self.content.clone(),
            lease: Arc::clone(&self.lease),
            duty: Duty::Answered,
            ticket: None,
        }
    }

    fn answer(self, verdict: Result<(), Verdict>) -> Answering {
        let ticket = self.ticket.as_ref().filter(|_| verdict.is_ok());
        match ticket.and_then(|ticket| Some((ticket.runtime().clone(), ticket.record()?))) {
            None => self.answer_now(verdict),
            Some((runtime, recording)) => {
                let message = self.take_over();
                let (written, told) = oneshot::channel();
                runtime.spawn(async move {
                    recording.await;
                    // Who has stopped waiting need not be told.
                    let _nobody_waits = written.send(message.answer_now(verdict).await);
                });
                Answering::new(Sent::Told(told))
            }
        }
    }

    fn answer_now(mut self, verdict: Result<(), Verdict>) -> Answering {
        let ticket = self.ticket.take();
        let finished = verdict.is_ok();
        let (good, answering) = self.settle(verdict);
        if let Some(ticket) = ticket {
            if good {
                ticket.end(finished);
            } else {
                ticket.end_unanswered(finished);
            }
        }
        answering
    }

    /// Whether the caller is the one to answer it; nobody else is then.
    fn claim(&self) -> bool {
        match &self.duty {
            Duty::Handler => self.lease.claim(),
            Duty::Owned(claim) => self.lease.link.desk.release(*claim),
            Duty::Answered => false,
        }
    }

    /// Answers the message, unless somebody else has. Returns whether it was for the caller to do.
    fn settle(&mut self, verdict: Result<(), Verdict>) -> (bool, Answering) {
        let owned = matches!(self.duty, Duty::Owned(_));
        let good = self.claim();
        if good && owned {
            // For a handler's message its worker does so.
            self.grip().note_if_late();
        }
        self.duty = Duty::Answered;
        if !good {
            return (false, Answering::failed(self.no_longer_ours()));
        }
        let sent = self
            .lease
            .link
            .desk
            .answer(&self.lease.link, self.content.id, self.content.attempts, verdict);
        let answering = match sent {
            Ok(None) => Answering::new(Sent::Queued(Arc::clone(&self.lease.link))),
            Ok(Some(written)) => Answering::new(Sent::Told(written)),
            Err(error) => Answering::failed(error),
        };
        (true, answering)
    }

    /// Why a message cannot be answered although it was not, by its holder.
    fn no_longer_ours(&self) -> Error {
        match self.lease.link.check() {
            Err(gone) => gone,
            Ok(()) => Error::new(
                ErrorKind::Shutdown,
                Step::Handle,
                "the message is answered already: by its handler's result; or the consumer has given it back at its end, or \
                 nsqd has taken it back",
            )
            .at(&self.lease.link.address),
        }
    }
}

impl Drop for Message {
    #[inline]
    fn drop(&mut self) {
        if let Duty::Owned(claim) = self.duty {
            let desk = &self.lease.link.desk;
            if desk.release(claim) {
                // On a lost connection nsqd takes the message back by itself.
                let _lost_with_its_connection = desk.answer(
                    &self.lease.link,
                    self.content.id,
                    self.content.attempts,
                    Err(Verdict::PLAIN),
                );
                self.ticket.iter().for_each(|ticket| ticket.end(false));
            }
        }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("id", &self.content.id)
            .field("attempts", &self.content.attempts)
            .field("nsqd", &self.lease.link.address)
            .field("body_len", &self.content.body.len())
            .finish_non_exhaustive()
    }
}
