//! What discovery tells about itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Whether one nsqlookupd answers.
#[derive(Clone, Debug)]
pub(crate) enum Status {
    /// It has not been asked, or has not had the time to answer.
    NeverAsked,
    /// It has given good answers from this time on.
    Answering { since: Instant },
    /// It has given no good answer from this time on; the error is the latest one.
    Failing { since: Instant, error: Error },
}

/// What is known of one nsqlookupd, without what it announced.
#[derive(Clone, Debug)]
pub(crate) struct LookupdFacts {
    pub(crate) address: Arc<str>,
    pub(crate) status: Status,
    /// When the answer that is in use was given, if there ever was a good one. Also told while it fails.
    pub(crate) answered_at: Option<Instant>,
    /// False if its last good answer was that it does not know the topic.
    pub(crate) topic_known: bool,
    pub(crate) announced: usize,
    pub(crate) malformed: usize,
    /// One of the malformed entries, and why.
    pub(crate) example: Option<String>,
    pub(crate) filtered: usize,
    pub(crate) ignored: usize,
    pub(crate) channel: Option<Result<()>>,
}

impl LookupdFacts {
    pub(super) fn new(address: Arc<str>) -> Self {
        Self::with_status(address, Status::NeverAsked)
    }

    pub(crate) fn with_status(address: Arc<str>, status: Status) -> Self {
        Self {
            address,
            status,
            answered_at: None,
            topic_known: true,
            announced: 0,
            malformed: 0,
            example: None,
            filtered: 0,
            ignored: 0,
            channel: None,
        }
    }

    pub(crate) fn is_answering(&self) -> bool {
        matches!(self.status, Status::Answering { .. })
    }

    /// Why it does not answer.
    pub(crate) fn failure(&self) -> Option<&Error> {
        match &self.status {
            Status::Failing { error, .. } => Some(error),
            _ => None,
        }
    }

    /// The same for users, with ages in place of times.
    pub(crate) fn stats(&self, now: Instant) -> LookupdStats {
        let age = |then: Instant| now.saturating_duration_since(then);
        LookupdStats {
            address: Arc::clone(&self.address),
            status: match &self.status {
                Status::NeverAsked => LookupdStatus::NeverAsked,
                Status::Answering { since } => LookupdStatus::Answering { lasting: age(*since) },
                Status::Failing { since, error } => LookupdStatus::Failing {
                    lasting: age(*since),
                    error: error.clone(),
                },
            },
            answer_age: self.answered_at.map(age),
            topic_known: self.answered_at.map(|_| self.topic_known),
            announced: self.announced,
            malformed: self.malformed,
            filtered: self.filtered,
            ignored: self.ignored,
            channel_created: self.channel.clone(),
        }
    }
}

/// One nsqlookupd of a consumer at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LookupdStats {
    /// `host:port`, or `https://host:port`.
    pub address: Arc<str>,
    /// Whether it answers.
    pub status: LookupdStatus,
    /// How old its last good answer is, which stays in use while it fails. `None` if it never gave one.
    pub answer_age: Option<Duration>,
    /// Whether it knows the topic, by its last good answer.
    pub topic_known: Option<bool>,
    /// How many different nsqds its last good answer named, apart from those filtered and malformed.
    pub announced: usize,
    /// How many entries of its last good answer named no usable address.
    pub malformed: usize,
    /// How many entries of its last good answer were left out by
    /// [`discovery_filter`](crate::ConsumerBuilder::discovery_filter).
    pub filtered: usize,
    /// How many of the announced nsqds are left out by [`max_nsqds`](crate::ConsumerBuilder::max_nsqds).
    pub ignored: usize,
    /// Whether it has the channel, by its last good answer or because it was created since. `None` if
    /// [`create_topic_and_channel`](crate::ConsumerBuilder::create_topic_and_channel) is not set, or there is no good
    /// answer yet.
    pub channel_created: Option<Result<(), Error>>,
}

/// Whether an nsqlookupd answers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LookupdStatus {
    /// It has not been asked yet, or not had the time to answer.
    NeverAsked,
    /// All is well.
    Answering {
        /// For how long it has been.
        lasting: Duration,
    },
    /// It gives no good answer.
    Failing {
        /// For how long.
        lasting: Duration,
        /// The latest failure.
        error: Error,
    },
}

/// An nsqd that was found through nsqlookupd, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NsqdDiscovered {
    /// The nsqd's address, `host:port`.
    pub address: Arc<str>,
    /// The nsqlookupd that announces it, or was the last to do so. Several may.
    pub announced_by: Arc<str>,
    /// For how long no nsqlookupd has announced it: it is dropped after three rounds in which every nsqlookupd answered,
    /// and 30 s. `None` while it is announced.
    pub missing: Option<Duration>,
}

/// An nsqd that was found through nsqlookupd.
#[derive(Clone, Debug)]
pub(crate) struct NsqdFacts {
    pub(crate) address: Arc<str>,
    pub(crate) announced_by: Arc<str>,
    pub(crate) missing_since: Option<Instant>,
}

impl NsqdFacts {
    /// The same for users, with an age in place of the time.
    pub(crate) fn stats(&self, now: Instant) -> NsqdDiscovered {
        NsqdDiscovered {
            address: Arc::clone(&self.address),
            announced_by: Arc::clone(&self.announced_by),
            missing: self.missing_since.map(|since| now.saturating_duration_since(since)),
        }
    }
}
