//! What a connection shares with the rest of the consumer: the way back for answers, and counts.

pub(super) mod refusal;
pub(super) mod session;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use tokio::sync::oneshot;

use self::refusal::{AnswerRefused, Watch, Watches, refused_id};
use crate::connection::Negotiated;
use crate::consumer::answer::desk::Desk;
use crate::consumer::flow::{ConnectionId, PauseReason};
use crate::consumer::state::ConnectionStats;
use crate::consumer::supervisor::mailbox::Event;
use crate::error::{Error, ErrorKind, Result, Step};
use crate::protocol::{ErrorCode, MessageId};

/// How many TOUCHes may wait for the socket. Everything else in the queue is bounded by what is in flight; only
/// touches could be sent without end.
const MAX_TOUCHES: usize = 4096;

/// What the ids begin with that [`Link::next_marker`] makes. A message's id is hexadecimal.
const MARKER: &str = "confirm-";

fn is_marker(id: &MessageId) -> bool {
    id.as_bytes().starts_with(MARKER.as_bytes())
}

/// What a connection is told to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::consumer) enum Command {
    Finish(MessageId),
    Requeue {
        id: MessageId,
        delay_ms: u64,
        purpose: Purpose,
    },
    Touch(MessageId),
    /// nsqd has taken the message back, so it is in flight no more and nothing is to be written.
    Forget(MessageId),
    Rdy(u32),
    /// Ask nsqd for no more messages.
    StartClose,
    /// Close once every message is answered and nsqd has confirmed that there will be no more.
    Close,
}

/// Why a message is requeued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::consumer) enum Purpose {
    /// It was not handled.
    Failed,
    /// No handler has begun with it.
    Unstarted,
    /// Its handler was stopped in the middle.
    Abandoned,
}

impl Command {
    /// Gives a message back at once: no attempt of ours was spent on it, or the consumer is ending.
    pub(in crate::consumer) fn give_back(id: MessageId, purpose: Purpose) -> Self {
        Self::Requeue {
            id,
            delay_ms: 0,
            purpose,
        }
    }
}

/// Is told when everything that was queued before it has been written to the socket, or that it will not be.
pub(in crate::consumer) type Written = oneshot::Sender<Result<()>>;

/// One connection, from its handshake to its end. A new connection to the same nsqd is a new link, so that an answer
/// can never reach a connection that did not deliver its message.
#[derive(Debug)]
pub(in crate::consumer) struct Link {
    pub(in crate::consumer) id: ConnectionId,
    pub(in crate::consumer) address: Arc<str>,
    /// What nsqd allows at most.
    pub(in crate::consumer) max_rdy_count: u32,
    /// How long nsqd waits for an answer, from a delivery or a TOUCH on.
    pub(in crate::consumer) msg_timeout: Duration,
    /// How long after the delivery a TOUCH can move that at most.
    pub(in crate::consumer) max_msg_timeout: Duration,
    negotiated: Arc<Negotiated>,
    pub(in crate::consumer) desk: Arc<Desk>,
    outbox: Mutex<Outbox>,
    watches: Arc<Watches>,
    /// How many times an answer was confirmed: see [`Link::next_marker`].
    markers: AtomicU32,
    // Sequentially consistent, all four: the session writes a count and then reads the marks, the supervisor writes the
    // marks and then reads the counts, and one of the two has to see the other's.
    in_flight: AtomicU32,
    received: AtomicU64,
    // Where the supervisor wants to hear of the number in flight. `below` is stored plus one, so that 0 is "nowhere".
    notify_below: AtomicU32,
    notify_above: AtomicU32,
    /// What the flow has decided: RDY, and why it is 0 if it is.
    decided: Mutex<(u32, Option<PauseReason>)>,
}

#[derive(Debug, Default)]
struct Outbox {
    commands: Vec<Command>,
    touches: usize,
    /// Who wants to know when what is queued has been written.
    written: Vec<Written>,
    /// Whether something is queued that is not to wait for company.
    urgent: bool,
    driver: Option<Waker>,
    closed: bool,
}

