//! What a consumer's connection does: hands messages over and encodes their answers.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep};

use super::{Command, Link, Purpose, Queue, Written};
use crate::connection::{Queued, Role, WriteBuffer};
use crate::consumer::work::inbox::Inbox;
use crate::error::{Error, ErrorKind, Result, Step};
use crate::protocol::{self, ErrorCode, Message, command};

/// With fewer answers than this waiting while handlers are still out, the driver lets the others have a pass first:
/// many handlers that wake in one tick then share a write. A lone message is never held up, since then nothing is out.
const WORTH_A_WRITE: usize = 16;

/// What nsqd may deliver beyond what it was ever allowed at once: everything in flight may time out and be delivered
/// again before a lowered RDY reaches it. More than this is not nsqd's doing.
const OVERRUN: u32 = 2;

/// Room for deliveries that crossed a lowered RDY on the way.
const OVERRUN_SLACK: u32 = 16;

/// How long a connection stays open once nsqd has confirmed CLS and everything is answered. The task of nsqd's that sends
/// messages hears of CLS after the one that confirms it, so one message may still follow. Left unread it would come
/// again only after `msg_timeout`.
const STRAGGLER: Duration = Duration::from_millis(10);

/// How long a connection on which everything is answered waits for nsqd to confirm CLS. Without an end to that, an nsqd
/// that sends heartbeats and nothing else would keep the connection long after it was removed.
const UNCONFIRMED: Duration = Duration::from_secs(60);

pub(in crate::consumer) struct Session {
    link: Arc<Link>,
    inbox: Arc<Inbox>,
    /// What is being encoded; swapped with the link's queue, so that neither allocates.
    commands: Vec<Command>,
    /// Likewise, of those who want to know when that is written.
    asking: Vec<Written>,
    /// The messages of the read at hand.
    arrived: VecDeque<Message>,
    in_flight: u32,
    received: u64,
    largest_rdy: u32,
    /// Answers that the socket has not taken yet.
    leaving_answers: VecDeque<Leaving>,
    waiting: VecDeque<(u64, Written)>,
    yielded: bool,
    /// CLS was sent.
    leaving: bool,
    /// Told to close once nsqd has confirmed that it sends no more and everything is answered.
    closing: bool,
    close_wait: bool,
    /// Runs once nothing is left to do.
    straggler: Option<Pin<Box<Sleep>>>,
}

/// Answers that were encoded together, and where they end in what is written.
#[derive(Clone, Copy, Debug, Default)]
struct Leaving {
    end: u64,
    finished: u32,
    requeued: u32,
    returned: u32,
    /// All answers.
    answered: u32,
}

impl Session {
    pub(in crate::consumer) fn new(link: Arc<Link>, inbox: Arc<Inbox>) -> Self {
        Self {
            link,
            inbox,
            commands: Vec::new(),
            asking: Vec::new(),
            arrived: VecDeque::new(),
            in_flight: 0,
            received: 0,
            largest_rdy: 0,
            leaving_answers: VecDeque::new(),
            waiting: VecDeque::new(),
            yielded: false,
            leaving: false,
            closing: false,
            close_wait: false,
            straggler: None,
        }
    }

    /// How many messages were delivered and their answers not encoded.
    pub(in crate::consumer) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// The connection has ended, and so much was written. Returns how many answers were encoded and have not left.
    pub(in crate::consumer) fn end(&mut self, written: &WriteBuffer) -> u32 {
        self.count_written(written.written());
        self.leaving_answers.iter().map(|leaving| leaving.answered).sum()
    }

    /// Counts the answers that the socket has taken, and tells those who wait for theirs.
    fn count_written(&mut self, written: u64) {
        let counts = &self.link.desk.counts;
        while let Some(left) = self.leaving_answers.front().filter(|leaving| leaving.end <= written) {
            counts.finished.fetch_add(u64::from(left.finished), Ordering::Relaxed);
            counts.requeued.fetch_add(u64::from(left.requeued), Ordering::Relaxed);
            counts.returned.fetch_add(u64::from(left.returned), Ordering::Relaxed);
            self.leaving_answers.pop_front();
        }
        let told = self.waiting.iter().take_while(|(end, _)| *end <= written).count();
        for (_, waiting) in self.waiting.drain(..told) {
            // Who has stopped waiting need not be told.
            let _nobody_waits = waiting.send(Ok(()));
        }
    }

