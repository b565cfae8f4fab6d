//! Asks all nsqlookupds again and again.

use std::error::Error as StdError;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep};

use super::DiscoveryOptions;
use super::facts::{LookupdFacts, Status};
use super::http::Client;
use super::poll::{Ask, Asker};
use super::question::Question;
use super::registrations::Registrations;
use super::schedule::PollSchedule;
use super::view::{Changes, View};
use crate::config::{LookupdConfig, LookupdTarget};
use crate::error::Result;
use crate::transport::Connector;

/// Keeps asking all nsqlookupds one question, and knows the answer.
///
/// Dropping it ends the round that is under way, and its connections.
pub(crate) struct Rounds<Q: Question> {
    asker: Asker<Q>,
    /// The same nsqlookupds as the view's.
    targets: Vec<LookupdTarget>,
    schedule: PollSchedule,
    view: View<Q::Item>,
    registrations: Registrations<Q::Item>,
    phase: Phase<Q::Item>,
    round_began: Instant,
    was_clean: bool,
    /// Whether [`Rounds::poll_soon`] was called since the last round began.
    soon: bool,
    /// Whether nsqlookupds were added or removed since the last round ended.
    disturbed: bool,
}

enum Phase<T> {
    /// A round is to begin at once.
    Due,
    Waiting(Pin<Box<Sleep>>),
    /// The questions that are not answered yet, each with the nsqlookupd it was put to.
    Asking(Vec<(Arc<str>, Ask<T>)>),
}

impl<Q: Question> Rounds<Q> {
    /// Nothing is asked before the first [`next`](Self::next).
    pub(super) fn with_question(
        question: Q,
        lookupds: &[LookupdConfig],
        connector: Arc<dyn Connector>,
        options: &DiscoveryOptions,
        max_items: usize,
        seed: u64,
    ) -> Result<Self> {
        options.check()?;
        let client = Client {
            connector,
            timeout: options.timeout,
            max_body: options.max_body,
        };
        let mut rounds = Self {
            asker: Asker::new(question, client),
            targets: Vec::new(),
            schedule: PollSchedule::new(options.poll_interval, options.poll_jitter, seed),
            view: View::new([], max_items, options.min_absence),
            registrations: Registrations::new(max_items),
            phase: Phase::Due,
            round_began: Instant::now(),
            was_clean: true,
            soon: false,
            disturbed: false,
        };
        for lookupd in lookupds {
            rounds.add_lookupd(lookupd)?;
        }
        rounds.disturbed = false;
        Ok(rounds)
    }

