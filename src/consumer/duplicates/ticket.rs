//! Who handles a message of a key, and who waits for that.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;

use super::{DuplicateWindow, Key, Maybe};
use crate::consumer::answer::desk::Desk;
use crate::consumer::answer::lease::Lease;
use crate::consumer::flow::ConnectionId;
use crate::consumer::link::{Command, Purpose};
use crate::consumer::message::Message;
use crate::consumer::work::inbox::{Delivery, Inbox};
use crate::consumer::work::panics::caught;
use crate::name::{Channel, Topic};
use crate::protocol::MessageId;

/// The keys that somebody is at work on, each with the further deliveries that wait for the outcome. It is bounded by what
/// is in flight.
#[derive(Default)]
pub(super) struct Claims {
    claimed: Mutex<HashMap<Key, Vec<Parked>>>,
}

impl Claims {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Vec<Parked>>> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A delivery that waits, and where it goes if it has to be handled after all.
struct Parked {
    delivery: Delivery,
    inbox: Arc<Inbox>,
}

impl Parked {
    /// In which place of which nsqd's list it is in flight.
    fn place(&self) -> (ConnectionId, MessageId) {
        (self.delivery.link.id, self.delivery.message.id)
    }

    fn is_alive(&self) -> bool {
        self.delivery.link.check().is_ok()
    }

    /// nsqd has taken it back and delivered it again on the same connection, so it is not in flight any more.
    fn forget(self) {
        let forget = Command::Forget(self.delivery.message.id);
        let _lost_with_its_connection = self.delivery.link.send(forget);
    }

    /// Finished by another delivery of the same message.
    fn finish(&self, answered: bool) {
        let Delivery { message, link, .. } = &self.delivery;
        if answered {
            // The connection's other delivery has answered this one too: nsqd knows but one message with this id.
            let _lost_with_its_connection = link.send(Command::Forget(message.id));
        }
        skip(&self.delivery, answered);
    }

    /// The other delivery was not finished.
    fn unpark(self, answered: bool) {
        let link = Arc::clone(&self.delivery.link);
        let id = self.delivery.message.id;
        if answered {
            let _lost_with_its_connection = link.send(Command::Forget(id));
        } else if self.is_alive() {
            let mut back = VecDeque::from([self.delivery.message]);
            self.inbox.append(&link, self.delivery.delivered_at, &mut back);
            if !back.is_empty() {
                let _lost_with_its_connection = link.send(Command::give_back(id, Purpose::Unstarted));
            }
        }
    }
}

/// Finishes a message that was finished before.
fn skip(delivery: &Delivery, answered: bool) {
    let Delivery { message, link, .. } = delivery;
    tracing::debug!(nsqd = %link.address, id = %message.id, "a message that was finished already came again and is skipped");
    link.desk.counts.duplicates.fetch_add(1, Ordering::Relaxed);
    if !answered {
        // On a lost connection nsqd takes the message back by itself.
        let _lost_with_its_connection = link.desk.answer(link, message.id, message.attempts, Ok(()));
    }
}

/// A consumer's view of its window.
pub(in super::super) struct Duplicates {
    window: DuplicateWindow,
    /// What the default key begins with.
    prefix: Vec<u8>,
    runtime: Handle,
}

/// What becomes of a delivery before it is handled.
pub(in super::super) enum Admission {
    Begin(Unstarted),
    /// It is finished, or waits for another.
    Settled,
    /// The store is asked. The result is `None` for a duplicate.
    Asking(Pin<Box<dyn Future<Output = Option<Unstarted>> + Send>>),
}

impl Duplicates {
    pub(in super::super) fn new(window: DuplicateWindow, topic: &Topic, channel: &Channel) -> Arc<Self> {
        let prefix = format!("{topic}/{channel}/").into_bytes();
        let runtime = Handle::current();
        Arc::new(Self {
            window,
            prefix,
            runtime,
        })
    }

