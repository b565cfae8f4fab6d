//! Topics and channels come, go, and take messages.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::channel::{Channel, Scan};
use super::message::fresh;
use super::state::State;
use super::topic::Topic;

/// What an operation names does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    Topic,
    Channel,
}

impl State {
    /// Creates a topic if it does not exist, with the channels that the nsqlookupds know of.
    pub(super) fn ensure_topic(&mut self, name: &str, now: Instant) {
        if self.topics.contains_key(name) {
            return;
        }
        let starting = !self.options.lookupd_tcp_addresses.is_empty();
        self.topics.insert(name.to_owned(), Topic::new(starting));
        if starting {
            self.starting_topics.push(name.to_owned());
        }
        self.topology_changed = true;
        let mut known = Vec::new();
        for registration in &self.registrations {
            // One that is stopped registers what it has when it starts again.
            if !self.closed {
                registration.register(name, None);
            }
            known.extend(registration.channels_of(name));
        }
        for channel in known {
            self.ensure_channel(name, &channel, now);
        }
    }

    /// The nsqlookupds have told which channels a topic has.
    pub(super) fn start_topic(&mut self, name: &str, channels: BTreeSet<String>, now: Instant) {
        if !self.topics.get(name).is_some_and(|topic| topic.starting) {
            return;
        }
        for channel in channels {
            self.ensure_channel(name, &channel, now);
        }
        if let Some(topic) = self.topics.get_mut(name) {
            topic.starting = false;
        }
        self.release_backlog(name, now);
    }

    pub(super) fn ensure_channel(&mut self, topic_name: &str, name: &str, now: Instant) -> usize {
        self.ensure_topic(topic_name, now);
        if let Ok(key) = self.channel_key(topic_name, name) {
            return key;
        }
        let scan = self.options.coarse_timers.then(|| Scan::new(self.started, now));
        let key = self.channels.insert(Channel::new(topic_name, name, scan));
        if let Some(topic) = self.topics.get_mut(topic_name) {
            topic.channels.insert(name.to_owned(), key);
        }
        self.topology_changed = true;
        for registration in self.registrations.iter().filter(|_| !self.closed) {
            registration.register(topic_name, Some(name));
        }
        self.release_backlog(topic_name, now);
        key
    }

    /// Hands what has waited in a topic to its channels, if nothing keeps it there any longer.
    pub(super) fn release_backlog(&mut self, name: &str, now: Instant) {
        let Some(topic) = self.topics.get_mut(name).filter(|topic| topic.flows()) else {
            return;
        };
        let keys: Vec<_> = topic.channels.values().copied().collect();
        for &key in &keys {
            self.give_backlog(name, key, now);
        }
        if let Some(topic) = self.topics.get_mut(name) {
            topic.forget_waiting();
        }
        for key in keys {
            self.settle(key, now);
        }
    }

    /// Gives one of its channels what waits in a topic.
    fn give_backlog(&mut self, topic: &str, key: usize, now: Instant) {
        let (Some(topic), Some(channel)) = (self.topics.get_mut(topic), self.channels.get_mut(key)) else {
            return;
        };
        for (message, delay) in topic.give(key) {
            channel.accept(message.clone(), *delay, now, self.options.mem_queue_size);
        }
    }

    pub(super) fn channel_key(&self, topic: &str, channel: &str) -> Result<usize, Missing> {
        let topic = self.topics.get(topic).ok_or(Missing::Topic)?;
        topic.channels.get(channel).copied().ok_or(Missing::Channel)
    }

    /// Deletes a topic with its channels and messages. The tasks are those of its subscribers, which nsqd disconnects.
    pub(super) fn delete_topic(&mut self, name: &str) -> Result<Vec<AbortHandle>, Missing> {
        let topic = self.topics.get(name).ok_or(Missing::Topic)?;
        let keys: Vec<_> = topic.channels.values().copied().collect();
        let mut tasks = Vec::new();
        for key in keys {
            tasks.extend(self.delete_channel_at(key));
        }
        // An ephemeral one went with its last channel.
        if self.topics.remove(name).is_some() {
            self.topology_changed = true;
            for registration in &self.registrations {
                registration.unregister(name, None);
            }
        }
        Ok(tasks)
    }

    /// Deletes a channel with its messages. The tasks are those of its subscribers, which nsqd disconnects.
    pub(super) fn delete_channel(&mut self, topic: &str, channel: &str) -> Result<Vec<AbortHandle>, Missing> {
        let key = self.channel_key(topic, channel)?;
        Ok(self.delete_channel_at(key))
    }

