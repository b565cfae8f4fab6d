//! Which nsqds have a topic, learnt from nsqlookupd.
//!
//! [`Discovery`] asks all nsqlookupds at once, at the times that `schedule` chooses, and lets [`View`] unite what they
//! say. It spawns nothing: it lives in the task of its owner and runs while that awaits [`Discovery::next`].

mod poll;
mod schedule;
mod view;

use std::error::Error as StdError;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use self::poll::{Ask, Asker, parse_address};
use self::schedule::PollSchedule;
use crate::error::{Error, Result};
use crate::name::Topic;
use crate::transport::Connector;

pub(crate) use self::view::{Changes, Lookupd, LookupdStatus, View};

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
    /// The largest answer in bytes that is read. Default 4 MiB.
    pub(crate) max_body: usize,
    /// How many nsqds are accepted; further ones are ignored, with a warning. Default 1000, at least 1.
    pub(crate) max_nodes: usize,
    /// For how long an nsqd has to be missing at least, besides in three clean rounds, before it is dropped. Default
    /// 30 s, twice the time that an nsqd takes to register again with an nsqlookupd that was restarted.
    pub(crate) min_absence: Duration,
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
        }
    }
}

impl DiscoveryOptions {
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
            return Err(Error::option("max_nodes", self.max_nodes, "1 or more"));
        }
        Ok(())
    }
}

/// Keeps knowing which nsqds have one topic.
///
/// Dropping it ends the round that is under way, and its connections.
pub(crate) struct Discovery {
    topic: Topic,
    asker: Asker,
    schedule: PollSchedule,
    view: View,
    phase: Phase,
    round_began: Instant,
    was_clean: bool,
    /// Whether [`Discovery::poll_soon`] was called since the last round began.
    soon: bool,
}

enum Phase {
    /// The first round.
    Due,
    Waiting(Pin<Box<Sleep>>),
    /// One question per nsqlookupd, `None` once it is answered.
    Asking(Vec<Option<Ask>>),
}

