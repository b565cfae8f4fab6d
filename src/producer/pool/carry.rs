//! The way of one publish: choose, submit, look at the outcome, and go on elsewhere, again, or not at all.

use std::future::{Future, poll_fn};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::super::bell::Listener;
use super::super::lane::Lane;
use super::super::node::Leftover;
use super::super::pipeline::{Manner, Payload, Span};
use super::mirror::Tally;
use super::retry::{Attempts, Next};
use super::routing::RoutedMessage;
use super::{Inside, Pool, join, left};
use crate::error::{Error, ErrorKind, Result, Step};
use crate::name::Topic;

/// What is published. Its parts are cloned for each attempt; bodies are shared by that, not copied.
pub(super) struct Outgoing {
    topic: Topic,
    payload: Payload,
    span: Span,
}

impl Outgoing {
    fn facts(&self) -> RoutedMessage<'_> {
        let body: &[u8] = match &self.payload {
            Payload::One(body) | Payload::Deferred { body, .. } => body,
            Payload::Many(bodies) => bodies.first().map_or(&[], |body| body),
            Payload::Ping | Payload::Gone => &[],
        };
        RoutedMessage::new(&self.topic, body)
    }
}

/// Which nsqds have a copy of the message, or are about to get it: no other copy goes there.
#[derive(Debug)]
struct Claims(Mutex<Vec<Arc<Lane>>>);

impl Claims {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Lane>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One copy of a message, or the only one, on its way.
struct Journey<'a> {
    attempts: Attempts,
    /// The nsqds that have failed it. They are not asked again before all others have been.
    tried: Vec<Arc<Lane>>,
    claims: Option<&'a Claims>,
}

impl<'a> Journey<'a> {
    fn new(at_least_once: bool, claims: Option<&'a Claims>) -> Self {
        Self {
            attempts: Attempts::new(at_least_once),
            tried: Vec::new(),
            claims,
        }
    }

    fn has_failed(&mut self, lane: Arc<Lane>) {
        if let Some(claims) = self.claims {
            claims.lock().retain(|claimed| !Arc::ptr_eq(claimed, &lane));
        }
        self.tried.push(lane);
    }
}

/// What is at no nsqd: it waits for a connection, or pauses before it is repeated.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Publishes that have not arrived anywhere.
    not_sent: AtomicUsize,
    /// Publishes that may have arrived with an earlier attempt.
    unknown: AtomicUsize,
    pub(super) messages: AtomicUsize,
    pub(super) bytes: AtomicUsize,
}

impl Queue {
    /// What becomes of them if they are given up now.
    pub(super) fn publishes(&self) -> Leftover {
        Leftover {
            not_sent: self.not_sent.load(Ordering::SeqCst),
            unknown: self.unknown.load(Ordering::SeqCst),
        }
    }
}

/// Counts a publish that is at no nsqd.
struct Waiting<'a> {
    queue: &'a Queue,
    may_have_arrived: bool,
    messages: usize,
    bytes: usize,
}

impl<'a> Waiting<'a> {
    fn new(queue: &'a Queue, payload: &Payload, attempts: &Attempts) -> Self {
        let waiting = Self {
            queue,
            may_have_arrived: attempts.may_have_arrived(),
            messages: payload.messages(),
            bytes: payload.size(),
        };
        waiting.publishes().fetch_add(1, Ordering::SeqCst);
        queue.messages.fetch_add(waiting.messages, Ordering::Relaxed);
        queue.bytes.fetch_add(waiting.bytes, Ordering::Relaxed);
        waiting
    }

