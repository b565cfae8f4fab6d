//! Which nsqds have a topic, which nsqds and which topics there are, learnt from nsqlookupd.
//!
//! [`Rounds`] asks all nsqlookupds at once, at the times that `schedule` chooses, and lets `view` unite what they say. It
//! spawns nothing: it lives in the task of its owner and runs while that awaits [`Rounds::next`]. What is asked is a
//! `question`: [`Discovery`] asks for the nsqds of one topic, [`NodeWatch`] for all nsqds, [`TopicWatch`] for all topics.

mod facts;
mod http;
mod poll;
mod question;
mod registrations;
mod rounds;
mod schedule;
mod view;

use std::sync::Arc;
use std::time::Duration;

use self::question::{Nodes, Nsqds, Topics};
use self::rounds::Rounds;
use crate::config::{DiscoveryValues, LookupdConfig, put};
use crate::error::{Error, Result};
use crate::name::{Channel, Topic};
use crate::transport::Connector;

#[cfg(test)]
pub(crate) use self::facts::Status;
pub(crate) use self::facts::{LookupdFacts, NsqdFacts};
pub use self::facts::{LookupdStats, LookupdStatus, NsqdDiscovered};
pub(crate) use self::question::Hooks;
pub(crate) use self::question::Node;
pub(crate) use self::view::Changes;
use self::view::{Item, View};

/// How discovery asks, and what it accepts.
#[derive(Clone, Debug)]
pub(crate) struct DiscoveryOptions {
    /// The time between two rounds when all is well. Default 60 s, allowed 10 ms to 5 min.
    pub(crate) poll_interval: Duration,
    /// How much of the interval varies: a delay is `interval × (1 − jitter × random / 2)`. Default 0.3, allowed 0 to 1.
    pub(crate) poll_jitter: f64,
    /// What connecting to one nsqlookupd and getting its answer may take together, and so a round. Default 2 s, allowed
    /// 1 ms to 5 min.
    pub(crate) timeout: Duration,
    /// The largest answer in bytes that is read. Default 4 MiB, allowed 1 KiB to 1 GiB.
    pub(crate) max_body: usize,
    /// How many nsqds are accepted; further ones are ignored, with a warning. Default 1000, at least 1.
    pub(crate) max_nodes: usize,
    /// For how long an nsqd has to be missing at least, besides in three clean rounds, before it is dropped. Default
    /// 30 s, twice the time that an nsqd takes to register again with an nsqlookupd that was restarted.
    pub(crate) min_absence: Duration,
    /// What the user has to say about announced nsqds.
    pub(crate) hooks: Hooks,
    /// Whether to create the topic and channel at every nsqlookupd.
    pub(crate) create: bool,
}

impl Default for DiscoveryOptions {
    fn default() -> Self {
        Self {
            poll_interval: Duration::from_secs(60),
            poll_jitter: 0.3,
            timeout: Duration::from_secs(2),
            max_body: 4 * 1024 * 1024,
            max_nodes: 1000,
            min_absence: Duration::from_secs(30),
            hooks: Hooks::default(),
            create: false,
        }
    }
}

impl DiscoveryOptions {
    /// Sets what was given by name.
    pub(crate) fn apply(&mut self, given: &DiscoveryValues) {
        put(&mut self.poll_interval, &given.poll_interval);
        put(&mut self.poll_jitter, &given.poll_jitter);
        put(&mut self.timeout, &given.timeout);
        put(&mut self.max_nodes, &given.max_nsqds);
        put(&mut self.max_body, &given.max_answer);
    }

    fn check(&self) -> Result<()> {
        let longest = Duration::from_secs(5 * 60);
        if !(Duration::from_millis(10)..=longest).contains(&self.poll_interval) {
            let value = format!("{:?}", self.poll_interval);
            return Err(Error::option("lookupd_poll_interval", value, "10ms to 5m"));
        }
        if !(0.0..=1.0).contains(&self.poll_jitter) {
            return Err(Error::option("lookupd_poll_jitter", self.poll_jitter, "0 to 1"));
        }
        if !(Duration::from_millis(1)..=longest).contains(&self.timeout) {
            let value = format!("{:?}", self.timeout);
            return Err(Error::option("lookupd_timeout", value, "1ms to 5m"));
        }
        if self.max_nodes == 0 {
            return Err(Error::option("max_nsqds", self.max_nodes, "1 or more"));
        }
        if !(1024..=1 << 30).contains(&self.max_body) {
            return Err(Error::option(
                "max_lookupd_answer",
                self.max_body,
                "1024 to 1073741824 bytes",
            ));
        }
        Ok(())
    }
}

