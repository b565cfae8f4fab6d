//! The state behind an [`Nsqd`](super::Nsqd): topics, channels and connections under one lock.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use slab::Slab;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::channel::{Channel, Clients, Refusal};
use super::client::{Client, Link, Phase};
use super::faults::Script;
use super::message::{WallClock, fresh, weight};
use super::options::Options;
use super::stats::{Received, Stats, TopicStats};
use super::topic::Topic;
use crate::protocol::{Command, Message, MessageId};
use crate::test_server::listener::Door;
use crate::test_server::lookupd::Registration;

/// How many bytes the record of received commands may hold on to.
const RECORD_BYTES: usize = 64 * 1024 * 1024;

/// The node id within message ids.
const NODE_ID: u16 = 1;

/// What the handle, the connections' tasks and the clock share.
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) door: Door,
    /// Wakes those who wait for a condition.
    pub(super) changed: Notify,
    /// Wakes the clock to look at an earlier deadline.
    clock: Notify,
    state: Mutex<State>,
}

impl Shared {
    pub(super) fn new(options: Options, door: Door, registrations: Vec<Registration>) -> Self {
        let state = State::new(options.clone(), registrations);
        Self {
            options,
            door,
            changed: Notify::new(),
            clock: Notify::new(),
            state: Mutex::new(state),
        }
    }

    /// Changes the state, and tells those who wait for a condition.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        let wake_clock = std::mem::take(&mut state.wake_clock);
        drop(state);
        if wake_clock {
            self.clock.notify_one();
        }
        self.changed.notify_waiters();
        result
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requeues what has timed out and releases what was deferred, each at its time.
    pub(super) async fn run_clock(self: Arc<Self>) {
        loop {
            let due = self.change(|state| state.expire(Instant::now()));
            match due {
                Some(due) => tokio::select! {
                    () = sleep_until(due) => {}
                    () = self.clock.notified() => {}
                },
                None => self.clock.notified().await,
            }
        }
    }
}

pub(super) struct State {
    options: Options,
    wall_clock: WallClock,
    rng: fastrand::Rng,
    topics: BTreeMap<String, Topic>,
    channels: Slab<Channel>,
    pub(super) clients: Clients,
    pub(super) accepted: u64,
    /// Once true, no connection is taken on.
    pub(super) closed: bool,
    pub(super) script: Script,
    record: VecDeque<Received>,
    record_bytes: usize,
    registrations: Vec<Registration>,
    /// What the clock sleeps for.
    next_due: Option<Instant>,
    wake_clock: bool,
}

impl State {
    fn new(options: Options, registrations: Vec<Registration>) -> Self {
        Self {
            options,
            wall_clock: WallClock::start(),
            // Sampling is the only chance in here; a fixed seed makes it the same in each run.
            rng: fastrand::Rng::with_seed(1),
            topics: BTreeMap::new(),
            channels: Slab::new(),
            clients: Clients::new(),
            accepted: 0,
            closed: false,
            script: Script::default(),
            record: VecDeque::new(),
            record_bytes: 0,
            registrations,
            next_due: None,
            wake_clock: false,
        }
    }

    // Connections.

    pub(super) fn add_client(&mut self, link: Arc<Link>, remote: String) -> Option<u64> {
        if self.closed {
            return None;
        }
        self.accepted += 1;
        let client = Client::new(link, remote, self.options.msg_timeout);
        self.clients.insert(self.accepted, client);
        Some(self.accepted)
    }

    /// A connection has ended. What is in flight to it stays so until it times out.
    pub(super) fn remove_client(&mut self, id: u64) {
        let Some(client) = self.clients.remove(&id) else { return };
        let Some(key) = client.channel else { return };
        let Some(channel) = self.channels.get_mut(key) else {
            return;
        };
        channel.clients.retain(|subscriber| *subscriber != id);
        if channel.clients.is_empty() && channel.is_ephemeral() {
            self.delete_channel(key);
        }
    }

    pub(super) fn tasks(&self) -> Vec<AbortHandle> {
        self.clients.values().filter_map(|client| client.task.clone()).collect()
    }

