//! Who has which topic and channel.
//!
//! As in nsqlookupd, there are three kinds of keys: one for all nodes, one for each topic, one for each channel. Nodes
//! sign up for keys and leave them; a key stays when its last node has left.

use std::collections::BTreeMap;
use std::collections::btree_map::{Entry, Range};
use std::ops::Bound;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::time::Instant;

use super::state::{LookupdNode, LookupdProducer, LookupdTopic};
use crate::test_server::VERSION;

/// How many topics and channels there may be, and how many times a node may be signed up for one. nsqlookupd has no
/// such bound but its memory.
const MAX_ENTRIES: usize = 1_000_000;

/// What stands for any name, as in nsqlookupd.
const ANY: &str = "*";

/// What an nsqd says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(in crate::test_server) struct Identity {
    pub(in crate::test_server) broadcast_address: String,
    pub(in crate::test_server) hostname: String,
    pub(in crate::test_server) http_port: i64,
    pub(in crate::test_server) tcp_port: i64,
    pub(in crate::test_server) version: String,
}

impl Identity {
    /// The identity of an nsqd 1.3.0 whose host name is its address.
    pub(in crate::test_server) fn new(host: impl Into<String>, tcp_port: u16, http_port: u16) -> Self {
        let host = host.into();
        Self {
            hostname: host.clone(),
            broadcast_address: host,
            http_port: http_port.into(),
            tcp_port: tcp_port.into(),
            version: VERSION.to_owned(),
        }
    }

    /// `host:port` of the TCP protocol.
    pub(super) fn tcp_address(&self) -> String {
        if self.broadcast_address.contains(':') {
            format!("[{}]:{}", self.broadcast_address, self.tcp_port)
        } else {
            format!("{}:{}", self.broadcast_address, self.tcp_port)
        }
    }
}

/// Where a node comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Something that speaks TCP, and has to PING.
    Client,
    /// A broker of this process.
    Direct,
    /// A test, by hand. It is here as long as it has a topic.
    Hand,
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) identity: Identity,
    pub(super) remote_address: String,
    pub(super) last_update: Instant,
    origin: Origin,
}

/// The number of a node. A connection is a node of its own, as in nsqlookupd.
pub(super) type NodeId = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Category {
    Channel,
    Node,
    Topic,
}

type Key = (Category, String, String);

/// The nodes of one key, with the time of their tombstones.
type Members = BTreeMap<NodeId, Option<Instant>>;

/// There is no room for another topic or channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Full;

/// How long things last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetimes {
    /// A node that has not sent PING for longer is not listed.
    pub(super) inactive: Duration,
    pub(super) tombstone: Duration,
}

#[derive(Debug)]
pub(super) struct Book {
    lifetimes: Lifetimes,
    keys: BTreeMap<Key, Members>,
    nodes: BTreeMap<NodeId, Node>,
    entries: usize,
    last_id: NodeId,
    /// The same moment on both clocks.
    started: (Instant, SystemTime),
}

impl Book {
    pub(super) fn new(lifetimes: Lifetimes) -> Self {
        Self {
            lifetimes,
            keys: BTreeMap::new(),
            nodes: BTreeMap::new(),
            entries: 0,
            last_id: 0,
            started: (Instant::now(), SystemTime::now()),
        }
    }

    // What nodes do.

    /// A number for a node that is about to appear.
    pub(super) fn reserve_id(&mut self) -> NodeId {
        self.last_id += 1;
        self.last_id
    }

    /// Takes a node on. One that is here already only shows that it is alive.
    pub(super) fn appear(&mut self, id: NodeId, identity: &Identity, remote_address: &str, origin: Origin) {
        let node = self.nodes.entry(id).or_insert_with(|| Node {
            identity: identity.clone(),
            remote_address: remote_address.to_owned(),
            last_update: Instant::now(),
            origin,
        });
        node.last_update = Instant::now();
        // Room for the nodes themselves is bounded by the connections there can be.
        let _ = self.sign_up(node_key(), id);
    }

