//! What a consumer's connection does: hands messages over and encodes their answers.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Sleep, sleep};

use super::inbox::{Delivery, Inbox};
use super::link::{Command, Link, Queue};
use super::state::Counts;
use crate::connection::{Queued, Role, WriteBuffer};
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

pub(super) struct Session {
    link: Arc<Link>,
    inbox: Arc<Inbox>,
    counts: Arc<Counts>,
    /// What is being encoded; swapped with the link's queue, so that neither allocates.
    commands: Vec<Command>,
    /// The messages of the read at hand.
    arrived: Vec<Delivery>,
    in_flight: u32,
    received: u64,
    largest_rdy: u32,
    /// Where the last answer ends in what is written.
    answers_end: u64,
    yielded: bool,
    /// CLS was sent.
    leaving: bool,
    /// Told to close once nsqd has confirmed that it sends no more and everything is answered.
    closing: bool,
    close_wait: bool,
    /// Runs once nothing is left to do.
    straggler: Option<Pin<Box<Sleep>>>,
}

impl Session {
    pub(super) fn new(link: Arc<Link>, inbox: Arc<Inbox>, counts: Arc<Counts>) -> Self {
        Self {
            link,
            inbox,
            counts,
            commands: Vec::new(),
            arrived: Vec::new(),
            in_flight: 0,
            received: 0,
            largest_rdy: 0,
            answers_end: 0,
            yielded: false,
            leaving: false,
            closing: false,
            close_wait: false,
            straggler: None,
        }
    }

    /// How many messages were delivered and their answers not encoded.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Whether answers are missing from what the socket has taken.
    pub(super) fn is_unflushed(&self, written: &WriteBuffer) -> bool {
        self.in_flight > 0 || written.written() < self.answers_end
    }

    fn encode(&mut self, buffer: &mut WriteBuffer) {
        let out = buffer.bytes();
        let mut answered = 0;
        for command in self.commands.drain(..) {
            match command {
                Command::Finish(id) => {
                    answered += 1;
                    command::fin(out, &id);
                }
                Command::Requeue { id, delay_ms } => {
                    answered += 1;
                    command::req(out, &id, delay_ms);
                }
                Command::Touch(id) => command::touch(out, &id),
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
        if answered > 0 {
            self.answers_end = buffer.end();
            self.in_flight = self.in_flight.saturating_sub(answered);
            self.link.set_in_flight(self.in_flight, self.received);
        }
    }

    /// Gives back what came after the inbox was closed.
    fn return_unwanted(&mut self) {
        for delivery in self.arrived.drain(..) {
            self.counts.returned.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            self.commands.push(Command::Requeue {
                id: delivery.message.id,
                delay_ms: 0,
            });
        }
        self.link.send_all(&mut self.commands);
    }
}

impl Role for Session {
    fn poll_commands(&mut self, cx: &mut Context<'_>, out: &mut WriteBuffer) -> Queued {
        let at_least = if self.yielded {
            0
        } else {
            WORTH_A_WRITE.min(self.in_flight as usize)
        };
        match self.link.take(&mut self.commands, at_least, cx.waker()) {
            Queue::Empty if self.closing && self.close_wait && self.in_flight == 0 => {
                let straggler = self.straggler.get_or_insert_with(|| Box::pin(sleep(STRAGGLER)));
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
            self.close_wait = true;
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Protocol,
            Step::Read,
            format!(
                "the answer {:?} came although nothing was asked",
                data.escape_ascii().to_string()
            ),
        ))
    }

    fn handle_error(&mut self, code: ErrorCode, text: &str) -> Result<()> {
        if code.is_fatal() {
            return Err(Error::rejected(Step::Read, text));
        }
        tracing::warn!(
            nsqd = %self.link.address,
            "{text}: nsqd has taken the message back, because it was not answered within msg_timeout"
        );
        Ok(())
    }

    #[inline]
    fn handle_message(&mut self, message: Message) -> Result<()> {
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
        self.arrived.push(Delivery {
            message,
            link: Arc::clone(&self.link),
        });
        Ok(())
    }

    fn frames_end(&mut self) {
        if self.arrived.is_empty() {
            return;
        }
        self.received += self.arrived.len() as u64;
        self.link.set_in_flight(self.in_flight, self.received);
        self.inbox.append(&mut self.arrived);
        if !self.arrived.is_empty() {
            self.return_unwanted();
        }
    }

    fn shrink(&mut self) {
        self.commands = Vec::new();
        self.arrived = Vec::new();
        self.link.shrink();
        self.inbox.shrink();
    }
}