    fn publishes(&self) -> &'a AtomicUsize {
        if self.may_have_arrived {
            &self.queue.unknown
        } else {
            &self.queue.not_sent
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.publishes().fetch_sub(1, Ordering::SeqCst);
        self.queue.messages.fetch_sub(self.messages, Ordering::Relaxed);
        self.queue.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Pool {
    /// Publishes to as many nsqds as the policy says.
    ///
    /// # Cancel safety
    /// Dropping the future takes back what no nsqd's connection has taken. A copy that waits at an nsqd stays and is sent.
    pub(in crate::producer) async fn publish(&self, topic: Topic, payload: Payload, span: Span) -> Result<()> {
        let messages = payload.messages();
        let inside = Inside::enter(self);
        let outcome = match &inside {
            Ok(_) => self.carry_all(topic, payload, span).await,
            Err(error) => Err(error.clone()),
        };
        // While it is inside, so that who waits for its end finds it counted.
        self.books.count(&outcome, messages);
        outcome
    }

    /// As [`publish`](Self::publish), for a caller that keeps the books itself.
    pub(super) async fn carry_all(&self, topic: Topic, payload: Payload, span: Span) -> Result<()> {
        self.budget.deposit();
        let message = Outgoing { topic, payload, span };
        if self.policy.copies.count == 1 {
            let journey = Journey::new(self.policy.at_least_once, None);
            self.carry(&message, None, journey).await
        } else {
            self.mirror(&message).await
        }
    }

    /// Asks every nsqd that has a connection.
    pub(in crate::producer) async fn ping(&self, span: Span) -> Result<()> {
        let _inside = Inside::enter(self)?;
        let mut up = self.notices.up.listen();
        let lanes = loop {
            let lanes = self.connected();
            if !lanes.is_empty() {
                break lanes;
            }
            self.wait_for_change(&mut up, span.deadline, None, Step::Ping).await?;
        };
        let pings = lanes
            .iter()
            .map(|lane| Box::pin(lane.submit(Manner::default(), None, Payload::Ping, span)));
        let mut worst: Result<()> = Ok(());
        join(pings.collect(), |outcome| match outcome {
            Err(error) if worst.is_ok() || error.kind() == ErrorKind::Unknown => worst = Err(error),
            _ => {}
        })
        .await;
        worst
    }

    /// Publishes one copy, beginning at `first` if that is given.
    async fn carry(&self, message: &Outgoing, first: Option<Arc<Lane>>, mut journey: Journey<'_>) -> Result<()> {
        let mut next = first;
        loop {
            let lane = match next.take() {
                Some(lane) => lane,
                None => self.next_lane(message, &mut journey).await?,
            };
            let manner = journey.attempts.manner(journey.claims.is_some());
            let (topic, payload) = (message.topic.clone(), message.payload.clone());
            let outcome = lane.submit(manner, Some(topic), payload, message.span).await;
            let left = self.left_after(&outcome, message);
            match journey
                .attempts
                .handle_outcome(outcome, left, &self.budget, fastrand::f64())
            {
                Next::Done(result) => return result,
                Next::Elsewhere => {
                    self.counts.elsewhere.fetch_add(1, Ordering::Relaxed);
                }
                Next::After(pause) => {
                    self.counts.retried.fetch_add(1, Ordering::Relaxed);
                    let _waiting = Waiting::new(&self.waiting, &message.payload, &journey.attempts);
                    self.pause(pause).await;
                }
            }
            journey.has_failed(lane);
        }
    }

    /// Publishes copies to different nsqds at the same time.
    async fn mirror(&self, message: &Outgoing) -> Result<()> {
        let copies = &self.policy.copies;
        // Only what was not sent anywhere comes round again, so no outcome is unknown here.
        let mut journey = Journey::new(false, None);
        loop {
            let lanes = self.find(message, copies.least(), copies.count, &mut journey).await?;
            let outcome = self.send_copies(message, &lanes).await;
            let left = self.left_after(&outcome, message);
            match journey
                .attempts
                .handle_outcome(outcome, left, &self.budget, fastrand::f64())
            {
                Next::Done(result) => return result,
                Next::Elsewhere | Next::After(_) => lanes.into_iter().for_each(|lane| journey.has_failed(lane)),
            }
        }
    }

    async fn send_copies(&self, message: &Outgoing, lanes: &[Arc<Lane>]) -> Result<()> {
        let claims = Claims(Mutex::new(lanes.to_vec()));
        let mut tally = Tally::new(&self.policy.copies, lanes.len());
        let copies = lanes.iter().map(|lane| {
            let journey = Journey::new(self.policy.at_least_once, Some(&claims));
            Box::pin(self.carry(message, Some(Arc::clone(lane)), journey))
        });
        let mut copies: Vec<_> = copies.collect();
        poll_fn(|cx| {
            let mut verdict = None;
            // All of them, also after a verdict: a copy is only on its way once it has been polled.
            copies.retain_mut(|copy| match copy.as_mut().poll(cx) {
                Poll::Ready(outcome) => {
                    let told = tally.handle_outcome(outcome);
                    verdict = verdict.take().or(told);
                    false
                }
                Poll::Pending => true,
            });
            verdict.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    async fn next_lane(&self, message: &Outgoing, journey: &mut Journey<'_>) -> Result<Arc<Lane>> {
        let mut found = self.find(message, 1, 1, journey).await?;
        let lane = found.swap_remove(0);
        if let Some(claims) = journey.claims {
            claims.lock().push(Arc::clone(&lane));
        }
        Ok(lane)
    }

    /// At least `least` and at most `most` nsqds for a message; waits for them until its deadline.
    async fn find(
        &self,
        message: &Outgoing,
        least: usize,
        most: usize,
        journey: &mut Journey<'_>,
    ) -> Result<Vec<Arc<Lane>>> {
        let found = self.choose_for(message, most, journey)?;
        if found.len() >= least {
            return Ok(found);
        }
        if journey.claims.is_some() && self.policy.copies.accept_fewer {
            let error = Error::new(ErrorKind::NotSent, Step::Publish, "no other nsqd is there for a copy");
            return Err(journey.attempts.give_up(error));
        }
        let mut up = self.notices.up.listen();
        let _waiting = Waiting::new(&self.waiting, &message.payload, &journey.attempts);
        loop {
            // Again, since a connection may have come before the subscription to it.
            let found = self.choose_for(message, most, journey)?;
            if found.len() >= least {
                return Ok(found);
            }
            let pause = (!journey.tried.is_empty()).then(|| journey.attempts.pause(fastrand::f64()));
            let changed = self.wait_for_change(&mut up, message.span.deadline, pause, Step::Publish);
            if let Err(error) = changed.await {
                return Err(journey.attempts.give_up(error));
            }
            journey.tried.clear();
        }
    }

    fn choose_for(&self, message: &Outgoing, most: usize, journey: &mut Journey<'_>) -> Result<Vec<Arc<Lane>>> {
        let claimed = journey.claims.map(Claims::lock);
        let claimed = claimed.as_deref().map_or(&[][..], Vec::as_slice);
        let is_ruled_out = |lane: &Arc<Lane>| {
            let was_tried = journey.tried.iter().any(|other| Arc::ptr_eq(other, lane));
            // By address: an nsqd that was removed and added again has another lane, and still has its copy.
            was_tried || claimed.iter().any(|other| other.address == lane.address)
        };
        let chosen = self.choose(&message.facts(), most, is_ruled_out);
        chosen.map_err(|error| journey.attempts.give_up(error))
    }

    /// Waits for a connection, or until `pause` is over.
    async fn wait_for_change(
        &self,
        up: &mut Listener<'_>,
        deadline: Instant,
        pause: Option<Duration>,
        step: Step,
    ) -> Result<()> {
        if self.is_stopping() {
            let reason = "the producer was shut down before it could be sent";
            return Err(Error::new(ErrorKind::NotSent, step, reason));
        }
        tokio::select! {
            biased;
            () = up.rung() => Ok(()),
            () = sleep_until(deadline) => Err(self.none_in_time(step)),
            () = sleep(pause.unwrap_or_default()), if pause.is_some() => Ok(()),
        }
    }

    /// Pauses, unless the producer is stopped meanwhile.
    async fn pause(&self, pause: Duration) {
        let mut up = self.notices.up.listen();
        let stopped = async {
            while !self.is_stopping() {
                up.rung().await;
            }
        };
        tokio::select! {
            biased;
            () = stopped => {}
            () = sleep(pause) => {}
        }
    }

    /// The time left for another attempt. None once the producer stops, nor for a batch that each nsqd would refuse for its
    /// size by now: published again, it leaves in smaller parts.
    fn left_after(&self, outcome: &Result<()>, message: &Outgoing) -> Duration {
        let is_too_large = || {
            let lanes = self.lanes();
            !lanes.is_empty() && lanes.iter().all(|lane| !lane.takes(&message.payload))
        };
        let is_batch = matches!(message.payload, Payload::Many(_));
        if self.is_stopping() || (outcome.is_err() && is_batch && is_too_large()) {
            Duration::ZERO
        } else {
            left(message.span.deadline)
        }
    }

    fn none_in_time(&self, step: Step) -> Error {
        let lanes = self.lanes();
        let connected = lanes.iter().filter(|lane| lane.is_connected()).count();
        let text = match (lanes.len(), connected) {
            (0, _) => "the deadline passed and no nsqd is known".to_owned(),
            (all, 0) => format!("the deadline passed while none of the {all} nsqds had a connection"),
            (all, connected) => format!(
                "the deadline passed while {connected} of the {all} nsqds had a connection, which were too few or not \
                 taking it"
            ),
        };
        let error = Error::new(ErrorKind::NotSent, step, text);
        match self.failure() {
            Some(failure) => error.because(failure),
            None => error,
        }
    }
}