    pub(super) fn ping(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.last_update = Instant::now();
        }
    }

    /// The node leaves everything; the keys stay.
    pub(super) fn disappear(&mut self, id: NodeId) {
        if self.nodes.remove(&id).is_some() {
            for members in self.keys.values_mut() {
                self.entries -= usize::from(members.remove(&id).is_some());
            }
        }
    }

    /// All that came by TCP leave.
    pub(super) fn end_clients(&mut self) {
        let clients = self.nodes.iter().filter(|(_, node)| node.origin == Origin::Client);
        let ids: Vec<_> = clients.map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.disappear(id));
    }

    pub(super) fn register(&mut self, id: NodeId, topic: &str, channel: Option<&str>) -> Result<(), Full> {
        if let Some(channel) = channel {
            self.sign_up(channel_key(topic, channel), id)?;
        }
        self.sign_up(topic_key(topic), id)
    }

    /// The node leaves a channel, or a topic with all its channels. Only what is ephemeral goes with its last node.
    pub(super) fn unregister(&mut self, id: NodeId, topic: &str, channel: Option<&str>) {
        let (key, name) = match channel {
            Some(channel) => (channel_key(topic, channel), channel),
            None => {
                for key in self.channel_keys(topic) {
                    self.sign_off(&key, id);
                }
                (topic_key(topic), topic)
            }
        };
        self.sign_off(&key, id);
        let is_empty = self.keys.get(&key).is_some_and(Members::is_empty);
        if is_empty && name.ends_with("#ephemeral") {
            self.remove(&key);
        }
    }

    /// A second time changes nothing: a tombstone stays.
    fn sign_up(&mut self, key: Key, id: NodeId) -> Result<(), Full> {
        self.create(key.clone())?;
        let Some(members) = self.keys.get_mut(&key) else {
            return Ok(());
        };
        if let Entry::Vacant(place) = members.entry(id) {
            if self.entries >= MAX_ENTRIES {
                return Err(Full);
            }
            self.entries += 1;
            place.insert(None);
        }
        Ok(())
    }

    fn sign_off(&mut self, key: &Key, id: NodeId) {
        if let Some(members) = self.keys.get_mut(key) {
            self.entries -= usize::from(members.remove(&id).is_some());
        }
    }

    // What a test does by hand, naming nodes by their address.

    pub(super) fn register_by_hand(&mut self, topic: &str, identity: &Identity) {
        let here = self.keys.get(&topic_key(topic)).into_iter().flat_map(Members::keys);
        let is_same = |id: &NodeId| self.has_address(*id, &identity.tcp_address());
        if here.into_iter().any(is_same) {
            return;
        }
        let mut by_hand = self.nodes.iter().filter(|(_, node)| node.origin == Origin::Hand);
        let known = by_hand.find(|(_, node)| node.identity == *identity).map(|(id, _)| *id);
        let id = known.unwrap_or_else(|| self.reserve_id());
        self.appear(id, identity, &identity.tcp_address(), Origin::Hand);
        // A test that has a million topics knows it.
        let _ = self.register(id, topic, None);
    }

    pub(super) fn unregister_by_hand(&mut self, topic: &str, address: &str) {
        for id in self.members_at(topic, address) {
            self.unregister(id, topic, None);
            let is_by_hand = self.nodes.get(&id).is_some_and(|node| node.origin == Origin::Hand);
            if is_by_hand && self.topics_of(id).is_empty() {
                self.disappear(id);
            }
        }
    }

    pub(super) fn tombstone_by_hand(&mut self, topic: &str, address: &str) -> usize {
        let ids = self.members_at(topic, address);
        self.bury(&topic_key(topic), &ids);
        ids.len()
    }

    fn members_at(&self, topic: &str, address: &str) -> Vec<NodeId> {
        let members = self.keys.get(&topic_key(topic)).into_iter().flat_map(Members::keys);
        let here = members.filter(|id| self.has_address(**id, address));
        here.copied().collect()
    }

    fn has_address(&self, id: NodeId, address: &str) -> bool {
        self.nodes
            .get(&id)
            .is_some_and(|node| node.identity.tcp_address() == address)
    }

    fn bury(&mut self, key: &Key, ids: &[NodeId]) {
        if let Some(members) = self.keys.get_mut(key) {
            for (id, tombstone) in members {
                if ids.contains(id) {
                    *tombstone = Some(Instant::now());
                }
            }
        }
    }

    // What HTTP does.

    pub(super) fn create_topic(&mut self, topic: &str) -> Result<(), Full> {
        self.create(topic_key(topic))
    }

    pub(super) fn create_channel(&mut self, topic: &str, channel: &str) -> Result<(), Full> {
        self.create(channel_key(topic, channel))?;
        self.create(topic_key(topic))
    }

    /// Deletes a topic with its channels; nodes that have it are not asked.
    pub(super) fn delete_topic(&mut self, topic: &str) {
        for key in self.channel_keys(topic) {
            self.remove(&key);
        }
        for key in self.topic_keys(topic) {
            self.remove(&key);
        }
    }

    /// Whether there was one.
    pub(super) fn delete_channel(&mut self, topic: &str, channel: &str) -> bool {
        self.remove(&channel_key(topic, channel))
    }

    /// Buries a node, named by `broadcast_address:http_port`, in a topic.
    pub(super) fn tombstone(&mut self, topic: &str, node: &str) {
        let named = self.nodes.iter().filter(|(_, candidate)| {
            let Identity {
                broadcast_address,
                http_port,
                ..
            } = &candidate.identity;
            format!("{broadcast_address}:{http_port}") == node
        });
        let ids: Vec<_> = named.map(|(id, _)| *id).collect();
        for key in self.topic_keys(topic) {
            self.bury(&key, &ids);
        }
    }

    fn create(&mut self, key: Key) -> Result<(), Full> {
        if !self.keys.contains_key(&key) {
            if self.entries >= MAX_ENTRIES {
                return Err(Full);
            }
            self.entries += 1;
            self.keys.insert(key, Members::new());
        }
        Ok(())
    }

    fn remove(&mut self, key: &Key) -> bool {
        let removed = self.keys.remove(key);
        self.entries -= removed.as_ref().map_or(0, |members| members.len() + 1);
        removed.is_some()
    }

    /// Forgets all topics and channels, and what was registered by hand.
    pub(super) fn forget(&mut self) {
        let keys: Vec<_> = self
            .keys
            .keys()
            .filter(|key| key.0 != Category::Node)
            .cloned()
            .collect();
        for key in keys {
            self.remove(&key);
        }
        let by_hand = self.nodes.iter().filter(|(_, node)| node.origin == Origin::Hand);
        let ids: Vec<_> = by_hand.map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.disappear(id));
    }

    // What is asked.

    fn topic_keys(&self, topic: &str) -> Vec<Key> {
        self.in_topic(Category::Topic, topic)
            .map(|(key, _)| key.clone())
            .collect()
    }

    fn channel_keys(&self, topic: &str) -> Vec<Key> {
        self.in_topic(Category::Channel, topic)
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// The keys of a kind within a topic, or within all.
    fn in_topic<'a, 't>(&'a self, category: Category, topic: &'t str) -> impl Iterator<Item = (&'a Key, &'a Members)> {
        let from = if topic == ANY { "" } else { topic };
        let start = Bound::Included((category, from.to_owned(), String::new()));
        let range: Range<'a, Key, Members> = self.keys.range((start, Bound::Unbounded));
        range.take_while(move |(key, _)| key.0 == category && (topic == ANY || key.1 == topic))
    }

    pub(super) fn knows(&self, topic: &str) -> bool {
        self.in_topic(Category::Topic, topic).next().is_some()
    }

    pub(super) fn topics(&self) -> Vec<&str> {
        self.in_topic(Category::Topic, ANY).map(|(key, _)| &*key.1).collect()
    }

    pub(super) fn channels(&self, topic: &str) -> Vec<&str> {
        self.in_topic(Category::Channel, topic)
            .map(|(key, _)| &*key.2)
            .collect()
    }

    /// The nodes of a topic that clients are told of, in the order of their addresses.
    pub(super) fn producers(&self, topic: &str) -> Vec<&Node> {
        let mut found: BTreeMap<NodeId, Option<Instant>> = BTreeMap::new();
        for (_, members) in self.in_topic(Category::Topic, topic) {
            for (id, tombstone) in members {
                // With a wildcard, nsqlookupd takes each node as the first topic has it.
                found.entry(*id).or_insert(*tombstone);
            }
        }
        let visible = found.into_iter().filter(|(_, tombstone)| !self.is_buried(*tombstone));
        let nodes = visible.filter_map(|(id, _)| self.nodes.get(&id));
        let mut producers: Vec<_> = nodes.filter(|node| self.is_active(node)).collect();
        producers.sort_by_key(|node| order(node));
        producers
    }

    /// All active nodes in the order of their addresses, each with its topics, and whether it is buried in them.
    pub(super) fn active_nodes(&self) -> Vec<(&Node, Vec<(&str, bool)>)> {
        let mut topics: BTreeMap<NodeId, Vec<(&str, bool)>> = BTreeMap::new();
        for (key, members) in self.in_topic(Category::Topic, ANY) {
            for (id, tombstone) in members {
                let buried = self.is_buried(*tombstone);
                topics.entry(*id).or_default().push((&key.1, buried));
            }
        }
        let nodes = self.keys.get(&node_key()).into_iter().flat_map(Members::keys);
        let active = nodes.filter_map(|id| {
            let node = self.nodes.get(id).filter(|node| self.is_active(node))?;
            Some((node, topics.remove(id).unwrap_or_default()))
        });
        let mut active: Vec<_> = active.collect();
        active.sort_by_key(|(node, _)| order(node));
        active
    }

    /// Every key that has nodes, as `/debug` names it, with its nodes.
    pub(super) fn entries(&self) -> impl Iterator<Item = (String, Vec<(&Node, Option<Instant>)>)> {
        self.keys
            .iter()
            .filter(|(_, members)| !members.is_empty())
            .map(|(key, members)| {
                let category = match key.0 {
                    Category::Channel => "channel",
                    Category::Node => "client",
                    Category::Topic => "topic",
                };
                let nodes = members
                    .iter()
                    .filter_map(|(id, tombstone)| Some((self.nodes.get(id)?, *tombstone)));
                (format!("{category}:{}:{}", key.1, key.2), nodes.collect())
            })
    }

    fn topics_of(&self, id: NodeId) -> Vec<&str> {
        let topics = self.in_topic(Category::Topic, ANY);
        let having = topics.filter(|(_, members)| members.contains_key(&id));
        having.map(|(key, _)| &*key.1).collect()
    }

    fn is_active(&self, node: &Node) -> bool {
        node.origin != Origin::Client || node.last_update.elapsed() <= self.lifetimes.inactive
    }

    fn is_buried(&self, tombstone: Option<Instant>) -> bool {
        tombstone.is_some_and(|since| since.elapsed() < self.lifetimes.tombstone)
    }

    /// When time alone will change an answer next.
    pub(super) fn next_change(&self) -> Option<Instant> {
        let tick = Duration::from_millis(1);
        let inactive = self.nodes.values().filter(|node| node.origin == Origin::Client);
        let inactive = inactive.map(|node| node.last_update + self.lifetimes.inactive + tick);
        let tombstones = self.keys.values().flat_map(Members::values).flatten();
        let expired = tombstones.map(|since| *since + self.lifetimes.tombstone);
        let now = Instant::now();
        inactive.chain(expired).filter(|due| *due > now).min()
    }

    /// A moment in nanoseconds since the Unix epoch.
    pub(super) fn unix_nanos(&self, moment: Instant) -> i64 {
        let (started, wall) = self.started;
        let wall = wall + moment.saturating_duration_since(started);
        let nanos = wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        i64::try_from(nanos).unwrap_or(i64::MAX)
    }

    // What a test sees.

    pub(super) fn see_topics(&self) -> Vec<LookupdTopic> {
        let topics = self.in_topic(Category::Topic, ANY);
        let topics = topics.map(|(key, members)| {
            let mut producers: Vec<_> = members
                .iter()
                .filter_map(|(id, tombstone)| {
                    let node = self.nodes.get(id)?;
                    Some(LookupdProducer {
                        address: node.identity.tcp_address(),
                        tombstoned: self.is_buried(*tombstone),
                        active: self.is_active(node),
                    })
                })
                .collect();
            producers.sort_by(|left, right| left.address.cmp(&right.address));
            LookupdTopic {
                name: key.1.clone(),
                channels: self.channels(&key.1).into_iter().map(str::to_owned).collect(),
                producers,
            }
        });
        topics.collect()
    }

    pub(super) fn see_nodes(&self) -> Vec<LookupdNode> {
        let mut nodes: Vec<_> = self.nodes.iter().collect();
        nodes.sort_by_key(|(_, node)| order(node));
        let nodes = nodes.into_iter().map(|(id, node)| LookupdNode {
            address: node.identity.tcp_address(),
            broadcast_address: node.identity.broadcast_address.clone(),
            hostname: node.identity.hostname.clone(),
            tcp_port: node.identity.tcp_port,
            http_port: node.identity.http_port,
            version: node.identity.version.clone(),
            remote_address: node.remote_address.clone(),
            last_update: node.last_update,
            active: self.is_active(node),
            topics: self.topics_of(*id).into_iter().map(str::to_owned).collect(),
        });
        nodes.collect()
    }
}

fn node_key() -> Key {
    (Category::Node, String::new(), String::new())
}

fn topic_key(topic: &str) -> Key {
    (Category::Topic, topic.to_owned(), String::new())
}

fn channel_key(topic: &str, channel: &str) -> Key {
    (Category::Channel, topic.to_owned(), channel.to_owned())
}

fn order(node: &Node) -> (String, i64) {
    (node.identity.broadcast_address.clone(), node.identity.tcp_port)
}