impl Link {
    pub(in crate::consumer) fn new(
        id: ConnectionId,
        address: Arc<str>,
        negotiated: Arc<Negotiated>,
        desk: Arc<Desk>,
    ) -> Self {
        let granted = &negotiated.identify;
        Self {
            id,
            address,
            max_rdy_count: granted.max_rdy_count,
            msg_timeout: Duration::from_millis(granted.msg_timeout),
            max_msg_timeout: Duration::from_millis(granted.max_msg_timeout),
            negotiated,
            desk,
            outbox: Mutex::default(),
            watches: Arc::default(),
            markers: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            received: AtomicU64::new(0),
            notify_below: AtomicU32::new(0),
            notify_above: AtomicU32::new(u32::MAX),
            decided: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gone(&self) -> Error {
        Error::new(
            ErrorKind::ConnectionLost,
            Step::Handle,
            "the connection that delivered the message is gone; nsqd will deliver it again",
        )
        .at(&self.address)
    }

    /// Whether the connection still takes answers.
    pub(in crate::consumer) fn check(&self) -> Result<()> {
        if self.lock().closed { Err(self.gone()) } else { Ok(()) }
    }

    /// Queues one command.
    pub(in crate::consumer) fn send(&self, command: Command) -> Result<()> {
        let mut outbox = self.lock();
        if outbox.closed {
            return Err(self.gone());
        }
        if matches!(command, Command::Touch(_)) {
            if outbox.touches >= MAX_TOUCHES {
                return Err(Error::new(
                    ErrorKind::NotSent,
                    Step::Handle,
                    "too many TOUCH commands wait to be written",
                )
                .at(&self.address));
            }
            outbox.touches += 1;
        }
        // RDY and CLS hold nsqd back, so each moment counts, and RDY of one connection goes before answers of another.
        outbox.urgent |= matches!(command, Command::Rdy(_) | Command::StartClose);
        outbox.commands.push(command);
        let driver = outbox.driver.take();
        drop(outbox);
        driver.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Resolves once everything that is queued now has been written to the socket.
    pub(in crate::consumer) fn written(&self) -> oneshot::Receiver<Result<()>> {
        let (written, receiver) = oneshot::channel();
        self.tell_when_written(written);
        receiver
    }

    pub(in crate::consumer) fn tell_when_written(&self, written: Written) {
        let mut outbox = self.lock();
        if outbox.closed {
            drop(outbox);
            // Who has stopped waiting need not be told.
            let _nobody_waits = written.send(Err(self.gone()));
            return;
        }
        // One for each answer given by hand, so it is bounded by what is in flight.
        outbox.written.push(written);
        let driver = outbox.driver.take();
        drop(outbox);
        driver.into_iter().for_each(Waker::wake);
    }

    /// Watches a message for nsqd's refusal of an answer to it, and for the connection's end.
    pub(in crate::consumer) fn watch(&self, id: MessageId) -> Watch {
        self.watches.watch(id)
    }

    /// A message is known to be lost although nsqd has refused nothing: tells whoever watches it.
    pub(in crate::consumer) fn lose(&self, id: MessageId, error: Error) {
        self.watches.refuse(id, error);
    }

    /// nsqd has delivered this message. If somebody is still at work on an earlier delivery of it on this connection, that
    /// one is lost: to nsqd, only the new one is in flight.
    #[inline]
    pub(in crate::consumer) fn handle_delivery(&self, id: MessageId) {
        if self.watches.any() {
            self.handle_redelivery(id);
        }
    }

    #[cold]
    fn handle_redelivery(&self, id: MessageId) {
        let error = Error::new(
            ErrorKind::TimedOut,
            Step::Handle,
            "msg_timeout has passed: nsqd has taken the message back and delivered it again on the same connection",
        );
        self.watches.refuse(id, error.at(&self.address));
    }

    /// nsqd has refused FIN, REQ or TOUCH.
    pub(in crate::consumer) fn refused(&self, code: ErrorCode, text: &str) {
        let id = refused_id(text);
        let explained = format!(
            "{text}: nsqd has taken the message back, because it was not answered within msg_timeout ({:?})",
            self.msg_timeout
        );
        if let Some(id) = id {
            let error = Error::rejected(Step::Handle, &explained).at(&self.address);
            self.watches.refuse(id, error);
            if is_marker(&id) {
                return;
            }
        }
        tracing::warn!(topic = self.desk.topic, channel = self.desk.channel, nsqd = %self.address, "{explained}");
        self.desk.counts.refused.fetch_add(1, Ordering::Relaxed);
        self.desk.mailbox.send(Event::Refused(AnswerRefused {
            nsqd: Arc::clone(&self.address),
            id,
            code,
            text: text.to_owned(),
        }));
    }

    /// An id that no message has. nsqd refuses a TOUCH of it, after it has carried out everything sent before: the one
    /// answer that it gives to a subscribed client.
    pub(in crate::consumer) fn next_marker(&self) -> MessageId {
        let number = self.markers.fetch_add(1, Ordering::Relaxed);
        let mut id = [0; MessageId::LEN];
        id.copy_from_slice(format!("{MARKER}{number:08x}").as_bytes());
        MessageId::new(id)
    }

    /// Tells nsqd to send nothing more, and the session to close once everything is answered.
    pub(in crate::consumer) fn leave(&self) {
        for command in [Command::StartClose, Command::Close] {
            // A connection that is gone has nothing to leave.
            let _lost_with_its_connection = self.send(command);
        }
    }

    /// Queues the answers of a group of messages and leaves the vector empty. Returns whether the driver was asleep
    /// and has been woken.
    pub(in crate::consumer) fn send_all(&self, answers: &mut Vec<Command>) -> bool {
        let mut outbox = self.lock();
        if outbox.closed {
            tracing::debug!(nsqd = %self.address, count = answers.len(), "answers come too late, the connection is gone");
            self.desk
                .counts
                .unsent
                .fetch_add(answers.len() as u64, Ordering::Relaxed);
            answers.clear();
            return false;
        }
        outbox.commands.append(answers);
        let driver = outbox.driver.take();
        drop(outbox);
        driver.map(Waker::wake).is_some()
    }

    /// Swaps what is queued into `commands`, which is empty. With fewer than `at_least` queued, none of them urgent,
    /// leaves them.
    pub(in crate::consumer) fn take(
        &self,
        commands: &mut Vec<Command>,
        written: &mut Vec<Written>,
        at_least: usize,
        waker: &Waker,
    ) -> Queue {
        let mut outbox = self.lock();
        written.append(&mut outbox.written);
        if outbox.commands.is_empty() {
            if !written.is_empty() {
                return Queue::Taken;
            }
            match &mut outbox.driver {
                Some(driver) => driver.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
            return Queue::Empty;
        }
        if outbox.commands.len() < at_least && !outbox.urgent {
            outbox.written.append(written);
            return Queue::Few;
        }
        std::mem::swap(&mut outbox.commands, commands);
        outbox.touches = 0;
        outbox.urgent = false;
        Queue::Taken
    }

    /// The connection has ended: commands are refused from now on. Returns how many answers were still queued.
    pub(in crate::consumer) fn end(&self) -> usize {
        let mut outbox = self.lock();
        outbox.closed = true;
        outbox.driver = None;
        let unsent = std::mem::take(&mut outbox.commands);
        let waiting = std::mem::take(&mut outbox.written);
        drop(outbox);
        let gone = self.gone();
        for written in waiting {
            // Who has stopped waiting need not be told.
            let _nobody_waits = written.send(Err(gone.clone()));
        }
        self.watches.end(&gone);
        self.desk.forget(self);
        let answers = unsent.iter();
        answers
            .filter(|command| matches!(command, Command::Finish(_) | Command::Requeue { .. }))
            .count()
    }

    /// Gives back what a burst has made the queue grow to.
    pub(in crate::consumer) fn shrink(&self) {
        let mut outbox = self.lock();
        if outbox.commands.is_empty() {
            outbox.commands = Vec::new();
        }
    }

    /// How many messages are delivered and not answered.
    pub(in crate::consumer) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// How many messages have been delivered so far.
    pub(in crate::consumer) fn received(&self) -> u64 {
        self.received.load(Ordering::SeqCst)
    }

    /// Whether nsqd sends nothing more until something is answered or RDY is raised.
    pub(in crate::consumer) fn is_saturated(&self) -> bool {
        let (rdy, _) = *self.decided.lock().unwrap_or_else(PoisonError::into_inner);
        self.in_flight() >= rdy
    }

    /// For whoever asks: what the flow has decided. Returns whether it is something new.
    pub(in crate::consumer) fn set_decided(&self, rdy: u32, paused: Option<PauseReason>) -> bool {
        let mut decided = self.decided.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *decided, (rdy, paused)) != (rdy, paused)
    }

    pub(in crate::consumer) fn stats(&self) -> ConnectionStats {
        let (rdy, paused) = *self.decided.lock().unwrap_or_else(PoisonError::into_inner);
        ConnectionStats {
            nsqd: Arc::clone(&self.address),
            rdy,
            paused,
            in_flight: self.in_flight(),
            received: self.received(),
            negotiated: Arc::clone(&self.negotiated),
        }
    }

    /// The session's count, once per turn.
    pub(in crate::consumer) fn set_in_flight(&self, in_flight: u32, received: u64) {
        self.in_flight.store(in_flight, Ordering::SeqCst);
        self.received.store(received, Ordering::SeqCst);
        let below = in_flight < self.notify_below.load(Ordering::SeqCst);
        let above = in_flight > self.notify_above.load(Ordering::SeqCst);
        if below || above {
            self.notify_below.store(0, Ordering::SeqCst);
            self.notify_above.store(u32::MAX, Ordering::SeqCst);
            self.desk.mailbox.notify();
        }
    }

    /// The supervisor wants to hear once the number in flight is at or below the one, or above the other.
    pub(in crate::consumer) fn notify_at(&self, below: Option<u32>, above: Option<u32>) {
        self.notify_below
            .store(below.map_or(0, |below| below.saturating_add(1)), Ordering::SeqCst);
        self.notify_above.store(above.unwrap_or(u32::MAX), Ordering::SeqCst);
    }
}

/// What [`Link::take`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::consumer) enum Queue {
    /// Nothing; the next command wakes the driver.
    Empty,
    /// Fewer than asked for.
    Few,
    /// All of it is in the caller's vector.
    Taken,
}