    /// Waits until the next round is due, asks all nsqlookupds at once, and tells what that changed. Returns after every
    /// round, also when nothing changed, since [`view`](Self::view) did.
    ///
    /// The first call asks at once. A round takes no longer than the timeout of one question, unless an nsqlookupd is
    /// added meanwhile. Without nsqlookupds there is no round, and this never returns.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: the waiting or the round that it was in goes on with the next call. What is
    /// under way stands still in between, except that its timeout runs.
    pub(crate) async fn next(&mut self) -> Changes<Q::Item> {
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

    /// Asks one more nsqlookupd, at once: as part of the round that is under way, or of one that begins now. One that is
    /// there already is asked by the new settings from the next question on, and what is known of it stays. True if it
    /// was not there.
    ///
    /// # Errors
    /// Those of [`LookupdConfig::resolve`]; nothing has changed then.
    pub(crate) fn add_lookupd(&mut self, lookupd: &LookupdConfig) -> Result<bool> {
        let target = lookupd.resolve()?;
        if !self.view.add_lookupd(&target.address) {
            if let Some(known) = self.targets.iter_mut().find(|known| known.address == target.address) {
                *known = target;
            }
            return Ok(false);
        }
        self.disturbed = true;
        match &mut self.phase {
            Phase::Due => {}
            Phase::Waiting(_) => self.phase = Phase::Due,
            Phase::Asking(asks) => asks.push((Arc::clone(&target.address), self.asker.ask(&target))),
        }
        self.targets.push(target);
        Ok(true)
    }

    /// Asks an nsqlookupd no more. What only it announced is dropped after three rounds in which all others answered,
    /// and 30 s, as if it had answered that there is nothing; but once no nsqlookupd is left, everything found so far
    /// stays. False if it is not there.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if this is no address.
    pub(crate) fn remove_lookupd(&mut self, address: &str) -> Result<bool> {
        let address = LookupdTarget::name(address)?;
        if !self.view.remove_lookupd(&address) {
            return Ok(false);
        }
        self.registrations.forget(&address);
        self.targets.retain(|target| target.address != address);
        if let Phase::Asking(asks) = &mut self.phase {
            asks.retain(|(asked, _)| *asked != address);
        }
        self.disturbed = true;
        self.poll_soon();
        Ok(true)
    }

    /// What is known: what was found, who announced it, and how each nsqlookupd does.
    pub(crate) fn view(&self) -> &View<Q::Item> {
        &self.view
    }

    /// How each nsqlookupd does.
    pub(crate) fn lookupd_facts(&self) -> Vec<LookupdFacts> {
        let lookupds = self.view.lookupds().iter();
        lookupds.map(|lookupd| lookupd.facts().clone()).collect()
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Changes<Q::Item>> {
        loop {
            match &mut self.phase {
                // Whoever adds one polls again.
                Phase::Due | Phase::Waiting(_) if self.targets.is_empty() => {
                    self.phase = Phase::Due;
                    return Poll::Pending;
                }
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
        let asks = self
            .targets
            .iter()
            .map(|target| (Arc::clone(&target.address), self.asker.ask(target)));
        self.phase = Phase::Asking(asks.collect());
    }

    fn poll_round(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Phase::Asking(asks) = &mut self.phase else {
            return Poll::Ready(());
        };
        // There are a few nsqlookupds, so asking each again whenever one moved costs less than telling them apart.
        let (view, registrations, question) = (&mut self.view, &mut self.registrations, &self.asker.question);
        asks.retain_mut(|(lookupd, ask)| {
            let Poll::Ready(mut answer) = ask.as_mut().poll(context) else {
                return true;
            };
            if let Ok(answer) = &mut answer {
                registrations.handle_answer(lookupd, std::mem::take(&mut answer.registrations));
            }
            let before = view.lookupd(lookupd).map(|lookupd| lookupd.facts().clone());
            view.handle_answer(lookupd, answer, Instant::now().into_std());
            if let (Some(before), Some(after)) = (before, view.lookupd(lookupd)) {
                log_lookupd(question, &before, after.facts());
            }
            false
        });
        if asks.is_empty() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    fn finish_round(&mut self) -> Changes<Q::Item> {
        let was_full = self.view.ignored() > 0;
        let mut changes = self.view.poll_round_finished(Instant::now().into_std());
        // What is only found now, nobody has tried yet; and what exceeds the limit is not found at all.
        let anew = self.registrations.take().into_iter();
        changes.anew = anew
            .filter(|item| changes.added.binary_search(item).is_err())
            .filter_map(|item| self.view.get(&item).cloned())
            .collect();
        self.log_changes(&changes, was_full);
        let clean = self.view.last_round_clean();
        let disturbed = std::mem::take(&mut self.disturbed);
        // One that has vanished may well be back in a moment.
        let vanished = self.view.vanished();
        let changed = disturbed || vanished || !changes.is_empty() || clean != self.was_clean;
        self.was_clean = clean;
        let mut delay = self.schedule.after_round(changed);
        if self.soon {
            delay = delay.min(self.schedule.soon(self.round_began.elapsed()));
        }
        self.phase = Phase::Waiting(Box::pin(sleep(delay)));
        changes
    }

    fn log_changes(&self, changes: &Changes<Q::Item>, was_full: bool) {
        let question = &self.asker.question;
        for item in &changes.added {
            question.log_added(item, self.view.announced_by(item).map(|lookupd| &**lookupd));
        }
        for item in &changes.removed {
            question.log_removed(item);
        }
        if !was_full && self.view.ignored() > 0 {
            question.log_ignored(self.view.items().len(), self.view.ignored());
        }
    }
}

/// Tells what is new about an nsqlookupd, and nothing that the answer before told already.
fn log_lookupd(question: &impl Question, before: &LookupdFacts, after: &LookupdFacts) {
    let lookupd = &*after.address;
    let topic = question.topic().map(tracing::field::display);
    match (&before.status, &after.status) {
        (Status::Failing { .. }, Status::Failing { .. }) => {}
        (_, Status::Failing { error, .. }) => {
            let cause = error.source().map(tracing::field::display);
            let told = if after.answered_at.is_some() {
                "; its last answer stays in use"
            } else {
                ""
            };
            tracing::warn!(topic, lookupd, %error, cause, "nsqlookupd gives no usable answer{told}");
        }
        (Status::Failing { since: failing, .. }, Status::Answering { since }) => {
            let after = since.saturating_duration_since(*failing);
            tracing::info!(topic, lookupd, ?after, "nsqlookupd answers again");
        }
        _ => {}
    }
    if before.topic_known && !after.topic_known {
        tracing::debug!(topic, lookupd, "nsqlookupd does not know the topic yet");
    }
    if before.malformed != after.malformed && after.malformed > 0 {
        let (entries, example) = (after.malformed, after.example.as_deref());
        tracing::warn!(
            topic,
            lookupd,
            entries,
            example,
            "nsqlookupd lists entries that are not usable; they are ignored"
        );
    }
    match (&before.channel, &after.channel) {
        (Some(Err(_)), Some(Err(_))) => {}
        (_, Some(Err(error))) => {
            tracing::warn!(topic, lookupd, %error, "the channel cannot be created at nsqlookupd; it is tried again");
        }
        _ => {}
    }
}
