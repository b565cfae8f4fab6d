//! A topic: it makes messages of bodies and copies them to its channels.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::message::{IdGenerator, weight};
use crate::protocol::Message;

#[derive(Debug, Default)]
pub(super) struct Topic {
    pub(super) ids: IdGenerator,
    /// The keys of the channels, by name.
    pub(super) channels: BTreeMap<String, usize>,
    pub(super) paused: bool,
    /// The nsqlookupds are still being asked which channels it has; until then nothing reaches a channel.
    pub(super) starting: bool,
    pub(super) message_count: u64,
    pub(super) message_bytes: u64,
    /// What waits for a channel, with the delay that begins there.
    waiting: VecDeque<Waiting>,
    /// How many of the first of them a channel has been given already, by its key.
    given: BTreeMap<usize, usize>,
    bytes: usize,
}

pub(super) type Waiting = (Message, Option<Duration>);

impl Topic {
    pub(super) fn new(starting: bool) -> Self {
        Self {
            starting,
            ..Self::default()
        }
    }

    /// Whether messages go on to the channels.
    pub(super) fn flows(&self) -> bool {
        !self.paused && !self.starting && !self.channels.is_empty()
    }

    /// Keeps a message until it can go on to a channel.
    pub(super) fn keep(&mut self, message: Message, delay: Option<Duration>) {
        self.bytes += weight(&message);
        self.waiting.push_back((message, delay));
    }

    /// What a channel has not been given yet of what waits, which stays for the other channels.
    pub(super) fn give(&mut self, channel: usize) -> impl Iterator<Item = &Waiting> {
        let given = self.given.insert(channel, self.waiting.len()).unwrap_or(0);
        self.waiting.iter().skip(given)
    }

    /// A channel with this key is no more, and another may come to have it.
    pub(super) fn forget_channel(&mut self, name: &str, key: usize) {
        self.channels.remove(name);
        self.given.remove(&key);
    }

    /// Nothing waits any longer.
    pub(super) fn forget_waiting(&mut self) {
        self.waiting = VecDeque::new();
        self.given.clear();
        self.bytes = 0;
    }

    pub(super) fn depth(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// After a restart, delays have passed and counts begin anew. A topic that nsqd finds is not new: no nsqlookupd is
    /// asked of it.
    pub(super) fn restart(&mut self) {
        for (_, delay) in &mut self.waiting {
            *delay = None;
        }
        self.starting = false;
        self.message_count = 0;
        self.message_bytes = 0;
    }
}
