//! What is written to a connection, when nsqd would write it, and what faults make of it.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::time::Instant;

use super::Session;
use super::command::Answers;
use crate::protocol::{Frame, HEARTBEAT, encode_frame};
use crate::test_server::nsqd::faults::{FrameFault, FrameKind};
use crate::test_server::nsqd::message::weight;
use crate::test_server::nsqd::state::State;

/// nsqd's timer for what waits in the output buffer. It runs freely: if it has struck while there was nothing to flush, what
/// comes next is flushed at once.
#[derive(Debug)]
pub(super) struct Ticker {
    period: Option<Duration>,
    next: Instant,
}

impl Ticker {
    /// Starts now. A period of zero never strikes.
    pub(super) fn new(period: Duration, now: Instant) -> Self {
        Self {
            period: Some(period).filter(|period| !period.is_zero()),
            next: now + period,
        }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.period.map(|_| self.next)
    }

    /// Whether it has struck since this was last asked.
    fn has_struck(&mut self, now: Instant) -> bool {
        let Some(period) = self.period.filter(|_| self.next <= now) else {
            return false;
        };
        let missed = now.duration_since(self.next).as_nanos() / period.as_nanos();
        self.next += period * (u32::try_from(missed).unwrap_or(u32::MAX - 1) + 1);
        true
    }
}

/// How many answers a fault can keep.
const MOST_KEPT: usize = 1000;

impl Session {
    pub(super) fn put_response(&mut self, state: &mut State, text: &'static [u8]) {
        self.put_answer(state, Frame::Response(Bytes::from_static(text)));
    }

    /// Puts the answer to a command, and behind it those that a fault has kept.
    pub(super) fn put_answer(&mut self, state: &mut State, frame: Frame) {
        match self.answers {
            Answers::Given => {}
            Answers::Swallowed => return,
            Answers::Kept if self.kept_answers.len() < MOST_KEPT => return self.kept_answers.push(frame),
            Answers::Kept => {}
        }
        self.put(state, &frame);
        for kept in std::mem::take(&mut self.kept_answers) {
            self.put(state, &kept);
        }
    }

    /// Puts an answer, an error or a heartbeat, which nsqd flushes at once.
    pub(super) fn put(&mut self, state: &mut State, frame: &Frame) {
        self.put_through_faults(state, frame);
        self.wire.release();
    }

    fn put_through_faults(&mut self, state: &mut State, frame: &Frame) {
        let fault = match state.script.is_empty() {
            true => None,
            false => state.script.on_frame(self.id, kind_of(frame)),
        };
        let Some(fault) = fault else {
            return self.wire.put(frame);
        };
        let mut bytes = BytesMut::new();
        encode_frame(frame, &mut bytes);
        match fault {
            FrameFault::Swallow => return,
            FrameFault::Duplicate => self.wire.put(frame),
            FrameFault::Delay(delay) => self.wire.delay(Instant::now() + delay),
            FrameFault::Garble => bytes.iter_mut().for_each(|byte| *byte = !*byte),
            FrameFault::Size(size) => (&mut bytes[..4]).put_i32(size),
            FrameFault::Type(kind) => (&mut bytes[4..8]).put_u32(kind),
            FrameFault::Replace(other) => bytes = BytesMut::from(&other[..]),
            FrameFault::Cut(at) => {
                bytes.truncate(at);
                self.doomed = true;
            }
        }
        self.wire.put_bytes(&bytes);
        if self.doomed {
            self.wire.seal();
        }
    }

    /// Takes the messages that came out of the broker and what is injected through the faults, if there are any.
    pub(super) fn put_faulty(&mut self, state: &mut State) {
        let injected = match state.clients.get_mut(&self.id) {
            Some(client) if !client.injected.is_empty() => std::mem::take(&mut client.injected),
            _ => Vec::new(),
        };
        for bytes in injected {
            self.wire.put_bytes(&bytes);
            self.wire.release();
        }
        if !state.script.is_empty() {
            for message in std::mem::take(&mut self.batch) {
                self.put_through_faults(state, &Frame::Message(message));
            }
        }
    }

    /// Puts the messages that came out of the broker. Not under its lock: encoding is most of the work.
    pub(super) fn put_messages(&mut self) {
        self.wire.reserve(self.batch.iter().map(weight).sum());
        for message in self.batch.drain(..) {
            self.wire.put(&Frame::Message(message));
        }
    }

    /// Flushes messages when nsqd does: at once if no more can come, otherwise by the ticker what has not exceeded the buffer.
    pub(super) fn flush_as_nsqd(&mut self, wants_more: bool, now: Instant) {
        if !wants_more {
            self.wire.release();
        }
        self.flush_by_ticker(now);
    }

    pub(super) fn flush_by_ticker(&mut self, now: Instant) {
        if self.wire.held() > 0 && self.ticker.has_struck(now) {
            self.wire.release();
        }
    }

    /// nsqd flushes whenever something happens to a connection that is not ready for messages. Nobody sees that, but a peer
    /// that inflates: it gets an empty block.
    pub(super) fn flush_idle(&mut self) {
        if self.settings.is_deflated() {
            self.wire.flush_below();
        }
    }
}

fn kind_of(frame: &Frame) -> FrameKind {
    match frame {
        Frame::Response(text) if text == HEARTBEAT => FrameKind::Heartbeat,
        Frame::Response(_) => FrameKind::Response,
        Frame::Error(_) => FrameKind::Error,
        Frame::Message(_) => FrameKind::Message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_ticker_that_struck_while_nobody_asked_has_struck_once() {
        let start = Instant::now();
        let mut ticker = Ticker::new(Duration::from_millis(250), start);
        assert!(!ticker.has_struck(start + Duration::from_millis(249)));
        assert!(ticker.has_struck(start + Duration::from_millis(900)));
        assert_eq!(ticker.next(), Some(start + Duration::from_millis(1000)));
        assert!(!ticker.has_struck(start + Duration::from_millis(999)));
        assert!(ticker.has_struck(start + Duration::from_millis(1000)));
        assert_eq!(Ticker::new(Duration::ZERO, start).next(), None);
    }
}
