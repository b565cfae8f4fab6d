//! Options of a group.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::ConsumerGroup;
use super::budget::MAX_WEIGHT;
use super::pattern::TopicPattern;
use super::shared::Shared;
use super::topics::{Follower, Listing};
use crate::consumer::builder::ConsumerBuilder;
use crate::consumer::handler::Handler;
use crate::error::{Error, Result};
use crate::name::{Channel, Topic};

type Start = Box<dyn FnOnce(&mut ConsumerGroup) -> Result<()> + Send + Sync>;

/// Options of a [`ConsumerGroup`], each with a default.
///
/// A setter never fails; [`start`](Self::start) reports what is wrong.
#[must_use = "a builder does nothing until `start` is called"]
pub struct ConsumerGroupBuilder {
    max_in_flight: u32,
    max_members: usize,
    starts: Vec<Start>,
}

impl ConsumerGroupBuilder {
    pub(super) fn new() -> Self {
        Self {
            max_in_flight: 200,
            max_members: 1000,
            starts: Vec::new(),
        }
    }

    /// How many messages may be delivered and not answered, over all members together. Default: 200. 0 pauses the group.
    ///
    /// Less than one for each nsqd of each member makes messages wait for turns.
    pub fn max_in_flight(mut self, count: u32) -> Self {
        self.max_in_flight = count;
        self
    }

    /// How many members there may be. Default: 1,000. Allowed: 1 or more. Each costs a consumer: some tasks, and a
    /// connection to each of its nsqds.
    pub fn max_members(mut self, count: usize) -> Self {
        self.max_members = count;
        self
    }

    /// Adds a member with this weight (1 to 10,000). The consumer's own `max_in_flight` is the most that it ever gets; all
    /// its other options mean what they always do.
    pub fn add<H: Handler>(mut self, builder: ConsumerBuilder, weight: u32, handler: H) -> Self {
        self.starts.push(Box::new(move |group| {
            group.shared.start(builder, weight, handler).map(|_id| ())
        }));
        self
    }

    /// Adds a member for every topic that matches `pattern`, as soon as an nsqlookupd knows it, with the channel and the
    /// handler that `handler` makes for the topic. `options` sets the options of all these consumers: an nsqlookupd at
    /// least, which is also asked for the topics. May be called several times; a topic of two patterns has two members.
    ///
    /// nsqlookupds are asked for their topics as [`lookupd_poll_interval`](ConsumerBuilder::lookupd_poll_interval) says
    /// (every 60 s, more often at the start and after changes), and up to 10,000 topics are looked at. A topic that is gone
    /// from every nsqlookupd in three clean rounds, and for 30 s, loses its member, whose handlers may take another 30 s to
    /// end. If it comes back, so does the member.
    ///
    /// A topic that somebody deletes at its nsqds while it is consumed is not gone: nsqd creates it again as soon as the
    /// consumer connects anew, as with every NSQ client. End the group before, or take the topic out of the pattern.
    ///
    /// ```
    /// use async_nsq::{BoxError, ConsumerGroup, Message, Topic, TopicPattern, test_server::Lookupd};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let lookupd = Lookupd::start().await?;
    /// # let lookupd = lookupd.address().to_owned();
    /// let group = ConsumerGroup::builder()
    ///     .max_in_flight(1000)
    ///     .topics_matching(
    ///         TopicPattern::glob("orders.*"),
    ///         "archive",
    ///         |consumer| consumer.lookupd(lookupd), // "127.0.0.1:4161"
    ///         |topic: &Topic| {
    ///             let file = format!("{topic}.log");
    ///             move |message: Message| {
    ///                 println!("to {file}: {:?}", message.body());
    ///                 async { Ok::<(), BoxError>(()) }
    ///             }
    ///         },
    ///     )
    ///     .start()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn topics_matching<C, O, F, H>(mut self, pattern: TopicPattern, channel: C, options: O, handler: F) -> Self
    where
        C: TryInto<Channel>,
        C::Error: Into<Error>,
        O: FnOnce(ConsumerBuilder) -> ConsumerBuilder,
        F: Fn(&Topic) -> H + Send + Sync + 'static,
        H: Handler,
    {
        // The topic's place is taken by each that appears.
        let template = ConsumerBuilder::new(Topic::new("any"), channel.try_into().map_err(Into::into));
        let template = options(template);
        self.starts
            .push(Box::new(move |group| follow(group, pattern, template, handler)));
        self
    }

    /// Starts all members. It waits for no connection: see [`ConsumerGroup::ready`].
    ///
    /// # Errors
    /// Those of [`ConsumerBuilder::start`] and [`ConsumerGroup::start`] for any of the members; none is left running then.
    ///
    /// # Cancel safety
    /// Dropping the future starts nothing.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn start(self) -> Result<ConsumerGroup> {
        if self.max_members == 0 {
            return Err(Error::option("max_members", self.max_members, "1 or more"));
        }
        let shared = Arc::new(Shared::new(self.max_in_flight, self.max_members));
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&shared).keep());
        let mut group = ConsumerGroup {
            shared,
            listings: Vec::new(),
            tasks,
        };
        for start in self.starts {
            start(&mut group)?;
        }
        Ok(group)
    }
}

fn follow<F, H>(group: &mut ConsumerGroup, pattern: TopicPattern, template: ConsumerBuilder, make: F) -> Result<()>
where
    F: Fn(&Topic) -> H + Send + Sync + 'static,
    H: Handler,
{
    if !(1..=MAX_WEIGHT).contains(&pattern.weight) {
        return Err(Error::option("weight", pattern.weight, "1 to 10000"));
    }
    if pattern.max_topics == 0 {
        return Err(Error::option("max_topics", pattern.max_topics, "1 or more"));
    }
    let source = template.topic_watch()?;
    let (listing, listed) = watch::channel(Listing::NotYet);
    let follower = Follower {
        source,
        pattern,
        template,
        make,
        shared: Arc::clone(&group.shared),
        listing,
        running: BTreeMap::new(),
        waiting: BTreeSet::new(),
    };
    group.tasks.spawn(follower.run());
    group.listings.push(listed);
    Ok(())
}

impl fmt::Debug for ConsumerGroupBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerGroupBuilder")
            .field("max_in_flight", &self.max_in_flight)
            .field("max_members", &self.max_members)
            .finish_non_exhaustive()
    }
}
