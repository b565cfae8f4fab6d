//! Starts a consumer for each topic of a pattern as it appears, and ends it when the topic is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::budget::MemberId;
use super::pattern::TopicPattern;
use super::shared::Shared;
use crate::consumer::builder::ConsumerBuilder;
use crate::consumer::handler::Handler;
use crate::consumer::work::panics::caught;
use crate::discovery::{Changes, TopicWatch};
use crate::error::{Error, ErrorKind};
use crate::name::Topic;

/// How long the handlers of a topic that is gone may take to end.
const END_OF_TOPIC: Duration = Duration::from_secs(30);

/// Tells which topics there are.
pub(super) trait TopicSource: Send + 'static {
    /// Waits for news, also for the news that nothing has changed.
    ///
    /// # Cancel safety
    /// No news is lost.
    fn next(&mut self) -> impl Future<Output = Changes<Topic>> + Send;

    /// Why nothing is known, if all nsqlookupds fail.
    fn failure(&self) -> Option<Error>;
}

impl TopicSource for TopicWatch {
    async fn next(&mut self) -> Changes<Topic> {
        TopicWatch::next(self).await
    }

    fn failure(&self) -> Option<Error> {
        let facts = self.lookupd_facts();
        let failures: Vec<_> = facts.iter().filter_map(|lookupd| lookupd.failure()).collect();
        (failures.len() == facts.len())
            .then(|| failures.first().map(|error| (*error).clone()))
            .flatten()
    }
}

/// Whether the topics are known.
#[derive(Clone, Debug)]
pub(super) enum Listing {
    NotYet,
    Failing(Error),
    Known,
}

/// One pattern of a group.
pub(super) struct Follower<S, F> {
    pub(super) source: S,
    pub(super) pattern: TopicPattern,
    pub(super) template: ConsumerBuilder,
    /// Makes the handler of a topic.
    pub(super) make: F,
    pub(super) shared: Arc<Shared>,
    pub(super) listing: watch::Sender<Listing>,
    pub(super) running: BTreeMap<Topic, MemberId>,
    /// Topics for which there is no room, or whose consumers could not be started. It is bounded by how many topics the
    /// source accepts.
    pub(super) waiting: BTreeSet<Topic>,
}

impl<S, F, H> Follower<S, F>
where
    S: TopicSource,
    F: Fn(&Topic) -> H + Send + Sync,
    H: Handler,
{
    /// Runs until the group ends.
    pub(super) async fn run(mut self) {
        loop {
            let changes = self.source.next().await;
            for topic in changes.removed {
                self.leave(&topic);
            }
            let new = changes.added.into_iter().filter(|topic| self.pattern.matches(topic));
            self.waiting.extend(new);
            if self.start_waiting().is_err() {
                return;
            }
            let failure = self.source.failure();
            self.listing.send_if_modified(|listing| {
                match (failure, &*listing) {
                    // What is known stays in use.
                    (Some(_), Listing::Known) | (None, Listing::Known) => return false,
                    (Some(error), _) => *listing = Listing::Failing(error),
                    (None, _) => *listing = Listing::Known,
                }
                true
            });
        }
    }

    fn leave(&mut self, topic: &Topic) {
        self.waiting.remove(topic);
        if let Some(member) = self.running.remove(topic) {
            tracing::info!(%topic, "the topic is gone, its consumer ends");
            // In the background.
            drop(self.shared.end(member, END_OF_TOPIC));
        }
    }

    /// An error is the end of the group.
    fn start_waiting(&mut self) -> Result<(), GroupEnded> {
        let before = self.waiting.len();
        let starting: Vec<Topic> = self.waiting.iter().cloned().collect();
        let (mut failed, mut failure) = (0, None);
        for topic in starting {
            // Asked for each, since one that cannot be started takes no room; and before its handler is made for nothing.
            if self.running.len() >= self.pattern.max_topics || !self.shared.has_room() {
                break;
            }
            match self.start(&topic) {
                Ok(member) => {
                    tracing::info!(%topic, "a topic has appeared, its consumer starts");
                    self.waiting.remove(&topic);
                    self.running.insert(topic, member);
                }
                Err(error) if error.kind() == ErrorKind::Shutdown => return Err(GroupEnded),
                Err(error) => {
                    failed += 1;
                    failure.get_or_insert(error);
                }
            }
        }
        // Said again only when there are more of them.
        if !self.waiting.is_empty() && self.waiting.len() >= before {
            let (waiting, max_topics) = (self.waiting.len(), self.pattern.max_topics);
            tracing::warn!(waiting, failed, failure = ?failure, max_topics, "topics that match the pattern are not consumed");
        }
        Ok(())
    }

    fn start(&self, topic: &Topic) -> Result<MemberId, Error> {
        let handler = caught(|| Ok((self.make)(topic))).map_err(|error| Error::invalid(error.to_string()))?;
        self.shared
            .start(self.template.for_topic(topic.clone()), self.pattern.weight, handler)
    }
}

/// The group takes no further members.
struct GroupEnded;