    pub(super) fn take_outbox(&mut self, id: u64, batch: &mut Vec<Message>, now: Instant) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let was_full = client.outbox_is_full();
        client.take_outbox(batch);
        if let (true, Some(key)) = (was_full, client.channel) {
            self.settle(key, now);
        }
    }

    // Topics and channels.

    pub(super) fn ensure_topic(&mut self, name: &str) -> &mut Topic {
        if !self.topics.contains_key(name) {
            for registration in &self.registrations {
                registration.register(name, None);
            }
        }
        self.topics.entry(name.to_owned()).or_default()
    }

    pub(super) fn ensure_channel(&mut self, topic_name: &str, name: &str, now: Instant) -> usize {
        let topic = self.ensure_topic(topic_name);
        if let Some(key) = topic.channels.get(name) {
            return *key;
        }
        let mut channel = Channel::new(topic_name, name);
        for (message, delay) in topic.take_waiting() {
            channel.accept(message, delay, now, usize::MAX);
        }
        let key = self.channels.insert(channel);
        self.ensure_topic(topic_name).channels.insert(name.to_owned(), key);
        for registration in &self.registrations {
            registration.register(topic_name, Some(name));
        }
        self.settle(key, now);
        key
    }

    fn delete_channel(&mut self, key: usize) {
        let channel = self.channels.remove(key);
        for registration in &self.registrations {
            registration.unregister(&channel.topic, Some(&channel.name));
        }
        let Some(topic) = self.topics.get_mut(&channel.topic) else {
            return;
        };
        topic.channels.remove(&channel.name);
        if topic.channels.is_empty() && channel.topic.ends_with("#ephemeral") {
            self.topics.remove(&channel.topic);
            for registration in &self.registrations {
                registration.unregister(&channel.topic, None);
            }
        }
    }

    /// After any change to a channel: sends what can be sent, and sees to it that the clock wakes in time.
    fn settle(&mut self, key: usize, now: Instant) {
        let Some(channel) = self.channels.get_mut(key) else {
            return;
        };
        channel.dispatch(&mut self.clients, &mut self.rng, now);
        let due = channel.next_due();
        if due.is_some_and(|due| self.next_due.is_none_or(|next| due < next)) {
            self.next_due = due;
            self.wake_clock = true;
        }
    }

    fn expire(&mut self, now: Instant) -> Option<Instant> {
        self.next_due = None;
        for (_, channel) in &mut self.channels {
            if channel.next_due().is_some_and(|due| due <= now) {
                channel.expire(&mut self.clients, now);
                channel.dispatch(&mut self.clients, &mut self.rng, now);
            }
            self.next_due = match (self.next_due, channel.next_due()) {
                (Some(next), Some(due)) => Some(next.min(due)),
                (next, due) => next.or(due),
            };
        }
        self.next_due
    }

    /// Stores messages, all or none. The error is the cause that nsqd would name.
    pub(super) fn publish(
        &mut self,
        topic_name: &str,
        bodies: &[Bytes],
        delay: Option<Duration>,
        now: Instant,
    ) -> Result<(), &'static str> {
        let timestamp = self.wall_clock.unix_nanos(now);
        let (max_bytes, mem_queue_size) = (self.options.max_queue_bytes, self.options.mem_queue_size);
        self.ensure_topic(topic_name);
        let Some(topic) = self.topics.get_mut(topic_name) else {
            return Ok(());
        };
        let fullest = topic
            .channels
            .values()
            .filter_map(|key| Some(self.channels.get(*key)?.bytes()));
        let held = fullest.max().unwrap_or(0).max(topic.bytes());
        if bodies.iter().fold(held, |held, body| held.saturating_add(body.len())) > max_bytes {
            return Err("the test broker's max_queue_bytes is reached");
        }
        let ephemeral = topic_name.ends_with("#ephemeral");
        for body in bodies {
            topic.message_count += 1;
            let message = fresh(topic.ids.next(timestamp, NODE_ID), timestamp, body.clone());
            if topic.channels.is_empty() {
                if !ephemeral || topic.depth() < mem_queue_size {
                    topic.keep(message, delay);
                }
                continue;
            }
            for key in topic.channels.values() {
                if let Some(channel) = self.channels.get_mut(*key) {
                    channel.accept(message.clone(), delay, now, mem_queue_size);
                }
            }
        }
        let keys: Vec<_> = topic.channels.values().copied().collect();
        for key in keys {
            self.settle(key, now);
        }
        Ok(())
    }

    pub(super) fn drain(&mut self, topic: &str, channel: &str, now: Instant) -> Vec<Bytes> {
        let key = self.ensure_channel(topic, channel, now);
        self.channels.get_mut(key).map(Channel::drain).unwrap_or_default()
    }

    // What a subscriber does.

    pub(super) fn subscribe(&mut self, id: u64, topic: &str, channel: &str, now: Instant) {
        let key = self.ensure_channel(topic, channel, now);
        if let (Some(channel), Some(client)) = (self.channels.get_mut(key), self.clients.get_mut(&id)) {
            channel.clients.push(id);
            client.channel = Some(key);
            client.phase = Phase::Subscribed;
        }
    }

    pub(super) fn set_rdy(&mut self, id: u64, count: u32, now: Instant) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        client.rdy = count;
        if let Some(key) = client.channel {
            self.settle(key, now);
        }
    }

    pub(super) fn finish(&mut self, id: u64, message: &MessageId, now: Instant) -> Result<(), Refusal> {
        self.answer(id, now, |channel, client| {
            channel.finish(message, id)?;
            client.finish_count += 1;
            client.release();
            Ok(())
        })
    }

    pub(super) fn requeue(
        &mut self,
        id: u64,
        message: &MessageId,
        delay: Duration,
        now: Instant,
    ) -> Result<(), Refusal> {
        self.answer(id, now, |channel, client| {
            channel.requeue(message, id, delay, now)?;
            client.requeue_count += 1;
            client.release();
            Ok(())
        })
    }

    pub(super) fn touch(&mut self, id: u64, message: &MessageId, now: Instant) -> Result<(), Refusal> {
        let max_msg_timeout = self.options.max_msg_timeout;
        self.answer(id, now, |channel, client| {
            channel.touch(message, id, client.touch_timeout, max_msg_timeout, now)
        })
    }

    fn answer(
        &mut self,
        id: u64,
        now: Instant,
        answer: impl FnOnce(&mut Channel, &mut Client) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let client = self.clients.get_mut(&id).ok_or(Refusal::NotInFlight)?;
        let key = client.channel.ok_or(Refusal::NotInFlight)?;
        let channel = self.channels.get_mut(key).ok_or(Refusal::NotInFlight)?;
        answer(channel, client)?;
        self.settle(key, now);
        Ok(())
    }

    // Stop and restart.

    /// Forgets every message; topics and channels stay, which nsqd knows from its metadata.
    pub(super) fn forget_messages(&mut self) {
        for topic in self.topics.values_mut() {
            topic.take_waiting();
        }
        for (_, channel) in &mut self.channels {
            channel.empty();
        }
    }

    /// What nsqd finds when it starts again: all messages are queued, and nothing ephemeral is left.
    pub(super) fn settle_for_restart(&mut self) {
        let ephemeral: Vec<_> = self
            .channels
            .iter()
            .filter(|(_, channel)| channel.is_ephemeral() || channel.topic.ends_with("#ephemeral"))
            .map(|(key, _)| key)
            .collect();
        for key in ephemeral {
            self.delete_channel(key);
        }
        self.topics.retain(|name, _| !name.ends_with("#ephemeral"));
        for topic in self.topics.values_mut() {
            topic.forget_delays();
        }
        for (_, channel) in &mut self.channels {
            channel.requeue_all();
        }
    }

    pub(super) fn register_all(&self) {
        for registration in &self.registrations {
            for (name, topic) in &self.topics {
                registration.register(name, None);
                for channel in topic.channels.keys() {
                    registration.register(name, Some(channel));
                }
            }
        }
    }

    pub(super) fn unregister_all(&self) {
        for registration in &self.registrations {
            registration.withdraw();
        }
    }

    // What a test sees.

    pub(super) fn record(&mut self, connection: u64, at: Instant, command: Command) {
        if self.options.record == 0 {
            return;
        }
        self.record_bytes += body_bytes(&command);
        self.record.push_back(Received {
            connection,
            at,
            command,
        });
        while self.record.len() > self.options.record || self.record_bytes > RECORD_BYTES {
            let Some(oldest) = self.record.pop_front() else { return };
            self.record_bytes -= body_bytes(&oldest.command);
        }
    }

    pub(super) fn received(&self) -> Vec<Received> {
        self.record.iter().cloned().collect()
    }

    pub(super) fn clear_record(&mut self) {
        self.record.clear();
        self.record_bytes = 0;
    }

    pub(super) fn stats(&self) -> Stats {
        let topics = self.topics.iter().map(|(name, topic)| TopicStats {
            name: name.clone(),
            depth: topic.depth(),
            message_count: topic.message_count,
            channels: topic
                .channels
                .values()
                .filter_map(|key| Some(self.channels.get(*key)?.stats(&self.clients)))
                .collect(),
        });
        let clients = self.clients.iter().map(|(id, client)| {
            let channel = client.channel.and_then(|key| self.channels.get(key));
            client.stats(
                *id,
                channel.map(|channel| (channel.topic.clone(), channel.name.clone())),
            )
        });
        Stats {
            topics: topics.collect(),
            clients: clients.collect(),
            accepted: self.accepted,
        }
    }
}

fn body_bytes(command: &Command) -> usize {
    match command {
        Command::Identify { body } | Command::Pub { body, .. } | Command::Dpub { body, .. } => body.len(),
        Command::Auth { secret } => secret.len(),
        // Each body of an MPUB is an allocation's handle as well.
        Command::Mpub { bodies, .. } => bodies.iter().map(|body| body.len() + size_of::<Bytes>()).sum(),
        _ => 0,
    }
}

/// What a batch of messages takes up, roughly: what a reader makes room for.
pub(super) fn batch_weight(batch: &[Message]) -> usize {
    batch.iter().map(weight).sum()
}
