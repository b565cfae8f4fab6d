//! The state of an [`Nsqd`](super::Nsqd): topics, channels and connections under one lock, and what connections do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use slab::Slab;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::channel::{Channel, Clients, Refusal};
use super::client::{Client, Link, Phase};
use super::faults::{AcceptFault, Script};
use super::message::WallClock;
use super::options::Options;
use super::record::MAX_BYTES;
use super::stats::Received;
use super::topic::Topic;
use crate::protocol::{Message, MessageId};
use crate::test_server::lookupd::Registration;
use crate::test_server::record::Record;

pub(super) struct State {
    pub(super) options: Options,
    pub(super) started: Instant,
    pub(super) wall_clock: WallClock,
    rng: fastrand::Rng,
    pub(super) topics: BTreeMap<String, Topic>,
    pub(super) channels: Slab<Channel>,
    pub(super) clients: Clients,
    pub(super) accepted: u64,
    /// Once true, no connection is taken on.
    pub(super) closed: bool,
    /// Why the latest publish could not be stored, if it could not.
    pub(super) unhealthy: Option<&'static str>,
    pub(super) script: Script,
    pub(super) record: Record<Received>,
    pub(super) registrations: Vec<Registration>,
    /// What the clock sleeps for.
    next_due: Option<Instant>,
    pub(super) wake_clock: bool,
    /// Topics or channels have come or gone.
    pub(super) topology_changed: bool,
    /// New topics, of which the nsqlookupds are to be asked.
    pub(super) starting_topics: Vec<String>,
}

impl State {
    pub(super) fn new(options: Options, registrations: Vec<Registration>) -> Self {
        let record = Record::new(options.record, MAX_BYTES);
        Self {
            options,
            started: Instant::now(),
            wall_clock: WallClock::start(),
            // Sampling is the only chance in here; a fixed seed makes it the same in each run.
            rng: fastrand::Rng::with_seed(1),
            topics: BTreeMap::new(),
            channels: Slab::new(),
            clients: Clients::new(),
            accepted: 0,
            closed: false,
            unhealthy: None,
            script: Script::default(),
            record,
            registrations,
            next_due: None,
            wake_clock: false,
            topology_changed: false,
            starting_topics: Vec::new(),
        }
    }

    // Connections.

    /// Takes a connection on, with the fault that strikes it at once. `None` once the broker is closed.
    pub(super) fn add_client(
        &mut self,
        link: Arc<Link>,
        remote: String,
        now: Instant,
    ) -> Option<(u64, Option<AcceptFault>)> {
        if self.closed {
            return None;
        }
        self.accepted += 1;
        let id = self.accepted;
        if let Some(bytes) = self.script.cut_after(id) {
            link.set_write_budget(bytes);
        }
        let client = Client::new(link, remote, self.options.msg_timeout, now);
        self.clients.insert(id, client);
        Some((id, self.script.on_accept(id)))
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
            self.delete_channel_at(key);
        }
    }

    /// Marks all connections, or one, as ended, and returns their tasks, which are to be [ended](super::broker::Shared::end).
    pub(super) fn end(&mut self, connection: Option<u64>) -> Vec<AbortHandle> {
        let mut tasks = Vec::new();
        for (id, client) in &mut self.clients {
            if connection.is_none_or(|wanted| wanted == *id) {
                client.is_ended = true;
                tasks.extend(client.task.clone());
            }
        }
        tasks
    }

    /// All connections, or one.
    pub(super) fn clients_of(&self, connection: Option<u64>) -> impl Iterator<Item = &Client> {
        self.clients
            .iter()
            .filter(move |(id, _)| connection.is_none_or(|wanted| wanted == **id))
            .map(|(_, client)| client)
    }

    /// Takes the messages that are to be sent to a connection. Returns whether it can take more after them: if not, nsqd
    /// holds nothing back.
    pub(super) fn take_outbox(&mut self, id: u64, batch: &mut Vec<Message>, now: Instant) -> bool {
        let Some(client) = self.clients.get_mut(&id) else {
            return false;
        };
        let was_full = client.outbox_is_full();
        client.take_outbox(batch);
        if let (true, Some(key)) = (was_full, client.channel) {
            self.settle(key, now);
        }
        self.wants_more(id)
    }

    fn wants_more(&self, id: u64) -> bool {
        let client = self.clients.get(&id);
        client.is_some_and(|client| {
            let channel = client.channel.and_then(|key| self.channels.get(key));
            client.has_room() && channel.is_some_and(|channel| !channel.paused)
        })
    }

    /// After any change to a channel: sends what can be sent, and sees to it that the clock wakes in time.
    pub(super) fn settle(&mut self, key: usize, now: Instant) {
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

    pub(super) fn expire(&mut self, now: Instant) -> Option<Instant> {
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

    // What a subscriber does.

    /// Adds a consumer to a channel. The error is the cause that nsqd would name.
    pub(super) fn subscribe(&mut self, id: u64, topic: &str, channel: &str, now: Instant) -> Result<(), String> {
        let key = self.ensure_channel(topic, channel, now);
        let limit = self.options.max_channel_consumers;
        if let (Some(subscribed), Some(client)) = (self.channels.get_mut(key), self.clients.get_mut(&id)) {
            if limit != 0 && subscribed.clients.len() >= limit {
                return Err(format!("consumers for {topic}:{channel} exceeds limit of {limit}"));
            }
            subscribed.clients.push(id);
            client.channel = Some(key);
            client.phase = Phase::Subscribed;
        }
        Ok(())
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

    pub(super) fn start_close(&mut self, id: u64) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.phase = Phase::Closing;
            client.rdy = 0;
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

    /// Lets a message's time be over, though it is not.
    pub(super) fn time_out(&mut self, id: u64, message: &MessageId) {
        let Some(key) = self.clients.get(&id).and_then(|client| client.channel) else {
            return;
        };
        if let Some(channel) = self
            .channels
            .get_mut(key)
            .filter(|channel| channel.is_owner(message, id))
        {
            channel.time_out(message, &mut self.clients);
        }
    }

    /// Sends what a connection's channel can send.
    pub(super) fn settle_subscription(&mut self, id: u64, now: Instant) {
        if let Some(key) = self.clients.get(&id).and_then(|client| client.channel) {
            self.settle(key, now);
        }
    }

    /// Puts bytes into what is written to connections, wherever it stands.
    pub(super) fn inject(&mut self, connection: Option<u64>, bytes: &Bytes) {
        for (id, client) in &mut self.clients {
            if connection.is_none_or(|wanted| wanted == *id) {
                client.injected.push(bytes.clone());
                client.link.wake.notify_one();
            }
        }
    }
}
