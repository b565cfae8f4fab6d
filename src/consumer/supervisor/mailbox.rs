//! What the supervisor is told by connections and workers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use crate::consumer::flow::Outcome;
use crate::consumer::link::refusal::AnswerRefused;
use crate::consumer::link::{Command, Link, Written};
use crate::error::Error;

/// News for the supervisor.
#[derive(Debug)]
pub(in crate::consumer) enum Event {
    /// A connection has subscribed.
    Connected {
        link: Arc<Link>,
        /// Whether its node was told to leave meanwhile.
        leaving: watch::Receiver<bool>,
    },
    /// A connection has ended, or an attempt to make one.
    Lost {
        address: Arc<str>,
        link: Option<Arc<Link>>,
        error: Error,
        /// Whether its node was told to leave meanwhile: another one may be at work on the same nsqd.
        leaving: watch::Receiver<bool>,
        /// Whether answers were lost with it.
        unflushed: bool,
    },
    /// A message was handled, and the flow has to know before nsqd is told: RDY goes before the answer that causes it.
    Handled {
        link: Arc<Link>,
        answer: Command,
        outcome: Outcome,
        /// Who wants to know when the answer is written.
        written: Option<Written>,
    },
    /// nsqd has refused an answer.
    Refused(AnswerRefused),
}

/// How many refused answers may wait for the supervisor. nsqd sends one for each answer that comes too late; a peer could
/// send them without end.
const MOST_REFUSALS: usize = 1024;

/// The supervisor's mailbox. It is bounded by what it is about: an event per message in flight, a few per connection, and
/// refusals up to a limit.
#[derive(Debug, Default)]
pub(in crate::consumer) struct Mailbox {
    events: Mutex<Events>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Events {
    waiting: Vec<Event>,
    refusals: usize,
    /// Nobody reads any more.
    closed: bool,
}

impl Mailbox {
    pub(in crate::consumer) fn send(&self, event: Event) {
        let mut events = self.lock();
        if events.closed {
            drop(events);
            // Whoever waits for an answer to be written hears from the event's end.
            drop(event);
            return;
        }
        if matches!(event, Event::Refused(_)) {
            if events.refusals >= MOST_REFUSALS {
                return;
            }
            events.refusals += 1;
        }
        events.waiting.push(event);
        drop(events);
        self.arrived.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Events> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the supervisor look around.
    pub(in crate::consumer) fn notify(&self) {
        self.arrived.notify_one();
    }

    /// Waits for news.
    ///
    /// # Cancel safety
    /// No news is lost.
    pub(in crate::consumer) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    pub(in crate::consumer) fn take(&self) -> Vec<Event> {
        let mut events = self.lock();
        events.refusals = 0;
        std::mem::take(&mut events.waiting)
    }

    /// The supervisor is gone. What has not been read, and what comes later, is dropped: events know connections, and
    /// connections the mailbox, so what stayed here would stay for ever, and so would whoever waits for it.
    pub(in crate::consumer) fn close(&self) {
        self.lock().closed = true;
        drop(self.take());
    }
}
