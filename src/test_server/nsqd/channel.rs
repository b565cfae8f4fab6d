//! A channel: one copy of each message, shared by its subscribers.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::client::Client;
use super::message::weight;
use super::stats::{ChannelStats, ClientStats};
use crate::protocol::{Message, MessageId};

pub(super) type Clients = BTreeMap<u64, Client>;

/// Why an answer to a message is refused, as nsqd words it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    NotInFlight,
    NotOwner,
}

impl Refusal {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::NotInFlight => "ID not in flight",
            Self::NotOwner => "client does not own message",
        }
    }
}

/// When nsqd looks for what has timed out: every 100 ms, at channels of which it learns every 5 s.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scan {
    started: Instant,
    known_from: Instant,
}

impl Scan {
    const PERIOD: Duration = Duration::from_millis(100);
    const REFRESH: Duration = Duration::from_secs(5);

    /// For a channel that comes into being now, in a broker that was started then.
    pub(super) fn new(started: Instant, now: Instant) -> Self {
        Self {
            started,
            known_from: next_multiple(started, Self::REFRESH, now),
        }
    }

    /// The first look at or after `due`.
    fn next(self, due: Instant) -> Instant {
        next_multiple(self.started, Self::PERIOD, due.max(self.known_from))
    }
}

fn next_multiple(start: Instant, period: Duration, at: Instant) -> Instant {
    let passed = at.saturating_duration_since(start).as_nanos();
    let periods = u32::try_from(passed.div_ceil(period.as_nanos())).unwrap_or(u32::MAX);
    start + period * periods
}

#[derive(Debug)]
struct InFlight {
    message: Message,
    owner: u64,
    sent: Instant,
    /// The one entry among the expiries that counts; TOUCH leaves older ones behind.
    expiry: u64,
}

#[derive(Debug, Default)]
pub(super) struct Channel {
    pub(super) topic: String,
    pub(super) name: String,
    pub(super) clients: Vec<u64>,
    pub(super) paused: bool,
    /// Where timers are as coarse as nsqd's.
    scan: Option<Scan>,
    queue: VecDeque<Message>,
    in_flight: HashMap<MessageId, InFlight>,
    /// When messages in flight time out. Answered ones stay until they come up or are swept out.
    expiries: BinaryHeap<Reverse<(Instant, u64, MessageId)>>,
    deferred: BTreeMap<(Instant, u64), Message>,
    /// Numbers expiries and deferrals: those of one moment keep their order.
    serial: u64,
    /// The subscriber whose turn it is.
    turn: usize,
    bytes: usize,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    messages: u64,
    requeues: u64,
    timeouts: u64,
    finishes: u64,
}

impl Channel {
    pub(super) fn new(topic: &str, name: &str, scan: Option<Scan>) -> Self {
        Self {
            topic: topic.to_owned(),
            name: name.to_owned(),
            scan,
            ..Self::default()
        }
    }

    pub(super) fn is_ephemeral(&self) -> bool {
        self.name.ends_with("#ephemeral")
    }

    /// Takes a published message in. `delay` begins now.
    pub(super) fn accept(&mut self, message: Message, delay: Option<Duration>, now: Instant, mem_queue_size: usize) {
        self.counts.messages += 1;
        match delay {
            Some(delay) if !delay.is_zero() => {
                self.bytes += weight(&message);
                self.defer(message, now + delay);
            }
            _ if self.is_ephemeral() && self.queue.len() >= mem_queue_size => {}
            _ => {
                self.bytes += weight(&message);
                self.queue.push_back(message);
            }
        }
    }

    fn defer(&mut self, message: Message, due: Instant) {
        self.serial += 1;
        self.deferred.insert((due, self.serial), message);
    }

    /// Sends what can be sent: to the subscribers in turn, as far as their RDY allows.
    pub(super) fn dispatch(&mut self, clients: &mut Clients, rng: &mut fastrand::Rng, now: Instant) {
        while !self.queue.is_empty() && !self.paused {
            let Some(owner) = self.next_ready(clients) else { return };
            let (Some(client), Some(mut message)) = (clients.get_mut(&owner), self.queue.pop_front()) else {
                return;
            };
            if client.sample_rate > 0 && rng.u8(0..100) > client.sample_rate {
                self.bytes -= weight(&message);
                continue;
            }
            message.attempts = message.attempts.wrapping_add(1);
            self.serial += 1;
            let expiry = self.serial;
            self.expiries
                .push(Reverse((now + client.msg_timeout, expiry, message.id)));
            self.in_flight.insert(
                message.id,
                InFlight {
                    message: message.clone(),
                    owner,
                    sent: now,
                    expiry,
                },
            );
            client.send(message);
        }
    }

    fn next_ready(&mut self, clients: &Clients) -> Option<u64> {
        let count = self.clients.len();
        for step in 0..count {
            let at = (self.turn + step) % count;
            let id = self.clients[at];
            if clients.get(&id).is_some_and(Client::is_ready) {
                self.turn = at + 1;
                return Some(id);
            }
        }
        None
    }

    fn take_in_flight(&mut self, id: &MessageId, owner: u64) -> Result<Message, Refusal> {
        match self.in_flight.get(id) {
            None => Err(Refusal::NotInFlight),
            Some(entry) if entry.owner != owner => Err(Refusal::NotOwner),
            Some(_) => {
                let entry = self.in_flight.remove(id).ok_or(Refusal::NotInFlight)?;
                self.sweep_expiries();
                Ok(entry.message)
            }
        }
    }