    pub(super) fn delete_channel_at(&mut self, key: usize) -> Vec<AbortHandle> {
        let channel = self.channels.remove(key);
        self.topology_changed = true;
        for registration in &self.registrations {
            registration.unregister(&channel.topic, Some(&channel.name));
        }
        let mut tasks = Vec::new();
        for id in &channel.clients {
            if let Some(client) = self.clients.get_mut(id) {
                client.channel = None;
                tasks.extend(client.task.clone());
            }
        }
        if let Some(topic) = self.topics.get_mut(&channel.topic) {
            topic.forget_channel(&channel.name, key);
            if topic.channels.is_empty() && channel.topic.ends_with("#ephemeral") {
                self.topics.remove(&channel.topic);
                for registration in &self.registrations {
                    registration.unregister(&channel.topic, None);
                }
            }
        }
        tasks
    }

    /// Forgets what waits in a topic itself; its channels keep what they have.
    pub(super) fn empty_topic(&mut self, name: &str) -> Result<(), Missing> {
        let topic = self.topics.get_mut(name).ok_or(Missing::Topic)?;
        topic.forget_waiting();
        Ok(())
    }

    /// Forgets all messages of a channel, those in flight included.
    pub(super) fn empty_channel(&mut self, topic: &str, channel: &str) -> Result<(), Missing> {
        let key = self.channel_key(topic, channel)?;
        self.channels[key].empty(&mut self.clients);
        Ok(())
    }

    pub(super) fn pause_topic(&mut self, name: &str, paused: bool, now: Instant) -> Result<(), Missing> {
        let topic = self.topics.get_mut(name).ok_or(Missing::Topic)?;
        topic.paused = paused;
        self.release_backlog(name, now);
        Ok(())
    }

    pub(super) fn pause_channel(
        &mut self,
        topic: &str,
        channel: &str,
        paused: bool,
        now: Instant,
    ) -> Result<(), Missing> {
        let key = self.channel_key(topic, channel)?;
        let channel = &mut self.channels[key];
        channel.paused = paused;
        // Their tasks look whether something is held back that nobody else will release.
        for id in &channel.clients {
            if let Some(client) = self.clients.get(id) {
                client.link.wake.notify_one();
            }
        }
        self.settle(key, now);
        Ok(())
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
        let node = self.options.node_id;
        self.ensure_topic(topic_name, now);
        let Some(topic) = self.topics.get_mut(topic_name) else {
            return Ok(());
        };
        let fullest = topic
            .channels
            .values()
            .filter_map(|key| Some(self.channels.get(*key)?.bytes()));
        let held = fullest.max().unwrap_or(0).max(topic.bytes());
        let published: usize = bodies.iter().map(Bytes::len).sum();
        if held.saturating_add(published) > max_bytes {
            let cause = "the test broker's max_queue_bytes is reached";
            self.unhealthy = Some(cause);
            return Err(cause);
        }
        self.unhealthy = None;
        topic.message_count += bodies.len() as u64;
        topic.message_bytes += published as u64;
        let ephemeral = topic_name.ends_with("#ephemeral");
        let keys: Vec<_> = match topic.flows() {
            true => topic.channels.values().copied().collect(),
            false => Vec::new(),
        };
        for body in bodies {
            let message = fresh(topic.ids.next(timestamp, node), timestamp, body.clone());
            let Some((last, others)) = keys.split_last() else {
                let in_memory = topic.depth() < mem_queue_size;
                if in_memory || !ephemeral {
                    // On nsqd's disk a delay is lost.
                    topic.keep(message, delay.filter(|_| in_memory));
                }
                continue;
            };
            for key in others {
                if let Some(channel) = self.channels.get_mut(*key) {
                    channel.accept(message.clone(), delay, now, mem_queue_size);
                }
            }
            if let Some(channel) = self.channels.get_mut(*last) {
                channel.accept(message, delay, now, mem_queue_size);
            }
        }
        for key in keys {
            self.settle(key, now);
        }
        Ok(())
    }

    pub(super) fn drain(&mut self, topic: &str, channel: &str, now: Instant) -> Vec<Bytes> {
        let key = self.ensure_channel(topic, channel, now);
        // What a new topic keeps need not wait for the nsqlookupds' answer. A pause is the test's own will.
        if self.topics.get(topic).is_some_and(|topic| !topic.paused) {
            self.give_backlog(topic, key, now);
        }
        let drained = self.channels.get_mut(key).map(Channel::drain).unwrap_or_default();
        // What is deferred has come along.
        self.settle(key, now);
        drained
    }
}
