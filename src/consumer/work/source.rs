//! Messages for those who take them by themselves, without a worker: a stream, and whoever gathers a batch.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::inbox::{Delivery, Inbox, Pace, Take};
use super::lookout::Lookout;
use crate::consumer::answer::desk::Desk;
use crate::consumer::answer::lease::Lease;
use crate::consumer::duplicates::{Admission, Unstarted};
use crate::consumer::message::Message;

/// The worker's number under which a source takes: it is the only one that does.
const NUMBER: usize = 0;

type Asking = Pin<Box<dyn Future<Output = Option<Unstarted>> + Send>>;

/// Takes messages from the inbox, and keeps those away that are not to be handled: duplicates, and those that exceed
/// `max_attempts`.
pub(in crate::consumer) struct Source {
    inbox: Arc<Inbox>,
    desk: Arc<Desk>,
    runtime: Handle,
    /// Whether the next message is a duplicate. Never locked: the mutex lets a source be shared, which the question
    /// alone could not be.
    asking: Mutex<Option<Asking>>,
    /// It is bounded by what is in flight, since such messages are.
    giving_up: JoinSet<()>,
}

impl Source {
    /// A source within the current runtime.
    pub(in crate::consumer) fn new(inbox: Arc<Inbox>, desk: Arc<Desk>) -> Self {
        Self {
            inbox,
            desk,
            runtime: Handle::current(),
            asking: Mutex::default(),
            giving_up: JoinSet::new(),
        }
    }

    /// The next message that is to be handled, or `None` once the consumer ends.
    pub(in crate::consumer) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        lookout: Option<&Lookout>,
    ) -> Poll<Option<Unstarted>> {
        while self.giving_up.try_join_next().is_some() {}
        loop {
            if let Some(asking) = self.asking() {
                let admitted = ready!(asking.as_mut().poll(cx));
                *self.asking() = None;
                if let Some(unstarted) = admitted.and_then(|unstarted| self.screen(unstarted)) {
                    return Poll::Ready(Some(unstarted));
                }
            }
            match self.inbox.pop(NUMBER) {
                Some(delivery) => {
                    if let Some(unstarted) = self.admit(delivery) {
                        return Poll::Ready(Some(unstarted));
                    }
                }
                None => match ready!(self.inbox.poll_take(NUMBER, cx)) {
                    Take::Closed => return Poll::Ready(None),
                    Take::Messages { unwatched, .. } => {
                        self.inbox.adapt(Pace::Quick);
                        if let Some(lookout) = lookout.filter(|_| unwatched) {
                            lookout.begin();
                        }
                    }
                },
            }
        }
    }

    /// Gives back the message that may be a duplicate, since nobody asks for it any more.
    pub(in crate::consumer) fn stop_asking(&mut self) {
        *self.asking() = None;
    }

    /// Waits for what is being given up: once no more messages come, so that a shutdown does not cut it off.
    pub(in crate::consumer) async fn end(&mut self) {
        while self.giving_up.join_next().await.is_some() {}
    }

    fn asking(&mut self) -> &mut Option<Asking> {
        self.asking.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&mut self, delivery: Delivery) -> Option<Unstarted> {
        let unstarted = match &self.desk.duplicates {
            None => Unstarted::new(delivery, None),
            Some(duplicates) => match duplicates.admit(delivery, &self.inbox) {
                Admission::Begin(unstarted) => unstarted,
                Admission::Settled => return None,
                Admission::Asking(asking) => {
                    *self.asking() = Some(asking);
                    return None;
                }
            },
        };
        self.screen(unstarted)
    }

    /// Gives up what was delivered too often.
    fn screen(&mut self, unstarted: Unstarted) -> Option<Unstarted> {
        let attempts = unstarted.delivery()?.message.attempts;
        if !self.desk.rules.is_exceeded_by(attempts) {
            return Some(unstarted);
        }
        let (delivery, ticket) = unstarted.begin()?;
        self.desk.log_given_up(&delivery.link, delivery.message.id, attempts);
        let lease = Arc::new(Lease::new(delivery.link, delivery.delivered_at));
        let message = Message::owned(delivery.message, lease, ticket);
        let giving_up = async {
            // It fails if the connection is lost, and then nsqd delivers the message again.
            let _delivered_again = message.give_up().await;
        };
        // Nobody has to watch over a hook that blocks its thread: this task has woken none that would be stuck behind it, and
        // holds no messages but its own.
        self.giving_up.spawn_on(giving_up, &self.runtime);
        None
    }
}
