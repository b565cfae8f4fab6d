//! Several consumers under one `max_in_flight`, and consumers of all topics that match a pattern.
//!
//! ```text
//!  nsqlookupd /topics ─▶ topics ─┐ starts and ends
//!                                ▼
//!    ConsumerGroup ─▶ shared: members, each a Consumer
//!                       │  ▲
//!           allowances  ▼  │ usage, when it changes
//!                      ration ◀──▶ the consumer's supervisor: flow
//! ```
//!
//! `budget` decides, `shared` carries its decisions out. Each member is an ordinary consumer whose `max_in_flight` is set by
//! the group, so there is no second flow.

mod budget;
mod builder;
mod pattern;
mod ration;
mod shared;
mod state;
mod topics;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

pub use self::budget::MemberId;
pub use self::builder::ConsumerGroupBuilder;
pub use self::pattern::TopicPattern;
pub(super) use self::ration::Ration;
use self::shared::Shared;
pub use self::state::{GroupReport, GroupStats, MemberReport, MemberStats};
use self::topics::Listing;
use super::builder::ConsumerBuilder;
use super::handler::Handler;
use super::state::ConsumerReport;
use crate::error::{Error, ErrorKind, Result, Step};

/// Several consumers under one `max_in_flight`, for a service that reads many topics and has memory, database connections
/// or patience for so many messages and no more.
///
/// Each member is a [`Consumer`](crate::Consumer) with its own topic, channel, handler and options. How many messages it
/// may have in flight is the group's decision:
///
/// * Members have parts of [`max_in_flight`](ConsumerGroupBuilder::max_in_flight) by their weights, at least 1 each, and
///   never more than their own [`max_in_flight`](ConsumerBuilder::max_in_flight) (200 unless set).
/// * A member that got no message for 10 s, or has got none yet, keeps 1 for each of its nsqds and lends the rest of its
///   part to the busy ones. It has it back at its next message, as soon as the others have answered what they have.
/// * With more members than `max_in_flight`, as many as it allows may have 1 message in flight, and the turns go round, so
///   that none waits longer than about 30 s (with hundreds of members for each message in flight: 0.1 s for each).
///   Weights mean nothing then, and throughput is poor: better is at least 1 for each nsqd of each member.
/// * The sum over all members' connections of max(RDY, in flight) stays within it, as a consumer's own does.
///
/// # Topics as they appear
/// [`topics_matching`](ConsumerGroupBuilder::topics_matching) adds a member for every topic of a pattern.
///
/// # Drop
/// Dropping the group drops its consumers: see [`Consumer`](crate::Consumer). Use [`shutdown`](Self::shutdown) to let
/// handlers end and to know.
///
/// ```
/// use std::time::Duration;
/// use async_nsq::{BoxError, Consumer, ConsumerGroup, Message, test_server::Nsqd};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let nsqd = Nsqd::start().await?;
/// # let nsqd = nsqd.address();
/// async fn charge(_order: Message) -> Result<(), BoxError> { Ok(()) }
/// async fn count(_click: Message) -> Result<(), BoxError> { Ok(()) }
///
/// let group = ConsumerGroup::builder()
///     .max_in_flight(500)
///     .add(Consumer::builder("orders", "billing").nsqd(nsqd).max_in_flight(400), 3, charge)
///     .add(Consumer::builder("clicks", "statistics").nsqd(nsqd), 1, count)
///     .start()
///     .await?;
/// group.ready(Duration::from_secs(5)).await?;
/// let report = group.shutdown(Duration::from_secs(30)).await;
/// assert!(report.is_clean());
/// # Ok(())
/// # }
/// ```
pub struct ConsumerGroup {
    shared: Arc<Shared>,
    /// Whether the topics of each pattern are known.
    listings: Vec<watch::Receiver<Listing>>,
    /// Moves the budget, and follows patterns. Dropping it ends them.
    tasks: JoinSet<()>,
}

impl ConsumerGroup {
    /// Options of a group.
    pub fn builder() -> ConsumerGroupBuilder {
        ConsumerGroupBuilder::new()
    }

