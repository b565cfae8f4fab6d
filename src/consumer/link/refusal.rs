//! What nsqd has refused: E_FIN_FAILED, E_REQ_FAILED and E_TOUCH_FAILED, and whom that concerns.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::error::{Error, ErrorKind, Step};
use crate::protocol::{ErrorCode, MessageId};

/// An answer to a message that nsqd has refused, because the message was no longer in flight to this connection: its
/// `msg_timeout` had run out, so nsqd has delivered it again, here or elsewhere.
///
/// See [`ConsumerBuilder::on_answer_refused`](crate::consumer::ConsumerBuilder::on_answer_refused).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AnswerRefused {
    /// The address of the nsqd, as configured or discovered.
    pub nsqd: Arc<str>,
    /// The message, if nsqd's text names one.
    pub id: Option<MessageId>,
    /// [`FinFailed`](ErrorCode::FinFailed), [`ReqFailed`](ErrorCode::ReqFailed) or
    /// [`TouchFailed`](ErrorCode::TouchFailed).
    pub code: ErrorCode,
    /// nsqd's own words.
    pub text: String,
}

/// The message that a refusal names: `E_FIN_FAILED FIN 0d1a2b3c4d5e6f70 failed ID not in flight`.
pub(in crate::consumer) fn refused_id(text: &str) -> Option<MessageId> {
    let word = text.split(' ').nth(2)?;
    word.as_bytes().try_into().ok().map(MessageId::new)
}

/// Who wants to hear that nsqd has refused something about a message, by its id. Only messages that somebody watches are
/// in it.
#[derive(Debug, Default)]
pub(in crate::consumer) struct Watches {
    watched: Mutex<Watched>,
    /// How many messages are in it, for whoever would ask for each message: a hint.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Watched {
    by_id: HashMap<MessageId, watch::Sender<Option<Error>>>,
    /// Why the connection is gone.
    ended: Option<Error>,
}

impl Watches {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::consumer) fn watch(self: &Arc<Self>, id: MessageId) -> Watch {
        let mut watched = self.lock();
        let seen = match &watched.ended {
            Some(error) => watch::channel(Some(error.clone())).1,
            None => match watched.by_id.entry(id) {
                Entry::Occupied(entry) => entry.get().subscribe(),
                Entry::Vacant(entry) => {
                    let (sender, seen) = watch::channel(None);
                    entry.insert(sender);
                    seen
                }
            },
        };
        self.count.store(watched.by_id.len(), Ordering::Relaxed);
        drop(watched);
        Watch {
            watches: Arc::clone(self),
            id,
            seen,
        }
    }

    /// Tells whoever watches this message.
    pub(in crate::consumer) fn refuse(&self, id: MessageId, error: Error) {
        let mut watched = self.lock();
        let sender = watched.by_id.remove(&id);
        self.count.store(watched.by_id.len(), Ordering::Relaxed);
        drop(watched);
        if let Some(sender) = sender {
            sender.send_replace(Some(error));
        }
    }

    /// Whether any message is watched.
    #[inline]
    pub(in crate::consumer) fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// The connection has ended, and with it nsqd's patience for all that it has delivered.
    pub(in crate::consumer) fn end(&self, error: &Error) {
        let mut watched = self.lock();
        watched.ended = Some(error.clone());
        let senders = std::mem::take(&mut watched.by_id);
        self.count.store(0, Ordering::Relaxed);
        drop(watched);
        for sender in senders.into_values() {
            sender.send_replace(Some(error.clone()));
        }
    }
}

/// Waits for a refusal of one message. Dropping it ends the watch.
#[derive(Debug)]
pub(in crate::consumer) struct Watch {
    watches: Arc<Watches>,
    id: MessageId,
    seen: watch::Receiver<Option<Error>>,
}

impl Watch {
    /// Waits until nsqd has refused an answer to the message or the connection has ended. Once it has, returns at once.
    pub(in crate::consumer) async fn refused(&mut self) -> Error {
        match self.seen.wait_for(Option::is_some).await {
            Ok(error) => error.clone().unwrap_or_else(gone),
            Err(_) => gone(),
        }
    }

    /// What [`refused`](Self::refused) has resolved or would resolve to by now.
    pub(in crate::consumer) fn told(&self) -> Option<Error> {
        self.seen.borrow().clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watched = self.watches.lock();
        if let Entry::Occupied(entry) = watched.by_id.entry(self.id) {
            // Once it has heard, what stands under the id is another's. This one counts until its field is dropped.
            if entry.get().receiver_count() <= 1 && entry.get().subscribe().same_channel(&self.seen) {
                entry.remove();
            }
        }
        self.watches.count.store(watched.by_id.len(), Ordering::Relaxed);
    }
}

fn gone() -> Error {
    Error::new(
        ErrorKind::ConnectionLost,
        Step::Handle,
        "the connection that delivered the message is gone; nsqd will deliver it again",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> MessageId {
        MessageId::new([number; 16])
    }

    #[test]
    fn c6_a_refusal_names_its_message_by_the_third_word() {
        let text = "E_FIN_FAILED FIN 0d1a2b3c4d5e6f70 failed ID not in flight";
        assert_eq!(refused_id(text), Some(MessageId::new(*b"0d1a2b3c4d5e6f70")));
        for text in ["", "E_FIN_FAILED", "E_FIN_FAILED FIN 0d1a failed", "E_REQ_FAILED  "] {
            assert_eq!(refused_id(text), None);
        }
    }

    #[tokio::test]
    async fn c6_only_who_watches_a_message_hears_of_it_and_nothing_is_kept() {
        let watches = Arc::new(Watches::default());
        let (mut first, mut second, other) = (watches.watch(id(1)), watches.watch(id(1)), watches.watch(id(2)));
        for refused in [1, 1, 3] {
            watches.refuse(id(refused), gone());
        }
        let mut again = watches.watch(id(1));
        assert_eq!(first.refused().await.kind(), ErrorKind::ConnectionLost);
        drop((first, other));
        second.refused().await;
        drop(second);
        assert_eq!(watches.lock().by_id.len(), 1);
        watches.end(&gone());
        again.refused().await;
        watches.watch(id(4)).refused().await;
        assert!(watches.lock().by_id.is_empty());
        assert!(!watches.any());
    }

    #[test]
    fn c6_what_is_watched_is_counted_and_what_was_told_can_be_asked_for() {
        let watches = Arc::new(Watches::default());
        assert!(!watches.any());
        let (first, second) = (watches.watch(id(1)), watches.watch(id(1)));
        let other = watches.watch(id(2));
        assert!(watches.any() && first.told().is_none());
        watches.refuse(id(1), gone());
        assert!(first.told().is_some() && second.told().is_some() && other.told().is_none());
        drop((first, second));
        assert!(watches.any());
        drop(other);
        assert!(!watches.any());
    }
}