    pub(in super::super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Looks whether a delivery is to be handled. One whose key is being handled is parked; it comes back through `inbox`
    /// if that fails.
    pub(in super::super) fn admit(self: &Arc<Self>, delivery: Delivery, inbox: &Arc<Inbox>) -> Admission {
        let Some(key) = self.key(&delivery) else {
            return Admission::Begin(Unstarted::new(delivery, None));
        };
        match self.window.memory.claims.lock().entry(Arc::clone(&key)) {
            Entry::Occupied(mut claimed) => {
                let parked = claimed.get_mut();
                // Else they would pile up with each reconnection.
                parked.retain(Parked::is_alive);
                let inbox = Arc::clone(inbox);
                let newest = Parked { delivery, inbox };
                match parked.iter_mut().find(|parked| parked.place() == newest.place()) {
                    // Else a handler that is stuck would use up what may be in flight, by and by.
                    Some(older) => std::mem::replace(older, newest).forget(),
                    None => parked.push(newest),
                }
                return Admission::Settled;
            }
            Entry::Vacant(unclaimed) => {
                unclaimed.insert(Vec::new());
            }
        }
        let ticket = Arc::new(Ticket {
            duplicates: Arc::clone(self),
            key,
            place: (delivery.link.id, delivery.message.id),
            ended: AtomicBool::new(false),
        });
        let finished = self.window.memory.is_finished(&ticket.key);
        let unstarted = Unstarted::new(delivery, Some(ticket));
        match finished {
            Maybe::Now(finished) => match unstarted.unless(finished) {
                Some(unstarted) => Admission::Begin(unstarted),
                None => Admission::Settled,
            },
            Maybe::Later(asking) => Admission::Asking(Box::pin(async move { unstarted.unless(asking.await) })),
        }
    }

    fn key(&self, delivery: &Delivery) -> Option<Key> {
        let Some(key) = &self.window.key else {
            let (nsqd, id) = (delivery.link.address.as_bytes(), delivery.message.id);
            return Some([&self.prefix, nsqd, b"/", id.as_bytes()].concat().into());
        };
        let lease = Lease::new(Arc::clone(&delivery.link), delivery.delivered_at);
        let message = Message::of_handler(delivery.message.clone(), Arc::new(lease), None);
        match caught(|| Ok(key(&message))) {
            Ok(key) => Some(key.into()),
            Err(error) => {
                tracing::warn!(nsqd = %delivery.link.address, id = %delivery.message.id, %error, "the key of a message could not be made, so its duplicates are handled");
                None
            }
        }
    }

    /// Gives back what waits for another delivery: the consumer of this desk ends.
    pub(in super::super) fn give_back(&self, desk: &Arc<Desk>) {
        let mut of_desk = Vec::new();
        for parked in self.window.memory.claims.lock().values_mut() {
            let (ours, others) = std::mem::take(parked)
                .into_iter()
                .partition(|parked| Arc::ptr_eq(&parked.delivery.link.desk, desk));
            *parked = others;
            of_desk.extend::<Vec<_>>(ours);
        }
        for Parked { delivery, .. } in of_desk {
            let give_back = Command::give_back(delivery.message.id, Purpose::Unstarted);
            let _lost_with_its_connection = delivery.link.send(give_back);
        }
    }
}

/// The right to handle the messages of one key, until it ends.
pub(in super::super) struct Ticket {
    duplicates: Arc<Duplicates>,
    key: Key,
    place: (ConnectionId, MessageId),
    ended: AtomicBool,
}

impl Ticket {
    /// Remembers that the message is finished. To be called before FIN is queued. Returns what is still to be waited for.
    pub(in super::super) fn record(&self) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        if self.ended.load(Ordering::Acquire) {
            return None;
        }
        match self.duplicates.window.memory.record(&self.key) {
            Maybe::Now(()) => None,
            Maybe::Later(recording) => Some(recording),
        }
    }

    pub(in super::super) fn runtime(&self) -> &Handle {
        self.duplicates.runtime()
    }

    /// The message is answered: those that waited for it are finished too, or one of them is handled now.
    pub(in super::super) fn end(&self, finished: bool) {
        self.end_with(finished, vec![self.place]);
    }

    /// As [`end`](Self::end), but nsqd was told nothing of this delivery. If it has taken the message back and delivered it
    /// again on the same connection, that one is still to be answered.
    pub(in super::super) fn end_unanswered(&self, finished: bool) {
        self.end_with(finished, Vec::new());
    }

    fn end_with(&self, finished: bool, mut answered: Vec<(ConnectionId, MessageId)>) {
        if self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        let parked = self.duplicates.window.memory.claims.lock().remove(&self.key);
        for parked in parked.into_iter().flatten() {
            let is_answered = answered.contains(&parked.place());
            answered.push(parked.place());
            if finished {
                parked.finish(is_answered);
            } else {
                parked.unpark(is_answered);
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Whoever answers a message says so.
        self.end_unanswered(false);
    }
}

/// A delivery that nobody has begun to handle: given back if it is dropped.
pub(in super::super) struct Unstarted {
    inner: Option<(Delivery, Option<Arc<Ticket>>)>,
}

impl Unstarted {
    pub(in super::super) fn new(delivery: Delivery, ticket: Option<Arc<Ticket>>) -> Self {
        Self {
            inner: Some((delivery, ticket)),
        }
    }

    /// Takes it to be handled.
    pub(in super::super) fn begin(mut self) -> Option<(Delivery, Option<Arc<Ticket>>)> {
        self.inner.take()
    }

    pub(in super::super) fn delivery(&self) -> Option<&Delivery> {
        self.inner.as_ref().map(|(delivery, _)| delivery)
    }

    /// Itself, unless it was finished before.
    fn unless(self, finished: bool) -> Option<Self> {
        if !finished {
            return Some(self);
        }
        if let Some((delivery, ticket)) = self.begin() {
            skip(&delivery, false);
            ticket.iter().for_each(|ticket| ticket.end(true));
        }
        None
    }
}

impl Drop for Unstarted {
    fn drop(&mut self) {
        if let Some((delivery, ticket)) = self.inner.take() {
            let give_back = Command::give_back(delivery.message.id, Purpose::Unstarted);
            // On a lost connection nsqd takes the message back by itself.
            let _lost_with_its_connection = delivery.link.send(give_back);
            ticket.iter().for_each(|ticket| ticket.end(false));
        }
    }
}