/// Keeps knowing which nsqds have one topic.
pub(crate) type Discovery = Rounds<Nsqds>;

impl Discovery {
    /// Prepares discovery; nothing is asked before the first [`next`](Rounds::next). There may be no nsqlookupd yet.
    ///
    /// An nsqlookupd given twice is asked once, by the later settings. `channel` is created where it is missing if
    /// `options` say so. `seed` decides the jitter.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if an address or header of an nsqlookupd is not one, or an
    /// option is out of range; [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for `https://` without TLS in
    /// this build.
    pub(crate) fn new(
        topic: Topic,
        channel: &Channel,
        lookupds: &[LookupdConfig],
        connector: Arc<dyn Connector>,
        options: &DiscoveryOptions,
        seed: u64,
    ) -> Result<Self> {
        if options.create && channel.is_ephemeral() {
            return Err(Error::option(
                "create_topic_and_channel",
                format_args!("true with channel {channel}"),
                "a channel that is not ephemeral, since nsqd creates no ephemeral channel before its first consumer",
            ));
        }
        let create = options.create.then(|| channel.clone());
        let question = Nsqds::new(topic, create, options.hooks.clone());
        Self::with_question(question, lookupds, connector, options, options.max_nodes, seed)
    }

    /// The nsqds that were found, sorted, and where they were found.
    pub(crate) fn nsqd_facts(&self) -> Vec<NsqdFacts> {
        nsqd_facts(self.view(), |address| address)
    }
}

/// Keeps knowing which nsqds there are, whatever topics they have.
///
/// A producer asks this and not for the nsqds of a topic: a topic is created on an nsqd by the first message to it, so a
/// new one has no nsqd yet, and one that is on a single nsqd would stay there.
pub(crate) type NodeWatch = Rounds<Nodes>;

impl NodeWatch {
    /// Prepares the watch, as [`Discovery::new`] prepares discovery; [`DiscoveryOptions::create`] has no meaning here.
    ///
    /// An nsqd that stays is in [`Changes::anew`] when it has been started again, and with it where it runs, which may
    /// be elsewhere.
    ///
    /// # Errors
    /// Those of [`Discovery::new`].
    pub(crate) fn watch(
        lookupds: &[LookupdConfig],
        connector: Arc<dyn Connector>,
        options: &DiscoveryOptions,
        seed: u64,
    ) -> Result<Self> {
        let question = Nodes::new(options.hooks.clone());
        Self::with_question(question, lookupds, connector, options, options.max_nodes, seed)
    }

    /// The nsqds that were found, sorted, and where they were found.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the producer's statistics"))]
    pub(crate) fn nsqd_facts(&self) -> Vec<NsqdFacts> {
        nsqd_facts(self.view(), |node| &node.address)
    }
}

fn nsqd_facts<T: Item>(view: &View<T>, address: impl Fn(&T) -> &Arc<str>) -> Vec<NsqdFacts> {
    let facts = view
        .announcements()
        .map(|(item, announced_by, missing_since)| NsqdFacts {
            address: Arc::clone(address(item)),
            announced_by: Arc::clone(announced_by),
            missing_since,
        });
    facts.collect()
}

/// Keeps knowing which topics there are. A topic that no nsqlookupd lists any more is dropped by the rule for nsqds.
pub(crate) type TopicWatch = Rounds<Topics>;

impl TopicWatch {
    /// How many topics are accepted by default.
    pub(crate) const MAX_TOPICS: usize = 10_000;

    /// Prepares the watch, as [`Discovery::new`] prepares discovery. `max_topics` takes the place of
    /// [`DiscoveryOptions::max_nodes`].
    ///
    /// # Errors
    /// Those of [`Discovery::new`].
    pub(crate) fn watch(
        lookupds: &[LookupdConfig],
        connector: Arc<dyn Connector>,
        options: &DiscoveryOptions,
        max_topics: usize,
        seed: u64,
    ) -> Result<Self> {
        if max_topics == 0 {
            return Err(Error::option("max_topics", max_topics, "1 or more"));
        }
        Self::with_question(Topics, lookupds, connector, options, max_topics, seed)
    }
}

#[cfg(test)]
mod scripted;
#[cfg(test)]
mod tests;