    fn encode(&mut self, buffer: &mut WriteBuffer) {
        let out = buffer.bytes();
        let mut leaving = Leaving::default();
        let mut forgotten = 0;
        for command in self.commands.drain(..) {
            match command {
                Command::Finish(id) => {
                    leaving.answered += 1;
                    leaving.finished += 1;
                    command::fin(out, &id);
                }
                Command::Requeue { id, delay_ms, purpose } => {
                    leaving.answered += 1;
                    leaving.requeued += u32::from(purpose == Purpose::Failed);
                    leaving.returned += u32::from(purpose == Purpose::Unstarted);
                    command::req(out, &id, delay_ms);
                }
                Command::Touch(id) => command::touch(out, &id),
                Command::Forget(_) => forgotten += 1,
                Command::Rdy(count) => {
                    self.largest_rdy = self.largest_rdy.max(count);
                    command::rdy(out, count);
                }
                // A connection that is leaving is told so again by a shutdown, and nsqd takes a second CLS for a breach of
                // the protocol: it would close, and the answers still to come would be lost.
                Command::StartClose if self.leaving => {}
                Command::StartClose => {
                    self.leaving = true;
                    command::cls(out);
                }
                Command::Close => self.closing = true,
            }
        }
        let end = buffer.end();
        self.waiting.extend(self.asking.drain(..).map(|written| (end, written)));
        if leaving.answered > 0 {
            self.leaving_answers.push_back(Leaving { end, ..leaving });
        }
        if leaving.answered + forgotten > 0 {
            self.in_flight = self.in_flight.saturating_sub(leaving.answered + forgotten);
            self.link.set_in_flight(self.in_flight, self.received);
        }
    }

    /// Gives back what came after the inbox was closed.
    fn return_unwanted(&mut self) {
        for message in self.arrived.drain(..) {
            self.commands.push(Command::give_back(message.id, Purpose::Unstarted));
        }
        self.link.send_all(&mut self.commands);
    }
}

impl Role for Session {
    fn poll_commands(&mut self, cx: &mut Context<'_>, out: &mut WriteBuffer) -> Queued {
        self.count_written(out.written());
        let at_least = if self.yielded {
            0
        } else {
            WORTH_A_WRITE.min(self.in_flight as usize)
        };
        match self
            .link
            .take(&mut self.commands, &mut self.asking, at_least, cx.waker())
        {
            Queue::Empty if self.closing && self.in_flight == 0 => {
                let patience = if self.close_wait { STRAGGLER } else { UNCONFIRMED };
                let straggler = self.straggler.get_or_insert_with(|| Box::pin(sleep(patience)));
                match straggler.as_mut().poll(cx) {
                    Poll::Ready(()) => Queued::Finished,
                    Poll::Pending => Queued::Nothing,
                }
            }
            Queue::Empty => {
                self.yielded = false;
                Queued::Nothing
            }
            Queue::Few => {
                self.yielded = true;
                Queued::SoonMore
            }
            Queue::Taken => {
                self.yielded = false;
                self.encode(out);
                Queued::Commands
            }
        }
    }

    fn handle_response(&mut self, data: Bytes) -> Result<()> {
        if data == protocol::CLOSE_WAIT {
            if !std::mem::replace(&mut self.close_wait, true) {
                self.straggler = None;
            }
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Protocol,
            Step::Read,
            format!(
                "the answer {:?} came although nothing was asked",
                protocol::shown(&data)
            ),
        ))
    }

    fn handle_error(&mut self, code: ErrorCode, text: &str) -> Result<()> {
        if code.is_fatal() {
            return Err(Error::rejected(Step::Read, text));
        }
        self.link.refused(code, text);
        Ok(())
    }

    #[inline]
    fn handle_message(&mut self, message: Message) -> Result<()> {
        self.link.handle_delivery(message.id);
        self.in_flight += 1;
        if self.in_flight > self.largest_rdy.saturating_mul(OVERRUN).saturating_add(OVERRUN_SLACK) {
            return Err(Error::new(
                ErrorKind::Protocol,
                Step::Read,
                format!(
                    "{} messages were delivered unanswered, RDY was never above {}",
                    self.in_flight, self.largest_rdy
                ),
            ));
        }
        self.arrived.push_back(message);
        Ok(())
    }

    fn frames_end(&mut self) {
        if self.arrived.is_empty() {
            return;
        }
        self.received += self.arrived.len() as u64;
        self.link.set_in_flight(self.in_flight, self.received);
        self.inbox.append(&self.link, Instant::now(), &mut self.arrived);
        if !self.arrived.is_empty() {
            self.return_unwanted();
        }
    }

    fn shrink(&mut self) {
        self.commands = Vec::new();
        self.arrived = VecDeque::new();
        self.leaving_answers.shrink_to_fit();
        self.link.shrink();
        self.inbox.shrink();
    }
}