    /// Starts a further member with this weight (1 to 10,000).
    ///
    /// # Errors
    /// Those of [`ConsumerBuilder::start`]; [`ErrorKind::Invalid`] also for a weight out of range or more members than
    /// [`max_members`](ConsumerGroupBuilder::max_members); [`ErrorKind::Shutdown`] if the group is ending.
    ///
    /// # Cancel safety
    /// Dropping the future before it was polled starts nothing; its first poll completes it.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn start<H: Handler>(&self, builder: ConsumerBuilder, weight: u32, handler: H) -> Result<MemberId> {
        self.shared.start(builder, weight, handler)
    }

    /// Shuts one member down as [`Consumer::shutdown`](crate::Consumer::shutdown) does, and tells what it did; `None` if
    /// there is no such member. What it has in flight counts until its end.
    ///
    /// # Cancel safety
    /// Dropping the future once it was polled leaves the member ending, by the deadline given.
    pub async fn remove(&self, member: MemberId, deadline: Duration) -> Option<ConsumerReport> {
        // Its task is gone only with the runtime.
        Some(self.shared.end(member, deadline)?.await.unwrap_or_default())
    }

    /// Waits until the topics of each pattern are known, and each member is subscribed at one nsqd at least.
    ///
    /// The group goes on trying whatever this returns. Members that are added meanwhile are not waited for.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`] once `deadline` has passed, with the failure of one member or of an nsqlookupd;
    /// [`ErrorKind::Shutdown`] if the group or a member has ended.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn ready(&self, deadline: Duration) -> Result<()> {
        let now = Instant::now();
        let end = now
            .checked_add(deadline)
            .unwrap_or(now + Duration::from_secs(86_400 * 365));
        for listing in &self.listings {
            known(listing.clone(), end, deadline).await?;
        }
        if self.shared.is_ending() {
            return Err(Error::new(
                ErrorKind::Shutdown,
                Step::Subscribe,
                "the group of consumers has ended",
            ));
        }
        // They wait at the same time, whoever is asked first.
        for consumer in self.shared.consumers() {
            let left = end.saturating_duration_since(Instant::now());
            consumer.ready(left).await.map_err(|error| {
                let text = format!(
                    "the group's member for topic {} is not ready within {deadline:?}",
                    consumer.topic()
                );
                Error::new(error.kind(), Step::Subscribe, text).because(error)
            })?;
        }
        Ok(())
    }

    /// Changes how many messages may be in flight over all members, from now on; 0 pauses the group. What is above a
    /// lowered number is worked off first.
    pub fn set_max_in_flight(&self, count: u32) {
        self.shared.set_max_in_flight(count);
    }

    /// Stops the flow of messages to all members, those that are added meanwhile included, until
    /// [`resume`](Self::resume). What is here or on its way is handled, and connections stay.
    pub fn pause(&self) {
        self.shared.set_paused(true);
    }

    /// Ends a [`pause`](Self::pause). Without one it does nothing.
    pub fn resume(&self) {
        self.shared.set_paused(false);
    }

    /// The members, and how the budget is divided among them, as of now. It waits for nothing.
    #[must_use]
    pub fn stats(&self) -> GroupStats {
        self.shared.stats()
    }

    /// Ends all members at once, each as [`Consumer::shutdown`](crate::Consumer::shutdown) does, within one deadline.
    ///
    /// A second call waits for the first one's end.
    ///
    /// # Cancel safety
    /// Dropping the future once it was polled leaves the group ending, by the deadline given.
    pub async fn shutdown(&self, deadline: Duration) -> GroupReport {
        self.shared.shut_down(deadline).await
    }
}

/// Waits until the topics of a pattern are known.
async fn known(mut listing: watch::Receiver<Listing>, end: Instant, deadline: Duration) -> Result<()> {
    let known = listing.wait_for(|listing| matches!(listing, Listing::Known));
    // Where its task is gone the group is ending, which is told by whoever looks next.
    if timeout_at(end, known).await.is_ok() {
        return Ok(());
    }
    let text = format!("no nsqlookupd has told its topics within {deadline:?}");
    let error = Error::new(ErrorKind::Unreachable, Step::Lookup, text);
    Err(match &*listing.borrow() {
        Listing::Failing(cause) => error.because(cause.clone()),
        Listing::NotYet | Listing::Known => error,
    })
}

impl Drop for ConsumerGroup {
    fn drop(&mut self) {
        self.shared.abandon();
    }
}

impl fmt::Debug for ConsumerGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerGroup")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