    /// Keeps the expiries of answered messages from outnumbering the others.
    fn sweep_expiries(&mut self) {
        if self.expiries.len() > 2 * self.in_flight.len() + 64 {
            let in_flight = &self.in_flight;
            self.expiries
                .retain(|Reverse((_, expiry, id))| in_flight.get(id).is_some_and(|entry| entry.expiry == *expiry));
        }
    }

    pub(super) fn finish(&mut self, id: &MessageId, owner: u64) -> Result<(), Refusal> {
        let message = self.take_in_flight(id, owner)?;
        self.bytes -= weight(&message);
        self.counts.finishes += 1;
        Ok(())
    }

    pub(super) fn requeue(&mut self, id: &MessageId, owner: u64, delay: Duration, now: Instant) -> Result<(), Refusal> {
        let message = self.take_in_flight(id, owner)?;
        self.counts.requeues += 1;
        if delay.is_zero() {
            self.queue.push_back(message);
        } else {
            self.defer(message, now + delay);
        }
        Ok(())
    }

    /// Lets the timeout begin anew, but not past `max_msg_timeout` after the message was sent.
    pub(super) fn touch(
        &mut self,
        id: &MessageId,
        owner: u64,
        timeout: Duration,
        max_msg_timeout: Duration,
        now: Instant,
    ) -> Result<(), Refusal> {
        let entry = self.in_flight.get_mut(id).ok_or(Refusal::NotInFlight)?;
        if entry.owner != owner {
            return Err(Refusal::NotOwner);
        }
        self.serial += 1;
        entry.expiry = self.serial;
        let due = (now + timeout).min(entry.sent + max_msg_timeout);
        self.expiries.push(Reverse((due, self.serial, *id)));
        self.sweep_expiries();
        Ok(())
    }

    pub(super) fn is_owner(&self, id: &MessageId, client: u64) -> bool {
        self.in_flight.get(id).is_some_and(|entry| entry.owner == client)
    }

    /// Takes a message from its owner as if its time were over.
    pub(super) fn time_out(&mut self, id: &MessageId, clients: &mut Clients) {
        let Some(entry) = self.in_flight.remove(id) else { return };
        self.counts.timeouts += 1;
        if let Some(owner) = clients.get_mut(&entry.owner) {
            owner.release();
        }
        self.queue.push_back(entry.message);
    }

    /// Queues again what has timed out, and queues what was deferred until now.
    pub(super) fn expire(&mut self, clients: &mut Clients, now: Instant) {
        while let Some(Reverse((due, expiry, id))) = self.expiries.peek().copied() {
            if due > now {
                break;
            }
            self.expiries.pop();
            if self.in_flight.get(&id).is_none_or(|entry| entry.expiry != expiry) {
                continue;
            }
            self.time_out(&id, clients);
        }
        while let Some(entry) = self.deferred.first_entry() {
            if entry.key().0 > now {
                break;
            }
            self.queue.push_back(entry.remove());
        }
    }

    /// When [`expire`](Self::expire) has something to do next, at the earliest.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let timeout = self.expiries.peek().map(|Reverse((due, ..))| *due);
        let deferred = self.deferred.keys().next().map(|(due, _)| *due);
        let due = match (timeout, deferred) {
            (Some(timeout), Some(deferred)) => timeout.min(deferred),
            (timeout, deferred) => timeout.or(deferred)?,
        };
        Some(self.scan.map_or(due, |scan| scan.next(due)))
    }

    /// Takes all messages that wait to be sent, as if they had been finished.
    pub(super) fn drain(&mut self) -> Vec<Bytes> {
        let drained: Vec<_> = self.queue.drain(..).collect();
        self.bytes -= drained.iter().map(weight).sum::<usize>();
        drained.into_iter().map(|message| message.body).collect()
    }

    /// Queues everything, as nsqd does when it is shut down: what is in flight and what is deferred behind the rest. What
    /// was counted is forgotten.
    pub(super) fn requeue_all(&mut self) {
        // In flight messages have no order of their own; ids grow with time.
        let mut in_flight: Vec<_> = self.in_flight.drain().map(|(_, entry)| entry.message).collect();
        in_flight.sort_by_key(|message| message.id);
        self.queue.extend(in_flight);
        self.queue.extend(std::mem::take(&mut self.deferred).into_values());
        self.expiries.clear();
        self.counts = Counts::default();
    }

    /// Forgets all messages.
    pub(super) fn empty(&mut self, clients: &mut Clients) {
        for id in &self.clients {
            if let Some(client) = clients.get_mut(id) {
                client.in_flight = 0;
            }
        }
        self.queue.clear();
        self.in_flight.clear();
        self.deferred.clear();
        self.expiries.clear();
        self.bytes = 0;
    }

    pub(super) fn forget_counts(&mut self) {
        self.counts = Counts::default();
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn stats(&self, clients: Vec<ClientStats>) -> ChannelStats {
        ChannelStats {
            name: self.name.clone(),
            depth: self.queue.len(),
            in_flight: self.in_flight.len(),
            deferred: self.deferred.len(),
            message_count: self.counts.messages,
            requeue_count: self.counts.requeues,
            timeout_count: self.counts.timeouts,
            finish_count: self.counts.finishes,
            paused: self.paused,
            clients,
        }
    }
}