impl Discovery {
    /// Prepares discovery; nothing is asked before the first [`next`](Self::next).
    ///
    /// An nsqlookupd is `host:port` or `http://host:port` of its HTTP interface; one given twice is asked once. `seed`
    /// decides the jitter.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if no nsqlookupd is given, an address is not one, or an option
    /// is out of range; [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for `https://`.
    pub(crate) fn new<A: AsRef<str>>(
        topic: Topic,
        lookupds: impl IntoIterator<Item = A>,
        connector: Arc<dyn Connector>,
        options: &DiscoveryOptions,
        seed: u64,
    ) -> Result<Self> {
        options.check()?;
        let mut addresses = Vec::new();
        for lookupd in lookupds {
            let address = parse_address(lookupd.as_ref())?;
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if addresses.is_empty() {
            return Err(Error::option("lookupd", "not given", "one address or more"));
        }
        Ok(Self {
            asker: Asker::new(connector, &topic, options.timeout, options.max_body),
            schedule: PollSchedule::new(options.poll_interval, options.poll_jitter, seed),
            view: View::new(addresses, options.max_nodes, options.min_absence),
            phase: Phase::Due,
            round_began: Instant::now(),
            was_clean: true,
            soon: false,
            topic,
        })
    }

    /// Waits until the next round is due, asks all nsqlookupds at once, and tells what that changed. Returns after every
    /// round, also when nothing changed, since [`view`](Self::view) did.
    ///
    /// The first call asks at once. A round takes no longer than the timeout of one question.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: the waiting or the round that it was in goes on with the next call. What is
    /// under way stands still in between, except that its timeout runs.
    pub(crate) async fn next(&mut self) -> Changes {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// Brings the next round forward to within a second from now, because a connection was lost. It is never within a
    /// second of the round before, so this may be called as often as there is reason to.
    pub(crate) fn poll_soon(&mut self) {
        if self.soon {
            return;
        }
        self.soon = true;
        if let Phase::Waiting(sleep) = &mut self.phase {
            let at = Instant::now() + self.schedule.soon(self.round_began.elapsed());
            if at < sleep.deadline() {
                sleep.as_mut().reset(at);
            }
        }
    }

    /// What is known: the nsqds, who announced them, and how each nsqlookupd does.
    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Changes> {
        loop {
            match &mut self.phase {
                Phase::Due => self.begin_round(),
                Phase::Waiting(sleep) => {
                    ready!(sleep.as_mut().poll(context));
                    self.begin_round();
                }
                Phase::Asking(_) => {
                    ready!(self.poll_round(context));
                    return Poll::Ready(self.finish_round());
                }
            }
        }
    }

    fn begin_round(&mut self) {
        self.round_began = Instant::now();
        self.soon = false;
        let lookupds = self.view.lookupds().iter();
        self.phase = Phase::Asking(
            lookupds
                .map(|lookupd| Some(self.asker.ask(lookupd.address())))
                .collect(),
        );
    }

    fn poll_round(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Phase::Asking(asks) = &mut self.phase else {
            return Poll::Ready(());
        };
        // There are a few nsqlookupds, so asking each again whenever one moved costs less than telling them apart.
        let mut pending = false;
        for (index, slot) in asks.iter_mut().enumerate() {
            let Some(ask) = slot else { continue };
            match ask.as_mut().poll(context) {
                Poll::Pending => pending = true,
                Poll::Ready(answer) => {
                    *slot = None;
                    let before = self.view.lookupds()[index].clone();
                    self.view.handle_answer(index, answer, Instant::now().into_std());
                    log_lookupd(&self.topic, &before, &self.view.lookupds()[index]);
                }
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    }

    fn finish_round(&mut self) -> Changes {
        let was_full = self.view.ignored() > 0;
        let changes = self.view.poll_round_finished(Instant::now().into_std());
        log_nodes(&self.topic, &self.view, &changes, was_full);
        let clean = self.view.last_round_clean();
        let changed = !changes.added.is_empty() || !changes.removed.is_empty() || clean != self.was_clean;
        self.was_clean = clean;
        let mut delay = self.schedule.after_round(changed);
        if self.soon {
            delay = delay.min(self.schedule.soon(self.round_began.elapsed()));
        }
        self.phase = Phase::Waiting(Box::pin(sleep(delay)));
        changes
    }
}

/// Tells what is new about an nsqlookupd, and nothing that the answer before told already.
fn log_lookupd(topic: &Topic, before: &Lookupd, after: &Lookupd) {
    let lookupd = &**after.address();
    match (before.status(), after.status()) {
        (LookupdStatus::Failing { .. }, LookupdStatus::Failing { .. }) => {}
        (_, LookupdStatus::Failing { error, .. }) => {
            let cause = error.source().map(tracing::field::display);
            tracing::warn!(%topic, lookupd, %error, cause, "nsqlookupd does not answer; its last answer stays in use");
        }
        (LookupdStatus::Failing { since, .. }, LookupdStatus::Answering { at }) => {
            let after = at.saturating_duration_since(*since);
            tracing::info!(%topic, lookupd, ?after, "nsqlookupd answers again");
        }
        _ => {}
    }
    if before.topic_known() && !after.topic_known() {
        tracing::debug!(%topic, lookupd, "nsqlookupd does not know the topic yet");
    }
    if before.malformed() != after.malformed() && after.malformed() > 0 {
        let entries = after.malformed();
        tracing::warn!(%topic, lookupd, entries, "nsqlookupd lists nsqds without a usable address; they are ignored");
    }
}

fn log_nodes(topic: &Topic, view: &View, changes: &Changes, was_full: bool) {
    for nsqd in &changes.added {
        let lookupd = view.announced_by(nsqd);
        tracing::debug!(%topic, nsqd = &**nsqd, lookupd = lookupd.map(|lookupd| &**lookupd), "nsqd found");
    }
    for nsqd in &changes.removed {
        tracing::debug!(%topic, nsqd = &**nsqd, "nsqd gone from every nsqlookupd");
    }
    if !was_full && view.ignored() > 0 {
        let (limit, ignored) = (view.nodes().len(), view.ignored());
        tracing::warn!(%topic, limit, ignored, "nsqlookupd lists more nsqds than are accepted; the rest is ignored");
    }
}

#[cfg(test)]
mod scripted;
#[cfg(test)]
mod tests;
