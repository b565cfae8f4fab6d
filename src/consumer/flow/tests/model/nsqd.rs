//! A modelled nsqd with its wire and our handlers of its messages.

use std::collections::VecDeque;

use super::*;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Message {
    /// The number of the last command nsqd had read when it sent this.
    pub(super) after_command: u64,
    /// Allowed to be there in spite of `max_in_flight`: sent before nsqd read a lowered RDY, before the limit itself
    /// was lowered, or taken back while it was on its way.
    pub(super) excused: bool,
    /// nsqd has taken it back.
    pub(super) expired: bool,
}

#[derive(Debug)]
pub(super) struct Nsqd {
    pub(super) max_rdy_count: u32,
    pub(super) busy: bool,
    // nsqd's side.
    pub(super) rdy: u32,
    pub(super) last_read: u64,
    pub(super) commands: VecDeque<(u64, u32)>,
    pub(super) wire: VecDeque<Message>,
    // Our side.
    pub(super) held: VecDeque<Message>,
    pub(super) received: bool,
    pub(super) sent_rdy: u32,
    pub(super) closing: bool,
    pub(super) last_command: u64,
    pub(super) last_lowering: u64,
    pub(super) without_rdy_since: Instant,
    /// How long it has been without RDY although nothing was in the way.
    pub(super) passed_over: Duration,
    /// When it last got RDY after it had none.
    pub(super) with_rdy_since: Instant,
    /// When its last message came; never, at first.
    pub(super) last_message: Option<Instant>,
    /// Since when messages have come without a pause of half the time after which it has to lend.
    pub(super) speaks_since: Instant,
}

impl Nsqd {
    pub(super) fn new(max_rdy_count: u32, busy: bool, now: Instant) -> Self {
        Self {
            max_rdy_count,
            busy,
            rdy: 0,
            last_read: 0,
            commands: VecDeque::new(),
            wire: VecDeque::new(),
            held: VecDeque::new(),
            received: false,
            sent_rdy: 0,
            closing: false,
            last_command: 0,
            last_lowering: 0,
            without_rdy_since: now,
            passed_over: Duration::ZERO,
            with_rdy_since: now,
            last_message: None,
            speaks_since: now,
        }
    }

    pub(super) fn send_rdy(&mut self, rdy: u32, now: Instant) {
        self.last_command += 1;
        if rdy < self.sent_rdy {
            self.last_lowering = self.last_command;
        }
        if rdy == 0 {
            self.without_rdy_since = now;
        } else if self.sent_rdy == 0 {
            self.with_rdy_since = now;
            self.passed_over = Duration::ZERO;
        }
        self.commands.push_back((self.last_command, rdy));
        self.sent_rdy = rdy;
    }

    pub(super) fn read(&mut self) -> bool {
        let Some((number, rdy)) = self.commands.pop_front() else {
            return false;
        };
        self.last_read = number;
        self.rdy = rdy;
        true
    }

    pub(super) fn deliver(&mut self, count: usize) {
        let in_flight = self.wire.iter().chain(&self.held).filter(|m| !m.expired).count();
        let window = (self.rdy as usize).saturating_sub(in_flight);
        for _ in 0..count.min(window) {
            self.wire.push_back(Message {
                after_command: self.last_read,
                ..Message::default()
            });
        }
    }

    pub(super) fn receive(&mut self, count: usize, now: Instant, idle: Duration) {
        for _ in 0..count {
            let Some(mut message) = self.wire.pop_front() else {
                return;
            };
            message.excused |= message.after_command < self.last_lowering;
            self.held.push_back(message);
            self.received = true;
            if self.last_message.is_none_or(|last| now - last >= idle / 2) {
                self.speaks_since = now;
            }
            self.last_message = Some(now);
        }
    }

    pub(super) fn expire(&mut self, count: usize) {
        let held = self.held.len();
        let messages = self.held.iter_mut().chain(&mut self.wire).enumerate();
        for (i, message) in messages.filter(|(_, m)| !m.expired).take(count) {
            message.expired = true;
            // No RDY can keep nsqd from sending again what has not even arrived.
            message.excused |= i >= held;
        }
    }

    /// Whether it can be given RDY at all.
    pub(super) fn takes_part(&self) -> bool {
        !self.closing && self.max_rdy_count > 0
    }

    pub(super) fn charge(&self) -> u32 {
        self.sent_rdy.max(self.in_flight())
    }

    pub(super) fn silent_for(&self, now: Instant) -> Duration {
        now - self
            .last_message
            .map_or(self.with_rdy_since, |at| at.max(self.with_rdy_since))
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.held.len() as u32
    }

    pub(super) fn held_where(&self, counts: impl Fn(&Message) -> bool) -> u32 {
        self.held.iter().filter(|m| counts(m)).count() as u32
    }
}
