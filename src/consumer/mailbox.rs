//! What the supervisor is told by connections and workers.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, watch};

use super::flow::Outcome;
use super::link::{Command, Link};
use crate::error::Error;

/// News for the supervisor.
#[derive(Debug)]
pub(super) enum Event {
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
        /// Whether answers were lost with it.
        unflushed: bool,
    },
    /// A message was handled, and the flow has to know before nsqd is told: RDY goes before the answer that causes it.
    Handled {
        link: Arc<Link>,
        answer: Command,
        outcome: Outcome,
    },
}

/// The supervisor's mailbox. It is bounded by what it is about: an event per message in flight, and a few per
/// connection.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    events: Mutex<Vec<Event>>,
    arrived: Notify,
}

impl Mailbox {
    pub(super) fn send(&self, event: Event) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        self.arrived.notify_one();
    }

    /// Makes the supervisor look around.
    pub(super) fn notify(&self) {
        self.arrived.notify_one();
    }

    /// Waits for news.
    ///
    /// # Cancel safety
    /// No news is lost.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    pub(super) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
